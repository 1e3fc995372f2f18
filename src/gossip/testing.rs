//! Entry points of the fuzzer (`tests/fuzz`): the decoders, and a node that is fed whatever bytes say.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use foca::{Codec as _, Header, Member, State};

use super::codec::Codec;
use super::core::{Core, DATAGRAM_BYTES_MAX, Effect, Input, MEMBERS_MAX, Settings};
use super::identity::Identity;
use super::message::{self, Message, Stamp, Tag};
use super::record::{Apps, Record, decode_apps, digest_of, encode_apps};
use super::seal::{Channel, ClusterKey, Keyring, OVERHEAD_BYTES, Opener, Sealer};
use super::stream::{ANSWER_BYTES_MAX, read_frame};
use crate::app::{App, AppState, Offer, Protocol};
use crate::member::{NodeId, Role, Roster};
use crate::name::{PathPrefix, Port, Weight};

// ---- decoders

/// Reads bytes as everything that arrives sealed: a message and what is in it, a record, applications, a frame of a
/// stream. What is read must come out again as it went in.
///
/// # Panics
/// If it does not.
pub fn decode(bytes: &[u8]) {
    if let Some((stamp, message)) = message::decode(bytes) {
        let again = message::encode(&stamp, message);
        assert_eq!(message::decode(&again), Some((stamp, message)), "a message changes as it travels");
        match message {
            Message::Swim(packet) => decode_packet(packet),
            Message::Record(record) => decode_record(record),
            _ => {}
        }
    }
    decode_packet(bytes);
    decode_record(bytes);
    if let Ok(apps) = decode_apps(bytes, &digest_of(bytes)) {
        let again = encode_apps(&apps);
        assert_eq!(decode_apps(&again, &digest_of(&again)).as_ref(), Ok(&apps), "applications change as they travel");
    }
    assert!(decode_apps(bytes, &[0; 16]).is_err(), "applications of another digest");
    decode_frame(bytes);
}

fn decode_packet(mut packet: &[u8]) {
    let mut again = BytesMut::with_capacity(256);
    let Ok(header) = Codec.decode_header(&mut packet) else { return };
    Codec.encode_header(&header, &mut again).expect("there is room");
    assert_eq!(Codec.decode_header(&again[..]).ok(), Some(header));
    while let Ok(member) = Codec.decode_member(&mut packet) {
        again.clear();
        again.reserve(256);
        Codec.encode_member(&member, &mut again).expect("there is room");
        assert_eq!(Codec.decode_member(&again[..]).ok(), Some(member));
    }
}

fn decode_record(bytes: &[u8]) {
    if let Some(record) = Record::decode(bytes) {
        let again = record.encode();
        assert!(again.len() + message::STAMP_BYTES_MAX + OVERHEAD_BYTES <= DATAGRAM_BYTES_MAX);
        let Some(read) = Record::decode(&again) else { panic!("a record that was read cannot be sent") };
        assert!(matches!(read.apps, Apps::Digest(_)) || read == record, "a record changes as it travels");
    }
}

fn decode_frame(mut bytes: &[u8]) {
    let frame = {
        // Bytes in memory never make a reader wait.
        let read = pin!(read_frame(&mut bytes, ANSWER_BYTES_MAX));
        match read.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(frame)) => frame,
            Poll::Ready(Err(_)) => return,
            Poll::Pending => panic!("reading bytes waits"),
        }
    };
    assert!(frame.len() <= ANSWER_BYTES_MAX);
    assert!(keyring(&[1]).open_frame(&mut frame.clone()).is_err(), "a frame was forged");
}

fn keyring(keys: &[u8]) -> Keyring {
    let keys: Vec<ClusterKey> = keys.iter().map(|key| ClusterKey([*key; 32])).collect();
    Keyring::new("fuzz".parse().expect("a name"), &keys)
}

// ---- envelopes

/// Two senders of envelopes, and one who opens them, with keys that change.
pub struct Envelopes {
    ours: Sealer,
    stranger: Sealer,
    opener: Opener,
    keys: &'static [u8],
    opened: VecDeque<Vec<u8>>,
}

/// What the opener's keys may be. Ours are 1 and 2.
const RINGS: [&[u8]; 5] = [&[1], &[2], &[1, 2], &[2, 1], &[1, 2, 4]];
/// Envelopes that were opened, kept to be tried again.
const OPENED_MAX: usize = 16;

