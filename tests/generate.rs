//! Generate mode with a real nginx: what it writes, what it never writes, and what requests see meanwhile.

#[path = "generate/oracle.rs"]
mod oracle;
#[path = "generate/support.rs"]
mod support;
#[path = "support/tls.rs"]
mod tls;

use std::collections::BTreeMap;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use scrimp::app::{App, AppState, Offer, PolicyName, Protocol};
use scrimp::generate::certificate::CertificateNames;
use scrimp::generate::model::Environment;
use scrimp::generate::{Certificate, Config, Generator, Model, Template, TemplateSource};
use scrimp::member::{Member, MemberState, NodeId, Reach, Roster};
use scrimp::name::Weight;
use scrimp::pool::{Pools, Rules};

use support::*;

fn render(source: &TemplateSource, pools: &Pools) -> String {
    let environment = Environment { ipv6: true, certificates: Vec::new() };
    Template::load(source).unwrap().render(&Model::new(pools, &environment).unwrap()).unwrap()
}

// ---- requests through nginx -----------------------------------------------------------------------------------------

#[test]
fn requests_reach_exactly_the_backends_that_are_there() {
    let nginx = Nginx::start();
    let (a, b, c) =
        (Origin::http("a", "127.0.0.1:0"), Origin::http("b", "127.0.0.2:0"), Origin::http("c", "127.0.0.3:0"));
    let listen = free_port();
    let offer = |number, origin: &Origin, domains: &[&str]| {
        member(number, &origin.ip(), vec![web("web", origin.port(), listen, domains)])
    };
    let site = ["example.com", "*.example.com"];
    let running =
        Running::start(nginx.config(TemplateSource::Nginx), pools(vec![offer(1, &a, &site), offer(2, &b, &site)]));
    await_origins(listen, "example.com", "/", &["a", "b"]);
    await_origins(listen, "deep.www.example.com", "/", &["a", "b"]);
    assert_eq!(get(listen, "example.org", "/").unwrap().status, 404);

    // One more, then one less.
    running.publish(pools(vec![offer(1, &a, &site), offer(2, &b, &site), offer(3, &c, &site)]));
    await_origins(listen, "example.com", "/", &["a", "b", "c"]);
    running.publish(pools(vec![offer(2, &b, &site), offer(3, &c, &site)]));
    await_origins(listen, "example.com", "/", &["b", "c"]);

    // A rolling change of domains: each backend serves the hosts that it names.
    running.publish(pools(vec![offer(2, &b, &site), offer(3, &c, &["example.net"])]));
    await_origins(listen, "example.net", "/", &["c"]);
    await_origins(listen, "example.com", "/", &["b"]);

    // The last backend of a host falls under suspicion and goes down: as the last one it is still asked.
    let before = running.counters.reloads.get();
    for (state, reach) in [(MemberState::Alive, Reach::Silent), (MemberState::Down, Reach::Silent)] {
        let renders = running.counters.renders.get();
        let doubted = Member { state, reach, ..offer(2, &b, &site) };
        running.publish(pools(vec![doubted, offer(3, &c, &["example.net"])]));
        eventually("it is rendered", || match running.counters.renders.get() {
            made if made > renders => Ok(()),
            made => Err(made),
        });
        await_origins(listen, "example.com", "/", &["b"]);
    }
    assert_eq!(running.counters.reloads.get(), before, "nothing has changed for nginx");

    // It drains: its clients are told to come back.
    running.publish(pools(vec![draining(offer(2, &b, &site)), offer(3, &c, &["example.net"])]));
    let response = await_status(listen, "example.com", "/", 503);
    assert_eq!(response.headers.get("retry-after").map(String::as_str), Some("5"));
    await_origins(listen, "example.net", "/", &["c"]);
    assert_eq!(running.report().error, None);
}

#[test]
fn paths_match_at_whole_segments_and_hosts_fall_through_to_wildcards_and_any() {
    let nginx = Nginx::start();
    let origins: Vec<Origin> =
        ["root", "api", "wild", "any"].iter().map(|name| Origin::http(name, "127.0.0.1:0")).collect();
    let listen = free_port();
    let on = |at: usize, name: &str, path: &str, domains: &[&str]| {
        member(at as u64, "127.0.0.1", vec![at_path(web(name, origins[at].port(), listen, domains), path)])
    };
    let all = pools(vec![
        on(0, "root", "/site", &["www.example.com"]),
        on(1, "api", "/site/api/", &["www.example.com"]),
        on(2, "wild", "/wild", &["*.example.com"]),
        on(3, "any", "/", &[]),
    ]);
    let _running = Running::start(nginx.config(TemplateSource::Nginx), all);
    await_origins(listen, "www.example.com", "/site", &["root"]);
    for (host, path, expected) in [
        ("www.example.com", "/site/", "root"),
        ("www.example.com", "/site/x?y=/site/api", "root"),
        ("www.example.com", "/site/api", "api"),
        ("www.example.com", "/site/api/", "api"),
        ("www.example.com", "/site/api/x/y", "api"),
        ("www.example.com", "/site/apix", "root"),
        ("www.example.com", "/sitex", "any"),
        ("www.example.com", "/wild/x", "wild"),
        ("other.example.com", "/wild", "wild"),
        ("other.example.com", "/site", "any"),
        ("example.org", "/anything", "any"),
    ] {
        let response = get(listen, host, path).unwrap();
        assert_eq!((response.status, response.origin()), (200, expected), "{host}{path}");
        assert!(response.body.contains(&format!("GET {path} HTTP/1.1")), "{path} arrives as {}", response.body);
    }
}

