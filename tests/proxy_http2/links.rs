//! Connections to backends that speak HTTP/2 (`h2c`), and what goes wrong on them.

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::backends::{STATUS_200, before, before_with, raw};
use super::support::frames::*;
use super::support::{Origin, Wire};
use super::{Stage, origin};

/// A backend that does `act` with the first request on its first connection, and answers every other with its number.
fn at_first(act: impl Fn(&mut Client, u32) + Send + Sync + 'static) -> (Origin, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let origin = raw(move |client, frame| {
        if frame.kind == HEADERS {
            match count.fetch_add(1, Ordering::SeqCst) {
                0 => act(client, frame.stream),
                number => {
                    client.send(HEADERS, END_HEADERS, frame.stream, [STATUS_200]);
                    client.send(DATA, END_STREAM, frame.stream, number.to_string());
                }
            }
        }
    });
    (origin, seen)
}

#[test]
fn a_response_without_a_body_has_none() {
    const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    for status in ["204", "304"] {
        let answer = move |client: &mut Client, stream| {
            client.send(HEADERS, END_HEADERS, stream, block(&[(":status", status)]));
            client.send(DATA, 0, stream, EVIL);
            client.send(HEADERS, END_HEADERS | END_STREAM, stream, block(&[("x-sum", "1")]));
        };
        let (first, _) = at_first(answer);
        let stage = before(&[first.address]);
        let mut wire = Wire::new(stage.bed.connect(stage.port));
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(wire.response().status().to_string(), status);
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(wire.response().text(), "1", "{status}");
        let (first, _) = at_first(answer);
        let stage = before(&[first.address]);
        let mut client = stage.client();
        let answer = client.ask(1, "/");
        assert_eq!((answer.status.to_string().as_str(), answer.is_whole), (status, true));
        assert!(answer.body.is_empty() && answer.trailers.is_empty());
        assert_eq!(client.ask(3, "/").text(), "1", "{status}");
    }
}

/// What becomes of a response that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The client is told that the backend is no good.
    BadGateway,
    /// It has begun, and does not look whole.
    Broken,
}

#[test]
fn nonsense_of_a_backend_is_no_response() {
    type Act = fn(&mut Client, u32);
    let cases: [(&str, Act, Fate); 8] = [
        ("no status", |client, id| client.send(HEADERS, END_HEADERS, id, block(&[("x", "y")])), Fate::BadGateway),
        (
            "a status of letters",
            |client, id| client.send(HEADERS, END_HEADERS, id, block(&[(":status", "abc")])),
            Fate::BadGateway,
        ),
        ("a body first", |client, id| client.send(DATA, END_STREAM, id, "abc"), Fate::BadGateway),
        (
            "another protocol",
            |client, id| {
                let block = block(&[(":status", "101"), ("x-upgrade", "websocket")]);
                client.send(HEADERS, END_HEADERS, id, block);
            },
            Fate::BadGateway,
        ),
        (
            "hints without end",
            |client, id| {
                for _ in 0..100 {
                    client.send(HEADERS, END_HEADERS, id, block(&[(":status", "103"), ("link", "</a>")]));
                }
            },
            Fate::BadGateway,
        ),
        (
            "less than was said",
            |client, id| {
                client.send(HEADERS, END_HEADERS, id, block(&[(":status", "200"), ("content-length", "5")]));
                client.send(DATA, END_STREAM, id, "abc");
            },
            Fate::Broken,
        ),
        (
            "more than was said",
            |client, id| {
                client.send(HEADERS, END_HEADERS, id, block(&[(":status", "200"), ("content-length", "2")]));
                client.send(DATA, END_STREAM, id, "abc");
            },
            Fate::Broken,
        ),
        (
            "a length that is none",
            |client, id| {
                client.send(HEADERS, END_HEADERS, id, block(&[(":status", "200"), ("content-length", "+3")]));
                client.send(DATA, END_STREAM, id, "abc");
            },
            Fate::BadGateway,
        ),
    ];
    for (what, act, fate) in cases {
        let (backend, _) = at_first(act);
        let stage = before(&[backend.address]);
        let mut wire = Wire::new(stage.bed.connect(stage.port));
        // No request that may be asked again.
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        let response = loop {
            let response = wire.response();
            assert_ne!(response.status(), 101, "{what}");
            if response.status() >= 200 {
                break response;
            }
        };
        // More than was said may be found out before anything is passed on, or after.
        let is_none = response.status() == 502 || response.is_cut;
        assert!(is_none && (fate == Fate::Broken || response.status() == 502), "{what}: {response:?}");
        let (backend, _) = at_first(act);
        let stage = before(&[backend.address]);
        let mut client = stage.client();
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("POST", "/", &[]));
        let answer = client.answer(1);
        let is_none = answer.status == 502 || answer.reset == Some(INTERNAL_ERROR);
        assert!(is_none && (fate == Fate::Broken || answer.status == 502), "{what}: {answer:?}");
        assert!(client.is_alive(), "{what}");
        assert!(!client.ask(3, "/").text().is_empty(), "{what}: the backend is asked again");
    }
}

