//! Clients that make work for nothing: cut off within a second or a mebibyte, and nobody else feels them.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::support::frames::*;
use super::support::until;
use super::{Stage, origin};

/// A flood: what is sent first, and what again and again, by its number.
struct Flood {
    what: &'static str,
    first: fn(&mut Client),
    again: fn(u32) -> Vec<u8>,
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    Frame::new(HEADERS, END_HEADERS | END_STREAM, stream, request("GET", path, &[])).bytes()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    Frame::new(kind, flags, stream, payload).bytes()
}

const FLOODS: &[Flood] = &[
    Flood {
        what: "requests that are reset at once",
        first: |_| {},
        again: |number| {
            let stream = 1 + 2 * number;
            [get(stream, "/wait"), frame(RST_STREAM, 0, stream, CANCEL.to_be_bytes())].concat()
        },
    },
    Flood {
        what: "requests that are reset when a backend has them",
        first: |_| {},
        // 50 later, so that they were accepted by then.
        again: |number| {
            let reset = |number: u32| frame(RST_STREAM, 0, 1 + 2 * number, CANCEL.to_be_bytes());
            [get(1 + 2 * number, "/wait"), number.checked_sub(50).map_or(Vec::new(), reset)].concat()
        },
    },
    Flood {
        what: "requests that make us reset them: a window of 0",
        first: |_| {},
        again: |number| {
            let stream = 1 + 2 * number;
            [get(stream, "/wait"), frame(WINDOW_UPDATE, 0, stream, [0; 4])].concat()
        },
    },
    Flood {
        what: "requests that make us reset them: DATA behind the end",
        first: |_| {},
        again: |number| {
            let stream = 1 + 2 * number;
            [get(stream, "/wait"), frame(DATA, 0, stream, "x")].concat()
        },
    },
    Flood {
        what: "requests that are malformed for us",
        first: |_| {},
        again: |number| {
            frame(HEADERS, END_HEADERS | END_STREAM, 1 + 2 * number, request("GET", "/", &[("host", "b.example")]))
        },
    },
    Flood { what: "requests beyond the limit of streams", first: |_| {}, again: |number| get(1 + 2 * number, "/wait") },
    Flood { what: "PING", first: |_| {}, again: |_| frame(PING, 0, 0, [0; 8]) },
    Flood { what: "SETTINGS", first: |_| {}, again: |_| frame(SETTINGS, 0, 0, []) },
    Flood {
        what: "SETTINGS that change windows",
        first: |_| {},
        again: |number| frame(SETTINGS, 0, 0, setting(4, number)),
    },
    Flood { what: "empty DATA", first: |client| client.post(1, "/", &[]), again: |_| frame(DATA, 0, 1, []) },
    Flood {
        what: "DATA of padding alone",
        first: |client| client.post(1, "/stall", &[]),
        again: |_| frame(DATA, PADDED, 1, [&[255][..], &[0; 255]].concat()),
    },
    Flood { what: "PRIORITY", first: |_| {}, again: |number| frame(PRIORITY, 0, 1 + 2 * number, [0, 0, 0, 0, 16]) },
    Flood {
        what: "windows for nothing",
        first: |client| client.get(1, "/wait"),
        again: |_| frame(WINDOW_UPDATE, 0, 1, 1_u32.to_be_bytes()),
    },
    Flood {
        what: "windows of one byte",
        first: |client| {
            client.gives_way = false;
            client.send(SETTINGS, 0, 0, setting(4, 0));
            client.get(1, "/big");
        },
        again: |_| frame(WINDOW_UPDATE, 0, 1, 1_u32.to_be_bytes()),
    },
    Flood {
        what: "CONTINUATION",
        first: |client| client.send(HEADERS, 0, 1, request("GET", "/", &[])),
        again: |number| frame(CONTINUATION, 0, 1, block(&[(format!("x-{number}"), "y")])),
    },
    Flood {
        what: "empty CONTINUATION",
        first: |client| client.send(HEADERS, 0, 1, request("GET", "/", &[])),
        again: |_| frame(CONTINUATION, 0, 1, []),
    },
    Flood {
        what: "headers that unpack to a thousand times their size",
        first: |client| {
            let mut block = request("GET", "/", &[]);
            block.extend([0x40, 1, b'x']);
            put_text(&mut block, &[b'y'; 4000]);
            client.send(HEADERS, END_HEADERS | END_STREAM, 1, block);
        },
        again: |number| {
            let block = [&request("GET", "/", &[])[..], &[0xbe; 7]].concat();
            frame(HEADERS, END_HEADERS | END_STREAM, 3 + 2 * number, [&block[..], &[0xbe; 16000][..]].concat())
        },
    },
    Flood { what: "unknown frames", first: |_| {}, again: |_| frame(0xbb, 0, 0, [0; 16]) },
    Flood { what: "large unknown frames", first: |_| {}, again: |_| frame(0xbb, 0, 0, [0; 16384]) },
];

