//! One application at one address: what a balancer chooses among, and what it knows of its load.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::app::{Protocol, ProxyProtocol};
use crate::member::NodeId;
use crate::name::{Hostname, NodeName, Weight};

/// The load of one application at one address, as this balancer knows it. Lives as long as the address does, and
/// through a suspicion; an address whose node was down begins anew.
#[derive(Debug, Default)]
pub struct Load {
    /// Requests and connections open now.
    pub active: AtomicU32,
    /// Requests and connections begun.
    pub requests: AtomicU64,
    /// Those that failed for a reason on the backend's side.
    pub failures: AtomicU64,
    /// Cancelled when no member offers the application at this address any more, and when its node is down
    /// ([`Load::end`]).
    pub gone: CancellationToken,
    /// The same, for who asks often: the token takes a lock that all threads share.
    is_gone: AtomicBool,
    /// Woken when the standing changes. Whoever waits registers first and looks at the standing then.
    pub standing_changed: Notify,
    /// Whether it takes nothing new by its own word. One task sets it.
    rests: AtomicBool,
    /// Uses of the whole application, at all its addresses.
    of_app: Arc<AtomicU32>,
    /// A [`Standing`]. One task sets it.
    standing: AtomicU8,
    /// When the backend last did what only a live one does, in milliseconds since [`since_base`]; 0: never.
    succeeded_ms: AtomicU64,
}

/// Whether a backend is one to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Standing {
    /// It is in rotation, or drains: what it was asked it will answer.
    #[default]
    Fine,
    /// It does not answer this balancer, or is down and nobody else is left. It may come back: what can go
    /// elsewhere does, what cannot waits.
    Doubtful,
    /// Its node is down: an answer that it still owes will hardly come. Final; the load is gone too.
    Lost,
}

impl Load {
    /// One that counts its uses as the application's too.
    #[must_use]
    pub fn of_app(uses: Arc<AtomicU32>) -> Self {
        Self { of_app: uses, ..Self::default() }
    }

    /// Uses of the whole application, of those at addresses that take no new work too.
    #[must_use]
    pub fn uses_of_app(&self) -> &Arc<AtomicU32> {
        &self.of_app
    }

    /// Whether the backend is one to wait for.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.standing.load(Ordering::SeqCst) {
            0 => Standing::Fine,
            1 => Standing::Doubtful,
            _ => Standing::Lost,
        }
    }

    /// Tells everybody who waits for the backend how it stands now. A lost one stays lost.
    pub fn set_standing(&self, standing: Standing) {
        if self.standing() == Standing::Lost {
            return;
        }
        if self.standing.swap(standing as u8, Ordering::SeqCst) != standing as u8 {
            self.standing_changed.notify_waiters();
        }
    }

    /// Whether the backend takes nothing new by its own word: it drains, or its application does not answer yet.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.rests.load(Ordering::Relaxed)
    }

    /// Tells whether the backend takes nothing new.
    pub fn set_rests(&self, rests: bool) {
        self.rests.store(rests, Ordering::Relaxed);
    }

    /// Whether the backend is gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }

    /// Tells everybody who uses the backend that it is gone.
    pub fn end(&self) {
        self.is_gone.store(true, Ordering::Release);
        self.gone.cancel();
    }

    /// The backend did at `now` what only a live one does: a response began, or bytes arrived from it.
    pub fn succeeded(&self, now: Instant) {
        self.succeeded_ms.store(since_base(now), Ordering::Relaxed);
    }

    /// How long ago the last such thing was; none: never.
    #[must_use]
    pub fn since_success(&self, now: Instant) -> Option<Duration> {
        let last = self.succeeded_ms.load(Ordering::Relaxed);
        (last > 0).then(|| Duration::from_millis(since_base(now).saturating_sub(last)))
    }
}

/// Milliseconds, from 1, since the first moment that any load was told of.
fn since_base(now: Instant) -> u64 {
    static BASE: OnceLock<Instant> = OnceLock::new();
    let since = now.saturating_duration_since(*BASE.get_or_init(|| now));
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
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
    /// If it speaks TLS, the first host that its application is for by name: its certificate may be for that too.
    pub domain: Option<Hostname>,
    /// How it is told whose connection it gets.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Its share of the pool.
    pub weight: Weight,
    /// What this balancer sends there.
    pub load: Arc<Load>,
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        (self.node, self.address, self.protocol, &self.domain, self.proxy_protocol, self.weight)
            == (other.node, other.address, other.protocol, &other.domain, other.proxy_protocol, other.weight)
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
        backend.load.of_app.fetch_add(1, Ordering::Relaxed);
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
        self.backend.load.of_app.fetch_sub(1, Ordering::Relaxed);
    }
}
