//! Accepting: how many clients may be in, and the loop that lets them in.
//!
//! A connection takes two descriptors, its own and its backend's, a UDP flow one. Whatever the settings say, connections
//! get no more than the descriptors that flows have not taken, and flows leave them a quarter. When a client finds no place,
//! the one that has been idle longest makes way for it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::warn;

use super::dial::is_out_of_descriptors;
use super::proxy_protocol::{self, Parsed};
use super::worker::Worker;
use super::{Limits, Shared};

/// Descriptors that are not for connections: listen ports, event queues, gossip, the admin socket, logs, files.
const DESCRIPTORS_KEPT: u64 = 64;
/// Of so many descriptors a worker may have one pipe, which takes two.
const DESCRIPTORS_A_PIPE: u64 = 64;
/// The most pipes that all workers together may have: as many of their size as the kernel lets a user have.
const PIPES_MAX: u64 = 256;
/// Of so many descriptors one is for connections, however many flows there are.
const SHARE_OF_CONNECTIONS: usize = 4;
/// The first pause after an accept that failed; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// As long as there is no place, it is looked so often for clients that wait for one.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How many client connections and UDP flows are open, and how many may be.
#[derive(Debug)]
pub(super) struct Admission {
    open: AtomicUsize,
    /// The most that were open since this was asked last.
    most: AtomicUsize,
    flows: AtomicUsize,
    /// Client connections, if the descriptors bear so many; 0: as many as they bear.
    limit: AtomicUsize,
    flows_limit: AtomicUsize,
    /// Descriptors for connections and flows.
    descriptors: usize,
    /// Pipes that a worker may have.
    pipes: usize,
    room: Notify,
    /// Woken when a client waits for a place, and the worker at which it waits has nobody idle.
    crowded: Notify,
    closed: Notify,
}

impl Admission {
    /// As many as `limits` and the descriptor limit bear.
    pub(super) fn new(limits: &Limits, workers: usize) -> Self {
        let descriptors = raise_descriptor_limit();
        let workers = workers.max(1) as u64;
        let pipes = (descriptors / DESCRIPTORS_A_PIPE).min(PIPES_MAX) / workers;
        let descriptors = descriptors.saturating_sub(DESCRIPTORS_KEPT + 2 * pipes * workers).max(2);
        let admission = Self {
            open: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            flows: AtomicUsize::new(0),
            limit: AtomicUsize::new(0),
            flows_limit: AtomicUsize::new(0),
            descriptors: usize::try_from(descriptors).unwrap_or(usize::MAX),
            pipes: usize::try_from(pipes).unwrap_or(0),
            room: Notify::new(),
            crowded: Notify::new(),
            closed: Notify::new(),
        };
        admission.set_limits(limits);
        admission
    }

    pub(super) fn set_limits(&self, limits: &Limits) {
        let connections = limits.connections.map_or(0, |some| some as usize);
        let borne = self.descriptors / 2;
        if connections > borne && self.limit.swap(connections, Ordering::Relaxed) != connections {
            warn!(
                target: "scrimp::proxy::accept",
                "lb.limits.connections is {connections}, but the descriptor limit bears {borne}: raise that \
                 (LimitNOFILE= in a systemd unit)"
            );
        }
        self.limit.store(connections, Ordering::Relaxed);
        self.flows_limit.store(limits.udp_flows as usize, Ordering::Relaxed);
        self.room.notify_waiters();
    }

    /// How many pipes a worker may have.
    pub(super) fn pipes(&self) -> usize {
        self.pipes
    }

    /// How many connections may be open.
    pub(super) fn limit(&self) -> usize {
        let borne = self.descriptors.saturating_sub(self.flows.load(Ordering::Relaxed)) / 2;
        match self.limit.load(Ordering::Relaxed) {
            0 => borne,
            some => some.min(borne),
        }
    }

    /// Whether there is no place for another connection.
    fn is_full(&self) -> bool {
        self.open() >= self.limit()
    }

    /// Has every worker look for somebody idle.
    pub(super) fn ask_for_room(&self) {
        self.crowded.notify_waiters();
    }

    /// Waits until somebody idle is looked for.
    pub(super) async fn crowded(&self) {
        self.crowded.notified().await;
    }

    /// How many connections, or flows, were open at most since this was asked last.
    pub(super) fn take_most(&self) -> usize {
        self.most.swap(0, Ordering::Relaxed)
    }

    /// How many connections are open now.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Waits until none is open, and no flow either. For one waiter at a time.
    pub(super) async fn all_closed(&self) {
        while self.open() > 0 || self.flows.load(Ordering::Acquire) > 0 {
            self.closed.notified().await;
        }
    }

    fn enter(&self) -> bool {
        enter(&self.open, self.limit())
    }

    fn enter_flow(&self) -> bool {
        let left = self.descriptors.saturating_sub(self.open.load(Ordering::Relaxed).saturating_mul(2));
        // However many flows there are, clients of other protocols are let in.
        let connections = match self.limit.load(Ordering::Relaxed) {
            0 => usize::MAX,
            some => some.saturating_mul(2),
        };
        let most = self.descriptors - connections.min(self.descriptors / SHARE_OF_CONNECTIONS);
        enter(&self.flows, self.flows_limit.load(Ordering::Relaxed).min(most).min(left))
    }

