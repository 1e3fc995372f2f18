//! Many cores on one virtual clock, and a network that loses, delays, doubles and cuts. Nothing here waits: a virtual
//! hour of fifty nodes takes seconds. Every run is decided by its seed, which a failing test prints.
//!
//! - `queue`: what will happen, in order of time
//! - `network`: the links between hosts; `store`: where seeds are kept
//! - `node`: a host with its node, which is ours or (`baseline`) plain foca with its preset for local networks
//! - [`scenario`]: the cases of the benchmark `gossip`

mod baseline;
mod network;
mod node;
mod queue;
pub mod scenario;
mod store;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use self::baseline::Plain;
use self::network::Network;
use self::node::{Action, Counters, Envelope, Host, Inbox, Kind, ONE_KEY_BYTES, Pace, Seen, Work, is_echo};
use self::queue::{Event, Own, Queue};
use self::store::{Health, Store};
use super::core::{Addition, Core, Effect, Input, Settings};
use super::identity::Identity;
use super::record::decode_apps;
use super::seal::{self, ClusterKey, Keyring};
use crate::app::Offer;
use crate::member::{MemberState, NodeId, Role};
use crate::pool::Pools;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// As the driver: datagrams read before timers get their turn.
const DATAGRAMS_A_TURN: usize = 64;

/// As the stream's: how long a connection that nobody answers is waited for, and an answer.
const CONNECT_TIMEOUT: Duration = SECOND;
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// As the seeker's pace: reads while alone, reads of the others, writes.
const READ_FIRST: Duration = Duration::from_millis(250);
const READ_ALONE_MAX: Duration = Duration::from_secs(15);
const READ_BALANCER: Duration = Duration::from_secs(15);
const READ_BACKEND: Duration = Duration::from_secs(600);
const WRITE_AGAIN: Duration = Duration::from_secs(60);

/// Who runs in a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The core of this project.
    Ours,
    /// foca alone, with its preset for local networks.
    Plain,
}

/// A node to be started.
struct Start {
    host: u32,
    role: Role,
    seeds: Seeds,
    offer: Offer,
    /// By how much this host's clock went back.
    clock_back: Duration,
    /// Another host whose address it has too.
    twin_of: Option<u32>,
}

enum Seeds {
    /// These hosts.
    Fixed(Vec<u32>),
    /// What the store says.
    Store,
}

/// A change in how one host sees the one that is watched.
#[derive(Debug, Clone, Copy)]
struct Noted {
    at: Instant,
    observer: u32,
    seen: Seen,
}

struct Simulation {
    mode: Mode,
    /// What our core is to do without.
    without: Option<Addition>,
    seed: u64,
    /// For what a plain foca's preset is made.
    cluster_size: u32,
    start: Instant,
    now: Instant,
    wall: SystemTime,
    rng: StdRng,
    queue: Queue,
    network: Network,
    store: Store,
    hosts: Vec<Option<Box<Host>>>,
    /// Hosts that share the address of another: from the address's host to the other.
    twins: HashMap<u32, u32>,
    runs: u32,
    /// The last run of each host, which may have ended.
    latest_runs: Vec<u32>,
    /// Grows whenever some host sees something else.
    views_changed: u64,
    watched: Option<u32>,
    noted: Vec<Noted>,
    false_downs: u64,
    false_removals: u64,
    /// Those of them that one host made, for cases with one that is ill,
    convicted_by: HashMap<u32, u64>,
    /// and those of them that others made of one host.
    convicted: HashMap<u32, u64>,
    largest_datagram: usize,
    events: u64,
    seals: bool,
    measures_work: bool,
    keeps_pools: bool,
    actions: Vec<Action>,
    scratch: Vec<Seen>,
}

/// The gossip address of a host.
fn at(host: u32) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + host)), 7377)
}

/// The host at a gossip address.
fn host_at(addr: SocketAddr) -> u32 {
    match addr.ip() {
        IpAddr::V4(ip) => u32::from(ip) & 0x00ff_ffff,
        IpAddr::V6(_) => 0,
    }
}

/// Node ids look random, as real ones are, and still tell the host and the run: a multiplication by an odd number can
/// be undone.
const SCRAMBLE: u64 = 0x9e37_79b9_7f4a_7c15;
const UNSCRAMBLE: u64 = inverse(SCRAMBLE);

