//! Running out of file descriptors. In a test binary of its own: the limit is the process's.
#![allow(missing_docs)]

mod support;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scrimp::app::Protocol;
use support::{Bed, Node, Origin, SOON, Wire, app, http_app, is_ended, ok, read_exactly, tcp_app, until};

#[test]
fn p_emfile_running_out_of_descriptors_is_survived() {
    let bed = Bed::with(|config| config.limits.connections = Some(10_000));
    let (port, origin) = (bed.port(), Origin::greeting("a"));
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    bed.settle();
    // Clients first, so that it is the proxy that finds nothing left.
    let stat = File::open("/proc/self/stat").unwrap();
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let hard = getrlimit(Resource::Nofile).maximum;
    let clients: Vec<socket2::Socket> =
        (0..60).map(|_| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap()).collect();
    setrlimit(Resource::Nofile, Rlimit { current: Some(used + 60 + 30), maximum: hard }).unwrap();
    for client in &clients {
        client.connect(&bed.address(port).into()).unwrap();
    }
    until("accepts fail", || bed.counters.accept_failures.get() > 0);
    // It slows down instead of spinning: both workers pause 10 to 50 ms.
    let (start, before) = (Instant::now(), (bed.counters.accept_failures.get(), processor_time(&stat)));
    while start.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(bed.counters.accept_failures.get() - before.0 < 40, "it spins");
    assert!(processor_time(&stat) - before.1 < Duration::from_millis(250), "it burns the processor");
    drop(clients);
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    until("it serves again", || {
        TcpStream::connect(bed.address(port)).is_ok_and(|client| {
            client.set_read_timeout(Some(SOON)).unwrap();
            (&client).read_exact(&mut [0]).is_ok()
        })
    });
    assert_eq!(read_exactly(&bed.connect(port), 1), b"a");
    bulk_is_copied_where_no_descriptor_is_left_for_a_pipe();
    connections_that_nobody_uses_make_way_where_no_descriptor_is_left_for_one_that_is_needed();
    a_quiet_flow_of_udp_makes_way_where_no_descriptor_is_left_for_another();
}

/// Pipes that this process has open.
fn pipes() -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let is_pipe = |to: PathBuf| to.to_string_lossy().starts_with("pipe:");
    fds.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(is_pipe)).count()
}

/// In the same process, after the other: both change the limit.
fn bulk_is_copied_where_no_descriptor_is_left_for_a_pipe() {
    const BYTES: usize = 4 * 1024 * 1024;
    let bed = Bed::new();
    let origin = Origin::start(|mut stream| {
        while stream.read_exact(&mut [0]).is_ok() {
            stream.write_all(&vec![7; BYTES]).unwrap();
        }
    });
    let port = bed.port();
    bed.publish_and_open(&[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    bed.settle();
    let mut client = bed.connect(port);
    let mut ask = || {
        client.write_all(b"?").unwrap();
        assert!(read_exactly(&client, BYTES).iter().all(|byte| *byte == 7));
    };
    let hard = getrlimit(Resource::Nofile).maximum;
    until("the backend is connected to", || origin.accepted() == 2);
    let (before, used) = (pipes(), std::fs::read_dir("/proc/self/fd").unwrap().count() as u64);
    setrlimit(Resource::Nofile, Rlimit { current: Some(used - 1), maximum: hard }).unwrap();
    ask();
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    assert_eq!(pipes(), before);
    ask();
    assert!(pipes() > before, "it is moved where there are descriptors");
}

/// While it is there, no descriptor is left.
struct Exhausted(Vec<File>);

impl Exhausted {
    fn new() -> Self {
        let hard = getrlimit(Resource::Nofile).maximum;
        let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        setrlimit(Resource::Nofile, Rlimit { current: Some(used + 10), maximum: hard }).unwrap();
        Self(std::iter::from_fn(|| File::open("/dev/null").ok()).collect())
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        let hard = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
        self.0.clear();
    }
}

/// In the same process, after the others.
fn connections_that_nobody_uses_make_way_where_no_descriptor_is_left_for_one_that_is_needed() {
    let bed = Bed::with(|config| config.workers = 1);
    let (port, origins) = (bed.port(), [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap()));
    let app = |name: &str, origin: &TcpListener| {
        http_app(name, port, origin.local_addr().unwrap(), &[&format!("{name}.example")], "/")
    };
    bed.publish_and_open(&[Node::new(1, vec![app("a", &origins[0]), app("b", &origins[1])])], port);
    bed.settle();
    let mut client = Wire::new(bed.connect(port));
    let ask = |client: &mut Wire, name: &str| client.send(format!("GET / HTTP/1.1\r\nHost: {name}.example\r\n\r\n"));
    // What was asked is answered over a connection that is opened for it.
    let answer = |client: &mut Wire, origin: &TcpListener, text: &str| {
        let mut wire = Wire::new(origin.accept().unwrap().0);
        wire.request().unwrap();
        wire.send(ok(text));
        assert_eq!(client.response().text(), text);
        wire
    };
    ask(&mut client, "a");
    let kept = answer(&mut client, &origins[0], "a");
    let exhausted = Exhausted::new();
    ask(&mut client, "b");
    until("the connection that nobody uses is closed", || is_ended(&kept.stream));
    drop(exhausted);
    answer(&mut client, &origins[1], "b");
    ask(&mut client, "a");
    answer(&mut client, &origins[0], "a again");
}

/// In the same process, after the others.
fn a_quiet_flow_of_udp_makes_way_where_no_descriptor_is_left_for_another() {
    let bed = Bed::with(|config| config.workers = 1);
    let (port, server) = (bed.port(), UdpSocket::bind("127.0.0.1:0").unwrap());
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    bed.publish(&[Node::new(1, vec![app("dns", Protocol::Udp, port, server.local_addr().unwrap())])]);
    bed.until_bound(port);
    let clients = ["a", "b"].map(|name| (UdpSocket::bind("127.0.0.1:0").unwrap(), name));
    let is_heard = |(client, name): &(UdpSocket, &str)| {
        client.send_to(name.as_bytes(), bed.address(port)).unwrap();
        let mut heard = [0; 10];
        server.recv(&mut heard).is_ok_and(|length| &heard[..length] == name.as_bytes())
    };
    until("the first has its flow", || is_heard(&clients[0]));
    let exhausted = Exhausted::new();
    until("the other has one", || is_heard(&clients[1]));
    drop(exhausted);
}

fn processor_time(stat: &File) -> Duration {
    let mut text = [0; 1024];
    let length = stat.read_at(&mut text, 0).unwrap();
    let text = std::str::from_utf8(&text[..length]).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime, in hundredths of a second.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
