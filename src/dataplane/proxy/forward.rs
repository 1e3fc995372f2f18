//! Requests and their way to a backend, whatever protocol they came with.
//!
//! A request goes to one backend after another until one has it: a connect that fails, or a kept connection that
//! turns out to be closed before anything was sent, moves on whatever the method. Once bytes were sent, only a
//! request that may be repeated (an idempotent method, no body) is tried again: also when its backend falls under
//! suspicion before it has begun to answer, and there is another in rotation.
//!
//! Who serves clients calls it so: a head in its neutral form ([`RequestHead`]: for HTTP/2 made of pseudo-header fields
//! and the others, with an `:authority` as the host) becomes a [`Request`], and [`answer`] gets that together with a
//! [`Front`], which is where the rest of the body comes from and where the response goes. Either the front has the
//! response when it returns, whole or broken off, or the page is returned that the client is to get instead.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::bell::Ear;
use super::clock::next_tick;
use super::http1::buffer::Scratch;
use super::http1::chunked::Output;
use super::http1::exchange::Exchange;
use super::http1::fields::{Places, Via, tokens, write_request};
use super::http1::head::{Length, RequestHead, ResponseHead, route_path};
use super::page::Page;
use super::stream::Stream;
use super::tcp::is_full;
use super::tls;
use super::tried::Tried;
use super::upstream::Upstream;
use super::worker::Worker;
use super::{Config, OnRemoval, dial, http2};
use crate::app::Protocol;
use crate::backend::{Lease, Standing};
use crate::name::Port;
use crate::pool::{Pool, Pools, PortRoutes};

/// A request as every backend gets it.
pub(super) struct Request {
    /// The head, and behind it what of the body was there with it.
    bytes: Scratch,
    places: Places,
    is_head: bool,
    /// Whether it has a body whose length is known.
    is_upload: bool,
    /// Whether it does no harm if two backends get it.
    may_repeat: bool,
    /// The protocols that it asks for.
    upgrade: Option<Box<[u8]>>,
}

impl Request {
    /// The request of `head`, rewritten for a backend.
    pub(super) fn new(head: &RequestHead<'_, '_>, via: &Via<'_>) -> Self {
        const IDEMPOTENT: [&str; 5] = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"];
        let mut bytes = Scratch::new();
        let places = write_request(head, via, &mut bytes);
        let has_body = !matches!(head.length, Length::None | Length::Known(0));
        Self {
            bytes,
            places,
            is_head: head.method == "HEAD",
            is_upload: matches!(head.length, Length::Known(1..)),
            may_repeat: !has_body && head.upgrade.is_none() && IDEMPOTENT.contains(&head.method),
            upgrade: head.upgrade.map(Box::from),
        }
    }

    /// Makes it as small as it is: a connection that has a hundred open holds all of them.
    pub(super) fn tighten(&mut self) {
        self.bytes.tighten();
    }

    /// What of the body is there already goes out together with the head: as HTTP/1.1 frames it.
    pub(super) fn push_body(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the response has no body whatever it says.
    pub(super) fn is_head(&self) -> bool {
        self.is_head
    }

    /// Whether it has a body whose length is known.
    pub(super) fn is_upload(&self) -> bool {
        self.is_upload
    }

    /// Whether it does no harm if two backends get it, or one gets it twice.
    pub(super) fn may_repeat(&self) -> bool {
        self.may_repeat
    }

    /// Whether it asks for the protocols that a backend says it changes to.
    pub(super) fn asks_for(&self, protocols: &[u8]) -> bool {
        let asked = self.upgrade.as_deref().unwrap_or_default();
        let is_asked = |protocol: &[u8]| tokens(asked).any(|other| other.eq_ignore_ascii_case(protocol));
        tokens(protocols).next().is_some() && tokens(protocols).all(is_asked)
    }

    fn place(&self, (from, to): (usize, usize)) -> &[u8] {
        self.bytes.get(from..to).unwrap_or_default()
    }

    /// Whether it asks for something and brings nothing.
    pub(super) fn is_question(&self) -> bool {
        self.is_head || self.bytes.starts_with(b"GET ")
    }

    /// The host that it is for: lower case, no port, no final dot.
    fn host(&self) -> Option<Cow<'_, str>> {
        let name = std::str::from_utf8(self.place(self.places.host)).ok()?;
        let is_lower = !name.bytes().any(|byte| byte.is_ascii_uppercase());
        Some(if is_lower { name.into() } else { name.to_ascii_lowercase().into() })
    }

