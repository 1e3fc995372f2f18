//! The applications of a backend: `[[app]]`, `apps.d/`, and `--app SPEC`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::app::{App, AppState, Offer, OfferError, PolicyName, Protocol, ProxyProtocol, Transport};
use crate::name::{AppName, DomainPattern, PathPrefix, Port, Weight};

use super::mistake::{Notes, Place};
use super::section::{Section, unknown};
use super::tree::{Entry, Node, Value, quote};
use super::value;

/// How often health is asked where nothing else is said.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(2);

/// An application and how its health is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppConfig {
    /// What is advertised, normalized.
    pub app: App,
    /// Where its health is asked, at the application's port.
    pub address: IpAddr,
    /// How.
    pub health: Health,
}

/// How an application's health is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Not at all: always ready (UDP).
    None,
    /// By a TCP connect.
    Tcp {
        /// From one check to the next.
        interval: Duration,
    },
    /// By an HTTP GET.
    Http {
        /// The request's target: a path, perhaps with a query.
        path: String,
        /// From one check to the next.
        interval: Duration,
    },
}

/// An application and where it was written.
pub(super) type Placed = (Place, AppConfig);

/// Reads one application's table; none if something in it is wrong.
pub(super) fn read(mut section: Section<'_>) -> Option<Placed> {
    let name = section.require("name", "for example name = \"web\"", value::word::<AppName>);
    let port = section.require("port", "the port where the application runs on this machine", value::port);
    let protocol = section.take_or("protocol", Protocol::Http, value::word);
    let address = section.take_or("address", IpAddr::from([127, 0, 0, 1]), health_address);
    let listen = section.take_or("listen", None, |node| value::port(node).map(Some));
    let domains = section.take_list("domains", value::word::<DomainPattern>).unwrap_or_default();
    let path = section.take_or("path", PathPrefix::root(), value::word);
    let weight = section.take_or("weight", Weight::default(), weight);
    let policy = section.take_or("policy", None, |node| policy(node).map(Some));
    let proxy_protocol = section.take_or("proxy-protocol", None, |node| {
        value::choice(node, &[("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)]).map(Some)
    });
    if protocol.is_some_and(|protocol| protocol != Protocol::Tcp) && section.was_given("proxy-protocol") {
        section.note(section.place("proxy-protocol"), "it is for tcp applications alone: take proxy-protocol away");
    }
    let health = health(&mut section, protocol);
    let is_found_by_port = protocol.is_some_and(|protocol| protocol.transport() != Transport::Http);
    for (key, message) in protocol.into_iter().flat_map(meaningless) {
        if section.was_given(key) {
            section.note(section.place(key), format!("{message}: take {key} away"));
        }
    }
    let place = section.own_place().clone();
    let has_all_domains = !section.is_wrong("domains");
    section.finish();

    let port = port.filter(|_| has_all_domains)?;
    let default_listen = if is_found_by_port { port } else { const { Port::new(80).unwrap() } };
    let mut app = App {
        name: name?,
        protocol: protocol?,
        port,
        listen: listen?.unwrap_or(default_listen),
        domains: domains.into_iter().map(|(_, domain)| domain).collect(),
        path: path?,
        weight: weight?,
        policy: policy?,
        proxy_protocol: proxy_protocol?,
    };
    app.normalize();
    Some((place, AppConfig { app, address: address?, health: health? }))
}

/// The keys that mean nothing for a protocol, and why.
fn meaningless(protocol: Protocol) -> Vec<(&'static str, &'static str)> {
    const BY_PORT: &str = "a udp application is found by its listen port alone";
    match protocol {
        Protocol::Http | Protocol::Https | Protocol::H2c => vec![],
        Protocol::Tcp => vec![("path", "a tcp application has no paths")],
        Protocol::Tls => vec![
            ("domains", "clients of a tls application speak no TLS themselves, so that they name no host"),
            ("path", "a tls application has no paths"),
        ],
        Protocol::Udp => vec![("domains", BY_PORT), ("path", BY_PORT)],
    }
}

/// Every policy by its name.
pub(super) fn policy(node: &Node) -> Result<PolicyName, String> {
    let choices = [
        PolicyName::RoundRobin,
        PolicyName::Random,
        PolicyName::LeastConnections,
        PolicyName::TwoChoices,
        PolicyName::Hash,
    ];
    value::choice(node, &choices.map(|policy| (policy.as_str(), policy)))
}

fn weight(node: &Node) -> Result<Weight, String> {
    let number = value::integer(node, 1..=1000)?;
    u16::try_from(number).ok().and_then(|number| Weight::try_from(number).ok()).ok_or_else(String::new)
}

fn health_address(node: &Node) -> Result<IpAddr, String> {
    let address = value::ip(node)?;
    if address.is_unspecified() {
        return Err(format!("{address} is no address to connect to: use 127.0.0.1 or the one the application has"));
    }
    Ok(address)
}

/// `"tcp"`, `"/path"`, or a table of `path` and `interval`.
fn health(section: &mut Section<'_>, protocol: Option<Protocol>) -> Option<Health> {
    let is_given = section.has("health");
    let health = if section.has_table("health") {
        let mut table = section.section("health");
        let range = Duration::from_millis(100)..=Duration::from_secs(3600);
        let check = table.take_or("path", Check::Tcp, check);
        let interval = table.take_or("interval", HEALTH_INTERVAL, |node| value::duration(node, range));
        table.finish();
        check.zip(interval)
    } else {
        section.take_or("health", Check::Tcp, check).map(|check| (check, HEALTH_INTERVAL))
    };
    if protocol == Some(Protocol::Udp) {
        if is_given {
            section.note(section.place("health"), "a udp application has no health check: take health away");
        }
        return Some(Health::None);
    }
    let (check, interval) = health?;
    Some(match check {
        Check::Tcp => Health::Tcp { interval },
        Check::Http(path) => Health::Http { path, interval },
    })
}

enum Check {
    Tcp,
    Http(String),
}

fn check(node: &Node) -> Result<Check, String> {
    const EXPECTED: &str = "a path like \"/up\", or \"tcp\"";
    const BYTES_MAX: usize = 256;
    let given = value::text(node, EXPECTED)?;
    let is_target = given.len() <= BYTES_MAX && given.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    match given {
        "tcp" => Ok(Check::Tcp),
        path if path.starts_with('/') && is_target => Ok(Check::Http(path.to_owned())),
        _ => Err(format!("expected {EXPECTED} (at most {BYTES_MAX} visible ASCII characters), found {}", quote(given))),
    }
}

/// `NAME:PORT[/PROTOCOL][,key=value]...` as the table that `[[app]]` would be. What has no such form is noted.
pub(super) fn spec_table(place: &Place, spec: &str, notes: &Notes) -> Option<Node> {
    const FORM: &str = "expected NAME:PORT[/PROTOCOL][,key=value]..., for example web:8080,domain=example.com";
    let mut parts = spec.split(',');
    let head = parts.next().unwrap_or_default();
    let Some((name, rest)) = head.split_once(':') else {
        notes.add(place.clone(), format!("{} is no NAME:PORT: {FORM}", quote(head)));
        return None;
    };
    let (port, protocol) = rest.split_once('/').map_or((rest, None), |(port, protocol)| (port, Some(protocol)));
    let mut spec = Spec { place, entries: Vec::new(), domains: Vec::new(), notes };
    spec.put("name", name);
    spec.put("port", port);
    if let Some(protocol) = protocol {
        spec.put("protocol", protocol);
    }
    for part in parts {
        match part.split_once('=') {
            Some((key, value)) => spec.pair(key, value),
            None => spec.refuse(format!("{} is no key=value: {FORM}", quote(part))),
        }
    }
    Some(spec.table())
}

/// A table being made from a SPEC.
struct Spec<'a> {
    place: &'a Place,
    entries: Vec<Entry>,
    domains: Vec<Node>,
    notes: &'a Notes,
}

impl Spec<'_> {
    fn pair(&mut self, key: &str, value: &str) {
        const KEYS: [&str; 7] = ["listen", "domain", "path", "weight", "health", "address", "proxy-protocol"];
        match KEYS.into_iter().find(|known| *known == key) {
            Some("domain") => self.domains.push(Node::word(self.place.key("domain"), value)),
            Some(known) if self.entries.iter().any(|entry| entry.key == known) => {
                self.refuse(format!("{known} is given twice"));
            }
            Some(known) => self.put(known, value),
            None => self.refuse(unknown(key, &KEYS)),
        }
    }

    fn put(&mut self, key: &str, value: &str) {
        let place = self.place.key(key);
        self.entries.push(Entry { key: key.to_owned(), place: place.clone(), node: Node::word(place, value) });
    }

    fn refuse(&mut self, message: String) {
        self.notes.add(self.place.clone(), message);
    }

    /// The table even if something was refused: what else is wrong in it is to be told as well.
    fn table(mut self) -> Node {
        if !self.domains.is_empty() {
            let place = self.place.key("domain");
            let node = Node { place: place.clone(), value: Value::List(self.domains) };
            self.entries.push(Entry { key: "domains".to_owned(), place, node });
        }
        Node { place: self.place.clone(), value: Value::Table(self.entries) }
    }
}

/// Notes what is wrong among applications that are right one by one: limits, names, ports and routes.
pub(super) fn judge_together(apps: &[Placed], notes: &Notes) {
    let offer = Offer { apps: apps.iter().map(|(_, app)| (app.app.clone(), AppState::Ready)).collect() };
    match (offer.check(), apps.first()) {
        // Those are told below, with their places.
        (Ok(()) | Err(OfferError::SameName(..)), _) | (_, None) => {}
        (Err(limit), Some((place, _))) => notes.add(place.whole(), limit.to_string()),
    }
    let mut names: HashMap<&AppName, &Place> = HashMap::new();
    let mut ports: HashMap<Port, (&App, &Place)> = HashMap::new();
    let mut routes: HashMap<RouteKey<'_>, (&App, &Place)> = HashMap::new();
    for (place, AppConfig { app, .. }) in apps {
        if let Some(other) = names.insert(&app.name, place) {
            notes.add(place.clone(), format!("the name {} is taken by another application ({other})", app.name));
        }
        if let Some(message) = port_clash(&mut ports, app, place) {
            notes.add(place.clone(), message);
            continue;
        }
        for key in route_keys(app) {
            if let Some((other, other_place)) = routes.insert(key, (app, place)) {
                notes.add(place.clone(), route_clash(key, app, other, other_place));
                break;
            }
        }
    }
}

/// Listen port, transport, host, path without a final `/`.
type RouteKey<'a> = (Port, Transport, Option<&'a DomainPattern>, &'a str);

fn route_keys(app: &App) -> Vec<RouteKey<'_>> {
    let key = |domain| (app.listen, app.protocol.transport(), domain, app.path.as_str().trim_end_matches('/'));
    match app.domains.as_slice() {
        [] => vec![key(None)],
        some => some.iter().map(|domain| key(Some(domain))).collect(),
    }
}

