//! The cases of the benchmark `gossip`: each runs one seed and says what it measured, beside what is promised.
//!
//! Unless a case says otherwise the network loses 1 %, delays by 1 to 20 ms, doubles one datagram of a thousand and
//! makes one of a hundred thousand two seconds late; three nodes are balancers, the others backends.

use std::sync::OnceLock;
use std::time::Duration;

use rand::RngExt as _;
use rand::seq::SliceRandom as _;

use super::network::{Bursts, Network};
use super::store::Health;
use super::{MINUTE, MS, Mode, SECOND, Seeds, Simulation, Start, at};
use crate::app::{App, AppState, OFFER_BYTES_MAX, Offer, Protocol};
use crate::gossip::core::{Addition, DATAGRAM_BYTES_MAX, Input};
use crate::gossip::record::encode_apps;
use crate::member::{MemberState, Role};
use crate::name::{PathPrefix, Port, Weight};

const HOUR: Duration = Duration::from_secs(3600);
/// The unit in which the spreading of changes is counted: one period of the gossip.
const INTERVAL: Duration = Duration::from_millis(200);
/// What does not come to pass within this is said never to.
const NEVER: Duration = Duration::from_secs(600);

/// One run of a case.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Decides everything that is random.
    pub seed: u64,
    /// Who runs.
    pub mode: Mode,
    /// Less of everything, for a person in a hurry.
    pub quick: bool,
    /// What our core is to do without.
    pub(super) without: Option<Addition>,
}

impl Setup {
    /// A run of all that is ours, or of plain foca.
    #[must_use]
    pub const fn new(seed: u64, mode: Mode, quick: bool) -> Self {
        Self { seed, mode, quick, without: None }
    }

    fn simulation(&self, size: u32) -> Simulation {
        let mut sim = Simulation::new(self.seed, self.mode, size);
        sim.without = self.without;
        sim
    }

    fn pick<T>(&self, whole: T, quick: T) -> T {
        if self.quick { quick } else { whole }
    }
}

/// What is promised of a measure; none of these: it is only shown.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Goal {
    /// Of half of all values.
    pub p50: Option<f64>,
    /// Of 99 in a hundred.
    pub p99: Option<f64>,
    /// Of 999 in a thousand.
    pub p999: Option<f64>,
    /// Of every value.
    pub max: Option<f64>,
}

impl Goal {
    const SHOWN: Self = Self { p50: None, p99: None, p999: None, max: None };
    const ZERO: Self = Self::max(0.0);

    const fn max(limit: f64) -> Self {
        Self { max: Some(limit), ..Self::SHOWN }
    }
}

/// What was measured, once or often in a run.
#[derive(Debug, Clone)]
pub struct Measure {
    /// In words.
    pub what: &'static str,
    /// The unit of its values.
    pub unit: &'static str,
    /// What is promised.
    pub goal: Goal,
    /// The values; infinite: it did not come to pass.
    pub values: Vec<f64>,
}

/// The value that this share of sorted values does not exceed; none of none.
#[must_use]
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.max(1) - 1).copied().unwrap_or(f64::NAN)
}

impl Measure {
    /// Whether its values, sorted, are as promised.
    #[must_use]
    pub fn is_met(&self) -> bool {
        let goal = &self.goal;
        let limits = [(goal.p50, 0.5), (goal.p99, 0.99), (goal.p999, 0.999), (goal.max, 1.0)];
        // Of no values the percentile is no number, and no number is below any limit.
        limits.into_iter().all(|(limit, share)| limit.is_none_or(|limit| percentile(&self.values, share) <= limit))
    }
}

/// What one run of a case does.
type Run = Box<dyn Fn(&Setup) -> Vec<Measure> + Send + Sync>;

/// One case.
pub struct Case {
    /// What it is called on the command line.
    pub name: String,
    /// How many seeds it is run with, unless told.
    pub seeds: u64,
    /// Whether plain foca can do it at all.
    pub has_baseline: bool,
    /// Whether time is measured, so that nothing may run beside it.
    pub runs_alone: bool,
    run: Run,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Case {
    /// Runs it once.
    #[must_use]
    pub fn run(&self, setup: &Setup) -> Vec<Measure> {
        (self.run)(setup)
    }
}

/// All cases, in the order in which they are shown; those that take long come last.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for size in [10, 50, 200] {
        cases.push(case(format!("stop-using-dead-{size}"), move |setup| stop_using_dead(setup, size)));
    }
    for size in [2, 3, 5, 10, 50] {
        let run = move |setup: &Setup| false_removals(setup, size, 0.3, setup.pick(HOUR, 5 * MINUTE));
        cases.push(case(format!("false-removals-30-{size}"), run));
    }
    cases.push(case("bursts-50", |setup| bursts(setup, 50)));
    cases.push(case("restart-storm-50", |setup| restart_storm(setup, 50, setup.pick(5 * MINUTE, 2 * MINUTE))));
    cases.push(case("throttled-50", |setup| throttled(setup, 50, setup.pick(HOUR, 5 * MINUTE))));
    cases.push(case("paused-50", |setup| paused(setup, 50)));
    cases.push(case("stuttering-50", |setup| stuttering(setup, 50)));
    cases.push(case("deaf-50", |setup| deaf(setup, 50)));
    cases.push(case("one-link-50", |setup| one_link(setup, 50)));
    cases.push(case("partition-50", |setup| partition(setup, 50)));
    cases.push(case("cold-start-50", |setup| cold_start(setup, 50, 3.0)));
    for (size, goal) in [(10, 6.0), (100, 8.0)] {
        cases.push(case(format!("change-{size}"), move |setup| change(setup, size, goal)));
    }
    cases.push(case("drain-50", |setup| drain(setup, 50)).without_baseline());
    for size in [2, 10, 50, 200] {
        cases.push(case(format!("traffic-{size}"), move |setup| traffic(setup, size)));
    }
    cases.push(case("metadata-100", |setup| metadata(setup, 100)).without_baseline());
    cases.push(case("restart-10", restart));
    cases.push(case("cluster-restart-20", cluster_restart));
    cases.push(case("late-balancers-10", late_balancers));
    cases.push(case("left-behind-10", left_behind));
    cases.push(case("most-die-5", most_die));
    cases.push(case("blackout-50", |setup| blackout(setup, 50)));
    cases.push(case("store-failing-10", store_failing));
    cases.push(case("duplicate-address-10", duplicate_address));
    cases.push(case("ghosts-50", |setup| ghosts(setup, 50)));
    cases.push(case("key-rotation-20", |setup| key_rotation(setup, 20)).without_baseline());
    for size in [100, 1000] {
        let measured = case(format!("work-{size}"), move |setup| work(setup, size));
        cases.push(Case { seeds: 4, runs_alone: true, ..measured });
    }
    cases.push(case("cold-start-500", |setup| cold_start(setup, 500, 30.0)));
    cases.push(case("traffic-500", |setup| traffic(setup, 500)));
    cases.push(case("change-1000", |setup| change(setup, 1000, 11.0)));
    let run = |setup: &Setup| false_removals(setup, 50, 0.05, setup.pick(24 * HOUR, 10 * MINUTE));
    cases.push(case("false-removals-5-50", run));
    cases.push(case("churn-500", |setup| churn(setup, 500, setup.pick(HOUR, 5 * MINUTE))));
    cases
}

