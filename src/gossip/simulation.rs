//! Many cores on one virtual clock and a network that loses, delays and cuts. Nothing here waits: a virtual hour
//! takes a second or two. Every run is decided by its seed, which a failing test prints.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::core::{Core, DATAGRAM_BYTES_MAX, Dropped, Effect, Input, Settings};
use super::identity::Identity;
use super::record::{AppsDigest, decode_apps};
use super::seal;
use crate::app::{App, AppState, Offer, Protocol};
use crate::member::{MemberState, NodeId, Role, Roster};
use crate::name::{PathPrefix, Port, Weight};
use crate::report::JoinReport;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// One thing that will reach one node.
#[derive(Debug)]
enum Delivery {
    Message(Vec<u8>),
    Pulled { node: NodeId, digest: AppsDigest, result: Result<Vec<App>, String> },
    Contacted { addr: SocketAddr, outcome: String },
}

struct Node {
    core: Core,
    roster: Option<Arc<Roster>>,
    join: Option<Arc<JoinReport>>,
    served: Option<(AppsDigest, Arc<[u8]>)>,
    times_heard: u32,
    has_left: bool,
}

struct Simulation {
    now: Instant,
    wall: SystemTime,
    start: Instant,
    rng: StdRng,
    nodes: BTreeMap<SocketAddr, Node>,
    queue: BinaryHeap<Reverse<(Instant, u64, SocketAddr)>>,
    deliveries: HashMap<u64, Delivery>,
    sequence: u64,
    runs: u64,
    loss_percent: u32,
    cut: HashSet<(SocketAddr, SocketAddr)>,
    seed: u64,
}

