//! One request and its response over one connection to a backend, both directions at once.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::body::Body;
use super::chunked::Output;
use super::head::{FIELDS_INLINE, Length, ResponseHead, Scan, parse_response};
use crate::proxy::clock::next_tick;
use crate::proxy::forward::{Answered, Attempt, Front, Miss};
use crate::proxy::pace::Pace;
use crate::proxy::relay::TURN_BYTES;
use crate::proxy::splice::Pipe;
use crate::proxy::upstream::Upstream;

/// What a response's head may take.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Pieces of a request's body that are sent before it is looked for a response.
const PIECES_MAX: usize = 4;
/// Interim responses (1xx) before the one that counts.
const INTERIM_MAX: usize = 16;
/// What is left of a body that is worth a pipe.
const LONG_BYTES: u64 = 128 * 1024;

pub(in crate::proxy) struct Exchange<'x, 'a, F> {
    attempt: &'x mut Attempt<'a>,
    front: &'x mut F,
    /// None when it has been given away.
    upstream: Option<Box<Upstream>>,
    /// How much of the head, and of what came with it, was sent.
    sent: usize,
    up: Up,
    down: Down,
    scan: Scan,
    interims: usize,
    /// Whether the connection may be used again after this.
    keeps_alive: bool,
    /// Whose turn it is as long as no response has begun.
    is_clients_turn: bool,
    pace: Pace,
    /// When the turn changed, and after that: when something moved last.
    since: Instant,
    has_moved: bool,
    /// The backend takes no more of the request for now.
    is_blocked: bool,
    /// Through which a long body goes.
    pipe: Option<Pipe>,
    /// There is none for it, or its sockets have no use for one.
    has_no_pipe: bool,
}

/// The request's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Up {
    Sending,
    Done,
    /// The backend takes no more of it. It may have answered all the same.
    Broken,
}

/// How much of the request has been sent.
enum Sent {
    All,
    /// Some pieces of its body; there may be more.
    Pieces,
}

/// The response's way.
enum Down {
    Head,
    Body(Body),
    Switched,
}

impl<'x, 'a, F: Front> Exchange<'x, 'a, F> {
    pub(in crate::proxy) fn new(
        attempt: &'x mut Attempt<'a>,
        upstream: Box<Upstream>,
        front: &'x mut F,
        now: Instant,
    ) -> Self {
        let pace = Pace::new(attempt.request.is_upload(), attempt.client.config.timeouts.body_progress);
        Self {
            attempt,
            front,
            upstream: Some(upstream),
            sent: 0,
            up: Up::Sending,
            down: Down::Head,
            scan: Scan::default(),
            interims: 0,
            keeps_alive: false,
            is_clients_turn: false,
            pace,
            since: now,
            has_moved: false,
            is_blocked: false,
            pipe: None,
            has_no_pipe: false,
        }
    }

    /// Moves what can be moved. An error as long as no response has begun; later it is one that broke off.
    pub(in crate::proxy) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answered, Miss>> {
        let is_waiting = matches!(self.down, Down::Head);
        let mut polled = match self.attempt.look(cx, is_waiting) {
            Some(miss) => Poll::Ready(Err(miss)),
            None => self.poll_both(cx),
        };
        if polled.is_pending() {
            polled = self.poll_deadline(cx).map(Err);
        }
        match polled {
            Poll::Ready(Err(miss)) if !matches!(self.down, Down::Head) => {
                // What came is passed on, as far as that is possible at once.
                let _ = self.front.poll_flush(cx);
                Poll::Ready(Ok(Answered::Broken(miss)))
            }
            polled => polled,
        }
    }

    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answered, Miss>> {
        let Some(mut upstream) = self.upstream.take() else {
            return Poll::Ready(Err(Miss::Lost));
        };
        let mut polled = self.poll_in_turns(cx, &mut upstream);
        if polled.is_pending() {
            let gone = match self.up {
                Up::Done => self.front.poll_gone(cx),
                // It is read from.
                Up::Sending if !self.is_blocked => Poll::Pending,
                Up::Sending | Up::Broken => self.front.poll_broken(cx),
            };
            polled = gone.map(|()| Err(Miss::ClientGone));
        }
        match polled {
            Poll::Pending => {
                self.upstream = Some(upstream);
                Poll::Pending
            }
            Poll::Ready(Err(miss)) => Poll::Ready(Err(miss)),
            Poll::Ready(Ok(())) if matches!(self.down, Down::Switched) => Poll::Ready(Ok(Answered::Switched(upstream))),
            Poll::Ready(Ok(())) => {
                // Bytes that nobody asked for, or a request that it did not read, would be taken for those of the next.
                if self.keeps_alive && self.up == Up::Done && upstream.input.is_empty() {
                    self.attempt.client.worker.upstreams.keep(self.attempt.lease.backend(), upstream, self.since);
                }
                Poll::Ready(Ok(Answered::Whole))
            }
        }
    }

