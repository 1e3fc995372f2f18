//! The `scrimp` program: arguments, configuration, and then the node or the tool that was asked for. The only
//! place that ends the process.

use std::fmt::Display;
use std::process::ExitCode;

use clap::Parser as _;
use scrimp::cli::{self, Cli, Command, EXIT_CONFIG};
use scrimp::config::{self, Config, Mistakes, Purpose, Sources};
use scrimp::member::Role;
use scrimp::{demo, log, node, tools};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread for all that decides and watches; the proxy's workers and the gossip have threads of their own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(format!("cannot start: {error}")),
    };
    let status = runtime.block_on(run(cli.command));
    // A resolver or a disk that hangs on a thread of its own keeps nobody from ending.
    runtime.shutdown_background();
    status
}

async fn run(command: Command) -> ExitCode {
    match command {
        Command::Lb(common) => balancer(common).await,
        Command::Backend(backend) => self::backend(backend).await,
        Command::Demo(args) => match demo::run(&args).await {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => failed(format!("{error:#}")),
        },
        Command::DemoApp(args) => done(demo::app::run(args.listen, &args.name).await),
        tool => tools::run(tool).await.map_or_else(end, |()| ExitCode::SUCCESS),
    }
}

async fn balancer(common: cli::Common) -> ExitCode {
    let load = move || load(&common, &[], Role::Balancer);
    let config = match start(&load) {
        Ok(config) => config,
        Err(status) => return status,
    };
    match node::run_balancer(config, Box::new(load)).await {
        // A template or a certificate is a part of the configuration, in files of its own.
        Err(error) if error.is::<scrimp::generate::Error>() => wrong(&format!("{error:#}")),
        outcome => done(outcome),
    }
}

async fn backend(args: cli::Backend) -> ExitCode {
    let (common, apps) = (args.common, args.apps);
    let load = move || load(&common, &apps, Role::Backend);
    let config = match start(&load) {
        Ok(config) => config,
        Err(status) => return status,
    };
    match node::run_backend(config, &args.command, Box::new(load)).await {
        Ok(status) => ExitCode::from(status),
        Err(error) => match error.downcast_ref::<scrimp::command::CommandError>() {
            Some(cause) => {
                eprintln!("scrimp: {cause}");
                ExitCode::from(cause.exit_status())
            }
            None => failed(format!("{error:#}")),
        },
    }
}

fn load(common: &cli::Common, apps: &[String], role: Role) -> Result<Config, Mistakes> {
    let sources = Sources { apps, judge_seed: tools::judge_seed, ..Sources::new(common, &tools::environment) };
    config::load(&sources, Purpose::Run(role))
}

/// Reads the configuration and begins to log as it says.
fn start(load: &impl Fn() -> Result<Config, Mistakes>) -> Result<Config, ExitCode> {
    let config = load().map_err(|mistakes| {
        eprintln!("{mistakes}");
        ExitCode::from(EXIT_CONFIG)
    })?;
    log::init(config.log.format, &config.log.filter).map_err(|error| {
        eprintln!("scrimp: {error}");
        ExitCode::from(EXIT_CONFIG)
    })?;
    Ok(config)
}

fn done(outcome: anyhow::Result<()>) -> ExitCode {
    outcome.map_or_else(|error| failed(format!("{error:#}")), |()| ExitCode::SUCCESS)
}

fn failed(error: impl Display) -> ExitCode {
    eprintln!("scrimp: {error}");
    ExitCode::FAILURE
}

fn wrong(error: &str) -> ExitCode {
    eprintln!("scrimp: {error}");
    ExitCode::from(EXIT_CONFIG)
}

fn end(end: tools::End) -> ExitCode {
    match end {
        tools::End::Failed(error) => failed(format!("{error:#}")),
        tools::End::Wrong(mistakes) => {
            eprintln!("{mistakes}");
            ExitCode::from(EXIT_CONFIG)
        }
        tools::End::Unfit(error) => wrong(&error),
        tools::End::Silent => ExitCode::FAILURE,
    }
}
