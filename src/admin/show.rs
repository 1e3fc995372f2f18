//! Turns what the rooms publish into views. Reads [`Sources`]; changes nothing.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::table::span;
use super::view::{
    AloneView, AppView, AppsView, BackendView, ContactView, EmptyRouteView, GenerateView, KeyView, ListenerView,
    LocalAppView, MemberCountsView, MemberView, MembersView, NodeView, RefusedView, SeedStoreView, StatusView,
};
use super::{Lifecycle, Sources};
use crate::app::{App, AppState, Transport};
use crate::member::{Member, MemberState, NodeId, Reach, Role, Roster};
use crate::name::{AppName, NodeName};
use crate::pool::{Pool, Pools, Refused, Route, Why};
use crate::report::{GenerateReport, JoinReport, KeyReport, ListenReport, LocalAppReport, StoreReport};

/// The most refused offers that a status lists.
const REFUSED_MAX: usize = 1000;
/// The most sentences of one kind among the problems.
const PROBLEMS_OF_A_KIND_MAX: usize = 10;

impl Lifecycle {
    /// The word for it in JSON.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

/// `GET /v1/status`.
pub(super) fn status(sources: &Sources, now: SystemTime) -> StatusView {
    let roster = sources.roster.borrow().clone();
    let pools = sources.pools.as_ref().map(|pools| pools.borrow().clone());
    let mut view = StatusView {
        node: node(sources, &roster),
        cluster: roster.cluster.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: now.duration_since(sources.node.started).unwrap_or_default().as_secs(),
        state: sources.lifecycle.borrow().as_str().to_owned(),
        alone: alone(&sources.join.borrow()),
        members: member_counts(&roster),
        keys: keys(sources),
        seeds: sources.seeds.borrow().stores.iter().map(store).collect(),
        listeners: sources.listeners.as_ref().map(|ports| ports.borrow().iter().map(listener).collect()),
        generate: sources.generate.as_ref().map(|report| generate(&report.borrow())),
        refused: pools.as_ref().map_or_else(Vec::new, |pools| refused(&roster, &pools.refused)),
        routes: pools.as_ref().map(|pools| pools.routes.len()),
        empty_routes: pools.as_ref().map_or_else(Vec::new, |pools| routes(pools, |pool| pool.backends.is_empty())),
        last_resort_routes: pools.as_ref().map_or_else(Vec::new, |pools| routes(pools, |pool| pool.is_last_resort)),
        local_apps: sources.local_apps.as_ref().map(|apps| apps.borrow().iter().map(local_app).collect()),
        problems: Vec::new(),
    };
    view.problems = problems(&view);
    add(&mut view.problems, "names", same_names(&roster).into_iter());
    view
}

/// `GET /v1/members`.
pub(super) fn members(roster: &Roster, keys: &KeyReport) -> MembersView {
    let members = roster.members.iter().map(|one| MemberView { key: key_of(one, roster, keys), ..member(one) });
    MembersView { cluster: roster.cluster.to_string(), members: members.collect() }
}

/// `GET /v1/apps`: one entry for each distinct (name, protocol, listen port, domains, path).
pub(super) fn apps(sources: &Sources) -> AppsView {
    let roster = sources.roster.borrow().clone();
    let pools = sources.pools.as_ref().map(|pools| pools.borrow().clone());
    let local = sources.local_apps.as_ref().map(|apps| apps.borrow().clone());
    let refused = pools.as_ref().map(|pools| reasons(&pools.refused)).unwrap_or_default();
    let served = pools.as_ref().map(|pools| served(&pools.routes)).unwrap_or_default();
    let context = Context { roster: &roster, pools: pools.as_deref(), local: local.as_deref(), refused, served };
    let mut entries: BTreeMap<_, Vec<BackendView>> = BTreeMap::new();
    for member in roster.members.iter().filter(|member| member.state != MemberState::Left) {
        for (app, state) in member.offer.iter().flat_map(|offer| &offer.apps) {
            let key = (&app.name, app.listen, app.protocol, &app.domains, &app.path);
            entries.entry(key).or_default().extend(context.backend(member, app, *state));
        }
    }
    let apps = entries.into_iter().map(|((name, listen, protocol, domains, path), backends)| AppView {
        name: name.to_string(),
        protocol: protocol.to_string(),
        listen: listen.get(),
        domains: domains.iter().map(ToString::to_string).collect(),
        path: path.to_string(),
        backends,
    });
    AppsView { apps: apps.collect() }
}

/// What an entry of `/v1/apps` is made from.
struct Context<'a> {
    roster: &'a Roster,
    pools: Option<&'a Pools>,
    local: Option<&'a Vec<LocalAppReport>>,
    refused: HashMap<(NodeId, &'a AppName), &'a str>,
    /// Who is in a pool now, and whether as a last resort in one of them.
    served: HashMap<(NodeId, &'a AppName, SocketAddr), bool>,
}

impl Context<'_> {
    /// None of a member that is down and serves nobody: its routes stand, and so do its entries here.
    fn backend(&self, member: &Member, app: &App, state: AppState) -> Option<BackendView> {
        let address = SocketAddr::new(member.address.ip(), app.port.get());
        let is_served = self.served.contains_key(&(member.id, &app.name, address));
        if Why::of(member) == Some(Why::Down) && !is_served {
            return None;
        }
        let load = self.pools.and_then(|pools| pools.loads.get(&(app.name.clone(), address)));
        let load = |read: fn(&crate::backend::Load) -> u64| load.map_or(0, |load| read(load));
        let (state, reason) = self.state(member, app, state);
        Some(BackendView {
            node: member_name(member),
            address: address.to_string(),
            state: state.to_owned(),
            reason: reason.map(Cow::into_owned),
            weight: app.weight.get(),
            policy: app.policy.map(|policy| policy.as_str().to_owned()),
            active: u32::try_from(load(|load| load.active.load(Ordering::Relaxed).into())).unwrap_or(u32::MAX),
            requests: load(|load| load.requests.load(Ordering::Relaxed)),
            failures: load(|load| load.failures.load(Ordering::Relaxed)),
        })
    }

    fn state(&self, member: &Member, app: &App, state: AppState) -> (&'static str, Option<Cow<'_, str>>) {
        if let Some(reason) = self.refused.get(&(member.id, &app.name)) {
            return (app_state(state), Some(format!("not all of it is served here: {reason}").into()));
        }
        match state {
            AppState::Ready => self.ready(member, app),
            AppState::Starting if member.id == self.roster.me => ("starting", self.local_reason(app)),
            AppState::Starting => ("starting", Some("its application does not answer yet".into())),
            _ => (app_state(state), None),
        }
    }

    /// How one stands that is ready by its own word.
    fn ready(&self, member: &Member, app: &App) -> (&'static str, Option<Cow<'_, str>>) {
        let address = SocketAddr::new(member.address.ip(), app.port.get());
        let served = self.served.get(&(member.id, &app.name, address));
        let out = self.pools.and_then(|pools| pools.out.get(&(app.name.clone(), address)));
        let Some(said) = Why::of(member) else {
            let reason = match member.state {
                MemberState::Suspect => Some("another member did not hear from its node; it still gets requests"),
                MemberState::Down => Some("the gossip takes its node for down, but it answers: it still gets requests"),
                MemberState::Alive | MemberState::Left => None,
            };
            return ("ready", reason.map(Into::into));
        };
        let fact = match (said, out, served) {
            (_, None, Some(_)) => {
                let reason = "it does not answer this balancer's probes, but has served within the last second";
                return ("ready", Some(reason.into()));
            }
            (Why::Suspected, None, None) => "it does not answer this balancer's probes".to_owned(),
            (Why::Suspected, Some(out), _) => {
                format!(
                    "it does not answer this balancer's probes; suspected for {}",
                    span(out.since.elapsed().as_secs())
                )
            }
            (Why::Down, None, None) => "its node is down".to_owned(),
            (Why::Down, Some(out), _) => format!("its node is down; out for {}", span(out.since.elapsed().as_secs())),
        };
        let reason = if served == Some(&true) { fact + "; last resort, no other is left" } else { fact };
        ("suspected", Some(reason.into()))
    }

    fn local_reason(&self, app: &App) -> Option<Cow<'_, str>> {
        let report = self.local?.iter().find(|report| report.app.name == app.name)?;
        report.reason.as_deref().map(Cow::Borrowed)
    }
}

