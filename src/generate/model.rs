//! What a template gets to see. Pure: pools go in, plain values in a fixed order come out.
//!
//! Everything in it was parsed into the types of `name` and `app`, or is a number, or comes from the balancer's
//! own configuration: no value holds white space, quotes, braces, semicolons or dollar signs. The same pools
//! always give the same model, whatever the order in which members came.
//!
//! The names of all fields stand in the comment at the top of `templates/nginx.conf.tera`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::app::{PolicyName, Protocol, Transport};
use crate::name::{DomainPattern, NodeName, PathPrefix};
use crate::pool::{Pool, Pools, Route};

use super::certificate::CertificateNames;

/// What a template knows of this machine beside the pools.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// Whether sockets can be opened on `[::]`.
    pub ipv6: bool,
    /// The configured certificates with their names, in order of preference.
    pub certificates: Vec<CertificateNames>,
}

/// The whole of it: the variables at the top level of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Model {
    /// Whether sockets can be opened on `[::]`.
    pub ipv6: bool,
    /// Every set of backends that some port below names; never an empty one.
    pub pools: Vec<PoolModel>,
    /// HTTP listen ports, in order.
    pub http: Vec<HttpPort>,
    /// TCP listen ports, in order.
    pub tcp: Vec<StreamPort>,
    /// UDP listen ports, in order.
    pub udp: Vec<StreamPort>,
    /// The bucket size that nginx needs for the longest server name; 0: its default will do.
    pub names_bucket_bytes: u32,
    /// The same for the hosts of TCP ports.
    pub stream_names_bucket_bytes: u32,
}

/// One set of backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolModel {
    /// A name of its own, stable while its first route stays: `scrimp-PORT-APP-HASH`.
    pub name: String,
    /// The application.
    pub app: String,
    /// `http`, `tcp` or `udp`.
    pub transport: &'static str,
    /// `round-robin`, `random`, `least-connections`, `two-choices` or `hash`.
    pub policy: &'static str,
    /// How its backends are spoken to: `http`, `https`, `h2c`, `tcp`, `tls` or `udp`.
    pub protocol: &'static str,
    /// Those that take new work, sorted by address.
    pub backends: Vec<BackendModel>,
    /// Those that speak another protocol than most of the pool, and so cannot be in it.
    pub left_out: Vec<BackendModel>,
    /// A bound for the memory that nginx shares among its workers for this pool.
    pub zone_kib: usize,
}

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackendModel {
    /// `IP:PORT`, an IPv6 address in brackets.
    pub address: String,
    /// Its share, as small a number as keeps the proportions.
    pub weight: u16,
    /// The node's name.
    pub node: String,
    /// How it is spoken to.
    pub protocol: &'static str,
}

/// One HTTP listen port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HttpPort {
    /// The port.
    pub listen: u16,
    /// Whether it speaks TLS: every port but 80, when there are certificates.
    pub tls: bool,
    /// Hosts with the same locations share one; the last is the default one, for all other hosts.
    pub servers: Vec<HttpServer>,
}

/// What some hosts of one port get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HttpServer {
    /// Whether it is for every host that no other server names.
    pub default: bool,
    /// The hosts, wildcards as `*.example.com`; none for the default server.
    pub names: Vec<String>,
    /// The path of the certificate chain; empty without TLS.
    pub chain: String,
    /// The path of its key; empty without TLS.
    pub key: String,
    /// Whether some location has a pool that speaks `http` or `https`.
    pub proxies: bool,
    /// Whether some location has a pool that speaks `h2c`.
    pub grpc: bool,
    /// What is served where, sorted by path.
    pub locations: Vec<Location>,
    /// What a path that no location covers gets: `pool` (there is none such), `not-found`, `redirect` (to https)
    /// or `unavailable`.
    pub otherwise: &'static str,
}

/// What one path prefix gets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Location {
    /// The prefix without a slash at its end, or `/`.
    pub path: String,
    /// The arguments of nginx's `location` that cover exactly this prefix, at whole segments.
    pub matches: Vec<String>,
    /// The application.
    pub app: String,
    /// The name of its pool; empty if no backend is ready.
    pub pool: String,
    /// How the pool is spoken to: `http`, `https` or `h2c`; empty without one.
    pub protocol: &'static str,
}

