//! Reads the configuration: flags, environment, files and defaults become one [`Config`] of meaning.
//!
//! A flag counts more than the environment (`SCRIMP_…`), that more than the file, and that more than the default.
//! A setting with several values (seeds, admin addresses, applications) is taken whole from the highest source
//! that gives it; the applications of the file and of `apps.d/` beside it are one source.
//!
//! Everything is read to its end before anything is refused: [`Mistakes`] holds all that is wrong, each with its
//! place and what to do. The environment is an argument, so that nothing here reads the process's own.

mod admin;
mod app;
mod cluster;
mod key;
mod lb;
mod log;
mod mistake;
mod node;
mod section;
mod source;
mod tree;
mod value;

use std::path::{Path, PathBuf};

use crate::cli;
use crate::gossip;
use crate::member::Role;

pub use admin::{ADMIN_SOCKET, AdminConfig};
pub use app::{AppConfig, HEALTH_INTERVAL, Health};
pub use cluster::{ClusterConfig, Seed};
pub use key::keygen;

pub use lb::{LbConfig, Mode};
pub use log::LogConfig;
pub use mistake::{Mistake, Mistakes, Place};
pub use node::{GOSSIP_PORT, NodeConfig};

use cluster::KeysFor;
use mistake::Notes;
use section::Section;
use source::given_specs;
use tree::Parsed;

/// Where files are looked for that nobody names.
pub const ETC: &str = "/etc/scrimp";
/// A bound on lists that people write by hand.
const LIST_MAX: usize = 64;

/// Everything a node needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// What it was judged for; none: neither in particular.
    pub role: Option<Role>,
    /// The node.
    pub node: NodeConfig,
    /// The cluster.
    pub cluster: ClusterConfig,
    /// Where the node answers people and programs.
    pub admin: AdminConfig,
    /// What a balancer does.
    pub lb: LbConfig,
    /// What a backend offers, in the order written.
    pub apps: Vec<AppConfig>,
    /// What is logged, and how.
    pub log: LogConfig,
    /// The files that were read.
    pub files: Vec<PathBuf>,
}

/// What a configuration is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To run: everything is judged.
    Run(Role),
    /// To be judged as for a run; without a role, for the one it seems to be for.
    Check(Option<Role>),
    /// To use a part of it: keys are not read, and what only a run needs may be missing.
    Inspect,
}

/// Where a configuration comes from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// What was typed.
    pub flags: &'a cli::Common,
    /// `--app`, as typed.
    pub apps: &'a [String],
    /// The environment: the value of a variable. An empty value counts as none.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Where files are looked for that nobody names: [`ETC`] but for tests.
    pub etc: &'a Path,
    /// Judges a seed, so that a wrong one is told at its place together with all else; the error is a sentence.
    pub judge_seed: fn(&str) -> Result<(), String>,
}

impl<'a> Sources<'a> {
    /// Flags and environment, no `--app`, [`ETC`]; seeds are judged by nobody.
    pub fn new(flags: &'a cli::Common, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { flags, apps: &[], env, etc: Path::new(ETC), judge_seed: |_| Ok(()) }
    }

    /// The place and path of `--config` or `SCRIMP_CONFIG`.
    fn named(&self) -> Option<(Place, PathBuf)> {
        let flag = self.flags.config.clone().map(|path| (Place::flag("--config"), path));
        let variable = || (self.env)("SCRIMP_CONFIG").filter(|path| !path.trim().is_empty());
        flag.or_else(|| variable().map(|path| (Place::variable("SCRIMP_CONFIG"), path.into())))
    }
}