fn served(routes: &[Route]) -> HashMap<(NodeId, &AppName, SocketAddr), bool> {
    let mut seen: HashSet<*const Pool> = HashSet::new();
    let mut served = HashMap::new();
    // Many routes share one pool.
    for pool in routes.iter().map(|route| &route.pool).filter(|pool| seen.insert(Arc::as_ptr(pool))) {
        for backend in &pool.backends {
            *served.entry((backend.node, &pool.app, backend.address)).or_default() |= pool.is_last_resort;
        }
    }
    served
}

fn reasons(refused: &[Refused]) -> HashMap<(NodeId, &AppName), &str> {
    refused.iter().map(|refused| ((refused.node, &refused.app), refused.reason.as_str())).collect()
}

fn node(sources: &Sources, roster: &Roster) -> NodeView {
    let me = roster.members.iter().find(|member| member.id == roster.me);
    NodeView {
        name: sources.node.name.to_string(),
        id: roster.me.to_string(),
        role: sources.node.role.as_str().to_owned(),
        address: me.map(|me| me.address.to_string()),
    }
}

fn alone(report: &JoinReport) -> AloneView {
    let contact = |contact: &crate::report::ContactReport| ContactView {
        address: contact.address.to_string(),
        outcome: contact.outcome.clone(),
    };
    AloneView { alone: report.alone, contacts: report.contacts.iter().map(contact).collect() }
}

