//! What a running node tells, over HTTP on a unix socket or a TCP port.
//!
//! The wiring fills [`Sources`] with what every room publishes; this room only reads it. `show` turns it into
//! the values of [`view`], which the server writes as JSON and the client ([`client`]) reads again and prints as
//! tables ([`table`]).

mod address;
mod bind;
pub mod client;
mod metrics;
mod routes;
mod serve;
mod show;
pub mod table;
mod tally;
pub mod view;

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::member::{Role, Roster};
use crate::name::NodeName;
use crate::pool::Pools;
use crate::report::{
    GenerateCounters, GenerateReport, GossipCounters, JoinReport, KeyReport, ListenReport, LocalAppReport,
    ProxyCounters, SeedCounters, SeedReport,
};

pub use address::{AdminAddr, AdminAddrError};
pub use bind::AdminError;

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    /// Not yet serving.
    Starting,
    /// Serving.
    Ready,
    /// Finishes what it has, before it ends.
    Draining,
}

/// What does not change while a node runs. Its id, address and cluster are read from the roster.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// Its name.
    pub name: NodeName,
    /// What it is for.
    pub role: Role,
    /// When it was started.
    pub started: SystemTime,
}

/// Who answers `POST /v1/reload`: a sentence about what changed, or about why nothing did.
pub type ReloadAnswer = oneshot::Sender<Result<String, String>>;

/// Everything that a node can tell; the wiring fills it.
#[derive(Debug, Clone)]
pub struct Sources {
    /// This node.
    pub node: NodeInfo,
    /// Where it is in its life.
    pub lifecycle: watch::Receiver<Lifecycle>,
    /// The members of the cluster.
    pub roster: watch::Receiver<Arc<Roster>>,
    /// The pools; none on a backend.
    pub pools: Option<watch::Receiver<Arc<Pools>>>,
    /// Whether this node is with others.
    pub join: watch::Receiver<Arc<JoinReport>>,
    /// Which cluster keys this node and the others have.
    pub keys: watch::Receiver<Arc<KeyReport>>,
    /// How the seed stores do.
    pub seeds: watch::Receiver<Arc<SeedReport>>,
    /// The listen ports of the proxy, if this node is one.
    pub listeners: Option<watch::Receiver<Arc<Vec<ListenReport>>>>,
    /// How generating goes, if this node does it.
    pub generate: Option<watch::Receiver<Arc<GenerateReport>>>,
    /// This node's own applications, if it is a backend.
    pub local_apps: Option<watch::Receiver<Arc<Vec<LocalAppReport>>>>,
    /// What gossip counts.
    pub gossip_counters: Arc<GossipCounters>,
    /// What seeding counts.
    pub seed_counters: Arc<SeedCounters>,
    /// What the proxy counts, if this node is one.
    pub proxy_counters: Option<Arc<ProxyCounters>>,
    /// What generating counts, if this node does it.
    pub generate_counters: Option<Arc<GenerateCounters>>,
    /// Where a wish to reload goes. A full channel means that one is under way.
    pub reload: mpsc::Sender<ReloadAnswer>,
}

/// The server, bound and not yet serving.
#[derive(Debug)]
pub struct Admin {
    listeners: Vec<bind::Listener>,
    token: Option<Arc<str>>,
}

impl Admin {
    /// Binds every address. `token` is what `POST` must bring on TCP addresses other than loopback ones.
    /// Needs no runtime. Socket files go away when the value is dropped or [`Admin::serve`] ends.
    ///
    /// # Errors
    /// The first address that cannot be bound, with what to do about it.
    pub fn bind(addresses: &[AdminAddr], token: Option<String>) -> Result<Self, AdminError> {
        let listeners = addresses.iter().map(bind::Listener::bind).collect::<Result<_, _>>()?;
        let token = token.filter(|token| !token.is_empty()).map(Arc::from);
        Ok(Self { listeners, token })
    }

    /// The addresses as they are: port 0 stands for the port that the system chose.
    #[must_use]
    pub fn addresses(&self) -> Vec<AdminAddr> {
        self.listeners.iter().map(|listener| listener.address().clone()).collect()
    }

    /// Answers requests until `shutdown`, then gives those under way a second to end. Call it on a tokio runtime.
    pub async fn serve(self, sources: Sources, shutdown: CancellationToken) {
        serve::run(self, sources, shutdown).await;
    }
}
