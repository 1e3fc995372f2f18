//! TCP applications through the proxy: real sockets on loopback.
#![allow(missing_docs)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use scrimp::app::{AppState, PolicyName};
use scrimp::backend::Standing;
use scrimp::member::{MemberState, Reach};
use scrimp::name::{Port, Weight};
use scrimp::proxy::OnRemoval;
use support::{
    Bed, BlackHole, Node, Origin, SOON, fill, is_ended, nobody, read_all, read_exactly, reset, tcp_app, until,
    until_within, with_policy,
};

/// Connects and reads the one letter with which an origin greets.
fn greeted_by(bed: &Bed, port: Port) -> char {
    char::from(read_exactly(&bed.connect(port), 1)[0])
}

fn count(letters: &[char], letter: char) -> usize {
    letters.iter().filter(|found| **found == letter).count()
}

#[test]
fn an_empty_set_closes_the_client() {
    let bed = Bed::new();
    let (port, origin) = (bed.port(), Origin::greeting("a"));
    let node = Node::new(1, vec![tcp_app(port, origin.address)]).with_state(AppState::Draining);
    bed.publish(&[node]);
    bed.until_bound(port);
    assert_eq!(read_all(&bed.connect(port)).unwrap(), b"");
    assert_eq!(bed.counters.empty_pool.get(), 1);
    assert_eq!(origin.accepted(), 0);
}

#[test]
fn one_backend_serves_all() {
    let bed = Bed::new();
    let (port, origin) = (bed.port(), Origin::greeting("a"));
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    assert!((0..20).all(|_| greeted_by(&bed, port) == 'a'));
    until("all ends are counted", || bed.counters.connections_closed.get() == bed.counters.connections.get());
}

#[test]
fn four_backends_serve_exactly_five_of_twenty() {
    let bed = Bed::new();
    let port = bed.port();
    let origins = ["a", "b", "c", "d"].map(Origin::greeting);
    let nodes: Vec<Node> =
        (0_u64..).zip(&origins).map(|(id, origin)| Node::new(id + 1, vec![tcp_app(port, origin.address)])).collect();
    bed.publish_and_open(&nodes, port);
    bed.settle();
    let letters: Vec<char> = (0..20).map(|_| greeted_by(&bed, port)).collect();
    for letter in ['a', 'b', 'c', 'd'] {
        assert_eq!(count(&letters, letter), 5, "{letters:?}");
    }
}

#[test]
fn bytes_pass_unchanged_and_are_counted() {
    let bed = Bed::new();
    let (port, origin) = (bed.port(), Origin::echo());
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let client = bed.connect(port);
    let (mut writer, bytes) = (client.try_clone().unwrap(), sent.clone());
    let writing = thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    assert!(read_all(&client).unwrap() == sent, "what came back is what was sent");
    writing.join().unwrap();
    assert_eq!((bed.counters.bytes_in.get(), bed.counters.bytes_out.get()), (3_000_000, 3_000_000));
}

/// Sends so much and reads as much, in pieces of all sizes and at a changing pace; each side ends when it has sent all.
fn exchange(stream: &TcpStream, bytes: usize, mut random: fastrand::Rng) {
    // Its length is prime: a piece that is lost or comes twice is found.
    let pattern: Vec<u8> = (0..1_000_003_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let piece = |random: &mut fastrand::Rng, at: usize| {
        let size = [100, 2_000, 70_000, 300_000][random.usize(..4)];
        let start = at % pattern.len();
        start..(start + 1 + random.usize(..size)).min(pattern.len()).min(start + bytes - at)
    };
    let mut reading = random.fork();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut sent = 0;
            while sent < bytes {
                let piece = piece(&mut random, sent);
                sent += piece.len();
                (&*stream).write_all(&pattern[piece]).unwrap();
                if random.u8(..) < 8 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let (mut read, mut buffer) = (0, vec![0; 300_000]);
        while read < bytes {
            let piece = piece(&mut reading, read);
            let count = (&*stream).read(&mut buffer[..piece.len()]).unwrap();
            assert!(count > 0, "{read} of {bytes} bytes came");
            assert!(buffer[..count] == pattern[piece.start..piece.start + count], "wrong bytes behind {read}");
            read += count;
            if reading.u8(..) < 8 {
                thread::sleep(Duration::from_millis(2));
            }
        }
        assert_eq!((&*stream).read(&mut buffer).unwrap(), 0, "and nothing more");
    });
}

#[test]
fn bulk_passes_unchanged_both_ways_at_once_whatever_the_pace() {
    const BYTES: usize = 12_000_000;
    const CLIENTS: u64 = 4;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let bed = Bed::new();
    let port = bed.port();
    let origin = Origin::start(move |stream| {
        if stream.peek(&mut [0]).is_ok_and(|count| count > 0) {
            exchange(&stream, BYTES, fastrand::Rng::with_seed(!seed));
        }
    });
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let stream = bed.connect(port);
            scope.spawn(move || exchange(&stream, BYTES, fastrand::Rng::with_seed(seed + client)));
        }
    });
    let total = BYTES as u64 * CLIENTS;
    // What a client has sent may still be on its way to the origin.
    let counted = || (bed.counters.bytes_in.get(), bed.counters.bytes_out.get());
    until("all are counted", || counted() == (total, total));
    assert_eq!(bed.counters.broken.get(), 0);
}

