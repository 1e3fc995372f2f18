//! TCP applications: one client connection, one backend connection.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFuture;

use super::dial::{self, is_ours, reset_on_close};
use super::proxy_protocol;
use super::relay::{self, End, Outcome};
use super::stream::Stream;
use super::tls;
use super::tried::Tried;
use super::worker::Worker;
use super::{OnRemoval, Shared};
use crate::backend::{Lease, Load};
use crate::name::{Hostname, Port};
use crate::pool::{Pool, PortRoutes, TcpRoutes};

/// Serves one client to its end.
pub(super) async fn serve(
    worker: &Worker,
    client: TcpStream,
    peer: SocketAddr,
    port: Port,
    routes: Arc<TcpRoutes>,
    since: Instant,
) {
    let shared = &worker.shared;
    let config = shared.config.load_full();
    let mut ahead = Bytes::new();
    let mut name = None;
    let is_by_name = routes.is_by_name();
    drop(routes);
    if is_by_name {
        match Box::pin(tls::read_name(&client, since, &config.timeouts)).await {
            Some(found) => (ahead, name) = found,
            None => return reset_on_close(&client),
        }
    }
    // Time has passed: who was there may be gone.
    let Some(mut pool) = newest(worker, port, name.as_ref()) else {
        shared.counters.empty_pool.inc();
        return reset_on_close(&client);
    };
    if is_full(&pool, config.limits.app_connections) {
        reset_on_close(&client);
        return;
    }
    let mut tried = Tried::default();
    while tried.may_go_on()
        && let Some(lease) = pool.pick(peer, tried.addresses())
    {
        if !tried.is_empty() {
            shared.counters.retries.inc();
        }
        let connected = tokio::select! {
            biased;
            connected = until_gone(shared, &lease, dial::backend(shared, &lease, config.timeouts.connect)) => connected,
            // A reset: nobody is there any more to be connected with anybody.
            _ = client.ready(Interest::ERROR) => return,
        };
        match connected {
            Some(Ok(backend)) => {
                drop(pool);
                return pass(shared, client.into(), peer, ahead, backend, &lease).await;
            }
            // Others would find no descriptor either.
            Some(Err(error)) if is_ours(&error) => break,
            // It failed, or is gone: there may be others, and nothing was sent.
            Some(Err(_)) | None => {
                tried.add(lease.backend().address, false, config.timeouts.connect, Instant::now());
            }
        }
        pool = newest(worker, port, name.as_ref()).unwrap_or(pool);
    }
    shared.counters.empty_pool.inc();
}

/// The pool that a client with this name would go to now.
fn newest(worker: &Worker, port: Port, name: Option<&Hostname>) -> Option<Arc<Pool>> {
    worker.with_pools(|pools| match pools.stream(port) {
        Some(PortRoutes::Tcp(routes)) => routes.find(name.map(Hostname::as_str)).cloned(),
        _ => None,
    })
}

/// Whether an application has as many uses as it may have. Workers look without a lock, so that at the limit a few
/// more may slip in.
pub(super) fn is_full(pool: &Pool, limit: Option<u32>) -> bool {
    limit.is_some_and(|limit| limit <= pool.uses_of_app())
}

async fn pass(shared: &Shared, mut client: Stream, peer: SocketAddr, ahead: Bytes, mut backend: Stream, lease: &Lease) {
    let counters = &shared.counters;
    // What the backend is told goes ahead of what the client says.
    let told = lease.backend().proxy_protocol.and_then(|version| Some((version, client.tcp().local_addr().ok()?)));
    let ahead = match told {
        Some((version, local)) => [proxy_protocol::header(version, peer, local), ahead.into()].concat().into(),
        None => ahead,
    };
    let idle = shared.config.load().timeouts.tcp_idle;
    let client_end = End { stream: &mut client, ahead, sent: Some(&counters.bytes_in), load: None };
    let load = Some(&*lease.backend().load);
    let backend_end = End { stream: &mut backend, ahead: Bytes::new(), sent: Some(&counters.bytes_out), load };
    match until_gone(shared, lease, relay::run(client_end, backend_end, idle)).await {
        Some(Outcome::BackendBroke) => {
            counters.broken.inc();
            lease.failed();
        }
        Some(Outcome::Finished | Outcome::Idle | Outcome::ClientBroke) => {}
        None => {
            counters.killed.inc();
            // What is cut must not look finished.
            reset_on_close(client.tcp());
            reset_on_close(backend.tcp());
        }
    }
}

/// Runs `work` to its end, or until its backend is gone and connections of gone backends are to be ended: none.
/// A cancelled token stays cancelled, so there is no moment at which a removal could be missed.
pub(super) async fn until_gone<T>(shared: &Shared, lease: &Lease, work: impl Future<Output = T>) -> Option<T> {
    let load = &lease.backend().load;
    let cancelled = pin!(load.gone.cancelled());
    let mut work = pin!(work);
    let mut gone = Some(Gone::new(load, cancelled));
    poll_fn(|cx| {
        if gone.as_mut().is_some_and(|gone| gone.poll(cx).is_ready()) {
            if shared.config.load().on_removal == OnRemoval::Kill {
                return Poll::Ready(None);
            }
            gone = None;
        }
        work.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Hears that a backend is gone. A task that waits for other things too looks each time it is woken: only the first look
/// takes the token's locks, which all workers share.
pub(super) struct Gone<'a, 'l> {
    load: &'l Load,
    cancelled: Pin<&'a mut WaitForCancellationFuture<'l>>,
    /// Who is woken.
    waker: Option<Waker>,
}

impl<'a, 'l> Gone<'a, 'l> {
    pub(super) fn new(load: &'l Load, cancelled: Pin<&'a mut WaitForCancellationFuture<'l>>) -> Self {
        Self { load, cancelled, waker: None }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.load.is_gone() {
            return Poll::Ready(());
        }
        if self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.waker = Some(cx.waker().clone());
        self.cancelled.as_mut().poll(cx)
    }
}
