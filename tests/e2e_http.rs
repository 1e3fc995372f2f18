//! HTTP through the real program.

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
mod node;

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use node::{Cluster, Origin, PATIENCE, eventually, eventually_within, http_get};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Promised: a backend with 200 applications and 900 domains is routed completely within this of joining.
const COMPLETE_MAX: Duration = Duration::from_secs(2);

#[test]
fn two_hundred_applications_with_nine_hundred_domains_are_routed_at_once() {
    let cluster = Cluster::new();
    let (listen, origin) = (cluster.listen(), Origin::http("origin"));
    let lb = cluster.balancer("lb", "");
    lb.wait_ready();
    let mut config = String::new();
    let mut hosts = Vec::new();
    for app in 0..200 {
        let domains: Vec<String> =
            (0..if app < 100 { 5 } else { 4 }).map(|d| format!("d{d}.app{app}.example.com")).collect();
        let quoted: Vec<String> = domains.iter().map(|domain| format!("{domain:?}")).collect();
        writeln!(
            config,
            "[[app]]\nname = \"app-{app}\"\nport = {}\nlisten = {}\ndomains = [{}]",
            origin.port(),
            listen.port(),
            quoted.join(", ")
        )
        .unwrap();
        hosts.extend(domains);
    }
    assert_eq!(hosts.len(), 900);
    let _backend = cluster.start("backend", "big", &config, &[]);
    lb.wait_alive(&["big", "lb"]);
    let joined = Instant::now();
    // The last to be routed decide: every host is asked until all of them answer, on one kept connection.
    eventually_within(PATIENCE, "all 900 hosts are routed", || lb.log(), || all_answer(listen, &hosts).then_some(()));
    let took = joined.elapsed();
    println!("routed completely {} ms after joining", took.as_millis());
    assert!(took <= COMPLETE_MAX, "{took:?}");
}

fn all_answer(listen: SocketAddr, hosts: &[String]) -> bool {
    let Ok(stream) = TcpStream::connect(listen) else { return false };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(&stream);
    hosts.iter().all(|host| ask(&stream, &mut reader, host, "/").is_ok_and(|(status, _)| status == 200))
}