impl Default for Envelopes {
    fn default() -> Self {
        let keys = RINGS[0];
        Self {
            ours: Sealer::new(&keyring(&[1, 2])),
            stranger: Sealer::new(&keyring(&[3])),
            opener: Opener::new(Channel::Datagram, &keyring(keys)),
            keys,
            opened: VecDeque::new(),
        }
    }
}

impl Envelopes {
    /// Opens bytes as they are; then seals the last of them, changes the envelope and the keys as the first of them
    /// say, and opens that.
    ///
    /// # Panics
    /// If anything opens that was not sealed like this, or opens twice.
    pub fn open(&mut self, bytes: &[u8]) {
        assert!(self.opener.open(&mut bytes.to_vec()).is_err(), "an envelope was forged");
        let mut script = Script(bytes);
        let order = script.byte();
        if order & 1 == 1 {
            self.keys = RINGS[usize::from(script.byte()) % RINGS.len()];
            self.opener.rekey(&keyring(self.keys));
        }
        let is_ours = order & 2 == 0;
        let key = if !is_ours { 3 } else { 1 + (order >> 2 & 1) };
        let channel = if order & 8 == 0 { Channel::Datagram } else { Channel::Stream };
        let changes: Vec<(usize, u8)> = (0..order >> 5).map(|_| (usize::from(script.short()), script.byte())).collect();
        let cut = if order & 16 == 0 { usize::MAX } else { usize::from(script.short()) };

        let sealer = if is_ours { &self.ours } else { &self.stranger };
        let mut envelope = sealer.seal(channel, ClusterKey([key; 32]).id(), script.0);
        assert!(envelope.len() <= script.0.len() + OVERHEAD_BYTES);
        // Nowhere is it compared with the untouched one: the fuzzer looks on, and would learn it from there.
        let mut damage = vec![0; envelope.len()];
        for (at, bits) in changes {
            let at = at % envelope.len();
            envelope[at] ^= bits;
            damage[at] ^= bits;
        }
        let is_whole = damage.iter().all(|bits| *bits == 0) && cut >= envelope.len();
        envelope.truncate(cut);
        let is_right = is_whole && channel == Channel::Datagram && self.keys.contains(&key);
        match self.opener.open(&mut envelope.clone()) {
            Ok(opened) => assert!(is_right && *opened.message == *script.0, "opened wrongly"),
            Err(refusal) => assert!(!is_right, "{refusal:?}"),
        }
        if is_right {
            if self.opened.len() == OPENED_MAX {
                self.opened.pop_front();
            }
            self.opened.push_back(envelope);
        }
        for again in &self.opened {
            assert!(self.opener.open(&mut again.clone()).is_err(), "opened twice");
        }
    }
}

// ---- a node

/// Bytes as orders: past their end, zeros.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn short(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// Mostly a small number, and sometimes one of those at which arithmetic ends.
    fn number(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX,
            254 => u64::MAX - 1,
            253 => 1 << 46,
            252 => u64::from(u32::MAX),
            251 => u64::from(self.short()) << 32,
            small => u64::from(small),
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }
}

/// Steps of one run.
const STEPS_MAX: usize = 256;

/// A live node, with a clock that goes as it is told.
pub struct Live {
    core: Core,
    now: Instant,
    me: Identity,
    others: usize,
    has_left: bool,
}

/// Runs a live node through what `bytes` say: messages well formed and not, time that passes, and what its own
/// process tells it.
///
/// # Panics
/// If the node does, or does what none may: answers without bound, sends datagrams that are too long, takes in more
/// members than there may be, loses itself.
pub fn live(bytes: &[u8]) {
    let mut script = Script(bytes);
    let mut live = Live::new(script.byte());
    for _ in 0..STEPS_MAX {
        if script.0.is_empty() {
            break;
        }
        live.step(&mut script);
    }
    // Whatever was said to it, it comes to rest within its own timers.
    for _ in 0..64 {
        live.wake(Duration::ZERO);
    }
}

impl Live {
    fn new(kind: u8) -> Self {
        let now = Instant::now();
        let me = Identity::new(address(0), 1000, NodeId(7));
        let role = if kind.is_multiple_of(2) { Role::Balancer } else { Role::Backend };
        let settings = Settings { cluster: "fuzz".parse().expect("a name"), identity: me, name: node_name(0), role };
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut live =
            Self { core: Core::new(settings, now, wall, u64::from(kind)), now, me, others: 0, has_left: false };
        live.act(64);
        live
    }