/// One TCP or UDP listen port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamPort {
    /// The port.
    pub listen: u16,
    /// The application.
    pub app: String,
    /// The name of its pool; empty if no backend is ready.
    pub pool: String,
    /// How the pool is spoken to: `tcp`, `tls` or `udp`; empty without one.
    pub protocol: &'static str,
    /// Those that are for clients that ask for a host by TLS's name of it; the others get the pool above. TCP alone.
    pub names: Vec<StreamName>,
}

/// What the clients of a TCP port get that ask for one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamName {
    /// The host, a wildcard as `*.example.com`.
    pub name: String,
    /// The application.
    pub app: String,
    /// The name of its pool; empty if no backend is ready.
    pub pool: String,
}

/// The most that a weight of a `hash` pool is: nginx makes 160 points on its ring for each unit.
const HASH_WEIGHT_MAX: u16 = 10;

/// The most steps that making the tables of paths may take: hosts times the paths that count for each. Far above
/// what 16 MiB of text can hold, far below what would keep a machine busy.
const STEPS_MAX: usize = 2_000_000;

/// The routes are too many to be written out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the hosts and paths of all applications make {0} combinations, more than {STEPS_MAX}: \
     use wildcards, or let lb.allow refuse what should not be claimed"
)]
pub struct TooManyRoutes(usize);

impl Model {
    /// The model of `pools` on this machine.
    ///
    /// # Errors
    /// The routes are too many.
    pub fn new(pools: &Pools, environment: &Environment) -> Result<Self, TooManyRoutes> {
        let mut routes: Vec<&Route> = pools.routes.iter().collect();
        routes.sort_by_cached_key(|route| route_key(route));
        let mut table = PoolTable::default();
        let targets: Vec<Target> = routes.iter().map(|route| table.target(route)).collect();
        let http = http_ports(&routes, &targets, environment)?;
        let stream = |transport| stream_ports(&routes, &targets, transport);
        let tcp = stream(Transport::Tcp);
        Ok(Self {
            ipv6: environment.ipv6,
            names_bucket_bytes: names_bucket_bytes(&http),
            stream_names_bucket_bytes: bucket_bytes(
                tcp.iter().flat_map(|port| &port.names).map(|name| name.name.len()),
            ),
            http,
            tcp,
            udp: stream(Transport::Udp),
            pools: table.pools,
        })
    }
}

/// The pool that a route leads to, by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    app: String,
    pool: String,
    protocol: &'static str,
}

type BackendKey = (SocketAddr, Protocol, u16, NodeName);
type PoolKey = (u16, Transport, String, PolicyName, Vec<BackendKey>);

/// Pools by what they are made of, so that routes with the same backends share one.
#[derive(Default)]
struct PoolTable {
    pools: Vec<PoolModel>,
    by_content: BTreeMap<PoolKey, usize>,
    names: BTreeSet<String>,
}

impl PoolTable {
    fn target(&mut self, route: &Route) -> Target {
        let app = route.pool.app.to_string();
        if route.pool.backends.is_empty() {
            return Target { app, pool: String::new(), protocol: "" };
        }
        let key = pool_key(route);
        let at = match self.by_content.get(&key) {
            Some(at) => *at,
            None => {
                let name = self.fresh_name(route);
                self.pools.push(pool_model(name, route));
                self.by_content.insert(key, self.pools.len() - 1);
                self.pools.len() - 1
            }
        };
        let pool = &self.pools[at];
        Target { app, pool: pool.name.clone(), protocol: pool.protocol }
    }

    /// A route belongs to one pool, so the hash of a pool's first route names it. Should two hashes be equal,
    /// the later route gets a number; routes come sorted, so it is always the same one.
    fn fresh_name(&mut self, route: &Route) -> String {
        let (listen, transport, domain, path) = route_key(route);
        let domain = domain.map(|domain| domain.to_string()).unwrap_or_default();
        let hash = fnv1a(&format!("{listen} {} {domain} {path}", transport_word(transport)));
        let stem = format!("scrimp-{listen}-{}-{hash:08x}", route.pool.app);
        let mut name = stem.clone();
        let mut number = 2;
        while !self.names.insert(name.clone()) {
            name = format!("{stem}-{number}");
            number += 1;
        }
        name
    }
}

fn route_key(route: &Route) -> (u16, Transport, Option<DomainPattern>, PathPrefix) {
    (route.listen.get(), route.transport, route.domain.clone(), route.path.clone())
}