    /// The pool it goes to by its host and path.
    fn route<'p>(&self, pools: &'p Pools, port: Port) -> Option<&'p Arc<Pool>> {
        let Some(PortRoutes::Http(routes)) = pools.stream(port) else {
            return None;
        };
        let path = std::str::from_utf8(self.place(self.places.path)).ok()?;
        routes.find(&self.host()?, route_path(path))
    }
}

/// Where a request's body comes from and where its response goes: a client's connection, or a stream of one.
pub(super) trait Front {
    /// More of the body behind what was pushed into the request, as HTTP/1.1 frames it: in chunks if it is of no known
    /// length, trailers included (`chunked::put_chunk`, `chunked::put_end`). Nothing: this was the end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<&[u8], Miss>>;

    /// The first `count` of those bytes have been sent on.
    fn take_body(&mut self, count: usize);

    /// Whether the whole body has been read and taken.
    fn is_body_done(&self) -> bool;

    /// Whether the client waits to be asked for its body.
    fn is_body_held(&self) -> bool;

    /// Ready when the client is gone. Asked only when its body has been read.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// The same while nothing is read from the client, since there is no room for it. One whose connection somebody else
    /// reads has nothing to do.
    fn poll_broken(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    /// An interim response (1xx), to be passed on to who understands it.
    fn interim(&mut self, head: &ResponseHead<'_, '_>);

    /// The response begins, with a body of `length` behind it; [`Length::None`] if there is none whatever the fields
    /// say. Says in which form a body in chunks is wanted.
    fn begin(&mut self, head: &ResponseHead<'_, '_>, length: Length) -> Output;

    /// The backend changes the protocol as the client asked.
    fn switch(&mut self, head: &ResponseHead<'_, '_>);

    /// How much of a response may be read at once as long as its head is looked for: what of its body comes along may
    /// have to wait, and is held meanwhile.
    fn head_room(&self) -> usize {
        usize::MAX
    }

    /// Ready when more of the body would be taken, with how much of it may be read at once. One whose client has a
    /// connection of its own may leave that to `poll_send`.
    fn poll_room(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(usize::MAX))
    }

    /// Takes some of the body; what was taken may wait to be written.
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;

    /// Whether some of what was taken has been written since this was asked last.
    fn has_written(&mut self) -> bool {
        false
    }

    /// Where the kernel may put the body's bytes itself, as they are; ready when nothing else waits to be written. None:
    /// it takes bytes in `poll_send` alone.
    fn poll_socket(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<Option<&TcpStream>>> {
        Poll::Ready(Ok(None))
    }

    /// Ready when nothing waits to be written.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// The body has ended, with these trailers (lines) if it was taken plain. Ready when everything has been written.
    fn poll_finish(&mut self, cx: &mut Context<'_>, trailers: &[u8]) -> Poll<io::Result<()>>;

    /// Ready at `deadline`. The latest call counts.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()>;
}

/// Why something came to no good end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Miss {
    /// Nothing was sent: the request is there for another backend.
    Unsent,
    /// The backend's connection ended too early.
    Lost,
    /// The backend said what makes no sense.
    Nonsense,
    /// The backend fell out of rotation while the request, which may be sent twice, waited for its answer.
    Doubted,
    /// The client stopped sending its body, or taking the response.
    ClientSlow,
    /// The client is gone.
    ClientGone,
    /// What the client sent as a body is none.
    Offence(&'static str),
    /// The backend did not answer in time.
    BackendSlow,
    /// The backend is gone.
    Killed,
}

/// How a request ended that got a response.
pub(super) enum End {
    /// The front has all of it.
    Whole,
    /// It broke off, and the front must not let it look whole.
    Broken(Miss),
    /// The client went away before there was one.
    Gone,
    /// The protocol has changed; what the front still holds of the response comes first.
    Switched(Box<(Upstream, Lease)>),
}

/// What is known about the client of a request.
pub(super) struct Client<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) config: &'a Config,
    pub(super) peer: SocketAddr,
    /// The listen port.
    pub(super) port: Port,
    /// How it came.
    pub(super) way: tls::Client,
}

/// The path at which the serving of a request has a defect, so that a test sees what one costs.
#[cfg(test)]
pub(super) const PANIC_PATH: &str = "/a-defect";

