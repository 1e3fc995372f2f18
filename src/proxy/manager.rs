//! Follows the pools: opens and closes listen ports, and hands both to the workers.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
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

/// After a port could not be opened, the first try again; each further one waits twice as long.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// The longest wait.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// What the report of a UDP port says.
const UDP_REMEDY: &str = "udp applications are served in generate mode (template nginx-stream)";

/// One open listen port at one address, as workers need it.
#[derive(Debug, Clone)]
pub(super) struct ListenSocket {
    pub(super) port: Port,
    pub(super) socket: Arc<TcpListener>,
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
    places: BTreeMap<(Port, SocketAddr), Place>,
}

/// One port at one address.
enum Place {
    Open(Arc<TcpListener>),
    /// The machine has no such kind of address.
    Skipped,
    Failed {
        reason: String,
        again: Instant,
        wait: Duration,
    },
}

impl Manager {
    pub(super) fn new(shared: Arc<Shared>, mut source: watch::Receiver<Arc<Pools>>) -> (Self, Outlets) {
        let first = Arc::clone(&source.borrow_and_update());
        source.mark_changed();
        let (pools, pools_out) = watch::channel(first);
        let (sockets, sockets_out) = watch::channel(Sockets::default());
        let (reports, reports_out) = watch::channel(Arc::default());
        let manager = Self { shared, source, pools, sockets, reports, places: BTreeMap::new() };
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
                        () = sleep_until(again) => {}
                    },
                },
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
        let wanted = |port: Port| next.ports.contains_key(&(port, false));
        self.places.retain(|(port, _), _| wanted(*port));
        let bind = self.shared.config.load().bind.clone();
        for (port, _) in next.ports.keys().filter(|(_, is_udp)| !is_udp) {
            for ip in &bind {
                self.places.entry((*port, SocketAddr::new(*ip, port.get()))).or_insert_with(|| Place::Failed {
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
        for ((_, address), place) in &mut self.places {
            let Place::Failed { again, wait, .. } = place else {
                continue;
            };
            if *again > now {
                continue;
            }
            *place = match listen::open(*address) {
                Ok(socket) => Place::Open(Arc::new(socket)),
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
            .filter_map(|((port, _), place)| match place {
                Place::Open(socket) => Some(ListenSocket { port: *port, socket: Arc::clone(socket) }),
                Place::Skipped | Place::Failed { .. } => None,
            })
            .collect();
        let listening = sockets.iter().filter_map(|socket| socket.socket.local_addr().ok()).collect();
        self.shared.listening.store(Arc::new(listening));
        self.sockets.send_if_modified(|old| {
            let is_same = old.len() == sockets.len()
                && old.iter().zip(&sockets).all(|(old, new)| Arc::ptr_eq(&old.socket, &new.socket));
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
        pools.ports.iter().map(|((port, _), routes)| self.report(*port, routes)).collect()
    }

    fn report(&self, port: Port, routes: &PortRoutes) -> ListenReport {
        let transport = match routes {
            PortRoutes::Http(_) => Transport::Http,
            PortRoutes::Tcp(_) => Transport::Tcp,
            PortRoutes::Udp(_) => {
                let error = Some(UDP_REMEDY.to_owned());
                return ListenReport { port, transport: Transport::Udp, addresses: Vec::new(), error };
            }
        };
        let mut addresses = Vec::new();
        let mut reasons = Vec::new();
        let first = (port, SocketAddr::from(([0, 0, 0, 0], 0)));
        for ((_, address), place) in self.places.range(first..).take_while(|((at, _), _)| *at == port) {
            match place {
                Place::Open(_) => addresses.push(*address),
                Place::Failed { reason, .. } => reasons.push(reason.as_str()),
                Place::Skipped => {}
            }
        }
        ListenReport { port, transport, addresses, error: (!reasons.is_empty()).then(|| reasons.join("; ")) }
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
