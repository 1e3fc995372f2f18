//! TCP applications: one client connection, one backend connection.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::dial::{self, is_ours, reset_on_close};
use super::gone::until_gone;
use super::proxy_protocol;
use super::relay::{self, End};
use super::stream::Stream;
use super::tls;
use super::tried::Tried;
use super::worker::{CountClosed, Worker};
use crate::backend::Lease;
use crate::name::{Hostname, Port};
use crate::pool::{Pool, PortRoutes};

/// Serves one client to its end. `is_by_name`: which backends are meant is told by the name that it asks for.
///
/// No `async fn`, whose future has room for its arguments twice: what a connection carries all its life is small.
pub(super) fn serve(
    worker: Rc<Worker>,
    client: TcpStream,
    peer: SocketAddr,
    port: Port,
    is_by_name: bool,
    since: Instant,
    counted: CountClosed,
) -> impl Future<Output = ()> {
    // On the heap as long as it takes.
    let connecting = Box::pin(connect(Rc::clone(&worker), client, peer, port, is_by_name, since));
    async move {
        let _counted = counted;
        let Some(Connected { mut client, mut backend, ahead, lease }) = connecting.await else {
            return;
        };
        let shared = &worker.shared;
        let counters = &shared.counters;
        let idle = shared.config.load().timeouts.tcp_idle;
        let client_end = End { stream: &mut client, ahead, sent: Some(&counters.bytes_in) };
        let backend_end = End { stream: &mut backend, ahead: Bytes::new(), sent: Some(&counters.bytes_out) };
        relay::run(shared, &lease, client_end, backend_end, idle).await;
    }
}

/// A client that has its backend.
struct Connected {
    client: Stream,
    backend: Stream,
    /// What goes ahead of what the client says from now on.
    ahead: Bytes,
    lease: Lease,
}

/// Finds a backend; none if there is none, with all said that is to be said.
fn connect(
    worker: Rc<Worker>,
    client: TcpStream,
    peer: SocketAddr,
    port: Port,
    is_by_name: bool,
    since: Instant,
) -> impl Future<Output = Option<Connected>> {
    let config = worker.shared.config.load_full();
    async move {
        let shared = &worker.shared;
        let mut ahead = Bytes::new();
        let mut name = None;
        if is_by_name {
            match Box::pin(tls::read_name(&client, since, &config.timeouts)).await {
                Some(found) => (ahead, name) = found,
                None => {
                    reset_on_close(&client);
                    return None;
                }
            }
        }
        // Time has passed: who was there may be gone.
        let Some(mut pool) = newest(&worker, port, name.as_ref()) else {
            shared.counters.empty_pool.inc();
            reset_on_close(&client);
            return None;
        };
        if is_full(&pool, config.limits.app_connections) {
            reset_on_close(&client);
            return None;
        }
        let mut tried = Tried::default();
        while tried.may_go_on()
            && let Some(lease) = pool.pick(peer, tried.addresses())
        {
            if !tried.is_empty() {
                shared.counters.retries.inc();
            }
            let connected = {
                let dialling = pin!(dial::backend(shared, &lease, config.timeouts.connect));
                tokio::select! {
                    biased;
                    connected = until_gone(shared, &lease, dialling) => connected,
                    // A reset: nobody is there any more to be connected with anybody.
                    _ = client.ready(Interest::ERROR) => return None,
                }
            };
            match connected {
                Some(Ok(backend)) => {
                    // What the backend is told goes ahead of what the client says.
                    let version = lease.backend().proxy_protocol;
                    let told = version.and_then(|version| Some((version, client.local_addr().ok()?)));
                    let ahead = match told {
                        Some((version, local)) => {
                            [proxy_protocol::header(version, peer, local), ahead.into()].concat().into()
                        }
                        None => ahead,
                    };
                    return Some(Connected { client: client.into(), backend, ahead, lease });
                }
                // Others would find no descriptor either.
                Some(Err(error)) if is_ours(&error) => break,
                // It failed, or is gone: there may be others, and nothing was sent.
                Some(Err(_)) | None => {
                    tried.add(lease.backend().address, false, config.timeouts.connect, Instant::now());
                }
            }
            pool = newest(&worker, port, name.as_ref()).unwrap_or(pool);
        }
        shared.counters.empty_pool.inc();
        None
    }
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
