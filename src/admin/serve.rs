//! Accepts connections and speaks HTTP on them, within bounds.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::bind::{Listener, SocketFile};
use super::routes::{Shared, Via, router};
use super::tally::Tally;
use super::{Admin, Sources};

/// The most connections at one address; the next ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send the head of a request, and may say nothing between two.
const HEADER_LIMIT: Duration = Duration::from_secs(5);
/// How long a connection may live: no client can hold one of the few for ever by reading slowly.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
/// The most bytes of a request's head. hyper asks for no less than 8 KiB.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long connections may still last when the server ends.
const GRACE: Duration = Duration::from_secs(1);
/// The wait after an accept that failed, for one because no file descriptor was left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn run(admin: Admin, sources: Sources, shutdown: CancellationToken) {
    let tally = Arc::new(Mutex::new(Tally::default()));
    let mut listeners = JoinSet::new();
    for listener in admin.listeners {
        let via = via(&listener);
        let shared = Shared { sources: sources.clone(), tally: Arc::clone(&tally), token: admin.token.clone(), via };
        listeners.spawn(listen(listener, router(shared), shutdown.clone()));
    }
    tokio::select! {
        () = follow_pools(&sources, &tally) => {}
        () = shutdown.cancelled() => {}
    }
    while listeners.join_next().await.is_some() {}
}

fn via(listener: &Listener) -> Via {
    match listener {
        Listener::Unix { .. } => Via::Unix,
        Listener::Tcp { bound, .. } => Via::of(bound.ip()),
    }
}

/// Keeps the tally up with the pools, so that a backend that comes and goes between two scrapes is counted too.
async fn follow_pools(sources: &Sources, tally: &Mutex<Tally>) {
    let Some(mut pools) = sources.pools.clone() else {
        return;
    };
    loop {
        tally.lock().unwrap_or_else(PoisonError::into_inner).update(&pools.borrow_and_update());
        if pools.changed().await.is_err() {
            return;
        }
    }
}

/// What one accept gives.
trait Accept {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    async fn accept_one(&self) -> io::Result<Self::Stream>;
}

impl Accept for TcpListener {
    type Stream = tokio::net::TcpStream;
    async fn accept_one(&self) -> io::Result<Self::Stream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;
    async fn accept_one(&self) -> io::Result<Self::Stream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

async fn listen(listener: Listener, router: Router, shutdown: CancellationToken) {
    let address = listener.address().clone();
    // Only a runtime that cannot watch one more socket refuses here.
    let refused = |error: io::Error| tracing::error!(%address, %error, "the admin address cannot be served");
    match listener {
        Listener::Unix { listener, file, .. } => match UnixListener::from_std(listener) {
            Ok(listener) => accept_all(&listener, router, shutdown, Some(file)).await,
            Err(error) => refused(error),
        },
        Listener::Tcp { listener, .. } => match TcpListener::from_std(listener) {
            Ok(listener) => accept_all(&listener, router, shutdown, None).await,
            Err(error) => refused(error),
        },
    }
}

async fn accept_all(listener: &impl Accept, router: Router, shutdown: CancellationToken, file: Option<SocketFile>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let is_full = connections.len() >= CONNECTIONS_MAX;
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = connections.join_next(), if is_full => {}
            accepted = listener.accept_one(), if !is_full => match accepted {
                Ok(stream) => {
                    connections.spawn(converse(stream, router.clone(), shutdown.clone()));
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    drop(file);
    while connections.join_next().await.is_some() {}
}

/// One connection, until its client has had enough, its time is over or the server ends. What went wrong on it
/// is its client's to see; nothing is logged.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router, shutdown: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = sleep(CONNECTION_LIMIT) => {}
        () = shutdown.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(GRACE, connection).await;
}
