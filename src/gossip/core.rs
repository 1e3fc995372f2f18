//! The cluster as one node decides it. No socket, no clock, no sleep: [`Core::handle`] takes what happened and
//! when, [`Core::next_effect`] says what to do about it, [`Core::next_deadline`] when to come back.
//!
//! foca keeps the membership (SWIM with suspicion). What it leaves to its user is here:
//!
//! - an idle foca stops altogether, so a node that is alone keeps announcing itself to its seeds;
//! - records (name, role, applications) go straight from their owner to everybody, acknowledged, and every
//!   datagram carries the version of its sender's record, so that nothing missed stays missed;
//! - a member whose suspicion was refuted in time is still told that it is dead, and would change its identity:
//!   such notices to members that are active are not sent;
//! - after leaving nothing more is taken in, or the node would join again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use foca::{AccumulatingRuntime, Codec as _, Foca, NoCustomBroadcast, OwnedNotification, PeriodicParams};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::codec::Codec;
use super::identity::{Identity, plain};
use super::message::{self, Message, STAMP_BYTES_MAX, Stamp};
use super::record::{Apps, AppsDigest, Record, digest_of, encode_apps, offer};
use super::seal;
use crate::app::{App, Offer};
use crate::member::{Member, MemberState, NodeId, Reach, Role, Roster};
use crate::name::{ClusterName, NodeName};
use crate::report::{ContactReport, JoinReport};

/// The longest UDP payload that is sent: IPv6's least MTU of 1,280, less 48 bytes of headers, less some for
/// tunnels on the way. QUIC settled on the same number.
pub(crate) const DATAGRAM_BYTES_MAX: usize = 1200;

/// Members beyond these are not taken in: a cluster is a handful of machines, and a member with the key but
/// gone mad must not fill the others' memory.
const MEMBERS_MAX: usize = 4096;

/// How long changes are gathered before a new roster is published.
const PUBLISH_DELAY: Duration = Duration::from_millis(20);

/// How long a record may be on its way before it is asked for.
const ASK_DELAY: Duration = Duration::from_millis(100);
/// How long at most between two askings.
const ASK_DELAY_MAX: Duration = Duration::from_secs(5);

/// The first wait for an acknowledgement; each further one is twice as long. Five tries in all: at 5 % loss
/// each way one in a hundred thousand is left to the version in every datagram.
const PUSH_DELAY: Duration = Duration::from_millis(100);
const PUSH_TRIES: u32 = 5;
/// A change goes to this many members at once, the next as many 10 ms later.
const PUSH_BURST: u32 = 64;

const PULL_DELAY: Duration = Duration::from_millis(200);
const PULL_DELAY_MAX: Duration = Duration::from_secs(5);
const PULLS_MAX: usize = 4;

/// A node that is alone announces itself after this long, then after twice as long each time.
const LONELY_DELAY: Duration = Duration::from_millis(200);
const LONELY_DELAY_MAX: Duration = Duration::from_secs(5);
/// Seeds tried at once.
const SEEDS_MAX: usize = 16;
/// A seed that was silent for so long is asked over TCP why, and again after [`CONTACT_DELAY`].
const SILENCE: Duration = Duration::from_secs(1);
const CONTACT_DELAY: Duration = Duration::from_secs(10);

/// A goodbye waits this long for acknowledgements.
const LEAVE_DELAY: Duration = Duration::from_secs(1);
/// Then foca's own notice goes out this many times, so far apart.
const LEAVE_ROUNDS: u8 = 4;
const LEAVE_ROUND: Duration = Duration::from_millis(60);

/// Members that went down or left are shown this long.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// What this node is.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) cluster: ClusterName,
    pub(crate) identity: Identity,
    pub(crate) name: NodeName,
    pub(crate) role: Role,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Input<'a> {
    /// An authentic message arrived.
    Message(&'a [u8]),
    /// Seeds were found.
    Seeds(Vec<SocketAddr>),
    /// This node offers something else now.
    Offer(Offer),
    /// This node is reached elsewhere. Only a node that is alone can move.
    Advertise(SocketAddr),
    /// A pull ended.
    Pulled { node: NodeId, digest: AppsDigest, result: Result<Vec<App>, String> },
    /// A silent seed was asked over TCP.
    Contacted { addr: SocketAddr, outcome: String },
    /// This node is to say goodbye.
    Leave,
    /// The deadline has come.
    Wake,
}

