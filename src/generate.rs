//! Renders the configuration of another balancer (nginx) and has it reloaded.
//!
//! Pools become a [`Model`], the model becomes text, and the text is brought into use by
//! [`apply`]: judged, swapped in, checked, reloaded. On any failure the old file stays byte for byte, the reason is in
//! the report, and it is tried again: at each change, and by itself with growing pauses.
//!
//! Changes are gathered for a tenth of a second, and a storm of them costs about one reload in two seconds ([`pace`]).

pub mod apply;
pub mod certificate;
pub mod model;
pub mod nginx;
pub mod observe;
pub mod pace;
pub mod place;
pub mod program;
pub mod target;
pub mod template;

use std::net::{Ipv6Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::pool::Pools;
use crate::report::{GenerateCounters, GenerateReport};

use apply::{Apply, Outcome};
use certificate::CertificateNames;
use model::Environment;
use pace::Pace;

pub use crate::certificate::Certificate;
pub use model::Model;
pub use template::{Template, TemplateError};

/// Settings of generate mode (`[lb.generate]`, and `[[lb.certificate]]` for its TLS paths).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Which template.
    pub template: TemplateSource,
    /// The file to write.
    pub target: PathBuf,
    /// The command that judges the configuration, with the new file in place; none: the template's own (a template
    /// of the user's has none). Where it holds `{candidate}`, it is asked before that too, about the new file under
    /// that path. An empty list: nothing is asked.
    pub check: Option<Vec<String>>,
    /// The command that has it reloaded; none: the template's own. An empty list: nothing is reloaded.
    pub reload: Option<Vec<String>>,
    /// Certificates, in order of preference. With any, HTTP ports other than 80 speak TLS.
    pub certificates: Vec<Certificate>,
}

/// Where a template comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateSource {
    /// `nginx`: servers for HTTP applications, to be included in nginx's `http` block.
    Nginx,
    /// `nginx-stream`: servers for TCP and UDP applications, to be included in nginx's `stream` block.
    NginxStream,
    /// A Tera template of the user's. The comment at the top of `templates/nginx.conf.tera` lists what it gets.
    File(PathBuf),
}

/// What can go wrong. Every message says where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// In the template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The routes are too many.
    #[error(transparent)]
    Routes(#[from] model::TooManyRoutes),
    /// With the file to write, or its folder.
    #[error("{0}")]
    Target(String),
    /// With a certificate.
    #[error("{0}")]
    Certificate(String),
    /// The check said no, or could not be asked.
    #[error("{0}")]
    Check(String),
    /// The reload failed.
    #[error("{0}")]
    Reload(String),
    /// There is nothing running that could reload. The new file stands.
    #[error("{0}")]
    NotRunning(String),
}

/// How long a file from an earlier run stands at most while this run does not know the cluster yet: a restart of scrimp
/// is no reason to answer 503. Backends that have lost their only balancer look for it every 15 s.
const START_GRACE: Duration = Duration::from_secs(30);
/// How long the cluster must have been quiet for this run to know it: members come one by one.
const START_QUIET: Duration = Duration::from_secs(1);
/// The pause after a first failure; it doubles with each.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// The pause while nginx does not run.
const RETRY_NOT_RUNNING: Duration = Duration::from_secs(5);

/// The text that `config` makes of `pools`. Nothing is written, and neither the target nor nginx need be there.
///
/// # Errors
/// The template or a certificate is not as it must be.
pub fn preview(config: &Config, pools: &Pools) -> Result<String, Error> {
    Renderer::load(config)?.render(pools)
}

/// Generate mode, ready to run.
#[derive(Debug)]
pub struct Generator {
    target: PathBuf,
    renderer: Arc<Renderer>,
    apply: Apply,
    counters: Arc<GenerateCounters>,
}

/// What rendering takes, apart from the rest so that it can be done in a thread of its own.
#[derive(Debug)]
struct Renderer {
    template: Template,
    environment: Environment,
}

impl Renderer {
    fn load(config: &Config) -> Result<Self, Error> {
        let environment = Environment {
            ipv6: TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok(),
            certificates: config.certificates.iter().map(CertificateNames::load).collect::<Result<_, _>>()?,
        };
        Ok(Self { template: Template::load(&config.template)?, environment })
    }

    fn render(&self, pools: &Pools) -> Result<String, Error> {
        Ok(self.template.render(&Model::new(pools, &self.environment)?)?)
    }
}

impl Generator {
    /// Loads the template and the certificates' names. Nothing is touched yet.
    ///
    /// # Errors
    /// The template, a certificate or the target's folder is not as it must be.
    pub fn new(config: Config, counters: Arc<GenerateCounters>) -> Result<Self, Error> {
        Ok(Self {
            renderer: Arc::new(Renderer::load(&config)?),
            apply: Apply::new(&config, Arc::clone(&counters))?,
            counters,
            target: config.target,
        })
    }

    /// The text for `pools`.
    ///
    /// # Errors
    /// The template does not fit these pools.
    pub fn render(&self, pools: &Pools) -> Result<String, Error> {
        self.counters.renders.inc();
        self.renderer.render(pools)
    }

