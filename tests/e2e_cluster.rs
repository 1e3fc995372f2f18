//! What a cluster can be trusted with: hosts that are real network namespaces, nodes that are real processes, and
//! networks that lose, cut and deafen. Needs root for the namespaces; without, it says so and proves nothing.
//!
//! Each test has a cluster of its own. What must hold all the time is looked at every [`SAMPLE`]; what was seen to be
//! wrong is gathered, and told when the time is over.

#[path = "support/hosts.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
mod hosts;
#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
mod node;

use std::collections::BTreeMap;
use std::fs;
use std::iter;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hosts::{GOSSIP_PORT, Lab, Seen};
use node::{eventually_within, http_get};
use rustix::process::Signal;
use serde_json::Value;

/// Promised: a backend that lost its power gets no more requests after this.
const OUT_MAX: Duration = Duration::from_secs(2);
/// Promised: a backend that was paused or restarted is back everywhere after this.
const BACK_MAX: Duration = Duration::from_secs(3);
/// Promised: after this, nodes that can reach each other again all see the same cluster.
const ONE_VIEW_MAX: Duration = Duration::from_secs(20);

/// How often what must hold is looked at.
const SAMPLE: Duration = Duration::from_millis(200);
/// How often what is timed is looked at.
const CLOSE_LOOK: Duration = Duration::from_millis(20);
/// How much later than it happens something may be seen, with all processors busy.
const LATE_LOOK: Duration = Duration::from_millis(100);
/// How long is waited for what is measured, before it counts as never.
const NEVER: Duration = Duration::from_secs(30);

/// Whether a balancer gives a backend requests as a matter of course, by its entry in `/v1/apps`.
fn in_rotation(backend: &Value) -> bool {
    backend["state"] == "ready"
}

/// Whether somebody thinks a member dead.
fn is_convicted(member: &Seen) -> bool {
    member.state == "down"
}

// === what is seen ===

/// The hosts whose nodes a balancer has in rotation for an application, sorted; one that stands twice is twice here.
/// None if the balancer does not answer.
fn rotation(lab: &Lab, lb: &str, app: &str) -> Option<Vec<String>> {
    let view = lab.node(lb).json("/v1/apps");
    let entries = view["apps"].as_array()?.iter().filter(|entry| entry["name"] == app);
    let backends = entries.flat_map(|entry| entry["backends"].as_array().into_iter().flatten());
    let mut names: Vec<String> = backends
        .filter(|backend| in_rotation(backend))
        .filter_map(|backend| Some(backend["node"].as_str()?.to_owned()))
        .collect();
    names.sort();
    Some(names)
}

fn is_in_rotation(lab: &Lab, lb: &str, app: &str, host: &str) -> Option<bool> {
    Some(rotation(lab, lb, app)?.iter().any(|name| name == host))
}

/// The names of the members that a node takes for alive, sorted; none while one is suspected.
fn alive(lab: &Lab, host: &str) -> Option<Vec<String>> {
    let members = lab.members(host);
    let active = members.iter().filter(|seen| seen.is_active());
    active.map(|seen| (seen.state == "alive").then(|| seen.name.clone())).collect()
}

/// Waits until every node of `hosts` sees exactly these, all alive; how long that took, none if it was never so.
fn time_to_one_view(lab: &Lab, hosts: &[&str]) -> Option<Duration> {
    let began = Instant::now();
    let mut left: Vec<&str> = hosts.to_vec();
    while began.elapsed() < NEVER {
        let mut wanted: Vec<&str> = hosts.to_vec();
        wanted.sort_unstable();
        // All of them at one time: whoever has seen it may have lost it again.
        left.retain(|host| alive(lab, host).is_none_or(|alive| alive != wanted));
        if left.is_empty() {
            left = hosts.to_vec();
            left.retain(|host| alive(lab, host).is_none_or(|alive| alive != wanted));
            if left.is_empty() {
                return Some(began.elapsed());
            }
        }
        thread::sleep(CLOSE_LOOK);
    }
    None
}

fn wait_one_view(lab: &Lab, hosts: &[&str]) {
    let took = time_to_one_view(lab, hosts);
    let views = || hosts.iter().map(|host| format!("{host}: {:?}\n", lab.members(host))).collect::<String>();
    assert!(took.is_some(), "no one view of {hosts:?}:\n{}", views());
}

