//! A store of seeds as nodes meet it: empty, stale, slow or failing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How a store answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// After 30 to 100 ms.
    Works,
    /// Not before this.
    Slow(Duration),
    /// With an error.
    Fails,
}

/// The store.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) health: Health,
    /// By who wrote it; each names one address.
    objects: BTreeMap<u32, (SocketAddr, Option<Instant>)>,
}

impl Default for Store {
    fn default() -> Self {
        Self { health: Health::Works, objects: BTreeMap::new() }
    }
}

impl Store {
    /// Leaves an object that nobody keeps fresh.
    pub(super) fn leave_stale(&mut self, owner: u32, addr: SocketAddr) {
        self.objects.insert(owner, (addr, None));
    }

    pub(super) fn write(&mut self, owner: u32, addr: SocketAddr, now: Instant) {
        self.objects.insert(owner, (addr, Some(now)));
    }

    pub(super) fn remove(&mut self, owner: u32) {
        self.objects.remove(&owner);
    }

    /// The addresses, those that were written last first, without the reader's own.
    pub(super) fn read(&self, reader: SocketAddr) -> Vec<SocketAddr> {
        let mut found: Vec<_> = self.objects.values().filter(|(addr, _)| *addr != reader).collect();
        found.sort_by_key(|(_, written)| std::cmp::Reverse(*written));
        found.into_iter().map(|(addr, _)| *addr).collect()
    }
}