fn pool_key(route: &Route) -> PoolKey {
    // A last resort is written like any other pool: when all fall under suspicion at once, nothing is reloaded.
    let Pool { app, backends, balancer, is_last_resort: _ } = &*route.pool;
    let backends = backends
        .iter()
        .map(|backend| (backend.address, backend.protocol, backend.weight.get(), backend.node_name.clone()))
        .collect();
    (route.listen.get(), route.transport, app.to_string(), balancer.policy(), backends)
}

fn pool_model(name: String, route: &Route) -> PoolModel {
    let policy = route.pool.balancer.policy();
    let protocol = common_protocol(&route.pool);
    let mut all: Vec<(Protocol, BackendModel)> = route
        .pool
        .backends
        .iter()
        .map(|backend| {
            let model = BackendModel {
                address: address_text(backend.address),
                weight: backend.weight.get(),
                node: backend.node_name.to_string(),
                protocol: backend.protocol.as_str(),
            };
            (backend.protocol, model)
        })
        .collect();
    // Two nodes may write one address in two ways (an IPv4 address mapped into IPv6).
    let mut seen = BTreeSet::new();
    all.retain(|(_, backend)| seen.insert(backend.address.clone()));
    let (mut backends, left_out): (Vec<_>, Vec<_>) = all.into_iter().partition(|(spoken, _)| *spoken == protocol);
    reduce_weights(&mut backends, policy);
    let plain = |list: Vec<(Protocol, BackendModel)>| list.into_iter().map(|(_, backend)| backend).collect::<Vec<_>>();
    PoolModel {
        name,
        app: route.pool.app.to_string(),
        transport: transport_word(route.transport),
        policy: policy.as_str(),
        protocol: protocol.as_str(),
        // A peer takes about half a KiB of the zone, its configuration and name included.
        zone_kib: 64 + backends.len(),
        backends: plain(backends),
        left_out: plain(left_out),
    }
}

/// What most backends of the pool speak. A balancer like nginx speaks one protocol to one pool; they differ only
/// while an application is being changed from one to the other.
fn common_protocol(pool: &Pool) -> Protocol {
    let count = |protocol: &Protocol| pool.backends.iter().filter(|backend| backend.protocol == *protocol).count();
    Protocol::ALL.into_iter().rev().max_by_key(count).unwrap_or(Protocol::Http)
}

fn reduce_weights(backends: &mut [(Protocol, BackendModel)], policy: PolicyName) {
    let divisor = backends.iter().fold(0, |divisor, (_, backend)| gcd(divisor, backend.weight)).max(1);
    for (_, backend) in backends.iter_mut() {
        backend.weight /= divisor;
    }
    let most = backends.iter().map(|(_, backend)| backend.weight).max().unwrap_or(1);
    if policy == PolicyName::Hash && most > HASH_WEIGHT_MAX {
        for (_, backend) in backends {
            let scaled = u32::from(backend.weight) * u32::from(HASH_WEIGHT_MAX) / u32::from(most);
            backend.weight = u16::try_from(scaled).unwrap_or(HASH_WEIGHT_MAX).max(1);
        }
    }
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// `IP:PORT` without a scope id, which configuration files of other balancers do not know.
fn address_text(address: SocketAddr) -> String {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => format!("{ip}:{}", address.port()),
        IpAddr::V6(ip) => format!("[{ip}]:{}", address.port()),
    }
}

fn transport_word(transport: Transport) -> &'static str {
    match transport {
        Transport::Http => "http",
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

/// FNV-1a over 64 bits, folded to 32: the same on every machine and in every version.
fn fnv1a(text: &str) -> u64 {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash >> 32) ^ (hash & 0xffff_ffff)
}

fn stream_ports(routes: &[&Route], targets: &[Target], transport: Transport) -> Vec<StreamPort> {
    let mut ports: BTreeMap<u16, StreamPort> = BTreeMap::new();
    for (route, target) in routes.iter().zip(targets).filter(|(route, _)| route.transport == transport) {
        let listen = route.listen.get();
        let empty =
            StreamPort { listen, app: target.app.clone(), pool: String::new(), protocol: "", names: Vec::new() };
        let port = ports.entry(listen).or_insert(empty);
        let Target { app, pool, protocol } = target.clone();
        match &route.domain {
            None => *port = StreamPort { app, pool, protocol, names: std::mem::take(&mut port.names), listen },
            Some(domain) => port.names.push(StreamName { name: domain.to_string(), app, pool }),
        }
    }
    ports.into_values().collect()
}

/// The routes of one host, in the order of their paths.
type Layer<'a> = Vec<(&'a PathPrefix, &'a Target)>;

