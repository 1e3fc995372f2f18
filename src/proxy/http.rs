//! HTTP/1.1 applications: requests in, each routed by its host and path.
//!
//! A request goes to one backend after another until one has it: a connect that fails, or a kept connection that
//! turns out to be closed before anything was sent, moves on whatever the method. Once bytes were sent, only a
//! request that may be repeated (an idempotent method, no body) is tried again: also when its backend falls under
//! suspicion before it has begun to answer, and there is another in rotation.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, request};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::body::{Progress, RequestBody, ResponseBody, Turn};
use super::client::{ClientIo, Phase, Watch};
use super::headers::{self, Target};
use super::page::Page;
use super::tcp::{is_full, until_gone};
use super::tunnel::Tunnel;
use super::upstream::{self, Sender};
use super::worker::Worker;
use super::{Config, dial};
use crate::app::Protocol;
use crate::backend::{Backend, Lease, Load, Standing};
use crate::name::Port;
use crate::pool::{Pool, Pools, PortRoutes};

/// Backends that one request is tried on.
const BACKENDS_MAX: usize = 3;
/// The least that the engine takes for a buffer.
const BUFFER_BYTES_MIN: usize = 8192;
/// Fields of a header that the engine has room for without asking for memory.
const FIELDS_INLINE: usize = 100;
/// After an answer to a client that is still sending: how long, and how much of it, is read before the close.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 64 * 1024);

/// Serves one client connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, client: TcpStream, peer: SocketAddr, port: Port) {
    let connection = Rc::new(Connection::new(Rc::clone(&worker), peer, port));
    let watch = Rc::clone(&connection.watch);
    let io = TokioIo::new(ClientIo::new(client, Rc::clone(&watch)));
    let service = {
        let connection = Rc::clone(&connection);
        service_fn(move |request| Rc::clone(&connection).answer(request))
    };
    let mut http = engine(&connection.config).serve_connection(io, service);
    let end = drive(&mut http, &connection).await;
    let parts = http.into_parts();
    let stream = parts.io.into_inner().into_stream();
    let tunnel = connection.tunnel.take();
    match (end, tunnel) {
        (End::Done(Ok(())), Some(tunnel)) => Box::pin(tunnel.run(&worker.shared, stream, parts.read_buf)).await,
        (End::Deadline, _) if watch.phase() == Phase::Responding => {
            worker.shared.counters.broken.inc();
            dial::reset_on_close(&stream);
        }
        (End::Done(Err(_)), _) if watch.close_would_mislead() => dial::reset_on_close(&stream),
        (End::Done(Ok(())), None) if watch.is_body_open() => linger(&stream).await,
        (End::Done(Err(error)), _) if error.is_parse() => linger(&stream).await,
        _ => {}
    }
}

fn engine(config: &Config) -> http1::Builder {
    let limits = &config.limits;
    let mut builder = http1::Builder::new();
    // Deadlines are kept by `drive`: the engine knows one for waiting and for reading alike.
    builder
        .header_read_timeout(None)
        .max_buf_size(limits.header_bytes.max(BUFFER_BYTES_MIN))
        .max_header_size(limits.header_bytes);
    if limits.header_fields != FIELDS_INLINE {
        builder.max_headers(limits.header_fields);
    }
    builder
}

/// How a connection's HTTP came to its end.
enum End {
    Done(hyper::Result<()>),
    Deadline,
}

