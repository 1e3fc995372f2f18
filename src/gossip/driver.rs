//! Owns the sockets: chooses one input, lets `core` decide, does what it says. Decides nothing itself.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, warn};

use super::core::{Core, Dropped, Effect, Input, Settings};
use super::identity::Identity;
use super::seal::{Channel, Keyring, Opener, Refusal, Sealer};
use super::stream::{self, Served};
use super::{Bound, Command};
use crate::app::App;
use crate::log::Limiter;
use crate::member::{NodeId, Roster};
use crate::name::ClusterName;
use crate::report::{GossipCounters, JoinReport};

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
    counters: Arc<GossipCounters>,
}

impl Outputs {
    pub(super) fn new(
        cluster: &ClusterName,
        me: NodeId,
        counters: Arc<GossipCounters>,
    ) -> (Self, watch::Receiver<Arc<Roster>>, watch::Receiver<Arc<JoinReport>>) {
        let empty = Roster { cluster: cluster.clone(), me, members: Vec::new() };
        let (roster, roster_rx) = watch::channel(Arc::new(empty));
        let (join, join_rx) = watch::channel(Arc::new(JoinReport { alone: true, contacts: Vec::new() }));
        (Self { roster, join, counters }, roster_rx, join_rx)
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
        let sealer = Arc::new(Sealer::new(Arc::clone(&keyring)));
        let (results_tx, results) = mpsc::channel(RESULTS_MAX);
        let (served, served_rx) = watch::channel(Served::default());
        tokio::spawn(stream::serve(tcp, Arc::clone(&keyring), Arc::clone(&sealer), served_rx));
        let wall = SystemTime::now();
        let epoch = wall.duration_since(UNIX_EPOCH).map_or(1, |since| u64::try_from(since.as_millis()).unwrap_or(1));
        let identity = Identity::new(self.advertise, epoch, self.id);
        let settings = Settings { cluster: config.cluster, identity, name: config.name, role: config.role };
        Loop {
            is_ipv6: udp.local_addr()?.is_ipv6(),
            udp,
            core: Core::new(settings, Instant::now(), wall, rand::random()),
            opener: Opener::new(Arc::clone(&keyring)),
            keyring,
            sealer,
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
    keyring: Arc<Keyring>,
    opener: Opener,
    sealer: Arc<Sealer>,
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
        self.act();
        while !self.has_left {
            let event = self.choose().await;
            let began = Instant::now();
            match event {
                Event::Readable => {}
                Event::Command(Command::Seeds(found)) => self.decide(Input::Seeds(found)),
                Event::Command(Command::Offer(offer)) => self.decide(Input::Offer(offer)),
                Event::Command(Command::Advertise(addr)) => self.decide(Input::Advertise(addr)),
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
        let counters = &self.outputs.counters;
        match self.core.handle(Instant::now(), input) {
            Ok(()) => {}
            Err(Dropped::Invalid) => counters.dropped_invalid.inc(),
            Err(Dropped::Misaddressed) => counters.dropped_misaddressed.inc(),
            Err(Dropped::Excess) => counters.dropped_excess.inc(),
        }
        self.act();
    }

    fn act(&mut self) {
        while let Some(effect) = self.core.next_effect() {
            match effect {
                Effect::Send { to, message } => self.send(to, &message),
                Effect::Pull { from, node, digest } => self.pull(from, node, digest),
                Effect::Contact(addr) => self.contact(addr),
                Effect::Serve { digest, apps } => drop(self.served.send_replace(Served { digest, apps })),
                Effect::Roster(roster) => drop(self.outputs.roster.send_replace(roster)),
                Effect::Join(join) => drop(self.outputs.join.send_replace(join)),
                Effect::Heard => self.tell_waiters(),
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
        match self.opener.open(envelope) {
            Ok(message) => self.decide(Input::Message(message)),
            Err(Refusal::Malformed) => counters.dropped_malformed.inc(),
            Err(Refusal::Replayed) => counters.dropped_replayed.inc(),
            Err(Refusal::Unauthenticated) => {
                counters.dropped_unauthenticated.inc();
                self.warn("foreign", Instant::now(), || {
                    format!(
                        "a datagram from {from} is not sealed with our cluster key for our cluster name: dropped; if \
                         that is a node of ours, give it the same cluster.key file and the same cluster.name"
                    )
                });
            }
        }
    }

    fn send(&mut self, to: SocketAddr, message: &[u8]) {
        let envelope = self.sealer.seal(Channel::Datagram, message);
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
        let (keyring, sealer, results) = (Arc::clone(&self.keyring), Arc::clone(&self.sealer), self.results_tx.clone());
        tokio::spawn(async move {
            let result = stream::pull(from, digest, &keyring, &sealer).await;
            if let Err(error) = &result {
                debug!("gossip: cannot fetch what {from} offers: {error}");
            }
            let _ = results.send(Event::Pulled { node, digest, result }).await;
        });
    }

    fn contact(&self, addr: SocketAddr) {
        let (keyring, sealer, results) = (Arc::clone(&self.keyring), Arc::clone(&self.sealer), self.results_tx.clone());
        tokio::spawn(async move {
            let outcome = stream::contact(addr, &keyring, &sealer).await;
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