/// Reads a configuration.
///
/// # Errors
/// All that is wrong in it.
pub fn load(sources: &Sources<'_>, purpose: Purpose) -> Result<Config, Mistakes> {
    let notes = Notes::default();
    let env = sources.env;
    let named = sources.named();
    let files = source::locate(named.as_ref().map(|(_, path)| path.as_path()), sources.etc, &notes);
    let parsed = source::read_main(files.main.as_deref(), named.map(|(place, _)| place), &notes);
    let app_files = source::read_apps(&files.apps, &notes);
    let read = files.main.iter().chain(app_files.iter().map(|(file, _)| file)).cloned().collect();

    // Of a file that was not understood nothing can be said to be missing.
    let is_whole = parsed.is_whole && app_files.iter().all(|(_, parsed)| parsed.is_whole);
    let mut root = Section::new(parsed.whole(), &notes);
    let has_lb = root.has("lb");
    let has_apps = (root.has("app") && !root.has_empty_list("app"))
        || !app_files.is_empty()
        || !given_specs(sources.apps, env).is_empty();
    let apps = read_apps(sources, &mut root, app_files, &notes);
    let role = match purpose {
        Purpose::Run(role) | Purpose::Check(Some(role)) => Some(role),
        _ if has_lb => Some(Role::Balancer),
        _ => has_apps.then_some(Role::Backend),
    };
    let (node, is_meant) = node::read(root.section("node"), sources.flags, env);
    let keys_for = match purpose {
        Purpose::Inspect => KeysFor::Nobody,
        _ if is_meant && is_whole => KeysFor::Node(&node),
        _ => KeysFor::Unclear,
    };
    let cluster = cluster::read(root.section("cluster"), sources, keys_for);
    let admin = admin::read(root.section("admin"), sources.flags, env, purpose != Purpose::Inspect);
    let lb = LbConfig::read(root.section("lb"), role != Some(Role::Backend) && purpose != Purpose::Inspect);
    let log = log::read(root.section("log"), sources.flags, env);
    if role == Some(Role::Backend) && purpose != Purpose::Inspect && !has_apps && is_whole {
        let remedy = "use --app NAME:PORT, or [[app]] with name and port in the configuration file";
        notes.add(Place::nowhere(), format!("a backend without applications has nothing to offer: {remedy}"));
    }
    root.finish();
    app::judge_together(&apps, &notes);
    let apps = apps.into_iter().map(|(_, app)| app).collect();
    notes.or(Config { role, node, cluster, admin, lb, apps, log, files: read })
}

/// Where the running node answers, from flags, environment and file, whatever else is wrong in the file. Keys are
/// not read, and a default file that this user may not read counts as none.
///
/// # Errors
/// What is wrong with the admin part, or a file of which nothing can be understood.
pub fn admin(sources: &Sources<'_>) -> Result<AdminConfig, Mistakes> {
    let notes = Notes::default();
    let elsewhere = Notes::default();
    let named = sources.named();
    let files = source::locate(named.as_ref().map(|(_, path)| path.as_path()), sources.etc, &elsewhere);
    let is_closed = named.is_none() && files.main.as_deref().is_some_and(|file| std::fs::File::open(file).is_err());
    let parsed = source::read_main(files.main.as_deref(), named.map(|(place, _)| place), &elsewhere);
    if parsed.is_lost() && !is_closed {
        return elsewhere.or(AdminConfig::default());
    }
    let mut root = Section::new(parsed.root, &elsewhere);
    let section = root.section("admin").noting_to(&notes);
    let admin = admin::read(section, sources.flags, sources.env, false);
    notes.or(admin)
}

impl Config {
    /// What the gossip needs of it, for a role.
    #[must_use]
    pub fn gossip(&self, role: Role) -> gossip::Config {
        gossip::Config {
            cluster: self.cluster.name.clone(),
            keys: self.cluster.keys.clone(),
            name: self.node.name.clone(),
            role,
            bind: self.node.bind,
        }
    }
}

/// Names the settings that differ and that only a restart applies.
#[must_use]
pub fn restart_needed(old: &Config, new: &Config) -> Vec<&'static str> {
    [
        ("node.name", old.node.name != new.node.name),
        ("node.bind", old.node.bind != new.node.bind),
        ("node.advertise", old.node.advertise != new.node.advertise),
        ("node.state-dir", old.node.state_dir != new.node.state_dir),
        ("cluster.name", old.cluster.name != new.cluster.name),
        ("cluster.seeds", old.cluster.seed_urls().ne(new.cluster.seed_urls())),
        ("admin.listen", old.admin.listen != new.admin.listen),
        ("lb.mode", old.lb.mode != new.lb.mode),
        ("lb.bind", old.lb.proxy.bind != new.lb.proxy.bind),
        ("lb.workers", old.lb.proxy.workers != new.lb.proxy.workers),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect()
}

/// `--app`, else `SCRIMP_APP`, else those of the files. All are judged; the highest source counts.
fn read_apps(
    sources: &Sources<'_>,
    root: &mut Section<'_>,
    files: Vec<(PathBuf, Parsed)>,
    notes: &Notes,
) -> Vec<app::Placed> {
    let mut written: Vec<app::Placed> = root.sections("app").into_iter().filter_map(app::read).collect();
    for (_, parsed) in files.into_iter().filter(|(_, parsed)| parsed.is_whole) {
        let section = Section::new(parsed.root, notes);
        if section.has("app") {
            let message = "write one application's settings at the top of its file, without [[app]]";
            notes.add(section.own_place().clone(), message);
            continue;
        }
        written.extend(app::read(section));
    }
    let specs = given_specs(sources.apps, sources.env);
    if specs.is_empty() {
        return written;
    }
    let tables = specs.iter().filter_map(|(place, spec)| app::spec_table(place, spec, notes));
    tables.filter_map(|table| app::read(Section::new(table, notes))).collect()
}
