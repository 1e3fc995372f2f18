//! Membership by encrypted gossip: who is there, and what each offers.
//!
//! `core` decides and touches nothing; `driver` owns the sockets and tells it what happened; `seal` lets nothing
//! in that was not sealed with the cluster key, and `peers` knows with which key to seal for whom. Everything another
//! room needs comes out of [`Gossip`]. What is promised is measured in `simulation`, on a virtual clock, by the
//! benchmark `gossip`.
//!
//! ```text
//!            datagram                     message              effects
//!  UDP ────────────────► seal (open) ───────────────► core ────────────────► driver: seal, send, pull, publish
//!  TCP ◄───────────────► stream: large offers, and "are you there?"
//! ```

mod codec;
mod core;
mod driver;
mod identity;
mod message;
mod peers;
mod record;
mod replay;
mod seal;
#[cfg(any(test, feature = "testing"))]
pub mod simulation;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::{mpsc, oneshot, watch};

#[cfg(feature = "testing")]
pub use seal::sealing;
pub use seal::{ClusterKey, KEYS_MAX};

use crate::app::Offer;
use crate::member::{NodeId, Role, Roster};
use crate::name::{ClusterName, NodeName};
use crate::report::{GossipCounters, JoinReport, KeyReport};

/// Settings of the gossip (`[cluster]`, and of `[node]` what concerns it).
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// Its keys; the first seals, all open. None: only loopback addresses are allowed.
    pub keys: Vec<ClusterKey>,
    /// This node's name.
    pub name: NodeName,
    /// What this node is for.
    pub role: Role,
    /// Where to listen, UDP and TCP; port 0 takes one that is free for both.
    pub bind: SocketAddr,
}

/// The sockets, bound; nothing runs yet.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    udp: UdpSocket,
    tcp: TcpListener,
    address: SocketAddr,
}

/// A running membership.
#[derive(Debug)]
pub struct Gossip {
    /// This run of this node.
    pub id: NodeId,
    /// Everybody, as one immutable value.
    pub roster: watch::Receiver<Arc<Roster>>,
    /// Whether this node is alone, and why.
    pub join: watch::Receiver<Arc<JoinReport>>,
    /// Which cluster keys this node and the others have.
    pub keys: watch::Receiver<Arc<KeyReport>>,
    /// What was counted.
    pub counters: Arc<GossipCounters>,
    has_keys: bool,
    commands: mpsc::Sender<Command>,
}

/// What other rooms may tell the gossip. Bounded: senders wait.
#[derive(Debug)]
enum Command {
    Seeds(Vec<SocketAddr>),
    Offer(Offer),
    Advertise(SocketAddr),
    Rekey(Vec<ClusterKey>, oneshot::Sender<()>),
    Heard(oneshot::Sender<()>),
    Leave(oneshot::Sender<()>),
}

/// Commands under way at once; each is handled in microseconds.
const COMMANDS_MAX: usize = 64;

impl Bound {
    /// Binds UDP and TCP of one port number.
    ///
    /// # Errors
    /// When the address cannot be had, or is not loopback and there is no key.
    pub fn bind(config: Config) -> anyhow::Result<Self> {
        anyhow::ensure!(
            !config.keys.is_empty() || config.bind.ip().is_loopback(),
            "there is no cluster key, and {} is not a loopback address: make a key with `scrimp keygen` and give it \
             to every node (cluster.key), or bind to 127.0.0.1",
            config.bind
        );
        anyhow::ensure!(
            config.keys.len() <= KEYS_MAX,
            "{} cluster keys, but at most {KEYS_MAX} are tried",
            config.keys.len()
        );
        let is_any_port = config.bind.port() == 0;
        // A port that is free for UDP may be taken for TCP; the system's next choice hardly is too.
        for _ in 0..if is_any_port { 16 } else { 1 } {
            let udp = bind_udp(config.bind).map_err(|error| refused("UDP", config.bind, &error))?;
            let address = udp.local_addr()?;
            match bind_tcp(address) {
                Ok(tcp) => return Ok(Self { config, udp, tcp, address }),
                Err(error) if !is_any_port => return Err(refused("TCP", address, &error)),
                Err(_) => {}
            }
        }
        anyhow::bail!("no port is free for both UDP and TCP on {}", config.bind.ip())
    }