const fn inverse(odd: u64) -> u64 {
    // Newton's method doubles the right bits each time, from the three of an odd number by itself.
    let (mut found, mut step) = (odd, 0);
    while step < 5 {
        found = found.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(found)));
        step += 1;
    }
    found
}

fn node_id(host: u32, run: u32) -> NodeId {
    // The upper half of the product depends on both; datagrams are addressed by the lower half of the id.
    NodeId((u64::from(run) << 32 | u64::from(host)).wrapping_mul(SCRAMBLE).rotate_left(32))
}

fn host_and_run(node: NodeId) -> (u32, u32) {
    let number = node.0.rotate_right(32).wrapping_mul(UNSCRAMBLE);
    (number as u32, (number >> 32) as u32)
}

impl Simulation {
    fn new(seed: u64, mode: Mode, cluster_size: u32) -> Self {
        let now = Instant::now();
        Self {
            mode,
            without: None,
            seed,
            cluster_size,
            start: now,
            now,
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            rng: StdRng::seed_from_u64(seed),
            queue: Queue::default(),
            network: Network::default(),
            store: Store::default(),
            hosts: Vec::new(),
            twins: HashMap::new(),
            runs: 0,
            latest_runs: Vec::new(),
            views_changed: 0,
            watched: None,
            noted: Vec::new(),
            false_downs: 0,
            false_removals: 0,
            convicted_by: HashMap::new(),
            convicted: HashMap::new(),
            largest_datagram: 0,
            events: 0,
            seals: false,
            measures_work: false,
            keeps_pools: false,
            actions: Vec::new(),
            scratch: Vec::new(),
        }
    }

    // === hosts ===

    fn start(&mut self, start: Start) {
        self.runs += 1;
        let (host, run) = (start.host, self.runs);
        let wall = self.wall + (self.now - self.start) - start.clock_back;
        let epoch = wall.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let addr = at(start.twin_of.unwrap_or(host));
        let identity = Identity::new(addr, epoch, node_id(host, run));
        let random_seed = self.rng.random();
        let settings = Settings {
            cluster: "test".parse().expect("a name"),
            identity,
            name: format!("n{host}").parse().expect("a name"),
            role: start.role,
        };
        let node = match self.mode {
            Mode::Ours => {
                let core = Core::new(settings, self.now, wall, random_seed);
                Kind::Ours(Box::new(core.without(self.without)))
            }
            Mode::Plain => Kind::Plain(Box::new(Plain::new(identity, self.cluster_size, random_seed))),
        };
        let place = host as usize;
        if self.hosts.len() <= place {
            self.hosts.resize_with(place + 1, || None);
            self.latest_runs.resize(place + 1, 0);
        }
        self.latest_runs[place] = run;
        let is_balancer = start.role == Role::Balancer;
        self.hosts[place] = Some(Box::new(Host {
            run,
            node,
            role: start.role,
            addr,
            pace: Pace::Runs,
            inbox: Inbox::default(),
            held_up: Vec::new(),
            wake_at: None,
            has_turn_planned: false,
            envelope: self.seals.then(|| Envelope::new(keyring(&[1]))),
            identity,
            counters: Counters::default(),
            view: Vec::new(),
            active: 0,
            ghosts: 0,
            is_ill: false,
            is_leaving: false,
            has_left: false,
            roster: None,
            join: None,
            served: None,
            times_heard: 0,
            store_reads: matches!(start.seeds, Seeds::Store).then_some(0),
            pools: (is_balancer && self.keeps_pools).then(Pools::default),
            pools_emptied: 0,
        }));
        if let Some(other) = start.twin_of {
            self.twins.insert(other, host);
        }
        // A new run is a new node: nobody has seen it yet.
        for other in self.hosts.iter_mut().flatten() {
            if let Some(seen) = other.view.get_mut(place) {
                other.active -= usize::from(seen.is_active());
                *seen = Seen::default();
            }
        }
        self.views_changed += 1;
        match start.seeds {
            Seeds::Fixed(hosts) => {
                let seeds = hosts.iter().map(|host| at(*host)).collect();
                self.input(host, Input::Seeds(seeds));
            }
            Seeds::Store => {
                // A balancer writes first: of two that start together, at least one then sees the other.
                let event = if is_balancer { Event::Write { host, run } } else { Event::Read { host, run } };
                self.queue.push(self.now, event);
            }
        }
        if !is_balancer {
            self.input(host, Input::Offer(start.offer));
        }
        self.act(host);
    }

