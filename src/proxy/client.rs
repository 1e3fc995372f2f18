//! A client's HTTP connection: its deadlines, and the eyes on its bytes.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::framing::{Framing, Offence};
use super::stream::Stream;
use super::{Config, Timeouts};

/// A deadline that is none: whoever serves the request has its own.
const NO_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// Where a connection is between one request and the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing has been said yet.
    Fresh,
    /// A request's header is arriving.
    Header,
    /// A request is being served; no response has begun.
    Serving,
    /// A response is on its way.
    Responding,
    /// Between two requests.
    Idle,
}

/// What is known about one client connection. Lives on one thread.
#[derive(Debug)]
pub(super) struct Watch {
    phase: Cell<Phase>,
    deadline: Cell<Instant>,
    timeouts: Timeouts,
    framing: RefCell<Framing>,
    requests: Cell<u64>,
    is_upgrade_asked: Cell<bool>,
    is_body_open: Cell<bool>,
    ends_by_close: Cell<bool>,
}

impl Watch {
    pub(super) fn new(config: &Config) -> Self {
        let timeouts = config.timeouts.clone();
        Self {
            phase: Cell::new(Phase::Fresh),
            deadline: Cell::new(Instant::now() + timeouts.first_byte),
            timeouts,
            framing: RefCell::new(Framing::new(config.limits.header_bytes)),
            requests: Cell::new(0),
            is_upgrade_asked: Cell::new(false),
            is_body_open: Cell::new(false),
            ends_by_close: Cell::new(false),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// When the connection is to be ended, as things stand.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline.get()
    }

    /// A request's header has arrived. Says whether it may be answered.
    pub(super) fn request_begins(&self, has_body: bool, asks_upgrade: bool) -> Result<(), Offence> {
        self.requests.set(self.requests.get() + 1);
        self.is_body_open.set(has_body);
        self.is_upgrade_asked.set(self.is_upgrade_asked.get() || asks_upgrade);
        self.enter(Phase::Serving);
        self.framing.borrow().verdict(self.requests.get())
    }

    /// The request's body has arrived whole.
    pub(super) fn request_ends(&self) {
        self.is_body_open.set(false);
    }

    /// A response begins; `ends_by_close` when nothing but the connection's end tells where it ends.
    pub(super) fn response_begins(&self, ends_by_close: bool) {
        self.ends_by_close.set(ends_by_close);
        self.enter(Phase::Responding);
    }

    /// The response has been handed over whole, or dropped.
    pub(super) fn response_ends(&self) {
        if self.phase.get() == Phase::Responding {
            self.enter(Phase::Idle);
        }
    }

    /// Something of a response moved.
    pub(super) fn moved(&self) {
        if self.phase.get() == Phase::Responding {
            self.deadline.set(Instant::now() + self.timeouts.body_progress);
        }
    }

    /// Whether some of a request's body was never read: a close would be a reset, and could overtake the response.
    pub(super) fn is_body_open(&self) -> bool {
        self.is_body_open.get()
    }

    /// Whether the client asked to upgrade at some time.
    pub(super) fn is_upgrade_asked(&self) -> bool {
        self.is_upgrade_asked.get()
    }

    /// Whether a close now would look like the end of a response that has not ended.
    pub(super) fn close_would_mislead(&self) -> bool {
        self.phase.get() == Phase::Responding && self.ends_by_close.get()
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        let wait = match phase {
            Phase::Fresh => self.timeouts.first_byte,
            Phase::Header => self.timeouts.header,
            Phase::Serving => NO_DEADLINE,
            Phase::Responding => self.timeouts.body_progress,
            Phase::Idle => self.timeouts.idle,
        };
        self.deadline.set(Instant::now() + wait);
    }

    fn read(&self, bytes: &[u8]) -> io::Result<()> {
        if matches!(self.phase.get(), Phase::Fresh | Phase::Idle) {
            self.enter(Phase::Header);
        }
        self.moved();
        match self.framing.borrow_mut().follow(bytes) {
            // It is being served: all that is left is to break it off. Any other is answered when it is read.
            Some(number) if number <= self.requests.get() => Err(io::ErrorKind::InvalidData.into()),
            _ => Ok(()),
        }
    }
}

/// A client's socket, as the HTTP engine sees it.
pub(super) struct ClientIo {
    stream: Stream,
    watch: Rc<Watch>,
}

impl ClientIo {
    pub(super) fn new(stream: Stream, watch: Rc<Watch>) -> Self {
        Self { stream, watch }
    }

    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        match buffer.filled().get(before..) {
            Some(bytes) if !bytes.is_empty() => Poll::Ready(self.watch.read(bytes)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.watch.moved();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, pieces));
        self.watch.moved();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