    fn step(&mut self, script: &mut Script<'_>) {
        self.now += Duration::from_millis(u64::from(script.byte() % 64));
        let bound = 64 + 8 * self.others;
        let input = match script.byte() % 16 {
            0 => {
                let bytes = script.bytes();
                decode(&bytes);
                return self.say(&bytes);
            }
            1..=7 => {
                let bytes = self.message(script);
                return self.say(&bytes);
            }
            8 => {
                let mut bytes = self.message(script);
                let at = usize::from(script.short()) % bytes.len();
                bytes[at] ^= script.byte();
                bytes.truncate(bytes.len().saturating_sub(usize::from(script.byte() / 16)));
                return self.say(&bytes);
            }
            9 => return self.wake(Duration::from_millis(u64::from(script.short()))),
            10 => {
                (0..script.byte() % 8).for_each(|_| self.wake(Duration::ZERO));
                return;
            }
            11 => Input::Seeds((0..script.byte() % 24).map(|_| address(script.byte())).collect()),
            12 => {
                Input::Offer(Offer { apps: apps(script).into_iter().map(|app| (app, state(script.byte()))).collect() })
            }
            13 => {
                let (node, apps) = (self.node(script.byte()), apps(script));
                let digest = digest_of(&encode_apps(&apps));
                let result = if script.byte() == 1 { Err("fuzzed".to_owned()) } else { Ok(apps) };
                Input::Pulled { node, digest, result }
            }
            14 => Input::Contacted { addr: address(script.byte()), outcome: "fuzzed".to_owned() },
            _ => match script.byte() % 32 {
                0 => Input::Leave,
                _ => Input::Advertise(address(script.byte() % 4)),
            },
        };
        let _ = self.core.handle(self.now, input);
        self.act(bound);
    }

    fn say(&mut self, bytes: &[u8]) {
        let _ = self.core.handle(self.now, Input::Message(bytes));
        self.act(64 + 8 * self.others);
    }

    /// Wakes the node when it wants, and not before `after` has passed.
    fn wake(&mut self, after: Duration) {
        self.now += after;
        if let Some(deadline) = self.core.next_deadline() {
            self.now = self.now.max(deadline);
            let _ = self.core.handle(self.now, Input::Wake);
            assert!(self.core.next_deadline().is_none_or(|next| next > self.now), "a timer that is always due");
            self.act(256 + 16 * self.others);
        }
    }

    /// Takes the effects of one step.
    fn act(&mut self, most: usize) {
        let mut count = 0;
        while let Some(effect) = self.core.next_effect() {
            count += 1;
            assert!(count <= most, "more than {most} effects at once, of {} others", self.others);
            match effect {
                Effect::Send { message, .. } => {
                    assert!(message.len() + OVERHEAD_BYTES <= DATAGRAM_BYTES_MAX, "{} bytes", message.len());
                    assert!(message::decode(&message).is_some(), "what it sends nobody can read");
                }
                Effect::Roster(roster) => self.look_at(&roster),
                Effect::Serve { digest, apps } => assert_eq!(digest_of(&apps), digest),
                Effect::Left => self.has_left = true,
                Effect::Pull { node, .. } => assert_ne!(node, self.me.node, "asks itself"),
                _ => {}
            }
        }
    }

    fn look_at(&mut self, roster: &Roster) {
        assert!(roster.members.len() <= MEMBERS_MAX + 1, "{} members", roster.members.len());
        self.me = self.core.identity();
        assert_eq!(roster.me, self.me.node);
        assert_eq!(roster.members.iter().filter(|member| member.id == self.me.node).count(), 1, "stands there once");
        self.others = roster.members.len();
    }

    /// A message that is well formed, from one of a few nodes, mostly to this run.
    fn message(&self, script: &mut Script<'_>) -> Vec<u8> {
        let from = self.identity(script);
        let to = match script.byte() {
            0 => Tag::ANYBODY,
            1 => Tag::of(NodeId(script.number())),
            _ => Tag::of(self.me.node),
        };
        let stamp = Stamp { node: from.node, to, addr: from.addr, version: script.number() as u32 };
        let number = script.number();
        let body = match script.byte() % 16 {
            0..=7 => return message::encode(&stamp, Message::Swim(&self.packet(from, script))),
            8 | 9 => {
                let apps = apps(script);
                let states = apps.iter().map(|_| state(script.byte())).collect();
                let digest = digest_of(&encode_apps(&apps));
                let apps = if script.byte() == 1 { Apps::Digest(digest) } else { Apps::Inline(apps) };
                let record = Record {
                    node: if script.byte() == 1 { self.node(script.byte()) } else { from.node },
                    version: number as u32,
                    name: node_name(script.byte()),
                    role: if script.byte().is_multiple_of(2) { Role::Backend } else { Role::Balancer },
                    is_leaving: script.byte() == 1,
                    states,
                    apps,
                };
                return message::encode(&stamp, Message::Record(&record.encode()));
            }
            10 => Message::Ask,
            11 => Message::Ack(number as u32),
            12 => Message::Echo(number as u32),
            13 => Message::Echoed(number as u32),
            14 => Message::Welcome,
            _ => Message::Stale(number),
        };
        message::encode(&stamp, body)
    }