#[test]
fn hints_of_a_backend_pass() {
    let (backend, _) = at_first(|client, id| {
        client.send(HEADERS, END_HEADERS, id, block(&[(":status", "103"), ("link", "</a>")]));
        client.send(HEADERS, END_HEADERS | END_STREAM, id, [STATUS_200]);
    });
    let stage = before(&[backend.address]);
    let mut client = stage.client();
    let answer = client.ask(1, "/");
    assert_eq!((answer.informational, answer.status, answer.is_whole), (vec![103], 200, true));
}

/// A target that HTTP/1.1 lets pass and this protocol does not.
#[test]
fn a_target_is_asked_for_in_words_of_the_protocol() {
    let origin = Origin::start(|stream| {
        let mut wire = Wire::new(stream);
        while let Some(request) = wire.request() {
            let target = request.line.split(' ').nth(1).unwrap();
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len()));
        }
    });
    let behind = Stage::new(&[origin.address]);
    let stage = before(&[behind.bed.address(behind.port)]);
    for (target, wanted) in
        [("/a`b", "/a%60b"), ("/?q=\"x\"", "/?q=%22x%22"), ("/a|b^{c}\\?d`e", "/a|b^{c}\\?d`e"), ("/%60", "/%60")]
    {
        let mut wire = Wire::new(stage.bed.connect(stage.port));
        wire.send(format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok"));
        let response = wire.response();
        assert_eq!((response.status(), response.text()), (200, wanted), "{target}");
    }
}

#[test]
fn a_connection_that_ends_is_replaced_by_another_to_the_same_backend() {
    let away = |client: &mut Client, _| client.send(GOAWAY, 0, 0, [0; 8]);
    let away_and_closed = |client: &mut Client, _| {
        client.send(GOAWAY, 0, 0, [0; 8]);
        client.stream.shutdown(Shutdown::Both).unwrap();
    };
    for act in [away, away_and_closed] {
        let (backend, seen) = at_first(act);
        let stage = before(&[backend.address]);
        let mut wire = Wire::new(stage.bed.connect(stage.port));
        // A POST, too: nothing was done with it.
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok");
        let response = wire.response();
        assert_eq!((response.status(), response.text()), (200, "1"));
        assert_eq!((seen.load(Ordering::SeqCst), backend.accepted.load(Ordering::SeqCst)), (2, 2));
    }
}

