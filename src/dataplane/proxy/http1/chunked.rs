//! Bodies in chunks: read strictly, and framed anew where they stand.
//!
//! What comes out is never longer than what went in: extensions, zeros before a size and forbidden trailers are taken
//! out of the bytes, which is why they need not be copied.

use memchr::{memchr, memchr2};

use super::fields::{is_token_byte, is_value_byte, may_trail, put_field};

/// A chunk's size line with its extensions may take this much; nobody sends extensions.
const SIZE_LINE_MAX: usize = 256;
/// Digits of a chunk's size; 63 bits of them, since many who read the same know no more.
const SIZE_DIGITS_MAX: usize = 16;
/// What all trailers together may take, and one line of them.
const TRAILER_BYTES_MAX: usize = 8 * 1024;
/// How many trailers there may be.
const TRAILERS_MAX: usize = 64;

/// What comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Output {
    /// Chunks, their sizes and trailers included, as HTTP/1.1 sends them.
    Framed,
    /// The body alone; its trailers are kept aside.
    Plain,
}

/// How far a step got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) struct Step {
    /// Bytes that need not be seen again.
    pub(in crate::proxy) consumed: usize,
    /// Bytes at the beginning that are the output.
    pub(in crate::proxy) produced: usize,
}

/// Writes a piece of a body as a chunk. An empty one is none: it would be the end.
pub(in crate::proxy) fn put_chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let digits = (usize::BITS - bytes.len().leading_zeros()).div_ceil(4);
    let digit = |at: u32| b"0123456789abcdef"[bytes.len() >> (4 * at) & 15];
    out.extend((0..digits).rev().map(digit));
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Writes the last chunk, with those of the trailers behind it that may be passed on.
pub(in crate::proxy) fn put_end<'t>(out: &mut Vec<u8>, trailers: impl IntoIterator<Item = (&'t str, &'t [u8])>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        if may_trail(name) {
            put_field(out, name.as_bytes(), value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Follows one body.
#[derive(Debug)]
pub(in crate::proxy) struct Decoder {
    state: State,
    output: Output,
    trailer_bytes: usize,
    trailer_count: usize,
    trailers: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    /// So many bytes of a chunk.
    Data(u64),
    /// The line end behind a chunk.
    DataEnd,
    Trailers,
    Done,
}

impl Decoder {
    pub(in crate::proxy) fn new(output: Output) -> Self {
        Self { state: State::Size, output, trailer_bytes: 0, trailer_count: 0, trailers: Vec::new() }
    }

    /// Whether the body has ended.
    pub(in crate::proxy) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The trailers that may be passed on, as lines; those of [`Output::Framed`] are in the output.
    pub(in crate::proxy) fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// Follows `bytes` as far as they are whole lines and data, and puts what comes out of them at their beginning.
    /// What was not consumed is to be seen again, with more behind it.
    pub(in crate::proxy) fn step(&mut self, bytes: &mut [u8]) -> Result<Step, &'static str> {
        let mut at = Step { consumed: 0, produced: 0 };
        loop {
            let rest = bytes.get(at.consumed..).unwrap_or_default();
            match self.state {
                State::Done => return Ok(at),
                State::Data(left) => {
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    if count == 0 {
                        return Ok(at);
                    }
                    at.pass(bytes, count);
                    let left = left - count as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                }
                State::DataEnd => {
                    match rest {
                        [b'\r', b'\n', ..] => {}
                        [] | [b'\r'] => return Ok(at),
                        _ => return Err("a chunk is not as long as it says"),
                    }
                    self.put(bytes, &mut at, 2, 2);
                    self.state = State::Size;
                }
                State::Size => {
                    let Some(line) = whole_line(rest, SIZE_LINE_MAX, "a chunk's size is too long")? else {
                        return Ok(at);
                    };
                    let (size, digits) = parse_size(line)?;
                    let line_bytes = line.len() + 2;
                    let zeros = line.iter().take(digits - 1).take_while(|byte| **byte == b'0').count();
                    at.consumed += zeros;
                    let line_end = at.consumed + digits - zeros;
                    bytes[line_end..line_end + 2].copy_from_slice(b"\r\n");
                    self.put(bytes, &mut at, digits - zeros + 2, line_bytes - zeros);
                    self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                }
                State::Trailers => {
                    let Some(line) = whole_line(rest, TRAILER_BYTES_MAX, "trailers are too long")? else {
                        return Ok(at);
                    };
                    let line_bytes = line.len() + 2;
                    self.trailer_bytes += line_bytes;
                    if line.is_empty() {
                        self.put(bytes, &mut at, 2, 2);
                        self.state = State::Done;
                        return Ok(at);
                    }
                    self.trailer_count += 1;
                    if self.trailer_bytes > TRAILER_BYTES_MAX || self.trailer_count > TRAILERS_MAX {
                        return Err("trailers are too long");
                    }
                    let is_kept = check_trailer(line)?;
                    match self.output {
                        _ if !is_kept => at.consumed += line_bytes,
                        Output::Framed => at.pass(bytes, line_bytes),
                        Output::Plain => {
                            self.trailers.extend_from_slice(&rest[..line_bytes]);
                            at.consumed += line_bytes;
                        }
                    }
                }
            }
        }
    }

    /// Takes `consumed` bytes of framing, of which the first `count` come out if the output is framed.
    fn put(&self, bytes: &mut [u8], at: &mut Step, count: usize, consumed: usize) {
        if self.output == Output::Framed {
            at.pass(bytes, count);
            at.consumed += consumed - count;
        } else {
            at.consumed += consumed;
        }
    }
}

