//! The cluster as one node decides it. No socket, no clock, no sleep: [`Core::handle`] takes what happened and
//! when, [`Core::next_effect`] says what to do about it, [`Core::next_deadline`] when to come back.
//!
//! foca keeps the membership (SWIM with suspicion). What it leaves to its user is in the parts:
//!
//! - `join`: an idle foca stops altogether, so a node that is alone keeps knocking at its seeds; who hears nobody
//!   starts over; who comes back with a clock gone back is told the newer epoch;
//! - `offers`: records (name, role, applications) go straight from their owner to everybody, acknowledged, and every
//!   datagram carries the version of its sender's record, so that nothing missed stays missed;
//! - `echo`: a balancer asks the backends themselves whether they are there, several times a second;
//! - `guard`: who was paused, starved or deaf convicts nobody; nobody claims too much; a member whose suspicion was
//!   refuted in time is not told that it is dead;
//! - `leave`: after goodbye nothing more is taken in, or the node would join again;
//! - `publish`: the roster, for everybody else.

mod addition;
mod echo;
mod guard;
mod join;
mod leave;
mod offers;
mod publish;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use foca::{AccumulatingRuntime, Codec as _, Foca, NoCustomBroadcast, OwnedNotification, PeriodicParams};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

pub(crate) use self::addition::Addition;
use self::echo::Echo;
use self::guard::Accusations;
use self::join::{CUT_OFF_AFTER, Joining};
use self::offers::Pull;
use super::codec::Codec;
use super::identity::Identity;
use super::message::{self, Message, STAMP_BYTES_MAX, Stamp, Tag};
use super::record::{Apps, AppsDigest, Record};
use super::seal;
use crate::app::{App, Offer};
use crate::member::{MemberState, NodeId, Reach, Role, Roster};
use crate::name::{ClusterName, NodeName};
use crate::report::JoinReport;

/// The longest UDP payload that is sent: IPv6's least MTU of 1,280, less 48 bytes of headers, less some for
/// tunnels on the way. QUIC settled on the same number.
pub(crate) const DATAGRAM_BYTES_MAX: usize = 1200;

/// Members beyond these are not taken in: a cluster is a handful of machines, and a member with the key but
/// gone mad must not fill the others' memory.
pub(crate) const MEMBERS_MAX: usize = 4096;

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
    /// This node has other keys: everybody is to hear from it.
    Rekeyed,
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
    /// This node is a newer run for the others from now on: they took it for dead or for somebody else, or it was cut off
    /// and started over.
    Renewed,
    /// Somebody else lives at this node's address, it seems: they take turns at being the newer run.
    Contested(SocketAddr),
    /// Goodbye was said.
    Left,
}

/// Why a message changed nothing; to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// It made no sense.
    Invalid,
    /// It was meant for another run, most likely one of this node before it was started again.
    Misaddressed,
    /// Its sender claims more members than one may.
    Excess,
}

#[derive(Debug, PartialEq, Eq)]
enum Timer {
    Foca(foca::Timer<Identity>),
    Publish,
    Knock,
    Push(NodeId),
    Ask(NodeId),
    Pull(NodeId),
    Echo(NodeId),
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
    /// Whether it ever stood in the roster.
    was_member: bool,
    last_heard: Option<Instant>,
    /// When it last answered a question.
    last_answer: Option<Instant>,
    /// Who named it first, while nothing came from itself.
    introducer: Option<NodeId>,
    /// The newest version its stamps have named.
    version_told: u32,
    /// Tries of our record so far, while it is not acknowledged.
    push_tries: Option<u32>,
    ask_delay: Option<Duration>,
    pull: Pull,
    echo: Option<Echo>,
}