/// What to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect {
    /// Seal and send.
    Send { to: SocketAddr, message: Vec<u8> },
    /// Fetch applications from their owner.
    Pull { from: SocketAddr, node: NodeId, digest: AppsDigest },
    /// Find out over TCP why a seed is silent.
    Contact(SocketAddr),
    /// Answer pulls with these bytes from now on.
    Serve { digest: AppsDigest, apps: Arc<[u8]> },
    /// The roster changed.
    Roster(Arc<Roster>),
    /// Whether this node is alone, and why, changed.
    Join(Arc<JoinReport>),
    /// Everybody has this node's newest record, or could not be reached.
    Heard,
    /// Goodbye was said.
    Left,
}

/// A message that made no sense; to be counted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

#[derive(Debug, PartialEq, Eq)]
enum Timer {
    Foca(foca::Timer<Identity>),
    Publish,
    Lonely,
    Push(NodeId),
    Ask(NodeId),
    Pull(NodeId),
    Leave(u8),
}

/// What is known of another node.
#[derive(Debug)]
struct Held {
    addr: SocketAddr,
    record: Option<Record>,
    apps: Option<(AppsDigest, Vec<App>)>,
    offer: Option<Arc<Offer>>,
    state: (MemberState, SystemTime),
    last_heard: Instant,
    /// The newest version its stamps have named.
    version_told: u32,
    /// Tries of our record so far, while it is not acknowledged.
    push_tries: Option<u32>,
    ask_delay: Option<Duration>,
    pull: Pull,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pull {
    Idle,
    Waiting(Duration),
    Running(Duration),
}

#[derive(Debug)]
struct Seed {
    since: Instant,
    contacted: Option<Instant>,
    outcome: Option<String>,
}

pub(crate) struct Core {
    settings: Settings,
    foca: Foca<Identity, Codec, StdRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Identity>,
    timers: BinaryHeap<Reverse<(Instant, u64, TimerSlot)>>,
    timers_made: u64,
    effects: VecDeque<Effect>,
    record: Record,
    record_bytes: Vec<u8>,
    held: HashMap<NodeId, Held>,
    seeds: HashMap<SocketAddr, Seed>,
    lonely_delay: Duration,
    started: (Instant, SystemTime),
    publish_due: bool,
    published: (Option<Arc<Roster>>, Option<Arc<JoinReport>>),
    leaving: Option<bool>,
    /// The version of our record that everybody is known to have.
    heard: u32,
}

/// A timer that never decides an order: its deadline and number do.
#[derive(Debug)]
struct TimerSlot(Timer);

impl PartialEq for TimerSlot {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for TimerSlot {}
impl PartialOrd for TimerSlot {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for TimerSlot {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// foca's settings. Its presets let a rumour die after one to four transmissions in a small cluster, which
/// loses healthy members at 10 % loss; twenty transmissions lose none at 30 %, at 30 bytes a second more.
fn foca_config() -> foca::Config {
    let every = |seconds: u64| {
        Some(PeriodicParams {
            frequency: Duration::from_secs(seconds),
            num_members: const { NonZeroUsize::new(1).unwrap() },
        })
    };
    foca::Config {
        probe_period: Duration::from_millis(500),
        probe_rtt: Duration::from_millis(200),
        num_indirect_probes: const { NonZeroUsize::new(3).unwrap() },
        max_transmissions: const { NonZeroU8::new(20).unwrap() },
        suspect_to_down_after: Duration::from_secs(2),
        // Forgetting the dead early lets old rumours raise them as ghosts.
        remove_down_after: Some(Duration::from_secs(24 * 3600)),
        max_packet_size: const { NonZeroUsize::new(DATAGRAM_BYTES_MAX - seal::OVERHEAD_BYTES - STAMP_BYTES_MAX).unwrap() },
        notify_down_members: true,
        periodic_announce: every(5),
        periodic_announce_to_down_members: every(10),
        periodic_gossip: Some(PeriodicParams {
            frequency: Duration::from_millis(200),
            num_members: const { NonZeroUsize::new(3).unwrap() },
        }),
    }
}

impl Core {
    /// A node that knows nobody. `wall` is the wall clock's reading at `now`; only dates shown to people use it.
    pub(crate) fn new(settings: Settings, now: Instant, wall: SystemTime, random_seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(random_seed);
        let record = Record {
            node: settings.identity.node,
            version: 1,
            name: settings.name.clone(),
            role: settings.role,
            is_leaving: false,
            states: Vec::new(),
            apps: Apps::Inline(Vec::new()),
        };
        let mut core = Self {
            foca: Foca::new(settings.identity, foca_config(), rng, Codec),
            runtime: AccumulatingRuntime::new(),
            timers: BinaryHeap::new(),
            timers_made: 0,
            effects: VecDeque::new(),
            record_bytes: record.encode(),
            record,
            held: HashMap::new(),
            seeds: HashMap::new(),
            lonely_delay: LONELY_DELAY,
            started: (now, wall),
            publish_due: false,
            published: (None, None),
            leaving: None,
            heard: 1,
            settings,
        };
        core.schedule(now, LONELY_DELAY, Timer::Lonely);
        core.publish(now);
        core
    }

