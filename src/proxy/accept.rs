//! Accepting: how many clients may be in, and the loop that lets them in.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::Shared;

/// Descriptors that are not for connections: listen ports, event queues, gossip, the admin socket, logs, files.
const DESCRIPTORS_KEPT: u64 = 64;
/// The first pause after an accept that failed; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How many client connections are open, and how many may be.
#[derive(Debug)]
pub(super) struct Admission {
    open: AtomicUsize,
    limit: AtomicUsize,
    room: Notify,
    closed: Notify,
}

impl Admission {
    /// `limit` connections, or what the descriptor limit bears.
    pub(super) fn new(limit: Option<u32>) -> Self {
        Self {
            open: AtomicUsize::new(0),
            limit: AtomicUsize::new(connections_max(limit)),
            room: Notify::new(),
            closed: Notify::new(),
        }
    }

    pub(super) fn set_limit(&self, limit: Option<u32>) {
        self.limit.store(connections_max(limit), Ordering::Relaxed);
        self.room.notify_waiters();
    }

    /// How many may be open.
    pub(super) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// How many are open now.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Waits until none is open. For one waiter at a time.
    pub(super) async fn all_closed(&self) {
        while self.open() > 0 {
            self.closed.notified().await;
        }
    }

    fn enter(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < limit).then_some(open + 1)).is_ok()
    }
}

/// A place for one client connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    shared: Arc<Shared>,
}

impl Slot {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        shared.admission.enter().then(|| Self { shared: Arc::clone(shared) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let admission = &self.shared.admission;
        if admission.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            admission.closed.notify_one();
        }
        admission.room.notify_one();
    }
}

/// Accepts for ever, and hands each client to `serve`. Errors are counted, and slow it down so that it never spins.
pub(super) async fn run(
    shared: &Arc<Shared>,
    listener: &TcpListener,
    mut serve: impl FnMut(TcpStream, SocketAddr, Slot),
) {
    let mut pause = PAUSE_MIN;
    loop {
        match next(shared, listener).await {
            Ok((stream, peer, slot)) => {
                pause = PAUSE_MIN;
                shared.counters.connections.inc();
                serve(stream, peer, slot);
            }
            Err(_) => {
                shared.counters.accept_failures.inc();
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// One client. A place is taken before the accept, so that clients beyond the limit wait in the kernel's queue.
async fn next(shared: &Arc<Shared>, listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr, Slot)> {
    loop {
        let mut room = pin!(shared.admission.room.notified());
        // In the queue before looking, so that a place that comes free in between is not missed.
        room.as_mut().enable();
        // A place is held while a client is there, not while one is waited for.
        let accepted = poll_fn(|cx| match Slot::take(shared) {
            Some(slot) => listener.poll_accept(cx).map_ok(|(stream, peer)| Some((stream, peer, slot))),
            None => Poll::Ready(Ok(None)),
        });
        match accepted.await? {
            Some(client) => return Ok(client),
            None => room.await,
        }
    }
}

/// Each client needs two descriptors, its own and its backend's.
fn connections_max(limit: Option<u32>) -> usize {
    let descriptors = raise_descriptor_limit();
    match limit {
        Some(some) => some as usize,
        None => usize::try_from(descriptors.saturating_sub(DESCRIPTORS_KEPT) / 2).unwrap_or(usize::MAX).max(1),
    }
}

/// Asks for as many descriptors as this process may have; returns how many it has.
fn raise_descriptor_limit() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let most = Rlimit { current: now.maximum, maximum: now.maximum };
    let limit = if now.current != now.maximum && setrlimit(Resource::Nofile, most).is_ok() { most } else { now };
    limit.current.unwrap_or(u64::MAX)
}