/// The routes of one HTTP port.
#[derive(Default)]
struct HttpTable<'a> {
    hosts: BTreeMap<&'a DomainPattern, Layer<'a>>,
    wildcards: HashMap<&'a str, Layer<'a>>,
    any: Layer<'a>,
}

fn http_ports(
    routes: &[&Route],
    targets: &[Target],
    environment: &Environment,
) -> Result<Vec<HttpPort>, TooManyRoutes> {
    let mut tables: BTreeMap<u16, HttpTable<'_>> = BTreeMap::new();
    for (route, target) in routes.iter().zip(targets).filter(|(route, _)| route.transport == Transport::Http) {
        let table = tables.entry(route.listen.get()).or_default();
        match &route.domain {
            None => table.any.push((&route.path, target)),
            Some(domain) => {
                table.hosts.entry(domain).or_default().push((&route.path, target));
                if let DomainPattern::Wildcard(parent) = domain {
                    table.wildcards.entry(parent.as_str()).or_default().push((&route.path, target));
                }
            }
        }
    }
    let is_tcp = |listen| routes.iter().any(|r| r.listen.get() == listen && r.transport == Transport::Tcp);
    for listen in standing_ports(tables.is_empty(), environment) {
        if !is_tcp(listen) {
            tables.entry(listen).or_default();
        }
    }
    match tables.values().map(HttpTable::steps).sum() {
        0..=STEPS_MAX => Ok(tables.iter().map(|(listen, table)| http_port(*listen, table, environment)).collect()),
        steps => Err(TooManyRoutes(steps)),
    }
}

/// The ports that are open whether an application claims them or not.
fn standing_ports(no_application: bool, environment: &Environment) -> Vec<u16> {
    match (environment.certificates.is_empty(), no_application) {
        (false, _) => vec![80, 443],
        (true, true) => vec![80],
        (true, false) => vec![],
    }
}

fn http_port(listen: u16, table: &HttpTable<'_>, environment: &Environment) -> HttpPort {
    let certificates = &environment.certificates;
    let tls = listen != 80 && !certificates.is_empty();
    let mut merged: BTreeMap<(usize, Vec<Location>), Vec<String>> = BTreeMap::new();
    for domain in table.hosts.keys() {
        let covering = certificates.iter().position(|certificate| certificate.covers(domain)).unwrap_or(0);
        let key = (if tls { covering } else { 0 }, locations(&table.layers(domain)));
        merged.entry(key).or_default().push(domain.to_string());
    }
    let mut servers: Vec<HttpServer> = merged
        .into_iter()
        .map(|((certificate, locations), names)| server(names, locations, certificate, tls, environment))
        .collect();
    servers.sort_by(|a, b| a.names.cmp(&b.names));
    servers.push(default_server(listen, table, tls, environment));
    HttpPort { listen, tls, servers }
}

fn server(
    names: Vec<String>,
    locations: Vec<Location>,
    certificate: usize,
    tls: bool,
    environment: &Environment,
) -> HttpServer {
    let files = environment.certificates.get(certificate).filter(|_| tls);
    let speaks = |words: &[&str]| locations.iter().any(|location| words.contains(&location.protocol));
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    HttpServer {
        default: names.is_empty(),
        names,
        proxies: speaks(&["http", "https"]),
        grpc: speaks(&["h2c"]),
        chain: files.map(|files| text(&files.files.chain)).unwrap_or_default(),
        key: files.map(|files| text(&files.files.key)).unwrap_or_default(),
        otherwise: if locations.iter().any(|location| location.path == "/") { "pool" } else { "not-found" },
        locations,
    }
}

fn default_server(listen: u16, table: &HttpTable<'_>, tls: bool, environment: &Environment) -> HttpServer {
    let mut server = server(Vec::new(), locations(&[&table.any]), 0, tls, environment);
    if table.any.is_empty() {
        server.otherwise = match (listen, table.hosts.is_empty()) {
            (80, _) if !environment.certificates.is_empty() => "redirect",
            (_, true) => "unavailable",
            (_, false) => "not-found",
        };
    }
    server
}

impl<'a> HttpTable<'a> {
    fn steps(&self) -> usize {
        self.hosts.keys().flat_map(|domain| self.layers(domain)).map(Vec::len).sum()
    }

