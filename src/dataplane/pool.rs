//! Which backends can serve which route. Pure: a roster goes in, pools come out.
//!
//! A route is (listen port, host, path prefix). Its pool is every ready backend that offers it. Two backends
//! whose offers of one application differ each serve the routes they name. A route belongs to one application
//! name: the one that had it first, else the smallest name; who comes later is listed in [`Pools::refused`].
//!
//! It takes two keys to take a backend out against its will: what the gossip says and what this balancer's own probes
//! say ([`Member::reach`]). Silent to the probes it is suspected, and back as soon as it answers; down in the gossip
//! alone it stays; down and without an answer it is down. Both wait until what it last did on the data path is
//! [`EVIDENCE`] old, and neither empties a pool: when nobody else is left, those that are suspected stay as a last
//! resort, and failing those the ones that are down. What a backend says itself (it drains, it leaves) counts at once.
//!
//! [`Pools`] is immutable and published whole. What a connection changes (counters, the place in the turn)
//! are atomics behind `Arc`s that [`Pools::next`] carries over while an application's address stays.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use foldhash::HashMap as FastMap;

use crate::app::{App, AppState, PolicyName, Transport};
use crate::backend::{Backend, Lease, Load, Standing};
use crate::balance::Balancer;
use crate::member::{Member, MemberState, NodeId, Reach, Roster};
use crate::name::{AppName, DomainPattern, Hostname, NodeName, PathPrefix, Port};

/// How long a sign of life on the data path outweighs gossip and probes.
pub const EVIDENCE: Duration = Duration::from_secs(1);
/// The soonest that the pools are looked at again for want of such signs: many backends' seconds end one by one.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(20);

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

/// The backends of one route, and how to choose among them.
#[derive(Debug)]
pub struct Pool {
    /// The application whose route this is.
    pub app: AppName,
    /// Those that take new work, sorted by address; may be empty.
    pub backends: Vec<Arc<Backend>>,
    /// Whether those are out of rotation, and here because nobody else is left.
    pub is_last_resort: bool,
    /// The policy and its state.
    pub balancer: Balancer,
}

impl Pool {
    /// How many uses its application has now, whatever the address: one look, however many backends there are.
    #[must_use]
    pub fn uses_of_app(&self) -> u32 {
        self.backends.first().map_or(0, |backend| backend.load.uses_of_app().load(Ordering::Relaxed))
    }

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
    pub exact: FastMap<String, PathRoutes>,
    /// Wildcards by what follows the `*.`; the longest match wins.
    pub wildcard: FastMap<String, PathRoutes>,
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
        let wildcard = || match self.wildcard.is_empty() {
            true => None,
            false => parents(host).find_map(|parent| self.wildcard.get(parent)?.find(path)),
        };
        exact().or_else(wildcard).or_else(|| self.any.find(path))
    }
}

/// The routes of one TCP listen port.
#[derive(Debug, Default)]
pub struct TcpRoutes {
    /// By the name that a TLS client asks for.
    pub exact: FastMap<String, Arc<Pool>>,
    /// Wildcards by what follows the `*.`; the longest match wins.
    pub wildcard: FastMap<String, Arc<Pool>>,
    /// For everybody else.
    pub any: Option<Arc<Pool>>,
}

impl TcpRoutes {
    /// Whether it takes a client's first words to know its route.
    #[must_use]
    pub fn is_by_name(&self) -> bool {
        !self.exact.is_empty() || !self.wildcard.is_empty()
    }

    /// The pool for a client that asks for this name (lower case, no final dot), or for none. An exact name beats a
    /// wildcard beats any.
    #[must_use]
    pub fn find(&self, name: Option<&str>) -> Option<&Arc<Pool>> {
        let exact = || self.exact.get(name?);
        let wildcard = || parents(name?).find_map(|parent| self.wildcard.get(parent));
        exact().or_else(wildcard).or(self.any.as_ref())
    }
}

/// What a name lies below, the nearest first.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(name.split_once('.'), |(_, parent)| parent.split_once('.')).map(|(_, parent)| parent)
}

/// What stands behind one listen port.
#[derive(Debug, Clone)]
pub enum PortRoutes {
    /// Requests by host and path.
    Http(Arc<HttpRoutes>),
    /// Connections, to one pool or by the name that a TLS client asks for.
    Tcp(Arc<TcpRoutes>),
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
    /// The host; none: any. None for UDP.
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

/// Why a backend that is ready by its own word is out of rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It does not answer this balancer's probes.
    Suspected,
    /// It is down in the gossip, and does not answer this balancer's probes either.
    Down,
}

impl Why {
    /// What gossip and probes make of a member that has not left; none: it is in rotation.
    #[must_use]
    pub fn of(member: &Member) -> Option<Self> {
        match (member.state.is_active(), member.reach) {
            (_, Reach::Answers) | (true, Reach::Unknown) => None,
            (true, Reach::Silent) => Some(Self::Suspected),
            (false, Reach::Silent | Reach::Unknown) => Some(Self::Down),
        }
    }
}

/// A backend that is out of rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Out {
    /// Why.
    pub why: Why,
    /// Since when, for this reason.
    pub since: Instant,
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
    /// The load of each application and address that some member still offers, drained ones and those of nodes that
    /// are down included.
    pub loads: HashMap<(AppName, SocketAddr), Arc<Load>>,
    /// Those of them that take nothing new by their own word.
    pub resting: HashSet<(AppName, SocketAddr)>,
    /// The applications and addresses that are suspected or down.
    pub out: HashMap<(AppName, SocketAddr), Out>,
    /// Those of nodes that are down whose load has begun anew since. What is sent there as a last resort proves that
    /// somebody is there after all, for a second each time: it is not cut whenever such a second ends.
    pub renewed: HashSet<(AppName, SocketAddr)>,
    /// When to look again even if nothing changes: somebody is in rotation only for what it did on the data path.
    pub look_again: Option<Instant>,
}

impl Pools {
    /// What stands behind a stream (TCP) listen port.
    #[must_use]
    pub fn stream(&self, port: Port) -> Option<&PortRoutes> {
        self.ports.get(&(port, false))
    }

    /// The pools of a new roster. State of what stays is carried over from `self`; loads are told nothing here: that
    /// is [`Pools::tell_loads`], once the new pools are published.
    #[must_use]
    pub fn next(&self, roster: &Roster, rules: &Rules, now: Instant) -> Self {
        let mut build = Build::new(self, rules, now);
        let (left, mut members): (Vec<&Member>, Vec<&Member>) =
            roster.members.iter().partition(|member| member.state == MemberState::Left);
        // What a node offered before it went down counts until it is back, with another offer perhaps, or has left.
        let is_down = |member: &Member| Why::of(member) == Some(Why::Down);
        let there: HashSet<&NodeName> =
            members.iter().filter(|member| !is_down(member)).filter_map(|member| member.name.as_ref()).collect();
        let mut left_at: HashMap<&NodeName, SystemTime> = HashMap::new();
        for (name, since) in left.iter().filter_map(|member| Some((member.name.as_ref()?, member.since))) {
            let latest = left_at.entry(name).or_insert(since);
            *latest = since.max(*latest);
        }
        let is_superseded = |name: &NodeName, member: &Member| {
            there.contains(name) || left_at.get(name).is_some_and(|left| *left >= member.since)
        };
        members
            .retain(|member| !is_down(member) || member.name.as_ref().is_some_and(|name| !is_superseded(name, member)));
        // Of two runs at one address the better one speaks for it: it comes first.
        members.sort_by_key(|member| Why::of(member));
        members.iter().for_each(|member| build.add_member(member));
        build.finish()
    }