#[test]
fn backends_learn_who_asks_and_clients_cannot_say_otherwise() {
    let nginx = Nginx::start();
    let origin = Origin::http("a", "127.0.0.1:0");
    let listen = free_port();
    let all = pools(vec![member(1, "127.0.0.1", vec![web("web", origin.port(), listen, &["example.com"])])]);
    let _running = Running::start(nginx.config(TemplateSource::Nginx), all);
    await_origins(listen, "example.com", "/", &["a"]);
    let heads = |request: &str| Client::connect(listen).unwrap().send(request).unwrap().body.to_ascii_lowercase();

    let lies = format!(
        "GET / HTTP/1.1\r\nHost: Example.com:{listen}\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: evil.example\r\nForwarded: for=1.2.3.4\r\nProxy: evil:1\r\n\r\n"
    );
    let seen = heads(&lies);
    assert!(seen.contains(&format!("host: example.com:{listen}\r\n")), "{seen}");
    assert!(seen.contains("x-forwarded-for: 127.0.0.1\r\n") && seen.contains("x-forwarded-proto: http\r\n"), "{seen}");
    assert!(!seen.contains("1.2.3.4") && !seen.contains("evil"), "{seen}");

    // The host that a request is routed by is the one that the backend sees.
    let seen = heads("GET http://example.com/ HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert!(seen.contains("host: example.com\r\n") && !seen.contains("evil"), "{seen}");

    let seen = heads("GET / HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert!(seen.contains("upgrade: websocket\r\n") && seen.contains("connection: upgrade\r\n"), "{seen}");
    let seen = heads("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n");
    assert!(!seen.contains("connection:") && !seen.contains("upgrade"), "{seen}");
}

#[test]
fn no_request_fails_while_backends_come_and_go() {
    let nginx = Nginx::start();
    let origins: Vec<Origin> = (0..4).map(|i| Origin::http("ok", &format!("127.0.0.{}:0", i + 1))).collect();
    let listen = free_port();
    let with = |gone: usize| {
        let stay = origins.iter().enumerate().filter(|(at, _)| *at != gone);
        pools(
            stay.map(|(at, o)| member(at as u64, &o.ip(), vec![web("web", o.port(), listen, &["a.example"])]))
                .collect(),
        )
    };
    let running = Running::start(nginx.config(TemplateSource::Nginx), with(0));
    await_origins(listen, "a.example", "/", &["ok"]);

    let (stop, fresh, kept) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let fresh_load = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let response = get(listen, "a.example", "/").unwrap();
                assert_eq!((response.status, response.origin()), (200, "ok"));
                fresh.fetch_add(1, Ordering::Relaxed);
            }
        });
        let kept_load = scope.spawn(|| {
            let mut client = Client::connect(listen).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let response = client.get("a.example", "/").or_else(|error| {
                    // nginx ended an idle connection just then: what every client does is to open another.
                    let ended = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
                    assert!(ended.contains(&error.kind()), "{error}");
                    client = Client::connect(listen)?;
                    client.get("a.example", "/")
                });
                let response = response.unwrap();
                assert_eq!((response.status, response.origin()), (200, "ok"));
                kept.fetch_add(1, Ordering::Relaxed);
            }
        });
        let first = running.counters.reloads.get();
        for change in 1..=10 {
            running.publish(with(change % origins.len()));
            running.await_reloads(first + change as u64);
        }
        stop.store(true, Ordering::Relaxed);
        fresh_load.join().unwrap();
        kept_load.join().unwrap();
    });
    assert!(fresh.load(Ordering::Relaxed) > 100 && kept.load(Ordering::Relaxed) > 100, "{fresh:?} {kept:?}");
    assert_eq!((running.counters.failures.get(), running.report().error), (0, None));
}

#[test]
fn ipv6_backends_stand_in_brackets_and_are_reached() {
    let listen = free_port();
    let text = render(
        &TemplateSource::Nginx,
        &pools(vec![
            member(1, "2001:db8::7", vec![web("web", 8080, listen, &["a.example"])]),
            member(2, "::ffff:192.0.2.1", vec![web("web", 8080, listen, &["a.example"])]),
        ]),
    );
    assert!(text.contains("server [2001:db8::7]:8080 ") && text.contains("server 192.0.2.1:8080 "), "{text}");

    if TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let nginx = Nginx::start();
    let origin = Origin::http("six", "[::1]:0");
    let all = pools(vec![member(1, "::1", vec![web("web", origin.port(), listen, &["a.example"])])]);
    let _running = Running::start(nginx.config(TemplateSource::Nginx), all);
    await_origins(listen, "a.example", "/", &["six"]);
    let mut six = TcpStream::connect(("::1", listen)).unwrap();
    six.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").unwrap();
    assert_eq!(read_response(&mut BufReader::new(six)).unwrap().origin(), "six");
}

#[test]
fn two_applications_of_one_name_with_different_fields_stand_side_by_side() {
    let nginx = Nginx::start();
    let (a, b) = (Origin::http("a", "127.0.0.1:0"), Origin::http("b", "127.0.0.2:0"));
    let (one, two) = (free_port(), free_port());
    let all = pools(vec![
        member(1, &a.ip(), vec![web("web", a.port(), one, &["a.example"])]),
        member(2, &b.ip(), vec![at_path(web("web", b.port(), one, &["a.example", "b.example"]), "/b")]),
        member(3, &b.ip(), vec![web("web", b.port(), two, &["a.example"])]),
    ]);
    let _running = Running::start(nginx.config(TemplateSource::Nginx), all);
    await_origins(one, "a.example", "/", &["a"]);
    await_origins(one, "a.example", "/b", &["b"]);
    await_origins(one, "b.example", "/b/c", &["b"]);
    await_origins(two, "a.example", "/", &["b"]);
    assert_eq!(get(one, "b.example", "/").unwrap().status, 404);
}

