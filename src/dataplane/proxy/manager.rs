//! Follows the pools: opens and closes listen ports, and hands both to the workers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Shared;
use super::listen::{self, ListenError};
use crate::app::Transport;
use crate::name::Port;
use crate::pool::{Pools, PortRoutes};
use crate::report::ListenReport;

/// After a port could not be opened, the first try again; each further one waits twice as long. Soon: a port that was given
/// up a moment ago and is wanted again is held until the last worker has let go of it.
const RETRY_MIN: Duration = Duration::from_millis(10);
/// The longest wait.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// One open listen port at one address, as workers need it.
#[derive(Debug, Clone)]
pub(super) struct ListenSocket {
    pub(super) port: Port,
    pub(super) socket: Listening,
}

/// What listens.
#[derive(Debug, Clone)]
pub(super) enum Listening {
    /// One for all workers.
    Tcp(Arc<TcpListener>),
    /// One for each worker.
    Udp(Arc<Vec<UdpSocket>>),
}

impl Listening {
    /// A socket is the same as long as it lives at one place in memory.
    pub(super) fn key(&self) -> usize {
        match self {
            Self::Tcp(socket) => Arc::as_ptr(socket) as usize,
            Self::Udp(sockets) => Arc::as_ptr(sockets) as usize,
        }
    }
}

/// The sockets that accept now.
pub(super) type Sockets = Arc<Vec<ListenSocket>>;

/// What the manager publishes.
pub(super) struct Outlets {
    pub(super) pools: watch::Receiver<Arc<Pools>>,
    pub(super) sockets: watch::Receiver<Sockets>,
    pub(super) reports: watch::Receiver<Arc<Vec<ListenReport>>>,
}

pub(super) struct Manager {
    shared: Arc<Shared>,
    source: watch::Receiver<Arc<Pools>>,
    pools: watch::Sender<Arc<Pools>>,
    sockets: watch::Sender<Sockets>,
    reports: watch::Sender<Arc<Vec<ListenReport>>>,
    worker_count: usize,
    /// By port, whether it is for UDP, and address.
    places: BTreeMap<(Port, bool, SocketAddr), Place>,
}

/// One port at one address.
enum Place {
    Open(Listening),
    /// The machine has no such kind of address.
    Skipped,
    Failed {
        reason: String,
        again: Instant,
        wait: Duration,
    },
}

impl Manager {
    pub(super) fn new(
        shared: Arc<Shared>,
        worker_count: usize,
        mut source: watch::Receiver<Arc<Pools>>,
    ) -> (Self, Outlets) {
        let first = Arc::clone(&source.borrow_and_update());
        source.mark_changed();
        let (pools, pools_out) = watch::channel(first);
        let (sockets, sockets_out) = watch::channel(Sockets::default());
        let (reports, reports_out) = watch::channel(Arc::default());
        let manager = Self { shared, source, pools, sockets, reports, worker_count, places: BTreeMap::new() };
        (manager, Outlets { pools: pools_out, sockets: sockets_out, reports: reports_out })
    }

    /// Until the proxy drains or stops.
    pub(super) async fn run(mut self) {
        let (draining, stop) = (self.shared.draining.clone(), self.shared.stop.clone());
        loop {
            let again = self.next_try();
            tokio::select! {
                () = draining.cancelled() => break,
                () = stop.cancelled() => break,
                changed = self.source.changed() => match changed {
                    Ok(()) => self.follow(),
                    // Nobody makes pools any more: the last ones stand.
                    Err(_) => tokio::select! {
                        () = draining.cancelled() => break,
                        () = stop.cancelled() => break,
                        () = self.shared.reconfigured.notified() => self.follow_places(),
                        () = sleep_until(again) => {}
                    },
                },
                () = self.shared.reconfigured.notified() => self.follow_places(),
                () = sleep_until(again) => {}
            }
            self.open_places();
            self.publish_places();
        }
        self.places.clear();
        self.publish_places();
    }

    /// Workers hear of new pools before the loads do: who picked from the old ones finds its token cancelled or the
    /// backend in doubt, and who picks later cannot pick what is gone.
    fn follow(&mut self) {
        let next = Arc::clone(&self.source.borrow_and_update());
        let last = self.pools.send_replace(Arc::clone(&next));
        last.tell_loads(&next);
        self.shared.told.send_replace(());
        self.follow_places();
    }