    fn packet(&self, from: Identity, script: &mut Script<'_>) -> Vec<u8> {
        let (probe_number, kind) = (script.byte(), script.byte() % 16);
        let about = if kind >= 8 { self.identity(script) } else { from };
        let message = match kind {
            0 => foca::Message::Announce,
            1 => foca::Message::Feed,
            2 | 3 => foca::Message::Gossip,
            4 => foca::Message::Broadcast,
            5 => foca::Message::TurnUndead,
            6 => foca::Message::Ping(probe_number),
            7 => foca::Message::Ack(probe_number),
            8 => foca::Message::PingReq { target: about, probe_number },
            9 => foca::Message::IndirectPing { origin: about, probe_number },
            10 => foca::Message::IndirectAck { target: about, probe_number },
            11 => foca::Message::ForwardedAck { origin: about, probe_number },
            _ => foca::Message::Gossip,
        };
        let dst = match script.byte() {
            0 => self.identity(script),
            1 => Identity::unknown_at(self.me.addr),
            _ => self.me,
        };
        let header = Header { src: from, src_incarnation: script.number() as u16, dst, message };
        let mut packet = BytesMut::with_capacity(2048);
        Codec.encode_header(&header, &mut packet).expect("there is room");
        let count = script.byte() % 32;
        packet.extend(u16::from(count).to_be_bytes());
        for _ in 0..count {
            let state = [State::Alive, State::Suspect, State::Down][usize::from(script.byte() % 3)];
            let member = Member::new(self.identity(script), script.number() as u16, state);
            Codec.encode_member(&member, &mut packet).expect("there is room");
        }
        packet.to_vec()
    }

    /// One of a few nodes at a few addresses: what they say is to meet. Sometimes one of very many.
    fn identity(&self, script: &mut Script<'_>) -> Identity {
        let node = script.byte();
        if node == 255 {
            let many = script.short();
            let address = SocketAddr::from(([10, 1, (many >> 8) as u8, many as u8], 7377));
            return Identity::new(address, script.number(), NodeId(1000 + u64::from(many)));
        }
        let address = if script.byte() == 1 { address(script.byte()) } else { address(node % 8 + 1) };
        Identity::new(address, script.number(), self.node(node))
    }

    fn node(&self, number: u8) -> NodeId {
        match number {
            254 => self.me.node,
            253 => NodeId(0),
            few => NodeId(100 + u64::from(few % 8)),
        }
    }
}

/// This node's is number 0.
fn address(number: u8) -> SocketAddr {
    match number {
        255 => ([0, 0, 0, 0], 0).into(),
        254 => ([224, 0, 0, 1], 7377).into(),
        253 => "[2001:db8::1]:7377".parse().expect("an address"),
        252 => "[::ffff:10.0.0.1]:7377".parse().expect("an address"),
        few => ([10, 0, 0, few], 7377).into(),
    }
}

fn node_name(number: u8) -> crate::name::NodeName {
    format!("node-{}", number % 8).parse().expect("a name")
}

fn state(number: u8) -> AppState {
    [AppState::Starting, AppState::Ready, AppState::Draining][usize::from(number % 3)]
}

/// Applications that an offer may hold, in their order: few, or so many that they travel by their digest.
fn apps(script: &mut Script<'_>) -> Vec<App> {
    let count = match script.byte() {
        255 => 256,
        // About as many as fit a datagram, and more.
        some @ 200.. => usize::from(some - 190),
        few => usize::from(few % 5),
    };
    let domains = usize::from(script.byte() % 4);
    let mut apps: Vec<App> = (0..count)
        .map(|nth| {
            let mut app = App {
                name: format!("app-{nth:03}").parse().expect("a name"),
                protocol: Protocol::Http,
                port: Port::new(8080).expect("a port"),
                listen: Port::new(80).expect("a port"),
                domains: (0..domains).map(|i| format!("a{nth}-{i}.example.com").parse().expect("a domain")).collect(),
                path: PathPrefix::root(),
                weight: Weight::default(),
                policy: None,
                proxy_protocol: None,
            };
            app.normalize();
            app
        })
        .collect();
    apps.sort();
    apps
}
