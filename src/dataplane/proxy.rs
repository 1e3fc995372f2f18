//! The data path: accepts clients and passes their connections and requests on.
//!
//! A manager follows the pools, opens and closes listen ports, and publishes both to the workers. Each worker is a
//! thread with a runtime of its own; a connection lives and dies on the worker that accepted it, and workers share
//! nothing but sockets that listen, counters and the pools. `tcp`, `http1`, `http2` and `udp` say what becomes of a
//! connection or a datagram, `forward` how a request finds its backend.

mod accept;
mod alarm;
mod bell;
mod clock;
mod dial;
mod forward;
mod gone;
mod http1;
mod http2;
mod idle;
mod listen;
mod manager;
mod memory;
mod pace;
mod page;
mod proxy_protocol;
mod relay;
mod splice;
mod stream;
mod tcp;
pub mod tls;
mod tried;
mod tunnel;
mod udp;
mod upstream;
mod worker;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{JoinHandle, available_parallelism};
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::certificate::Certificate;
use crate::name::{Hostname, Port};
use crate::pool::Pools;
use crate::report::{ListenReport, ProxyCounters};
use accept::Admission;
#[cfg(feature = "testing")]
pub use http1::testing;

#[cfg(feature = "testing")]
pub use proxy_protocol::check as check_proxy_protocol;

/// The running proxy. Dropping it ends every connection at once; [`Proxy::drain`] is the polite way.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    listeners: watch::Receiver<Arc<Vec<ListenReport>>>,
    workers: Vec<JoinHandle<()>>,
}

/// What the manager and all workers know in common.
#[derive(Debug)]
struct Shared {
    config: ArcSwap<Config>,
    counters: Arc<ProxyCounters>,
    tls: tls::Tls,
    /// Woken when the settings have changed.
    reconfigured: Notify,
    admission: Admission,
    /// Where connections are accepted.
    listening: ArcSwap<Vec<SocketAddr>>,
    /// Where datagrams are.
    listening_udp: ArcSwap<Vec<SocketAddr>>,
    /// Changes when pools are published and their loads have been told.
    told: watch::Sender<()>,
    /// Nothing new is accepted, and what is open comes to its end.
    draining: CancellationToken,
    /// Everything ends now.
    stop: CancellationToken,
}

impl Proxy {
    /// Starts the workers and the task that follows the pools. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When a certificate is not as it must be, or a worker's thread or runtime cannot be made.
    pub fn start(
        config: Config,
        pools: watch::Receiver<Arc<Pools>>,
        counters: Arc<ProxyCounters>,
    ) -> anyhow::Result<Self> {
        let worker_count = match config.workers {
            0 => available_parallelism().map_or(1, NonZeroUsize::get),
            some => some,
        };
        let shared = Arc::new(Shared {
            tls: tls::Tls::new(&config)?,
            reconfigured: Notify::new(),
            admission: Admission::new(&config.limits, worker_count),
            config: ArcSwap::from_pointee(config),
            counters,
            listening: ArcSwap::default(),
            listening_udp: ArcSwap::default(),
            told: watch::Sender::new(()),
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
        });
        let (manager, outlets) = manager::Manager::new(Arc::clone(&shared), worker_count, pools);
        let workers = (0..worker_count)
            .map(|index| worker::spawn(index, &shared, outlets.pools.clone(), outlets.sockets.clone()))
            .collect::<anyhow::Result<Vec<_>>>()
            .context("the proxy's workers do not start")
            .inspect_err(|_| shared.stop.cancel())?;
        tokio::spawn(manager.run());
        tokio::spawn(memory::run(Arc::clone(&shared)));
        Ok(Self { shared, listeners: outlets.reports, workers })
    }

    /// The listen ports: where they are open, and why not, as they change.
    #[must_use]
    pub fn listeners(&self) -> watch::Receiver<Arc<Vec<ListenReport>>> {
        self.listeners.clone()
    }

    /// Reads the certificates that `config` names, for clients and to judge backends by. The next handshakes use them;
    /// connections that are open stay as they are.
    ///
    /// # Errors
    /// When one of them is not as it must be; those in use stay in use then.
    pub fn reload_certificates(&self, config: &Config) -> Result<(), tls::TlsError> {
        self.shared.tls.reload(config)?;
        self.shared.reconfigured.notify_one();
        Ok(())
    }

    /// Takes over the settings that may change while running: what becomes of connections whose backend is gone,
    /// deadlines and limits. What is open keeps the deadlines it began with. Addresses to bind and the number of
    /// workers stay as they were at the start.
    pub fn reconfigure(&self, config: Config) {
        let old = self.shared.config.load_full();
        self.shared.admission.set_limits(&config.limits);
        self.shared.config.store(Arc::new(Config { bind: old.bind.clone(), workers: old.workers, ..config }));
        self.shared.reconfigured.notify_one();
    }