    /// Where the sockets are bound.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts the membership on a thread of its own, reached by others at `advertise`.
    ///
    /// # Errors
    /// When `advertise` is no address that others can use, is not loopback and there is no key, or when the
    /// thread cannot be made.
    pub fn start(self, advertise: SocketAddr, counters: Arc<GossipCounters>) -> anyhow::Result<Gossip> {
        self.check_advertise(advertise)?;
        let id = NodeId(rand::random());
        let (commands, commands_rx) = mpsc::channel(COMMANDS_MAX);
        let (outputs, published) = driver::Outputs::new(&self.config.cluster, id, Arc::clone(&counters));
        let has_keys = !self.config.keys.is_empty();
        let driver = driver::Driver { bound: self, id, advertise, commands: commands_rx, outputs };
        std::thread::Builder::new()
            .name("gossip".to_owned())
            .spawn(move || driver.run())
            .context("cannot start the gossip thread")?;
        let driver::Published { roster, join, keys } = published;
        Ok(Gossip { id, roster, join, keys, counters, has_keys, commands })
    }

    fn check_advertise(&self, advertise: SocketAddr) -> anyhow::Result<()> {
        let ip = advertise.ip();
        anyhow::ensure!(
            !ip.is_unspecified() && !ip.is_multicast() && advertise.port() != 0,
            "{advertise} is no address that other nodes can reach: set node.advertise to one that they can \
             (`scrimp addresses` lists this machine's)"
        );
        anyhow::ensure!(
            !self.config.keys.is_empty() || ip.is_loopback(),
            "there is no cluster key, and {advertise} is not a loopback address: make a key with `scrimp keygen`"
        );
        Ok(())
    }
}

impl Gossip {
    /// Tells where other nodes may be.
    pub async fn seeds(&self, found: Vec<SocketAddr>) {
        self.command(Command::Seeds(found)).await;
    }

    /// Tells what this node offers from now on. The caller has checked it ([`Offer::check`]).
    pub async fn offer(&self, offer: Offer) {
        self.command(Command::Offer(offer)).await;
    }

    /// Seals and opens with these keys from now on, the first preferred; returns when it is so. Nothing that is
    /// under way is lost, and members that share a key with this node go on hearing it.
    ///
    /// # Errors
    /// When there are too many, or none and there were some, or the other way round: a cluster does not become
    /// open, or closed, while it runs. The old ones stay.
    pub async fn rekey(&self, keys: Vec<ClusterKey>) -> anyhow::Result<()> {
        anyhow::ensure!(keys.len() <= KEYS_MAX, "{} cluster keys, but at most {KEYS_MAX} are tried", keys.len());
        match (self.has_keys, keys.is_empty()) {
            (true, true) => anyhow::bail!("a node that runs with a cluster key goes on with one until it is restarted"),
            (false, false) => anyhow::bail!("a node that runs without a cluster key takes one when it is restarted"),
            (false, true) => return Ok(()),
            (true, false) => {}
        }
        let (said, heard) = oneshot::channel();
        self.command(Command::Rekey(keys, said)).await;
        let _ = heard.await;
        Ok(())
    }

    /// Waits until everybody has what was offered last, or could not be reached; whether that was so within `limit`.
    pub async fn heard(&self, limit: Duration) -> bool {
        let (said, heard) = oneshot::channel();
        self.command(Command::Heard(said)).await;
        tokio::time::timeout(limit, heard).await.is_ok()
    }

    /// Tells where this node is reached; heeded while it is alone.
    pub async fn advertise(&self, address: SocketAddr) {
        self.command(Command::Advertise(address)).await;
    }

    /// Says goodbye and ends; returns when the others had a chance to hear it, after 2 s at most.
    pub async fn leave(&self) {
        let (said, heard) = oneshot::channel();
        self.command(Command::Leave(said)).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), heard).await;
    }

    async fn command(&self, command: Command) {
        // The driver ends only after a goodbye; what comes later has no one to hear it.
        let _ = self.commands.send(command).await;
    }
}

fn bind_udp(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Room for a burst while the thread waits for its turn on a small machine; less is no reason to fail.
    let _ = socket.set_recv_buffer_size(1 << 20);
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket.into())
}

fn bind_tcp(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(64)?;
    Ok(socket.into())
}

/// Why the gossip's address cannot be had, and what to do.
fn refused(kind: &str, address: SocketAddr, error: &std::io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "is another scrimp running here? Stop it, or set node.bind (--bind) to a free port"
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address: set node.bind (--bind) to one that it has (`scrimp addresses` \
             lists them)"
        }
        _ => "set node.bind (--bind) to another address or port",
    };
    anyhow::anyhow!("cannot listen for gossip at {kind} {address}: {error}: {remedy}")
}
