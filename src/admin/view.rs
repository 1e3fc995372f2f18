//! The JSON of the admin API, written by the server and read by the client.
//!
//! Words and addresses are plain text here: a client must be able to show the answer of a newer node.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// This node.
    pub node: NodeView,
    /// The cluster's name.
    pub cluster: String,
    /// The version of scrimp that answers.
    pub version: String,
    /// For how long it has run.
    pub uptime_seconds: u64,
    /// `starting`, `ready` or `draining`.
    pub state: String,
    /// Whether it is alone, and what became of the seeds that it tried.
    pub alone: AloneView,
    /// How many members there are.
    pub members: MemberCountsView,
    /// The cluster keys of this node, the preferred first; none if it runs without one.
    #[serde(default)]
    pub keys: Vec<KeyView>,
    /// The seed stores.
    pub seeds: Vec<SeedStoreView>,
    /// The listen ports; none if this node is no proxy.
    #[serde(default)]
    pub listeners: Option<Vec<ListenerView>>,
    /// How generating goes; none if this node does not.
    #[serde(default)]
    pub generate: Option<GenerateView>,
    /// Offers that this balancer does not serve.
    #[serde(default)]
    pub refused: Vec<RefusedView>,
    /// How many routes this balancer serves; none on a backend.
    #[serde(default)]
    pub routes: Option<usize>,
    /// Routes that no backend is ready for.
    #[serde(default)]
    pub empty_routes: Vec<EmptyRouteView>,
    /// Routes whose backends are all out of rotation, and are asked because nobody else is left.
    #[serde(default)]
    pub last_resort_routes: Vec<EmptyRouteView>,
    /// This node's own applications; none on a balancer.
    #[serde(default)]
    pub local_apps: Option<Vec<LocalAppView>>,
    /// Everything that is not as it should be, in sentences.
    pub problems: Vec<String>,
}

/// A node, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// This run of it.
    pub id: String,
    /// `balancer` or `backend`.
    pub role: String,
    /// Where others reach its gossip; none before it is known.
    pub address: Option<String>,
}

/// Whether a node is alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AloneView {
    /// Whether no other member is known to be there.
    pub alone: bool,
    /// What became of each seed that was tried.
    #[serde(default)]
    pub contacts: Vec<ContactView>,
}

/// One seed that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContactView {
    /// The seed's address.
    pub address: String,
    /// What came of it.
    pub outcome: String,
}

/// How many members there are, this node included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberCountsView {
    /// Balancers that are there.
    pub balancers: usize,
    /// Backends that are there.
    pub backends: usize,
    /// Members that are there and have not said yet what they are for.
    #[serde(default)]
    pub unknown: usize,
    /// Of those three, the ones that did not answer somebody just now.
    pub suspect: usize,
    /// Of those that have not left, the ones that do not answer this node's own probes.
    #[serde(default)]
    pub silent: usize,
    /// Members that went down within the last hour.
    pub down: usize,
    /// Members that left within the last hour.
    pub left: usize,
}

/// One cluster key. Members are the others that are there, by name, or id if the name is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyView {
    /// What it is called; nothing of the key can be told from it.
    pub id: String,
    /// Members that seal with it for this node, or open no other of its keys.
    pub used_by: Vec<String>,
    /// Members that do not open it.
    pub missing_at: Vec<String>,
    /// Members that have said nothing yet, so that neither is known of them.
    pub unheard: Vec<String>,
}

/// One seed store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedStoreView {
    /// The store, without secrets.
    pub url: String,
    /// Whether it answered the last time.
    pub ok: bool,
    /// When it last answered.
    pub last_ok: Option<Time>,
    /// What went wrong the last time.
    pub error: Option<String>,
    /// How many seeds it held the last time it answered.
    pub seeds: usize,
}

/// One listen port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerView {
    /// The port.
    pub port: u16,
    /// `http`, `tcp` or `udp`.
    pub transport: String,
    /// Where it is open.
    pub addresses: Vec<String>,
    /// Why it is not, or not everywhere.
    pub error: Option<String>,
}

/// How generating goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerateView {
    /// The file that is written.
    pub target: String,
    /// Whether the newest state is in use.
    pub ok: bool,
    /// When the file was last known to be right and in use.
    pub last_ok: Option<Time>,
    /// Why the newest state is not in use.
    pub error: Option<String>,
}

/// An offer that is not served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedView {
    /// The name of the node that offers it, or its id if the name is not known.
    pub node: String,
    /// The application.
    pub app: String,
    /// Why.
    pub reason: String,
}

