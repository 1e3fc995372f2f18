//! Requests of clients that speak HTTP/2, to backends that speak HTTP/1.1.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use scrimp::app::AppState;

use super::support::frames::*;
use super::support::{Bed, Message, Node, Origin, SOON, Wire, http_app, is_ended, nobody, until};
use super::{Stage, origin};

/// An origin that hands each connection to `serve` with the head of its first request.
fn once(serve: impl Fn(Wire, Message) + Send + Sync + 'static) -> Origin {
    Origin::start(move |stream| {
        let mut wire = Wire::new(stream);
        if let Some(request) = wire.head() {
            serve(wire, request);
        }
    })
}

#[test]
fn many_requests_at_once_get_their_own_answers() {
    let (origin, seen) = origin();
    let stage = Stage::new(&[origin.address]);
    let mut client = stage.client();
    for number in 0..90 {
        client.post(1 + 2 * number, "/", &[]);
    }
    for number in (0..90).rev() {
        client.data(1 + 2 * number, END_STREAM, format!("number {number}"));
    }
    for number in 0..90 {
        let answer = client.answer(1 + 2 * number);
        assert_eq!((answer.status, answer.text()), (200, &*format!("number {number}")));
    }
    assert_eq!(seen.load(Ordering::SeqCst), 90);
    let counters = &stage.bed.counters;
    assert_eq!((counters.requests.get(), counters.responses[2].get()), (90, 90));
}

#[test]
fn p_h2down_a_backend_gets_a_request_of_http1() {
    let (origin, _) = origin();
    let stage = Stage::new(&[origin.address]);
    let mut client = stage.client();
    let more = [
        ("x-forwarded-for", "6.6.6.6"),
        ("x-real-ip", "6.6.6.6"),
        ("te", "trailers"),
        ("proxy-authorization", "secret"),
        ("x-test", "a, b"),
    ];
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("GET", "/head", &more));
    let answer = client.answer(1);
    let mut lines: Vec<&str> = answer.text().lines().collect();
    assert_eq!(lines.remove(0), "GET /head HTTP/1.1");
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "host: a.example",
            "te: trailers",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: a.example",
            "x-forwarded-proto: http",
            "x-test: a, b",
        ]
    );
    assert!(answer.field("date").is_some_and(|date| date.ends_with(" GMT")));
    assert!(answer.field("connection").is_none() && answer.field("transfer-encoding").is_none());
}

#[test]
fn bodies_pass_both_ways() {
    let (origin, _) = origin();
    let stage = Stage::new(&[origin.address]);
    let mut client = stage.client();
    let body: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).take(1_500_000).collect();
    let length = body.len().to_string();
    let mut whole = 65535;
    for (stream, fields) in [(1, &[("content-length", &*length)][..]), (3, &[])] {
        client.post(stream, "/", fields);
        // No more than the windows allow: each piece waits until the last was taken.
        let (mut sent, mut window) = (0, client.settings[&4] as usize);
        while sent < body.len() {
            let count = (body.len() - sent).min(16000).min(window).min(whole);
            if count == 0 {
                // One for the stream before may come late.
                client.until("a window", |client| [0, stream].iter().any(|id| client.given.contains_key(id)));
                whole += client.given.remove(&0).unwrap_or_default();
                window += client.given.remove(&stream).unwrap_or_default();
                continue;
            }
            client.data(stream, 0, &body[sent..sent + count]);
            (sent, window, whole) = (sent + count, window - count, whole - count);
        }
        client.data(stream, END_STREAM, []);
        let answer = client.answer(stream);
        assert!(answer.status == 200 && answer.body == body, "{} bytes came back", answer.body.len());
        assert_eq!(answer.field("content-length"), Some(&*length));
    }
}

