//! A client's connection: requests in, one after another, and each one's response out.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::body::Body;
use super::buffer::{BUFFER_BYTES, Input, Queue};
use super::chunked::{Output, put_chunk};
use super::fields::{After, HSTS, Via, put_decimal, put_field, write_response};
use super::head::{FIELDS_INLINE, HeadLimits, Length, ResponseHead, Scan, parse_request};
use crate::name::Port;
use crate::proxy::alarm::Alarm;
use crate::proxy::clock::next_tick;
use crate::proxy::dial;
use crate::proxy::forward::{self, End, Front, Miss, Request};
use crate::proxy::http2::{self, PREFACE};
use crate::proxy::idle::Idler;
use crate::proxy::page::Page;
use crate::proxy::stream::Stream;
use crate::proxy::tls;
use crate::proxy::tunnel::Tunnel;
use crate::proxy::worker::{CountClosed, Settings, Worker};

/// Empty lines before a request that are passed over (RFC 9112, 2.2).
const EMPTY_LINES_MAX: u8 = 4;
/// After an answer to a client that is still sending: how long, and how much of it, is read before the close.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 64 * 1024);
/// Where nothing can be read from a client, it is looked so often whether its connection is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Serves one client connection to its end; what it begins with has been waited for since `since`.
pub(in crate::proxy) async fn serve(
    worker: Rc<Worker>,
    stream: Stream,
    peer: SocketAddr,
    port: Port,
    since: Instant,
    _counted: CountClosed,
) {
    let mut client = Client::new(worker, stream, peer, port, since);
    let fate = loop {
        let fate = match poll_fn(|cx| client.poll_next(cx)).await {
            Next::Closed => return,
            Next::Http2 => {
                let ahead = Bytes::copy_from_slice(client.input.filled());
                let Client { worker, stream, peer, port, .. } = client;
                return Box::pin(http2::serve(worker, stream, ahead, peer, port)).await;
            }
            Next::Refused(page) => Box::pin(client.refuse(page)).await,
            // On the heap while there is a request: an idle connection keeps no room for it.
            Next::Request(request) => Box::pin(client.respond(request)).await,
        };
        if fate != Fate::Kept {
            break fate;
        }
    };
    match fate {
        Fate::Kept | Fate::Closed => {}
        Fate::Lingers => Box::pin(client.linger()).await,
        Fate::Reset => dial::reset_on_close(client.stream.tcp()),
    }
}

/// What comes next on a connection.
enum Next {
    Request(Request),
    Refused(Page),
    /// HTTP/2, from the beginning.
    Http2,
    Closed,
}

/// What becomes of a connection behind a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It waits for the next request.
    Kept,
    Closed,
    /// It is closed when the client has had time to read: it may still be sending, and a close then is a reset, which
    /// could overtake the response.
    Lingers,
    /// It is closed so that nobody takes that for the end of the response.
    Reset,
}

struct Client {
    worker: Rc<Worker>,
    config: Rc<Settings>,
    stream: Stream,
    peer: SocketAddr,
    port: Port,
    way: tls::Client,
    forwarded_for: Box<str>,
    is_trusted: bool,
    alarm: Alarm<Box<Sleep>>,
    idler: Idler,
    /// When the next request was first waited for; but for the connection's first one, when its head had begun.
    since: Instant,
    /// Whether the next request is the connection's first one.
    is_first: bool,
    /// What was read ahead.
    input: Input,
    scan: Scan,
    empty_lines: u8,
    /// Whether nothing has come that HTTP/2 would not begin with.
    is_fresh: bool,
    /// Whether some of a request's head is there.
    has_begun: bool,
    /// The body of the request being served.
    body: Body,
    is_body_held: bool,
    is_http11: bool,
    /// The client will send nothing more on this connection.
    wants_close: bool,
    /// Whether another request may follow.
    keeps_alive: bool,
    /// When it is next looked whether the connection has broken, as long as nothing is read from it.
    look: Option<Instant>,
    /// What waits to be written.
    output: Queue,
    framing: Framing,
}

/// How a response's body goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// As it is handed over.
    AsItIs,
    /// In chunks made here.
    Chunks,
    /// As it is, and the connection's end is its end.
    UntilClose,
}

