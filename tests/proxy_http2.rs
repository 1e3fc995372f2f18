//! HTTP/2 through the proxy: raw frames on one side, real servers on the other.
#![allow(missing_docs)]

#[path = "proxy_http2/backends.rs"]
mod backends;
#[path = "proxy_http2/floods.rs"]
mod floods;
#[path = "proxy_http2/links.rs"]
mod links;
#[path = "proxy_http2/requests.rs"]
mod requests;
#[path = "proxy_http2/sections.rs"]
mod sections;
mod support;

use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use scrimp::name::Port;
use scrimp::proxy::Config;
use sections::{CASES, Case, Want};
use support::frames::*;
use support::{Bed, Message, Node, Origin, SOON, Wire, http_app};

/// An origin that counts the requests that it has read to their end, and answers by their path.
fn origin() -> (Origin, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let origin = Origin::start(move |stream| {
        let mut wire = Wire::new(stream);
        while let Some(request) = wire.head() {
            let (head, mut request) = (request.clone(), request);
            if head.line.contains("/stall ") {
                // Reads nothing of the body until the other side is gone.
                std::thread::sleep(SOON);
                return;
            }
            read_body(&mut wire, &mut request);
            if request.is_cut {
                return;
            }
            count.fetch_add(1, Ordering::SeqCst);
            match answer(&head, &request) {
                Some(answer) => wire.send(answer),
                None => drop(wire.rest()),
            }
        }
    });
    (origin, seen)
}

/// The body of a request, which has one only if it says so.
fn read_body(wire: &mut Wire, request: &mut Message) {
    if request.field("transfer-encoding").is_some() || request.field("content-length").is_some() {
        wire.body(request);
    }
}

fn answer(head: &Message, request: &Message) -> Option<Vec<u8>> {
    let is = |path: &str| head.line.split(' ').nth(1) == Some(path);
    let body = match () {
        () if is("/wait") => return None,
        () if is("/big") => vec![b'x'; 100_000],
        () if is("/head") => {
            let fields = head.fields.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
            format!("{}\r\n{}", head.line, fields.collect::<String>()).into_bytes()
        }
        () if head.line.starts_with("POST") => request.body.clone(),
        () => b"ok".to_vec(),
    };
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    if !head.line.starts_with("HEAD") {
        answer.extend(body);
    }
    Some(answer)
}

/// A proxy with one application for any host.
pub(crate) struct Stage {
    bed: Bed,
    port: Port,
}

impl Stage {
    fn new(backends: &[SocketAddr]) -> Self {
        Self::on(Bed::new(), backends)
    }

    fn on(bed: Bed, backends: &[SocketAddr]) -> Self {
        let port = bed.port();
        let nodes = (1..).zip(backends).map(|(id, at)| Node::new(id, vec![http_app("web", port, *at, &[], "/")]));
        bed.publish_and_open(&nodes.collect::<Vec<_>>(), port);
        bed.settle();
        Self { bed, port }
    }

    /// With one worker and deadlines or limits of its own.
    fn with(backends: &[SocketAddr], change: impl FnOnce(&mut Config)) -> Self {
        let bed = Bed::with(|config| {
            config.workers = 1;
            change(config);
        });
        Self::on(bed, backends)
    }

    fn client(&self) -> Client {
        Client::new(self.bed.connect(self.port))
    }
}

/// What is wrong with what came back, if anything is.
fn judge(client: &mut Client, want: Want, seen: &dyn Fn() -> usize) -> Result<(), String> {
    const TIME: Duration = Duration::from_secs(3);
    let fail = |client: &Client, what: &str| {
        let answers: Vec<_> = client.answers.iter().map(|(id, it)| (id, it.status, it.is_whole, it.reset)).collect();
        Err(format!("{what}; closed: {}, GOAWAY {:?}, answers {answers:?}", client.is_closed, client.goaways))
    };
    let is_goaway =
        |codes: &'static [u32]| move |client: &Client| client.goaways.iter().any(|it| codes.contains(&it.1));
    match want {
        Want::Alive if client.is_alive() => Ok(()),
        Want::Alive => fail(client, "the connection ended"),
        Want::Fine(stream) => {
            client.until_within(TIME, |client| client.answers.get(&stream).is_some_and(Answer::is_over));
            match client.answers.get(&stream) {
                Some(answer) if answer.status == 200 && answer.is_whole => {}
                _ => return fail(client, "no answer"),
            }
            if client.is_alive() { Ok(()) } else { fail(client, "the connection ended") }
        }
        Want::Connection(codes) => {
            client.until_within(TIME, |client| client.is_closed);
            if client.is_closed && is_goaway(codes)(client) { Ok(()) } else { fail(client, "no such connection error") }
        }
        Want::Stream(stream, codes) => {
            let is_reset = |client: &Client| {
                client.answers.get(&stream).and_then(|it| it.reset).is_some_and(|code| codes.contains(&code))
            };
            client.until_within(TIME, |client| is_reset(client) || is_goaway(codes)(client));
            if is_reset(client) && !client.goaways.iter().any(|it| it.1 != NO_ERROR) {
                return if client.is_alive() { Ok(()) } else { fail(client, "a stream error ended the connection") };
            }
            if is_goaway(codes)(client) { Ok(()) } else { fail(client, "no such error") }
        }
        Want::Malformed(stream) => {
            judge(client, Want::Stream(stream, &[PROTOCOL_ERROR, COMPRESSION_ERROR]), seen)?;
            if seen() == 0 { Ok(()) } else { fail(client, "the origin has seen it") }
        }
        Want::Status(stream, status) => {
            client.until_within(TIME, |client| client.answers.get(&stream).is_some_and(|it| it.status != 0));
            if client.answers.get(&stream).is_none_or(|it| it.status != status) {
                return fail(client, "another answer");
            }
            if seen() == 0 { Ok(()) } else { fail(client, "the origin has seen it") }
        }
        Want::Closed => {
            client.until_within(TIME, |client| client.is_closed);
            if client.is_closed { Ok(()) } else { fail(client, "the connection stays") }
        }
        Want::That(is_so) if is_so(client) => Ok(()),
        Want::That(_) => fail(client, "something else"),
    }
}

/// `SCRIMP_TEST_H2=ADDRESS` puts these questions to another server, as which they were found to be fair.
#[test]
fn every_section_gets_its_answer() {
    let (origin, seen) = origin();
    let other: Option<SocketAddr> = std::env::var("SCRIMP_TEST_H2").ok().map(|at| at.parse().unwrap());
    let stage = other.is_none().then(|| Stage::new(&[origin.address]));
    let connect = || match (&stage, other) {
        (Some(stage), _) => stage.bed.connect(stage.port),
        (None, other) => TcpStream::connect(other.unwrap()).unwrap(),
    };
    let mut wrong = Vec::new();
    for Case { section, what, want, is_greeted, act } in CASES {
        let failed = catch_unwind(AssertUnwindSafe(|| {
            let mut client = if *is_greeted { Client::new(connect()) } else { Client::silent(connect()) };
            let before = seen.load(Ordering::SeqCst);
            act(&mut client);
            judge(&mut client, *want, &|| seen.load(Ordering::SeqCst) - before)
        }));
        match failed {
            Ok(Ok(())) => {}
            Ok(Err(why)) => wrong.push(format!("{section}, {what}: {why}")),
            Err(_) => wrong.push(format!("{section}, {what}: it panicked")),
        }
    }
    assert!(CASES.len() >= 150, "{} cases", CASES.len());
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
}
