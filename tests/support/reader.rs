//! A reader of HTTP/1.1 that knows one way only (RFC 9112): what it does not know is a flaw. It shares no line with the
//! program's own.

use std::io::{self, Read};
use std::net::TcpStream;

use super::Message;

/// No line of a test is longer.
const LINE_MAX: usize = 2 * 1024 * 1024;

/// Why there is no (whole) message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The connection ended where a message may begin.
    End,
    /// It ended within one.
    Cut,
    /// It was reset.
    Reset,
    /// Nothing came for too long.
    Silence,
    /// What came is not HTTP.
    Flaw(String),
}

pub type Read1<T> = Result<T, Stop>;

/// One direction of a connection, with a look at every byte.
pub struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
    at: usize,
    tape: Tape,
}

/// Is shown every byte.
type Tape = Box<dyn FnMut(&[u8]) + Send>;

impl Reader {
    pub fn new(stream: &TcpStream) -> Self {
        Self::with_tape(stream, |_| {})
    }

    pub fn with_tape(stream: &TcpStream, tape: impl FnMut(&[u8]) + Send + 'static) -> Self {
        Self { stream: stream.try_clone().unwrap(), buffer: Vec::new(), at: 0, tape: Box::new(tape) }
    }

    /// Whether anything has come that was not read yet.
    pub fn has_more(&self) -> bool {
        self.at < self.buffer.len()
    }

    /// Reads more; how much.
    fn fill(&mut self) -> Read1<usize> {
        let mut bytes = [0; 16 * 1024];
        let count = self.stream.read(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Stop::Silence,
            _ => Stop::Reset,
        })?;
        (self.tape)(&bytes[..count]);
        self.buffer.drain(..std::mem::take(&mut self.at));
        self.buffer.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn byte(&mut self) -> Read1<u8> {
        if self.at == self.buffer.len() && self.fill()? == 0 {
            return Err(Stop::Cut);
        }
        self.at += 1;
        Ok(self.buffer[self.at - 1])
    }

