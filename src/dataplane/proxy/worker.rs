//! A worker: one thread, one runtime, the connections it accepted.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::accept::{self, Slot};
use super::bell::Bell;
use super::dial::reset_on_close;
use super::http1::buffer;
use super::idle::Idlers;
use super::manager::{ListenSocket, Listening, Sockets};
use super::page::Page;
use super::udp::{self, Udp};
use super::upstream::Upstreams;
use super::{Config, Shared, http1, http2, splice, tcp};
use crate::name::Port;
use crate::pool::{Pool, Pools, PortRoutes};

/// How often idle connections to backends are looked over.
const SWEEP: Duration = Duration::from_secs(5);

/// What the tasks of one worker share.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) upstreams: Upstreams,
    pub(super) links: http2::Links,
    /// Rings when pools are new and loads have been told.
    pub(super) changes: Rc<Bell>,
    /// Rings when the proxy begins to drain.
    pub(super) drains: Rc<Bell>,
    /// Clients that wait for nothing but their next request.
    pub(super) idlers: Rc<Idlers>,
    is_draining: Cell<bool>,
    pub(super) udp: Udp,
    index: usize,
    pools: RefCell<Newest>,
    config: RefCell<Rc<Settings>>,
}

/// The newest pools, held so that looking again costs one atomic load while they stay.
struct Newest {
    source: watch::Receiver<Arc<Pools>>,
    pools: Arc<Pools>,
}

/// The settings as the connections of one worker share them: no use of them is counted where all workers count theirs.
pub(super) struct Settings(Arc<Config>);

impl Deref for Settings {
    type Target = Config;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
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
    let mut told = shared.told.subscribe();
    let first = Arc::clone(&pools.borrow());
    splice::allow(shared.admission.pipes());
    let worker = Rc::new(Worker {
        shared: Arc::clone(&shared),
        upstreams: Upstreams::default(),
        links: http2::Links::default(),
        changes: Rc::default(),
        drains: Rc::default(),
        idlers: Rc::default(),
        is_draining: Cell::new(false),
        udp: Udp::default(),
        index,
        pools: RefCell::new(Newest { source: pools, pools: first }),
        config: RefCell::new(Rc::new(Settings(shared.config.load_full()))),
    });
    tokio::task::spawn_local(udp::sweep(Rc::clone(&worker)));
    let mut accepting = HashMap::new();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => break,
            // An error says that the manager has ended, which it does when all ports are closed.
            () = shared.draining.cancelled(), if !worker.is_draining() => {
                worker.is_draining.set(true);
                worker.drains.ring();
                worker.idlers.wake();
            }
            () = shared.admission.crowded() => {
                worker.idlers.tell_oldest(Instant::now());
            }
            Ok(()) = told.changed() => {
                worker.changes.ring();
                worker.upstreams.sweep();
            }
            Ok(()) = sockets.changed() => {}
            _ = sweep.tick() => {
                worker.upstreams.sweep();
                worker.links.sweep();
                buffer::sweep();
            }
        }
        worker.follow(&sockets.borrow_and_update().clone(), &mut accepting);
    }
    // Leaving drops the runtime, and with it every connection.
}

impl Worker {
    /// Looks at the newest pools.
    pub(super) fn with_pools<T>(&self, look: impl FnOnce(&Pools) -> T) -> T {
        let mut newest = self.pools.borrow_mut();
        if newest.source.has_changed().unwrap_or(false) {
            let pools = Arc::clone(&newest.source.borrow_and_update());
            newest.pools = pools;
        }
        look(&newest.pools)
    }

    /// Whether nothing new is to be begun.
    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.get()
    }

    /// The settings as they are now.
    pub(super) fn config(&self) -> Rc<Settings> {
        let newest = self.shared.config.load();
        let mut config = self.config.borrow_mut();
        if !Arc::ptr_eq(&config.0, &newest) {
            *config = Rc::new(Settings(Arc::clone(&newest)));
        }
        Rc::clone(&config)
    }

    /// Counts an answer of our own.
    pub(super) fn count(&self, page: Page) {
        let counters = &self.shared.counters;
        match page {
            Page::NoRoute => counters.no_route.inc(),
            Page::NoBackend | Page::Busy => counters.no_backend.inc(),
            Page::BadGateway => counters.bad_gateway.inc(),
            Page::GatewayTimeout => counters.gateway_timeout.inc(),
            _ => {}
        }
    }

    /// Has an idle client go, for one that waits for its place: the one of this worker that has been idle longest, or one
    /// of each other worker if there is none.
    pub(super) fn make_room(&self) {
        if !self.idlers.tell_oldest(Instant::now()) {
            self.shared.admission.ask_for_room();
        }
    }

    /// What stands behind a UDP listen port.
    pub(super) fn udp_pool(&self, port: Port) -> Option<Arc<Pool>> {
        self.with_pools(|pools| match pools.ports.get(&(port, true)) {
            Some(PortRoutes::Udp(pool)) => Some(Arc::clone(pool)),
            _ => None,
        })
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
                    accept::run(&self, &listener, serve).await;
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
    async fn source(&self, client: &TcpStream, peer: SocketAddr) -> Option<SocketAddr> {
        match tokio::time::timeout(self.config().timeouts.first_byte, accept::announced(client)).await {
            Ok(Ok(source)) => Some(source.unwrap_or(peer)),
            Ok(Err(_)) | Err(_) => {
                self.shared.counters.proxy_header_failures.inc();
                None
            }
        }
    }

    /// A task for each client; one that panics ends alone.
    fn serve(self: &Rc<Self>, port: Port, client: TcpStream, peer: SocketAddr, slot: Slot) {
        let counted = CountClosed { shared: Arc::clone(&self.shared), _slot: slot };
        let since = Instant::now();
        let config = self.config();
        if !config.proxy_protocol.contains(&port) || !config.trusts(peer.ip()) {
            return self.begin(port, client, peer, since, counted);
        }
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            match worker.source(&client, peer).await {
                Some(peer) => worker.begin(port, client, peer, since, counted),
                None => reset_on_close(&client),
            }
        });
    }

    /// What a connection carries all its life is its last task alone: what comes before has one of its own.
    fn begin(self: &Rc<Self>, port: Port, client: TcpStream, peer: SocketAddr, since: Instant, counted: CountClosed) {
        let worker = Rc::clone(self);
        // The pools as a whole are let go at once: a connection may outlive them by hours.
        match self.with_pools(|pools| Served::of(pools.stream(port))) {
            Served::Tcp { is_by_name } => {
                tokio::task::spawn_local(tcp::serve(worker, client, peer, port, is_by_name, since, counted));
            }
            Served::Http if self.shared.tls.is_for(port, &self.shared.config.load()) => {
                tokio::task::spawn_local(async move {
                    if let Some(client) = worker.shared.tls.accept(&worker.shared, client, &[], port, since).await {
                        // The handshake had its own deadline.
                        tokio::task::spawn_local(http1::serve(worker, client, peer, port, Instant::now(), counted));
                    }
                });
            }
            Served::Http => {
                tokio::task::spawn_local(http1::serve(worker, client.into(), peer, port, since, counted));
            }
            Served::Not => {}
        }
    }
}

