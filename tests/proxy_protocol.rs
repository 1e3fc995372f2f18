//! The PROXY protocol: who a connection is for is said by the proxy in front, HAProxy and nginx among them.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use scrimp::app::{PolicyName, ProxyProtocol};
use scrimp::name::Port;
use support::{
    Bed, Node, Origin, SOON, Wire, http_app, is_ended, read_all, read_exactly, tcp_app, until, until_within,
    with_policy,
};

const V1: &str = "PROXY TCP4 192.0.2.1 192.0.2.2 4660 80\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2 for the client 192.0.2.1:4660, with something more that is told.
fn v2(command: u8) -> Vec<u8> {
    let addresses = [192, 0, 2, 1, 192, 0, 2, 2, 0x12, 0x34, 0, 80];
    [SIGNATURE, &[command, 0x11, 0, 19], &addresses, &[0x05, 0, 4, 1, 2, 3, 4]].concat()
}

/// Believes 127.0.0.1 at `port` and at no other.
fn bed(port: &mut Option<Port>) -> Bed {
    let bed = Bed::with(|config| {
        config.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
        config.timeouts.first_byte = Duration::from_millis(500);
        let chosen = TcpListener::bind((config.bind[0], 0)).unwrap().local_addr().unwrap().port();
        config.proxy_protocol = vec![Port::new(chosen).unwrap()];
        *port = config.proxy_protocol.first().copied();
    });
    // Its address is not 127.0.0.1, so that connections to it come from there only if they say so.
    assert_ne!(bed.ip, IpAddr::from([127, 0, 0, 1]));
    bed
}

