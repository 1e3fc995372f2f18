//! Bytes both ways between two connections, each direction ending on its own.
//!
//! What is small is copied through a buffer of the worker's; what comes in bulk, from one plain connection to another, is
//! moved through a pipe ([`super::splice`]). A direction goes from one to the other and back as its pieces are.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, Sleep};

use super::dial::{KEEPALIVE, keep_alive, reset_on_close};
use super::http1::buffer;
use super::splice::{Bulk, Pipe};
use super::stream::{Side, Stream, receive};
use crate::backend::Load;
use crate::report::Counter;

/// How long a side that was told everything is listened to, that it may read it. What it has not read by then is the
/// kernel's to deliver.
const LINGER_MAX: Duration = Duration::from_secs(30);
/// What a direction moves in one turn, before others have theirs.
pub(super) const TURN_BYTES: usize = 1024 * 1024;

/// One end of a relay, and what was read from it already.
pub(super) struct End<'a> {
    pub(super) stream: &'a mut Stream,
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

/// Passes bytes on until both directions have ended, one connection breaks, or nothing moves for `idle`.
/// A connection that broke is passed on as one: the other side is reset when it is closed. One that broke after it had
/// said everything has finished.
pub(super) async fn run(client: End<'_>, backend: End<'_>, idle: Duration) -> Outcome {
    let (client_stream, backend_stream, backend_load) = (client.stream, backend.stream, backend.load);
    let mut up = Flow::new(client.ahead, client.sent);
    let mut down = Flow::new(backend.ahead, backend.sent);
    let outcome = {
        let (mut client_side, mut backend_side) = (Side::of(&mut *client_stream), Side::of(&mut *backend_stream));
        let (client_plain, backend_plain) = (client_side.plain(), backend_side.plain());
        // A backend is asked whether it is still there from when it has been silent for the first time: most connections are
        // over by then, and so are all whose idle time is shorter. A client's connection has it from the socket that listens.
        let quiet = KEEPALIVE.0;
        let mut is_kept = idle <= quiet;
        let mut timer = pin!(tokio::time::sleep(idle.min(quiet)));
        let mut moved_at = Instant::now();
        let (mut client_breaks, mut backend_breaks) = (pin!(breaks(client_plain)), pin!(breaks(backend_plain)));
        let mut is_watched = false;
        // Once the timer has been looked at, it wakes this when it fires; until then there is nothing to be seen.
        let mut is_timed = false;
        poll_fn(|cx| {
            let before = up.moved + down.moved;
            let up_state = up.poll(cx, &mut client_side, &mut backend_side, down.is_done);
            let down_state = down.poll(cx, &mut backend_side, &mut client_side, up.is_done);
            match (up_state, down_state) {
                (Poll::Ready(Err(broke)), _) => {
                    return Poll::Ready(broke.of(Outcome::ClientBroke, Outcome::BackendBroke));
                }
                (_, Poll::Ready(Err(broke))) => {
                    return Poll::Ready(broke.of(Outcome::BackendBroke, Outcome::ClientBroke));
                }
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Outcome::Finished),
                _ => {}
            }
            let has_moved = up.moved + down.moved != before;
            // A reset that no direction waits for: one that has ended, or one that waits for the other side. Where bytes have
            // just passed it shows in them; to ask each time would take two locks for each piece.
            if !has_moved || !is_watched {
                is_watched = true;
                if client_breaks.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Outcome::ClientBroke);
                }
                if backend_breaks.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Outcome::BackendBroke);
                }
            }
            if has_moved {
                moved_at = Instant::now();
                if std::mem::take(&mut down.has_arrived)
                    && let Some(load) = backend_load
                {
                    load.succeeded(moved_at.into());
                }
            }
            if is_timed && !timer.is_elapsed() {
                return Poll::Pending;
            }
            if !is_kept && poll_idle(cx, timer.as_mut(), moved_at + quiet).is_ready() {
                is_kept = true;
                keep_alive(backend_side.tcp());
            }
            let idled = if is_kept { poll_idle(cx, timer.as_mut(), moved_at + idle) } else { Poll::Pending };
            is_timed = is_registered();
            idled.map(|()| Outcome::Idle)
        })
        .await
    };
    // What one side said to its end is not destroyed because of what the other said to it later: a reset, or a close with
    // something unread, would throw away what still waits in the kernel.
    match outcome {
        Outcome::BackendBroke if down.is_done => Box::pin(linger(client_stream, idle)).await,
        Outcome::ClientBroke if up.is_done => Box::pin(linger(backend_stream, idle)).await,
        Outcome::Finished => {}
        broke => {
            reset_on_close(client_stream.tcp());
            reset_on_close(backend_stream.tcp());
            return broke;
        }
    }
    Outcome::Finished
}

