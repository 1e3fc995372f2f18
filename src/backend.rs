//! One application at one address: what a balancer chooses among, and what it knows of its load.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use crate::app::Protocol;
use crate::member::NodeId;
use crate::name::{NodeName, Weight};

/// The load of one application at one address, as this balancer knows it. Lives as long as the address does.
#[derive(Debug, Default)]
pub struct Load {
    /// Requests and connections open now.
    pub active: AtomicU32,
    /// Requests and connections begun.
    pub requests: AtomicU64,
    /// Those that failed for a reason on the backend's side.
    pub failures: AtomicU64,
    /// Cancelled when no member offers the application at this address any more.
    pub gone: CancellationToken,
    /// Cancelled when the node that offered it went down, not when it left: an answer that it still owes will
    /// hardly come, and what may be asked twice is better asked elsewhere.
    pub down: CancellationToken,
}

/// One application at one address.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Which node.
    pub node: NodeId,
    /// The node's name.
    pub node_name: NodeName,
    /// Where the application answers.
    pub address: SocketAddr,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Its share of the pool.
    pub weight: Weight,
    /// What this balancer sends there.
    pub load: Arc<Load>,
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        (self.node, self.address, self.protocol, self.weight)
            == (other.node, other.address, other.protocol, other.weight)
            && Arc::ptr_eq(&self.load, &other.load)
    }
}

/// One use of a backend: counted from pick to drop.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
}

impl Lease {
    /// Counts one more use of `backend`.
    #[must_use]
    pub fn new(backend: Arc<Backend>) -> Self {
        backend.load.active.fetch_add(1, Ordering::Relaxed);
        backend.load.requests.fetch_add(1, Ordering::Relaxed);
        Self { backend }
    }

    /// The backend in use.
    #[must_use]
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Counts a failure on the backend's side.
    pub fn failed(&self) {
        self.backend.load.failures.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.backend.load.active.fetch_sub(1, Ordering::Relaxed);
    }
}
