//! Where nodes find each other: seed stores.
//!
//! A balancer leaves one object in a store, `clusters/CLUSTER/seeds/NODE.json`, and only ever writes its own;
//! so nothing is lost by two writers, and no store needs transactions. It removes those of others when they were not
//! written for a day. Whoever looks for the cluster reads them all. What a store says is a hint: the worst that a wrong one does is that joining takes longer, for without
//! the cluster's key nobody answers.
//!
//! # Layout
//! - [`SeedUrl`]: a store's place as a person writes it
//! - [`SeedObject`]: what a balancer leaves there
//! - [`SeedStore`]: the family of stores, one file a member
//! - [`Seeker`]: the task that reads, and writes, for a running node

mod file;
mod fixed;
mod object;
mod own;
mod s3;
mod seeker;
mod url;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::name::{ClusterName, NodeName};

pub use self::object::{ADDRESSES_MAX, OBJECT_BYTES_MAX, SeedObject};
pub use self::own::Written;
pub use self::seeker::{Pace, Seeker};
pub use self::url::{FixedHost, S3Url, SeedUrl, SeedUrlError};

use self::file::FileStore;
use self::fixed::FixedStore;
use self::own::{Expected, Outcome, Own};
use self::s3::S3Store;

/// More objects than this are not read; the freshest come first.
pub const OBJECTS_MAX: usize = 256;

/// Objects removed in one pass; the rest waits for the next.
pub const PRUNED_MAX: usize = 16;

/// Reading a whole store, pages and objects: S3's single operations end after 5 s.
const LIST_LIMIT: Duration = Duration::from_secs(15);
/// Writing or removing one object.
const WRITE_LIMIT: Duration = Duration::from_secs(8);

/// A place where seeds are kept. Nothing is opened, and nothing of a store's library is set up, before its first use;
/// every call ends within seconds; a call that is dropped half-way leaves the old object or the new one, never a part.
#[derive(Debug)]
pub struct SeedStore {
    kind: Kind,
    own: Mutex<Own>,
}

#[derive(Debug)]
enum Kind {
    /// An S3 bucket.
    S3(Box<S3Store>),
    /// A folder.
    File(FileStore),
    /// One host, written down; nothing is kept.
    Fixed(FixedStore),
}

impl SeedStore {
    /// The store at `url`, for one cluster.
    #[must_use]
    pub fn open(url: &SeedUrl, cluster: &ClusterName) -> Self {
        let kind = match url {
            SeedUrl::S3(url) => Kind::S3(Box::new(S3Store::new(url.clone(), cluster))),
            SeedUrl::File(folder) => Kind::File(FileStore::new(folder, cluster)),
            SeedUrl::Fixed(host, port) => Kind::Fixed(FixedStore::new(host.clone(), *port)),
        };
        Self { kind, own: Mutex::default() }
    }

    /// Whether objects can be written there.
    #[must_use]
    pub fn keeps_objects(&self) -> bool {
        !matches!(self.kind, Kind::Fixed(_))
    }

    /// What the store holds, freshest first. A missing folder or prefix is an empty store.
    ///
    /// # Errors
    /// If the store cannot be read; single objects that cannot are passed over and counted.
    pub async fn list(&self) -> Result<Listing, SeedError> {
        let listing = async {
            match &self.kind {
                // Boxed: the SDK's futures are large, and other stores should not pay for them.
                Kind::S3(store) => Box::pin(store.list()).await,
                Kind::File(store) => store.list().await,
                Kind::Fixed(store) => store.list().await,
            }
        };
        let mut listing = timeout(LIST_LIMIT, listing).await.unwrap_or_else(|_| Err(SeedError::slow(LIST_LIMIT)))?;
        // The store's clock first: it is one for all of them, and a writer's may be wrong by years.
        listing.objects.sort_by_key(|stored| std::cmp::Reverse((stored.stored_at, stored.object.written_at)));
        Ok(listing)
    }

    /// Writes a balancer's object, in one piece, and tells if another run of the same name writes it too.
    ///
    /// # Errors
    /// If it could not be written; then the old one stands.
    pub async fn publish(&self, object: &SeedObject) -> Result<Written, SeedError> {
        timeout(WRITE_LIMIT, self.write_own(object)).await.unwrap_or_else(|_| Err(SeedError::slow(WRITE_LIMIT)))
    }