fn case(name: impl Into<String>, run: impl Fn(&Setup) -> Vec<Measure> + Send + Sync + 'static) -> Case {
    Case { name: name.into(), seeds: 20, has_baseline: true, runs_alone: false, run: Box::new(run) }
}

impl Case {
    fn without_baseline(self) -> Self {
        Self { has_baseline: false, ..self }
    }
}

/// Something that this project adds to foca, and what gets worse without it.
#[derive(Debug)]
pub struct Ablation {
    /// What is left out.
    pub name: String,
    /// Where it is missed.
    pub case: Case,
    /// The measure that gets worse.
    pub what: &'static str,
    addition: Addition,
}

impl Ablation {
    /// Runs its case once, with or without.
    #[must_use]
    pub fn run(&self, setup: &Setup, is_left_out: bool) -> Vec<Measure> {
        self.case.run(&Setup { without: is_left_out.then_some(self.addition), ..*setup })
    }
}

/// Everything that is added, each where it is missed.
#[must_use]
pub fn ablations() -> Vec<Ablation> {
    use Addition::{
        Announcements, Echoes, Knocks, StaleNotice, StallGuard, StartOver, Transmissions, UndeadFilter, WitnessGuard,
    };
    let places = [
        (Echoes, "stop-using-dead-50", "power off until out of rotation"),
        (UndeadFilter, "false-removals-30-50", "identity changes"),
        (Transmissions, "false-removals-30-50", "healthy members seen down"),
        (Announcements, "partition-50", "one view after it healed"),
        (StallGuard, "stuttering-50", "members it convicts"),
        (WitnessGuard, "deaf-50", "others seen down by healthy members"),
        (StartOver, "most-die-5", "the dead are down at the others"),
        (Knocks, "late-balancers-10", "one view after the balancers came up"),
        (StaleNotice, "restart-10", "one view after a restart, its clock an hour back"),
    ];
    let found = |name: &str| cases().into_iter().find(|case| case.name == name).expect("a case");
    let ablation =
        |(addition, name, what)| Ablation { name: format!("{addition:?}"), case: found(name), what, addition };
    places.into_iter().map(ablation).collect()
}

// === what cases are made of ===

/// Some applications, of which the first has `tag` as its weight so that versions can be told apart.
pub(crate) fn offer(apps: usize, domains: usize, tag: u16) -> Offer {
    let app = |i: usize| App {
        name: format!("app-{i:03}").parse().expect("a name"),
        protocol: Protocol::Http,
        port: Port::new(8080).expect("a port"),
        listen: Port::new(80).expect("a port"),
        domains: (0..domains).map(|d| format!("d{d}-{i:03}.example.com").parse().expect("a domain")).collect(),
        path: PathPrefix::root(),
        weight: Weight::try_from(if i == 0 { tag } else { 100 }).expect("a weight"),
        policy: None,
        proxy_protocol: None,
    };
    let mut offer = Offer { apps: (0..apps).map(|i| (app(i), AppState::Ready)).collect() };
    for (app, _) in &mut offer.apps {
        app.normalize();
    }
    offer
}

const BALANCERS: u32 = 3;

impl Simulation {
    pub(super) fn begin(&mut self, host: u32, balancers: u32, seeds: Seeds) {
        let role = if host < balancers { Role::Balancer } else { Role::Backend };
        let start = Start { host, role, seeds, offer: offer(1, 1, 1), clock_back: Duration::ZERO, twin_of: None };
        self.start(start);
    }

    /// Starts a host that knows the balancers.
    fn join(&mut self, host: u32, balancers: u32) {
        self.begin(host, balancers, Seeds::Fixed((0..balancers).collect()));
    }

    fn any_backend(&mut self, balancers: u32) -> u32 {
        loop {
            let host = self.rng.random_range(balancers..self.hosts.len() as u32);
            if self.is_well(host) {
                return host;
            }
        }
    }

