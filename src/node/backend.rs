//! A backend: offers its applications while they answer, and takes them out before they end.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{DRAIN_LIMIT, Node, Reread, Wish, answer_reload, reread};
use crate::app::{AppState, Offer};
use crate::command::Program;
use crate::config::{AppConfig, Config, Health};
use crate::gossip::Gossip;
use crate::health::{self, Check, Target};
use crate::member::Role;
use crate::report::LocalAppReport;

/// How long every balancer gets to hear that this backend drains.
const HEARD_LIMIT: Duration = Duration::from_secs(2);
/// How long a program that scrimp runs goes on serving once all balancers know that it drains: requests that
/// were on their way arrive, and most that are in it finish.
const PROGRAM_GRACE: Duration = Duration::from_secs(1);

/// Runs a backend until it is told to end, or until its program ends. The exit status: its program's, or 0.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: Config, program: &[OsString], reread_config: Reread) -> anyhow::Result<u8> {
    let mut node = Node::start(config, Role::Backend).await?;
    let mut program = match program {
        [] => None,
        words => Some(Program::start(words)?),
    };
    let (targets, targets_rx) = watch::channel(Arc::new(targets(&node.config.apps)));
    let (reports, reports_rx) = watch::channel(Arc::default());
    // Health goes on being asked until the end, but what it says counts no more once the node drains.
    let draining = CancellationToken::new();
    node.spawn(health::run(targets_rx, reports, node.closed.clone()));
    node.spawn(offer(Arc::clone(&node.gossip), reports_rx.clone(), draining.clone()));
    let mut sources = node.sources(Role::Backend);
    sources.local_apps = Some(reports_rx.clone());
    node.serve_admin(sources);
    node.ready();
    let status = loop {
        tokio::select! {
            wish = node.wish() => match wish {
                Wish::End => break None,
                Wish::Reload(answer) => {
                    let outcome = reload(&mut node, &reread_config, &targets).await;
                    answer_reload(answer, outcome);
                }
            },
            status = ended(&mut program) => break Some(status),
        }
    };
    node.begin_to_end();
    draining.cancel();
    let state = if status.is_some() { AppState::Starting } else { AppState::Draining };
    node.gossip.offer(all(&reports_rx.borrow(), state)).await;
    // What is dropped half way takes the program with it: nobody would be left to stop it.
    match node.hurry.run_until_cancelled(node.gossip.heard(HEARD_LIMIT)).await {
        Some(true) => info!("everybody knows that this node takes nothing new"),
        Some(false) => warn!("not everybody could be told in {HEARD_LIMIT:?} that this node takes nothing new"),
        None => return Ok(1),
    }
    let status = match (status, program) {
        (Some(status), _) => status,
        (None, Some(program)) => match node.hurry.run_until_cancelled(stop(program)).await {
            Some(status) => status,
            None => return Ok(1),
        },
        (None, None) => 0,
    };
    node.end().await;
    Ok(status)
}

async fn stop(mut program: Program) -> u8 {
    info!("the program is told to end in {PROGRAM_GRACE:?}");
    tokio::time::sleep(PROGRAM_GRACE).await;
    program.stop(DRAIN_LIMIT).await
}

async fn ended(program: &mut Option<Program>) -> u8 {
    match program {
        Some(program) => program.wait().await,
        None => std::future::pending().await,
    }
}

/// Offers what health reports, until the node drains.
async fn offer(
    gossip: Arc<Gossip>,
    mut reports: watch::Receiver<Arc<Vec<LocalAppReport>>>,
    draining: CancellationToken,
) {
    loop {
        let offer = offered(&reports.borrow_and_update());
        gossip.offer(offer).await;
        if draining.run_until_cancelled(reports.changed()).await.is_none_or(|changed| changed.is_err()) {
            return;
        }
    }
}

fn offered(reports: &[LocalAppReport]) -> Offer {
    Offer { apps: reports.iter().map(|report| (report.app.clone(), report.state)).collect() }
}

fn all(reports: &[LocalAppReport], state: AppState) -> Offer {
    Offer { apps: reports.iter().map(|report| (report.app.clone(), state)).collect() }
}

async fn reload(
    node: &mut Node,
    reread_config: &Reread,
    running: &watch::Sender<Arc<Vec<Target>>>,
) -> Result<String, String> {
    let (new, note) = reread(&node.config, reread_config)?;
    let keys = node.rekey(&new).await?;
    let next = targets(&new.apps);
    let word = if **running.borrow() == next { "the same" } else { "now" };
    let count = next.len();
    running.send_replace(Arc::new(next));
    node.config.apps = new.apps;
    Ok(format!("{word} {count} application{} offered{keys}{note}", if count == 1 { "" } else { "s" }))
}

fn targets(apps: &[AppConfig]) -> Vec<Target> {
    apps.iter()
        .map(|app| {
            let (check, interval) = match &app.health {
                Health::None => (Check::None, crate::config::HEALTH_INTERVAL),
                Health::Tcp { interval } => (Check::Tcp, *interval),
                Health::Http { path, interval } => (Check::Http { path: path.clone() }, *interval),
            };
            Target { app: app.app.clone(), address: app.address, check, interval }
        })
        .collect()
}