#[test]
fn a_slow_reader_of_bulk_gets_all_of_it_after_the_backend_has_ended() {
    let bed = Bed::new();
    let port = bed.port();
    // More than all the kernel's buffers on the way.
    let bytes: Vec<u8> = (0..40_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sent = Arc::new(bytes);
    let all = Arc::clone(&sent);
    let origin = Origin::start(move |mut stream| drop(stream.write_all(&all)));
    bed.publish(&[Node::new(1, vec![tcp_app(port, origin.address)])]);
    bed.until_bound(port);
    let client = bed.connect(port);
    let mut read = Vec::with_capacity(sent.len());
    let mut buffer = vec![0; 1_000_000];
    loop {
        let count = (&client).read(&mut buffer).unwrap();
        read.extend_from_slice(&buffer[..count]);
        if count == 0 {
            break;
        }
        thread::yield_now();
    }
    assert!(read == *sent, "{} of {} bytes", read.len(), sent.len());
}

#[test]
fn killing_ends_connections_of_a_removed_backend_within_a_second() {
    let bed = Bed::with(|config| config.on_removal = OnRemoval::Kill);
    let port = bed.port();
    let (a, b) = (Origin::greeting("a"), Origin::greeting("b"));
    let nodes = [Node::new(1, vec![tcp_app(port, a.address)]), Node::new(2, vec![tcp_app(port, b.address)])];
    bed.publish_and_open(&nodes, port);
    // It would be ended, and counted, like any other.
    bed.settle();
    let clients: Vec<(char, TcpStream)> = (0..8)
        .map(|_| {
            let client = bed.connect(port);
            (char::from(read_exactly(&client, 1)[0]), client)
        })
        .collect();
    bed.publish(&nodes[1..]);
    until_within("the connections to a end", Duration::from_secs(1), &mut || {
        clients.iter().filter(|(letter, _)| *letter == 'a').all(|(_, client)| is_ended(client))
    });
    // On a busy machine a connection may have come to b because a was slow to take it.
    let from_a = clients.iter().filter(|(letter, _)| *letter == 'a').count() as u64;
    assert!(from_a > 0);
    until("each is counted", || bed.counters.killed.get() >= from_a);
    assert_eq!(bed.counters.killed.get(), from_a);
    for (_, client) in clients.iter().filter(|(letter, _)| *letter == 'b') {
        let mut client = client;
        client.write_all(b"still here").unwrap();
        assert_eq!(read_exactly(client, 10), b"still here");
    }
    assert_eq!(greeted_by(&bed, port), 'b');
}

#[test]
fn killing_ends_connections_when_the_address_changes() {
    let bed = Bed::with(|config| config.on_removal = OnRemoval::Kill);
    let port = bed.port();
    let (old, new) = (Origin::greeting("o"), Origin::greeting("n"));
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, old.address)])], port);
    let client = bed.connect(port);
    assert_eq!(read_exactly(&client, 1), b"o");
    bed.publish(&[Node::new(1, vec![tcp_app(port, new.address)])]);
    // Cut short, so it does not look like an end.
    client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert_eq!(read_all(&client).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(greeted_by(&bed, port), 'n');
}

#[test]
fn draining_lets_connections_of_a_removed_backend_finish() {
    let bed = Bed::new();
    let port = bed.port();
    let (a, b) = (Origin::greeting("a"), Origin::greeting("b"));
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, a.address)])], port);
    let mut client = bed.connect(port);
    assert_eq!(read_exactly(&client, 1), b"a");
    bed.publish(&[Node::new(2, vec![tcp_app(port, b.address)])]);
    until("new ones go to b", || greeted_by(&bed, port) == 'b');
    client.write_all(b"the rest").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&client).unwrap(), b"the rest");
    assert_eq!(bed.counters.killed.get(), 0);
}

/// The backends at these nodes' places, seen so.
fn seen(nodes: &[Node], state: MemberState, reach: Reach) -> Vec<Node> {
    nodes.iter().map(|node| node.clone().seen(state, reach)).collect()
}

#[test]
fn a_connection_outlives_a_suspicion_and_is_cut_when_its_backend_is_down() {
    let bed = Bed::with(|config| config.on_removal = OnRemoval::Kill);
    let port = bed.port();
    let (a, b) = (Origin::greeting("a"), Origin::greeting("b"));
    let nodes = [Node::new(1, vec![tcp_app(port, a.address)]), Node::new(2, vec![tcp_app(port, b.address)])];
    bed.publish_and_open(&nodes[..1], port);
    let mut client = bed.connect(port);
    assert_eq!(read_exactly(&client, 1), b"a");
    let with_a = |state, reach| [seen(&nodes[..1], state, reach), nodes[1..].to_vec()].concat();
    for _ in 0..3 {
        // What came from it is a sign of life for a second.
        until("new ones go to b", || {
            let pools = bed.publish(&with_a(MemberState::Alive, Reach::Silent));
            !pools.out.is_empty() && greeted_by(&bed, port) == 'b'
        });
        client.write_all(b"still here").unwrap();
        assert_eq!(read_exactly(&client, 10), b"still here");
        bed.publish(&with_a(MemberState::Suspect, Reach::Answers));
        until("a is back", || greeted_by(&bed, port) == 'a');
    }
    // Down in the gossip alone, it stays.
    bed.publish(&with_a(MemberState::Down, Reach::Answers));
    until("a is still asked", || greeted_by(&bed, port) == 'a');
    assert!(!is_ended(&client));
    assert_eq!(bed.counters.killed.get(), 0);
    until("a is out", || !bed.publish(&with_a(MemberState::Down, Reach::Silent)).out.is_empty());
    until_within("the connection ends", Duration::from_secs(1), &mut || is_ended(&client));
    assert!(bed.counters.killed.get() >= 1);
    for _ in 0..4 {
        assert_eq!(greeted_by(&bed, port), 'b');
    }
}