    /// Ends a node at once, as a power failure does.
    fn crash(&mut self, host: u32) {
        self.hosts[host as usize] = None;
        self.views_changed += 1;
    }

    /// Says goodbye; the node ends when that is done.
    fn leave(&mut self, host: u32) {
        if let Some(node) = self.host_mut(host) {
            node.is_leaving = true;
        }
        self.input(host, Input::Leave);
    }

    fn pause(&mut self, host: u32) {
        if let Some(node) = self.host_mut(host) {
            node.pace = Pace::Paused;
            node.is_ill = true;
        }
    }

    /// Lets a paused host run again: what waits in its socket comes first, then its timers.
    fn resume(&mut self, host: u32) {
        if let Some(node) = self.host_mut(host) {
            node.pace = Pace::Runs;
            node.is_ill = false;
        }
        self.take_turn(host);
    }

    fn throttle(&mut self, host: u32) {
        let phase = MS * self.rng.random_range(0..200);
        if let Some(node) = self.host_mut(host) {
            node.pace = Pace::Throttled(phase);
            node.is_ill = true;
        }
    }

    /// Tells every plain foca of every other, as if they had long found each other: in large clusters that takes
    /// them minutes.
    fn introduce_all(&mut self) {
        let all: Vec<Identity> = self.alive().map(|(_, node)| node.identity).collect();
        for host in 0..self.hosts.len() as u32 {
            let now = self.now;
            if let Some(Kind::Plain(plain)) = self.host_mut(host).map(|node| &mut node.node) {
                plain.know(now, &all);
                self.act(host);
            }
        }
    }

    /// Gives a host that seals other keys.
    fn change_keys(&mut self, host: u32, keys: &[u8]) {
        if let Some(envelope) = self.host_mut(host).and_then(|node| node.envelope.as_mut()) {
            envelope.change(&cluster_keys(keys));
            self.input(host, Input::Rekeyed);
        }
    }

    fn host(&self, host: u32) -> Option<&Host> {
        self.hosts.get(host as usize)?.as_deref()
    }

    fn host_mut(&mut self, host: u32) -> Option<&mut Host> {
        self.hosts.get_mut(host as usize)?.as_deref_mut()
    }

    /// The hosts that run, or would if they were let.
    fn alive(&self) -> impl Iterator<Item = (u32, &Host)> {
        (0..).zip(&self.hosts).filter_map(|(place, host)| Some((place, host.as_deref()?)))
    }

    fn forget_counters(&mut self) {
        self.hosts.iter_mut().flatten().for_each(|host| host.counters = Counters::default());
        (self.false_downs, self.false_removals) = (0, 0);
        self.convicted_by.clear();
        self.convicted.clear();
    }

    // === time ===

