//! What RFC 9113 and RFC 7541 ask, section by section: what is sent, and what must come back.
//!
//! Where a section lets a peer choose (a stream error may be made a connection error, 5.4.2), both will do. Codes are
//! those of the section; where the engine's is the more general PROTOCOL_ERROR, a case says so: `HPACK`, `LATE`.

use std::time::Duration;

use super::support::frames::*;

/// What must come back.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Want {
    /// The connection goes on.
    Alive,
    /// An answer of 200 on this stream, and the connection goes on.
    Fine(u32),
    /// GOAWAY with one of these codes, and the end of the connection.
    Connection(&'static [u32]),
    /// RST_STREAM on this stream with one of these codes, or the same as a connection error.
    Stream(u32, &'static [u32]),
    /// As `Stream` with PROTOCOL_ERROR, and nothing has reached the origin.
    Malformed(u32),
    /// The same, but what is wrong stands behind the head: the origin may have seen a part, and never all.
    Broken(u32),
    /// An answer of ours with this status, and nothing has reached the origin.
    Status(u32, u16),
    /// The connection ends, in whatever way.
    Closed,
    /// Something about what was read.
    That(fn(&mut Client) -> bool),
}

pub(crate) struct Case {
    pub(crate) section: &'static str,
    pub(crate) what: &'static str,
    pub(crate) want: Want,
    /// Whether settings are exchanged before.
    pub(crate) is_greeted: bool,
    pub(crate) act: fn(&mut Client),
}

/// A decoding error is COMPRESSION_ERROR (4.3); PROTOCOL_ERROR says the same less exactly.
const HPACK: &[u32] = &[COMPRESSION_ERROR, PROTOCOL_ERROR];
/// What comes behind an end is STREAM_CLOSED; PROTOCOL_ERROR says the same less exactly.
const LATE: &[u32] = &[STREAM_CLOSED, PROTOCOL_ERROR];
const PROTOCOL: &[u32] = &[PROTOCOL_ERROR];
const SIZE: &[u32] = &[FRAME_SIZE_ERROR];
const FLOW: &[u32] = &[FLOW_CONTROL_ERROR];

use Want::{Alive, Broken, Closed, Connection, Fine, Malformed, Status, Stream, That};

const fn case(section: &'static str, what: &'static str, want: Want, act: fn(&mut Client)) -> Case {
    Case { section, what, want, is_greeted: true, act }
}

const fn raw(section: &'static str, what: &'static str, want: Want, act: fn(&mut Client)) -> Case {
    Case { section, what, want, is_greeted: false, act }
}

/// A GET with fields of the case's own behind the four.
fn with(client: &mut Client, more: &[(&str, &str)]) {
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("GET", "/", more));
}

/// A request of these fields alone.
fn only(client: &mut Client, fields: &[(&str, &str)]) {
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, block(fields));
}

/// A request whose header block is these bytes, behind the four.
fn raw_block(client: &mut Client, more: &[u8]) {
    let block = [&request("GET", "/", &[])[..], more].concat();
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, block);
}

fn wait_for_answer(client: &mut Client, stream: u32) {
    assert!(client.answer(stream).status == 200);
}

fn greeting() -> Vec<u8> {
    [PREFACE, &Frame::new(SETTINGS, 0, 0, []).bytes()].concat()
}

fn get_frame(stream: u32) -> Vec<u8> {
    Frame::new(HEADERS, END_HEADERS | END_STREAM, stream, request("GET", "/", &[])).bytes()
}

/// An indexed field of the static table.
const METHOD_GET: u8 = 0x82;
const SCHEME_HTTP: u8 = 0x86;
const PATH_ROOT: u8 = 0x84;

/// `:authority: a.example`, as a literal that is indexed from here on.
fn authority_indexed() -> Vec<u8> {
    let mut block = vec![0x41];
    put_text(&mut block, b"a.example");
    block
}