/// One request on a kept connection: status and body.
fn ask(
    mut stream: &TcpStream,
    reader: &mut BufReader<&TcpStream>,
    host: &str,
    path: &str,
) -> std::io::Result<(u16, String)> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes())?;
    let (mut status, mut length) = (0, 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("http/1.1 ") {
            status = rest[..3].parse().unwrap();
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[test]
fn hosts_and_paths_lead_to_their_backends_as_these_come_and_go() {
    let cluster = Cluster::new();
    let listen = cluster.listen();
    let (shop, api, other) = (Origin::http("shop"), Origin::http("api"), Origin::http("other"));
    let spec =
        |name: &str, origin: &Origin, more: &str| format!("{name}:{},listen={}{more}", origin.port(), listen.port());
    let lb = cluster.balancer("lb", "");
    let mut one = cluster.backend(
        "one",
        &[&spec("shop", &shop, ",domain=shop.example.com"), &spec("api", &api, ",domain=shop.example.com,path=/api")],
    );
    let mut two = cluster.backend("two", &[&spec("other", &other, ",domain=*.example.com")]);
    for app in ["shop", "api", "other"] {
        lb.wait_ready_backends(app, 1);
    }
    let body = |host: &str, path: &str| http_get(listen, host, path).unwrap();
    assert_eq!(body("shop.example.com", "/"), (200, "shop\n".to_owned()));
    assert_eq!(body("SHOP.example.com.", "/api/x"), (200, "api\n".to_owned()));
    assert_eq!(body("shop.example.com", "/apix"), (200, "shop\n".to_owned()));
    assert_eq!(body("any.example.com", "/api"), (200, "other\n".to_owned()));
    assert_eq!(body("example.org", "/").0, 404);
    // Lost without a word, it is out, but as nobody else has its route it is asked as a last resort.
    one.kill();
    let is_last_resort = |apps: &serde_json::Value| {
        let shop = apps["apps"].as_array()?.iter().find(|app| app["name"] == "shop")?;
        let backend = &shop["backends"][0];
        Some(backend["state"] == "suspected" && backend["reason"].as_str()?.contains("last resort"))
    };
    lb.wait_json("/v1/apps", "a last resort", |apps| is_last_resort(apps).unwrap_or_default());
    assert_eq!(body("shop.example.com", "/"), (200, "shop\n".to_owned()));
    assert_eq!(body("any.example.com", "/").0, 200);
    assert!(two.end().success());
    eventually("its route goes with it", || {
        http_get(listen, "any.example.com", "/").is_ok_and(|(status, _)| status == 404)
    });
}

#[test]
fn a_backend_that_leaves_takes_no_request_with_it() {
    let cluster = Cluster::new();
    let (listen, a, b) = (cluster.listen(), Origin::http("a"), Origin::http("b"));
    let spec = |origin: &Origin| format!("web:{},listen={}", origin.port(), listen.port());
    let lb = cluster.balancer("lb", "");
    let mut first = cluster.backend("a", &[&spec(&a)]);
    let _second = cluster.backend("b", &[&spec(&b)]);
    lb.wait_ready_backends("web", 2);
    let stream = TcpStream::connect(listen).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(&stream);
    let mut only_b = 0;
    first.signal(rustix::process::Signal::TERM);
    let began = Instant::now();
    while only_b < 50 {
        let (status, body) = ask(&stream, &mut reader, "x", "/").unwrap();
        assert_eq!(status, 200);
        only_b = if body == "b\n" { only_b + 1 } else { 0 };
        assert!(began.elapsed() < PATIENCE, "it is asked long after it left");
    }
    assert!(first.wait_end().success());
}

/// Promised: an idle client takes no more memory than this.
const IDLE_BYTES_MAX: u64 = 10 * 1024;

/// The release build's, with `SCRIMP_TEST_RELEASE` (tests/run sets it).
#[test]
fn p_idle100k_idle_clients_take_little_memory_and_give_it_back() {
    const COUNT: u64 = 9000;
    let Some(release) = std::env::var_os("SCRIMP_TEST_RELEASE") else {
        return eprintln!("skipped: what memory a debug build takes says nothing");
    };
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    if hard.is_some_and(|hard| hard < 2 * COUNT + 1000) {
        return eprintln!("skipped: too few descriptors for {COUNT} clients: {hard:?}");
    }
    let mut cluster = Cluster::new();
    cluster.program = release.into();
    let (listen, origin) = (cluster.listen(), Origin::http("origin"));
    let lb = cluster.balancer("lb", "[lb.timeouts]\nidle = \"10m\"\n");
    let _backend = cluster.backend("one", &[&format!("web:{},listen={}", origin.port(), listen.port())]);
    lb.wait_ready_backends("web", 1);
    let open = || {
        let stream = TcpStream::connect(listen).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(ask(&stream, &mut BufReader::new(&stream), "x", "/").unwrap().0, 200);
        stream
    };
    let is_open = |count: u64| lb.metric("scrimp_connections_open") == Some(count as f64);
    // What is taken once is not counted.
    drop((0..100).map(|_| open()).collect::<Vec<_>>());
    eventually("they are gone", || is_open(0));
    let before = lb.resident_kib();
    for wave in ["first", "second"] {
        let all: Vec<TcpStream> = (0..COUNT).map(|_| open()).collect();
        assert!(is_open(COUNT), "nobody was let go");
        let full = lb.resident_kib();
        drop(all);
        eventually("all are gone", || is_open(0));
        let each = full.saturating_sub(before) * 1024 / COUNT;
        println!("{wave}: an idle client takes {each} bytes: {before} KiB without, {full} with {COUNT}");
        assert!(each <= IDLE_BYTES_MAX, "{each} bytes");
        // It is looked every five seconds, and what waits in a worker goes a little later. Once in a while something small
        // lives on in many a page: what is left then was a fifth, never all as without giving back.
        let left = || lb.resident_kib().saturating_sub(before);
        let are_left = || format!("{} KiB are left", left());
        eventually_within(Duration::from_secs(60), "the memory is back", are_left, || {
            (left() * 3 <= full.saturating_sub(before)).then_some(())
        });
    }
}
