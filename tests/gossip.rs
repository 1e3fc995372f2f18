//! The membership over real sockets on loopback.

#[path = "support/flood.rs"]
mod flood;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use flood::{Flood, Kind, Relay};

use scrimp::app::{App, AppState, Offer, Protocol};
use scrimp::gossip::{Bound, ClusterKey, Config, Gossip};
use scrimp::member::{MemberState, Role, Roster};
use scrimp::name::{PathPrefix, Port, Weight};
use scrimp::report::{GossipCounters, KeyId, KeyReport};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

fn key(byte: u8) -> Vec<ClusterKey> {
    vec![ClusterKey([byte; 32])]
}

fn config(cluster: &str, name: &str, role: Role, keys: Vec<ClusterKey>) -> Config {
    Config {
        cluster: cluster.parse().unwrap(),
        keys,
        name: name.parse().unwrap(),
        role,
        bind: "127.0.0.1:0".parse().unwrap(),
    }
}

fn start(name: &str, role: Role, keys: Vec<ClusterKey>) -> (Gossip, SocketAddr) {
    let bound = Bound::bind(config("test", name, role, keys)).unwrap();
    let address = bound.address();
    (bound.start(address, Arc::new(GossipCounters::default())).unwrap(), address)
}

fn offer(apps: usize, domains: usize) -> Offer {
    let app = |i: usize| App {
        name: format!("app-{i:03}").parse().unwrap(),
        protocol: Protocol::Http,
        port: Port::new(8080).unwrap(),
        listen: Port::new(80).unwrap(),
        domains: (0..domains).map(|d| format!("d{d}-{i}.example.com").parse().unwrap()).collect(),
        path: PathPrefix::root(),
        weight: Weight::default(),
        policy: None,
        proxy_protocol: None,
    };
    Offer { apps: (0..apps).map(|i| (app(i), AppState::Ready)).collect() }
}

async fn wait_for(gossip: &Gossip, what: &str, condition: impl FnMut(&Arc<Roster>) -> bool) -> Arc<Roster> {
    let mut roster = gossip.roster.clone();
    let found = timeout(PATIENCE, roster.wait_for(condition)).await;
    let found = found.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}; {:?}", gossip.roster.borrow()));
    Arc::clone(&found.unwrap())
}

fn backend<'a>(roster: &'a Roster, name: &str) -> Option<&'a scrimp::member::Member> {
    roster.members.iter().find(|member| member.name.as_ref().is_some_and(|known| known.as_str() == name))
}

fn apps_of(roster: &Roster, name: &str) -> usize {
    backend(roster, name).and_then(|member| member.offer.as_ref()).map_or(0, |offer| offer.apps.len())
}

#[tokio::test]
async fn offers_of_every_size_arrive_and_a_goodbye_is_heard() {
    let (lb, lb_address) = start("lb", Role::Balancer, key(1));
    let (web, _) = start("web", Role::Backend, key(1));
    web.offer(offer(2, 1)).await;
    web.seeds(vec![lb_address]).await;
    wait_for(&lb, "two applications", |roster| apps_of(roster, "web") == 2).await;
    let large = offer(200, 4);
    web.offer(large.clone()).await;
    let roster = wait_for(&lb, "two hundred", |roster| apps_of(roster, "web") == 200).await;
    assert_eq!(*backend(&roster, "web").unwrap().offer.clone().unwrap(), large);
    assert_eq!(lb.counters.offers_pulled.get(), 1, "this one does not fit a datagram");
    web.leave().await;
    wait_for(&lb, "left", |roster| backend(roster, "web").unwrap().state == MemberState::Left).await;
}

#[tokio::test]
async fn another_key_stays_outside_and_is_told_why() {
    let (lb, lb_address) = start("lb", Role::Balancer, key(1));
    let (stranger, _) = start("stranger", Role::Backend, key(2));
    stranger.seeds(vec![lb_address]).await;
    let mut join = stranger.join.clone();
    let told = join.wait_for(|join| join.contacts.iter().any(|contact| contact.outcome.contains("cluster key")));
    let told = timeout(PATIENCE, told).await.expect("told within the time").unwrap().clone();
    assert!(told.alone);
    assert!(lb.counters.dropped_unknown_key.get() > 0);
    let refused = || lb.counters.questions_refused.get() > 0;
    let counted = async {
        while !refused() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, counted).await.expect("its question over TCP is counted");
    assert_eq!(lb.roster.borrow().members.len(), 1, "only itself");
}

