//! HTTP applications through the proxy: real servers, raw sockets.
#![allow(missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use scrimp::app::AppState;
use scrimp::backend::Load;
use scrimp::member::{MemberState, Reach};
use scrimp::name::Port;
use scrimp::proxy::OnRemoval;
use support::{Bed, BlackHole, Message, Node, Origin, SOON, Wire, http_app, is_ended, nobody, ok, reset, until};

/// A bed with one application for any host.
struct Stage {
    bed: Bed,
    port: Port,
}

impl Stage {
    fn new(backends: &[SocketAddr]) -> Self {
        Self::on(Bed::new(), backends)
    }

    fn on(bed: Bed, backends: &[SocketAddr]) -> Self {
        let port = bed.port();
        let stage = Self { bed, port };
        stage.bed.publish(&stage.nodes(backends));
        stage.bed.until_bound(port);
        stage
    }

    fn nodes(&self, backends: &[SocketAddr]) -> Vec<Node> {
        (1..).zip(backends).map(|(id, at)| Node::new(id, vec![http_app("web", self.port, *at, &[], "/")])).collect()
    }

    fn wire(&self) -> Wire {
        Wire::new(self.bed.connect(self.port))
    }

    /// Sends bytes on a connection of their own and reads one response.
    fn ask(&self, request: impl AsRef<[u8]>) -> Message {
        let mut wire = self.wire();
        wire.send(request);
        wire.response()
    }

    fn get(&self, host: &str, path: &str) -> Message {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";

#[test]
fn requests_go_by_host_and_path() {
    let bed = Bed::new();
    let port = bed.port();
    let origins = ["exact", "wildcard", "any", "api", "deep"].map(Origin::named);
    let [exact, wildcard, any, api, deep] = &origins;
    let apps = vec![
        http_app("exact", port, exact.address, &["www.example.com"], "/"),
        http_app("wildcard", port, wildcard.address, &["*.example.com"], "/"),
        http_app("any", port, any.address, &[], "/"),
        http_app("api", port, api.address, &["www.example.com"], "/api"),
        http_app("deep", port, deep.address, &["www.example.com"], "/api/v2"),
    ];
    bed.publish_and_open(&[Node::new(1, apps)], port);
    let stage = Stage { bed, port };
    for (host, path, name) in [
        ("www.example.com", "/", "exact"),
        ("WWW.Example.COM.:8080", "/x?y", "exact"),
        ("www.example.com", "/api", "api"),
        ("www.example.com", "/api/v1?x", "api"),
        ("www.example.com", "/apix", "exact"),
        ("www.example.com", "/api/v2/x", "deep"),
        ("a.b.example.com", "/api", "wildcard"),
        ("example.com", "/", "any"),
        ("[::1]:80", "/", "any"),
        ("127.0.0.1", "/", "any"),
    ] {
        let response = stage.get(host, path);
        assert_eq!((response.status(), response.text()), (200, name), "{host}{path}");
    }
    let absolute = stage.ask("GET http://www.example.com/api HTTP/1.1\r\nHost: other.example\r\n\r\n");
    assert_eq!(absolute.text(), "api", "the target counts, not the field");
}

#[test]
fn own_answers_say_what_happened_and_nothing_of_the_inside() {
    let bed = Bed::with(|config| config.timeouts.response = Duration::from_millis(200));
    let port = bed.port();
    let silent = Origin::start(|mut stream| while stream.read(&mut [0; 1000]).is_ok_and(|count| count > 0) {});
    let gone = nobody();
    let apps = |name: &str, at| http_app(name, port, at, &[&format!("{name}.example")], "/");
    let nodes = [
        Node::new(1, vec![apps("empty", nobody())]).with_state(AppState::Starting),
        Node::new(2, vec![apps("refused", gone), apps("silent", silent.address)]),
    ];
    bed.publish_and_open(&nodes, port);
    let stage = Stage { bed, port };
    let counters = &stage.bed.counters;
    for (host, status, count) in [
        ("unknown.example", 404, &counters.no_route),
        ("empty.example", 503, &counters.no_backend),
        ("refused.example", 502, &counters.bad_gateway),
        ("silent.example", 504, &counters.gateway_timeout),
    ] {
        let response = stage.get(host, "/");
        assert_eq!(response.status(), status, "{host}");
        assert_eq!(response.field("content-type"), Some("text/plain; charset=utf-8"));
        assert!(response.field("date").is_some());
        assert_eq!(response.field("retry-after"), (status == 503).then_some("1"));
        let text = response.text();
        assert!(text.ends_with('\n') && text.lines().count() == 1 && text.starts_with(&status.to_string()), "{text:?}");
        assert!(!text.contains("127.0.0.1") && !text.contains(&gone.port().to_string()), "{text:?}");
        assert_eq!(count.get(), 1, "{host}");
    }
    assert_eq!((counters.responses[4].get(), counters.responses[5].get()), (1, 3));
}

#[test]
fn our_own_answers_keep_the_connection() {
    let bed = Bed::new();
    let port = bed.port();
    bed.publish_and_open(&[Node::new(1, vec![http_app("web", port, nobody(), &["a.example"], "/")])], port);
    let stage = Stage { bed, port };
    let mut wire = stage.wire();
    for _ in 0..3 {
        wire.send("HEAD / HTTP/1.1\r\nHost: b.example\r\n\r\n");
        assert_eq!(wire.head().unwrap().status(), 404);
        wire.send(GET.replace("a.example", "c.example"));
        assert_eq!(wire.response().status(), 404);
    }
}

#[test]
fn requests_that_make_no_sense_are_refused_and_do_not_pass() {
    let origin = Origin::named("a");
    let stage = Stage::new(&[origin.address]);
    let long = "x".repeat(9000);
    let fields: String = (0..101).map(|i| format!("f{i}: x\r\n")).collect();
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n".to_owned(), 400),
        ("GET x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
        ("GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
        ("GET /x#y HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
        ("GET /\u{fc} HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
        ("GET /\r\n".to_owned(), 400),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".to_owned(), 505),
        (format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "G".repeat(33)), 501),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 405),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 405),
        (format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 414),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}{long}{long}{long}\r\n\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"), 431),
        ("GET / HTTP/1.1\nHost: a\n\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n".to_owned(), 400),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n".to_owned(),
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc".to_owned(), 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc".to_owned(), 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(), 400),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 1\r\n\r\n".to_owned(), 417),
    ] {
        let shown = &request[..request.len().min(100)];
        let mut wire = stage.wire();
        wire.send(&request);
        let response = wire.head().unwrap_or_else(|| panic!("no answer to {shown:?}"));
        assert_eq!(response.status(), status, "{shown:?}");
        if status == 400 {
            wire.body(&mut response.clone());
            assert!(wire.rest().unwrap_or_default().is_empty(), "the connection is closed after {shown:?}");
        }
    }
    assert_eq!(origin.accepted(), 0, "nothing reached the origin");
}

