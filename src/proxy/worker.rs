//! A worker: one thread, one runtime, the connections it accepted.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::accept::{self, Slot};
use super::dial::reset_on_close;
use super::manager::{ListenSocket, Listening, Sockets};
use super::udp::{self, Udp};
use super::upstream::Upstreams;
use super::{Shared, http, splice, tcp};
use crate::name::Port;
use crate::pool::{Pool, Pools, PortRoutes};

/// How often idle connections to backends are looked over.
const SWEEP: Duration = Duration::from_secs(5);

/// What the tasks of one worker share.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) upstreams: Upstreams,
    pub(super) udp: Udp,
    index: usize,
    pools: RefCell<Newest>,
}

/// The newest pools, held so that looking again costs one atomic load while they stay.
struct Newest {
    source: watch::Receiver<Arc<Pools>>,
    pools: Arc<Pools>,
}

/// Starts worker `index`. It ends when everything is to stop.
pub(super) fn spawn(
    index: usize,
    shared: &Arc<Shared>,
    pools: watch::Receiver<Arc<Pools>>,
    sockets: watch::Receiver<Sockets>,
) -> anyhow::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let (started, has_started) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name(format!("proxy-{index}")).spawn(move || {
        // A runtime of this kind cannot move: it is made where it runs.
        match runtime() {
            Ok(runtime) => {
                let _ = started.send(Ok(()));
                runtime.block_on(run(index, shared, pools, sockets));
            }
            Err(error) => drop(started.send(Err(error))),
        }
    });
    let thread = thread.context("no thread can be started")?;
    has_started.recv().context("a worker ended at its start")?.context("no event queue can be made")?;
    Ok(thread)
}

fn runtime() -> std::io::Result<LocalRuntime> {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}

async fn run(
    index: usize,
    shared: Arc<Shared>,
    pools: watch::Receiver<Arc<Pools>>,
    mut sockets: watch::Receiver<Sockets>,
) {
    let first = Arc::clone(&pools.borrow());
    splice::allow(shared.admission.pipes());
    let worker = Rc::new(Worker {
        shared: Arc::clone(&shared),
        upstreams: Upstreams::default(),
        udp: Udp::default(),
        index,
        pools: RefCell::new(Newest { source: pools, pools: first }),
    });
    tokio::task::spawn_local(udp::sweep(Rc::clone(&worker)));
    let mut accepting = HashMap::new();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => break,
            // An error says that the manager has ended, which it does when all ports are closed.
            Ok(()) = sockets.changed() => {}
            _ = sweep.tick() => worker.upstreams.sweep(),
        }
        worker.follow(&sockets.borrow_and_update().clone(), &mut accepting);
    }
    // Leaving drops the runtime, and with it every connection.
}

impl Worker {
    /// The newest pools.
    pub(super) fn pools(&self) -> Arc<Pools> {
        let mut newest = self.pools.borrow_mut();
        if newest.source.has_changed().unwrap_or(false) {
            let pools = Arc::clone(&newest.source.borrow_and_update());
            newest.pools = pools;
        }
        Arc::clone(&newest.pools)
    }

    /// What stands behind a UDP listen port.
    pub(super) fn udp_pool(&self, port: Port) -> Option<Arc<Pool>> {
        match self.pools().ports.get(&(port, true)) {
            Some(PortRoutes::Udp(pool)) => Some(Arc::clone(pool)),
            _ => None,
        }
    }

    /// The pools as they change from here on.
    pub(super) fn pools_to_come(&self) -> watch::Receiver<Arc<Pools>> {
        self.pools.borrow().source.clone()
    }

    /// Accepts on each of `sockets` and on no other.
    fn follow(self: &Rc<Self>, sockets: &Sockets, accepting: &mut HashMap<usize, AbortHandle>) {
        let wanted: HashSet<usize> = sockets.iter().map(|socket| socket.socket.key()).collect();
        accepting.retain(|at, task| {
            let stays = wanted.contains(at) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for socket in sockets.iter() {
            accepting.entry(socket.socket.key()).or_insert_with(|| {
                let (worker, socket) = (Rc::clone(self), socket.clone());
                tokio::task::spawn_local(worker.accept(socket)).abort_handle()
            });
        }
    }

    async fn accept(self: Rc<Self>, ListenSocket { port, socket: listening }: ListenSocket) {
        let ended = match &listening {
            // All workers wait on one socket: one queue, and nobody's clients wait for a busy worker.
            Listening::Tcp(socket) => match socket.try_clone().and_then(TcpListener::from_std) {
                Ok(listener) => {
                    let serve = |client, peer, slot| self.serve(port, client, peer, slot);
                    accept::run(&self.shared, &listener, serve).await;
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Listening::Udp(sockets) => match sockets.get(self.index).map(UdpSocket::try_clone) {
                Some(Ok(socket)) => udp::serve(Rc::clone(&self), port, socket).await,
                Some(Err(error)) => Err(error),
                None => Ok(()),
            },
        };
        // No descriptor left. Tried again when the sockets are next looked at; until then the socket is kept.
        if ended.is_err() {
            self.shared.counters.accept_failures.inc();
        }
        drop(listening);
    }

    /// Whose connection it is; none: who had to say it did not, or not in time.
    async fn source(&self, port: Port, client: &TcpStream, peer: SocketAddr) -> Option<SocketAddr> {
        let config = self.shared.config.load_full();
        if !config.proxy_protocol.contains(&port) || !config.trusts(peer.ip()) {
            return Some(peer);
        }
        match tokio::time::timeout(config.timeouts.first_byte, accept::announced(client)).await {
            Ok(Ok(source)) => Some(source.unwrap_or(peer)),
            Ok(Err(_)) | Err(_) => {
                self.shared.counters.proxy_header_failures.inc();
                None
            }
        }
    }

    /// A task for each client; one that panics ends alone.
    fn serve(self: &Rc<Self>, port: Port, client: TcpStream, peer: SocketAddr, slot: Slot) {
        let worker = Rc::clone(self);
        let client_count = CountClosed { shared: Arc::clone(&self.shared), _slot: slot };
        tokio::task::spawn_local(async move {
            let _counted = client_count;
            let Some(peer) = worker.source(port, &client, peer).await else {
                return reset_on_close(&client);
            };
            // The pools as a whole are let go at once: a connection may outlive them by hours.
            let routes = worker.pools().stream(port).cloned();
            match routes {
                Some(PortRoutes::Tcp(pool)) => tcp::serve(&worker.shared, client, peer, pool).await,
                // Boxed, so that a TCP connection does not carry room for it.
                Some(PortRoutes::Http(_)) => Box::pin(http::serve(worker, client, peer, port)).await,
                Some(PortRoutes::Udp(_)) | None => {}
            }
        });
    }
}

/// Counts the end of a client's connection, however it ends.
struct CountClosed {
    shared: Arc<Shared>,
    _slot: Slot,
}

impl Drop for CountClosed {
    fn drop(&mut self) {
        self.shared.counters.connections_closed.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_panics_ends_alone() {
        let after = runtime().unwrap().block_on(async {
            let panicked = tokio::task::spawn_local(async { panic!("as a test") }).await;
            assert!(panicked.is_err_and(|error| error.is_panic()));
            tokio::task::spawn_local(async { "still here" }).await
        });
        assert_eq!(after.unwrap(), "still here");
    }
}
