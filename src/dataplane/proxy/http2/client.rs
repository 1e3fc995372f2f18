//! A client's connection: many requests at once, each a task of its own.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::exchange::field_bytes;
use super::stock::{Piece, Stock};
use super::stream::{self, Exchange};
use super::wire::Wire;
use super::{FRAME_BYTES_MAX, STREAM_WINDOW_BYTES};
use crate::name::Port;
use crate::proxy::alarm::Alarm;
use crate::proxy::bell::Ear;
use crate::proxy::stream::Stream;
use crate::proxy::worker::Worker;
use crate::proxy::{Config, dial, tls};

/// Requests that a client may have open at once.
const STREAMS_MAX: u32 = 100;
/// What a client may send, on all streams together, before we have passed it on.
const WINDOW_BYTES: u32 = 512 * 1024;
/// What waits to be sent on one stream.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Headers of all open requests together: what is beyond is refused, to be sent again.
const HEADERS_BYTES_MAX: usize = 256 * 1024;
/// Streams that are reset before anybody has looked at them (as `h2` has it).
const EARLY_RESETS_MAX: usize = 20;
/// Streams that the engine resets for what was sent on them.
const LOCAL_RESETS_MAX: usize = 200;
/// How long a connection that is over may take to hear so, and how much of what it still sends is read meanwhile.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 64 * 1024);

/// Serves one client connection to its end. `ahead` is what was read of it before, the preface first.
pub(in crate::proxy) async fn serve(worker: Rc<Worker>, stream: Stream, ahead: Bytes, peer: SocketAddr, port: Port) {
    let way = tls::Client::of(&stream);
    let wire = Wire::to_client(stream, ahead);
    let session = Rc::new(Session::new(worker, wire.clone(), peer, port, way));
    let limit = session.config.timeouts.header;
    let shaking = engine(&session.config).handshake::<_, Piece>(wire.clone());
    let end = match tokio::time::timeout(limit, shaking).await {
        Ok(Ok(connection)) => Box::pin(drive(connection, &session)).await,
        Ok(Err(_)) => End::Told,
        Err(_) => return,
    };
    match end {
        End::Told => linger(&wire).await,
        End::Gone => {}
        End::Cut => wire.with_stream(|stream| dial::reset_on_close(stream.tcp())),
    }
}

fn engine(config: &Config) -> Builder {
    let mut engine = Builder::new();
    engine
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(config.limits.header_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(EARLY_RESETS_MAX)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX));
    engine
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Both sides know.
    Told,
    /// The client has gone.
    Gone,
    /// It was told and does not listen.
    Cut,
}

/// A connection as its streams share it.
pub(super) struct Session {
    pub(super) worker: Rc<Worker>,
    pub(super) config: Arc<Config>,
    pub(super) wire: Wire,
    pub(super) peer: SocketAddr,
    pub(super) port: Port,
    pub(super) forwarded_for: Box<str>,
    pub(super) is_trusted: bool,
    /// How the client came.
    pub(super) way: tls::Client,
    pub(super) stock: Rc<Stock>,
    open: Cell<usize>,
    idle_since: Cell<Instant>,
    header_bytes: Cell<usize>,
}

impl Session {
    pub(super) fn is_tls(&self) -> bool {
        !matches!(self.way, tls::Client::Plain)
    }

    /// What a client with TLS is told about its next visits, if it is.
    pub(super) fn hsts(&self) -> Option<&str> {
        self.config.https.hsts.as_deref().filter(|_| self.is_tls())
    }

    fn new(worker: Rc<Worker>, wire: Wire, peer: SocketAddr, port: Port, way: tls::Client) -> Self {
        let config = worker.shared.config.load_full();
        let address = peer.ip().to_canonical();
        Self {
            forwarded_for: address.to_string().into_boxed_str(),
            is_trusted: config.trusted_proxies.iter().any(|net| net.contains(&address)),
            worker,
            config,
            wire,
            peer,
            port,
            way,
            stock: Rc::default(),
            open: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            header_bytes: Cell::new(0),
        }
    }
}

/// One open request; it counts until it is dropped.
pub(super) struct Open {
    pub(super) session: Rc<Session>,
    /// Its header's bytes.
    pub(super) header_bytes: usize,
}

impl Open {
    /// None if the connection holds too much already.
    fn new(session: &Rc<Session>, header_bytes: usize) -> Option<Self> {
        let held = session.header_bytes.get();
        if session.open.get() > 0 && held + header_bytes > HEADERS_BYTES_MAX {
            return None;
        }
        session.open.set(session.open.get() + 1);
        session.header_bytes.set(held + header_bytes);
        Some(Self { session: Rc::clone(session), header_bytes })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let session = &self.session;
        session.open.set(session.open.get() - 1);
        session.header_bytes.set(session.header_bytes.get() - self.header_bytes);
        session.idle_since.set(Instant::now());
        if std::thread::panicking() {
            session.worker.shared.counters.panics.inc();
        }
    }
}

