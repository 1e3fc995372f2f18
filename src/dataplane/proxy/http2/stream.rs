//! One request of a client's: where its body comes from and where its response goes.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, request};
use tokio::time::{Instant, Sleep};

use super::client::{Open, Session};
use super::exchange::read_lines;
use super::gate::{self, Refusal};
use super::intake::Intake;
use super::stock::{Held, Piece};
use crate::proxy::alarm::Alarm;
use crate::proxy::forward::{self, Client, End, Front, Miss, Request};
use crate::proxy::http1::buffer::consume;
use crate::proxy::http1::chunked::{Output, put_chunk, put_end};
use crate::proxy::http1::fields::{HSTS, Via, put_response_fields};
use crate::proxy::http1::head::{HeadLimits, Length, ResponseHead};
use crate::proxy::http1::put_date;
use crate::proxy::page::Page;

/// The largest piece of a body that is handed over at once: a frame.
const PIECE_BYTES: usize = super::FRAME_BYTES_MAX as usize;
/// What trailers may take, as of HTTP/1.1.
const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// Has a request answered.
pub(super) async fn run(mut exchange: Exchange, request: Box<Request>) {
    let session = Rc::clone(&exchange.open.session);
    // What was given up before anybody looked at it never was a request.
    if poll_fn(|cx| Poll::Ready(exchange.poll_reset(cx).is_ready())).await {
        return;
    }
    if exchange.is_empty_body_open && exchange.wait_for_end().await.is_err() {
        return;
    }
    let client = Client {
        worker: &session.worker,
        config: &session.config,
        peer: session.peer,
        port: session.port,
        way: session.way.clone(),
    };
    let body = Rc::clone(&exchange.body);
    let answered = {
        // The body is taken in whatever the answer waits for: a connection to a backend, say.
        let mut answering = pin!(forward::answer(&client, &mut exchange, &request));
        poll_fn(|cx| {
            body.borrow_mut().fill(cx);
            answering.as_mut().poll(cx)
        })
        .await
    };
    match answered {
        Ok(End::Whole) => {}
        Ok(End::Broken(Miss::Offence(_))) => return exchange.reset(Reason::PROTOCOL_ERROR),
        Ok(End::Broken(Miss::ClientGone) | End::Gone) => return,
        // The protocol of a stream does not change.
        Ok(End::Broken(_) | End::Switched(_)) => exchange.reset(Reason::INTERNAL_ERROR),
        Err(Page::NoRoute) => match client.elsewhere(&request) {
            Some(place) => {
                let page = if request.is_question() { Page::Moved } else { Page::MovedAsItIs };
                exchange.send_page(page, Some(&place));
            }
            None => exchange.send_page(Page::NoRoute, None),
        },
        Err(page) => exchange.send_page(page, None),
    }
    let bytes = exchange.open.header_bytes;
    session.wire.count(|meter| meter.answered(bytes));
}

/// A request and its response, as the engine and the way to a backend see it.
pub(super) struct Exchange {
    open: Open,
    body: Rc<RefCell<Intake>>,
    is_body_read: bool,
    /// Its end is all that may come, and has not come yet.
    is_empty_body_open: bool,
    is_head: bool,
    /// Whether a backend of HTTP/1.1 gets it in chunks.
    is_chunked: bool,
    /// What is left of a body of known length.
    unread: u64,
    /// The last of it, until it is certain that no more comes: nobody is to see a whole request that is none.
    last: Bytes,
    /// What waits for the backend.
    piece: Bytes,
    /// What the client may send again when that has been taken.
    owed: usize,
    is_body_held: bool,
    respond: SendResponse<Piece>,
    /// None as long as no response has begun.
    send: Option<SendStream<Piece>>,
    held: Held,
    /// What is left of a response of known length.
    left: Option<u64>,
    is_ended: bool,
    alarm: Option<Alarm<Box<Sleep>>>,
}

impl Exchange {
    /// A request that may be passed on. One that may not is answered at once, with a page or with a reset.
    pub(super) fn new(
        open: Open,
        parts: &request::Parts,
        body: RecvStream,
        mut respond: SendResponse<Piece>,
    ) -> Result<(Self, Box<Request>), ()> {
        let session = &open.session;
        let is_whole = body.is_end_stream();
        let cookies = gate::join_cookies(&parts.headers);
        let fields = gate::list(&parts.headers, cookies.as_ref());
        let head = match gate::read(parts, &fields, is_whole, &HeadLimits::from(&session.config.limits)) {
            Ok(head) => head,
            Err(Refusal::Malformed) => {
                respond.send_reset(Refusal::REASON);
                return Err(());
            }
            Err(Refusal::Page(page)) => {
                send_page(session, &mut respond, page, None, parts.method == http::Method::HEAD);
                return Err(());
            }
        };
        let via = Via { client: &session.forwarded_for, is_trusted: session.is_trusted, is_tls: session.is_tls() };
        let mut request = Box::new(Request::new(&head, &via));
        request.tighten();
        let exchange = Self {
            is_body_read: is_whole,
            is_empty_body_open: !is_whole && matches!(head.length, Length::None | Length::Known(0)),
            is_head: request.is_head(),
            is_chunked: head.length == Length::Chunked,
            unread: if let Length::Known(length) = head.length { length } else { 0 },
            last: Bytes::new(),
            piece: Bytes::new(),
            owed: 0,
            is_body_held: head.expects_continue,
            body: Rc::new(RefCell::new(Intake::new(body))),
            respond,
            send: None,
            held: Held::new(&open.session.stock),
            left: None,
            is_ended: false,
            alarm: None,
            open,
        };
        Ok((exchange, request))
    }

