//! Entry points for tests and the fuzzer: what the gates make of bytes, with no connection around them.

use std::mem::MaybeUninit;

use super::chunked::{Decoder, Output};
use super::fields::{Via, write_request};
use super::head::{FIELDS_INLINE, HeadLimits, Length, Scan, parse_request, parse_response};
use crate::proxy::Limits;
use crate::proxy::page::Page;

/// How the body behind a head is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    None,
    /// So many bytes.
    Known(u64),
    /// Chunks.
    Chunked,
    /// To the end of the connection.
    UntilClose,
}

impl From<Length> for Body {
    fn from(length: Length) -> Self {
        match length {
            Length::None => Self::None,
            Length::Known(length) => Self::Known(length),
            Length::Chunked => Self::Chunked,
            Length::UntilClose => Self::UntilClose,
        }
    }
}

/// A request that is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// How long the head is, empty lines before it not counted.
    pub head_bytes: usize,
    /// How the body behind it is framed.
    pub body: Body,
    /// Whether another request may follow.
    pub keeps_alive: bool,
    /// The head as a backend gets it.
    pub forwarded: Vec<u8>,
}

/// A response that is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// How long the head is.
    pub head_bytes: usize,
    /// Its status.
    pub status: u16,
    /// How the body behind it is framed, as its fields say.
    pub body: Body,
    /// Whether the connection stays.
    pub keeps_alive: bool,
}

/// Judges the first request in `bytes`, as a client's connection does: none if its head is not whole yet.
///
/// # Errors
/// The status with which it is refused.
pub fn judge_request(bytes: &[u8], limits: &Limits) -> Result<Option<Request>, u16> {
    let limits = HeadLimits::from(limits);
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let mut scan = Scan::default();
    let Some(end) = scan.find_request(bytes, &limits).map_err(Page::status)? else {
        return Ok(None);
    };
    let mut room = vec![MaybeUninit::uninit(); limits.header_fields.max(FIELDS_INLINE)];
    let head = parse_request(&bytes[..end], &mut room, &limits, false).map_err(Page::status)?;
    let mut forwarded = Vec::new();
    write_request(&head, &Via { client: "192.0.2.1", is_trusted: false, is_tls: false }, &mut forwarded);
    Ok(Some(Request { head_bytes: end, body: head.length.into(), keeps_alive: head.keeps_alive, forwarded }))
}

/// Judges the first response in `bytes`, as a backend's connection does: none if its head is not whole yet.
///
/// # Errors
/// Why it is refused.
pub fn judge_response(bytes: &[u8]) -> Result<Option<Response>, &'static str> {
    let Some(end) = Scan::default().find(bytes)? else {
        return Ok(None);
    };
    let mut room = [const { MaybeUninit::uninit() }; FIELDS_INLINE];
    let head = parse_response(&bytes[..end], &mut room)?;
    let (status, body, keeps_alive) = (head.status, head.length.into(), head.keeps_alive);
    Ok(Some(Response { head_bytes: end, status, body, keeps_alive }))
}

/// What comes out of a body in chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dechunked {
    /// The body, framed anew or plain.
    pub bytes: Vec<u8>,
    /// Its trailers as lines, if it is plain.
    pub trailers: Vec<u8>,
    /// How much of the input it took.
    pub consumed: usize,
    /// Whether it has ended.
    pub is_done: bool,
}

/// Reads a body in chunks that arrives in pieces.
///
/// # Errors
/// Why it is refused.
pub fn dechunk(pieces: &[&[u8]], is_framed: bool) -> Result<Dechunked, &'static str> {
    let mut decoder = Decoder::new(if is_framed { Output::Framed } else { Output::Plain });
    let (mut waiting, mut bytes, mut consumed) = (Vec::new(), Vec::new(), 0);
    for piece in pieces {
        waiting.extend_from_slice(piece);
        let step = decoder.step(&mut waiting)?;
        bytes.extend_from_slice(&waiting[..step.produced]);
        waiting.drain(..step.consumed);
        consumed += step.consumed;
    }
    Ok(Dechunked { bytes, trailers: decoder.trailers().to_vec(), consumed, is_done: decoder.is_done() })
}