#[test]
fn the_last_ones_serve_on_and_what_they_serve_is_not_cut_again() {
    let bed = Bed::with(|config| config.on_removal = OnRemoval::Kill);
    let port = bed.port();
    let (a, b) = (Origin::greeting("a"), Origin::greeting("b"));
    let nodes = [Node::new(1, vec![tcp_app(port, a.address)]), Node::new(2, vec![tcp_app(port, b.address)])];
    bed.publish_and_open(&nodes, port);
    for (state, reach) in [(MemberState::Alive, Reach::Silent), (MemberState::Down, Reach::Unknown)] {
        until("both are out", || bed.publish(&seen(&nodes, state, reach)).out.len() == 2);
        until("the workers know it", || bed.pools().loads.values().all(|load| load.standing() == Standing::Doubtful));
        let letters: Vec<char> = (0..8).map(|_| greeted_by(&bed, port)).collect();
        assert_eq!((count(&letters, 'a'), count(&letters, 'b')), (4, 4), "{state:?}: {letters:?}");
    }
    let mut client = bed.connect(port);
    read_exactly(&client, 1);
    let killed = bed.counters.killed.get();
    // They are down in roster after roster, and back in the end.
    for nodes in [seen(&nodes, MemberState::Down, Reach::Silent), nodes.to_vec()] {
        bed.publish(&nodes);
        greeted_by(&bed, port);
        client.write_all(b"here").unwrap();
        assert_eq!(read_exactly(&client, 4), b"here");
    }
    assert_eq!((bed.counters.killed.get(), bed.counters.empty_pool.get()), (killed, 0));
}

#[test]
fn bytes_from_a_backend_hold_a_suspicion_off_and_bytes_to_it_do_not() {
    let bed = Bed::new();
    let port = bed.port();
    let (say, words) = std::sync::mpsc::channel::<()>();
    let words = std::sync::Mutex::new(words);
    let origin = Origin::start(move |mut stream| {
        while words.lock().unwrap().recv().is_ok() {
            let _ = stream.write_all(b".");
        }
    });
    let node = Node::new(1, vec![tcp_app(port, origin.address)]);
    let pools = bed.publish(std::slice::from_ref(&node));
    bed.until_bound(port);
    let load = pools.loads.values().next().unwrap();
    let mut client = bed.connect(port);
    client.write_all(b"hello?").unwrap();
    until("it is on its way", || bed.counters.bytes_in.get() == 6);
    assert_eq!(load.since_success(Instant::now()), None);
    let silent = seen(&[node], MemberState::Alive, Reach::Silent);
    assert_eq!(bed.publish(&silent).out.len(), 1);
    let since = || load.since_success(Instant::now()).unwrap_or(Duration::MAX);
    for _ in 0..3 {
        until("it is held off", || {
            say.send(()).unwrap();
            read_exactly(&client, 1);
            bed.publish(&silent).out.is_empty()
        });
        until("that is old", || bed.publish(&silent).out.len() == 1);
        assert!(since() >= Duration::from_secs(1));
    }
}

#[test]
fn a_setting_changed_while_running_counts_for_open_connections() {
    let bed = Bed::new();
    let (port, origin) = (bed.port(), Origin::greeting("a"));
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    let client = bed.connect(port);
    read_exactly(&client, 1);
    let config = scrimp::proxy::Config { on_removal: OnRemoval::Kill, ..scrimp::proxy::Config::default() };
    bed.proxy.as_ref().unwrap().reconfigure(config);
    bed.publish(&[]);
    until_within("the connection ends", Duration::from_secs(1), &mut || is_ended(&client));
}

#[test]
fn a_backend_that_goes_while_it_is_connected_to_is_left_at_once() {
    let bed = Bed::with(|config| {
        config.on_removal = OnRemoval::Kill;
        config.timeouts.connect = Duration::from_secs(60);
    });
    let port = bed.port();
    let (hole, good) = (BlackHole::new(), Origin::greeting("g"));
    let nodes = [Node::new(1, vec![tcp_app(port, good.address)]), Node::new(2, vec![tcp_app(port, hole.address)])];
    let pools = bed.publish(&nodes);
    bed.until_open(port);
    let stuck = || {
        pools
            .loads
            .iter()
            .filter(|((_, at), _)| *at == hole.address)
            .any(|(_, load)| load.active.load(std::sync::atomic::Ordering::SeqCst) > 0)
    };
    let mut clients = Vec::new();
    until("a client is on its way into the hole", || {
        clients.push(bed.connect(port));
        stuck()
    });
    bed.publish(&nodes[..1]);
    for client in &clients {
        client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        assert_eq!(read_exactly(client, 1), b"g");
    }
}

