//! What a backend offers: its applications and their state.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{AppName, DomainPattern, PathPrefix, Port, Weight};

/// The most applications one node may offer.
pub const APPS_MAX: usize = 256;
/// The most domains one node may name, over all its applications.
pub const DOMAINS_MAX: usize = 1024;
/// The most bytes that an encoded offer may take.
pub const OFFER_BYTES_MAX: usize = 64 * 1024;

/// How a backend is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 in clear text.
    Http,
    /// HTTP/1.1 over TLS.
    Https,
    /// HTTP/2 in clear text, with prior knowledge.
    H2c,
    /// Bytes, connection by connection.
    Tcp,
    /// Datagrams.
    Udp,
    // Last, since it travels by its place in this list.
    /// Bytes, connection by connection, over TLS.
    Tls,
}

/// What a listen port is opened as. Two offers share a port only within one transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Requests, routed by host and path.
    Http,
    /// Connections, routed by port, and by the name that a TLS client asks for.
    Tcp,
    /// Datagram flows, routed by port alone.
    Udp,
}

impl Protocol {
    /// All of them, in the order in which people list them.
    pub const ALL: [Self; 6] = [Self::Http, Self::Https, Self::H2c, Self::Tcp, Self::Tls, Self::Udp];

    /// The word for it in configurations.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::H2c => "h2c",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Udp => "udp",
        }
    }

    /// Whether it is spoken inside TLS.
    #[must_use]
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }

    /// What the balancer's listen port is opened as.
    #[must_use]
    pub fn transport(self) -> Transport {
        match self {
            Self::Http | Self::Https | Self::H2c => Transport::Http,
            Self::Tcp | Self::Tls => Transport::Tcp,
            Self::Udp => Transport::Udp,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.as_str() == text)
            .ok_or_else(|| format!("protocol {text:?} is not known: use http, https, h2c, tcp, tls or udp"))
    }
}

/// How a balancer chooses among the backends of a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// In turn, smoothly by weight.
    #[default]
    RoundRobin,
    /// At random, by weight.
    Random,
    /// The fewest open requests or connections for its weight; in pools of more than 64, the fewest of 16 drawn.
    LeastConnections,
    /// The less loaded of two chosen at random.
    TwoChoices,
    /// Always the same backend for a client's address, as long as it is there.
    Hash,
}

impl PolicyName {
    /// The word for it in configurations.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::LeastConnections => "least-connections",
            Self::TwoChoices => "two-choices",
            Self::Hash => "hash",
        }
    }
}

/// How a backend is told whose connection it gets: a header of the PROXY protocol before the client's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// Version 1, a line of text.
    V1,
    /// Version 2, binary.
    V2,
}

/// One application as its backend advertises it.
///
/// `Ord` and `Eq` go over all fields: two applications of one name that differ in anything are two.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct App {
    /// Its name, unique among the applications of one node.
    pub name: AppName,
    /// How the backend is spoken to.
    pub protocol: Protocol,
    /// The port at which the backend serves it, at the node's advertised address.
    pub port: Port,
    /// The port at which balancers serve it.
    pub listen: Port,
    /// The hosts it is for, sorted and each once; none: any host. For `tcp` those that a TLS client asks for by name.
    /// Empty for `tls` and `udp`.
    pub domains: Vec<DomainPattern>,
    /// The path prefix it is for; `/` for `tcp`, `tls` and `udp`.
    pub path: PathPrefix,
    /// Its share of the pool.
    pub weight: Weight,
    /// How to choose among its backends; none: the balancer's own default.
    pub policy: Option<PolicyName>,
    /// How it is told whose connection it gets; none: not at all. For `tcp` alone.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// Where a backend is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppState {
    /// Not yet serving: its application does not answer.
    Starting,
    /// Serving.
    Ready,
    /// Finishes what it has; takes nothing new.
    Draining,
}

/// Everything one node offers. A balancer offers nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The applications with their states, sorted by application.
    pub apps: Vec<(App, AppState)>,
}

/// Which limit an offer breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// More than [`APPS_MAX`] applications.
    #[error("a node offers at most {APPS_MAX} applications, these are {0}: split them over two nodes")]
    Apps(usize),
    /// More than [`DOMAINS_MAX`] domains.
    #[error("a node offers at most {DOMAINS_MAX} domains, these are {0}: use a wildcard or split them over two nodes")]
    Domains(usize),
    /// More than [`OFFER_BYTES_MAX`] bytes.
    #[error("a node's offer takes at most {OFFER_BYTES_MAX} bytes, this one takes {0}: use fewer or shorter domains")]
    Bytes(usize),
    /// Two applications that cannot stand side by side.
    #[error("applications {0} and {1} have one name")]
    SameName(AppName, AppName),
}

