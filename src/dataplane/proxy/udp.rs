//! UDP applications: one flow a client's address, one backend a flow.
//!
//! Each worker has a socket of its own for each listen port, and the kernel gives a client's datagrams always to the
//! same one: a flow is known to one worker, and nobody locks anybody. Towards the backend every flow has a connected
//! socket: the kernel finds the flow that an answer belongs to, drops what comes from anybody else, and says when
//! nobody is there. It costs a descriptor a flow; two flows with the same backend need two ports anyway.
//!
//! Flows are bounded in number. When there is no room, the flow that has been quiet the longest makes way, but not one
//! that is proven (see `flows`) and not one that is younger than the wait for an answer: a flood costs a few look-ups a
//! datagram, and those who are known are served on. If all are known, a host with a good part of all flows gives one of them
//! to a newcomer with fewer: no host keeps the others out.

mod flows;
mod socket;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::OnRemoval;
use super::accept::FlowSlot;
use super::dial::{is_ours, leads_back};
use super::gone::Gone;
use super::tcp::is_full;
use super::worker::Worker;
use crate::backend::{Lease, Standing};
use crate::name::Port;
use crate::pool::Pool;
use crate::report::Counter;
use flows::{Flows, Group, Key, Place};
use socket::{Control, Received};

pub(super) use socket::open;

/// Larger than any datagram.
const BUFFER_BYTES: usize = 64 * 1024;
/// Datagrams that are read in one turn, before others have theirs.
const TURN: usize = 64;
/// How long an answer is waited for: a flow that is not proven is left alone for so long, and so is a drained backend's.
const ANSWER: Duration = Duration::from_secs(1);
/// Backends that are tried for one datagram, and the most that a flow remembers to have tried in vain.
const TRIES: usize = 8;
/// How often flows are looked over, at the most and at the least.
const SWEEP: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// What sockets are watched for. Not for room to write: the kernel would tell of it after each datagram.
const INTEREST: Interest = Interest::READABLE.add(Interest::ERROR);

/// The flows of one worker.
#[derive(Debug)]
pub(super) struct Udp {
    flows: RefCell<Flows<Entry>>,
    /// Woken when the first flow begins.
    began: Notify,
    buffer: RefCell<Box<[u8]>>,
    control: RefCell<Control>,
}

impl Default for Udp {
    fn default() -> Self {
        Self {
            flows: RefCell::default(),
            began: Notify::new(),
            buffer: RefCell::new(vec![0; BUFFER_BYTES].into_boxed_slice()),
            control: RefCell::default(),
        }
    }
}

/// What the table holds of a flow.
#[derive(Debug)]
struct Entry {
    flow: Rc<Flow>,
    answering: AbortHandle,
    _slot: FlowSlot,
    /// Where nobody was, since the last answer.
    tried: Vec<SocketAddr>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.answering.abort();
    }
}

/// One client's datagrams and one backend.
#[derive(Debug)]
struct Flow {
    front: Rc<Front>,
    client: SocketAddr,
    local: IpAddr,
    backend: AsyncFd<Socket>,
    lease: Lease,
    /// The newest pool that the backend was found in.
    pool: RefCell<Arc<Pool>>,
    /// Where it stands in the table; none: it has a successor, or not begun.
    place: Cell<Option<Place>>,
    /// The first datagram since the last answer.
    asked: Cell<Option<Instant>>,
    is_answered: Cell<bool>,
    /// Nobody is there, the network says.
    is_broken: Cell<bool>,
}

/// A socket that listens.
#[derive(Debug)]
struct Front {
    socket: AsyncFd<UdpSocket>,
    bound: SocketAddr,
}

/// The flows of one listening socket; they end with it.
struct Gate {
    worker: Rc<Worker>,
    group: Group,
}