/// Has a backend answer `request`.
///
/// # Errors
/// The page that the client gets instead; nothing of a response has reached the front.
pub(super) async fn answer<F: Front>(client: &Client<'_>, front: &mut F, request: &Request) -> Result<End, Page> {
    #[cfg(test)]
    assert!(request.place(request.places.path) != PANIC_PATH.as_bytes(), "as a test");
    let worker = client.worker;
    if !client.may_ask_for(request) {
        return Err(Page::Misdirected);
    }
    let mut failure = Page::NoBackend;
    let mut tried = Tried::default();
    while tried.may_go_on() {
        let changes_seen = worker.changes.rings();
        let lease = match client.pick(request, tried.addresses()) {
            Ok(Some(lease)) => lease,
            Ok(None) => break,
            Err(page) if tried.is_empty() => return Err(page),
            // Its route is gone meanwhile.
            Err(_) => break,
        };
        if !tried.is_empty() {
            worker.shared.counters.retries.inc();
        }
        failure = Page::BadGateway;
        let mut attempt = Attempt { client, request, lease: &lease, tried: tried.addresses(), ear: None, changes_seen };
        match attempt.run(front).await {
            Ok(Answered::Whole) => return Ok(End::Whole),
            Ok(Answered::Broken(miss)) => {
                count_broken(client, &lease, miss);
                return Ok(End::Broken(miss));
            }
            Ok(Answered::Switched(upstream)) => {
                drop(attempt);
                return Ok(End::Switched(Box::new((*upstream, lease))));
            }
            Err(Miss::ClientGone) => return Ok(End::Gone),
            Err(miss) => {
                let was_given = !matches!(miss, Miss::Unsent);
                go_on_after(client, miss, &lease, request)?;
                tried.add(lease.backend().address, was_given, client.config.timeouts.connect, Instant::now());
            }
        }
    }
    Err(failure)
}

/// Whether the request may go to another backend; if not, what the client is told.
fn go_on_after(client: &Client<'_>, miss: Miss, lease: &Lease, request: &Request) -> Result<(), Page> {
    if matches!(miss, Miss::Lost | Miss::Nonsense | Miss::Doubted | Miss::BackendSlow) {
        lease.failed();
    }
    match miss {
        Miss::Unsent => Ok(()),
        Miss::Lost | Miss::Doubted if request.may_repeat => Ok(()),
        Miss::Lost | Miss::Doubted | Miss::Nonsense | Miss::ClientGone => Err(Page::BadGateway),
        Miss::ClientSlow => Err(Page::RequestTimeout),
        Miss::Offence(offence) => Err(Page::BadRequest(offence)),
        Miss::BackendSlow => Err(Page::GatewayTimeout),
        Miss::Killed => {
            client.worker.shared.counters.killed.inc();
            Err(Page::BadGateway)
        }
    }
}

fn count_broken(client: &Client<'_>, lease: &Lease, miss: Miss) {
    let counters = &client.worker.shared.counters;
    match miss {
        Miss::Killed => counters.killed.inc(),
        Miss::ClientGone | Miss::Offence(_) => {}
        _ => counters.broken.inc(),
    }
    if matches!(miss, Miss::Lost | Miss::Nonsense) {
        lease.failed();
    }
}

impl Client<'_> {
    /// Whether the host of a request is one for which its connection was made.
    fn may_ask_for(&self, request: &Request) -> bool {
        match self.way {
            tls::Client::Plain => true,
            tls::Client::Tls { .. } => {
                request.host().is_some_and(|host| self.worker.shared.tls.covers(&self.way, &host))
            }
        }
    }

    /// Where a request that has no route here is to come again, if it is to.
    pub(super) fn elsewhere(&self, request: &Request) -> Option<String> {
        let path = std::str::from_utf8(request.place(request.places.path)).ok()?;
        let host = request.host()?;
        let tls = &self.worker.shared.tls;
        self.worker.with_pools(|pools| tls.redirect(self.config, pools, self.port, &host, path))
    }

    /// A backend that is not in `tried`, from the newest pool: who is in doubt may not be the only one, and those that
    /// are in rotation now are asked. The pool is not held: a response may outlive it by hours.
    fn pick(&self, request: &Request, tried: &[SocketAddr]) -> Result<Option<Lease>, Page> {
        self.worker.with_pools(|pools| {
            let pool = request.route(pools, self.port).ok_or(Page::NoRoute)?;
            if tried.is_empty() && is_full(pool, self.config.limits.app_connections) {
                return Err(Page::Busy);
            }
            Ok(pool.pick(self.peer, tried))
        })
    }

    /// The pool that the request would go to now.
    fn newest(&self, request: &Request) -> Option<Arc<Pool>> {
        self.worker.with_pools(|pools| request.route(pools, self.port).cloned())
    }
}

/// How an attempt went that brought a response.
pub(super) enum Answered {
    Whole,
    Broken(Miss),
    Switched(Box<Upstream>),
}

/// One backend's turn at a request.
pub(super) struct Attempt<'a> {
    pub(super) client: &'a Client<'a>,
    pub(super) request: &'a Request,
    pub(super) lease: &'a Lease,
    /// Those whose turn it was before.
    tried: &'a [SocketAddr],
    ear: Option<Ear>,
    changes_seen: u64,
}