/// HTTP and TCP cannot share a port; UDP ports are others.
fn port_clash<'a>(ports: &mut HashMap<Port, (&'a App, &'a Place)>, app: &'a App, place: &'a Place) -> Option<String> {
    if app.protocol.transport() == Transport::Udp {
        return None;
    }
    let (other, other_place) = *ports.entry(app.listen).or_insert((app, place));
    (other.protocol.transport() != app.protocol.transport()).then(|| {
        format!(
            "{} wants listen port {} for {}, but {} ({other_place}) has it for {}: give one of them another listen port",
            app.name, app.listen, app.protocol, other.name, other.protocol
        )
    })
}

fn route_clash((listen, transport, domain, path): RouteKey<'_>, app: &App, other: &App, place: &Place) -> String {
    let host = domain.map_or_else(|| "any host".to_owned(), ToString::to_string);
    let (route, remedy) = match transport {
        Transport::Http => (format!("{host}, port {listen}, path {path}/"), "domains, path or listen"),
        Transport::Tcp if domain.is_some() => (format!("{host}, TCP port {listen}"), "domains or listen"),
        Transport::Tcp => (format!("TCP port {listen}"), "listen"),
        Transport::Udp => (format!("UDP port {listen}"), "listen"),
    };
    let protocols = if app.protocol == other.protocol {
        String::new()
    } else {
        format!(" with different protocols ({} and {})", app.protocol, other.protocol)
    };
    let (name, other) = (&app.name, &other.name);
    format!("{name} is on one route{protocols} with {other} ({place}): {route}: change {remedy} of one of them")
}