#[test]
fn trailers_pass_both_ways() {
    let (told, asked) = mpsc::channel();
    let origin = once(move |mut wire, mut request| {
        wire.body(&mut request);
        told.send(request).unwrap();
        wire.send(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: grpc-status\r\n\r\n3;x=y\r\nabc\r\n0\r\n\
             grpc-status: 5\r\nContent-Length: 7\r\nHost: b\r\nAuthorization: c\r\nX-Sum: d\r\n\r\n",
        );
    });
    let stage = Stage::new(&[origin.address]);
    let mut client = stage.client();
    client.post(1, "/", &[("te", "trailers")]);
    client.data(1, 0, "body");
    let trailers = [("x-sum", "1"), ("authorization", "2"), ("host", "b"), ("content-length", "4"), ("grpc-x", "3")];
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, block(&trailers));
    let answer = client.answer(1);
    assert_eq!((answer.status, answer.text()), (200, "abc"));
    assert_eq!((answer.trailer("grpc-status"), answer.trailer("x-sum")), (Some("5"), Some("d")));
    assert_eq!(answer.trailers.len(), 2, "{:?}", answer.trailers);
    let request = asked.recv_timeout(SOON).unwrap();
    assert_eq!((request.text(), request.is_cut), ("body", false));
    assert_eq!(request.trailers, [("x-sum".to_owned(), "1".to_owned()), ("grpc-x".to_owned(), "3".to_owned())]);
}

#[test]
fn interim_responses_pass() {
    let origin = once(|mut wire, mut request| {
        assert_eq!(request.field("expect"), Some("100-continue"));
        wire.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        wire.body(&mut request);
        wire.send("HTTP/1.1 204 No Content\r\n\r\n");
    });
    let stage = Stage::new(&[origin.address]);
    let mut client = stage.client();
    client.post(1, "/", &[("expect", "100-continue"), ("content-length", "2")]);
    client
        .until("two interim responses", |client| client.answers.get(&1).is_some_and(|it| it.informational.len() == 2));
    client.data(1, END_STREAM, "ab");
    let answer = client.answer(1);
    assert_eq!((answer.informational, answer.status), (vec![100, 103], 204));
    assert!(answer.body.is_empty());
}

#[test]
fn p_die_100_is_a_502_on_its_stream_alone() {
    let (told, asked) = mpsc::channel();
    let origin = once(move |mut wire, mut request| {
        wire.send("HTTP/1.1 100 Continue\r\n\r\n");
        wire.body(&mut request);
        let _ = told.send(request.text().to_owned());
    });
    let stage = Stage::new(&[origin.address]);
    let mut client = stage.client();
    client.post(1, "/", &[("expect", "100-continue"), ("content-length", "2")]);
    client.until("100", |client| client.answers.get(&1).is_some_and(|it| it.informational == [100]));
    client.data(1, END_STREAM, "ab");
    assert_eq!(asked.recv_timeout(SOON).unwrap(), "ab");
    assert_eq!(client.answer(1).status, 502);
    // And one whose body never comes, since the backend was gone by then.
    let dying = once(|mut wire, _| wire.send("HTTP/1.1 100 Continue\r\n\r\n"));
    let stage = Stage::new(&[dying.address]);
    let mut client = stage.client();
    client.post(1, "/", &[("expect", "100-continue"), ("content-length", "2")]);
    let answer = client.answer(1);
    assert_eq!((answer.informational, answer.status), (vec![100], 502));
    assert!(client.is_alive());
}

#[test]
fn p_expect_of_something_else_is_a_417() {
    let (origin, seen) = origin();
    let stage = Stage::new(&[origin.address]);
    let mut client = stage.client();
    for (stream, expect) in [(1, "200-ok"), (3, "100-continue, more"), (5, "")] {
        client.post(stream, "/", &[("expect", expect), ("content-length", "2")]);
        client.until("417", |client| client.answers.get(&stream).is_some_and(|it| it.status == 417));
    }
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    client.post(7, "/", &[("expect", "100-Continue")]);
    client.data(7, END_STREAM, "ok");
    assert_eq!(client.answer(7).text(), "ok");
}

#[test]
fn what_a_client_gives_up_ends_at_the_backend() {
    let (told, ended) = mpsc::channel();
    let origin = once(move |mut wire, request| {
        if request.line.split(' ').nth(1) == Some("/stream") {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nabc");
        }
        let _ = wire.rest();
        told.send(Instant::now()).unwrap();
    });
    let stage = Stage::new(&[origin.address]);
    let mut client = stage.client();
    let begun = |stage: &Stage, count: usize| stage.bed.counters.requests.get() as usize >= count;
    client.get(1, "/wait");
    client.get(3, "/stream");
    client.post(5, "/upload", &[("content-length", "1000000")]);
    client.data(5, 0, "abc");
    client.until("a piece of the response", |client| client.answers.get(&3).is_some_and(|it| it.body.len() == 3));
    until("the requests have begun", || begun(&stage, 3) && origin.accepted.load(Ordering::SeqCst) == 3);
    for stream in [1, 3, 5] {
        let start = Instant::now();
        client.reset(stream, CANCEL);
        let took = ended.recv_timeout(SOON).expect("the end at the backend") - start;
        assert!(took < Duration::from_secs(1), "stream {stream}: {took:?}");
    }
    // The same when the whole connection goes.
    for (stream, path) in [(7, "/wait"), (9, "/stream")] {
        client.get(stream, path);
    }
    until("two more have begun", || origin.accepted.load(Ordering::SeqCst) == 5);
    drop(client);
    for _ in 0..2 {
        ended.recv_timeout(SOON).expect("the end at the backend");
    }
}