impl Drop for Gate {
    fn drop(&mut self) {
        let (udp, shared) = (&self.worker.udp, &self.worker.shared);
        let mut flows = udp.flows.borrow_mut();
        for place in flows.of_group(self.group) {
            let is_owed = flows.get(place).is_some_and(|entry| entry.flow.is_owed(Instant::now()));
            if !(is_owed && shared.draining.is_cancelled()) {
                flows.remove(place);
            }
        }
        // When draining, the last flow leaves an empty group behind, and the worker ends.
        flows.close_group(self.group);
    }
}

#[expect(deprecated, reason = "its successor is unsafe, for types that do not own their descriptor; sockets do")]
fn watched<T: AsRawFd>(socket: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(socket, INTEREST)
}

/// Serves what comes in through one socket, for ever.
pub(super) async fn serve(worker: Rc<Worker>, port: Port, socket: UdpSocket) -> io::Result<()> {
    let bound = socket.local_addr()?;
    let front = Rc::new(Front { socket: watched(socket)?, bound });
    let group = worker.udp.flows.borrow_mut().open_group();
    let gate = Gate { worker: Rc::clone(&worker), group };
    loop {
        let mut ready = front.socket.readable().await?;
        let turn = Turn { worker: &gate.worker, front: &front, group, pool: worker.udp_pool(port), now: None };
        if turn.read() {
            ready.clear_ready();
        } else {
            drop(ready);
            tokio::task::yield_now().await;
        }
    }
}

/// Ends flows on which nothing moves, for ever.
pub(super) async fn sweep(worker: Rc<Worker>) {
    let (udp, shared) = (&worker.udp, &worker.shared);
    loop {
        if udp.flows.borrow().len() == 0 {
            udp.began.notified().await;
        }
        let idle = shared.config.load().timeouts.udp_idle;
        tokio::time::sleep((idle / 4).clamp(SWEEP.0, SWEEP.1)).await;
        let now = Instant::now();
        let mut flows = udp.flows.borrow_mut();
        // A flow that a drained proxy keeps for the answer it is owed is given up when that does not come.
        let idle = if shared.draining.is_cancelled() { idle.min(ANSWER) } else { idle };
        while let Some(place) = flows.idle(now.into(), idle) {
            flows.remove(place);
        }
    }
}

/// Datagrams that are read one after the other.
struct Turn<'a> {
    worker: &'a Rc<Worker>,
    front: &'a Rc<Front>,
    group: Group,
    pool: Option<Arc<Pool>>,
    now: Option<Instant>,
}