#[test]
fn with_certificates_https_works_and_http_leads_there() {
    let mut nginx = Nginx::prepare();
    let make = |name: &str, names: &str| {
        let file = |kind: &str| nginx.folder.path().join(format!("{name}.{kind}"));
        let certificate = Certificate { chain: file("pem"), key: file("key") };
        let status = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", &format!("/CN={name}"), "-addext", &format!("subjectAltName={names}")])
            .arg("-keyout")
            .arg(&certificate.key)
            .arg("-out")
            .arg(&certificate.chain)
            .stderr(Stdio::null())
            .status();
        assert!(status.unwrap().success(), "openssl makes a certificate");
        certificate
    };
    let certificates = vec![make("first", "DNS:first.example"), make("second", "DNS:*.second.example")];
    let (http, https) = (free_port(), free_port());
    let config = Config { certificates, ..nginx.config(nginx.template_elsewhere(http, https)) };
    nginx.launch();
    let running = Running::start(config, Pools::default());
    // Nothing to serve yet: port 80 leads on, port 443 says so.
    let moved = await_status(http, "www.second.example", "/x?y", 301);
    assert_eq!(moved.headers["location"], "https://www.second.example/x?y");
    assert_eq!(tls_get(https, "www.second.example").0.status, 503);

    let origin = Origin::http("a", "127.0.0.1:0");
    running.publish(pools(vec![member(
        1,
        "127.0.0.1",
        vec![
            web("web", origin.port(), 443, &["first.example", "www.second.example", "third.example"]),
            web("plain", origin.port(), 80, &["plain.example"]),
        ],
    )]));
    eventually("https is served", || match tls_get(https, "first.example").0 {
        response if response.status == 200 && response.origin() == "a" => Ok(()),
        other => Err(other),
    });
    for (host, subject) in [("first.example", "first"), ("www.second.example", "second"), ("third.example", "first")] {
        let (response, peer) = tls_get(https, host);
        assert_eq!((response.status, peer.as_str()), (200, subject), "{host}");
        assert!(response.body.to_ascii_lowercase().contains("x-forwarded-proto: https"), "{}", response.body);
    }
    assert_eq!(tls_get(https, "unknown.example").0.status, 404);
    assert_eq!(get(http, "first.example", "/").unwrap().status, 301);
    assert_eq!(get(http, "plain.example", "/").unwrap().origin(), "a");
    assert_eq!(running.report().error, None);
}

/// One request over TLS, and the common name of the certificate that was shown.
fn tls_get(port: u16, host: &str) -> (Response, String) {
    let address = format!("127.0.0.1:{port}");
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let ask = |arguments: &[&str], input: &str| {
        let mut child = Command::new("openssl")
            .args(["s_client", "-connect", &address, "-servername", host])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.as_mut().unwrap().write_all(input.as_bytes()).unwrap();
        let mut out = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
        child.wait().unwrap();
        out
    };
    let response = read_response(&mut BufReader::new(&ask(&["-quiet"], &request)[..]));
    let session = String::from_utf8_lossy(&ask(&[], "Q\n")).into_owned();
    let subject = session.lines().find_map(|line| line.strip_prefix("subject=")).unwrap_or("").replace("CN = ", "");
    (
        response.unwrap_or_else(|_| Response { status: 0, headers: BTreeMap::new(), body: session }),
        subject.replace("CN=", ""),
    )
}

#[test]
fn tcp_and_udp_pass_through_nginx() {
    let nginx = Nginx::start();
    let tcp = Origin::tcp("t", "127.0.0.1:0");
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp_port = udp.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((length, from)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(&[b"u:", &bytes[..length]].concat(), from);
        }
    });
    let (tcp_listen, udp_listen) = (free_port(), free_port());
    let offer = || {
        let apps =
            vec![app("db", Protocol::Tcp, tcp.port(), tcp_listen), app("dns", Protocol::Udp, udp_port, udp_listen)];
        member(1, "127.0.0.1", apps)
    };
    let running = Running::start(nginx.config(TemplateSource::NginxStream), pools(vec![offer()]));
    let ask_tcp = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", tcp_listen))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"hello")?;
        let mut bytes = [0; 64];
        let length = stream.read(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    };
    let expect_tcp = |expected: &str| {
        eventually("TCP", || match ask_tcp().map_err(|error| error.kind()) {
            Ok(answer) if answer == expected => Ok(()),
            // A connection that is closed before it is read is reset.
            Err(ErrorKind::ConnectionReset) if expected.is_empty() => Ok(()),
            other => Err(other),
        });
    };
    expect_tcp("t:hello");
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    eventually("UDP", || {
        client.send_to(b"hello", ("127.0.0.1", udp_listen)).unwrap();
        let mut bytes = [0; 64];
        match client.recv(&mut bytes).map(|length| bytes[..length].to_vec()) {
            Ok(answer) if answer == b"u:hello" => Ok(()),
            other => Err(other),
        }
    });
    // Without a backend, clients are closed, not kept waiting.
    running.publish(pools(vec![draining(offer())]));
    expect_tcp("");
    assert_eq!(running.report().error, None);
}

#[test]
fn tls_clients_reach_tcp_applications_by_name_through_nginx() {
    let nginx = Nginx::start();
    let authority = tls::Authority::new();
    let sites = ["one", "two"].map(|name| authority.site(name, &["x.example"]));
    let listen = free_port();
    let served = |at: usize| {
        let (listener, config) = (TcpListener::bind("127.0.0.1:0").unwrap(), sites[at].server());
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let mut stream = tls::served(stream, &config);
                let _ = stream.write_all(b"hello").and_then(|()| stream.flush());
            }
        });
        port
    };
    let named = |name: &str, at: usize, domains: &[&str]| {
        let domains = domains.iter().map(|domain| domain.parse().unwrap()).collect();
        App { domains, ..app(name, Protocol::Tcp, served(at), listen) }
    };
    let long = format!("{}.example", "a".repeat(63));
    // Words that nginx's map takes for its own.
    let apps = vec![named("one", 0, &["include", "default", "news.example", &long]), named("two", 1, &["*.example"])];
    let running = Running::start(nginx.config(TemplateSource::NginxStream), pools(vec![member(1, "127.0.0.1", apps)]));
    let address = ([127, 0, 0, 1], listen).into();
    let met = |name: &str| tls::connect(address, &tls::any_client(), Some(name)).map(|stream| tls::leaf(&stream));
    eventually("it serves", || met("news.example").map(drop).map_err(|error| error.kind()));
    assert_eq!(running.report().error, None);
    for (name, site) in [("include", 0), ("default", 0), ("news.example", 0), (long.as_str(), 0), ("x.y.example", 1)] {
        assert_eq!(met(name).unwrap(), sites[site].leaf, "{name}");
    }
    assert!(met("nobody.test").is_err());
}

