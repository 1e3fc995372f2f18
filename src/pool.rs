//! Which backends can serve which route. Pure: a roster goes in, pools come out.
//!
//! A route is (listen port, host, path prefix). Its pool is every ready backend that offers it. Two backends
//! whose offers of one application differ each serve the routes they name. A route belongs to one application
//! name: the one that had it first, else the smallest name; who comes later is listed in [`Pools::refused`].
//!
//! [`Pools`] is immutable and published whole. What a connection changes (counters, the place in the turn)
//! are atomics behind `Arc`s that [`Pools::next`] carries over while an application's address stays.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use crate::app::{App, AppState, PolicyName, Protocol, Transport};
use crate::balance::Balancer;
use crate::member::{Member, MemberState, NodeId, Roster};
use crate::name::{AppName, DomainPattern, NodeName, PathPrefix, Port, Weight};

/// What backends may claim on this balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// The rules; a claim needs one that covers it.
    pub rules: Vec<AllowRule>,
}

/// One rule of [`Allow`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AllowRule {
    /// Domains that may be claimed; none: any, and applications for any host too.
    pub domains: Vec<DomainPattern>,
    /// Listen ports that may be claimed; none: 80, 443 and 1024 up.
    pub ports: Vec<Port>,
}

impl Default for Allow {
    fn default() -> Self {
        Self { rules: vec![AllowRule::default()] }
    }
}

impl Allow {
    fn port(&self, listen: Port) -> bool {
        self.rules.iter().any(|rule| rule.port(listen))
    }

    fn claim(&self, listen: Port, domain: Option<&DomainPattern>) -> bool {
        self.rules.iter().any(|rule| rule.port(listen) && rule.domain(domain))
    }
}

impl AllowRule {
    fn port(&self, listen: Port) -> bool {
        if self.ports.is_empty() { matches!(listen.get(), 80 | 443 | 1024..) } else { self.ports.contains(&listen) }
    }

    fn domain(&self, domain: Option<&DomainPattern>) -> bool {
        self.domains.is_empty()
            || domain.is_some_and(|claimed| self.domains.iter().any(|allowed| allowed.covers(claimed)))
    }
}

/// What this balancer makes of a roster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// What backends may claim.
    pub allow: Allow,
    /// The policy of applications that name none.
    pub policy: PolicyName,
}

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

/// The backends of one route, and how to choose among them.
#[derive(Debug)]
pub struct Pool {
    /// The application whose route this is.
    pub app: AppName,
    /// Those that take new work, sorted by address; may be empty.
    pub backends: Vec<Arc<Backend>>,
    /// The policy and its state.
    pub balancer: Balancer,
}

impl Pool {
    /// Chooses a backend that is not in `tried`; none if there is none left.
    /// `client` is what the `hash` policy goes by.
    pub fn pick(&self, client: SocketAddr, tried: &[SocketAddr]) -> Option<Lease> {
        self.balancer.pick(&self.backends, client, tried).map(|at| Lease::new(Arc::clone(&self.backends[at])))
    }
}

/// The routes of one HTTP listen port.
#[derive(Debug, Default)]
pub struct HttpRoutes {
    /// Exact hosts.
    pub exact: HashMap<String, PathRoutes>,
    /// Wildcards by what follows the `*.`; the longest match wins.
    pub wildcard: HashMap<String, PathRoutes>,
    /// Applications for any host.
    pub any: PathRoutes,
}

/// Pools by path prefix, the longest first.
#[derive(Debug, Default, Clone)]
pub struct PathRoutes(pub Vec<(PathPrefix, Arc<Pool>)>);

impl PathRoutes {
    fn find(&self, path: &str) -> Option<&Arc<Pool>> {
        self.0.iter().find(|(prefix, _)| prefix.covers(path)).map(|(_, pool)| pool)
    }
}