impl Turn<'_> {
    /// Says whether nothing is left to read. The kernel tells of what comes later.
    fn read(mut self) -> bool {
        let (socket, bound) = (self.front.socket.get_ref(), self.front.bound.ip());
        let udp = &self.worker.udp;
        let (mut buffer, mut control) = (udp.buffer.borrow_mut(), udp.control.borrow_mut());
        for _ in 0..TURN {
            match socket::receive(socket, bound, &mut buffer, &mut control) {
                Ok(Received { length, client, local }) => self.take(buffer.get(..length), client, local),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing is there; or it is this one datagram's trouble, and the next one wakes us.
                Err(_) => return true,
            }
        }
        false
    }

    fn count(&self, of: impl Fn(&crate::report::ProxyCounters) -> &Counter) {
        of(&self.worker.shared.counters).inc();
    }

    /// One datagram of a client's.
    fn take(&mut self, bytes: Option<&[u8]>, client: SocketAddr, local: IpAddr) {
        let Some(bytes) = bytes else {
            return;
        };
        if !is_answerable(client, SocketAddr::new(local, self.front.bound.port())) {
            self.count(|counters| &counters.udp_unanswerable);
            return;
        }
        let now = *self.now.get_or_insert_with(Instant::now);
        let key = Key { group: self.group, client, local };
        let mut flows = self.worker.udp.flows.borrow_mut();
        let found = flows.find(&key);
        let flow = match found.and_then(|place| Some((place, Rc::clone(&flows.get(place)?.flow)))) {
            Some((place, flow)) => {
                flows.touch(place, now.into());
                if flow.is_answered.get() {
                    flows.prove(place);
                }
                if self.is_right(&flow, now) { Some(flow) } else { self.move_on(&mut flows, place, &flow, now) }
            }
            None => self.begin(&mut flows, key, now),
        };
        if let Some(flow) = flow {
            self.pass(&mut flows, flow, bytes, now);
        }
    }

    /// Passes a datagram on; where nobody is, to another backend.
    fn pass(&self, flows: &mut Flows<Entry>, mut flow: Rc<Flow>, bytes: &[u8], now: Instant) {
        for _ in 0..TRIES {
            match flow.backend.get_ref().send(bytes) {
                Ok(_) => {
                    if flow.asked.get().is_none() {
                        flow.asked.set(Some(now));
                    }
                    return self.count(|counters| &counters.udp_in);
                }
                // What the network said of an earlier datagram is told now.
                Err(error) if is_nobody_there(&error) => {
                    flow.broke(self.worker);
                    let Some(place) = flow.place.get() else {
                        break;
                    };
                    match self.move_on(flows, place, &flow, now) {
                        Some(next) => flow = next,
                        None => return,
                    }
                }
                Err(_) => break,
            }
        }
        self.count(|counters| &counters.udp_unsent);
    }

    /// Whether the backend of a flow is still the one to ask. A flow stays with a backend that is suspected, as a
    /// connection does, unless its own datagrams are not answered either. From one that drains it goes at once: a flow
    /// has no end to wait for.
    fn is_right(&self, flow: &Flow, now: Instant) -> bool {
        let backend = flow.lease.backend();
        if flow.is_broken.get() || backend.load.is_gone() {
            return false;
        }
        let Some(pool) = &self.pool else {
            return true;
        };
        if Arc::ptr_eq(pool, &flow.pool.borrow()) {
            return true;
        }
        let found = pool.backends.binary_search_by_key(&backend.address, |other| other.address);
        if found.is_ok_and(|at| Arc::ptr_eq(&pool.backends[at].load, &backend.load)) {
            *flow.pool.borrow_mut() = Arc::clone(pool);
            return true;
        }
        let is_silent = || flow.asked.get().is_some_and(|asked| now.duration_since(asked) >= ANSWER);
        let is_suspected = backend.load.standing() == Standing::Doubtful;
        pool.backends.is_empty() || (is_suspected && !is_silent())
    }

    /// A flow of a client that is not known.
    fn begin(&self, flows: &mut Flows<Entry>, key: Key, now: Instant) -> Option<Rc<Flow>> {
        let shared = &self.worker.shared;
        // An answer would come in as a question.
        if leads_back(&shared.listening_udp.load(), key.client) {
            self.count(|counters| &counters.udp_unanswerable);
            return None;
        }
        let limit = shared.config.load().limits.app_connections;
        let Some(pool) = self.pool.as_ref().filter(|pool| !pool.backends.is_empty()) else {
            self.count(|counters| &counters.udp_no_backend);
            return None;
        };
        let slot = (!is_full(pool, limit)).then(|| self.room(flows, key.client.ip(), now)).flatten();
        let Some(slot) = slot else {
            self.count(|counters| &counters.udp_full);
            return None;
        };
        let mut tried = Vec::new();
        let flow = self.connect(flows, pool, &key, &mut tried, now)?;
        let entry = Entry { answering: answering(self.worker, &flow), flow: Rc::clone(&flow), _slot: slot, tried };
        if flows.len() == 0 {
            self.worker.udp.began.notify_one();
        }
        flow.place.set(Some(flows.insert(key, entry, now.into())));
        Some(flow)
    }

    /// A place for one more flow of `client`'s, if need be somebody else's.
    fn room(&self, flows: &mut Flows<Entry>, client: IpAddr, now: Instant) -> Option<FlowSlot> {
        let take = || FlowSlot::take(&self.worker.shared);
        take().or_else(|| {
            flows.remove(flows.makes_way(now.into(), ANSWER).or_else(|| flows.of_a_crowd(client))?);
            take()
        })
    }

    /// The same flow with another backend. None: there is none, and the flow has ended.
    fn move_on(&self, flows: &mut Flows<Entry>, place: Place, flow: &Flow, now: Instant) -> Option<Rc<Flow>> {
        let entry = flows.get_mut(place)?;
        let mut tried = std::mem::take(&mut entry.tried);
        if flow.is_broken.get() {
            tried.push(flow.lease.backend().address);
            self.count(|counters| &counters.retries);
        }
        let key = Key { group: self.group, client: flow.client, local: flow.local };
        let connected = match &self.pool {
            Some(pool) if tried.len() <= TRIES => self.connect(flows, pool, &key, &mut tried, now),
            _ => {
                self.count(|counters| &counters.udp_no_backend);
                None
            }
        };
        let Some(next) = connected else {
            // Everybody was tried: the next datagram begins anew.
            flows.remove(place);
            return None;
        };
        next.place.set(Some(place));
        next.is_answered.set(flow.is_answered.get());
        flow.place.set(None);
        let answering = answering(self.worker, &next);
        let entry = flows.get_mut(place)?;
        entry.tried = tried;
        let old = std::mem::replace(&mut entry.answering, answering);
        entry.flow = Rc::clone(&next);
        // What it was asked before it may still answer.
        let is_owed = flow.is_owed(now) && !flow.is_broken.get() && !self.is_killed(flow);
        // Its socket is one more: that takes a place of its own.
        match is_owed.then(|| FlowSlot::take(&self.worker.shared)).flatten() {
            Some(slot) => {
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(ANSWER).await;
                    old.abort();
                    drop(slot);
                });
            }
            None => old.abort(),
        }
        Some(next)
    }

    fn is_killed(&self, flow: &Flow) -> bool {
        let is_gone = flow.lease.backend().load.is_gone();
        is_gone && self.worker.shared.config.load().on_removal == OnRemoval::Kill
    }

    /// A flow with a backend that was not tried.
    fn connect(
        &self,
        flows: &mut Flows<Entry>,
        pool: &Arc<Pool>,
        key: &Key,
        tried: &mut Vec<SocketAddr>,
        now: Instant,
    ) -> Option<Rc<Flow>> {
        while let Some(lease) = pool.pick(key.client, tried).filter(|_| tried.len() <= TRIES) {
            let address = lease.backend().address;
            let is_ours_to_hear = leads_back(&self.worker.shared.listening_udp.load(), address);
            let open = || match is_ours_to_hear {
                true => Err(io::ErrorKind::ConnectionRefused.into()),
                false => watched(socket::connect(address)?),
            };
            let connected = open().or_else(|error| match flows.makes_way(now.into(), ANSWER) {
                // Out of descriptors, perhaps: what makes way gives one back for the next.
                Some(place) if is_ours(&error) => {
                    flows.remove(place);
                    open()
                }
                _ => Err(error),
            });
            match connected {
                Ok(backend) => {
                    return Some(Rc::new(Flow {
                        front: Rc::clone(self.front),
                        client: key.client,
                        local: key.local,
                        backend,
                        lease,
                        pool: RefCell::new(Arc::clone(pool)),
                        place: Cell::new(None),
                        asked: Cell::new(None),
                        is_answered: Cell::new(false),
                        is_broken: Cell::new(false),
                    }));
                }
                Err(error) => {
                    self.count(|counters| &counters.connect_failures);
                    if is_ours(&error) {
                        self.count(|counters| &counters.udp_full);
                        return None;
                    }
                    lease.failed();
                    tried.push(address);
                }
            }
        }
        self.count(|counters| &counters.udp_no_backend);
        None
    }
}

