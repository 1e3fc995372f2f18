//! A balancer: pools from the roster, served by the proxy or written for nginx.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{DRAIN_LIMIT, Node, Reread, Wish, answer_reload, reread, sleep_until};
use crate::config::{Config, Mode};
use crate::generate::Generator;
use crate::member::{Role, Roster};
use crate::pool::{Pools, Rules};
use crate::proxy::Proxy;
use crate::report::{GenerateCounters, GenerateReport, ProxyCounters};

/// Runs a balancer until it is told to end.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: Config, reread_config: Reread) -> anyhow::Result<()> {
    // What can be wrong in the templates and certificates is known before anything is bound.
    let output = Output::prepare(&config)?;
    let mut node = Node::start(config, Role::Balancer).await?;
    let (rules, rules_rx) = watch::channel(node.config.lb.rules.clone());
    let (pools_tx, pools) = watch::channel(Arc::default());
    node.spawn(follow(node.gossip.roster.clone(), rules_rx, pools_tx, node.closed.clone()));
    let mut sources = node.sources(Role::Balancer);
    sources.pools = Some(pools.clone());
    let mut output = output.start(&node.config, pools, &mut sources)?;
    node.serve_admin(sources);
    node.ready();
    loop {
        match node.wish().await {
            Wish::End => break,
            Wish::Reload(answer) => {
                let outcome = reload(&mut node, &reread_config, &rules, &mut output).await;
                answer_reload(answer, outcome);
            }
        }
    }
    info!("ending: finishing what is open, for {DRAIN_LIMIT:?} at most");
    node.begin_to_end();
    output.end().await;
    node.end().await;
    Ok(())
}

/// Makes pools of every new roster, of new rules, and when a sign of life on the data path has become old.
async fn follow(
    mut roster: watch::Receiver<Arc<Roster>>,
    mut rules: watch::Receiver<Rules>,
    pools: watch::Sender<Arc<Pools>>,
    closed: CancellationToken,
) {
    loop {
        let next = {
            let (roster, rules, last) = (roster.borrow_and_update(), rules.borrow_and_update(), pools.borrow());
            Arc::new(last.next(&roster, &rules, Instant::now()))
        };
        let look_again = next.look_again;
        pools.send_replace(next);
        tokio::select! {
            changed = roster.changed() => if changed.is_err() { return },
            changed = rules.changed() => if changed.is_err() { return },
            () = sleep_until(look_again) => {}
            () = closed.cancelled() => return,
        }
    }
}

async fn reload(
    node: &mut Node,
    reread_config: &Reread,
    rules: &watch::Sender<Rules>,
    output: &mut Running,
) -> Result<String, String> {
    let (new, note) = reread(&node.config, reread_config)?;
    output.reload(&node.config, &new).await?;
    let keys = node.rekey(&new).await?;
    rules.send_replace(new.lb.rules.clone());
    node.config.lb.rules = new.lb.rules;
    node.config.lb.generate = new.lb.generate;
    node.config.lb.proxy = crate::proxy::Config {
        bind: node.config.lb.proxy.bind.clone(),
        workers: node.config.lb.proxy.workers,
        ..new.lb.proxy
    };
    Ok(format!("rules and limits are in use{keys}{note}"))
}

/// Where requests are served, judged and not yet running.
enum Output {
    Proxy,
    Generate(Box<Generator>, Arc<GenerateCounters>),
}

/// Where requests are served.
enum Running {
    Proxy(Proxy),
    Generate(Generating),
}