impl Client {
    fn new(worker: Rc<Worker>, stream: Stream, peer: SocketAddr, port: Port, since: Instant) -> Self {
        let config = worker.config();
        let address = peer.ip().to_canonical();
        Self {
            forwarded_for: address.to_string().into_boxed_str(),
            is_trusted: config.trusted_proxies.iter().any(|net| net.contains(&address)),
            alarm: Alarm::boxed(since + config.timeouts.first_byte),
            idler: Idler::new(&worker.idlers),
            since,
            is_first: true,
            input: Input::default(),
            scan: Scan::default(),
            empty_lines: 0,
            is_fresh: true,
            has_begun: false,
            body: Body::new(Length::None, Output::Framed),
            is_body_held: false,
            is_http11: true,
            wants_close: false,
            keeps_alive: true,
            look: None,
            output: Queue::default(),
            framing: Framing::AsItIs,
            worker,
            config,
            way: tls::Client::of(&stream),
            stream,
            peer,
            port,
        }
    }

    /// Waits for a request's head.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        loop {
            if let Some(is_whole) = self.read_preface() {
                if is_whole {
                    return Poll::Ready(Next::Http2);
                }
            } else {
                match self.read_head() {
                    Ok(Some(request)) => return Poll::Ready(Next::Request(request)),
                    Err(page) => return Poll::Ready(Next::Refused(page)),
                    Ok(None) => {}
                }
            }
            match self.input.poll_fill(cx, &mut self.stream) {
                Poll::Ready(Ok(1..)) => self.idler.begin(),
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::Closed),
                Poll::Pending => {
                    if self.input.is_empty() {
                        let is_to_go = self.worker.is_draining() || self.idler.is_told();
                        // A request may be there of which this task has not been told yet.
                        if is_to_go && !has_unread(&self.stream) {
                            return Poll::Ready(Next::Closed);
                        }
                        self.idler.wait(cx, self.since);
                    }
                    if !self.has_begun && (self.empty_lines > 0 || !self.input.is_empty()) {
                        // One deadline for the whole head.
                        self.has_begun = true;
                        if !self.is_first {
                            self.since = Instant::now();
                        }
                    }
                    return self.alarm.poll(cx, self.deadline()).map(|()| Next::Closed);
                }
            }
        }
    }

    /// When the connection is closed if no request has come by then.
    fn deadline(&self) -> Instant {
        let timeouts = &self.config.timeouts;
        self.since
            + match (self.is_first, self.has_begun) {
                (true, false) => timeouts.first_byte,
                (true, true) => timeouts.first_byte.max(timeouts.header),
                (false, false) => timeouts.idle,
                (false, true) => timeouts.header,
            }
    }

    /// It waits for the next request from now on.
    fn keep(&mut self) -> Fate {
        self.since = next_tick();
        self.is_first = false;
        Fate::Kept
    }

    /// Whether the connection begins as one of HTTP/2 does, as far as it has come: with the whole preface, or with some
    /// of it; none if it does not.
    fn read_preface(&mut self) -> Option<bool> {
        if !self.is_fresh {
            return None;
        }
        let bytes = self.input.filled();
        let count = bytes.len().min(PREFACE.len());
        self.is_fresh = bytes[..count] == PREFACE[..count];
        (self.is_fresh && count > 0).then_some(count == PREFACE.len())
    }

    /// The request whose head is there; none as long as it is not.
    fn read_head(&mut self) -> Result<Option<Request>, Page> {
        while let [b'\r', b'\n', ..] = self.input.filled()
            && self.scan.whole_lines() == 0
        {
            self.empty_lines += 1;
            if self.empty_lines > EMPTY_LINES_MAX {
                return Err(Page::BadRequest("there are empty lines before the request"));
            }
            self.input.consume(2);
            self.scan = Scan::default();
        }
        let bytes = self.input.filled();
        if bytes.is_empty() {
            return Ok(None);
        }
        let limits = HeadLimits::from(&self.config.limits);
        let Some(end) = self.scan.find_request(bytes, &limits)? else {
            if self.input.is_full() {
                self.input.grow(limits.header_bytes.saturating_add(BUFFER_BYTES));
            }
            return Ok(None);
        };
        self.worker.shared.counters.requests.inc();
        let bytes = bytes.get(..end).unwrap_or_default();
        let is_tls = self.stream.is_tls();
        let (mut inline, mut more);
        let room = if limits.header_fields <= FIELDS_INLINE {
            inline = [const { MaybeUninit::uninit() }; FIELDS_INLINE];
            &mut inline[..]
        } else {
            more = vec![MaybeUninit::uninit(); limits.header_fields];
            &mut more[..]
        };
        let head = parse_request(bytes, room, &limits, is_tls)?;
        let via = Via { client: &self.forwarded_for, is_trusted: self.is_trusted, is_tls };
        let mut request = Request::new(&head, &via);
        self.is_http11 = head.is_http11;
        self.keeps_alive = head.keeps_alive;
        self.wants_close = !head.keeps_alive;
        self.is_body_held = head.expects_continue && !matches!(head.length, Length::None | Length::Known(0));
        self.body = Body::new(head.length, Output::Framed);
        self.has_begun = false;
        self.empty_lines = 0;
        self.scan = Scan::default();
        self.input.consume(end);
        // A body that makes no sense is found out before anybody is told of the request.
        let ready = self.body.ready(&mut self.input).map_err(Page::BadRequest)?;
        if ready > 0 {
            request.push_body(self.input.filled().get(..ready).unwrap_or_default());
            self.body.take(&mut self.input, ready);
            self.is_body_held = false;
        }
        self.input.release();
        Ok(Some(request))
    }

    /// Has a request answered, by a backend or with a page.
    async fn respond(&mut self, request: Request) -> Fate {
        let (worker, config) = (Rc::clone(&self.worker), Rc::clone(&self.config));
        let way = self.way.clone();
        let client = forward::Client { worker: &worker, config: &config, peer: self.peer, port: self.port, way };
        match forward::answer(&client, self, &request).await {
            Ok(End::Whole) if self.keeps_alive && self.body.is_done() => self.keep(),
            // It said that nothing more comes from it, so that nothing can be lost.
            Ok(End::Whole) if self.wants_close && self.body.is_done() && !self.stream.is_tls() => Fate::Closed,
            Ok(End::Whole) => Box::pin(self.close()).await,
            Ok(End::Broken(Miss::ClientSlow | Miss::BackendSlow | Miss::Killed)) => Fate::Reset,
            Ok(End::Broken(_)) if self.framing == Framing::UntilClose => Fate::Reset,
            Ok(End::Broken(_) | End::Gone) => Fate::Closed,
            Ok(End::Switched(switched)) => {
                let (backend, lease) = *switched;
                let ahead = Bytes::copy_from_slice(self.input.filled());
                self.input = Input::default();
                Box::pin(Tunnel { backend, lease }.run(&worker.shared, &mut self.stream, ahead)).await;
                Fate::Closed
            }
            // In boxes of their own, since they are rare.
            Err(Page::NoRoute) => match client.elsewhere(&request) {
                Some(place) => {
                    let page = if request.is_question() { Page::Moved } else { Page::MovedAsItIs };
                    Box::pin(self.send_page(page, Some(&place), request.is_head())).await
                }
                None => Box::pin(self.send_page(Page::NoRoute, None, request.is_head())).await,
            },
            Err(page) => Box::pin(self.send_page(page, None, request.is_head())).await,
        }
    }

    /// Answers what is no request that can be taken: where the next one would begin is not sure.
    async fn refuse(&mut self, page: Page) -> Fate {
        self.keeps_alive = false;
        let is_head = self.input.filled().starts_with(b"HEAD ");
        self.send_page(page, None, is_head).await
    }

    /// `place` is where the client is sent.
    async fn send_page(&mut self, page: Page, place: Option<&str>, is_head: bool) -> Fate {
        self.worker.count(page);
        self.keeps_alive &= self.body.is_done() && !page.is_final() && !self.worker.is_draining();
        let after = self.after();
        self.count_response(page.status());
        let hsts = self.config.https.hsts.as_deref().filter(|_| self.stream.is_tls());
        let more = [("location", place), (HSTS, hsts)];
        page.write(is_head, after, &more, self.output.bytes());
        let deadline = Instant::now() + self.config.timeouts.body_progress;
        let flushed = poll_fn(|cx| match self.poll_flush(cx) {
            Poll::Pending => self.alarm.poll(cx, deadline).map(|()| false),
            Poll::Ready(flushed) => Poll::Ready(flushed.is_ok()),
        });
        if !flushed.await {
            return Fate::Closed;
        }
        if self.keeps_alive {
            return self.keep();
        }
        self.close().await
    }

    /// Says that nothing more comes; what the client still sends is then to be read for a while.
    async fn close(&mut self) -> Fate {
        let closing = poll_fn(|cx| Pin::new(&mut self.stream).poll_shutdown(cx));
        match tokio::time::timeout(LINGER.0, closing).await {
            Ok(Ok(())) => Fate::Lingers,
            _ => Fate::Closed,
        }
    }

    /// Reads a little of what a client still sends, so that the answer is not overtaken by a reset.
    async fn linger(&mut self) {
        let (time, bytes_max) = LINGER;
        let mut left = bytes_max;
        let reading = poll_fn(|cx| {
            loop {
                let waiting = self.input.filled().len();
                left = left.saturating_sub(waiting);
                self.input.consume(waiting);
                match ready!(self.input.poll_fill(cx, &mut self.stream)) {
                    Ok(1..) if left > 0 => {}
                    _ => return Poll::Ready(()),
                }
            }
        });
        let _ = tokio::time::timeout(time, reading).await;
    }

    /// What the client is told about its connection.
    fn after(&self) -> After {
        match (self.keeps_alive, self.is_http11) {
            (false, _) => After::Close,
            (true, true) => After::Silent,
            (true, false) => After::KeepAlive,
        }
    }

    fn count_response(&self, status: u16) {
        if let Some(class) = self.worker.shared.counters.responses.get(usize::from(status / 100)) {
            class.inc();
        }
    }
}

