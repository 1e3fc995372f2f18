//! What rooms tell about themselves: counters, and states that a person may ask for.
//!
//! A leaf, so that `admin` can show every room without knowing any of them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::app::{App, AppState, Transport};
use crate::member::NodeId;
use crate::name::Port;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Counts `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What `gossip` counts.
#[derive(Debug, Default)]
pub struct GossipCounters {
    /// Datagrams that arrived, opened or not.
    pub datagrams_received: Counter,
    /// Datagrams sent.
    pub datagrams_sent: Counter,
    /// Bytes of datagrams sent, without IP and UDP headers.
    pub bytes_sent: Counter,
    /// Dropped: too short, too long, or not an envelope of a known version.
    pub dropped_malformed: Counter,
    /// Dropped: the key that it names is none of ours.
    pub dropped_unknown_key: Counter,
    /// Dropped: not sealed with the key that it names, or for another cluster, or damaged.
    pub dropped_unauthenticated: Counter,
    /// Dropped: seen before, or older than the window.
    pub dropped_replayed: Counter,
    /// Dropped: well sealed, but not a message of ours.
    pub dropped_invalid: Counter,
    /// Dropped: meant for another run of this node, or recorded before it was started.
    pub dropped_misaddressed: Counter,
    /// Dropped: its sender named more members than one may.
    pub dropped_excess: Counter,
    /// Times that this node became a newer run for the others: they took it for dead or for somebody else, or it was cut off
    /// and started over.
    pub renewals: Counter,
    /// Offers fetched over TCP because they do not fit a datagram.
    pub offers_pulled: Counter,
    /// Such fetches that failed; they are tried again.
    pub offer_pulls_failed: Counter,
    /// Connections over TCP that were closed unanswered: they asked nothing in time, or nothing that is ours.
    pub questions_refused: Counter,
}

/// What `seed` counts.
#[derive(Debug, Default)]
pub struct SeedCounters {
    /// Lists read from a store.
    pub reads: Counter,
    /// Reads that failed.
    pub read_failures: Counter,
    /// Objects written.
    pub writes: Counter,
    /// Writes that failed.
    pub write_failures: Counter,
    /// Objects that made no sense and were passed over.
    pub invalid_objects: Counter,
}

/// What `proxy` counts.
#[derive(Debug, Default)]
pub struct ProxyCounters {
    /// Client connections accepted.
    pub connections: Counter,
    /// Client connections ended.
    pub connections_closed: Counter,
    /// Accepts that failed (no file descriptors left, for one).
    pub accept_failures: Counter,
    /// TLS handshakes with clients that were finished.
    pub tls_handshakes: Counter,
    /// Those of them that went on with an earlier session.
    pub tls_resumed: Counter,
    /// TLS handshakes with clients that failed: no TLS, nothing in common, too slow, too many at once.
    pub tls_failures: Counter,
    /// Connections of trusted proxies closed because they did not say whose they are, in time and in the PROXY protocol.
    pub proxy_header_failures: Counter,
    /// Client connections closed because the pool was empty (TCP).
    pub empty_pool: Counter,
    /// HTTP requests taken.
    pub requests: Counter,
    /// HTTP responses by class: index 1 to 5 for 1xx to 5xx, whoever made them.
    pub responses: [Counter; 6],
    /// 404 of our own: no route for the host and path.
    pub no_route: Counter,
    /// 503 of our own: a route without a backend.
    pub no_backend: Counter,
    /// 502 of our own: no backend could be reached or understood.
    pub bad_gateway: Counter,
    /// 504 of our own: a backend took too long.
    pub gateway_timeout: Counter,
    /// Attempts that were made again on another backend.
    pub retries: Counter,
    /// Connects to backends that failed.
    pub connect_failures: Counter,
    /// Connections that were ended because their backend was gone.
    pub killed: Counter,
    /// Connections and responses that failed on the backend's side after they had begun.
    pub broken: Counter,
    /// Tasks that ended in a panic: a defect, which cost one connection of HTTP/1.1 or TCP, or one request of HTTP/2.
    pub panics: Counter,
    /// Bytes from clients to backends, TCP applications.
    pub bytes_in: Counter,
    /// Bytes from backends to clients, TCP applications.
    pub bytes_out: Counter,
    /// UDP flows begun.
    pub udp_flows: Counter,
    /// UDP flows ended.
    pub udp_flows_closed: Counter,
    /// Datagrams of clients passed on.
    pub udp_in: Counter,
    /// Datagrams of backends passed on.
    pub udp_out: Counter,
    /// Datagrams dropped: of a client that is not known, and there is no room for more.
    pub udp_full: Counter,
    /// Datagrams dropped: no backend could be reached.
    pub udp_no_backend: Counter,
    /// Datagrams dropped: the network did not take them (too long, or too many at once).
    pub udp_unsent: Counter,
    /// Datagrams dropped: from an address that cannot be answered.
    pub udp_unanswerable: Counter,
}

/// What `generate` counts.
#[derive(Debug, Default)]
pub struct GenerateCounters {
    /// Renders.
    pub renders: Counter,
    /// Files written (a render that changes nothing writes nothing).
    pub writes: Counter,
    /// Reloads that succeeded.
    pub reloads: Counter,
    /// Renders, checks, writes and reloads that failed.
    pub failures: Counter,
}

/// How one seed store does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreReport {
    /// The store, as configured, without secrets.
    pub url: String,
    /// When it last answered.
    pub last_ok: Option<SystemTime>,
    /// What went wrong the last time, if it did.
    pub error: Option<String>,
    /// How many seeds it held the last time it answered.
    pub seeds: usize,
}

/// How the search for other nodes goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeedReport {
    /// Each configured store.
    pub stores: Vec<StoreReport>,
}

/// What this node heard from one seed address while it was alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContactReport {
    /// The seed's address.
    pub address: SocketAddr,
    /// What came of it, in words for a person.
    pub outcome: String,
}

/// Whether this node is with others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JoinReport {
    /// Whether no other member is known to be there.
    pub alone: bool,
    /// While alone: what became of the seeds that were tried.
    pub contacts: Vec<ContactReport>,
}

/// What a cluster key is called where it must not be shown: the beginning of what is derived from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// Which cluster keys this node has, and the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyReport {
    /// This node's, the preferred first; none: it runs without a key.
    pub own: Vec<KeyId>,
    /// What the others said with their last datagrams, for members that said something.
    pub members: BTreeMap<NodeId, MemberKeys>,
}

/// The cluster keys of another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberKeys {
    /// What it sealed with for this node.
    pub sealed_with: KeyId,
    /// What it opens, the preferred first.
    pub opens: Vec<KeyId>,
}

/// One listen port of the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenReport {
    /// The port.
    pub port: Port,
    /// What it is opened as.
    pub transport: Transport,
    /// Where it is open.
    pub addresses: Vec<SocketAddr>,
    /// Why it is not, or not everywhere.
    pub error: Option<String>,
}

/// How generating goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenerateReport {
    /// The file that is written.
    pub target: String,
    /// When its content was last known to be right and in use.
    pub last_ok: Option<SystemTime>,
    /// Why the newest state is not in use, if it is not; the last good file stands.
    pub error: Option<String>,
}

/// One application of this backend, with its health as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAppReport {
    /// The application.
    pub app: App,
    /// Its state, as offered.
    pub state: AppState,
    /// Why it is not ready, if it is not.
    pub reason: Option<String>,
}
