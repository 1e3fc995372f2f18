//! TLS through the proxy, towards clients and towards backends: real sockets on loopback, certificates made on the spot.
#![allow(missing_docs)]

mod support;
#[path = "support/tls.rs"]
mod tls;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustls::HandshakeKind;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use scrimp::app::{App, Protocol};
use scrimp::certificate::Certificate;
use scrimp::name::Port;
use scrimp::proxy::Config;
use support::{Bed, Node, Origin, Wire, app, http_app, is_ended, ok, read_all, tcp_app, until};
use support::{frames, oracle};
use tls::{
    Authority, DAY, Site, any_client, ask, client, connect, get, leaf, read_head, replace, served, shake, valid,
};
use tokio_rustls::rustls;

/// A deadline that tests wait for.
const SHORT: Duration = Duration::from_millis(300);

fn files(sites: &[&Site]) -> Vec<Certificate> {
    sites.iter().map(|site| site.files.clone()).collect()
}

fn with_tls(sites: &[&Site], change: impl FnOnce(&mut Config)) -> Bed {
    let certificates = files(sites);
    Bed::with(|config| {
        config.certificates = certificates;
        change(config);
    })
}

/// A bed whose one application answers for all hosts, at a port with TLS.
fn serving(sites: &[&Site]) -> (Bed, Port, Origin) {
    let bed = with_tls(sites, |_| {});
    let (port, origin) = (bed.port(), Origin::named("a"));
    bed.publish_and_open(&[Node::new(1, vec![http_app("a", port, origin.address, &[], "/")])], port);
    bed.settle();
    (bed, port, origin)
}

