//! Bytes both ways between two connections, each direction ending on its own.
//!
//! A place for splice(2): `Flow::advance` is the only spot that touches bytes.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::dial::reset_on_close;
use crate::backend::Load;
use crate::report::Counter;

/// One buffer a direction, held while bytes wait in it. Measured by others: larger ones gain little without splice.
const BUFFER_BYTES: usize = 16 * 1024;
/// Buffers that a worker keeps for the next who needs one.
const BUFFERS_KEPT: usize = 64;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// One end of a relay, and what was read from it already.
pub(super) struct End<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) ahead: Bytes,
    /// Counts what this end sends.
    pub(super) sent: Option<&'a Counter>,
    /// Is told when something has just arrived from this end.
    pub(super) load: Option<&'a Load>,
}

/// How a relay came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Both sides said that they are done.
    Finished,
    /// Nothing moved for too long.
    Idle,
    /// The client's connection broke.
    ClientBroke,
    /// The backend's connection broke.
    BackendBroke,
}

/// Copies until both directions have ended, one connection breaks, or nothing moves for `idle`.
/// A connection that broke is passed on as one: the other side is reset when it is closed.
pub(super) async fn run(client: End<'_>, backend: End<'_>, idle: Duration) -> Outcome {
    let (client_stream, backend_stream) = (client.stream, backend.stream);
    let backend_load = backend.load;
    let mut up = Flow::new(client.ahead, client.sent);
    let mut down = Flow::new(backend.ahead, backend.sent);
    let mut timer = pin!(tokio::time::sleep(idle));
    let mut moved_at = Instant::now();
    let both = poll_fn(|cx| {
        let before = up.moved + down.moved;
        let up_state = up.poll(cx, client_stream, backend_stream);
        let down_state = down.poll(cx, backend_stream, client_stream);
        match (up_state, down_state) {
            (Poll::Ready(Err(broke)), _) => return Poll::Ready(broke.of(Outcome::ClientBroke, Outcome::BackendBroke)),
            (_, Poll::Ready(Err(broke))) => return Poll::Ready(broke.of(Outcome::BackendBroke, Outcome::ClientBroke)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Outcome::Finished),
            _ => {}
        }
        if up.moved + down.moved != before {
            moved_at = Instant::now();
            if std::mem::take(&mut down.has_arrived)
                && let Some(load) = backend_load
            {
                load.succeeded(moved_at.into());
            }
        }
        poll_idle(cx, timer.as_mut(), moved_at + idle).map(|()| Outcome::Idle)
    });
    let outcome = tokio::select! {
        biased;
        outcome = both => outcome,
        // A reset that no direction waits for: one that has ended, or one that waits for the other side.
        _ = client_stream.ready(Interest::ERROR) => Outcome::ClientBroke,
        _ = backend_stream.ready(Interest::ERROR) => Outcome::BackendBroke,
    };
    if outcome != Outcome::Finished {
        reset_on_close(client_stream);
        reset_on_close(backend_stream);
    }
    outcome
}

/// Ready when `deadline` has passed. The timer is moved only when it fires, not with each byte.
fn poll_idle(cx: &mut Context<'_>, mut timer: std::pin::Pin<&mut Sleep>, deadline: Instant) -> Poll<()> {
    loop {
        ready!(timer.as_mut().poll(cx));
        if Instant::now() >= deadline {
            return Poll::Ready(());
        }
        timer.as_mut().reset(deadline);
    }
}

/// Which connection of a flow broke.
enum Broke {
    From,
    To,
}

impl Broke {
    fn of(&self, from: Outcome, to: Outcome) -> Outcome {
        match self {
            Self::From => from,
            Self::To => to,
        }
    }
}

/// One direction. An idle one holds no buffer.
struct Flow<'a> {
    ahead: Bytes,
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    is_eof: bool,
    is_done: bool,
    /// Everything that was there has been read: what comes next has arrived since.
    is_drained: bool,
    /// Something was read that arrived since: a sign of life, which what had waited for a slow reader is not.
    has_arrived: bool,
    moved: u64,
    counter: Option<&'a Counter>,
}

impl<'a> Flow<'a> {
    fn new(ahead: Bytes, counter: Option<&'a Counter>) -> Self {
        Self {
            ahead,
            buffer: None,
            start: 0,
            end: 0,
            is_eof: false,
            is_done: false,
            is_drained: true,
            has_arrived: false,
            moved: 0,
            counter,
        }
    }