fn wait_rotation(lab: &Lab, lb: &str, app: &str, hosts: &[&str]) {
    let context = || format!("{lb} has {:?}", rotation(lab, lb, app));
    let mut wanted = hosts.to_vec();
    wanted.sort_unstable();
    let what = format!("{app} of {wanted:?} in rotation at {lb}");
    eventually_within(NEVER, &what, context, || (rotation(lab, lb, app)? == wanted).then_some(()));
    let is_open = |listener: &Value| listener["addresses"].as_array().is_some_and(|at| !at.is_empty());
    lab.node(lb).wait_json("/v1/status", "all ports are open", |status| {
        status["listeners"].as_array().is_some_and(|all| !all.is_empty() && all.iter().all(is_open))
    });
}

/// What was seen to be wrong.
struct Findings {
    began: Instant,
    kinds: BTreeMap<String, (u32, String)>,
}

impl Findings {
    fn new() -> Self {
        Self { began: Instant::now(), kinds: BTreeMap::new() }
    }

    /// Notes something wrong; of each kind the first is told in full.
    fn note(&mut self, kind: impl Into<String>, detail: impl FnOnce() -> String) {
        let at = self.began.elapsed().as_secs_f64();
        self.kinds.entry(kind.into()).or_insert_with(|| (0, format!("at {at:.1} s {}", detail()))).0 += 1;
    }

    fn expect(&mut self, holds: bool, kind: impl Into<String>, detail: impl FnOnce() -> String) {
        if !holds {
            self.note(kind, detail);
        }
    }

    /// Holds a measured time, none if it never came, against its limit.
    fn expect_within(&mut self, what: &str, took: Option<Duration>, limit: Duration) {
        println!("{what}: {}", took.map_or_else(|| "never".to_owned(), |took| format!("{} ms", took.as_millis())));
        let is_met = took.is_some_and(|took| took <= limit + LATE_LOOK);
        self.expect(is_met, what, || format!("took {took:?}, not {limit:?}"));
    }

    /// Fails if anything was wrong.
    fn judge(self) {
        if self.kinds.is_empty() {
            return;
        }
        let told: String =
            self.kinds.iter().map(|(kind, (count, first))| format!("{kind}: {count} times, first {first}\n")).collect();
        panic!("{told}");
    }
}

/// Looks every `every` for as long as `window`; `look` is told how much of it is over.
fn observe(window: Duration, every: Duration, mut look: impl FnMut(Duration)) {
    let began = Instant::now();
    let mut next = began;
    while began.elapsed() < window {
        look(began.elapsed());
        // A look that was late is not made up for.
        next = (next + every).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Notes whoever of `hosts` is not in rotation at a balancer, or taken for dead there.
fn expect_trusted(lab: &Lab, found: &mut Findings, lb: &str, app: &str, hosts: &[&str]) {
    let Some(rotation) = rotation(lab, lb, app) else {
        return found.note(format!("{lb} does not answer"), String::new);
    };
    for host in hosts {
        let count = rotation.iter().filter(|name| name == host).count();
        found.expect(count == 1, format!("{host} not once in rotation at {lb}"), || format!("{rotation:?}"));
    }
    let members = lab.members(lb);
    for seen in members.iter().filter(|seen| hosts.contains(&seen.name.as_str())) {
        found.expect(!is_convicted(seen), format!("{} convicted at {lb}", seen.name), || format!("{seen:?}"));
    }
}

// === requests ===

/// Clients that ask on and on.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Tally>>,
}

#[derive(Default)]
struct Tally {
    name: String,
    answered: u32,
    /// When each was asked, and what came of it.
    failed: Vec<(Instant, String)>,
    slowest: Duration,
}

impl Load {
    fn start(lab: &Lab, host: &str, targets: &[(&str, SocketAddr)], clients: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = iter::repeat_n(targets, clients).flatten().map(|(name, target)| {
            let (stop, name, target) = (Arc::clone(&stop), (*name).to_owned(), *target);
            lab.spawn(host, move || ask_until(&stop, name, target, pause))
        });
        let clients = clients.collect();
        Self { stop, clients }
    }

    /// Ends it, notes what failed, and says how long the slowest took.
    fn end(self, found: &mut Findings) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
        for client in self.clients {
            let mut tally = client.join().unwrap();
            let all = tallies.entry(tally.name.clone()).or_default();
            all.answered += tally.answered;
            all.failed.append(&mut tally.failed);
            all.slowest = all.slowest.max(tally.slowest);
        }
        let slowest_of_all = tallies.values().map(|tally| tally.slowest).max().unwrap_or_default();
        for (name, tally) in tallies {
            let (answered, slowest) = (tally.answered, tally.slowest.as_millis());
            println!("{name}: {answered} answered, {} failed, the slowest took {slowest} ms", tally.failed.len());
            found.expect(answered > 50, format!("{name} proves little"), || format!("{answered} answers"));
            for (asked, failed) in tally.failed {
                let at = asked.saturating_duration_since(found.began).as_secs_f64();
                found.note(format!("a request failed: {name}"), || format!("asked at {at:.1} s {failed}"));
            }
        }
        slowest_of_all
    }
}