fn member_counts(roster: &Roster) -> MemberCountsView {
    let mut counts = MemberCountsView::default();
    for member in &roster.members {
        match member.state {
            MemberState::Down => counts.down += 1,
            MemberState::Left => counts.left += 1,
            MemberState::Alive | MemberState::Suspect => match member.role {
                Some(Role::Balancer) => counts.balancers += 1,
                Some(Role::Backend) => counts.backends += 1,
                None => counts.unknown += 1,
            },
        }
        counts.suspect += usize::from(member.state == MemberState::Suspect);
        counts.silent += usize::from(member.state != MemberState::Left && member.reach == Reach::Silent);
    }
    counts
}

/// This node's cluster keys, and what the members that are there do with them.
pub(super) fn keys(sources: &Sources) -> Vec<KeyView> {
    let (roster, report) = (sources.roster.borrow().clone(), sources.keys.borrow().clone());
    let mut views: Vec<KeyView> =
        report.own.iter().map(|id| KeyView { id: id.to_string(), ..KeyView::default() }).collect();
    for member in roster.members.iter().filter(|member| member.id != roster.me && member.state.is_active()) {
        let told = report.members.get(&member.id);
        for (view, id) in views.iter_mut().zip(&report.own) {
            let Some(told) = told else {
                view.unheard.push(member_name(member));
                continue;
            };
            let opens_another = || report.own.iter().any(|other| other != id && told.opens.contains(other));
            let opens = told.opens.contains(id);
            if told.sealed_with == *id || opens && !opens_another() {
                view.used_by.push(member_name(member));
            }
            if !opens {
                view.missing_at.push(member_name(member));
            }
        }
    }
    views
}

fn key_of(member: &Member, roster: &Roster, report: &KeyReport) -> Option<String> {
    let own = report.own.first().filter(|_| member.id == roster.me);
    let told = report.members.get(&member.id).filter(|_| !report.own.is_empty());
    own.or_else(|| told.map(|told| &told.sealed_with)).map(ToString::to_string)
}

