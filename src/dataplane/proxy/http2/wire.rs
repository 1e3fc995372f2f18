//! A connection whose frames are followed as they are read.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::frames::Follower;
use super::meter::Meter;
use crate::proxy::http1::buffer::consume;
use crate::proxy::stream::Stream;

/// What is read before others have their turn.
const TURN_BYTES: usize = 16 * 1024;

/// One end of it is the engine's, which owns it; the other end stays with whoever drives the engine.
#[derive(Clone)]
pub(super) struct Wire(Rc<State>);

struct State {
    stream: RefCell<Stream>,
    /// What was read before.
    ahead: RefCell<Bytes>,
    follower: RefCell<Follower>,
    meter: RefCell<Meter>,
    /// What the peer has done wrong. From there on nothing is read.
    offence: Cell<Option<Reason>>,
    /// When something was read last.
    heard: Cell<Instant>,
    /// When the header block began that has not ended.
    block_since: Cell<Option<Instant>>,
    /// What may still be read in this turn.
    turn: Cell<usize>,
}

impl Wire {
    /// A connection to a client, of which some was read before.
    pub(super) fn to_client(stream: Stream, ahead: Bytes) -> Self {
        Self::new(stream, ahead, true)
    }

    /// A connection to a backend.
    pub(super) fn to_backend(stream: Stream) -> Self {
        Self::new(stream, Bytes::new(), false)
    }

    fn new(stream: Stream, ahead: Bytes, is_client: bool) -> Self {
        Self(Rc::new(State {
            stream: RefCell::new(stream),
            ahead: RefCell::new(ahead),
            follower: RefCell::new(Follower::new(is_client)),
            meter: RefCell::new(Meter::new(is_client, Instant::now().into())),
            offence: Cell::new(None),
            heard: Cell::new(Instant::now()),
            block_since: Cell::new(None),
            turn: Cell::new(TURN_BYTES),
        }))
    }

    /// Reads on, after others had their turn.
    pub(super) fn begin_turn(&self) {
        self.0.turn.set(TURN_BYTES);
    }

    /// Why the peer is to be told to go, if it is.
    pub(super) fn offence(&self) -> Option<Reason> {
        self.0.offence.get()
    }

    /// Whether the peer has said its settings.
    pub(super) fn has_settings(&self) -> bool {
        self.0.follower.borrow().has_settings()
    }

    /// When the peer was heard last.
    pub(super) fn heard(&self) -> Instant {
        self.0.heard.get()
    }

    /// When the header block began whose end has not come.
    pub(super) fn block_since(&self) -> Option<Instant> {
        self.0.block_since.get()
    }

    /// What a peer does is counted here.
    pub(super) fn count(&self, count: impl FnOnce(&mut Meter)) {
        count(&mut self.0.meter.borrow_mut());
    }

    /// A stream was given up for what the peer has sent on it.
    pub(super) fn give_up(&self) {
        let judged = self.0.meter.borrow_mut().give_up(Instant::now().into());
        if let Err(reason) = judged {
            self.0.offence.set(self.0.offence.get().or(Some(reason)));
        }
    }

    /// The connection itself, when nobody reads or writes any more.
    pub(super) fn with_stream<T>(&self, look: impl FnOnce(&mut Stream) -> T) -> T {
        look(&mut self.0.stream.borrow_mut())
    }
}

impl State {
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.offence.get().is_some() {
            // Whoever drives the engine looks at this when it has nothing more to do.
            return Poll::Pending;
        }
        if self.turn.get() == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let mut ahead = self.ahead.borrow_mut();
        if ahead.is_empty() {
            ready!(Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, buffer))?;
        } else {
            let count = ahead.len().min(buffer.remaining());
            buffer.put_slice(&ahead[..count]);
            consume(&mut ahead, count);
        }
        let bytes = buffer.filled().get(before..).unwrap_or_default();
        let count = bytes.len();
        self.turn.set(self.turn.get().saturating_sub(count));
        let now = Instant::now();
        self.heard.set(now);
        let mut follower = self.follower.borrow_mut();
        let mut meter = self.meter.borrow_mut();
        if let Err((good, reason)) = follower.follow(bytes, |head| meter.frame(head, now.into())) {
            self.offence.set(Some(reason));
            buffer.set_filled(before + good);
            // Nothing would be taken for the connection's end.
            return if good == 0 { Poll::Pending } else { Poll::Ready(Ok(())) };
        }
        let block_since = follower.is_in_block().then(|| self.block_since.get().unwrap_or(now));
        self.block_since.set(block_since);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.stream.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_shutdown(cx)
    }
}
