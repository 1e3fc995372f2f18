//! Owns the sockets: chooses one input, lets `core` decide, does what it says. Decides nothing itself.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, warn};

use super::core::{Core, Dropped, Effect, Input, Settings};
use super::identity::Identity;
use super::peers::Peers;
use super::seal::{Channel, ClusterKey, KeySet, Keyring, Opener, Refusal, Sealer};
use super::stream::{self, Keys, Served};
use super::{Bound, Command};
use crate::app::App;
use crate::log::Limiter;
use crate::member::{NodeId, Roster};
use crate::name::ClusterName;
use crate::report::{GossipCounters, JoinReport, KeyId, KeyReport};

/// Datagrams taken in before timers get their turn: answers that are here already must be heard before somebody
/// is called silent.
const DATAGRAMS_A_TURN: usize = 64;

/// A turn longer than this looks like death to the others.
const SLOW_TURN: Duration = Duration::from_millis(250);

/// How often one kind of warning is said: what a stranger sends must not fill the log.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Answers of pulls and contacts under way; there are never more than a few.
const RESULTS_MAX: usize = 64;

/// Where what the gossip knows comes out.
pub(super) struct Outputs {
    roster: watch::Sender<Arc<Roster>>,
    join: watch::Sender<Arc<JoinReport>>,
    keys: watch::Sender<Arc<KeyReport>>,
    counters: Arc<GossipCounters>,
}

/// The other ends of [`Outputs`].
pub(super) struct Published {
    pub(super) roster: watch::Receiver<Arc<Roster>>,
    pub(super) join: watch::Receiver<Arc<JoinReport>>,
    pub(super) keys: watch::Receiver<Arc<KeyReport>>,
}

impl Outputs {
    pub(super) fn new(cluster: &ClusterName, me: NodeId, counters: Arc<GossipCounters>) -> (Self, Published) {
        let empty = Roster { cluster: cluster.clone(), me, members: Vec::new() };
        let (roster, roster_rx) = watch::channel(Arc::new(empty));
        let (join, join_rx) = watch::channel(Arc::new(JoinReport { alone: true, contacts: Vec::new() }));
        let (keys, keys_rx) = watch::channel(Arc::default());
        let published = Published { roster: roster_rx, join: join_rx, keys: keys_rx };
        (Self { roster, join, keys, counters }, published)
    }
}

pub(super) struct Driver {
    pub(super) bound: Bound,
    pub(super) id: NodeId,
    pub(super) advertise: SocketAddr,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) outputs: Outputs,
}

/// What the loop waits for.
enum Event {
    Readable,
    Command(Command),
    Pulled {
        node: NodeId,
        digest: [u8; 16],
        result: Result<Vec<App>, String>,
    },
    Contacted {
        addr: SocketAddr,
        outcome: String,
    },
    Deadline,
    /// Nobody can command any more.
    Abandoned,
}