    /// Moves the clock on to the next thing that happens; false if nothing will before `until`.
    fn step(&mut self, until: Instant) -> bool {
        let Some((due, event)) = self.queue.pop(until) else {
            self.now = until;
            return false;
        };
        self.now = due;
        self.events += 1;
        match event {
            Event::Datagram { to, bytes } => self.deliver(to, bytes),
            Event::Wake { host } => self.wake(host, due),
            Event::Turn { host, run } => {
                if let Some(node) = self.host_mut(host).filter(|node| node.run == run) {
                    node.has_turn_planned = false;
                    self.take_turn(host);
                }
            }
            Event::Own { host, run, what } => self.deliver_own(host, run, what),
            Event::Read { host, run } => self.read_store(host, run),
            Event::Write { host, run } => self.write_store(host, run),
        }
        true
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    /// Runs until the condition, which looks at what hosts see, holds, and says how long that took; none if it does
    /// not hold within `limit`.
    fn wait(&mut self, limit: Duration, condition: impl Fn(&Self) -> bool) -> Option<Duration> {
        let (began, until) = (self.now, self.now + limit);
        let mut looked_at = None;
        loop {
            if looked_at != Some(self.views_changed) {
                looked_at = Some(self.views_changed);
                if condition(self) {
                    return Some(self.now - began);
                }
            }
            if !self.step(until) {
                return None;
            }
        }
    }

    // === what reaches a host ===

    fn input(&mut self, host: u32, input: Input<'_>) {
        let now = self.now;
        if let Some(node) = self.host_mut(host) {
            let outcome = node.node.handle(now, input);
            node.counters.take(outcome);
            self.act(host);
        }
    }

    /// Whether a host may run now; one that may not is given its turn later.
    fn may_run(&mut self, host: u32) -> bool {
        let (start, now) = (self.start, self.now);
        let Some(node) = self.host_mut(host) else { return false };
        let turn = node.pace.next_turn(start, now);
        if turn == Some(now) {
            return true;
        }
        if let (Some(turn), false) = (turn, node.has_turn_planned) {
            node.has_turn_planned = true;
            let run = node.run;
            self.queue.push(turn, Event::Turn { host, run });
        }
        false
    }

    fn deliver(&mut self, to: u32, bytes: Vec<u8>) {
        let to = match self.twins.get(&to) {
            Some(twin) if self.rng.random_bool(0.5) => *twin,
            _ => to,
        };
        if self.may_run(to) {
            self.open(to, bytes);
        } else if let Some(node) = self.host_mut(to) {
            node.inbox.push(bytes);
        }
    }

    fn open(&mut self, host: u32, mut bytes: Vec<u8>) {
        let (now, measures_work) = (self.now, self.measures_work);
        let Some(node) = self.host_mut(host) else { return };
        let work = Work::begin(measures_work);
        node.counters.datagrams_in += 1;
        let outcome = match &mut node.envelope {
            None => Some(node.node.handle(now, Input::Message(&bytes))),
            Some(envelope) => envelope.open(&mut bytes).map(|opened| {
                let outcome = node.node.handle(now, Input::Message(opened.message));
                outcome.inspect(|()| {
                    envelope.peers.note(&opened);
                })
            }),
        };
        match outcome {
            Some(outcome) => node.counters.take(outcome),
            None => node.counters.refused += 1,
        }
        node.counters.work += work.took();
        self.act(host);
        if let Some(envelope) = self.host_mut(host).and_then(|node| node.envelope.as_mut()) {
            envelope.peers.forget_guest();
        }
    }

    fn wake(&mut self, host: u32, due: Instant) {
        let Some(node) = self.host_mut(host).filter(|node| node.wake_at == Some(due)) else { return };
        node.wake_at = None;
        if self.may_run(host) {
            self.fire(host);
        }
    }

    /// Tells a node that its deadline has come, if it has.
    fn fire(&mut self, host: u32) {
        let (now, measures_work) = (self.now, self.measures_work);
        let Some(node) = self.host_mut(host) else { return };
        if node.node.next_deadline().is_some_and(|deadline| deadline <= now) {
            node.counters.unread = node.counters.unread.max(node.inbox.len());
            let work = Work::begin(measures_work);
            // Waking makes no sense wrong.
            let _ = node.node.handle(now, Input::Wake);
            node.counters.work += work.took();
        }
        self.act(host);
    }

    /// A host that was held up does what a driver does: it reads some datagrams, then lets timers fire, in turn.
    fn take_turn(&mut self, host: u32) {
        let held_up = self.host_mut(host).map(|node| std::mem::take(&mut node.held_up)).unwrap_or_default();
        let run = self.host(host).map_or(0, |node| node.run);
        held_up.into_iter().for_each(|what| self.deliver_own(host, run, what));
        loop {
            let mut read = 0;
            while read < DATAGRAMS_A_TURN
                && let Some(bytes) = self.host_mut(host).and_then(|node| node.inbox.pop())
            {
                self.open(host, bytes);
                read += 1;
            }
            self.fire(host);
            if read < DATAGRAMS_A_TURN {
                return;
            }
        }
    }

    fn deliver_own(&mut self, host: u32, run: u32, what: Own) {
        if self.host(host).is_none_or(|node| node.run != run) {
            return;
        }
        if !self.may_run(host) {
            if let Some(node) = self.host_mut(host) {
                node.held_up.push(what);
            }
            return;
        }
        match what {
            Own::PullEnds { owner, node, digest } => {
                let served = self.host(owner).filter(|owner| owner.pace != Pace::Paused);
                let result = match served.and_then(|owner| owner.served.as_ref()) {
                    Some((has, apps)) if *has == digest => decode_apps(apps, &digest),
                    _ => Err("not there".to_owned()),
                };
                self.input(host, Input::Pulled { node, digest, result });
            }
            Own::PullFails { node, digest } => {
                self.input(host, Input::Pulled { node, digest, result: Err("no answer".to_owned()) });
            }
            Own::Contacted { addr, outcome } => self.input(host, Input::Contacted { addr, outcome }),
            Own::Found(found) => self.input(host, Input::Seeds(found)),
        }
    }

    // === what a host does ===

    fn act(&mut self, host: u32) {
        let mut actions = std::mem::take(&mut self.actions);
        let measures_work = self.measures_work;
        let Some(node) = self.host_mut(host) else {
            self.actions = actions;
            return;
        };
        let run = node.run;
        let work = Work::begin(measures_work);
        while let Some(action) = node.node.next_action() {
            actions.push(action);
        }
        node.counters.work += work.took();
        let identity = node.node.identity();
        if identity != node.identity {
            // Moving to another address is the owner's wish.
            node.counters.identity_changes += u64::from(identity.addr == node.identity.addr);
            node.identity = identity;
        }
        for action in actions.drain(..) {
            self.perform(host, run, action);
        }
        self.actions = actions;
        self.plan_wake(host);
    }

    fn perform(&mut self, host: u32, run: u32, action: Action) {
        let Some(node) = self.hosts[host as usize].as_deref_mut() else { return };
        match action {
            Action::Core(Effect::Send { to, message }) => self.send(host, to, message),
            Action::Core(Effect::Pull { from, node, digest }) => self.pull(host, run, from, node, digest),
            Action::Core(Effect::Contact(addr)) => {
                let what = Own::Contacted { addr, outcome: "asked".to_owned() };
                self.queue.push(self.now + CONNECT_TIMEOUT, Event::Own { host, run, what });
            }
            Action::Core(Effect::Serve { digest, apps }) => node.served = Some((digest, apps)),
            Action::Core(Effect::Roster(roster)) => {
                node.take_pools(self.now, &roster);
                node.envelope.iter_mut().for_each(|envelope| envelope.keep_members(&roster));
                node.roster = Some(roster);
                self.take_roster(host);
            }
            Action::Core(Effect::Join(join)) => {
                let has_become_alone = join.alone && node.join.as_ref().is_some_and(|last| !last.alone);
                node.join = Some(join);
                if let (Some(reads), true) = (node.store_reads.as_mut(), has_become_alone) {
                    *reads = 0;
                    self.queue.push(self.now, Event::Read { host, run });
                }
            }
            Action::Core(Effect::Heard) => node.times_heard += 1,
            // Counted where identities are compared: of plain foca too.
            Action::Core(Effect::Renewed) => {}
            Action::Core(Effect::Contested(_)) => node.counters.times_contested += 1,
            Action::Core(Effect::Left) => {
                node.has_left = true;
                if node.store_reads.is_some() {
                    self.store.remove(host);
                }
                self.views_changed += 1;
            }
            Action::Seen(node, state) => self.take_news(host, node, state),
        }
    }

    fn send(&mut self, from: u32, to: SocketAddr, message: Vec<u8>) {
        self.largest_datagram = self.largest_datagram.max(message.len() + seal::OVERHEAD_BYTES);
        let measures_work = self.measures_work;
        let Some(node) = self.host_mut(from) else { return };
        let is_echo = is_echo(&message) && matches!(node.node, Kind::Ours(_));
        let work = Work::begin(measures_work);
        let (added, sealed) = match &node.envelope {
            Some(envelope) => (0, envelope.seal(to, &message)),
            None => (ONE_KEY_BYTES, vec![message]),
        };
        node.counters.work += work.took();
        for bytes in sealed {
            let length = (bytes.len() + added) as u64;
            if let Some(node) = self.host_mut(from) {
                node.counters.count_out(length, is_echo);
            }
            self.carry(from, host_at(to), bytes);
        }
    }

    fn carry(&mut self, from: u32, to: u32, bytes: Vec<u8>) {
        let [first, again] = self.network.carry(&mut self.rng, self.now, from, to);
        if let Some(delay) = again {
            self.queue.push(self.now + delay, Event::Datagram { to, bytes: bytes.clone() });
        }
        if let Some(delay) = first {
            self.queue.push(self.now + delay, Event::Datagram { to, bytes });
        }
    }

    fn pull(&mut self, host: u32, run: u32, from: SocketAddr, node: NodeId, digest: [u8; 16]) {
        let owner = host_at(from);
        let is_open = self.network.is_open(host, owner) && self.network.is_open(owner, host);
        let there = self.host(owner).filter(|_| is_open);
        let (after, what) = match there {
            None => (CONNECT_TIMEOUT, Own::PullFails { node, digest }),
            Some(there) if there.pace == Pace::Paused => (EXCHANGE_TIMEOUT, Own::PullFails { node, digest }),
            Some(there) => {
                let bytes = there.served.as_ref().map_or(0, |(_, apps)| apps.len());
                (self.network.stream(&mut self.rng, bytes), Own::PullEnds { owner, node, digest })
            }
        };
        self.queue.push(self.now + after, Event::Own { host, run, what });
    }

    /// Puts the node's next deadline into the queue, unless something there is due before it.
    fn plan_wake(&mut self, host: u32) {
        let now = self.now;
        let Some(node) = self.hosts[host as usize].as_deref_mut() else { return };
        let Some(deadline) = node.node.next_deadline() else { return };
        let due = deadline.max(now);
        if node.wake_at.is_none_or(|planned| due < planned) {
            node.wake_at = Some(due);
            self.queue.push(due, Event::Wake { host });
        }
    }

    // === the store of seeds ===

    fn read_store(&mut self, host: u32, run: u32) {
        let Some(node) = self.host(host).filter(|node| node.run == run && !node.has_left) else { return };
        let (addr, role, is_alone) = (node.addr, node.role, node.is_alone());
        let (latency, found) = match self.store.health {
            Health::Works => (MS * self.rng.random_range(30..100), Some(self.store.read(addr))),
            Health::Slow(latency) => (latency, Some(self.store.read(addr))),
            Health::Fails => (MS * self.rng.random_range(30..100), None),
        };
        if let Some(found) = found.filter(|found| !found.is_empty()) {
            self.queue.push(self.now + latency, Event::Own { host, run, what: Own::Found(found) });
        }
        let pause = match (is_alone, role) {
            (true, _) => {
                let node = self.host_mut(host);
                let reads = node.and_then(|node| node.store_reads.as_mut());
                let tries = reads.map_or(0, |reads| std::mem::replace(reads, *reads + 1));
                let longest = READ_FIRST.saturating_mul(1 << tries.min(16)).min(READ_ALONE_MAX);
                longest.mul_f64(self.rng.random_range(0.0..1.0))
            }
            (false, Role::Balancer) => READ_BALANCER.mul_f64(self.rng.random_range(0.8..1.2)),
            (false, Role::Backend) => READ_BACKEND.mul_f64(self.rng.random_range(0.8..1.2)),
        };
        self.queue.push(self.now + latency + pause, Event::Read { host, run });
    }

    fn write_store(&mut self, host: u32, run: u32) {
        let Some(node) = self.host(host).filter(|node| node.run == run && !node.has_left) else { return };
        let (addr, is_first) = (node.addr, node.store_reads == Some(0));
        let latency = match self.store.health {
            Health::Slow(latency) => latency,
            Health::Works | Health::Fails => MS * self.rng.random_range(30..100),
        };
        if self.store.health != Health::Fails {
            self.store.write(host, addr, self.now);
        }
        let pause = match self.store.health {
            Health::Fails => WRITE_AGAIN.mul_f64(self.rng.random_range(0.1..0.5)),
            _ => WRITE_AGAIN.mul_f64(self.rng.random_range(0.8..1.2)),
        };
        self.queue.push(self.now + latency + pause, Event::Write { host, run });
        if is_first {
            self.queue.push(self.now + latency, Event::Read { host, run });
        }
    }

    // === what hosts see ===

    fn take_roster(&mut self, observer: u32) {
        let Some(roster) = self.host(observer).and_then(|node| node.roster.clone()) else { return };
        let mut next = std::mem::take(&mut self.scratch);
        next.clear();
        next.resize(self.hosts.len(), Seen::default());
        let mut ghosts = 0;
        for member in &roster.members {
            let (host, run) = host_and_run(member.id);
            let Some(seen) = next.get_mut(host as usize).filter(|_| host != observer) else { continue };
            let is_latest = self.latest_runs.get(host as usize) == Some(&run);
            if is_latest {
                *seen = Seen::of(member);
            }
            let is_there = is_latest && self.host(host).is_some();
            ghosts += usize::from(member.state.is_active() && !is_there);
        }
        if let Some(node) = self.host_mut(observer) {
            node.ghosts = ghosts;
            node.active = next.iter().filter(|seen| seen.is_active()).count();
            std::mem::swap(&mut node.view, &mut next);
            // `next` holds how it was before.
            for place in 0..self.hosts.len() {
                let before = next.get(place).copied().unwrap_or_default();
                self.judge(observer, place as u32, before);
            }
        }
        self.scratch = next;
    }

    /// What a plain foca says of one member.
    fn take_news(&mut self, observer: u32, node: NodeId, state: MemberState) {
        let (host, run) = host_and_run(node);
        if host == observer || self.latest_runs.get(host as usize) != Some(&run) {
            return;
        }
        let places = self.hosts.len();
        let Some(node) = self.host_mut(observer) else { return };
        node.view.resize(places, Seen::default());
        let before = node.view[host as usize];
        let now = Seen::by_plain_foca(state);
        node.view[host as usize] = now;
        node.active = node.active + usize::from(now.is_active()) - usize::from(before.is_active());
        self.judge(observer, host, before);
    }

    /// Counts what is false in how one host has come to see another.
    fn judge(&mut self, observer: u32, subject: u32, before: Seen) {
        let seen = self.seen(observer, subject);
        if seen == before {
            return;
        }
        self.views_changed += 1;
        if self.watched == Some(subject) {
            self.noted.push(Noted { at: self.now, observer, seen });
        }
        let is_down = |seen: Seen| seen.state == Some(MemberState::Down);
        let is_gone = |seen: Seen| seen.is_removed || seen.state.is_none();
        let falls = is_down(seen) && !is_down(before);
        let goes = is_gone(seen) && !is_gone(before);
        if !falls && !goes {
            return;
        }
        if !self.is_well(subject) || !self.is_connected(observer, subject) {
            return;
        }
        *self.convicted_by.entry(observer).or_default() += 1;
        if self.is_well(observer) {
            self.false_downs += u64::from(falls);
            *self.convicted.entry(subject).or_default() += u64::from(falls);
            self.false_removals += u64::from(goes && self.is_routed(observer, subject));
        }
    }

    /// How one host sees another.
    fn seen(&self, observer: u32, subject: u32) -> Seen {
        let view = self.host(observer).map(|node| node.view.as_slice()).unwrap_or_default();
        view.get(subject as usize).copied().unwrap_or_default()
    }

    /// Whether a host is there, runs freely and means to stay.
    fn is_well(&self, host: u32) -> bool {
        self.host(host).is_some_and(|node| !node.is_ill && !node.is_leaving)
    }

    fn is_connected(&self, one: u32, other: u32) -> bool {
        self.network.is_open(one, other) && self.network.is_open(other, one)
    }

    /// Whether the one sends work to the other.
    fn is_routed(&self, one: u32, other: u32) -> bool {
        let role = |host: u32| self.host(host).map(|node| node.role);
        (role(one), role(other)) == (Some(Role::Balancer), Some(Role::Backend))
    }

    /// Whether every host that is well sees every such host as active, and nobody else.
    fn is_one_view(&self) -> bool {
        let well: Vec<u32> = (0..self.hosts.len() as u32).filter(|host| self.is_well(*host)).collect();
        let is_whole = |node: &Host| node.ghosts == 0 && node.active + 1 == well.len();
        // The counts are cheap, and mostly enough to see that it is not.
        well.iter().filter_map(|host| self.host(*host)).all(is_whole)
            && well.iter().all(|host| {
                well.iter().filter(|other| *other != host).all(|other| self.seen(*host, *other).is_active())
            })
    }

    /// Whether every balancer has the offer of every backend too. A plain foca carries none.
    fn has_all_offers(&self) -> bool {
        let is_backend = |host: u32| self.host(host).is_some_and(|node| node.role == Role::Backend);
        let backends: Vec<u32> = (0..self.hosts.len() as u32).filter(|host| is_backend(*host)).collect();
        self.mode == Mode::Plain
            || self
                .alive()
                .filter(|(_, node)| node.role == Role::Balancer)
                .all(|(balancer, _)| backends.iter().all(|backend| self.seen(balancer, *backend).offer > 0))
    }
}

fn keyring(keys: &[u8]) -> Keyring {
    Keyring::new("test".parse().expect("a name"), &cluster_keys(keys))
}

fn cluster_keys(keys: &[u8]) -> Vec<ClusterKey> {
    keys.iter().map(|byte| ClusterKey([*byte; 32])).collect()
}