pub(crate) struct Core {
    settings: Settings,
    foca: Foca<Identity, Codec, StdRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Identity>,
    rng: StdRng,
    timers: BinaryHeap<Reverse<(Instant, u64, TimerSlot)>>,
    timers_made: u64,
    effects: VecDeque<Effect>,
    record: Record,
    record_bytes: Vec<u8>,
    /// Others, members or not yet or no more.
    held: HashMap<NodeId, Held>,
    joining: Joining,
    accusations: Accusations,
    started: (Instant, SystemTime),
    last_turn: Instant,
    publish_due: bool,
    published: (Option<Arc<Roster>>, Option<Arc<JoinReport>>),
    leaving: Option<bool>,
    /// The version of our record that everybody is known to have.
    heard: u32,
    /// What a simulation leaves out.
    #[cfg(any(test, feature = "testing"))]
    without: Option<Addition>,
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
/// loses healthy members at 10 % loss. Whoever is suspected has to hear of it to refute it; of thirty transmissions by
/// each member it gets thirty, whatever the cluster's size, and at 30 % loss misses all once in a thousand million
/// times. With twenty it was once in a million, and fifty members suspect each other that often in a day.
fn foca_config(has: impl Fn(Addition) -> bool) -> foca::Config {
    let every = |seconds: u64| {
        Some(PeriodicParams {
            frequency: Duration::from_secs(seconds),
            num_members: const { NonZeroUsize::new(1).unwrap() },
        })
    };
    // Without: as the preset for local networks has it, for fifty members.
    let transmissions = const { [NonZeroU8::new(6).unwrap(), NonZeroU8::new(30).unwrap()] };
    let [announce, announce_to_down] = if has(Addition::Announcements) { [5, 5] } else { [30, 65] };
    foca::Config {
        probe_period: Duration::from_millis(500),
        probe_rtt: Duration::from_millis(200),
        num_indirect_probes: const { NonZeroUsize::new(3).unwrap() },
        max_transmissions: transmissions[usize::from(has(Addition::Transmissions))],
        suspect_to_down_after: guard::SUSPICION,
        // Forgetting the dead early lets old rumours raise them as ghosts.
        remove_down_after: Some(Duration::from_secs(24 * 3600)),
        max_packet_size: const { NonZeroUsize::new(DATAGRAM_BYTES_MAX - seal::OVERHEAD_BYTES - STAMP_BYTES_MAX).unwrap() },
        notify_down_members: true,
        periodic_announce: every(announce),
        periodic_announce_to_down_members: every(announce_to_down),
        periodic_gossip: Some(PeriodicParams {
            frequency: Duration::from_millis(200),
            num_members: const { NonZeroUsize::new(3).unwrap() },
        }),
    }
}

impl Core {
    /// A node that knows nobody. `wall` is the wall clock's reading at `now`; only dates shown to people use it.
    pub(crate) fn new(settings: Settings, now: Instant, wall: SystemTime, random_seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(random_seed);
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
            foca: Foca::new(settings.identity, foca_config(|_| true), StdRng::from_rng(&mut rng), Codec),
            runtime: AccumulatingRuntime::new(),
            rng,
            timers: BinaryHeap::new(),
            timers_made: 0,
            effects: VecDeque::new(),
            record_bytes: record.encode(),
            record,
            held: HashMap::new(),
            joining: Joining::new(now),
            accusations: Accusations::default(),
            started: (now, wall),
            last_turn: now,
            publish_due: false,
            published: (None, None),
            leaving: None,
            heard: 1,
            #[cfg(any(test, feature = "testing"))]
            without: None,
            settings,
        };
        core.knock_soon(now);
        core.publish(now);
        core
    }

    /// Takes in what happened at `now`.
    ///
    /// # Errors
    /// When a message was dropped. Nothing changed, or nothing but what made sense.
    pub(crate) fn handle(&mut self, now: Instant, input: Input<'_>) -> Result<(), Dropped> {
        let known_as = *self.foca.identity();
        self.make_up_for_a_stall(now);
        let outcome = self.decide(now, input);
        self.drain_foca(now);
        let is_renewed = *self.foca.identity() != known_as;
        // Moving to another address is its owner's wish.
        if is_renewed && self.foca.identity().addr == known_as.addr {
            self.effects.push_back(Effect::Renewed);
        }
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

    /// This node as others know it now; a renewal changes its epoch.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn identity(&self) -> Identity {
        *self.foca.identity()
    }