#[test]
fn a_black_holed_backend_delays_no_other_client() {
    let bed = Bed::with(|config| {
        config.workers = 1;
        config.timeouts.connect = Duration::from_secs(2);
    });
    let port = bed.port();
    let (hole, good) = (BlackHole::new(), Origin::greeting("g"));
    let nodes = [Node::new(1, vec![tcp_app(port, hole.address)]), Node::new(2, vec![tcp_app(port, good.address)])];
    bed.publish_and_open(&nodes, port);
    let start = Instant::now();
    let clients: Vec<TcpStream> = (0..10).map(|_| bed.connect(port)).collect();
    let waits: Vec<thread::JoinHandle<Duration>> = clients
        .into_iter()
        .map(|client| {
            thread::spawn(move || {
                assert_eq!(read_exactly(&client, 1), b"g");
                start.elapsed()
            })
        })
        .collect();
    let waits: Vec<Duration> = waits.into_iter().map(|wait| wait.join().unwrap()).collect();
    let quick = waits.iter().filter(|wait| **wait < Duration::from_secs(1)).count();
    assert_eq!(quick, 5, "half go past the hole at once, the other half after the connect deadline: {waits:?}");
    assert!(waits.iter().all(|wait| *wait < Duration::from_secs(4)), "{waits:?}");
}

#[test]
fn a_refused_connect_moves_on() {
    let bed = Bed::new();
    let (port, good) = (bed.port(), Origin::greeting("g"));
    let addresses = (0..9).map(|_| nobody()).chain([good.address]);
    let nodes: Vec<Node> = (1..).zip(addresses).map(|(id, at)| Node::new(id, vec![tcp_app(port, at)])).collect();
    bed.publish_and_open(&nodes, port);
    assert!((0..12).all(|_| greeted_by(&bed, port) == 'g'));
    assert!(bed.counters.connect_failures.get() >= 9);
    assert_eq!(bed.counters.retries.get(), bed.counters.connect_failures.get());
}

#[test]
fn when_all_refuse_the_client_is_closed() {
    let bed = Bed::new();
    let port = bed.port();
    let nodes = [Node::new(1, vec![tcp_app(port, nobody())]), Node::new(2, vec![tcp_app(port, nobody())])];
    let pools = bed.publish(&nodes);
    bed.until_open(port);
    assert_eq!(read_all(&bed.connect(port)).unwrap(), b"");
    until("it is counted", || bed.counters.empty_pool.get() == 2);
    let failures: u64 = pools.loads.values().map(|load| load.failures.load(std::sync::atomic::Ordering::SeqCst)).sum();
    assert_eq!(failures, 4, "two clients, two backends");
}

#[test]
fn half_close_keeps_the_answer() {
    let bed = Bed::new();
    let port = bed.port();
    let origin = Origin::start(|mut stream| {
        let request = read_all(&stream).unwrap();
        stream.write_all(format!("{} bytes", request.len()).as_bytes()).unwrap();
    });
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    let mut client = bed.connect(port);
    client.write_all(&[7; 100_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&client).unwrap(), b"100000 bytes");
}

#[test]
fn half_close_by_the_backend_keeps_the_question() {
    let bed = Bed::new();
    let port = bed.port();
    let (said, heard) = std::sync::mpsc::channel();
    let origin = Origin::start(move |mut stream| {
        let _ = stream.write_all(b"go");
        let _ = stream.shutdown(Shutdown::Write);
        let _ = said.send(read_all(&stream));
    });
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    heard.recv_timeout(SOON).unwrap().unwrap();
    let mut client = bed.connect(port);
    assert_eq!(read_all(&client).unwrap(), b"go");
    client.write_all(b"and on").unwrap();
    drop(client);
    assert_eq!(heard.recv_timeout(SOON).unwrap().unwrap(), b"and on");
}