#[tokio::test]
async fn two_keys_bridge_a_rotation() {
    let both = [key(2), key(1)].concat();
    let (old, old_address) = start("old", Role::Balancer, [key(1), key(2)].concat());
    let (new, _) = start("new", Role::Backend, both);
    new.seeds(vec![old_address]).await;
    wait_for(&old, "the one that seals with the other key", |roster| backend(roster, "new").is_some()).await;
}

/// A hundred thousand of each kind that somebody without the key can send (a million each in the release build:
/// `e2e_keys`): all are dropped, none is answered, nothing changes, memory does not grow.
#[tokio::test]
async fn what_is_not_sealed_for_us_and_now_changes_nothing() {
    let bound = Bound::bind(config("test", "lb", Role::Balancer, key(1))).unwrap();
    let lb_address = bound.address();
    let relay = Relay::start(Some(lb_address));
    let lb = bound.start(relay.address, Arc::default()).unwrap();
    let (web, _) = start("web", Role::Backend, key(1));
    web.offer(offer(1, 1)).await;
    web.seeds(vec![relay.address]).await;
    wait_for(&lb, "joined", |roster| apps_of(roster, "web") == 1).await;
    // What others than we seal: with another key, and for another cluster.
    let sink = Relay::start(None);
    let (stranger, _) = start("stranger", Role::Backend, key(2));
    stranger.seeds(vec![sink.address]).await;
    let elsewhere = Bound::bind(config("other", "x", Role::Backend, key(1))).unwrap();
    let address = elsewhere.address();
    let elsewhere = elsewhere.start(address, Arc::default()).unwrap();
    elsewhere.seeds(vec![sink.address]).await;
    let (ours, foreign) = (relay.recorded(50), sink.recorded(6));
    stranger.leave().await;
    elsewhere.leave().await;
    assert!(foreign.iter().any(|datagram| datagram[1] == ours[0][1]), "one of them names our key");

    let (before, counters) = (lb.roster.borrow().clone(), &lb.counters);
    let reasons = || {
        let all = [
            &counters.dropped_malformed,
            &counters.dropped_unknown_key,
            &counters.dropped_unauthenticated,
            &counters.dropped_replayed,
            &counters.dropped_invalid,
        ];
        all.map(scrimp::report::Counter::get)
    };
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let dropped = || reasons().iter().sum();
    let random = fastrand::Rng::with_seed(seed);
    let mut flood = Flood { to: lb_address, ours: &ours, foreign: &foreign, batch: 64, dropped: &dropped, random };
    let mut resident = 0;
    for (kind, expected) in [
        (Kind::Replayed, [false, false, false, true]),
        (Kind::Forged, [false, false, true, false]),
        (Kind::Foreign, [false, true, true, false]),
        (Kind::Flipped, [true, true, true, true]),
        (Kind::Cut, [true, false, false, true]),
        (Kind::Noise, [true, true, true, false]),
    ] {
        let before = reasons();
        flood.send(kind, 100_000);
        let after = reasons();
        let grown = [0, 1, 2, 3].map(|at| after[at] > before[at]);
        assert_eq!(grown, expected, "{kind:?}: malformed, unknown key, unauthenticated, replayed");
        assert_eq!(after[4], before[4], "{kind:?}: nothing got as far as being read");
        resident = if resident == 0 { resident_kib() } else { resident };
    }
    let grown = resident_kib().saturating_sub(resident);
    assert!(grown < 4 * 1024, "memory grew by {grown} KiB");
    assert_eq!(*lb.roster.borrow(), before, "nothing changed");
    web.offer(offer(2, 1)).await;
    wait_for(&lb, "still with us", |roster| apps_of(roster, "web") == 2).await;
}

/// A question over TCP is answered once: recorded and asked again, the connection is closed.
#[tokio::test]
async fn a_recorded_question_is_not_answered_again() {
    let (lb, lb_address) = start("lb", Role::Balancer, key(1));
    // It is reached where TCP alone passes, so the newcomer asks over TCP why nobody answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (web, _) = start("web", Role::Backend, key(1));
    web.seeds(vec![listener.local_addr().unwrap()]).await;
    let question = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut frame).unwrap();
        [&length[..], &frame].concat()
    });
    let question = timeout(PATIENCE, question).await.expect("it asks").unwrap();
    let ask = || {
        let mut stream = TcpStream::connect(lb_address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&question).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer.len()
    };
    assert!(ask() > 40, "a first time it is answered");
    assert_eq!(ask(), 0);
    assert_eq!(lb.counters.questions_refused.get(), 1);
}