/// Runs the engine, watches the deadlines, and passes on that the proxy drains.
async fn drive<S, B>(http: &mut http1::Connection<TokioIo<ClientIo>, S>, connection: &Connection) -> End
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let watch = &connection.watch;
    let mut draining = pin!(connection.worker.shared.draining.cancelled());
    let mut is_draining = false;
    let mut is_flushing = false;
    let mut timer = pin!(tokio::time::sleep_until(watch.deadline()));
    poll_fn(|cx| {
        if !is_draining && draining.as_mut().poll(cx).is_ready() {
            is_draining = true;
            Pin::new(&mut *http).graceful_shutdown();
        }
        while let Poll::Ready(done) = Pin::new(&mut *http).poll(cx) {
            // After a request with an `Upgrade` field the engine ends without sending what it still holds, for an
            // upgrade that is not coming. Asked again, it finishes.
            let is_early = done.is_ok() && watch.is_upgrade_asked() && connection.tunnel.borrow().is_none();
            if !is_early || is_flushing {
                return Poll::Ready(End::Done(if is_flushing { Ok(()) } else { done }));
            }
            is_flushing = true;
        }
        if watch.deadline() < timer.deadline() {
            timer.as_mut().reset(watch.deadline());
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= watch.deadline() {
                return Poll::Ready(End::Deadline);
            }
            timer.as_mut().reset(watch.deadline());
        }
        Poll::Pending
    })
    .await
}

