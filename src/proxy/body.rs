//! Bodies on their way, both directions.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::OnRemoval;
use super::client::Watch;
use super::upstream::Sender;
use super::worker::Worker;
use crate::backend::Lease;

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error(transparent)]
    Engine(#[from] hyper::Error),
    #[error("the backend is gone")]
    Killed,
}

/// Whose turn it is to move a request on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The client: more of the body is wanted.
    Client,
    /// The backend: to take what is there, or to answer.
    Backend,
}

/// How far a request's body has got, for whoever waits for the response.
#[derive(Debug)]
pub(super) struct Progress {
    turn: Cell<Turn>,
    since: Cell<Instant>,
}

impl Progress {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self { turn: Cell::new(Turn::Backend), since: Cell::new(Instant::now()) })
    }

    /// Whose turn it is, and since when.
    pub(super) fn turn(&self) -> (Turn, Instant) {
        (self.turn.get(), self.since.get())
    }

    fn pass(&self, turn: Turn) {
        self.turn.set(turn);
        self.since.set(Instant::now());
    }
}

/// A request's body on its way to a backend.
pub(super) struct RequestBody(Option<Upload>);

struct Upload {
    incoming: Incoming,
    progress: Rc<Progress>,
    watch: Rc<Watch>,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, progress: Rc<Progress>, watch: Rc<Watch>) -> Self {
        if incoming.is_end_stream() { Self::empty() } else { Self(Some(Upload { incoming, progress, watch })) }
    }

    pub(super) fn empty() -> Self {
        Self(None)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Some(upload) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(&mut upload.incoming).poll_frame(cx);
        match &polled {
            Poll::Pending if upload.progress.turn.get() == Turn::Backend => upload.progress.pass(Turn::Client),
            Poll::Pending => {}
            Poll::Ready(_) => upload.progress.pass(Turn::Backend),
        }
        if matches!(polled, Poll::Ready(None)) || upload.incoming.is_end_stream() {
            upload.watch.request_ends();
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(BodyError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|upload| upload.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |upload| upload.incoming.size_hint())
    }
}

/// A response's body on its way to a client.
pub(super) struct ResponseBody {
    source: Source,
    watch: Rc<Watch>,
}

enum Source {
    /// An answer of our own.
    Page(Full<Bytes>),
    /// A backend's.
    Backend(Box<Download>),
}

struct Download {
    incoming: Incoming,
    lease: Lease,
    worker: Rc<Worker>,
    /// The connection it comes over; given back at the end.
    sender: Option<Sender>,
    gone: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    is_broken: bool,
    /// Read to its end. The body itself knows that only if it knew its length.
    is_ended: bool,
}

impl ResponseBody {
    pub(super) fn page(text: Bytes, watch: Rc<Watch>) -> Self {
        Self { source: Source::Page(Full::new(text)), watch }
    }

    /// The lease lives until the body has been sent.
    pub(super) fn backend(
        incoming: Incoming,
        lease: Lease,
        sender: Sender,
        worker: Rc<Worker>,
        watch: Rc<Watch>,
    ) -> Self {
        let is_kill = worker.shared.config.load().on_removal == OnRemoval::Kill;
        let gone = (is_kill && !incoming.is_end_stream())
            .then(|| Box::pin(lease.backend().load.gone.clone().cancelled_owned()));
        let download =
            Download { incoming, lease, worker, sender: Some(sender), gone, is_broken: false, is_ended: false };
        Self { source: Source::Backend(Box::new(download)), watch }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match &mut self.source {
            Source::Page(page) => {
                Pin::new(page).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
            Source::Backend(download) => {
                let frame = ready!(download.poll_frame(cx));
                self.watch.moved();
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Page(page) => page.is_end_stream(),
            Source::Backend(download) => download.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Page(page) => page.size_hint(),
            Source::Backend(download) => download.incoming.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        match &mut self.source {
            // The text of a page is not read for HEAD.
            Source::Page(_) => {}
            Source::Backend(download) if download.is_whole() => download.give_back(),
            // Half-way: the connection is about to end, and its deadline stands until then.
            Source::Backend(_) => return,
        }
        self.watch.response_ends();
    }
}

impl Download {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(gone) = &mut self.gone
            && gone.as_mut().poll(cx).is_ready()
        {
            self.gone = None;
            self.is_broken = true;
            self.worker.shared.counters.killed.inc();
            return Poll::Ready(Some(Err(BodyError::Killed)));
        }
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        match &frame {
            Some(Err(_)) => self.fail(),
            // Nothing comes behind trailers.
            Some(Ok(frame)) => self.is_ended = frame.is_trailers(),
            None => self.is_ended = true,
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
    }

    fn is_whole(&self) -> bool {
        !self.is_broken && (self.is_ended || self.incoming.is_end_stream())
    }

    fn fail(&mut self) {
        if !std::mem::replace(&mut self.is_broken, true) {
            self.worker.shared.counters.broken.inc();
            self.lease.failed();
        }
    }

    fn give_back(&mut self) {
        if let Some(sender) = self.sender.take() {
            self.worker.upstreams.keep(self.lease.backend(), sender);
        }
    }
}