#[test]
fn a_connection_that_is_closed_just_as_it_is_used_is_no_failure() {
    // The first request is answered, the second finds the connection closed.
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let backend = raw(move |client, frame| {
        if frame.kind == HEADERS {
            count.fetch_add(1, Ordering::SeqCst);
            match frame.stream {
                1 => client.send(HEADERS, END_HEADERS | END_STREAM, 1, [STATUS_200]),
                _ => client.stream.shutdown(Shutdown::Both).unwrap(),
            }
        }
    });
    let stage = before(&[backend.address]);
    let mut client = stage.client();
    for number in 0..10 {
        assert_eq!(client.ask(1 + 2 * number, "/").status, 200, "request {number}");
    }
    assert_eq!((seen.load(Ordering::SeqCst), stage.bed.counters.retries.get()), (19, 0));
    // What may not be asked twice is not.
    client.send(HEADERS, END_HEADERS | END_STREAM, 101, request("POST", "/", &[]));
    assert_eq!(client.answer(101).status, 502);
    assert_eq!(seen.load(Ordering::SeqCst), 20);
}

#[test]
fn what_is_refused_goes_elsewhere_with_its_body() {
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let refusing = raw(move |client, frame| {
        if frame.kind == HEADERS {
            count.fetch_add(1, Ordering::SeqCst);
            client.reset(frame.stream, REFUSED_STREAM);
        }
    });
    let (origin, seen) = origin();
    let good = Stage::new(&[origin.address]);
    let stage = before(&[refusing.address, good.bed.address(good.port)]);
    let mut wire = Wire::new(stage.bed.connect(stage.port));
    for number in 0..10 {
        wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nnumber {number}"));
        let response = wire.response();
        assert_eq!((response.status(), response.text()), (200, &*format!("number {number}")));
    }
    assert_eq!(seen.load(Ordering::SeqCst), 10);
    assert!(refused.load(Ordering::SeqCst) >= 2);
}

#[test]
fn who_takes_nothing_holds_up_nobody_else() {
    let (origin, _) = origin();
    let behind = Stage::new(&[origin.address]);
    let stage = before(&[behind.bed.address(behind.port)]);
    let accepted = behind.bed.counters.connections.get();
    let mut stalled = Client::with(stage.bed.connect(stage.port), &[(4, 0)]);
    for number in 0..60 {
        stalled.get(1 + 2 * number, "/big");
    }
    stalled
        .until("all have begun", |client| client.answers.values().filter(|answer| answer.status == 200).count() == 60);
    let mut client = stage.client();
    for number in 0..30 {
        assert_eq!(client.ask(1 + 2 * number, "/big").body.len(), 100_000, "request {number}");
    }
    assert_eq!(behind.bed.counters.connections.get() - accepted, 1, "they share a connection");
    assert!(stalled.answers.values().all(|answer| answer.body.is_empty()));
}

/// Both ends of gRPC's for Go send a window and a PING for every round in which something came.
#[test]
fn who_measures_the_way_with_every_message_is_no_flood() {
    const MESSAGES: usize = 600;
    let measure = |client: &mut Client| {
        client.window(0, 5);
        client.send(PING, 0, 0, *b"measured");
    };
    let backend = raw(move |client, frame| match frame.kind {
        HEADERS => client.send(HEADERS, END_HEADERS, frame.stream, [STATUS_200]),
        DATA => {
            measure(client);
            client.send(DATA, 0, frame.stream, "pong!");
        }
        _ => {}
    });
    let stage = before(&[backend.address]);
    let mut client = stage.client();
    client.gives_way = false;
    client.post(1, "/", &[]);
    for number in 1..=MESSAGES {
        client.data(1, 0, "ping!");
        client
            .until("an answer", |client| client.answers.get(&1).is_some_and(|answer| answer.body.len() == 5 * number));
        measure(&mut client);
        client.frames.clear();
    }
    assert!(client.is_alive() && client.goaways.is_empty() && client.answers[&1].reset.is_none());
}