#[test]
fn a_first_state_without_anything_is_written_at_once_and_answers_503() {
    let nginx = Nginx::start();
    let listen = free_port();
    let config = nginx.config(nginx.template_elsewhere(listen, free_port()));
    let generator = Generator::new(config.clone(), Arc::default()).unwrap();
    block_on(generator.check()).unwrap();
    assert!(!config.target.exists(), "a check writes nothing");
    let _running = Running::start(config, Pools::default());
    let response = await_status(listen, "any.example", "/", 503);
    assert!(response.headers.contains_key("retry-after") && response.body.contains("Nothing is served"));
}

// ---- what is written, and when --------------------------------------------------------------------------------------

/// A folder with a target, and scripts in the place of nginx.
struct Scripted {
    folder: tempfile::TempDir,
    check: Script,
    reload: Script,
}

impl Scripted {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (check, reload) = (Script::new(folder.path(), "check"), Script::new(folder.path(), "reload"));
        Self { folder, check, reload }
    }

    fn config(&self) -> Config {
        Config {
            template: TemplateSource::Nginx,
            target: self.target(),
            check: self.check.command(),
            reload: self.reload.command(),
            certificates: Vec::new(),
        }
    }

    fn target(&self) -> std::path::PathBuf {
        self.folder.path().join("scrimp.conf")
    }

    fn text(&self) -> Option<String> {
        std::fs::read_to_string(self.target()).ok()
    }

    /// Waits until nothing hidden is left beside the target.
    fn await_tidy(&self) {
        eventually("nothing is left over", || {
            let names = std::fs::read_dir(self.folder.path()).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let hidden: Vec<String> = names.filter(|name| name.starts_with('.')).collect();
            if hidden.is_empty() { Ok(()) } else { Err(hidden) }
        });
    }
}

fn some_pools(backends: u64) -> Pools {
    let members = (1..=backends).map(|n| member(n, &format!("10.0.{}.{}", n / 250, n % 250 + 1), site(8080)));
    pools(members.collect())
}

fn site(port: u16) -> Vec<App> {
    vec![web("web", port, 8000, &["a.example"])]
}

/// The backends 1 to `all`, the first `silent` of them silent to this balancer's probes.
fn some_members(all: u64, silent: u64) -> Vec<Member> {
    let reach = |n| if n <= silent { Reach::Silent } else { Reach::Answers };
    (1..=all).map(|n| Member { reach: reach(n), ..member(n, &format!("10.0.0.{n}"), site(8080)) }).collect()
}

#[test]
fn a_suspected_backend_leaves_the_upstream_and_the_last_ones_stay() {
    let listed = |members: Vec<Member>| {
        let text = render(&TemplateSource::Nginx, &pools(members));
        (1..=3).filter(|n| text.contains(&format!("10.0.0.{n}:8080"))).collect::<Vec<_>>()
    };
    assert_eq!(listed(some_members(3, 0)), [1, 2, 3]);
    assert_eq!(listed(some_members(3, 1)), [2, 3]);
    assert_eq!(listed(some_members(3, 2)), [3]);
    assert_eq!(listed(some_members(3, 3)), [1, 2, 3]);
    let down = |mut members: Vec<Member>, count| {
        members[..count].iter_mut().for_each(|member| member.state = MemberState::Down);
        members
    };
    assert_eq!(listed(down(some_members(3, 2), 2)), [3]);
    assert_eq!(listed(down(some_members(3, 3), 2)), [3], "suspected comes before down");
    assert_eq!(listed(down(some_members(3, 3), 3)), [1, 2, 3]);
    assert_eq!(listed(down(some_members(3, 1), 3)), [2, 3], "down by the gossip alone");
}

#[test]
fn balancers_of_one_view_write_the_same_bytes_whatever_they_saw_before() {
    let render = |pools: &Pools| render(&TemplateSource::Nginx, pools);
    let roster = |members| Roster { cluster: "test".parse().unwrap(), me: NodeId(0), members };
    for silent in 0..=3 {
        let expected = render(&pools(some_members(3, silent)));
        for before in 0..=3 {
            let mut history = some_members(3, before);
            history[0].state = MemberState::Down;
            let seen = pools(history).next(&roster(some_members(3, silent)), &Rules::default(), Instant::now());
            assert_eq!(render(&seen), expected, "{silent} are silent, and {before} were");
        }
    }
}

#[test]
fn backends_that_flap_cost_a_reload_in_two_seconds_and_the_last_state_is_in_use() {
    let place = Scripted::new();
    let running = Running::start(place.config(), pools(some_members(20, 0)));
    running.await_reloads(1);
    let begun = Instant::now();
    // Much faster than a second each, so that a few seconds do.
    for round in 0..60 {
        running.publish(pools(some_members(20, 1 + round % 10)));
        std::thread::sleep(Duration::from_millis(50));
    }
    running.publish(pools(some_members(20, 19)));
    let last = render_here(&place, &pools(some_members(20, 19)));
    eventually("the last state is written", || if place.text() == Some(last.clone()) { Ok(()) } else { Err(()) });
    let allowed = 2 + begun.elapsed().as_secs() as usize / 2;
    assert!(place.reload.calls() - 1 <= allowed, "{} reloads in {:?}", place.reload.calls() - 1, begun.elapsed());
}