impl Driver {
    /// The thread's whole life.
    pub(super) fn run(self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => {
                if let Err(error) = runtime.block_on(self.serve()) {
                    tracing::error!("gossip ended: {error}");
                }
            }
            Err(error) => tracing::error!("gossip cannot start: {error}"),
        }
    }

    async fn serve(self) -> std::io::Result<()> {
        let udp = UdpSocket::from_std(self.bound.udp)?;
        // Until the first event the runtime takes the socket for not writable, and would drop what is sent.
        udp.writable().await?;
        let tcp = tokio::net::TcpListener::from_std(self.bound.tcp)?;
        let config = self.bound.config;
        let keyring = Arc::new(Keyring::new(config.cluster.clone(), &config.keys));
        let opener = Opener::new(Channel::Datagram, &keyring);
        let questions = Arc::new(Mutex::new(Opener::new(Channel::Stream, &keyring)));
        let sealer = Arc::new(Sealer::new(&keyring));
        let (keys, keys_rx) = watch::channel(Keys { keyring, sealer });
        let (results_tx, results) = mpsc::channel(RESULTS_MAX);
        let (served, served_rx) = watch::channel(Served::default());
        let counters = Arc::clone(&self.outputs.counters);
        tokio::spawn(stream::serve(tcp, keys_rx, Arc::clone(&questions), served_rx, counters));
        let wall = SystemTime::now();
        let epoch = wall.duration_since(UNIX_EPOCH).map_or(1, |since| u64::try_from(since.as_millis()).unwrap_or(1));
        let identity = Identity::new(self.advertise, epoch, self.id);
        let settings = Settings { cluster: config.cluster, identity, name: config.name, role: config.role };
        Loop {
            is_ipv6: udp.local_addr()?.is_ipv6(),
            udp,
            core: Core::new(settings, Instant::now(), wall, rand::random()),
            has_keys: !config.keys.is_empty(),
            opener,
            questions,
            keys,
            peers: Peers::default(),
            served,
            commands: self.commands,
            results,
            results_tx,
            outputs: self.outputs,
            warnings: Limiter::new(WARN_EVERY),
            leaver: None,
            waiters: Vec::new(),
            has_left: false,
        }
        .run()
        .await;
        Ok(())
    }
}

struct Loop {
    udp: UdpSocket,
    is_ipv6: bool,
    core: Core,
    /// Without a key one that everybody knows is used, and not spoken of.
    has_keys: bool,
    opener: Opener,
    /// Opens what is asked over TCP.
    questions: Arc<Mutex<Opener>>,
    keys: watch::Sender<Keys>,
    peers: Peers,
    served: watch::Sender<Served>,
    commands: mpsc::Receiver<Command>,
    results: mpsc::Receiver<Event>,
    results_tx: mpsc::Sender<Event>,
    outputs: Outputs,
    warnings: Limiter,
    leaver: Option<oneshot::Sender<()>>,
    waiters: Vec<oneshot::Sender<()>>,
    has_left: bool,
}