/// Reads what is for nobody any more, until the peer is done too.
async fn linger(stream: &mut Stream, idle: Duration) {
    let rest = async {
        let mut buffer = buffer::take_read();
        while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
        buffer::give_back_read(Some(buffer));
    };
    let _ = tokio::time::timeout(idle.min(LINGER_MAX), rest).await;
}

/// Waits for an error of a plain connection. One with TLS cannot be waited for while it is read and written: its reset is
/// found by whoever reads or writes it next.
async fn breaks(stream: Option<&TcpStream>) {
    match stream {
        Some(stream) => drop(stream.ready(Interest::ERROR).await),
        None => std::future::pending().await,
    }
}

/// Ready when `deadline` has passed. The timer is moved only when it fires, not with each byte.
fn poll_idle(cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>, deadline: Instant) -> Poll<()> {
    loop {
        ready!(timer.as_mut().poll(cx));
        if Instant::now() >= deadline {
            return Poll::Ready(());
        }
        timer.as_mut().reset(deadline);
    }
}

/// Whether there may be something to read, without waiting for it: this takes no lock.
fn is_readable(tcp: &TcpStream) -> bool {
    tcp.try_io(Interest::READABLE, || Ok(())).is_ok()
}

/// Whether who was just told to wait for a socket or a timer is woken by it. Without a budget it was told to come again
/// instead.
fn is_registered() -> bool {
    has_budget_remaining()
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

/// One direction. An idle one holds no buffer and no pipe.
struct Flow<'a> {
    ahead: Bytes,
    buffer: Option<Vec<u8>>,
    start: usize,
    end: usize,
    pipe: Option<Pipe>,
    bulk: Bulk,
    /// What was written may wait in the other side's TLS.
    is_to_flush: bool,
    is_eof: bool,
    is_done: bool,
    /// The break that came right behind the bytes that wait.
    broke: Option<io::Error>,
    /// Whoever polls this is woken when there is something to read: the kernel tells the runtime, which keeps the waker.
    is_awaited: bool,
    /// Everything that was there has been read: what comes next has arrived since.
    is_drained: bool,
    /// Something was read that arrived since: a sign of life, which what had waited for a slow reader is not.
    has_arrived: bool,
    /// How often something was read or written.
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
            pipe: None,
            bulk: Bulk::default(),
            is_to_flush: false,
            is_eof: false,
            is_done: false,
            broke: None,
            is_awaited: false,
            is_drained: true,
            has_arrived: false,
            moved: 0,
            counter,
        }
    }

    /// Ready when everything has been passed on, the end included. The end is not said where the other direction has
    /// ended already: the connection is closed now.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Side<'_>,
        to: &mut Side<'_>,
        is_last: bool,
    ) -> Poll<Result<(), Broke>> {
        let mut bytes = 0;
        while !self.is_done {
            bytes += ready!(self.advance(cx, from, to, is_last))?;
            if bytes >= TURN_BYTES {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// One step; how many bytes it read.
    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Side<'_>,
        to: &mut Side<'_>,
        is_last: bool,
    ) -> Poll<Result<usize, Broke>> {
        if let (Some(pipe), Some(to)) = (self.pipe.as_mut().filter(|pipe| pipe.held() > 0), to.plain()) {
            ready!(pipe.poll_empty(cx, to)).map_err(|_| Broke::To)?;
            self.moved += 1;
            return Poll::Ready(Ok(0));
        }
        if !self.waiting().is_empty() {
            return self.write(cx, to).map_ok(|()| 0).map_err(|_| Broke::To);
        }
        if self.is_to_flush {
            ready!(to.poll_flush(cx)).map_err(|_| Broke::To)?;
            self.is_to_flush = false;
        }
        if self.is_eof {
            let is_said = is_last && to.plain().is_some();
            if !is_said {
                ready!(to.poll_end(cx)).map_err(|_| Broke::To)?;
            }
            self.is_done = true;
            self.let_go();
            return Poll::Ready(Ok(0));
        }
        self.read(cx, from, to).map_err(|_| Broke::From)
    }

    fn waiting(&self) -> &[u8] {
        match &self.buffer {
            _ if !self.ahead.is_empty() => &self.ahead,
            Some(buffer) => buffer.get(self.start..self.end).unwrap_or_default(),
            None => &[],
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, to: &mut Side<'_>) -> Poll<io::Result<()>> {
        let count = ready!(if self.is_eof {
            to.poll_write_last(cx, self.waiting())
        } else {
            to.poll_write(cx, self.waiting())
        })?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        if self.ahead.is_empty() {
            self.start += count;
        } else {
            buffer::consume(&mut self.ahead, count);
        }
        self.is_to_flush = true;
        // Progress is what leaves: a peer that takes nothing is idle however much the other side sends.
        self.moved += 1;
        Poll::Ready(Ok(()))
    }

    fn read(&mut self, cx: &mut Context<'_>, from: &mut Side<'_>, to: &Side<'_>) -> Poll<io::Result<usize>> {
        if let Some(error) = self.broke.take() {
            return Poll::Ready(Err(error));
        }
        self.is_awaited &= from.plain().is_some_and(|tcp| !is_readable(tcp));
        let polled = match (from.plain(), to.plain()) {
            _ if self.is_awaited => Poll::Pending,
            (Some(tcp), Some(_)) if self.bulk.is() && self.has_pipe() => match self.fill(cx, tcp) {
                // A socket that cannot: nothing was read.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.bulk.never();
                    self.copy(cx, from)
                }
                filled => filled,
            },
            _ => self.copy(cx, from),
        };
        let count = match polled {
            Poll::Ready(read) => read?,
            Poll::Pending => {
                self.is_drained = true;
                self.is_awaited |= from.plain().is_some() && is_registered();
                self.let_go();
                return Poll::Pending;
            }
        };
        if count == 0 {
            self.is_eof = true;
        } else {
            self.bulk.saw(count);
            self.moved += 1;
            self.has_arrived |= std::mem::take(&mut self.is_drained);
            if let Some(counter) = self.counter {
                counter.add(count as u64);
            }
        }
        Poll::Ready(Ok(count))
    }

    fn copy(&mut self, cx: &mut Context<'_>, from: &mut Side<'_>) -> Poll<io::Result<usize>> {
        loop {
            // Nobody holds a buffer to wait with.
            ready!(from.poll_readable(cx))?;
            self.pipe = None;
            let buffer = self.buffer.get_or_insert_with(buffer::take_read);
            if let Some(count) = ready!(from.poll_receive(cx, buffer))? {
                (self.start, self.end) = (0, count);
                if let (Some(tcp), 1..) = (from.plain(), count) {
                    self.look_behind(cx, tcp);
                }
                return Poll::Ready(Ok(self.end));
            }
        }
    }

    /// Looks whether the end has come right behind the bytes, to pass both on in one packet (a connection with one short
    /// answer costs a twentieth less). No call is made for it unless something is there.
    fn look_behind(&mut self, cx: &mut Context<'_>, from: &TcpStream) {
        let Some(room) =
            self.buffer.as_mut().and_then(|buffer| buffer.get_mut(self.end..)).filter(|room| !room.is_empty())
        else {
            return;
        };
        match from.poll_read_ready(cx).map(|_| receive(from, room)) {
            Poll::Pending => self.is_awaited = is_registered(),
            Poll::Ready(Ok(Some(0))) => self.is_eof = true,
            Poll::Ready(Ok(count)) => self.end += count.unwrap_or(0),
            Poll::Ready(Err(error)) => self.broke = Some(error),
        }
    }

    fn fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            let Some(pipe) = &mut self.pipe else {
                return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
            };
            let (buffer, mut copied) = (&mut self.buffer, 0);
            let filled = from.try_io(Interest::READABLE, || {
                match pipe.fill(from, usize::MAX) {
                    // The pipe is empty: so is the socket, or it is at its end. Unless an urgent byte is next, before which
                    // the kernel says the same for ever: a read passes it.
                    Ok(0) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return done,
                }
                let buffer = buffer.get_or_insert_with(buffer::take_read);
                copied = rustix::io::retry_on_intr(|| rustix::io::read(from, &mut buffer[..]))?;
                Ok(copied)
            });
            (self.start, self.end) = (0, copied);
            match filled {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    /// Whether there is a pipe for this direction; it has no use for its buffer then.
    fn has_pipe(&mut self) -> bool {
        if self.pipe.is_none() {
            self.pipe = Pipe::take();
        }
        if self.pipe.is_some() {
            buffer::give_back_read(self.buffer.take());
        }
        self.pipe.is_some()
    }

    fn let_go(&mut self) {
        buffer::give_back_read(self.buffer.take());
        self.pipe = None;
    }
}

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        buffer::give_back_read(self.buffer.take());
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
        let (mut from_side, mut to_side) = (Side::Plain(from), Side::Plain(to));
        from.readable().await.unwrap();
        while read < bytes || !flow.waiting().is_empty() || flow.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0) {
            let step = poll_fn(|cx| flow.advance(cx, &mut from_side, &mut to_side, false)).await;
            read += step.unwrap_or_else(|_| panic!("it broke"));
            signs += usize::from(std::mem::take(&mut flow.has_arrived));
        }
        signs
    }

    /// What a flow does with five bytes and what came right behind them: it is done, it failed, or it waits for more.
    async fn after_five_bytes(behind: fn(&TcpStream)) -> (Vec<u8>, Option<Result<(), Broke>>) {
        let ((mut backend, from), (to, mut client)) = (pair().await, pair().await);
        backend.write_all(b"hello").await.unwrap();
        behind(&backend);
        drop(backend);
        // Both have arrived.
        from.ready(Interest::READABLE).await.unwrap();
        while !from.ready(Interest::READABLE | Interest::ERROR).await.unwrap().is_read_closed() {
            tokio::task::yield_now().await;
        }
        let (mut from_side, mut to_side) = (Side::Plain(&from), Side::Plain(&to));
        let mut flow = Flow::new(Bytes::new(), None);
        let polled = poll_fn(|cx| Poll::Ready(flow.poll(cx, &mut from_side, &mut to_side, false))).await;
        assert!(flow.buffer.is_none() || !flow.is_done);
        let mut got = vec![0; 5];
        client.read_exact(&mut got).await.unwrap();
        let is_ended = client.try_read(&mut [0]).is_ok_and(|count| count == 0);
        assert_eq!(is_ended, matches!(polled, Poll::Ready(Ok(()))), "the end has come with the bytes");
        (
            got,
            match polled {
                Poll::Ready(done) => Some(done),
                Poll::Pending => None,
            },
        )
    }

    #[tokio::test]
    async fn the_end_goes_on_together_with_the_last_bytes() {
        let (got, done) = after_five_bytes(|_| {}).await;
        assert!(got == b"hello" && matches!(done, Some(Ok(()))));
    }

    #[tokio::test]
    async fn a_reset_behind_the_last_bytes_is_no_end() {
        let (got, done) = after_five_bytes(reset_on_close).await;
        assert!(got == b"hello" && matches!(done, Some(Err(Broke::From))));
    }

    #[tokio::test]
    async fn what_waited_for_a_slow_reader_is_no_sign_of_life() {
        let ((mut backend, from), (to, client)) = (pair().await, pair().await);
        let reading = tokio::spawn(async move { tokio::io::copy(&mut { client }, &mut tokio::io::sink()).await });
        let mut flow = Flow::new(Bytes::new(), None);
        // What follows is moved, not copied.
        let bytes = 4 * buffer::BUFFER_BYTES;
        backend.write_all(&vec![7; bytes]).await.unwrap();
        // All of it has arrived before any of it is read.
        let mut peeked = vec![0; bytes];
        while from.peek(&mut peeked).await.unwrap() < bytes {
            tokio::task::yield_now().await;
        }
        assert_eq!(signs_of_life(&mut flow, &from, &to, bytes).await, 1);
        assert!(flow.bulk.is());
        // Read to its end, it is a sign when more comes.
        let (mut from_side, mut to_side) = (Side::Plain(&from), Side::Plain(&to));
        let step = poll_fn(|cx| Poll::Ready(flow.advance(cx, &mut from_side, &mut to_side, false))).await;
        assert!(step.is_pending() && flow.pipe.is_none() && flow.buffer.is_none());
        backend.write_all(b"more").await.unwrap();
        assert_eq!(signs_of_life(&mut flow, &from, &to, 4).await, 1);
        drop((flow, to));
        reading.await.unwrap().unwrap();
    }
}
