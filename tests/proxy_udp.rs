//! UDP applications through the proxy: real sockets on loopback.
#![allow(missing_docs)]

#[path = "support/crowd.rs"]
mod crowd;
mod support;

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crowd::Crowd;
use scrimp::app::{App, AppState, PolicyName, Protocol};
use scrimp::member::{MemberState, Reach};
use scrimp::name::Port;
use scrimp::proxy::OnRemoval;
use support::{Bed, Node, SOON, app, until, with_policy};

fn udp_app(listen: Port, backend: SocketAddr) -> App {
    app("dns", Protocol::Udp, listen, backend)
}

/// A real server: what `answer` makes of a datagram goes back to where it came from.
struct Server {
    address: SocketAddr,
    socket: UdpSocket,
    stopped: Arc<AtomicBool>,
}

impl Server {
    fn start(answer: impl Fn(&[u8], SocketAddr, &UdpSocket) + Send + 'static) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), answer)
    }

    fn at(address: SocketAddr, answer: impl Fn(&[u8], SocketAddr, &UdpSocket) + Send + 'static) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        // Some thousand datagrams may wait while other tests have the processor.
        let _ = socket.set_recv_buffer_size(4 * 1024 * 1024);
        socket.bind(&address.into()).unwrap();
        let socket: UdpSocket = socket.into();
        let address = socket.local_addr().unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let (is_stopped, reader) = (Arc::clone(&stopped), socket.try_clone().unwrap());
        thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok((length, from)) = reader.recv_from(&mut buffer) {
                if is_stopped.load(Ordering::SeqCst) {
                    return;
                }
                answer(&buffer[..length], from, &reader);
            }
        });
        Self { address, socket, stopped }
    }

    /// Answers with its name and what it was sent.
    fn named(name: &'static str) -> Self {
        Self::named_at(([127, 0, 0, 1], 0).into(), name)
    }

    fn named_at(address: SocketAddr, name: &'static str) -> Self {
        Self::at(address, move |bytes, from, socket| {
            let _ = socket.send_to(&[name.as_bytes(), bytes].concat(), from);
        })
    }

    fn echo() -> Self {
        Self::start(|bytes, from, socket| drop(socket.send_to(bytes, from)))
    }

    /// Closes the socket: from now on the kernel says that nobody is there.
    fn stop(self) {
        self.stopped.store(true, Ordering::SeqCst);
        let address = self.address;
        let probe = client(address);
        probe.send(b"end").unwrap();
        drop(self);
        until("the server is gone", || {
            let _ = probe.send(b"?");
            probe.send(b"?").is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
    }
}

/// A client that hears nobody but `server`.
fn client(server: SocketAddr) -> UdpSocket {
    let any: IpAddr = if server.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

fn heard(client: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65536];
    let length = client.recv(&mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

fn ask(client: &UdpSocket, question: &[u8]) -> Vec<u8> {
    client.send(question).unwrap();
    heard(client)
}

/// What a server that answers with its name and the question says.
fn name(client: &UdpSocket) -> char {
    let answer = ask(client, b"who?");
    assert_eq!(&answer[1..], b"who?");
    char::from(answer[0])
}

/// Nothing comes.
fn is_silent(client: &UdpSocket, time: Duration) -> bool {
    client.set_read_timeout(Some(time)).unwrap();
    let silent = client.recv(&mut [0; 10]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    client.set_read_timeout(Some(SOON)).unwrap();
    silent
}

fn open_udp(bed: &Bed, nodes: &[Node], port: Port) {
    bed.publish(nodes);
    bed.until_bound(port);
}

fn nobody() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn datagrams_pass_unchanged_whatever_their_length() {
    let bed = Bed::new();
    let (port, server) = (bed.port(), Server::echo());
    open_udp(&bed, &[Node::new(1, vec![udp_app(port, server.address)])], port);
    let report = bed.report(port).unwrap();
    assert_eq!((report.transport, report.error), (scrimp::app::Transport::Udp, None));
    let client = client(bed.address(port));
    // The longest datagram that IPv4 has room for, and the shortest.
    for length in [1, 0, 512, 1500, 9000, 65_507, 0, 3] {
        let bytes: Vec<u8> = (0..length).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        assert!(ask(&client, &bytes) == bytes, "{length} bytes");
    }
    let counted = || (bed.counters.udp_in.get(), bed.counters.udp_out.get(), bed.counters.udp_flows.get());
    until("all are counted", || counted() == (8, 8, 1));
}

#[test]
fn four_backends_serve_exactly_five_of_twenty_flows_each_its_own() {
    let bed = Bed::new();
    let (port, servers) = (bed.port(), ["a", "b", "c", "d"].map(Server::named));
    let nodes: Vec<Node> =
        (1..).zip(&servers).map(|(id, server)| Node::new(id, vec![udp_app(port, server.address)])).collect();
    open_udp(&bed, &nodes, port);
    let clients: Vec<UdpSocket> = (0..20).map(|_| client(bed.address(port))).collect();
    let first: Vec<char> = clients.iter().map(name).collect();
    for letter in ['a', 'b', 'c', 'd'] {
        assert_eq!(first.iter().filter(|found| **found == letter).count(), 5, "{first:?}");
    }
    for _ in 0..5 {
        assert_eq!(clients.iter().map(name).collect::<Vec<char>>(), first);
    }
    assert_eq!(bed.counters.udp_flows.get(), 20);
}

#[test]
fn the_hash_policy_keeps_a_client_whatever_its_port() {
    let bed = Bed::new();
    let (port, servers) = (bed.port(), ["a", "b", "c"].map(Server::named));
    let nodes: Vec<Node> = (1..)
        .zip(&servers)
        .map(|(id, server)| Node::new(id, vec![with_policy(udp_app(port, server.address), PolicyName::Hash)]))
        .collect();
    open_udp(&bed, &nodes, port);
    let first = name(&client(bed.address(port)));
    assert!((0..20).all(|_| name(&client(bed.address(port))) == first));
}

#[test]
fn nobody_but_the_backend_is_heard() {
    let bed = Bed::new();
    let port = bed.port();
    let (said, heard_from) = std::sync::mpsc::channel();
    let server = Server::start(move |bytes, from, socket| {
        let _ = said.send(from);
        let _ = socket.send_to(bytes, from);
    });
    open_udp(&bed, &[Node::new(1, vec![udp_app(port, server.address)])], port);
    let client = client(bed.address(port));
    assert_eq!(ask(&client, b"one"), b"one");
    let inside = heard_from.recv_timeout(SOON).unwrap();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..10 {
        stranger.send_to(b"from a stranger", inside).unwrap();
    }
    assert!(is_silent(&client, Duration::from_millis(200)));
    server.socket.send_to(b"from the backend", inside).unwrap();
    assert_eq!(heard(&client), b"from the backend");
}

#[test]
fn an_answer_comes_from_the_address_that_was_asked() {
    let any = |ip: IpAddr| move |config: &mut scrimp::proxy::Config| config.bind = vec![ip];
    for (ip, asked) in [
        (IpAddr::from([0, 0, 0, 0]), vec!["127.0.0.1", "127.9.8.7", "127.0.0.53"]),
        (IpAddr::from([0_u16; 8]), vec!["::1"]),
    ] {
        if asked == ["::1"] && UdpSocket::bind("[::1]:0").is_err() {
            println!("this machine has no IPv6");
            continue;
        }
        let bed = Bed::with(any(ip));
        let (port, server) = (bed.port(), Server::echo());
        open_udp(&bed, &[Node::new(1, vec![udp_app(port, server.address)])], port);
        for address in asked {
            // A connected client does not hear an answer from elsewhere.
            let client = client(SocketAddr::new(address.parse().unwrap(), port.get()));
            for question in [&b"where?"[..], b"", &[7; 60_000]] {
                assert!(ask(&client, question) == question, "{address}");
            }
        }
    }
}

#[test]
fn one_socket_that_asks_two_of_our_addresses_has_two_flows() {
    let bed = Bed::with(|config| config.bind = vec![IpAddr::from([0, 0, 0, 0])]);
    let (port, servers) = (bed.port(), ["a", "b"].map(Server::named));
    let nodes: Vec<Node> =
        (1..).zip(&servers).map(|(id, server)| Node::new(id, vec![udp_app(port, server.address)])).collect();
    open_udp(&bed, &nodes, port);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut answers = BTreeMap::new();
    for ip in [[127, 0, 0, 2], [127, 0, 0, 3]] {
        let to = SocketAddr::from((ip, port.get()));
        socket.send_to(b"who?", to).unwrap();
        let mut buffer = [0; 100];
        let (_, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, to);
        answers.insert(buffer[0], from);
    }
    assert_eq!(answers.len(), 2);
}

#[test]
fn when_nobody_is_there_the_next_datagram_goes_elsewhere() {
    let bed = Bed::new();
    let (port, good) = (bed.port(), Server::named("g"));
    let nodes = [
        Node::new(1, vec![udp_app(port, nobody())]),
        Node::new(2, vec![udp_app(port, good.address)]),
        Node::new(3, vec![udp_app(port, nobody())]),
    ];
    open_udp(&bed, &nodes, port);
    for _ in 0..12 {
        let client = client(bed.address(port));
        let sent = asked_until_answered(&client);
        assert!(sent <= 3, "{sent} datagrams until somebody was there");
        assert_eq!(name(&client), 'g');
    }
    assert!(bed.counters.connect_failures.get() >= 8);
    let failures: u64 = bed.pools().loads.values().map(|load| load.failures.load(Ordering::SeqCst)).sum();
    assert_eq!(failures, bed.counters.connect_failures.get());
}

#[test]
fn when_all_are_gone_datagrams_are_counted_and_a_later_one_finds_who_is_back() {
    let bed = Bed::new();
    let port = bed.port();
    let place = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    open_udp(&bed, &[Node::new(1, vec![udp_app(port, address)])], port);
    let client = client(bed.address(port));
    until("it is counted", || {
        client.send(b"?").unwrap();
        bed.counters.udp_no_backend.get() >= 2
    });
    let back = UdpSocket::bind(address).unwrap();
    back.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    until("the one that is back is asked", || {
        client.send(b"again").unwrap();
        back.recv(&mut [0; 10]).is_ok()
    });
}

/// How many datagrams it takes until one is answered.
fn asked_until_answered(client: &UdpSocket) -> usize {
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut sent = 0;
    until("it is answered", || {
        sent += 1;
        client.send(b"?").unwrap();
        client.recv(&mut [0; 10]).is_ok()
    });
    client.set_read_timeout(Some(SOON)).unwrap();
    sent
}

#[test]
fn an_answered_flow_may_return_to_who_had_stopped() {
    let bed = Bed::new();
    let (port, a, b) = (bed.port(), Server::named("a"), Server::named("b"));
    let nodes = [Node::new(1, vec![udp_app(port, a.address)]), Node::new(2, vec![udp_app(port, b.address)])];
    open_udp(&bed, &nodes, port);
    let client = client(bed.address(port));
    let (first, other) = if name(&client) == 'a' { (a, b) } else { (b, a) };
    let address = first.address;
    first.stop();
    assert!(asked_until_answered(&client) <= 2);
    let _back = Server::named_at(address, "c");
    other.stop();
    let sent = asked_until_answered(&client);
    assert!(sent <= 2, "{sent} datagrams");
    assert_eq!(name(&client), 'c');
}

#[test]
fn a_backend_that_stops_while_a_flow_is_open_is_left() {
    let bed = Bed::new();
    let (port, a, b) = (bed.port(), Server::named("a"), Server::named("b"));
    let nodes = [Node::new(1, vec![udp_app(port, a.address)]), Node::new(2, vec![udp_app(port, b.address)])];
    open_udp(&bed, &nodes, port);
    let clients: Vec<UdpSocket> = (0..10).map(|_| client(bed.address(port))).collect();
    assert_eq!(clients.iter().map(name).filter(|name| *name == 'a').count(), 5);
    a.stop();
    for client in &clients {
        let sent = asked_until_answered(client);
        assert!(sent <= 2, "{sent} datagrams");
    }
}

#[test]
fn a_flow_leaves_a_backend_that_drains_or_is_gone_and_hears_what_it_is_owed() {
    for (case, on_removal) in [("drains", OnRemoval::Drain), ("gone", OnRemoval::Drain), ("gone", OnRemoval::Kill)] {
        let bed = Bed::with(|config| config.on_removal = on_removal);
        let port = bed.port();
        let (said, asked) = std::sync::mpsc::channel();
        let slow = Server::start(move |bytes, from, _| drop(said.send((bytes.to_vec(), from))));
        let b = Server::named("b");
        let nodes = [Node::new(1, vec![udp_app(port, slow.address)]), Node::new(2, vec![udp_app(port, b.address)])];
        open_udp(&bed, &nodes[..1], port);
        let client = client(bed.address(port));
        client.send(b"slow").unwrap();
        let (_, from) = asked.recv_timeout(SOON).unwrap();
        let mut next = vec![nodes[1].clone()];
        if case == "drains" {
            next.insert(0, nodes[0].clone().with_state(AppState::Draining));
        }
        bed.publish(&next);
        until("new flows go to b", || {
            let other = crate::client(bed.address(port));
            other.send(b"who?").unwrap();
            other.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            other.recv(&mut [0; 10]).is_ok()
        });
        assert_eq!(name(&client), 'b', "{case}");
        slow.socket.send_to(b"late", from).unwrap();
        if on_removal == OnRemoval::Kill {
            assert!(is_silent(&client, Duration::from_millis(200)), "{case}");
            assert!(bed.counters.killed.get() >= 1);
        } else {
            assert_eq!(heard(&client), b"late", "{case}");
        }
        assert_eq!(name(&client), 'b');
    }
}

#[test]
fn a_flow_stays_with_the_last_one_that_drains() {
    let bed = Bed::new();
    let (port, a) = (bed.port(), Server::named("a"));
    let node = Node::new(1, vec![udp_app(port, a.address)]);
    open_udp(&bed, std::slice::from_ref(&node), port);
    let known = client(bed.address(port));
    assert_eq!(name(&known), 'a');
    bed.publish(&[node.with_state(AppState::Draining)]);
    until("new flows are turned away", || {
        client(bed.address(port)).send(b"who?").unwrap();
        bed.counters.udp_no_backend.get() > 0
    });
    assert_eq!(name(&known), 'a', "there is nobody else to go to");
}

#[test]
fn a_flow_stays_with_a_suspected_backend_that_answers_and_leaves_one_that_does_not() {
    let bed = Bed::new();
    let port = bed.port();
    let is_deaf = Arc::new(AtomicBool::new(false));
    let deaf = Arc::clone(&is_deaf);
    let a = Server::start(move |bytes, from, socket| {
        if !deaf.load(Ordering::SeqCst) {
            let _ = socket.send_to(&[b"a", bytes].concat(), from);
        }
    });
    let b = Server::named("b");
    let nodes = [Node::new(1, vec![udp_app(port, a.address)]), Node::new(2, vec![udp_app(port, b.address)])];
    open_udp(&bed, &nodes[..1], port);
    let client = client(bed.address(port));
    assert_eq!(name(&client), 'a');
    let silent = [nodes[0].clone().seen(MemberState::Alive, Reach::Silent), nodes[1].clone()];
    until("a is out", || !bed.publish(&silent).out.is_empty());
    until("new flows go to b", || name(&crate::client(bed.address(port))) == 'b');
    assert_eq!(name(&client), 'a', "it answers");
    is_deaf.store(true, Ordering::SeqCst);
    until("a is out again", || !bed.publish(&silent).out.is_empty());
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let start = Instant::now();
    until("the flow moves", || {
        client.send(b"who?").unwrap();
        let mut answer = [0; 10];
        client.recv(&mut answer).is_ok() && answer[0] == b'b'
    });
    assert!(start.elapsed() >= Duration::from_millis(900), "an answer is waited for");
}

#[test]
fn what_a_backend_says_is_a_sign_of_life() {
    let bed = Bed::new();
    let (port, server) = (bed.port(), Server::echo());
    open_udp(&bed, &[Node::new(1, vec![udp_app(port, server.address)])], port);
    let load = || bed.pools().loads.values().next().cloned().unwrap();
    assert_eq!(load().since_success(Instant::now()), None);
    ask(&client(bed.address(port)), b"?");
    assert!(load().since_success(Instant::now()).unwrap() < SOON);
    assert_eq!(load().active.load(Ordering::SeqCst), 1);
}

#[test]
fn a_flow_on_which_nothing_moves_is_ended() {
    let bed = Bed::with(|config| config.timeouts.udp_idle = Duration::from_millis(300));
    let (port, server) = (bed.port(), Server::echo());
    open_udp(&bed, &[Node::new(1, vec![udp_app(port, server.address)])], port);
    let (busy, idle) = (client(bed.address(port)), client(bed.address(port)));
    ask(&idle, b"?");
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(900) {
        ask(&busy, b"?");
        thread::sleep(Duration::from_millis(20));
    }
    until("the idle one is ended", || bed.counters.udp_flows_closed.get() == 1);
    assert_eq!(bed.counters.udp_flows.get(), 2, "the busy one was not begun anew");
    until("all are ended", || bed.counters.udp_flows_closed.get() == 2);
    until("the backend is told", || bed.pools().loads.values().all(|load| load.active.load(Ordering::SeqCst) == 0));
    assert_eq!(ask(&idle, b"again"), b"again");
}

#[test]
fn when_there_is_no_room_those_who_are_known_stay_and_a_quiet_stranger_makes_way() {
    let bed = Bed::with(|config| {
        config.workers = 1;
        config.limits.udp_flows = 4;
    });
    let (port, server) = (bed.port(), Server::echo());
    open_udp(&bed, &[Node::new(1, vec![udp_app(port, server.address)])], port);
    let [known, quiet, third, fourth] = [(); 4].map(|()| client(bed.address(port)));
    // Who speaks again after an answer is there.
    (0..2).for_each(|_| drop(ask(&known, b"known")));
    for client in [&quiet, &third, &fourth] {
        ask(client, b"once");
    }
    let fifth = client(bed.address(port));
    fifth.send(b"too early").unwrap();
    until("it is dropped", || bed.counters.udp_full.get() == 1);
    assert_eq!(ask(&known, b"known"), b"known");
    let start = Instant::now();
    fifth.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    until("the quiet one makes way", || {
        fifth.send(b"now").unwrap();
        fifth.recv(&mut [0; 10]).is_ok()
    });
    assert!(start.elapsed() > Duration::from_millis(500));
    // Many more come: the known one is never among those who went.
    for _ in 0..3 {
        let begun = bed.counters.udp_flows.get();
        until("one more makes way", || {
            let next = client(bed.address(port));
            next.send(b"?").unwrap();
            next.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let _ = next.recv(&mut [0; 10]);
            bed.counters.udp_flows.get() > begun
        });
    }
    let begun = bed.counters.udp_flows.get();
    assert_eq!(ask(&known, b"known"), b"known");
    assert_eq!(bed.counters.udp_flows.get(), begun, "its flow was there");
}

#[test]
fn an_application_has_a_limit_of_its_own() {
    let bed = Bed::with(|config| config.limits.app_connections = Some(2));
    let (port, server) = (bed.port(), Server::echo());
    open_udp(&bed, &[Node::new(1, vec![udp_app(port, server.address)])], port);
    let held = [client(bed.address(port)), client(bed.address(port))];
    held.iter().for_each(|client| drop(ask(client, b"?")));
    client(bed.address(port)).send(b"?").unwrap();
    until("the third is dropped", || bed.counters.udp_full.get() == 1);
    held.iter().for_each(|client| drop(ask(client, b"?")));
}

#[test]
fn a_taken_port_is_reported_and_opens_when_it_is_free_and_tcp_has_the_same_beside_it() {
    let bed = Bed::new();
    let holder = UdpSocket::bind((bed.ip, 0)).unwrap();
    let port = Port::new(holder.local_addr().unwrap().port()).unwrap();
    let (server, origin) = (Server::echo(), support::Origin::greeting("t"));
    let mut tcp = support::tcp_app(port, origin.address);
    tcp.name = "tcp".parse().unwrap();
    bed.publish(&[Node::new(1, vec![udp_app(port, server.address), tcp])]);
    let report = || {
        let listeners = bed.listeners.borrow().clone();
        listeners.iter().find(|report| report.transport == scrimp::app::Transport::Udp).cloned()
    };
    until("it is reported", || report().is_some_and(|report| report.error.is_some()));
    let error = report().unwrap().error.unwrap();
    assert!(error.contains(&format!("port {port} is taken")) && error.contains("ss -lunp"), "{error}");
    assert_eq!(support::read_exactly(&bed.connect(port), 1), b"t");
    drop(holder);
    until("it opens", || report().is_some_and(|report| report.error.is_none()));
    assert_eq!(ask(&client(bed.address(port)), b"?"), b"?");
    bed.publish(&[]);
    until("it closes", || UdpSocket::bind(bed.address(port)).is_ok());
    assert_eq!(bed.counters.udp_flows.get(), bed.counters.udp_flows_closed.get());
}

#[test]
fn draining_waits_for_the_answers_that_are_owed_and_for_nothing_else() {
    let mut bed = Bed::new();
    let port = bed.port();
    let (said, asked) = std::sync::mpsc::channel();
    let server = Server::start(move |bytes, from, socket| match bytes {
        b"slow" => drop(said.send(from)),
        _ => drop(socket.send_to(bytes, from)),
    });
    open_udp(&bed, &[Node::new(1, vec![udp_app(port, server.address)])], port);
    let (idle, waiting) = (client(bed.address(port)), client(bed.address(port)));
    ask(&idle, b"?");
    waiting.send(b"slow").unwrap();
    let from = asked.recv_timeout(SOON).unwrap();
    let drained = bed.drain(SOON);
    until("the idle flow is ended", || bed.counters.udp_flows_closed.get() == 1);
    server.socket.send_to(b"late", from).unwrap();
    assert_eq!(heard(&waiting), b"late");
    assert_eq!(drained.recv_timeout(Duration::from_secs(1)).unwrap(), 0);
    until("the port closes", || UdpSocket::bind(bed.address(port)).is_ok());
}

#[test]
fn draining_gives_up_an_answer_that_does_not_come() {
    let mut bed = Bed::new();
    let port = bed.port();
    let (said, asked) = std::sync::mpsc::channel();
    let server = Server::start(move |_, _, _| said.send(()).unwrap_or_default());
    open_udp(&bed, &[Node::new(1, vec![udp_app(port, server.address)])], port);
    client(bed.address(port)).send(b"?").unwrap();
    asked.recv_timeout(SOON).unwrap();
    // It has as long as a flow may be idle, and an answer a second.
    assert_eq!(bed.drain(Duration::from_secs(60)).recv_timeout(SOON).unwrap(), 0);
}

/// Each asks with its number; which server it was that answered.
fn ask_all(crowd: &mut Crowd, clients: std::ops::Range<u32>) -> HashMap<u32, u8> {
    let question = |client: u32| client.to_be_bytes().to_vec();
    crowd.ask_all(clients, question, |client, answer| {
        assert_eq!(answer[1..], question(client));
        Some(answer[0])
    })
}

#[test]
fn ten_thousand_flows_are_each_answered_by_the_backend_that_they_began_with() {
    let bed = Bed::with(|config| config.limits.udp_flows = 12_000);
    let (port, servers) = (bed.port(), ["a", "b", "c"].map(Server::named));
    let nodes: Vec<Node> =
        (1..).zip(&servers).map(|(id, server)| Node::new(id, vec![udp_app(port, server.address)])).collect();
    open_udp(&bed, &nodes, port);
    let mut crowd = Crowd::new(bed.address(port));
    let first = ask_all(&mut crowd, 0..10_000);
    let mut counts: BTreeMap<u8, usize> = BTreeMap::new();
    first.values().for_each(|server| *counts.entry(*server).or_default() += 1);
    assert!(counts.values().all(|count| (3333..=3334).contains(count)), "{counts:?}");
    for _ in 0..2 {
        assert!(ask_all(&mut crowd, 0..10_000) == first, "some changed their backend");
    }
    let open = bed.counters.udp_flows.get() - bed.counters.udp_flows_closed.get();
    assert_eq!((open, bed.counters.udp_full.get()), (10_000, 0));
}

#[test]
fn p_udp_one_host_with_many_flows_does_not_keep_others_out() {
    const ROOM: usize = 40;
    let bed = Bed::with(|config| config.limits.udp_flows = ROOM as u32);
    let (port, server) = (bed.port(), Server::echo());
    open_udp(&bed, &[Node::new(1, vec![udp_app(port, server.address)])], port);
    let crowd: Vec<UdpSocket> = (0..ROOM).map(|_| client(bed.address(port))).collect();
    // An answer, and a word behind it: they are known.
    crowd.iter().for_each(|client| (0..2).for_each(|_| assert_eq!(ask(client, b"x"), b"x")));
    let another = client(bed.address(port));
    another.send(b"x").unwrap();
    until("another of theirs is turned away", || bed.counters.udp_full.get() == 1);
    for last in 1..=4 {
        let stranger = UdpSocket::bind((IpAddr::from([127, 16, 0, last]), 0)).unwrap();
        stranger.connect(bed.address(port)).unwrap();
        stranger.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(ask(&stranger, b"y"), b"y");
    }
    assert_eq!(bed.counters.udp_full.get(), 1);
}

#[test]
fn p_loop_a_backend_that_is_a_listen_port_of_ours_gets_no_datagram() {
    for bind in [None, Some(IpAddr::from([0, 0, 0, 0]))] {
        let bed = Bed::with(|config| {
            config.bind = bind.map_or_else(|| config.bind.clone(), |ip| vec![ip]);
            config.limits.udp_flows = 50;
        });
        let port = bed.port();
        let mut node = Node::new(1, vec![udp_app(port, bed.address(port))]);
        node.ip = bed.ip;
        open_udp(&bed, &[node], port);
        client(bed.address(port)).send(b"round").unwrap();
        until("it is counted", || bed.counters.udp_no_backend.get() > 0 || bed.counters.udp_flows.get() > 1);
        assert_eq!((bed.counters.udp_no_backend.get(), bed.counters.udp_flows.get()), (1, 1), "no second flow");
    }
}

#[test]
fn p_loop_who_claims_to_be_another_listen_port_of_ours_is_not_answered() {
    let bed = Bed::new();
    let (one, two, server) = (bed.port(), bed.port(), Server::echo());
    let mut second = udp_app(two, server.address);
    second.name = "second".parse().unwrap();
    open_udp(&bed, &[Node::new(1, vec![udp_app(one, server.address), second])], one);
    until("the other opens", || bed.report(two).is_some_and(|report| !report.addresses.is_empty()));
    let claimer = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    claimer.set_reuse_port(true).unwrap();
    claimer.bind(&bed.address(two).into()).unwrap();
    UdpSocket::from(claimer).send_to(b"round", bed.address(one)).unwrap();
    until("it is counted", || bed.counters.udp_unanswerable.get() > 0 || bed.counters.udp_in.get() > 0);
    assert_eq!((bed.counters.udp_unanswerable.get(), bed.counters.udp_in.get()), (1, 0));
}