fn store(report: &StoreReport) -> SeedStoreView {
    SeedStoreView {
        url: report.url.clone(),
        ok: report.error.is_none() && report.last_ok.is_some(),
        last_ok: report.last_ok.map(Into::into),
        error: report.error.clone(),
        seeds: report.seeds,
    }
}

fn listener(report: &ListenReport) -> ListenerView {
    ListenerView {
        port: report.port.get(),
        transport: transport(report.transport).to_owned(),
        addresses: report.addresses.iter().map(ToString::to_string).collect(),
        error: report.error.clone(),
    }
}

fn generate(report: &GenerateReport) -> GenerateView {
    GenerateView {
        target: report.target.clone(),
        ok: report.error.is_none() && report.last_ok.is_some(),
        last_ok: report.last_ok.map(Into::into),
        error: report.error.clone(),
    }
}

fn refused(roster: &Roster, refused: &[Refused]) -> Vec<RefusedView> {
    let names: HashMap<NodeId, &Member> = roster.members.iter().map(|member| (member.id, member)).collect();
    let view = |refused: &Refused| RefusedView {
        node: names.get(&refused.node).map_or_else(|| refused.node.to_string(), |member| member_name(member)),
        app: refused.app.to_string(),
        reason: refused.reason.clone(),
    };
    refused.iter().take(REFUSED_MAX).map(view).collect()
}

/// The routes whose pool is such, each application and port once.
fn routes(pools: &Pools, is_such: impl Fn(&Pool) -> bool) -> Vec<EmptyRouteView> {
    let found = pools.routes.iter().filter(|route| is_such(&route.pool));
    let names: BTreeSet<_> =
        found.map(|route| EmptyRouteView { app: route.pool.app.to_string(), listen: route.listen.get() }).collect();
    names.into_iter().collect()
}

fn local_app(report: &LocalAppReport) -> LocalAppView {
    LocalAppView {
        name: report.app.name.to_string(),
        port: report.app.port.get(),
        state: app_state(report.state).to_owned(),
        reason: report.reason.clone(),
    }
}

fn member(member: &Member) -> MemberView {
    MemberView {
        id: member.id.to_string(),
        name: member.name.as_ref().map(ToString::to_string),
        role: member.role.map(|role| role.as_str().to_owned()),
        address: member.address.to_string(),
        state: member.state.as_str().to_owned(),
        reach: reach(member.reach).to_owned(),
        since: member.since.into(),
        key: None,
        apps: member.offer.iter().flat_map(|offer| &offer.apps).map(|(app, _)| app.name.to_string()).collect(),
    }
}

pub(super) fn reach(reach: Reach) -> &'static str {
    match reach {
        Reach::Unknown => "unknown",
        Reach::Answers => "answers",
        Reach::Silent => "silent",
    }
}

fn member_name(member: &Member) -> String {
    member.name.as_ref().map_or_else(|| member.id.to_string(), ToString::to_string)
}

fn app_state(state: AppState) -> &'static str {
    match state {
        AppState::Starting => "starting",
        AppState::Ready => "ready",
        AppState::Draining => "draining",
    }
}

