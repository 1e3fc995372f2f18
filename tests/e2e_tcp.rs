//! TCP through the real program: a balancer and backends as processes of their own.

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
mod node;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use node::{Cluster, Node, Origin, PATIENCE, eventually, free_port, receive};

fn spec(origin: SocketAddr, listen: SocketAddr) -> String {
    format!("db:{}/tcp,listen={}", origin.port(), listen.port())
}

fn serve(cluster: &Cluster, name: &str, origin: SocketAddr, listen: SocketAddr) -> Node {
    cluster.backend(name, &[&spec(origin, listen)])
}

fn counts(listen: SocketAddr, connections: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..connections {
        *counts.entry(receive(listen).unwrap().trim().to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn an_empty_set_closes_the_client_one_serves_all_four_serve_evenly() {
    let cluster = Cluster::new();
    let listen = cluster.listen();
    let lb = cluster.balancer("lb", "");
    // An application that does not answer: its port is open, its pool is empty.
    let dead = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut nobody = serve(&cluster, "nobody", dead, listen);
    eventually("the port is open", || TcpStream::connect(listen).is_ok());
    assert_eq!(receive(listen).unwrap(), "");
    assert!(
        lb.metric("scrimp_empty_pool_connections_total").is_some_and(|count| count >= 1.0),
        "{:?}",
        lb.get("/metrics")
    );

    let origins: Vec<Origin> = ["a", "b", "c", "d"].map(Origin::line).into();
    let mut backends = vec![serve(&cluster, "a", origins[0].address, listen)];
    lb.wait_ready_backends("db", 1);
    assert_eq!(counts(listen, 20), BTreeMap::from([("a".to_owned(), 20)]));

    for (name, origin) in ["b", "c", "d"].iter().zip(&origins[1..]) {
        backends.push(serve(&cluster, name, origin.address, listen));
    }
    lb.wait_ready_backends("db", 4);
    let even = ["a", "b", "c", "d"].map(|name| (name.to_owned(), 5));
    assert_eq!(counts(listen, 20), BTreeMap::from(even));

    for backend in backends.iter_mut().chain([&mut nobody]) {
        assert!(backend.end().success());
    }
    eventually("the port closes with the last of them", || TcpStream::connect(listen).is_err());
}

/// An origin that says hello and then holds the connection.
fn holder() -> Origin {
    Origin::serve(|mut stream| {
        let _ = stream.write_all(b"hello\n");
        let _ = stream.read(&mut [0]);
    })
}

fn open(listen: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(listen).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut hello = [0; 6];
    stream.read_exact(&mut hello).unwrap();
    stream
}

#[test]
fn removal_kills_within_a_second_where_it_is_to_kill() {
    let cluster = Cluster::new();
    let (listen, origin) = (cluster.listen(), holder());
    let lb = cluster.balancer("lb", "on-removal = \"kill\"\n");
    let mut backend = serve(&cluster, "a", origin.address, listen);
    lb.wait_ready_backends("db", 1);
    let mut streams: Vec<TcpStream> = (0..5).map(|_| open(listen)).collect();
    backend.signal(rustix::process::Signal::TERM);
    lb.wait_json("/v1/members", "it left", |members| {
        members["members"].as_array().is_some_and(|all| all.iter().any(|m| m["name"] == "a" && m["state"] == "left"))
    });
    let left = Instant::now();
    for stream in &mut streams {
        // An end or a reset: both end it.
        let _ = stream.read(&mut [0]);
    }
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    assert_eq!(lb.metric("scrimp_killed_connections_total"), Some(5.0));
    backend.wait_end();
}

#[test]
fn removal_lets_connections_finish_by_default() {
    let cluster = Cluster::new();
    let (listen, origin) = (
        cluster.listen(),
        Origin::serve(|mut stream| {
            let _ = stream.write_all(b"hello\n");
            let mut question = [0; 4];
            if stream.read_exact(&mut question).is_ok() {
                let _ = stream.write_all(b"answer");
            }
        }),
    );
    let lb = cluster.balancer("lb", "");
    let mut backend = serve(&cluster, "a", origin.address, listen);
    lb.wait_ready_backends("db", 1);
    let mut stream = open(listen);
    assert!(backend.end().success());
    eventually("nobody serves any more", || TcpStream::connect(listen).is_err());
    stream.write_all(b"okay").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
}

#[test]
fn a_backend_that_moves_takes_no_connection_with_it() {
    let cluster = Cluster::new();
    let (listen, first, second) = (cluster.listen(), holder(), Origin::line("second"));
    let lb = cluster.balancer("lb", "on-removal = \"kill\"\n");
    let config = |origin: &Origin| {
        format!("[[app]]\nname = \"db\"\nprotocol = \"tcp\"\nport = {}\nlisten = {}\n", origin.port(), listen.port())
    };
    let backend = cluster.start("backend", "a", &config(&first), &[]);
    lb.wait_ready_backends("db", 1);
    let mut old = open(listen);
    std::fs::write(&backend.config, config(&second)).unwrap();
    backend.signal(rustix::process::Signal::HUP);
    let _ = old.read(&mut [0]);
    eventually("the new address serves", || receive(listen).is_ok_and(|text| text == "second\n"));
    assert_eq!(lb.metric("scrimp_killed_connections_total"), Some(1.0));
}

#[test]
fn a_refused_connect_moves_on() {
    let cluster = Cluster::new();
    let (listen, alive) = (cluster.listen(), Origin::line("alive"));
    let refuses = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let lb = cluster.balancer("lb", "");
    let holder = TcpListener::bind(refuses).unwrap();
    let _dead = cluster.backend("dead", &[&format!("{},health=tcp", spec(refuses, listen))]);
    let _alive = serve(&cluster, "alive", alive.address, listen);
    lb.wait_ready_backends("db", 2);
    // Found ready, then gone: until its next health probe the balancer meets refusals.
    drop(holder);
    for _ in 0..4 {
        assert_eq!(receive(listen).unwrap(), "alive\n");
    }
}

#[test]
fn a_black_hole_delays_nobody_else() {
    let cluster = Cluster::new();
    let (listen, alive) = (cluster.listen(), Origin::line("alive"));
    let lb = cluster.balancer("lb", "");
    // A listener whose queue is full drops what comes: connecting to it takes for ever.
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let _hole = serve(&cluster, "hole", hole.local_addr().unwrap(), listen);
    let _alive = serve(&cluster, "alive", alive.address, listen);
    lb.wait_ready_backends("db", 2);
    rustix_listen_backlog(&hole);
    let mut filling = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&hole.local_addr().unwrap(), Duration::from_millis(300)) {
        filling.push(stream);
        assert!(filling.len() < 1000, "the queue does not fill");
    }
    let clients: Vec<_> = (0..10)
        .map(|_| {
            std::thread::spawn(move || {
                let began = Instant::now();
                (receive(listen).unwrap(), began.elapsed())
            })
        })
        .collect();
    let mut times: Vec<Duration> = Vec::new();
    for client in clients {
        let (text, time) = client.join().unwrap();
        assert_eq!(text, "alive\n");
        times.push(time);
    }
    times.sort();
    // Half of them went to the living one straight away; the others waited out the connect limit of 2 s.
    assert!(times[4] < Duration::from_millis(500), "{times:?}");
    assert!(times[9] < Duration::from_secs(4), "{times:?}");
}

/// Sets the queue of a listening socket to its least.
fn rustix_listen_backlog(listener: &TcpListener) {
    let socket = socket2::SockRef::from(listener);
    socket.listen(0).unwrap();
}

#[test]
fn a_half_close_keeps_the_answer() {
    let cluster = Cluster::new();
    // Answers only when the question has ended.
    let origin = Origin::serve(|mut stream| {
        let mut question = String::new();
        if stream.read_to_string(&mut question).is_ok() {
            let _ = write!(stream, "{} bytes", question.len());
        }
    });
    let listen = cluster.listen();
    let lb = cluster.balancer("lb", "");
    let _backend = serve(&cluster, "a", origin.address, listen);
    lb.wait_ready_backends("db", 1);
    let mut stream = TcpStream::connect(listen).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[7; 100_000]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "100000 bytes");
}

#[test]
fn running_out_of_descriptors_is_survived() {
    let cluster = Cluster::new();
    let (listen, origin) = (cluster.listen(), holder());
    let lb = cluster.balancer("lb", "");
    let _backend = serve(&cluster, "a", origin.address, listen);
    lb.wait_ready_backends("db", 1);
    // Far fewer than it thought it had when it started.
    let pid = rustix::process::Pid::from_raw(i32::try_from(lb.child.id()).unwrap());
    let open_now = std::fs::read_dir(format!("/proc/{}/fd", lb.child.id())).unwrap().count() as u64;
    let most = open_now + 8;
    let limit = rustix::process::Rlimit { current: Some(most), maximum: Some(most) };
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).unwrap();
    let crowd: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(listen).unwrap()).collect();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", lb.child.id())).unwrap().count() as u64;
    // One that is left is not enough for a connection.
    eventually("it meets the limit", || descriptors() >= most - 1);
    let before = cpu_ticks(&lb);
    std::thread::sleep(Duration::from_millis(500));
    let used = cpu_ticks(&lb) - before;
    assert!(used <= 10, "it spins: {used} ticks of 10 ms in half a second");
    drop(crowd);
    eventually("it tells that it met the limit", || {
        lb.metric("scrimp_accept_failures_total").is_some_and(|count| count > 0.0)
    });
    eventually("it serves again", || {
        let mut hello = [0; 6];
        TcpStream::connect(listen).is_ok_and(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            stream.read_exact(&mut hello).is_ok()
        })
    });
}

#[test]
fn a_crowd_beyond_the_descriptors_leaves_some_for_gossip_and_admin() {
    const CROWD: u32 = 300;
    let mut cluster = Cluster::new();
    let (listen, origin) = (cluster.listen(), holder());
    cluster.under = ["prlimit", "--nofile=256"].map(str::to_owned).into();
    let lb = cluster.balancer("lb", "");
    cluster.under.clear();
    let _first = serve(&cluster, "a", origin.address, listen);
    lb.wait_ready_backends("db", 1);
    let crowd: Vec<TcpStream> = (0..CROWD).map(|_| TcpStream::connect(listen).unwrap()).collect();
    let taken = || lb.metric("scrimp_connections_total").expect("its admin API answers");
    eventually("it has taken what it can", || taken() >= 40.0);
    // Who comes now is heard of by gossip, asked whether it is ready, and told of by the admin API.
    let _second = serve(&cluster, "b", origin.address, listen);
    lb.wait_ready_backends("db", 2);
    assert!(taken() < f64::from(CROWD), "it had descriptors for all");
    drop(crowd);
}

fn cpu_ticks(node: &Node) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.child.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
