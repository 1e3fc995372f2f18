//! What goes wrong between a client, the proxy and a backend over HTTP/1.1, each fault by its name: what is promised
//! when it happens, beside a recording origin.
//!
//! `SCRIMP_TEST_STRICT=part` in the environment looks at the rogue responses whose beginning holds that part, and at no
//! other.
#![allow(missing_docs)]

mod support;

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use scrimp::app::AppState;
use support::front::{Client, Front};
use support::origin::{Gate, Recorder, Seen, Step};
use support::reader::Stop;
use support::{BlackHole, Message, Node, SOON, fill, http_app, is_ended, nobody, ok, reset, until};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello";

fn get(path: &str) -> String {
    GET.replacen('/', path, 1)
}

/// An origin that does as `script` says for `/rogue`, and answers everything else with its target.
fn rogue(script: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static) -> Recorder {
    Recorder::new(move |seen| match seen.target() {
        "/rogue" => script(seen),
        target => Step::answer(ok(target)),
    })
}

/// The next client, on the connections that the last one left, gets its own answer.
fn next_client_is_served(front: &Front) {
    for path in ["/next", "/after"] {
        assert_eq!(front.get(path).text(), path);
    }
}

/// So long that nothing is over before, and so short that it is waited for.
const SHORT: Duration = Duration::from_millis(300);

