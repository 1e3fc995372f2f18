//! Bodies in chunks, in pieces of any size, against a reader of its own and `httparse`.
#![no_main]

use scrimp::proxy::testing::{Dechunked, dechunk};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The first byte says where it is cut.
    let Some((cut, body)) = bytes.split_first() else { return };
    let step = usize::from(*cut).max(1);
    let pieces: Vec<&[u8]> = body.chunks(step).collect();
    let (plain, framed) = (dechunk(&[body], false), dechunk(&[body], true));
    assert_eq!(dechunk(&pieces, false), plain, "pieces of {step}");
    assert_eq!(dechunk(&pieces, true), framed, "pieces of {step}");
    match (&plain, &framed) {
        (Ok(plain), Ok(framed)) => taken(body, plain, framed),
        (Err(one), Err(other)) => assert_eq!(one, other),
        other => panic!("one is refused and one is not: {other:?}"),
    }
    compare(body, &plain);
});

/// What is framed anew says the same, and in one way only.
fn taken(body: &[u8], plain: &Dechunked, framed: &Dechunked) {
    assert_eq!((plain.consumed, plain.is_done), (framed.consumed, framed.is_done));
    assert!(framed.bytes.len() <= body.len());
    if !plain.is_done {
        return;
    }
    let again = dechunk(&[&framed.bytes], false).expect("what was taken is taken again");
    assert_eq!((&again.bytes, &again.trailers), (&plain.bytes, &plain.trailers));
    assert_eq!((again.consumed, again.is_done), (framed.bytes.len(), true));
    assert_eq!(dechunk(&[&framed.bytes], true).unwrap().bytes, framed.bytes, "there is no more to mend");
}

enum Mine {
    Whole {
        bytes: Vec<u8>,
        consumed: usize,
    },
    More(Vec<u8>),
    Wrong,
    /// Beyond what is bounded here or there.
    Unknown,
}

fn compare(body: &[u8], theirs: &Result<Dechunked, &str>) {
    match (read(body), theirs) {
        (Mine::Whole { bytes, consumed }, Ok(theirs)) => {
            assert_eq!((&bytes, consumed, true), (&theirs.bytes, theirs.consumed, theirs.is_done));
        }
        (Mine::More(bytes), Ok(theirs)) => assert_eq!((&bytes, false), (&theirs.bytes, theirs.is_done)),
        (Mine::Wrong, Err(_)) | (Mine::Unknown, _) => {}
        (Mine::Wrong, Ok(theirs)) => panic!("it is not to be taken: {theirs:?}"),
        (_, Err(error)) => panic!("nothing is wrong with it: {error}"),
    }
}

/// Reads slowly and plainly (RFC 9112, 7.1).
fn read(body: &[u8]) -> Mine {
    let (mut at, mut out) = (0, Vec::new());
    loop {
        let line = match line(&body[at..]) {
            Line::Whole(line) if line.len() > 200 => return Mine::Unknown,
            Line::Whole(line) => line,
            Line::More if body.len() - at > 200 => return Mine::Unknown,
            Line::More => return Mine::More(out),
            Line::Wrong => return Mine::Wrong,
        };
        let Ok(text) = std::str::from_utf8(line) else { return Mine::Unknown };
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_hexdigit()).len();
        if digits > 15 {
            return Mine::Unknown;
        }
        let (Ok(size), true) = (u64::from_str_radix(&text[..digits], 16), are_extensions(&text[digits..])) else {
            return Mine::Wrong;
        };
        // Whom we take a size from, others have to take the same from.
        if let Ok(httparse::Status::Complete((_, other))) = httparse::parse_chunk_size(&body[at..]) {
            assert_eq!(other, size);
        }
        at += line.len() + 2;
        if size == 0 {
            return trailers(body, at, out);
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let rest = &body[at..];
        out.extend_from_slice(&rest[..size.min(rest.len())]);
        if rest.len() < size {
            return Mine::More(out);
        }
        match &rest[size..] {
            [b'\r', b'\n', ..] => at += size + 2,
            [] | [b'\r'] => return Mine::More(out),
            _ => return Mine::Wrong,
        }
    }
}

fn trailers(body: &[u8], mut at: usize, out: Vec<u8>) -> Mine {
    for count in 0.. {
        if count > 60 || at > 2000 {
            return Mine::Unknown;
        }
        match line(&body[at..]) {
            Line::Whole(b"") => return Mine::Whole { bytes: out, consumed: at + 2 },
            Line::Whole(line) => {
                let colon = line.iter().position(|byte| *byte == b':').unwrap_or_default();
                let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
                let is_value = |byte: &u8| !matches!(byte, 0..=8 | 10..=31 | 127);
                if colon == 0 || !line[..colon].iter().all(is_name) || !line[colon..].iter().all(is_value) {
                    return Mine::Wrong;
                }
                at += line.len() + 2;
            }
            Line::More => return Mine::More(out),
            Line::Wrong => return Mine::Wrong,
        }
    }
    Mine::Unknown
}

enum Line<'b> {
    Whole(&'b [u8]),
    More,
    Wrong,
}

fn line(bytes: &[u8]) -> Line<'_> {
    match bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        None => Line::More,
        Some(end) => match &bytes[end..] {
            [b'\r', b'\n', ..] => Line::Whole(&bytes[..end]),
            [b'\r'] => Line::More,
            // Neither of the two stands alone, whatever follows.
            _ => Line::Wrong,
        },
    }
}

/// `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`
fn are_extensions(text: &str) -> bool {
    let blank = [' ', '\t'];
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let token = |text: &str| text.len() - text.trim_start_matches(is_token).len();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(behind) = rest.trim_start_matches(blank).strip_prefix(';') else { return false };
        let behind = behind.trim_start_matches(blank);
        let name = token(behind);
        if name == 0 {
            return false;
        }
        rest = &behind[name..];
        if let Some(value) = rest.trim_start_matches(blank).strip_prefix('=') {
            let value = value.trim_start_matches(blank);
            let length = match value.strip_prefix('"') {
                Some(quoted) => quoted_string(quoted).map_or(0, |length| length + 1),
                None => token(value),
            };
            if length == 0 {
                return false;
            }
            rest = &value[length..];
        }
    }
    true
}

/// Up to its closing quote, that included.
fn quoted_string(text: &str) -> Option<usize> {
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some(at + 1),
            '\\' => {
                let (_, escaped) = chars.next()?;
                if escaped != '\t' && (escaped < ' ' || escaped == '\x7f') {
                    return None;
                }
            }
            '\t' => {}
            c if c < ' ' || c == '\x7f' => return None,
            _ => {}
        }
    }
    None
}
