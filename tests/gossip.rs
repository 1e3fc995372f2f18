//! The membership over real sockets on loopback.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use scrimp::app::{App, AppState, Offer, Protocol};
use scrimp::gossip::{Bound, ClusterKey, Config, Gossip};
use scrimp::member::{MemberState, Role, Roster};
use scrimp::name::{PathPrefix, Port, Weight};
use scrimp::report::GossipCounters;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

fn key(byte: u8) -> Vec<ClusterKey> {
    vec![ClusterKey([byte; 32])]
}

fn start(name: &str, role: Role, keys: Vec<ClusterKey>) -> (Gossip, SocketAddr) {
    let config = Config {
        cluster: "test".parse().unwrap(),
        keys,
        name: name.parse().unwrap(),
        role,
        bind: "127.0.0.1:0".parse().unwrap(),
    };
    let bound = Bound::bind(config).unwrap();
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
    assert!(lb.counters.dropped_unauthenticated.get() > 0);
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

/// 100,000 datagrams of noise: nothing changes, memory does not grow.
#[tokio::test]
async fn noise_changes_nothing() {
    let (lb, lb_address) = start("lb", Role::Balancer, key(1));
    let (web, _) = start("web", Role::Backend, key(1));
    web.offer(offer(1, 1)).await;
    web.seeds(vec![lb_address]).await;
    let before = wait_for(&lb, "joined", |roster| apps_of(roster, "web") == 1).await;
    let dropped = || lb.counters.dropped_malformed.get() + lb.counters.dropped_unauthenticated.get();
    let sent = Arc::new(AtomicU64::new(0));
    let memory_before = resident_kib();
    let noise = {
        let sent = Arc::clone(&sent);
        tokio::task::spawn_blocking(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let seed = 0x5C21_u64;
            println!("seed {seed}");
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bytes = [0; 1400];
            for i in 0..100_000 {
                let length = random.usize(0..bytes.len());
                random.fill(&mut bytes[..length]);
                // Half of it looks like an envelope from outside.
                if i % 2 == 0 && length > 0 {
                    bytes[0] = 0x51;
                }
                sent.fetch_add(u64::from(socket.send_to(&bytes[..length], lb_address).is_ok()), Ordering::Relaxed);
            }
        })
    };
    noise.await.unwrap();
    assert_eq!(sent.load(Ordering::Relaxed), 100_000);
    // The kernel drops what does not fit the socket's buffer; the members must go on all the same.
    let arrived = async {
        let mut last = u64::MAX;
        while last != dropped() {
            last = dropped();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(PATIENCE, arrived).await.expect("the noise is read to its end");
    assert!(dropped() > 10_000, "only {} were read", dropped());
    assert_eq!(lb.roster.borrow().members, before.members, "nothing changed");
    let grown = resident_kib().saturating_sub(memory_before);
    assert!(grown < 8 * 1024, "memory grew by {grown} KiB");
    web.offer(offer(2, 1)).await;
    wait_for(&lb, "still with us", |roster| apps_of(roster, "web") == 2).await;
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