#[test]
fn p_refused_is_tried_elsewhere_whatever_the_method() {
    let origin = Recorder::named("good");
    let addresses: Vec<_> = (0..9).map(|_| nobody()).chain([origin.address]).collect();
    let front = Front::new(&addresses);
    for method in ["GET", "POST", "PATCH", "DELETE"] {
        for _ in 0..3 {
            let response = front.ask(format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
            assert_eq!((response.status(), response.text()), (200, "good"), "{method}");
        }
    }
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    assert_eq!(front.ask(chunked).status(), 200);
    let seen = origin.requests();
    assert_eq!((seen.len(), seen[12].message.body.as_slice()), (13, &b"hello"[..]), "each once");
}

#[test]
fn p_refused_by_all_is_a_502() {
    let front = Front::new(&[nobody(), nobody(), nobody(), nobody()]);
    let mut client = front.client();
    for _ in 0..3 {
        client.send(POST);
        let response = client.response("POST");
        assert_eq!(response.status(), 502);
        if response.field("connection") == Some("close") {
            client = front.client();
        }
    }
}

#[test]
fn p_connto_moves_on_after_the_deadline_and_delays_nobody_else() {
    // So long that who does not have to wait is answered before, on a machine that is busy.
    const LIMIT: Duration = Duration::from_secs(1);
    let (hole, origin) = (BlackHole::new(), Recorder::named("good"));
    let front = Front::with(&[hole.address, origin.address], |config| config.timeouts.connect = LIMIT);
    let times: Vec<Duration> = thread::scope(|scope| {
        let ask = || {
            let start = Instant::now();
            assert_eq!(front.ask(POST).text(), "good");
            start.elapsed()
        };
        let clients: Vec<_> = (0..10).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let waited = times.iter().filter(|time| **time >= LIMIT).count() as u64;
    assert_eq!(
        waited,
        front.bed.counters.connect_failures.get(),
        "who met the hole waited, and nobody else: {times:?}"
    );
    assert!((1..10).contains(&waited), "{waited} of 10 met the hole");
    assert!(times.iter().all(|time| *time < LIMIT * 2), "one deadline, and all at once: {times:?}");
    assert_eq!(origin.log().whole(), 10, "each once");
    let front = Front::with(&[hole.address], |config| config.timeouts.connect = SHORT);
    assert_eq!(front.get("/").status(), 502);
}

/// An origin that reads a request and ends without a word.
fn dying() -> Recorder {
    Recorder::new(|_| vec![Step::Body, Step::Close])
}

#[test]
fn p_die_before_repeats_what_is_harmless_once_and_nothing_else() {
    let (dying, good) = (dying(), Recorder::named("good"));
    let front = Front::new(&[dying.address, good.address]);
    for method in ["GET", "HEAD", "OPTIONS", "DELETE"] {
        for _ in 0..4 {
            let response = front.ask(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!(response.status(), 200, "{method}");
        }
    }
    let before = dying.log().requests.len();
    assert!(before > 0, "the dying one had its share");
    for request in [
        POST.to_owned(),
        POST.replace("POST", "PATCH"),
        POST.replace("POST", "X"),
        POST.replace("Content-Length: 5\r\n\r\nhello", "Content-Length: 0\r\n\r\n"),
    ] {
        let statuses: Vec<u16> = (0..4).map(|_| front.ask(&request).status()).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 502).count(), 2, "{request:?}: {statuses:?}");
    }
    assert_eq!(dying.log().requests.len(), before + 8, "each went there once");
    assert_eq!(good.log().requests.iter().filter(|seen| seen.method() == "POST").count(), 4, "and was not sent twice");
}

#[test]
fn p_die_before_on_a_kept_connection_does_not_repeat_a_post() {
    // It answers the first request of a connection, and dies of the second.
    let origin = Recorder::new(|seen| match seen.number {
        0 => Step::answer(ok("first")),
        _ => vec![Step::Body, Step::Close],
    });
    let front = Front::new(&[origin.address]);
    assert_eq!(front.ask(POST).text(), "first");
    assert_eq!(front.ask(POST).status(), 502);
    let seen = origin.requests();
    assert_eq!(seen.iter().map(|seen| (seen.connection, seen.number)).collect::<Vec<_>>(), [(0, 0), (0, 1)]);
}

#[test]
fn p_die_before_on_a_kept_connection_repeats_a_get_over_a_fresh_one() {
    let origin = Recorder::new(|seen| match seen.number {
        0 => Step::answer(ok("first")),
        _ => vec![Step::Close],
    });
    let front = Front::new(&[origin.address]);
    assert_eq!(front.ask(GET).text(), "first");
    assert_eq!(front.ask(GET).text(), "first", "there is no other backend, and nothing was wrong with this one");
    let seen = origin.requests();
    assert_eq!(seen.iter().map(|seen| (seen.connection, seen.number)).collect::<Vec<_>>(), [(0, 0), (0, 1), (1, 0)]);
}

#[test]
fn p_die_mid_is_an_error_for_the_client_and_never_a_clean_end() {
    for ends_with in [Step::Close, Step::Reset] {
        for (framing, part) in [
            ("Content-Length: 10", "half!"),
            ("Transfer-Encoding: chunked", "5\r\nhalf!\r\n"),
            ("Transfer-Encoding: chunked", "9\r\nhalf!"),
            ("Transfer-Encoding: chunked", "5\r\nhalf!\r\n0\r\n"),
            ("Transfer-Encoding: chunked", "5\r\nhalf!\r\n0\r\nA: b\r\n"),
        ] {
            let (end, had) = (ends_with.clone(), Gate::new());
            let may = had.clone();
            let origin = rogue(move |_| {
                let answer = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{part}");
                vec![Step::send(answer), Step::Wait(may.clone()), end.clone()]
            });
            let front = Front::new(&[origin.address]);
            let mut client = front.client();
            client.send(get("/rogue"));
            let (mut message, _) = client.reader.head().unwrap();
            assert_eq!(message.status(), 200);
            // A reset overtakes what was sent before: it is let go when that has arrived.
            had.open();
            let stop = client.reader.body(&mut message, support::reader::Without::ToEnd).expect_err("not whole");
            assert!(matches!(stop, Stop::Cut | Stop::Reset), "{framing} {part:?}: {stop:?}");
            assert!(b"half!".starts_with(&message.body), "{message:?}");
            next_client_is_served(&front);
        }
    }
}

#[test]
fn p_die_mid_is_a_reset_where_the_end_of_the_connection_ends_the_body() {
    let had = Gate::new();
    let may = had.clone();
    let origin = rogue(move |_| {
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf!\r\n";
        vec![Step::send(answer), Step::Wait(may.clone()), Step::Close]
    });
    let front = Front::new(&[origin.address]);
    let mut client = front.client();
    client.send("GET /rogue HTTP/1.0\r\nHost: a\r\n\r\n");
    let (head, _) = client.reader.head().unwrap();
    assert_eq!(head.status(), 200);
    had.open();
    assert_eq!(client.reader.rest().1, Stop::Reset);
}

#[test]
fn p_die_100_is_a_502_and_stops_the_client() {
    let origin = Recorder::new(|_| vec![Step::send("HTTP/1.1 100 Continue\r\n\r\n"), Step::Close]);
    let front = Front::new(&[origin.address]);
    let mut client = front.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let (interim, last) = client.reader.response("POST").unwrap();
    assert_eq!((interim.len(), last.status()), (1, 502));
    assert!(matches!(client.reader.rest().1, Stop::End | Stop::Reset), "a body that nobody waits for is not taken");
}

#[test]
fn p_early_is_delivered_and_no_connection_is_used_again() {
    let body = get("/smuggled").repeat(400_000);
    for close in [true, false] {
        // It reads nothing of the body, and closes or does not.
        let end = Gate::new();
        let may = end.clone();
        let origin = Recorder::new(move |seen| match seen.target() {
            "/early" => {
                let last = if close { Step::Close } else { Step::Wait(may.clone()) };
                vec![Step::send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig"), last]
            }
            target => Step::answer(ok(target)),
        });
        let front = Front::new(&[origin.address]);
        let mut client = front.client();
        client.send(format!("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
        let mut writer = client.stream.try_clone().unwrap();
        let sending = thread::spawn({
            let body = body.clone();
            move || writer.write_all(body.as_bytes()).is_ok()
        });
        let response = client.response("POST");
        assert_eq!((response.status(), response.text()), (413, "big"), "close: {close}");
        let (rest, stop) = client.reader.rest();
        assert_eq!(rest, b"", "what was left of the body was taken for a request");
        assert!(matches!(stop, Stop::End | Stop::Reset), "close: {close}: {stop:?}");
        sending.join().unwrap();
        assert_eq!(front.get("/next").text(), "/next");
        let seen = origin.requests();
        assert_eq!(seen.iter().map(Seen::target).collect::<Vec<_>>(), ["/early", "/next"]);
        assert_eq!(seen[1].connection, 1, "on a connection of its own");
        end.open();
        origin.until("the first connection ends", |log| log.connections[0].end.is_some());
    }
}

#[test]
fn p_early_a_client_that_is_still_sending_is_not_reset_at_once() {
    let origin = Recorder::new(|_| {
        vec![Step::send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig"), Step::Close]
    });
    let front = Front::new(&[origin.address]);
    let mut client = front.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    assert_eq!(client.response("POST").text(), "big");
    assert_eq!(client.reader.rest().1, Stop::End);
    // A reset could overtake the response on its way. What is sent for a while is read, and thrown away.
    for _ in 0..10 {
        client.stream.write_all(&[b'x'; 1000]).expect("the connection is not reset yet");
        thread::sleep(Duration::from_millis(10));
    }
    let closed = &front.bed.counters.connections_closed;
    until("it is closed in the end", || closed.get() == front.bed.counters.connections.get());
}

#[test]
fn p_early_before_a_body_that_ends_soon_keeps_order() {
    let (head_came, body_may) = (Gate::new(), Gate::new());
    let may = body_may.clone();
    let origin = Recorder::new(move |seen| match seen.target() {
        "/early" => vec![Step::send(ok("early")), Step::Wait(may.clone()), Step::Body],
        target => Step::answer(ok(target)),
    });
    let front = Front::new(&[origin.address]);
    let mut client = front.client();
    client.send("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel");
    assert_eq!(client.response("POST").text(), "early");
    head_came.open();
    // Whether the connection is kept is the proxy's choice; what comes on it is not a part of the body.
    client.offer("lo");
    client.offer(get("/next"));
    body_may.open();
    match client.reader.response("GET") {
        Ok((_, response)) => assert_eq!(response.text(), "/next"),
        Err(stop) => assert!(matches!(stop, Stop::End | Stop::Reset), "{stop:?}"),
    }
    assert_eq!(front.get("/after").text(), "/after");
    assert!(origin.requests().iter().all(|seen| ["/early", "/next", "/after"].contains(&seen.target())));
}

#[test]
fn p_half_a_client_that_ends_behind_a_whole_request_is_taken_for_gone() {
    let go = Gate::new();
    let may = go.clone();
    let origin = Recorder::new(move |_| vec![Step::Body, Step::Wait(may.clone()), Step::send(ok("late"))]);
    let front = Front::new(&[origin.address]);
    let mut client = front.client();
    client.send(POST);
    origin.until("the request is there", |log| log.whole() == 1);
    client.finish();
    // Before the origin has said a word: nobody waits for it.
    assert_eq!(client.reader.rest(), (Vec::new(), Stop::End));
    until("it is over", || front.bed.counters.connections_closed.get() == front.bed.counters.connections.get());
    go.open();
    origin.until("the origin is told", |log| log.connections[0].end.is_some());
    assert_eq!(origin.log().requests.len(), 1, "it is not sent twice");
}

#[test]
fn p_half_a_request_cut_short_is_no_request() {
    let origin = Recorder::named("origin");
    let front = Front::new(&[origin.address]);
    for part in [
        "GET / HTTP/1.1\r\nHost: a",
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let mut client = front.client();
        client.send(part);
        client.finish();
        let outcome = client.outcome("POST", SOON);
        assert!(outcome.is_closed() && outcome.statuses().iter().all(|status| *status >= 400), "{part:?}: {outcome:?}");
    }
    until("all are over", || front.bed.counters.connections.get() == front.bed.counters.connections_closed.get());
    assert_eq!(origin.log().whole(), 0);
}

#[test]
fn p_half_a_backend_that_says_all_at_once_and_stops_talking_is_whole() {
    let origin = rogue(|_| vec![Step::send(ok("all")), Step::HalfClose, Step::UntilEnd]);
    let front = Front::new(&[origin.address]);
    let response = front.get("/rogue");
    assert_eq!((response.text(), response.is_cut), ("all", false));
    next_client_is_served(&front);
    assert!(origin.requests().iter().all(|seen| seen.connection > 0 || seen.number == 0), "not used again");
    let silent = Recorder::new(|_| vec![Step::Body, Step::HalfClose, Step::UntilEnd]);
    assert_eq!(Front::new(&[silent.address]).ask(POST).status(), 502, "it says nothing");
}

#[test]
fn p_rst_by_the_client_at_any_point_frees_both_sides_within_a_second() {
    let origin =
        rogue(|_| vec![Step::Body, Step::send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf!"), Step::UntilEnd]);
    let waiting = Gate::new();
    let may = waiting.clone();
    let mute = Recorder::new(move |_| vec![Step::Body, Step::Wait(may.clone()), Step::Close]);
    for (address, log, part) in [
        (origin.address, None, ""),
        (origin.address, None, "GET / HT"),
        (origin.address, None, "GET /rogue HTTP/1.1\r\nHost: a"),
        (origin.address, Some(&origin), "POST /rogue HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel"),
        (origin.address, Some(&origin), "POST /rogue HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe"),
        (origin.address, Some(&origin), "GET /rogue HTTP/1.1\r\nHost: a\r\n\r\n"),
        (mute.address, Some(&mute), "GET /mute HTTP/1.1\r\nHost: a\r\n\r\n"),
    ] {
        let front = Front::new(&[address]);
        let mut client = front.client();
        client.send(part);
        let before = log.map(|log| log.log().connections.len()).unwrap_or_default();
        if let Some(log) = log {
            log.until("the request is there", |log| {
                log.requests.last().is_some_and(|seen| log.connections[seen.connection].end.is_none())
            });
        }
        until("it is taken", || front.bed.counters.connections.get() == 1);
        let start = Instant::now();
        reset_both(client);
        until("the client's connection is over", || front.bed.counters.connections_closed.get() == 1);
        if part.starts_with("GET /mute") {
            // Its script waits: it sees the end when it goes on.
            waiting.open();
        }
        if let Some(log) = log {
            log.until("the origin's is over", |log| log.connections.iter().all(|one| one.is_done));
            assert!(start.elapsed() < Duration::from_secs(1), "{part:?}: {:?}", start.elapsed());
            assert!(log.log().connections.len() <= before + 1);
        }
    }
}

fn reset_both(client: Client) {
    let Client { stream, reader } = client;
    drop(reader);
    reset(stream);
}

#[test]
fn p_rst_by_the_backend_at_any_point_is_a_502_or_a_cut() {
    for (said, status) in [
        ("", 502),
        ("HTTP/1.1 2", 502),
        ("HTTP/1.1 200 OK\r\nContent-Le", 502),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", 200),
    ] {
        let go = Gate::new();
        let may = go.clone();
        let origin = rogue(move |_| vec![Step::Body, Step::send(said), Step::Wait(may.clone()), Step::Reset]);
        let front = Front::new(&[origin.address]);
        let mut client = front.client();
        client.send(POST.replacen('/', "/rogue", 1));
        origin.until("the request is there", |log| log.whole() == 1);
        if status == 200 {
            let (mut head, _) = client.reader.head().unwrap();
            go.open();
            assert_eq!(head.status(), 200);
            assert!(client.reader.body(&mut head, support::reader::Without::ToEnd).is_err(), "{said:?}");
        } else {
            go.open();
            assert_eq!(client.response("POST").status(), status, "{said:?}");
        }
        next_client_is_served(&front);
    }
}

/// How long it takes until the proxy ends a connection on which this was said, with a byte of `drip` every few
/// milliseconds.
fn time_to_end(front: &Front, begin: &str, drip: &str) -> Duration {
    let start = Instant::now();
    let mut client = front.client();
    client.send(begin);
    let mut more = drip.bytes().cycle();
    until("it is closed", || {
        if let Some(byte) = more.next() {
            client.offer([byte]);
            thread::sleep(Duration::from_millis(10));
        }
        // What it says before it ends is not the end.
        client.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        loop {
            match client.stream.read(&mut [0; 1000]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return !matches!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    });
    start.elapsed()
}

#[test]
fn p_slowloris_is_closed_at_its_deadline() {
    let origin = Recorder::named("origin");
    let front = Front::with(&[origin.address], |config| {
        config.timeouts.first_byte = Duration::from_millis(500);
        config.timeouts.header = Duration::from_millis(1000);
        config.timeouts.idle = Duration::from_millis(1500);
    });
    let late = Duration::from_millis(900);
    for (begin, drip, deadline) in [
        ("", "", 500),
        ("G", "", 1000),
        ("\r\n", "", 500),
        ("GET / HTTP/1.1\r\nHost: a.example\r\n", "", 1000),
        ("GET / HTTP/1.1\r\nHost: a.example\r\nA: ", "b", 1000),
        ("GET / HTTP/1.1\r\nHost: a.example\r\n", "A: b\r\n", 1000),
        ("GET /", "x", 1000),
        ("PRI * HTTP/2.0\r\n", "", 1000),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n", "", 1000),
        (GET, "", 1500),
        (
            GET,
            "GET / HTTP/1.1\r\nHost: a.example\r\nA: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            1000,
        ),
    ] {
        let (deadline, took) = (Duration::from_millis(deadline), time_to_end(&front, begin, drip));
        let is_http2 = begin.starts_with("PRI");
        assert!(took < deadline + late && (took >= deadline || is_http2), "{begin:?} + {drip:?}: {took:?}");
    }
    // Who says nothing at first has not won that time for its header.
    let start = Instant::now();
    let mut client = front.client();
    thread::sleep(Duration::from_millis(400));
    client.send("GET / HTTP/1.1\r\n");
    until("it is closed", || is_ended(&client.stream));
    assert!(start.elapsed() < Duration::from_millis(1350), "{:?}", start.elapsed());
    assert!(origin.requests().iter().all(|seen| seen.target() == "/"));
}

#[test]
fn p_slowbody_is_closed_when_nothing_moves() {
    let origin = Recorder::named("origin");
    let front = Front::with(&[origin.address], |config| config.timeouts.body_progress = SHORT);
    for head in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ] {
        let mut client = front.client();
        let start = Instant::now();
        client.send(head);
        let outcome = client.outcome("POST", SOON);
        assert_eq!(outcome.statuses(), [408], "{head:?}");
        assert!(start.elapsed() >= SHORT, "{head:?}: {:?}", start.elapsed());
        origin.until("the backend's connection is freed", |log| log.connections.iter().all(|one| one.is_done));
    }
    assert_eq!(origin.log().whole(), 0);
}

/// What comes of a request whose body comes in `pieces`, with a little time between them.
fn drip(front: &Front, head: &str, pieces: impl IntoIterator<Item = String>) -> (Vec<u16>, Duration) {
    let mut client = front.client();
    client.send(head);
    let start = Instant::now();
    for piece in pieces {
        client.offer(piece);
        client.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        if client.stream.peek(&mut [0]).is_ok() {
            break;
        }
    }
    (client.outcome("POST", SOON).statuses(), start.elapsed())
}

#[test]
fn p_slowbody_is_closed_when_it_crawls() {
    const DEADLINE: Duration = Duration::from_millis(800);
    const HEAD: &str = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
    let origin = Recorder::named("origin");
    let front = Front::with(&[origin.address], |config| config.timeouts.body_progress = DEADLINE);
    let declared = |length: usize| format!("{HEAD}Content-Length: {length}\r\n\r\n");
    let chunked = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n");
    let pieces = |bytes: usize| std::iter::repeat_n("x".repeat(bytes), 40);
    // 20 bytes a second, at most.
    let (statuses, took) = drip(&front, &declared(400), pieces(1).chain(pieces(9)));
    assert_eq!(statuses, [408]);
    assert!(took >= DEADLINE && took < DEADLINE * 2, "{took:?}");
    origin.until("the backend's connection is freed", |log| log.connections.iter().all(|one| one.is_done));
    assert_eq!(origin.log().whole(), 0);
    // What comes steadily may take its time, and so may a stream, which says little and gives no length.
    let (statuses, took) = drip(&front, &declared(40 * 100), pieces(100));
    assert_eq!(statuses, [200]);
    assert!(took > DEADLINE * 2, "{took:?}");
    let stream = (0..40).map(|_| "1\r\nx\r\n".to_owned()).chain(["0\r\n\r\n".to_owned()]);
    assert_eq!(drip(&front, &chunked, stream).0, [200]);
    assert_eq!(origin.log().whole(), 2);
}

#[test]
fn p_slowbody_of_a_backend_is_cut_when_nothing_moves() {
    let origin =
        rogue(|_| vec![Step::Body, Step::send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf!"), Step::UntilEnd]);
    let front = Front::with(&[origin.address], |config| config.timeouts.body_progress = SHORT);
    let response = front.get("/rogue");
    assert_eq!((response.status(), response.is_cut, response.text()), (200, true, "half!"));
    origin.until("its connection is freed", |log| log.connections.iter().all(|one| one.is_done));
    next_client_is_served(&front);
}

#[test]
fn p_slowread_holds_the_backend_back_and_ends_at_its_deadline() {
    let origin = rogue(|_| {
        vec![Step::send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"), Step::Flood(vec![b'x'; 65536])]
    });
    let front = Front::with(&[origin.address], |config| config.timeouts.body_progress = Duration::from_millis(500));
    let mut client = front.client();
    client.send(get("/rogue"));
    let (head, _) = client.reader.head().unwrap();
    assert_eq!(head.status(), 200);
    // It reads no more. Both sides are let go.
    origin.until("the backend's connection is freed", |log| log.connections[0].is_done);
    until("the client's connection is over", || {
        front.bed.counters.connections.get() == front.bed.counters.connections_closed.get()
    });
    let (bytes, stop) = client.reader.rest();
    assert_eq!(stop, Stop::Reset, "it is not a clean end");
    assert!(bytes.len() < 24 * 1024 * 1024, "{} bytes were in flight", bytes.len());
    next_client_is_served(&front);
}

#[test]
fn p_upg_early_bytes_behind_a_declined_upgrade_are_the_next_request() {
    let upgrade = "GET /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let origin = Recorder::new(|seen| Step::answer(ok(seen.target())));
    let front = Front::new(&[origin.address]);
    let mut client = front.client();
    client.send([upgrade, &get("/second")].concat());
    assert_eq!(client.response("GET").text(), "/up");
    match client.reader.response("GET") {
        Ok((_, response)) => assert_eq!(response.text(), "/second"),
        Err(stop) => assert_eq!(stop, Stop::End, "or the connection ends"),
    }
    let mut client = front.client();
    client.send([upgrade, "\x01\x02nonsense\r\n\r\n"].concat());
    let outcome = client.outcome("GET", SOON);
    assert!(outcome.is_closed(), "{outcome:?}");
    assert!(matches!(outcome.statuses().as_slice(), [200] | [200, 400]), "{outcome:?}");
    assert!(origin.requests().iter().all(|seen| ["/up", "/second"].contains(&seen.target())), "nothing raw passed");
    next_client_is_served(&front);
}

#[test]
fn p_upg_early_nothing_passes_before_the_backend_has_agreed() {
    let agree = Gate::new();
    let may = agree.clone();
    let origin = Recorder::new(move |_| {
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello";
        vec![Step::Wait(may.clone()), Step::send(switch), Step::UntilEnd]
    });
    let front = Front::new(&[origin.address]);
    let mut client = front.client();
    client.send("GET /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly");
    origin.until("the request is there", |log| log.requests.len() == 1);
    assert!(!origin.log().connections[0].bytes.ends_with(b"early"), "it was passed on before there was a tunnel");
    agree.open();
    assert_eq!(client.response("GET").status(), 101);
    origin.until("the tunnel is there", |log| log.connections[0].bytes.ends_with(b"\r\n\r\nearly"));
    client.finish();
    assert_eq!(client.reader.rest().0, b"hello");
}

#[test]
fn p_1xx_pass_in_order_to_those_who_know_them() {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n\
                   HTTP/1.1 199 Odd\r\n\r\n";
    let origin = Recorder::saying([interim.as_bytes(), &ok("done")].concat());
    let front = Front::new(&[origin.address]);
    let mut client = front.client();
    for _ in 0..2 {
        client.send(GET);
        let (interim, response) = client.reader.response("GET").unwrap();
        assert_eq!(interim.iter().map(Message::status).collect::<Vec<_>>(), [103, 102, 103, 199]);
        assert_eq!((interim[0].field("link"), interim[2].field("link")), (Some("</a>"), Some("</b>")));
        assert_eq!(response.text(), "done");
    }
    let mut old = front.client();
    old.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    let (interim, response) = old.reader.response("GET").unwrap();
    assert_eq!((interim.len(), response.text()), (0, "done"), "HTTP/1.0 knows none");
}

#[test]
fn p_1xx_without_end_is_a_502() {
    for interim in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"] {
        let origin = rogue(move |_| vec![Step::Flood(interim.repeat(100).into_bytes())]);
        let front = Front::new(&[origin.address]);
        let mut client = front.client();
        client.send(get("/rogue"));
        // Those that came before it was found out may have passed.
        match client.reader.response("GET") {
            Ok((_, last)) => assert_eq!(last.status(), 502, "{interim:?}"),
            Err(stop) => assert!(matches!(stop, Stop::Cut | Stop::End | Stop::Reset), "{stop:?}"),
        }
        origin.until("the backend's connection is freed", |log| log.connections[0].is_done);
        next_client_is_served(&front);
    }
}

#[test]
fn p_1xx_an_upgrade_that_nobody_asked_for_is_a_502() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nraw";
    let origin = rogue(move |_| vec![Step::Body, Step::send(switch)]);
    let front = Front::new(&[origin.address]);
    for ask in [
        get("/rogue"),
        POST.replacen('/', "/rogue", 1),
        get("/rogue").replace("\r\n\r\n", "\r\nUpgrade: x\r\n\r\n"),
        get("/rogue").replace("\r\n\r\n", "\r\nConnection: upgrade\r\n\r\n"),
        get("/rogue").replace("\r\n\r\n", "\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
        get("/rogue")
            .replace("HTTP/1.1", "HTTP/1.0")
            .replace("\r\n\r\n", "\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"),
    ] {
        assert_eq!(front.ask(&ask).status(), 502, "{ask:?}");
        next_client_is_served(&front);
    }
}

const EXPECT: &str = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";

#[test]
fn p_expect_is_the_backends_to_answer() {
    let go = Gate::new();
    let may = go.clone();
    let origin = Recorder::new(move |_| {
        let go_on = Step::send("HTTP/1.1 100 Continue\r\n\r\n");
        vec![Step::Wait(may.clone()), go_on, Step::Body, Step::send(ok("done"))]
    });
    let front = Front::new(&[origin.address]);
    let mut client = front.client();
    client.send(EXPECT);
    origin.until("the head is there", |log| log.requests.len() == 1);
    assert!(origin.requests()[0].field("expect").is_some(), "the backend is asked");
    // The proxy has passed the head on, and says nothing of its own.
    client.stream.set_read_timeout(Some(SHORT)).unwrap();
    assert_eq!(client.reader.response("POST").unwrap_err(), Stop::Silence);
    client.stream.set_read_timeout(Some(SOON)).unwrap();
    go.open();
    let (interim, _) = client.reader.head().unwrap();
    assert_eq!(interim.status(), 100);
    client.send("hello");
    let (more, last) = client.reader.response("POST").unwrap();
    assert_eq!((more.len(), last.text()), (0, "done"));
    assert_eq!(origin.requests()[0].message.body, b"hello");
}

#[test]
fn p_expect_a_final_answer_stands_for_the_body() {
    for answer in [
        "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
    ] {
        let origin = rogue(move |_| vec![Step::send(answer), Step::UntilEnd]);
        let front = Front::new(&[origin.address]);
        let mut client = front.client();
        client.send(EXPECT.replacen('/', "/rogue", 1));
        let (interim, last) = client.reader.response("POST").unwrap();
        assert_eq!((interim.len(), last.text()), (0, "no"), "the body is not asked for");
        // Does the client send it all the same, or its next request? One connection cannot tell.
        client.offer(get("/smuggled"));
        let (rest, _) = client.reader.rest();
        assert_eq!(rest, b"");
        next_client_is_served(&front);
        assert!(!origin.requests().iter().any(|seen| seen.target() == "/smuggled"));
    }
}

#[test]
fn p_expect_of_http_1_0_is_not_answered_with_100() {
    let origin = Recorder::named("done");
    let front = Front::new(&[origin.address]);
    let mut client = front.client();
    client.send(EXPECT.replace("HTTP/1.1", "HTTP/1.0") + "hello");
    let (interim, last) = client.reader.response("POST").unwrap();
    assert_eq!((interim.len(), last.text()), (0, "done"));
}

#[test]
fn p_trailers_pass_and_those_that_would_change_the_message_do_not() {
    let forbidden =
        ["Content-Length: 9", "Transfer-Encoding: x", "Host: evil", "Authorization: evil", "Connection: evil"];
    let trailers = format!("X-Sum: 7\r\ngrpc-status: 0\r\n{}\r\n\r\n", forbidden.join("\r\n"));
    let answer =
        format!("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n{trailers}");
    let origin = Recorder::saying(answer);
    let front = Front::new(&[origin.address]);
    let response = front.ask(format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n{trailers}"
    ));
    let expected = [("x-sum".to_owned(), "7".to_owned()), ("grpc-status".to_owned(), "0".to_owned())];
    assert_eq!(response.trailers, expected, "to the client");
    assert_eq!(origin.requests()[0].message.trailers, expected, "to the backend");
}

#[test]
fn p_bodyless_answers_have_no_body_and_what_comes_behind_them_reaches_nobody() {
    for (request, answer) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nEXTRA"),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nEXTRA\r\n0\r\n\r\n"),
        ("HEAD", "HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nEXTRA"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\nEXTRA"),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nEXTRA"),
        ("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nEXTRA\r\n0\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nEXTRA"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nEXTRA\r\n0\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nEXTRA"),
        ("HEAD", "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nEXTRA"),
        ("POST", "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\nEXTRA"),
    ] {
        let origin = rogue(move |_| vec![Step::Body, Step::send(answer)]);
        let front = Front::new(&[origin.address]);
        let mut client = front.client();
        client.send(format!("{request} /rogue HTTP/1.1\r\nHost: a\r\n\r\n"));
        match client.reader.response(request) {
            Ok((_, response)) => {
                let status = answer.split(' ').nth(1).unwrap();
                assert!(response.body.is_empty(), "{request} {answer:?}: {response:?}");
                assert!([status, "502"].contains(&response.status().to_string().as_str()), "{response:?}");
                if status == "204" {
                    assert_eq!((response.field("content-length"), response.field("transfer-encoding")), (None, None));
                }
            }
            Err(stop) => panic!("{request} {answer:?}: {stop:?}"),
        }
        // The same client and the next one.
        client.offer(get("/mine"));
        match client.reader.response("GET") {
            Ok((_, response)) => assert_eq!(response.text(), "/mine", "{request} {answer:?}"),
            Err(stop) => assert!(matches!(stop, Stop::End | Stop::Reset), "{request} {answer:?}: {stop:?}"),
        }
        next_client_is_served(&front);
    }
}

/// A body that is so long that the kernel moves it.
fn long_body() -> Vec<u8> {
    (0..3_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

#[test]
fn p_rogue_be_behind_a_long_body_is_heard_by_nobody() {
    let body = long_body();
    let sent = [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
    for behind in ["", "EXTRA", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nEXTRA"] {
        let answer = [&sent, behind.as_bytes()].concat();
        let origin = rogue(move |_| vec![Step::Body, Step::send(&answer)]);
        let front = Front::new(&[origin.address]);
        let mut client = front.client();
        client.send(get("/rogue"));
        assert_eq!(differs_at(&client.response("GET").body, &body), None);
        client.send(get("/mine"));
        assert_eq!(client.response("GET").text(), "/mine", "{behind:?}");
        next_client_is_served(&front);
    }
}

#[test]
fn p_die_mid_in_a_long_body_is_an_error_too() {
    let body = long_body();
    for ends_with in [Step::Close, Step::Reset] {
        let part =
            [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len() + 1).as_bytes(), &body].concat();
        let end = ends_with.clone();
        let origin = rogue(move |_| vec![Step::send(&part), end.clone()]);
        let front = Front::new(&[origin.address]);
        let mut client = front.client();
        client.send(get("/rogue"));
        let (mut message, _) = client.reader.head().unwrap();
        let stop = client.reader.body(&mut message, support::reader::Without::ToEnd).expect_err("not whole");
        assert!(matches!(stop, Stop::Cut | Stop::Reset), "{stop:?}");
        assert_eq!(differs_at(&message.body, &body[..message.body.len()]), None);
        next_client_is_served(&front);
    }
}

#[test]
fn p_slowread_of_a_long_body_holds_the_backend_back_and_loses_nothing() {
    let body = long_body();
    let answer = [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
    let origin = rogue(move |_| vec![Step::Body, Step::send(&answer)]);
    let front = Front::new(&[origin.address]);
    let mut client = front.client();
    client.send(get("/rogue"));
    let (mut message, _) = client.reader.head().unwrap();
    // Others are served while it does not read.
    next_client_is_served(&front);
    client.reader.body(&mut message, support::reader::Without::ToEnd).unwrap();
    assert_eq!(differs_at(&message.body, &body), None);
}

/// Where what came is another thing than what was sent.
fn differs_at(came: &[u8], sent: &[u8]) -> Option<(usize, usize)> {
    let same = came.iter().zip(sent).take_while(|(came, sent)| came == sent).count();
    (same < came.len().max(sent.len())).then_some((same, came.len()))
}

/// What has to become of a rogue response.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// 502, whole.
    Bad,
    /// Its head is passed on; the body is visibly cut.
    Cut,
    /// Passed on with this body.
    Whole(&'static str),
    /// 502, or made right and passed on.
    BadOrWhole(&'static str),
}

fn rogues() -> Vec<(Vec<u8>, Fate)> {
    let mut all: Vec<(Vec<u8>, Fate)> = Vec::new();
    let mut add = |fate: Fate, list: &[&[u8]]| all.extend(list.iter().map(|bytes| (bytes.to_vec(), fate)));
    add(
        Fate::Bad,
        &[
            b"\r\n\r\n",
            b"hello\r\n\r\n",
            b"<html></html>\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 \r\n\r\n",
            b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 -20 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1\t200 OK\r\nContent-Length: 0\r\n\r\n",
            b" HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/3 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 O\x01K\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
            b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            // Line ends.
            b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n",
            b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\nContent-Length: 0\r\n\r\n",
            // Fields.
            b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n: b\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA b: c\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA(: c\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA\x00: c\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA\xe4: c\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\x00\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\x01\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\x7f\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n A: b\r\nContent-Length: 0\r\n\r\n",
            // Lengths.
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5.0\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\nContent-Length: 6\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0bchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\nhello",
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ],
    );
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    for tail in [
        &b"zz\r\n\r\n"[..],
        b"-1\r\nx\r\n0\r\n\r\n",
        b"\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5;\r\nhello\r\n0\r\n\r\n",
        b"5;a=\x01\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\nhello\r\n0\r\n\r\n",
        b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        b"0\n\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n A: b\r\n\r\n",
        b"0\r\nA: b\nC: d\r\n\r\n",
        b"0\r\nA: \x00\r\n\r\n",
    ] {
        all.push(([&chunked[..], tail].concat(), Fate::Cut));
    }
    let large = "x".repeat(1024 * 1024);
    let fields = |count: usize| (0..count).map(|i| format!("F{i}: x\r\n")).collect::<String>();
    for head in [
        format!("A: {large}\r\n"),
        fields(10_000),
        format!("A: {}\r\n", &large[..1000]).repeat(1000),
        format!("{large}: a\r\n"),
    ] {
        all.push((format!("HTTP/1.1 200 OK\r\n{head}Content-Length: 0\r\n\r\n").into_bytes(), Fate::Bad));
    }
    all.push((format!("HTTP/1.1 200 {large}\r\nContent-Length: 0\r\n\r\n").into_bytes(), Fate::Bad));
    all.push((
        format!("{}5;{}\r\nhello\r\n0\r\n\r\n", String::from_utf8_lossy(chunked), &large[..100_000]).into_bytes(),
        Fate::Cut,
    ));
    all.push((format!("{}0\r\n{}\r\n", String::from_utf8_lossy(chunked), fields(10_000)).into_bytes(), Fate::Cut));
    let mut add = |fate: Fate, list: &[&[u8]]| all.extend(list.iter().map(|bytes| (bytes.to_vec(), fate)));
    // Two responses: the first is the answer, the second is nobody's.
    add(
        Fate::Whole("one"),
        &[
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\noneHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nonepoison",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
            b"HTTP/1.1 200 OK\r\nContent-Length: 003\r\n\r\none",
            b"HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\none",
            b"HTTP/1.1 200 \xe4\tok\r\nContent-Length: 3\r\n\r\none",
            b"HTTP/1.1 200 OK\r\nA:\r\nB: \xff\r\nContent-Length:3\r\n\r\none",
            b"HTTP/1.1 299 Odd\r\nContent-Length: 3\r\n\r\none",
            b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\none",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\n\r\n0003;a=\"b\"\r\none\r\n000\r\n\r\n",
        ],
    );
    add(
        Fate::BadOrWhole("one"),
        &[
            b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\none",
            b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\none",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\none",
            // A proxy may mend these (RFC 9112, 5.1 and 5.2).
            b"HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 3\r\n\r\none",
            b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 3\r\n\r\none",
            b"HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\none",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n3\r\none\r\n0\r\n\r\n",
            b"HTTP/1.2 200 OK\r\nContent-Length: 3\r\n\r\none",
            b"HTTP/1.1 600 Odd\r\nContent-Length: 3\r\n\r\none",
            b"HTTP/1.1 999 Odd\r\nContent-Length: 3\r\n\r\none",
        ],
    );
    all
}

fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(120)].escape_ascii().to_string().replace(r"\r\n", "⏎")
}

/// A response, and how it is said.
#[derive(Debug, Clone, Default)]
struct Rogue {
    bytes: Vec<u8>,
    is_closing: bool,
    is_slow: bool,
}

impl Rogue {
    fn steps(&self) -> Vec<Step> {
        let said = match self.is_slow {
            true => self.bytes.iter().map(|byte| Step::send([*byte])).collect(),
            false => vec![Step::send(&self.bytes)],
        };
        let end = self.is_closing.then_some(Step::Close);
        [vec![Step::Body], said, end.into_iter().collect()].concat()
    }
}

/// What becomes of what the backend has been told to say.
fn rogue_is_handled(front: &Front, fate: Fate) -> Result<(), String> {
    let mut client = front.client();
    client.send(POST.replacen('/', "/rogue", 1));
    client.stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let response = client.reader.response("POST").map_err(|stop| format!("the client got {stop:?}"))?.1;
    let found = (response.status(), response.is_cut, String::from_utf8_lossy(&response.body).into_owned());
    let is_bad = found.0 == 502 && !found.1;
    let is_whole = |text: &str| !found.1 && found.2 == text;
    let is_right = match fate {
        Fate::Bad => is_bad,
        Fate::Cut => found.1 && found.0 == 200 || is_bad,
        Fate::Whole(text) => is_whole(text) && !is_bad,
        Fate::BadOrWhole(text) => is_bad || is_whole(text),
    };
    if !is_right {
        return Err(format!("the client got {found:?}"));
    }
    // The same client, if its connection is kept, and those that come after it.
    client.offer(get("/mine"));
    match client.reader.response("GET") {
        Ok((_, response)) if response.text() == "/mine" => {}
        Err(Stop::End | Stop::Reset) => {}
        other => return Err(format!("the same client got {other:?}")),
    }
    for path in ["/next", "/after"] {
        let next = front.get(path);
        if (next.status(), next.text()) != (200, path) {
            return Err(format!("the next client got {next:?}"));
        }
    }
    Ok(())
}

#[test]
fn p_rogue_be_is_never_passed_on_malformed_and_never_the_next_ones_answer() {
    let part = std::env::var("SCRIMP_TEST_STRICT").unwrap_or_default();
    let (mut wrong, mut count) = (Vec::new(), 0);
    let told = Arc::new(Mutex::new(Rogue::default()));
    let tells = Arc::clone(&told);
    let origin = rogue(move |_| tells.lock().unwrap().steps());
    let front = Front::new(&[origin.address]);
    for (bytes, fate) in rogues() {
        let name = shown(&bytes);
        if !name.contains(&part) {
            continue;
        }
        for (is_closing, is_slow) in [(false, false), (true, false), (false, true)] {
            if !is_slow || bytes.len() < 500 {
                count += 1;
                *told.lock().unwrap() = Rogue { bytes: bytes.clone(), is_closing, is_slow };
                if let Err(what) = rogue_is_handled(&front, fate) {
                    wrong.push(format!("{name} [{fate:?}, closing {is_closing}, slow {is_slow}]: {what}"));
                }
            }
        }
    }
    println!("{count} responses");
    assert!(wrong.is_empty(), "{} of {count} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn p_rogue_be_that_talks_while_nobody_asks_is_heard_by_nobody() {
    for unasked in
        [&ok("poison")[..], b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", b"x"]
    {
        let go = Gate::new();
        let (may, said) = (go.clone(), Gate::new());
        let (unasked, has_said) = (unasked.to_vec(), said.clone());
        let origin = rogue(move |_| {
            let mut steps = Step::answer(ok("asked"));
            steps.extend([Step::Wait(may.clone()), Step::send(&unasked), Step::Open(has_said.clone())]);
            steps
        });
        let front = Front::new(&[origin.address]);
        assert_eq!(front.get("/rogue").text(), "asked");
        go.open();
        said.wait();
        next_client_is_served(&front);
        assert!(origin.requests()[1..].iter().all(|seen| seen.connection > 0), "that connection is not used again");
    }
}

#[test]
fn p_hop_fields_for_the_next_hop_stay_and_others_cannot_be_named_away() {
    let origin = Recorder::saying(
        "HTTP/1.1 200 OK\r\nConnection: x-hop, set-cookie, content-length, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: x\r\nProxy-Authenticate: x\r\nUpgrade: h2c\r\nTE: x\r\nSet-Cookie: a\r\nContent-Length: 2\r\n\r\nok",
    );
    let front = Front::new(&[origin.address]);
    let response = front.ask(
        "POST / HTTP/1.1\r\nHost: a.example\r\n\
         Connection: close, x-secret, authorization, host, content-length, x-forwarded-for, x-forwarded-proto, cookie, forwarded\r\n\
         X-Secret: 1\r\nAuthorization: Basic x\r\nCookie: a\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
         Proxy-Authorization: x\r\nProxy-Authenticate: x\r\nTE: gzip\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nContent-Length: 5\r\n\r\nhello",
    );
    assert_eq!(response.text(), "ok");
    for name in ["x-hop", "keep-alive", "proxy-connection", "proxy-authenticate", "upgrade", "te"] {
        assert_eq!(response.field(name), None, "{name} reached the client");
    }
    let seen = &origin.requests()[0];
    for name in ["x-secret", "keep-alive", "proxy-connection", "proxy-authorization", "te", "upgrade"] {
        assert_eq!(seen.field(name), None, "{name} reached the origin");
    }
    assert_eq!(seen.field("authorization"), Some("Basic x"));
    assert_eq!(seen.field("host"), Some("a.example"));
    assert!(seen.field("x-forwarded-for").is_some() && seen.field("x-forwarded-proto").is_some());
    assert_eq!((seen.message.body.as_slice(), seen.is_whole), (&b"hello"[..], true));
}

/// As a client's own, all of them.
const SPOOFED: &str = "GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\
                       X-Forwarded-Host: evil\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX-FORWARDED-FOR: 7.7.7.7\r\n\r\n";

#[test]
fn p_spoof_what_a_stranger_says_of_itself_is_replaced() {
    let origin = Recorder::named("ok");
    let front = Front::new(&[origin.address]);
    front.ask(SPOOFED);
    let seen = &origin.requests()[0];
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.field("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.field("x-forwarded-host"), Some("a.example"));
    let raw = String::from_utf8_lossy(&seen.raw).to_ascii_lowercase();
    assert!(!raw.contains("6.6.6.6") && !raw.contains("7.7.7.7") && !raw.contains("evil"), "{raw}");
}

#[test]
fn p_spoof_what_a_trusted_proxy_says_is_added_to() {
    let origin = Recorder::named("ok");
    let front = Front::with(&[origin.address], |config| config.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()]);
    front.ask(SPOOFED);
    let seen = &origin.requests()[0];
    let all: Vec<&str> = seen
        .message
        .fields
        .iter()
        .filter(|(name, _)| name == "x-forwarded-for")
        .map(|(_, value)| value.as_str())
        .collect();
    let list = all.join(", ");
    assert_eq!(list.split(',').map(str::trim).collect::<Vec<_>>(), ["6.6.6.6", "7.7.7.7", "127.0.0.1"]);
    assert_eq!(seen.field("x-forwarded-proto"), Some("https"));
}

#[test]
fn p_nobackend_is_a_404_or_a_503_that_says_when() {
    let front = Front::new(&[nobody()]);
    let bed = &front.bed;
    let nodes =
        [Node::new(1, vec![http_app("web", front.port, nobody(), &["a.example"], "/")]).with_state(AppState::Starting)];
    bed.publish(&nodes);
    until("it has gone out of rotation", || front.ask(POST).status() == 503);
    let mut client = front.client();
    for (host, status) in [("a.example", 503), ("b.example", 404), ("a.example", 503)] {
        client.send(POST.replace("a.example", host));
        let response = client.response("POST");
        assert_eq!(response.status(), status);
        assert_eq!(response.field("retry-after").is_some(), status == 503);
        if response.field("connection") == Some("close") {
            client = front.client();
        }
    }
}

#[test]
fn p_loop_ends_soon() {
    // Whatever becomes of it, the other tests have descriptors left.
    let front = Front::with(&[nobody()], |config| config.limits.connections = Some(100));
    let mut node = Node::new(1, vec![http_app("web", front.port, front.bed.address(front.port), &[], "/")]);
    node.ip = front.bed.ip;
    front.bed.publish(&[node]);
    until("it goes round", || front.bed.pools().loads.keys().any(|(_, at)| *at == front.bed.address(front.port)));
    let start = Instant::now();
    let response = front.get("/");
    assert!(matches!(response.status(), 502 | 508), "{response:?}");
    assert!(start.elapsed() < SOON);
    assert!(front.bed.counters.requests.get() <= 20, "{} rounds", front.bed.counters.requests.get());
}

#[test]
fn p_panic_unwinds_so_that_only_its_task_ends() {
    let manifest: toml::Table = include_str!("../Cargo.toml").parse().unwrap();
    for (name, profile) in manifest["profile"].as_table().unwrap() {
        assert_ne!(profile.get("panic").and_then(toml::Value::as_str), Some("abort"), "profile {name}");
    }
}

#[test]
fn p_idle100k_hundreds_are_kept_and_let_go() {
    let origin = Recorder::named("ok");
    let front = Front::new(&[origin.address]);
    let mut idle: Vec<Client> = (0..200).map(|_| front.client()).collect();
    for client in &mut idle {
        client.send(GET);
    }
    for client in &mut idle {
        assert_eq!(client.response("GET").text(), "ok");
    }
    assert!(!idle.iter().any(|client| is_ended(&client.stream)));
    for client in &mut idle {
        client.send(GET);
        assert_eq!(client.response("GET").text(), "ok");
    }
    drop(idle);
    until("all are over", || front.bed.counters.connections.get() == front.bed.counters.connections_closed.get());
}

/// Waits until the request is with the proxy, resets the client's connection, and waits until that is over.
fn reset_frees_the_proxy_within_a_second(front: &Front, client: Client) {
    let closed = front.bed.counters.connections_closed.get();
    let start = Instant::now();
    reset_both(client);
    until("the client's connection is over", || front.bed.counters.connections_closed.get() == closed + 1);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn p_rst_by_the_client_while_its_backend_is_connected_to_ends_that() {
    let hole = BlackHole::new();
    let front = Front::with(&[hole.address], |config| config.timeouts.connect = SOON * 3);
    for begin in [GET, "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhel"] {
        let mut client = front.client();
        let before = front.bed.counters.requests.get();
        client.send(begin);
        until("it is taken", || front.bed.counters.requests.get() == before + 1);
        reset_frees_the_proxy_within_a_second(&front, client);
    }
}

#[test]
fn p_rst_by_the_client_behind_more_requests_than_are_read_ahead_is_noticed() {
    let go = Gate::new();
    let may = go.clone();
    let mute = Recorder::new(move |_| vec![Step::Wait(may.clone()), Step::Close]);
    let front = Front::new(&[mute.address]);
    let mut client = front.client();
    client.send(GET);
    mute.until("the request is there", |log| log.requests.len() == 1);
    fill(&client.stream, get("/next").repeat(1000).as_bytes());
    reset_frees_the_proxy_within_a_second(&front, client);
    go.open();
}

#[test]
fn p_rst_by_the_client_whose_upload_its_backend_does_not_take_is_noticed() {
    let go = Gate::new();
    let may = go.clone();
    let deaf = Recorder::new(move |_| vec![Step::Wait(may.clone()), Step::Close]);
    let front = Front::new(&[deaf.address]);
    let mut client = front.client();
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000000\r\n\r\n");
    deaf.until("the request is there", |log| log.requests.len() == 1);
    fill(&client.stream, &[b'x'; 1 << 16]);
    reset_frees_the_proxy_within_a_second(&front, client);
    go.open();
}

#[test]
fn p_drain_connections_to_a_backend_that_drains_are_closed_after_their_response() {
    let go = Gate::new();
    let may = go.clone();
    let origin = Recorder::new(move |seen| match seen.target() {
        "/slow" => vec![Step::Wait(may.clone()), Step::Send(ok("slow"))],
        target => Step::answer(ok(target)),
    });
    let other = Recorder::named("other");
    let front = Front::new(&[origin.address]);
    let mut slow = front.client();
    slow.send(get("/slow"));
    origin.until("one is busy", |log| log.requests.len() == 1);
    assert_eq!(front.get("/idle").text(), "/idle");
    assert!(origin.log().connections.iter().all(|one| one.end.is_none()));
    let app = |at| vec![http_app("web", front.port, at, &[], "/")];
    let draining = Node::new(1, app(origin.address)).with_state(AppState::Draining);
    front.bed.publish(&[draining, Node::new(2, app(other.address))]);
    origin.until("the idle one is closed", |log| log.connections[1].end.is_some());
    assert_eq!(front.get("/").text(), "other");
    assert!(origin.log().connections[0].end.is_none(), "the busy one stays");
    go.open();
    assert_eq!(slow.response("GET").text(), "slow");
    origin.until("the busy one is closed too", |log| log.connections[0].end.is_some());
    slow.send(GET);
    assert_eq!(slow.response("GET").text(), "other");
}

#[test]
fn p_expect_a_backend_that_says_nothing_is_a_504_and_no_100() {
    let go = Gate::new();
    let may = go.clone();
    let mute = Recorder::new(move |_| vec![Step::Wait(may.clone()), Step::Close]);
    let front = Front::with(&[mute.address], |config| config.timeouts.response = SHORT);
    let mut client = front.client();
    client.send(EXPECT);
    let (interim, last) = client.reader.response("POST").unwrap();
    assert_eq!((interim.len(), last.status()), (0, 504));
    // Whether the body still comes is not known.
    assert_eq!(client.reader.rest().0, b"");
    go.open();
}
