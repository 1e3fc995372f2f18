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
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::Shared;
use super::alarm::Alarm;
use super::clock::next_tick;
use super::dial::{KEEPALIVE, keep_alive, reset_on_close};
use super::gone::Gone;
use super::http1::buffer::{self, BUFFER_BYTES};
use super::splice::{Bulk, Pipe};
use super::stream::{Side, Stream, is_readable, is_registered, receive, transmit};
use crate::backend::{Lease, Load};
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
}

/// How a relay came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Both sides said that they are done.
    Finished,
    /// Nothing moved for too long.
    Idle,
    /// The client's connection broke.
    ClientBroke,
    /// The backend's connection broke.
    BackendBroke,
    /// The backend is gone, and its connections with it.
    Removed,
}

/// Passes bytes on until both directions have ended, one connection breaks, nothing moves for `idle`, or the backend of
/// `lease` is gone and its connections are to be ended; and counts how it ended.
/// A connection that broke is passed on as one: the other side is reset when it is closed. One that broke after it had
/// said everything has finished.
///
/// What each wake looks at is kept close together, behind as few futures in futures as can be: with thousands of
/// connections, most of what a small piece costs here is to fetch it. (An `async fn` has room for its arguments twice.)
pub(super) fn run<'a>(
    shared: &'a Shared,
    lease: &'a Lease,
    client: End<'a>,
    backend: End<'a>,
    idle: Duration,
) -> impl Future<Output = ()> + 'a {
    let load = &lease.backend().load;
    let mut relay = Relay::new(client, backend, load, idle);
    async move {
        let outcome = {
            let cancelled = pin!(load.gone.cancelled());
            let mut gone = Gone::new(shared, load, cancelled);
            let timer = pin!(tokio::time::sleep(relay.patience()));
            let mut alarm = Alarm::new(timer);
            let outcome = poll_fn(|cx| match gone.poll(cx) {
                Poll::Ready(()) => Poll::Ready(Outcome::Removed),
                Poll::Pending => relay.poll(cx, &mut alarm),
            });
            outcome.await
        };
        // What one side said to its end is not destroyed because of what the other said to it later: a reset, or a close
        // with something unread, would throw away what still waits in the kernel.
        match outcome {
            Outcome::Finished => return,
            Outcome::BackendBroke if relay.down.is_done => return Box::pin(linger(&mut relay.client, idle)).await,
            Outcome::ClientBroke if relay.up.is_done => return Box::pin(linger(&mut relay.backend, idle)).await,
            Outcome::BackendBroke => {
                shared.counters.broken.inc();
                lease.failed();
            }
            Outcome::Removed => shared.counters.killed.inc(),
            Outcome::Idle | Outcome::ClientBroke => {}
        }
        // What is cut must not look finished.
        reset_on_close(relay.client.tcp());
        reset_on_close(relay.backend.tcp());
    }
}

/// Both directions, and what is waited for besides.
struct Relay<'a> {
    up: Flow<'a>,
    down: Flow<'a>,
    client: Side<'a>,
    backend: Side<'a>,
    /// The backend's. It is told when something has just arrived.
    load: &'a Load,
    idle: Duration,
    moved_at: Instant,
    /// A backend is asked whether it is still there from when it has been silent for the first time: most connections are
    /// over by then, and so are all whose idle time is shorter. A client's connection has it from the socket that listens.
    is_kept: bool,
    /// Waits for a reset of a client that nobody reads, which its backend works for in vain. Who reads hears of it; so it is
    /// with backends, which are read until they have said everything.
    client_breaks: Option<Pin<Box<dyn Future<Output = ()> + 'a>>>,
}

impl<'a> Relay<'a> {
    fn new(client: End<'a>, backend: End<'a>, load: &'a Load, idle: Duration) -> Self {
        Self {
            up: Flow::new(client.ahead, client.sent),
            down: Flow::new(backend.ahead, backend.sent),
            client: Side::of(client.stream),
            backend: Side::of(backend.stream),
            load,
            idle,
            moved_at: next_tick(),
            is_kept: idle <= KEEPALIVE.0,
            client_breaks: None,
        }
    }

    /// How long nothing may move before something is done about it.
    fn patience(&self) -> Duration {
        if self.is_kept { self.idle } else { KEEPALIVE.0 }
    }

