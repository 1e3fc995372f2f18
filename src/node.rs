//! Joins the rooms of one role and owns the order of starting and ending.
//!
//! ```text
//!  seed ──addresses──► gossip ──Roster──► pools ──Pools──► proxy | generate          (balancer)
//!  health ──states──► Offer ──► gossip ◄──addresses── seed                           (backend)
//!  admin reads what all of them publish
//! ```
//!
//! Sockets are bound before anything runs, so that a wrong setting ends the start with its name. What crosses
//! rooms is the newest state, in a `watch`: who comes late sees the present, and nobody can fall behind.

mod backend;
mod balancer;
mod events;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::address::{self, Advertise};
use crate::admin::{Admin, Lifecycle, NodeInfo, ReloadAnswer, Sources};
use crate::config::{self, Config, Mistakes};
use crate::gossip::{Bound, ClusterKey, Gossip};
use crate::member::{Member, Role, Roster};
use crate::report::{GossipCounters, JoinReport, KeyId, SeedCounters, SeedReport};
use crate::seed::{Pace, SeedObject, SeedUrl, Seeker};

pub use backend::run as run_backend;
pub use balancer::run as run_balancer;

/// Reads the configuration again, as at the start.
pub type Reread = Box<dyn Fn() -> Result<Config, Mistakes> + Send>;

/// Lists of seeds under way from the stores to the gossip.
const FOUND_MAX: usize = 16;
/// Wishes to reload that wait; one is enough, a second is told that one is under way.
const RELOADS_MAX: usize = 1;

/// What both roles have.
struct Node {
    config: Config,
    gossip: Arc<Gossip>,
    lifecycle: watch::Sender<Lifecycle>,
    seeds: watch::Receiver<Arc<SeedReport>>,
    seed_counters: Arc<SeedCounters>,
    reload: mpsc::Sender<ReloadAnswer>,
    reload_wishes: mpsc::Receiver<ReloadAnswer>,
    signals: Signals,
    started: SystemTime,
    /// Cancelled when the node begins to end.
    stopping: CancellationToken,
    /// Cancelled when it is told to end a second time: what is under way is dropped.
    hurry: CancellationToken,
    /// Cancelled when nothing is left to tell.
    closed: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    admin: Option<Admin>,
}

/// What a running node is told from outside.
enum Wish {
    /// Finish what is open, leave, end.
    End,
    /// Read the configuration again.
    Reload(Option<ReloadAnswer>),
}

impl Node {
    /// Binds what is to be bound and starts membership and seeds.
    async fn start(config: Config, role: Role) -> anyhow::Result<Self> {
        let started = SystemTime::now();
        let signals = Signals::new()?;
        let admin = bind_admin(&config)?;
        let bound = Bound::bind(config.gossip(role))?;
        let bind = bound.address();
        let (advertise, why) = address::resolve(&config.node.advertise, bind, &[]).await.context("node.advertise")?;
        let counters = Arc::new(GossipCounters::default());
        let gossip = Arc::new(bound.start(advertise, counters)?);
        info!(
            "{} {} of cluster {} takes gossip at {bind}, reached by others at {advertise} ({why})",
            role.as_str(),
            config.node.name,
            config.cluster.name
        );
        if config.cluster.keys.is_empty() {
            warn!("no cluster key: gossip is readable by anybody on this machine, and stays on it");
        }
        let (reload, reload_wishes) = mpsc::channel(RELOADS_MAX);
        let (seeds_tx, seeds) = watch::channel(Arc::default());
        let mut node = Self {
            gossip,
            lifecycle: watch::Sender::new(Lifecycle::Starting),
            seeds,
            seed_counters: Arc::default(),
            reload,
            reload_wishes,
            signals,
            started,
            stopping: CancellationToken::new(),
            hurry: CancellationToken::new(),
            closed: CancellationToken::new(),
            tasks: Vec::new(),
            admin,
            config,
        };
        node.start_seeds(role, bind, advertise, seeds_tx)?;
        node.spawn(events::tell(node.gossip.roster.clone(), node.gossip.join.clone(), node.closed.clone()));
        Ok(node)
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(tokio::spawn(task));
    }