fn ask_until(stop: &AtomicBool, name: String, target: SocketAddr, pause: Duration) -> Tally {
    let mut tally = Tally { name, ..Tally::default() };
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let result = http_get(target, "localhost", "/");
        tally.slowest = tally.slowest.max(asked.elapsed());
        match result {
            Ok((200, _)) => tally.answered += 1,
            other => tally.failed.push((asked, format!("(it took {} ms): {other:?}", asked.elapsed().as_millis()))),
        }
        thread::sleep(pause);
    }
    tally
}

// === what is done to them ===

/// Each host loses so much of the gossip that arrives.
fn lose_gossip(lab: &Lab, hosts: &[&str], percent: u32) {
    for host in hosts {
        let rule = format!("udp dport {GOSSIP_PORT} numgen random mod 100 < {percent} counter drop");
        lab.filter(host, &[rule]);
    }
}

/// Nothing gets from one half to the other.
fn part(lab: &Lab, halves: [&[&str]; 2]) {
    for (half, other) in [(halves[0], halves[1]), (halves[1], halves[0])] {
        let others: Vec<String> = other.iter().map(|host| lab.address(host).to_string()).collect();
        for host in half {
            lab.filter(host, &[format!("ip saddr {{ {} }} counter drop", others.join(", "))]);
        }
    }
}

fn heal(lab: &Lab, hosts: &[&str]) {
    for host in hosts {
        lab.filter(host, &[]);
    }
}

/// Hosts for the release build, with `SCRIMP_TEST_RELEASE` (tests/run sets it).
fn lab(hosts: &[&str]) -> Option<Lab> {
    let mut lab = Lab::new(hosts, false)?;
    if let Some(release) = std::env::var_os("SCRIMP_TEST_RELEASE") {
        lab.cluster.program = release.into();
    }
    Some(lab)
}

/// Two balancers and so many backends of `web`, all of one view, and a host for clients.
fn cluster(backends: usize) -> Option<(Lab, Vec<String>)> {
    let webs: Vec<String> = (1..=backends).map(|number| format!("web{number:02}")).collect();
    let mut hosts = vec!["lb1", "lb2", "client"];
    hosts.extend(webs.iter().map(String::as_str));
    let mut lab = lab(&hosts)?;
    start_balancer(&mut lab, "lb1");
    start_balancer(&mut lab, "lb2");
    for web in &webs {
        start_backend(&mut lab, web, &["web"]);
    }
    let began = Instant::now();
    hosts.retain(|host| *host != "client");
    wait_one_view(&lab, &hosts);
    let names: Vec<&str> = webs.iter().map(String::as_str).collect();
    for lb in BALANCERS {
        wait_rotation(&lab, lb, "web", &names);
    }
    println!("{} nodes were one cluster after {} ms", hosts.len(), began.elapsed().as_millis());
    Some((lab, webs))
}

const BALANCERS: [&str; 2] = ["lb1", "lb2"];

fn start_balancer(lab: &mut Lab, host: &str) {
    lab.start(host, "lb", &["--advertise", "interface:eth0"]);
}

fn start_backend(lab: &mut Lab, host: &str, apps: &[&str]) {
    lab.start_backend(host, apps, &["--advertise", "interface:eth0"]);
}

fn refs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// Everybody but `host`.
fn others<'a>(names: &'a [String], host: &str) -> Vec<&'a str> {
    names.iter().map(String::as_str).filter(|name| *name != host).collect()
}

fn everybody(webs: &[String]) -> Vec<&str> {
    BALANCERS.into_iter().chain(refs(webs)).collect()
}

