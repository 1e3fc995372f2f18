//! The command line: what a person typed. What it means is [`crate::config`]'s to say.
//!
//! Clap does not read the environment here: [`crate::config::load`] does, so that a mistake in it is reported
//! together with those of the file, and at its own place.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};

use crate::member::Role;

/// The exit status of a wrong configuration (`EX_CONFIG` of sysexits.h); clap itself ends with 2 on wrong usage.
pub const EXIT_CONFIG: u8 = 78;

/// A load balancer that finds its backends by itself.
#[derive(Debug, Clone, Parser)]
#[command(name = "scrimp", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Start here:
  scrimp demo                                  see it work on this machine

Then, with one bucket in common and the same key on every machine:
  scrimp keygen > /etc/scrimp/cluster.key && chmod 600 /etc/scrimp/cluster.key
  scrimp lb --seed s3://bucket/prefix          on the machine that takes the requests
  scrimp backend --seed s3://bucket/prefix --app web:8080,domain=example.com
                                               on each machine that serves them
  scrimp status                                who is there, and what is served

Exit status: 0 done, 1 failed at run time, 2 wrong usage, 78 wrong configuration.";

/// The commands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Show the whole thing on this machine: a balancer and backends, one of them killed and replaced
    #[command(after_help = "\
Examples:
  scrimp demo                    until Ctrl-C
  scrimp demo --for 20s          ends by itself; status 0 if no request failed
  scrimp demo --backends 5 --for 20s --json")]
    Demo(Demo),
    /// Run a balancer in the foreground
    #[command(after_help = "\
Examples:
  scrimp lb --seed s3://bucket/prefix --key /etc/scrimp/cluster.key
  scrimp lb --bind 127.0.0.1:7377              on this machine alone: no key needed
  scrimp lb                                    everything from /etc/scrimp/scrimp.toml

It opens a port when a backend offers an app for it, and closes it with the last.
INT and TERM let open requests finish, then leave the cluster; HUP reads the configuration again.")]
    Lb(Common),
    /// Run a backend: offer applications to the balancers
    #[command(after_help = "\
SPEC is NAME:PORT[/PROTOCOL][,key=value]...
  PORT       where the application runs on this machine
  PROTOCOL   http (default), https (TLS to the backend), h2c, tcp, tls (TCP, TLS to the backend) or udp
  listen     port at which the balancers serve it (80; for tcp and udp the same as PORT)
  domain     host it is for; may be repeated; *.example.com is fine; none: any host
  path       path it is for, with all below (/)
  weight     share of the requests, 1 to 1000 (100)
  health     path to ask with GET, or tcp: only connect (tcp)
  address    where its health is asked (127.0.0.1)
  proxy-protocol
             v1 or v2: a tcp application is told whose connection it gets

Examples:
  scrimp backend --seed s3://bucket/prefix --app web:8080
  scrimp backend --app web:8080,domain=example.com,domain=www.example.com,health=/up
  scrimp backend --app db:5432/tcp --app dns:5353/udp,listen=53
  scrimp backend --app web:8080 -- ./server --port 8080
                     starts ./server, offers it while it accepts connections,
                     takes it out before stopping it, ends with its exit status")]
    Backend(Backend),
    /// Read and judge the configuration: every mistake at once
    #[command(after_help = "\
Examples:
  scrimp check
  scrimp check --config ./scrimp.toml --role backend

Exit status 0 if it is right, 78 if not.")]
    Check(Check),
    /// Show how the running node does
    Status(Show),
    /// List the members of the cluster as the running node sees them
    Members(Show),
    /// List the applications, with their backends
    Apps(Show),
    /// Have the running node read its configuration again; a wrong one changes nothing
    Reload(Client),
    /// Print what generate mode would write, without touching anything
    #[command(after_help = "\
Examples:
  scrimp render                          for the cluster as the running node sees it
  scrimp render --roster roster.json     for one that was saved: scrimp apps --json > roster.json")]
    Render(Render),
    /// List what the seed stores hold, with age
    Seeds(Seeds),
    /// Print a new cluster key
    #[command(after_help = "\
