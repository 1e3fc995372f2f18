//! One host: a node of either kind, how it runs, and how it sees the others.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::baseline::Plain;
use crate::app::AppState;
use crate::gossip::core::{Core, Dropped, Effect, Input};
use crate::gossip::identity::Identity;
use crate::gossip::peers::Peers;
use crate::gossip::record::AppsDigest;
use crate::gossip::seal::{self, Channel, ClusterKey, Keyring, Opened, Opener, Sealer};
use crate::member::{Member, MemberState, NodeId, Role, Roster};
use crate::pool::{Pools, Rules, Why};
use crate::report::{JoinReport, KeyId};

/// What a socket holds while nobody reads it: twice what Linux grants unless told otherwise (`rmem_max`), though the
/// gossip asks for more.
const INBOX_BYTES_MAX: usize = 2 * 212_992;
/// What the kernel counts for a small datagram beside its bytes (Linux's `SKB_TRUESIZE`).
const INBOX_OVERHEAD_BYTES: usize = 768;

/// A throttled host runs for so long, in each of these times.
const THROTTLED_RUN: Duration = Duration::from_millis(10);
const THROTTLED_PERIOD: Duration = Duration::from_millis(200);

/// A node: what is under test, or what it is compared with.
pub(super) enum Kind {
    Ours(Box<Core>),
    Plain(Box<Plain>),
}

/// What a node wants done.
#[derive(Debug)]
pub(super) enum Action {
    Core(Effect),
    /// It sees a member otherwise than before.
    Seen(NodeId, MemberState),
}

impl Kind {
    pub(super) fn handle(&mut self, now: Instant, input: Input<'_>) -> Result<(), Dropped> {
        match self {
            Self::Ours(core) => core.handle(now, input),
            Self::Plain(plain) => {
                plain.handle(now, input);
                Ok(())
            }
        }
    }

    pub(super) fn next_action(&mut self) -> Option<Action> {
        match self {
            Self::Ours(core) => core.next_effect().map(Action::Core),
            Self::Plain(plain) => plain.next_action(),
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::Ours(core) => core.next_deadline(),
            Self::Plain(plain) => plain.next_deadline(),
        }
    }

    pub(super) fn identity(&self) -> Identity {
        match self {
            Self::Ours(core) => core.identity(),
            Self::Plain(plain) => plain.identity(),
        }
    }
}

/// How long this thread has worked since then, if that is to be measured: what others take of the core does not count.
pub(super) struct Work(Option<Duration>);

impl Work {
    pub(super) fn begin(is_measured: bool) -> Self {
        Self(is_measured.then(thread_time))
    }

    pub(super) fn took(self) -> Duration {
        self.0.map_or(Duration::ZERO, |began| thread_time().saturating_sub(began))
    }
}

/// Processor time of this thread. The call itself costs 0.2 to 0.3 µs, of which about half counts.
fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Whether a host gets to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    Runs,
    /// It is stopped; its socket fills.
    Paused,
    /// It runs 10 ms in every 200; its turns begin so long after everybody's second.
    Throttled(Duration),
}

impl Pace {
    /// When a host that has something to do may do it: none if not before it is resumed.
    pub(super) fn next_turn(self, start: Instant, now: Instant) -> Option<Instant> {
        match self {
            Self::Runs => Some(now),
            Self::Paused => None,
            Self::Throttled(phase) => {
                let period = THROTTLED_PERIOD.as_nanos();
                let into = ((now - start + phase).as_nanos() % period) as u64;
                let into = Duration::from_nanos(into);
                Some(if into < THROTTLED_RUN { now } else { now + (THROTTLED_PERIOD - into) })
            }
        }
    }
}

/// What a host holds while it may not run.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    datagrams: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Inbox {
    /// Takes a datagram, or drops it for want of room, as a socket does.
    pub(super) fn push(&mut self, datagram: Vec<u8>) {
        let bytes = datagram.len() + INBOX_OVERHEAD_BYTES;
        if self.bytes + bytes <= INBOX_BYTES_MAX {
            self.bytes += bytes;
            self.datagrams.push_back(datagram);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.datagrams.len()
    }

    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let datagram = self.datagrams.pop_front()?;
        self.bytes -= datagram.len() + INBOX_OVERHEAD_BYTES;
        Some(datagram)
    }
}

/// What the driver adds to a message of a node with one key: its envelope without the ids of further keys.
pub(super) const ONE_KEY_BYTES: usize = seal::OVERHEAD_BYTES - size_of::<KeyId>() * seal::KEYS_MAX;

/// Seals and opens as a driver does, for runs that want it.
pub(super) struct Envelope {
    keyring: Keyring,
    sealer: Sealer,
    opener: Opener,
    pub(super) peers: Peers,
}

impl Envelope {
    pub(super) fn new(keyring: Keyring) -> Self {
        let (sealer, opener) = (Sealer::new(&keyring), Opener::new(Channel::Datagram, &keyring));
        Self { keyring, sealer, opener, peers: Peers::default() }
    }

    /// Other keys, while it runs.
    pub(super) fn change(&mut self, keys: &[ClusterKey]) {
        self.keyring = self.keyring.with(keys);
        self.sealer = self.sealer.rekeyed(&self.keyring);
        self.opener.rekey(&self.keyring);
    }

    /// The envelopes of a message: one, or for somebody of whom nothing is known one for each key.
    pub(super) fn seal(&self, to: SocketAddr, message: &[u8]) -> Vec<Vec<u8>> {
        let keys = self.sealer.keys_for(self.peers.opens(to));
        keys.as_slice().iter().map(|key| self.sealer.seal(Channel::Datagram, *key, message)).collect()
    }

