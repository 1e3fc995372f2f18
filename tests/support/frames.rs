//! A client of HTTP/2 that sends whatever it is told, frame by frame, and reads what comes back.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITIZED: u8 = 0x20;

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const INTERNAL_ERROR: u32 = 2;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame, read or to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Self {
        Self { kind, flags, stream, payload: payload.as_ref().to_vec() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = head(self.payload.len(), self.kind, self.flags, self.stream);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    pub fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The number at `at` of the payload.
    pub fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// The nine bytes before a payload.
pub fn head(length: usize, kind: u8, flags: u8, stream: u32) -> Vec<u8> {
    let mut bytes = (length as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes
}

/// One setting of a SETTINGS frame.
pub fn setting(name: u16, value: u32) -> Vec<u8> {
    [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// Fields as literals that are never indexed, without Huffman's code: nothing is hidden in the block.
pub fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x10);
        put_text(&mut block, name.as_ref());
        put_text(&mut block, value.as_ref());
    }
    block
}

/// A text of HPACK's: its length in seven bits and more, then its bytes.
pub fn put_text(block: &mut Vec<u8>, text: &[u8]) {
    put_number(block, 0, 7, text.len());
    block.extend_from_slice(text);
}

/// A number of HPACK's, beginning in the low bits of a byte.
pub fn put_number(block: &mut Vec<u8>, first: u8, bits: u32, mut number: usize) {
    let most = (1 << bits) - 1;
    if number < most {
        block.push(first | number as u8);
        return;
    }
    block.push(first | most as u8);
    number -= most;
    while number >= 128 {
        block.push(number as u8 | 128);
        number >>= 7;
    }
    block.push(number as u8);
}

/// A request's fields: the four that begin with a colon, then others.
pub fn request<'a>(method: &'a str, path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<u8> {
    let mut fields = vec![(":method", method), (":scheme", "http"), (":authority", "a.example"), (":path", path)];
    fields.extend_from_slice(more);
    block(&fields)
}

/// What came on one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    pub informational: Vec<u16>,
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// END_STREAM came.
    pub is_whole: bool,
    /// RST_STREAM came, with this code.
    pub reset: Option<u32>,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        find(&self.fields, name)
    }

    pub fn trailer(&self, name: &str) -> Option<&str> {
        find(&self.trailers, name)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn is_over(&self) -> bool {
        self.is_whole || self.reset.is_some()
    }
}

fn find<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut values = fields.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str());
    let first = values.next();
    assert!(values.next().is_none(), "{name} is there twice");
    first
}

/// A connection and all that came on it.
pub struct Client {
    pub stream: TcpStream,
    input: Vec<u8>,
    decoder: fluke_hpack::Decoder<'static>,
    /// A header block that has not ended.
    partial: Option<(u32, u8, Vec<u8>)>,
    /// The peer's settings.
    pub settings: BTreeMap<u16, u32>,
    pub answers: BTreeMap<u32, Answer>,
    /// What WINDOW_UPDATE frames have given, by stream; 0 is the connection.
    pub given: BTreeMap<u32, usize>,
    /// Every frame but those of streams.
    pub frames: Vec<Frame>,
    /// GOAWAY frames: the last stream and the code.
    pub goaways: Vec<(u32, u32)>,
    /// The connection ended.
    pub is_closed: bool,
    /// Windows are opened as data arrive.
    pub gives_way: bool,
}