fn connect_from(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

const PROXY: [u8; 4] = [127, 0, 0, 1];
const STRANGER: [u8; 4] = [127, 0, 0, 9];

fn open(bed: &Bed, nodes: &[Node], port: Port) {
    bed.publish(nodes);
    bed.until_bound(port);
}

/// What the origin is told of who asks: a mirror's X-Forwarded-For.
fn forwarded_for(stream: TcpStream, first: &[u8]) -> String {
    let mut wire = Wire::new(stream);
    wire.send(first);
    wire.send("GET / HTTP/1.1\r\nHost: example.com\r\nX-Forwarded-For: 203.0.113.5\r\n\r\n");
    let response = wire.response();
    assert_eq!(response.status(), 200, "{response:?}");
    let line = response.text().lines().find_map(|line| line.strip_prefix("x-forwarded-for: ").map(str::to_owned));
    line.unwrap()
}

#[test]
fn a_trusted_proxy_says_who_asks_and_a_stranger_is_who_it_is() {
    let mut port = None;
    let bed = bed(&mut port);
    let (port, origin) = (port.unwrap(), Origin::mirror());
    open(&bed, &[Node::new(1, vec![http_app("web", port, origin.address, &[], "/")])], port);
    let ask = |from, first: &[u8]| forwarded_for(connect_from(from, bed.address(port)), first);
    assert_eq!(ask(PROXY, V1.as_bytes()), "192.0.2.1");
    assert_eq!(ask(PROXY, &v2(0x21)), "192.0.2.1");
    assert_eq!(ask(PROXY, b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n"), "2001:db8::1");
    // Its own connection, or one of whom it knows nothing: then it is the proxy that asks, and it is believed.
    for own in [&v2(0x20)[..], b"PROXY UNKNOWN\r\n", &[SIGNATURE, &[0x20, 0, 0, 0]].concat()] {
        assert_eq!(ask(PROXY, own), "203.0.113.5, 127.0.0.1");
    }
    assert_eq!(ask(STRANGER, b""), "127.0.0.9");
    let mut wire = Wire::new(connect_from(STRANGER, bed.address(port)));
    wire.send(V1);
    assert_eq!(wire.response().status(), 400, "a stranger's header is no request");
    assert_eq!(bed.counters.proxy_header_failures.get(), 0);
}

#[test]
fn the_header_may_come_in_pieces_and_what_follows_it_is_the_client_s() {
    let mut port = None;
    let bed = bed(&mut port);
    let (port, origin) = (port.unwrap(), Origin::echo());
    open(&bed, &[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    for header in [V1.as_bytes(), &v2(0x21)] {
        for pieces in [1, 3, header.len()] {
            let mut client = connect_from(PROXY, bed.address(port));
            client.set_nodelay(true).unwrap();
            let bytes = [header, b"and more"].concat();
            for piece in bytes.chunks(bytes.len().div_ceil(pieces)) {
                client.write_all(piece).unwrap();
                std::thread::yield_now();
            }
            assert_eq!(read_exactly(&client, 8), b"and more");
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&client).unwrap(), b"");
        }
    }
    let mut stranger = connect_from(STRANGER, bed.address(port));
    stranger.write_all(V1.as_bytes()).unwrap();
    assert_eq!(read_exactly(&stranger, V1.len()), V1.as_bytes(), "a stranger's header is the client's bytes");
}

#[test]
fn the_hash_policy_goes_by_the_client() {
    let mut port = None;
    let bed = bed(&mut port);
    let (port, origins) = (port.unwrap(), ["a", "b", "c"].map(Origin::greeting));
    let node = |id, origin: &Origin| Node::new(id, vec![with_policy(tcp_app(port, origin.address), PolicyName::Hash)]);
    open(&bed, &(1..).zip(&origins).map(|(id, origin)| node(id, origin)).collect::<Vec<_>>(), port);
    let greeted = |client: u8| {
        let mut stream = connect_from(PROXY, bed.address(port));
        stream.write_all(format!("PROXY TCP4 192.0.2.{client} 192.0.2.2 1 2\r\n").as_bytes()).unwrap();
        read_exactly(&stream, 1)[0]
    };
    let first: Vec<u8> = (0..30).map(greeted).collect();
    assert!((b'a'..=b'c').all(|name| first.contains(&name)), "{first:?}");
    assert_eq!((0..30).map(greeted).collect::<Vec<u8>>(), first);
}

#[test]
fn who_says_nothing_or_something_else_is_closed_in_time_and_reaches_nobody() {
    let mut port = None;
    let bed = bed(&mut port);
    let (port, origin) = (port.unwrap(), Origin::echo());
    open(&bed, &[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    let long = [SIGNATURE, &[0x20, 0, 0xff, 0xff]].concat();
    let wrong: [&[u8]; 5] = [b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 1.2.3.4\r\n", &long, &[b'P'; 200], &v2(0x31)];
    for (count, bytes) in (1..).zip(wrong) {
        let mut client = connect_from(PROXY, bed.address(port));
        client.write_all(bytes).unwrap();
        until_within("it is closed at once", Duration::from_millis(400), &mut || is_ended(&client));
        until("it is counted", || bed.counters.proxy_header_failures.get() == count);
    }
    for beginning in [&b""[..], b"PROXY ", &v2(0x21)[..20]] {
        let mut client = connect_from(PROXY, bed.address(port));
        client.write_all(beginning).unwrap();
        let start = Instant::now();
        until_within("it is closed in time", Duration::from_secs(3), &mut || is_ended(&client));
        assert!(start.elapsed() > Duration::from_millis(300));
    }
    drop(connect_from(PROXY, bed.address(port)));
    until("all are counted", || bed.counters.proxy_header_failures.get() == 9);
    assert_eq!(origin.accepted(), 0);
    until("all are closed", || bed.counters.connections.get() == bed.counters.connections_closed.get());
}

#[test]
fn a_port_that_is_not_named_has_no_header() {
    let mut named = None;
    let bed = bed(&mut named);
    let (port, origin) = (bed.port(), Origin::echo());
    open(&bed, &[Node::new(1, vec![tcp_app(port, origin.address)])], port);
    let mut client = connect_from(PROXY, bed.address(port));
    client.write_all(V1.as_bytes()).unwrap();
    assert_eq!(read_exactly(&client, V1.len()), V1.as_bytes());
}

/// A real proxy, ended with the test.
struct Peer {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn start(program: &str, config: &str, arguments: impl FnOnce(&str, &str) -> Vec<String>) -> Peer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    fs::write(&path, config).unwrap();
    let arguments = arguments(folder.path().to_str().unwrap(), path.to_str().unwrap());
    let child = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Peer { child: child.unwrap_or_else(|error| panic!("{program}: {error}: see tests/install")), _folder: folder }
}

fn haproxy(listeners: &[(SocketAddr, SocketAddr, &str)]) -> Peer {
    let mut config = "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n".to_owned();
    for (at, (listen, to, options)) in listeners.iter().enumerate() {
        config += &format!("listen l{at}\n bind {listen}\n server s {to} {options}\n");
    }
    start("haproxy", &config, |_, path| ["-db", "-f", path].map(str::to_owned).to_vec())
}

fn nginx(listen: SocketAddr, to: SocketAddr) -> Peer {
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nmaster_process off;\npid pid;\n\
         error_log error.log;\nevents {{}}\nstream {{ server {{ listen {listen}; proxy_pass {to}; proxy_protocol on; \
         }} }}\n"
    );
    start("nginx", &config, |folder, path| {
        let log = format!("{folder}/error.log");
        ["-p", folder, "-c", path, "-e", &log].map(str::to_owned).to_vec()
    })
}

#[test]
fn haproxy_and_nginx_say_who_asks() {
    let mut port = None;
    let bed = bed(&mut port);
    let (port, origin) = (port.unwrap(), Origin::mirror());
    open(&bed, &[Node::new(1, vec![http_app("web", port, origin.address, &[], "/")])], port);
    let to = bed.address(port);
    let fronts = [free(), free(), free(), free()];
    let _peers = (
        haproxy(&[
            (fronts[0], to, "send-proxy source 127.0.0.1"),
            (fronts[1], to, "send-proxy-v2 source 127.0.0.1"),
            (fronts[2], to, "send-proxy-v2-ssl-cn proxy-v2-options unique-id,crc32c source 127.0.0.1"),
        ]),
        nginx(fronts[3], to),
    );
    for front in fronts {
        until("the proxy in front is there", || TcpStream::connect(front).is_ok());
        assert_eq!(forwarded_for(connect_from([127, 0, 0, 77], front), b""), "127.0.0.77", "{front}");
    }
}

/// A client, and what its backend is sent on its behalf.
fn told_by(bed: &Bed, version: ProxyProtocol) -> (SocketAddr, Vec<u8>) {
    let (port, origin) = (bed.port(), Origin::echo());
    let mut app = tcp_app(port, origin.address);
    app.proxy_protocol = Some(version);
    open(bed, &[Node::new(1, vec![app])], port);
    let mut client = connect_from([127, 0, 0, 88], bed.address(port));
    client.write_all(b"and more").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let said = read_all(&client).unwrap();
    (client.local_addr().unwrap(), said)
}

#[test]
fn a_backend_is_told_whose_connection_it_gets() {
    let bed = Bed::new();
    let (client, said) = told_by(&bed, ProxyProtocol::V1);
    let said = String::from_utf8(said).unwrap();
    let words: Vec<&str> = said.split(' ').collect();
    let (from, to) = (client.port().to_string(), bed.ip.to_string());
    assert_eq!(words[..5], ["PROXY", "TCP4", "127.0.0.88", &to, &from], "{said}");
    assert!(words[5].ends_with("\r\nand") && words[6] == "more", "{said}");
    let (client, said) = told_by(&bed, ProxyProtocol::V2);
    assert_eq!(
        (&said[..12], &said[12..16], &said[16..20]),
        (SIGNATURE, &[0x21, 0x11, 0, 12][..], &[127, 0, 0, 88][..])
    );
    assert_eq!((&said[24..26], &said[28..]), (&client.port().to_be_bytes()[..], &b"and more"[..]));
}

#[test]
fn nginx_and_haproxy_hear_whose_connection_they_get() {
    let bed = Bed::new();
    let (nginx_at, haproxy_at) = (free(), free());
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nmaster_process off;\npid pid;\n\
         error_log error.log;\nevents {{}}\nstream {{ server {{ listen {nginx_at} proxy_protocol; \
         return \"$proxy_protocol_addr\"; }} }}\n"
    );
    let _nginx = start("nginx", &config, |folder, path| {
        let log = format!("{folder}/error.log");
        ["-p", folder, "-c", path, "-e", &log].map(str::to_owned).to_vec()
    });
    let config = format!(
        "defaults\n mode http\n timeout client 30s\nfrontend f\n bind {haproxy_at} accept-proxy\n http-request return \
         status 200 content-type text/plain lf-string %ci\n"
    );
    let _haproxy = start("haproxy", &config, |_, path| ["-db", "-f", path].map(str::to_owned).to_vec());
    for at in [nginx_at, haproxy_at] {
        until("the server is there", || TcpStream::connect(at).is_ok());
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            let port = bed.port();
            let mut app = tcp_app(port, at);
            app.proxy_protocol = Some(version);
            open(&bed, &[Node::new(1, vec![app])], port);
            let mut client = connect_from([127, 0, 0, 88], bed.address(port));
            // This nginx answers unasked, and resets a connection with something in it that it has not read.
            if at == haproxy_at {
                client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            }
            let said = String::from_utf8(read_all(&client).unwrap_or_default()).unwrap();
            assert!(said.ends_with("127.0.0.88"), "{at} {version:?}: {said:?}");
        }
    }
}
