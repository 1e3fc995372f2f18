//! Whether two servers could read a request in two ways. Every request that reaches an origin of a test is judged, by
//! AWS's `http_desync_guardian` and by rules that are stricter than its own; an origin that saw one that is ambiguous
//! fails its test when it goes.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use http_desync_guardian::RequestSafetyTier;
use http_desync_guardian::request_analyzer::HttpRequestData;

/// What is wrong with a request's head, its empty line included; none if there is one way to read it.
pub fn flaw(head: &[u8]) -> Option<String> {
    let verdict = HttpRequestData::analyze_raw_request(head);
    let is_safe = matches!(verdict.tier, RequestSafetyTier::Compliant | RequestSafetyTier::Acceptable);
    let own = || own_flaw(head).map(str::to_owned);
    let theirs = (!is_safe).then(|| format!("{:?}, {:?}: {:?}", verdict.tier, verdict.reason, verdict.message));
    theirs.or_else(own)
}

/// The guardian bears some of this, since it does not change where a request ends.
fn own_flaw(head: &[u8]) -> Option<&'static str> {
    let text = head.strip_suffix(b"\r\n\r\n")?;
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let last = lines.len() - 1;
    for (number, line) in lines.iter().enumerate() {
        let Some(line) = line.strip_suffix(b"\r").or_else(|| (number == last).then_some(*line)) else {
            return Some("a bare line feed");
        };
        if line.iter().any(|byte| matches!(byte, 0..=8 | 10..=31 | 127)) {
            return Some("a control byte");
        }
        if number > 0 && !line.iter().take_while(|byte| **byte != b':').all(is_token_byte) {
            return Some("a field whose name is none");
        }
    }
    let named = |name: &[u8]| {
        let prefix = name.len() + 1;
        lines
            .iter()
            .filter(|line| line.get(..prefix).is_some_and(|front| front.eq_ignore_ascii_case(&[name, b":"].concat())))
            .count()
    };
    if !lines[0].ends_with(b" HTTP/1.1\r") && !lines[0].ends_with(b" HTTP/1.1") {
        return Some("not HTTP/1.1");
    }
    match (named(b"host"), named(b"content-length"), named(b"transfer-encoding")) {
        (1, 0 | 1, 0) | (1, 0, 1) => None,
        (1, ..) => Some("two ways to say how long it is"),
        _ => Some("not one Host"),
    }
}

fn is_token_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// The flaws that one origin has seen. Dropped with some in it, it fails the test.
#[derive(Debug, Clone, Default)]
pub struct Court(Arc<Mutex<Vec<String>>>);

thread_local! {
    static HERE: RefCell<Option<Court>> = const { RefCell::new(None) };
}

impl Court {
    /// Whatever this thread reads from now on is judged here: see [`judge`].
    pub fn sit(&self) {
        HERE.set(Some(self.clone()));
    }

    pub fn judge(&self, head: &[u8]) {
        if let Some(flaw) = flaw(head) {
            self.convict(format!("{flaw} in {:?}", String::from_utf8_lossy(head)));
        }
    }

    pub fn convict(&self, flaw: String) {
        self.0.lock().unwrap().push(flaw);
    }

    pub fn flaws(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// For the drop of an origin.
    pub fn close(&self) {
        let flaws = self.flaws();
        if !std::thread::panicking() {
            assert!(flaws.is_empty(), "requests that reached an origin and should not have:\n{}", flaws.join("\n"));
        }
    }
}

/// Judges a request's head if this thread is an origin's.
pub fn judge(head: &[u8]) {
    if let Some(court) = HERE.with_borrow(Clone::clone) {
        court.judge(head);
    }
}