/// Times of requests that somebody else makes meanwhile, until `is_over`.
fn innocent(stage: &Stage, is_over: impl Fn(usize) -> bool) -> Vec<Duration> {
    let mut client = stage.client();
    let mut times = Vec::new();
    while !is_over(times.len()) {
        let start = Instant::now();
        assert_eq!(client.ask(1 + 2 * times.len() as u32, "/page").status, 200);
        times.push(start.elapsed());
    }
    times
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// Between the code and the close: what is still on its way is read for a second, and a machine may be busy.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// A peer that is cut off in the middle of its sending may not hear why, but one of so many hears it.
const PEERS: usize = 10;

/// What a flood got through before its connection was closed: bytes, time, and the codes it was told.
fn run(flood: &Flood, stream: TcpStream) -> (usize, Duration, Vec<u32>) {
    const BYTES_MAX: usize = 8 << 20;
    let mut client = Client::new(stream);
    (flood.first)(&mut client);
    let start = Instant::now();
    let (mut sent, mut number) = (0, 0);
    while !client.is_closed
        && client.goaways.is_empty()
        && sent < BYTES_MAX
        && start.elapsed() < Duration::from_secs(10)
    {
        for _ in 0..20 {
            let bytes = (flood.again)(number);
            sent += bytes.len();
            number += 1;
            client.send_bytes(bytes);
        }
        // What has come is looked at without waiting for more.
        client.read(Duration::from_millis(1));
    }
    let is_told = !client.goaways.is_empty();
    client.until_within(CLOSE_MAX, |client| client.is_closed);
    assert!(client.is_closed, "{}: it is still open after {sent} bytes; told why: {is_told}", flood.what);
    (sent, start.elapsed(), client.goaways.iter().map(|goaway| goaway.1).collect())
}

#[test]
fn p_h2reset_floods_are_cut_off() {
    cut_off(|flood| flood.what.starts_with("requests") && !is_made(flood));
}

#[test]
fn p_h2made_floods_are_cut_off() {
    cut_off(is_made);
}

/// Whether it is we who are made to reset the streams.
fn is_made(flood: &Flood) -> bool {
    flood.what.contains("make us reset") || flood.what.contains("malformed")
}

#[test]
fn p_h2cont_floods_are_cut_off() {
    cut_off(|flood| flood.what.contains("CONTINUATION") || flood.what.starts_with("headers"));
}

#[test]
fn p_h2data0_and_other_floods_are_cut_off() {
    cut_off(|flood| !["requests", "headers"].iter().any(|it| flood.what.starts_with(it)));
}

fn cut_off(is_of: fn(&Flood) -> bool) {
    let (origin, _) = origin();
    let stage = Stage::with(&[origin.address], |_| {});
    let mut wrong = Vec::new();
    for flood in FLOODS.iter().filter(|flood| is_of(flood)) {
        let mut is_told = false;
        for _ in 0..PEERS {
            let (sent, took, codes) = run(flood, stage.bed.connect(stage.port));
            let is_right = |code: &u32| matches!(*code, ENHANCE_YOUR_CALM | PROTOCOL_ERROR | COMPRESSION_ERROR);
            if !codes.iter().all(is_right) || (sent > 1 << 20 && took > Duration::from_secs(1)) {
                wrong.push(format!("{}: {sent} bytes, {took:?}, codes {codes:?}", flood.what));
            }
            is_told = !codes.is_empty();
            if is_told {
                break;
            }
        }
        if !is_told {
            wrong.push(format!("{}: none of {PEERS} was told why", flood.what));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    until("every attacker is gone", || {
        stage.bed.counters.connections.get() == stage.bed.counters.connections_closed.get()
    });
}

/// Two attackers, who come again as soon as they are cut off; somebody on the same worker is asking for pages all the time.
///
/// What is added is the scheduler's most of all, which deals out turns of 3 ms, and has two cores for attackers, proxy,
/// origin and the one who asks.
#[test]
fn floods_do_not_hold_up_others() {
    let (origin, _) = origin();
    let stage = Arc::new(Stage::with(&[origin.address], |_| {}));
    let asked = || p99(innocent(&stage, |count| count == 500));
    // The machine's noise is not the floods': the calmest of three counts, on both sides.
    let alone = (0..3).map(|_| asked()).min().unwrap();
    let flooded = (0..3).map(|_| {
        let is_over = Arc::new(AtomicBool::new(false));
        let attackers: Vec<_> = (0..2)
            .map(|half| {
                let (stage, is_over) = (Arc::clone(&stage), Arc::clone(&is_over));
                thread::spawn(move || {
                    // They have machines of their own, elsewhere: what they compute takes nothing from the others.
                    rustix::process::nice(19).unwrap();
                    attack(&stage, half, &is_over)
                })
            })
            .collect();
        let time = asked();
        is_over.store(true, Ordering::SeqCst);
        let floods: usize = attackers.into_iter().map(|attacker| attacker.join().unwrap()).sum();
        assert!(floods > 2, "they did not come again");
        time
    });
    let flooded = flooded.min().unwrap();
    println!("p99 alone {alone:?}, beside floods {flooded:?}");
    assert!(flooded < alone * 2, "p99 of {alone:?} has become {flooded:?}");
}

/// Every other flood, again and again; how many there were.
fn attack(stage: &Stage, half: usize, is_over: &AtomicBool) -> usize {
    let floods = FLOODS.iter().skip(half).step_by(2).cycle();
    let floods = floods.take_while(|_| !is_over.load(Ordering::SeqCst));
    floods.inspect(|flood| drop(run(flood, stage.bed.connect(stage.port)))).count()
}

/// What is no flood is not taken for one.
#[test]
fn an_eager_client_is_no_flood() {
    let (origin, _) = origin();
    let stage = Stage::with(&[origin.address], |_| {});
    let mut client = stage.client();
    let mut stream = 1;
    for _ in 0..300 {
        // A request, one that is given up, a PING, settings, and a download with a window for every frame.
        client.get(stream, "/");
        client.get(stream + 2, "/wait");
        client.send(PING, 0, 0, [1; 8]);
        assert_eq!(client.answer(stream).status, 200);
        client.reset(stream + 2, CANCEL);
        assert_eq!(client.ask(stream + 4, "/big").body.len(), 100_000);
        stream += 6;
    }
    // A stream of small messages.
    client.post(stream, "/", &[]);
    for _ in 0..5000 {
        client.data(stream, 0, "abcde");
        client.read(Duration::ZERO);
    }
    client.data(stream, END_STREAM, "abcde");
    assert_eq!(client.answer(stream).body.len(), 5001 * 5);
    assert!(client.is_alive());
}

#[test]
fn what_one_connection_holds_is_bounded() {
    let (origin, _) = origin();
    let stage = Stage::with(&[origin.address], |_| {});
    let mut client = stage.client();
    client.gives_way = false;
    client.window(0, (1 << 31) - 1 - 65535);
    // As many large headers as there may be streams: what is too much is refused, to be sent again.
    let value = "x".repeat(14_000);
    for number in 0..30 {
        let fields = request("GET", "/wait", &[("x", &value)]);
        client.send(HEADERS, END_HEADERS | END_STREAM, 1 + 2 * number, fields);
    }
    assert!(client.is_alive());
    let refused = client.answers.values().filter(|answer| answer.reset == Some(REFUSED_STREAM)).count();
    assert!((10..20).contains(&refused), "{refused} refused");
}