    fn decide(&mut self, now: Instant, input: Input<'_>) -> Result<(), Dropped> {
        match input {
            // After goodbye an echo of it would make this node join again.
            Input::Message(_) if self.leaving == Some(true) => {}
            Input::Message(bytes) => return self.receive(now, bytes),
            Input::Seeds(found) => self.take_seeds(now, &found),
            Input::Offer(offer) => self.offer(now, offer),
            Input::Advertise(addr) => self.advertise(now, addr),
            Input::Pulled { node, digest, result } => self.pulled(now, node, digest, result),
            Input::Contacted { addr, outcome } => self.contacted(now, addr, outcome),
            Input::Rekeyed => self.record_changed(now),
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
            Timer::Foca(timer) => self.fire_foca(now, timer),
            Timer::Publish => self.publish(now),
            Timer::Knock => self.knock(now),
            Timer::Push(node) => self.push_again(now, node),
            Timer::Ask(node) => self.ask(now, node),
            Timer::Pull(node) => self.pull(now, node),
            Timer::Echo(node) => self.echo(now, node),
            Timer::Leave(round) => self.leave_round(now, round),
        }
    }

    fn fire_foca(&mut self, now: Instant, timer: foca::Timer<Identity>) {
        match &timer {
            foca::Timer::ChangeSuspectToDown { member_id, incarnation, .. }
                if let Some(wait) = self.wait_for_verdict(now, *member_id, *incarnation) =>
            {
                self.schedule(now, wait, Timer::Foca(timer));
            }
            foca::Timer::ProbeRandomMember(_) if self.is_cut_off(now, CUT_OFF_AFTER) => self.start_over(now),
            // A late or doubled timer is foca's to recognise; its error says only that it did.
            _ => drop(self.foca.handle_timer(timer, &mut self.runtime)),
        }
    }

    // === messages ===

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Dropped> {
        let (stamp, message) = message::decode(bytes).ok_or(Dropped::Invalid)?;
        if stamp.node == self.settings.identity.node {
            return Err(Dropped::Invalid);
        }
        match message {
            _ if stamp.to == Tag::of(self.settings.identity.node) => self.receive_ours(now, stamp, message),
            Message::Swim(packet) if stamp.to == Tag::ANYBODY => self.answer_knock(now, &stamp, packet),
            _ => Err(Dropped::Misaddressed),
        }
    }

    fn receive_ours(&mut self, now: Instant, stamp: Stamp, message: Message<'_>) -> Result<(), Dropped> {
        match message {
            Message::Swim(packet) => self.take_packet(now, &stamp, packet)?,
            Message::Ask => self.send_record(stamp.addr, stamp.node),
            Message::Record(bytes) => self.take_record(now, stamp, bytes)?,
            Message::Ack(version) => self.acknowledged(now, stamp.node, version),
            Message::Echo(number) => self.send(stamp.addr, stamp.node, Message::Echoed(number)),
            Message::Echoed(number) => self.echoed(now, stamp.node, number),
            Message::Welcome => self.welcomed(now, &stamp),
            Message::Stale(epoch) => self.outdated(now, &stamp, epoch),
        }
        self.heard_from(now, &stamp);
        Ok(())
    }

    /// A packet of the membership protocol, of a sender who knows whom it speaks to.
    fn take_packet(&mut self, now: Instant, stamp: &Stamp, packet: &[u8]) -> Result<(), Dropped> {
        let mut updates = packet;
        let header = read_header(stamp, &mut updates)?;
        let claims = self.check_claims(stamp, updates)?;
        if header.message == foca::Message::Announce {
            self.tell_if_stale(&header.src);
        }
        self.feed(packet)?;
        self.drain_foca(now);
        self.remember_claims(now, stamp, &claims);
        Ok(())
    }

    fn feed(&mut self, packet: &[u8]) -> Result<(), Dropped> {
        // Lateness and identities that passed away are everyday matters; only nonsense is invalid.
        use foca::Error::{CustomBroadcast, DataTooBig, Decode, MalformedPacket};
        match self.foca.handle_data(packet, &mut self.runtime) {
            Err(CustomBroadcast(_) | DataTooBig | Decode(_) | MalformedPacket) => Err(Dropped::Invalid),
            _ => Ok(()),
        }
    }