#[tokio::test]
async fn keys_change_while_it_runs_in_any_order_and_nobody_is_lost() {
    let (lb, lb_address) = start("lb", Role::Balancer, key(1));
    let (a, _) = start("a", Role::Backend, key(1));
    let (b, _) = start("b", Role::Backend, key(1));
    for node in [&a, &b] {
        node.offer(offer(1, 1)).await;
        node.seeds(vec![lb_address]).await;
    }
    let nodes = [&lb, &a, &b];
    for node in nodes {
        wait_for(node, "three", |roster| roster.members.iter().filter(|member| member.name.is_some()).count() == 3)
            .await;
    }
    let [old, new] = [1, 2].map(|byte| ClusterKey([byte; 32]).id());
    let told = async |node: &Gossip, what: &str, key: KeyId| {
        let mut keys = node.keys.clone();
        let all = |keys: &Arc<KeyReport>| {
            keys.members.len() == 2 && keys.members.values().all(|member| member.sealed_with == key)
        };
        let found = timeout(PATIENCE, keys.wait_for(all)).await.map(drop);
        found.unwrap_or_else(|_| panic!("{what}: {:?}", node.keys.borrow()));
    };
    told(&lb, "all begin with the old key", old).await;
    let both = [key(2), key(1)].concat();
    // One has it before anybody else knows of it: with those who do not it goes on with the old one.
    a.rekey(both.clone()).await.unwrap();
    for node in [&lb, &b] {
        let mut keys = node.keys.clone();
        let knows = |keys: &Arc<KeyReport>| keys.members.get(&a.id).is_some_and(|it| it.opens == [new, old]);
        timeout(PATIENCE, keys.wait_for(knows)).await.map(drop).expect("it hears of the new key, sealed with the old");
    }
    told(&a, "to it they seal with what they have", old).await;
    lb.rekey(both.clone()).await.unwrap();
    b.rekey(both).await.unwrap();
    for node in nodes {
        told(node, "all have the new key", new).await;
        node.rekey(key(2)).await.unwrap();
        assert_eq!(node.keys.borrow().own, [new]);
    }
    // A large offer is fetched over TCP, with the new key.
    a.offer(offer(200, 4)).await;
    wait_for(&lb, "two hundred", |roster| apps_of(roster, "a") == 200).await;
    for node in nodes {
        let counters = &node.counters;
        let refused = [&counters.dropped_unknown_key, &counters.dropped_unauthenticated, &counters.dropped_invalid];
        assert_eq!(refused.map(scrimp::report::Counter::get), [0; 3]);
        let roster = node.roster.borrow().clone();
        assert!(roster.members.iter().all(|member| member.state == MemberState::Alive), "{roster:?}");
    }
    assert!(lb.rekey(Vec::new()).await.unwrap_err().to_string().contains("goes on with one"));
    let five: Vec<ClusterKey> = (1..=5).flat_map(key).collect();
    assert!(lb.rekey(five).await.unwrap_err().to_string().contains("at most 4"));
    let (open, _) = start("open", Role::Backend, Vec::new());
    assert!(open.rekey(key(1)).await.unwrap_err().to_string().contains("when it is restarted"));
    assert_eq!(open.keys.borrow().own, []);
}

