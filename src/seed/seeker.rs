//! The task that looks for the cluster, and leaves word of this node for others.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Listing, SeedError, SeedObject, SeedStore, SeedUrl, Written};
use crate::member::{NodeId, Role};
use crate::name::{ClusterName, NodeName};
use crate::report::{SeedCounters, SeedReport, StoreReport};

/// How often stores are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// While alone: the n-th pause is random in `[0, min(alone_max, alone_first * 2^n)]`, so that a whole cluster
    /// that starts at once does not read in step.
    pub alone_first: Duration,
    /// The longest pause while alone.
    pub alone_max: Duration,
    /// A balancer that is not alone reads about this often, so that clusters that were born apart merge.
    pub balancer: Duration,
    /// So does a backend; rarely, for there may be a thousand of them and stores bill by the read.
    pub backend: Duration,
    /// A balancer writes its object again about this often.
    pub refresh: Duration,
    /// A balancer in company looks about this often for objects of others that are to be removed.
    pub prune: Duration,
    /// They are, when they are this much older than the freshest.
    pub forget_after: Duration,
    /// After a failed write, the n-th pause is random in `[0, min(refresh, rewrite_first * 2^n)]`.
    pub rewrite_first: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            alone_first: Duration::from_millis(250),
            alone_max: Duration::from_secs(15),
            balancer: Duration::from_secs(15),
            backend: Duration::from_secs(600),
            refresh: Duration::from_secs(60),
            prune: Duration::from_secs(600),
            forget_after: Duration::from_secs(24 * 3600),
            rewrite_first: Duration::from_secs(1),
        }
    }
}

impl Pace {
    /// The pause after a read; `reads` are those before it since this node is alone.
    fn after_read(&self, role: Role, alone: bool, reads: u32, rng: &mut fastrand::Rng) -> Duration {
        match (alone, role) {
            (true, _) => full_jitter(self.alone_first, self.alone_max, reads, rng),
            (false, Role::Balancer) => about(self.balancer, rng),
            (false, Role::Backend) => about(self.backend, rng),
        }
    }

    /// The pause after a write; `failures` are those since the last that succeeded.
    fn after_write(&self, failures: u32, rng: &mut fastrand::Rng) -> Duration {
        match failures {
            0 => about(self.refresh, rng),
            _ => full_jitter(self.rewrite_first, self.refresh, failures, rng),
        }
    }
}

/// Random in 80 to 120 % of a pause.
fn about(pause: Duration, rng: &mut fastrand::Rng) -> Duration {
    pause.mul_f64(0.8 + 0.4 * rng.f64())
}

fn full_jitter(first: Duration, longest: Duration, tries: u32, rng: &mut fastrand::Rng) -> Duration {
    let doubled = first.saturating_mul(1 << tries.min(16));
    doubled.min(longest).mul_f64(rng.f64())
}

/// Reads the stores, for as long as the node runs, and keeps this node's object in them if it is a balancer.
#[derive(Debug)]
pub struct Seeker {
    /// The stores.
    pub urls: Vec<SeedUrl>,
    /// The cluster to look for.
    pub cluster: ClusterName,
    /// This node's name.
    pub me: NodeName,
    /// This run of it: what its jitter is made from, so that no two nodes go in step.
    pub id: NodeId,
    /// What this node is for.
    pub role: Role,
    /// How often.
    pub pace: Pace,
    /// What happened, in numbers.
    pub counters: Arc<SeedCounters>,
    /// How each store does; the seeker is its only writer.
    pub report: watch::Sender<Arc<SeedReport>>,
}

