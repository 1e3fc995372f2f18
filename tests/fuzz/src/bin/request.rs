//! The request gate, against `httparse`, against the guardian, and against what is plainly right.
#![no_main]

#[path = "../../../support/oracle.rs"]
#[allow(dead_code, missing_docs, unreachable_pub, reason = "the tests use the rest of it")]
mod oracle;

use scrimp::proxy::Limits;
use scrimp::proxy::testing::{Body, Request, judge_request};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let verdict = judge_request(bytes, &limits);
    let head = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    match &verdict {
        Ok(Some(request)) => taken(head, request, &limits),
        Ok(None) => assert!(!head.windows(4).any(|bytes| bytes == b"\r\n\r\n"), "a whole head is judged"),
        Err(status) => assert!(matches!(status, 400 | 405 | 414 | 417 | 421 | 431 | 501 | 505), "{status}"),
    }
    if is_plainly_right(head) {
        assert!(matches!(verdict, Ok(Some(_))), "nothing is wrong with it: {verdict:?}");
    }
});

fn taken(head: &[u8], request: &Request, limits: &Limits) {
    let whole = &head[..request.head_bytes];
    // Another reader sees the same head.
    let mut fields = [httparse::EMPTY_HEADER; 200];
    let mut parsed = httparse::Request::new(&mut fields);
    assert_eq!(parsed.parse(head), Ok(httparse::Status::Complete(whole.len())));
    let values = |name: &str| -> Vec<&[u8]> {
        parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value).collect()
    };
    // And the same length of a body.
    let body = match (values("content-length").as_slice(), values("transfer-encoding").as_slice()) {
        ([], []) => Body::None,
        ([length], []) => Body::Known(std::str::from_utf8(length).unwrap().trim().parse().unwrap()),
        ([], [coding]) if coding.trim_ascii().eq_ignore_ascii_case(b"chunked") => Body::Chunked,
        other => panic!("two ways to say how long it is: {other:?}"),
    };
    assert_eq!(request.body, body);
    assert_eq!(values("host").len(), 1);
    // Until the last byte has come, it is waited for.
    for cut in 0..whole.len() {
        assert_eq!(judge_request(&whole[..cut], limits), Ok(None), "cut at {cut}");
    }
    // What is passed on means one thing to whoever reads it.
    assert_eq!(oracle::flaw(&request.forwarded), None);
    let again = judge_request(&request.forwarded, &wider(limits)).unwrap().expect("whole");
    assert_eq!((again.head_bytes, again.body), (request.forwarded.len(), request.body));
}

/// A head grows by what is added to it.
fn wider(limits: &Limits) -> Limits {
    Limits { header_bytes: limits.header_bytes * 2, header_fields: limits.header_fields + 20, ..limits.clone() }
}

/// Whether a head holds but what everybody takes: to refuse it would be a mistake.
fn is_plainly_right(bytes: &[u8]) -> bool {
    let Some(end) = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return false };
    let Ok(text) = std::str::from_utf8(&bytes[..end]) else { return false };
    let mut lines = text.split("\r\n");
    let line: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = line[..] else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
    if !matches!(method, "GET" | "POST" | "PUT" | "DELETE" | "PROPFIND")
        || !target.starts_with('/')
        || !target.chars().all(plain)
    {
        return false;
    }
    let (mut hosts, mut lengths, mut count) = (0, 0, 0);
    for line in lines {
        let Some((name, value)) = line.split_once(": ") else { return false };
        let name = name.to_ascii_lowercase();
        count += 1;
        match name.as_str() {
            "host"
                if value.split('.').all(|label| {
                    !label.is_empty() && label.len() < 60 && label.bytes().all(|c| c.is_ascii_lowercase())
                }) =>
            {
                hosts += 1
            }
            "content-length"
                if method != "GET" && (1..10).contains(&value.len()) && value.bytes().all(|c| c.is_ascii_digit()) =>
            {
                lengths += 1
            }
            "transfer-encoding" if method != "GET" && value == "chunked" => lengths += 1,
            // What there are rules about is not for this.
            "host" | "content-length" | "transfer-encoding" | "expect" | "connection" | "upgrade" => return false,
            _ if name.starts_with(['c', 't']) => return false,
            _ if name.is_empty() || !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') => return false,
            _ if !value.chars().all(|c| c == ' ' || plain(c)) => return false,
            _ => {}
        }
    }
    hosts == 1 && lengths <= 1 && count < 50 && text.len() < 3000
}