#[test]
fn an_unchanged_state_writes_nothing_and_reloads_nothing() {
    let place = Scripted::new();
    let running = Running::start(place.config(), some_pools(3));
    running.await_reloads(1);
    let before = std::fs::metadata(place.target()).unwrap();
    let renders = running.counters.renders.get();
    let roster = |numbers: [u64; 3]| {
        pools(numbers.map(|n| member(n, &format!("10.0.0.{}", n + 1), site(8080))).into_iter().collect())
    };
    for (round, numbers) in [[3, 1, 2], [2, 3, 1], [1, 2, 3]].into_iter().enumerate() {
        running.publish(roster(numbers));
        eventually("it is rendered", || match running.counters.renders.get() {
            made if made > renders + round as u64 => Ok(()),
            made => Err(made),
        });
    }
    // A change that is one, to know that all of the above was looked at.
    let text = place.text().unwrap();
    let after = std::fs::metadata(place.target()).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    assert_eq!((running.counters.writes.get(), running.counters.reloads.get(), place.reload.calls()), (1, 1, 1));
    running.publish(some_pools(4));
    running.await_reloads(2);
    assert_ne!(place.text().unwrap(), text);
    place.await_tidy();
}

#[test]
fn a_restart_with_the_same_state_touches_nothing() {
    let place = Scripted::new();
    let running = Running::start(place.config(), some_pools(2));
    running.await_reloads(1);
    drop(running);
    let before = std::fs::metadata(place.target()).unwrap();
    let again = Running::start(place.config(), some_pools(2));
    eventually("it is known to be in use", || match again.report().last_ok {
        Some(_) => Ok(()),
        None => Err(again.report()),
    });
    assert_eq!(std::fs::metadata(place.target()).unwrap().ino(), before.ino());
    assert_eq!((place.check.calls(), place.reload.calls()), (1, 1));
}

#[test]
fn a_restart_does_not_replace_a_good_file_before_it_knows_anything() {
    let place = Scripted::new();
    drop({
        let running = Running::start(place.config(), some_pools(2));
        running.await_reloads(1);
        running
    });
    let text = place.text().unwrap();
    let again = Running::start(place.config(), Pools::default());
    again.publish(Pools::default());
    // Well beyond the time in which a change is applied.
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_millis(600) {
        assert_eq!(place.text().as_ref(), Some(&text));
        std::thread::sleep(Duration::from_millis(20));
    }
    again.publish(some_pools(2));
    eventually("the cluster is known", || again.report().last_ok.map(drop).ok_or_else(|| again.report()));
    assert_eq!((place.text().unwrap(), place.reload.calls()), (text, 1));
}