    /// A backend with even seeds, a balancer with odd ones.
    fn any_victim(&mut self, balancers: u32) -> u32 {
        if self.seed.is_multiple_of(2) { self.any_backend(balancers) } else { balancers - 1 }
    }

    pub(super) fn identity_changes(&self) -> u64 {
        self.identity_changes_of(|_| true)
    }

    fn identity_changes_of(&self, is_meant: impl Fn(u32) -> bool) -> u64 {
        self.alive().filter(|(host, _)| is_meant(*host)).map(|(_, host)| host.counters.identity_changes).sum()
    }

    /// Until all see all, with their offers.
    fn settle(&mut self, limit: Duration) -> Option<Duration> {
        self.wait(limit, |sim| sim.is_one_view() && sim.has_all_offers())
    }

    /// When each balancer came to see the watched host as it does now, since `began`.
    fn noted_by_balancers(
        &self,
        balancers: u32,
        began: std::time::Instant,
        wanted: impl Fn(&super::Seen) -> bool,
    ) -> Vec<f64> {
        let of = |balancer: u32| {
            let noted: Vec<_> = self.noted.iter().filter(|noted| noted.observer == balancer).collect();
            let last_other = noted.iter().rposition(|noted| !wanted(&noted.seen)).map_or(0, |place| place + 1);
            noted.get(last_other).map_or(f64::INFINITY, |noted| (noted.at - began).as_secs_f64())
        };
        (0..balancers).map(of).collect()
    }
}

/// A cluster that has found itself, in a network without loss; then the network is as the case wants it.
fn formed(setup: &Setup, size: u32, balancers: u32, network: Network) -> Simulation {
    let mut sim = setup.simulation(size);
    form(&mut sim, size, balancers);
    sim.network = network;
    sim.forget_counters();
    sim
}

fn form(sim: &mut Simulation, size: u32, balancers: u32) {
    for host in 0..size {
        sim.join(host, balancers);
        // A hundred steps: in a large cluster each costs everybody another roster.
        if host.is_multiple_of(1 + size / 100) {
            sim.run(10 * MS);
        }
    }
    if sim.mode == Mode::Plain {
        sim.introduce_all();
    }
    // Who has not found itself by then is measured as it is.
    let _ = sim.settle(NEVER);
    sim.run(20 * SECOND);
}

fn ordinary(loss: f64) -> Network {
    Network { loss, ..Network::ordinary() }
}

fn measure(what: &'static str, unit: &'static str, goal: Goal, values: Vec<f64>) -> Measure {
    Measure { what, unit, goal, values }
}

fn count(what: &'static str, goal: Goal, number: u64) -> Measure {
    measure(what, "", goal, vec![number as f64])
}

fn took(what: &'static str, goal: f64, time: Option<Duration>) -> Measure {
    measure(what, "s", Goal::max(goal), vec![time.map_or(f64::INFINITY, |time| time.as_secs_f64())])
}

fn removals(sim: &Simulation) -> Vec<Measure> {
    vec![
        count("healthy backends removed", Goal::ZERO, sim.false_removals),
        count("identity changes", Goal::ZERO, sim.identity_changes()),
        count("healthy members seen down", Goal::SHOWN, sim.false_downs),
    ]
}

// === the cases ===

pub(super) fn stop_using_dead(setup: &Setup, size: u32) -> Vec<Measure> {
    let mut sim = formed(setup, size, BALANCERS, ordinary(0.05));
    let mut times = Vec::new();
    for _ in 0..setup.pick(10, 3) {
        let victim = sim.any_backend(BALANCERS);
        (sim.watched, sim.noted) = (Some(victim), Vec::new());
        sim.crash(victim);
        let began = sim.now;
        let is_out = |seen: &super::Seen| seen.is_removed || seen.state.is_none();
        let all_out = |sim: &Simulation| (0..BALANCERS).all(|balancer| is_out(&sim.seen(balancer, victim)));
        sim.wait(MINUTE, all_out);
        times.extend(sim.noted_by_balancers(BALANCERS, began, is_out));
        sim.watched = None;
        sim.run(SECOND);
        sim.join(victim, BALANCERS);
        sim.settle(MINUTE);
        let pause = SECOND * sim.rng.random_range(1..5);
        sim.run(pause);
    }
    let goal = Goal { p50: Some(1.6), p99: Some(2.0), ..Goal::SHOWN };
    let mut measures = vec![measure("power off until out of rotation", "s", goal, times)];
    measures.push(count("healthy backends removed", Goal::ZERO, sim.false_removals));
    measures
}

pub(super) fn false_removals(setup: &Setup, size: u32, loss: f64, time: Duration) -> Vec<Measure> {
    let mut sim = formed(setup, size, BALANCERS.min(size / 2), ordinary(loss));
    sim.run(time);
    sim.network.loss = Network::ordinary().loss;
    let whole = sim.settle(NEVER);
    let mut measures = removals(&sim);
    measures.push(took("one full view at the end, once the loss is over", 20.0, whole));
    measures
}

pub(super) fn bursts(setup: &Setup, size: u32) -> Vec<Measure> {
    // One each way may follow the other, and what is longer than a second cannot be told from a dead machine by who
    // must notice one in two.
    let bursts = Bursts { good: 10 * SECOND, bad: 500 * MS, longest: 500 * MS, loss: 0.9 };
    let mut sim = formed(setup, size, BALANCERS, Network { bursts: Some(bursts), ..ordinary(0.01) });
    sim.run(setup.pick(HOUR, 5 * MINUTE));
    removals(&sim)
}