impl HttpRoutes {
    /// The pool for a host (lower case, no port, no final dot) and a path. An exact host beats a wildcard
    /// beats any; within a host the longest path wins; a host that has no route for the path falls to the next.
    #[must_use]
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Pool>> {
        let exact = || self.exact.get(host)?.find(path);
        let wildcard = || {
            let mut rest = host;
            while let Some((_, parent)) = rest.split_once('.') {
                if let Some(pool) = self.wildcard.get(parent).and_then(|routes| routes.find(path)) {
                    return Some(pool);
                }
                rest = parent;
            }
            None
        };
        exact().or_else(wildcard).or_else(|| self.any.find(path))
    }
}

/// What stands behind one listen port.
#[derive(Debug, Clone)]
pub enum PortRoutes {
    /// Requests by host and path.
    Http(Arc<HttpRoutes>),
    /// Connections, all to one pool.
    Tcp(Arc<Pool>),
    /// Datagram flows, all to one pool.
    Udp(Arc<Pool>),
}

/// One route, as people and generators see it.
#[derive(Debug, Clone)]
pub struct Route {
    /// The port at which it is served.
    pub listen: Port,
    /// What that port is opened as.
    pub transport: Transport,
    /// The host; none: any. None for TCP and UDP.
    pub domain: Option<DomainPattern>,
    /// The path prefix.
    pub path: PathPrefix,
    /// Who serves it.
    pub pool: Arc<Pool>,
}

/// An offer that this balancer does not serve, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    /// The node that offers it.
    pub node: NodeId,
    /// The application.
    pub app: AppName,
    /// Why, in words for a person.
    pub reason: String,
}

/// Everything that can be served now: one immutable value.
#[derive(Debug, Default)]
pub struct Pools {
    /// What each listen port serves. UDP ports live beside TCP ports of the same number.
    pub ports: BTreeMap<(Port, bool), PortRoutes>,
    /// All routes, sorted by port, host and path.
    pub routes: Vec<Route>,
    /// What was not taken, and why; sorted.
    pub refused: Vec<Refused>,
    /// The load of each application and address that some member still offers, drained ones included.
    pub loads: HashMap<(AppName, SocketAddr), Arc<Load>>,
}

impl Pools {
    /// What stands behind a stream (TCP) listen port.
    #[must_use]
    pub fn stream(&self, port: Port) -> Option<&PortRoutes> {
        self.ports.get(&(port, false))
    }

    /// The pools of a new roster. State of what stays is carried over from `self`; the loads of what is gone
    /// are not cancelled here: that is [`Pools::cancel_gone`], once the new pools are published.
    #[must_use]
    pub fn next(&self, roster: &Roster, rules: &Rules) -> Self {
        let mut build = Build { last: self, rules, claims: BTreeMap::new(), next: Self::default() };
        for member in &roster.members {
            build.add_member(member);
        }
        build.finish()
    }

    /// Cancels [`Load::gone`] of everything that `next` no longer knows. What left and came back in between is
    /// another load at the same address: the old one is gone.
    pub fn cancel_gone(&self, next: &Self) {
        for (key, load) in &self.loads {
            if !next.loads.get(key).is_some_and(|stays| Arc::ptr_eq(stays, load)) {
                load.gone.cancel();
            }
        }
    }
}

type RouteKey = (Port, Transport, Option<DomainPattern>, PathPrefix);

/// Who claims one route: application name → (its policy, its ready backends).
type Claims = BTreeMap<AppName, (Option<PolicyName>, Vec<Arc<Backend>>, Vec<NodeId>)>;

struct Build<'a> {
    last: &'a Pools,
    rules: &'a Rules,
    claims: BTreeMap<RouteKey, Claims>,
    next: Pools,
}