fn status(head: &str) -> &str {
    &head[9..12]
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn a_certificate_is_chosen_by_the_name_that_is_asked_for() {
    let authority = Authority::new();
    let first = authority.site("first", &["first.example", "*.wild.example"]);
    let exact = authority.site("exact", &["one.wild.example"]);
    let (bed, port, _origin) = serving(&[&first, &exact]);
    let shown = |name| leaf(&connect(bed.address(port), &any_client(), name).unwrap());
    assert_eq!(shown(Some("first.example")), first.leaf);
    assert_eq!(shown(Some("FIRST.example")), first.leaf);
    assert_eq!(shown(Some("two.wild.example")), first.leaf);
    assert_eq!(shown(Some("one.wild.example")), exact.leaf);
    assert_eq!(shown(Some("nobody.example")), first.leaf);
    assert_eq!(shown(None), first.leaf);
}

/// What OpenSSL's client is shown and gets when it asks for a name as it is: a page of `host` behind the certificate.
fn asked_by_openssl(address: SocketAddr, name: &str, host: &str, more: &[&str]) -> (CertificateDer<'static>, String) {
    let mut child = Command::new("openssl")
        .args(["s_client", "-ign_eof", "-connect", &address.to_string(), "-servername", name])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    child.stdin.as_mut().unwrap().write_all(request.as_bytes()).unwrap();
    let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let status = said.lines().find_map(|line| line.strip_prefix("HTTP/1.1 ")).unwrap_or_default().to_owned();
    (CertificateDer::from_pem_slice(said.as_bytes()).unwrap(), status)
}

#[test]
fn a_final_dot_in_a_name_changes_nothing() {
    let authority = Authority::new();
    let (a, b) = (authority.site("a", &["a.example"]), authority.site("b", &["b.example"]));
    let (bed, port, _origin) = serving(&[&a, &b]);
    for (name, host) in [("b.example", "b.example."), ("b.example.", "b.example"), ("B.example.", "b.example.")] {
        let (shown, status) = asked_by_openssl(bed.address(port), name, host, &[]);
        assert_eq!((shown == b.leaf, &*status), (true, "200 OK"), "{name} {host}");
    }
}

/// Who understands RSA alone gets a wildcard where the name itself has a certificate of another kind.
#[test]
fn a_client_gets_a_certificate_that_it_understands() {
    let authority = Authority::new();
    let rsa = authority.rsa("rsa", &["*.a.example"]);
    let exact = authority.site("exact", &["www.a.example"]);
    let (bed, port, _origin) = serving(&[&authority.site("first", &["first.example"]), &rsa, &exact]);
    let old = ["-sigalgs", "rsa_pss_rsae_sha256:RSA+SHA256"];
    for (more, site) in [(&old[..], &rsa), (&[], &exact)] {
        let (shown, status) = asked_by_openssl(bed.address(port), "www.a.example", "www.a.example", more);
        assert_eq!((shown == site.leaf, &*status), (true, "200 OK"), "{more:?}");
    }
}

#[test]
fn old_and_new_versions_are_spoken_and_sessions_go_on() {
    let authority = Authority::new();
    let (bed, port, _origin) = serving(&[&authority.site("a", &["a.example"])]);
    for (version, number) in [(&rustls::version::TLS12, 1), (&rustls::version::TLS13, 2)] {
        let config = Arc::new(client(&[version]));
        let mut first = connect(bed.address(port), &config, Some("a.example")).unwrap();
        assert_eq!(first.conn.protocol_version(), Some(version.version));
        assert_eq!(first.conn.alpn_protocol(), None);
        let (head, body) = get(&mut first, "a.example", "/").unwrap();
        assert_eq!((status(&head), body.as_str()), ("200", "a"));
        let second = connect(bed.address(port), &config, Some("a.example")).unwrap();
        assert_eq!(second.conn.handshake_kind(), Some(HandshakeKind::Resumed), "{version:?}");
        until("it is counted", || bed.counters.tls_resumed.get() == number);
        assert_eq!(bed.counters.tls_handshakes.get(), number * 2);
    }
}

#[test]
fn what_is_spoken_inside_is_agreed_on() {
    let authority = Authority::new();
    let (bed, port, _origin) = serving(&[&authority.site("a", &["a.example"])]);
    let offering = |protocols: &[&str]| {
        let mut config = client(rustls::ALL_VERSIONS);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        connect(bed.address(port), &Arc::new(config), Some("a.example"))
    };
    assert_eq!(offering(&["nonsense", "http/1.1"]).unwrap().conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    // HTTP/2 is preferred, and spoken.
    let mut tls = offering(&["http/1.1", "h2"]).unwrap();
    assert_eq!(tls.conn.alpn_protocol(), Some(&b"h2"[..]));
    let asked = frames::Frame::new(
        frames::HEADERS,
        frames::END_HEADERS | frames::END_STREAM,
        1,
        frames::request("GET", "/", &[]),
    );
    let settings = frames::Frame::new(frames::SETTINGS, 0, 0, []);
    tls.write_all(&[frames::PREFACE, &settings.bytes(), &asked.bytes()].concat()).unwrap();
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    let answer = loop {
        match frames::next(&said) {
            Some(frame) if frame.kind == frames::HEADERS => break frame,
            Some(frame) => drop(said.drain(..9 + frame.payload.len())),
            None => {
                let count = tls.read(&mut buffer).unwrap();
                assert!(count > 0, "it ends without an answer");
                said.extend_from_slice(&buffer[..count]);
            }
        }
    };
    // The static table's `:status: 200`.
    assert_eq!((answer.stream, answer.payload[0]), (1, 0x88));
    let refused = offering(&["nonsense"]).unwrap_err().to_string();
    assert!(refused.contains("NoApplicationProtocol"), "{refused}");
    until("it is counted", || bed.counters.tls_failures.get() == 1);
}

#[test]
fn p_tlsgarbage_gets_an_alert_and_the_end() {
    const ALERT: u8 = 21;
    let authority = Authority::new();
    let (bed, port, _origin) = serving(&[&authority.site("a", &["a.example"])]);
    let long = [&[22, 3, 1, 0x40, 0][..], &[1, 0, 0xff, 0xff], &[0; 60_000]].concat();
    // A record of 16 KiB and one byte more.
    let large = [&[22, 3, 1, 0x40, 1][..], &[1, 0, 0x3f, 0xfd], &[0; 0x3ffd]].concat();
    for garbage in
        [&b"\x16\x03\x01\x00\x05hello"[..], b"\0\0\0\0\0\0\0\0", b"\x80\x2e\x01\0\x02\0\x15\0\0\0\x10", &long, &large]
    {
        let mut stream = bed.connect(port);
        // What is too long may be refused before all of it is sent.
        let _ = stream.write_all(garbage);
        let said = read_all(&stream).unwrap();
        assert_eq!((said.first(), said.len()), (Some(&ALERT), 7), "{:?}", &garbage[..8]);
    }
    until("each is counted", || bed.counters.tls_failures.get() == 5);
    assert_eq!(bed.counters.tls_handshakes.get(), 0);
}

/// The same when hands have been shaken.
#[test]
fn p_tlsgarbage_later_ends_the_connection_alone() {
    let authority = Authority::new();
    let (bed, port, _origin) = serving(&[&authority.site("a", &["a.example"])]);
    let mut other = connect(bed.address(port), &any_client(), Some("a.example")).unwrap();
    for (what, garbage) in [
        ("a record that nobody sealed", [&[23, 3, 3, 0, 40][..], &[7; 40]].concat()),
        ("one of 16 KiB and one byte more, as it is sealed", [&[23, 3, 3, 0x41, 1][..], &[7; 0x4101]].concat()),
        ("one that is longer than any", [&[23, 3, 3, 0x48, 1][..], &[7; 0x4801]].concat()),
        ("a record of no kind", [&[99, 3, 3, 0, 40][..], &[7; 40]].concat()),
        ("words without TLS", b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec()),
    ] {
        let mut stream = connect(bed.address(port), &any_client(), Some("a.example")).unwrap();
        assert_eq!(status(&get(&mut stream, "a.example", "/").unwrap().0), "200");
        let _ = stream.sock.write_all(&garbage);
        assert!(get(&mut stream, "a.example", "/").is_err(), "{what}");
        // What it was told last may be there still: who writes to a connection that was closed reads no more.
        let _ = read_all(&stream.sock);
        until(what, || is_ended(&stream.sock));
    }
    assert_eq!(status(&get(&mut other, "a.example", "/").unwrap().0), "200");
}

#[test]
fn a_client_without_tls_is_told_so_in_its_own_words() {
    let authority = Authority::new();
    let (bed, port, origin) = serving(&[&authority.site("a", &["a.example"])]);
    let before = origin.accepted();
    let mut stream = bed.connect(port);
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n").unwrap();
    let said = String::from_utf8(read_all(&stream).unwrap()).unwrap();
    assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{said}");
    assert!(said.ends_with(&format!("use https://a.example:{port}/\n")), "{said}");
    assert_eq!(origin.accepted(), before);
}

#[test]
fn who_stalls_is_closed_by_its_deadline_counted_from_the_accept() {
    let authority = Authority::new();
    let site = authority.site("a", &["a.example"]);
    let bed = with_tls(&[&site], |config| {
        config.timeouts.first_byte = SHORT;
        config.timeouts.header = SHORT * 8;
    });
    let (port, origin) = (bed.port(), Origin::named("a"));
    bed.publish_and_open(&[Node::new(1, vec![http_app("a", port, origin.address, &[], "/")])], port);
    let ends = |least: Duration, most: Duration, said: &[u8], is_trickle: bool| {
        let began = Instant::now();
        let mut stream = bed.connect(port);
        for byte in said.chunks(if is_trickle { 1 } else { said.len().max(1) }) {
            if stream.write_all(byte).is_err() {
                break;
            }
            if is_trickle {
                thread::sleep(SHORT / 20);
            }
        }
        until("it is closed", || is_ended(&stream));
        let took = began.elapsed();
        assert!(took >= least && took < most, "{took:?} for {} bytes", said.len());
    };
    let (header, late) = (SHORT * 8, SHORT * 16);
    ends(SHORT, header, b"", false);
    // A record of 512 bytes, of which some come, or all of them too slowly.
    let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc][..], &[0; 500]].concat();
    ends(header, late, &hello[..100], false);
    ends(header, late, &hello, true);
    // After its first words, in the middle of the handshake.
    let began = Instant::now();
    let stream = bed.connect(port);
    let name = rustls_pki_types::ServerName::try_from("a.example").unwrap();
    let mut connection = rustls::ClientConnection::new(any_client(), name).unwrap();
    connection.write_tls(&mut &stream).unwrap();
    read_all(&stream).unwrap();
    assert!(began.elapsed() >= header && began.elapsed() < late);
    until("each is counted", || bed.counters.tls_failures.get() == 4);
}