/// What becomes of a client of a port.
enum Served {
    Tcp {
        is_by_name: bool,
    },
    /// Each request finds its own routes.
    Http,
    Not,
}

impl Served {
    fn of(routes: Option<&PortRoutes>) -> Self {
        match routes {
            Some(PortRoutes::Tcp(routes)) => Self::Tcp { is_by_name: routes.is_by_name() },
            // Without routes: it stands open to lead clients elsewhere, or has just lost its last one.
            Some(PortRoutes::Http(_)) | None => Self::Http,
            Some(PortRoutes::Udp(_)) => Self::Not,
        }
    }
}

/// Counts the end of a client's connection, however it ends.
pub(super) struct CountClosed {
    shared: Arc<Shared>,
    _slot: Slot,
}

impl Drop for CountClosed {
    fn drop(&mut self) {
        let counters = &self.shared.counters;
        counters.connections_closed.inc();
        if std::thread::panicking() {
            counters.panics.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::app::Protocol;
    use crate::member::{Reach, Roster};
    use crate::pool::Rules;
    use crate::proxy::Proxy;
    use crate::proxy::forward::PANIC_PATH;
    use crate::report::ProxyCounters;

    /// The pools of one application at `listen`, behind which nobody listens.
    fn pools(listen: Port) -> Pools {
        let roster = Roster::of_one(([127, 0, 0, 1], 9).into(), Protocol::Http, listen, Reach::Unknown);
        Pools::default().next(&roster, &Rules::default(), std::time::Instant::now())
    }

    async fn until(what: &str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(10), "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ask(client: &mut TcpStream, path: &str) -> String {
        client.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = [0; 1024];
        let count = client.read(&mut answer).await.unwrap_or(0);
        String::from_utf8_lossy(&answer[..count]).into_owned()
    }

    async fn ask_http2(sender: &h2::client::SendRequest<bytes::Bytes>, path: &str) -> Result<u16, h2::Error> {
        let mut sender = sender.clone().ready().await?;
        let request = http::Request::builder().uri(format!("http://a{path}")).body(()).unwrap();
        Ok(sender.send_request(request, true)?.0.await?.status().as_u16())
    }

    #[tokio::test]
    async fn p_panic_ends_one_connection_or_one_stream_and_is_counted() {
        let ip = [127, 0, 0, 1].into();
        let listen = Port::new(std::net::TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().port()).unwrap();
        let counters = Arc::new(ProxyCounters::default());
        let config = Config { bind: vec![ip], workers: 1, ..Config::default() };
        let (_pools, source) = watch::channel(Arc::new(pools(listen)));
        let proxy = Proxy::start(config, source, Arc::clone(&counters)).unwrap();
        let listeners = proxy.listeners();
        until("it listens", || listeners.borrow().iter().any(|report| !report.addresses.is_empty())).await;

        let address = SocketAddr::new(ip, listen.get());
        let mut other = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut other, "/").await.starts_with("HTTP/1.1 502 "));
        for defects in 1..=3 {
            let mut client = TcpStream::connect(address).await.unwrap();
            assert_eq!(ask(&mut client, PANIC_PATH).await, "", "the connection ends");
            until("it is counted", || (counters.panics.get(), counters.connections_closed.get()) == (defects, defects))
                .await;
        }
        let (sender, connection) = h2::client::handshake(TcpStream::connect(address).await.unwrap()).await.unwrap();
        let connection = tokio::spawn(connection);
        for defects in 4..=6 {
            let (broken, fine) = tokio::join!(ask_http2(&sender, PANIC_PATH), ask_http2(&sender, "/"));
            assert!(broken.unwrap_err().is_reset());
            assert_eq!((fine.unwrap(), counters.panics.get()), (502, defects));
        }
        assert!(ask(&mut other, "/").await.starts_with("HTTP/1.1 502 "), "others notice nothing");
        assert_eq!((counters.connections.get(), counters.connections_closed.get()), (5, 3));
        connection.abort();
    }
}
