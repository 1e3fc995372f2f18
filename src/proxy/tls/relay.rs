//! Bytes both ways between two connections of which one or both have TLS, each direction ending on its own. What has no
//! TLS on either side is for `relay`, which leaves most of the work to the kernel.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::backend::Load;
use crate::proxy::dial::reset_on_close;
use crate::proxy::relay::Outcome;
use crate::proxy::stream::Stream;
use crate::report::Counter;

/// What is read at once: a TLS record.
const READ_BYTES: usize = 16 * 1024;
/// Reads of one direction before the other has its turn.
const READS_MAX: usize = 8;

thread_local! {
    /// A worker does one thing at a time, and nothing is kept in it from one to the next.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// One end of a relay, and what was read from it already.
pub(in crate::proxy) struct End<'a> {
    pub(in crate::proxy) stream: &'a mut Stream,
    pub(in crate::proxy) ahead: Bytes,
    /// Counts what this end sends.
    pub(in crate::proxy) sent: Option<&'a Counter>,
    /// Is told when something has just arrived from this end.
    pub(in crate::proxy) load: Option<&'a Load>,
}

/// Passes bytes until both directions have ended, one connection breaks, or nothing moves for `idle`.
/// A connection that broke is passed on as one: the other side is reset when it is closed.
pub(in crate::proxy) async fn run(mut client: End<'_>, mut backend: End<'_>, idle: Duration) -> Outcome {
    let mut up = Flow::new(std::mem::take(&mut client.ahead));
    let mut down = Flow::new(std::mem::take(&mut backend.ahead));
    let mut moved_at = Instant::now();
    let mut timer = pin!(tokio::time::sleep(idle));
    let outcome = poll_fn(|cx| {
        let before = (up.moved, down.moved);
        let up_state = up.poll(cx, client.stream, backend.stream);
        let down_state = down.poll(cx, backend.stream, client.stream);
        let moved = (up.moved - before.0, down.moved - before.1);
        client.sent.inspect(|sent| sent.add(moved.0));
        backend.sent.inspect(|sent| sent.add(moved.1));
        match (up_state, down_state) {
            (Poll::Ready(Err(Broke::From)), _) | (_, Poll::Ready(Err(Broke::To))) => {
                return Poll::Ready(Outcome::ClientBroke);
            }
            (Poll::Ready(Err(Broke::To)), _) | (_, Poll::Ready(Err(Broke::From))) => {
                return Poll::Ready(Outcome::BackendBroke);
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Outcome::Finished),
            _ => {}
        }
        if moved != (0, 0) {
            moved_at = Instant::now();
        }
        if moved.1 > 0
            && let Some(load) = backend.load
        {
            load.succeeded(moved_at.into());
        }
        // The timer is moved only when it fires, not with each byte.
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= moved_at + idle {
                return Poll::Ready(Outcome::Idle);
            }
            timer.as_mut().reset(moved_at + idle);
        }
        Poll::Pending
    })
    .await;
    if outcome != Outcome::Finished {
        reset_on_close(client.stream.tcp());
        reset_on_close(backend.stream.tcp());
    }
    outcome
}

/// Which connection of a flow broke.
enum Broke {
    From,
    To,
}

/// One direction. An idle one holds nothing.
struct Flow {
    waiting: Bytes,
    is_eof: bool,
    is_flushed: bool,
    is_done: bool,
    moved: u64,
}

impl Flow {
    fn new(waiting: Bytes) -> Self {
        Self { waiting, is_eof: false, is_flushed: true, is_done: false, moved: 0 }
    }

    /// Passes on what there is. Ready when the end was passed on too.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream) -> Poll<Result<(), Broke>> {
        for _ in 0..READS_MAX {
            if self.is_done {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_send(cx, to)).map_err(|_| Broke::To)?;
            if self.is_eof {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(|_| Broke::To)?;
                self.is_done = true;
                continue;
            }
            match self.poll_receive(cx, from, to) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    // Nothing more for now: what TLS still holds back goes out.
                    self.poll_flush(cx, to).map_err(|_| Broke::To)?;
                    return Poll::Pending;
                }
            }
        }
        // The other direction's turn, then again.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let count = ready!(Pin::new(&mut *to).poll_write(cx, &self.waiting))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.waiting.advance(count);
            self.count(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, and sends at once as much of it as goes.
    fn poll_receive(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream) -> Poll<Result<(), Broke>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            ready!(Pin::new(from).poll_read(cx, &mut read)).map_err(|_| Broke::From)?;
            let mut bytes = read.filled();
            self.is_eof = bytes.is_empty();
            while !bytes.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, bytes) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Broke::To)),
                    Poll::Ready(Ok(count)) => {
                        bytes = bytes.get(count..).unwrap_or_default();
                        self.count(count);
                    }
                    Poll::Pending => {
                        self.waiting = Bytes::copy_from_slice(bytes);
                        break;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> io::Result<()> {
        if !self.is_flushed
            && let Poll::Ready(result) = Pin::new(to).poll_flush(cx)
        {
            result?;
            self.is_flushed = true;
        }
        Ok(())
    }

    fn count(&mut self, count: usize) {
        self.moved += count as u64;
        self.is_flushed = false;
    }
}