#[test]
fn the_time_for_a_proxy_header_is_part_of_that_for_the_handshake() {
    const DEADLINE: Duration = Duration::from_millis(2000);
    let authority = Authority::new();
    let port = Bed::new().port();
    let bed = with_tls(&[&authority.site("a", &["a.example"])], |config| {
        config.proxy_protocol = vec![port];
        config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        (config.timeouts.first_byte, config.timeouts.header) = (DEADLINE, DEADLINE);
    });
    let origin = Origin::named("a");
    bed.publish_and_open(&[Node::new(1, vec![http_app("a", port, origin.address, &[], "/")])], port);
    let began = Instant::now();
    let mut stream = bed.connect(port);
    thread::sleep(DEADLINE * 3 / 4);
    stream.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n\x16\x03\x01\x02\x00\x01").unwrap();
    until("it is closed", || is_ended(&stream));
    let took = began.elapsed();
    assert!(took >= DEADLINE && took < DEADLINE * 3 / 2, "{took:?}");
}

#[test]
fn stalled_handshakes_leave_room_for_others() {
    let authority = Authority::new();
    let site = authority.site("a", &["a.example"]);
    let clear = Bed::new().port();
    let bed = with_tls(&[&site], |config| {
        config.limits.connections = Some(12);
        config.https.clear_port = clear;
    });
    let (port, origin) = (bed.port(), Origin::named("a"));
    let apps = [port, clear].map(|port| http_app(&format!("a{port}"), port, origin.address, &[], "/")).to_vec();
    bed.publish_and_open(&[Node::new(1, apps)], port);
    bed.until_open(clear);
    bed.settle();
    let stalled: Vec<TcpStream> = (0..6).map(|_| bed.connect(port)).collect();
    until("all are accepted", || bed.counters.connections.get() - bed.counters.connections_closed.get() == 6);
    let refused = connect(bed.address(port), &any_client(), Some("a.example")).unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{refused:?}");
    let mut wire = Wire::new(bed.connect(clear));
    wire.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(wire.response().status(), 200);
    drop(stalled);
    until("there is room again", || connect(bed.address(port), &any_client(), Some("a.example")).is_ok());
}