pub(super) fn churn(setup: &Setup, size: u32, time: Duration) -> Vec<Measure> {
    let mut sim = formed(setup, size, BALANCERS, ordinary(0.05));
    let minutes = time.as_secs() / 60;
    for minute in 0..minutes {
        match minute % 3 {
            0 => sim.join(sim.hosts.len() as u32, BALANCERS),
            1 => {
                let host = sim.any_backend(BALANCERS);
                sim.leave(host);
                sim.run(5 * SECOND);
                sim.crash(host);
            }
            _ => {
                let host = sim.any_backend(BALANCERS);
                sim.crash(host);
            }
        }
        sim.run(55 * SECOND);
    }
    removals(&sim)
}

/// Half of all nodes, balancers too, restart at their own addresses, some before and some after they were called
/// down, many of them at a time.
pub(super) fn restart_storm(setup: &Setup, size: u32, time: Duration) -> Vec<Measure> {
    let mut sim = formed(setup, size, BALANCERS, ordinary(0.01));
    let mut order: Vec<u32> = (0..size).collect();
    order.shuffle(&mut sim.rng);
    let (restarting, staying) = order.split_at(size as usize / 2);
    let mut steps = Vec::new();
    for host in restarting {
        let down_at = time.mul_f64(sim.rng.random_range(0.0..1.0));
        let down_for = MS * sim.rng.random_range(100..20_000);
        steps.extend([(down_at, *host, false), (down_at + down_for, *host, true)]);
    }
    steps.sort();
    let began = sim.now;
    for (due, host, is_start) in steps {
        let pause = began + due - sim.now;
        sim.run(pause);
        if is_start { sim.join(host, BALANCERS) } else { sim.crash(host) }
    }
    let whole = sim.settle(NEVER);
    sim.run(MINUTE);
    vec![
        // Who is back is healthy too.
        count("healthy backends removed", Goal::ZERO, sim.false_removals),
        count("healthy members seen down", Goal::SHOWN, sim.false_downs),
        count("identity changes of who stays", Goal::ZERO, sim.identity_changes_of(|host| staying.contains(&host))),
        count(
            "identity changes of who restarted",
            Goal::SHOWN,
            sim.identity_changes_of(|host| restarting.contains(&host)),
        ),
        took("one full view after the last restart", 20.0, whole),
    ]
}

pub(super) fn throttled(setup: &Setup, size: u32, time: Duration) -> Vec<Measure> {
    let mut sim = formed(setup, size, BALANCERS, ordinary(0.01));
    // With odd seeds one of them is a balancer.
    let victim = sim.any_victim(BALANCERS);
    sim.throttle(victim);
    for _ in 1..size / 10 {
        let host = sim.any_backend(BALANCERS);
        sim.throttle(host);
    }
    sim.run(time);
    vec![
        count("healthy backends removed by healthy balancers", Goal::ZERO, sim.false_removals),
        count("healthy members seen down by healthy ones", Goal::ZERO, sim.false_downs),
        count("identity changes of healthy members", Goal::ZERO, sim.identity_changes_of(|host| sim.is_well(host))),
        count("identity changes of throttled ones", Goal::SHOWN, sim.identity_changes_of(|host| !sim.is_well(host))),
    ]
}

pub(super) fn paused(setup: &Setup, size: u32) -> Vec<Measure> {
    let mut sim = formed(setup, size, BALANCERS, ordinary(0.01));
    let victim = sim.any_victim(BALANCERS);
    sim.pause(victim);
    sim.run(MINUTE);
    let knows = |sim: &Simulation, other: u32| !sim.seen(other, victim).is_active();
    let unaware = (0..size).filter(|other| *other != victim && !knows(&sim, *other)).count();
    sim.forget_counters();
    sim.resume(victim);
    let back = sim.settle(NEVER);
    sim.run(MINUTE);
    vec![
        count("members that did not know it was gone", Goal::ZERO, unaware as u64),
        took("back everywhere", 3.0, back),
        count("members it convicts", Goal::ZERO, sim.convicted_by.get(&victim).copied().unwrap_or_default()),
        count("healthy backends removed by others", Goal::ZERO, sim.false_removals),
        count("healthy members seen down", Goal::ZERO, sim.false_downs),
    ]
}

/// A balancer that stands still for seconds, again and again.
pub(super) fn stuttering(setup: &Setup, size: u32) -> Vec<Measure> {
    let mut sim = formed(setup, size, BALANCERS, ordinary(0.05));
    let victim = BALANCERS - 1;
    let (mut convicted, mut removed, mut down) = (0, 0, 0);
    for _ in 0..setup.pick(100, 20) {
        sim.pause(victim);
        let pause = MS * sim.rng.random_range(1000..10_000);
        sim.run(pause);
        sim.forget_counters();
        sim.resume(victim);
        let pause = MS * sim.rng.random_range(2000..5000);
        sim.run(pause);
        convicted += sim.convicted_by.get(&victim).copied().unwrap_or_default();
        removed += sim.false_removals;
        down += sim.false_downs - sim.convicted.get(&victim).copied().unwrap_or_default();
    }
    vec![
        count("members it convicts", Goal::ZERO, convicted),
        count("healthy backends removed", Goal::ZERO, removed),
        count("others seen down", Goal::ZERO, down),
    ]
}

pub(super) fn deaf(setup: &Setup, size: u32) -> Vec<Measure> {
    let mut sim = formed(setup, size, BALANCERS, ordinary(0.01));
    let victim = sim.any_victim(BALANCERS);
    sim.network.deaf.insert(victim);
    one_is_ill(sim, victim)
}