    /// Tells the loads how they stand in `next`, and cancels [`Load::gone`] of everything that `next` no longer knows.
    /// What left and came back in between, and what was down, is another load at the same address: the old one is gone.
    pub fn tell_loads(&self, next: &Self) {
        for (key, load) in &self.loads {
            if !next.loads.get(key).is_some_and(|stays| Arc::ptr_eq(stays, load)) {
                if next.out.get(key).is_some_and(|out| out.why == Why::Down) {
                    load.set_standing(Standing::Lost);
                }
                load.end();
            }
        }
        for (key, load) in &next.loads {
            load.set_standing(if next.out.contains_key(key) { Standing::Doubtful } else { Standing::Fine });
            load.set_rests(next.resting.contains(key));
        }
    }
}

type RouteKey = (Port, Transport, Option<DomainPattern>, PathPrefix);

/// Who claims one route, by application name.
type Claims = BTreeMap<AppName, Claim>;

#[derive(Default)]
struct Claim {
    policy: Option<PolicyName>,
    /// Those that are ready by their own word, and why they are out of rotation if they are.
    ready: Vec<(Option<Why>, Arc<Backend>)>,
    /// The nodes that make the claim and are not down. None: all are, and the claim yields to any other.
    nodes: Vec<NodeId>,
}

impl Claim {
    fn is_active(&self) -> bool {
        !self.nodes.is_empty()
    }
}

struct Build<'a> {
    last: &'a Pools,
    rules: &'a Rules,
    now: Instant,
    claims: BTreeMap<RouteKey, Claims>,
    next: Pools,
    /// The pools of `last`, each once, by application.
    last_pools: HashMap<&'a AppName, Vec<&'a Arc<Pool>>>,
    /// The pools made so far, by application.
    made: HashMap<AppName, Vec<Arc<Pool>>>,
    /// What counts the uses of each application.
    uses: HashMap<AppName, Arc<AtomicU32>>,
}

impl<'a> Build<'a> {
    fn new(last: &'a Pools, rules: &'a Rules, now: Instant) -> Self {
        let mut last_pools: HashMap<&AppName, Vec<&Arc<Pool>>> = HashMap::new();
        for route in &last.routes {
            let pools = last_pools.entry(&route.pool.app).or_default();
            if !pools.iter().any(|pool| Arc::ptr_eq(pool, &route.pool)) {
                pools.push(&route.pool);
            }
        }
        let uses = last.loads.iter().map(|((app, _), load)| (app.clone(), Arc::clone(load.uses_of_app()))).collect();
        let (claims, next, made) = (BTreeMap::new(), Pools::default(), HashMap::new());
        Self { last, rules, now, claims, next, last_pools, made, uses }
    }

    /// A member that went down leaves its routes standing, so that its clients are told to come back rather than
    /// refused, or are served after all.
    fn add_member(&mut self, member: &Member) {
        let (Some(name), Some(offer)) = (&member.name, &member.offer) else {
            return;
        };
        for (app, state) in &offer.apps {
            self.add_app(member, name, app, *state);
        }
    }

    fn add_app(&mut self, member: &Member, node_name: &NodeName, app: &App, state: AppState) {
        let allow = &self.rules.allow;
        let key = (app.name.clone(), SocketAddr::new(member.address.ip(), app.port.get()));
        let why = Why::of(member).filter(|_| !self.is_proven(&key));
        if !allow.port(app.listen) {
            self.refuse(member, app, why, format!("lb.allow does not let backends claim port {}", app.listen));
            return;
        }
        let backend = self.backend(member, node_name, app, key.clone(), why);
        if backend.is_some() && state != AppState::Ready {
            self.next.resting.insert(key);
        }
        for (host, path) in places(app) {
            if !allow.claim(app.listen, host.as_ref()) {
                let what = host.map_or_else(|| "any host".to_owned(), |host| host.to_string());
                let reason = format!("lb.allow does not let backends claim {what} on port {}", app.listen);
                self.refuse(member, app, why, reason);
                continue;
            }
            let key = (app.listen, app.protocol.transport(), host, path);
            let claim = self.claims.entry(key).or_default().entry(app.name.clone()).or_default();
            claim.policy = claim.policy.or(app.policy);
            if why != Some(Why::Down) {
                claim.nodes.push(member.id);
            }
            if let (Some(backend), AppState::Ready) = (&backend, state) {
                claim.ready.push((why, Arc::clone(backend)));
            }
        }
    }

    /// Whether what the backend did on the data path is so new that it is there, whatever else is said of it. If so,
    /// it is looked at again when that has become old.
    fn is_proven(&mut self, key: &(AppName, SocketAddr)) -> bool {
        let load = self.last.loads.get(key).filter(|load| !load.gone.is_cancelled());
        let left =
            load.and_then(|load| EVIDENCE.checked_sub(load.since_success(self.now)?)).filter(|left| !left.is_zero());
        if let Some(left) = left {
            let again = self.now + left.max(LOOK_AGAIN_MIN);
            self.next.look_again = Some(self.next.look_again.map_or(again, |other| other.min(again)));
        }
        left.is_some()
    }

    /// None if a better run at the same address speaks for it.
    fn backend(
        &mut self,
        member: &Member,
        node_name: &NodeName,
        app: &App,
        key: (AppName, SocketAddr),
        why: Option<Why>,
    ) -> Option<Arc<Backend>> {
        let address = key.1;
        let load = match self.next.loads.get(&key) {
            Some(load) if self.next.out.get(&key).map(|out| out.why) == why => Arc::clone(load),
            Some(_) => return None,
            None => self.add_load(key, Why::of(member), why),
        };
        Some(Arc::new(Backend {
            node: member.id,
            node_name: node_name.clone(),
            address,
            protocol: app.protocol,
            domain: app.domains.iter().find_map(exact).filter(|_| app.protocol.is_tls()).cloned(),
            proxy_protocol: app.proxy_protocol,
            weight: app.weight,
            load,
        }))
    }

    /// The load stays the same but for two: what is gone, and what was not down and is so now. `said` is what gossip
    /// and probes make of it, `why` what became of that.
    fn add_load(&mut self, key: (AppName, SocketAddr), said: Option<Why>, why: Option<Why>) -> Arc<Load> {
        if let Some(why) = why {
            let last = self.last.out.get(&key).copied().filter(|out| out.why == why);
            self.next.out.insert(key.clone(), last.unwrap_or(Out { why, since: self.now }));
        }
        let was_renewed = said == Some(Why::Down) && self.last.renewed.contains(&key);
        let is_lost = why == Some(Why::Down) && !was_renewed;
        if is_lost || was_renewed {
            self.next.renewed.insert(key.clone());
        }
        let last = self.last.loads.get(&key).filter(|load| !is_lost && !load.gone.is_cancelled());
        let uses = self.uses.entry(key.0.clone()).or_default();
        let load = last.cloned().unwrap_or_else(|| Arc::new(Load::of_app(Arc::clone(uses))));
        self.next.loads.insert(key, Arc::clone(&load));
        load
    }

    /// What nodes claim that are down is nobody's trouble.
    fn refuse(&mut self, member: &Member, app: &App, why: Option<Why>, reason: String) {
        if why != Some(Why::Down) {
            self.next.refused.push(Refused { node: member.id, app: app.name.clone(), reason });
        }
    }

    fn refuse_claim(&mut self, app: &AppName, claim: &Claim, reason: &str) {
        let refused = |node: &NodeId| Refused { node: *node, app: app.clone(), reason: reason.to_owned() };
        self.next.refused.extend(claim.nodes.iter().map(refused));
    }

