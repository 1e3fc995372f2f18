//! Requests by application, as counters that never fall.
//!
//! A load lives as long as its address does. The sum over those that live would fall when a backend goes, and
//! a scraper takes a counter that fell for one that began anew. So what is gone is kept in a sum of its own.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::backend::Load;
use crate::name::AppName;
use crate::pool::Pools;

/// The most applications that get a label of their own, in the order in which they were first seen.
const LABELS_MAX: usize = 1000;
/// The label of all others.
const OTHER: &str = "other";

/// What was sent to one application.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Total {
    pub(super) requests: u64,
    pub(super) failures: u64,
    pub(super) active: u64,
}

impl Total {
    fn add(&mut self, load: &Load) {
        self.requests += load.requests.load(Ordering::Relaxed);
        self.failures += load.failures.load(Ordering::Relaxed);
        self.active += u64::from(load.active.load(Ordering::Relaxed));
    }
}

/// Totals by label.
#[derive(Debug, Default)]
pub(super) struct Tally {
    live: HashMap<(AppName, SocketAddr), Arc<Load>>,
    /// Loads that are gone and still have work under way: at most one for each open request or connection.
    leaving: Vec<(AppName, Arc<Load>)>,
    /// By label; what is gone and idle is in here. Has an entry for every label that was ever given.
    gone: BTreeMap<String, Total>,
}

impl Tally {
    /// Takes over the loads of new pools.
    pub(super) fn update(&mut self, pools: &Pools) {
        let last = std::mem::replace(&mut self.live, pools.loads.clone());
        for (key, load) in last {
            if !self.live.get(&key).is_some_and(|now| Arc::ptr_eq(now, &load)) {
                self.leaving.push((key.0, load));
            }
        }
        let mut new: Vec<&AppName> = self.live.keys().map(|(app, _)| app).collect();
        new.sort_unstable();
        for app in new {
            if self.gone.len() < LABELS_MAX && !self.gone.contains_key(app.as_str()) {
                self.gone.insert(app.to_string(), Total::default());
            }
        }
        self.settle();
    }

    /// The totals now, by label.
    pub(super) fn totals(&mut self) -> BTreeMap<String, Total> {
        self.settle();
        let mut totals = self.gone.clone();
        let live = self.live.iter().map(|((app, _), load)| (app, load));
        for (app, load) in live.chain(self.leaving.iter().map(|(app, load)| (app, load))) {
            totals.entry(self.label(app).to_owned()).or_default().add(load);
        }
        totals
    }

    fn settle(&mut self) {
        let (busy, idle) = std::mem::take(&mut self.leaving)
            .into_iter()
            .partition(|(_, load)| load.active.load(Ordering::Relaxed) > 0);
        self.leaving = busy;
        for (app, load) in idle {
            let label = self.label(&app).to_owned();
            self.gone.entry(label).or_default().add(&load);
        }
    }

    fn label<'a>(&self, app: &'a AppName) -> &'a str {
        // Past the limit `other` has an entry too; an application of that name shares it.
        if self.gone.contains_key(app.as_str()) { app.as_str() } else { OTHER }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(loads: &[(&str, u16, &Arc<Load>)]) -> Pools {
        let key = |name: &str, port: u16| (name.parse().unwrap(), SocketAddr::from(([127, 0, 0, 1], port)));
        let loads = loads.iter().map(|(name, port, load)| (key(name, *port), Arc::clone(load))).collect();
        Pools { loads, ..Pools::default() }
    }

    fn load(requests: u64, failures: u64, active: u32) -> Arc<Load> {
        let load = Load::default();
        load.requests.store(requests, Ordering::Relaxed);
        load.failures.store(failures, Ordering::Relaxed);
        load.active.store(active, Ordering::Relaxed);
        Arc::new(load)
    }

    #[test]
    fn a_total_does_not_fall_when_a_backend_goes() {
        let (one, two) = (load(100, 1, 0), load(50, 2, 0));
        let mut tally = Tally::default();
        tally.update(&pools(&[("web", 1, &one), ("web", 2, &two)]));
        assert_eq!(tally.totals()["web"], Total { requests: 150, failures: 3, active: 0 });
        tally.update(&pools(&[("web", 1, &one)]));
        assert_eq!(tally.totals()["web"].requests, 150);
        // The address comes back with a load of its own.
        tally.update(&pools(&[("web", 1, &one), ("web", 2, &load(7, 0, 0))]));
        assert_eq!(tally.totals()["web"].requests, 157);
        tally.update(&pools(&[]));
        assert_eq!(tally.totals()["web"], Total { requests: 157, failures: 3, active: 0 });
    }

    #[test]
    fn work_under_way_at_a_backend_that_is_gone_still_counts() {
        let old = load(10, 0, 1);
        let mut tally = Tally::default();
        tally.update(&pools(&[("web", 1, &old)]));
        tally.update(&pools(&[]));
        assert_eq!(tally.totals()["web"], Total { requests: 10, failures: 0, active: 1 });
        old.failures.store(1, Ordering::Relaxed);
        old.active.store(0, Ordering::Relaxed);
        assert_eq!(tally.totals()["web"], Total { requests: 10, failures: 1, active: 0 });
        assert!(tally.leaving.is_empty());
    }

    #[test]
    fn labels_are_bounded_and_keep_to_their_applications() {
        let names: Vec<String> = (0..LABELS_MAX + 50).map(|i| format!("app-{i:05}")).collect();
        let one = load(1, 0, 0);
        let all: Vec<_> = names.iter().map(|name| (name.as_str(), 1, &one)).collect();
        let mut tally = Tally::default();
        tally.update(&pools(&all));
        let totals = tally.totals();
        assert_eq!(totals.len(), LABELS_MAX + 1);
        assert_eq!(totals[OTHER].requests, 50);
        tally.update(&pools(&all[40..]));
        assert_eq!(tally.totals(), totals);
    }
}