pub(super) fn one_link(setup: &Setup, size: u32) -> Vec<Measure> {
    let mut sim = formed(setup, size, BALANCERS, ordinary(0.01));
    let victim = sim.any_victim(BALANCERS);
    sim.network.only.insert(victim, 0);
    one_is_ill(sim, victim)
}

fn one_is_ill(mut sim: Simulation, victim: u32) -> Vec<Measure> {
    let set_ill = |sim: &mut Simulation, is_ill| sim.host_mut(victim).into_iter().for_each(|host| host.is_ill = is_ill);
    set_ill(&mut sim, true);
    sim.run(5 * MINUTE);
    let (removed, down) = (sim.false_removals, sim.false_downs);
    let (renewed, own) =
        (sim.identity_changes_of(|host| host != victim), sim.identity_changes_of(|host| host == victim));
    let is_convicted = |host: u32| sim.seen(victim, host).state == Some(MemberState::Down);
    let convicted = sim.alive().filter(|(host, _)| is_convicted(*host)).count();
    sim.network.deaf.clear();
    sim.network.only.clear();
    set_ill(&mut sim, false);
    sim.forget_counters();
    let back = sim.settle(NEVER);
    sim.run(MINUTE);
    // What was said of itself just before may still be on its way.
    let down_later = sim.false_downs - sim.convicted.get(&victim).copied().unwrap_or_default();
    vec![
        count("others removed by healthy balancers", Goal::ZERO, removed),
        count("others seen down by healthy members", Goal::ZERO, down),
        count("identity changes of others", Goal::ZERO, renewed),
        count("members it holds for dead itself", Goal::SHOWN, convicted as u64),
        count("its own identity changes", Goal::SHOWN, own),
        measure("one view again once it is well", "s", Goal::SHOWN, vec![seconds(back)]),
        count("healthy backends removed from then on", Goal::ZERO, sim.false_removals),
        count("others seen down from then on", Goal::ZERO, down_later),
    ]
}

fn seconds(time: Option<Duration>) -> f64 {
    time.map_or(f64::INFINITY, |time| time.as_secs_f64())
}

pub(super) fn partition(setup: &Setup, size: u32) -> Vec<Measure> {
    let mut sim = setup.simulation(size);
    sim.keeps_pools = true;
    form(&mut sim, size, 4);
    // Each backend serves something that no other does: each pool of a part has somebody in the other alone.
    for host in 4..size {
        let mut own = offer(1, 1, 1);
        let (mut app, state) = own.apps[0].clone();
        app.name = format!("own-{host}").parse().expect("a name");
        app.domains = vec![format!("own-{host}.example.com").parse().expect("a domain")];
        own.apps.push((app, state));
        sim.input(host, Input::Offer(own));
    }
    sim.run(5 * SECOND);
    sim.network = ordinary(0.01);
    sim.network.parts = (0..size).map(|host| (host % 2) as u8).collect();
    sim.network.cut_parts = [(0, 1), (1, 0)].into();
    sim.forget_counters();
    sim.run(2 * MINUTE);
    sim.network.cut_parts.clear();
    let healed = sim.settle(NEVER);
    sim.run(MINUTE);
    let mut measures = vec![
        took("one view after it healed", 20.0, healed),
        count("healthy members seen down across no cut", Goal::SHOWN, sim.false_downs),
    ];
    if sim.mode == Mode::Ours {
        let emptied = sim.alive().map(|(_, host)| host.pools_emptied).sum();
        let routes = sim.alive().filter_map(|(_, host)| Some(host.pools.as_ref()?.routes.len())).min();
        assert_eq!(routes, Some(size as usize - 3), "every backend's own, and the one of all");
        measures.insert(1, count("pools emptied", Goal::ZERO, emptied));
    }
    measures
}

pub(super) fn cold_start(setup: &Setup, size: u32, goal: f64) -> Vec<Measure> {
    let mut sim = setup.simulation(size);
    sim.network = Network::ordinary();
    for host in 0..size {
        sim.begin(host, BALANCERS, Seeds::Store);
    }
    let whole = sim.settle(NEVER);
    vec![took("full view", goal, whole), count("identity changes", Goal::SHOWN, sim.identity_changes())]
}

pub(super) fn change(setup: &Setup, size: u32, goal: f64) -> Vec<Measure> {
    let mut sim = formed(setup, size, BALANCERS, ordinary(0.01));
    let (mut offers, mut joins, mut leaves) = (Vec::new(), Vec::new(), Vec::new());
    let intervals = |time: Option<Duration>| seconds(time) / INTERVAL.as_secs_f64();
    let newcomer = size;
    let others = move |sim: &Simulation, host: u32| -> Vec<u32> {
        sim.alive().map(|(other, _)| other).filter(|other| *other != host).collect()
    };
    for tag in 2..setup.pick(50, 5) + 2 {
        if sim.mode == Mode::Ours {
            let host = sim.any_backend(BALANCERS);
            let others = others(&sim, host);
            sim.input(host, Input::Offer(offer(1, 1, tag)));
            let have_it = |sim: &Simulation| others.iter().all(|other| sim.seen(*other, host).offer == tag);
            offers.push(intervals(sim.wait(30 * SECOND, have_it)));
        }
        let pause = MS * sim.rng.random_range(500..1500);
        sim.run(pause);
        sim.join(newcomer, BALANCERS);
        let others = others(&sim, newcomer);
        let see_it = |sim: &&Simulation, other: &u32| sim.seen(*other, newcomer).is_active();
        sim.wait(10 * SECOND, |sim| others.iter().any(|other| see_it(&sim, other)));
        joins.push(intervals(sim.wait(30 * SECOND, |sim| others.iter().all(|other| see_it(&sim, other)))));
        sim.run(2 * SECOND);
        sim.leave(newcomer);
        let gone = |sim: &Simulation| others.iter().all(|other| !sim.seen(*other, newcomer).is_active());
        leaves.push(intervals(sim.wait(30 * SECOND, gone)));
        sim.run(2 * SECOND);
        sim.crash(newcomer);
    }
    let goal = Goal { p999: Some(goal), ..Goal::SHOWN };
    let mut measures = vec![
        measure("a join, from the first that sees it", "×0.2 s", goal, joins),
        measure("a goodbye", "×0.2 s", goal, leaves),
    ];
    if sim.mode == Mode::Ours {
        measures.insert(0, measure("another offer", "×0.2 s", goal, offers));
    }
    measures
}