fn load_on_both(lab: &Lab, clients: usize, pause: Duration) -> Load {
    let targets = BALANCERS.map(|lb| (lb, lab.at(lb, 80)));
    Load::start(lab, "client", &targets, clients, pause)
}

// === loss ===

/// Comes first by its name, because it takes longest by far.
#[test]
fn a_third_of_the_gossip_lost_takes_nobody_out() {
    let Some((lab, webs)) = cluster(18) else { return };
    let all = everybody(&webs);
    tell_idle_cpu(&lab, &all);
    let mut found = Findings::new();
    let members = BALANCERS.map(|lb| runs(&lab, lb));
    let load = load_on_both(&lab, 1, Duration::from_millis(50));
    lose_gossip(&lab, &all, 30);
    observe(Duration::from_secs(180), SAMPLE, |_| {
        for (lb, before) in BALANCERS.iter().zip(&members) {
            expect_trusted(&lab, &mut found, lb, "web", &all[2..]);
            let now = runs(&lab, lb);
            found.expect(now == *before, format!("other members at {lb}"), || format!("{now:?}"));
        }
    });
    for host in &all {
        let lost = lab.filtered(host);
        found.expect(lost > 500, format!("little was lost at {host}"), || format!("{lost} datagrams"));
        let renewals = lab.node(host).metric("scrimp_gossip_renewals_total");
        found.expect(renewals == Some(0.0), format!("{host} was taken for dead"), || format!("{renewals:?} times"));
        let log = lab.node(host).log();
        let words = [" is down", "suspected", "alone:", " too, it seems"];
        let convictions = log.lines().filter(|line| words.iter().any(|word| line.contains(word)));
        for line in convictions {
            found.note(format!("a conviction in the log of {host}"), || line.to_owned());
        }
    }
    load.end(&mut found);
    found.judge();
}

#[test]
fn a_twentieth_of_all_packets_lost_takes_nobody_out() {
    let Some((lab, webs)) = cluster(6) else { return };
    let all = everybody(&webs);
    let mut found = Findings::new();
    let load = load_on_both(&lab, 4, Duration::from_millis(50));
    // Not between client and balancer, where it would be the kernel's TCP alone that is tried.
    let rule = format!("ip saddr != {} numgen random mod 100 < 5 counter drop", lab.address("client"));
    for host in &all {
        lab.filter(host, std::slice::from_ref(&rule));
    }
    observe(Duration::from_secs(20), SAMPLE, |_| {
        for lb in BALANCERS {
            expect_trusted(&lab, &mut found, lb, "web", &all[2..]);
        }
    });
    load.end(&mut found);
    found.judge();
}

/// Names, runs and addresses of all members, whatever their state. They outlast a renewal of a member's identity.
fn runs(lab: &Lab, host: &str) -> Vec<(String, String, String)> {
    let mut all: Vec<_> = lab.members(host).into_iter().map(|seen| (seen.name, seen.id, seen.address)).collect();
    all.sort();
    all
}

/// Prints what an idle balancer and an idle backend use of a processor.
fn tell_idle_cpu(lab: &Lab, hosts: &[&str]) {
    const WINDOW: Duration = Duration::from_secs(30);
    let used = || -> Vec<u64> { hosts.iter().map(|host| cpu_ms(lab.node(host).child.id())).collect() };
    let before = used();
    let began = Instant::now();
    observe(WINDOW, WINDOW, |_| {});
    let took = began.elapsed();
    for (host, (before, after)) in hosts.iter().zip(before.iter().zip(used())).take(4) {
        let percent = (after - before) as f64 / took.as_secs_f64() / 10.0;
        let program = lab.cluster.program.display();
        println!("{host}, idle: {} ms of CPU in {} s: {percent:.2} % ({program})", after - before, took.as_secs());
    }
}

/// User and system time of a process, in steps of 10 ms.
fn cpu_ms(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The second field is the name, which may hold anything.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks: u64 = rest.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    // Linux shows every machine 100 ticks a second.
    ticks * 10
}

// === pauses ===