    /// The end of a body that is to be empty.
    async fn wait_for_end(&mut self) -> Result<(), ()> {
        let deadline = Instant::now() + self.open.session.config.timeouts.header;
        let reading = poll_fn(|cx| self.poll_piece(cx));
        match tokio::time::timeout_at(deadline, reading).await {
            Ok(Ok(())) if self.piece.is_empty() => Ok(()),
            Ok(Ok(())) => {
                self.send_page(gate::NO_BODY, None);
                Err(())
            }
            Ok(Err(_)) => Err(()),
            Err(_) => {
                self.reset(Reason::CANCEL);
                Err(())
            }
        }
    }

    /// Ready when a piece of the body, framed, or its end is there.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Miss>> {
        while self.piece.is_empty() && !self.is_body_read {
            let mut body = self.body.borrow_mut();
            match ready!(body.poll_piece(cx)).map_err(|_| Miss::ClientGone)? {
                Some(bytes) => {
                    self.is_body_held = false;
                    self.owed = bytes.len();
                    if self.is_chunked {
                        let mut chunk = Vec::with_capacity(bytes.len() + 12);
                        put_chunk(&mut chunk, &bytes);
                        self.piece = Bytes::from(chunk);
                        continue;
                    }
                    self.unread = self.unread.saturating_sub(bytes.len() as u64);
                    let is_last = self.unread == 0 && !body.is_end();
                    *(if is_last { &mut self.last } else { &mut self.piece }) = bytes;
                }
                None => {
                    let trailers = ready!(body.poll_trailers(cx)).map_err(|_| Miss::ClientGone)?;
                    self.is_body_read = true;
                    self.piece = match self.is_chunked {
                        true => last_chunk(trailers.as_ref()).map_err(Miss::Offence)?,
                        false => std::mem::take(&mut self.last),
                    };
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn reset(&mut self, reason: Reason) {
        match &mut self.send {
            Some(send) => send.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }

    fn send_page(&mut self, page: Page, place: Option<&str>) {
        send_page(&self.open.session, &mut self.respond, page, place, self.is_head);
    }

    /// Whether the client has given this up, or is gone.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_ended {
            return Poll::Pending;
        }
        match &mut self.send {
            Some(send) => send.poll_reset(cx).map(drop),
            None => self.respond.poll_reset(cx).map(drop),
        }
    }
}

impl Front for Exchange {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<&[u8], Miss>> {
        ready!(self.poll_piece(cx))?;
        Poll::Ready(Ok(&self.piece))
    }

    fn take_body(&mut self, count: usize) {
        consume(&mut self.piece, count);
        if self.piece.is_empty() {
            self.body.borrow_mut().passed_on(std::mem::take(&mut self.owed));
        }
    }

    fn is_body_done(&self) -> bool {
        self.is_body_read && self.piece.is_empty()
    }

    fn is_body_held(&self) -> bool {
        self.is_body_held
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_reset(cx)
    }

    fn interim(&mut self, head: &ResponseHead<'_, '_>) {
        self.is_body_held &= head.status != 100;
        if let Ok(status) = StatusCode::from_u16(head.status) {
            let mut response = Response::new(());
            *response.status_mut() = status;
            put_fields(head, response.headers_mut());
            let _ = self.respond.send_informational(response);
        }
    }

    fn begin(&mut self, head: &ResponseHead<'_, '_>, length: Length) -> Output {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
        if !put_fields(head, response.headers_mut()) {
            put_our_date(response.headers_mut());
        }
        if let Some(hsts) = self.open.session.hsts().and_then(|hsts| HeaderValue::from_str(hsts).ok()) {
            response.headers_mut().insert(HeaderName::from_static(HSTS), hsts);
        }
        if let (Length::Known(said), true) = (head.length, head.status != 204) {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(said));
        }
        count_response(&self.open.session, head.status);
        self.open.session.wire.count(|meter| meter.sent(0));
        self.is_ended = matches!(length, Length::None | Length::Known(0));
        self.left = if let Length::Known(left) = length { Some(left) } else { None };
        // An error is met again when the body is sent.
        self.send = self.respond.send_response(response, self.is_ended).ok();
        Output::Plain
    }

    fn switch(&mut self, _head: &ResponseHead<'_, '_>) {}

    fn head_room(&self) -> usize {
        self.open.session.stock.head_room()
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stock = &self.open.session.stock;
        ready!(stock.poll_room(cx));
        match &mut self.send {
            // One byte of the connection's window is all that is held for a backend that may take its time.
            Some(send) if !self.is_ended => poll_capacity(send, 1, cx).map_ok(|_| stock.room()),
            _ => Poll::Ready(Ok(stock.room())),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let send = self.send.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        // What was read is not less if it is not handed over.
        self.held.set(bytes.len());
        let wanted = bytes.len().min(PIECE_BYTES);
        let count = ready!(poll_capacity(send, wanted, cx))?.min(wanted);
        self.held.set(bytes.len() - count);
        let piece =
            Piece::new(Bytes::copy_from_slice(bytes.get(..count).unwrap_or_default()), &self.open.session.stock);
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(count as u64);
            self.is_ended = *left == 0;
        }
        send.send_data(piece, self.is_ended).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.open.session.wire.count(|meter| meter.sent(count));
        Poll::Ready(Ok(count))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The engine writes by itself. What is to be found out here is whether anybody still wants it.
        match self.poll_reset(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>, trailers: &[u8]) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.is_ended, true) {
            let send = self.send.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
            let trailers = read_lines(trailers);
            let sent = if trailers.is_empty() {
                send.send_data(Piece::new(Bytes::new(), &self.open.session.stock), true)
            } else {
                send.send_trailers(trailers)
            };
            sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.open.session.wire.count(|meter| meter.sent(0));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.alarm.get_or_insert_with(|| Alarm::boxed(deadline)).poll(cx, deadline)
    }
}

/// What may be sent now: some of what is `wanted`, or more.
fn poll_capacity(send: &mut SendStream<Piece>, wanted: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    send.reserve_capacity(wanted);
    match send.capacity() {
        0 => match ready!(send.poll_capacity(cx)) {
            Some(Ok(room)) => Poll::Ready(Ok(room)),
            Some(Err(_)) | None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        },
        room => Poll::Ready(Ok(room)),
    }
}

fn count_response(session: &Session, status: u16) {
    if let Some(class) = session.worker.shared.counters.responses.get(usize::from(status / 100)) {
        class.inc();
    }
}

/// `place` is where the client is sent.
fn send_page(session: &Session, respond: &mut SendResponse<Piece>, page: Page, place: Option<&str>, is_head: bool) {
    session.worker.count(page);
    count_response(session, page.status());
    let text = Bytes::from(format!("{}: {}\n", page.status(), page.text()));
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(page.status()).unwrap_or_default();
    let fields = response.headers_mut();
    fields.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    fields.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    put_our_date(fields);
    if let Some((name, value)) = page.field() {
        fields.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    for (name, value) in [("location", place), (HSTS, session.hsts())] {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            fields.insert(HeaderName::from_static(name), value);
        }
    }
    // Who does not hear it is gone.
    if let Ok(mut send) = respond.send_response(response, is_head)
        && !is_head
    {
        let _ = send.send_data(Piece::new(text, &session.stock), true);
    }
}

fn put_our_date(fields: &mut HeaderMap) {
    let mut line = Vec::new();
    put_date(&mut line);
    if let Some(date) = line.strip_prefix(b"date: ").and_then(|line| line.strip_suffix(b"\r\n"))
        && let Ok(date) = HeaderValue::from_bytes(date)
    {
        fields.insert(DATE, date);
    }
}

/// The fields of a backend's response; whether there was a date.
fn put_fields(head: &ResponseHead<'_, '_>, fields: &mut HeaderMap) -> bool {
    put_response_fields(head, |field| {
        let (name, value) = (HeaderName::from_bytes(field.name.as_bytes()), HeaderValue::from_bytes(field.value));
        if let (Ok(name), Ok(value)) = (name, value) {
            fields.append(name, value);
        }
    })
}

/// The end of a body in chunks, with those trailers that may be passed on.
fn last_chunk(trailers: Option<&HeaderMap>) -> Result<Bytes, &'static str> {
    let fields = || trailers.into_iter().flatten();
    if !fields().all(|(_, value)| gate::is_value(value)) {
        return Err("a trailer has white space around it");
    }
    let mut chunk = Vec::new();
    put_end(&mut chunk, fields().map(|(name, value)| (name.as_str(), value.as_bytes())));
    if chunk.len() > TRAILER_BYTES_MAX { Err("trailers are too long") } else { Ok(Bytes::from(chunk)) }
}