/// Runs the engine: takes requests, watches the deadlines, tells that the proxy drains.
async fn drive(connection: Connection<Wire, Piece>, session: &Rc<Session>) -> End {
    let mut driver = Driver {
        connection,
        session: Rc::clone(session),
        draining: Ear::new(&session.worker.drains),
        draining_since: None,
        since: Instant::now(),
        told: None,
        alarm: Alarm::boxed(Instant::now() + session.config.timeouts.header),
    };
    poll_fn(|cx| driver.poll(cx)).await
}

struct Driver {
    connection: Connection<Wire, Piece>,
    session: Rc<Session>,
    draining: Ear,
    draining_since: Option<Instant>,
    since: Instant,
    /// When the client was told to go.
    told: Option<Instant>,
    alarm: Alarm<Box<Sleep>>,
}

impl Driver {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.draining.listen(cx);
        if self.session.worker.is_draining() && self.draining_since.is_none() {
            self.draining_since = Some(Instant::now());
            self.connection.graceful_shutdown();
        }
        self.session.wire.begin_turn();
        loop {
            if let Poll::Ready(end) = self.poll_engine(cx) {
                return Poll::Ready(end);
            }
            if let (Some(reason), None) = (self.session.wire.offence(), self.told) {
                self.tell(reason);
                continue;
            }
            ready!(self.alarm.poll(cx, self.deadline()));
            if self.told.is_some() {
                return Poll::Ready(End::Cut);
            }
            let is_silent = self.session.open.get() == 0;
            self.tell(if is_silent { Reason::NO_ERROR } else { Reason::ENHANCE_YOUR_CALM });
        }
    }

    fn tell(&mut self, reason: Reason) {
        self.told = Some(Instant::now());
        self.connection.abrupt_shutdown(reason);
    }

    /// Ready at the end.
    fn poll_engine(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let end = |result: Result<(), h2::Error>| match result {
            Err(error) if error.is_io() => End::Gone,
            Ok(()) | Err(_) => End::Told,
        };
        if self.told.is_some() {
            return self.connection.poll_closed(cx).map(end);
        }
        loop {
            match ready!(self.connection.poll_accept(cx)) {
                Some(Ok((request, respond))) => accept(&self.session, request, respond),
                Some(Err(error)) => return Poll::Ready(end(Err(error))),
                None => return Poll::Ready(end(Ok(()))),
            }
        }
    }

    /// When the client is told to go, or cut, if nothing happens.
    fn deadline(&self) -> Instant {
        let timeouts = &self.session.config.timeouts;
        if let Some(told) = self.told {
            return told + LINGER.0;
        }
        let stock = &self.session.stock;
        let written = stock.moved().unwrap_or(self.since);
        let idle_since = self.session.idle_since.get().max(written);
        let mut deadline = match self.session.open.get() {
            // What was answered is still being written.
            0 if !stock.is_empty() => written + timeouts.body_progress,
            0 => idle_since + timeouts.idle,
            // Looked at again when the last may have been answered.
            _ => Instant::now() + timeouts.idle,
        };
        if let (Some(since), 0, true) = (self.draining_since, self.session.open.get(), stock.is_empty()) {
            deadline = deadline.min(since.max(idle_since) + LINGER.0);
        }
        if !self.session.wire.has_settings() {
            deadline = deadline.min(self.since + timeouts.header);
        }
        if let Some(since) = self.session.wire.block_since() {
            deadline = deadline.min(since + timeouts.header);
        }
        deadline
    }
}

/// Begins a request.
fn accept(session: &Rc<Session>, request: Request<RecvStream>, mut respond: SendResponse<Piece>) {
    session.worker.shared.counters.requests.inc();
    let (parts, body) = request.into_parts();
    let host_bytes = parts.uri.authority().map_or(0, |host| host.as_str().len());
    let target_bytes = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let bytes = field_bytes(&parts.headers) + host_bytes + target_bytes;
    match Open::new(session, bytes) {
        Some(open) => match Exchange::new(open, &parts, body, respond) {
            Ok((exchange, request)) => drop(tokio::task::spawn_local(stream::run(exchange, request))),
            Err(()) => session.wire.give_up(),
        },
        None => {
            session.wire.give_up();
            respond.send_reset(Reason::REFUSED_STREAM);
        }
    }
}

/// Reads a little of what the client still sends, so that what it was told is not overtaken by a reset.
async fn linger(wire: &Wire) {
    let (time, bytes_max) = LINGER;
    let mut left = bytes_max;
    let reading = pin!(poll_fn(|cx| {
        let mut room = [0; 4096];
        loop {
            let mut room = ReadBuf::new(&mut room);
            let read = wire.with_stream(|stream| Pin::new(stream).poll_read(cx, &mut room));
            let count = room.filled().len();
            match ready!(read) {
                Ok(()) if count > 0 && count < left => left -= count,
                _ => return Poll::Ready(()),
            }
        }
    }));
    let _ = tokio::time::timeout(time, reading).await;
}