    fn start_seeds(
        &mut self,
        role: Role,
        bind: SocketAddr,
        advertise: SocketAddr,
        report: watch::Sender<Arc<SeedReport>>,
    ) -> anyhow::Result<()> {
        let urls = self.config.cluster.seed_urls().map(str::parse).collect::<Result<Vec<SeedUrl>, _>>()?;
        if urls.is_empty() {
            info!("no seeds are configured (cluster.seeds): others find this node only if they are given its address");
        }
        let seeker = Seeker {
            urls,
            cluster: self.config.cluster.name.clone(),
            me: self.config.node.name.clone(),
            id: self.gossip.id,
            role,
            pace: Pace::default(),
            counters: Arc::clone(&self.seed_counters),
            report,
        };
        // There from the start, so that it is written before anything is read.
        let object = (role == Role::Balancer).then(|| SeedObject {
            node: self.config.node.name.clone(),
            addresses: vec![advertise],
            epoch: unix_ms(self.started),
            written_at: self.started,
        });
        let (publish, publish_rx) = watch::channel(object.clone());
        let (alone, alone_rx) = watch::channel(true);
        let (found, found_rx) = mpsc::channel(FOUND_MAX);
        self.spawn(tell_whether_alone(
            role,
            self.gossip.roster.clone(),
            self.gossip.join.clone(),
            alone,
            self.closed.clone(),
        ));
        if let Some(object) = object {
            self.spawn(publish_address(self.gossip.roster.clone(), object, publish, self.closed.clone()));
        }
        self.spawn(pass_seeds(
            Arc::clone(&self.gossip),
            self.config.node.advertise.clone(),
            bind,
            found_rx,
            self.closed.clone(),
        ));
        let stopping = self.stopping.clone();
        self.spawn(async move { seeker.run(publish_rx, alone_rx, found, stopping).await });
        Ok(())
    }

    /// What the admin API shows of every node; the role adds its own.
    fn sources(&self, role: Role) -> Sources {
        Sources {
            node: NodeInfo { name: self.config.node.name.clone(), role, started: self.started },
            lifecycle: self.lifecycle.subscribe(),
            roster: self.gossip.roster.clone(),
            pools: None,
            join: self.gossip.join.clone(),
            keys: self.gossip.keys.clone(),
            seeds: self.seeds.clone(),
            listeners: None,
            generate: None,
            local_apps: None,
            gossip_counters: Arc::clone(&self.gossip.counters),
            seed_counters: Arc::clone(&self.seed_counters),
            proxy_counters: None,
            generate_counters: None,
            reload: self.reload.clone(),
        }
    }

    fn serve_admin(&mut self, sources: Sources) {
        if let Some(admin) = self.admin.take() {
            for address in admin.addresses() {
                info!("answers `scrimp status` at {address}");
            }
            let closed = self.closed.clone();
            self.spawn(async move { admin.serve(sources, closed).await });
        }
    }

    /// From here on the node is what it is for.
    fn ready(&self) {
        self.lifecycle.send_replace(Lifecycle::Ready);
        notify_systemd(&[sd_notify::NotifyState::Ready]);
    }

    /// The next thing that is wished from outside.
    async fn wish(&mut self) -> Wish {
        tokio::select! {
            wish = self.signals.next() => wish,
            Some(answer) = self.reload_wishes.recv() => Wish::Reload(Some(answer)),
        }
    }

    /// Takes the cluster keys of a configuration that was read again; with a word on them if they are others.
    async fn rekey(&mut self, new: &Config) -> Result<String, String> {
        let keys = &new.cluster.keys;
        if *keys == self.config.cluster.keys {
            return Ok(String::new());
        }
        self.gossip.rekey(keys.clone()).await.map_err(|error| format!("cluster.key: {error}"))?;
        self.config.cluster.keys.clone_from(keys);
        let ids: Vec<KeyId> = keys.iter().map(ClusterKey::id).collect();
        let lost = self.lost_without(&ids);
        if !lost.is_empty() {
            warn!("these members have none of this node's cluster keys any more: {}", lost.join(", "));
        }
        let words: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let in_use = match words.as_slice() {
            [only] => format!("; cluster key {only} is in use"),
            [first, others @ ..] => format!("; cluster key {first} is in use, accepted too: {}", others.join(", ")),
            [] => String::new(),
        };
        let lost = match lost.as_slice() {
            [] => String::new(),
            some => format!("; lost here until they get one of these keys: {}", some.join(", ")),
        };
        Ok(in_use + &lost)
    }