pub(super) fn drain(setup: &Setup, size: u32) -> Vec<Measure> {
    let balancers = 5;
    let mut sim = formed(setup, size, balancers, ordinary(0.05));
    let mut times = Vec::new();
    for _ in 0..setup.pick(50, 20) {
        let host = sim.any_backend(balancers);
        let mut draining = offer(1, 1, 1);
        draining.apps[0].1 = AppState::Draining;
        sim.input(host, Input::Offer(draining));
        let all_know = |sim: &Simulation| (0..balancers).all(|balancer| sim.seen(balancer, host).is_draining);
        times.push(seconds(sim.wait(MINUTE, all_know)) * 1000.0);
        sim.run(SECOND);
        sim.input(host, Input::Offer(offer(1, 1, 1)));
        let pause = MS * sim.rng.random_range(1000..2000);
        sim.run(pause);
    }
    let goal = Goal { p99: Some(250.0), ..Goal::SHOWN };
    vec![measure("until all five balancers know", "ms", goal, times)]
}

pub(super) fn traffic(setup: &Setup, size: u32) -> Vec<Measure> {
    let mut sim = formed(setup, size, BALANCERS.min(size / 2), ordinary(0.01));
    // What forming has left to say is said.
    sim.run(MINUTE);
    sim.forget_counters();
    // Long enough for the luck of who is announced to to even out.
    let time = 120.0;
    sim.run(Duration::from_secs_f64(time));
    let of = |what: fn(&super::Counters) -> u64| -> Vec<f64> {
        sim.alive().map(|(_, host)| what(&host.counters) as f64 / time).collect()
    };
    let kilobytes = |rates: Vec<f64>| rates.into_iter().map(|rate| rate / 1000.0).collect();
    let steady = of(|counters| counters.bytes_out - counters.echo_bytes_out);
    vec![
        measure("out of a node, without echoes", "kB/s", Goal::max(0.8), kilobytes(steady)),
        measure(
            "datagrams out of it, without echoes",
            "/s",
            Goal::SHOWN,
            of(|counters| counters.datagrams_out - counters.echoes_out),
        ),
        measure("echoes out of it", "kB/s", Goal::SHOWN, kilobytes(of(|counters| counters.echo_bytes_out))),
    ]
}

/// As much as one node may offer: 64 KiB of applications.
pub(super) fn large_offer(host: u32) -> Offer {
    let make = |host: u32, length: usize| {
        let mut whole = offer(256, 0, 1);
        for (place, (app, _)) in whole.apps.iter_mut().enumerate() {
            let domain = |d: usize| format!("{:0>length$}.h{host}-{d}-{place}.example.com", "x");
            app.domains = (0..4).map(|d| domain(d).parse().expect("a domain")).collect();
            app.normalize();
        }
        whole
    };
    // The numbers of later hosts are longer.
    static LENGTH: OnceLock<usize> = OnceLock::new();
    let length = *LENGTH.get_or_init(|| {
        let bytes =
            |offer: &Offer| encode_apps(&offer.apps.iter().map(|(app, _)| app.clone()).collect::<Vec<_>>()).len();
        let fits = |offer: &Offer| bytes(offer) <= OFFER_BYTES_MAX && offer.check().is_ok();
        (1..60).rev().find(|length| fits(&make(999, *length))).unwrap_or(1)
    });
    make(host, length)
}

pub(super) fn metadata(setup: &Setup, backends: u32) -> Vec<Measure> {
    let mut sim = setup.simulation(backends + BALANCERS);
    sim.network = Network::ordinary();
    for host in 0..backends + BALANCERS {
        let role = if host < BALANCERS { Role::Balancer } else { Role::Backend };
        let seeds = Seeds::Fixed((0..BALANCERS).collect());
        let start = Start { host, role, seeds, offer: large_offer(host), clock_back: Duration::ZERO, twin_of: None };
        sim.run(20 * MS);
        sim.start(start);
    }
    let whole = sim.settle(MINUTE);
    let largest =
        measure("the largest datagram", "B", Goal::max(DATAGRAM_BYTES_MAX as f64), vec![sim.largest_datagram as f64]);
    vec![took("every balancer has all, after the last join", 5.0, whole), largest]
}

pub(super) fn work(setup: &Setup, size: u32) -> Vec<Measure> {
    let mut sim = setup.simulation(size);
    sim.seals = true;
    form(&mut sim, size, BALANCERS);
    sim.network = ordinary(0.01);
    sim.forget_counters();
    sim.measures_work = true;
    let time = setup.pick(30.0, 10.0);
    sim.run(Duration::from_secs_f64(time));
    let (mut packets, mut spent, mut shares) = (0, Duration::ZERO, Vec::new());
    for (_, host) in sim.alive() {
        packets += host.counters.datagrams_in + host.counters.datagrams_out;
        spent += host.counters.work;
        shares.push(host.counters.work.as_secs_f64() / time * 100.0);
    }
    let a_packet = spent.as_secs_f64() * 1e6 / packets.max(1) as f64;
    let share = if size <= 100 { Goal::max(0.1) } else { Goal::SHOWN };
    vec![
        measure("a packet, in or out, sealing included", "µs", Goal::max(20.0), vec![a_packet]),
        measure("of a core, each node", "%", share, shares),
    ]
}