    /// Removes a balancer's object, if the run of the node that `own` tells of wrote it last. One that is not there
    /// is as good as removed.
    ///
    /// # Errors
    /// If it may still be there.
    pub async fn withdraw(&self, own: &SeedObject) -> Result<(), SeedError> {
        self.remove_if(&own.node, |held| held.epoch == own.epoch).await.map(drop)
    }

    /// Removes what `rule` says of what was read, at most [`PRUNED_MAX`], and says whose it was. What was written
    /// again since it was read stays. A balancer that is alive after all writes its own again within a minute.
    ///
    /// # Errors
    /// If one of them could not be removed.
    pub async fn prune(&self, listing: &Listing, rule: impl Fn(&Stored) -> bool) -> Result<Vec<NodeName>, SeedError> {
        let mut removed = Vec::new();
        // The oldest first: what is certainly dead.
        for stored in listing.objects.iter().rev().filter(|stored| rule(stored)).take(PRUNED_MAX) {
            if self.remove_if(&stored.object.node, |held| *held == stored.object).await? {
                removed.push(stored.object.node.clone());
            }
        }
        Ok(removed)
    }

    /// Removes an object that is as it should be when it is read once more, and has not changed since, as far as the
    /// store can tell.
    async fn remove_if(&self, node: &NodeName, is_meant: impl Fn(&SeedObject) -> bool) -> Result<bool, SeedError> {
        let removal = async {
            let Some(Held { object: Ok(object), tag }) = self.read(node).await? else { return Ok(false) };
            if !is_meant(&object) {
                return Ok(false);
            }
            let mut outcome = self.remove(node, &tag.map_or(Expected::Anything, Expected::Tag)).await?;
            if outcome == Outcome::Unsupported {
                outcome = self.remove(node, &Expected::Anything).await?;
            }
            Ok(matches!(outcome, Outcome::Done(_)))
        };
        timeout(WRITE_LIMIT, removal).await.unwrap_or_else(|_| Err(SeedError::slow(WRITE_LIMIT)))
    }

    async fn read(&self, node: &NodeName) -> Result<Option<Held>, SeedError> {
        match &self.kind {
            Kind::S3(store) => Box::pin(store.read(node)).await,
            Kind::File(store) => store.read(node).await,
            Kind::Fixed(_) => Ok(None),
        }
    }

    async fn put(&self, object: &SeedObject, expected: &Expected) -> Result<Outcome, SeedError> {
        match &self.kind {
            Kind::S3(store) => Box::pin(store.write(&object.node, object.to_json(), expected)).await,
            Kind::File(store) => store.write(&object.node, object.to_json(), expected).await,
            Kind::Fixed(_) => Ok(Outcome::Done(None)),
        }
    }

    async fn remove(&self, node: &NodeName, expected: &Expected) -> Result<Outcome, SeedError> {
        match &self.kind {
            Kind::S3(store) => Box::pin(store.remove(node, expected)).await,
            Kind::File(store) => store.remove(node, expected).await,
            Kind::Fixed(_) => Ok(Outcome::Done(None)),
        }
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An object as it was read by itself.
#[derive(Debug)]
struct Held {
    object: Result<SeedObject, String>,
    /// What changes with its content, if the store gives such a thing.
    tag: Option<String>,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// What its writer wrote.
    pub object: SeedObject,
    /// When that was by the store's clock; by the writer's, if the store does not tell.
    pub stored_at: SystemTime,
}

/// What a store held when it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The balancers' objects, freshest first, at most [`OBJECTS_MAX`].
    pub objects: Vec<Stored>,
    /// The addresses of a fixed host.
    pub fixed: Vec<SocketAddr>,
    /// What lay between them and made no sense, and why: passed over, never removed.
    pub invalid: Vec<InvalidObject>,
}

impl Listing {
    /// How many seeds there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len() + self.fixed.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// By how much an object is older than the freshest here, by the store's clock and by the writers': the smaller
    /// of the two. This machine's own clock has no say, so that a wrong one does not make the living look dead.
    #[must_use]
    pub fn lag(&self, stored: &Stored) -> Duration {
        let behind = |time: fn(&Stored) -> SystemTime| {
            let freshest = self.objects.iter().map(time).max();
            freshest.and_then(|freshest| freshest.duration_since(time(stored)).ok()).unwrap_or_default()
        };
        behind(|stored| stored.stored_at).min(behind(|stored| stored.object.written_at))
    }
}

/// An object that made no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidObject {
    /// Its name, made fit to print.
    pub name: String,
    /// What is wrong with it.
    pub problem: String,
}

