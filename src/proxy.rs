//! The data path: accepts clients and passes their connections and requests on.

use std::net::IpAddr;
use std::time::Duration;

/// Settings of the proxy (`[lb]`, `[lb.timeouts]`, `[lb.limits]`).
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses on which listen ports open.
    pub bind: Vec<IpAddr>,
    /// Worker threads; 0: one a core.
    pub workers: usize,
    /// What becomes of open connections of a backend that is gone.
    pub on_removal: OnRemoval,
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
            timeouts: Timeouts::default(),
            limits: Limits::default(),
        }
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
    /// Either side, between two pieces of a body.
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
    /// Client connections, overall; none: from the descriptor limit.
    pub connections: Option<u32>,
    /// Client connections for one application; none: no limit of its own.
    pub app_connections: Option<u32>,
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
            header_bytes: 32 * 1024,
            header_fields: 100,
            target_bytes: 8 * 1024,
        }
    }
}
