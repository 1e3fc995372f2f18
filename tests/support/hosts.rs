//! Hosts: network namespaces, each with one cable to a switch of their own. Nothing that they send leaves them.
//! Needs root; without, it says so and nothing is proved.
//!
//! The names of namespaces hold the process that made them, so that runs do not meet, and a run finds what one
//! that was killed has left behind.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::node::{Cluster, Node};

/// Where gossip is bound on each host.
pub const GOSSIP_PORT: u16 = 7377;
/// Where the application of each backend listens.
pub const APP_PORT: u16 = 8000;

/// Hosts on one switch, and the nodes on them. Dropped, everything on them ends and they are gone.
pub struct Lab {
    /// What all nodes have in common; its seed is a folder that all hosts see.
    pub cluster: Cluster,
    /// The nodes, by their hosts.
    pub nodes: BTreeMap<String, Node>,
    prefix: String,
    /// The switch is number 0.
    hosts: Vec<String>,
    is_ipv6: bool,
}

/// Runs `ip` with several commands, in a namespace if one is named.
fn ip(space: Option<&str>, commands: &str) {
    let mut command = Command::new("ip");
    command.args(space.iter().flat_map(|space| ["-n", space])).args(["-batch", "-"]);
    feed(command, commands);
}

fn feed(mut command: Command, text: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?} of\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Ends all processes of a namespace, and it.
fn remove(space: &str) {
    if let Ok(output) = Command::new("ip").args(["netns", "pids", space]).output() {
        for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            let _ = Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status();
        }
    }
    let _ = Command::new("ip").args(["netns", "del", space]).status();
}

/// Removes what runs that were killed have left behind.
fn sweep() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("scrimp").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            remove(&name);
        }
    }
}

impl Lab {
    /// None without the right to make namespaces.
    pub fn new(hosts: &[&str], is_ipv6: bool) -> Option<Self> {
        static LAST: AtomicU32 = AtomicU32::new(0);
        static SWEPT: Once = Once::new();
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: no network namespaces, nothing is proved");
            return None;
        }
        SWEPT.call_once(sweep);
        let prefix = format!("scrimp{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed));
        let hosts = ["switch"].iter().chain(hosts).map(|host| (*host).to_owned()).collect();
        let lab = Self { cluster: Cluster::new(), nodes: BTreeMap::new(), prefix, hosts, is_ipv6 };
        lab.build();
        Some(lab)
    }

    fn build(&self) {
        let (mut spaces, mut cables) = (String::new(), "link add br0 type bridge\nlink set br0 up\n".to_owned());
        for (number, host) in self.hosts.iter().enumerate() {
            let space = self.space(host);
            writeln!(spaces, "netns add {space}").unwrap();
            if number > 0 {
                writeln!(cables, "link add port{number} type veth peer name eth0 netns {space}").unwrap();
                writeln!(cables, "link set port{number} master br0 up").unwrap();
            }
        }
        ip(None, &spaces);
        ip(Some(&self.space("switch")), &cables);
        let (bits, nodad) = if self.is_ipv6 { (64, " nodad") } else { (24, "") };
        for host in &self.hosts[1..] {
            let address = format!("address add {}/{bits} dev eth0{nodad}", self.address(host));
            ip(Some(&self.space(host)), &format!("link set lo up\n{address}\nlink set eth0 up\n"));
        }
    }

    fn space(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn number(&self, host: &str) -> u16 {
        let number = self.hosts.iter().position(|known| known == host);
        u16::try_from(number.unwrap_or_else(|| panic!("there is no host {host}"))).unwrap()
    }

    /// The host's address.
    pub fn address(&self, host: &str) -> IpAddr {
        let number = self.number(host);
        if self.is_ipv6 {
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number).into()
        } else {
            let [high, low] = number.to_be_bytes();
            Ipv4Addr::new(10, 77, high, low).into()
        }
    }