impl Flow {
    /// Whether the client has asked and may still be answered.
    fn is_owed(&self, now: Instant) -> bool {
        self.asked.get().is_some_and(|asked| now.duration_since(asked) < ANSWER)
    }

    /// Nobody is there, the network says.
    fn broke(&self, worker: &Worker) {
        if !self.is_broken.replace(true) {
            worker.shared.counters.connect_failures.inc();
            self.lease.failed();
        }
    }
}

/// Starts to pass on what the backend of a flow says.
fn answering(worker: &Rc<Worker>, flow: &Rc<Flow>) -> AbortHandle {
    let (worker, flow) = (Rc::clone(worker), Rc::clone(flow));
    tokio::task::spawn_local(async move { answer(&worker, &flow).await }).abort_handle()
}

/// Passes answers on until it is aborted, or the backend is gone and its flows are to be ended.
async fn answer(worker: &Worker, flow: &Flow) -> io::Result<()> {
    let load = &flow.lease.backend().load;
    let cancelled = pin!(load.gone.cancelled());
    let mut gone = Gone::new(&worker.shared, load, cancelled);
    loop {
        tokio::select! {
            biased;
            () = poll_fn(|cx| gone.poll(cx)) => {
                worker.shared.counters.killed.inc();
                end(worker, flow);
                return Ok(());
            }
            ready = flow.backend.ready(INTEREST) => {
                let mut ready = ready?;
                if read_answers(worker, flow) {
                    ready.clear_ready();
                } else {
                    drop(ready);
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// Says whether nothing is left to read.
fn read_answers(worker: &Worker, flow: &Flow) -> bool {
    let mut buffer = worker.udp.buffer.borrow_mut();
    for _ in 0..TURN {
        match io::Read::read(&mut flow.backend.get_ref(), &mut buffer) {
            Ok(length) => answered(worker, flow, buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if is_nobody_there(&error) => flow.broke(worker),
            // An interruption, or something else that was said of a datagram that was sent.
            Err(_) => {}
        }
    }
    false
}

fn answered(worker: &Worker, flow: &Flow, bytes: &[u8]) {
    let (now, shared) = (Instant::now(), &worker.shared);
    flow.asked.set(None);
    flow.is_answered.set(true);
    flow.lease.backend().load.succeeded(now.into());
    let front = &flow.front;
    match socket::reply(front.socket.get_ref(), front.bound.ip(), bytes, flow.client, flow.local) {
        Ok(()) => shared.counters.udp_out.inc(),
        Err(_) => shared.counters.udp_unsent.inc(),
    }
    let Some(place) = flow.place.get() else {
        return;
    };
    if shared.draining.is_cancelled() {
        return end(worker, flow);
    }
    let mut flows = worker.udp.flows.borrow_mut();
    flows.touch(place, now.into());
    if let Some(entry) = flows.get_mut(place) {
        entry.tried.clear();
    }
}

fn end(worker: &Worker, flow: &Flow) {
    if let Some(place) = flow.place.take() {
        worker.udp.flows.borrow_mut().remove(place);
    }
}

/// Whether an answer may be sent to who claims to be `client`. One that gives our own address for its own would have us
/// talk to ourselves for ever.
fn is_answerable(client: SocketAddr, local: SocketAddr) -> bool {
    client.port() != 0 && (client.ip(), client.port()) != (local.ip(), local.port())
}

/// Nobody is at that address, says it, or a machine on the way.
fn is_nobody_there(error: &io::Error) -> bool {
    const NOBODY: [Errno; 5] =
        [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::HOSTDOWN, Errno::PERM];
    error.raw_os_error().is_some_and(|code| NOBODY.iter().any(|nobody| nobody.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_claims_to_be_us_is_not_answered() {
        let local: SocketAddr = "192.0.2.1:53".parse().unwrap();
        for (client, expected) in
            [("192.0.2.1:53", false), ("192.0.2.2:0", false), ("192.0.2.1:54", true), ("192.0.2.2:53", true)]
        {
            assert_eq!(is_answerable(client.parse().unwrap(), local), expected, "{client}");
        }
    }

    #[test]
    fn a_port_is_opened_once_for_each_worker_and_for_nobody_else() {
        let sockets = open("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let address = sockets[0].local_addr().unwrap();
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
        assert_eq!(open(address, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