    fn leave(&self, count: &AtomicUsize) {
        let before = count.fetch_sub(1, Ordering::AcqRel);
        self.most.fetch_max(before, Ordering::Relaxed);
        if before == 1 {
            self.closed.notify_one();
        }
        self.room.notify_one();
    }
}

fn enter(count: &AtomicUsize, limit: usize) -> bool {
    count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < limit).then_some(open + 1)).is_ok()
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
        admission.leave(&admission.open);
    }
}

/// A place for one UDP flow; given back when dropped.
#[derive(Debug)]
pub(super) struct FlowSlot {
    shared: Arc<Shared>,
}

impl FlowSlot {
    pub(super) fn take(shared: &Arc<Shared>) -> Option<Self> {
        shared.admission.enter_flow().then(|| {
            shared.counters.udp_flows.inc();
            Self { shared: Arc::clone(shared) }
        })
    }
}

impl Drop for FlowSlot {
    fn drop(&mut self) {
        self.shared.counters.udp_flows_closed.inc();
        let admission = &self.shared.admission;
        admission.leave(&admission.flows);
    }
}

/// Accepts for ever, and hands each client to `serve`. Errors are counted, and slow it down so that it never spins.
pub(super) async fn run(worker: &Worker, listener: &TcpListener, mut serve: impl FnMut(TcpStream, SocketAddr, Slot)) {
    let mut pause = PAUSE_MIN;
    loop {
        match next(worker, listener).await {
            Ok((stream, peer, slot)) => {
                pause = PAUSE_MIN;
                worker.shared.counters.connections.inc();
                serve(stream, peer, slot);
            }
            Err(error) => {
                worker.shared.counters.accept_failures.inc();
                if is_out_of_descriptors(&error) {
                    worker.upstreams.clear();
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// One client. A place is taken before the accept, so that clients beyond the limit wait in the kernel's queue.
async fn next(worker: &Worker, listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr, Slot)> {
    let shared = &worker.shared;
    loop {
        // A place is held while a client is there, not while one is waited for.
        let accepted = poll_fn(|cx| match Slot::take(shared) {
            Some(slot) => listener.poll_accept(cx).map_ok(|(stream, peer)| Some((stream, peer, slot))),
            None => Poll::Ready(Ok(None)),
        });
        if let Some(client) = accepted.await? {
            return Ok(client);
        }
        let mut room = pin!(shared.admission.room.notified());
        // In the queue before looking again, so that a place that comes free in between is not missed, and only now: a
        // place is told to one in the queue, and who waits for something else would let it pass.
        room.as_mut().enable();
        if shared.admission.is_full() {
            if has_client(listener) {
                worker.make_room();
            }
            let _ = timeout(LOOK_AGAIN, room).await;
        }
    }
}

/// Whether a client is there to be accepted.
fn has_client(listener: &TcpListener) -> bool {
    let mut asked = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Whose connection it is, as a proxy says in the PROXY protocol; none: its own, or it does not know. Reads the header
/// and nothing that follows it.
pub(super) async fn announced(stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
    let (mut header, mut peeked) = (Vec::new(), vec![0; proxy_protocol::V2_BYTES_MAX]);
    loop {
        let count = stream.peek(&mut peeked).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = header.len();
        header.extend_from_slice(&peeked[..count]);
        let parsed = proxy_protocol::parse(&header);
        let taken = match parsed {
            Parsed::Whole { length, .. } => length - before,
            Parsed::Partial => count,
            Parsed::Invalid => return Err(io::ErrorKind::InvalidData.into()),
        };
        // They are there: nobody else reads them.
        if stream.try_read(&mut peeked[..taken])? != taken {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Parsed::Whole { source, .. } = parsed {
            return Ok(source);
        }
    }
}

/// Asks for as many descriptors as this process may have; returns how many it has.
fn raise_descriptor_limit() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let most = Rlimit { current: now.maximum, maximum: now.maximum };
    let limit = if now.current != now.maximum && setrlimit(Resource::Nofile, most).is_ok() { most } else { now };
    limit.current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_shared_between_connections_and_flows() {
        let with = |connections, udp_flows| {
            let limits = Limits { connections, udp_flows, ..Limits::default() };
            let admission = Admission { descriptors: 400, ..Admission::new(&Limits::default(), 1) };
            admission.set_limits(&limits);
            let flows = (0..1000).take_while(|_| admission.enter_flow()).count();
            let connections = (0..1000).take_while(|_| admission.enter()).count();
            (flows, connections)
        };
        assert_eq!(with(None, 100), (100, 150));
        assert_eq!(with(None, 1000), (300, 50), "flows leave connections a quarter");
        assert_eq!(with(Some(10), 1000), (380, 10), "or as much as they may have");
        assert_eq!(with(Some(1000), 0), (0, 200), "no more than the descriptors bear");
    }
}