pub(crate) const CASES: &[Case] = &[
    // 3.4: the preface
    raw("3.4", "a preface gets settings first", That(|client| client.frames[0].kind == SETTINGS), |client| {
        client.send_bytes(greeting());
        client.until("a frame", |client| !client.frames.is_empty());
    }),
    raw("3.4", "a request may come with the preface", Fine(1), |client| {
        client.send_bytes([greeting(), get_frame(1)].concat());
    }),
    raw("3.4", "a preface in pieces", Fine(1), |client| {
        for byte in [greeting(), get_frame(1)].concat() {
            client.send_bytes([byte]);
        }
    }),
    raw("3.4", "a preface that is none", Closed, |client| client.send_bytes("INVALID CONNECTION PREFACE\r\n\r\n")),
    raw("3.4", "a preface with a wrong end", Closed, |client| {
        client.send_bytes("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");
        client.send(SETTINGS, 0, 0, []);
    }),
    raw("3.4", "a preface of another version", Closed, |client| client.send_bytes("PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n")),
    raw("3.4", "PING before settings", Connection(PROTOCOL), |client| {
        client.send_bytes([PREFACE, &Frame::new(PING, 0, 0, [0; 8]).bytes()].concat());
    }),
    raw("3.4", "a request before settings", Connection(PROTOCOL), |client| {
        client.send_bytes([PREFACE, &get_frame(1)].concat());
    }),
    raw("3.4", "settings confirmed before there are any", Connection(PROTOCOL), |client| {
        client.send_bytes([PREFACE, &Frame::new(SETTINGS, ACK, 0, []).bytes()].concat());
    }),
    // 4.1: the frame
    case("4.1", "an unknown type is ignored", Alive, |client| client.send(0x16, 0, 0, [0; 8])),
    case("4.1", "an unknown type on a stream is ignored", Fine(1), |client| {
        client.send(0x16, 0xff, 1, [0; 8]);
        client.get(1, "/");
    }),
    case("4.1", "undefined flags are ignored", Alive, |client| client.send(PING, 0x16, 0, [0; 8])),
    case("4.1", "undefined flags of HEADERS are ignored", Fine(1), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM | 0xd2 & !PRIORITIZED, 1, request("GET", "/", &[]));
    }),
    case("4.1", "the reserved bit is ignored", Alive, |client| client.send(PING, 0, 1 << 31, [0; 8])),
    case("4.1", "the reserved bit of a request is ignored", Fine(1), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM, 1 | 1 << 31, request("GET", "/", &[]));
    }),
    // 4.2: its size
    case("4.2", "DATA of 2^14 bytes", Fine(1), |client| {
        client.post(1, "/", &[]);
        client.data(1, END_STREAM, [b'x'; 1 << 14]);
    }),
    case("4.2", "DATA larger than is allowed", Stream(1, SIZE), |client| {
        client.post(1, "/", &[]);
        client.data(1, END_STREAM, [b'x'; (1 << 14) + 1]);
    }),
    case("4.2", "HEADERS larger than is allowed", Connection(SIZE), |client| {
        let value = "x".repeat(1 << 14);
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("GET", "/", &[("x", &value)]));
    }),
    case("4.2", "an unknown frame larger than is allowed", Connection(SIZE), |client| {
        client.send(0x16, 0, 0, vec![0; (1 << 14) + 1]);
    }),
    // 4.3: header blocks
    case("4.3", "a block that cannot be decoded", Connection(HPACK), |client| {
        // An index of zero.
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, [0x80]);
    }),
    case("4.3", "a block that is cut off", Connection(HPACK), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, [METHOD_GET, SCHEME_HTTP, 0x41, 9, b'a']);
    }),
    case("4.3", "PRIORITY inside of a block", Connection(PROTOCOL), |client| {
        client.send(HEADERS, END_STREAM, 1, request("GET", "/", &[]));
        client.send(PRIORITY, 0, 1, [0, 0, 0, 0, 0]);
        client.send(CONTINUATION, END_HEADERS, 1, []);
    }),
    case("4.3", "HEADERS of another stream inside of a block", Connection(PROTOCOL), |client| {
        client.send(HEADERS, END_STREAM, 1, request("GET", "/", &[]));
        client.get(3, "/");
    }),
    case("4.3", "an unknown frame inside of a block", Connection(PROTOCOL), |client| {
        client.send(HEADERS, END_STREAM, 1, request("GET", "/", &[]));
        client.send(0x16, 0, 0, []);
        client.send(CONTINUATION, END_HEADERS, 1, []);
    }),
    case("4.3", "blocks share one table", Fine(3), |client| {
        let first = [&[METHOD_GET, SCHEME_HTTP, PATH_ROOT][..], &authority_indexed()].concat();
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, first);
        wait_for_answer(client, 1);
        client.send(HEADERS, END_HEADERS | END_STREAM, 3, [METHOD_GET, SCHEME_HTTP, PATH_ROOT, 0xbe]);
    }),
    case("4.3", "a refused request's block counts for the table", Fine(3), |client| {
        let mut first = [&[METHOD_GET, SCHEME_HTTP, PATH_ROOT][..], &authority_indexed()].concat();
        first.extend(block(&[("connection", "close")]));
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, first);
        client.send(HEADERS, END_HEADERS | END_STREAM, 3, [METHOD_GET, SCHEME_HTTP, PATH_ROOT, 0xbe]);
    }),
    // 5.1: idle
    case("5.1", "idle: DATA", Connection(PROTOCOL), |client| client.data(1, END_STREAM, "x")),
    case("5.1", "idle: RST_STREAM", Connection(PROTOCOL), |client| client.reset(1, CANCEL)),
    case("5.1", "idle: WINDOW_UPDATE", Connection(PROTOCOL), |client| client.window(1, 100)),
    case("5.1", "idle: CONTINUATION", Connection(PROTOCOL), |client| {
        client.send(CONTINUATION, END_HEADERS, 1, request("GET", "/", &[]));
    }),
    case("5.1", "idle: PRIORITY", Fine(1), |client| {
        client.send(PRIORITY, 0, 1, [0, 0, 0, 0, 16]);
        client.get(1, "/");
    }),
    // 5.1: half-closed (remote)
    case("5.1", "half-closed: DATA", Stream(1, LATE), |client| {
        client.get(1, "/wait");
        client.data(1, END_STREAM, "x");
    }),
    case("5.1", "half-closed: HEADERS", Stream(1, LATE), |client| {
        client.get(1, "/wait");
        client.get(1, "/wait");
    }),
    case("5.1", "half-closed: CONTINUATION", Connection(LATE), |client| {
        client.get(1, "/wait");
        client.send(CONTINUATION, END_HEADERS, 1, block(&[("x", "y")]));
    }),
    case("5.1", "half-closed: WINDOW_UPDATE, PRIORITY", Alive, |client| {
        client.get(1, "/wait");
        client.window(1, 1);
        client.send(PRIORITY, 0, 1, [0, 0, 0, 0, 16]);
    }),
    case("5.1", "half-closed: RST_STREAM", Fine(3), |client| {
        client.get(1, "/wait");
        client.reset(1, CANCEL);
        client.get(3, "/");
    }),
    // 5.1: closed
    case("5.1", "closed by a reset: DATA", Stream(1, LATE), |client| {
        client.post(1, "/wait", &[]);
        client.reset(1, CANCEL);
        client.data(1, END_STREAM, "x");
    }),
    case("5.1", "closed by a reset: HEADERS", Stream(1, LATE), |client| {
        client.post(1, "/wait", &[]);
        client.reset(1, CANCEL);
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, block(&[("x", "y")]));
    }),
    case("5.1", "closed by a reset: CONTINUATION", Connection(LATE), |client| {
        client.post(1, "/wait", &[]);
        client.reset(1, CANCEL);
        client.send(CONTINUATION, END_HEADERS, 1, block(&[("x", "y")]));
    }),
    case("5.1", "closed: DATA", Stream(1, LATE), |client| {
        client.get(1, "/");
        wait_for_answer(client, 1);
        client.data(1, END_STREAM, "x");
    }),
    case("5.1", "closed: HEADERS", Connection(LATE), |client| {
        client.get(1, "/");
        wait_for_answer(client, 1);
        client.get(1, "/");
    }),
    case("5.1", "closed: CONTINUATION", Connection(LATE), |client| {
        client.get(1, "/");
        wait_for_answer(client, 1);
        client.send(CONTINUATION, END_HEADERS, 1, block(&[("x", "y")]));
    }),
    case("5.1", "closed: WINDOW_UPDATE, RST_STREAM, PRIORITY", Alive, |client| {
        client.get(1, "/");
        wait_for_answer(client, 1);
        client.window(1, 1);
        client.reset(1, CANCEL);
        client.send(PRIORITY, 0, 1, [0, 0, 0, 0, 16]);
    }),
    case("5.1", "a stream reset by us: what is under way is ignored", Fine(3), |client| {
        client.post(1, "/", &[("content-length", "1")]);
        client.data(1, 0, "xx");
        client.data(1, 0, "xx");
        client.window(1, 1);
        client.get(3, "/");
    }),
    // 5.1.1: numbers of streams
    case("5.1.1", "an even number", Connection(PROTOCOL), |client| client.get(2, "/")),
    case("5.1.1", "a lower number than before", Connection(LATE), |client| {
        client.get(5, "/");
        wait_for_answer(client, 5);
        client.get(3, "/");
    }),
    case("5.1.1", "numbers left out", Fine(101), |client| client.get(101, "/")),
    case("5.1.1", "the highest number", Fine((1 << 31) - 1), |client| client.get((1 << 31) - 1, "/")),
    // 5.1.2: how many
    case("5.1.2", "a limit is told", That(|client| client.settings.get(&3).is_some_and(|&most| most <= 1000)), |_| {}),
    case("5.1.2", "more streams than allowed", Stream(201, &[PROTOCOL_ERROR, REFUSED_STREAM]), |client| {
        let most = client.settings[&3];
        assert_eq!(most, 100);
        for number in 0..=most {
            client.get(1 + 2 * number, "/wait");
        }
    }),
    // 5.3.1, of RFC 7540, which RFC 9113 lets be ignored: dependencies
    case("5.3.1", "HEADERS that depend on their own stream", Stream(1, PROTOCOL), |client| {
        let payload = [&[0, 0, 0, 1, 16][..], &request("GET", "/wait", &[])].concat();
        client.send(HEADERS, END_HEADERS | END_STREAM | PRIORITIZED, 1, payload);
    }),
    case("5.3.1", "PRIORITY that depends on its own stream", Stream(1, PROTOCOL), |client| {
        client.get(1, "/wait");
        client.send(PRIORITY, 0, 1, [0, 0, 0, 1, 16]);
    }),
    // 5.4.1: connection errors
    case(
        "5.4.1",
        "GOAWAY tells the last stream, and the end follows",
        That(|client| {
            client.until_within(Duration::from_secs(2), |client| client.is_closed);
            client.is_closed && client.goaways == [(1, PROTOCOL_ERROR)]
        }),
        |client| {
            client.get(1, "/");
            wait_for_answer(client, 1);
            client.send(PING, 0, 1, [0; 8]);
        },
    ),
    // 5.5: extensions
    case("5.5", "an unknown frame between DATA", Fine(1), |client| {
        client.post(1, "/", &[]);
        client.send(0xfe, 0xff, 1, [1, 2, 3]);
        client.data(1, END_STREAM, "x");
    }),
    case("5.5", "an unknown setting", Alive, |client| client.send(SETTINGS, 0, 0, setting(0xffff, 1))),
    // 6.1: DATA
    case("6.1", "on stream 0", Connection(PROTOCOL), |client| client.data(0, END_STREAM, "x")),
    case("6.1", "padding longer than the payload", Connection(PROTOCOL), |client| {
        client.post(1, "/", &[]);
        client.data(1, END_STREAM | PADDED, [6, 1, 2, 3, 4, 5]);
    }),
    case("6.1", "padding as long as the payload", Connection(PROTOCOL), |client| {
        client.post(1, "/", &[]);
        client.data(1, END_STREAM | PADDED, [1]);
    }),
    case("6.1", "PADDED without a length", Connection(&[PROTOCOL_ERROR, FRAME_SIZE_ERROR]), |client| {
        client.post(1, "/", &[]);
        client.data(1, END_STREAM | PADDED, []);
    }),
    case("6.1", "padding and nothing else", Fine(1), |client| {
        client.post(1, "/", &[]);
        client.data(1, END_STREAM | PADDED, [3, 0, 0, 0]);
    }),
    case("6.1", "padding of 255 bytes", Fine(1), |client| {
        client.post(1, "/", &[]);
        client.data(1, END_STREAM | PADDED, [&[255, b'x'][..], &[0; 255]].concat());
    }),
    // 6.2: HEADERS
    case("6.2", "on stream 0", Connection(PROTOCOL), |client| client.get(0, "/")),
    case("6.2", "padding longer than the payload", Connection(PROTOCOL), |client| {
        let payload = [&[255][..], &request("GET", "/", &[])].concat();
        client.send(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, payload);
    }),
    case("6.2", "padding", Fine(1), |client| {
        let payload = [&[3][..], &request("GET", "/", &[]), &[0; 3]].concat();
        client.send(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, payload);
    }),
    case("6.2", "priority", Fine(1), |client| {
        let payload = [&[0x80, 0, 0, 0, 255][..], &request("GET", "/", &[])].concat();
        client.send(HEADERS, END_HEADERS | END_STREAM | PRIORITIZED, 1, payload);
    }),
    case("6.2", "padding and priority", Fine(1), |client| {
        let payload = [&[1, 0, 0, 0, 0, 0][..], &request("GET", "/", &[]), &[0]].concat();
        client.send(HEADERS, END_HEADERS | END_STREAM | PRIORITIZED | PADDED, 1, payload);
    }),
    case("6.2", "priority that is cut off", Connection(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM | PRIORITIZED, 1, [0, 0, 0]);
    }),
    case("6.2", "a block that does not end and RST_STREAM", Connection(PROTOCOL), |client| {
        client.send(HEADERS, END_STREAM, 1, request("GET", "/", &[]));
        client.reset(1, CANCEL);
    }),
    // 6.3: PRIORITY
    case("6.3", "on stream 0", Connection(PROTOCOL), |client| client.send(PRIORITY, 0, 0, [0, 0, 0, 0, 16])),
    case("6.3", "of 4 bytes", Stream(1, SIZE), |client| {
        client.get(1, "/wait");
        client.send(PRIORITY, 0, 1, [0; 4]);
    }),
    case("6.3", "of 6 bytes", Stream(1, SIZE), |client| {
        client.get(1, "/wait");
        client.send(PRIORITY, 0, 1, [0; 6]);
    }),
    // 6.4: RST_STREAM
    case("6.4", "on stream 0", Connection(PROTOCOL), |client| client.reset(0, CANCEL)),
    case("6.4", "of 3 bytes", Connection(SIZE), |client| {
        client.get(1, "/wait");
        client.send(RST_STREAM, 0, 1, [0; 3]);
    }),
    case("6.4", "of 5 bytes", Connection(SIZE), |client| {
        client.get(1, "/wait");
        client.send(RST_STREAM, 0, 1, [0; 5]);
    }),
    case("6.4", "on an idle stream far ahead", Connection(PROTOCOL), |client| client.reset(999, CANCEL)),
    case("6.4", "an unknown code", Fine(3), |client| {
        client.get(1, "/wait");
        client.reset(1, 0xdead_beef);
        client.get(3, "/");
    }),
    case(
        "6.4",
        "after a reset nothing is sent on the stream",
        That(|client| client.is_alive() && !client.answers.contains_key(&1)),
        |client| {
            client.post(1, "/", &[]);
            client.reset(1, CANCEL);
        },
    ),
    // 6.5: SETTINGS
    case(
        "6.5",
        "are confirmed",
        That(|client| client.frames.iter().any(|it| it.kind == SETTINGS && it.flags == ACK)),
        |client| {
            client.send(SETTINGS, 0, 0, []);
            assert!(client.is_alive());
        },
    ),
    case("6.5", "confirmed with a payload", Connection(SIZE), |client| {
        client.send(SETTINGS, 0, 0, []);
        client.send(SETTINGS, ACK, 0, setting(1, 1));
    }),
    case("6.5", "on a stream", Connection(PROTOCOL), |client| client.send(SETTINGS, 0, 1, setting(3, 100))),
    case("6.5", "of 3 bytes", Connection(SIZE), |client| client.send(SETTINGS, 0, 0, [0; 3])),
    case("6.5", "of 7 bytes", Connection(SIZE), |client| client.send(SETTINGS, 0, 0, [0; 7])),
    case("6.5", "confirmed though none were sent", Connection(PROTOCOL), |client| client.send(SETTINGS, ACK, 0, [])),
    case("6.5.2", "ENABLE_PUSH of 2", Connection(PROTOCOL), |client| client.send(SETTINGS, 0, 0, setting(2, 2))),
    case("6.5.2", "ENABLE_PUSH of 0 and 1", Fine(1), |client| {
        client.send(SETTINGS, 0, 0, [setting(2, 0), setting(2, 1)].concat());
        client.get(1, "/");
    }),
    case("6.5.2", "INITIAL_WINDOW_SIZE of 2^31", Connection(&[FLOW_CONTROL_ERROR, PROTOCOL_ERROR]), |client| {
        client.send(SETTINGS, 0, 0, setting(4, 1 << 31));
    }),
    case("6.5.2", "INITIAL_WINDOW_SIZE of 2^31-1", Fine(1), |client| {
        client.send(SETTINGS, 0, 0, setting(4, (1 << 31) - 1));
        client.get(1, "/");
    }),
    case("6.5.2", "MAX_FRAME_SIZE below 2^14", Connection(PROTOCOL), |client| {
        client.send(SETTINGS, 0, 0, setting(5, (1 << 14) - 1));
    }),
    case("6.5.2", "MAX_FRAME_SIZE of 2^24", Connection(PROTOCOL), |client| {
        client.send(SETTINGS, 0, 0, setting(5, 1 << 24));
    }),
    case("6.5.2", "MAX_FRAME_SIZE of 2^24-1", Fine(1), |client| {
        client.send(SETTINGS, 0, 0, setting(5, (1 << 24) - 1));
        client.get(1, "/big");
    }),
    case("6.5.2", "MAX_CONCURRENT_STREAMS of 0", Fine(1), |client| {
        client.send(SETTINGS, 0, 0, setting(3, 0));
        client.get(1, "/");
    }),
    case("6.5.2", "HEADER_TABLE_SIZE of 0", Fine(3), |client| {
        client.send(SETTINGS, 0, 0, setting(1, 0));
        client.get(1, "/");
        wait_for_answer(client, 1);
        client.get(3, "/");
    }),
    case("6.5.2", "HEADER_TABLE_SIZE of 2^32-1", Fine(1), |client| {
        client.send(SETTINGS, 0, 0, setting(1, u32::MAX));
        client.get(1, "/");
    }),
    case(
        "6.5.3",
        "one setting twice: the last counts",
        That(|client| {
            client.until("three bytes", |client| client.answers.get(&1).is_some_and(|answer| answer.body.len() >= 3));
            client.is_alive() && client.answers[&1].body.len() == 3
        }),
        |client| {
            client.gives_way = false;
            client.send(SETTINGS, 0, 0, [setting(4, 1), setting(4, 3)].concat());
            client.get(1, "/big");
        },
    ),
    // 6.6: PUSH_PROMISE
    case("6.6", "of a client", Connection(PROTOCOL), |client| {
        let payload = [&2_u32.to_be_bytes()[..], &request("GET", "/", &[])].concat();
        client.get(1, "/wait");
        client.send(PUSH_PROMISE, END_HEADERS, 1, payload);
    }),
    case("6.6", "of a client, on stream 0", Connection(PROTOCOL), |client| {
        let payload = [&2_u32.to_be_bytes()[..], &request("GET", "/", &[])].concat();
        client.send(PUSH_PROMISE, END_HEADERS, 0, payload);
    }),
    // 6.7: PING
    case(
        "6.7",
        "comes back",
        That(|client| {
            client.until("a PING back", |client| client.frames.iter().any(|frame| frame.kind == PING));
            client.frames.iter().any(|frame| (frame.kind, frame.flags, &frame.payload[..]) == (PING, ACK, b"h2test!!"))
        }),
        |client| client.send(PING, 0, 0, b"h2test!!"),
    ),
    case("6.7", "of another's answer is ignored", Fine(1), |client| {
        client.send(PING, ACK, 0, [7; 8]);
        client.get(1, "/");
    }),
    case("6.7", "on a stream", Connection(PROTOCOL), |client| client.send(PING, 0, 1, [0; 8])),
    case("6.7", "of 6 bytes", Connection(SIZE), |client| client.send(PING, 0, 0, [0; 6])),
    case("6.7", "of 9 bytes", Connection(SIZE), |client| client.send(PING, 0, 0, [0; 9])),
    // 6.8: GOAWAY
    case("6.8", "on a stream", Connection(PROTOCOL), |client| client.send(GOAWAY, 0, 1, [0; 8])),
    case("6.8", "of 7 bytes", Connection(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]), |client| {
        client.send(GOAWAY, 0, 0, [0; 7]);
    }),
    case(
        "6.8",
        "what is open is answered, then comes the end",
        That(|client| {
            let answer = client.answer(1);
            client.until_within(Duration::from_secs(2), |client| client.is_closed);
            answer.status == 200 && client.is_closed
        }),
        |client| {
            client.post(1, "/", &[]);
            client.send(GOAWAY, 0, 0, [0; 8]);
            client.data(1, END_STREAM, "x");
        },
    ),
    // 6.9: WINDOW_UPDATE
    case("6.9", "of 0 for the connection", Connection(PROTOCOL), |client| client.window(0, 0)),
    case("6.9", "of 0 for a stream", Stream(1, PROTOCOL), |client| {
        client.get(1, "/wait");
        client.window(1, 0);
    }),
    case("6.9", "of 3 bytes", Connection(SIZE), |client| client.send(WINDOW_UPDATE, 0, 0, [0; 3])),
    case("6.9", "of 5 bytes", Connection(SIZE), |client| client.send(WINDOW_UPDATE, 0, 0, [0, 0, 0, 1, 0])),
    case("6.9", "the reserved bit is ignored", Alive, |client| client.window(0, 1 | 1 << 31)),
    case(
        "6.9.1",
        "a response stays within the window",
        That(|client| {
            client.until("a byte", |client| client.answers.get(&1).is_some_and(|answer| !answer.body.is_empty()));
            client.is_alive() && client.answers[&1].body.len() == 1
        }),
        |client| {
            client.gives_way = false;
            client.send(SETTINGS, 0, 0, setting(4, 1));
            client.get(1, "/big");
        },
    ),
    case("6.9.1", "a connection's window above 2^31-1", Connection(FLOW), |client| {
        client.window(0, (1 << 31) - 1);
        client.window(0, (1 << 31) - 1);
    }),
    case("6.9.1", "a stream's window above 2^31-1", Stream(1, FLOW), |client| {
        client.get(1, "/wait");
        client.window(1, (1 << 31) - 1);
        client.window(1, (1 << 31) - 1);
    }),
    case("6.9.1", "more than the stream's window", Stream(1, FLOW), |client| {
        client.post(1, "/stall", &[]);
        // And more than the origin's socket takes, of which nothing is read.
        for _ in 0..2000 {
            client.data(1, 0, [b'x'; 1 << 14]);
        }
    }),
    case(
        "6.9.2",
        "a smaller first window is followed, then what is given",
        That(|client| {
            client.until("four bytes", |client| client.answers.get(&1).is_some_and(|answer| answer.body.len() >= 4));
            client.is_alive() && client.answers[&1].body.len() == 4
        }),
        |client| {
            client.gives_way = false;
            client.send(SETTINGS, 0, 0, setting(4, 0));
            client.get(1, "/big");
            client.send(SETTINGS, 0, 0, setting(4, 3));
            client.window(1, 1);
        },
    ),
    case(
        "6.9.2",
        "a window below zero is followed",
        That(|client| {
            let length = |client: &Client| client.answers.get(&1).map_or(0, |answer| answer.body.len());
            client.until("five bytes", |client| length(client) >= 5);
            client.send(SETTINGS, 0, 0, setting(4, 2));
            // 2 - 5 + 3: nothing; one more: one byte.
            client.window(1, 3);
            let is_silent = client.is_alive() && length(client) == 5;
            client.window(1, 1);
            client.until("the sixth byte", |client| length(client) >= 6);
            is_silent && client.is_alive() && length(client) == 6
        }),
        |client| {
            client.gives_way = false;
            client.send(SETTINGS, 0, 0, setting(4, 5));
            client.get(1, "/big");
        },
    ),
    case("6.9.2", "a first window that makes another too large", Connection(FLOW), |client| {
        client.get(1, "/wait");
        client.window(1, (1 << 31) - 1 - 65535);
        client.send(SETTINGS, 0, 0, setting(4, 65536));
    }),
    // 6.10: CONTINUATION
    case("6.10", "one", Fine(1), |client| {
        let block = request("GET", "/", &[]);
        client.send(HEADERS, END_STREAM, 1, &block[..7]);
        client.send(CONTINUATION, END_HEADERS, 1, &block[7..]);
    }),
    case("6.10", "several, empty ones among them", Fine(1), |client| {
        let block = request("GET", "/", &[]);
        client.send(HEADERS, END_STREAM, 1, []);
        client.send(CONTINUATION, 0, 1, &block[..20]);
        client.send(CONTINUATION, 0, 1, []);
        client.send(CONTINUATION, END_HEADERS, 1, &block[20..]);
    }),
    case("6.10", "DATA in between", Connection(PROTOCOL), |client| {
        client.send(HEADERS, 0, 1, request("POST", "/", &[]));
        client.data(1, END_STREAM, "x");
    }),
    case("6.10", "on stream 0", Connection(PROTOCOL), |client| {
        client.send(HEADERS, END_STREAM, 1, request("GET", "/", &[]));
        client.send(CONTINUATION, END_HEADERS, 0, []);
    }),
    case("6.10", "on another stream", Connection(PROTOCOL), |client| {
        client.send(HEADERS, END_STREAM, 1, request("GET", "/", &[]));
        client.send(CONTINUATION, END_HEADERS, 3, []);
    }),
    case("6.10", "behind HEADERS that have ended", Connection(PROTOCOL), |client| {
        client.post(1, "/wait", &[]);
        client.send(CONTINUATION, END_HEADERS, 1, block(&[("x", "y")]));
    }),
    case("6.10", "behind CONTINUATION that has ended", Connection(PROTOCOL), |client| {
        client.send(HEADERS, 0, 1, request("POST", "/wait", &[]));
        client.send(CONTINUATION, END_HEADERS, 1, []);
        client.send(CONTINUATION, END_HEADERS, 1, block(&[("x", "y")]));
    }),
    case("6.10", "behind DATA", Connection(PROTOCOL), |client| {
        client.post(1, "/wait", &[]);
        client.data(1, 0, "x");
        client.send(CONTINUATION, END_HEADERS, 1, block(&[("x", "y")]));
    }),
    // 7: codes
    case(
        "7",
        "GOAWAY with an unknown code",
        That(|client| {
            client.until_within(Duration::from_secs(2), |client| client.is_closed);
            client.is_closed
        }),
        |client| client.send(GOAWAY, 0, 0, [&[0; 4][..], &[0xff; 4]].concat()),
    ),
    // 8.1: messages
    case("8.1", "a second HEADERS without the end", Broken(1), |client| {
        client.post(1, "/count", &[]);
        client.send(HEADERS, END_HEADERS, 1, block(&[("x", "y")]));
    }),
    case("8.1", "trailers", Fine(1), |client| {
        client.post(1, "/", &[]);
        client.data(1, 0, "x");
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, block(&[("x-sum", "y")]));
    }),
    case("8.1", "trailers without a body", Fine(1), |client| {
        client.post(1, "/", &[]);
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, block(&[("x-sum", "y")]));
    }),
    case("8.1", "trailers with a pseudo field", Broken(1), |client| {
        client.post(1, "/count", &[]);
        client.data(1, 0, "x");
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, block(&[(":method", "GET")]));
    }),
    case("8.1", "trailers with a pseudo field of the static table", Broken(1), |client| {
        client.post(1, "/count", &[]);
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, [METHOD_GET]);
    }),
    case("8.1", "trailers with a field of the connection", Broken(1), |client| {
        client.post(1, "/count", &[]);
        client.data(1, 0, "x");
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, block(&[("transfer-encoding", "chunked")]));
    }),
    case("8.1", "DATA behind trailers", Stream(1, LATE), |client| {
        client.post(1, "/wait", &[]);
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, block(&[("x-sum", "y")]));
        client.data(1, END_STREAM, "x");
    }),
    case("8.1", "a GET whose end comes by itself", Fine(1), |client| {
        client.send(HEADERS, END_HEADERS, 1, request("GET", "/", &[]));
        client.data(1, END_STREAM, "");
    }),
    case("8.1", "a GET with a body", Status(1, 400), |client| {
        client.send(HEADERS, END_HEADERS, 1, request("GET", "/", &[]));
        client.data(1, END_STREAM, "x");
    }),
    case("8.1", "a GET with a body of known length", Status(1, 400), |client| {
        client.send(HEADERS, END_HEADERS, 1, request("GET", "/", &[("content-length", "1")]));
        client.data(1, END_STREAM, "x");
    }),
    case("8.1", "an answer has a status first", Fine(1), |client| client.get(1, "/")),
    case(
        "8.1",
        "an answer to HEAD has no body",
        That(|client| {
            let answer = client.answer(1);
            answer.status == 200 && answer.body.is_empty() && answer.is_whole && client.is_alive()
        }),
        |client| client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("HEAD", "/", &[])),
    ),
    // 8.1.1: malformed messages
    case("8.1.1", "content-length above the body", Broken(1), |client| {
        client.post(1, "/count", &[("content-length", "2")]);
        client.data(1, END_STREAM, "x");
    }),
    case("8.1.1", "content-length above the body, in two pieces", Broken(1), |client| {
        client.post(1, "/count", &[("content-length", "4")]);
        client.data(1, 0, "x");
        client.data(1, END_STREAM, "x");
    }),
    case("8.1.1", "content-length below the body", Broken(1), |client| {
        client.post(1, "/count", &[("content-length", "1")]);
        client.data(1, END_STREAM, "xx");
    }),
    case("8.1.1", "content-length below the body, in two pieces", Broken(1), |client| {
        client.post(1, "/count", &[("content-length", "2")]);
        client.data(1, 0, "xx");
        client.data(1, END_STREAM, "x");
    }),
    case("8.1.1", "content-length without a body", Malformed(1), |client| with(client, &[("content-length", "1")])),
    case("8.1.1", "content-length above the body, then trailers", Broken(1), |client| {
        client.post(1, "/count", &[("content-length", "2")]);
        client.data(1, 0, "x");
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, block(&[("x-sum", "y")]));
    }),
    case("8.1.1", "two lengths", Malformed(1), |client| {
        client.post(1, "/", &[("content-length", "1"), ("content-length", "2")]);
        client.data(1, END_STREAM, "x");
    }),
    case("8.1.1", "a length that is no number", Malformed(1), |client| {
        client.post(1, "/", &[("content-length", "+1")]);
        client.data(1, END_STREAM, "x");
    }),
    case("8.1.1", "a length of 2^64", Malformed(1), |client| {
        client.post(1, "/", &[("content-length", "18446744073709551616")]);
        client.data(1, END_STREAM, "x");
    }),
    case("8.1.1", "a list of lengths", Malformed(1), |client| {
        client.post(1, "/", &[("content-length", "1, 1")]);
        client.data(1, END_STREAM, "x");
    }),
    case("8.1.1", "content-length of 0 without a body", Fine(1), |client| with(client, &[("content-length", "0")])),
    case("8.1.1", "content-length that is right", Fine(1), |client| {
        client.post(1, "/", &[("content-length", "3")]);
        client.data(1, 0, "ab");
        client.data(1, 0, "");
        client.data(1, END_STREAM, "c");
    }),
    // 8.2: fields
    case("8.2.1", "an upper-case name", Malformed(1), |client| with(client, &[("X-Test", "ok")])),
    case("8.2.1", "an empty name", Malformed(1), |client| with(client, &[("", "ok")])),
    case("8.2.1", "a name with a colon", Malformed(1), |client| with(client, &[("x:y", "ok")])),
    case("8.2.1", "a name with a space", Malformed(1), |client| with(client, &[("x y", "ok")])),
    case("8.2.1", "a name with CR LF", Malformed(1), |client| with(client, &[("x\r\nhost", "ok")])),
    case("8.2.1", "a name with NUL", Malformed(1), |client| with(client, &[("x\0", "ok")])),
    case("8.2.1", "a name with DEL", Malformed(1), |client| with(client, &[("x\x7f", "ok")])),
    case("8.2.1", "a name above ASCII", Malformed(1), |client| with(client, &[("x\u{e4}", "ok")])),
    case("8.2.1", "a value with CR LF", Malformed(1), |client| with(client, &[("x", "a\r\nhost: b")])),
    case("8.2.1", "a value with CR", Malformed(1), |client| with(client, &[("x", "a\rb")])),
    case("8.2.1", "a value with LF", Malformed(1), |client| with(client, &[("x", "a\nb")])),
    case("8.2.1", "a value with NUL", Malformed(1), |client| with(client, &[("x", "a\0b")])),
    case("8.2.1", "a value with a space before", Malformed(1), |client| with(client, &[("x", " a")])),
    case("8.2.1", "a value with a space behind", Malformed(1), |client| with(client, &[("x", "a ")])),
    case("8.2.1", "a value with a tab before", Malformed(1), |client| with(client, &[("x", "\ta")])),
    case("8.2.1", "an empty value, and one with a space inside", Fine(1), |client| {
        with(client, &[("x", ""), ("y", "a b"), ("z", "a\tb")]);
    }),
    case("8.2.1", "a path with CR LF", Malformed(1), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("GET", "/ HTTP/1.1\r\nx: y", &[]));
    }),
    case("8.2.1", "a method with CR LF", Malformed(1), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("GET / HTTP/1.1\r\nx:", "/", &[]));
    }),
    case("8.2.2", "connection", Malformed(1), |client| with(client, &[("connection", "keep-alive")])),
    case("8.2.2", "proxy-connection", Malformed(1), |client| with(client, &[("proxy-connection", "keep-alive")])),
    case("8.2.2", "keep-alive", Malformed(1), |client| with(client, &[("keep-alive", "timeout=5")])),
    case("8.2.2", "transfer-encoding", Malformed(1), |client| with(client, &[("transfer-encoding", "chunked")])),
    case("8.2.2", "upgrade", Malformed(1), |client| with(client, &[("upgrade", "websocket")])),
    case("8.2.2", "te that is not trailers", Malformed(1), |client| with(client, &[("te", "trailers, deflate")])),
    case("8.2.2", "te that is trailers", Fine(1), |client| with(client, &[("te", "trailers")])),
    case(
        "8.2.3",
        "cookies in pieces are one",
        That(|client| {
            let answer = client.answer(1);
            answer.status == 200 && answer.text().contains("cookie: a=1; b=2; c=3\r\n")
        }),
        |client| {
            let cookies = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")];
            client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("GET", "/head", &cookies));
        },
    ),
    // 8.3: pseudo fields
    case("8.3", "an unknown one", Malformed(1), |client| with(client, &[(":test", "ok")])),
    case("8.3", "one of an answer", Malformed(1), |client| with(client, &[(":status", "200")])),
    case("8.3", "one of an answer, first", Malformed(1), |client| {
        only(
            client,
            &[(":status", "200"), (":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")],
        );
    }),
    case("8.3", "one behind another field", Malformed(1), |client| {
        only(client, &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), ("x", "y"), (":path", "/")]);
    }),
    case("8.3.1", "an empty path", Malformed(1), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("GET", "", &[]));
    }),
    case("8.3.1", "a path that does not begin with a slash", Malformed(1), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("GET", "x", &[]));
    }),
    case("8.3.1", "a path that is a URL", Malformed(1), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("GET", "http://b.example/", &[]));
    }),
    case("8.3.1", "a path that is a query", Malformed(1), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("GET", "?x", &[]));
    }),
    case("8.3.1", "a path with a space", Malformed(1), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("GET", "/ HTTP/1.1", &[]));
    }),
    case("8.3.1", "a path that is a star", Malformed(1), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("GET", "*", &[]));
    }),
    case("8.3.1", "OPTIONS of everything", Fine(1), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("OPTIONS", "*", &[]));
    }),
    case("8.3.1", "no method", Malformed(1), |client| {
        only(client, &[(":scheme", "http"), (":authority", "a.example"), (":path", "/")]);
    }),
    case("8.3.1", "no scheme", Malformed(1), |client| {
        only(client, &[(":method", "GET"), (":authority", "a.example"), (":path", "/")]);
    }),
    case("8.3.1", "no path", Malformed(1), |client| {
        only(client, &[(":method", "GET"), (":scheme", "http"), (":authority", "a.example")]);
    }),
    case("8.3.1", "two methods", Malformed(1), |client| {
        only(
            client,
            &[(":method", "GET"), (":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")],
        );
    }),
    case("8.3.1", "two schemes", Malformed(1), |client| {
        only(
            client,
            &[(":method", "GET"), (":scheme", "http"), (":scheme", "http"), (":authority", "a"), (":path", "/")],
        );
    }),
    case("8.3.1", "two paths", Malformed(1), |client| {
        only(client, &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/"), (":path", "/")]);
    }),
    case("8.3.1", "two authorities", Malformed(1), |client| {
        only(
            client,
            &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":authority", "b"), (":path", "/")],
        );
    }),
    case("8.3.1", "a scheme that is none", Malformed(1), |client| {
        only(client, &[(":method", "GET"), (":scheme", "ht tp"), (":authority", "a"), (":path", "/")]);
    }),
    case("8.3.1", "a scheme with a whole request in it", Malformed(1), |client| {
        let scheme = "http://b.example/ HTTP/1.1\r\nhost: b\r\n\r\n";
        only(client, &[(":method", "GET"), (":scheme", scheme), (":authority", "a"), (":path", "/")]);
    }),
    case("8.3.1", "a scheme that is not served", Malformed(1), |client| {
        only(client, &[(":method", "GET"), (":scheme", "ftp"), (":authority", "a.example"), (":path", "/")]);
    }),
    case("8.3.1", "a host instead of an authority", Fine(1), |client| {
        only(client, &[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "a.example")]);
    }),
    case("8.3.1", "a host as the authority", Fine(1), |client| with(client, &[("host", "a.example")])),
    case("8.3.1", "another host than the authority", Malformed(1), |client| with(client, &[("host", "b.example")])),
    case("8.3.1", "two hosts", Malformed(1), |client| with(client, &[("host", "a.example"), ("host", "a.example")])),
    case("8.3.1", "no host at all", Malformed(1), |client| {
        only(client, &[(":method", "GET"), (":scheme", "http"), (":path", "/")]);
    }),
    case("8.3.1", "an empty authority", Malformed(1), |client| {
        only(client, &[(":method", "GET"), (":scheme", "http"), (":authority", ""), (":path", "/")]);
    }),
    case("8.3.1", "an authority with a user", Malformed(1), |client| {
        only(client, &[(":method", "GET"), (":scheme", "http"), (":authority", "me@a.example"), (":path", "/")]);
    }),
    case("8.3.1", "an authority with a path", Malformed(1), |client| {
        only(client, &[(":method", "GET"), (":scheme", "http"), (":authority", "a.example/x"), (":path", "/")]);
    }),
    case("8.3.1", "an authority with CR LF", Malformed(1), |client| {
        only(client, &[(":method", "GET"), (":scheme", "http"), (":authority", "a\r\nx: y"), (":path", "/")]);
    }),
    // 8.4, 8.5
    case("8.5", "CONNECT is not served", Status(1, 405), |client| {
        only(client, &[(":method", "CONNECT"), (":authority", "a.example:443")]);
    }),
    case("8.5", "CONNECT with a path", Malformed(1), |client| {
        only(client, &[(":method", "CONNECT"), (":scheme", "http"), (":path", "/"), (":authority", "a.example:443")]);
    }),
    case("8.5", "CONNECT without an authority", Stream(1, PROTOCOL), |client| only(client, &[(":method", "CONNECT")])),
    case("8.5", "extended CONNECT that was not offered", Malformed(1), |client| {
        only(
            client,
            &[
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "a"),
            ],
        );
    }),
    case("8.5", "TRACE is not served", Status(1, 405), |client| {
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("TRACE", "/", &[]));
    }),
    // 10.5: too much
    case("10.5.1", "a header list that is too large", Status(1, 431), |client| {
        let value = "x".repeat(12 * 1024);
        let block = request("GET", "/", &[("a", &value), ("b", &value), ("c", &value)]);
        client.send(HEADERS, END_STREAM, 1, &block[..16000]);
        client.send(CONTINUATION, 0, 1, &block[16000..32000]);
        client.send(CONTINUATION, END_HEADERS, 1, &block[32000..]);
    }),
    case("10.5.1", "too many fields", Status(1, 431), |client| {
        let fields: Vec<_> = (0..120).map(|_| ("x", "y")).collect();
        with(client, &fields);
    }),
    case("10.5.1", "a path that is too long", Status(1, 414), |client| {
        let path = format!("/{}", "x".repeat(9000));
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, request("GET", &path, &[]));
    }),
    // RFC 7541
    case("hpack 2.3.3", "an index behind both tables", Connection(HPACK), |client| raw_block(client, &[0xc6])),
    case("hpack 2.3.3", "a name's index behind both tables", Connection(HPACK), |client| {
        raw_block(client, &[0x7f, 0x21, 1, b'x']);
    }),
    case("hpack 2.3.3", "all 61 of the static table", Alive, |client| {
        let block: Vec<u8> = (1..=61).map(|index| 0x80 | index).collect();
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, block);
    }),
    case("hpack 4.2", "a change of the table's size at the end of a block", Connection(HPACK), |client| {
        raw_block(client, &[0x20]);
    }),
    case("hpack 4.2", "a change of the table's size at its beginning", Fine(1), |client| {
        let block = [&[0x20, 0x3f, 0x69][..], &request("GET", "/", &[])].concat();
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, block);
    }),
    case("hpack 5.1", "a number that does not end", Connection(HPACK), |client| {
        raw_block(client, &[[0xff; 12].as_slice(), &[0]].concat());
    }),
    case("hpack 5.1", "a length beyond the block", Connection(HPACK), |client| raw_block(client, &[0x10, 0x7f, 0x10])),
    case("hpack 5.2", "a Huffman code padded with more than 7 bits", Connection(HPACK), |client| {
        raw_block(client, &[0x10, 1, b'x', 0x82, 0x1f, 0xff]);
    }),
    case("hpack 5.2", "a Huffman code padded with zeros", Connection(HPACK), |client| {
        raw_block(client, &[0x10, 1, b'x', 0x81, 0x18]);
    }),
    case("hpack 5.2", "a Huffman code with the end in it", Connection(HPACK), |client| {
        raw_block(client, &[0x10, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]);
    }),
    case("hpack 5.2", "a Huffman code", Fine(1), |client| {
        // "a": 00011, padded with ones.
        raw_block(client, &[0x10, 1, b'x', 0x81, 0x1f]);
    }),
    case("hpack 6.1", "an index of 0", Connection(HPACK), |client| raw_block(client, &[0x80])),
    case("hpack 6.2", "literals of all three kinds", Fine(1), |client| {
        raw_block(client, &[0x40, 1, b'x', 1, b'a', 0x00, 1, b'y', 1, b'b', 0x10, 1, b'z', 1, b'c', 0xbe]);
    }),
    case("hpack 6.3", "a table larger than was allowed", Connection(HPACK), |client| {
        let block = [&[0x3f, 0xe2, 0x1f][..], &request("GET", "/", &[])].concat();
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, block);
    }),
    case("hpack 4.4", "a field larger than the table empties it", Fine(3), |client| {
        let mut block = vec![0x3f, 0x01, METHOD_GET, SCHEME_HTTP, PATH_ROOT];
        block.extend(authority_indexed());
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, block);
        wait_for_answer(client, 1);
        client.get(3, "/");
    }),
];
