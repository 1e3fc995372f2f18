//! The whole thing on one machine: a balancer and backends as real processes on loopback, gossip encrypted,
//! seeds in a temporary folder, one backend killed and replaced while requests run.

pub mod app;
mod load;
mod processes;
mod story;

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::cli;
use load::Load;
use processes::Stage;
use story::{Outcome, Story};

/// How long the parts may take to find each other.
const START_LIMIT: Duration = Duration::from_secs(15);
/// Without `--for`, when the backend is killed.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// How long the replacement may take to serve.
const REPLACE_LIMIT: Duration = Duration::from_secs(15);
/// Without `--for`, how often the numbers are told.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Plays the demo; whether no request failed and everything that was to be seen was seen.
///
/// # Errors
/// When a part of it does not start; with the end of that part's log.
pub async fn run(args: &cli::Demo) -> anyhow::Result<bool> {
    let mut stage = Stage::build()?;
    let outcome = tokio::select! {
        outcome = play(args, &mut stage) => outcome,
        () = interrupted(), if args.duration.is_some() => Err(anyhow::anyhow!("interrupted")),
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            let logs = stage.logs();
            stage.strike().await;
            return Err(error.context(logs));
        }
    };
    stage.strike().await;
    if args.json {
        println!("{}", outcome.to_json());
    } else {
        println!("{}", outcome.to_text());
    }
    Ok(outcome.is_good())
}

async fn play(args: &cli::Demo, stage: &mut Stage) -> anyhow::Result<Outcome> {
    let story = Story::begin(args.json);
    let began = Instant::now();
    stage.start_balancer()?;
    for _ in 0..args.backends {
        stage.start_backend()?;
    }
    story.tell(&format!("started a balancer and {} backends; they know only a folder in common:", args.backends));
    story.tell(&format!("  {}", stage.seed_url()));
    let target = stage.target();
    load::first_answer(target, START_LIMIT).await.context("the balancer does not route to any backend")?;
    let first_request = began.elapsed();
    story.tell(&format!("first request answered after {} ms", first_request.as_millis()));
    load::answers_from(target, args.backends.into(), START_LIMIT).await.context("not every backend serves")?;
    let all_backends = began.elapsed();
    story.tell(&format!(
        "all {} backends serve, found by gossip, after {} ms",
        args.backends,
        all_backends.as_millis()
    ));
    let memory = stage.memory();
    story.tell("open while it runs:");
    story.tell(&format!("  http://{target}/"));
    story.tell(&format!("  {}", stage.status_command()));

    let load = Load::start(target);
    let kill_after = args.duration.map_or(KILL_AFTER, |duration| duration.mul_f64(0.3));
    tokio::time::sleep(kill_after).await;
    let (killed, replacement) = replace_one(stage, &story, &load).await?;
    match args.duration {
        Some(duration) => tokio::time::sleep_until((began + duration).into()).await,
        None => run_on(&story, &load).await,
    }
    let counts = load.stop().await;
    Ok(Outcome { first_request, all_backends, memory, killed, replacement, counts, backends: args.backends })
}

/// Kills one backend without warning, starts another; the name of the first, and of the second once it serves.
async fn replace_one(stage: &mut Stage, story: &Story, load: &Load) -> anyhow::Result<(String, String)> {
    let killed = stage.kill_oldest_backend().context("there is no backend to kill")?;
    story.tell(&format!("killed {killed} without warning (kill -9), requests go on"));
    let replacement = stage.start_backend()?;
    let began = Instant::now();
    load.answered_by(&replacement, REPLACE_LIMIT)
        .await
        .with_context(|| format!("{replacement}, started in place of {killed}, does not serve"))?;
    story.tell(&format!("started {replacement}; it serves after {} ms", began.elapsed().as_millis()));
    Ok((killed, replacement))
}

async fn run_on(story: &Story, load: &Load) {
    story.tell("Ctrl-C ends it.");
    let mut ticks = tokio::time::interval(TELL_EVERY);
    ticks.tick().await;
    loop {
        tokio::select! {
            _ = ticks.tick() => story.tell(&load.counts().to_text()),
            () = interrupted() => return,
        }
    }
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