impl Build<'_> {
    /// A member that said goodbye offers nothing; one that went down leaves its routes standing, empty, so
    /// that its clients are told to come back rather than refused.
    fn add_member(&mut self, member: &Member) {
        let (Some(name), Some(offer)) = (&member.name, &member.offer) else {
            return;
        };
        if member.state == MemberState::Left {
            return;
        }
        for (app, state) in &offer.apps {
            self.add_app(member, name, app, *state);
        }
    }

    fn add_app(&mut self, member: &Member, node_name: &NodeName, app: &App, state: AppState) {
        let allow = &self.rules.allow;
        if !allow.port(app.listen) {
            self.refuse(member.id, app, format!("lb.allow does not let backends claim port {}", app.listen));
            return;
        }
        let hosts: Vec<Option<DomainPattern>> = match app.domains.as_slice() {
            [] => vec![None],
            some => some.iter().cloned().map(Some).collect(),
        };
        let backend = member.state.is_active().then(|| self.backend(member, node_name, app));
        for host in hosts {
            if !allow.claim(app.listen, host.as_ref()) {
                let what = host.map_or_else(|| "any host".to_owned(), |host| host.to_string());
                self.refuse(
                    member.id,
                    app,
                    format!("lb.allow does not let backends claim {what} on port {}", app.listen),
                );
                continue;
            }
            let key = (app.listen, app.protocol.transport(), host, app.path.clone());
            let claim = self.claims.entry(key).or_default().entry(app.name.clone()).or_default();
            claim.0 = claim.0.or(app.policy);
            claim.2.push(member.id);
            if let (Some(backend), AppState::Ready) = (&backend, state) {
                claim.1.push(Arc::clone(backend));
            }
        }
    }

    fn backend(&mut self, member: &Member, node_name: &NodeName, app: &App) -> Arc<Backend> {
        let address = SocketAddr::new(member.address.ip(), app.port.get());
        let key = (app.name.clone(), address);
        let load = self.next.loads.entry(key).or_insert_with_key(|key| {
            self.last.loads.get(key).filter(|load| !load.gone.is_cancelled()).cloned().unwrap_or_default()
        });
        Arc::new(Backend {
            node: member.id,
            node_name: node_name.clone(),
            address,
            protocol: app.protocol,
            weight: app.weight,
            load: Arc::clone(load),
        })
    }

    fn refuse(&mut self, node: NodeId, app: &App, reason: String) {
        self.next.refused.push(Refused { node, app: app.name.clone(), reason });
    }

    fn finish(mut self) -> Pools {
        let owners = self.port_owners();
        let last_pools: HashMap<RouteKey, &Arc<Pool>> =
            self.last.routes.iter().map(|route| (route_key(route), &route.pool)).collect();
        let mut made: Vec<Arc<Pool>> = Vec::new();
        let mut routes = Vec::new();
        for (key, mut claims) in std::mem::take(&mut self.claims) {
            let (listen, transport) = (key.0, key.1);
            if transport != Transport::Udp && owners.get(&listen) != Some(&transport) {
                for (app, (_, _, nodes)) in claims {
                    let reason = format!("port {listen} is already served with another protocol");
                    self.next.refused.extend(nodes.into_iter().map(|node| Refused {
                        node,
                        app: app.clone(),
                        reason: reason.clone(),
                    }));
                }
                continue;
            }
            let last_pool = last_pools.get(&key).copied();
            let owner = last_pool.map(|pool| &pool.app).filter(|app| claims.contains_key(*app)).cloned();
            let Some(owner) = owner.or_else(|| claims.keys().next().cloned()) else {
                continue;
            };
            let Some((policy, mut backends, _)) = claims.remove(&owner) else {
                continue;
            };
            for (app, (_, _, nodes)) in claims {
                let reason = format!("{} belongs to application {owner}", describe(&key));
                self.next.refused.extend(nodes.into_iter().map(|node| Refused {
                    node,
                    app: app.clone(),
                    reason: reason.clone(),
                }));
            }
            backends.sort_by_key(|backend| backend.address);
            backends.dedup_by_key(|backend| backend.address);
            let pool = share(&mut made, owner, backends, policy.unwrap_or(self.rules.policy), last_pool);
            let (listen, transport, domain, path) = key;
            routes.push(Route { listen, transport, domain, path, pool });
        }
        self.next.ports = ports(&routes);
        self.next.routes = routes;
        self.next.refused.sort();
        self.next.refused.dedup();
        self.next
    }

    /// HTTP or TCP, for each claimed stream port: what it is now, else what the smallest application name wants.
    fn port_owners(&self) -> BTreeMap<Port, Transport> {
        let mut wanted: BTreeMap<Port, (bool, &AppName, Transport)> = BTreeMap::new();
        for ((listen, transport, _, _), claims) in &self.claims {
            let Some(name) = claims.keys().next().filter(|_| *transport != Transport::Udp) else {
                continue;
            };
            let held = match self.last.stream(*listen) {
                Some(PortRoutes::Http(_)) => *transport == Transport::Http,
                Some(PortRoutes::Tcp(_)) => *transport == Transport::Tcp,
                _ => false,
            };
            let candidate = (!held, name, *transport);
            let best = wanted.entry(*listen).or_insert(candidate);
            *best = candidate.min(*best);
        }
        wanted.into_iter().map(|(listen, (_, _, transport))| (listen, transport)).collect()
    }
}