#[test]
fn p_smuggle_a_smuggled_request_never_becomes_one() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let origin = Origin::http(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        Some(ok("a"))
    });
    let stage = Stage::new(&[origin.address]);
    let mut wire = stage.wire();
    wire.send(GET);
    assert_eq!(wire.response().status(), 200);
    wire.send(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 43\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
         GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(wire.response().status(), 400);
    assert_eq!(wire.rest().unwrap_or_default(), b"");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[test]
fn connections_are_kept_on_both_sides() {
    let origin = Origin::named("a");
    let stage = Stage::on(Bed::with(|config| config.workers = 1), &[origin.address]);
    let mut wire = stage.wire();
    for _ in 0..10 {
        wire.send(GET);
        assert_eq!(wire.response().text(), "a");
    }
    assert_eq!((origin.accepted(), stage.bed.counters.connections.get()), (1, 1));
    // Another client takes over the same connection to the backend.
    assert_eq!(stage.get("a", "/").text(), "a");
    assert_eq!(origin.accepted(), 1);
    // Pipelined requests are answered in order.
    wire.send(GET.repeat(5));
    assert!((0..5).all(|_| wire.response().text() == "a"));
}

#[test]
fn a_client_that_wants_to_close_gets_its_close() {
    let origin = Origin::named("a");
    let stage = Stage::new(&[origin.address]);
    for request in ["GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\nHost: a\r\n\r\n"] {
        let mut wire = stage.wire();
        wire.send(request);
        assert_eq!(wire.response().text(), "a");
        assert_eq!(wire.rest().unwrap(), b"");
    }
}

#[test]
fn neighbours_fields_stay_between_neighbours() {
    let mirror = Origin::mirror();
    let stage = Stage::new(&[mirror.address]);
    let response = stage.ask(
        "GET http://a.example:80/x?y HTTP/1.1\r\nHost: a.example:80\r\n\
         Connection: x-secret, keep-alive, host, authorization\r\nKeep-Alive: 1\r\nProxy-Connection: x\r\n\
         Proxy-Authorization: x\r\nTE: trailers, gzip\r\nUpgrade: h2c\r\nX-Secret: 1\r\nAuthorization: Basic x\r\n\
         X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\n\
         Forwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nAccept: a\r\nAccept: b\r\n\r\n",
    );
    let (line, fields) = response.text().split_once('\n').unwrap();
    assert_eq!(line, "GET /x?y HTTP/1.1");
    let mut fields: Vec<&str> = fields.lines().filter(|line| !line.is_empty()).collect();
    fields.sort_unstable();
    let ip = stage.wire().stream.local_addr().unwrap().ip();
    let expected = [
        "accept: a".to_owned(),
        "accept: b".to_owned(),
        "authorization: Basic x".to_owned(),
        "host: a.example:80".to_owned(),
        "te: trailers".to_owned(),
        format!("x-forwarded-for: {ip}"),
        "x-forwarded-host: a.example:80".to_owned(),
        "x-forwarded-proto: http".to_owned(),
    ];
    assert_eq!(fields, expected);
}

#[test]
fn fields_between_the_backend_and_us_do_not_reach_the_client() {
    let origin = Origin::http(|_| {
        Some(
            b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
              Proxy-Authenticate: x\r\nUpgrade: h2c\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nSet-Cookie: a\r\n\
              Set-Cookie: b\r\nServer: s\r\n\r\nok"
                .to_vec(),
        )
    });
    let response = Stage::new(&[origin.address]).get("a", "/");
    assert_eq!(response.line, "HTTP/1.1 200 Fine");
    let mut names: Vec<&str> = response.fields.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "date", "server", "set-cookie", "set-cookie"]);
    assert_eq!(response.field("date"), Some("Mon, 01 Jan 2024 00:00:00 GMT"), "the origin's, once");
}

#[test]
fn bodies_pass_both_ways_in_chunks_and_by_length() {
    let origin = Origin::http(|request| {
        let framing = request.field("transfer-encoding").map_or("length", |_| "chunks");
        let mut response = format!("HTTP/1.1 200 OK\r\nX-Framing: {framing}\r\nTransfer-Encoding: chunked\r\n\r\n");
        for piece in request.body.chunks(7000) {
            response += &format!("{:x}\r\n{}\r\n", piece.len(), std::str::from_utf8(piece).unwrap());
        }
        Some((response + "0\r\n\r\n").into_bytes())
    });
    let stage = Stage::new(&[origin.address]);
    let body = "0123456789".repeat(20_000);
    let mut wire = stage.wire();
    for method in ["POST", "PUT", "DELETE"] {
        wire.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        let response = wire.response();
        assert_eq!((response.field("x-framing"), response.text() == body), (Some("length"), true), "{method}");
        wire.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"));
        for piece in body.as_bytes().chunks(60_000) {
            wire.send(format!("{:X}\r\n", piece.len()));
            wire.send(piece);
            wire.send("\r\n");
        }
        wire.send("0\r\n\r\n");
        let response = wire.response();
        assert_eq!((response.field("x-framing"), response.text() == body), (Some("chunks"), true), "{method}");
    }
}