#[test]
fn certificates_are_swapped_under_open_connections() {
    let authority = Authority::new();
    let place = authority.site("place", &["a.example"]);
    let next = authority.site("next", &["a.example", "b.example"]);
    let (bed, port, _origin) = serving(&[&place]);
    let config = Config { certificates: files(&[&place]), ..Config::default() };
    let reload = || bed.proxy.as_ref().unwrap().reload_certificates(&config);
    let mut open = connect(bed.address(port), &any_client(), Some("a.example")).unwrap();
    let mut half = bed.connect(port);
    half.write_all(&[22, 3]).unwrap();
    get(&mut open, "a.example", "/").unwrap();
    let shown = |name| leaf(&connect(bed.address(port), &any_client(), Some(name)).unwrap());
    assert_eq!(shown("a.example"), place.leaf);
    replace(&place.files, &next.files);
    assert_eq!(shown("a.example"), place.leaf, "files alone change nothing");
    reload().unwrap();
    assert_eq!(shown("a.example"), next.leaf);
    assert_eq!(status(&get(&mut open, "a.example", "/").unwrap().0), "200", "what is open stays open");
    assert!(!is_ended(&half));
    // A wrong one changes nothing, and says what is wrong.
    let other = authority.site("other", &["a.example"]);
    std::fs::copy(&other.files.key, &place.files.key).unwrap();
    let error = reload().unwrap_err().to_string();
    assert!(error.contains("place.key is not the key of the certificate in") && error.contains("place.pem"), "{error}");
    assert_eq!(shown("a.example"), next.leaf);
    replace(&place.files, &other.files);
    reload().unwrap();
    assert_eq!(shown("a.example"), other.leaf);
}