/// Routes of one application with the same backends share one pool, so that they share one turn.
fn share(
    made: &mut Vec<Arc<Pool>>,
    app: AppName,
    backends: Vec<Arc<Backend>>,
    policy: PolicyName,
    last: Option<&Arc<Pool>>,
) -> Arc<Pool> {
    // Routes come sorted, and one application's are mostly neighbours: a short look back finds them.
    let twin = made
        .iter()
        .rev()
        .take(64)
        .find(|pool| pool.app == app && pool.balancer.policy() == policy && pool.backends == backends);
    if let Some(twin) = twin {
        return Arc::clone(twin);
    }
    let pool = match last {
        Some(last) if last.app == app && last.balancer.policy() == policy && last.backends == backends => {
            Arc::clone(last)
        }
        Some(last) if last.app == app => {
            let balancer = last.balancer.next(policy, &last.backends, &backends);
            Arc::new(Pool { app, backends, balancer })
        }
        _ => Arc::new(Pool { balancer: Balancer::new(policy, &backends), app, backends }),
    };
    made.push(Arc::clone(&pool));
    pool
}

fn ports(routes: &[Route]) -> BTreeMap<(Port, bool), PortRoutes> {
    let mut http: BTreeMap<Port, HttpRoutes> = BTreeMap::new();
    let mut ports = BTreeMap::new();
    for route in routes {
        match route.transport {
            Transport::Tcp => {
                ports.insert((route.listen, false), PortRoutes::Tcp(Arc::clone(&route.pool)));
            }
            Transport::Udp => {
                ports.insert((route.listen, true), PortRoutes::Udp(Arc::clone(&route.pool)));
            }
            Transport::Http => {
                let table = http.entry(route.listen).or_default();
                let paths = match &route.domain {
                    None => &mut table.any,
                    Some(DomainPattern::Exact(host)) => table.exact.entry(host.as_str().to_owned()).or_default(),
                    Some(DomainPattern::Wildcard(parent)) => {
                        table.wildcard.entry(parent.as_str().to_owned()).or_default()
                    }
                };
                paths.0.push((route.path.clone(), Arc::clone(&route.pool)));
            }
        }
    }
    for (listen, mut table) in http {
        for paths in table.exact.values_mut().chain(table.wildcard.values_mut()).chain([&mut table.any]) {
            paths.0.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.as_str().trim_end_matches('/').len()));
        }
        ports.insert((listen, false), PortRoutes::Http(Arc::new(table)));
    }
    ports
}

fn route_key(route: &Route) -> RouteKey {
    (route.listen, route.transport, route.domain.clone(), route.path.clone())
}

fn describe((listen, transport, domain, path): &RouteKey) -> String {
    match (transport, domain) {
        (Transport::Tcp, _) => format!("TCP port {listen}"),
        (Transport::Udp, _) => format!("UDP port {listen}"),
        (Transport::Http, Some(domain)) => format!("{domain}:{listen}{path}"),
        (Transport::Http, None) => format!("any host on port {listen}{path}"),
    }
}
