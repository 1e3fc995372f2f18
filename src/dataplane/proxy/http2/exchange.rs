//! One request and its response over a stream to a backend, both directions at once.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri};
use tokio::time::Instant;

use super::intake::Intake;
use super::links::{self, Ticket};
use crate::proxy::forward::{Answered, Attempt, Front, Miss};
use crate::proxy::http1::buffer::consume;
use crate::proxy::http1::chunked::{Decoder, Output};
use crate::proxy::http1::fields::{may_trail, put_field};
use crate::proxy::http1::head::{Field, Length, ResponseHead};
use crate::proxy::pace::Pace;

/// Connections that one request is tried on before its backend counts as one that cannot be reached: all that there are
/// may have been closed while they were idle.
const LINKS_MAX: usize = links::LINKS_MAX + 1;
/// Fields of a request as we write it: those of a client and a few of ours.
const FIELDS_MAX: usize = 160;
/// Interim responses (1xx) before the one that counts.
const INTERIM_MAX: usize = 16;
/// The largest piece of a body that is handed over at once: a frame.
const PIECE_BYTES: usize = super::FRAME_BYTES_MAX as usize;

/// Has the backend of `attempt` answer.
pub(in crate::proxy) async fn run<F: Front>(attempt: &mut Attempt<'_>, front: &mut F) -> Result<Answered, Miss> {
    for _ in 0..LINKS_MAX {
        let (worker, lease) = (attempt.client.worker, attempt.lease);
        let mut ticket = worker.links.take(lease.backend(), Box::pin(attempt.connect())).await.ok_or(Miss::Unsent)?;
        if poll_fn(|cx| ticket.sender.poll_ready(cx)).await.is_err() {
            ticket.link.leave();
            continue;
        }
        let (request, up) = Up::of(attempt.request.bytes()).ok_or(Miss::Unsent)?;
        let is_whole = matches!(up.body, Coding::None);
        let Ok((response, send)) = ticket.sender.send_request(request, is_whole) else {
            ticket.link.leave();
            continue;
        };
        ticket.link.wire.count(|meter| meter.sent(0));
        let now = Instant::now();
        let pace = Pace::new(attempt.request.is_upload(), attempt.client.config.timeouts.body_progress);
        let mut exchange = Exchange {
            attempt,
            front,
            ticket,
            up,
            send,
            down: Down::Head(response),
            interims: 0,
            response_bytes: 0,
            is_clients_turn: false,
            pace,
            began: now,
            since: now,
            has_moved: false,
            is_over: false,
        };
        match poll_fn(|cx| exchange.poll(cx)).await {
            Err(miss) if exchange.may_begin_anew(miss) => exchange.ticket.link.leave(),
            ended => return ended,
        }
    }
    Err(Miss::Unsent)
}

struct Exchange<'x, 'a, F> {
    attempt: &'x mut Attempt<'a>,
    front: &'x mut F,
    ticket: Ticket,
    up: Up,
    send: SendStream<Bytes>,
    down: Down,
    interims: usize,
    /// What its heads and trailers took, unpacked.
    response_bytes: usize,
    /// Whose turn it is as long as no response has begun.
    is_clients_turn: bool,
    pace: Pace,
    began: Instant,
    since: Instant,
    has_moved: bool,
    /// Whether it was the connection's end that came instead of a response.
    is_over: bool,
}

/// The request's way.
struct Up {
    body: Coding,
    /// Bytes of the body as HTTP/1.1 frames them, not yet looked at.
    raw: Vec<u8>,
    /// Bytes of the body that wait to be sent.
    ready: Bytes,
    /// Whether anything of the body was taken from the front, so that it cannot be sent to another.
    has_taken: bool,
    is_done: bool,
}

/// How the body comes from the front.
enum Coding {
    None,
    Plain,
    Chunks(Box<Decoder>),
}

/// The response's way.
enum Down {
    Head(ResponseFuture),
    Body { body: Intake, piece: Bytes, trailers: Vec<u8>, is_read: bool },
}