impl Loop {
    async fn run(mut self) {
        self.publish_keys();
        self.act();
        while !self.has_left {
            let event = self.choose().await;
            let began = Instant::now();
            match event {
                Event::Readable => {}
                Event::Command(Command::Seeds(found)) => self.decide(Input::Seeds(found)),
                Event::Command(Command::Offer(offer)) => self.decide(Input::Offer(offer)),
                Event::Command(Command::Advertise(addr)) => self.decide(Input::Advertise(addr)),
                Event::Command(Command::Rekey(keys, said)) => {
                    self.rekey(&keys);
                    let _ = said.send(());
                }
                Event::Command(Command::Heard(said)) => self.tell_when_heard(said),
                Event::Command(Command::Leave(said)) => {
                    self.leaver = Some(said);
                    self.decide(Input::Leave);
                }
                Event::Pulled { node, digest, result } => {
                    match &result {
                        Ok(_) => self.outputs.counters.offers_pulled.inc(),
                        Err(_) => self.outputs.counters.offer_pulls_failed.inc(),
                    }
                    self.decide(Input::Pulled { node, digest, result });
                }
                Event::Contacted { addr, outcome } => {
                    self.warn("contact", began, || format!("seed {addr} does not let this node in: {outcome}"));
                    self.decide(Input::Contacted { addr, outcome });
                }
                Event::Deadline => {}
                Event::Abandoned => return,
            }
            self.read_datagrams();
            if self.core.next_deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                self.decide(Input::Wake);
            }
            if began.elapsed() > SLOW_TURN {
                let held_up = began.elapsed().as_millis();
                self.warn("slow", began, || {
                    format!("the gossip was held up for {held_up} ms: others may suspect this node")
                });
            }
        }
        // What goodbye said is on its way; the thread may end.
        self.leaver.take().map(|said| said.send(()));
    }

    async fn choose(&mut self) -> Event {
        let deadline = self.core.next_deadline().map(tokio::time::Instant::from_std);
        tokio::select! {
            biased;
            command = self.commands.recv() => command.map_or(Event::Abandoned, Event::Command),
            Some(event) = self.results.recv() => event,
            _ = self.udp.readable() => Event::Readable,
            () = sleep_until(deadline) => Event::Deadline,
        }
    }

    fn decide(&mut self, input: Input<'_>) {
        self.handle(input);
        self.act();
    }

    /// Lets the core decide; whether that was for anything.
    fn handle(&mut self, input: Input<'_>) -> bool {
        let counters = &self.outputs.counters;
        match self.core.handle(Instant::now(), input) {
            Ok(()) => return true,
            Err(Dropped::Invalid) => counters.dropped_invalid.inc(),
            Err(Dropped::Misaddressed) => counters.dropped_misaddressed.inc(),
            Err(Dropped::Excess) => counters.dropped_excess.inc(),
        }
        false
    }

    fn act(&mut self) {
        while let Some(effect) = self.core.next_effect() {
            match effect {
                Effect::Send { to, message } => self.send(to, &message),
                Effect::Pull { from, node, digest } => self.pull(from, node, digest),
                Effect::Contact(addr) => self.contact(addr),
                Effect::Serve { digest, apps } => drop(self.served.send_replace(Served { digest, apps })),
                Effect::Roster(roster) => {
                    self.peers.keep_members(&roster);
                    drop(self.outputs.roster.send_replace(roster));
                    self.publish_keys();
                }
                Effect::Join(join) => drop(self.outputs.join.send_replace(join)),
                Effect::Heard => self.tell_waiters(),
                Effect::Renewed => self.outputs.counters.renewals.inc(),
                Effect::Contested(addr) => {
                    self.warn("contested", Instant::now(), || {
                        format!(
                            "another node is at {addr} too, it seems: others take the two for one that keeps starting \
                             again. Give each an address of its own (`gossip.bind`, `gossip.advertise`), or stop one"
                        )
                    });
                }
                Effect::Left => self.has_left = true,
            }
        }
    }

    /// Says a thing once a minute at most, and then how often it held back.
    fn warn(&mut self, kind: &'static str, now: Instant, text: impl FnOnce() -> String) {
        match self.warnings.pass(kind, now) {
            None => {}
            Some(0) => warn!("{}", text()),
            Some(held_back) => warn!("{} (and {held_back} more like it since the last such line)", text()),
        }
    }

    fn tell_waiters(&mut self) {
        for said in self.waiters.drain(..) {
            let _ = said.send(());
        }
    }

    fn tell_when_heard(&mut self, said: oneshot::Sender<()>) {
        self.waiters.retain(|waiter| !waiter.is_closed());
        if self.core.is_heard() {
            let _ = said.send(());
        } else {
            self.waiters.push(said);
        }
    }

    fn read_datagrams(&mut self) {
        // One byte more than any datagram that is taken, so that a longer one shows.
        let mut buffer = [0; 1501];
        for _ in 0..DATAGRAMS_A_TURN {
            match self.udp.try_recv_from(&mut buffer) {
                Ok((length, from)) => self.open(from, &mut buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // An error here is about an earlier datagram of ours, never about the socket.
                Err(error) => debug!("gossip: receive: {error}"),
            }
        }
    }

    fn open(&mut self, from: SocketAddr, envelope: &mut [u8]) {
        let counters = Arc::clone(&self.outputs.counters);
        counters.datagrams_received.inc();
        if envelope.len() > 1500 {
            counters.dropped_malformed.inc();
            return;
        }
        let named = envelope.get(1).copied().unwrap_or_default();
        match self.opener.open(envelope) {
            Ok(opened) => {
                // Only of what was for this run, and before it is answered, so that the answer is sealed with a key
                // that its sender has.
                if self.handle(Input::Message(opened.message)) && self.peers.note(&opened) {
                    self.publish_keys();
                }
                self.act();
                self.peers.forget_guest();
            }
            Err(Refusal::Malformed) => counters.dropped_malformed.inc(),
            Err(Refusal::Replayed) => counters.dropped_replayed.inc(),
            Err(Refusal::UnknownKey) => {
                counters.dropped_unknown_key.inc();
                let keys = Arc::clone(&self.outputs.keys.borrow());
                self.warn_of_foreign(from, || {
                    let own: Vec<String> = keys.own.iter().map(ToString::to_string).collect();
                    format!(" (it names a key {named:02x}…, ours: {})", own.join(", "))
                });
            }
            Err(Refusal::Unauthenticated) => {
                counters.dropped_unauthenticated.inc();
                self.warn_of_foreign(from, String::new);
            }
        }
    }

    fn warn_of_foreign(&mut self, from: SocketAddr, why: impl FnOnce() -> String) {
        self.warn("foreign", Instant::now(), || {
            let why = why();
            format!(
                "a datagram from {from} is not sealed with our cluster key for our cluster name: dropped{why}; if that is \
                 a node of ours, give it the same cluster.key file and the same cluster.name"
            )
        });
    }

    fn publish_keys(&self) {
        let own = if self.has_keys { self.keys.borrow().keyring.ids() } else { KeySet::default() };
        let report = self.peers.report(own.as_slice(), &self.outputs.roster.borrow());
        self.outputs.keys.send_if_modified(|last| {
            let is_new = **last != report;
            if is_new {
                *last = Arc::new(report);
            }
            is_new
        });
    }

    /// Between two datagrams: what is under way and sealed with a key that stays is still opened.
    fn rekey(&mut self, keys: &[ClusterKey]) {
        let last = self.keys.borrow().clone();
        let keyring = Arc::new(last.keyring.with(keys));
        self.opener.rekey(&keyring);
        stream::lock(&self.questions).rekey(&keyring);
        let sealer = Arc::new(last.sealer.rekeyed(&keyring));
        self.keys.send_replace(Keys { keyring, sealer });
        self.publish_keys();
        // Everybody is to know which keys this node opens, before somebody takes another away.
        self.decide(Input::Rekeyed);
    }

    fn send(&mut self, to: SocketAddr, message: &[u8]) {
        let sealer = Arc::clone(&self.keys.borrow().sealer);
        for key in sealer.keys_for(self.peers.opens(to)).as_slice() {
            self.send_sealed(to, &sealer, *key, message);
        }
    }

    fn send_sealed(&self, to: SocketAddr, sealer: &Sealer, key: KeyId, message: &[u8]) {
        let envelope = sealer.seal(Channel::Datagram, key, message);
        let to = match to.ip() {
            IpAddr::V4(ip) if self.is_ipv6 => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
            _ => to,
        };
        // A datagram that cannot be sent is a datagram that was lost: the protocol bears it.
        if let Err(error) = self.udp.try_send_to(&envelope, to) {
            debug!("gossip: send to {to}: {error}");
            return;
        }
        self.outputs.counters.datagrams_sent.inc();
        self.outputs.counters.bytes_sent.add(envelope.len() as u64);
    }

    fn pull(&self, from: SocketAddr, node: NodeId, digest: [u8; 16]) {
        let (keys, results) = (self.keys.borrow().clone(), self.results_tx.clone());
        let opens = self.peers.opens(from).copied();
        tokio::spawn(async move {
            let result = stream::pull(from, digest, &keys, opens.as_ref()).await;
            if let Err(error) = &result {
                debug!("gossip: cannot fetch what {from} offers: {error}");
            }
            let _ = results.send(Event::Pulled { node, digest, result }).await;
        });
    }

    fn contact(&self, addr: SocketAddr) {
        let (keys, results) = (self.keys.borrow().clone(), self.results_tx.clone());
        tokio::spawn(async move {
            let outcome = stream::contact(addr, &keys).await;
            let _ = results.send(Event::Contacted { addr, outcome }).await;
        });
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