fn a_paused_backend_convicts_nobody_and_is_back(lab: &Lab, webs: &[String], pause: Duration) {
    let (paused, rest) = (webs[0].as_str(), others(webs, &webs[0]));
    let mut found = Findings::new();
    let load = load_on_both(lab, 2, Duration::from_millis(50));
    lab.node(paused).signal(Signal::STOP);
    // Its application runs on and serves, and may stay in use for that.
    let mut missed = BALANCERS.map(|_| None);
    observe(pause, CLOSE_LOOK, |at| {
        for (lb, missed) in BALANCERS.iter().zip(&mut missed) {
            expect_trusted(lab, &mut found, lb, "web", &rest);
            let is_missed = |seen: &Seen| seen.name == paused && (seen.reach == "silent" || is_convicted(seen));
            if missed.is_none() && lab.members(lb).iter().any(is_missed) {
                *missed = Some(at);
            }
        }
    });
    for (lb, missed) in BALANCERS.iter().zip(missed) {
        found.expect_within(&format!("paused, it is missed at {lb}"), missed, OUT_MAX);
    }
    lab.node(paused).signal(Signal::CONT);
    let mut back: [Option<Duration>; 2] = [None; 2];
    let mut whole_view = None;
    observe(Duration::from_secs(8), CLOSE_LOOK, |at| {
        for (lb, back) in BALANCERS.iter().zip(&mut back) {
            expect_trusted(lab, &mut found, lb, "web", &rest);
            let members = lab.members(lb);
            let is_alive =
                members.iter().any(|seen| seen.name == paused && seen.state == "alive" && seen.reach == "answers");
            let is_back = is_alive && is_in_rotation(lab, lb, "web", paused) == Some(true);
            match back {
                None if is_back => *back = Some(at),
                Some(at) => {
                    found.expect(is_back, format!("{lb} has it back and loses it"), || format!("back at {at:?}"));
                }
                None => {}
            }
        }
        let seen = lab.members(paused);
        for seen in seen.iter().filter(|seen| is_convicted(seen)) {
            found.note(format!("it convicts {}", seen.name), || format!("{seen:?}"));
        }
        if whole_view.is_none() && seen.iter().filter(|seen| seen.state == "alive").count() == webs.len() + 2 {
            whole_view = Some(at);
        }
    });
    for (lb, back) in BALANCERS.iter().zip(back) {
        found.expect_within(&format!("after a pause of {} s back at {lb}", pause.as_secs()), back, BACK_MAX);
    }
    found.expect_within("it sees everybody alive", whole_view, BACK_MAX);
    load.end(&mut found);
    found.judge();
}

/// Clients that ask the paused one wait; they are there again from when it may go on.
fn a_paused_balancer_convicts_nobody_and_serves_again(lab: &Lab, webs: &[String], pause: Duration) {
    let ([other, paused], backends) = (BALANCERS, refs(webs));
    let mut all = everybody(webs);
    all.sort_unstable();
    let mut found = Findings::new();
    let ask = |lb| Load::start(lab, "client", &[(lb, lab.at(lb, 80))], 2, Duration::from_millis(50));
    let load = ask(other);
    lab.node(paused).signal(Signal::STOP);
    let mut is_missed = false;
    observe(pause, SAMPLE, |_| {
        expect_trusted(lab, &mut found, other, "web", &backends);
        is_missed |= lab.members(other).iter().any(|seen| seen.name == paused && is_convicted(seen));
    });
    found.expect(is_missed, "the pause was not noticed", String::new);
    lab.node(paused).signal(Signal::CONT);
    let load_on_paused = ask(paused);
    let mut back = None;
    observe(Duration::from_secs(8), CLOSE_LOOK, |at| {
        for lb in BALANCERS {
            expect_trusted(lab, &mut found, lb, "web", &backends);
        }
        for seen in lab.members(paused).iter().filter(|seen| is_convicted(seen)) {
            found.note(format!("it convicts {}", seen.name), || format!("{seen:?}"));
        }
        let is_back = BALANCERS.into_iter().all(|lb| alive(lab, lb).is_some_and(|alive| alive == all));
        match back {
            None if is_back => back = Some(at),
            Some(since) => found.expect(is_back, "all are alive, and then not", || format!("back at {since:?}")),
            None => {}
        }
    });
    found.expect_within(&format!("after a pause of {} s the balancer is back", pause.as_secs()), back, BACK_MAX);
    let slowest = load_on_paused.end(&mut found);
    found.expect_within("the slowest request once it may go on", Some(slowest), OUT_MAX);
    load.end(&mut found);
    found.judge();
}

fn a_pause_convicts_nobody_and_passes(pause: Duration) {
    let Some((lab, webs)) = cluster(5) else { return };
    a_paused_backend_convicts_nobody_and_is_back(&lab, &webs, pause);
    a_paused_balancer_convicts_nobody_and_serves_again(&lab, &webs, pause);
}