impl Up {
    /// A request as it is written for HTTP/1.1, in the words of HTTP/2.
    fn of(bytes: &[u8]) -> Option<(http::Request<()>, Self)> {
        let mut room = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut head = httparse::Request::new(&mut []);
        let Ok(httparse::Status::Complete(end)) = head.parse_with_uninit_headers(bytes, &mut room) else {
            return None;
        };
        let mut request = http::Request::new(());
        *request.method_mut() = Method::from_bytes(head.method?.as_bytes()).ok()?;
        let (mut body, mut host) = (Coding::None, &b""[..]);
        for field in head.headers.iter() {
            match field.name {
                "host" => host = field.value,
                "transfer-encoding" => body = Coding::Chunks(Box::new(Decoder::new(Output::Plain))),
                "connection" | "upgrade" => {}
                name => {
                    if name == "content-length" && field.value != b"0" {
                        body = Coding::Plain;
                    }
                    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
                    request.headers_mut().append(name, HeaderValue::from_bytes(field.value).ok()?);
                }
            }
        }
        let uri = Uri::builder().scheme("http").authority(host).path_and_query(target(head.path?)?);
        *request.uri_mut() = uri.build().ok()?;
        *request.version_mut() = http::Version::HTTP_2;
        let raw = bytes.get(end..).unwrap_or_default().to_vec();
        let is_done = matches!(body, Coding::None);
        Some((request, Self { body, raw, ready: Bytes::new(), has_taken: false, is_done }))
    }

    /// Takes what was framed out of its frame.
    fn decode(&mut self) -> Result<(), Miss> {
        if self.raw.is_empty() || !self.ready.is_empty() {
            return Ok(());
        }
        match &mut self.body {
            Coding::None => self.raw.clear(),
            Coding::Plain => self.ready = Bytes::from(std::mem::take(&mut self.raw)),
            Coding::Chunks(decoder) => {
                let step = decoder.step(&mut self.raw).map_err(Miss::Offence)?;
                self.ready = Bytes::copy_from_slice(self.raw.get(..step.produced).unwrap_or_default());
                self.raw.drain(..step.consumed.min(self.raw.len()));
                if self.raw.is_empty() {
                    self.raw = Vec::new();
                }
            }
        }
        Ok(())
    }
}