#[test]
fn p_smuggle_a_lying_chunk_breaks_the_request_off() {
    let (said, heard) = mpsc::channel();
    let origin = Origin::start(move |stream| {
        let mut wire = Wire::new(stream);
        let mut request = wire.head().unwrap();
        said.send(true).unwrap();
        wire.body(&mut request);
        let _ = said.send(!request.is_cut);
    });
    let stage = Stage::new(&[origin.address]);
    let (head, lie) = ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n");
    assert_eq!(stage.ask([head, lie].concat()).status(), 400);
    assert_eq!(origin.accepted(), 0);
    // Found when the request is on its way already.
    let mut wire = stage.wire();
    wire.send(head);
    assert!(heard.recv_timeout(SOON).unwrap());
    wire.send(lie);
    assert!(!heard.recv_timeout(SOON).unwrap(), "no whole request reached the origin");
    let answer = wire.rest().unwrap_or_default();
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn trailers_pass() {
    let origin = Origin::http(|request| {
        let trailer = request.trailers.iter().any(|(name, value)| name == "x-sum" && value == "7");
        Some(
            format!(
                "HTTP/1.1 200 OK\r\nX-Got: {trailer}\r\nTrailer: x-end\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\
                 x-end: 9\r\n\r\n"
            )
            .into_bytes(),
        )
    });
    let stage = Stage::new(&[origin.address]);
    let response = stage.ask(
        "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n",
    );
    assert_eq!(response.field("x-got"), Some("true"));
    assert_eq!(response.trailers, [("x-end".to_owned(), "9".to_owned())]);
}

#[test]
fn responses_without_a_body_have_none() {
    let origin = Origin::http(|request| {
        Some(match request.line.split(' ').nth(1).unwrap() {
            "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
            "/304" => b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 5\r\n\r\n".to_vec(),
            "/chunked" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
            _ => b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n".to_vec(),
        })
    });
    let stage = Stage::new(&[origin.address]);
    let mut wire = stage.wire();
    for _ in 0..2 {
        wire.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = wire.head().unwrap();
        assert_eq!((head.status(), head.field("content-length")), (200, Some("1234")));
        wire.send("HEAD /chunked HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(wire.head().unwrap().status(), 200);
        wire.send("GET /204 HTTP/1.1\r\nHost: a\r\n\r\n");
        let none = wire.response();
        assert_eq!((none.status(), none.field("content-length")), (204, None));
        wire.send("GET /304 HTTP/1.1\r\nHost: a\r\n\r\n");
        let same = wire.response();
        assert_eq!((same.status(), same.field("etag")), (304, Some("x")));
    }
    wire.send("OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(wire.head().unwrap().status(), 200);
}

/// An origin that reads a request's head, says `first`, and answers with the body if it then gets one.
fn asking(first: &'static str) -> Origin {
    Origin::start(move |stream| {
        let mut wire = Wire::new(stream);
        let Some(mut request) = wire.head() else { return };
        let expects = request.field("expect").unwrap_or("nothing").to_owned();
        wire.send(first);
        wire.body(&mut request);
        if !request.is_cut {
            wire.send(ok(&format!("{expects}: {}", request.text())));
        }
    })
}

#[test]
fn p_expect_a_body_is_asked_for_by_the_backend() {
    const ASK: &str = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 5\r\n\r\n";
    let origin = asking("HTTP/1.1 100 Continue\r\n\r\n");
    let stage = Stage::new(&[origin.address]);
    let mut wire = stage.wire();
    wire.send(ASK);
    assert_eq!(wire.head().unwrap().status(), 100);
    wire.send("hello");
    assert_eq!(wire.response().text(), "100-continue: hello");
    // A client that does not wait is answered all the same, and an older one is not asked.
    assert_eq!(wire_of(&stage, &[ASK, "hello"].concat(), 2), [100, 200]);
    assert_eq!(wire_of(&stage, &[&ASK.replace("/1.1", "/1.0"), "hello"].concat(), 1), [200]);
    // Nobody asks for it but the backend.
    let silent = asking("");
    let stage = Stage::new(&[silent.address]);
    let mut wire = stage.wire();
    wire.send(ASK);
    until("the origin has it", || silent.accepted() == 1);
    thread::sleep(Duration::from_millis(50));
    assert!(!is_readable(&wire));
    wire.send("hello");
    assert_eq!(wire.response().text(), "100-continue: hello");
    // It may not want it at all: then what comes next on this connection is not sure.
    let unwilling = asking("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n");
    let stage = Stage::new(&[unwilling.address]);
    let mut wire = stage.wire();
    wire.send(ASK);
    let response = wire.response();
    assert_eq!((response.status(), response.field("connection")), (417, Some("close")));
    assert_eq!(wire.rest().unwrap(), b"");
    // Where nobody would take it, it is not asked for.
    let refused = Stage::new(&[nobody()]);
    assert_eq!(refused.ask(ASK).status(), 502);
}

/// The statuses that `request` gets on a connection of its own.
fn wire_of(stage: &Stage, request: &str, count: usize) -> Vec<u16> {
    let mut wire = stage.wire();
    wire.send(request);
    (0..count).map(|_| wire.response().status()).collect()
}

#[test]
fn interim_responses_pass_in_their_order() {
    let origin = Origin::http(|request| {
        let hints =
            "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 9\r\n\r\n";
        let hints = if request.line.contains("many") { hints.repeat(9) } else { hints.to_owned() };
        Some([hints.into_bytes(), ok("done")].concat())
    });
    let stage = Stage::on(Bed::with(|config| config.workers = 1), &[origin.address]);
    let mut wire = stage.wire();
    for _ in 0..2 {
        wire.send(GET);
        let heads = [wire.head().unwrap(), wire.head().unwrap()];
        assert_eq!(heads.each_ref().map(Message::status), [102, 103]);
        assert_eq!((heads[1].field("link"), heads[1].field("content-length")), (Some("</a>"), None));
        assert_eq!(wire.response().text(), "done");
    }
    assert_eq!(origin.accepted(), 1);
    // A client of HTTP/1.0 does not know them.
    assert_eq!(stage.ask(GET.replace("/1.1", "/1.0")).text(), "done");
    // Nor does anybody wait for the end of a row that has none.
    let mut wire = stage.wire();
    wire.send(GET.replace("/ ", "/many "));
    let end = std::iter::from_fn(|| wire.head()).map(|head| head.status()).find(|status| *status >= 200);
    assert_eq!(end, Some(502));
}

#[test]
fn an_answer_that_comes_early_ends_both_connections() {
    let origin = Origin::start(|stream| {
        let mut wire = Wire::new(stream);
        wire.head();
        wire.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig");
        let _ = wire.rest();
    });
    let stage = Stage::on(Bed::with(|config| config.workers = 1), &[origin.address]);
    for framing in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        let mut wire = stage.wire();
        wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n5\r\nhello\r\n"));
        let response = wire.response();
        assert_eq!((response.status(), response.text(), response.field("connection")), (413, "big", Some("close")));
        assert_eq!(wire.rest().unwrap(), b"", "it ends, and is not reset");
    }
    assert_eq!(stage.get("a", "/").status(), 413);
    assert_eq!(origin.accepted(), 3, "no connection was used again");
}

#[test]
fn bytes_behind_a_response_without_a_body_are_nobodys() {
    let origin = Origin::http(|request| {
        let status = if request.line.contains("/204") { "204 No Content" } else { "200 OK" };
        let length = if request.line.contains("/204") { "" } else { "Content-Length: 6\r\n" };
        Some(format!("HTTP/1.1 {status}\r\n{length}\r\npoison").into_bytes())
    });
    let stage = Stage::on(Bed::with(|config| config.workers = 1), &[origin.address]);
    let mut wire = stage.wire();
    for round in 1..4 {
        wire.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = wire.head().unwrap();
        assert_eq!((head.status(), head.field("content-length")), (200, Some("6")));
        wire.send("GET /204 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(wire.response().status(), 204);
        assert_eq!(origin.accepted(), 2 * round, "such a connection is not used again");
    }
}

#[test]
fn what_a_backend_says_unasked_reaches_nobody() {
    let origin = Origin::start(|stream| {
        let mut wire = Wire::new(stream);
        if wire.request().is_some() {
            wire.send(ok("asked"));
            // Not within the same read.
            thread::sleep(Duration::from_millis(30));
            let _ = wire.stream.write_all(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n");
            let _ = wire.rest();
        }
    });
    let stage = Stage::on(Bed::with(|config| config.workers = 1), &[origin.address]);
    let mut wire = stage.wire();
    for _ in 0..3 {
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(wire.response().text(), "asked");
        thread::sleep(Duration::from_millis(60));
    }
    assert_eq!(origin.accepted(), 3);
}

#[test]
fn only_trailers_that_mean_no_harm_pass() {
    let origin = Origin::http(|request| {
        let names: Vec<&str> = request.trailers.iter().map(|(name, _)| name.as_str()).collect();
        Some(
            format!(
                "HTTP/1.1 200 OK\r\nX-Got: {}\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0;c\r\n\
                 Content-Length: 7\r\ngrpc-status: 0\r\nSet-Cookie: x\r\n\r\n",
                names.join(" ")
            )
            .into_bytes(),
        )
    });
    let stage = Stage::new(&[origin.address]);
    let mut wire = stage.wire();
    for _ in 0..2 {
        wire.send(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x=\"y\"\r\nhi\r\n0\r\n\
             X-Sum: 7\r\nHost: b\r\nAuthorization: x\r\nX-Forwarded-For: y\r\nContent-Length: 3\r\n\r\n",
        );
        let response = wire.response();
        assert_eq!((response.field("x-got"), response.text()), (Some("x-sum"), "ok"));
        assert_eq!(response.trailers, [("grpc-status".to_owned(), "0".to_owned())]);
    }
    // HTTP/1.0 knows neither chunks nor trailers.
    let response = stage.ask(GET.replace("/1.1", "/1.0"));
    assert_eq!((response.text(), response.is_cut), ("ok", false));
}

#[test]
fn an_older_client_keeps_its_connection_if_it_asks_for_that() {
    let origin = Origin::named("a");
    let stage = Stage::new(&[origin.address]);
    let mut wire = stage.wire();
    for _ in 0..3 {
        wire.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
        let response = wire.response();
        assert_eq!((response.text(), response.field("connection")), ("a", Some("keep-alive")));
    }
}

#[test]
fn an_answer_of_ours_to_a_body_keeps_the_connection_only_if_the_body_is_there() {
    let bed = Bed::new();
    let port = bed.port();
    bed.publish_and_open(&[Node::new(1, vec![http_app("web", port, nobody(), &["a.example"], "/")])], port);
    let stage = Stage { bed, port };
    let mut wire = stage.wire();
    for body in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        wire.send(format!("POST / HTTP/1.1\r\nHost: b\r\n{body}"));
        let response = wire.response();
        assert_eq!((response.status(), response.field("connection")), (404, None), "{body:?}");
    }
    wire.send("POST / HTTP/1.1\r\nHost: b\r\nContent-Length: 43\r\n\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let response = wire.response();
    assert_eq!((response.status(), response.field("connection")), (404, Some("close")));
    assert_eq!(wire.rest().unwrap(), b"");
}

#[test]
fn p_bighdr_large_heads_pass_and_larger_ones_do_not() {
    let origin = Origin::http(|request| {
        let got = request.field("x").map_or(0, str::len);
        let size: usize = request.line.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
        Some(format!("HTTP/1.1 200 OK\r\nX-Got: {got}\r\nY: {}\r\nContent-Length: 0\r\n\r\n", "y".repeat(size)).into())
    });
    let stage = Stage::new(&[origin.address]);
    let mut wire = stage.wire();
    for (sent, answered) in [(30_000, 10), (10, 60_000), (16_300, 16_300), (16_384, 16_384)] {
        wire.send(format!("GET /{answered} HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(sent)));
        let response = wire.response();
        assert_eq!(response.field("x-got"), Some(sent.to_string().as_str()));
        assert_eq!(response.field("y").map(str::len), Some(answered));
    }
    assert_eq!(stage.get("a", "/70000").status(), 502);
}

#[test]
fn a_slow_reader_stalls_the_origin() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let origin = Origin::start(move |stream| {
        let mut wire = Wire::new(stream);
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while wire.stream.write_all(&[0; 65536]).is_ok() {
            count.fetch_add(65536, Ordering::SeqCst);
        }
    });
    let stage = Stage::new(&[origin.address]);
    let mut wire = stage.wire();
    wire.send(GET);
    assert_eq!(wire.head().unwrap().status(), 200);
    let (mut last, mut since) = (0, Instant::now());
    until("the origin stalls", || {
        let now = sent.load(Ordering::SeqCst);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(500)
    });
    // Two pairs of kernel buffers at their largest (4 + 6 MiB each), and little of ours.
    assert!(last < 24 * 1024 * 1024, "{last} bytes left the origin");
    // And it goes on when the reader does.
    wire.read_exactly(50_000_000);
}

#[test]
fn a_slow_backend_stalls_the_client() {
    let (go, may_go) = mpsc::channel::<()>();
    let may_go = std::sync::Mutex::new(may_go);
    let origin = Origin::start(move |stream| {
        let mut wire = Wire::new(stream);
        let mut request = wire.head().unwrap();
        may_go.lock().unwrap().recv().unwrap();
        wire.body(&mut request);
        wire.send(ok(&request.body.len().to_string()));
    });
    let stage = Stage::new(&[origin.address]);
    let mut wire = stage.wire();
    let size = 100_000_000;
    wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"));
    wire.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sent = 0;
    while let Ok(count) = wire.stream.write(&[0; 65536]) {
        sent += count;
        assert!(sent < 24 * 1024 * 1024, "{sent} bytes were taken of the client");
    }
    go.send(()).unwrap();
    wire.stream.set_write_timeout(Some(SOON)).unwrap();
    while sent < size {
        sent += wire.stream.write(&[0; 65536][..(size - sent).min(65536)]).unwrap();
    }
    assert_eq!(wire.response().text(), size.to_string());
}

#[test]
fn a_response_that_breaks_off_breaks_off_for_the_client() {
    let origin = Origin::start(|stream| {
        let mut wire = Wire::new(stream);
        let request = wire.request().unwrap();
        let framing = if request.line.contains("length") { "Content-Length: 10" } else { "Transfer-Encoding: chunked" };
        wire.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"));
        wire.send(if request.line.contains("length") { "half!" } else { "5\r\nhalf!\r\n" });
        if request.line.contains("reset") {
            // Seen by the client first, since a reset overtakes.
            let _ = wire.stream.read(&mut [0]);
            reset(wire.stream);
        }
    });
    let stage = Stage::new(&[origin.address]);
    for path in ["/length", "/chunked"] {
        let response = stage.get("a", path);
        assert_eq!((response.status(), response.is_cut), (200, true), "{path}");
        assert_eq!(response.text(), "half!", "what came is passed on");
    }
    // For HTTP/1.0 the end of the connection is the end of the body: it has to be a reset.
    let mut wire = stage.wire();
    wire.send("GET /chunked HTTP/1.0\r\nHost: a\r\n\r\n");
    let mut response = wire.head().unwrap();
    wire.body(&mut response);
    assert!(response.is_cut);
    assert_eq!(stage.bed.counters.broken.get(), 3);
}

#[test]
fn a_response_up_to_the_end_of_the_connection_is_whole() {
    let origin = Origin::start(|stream| {
        let mut wire = Wire::new(stream);
        wire.request();
        wire.send("HTTP/1.0 200 OK\r\n\r\nto the end");
    });
    let stage = Stage::new(&[origin.address]);
    let response = stage.get("a", "/");
    assert_eq!((response.text(), response.is_cut), ("to the end", false));
    let mut wire = stage.wire();
    wire.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    let response = wire.response();
    assert_eq!((response.text(), response.is_cut), ("to the end", false));
}

#[test]
fn a_backend_that_says_nonsense_is_a_502() {
    for nonsense in [
        "hello\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA b\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
    ] {
        let origin = Origin::http(move |_| Some(nonsense.as_bytes().to_vec()));
        let response = Stage::new(&[origin.address]).ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(response.status(), 502, "{nonsense:?}");
    }
}

#[test]
fn what_a_backend_says_too_much_reaches_nobody() {
    let origin = Origin::http(|_| Some([ok("one"), ok("poison")].concat()));
    let stage = Stage::on(Bed::with(|config| config.workers = 1), &[origin.address]);
    let mut wire = stage.wire();
    for _ in 0..5 {
        wire.send(GET);
        assert_eq!(wire.response().text(), "one");
        assert_eq!(stage.get("b", "/").text(), "one");
    }
}

#[test]
fn p_refused_moves_on_whatever_the_method() {
    let (a, b) = (nobody(), nobody());
    let good = Origin::mirror();
    let stage = Stage::new(&[a, b, good.address]);
    for _ in 0..9 {
        let response = stage.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(response.status(), 200);
        assert!(response.text().ends_with("\nhello"));
    }
    assert!(stage.bed.counters.retries.get() >= 9);
}

#[test]
fn p_connto_a_black_holed_backend_delays_no_other_request() {
    let hole = BlackHole::new();
    let good = Origin::named("g");
    let bed = Bed::with(|config| {
        config.workers = 1;
        config.timeouts.connect = Duration::from_secs(2);
    });
    let stage = Arc::new(Stage::on(bed, &[hole.address, good.address]));
    let start = Instant::now();
    let waits: Vec<thread::JoinHandle<Duration>> = (0..10)
        .map(|_| {
            let stage = Arc::clone(&stage);
            thread::spawn(move || {
                assert_eq!(stage.get("a", "/").text(), "g");
                start.elapsed()
            })
        })
        .collect();
    let waits: Vec<Duration> = waits.into_iter().map(|wait| wait.join().unwrap()).collect();
    assert_eq!(waits.iter().filter(|wait| **wait < Duration::from_secs(1)).count(), 5, "{waits:?}");
}

/// An origin that reads a request and ends without a word, and counts how often.
fn dying() -> (Origin, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let origin = Origin::http(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        None
    });
    (origin, seen)
}

#[test]
fn a_request_is_repeated_only_if_that_is_harmless() {
    let good = Origin::named("good");
    let (bad, seen) = dying();
    let stage = Stage::new(&[bad.address, good.address]);
    let served = |request: &str| (0..4).map(|_| stage.ask(request).status()).filter(|status| *status == 200).count();
    for method in ["GET", "DELETE", "OPTIONS"] {
        assert_eq!(served(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")), 4, "{method} goes to the other one");
    }
    let before = seen.load(Ordering::SeqCst);
    assert!(before > 0, "the one that dies had its share");
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        "PATCH / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert_eq!(served(request), 2, "{request:?} is not sent twice");
    }
    assert_eq!(seen.load(Ordering::SeqCst), before + 8);
}

#[test]
fn a_request_is_tried_on_three_backends_at_most() {
    let dying = [dying(), dying(), dying(), dying(), dying()];
    let addresses: Vec<SocketAddr> = dying.iter().map(|(origin, _)| origin.address).collect();
    assert_eq!(Stage::new(&addresses).get("a", "/").status(), 502);
    assert_eq!(dying.iter().map(|(_, seen)| seen.load(Ordering::SeqCst)).sum::<usize>(), 3);
}

#[test]
fn a_kept_connection_that_was_closed_in_the_meantime_costs_no_request() {
    // It answers once and closes, without saying so.
    let closed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&closed);
    let origin = Origin::start(move |stream| {
        let mut wire = Wire::new(stream);
        if wire.request().is_some() {
            wire.send(ok("a"));
            drop(wire);
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let stage = Stage::on(Bed::with(|config| config.workers = 1), &[origin.address]);
    let mut wire = stage.wire();
    for round in 1..=20 {
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(wire.response().text(), "a");
        until("the origin has closed", || closed.load(Ordering::SeqCst) == round);
    }
}

#[test]
fn p_ws_passes_byte_for_byte() {
    let origin = Origin::start(|stream| {
        let mut wire = Wire::new(stream);
        let request = wire.request().unwrap();
        assert_eq!((request.field("upgrade"), request.field("connection")), (Some("websocket"), Some("upgrade")));
        assert_eq!(request.field("sec-websocket-key"), Some("x"));
        wire.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX: y\r\n\r\nfirst");
        // What the client sent right behind its request counts too.
        let mut bytes = [0; 65536];
        while let Ok(count @ 1..) = wire.read_some(&mut bytes) {
            wire.send(&bytes[..count]);
        }
        let _ = wire.stream.shutdown(Shutdown::Write);
    });
    let stage = Stage::new(&[origin.address]);
    let pools = stage.bed.publish(&stage.nodes(&[origin.address]));
    let active = || pools.loads.values().map(|load| load.active.load(Ordering::SeqCst)).sum::<u32>();
    let mut wire = stage.wire();
    wire.send(
        "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: x\r\n\r\nearly",
    );
    let head = wire.head().unwrap();
    assert_eq!(head.status(), 101);
    assert_eq!((head.field("upgrade"), head.field("x")), (Some("websocket"), Some("y")));
    assert!(head.field("connection").unwrap().eq_ignore_ascii_case("upgrade"));
    assert_eq!(wire.read_exactly(10), b"firstearly");
    assert_eq!(active(), 1, "it counts as long as it is open");
    let sent: Vec<u8> = (0..2_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut writer, bytes) = (wire.stream.try_clone().unwrap(), sent.clone());
    let writing = thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    assert!(wire.rest().unwrap() == sent);
    writing.join().unwrap();
    until("it is over", || active() == 0);
    assert_eq!(stage.bed.counters.responses[1].get(), 1);
}

/// An origin that upgrades everybody, asked or not, and echoes.
fn upgrading() -> Origin {
    Origin::start(|stream| {
        let mut wire = Wire::new(stream);
        wire.request();
        wire.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n");
        support::echo(&wire.stream);
    })
}

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";

/// A tunnel that was just opened, through a proxy for which HTTP is over soon.
fn tunnel(origin: &Origin, tcp_idle: Duration) -> (Stage, Wire) {
    let bed = Bed::with(|config| {
        config.timeouts.first_byte = HTTP_IDLE;
        config.timeouts.header = HTTP_IDLE;
        config.timeouts.body_progress = HTTP_IDLE;
        config.timeouts.idle = HTTP_IDLE;
        config.timeouts.response = HTTP_IDLE;
        config.timeouts.tcp_idle = tcp_idle;
    });
    let stage = Stage::on(bed, &[origin.address]);
    let mut wire = stage.wire();
    wire.send(UPGRADE);
    assert_eq!(wire.head().unwrap().status(), 101);
    (stage, wire)
}

/// How long anything of HTTP's may stand still.
const HTTP_IDLE: Duration = Duration::from_millis(200);

#[test]
fn p_ws_a_silent_tunnel_outlives_what_ends_silent_http() {
    let origin = upgrading();
    let (stage, mut wire) = tunnel(&origin, Duration::from_secs(60));
    // A connection that waits for its next request is closed meanwhile, and a body that stands still is given up, twice.
    for _ in 0..2 {
        let mut kept = stage.wire();
        kept.send(GET);
        assert_eq!(kept.response().field("connection"), None);
        assert_eq!(kept.rest().unwrap(), b"");
        let mut stalled = stage.wire();
        stalled.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel");
        assert_eq!(stalled.response().status(), 408);
        assert!(!is_ended(&wire.stream));
    }
    wire.send("hello");
    assert_eq!(wire.read_exactly(5), b"hello");
}

#[test]
fn p_ws_a_tunnel_without_a_byte_ends_when_a_tcp_connection_would() {
    const TCP_IDLE: Duration = Duration::from_millis(600);
    let origin = upgrading();
    let (stage, mut wire) = tunnel(&origin, TCP_IDLE);
    // As long as it is used it stays, for longer than the limit.
    let opened = Instant::now();
    let mut used = opened;
    while opened.elapsed() < TCP_IDLE * 2 {
        used = Instant::now();
        wire.send("hello");
        assert_eq!(wire.read_exactly(5), b"hello");
        thread::sleep(TCP_IDLE / 10);
    }
    until("it ends", || is_ended(&wire.stream));
    assert!(used.elapsed() >= TCP_IDLE, "it has ended after {:?} of silence", used.elapsed());
    let counters = &stage.bed.counters;
    until("it is over", || counters.connections.get() == counters.connections_closed.get());
}

#[test]
fn an_upgrade_that_nobody_asked_for_is_a_502() {
    let origin = upgrading();
    let stage = Stage::new(&[origin.address]);
    assert_eq!(stage.get("a", "/").status(), 502);
    assert_eq!(stage.ask(UPGRADE.replace("Upgrade: x", "Upgrade: h2c")).status(), 502);
    assert_eq!(stage.ask(UPGRADE).status(), 101);
}

#[test]
fn an_upgrade_that_is_declined_is_an_ordinary_answer() {
    let origin = Origin::named("no");
    let stage = Stage::new(&[origin.address]);
    let mut wire = stage.wire();
    wire.send(UPGRADE);
    assert_eq!(wire.response().text(), "no");
    wire.send(GET);
    assert_eq!(wire.response().text(), "no");
    wire.send(UPGRADE.replace("Connection: Upgrade", "Connection: Upgrade, close"));
    assert_eq!(wire.response().text(), "no");
    assert_eq!(wire.rest().unwrap(), b"");
}

#[test]
fn tunnels_of_a_removed_backend_end_if_they_are_to() {
    for on_removal in [OnRemoval::Kill, OnRemoval::Drain] {
        let origin = upgrading();
        let stage = Stage::on(Bed::with(|config| config.on_removal = on_removal), &[origin.address]);
        let mut wire = stage.wire();
        wire.send(UPGRADE);
        assert_eq!(wire.head().unwrap().status(), 101);
        stage.bed.publish(&[]);
        match on_removal {
            OnRemoval::Kill => {
                until("the tunnel ends", || is_ended(&wire.stream));
                assert_eq!(stage.bed.counters.killed.get(), 1);
            }
            OnRemoval::Drain => {
                until("the listen port closes", || stage.bed.report(stage.port).is_none());
                wire.send("hello");
                assert_eq!(wire.read_exactly(5), b"hello");
            }
        }
    }
}

#[test]
fn responses_of_a_removed_backend_end_if_they_are_to() {
    for on_removal in [OnRemoval::Kill, OnRemoval::Drain] {
        let (go, may_go) = mpsc::channel::<()>();
        let may_go = std::sync::Mutex::new(may_go);
        let origin = Origin::start(move |stream| {
            let mut wire = Wire::new(stream);
            wire.request();
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
            let _ = may_go.lock().unwrap().recv_timeout(Duration::from_secs(1));
            let _ = wire.stream.write_all(b"rest");
        });
        let stage = Stage::on(Bed::with(|config| config.on_removal = on_removal), &[origin.address]);
        let mut wire = stage.wire();
        wire.send(GET);
        let mut response = wire.head().unwrap();
        assert_eq!(wire.read_exactly(4), b"half");
        stage.bed.publish(&[]);
        if on_removal == OnRemoval::Kill {
            until("the connection ends", || is_ended(&wire.stream));
            assert_eq!(stage.bed.counters.killed.get(), 1);
        } else {
            until("the listen port closes", || stage.bed.report(stage.port).is_none());
            go.send(()).unwrap();
            response.fields = vec![("content-length".into(), "4".into())];
            wire.body(&mut response);
            assert_eq!((response.text(), response.is_cut), ("rest", false));
        }
    }
}

/// A server that reads requests and answers each only when it is told to, with its name.
struct Mute {
    origin: Origin,
    asked: Arc<AtomicUsize>,
    answer: Arc<AtomicUsize>,
}

impl Mute {
    fn new(name: &'static str) -> Self {
        let (asked, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, may) = (Arc::clone(&asked), Arc::clone(&answer));
        let origin = Origin::http(move |_| {
            let number = count.fetch_add(1, Ordering::SeqCst);
            let start = Instant::now();
            while may.load(Ordering::SeqCst) <= number && start.elapsed() < SOON * 3 {
                thread::sleep(Duration::from_millis(2));
            }
            Some(ok(name))
        });
        Self { origin, asked, answer }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn answer_all(&self) {
        self.answer.store(usize::MAX, Ordering::SeqCst);
    }
}

const POST: &str = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi";

impl Stage {
    /// Sends `request` on connections of their own until `mute` has one more; the one that it has.
    fn ask_mute(&self, mute: &Mute, request: &str) -> Wire {
        let before = mute.asked();
        loop {
            let mut wire = self.wire();
            wire.send(request);
            let mut answered = false;
            until("somebody has it", || {
                answered = is_readable(&wire);
                answered || mute.asked() > before
            });
            if !answered {
                return wire;
            }
        }
    }

    fn doubted(&self, backends: &[SocketAddr], count: usize, state: MemberState, reach: Reach) {
        let mut nodes = self.nodes(backends);
        for node in &mut nodes[..count] {
            *node = node.clone().seen(state, reach);
        }
        self.bed.publish(&nodes);
    }
}

fn is_readable(wire: &Wire) -> bool {
    wire.stream.set_nonblocking(true).unwrap();
    let is_readable = wire.stream.peek(&mut [0]).is_ok();
    wire.stream.set_nonblocking(false).unwrap();
    is_readable
}

#[test]
fn under_suspicion_a_request_that_may_be_sent_twice_moves_and_any_other_waits() {
    let (mute, good) = (Mute::new("mute"), Origin::named("good"));
    let both = [mute.origin.address, good.address];
    let stage = Stage::on(Bed::with(|config| config.on_removal = OnRemoval::Kill), &both);
    let (mut get, mut post) = (stage.ask_mute(&mute, GET), stage.ask_mute(&mute, POST));
    stage.doubted(&both, 1, MemberState::Alive, Reach::Silent);
    assert_eq!(get.response().text(), "good");
    for _ in 0..5 {
        assert_eq!(stage.get("a.example", "/").text(), "good");
    }
    assert!(!is_readable(&post), "it may not be sent twice, and is not cut");
    mute.answer_all();
    assert_eq!(post.response().text(), "mute");
    assert_eq!((mute.asked(), stage.bed.counters.killed.get()), (2, 0));
    // Back in rotation, and under suspicion once more: it is as it was the first time.
    let mute = Mute::new("mute");
    let both = [mute.origin.address, good.address];
    for _ in 0..3 {
        stage.doubted(&both, 0, MemberState::Alive, Reach::Answers);
        let mut get = stage.ask_mute(&mute, GET);
        stage.doubted(&both, 1, MemberState::Suspect, Reach::Silent);
        assert_eq!(get.response().text(), "good");
    }
}

#[test]
fn when_a_rack_falls_under_suspicion_its_requests_go_straight_to_who_is_left() {
    let (mutes, good): (Vec<Mute>, _) = ((0..6).map(|_| Mute::new("mute")).collect(), Origin::named("good"));
    let mut all: Vec<SocketAddr> = mutes.iter().map(|mute| mute.origin.address).collect();
    all.push(good.address);
    let stage = Stage::new(&all);
    let asked = || mutes.iter().map(Mute::asked).sum::<usize>();
    let mut wires = Vec::new();
    until("each has some", || {
        let mut wire = stage.wire();
        wire.send(GET);
        wires.push(wire);
        mutes.iter().all(|mute| mute.asked() > 0)
    });
    let answered = |wires: &[Wire]| wires.iter().filter(|wire| is_readable(wire)).count();
    until("each request is somewhere", || asked() + answered(&wires) == wires.len());
    let before = asked();
    stage.doubted(&all, 6, MemberState::Alive, Reach::Silent);
    for wire in &mut wires {
        assert_eq!(wire.response().text(), "good");
    }
    assert_eq!((asked(), stage.bed.counters.retries.get()), (before, before as u64));
}

#[test]
fn a_request_on_its_way_to_a_suspected_backend_does_not_wait_for_the_connect() {
    let (hole, good) = (BlackHole::new(), Origin::named("good"));
    let both = [hole.address, good.address];
    let stage = Stage::on(Bed::with(|config| config.timeouts.connect = SOON * 6), &both);
    let mut wires: Vec<Wire> = (0..2)
        .map(|_| {
            let mut wire = stage.wire();
            wire.send(GET);
            wire
        })
        .collect();
    until("one is answered", || wires.iter().any(is_readable));
    stage.doubted(&both, 1, MemberState::Alive, Reach::Silent);
    for wire in &mut wires {
        assert_eq!(wire.response().text(), "good");
    }
}

#[test]
fn with_nobody_else_in_rotation_requests_wait_until_somebody_is() {
    let (one, two) = (Mute::new("one"), Mute::new("two"));
    let both = [one.origin.address, two.origin.address];
    let stage = Stage::new(&both);
    let ask = || {
        let mut wire = stage.wire();
        wire.send(GET);
        wire
    };
    let mut wires = vec![ask(), ask()];
    until("each has one", || (one.asked(), two.asked()) == (1, 1));
    stage.doubted(&both, 2, MemberState::Alive, Reach::Silent);
    // They stay as a last resort: what comes now is sent to them too.
    until("each has one more", || {
        wires.push(ask());
        one.asked() > 1 && two.asked() > 1
    });
    until("each request is somewhere", || one.asked() + two.asked() == wires.len());
    assert!(!wires.iter().any(is_readable), "nobody has answered");
    // One of them answers after all.
    let at_two = two.asked();
    two.answer_all();
    until("those that it has are answered", || wires.iter().filter(|wire| is_readable(wire)).count() == at_two);
    wires.retain_mut(|wire| !is_readable(wire) || wire.response().text() != "two");
    assert_eq!(wires.len(), one.asked(), "nobody moves from one that is suspected to another");
    assert_eq!(two.asked(), at_two);
    // It is back in rotation: now it is the better choice for the others too.
    let mut nodes = stage.nodes(&both);
    nodes[0] = nodes[0].clone().seen(MemberState::Alive, Reach::Silent);
    stage.bed.publish(&nodes);
    for wire in &mut wires {
        assert_eq!(wire.response().text(), "two");
    }
}

#[test]
fn a_last_resort_that_is_down_is_asked_and_serves_again_when_it_is_back() {
    for on_removal in [OnRemoval::Kill, OnRemoval::Drain] {
        let mute = Mute::new("mute");
        let at = [mute.origin.address];
        let stage = Stage::on(Bed::with(|config| config.on_removal = on_removal), &at);
        let mut get = stage.ask_mute(&mute, GET);
        stage.doubted(&at, 1, MemberState::Down, Reach::Silent);
        // What it still owes will hardly come, and nobody else can be asked.
        assert_eq!(get.response().status(), 502, "{on_removal:?}");
        // What comes now is asked there all the same, and is not cut by the next roster.
        let mut late = stage.ask_mute(&mute, POST);
        stage.doubted(&at, 1, MemberState::Down, Reach::Unknown);
        stage.doubted(&at, 1, MemberState::Alive, Reach::Answers);
        mute.answer_all();
        assert_eq!(late.response().text(), "mute", "{on_removal:?}");
        assert_eq!(stage.get("a.example", "/").text(), "mute");
        assert_eq!(stage.bed.counters.no_backend.get(), 0);
    }
    // Where nobody listens any more, that is what the client is told.
    let gone = [nobody()];
    let stage = Stage::new(&gone);
    stage.doubted(&gone, 1, MemberState::Down, Reach::Silent);
    assert_eq!(stage.get("a.example", "/").status(), 502);
}

#[test]
fn requests_of_a_node_that_goes_down_move_whatever_is_cut() {
    for on_removal in [OnRemoval::Kill, OnRemoval::Drain] {
        let (mute, good) = (Mute::new("mute"), Origin::named("good"));
        let both = [mute.origin.address, good.address];
        let stage = Stage::on(Bed::with(|config| config.on_removal = on_removal), &both);
        let (mut get, mut post) = (stage.ask_mute(&mute, GET), stage.ask_mute(&mute, POST));
        stage.doubted(&both, 1, MemberState::Down, Reach::Silent);
        assert_eq!(get.response().text(), "good", "{on_removal:?}");
        match on_removal {
            OnRemoval::Kill => assert_eq!(post.response().status(), 502),
            OnRemoval::Drain => {
                assert!(!is_readable(&post));
                mute.answer_all();
                assert_eq!(post.response().text(), "mute");
            }
        }
    }
}

#[test]
fn a_response_under_way_outlives_a_suspicion() {
    let (go, may_go) = mpsc::channel::<()>();
    let may_go = std::sync::Mutex::new(may_go);
    let origin = Origin::start(move |stream| {
        let mut wire = Wire::new(stream);
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
        let _ = may_go.lock().unwrap().recv_timeout(SOON);
        let _ = wire.stream.write_all(b"rest");
    });
    let good = Origin::named("good");
    let both = [origin.address, good.address];
    let stage = Stage::on(Bed::with(|config| config.on_removal = OnRemoval::Kill), &both[..1]);
    let mut wire = stage.wire();
    wire.send(GET);
    let mut response = wire.head().unwrap();
    assert_eq!(wire.read_exactly(4), b"half");
    // The response's head is a sign of life for a second.
    until("it is suspected", || {
        stage.doubted(&both, 1, MemberState::Alive, Reach::Silent);
        !stage.bed.pools().out.is_empty()
    });
    assert!(!is_ended(&wire.stream));
    go.send(()).unwrap();
    response.fields = vec![("content-length".into(), "4".into())];
    wire.body(&mut response);
    assert_eq!((response.text(), response.is_cut), ("rest", false));
}

#[test]
fn a_response_holds_a_suspicion_off_for_a_second() {
    let (a, b) = (Origin::named("a"), Origin::named("b"));
    let both = [a.address, b.address];
    let stage = Stage::new(&both);
    let load = |at: SocketAddr| -> Arc<Load> {
        let pools = stage.bed.pools();
        Arc::clone(pools.loads.iter().find(|((_, address), _)| *address == at).unwrap().1)
    };
    assert_eq!(load(a.address).since_success(Instant::now()), None);
    until("a has answered", || stage.get("a.example", "/").text() == "a");
    assert!(load(a.address).since_success(Instant::now()).unwrap() < SOON);
    for (state, reach) in [(MemberState::Alive, Reach::Silent), (MemberState::Down, Reach::Silent)] {
        stage.doubted(&both, 0, MemberState::Alive, Reach::Answers);
        let asked = || {
            until("a has answered", || stage.get("a.example", "/").text() == "a");
            stage.doubted(&both, 1, state, reach);
            load(a.address).since_success(Instant::now())
        };
        // On a machine that is very slow just now, once more.
        until("it was held off", || {
            asked().is_some_and(|since| since < Duration::from_millis(900)) && stage.bed.pools().out.is_empty()
        });
        until("its second is over", || {
            stage.doubted(&both, 1, state, reach);
            let pools = stage.bed.pools();
            let is_old =
                load(a.address).since_success(Instant::now()).is_none_or(|since| since >= Duration::from_secs(1));
            assert!(pools.out.is_empty() || is_old);
            !pools.out.is_empty()
        });
        assert_eq!(stage.get("a.example", "/").text(), "b");
    }
}

#[test]
fn p_slowloris_clients_that_say_nothing_or_too_little_are_closed() {
    let origin = Origin::named("a");
    let bed = Bed::with(|config| {
        config.timeouts.first_byte = Duration::from_millis(250);
        config.timeouts.header = Duration::from_millis(1000);
        config.timeouts.idle = Duration::from_millis(2500);
    });
    let stage = Stage::on(bed, &[origin.address]);
    let ends_after = |begin: &str, drip: bool| {
        let start = Instant::now();
        let mut wire = stage.wire();
        wire.send(begin);
        if begin == GET {
            wire.response();
        }
        until("it is closed", || {
            if drip && start.elapsed().subsec_millis().is_multiple_of(50) {
                let _ = wire.stream.write_all(b"x");
            }
            is_ended(&wire.stream)
        });
        start.elapsed().as_millis()
    };
    let silent = ends_after("", false);
    assert!((240..990).contains(&silent), "{silent} ms");
    let half = ends_after("GET / HTTP/1.1\r\nHost: a", false);
    assert!((990..2400).contains(&half), "{half} ms");
    let dripping = ends_after("GET / HTTP/1.1\r\nX: ", true);
    assert!((990..2400).contains(&dripping), "the whole header has one deadline: {dripping} ms");
    let idle = ends_after(GET, false);
    assert!((2490..5000).contains(&idle), "{idle} ms");
}

#[test]
fn p_slowbody_one_that_stops_is_broken_off() {
    let (said, heard) = mpsc::channel();
    let origin = Origin::start(move |stream| {
        let mut wire = Wire::new(stream);
        let request = wire.request();
        if request.as_ref().is_some_and(|request| request.line.contains("slow-backend")) {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            let _ = wire.stream.read(&mut [0]);
        }
        let _ = said.send(request.is_some_and(|request| !request.is_cut));
    });
    let stage =
        Stage::on(Bed::with(|config| config.timeouts.body_progress = Duration::from_millis(300)), &[origin.address]);
    let slow_client = stage.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
    assert_eq!(slow_client.status(), 408);
    assert!(!heard.recv_timeout(SOON).unwrap(), "the backend does not take it for whole");
    let slow_backend = stage.get("a", "/slow-backend");
    assert!(slow_backend.is_cut);
    assert_eq!(stage.bed.counters.broken.get(), 1);
}

#[test]
fn a_client_that_goes_takes_its_request_along() {
    let (said, heard) = mpsc::channel();
    let origin = Origin::start(move |stream| {
        let mut wire = Wire::new(stream);
        wire.request();
        let _ = said.send(());
        let _ = wire.rest();
        let _ = said.send(());
    });
    let stage = Stage::new(&[origin.address]);
    let mut wire = stage.wire();
    wire.send(GET);
    heard.recv_timeout(SOON).unwrap();
    drop(wire);
    heard.recv_timeout(Duration::from_secs(1)).expect("the backend's connection ends within a second");
}

#[test]
fn a_client_that_goes_takes_its_response_along() {
    let (said, heard) = mpsc::channel();
    let origin = Origin::start(move |stream| {
        let mut wire = Wire::new(stream);
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        let _ = wire.rest();
        let _ = said.send(());
    });
    let stage = Stage::new(&[origin.address]);
    for leave in [drop, |wire: Wire| reset(wire.stream)] {
        let mut wire = stage.wire();
        wire.send(GET);
        assert_eq!(wire.head().unwrap().status(), 200);
        leave(wire);
        heard.recv_timeout(Duration::from_secs(1)).expect("the backend's connection ends within a second");
    }
}

#[test]
fn p_slowread_a_client_that_takes_nothing_is_reset() {
    let (said, heard) = mpsc::channel();
    let origin = Origin::start(move |stream| {
        let mut wire = Wire::new(stream);
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while wire.stream.write_all(&[0; 65536]).is_ok() {}
        let _ = said.send(());
    });
    let stage =
        Stage::on(Bed::with(|config| config.timeouts.body_progress = Duration::from_millis(300)), &[origin.address]);
    let mut wire = stage.wire();
    wire.send(GET);
    heard.recv_timeout(SOON).expect("the backend is let go");
    until("it is counted", || stage.bed.counters.broken.get() == 1);
    let mut buffer = vec![0; 1 << 20];
    let end = std::iter::repeat_with(|| wire.stream.read(&mut buffer)).find(|read| !matches!(read, Ok(1..)));
    assert!(end.unwrap().is_err(), "it does not look whole");
}

#[test]
fn draining_finishes_requests_and_closes_idle_connections() {
    let (go, may_go) = mpsc::channel::<()>();
    let may_go = std::sync::Mutex::new(may_go);
    let (begun, has_begun) = mpsc::channel();
    let origin = Origin::http(move |request| {
        if request.line.contains("wait") {
            begun.send(()).unwrap();
            may_go.lock().unwrap().recv().unwrap();
        }
        Some(ok("done"))
    });
    let mut stage = Stage::new(&[origin.address]);
    let (mut idle, mut busy, fresh) = (stage.wire(), stage.wire(), stage.wire());
    idle.send(GET);
    assert_eq!(idle.response().text(), "done");
    busy.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    has_begun.recv_timeout(SOON).unwrap();
    until("all are in", || stage.bed.counters.connections.get() == 3);
    let drained = stage.bed.drain(SOON);
    until("idle ones are closed", || is_ended(&idle.stream) && is_ended(&fresh.stream));
    go.send(()).unwrap();
    let response = busy.response();
    assert_eq!((response.text(), response.field("connection")), ("done", Some("close")));
    assert_eq!(busy.rest().unwrap(), b"");
    assert_eq!(drained.recv_timeout(Duration::from_secs(2)).unwrap(), 0);
}

#[test]
fn an_application_has_a_limit_of_its_own() {
    let (go, may_go) = mpsc::channel::<()>();
    let may_go = std::sync::Mutex::new(may_go);
    let origin = Origin::http(move |_| {
        may_go.lock().unwrap().recv().unwrap();
        Some(ok("done"))
    });
    let stage = Stage::on(Bed::with(|config| config.limits.app_connections = Some(2)), &[origin.address]);
    let mut held = [stage.wire(), stage.wire()];
    held.iter_mut().for_each(|wire| wire.send(GET));
    until("both are in", || origin.accepted() == 2);
    let response = stage.get("a", "/");
    assert_eq!((response.status(), response.field("retry-after")), (503, Some("1")));
    (0..3).for_each(|_| go.send(()).unwrap());
    assert!(held.iter_mut().all(|wire| wire.response().text() == "done"));
    assert_eq!(stage.get("a", "/").text(), "done");
}

#[test]
fn a_port_that_changes_from_tcp_to_http_serves_http() {
    let origin = Origin::named("http");
    let bed = Bed::new();
    let port = bed.port();
    let echo = Origin::greeting("t");
    bed.publish_and_open(&[Node::new(1, vec![support::tcp_app(port, echo.address)])], port);
    let stage = Stage { bed, port };
    stage.bed.publish(&stage.nodes(&[origin.address]));
    until("it speaks HTTP", || {
        let mut wire = stage.wire();
        let _ = wire.stream.write_all(GET.as_bytes());
        wire.head().is_some_and(|head| head.line == "HTTP/1.1 200 OK")
    });
}

#[test]
fn two_hundred_applications_with_nine_hundred_domains_are_routed_within_two_seconds() {
    let bed = Bed::new();
    let port = bed.port();
    let origins = ["a", "b", "c", "d"].map(Origin::named);
    let domains: Vec<String> = (0..900).map(|i| format!("site-{i}.example")).collect();
    let nodes: Vec<Node> = (0..4)
        .map(|n| {
            let apps = (n..200).step_by(4).map(|i| {
                let names: Vec<&str> = domains.iter().skip(i).step_by(200).map(String::as_str).collect();
                http_app(&format!("app-{i}"), port, origins[n].address, &names, "/")
            });
            Node::new(n as u64 + 1, apps.collect())
        })
        .collect();
    let stage = Stage { bed, port };
    let start = Instant::now();
    stage.bed.publish_and_open(&nodes, port);
    let mut wire = stage.wire();
    for (i, domain) in domains.iter().enumerate() {
        wire.send(format!("GET / HTTP/1.1\r\nHost: {domain}\r\n\r\n"));
        assert_eq!(wire.response().text(), ["a", "b", "c", "d"][i % 4], "{domain}");
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(stage.get("site-900.example", "/").status(), 404);
}

#[test]
fn many_clients_at_once_get_their_own_answers() {
    let mirror = Origin::mirror();
    let second = Origin::mirror();
    let stage = Stage::new(&[mirror.address, second.address]);
    thread::scope(|scope| {
        for client in 0..16 {
            let stage = &stage;
            scope.spawn(move || {
                let mut wire = stage.wire();
                for i in 0..100 {
                    let path = format!("/{client}/{i}");
                    let body = "x".repeat(client * i * 3);
                    wire.send(format!(
                        "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    ));
                    let response = wire.response();
                    assert!(response.text().starts_with(&format!("POST {path} ")), "{}", response.text());
                    assert!(response.text().ends_with(&format!("\n\n{body}")));
                }
            });
        }
    });
    assert_eq!(stage.bed.counters.requests.get(), 1600);
    assert_eq!(stage.bed.counters.responses[2].get(), 1600);
}

#[test]
fn a_place_that_comes_free_goes_to_whoever_waits_whatever_the_port() {
    let origin = Origin::named("a");
    let bed = Bed::with(|config| {
        config.workers = 1;
        config.limits.connections = Some(1);
    });
    let ports = [bed.port(), bed.port()];
    let apps = ports.map(|port| http_app(&format!("web-{port}"), port, origin.address, &[], "/"));
    bed.publish(&[Node::new(1, apps.to_vec())]);
    let is_open = |port: &Port| bed.report(*port).is_some_and(|report| !report.addresses.is_empty());
    until("the listen ports open", || ports.iter().all(is_open));
    for port in [ports[0], ports[0], ports[1], ports[1], ports[0], ports[1]] {
        let (mut first, mut second) = (Wire::new(bed.connect(port)), Wire::new(bed.connect(port)));
        first.send(GET);
        assert_eq!(first.response().text(), "a");
        second.send(GET);
        drop(first);
        assert_eq!(second.response().text(), "a");
    }
}

#[test]
fn p_idle100k_at_the_limit_who_has_been_idle_longest_makes_way() {
    const LIMIT: usize = 20;
    let (go, may_go) = mpsc::channel::<()>();
    let may_go = std::sync::Mutex::new(may_go);
    let origin = Origin::http(move |request| {
        if request.line.contains("wait") {
            may_go.lock().unwrap().recv().unwrap();
        }
        Some(ok("a"))
    });
    let bed = Bed::with(|config| config.limits.connections = Some(u32::try_from(LIMIT).unwrap()));
    let stage = Stage::on(bed, &[origin.address]);
    let mut busy = stage.wire();
    busy.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut half = stage.wire();
    half.send("GET / HTTP/1.1\r\n");
    let ask = || {
        let mut wire = stage.wire();
        wire.send(GET);
        assert_eq!(wire.response().text(), "a");
        wire
    };
    let first: Vec<Wire> = (2..LIMIT).map(|_| ask()).collect();
    assert!(!first.iter().any(|wire| is_ended(&wire.stream)), "nobody goes as long as there is room");
    // As many again find a place: all that were idle go, and no other.
    let start = Instant::now();
    let second: Vec<Wire> = (2..LIMIT).map(|_| ask()).collect();
    println!("{} new clients were let in within {:?}", second.len(), start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(first.iter().all(|wire| is_ended(&wire.stream)));
    assert!(!second.iter().any(|wire| is_ended(&wire.stream)), "the newest stay");
    half.send("Host: a\r\n\r\n");
    assert_eq!(half.response().text(), "a");
    go.send(()).unwrap();
    assert_eq!(busy.response().text(), "a");
}