impl Client {
    /// A connection on which nothing was said.
    pub fn silent(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            input: Vec::new(),
            decoder: fluke_hpack::Decoder::new(),
            partial: None,
            settings: BTreeMap::new(),
            answers: BTreeMap::new(),
            given: BTreeMap::new(),
            frames: Vec::new(),
            goaways: Vec::new(),
            is_closed: false,
            gives_way: true,
        }
    }

    /// After both sides have said and confirmed their settings.
    pub fn new(stream: TcpStream) -> Self {
        Self::with(stream, &[])
    }

    pub fn with(stream: TcpStream, settings: &[(u16, u32)]) -> Self {
        let mut client = Self::silent(stream);
        let settings: Vec<u8> = settings.iter().flat_map(|(name, value)| setting(*name, *value)).collect();
        client.send_bytes([PREFACE, &Frame::new(SETTINGS, 0, 0, settings).bytes()].concat());
        client.until("settings, and ours confirmed", |client| {
            let is_settings = |flags: u8| move |frame: &Frame| frame.kind == SETTINGS && frame.flags == flags;
            client.frames.iter().any(is_settings(0)) && client.frames.iter().any(is_settings(ACK))
        });
        client.send(SETTINGS, ACK, 0, []);
        client.frames.clear();
        client
    }

    /// Sends bytes as they are; that the peer does not take them any more is seen when reading.
    pub fn send_bytes(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) {
        self.send_bytes(Frame::new(kind, flags, stream, payload).bytes());
    }

    pub fn get(&mut self, stream: u32, path: &str) {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, request("GET", path, &[]));
    }

    /// The head of a request with a body.
    pub fn post(&mut self, stream: u32, path: &str, more: &[(&str, &str)]) {
        self.send(HEADERS, END_HEADERS, stream, request("POST", path, more));
    }

    pub fn data(&mut self, stream: u32, flags: u8, bytes: impl AsRef<[u8]>) {
        self.send(DATA, flags, stream, bytes);
    }

    pub fn reset(&mut self, stream: u32, code: u32) {
        self.send(RST_STREAM, 0, stream, code.to_be_bytes());
    }

    pub fn window(&mut self, stream: u32, more: u32) {
        self.send(WINDOW_UPDATE, 0, stream, more.to_be_bytes());
    }

    /// The answer on a stream when it is over, by its end or by a reset.
    pub fn answer(&mut self, stream: u32) -> Answer {
        self.until(&format!("an answer on stream {stream}"), |client| {
            client.answers.get(&stream).is_some_and(Answer::is_over)
        });
        self.answers.remove(&stream).unwrap()
    }

    /// Asks for a path and reads the answer.
    pub fn ask(&mut self, stream: u32, path: &str) -> Answer {
        self.get(stream, path);
        self.answer(stream)
    }

    /// Whether the peer still answers: a PING that comes back.
    pub fn is_alive(&mut self) -> bool {
        let mark = *b"alive?!.";
        self.send(PING, 0, 0, mark);
        let is_pong = |frame: &Frame| frame.kind == PING && frame.flags == ACK && frame.payload == mark;
        self.until("a PING back, or the end", |client| client.is_closed || client.frames.iter().any(is_pong));
        let is_alive = self.frames.iter().any(is_pong);
        self.frames.retain(|frame| !is_pong(frame));
        is_alive
    }

    /// Reads until something has come; fails by name when it does not, or when the connection ends before.
    pub fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        assert!(self.until_within(super::SOON, is_so), "not there: {what}; {:?} {:?}", self.goaways, self.frames);
    }

    /// Reads until something has come, the connection has ended, or time is up; says whether it has come.
    pub fn until_within(&mut self, limit: Duration, is_so: impl Fn(&Self) -> bool) -> bool {
        let start = Instant::now();
        while !is_so(self) {
            let left = limit.saturating_sub(start.elapsed());
            if self.is_closed || left.is_zero() {
                return false;
            }
            self.read(left);
        }
        true
    }

    /// Reads what is there, at most as long as `limit`.
    pub fn read(&mut self, limit: Duration) {
        self.stream.set_read_timeout(Some(limit.max(Duration::from_millis(1)))).unwrap();
        let mut buffer = [0; 65536];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.is_closed = true,
            Ok(count) => self.input.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => self.is_closed = true,
        }
        let mut at = 0;
        while let Some(frame) = next(&self.input[at..]) {
            at += 9 + frame.payload.len();
            self.take(frame);
        }
        self.input.drain(..at);
    }

    fn take(&mut self, frame: Frame) {
        match frame.kind {
            HEADERS | CONTINUATION => self.take_block(&frame),
            DATA => {
                let count = frame.payload.len() as u32;
                let end = frame.is(END_STREAM);
                let answer = self.answers.entry(frame.stream).or_default();
                assert!(!answer.is_whole, "DATA behind the end of stream {}", frame.stream);
                answer.body.extend_from_slice(&frame.payload);
                answer.is_whole |= end;
                if self.gives_way && count > 0 {
                    self.window(0, count);
                    if !end {
                        self.window(frame.stream, count);
                    }
                }
            }
            RST_STREAM => {
                let code = frame.number(0);
                self.answers.entry(frame.stream).or_default().reset.get_or_insert(code);
            }
            SETTINGS if frame.flags == 0 => {
                for one in frame.payload.chunks(6) {
                    let value = u32::from_be_bytes(one[2..].try_into().unwrap());
                    self.settings.insert(u16::from_be_bytes([one[0], one[1]]), value);
                }
                self.frames.push(frame);
            }
            // A drain waits for it.
            PING if frame.flags == 0 => self.send(PING, ACK, 0, &frame.payload),
            WINDOW_UPDATE => *self.given.entry(frame.stream).or_default() += frame.number(0) as usize,
            GOAWAY => self.goaways.push((frame.number(0), frame.number(4))),
            _ => self.frames.push(frame),
        }
    }

    fn take_block(&mut self, frame: &Frame) {
        let (stream, flags, mut bytes) = self.partial.take().unwrap_or((frame.stream, frame.flags, Vec::new()));
        assert_eq!((stream, frame.kind == CONTINUATION), (frame.stream, !bytes.is_empty()));
        assert!(frame.kind == CONTINUATION || !frame.is(PADDED | PRIORITIZED));
        bytes.extend_from_slice(&frame.payload);
        if !frame.is(END_HEADERS) {
            self.partial = Some((stream, flags, bytes));
            return;
        }
        let text = |bytes: Vec<u8>| bytes.into_iter().map(char::from).collect::<String>();
        let fields = self.decoder.decode(&bytes).unwrap();
        let mut fields: Vec<(String, String)> = fields.into_iter().map(|(n, v)| (text(n), text(v))).collect();
        let answer = self.answers.entry(stream).or_default();
        assert!(!answer.is_whole, "HEADERS behind the end of stream {stream}");
        if answer.status == 0 {
            let (name, status) = fields.remove(0);
            assert_eq!(name, ":status");
            let status = status.parse().unwrap();
            if status < 200 {
                answer.informational.push(status);
            } else {
                (answer.status, answer.fields) = (status, fields);
            }
        } else {
            answer.trailers = fields;
        }
        answer.is_whole |= flags & END_STREAM != 0;
    }
}

/// The first frame of some bytes, if it is there as a whole.
pub fn next(bytes: &[u8]) -> Option<Frame> {
    let head = bytes.get(..9)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let stream = u32::from_be_bytes(head[5..].try_into().unwrap()) & (u32::MAX >> 1);
    let payload = bytes.get(9..9 + length)?;
    Some(Frame::new(head[3], head[4], stream, payload))
}