/// What is well sealed but was meant for another run, or is a knock that somebody may have recorded, tells nothing of the
/// keys that its sender has by now: what is sent there would be sealed with one that it has given away.
#[tokio::test]
async fn what_was_meant_for_another_run_tells_nothing_of_keys() {
    let (lb, lb_address) = start("lb", Role::Balancer, key(1));
    let other = Bound::bind(config("test", "other", Role::Balancer, key(1))).unwrap();
    let relay = Relay::start(Some(other.address()));
    let other = other.start(relay.address, Arc::default()).unwrap();
    let (web, _) = start("web", Role::Backend, key(1));
    web.offer(offer(1, 1)).await;
    web.seeds(vec![relay.address]).await;
    // Knocks and more, to the other balancer; of it the first has heard nothing yet.
    let recorded = relay.recorded(20);
    lb.seeds(vec![relay.address]).await;
    wait_for(&lb, "all", |roster| apps_of(roster, "web") == 1).await;
    // This one is late with its last steps: it prefers the old key wherever that is taken.
    lb.rekey([key(1), key(2)].concat()).await.unwrap();
    for keys in [[key(2), key(1)].concat(), key(2)] {
        for node in [&web, &other] {
            node.rekey(keys.clone()).await.unwrap();
        }
        let ids: Vec<KeyId> = keys.iter().map(ClusterKey::id).collect();
        let knows =
            |told: &Arc<KeyReport>| told.members.len() == 2 && told.members.values().all(|member| member.opens == ids);
        let found = timeout(PATIENCE, lb.keys.clone().wait_for(knows)).await.map(drop);
        found.unwrap_or_else(|_| panic!("it knows what they have: {:?}", lb.keys.borrow()));
    }
    let mut told = lb.keys.clone();
    // What it sent before it knew has arrived.
    lb.offer(offer(0, 0)).await;
    assert!(lb.heard(PATIENCE).await);
    told.mark_unchanged();
    let (refused, misaddressed) = (&web.counters.dropped_unknown_key, &lb.counters.dropped_misaddressed);
    let before = (refused.get(), misaddressed.get());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for datagram in &recorded {
        socket.send_to(datagram, lb_address).unwrap();
    }
    // The last one is no envelope at all: once it is counted, all are read.
    socket.send_to(&[0], lb_address).unwrap();
    let read = async {
        while lb.counters.dropped_malformed.get() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, read).await.expect("what was recorded is read");
    let not_for_it = misaddressed.get() - before.1;
    assert!(not_for_it > 5, "only {not_for_it} were not for this run");
    assert!(!told.has_changed().unwrap(), "{:?}", lb.keys.borrow());
    lb.offer(offer(0, 0)).await;
    assert!(lb.heard(PATIENCE).await);
    // A knock is answered as it was sealed, once, and changes nothing.
    let knocks = recorded.len() as u64 - not_for_it;
    assert!(refused.get() - before.0 <= knocks, "{} were sealed with what it gave away", refused.get() - before.0);
}

/// A node that was given the address of another, in a copied configuration say, stays outside and says why; the other
/// is not disturbed.
#[tokio::test]
async fn who_advertises_the_address_of_another_stays_outside() {
    let (lb, lb_address) = start("lb", Role::Balancer, key(1));
    let (web, web_address) = start("web", Role::Backend, key(1));
    web.offer(offer(1, 1)).await;
    web.seeds(vec![lb_address]).await;
    wait_for(&lb, "one backend", |roster| apps_of(roster, "web") == 1).await;
    let copy = Bound::bind(config("test", "copy", Role::Backend, key(1))).unwrap();
    let copy = copy.start(web_address, Arc::default()).unwrap();
    copy.offer(offer(2, 1)).await;
    copy.seeds(vec![lb_address]).await;
    let mut join = copy.join.clone();
    let told = join.wait_for(|join| join.contacts.iter().any(|contact| contact.outcome.contains("node.advertise")));
    timeout(PATIENCE, told).await.map(drop).expect("it is told");
    for node in [&lb, &web] {
        let roster = node.roster.borrow().clone();
        assert!(roster.members.iter().all(|member| member.state == MemberState::Alive), "{roster:?}");
        let at_its_address: Vec<_> = roster.members.iter().filter(|member| member.address == web_address).collect();
        assert!(at_its_address.len() == 1 && at_its_address[0].id == web.id, "{roster:?}");
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn without_a_key_only_loopback_is_bound_or_advertised() {
    let config = |bind: &str| Config {
        cluster: "test".parse().unwrap(),
        keys: Vec::new(),
        name: "x".parse().unwrap(),
        role: Role::Backend,
        bind: bind.parse().unwrap(),
    };
    let refused = Bound::bind(config("0.0.0.0:0")).unwrap_err().to_string();
    assert!(refused.contains("scrimp keygen"), "{refused}");
    let bound = Bound::bind(config("127.0.0.1:0")).unwrap();
    let counters = Arc::new(GossipCounters::default());
    let refused = bound.start("192.0.2.1:7377".parse().unwrap(), counters).unwrap_err().to_string();
    assert!(refused.contains("scrimp keygen"), "{refused}");
}

#[test]
fn a_taken_port_names_the_remedy() {
    let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
    let config = Config {
        cluster: "test".parse().unwrap(),
        keys: key(1),
        name: "x".parse().unwrap(),
        role: Role::Backend,
        bind: holder.local_addr().unwrap(),
    };
    let refused = format!("{:#}", Bound::bind(config).unwrap_err());
    assert!(refused.contains("node.bind") && refused.contains("in use"), "{refused}");
}
