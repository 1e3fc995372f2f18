//! HTTP/1.1 connections to backends, kept while they are idle, dropped when they are old. One store a worker.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use foldhash::HashMap;
use tokio::task::coop::unconstrained;
use tokio::time::Instant;

use super::http1::buffer::Input;
use super::stream::{Stream, is_readable};
use crate::app::Protocol;
use crate::backend::{Backend, Load};

/// Idle connections that a worker keeps to one backend.
const IDLE_MAX: usize = 32;
/// How long an idle connection is kept.
const IDLE_AGE_MAX: Duration = Duration::from_secs(60);

/// A connection over which one request can be sent now. In a box, since it changes hands some ten times a request.
pub(super) struct Upstream {
    pub(super) stream: Stream,
    /// What was read and not yet used.
    pub(super) input: Input,
}

impl From<Stream> for Upstream {
    fn from(stream: Stream) -> Self {
        Self { stream, input: Input::default() }
    }
}

/// The idle connections, by backend; the one used last is used next.
#[derive(Default)]
pub(super) struct Upstreams {
    idle: RefCell<HashMap<(SocketAddr, Protocol), Vec<Idle>>>,
}

struct Idle {
    upstream: Box<Upstream>,
    load: Arc<Load>,
    since: Instant,
}

impl Idle {
    /// Whether a request may go out over it: nobody has said anything that was not asked for, the end included. What
    /// nothing has happened to costs no system call.
    fn is_good(&mut self, now: Instant) -> bool {
        let Upstream { stream, input } = &mut *self.upstream;
        let mut is_silent = || {
            if stream.plain().is_some_and(|tcp| !is_readable(tcp)) {
                return true;
            }
            // A task whose turn is over is told that nothing is there, whatever is: that does not count.
            let reading = pin!(unconstrained(poll_fn(|cx| input.poll_fill(cx, stream))));
            reading.poll(&mut Context::from_waker(Waker::noop())).is_pending()
        };
        now.duration_since(self.since) < IDLE_AGE_MAX && takes_work(&self.load) && is_silent()
    }
}

impl Upstreams {
    /// An idle connection to this backend, if there is one at `now`.
    pub(super) fn take(&self, backend: &Backend, now: Instant) -> Option<Box<Upstream>> {
        let mut all = self.idle.borrow_mut();
        let idle = all.get_mut(&(backend.address, backend.protocol))?;
        std::iter::from_fn(|| idle.pop()).find_map(|mut idle| idle.is_good(now).then_some(idle.upstream))
    }

    /// Keeps a connection whose response has been read to its end, and on which something moved at `since`.
    pub(super) fn keep(&self, backend: &Backend, mut upstream: Box<Upstream>, since: Instant) {
        if !takes_work(&backend.load) {
            return;
        }
        // An idle connection holds no buffer, and the next one that reads finds this one warm.
        upstream.input.release();
        let mut all = self.idle.borrow_mut();
        let idle = all.entry((backend.address, backend.protocol)).or_default();
        if idle.len() >= IDLE_MAX {
            idle.remove(0);
        }
        idle.push(Idle { upstream, load: Arc::clone(&backend.load), since });
    }

    /// Drops all, for want of descriptors; says whether there were any.
    pub(super) fn clear(&self) -> bool {
        let all = std::mem::take(&mut *self.idle.borrow_mut());
        all.values().any(|idle| !idle.is_empty())
    }

    /// Drops what is closed, old, or to a backend that is gone or takes nothing new.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|_, idle| {
            idle.retain_mut(|idle| idle.is_good(now));
            !idle.is_empty()
        });
    }
}

fn takes_work(load: &Load) -> bool {
    !load.is_gone() && !load.rests()
}
