//! Connections to backends of HTTP/2: a few for each, many requests on each. One store a worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use socket2::SockRef;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::wire::Wire;
use super::{FRAME_BYTES_MAX, STREAM_WINDOW_BYTES};
use crate::backend::{Backend, Load};
use crate::proxy::stream::Stream;

/// Connections of one worker to one backend.
pub(super) const LINKS_MAX: usize = 4;
/// Requests on one connection before another is opened, if the backend allows so many.
const STREAMS_MAX: usize = 100;
/// What a backend may send, on all streams of a connection together, before it was passed on: as much as all streams
/// may hold that are stalled by their clients, so that they hold up nobody else.
const WINDOW_BYTES: u32 = STREAMS_MAX as u32 * STREAM_WINDOW_BYTES;
/// What waits to be sent on one stream.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// What a response's header may take, as of HTTP/1.1.
const HEADER_BYTES_MAX: u32 = 64 * 1024;
/// How long a connection is kept on which nothing is asked.
const IDLE_AGE_MAX: Duration = Duration::from_secs(60);

/// How long what was sent may wait to be confirmed by the machine at the other end.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(20);

/// The connections, by backend.
#[derive(Default)]
pub(in crate::proxy) struct Links(RefCell<HashMap<SocketAddr, Rc<Place>>>);

/// Those to one backend.
#[derive(Default)]
struct Place {
    links: RefCell<Vec<Rc<Link>>>,
    /// Held by who opens another: the rest wait, since that one has room for all of them.
    opening: Mutex<()>,
    /// How often that has failed.
    failures: Cell<u64>,
}

/// One connection.
pub(super) struct Link {
    sender: SendRequest<Bytes>,
    /// What the backend does is counted here.
    pub(super) wire: Wire,
    open: Cell<usize>,
    is_over: Rc<Cell<bool>>,
    idle_since: Cell<Instant>,
    load: Arc<Load>,
}

impl Link {
    /// Nothing new goes out over it.
    pub(super) fn leave(&self) {
        self.is_over.set(true);
    }

    fn is_good(&self) -> bool {
        !self.is_over.get() && !self.load.gone.is_cancelled()
    }

    fn has_room(&self) -> bool {
        self.is_good() && self.open.get() < self.sender.current_max_send_streams().min(STREAMS_MAX)
    }
}

/// One request's place on a connection; it counts until it is dropped.
pub(super) struct Ticket {
    pub(super) link: Rc<Link>,
    pub(super) sender: SendRequest<Bytes>,
    /// Whether the connection was opened for this request.
    pub(super) is_fresh: bool,
}

impl Ticket {
    fn new(link: &Rc<Link>, is_fresh: bool) -> Self {
        link.open.set(link.open.get() + 1);
        Self { link: Rc::clone(link), sender: link.sender.clone(), is_fresh }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.link.open.set(self.link.open.get() - 1);
        self.link.idle_since.set(Instant::now());
    }
}

impl Place {
    fn find(&self) -> Option<Ticket> {
        let mut links = self.links.borrow_mut();
        links.retain(|link| link.is_good());
        links.iter().find(|link| link.has_room()).map(|link| Ticket::new(link, false))
    }

    /// The one with the fewest requests, if there are as many as there may be.
    fn least(&self) -> Option<Ticket> {
        let links = self.links.borrow();
        let least = (links.len() >= LINKS_MAX).then(|| links.iter().min_by_key(|link| link.open.get()));
        least.flatten().map(|link| Ticket::new(link, false))
    }
}

impl Links {
    /// A place on a connection to this backend, opened by `connect` if need be; none if that fails.
    pub(super) async fn take<C>(&self, backend: &Backend, connect: C) -> Option<Ticket>
    where
        C: Future<Output = Option<Stream>>,
    {
        let place = Rc::clone(self.0.borrow_mut().entry(backend.address).or_default());
        if let Some(ticket) = place.find() {
            return Some(ticket);
        }
        let failures = place.failures.get();
        let _opening = place.opening.lock().await;
        if let Some(ticket) = place.find().or_else(|| place.least()) {
            return Some(ticket);
        }
        if place.failures.get() != failures {
            // Whoever was waited for has found out.
            return None;
        }
        let link = match connect.await {
            Some(stream) => open(stream, &backend.load).await,
            None => None,
        };
        let Some(link) = link.map(Rc::new) else {
            place.failures.set(failures + 1);
            return None;
        };
        place.links.borrow_mut().push(Rc::clone(&link));
        Some(Ticket::new(&link, true))
    }

    /// Lets go of what is closed, old, or to a backend that is gone.
    pub(in crate::proxy) fn sweep(&self) {
        let is_wanted =
            |link: &Rc<Link>| link.is_good() && (link.open.get() > 0 || link.idle_since.get().elapsed() < IDLE_AGE_MAX);
        self.0.borrow_mut().retain(|_, place| {
            let mut links = place.links.borrow_mut();
            links.retain(is_wanted);
            // Somebody may be about to open one.
            !links.is_empty() || Rc::strong_count(place) > 1
        });
    }
}

async fn open(stream: Stream, load: &Arc<Load>) -> Option<Link> {
    // A machine that lost its power says nothing: what it does not confirm in time is lost. Without this it is found out
    // all the same, later.
    let _ = SockRef::from(stream.tcp()).set_tcp_user_timeout(Some(UNCONFIRMED_MAX));
    let wire = Wire::to_backend(stream);
    let (sender, mut connection) = Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .handshake::<_, Bytes>(wire.clone())
        .await
        .ok()?;
    let is_over = Rc::new(Cell::new(false));
    let over = Rc::clone(&is_over);
    let lines = wire.clone();
    tokio::task::spawn_local(async move {
        // What goes wrong is told to whoever waits for a response. A backend that makes us work for nothing is left, and
        // who waits for it finds the connection lost.
        poll_fn(|cx| {
            lines.begin_turn();
            match Pin::new(&mut connection).poll(cx) {
                Poll::Pending if lines.offence().is_none() => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
        over.set(true);
    });
    Some(Link {
        sender,
        wire,
        open: Cell::new(0),
        is_over,
        idle_since: Cell::new(Instant::now()),
        load: Arc::clone(load),
    })
}