#[test]
fn a_storm_of_changes_costs_two_reloads_and_ends_with_the_last_state() {
    let place = Scripted::new();
    let running = Running::start(place.config(), some_pools(1));
    running.await_reloads(1);
    // The first reload took a turn: let it come back.
    std::thread::sleep(Duration::from_millis(1100));
    let begun = Instant::now();
    for change in 0..500 {
        running.publish(some_pools(2 + change % 20));
        let next = begun + Duration::from_millis(2) * (change as u32 + 1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let took = begun.elapsed();
    running.publish(some_pools(40));
    let last = render_here(&place, &some_pools(40));
    eventually("the last state", || if place.text().as_ref() == Some(&last) { Ok(()) } else { Err(()) });
    eventually("its reload", || match (place.reload.calls() as u64, running.counters.reloads.get()) {
        (called, counted) if called == counted => Ok(()),
        other => Err(other),
    });
    // Two for a storm of one second; on a machine that is slow just now the storm is longer.
    let allowed = 2 + took.saturating_sub(Duration::from_millis(1050)).as_secs_f64().ceil() as usize;
    assert!(place.reload.calls() - 1 <= allowed, "{} reloads in {took:?}", place.reload.calls() - 1);
}

fn render_here(place: &Scripted, pools: &Pools) -> String {
    Generator::new(place.config(), Arc::default()).unwrap().render(pools).unwrap()
}

// ---- faults ---------------------------------------------------------------------------------------------------------

#[test]
fn a_template_that_does_not_parse_is_refused_before_anything_is_touched() {
    let place = Scripted::new();
    let path = place.folder.path().join("mine.tera");
    for (text, part) in
        [("ok\n{% for x in %}", "line 2"), ("\n\n{{ nonsense.x }}", "line 3"), ("{{ pools", "mine.tera")]
    {
        std::fs::write(&path, text).unwrap();
        let config = Config { template: TemplateSource::File(path.clone()), ..place.config() };
        let error = Generator::new(config, Arc::default()).unwrap_err().to_string();
        assert!(error.contains("mine.tera") && error.contains(part), "{error}");
    }
    let config = Config { template: TemplateSource::File("/nonexistent.tera".into()), ..place.config() };
    let error = Generator::new(config, Arc::default()).unwrap_err().to_string();
    assert!(error.contains("/nonexistent.tera") && error.contains("lb.generate.template"), "{error}");
}

#[test]
fn a_missing_nginx_is_named_with_its_remedy() {
    let place = Scripted::new();
    std::fs::write(place.target(), "old").unwrap();
    let config = Config { check: words(&["/nonexistent/nginx", "-t"]), ..place.config() };
    let generator = Generator::new(config.clone(), Arc::default()).unwrap();
    let error = block_on(generator.check()).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/nginx") && error.contains("apt-get install nginx"), "{error}");
    let running = Running::start(config, some_pools(1));
    running.await_error("apt-get install nginx");
    assert_eq!((place.text().as_deref(), place.reload.calls()), (Some("old"), 0));
}

#[test]
fn what_nginx_refuses_never_stands() {
    let nginx = Nginx::start();
    let template = nginx.folder.path().join("mine.tera");
    std::fs::write(&template, "# new\n{% for p in http %}no_such_directive on;\n{% endfor %}").unwrap();
    let config = nginx.config(TemplateSource::File(template));
    std::fs::write(&config.target, "# old, byte for byte\n").unwrap();
    let before = std::fs::metadata(&config.target).unwrap();
    let target = config.target.clone();
    let running = Running::start(config, some_pools(1));
    let reason = running.await_error("no_such_directive");
    assert!(reason.contains(&format!("{}:2", target.display())), "{reason}");
    let after = std::fs::metadata(&target).unwrap();
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "# old, byte for byte\n");
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    assert_eq!(running.counters.reloads.get(), 0);
    let rejected = std::fs::read_to_string(target.with_file_name(".scrimp.conf.rejected")).unwrap();
    assert!(rejected.starts_with("# new\nno_such_directive"), "{rejected}");
}

#[test]
fn the_default_site_in_the_way_is_explained() {
    let nginx = Nginx::start();
    let listen = free_port();
    let site = format!("server {{ listen {listen} default_server; return 204; }}");
    std::fs::write(nginx.folder.path().join("conf.d/default.conf"), site).unwrap();
    let origin = Origin::http("a", "127.0.0.1:0");
    let all = pools(vec![member(1, "127.0.0.1", vec![web("web", origin.port(), listen, &["a.example"])])]);
    let config = nginx.config(TemplateSource::Nginx);
    let target = config.target.clone();
    let running = Running::start(config, all);
    let reason = running.await_error("a duplicate default server");
    assert!(reason.contains("remove /etc/nginx/sites-enabled/default"), "{reason}");
    assert!(!target.exists(), "there was no file, so there is none");
    // Once it is out of the way, nobody has to tell us.
    std::fs::remove_file(nginx.folder.path().join("conf.d/default.conf")).unwrap();
    await_origins(listen, "a.example", "/", &["a"]);
    eventually("the report is clean", || running.report().error.map_or(Ok(()), Err));
}

#[test]
fn a_reload_that_fails_leaves_the_old_file_and_is_tried_again() {
    let place = Scripted::new();
    let running = Running::start(place.config(), some_pools(1));
    running.await_reloads(1);
    let old = place.text().unwrap();
    place.reload.answer(1, "no way\n");
    running.publish(some_pools(2));
    running.await_error("no way");
    assert_eq!(place.text().unwrap(), old);
    let calls = place.reload.calls();
    eventually("it is tried again by itself", || if place.reload.calls() > calls { Ok(()) } else { Err(()) });
    // While a try is under way, the new file stands; when it has failed, the old one again.
    eventually("the old file is back", || if place.text().as_ref() == Some(&old) { Ok(()) } else { Err(()) });
    place.reload.answer(0, "");
    running.await_reloads(2);
    assert_eq!(place.text().unwrap(), render_here(&place, &some_pools(2)));
    // A change back to what stood all the time is loaded again: after a failed reload nobody knows what runs.
    place.reload.answer(1, "no way\n");
    running.publish(some_pools(1));
    running.await_error("no way");
    place.reload.answer(0, "");
    running.publish(some_pools(2));
    running.await_reloads(3);
    place.await_tidy();
}

#[test]
fn an_nginx_that_does_not_run_loads_the_file_when_it_starts() {
    let mut nginx = Nginx::prepare();
    let origin = Origin::http("a", "127.0.0.1:0");
    let listen = free_port();
    let all = pools(vec![member(1, "127.0.0.1", vec![web("web", origin.port(), listen, &["a.example"])])]);
    let running = Running::start(nginx.config(TemplateSource::Nginx), all);
    running.await_error("systemctl start nginx");
    nginx.launch();
    await_origins(listen, "a.example", "/", &["a"]);
    // And the next attempt finds it.
    eventually("the report is clean", || running.report().error.map_or(Ok(()), Err));
}

#[test]
fn a_reload_that_nginx_swallows_is_noticed() {
    let nginx = Nginx::start();
    let origin = Origin::http("a", "127.0.0.1:0");
    let (good, taken) = (free_port(), TcpListener::bind("0.0.0.0:0").unwrap());
    let offer = |listen| pools(vec![member(1, "127.0.0.1", vec![web("web", origin.port(), listen, &["a.example"])])]);
    let config = nginx.config(TemplateSource::Nginx);
    let target = config.target.clone();
    let running = Running::start(config, offer(good));
    await_origins(good, "a.example", "/", &["a"]);
    running.await_reloads(1);
    let old = std::fs::read(&target).unwrap();
    // `nginx -t` does not mind a taken port, and `nginx -s reload` only sends a signal.
    running.publish(offer(taken.local_addr().unwrap().port()));
    running.await_error("went on with its old configuration");
    assert_eq!(std::fs::read(&target).unwrap(), old);
    assert_eq!(get(good, "a.example", "/").unwrap().origin(), "a");
}

#[test]
fn targets_that_cannot_be_are_refused_with_the_reason() {
    let place = Scripted::new();
    let reason = |target: &Path| {
        let config = Config { target: target.to_owned(), ..place.config() };
        Generator::new(config, Arc::default()).unwrap_err().to_string()
    };
    assert!(reason(&place.folder.path().join("missing/scrimp.conf")).contains("mkdir -p"));
    std::os::unix::fs::symlink("/etc/hostname", place.target()).unwrap();
    assert!(reason(&place.target()).contains("symbolic link"));
    // A folder in which nobody, not even root, can make a file.
    let config = Config { target: "/proc/scrimp.conf".into(), ..place.config() };
    let running = Running::start(config, some_pools(1));
    running.await_error("/proc");
    assert_eq!((place.check.calls(), place.reload.calls()), (0, 0));
}

#[test]
fn a_target_that_becomes_a_link_is_not_followed() {
    let place = Scripted::new();
    let running = Running::start(place.config(), some_pools(1));
    running.await_reloads(1);
    let elsewhere = place.folder.path().join("elsewhere");
    std::fs::rename(place.target(), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, place.target()).unwrap();
    let before = std::fs::read(&elsewhere).unwrap();
    running.publish(some_pools(2));
    running.await_error("symbolic link");
    assert_eq!(std::fs::read(&elsewhere).unwrap(), before);
}

#[test]
fn a_check_that_asks_for_the_candidate_gets_it_before_the_swap() {
    let place = Scripted::new();
    let config = Config {
        template: TemplateSource::NginxStream,
        check: words(&["/bin/sh", "-c", "grep -q 'listen 9999;' \"$0\" && test ! -e \"$1\"", "{candidate}"]).map(
            |mut words| {
                words.push(place.target().display().to_string());
                words
            },
        ),
        ..place.config()
    };
    let offer = |listen| pools(vec![member(1, "10.0.0.1", vec![app("db", Protocol::Tcp, 5432, listen)])]);
    let running = Running::start(config, offer(8888));
    running.await_error("grep");
    assert_eq!((place.text(), place.reload.calls()), (None, 0));
}

// ---- properties -----------------------------------------------------------------------------------------------------

/// A word as a network might bring it: mostly well-formed, sometimes hostile. What the types refuse is dropped.
fn word(pattern: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![
        8 => proptest::string::string_regex(pattern).unwrap(),
        1 => proptest::string::string_regex("[ -~\\n\\r\\t\\\\]{0,12}").unwrap(),
        1 => prop::sample::select(vec![
            "a;}", "default_server", "$host", "x{", "\"", "'", "include /etc/shadow", "~^.*$", "*", "_", "#", "", "%3b",
            "${x}", "\u{2028}", "a.example; return 200", "..", "/../",
        ]).prop_map(str::to_owned),
    ]
}

fn any_app(ports: Vec<u16>) -> impl Strategy<Value = Option<App>> {
    let names =
        (word("[a-z0-9-]{1,6}"), prop::collection::vec(word("(\\*\\.)?[abc](\\.[abc]){0,2}(\\.[a-z]{60})?"), 0..4));
    let policy = prop::option::of(prop::sample::select(vec![
        PolicyName::RoundRobin,
        PolicyName::Random,
        PolicyName::LeastConnections,
        PolicyName::TwoChoices,
        PolicyName::Hash,
    ]));
    let rest = (word("/([ab](/[ab~.-]{1,2}x){0,2}/?)?"), prop::sample::select(Protocol::ALL.to_vec()), policy);
    (names, rest, prop::sample::select(ports), 1..u16::MAX, 1..1000_u16).prop_map(
        |((name, domains), (path, protocol, policy), listen, port, weight)| {
            let mut made = App {
                name: name.parse().ok()?,
                domains: domains.iter().filter_map(|domain| domain.parse().ok()).collect(),
                path: path.parse().ok()?,
                weight: Weight::try_from(weight).ok()?,
                policy,
                ..app("x", protocol, port, listen)
            };
            made.normalize();
            Some(made)
        },
    )
}

fn any_roster(ports: Vec<u16>) -> impl Strategy<Value = Vec<Member>> {
    let states = prop::sample::select(vec![AppState::Ready, AppState::Ready, AppState::Starting, AppState::Draining]);
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(|ip| std::net::IpAddr::from(ip).to_string()),
        any::<[u16; 8]>().prop_map(|ip| std::net::IpAddr::from(ip).to_string()),
    ];
    let apps = prop::collection::vec((any_app(ports), states), 0..6);
    prop::collection::vec((ip, apps, word("[a-z0-9.-]{1,8}")), 0..6).prop_map(|members| {
        let make = |(number, (ip, apps, name)): (usize, (String, Vec<_>, String))| {
            let mut apps: Vec<(App, AppState)> =
                apps.into_iter().filter_map(|(app, state): (Option<App>, AppState)| Some((app?, state))).collect();
            apps.sort();
            apps.dedup_by(|(a, _), (b, _)| a.name == b.name);
            let mut made = member(number as u64, &ip, Vec::new());
            made.name = name.parse().ok().or(made.name);
            made.offer = Some(Arc::new(Offer { apps }));
            made
        };
        members.into_iter().enumerate().map(make).collect()
    })
}