impl Offer {
    /// Checks what one node may offer. Call it before advertising, and on every offer that arrives.
    ///
    /// # Errors
    /// The first limit that is broken.
    pub fn check(&self) -> Result<(), OfferError> {
        let domains = self.apps.iter().map(|(app, _)| app.domains.len()).sum();
        if self.apps.len() > APPS_MAX {
            return Err(OfferError::Apps(self.apps.len()));
        }
        if domains > DOMAINS_MAX {
            return Err(OfferError::Domains(domains));
        }
        let bytes = self.encode().len();
        if bytes > OFFER_BYTES_MAX {
            return Err(OfferError::Bytes(bytes));
        }
        let mut names: Vec<&AppName> = self.apps.iter().map(|(app, _)| &app.name).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(OfferError::SameName(pair[0].clone(), pair[1].clone())),
            None => Ok(()),
        }
    }

    /// As the limit counts them.
    fn encode(&self) -> Vec<u8> {
        // Vectors, strings and numbers only: postcard has no way to fail on them.
        postcard::to_allocvec(self).unwrap_or_default()
    }
}

impl App {
    /// Sorts the domains and drops doubles; takes away what has no meaning for the transport.
    pub fn normalize(&mut self) {
        if self.has_domains() {
            self.domains.sort_unstable();
            self.domains.dedup();
        } else {
            self.domains.clear();
        }
        if self.protocol.transport() != Transport::Http {
            self.path = PathPrefix::root();
        }
        if self.protocol != Protocol::Tcp {
            self.proxy_protocol = None;
        }
    }

    /// Whether it may be for some hosts alone: clients of the others name none.
    #[must_use]
    pub fn has_domains(&self) -> bool {
        self.protocol == Protocol::Tcp || self.protocol.transport() == Transport::Http
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> App {
        App {
            name: name.parse().unwrap(),
            protocol: Protocol::Http,
            port: Port::new(8080).unwrap(),
            listen: Port::new(80).unwrap(),
            domains: vec!["example.com".parse().unwrap()],
            path: PathPrefix::root(),
            weight: Weight::default(),
            policy: None,
            proxy_protocol: None,
        }
    }

    #[test]
    fn what_travels_keeps_its_place() {
        // As all nodes know it: another order, or a field in between, and a cluster of two versions falls apart.
        let numbers = |protocol: Protocol| postcard::to_allocvec(&protocol).unwrap();
        let all = [Protocol::Http, Protocol::Https, Protocol::H2c, Protocol::Tcp, Protocol::Udp, Protocol::Tls];
        assert_eq!(all.map(numbers), [[0], [1], [2], [3], [4], [5]]);
        let golden = b"\x03web\x00\x90\x3f\x50\x01\x0bexample.com\x01/\x64\x00\x00";
        assert_eq!(postcard::to_allocvec(&app("web")).unwrap(), golden);
    }

    #[test]
    fn what_has_no_meaning_for_a_protocol_is_taken_away() {
        let normal = |protocol| {
            let mut app = App { protocol, path: "/x".parse().unwrap(), ..app("a") };
            app.normalize();
            (app.domains.len(), app.path.to_string())
        };
        assert_eq!(normal(Protocol::Https), (1, "/x".to_owned()));
        assert_eq!(normal(Protocol::Tcp), (1, "/".to_owned()));
        assert_eq!(normal(Protocol::Tls), (0, "/".to_owned()));
        assert_eq!(normal(Protocol::Udp), (0, "/".to_owned()));
    }

    #[test]
    fn limits_are_named() {
        let many =
            |count: usize| Offer { apps: (0..count).map(|i| (app(&format!("a{i}")), AppState::Ready)).collect() };
        assert_eq!(many(APPS_MAX).check(), Ok(()));
        assert_eq!(many(APPS_MAX + 1).check(), Err(OfferError::Apps(APPS_MAX + 1)));
        let mut wide = app("wide");
        wide.domains = (0..=DOMAINS_MAX).map(|i| format!("d{i}.example.com").parse().unwrap()).collect();
        let offer = Offer { apps: vec![(wide, AppState::Ready)] };
        assert_eq!(offer.check(), Err(OfferError::Domains(DOMAINS_MAX + 1)));
    }
}