impl Seeker {
    /// Runs until `shutdown`, then takes this node's object out of the stores, which takes 3 s at most.
    ///
    /// `publish` is what to leave in the stores, none for a backend or before the address is known; a change is
    /// written at once, and `written_at` is set here. `alone` says whether no other member is known. `found` takes
    /// addresses at which others may be, never this node's own: the freshest first, then the others, which take turns
    /// in standing before the rest, so that whoever tries only the first of them comes to try them all. What does not
    /// fit into the queue is found again at the next read. Each store is looked after by itself: a slow one delays no
    /// other.
    pub async fn run(
        self,
        publish: watch::Receiver<Option<SeedObject>>,
        alone: watch::Receiver<bool>,
        found: mpsc::Sender<Vec<SocketAddr>>,
        shutdown: CancellationToken,
    ) {
        let stores = self.urls.iter().map(|url| StoreReport { url: url.to_string(), ..unheard() }).collect();
        self.report.send_replace(Arc::new(SeedReport { stores }));
        let report = Arc::new(self.report);
        let mut keepers = JoinSet::new();
        for (place, url) in self.urls.iter().enumerate() {
            let seed = self.id.0 ^ (place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            debug!(store = %url, seed, "jitter");
            let keeper = Arc::new(Keeper {
                place,
                url: url.to_string(),
                store: SeedStore::open(url, &self.cluster),
                me: self.me.clone(),
                role: self.role,
                pace: self.pace,
                counters: Arc::clone(&self.counters),
                report: Arc::clone(&report),
                trouble: Mutex::default(),
                shutdown: shutdown.clone(),
            });
            let (publish, alone, found) = (publish.clone(), alone.clone(), found.clone());
            keepers.spawn(keeper.run(publish, alone, found, seed));
        }
        // A node with nothing configured is no special case for its owner.
        shutdown.cancelled().await;
        keepers.join_all().await;
    }
}

fn unheard() -> StoreReport {
    StoreReport { url: String::new(), last_ok: None, error: None, seeds: 0 }
}

/// The first write goes before the first read, but a store that takes no writes may still be read.
const HEAD_START: Duration = Duration::from_millis(500);
/// Removing what is dead may take this long in all; the rest waits for the next time.
const PRUNE_LIMIT: Duration = Duration::from_secs(8);
/// Addresses that come first in each list, by freshness; those behind take turns in places as many.
const FIRST: usize = 8;

/// At shutdown: a write that is under way, and the removal, together.
const GOODBYE_LIMIT: Duration = Duration::from_secs(3);

/// Who looks after one store.
struct Keeper {
    place: usize,
    url: String,
    store: SeedStore,
    me: NodeName,
    role: Role,
    pace: Pace,
    counters: Arc<SeedCounters>,
    report: Arc<watch::Sender<Arc<SeedReport>>>,
    trouble: Mutex<Trouble>,
    shutdown: CancellationToken,
}

/// What is wrong now, as far as is known.
#[derive(Default)]
struct Trouble {
    has_answered: bool,
    /// This run's object has stood there: another run's there now was written later.
    has_written: bool,
    reading: Option<SeedError>,
    writing: Option<SeedError>,
    /// Said once in a run: the two objects alternate, and so would the news.
    namesake: bool,
}

impl Trouble {
    /// Trouble of one sort is told once, however its words change, and whether it meets reading or writing first.
    fn is_news(&self, error: &SeedError) -> bool {
        [&self.reading, &self.writing].into_iter().flatten().all(|known| known.kind != error.kind)
    }
}

impl Keeper {
    async fn run(
        self: Arc<Self>,
        publish: watch::Receiver<Option<SeedObject>>,
        alone: watch::Receiver<bool>,
        found: mpsc::Sender<Vec<SocketAddr>>,
        seed: u64,
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let first_write = CancellationToken::new();
        let reader = Arc::clone(&self).read(publish.clone(), alone, found, first_write.clone(), rng.fork());
        if !self.store.keeps_objects() {
            first_write.cancel();
            return reader.await;
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(reader);
        tasks.spawn(Arc::clone(&self).keep_written(publish, first_write, rng));
        tasks.join_all().await;
    }

    async fn read(
        self: Arc<Self>,
        publish: watch::Receiver<Option<SeedObject>>,
        mut alone: watch::Receiver<bool>,
        found: mpsc::Sender<Vec<SocketAddr>>,
        first_write: CancellationToken,
        mut rng: fastrand::Rng,
    ) {
        // Written before the first read: of two balancers that start together, at least one then sees the other.
        let _ = timeout(HEAD_START, first_write.cancelled()).await;
        let (mut reads, mut reads_alone) = (0, 0);
        let mut next_prune = Instant::now() + about(self.pace.prune, &mut rng);
        while !self.shutdown.is_cancelled() && !found.is_closed() {
            let has_written = self.trouble().has_written;
            let listing = tokio::select! {
                listing = self.store.list() => listing,
                () = self.shutdown.cancelled() => return,
            };
            let own = publish.borrow().clone();
            self.record_read(&listing);
            if let Ok(listing) = &listing {
                if has_written {
                    self.look_for_namesake(listing, own.as_ref());
                }
                let addresses = addresses(listing, own.as_ref(), reads);
                if !addresses.is_empty() {
                    // A full queue means that whoever reads it has enough to try.
                    let _ = found.try_send(addresses);
                }
                // Who is alone may be the one that something is wrong with.
                if own.is_some() && !*alone.borrow() && Instant::now() >= next_prune {
                    self.prune(listing).await;
                    next_prune = Instant::now() + about(self.pace.prune, &mut rng);
                }
            }
            reads = reads.wrapping_add(1);
            self.pause(&mut alone, &mut reads_alone, &mut rng).await;
        }
    }

    /// Waits until it is time to read again: at once when this node has become alone.
    async fn pause(&self, alone: &mut watch::Receiver<bool>, reads_alone: &mut u32, rng: &mut fastrand::Rng) {
        loop {
            let is_alone = *alone.borrow_and_update();
            let pause = self.pace.after_read(self.role, is_alone, *reads_alone, rng);
            *reads_alone = if is_alone { reads_alone.saturating_add(1) } else { 0 };
            tokio::select! {
                () = sleep(pause) => return,
                () = self.shutdown.cancelled() => return,
                () = changed(alone) => if *alone.borrow() { return },
            }
        }
    }

    /// Two balancers of one name would take turns in one object, and only one could be found at a time.
    fn look_for_namesake(&self, listing: &Listing, own: Option<&SeedObject>) {
        let Some(own) = own else { return };
        let mut objects = listing.objects.iter().map(|stored| &stored.object);
        if let Some(other) = objects.find(|object| object.node == self.me && object.epoch != own.epoch) {
            self.tell_of_namesake(other);
        }
    }

    fn tell_of_namesake(&self, other: &SeedObject) {
        if !std::mem::replace(&mut self.trouble().namesake, true) {
            warn!(
                store = %self.url, node = %self.me, addresses = ?other.addresses,
                "another balancer uses this node's name, and both write one seed object; give each a name of its own"
            );
        }
    }

    /// Removes what balancers left behind that vanished long ago.
    async fn prune(&self, listing: &Listing) {
        let prune = self
            .store
            .prune(listing, |stored| stored.object.node != self.me && listing.lag(stored) > self.pace.forget_after);
        let removed = tokio::select! {
            removed = timeout(PRUNE_LIMIT, prune) => removed,
            () = self.shutdown.cancelled() => return,
        };
        match removed {
            Ok(Ok(nodes)) => {
                for node in nodes {
                    info!(store = %self.url, %node, "the seed object of a balancer that vanished was removed");
                }
            }
            Ok(Err(error)) => debug!(store = %self.url, "old seed objects stay: {error}"),
            Err(_) => debug!(store = %self.url, "old seed objects stay: no answer in time"),
        }
    }

    /// Writes the object when it changes and again from time to time, until shutdown; then removes it.
    async fn keep_written(
        self: Arc<Self>,
        mut publish: watch::Receiver<Option<SeedObject>>,
        first_write: CancellationToken,
        mut rng: fastrand::Rng,
    ) {
        let mut held = publish.borrow_and_update().clone();
        let mut failures = 0;
        if let Some(object) = &held {
            failures = u32::from(!self.write(object).await);
        }
        first_write.cancel();
        loop {
            let pause = self.pace.after_write(failures, &mut rng);
            tokio::select! {
                () = sleep(pause), if held.is_some() => {}
                () = changed(&mut publish) => failures = 0,
                () = self.shutdown.cancelled() => break,
            }
            let wanted = publish.borrow_and_update().clone();
            match (&wanted, &held) {
                (Some(object), _) => failures = if self.write(object).await { 0 } else { failures + 1 },
                (None, Some(object)) => self.withdraw(object, Instant::now() + GOODBYE_LIMIT).await,
                (None, None) => {}
            }
            held = wanted;
        }
        if let Some(object) = held {
            self.withdraw(&object, Instant::now() + GOODBYE_LIMIT).await;
        }
    }

    /// Writes once, and says whether it worked. A write that shutdown finds under way may end, so that it cannot undo
    /// the removal that follows.
    async fn write(&self, object: &SeedObject) -> bool {
        let object = SeedObject { written_at: SystemTime::now(), ..object.clone() };
        let write = self.store.publish(&object);
        tokio::pin!(write);
        let result = tokio::select! {
            result = &mut write => result,
            () = self.shutdown.cancelled() => match timeout_at(Instant::now() + GOODBYE_LIMIT / 2, write).await {
                Ok(result) => result,
                Err(_) => return false,
            },
        };
        let is_done = result.is_ok();
        if let Ok(Written::Over(other) | Written::Yielded(other)) = &result {
            self.tell_of_namesake(other);
        }
        self.record_write(result);
        is_done
    }

    async fn withdraw(&self, object: &SeedObject, deadline: Instant) {
        match timeout_at(deadline, self.store.withdraw(object)).await {
            Ok(Ok(())) => debug!(store = %self.url, "seed object removed"),
            Ok(Err(error)) => info!(store = %self.url, "the seed object of this node stays behind: {error}"),
            Err(_) => info!(store = %self.url, "the seed object of this node stays behind: no answer in time"),
        }
    }

    fn record_read(&self, listing: &Result<Listing, SeedError>) {
        let mut trouble = self.trouble();
        match listing {
            Ok(listing) => {
                self.counters.reads.inc();
                self.counters.invalid_objects.add(listing.invalid.len() as u64);
                for invalid in &listing.invalid {
                    debug!(store = %self.url, object = %invalid.name, "passed over: {}", invalid.problem);
                }
                let seeds = listing.len();
                if trouble.reading.is_some() || !trouble.has_answered {
                    info!(store = %self.url, seeds, "seed store answers");
                }
            }
            Err(error) => {
                self.counters.read_failures.inc();
                if trouble.is_news(error) {
                    warn!(store = %self.url, "cannot read seeds: {error}");
                }
            }
        }
        let seeds = listing.as_ref().ok().map(Listing::len);
        trouble.has_answered |= seeds.is_some();
        trouble.reading = listing.as_ref().err().cloned();
        self.tell(&trouble, seeds);
    }

    fn record_write(&self, result: Result<Written, SeedError>) {
        let mut trouble = self.trouble();
        match &result {
            Ok(written) => {
                self.counters.writes.add(u64::from(!matches!(written, Written::Yielded(_))));
                trouble.has_written = true;
                if trouble.writing.is_some() {
                    info!(store = %self.url, "seed object written again");
                }
            }
            Err(error) => {
                self.counters.write_failures.inc();
                if trouble.is_news(error) {
                    warn!(store = %self.url, "cannot write this node's seed object: {error}");
                }
            }
        }
        trouble.writing = result.err();
        self.tell(&trouble, None);
    }

    fn tell(&self, trouble: &Trouble, seeds: Option<usize>) {
        let error = trouble.reading.as_ref().or(trouble.writing.as_ref()).map(ToString::to_string);
        self.report.send_modify(|report| {
            if let Some(store) = Arc::make_mut(report).stores.get_mut(self.place) {
                store.error = error;
                store.seeds = seeds.unwrap_or(store.seeds);
                if seeds.is_some() {
                    store.last_ok = Some(SystemTime::now());
                }
            }
        });
    }

    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a change; for ever, if there will be none.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The addresses in a listing, each once, without this node's own: the freshest objects' first, and of an object that
/// has several the further ones behind all first ones. The gossip tries the first 16: the living are among the first
/// [`FIRST`], for they write every minute; those behind take turns, in case that something is wrong with the order.
fn addresses(listing: &Listing, own: Option<&SeedObject>, turn: usize) -> Vec<SocketAddr> {
    let objects = listing.objects.iter().flat_map(|stored| stored.object.addresses.iter().enumerate());
    let mut all: Vec<(usize, SocketAddr)> = objects.map(|(nth, address)| (nth, *address)).collect();
    all.sort_by_key(|(nth, _)| *nth);
    let mut seen: HashSet<SocketAddr> = own.into_iter().flat_map(|own| own.addresses.iter().copied()).collect();
    let all = all.into_iter().map(|(_, address)| address).chain(listing.fixed.iter().copied());
    let mut all: Vec<SocketAddr> = all.filter(|address| seen.insert(*address)).collect();
    if let Some((_, behind)) = all.split_at_mut_checked(FIRST)
        && !behind.is_empty()
    {
        behind.rotate_left(turn.wrapping_mul(FIRST) % behind.len());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::Stored;
    use super::*;

    fn object(node: &str, addresses: &[&str], seconds_ago: u64) -> SeedObject {
        SeedObject {
            node: node.parse().unwrap(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            epoch: 1,
            written_at: SystemTime::now() - Duration::from_secs(seconds_ago),
        }
    }

    #[test]
    fn pauses_while_alone_grow_to_a_bound_and_spread_over_all_of_it() {
        let (pace, mut rng) = (Pace::default(), fastrand::Rng::with_seed(7));
        let mut pauses = |reads| -> Vec<Duration> {
            (0..1000).map(|_| pace.after_read(Role::Backend, true, reads, &mut rng)).collect()
        };
        for (reads, most) in [(0, 250), (1, 500), (5, 8_000), (6, 15_000), (60, 15_000), (u32::MAX, 15_000)] {
            let (pauses, most) = (pauses(reads), Duration::from_millis(most));
            assert!(pauses.iter().all(|pause| *pause <= most), "{reads}");
            assert!(pauses.iter().any(|pause| *pause < most / 20), "{reads}: nearly none");
            assert!(pauses.iter().any(|pause| *pause > most * 19 / 20), "{reads}: nearly all");
        }
    }

    #[test]
    fn pauses_in_company_depend_on_the_role_and_stay_within_a_fifth() {
        let (pace, mut rng) = (Pace::default(), fastrand::Rng::with_seed(7));
        for _ in 0..1000 {
            let balancer = pace.after_read(Role::Balancer, false, 0, &mut rng).as_secs_f64();
            assert!((12.0..=18.0).contains(&balancer), "{balancer}");
            let backend = pace.after_read(Role::Backend, false, 0, &mut rng).as_secs_f64();
            assert!((480.0..=720.0).contains(&backend), "{backend}");
            let refresh = pace.after_write(0, &mut rng).as_secs_f64();
            assert!((48.0..=72.0).contains(&refresh), "{refresh}");
            assert!(pace.after_write(u32::MAX, &mut rng) <= Duration::from_secs(60));
        }
    }

    fn listing(objects: Vec<SeedObject>) -> Listing {
        let stored = |object: SeedObject| Stored { stored_at: object.written_at, object };
        Listing { objects: objects.into_iter().map(stored).collect(), ..Listing::default() }
    }

    #[test]
    fn own_addresses_and_repetitions_are_left_out_and_the_order_is_kept() {
        let own = object("lb-1", &["10.0.0.1:7377"], 0);
        let listing = Listing {
            fixed: vec!["10.0.0.1:7377".parse().unwrap(), "10.0.0.5:7377".parse().unwrap()],
            ..listing(vec![
                object("lb-2", &["10.0.0.2:7377", "10.0.0.1:7377", "10.0.0.4:7377"], 1),
                object("lb-3", &["10.0.0.3:7377", "10.0.0.2:7377"], 9),
            ])
        };
        let found: Vec<String> = addresses(&listing, Some(&own), 0).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.2:7377", "10.0.0.3:7377", "10.0.0.4:7377", "10.0.0.5:7377"]);
    }

    #[test]
    fn the_freshest_come_first_each_time_and_all_others_come_to_their_turn() {
        /// What the gossip tries of a list.
        const TRIED: usize = 16;
        for count in [1, 7, 8, 9, 16, 17, 23, 24, 25, 100, 256] {
            let many: Vec<SeedObject> = (0..count)
                .map(|nth| object(&format!("lb-{nth}"), &[&format!("10.0.{}.{}:1", nth / 200, nth % 200 + 1)], nth))
                .collect();
            let listing = listing(many);
            let all = addresses(&listing, None, 0);
            let mut tried = HashSet::new();
            for turn in (usize::MAX - 2)..=usize::MAX {
                assert_eq!(addresses(&listing, None, turn).len(), all.len(), "none is lost at {turn}");
            }
            for turn in 0..all.len().div_ceil(FIRST) {
                let found = addresses(&listing, None, turn);
                assert_eq!(found[..all.len().min(FIRST)], all[..all.len().min(FIRST)]);
                tried.extend(found.into_iter().take(TRIED));
            }
            assert_eq!(tried.len(), all.len(), "of {count}");
        }
    }

    #[test]
    fn addresses_of_one_object_do_not_push_out_others() {
        let greedy: Vec<String> = (1..=16).map(|last| format!("10.9.9.{last}:1")).collect();
        let greedy: Vec<&str> = greedy.iter().map(String::as_str).collect();
        let listing = listing(vec![object("lb-1", &greedy, 0), object("lb-2", &["10.0.0.2:1"], 500)]);
        assert_eq!(addresses(&listing, None, 0)[1], "10.0.0.2:1".parse().unwrap());
    }

    #[test]
    fn only_what_is_old_by_every_clock_is_old() {
        let mut listing = listing(vec![object("a", &["10.0.0.1:1"], 0), object("b", &["10.0.0.2:1"], 500)]);
        assert!((499..=500).contains(&listing.lag(&listing.objects[1]).as_secs()));
        assert_eq!(listing.lag(&listing.objects[0]), Duration::ZERO);
        // A writer whose clock is behind, and one whose clock is ahead of all others.
        listing.objects[1].stored_at = listing.objects[0].stored_at;
        assert_eq!(listing.lag(&listing.objects[1]), Duration::ZERO);
        listing.objects[1].stored_at -= Duration::from_secs(500);
        listing.objects[1].object.written_at = listing.objects[0].object.written_at;
        assert_eq!(
            listing.lag(&listing.objects[1]),
            Duration::ZERO,
            "stored long ago, as the store says, but written now"
        );
        listing.objects.push(Stored { stored_at: SystemTime::now(), ..listing.objects[1].clone() });
        listing.objects[2].object.written_at = SystemTime::now() + Duration::from_secs(1_000_000);
        assert!(listing.lag(&listing.objects[0]) < Duration::from_secs(5));
    }
}
