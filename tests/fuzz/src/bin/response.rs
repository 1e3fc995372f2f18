//! The response gate, against `httparse` and against what is plainly right.
#![no_main]

use scrimp::proxy::testing::{Body, Response, judge_response};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let verdict = judge_response(bytes);
    match &verdict {
        Ok(Some(response)) => taken(bytes, response),
        Ok(None) => assert!(!bytes.windows(4).any(|bytes| bytes == b"\r\n\r\n"), "a whole head is judged"),
        Err(_) => {}
    }
    if is_plainly_right(bytes) {
        assert!(matches!(verdict, Ok(Some(_))), "nothing is wrong with it: {verdict:?}");
    }
});

fn taken(bytes: &[u8], response: &Response) {
    let whole = &bytes[..response.head_bytes];
    let mut fields = [httparse::EMPTY_HEADER; 200];
    let mut parsed = httparse::Response::new(&mut fields);
    assert_eq!(parsed.parse(bytes), Ok(httparse::Status::Complete(whole.len())));
    assert_eq!(parsed.code, Some(response.status));
    assert!((100..1000).contains(&response.status));
    let values = |name: &str| -> Vec<&[u8]> {
        parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value).collect()
    };
    let number = |length: &[u8]| std::str::from_utf8(length).unwrap().trim().parse().unwrap();
    match (values("content-length").as_slice(), values("transfer-encoding").as_slice()) {
        ([], []) => assert!(matches!(response.body, Body::None | Body::UntilClose), "{response:?}"),
        ([length, same @ ..], []) => {
            assert!(same.iter().all(|other| other == length), "two lengths");
            assert!([Body::None, Body::Known(number(length))].contains(&response.body), "{response:?}");
        }
        ([], [coding]) if coding.trim_ascii().eq_ignore_ascii_case(b"chunked") => {
            assert!(matches!(response.body, Body::None | Body::Chunked), "{response:?}");
        }
        other => panic!("two ways to say how long it is: {other:?}"),
    }
    // Nothing that another reader could take for something else.
    for line in whole.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)) {
        assert!(!line.iter().any(|byte| matches!(byte, 0..=8 | 10..=31 | 127)), "{line:?}");
    }
    for cut in 0..whole.len() {
        assert_eq!(judge_response(&whole[..cut]), Ok(None), "cut at {cut}");
    }
}

/// Whether a head holds but what everybody takes: to refuse it would be a mistake.
fn is_plainly_right(bytes: &[u8]) -> bool {
    let Some(end) = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return false };
    let Ok(text) = std::str::from_utf8(&bytes[..end]) else { return false };
    let mut lines = text.split("\r\n");
    let line: Vec<&str> = lines.next().unwrap_or_default().splitn(3, ' ').collect();
    let ["HTTP/1.1", status, reason] = line[..] else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~/ ".contains(c);
    if !matches!(status.parse::<u16>(), Ok(200..=599)) || status.len() != 3 || !reason.chars().all(plain) {
        return false;
    }
    let (mut lengths, mut count) = (0, 0);
    for line in lines {
        let Some((name, value)) = line.split_once(": ") else { return false };
        let name = name.to_ascii_lowercase();
        count += 1;
        match name.as_str() {
            "content-length" if (1..10).contains(&value.len()) && value.bytes().all(|c| c.is_ascii_digit()) => {
                lengths += 1
            }
            "transfer-encoding" if value == "chunked" => lengths += 1,
            "content-length" | "transfer-encoding" | "connection" | "upgrade" => return false,
            _ if name.is_empty() || !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') => return false,
            _ if !value.chars().all(plain) => return false,
            _ => {}
        }
    }
    lengths <= 1 && count < 50 && text.len() < 3000
}
