//! The heads of frames, as they pass (RFC 9113, 4.1).

use h2::Reason;

use super::FRAME_BYTES_MAX;

/// What a client begins with.
pub(in crate::proxy) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

const HEAD_BYTES: usize = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITIZED: u8 = 0x20;
/// What trailers may take, packed: more than they may take unpacked as of HTTP/1.1.
const TRAILER_BYTES_MAX: usize = 16 * 1024;

/// What is said about a frame before its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: u32,
    pub(super) kind: u8,
    flags: u8,
    stream: u32,
}

impl Head {
    fn read(bytes: &[u8; HEAD_BYTES]) -> Self {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        let stream = u32::from_be_bytes([bytes[5] & 0x7f, bytes[6], bytes[7], bytes[8]]);
        Self { length, kind: bytes[3], flags: bytes[4], stream }
    }

    /// Whether this is the last of a stream.
    pub(super) fn is_end(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// Whether it is about the connection as a whole.
    pub(super) fn is_of_connection(&self) -> bool {
        self.stream == 0
    }

    /// Whether it begins or goes on with a header block that others are to finish.
    fn leaves_block_open(&self) -> bool {
        matches!(self.kind, HEADERS | PUSH_PROMISE | CONTINUATION) && self.flags & END_HEADERS == 0
    }

    /// What is wrong with its length, which needs no look at what it says.
    fn check(&self) -> Result<(), Reason> {
        let is_right = match self.kind {
            _ if self.length > FRAME_BYTES_MAX => false,
            SETTINGS if self.flags & ACK != 0 => self.length == 0,
            SETTINGS => self.length.is_multiple_of(6),
            PING => self.length == 8,
            RST_STREAM | WINDOW_UPDATE => self.length == 4,
            PRIORITY => self.length == 5,
            GOAWAY => self.length >= 8,
            _ => true,
        };
        if is_right { Ok(()) } else { Err(Reason::FRAME_SIZE_ERROR) }
    }
}

/// Follows the frames that one peer sends.
#[derive(Debug)]
pub(super) struct Follower {
    /// Bytes that are no head: a payload's, or the preface.
    skip: usize,
    head: [u8; HEAD_BYTES],
    read: usize,
    has_settings: bool,
    is_in_block: bool,
    /// Whether the frame that is passing is of a header block.
    is_of_block: bool,
    /// The last stream that a client has opened; none of a backend, which opens none.
    opened: Option<u32>,
    /// The frame of trailers that is passing, and what has come of it.
    passing: Option<(Head, Vec<u8>)>,
    /// The header block of trailers that has not ended.
    trailers: Option<Vec<u8>>,
}

impl Follower {
    /// Of a client with its preface to come, or of a backend.
    pub(super) fn new(has_preface: bool) -> Self {
        let skip = if has_preface { PREFACE.len() } else { 0 };
        Self {
            skip,
            head: [0; HEAD_BYTES],
            read: 0,
            has_settings: false,
            is_in_block: false,
            is_of_block: false,
            opened: has_preface.then_some(0),
            passing: None,
            trailers: None,
        }
    }

    /// Whether the peer has said its settings, which come first.
    pub(super) fn has_settings(&self) -> bool {
        self.has_settings
    }

    /// Whether a header block has begun that has not ended: the last of its frames may be on its way.
    pub(super) fn is_in_block(&self) -> bool {
        self.is_in_block || (self.is_of_block && self.skip > 0)
    }

    /// Follows `bytes`, and asks about each frame. A frame that is refused ends it, with the number of bytes before that
    /// frame.
    pub(super) fn follow(
        &mut self,
        bytes: &[u8],
        mut ask: impl FnMut(&Head) -> Result<(), Reason>,
    ) -> Result<(), (usize, Reason)> {
        let mut at = 0;
        // Where the frame begins that is passing.
        let mut before = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            if self.skip > 0 {
                let count = self.skip.min(rest.len());
                if let Some((_, payload)) = &mut self.passing {
                    payload.extend_from_slice(&rest[..count]);
                }
                self.skip -= count;
                at += count;
                if self.skip == 0 {
                    self.end_frame().map_err(|reason| (before, reason))?;
                }
                continue;
            }
            let count = (HEAD_BYTES - self.read).min(rest.len());
            self.head[self.read..self.read + count].copy_from_slice(&rest[..count]);
            self.read += count;
            if self.read < HEAD_BYTES {
                break;
            }
            before = (at + count).saturating_sub(HEAD_BYTES);
            at += count;
            self.read = 0;
            let head = Head::read(&self.head);
            self.take(&head).and_then(|()| ask(&head)).map_err(|reason| (before, reason))?;
            self.skip = head.length as usize;
            if self.skip == 0 {
                self.end_frame().map_err(|reason| (before, reason))?;
            }
        }
        Ok(())
    }