    /// Takes in what happened at `now`.
    ///
    /// # Errors
    /// When a message made no sense. Nothing changed, or nothing but what made sense.
    pub(crate) fn handle(&mut self, now: Instant, input: Input<'_>) -> Result<(), Invalid> {
        let outcome = self.decide(now, input);
        self.drain_foca(now);
        self.notice_heard();
        outcome
    }

    /// Whether everybody has our newest record, or could not be reached.
    pub(crate) fn is_heard(&self) -> bool {
        self.heard == self.record.version
    }

    /// What to do next; none when all is said.
    pub(crate) fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Input::Wake`] is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((deadline, ..))| *deadline)
    }

    fn decide(&mut self, now: Instant, input: Input<'_>) -> Result<(), Invalid> {
        match input {
            // After goodbye an echo of it would make this node join again.
            Input::Message(_) if self.leaving == Some(true) => {}
            Input::Message(bytes) => return self.receive(now, bytes),
            Input::Seeds(found) => self.take_seeds(now, &found),
            Input::Offer(offer) => self.offer(now, offer),
            Input::Advertise(addr) => self.advertise(now, addr),
            Input::Pulled { node, digest, result } => self.pulled(now, node, digest, result),
            Input::Contacted { addr, outcome } => {
                if let Some(seed) = self.seeds.get_mut(&addr) {
                    seed.outcome = Some(outcome);
                    self.mark_changed(now);
                }
            }
            Input::Leave => self.leave(now),
            Input::Wake => self.fire_due(now),
        }
        Ok(())
    }

    fn schedule(&mut self, now: Instant, after: Duration, timer: Timer) {
        self.timers_made += 1;
        self.timers.push(Reverse((now + after, self.timers_made, TimerSlot(timer))));
    }

    fn fire_due(&mut self, now: Instant) {
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            let Some(Reverse((_, _, TimerSlot(timer)))) = self.timers.pop() else {
                return;
            };
            self.fire(now, timer);
            self.drain_foca(now);
        }
    }

    fn fire(&mut self, now: Instant, timer: Timer) {
        match timer {
            // A late or doubled timer is foca's to recognise; its error says only that it did.
            Timer::Foca(timer) => drop(self.foca.handle_timer(timer, &mut self.runtime)),
            Timer::Publish => self.publish(now),
            Timer::Lonely => self.announce_while_alone(now),
            Timer::Push(node) => self.push_again(now, node),
            Timer::Ask(node) => self.ask(now, node),
            Timer::Pull(node) => self.pull(now, node),
            Timer::Leave(round) => self.leave_round(now, round),
        }
    }

    // === messages ===

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Invalid> {
        let (stamp, message) = message::decode(bytes).ok_or(Invalid)?;
        if stamp.node == self.settings.identity.node {
            return Err(Invalid);
        }
        if !self.held.contains_key(&stamp.node) && self.held.len() >= MEMBERS_MAX {
            return Err(Invalid);
        }
        match message {
            Message::Swim(packet) => {
                // Lateness and identities that passed away are everyday matters; only nonsense is invalid.
                use foca::Error::{CustomBroadcast, DataTooBig, Decode, MalformedPacket};
                if let Err(CustomBroadcast(_) | DataTooBig | Decode(_) | MalformedPacket) =
                    self.foca.handle_data(packet, &mut self.runtime)
                {
                    return Err(Invalid);
                }
                self.drain_foca(now);
            }
            Message::Ask => self.send_record(stamp.addr),
            Message::Record(bytes) => self.take_record(now, stamp, bytes)?,
            Message::Ack(version) => self.acknowledged(now, stamp.node, version),
        }
        self.heard(now, &stamp);
        Ok(())
    }

    /// Notes what the stamp tells, of nodes that are known.
    fn heard(&mut self, now: Instant, stamp: &Stamp) {
        let Some(held) = self.held.get_mut(&stamp.node) else {
            return;
        };
        held.last_heard = now;
        held.version_told = held.version_told.max(stamp.version);
        if held.is_behind() && held.ask_delay.is_none() {
            held.ask_delay = Some(ASK_DELAY);
            self.schedule(now, ASK_DELAY, Timer::Ask(stamp.node));
        }
    }

    fn send(&mut self, to: SocketAddr, message: Message<'_>) {
        let stamp =
            Stamp { node: self.settings.identity.node, addr: self.foca.identity().addr, version: self.record.version };
        self.effects.push_back(Effect::Send { to, message: message::encode(&stamp, message) });
    }

    fn send_record(&mut self, to: SocketAddr) {
        let bytes = std::mem::take(&mut self.record_bytes);
        self.send(to, Message::Record(&bytes));
        self.record_bytes = bytes;
    }

    /// Does what foca asks for: sends, then timers, then news.
    fn drain_foca(&mut self, now: Instant) {
        while let Some((to, packet)) = self.runtime.to_send() {
            if to.addr != self.foca.identity().addr && !self.is_needless_notice(&to, &packet) {
                self.send(to.addr, Message::Swim(&packet));
            }
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.schedule(now, after, Timer::Foca(timer));
        }
        while let Some(news) = self.runtime.to_notify() {
            self.take_news(now, &news);
        }
    }

    /// "You are dead" to a member that refuted it in time. foca 2.0.0 sends it all the same when the suspicion's
    /// timer runs out, and the healthy member changes its identity, over and over in a lossy network.
    fn is_needless_notice(&self, to: &Identity, packet: &[u8]) -> bool {
        matches!(Codec.decode_header(packet), Ok(header) if header.message == foca::Message::TurnUndead)
            && self.foca.iter_members().any(|member| member.id() == to)
    }

    fn take_news(&mut self, now: Instant, news: &OwnedNotification<Identity>) {
        match news {
            OwnedNotification::MemberUp(id) => self.member_up(now, *id),
            OwnedNotification::Rename(_, id) => self.member_up(now, *id),
            OwnedNotification::Idle => {
                self.lonely_delay = LONELY_DELAY;
                self.schedule(now, LONELY_DELAY, Timer::Lonely);
            }
            OwnedNotification::MemberDown(_)
            | OwnedNotification::Active
            | OwnedNotification::Defunct
            | OwnedNotification::Rejoin(_) => {}
        }
        self.mark_changed(now);
    }

    /// Greets a new member with our record, and expects its.
    fn member_up(&mut self, now: Instant, id: Identity) {
        let held = self.hold(now, id.node, id.addr);
        held.addr = id.addr;
        let is_unknown = held.record.is_none() && held.ask_delay.is_none();
        if is_unknown {
            held.ask_delay = Some(ASK_DELAY);
        }
        held.push_tries = Some(0);
        self.schedule(now, Duration::ZERO, Timer::Push(id.node));
        if is_unknown {
            self.schedule(now, ASK_DELAY, Timer::Ask(id.node));
        }
    }

    fn hold(&mut self, now: Instant, node: NodeId, addr: SocketAddr) -> &mut Held {
        let wall = self.wall(now);
        self.held.entry(node).or_insert_with(|| Held {
            addr,
            record: None,
            apps: None,
            offer: None,
            state: (MemberState::Alive, wall),
            last_heard: now,
            version_told: 0,
            push_tries: None,
            ask_delay: None,
            pull: Pull::Idle,
        })
    }

    // === records ===

    /// Only the owner's word about itself counts, and only if it is newer.
    fn take_record(&mut self, now: Instant, stamp: Stamp, bytes: &[u8]) -> Result<(), Invalid> {
        let record = Record::decode(bytes).filter(|record| record.node == stamp.node).ok_or(Invalid)?;
        self.send(stamp.addr, Message::Ack(record.version));
        let held = self.hold(now, stamp.node, stamp.addr);
        if held.record.as_ref().is_some_and(|known| known.version >= record.version) {
            return Ok(());
        }
        if let Apps::Inline(apps) = &record.apps {
            held.apps = Some((AppsDigest::default(), apps.clone()));
        }
        held.record = Some(record);
        held.ask_delay = held.ask_delay.filter(|_| held.is_behind());
        held.refresh_offer();
        if held.missing_apps().is_some() && held.pull == Pull::Idle {
            held.pull = Pull::Waiting(PULL_DELAY);
            self.schedule(now, Duration::ZERO, Timer::Pull(stamp.node));
        }
        self.mark_changed(now);
        Ok(())
    }

    fn ask(&mut self, now: Instant, node: NodeId) {
        let Some(held) = self.held.get_mut(&node) else {
            return;
        };
        let Some(delay) = held.ask_delay.filter(|_| held.is_behind()) else {
            held.ask_delay = None;
            return;
        };
        let (addr, next) = (held.addr, (delay * 2).min(ASK_DELAY_MAX));
        let is_member = self.foca.iter_members().any(|member| member.id().node == node);
        held.ask_delay = is_member.then_some(next);
        self.send(addr, Message::Ask);
        if is_member {
            self.schedule(now, next, Timer::Ask(node));
        }
    }

    /// Fetches applications that did not fit their record. Backends route nothing and need none.
    fn pull(&mut self, now: Instant, node: NodeId) {
        let running = self.held.values().filter(|held| matches!(held.pull, Pull::Running(_))).count();
        let is_balancer = self.settings.role == Role::Balancer;
        let Some(held) = self.held.get_mut(&node) else {
            return;
        };
        let (Pull::Waiting(delay), Some(digest), true) = (held.pull, held.missing_apps(), is_balancer) else {
            held.pull = Pull::Idle;
            return;
        };
        if running >= PULLS_MAX {
            self.schedule(now, PUBLISH_DELAY, Timer::Pull(node));
            return;
        }
        held.pull = Pull::Running(delay);
        let from = held.addr;
        self.effects.push_back(Effect::Pull { from, node, digest });
    }

    fn pulled(&mut self, now: Instant, node: NodeId, digest: AppsDigest, result: Result<Vec<App>, String>) {
        let Some(held) = self.held.get_mut(&node) else {
            return;
        };
        let delay = match held.pull {
            Pull::Running(delay) => delay,
            _ => PULL_DELAY,
        };
        held.pull = Pull::Idle;
        if let Ok(apps) = result {
            held.apps = Some((digest, apps));
            held.refresh_offer();
        }
        if held.missing_apps().is_some() {
            let next = (delay * 2).min(PULL_DELAY_MAX);
            held.pull = Pull::Waiting(next);
            self.schedule(now, delay, Timer::Pull(node));
        }
        self.mark_changed(now);
    }

    // === our own record ===

    fn offer(&mut self, now: Instant, mut offer: Offer) {
        offer.apps.sort();
        let (apps, states): (Vec<App>, Vec<_>) = offer.apps.into_iter().unzip();
        let bytes = encode_apps(&apps);
        let apps = Apps::Inline(apps);
        if self.record.apps == apps && self.record.states == states {
            return;
        }
        if self.record.apps != apps {
            self.effects.push_back(Effect::Serve { digest: digest_of(&bytes), apps: bytes.into() });
        }
        self.record.apps = apps;
        self.record.states = states;
        self.record_changed(now);
    }

    /// A new version, to everybody who is there.
    fn record_changed(&mut self, now: Instant) {
        self.record.version += 1;
        self.record_bytes = self.record.encode();
        // Tries of the last version that are still due would be counted as tries of this one, and end them early.
        self.timers.retain(|Reverse((_, _, slot))| !matches!(slot.0, Timer::Push(_)));
        self.held.values_mut().for_each(|held| held.push_tries = None);
        let nodes: Vec<NodeId> = self.foca.iter_members().map(|member| member.id().node).collect();
        for (node, place) in nodes.into_iter().zip(0_u32..) {
            if let Some(held) = self.held.get_mut(&node) {
                held.push_tries = Some(0);
                self.schedule(now, Duration::from_millis(10) * (place / PUSH_BURST), Timer::Push(node));
            }
        }
        self.mark_changed(now);
    }

    fn push_again(&mut self, now: Instant, node: NodeId) {
        let Some(held) = self.held.get_mut(&node) else {
            return;
        };
        let Some(tries) = held.push_tries else {
            return;
        };
        let addr = held.addr;
        held.push_tries = (tries + 1 < PUSH_TRIES).then_some(tries + 1);
        self.send_record(addr);
        if tries + 1 < PUSH_TRIES {
            self.schedule(now, PUSH_DELAY * 2_u32.pow(tries), Timer::Push(node));
        }
    }

    fn acknowledged(&mut self, now: Instant, node: NodeId, version: u32) {
        if version == self.record.version
            && let Some(held) = self.held.get_mut(&node)
        {
            held.push_tries = None;
        }
        self.notice_heard();
        if self.leaving == Some(false) && self.is_heard() {
            self.leave_now(now);
        }
    }

    fn notice_heard(&mut self) {
        if !self.is_heard() && self.held.values().all(|held| held.push_tries.is_none()) {
            self.heard = self.record.version;
            self.effects.push_back(Effect::Heard);
        }
    }

    // === joining ===

    fn is_alone(&self) -> bool {
        self.foca.num_members() == 0
    }

    fn take_seeds(&mut self, now: Instant, found: &[SocketAddr]) {
        let me = self.foca.identity().addr;
        let found: Vec<SocketAddr> = found.iter().map(|addr| plain(*addr)).filter(|addr| *addr != me).collect();
        let mut news = Vec::new();
        for addr in found.iter().take(SEEDS_MAX) {
            let is_member = self.foca.iter_members().any(|member| member.id().addr == *addr);
            if !is_member && (!self.is_alone() || !self.seeds.contains_key(addr)) {
                news.push(*addr);
            }
        }
        self.seeds.retain(|addr, _| found.contains(addr));
        for addr in found.into_iter().take(SEEDS_MAX) {
            self.seeds.entry(addr).or_insert(Seed { since: now, contacted: None, outcome: None });
        }
        if self.is_alone() && !news.is_empty() {
            self.lonely_delay = LONELY_DELAY;
            self.schedule(now, LONELY_DELAY, Timer::Lonely);
        }
        for addr in news {
            self.announce(addr);
        }
        self.mark_changed(now);
    }

    fn announce(&mut self, addr: SocketAddr) {
        // Its only errors are foca's own state, and there is none in which an announcement may not be made.
        drop(self.foca.announce(Identity::unknown_at(addr), &mut self.runtime));
    }

    fn announce_while_alone(&mut self, now: Instant) {
        if !self.is_alone() || self.leaving.is_some() {
            return;
        }
        // Several wishes for this timer are one.
        self.timers.retain(|Reverse((_, _, slot))| slot.0 != Timer::Lonely);
        let seeds: Vec<SocketAddr> = self.seeds.keys().copied().collect();
        for addr in seeds {
            self.announce(addr);
            self.contact_if_silent(now, addr);
        }
        self.schedule(now, self.lonely_delay, Timer::Lonely);
        self.lonely_delay = (self.lonely_delay * 2).min(LONELY_DELAY_MAX);
    }

    fn contact_if_silent(&mut self, now: Instant, addr: SocketAddr) {
        let Some(seed) = self.seeds.get_mut(&addr) else {
            return;
        };
        let is_due = seed.contacted.is_none_or(|last| now - last >= CONTACT_DELAY);
        if now - seed.since >= SILENCE && is_due {
            seed.contacted = Some(now);
            self.effects.push_back(Effect::Contact(addr));
        }
    }

    fn advertise(&mut self, now: Instant, addr: SocketAddr) {
        let last = *self.foca.identity();
        let next = Identity::new(addr, last.epoch + 1, last.node);
        if self.is_alone() && next.addr != last.addr {
            self.settings.identity = next;
            // Different address, different identity: the one error it knows cannot be.
            drop(self.foca.change_identity(next, &mut self.runtime));
            self.mark_changed(now);
        }
    }

    // === leaving ===

    fn leave(&mut self, now: Instant) {
        if self.leaving.is_some() {
            return;
        }
        self.leaving = Some(false);
        self.record.is_leaving = true;
        self.record_changed(now);
        let delay = if self.is_alone() { Duration::ZERO } else { LEAVE_DELAY };
        self.schedule(now, delay, Timer::Leave(0));
    }

    fn leave_now(&mut self, now: Instant) {
        if self.leaving == Some(true) {
            return;
        }
        self.leaving = Some(true);
        drop(self.foca.leave_cluster(&mut self.runtime));
        self.drain_foca(now);
        self.schedule(now, LEAVE_ROUND, Timer::Leave(1));
    }

    fn leave_round(&mut self, now: Instant, round: u8) {
        match round {
            0 if self.is_alone() && self.leaving == Some(false) => self.effects.push_back(Effect::Left),
            0 => self.leave_now(now),
            LEAVE_ROUNDS => self.effects.push_back(Effect::Left),
            _ => {
                drop(self.foca.gossip(&mut self.runtime));
                self.drain_foca(now);
                self.schedule(now, LEAVE_ROUND, Timer::Leave(round + 1));
            }
        }
    }

    // === publishing ===

    fn mark_changed(&mut self, now: Instant) {
        if !self.publish_due {
            self.publish_due = true;
            self.schedule(now, PUBLISH_DELAY, Timer::Publish);
        }
    }

    fn publish(&mut self, now: Instant) {
        self.publish_due = false;
        let roster = Arc::new(self.roster(now));
        if self.published.0.as_ref() != Some(&roster) {
            self.effects.push_back(Effect::Roster(Arc::clone(&roster)));
            self.published.0 = Some(roster);
        }
        let join = Arc::new(self.join_report());
        if self.published.1.as_ref() != Some(&join) {
            self.effects.push_back(Effect::Join(Arc::clone(&join)));
            self.published.1 = Some(join);
        }
    }

    fn join_report(&self) -> JoinReport {
        let alone = self.is_alone();
        let mut contacts: Vec<ContactReport> = self
            .seeds
            .iter()
            .filter(|_| alone)
            .map(|(addr, seed)| ContactReport {
                address: *addr,
                outcome: seed.outcome.clone().unwrap_or_else(|| "no answer yet".to_owned()),
            })
            .collect();
        contacts.sort_by_key(|contact| contact.address);
        JoinReport { alone, contacts }
    }

    fn roster(&mut self, now: Instant) -> Roster {
        let wall = self.wall(now);
        let me = *self.foca.identity();
        let mut seen: HashMap<NodeId, (Identity, MemberState)> = HashMap::new();
        for member in self.foca.iter_membership_state() {
            let id = *member.id();
            // A former identity of our own stands among the dead.
            if id.addr == me.addr || id.node == me.node {
                continue;
            }
            let state = match member.state() {
                foca::State::Alive => MemberState::Alive,
                foca::State::Suspect => MemberState::Suspect,
                foca::State::Down => MemberState::Down,
            };
            // One node at two addresses: it moved, and where it lives now counts.
            let best = seen.entry(id.node).or_insert((id, state));
            if (state.is_active(), id.epoch) > (best.1.is_active(), best.0.epoch) {
                *best = (id, state);
            }
        }
        self.forget(now, &seen);
        let mut members = vec![self.myself()];
        for (node, (id, state)) in seen {
            let held = self.hold(now, node, id.addr);
            let has_left = held.record.as_ref().is_some_and(|record| record.is_leaving);
            let state = if has_left { MemberState::Left } else { state };
            if held.state.0 != state {
                held.state = (state, wall);
            }
            let is_old = wall.duration_since(held.state.1).is_ok_and(|age| age > REMEMBERED);
            if state.is_active() || !is_old {
                members.push(held.member(node, id.addr));
            }
        }
        members.sort_by(|a, b| (&a.name, a.address, a.id).cmp(&(&b.name, b.address, b.id)));
        Roster { cluster: self.settings.cluster.clone(), me: me.node, members }
    }

    /// Drops what is known of nodes that are members no more. What was heard just now may be ahead of foca.
    fn forget(&mut self, now: Instant, seen: &HashMap<NodeId, (Identity, MemberState)>) {
        self.held.retain(|node, held| seen.contains_key(node) || now - held.last_heard < Duration::from_secs(60));
    }

    fn myself(&self) -> Member {
        let apps = match &self.record.apps {
            Apps::Inline(apps) => apps.as_slice(),
            Apps::Digest(_) => &[],
        };
        Member {
            id: self.settings.identity.node,
            name: Some(self.record.name.clone()),
            role: Some(self.record.role),
            address: self.foca.identity().addr,
            state: if self.record.is_leaving { MemberState::Left } else { MemberState::Alive },
            since: self.started.1,
            reach: Reach::Unknown,
            offer: offer(apps, &self.record.states),
        }
    }

    fn wall(&self, now: Instant) -> SystemTime {
        self.started.1 + (now - self.started.0)
    }
}

impl Held {
    /// Whether its owner has a newer record than is known here.
    fn is_behind(&self) -> bool {
        self.record.as_ref().is_none_or(|record| record.version < self.version_told)
    }

    /// The digest of the applications that are still to be pulled.
    fn missing_apps(&self) -> Option<AppsDigest> {
        match self.record.as_ref()?.apps {
            Apps::Digest(wanted) if self.apps.as_ref().is_none_or(|(digest, _)| *digest != wanted) => Some(wanted),
            _ => None,
        }
    }

    /// Until new applications are here, the last whole offer stands.
    fn refresh_offer(&mut self) {
        if let (None, Some((_, apps)), Some(record)) = (self.missing_apps(), &self.apps, &self.record) {
            self.offer = offer(apps, &record.states).or_else(|| self.offer.take());
        }
    }

    fn member(&self, node: NodeId, address: SocketAddr) -> Member {
        Member {
            id: node,
            name: self.record.as_ref().map(|record| record.name.clone()),
            role: self.record.as_ref().map(|record| record.role),
            address,
            state: self.state.0,
            since: self.state.1,
            reach: Reach::Unknown,
            offer: self.offer.clone(),
        }
    }
}