Example:
  (umask 077; scrimp keygen > /etc/scrimp/cluster.key)

Every node of the cluster needs the same file. To change the key, put the new one in the second line
everywhere, then in the first, then take away the old one.")]
    Keygen,
    /// Exit 0 if the node on this machine is ready, else 1
    Healthcheck(Client),
    /// List the addresses of this machine, and which one `advertise = "auto"` would take
    Addresses,
    /// Print the completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Serve a small page: the application behind `scrimp demo`
    #[command(hide = true)]
    DemoApp(DemoApp),
}

/// Arguments of `demo`.
#[derive(Debug, Clone, Args)]
pub struct Demo {
    /// How many backends
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=50))]
    pub backends: u8,
    /// End by itself after this long, for example 10s
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Print what happened as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of the hidden `demo-app`.
#[derive(Debug, Clone, Args)]
pub struct DemoApp {
    /// Where to listen
    #[arg(long, value_name = "ADDR")]
    pub listen: SocketAddr,
    /// The name to answer with
    #[arg(long)]
    pub name: String,
}

/// Arguments of `backend`.
#[derive(Debug, Clone, Default, Args)]
pub struct Backend {
    /// An application to offer; may be repeated; see below [SCRIMP_APP, separated by spaces]
    #[arg(long = "app", value_name = "SPEC")]
    pub apps: Vec<String>,
    /// A program to run, offer and stop
    #[arg(last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
    /// What every node needs.
    #[command(flatten)]
    pub common: Common,
}

/// Arguments of `check`.
#[derive(Debug, Clone, Default, Args)]
pub struct Check {
    /// Judge it for this role; else: balancer if there is an [lb] section, backend if there are only apps
    #[arg(long, value_name = "lb|backend", value_parser = parse_role)]
    pub role: Option<Role>,
    /// An application, as `scrimp backend` takes it
    #[arg(long = "app", value_name = "SPEC")]
    pub apps: Vec<String>,
    /// What every node needs.
    #[command(flatten)]
    pub common: Common,
}

/// Arguments of `render`.
#[derive(Debug, Clone, Default, Args)]
pub struct Render {
    /// Applications as `scrimp apps --json` prints them, instead of asking the running node
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub roster: Option<PathBuf>,
    /// What every node needs.
    #[command(flatten)]
    pub common: Common,
}

/// Arguments of `seeds`.
#[derive(Debug, Clone, Default, Args)]
pub struct Seeds {
    /// Remove what is dead
    #[arg(long)]
    pub prune: bool,
    /// What every node needs.
    #[command(flatten)]
    pub common: Common,
}

/// Arguments of the commands that show something.
#[derive(Debug, Clone, Default, Args)]
pub struct Show {
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
    /// How to reach the running node.
    #[command(flatten)]
    pub client: Client,
}

/// How to reach the running node.
#[derive(Debug, Clone, Default, Args)]
pub struct Client {
    /// Configuration file [SCRIMP_CONFIG] [default: /etc/scrimp/scrimp.toml, if it exists]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Where the node answers: unix:PATH or IP:PORT [SCRIMP_ADMIN] [default: unix:/run/scrimp/scrimp.sock]
    #[arg(long, value_name = "ADDR")]
    pub admin: Vec<String>,
}