#[test]
fn a_reset_by_the_client_reaches_the_backend() {
    let bed = Bed::new();
    let port = bed.port();
    let (said, heard) = std::sync::mpsc::channel();
    let origin = Origin::start(move |mut stream| {
        let _ = stream.write_all(b"x");
        let _ = said.send(read_all(&stream).map_err(|error| error.kind()));
    });
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    heard.recv_timeout(SOON).unwrap().unwrap_or_default();
    let client = bed.connect(port);
    read_exactly(&client, 1);
    reset(client);
    assert_eq!(heard.recv_timeout(SOON).unwrap(), Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_reset_after_half_close_ends_both_sides() {
    let bed = Bed::new();
    let port = bed.port();
    let (said, heard) = std::sync::mpsc::channel();
    let origin = Origin::start(move |stream| {
        let _ = stream.shutdown(Shutdown::Write);
        let _ = said.send(read_all(&stream).map_err(|error| error.kind()));
    });
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    heard.recv_timeout(SOON).unwrap().unwrap_or_default();
    let client = bed.connect(port);
    assert_eq!(read_all(&client).unwrap(), b"");
    // The direction towards the client has ended, the other one waits.
    reset(client);
    assert_eq!(heard.recv_timeout(SOON).unwrap(), Err(ErrorKind::ConnectionReset));
}

#[test]
fn p_rst_of_a_client_to_which_nobody_listens_ends_both_sides() {
    // Either nothing is read from the client any more, since it has said its last, or nothing for now, since the backend
    // takes no more: the backend says nothing, and nothing else would end the two.
    for has_ended in [true, false] {
        let bed = Bed::new();
        let port = bed.port();
        let (said, heard) = std::sync::mpsc::channel();
        let origin = Origin::start(move |stream| {
            if has_ended {
                let _ = said.send(read_all(&stream).is_ok());
            }
            // Without reading: the kernel says it by itself.
            until("its connection is reset", || stream.take_error().is_ok_and(|error| error.is_some()));
            let _ = said.send(true);
        });
        bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
        let client = bed.connect(port);
        if has_ended {
            client.shutdown(Shutdown::Write).unwrap();
            assert!(heard.recv_timeout(SOON).unwrap());
        } else {
            fill(&client, &[b'x'; 65_536]);
        }
        reset(client);
        assert!(heard.recv_timeout(SOON).is_ok_and(|is_reset| is_reset), "has ended: {has_ended}");
    }
}

#[test]
fn a_reset_by_the_backend_reaches_the_client() {
    let bed = Bed::new();
    let port = bed.port();
    let origin = Origin::start(|stream| {
        if let Ok(1) = (&stream).read(&mut [0]) {
            reset(stream);
        }
    });
    let pools = bed.publish(&[Node::new(1, vec![tcp_app(port, origin.address)])]);
    bed.until_open(port);
    let mut client = bed.connect(port);
    client.write_all(b"x").unwrap();
    assert_eq!(read_all(&client).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(bed.counters.broken.get(), 1);
    let load = pools.loads.values().next().unwrap();
    assert_eq!(load.failures.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn a_connection_on_which_nothing_moves_is_ended() {
    let bed = Bed::with(|config| config.timeouts.tcp_idle = Duration::from_millis(300));
    let (port, origin) = (bed.port(), Origin::echo());
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    let mut client = bed.connect(port);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(900) {
        client.write_all(b"x").unwrap();
        assert_eq!(read_exactly(&client, 1), b"x", "it lives while something moves");
        thread::sleep(Duration::from_millis(20));
    }
    until_within("the idle connection ends", Duration::from_secs(2), &mut || is_ended(&client));
}

#[test]
fn of_small_pieces_that_a_slow_reader_does_not_take_none_is_lost() {
    const PIECE_BYTES: usize = 4096;
    let bed = Bed::new();
    let (port, listener) = (bed.port(), TcpListener::bind("127.0.0.1:0").unwrap());
    bed.publish(&[Node::new(1, vec![tcp_app(port, listener.local_addr().unwrap())])]);
    bed.until_bound(port);
    let client = narrow(bed.address(port));
    let (mut backend, _) = listener.accept().unwrap();
    // Each is passed on before the next is sent, until one finds too little room.
    let mut sent: Vec<u8> = Vec::new();
    let mut send = |sent: &mut Vec<u8>| {
        let piece: Vec<u8> = (sent.len()..).take(PIECE_BYTES).map(|at| (at / 7) as u8).collect();
        backend.write_all(&piece).unwrap();
        sent.extend(piece);
    };
    let has_passed = |count| {
        let begin = Instant::now();
        while bed.counters.bytes_out.get() < count as u64 {
            if begin.elapsed() > Duration::from_millis(200) {
                return false;
            }
            thread::yield_now();
        }
        true
    };
    while has_passed(sent.len()) {
        assert!(sent.len() < 64 << 20, "somebody takes everything");
        send(&mut sent);
    }
    drop(backend);
    assert!(read_all(&client).unwrap() == sent);
}

#[test]
fn a_slow_reader_stalls_the_sender() {
    let bed = Bed::new();
    let port = bed.port();
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let origin = Origin::start(move |mut stream| {
        while stream.write_all(&[0; 65536]).is_ok() {
            count.fetch_add(65536, std::sync::atomic::Ordering::SeqCst);
        }
    });
    bed.publish(&[Node::new(1, vec![tcp_app(port, origin.address)])]);
    bed.until_bound(port);
    let client = bed.connect(port);
    read_exactly(&client, 1);
    let mut last = 0;
    let mut since = Instant::now();
    until("the sender stalls", || {
        let now = sent.load(std::sync::atomic::Ordering::SeqCst);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(500)
    });
    // Two pairs of kernel buffers at their largest (4 + 6 MiB each), and no heap of ours.
    assert!(last < 24 * 1024 * 1024, "{last} bytes left the origin");
}

#[test]
fn policies_are_kept_through_the_proxy() {
    let bed = Bed::new();
    let origins = ["a", "b", "c"].map(Origin::greeting);
    let open = |policy| {
        let port = bed.port();
        let nodes: Vec<Node> = (1..)
            .zip(&origins)
            .map(|(id, origin)| {
                let mut app = with_policy(tcp_app(port, origin.address), policy);
                app.weight = Weight::try_from(if id == 3 { 200 } else { 100 }).unwrap();
                Node::new(id, vec![app])
            })
            .collect();
        bed.publish_and_open(&nodes, port);
        bed.settle();
        port
    };
    let port = open(PolicyName::RoundRobin);
    let letters: Vec<char> = (0..40).map(|_| greeted_by(&bed, port)).collect();
    assert_eq!((count(&letters, 'a'), count(&letters, 'b'), count(&letters, 'c')), (10, 10, 20));

    let port = open(PolicyName::LeastConnections);
    let held: Vec<(char, TcpStream)> = (0..12)
        .map(|_| {
            let client = bed.connect(port);
            (char::from(read_exactly(&client, 1)[0]), client)
        })
        .collect();
    let letters: Vec<char> = held.iter().map(|(letter, _)| *letter).collect();
    assert_eq!((count(&letters, 'a'), count(&letters, 'b'), count(&letters, 'c')), (3, 3, 6));
    drop(held);

    let port = open(PolicyName::Hash);
    let first = greeted_by(&bed, port);
    assert!((0..20).all(|_| greeted_by(&bed, port) == first));

    for policy in [PolicyName::Random, PolicyName::TwoChoices] {
        let port = open(policy);
        let held: Vec<TcpStream> = (0..60).map(|_| bed.connect(port)).collect();
        let letters: Vec<char> = held.iter().map(|client| char::from(read_exactly(client, 1)[0])).collect();
        for letter in ['a', 'b', 'c'] {
            assert!(count(&letters, letter) >= 3, "{policy:?}: {letters:?}");
        }
    }
}

#[test]
fn listen_ports_open_and_close_with_the_pools() {
    let bed = Bed::new();
    let (one, two) = (bed.port(), bed.port());
    let origin = Origin::greeting("a");
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(one, origin.address)])], one);
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(two, origin.address)])], two);
    until("the first port closes", || TcpStream::connect(bed.address(one)).is_err());
    assert_eq!(bed.report(one), None);
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(one, origin.address)])], one);
    assert_eq!(greeted_by(&bed, one), 'a');
}