/// A route without a backend in rotation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EmptyRouteView {
    /// The application whose route it is.
    pub app: String,
    /// The port at which it is served.
    pub listen: u16,
}

/// One of a backend's own applications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalAppView {
    /// Its name.
    pub name: String,
    /// The port at which it runs.
    pub port: u16,
    /// `starting`, `ready` or `draining`.
    pub state: String,
    /// Why it is not ready.
    pub reason: Option<String>,
}

/// `GET /v1/members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersView {
    /// The cluster's name.
    pub cluster: String,
    /// Everybody, sorted by name, then address.
    pub members: Vec<MemberView>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Which run of which node.
    pub id: String,
    /// Its name; none until it has said so.
    pub name: Option<String>,
    /// `balancer` or `backend`; none until it has said so.
    pub role: Option<String>,
    /// Where its gossip is reached.
    pub address: String,
    /// `alive`, `suspect`, `down` or `left`.
    pub state: String,
    /// What this node's own probes say: `answers`, `silent`, or `unknown` of who is not probed.
    #[serde(default)]
    pub reach: String,
    /// Since when.
    pub since: Time,
    /// The cluster key that it seals with for this node; none if that is not known.
    #[serde(default)]
    pub key: Option<String>,
    /// The names of its applications, sorted.
    pub apps: Vec<String>,
}

/// `GET /v1/apps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppsView {
    /// Every distinct offer, sorted.
    pub apps: Vec<AppView>,
}

/// One application, as one or more backends offer it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppView {
    /// Its name.
    pub name: String,
    /// How its backends are spoken to.
    pub protocol: String,
    /// The port at which balancers serve it.
    pub listen: u16,
    /// The hosts it is for; none: any.
    pub domains: Vec<String>,
    /// The path prefix it is for.
    pub path: String,
    /// Who offers it; may be empty when those who did are gone.
    pub backends: Vec<BackendView>,
}

/// One backend of an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendView {
    /// The node's name, or its id if the name is not known.
    pub node: String,
    /// Where the application answers.
    pub address: String,
    /// `ready`, `starting`, `draining`, `suspected` (out of rotation as long as others are in it) or `ejected`.
    pub state: String,
    /// Why it is so, or why it is not served.
    pub reason: Option<String>,
    /// Its share of the pool.
    pub weight: u16,
    /// How it asks to be chosen; none: as the balancer does by default.
    #[serde(default)]
    pub policy: Option<String>,
    /// Requests and connections that this node has open to it. A backend sends nobody anything: 0.
    pub active: u32,
    /// Requests and connections that this node has begun.
    pub requests: u64,
    /// Those that failed on the backend's side.
    pub failures: u64,
}

/// The answer to a `POST` that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoneView {
    /// What was done.
    pub message: String,
}

/// The answer to a request that was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// Why not.
    pub error: String,
}

/// A moment; RFC 3339 in JSON, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Time(SystemTime);

impl Time {
    /// The moment.
    #[must_use]
    pub fn get(self) -> SystemTime {
        self.0
    }
}

impl From<SystemTime> for Time {
    fn from(moment: SystemTime) -> Self {
        // The year 9999 is the last that RFC 3339 can write; a clock that is so wrong must not stop anybody.
        const LAST: Duration = Duration::from_secs(253_402_300_799);
        let seconds = moment.duration_since(UNIX_EPOCH).unwrap_or_default().min(LAST).as_secs();
        Self(UNIX_EPOCH + Duration::from_secs(seconds))
    }
}

impl TryFrom<String> for Time {
    type Error = humantime::TimestampError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        humantime::parse_rfc3339_weak(&text).map(Self::from)
    }
}

impl From<Time> for String {
    fn from(time: Time) -> Self {
        time.to_string()
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_json_and_a_wrong_clock() {
        let time = Time::from(UNIX_EPOCH + Duration::from_millis(1_800_000_000_700));
        let json = serde_json::to_string(&time).unwrap();
        assert_eq!(json, "\"2027-01-15T08:00:00Z\"");
        assert_eq!(serde_json::from_str::<Time>(&json).unwrap(), time);
        assert_eq!(Time::from(UNIX_EPOCH - Duration::from_secs(1)).to_string(), "1970-01-01T00:00:00Z");
        let far = UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(Time::from(far).to_string(), "9999-12-31T23:59:59Z");
    }
}