impl Step {
    /// The next `count` bytes come out as they are.
    fn pass(&mut self, bytes: &mut [u8], count: usize) {
        if self.produced != self.consumed {
            bytes.copy_within(self.consumed..self.consumed + count, self.produced);
        }
        self.consumed += count;
        self.produced += count;
    }
}

/// The line that `bytes` begin with, without its end; none as long as that is not there.
fn whole_line<'b>(bytes: &'b [u8], max: usize, too_long: &'static str) -> Result<Option<&'b [u8]>, &'static str> {
    let seen = &bytes[..bytes.len().min(max)];
    let Some(end) = memchr2(b'\r', b'\n', seen) else {
        return if seen.len() == max { Err(too_long) } else { Ok(None) };
    };
    match &bytes[end..] {
        [b'\r', b'\n', ..] => Ok(Some(&bytes[..end])),
        // Its other half may come.
        [b'\r'] => Ok(None),
        [b'\r', ..] => Err("a carriage return within a line"),
        _ => Err("a line ends without a carriage return"),
    }
}

/// A chunk's size, and how many digits it has (RFC 9112, 7.1).
fn parse_size(line: &[u8]) -> Result<(u64, usize), &'static str> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (number, extensions) = line.split_at(digits);
    if !(1..=SIZE_DIGITS_MAX).contains(&digits) {
        return Err("a chunk's size is not a number");
    }
    check_extensions(extensions)?;
    let value = |byte: &u8| u64::from((*byte as char).to_digit(16).unwrap_or_default());
    let size = number.iter().fold(0, |size, byte| size << 4 | value(byte));
    if i64::try_from(size).is_err() {
        return Err("a chunk's size is too large");
    }
    Ok((size, digits))
}

/// `;name`, `;name=value` and `;name="value"`, any number of them (RFC 9112, 7.1.1).
fn check_extensions(mut rest: &[u8]) -> Result<(), &'static str> {
    const BAD: &str = "a chunk's extension makes no sense";
    while !rest.is_empty() {
        rest = trim_blanks(trim_blanks(rest).strip_prefix(b";").ok_or(BAD)?);
        let name = rest.iter().take_while(|byte| is_token_byte(**byte)).count();
        if name == 0 {
            return Err(BAD);
        }
        rest = &rest[name..];
        let Some(value) = trim_blanks(rest).strip_prefix(b"=") else {
            continue;
        };
        let value = trim_blanks(value);
        let bytes = match value.strip_prefix(b"\"") {
            Some(quoted) => 1 + quoted_bytes(quoted).ok_or(BAD)?,
            None => {
                Some(value.iter().take_while(|byte| is_token_byte(**byte)).count()).filter(|n| *n > 0).ok_or(BAD)?
            }
        };
        rest = &value[bytes..];
    }
    Ok(())
}