impl<F: Front> Exchange<'_, '_, F> {
    /// Moves what can be moved. An error as long as no response has begun; later it is one that broke off.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answered, Miss>> {
        let is_waiting = matches!(self.down, Down::Head(_));
        let mut polled = match self.attempt.look(cx, is_waiting) {
            Some(miss) => Poll::Ready(Err(miss)),
            None => self.poll_both(cx),
        };
        if polled.is_pending() {
            polled = self.poll_deadline(cx).map(Err);
        }
        match polled {
            Poll::Ready(Ok(())) => {
                let bytes = self.attempt.request.bytes().len() + self.response_bytes;
                self.ticket.link.wire.count(|meter| meter.answered(bytes));
                Poll::Ready(Ok(Answered::Whole))
            }
            Poll::Ready(Err(miss)) if matches!(self.down, Down::Head(_)) => {
                // Where nothing at all was heard, others are not to wait as long.
                let is_in_doubt = matches!(miss, Miss::BackendSlow | Miss::Doubted);
                if is_in_doubt && self.ticket.link.wire.heard() < self.began {
                    self.ticket.link.leave();
                }
                Poll::Ready(Err(miss))
            }
            Poll::Ready(Err(miss)) => {
                let _ = self.front.poll_flush(cx);
                Poll::Ready(Ok(Answered::Broken(miss)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Miss>> {
        if let Poll::Ready(Err(miss)) = self.poll_up(cx) {
            return Poll::Ready(Err(miss));
        }
        let polled = self.poll_down(cx);
        if polled.is_pending() && self.up.is_done && self.front.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Miss::ClientGone));
        }
        polled
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Miss> {
        let timeouts = &self.attempt.client.config.timeouts;
        if std::mem::take(&mut self.has_moved) {
            let now = Instant::now();
            self.pace.turn(now - self.since, self.is_clients_turn);
            self.since = now;
        }
        let (wait, miss) = match self.down {
            Down::Head(_) if self.is_clients_turn => (self.pace.left(), Miss::ClientSlow),
            Down::Head(_) => (timeouts.response, Miss::BackendSlow),
            Down::Body { .. } => (timeouts.body_progress, Miss::BackendSlow),
        };
        self.front.poll_deadline(cx, self.since + wait).map(|()| miss)
    }

    /// Ready when there is nothing more to send.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Miss>> {
        while !self.up.is_done {
            self.up.decode()?;
            if !self.up.ready.is_empty() {
                let wanted = self.up.ready.len().min(PIECE_BYTES);
                let mut room = self.send.capacity();
                if room == 0 {
                    self.send.reserve_capacity(wanted);
                    room = match ready!(self.send.poll_capacity(cx)) {
                        Some(Ok(room)) => room,
                        // It takes no more; it may have answered all the same.
                        Some(Err(_)) | None => {
                            self.up.is_done = true;
                            break;
                        }
                    };
                }
                let piece = self.up.ready.split_to(room.min(wanted));
                self.ticket.link.wire.count(|meter| meter.sent(piece.len()));
                self.up.is_done = self.send.send_data(piece, false).is_err();
                self.has_moved = true;
                continue;
            }
            let is_over = match &self.up.body {
                Coding::Chunks(decoder) => decoder.is_done(),
                Coding::None | Coding::Plain => self.front.is_body_done(),
            };
            if is_over {
                self.ticket.link.wire.count(|meter| meter.sent(0));
                let sent = match &self.up.body {
                    Coding::Chunks(decoder) if !decoder.trailers().is_empty() => {
                        self.send.send_trailers(read_lines(decoder.trailers()))
                    }
                    _ => self.send.send_data(Bytes::new(), true),
                };
                let _ = sent;
                self.up.is_done = true;
                self.has_moved |= std::mem::take(&mut self.is_clients_turn);
                break;
            }
            match self.front.poll_body(cx)? {
                Poll::Ready(bytes) => {
                    let count = bytes.len().min(PIECE_BYTES);
                    self.up.raw.extend_from_slice(bytes.get(..count).unwrap_or_default());
                    self.up.has_taken |= count > 0;
                    self.front.take_body(count);
                    self.pace.pass(count);
                    self.has_moved |= std::mem::take(&mut self.is_clients_turn);
                    if count == 0 && !self.front.is_body_done() {
                        return Poll::Ready(Err(Miss::ClientGone));
                    }
                }
                Poll::Pending => {
                    let is_clients_turn = !self.front.is_body_held();
                    self.has_moved |= is_clients_turn != self.is_clients_turn;
                    self.is_clients_turn = is_clients_turn;
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the response has been handed over whole.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Miss>> {
        loop {
            match &mut self.down {
                Down::Head(response) => {
                    while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                        self.interims += 1;
                        self.response_bytes += field_bytes(interim.headers());
                        // Nobody has asked for another protocol.
                        let is_switch = interim.status() == StatusCode::SWITCHING_PROTOCOLS;
                        if is_switch || self.interims > INTERIM_MAX {
                            return Poll::Ready(Err(Miss::Nonsense));
                        }
                        with_head(&interim, Length::None, |head| self.front.interim(head));
                    }
                    let response = match Pin::new(response).poll(cx) {
                        Poll::Ready(Ok(response)) => response,
                        Poll::Ready(Err(error)) => {
                            let miss = self.miss(&error);
                            return Poll::Ready(Err(miss));
                        }
                        Poll::Pending => {
                            if let Poll::Ready(Err(_)) = self.front.poll_flush(cx) {
                                return Poll::Ready(Err(Miss::ClientGone));
                            }
                            return Poll::Pending;
                        }
                    };
                    self.begin(response)?;
                }
                Down::Body { body, piece, trailers, is_read } => {
                    // However slow the client is.
                    body.fill(cx);
                    if !piece.is_empty() {
                        let count = ready!(self.front.poll_send(cx, piece)).map_err(|_| Miss::ClientGone)?;
                        consume(piece, count);
                        body.passed_on(count);
                        self.has_moved = true;
                        continue;
                    }
                    if *is_read {
                        return self.front.poll_finish(cx, trailers).map_err(|_| Miss::ClientGone);
                    }
                    ready!(self.front.poll_room(cx)).map_err(|_| Miss::ClientGone)?;
                    match body.poll_piece(cx) {
                        Poll::Ready(Ok(Some(bytes))) => {
                            *piece = bytes;
                            self.has_moved = true;
                        }
                        Poll::Ready(Err(error)) if error.reason() == Some(Reason::NO_ERROR) && error.is_reset() => {
                            // It has said all, and wants no more of the request.
                            *is_read = true;
                        }
                        Poll::Ready(Err(_)) => return Poll::Ready(Err(Miss::Lost)),
                        Poll::Ready(Ok(None)) => {
                            if let Some(fields) = ready!(body.poll_trailers(cx)).map_err(|_| Miss::Lost)? {
                                self.response_bytes += field_bytes(&fields);
                                put_lines(&fields, trailers);
                            }
                            *is_read = true;
                        }
                        Poll::Pending => {
                            ready!(self.front.poll_flush(cx)).map_err(|_| Miss::ClientGone)?;
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }

    fn begin(&mut self, response: Response<RecvStream>) -> Result<(), Miss> {
        let status = response.status().as_u16();
        if status < 200 {
            return Err(Miss::Nonsense);
        }
        self.response_bytes += field_bytes(response.headers());
        let (parts, body) = response.into_parts();
        let response = Response::from_parts(parts, ());
        let is_without = self.attempt.request.is_head() || status == 204 || status == 304;
        let said = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        // What it says is of the body that a GET would have had, or of this one, which `h2` has checked.
        let said = said.map_or(Length::UntilClose, Length::Known);
        let length = match said {
            _ if is_without => Length::None,
            Length::UntilClose if body.is_end_stream() => Length::Known(0),
            said => said,
        };
        with_head(&response, said, |head| self.front.begin(head, length));
        // What comes behind a response that has no body is nobody's: it would be taken for the next response. The stream
        // is reset if there is any.
        let body = Intake::new(body);
        self.down = Down::Body { body, piece: Bytes::new(), trailers: Vec::new(), is_read: is_without };
        self.has_moved = false;
        self.since = Instant::now();
        self.attempt.lease.backend().load.succeeded(self.since.into());
        Ok(())
    }

    /// What an error means that came instead of a response.
    fn miss(&mut self, error: &h2::Error) -> Miss {
        // It says that nothing was done with it (RFC 9113, 8.7).
        let is_refused = error.reason() == Some(Reason::REFUSED_STREAM) && error.is_reset();
        let is_beyond = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
        self.is_over = !error.is_reset();
        match (is_refused || is_beyond, self.up.has_taken) {
            (true, false) => Miss::Unsent,
            _ => Miss::Lost,
        }
    }

    /// Whether the same backend may be asked again over another connection, since it was the connection's end that came
    /// between: one that the backend announced, or one that was closed just as the request was sent.
    fn may_begin_anew(&self, miss: Miss) -> bool {
        match miss {
            _ if !self.is_over => false,
            Miss::Unsent => true,
            Miss::Lost => !self.ticket.is_fresh && self.attempt.request.may_repeat(),
            _ => false,
        }
    }
}

/// A request's target as this protocol can say it: of what HTTP/1.1 takes, two characters have to be escaped, each in
/// its place.
fn target(text: &str) -> Option<PathAndQuery> {
    text.parse().or_else(|_| text.replace('`', "%60").replace('"', "%22").parse()).ok()
}

/// What fields take, unpacked.
pub(super) fn field_bytes(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// A response's head in its neutral form.
fn with_head<T>(response: &Response<()>, length: Length, look: impl FnOnce(&ResponseHead<'_, '_>) -> T) -> T {
    let fields: Vec<Field<'_>> = response
        .headers()
        .iter()
        .map(|(name, value)| Field { name: name.as_str(), value: value.as_bytes().trim_ascii() })
        .collect();
    look(&ResponseHead {
        status: response.status().as_u16(),
        reason: response.status().canonical_reason().unwrap_or_default().as_bytes(),
        text: &[],
        fields: &fields,
        names_fields: true,
        length,
        keeps_alive: true,
        upgrade: None,
    })
}

/// Trailers as lines, those that may be passed on.
fn put_lines(fields: &HeaderMap, lines: &mut Vec<u8>) {
    for (name, value) in fields.iter().filter(|(name, _)| may_trail(name.as_str())) {
        put_field(lines, name.as_str().as_bytes(), value.as_bytes());
    }
}

/// Trailers, from lines that have been looked at.
pub(super) fn read_lines(lines: &[u8]) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            trailers.append(name, value);
        }
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_of_http1_can_be_said() {
        for byte in (b'!'..=b'~').filter(|byte| !matches!(byte, b'#' | b'<' | b'>')) {
            for text in [format!("/a{}b", char::from(byte)), format!("/?a{}b", char::from(byte))] {
                let said = target(&text).unwrap();
                let escaped = text.replace(char::from(byte), &format!("%{byte:02X}"));
                assert!(said.as_str() == text || said.as_str() == escaped, "{text}: {said}");
            }
        }
        assert_eq!(target("*").unwrap(), "*");
    }
}