/// Reads a little of what a client still sends, so that the answer is not overtaken by a reset.
async fn linger(stream: &TcpStream) {
    let (time, bytes_max) = LINGER;
    let reading = async {
        let mut buffer = [0; 2048];
        let mut left = bytes_max;
        while stream.readable().await.is_ok() {
            match stream.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(count) if count < left => left -= count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(time, reading).await;
}

/// One client connection, as its requests share it.
struct Connection {
    worker: Rc<Worker>,
    config: Arc<Config>,
    watch: Rc<Watch>,
    peer: SocketAddr,
    port: Port,
    forwarded_for: HeaderValue,
    tunnel: RefCell<Option<Tunnel>>,
}

/// A request that is to be sent to some backend.
struct Outgoing {
    /// None while an attempt has it.
    request: Option<Request<RequestBody>>,
    /// Its header once more, if it may be sent twice.
    spare: Option<Box<request::Parts>>,
    progress: Rc<Progress>,
    is_upgrade: bool,
}

/// Why an attempt brought no response.
enum Miss {
    /// Nothing was sent: the request is there for another backend.
    Unsent,
    /// The connection ended before a response began.
    Lost,
    /// The backend fell out of rotation while the request, which may be sent twice, waited for its answer.
    Doubted,
    /// The client stopped sending its body.
    ClientSlow,
    /// The backend did not answer in time.
    BackendSlow,
    /// The backend is gone.
    Killed,
}

/// A response, or the request back if nothing of it was sent.
type Sent = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>;

impl Connection {
    fn new(worker: Rc<Worker>, peer: SocketAddr, port: Port) -> Self {
        let config = worker.shared.config.load_full();
        let forwarded_for = HeaderValue::from_str(&peer.ip().to_canonical().to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        let watch = Rc::new(Watch::new(&config));
        Self { worker, config, watch, peer, port, forwarded_for, tunnel: RefCell::new(None) }
    }

    async fn answer(self: Rc<Self>, request: Request<Incoming>) -> Result<Response<ResponseBody>, Infallible> {
        let counters = &self.worker.shared.counters;
        counters.requests.inc();
        let version = request.version();
        // On the heap while there is a request: the engine keeps room for this future as long as the connection lives.
        let response = match Box::pin(self.respond(request)).await {
            Ok(response) => response,
            Err(page) => {
                self.count(page);
                page.response().map(|text| ResponseBody::page(text, Rc::clone(&self.watch)))
            }
        };
        if let Some(class) = counters.responses.get(usize::from(response.status().as_u16() / 100)) {
            class.inc();
        }
        let has_length =
            response.headers().contains_key(CONTENT_LENGTH) || response.body().size_hint().exact().is_some();
        self.watch.response_begins(version == Version::HTTP_10 && !has_length);
        Ok(response)
    }

    fn count(&self, page: Page) {
        let counters = &self.worker.shared.counters;
        match page {
            Page::NoRoute => counters.no_route.inc(),
            Page::NoBackend | Page::Busy => counters.no_backend.inc(),
            Page::BadGateway | Page::Protocol => counters.bad_gateway.inc(),
            Page::GatewayTimeout => counters.gateway_timeout.inc(),
            _ => {}
        }
    }

    async fn respond(self: &Rc<Self>, request: Request<Incoming>) -> Result<Response<ResponseBody>, Page> {
        let (parts, body) = request.into_parts();
        let has_body = !body.is_end_stream();
        self.watch
            .request_begins(has_body, parts.headers.contains_key(UPGRADE))
            .map_err(|offence| Page::BadRequest(offence.0))?;
        if parts.method == Method::CONNECT || parts.method == Method::TRACE {
            return Err(Page::Method);
        }
        let target = Target::of(&parts, self.config.limits.target_bytes)?;
        check_expectation(&parts)?;
        let pool = self.route(&self.worker.pools(), &target)?;
        if is_full(&pool, self.config.limits.app_connections) {
            return Err(Page::Busy);
        }
        let outgoing = self.outgoing(parts, body, target);
        self.forward(pool, outgoing).await
    }

    fn route(&self, pools: &Pools, target: &Target) -> Result<Arc<Pool>, Page> {
        match pools.stream(self.port) {
            Some(PortRoutes::Http(routes)) => {
                routes.find(&target.host, target.route_path()).cloned().ok_or(Page::NoRoute)
            }
            _ => Err(Page::NoRoute),
        }
    }

    /// The request as a backend gets it.
    fn outgoing(&self, mut parts: request::Parts, body: Incoming, target: Target) -> Outgoing {
        let progress = Progress::new();
        let body = RequestBody::new(body, Rc::clone(&progress), Rc::clone(&self.watch));
        let upgrade = headers::asked_upgrade(&parts, !body.is_empty());
        let is_upgrade = upgrade.is_some();
        let is_trusted = self.config.trusts(self.peer.ip());
        headers::to_backend(&mut parts.headers, &self.forwarded_for, &target.host_field, upgrade, is_trusted);
        if !body.is_empty() && body.size_hint().exact().is_none() {
            parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        parts.uri = headers::origin_form(target.path);
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        let may_repeat = body.is_empty() && !is_upgrade && parts.method.is_idempotent();
        let spare = may_repeat.then(|| Box::new(parts.clone()));
        Outgoing { request: Some(Request::from_parts(parts, body)), spare, progress, is_upgrade }
    }

    async fn forward(
        self: &Rc<Self>,
        mut pool: Arc<Pool>,
        mut outgoing: Outgoing,
    ) -> Result<Response<ResponseBody>, Page> {
        let mut failure = Page::NoBackend;
        let mut tried = Vec::new();
        let mut reached = 0;
        while reached < BACKENDS_MAX
            && let Some(lease) = pool.pick(self.peer, &tried)
        {
            tried.push(lease.backend().address);
            if lease.backend().protocol != Protocol::Http {
                failure = if reached == 0 { Page::Protocol } else { failure };
                continue;
            }
            if reached > 0 {
                self.worker.shared.counters.retries.inc();
            }
            reached += 1;
            failure = Page::BadGateway;
            match self.attempt(&lease, &mut outgoing, &tried).await {
                Ok((response, sender)) => return self.pass(response, sender, lease, outgoing.is_upgrade),
                Err(miss) => self.go_on_after(&miss, &lease, &mut outgoing)?,
            }
            // Who is in doubt may not be the only one: those that are in rotation now are asked.
            if lease.backend().load.standing() != Standing::Fine
                && let Some(newest) = self.newest(&self.worker.pools(), &outgoing)
            {
                pool = newest;
            }
        }
        Err(failure)
    }

    /// Whether the request may go to another backend; if not, what the client is told.
    fn go_on_after(&self, miss: &Miss, lease: &Lease, outgoing: &mut Outgoing) -> Result<(), Page> {
        if matches!(miss, Miss::Lost | Miss::Doubted | Miss::BackendSlow) {
            lease.failed();
        }
        match miss {
            Miss::Unsent => Ok(()),
            Miss::Lost | Miss::Doubted if outgoing.restore() => Ok(()),
            Miss::Lost | Miss::Doubted => Err(Page::BadGateway),
            Miss::ClientSlow => Err(Page::RequestTimeout),
            Miss::BackendSlow => Err(Page::GatewayTimeout),
            Miss::Killed => {
                self.worker.shared.counters.killed.inc();
                Err(Page::BadGateway)
            }
        }
    }

    /// One backend: over a kept connection if there is one, else over a fresh one.
    async fn attempt(
        &self,
        lease: &Lease,
        outgoing: &mut Outgoing,
        tried: &[SocketAddr],
    ) -> Result<(Response<Incoming>, Sender), Miss> {
        while let Some(sender) = self.worker.upstreams.take(lease.backend()) {
            match self.send(sender, lease, outgoing, tried).await {
                // It was closed while it was idle, and nothing was sent.
                Err(Miss::Unsent) => {}
                // It was closed just as the request was sent. Once more over a fresh one, if that is harmless.
                Err(Miss::Lost) if outgoing.restore() => break,
                other => return other,
            }
        }
        let connecting = dial::backend(&self.worker.shared, lease, self.config.timeouts.connect);
        let connecting = self.unless_doubted(connecting, &lease.backend().load, outgoing, tried);
        let Some(Some(Ok(stream))) = until_gone(&self.worker.shared, lease, connecting).await else {
            return Err(Miss::Unsent);
        };
        let sender = upstream::open(stream).await.map_err(|_| Miss::Unsent)?;
        self.send(sender, lease, outgoing, tried).await
    }

    async fn send(
        &self,
        mut sender: Sender,
        lease: &Lease,
        outgoing: &mut Outgoing,
        tried: &[SocketAddr],
    ) -> Result<(Response<Incoming>, Sender), Miss> {
        let request = outgoing.request.take().ok_or(Miss::Lost)?;
        let response = sender.try_send_request(request);
        let load = &lease.backend().load;
        let waiting = self.unless_doubted(self.wait(response, &outgoing.progress), load, outgoing, tried);
        match until_gone(&self.worker.shared, lease, waiting).await {
            Some(None) => Err(Miss::Doubted),
            Some(Some(Ok(Ok(response)))) => {
                load.succeeded(Instant::now().into());
                Ok((response, sender))
            }
            Some(Some(Ok(Err(mut error)))) => {
                outgoing.request = error.take_message();
                Err(if outgoing.request.is_some() { Miss::Unsent } else { Miss::Lost })
            }
            Some(Some(Err(miss))) => Err(miss),
            // It is cut, but with no harm done.
            None if outgoing.spare.is_some() && load.standing() == Standing::Lost => Err(Miss::Doubted),
            None => Err(Miss::Killed),
        }
    }

    /// Runs `work` to its end; if the request may be sent twice, only as long as no other backend is the better choice:
    /// none. A machine that lost its power or its cable sends no reset: without this its requests would wait for the
    /// time-out.
    async fn unless_doubted<T>(
        &self,
        work: impl Future<Output = T>,
        load: &Load,
        outgoing: &Outgoing,
        tried: &[SocketAddr],
    ) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.until_better_elsewhere(load, outgoing, tried), if outgoing.spare.is_some() => None,
        }
    }

    /// Until the backend is lost, or is in doubt while another that was not tried is in rotation. Nothing but a look at
    /// one atomic as long as the backend is fine.
    async fn until_better_elsewhere(&self, load: &Load, outgoing: &Outgoing, tried: &[SocketAddr]) {
        loop {
            let mut changed = pin!(load.standing_changed.notified());
            changed.as_mut().enable();
            match load.standing() {
                Standing::Fine => {
                    changed.await;
                    continue;
                }
                Standing::Lost => return,
                Standing::Doubtful => {}
            }
            let mut pools = self.worker.pools_to_come();
            let newest = Arc::clone(&pools.borrow_and_update());
            if self.newest(&newest, outgoing).is_some_and(|pool| has_other(&pool, tried)) {
                return;
            }
            // Nobody else is there: it may still answer, it may be back, another may come.
            drop(newest);
            tokio::select! {
                Ok(()) = pools.changed() => {}
                () = changed => {}
            }
        }
    }

    /// The pool that the request would go to now.
    fn newest(&self, pools: &Pools, outgoing: &Outgoing) -> Option<Arc<Pool>> {
        let target = Target::of(outgoing.spare.as_deref()?, usize::MAX).ok()?;
        self.route(pools, &target).ok()
    }

    /// Waits for a response as long as whose turn it is may take.
    async fn wait(&self, response: impl Future<Output = Sent>, progress: &Progress) -> Result<Sent, Miss> {
        let timeouts = &self.config.timeouts;
        let deadline = || match progress.turn() {
            (Turn::Client, since) => (since + timeouts.body_progress, Miss::ClientSlow),
            (Turn::Backend, since) => (since + timeouts.response, Miss::BackendSlow),
        };
        let mut response = pin!(response);
        // Short enough for either, since whose turn it is changes without a word.
        let step = timeouts.body_progress.min(timeouts.response);
        let mut timer = pin!(tokio::time::sleep(step));
        loop {
            tokio::select! {
                biased;
                response = &mut response => return Ok(response),
                () = &mut timer => {}
            }
            let (moment, miss) = deadline();
            if Instant::now() >= moment {
                return Err(miss);
            }
            timer.as_mut().reset(moment.min(Instant::now() + step));
        }
    }

    /// A backend's response as the client gets it.
    fn pass(
        self: &Rc<Self>,
        response: Response<Incoming>,
        sender: Sender,
        lease: Lease,
        is_upgrade: bool,
    ) -> Result<Response<ResponseBody>, Page> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.upgrade(response, lease, is_upgrade);
        }
        let mut response = response
            .map(|body| ResponseBody::backend(body, lease, sender, Rc::clone(&self.worker), Rc::clone(&self.watch)));
        *response.version_mut() = Version::HTTP_11;
        headers::to_client(response.headers_mut());
        Ok(response)
    }

    /// A backend changes the protocol, which it may only do when it was asked to.
    fn upgrade(
        &self,
        mut response: Response<Incoming>,
        lease: Lease,
        is_upgrade: bool,
    ) -> Result<Response<ResponseBody>, Page> {
        let protocol = response.headers().get(UPGRADE).cloned();
        let (true, Some(protocol)) = (is_upgrade, protocol) else {
            lease.failed();
            return Err(Page::BadGateway);
        };
        let backend = hyper::upgrade::on(&mut response);
        self.tunnel.replace(Some(Tunnel { backend, lease }));
        let (mut parts, _) = response.into_parts();
        parts.extensions.clear();
        headers::to_client(&mut parts.headers);
        headers::put_upgrade(&mut parts.headers, protocol);
        Ok(Response::from_parts(parts, ResponseBody::page(Bytes::new(), Rc::clone(&self.watch))))
    }
}

/// Whether another backend is in rotation to which a request can go.
fn has_other(pool: &Pool, tried: &[SocketAddr]) -> bool {
    let is_other = |backend: &Arc<Backend>| backend.protocol == Protocol::Http && !tried.contains(&backend.address);
    !pool.is_last_resort && pool.backends.iter().any(is_other)
}

impl Outgoing {
    /// Makes the request whole again after it was sent; false if it must not be sent twice.
    fn restore(&mut self) -> bool {
        if let Some(spare) = &self.spare {
            self.request = Some(Request::from_parts((**spare).clone(), RequestBody::empty()));
        }
        self.request.is_some()
    }
}

/// The one expectation there is (RFC 9110, 10.1.1).
fn check_expectation(parts: &request::Parts) -> Result<(), Page> {
    let is_known = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if parts.headers.get_all(EXPECT).iter().all(is_known) { Ok(()) } else { Err(Page::Expectation) }
}