#[test]
fn a_taken_port_is_reported_and_opens_when_it_is_free() {
    let bed = Bed::new();
    let holder = TcpListener::bind((bed.ip, 0)).unwrap();
    let port = Port::new(holder.local_addr().unwrap().port()).unwrap();
    let other = bed.port();
    let origin = Origin::greeting("a");
    let app = tcp_app(other, origin.address);
    let mut second = tcp_app(port, origin.address);
    second.name = "second".parse().unwrap();
    bed.publish_and_open(&[Node::new(1, vec![app, second])], other);
    let error = bed.report(port).unwrap().error.unwrap();
    assert!(error.contains(&format!("port {port} is taken")) && error.contains("ss -ltnp"), "{error}");
    assert_eq!(greeted_by(&bed, other), 'a', "the other port is not disturbed");
    drop(holder);
    bed.until_open(port);
    assert_eq!(bed.report(port).unwrap().error, None);
    assert_eq!(greeted_by(&bed, port), 'a');
}

#[test]
fn at_the_limit_clients_wait_in_the_queue() {
    let bed = Bed::with(|config| config.limits.connections = Some(2));
    let (port, origin) = (bed.port(), Origin::greeting("a"));
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    let (first, second) = (bed.connect(port), bed.connect(port));
    read_exactly(&first, 1);
    read_exactly(&second, 1);
    let third = bed.connect(port);
    third.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!((&third).read(&mut [0]).is_err(), "no place yet");
    drop(first);
    third.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(read_exactly(&third, 1), b"a");
    // A higher limit lets the next in at once.
    let config = scrimp::proxy::Config {
        limits: scrimp::proxy::Limits { connections: Some(3), ..Default::default() },
        ..Default::default()
    };
    let fourth = bed.connect(port);
    bed.proxy.as_ref().unwrap().reconfigure(config);
    assert_eq!(read_exactly(&fourth, 1), b"a");
}

#[test]
fn many_short_connections_at_the_limit_all_get_through() {
    let bed = Bed::with(|config| config.limits.connections = Some(3));
    let (port, origin) = (bed.port(), Origin::greeting("a"));
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| (0..25).for_each(|_| assert_eq!(greeted_by(&bed, port), 'a')));
        }
    });
}

#[test]
fn an_application_has_a_limit_of_its_own() {
    let bed = Bed::with(|config| config.limits.app_connections = Some(2));
    let (port, other) = (bed.port(), bed.port());
    let (origin, twin) = (Origin::greeting("a"), Origin::greeting("a"));
    let mut second = tcp_app(other, origin.address);
    second.name = "second".parse().unwrap();
    let nodes =
        [Node::new(1, vec![tcp_app(port, origin.address), second]), Node::new(2, vec![tcp_app(port, twin.address)])];
    bed.publish_and_open(&nodes, port);
    bed.settle();
    let held = [bed.connect(port), bed.connect(port)];
    held.iter().for_each(|client| drop(read_exactly(client, 1)));
    assert!(read_all(&bed.connect(port)).unwrap_or_default().is_empty(), "the third is turned away");
    assert_eq!(greeted_by(&bed, other), 'a');
}

#[test]
fn draining_closes_the_ports_and_lets_what_is_open_finish() {
    let mut bed = Bed::new();
    let (port, origin) = (bed.port(), Origin::echo());
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    let mut client = bed.connect(port);
    client.write_all(b"x").unwrap();
    read_exactly(&client, 1);
    let drained = bed.drain(SOON);
    until("the port closes", || TcpStream::connect(bed.address(port)).is_err());
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&client).unwrap(), b"last words");
    assert_eq!(drained.recv_timeout(Duration::from_secs(2)).unwrap(), 0);
}

#[test]
fn draining_cuts_what_is_still_open_at_the_deadline() {
    let mut bed = Bed::new();
    let (port, origin) = (bed.port(), Origin::echo());
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    bed.settle();
    let clients = [bed.connect(port), bed.connect(port)];
    for mut client in &clients {
        client.write_all(b"x").unwrap();
        read_exactly(client, 1);
    }
    let drained = bed.drain(Duration::from_millis(300));
    assert_eq!(drained.recv_timeout(Duration::from_secs(3)).unwrap(), 2);
    assert!(clients.iter().all(is_ended));
}

