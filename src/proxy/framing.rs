//! A second pair of eyes on where requests begin and end.
//!
//! The HTTP engine is forgiving where a proxy must not be: it takes bare line feeds, and it silently prefers one
//! of two lengths. Two readers that disagree about a length is how requests are smuggled, so every byte that a
//! client sends is followed here too, by a reader that knows one way only (RFC 9112, sections 2 to 7).

/// A chunk's size line with its extensions may take this much; nobody sends extensions.
const CHUNK_LINE_MAX: usize = 256;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offence(pub(super) &'static str);

/// Follows one client connection.
#[derive(Debug)]
pub(super) struct Framing {
    state: State,
    line: Vec<u8>,
    header_bytes_max: usize,
    header_bytes: usize,
    lengths: Lengths,
    /// How many request heads have been read whole.
    heads: u64,
    /// The first request (counted from 1) that is refused, and why. Nothing after it is looked at.
    refused: Option<(u64, Offence)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    RequestLine,
    Field,
    /// So many bytes of a body.
    Body(u64),
    ChunkSize,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The line end behind a chunk: this byte is next.
    ChunkEnd(u8),
    Trailer,
    Refused,
}

/// What the fields of one head say about its body.
#[derive(Debug, Default)]
struct Lengths {
    content_length: Option<u64>,
    is_chunked: bool,
}

impl Framing {
    pub(super) fn new(header_bytes_max: usize) -> Self {
        Self {
            state: State::RequestLine,
            line: Vec::new(),
            header_bytes_max,
            header_bytes: 0,
            lengths: Lengths::default(),
            heads: 0,
            refused: None,
        }
    }

    /// Whether the `number`th request (from 1) may be answered.
    pub(super) fn verdict(&self, number: u64) -> Result<(), Offence> {
        match self.refused {
            Some((from, offence)) if number >= from => Err(offence),
            _ => Ok(()),
        }
    }

    /// Follows the next bytes. An offence is kept for [`Framing::verdict`], so that it can be answered; the number
    /// of the request in which it was found is returned too, for whoever has begun to serve that one already.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) -> Option<u64> {
        while !bytes.is_empty() {
            let rest = match self.state {
                State::Refused => return None,
                State::Body(left) => Ok(self.skip(bytes, left, State::Body, State::RequestLine)),
                State::Chunk(left) => Ok(self.skip(bytes, left, State::Chunk, State::ChunkEnd(b'\r'))),
                State::ChunkEnd(expected) => self.end_chunk(bytes, expected),
                State::RequestLine | State::Field | State::ChunkSize | State::Trailer => self.line(bytes),
            };
            match rest {
                Ok(rest) => bytes = rest,
                Err(offence) => return Some(self.refuse(offence)),
            }
        }
        None
    }

    fn refuse(&mut self, offence: Offence) -> u64 {
        let is_in_head = matches!(self.state, State::RequestLine | State::Field);
        let number = self.heads + u64::from(is_in_head);
        self.refused = Some((number, offence));
        self.state = State::Refused;
        number
    }

    fn skip<'a>(&mut self, bytes: &'a [u8], left: u64, more: fn(u64) -> State, after: State) -> &'a [u8] {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - count as u64;
        self.state = if left == 0 { after } else { more(left) };
        bytes.get(count..).unwrap_or_default()
    }

    /// Behind a chunk has to be its line end, or somebody has another idea of its size.
    fn end_chunk<'a>(&mut self, bytes: &'a [u8], expected: u8) -> Result<&'a [u8], Offence> {
        match bytes.split_first() {
            Some((byte, rest)) if *byte == expected => {
                self.state = if expected == b'\r' { State::ChunkEnd(b'\n') } else { State::ChunkSize };
                Ok(rest)
            }
            _ => Err(Offence("a chunk is not as long as it says")),
        }
    }

    /// Gathers one line, and reads it when it is whole.
    fn line<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Offence> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (part, rest) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
        self.header_bytes += part.len();
        let max = if self.state == State::ChunkSize { CHUNK_LINE_MAX } else { self.header_bytes_max };
        if self.header_bytes > max {
            return Err(Offence("a header is too long"));
        }
        self.line.extend_from_slice(part);
        if end.is_some() {
            let line = std::mem::take(&mut self.line);
            let result = strip_line_end(&line).and_then(|text| self.read_line(text));
            self.line = line;
            self.line.clear();
            result?;
        }
        Ok(rest)
    }

    fn read_line(&mut self, text: &[u8]) -> Result<(), Offence> {
        match self.state {
            // Empty lines before a request are skipped (RFC 9112, 2.2).
            State::RequestLine if text.is_empty() => {}
            State::RequestLine => self.state = State::Field,
            State::Field if text.is_empty() => self.end_head()?,
            State::Field => self.lengths.read_field(text)?,
            State::ChunkSize => {
                let size = parse_chunk_size(text)?;
                self.header_bytes = 0;
                self.state = if size == 0 { State::Trailer } else { State::Chunk(size) };
            }
            State::Trailer if text.is_empty() => self.begin(State::RequestLine),
            State::Trailer | State::Body(_) | State::Chunk(_) | State::ChunkEnd(_) | State::Refused => {}
        }
        Ok(())
    }

    fn end_head(&mut self) -> Result<(), Offence> {
        let next = match std::mem::take(&mut self.lengths) {
            Lengths { content_length: Some(_), is_chunked: true } => {
                return Err(Offence("Content-Length and Transfer-Encoding in one request"));
            }
            Lengths { is_chunked: true, .. } => State::ChunkSize,
            Lengths { content_length: Some(length @ 1..), .. } => State::Body(length),
            Lengths { .. } => State::RequestLine,
        };
        self.heads += 1;
        self.begin(next);
        Ok(())
    }

    fn begin(&mut self, state: State) {
        self.state = state;
        self.header_bytes = 0;
    }
}

