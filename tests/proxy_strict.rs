//! What is refused, what is not, and what reaches an origin: bytes of all kinds through the proxy, beside a recording
//! origin and an oracle.
//!
//! `SCRIMP_TEST_STRICT=part` in the environment looks at the cases whose name holds that part, and at no other.
#![allow(missing_docs)]

mod support;

use std::fmt::Write as _;
use std::time::Duration;

use support::Message;
use support::front::Front;
use support::guardian::{self, HostAt};
use support::oracle;
use support::origin::{Recorder, Seen};
use support::reader::Stop;

/// How long nothing may come from a proxy that ought to answer or close.
const SILENCE: Duration = Duration::from_secs(3);

/// What a request has to come to.
#[derive(Debug, Clone)]
enum Must {
    /// Answered with one of these, the connection closed, nothing at the origin.
    Refuse(&'static [u16]),
    /// The same, but what is wrong stands behind the head: the origin may have seen a part, and never all.
    Break(&'static [u16]),
    /// The first of two is served, the second refused.
    ServeThenRefuse(&'static [u16]),
    /// Served; the origin sees this first line and this body, and the connection is kept.
    Serve { line: String, body: Vec<u8> },
    /// Refused or served; what reaches the origin is for the oracle.
    Either,
}

#[derive(Debug, Clone)]
struct Case {
    name: String,
    bytes: Vec<u8>,
    must: Must,
    /// Where it is written.
    rfc: &'static str,
}

/// How the bytes of a case are sent: how much each time.
#[derive(Debug, Clone, Copy)]
enum Pace {
    Whole,
    /// Each byte by itself: a proxy that looks at what has come so far has seen any part of it.
    Bytes,
}

const R400: &[u16] = &[400];
const ANY_REFUSAL: &[u16] = &[400, 405, 414, 417, 431, 501, 505];
/// Closed without a word.
const NOTHING: u16 = 0;

/// A table of cases that have a clause in common.
struct Table {
    rfc: &'static str,
    cases: Vec<Case>,
}

impl Table {
    fn new() -> Self {
        Self { rfc: "", cases: Vec::new() }
    }

    fn clause(&mut self, rfc: &'static str) {
        self.rfc = rfc;
    }

    fn add(&mut self, bytes: impl AsRef<[u8]>, must: Must) {
        let bytes = bytes.as_ref().to_vec();
        let mut name = bytes[..bytes.len().min(160)].escape_ascii().to_string();
        if bytes.len() > 160 {
            let _ = write!(name, "… ({} bytes)", bytes.len());
        }
        let name = name.replace(r"\r\n", "⏎").replace("Host: a.example⏎", "H⏎");
        self.cases.push(Case { name, bytes, must, rfc: self.rfc });
    }

    fn refuse(&mut self, statuses: &'static [u16], all: &[&[u8]]) {
        all.iter().for_each(|bytes| self.add(bytes, Must::Refuse(statuses)));
    }

    /// Heads with these fields beside a Host, and a body that fits most of what they say.
    fn refuse_fields(&mut self, statuses: &'static [u16], all: &[&[u8]]) {
        for fields in all {
            let bytes = [b"POST / HTTP/1.1\r\nHost: a.example\r\n", *fields, b"\r\n\r\n0\r\n\r\n"].concat();
            self.add(bytes, Must::Refuse(statuses));
        }
    }

    fn break_chunks(&mut self, statuses: &'static [u16], all: &[&[u8]]) {
        for body in all {
            self.add([CHUNKED.as_bytes(), *body].concat(), Must::Break(statuses));
        }
    }

    /// Served as it is: the origin sees the target of the request line.
    fn serve(&mut self, bytes: impl AsRef<[u8]>, body: impl AsRef<[u8]>) {
        let text = String::from_utf8_lossy(bytes.as_ref()).into_owned();
        let line = text.trim_start().lines().next().unwrap().trim_end().replace("HTTP/1.0", "HTTP/1.1");
        self.serve_as(bytes, &line, body);
    }

    fn serve_as(&mut self, bytes: impl AsRef<[u8]>, line: &str, body: impl AsRef<[u8]>) {
        self.add(bytes, Must::Serve { line: line.to_owned(), body: body.as_ref().to_vec() });
    }

    fn serve_fields(&mut self, all: &[&[u8]]) {
        for fields in all {
            self.serve([b"GET / HTTP/1.1\r\nHost: a.example\r\n", *fields, b"\r\n\r\n"].concat(), "");
        }
    }

    fn serve_chunks(&mut self, body: &str, all: &[&[u8]]) {
        for chunks in all {
            self.serve([CHUNKED.as_bytes(), *chunks].concat(), body);
        }
    }

    /// Runs all of it, at both paces, and fails with a list of what went wrong.
    fn run(self) {
        let part = std::env::var("SCRIMP_TEST_STRICT").unwrap_or_default();
        let cases: Vec<&Case> = self.cases.iter().filter(|case| case.name.contains(&part)).collect();
        let stage = Stage::new();
        let mut wrong = Vec::new();
        let mut count = 0;
        for case in &cases {
            for pace in case.paces() {
                count += 1;
                if let Err(what) = stage.try_case(case, *pace) {
                    wrong.push(format!("{} [{pace:?}, {}]: {what}", case.name, case.rfc));
                }
            }
        }
        println!("{} requests of {} cases", count, cases.len());
        assert!(wrong.is_empty(), "{} of {count} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
}

impl Case {
    /// Of its first request.
    fn method(&self) -> String {
        let word = self.bytes.trim_ascii_start().split(|byte| *byte == b' ').next().unwrap();
        String::from_utf8_lossy(word).into_owned()
    }

    fn paces(&self) -> &'static [Pace] {
        if self.bytes.len() < 800 { &[Pace::Whole, Pace::Bytes] } else { &[Pace::Whole] }
    }
}

const HOST: &str = "Host: a.example\r\n";
const CHUNKED: &str = "POST /chunked HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
const GET: &str = "GET /good HTTP/1.1\r\nHost: a.example\r\n\r\n";

/// A proxy and its origin.
struct Stage {
    front: Front,
    origin: Recorder,
}

impl Stage {
    fn new() -> Self {
        let origin = Recorder::named("origin");
        let front = Front::with(&[origin.address], |config| {
            config.timeouts.header = Duration::from_secs(30);
            config.timeouts.body_progress = Duration::from_secs(30);
        });
        assert_eq!(front.get("/marker").text(), "origin");
        Self { front, origin }
    }

    /// The requests that have reached the origin since the last look, apart from the one that this sends.
    fn new_at_origin(&self, before: usize) -> Result<Vec<Seen>, String> {
        let marker = self.front.get("/marker");
        if marker.text() != "origin" {
            return Err(format!("the next client got {marker:?}"));
        }
        let all = self.origin.requests();
        Ok(all[before..].iter().filter(|seen| seen.target() != "/marker").cloned().collect())
    }

    fn try_case(&self, case: &Case, pace: Pace) -> Result<(), String> {
        let (before, flaws) = (self.origin.requests().len(), self.origin.flaws().len());
        let mut client = self.front.client();
        match pace {
            Pace::Whole => _ = client.offer(&case.bytes),
            Pace::Bytes => _ = case.bytes.iter().all(|byte| client.offer([*byte])),
        }
        let result = match &case.must {
            Must::Refuse(statuses) | Must::Break(statuses) => {
                let outcome = client.outcome(&case.method(), SILENCE);
                is_one(&outcome.statuses(), statuses, case.bytes.len())
                    .and_then(|()| is_closed(&outcome.end))
                    .and_then(|()| own_answer(outcome.responses.first()))
            }
            Must::ServeThenRefuse(statuses) => {
                let outcome = client.outcome(&case.method(), SILENCE);
                match outcome.statuses().as_slice() {
                    [200, rest @ ..] => is_one(rest, statuses, 0).and_then(|()| is_closed(&outcome.end)),
                    other => Err(format!("answered {other:?}")),
                }
            }
            Must::Serve { .. } => {
                client.stream.set_read_timeout(Some(SILENCE)).unwrap();
                match client.reader.response(&case.method()) {
                    Ok((_, response)) if response.status() == 200 => Ok(()),
                    other => Err(format!("answered {other:?}")),
                }
                .and_then(|()| {
                    client.offer(GET);
                    match client.reader.response("GET") {
                        Ok((_, response)) if response.status() == 200 => Ok(()),
                        other => Err(format!("the connection is not kept: {other:?}")),
                    }
                })
            }
            Must::Either => {
                client.finish();
                let outcome = client.outcome(&case.method(), SILENCE);
                is_closed(&outcome.end)
            }
        };
        drop(client);
        let seen = self.new_at_origin(before)?;
        let shown =
            || seen.iter().map(|seen| format!("{} whole={}", seen.message.line, seen.is_whole)).collect::<Vec<_>>();
        match &case.must {
            Must::Refuse(_) if !seen.is_empty() => return Err(format!("the origin saw {:?}; {result:?}", shown())),
            Must::Break(_) if seen.len() > 1 || seen.iter().any(|seen| seen.is_whole) => {
                return Err(format!("the origin saw {:?}; {result:?}", shown()));
            }
            Must::ServeThenRefuse(_) if seen.len() != 1 || seen[0].target() != "/good" => {
                return Err(format!("the origin saw {:?}; {result:?}", shown()));
            }
            Must::Serve { line, body } => {
                let first = seen.first().map(|seen| (&seen.message.line, &seen.message.body, seen.is_whole));
                if first != Some((line, body, true)) {
                    return Err(format!("the origin saw {:?} and not {line:?}; {result:?}", shown()));
                }
            }
            _ => {}
        }
        let flaws = self.origin.flaws().split_off(flaws);
        // Half a request is a broken one to the recorder; where it is to break, that is what is wanted.
        if !flaws.is_empty() {
            return Err(format!("the oracle says {flaws:?}"));
        }
        result
    }
}

fn is_one(found: &[u16], statuses: &[u16], length: usize) -> Result<(), String> {
    match found {
        [status] if statuses.contains(status) => Ok(()),
        // The answer to what is still on its way may be lost with it.
        [] if length > 60_000 || statuses.contains(&NOTHING) => Ok(()),
        _ => Err(format!("answered {found:?} and not one of {statuses:?}")),
    }
}

fn is_closed(end: &Stop) -> Result<(), String> {
    match end {
        Stop::End | Stop::Reset => Ok(()),
        other => Err(format!("the connection stays: {other:?}")),
    }
}

/// What scrimp says by itself is whole, and says that it closes.
fn own_answer(answer: Option<&Message>) -> Result<(), String> {
    let Some(answer) = answer else { return Ok(()) };
    let says = |name: &str, value: &str| answer.field(name).is_some_and(|found| found.eq_ignore_ascii_case(value));
    if !says("connection", "close") || answer.field("date").is_none() {
        return Err(format!("its answer does not say that it closes, or no date: {answer:?}"));
    }
    if answer.is_cut {
        return Err(format!("its answer is cut: {answer:?}"));
    }
    Ok(())
}

#[test]
fn the_oracle_knows_what_is_ambiguous() {
    for (head, is_safe) in [
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", true),
        ("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", true),
        ("GET / HTTP/1.1\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", false),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nA: \x01\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent_Length: 3\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", false),
    ] {
        let flaw = oracle::flaw(head.as_bytes());
        assert_eq!(flaw.is_none(), is_safe, "{head:?}: {flaw:?}");
    }
}

#[test]
fn what_the_guardian_calls_severe_is_refused() {
    let mut table = Table::new();
    table.clause("guardian: severe");
    for case in guardian::cases().iter().filter(|case| case.tier == "Severe") {
        for host in [HostAt::Front, HostAt::Back] {
            table.add(case.head(host), Must::Refuse(ANY_REFUSAL));
            table.cases.last_mut().unwrap().name = format!("{} ({host:?})", case.name);
        }
    }
    table.run();
}

#[test]
fn of_what_the_guardian_knows_nothing_ambiguous_reaches_the_origin() {
    let mut table = Table::new();
    table.clause("guardian");
    for case in guardian::cases().iter().filter(|case| case.tier != "Severe") {
        for host in [HostAt::Front, HostAt::Back] {
            table.add([case.head(host), b"0\r\n\r\n".to_vec()].concat(), Must::Either);
            table.cases.last_mut().unwrap().name = format!("{} ({}, {host:?})", case.name, case.tier);
        }
    }
    table.run();
}

#[test]
fn p_smuggle_lengths_that_are_none_or_two_are_refused() {
    let mut table = Table::new();
    table.clause("RFC 9112 6.1, 6.3");
    table.refuse_fields(
        R400,
        &[
            b"Content-Length: 5\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nContent-Length: 5",
            b"Content-Length: 0\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nA: b\r\nContent-Length: 0",
            b"Content-Length: 5\r\ntransfer-encoding: identity",
            b"CONTENT-LENGTH: 5\r\nTRANSFER-ENCODING: CHUNKED",
            b"Content-Length: 5\r\nTransfer-Encoding: x",
            b"Content-Length: 5\r\nTransfer-Encoding:",
            b"Content-Length:\r\nTransfer-Encoding: chunked",
        ],
    );
    table.clause("RFC 9110 8.6, RFC 9112 6.3");
    table.refuse_fields(
        R400,
        &[
            b"Content-Length: 5\r\nContent-Length: 5",
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Content-Length: 5\r\nA: b\r\ncontent-length: 0",
            b"Content-Length: 5, 5",
            b"Content-Length: 5,6",
            b"Content-Length: 5,",
            b"Content-Length: ,5",
            b"Content-Length:",
            b"Content-Length: \t ",
            b"Content-Length: +5",
            b"Content-Length: -5",
            b"Content-Length: -0",
            b"Content-Length: 0x5",
            b"Content-Length: 5.0",
            b"Content-Length: 5e0",
            b"Content-Length: 5 5",
            b"Content-Length: 5;",
            b"Content-Length: \"5\"",
            b"Content-Length: 5\x0b",
            b"Content-Length: \x0c5",
            b"Content-Length: 5\x00",
            b"Content-Length: five",
            b"Content-Length: 5_0",
            b"Content-Length: \xef\xbc\x95",
            b"Content-Length: 5\xa0",
            b"Content-Length: 18446744073709551616",
            b"Content-Length: 18446744073709551621",
            b"Content-Length: 99999999999999999999999999999999",
            b"Content-Length : 5",
            b"Content-Length\t: 5",
            b"Content-Length\x00: 5",
            b"Content-Length\xa0: 5",
            b"Content Length: 5",
        ],
    );
    table.clause("RFC 9112 6.1, 7");
    table.refuse_fields(
        &[400, 501],
        &[
            b"Transfer-Encoding: identity",
            b"Transfer-Encoding: gzip",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: chunked, gzip",
            b"Transfer-Encoding: chunked, identity",
            b"Transfer-Encoding: identity, chunked",
            b"Transfer-Encoding: chunked, chunked",
            b"Transfer-Encoding: chunked,chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: identity\r\ntransfer-encoding: chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-encoding: cow",
            b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding: chunkedx",
            b"Transfer-Encoding: chunk",
            b"Transfer-Encoding: ,chunked",
            b"Transfer-Encoding: chunked,",
            b"Transfer-Encoding: , ,chunked",
            b"Transfer-Encoding: chunked;q=1",
            b"Transfer-Encoding: chunked;",
            b"Transfer-Encoding: \"chunked\"",
            b"Transfer-Encoding: 'chunked'",
            b"Transfer-Encoding: [chunked]",
            b"Transfer-Encoding:",
            b"Transfer-Encoding: x, chunked",
            b"Transfer-Encoding: chunked x",
            b"Transfer-Encoding: \x0bchunked",
            b"Transfer-Encoding: chunked\x0c",
            b"Transfer-Encoding: chunked\x00",
            b"Transfer-Encoding: \xa0chunked",
            b"Transfer-Encoding: chunked\xff",
            b"Transfer-Encoding: chun\xc5\xbfked",
        ],
    );
    table.refuse_fields(
        R400,
        &[
            b"Transfer-Encoding : chunked",
            b"Transfer-Encoding\t: chunked",
            b"Transfer-Encoding\x0b: chunked",
            b"Transfer Encoding: chunked",
            b"Tran\xc5\xbffer-Encoding: chunked",
            b"\x00Transfer-Encoding: chunked",
            b"\xa0Transfer-Encoding: chunked",
            b"Transfer-Encoding:\r\n chunked",
            b"A: b\r\n Transfer-Encoding: chunked",
            b"A: b\nTransfer-Encoding: chunked",
            b"A: b\rTransfer-Encoding: chunked",
            b"A: b\r\rTransfer-Encoding: chunked",
            b"A: b\n\rTransfer-Encoding: chunked",
            b"A: b\r\n\tContent-Length: 5\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding\r\n: chunked",
            b"Transfer-Encoding: chunked\n",
        ],
    );
    table.clause("RFC 9112 6.1: HTTP/1.0 has no transfer codings");
    table.refuse(
        R400,
        &[
            b"POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: identity\r\n\r\n",
        ],
    );
    table.clause("RFC 9112 2.2: empty lines before a request, and no end of them");
    table.refuse(
        R400,
        &[b"\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n", &[b'\r', b'\n'].repeat(3000)],
    );
    table.clause("RFC 9110 9.3.1, 9.3.2: a body that has no meaning");
    table.refuse(
        R400,
        &[
            b"GET / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello",
            b"HEAD / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello",
            b"GET / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HEAD / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 43\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n",
            b"GET / HTTP/1.0\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello",
        ],
    );
    table.run();
}

#[test]
fn hosts_that_are_none_or_two_are_refused() {
    let mut table = Table::new();
    table.clause("RFC 9112 3.2, RFC 9110 7.2");
    let mut add = |fields: &[u8]| table.add([b"GET / HTTP/1.1\r\n", fields, b"\r\n"].concat(), Must::Refuse(R400));
    for fields in [
        &b""[..],
        b"Accept: a\r\n",
        b"Host: a.example\r\nHost: a.example\r\n",
        b"Host: a.example\r\nHost: b.example\r\n",
        b"Host: a.example\r\nA: b\r\nHOST: a.example\r\n",
        b"Host: a.example\r\nHost:\r\n",
        b"Host:\r\nHost: a.example\r\n",
        b"Host : a.example\r\n",
        b" Host: a.example\r\n",
        b"Host\x00: a.example\r\n",
        b"Host: a.example\r\n b.example\r\n",
    ] {
        add(fields);
    }
    for value in [
        &b""[..],
        b" ",
        b"a.example, b.example",
        b"a.example,",
        b"a.example b.example",
        b"a.example\tb",
        b"a.example/",
        b"a.example/path",
        b"a.example?x",
        b"a.example#x",
        b"user@a.example",
        b"user:pass@a.example",
        b"@a.example",
        b"http://a.example",
        b"//a.example",
        b"a.example:x",
        b"a.example:80x",
        b"a.example:-1",
        b"a.example:+80",
        b"a.example:65536",
        b"a.example:99999999999999999999",
        b"a.example:80:80",
        b"a.example: 80",
        b":80",
        b":",
        b"[::1",
        b"::1]",
        b"[::1]x",
        b"[::1]:x",
        b"[]",
        b"[x]",
        b"[::1%25eth0]",
        b"a\\b",
        b"a.example\x00",
        b"a.ex\x01ample",
        b"a.example\x7f",
        b"a\xc3\xa4.example",
        b"\"a.example\"",
        b"<a.example>",
        b"a|b",
        b"a^b",
        b"a`b",
        b"{a}",
        b"a%b",
        b"a%zz",
        b"../a",
    ] {
        add(&[b"Host: ", value, b"\r\n"].concat());
    }
    table.run();
}

#[test]
fn request_lines_that_are_none_are_refused() {
    let mut table = Table::new();
    table.clause("RFC 9112 2.2, 3");
    let mut add = |line: &[u8], statuses| {
        table.add([line, b"\r\nHost: a.example\r\n\r\n"].concat(), Must::Refuse(statuses));
    };
    for line in [
        &b"GET"[..],
        b"GET ",
        b"GET  HTTP/1.1",
        b"GET HTTP/1.1",
        b"/ HTTP/1.1",
        b" GET / HTTP/1.1",
        b"\tGET / HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET /\tHTTP/1.1",
        b"GET\x0b/ HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"GET / HTTP/1.1\t",
        b"GET / HTTP/1.1 x",
        b"GET / x HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET / HTTP/1.1\r",
        b"GET / HTTP/1.1\rA: b",
        b"GET / HTTP/1.1\nA: b",
        b"GET /\r HTTP/1.1",
        b"GET /\n HTTP/1.1",
        b"GET /\x00 HTTP/1.1",
        b"GET\x00 / HTTP/1.1",
        b"\x00GET / HTTP/1.1",
        b"\xef\xbb\xbfGET / HTTP/1.1",
        b"G\xc3\x84T / HTTP/1.1",
        b"G@T / HTTP/1.1",
        b"G,T / HTTP/1.1",
        b"GET: / HTTP/1.1",
        b"(GET) / HTTP/1.1",
        b"\"GET\" / HTTP/1.1",
        b"G/T / HTTP/1.1",
        b"G=T / HTTP/1.1",
        b"G\x7fT / HTTP/1.1",
        b"{} / HTTP/1.1",
    ] {
        add(line, R400);
    }
    for line in [
        &b"GET / http/1.1"[..],
        b"GET / Http/1.1",
        b"GET / HTTP/1",
        b"GET / HTTP/1.",
        b"GET / HTTP/.1",
        b"GET / HTTP/1.10",
        b"GET / HTTP/1.1.1",
        b"GET / HTTP/01.1",
        b"GET / HTTP/1.01",
        b"GET / HTTP/11",
        b"GET / HTTP/1,1",
        b"GET / HTTP/+1.1",
        b"GET / HTTP/1.x",
        b"GET / HTTP/x.1",
        b"GET / HTTP /1.1",
        b"GET / HTTP/ 1.1",
        b"GET / HTTP/1 .1",
        b"GET / HTTPS/1.1",
        b"GET / HTP/1.1",
        b"GET / ICY/1.1",
        b"GET / RTSP/1.0",
        b"GET / HTTP",
        b"GET / /1.1",
        b"GET / 1.1",
        b"GET / HTTP\\1.1",
        b"GET / HTTP/1.1\x00",
        b"GET /",
        b"GET / HTTP/0.9",
        b"GET / HTTP/0.0",
        b"GET / HTTP/2.0",
        b"GET / HTTP/2",
        b"GET / HTTP/3.0",
        b"GET / HTTP/9.9",
        b"GET / HTTP/10.1",
        b"GET / HTTP/-1.1",
        b"GET / HTTP/1.\xd9\xa1",
    ] {
        add(line, &[400, 505]);
    }
    table.run();
}

#[test]
fn targets_and_methods_that_are_not_to_be_are_refused() {
    let mut table = Table::new();
    table.clause("RFC 9112 3.2, RFC 9110 4.2");
    for target in [
        &b"x"[..],
        b"index.html",
        b"?x",
        b"#x",
        b"*",
        b"*x",
        b"/*\x01",
        b"a.example",
        b"a.example:80",
        b":80/",
        b"http:",
        b"http:/",
        b"http://",
        b"http:///x",
        b"http://:80/",
        b"http:/a.example/",
        b"http:a.example",
        b"://a.example/",
        b"http//a.example/",
        b"ht tp://a.example/",
        b"ftp://a.example/",
        b"file:///etc/passwd",
        b"gopher://a.example/",
        b"javascript:alert(1)",
        b"http://user@a.example/",
        b"http://user:pass@a.example/",
        b"http://a.example:x/",
        b"http://a.example:65536/",
        b"http://a.example,b.example/",
        b"http://[::1/",
        b"http://a\\b/",
        b"/a\x01b",
        b"/a\x1fb",
        b"/a\x7fb",
        b"/a\x0bb",
        b"/\xc3\xa4",
        b"/\xff",
        b"/?\x80",
        b"\\",
        b"\\\\a.example\\x",
        b"..",
        b"../x",
        b"%2f",
    ] {
        table.add([b"GET ", target, b" HTTP/1.1\r\nHost: a.example\r\n\r\n"].concat(), Must::Refuse(R400));
    }
    table.refuse(&[400, 421], &[b"GET https://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"]);
    for method in ["POST", "HEAD", "PUT", "DELETE", "PATCH"] {
        table.add(format!("{method} * HTTP/1.1\r\n{HOST}\r\n"), Must::Refuse(R400));
    }
    table.clause("no tunnels, no echoes");
    table.refuse(
        &[400, 405, 501],
        &[
            b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
            b"CONNECT a.example:443 HTTP/1.0\r\nHost: a.example:443\r\n\r\n",
            b"CONNECT / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            b"CONNECT a.example HTTP/1.1\r\nHost: a.example\r\n\r\n",
            b"CONNECT http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
            b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello",
            b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n",
            b"TRACE / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            b"TRACE / HTTP/1.1\r\nHost: a.example\r\nMax-Forwards: 0\r\n\r\n",
            b"TRACE / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello",
            b"TRACE * HTTP/1.1\r\nHost: a.example\r\n\r\n",
        ],
    );
    table.clause("RFC 9110 10.1.1");
    table.refuse_fields(
        &[417],
        &[
            b"Expect: 200-ok\r\nContent-Length: 5",
            b"Expect: 100-continue, x\r\nContent-Length: 5",
            b"Expect: 100-continue-x\r\nContent-Length: 5",
            b"Expect: x=y\r\nContent-Length: 5",
        ],
    );
    table.run();
}

#[test]
fn p_smuggle_fields_that_are_none_are_refused() {
    let mut table = Table::new();
    table.clause("RFC 9112 5, 5.1, 5.2; RFC 9110 5.1, 5.5");
    let lines: &[&[u8]] = &[
        b"no colon",
        b"x",
        b": b",
        b" : b",
        b":",
        b"A b: c",
        b"A : b",
        b"A\t: b",
        b"A\x00: b",
        b"A\x01: b",
        b"A\x7f: b",
        b"A\xe4: b",
        b"\xc3\xa4: b",
        b"A(: b",
        b"A@: b",
        b"A/: b",
        b"A,B: c",
        b"A;: b",
        b"\"A\": b",
        b"[A]: b",
        b"{A}: b",
        b"A=: b",
        b"A\\: b",
        b"A?: b",
        b"<A>: b",
        b"A: b\x00",
        b"A: \x00",
        b"A: b\x01c",
        b"A: b\x08c",
        b"A: b\x0bc",
        b"A: b\x0cc",
        b"A: b\x1bc",
        b"A: b\x1fc",
        b"A: b\x7fc",
        b"A: b\rc",
        b"A: b\r",
        b"A: \rb",
        b"A: b\nC: d",
        b"A: b\n",
        b"\nA: b",
        b"\rA: b",
        b"A\r: b",
        b"A\n: b",
        b"A: b\r\n c",
        b"A: b\r\n\tc",
        b"A: b\r\n \r\nC: d",
        b"A: b\r\n\t",
        b"A:\r\n b",
        b" A: b",
        b"\tA: b",
        b" ",
        b"Content-Type: multipart/mixed;\r\n boundary=x",
    ];
    for line in lines {
        for around in [["Host: a.example\r\n", ""], ["", "Host: a.example\r\n"]] {
            let bytes = [b"GET / HTTP/1.1\r\n", around[0].as_bytes(), *line, b"\r\n", around[1].as_bytes(), b"\r\n"];
            table.add(bytes.concat(), Must::Refuse(R400));
        }
    }
    table.clause("RFC 9112 2.2: bare line feeds");
    table.refuse(
        R400,
        &[
            b"GET / HTTP/1.1\nHost: a.example\n\n",
            b"GET / HTTP/1.1\r\nHost: a.example\n\r\n",
            b"GET / HTTP/1.1\nHost: a.example\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a.example\r\n\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a.example\r\n\rX\r\n\r\n",
            b"GET / HTTP/1.1\n\rHost: a.example\n\r\n\r",
            b"\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            b"\rGET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        ],
    );
    table.clause("not HTTP");
    table.refuse(
        R400,
        &[
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
            b"EHLO a.example\r\n\r\n",
            b"{\"a\": 1}\r\n\r\n",
            b"\x00\x00\x00\x00\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nHost: a.example\r\n\r\n",
        ],
    );
    table.run();
}

#[test]
fn p_bighdr_what_is_too_large_is_refused() {
    let mut table = Table::new();
    let (k9, k40, k100) = ("x".repeat(9 * 1024), "x".repeat(40 * 1024), "x".repeat(100 * 1024));
    let fields = |count: usize| (0..count).map(|i| format!("F{i}: x\r\n")).collect::<String>();
    table.clause("RFC 6585 5");
    for head in [
        format!("GET / HTTP/1.1\r\n{HOST}A: {k40}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{HOST}A: {k100}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{HOST}{k40}: a\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{HOST}{}\r\n", format!("A: {k9}\r\n").repeat(4)),
        format!("GET / HTTP/1.1\r\n{HOST}A: {k40}"),
        format!("GET / HTTP/1.1\r\n{HOST}{}\r\n", fields(100)),
        format!("GET / HTTP/1.1\r\n{HOST}{}\r\n", fields(1000)),
        format!("GET / HTTP/1.1\r\n{HOST}{}\r\n", fields(10_000)),
        format!("GET / HTTP/1.1\r\n{HOST}{}\r\n", "A:\r\n".repeat(101)),
        format!("POST / HTTP/1.1\r\nContent-Length: 5\r\n{}{HOST}\r\nhello", fields(100)),
    ] {
        table.add(head, Must::Refuse(&[431]));
    }
    table.clause("RFC 9112 3");
    for target in [format!("/{k9}"), format!("/?{k9}"), format!("http://a.example/{k9}")] {
        table.add(format!("GET {target} HTTP/1.1\r\n{HOST}\r\n"), Must::Refuse(&[414]));
    }
    for target in [&k40, &k100] {
        table.add(format!("GET /{target} HTTP/1.1\r\n{HOST}\r\n"), Must::Refuse(&[414, 431]));
        table.add(format!("GET /{target}"), Must::Refuse(&[414, 431]));
    }
    for method in ["X".repeat(33), "X".repeat(1000), "X".repeat(100 * 1024)] {
        table.add(format!("{method} / HTTP/1.1\r\n{HOST}\r\n"), Must::Refuse(&[400, 414, 431, 501]));
    }
    table.add("X".repeat(100 * 1024), Must::Refuse(&[400, 414, 431, 501]));
    table.add(format!("GET / HTTP/{k9}\r\n{HOST}\r\n"), Must::Refuse(&[400, 414, 431, 505]));
    table.add(format!("GET / HTTP/1.1\r\nHost: {k9}\r\n\r\n"), Must::Refuse(&[400, 431]));
    table.add("\r\n".repeat(100_000), Must::Refuse(&[400, 431]));
    table.run();
}

#[test]
fn p_smuggle_chunks_that_lie_are_broken_off() {
    let mut table = Table::new();
    table.clause("RFC 9112 7.1");
    table.break_chunks(
        R400,
        &[
            b"x\r\n\r\n0\r\n\r\n",
            b"\r\nhello\r\n0\r\n\r\n",
            b"-5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"5h\r\nhello\r\n0\r\n\r\n",
            b"5.0\r\nhello\r\n0\r\n\r\n",
            b"5_0\r\nhello\r\n0\r\n\r\n",
            b"5,5\r\nhello\r\n0\r\n\r\n",
            b"\"5\"\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"\t5\r\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"5\t\r\nhello\r\n0\r\n\r\n",
            b"5 5\r\nhello\r\n0\r\n\r\n",
            b"5\x00\r\nhello\r\n0\r\n\r\n",
            b"5\xa0\r\nhello\r\n0\r\n\r\n",
            b"\xef\xbc\x95\r\nhello\r\n0\r\n\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5\rhello\r\n0\r\n\r\n",
            b"5\n\rhello\r\n0\r\n\r\n",
            b"5\r\rhello\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello\r0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello \r\n0\r\n\r\n",
            b"5\r\nhelloworld\r\n0\r\n\r\n",
            b"5\r\nhell\r\n0\r\n\r\n",
            b"5\r\nhelloX\n0\r\n\r\n",
            b"5\r\nhello\n\r0\r\n\r\n",
            b"5\r\nhello\r\n\r\n0\r\n\r\n",
            b"5\r\nhello\r\n0\n\n",
            b"5\r\nhello\r\n0\r\n\n",
            b"5\r\nhello\r\n0\n\r\n",
            b"5\r\nhello\r\n0\r\n\rX\r\n\r\n",
            b"5\r\nhello\r\n0 \r\n\r\n",
            b"5\r\nhello\r\n-0\r\n\r\n",
            b"5\r\nhello\r\n0x0\r\n\r\n",
            b"10000000000000005\r\nhello\r\n0\r\n\r\n",
            b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            b"100000000000000000000000000000005\r\nhello\r\n0\r\n\r\n",
        ],
    );
    table.clause("RFC 9112 7.1.1");
    table.break_chunks(
        R400,
        &[
            b"5;\r\nhello\r\n0\r\n\r\n",
            b"5; \r\nhello\r\n0\r\n\r\n",
            b"5;;\r\nhello\r\n0\r\n\r\n",
            b"5;a;\r\nhello\r\n0\r\n\r\n",
            b"5;=b\r\nhello\r\n0\r\n\r\n",
            b"5;a=\r\nhello\r\n0\r\n\r\n",
            b"5;a=b=c\r\nhello\r\n0\r\n\r\n",
            b"5;a b\r\nhello\r\n0\r\n\r\n",
            b"5;a=b c\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"b\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"b\"c\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"b\\\r\nhello\r\n0\r\n\r\n",
            b"5;a\x00\r\nhello\r\n0\r\n\r\n",
            b"5;a=\x01\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"\x01\"\r\nhello\r\n0\r\n\r\n",
            b"5;a=b\x7f\r\nhello\r\n0\r\n\r\n",
            b"5;a\nhello\r\n0\r\n\r\n",
            b"5;a=b\nhello\r\n0\r\n\r\n",
            b"5;a=\"\n\"\r\nhello\r\n0\r\n\r\n",
            b"5;a=b\rc\r\nhello\r\n0\r\n\r\n",
            b"5;a\r hello\r\n0\r\n\r\n",
            b"5,a\r\nhello\r\n0\r\n\r\n",
            b"5 a\r\nhello\r\n0\r\n\r\n",
            b"5:a\r\nhello\r\n0\r\n\r\n",
            b"5;(a)\r\nhello\r\n0\r\n\r\n",
            b"5;a@b\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\r\n0;\r\n\r\n",
            b"5\r\nhello\r\n0;a\n\r\n",
        ],
    );
    table.clause("RFC 9112 7.1.2");
    table.break_chunks(
        R400,
        &[
            b"5\r\nhello\r\n0\r\nno colon\r\n\r\n",
            b"5\r\nhello\r\n0\r\n: x\r\n\r\n",
            b"5\r\nhello\r\n0\r\nA : x\r\n\r\n",
            b"5\r\nhello\r\n0\r\n A: x\r\n\r\n",
            b"5\r\nhello\r\n0\r\nA: x\r\n y\r\n\r\n",
            b"5\r\nhello\r\n0\r\nA: x\nB: y\r\n\r\n",
            b"5\r\nhello\r\n0\r\nA: x\rB: y\r\n\r\n",
            b"5\r\nhello\r\n0\r\nA: \x00\r\n\r\n",
            b"5\r\nhello\r\n0\r\nA\xe4: x\r\n\r\n",
            b"5\r\nhello\r\n0\r\nGET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n",
        ],
    );
    table.clause("bounded");
    let long = [
        format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(20_000)),
        format!("{}5\r\nhello\r\n0\r\n\r\n", "0".repeat(20_000)),
        format!("5;{}", "a".repeat(20_000)),
        format!("5\r\nhello\r\n0\r\nA: {}\r\n\r\n", "x".repeat(40_000)),
        format!("5\r\nhello\r\n0\r\n{}\r\n", "A: x\r\n".repeat(200)),
    ];
    for body in &long {
        table.add(format!("{CHUNKED}{body}"), Must::Break(&[400, 431]));
    }
    table.run();
}

#[test]
fn p_smuggle_a_refused_request_behind_a_good_one_is_refused_and_the_good_one_served() {
    let mut table = Table::new();
    table.clause("RFC 9112 9.3.2, 11.2");
    let tail = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";
    for second in [
        format!("GET / HTTP/1.1\r\n\r\n{tail}"),
        format!("G@T / HTTP/1.1\r\n{HOST}\r\n{tail}"),
        format!("GET / HTTP/1.1\nHost: a.example\n\n{tail}"),
        format!(
            "POST / HTTP/1.1\r\n{HOST}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5c\r\n{tail}0\r\n\r\n"
        ),
        format!(
            "POST / HTTP/1.1\r\n{HOST}Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{tail}",
            tail.len() + 5
        ),
        format!(
            "POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{tail}"
        ),
        format!("POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{tail}"),
        format!("POST / HTTP/1.1\r\n{HOST}Transfer-Encoding : chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{tail}"),
        format!("GET / HTTP/1.1\r\n{HOST}Content-Length: {}\r\n\r\n{tail}", tail.len()),
        format!("GET / HTTP/1.1\r\n{HOST}Content-Length: 0\r\nContent-Length: {}\r\n\r\n{tail}", tail.len()),
        format!("GET / HTTP/1.1\r\n{HOST}X: y\r\n z\r\n\r\n{tail}"),
        format!("TRACE / HTTP/1.1\r\n{HOST}\r\n{tail}"),
        format!("CONNECT a.example:80 HTTP/1.1\r\n{HOST}\r\n{tail}"),
        format!("\x16\x03\x01\r\n\r\n{tail}"),
    ] {
        table.add(format!("{GET}{second}"), Must::ServeThenRefuse(ANY_REFUSAL));
    }
    table.add(format!("{GET}PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{tail}"), Must::ServeThenRefuse(&[NOTHING, 400, 505]));
    table.run();
}

#[test]
fn what_the_specifications_allow_is_served() {
    let mut table = Table::new();
    table.clause("RFC 9112 2.2: an empty line before a request");
    table.serve(format!("\r\n{GET}"), "");
    table.clause("RFC 9112 3.2, RFC 9110 9.1");
    for method in [
        "GET",
        "POST",
        "PUT",
        "DELETE",
        "OPTIONS",
        "PATCH",
        "HEAD",
        "PROPFIND",
        "M-SEARCH",
        "get",
        "X",
        "BREW",
        "QUERY",
        "VERSION-CONTROL",
        "!#$%&'*+-.^_`|~0aZ",
        "XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX",
    ] {
        table.serve(format!("{method} / HTTP/1.1\r\n{HOST}\r\n"), "");
    }
    for target in [
        "/",
        "/?",
        "/??",
        "/?/",
        "//",
        "//a//b",
        "/./../x",
        "/a%20b",
        "/%2F%2f%00",
        "/-._~!$&'()*+,;=:@",
        "/a;b=c,d?e=f&g=h",
        "/?-._~!$&'()*+,;=:@/?",
        "/a:b@c",
        "/http://b.example/",
        "/%C3%A4",
        "/*",
    ] {
        table.serve(format!("GET {target} HTTP/1.1\r\n{HOST}\r\n"), "");
    }
    table.serve(format!("GET /{} HTTP/1.1\r\n{HOST}\r\n", "x".repeat(8000)), "");
    table.serve(format!("OPTIONS * HTTP/1.1\r\n{HOST}\r\n"), "");
    for (asked, seen) in [
        ("GET http://a.example/x?y", "GET /x?y"),
        ("GET http://a.example", "GET /"),
        ("GET http://a.example?x", "GET /?x"),
        ("GET http://b.example:8080/", "GET /"),
        ("GET HTTP://A.EXAMPLE/X", "GET /X"),
        ("GET http://127.0.0.1/", "GET /"),
        ("GET http://[::1]:80/", "GET /"),
        ("OPTIONS http://a.example", "OPTIONS *"),
        ("OPTIONS http://a.example/", "OPTIONS /"),
        ("POST http://a.example/x", "POST /x"),
    ] {
        table.serve_as(format!("{asked} HTTP/1.1\r\n{HOST}\r\n"), &format!("{seen} HTTP/1.1"), "");
    }
    table.clause("RFC 9110 7.2");
    for host in [
        "a",
        "A.Example",
        "a.example.",
        "a.example:80",
        "a.example:65535",
        "a_b.example",
        "xn--4ca.example",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:80",
        "[2001:db8::1]",
        "1.2.3",
        "a-b",
        "  a.example",
        "a.example \t ",
    ] {
        table.serve(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), "");
    }
    table.serve("GET / HTTP/1.1\r\nhOsT:a.example\r\n\r\n", "");
    table.clause("RFC 9110 5.1, 5.5; RFC 9112 5");
    table.serve_fields(&[
        b"A:",
        b"A: ",
        b"A: \t ",
        b"A:b",
        b"A:\tb\t",
        b"A:    b    ",
        b"A: b  c\td",
        b"A: b\r\nA: b\r\nA:\r\nA:",
        b"A:\r\nB:\r\nC:\r\nD:\r\nE:\r\nF:",
        b"!#$%&'*+-.^_`|~09azAZ: x",
        b"a_b: c",
        b"A: \x80\xff\xe4\xc3\xa4",
        b"A: !\"#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~",
        b"A: :",
        b"A:: b",
        b"Cookie: a=b; c=d\r\nCookie: e=f",
        b"Accept-Encoding: gzip, deflate, br, zstd",
        b"Accept-Encoding: chunked",
        b"Content-Encoding: chunked",
        b"Range: bytes=0-1",
        b"If-None-Match: \"x\"",
        b"Connection: keep-alive",
        b"Connection: Keep-Alive, x",
        b"Connection:",
        b"Connection: ,",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
        b"TE: trailers",
        b"TE: trailers, deflate;q=0.5",
        b"TE: chunked",
        b"Trailer: X",
        b"Upgrade: h2c",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        b"Connection: Upgrade\r\nUpgrade: websocket",
        b"Max-Forwards: 0",
        b"Via: 1.0 fred, 1.1 p.example.net",
        b"Forwarded: for=1.2.3.4;proto=https",
        b"X-Forwarded-For: 1.2.3.4, 5.6.7.8",
        b"Expect: 100-continue",
        b"Expect: 100-Continue",
        b"Content-Length: 0",
        b"Content-Length: 000",
        b"Date: x",
    ]);
    let many: String = (0..99).map(|i| format!("F{i}: x\r\n")).collect();
    table.serve(format!("GET / HTTP/1.1\r\n{HOST}{many}\r\n"), "");
    table.serve(format!("GET / HTTP/1.1\r\n{HOST}A: {}\r\n\r\n", "x".repeat(30_000)), "");
    table.serve(format!("GET / HTTP/1.1\r\n{HOST}{}: x\r\n\r\n", "A".repeat(1000)), "");
    table.clause("RFC 9112 6");
    for (fields, body) in [
        ("Content-Length: 5", "hello"),
        ("content-length:5", "hello"),
        ("CONTENT-LENGTH: \t5 \t", "hello"),
        ("Content-Length: 005", "hello"),
        ("Content-Length: 00000000000000000000000000000005", "hello"),
        ("Content-Length: 0", ""),
        ("A: b", ""),
        ("Expect: 100-continue\r\nContent-Length: 5", "hello"),
        ("Content-Length: 43", "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        ("Content-Length: 5\r\nContent-Type: x\r\nContent-Language: y", "0\r\n\r\n"),
    ] {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "REPORT"] {
            table.serve(format!("{method} /l HTTP/1.1\r\n{HOST}{fields}\r\n\r\n{body}"), body);
        }
    }
    table.clause("RFC 9112 7.1");
    table.serve_chunks(
        "hello",
        &[
            b"5\r\nhello\r\n0\r\n\r\n",
            b"05\r\nhello\r\n00\r\n\r\n",
            b"000000005\r\nhello\r\n0\r\n\r\n",
            b"1\r\nh\r\n4\r\nello\r\n0\r\n\r\n",
            b"5;a\r\nhello\r\n0\r\n\r\n",
            b"5;a=b\r\nhello\r\n0;c=d\r\n\r\n",
            b"5;a=b;c;d=e\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"b c;d\"\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"\"\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"\\\"\\\\\"\r\nhello\r\n0\r\n\r\n",
            b"5 ;a\r\nhello\r\n0\r\n\r\n",
            b"5 ; a = b\r\nhello\r\n0\r\n\r\n",
            b"5\t;\ta\t=\t\"b\"\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"\x80\xff\"\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\r\n0\r\nA: b\r\n\r\n",
            b"5\r\nhello\r\n0\r\nA: b\r\nB:\r\nA: c\r\n\r\n",
            b"5\r\nhello\r\n0\r\nX-Sum: \xff\r\n\r\n",
        ],
    );
    table.serve_chunks("0123456789abcdef0123456789", &[b"1A\r\n0123456789abcdef0123456789\r\n0\r\n\r\n"]);
    table.serve_chunks("0123456789", &[b"a\r\n0123456789\r\n0\r\n\r\n", b"A\r\n0123456789\r\n0\r\n\r\n"]);
    table.serve_chunks("", &[b"0\r\n\r\n", b"0;a\r\nA: b\r\n\r\n"]);
    table.serve_chunks("\r\n0\r\n\r\n", &[b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n"]);
    for coding in ["Chunked", "CHUNKED", "\tchunked ", "chunked\t"] {
        let head = format!("POST /chunked HTTP/1.1\r\n{HOST}tRANSFER-eNCODING:{coding}\r\n\r\n");
        table.serve(format!("{head}5\r\nhello\r\n0\r\n\r\n"), "hello");
    }
    table.clause("RFC 9112 9.3, appendix C: HTTP/1.0");
    table.serve(format!("GET / HTTP/1.0\r\n{HOST}Connection: keep-alive\r\n\r\n"), "");
    table.serve(format!("POST / HTTP/1.0\r\n{HOST}Connection: Keep-Alive\r\nContent-Length: 5\r\n\r\nhello"), "hello");
    table.run();
}

#[test]
fn what_may_be_served_or_refused_does_no_harm() {
    let mut table = Table::new();
    table.clause("no rule, or a recipient's choice");
    for line in [
        "GET / HTTP/1.2",
        "GET / HTTP/1.9",
        "GET /a#b HTTP/1.1",
        "GET /<>\"^`{|}\\ HTTP/1.1",
        "GET /% HTTP/1.1",
        "GET /%zz HTTP/1.1",
        "GET /a[b] HTTP/1.1",
        "GET http://a%62.example/ HTTP/1.1",
        "GET http://a.example:/ HTTP/1.1",
    ] {
        table.add(format!("{line}\r\n{HOST}\r\n"), Must::Either);
    }
    for host in [
        "a.example:",
        "a%62",
        "a..b",
        ".a",
        "-a",
        "256.1.1.1",
        "[v1.x]",
        "a.example:0",
        "a.example:000080",
        "[::ffff:1.2.3.4]",
    ] {
        table.add(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), Must::Either);
    }
    for request in [
        "GET / HTTP/1.1\r\nHost: a~b!$&'()*+;=\r\n\r\n".to_owned(),
        format!("POST / HTTP/1.1\r\n{HOST}Content-Length: 9223372036854775808\r\n\r\nhello"),
        format!("POST / HTTP/1.1\r\n{HOST}Content-Length: 18446744073709551615\r\n\r\nhello"),
        format!("POST / HTTP/1.1\r\n{HOST}Content_Length: 5\r\n\r\nhello"),
        format!("POST / HTTP/1.1\r\n{HOST}Content.Length: 5\r\n\r\nhello"),
        format!("POST / HTTP/1.1\r\n{HOST}ContentLength: 5\r\n\r\nhello"),
        format!("POST / HTTP/1.1\r\n{HOST}Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{HOST}Transfer--Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{HOST}Transfer.Encoding: chunked\r\n\r\n0\r\n\r\n"),
        "GET / HTTP/1.0\r\n\r\n".to_owned(),
        "POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        format!("\r\n\r\n\r\n{GET}"),
        format!("{GET}\r\n{GET}"),
        format!("{CHUNKED}5\r\nhello\r\n0\r\nContent-Length: 5\r\nHost: b\r\nTransfer-Encoding: x\r\n\r\n"),
        format!("{CHUNKED}5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(200)),
        format!("GET / HTTP/1.1\r\n{HOST}Expect:\r\n\r\n"),
        format!(
            "POST / HTTP/1.1\r\n{HOST}Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"
        ),
        format!("POST / HTTP/1.1\r\n{HOST}Connection: close, content-length, host\r\nContent-Length: 5\r\n\r\nhello"),
        format!(
            "POST / HTTP/1.1\r\n{HOST}Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        format!("POST / HTTP/1.1\r\n{HOST}Content-Length: 10\r\n\r\nhello"),
        format!("{CHUNKED}5\r\nhel"),
        format!("{CHUNKED}8000000000000000\r\nhello\r\n0\r\n\r\n"),
        format!("{CHUNKED}ffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{HOST}A: b"),
        "GET / HTTP/1.1\r\nHost: a.exa".to_owned(),
        "G".to_owned(),
        String::new(),
        "\r\n".to_owned(),
        "\r".to_owned(),
    ] {
        table.add(request, Must::Either);
    }
    table.run();
}

/// Requests of the tables, damaged at random: what reaches the origin is never ambiguous, no more requests reach it than
/// are answered, and what comes back is HTTP.
#[test]
fn p_smuggle_damaged_requests_do_no_harm() {
    let seed =
        std::env::var("SCRIMP_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SCRIMP_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let whole = [
        format!("{GET}{GET}"),
        format!("POST /a HTTP/1.1\r\n{HOST}Content-Length: {}\r\n\r\n{smuggled}{GET}", smuggled.len()),
        format!(
            "POST /a HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{smuggled}\r\n0\r\nA: b\r\n\r\n{GET}",
            smuggled.len()
        ),
        format!("{CHUNKED}5;a=\"b\"\r\nhello\r\n0\r\n\r\n{GET}"),
        format!(
            "OPTIONS http://a.example/x HTTP/1.1\r\n{HOST}Connection: keep-alive, x\r\nX: y\r\nContent-Length: 0\r\n\r\n{GET}"
        ),
        format!("POST /a HTTP/1.0\r\n{HOST}Connection: keep-alive\r\nContent-Length: 5\r\n\r\nhello{GET}"),
    ];
    let pieces: [&[u8]; 24] = [
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b"\0",
        b"\x0b",
        b"\xa0",
        b":",
        b",",
        b";",
        b"0",
        b"5",
        b"\r\n ",
        b"chunked",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: b\r\n",
        b"0\r\n\r\n",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"GET ",
        b"_",
    ];
    let stage = Stage::new();
    let count = 2000;
    for _ in 0..count {
        let mut bytes = whole[random.usize(..whole.len())].clone().into_bytes();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            let end = (at + random.usize(..4)).min(bytes.len());
            let piece = pieces[random.usize(..pieces.len())];
            match random.u8(..4) {
                0 => drop(bytes.splice(at..at, piece.iter().copied())),
                1 => drop(bytes.splice(at..end, piece.iter().copied())),
                2 => drop(bytes.drain(at..end)),
                _ => bytes[at] ^= 1 << random.u8(..8),
            }
        }
        let before = stage.origin.requests().len();
        let mut client = stage.front.client();
        client.offer(&bytes);
        client.finish();
        let method = bytes.trim_ascii_start().split(|byte| *byte == b' ').next().unwrap();
        let outcome = client.outcome(&String::from_utf8_lossy(method), SILENCE);
        let shown = bytes.escape_ascii();
        assert!(outcome.is_closed(), "seed {seed}: {shown}: {outcome:?}");
        let seen = stage.new_at_origin(before).unwrap_or_else(|what| panic!("seed {seed}: {shown}: {what}"));
        let (taken, served) = (
            seen.iter().filter(|seen| seen.is_whole).count(),
            outcome.statuses().iter().filter(|status| **status == 200).count(),
        );
        // A client that has said its last word may be let go before its answer.
        assert!(served <= taken, "seed {seed}: {shown}: {served} answers to {taken} requests");
        let flaws = stage.origin.flaws();
        assert!(flaws.is_empty(), "seed {seed}: {shown}: {flaws:?}");
    }
}