pub(super) fn transport(transport: Transport) -> &'static str {
    match transport {
        Transport::Http => "http",
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

/// Everything in a status that is not as it should be. Pure, so that each sentence can be tried.
fn problems(status: &StatusView) -> Vec<String> {
    let mut all = Vec::new();
    all.extend(problem_of_being_alone(status));
    add(&mut all, "seed stores", status.seeds.iter().filter_map(store_problem));
    add(&mut all, "ports", status.listeners.iter().flatten().filter_map(listener_problem));
    all.extend(status.generate.iter().filter_map(generate_problem));
    let refused = status.refused.iter().map(|refused| {
        let remedy = refusal_remedy(&refused.reason);
        format!("application {} of {} is not served in full: {}: {remedy}", refused.app, refused.node, refused.reason)
    });
    add(&mut all, "refused offers", refused);
    let empty = status.empty_routes.iter();
    let empty = empty.map(|route| format!("application {} on port {} has no ready backend", route.app, route.listen));
    add(&mut all, "applications without a backend", empty);
    let last = status.last_resort_routes.iter().map(|route| {
        format!(
            "application {} on port {} has no backend that answers this balancer: those that are left are asked as a \
             last resort",
            route.app, route.listen
        )
    });
    add(&mut all, "applications on their last resort", last);
    add(&mut all, "applications", status.local_apps.iter().flatten().filter_map(local_app_problem));
    all
}

/// Hosts that were cloned often have one name; everything works but what people and seed stores know by name.
fn same_names(roster: &Roster) -> Vec<String> {
    let mut nodes: BTreeMap<&NodeName, Vec<String>> = BTreeMap::new();
    for member in roster.members.iter().filter(|member| member.state.is_active()) {
        if let Some(name) = &member.name {
            nodes.entry(name).or_default().push(member.address.to_string());
        }
    }
    let doubled = nodes.into_iter().filter(|(_, addresses)| addresses.len() > 1);
    let sentence = |(name, addresses): (&NodeName, Vec<String>)| {
        let count = addresses.len();
        let shown: Vec<String> = addresses.into_iter().take(5).collect();
        format!(
            "{count} nodes are named {name} ({}): give each a name of its own (node.name or --name), or they take \
             each other's place in a seed store",
            shown.join(", ")
        )
    };
    doubled.map(sentence).collect()
}

fn add(all: &mut Vec<String>, what: &str, sentences: impl Iterator<Item = String>) {
    let mut sentences = sentences;
    all.extend(sentences.by_ref().take(PROBLEMS_OF_A_KIND_MAX));
    let more = sentences.count();
    if more > 0 {
        all.push(format!("and {more} more {what} like these"));
    }
}

fn problem_of_being_alone(status: &StatusView) -> Option<String> {
    let is_backend = status.node.role == Role::Backend.as_str();
    if !status.alone.alone {
        let lacks_balancer = is_backend && status.members.balancers == 0 && status.members.unknown == 0;
        return lacks_balancer.then(|| "no balancer is there: nobody sends requests to this backend".to_owned());
    }
    let tried = &status.alone.contacts;
    if !tried.is_empty() {
        let tried: Vec<_> =
            tried.iter().take(5).map(|contact| format!("{}: {}", contact.address, contact.outcome)).collect();
        return Some(format!("this node is alone: no seed let it in ({})", tried.join("; ")));
    }
    Some(if status.seeds.is_empty() {
        "this node is alone: it has no seed store, and nobody has come to it; name one with --seed".to_owned()
    } else if status.seeds.iter().all(|store| !store.ok) {
        "this node is alone, and no seed store is as it should be".to_owned()
    } else {
        "this node is alone: the seed stores name no other node".to_owned()
    })
}

fn store_problem(store: &SeedStoreView) -> Option<String> {
    let error = store.error.as_ref()?;
    let last = store.last_ok.map_or_else(|| "it has never answered".to_owned(), |last| format!("last answer {last}"));
    Some(format!("seed store {} fails: {error} ({last})", store.url))
}

/// What is refused by this balancer's rules needs another remedy than what somebody else has.
fn refusal_remedy(reason: &str) -> &'static str {
    if reason.starts_with("lb.allow") {
        "allow it on this balancer, or have the application ask for something else"
    } else {
        "give one of the two applications another listen port, domain or path"
    }
}

fn listener_problem(listener: &ListenerView) -> Option<String> {
    let error = listener.error.as_ref()?;
    Some(format!("port {} ({}) is not open everywhere: {error}", listener.port, listener.transport))
}

fn generate_problem(generate: &GenerateView) -> Option<String> {
    let error = generate.error.as_ref()?;
    Some(format!("the newest state is not in use in {}: {error}", generate.target))
}

