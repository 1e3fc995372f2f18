//! Backends that speak HTTP/2 (`h2c`).

use std::io::Read;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use scrimp::app::Protocol;
use scrimp::proxy::Config;

use super::support::frames::*;
use super::support::{Bed, Node, Origin, Wire, app, until};
use super::{Stage, origin};

/// A proxy in front of backends that speak h2c.
pub(super) fn before(backends: &[SocketAddr]) -> Stage {
    before_with(backends, |_| {})
}

/// With deadlines or limits of its own.
pub(super) fn before_with(backends: &[SocketAddr], change: impl FnOnce(&mut Config)) -> Stage {
    let bed = Bed::with(|config| {
        config.workers = 1;
        change(config);
    });
    let port = bed.port();
    let node = |(id, at): (u64, &SocketAddr)| {
        let mut node = Node::new(id, vec![app("web", Protocol::H2c, port, *at)]);
        node.ip = at.ip();
        node
    };
    bed.publish_and_open(&(1..).zip(backends).map(node).collect::<Vec<_>>(), port);
    bed.settle();
    Stage { bed, port }
}

/// A backend that is told each frame of its connections and says what it likes.
pub(super) fn raw(serve: impl Fn(&mut Client, Frame) + Send + Sync + 'static) -> Origin {
    Origin::start(move |mut stream| {
        let mut preface = [0; 24];
        if stream.read_exact(&mut preface).is_err() {
            return;
        }
        let mut client = Client::silent(stream);
        client.send(SETTINGS, 0, 0, []);
        let mut input = Vec::new();
        let mut buffer = [0; 65536];
        while let Ok(count @ 1..) = client.stream.read(&mut buffer) {
            input.extend_from_slice(&buffer[..count]);
            while let Some(frame) = next(&input) {
                input.drain(..9 + frame.payload.len());
                if frame.kind == SETTINGS && frame.flags == 0 {
                    client.send(SETTINGS, ACK, 0, []);
                }
                serve(&mut client, frame);
            }
        }
    })
}

/// `:status: 200`, of the static table.
pub(super) const STATUS_200: u8 = 0x88;

#[test]
fn requests_go_through_two_proxies() {
    let (origin, seen) = origin();
    let behind = Stage::new(&[origin.address]);
    let stage = before(&[behind.bed.address(behind.port)]);
    let mut client = stage.client();
    let accepted = behind.bed.counters.connections.get();
    for number in 0..80 {
        client.post(1 + 2 * number, "/", &[]);
        client.data(1 + 2 * number, END_STREAM, format!("number {number}"));
    }
    for number in 0..80 {
        let answer = client.answer(1 + 2 * number);
        assert_eq!((answer.status, answer.text()), (200, &*format!("number {number}")));
    }
    assert_eq!(behind.bed.counters.connections.get() - accepted, 1, "they share a connection");
    let fields = client.ask(201, "/head");
    assert!(fields.text().contains("host: a.example\r\n") && fields.text().starts_with("GET /head HTTP/1.1\r\n"));
    let body = vec![b'x'; 60_000];
    client.post(203, "/", &[("content-length", "60000")]);
    body.chunks(15_000).for_each(|piece| client.data(203, 0, piece));
    client.data(203, END_STREAM, []);
    assert!(client.answer(203).body == body);
    assert_eq!(client.ask(205, "/big").body.len(), 100_000);
    client.send(HEADERS, END_HEADERS | END_STREAM, 207, request("HEAD", "/", &[]));
    let answer = client.answer(207);
    assert_eq!((answer.status, answer.field("content-length"), answer.body.len()), (200, Some("2"), 0));
    assert_eq!(seen.load(Ordering::SeqCst), 84);
    // And for a client of HTTP/1.1.
    let mut wire = Wire::new(stage.bed.connect(stage.port));
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert_eq!(wire.response().text(), "abcde");
    wire.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(wire.response().body.len(), 100_000);
}

#[test]
fn trailers_and_their_like_pass_as_they_are() {
    // Trailers alone: the response is its head, and that is its end.
    let origin = raw(|client, frame| {
        if frame.kind == HEADERS && frame.is(END_STREAM) {
            let block = [&[STATUS_200][..], &block(&[("grpc-status", "12")])].concat();
            client.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, block);
        } else if frame.kind == DATA && frame.is(END_STREAM) {
            client.send(HEADERS, END_HEADERS, frame.stream, [STATUS_200]);
            client.send(DATA, 0, frame.stream, "abc");
            client.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, block(&[("grpc-status", "0")]));
        }
    });
    let stage = before(&[origin.address]);
    let mut client = stage.client();
    let answer = client.ask(1, "/");
    assert_eq!((answer.status, answer.field("grpc-status"), answer.is_whole), (200, Some("12"), true));
    assert!(answer.body.is_empty() && answer.trailers.is_empty() && answer.field("content-length").is_none());
    client.post(3, "/", &[("te", "trailers")]);
    client.data(3, END_STREAM, "x");
    let answer = client.answer(3);
    assert_eq!((answer.text(), answer.trailer("grpc-status")), ("abc", Some("0")));
    let mut wire = Wire::new(stage.bed.connect(stage.port));
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTE: trailers\r\n\r\nx");
    let response = wire.response();
    assert_eq!(response.text(), "abc");
    assert_eq!(response.trailers, [("grpc-status".to_owned(), "0".to_owned())]);
}

