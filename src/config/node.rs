//! The node itself: `[node]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::address::{AddressError, Advertise};
use crate::cli;
use crate::name::NodeName;

use super::section::Section;
use super::source::{Environment, given};
use super::tree::{Node, quote};
use super::value;

/// The gossip's port.
pub const GOSSIP_PORT: u16 = 7377;

/// `[node]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name.
    pub name: NodeName,
    /// Where gossip is taken, UDP and TCP; port 0: the system chooses.
    pub bind: SocketAddr,
    /// Where others reach it.
    pub advertise: Advertise,
    /// A folder for hints; it need not be there. None: keep none (`state-dir = ""`).
    pub state_dir: Option<PathBuf>,
}

/// Reads `[node]`, and says whether the addresses in it are what was meant.
pub(super) fn read(mut section: Section<'_>, flags: &cli::Common, env: Environment<'_>) -> (NodeConfig, bool) {
    let name = given(flags.name.as_deref(), "--name", "SCRIMP_NAME", env);
    let bind = given(flags.bind.as_deref(), "--bind", "SCRIMP_BIND", env);
    let advertise = given(flags.advertise.as_deref(), "--advertise", "SCRIMP_ADVERTISE", env);
    let state_dir = |node: &Node| match value::text(node, "a path in quotes")? {
        "" => Ok(None),
        _ => value::path(node).map(Some),
    };
    let bind = section.take_unless("bind", bind.as_ref(), bind_address);
    let advertise = section.take_unless("advertise", advertise.as_ref(), parse_advertise);
    let is_meant = !section.is_wrong("bind") && !section.is_wrong("advertise");
    let config = NodeConfig {
        name: section.take_unless("name", name.as_ref(), value::word).unwrap_or_else(host_name),
        bind: bind.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, GOSSIP_PORT))),
        advertise: advertise.unwrap_or(Advertise::Auto),
        state_dir: section.take("state-dir", state_dir).unwrap_or_else(|| Some("/var/lib/scrimp".into())),
    };
    section.finish();
    (config, is_meant)
}

/// The host's name with what a node's name cannot hold replaced.
fn host_name() -> NodeName {
    fit_name(&rustix::system::uname().nodename().to_string_lossy())
}

fn fit_name(host: &str) -> NodeName {
    let is_fine = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let fit: String =
        host.trim_start_matches('.').chars().take(64).map(|c| if is_fine(&c) { c } else { '-' }).collect();
    // What is left to refuse is the empty name.
    fit.parse().or_else(|_| "node".parse()).expect("\"node\" is a node name")
}

fn bind_address(node: &Node) -> Result<SocketAddr, String> {
    const EXPECTED: &str = "an IP address, with or without port, like 0.0.0.0:7377";
    let given = value::text(node, EXPECTED)?;
    let bare = || given.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, GOSSIP_PORT));
    given.parse().ok().or_else(bare).ok_or_else(|| format!("expected {EXPECTED}, found {}", quote(given)))
}

fn parse_advertise(node: &Node) -> Result<Advertise, String> {
    value::text(node, "auto, IP, IP:PORT, interface:NAME, ipv6 or ec2")?
        .parse()
        .map_err(|error: AddressError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_name_becomes_a_node_name() {
        assert_eq!(fit_name("web-1.example.com").as_str(), "web-1.example.com");
        assert_eq!(fit_name("..büro pc").as_str(), "b-ro-pc");
        assert_eq!(fit_name("").as_str(), "node");
        assert_eq!(fit_name(&"ü".repeat(300)).as_str().len(), 64);
    }
}