    /// Ready when everything has been passed on, the end included.
    fn poll(&mut self, cx: &mut Context<'_>, from: &TcpStream, to: &TcpStream) -> Poll<Result<(), Broke>> {
        while !self.is_done {
            ready!(self.advance(cx, from, to))?;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, cx: &mut Context<'_>, from: &TcpStream, to: &TcpStream) -> Poll<Result<(), Broke>> {
        if !self.waiting().is_empty() {
            return self.write(cx, to).map_err(|_| Broke::To);
        }
        if self.is_eof {
            self.is_done = true;
            return Poll::Ready(SockRef::from(to).shutdown(Shutdown::Write).map_err(|_| Broke::To));
        }
        self.read(cx, from).map_err(|_| Broke::From)
    }

    fn waiting(&self) -> &[u8] {
        match &self.buffer {
            _ if !self.ahead.is_empty() => &self.ahead,
            Some(buffer) => buffer.get(self.start..self.end).unwrap_or_default(),
            None => &[],
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<()>> {
        ready!(to.poll_write_ready(cx))?;
        match to.try_write(self.waiting()) {
            Ok(count) if self.ahead.is_empty() => self.start += count,
            Ok(count) => self.ahead.advance(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Ready(Ok(())),
            Err(error) => return Poll::Ready(Err(error)),
        }
        // Progress is what leaves: a peer that takes nothing is idle however much the other side sends.
        self.moved += 1;
        Poll::Ready(Ok(()))
    }

    fn read(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<()>> {
        if from.poll_read_ready(cx)?.is_pending() {
            give_back(self.buffer.take());
            return Poll::Pending;
        }
        let buffer = self.buffer.get_or_insert_with(take_buffer);
        match from.try_read(buffer) {
            Ok(0) => {
                self.is_eof = true;
                give_back(self.buffer.take());
            }
            Ok(count) => {
                (self.start, self.end) = (0, count);
                self.moved += 1;
                self.has_arrived |= std::mem::take(&mut self.is_drained);
                if let Some(counter) = self.counter {
                    counter.add(count as u64);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_drained = true;
                (self.start, self.end) = (0, 0);
            }
            Err(error) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        give_back(self.buffer.take());
    }
}

fn take_buffer() -> Box<[u8]> {
    let kept = BUFFERS.with_borrow_mut(Vec::pop);
    kept.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
}

fn give_back(buffer: Option<Box<[u8]>>) {
    if let Some(buffer) = buffer {
        // The thread may be ending, its store gone already.
        let _ = BUFFERS.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < BUFFERS_KEPT {
                kept.push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    /// Moves what is there, one step at a time; how many of the reads were signs of life.
    async fn signs_of_life(flow: &mut Flow<'_>, from: &TcpStream, to: &TcpStream, bytes: usize) -> usize {
        let (mut signs, mut read) = (0, 0);
        from.readable().await.unwrap();
        while read < bytes || !flow.waiting().is_empty() {
            let before = flow.waiting().len();
            poll_fn(|cx| flow.advance(cx, from, to)).await.unwrap_or_else(|_| panic!("it broke"));
            read += flow.waiting().len().saturating_sub(before);
            signs += usize::from(std::mem::take(&mut flow.has_arrived));
        }
        signs
    }

    #[tokio::test]
    async fn what_waited_for_a_slow_reader_is_no_sign_of_life() {
        let ((mut backend, from), (to, client)) = (pair().await, pair().await);
        let reading = tokio::spawn(async move { tokio::io::copy(&mut { client }, &mut tokio::io::sink()).await });
        let mut flow = Flow::new(Bytes::new(), None);
        let bytes = 4 * BUFFER_BYTES;
        backend.write_all(&vec![7; bytes]).await.unwrap();
        // All of it has arrived before any of it is read.
        let mut peeked = vec![0; bytes];
        while from.peek(&mut peeked).await.unwrap() < bytes {
            tokio::task::yield_now().await;
        }
        assert_eq!(signs_of_life(&mut flow, &from, &to, bytes).await, 1);
        // Read to its end, it is a sign when more comes.
        assert!(poll_fn(|cx| Poll::Ready(flow.advance(cx, &from, &to).is_ready())).await);
        backend.write_all(b"more").await.unwrap();
        assert_eq!(signs_of_life(&mut flow, &from, &to, 4).await, 1);
        drop((flow, to));
        reading.await.unwrap().unwrap();
    }
}