    /// The routes that count for a host, the strongest first: its own, those of wildcards above it, those of any.
    fn layers(&self, domain: &DomainPattern) -> Vec<&Layer<'a>> {
        let name = match domain {
            DomainPattern::Exact(name) | DomainPattern::Wildcard(name) => name.as_str(),
        };
        let parents = std::iter::successors(name.split_once('.'), |(_, rest)| rest.split_once('.'));
        let above = parents.filter_map(|(_, parent)| self.wildcards.get(parent));
        self.hosts.get(domain).into_iter().chain(above).chain([&self.any]).collect()
    }
}

/// One table of paths out of several: a path of a weaker layer counts where no stronger one covers it.
fn locations(layers: &[&Layer<'_>]) -> Vec<Location> {
    let mut stronger: HashSet<&str> = HashSet::new();
    let mut locations = Vec::new();
    for layer in layers {
        let mut here = HashSet::new();
        for (path, target) in *layer {
            let is_covered = prefixes(trimmed(path)).any(|prefix| stronger.contains(prefix));
            // `/a` and `/a/` are one.
            if !is_covered && here.insert(trimmed(path)) {
                locations.push(location(path, target));
            }
        }
        stronger.extend(here);
    }
    locations.sort();
    locations
}

/// A path without its final slash, then what is above it, segment by segment.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rsplit_once('/').map(|(above, _)| above))
}

/// `/api` needs two locations in nginx: `/api` itself and what is below `/api/`.
fn location(path: &PathPrefix, target: &Target) -> Location {
    let stem = trimmed(path);
    let (path, matches) = match stem {
        "" => ("/".to_owned(), vec!["/".to_owned()]),
        stem => (stem.to_owned(), vec![format!("= {stem}"), format!("{stem}/")]),
    };
    Location { path, matches, app: target.app.clone(), pool: target.pool.clone(), protocol: target.protocol }
}

fn trimmed(path: &PathPrefix) -> &str {
    path.as_str().trim_end_matches('/')
}

/// nginx keeps a name in one bucket of its hash: a pointer, the length, the name, and a pointer that ends it.
fn names_bucket_bytes(ports: &[HttpPort]) -> u32 {
    bucket_bytes(ports.iter().flat_map(|port| &port.servers).flat_map(|server| &server.names).map(String::len))
}

fn bucket_bytes(lengths: impl Iterator<Item = usize>) -> u32 {
    let longest = lengths.max().unwrap_or(0);
    let needed = (longest + 2).next_multiple_of(8) + 16;
    match needed {
        0..=64 => 0,
        65..=128 => 128,
        129..=256 => 256,
        _ => 512,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_lies_below_all_its_prefixes() {
        assert_eq!(prefixes("/a/b").collect::<Vec<_>>(), ["/a/b", "/a", ""]);
        assert_eq!(prefixes("").collect::<Vec<_>>(), [""]);
    }

    #[test]
    fn a_longer_name_needs_a_larger_bucket() {
        let bucket = |length: usize| {
            let server = server(vec!["x".repeat(length)], vec![], 0, false, &Environment::default());
            names_bucket_bytes(&[HttpPort { listen: 80, tls: false, servers: vec![server] }])
        };
        assert_eq!([46, 47, 110, 111, 238, 239, 253].map(bucket), [0, 128, 128, 256, 256, 512, 512]);
    }

    #[test]
    fn the_hash_of_a_name_is_the_same_everywhere() {
        assert_eq!(fnv1a("80 http example.com /"), fnv1a("80 http example.com /"));
        // FNV-1a of nothing is its offset basis.
        assert_eq!(fnv1a(""), 0xcbf2_9ce4 ^ 0x8422_2325);
    }

    #[test]
    fn weights_keep_their_proportions_as_small_numbers() {
        let reduced = |weights: &[u16], policy| {
            let mut backends: Vec<(Protocol, BackendModel)> = weights
                .iter()
                .map(|weight| {
                    let model =
                        BackendModel { address: String::new(), weight: *weight, node: String::new(), protocol: "http" };
                    (Protocol::Http, model)
                })
                .collect();
            reduce_weights(&mut backends, policy);
            backends.into_iter().map(|(_, backend)| backend.weight).collect::<Vec<_>>()
        };
        assert_eq!(reduced(&[100, 300], PolicyName::RoundRobin), [1, 3]);
        assert_eq!(reduced(&[100, 101], PolicyName::RoundRobin), [100, 101]);
        assert_eq!(reduced(&[1, 999], PolicyName::Hash), [1, 10]);
        assert_eq!(reduced(&[], PolicyName::Hash), [0; 0]);
    }
}