fn local_app_problem(app: &LocalAppView) -> Option<String> {
    let reason = app.reason.as_deref().unwrap_or("it does not answer yet");
    (app.state == "starting").then(|| format!("application {} is not ready: {reason}", app.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy(role: &str) -> StatusView {
        StatusView {
            node: NodeView { name: "n".into(), id: "0".into(), role: role.into(), address: None },
            cluster: "default".into(),
            version: "0".into(),
            uptime_seconds: 0,
            state: "ready".into(),
            alone: AloneView { alone: false, contacts: Vec::new() },
            members: MemberCountsView { balancers: 1, backends: 1, ..MemberCountsView::default() },
            keys: Vec::new(),
            seeds: vec![SeedStoreView { url: "file:///s".into(), ok: true, last_ok: None, error: None, seeds: 1 }],
            listeners: None,
            generate: None,
            refused: Vec::new(),
            routes: None,
            empty_routes: Vec::new(),
            last_resort_routes: Vec::new(),
            local_apps: None,
            problems: Vec::new(),
        }
    }

    fn only_problem(status: &StatusView) -> String {
        let all = problems(status);
        assert_eq!(all.len(), 1, "{all:?}");
        all.concat()
    }

    #[test]
    fn a_healthy_node_has_no_problems() {
        assert_eq!(problems(&healthy("backend")), Vec::<String>::new());
        assert_eq!(problems(&healthy("balancer")), Vec::<String>::new());
    }

    #[test]
    fn being_alone_is_explained() {
        let mut status = healthy("backend");
        status.members.balancers = 0;
        assert!(only_problem(&status).contains("no balancer"));
        status.alone.alone = true;
        assert!(only_problem(&status).contains("name no other node"));
        status.seeds[0].ok = false;
        assert!(only_problem(&status).contains("no seed store is as it should be"));
        status.seeds.clear();
        assert!(only_problem(&status).contains("--seed"));
        let outcome = "answers with another cluster key".to_owned();
        status.alone.contacts = vec![ContactView { address: "10.0.0.1:7377".into(), outcome }];
        assert!(only_problem(&status).contains("10.0.0.1:7377: answers with another cluster key"));
    }

    #[test]
    fn each_thing_that_fails_has_its_sentence() {
        let mut status = healthy("balancer");
        status.seeds[0].error = Some("503".into());
        assert!(only_problem(&status).contains("seed store file:///s fails: 503"));

        let mut status = healthy("balancer");
        let error = Some("taken by nginx".into());
        status.listeners = Some(vec![ListenerView {
            port: 80,
            transport: "http".into(),
            addresses: Vec::new(),
            error: error.clone(),
        }]);
        assert!(only_problem(&status).contains("port 80 (http)"));

        let mut status = healthy("balancer");
        status.generate = Some(GenerateView { target: "/etc/x".into(), ok: false, last_ok: None, error });
        assert!(only_problem(&status).contains("not in use in /etc/x"));

        let mut status = healthy("balancer");
        status.empty_routes = vec![EmptyRouteView { app: "web".into(), listen: 80 }];
        assert!(only_problem(&status).contains("application web on port 80 has no ready backend"));

        let mut status = healthy("balancer");
        status.last_resort_routes = vec![EmptyRouteView { app: "web".into(), listen: 80 }];
        assert!(only_problem(&status).contains("application web on port 80 has no backend that answers"));

        let mut status = healthy("backend");
        let reason = Some("connection refused".into());
        status.local_apps = Some(vec![LocalAppView { name: "a".into(), port: 1, state: "starting".into(), reason }]);
        assert!(only_problem(&status).contains("application a is not ready: connection refused"));
    }

    #[test]
    fn many_problems_of_one_kind_are_counted_not_listed() {
        let mut status = healthy("balancer");
        let refused = |i| RefusedView { node: "n".into(), app: format!("a{i}"), reason: "no".into() };
        status.refused = (0..500).map(refused).collect();
        let all = problems(&status);
        assert_eq!(all.len(), PROBLEMS_OF_A_KIND_MAX + 1);
        assert!(all.last().unwrap().contains("490 more"), "{all:?}");
    }
}