fn at(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 7377))
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        Self {
            now,
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            start: now,
            rng: StdRng::seed_from_u64(seed),
            nodes: BTreeMap::new(),
            queue: BinaryHeap::new(),
            deliveries: HashMap::new(),
            sequence: 0,
            runs: 0,
            loss_percent: 0,
            cut: HashSet::new(),
            seed,
        }
    }

    /// Starts a node; host 1 is the balancer of every test.
    fn add(&mut self, host: u8, seeds: &[u8]) {
        self.runs += 1;
        let wall = self.wall + (self.now - self.start);
        let epoch = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
        let settings = Settings {
            cluster: "test".parse().unwrap(),
            identity: Identity::new(at(host), epoch, NodeId(u64::from(host) * 1000 + self.runs)),
            name: format!("n{host}").parse().unwrap(),
            role: if host == 1 { Role::Balancer } else { Role::Backend },
        };
        let core = Core::new(settings, self.now, wall, self.rng.random());
        let node = Node { core, roster: None, join: None, served: None, times_heard: 0, has_left: false };
        self.nodes.insert(at(host), node);
        let seeds: Vec<SocketAddr> = seeds.iter().map(|host| at(*host)).collect();
        self.input(at(host), Input::Seeds(seeds));
        if host != 1 {
            self.input(at(host), Input::Offer(offer(1, 1)));
        }
    }

    fn kill(&mut self, host: u8) {
        self.nodes.remove(&at(host));
    }

    fn input(&mut self, to: SocketAddr, input: Input<'_>) {
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(&to) {
            let outcome = node.core.handle(now, input);
            assert_ne!(outcome, Err(Dropped::Invalid), "seed {}: a message of ours made no sense", self.seed);
            assert_ne!(outcome, Err(Dropped::Excess), "seed {}: a member claims too much", self.seed);
            self.act(to);
        }
    }

    fn act(&mut self, from: SocketAddr) {
        while let Some(effect) = self.nodes.get_mut(&from).and_then(|node| node.core.next_effect()) {
            match effect {
                Effect::Send { to, message } => self.send(from, to, message),
                Effect::Pull { from: owner, node, digest } => {
                    let served = self.nodes.get(&owner).filter(|_| self.is_open(from, owner));
                    let served = served.and_then(|node| node.served.clone());
                    let result = match served {
                        Some((has, apps)) if has == digest => decode_apps(&apps, &digest),
                        _ => Err("not there".to_owned()),
                    };
                    self.deliver(from, 20 * MS, Delivery::Pulled { node, digest, result });
                }
                Effect::Contact(addr) => {
                    self.deliver(from, SECOND, Delivery::Contacted { addr, outcome: "asked".to_owned() });
                }
                Effect::Serve { digest, apps } => {
                    self.node(from).served = Some((digest, apps));
                }
                Effect::Roster(roster) => self.node(from).roster = Some(roster),
                Effect::Join(join) => self.node(from).join = Some(join),
                Effect::Heard => self.node(from).times_heard += 1,
                Effect::Left => self.node(from).has_left = true,
            }
        }
    }

    fn node(&mut self, addr: SocketAddr) -> &mut Node {
        self.nodes.get_mut(&addr).expect("it acts, so it is there")
    }

    fn is_open(&self, from: SocketAddr, to: SocketAddr) -> bool {
        !self.cut.contains(&(from, to))
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, message: Vec<u8>) {
        let length = message.len() + seal::OVERHEAD_BYTES;
        assert!(length <= DATAGRAM_BYTES_MAX, "seed {}: a datagram of {length} bytes", self.seed);
        if self.is_open(from, to) && self.rng.random_range(0..100) >= self.loss_percent {
            let delay = MS * self.rng.random_range(1..20);
            self.deliver(to, delay, Delivery::Message(message));
        }
    }

    fn deliver(&mut self, to: SocketAddr, after: Duration, delivery: Delivery) {
        self.sequence += 1;
        self.deliveries.insert(self.sequence, delivery);
        self.queue.push(Reverse((self.now + after, self.sequence, to)));
    }

    /// Moves the clock on to the next thing that happens; false if nothing will before `until`.
    fn step(&mut self, until: Instant) -> bool {
        let delivery = self.queue.peek().map(|Reverse((due, ..))| *due);
        let wake = self.nodes.iter().filter_map(|(addr, node)| Some((node.core.next_deadline()?, *addr))).min();
        let due = delivery.into_iter().chain(wake.map(|(due, _)| due)).min();
        let Some(due) = due.filter(|due| *due <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(due);
        match (delivery, wake) {
            (Some(delivery), _) if delivery == due => self.deliver_next(),
            (_, Some((_, addr))) => self.input(addr, Input::Wake),
            _ => {}
        }
        true
    }

    fn deliver_next(&mut self) {
        let Some(Reverse((_, sequence, to))) = self.queue.pop() else {
            return;
        };
        match self.deliveries.remove(&sequence) {
            Some(Delivery::Message(bytes)) => self.input(to, Input::Message(&bytes)),
            Some(Delivery::Pulled { node, digest, result }) => {
                self.input(to, Input::Pulled { node, digest, result });
            }
            Some(Delivery::Contacted { addr, outcome }) => self.input(to, Input::Contacted { addr, outcome }),
            None => {}
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    /// Runs until `condition` holds and says how long that took; fails after `limit`.
    fn until(&mut self, limit: Duration, what: &str, condition: impl Fn(&Self) -> bool) -> Duration {
        let (began, until) = (self.now, self.now + limit);
        while !condition(self) {
            assert!(self.step(until), "seed {}: not within {limit:?}: {what}", self.seed);
        }
        self.now - began
    }

    /// How `observer` sees `host`.
    fn state(&self, observer: u8, host: u8) -> Option<MemberState> {
        let roster = self.nodes.get(&at(observer))?.roster.as_ref()?;
        roster.members.iter().find(|member| member.address == at(host)).map(|member| member.state)
    }

    /// Whether every node sees exactly these hosts as active, with their names and offers.
    fn all_see(&self, hosts: &[u8]) -> bool {
        self.nodes.iter().filter(|(_, node)| !node.has_left).all(|(_, node)| {
            let Some(roster) = &node.roster else { return false };
            let active: Vec<_> = roster.members.iter().filter(|member| member.state.is_active()).collect();
            active.len() == hosts.len()
                && hosts.iter().all(|host| {
                    active
                        .iter()
                        .any(|member| member.address == at(*host) && member.name.is_some() && member.offer.is_some())
                })
        })
    }

    fn apps_seen(&self, observer: u8, host: u8) -> usize {
        let roster = self.nodes[&at(observer)].roster.as_ref();
        let member = roster.and_then(|roster| roster.members.iter().find(|member| member.address == at(host)));
        member.and_then(|member| member.offer.as_ref()).map_or(0, |offer| offer.apps.len())
    }
}

fn offer(apps: usize, domains: usize) -> Offer {
    let app = |i: usize| App {
        name: format!("app-{i:03}").parse().unwrap(),
        protocol: Protocol::Http,
        port: Port::new(8080).unwrap(),
        listen: Port::new(80).unwrap(),
        domains: (0..domains).map(|d| format!("d{d}-{i:03}.example.com").parse().unwrap()).collect(),
        path: PathPrefix::root(),
        weight: Weight::default(),
        policy: None,
    };
    let mut offer = Offer { apps: (0..apps).map(|i| (app(i), AppState::Ready)).collect() };
    for (app, _) in &mut offer.apps {
        app.normalize();
    }
    offer
}

/// A balancer (host 1) and backends, all joined.
fn cluster(seed: u64, hosts: u8) -> Simulation {
    let mut sim = Simulation::new(seed);
    for host in 1..=hosts {
        sim.add(host, &[1]);
    }
    let all: Vec<u8> = (1..=hosts).collect();
    sim.until(30 * SECOND, "all see all", |sim| sim.all_see(&all));
    sim
}

#[test]
fn a_handful_of_nodes_finds_itself_within_a_second() {
    for seed in 0..20 {
        let mut sim = Simulation::new(seed);
        for host in 1..=5 {
            sim.add(host, &[1]);
        }
        let took = sim.until(SECOND, "all see all", |sim| sim.all_see(&[1, 2, 3, 4, 5]));
        assert!(took > Duration::ZERO);
    }
}

#[test]
fn a_node_that_is_alone_keeps_trying_its_seed() {
    let mut sim = Simulation::new(1);
    sim.add(2, &[1]);
    sim.run(120 * SECOND);
    let join = sim.nodes[&at(2)].join.clone().unwrap();
    assert!(join.alone);
    assert_eq!(join.contacts[0].outcome, "asked", "it looks into the silence");
    sim.add(1, &[]);
    sim.until(6 * SECOND, "joined", |sim| sim.all_see(&[1, 2]));
    assert!(!sim.nodes[&at(2)].join.as_ref().unwrap().alone);
}

#[test]
fn the_largest_offer_arrives() {
    let mut sim = cluster(2, 3);
    sim.input(at(2), Input::Offer(offer(256, 4)));
    let took = sim.until(SECOND, "256 applications", |sim| sim.apps_seen(1, 2) == 256);
    assert!(took < 300 * MS, "{took:?}");
    assert_eq!(sim.apps_seen(3, 2), 1, "a backend does not fetch what it does not need");
}

#[test]
fn a_state_that_changes_needs_no_second_pull() {
    let mut sim = cluster(3, 2);
    let mut large = offer(256, 4);
    sim.input(at(2), Input::Offer(large.clone()));
    sim.until(SECOND, "256 applications", |sim| sim.apps_seen(1, 2) == 256);
    sim.node(at(2)).served = None;
    large.apps[7].1 = AppState::Draining;
    sim.input(at(2), Input::Offer(large));
    let is_draining = |sim: &Simulation| {
        let roster = sim.nodes[&at(1)].roster.as_ref().unwrap();
        let member = roster.members.iter().find(|member| member.address == at(2)).unwrap();
        member.offer.as_ref().unwrap().apps[7].1 == AppState::Draining
    };
    sim.until(200 * MS, "the state alone", is_draining);
}

#[test]
fn an_offer_is_heard_when_all_have_it_or_cannot_be_reached() {
    let mut sim = cluster(8, 4);
    let before = sim.nodes[&at(2)].times_heard;
    sim.input(at(2), Input::Offer(offer(2, 1)));
    assert_eq!(sim.nodes[&at(2)].times_heard, before, "not before it was sent");
    sim.until(100 * MS, "heard", |sim| sim.nodes[&at(2)].times_heard > before);
    // It has it; 20 ms later it is published.
    sim.run(20 * MS);
    assert_eq!(sim.apps_seen(1, 2), 2);
    sim.kill(3);
    sim.input(at(2), Input::Offer(offer(3, 1)));
    let took = sim.until(2 * SECOND, "heard", |sim| sim.nodes[&at(2)].times_heard > before + 1);
    assert!(took > 500 * MS, "it was tried several times: {took:?}");
}

#[test]
fn a_change_that_was_missed_is_noticed() {
    for seed in 0..10 {
        let mut sim = cluster(seed, 3);
        // One way only and for two seconds: long enough for every push to be lost, too short for a Down.
        sim.cut.insert((at(2), at(1)));
        sim.input(at(2), Input::Offer(offer(3, 1)));
        sim.run(2 * SECOND);
        assert_eq!(sim.apps_seen(1, 2), 1);
        sim.cut.clear();
        sim.until(5 * SECOND, "the change", |sim| sim.apps_seen(1, 2) == 3);
    }
}

#[test]
fn a_dead_node_is_down_and_nobody_else_is() {
    for seed in 0..20 {
        let mut sim = cluster(seed, 6);
        sim.kill(4);
        let took = sim.until(8 * SECOND, "down", |sim| sim.all_see(&[1, 2, 3, 5, 6]));
        assert!(took > SECOND, "{took:?}");
        assert_eq!(sim.state(1, 4), Some(MemberState::Down));
    }
}

#[test]
fn a_goodbye_is_heard_at_once_and_holds() {
    for seed in 0..20 {
        let mut sim = cluster(seed, 5);
        sim.input(at(3), Input::Leave);
        let took = sim.until(300 * MS, "left", |sim| sim.state(1, 3) == Some(MemberState::Left));
        assert!(took < 100 * MS, "{took:?}");
        sim.until(2 * SECOND, "it ends", |sim| sim.nodes[&at(3)].has_left);
        sim.kill(3);
        sim.run(30 * SECOND);
        assert!(sim.all_see(&[1, 2, 4, 5]));
        assert_eq!(sim.state(1, 3), Some(MemberState::Left), "and not down");
    }
}

#[test]
fn a_restart_at_the_same_address_takes_the_old_ones_place() {
    for seed in 0..20 {
        let mut sim = cluster(seed, 4);
        sim.kill(2);
        sim.run(300 * MS);
        sim.add(2, &[1]);
        sim.until(3 * SECOND, "one view", |sim| sim.all_see(&[1, 2, 3, 4]));
        let run = sim.runs;
        let members = &sim.nodes[&at(1)].roster.as_ref().unwrap().members;
        let there: Vec<_> = members.iter().filter(|member| member.address == at(2)).map(|member| member.id).collect();
        assert_eq!(there, [NodeId(2000 + run)], "seed {seed}: the new run, once");
    }
}

#[test]
fn lost_packets_remove_nobody() {
    for seed in 0..4 {
        let mut sim = cluster(seed, 10);
        sim.loss_percent = 30;
        let all: Vec<u8> = (1..=10).collect();
        for _ in 0..300 {
            sim.run(SECOND);
            assert!(sim.all_see(&all), "seed {seed}: somebody was removed");
        }
        for (addr, node) in &sim.nodes {
            let me = node.roster.as_ref().unwrap().me;
            let is_known = sim.nodes.values().all(|other| {
                other.roster.as_ref().unwrap().members.iter().any(|member| member.id == me && member.address == *addr)
            });
            assert!(is_known, "seed {seed}");
        }
    }
}

#[test]
fn clusters_born_apart_merge_when_one_sees_the_others_seed() {
    let mut sim = Simulation::new(5);
    sim.add(1, &[]);
    sim.add(2, &[1]);
    sim.add(3, &[]);
    sim.add(4, &[3]);
    sim.run(3 * SECOND);
    assert!(!sim.all_see(&[1, 2, 3, 4]));
    sim.input(at(1), Input::Seeds(vec![at(1), at(3)]));
    sim.until(12 * SECOND, "one view", |sim| sim.all_see(&[1, 2, 3, 4]));
}

#[test]
fn a_node_that_is_alone_may_move() {
    let mut sim = Simulation::new(6);
    sim.add(1, &[]);
    sim.add(2, &[]);
    let node = sim.nodes.remove(&at(2)).unwrap();
    sim.nodes.insert(at(9), node);
    sim.input(at(9), Input::Advertise(at(9)));
    sim.input(at(9), Input::Seeds(vec![at(1)]));
    sim.until(SECOND, "joined", |sim| sim.all_see(&[1, 9]));
}

#[test]
fn noise_inside_the_envelope_changes_nothing() {
    let mut sim = cluster(7, 3);
    let before = sim.nodes[&at(1)].roster.clone();
    for length in 0..200_usize {
        let noise: Vec<u8> = (0..length).map(|_| sim.rng.random()).collect();
        let now = sim.now;
        let _ = sim.node(at(1)).core.handle(now, Input::Message(&noise));
        sim.act(at(1));
    }
    sim.run(5 * SECOND);
    assert_eq!(sim.nodes[&at(1)].roster, before);
}