    /// Makes a place of each port that is wanted, at each address.
    fn follow_places(&mut self) {
        let pools = Arc::clone(&self.pools.borrow());
        let config = self.shared.config.load_full();
        let standing = self.shared.tls.standing_port(&config, &pools).map(|port| (port, false));
        let wanted: BTreeSet<(Port, bool)> = pools.ports.keys().copied().chain(standing).collect();
        self.places.retain(|(port, is_udp, _), _| wanted.contains(&(*port, *is_udp)));
        for (port, is_udp) in &wanted {
            for ip in &config.bind {
                let place = (*port, *is_udp, SocketAddr::new(*ip, port.get()));
                self.places.entry(place).or_insert_with(|| Place::Failed {
                    reason: String::new(),
                    again: Instant::now(),
                    wait: RETRY_MIN,
                });
            }
        }
    }

    fn next_try(&self) -> Option<Instant> {
        self.places
            .values()
            .filter_map(|place| match place {
                Place::Failed { again, .. } => Some(*again),
                Place::Open(_) | Place::Skipped => None,
            })
            .min()
    }

    /// Tries every port whose time has come.
    fn open_places(&mut self) {
        let now = Instant::now();
        for ((_, is_udp, address), place) in &mut self.places {
            let Place::Failed { again, wait, .. } = place else {
                continue;
            };
            if *again > now {
                continue;
            }
            let opened = if *is_udp {
                listen::open_udp(*address, self.worker_count).map(|sockets| Listening::Udp(Arc::new(sockets)))
            } else {
                listen::open(*address).map(|socket| Listening::Tcp(Arc::new(socket)))
            };
            *place = match opened {
                Ok(listening) => Place::Open(listening),
                Err(ListenError::NoSuchFamily) => Place::Skipped,
                Err(ListenError::Failed(reason)) => {
                    Place::Failed { reason, again: now + *wait, wait: (*wait * 2).min(RETRY_MAX) }
                }
            };
        }
    }

    fn publish_places(&self) {
        let sockets: Vec<ListenSocket> = self
            .places
            .iter()
            .filter_map(|((port, _, _), place)| match place {
                Place::Open(socket) => Some(ListenSocket { port: *port, socket: socket.clone() }),
                Place::Skipped | Place::Failed { .. } => None,
            })
            .collect();
        let open = self.places.iter().filter(|(_, place)| matches!(place, Place::Open(_)));
        let (udp, tcp): (Vec<_>, Vec<_>) = open.map(|(place, _)| place).partition(|(_, is_udp, _)| *is_udp);
        for (listening, places) in [(&self.shared.listening, tcp), (&self.shared.listening_udp, udp)] {
            listening.store(Arc::new(places.into_iter().map(|place: &(Port, bool, SocketAddr)| place.2).collect()));
        }
        self.sockets.send_if_modified(|old| {
            let is_same = old.len() == sockets.len()
                && old.iter().zip(&sockets).all(|(old, new)| old.socket.key() == new.socket.key());
            if !is_same {
                *old = Arc::new(sockets);
            }
            !is_same
        });
        let reports = Arc::new(self.make_reports());
        self.reports.send_if_modified(|old| {
            let is_same = *old == reports;
            *old = reports;
            !is_same
        });
    }

    fn make_reports(&self) -> Vec<ListenReport> {
        if self.shared.draining.is_cancelled() {
            return Vec::new();
        }
        let pools = self.pools.borrow();
        let claimed = pools.ports.iter().map(|((port, _), routes)| (*port, transport(routes)));
        let standing = self.shared.tls.standing_port(&self.shared.config.load(), &pools);
        let all = claimed.chain(standing.map(|port| (port, Transport::Http)));
        let mut reports: Vec<ListenReport> = all.map(|(port, transport)| self.report(port, transport)).collect();
        reports.sort_by_key(|report| report.port);
        reports
    }

    fn report(&self, port: Port, transport: Transport) -> ListenReport {
        let is_udp = transport == Transport::Udp;
        let mut addresses = Vec::new();
        let mut reasons = Vec::new();
        let first = (port, is_udp, SocketAddr::from(([0, 0, 0, 0], 0)));
        let is_same = |at: &(Port, bool, SocketAddr)| (at.0, at.1) == (port, is_udp);
        for ((_, _, address), place) in self.places.range(first..).take_while(|(at, _)| is_same(at)) {
            match place {
                Place::Open(_) => addresses.push(*address),
                Place::Failed { reason, .. } => reasons.push(reason.as_str()),
                Place::Skipped => {}
            }
        }
        ListenReport { port, transport, addresses, error: (!reasons.is_empty()).then(|| reasons.join("; ")) }
    }
}

fn transport(routes: &PortRoutes) -> Transport {
    match routes {
        PortRoutes::Http(_) => Transport::Http,
        PortRoutes::Tcp(_) => Transport::Tcp,
        PortRoutes::Udp(_) => Transport::Udp,
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