    /// The last byte of a frame is here: if it is the last of trailers, they are looked at. What unpacks them lets pseudo
    /// fields fall, which make a message malformed (RFC 9113, 8.1).
    fn end_frame(&mut self) -> Result<(), Reason> {
        let Some((head, payload)) = self.passing.take() else {
            return Ok(());
        };
        let block = self.trailers.get_or_insert_default();
        block.extend_from_slice(head.fragment(&payload));
        if block.len() > TRAILER_BYTES_MAX {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        if head.leaves_block_open() {
            return Ok(());
        }
        let block = self.trailers.take().unwrap_or_default();
        if has_pseudo_field(&block) { Err(Reason::PROTOCOL_ERROR) } else { Ok(()) }
    }

    fn take(&mut self, head: &Head) -> Result<(), Reason> {
        if !self.has_settings && (head.kind != SETTINGS || head.flags & ACK != 0) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        head.check()?;
        self.has_settings = true;
        let is_trailers = match (&mut self.opened, head.kind) {
            (Some(opened), HEADERS) if head.stream > *opened => {
                *opened = head.stream;
                false
            }
            (Some(_), HEADERS) => true,
            (_, CONTINUATION) => self.trailers.is_some(),
            _ => false,
        };
        if is_trailers {
            self.passing = Some((*head, Vec::new()));
        } else {
            self.trailers = None;
        }
        self.is_of_block = matches!(head.kind, HEADERS | PUSH_PROMISE | CONTINUATION);
        if self.is_of_block {
            self.is_in_block = head.leaves_block_open();
        }
        Ok(())
    }
}

impl Head {
    /// The piece of a header block in a frame's payload; nothing if that makes no sense.
    fn fragment<'p>(&self, payload: &'p [u8]) -> &'p [u8] {
        if self.kind != HEADERS {
            return payload;
        }
        let is = |flag| self.flags & flag != 0;
        let (from, padding) = match payload.first() {
            Some(padding) if is(PADDED) => (1, usize::from(*padding)),
            _ => (0, 0),
        };
        let from = if is(PRIORITIZED) { from + 5 } else { from };
        payload.get(from..payload.len().saturating_sub(padding)).unwrap_or_default()
    }
}

/// Whether a field's name in a header block begins with a colon, as far as that is said in the block itself: by its
/// letters, or by a place in the static table (RFC 7541, 6 and appendix A), where those are the first 14. One that is
/// said by its place in the dynamic table is not found: what is there is known to the engine alone. It falls as if it had
/// not been sent, so that two readers cannot differ about it.
fn has_pseudo_field(mut block: &[u8]) -> bool {
    const LAST_PSEUDO: u64 = 14;
    let mut has = false;
    // None at the end, and of what makes no sense: that is found out by who unpacks it.
    let mut walk = || -> Option<()> {
        loop {
            let first = *block.first()?;
            let (bits, is_literal) = match first {
                0x80.. => (7, false),
                0x40.. => (6, true),
                0x20.. => (5, false),
                _ => (4, true),
            };
            let is_size = (0x20..0x40).contains(&first);
            let index = take_number(&mut block, bits)?;
            has |= !is_size && (1..=LAST_PSEUDO).contains(&index);
            if is_literal {
                if index == 0 {
                    let is_packed = *block.first()? >= 0x80;
                    let name = take_text(&mut block)?;
                    // A colon has seven bits in Huffman's code.
                    has |= name.first().is_some_and(|byte| if is_packed { byte >> 1 == 0x5c } else { *byte == b':' });
                }
                take_text(&mut block)?;
            }
        }
    };
    walk();
    has
}