/// The states (as the kernel numbers them) of this machine's sockets that are connected to `remote`; those of earlier
/// connections, of which only the memory is left, do not count.
fn states_towards(remote: SocketAddr) -> Vec<u8> {
    const TIME_WAIT: u8 = 6;
    let SocketAddr::V4(remote) = remote else { panic!("{remote}") };
    let wanted = format!("{:08X}:{:04X}", u32::from_le_bytes(remote.ip().octets()), remote.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let lines = table.lines().filter(|line| line.contains(&wanted));
    let lines = lines.map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|words| words[2] == wanted);
    lines.map(|words| u8::from_str_radix(words[3], 16).unwrap()).filter(|state| *state != TIME_WAIT).collect()
}

/// Its end has been sent behind what still waits.
const FIN_WAIT: [u8; 1] = [4];
/// More than a receiver with small buffers takes, less than a sender's buffer holds.
const WAITING_BYTES: usize = 1_000_000;

/// A connection that takes little before it is read from.
fn narrow(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

#[test]
fn p_half_what_a_backend_said_to_its_end_arrives_though_the_client_speaks_on() {
    let bed = Bed::new();
    let port = bed.port();
    let origin = Origin::start(|mut stream| drop(stream.write_all(&[7; WAITING_BYTES])));
    let pools = bed.publish(&[Node::new(1, vec![tcp_app(port, origin.address)])]);
    bed.until_bound(port);
    let mut client = narrow(bed.address(port));
    until("the end is passed on", || states_towards(client.local_addr().unwrap()) == FIN_WAIT);
    // The backend has closed: it answers with a reset.
    client.write_all(b"x").unwrap();
    until("the reset has come", || bed.counters.bytes_in.get() == 1 && states_towards(origin.address).is_empty());
    assert_eq!(read_all(&client).map(|bytes| bytes.len()).unwrap(), WAITING_BYTES);
    drop(client);
    until("it is over", || bed.counters.connections_closed.get() == bed.counters.connections.get());
    assert_eq!(bed.counters.broken.get(), 0);
    let load = pools.loads.values().next().unwrap();
    assert_eq!(load.failures.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[test]
fn p_half_what_a_client_said_to_its_end_arrives_though_the_backend_speaks_on() {
    let bed = Bed::new();
    let port = bed.port();
    let (go_on, gone_on) = std::sync::mpsc::channel::<()>();
    let (said, heard) = std::sync::mpsc::channel();
    let gone_on = std::sync::Mutex::new(gone_on);
    let origin = Origin::start(move |mut stream| {
        let wait = || gone_on.lock().unwrap().recv();
        let _ = wait().map(|()| stream.write_all(b"banner"));
        let _ = wait().map(|()| said.send(read_all(&stream).map(|bytes| bytes.len())));
    });
    bed.publish(&[Node::new(1, vec![tcp_app(port, origin.address)])]);
    bed.until_bound(port);
    let mut client = bed.connect(port);
    let address = client.local_addr().unwrap();
    client.write_all(&[7; WAITING_BYTES]).unwrap();
    drop(client);
    until("the end is passed on", || states_towards(origin.address) == FIN_WAIT);
    go_on.send(()).unwrap();
    until("the reset has come", || bed.counters.bytes_out.get() == 6 && states_towards(address).is_empty());
    go_on.send(()).unwrap();
    assert_eq!(heard.recv_timeout(SOON).unwrap().unwrap(), WAITING_BYTES);
    until("it is over", || bed.counters.connections_closed.get() == bed.counters.connections.get());
}

#[test]
fn p_connto_only_so_many_backends_are_tried() {
    let bed = Bed::with(|config| config.timeouts.connect = Duration::from_millis(100));
    let port = bed.port();
    let holes = [(); 6].map(|()| BlackHole::new());
    let nodes: Vec<Node> =
        (1..).zip(&holes).map(|(id, hole)| Node::new(id, vec![tcp_app(port, hole.address)])).collect();
    bed.publish(&nodes);
    bed.until_bound(port);
    assert!(read_all(&bed.connect(port)).unwrap_or_default().is_empty());
    until("it is over", || bed.counters.connections_closed.get() == 1);
    assert_eq!((bed.counters.connect_failures.get(), bed.counters.retries.get()), (3, 2));
}

#[test]
fn p_rst_a_client_that_is_gone_is_connected_to_nobody() {
    let bed = Bed::with(|config| config.timeouts.connect = Duration::from_secs(60));
    let (port, hole) = (bed.port(), BlackHole::new());
    let pools = bed.publish(&[Node::new(1, vec![tcp_app(port, hole.address)])]);
    bed.until_bound(port);
    let load = pools.loads.values().next().unwrap();
    let client = bed.connect(port);
    until("it is on its way into the hole", || load.active.load(std::sync::atomic::Ordering::SeqCst) == 1);
    reset(client);
    until("it is over", || bed.counters.connections_closed.get() == 1);
    until("nobody is connected to", || load.active.load(std::sync::atomic::Ordering::SeqCst) == 0);
    assert_eq!(bed.counters.connect_failures.get(), 0);
}

#[test]
fn p_loop_a_backend_that_is_a_listen_port_of_ours_is_not_connected_to() {
    for bind in [None, Some(IpAddr::from([0, 0, 0, 0]))] {
        let bed = Bed::with(|config| {
            config.bind = bind.map_or_else(|| config.bind.clone(), |ip| vec![ip]);
            // Whatever becomes of it, the other tests have descriptors left.
            config.limits.connections = Some(50);
        });
        let (port, good) = (bed.port(), Origin::greeting("g"));
        let mut node = Node::new(1, vec![tcp_app(port, bed.address(port))]);
        node.ip = bed.ip;
        bed.publish(std::slice::from_ref(&node));
        bed.until_bound(port);
        assert!(read_all(&bed.connect(port)).unwrap_or_default().is_empty());
        until("it is over", || bed.counters.connections_closed.get() == bed.counters.connections.get());
        assert_eq!(bed.counters.connections.get(), 1, "it does not go round");
        bed.publish(&[node, Node::new(2, vec![tcp_app(port, good.address)])]);
        until("the good one is there", || bed.connect(port).read(&mut [0]).is_ok_and(|count| count == 1));
        assert!((0..4).all(|_| greeted_by(&bed, port) == 'g'));
    }
}

#[test]
fn p_drain_who_is_slow_to_say_its_name_goes_to_who_is_there_then() {
    let bed = Bed::new();
    let port = bed.port();
    let (a, b) = (Origin::greeting("a"), Origin::greeting("b"));
    let mut named = tcp_app(port, nobody());
    (named.name, named.domains) = ("named".parse().unwrap(), vec!["a.example".parse().unwrap()]);
    let nodes = |app_at| [Node::new(1, vec![named.clone()]), Node::new(2, vec![tcp_app(port, app_at)])];
    bed.publish(&nodes(a.address));
    bed.until_bound(port);
    let mut slow = bed.connect(port);
    until("it is let in", || bed.counters.connections.get() == 1);
    bed.publish(&nodes(b.address));
    let by_other = || {
        let mut other = bed.connect(port);
        other.write_all(b"no hello").unwrap();
        read_exactly(&other, 1)
    };
    until("others go to b", || by_other() == b"b");
    slow.write_all(b"no hello").unwrap();
    assert_eq!(read_exactly(&slow, 1), b"b");
}

#[test]
fn p_drain_the_next_try_goes_to_who_is_there_then() {
    let bed = Bed::with(|config| {
        config.workers = 1;
        config.timeouts.connect = Duration::from_secs(1);
    });
    let port = bed.port();
    let (a, b, hole) = (Origin::greeting("a"), Origin::greeting("b"), BlackHole::new());
    let at = |id, address| Node::new(id, vec![tcp_app(port, address)]);
    let pools = bed.publish(&[at(1, a.address), at(2, hole.address)]);
    bed.until_bound(port);
    let into_hole = pools.loads.iter().find(|((_, address), _)| *address == hole.address).unwrap().1;
    let mut client = bed.connect(port);
    until("a client is on its way into the hole", || {
        let is_stuck = into_hole.active.load(std::sync::atomic::Ordering::SeqCst) > 0;
        if !is_stuck && is_greeted(&client) {
            client = bed.connect(port);
        }
        is_stuck
    });
    bed.publish(&[at(1, a.address).with_state(AppState::Draining), at(2, hole.address), at(3, b.address)]);
    assert_eq!(read_exactly(&client, 1), b"b");
}

/// Whether something has come.
fn is_greeted(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let is_greeted = stream.peek(&mut [0]).is_ok_and(|count| count > 0);
    stream.set_nonblocking(false).unwrap();
    is_greeted
}

#[test]
fn a_port_that_has_come_free_is_soon_open() {
    let bed = Bed::new();
    let origin = Origin::greeting("a");
    let waits = (0..8).map(|_| {
        let holder = TcpListener::bind((bed.ip, 0)).unwrap();
        let port = Port::new(holder.local_addr().unwrap().port()).unwrap();
        bed.publish(&[Node::new(1, vec![tcp_app(port, origin.address)])]);
        until("it is taken", || bed.report(port).is_some_and(|report| report.error.is_some()));
        drop(holder);
        let since = Instant::now();
        until("it is open", || bed.report(port).is_some_and(|report| report.error.is_none()));
        since.elapsed()
    });
    // On a busy machine most may be late.
    let waits: Vec<Duration> = waits.collect();
    assert!(waits.iter().min().unwrap() < &Duration::from_millis(50), "{waits:?}");
}

#[test]
fn urgent_bytes_lose_nothing() {
    let bed = Bed::new();
    let (port, origin) = (bed.port(), Origin::echo());
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    for bytes in [10, 400_000] {
        let mut client = bed.connect(port);
        let mut reader = client.try_clone().unwrap();
        let reading = thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let mut sent = Vec::new();
        for letter in [b'a', b'b', b'c'] {
            client.write_all(&vec![letter; bytes]).unwrap();
            // Without a word behind it: what follows is in the same turn or in the next.
            socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
            sent.extend(std::iter::repeat_n(letter, bytes).chain([b'!']));
        }
        client.write_all(b"end").unwrap();
        sent.extend(b"end");
        client.shutdown(Shutdown::Write).unwrap();
        let read = reading.join().unwrap();
        assert!(read == sent, "{} of {} bytes", read.len(), sent.len());
    }
}