/// Backends that come back where they were, before and after they were called down, one time in three twice in a row.
pub(super) fn restart(setup: &Setup) -> Vec<Measure> {
    let mut sim = formed(setup, 10, BALANCERS, ordinary(0.01));
    let mut after = |clock_back: Duration| -> Vec<f64> {
        let round = |round| {
            let host = sim.any_backend(BALANCERS);
            sim.crash(host);
            let down_for = MS * sim.rng.random_range(100..20_000);
            sim.run(down_for);
            let start = |sim: &mut Simulation| {
                let (seeds, offer) = (Seeds::Fixed((0..BALANCERS).collect()), offer(1, 1, 1));
                sim.start(Start { host, role: Role::Backend, seeds, offer, clock_back, twin_of: None });
            };
            start(&mut sim);
            if round == 2 {
                let pause = MS * sim.rng.random_range(1..500);
                sim.run(pause);
                sim.crash(host);
                start(&mut sim);
            }
            let whole = seconds(sim.settle(MINUTE));
            sim.run(10 * SECOND);
            whole
        };
        (0..3).map(round).collect()
    };
    vec![
        measure("one view after a restart", "s", Goal::max(5.0), after(Duration::ZERO)),
        measure("one view after a restart, its clock an hour back", "s", Goal::max(5.0), after(HOUR)),
    ]
}

/// Backends come back where they were, balancers elsewhere; the store still names where balancers have been.
pub(super) fn cluster_restart(setup: &Setup) -> Vec<Measure> {
    let mut sim = setup.simulation(20);
    sim.network = Network::ordinary();
    (0..20).for_each(|host| sim.begin(host, BALANCERS, Seeds::Store));
    let _ = sim.settle(NEVER);
    sim.run(MINUTE);
    (0..20).for_each(|host| sim.crash(host));
    for gone in 500..520 {
        sim.store.leave_stale(gone, at(gone));
    }
    sim.run(10 * SECOND);
    (3..20).for_each(|host| sim.begin(host, BALANCERS, Seeds::Store));
    for host in 30..30 + BALANCERS {
        let offer = Offer::default();
        let (role, seeds) = (Role::Balancer, Seeds::Store);
        sim.start(Start { host, role, seeds, offer, clock_back: Duration::ZERO, twin_of: None });
    }
    vec![took("one view after all were restarted", 30.0, sim.settle(NEVER))]
}

/// The backends come up a minute before the balancers, which are all that they know.
pub(super) fn late_balancers(setup: &Setup) -> Vec<Measure> {
    let mut sim = setup.simulation(10);
    sim.network = Network::ordinary();
    (BALANCERS..10).for_each(|host| sim.join(host, BALANCERS));
    sim.run(MINUTE);
    (0..BALANCERS).for_each(|host| sim.join(host, BALANCERS));
    vec![took("one view after the balancers came up", 6.0, sim.settle(MINUTE))]
}

/// A backend is cut off while all others are restarted where they are.
pub(super) fn left_behind(setup: &Setup) -> Vec<Measure> {
    let mut sim = formed(setup, 10, BALANCERS, ordinary(0.01));
    let victim = sim.any_backend(BALANCERS);
    sim.network.parts = (0..10).map(|host| u8::from(host == victim)).collect();
    sim.network.cut_parts = [(0, 1), (1, 0)].into();
    for host in (0..10).filter(|host| *host != victim) {
        sim.crash(host);
        sim.run(SECOND);
        sim.join(host, BALANCERS);
        sim.run(5 * SECOND);
    }
    sim.network.cut_parts.clear();
    vec![took("one view after it is reached again", 20.0, sim.settle(NEVER))]
}

/// Two balancers and one backend of five die at once: those that are left have too few witnesses to convict anybody.
pub(super) fn most_die(setup: &Setup) -> Vec<Measure> {
    let mut sim = formed(setup, 5, BALANCERS, ordinary(0.01));
    [1, 2, 4].into_iter().for_each(|host| sim.crash(host));
    let is_out = |sim: &Simulation| sim.seen(0, 4).is_removed || sim.seen(0, 4).state.is_none();
    let out = sim.wait(NEVER, is_out);
    let whole = sim.settle(MINUTE).zip(out).map(|(later, out)| later + out);
    sim.run(MINUTE);
    vec![
        took("the dead backend is out of rotation", 2.0, out),
        took("the dead are down at the others", 30.0, whole),
        count("the living backend removed", Goal::ZERO, sim.false_removals),
    ]
}

/// Nobody reaches anybody for a minute, as when a switch is restarted.
pub(super) fn blackout(setup: &Setup, size: u32) -> Vec<Measure> {
    let mut sim = setup.simulation(size);
    sim.keeps_pools = true;
    form(&mut sim, size, BALANCERS);
    sim.network = Network { loss: 1.0, ..Network::ordinary() };
    sim.run(MINUTE);
    sim.forget_counters();
    sim.network.loss = 0.01;
    let whole = sim.settle(NEVER);
    sim.run(MINUTE);
    let mut measures = vec![
        took("one view after it ended", 20.0, whole),
        count("healthy backends removed from then on", Goal::ZERO, sim.false_removals),
    ];
    if sim.mode == Mode::Ours {
        let emptied = sim.alive().map(|(_, host)| host.pools_emptied).sum();
        measures.push(count("pools emptied", Goal::ZERO, emptied));
    }
    measures
}