    /// A line without its end, which is CR LF and nothing else.
    fn line(&mut self) -> Read1<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\r' => match self.byte()? {
                    b'\n' => return Ok(line),
                    _ => return flaw("a bare carriage return", &line),
                },
                b'\n' => return flaw("a bare line feed", &line),
                byte => line.push(byte),
            }
            if line.len() > LINE_MAX {
                return flaw("a line without end", &line[..100]);
            }
        }
    }

    /// Fields up to the empty line.
    fn fields(&mut self, raw: &mut Vec<u8>) -> Read1<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            raw.extend_from_slice(&line);
            raw.extend_from_slice(b"\r\n");
            if line.is_empty() {
                return Ok(fields);
            }
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { return flaw("no colon", &line) };
            let (name, value) = (latin1(&line[..colon]), latin1(&line[colon + 1..]));
            let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
            if name.is_empty() || !name.chars().all(is_token) {
                return flaw("a field's name", &line);
            }
            if value.chars().any(|c| c != '\t' && (c < ' ' || c == '\x7f')) {
                return flaw("a field's value", &line);
            }
            fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
        }
    }

    /// A first line and fields, and all of it as it came.
    pub fn head(&mut self) -> Read1<(Message, Vec<u8>)> {
        if self.at == self.buffer.len() && self.fill()? == 0 {
            return Err(Stop::End);
        }
        let line = self.line()?;
        let mut raw = [&line, &b"\r\n"[..]].concat();
        let fields = self.fields(&mut raw)?;
        Ok((Message { line: latin1(&line), fields, ..Message::default() }, raw))
    }

    /// The body that the fields tell of, and trailers.
    pub fn body(&mut self, message: &mut Message, without: Without) -> Read1<()> {
        let values = |name: &str| -> Vec<String> {
            message.fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.clone()).collect()
        };
        let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
        match (lengths.as_slice(), codings.as_slice()) {
            ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => self.chunks(message),
            ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
                let Ok(length) = length.parse::<u64>() else { return flaw("a length", length.as_bytes()) };
                self.exactly(length, &mut message.body)
            }
            ([], []) if without == Without::Empty => Ok(()),
            ([], []) => self.until_end(&mut message.body),
            _ => flaw("a length", format!("{lengths:?} {codings:?}").as_bytes()),
        }
    }

    fn chunks(&mut self, message: &mut Message) -> Read1<()> {
        loop {
            let line = self.line()?;
            let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
            let text =
                std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
            let Some(size) = text.and_then(|text| u64::from_str_radix(text, 16).ok()) else {
                return flaw("a chunk's size", &line);
            };
            if size == 0 {
                message.trailers = self.fields(&mut Vec::new())?;
                return Ok(());
            }
            self.exactly(size, &mut message.body)?;
            let end = self.line()?;
            if !end.is_empty() {
                return flaw("a chunk's end", &end);
            }
        }
    }

    fn exactly(&mut self, mut count: u64, into: &mut Vec<u8>) -> Read1<()> {
        while count > 0 {
            if self.at == self.buffer.len() && self.fill()? == 0 {
                return Err(Stop::Cut);
            }
            let part = usize::try_from(count).unwrap_or(usize::MAX).min(self.buffer.len() - self.at);
            into.extend_from_slice(&self.buffer[self.at..self.at + part]);
            self.at += part;
            count -= part as u64;
        }
        Ok(())
    }

    /// All up to the end of the connection, which is a clean one.
    pub fn until_end(&mut self, into: &mut Vec<u8>) -> Read1<()> {
        loop {
            into.extend_from_slice(&self.buffer[self.at..]);
            self.at = self.buffer.len();
            if self.fill()? == 0 {
                return Ok(());
            }
        }
    }

    /// Whatever comes up to any end.
    pub fn rest(&mut self) -> (Vec<u8>, Stop) {
        let mut bytes = Vec::new();
        let stop = self.until_end(&mut bytes).err().unwrap_or(Stop::End);
        (bytes, stop)
    }

    /// A response with its body to a request of this method, behind the interim ones, which are returned too.
    pub fn response(&mut self, method: &str) -> Read1<(Vec<Message>, Message)> {
        let mut interim = Vec::new();
        loop {
            let (mut message, _) = self.head()?;
            let Some(status) = status(&message.line) else {
                return flaw("a status line", message.line.as_bytes());
            };
            match status {
                101 => return Ok((interim, message)),
                100..=199 => {
                    let is_framed =
                        |(name, _): &(String, String)| name == "content-length" || name == "transfer-encoding";
                    if message.fields.iter().any(is_framed) {
                        return flaw("an interim response with a length", message.line.as_bytes());
                    }
                    interim.push(message);
                }
                _ if method == "HEAD" || status == 204 || status == 304 => return Ok((interim, message)),
                _ => {
                    match self.body(&mut message, Without::ToEnd) {
                        Err(Stop::Cut | Stop::Reset) => message.is_cut = true,
                        other => other?,
                    }
                    return Ok((interim, message));
                }
            }
        }
    }
}

/// What a message without a length has for a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Without {
    /// None: a request.
    Empty,
    /// All up to the end: a response.
    ToEnd,
}

fn status(line: &str) -> Option<u16> {
    let rest = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "))?;
    let (digits, reason) = rest.split_at_checked(3)?;
    let is_right = digits.bytes().all(|byte| byte.is_ascii_digit())
        && reason.starts_with(' ')
        && !reason.chars().any(|c| c != '\t' && (c < ' ' || c == '\x7f'));
    digits.parse().ok().filter(|status| is_right && *status >= 100)
}

fn flaw<T>(what: &str, bytes: &[u8]) -> Read1<T> {
    Err(Stop::Flaw(format!("{what}: {:?}", latin1(&bytes[..bytes.len().min(200)]))))
}

/// Each byte a character, so that nothing is lost.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}