#[test]
fn large_heads_are_no_flood() {
    let (origin, _) = origin();
    let behind = Stage::new(&[origin.address]);
    let value = "v".repeat(12_000);
    let backend = raw(move |client, frame| {
        if frame.kind == HEADERS {
            let fields = block(&[(":status", "200"), ("x", &*value)]);
            client.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, fields);
        }
    });
    let heads = before(&[backend.address]);
    let mut client = heads.client();
    for number in 0..100 {
        // None that would be asked again.
        client.send(HEADERS, END_HEADERS | END_STREAM, 1 + 2 * number, request("POST", "/", &[]));
        assert_eq!(client.answer(1 + 2 * number).status, 200, "request {number}");
    }
    // And large targets of a client.
    let path = format!("/{}", "p".repeat(6_000));
    let mut client = behind.client();
    for number in 0..200 {
        assert_eq!(client.ask(1 + 2 * number, &path).status, 200, "request {number}");
    }
}

/// A backend that answers what has no body with small frames, and takes no more of one than the protocol's first window.
fn of_small_frames() -> Origin {
    raw(|client, frame| {
        if frame.kind == HEADERS && frame.is(END_STREAM) {
            client.send(HEADERS, END_HEADERS, frame.stream, [STATUS_200]);
            let small = |number| Frame::new(DATA, 0, frame.stream, format!("{number:040}")).bytes();
            client.send_bytes((0..1600).flat_map(small).collect::<Vec<_>>());
            client.send(DATA, END_STREAM, frame.stream, "");
        }
    })
}

#[test]
fn small_messages_that_nobody_takes_end_no_connection() {
    let backend = of_small_frames();
    let stage = before(&[backend.address]);
    let whole: String = (0..1600).map(|number| format!("{number:040}")).collect();
    // To a client that takes nothing.
    let mut stalled = Client::with(stage.bed.connect(stage.port), &[(4, 0)]);
    stalled.gives_way = false;
    stalled.window(0, 20 << 20);
    for number in 0..40 {
        stalled.get(1 + 2 * number, "/");
    }
    let count = |client: &Client, is: fn(&Answer) -> bool| client.answers.values().filter(|answer| is(answer)).count();
    stalled.until("all have begun", |client| count(client, |answer| answer.status == 200) == 40);
    let mut client = stage.client();
    assert_eq!(client.ask(1, "/").text(), whole);
    // To a backend that takes nothing.
    let mut left = client.settings[&4] as usize;
    client.post(3, "/", &[]);
    let mut is_given = true;
    while is_given {
        let small = || Frame::new(DATA, 0, 3, [b'x'; 40]).bytes();
        client.send_bytes((0..left / 40).flat_map(|_| small()).collect::<Vec<_>>());
        left %= 40;
        is_given = client.until_within(Duration::from_millis(500), |client| client.given.contains_key(&3));
        left += client.given.remove(&3).unwrap_or_default();
    }
    assert!(client.is_alive());
    assert_eq!(client.ask(5, "/").text(), whole);
    stalled.send(SETTINGS, 0, 0, setting(4, 1 << 20));
    stalled.until("all are whole", |client| count(client, |answer| answer.is_whole) == 40);
    assert!(stalled.answers.values().all(|answer| answer.text() == whole));
}

/// A machine that was switched off says nothing: who comes after a time-out does not wait for another.
#[test]
fn a_connection_on_which_nothing_is_heard_is_left() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let backend = raw(move |client, frame| match frame.kind {
        SETTINGS if frame.flags == 0 => drop(count.fetch_add(1, Ordering::SeqCst)),
        // The first connection falls silent after its first answer.
        HEADERS if frame.stream == 1 || count.load(Ordering::SeqCst) > 1 => {
            client.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, [STATUS_200]);
        }
        _ => {}
    });
    let stage = before_with(&[backend.address], |config| config.timeouts.response = Duration::from_millis(300));
    let mut client = stage.client();
    assert_eq!(client.ask(1, "/").status, 200);
    assert_eq!(client.ask(3, "/").status, 504);
    assert_eq!(client.ask(5, "/").status, 200);
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}