#[test]
fn a_response_that_breaks_off_does_not_look_whole() {
    for (head, body) in [
        ("Content-Length: 10", "abc"),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n"),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n5\r\nab"),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\nnonsense\r\n"),
    ] {
        let origin = once(move |mut wire, _| {
            wire.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}"));
            wire.stream.shutdown(Shutdown::Both).unwrap();
        });
        let stage = Stage::new(&[origin.address]);
        let mut client = stage.client();
        let answer = client.ask(1, "/");
        assert!(!answer.is_whole && answer.reset == Some(INTERNAL_ERROR), "{head} {body}: {answer:?}");
        assert!(client.is_alive(), "the connection stays");
        assert_eq!(stage.bed.counters.broken.get(), 1);
    }
}

#[test]
fn our_own_answers() {
    let bed = Bed::with(|config| config.timeouts.response = Duration::from_millis(200));
    let port = bed.port();
    let silent = Origin::start(|mut stream| while stream.read(&mut [0; 1000]).is_ok_and(|count| count > 0) {});
    let apps = |name: &str, at| http_app(name, port, at, &[&format!("{name}.example")], "/");
    let nodes = [
        Node::new(1, vec![apps("empty", nobody())]).with_state(AppState::Starting),
        Node::new(2, vec![apps("refused", nobody()), apps("silent", silent.address)]),
    ];
    bed.publish_and_open(&nodes, port);
    let stage = Stage { bed, port };
    let mut client = stage.client();
    let cases = [("unknown", 404), ("empty", 503), ("refused", 502), ("silent", 504)];
    for (stream, (name, status)) in (1..).step_by(2).zip(cases) {
        let authority = format!("{name}.example");
        let fields = [(":method", "GET"), (":scheme", "http"), (":authority", &*authority), (":path", "/")];
        client.send(HEADERS, END_HEADERS | END_STREAM, stream, block(&fields));
        let answer = client.answer(stream);
        assert_eq!((answer.status, answer.is_whole), (status, true), "{name}");
        assert_eq!(answer.field("content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(answer.field("retry-after"), (status == 503).then_some("1"));
        assert!(answer.text().starts_with(&status.to_string()) && answer.field("date").is_some());
    }
    client.send(HEADERS, END_HEADERS | END_STREAM, 9, request("HEAD", "/", &[]));
    let answer = client.answer(9);
    assert!(answer.status == 404 && answer.body.is_empty() && answer.is_whole);
}

#[test]
fn an_early_answer_ends_the_upload() {
    let origin = once(|mut wire, _| {
        wire.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno");
        let _ = wire.rest();
    });
    let stage = Stage::new(&[origin.address]);
    let mut client = stage.client();
    client.post(1, "/", &[]);
    client.data(1, 0, "abc");
    client.until("the answer, then NO_ERROR", |client| {
        client.answers.get(&1).is_some_and(|answer| answer.is_whole && answer.reset == Some(NO_ERROR))
    });
    assert_eq!((client.answers[&1].status, client.answers[&1].text()), (413, "no"));
    assert!(client.is_alive());
}

#[test]
fn a_slow_side_holds_back_the_other() {
    const LENGTH: usize = 64 << 20;
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let origin = once(move |mut wire, mut request| {
        if request.line.starts_with("POST") {
            // Nothing is read: what the client may send is what fits between.
            thread::sleep(Duration::from_millis(500));
            wire.body(&mut request);
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            return;
        }
        wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
        let piece = [b'x'; 1 << 16];
        while wire.stream.write_all(&piece).is_ok() {
            count.fetch_add(piece.len(), Ordering::SeqCst);
        }
    });
    let stage = Stage::new(&[origin.address]);
    let mut client = stage.client();
    client.gives_way = false;
    client.get(1, "/");
    client.until("a window of it", |client| client.answers.get(&1).is_some_and(|answer| answer.body.len() == 65535));
    let before = written.load(Ordering::SeqCst);
    assert!(client.is_alive() && client.answers[&1].body.len() == 65535);
    // What more the origin can write is the kernel's.
    assert!(before < LENGTH / 2, "{before} bytes were taken from the origin");
    client.reset(1, CANCEL);
    // And up: a client that sends beyond is cut off, one that does not is not asked for more than a window.
    client.post(3, "/", &[]);
    for _ in 0..3 {
        client.data(3, 0, [b'x'; 1 << 14]);
    }
    assert!(client.is_alive());
    client.data(3, END_STREAM, "x");
    assert_eq!(client.answer(3).status, 200);
}

#[test]
fn a_request_moves_on_to_the_next_backend() {
    let (good, _) = origin();
    let dying = once(|wire, _| drop(wire));
    let stage = Stage::new(&[nobody(), good.address, dying.address]);
    let mut client = stage.client();
    for number in 0..20 {
        assert_eq!(client.ask(1 + 2 * number, "/").status, 200, "request {number}");
    }
    assert!(stage.bed.counters.retries.get() > 0);
}

#[test]
fn a_drain_lets_streams_finish() {
    let go = Arc::new(AtomicBool::new(false));
    let may_go = Arc::clone(&go);
    let origin = once(move |mut wire, _| {
        until("it may go", || may_go.load(Ordering::SeqCst));
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let _ = wire.rest();
    });
    let mut stage = Stage::new(&[origin.address]);
    let mut client = stage.client();
    let mut idle = stage.client();
    client.get(1, "/");
    until("it has begun", || origin.accepted.load(Ordering::SeqCst) == 1);
    let cut = stage.bed.drain(SOON);
    client.until("GOAWAY", |client| client.goaways.first() == Some(&((1 << 31) - 1, NO_ERROR)));
    idle.until_within(SOON, |client| client.is_closed);
    assert!(idle.is_closed && idle.goaways.iter().all(|goaway| goaway.1 == NO_ERROR));
    go.store(true, Ordering::SeqCst);
    assert_eq!(client.answer(1).text(), "ok");
    client.until_within(SOON, |client| client.is_closed);
    assert!(client.is_closed && client.goaways.last() == Some(&(1, NO_ERROR)), "{:?}", client.goaways);
    assert_eq!(cut.recv_timeout(SOON).unwrap(), 0);
}

/// What has been taken from the backend and not yet been written is written, however slowly the client reads.
#[test]
fn a_client_that_reads_late_gets_the_tail_of_its_responses() {
    const LENGTH: usize = 128 << 10;
    let (told, taken) = mpsc::channel();
    let origin = once(move |mut wire, _| {
        wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\nConnection: close\r\n\r\n"));
        wire.send(vec![b'x'; LENGTH]);
        // Closed as soon as all was taken.
        let _ = wire.rest();
        let _ = told.send(());
    });
    for has_drain in [true, false] {
        let idle = if has_drain { Duration::from_secs(75) } else { Duration::from_millis(300) };
        let mut stage = Stage::with(&[origin.address], |config| config.timeouts.idle = idle);
        let stream = stage.bed.connect(stage.port);
        socket2::SockRef::from(&stream).set_recv_buffer_size(64 << 10).unwrap();
        let mut client = Client::with(stream, &[(4, (1 << 31) - 1)]);
        client.gives_way = false;
        client.window(0, (1 << 31) - 1 - 65535);
        // Nothing is read until no more is taken: what the kernel does not hold waits here.
        let mut stream = 1;
        client.get(stream, "/");
        while taken.recv_timeout(Duration::from_millis(500)).is_ok() {
            stream += 2;
            client.get(stream, "/");
        }
        client.reset(stream, CANCEL);
        taken.recv_timeout(SOON).expect("the end of the last at the backend");
        let cut = has_drain.then(|| stage.bed.drain(SOON));
        // Longer than a client is waited for that owes nothing and has all.
        thread::sleep(Duration::from_millis(2500));
        let is_whole = |client: &Client, id| client.answers.get(&id).is_some_and(|it: &Answer| it.is_whole);
        client.until("all responses", |client| (1..stream).step_by(2).all(|id| is_whole(client, id)));
        assert!((1..stream).step_by(2).all(|id| client.answers[&id].body.len() == LENGTH));
        client.until_within(SOON, |client| client.is_closed);
        assert!(client.goaways.iter().all(|goaway| goaway.1 == NO_ERROR), "{:?}", client.goaways);
        if let Some(cut) = cut {
            assert_eq!(cut.recv_timeout(SOON).unwrap(), 0);
        }
    }
}

#[test]
fn every_stall_has_its_deadline() {
    let (origin, _) = origin();
    let short = Duration::from_millis(300);
    let stage = Stage::with(&[origin.address], |config| {
        config.timeouts.first_byte = short;
        config.timeouts.header = short;
        config.timeouts.body_progress = short;
        config.timeouts.idle = short;
    });
    type Act = fn(&mut Client);
    let cases: [(&str, bool, Act); 7] = [
        ("nothing", false, |_| {}),
        ("half of the preface", false, |client| client.send_bytes(&PREFACE[..20])),
        ("no settings", false, |client| client.send_bytes(PREFACE)),
        ("half of the settings", false, |client| client.send_bytes([PREFACE, &head(6, SETTINGS, 0, 0)].concat())),
        ("no request", true, |_| {}),
        ("a header that does not end", true, |client| client.send(HEADERS, 0, 1, request("GET", "/", &[]))),
        ("a header that goes on slowly", true, |client| {
            client.send(HEADERS, 0, 1, request("GET", "/", &[]));
            thread::sleep(Duration::from_millis(200));
            client.send(CONTINUATION, 0, 1, block(&[("x", "y")]));
        }),
    ];
    for (what, is_greeted, act) in cases {
        let stream = stage.bed.connect(stage.port);
        let mut client = if is_greeted { Client::new(stream) } else { Client::silent(stream) };
        let start = Instant::now();
        act(&mut client);
        // An idle client that asks whether we are there is idle all the same.
        client.until_within(SOON, |client| client.is_closed);
        let took = start.elapsed();
        assert!(client.is_closed && took >= short - Duration::from_millis(50), "{what}: {took:?}");
        assert!(took < short + Duration::from_millis(1500), "{what}: {took:?}");
    }
    // Also while the connection is not idle, and would have long for all else.
    let patient = Stage::with(&[origin.address], |config| config.timeouts.header = short);
    let mut client = patient.client();
    client.get(1, "/wait");
    client.send(HEADERS, 0, 3, request("GET", "/", &[]));
    client.until("it is closed", |client| client.is_closed);
    // A body that stops, and one that comes when it was to be empty: the stream ends, and the connection goes on.
    let mut client = stage.client();
    client.post(1, "/", &[]);
    client.data(1, 0, "abc");
    let answer = client.answer(1);
    assert_eq!(answer.status, 408, "{answer:?}");
    client.post(3, "/", &[("content-length", "0")]);
    assert_eq!(client.answer(3).reset, Some(CANCEL));
    // A client that takes nothing of a response.
    let mut client = stage.client();
    client.gives_way = false;
    client.get(1, "/big");
    client.until_within(SOON, |client| client.is_closed || client.answers.get(&1).is_some_and(Answer::is_over));
    assert!(client.is_closed || client.answers[&1].reset.is_some());
}

#[test]
fn pings_do_not_keep_an_idle_connection() {
    let (origin, _) = origin();
    let stage = Stage::with(&[origin.address], |config| config.timeouts.idle = Duration::from_millis(300));
    let mut client = stage.client();
    let start = Instant::now();
    while client.is_alive() {
        assert!(start.elapsed() < Duration::from_secs(5), "it is still open");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(client.goaways, [(0, NO_ERROR)]);
}

#[test]
fn http1_is_still_http1() {
    let (origin, _) = origin();
    let stage = Stage::new(&[origin.address]);
    let mut wire = Wire::new(stage.bed.connect(stage.port));
    wire.send("P");
    thread::sleep(Duration::from_millis(20));
    wire.send("OST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(wire.response().text(), "ok");
    // Later on a connection it is no preface.
    wire.send(PREFACE);
    assert_eq!(wire.response().status(), 505);
    until("the connection ends", || is_ended(&wire.stream));
}
