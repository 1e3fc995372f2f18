//! HTTP connections to backends: made, kept while they are idle, dropped when they are old. One store a worker.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::body::RequestBody;
use super::stream::Stream;
use crate::backend::{Backend, Load};

/// Idle connections that a worker keeps to one backend.
const IDLE_MAX: usize = 32;
/// How long an idle connection is kept.
const IDLE_AGE_MAX: Duration = Duration::from_secs(60);
/// What a response's header, and what is read ahead of a slow client, may take.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// A connection over which one request can be sent now.
pub(super) type Sender = SendRequest<RequestBody>;

/// The idle connections, by backend; the one used last is used next.
#[derive(Default)]
pub(super) struct Upstreams {
    idle: RefCell<HashMap<SocketAddr, Vec<Idle>>>,
}

struct Idle {
    sender: Sender,
    load: Arc<Load>,
    since: Instant,
}

impl Idle {
    fn is_good(&self) -> bool {
        !self.sender.is_closed() && !self.load.gone.is_cancelled() && self.since.elapsed() < IDLE_AGE_MAX
    }
}

impl Upstreams {
    /// An idle connection to this backend, if there is one.
    pub(super) fn take(&self, backend: &Backend) -> Option<Sender> {
        let mut all = self.idle.borrow_mut();
        let idle = all.get_mut(&backend.address)?;
        idle.retain(Idle::is_good);
        // One that is still busy with the end of its last request is passed over.
        let at = idle.iter().rposition(|idle| idle.sender.is_ready())?;
        Some(idle.remove(at).sender)
    }

    /// Keeps a connection whose response has been read to its end.
    pub(super) fn keep(&self, backend: &Backend, sender: Sender) {
        if sender.is_closed() || backend.load.gone.is_cancelled() {
            return;
        }
        let mut all = self.idle.borrow_mut();
        let idle = all.entry(backend.address).or_default();
        if idle.len() >= IDLE_MAX {
            idle.remove(0);
        }
        idle.push(Idle { sender, load: Arc::clone(&backend.load), since: Instant::now() });
    }

    /// Drops what is closed, old, or to a backend that is gone.
    pub(super) fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, idle| {
            idle.retain(Idle::is_good);
            !idle.is_empty()
        });
    }
}

/// Makes a connected socket a connection for requests. It lives until its sender is dropped or its backend ends it.
pub(super) async fn open(stream: Stream) -> hyper::Result<Sender> {
    let (sender, connection) = Builder::new()
        .max_buf_size(BUFFER_BYTES_MAX)
        .max_header_size(BUFFER_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::task::spawn_local(async move {
        // What goes wrong is told to whoever waits for the response.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}
