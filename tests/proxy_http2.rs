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

/// What has reached an origin.
#[derive(Default)]
struct Seen {
    heads: AtomicUsize,
    /// Requests that it has read to their end.
    whole: Arc<AtomicUsize>,
}

/// What an application takes to make a page.
const PAGE: Duration = Duration::from_millis(8);

/// An origin that counts the requests that it has read to their end, and answers by their path.
fn origin() -> (Origin, Arc<AtomicUsize>) {
    let (origin, seen) = watching_origin();
    (origin, Arc::clone(&seen.whole))
}

/// The same, which counts heads too.
fn watching_origin() -> (Origin, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let count = Arc::clone(&seen);
    let origin = Origin::start(move |stream| {
        let mut wire = Wire::new(stream);
        while let Some(request) = wire.head() {
            count.heads.fetch_add(1, Ordering::SeqCst);
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
            count.whole.fetch_add(1, Ordering::SeqCst);
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
        () if is("/page") => {
            std::thread::sleep(PAGE);
            b"ok".to_vec()
        }
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
fn judge(client: &mut Client, want: Want, seen: &dyn Fn() -> Result<(), String>) -> Result<(), String> {
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
        Want::Malformed(stream) | Want::Broken(stream) => {
            judge(client, Want::Stream(stream, &[PROTOCOL_ERROR, COMPRESSION_ERROR]), seen)?;
            seen().or_else(|what| fail(client, &what))
        }
        Want::Status(stream, status) => {
            client.until_within(TIME, |client| client.answers.get(&stream).is_some_and(|it| it.status != 0));
            if client.answers.get(&stream).is_none_or(|it| it.status != status) {
                return fail(client, "another answer");
            }
            seen().or_else(|what| fail(client, &what))
        }
        Want::Closed => {
            client.until_within(TIME, |client| client.is_closed);
            if client.is_closed { Ok(()) } else { fail(client, "the connection stays") }
        }
        Want::That(is_so) if is_so(client) => Ok(()),
        Want::That(_) => fail(client, "something else"),
    }
}

/// A proxy with one worker, and an origin of which it keeps a connection: what ought not to reach it has nothing to
/// wait for.
struct Guarded {
    stage: Stage,
    origin: Origin,
    seen: Arc<Seen>,
}

impl Guarded {
    fn new() -> Self {
        let (origin, seen) = watching_origin();
        let guarded = Self { stage: Stage::with(&[origin.address], |_| {}), origin, seen };
        assert_eq!(guarded.stage.client().ask(1, "/").status, 200);
        guarded
    }

    /// Connections that the origin has accepted, heads that it has read, and requests that it has read to their end.
    fn counts(&self) -> [usize; 3] {
        [self.origin.accepted(), self.seen.heads.load(Ordering::SeqCst), self.seen.whole.load(Ordering::SeqCst)]
    }

    /// Whether nothing has reached the origin but what is sent here, so that something late is seen too.
    fn has_seen_nothing(&self, before: [usize; 3]) -> Result<(), String> {
        let status = self.stage.client().ask(1, "/").status;
        let [accepted, heads, whole] = before;
        let after = self.counts();
        let is_so = (status, after) == (200, [accepted, heads + 1, whole + 1]);
        if is_so { Ok(()) } else { Err(format!("the origin has seen it: {before:?}, {after:?}, then {status}")) }
    }
}

/// `SCRIMP_TEST_H2=ADDRESS` puts these questions to another server, as which they were found to be fair.
#[test]
fn every_section_gets_its_answer() {
    let (origin, seen) = origin();
    let other: Option<SocketAddr> = std::env::var("SCRIMP_TEST_H2").ok().map(|at| at.parse().unwrap());
    let ours = other.is_none().then(|| (Stage::new(&[origin.address]), Guarded::new()));
    let mut wrong = Vec::new();
    for Case { section, what, want, is_greeted, act } in CASES {
        let failed = catch_unwind(AssertUnwindSafe(|| {
            // Nothing else goes to the origin of those that are to be kept from it.
            let is_kept = matches!(want, Want::Malformed(_) | Want::Status(..));
            let connection = match &ours {
                Some((_, guarded)) if is_kept => guarded.stage.bed.connect(guarded.stage.port),
                Some((stage, _)) => stage.bed.connect(stage.port),
                None => TcpStream::connect(other.unwrap()).unwrap(),
            };
            let before = (seen.load(Ordering::SeqCst), ours.as_ref().map(|(_, guarded)| guarded.counts()));
            let mut client = if *is_greeted { Client::new(connection) } else { Client::silent(connection) };
            act(&mut client);
            judge(&mut client, *want, &|| match (&ours, before.1) {
                (Some((_, guarded)), Some(before)) if is_kept => guarded.has_seen_nothing(before),
                _ if seen.load(Ordering::SeqCst) != before.0 => Err("the origin has seen all of it".to_owned()),
                _ => Ok(()),
            })
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