    /// Closes the listen ports, lets what is open finish until `deadline` has passed, then ends it. A UDP flow has
    /// finished when it has its answer, or has waited a second for one. Returns how many connections were cut.
    pub async fn drain(mut self, deadline: Duration) -> usize {
        self.shared.draining.cancel();
        let _ = tokio::time::timeout(deadline, self.shared.admission.all_closed()).await;
        let cut = self.shared.admission.open();
        self.shared.stop.cancel();
        let workers = std::mem::take(&mut self.workers);
        // Threads that end within moments, but a join may not block this runtime.
        let _ = tokio::task::spawn_blocking(move || workers.into_iter().for_each(|worker| drop(worker.join()))).await;
        cut
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// Settings of the proxy (`[lb]`, `[lb.timeouts]`, `[lb.limits]`).
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses on which listen ports open.
    pub bind: Vec<IpAddr>,
    /// Worker threads; 0: one a core.
    pub workers: usize,
    /// What becomes of open connections of a backend that is gone.
    pub on_removal: OnRemoval,
    /// Whose `X-Forwarded-…` are believed and added to; everybody else's are replaced.
    pub trusted_proxies: Vec<IpNet>,
    /// Certificates for clients, in order of preference. With any, HTTP ports but one speak TLS.
    pub certificates: Vec<Certificate>,
    /// What follows from there being certificates.
    pub https: Https,
    /// How backends with TLS prove who they are.
    pub backend_tls: BackendTls,
    /// Listen ports at which those say in the PROXY protocol whose connection it is; others are who they are.
    pub proxy_protocol: Vec<Port>,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Bounds.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bind: vec![IpAddr::from([0, 0, 0, 0]), IpAddr::from([0_u16; 8])],
            workers: 0,
            on_removal: OnRemoval::default(),
            trusted_proxies: Vec::new(),
            certificates: Vec::new(),
            https: Https::default(),
            backend_tls: BackendTls::default(),
            proxy_protocol: Vec::new(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
        }
    }
}

/// What follows from there being certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Https {
    /// Whether requests at `clear_port` that have no route there are led to `tls_port`.
    pub redirect: bool,
    /// What `Strict-Transport-Security` says in every answer over TLS; none: it is not there.
    pub hsts: Option<String>,
    /// The HTTP port that never speaks TLS: 80 but in tests.
    pub clear_port: Port,
    /// Where requests are led: 443 but in tests.
    pub tls_port: Port,
}

impl Default for Https {
    fn default() -> Self {
        let [clear_port, tls_port] = const { [Port::new(80).unwrap(), Port::new(443).unwrap()] };
        Self { redirect: true, hsts: None, clear_port, tls_port }
    }
}

/// How backends with TLS prove who they are (`[lb.backend-tls]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendTls {
    /// Whether they must at all.
    pub verify: bool,
    /// A PEM file of authorities, or of the backends' own certificates; none: the authorities that this machine knows.
    pub ca: Option<PathBuf>,
    /// The name that all their certificates are for; none: each for its application's first domain, its node's name or
    /// its node's address.
    pub server_name: Option<Hostname>,
}

impl Default for BackendTls {
    fn default() -> Self {
        Self { verify: true, ca: None, server_name: None }
    }
}

impl Config {
    /// Whether what `peer` says of those behind it is believed.
    fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|net| net.contains(&peer.to_canonical()))
    }
}

/// What becomes of open connections of a backend that is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRemoval {
    /// They may finish.
    #[default]
    Drain,
    /// They are ended.
    Kill,
}

/// How long a peer may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// A backend, to accept a connection.
    pub connect: Duration,
    /// A client, from accept to the first byte.
    pub first_byte: Duration,
    /// A client, for a whole request header.
    pub header: Duration,
    /// Either side, between two pieces of a body; and a client, for what it falls behind with a body of a known length, of which
    /// 128 bytes a second are expected.
    pub body_progress: Duration,
    /// A client, between two requests.
    pub idle: Duration,
    /// A backend, from the whole request to the response header.
    pub response: Duration,
    /// A TCP connection on which nothing moves.
    pub tcp_idle: Duration,
    /// A UDP flow on which nothing moves.
    pub udp_idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            first_byte: Duration::from_secs(10),
            header: Duration::from_secs(10),
            body_progress: Duration::from_secs(30),
            idle: Duration::from_secs(75),
            response: Duration::from_secs(60),
            tcp_idle: Duration::from_secs(3600),
            udp_idle: Duration::from_secs(30),
        }
    }
}

/// How much a peer may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Client connections, overall; none, or more than the descriptor limit bears: what it bears.
    pub connections: Option<u32>,
    /// Client connections and UDP flows for one application; none: no limit of its own.
    pub app_connections: Option<u32>,
    /// UDP flows, overall; fewer if there are not as many descriptors.
    pub udp_flows: u32,
    /// Bytes of a request's header.
    pub header_bytes: usize,
    /// Fields of a request's header.
    pub header_fields: usize,
    /// Bytes of a request's target.
    pub target_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: None,
            app_connections: None,
            // About 40 MB of memory, most of it the kernel's.
            udp_flows: 10_000,
            header_bytes: 32 * 1024,
            header_fields: 100,
            target_bytes: 8 * 1024,
        }
    }
}