    /// Both directions, the response first: one that comes early is seen before more of the request goes out. Nothing is
    /// read before anything was sent, since it could not be meant for this request.
    fn poll_in_turns(&mut self, cx: &mut Context<'_>, upstream: &mut Upstream) -> Poll<Result<(), Miss>> {
        loop {
            let was_sent = self.sent > 0;
            if was_sent && let Poll::Ready(done) = self.poll_down(cx, upstream) {
                return Poll::Ready(done);
            }
            match self.poll_up(cx, upstream)? {
                Poll::Ready(Sent::Pieces) => {}
                Poll::Ready(Sent::All) | Poll::Pending if was_sent || self.sent == 0 => return Poll::Pending,
                Poll::Ready(Sent::All) | Poll::Pending => return self.poll_down(cx, upstream),
            }
        }
    }

    /// Whose turn it is may take so long, and not longer.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Miss> {
        let timeouts = &self.attempt.client.config.timeouts;
        // A response's last bytes may take a while to leave; what was said before it is no progress.
        let has_written = self.front.has_written() && !matches!(self.down, Down::Head);
        if std::mem::take(&mut self.has_moved) || has_written {
            let now = Instant::now();
            self.pace.turn(now - self.since, self.is_clients_turn);
            self.since = now;
        }
        let (wait, miss) = match self.down {
            Down::Head if self.is_clients_turn => (self.pace.left(), Miss::ClientSlow),
            Down::Head => (timeouts.response, Miss::BackendSlow),
            Down::Body(_) | Down::Switched => (timeouts.body_progress, Miss::BackendSlow),
        };
        self.front.poll_deadline(cx, self.since + wait).map(|()| miss)
    }

    /// Ready when there is nothing more to send, or a good deal has been sent.
    fn poll_up(&mut self, cx: &mut Context<'_>, upstream: &mut Upstream) -> Poll<Result<Sent, Miss>> {
        let mut pieces = 0;
        self.is_blocked = false;
        while self.up == Up::Sending {
            if pieces == PIECES_MAX {
                return Poll::Ready(Ok(Sent::Pieces));
            }
            pieces += 1;
            let head = self.attempt.request.bytes().get(self.sent..).unwrap_or_default();
            let is_head = !head.is_empty();
            let bytes = if is_head {
                head
            } else if self.front.is_body_done() {
                &[]
            } else {
                match self.front.poll_body(cx)? {
                    Poll::Ready(bytes) => bytes,
                    Poll::Pending => {
                        let is_clients_turn = !self.front.is_body_held();
                        self.has_moved |= is_clients_turn != self.is_clients_turn;
                        self.is_clients_turn = is_clients_turn;
                        let _ = Pin::new(&mut upstream.stream).poll_flush(cx);
                        return Poll::Pending;
                    }
                }
            };
            if bytes.is_empty() {
                self.up = Up::Done;
                self.has_moved |= std::mem::take(&mut self.is_clients_turn);
                break;
            }
            self.has_moved |= std::mem::take(&mut self.is_clients_turn);
            let Poll::Ready(written) = Pin::new(&mut upstream.stream).poll_write(cx, bytes) else {
                self.is_blocked = true;
                return Poll::Pending;
            };
            match written {
                Ok(count @ 1..) if is_head => self.sent += count,
                Ok(count @ 1..) => {
                    self.front.take_body(count);
                    self.pace.pass(count);
                    self.has_moved = true;
                }
                Ok(_) | Err(_) if self.sent == 0 => return Poll::Ready(Err(Miss::Unsent)),
                Ok(_) | Err(_) => self.up = Up::Broken,
            }
        }
        if self.up == Up::Done && ready!(Pin::new(&mut upstream.stream).poll_flush(cx)).is_err() {
            self.up = Up::Broken;
        }
        Poll::Ready(Ok(Sent::All))
    }

    /// Ready when the response has been handed over whole, or the protocol has changed.
    fn poll_down(&mut self, cx: &mut Context<'_>, upstream: &mut Upstream) -> Poll<Result<(), Miss>> {
        loop {
            ready!(self.poll_piped(cx, upstream))?;
            match &mut self.down {
                Down::Head => ready!(self.poll_head(cx, upstream))?,
                Down::Switched => return self.front.poll_finish(cx, &[]).map_err(|_| Miss::ClientGone),
                Down::Body(body) => {
                    let ready = body.ready(&mut upstream.input).map_err(|_| Miss::Nonsense)?;
                    if ready > 0 {
                        let bytes = upstream.input.filled().get(..ready).unwrap_or_default();
                        let Poll::Ready(count) = self.front.poll_send(cx, bytes) else {
                            upstream.input.tighten();
                            return Poll::Pending;
                        };
                        let count = count.map_err(|_| Miss::ClientGone)?;
                        body.take(&mut upstream.input, count);
                        self.has_moved = true;
                        continue;
                    }
                    if body.is_done() {
                        let finished = ready!(self.front.poll_finish(cx, body.trailers()));
                        return Poll::Ready(finished.map_err(|_| Miss::ClientGone));
                    }
                    // For who takes nothing, nothing is read, and no buffer held.
                    let Poll::Ready(room) = self.front.poll_room(cx) else {
                        upstream.input.release();
                        return Poll::Pending;
                    };
                    let room = room.map_err(|_| Miss::ClientGone)?;
                    match upstream.input.poll_fill_some(cx, &mut upstream.stream, room) {
                        Poll::Pending => {
                            // As long as nothing comes, nothing waits for more.
                            ready!(self.front.poll_flush(cx)).map_err(|_| Miss::ClientGone)?;
                            return Poll::Pending;
                        }
                        Poll::Ready(Ok(1..)) => self.has_moved = true,
                        Poll::Ready(Ok(0)) if body.end() => {}
                        Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Miss::Lost)),
                    }
                }
            }
        }
    }

    /// Has the kernel move what is left of a long body from socket to socket. Ready when nothing is left, or when it has to
    /// be copied.
    fn poll_piped(&mut self, cx: &mut Context<'_>, upstream: &Upstream) -> Poll<Result<(), Miss>> {
        let Self { front, down: Down::Body(body), pipe, has_no_pipe, has_moved, .. } = self else {
            return Poll::Ready(Ok(()));
        };
        let is_long = |body: &Body| body.left().is_some_and(|left| left >= LONG_BYTES);
        // What was read goes first.
        let may_be = upstream.input.is_bulk() && upstream.input.is_empty() && !*has_no_pipe;
        if pipe.is_none() && !(may_be && is_long(body)) {
            return Poll::Ready(Ok(()));
        }
        let socket = ready!(front.poll_socket(cx)).map_err(|_| Miss::ClientGone)?;
        let (Some(from), Some(to)) = (upstream.stream.plain(), socket) else {
            *has_no_pipe = true;
            return Poll::Ready(Ok(()));
        };
        let mut turn_bytes = 0;
        while let Some(left @ 1..) = body.left().map(|left| left + pipe.as_ref().map_or(0, Pipe::held) as u64) {
            if pipe.is_none() {
                *pipe = Pipe::take();
            }
            let Some(way) = pipe.as_mut() else {
                *has_no_pipe = true;
                return Poll::Ready(Ok(()));
            };
            if way.held() > 0 {
                ready!(way.poll_empty(cx, to)).map_err(|_| Miss::ClientGone)?;
                *has_moved = true;
                continue;
            }
            if turn_bytes >= TURN_BYTES {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let filled = way.poll_fill(cx, from, usize::try_from(left).unwrap_or(usize::MAX));
            match filled {
                Poll::Ready(Ok(count @ 1..)) => {
                    body.pass(count);
                    turn_bytes += count;
                    *has_moved = true;
                }
                // Nobody holds a pipe to wait with.
                Poll::Pending => {
                    *pipe = None;
                    return Poll::Pending;
                }
                // What this is, its end or an urgent byte or no socket for it, a read will tell.
                Poll::Ready(Ok(0) | Err(_)) => {
                    (*pipe, *has_no_pipe) = (None, true);
                    return Poll::Ready(Ok(()));
                }
            }
        }
        *pipe = None;
        Poll::Ready(Ok(()))
    }

    /// Ready when a head has been dealt with, whichever.
    fn poll_head(&mut self, cx: &mut Context<'_>, upstream: &mut Upstream) -> Poll<Result<(), Miss>> {
        loop {
            if self.interims > 0 {
                // One after another, so that they do not pile up for who does not read them.
                ready!(self.front.poll_flush(cx)).map_err(|_| Miss::ClientGone)?;
            }
            if let Some(end) = self.scan.find(upstream.input.filled()).map_err(|_| Miss::Nonsense)? {
                self.scan = Scan::default();
                let mut room = [const { MaybeUninit::uninit() }; FIELDS_INLINE];
                let bytes = upstream.input.filled().get(..end).unwrap_or_default();
                let head = parse_response(bytes, &mut room).map_err(|_| Miss::Nonsense)?;
                let down = self.take_head(&head)?;
                upstream.input.consume(end);
                upstream.input.release();
                if let Some(down) = down {
                    self.down = down;
                    self.has_moved = false;
                    self.since = next_tick();
                    self.attempt.lease.backend().load.succeeded(self.since.into());
                }
                return Poll::Ready(Ok(()));
            }
            if upstream.input.is_full() {
                if upstream.input.filled().len() >= HEAD_BYTES_MAX {
                    return Poll::Ready(Err(Miss::Nonsense));
                }
                upstream.input.grow(HEAD_BYTES_MAX);
            }
            match upstream.input.poll_fill_some(cx, &mut upstream.stream, self.front.head_room()) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Miss::Lost)),
            }
        }
    }

    /// What follows a response's head; none if another head does.
    fn take_head(&mut self, head: &ResponseHead<'_, '_>) -> Result<Option<Down>, Miss> {
        let request = self.attempt.request;
        match head.status {
            // Only if it was asked for, and nothing of the request is left that could be taken for the new protocol.
            101 if head.upgrade.is_some_and(|to| request.asks_for(to)) && self.up == Up::Done => {
                self.front.switch(head);
                Ok(Some(Down::Switched))
            }
            101 => Err(Miss::Nonsense),
            100..200 => {
                self.interims += 1;
                if self.interims > INTERIM_MAX {
                    return Err(Miss::Nonsense);
                }
                self.front.interim(head);
                Ok(None)
            }
            status => {
                let is_without = request.is_head() || status == 204 || status == 304;
                let length = if is_without { Length::None } else { head.length };
                let is_said = status == 204 && !matches!(head.length, Length::Known(0) | Length::UntilClose);
                // One that did not wait for the whole request may not read the rest of it either.
                let is_early = self.up != Up::Done;
                self.keeps_alive = head.keeps_alive && length != Length::UntilClose && !is_said && !is_early;
                let output: Output = self.front.begin(head, length);
                Ok(Some(Down::Body(Body::new(length, output))))
            }
        }
    }
}