    fn finish(mut self) -> Pools {
        let owners = self.port_owners();
        let last_routes: HashMap<RouteKey, &Arc<Pool>> =
            self.last.routes.iter().map(|route| (route_key(route), &route.pool)).collect();
        for (key, claims) in std::mem::take(&mut self.claims) {
            let (listen, transport) = (key.0, key.1);
            if transport != Transport::Udp && owners.get(&listen) != Some(&transport) {
                let reason = format!("port {listen} is already served with another protocol");
                claims.iter().for_each(|(app, claim)| self.refuse_claim(app, claim, &reason));
            } else {
                self.add_route(key, claims, &last_routes);
            }
        }
        self.next.ports = ports(&self.next.routes);
        self.next.refused.sort();
        self.next.refused.dedup();
        self.next
    }

    fn add_route(&mut self, key: RouteKey, mut claims: Claims, last_routes: &HashMap<RouteKey, &'a Arc<Pool>>) {
        let last_pool = last_routes.get(&key).copied();
        let had_it = |app: &AppName| last_pool.is_some_and(|pool| pool.app == *app);
        // Names come sorted, and the first of equals wins `min_by_key`.
        let owner = claims.iter().min_by_key(|(app, claim)| (!claim.is_active(), !had_it(app)));
        let Some((owner, claim)) = owner.map(|(app, _)| app.clone()).and_then(|app| claims.remove_entry(&app)) else {
            return;
        };
        let reason = format!("{} belongs to application {owner}", describe(&key));
        claims.iter().for_each(|(app, claim)| self.refuse_claim(app, claim, &reason));
        let pool = self.pool(owner, claim, last_pool);
        let (listen, transport, domain, path) = key;
        self.next.routes.push(Route { listen, transport, domain, path, pool });
    }

    /// Routes of one application with the same backends share one pool, so that they share one turn. A pool that
    /// does not change stays the same; one that does goes on from where the route's last one was.
    fn pool(&mut self, app: AppName, claim: Claim, last: Option<&'a Arc<Pool>>) -> Arc<Pool> {
        let policy = claim.policy.unwrap_or(self.rules.policy);
        // Those in rotation; failing them those that are suspected, and failing those the ones that are down.
        let best = claim.ready.iter().map(|(why, _)| *why).min().flatten();
        let is_last_resort = best.is_some();
        let mut backends: Vec<Arc<Backend>> =
            claim.ready.into_iter().filter(|(why, _)| *why == best).map(|(_, backend)| backend).collect();
        backends.sort_by_key(|backend| backend.address);
        backends.dedup_by_key(|backend| backend.address);
        let is_same = |pool: &Pool| {
            pool.balancer.policy() == policy && pool.is_last_resort == is_last_resort && pool.backends == backends
        };
        let made = self.made.entry(app.clone()).or_default();
        if let Some(twin) = made.iter().find(|pool| is_same(pool)) {
            return Arc::clone(twin);
        }
        let last_pools = self.last_pools.get(&app).map(Vec::as_slice).unwrap_or_default();
        let pool = match last_pools.iter().find(|pool| is_same(pool)) {
            Some(same) => Arc::clone(same),
            None => {
                let last = last.filter(|last| last.app == app).or_else(|| last_pools.first().copied());
                let balancer = match last {
                    Some(last) => last.balancer.next(policy, &last.backends, &backends),
                    None => Balancer::new(policy, &backends),
                };
                Arc::new(Pool { app, backends, is_last_resort, balancer })
            }
        };
        made.push(Arc::clone(&pool));
        pool
    }

    /// HTTP or TCP, for each claimed stream port: what somebody active wants, what it is now, what the smallest
    /// application name wants, in this order.
    fn port_owners(&self) -> BTreeMap<Port, Transport> {
        let mut wanted: BTreeMap<Port, (bool, bool, &AppName, Transport)> = BTreeMap::new();
        for ((listen, transport, _, _), claims) in &self.claims {
            let is_held = match self.last.stream(*listen) {
                Some(PortRoutes::Http(_)) => *transport == Transport::Http,
                Some(PortRoutes::Tcp(_)) => *transport == Transport::Tcp,
                _ => false,
            };
            for (app, claim) in claims.iter().filter(|_| *transport != Transport::Udp) {
                let candidate = (!claim.is_active(), !is_held, app, *transport);
                let best = wanted.entry(*listen).or_insert(candidate);
                *best = candidate.min(*best);
            }
        }
        wanted.into_iter().map(|(listen, (_, _, _, transport))| (listen, transport)).collect()
    }
}

fn exact(domain: &DomainPattern) -> Option<&Hostname> {
    match domain {
        DomainPattern::Exact(name) => Some(name),
        DomainPattern::Wildcard(_) => None,
    }
}

/// Each host and path that an application claims. A final slash means nothing: `/api` and `/api/` are one route.
fn places(app: &App) -> Vec<(Option<DomainPattern>, PathPrefix)> {
    if !app.has_domains() {
        return vec![(None, PathPrefix::root())];
    }
    let path = app.path.as_str().trim_end_matches('/').parse().unwrap_or_else(|_| PathPrefix::root());
    match app.domains.as_slice() {
        [] => vec![(None, path)],
        some => some.iter().map(|domain| (Some(domain.clone()), path.clone())).collect(),
    }
}