    /// The members that are there and open none of these keys, by name; of very many the first.
    fn lost_without(&self, keys: &[KeyId]) -> Vec<String> {
        let (roster, report) = (self.gossip.roster.borrow(), self.gossip.keys.borrow());
        let has_none = |member: &&Member| {
            let told = report.members.get(&member.id).filter(|_| member.state.is_active());
            told.is_some_and(|told| !told.opens.iter().any(|id| keys.contains(id)))
        };
        let name =
            |member: &Member| member.name.as_ref().map_or_else(|| member.address.to_string(), ToString::to_string);
        roster.members.iter().filter(has_none).take(20).map(name).collect()
    }

    /// Begins to end: not ready any more, its seed withdrawn. A second signal ends the process at once.
    fn begin_to_end(&mut self) {
        self.lifecycle.send_replace(Lifecycle::Draining);
        notify_systemd(&[sd_notify::NotifyState::Stopping]);
        self.stopping.cancel();
        let mut signals = std::mem::replace(&mut self.signals, Signals::none());
        let hurry = self.hurry.clone();
        tokio::spawn(async move {
            while !matches!(signals.next().await, Wish::End) {}
            warn!("told to end twice: ending at once");
            hurry.cancel();
            tokio::time::sleep(HURRY_LIMIT).await;
            std::process::exit(1);
        });
    }

    /// Says goodbye and ends what still runs.
    async fn end(self) {
        self.gossip.leave().await;
        self.closed.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
        info!("left the cluster, ended");
    }
}

const NOT_RELOADED: &str = "the configuration was not taken over, everything stays as it was";

const NO_KEY_LEFT: &str = "cluster.key: this node runs with a key and would have none: put the key file back, or restart \
                           the node to run without";
const FIRST_KEY: &str = "cluster.key: this node runs without a key: restart it, and all others of the cluster, to begin \
                         with one";

/// Answers one wish to reload: to whom it came from, and in the log.
fn answer_reload(answer: Option<ReloadAnswer>, outcome: Result<String, String>) {
    match &outcome {
        Ok(done) => info!("configuration read again: {done}"),
        Err(error) => warn!("{NOT_RELOADED}: {}", error.replace('\n', "; ")),
    }
    let outcome = outcome.map_err(|error| format!("{NOT_RELOADED}:\n{error}"));
    answer.map(|answer| answer.send(outcome));
}

/// Reads the configuration again; with a word on what only a restart applies.
fn reread(old: &Config, reread: &Reread) -> Result<(Config, String), String> {
    let new = reread().map_err(|mistakes| mistakes.to_string())?;
    match (old.cluster.keys.is_empty(), new.cluster.keys.is_empty()) {
        (false, true) => return Err(NO_KEY_LEFT.to_owned()),
        (true, false) => return Err(FIRST_KEY.to_owned()),
        _ => {}
    }
    let waiting = config::restart_needed(old, &new);
    let note = match waiting.as_slice() {
        [] => String::new(),
        some => format!("; changed, but only a restart applies: {}", some.join(", ")),
    };
    Ok((new, note))
}

fn bind_admin(config: &Config) -> anyhow::Result<Option<Admin>> {
    let token = config.admin.token.as_ref().map(|path| {
        std::fs::read_to_string(path)
            .map(|text| text.lines().next().unwrap_or_default().trim().to_owned())
            .with_context(|| format!("admin.token: cannot read {}", path.display()))
    });
    match Admin::bind(&config.admin.listen, token.transpose()?) {
        Ok(admin) => Ok(Some(admin)),
        // Nobody asked for the default address: a node that cannot have it serves all the same.
        Err(error) if config.admin.is_default => {
            warn!("`scrimp status` will not reach this node: {error}");
            Ok(None)
        }
        Err(error) => Err(anyhow::Error::new(error).context("admin.listen")),
    }
}