#[test]
fn p_slowbody_of_known_length_is_closed_when_it_crawls() {
    const DEADLINE: Duration = Duration::from_millis(800);
    let (origin, _) = origin();
    let behind = Stage::new(&[origin.address]);
    let h2c = before_with(&[behind.bed.address(behind.port)], |config| config.timeouts.body_progress = DEADLINE);
    let http1 = Stage::with(&[origin.address], |config| config.timeouts.body_progress = DEADLINE);
    for stage in [&h2c, &http1] {
        let mut client = stage.client();
        // The same for one that says its length, and for one that does not.
        for (stream, length) in [(1, &[("content-length", "40")][..]), (3, &[])] {
            client.post(stream, "/", length);
            for _ in 0..39 {
                client.data(stream, 0, "x");
                client.read(Duration::from_millis(50));
            }
            client.data(stream, END_STREAM, "x");
        }
        assert_eq!(client.answer(1).status, 408);
        let stream = client.answer(3);
        assert_eq!((stream.status, stream.body.len()), (200, 40));
    }
}

#[test]
fn what_a_backend_refuses_goes_elsewhere() {
    let refused = Arc::new(AtomicUsize::new(0));
    let (reset, away) = (Arc::clone(&refused), Arc::clone(&refused));
    let refusing = raw(move |client, frame| {
        if frame.kind == HEADERS {
            reset.fetch_add(1, Ordering::SeqCst);
            client.reset(frame.stream, REFUSED_STREAM);
        }
    });
    let leaving = raw(move |client, frame| {
        if frame.kind == HEADERS {
            away.fetch_add(1, Ordering::SeqCst);
            client.send(GOAWAY, 0, 0, [0; 8]);
        }
    });
    let (origin, seen) = origin();
    let good = Stage::new(&[origin.address]);
    let stage = before(&[refusing.address, leaving.address, good.bed.address(good.port)]);
    let mut client = stage.client();
    for number in 0..12 {
        // A POST, too: nothing was done with it.
        client.send(HEADERS, END_HEADERS | END_STREAM, 1 + 2 * number, request("POST", "/", &[]));
        assert_eq!(client.answer(1 + 2 * number).status, 200, "request {number}");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 12);
    assert!(refused.load(Ordering::SeqCst) >= 2);
}

#[test]
fn a_backend_that_breaks_off_does_not_look_whole() {
    let origin = raw(|client, frame| {
        if frame.kind == HEADERS {
            client.send(HEADERS, END_HEADERS, frame.stream, [STATUS_200]);
            client.send(DATA, 0, frame.stream, "abc");
            match frame.stream {
                1 => client.reset(frame.stream, INTERNAL_ERROR),
                3 => client.reset(frame.stream, CANCEL),
                _ => client.stream.shutdown(std::net::Shutdown::Both).unwrap(),
            }
        }
    });
    let stage = before(&[origin.address]);
    let mut client = stage.client();
    for stream in [1, 3, 5] {
        let answer = client.ask(stream, "/");
        assert_eq!((answer.is_whole, answer.reset), (false, Some(INTERNAL_ERROR)), "{stream}");
    }
    assert!(client.is_alive());
}

#[test]
fn what_a_client_gives_up_is_reset_at_the_backend() {
    let resets = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&resets);
    let origin = raw(move |_, frame| {
        if frame.kind == RST_STREAM && frame.number(0) == CANCEL {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let stage = before(&[origin.address]);
    let mut client = stage.client();
    client.get(1, "/");
    client.post(3, "/", &[]);
    client.data(3, 0, "abc");
    until("it has them", || stage.bed.counters.requests.get() == 2);
    assert!(client.is_alive());
    std::thread::sleep(Duration::from_millis(50));
    client.reset(1, CANCEL);
    client.reset(3, CANCEL);
    until("both are reset", || resets.load(Ordering::SeqCst) == 2);
}

#[test]
fn a_backend_that_floods_is_left() {
    let origin = raw(|client, frame| {
        if frame.kind == HEADERS {
            for _ in 0..20_000 {
                client.send(PING, 0, 0, [0; 8]);
            }
        }
    });
    let stage = before(&[origin.address]);
    let mut client = stage.client();
    assert_eq!(client.ask(1, "/").status, 502);
}

/// 100,000 requests, none of which fails.
#[test]
fn h2load_counts_no_failure() {
    let (origin, _) = origin();
    let stage = Stage::new(&[origin.address]);
    let url = format!("http://{}/", stage.bed.address(stage.port));
    let output = Command::new("h2load").args(["-n", "100000", "-c", "10", "-m", "10", &url]).output();
    let output = output.expect("h2load is missing: tests/install installs it");
    let text = String::from_utf8_lossy(&output.stdout);
    let counts = text.lines().find(|line| line.starts_with("requests:")).unwrap_or_default();
    let wanted = "100000 total, 100000 started, 100000 done, 100000 succeeded, 0 failed, 0 errored, 0 timeout";
    assert!(counts.contains(wanted), "{text}");
}
