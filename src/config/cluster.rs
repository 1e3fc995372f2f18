//! The cluster, and what opens its door: `[cluster]`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::address::Advertise;
use crate::gossip::ClusterKey;
use crate::name::ClusterName;

use super::key;
use super::mistake::Place;
use super::node::NodeConfig;
use super::section::Section;
use super::source::{given, given_list};
use super::tree::{Node, quote};
use super::{LIST_MAX, Sources, value};

/// `[cluster]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Its name.
    pub name: ClusterName,
    /// Where nodes find each other.
    pub seeds: Vec<Seed>,
    /// The keys, the one in use first; none: loopback only. Not read for [`Purpose::Inspect`].
    pub keys: Vec<ClusterKey>,
    /// The file they come from.
    pub key_path: Option<PathBuf>,
}

/// A seed as written, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// `s3://…`, `file:///…` or `HOST:PORT`.
    pub url: String,
    /// For messages.
    pub place: Place,
}

impl ClusterConfig {
    /// The seeds without their places.
    pub fn seed_urls(&self) -> impl Iterator<Item = &str> {
        self.seeds.iter().map(|seed| seed.url.as_str())
    }
}

/// Whom the keys are read for.
#[derive(Clone, Copy)]
pub(super) enum KeysFor<'a> {
    /// They are not read.
    Nobody,
    /// A node that needs one unless only this machine can reach it.
    Node(&'a NodeConfig),
    /// A node of which that cannot be said, because something about it is wrong.
    Unclear,
}

/// Reads `[cluster]`.
pub(super) fn read(mut section: Section<'_>, sources: &Sources<'_>, keys_for: KeysFor<'_>) -> ClusterConfig {
    let (flags, env) = (sources.flags, sources.env);
    let name = given(flags.cluster.as_deref(), "--cluster", "SCRIMP_CLUSTER", env);
    let name = section.take_unless("name", name.as_ref(), value::word);
    let seeds = given_list(&flags.seeds, "--seed", "SCRIMP_SEED", env);
    let seed = |node: &Node| judge_seed(node, sources.judge_seed);
    let seeds = section.take_list_unless("seeds", seeds, seed).unwrap_or_default();
    if seeds.len() > LIST_MAX {
        section.note(section.place("seeds"), format!("{} seeds, but at most {LIST_MAX} are used", seeds.len()));
    }
    let key = given(flags.key.as_deref(), "--key", "SCRIMP_KEY", env);
    let key_path = section.take_unless("key", key.as_ref(), value::path);
    let key_path = if section.was_given("key") { key_path } else { default_key(sources.etc) };
    let mut keys = Vec::new();
    match &key_path {
        _ if matches!(keys_for, KeysFor::Nobody) => {}
        Some(path) => match key::read(path) {
            Ok(read) => keys = read,
            Err(errors) => errors.into_iter().for_each(|error| section.note(section.place("key"), error)),
        },
        None if section.was_given("key") => {}
        None => {
            if let KeysFor::Node(node) = keys_for {
                judge_keyless(&section, node, &sources.etc.join("cluster.key"));
            }
        }
    }
    section.finish();
    ClusterConfig {
        name: name.unwrap_or_else(|| "default".parse().expect("\"default\" is a cluster name")),
        seeds: seeds.into_iter().map(|(place, url)| Seed { url, place }).collect(),
        keys,
        key_path,
    }
}

fn judge_seed(node: &Node, judge: fn(&str) -> Result<(), String>) -> Result<String, String> {
    const EXPECTED: &str = "a seed: s3://BUCKET/PREFIX, file:///DIR or HOST:PORT";
    let given = value::text(node, EXPECTED)?;
    if given.is_empty() || given.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("expected {EXPECTED}, found {}", quote(given)));
    }
    judge(given).map(|()| given.to_owned())
}

fn default_key(etc: &Path) -> Option<PathBuf> {
    let file = etc.join("cluster.key");
    // One that is there but cannot be read must not be passed over.
    let is_missing = matches!(file.metadata(), Err(error) if error.kind() == std::io::ErrorKind::NotFound);
    (!is_missing).then_some(file)
}

/// Without a key anybody could join: then nobody but this machine may be able to.
fn judge_keyless(section: &Section<'_>, node: &NodeConfig, file: &Path) {
    let is_local = |ip: &IpAddr| ip.to_canonical().is_loopback();
    let open_to = match &node.advertise {
        _ if !is_local(&node.bind.ip()) => Some(node.bind.to_string()),
        Advertise::Ip(ip) => (!is_local(ip)).then(|| ip.to_string()),
        Advertise::Addr(address) => (!is_local(&address.ip())).then(|| address.to_string()),
        Advertise::Ec2 => Some("ec2".to_owned()),
        // Known only at run time: the node judges it then.
        Advertise::Auto | Advertise::Interface(_) | Advertise::Ipv6 => None,
    };
    if let Some(address) = open_to {
        let file = file.display();
        section.note(
            section.place("key"),
            format!(
                "the key is missing, and without one a node may be reached from this machine only, not at {address}: \
                 scrimp keygen > {file}; chmod 600 {file} (every node needs the same file), or bind to 127.0.0.1"
            ),
        );
    }
}
