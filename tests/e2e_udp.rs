//! UDP through the real program: DNS, with real servers.

#[path = "support/crowd.rs"]
mod crowd;
#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
mod node;

use std::collections::{BTreeMap, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crowd::Crowd;
use node::{Cluster, PATIENCE, eventually, eventually_within};

/// A dnsmasq that says its name when it is asked for the text of `who.test`.
struct Dns {
    port: u16,
    child: Child,
}

impl Dns {
    /// Somebody may have the port for TCP, which dnsmasq wants too: then it ends, and another port is tried.
    fn start(name: &str) -> Self {
        (0..10).find_map(|_| Self::try_start(name)).expect("a dnsmasq that answers")
    }

    fn try_start(name: &str) -> Option<Self> {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("dnsmasq")
            .args(["--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--pid-file=", "--user=root"])
            .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--log-facility=-", "--local-ttl=0"])
            .arg(format!("--port={port}"))
            .arg(format!("--txt-record=who.test,{name}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("dnsmasq: {error}: see tests/install"));
        let mut dns = Self { port, child };
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (mut answers, mut has_ended) = (false, false);
        eventually("dnsmasq answers or ends", || {
            answers = client.send(&question(7)).is_ok() && client.recv(&mut [0; 512]).is_ok_and(|length| length > 0);
            has_ended = dns.child.try_wait().unwrap().is_some();
            answers || has_ended
        });
        answers.then_some(dns)
    }

    fn spec(&self, listen: SocketAddr) -> String {
        format!("dns:{}/udp,listen={}", self.port, listen.port())
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks for the text of `who.test`.
fn question(id: u16) -> Vec<u8> {
    let header = [0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    [&id.to_be_bytes()[..], &header, b"\x03who\x04test\x00", &[0, 16, 0, 1]].concat()
}

/// The one text of an answer, which is its last word; none: of another question.
fn text(id: u16, answer: &[u8]) -> Option<char> {
    assert_eq!((answer[2] & 0x80, answer[3] & 0xf, answer[7]), (0x80, 0, 1), "{answer:x?}");
    (answer[..2] == id.to_be_bytes()).then(|| char::from(answer[answer.len() - 1]))
}

/// A number that no question had before.
fn new_round() -> u16 {
    static ROUNDS: AtomicU16 = AtomicU16::new(0);
    ROUNDS.fetch_add(1, Ordering::SeqCst)
}

fn ask_all(crowd: &mut Crowd, clients: Range<u32>) -> HashMap<u32, char> {
    // So that neither a client's next question nor another client's has the same.
    let round = new_round().wrapping_mul(9973);
    let id = |client: u32| round.wrapping_add(u16::try_from(client).unwrap());
    crowd.ask_all(clients, |client| question(id(client)), |client, answer| text(id(client), answer))
}

fn counts(answers: &HashMap<u32, char>) -> BTreeMap<char, usize> {
    let mut counts = BTreeMap::new();
    answers.values().for_each(|name| *counts.entry(*name).or_default() += 1);
    counts
}

#[test]
fn ten_thousand_resolvers_are_each_answered_by_the_server_that_they_began_with() {
    let cluster = Cluster::new();
    let listen = cluster.listen();
    let lb = cluster.balancer("lb", "[lb.limits]\nudp-flows = 12000\n[lb.timeouts]\nudp-idle = \"5m\"\n");
    let servers = ["a", "b", "c"].map(Dns::start);
    let mut backends: Vec<_> = ["na", "nb", "nc"]
        .iter()
        .zip(&servers)
        .map(|(name, dns)| cluster.backend(name, &[&dns.spec(listen)]))
        .collect();
    lb.wait_ready_backends("dns", 3);

    let dig = Command::new("dig")
        .args([format!("@{}", listen.ip()), "-p".to_owned(), listen.port().to_string()])
        .args(["+short", "+tries=5", "+timeout=1", "TXT", "who.test"])
        .output()
        .unwrap_or_else(|error| panic!("dig: {error}: see tests/install"));
    let said = String::from_utf8(dig.stdout).unwrap();
    // Before it a line may tell of a try that was in vain.
    assert!(said.lines().last().is_some_and(|last| ["\"a\"", "\"b\"", "\"c\""].contains(&last)), "{said}");

    let mut crowd = Crowd::new(listen);
    let first = ask_all(&mut crowd, 0..10_000);
    assert!(counts(&first).values().all(|count| (3332..=3335).contains(count)), "{:?}", counts(&first));
    for _ in 0..2 {
        assert!(ask_all(&mut crowd, 0..10_000) == first, "some changed their server");
    }
    let full = r#"scrimp_udp_dropped_total{reason="full"}"#;
    assert_eq!((lb.metric("scrimp_udp_flows_open"), lb.metric(full)), (Some(10_001.0), Some(0.0)));

    // One server leaves politely: its clients go to the others, and nobody else moves.
    assert!(backends.remove(0).end().success());
    lb.wait_ready_backends("dns", 2);
    let next = ask_all(&mut crowd, 0..10_000);
    assert!(next.iter().all(|(client, name)| *name != 'a' && (first[client] == 'a' || first[client] == *name)));
    // Another one dies: the network says that it is not there.
    let [_a, mut b, _c] = servers;
    b.child.kill().unwrap();
    b.child.wait().unwrap();
    let last = ask_all(&mut crowd, 0..10_000);
    assert!(last.values().all(|name| *name == 'c'), "{:?}", counts(&last));
    println!("{} KiB resident with 10,000 flows", lb.resident_kib());
}

/// Answers with its name and what it was sent.
fn named(name: u8) -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&[&[name], &buffer[..length]].concat(), from);
        }
    });
    port
}

/// Each asks with its number; which server it was that answered.
fn ask_named(crowd: &mut Crowd, clients: Range<u32>) -> HashMap<u32, u8> {
    let round = new_round();
    let question = |client: u32| [&round.to_be_bytes()[..], &client.to_be_bytes()].concat();
    crowd.ask_all(clients, question, |client, answer| {
        assert_eq!(answer[3..], client.to_be_bytes(), "another's answer");
        (answer[1..3] == round.to_be_bytes()).then_some(answer[0])
    })
}

#[test]
fn a_flood_of_a_million_sources_leaves_memory_flat_and_the_known_served() {
    const FLOWS: u32 = 1000;
    const SOURCES: u32 = 1_000_000;
    /// It takes 3 s on two cores that have nothing else to do, and a question that was lost is asked again after 300 ms.
    const FLOOD_MAX: Duration = Duration::from_secs(60);
    const ROUND_MAX: Duration = Duration::from_secs(5);
    let cluster = Cluster::new();
    let listen = cluster.listen();
    let lb = cluster.balancer("lb", &format!("[lb.limits]\nudp-flows = {FLOWS}\n[lb.timeouts]\nudp-idle = \"5m\"\n"));
    let specs = [b'a', b'b'].map(|name| format!("echo:{}/udp,listen={}", named(name), listen.port()));
    let _backends: Vec<_> =
        ["na", "nb"].iter().zip(&specs).map(|(name, spec)| cluster.backend(name, &[spec])).collect();
    lb.wait_ready_backends("echo", 2);
    let metric = |name: &str| eventually_within(PATIENCE, name, String::new, || lb.metric(name));
    let flows = || metric("scrimp_udp_flows_total");
    let full = || metric(r#"scrimp_udp_dropped_total{reason="full"}"#);

    // Who speaks again after an answer is known. Some are silent while the flood lasts.
    let mut known = [Crowd::new(listen), Crowd::new(listen)];
    let first: Vec<HashMap<u32, u8>> = known.iter_mut().map(|crowd| ask_named(crowd, 0..100)).collect();
    for (crowd, first) in known.iter_mut().zip(&first) {
        assert!(ask_named(crowd, 0..100) == *first);
    }
    let [mut known, mut silent] = known;
    // The table is full before memory is looked at.
    let mut strangers = Crowd::new(listen);
    ask_named(&mut strangers, 1000..1000 + FLOWS - 200);
    let (before, begun, start) = (lb.resident_kib(), flows(), Instant::now());
    let (mut rounds, mut longest) = (0, Duration::ZERO);
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            for number in 0..SOURCES {
                strangers.send(100_000 + number, b"flood");
                if start.elapsed() > FLOOD_MAX {
                    return number;
                }
            }
            SOURCES
        });
        while !flood.is_finished() {
            let round = Instant::now();
            assert!(ask_named(&mut known, 0..100) == first[0], "a known flow changed its server");
            longest = longest.max(round.elapsed());
            assert!(longest < ROUND_MAX, "a hundred known flows were served after {longest:?}");
            rounds += 1;
        }
        let sent = flood.join().unwrap();
        assert_eq!(sent, SOURCES, "of the flood, in {FLOOD_MAX:?}");
    });
    let (after, lasted, new) = (lb.resident_kib(), start.elapsed(), flows());
    println!(
        "flood {lasted:?}; known: {rounds} rounds of 100, the longest {longest:?}; {before} KiB before, {after} KiB after; \
         {} flows begun, {} datagrams dropped for want of room",
        new - begun,
        full(),
    );
    assert!(rounds > 0 && full() > 0.0);
    assert!(after < before + 4096, "{before} KiB before, {after} KiB after");
    assert!(metric("scrimp_udp_flows_open") <= f64::from(FLOWS));
    // Flows begun anew would be dealt out in turn.
    assert!(ask_named(&mut silent, 0..100) == first[1], "a silent flow changed its server");
}