/// Without the blanks it begins with: no other white space may stand in a line.
fn trim_blanks(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count()..]
}

/// How long a quoted string is from behind its first quote to behind its last.
fn quoted_bytes(text: &[u8]) -> Option<usize> {
    let mut is_escaped = false;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if !is_value_byte(*byte) => return None,
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Whether a trailer is passed on; an error if it is not even a field.
fn check_trailer(line: &[u8]) -> Result<bool, &'static str> {
    let colon = memchr(b':', line).ok_or("a trailer without a colon")?;
    let (name, value) = line.split_at(colon);
    if name.is_empty() || !name.iter().copied().all(is_token_byte) || !value.iter().copied().all(is_value_byte) {
        return Err("a trailer makes no sense");
    }
    Ok(std::str::from_utf8(name).is_ok_and(may_trail))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds pieces as a connection does: what was not consumed is seen again, with the next piece behind it.
    fn run(pieces: &[&[u8]], output: Output) -> Result<(String, String, bool, usize), &'static str> {
        let mut decoder = Decoder::new(output);
        let (mut waiting, mut out, mut left) = (Vec::new(), Vec::new(), 0);
        for piece in pieces {
            waiting.extend_from_slice(piece);
            let step = decoder.step(&mut waiting)?;
            assert!(step.produced <= step.consumed);
            out.extend_from_slice(&waiting[..step.produced]);
            waiting.drain(..step.consumed);
            left = waiting.len();
        }
        let trailers = String::from_utf8_lossy(decoder.trailers()).into_owned();
        Ok((String::from_utf8_lossy(&out).into_owned(), trailers, decoder.is_done(), left))
    }

    /// Every pair of pieces and single bytes have to agree.
    fn decode(text: &str, output: Output) -> Result<(String, String, bool, usize), &'static str> {
        let bytes = text.as_bytes();
        let whole = run(&[bytes], output);
        for cut in 0..bytes.len() {
            let (front, back) = bytes.split_at(cut);
            assert_eq!(run(&[front, back], output), whole, "{text:?} cut at {cut}");
        }
        assert_eq!(run(&bytes.chunks(1).collect::<Vec<_>>(), output), whole, "{text:?} byte by byte");
        whole
    }

    #[test]
    fn a_body_comes_out_as_it_is_and_framed_anew() {
        let text = "3\r\nabc\r\n000a;x=\"\\\"; y\" ; z = 1;w\r\n0123456789\r\n1F\r\n0123456789012345678901234567890\r\n\
                    0000\r\nX-Sum: 7\r\nContent-Length: 3\r\nhost: x\r\ngrpc-status: 0\r\n\r\nGET /";
        let framed = "3\r\nabc\r\na\r\n0123456789\r\n1F\r\n0123456789012345678901234567890\r\n\
                      0\r\nX-Sum: 7\r\ngrpc-status: 0\r\n\r\n";
        assert_eq!(decode(text, Output::Framed), Ok((framed.to_owned(), String::new(), true, 5)));
        let plain = "abc01234567890123456789012345678901234567890";
        let trailers = "X-Sum: 7\r\ngrpc-status: 0\r\n";
        assert_eq!(decode(text, Output::Plain), Ok((plain.to_owned(), trailers.to_owned(), true, 5)));
    }

    #[test]
    fn what_is_written_in_chunks_is_read_again() {
        for size in [1, 15, 16, 255, 256, 4096, 70_000] {
            let body = vec![b'x'; size];
            let mut out = Vec::new();
            put_chunk(&mut out, &body);
            put_chunk(&mut out, b"");
            put_end(&mut out, [("x-sum", &b"7"[..]), ("host", b"a"), ("grpc-status", b"0")]);
            assert!(out.starts_with(format!("{size:x}\r\n").as_bytes()));
            let (plain, trailers, is_done, left) = run(&[&out], Output::Plain).unwrap();
            assert_eq!((plain.len(), is_done, left), (size, true, 0));
            assert_eq!(trailers, "x-sum: 7\r\ngrpc-status: 0\r\n");
        }
    }

    #[test]
    fn chunks_that_lie_are_refused() {
        for text in [
            "3\r\nabcd\r\n",
            "3\r\nabc\n",
            "3\r\nabc\rx",
            "3\nabc\r\n",
            "3\rabc\r\n",
            "x\r\n",
            "\r\n",
            " 3\r\nabc\r\n",
            "3 \r\nabc\r\n",
            "-1\r\n",
            "+3\r\nabc\r\n",
            "0x3\r\nabc\r\n",
            "3;\r\nabc\r\n",
            "3;=x\r\nabc\r\n",
            "3;x=\r\nabc\r\n",
            "3;x=\"y\r\nabc\r\n",
            "3;x=\"y\"z\r\nabc\r\n",
            "3;x y\r\nabc\r\n",
            "3;x\x01\r\nabc\r\n",
            "3;x\ry\r\nabc\r\n",
            "3;\rx\r\nabc\r\n",
            "3\r;x\r\nabc\r\n",
            "3;x\ny\r\nabc\r\n",
            "3;x=\"\0\"\r\nabc\r\n",
            "10000000000000000\r\n",
            "8000000000000000\r\n",
            "0\r\n\rX",
            "3\rX",
            "00000000000000003\r\nabc\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\na : b\r\n\r\n",
            "0\r\n: b\r\n\r\n",
            "0\r\na: b\0\r\n\r\n",
            "0\r\na: b\n\r\n",
            "0\r\na: b\rc\r\n\r\n",
            "0\r\n\n",
            &format!("3;{}\r\n", "x".repeat(300)),
            &format!("0\r\na: {}\r\n\r\n", "x".repeat(9000)),
            &format!("0\r\n{}\r\n", "a: b\r\n".repeat(65)),
        ] {
            assert!(run(&[text.as_bytes()], Output::Framed).is_err(), "{text:?}");
            assert!(run(&text.as_bytes().chunks(1).collect::<Vec<_>>(), Output::Plain).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_body_that_is_cut_is_not_done() {
        let text = "3;x\r\nabc\r\n0\r\na: b\r\n\r\n";
        for cut in 0..text.len() {
            let (_, _, is_done, _) = decode(&text[..cut], Output::Framed).unwrap();
            assert!(!is_done, "cut at {cut}");
        }
        assert!(decode(text, Output::Framed).unwrap().2);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_one_result(
            bytes in proptest::collection::vec(proptest::sample::select(b"\r\n\r\n01a;=\" x:\0".to_vec()), 0..80),
            cuts in proptest::collection::vec(0_usize..80, 0..5),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            for output in [Output::Framed, Output::Plain] {
                let once = run(&[&bytes], output);
                proptest::prop_assert_eq!(&run(&pieces, output), &once);
            }
        }

        #[test]
        fn what_is_framed_anew_is_the_same_body(
            chunks in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 1..50), 0..5),
            zeros in 0_usize..3,
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend_from_slice(format!("{}{:x};a=b\r\n", "0".repeat(zeros), chunk.len()).as_bytes());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
            let step = |text: &[u8], output| {
                let mut bytes = text.to_vec();
                let mut decoder = Decoder::new(output);
                let step = decoder.step(&mut bytes).unwrap();
                assert!(decoder.is_done() && step.consumed == bytes.len());
                bytes.truncate(step.produced);
                bytes
            };
            let framed = step(&text, Output::Framed);
            proptest::prop_assert_eq!(&step(&framed, Output::Framed), &framed);
            proptest::prop_assert_eq!(step(&framed, Output::Plain), chunks.concat());
        }
    }
}