    /// What is inside; none if it does not open.
    pub(super) fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Option<Opened<'a>> {
        self.opener.open(datagram).ok()
    }

    pub(super) fn keep_members(&mut self, roster: &Roster) {
        self.peers.keep_members(roster);
    }
}

/// What a host has sent and suffered since counting began.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counters {
    pub(super) datagrams_out: u64,
    pub(super) datagrams_in: u64,
    /// With what sealing adds, without UDP's and IP's own headers.
    pub(super) bytes_out: u64,
    pub(super) echoes_out: u64,
    pub(super) echo_bytes_out: u64,
    pub(super) identity_changes: u64,
    /// How often it was said that somebody else is at its address.
    pub(super) times_contested: u64,
    /// The most datagrams that waited in its socket while its timers fired.
    pub(super) unread: usize,
    /// Messages that made no sense to it, or claimed too much: never any from nodes of ours.
    pub(super) invalid: u64,
    /// Messages that were meant for another run.
    pub(super) misaddressed: u64,
    /// Datagrams that did not open.
    pub(super) refused: u64,
    /// What its core took of a processor, with sealing and opening; measured if the run asks for it.
    pub(super) work: Duration,
}

impl Counters {
    /// Counts a datagram that goes out.
    pub(super) fn count_out(&mut self, bytes: u64, is_echo: bool) {
        self.datagrams_out += 1;
        self.bytes_out += bytes;
        if is_echo {
            self.echoes_out += 1;
            self.echo_bytes_out += bytes;
        }
    }

    /// Counts what became of a message.
    pub(super) fn take(&mut self, outcome: Result<(), Dropped>) {
        match outcome {
            Ok(()) => {}
            Err(Dropped::Misaddressed) => self.misaddressed += 1,
            Err(Dropped::Invalid | Dropped::Excess) => self.invalid += 1,
        }
    }
}

/// How one host sees another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// None: it knows of no such member.
    pub(super) state: Option<MemberState>,
    /// Whether a balancer would take it out of rotation.
    pub(super) is_removed: bool,
    /// Which of its offers it has: the weight of its first application; 0: none.
    pub(super) offer: u16,
    pub(super) is_draining: bool,
}

impl Seen {
    pub(super) fn is_active(self) -> bool {
        self.state.is_some_and(MemberState::is_active)
    }

    pub(super) fn of(member: &Member) -> Self {
        let app = member.offer.as_ref().and_then(|offer| offer.apps.first());
        Self {
            state: Some(member.state),
            is_removed: is_out(member),
            offer: app.map_or(0, |(app, _)| app.weight.get()),
            is_draining: app.is_some_and(|(_, state)| *state == AppState::Draining),
        }
    }

    pub(super) fn by_plain_foca(state: MemberState) -> Self {
        Self { state: Some(state), is_removed: !state.is_active(), ..Self::default() }
    }
}

/// Whether the pools of a balancer that sends nothing there, so that there is no better evidence, do without it.
fn is_out(member: &Member) -> bool {
    member.state == MemberState::Left || Why::of(member).is_some()
}

/// Whether a message is an echo probe or the answer to one, by its kind.
pub(super) fn is_echo(message: &[u8]) -> bool {
    matches!(message, [4 | 5, ..])
}

/// One host that runs a node.
pub(super) struct Host {
    /// Which run this is, of all in the simulation.
    pub(super) run: u32,
    pub(super) node: Kind,
    pub(super) role: Role,
    pub(super) addr: SocketAddr,
    pub(super) pace: Pace,
    pub(super) inbox: Inbox,
    /// What else has arrived while it may not run.
    pub(super) held_up: Vec<super::queue::Own>,
    /// The instant for which its next wake is in the queue.
    pub(super) wake_at: Option<Instant>,
    pub(super) has_turn_planned: bool,
    pub(super) envelope: Option<Envelope>,
    pub(super) identity: Identity,
    pub(super) counters: Counters,
    /// How it sees each host; its own place stays empty.
    pub(super) view: Vec<Seen>,
    /// How many others it sees as active.
    pub(super) active: usize,
    /// How many nodes its roster calls active that run no more, at the last look.
    pub(super) ghosts: usize,
    /// The host is ill, paused or cut off as the case wants it: what it thinks, and what is thought of it, is not
    /// counted as false.
    pub(super) is_ill: bool,
    pub(super) is_leaving: bool,
    pub(super) has_left: bool,
    pub(super) roster: Option<Arc<Roster>>,
    pub(super) join: Option<Arc<JoinReport>>,
    pub(super) served: Option<(AppsDigest, Arc<[u8]>)>,
    pub(super) times_heard: u32,
    /// Whether it finds its seeds in the store, and reads so far while alone.
    pub(super) store_reads: Option<u32>,
    pub(super) pools: Option<Pools>,
    /// How often a pool that had somebody had nobody left, not even as a last resort, or was no more.
    pub(super) pools_emptied: u64,
}

impl Host {
    pub(super) fn is_alone(&self) -> bool {
        self.active == 0
    }

    /// Takes the roster into the pools, for a balancer that keeps them.
    pub(super) fn take_pools(&mut self, now: Instant, roster: &Roster) {
        let Some(pools) = &self.pools else { return };
        let next = pools.next(roster, &Rules::default(), now);
        let has_empty = |pools: &Pools| pools.routes.iter().any(|route| route.pool.backends.is_empty());
        let has_fewer_routes = next.routes.len() < pools.routes.len();
        self.pools_emptied += u64::from(has_fewer_routes || (has_empty(&next) && !has_empty(pools)));
        self.pools = Some(next);
    }
}