    /// Notes what the stamp tells, of nodes that are known.
    fn heard_from(&mut self, now: Instant, stamp: &Stamp) {
        let Some(held) = self.held.get_mut(&stamp.node) else {
            return;
        };
        held.last_heard = Some(now);
        held.introducer = None;
        held.version_told = held.version_told.max(stamp.version);
        if held.is_behind() && held.ask_delay.is_none() {
            held.ask_delay = Some(offers::ASK_DELAY);
            self.schedule(now, offers::ASK_DELAY, Timer::Ask(stamp.node));
        }
    }

    fn send(&mut self, addr: SocketAddr, node: NodeId, message: Message<'_>) {
        let me = self.foca.identity();
        let stamp = Stamp { node: me.node, to: Tag::of(node), addr: me.addr, version: self.record.version };
        self.effects.push_back(Effect::Send { to: addr, message: message::encode(&stamp, message) });
    }

    /// Does what foca asks for: sends, then timers, then news.
    fn drain_foca(&mut self, now: Instant) {
        while let Some((to, packet)) = self.runtime.to_send() {
            self.send_packet(now, &to, &packet);
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            if let foca::Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &timer {
                self.accusations.begin(now, member_id.node, *incarnation);
            }
            let after = after * self.joining.patience(now, &timer);
            self.schedule(now, after, Timer::Foca(timer));
        }
        while let Some(news) = self.runtime.to_notify() {
            self.take_news(now, &news);
        }
    }

    fn send_packet(&mut self, now: Instant, to: &Identity, packet: &[u8]) {
        let Ok(header) = Codec.decode_header(packet) else {
            return;
        };
        let is_active = || self.foca.iter_members().any(|member| member.id() == to);
        let node = match header.message {
            _ if to.addr == self.foca.identity().addr => return,
            // "You are dead" to a member that refuted it in time: foca 2.0.0 sends it all the same when the
            // suspicion's timer runs out, and the healthy member changes its identity, over and over in a lossy
            // network.
            foca::Message::TurnUndead if is_active() && self.has(Addition::UndeadFilter) => return,
            // Another run may live at the address of the dead by now.
            foca::Message::Announce if !is_active() && to.epoch > 0 => NodeId(0),
            _ => to.node,
        };
        if node == NodeId(0) {
            self.joining.knocked = Some(now);
        }
        self.send(to.addr, node, Message::Swim(packet));
    }

    fn take_news(&mut self, now: Instant, news: &OwnedNotification<Identity>) {
        match news {
            OwnedNotification::MemberUp(id) | OwnedNotification::Rename(_, id) => {
                self.joining.last_up = now;
                self.member_up(now, *id);
            }
            OwnedNotification::Active => self.taken_in(now),
            // With no member left, or under a new identity that nobody has accepted yet, foca does nothing at all.
            OwnedNotification::Rejoin(_) => {
                self.renewed(now);
                self.knock_soon(now);
            }
            OwnedNotification::Idle => self.knock_soon(now),
            OwnedNotification::MemberDown(_) | OwnedNotification::Defunct => {}
        }
        self.mark_changed(now);
    }

    fn hold(&mut self, now: Instant, node: NodeId, addr: SocketAddr) -> &mut Held {
        let wall = self.wall(now);
        self.held.entry(node).or_insert_with(|| Held {
            addr,
            record: None,
            apps: None,
            offer: None,
            state: (MemberState::Alive, wall),
            was_member: false,
            last_heard: None,
            last_answer: None,
            introducer: None,
            version_told: 0,
            push_tries: None,
            ask_delay: None,
            pull: Pull::Idle,
            echo: None,
        })
    }

    fn wall(&self, now: Instant) -> SystemTime {
        self.started.1 + (now - self.started.0)
    }
}

/// The header of a packet; nobody speaks for another.
fn read_header(stamp: &Stamp, packet: &mut &[u8]) -> Result<foca::Header<Identity>, Dropped> {
    let header = Codec.decode_header(packet).map_err(|_| Dropped::Invalid)?;
    let is_its_own = header.src.node == stamp.node && header.src.addr == stamp.addr;
    if is_its_own { Ok(header) } else { Err(Dropped::Invalid) }
}