impl Attempt<'_> {
    /// Over a kept connection if there is one, else over a fresh one.
    async fn run<F: Front>(&mut self, front: &mut F) -> Result<Answered, Miss> {
        // What changes from here on is told.
        if self.lease.backend().load.standing() != Standing::Fine && self.is_better_elsewhere() {
            return Err(Miss::Unsent);
        }
        if self.lease.backend().protocol == Protocol::H2c {
            return Box::pin(http2::run(self, front)).await;
        }
        let upstreams = &self.client.worker.upstreams;
        let now = next_tick();
        while let Some(upstream) = upstreams.take(self.lease.backend(), now) {
            match self.send(upstream, front, now).await {
                // It was closed while it was idle, and nothing was sent.
                Err(Miss::Unsent) => {}
                // It was closed just as the request was sent. Once more over a fresh one, if that is harmless.
                Err(Miss::Lost) if self.request.may_repeat => break,
                other => return other,
            }
        }
        let upstream = {
            let mut connecting = Box::pin(self.connect());
            // Nobody waits for it when the client is gone.
            poll_fn(|cx| match connecting.as_mut().poll(cx) {
                Poll::Ready(connected) => Poll::Ready(connected.ok_or(Miss::Unsent)),
                Poll::Pending if front.is_body_done() => front.poll_gone(cx).map(|()| Err(Miss::ClientGone)),
                Poll::Pending => front.poll_broken(cx).map(|()| Err(Miss::ClientGone)),
            })
            .await?
        };
        self.send(Box::new(Upstream::from(upstream)), front, Instant::now()).await
    }

    /// None if it failed, or was given up.
    pub(super) async fn connect(&mut self) -> Option<Stream> {
        let mut connected = self.dial().await?;
        if connected.as_ref().is_err_and(dial::is_out_of_descriptors) && self.client.worker.upstreams.clear() {
            connected = self.dial().await?;
        }
        connected.ok()
    }

    /// None if it was given up.
    async fn dial(&mut self) -> Option<io::Result<Stream>> {
        let (lease, deadline) = (self.lease, self.client.config.timeouts.connect);
        let mut connecting = pin!(dial::backend(&self.client.worker.shared, lease, deadline));
        poll_fn(|cx| match self.look(cx, true) {
            Some(_) => Poll::Ready(None),
            None => connecting.as_mut().poll(cx).map(Some),
        })
        .await
    }

    async fn send<F: Front>(&mut self, upstream: Box<Upstream>, front: &mut F, now: Instant) -> Result<Answered, Miss> {
        let mut exchange = Exchange::new(self, upstream, front, now);
        poll_fn(|cx| exchange.poll(cx)).await
    }

    /// Whether the attempt is to be given up, since its backend is gone or in doubt; from now on the task of `cx` is
    /// woken when that may have changed. `is_waiting` as long as no response has begun.
    pub(super) fn look(&mut self, cx: &Context<'_>, is_waiting: bool) -> Option<Miss> {
        let changes = &self.client.worker.changes;
        self.ear.get_or_insert_with(|| Ear::new(changes)).listen(cx);
        let rings = changes.rings();
        if std::mem::replace(&mut self.changes_seen, rings) == rings {
            return None;
        }
        let load = &self.lease.backend().load;
        let may_move = is_waiting && self.request.may_repeat;
        if load.is_gone() && self.client.worker.shared.config.load().on_removal == OnRemoval::Kill {
            // It is cut; but with no harm done, if it can go elsewhere.
            let is_harmless = may_move && load.standing() == Standing::Lost;
            return Some(if is_harmless { Miss::Doubted } else { Miss::Killed });
        }
        (may_move && self.is_better_elsewhere()).then_some(Miss::Doubted)
    }

    /// Whether the request, which may be sent twice, is better off with another backend: this one is lost, or in doubt
    /// while another that was not tried is in rotation. A machine that lost its power or its cable sends no reset:
    /// without this its requests would wait for the time-out.
    fn is_better_elsewhere(&self) -> bool {
        match self.lease.backend().load.standing() {
            _ if !self.request.may_repeat => false,
            Standing::Fine => false,
            Standing::Lost => true,
            Standing::Doubtful => self.client.newest(self.request).is_some_and(|pool| self.has_other(&pool)),
        }
    }

    /// Whether another backend is in rotation to which a request can go.
    fn has_other(&self, pool: &Pool) -> bool {
        let is_tried = |at: &SocketAddr| *at == self.lease.backend().address || self.tried.contains(at);
        !pool.is_last_resort && pool.backends.iter().any(|backend| !is_tried(&backend.address))
    }
}
