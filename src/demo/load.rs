//! Clients that ask without a pause, and count.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Clients, each with one connection that it keeps.
const CLIENTS: usize = 4;
/// Between two requests of one client: together at most 400 a second.
const PAUSE: Duration = Duration::from_millis(10);
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// What the clients saw.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    pub(super) by_backend: BTreeMap<String, u64>,
    pub(super) failed: u64,
    /// The first failure, in words.
    pub(super) first_failure: Option<String>,
}

impl Counts {
    pub(super) fn requests(&self) -> u64 {
        self.by_backend.values().sum::<u64>() + self.failed
    }

    pub(super) fn to_text(&self) -> String {
        let each: Vec<String> = self.by_backend.iter().map(|(name, count)| format!("{name} {count}")).collect();
        format!("{} requests, {} failed ({})", self.requests(), self.failed, each.join(", "))
    }
}

/// Running clients.
pub(super) struct Load {
    counts: Arc<Mutex<Counts>>,
    stop: CancellationToken,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub(super) fn start(target: SocketAddr) -> Self {
        let counts = Arc::new(Mutex::new(Counts::default()));
        let stop = CancellationToken::new();
        let clients = (0..CLIENTS).map(|_| tokio::spawn(client(target, Arc::clone(&counts), stop.clone()))).collect();
        Self { counts, stop, clients }
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `backend` has answered.
    pub(super) async fn answered_by(&self, backend: &str, limit: Duration) -> anyhow::Result<()> {
        poll(limit, || std::future::ready(self.counts().by_backend.contains_key(backend))).await
    }

    pub(super) async fn stop(self) -> Counts {
        self.stop.cancel();
        for client in self.clients {
            let _ = client.await;
        }
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Waits for the first answer.
pub(super) async fn first_answer(target: SocketAddr, limit: Duration) -> anyhow::Result<()> {
    poll(limit, || async { ask_once(target).await.is_ok() }).await
}

/// Waits until so many different backends have answered.
pub(super) async fn answers_from(target: SocketAddr, backends: usize, limit: Duration) -> anyhow::Result<()> {
    let seen = Mutex::new(std::collections::BTreeSet::new());
    let ask = || async {
        let Ok(name) = ask_once(target).await else {
            return false;
        };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(name);
        seen.len() >= backends
    };
    poll(limit, ask).await
}

async fn poll<F: Future<Output = bool>>(limit: Duration, mut condition: impl FnMut() -> F) -> anyhow::Result<()> {
    let attempts = async {
        while !condition().await {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(limit, attempts).await.with_context(|| format!("not within {limit:?}"))
}

async fn client(target: SocketAddr, counts: Arc<Mutex<Counts>>, stop: CancellationToken) {
    let mut connection = None;
    while !stop.is_cancelled() {
        let answer = ask(target, &mut connection).await;
        {
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            match answer {
                Ok(name) => *counts.by_backend.entry(name).or_default() += 1,
                Err(error) => {
                    counts.failed += 1;
                    counts.first_failure.get_or_insert_with(|| format!("{error:#}"));
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ask_once(target: SocketAddr) -> anyhow::Result<String> {
    ask(target, &mut None).await
}

/// One request, on the connection if it is still there; the name of the backend that answered.
async fn ask(target: SocketAddr, connection: &mut Option<SendRequest<Empty<Bytes>>>) -> anyhow::Result<String> {
    let mut sender = match connection.take() {
        Some(kept) if !kept.is_closed() => kept,
        _ => connect(target).await?,
    };
    let exchange = async {
        let request = Request::get("/").header("host", target.to_string()).body(Empty::new())?;
        let response = sender.send_request(request).await.context("no answer")?;
        let status = response.status();
        let name = response.headers().get("x-served-by").and_then(|name| name.to_str().ok()).map(str::to_owned);
        response.into_body().collect().await.context("the answer broke off")?;
        anyhow::ensure!(status.is_success(), "the answer was {status}");
        name.context("the answer does not say who gave it")
    };
    let name = tokio::time::timeout(REQUEST_LIMIT, exchange).await.context("took too long")??;
    *connection = Some(sender);
    Ok(name)
}

async fn connect(target: SocketAddr) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(target).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