struct Generating {
    pools: watch::Receiver<Arc<Pools>>,
    report: watch::Sender<Arc<GenerateReport>>,
    counters: Arc<GenerateCounters>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Output {
    fn prepare(config: &Config) -> anyhow::Result<Self> {
        match (config.lb.mode, &config.lb.generate) {
            (Mode::Generate, Some(generate)) => {
                let counters = Arc::<GenerateCounters>::default();
                let generator = Generator::new(generate.clone(), Arc::clone(&counters))?;
                Ok(Self::Generate(Box::new(generator), counters))
            }
            (Mode::Generate, None) => anyhow::bail!("lb.mode is generate, and lb.generate is missing"),
            (Mode::Proxy, _) => Ok(Self::Proxy),
        }
    }

    fn start(
        self,
        config: &Config,
        pools: watch::Receiver<Arc<Pools>>,
        sources: &mut crate::admin::Sources,
    ) -> anyhow::Result<Running> {
        match self {
            Self::Proxy => {
                let counters = Arc::<ProxyCounters>::default();
                let proxy = Proxy::start(config.lb.proxy.clone(), pools, Arc::clone(&counters))?;
                sources.listeners = Some(proxy.listeners());
                sources.proxy_counters = Some(counters);
                Ok(Running::Proxy(proxy))
            }
            Self::Generate(generator, counters) => {
                let (report, report_rx) = watch::channel(Arc::default());
                sources.generate = Some(report_rx);
                sources.generate_counters = Some(Arc::clone(&counters));
                Ok(Running::Generate(Generating::start(*generator, pools, report, counters)))
            }
        }
    }
}

impl Running {
    /// Takes over what may change while running; on an error nothing has changed.
    async fn reload(&mut self, old: &Config, new: &Config) -> Result<(), String> {
        match self {
            Self::Proxy(proxy) => {
                proxy.reload_certificates(&new.lb.proxy).map_err(|error| error.to_string())?;
                proxy.reconfigure(new.lb.proxy.clone());
            }
            Self::Generate(generating) => {
                if let Some(generate) = &new.lb.generate
                    && old.lb.mode == new.lb.mode
                {
                    let generator = Generator::new(generate.clone(), Arc::clone(&generating.counters))
                        .map_err(|error| error.to_string())?;
                    generating.replace(generator).await;
                }
            }
        }
        Ok(())
    }

    async fn end(self) {
        match self {
            Self::Proxy(proxy) => {
                let cut = proxy.drain(DRAIN_LIMIT).await;
                if cut > 0 {
                    tracing::warn!("{cut} connections were cut when the time was up");
                }
            }
            // nginx goes on serving the last good file.
            Self::Generate(generating) => generating.end().await,
        }
    }
}

impl Generating {
    fn start(
        generator: Generator,
        pools: watch::Receiver<Arc<Pools>>,
        report: watch::Sender<Arc<GenerateReport>>,
        counters: Arc<GenerateCounters>,
    ) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(generator.run(pools.clone(), report.clone(), stop.clone()));
        Self { pools, report, counters, stop, task }
    }

    async fn replace(&mut self, generator: Generator) {
        self.stop.cancel();
        let _ = (&mut self.task).await;
        *self = Self::start(generator, self.pools.clone(), self.report.clone(), Arc::clone(&self.counters));
    }

    async fn end(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::app::Protocol;
    use crate::member::Reach;
    use crate::name::Port;

    fn roster(reach: Reach) -> Arc<Roster> {
        let backend = ([10, 0, 0, 1], 8080).into();
        Arc::new(Roster::of_one(backend, Protocol::Tcp, Port::new(8080).unwrap(), reach))
    }

    #[tokio::test]
    async fn a_suspicion_that_was_held_off_comes_by_itself() {
        let (rosters, roster_rx) = watch::channel(roster(Reach::Answers));
        let (_rules, rules_rx) = watch::channel(Rules::default());
        let (pools_tx, mut pools) = watch::channel(Arc::default());
        let closed = CancellationToken::new();
        let task = tokio::spawn(follow(roster_rx, rules_rx, pools_tx, closed.clone()));
        pools.changed().await.unwrap();
        let load = Arc::clone(pools.borrow_and_update().loads.values().next().unwrap());
        load.succeeded(Instant::now());
        rosters.send_replace(roster(Reach::Silent));
        pools.changed().await.unwrap();
        assert!(pools.borrow_and_update().out.is_empty(), "held off");
        // No roster comes any more.
        let soon = tokio::time::timeout(Duration::from_secs(20), pools.wait_for(|pools| !pools.out.is_empty()));
        assert!(soon.await.is_ok_and(|pools| pools.is_ok()));
        assert!(load.since_success(Instant::now()).unwrap() >= crate::pool::EVIDENCE);
        closed.cancel();
        task.await.unwrap();
    }
}