/// Whether something is there to be read, the end included.
fn has_unread(stream: &Stream) -> bool {
    SockRef::from(stream.tcp()).peek(&mut [MaybeUninit::uninit()]).is_ok()
}

/// Whether the connection has come to an end that nothing follows: a reset, most of all.
fn is_broken(stream: &Stream) -> bool {
    let mut asked = [PollFd::new(stream.tcp(), PollFlags::empty())];
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|found| found > 0)
}

impl Front for Client {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<&[u8], Miss>> {
        let ready = loop {
            let ready = self.body.ready(&mut self.input).map_err(Miss::Offence)?;
            if ready > 0 || self.body.is_done() {
                break ready;
            }
            match ready!(self.input.poll_fill(cx, &mut self.stream)) {
                Ok(1..) => self.is_body_held = false,
                Ok(0) | Err(_) => return Poll::Ready(Err(Miss::ClientGone)),
            }
        };
        Poll::Ready(Ok(self.input.filled().get(..ready).unwrap_or_default()))
    }

    fn take_body(&mut self, count: usize) {
        self.body.take(&mut self.input, count);
        self.input.release();
    }

    fn is_body_done(&self) -> bool {
        self.body.is_done()
    }

    fn is_body_held(&self) -> bool {
        self.is_body_held
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // What comes meanwhile is kept for later, as far as there is room for it.
        while !self.input.is_full() {
            if let Ok(0) | Err(_) = ready!(self.input.poll_fill(cx, &mut self.stream)) {
                return Poll::Ready(());
            }
        }
        self.poll_broken(cx)
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let look = *self.look.get_or_insert_with(|| Instant::now() + LOOK_AGAIN);
            ready!(self.alarm.poll(cx, look));
            self.look = None;
            if is_broken(&self.stream) {
                return Poll::Ready(());
            }
        }
    }

    fn interim(&mut self, head: &ResponseHead<'_, '_>) {
        // For a client of HTTP/1.0 there is no such thing.
        if self.is_http11 {
            self.is_body_held &= head.status != 100;
            write_response(head, Length::None, After::Silent, None, |_| {}, self.output.bytes());
        }
    }

    fn begin(&mut self, head: &ResponseHead<'_, '_>, length: Length) -> Output {
        self.count_response(head.status);
        let is_new = self.is_http11;
        let (said, framing, output) = match (length, head.length) {
            // Of a response to HEAD, and of one that says that nothing has changed, the length is another one's.
            (Length::None, Length::Known(_)) if head.status != 204 => (head.length, Framing::AsItIs, Output::Plain),
            (Length::None, _) => (Length::None, Framing::AsItIs, Output::Plain),
            (Length::Known(_), _) => (length, Framing::AsItIs, Output::Plain),
            (Length::Chunked, _) if is_new => (length, Framing::AsItIs, Output::Framed),
            (Length::UntilClose, _) if is_new => (Length::Chunked, Framing::Chunks, Output::Plain),
            (Length::Chunked | Length::UntilClose, _) => (Length::None, Framing::UntilClose, Output::Plain),
        };
        self.framing = framing;
        // Where a body is still on its way, nobody knows whether it will ever be whole.
        let may_stay = self.body.is_done() && framing != Framing::UntilClose && !self.worker.is_draining();
        self.keeps_alive &= may_stay;
        let after = self.after();
        let hsts = self.config.https.hsts.as_deref().filter(|_| self.stream.is_tls());
        write_response(head, said, after, hsts, put_date, self.output.bytes());
        output
    }

    fn switch(&mut self, head: &ResponseHead<'_, '_>) {
        self.count_response(head.status);
        self.framing = Framing::AsItIs;
        write_response(head, Length::None, After::Upgrade, None, |_| {}, self.output.bytes());
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let room = BUFFER_BYTES.saturating_sub(self.output.len());
        if self.framing == Framing::Chunks {
            if room == 0 {
                ready!(self.poll_flush(cx))?;
            }
            put_chunk(self.output.bytes(), bytes);
            let _ = self.poll_flush(cx)?;
            return Poll::Ready(Ok(bytes.len()));
        }
        if self.output.len() == 0 {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        }
        // Together with the head, in one piece.
        let count = bytes.len().min(room);
        if count == 0 {
            ready!(self.poll_flush(cx))?;
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        }
        self.output.bytes().extend_from_slice(&bytes[..count]);
        let _ = self.poll_flush(cx)?;
        Poll::Ready(Ok(count))
    }

    fn poll_socket(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<&TcpStream>>> {
        if self.framing == Framing::Chunks || self.stream.plain().is_none() {
            return Poll::Ready(Ok(None));
        }
        ready!(self.poll_flush(cx))?;
        Poll::Ready(Ok(self.stream.plain()))
    }

    fn has_written(&mut self) -> bool {
        self.output.has_moved()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.output.poll_write(cx, &mut self.stream))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>, trailers: &[u8]) -> Poll<io::Result<()>> {
        if self.framing == Framing::Chunks {
            // They are lines that have been looked at.
            let out = self.output.bytes();
            out.extend_from_slice(b"0\r\n");
            out.extend_from_slice(trailers);
            out.extend_from_slice(b"\r\n");
            self.framing = Framing::AsItIs;
        }
        self.poll_flush(cx)
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.alarm.poll(cx, deadline)
    }
}