#[test]
fn pausing_a_backend_and_then_a_balancer_for_15_s_convicts_nobody() {
    a_pause_convicts_nobody_and_passes(Duration::from_secs(15));
}

#[test]
fn pausing_a_backend_and_then_a_balancer_for_60_s_convicts_nobody() {
    if std::env::var_os("SCRIMP_TEST_LONG").is_none() {
        eprintln!("SCRIMP_TEST_LONG is not set: this takes more than two minutes, nothing is proved");
        return;
    }
    a_pause_convicts_nobody_and_passes(Duration::from_secs(60));
}

// === deaths ===

#[test]
fn loss_of_power_takes_a_backend_out_soon_and_fails_no_request() {
    let Some((mut lab, webs)) = cluster(8) else { return };
    let mut found = Findings::new();
    let load = load_on_both(&lab, 8, Duration::from_millis(50));
    // How soon depends on where in its round the one that finds out is: several tell more than one.
    // Not neighbours, or a request that was under way when one died would find the next dead too.
    let (dying, living): (Vec<_>, Vec<_>) = webs.iter().enumerate().partition(|(number, _)| number % 3 == 0);
    let living: Vec<&str> = living.into_iter().map(|(_, web)| web.as_str()).collect();
    for (_, dead) in dying {
        let died = Instant::now();
        lab.plug(dead, "down");
        lab.nodes.get_mut(dead).unwrap().kill();
        let mut out: [Option<Duration>; 2] = [None; 2];
        while died.elapsed() < NEVER && out.iter().any(Option::is_none) {
            for (lb, out) in BALANCERS.iter().zip(&mut out) {
                expect_trusted(&lab, &mut found, lb, "web", &living);
                if out.is_none() && is_in_rotation(&lab, lb, "web", dead) == Some(false) {
                    *out = Some(died.elapsed());
                }
            }
            thread::sleep(CLOSE_LOOK);
        }
        for (lb, out) in BALANCERS.iter().zip(out) {
            found.expect_within(&format!("the death of {dead}: out at {lb}"), out, OUT_MAX);
        }
    }
    // Whoever was sent to the dead one is sent on as soon as it is known.
    let slowest = load.end(&mut found);
    found.expect_within("the slowest request while one was dying", Some(slowest), OUT_MAX);
    found.judge();
}

/// How the restart of a backend goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restart {
    /// Before anybody can have noticed.
    AtOnce,
    /// When everybody has.
    OnceDown,
}

/// Kills a backend and starts it again at its address.
fn restart(lab: &mut Lab, found: &mut Findings, host: &str, how: Restart, what: &str) {
    let old = own_id(lab, host);
    lab.nodes.get_mut(host).unwrap().kill();
    let killed = Instant::now();
    while how == Restart::OnceDown && killed.elapsed() < NEVER {
        let is_down = |lb| lab.members(lb).iter().any(|seen| seen.id == old && seen.state == "down");
        if BALANCERS.into_iter().all(is_down) {
            break;
        }
        thread::sleep(CLOSE_LOOK);
    }
    let started = Instant::now();
    start_backend(lab, host, &["web"]);
    let took = (started - killed).as_millis();
    found.expect(how == Restart::OnceDown || took < 300, "slow to start it", || format!("{took} ms"));
    let mut back: [Option<Duration>; 2] = [None; 2];
    let mut is_over = None;
    while is_over.is_none_or(|over: Instant| Instant::now() < over) && started.elapsed() < NEVER {
        let at = started.elapsed();
        let new = own_id(lab, host);
        for (lb, back) in BALANCERS.iter().zip(&mut back) {
            let members = lab.members(lb);
            let active: Vec<&Seen> = members.iter().filter(|seen| seen.name == host && seen.is_active()).collect();
            found.expect(active.len() <= 1, format!("{what}: two members at {lb}"), || format!("{active:?}"));
            let rotation = rotation(lab, lb, "web").unwrap_or_default();
            let count = rotation.iter().filter(|name| *name == host).count();
            found.expect(count <= 1, format!("{what}: twice in rotation at {lb}"), || format!("{rotation:?}"));
            let is_back = count == 1 && active.iter().any(|seen| seen.id == new && seen.state == "alive") && new != old;
            match back {
                None if is_back => *back = Some(at),
                Some(since) => {
                    let detail = || format!("back after {since:?}, at {at:?}: {active:?} {rotation:?}");
                    found.expect(is_back, format!("{what}: {lb} has it back and loses it"), detail);
                }
                None => {}
            }
        }
        // Once back, it is to stay so.
        if is_over.is_none() && back.iter().all(Option::is_some) {
            is_over = Some(Instant::now() + BACK_MAX);
        }
        thread::sleep(CLOSE_LOOK);
    }
    for (lb, back) in BALANCERS.iter().zip(back) {
        found.expect_within(&format!("{what}: back at {lb}"), back, BACK_MAX);
    }
}

