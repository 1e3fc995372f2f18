//! The commands that answer and end: what a person asks of a configuration, a store or a running node.

mod ask;
mod check;
mod render;
mod seeds;

use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::address::{self, Advertise};
use crate::cli::{self, Cli, Command};
use crate::config::{self, Config, Mistakes, Purpose, Sources};
use crate::seed::SeedUrl;

/// Why a command did not end well.
#[derive(Debug)]
pub enum End {
    /// It failed at run time.
    Failed(anyhow::Error),
    /// The configuration is wrong.
    Wrong(Mistakes),
    /// The configuration is well written, and what it names is not right.
    Unfit(String),
    /// The answer is no, and that is all there is to say.
    Silent,
}

impl From<anyhow::Error> for End {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Mistakes> for End {
    fn from(mistakes: Mistakes) -> Self {
        Self::Wrong(mistakes)
    }
}

/// Runs one of them.
///
/// # Errors
/// As [`End`] says.
pub async fn run(command: Command) -> Result<(), End> {
    match command {
        Command::Check(args) => check::run(&args).await,
        Command::Status(args) => ask::status(&args).await,
        Command::Members(args) => ask::members(&args).await,
        Command::Apps(args) => ask::apps(&args).await,
        Command::Reload(args) => ask::reload(&args).await,
        Command::Healthcheck(args) => ask::healthcheck(&args).await,
        Command::Render(args) => render::run(&args).await,
        Command::Seeds(args) => seeds::run(&args).await,
        Command::Keygen => print(&config::keygen()),
        Command::Addresses => addresses().await,
        Command::Completions { shell } => completions(shell),
        Command::Demo(_) | Command::DemoApp(_) | Command::Lb(_) | Command::Backend(_) => {
            Err(anyhow::anyhow!("this command runs and does not answer").into())
        }
    }
}

/// The environment as the configuration reads it.
#[must_use]
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Judges a seed as written, for the configuration's mistakes.
///
/// # Errors
/// What is wrong with it.
pub fn judge_seed(url: &str) -> Result<(), String> {
    url.parse::<SeedUrl>().map(drop).map_err(|error| error.to_string())
}

/// The configuration, for a command that uses a part of it.
fn inspect(common: &cli::Common) -> Result<Config, Mistakes> {
    let sources = Sources { judge_seed, ..Sources::new(common, &environment) };
    config::load(&sources, Purpose::Inspect)
}

/// Prints; a reader that went away early (`| head`) is no failure.
fn print(text: &str) -> Result<(), End> {
    let mut out = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{end}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write the answer").into())
        }
        _ => Ok(()),
    }
}

async fn addresses() -> Result<(), End> {
    let local = address::local_addresses().context("cannot list the addresses of this machine")?;
    let bind = SocketAddr::from(([0, 0, 0, 0], config::GOSSIP_PORT));
    let auto = address::resolve(&Advertise::Auto, bind, &[]).await;
    let width = local.iter().map(|address| address.interface.len()).max().unwrap_or(0);
    let mut text = String::new();
    for address in &local {
        let is_auto = auto.as_ref().is_ok_and(|(chosen, _)| chosen.ip() == address.ip);
        let mark = if is_auto { "  <- auto" } else { "" };
        text += &format!("{:width$}  {}{mark}\n", address.interface, address.ip);
    }
    match auto {
        Ok((chosen, why)) => text += &format!("\nadvertise = \"auto\" takes {}: {why}\n", chosen.ip()),
        Err(error) => text += &format!("\nadvertise = \"auto\" finds none: {error}\n"),
    }
    text += "Once a seed is known, auto takes the address from which that seed is reached.\n";
    print(&text)
}

fn completions(shell: clap_complete::Shell) -> Result<(), End> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "scrimp", &mut script);
    print(&String::from_utf8_lossy(&script))
}