/// Writes the field that says what time it is. One text a second and worker.
pub(in crate::proxy) fn put_date(out: &mut Vec<u8>) {
    thread_local! {
        static LAST: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|(second, text)| {
        if *second != now {
            (*second, *text) = (now, http_date(now));
        }
        put_field(out, b"date", text.as_bytes());
    });
}

/// A moment as HTTP writes it (RFC 9110, 5.6.7), from seconds since 1970.
fn http_date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, in eras of 400 years: then leap days come last.
    let era_day = (days + 719_468) % 146_097;
    let era_year = (era_day - era_day / 1_460 + era_day / 36_524 - era_day / 146_096) / 365;
    let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
    let from_march = (5 * year_day + 2) / 153;
    let day = year_day - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12;
    let year = (days + 719_468) / 146_097 * 400 + era_year + u64::from(month < 2);
    let name = |names: &[&'static str], at: u64| names.get(usize::try_from(at).unwrap_or(0)).copied().unwrap_or("");
    format!(
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        name(&DAYS, days % 7),
        name(&MONTHS, month),
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

impl Page {
    /// Writes the page as a response.
    /// `more` are fields that it has if they have a value.
    fn write(self, is_head: bool, after: After, more: &[(&str, Option<&str>)], out: &mut Vec<u8>) {
        let status = self.status();
        let text = format!("{status}: {}\n", self.text());
        out.extend_from_slice(format!("HTTP/1.1 {status} {}\r\n", self.reason()).as_bytes());
        put_field(out, b"content-type", b"text/plain; charset=utf-8");
        out.extend_from_slice(b"content-length: ");
        put_decimal(out, text.len() as u64);
        out.extend_from_slice(b"\r\n");
        put_date(out);
        for (name, value) in more.iter().filter_map(|(name, value)| Some((*name, (*value)?))).chain(self.field()) {
            put_field(out, name.as_bytes(), value.as_bytes());
        }
        match after {
            After::Silent | After::Upgrade => {}
            After::KeepAlive => put_field(out, b"connection", b"keep-alive"),
            After::Close => put_field(out, b"connection", b"close"),
        }
        out.extend_from_slice(b"\r\n");
        if !is_head {
            out.extend_from_slice(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_http_does() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (1_704_067_199, "Sun, 31 Dec 2023 23:59:59 GMT"),
            (1_704_067_200, "Mon, 01 Jan 2024 00:00:00 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(http_date(seconds), text);
        }
    }
}