#[test]
fn what_is_wrong_with_certificates_is_told_with_its_file_and_its_remedy() {
    let authority = Authority::new();
    let site = authority.site("site", &["a.example"]);
    let other = authority.site("other", &["a.example"]);
    let pem = |path| std::fs::read_to_string(path).unwrap();
    let swapped = pem(&other.files.chain) + &pem(&site.files.chain);
    let swapped = authority.write("swapped.pem", &swapped);
    let broken = authority.write("broken.pem", &(pem(&site.files.chain) + &pem(&other.files.chain)));
    let locked = authority
        .write("locked.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let empty = authority.write("empty.pem", "");
    let missing = authority.folder.path().join("missing.pem");
    let (now, ago) = (SystemTime::now(), |days: u32| SystemTime::now() - days * DAY);
    let expired = authority.site_with("expired", &["a.example"], |params| valid(params, ago(90), ago(2)));
    let early = authority.site_with("early", &["a.example"], |params| valid(params, now + 2 * DAY, now + 90 * DAY));
    let judge = |chain: &std::path::Path, key: &std::path::Path| {
        let certificates = vec![Certificate { chain: chain.into(), key: key.into() }];
        scrimp::proxy::tls::check(&Config { certificates, ..Config::default() })
    };
    assert_eq!(judge(&site.files.chain, &site.files.key), Ok(()));
    for (chain, key, expected) in [
        (&missing, &site.files.key, "cannot read the certificate"),
        (&site.files.chain, &missing, "put the file there"),
        (&empty, &site.files.key, "empty.pem holds no certificates in PEM form"),
        (&site.files.key, &site.files.key, "site.key holds no certificates in PEM form"),
        (&site.files.chain, &site.files.chain, "site.pem holds no private key in PEM form"),
        (&site.files.chain, &locked, "locked.key is locked with a password: openssl pkey"),
        (&site.files.chain, &other.files.key, "other.key is not the key of the certificate in"),
        (&swapped, &site.files.key, "put the site's own certificate first"),
        (&broken, &site.files.key, "broken.pem is no chain: its certificate 1 is not signed by number 2"),
        (&expired.files.chain, &expired.files.key, "expired.pem expired on 20"),
        (&early.files.chain, &early.files.key, "early.pem is not valid before 20"),
    ] {
        let error = judge(chain, key).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // Started with, it is served: better a warning in browsers than nothing. Coming in later, it is refused.
    let (bed, port, _origin) = serving(&[&expired]);
    assert_eq!(leaf(&connect(bed.address(port), &any_client(), None).unwrap()), expired.leaf);
    let reload = |sites: &[&Site]| {
        let config = Config { certificates: files(sites), ..Config::default() };
        bed.proxy.as_ref().unwrap().reload_certificates(&config).map_err(|error| error.to_string())
    };
    assert_eq!(reload(&[&expired]), Ok(()));
    assert_eq!(reload(&[&site]), Ok(()));
    assert!(reload(&[&expired]).unwrap_err().contains("renew it, then scrimp reload"));
    assert_eq!(leaf(&connect(bed.address(port), &any_client(), None).unwrap()), site.leaf);
}

#[test]
fn a_request_for_a_host_of_another_certificate_is_sent_away() {
    let authority = Authority::new();
    let (a, b) = (authority.site("a", &["a.example", "www.a.example"]), authority.site("b", &["b.example"]));
    let (bed, port, origin) = serving(&[&a, &b]);
    let mut stream = connect(bed.address(port), &any_client(), Some("a.example")).unwrap();
    assert_eq!(status(&get(&mut stream, "a.example", "/").unwrap().0), "200");
    assert_eq!(status(&get(&mut stream, &format!("WWW.a.example:{port}"), "/").unwrap().0), "200");
    let before = origin.accepted();
    let mut other = connect(bed.address(port), &any_client(), Some("a.example")).unwrap();
    for host in ["b.example", "nobody.example"] {
        assert_eq!(status(&get(&mut other, host, "/").unwrap().0), "421", "{host}");
    }
    assert_eq!(origin.accepted(), before);
    // The connection is as good as before for its own host.
    assert_eq!(status(&get(&mut other, "a.example", "/").unwrap().0), "200");
    // Over HTTP/2, where clients do use one connection for several hosts.
    for (host, wanted) in [("www.a.example", "2 200"), ("b.example", "2 421"), ("nobody.example", "2 421")] {
        let output = Command::new("curl")
            .args(["-sk", "--http2", "-m", "20", "-o", "/dev/null", "-w", "%{http_version} %{http_code}"])
            .args(["--connect-to", &format!("::{}", bed.address(port)), "-H", &format!("Host: {host}")])
            .arg("https://a.example/")
            .output();
        assert_eq!(String::from_utf8_lossy(&output.unwrap().stdout), wanted, "{host}");
    }
}

#[test]
fn http_leads_to_https_where_there_is_something_to_lead_to() {
    let authority = Authority::new();
    let site = authority.site("a", &["a.example", "b.example", "*.c.example"]);
    let other = Bed::new();
    let (clear, sealed) = (other.port(), other.port());
    let bed = with_tls(&[&site], |config| {
        (config.https.clear_port, config.https.tls_port) = (clear, sealed);
        config.https.hsts = Some("max-age=100".to_owned());
    });
    let origin = Origin::http(|request| Some(ok(request.field("x-forwarded-proto").unwrap())));
    let http = |name: &str, port, domains: &[&str], path| http_app(name, port, origin.address, domains, path);
    let domains = ["a.example", "x.c.example", "plain.example"];
    let apps = vec![http("sealed", sealed, &domains, "/"), http("clear", clear, &["b.example"], "/only")];
    bed.publish_and_open(&[Node::new(1, apps[..1].to_vec())], sealed);
    // Nobody asked for it: it stands to lead.
    bed.until_open(clear);
    let asked = |request: &str, host: &str| {
        let request = format!("{request} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n\r\n");
        ask(&mut bed.connect(clear), &request).unwrap().0
    };
    let place = |path: &str| format!("https://a.example:{sealed}{path}");
    let moved = asked("GET /x/Y?z=%20", &format!("A.example:{clear}"));
    assert_eq!((status(&moved), field(&moved, "location")), ("301", Some(place("/x/y?z=%20").as_str())), "{moved}");
    assert_eq!(field(&moved, "strict-transport-security"), None);
    assert_eq!(status(&asked("HEAD /", "a.example")), "301");
    let moved = asked("POST /", "a.example");
    assert_eq!((status(&moved), field(&moved, "location")), ("308", Some(place("/").as_str())));
    assert_eq!(status(&asked("GET /", "x.c.example")), "301");
    // It asks for no place that there could be elsewhere.
    assert_eq!(status(&asked("OPTIONS *", "a.example")), "404");
    // No certificate; no route there; no such host.
    for host in ["plain.example", "b.example", "nobody.example"] {
        assert_eq!(status(&asked("GET /", host)), "404", "{host}");
    }
    // What has a route without TLS is served there.
    bed.publish(&[Node::new(1, apps)]);
    until("the route is there", || status(&asked("GET /only", "b.example")) == "200");
    assert_eq!(status(&asked("GET /", "a.example")), "301");
    let mut stream = connect(bed.address(sealed), &any_client(), Some("a.example")).unwrap();
    let (head, proto) = get(&mut stream, "a.example", "/").unwrap();
    assert_eq!((proto.as_str(), field(&head, "strict-transport-security")), ("https", Some("max-age=100")));
    let (head, proto) = get(&mut bed.connect(clear), "b.example", "/only").unwrap();
    assert_eq!((proto.as_str(), field(&head, "strict-transport-security")), ("http", None));
}

#[test]
fn a_port_that_only_leads_is_closed_when_it_is_not_wanted() {
    let authority = Authority::new();
    let site = authority.site("a", &["a.example"]);
    let other = Bed::new();
    let (clear, sealed, origin) = (other.port(), other.port(), Origin::named("a"));
    let mut config = Config { certificates: files(&[&site]), ..Config::default() };
    (config.https.clear_port, config.https.tls_port) = (clear, sealed);
    let bed = Bed::with(|mine| *mine = Config { bind: mine.bind.clone(), ..config.clone() });
    let node = Node::new(1, vec![http_app("a", sealed, origin.address, &[], "/")]);
    bed.publish_and_open(&[node], sealed);
    bed.until_open(clear);
    config.https.redirect = false;
    bed.proxy.as_ref().unwrap().reconfigure(config.clone());
    until("it is closed", || bed.report(clear).is_none() && TcpStream::connect(bed.address(clear)).is_err());
    config.https.redirect = true;
    bed.proxy.as_ref().unwrap().reconfigure(config.clone());
    bed.until_open(clear);
    config.certificates.clear();
    bed.proxy.as_ref().unwrap().reload_certificates(&config).unwrap();
    until("it is closed", || bed.report(clear).is_none());
    // Without certificates no port speaks TLS.
    let mut wire = Wire::new(bed.connect(sealed));
    wire.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(wire.response().status(), 200);
}

#[test]
fn an_upgraded_connection_passes_every_byte_both_ways() {
    let authority = Authority::new();
    let site = authority.site("a", &["a.example"]);
    let bed = with_tls(&[&site], |_| {});
    let origin = Origin::start(|stream| {
        let mut wire = Wire::new(stream);
        wire.request().unwrap();
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n");
        let mut buffer = vec![0; 10_000];
        while let Ok(count) = wire.read_some(&mut buffer)
            && count > 0
        {
            wire.send(&buffer[..count]);
        }
        let _ = wire.stream.shutdown(Shutdown::Write);
    });
    let port = bed.port();
    bed.publish_and_open(&[Node::new(1, vec![http_app("a", port, origin.address, &[], "/")])], port);
    let mut stream = connect(bed.address(port), &any_client(), Some("a.example")).unwrap();
    let (head, _) =
        ask(&mut stream, "GET / HTTP/1.1\r\nhost: a.example\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").unwrap();
    assert_eq!(status(&head), "101");
    for round in 0_u32..200 {
        let sent: Vec<u8> =
            (0..round * 101 % 20_000 + 1).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        stream.write_all(&sent).unwrap();
        stream.flush().unwrap();
        let mut back = vec![0; sent.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == sent, "round {round}");
    }
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    let mut rest = Vec::new();
    assert_eq!(stream.read_to_end(&mut rest).unwrap(), 0, "the end is passed on, sealed");
}

/// A server with TLS that sends its name to whoever connects, then echoes.
fn sealed_origin(site: &Site, name: &'static str) -> Origin {
    let config = site.server();
    Origin::start(move |stream| {
        let mut stream = served(stream, &config);
        let mut buffer = vec![0; 16_000];
        let _ = stream.write_all(name.as_bytes()).and_then(|()| stream.flush());
        while let Ok(count) = stream.read(&mut buffer)
            && count > 0
            && stream.write_all(&buffer[..count]).and_then(|()| stream.flush()).is_ok()
        {}
        stream.conn.send_close_notify();
        let _ = stream.flush();
        let _ = stream.sock.shutdown(Shutdown::Write);
    })
}

fn sealed_app(port: Port, origin: &Origin) -> App {
    app("a", Protocol::Tls, port, origin.address)
}

#[test]
fn tcp_goes_over_tls_to_a_backend_that_is_who_it_should_be() {
    let authority = Authority::new();
    let ours = authority.file();
    let stranger = Authority::new();
    let by_address = authority.site("by-address", &["127.0.0.1"]);
    let by_node = authority.site("by-node", &["n1"]);
    let by_name = authority.site("by-name", &["backends.internal"]);
    let elsewhere = authority.site("elsewhere", &["10.9.8.7", "n2"]);
    let foreign = stranger.site("foreign", &["127.0.0.1", "n1"]);
    let own = stranger.self_signed("own", &["whatever"]);
    let late = authority.site_with("late", &["n1"], |params| {
        valid(params, SystemTime::now() - 9 * DAY, SystemTime::now() - 2 * DAY);
    });
    let passes = |site: &Site, change: &dyn Fn(&mut Config)| {
        let origin = sealed_origin(site, "a");
        let bed = Bed::with(|config| change(config));
        let port = bed.port();
        bed.publish(&[Node::new(1, vec![sealed_app(port, &origin)])]);
        bed.until_bound(port);
        let mut client = bed.connect(port);
        let mut first = [0; 1];
        let is_served = client.read_exact(&mut first).is_ok();
        if is_served {
            let sent: Vec<u8> = (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let (mut writer, bytes) = (client.try_clone().unwrap(), sent.clone());
            let writing = thread::spawn(move || {
                writer.write_all(&bytes).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            assert!(read_all(&client).unwrap() == sent, "what came back is what was sent");
            writing.join().unwrap();
            until("all is counted", || {
                (bed.counters.bytes_in.get(), bed.counters.bytes_out.get()) == (300_000, 300_001)
            });
        } else {
            assert_eq!(bed.counters.connect_failures.get(), 1);
        }
        is_served
    };
    let ca = |config: &mut Config| config.backend_tls.ca = Some(ours.clone());
    assert!(passes(&by_address, &ca) && passes(&by_node, &ca));
    for (what, site) in [("elsewhere", &elsewhere), ("foreign", &foreign), ("late", &late), ("by name", &by_name)] {
        assert!(!passes(site, &ca), "{what}");
    }
    let named = |config: &mut Config| {
        ca(config);
        config.backend_tls.server_name = Some("backends.internal".parse().unwrap());
    };
    assert!(passes(&by_name, &named) && !passes(&by_node, &named));
    // One that a backend signed itself is believed for itself, whatever names are in it.
    let pinned = |config: &mut Config| config.backend_tls.ca = Some(own.files.chain.clone());
    assert!(passes(&own, &pinned) && !passes(&foreign, &pinned) && !passes(&by_node, &pinned));
    assert!(!passes(&own, &|_: &mut Config| {}), "the machine knows none of them");
    assert!(passes(&own, &|config: &mut Config| config.backend_tls.verify = false));
}

#[test]
fn http_goes_over_tls_to_a_backend_by_its_applications_domain() {
    let authority = Authority::new();
    let (right, wrong) = (authority.site("right", &["a.example"]), authority.site("wrong", &["b.example"]));
    let ca = authority.file();
    for (site, expected) in [(&right, "200"), (&wrong, "502")] {
        let config = site.server();
        let origin = Origin::start(move |stream| {
            let mut stream = served(stream, &config);
            while let Ok(head) = read_head(&mut stream) {
                oracle::judge(&head);
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                assert!(head.contains("x-forwarded-proto: http\r\n"), "{head}");
                stream.write_all(&ok("sealed")).unwrap();
                stream.flush().unwrap();
            }
        });
        let bed = Bed::with(|config| config.backend_tls.ca = Some(ca.clone()));
        let port = bed.port();
        let mut app = http_app("a", port, origin.address, &["*.a.example", "a.example"], "/");
        app.protocol = Protocol::Https;
        bed.publish_and_open(&[Node::new(1, vec![app])], port);
        let mut client = bed.connect(port);
        for _ in 0..3 {
            let (head, body) = get(&mut client, "a.example", "/").unwrap();
            assert_eq!(status(&head), expected);
            assert_eq!(body == "sealed", expected == "200", "{body}");
        }
        assert!(origin.accepted() == 1 || expected != "200", "its connection is kept");
    }
}

fn named_app(name: &str, port: Port, origin: &Origin, domains: &[&str]) -> App {
    let domains = domains.iter().map(|domain| domain.parse().unwrap()).collect();
    App { name: name.parse().unwrap(), domains, ..tcp_app(port, origin.address) }
}

#[test]
fn a_tcp_port_is_shared_by_the_names_that_clients_ask_for() {
    let authority = Authority::new();
    let sites: Vec<Site> = ["one", "two", "any"].map(|name| authority.site(name, &["x.example"])).to_vec();
    let origins = [sealed_origin(&sites[0], "1"), sealed_origin(&sites[1], "2"), sealed_origin(&sites[2], "3")];
    // Not even with certificates is it ended here.
    let bed = with_tls(&[&sites[0]], |config| config.timeouts.first_byte = SHORT);
    let port = bed.port();
    let named = vec![
        named_app("one", port, &origins[0], &["one.example"]),
        named_app("two", port, &origins[1], &["*.example", "two.test"]),
    ];
    bed.publish_and_open(&[Node::new(1, named.clone())], port);
    let met = |name: Option<&str>, at: usize| {
        let mut stream = connect(bed.address(port), &any_client(), name)?;
        assert_eq!(leaf(&stream), sites[at].leaf, "{name:?}");
        let mut greeting = [0];
        stream.read_exact(&mut greeting)?;
        stream.write_all(&[7; 50_000])?;
        let mut back = vec![0; 50_000];
        stream.read_exact(&mut back)?;
        assert_eq!(back, [7; 50_000]);
        Ok::<u8, std::io::Error>(greeting[0])
    };
    assert_eq!(met(Some("one.example"), 0).unwrap(), b'1');
    assert_eq!(met(Some("ONE.example"), 0).unwrap(), b'1');
    assert_eq!(met(Some("x.one.example"), 1).unwrap(), b'2');
    assert_eq!(met(Some("two.test"), 1).unwrap(), b'2');
    assert!(met(Some("three.test"), 1).is_err() && met(None, 1).is_err());
    // With one for everybody, it gets the others, and those that speak no TLS.
    let mut all = named;
    let plain = Origin::echo();
    all.push(named_app("z-any", port, &plain, &[]));
    bed.publish(&[Node::new(1, all)]);
    until("plain clients are served", || {
        let mut client = bed.connect(port);
        client.write_all(b"hello").unwrap();
        let mut back = [0; 5];
        client.read_exact(&mut back).is_ok() && back == *b"hello"
    });
    assert_eq!(met(Some("one.example"), 0).unwrap(), b'1');
    // Who says nothing is nobody's, and ends by the deadline.
    let began = Instant::now();
    let silent = bed.connect(port);
    until("it is closed", || is_ended(&silent));
    let took = began.elapsed();
    assert!(took >= SHORT && took < SHORT + Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_first_message_in_pieces_finds_its_way() {
    let authority = Authority::new();
    let site = authority.site("one", &["one.example"]);
    let origin = sealed_origin(&site, "1");
    let bed = Bed::new();
    let port = bed.port();
    bed.publish_and_open(&[Node::new(1, vec![named_app("one", port, &origin, &["one.example"])])], port);
    let name = rustls_pki_types::ServerName::try_from("one.example").unwrap();
    let mut connection = rustls::ClientConnection::new(any_client(), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    let mut stream = bed.connect(port);
    for piece in hello.chunks(97) {
        stream.write_all(piece).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).unwrap();
    }
    let shown: &CertificateDer<'_> = &connection.peer_certificates().unwrap()[0];
    assert_eq!(*shown, site.leaf);
}

#[test]
fn certificates_change_a_hundred_times_under_load_and_nobody_notices() {
    let authority = Authority::new();
    let place = authority.site("place", &["a.example"]);
    let sites = ["x", "y"].map(|file| authority.site(file, &["a.example"]));
    let (bed, port, _origin) = serving(&[&place]);
    let config = Config { certificates: files(&[&place]), ..Config::default() };
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (is_over, address) = (Arc::clone(&is_over), bed.address(port));
            thread::spawn(move || {
                let mut count = 0;
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let stream = TcpStream::connect(address).unwrap();
                    let mut stream = shake(stream, &any_client(), Some("a.example")).unwrap();
                    assert_eq!(status(&get(&mut stream, "a.example", "/").unwrap().0), "200");
                    count += 1;
                }
                count
            })
        })
        .collect();
    for round in 0..100 {
        replace(&place.files, &sites[round % 2].files);
        bed.proxy.as_ref().unwrap().reload_certificates(&config).unwrap();
        thread::sleep(Duration::from_millis(2));
    }
    is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    let counts: Vec<u32> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    assert_eq!(bed.counters.tls_failures.get(), 0);
}