/// What a node needs, each also in the environment. A flag counts more than the environment, and that more
/// than the file.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of every node (each also in the environment)")]
pub struct Common {
    /// Configuration file [SCRIMP_CONFIG] [default: /etc/scrimp/scrimp.toml, if it exists]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Where nodes find each other: s3://BUCKET/PREFIX, file:///DIR or HOST:PORT; may be repeated
    /// [SCRIMP_SEED, separated by commas]
    #[arg(long = "seed", value_name = "URL")]
    pub seeds: Vec<String>,
    /// File with the cluster key [SCRIMP_KEY] [default: /etc/scrimp/cluster.key, if it exists]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key: Option<String>,
    /// Name of the cluster [SCRIMP_CLUSTER] [default: default]
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Name of this node [SCRIMP_NAME] [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Where to take gossip, UDP and TCP [SCRIMP_BIND] [default: 0.0.0.0:7377]
    #[arg(long, value_name = "ADDR")]
    pub bind: Option<String>,
    /// Where others reach this node: auto, IP, IP:PORT, interface:NAME, ipv6 or ec2 [SCRIMP_ADVERTISE]
    /// [default: auto]
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<String>,
    /// Where to answer `scrimp status` and its like: unix:PATH or IP:PORT; may be repeated
    /// [SCRIMP_ADMIN, separated by commas] [default: unix:/run/scrimp/scrimp.sock]
    #[arg(long, value_name = "ADDR")]
    pub admin: Vec<String>,
    /// Form of the log: auto, text or json [SCRIMP_LOG_FORMAT] [default: auto]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What to log: error, warn, info, debug or trace; or by part, as warn,scrimp::seed=debug [SCRIMP_LOG]
    /// [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
}

impl From<&Client> for Common {
    fn from(client: &Client) -> Self {
        Self { config: client.config.clone(), admin: client.admin.clone(), ..Self::default() }
    }
}

fn parse_role(word: &str) -> Result<Role, String> {
    match word {
        "lb" | "balancer" => Ok(Role::Balancer),
        "backend" => Ok(Role::Backend),
        _ => Err("use lb or backend".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(words: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(words.split_whitespace())
    }

    #[test]
    fn clap_finds_no_contradiction() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_ends_with_2_and_help_and_version_with_0() {
        for (words, status) in [
            ("scrimp", 2),
            ("scrimp lbx", 2),
            ("scrimp lb --sed x", 2),
            ("scrimp lb --config", 2),
            ("scrimp demo --backends 0", 2),
            ("scrimp demo --for 10", 2),
            ("scrimp --help", 0),
            ("scrimp -V", 0),
            ("scrimp --version", 0),
            ("scrimp backend --help", 0),
        ] {
            assert_eq!(parse(words).unwrap_err().exit_code(), status, "{words}");
        }
        assert_eq!(parse("scrimp").unwrap_err().kind(), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    }

    #[test]
    fn a_backend_keeps_its_command_apart() {
        let cli = parse("scrimp backend --app a:1 --app b:2 -c x.toml -- ./server --app c:3 -c y").unwrap();
        let Command::Backend(backend) = cli.command else { panic!("{cli:?}") };
        assert_eq!(backend.apps, ["a:1", "b:2"]);
        assert_eq!(backend.common.config, Some("x.toml".into()));
        assert_eq!(backend.command, ["./server", "--app", "c:3", "-c", "y"]);
    }

    #[test]
    fn every_command_of_the_contract_is_there() {
        for words in [
            "scrimp demo --backends 3 --for 10s --json",
            "scrimp lb --seed s3://b/p --seed 127.0.0.1:7377 --key k --cluster c --name n --bind b --advertise auto",
            "scrimp lb --admin 127.0.0.1:9377 --log-format json --log debug",
            "scrimp backend",
            "scrimp check --role lb --config f",
            "scrimp status --json",
            "scrimp members --admin unix:/s",
            "scrimp apps --config f",
            "scrimp reload",
            "scrimp render --roster f",
            "scrimp seeds --prune",
            "scrimp keygen",
            "scrimp healthcheck",
            "scrimp addresses",
            "scrimp completions bash",
            "scrimp demo-app --listen 127.0.0.1:0 --name a",
        ] {
            assert!(parse(words).is_ok(), "{words}: {}", parse(words).unwrap_err());
        }
    }

    #[test]
    fn the_help_teaches_by_example() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("scrimp demo ") && help.contains("keygen"), "{help}");
        assert!(!help.contains("demo-app"), "{help}");
        let mut cli = Cli::command();
        let backend = cli.find_subcommand_mut("backend").unwrap().render_help().to_string();
        assert!(backend.contains("NAME:PORT[/PROTOCOL]") && backend.contains("SCRIMP_SEED"), "{backend}");
    }
}