/// Tells the search for seeds whether this node needs one soon. Backends among themselves are as good as alone:
/// only balancers stand in the stores, and one that starts again knows nobody.
async fn tell_whether_alone(
    role: Role,
    mut roster: watch::Receiver<Arc<Roster>>,
    mut join: watch::Receiver<Arc<JoinReport>>,
    alone: watch::Sender<bool>,
    closed: CancellationToken,
) {
    loop {
        let lacks_balancer = role == Role::Backend && roster.borrow_and_update().active(Role::Balancer) == 0;
        let is_alone = join.borrow_and_update().alone || lacks_balancer;
        alone.send_if_modified(|last| std::mem::replace(last, is_alone) != is_alone);
        tokio::select! {
            changed = roster.changed() => if changed.is_err() { return },
            changed = join.changed() => if changed.is_err() { return },
            () = closed.cancelled() => return,
        }
    }
}

/// Keeps the balancer's own seed object right while its address may change.
async fn publish_address(
    mut roster: watch::Receiver<Arc<Roster>>,
    object: SeedObject,
    publish: watch::Sender<Option<SeedObject>>,
    closed: CancellationToken,
) {
    loop {
        let me = {
            let roster = roster.borrow_and_update();
            roster.members.iter().find(|member| member.id == roster.me).map(|member| member.address)
        };
        if let Some(address) = me {
            let next = SeedObject { addresses: vec![address], ..object.clone() };
            publish.send_if_modified(|last| {
                let is_new = last.as_ref().is_none_or(|last| last.addresses != next.addresses);
                if is_new {
                    *last = Some(next);
                }
                is_new
            });
        }
        if closed.run_until_cancelled(roster.changed()).await.is_none_or(|changed| changed.is_err()) {
            return;
        }
    }
}

/// Hands seeds to the gossip; before that, a node that is alone may find that another of its addresses reaches
/// them.
async fn pass_seeds(
    gossip: Arc<Gossip>,
    advertise: Advertise,
    bind: SocketAddr,
    mut found: mpsc::Receiver<Vec<SocketAddr>>,
    closed: CancellationToken,
) {
    while let Some(Some(seeds)) = closed.run_until_cancelled(found.recv()).await {
        let is_alone = gossip.join.borrow().alone;
        if advertise == Advertise::Auto && is_alone && !seeds.is_empty() {
            match address::resolve(&advertise, bind, &seeds).await {
                Ok((address, _)) => gossip.advertise(address).await,
                Err(error) => warn!("node.advertise: {error}"),
            }
        }
        gossip.seeds(seeds).await;
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Tells systemd, if it started this process; it is no matter for anybody else.
fn notify_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("systemd was not told: {error}");
    }
}

/// The signals that a node heeds.
struct Signals {
    end: Option<(Signal, Signal)>,
    reload: Option<Signal>,
    reopen: Option<Signal>,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            end: Some((listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?)),
            reload: Some(listen(SignalKind::hangup())?),
            reopen: Some(listen(SignalKind::user_defined1())?),
        })
    }

    fn none() -> Self {
        Self { end: None, reload: None, reopen: None }
    }

    async fn next(&mut self) -> Wish {
        let (Some((terminate, interrupt)), Some(reload), Some(reopen)) =
            (&mut self.end, &mut self.reload, &mut self.reopen)
        else {
            return std::future::pending().await;
        };
        loop {
            tokio::select! {
                _ = terminate.recv() => return Wish::End,
                _ = interrupt.recv() => return Wish::End,
                _ = reload.recv() => return Wish::Reload(None),
                // Logs go to standard error: there is no file to open again, and the signal must not kill.
                _ = reopen.recv() => {}
            }
        }
    }
}

/// How long what is under way may take to be dropped.
const HURRY_LIMIT: Duration = Duration::from_millis(100);
/// How long a balancer lets open requests finish, and a backend's program its own.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// Never, if there is no moment.
async fn sleep_until(moment: Option<std::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