    fn poll(&mut self, cx: &mut Context<'_>, alarm: &mut Alarm<&mut Sleep>) -> Poll<Outcome> {
        let before = self.up.moved + self.down.moved;
        let up = self.up.poll(cx, &mut self.client, &mut self.backend, self.down.is_done);
        let down = self.down.poll(cx, &mut self.backend, &mut self.client, self.up.is_done);
        match (up, down) {
            (Poll::Ready(Err(broke)), _) => {
                return Poll::Ready(broke.of(Outcome::ClientBroke, Outcome::BackendBroke));
            }
            (_, Poll::Ready(Err(broke))) => {
                return Poll::Ready(broke.of(Outcome::BackendBroke, Outcome::ClientBroke));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Outcome::Finished),
            _ => {}
        }
        let has_moved = self.up.moved + self.down.moved != before;
        // Nobody reads the client: it has ended, or waits for the backend. Where bytes have just passed a reset shows in
        // them; to ask each time would take a lock for each piece.
        let is_watched = has_moved && self.client_breaks.is_some();
        if let Some(client) = self.client.plain()
            && !(self.up.is_listening() || is_watched)
            && self.client_breaks.get_or_insert_with(|| Box::pin(broken(client))).as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Outcome::ClientBroke);
        }
        if has_moved {
            self.moved_at = next_tick();
            if std::mem::take(&mut self.down.has_arrived) {
                self.load.succeeded(self.moved_at.into());
            }
        }
        while alarm.poll(cx, self.moved_at + self.patience()).is_ready() {
            if self.is_kept {
                return Poll::Ready(Outcome::Idle);
            }
            self.is_kept = true;
            keep_alive(self.backend.tcp());
        }
        Poll::Pending
    }
}

/// Reads what is for nobody any more, until the peer is done too.
async fn linger(side: &mut Side<'_>, idle: Duration) {
    let rest = async {
        let mut buffer = buffer::take_read();
        while poll_fn(|cx| side.poll_read(cx, &mut buffer)).await.is_ok_and(|count| count > 0) {}
        buffer::give_back_read(Some(buffer));
    };
    let _ = tokio::time::timeout(idle.min(LINGER_MAX), rest).await;
}

/// Waits for an error of a plain connection. One with TLS cannot be waited for while it is read and written: its reset is
/// found by whoever reads or writes it next.
async fn broken(stream: &TcpStream) {
    let _ = stream.ready(Interest::ERROR).await;
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

/// What is known of what there is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    Unknown,
    /// There is something: it takes no lock to know it.
    Here,
    /// There is nothing, and whoever polls this is woken when there is: the kernel tells the runtime, which keeps the waker.
    Awaited,
}