/// Which run of a node this is; empty while it does not tell.
fn own_id(lab: &Lab, host: &str) -> String {
    lab.node(host).json("/v1/status")["node"]["id"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn restarted_a_backend_is_back_once_and_soon() {
    let Some((mut lab, webs)) = cluster(4) else { return };
    let mut found = Findings::new();
    restart(&mut lab, &mut found, &webs[0], Restart::AtOnce, "restarted at once");
    restart(&mut lab, &mut found, &webs[1], Restart::OnceDown, "restarted once down");
    found.judge();
}

#[test]
fn restarted_with_its_clock_gone_back_a_backend_is_back_once_and_soon() {
    let Some(clock) = clock_gone_back() else {
        eprintln!("no faketime (Debian's package of that name): clocks cannot be set back, nothing is proved");
        return;
    };
    let Some((mut lab, webs)) = cluster(4) else { return };
    let mut found = Findings::new();
    lab.cluster.env.extend(clock);
    restart(&mut lab, &mut found, &webs[0], Restart::AtOnce, "an hour back, at once");
    restart(&mut lab, &mut found, &webs[1], Restart::OnceDown, "an hour back, once down");
    // The lines of its log carry its own clock's time.
    let log = lab.node(&webs[1]).log();
    let (first, last) = (log.lines().next().unwrap_or_default(), log.lines().last().unwrap_or_default());
    assert!(last.get(..16) < first.get(..16), "its clock went back:\n{first}\n{last}");
    found.judge();
}

/// What makes a program believe that it is an hour earlier; none if nothing here can.
fn clock_gone_back() -> Option<Vec<(String, String)>> {
    let libraries = ["x86_64-linux-gnu", "aarch64-linux-gnu", "."];
    let mut paths = libraries.iter().map(|part| format!("/usr/lib/{part}/faketime/libfaketime.so.1"));
    let library = paths.find(|path| fs::exists(path).unwrap_or(false))?;
    let pairs = [("LD_PRELOAD", library.as_str()), ("FAKETIME", "-3600s"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    let date = Command::new("date").arg("+%s").envs(pairs).output().ok()?;
    let told: i64 = String::from_utf8_lossy(&date.stdout).trim().parse().ok()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    let is_an_hour = i64::try_from(now).ok()?.abs_diff(told).abs_diff(3600) < 5;
    is_an_hour.then(|| pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec())
}

// === partitions ===

const LEFT: [&str; 4] = ["lb1", "a1", "a2", "a3"];
const RIGHT: [&str; 4] = ["lb2", "b1", "b2", "b3"];

#[test]
fn parted_a_cluster_serves_on_both_sides_and_is_one_again() {
    let hosts: Vec<&str> = LEFT.into_iter().chain(RIGHT).collect();
    let Some(mut lab) = lab(&[hosts.as_slice(), &["client"]].concat()) else { return };
    start_balancer(&mut lab, "lb1");
    start_balancer(&mut lab, "lb2");
    for (side, app) in [(&LEFT, "left,listen=8081"), (&RIGHT, "right,listen=8082")] {
        for host in &side[1..] {
            start_backend(&mut lab, host, &["both,listen=80", app]);
        }
    }
    wait_one_view(&lab, &hosts);
    let backends = [&LEFT[1..], &RIGHT[1..]].concat();
    let expected = [("both", backends.as_slice()), ("left", &LEFT[1..]), ("right", &RIGHT[1..])];
    for lb in BALANCERS {
        for (app, hosts) in expected {
            wait_rotation(&lab, lb, app, hosts);
        }
    }
    let mut found = Findings::new();
    let targets = [
        ("both at lb1", "lb1", 80),
        ("left at lb1", "lb1", 8081),
        ("both at lb2", "lb2", 80),
        ("right at lb2", "lb2", 8082),
    ];
    let targets = targets.map(|(name, lb, port)| (name, lab.at(lb, port)));
    let load = Load::start(&lab, "client", &targets, 2, Duration::from_millis(50));
    part(&lab, [&LEFT, &RIGHT]);
    observe(Duration::from_secs(20), SAMPLE, |_| {
        for (lb, own, side) in [("lb1", "left", &LEFT), ("lb2", "right", &RIGHT)] {
            expect_trusted(&lab, &mut found, lb, own, &side[1..]);
            expect_no_empty_pool(&lab, &mut found, lb, &["both", "left", "right"]);
        }
    });
    for host in &hosts {
        found.expect(lab.filtered(host) > 0, format!("{host} was not parted"), String::new);
    }
    heal(&lab, &hosts);
    found.expect_within("one view after a partition", time_to_one_view(&lab, &hosts), ONE_VIEW_MAX);
    for lb in BALANCERS {
        for (app, hosts) in expected {
            wait_rotation(&lab, lb, app, hosts);
        }
    }
    load.end(&mut found);
    found.judge();
}

/// Notes each application without a backend that a request could go to, even if only as a last resort.
fn expect_no_empty_pool(lab: &Lab, found: &mut Findings, lb: &str, apps: &[&str]) {
    let status = lab.node(lb).json("/v1/status");
    let empty = &status["empty_routes"];
    let is_full = empty.is_null() && !status.is_null() || empty.as_array().is_some_and(Vec::is_empty);
    found.expect(is_full, format!("an empty pool at {lb}"), || empty.to_string());
    let view = lab.node(lb).json("/v1/apps");
    for app in apps {
        let entry = view["apps"].as_array().into_iter().flatten().find(|entry| entry["name"] == *app);
        let backends = entry.and_then(|entry| entry["backends"].as_array()).map_or(0, Vec::len);
        found.expect(backends > 0, format!("{app} without a backend at {lb}"), || format!("{entry:?}"));
    }
}

#[test]
fn clusters_born_apart_become_one() {
    let (left, right) = (["lb1", "a1"], ["lb2", "b1"]);
    let hosts = [left, right].concat();
    let Some(mut lab) = lab(&hosts) else { return };
    part(&lab, [&left, &right]);
    start_balancer(&mut lab, "lb1");
    start_balancer(&mut lab, "lb2");
    start_backend(&mut lab, "a1", &["web"]);
    start_backend(&mut lab, "b1", &["web"]);
    wait_one_view(&lab, &left);
    wait_one_view(&lab, &right);
    let mut found = Findings::new();
    heal(&lab, &hosts);
    found.expect_within("one view of two clusters born apart", time_to_one_view(&lab, &hosts), ONE_VIEW_MAX);
    for lb in BALANCERS {
        wait_rotation(&lab, lb, "web", &["a1", "b1"]);
    }
    found.judge();
}

#[test]
fn deafness_of_one_takes_nobody_out() {
    let Some((lab, webs)) = cluster(6) else { return };
    let (deaf, rest, all) = (webs[0].as_str(), others(&webs, &webs[0]), everybody(&webs));
    let mut found = Findings::new();
    let load = load_on_both(&lab, 2, Duration::from_millis(50));
    lab.filter(deaf, &[format!("udp dport {GOSSIP_PORT} counter drop")]);
    observe(Duration::from_secs(30), SAMPLE, |_| {
        for lb in BALANCERS {
            expect_trusted(&lab, &mut found, lb, "web", &rest);
            let other = BALANCERS.into_iter().find(|other| *other != lb);
            let convicted =
                lab.members(lb).into_iter().find(|seen| Some(seen.name.as_str()) == other && is_convicted(seen));
            found.expect(convicted.is_none(), format!("the other balancer convicted at {lb}"), || {
                format!("{convicted:?}")
            });
        }
    });
    let lost = lab.filtered(deaf);
    found.expect(lost > 10, "it was hardly deaf", || format!("{lost} datagrams"));
    heal(&lab, &[deaf]);
    found.expect_within("one view after one was deaf", time_to_one_view(&lab, &all), ONE_VIEW_MAX);
    for lb in BALANCERS {
        wait_rotation(&lab, lb, "web", &refs(&webs));
    }
    load.end(&mut found);
    found.judge();
}