impl Lengths {
    fn read_field(&mut self, text: &[u8]) -> Result<(), Offence> {
        if matches!(text.first(), Some(b' ' | b'\t')) {
            return Err(Offence("a header field is folded over lines"));
        }
        let colon = text.iter().position(|byte| *byte == b':').ok_or(Offence("a header field without a colon"))?;
        let (name, value) = text.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = parse_decimal(value).ok_or(Offence("Content-Length is not a number"))?;
            if self.content_length.replace(length).is_some() {
                return Err(Offence("Content-Length more than once"));
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Offence("Transfer-Encoding is not chunked alone"));
            }
            self.is_chunked = true;
        }
        Ok(())
    }
}

fn strip_line_end(line: &[u8]) -> Result<&[u8], Offence> {
    let text = line.strip_suffix(b"\r\n").ok_or(Offence("a line ends without a carriage return"))?;
    if text.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        return Err(Offence("a stray control byte in a header"));
    }
    Ok(text)
}

fn parse_decimal(text: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|_| text.iter().all(u8::is_ascii_digit))?;
    digits.parse().ok()
}

fn parse_chunk_size(text: &[u8]) -> Result<u64, Offence> {
    let digits = text.split(|byte| *byte == b';').next().unwrap_or_default();
    std::str::from_utf8(digits)
        .ok()
        .filter(|digits| (1..=15).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or(Offence("a chunk's size is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows a text in every possible pair of pieces, and in single bytes; all have to agree.
    fn follow(text: &str) -> (u64, Option<(u64, Offence)>) {
        let run = |pieces: &[&[u8]]| {
            let mut framing = Framing::new(1000);
            let found: Vec<u64> = pieces.iter().filter_map(|piece| framing.follow(piece)).collect();
            assert_eq!(found, framing.refused.iter().map(|(at, _)| *at).collect::<Vec<_>>());
            (framing.heads, framing.refused)
        };
        let bytes = text.as_bytes();
        let whole = run(&[bytes]);
        for cut in 0..bytes.len() {
            let (front, back) = bytes.split_at(cut);
            assert_eq!(run(&[front, back]), whole, "{text:?} cut at {cut}");
        }
        assert_eq!(run(&bytes.chunks(1).collect::<Vec<_>>()), whole, "{text:?} byte by byte");
        whole
    }

    fn is_refused(head: &str) {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
        let (heads, refused) = follow(&text);
        assert_eq!((heads, refused.map(|(at, _)| at)), (0, Some(1)), "{head:?}");
    }

    #[test]
    fn pipelined_requests_of_every_framing_are_counted() {
        let text = "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n\
                    POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /\
                    POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n3;x=y\r\nabc\r\n1F\r\n\
                    0123456789012345678901234567890\r\n0\r\nTrail: er\r\n\r\n\
                    PUT / HTTP/1.1\r\nContent-Length: 0\r\n\r\n\
                    GET / HTTP/1.1\r\n\r\n";
        assert_eq!(follow(text), (5, None));
    }

    #[test]
    fn heads_that_two_readers_may_read_in_two_ways_are_refused() {
        is_refused("Content-Length: 3\r\nTransfer-Encoding: chunked");
        is_refused("Transfer-Encoding: chunked\r\nContent-Length: 3");
        is_refused("Content-Length: 3\r\nContent-Length: 3");
        is_refused("Content-Length: +3");
        is_refused("Content-Length: 3, 3");
        is_refused("Content-Length: 99999999999999999999");
        is_refused("Content-Length:");
        is_refused("Transfer-Encoding: gzip, chunked");
        is_refused("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked");
        is_refused("Transfer-Encoding: xchunked");
        is_refused("A: b\r\n folded");
        is_refused("A: b\nContent-Length: 3");
        is_refused("A: b\rContent-Length: 3");
        is_refused("no colon");
        is_refused(&format!("A: {}", "x".repeat(1000)));
    }

    #[test]
    fn chunks_that_lie_break_the_connection_off() {
        for body in ["3\r\nabcd\r\n", "3\nabc\r\n", "x\r\n", "\r\n", "-1\r\n", "0x3\r\nabc\r\n", "3 \r\nabc\r\n"] {
            let text = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
            let (heads, refused) = follow(&text);
            assert_eq!((heads, refused.map(|(at, _)| at)), (1, Some(1)), "{body:?}");
        }
    }

    #[test]
    fn a_refused_request_does_not_condemn_the_ones_before() {
        let mut framing = Framing::new(1000);
        assert_eq!(framing.follow(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nA: b\n\r\n"), Some(2));
        assert_eq!(framing.follow(b"anything"), None);
        assert!(framing.verdict(1).is_ok() && framing.verdict(2).is_err() && framing.verdict(3).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_one_verdict(
            bytes in proptest::collection::vec(proptest::sample::select(b"\r\n: 013;aContent-Length\0".to_vec()), 0..200),
            cut in 0_usize..200,
        ) {
            let (mut whole, mut pieces) = (Framing::new(100), Framing::new(100));
            let once = whole.follow(&bytes);
            let (front, back) = bytes.split_at(cut.min(bytes.len()));
            let twice = pieces.follow(front).or_else(|| pieces.follow(back));
            proptest::prop_assert_eq!((once, whole.heads, whole.refused), (twice, pieces.heads, pieces.refused));
        }
    }
}
