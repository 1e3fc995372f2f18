//! Judges the configuration, and in generate mode what would be written.

use std::sync::Arc;

use super::{End, environment, judge_seed, print};
use crate::cli;
use crate::config::{self, Config, Mode, Purpose, Sources};
use crate::generate::{self, Generator};
use crate::member::Role;
use crate::proxy;

pub(super) async fn run(args: &cli::Check) -> Result<(), End> {
    let sources = Sources { apps: &args.apps, judge_seed, ..Sources::new(&args.common, &environment) };
    let config = config::load(&sources, Purpose::Check(args.role))?;
    if config.lb.mode == Mode::Proxy && config.role != Some(Role::Backend) {
        proxy::tls::check(&config.lb.proxy).map_err(|error| End::Unfit(format!("lb.certificate: {error}")))?;
    }
    if let (Mode::Generate, Some(generate)) = (config.lb.mode, &config.lb.generate) {
        let generator = Generator::new(generate.clone(), Arc::default()).map_err(|error| unfit(&error))?;
        generator.check().await.map_err(|error| unfit(&error))?;
    }
    print(&summary(&config))
}

fn unfit(error: &generate::Error) -> End {
    End::Unfit(format!("lb.generate: {error}"))
}

fn summary(config: &Config) -> String {
    let read = match config.files.as_slice() {
        [] => "no file; defaults, flags and environment".to_owned(),
        files => files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", "),
    };
    let role = match config.role {
        Some(Role::Balancer) => "a balancer",
        Some(Role::Backend) => "a backend",
        None => "a node",
    };
    let seeds: Vec<&str> = config.cluster.seed_urls().collect();
    let seeds = if seeds.is_empty() { "no seeds".to_owned() } else { seeds.join(", ") };
    let mut text = format!(
        "read: {read}\nright, for {role} {} of cluster {}; seeds: {seeds}\n",
        config.node.name, config.cluster.name
    );
    for app in &config.apps {
        let app = &app.app;
        text += &format!(
            "application {}: {} on port {}, served on port {}\n",
            app.name, app.protocol, app.port, app.listen
        );
    }
    if let (Mode::Generate, Some(generate)) = (config.lb.mode, &config.lb.generate) {
        text += &format!("the template renders, and nginx takes what would be in {}\n", generate.target.display());
    }
    text
}