fn ports(routes: &[Route]) -> BTreeMap<(Port, bool), PortRoutes> {
    let mut http: BTreeMap<Port, HttpRoutes> = BTreeMap::new();
    let mut tcp: BTreeMap<Port, TcpRoutes> = BTreeMap::new();
    let mut ports = BTreeMap::new();
    for route in routes {
        match route.transport {
            Transport::Tcp => {
                let (table, pool) = (tcp.entry(route.listen).or_default(), Arc::clone(&route.pool));
                match &route.domain {
                    None => table.any = Some(pool),
                    Some(DomainPattern::Exact(name)) => drop(table.exact.insert(name.as_str().to_owned(), pool)),
                    Some(DomainPattern::Wildcard(parent)) => {
                        table.wildcard.insert(parent.as_str().to_owned(), pool);
                    }
                }
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
    ports.extend(tcp.into_iter().map(|(listen, table)| ((listen, false), PortRoutes::Tcp(Arc::new(table)))));
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
        (Transport::Tcp, None) => format!("TCP port {listen}"),
        (Transport::Tcp, Some(domain)) => format!("{domain} on TCP port {listen}"),
        (Transport::Udp, _) => format!("UDP port {listen}"),
        (Transport::Http, Some(domain)) => format!("{domain}:{listen}{path}"),
        (Transport::Http, None) => format!("any host on port {listen}{path}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::{Instant, SystemTime};

    use super::*;
    use crate::app::Offer;
    use crate::app::Protocol;
    use crate::member::{Reach, Role};
    use crate::name::Weight;
    use std::sync::atomic::Ordering;

    /// What a test says about one node; the rest is usual.
    #[derive(Clone)]
    struct Node {
        id: u64,
        name: String,
        octet: u8,
        state: MemberState,
        reach: Reach,
        since: u64,
        apps: Vec<(App, AppState)>,
    }

    fn node(id: u8, apps: &[App]) -> Node {
        Node {
            id: u64::from(id),
            name: format!("n{id}"),
            octet: id,
            state: MemberState::Alive,
            reach: Reach::Unknown,
            since: 0,
            apps: apps.iter().map(|app| (app.clone(), AppState::Ready)).collect(),
        }
    }

    impl Node {
        fn member(&self) -> Member {
            Member {
                id: NodeId(self.id),
                name: Some(self.name.parse().unwrap()),
                role: Some(Role::Backend),
                address: SocketAddr::from(([10, 0, 0, self.octet], 7377)),
                state: self.state,
                since: SystemTime::UNIX_EPOCH + Duration::from_secs(self.since),
                reach: self.reach,
                offer: Some(Arc::new(Offer { apps: self.apps.clone() })),
            }
        }

        fn is(mut self, state: MemberState) -> Self {
            self.state = state;
            self
        }

        fn reached(mut self, reach: Reach) -> Self {
            self.reach = reach;
            self
        }

        fn with(mut self, state: AppState) -> Self {
            self.apps.iter_mut().for_each(|(_, old)| *old = state);
            self
        }
    }

    fn port(number: u16) -> Port {
        Port::new(number).unwrap()
    }

    fn app(name: &str, domains: &[&str], path: &str) -> App {
        let mut app = App {
            name: name.parse().unwrap(),
            protocol: Protocol::Http,
            port: port(8080),
            listen: port(80),
            domains: domains.iter().map(|domain| domain.parse().unwrap()).collect(),
            path: path.parse().unwrap(),
            weight: Weight::default(),
            policy: None,
            proxy_protocol: None,
        };
        app.normalize();
        app
    }

    fn stream(name: &str, protocol: Protocol, listen: u16) -> App {
        App { protocol, listen: port(listen), ..app(name, &[], "/") }
    }

    fn next_at(last: &Pools, nodes: &[Node], rules: &Rules, now: Instant) -> Pools {
        let members = nodes.iter().map(Node::member).collect();
        last.next(&Roster { cluster: "c".parse().unwrap(), me: NodeId(0), members }, rules, now)
    }

    fn next_with(last: &Pools, nodes: &[Node], rules: &Rules) -> Pools {
        next_at(last, nodes, rules, Instant::now())
    }

    fn next(last: &Pools, nodes: &[Node]) -> Pools {
        next_with(last, nodes, &Rules::default())
    }

    fn pools(nodes: &[Node]) -> Pools {
        next(&Pools::default(), nodes)
    }

    fn found<'a>(pools: &'a Pools, host: &str, path: &str) -> Option<&'a Arc<Pool>> {
        match pools.stream(port(80)) {
            Some(PortRoutes::Http(routes)) => routes.find(host, path),
            _ => None,
        }
    }

    /// Application and last octets of the backends behind a host and path, as `app 1 2`.
    fn served(pools: &Pools, host: &str, path: &str) -> String {
        found(pools, host, path).map_or_else(|| "nobody".to_owned(), |pool| shown(pool))
    }

    fn shown(pool: &Pool) -> String {
        let octet = |backend: &Arc<Backend>| match backend.address.ip() {
            IpAddr::V4(ip) => format!(" {}", ip.octets()[3]),
            IpAddr::V6(ip) => format!(" {ip}"),
        };
        format!("{}{}", pool.app, pool.backends.iter().map(octet).collect::<String>())
    }

    fn tcp(pools: &Pools, number: u16) -> String {
        match pools.stream(port(number)) {
            Some(PortRoutes::Tcp(routes)) => routes.find(None).map_or_else(|| "nobody".to_owned(), |pool| shown(pool)),
            Some(_) => "not tcp".to_owned(),
            None => "nobody".to_owned(),
        }
    }

    fn refused(pools: &Pools) -> Vec<String> {
        pools.refused.iter().map(|refused| format!("{} {}: {}", refused.node.0, refused.app, refused.reason)).collect()
    }

    fn client() -> SocketAddr {
        SocketAddr::from(([9, 9, 9, 9], 9))
    }

    /// Application `a` at the node with this number.
    fn key(octet: u8) -> (AppName, SocketAddr) {
        ("a".parse().unwrap(), SocketAddr::from(([10, 0, 0, octet], 8080)))
    }

    #[test]
    fn an_exact_host_beats_a_wildcard_beats_any() {
        let apps = [
            app("exact", &["www.example.com"], "/"),
            app("near", &["*.b.example.com"], "/"),
            app("wide", &["*.example.com"], "/"),
            app("any", &[], "/"),
        ];
        let pools = pools(&[node(1, &apps)]);
        assert_eq!(served(&pools, "www.example.com", "/"), "exact 1");
        assert_eq!(served(&pools, "x.example.com", "/"), "wide 1");
        assert_eq!(served(&pools, "x.y.example.com", "/"), "wide 1");
        assert_eq!(served(&pools, "x.b.example.com", "/"), "near 1");
        assert_eq!(served(&pools, "b.example.com", "/"), "wide 1");
        assert_eq!(served(&pools, "example.com", "/"), "any 1");
        assert_eq!(served(&pools, "notexample.com", "/"), "any 1");
        assert_eq!(served(&pools, "", "/"), "any 1");
        assert!(pools.refused.is_empty());
    }

    #[test]
    fn the_longest_path_wins_and_a_host_without_one_falls_to_the_next() {
        let apps = [
            app("api", &["a.com"], "/api"),
            app("deep", &["a.com"], "/api/v2/x"),
            app("wild", &["*.com"], "/"),
            app("any", &[], "/only/any"),
        ];
        let pools = pools(&[node(1, &apps)]);
        assert_eq!(served(&pools, "a.com", "/api/v2"), "api 1");
        assert_eq!(served(&pools, "a.com", "/api/v2/x/y"), "deep 1");
        assert_eq!(served(&pools, "a.com", "/apix"), "wild 1", "the exact host has no such path");
        assert_eq!(served(&pools, "a.org", "/only/any"), "any 1");
        assert_eq!(served(&pools, "a.org", "/"), "nobody");
    }

    #[test]
    fn a_final_slash_makes_no_other_route() {
        let pools = pools(&[
            node(1, &[app("a", &[], "/x/")]),
            node(2, &[app("a", &[], "/x")]),
            node(3, &[app("b", &[], "/x/")]),
        ]);
        assert_eq!(served(&pools, "h", "/x"), "a 1 2");
        assert_eq!(pools.routes.len(), 1);
        assert_eq!(refused(&pools), ["3 b: any host on port 80/x belongs to application a"]);
    }

    #[test]
    fn differing_offers_of_one_application_each_serve_the_routes_they_name() {
        let pools = pools(&[
            node(1, &[app("a", &["old.com", "both.com"], "/")]),
            node(2, &[app("a", &["both.com", "new.com"], "/")]),
        ]);
        assert_eq!(served(&pools, "old.com", "/"), "a 1");
        assert_eq!(served(&pools, "both.com", "/"), "a 1 2");
        assert_eq!(served(&pools, "new.com", "/"), "a 2");
        assert!(pools.refused.is_empty());
        // The same load stands behind every route of one application at one address.
        let load = |host| Arc::as_ptr(&found(&pools, host, "/").unwrap().backends[0].load);
        assert_eq!(load("old.com"), load("both.com"));
        assert_eq!(pools.loads.len(), 2);
    }

    #[test]
    fn routes_with_the_same_backends_share_one_turn() {
        let names: Vec<String> = (0..300).map(|i| format!("d{i}.com")).collect();
        let of = |n: usize| {
            app(&format!("app{n}"), &names.iter().skip(n).step_by(3).map(String::as_str).collect::<Vec<_>>(), "/")
        };
        let apps = [of(0), of(1), of(2)];
        let pools = pools(&[node(1, &apps), node(2, &apps)]);
        let first = found(&pools, "d0.com", "/").unwrap();
        assert!((0..300).step_by(3).all(|i| Arc::ptr_eq(first, found(&pools, &format!("d{i}.com"), "/").unwrap())));
        assert!(!Arc::ptr_eq(first, found(&pools, "d1.com", "/").unwrap()));
    }

    #[test]
    fn a_route_belongs_to_who_had_it_first_and_else_to_the_smallest_name() {
        let (a, b) = (app("a", &["h.com"], "/"), app("b", &["h.com"], "/"));
        let both = [node(1, std::slice::from_ref(&a)), node(2, std::slice::from_ref(&b))];
        let smallest = pools(&both);
        assert_eq!(served(&smallest, "h.com", "/"), "a 1");
        assert_eq!(refused(&smallest), ["2 b: h.com:80/ belongs to application a"]);
        let b_first = pools(&[node(2, &[b])]);
        let later = next(&b_first, &both);
        assert_eq!(served(&later, "h.com", "/"), "b 2");
        assert_eq!(refused(&later), ["1 a: h.com:80/ belongs to application b"]);
        // As long as it has members, whatever their state; then it is the other's.
        let draining = next(&later, &[both[0].clone(), both[1].clone().with(AppState::Draining)]);
        assert_eq!(served(&draining, "h.com", "/"), "b");
        assert_eq!(served(&next(&draining, &both[..1]), "h.com", "/"), "a 1");
    }

    #[test]
    fn who_is_down_does_not_hold_a_route_against_who_is_there() {
        let b_first = pools(&[node(2, &[app("b", &["h.com"], "/")])]);
        let (down, other) =
            (node(2, &[app("b", &["h.com"], "/")]).is(MemberState::Down), node(1, &[app("z", &["h.com"], "/")]));
        let after = next(&b_first, &[down.clone(), other.clone()]);
        assert_eq!(served(&after, "h.com", "/"), "z 1");
        assert!(after.refused.is_empty(), "a dead node's claim is nobody's trouble: {:?}", after.refused);
        // The same for a port's protocol.
        let tcp_first = pools(&[node(2, &[stream("b", Protocol::Tcp, 80)])]);
        let down = node(2, &[stream("b", Protocol::Tcp, 80)]).is(MemberState::Down);
        assert_eq!(served(&next(&tcp_first, &[down, other]), "h.com", "/"), "z 1");
    }

    /// Every way in which gossip and probes can see a member that has not left.
    fn all_ways() -> Vec<(MemberState, Reach)> {
        let states = [MemberState::Alive, MemberState::Suspect, MemberState::Down];
        let reaches = [Reach::Unknown, Reach::Answers, Reach::Silent];
        states.into_iter().flat_map(|state| reaches.map(|reach| (state, reach))).collect()
    }

    #[test]
    fn it_takes_two_keys_to_take_a_backend_out() {
        let apps = [app("a", &["h.com"], "/"), stream("t", Protocol::Tcp, 5000)];
        let other = node(9, &apps);
        for (state, reach) in all_ways() {
            let expected = match (state, reach) {
                (MemberState::Alive | MemberState::Suspect, Reach::Unknown | Reach::Answers) => None,
                (MemberState::Down, Reach::Answers) => None,
                (MemberState::Alive | MemberState::Suspect, Reach::Silent) => Some(Why::Suspected),
                (MemberState::Down, Reach::Unknown | Reach::Silent) => Some(Why::Down),
                (MemberState::Left, _) => unreachable!(),
            };
            let one = node(1, &apps).is(state).reached(reach);
            let both = pools(&[one.clone(), other.clone()]);
            let octets = if expected.is_none() { " 1 9" } else { " 9" };
            assert_eq!(served(&both, "h.com", "/"), format!("a{octets}"), "{state:?} {reach:?}");
            assert_eq!(tcp(&both, 5000), format!("t{octets}"), "{state:?} {reach:?}");
            assert!(!found(&both, "h.com", "/").unwrap().is_last_resort);
            assert_eq!(
                both.out.values().map(|out| out.why).collect::<Vec<_>>(),
                [expected; 2].iter().flatten().copied().collect::<Vec<_>>()
            );
            // Nobody else: it stays, marked for what it is.
            let alone = pools(&[one]);
            assert_eq!((served(&alone, "h.com", "/"), tcp(&alone, 5000)), ("a 1".to_owned(), "t 1".to_owned()));
            assert_eq!(found(&alone, "h.com", "/").unwrap().is_last_resort, expected.is_some(), "{state:?} {reach:?}");
        }
    }

    #[test]
    fn what_a_backend_says_itself_counts_at_once_and_for_the_last_one_too() {
        for (state, reach) in all_ways() {
            for word in [AppState::Draining, AppState::Starting] {
                let pools = pools(&[node(1, &[app("a", &["h.com"], "/")]).is(state).reached(reach).with(word)]);
                assert_eq!(served(&pools, "h.com", "/"), "a", "{state:?} {reach:?} {word:?}");
                assert!(!found(&pools, "h.com", "/").unwrap().is_last_resort);
            }
        }
        for reach in [Reach::Unknown, Reach::Answers, Reach::Silent] {
            let left = pools(&[node(1, &[app("a", &["h.com"], "/")]).is(MemberState::Left).reached(reach)]);
            assert_eq!((left.routes.len(), left.ports.len(), left.loads.len(), left.out.len()), (0, 0, 0, 0));
        }
    }

    #[test]
    fn no_pool_is_emptied_by_suspicion_or_death() {
        let all: Vec<Node> = (1..=3).map(|id| node(id, &[app("a", &["h.com"], "/")])).collect();
        let seen = |ways: [(MemberState, Reach); 3]| {
            let nodes: Vec<Node> =
                all.iter().zip(ways).map(|(node, (state, reach))| node.clone().is(state).reached(reach)).collect();
            let pools = pools(&nodes);
            let is_last_resort = found(&pools, "h.com", "/").unwrap().is_last_resort;
            (served(&pools, "h.com", "/"), is_last_resort)
        };
        let (fine, suspected, down) = (
            (MemberState::Alive, Reach::Answers),
            (MemberState::Alive, Reach::Silent),
            (MemberState::Down, Reach::Silent),
        );
        assert_eq!(seen([fine, suspected, down]), ("a 1".to_owned(), false));
        assert_eq!(seen([suspected, suspected, down]), ("a 1 2".to_owned(), true));
        assert_eq!(seen([down, suspected, down]), ("a 2".to_owned(), true));
        assert_eq!(seen([down, down, down]), ("a 1 2 3".to_owned(), true));
        assert_eq!(seen([down, (MemberState::Down, Reach::Answers), suspected]), ("a 2".to_owned(), false));
        // One that drains is not there for others, and does not keep them out.
        let draining = all[0].clone().with(AppState::Draining);
        let rest = all[1].clone().reached(Reach::Silent);
        assert_eq!(served(&pools(&[draining, rest]), "h.com", "/"), "a 2");
    }

    #[test]
    fn a_suspected_one_holds_its_routes_and_one_that_is_down_and_answers_does_too() {
        let b_first = pools(&[node(2, &[app("b", &["h.com"], "/")])]);
        let other = node(1, &[app("a", &["h.com"], "/")]);
        for (state, reach) in [(MemberState::Alive, Reach::Silent), (MemberState::Down, Reach::Answers)] {
            let holder = node(2, &[app("b", &["h.com"], "/")]).is(state).reached(reach);
            assert_eq!(served(&next(&b_first, &[holder, other.clone()]), "h.com", "/"), "b 2");
        }
    }

    #[test]
    fn a_sign_of_life_on_the_data_path_holds_both_off_for_a_second() {
        let nodes = [1, 2].map(|id| node(id, &[app("a", &["h.com"], "/")]));
        let start = Instant::now();
        let first = next_at(&Pools::default(), &nodes, &Rules::default(), start);
        let load = Arc::clone(&found(&first, "h.com", "/").unwrap().backends[0].load);
        let after = |millis| start + Duration::from_millis(millis);
        load.succeeded(after(100));
        for (state, reach) in [
            (MemberState::Alive, Reach::Silent),
            (MemberState::Down, Reach::Silent),
            (MemberState::Down, Reach::Unknown),
        ] {
            let doubted = [nodes[0].clone().is(state).reached(reach), nodes[1].clone()];
            let at = |millis| next_at(&first, &doubted, &Rules::default(), after(millis));
            for millis in [100, 101, 600, 1098] {
                let held = at(millis);
                assert_eq!(served(&held, "h.com", "/"), "a 1 2", "{state:?} {reach:?} {millis}");
                assert!(held.out.is_empty() && Arc::ptr_eq(&held.loads[&key(1)], &load));
                let again = held.look_again.unwrap().duration_since(after(millis));
                let left = Duration::from_millis(1100 - millis);
                assert!(again >= left.saturating_sub(Duration::from_millis(1)), "{again:?} {left:?}");
                assert!(again <= left.max(LOOK_AGAIN_MIN) + Duration::from_millis(1), "{again:?} {left:?}");
            }
            let over = at(1101);
            assert_eq!((served(&over, "h.com", "/"), over.look_again), ("a 2".to_owned(), None), "{state:?} {reach:?}");
        }
        // Nobody is looked at again who is in rotation anyway, and a word of its own is not held off.
        assert_eq!(next_at(&first, &nodes, &Rules::default(), after(200)).look_again, None);
        let draining = [nodes[0].clone().with(AppState::Draining).reached(Reach::Silent), nodes[1].clone()];
        assert_eq!(served(&next_at(&first, &draining, &Rules::default(), after(200)), "h.com", "/"), "a 2");
    }

    #[test]
    fn a_suspicion_keeps_the_load_and_the_place_in_the_turn_and_death_does_not() {
        let nodes = [1, 2, 3].map(|id| node(id, &[app("a", &["h.com"], "/")]));
        let with_second = |state, reach| {
            let mut nodes = nodes.clone();
            nodes[1] = nodes[1].clone().is(state).reached(reach);
            nodes
        };
        let pick = |pools: &Pools| match found(pools, "h.com", "/")
            .unwrap()
            .pick(client(), &[])
            .unwrap()
            .backend()
            .address
            .ip()
        {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => 0,
        };
        let standing = |pools: &Pools| pools.loads[&key(2)].standing();
        let first = pools(&nodes);
        let load = Arc::clone(&first.loads[&key(2)]);
        assert_eq!([pick(&first), pick(&first), pick(&first), pick(&first)], [1, 2, 3, 1]);
        let suspected = next(&first, &with_second(MemberState::Alive, Reach::Silent));
        first.tell_loads(&suspected);
        assert!(Arc::ptr_eq(&suspected.loads[&key(2)], &load));
        assert_eq!((standing(&suspected), load.gone.is_cancelled()), (Standing::Doubtful, false));
        assert_eq!([pick(&suspected), pick(&suspected)], [3, 1]);
        let since = suspected.out[&key(2)].since;
        // It goes on for a while, and is over.
        let still = next(&suspected, &with_second(MemberState::Suspect, Reach::Silent));
        assert_eq!(still.out[&key(2)].since, since);
        let back = next(&still, &nodes);
        still.tell_loads(&back);
        assert!(Arc::ptr_eq(&back.loads[&key(2)], &load) && back.out.is_empty());
        assert_eq!(standing(&back), Standing::Fine);
        assert_eq!([pick(&back), pick(&back), pick(&back)], [3, 1, 2]);
        // Down: cut once, whether another is there or not.
        let down = next(&back, &with_second(MemberState::Down, Reach::Silent));
        back.tell_loads(&down);
        assert_eq!((load.standing(), load.gone.is_cancelled()), (Standing::Lost, true));
        let fresh = Arc::clone(&down.loads[&key(2)]);
        assert!(!Arc::ptr_eq(&fresh, &load));
        assert_eq!((fresh.standing(), fresh.gone.is_cancelled()), (Standing::Doubtful, false));
        let still = next(&down, &with_second(MemberState::Down, Reach::Unknown));
        down.tell_loads(&still);
        assert!(Arc::ptr_eq(&still.loads[&key(2)], &fresh) && !fresh.gone.is_cancelled());
        // What was sent there meanwhile goes on when it is back.
        let back = next(&still, &nodes);
        still.tell_loads(&back);
        assert!(Arc::ptr_eq(&back.loads[&key(2)], &fresh) && !fresh.gone.is_cancelled());
        assert_eq!(fresh.standing(), Standing::Fine);
    }

    #[test]
    fn a_last_resort_that_is_down_has_a_fresh_load_and_keeps_it() {
        let up = node(1, &[app("a", &["h.com"], "/")]);
        let down = up.clone().is(MemberState::Down);
        let first = pools(std::slice::from_ref(&up));
        let second = next(&first, std::slice::from_ref(&down));
        first.tell_loads(&second);
        assert!(first.loads[&key(1)].gone.is_cancelled());
        let pool = found(&second, "h.com", "/").unwrap();
        assert!(pool.is_last_resort && !pool.backends[0].load.gone.is_cancelled());
        let lease = pool.pick(client(), &[]).unwrap();
        // Another roster, with something new in it: neither the pool nor the load is another.
        let third = next(&second, &[down.clone(), node(5, &[app("z", &["z.com"], "/")])]);
        second.tell_loads(&third);
        assert!(Arc::ptr_eq(found(&third, "h.com", "/").unwrap(), pool) && !lease.backend().load.gone.is_cancelled());
        // It serves after all: in rotation for a second, each time. What is open when that ends is not cut.
        let mut last = third;
        for round in 0..3 {
            let now = Instant::now() + Duration::from_secs(round * 10);
            lease.backend().load.succeeded(now);
            for (after, is_out) in [(0, false), (2, true)] {
                let later = now + Duration::from_secs(after);
                let pools = next_at(&last, std::slice::from_ref(&down), &Rules::default(), later);
                last.tell_loads(&pools);
                assert_eq!(pools.out.contains_key(&key(1)), is_out);
                assert!(Arc::ptr_eq(&pools.loads[&key(1)], &lease.backend().load));
                assert!(!lease.backend().load.gone.is_cancelled());
                last = pools;
            }
        }
        // Back, and down again: that is another death.
        let back = next(&last, std::slice::from_ref(&up));
        let dead = next_at(&back, &[down], &Rules::default(), Instant::now() + Duration::from_secs(60));
        back.tell_loads(&dead);
        assert!(lease.backend().load.gone.is_cancelled());
    }

    #[test]
    fn what_a_node_offered_before_it_went_down_counts_until_it_is_back_or_has_left() {
        let down = Node { since: 10, ..node(1, &[app("a", &["h.com"], "/")]).is(MemberState::Down) };
        // Under its name, with another offer.
        let back = Node { id: 7, ..node(1, &[app("a", &["other.com"], "/")]) };
        let after = pools(&[down.clone(), back]);
        assert_eq!((served(&after, "h.com", "/"), served(&after, "other.com", "/")), ("nobody".into(), "a 1".into()));
        // It was back, and has said goodbye since.
        let left = |since| Node { id: 7, since, ..node(1, &[app("a", &["h.com"], "/")]).is(MemberState::Left) };
        assert!(pools(&[down.clone(), left(20)]).routes.is_empty());
        assert_eq!(served(&pools(&[down.clone(), left(5)]), "h.com", "/"), "a 1", "that was the run before");
        // One of the same name that answers is another node.
        let twin = Node { id: 8, name: "n1".to_owned(), ..node(2, &[app("a", &["h.com"], "/")]) };
        assert_eq!(served(&pools(&[down.clone(), twin.clone()]), "h.com", "/"), "a 2");
        assert_eq!(served(&pools(&[down.reached(Reach::Answers), twin]), "h.com", "/"), "a 1 2");
    }

    #[test]
    fn at_one_address_the_run_that_answers_speaks() {
        let old = Node { id: 4, ..node(1, &[app("a", &["h.com"], "/")]) };
        let new = Node { id: 3, name: "renamed".to_owned(), ..node(1, &[app("a", &["h.com"], "/")]) };
        for (state, reach) in [(MemberState::Alive, Reach::Silent), (MemberState::Down, Reach::Unknown)] {
            let first = pools(std::slice::from_ref(&old));
            for both in [
                [old.clone().is(state).reached(reach), new.clone()],
                [new.clone(), old.clone().is(state).reached(reach)],
            ] {
                let pools = next(&first, &both);
                first.tell_loads(&pools);
                let pool = found(&pools, "h.com", "/").unwrap();
                assert_eq!(
                    (shown(pool), pool.is_last_resort, pool.backends[0].node),
                    ("a 1".to_owned(), false, NodeId(3))
                );
                assert_eq!((pools.out.len(), pools.loads[&key(1)].standing()), (0, Standing::Fine));
            }
            // When that one drains, the old one's word is no reason to go on.
            let draining = new.clone().with(AppState::Draining);
            assert_eq!(served(&next(&first, &[old.clone().is(state).reached(reach), draining]), "h.com", "/"), "a");
        }
    }

    #[test]
    fn only_ready_applications_take_new_work() {
        let [starting, ready, draining] = [(1, AppState::Starting), (2, AppState::Ready), (3, AppState::Draining)]
            .map(|(id, state)| node(id, &[app("a", &[], "/")]).with(state));
        let pools = pools(&[starting.clone(), ready, draining.clone()]);
        assert_eq!(served(&pools, "h", "/"), "a 2");
        assert_eq!(pools.loads.len(), 3, "a drained one may still have connections");
        let none = next(&pools, &[starting, draining]);
        assert_eq!(served(&none, "h", "/"), "a");
        assert!(found(&none, "h", "/").unwrap().pick(client(), &[]).is_none());
    }

    #[test]
    fn a_port_speaks_one_protocol() {
        let both = [node(1, &[stream("t", Protocol::Tcp, 80)]), node(2, &[app("h", &[], "/")])];
        let smallest = pools(&both);
        assert_eq!(served(&smallest, "x", "/"), "h 2");
        assert_eq!(refused(&smallest), ["1 t: port 80 is already served with another protocol"]);
        let later = next(&pools(&both[..1]), &both);
        assert_eq!(tcp(&later, 80), "t 1");
        assert_eq!(refused(&later), ["2 h: port 80 is already served with another protocol"]);
        assert_eq!(served(&next(&later, &both[1..]), "x", "/"), "h 2");
    }

    #[test]
    fn udp_stands_beside_tcp_and_two_applications_on_one_port_do_not() {
        let apps = [stream("dns-t", Protocol::Tcp, 5353), stream("dns-u", Protocol::Udp, 5353)];
        let pools_both = pools(&[node(1, &apps), node(2, &[stream("other", Protocol::Udp, 5353)])]);
        assert_eq!(tcp(&pools_both, 5353), "dns-t 1");
        assert!(
            matches!(pools_both.ports.get(&(port(5353), true)), Some(PortRoutes::Udp(pool)) if shown(pool) == "dns-u 1")
        );
        assert_eq!(refused(&pools_both), ["2 other: UDP port 5353 belongs to application dns-u"]);
        let two = pools(&[node(1, &[stream("a", Protocol::Tcp, 5000)]), node(2, &[stream("b", Protocol::Tcp, 5000)])]);
        assert_eq!(refused(&two), ["2 b: TCP port 5000 belongs to application a"]);
    }

    #[test]
    fn backends_claim_only_what_they_are_allowed() {
        let low = pools(&[node(1, &[stream("ssh", Protocol::Tcp, 22), stream("ok", Protocol::Tcp, 1024)])]);
        assert_eq!((tcp(&low, 22), tcp(&low, 1024)), ("nobody".to_owned(), "ok 1".to_owned()));
        assert_eq!(refused(&low), ["1 ssh: lb.allow does not let backends claim port 22"]);
        let rule = |domains: &[&str], ports: &[u16]| AllowRule {
            domains: domains.iter().map(|domain| domain.parse().unwrap()).collect(),
            ports: ports.iter().map(|number| port(*number)).collect(),
        };
        let allow = Allow { rules: vec![rule(&["*.example.com"], &[80]), rule(&[], &[22])] };
        let rules = Rules { allow, ..Rules::default() };
        let apps = [
            app("a", &["a.example.com", "*.b.example.com", "evil.com", "*.com", "example.com"], "/"),
            app("any", &[], "/"),
            stream("ssh", Protocol::Tcp, 22),
        ];
        let pools = next_with(&Pools::default(), &[node(1, &apps)], &rules);
        let hosts: Vec<String> =
            pools.routes.iter().filter_map(|route| route.domain.as_ref().map(ToString::to_string)).collect();
        assert_eq!(hosts, ["a.example.com", "*.b.example.com"]);
        assert_eq!(tcp(&pools, 22), "ssh 1");
        assert_eq!(
            refused(&pools),
            [
                "1 a: lb.allow does not let backends claim *.com on port 80",
                "1 a: lb.allow does not let backends claim evil.com on port 80",
                "1 a: lb.allow does not let backends claim example.com on port 80",
                "1 any: lb.allow does not let backends claim any host on port 80",
            ]
        );
    }

    #[test]
    fn what_does_not_change_is_the_same_and_keeps_its_turn() {
        let nodes = [node(1, &[app("a", &["h.com", "i.com"], "/")]), node(2, &[app("a", &["h.com", "i.com"], "/")])];
        let first = pools(&nodes);
        let octet = |pools: &Pools, host| match found(pools, host, "/")
            .unwrap()
            .pick(client(), &[])
            .unwrap()
            .backend()
            .address
            .ip()
        {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => 0,
        };
        assert_eq!(octet(&first, "h.com"), 1);
        let second = next(&first, &nodes);
        assert!(Arc::ptr_eq(found(&first, "h.com", "/").unwrap(), found(&second, "h.com", "/").unwrap()));
        // A new route that sorts first joins the turn rather than starting another.
        let more: Vec<Node> = [1, 2].map(|id| node(id, &[app("a", &["a.com", "h.com", "i.com"], "/")])).into();
        let third = next(&second, &more);
        assert!(Arc::ptr_eq(found(&first, "h.com", "/").unwrap(), found(&third, "a.com", "/").unwrap()));
        assert_eq!(octet(&third, "a.com"), 2);
        // One more backend: it goes on from where it was.
        let three = [&more[..], &[node(3, &[app("a", &["h.com"], "/")])]].concat();
        let fourth = next(&third, &three);
        assert_eq!([octet(&fourth, "h.com"), octet(&fourth, "h.com"), octet(&fourth, "h.com")], [1, 2, 3]);
    }

    #[test]
    fn the_policy_is_the_applications_and_else_the_balancers() {
        let named = App { policy: Some(PolicyName::Hash), ..app("named", &["h.com"], "/") };
        let rules = Rules { policy: PolicyName::TwoChoices, ..Rules::default() };
        let nodes = [node(1, &[named, app("plain", &["p.com"], "/")])];
        let pools = next_with(&Pools::default(), &nodes, &rules);
        let policy = |pools: &Pools, host| found(pools, host, "/").unwrap().balancer.policy();
        assert_eq!((policy(&pools, "h.com"), policy(&pools, "p.com")), (PolicyName::Hash, PolicyName::TwoChoices));
        let changed = next(&pools, &nodes);
        assert_eq!(policy(&changed, "p.com"), PolicyName::RoundRobin);
    }

    #[test]
    fn two_runs_at_one_address_are_one_backend() {
        let old = node(1, &[app("a", &[], "/")]).is(MemberState::Suspect);
        let new = Node { id: 9, name: "renamed".to_owned(), ..node(1, &[app("a", &[], "/")]) };
        let pools = pools(&[old, new]);
        assert_eq!(served(&pools, "h", "/"), "a 1");
        assert_eq!(pools.loads.len(), 1);
    }

    #[test]
    fn loads_are_carried_over_and_cancelled_when_the_address_is_gone() {
        let nodes = [node(1, &[app("a", &[], "/")]), node(2, &[app("a", &[], "/")])];
        let first = pools(&nodes);
        let leases: Vec<Lease> =
            (0..2).map(|_| found(&first, "h", "/").unwrap().pick(client(), &[]).unwrap()).collect();
        let is_gone = || leases.iter().map(|lease| lease.backend().load.gone.is_cancelled()).collect::<Vec<_>>();
        // Another weight, a drain, another route: still the same load.
        let mut heavy = nodes.clone();
        heavy[0].apps[0].0.weight = Weight::try_from(300).unwrap();
        let heavy = next(&first, &[heavy[0].clone(), heavy[1].clone().with(AppState::Draining)]);
        first.tell_loads(&heavy);
        assert_eq!(is_gone(), [false, false]);
        let open = |pools: &Pools| pools.loads.values().map(|load| load.active.load(Ordering::Relaxed)).sum::<u32>();
        assert_eq!(open(&heavy), 2);
        // Down and left are gone, each on its own.
        let one = next(&heavy, &[nodes[0].clone(), nodes[1].clone().is(MemberState::Down)]);
        heavy.tell_loads(&one);
        assert_eq!(is_gone(), [false, true]);
        let lost = || heavy.loads.values().filter(|load| load.standing() == Standing::Lost).count();
        assert_eq!(lost(), 1);
        let none = next(&one, &[nodes[0].clone().is(MemberState::Left)]);
        one.tell_loads(&none);
        assert_eq!(is_gone(), [true, true]);
        assert_eq!((lost(), none.loads.len()), (1, 0), "the other one left");
        // Who comes back begins anew.
        let back = next(&none, &nodes);
        assert_eq!((back.loads.len(), open(&back)), (2, 0));
        assert!(back.loads.values().all(|load| !load.gone.is_cancelled()));
        drop(leases);
        assert_eq!(open(&back), 0);
    }

    #[test]
    fn another_port_at_the_same_node_is_another_address() {
        let old = pools(&[node(1, &[app("a", &[], "/")])]);
        let moved = next(&old, &[node(1, &[App { port: port(8081), ..app("a", &[], "/") }])]);
        let load = old.loads.values().next().unwrap();
        old.tell_loads(&moved);
        assert!(load.gone.is_cancelled());
    }

    #[test]
    fn what_left_and_came_back_unseen_is_gone_all_the_same() {
        let nodes = [node(1, &[app("a", &[], "/")])];
        let first = pools(&nodes);
        // The pools in between were never published.
        let back = next(&next(&first, &[]), &nodes);
        first.tell_loads(&back);
        assert!(first.loads.values().all(|load| load.gone.is_cancelled()));
        assert!(back.loads.values().all(|load| !load.gone.is_cancelled()));
    }

    #[test]
    fn the_order_of_members_does_not_matter() {
        let mut nodes: Vec<Node> = (1..=6)
            .map(|id| {
                node(
                    id,
                    &[app(["a", "b"][usize::from(id % 2)], &["h.com", "*.i.com"], "/"), stream("t", Protocol::Tcp, 80)],
                )
            })
            .collect();
        let forward = pools(&nodes);
        nodes.reverse();
        let backward = pools(&nodes);
        assert_eq!(served(&forward, "h.com", "/"), served(&backward, "h.com", "/"));
        assert_eq!(forward.refused, backward.refused);
    }

    #[test]
    fn applications_whose_clients_name_no_host_have_none_whatever_their_offer_says() {
        let domains = vec!["h.com".parse().unwrap(), "i.com".parse().unwrap()];
        let odd = App { domains: domains.clone(), ..stream("t", Protocol::Tls, 5000) };
        let pools_odd = pools(&[node(1, &[odd])]);
        assert_eq!((pools_odd.routes.len(), tcp(&pools_odd, 5000)), (1, "t 1".to_owned()));
        let odd = App { domains, ..stream("u", Protocol::Udp, 5000) };
        assert_eq!(pools(&[node(1, &[odd])]).routes.len(), 1);
    }

    #[test]
    fn tcp_applications_share_a_port_by_the_names_that_clients_ask_for() {
        let named = |name: &str, domains: &[&str]| {
            let domains = domains.iter().map(|domain| domain.parse().unwrap()).collect();
            App { domains, ..stream(name, Protocol::Tcp, 5000) }
        };
        let apps = [named("exact", &["db.a.com"]), named("wide", &["*.a.com", "b.com"])];
        let by_name = pools(&[node(1, &apps)]);
        let found = |pools: &Pools, name: Option<&str>| match pools.stream(port(5000)) {
            Some(PortRoutes::Tcp(routes)) => routes.find(name).map(|pool| shown(pool)).unwrap_or_default(),
            _ => "not tcp".to_owned(),
        };
        assert_eq!(found(&by_name, Some("db.a.com")), "exact 1");
        assert_eq!(found(&by_name, Some("x.y.a.com")), "wide 1");
        assert_eq!(found(&by_name, Some("b.com")), "wide 1");
        for nobody in [Some("a.com"), Some("x.b.com"), None] {
            assert_eq!(found(&by_name, nobody), "", "{nobody:?}");
        }
        let with_any = next(&by_name, &[node(1, &apps), node(2, &[stream("any", Protocol::Tcp, 5000)])]);
        assert_eq!(found(&with_any, Some("db.a.com")), "exact 1");
        assert_eq!((found(&with_any, Some("c.com")), found(&with_any, None)), ("any 2".to_owned(), "any 2".to_owned()));
        let clash = next(&by_name, &[node(1, &apps), node(2, &[named("late", &["b.com"])])]);
        assert_eq!(refused(&clash), ["2 late: b.com on TCP port 5000 belongs to application wide"]);
        assert!(matches!(with_any.stream(port(5000)), Some(PortRoutes::Tcp(routes)) if routes.is_by_name()));
        let alone = pools(&[node(1, &[stream("any", Protocol::Tcp, 5000)])]);
        assert!(matches!(alone.stream(port(5000)), Some(PortRoutes::Tcp(routes)) if !routes.is_by_name()));
    }

    #[test]
    fn many_applications_and_domains_are_quick_to_build() {
        let names: Vec<String> = (0..900).map(|i| format!("site-{i}.example.com")).collect();
        let apps: Vec<App> = (0..256)
            .map(|n| {
                app(
                    &format!("app-{n}"),
                    &names.iter().skip(n).step_by(256).map(String::as_str).collect::<Vec<_>>(),
                    "/",
                )
            })
            .collect();
        let nodes: Vec<Node> = (1..=10).map(|id| node(id, &apps)).collect();
        let first = pools(&nodes);
        let start = Instant::now();
        let second = next(&first, &nodes[..9]);
        let took = start.elapsed();
        assert_eq!(second.routes.len(), 900);
        assert_eq!(served(&second, "site-899.example.com", "/"), "app-131 1 2 3 4 5 6 7 8 9");
        // A few ms when optimized; this bound is for a debug build on a busy machine.
        assert!(took.as_millis() < 500, "{took:?}");
    }
}