/// One direction. An idle one holds no buffer and no pipe.
struct Flow<'a> {
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
    arrival: Arrival,
    /// Nothing is held: all there is to do is to read, when something has come.
    is_waiting: bool,
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
        let end = ahead.len();
        Self {
            buffer: (end > 0).then(|| ahead.into()),
            start: 0,
            end,
            pipe: None,
            bulk: Bulk::default(),
            is_to_flush: false,
            is_eof: false,
            is_done: false,
            broke: None,
            arrival: Arrival::Unknown,
            is_waiting: false,
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
        self.look(from);
        if self.is_listening() {
            return Poll::Pending;
        }
        if std::mem::take(&mut self.is_waiting)
            && self.arrival == Arrival::Here
            && let (Some(from), Some(to)) = (from.plain(), to.plain())
            && !self.bulk.is()
        {
            self.pass_straight(cx, from, to)?;
            if self.is_listening() {
                return Poll::Pending;
            }
        }
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

    /// Whether all there is to do is to read what comes, and whoever polls this is woken when it does.
    fn is_listening(&self) -> bool {
        self.is_waiting && self.arrival == Arrival::Awaited
    }

    /// Begins a turn. What can be read does not change before the next, but by reading.
    fn look(&mut self, from: &Side<'_>) {
        if self.arrival == Arrival::Awaited && from.plain().is_some_and(is_readable) {
            self.arrival = Arrival::Here;
        }
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

    /// What a chatty side says, from one to the other in a step that knows that nothing is held. What does not go on at
    /// once is left to the other steps.
    fn pass_straight(&mut self, cx: &mut Context<'_>, from: &TcpStream, to: &TcpStream) -> Result<(), Broke> {
        self.arrival = Arrival::Unknown;
        let buffer = self.buffer.insert(buffer::take_read());
        let received = receive(from, buffer).map_err(|_| Broke::From)?;
        (self.start, self.end) = (0, received.unwrap_or(0));
        match received {
            Some(count @ 1..) => self.saw(count),
            Some(_) => self.is_eof = true,
            None => {}
        }
        if self.end > 0 {
            self.look_behind(cx, from);
        }
        if self.arrival == Arrival::Awaited {
            if let Some(sent @ 1..) = transmit(to, self.waiting(), SendFlags::empty()).map_err(|_| Broke::To)? {
                self.start = sent;
                self.moved += 1;
            }
            // What comes while a rest waits has waited too, when it is read.
            if self.start == self.end {
                self.is_drained = true;
                self.is_waiting = true;
                buffer::give_back_read(self.buffer.take());
            }
        }
        Ok(())
    }

    /// Something was read.
    fn saw(&mut self, count: usize) {
        self.bulk.saw(count);
        self.moved += 1;
        self.has_arrived |= std::mem::take(&mut self.is_drained);
        if let Some(counter) = self.counter {
            counter.add(count as u64);
        }
    }

    fn waiting(&self) -> &[u8] {
        match &self.buffer {
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
        self.start += count;
        if self.start == self.end && self.buffer.as_ref().is_some_and(|bytes| bytes.len() != BUFFER_BYTES) {
            // It was there ahead, and is none to read with.
            self.buffer = None;
        }
        self.is_to_flush = to.plain().is_none();
        // Progress is what leaves: a peer that takes nothing is idle however much the other side sends.
        self.moved += 1;
        Poll::Ready(Ok(()))
    }

    fn read(&mut self, cx: &mut Context<'_>, from: &mut Side<'_>, to: &Side<'_>) -> Poll<io::Result<usize>> {
        if let Some(error) = self.broke.take() {
            return Poll::Ready(Err(error));
        }
        let polled = match (from.plain(), to.plain()) {
            _ if self.arrival == Arrival::Awaited => Poll::Pending,
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
                if from.plain().is_some() && is_registered() {
                    self.arrival = Arrival::Awaited;
                }
                self.is_waiting = true;
                self.let_go();
                return Poll::Pending;
            }
        };
        if count == 0 {
            self.is_eof = true;
        } else {
            self.saw(count);
        }
        Poll::Ready(Ok(count))
    }

    fn copy(&mut self, cx: &mut Context<'_>, from: &mut Side<'_>) -> Poll<io::Result<usize>> {
        loop {
            // Nobody holds a buffer to wait with.
            if std::mem::replace(&mut self.arrival, Arrival::Unknown) != Arrival::Here {
                ready!(from.poll_readable(cx))?;
            }
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
            Poll::Pending if is_registered() => self.arrival = Arrival::Awaited,
            Poll::Pending => {}
            Poll::Ready(Ok(Some(0))) => self.is_eof = true,
            Poll::Ready(Ok(count)) => self.end += count.unwrap_or(0),
            Poll::Ready(Err(error)) => self.broke = Some(error),
        }
    }

    fn fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            self.arrival = Arrival::Unknown;
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
        flow.look(&from_side);
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
        let bytes = 4 * BUFFER_BYTES;
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

    #[tokio::test]
    async fn what_came_while_a_piece_waited_is_no_sign_of_life() {
        let ((mut backend, from), (to, client)) = (pair().await, pair().await);
        let counter = Counter::default();
        let mut flow = Flow::new(Bytes::new(), Some(&counter));
        let (mut from_side, mut to_side) = (Side::Plain(&from), Side::Plain(&to));
        let mut turn = |cx: &mut Context<'_>, flow: &mut Flow<'_>| {
            assert!(flow.poll(cx, &mut from_side, &mut to_side, false).is_pending());
            Poll::Ready(())
        };
        poll_fn(|cx| turn(cx, &mut flow)).await;
        assert!(flow.is_listening());
        // The client reads nothing for now. A piece may still find room, of what was acknowledged late.
        while flow.waiting().is_empty() {
            while to.try_write(&[7; BUFFER_BYTES]).is_ok() {}
            backend.write_all(b"piece").await.unwrap();
            from.readable().await.unwrap();
            poll_fn(|cx| turn(cx, &mut flow)).await;
            assert!(std::mem::take(&mut flow.has_arrived));
        }
        let count = counter.get();
        backend.write_all(b"more").await.unwrap();
        from.readable().await.unwrap();
        let reading = tokio::spawn(async move { tokio::io::copy(&mut { client }, &mut tokio::io::sink()).await });
        poll_fn(|cx| {
            let done = turn(cx, &mut flow);
            if counter.get() > count { done } else { Poll::Pending }
        })
        .await;
        assert!(!flow.has_arrived);
        drop((flow, to));
        reading.await.unwrap().unwrap();
    }
}