/// A number in the low bits of the first byte, and in those that follow (RFC 7541, 5.1).
fn take_number(block: &mut &[u8], bits: u32) -> Option<u64> {
    let (first, mut rest) = block.split_first()?;
    let most = (1_u64 << bits) - 1;
    let mut number = u64::from(*first) & most;
    let mut shift = 0;
    while number >= most {
        let (byte, more) = rest.split_first()?;
        rest = more;
        number += u64::from(byte & 0x7f).checked_shl(shift).filter(|_| shift < 28)?;
        shift += 7;
        if *byte < 0x80 {
            break;
        }
    }
    *block = rest;
    Some(number)
}

/// A text with its length before it (RFC 7541, 5.2), packed or not.
fn take_text<'b>(block: &mut &'b [u8]) -> Option<&'b [u8]> {
    let length = usize::try_from(take_number(block, 7)?).ok()?;
    let (text, rest) = block.split_at_checked(length)?;
    *block = rest;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: usize, kind: u8, flags: u8) -> Vec<u8> {
        let mut bytes = (length as u32).to_be_bytes()[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        bytes.resize(HEAD_BYTES + length, 0xaa);
        bytes
    }

    #[test]
    fn frames_are_seen_however_they_are_cut() {
        let bytes = [
            &PREFACE[..],
            &frame(0, SETTINGS, 0),
            &frame(100, HEADERS, 0),
            &frame(5, CONTINUATION, END_HEADERS),
            &frame(0, DATA, END_STREAM),
            &frame(300, 0xee, 0xff),
        ]
        .concat();
        for step in [1, 2, 3, 7, 9, 100, bytes.len()] {
            let (mut seen, mut follower) = (Vec::new(), Follower::new(true));
            for piece in bytes.chunks(step) {
                let look = |head: &Head| {
                    seen.push((head.kind, head.length, head.is_end()));
                    Ok(())
                };
                follower.follow(piece, look).unwrap();
            }
            let expected = [
                (SETTINGS, 0, false),
                (HEADERS, 100, false),
                (CONTINUATION, 5, false),
                (DATA, 0, true),
                (0xee, 300, false),
            ];
            assert_eq!(seen, expected, "in steps of {step}");
            assert!(follower.has_settings() && !follower.is_in_block());
        }
    }

    #[test]
    fn a_block_ends_with_its_last_byte() {
        let bytes = [frame(0, SETTINGS, 0), frame(100, HEADERS, END_HEADERS), frame(10, DATA, 0)].concat();
        let mut follower = Follower::new(false);
        for (at, byte) in bytes.chunks(1).enumerate() {
            follower.follow(byte, |_| Ok(())).unwrap();
            assert_eq!(follower.is_in_block(), (17..117).contains(&at), "at {at}");
        }
    }

    #[test]
    fn a_frame_that_is_refused_is_held_back_whole() {
        let bytes = [frame(0, SETTINGS, 0), frame(6, DATA, 0), frame(3, PING, 0)].concat();
        for cut in 0..bytes.len() {
            let mut follower = Follower::new(false);
            let first = follower.follow(&bytes[..cut], |_| Ok(()));
            let (start, result) =
                if first.is_err() { (0, first) } else { (cut, follower.follow(&bytes[cut..], |_| Ok(()))) };
            let (before, reason) = result.unwrap_err();
            assert_eq!(reason, Reason::FRAME_SIZE_ERROR);
            // What of the head was let through before is all that can be.
            assert!(
                start + before == 24 || (start > 24 && start < 33 && before == 0),
                "cut at {cut}: {start} {before}"
            );
        }
    }

    #[test]
    fn pseudo_fields_are_found_in_trailers() {
        let text = |text: &[u8]| [&[text.len() as u8][..], text].concat();
        let plain = [&[0x10][..], &text(b"x-sum"), &text(&[b'y'; 200][..100])].concat();
        let long = [&[0x40][..], &text(b"x"), &[0x7f, 0x80, 0x01], &[b'z'; 255]].concat();
        for (what, field, is_pseudo) in [
            ("nothing", vec![], false),
            ("letters", [&[0x10][..], &text(b":path"), &text(b"/")].concat(), true),
            ("packed letters", vec![0x40, 0x82, 0xb9, 0x58, 0x00], true),
            ("a place in the table", vec![0x82], true),
            ("a name's place in the table", [&[0x44][..], &text(b"/")].concat(), true),
            ("a name's place, never indexed", [&[0x14][..], &text(b"/")].concat(), true),
            ("another place", vec![0x8f, 0xbe, 0xff, 0x01], false),
            ("another name's place", [&[0x0f, 0x03][..], &text(b"a")].concat(), false),
            ("a table's size", vec![0x2e], false),
        ] {
            for before in [&plain[..], &long, &[]] {
                assert_eq!(has_pseudo_field(&[before, &field].concat()), is_pseudo, "{what}");
            }
        }
        let block = [&plain[..], &[0x82]].concat();
        let headers = |flags: u8, payload: &[u8]| {
            let mut bytes = frame(payload.len(), HEADERS, flags);
            bytes[9..].copy_from_slice(payload);
            bytes
        };
        let rest = |payload: &[u8]| {
            let mut bytes = frame(payload.len(), CONTINUATION, END_HEADERS);
            bytes[9..].copy_from_slice(payload);
            bytes
        };
        let padded = [&[2, 0, 0, 0, 0, 16][..], &block, &[0, 0]].concat();
        let start = [PREFACE.to_vec(), frame(0, SETTINGS, 0), headers(END_HEADERS, &[0x82])].concat();
        for trailers in [
            headers(END_HEADERS | END_STREAM, &block),
            headers(END_HEADERS | END_STREAM | PADDED | PRIORITIZED, &padded),
            [headers(END_STREAM, &block[..3]), rest(&block[3..])].concat(),
            [headers(END_STREAM, &[]), rest(&block)].concat(),
        ] {
            for step in [1, 5, 1000] {
                let mut follower = Follower::new(true);
                let bytes = [&start[..], &trailers].concat();
                let judged = bytes.chunks(step).try_for_each(|piece| follower.follow(piece, |_| Ok(())));
                assert_eq!(judged.map_err(|(_, reason)| reason), Err(Reason::PROTOCOL_ERROR), "in steps of {step}");
            }
            let mut follower = Follower::new(false);
            let bytes = [&start[PREFACE.len()..], &trailers].concat();
            assert_eq!(follower.follow(&bytes, |_| Ok(())), Ok(()), "of a backend");
        }
    }

    #[test]
    fn lengths_and_the_first_frame_are_looked_at() {
        let judge = |frames: &[Vec<u8>]| {
            Follower::new(false).follow(&frames.concat(), |_| Ok(())).map_err(|(_, reason)| reason)
        };
        for kind in [DATA, HEADERS, PRIORITY, RST_STREAM, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION, 0xee] {
            assert_eq!(judge(&[frame(8, kind, 0)]), Err(Reason::PROTOCOL_ERROR), "{kind} first");
        }
        assert_eq!(judge(&[frame(0, SETTINGS, ACK)]), Err(Reason::PROTOCOL_ERROR));
        for (length, kind, flags, is_right) in [
            (6, SETTINGS, ACK, false),
            (7, SETTINGS, 0, false),
            (12, SETTINGS, 0, true),
            (8, PING, ACK, true),
            (9, PING, 0, false),
            (4, RST_STREAM, 0, true),
            (5, RST_STREAM, 0, false),
            (3, WINDOW_UPDATE, 0, false),
            (5, PRIORITY, 0, true),
            (4, PRIORITY, 0, false),
            (7, GOAWAY, 0, false),
            (20, GOAWAY, 0, true),
            (16384, DATA, 0, true),
            (16385, DATA, 0, false),
            (16385, 0xee, 0, false),
        ] {
            let judged = judge(&[frame(0, SETTINGS, 0), frame(length, kind, flags)]);
            assert_eq!(judged, if is_right { Ok(()) } else { Err(Reason::FRAME_SIZE_ERROR) }, "{kind} of {length}");
        }
    }
}