    /// Renders for no pools at all, and asks nginx about that and about the configuration that stands. Changes
    /// nothing that lives.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub async fn check(&self) -> Result<(), Error> {
        let text = self.render(&Pools::default())?;
        self.apply.ask(&text).await
    }

    /// Follows the pools until `shutdown`. The first state is brought into use at once, also when there is no backend
    /// at all; only a file from an earlier run stands until the cluster is known, for half a minute at most. What
    /// `report` holds from a generator before this one is taken over.
    pub async fn run(
        self,
        pools: watch::Receiver<Arc<Pools>>,
        report: watch::Sender<Arc<GenerateReport>>,
        shutdown: CancellationToken,
    ) {
        Run::new(self, report).follow(pools, shutdown).await;
    }
}

/// The state of one run.
struct Run {
    generator: Generator,
    report: watch::Sender<Arc<GenerateReport>>,
    pace: Pace,
    /// When to try again, with or without a change.
    retry: Option<Instant>,
    pause: Duration,
    /// Until when the file of an earlier run is not replaced by one of half the cluster.
    hold_until: Option<Instant>,
    changed_at: Instant,
}

impl Run {
    fn new(mut generator: Generator, report: watch::Sender<Arc<GenerateReport>>) -> Self {
        let last = Arc::clone(&report.borrow());
        let is_first = last.last_ok.is_none() && last.error.is_none();
        if last.error.is_some() {
            generator.apply.doubt();
        }
        let target = generator.target.display().to_string();
        let last_ok = last.last_ok.filter(|_| last.target == target);
        report.send_replace(Arc::new(GenerateReport { target, last_ok, error: last.error.clone() }));
        let now = Instant::now();
        let hold_until = (is_first && generator.apply.has_file()).then(|| now + START_GRACE);
        let pace = Pace::new(now);
        Self { generator, report, pace, retry: Some(now), pause: RETRY_MIN, hold_until, changed_at: now }
    }

    async fn follow(mut self, mut pools: watch::Receiver<Arc<Pools>>, shutdown: CancellationToken) {
        if let Err(error) = self.generator.apply.recover() {
            self.tell(Err(error));
        }
        loop {
            let due = [self.pace.due(), self.retry].into_iter().flatten().min();
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = pools.changed() => match changed {
                    Ok(()) => {
                        self.changed_at = Instant::now();
                        self.pace.changed(self.changed_at);
                    }
                    Err(_) => return,
                },
                () = sleep_until(due) => {
                    let newest = Arc::clone(&pools.borrow_and_update());
                    // Never dropped half way: once begun, it is done to its end.
                    self.turn(&newest).await;
                }
            }
        }
    }

    async fn turn(&mut self, pools: &Arc<Pools>) {
        self.pace.begin();
        self.retry = self.held_until(pools).filter(|until| Instant::now() < *until);
        if self.retry.is_none() {
            self.hold_until = None;
            self.bring_into_use(Arc::clone(pools)).await;
        }
    }

    /// Until when nothing is done yet, as things are now.
    fn held_until(&self, pools: &Pools) -> Option<Instant> {
        let hold_until = self.hold_until?;
        Some(if pools.routes.is_empty() { hold_until } else { hold_until.min(self.changed_at + START_QUIET) })
    }

    async fn bring_into_use(&mut self, pools: Arc<Pools>) {
        let renderer = Arc::clone(&self.generator.renderer);
        self.generator.counters.renders.inc();
        let outcome = match apply::blocking(move || renderer.render(&pools)).await {
            Ok(text) => self.generator.apply.apply(&text).await,
            Err(error) => Err(error),
        };
        if outcome != Ok(Outcome::Unchanged) {
            self.pace.took_turn(Instant::now());
        }
        if let Err(error) = &outcome {
            self.generator.counters.failures.inc();
            let pause = if matches!(error, Error::NotRunning(_)) { RETRY_NOT_RUNNING } else { self.pause };
            self.retry = Some(Instant::now() + pause);
            self.pause = (self.pause * 2).min(RETRY_MAX);
        } else {
            self.pause = RETRY_MIN;
        }
        self.tell(outcome);
    }

    /// Reports, and logs what is new.
    fn tell(&self, outcome: Result<Outcome, Error>) {
        let last = Arc::clone(&self.report.borrow());
        let mut next = GenerateReport { target: last.target.clone(), last_ok: last.last_ok, error: None };
        match outcome {
            Ok(outcome) => {
                next.last_ok = Some(SystemTime::now());
                if outcome == Outcome::Applied || last.error.is_some() {
                    tracing::info!(file = %next.target, "generated configuration is in use");
                }
            }
            Err(error) => {
                let reason = match &error {
                    Error::NotRunning(reason) => reason.clone(),
                    other => format!("{other}; the last good file stands"),
                };
                if last.error.as_ref() != Some(&reason) {
                    tracing::warn!(file = %next.target, "generated configuration is not in use: {reason}");
                }
                next.error = Some(reason);
            }
        }
        self.report.send_replace(Arc::new(next));
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