pub(super) fn store_failing(setup: &Setup) -> Vec<Measure> {
    let mut sim = setup.simulation(10);
    sim.network = Network::ordinary();
    (0..9).for_each(|host| sim.begin(host, BALANCERS, Seeds::Store));
    let _ = sim.settle(NEVER);
    sim.forget_counters();
    sim.store.health = Health::Fails;
    sim.run(setup.pick(10 * MINUTE, 2 * MINUTE));
    let removed = sim.false_removals + sim.false_downs;
    sim.begin(9, BALANCERS, Seeds::Store);
    sim.run(MINUTE);
    sim.store.health = Health::Slow(10 * SECOND);
    let joined = sim.settle(NEVER);
    vec![
        count("members lost while the store fails", Goal::ZERO, removed),
        took("a newcomer is in after the store answers, slowly", 30.0, joined),
    ]
}

pub(super) fn duplicate_address(setup: &Setup) -> Vec<Measure> {
    let mut sim = formed(setup, 10, BALANCERS, ordinary(0.01));
    let (victim, twin) = (5, 10);
    let set_ill =
        |sim: &mut Simulation, host, is_ill| sim.host_mut(host).into_iter().for_each(|host| host.is_ill = is_ill);
    set_ill(&mut sim, victim, true);
    let seeds = Seeds::Fixed((0..BALANCERS).collect());
    let start = Start {
        host: twin,
        role: Role::Backend,
        seeds,
        offer: offer(1, 1, 1),
        clock_back: Duration::ZERO,
        twin_of: Some(victim),
    };
    sim.start(start);
    set_ill(&mut sim, twin, true);
    sim.run(setup.pick(5 * MINUTE, MINUTE));
    let (removed, down, renewed) = (sim.false_removals, sim.false_downs, sim.identity_changes());
    let busiest = sim.alive().map(|(_, host)| host.counters.bytes_out - host.counters.echo_bytes_out).max();
    let busiest = busiest.unwrap_or_default() as f64 / 1000.0 / setup.pick(300.0, 60.0);
    let is_told = |host: u32| sim.alive().any(|(at, it)| at == host && it.counters.times_contested > 0);
    let untold = [victim, twin].into_iter().filter(|host| !is_told(*host)).count();
    let mistold =
        sim.alive().filter(|(at, it)| ![victim, twin].contains(at) && it.counters.times_contested > 0).count();
    sim.crash(twin);
    sim.twins.clear();
    set_ill(&mut sim, victim, false);
    vec![
        count("others removed", Goal::ZERO, removed),
        count("others seen down", Goal::ZERO, down),
        count("identity changes", Goal::SHOWN, renewed),
        count("of the two, those who do not say so", Goal::ZERO, untold as u64),
        count("others who say so", Goal::ZERO, mistold as u64),
        measure("out of the busiest node meanwhile, without echoes", "kB/s", Goal::SHOWN, vec![busiest]),
        took("one view after the twin ended", 30.0, sim.settle(NEVER)),
    ]
}

pub(super) fn ghosts(setup: &Setup, size: u32) -> Vec<Measure> {
    let mut sim = formed(setup, size, BALANCERS, ordinary(0.05));
    let mut dead = Vec::new();
    for _ in 0..size / 5 {
        let host = sim.any_backend(BALANCERS);
        sim.crash(host);
        dead.push(host);
        sim.run(SECOND);
    }
    sim.run(MINUTE);
    let mut seen = 0;
    for round in 0..setup.pick(120, 20) {
        // A newcomer believes what it is told.
        sim.join(size + round, BALANCERS);
        sim.run(20 * SECOND);
        seen += sim.alive().map(|(_, host)| host.ghosts as u64).sum::<u64>();
        let is_seen = |host: u32| sim.alive().filter(|(other, _)| sim.seen(*other, host).is_active()).count() as u64;
        seen += if sim.mode == Mode::Plain { dead.iter().map(|host| is_seen(*host)).sum() } else { 0 };
        sim.leave(size + round);
        sim.run(10 * SECOND);
        sim.crash(size + round);
    }
    vec![count("sights of dead members as alive", Goal::ZERO, seen)]
}

/// `add → promote → remove`, in any order of nodes. One is late: it learns the new key only after the others have
/// promoted it, and just in time before they remove the old one.
pub(super) fn key_rotation(setup: &Setup, size: u32) -> Vec<Measure> {
    let mut sim = setup.simulation(size);
    sim.seals = true;
    form(&mut sim, size, BALANCERS);
    sim.network = ordinary(0.01);
    sim.network.doubled = 0.0;
    sim.forget_counters();
    let late = sim.any_victim(BALANCERS);
    for keys in [&[1, 2][..], &[2, 1], &[2]] {
        let mut order: Vec<u32> = (0..size).filter(|host| *host != late).collect();
        order.shuffle(&mut sim.rng);
        if keys.len() == 1 {
            // A minute after the others promoted the new key it knows the old one alone.
            sim.change_keys(late, &[2, 1]);
            sim.run(MINUTE);
            order.push(late);
            order.shuffle(&mut sim.rng);
        }
        for host in order {
            let pause = MS * sim.rng.random_range(0..2000);
            sim.run(pause);
            sim.change_keys(host, keys);
        }
        // What is on its way arrives.
        sim.run(MINUTE);
    }
    let refused = sim.alive().map(|(_, host)| host.counters.refused).sum();
    let mut measures = vec![count("datagrams refused", Goal::ZERO, refused)];
    measures.extend(removals(&sim));
    measures
}