impl InvalidObject {
    fn new(name: &str, problem: &str) -> Self {
        Self { name: printable(name, 120), problem: printable(problem, 200) }
    }
}

/// The name of the object that a file or key below the seeds' folder is: none for what is not one.
fn node_of(file_name: &str) -> Option<NodeName> {
    file_name.strip_suffix(".json")?.parse().ok()
}

fn file_name_of(node: &NodeName) -> String {
    format!("{node}.json")
}

/// Entry points of the fuzzer.
#[cfg(feature = "testing")]
pub mod testing {
    use super::{InvalidObject, NodeName, file_name_of, node_of, printable};

    /// Whose object a name in a listing is.
    #[must_use]
    pub fn node_of_listed(name: &str) -> Option<NodeName> {
        let node = node_of(name);
        assert!(node.as_ref().is_none_or(|node| file_name_of(node) == name), "{name:?} is written elsewhere than read");
        let shown = InvalidObject::new(name, name);
        assert!(!shown.name.chars().chain(shown.problem.chars()).any(char::is_control) && shown.problem.len() <= 800);
        assert_eq!(printable(&shown.problem, 200), shown.problem);
        node
    }
}

/// Why a store could not be read or written, with the remedy, in words for a person. Nothing was changed by it
/// unless the error says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SeedError {
    /// What sort of trouble it is: as long as this stays, there is nothing new to tell.
    pub kind: SeedErrorKind,
    message: String,
}

/// The sorts of trouble with a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SeedErrorKind {
    /// It refuses us.
    Forbidden,
    /// The bucket, or what should be a folder, is not there or is something else.
    Missing,
    /// There are no credentials to show it.
    NoCredentials,
    /// Nobody answers at its address, or the address cannot be found.
    Unreachable,
    /// Its clock and ours differ.
    Clock,
    /// It takes too long.
    Slow,
    /// It answered with an error of its own.
    Failing,
    /// Its settings do not fit (region, endpoint).
    Settings,
}

impl SeedError {
    fn new(kind: SeedErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, message: printable(&message.to_string(), 600) }
    }

    fn slow(limit: Duration) -> Self {
        Self::new(SeedErrorKind::Slow, format_args!("no answer within {} s; it is tried again", limit.as_secs()))
    }
}

/// What a store or its library said, fit for one line of a log: no control characters, an end.
fn printable(text: &str, chars_max: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(chars_max).collect()
}

/// What one store holds, or why that cannot be said.
#[derive(Debug)]
pub struct Survey {
    /// The store, as configured.
    pub url: SeedUrl,
    /// What it holds.
    pub result: Result<Listing, SeedError>,
}

/// Reads all stores, in the order given; the slowest decides how long it takes, at most some 15 s.
pub async fn survey(urls: &[SeedUrl], cluster: &ClusterName) -> Vec<Survey> {
    let mut reads = JoinSet::new();
    for (place, url) in urls.iter().enumerate() {
        let (store, url) = (SeedStore::open(url, cluster), url.clone());
        reads.spawn(async move { (place, Survey { result: store.list().await, url }) });
    }
    let mut surveys = reads.join_all().await;
    surveys.sort_by_key(|(place, _)| *place);
    surveys.into_iter().map(|(_, survey)| survey).collect()
}

/// Runs closures that may block (files, the resolver) beside the runtime, one at a time: if a dead network disk
/// holds one for ever, no second thread is lost to it.
#[derive(Debug, Default)]
struct Blocking(Arc<tokio::sync::Mutex<()>>);

impl Blocking {
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let guard = Arc::clone(&self.0).lock_owned().await;
        let task = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(guard);
            result
        });
        match task.await {
            Ok(result) => result,
            // A panic goes on in the caller; the runtime's end leaves nobody to answer.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => std::future::pending().await,
            },
        }
    }
}