    /// A port at the host's address.
    pub fn at(&self, host: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(host), port)
    }

    /// A port at all addresses of whatever host it is used on.
    pub fn any(&self, port: u16) -> SocketAddr {
        let ip = if self.is_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        SocketAddr::new(ip, port)
    }

    /// Pulls or plugs the host's cable: `down`, `up`.
    pub fn plug(&self, host: &str, state: &str) {
        ip(Some(&self.space("switch")), &format!("link set port{} {state}\n", self.number(host)));
    }

    /// Does something on a host, on a thread of its own; threads and processes that it starts are there too.
    pub fn spawn<T: Send + 'static>(&self, host: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let space = fs::File::open(format!("/run/netns/{}", self.space(host))).unwrap();
        thread::spawn(move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }

    /// Does something on a host and waits for it.
    pub fn inside<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let space = fs::File::open(format!("/run/netns/{}", self.space(host))).unwrap();
        let enter_and_work = move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        thread::scope(|scope| match scope.spawn(enter_and_work).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// What becomes of what arrives at a host, by rules of nftables, instead of those before; none: all is taken in.
    /// What it sends to itself always is.
    pub fn filter(&self, host: &str, rules: &[String]) {
        // Made first, so that it can be deleted whether or not it was there.
        let mut text = "table inet lab\ndelete table inet lab\n".to_owned();
        if !rules.is_empty() {
            text += "table inet lab {\nchain input {\ntype filter hook input priority 0; policy accept;\n";
            writeln!(text, "iifname \"lo\" accept\n{}\n}}\n}}", rules.join("\n")).unwrap();
        }
        self.inside(host, || {
            let mut nft = Command::new("nft");
            nft.args(["-f", "-"]);
            feed(nft, &text)
        });
    }

    /// How many packets rules with `counter` have matched on a host.
    pub fn filtered(&self, host: &str) -> u64 {
        let output = self.inside(host, || Command::new("nft").args(["list", "ruleset"]).output().unwrap());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split("counter packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// Starts a node on a host, reached by others wherever `more` says, or `auto`.
    pub fn start(&mut self, host: &str, role: &str, more: &[&str]) {
        let bind = self.any(GOSSIP_PORT).to_string();
        let arguments = [&["--bind", &bind], more].concat();
        // Not two of one name, even for a moment.
        self.nodes.remove(host);
        let node = self.inside(host, || self.cluster.start(role, host, "", &arguments));
        self.nodes.insert(host.to_owned(), node);
    }

    /// Starts a backend with an application of its own, which answers with the host's name and ends with the node.
    /// `apps` are the rests of specs: `web`, or `web,listen=81`.
    pub fn start_backend(&mut self, host: &str, apps: &[&str], more: &[&str]) {
        let (any, health) = (self.any(APP_PORT).to_string(), if self.is_ipv6 { "::1" } else { "127.0.0.1" });
        let specs = apps.iter().map(|app| {
            let (name, rest) = app.split_at(app.find(',').unwrap_or(app.len()));
            format!("{name}:{APP_PORT},address={health},health=/{rest}")
        });
        let program = self.cluster.program.display().to_string();
        let mut arguments: Vec<String> = specs.flat_map(|spec| ["--app".to_owned(), spec]).collect();
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        arguments.extend(["--", &program, "demo-app", "--listen", &any, "--name", host].map(str::to_owned));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.start(host, "backend", &arguments);
    }

    /// The node on a host.
    pub fn node(&self, host: &str) -> &Node {
        self.nodes.get(host).unwrap_or_else(|| panic!("no node was started on {host}"))
    }

    /// What a node says of the members.
    pub fn members(&self, host: &str) -> Vec<Seen> {
        let view = self.node(host).json("/v1/members");
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let seen = |member: &serde_json::Value| Seen {
            id: text(&member["id"]),
            name: text(&member["name"]),
            address: text(&member["address"]),
            state: text(&member["state"]),
            reach: text(&member["reach"]),
        };
        view["members"].as_array().into_iter().flatten().map(seen).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.nodes.clear();
        for host in self.hosts.iter().rev() {
            remove(&self.space(host));
        }
    }
}

/// A member as a node sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    pub name: String,
    pub id: String,
    pub address: String,
    pub state: String,
    pub reach: String,
}

impl Seen {
    /// Whether it counts as part of the cluster.
    pub fn is_active(&self) -> bool {
        matches!(self.state.as_str(), "alive" | "suspect")
    }
}