fn environments() -> impl Strategy<Value = Environment> {
    let certificates = prop::sample::select(vec![vec![], vec!["a"], vec!["a.b", "*.c"]]);
    (any::<bool>(), certificates).prop_map(|(ipv6, names)| {
        let certificate = |name: &&str| CertificateNames {
            files: Certificate { chain: "/c.pem".into(), key: "/k.pem".into() },
            names: vec![(*name).to_owned()],
        };
        Environment { ipv6, certificates: names.iter().map(certificate).collect() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_backends_say_only_known_directives_are_written(
        roster in any_roster(vec![80, 443, 1024, 8000]),
        environment in environments(),
    ) {
        let all = pools(roster);
        for (source, stream) in [(TemplateSource::Nginx, false), (TemplateSource::NginxStream, true)] {
            let text = Template::load(&source).unwrap().render(&Model::new(&all, &environment).unwrap()).unwrap();
            let judged = oracle::parse(&text).and_then(|directives| oracle::judge(&directives, stream));
            prop_assert!(judged.is_ok(), "{}\n{text}", judged.unwrap_err());
        }
    }

    #[test]
    fn the_order_of_members_does_not_show(
        (roster, shuffled) in any_roster(vec![80, 8000]).prop_flat_map(|roster| {
            let shuffled = Just(roster.clone()).prop_shuffle();
            (Just(roster), shuffled)
        }),
        environment in environments(),
    ) {
        // Two nodes at one address are a fault of theirs, and which one counts is the roster's order.
        let mut addresses: Vec<_> = roster.iter().map(|member| member.address.ip().to_canonical()).collect();
        addresses.sort();
        addresses.dedup();
        prop_assume!(addresses.len() == roster.len());
        for source in [TemplateSource::Nginx, TemplateSource::NginxStream] {
            let template = Template::load(&source).unwrap();
            let text = |roster| template.render(&Model::new(&pools(roster), &environment).unwrap()).unwrap();
            prop_assert_eq!(text(roster.clone()), text(shuffled.clone()));
        }
    }
}

#[test]
fn nginx_accepts_whatever_is_rendered() {
    let ports: Vec<u16> = (0..4).map(|_| free_port()).collect();
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(roster in any_roster(ports))| {
        // Other ports than these would be opened for a moment: nothing stands on 80 here.
        let mut roster = roster;
        let listen = free_port();
        roster.push(member(99, "192.0.2.99", vec![web("always", 80, listen, &["always.example"])]));
        let all = pools(roster);
        for (source, block) in [
            (TemplateSource::Nginx, scrimp::generate::nginx::Block::Http),
            (TemplateSource::NginxStream, scrimp::generate::nginx::Block::Stream),
        ] {
            let text = render(&source, &all);
            let judged = block_on(scrimp::generate::nginx::judge("nginx", block, &text, Path::new("x.conf")));
            prop_assert!(judged.is_ok(), "{}\n{text}", judged.unwrap_err());
        }
    });
}

#[test]
fn backends_of_one_pool_that_speak_another_protocol_are_left_out_and_named() {
    let over = |protocol| vec![App { protocol, ..web("web", 8080, 8000, &["a.example"]) }];
    let text = render(
        &TemplateSource::Nginx,
        &pools(vec![
            member(1, "10.0.0.1", over(Protocol::Https)),
            member(2, "10.0.0.2", over(Protocol::Http)),
            member(3, "10.0.0.3", over(Protocol::Https)),
        ]),
    );
    assert!(text.contains("proxy_pass https://") && !text.contains("proxy_pass http://"), "{text}");
    assert!(text.contains("# Left out: 10.0.0.2:8080 (node-2) speaks http"), "{text}");
    let directives = oracle::parse(&text).unwrap();
    let upstream = directives.iter().find(|directive| directive.name() == "upstream").unwrap();
    assert_eq!(upstream.children("server").count(), 2);
}

#[test]
fn routes_have_a_bound() {
    let many = |count: usize| {
        let paths = (0..count).map(|at| at_path(web(&format!("p{at}"), 1, 8000, &[]), &format!("/p{at}")));
        let hosts = (0..count).map(|at| at_path(web(&format!("h{at}"), 1, 8000, &[&format!("h{at}.example")]), "/h"));
        pools(vec![member(1, "10.0.0.1", paths.chain(hosts).collect())])
    };
    let environment = Environment::default();
    assert!(Model::new(&many(100), &environment).is_ok());
    let error = Model::new(&many(1500), &environment).unwrap_err().to_string();
    assert!(error.contains("use wildcards"), "{error}");
}

// ---- golden files ---------------------------------------------------------------------------------------------------

/// Compares with a file under `tests/fixtures/generate`; `SCRIMP_BLESS=1` writes it instead.
fn assert_golden(name: &str, text: &str) {
    let path = Path::new("tests/fixtures/generate").join(name);
    if std::env::var_os("SCRIMP_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{} differs; if that is meant, SCRIMP_BLESS=1 writes it anew", path.display());
}

#[test]
fn golden_nothing_at_all() {
    assert_golden("nothing.conf", &render(&TemplateSource::Nginx, &Pools::default()));
}

#[test]
fn golden_a_small_cluster() {
    let mut heavy = web("web", 8080, 80, &["example.com", "www.example.com"]);
    heavy.weight = Weight::try_from(300).unwrap();
    let hashed = App { policy: Some(PolicyName::Hash), ..web("chat", 9000, 8000, &["chat.example.com"]) };
    let all = pools(vec![
        member(1, "10.0.0.1", vec![web("web", 8080, 80, &["example.com", "www.example.com"]), hashed]),
        member(
            2,
            "2001:db8::2",
            vec![heavy, at_path(web("api", 3000, 80, &["example.com", "www.example.com"]), "/api")],
        ),
        draining(member(3, "10.0.0.3", vec![web("blog", 4000, 80, &["*.blog.example"])])),
        member(4, "10.0.0.4", vec![app("rpc", Protocol::H2c, 50051, 8000), app("db", Protocol::Tcp, 5432, 5432)]),
    ]);
    assert_golden("small.conf", &render(&TemplateSource::Nginx, &all));
}

#[test]
fn golden_tls() {
    let all = pools(vec![
        member(1, "10.0.0.1", vec![App { protocol: Protocol::Https, ..web("web", 8443, 443, &["example.com"]) }]),
        member(2, "10.0.0.2", vec![web("shop", 8080, 443, &["shop.example.net"])]),
    ]);
    let certificate = |name: &str| CertificateNames {
        files: Certificate {
            chain: format!("/etc/scrimp/tls/{name}.pem").into(),
            key: format!("/etc/scrimp/tls/{name}.key").into(),
        },
        names: vec![name.to_owned(), format!("*.{name}")],
    };
    let environment =
        Environment { ipv6: true, certificates: vec![certificate("example.com"), certificate("example.net")] };
    let template = Template::load(&TemplateSource::Nginx).unwrap();
    assert_golden("tls.conf", &template.render(&Model::new(&all, &environment).unwrap()).unwrap());
}

#[test]
fn golden_stream() {
    let mut apps = vec![
        app("db", Protocol::Tcp, 5432, 5432),
        app("dns", Protocol::Udp, 5353, 5300),
        app("mail", Protocol::Tls, 465, 4650),
        App { domains: vec!["*.example.com".parse().unwrap()], ..app("vault", Protocol::Tcp, 8200, 8443) },
        App { domains: vec!["example.com".parse().unwrap()], ..app("web", Protocol::Tcp, 8443, 8443) },
        app("rest", Protocol::Tcp, 8444, 8443),
    ];
    apps.sort();
    apps[0].policy = Some(PolicyName::LeastConnections);
    let all = pools(vec![
        member(1, "10.0.0.1", apps.clone()),
        member(2, "fd00::2", apps),
        draining(member(3, "10.0.0.3", vec![app("mq", Protocol::Tcp, 1883, 1883)])),
    ]);
    assert_golden("stream.conf", &render(&TemplateSource::NginxStream, &all));
}
