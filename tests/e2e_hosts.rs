//! Several hosts, each a network namespace of its own with one cable to a switch: what loopback cannot show.
//! Needs root for the namespaces; without, it says so and proves nothing.

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
mod node;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use node::{PATIENCE, eventually_within, write_key};

/// Hosts on one switch. Dropped, everything on them ends and they are gone.
struct Lab {
    prefix: String,
    hosts: Vec<String>,
    processes: Vec<(String, Child)>,
    folder: tempfile::TempDir,
    key: PathBuf,
    is_ipv6: bool,
}

fn ip(arguments: &str) -> Output {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

impl Lab {
    /// None without the right to make namespaces.
    fn new(hosts: &[&str], is_ipv6: bool) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: no network namespaces, nothing is proved");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let key = write_key(folder.path(), "cluster.key");
        let prefix = format!("sc{:04x}", fastrand::u16(..));
        let mut lab = Self { prefix, hosts: Vec::new(), processes: Vec::new(), folder, key, is_ipv6 };
        lab.add_host("switch");
        let switch = lab.space("switch");
        ip(&format!("-n {switch} link add br0 type bridge"));
        ip(&format!("-n {switch} link set br0 up"));
        for host in hosts {
            lab.connect(host);
        }
        Some(lab)
    }

    fn space(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn add_host(&mut self, host: &str) {
        let space = self.space(host);
        ip(&format!("netns add {space}"));
        self.hosts.push(host.to_owned());
        ip(&format!("-n {space} link set lo up"));
    }

    fn connect(&mut self, host: &str) {
        self.add_host(host);
        let (space, switch, number) = (self.space(host), self.space("switch"), self.hosts.len() - 1);
        ip(&format!("-n {space} link add eth0 type veth peer name port{number} netns {switch}"));
        ip(&format!("-n {switch} link set port{number} master br0 up"));
        let nodad = if self.is_ipv6 { " nodad" } else { "" };
        let bits = if self.is_ipv6 { 64 } else { 24 };
        ip(&format!("-n {space} address add {}/{bits} dev eth0{nodad}", self.address(host)));
        ip(&format!("-n {space} link set eth0 up"));
    }

    fn number(&self, host: &str) -> usize {
        self.hosts.iter().position(|known| known == host).unwrap()
    }

    /// The host's address.
    fn address(&self, host: &str) -> String {
        let number = self.number(host);
        if self.is_ipv6 { format!("fd77::{number}") } else { format!("10.77.0.{number}") }
    }

    fn at(&self, host: &str, port: u16) -> String {
        if self.is_ipv6 { format!("[{}]:{port}", self.address(host)) } else { format!("{}:{port}", self.address(host)) }
    }

    /// Pulls or plugs the host's cable.
    fn plug(&self, host: &str, state: &str) {
        ip(&format!("-n {} link set port{} {state}", self.space("switch"), self.number(host)));
    }

    fn on(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(host), program]).stdin(Stdio::null());
        command
    }

    /// Starts scrimp on a host, reached by others wherever `auto` says.
    fn start(&mut self, host: &str, role: &str, more: &[&str]) {
        let any = if self.is_ipv6 { "[::]:7377" } else { "0.0.0.0:7377" };
        let config = self.folder.path().join(format!("{host}.toml"));
        fs::write(&config, "").unwrap();
        let log = fs::File::create(self.log_path(host)).unwrap();
        let mut command = self.on(host, env!("CARGO_BIN_EXE_scrimp"));
        command.args([role, "--name", host, "--bind", any, "--config"]).arg(&config).arg("--key").arg(&self.key);
        command.args(["--seed", &self.at("lb", 7377), "--admin", &self.socket(host)]).args(more);
        command.env("AWS_EC2_METADATA_DISABLED", "true").stdout(log.try_clone().unwrap()).stderr(log);
        self.processes.push((host.to_owned(), command.spawn().unwrap()));
    }

    /// A backend with an application of its own, which answers with the host's name.
    fn start_backend(&mut self, host: &str) {
        let any = if self.is_ipv6 { "[::]:8000" } else { "0.0.0.0:8000" };
        let health = if self.is_ipv6 { "::1" } else { "127.0.0.1" };
        let spec = format!("web:8000,address={health},health=/");
        let program = env!("CARGO_BIN_EXE_scrimp");
        self.start(host, "backend", &["--app", &spec, "--", program, "demo-app", "--listen", any, "--name", host]);
    }

    fn socket(&self, host: &str) -> String {
        format!("unix:{}", self.folder.path().join(format!("{host}.sock")).display())
    }

    fn log_path(&self, host: &str) -> PathBuf {
        self.folder.path().join(format!("{host}.log"))
    }

    fn logs(&self) -> String {
        let logs = self
            .processes
            .iter()
            .map(|(host, _)| format!("== {host}\n{}", fs::read_to_string(self.log_path(host)).unwrap_or_default()));
        logs.collect()
    }

    /// What `scrimp members` says on a host: name, address and state of each.
    fn members(&self, host: &str) -> Vec<(String, String, String)> {
        let output = self.on(host, env!("CARGO_BIN_EXE_scrimp"));
        let mut output = output;
        let output = output.args(["members", "--json", "--admin", &self.socket(host)]).output().unwrap();
        let view: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let members = view["members"].as_array().into_iter().flatten();
        members.map(|member| (text(&member["name"]), text(&member["address"]), text(&member["state"]))).collect()
    }

    fn wait_members(&self, host: &str, what: &str, condition: impl Fn(&[(String, String, String)]) -> bool) {
        let context = || format!("{host} sees {:?}\n{}", self.members(host), self.logs());
        eventually_within(Duration::from_secs(30), what, context, || condition(&self.members(host)).then_some(()));
    }

    /// One request from the client's host: who answered, or none if nobody did within 10 s.
    fn ask(&self) -> Option<String> {
        let url = format!("http://{}/", self.at("lb", 80));
        let output = self.on("client", "curl").args(["-gsf", "-m", "10", &url]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then(|| text.rsplit(' ').next().unwrap_or_default().trim().to_owned())
    }

    fn wait_answers(&self, hosts: &[&str]) {
        let mut seen = std::collections::BTreeSet::new();
        eventually_within(
            PATIENCE,
            &format!("answers from {hosts:?}"),
            || self.logs(),
            || {
                seen.extend(self.ask());
                hosts.iter().all(|host| seen.contains(*host)).then_some(())
            },
        );
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (_, process) in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        for host in self.hosts.iter().rev() {
            let space = self.space(host);
            // Programs that were started by those.
            if let Ok(output) = Command::new("ip").args(["netns", "pids", &space]).output() {
                for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
                    let _ = Command::new("kill").args(["-9", pid]).status();
                }
            }
            let _ = Command::new("ip").args(["netns", "del", &space]).status();
        }
    }
}

fn hosts_find_each_other_and_bear_a_pulled_cable(is_ipv6: bool) {
    let Some(mut lab) = Lab::new(&["lb", "web1", "web2", "client"], is_ipv6) else { return };
    lab.start("lb", "lb", &[]);
    lab.start_backend("web1");
    lab.start_backend("web2");
    for host in ["lb", "web1", "web2"] {
        lab.wait_members(host, "all three, at the addresses that reach each other", |members| {
            ["lb", "web1", "web2"]
                .iter()
                .all(|name| members.contains(&((*name).to_owned(), lab.at(name, 7377), "alive".to_owned())))
        });
    }
    lab.wait_answers(&["web1", "web2"]);
    // The cable of one is pulled: connecting to it leads nowhere, and no request fails for it.
    lab.plug("web1", "down");
    let pulled = Instant::now();
    while pulled.elapsed() < Duration::from_secs(4) {
        assert_eq!(lab.ask().as_deref(), Some("web2"), "{}", lab.logs());
    }
    lab.wait_members("lb", "web1 is down", |members| {
        members.iter().any(|(name, _, state)| name == "web1" && state == "down")
    });
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(lab.ask().as_deref(), Some("web2"));
    }
    assert!(began.elapsed() < Duration::from_secs(2), "nobody waits for it any more: {:?}", began.elapsed());
    // Plugged in again it is back by itself.
    lab.plug("web1", "up");
    lab.wait_answers(&["web1", "web2"]);
}

#[test]
fn ipv4_hosts_find_each_other_and_bear_a_pulled_cable() {
    hosts_find_each_other_and_bear_a_pulled_cable(false);
}

#[test]
fn ipv6_hosts_find_each_other_and_bear_a_pulled_cable() {
    hosts_find_each_other_and_bear_a_pulled_cable(true);
}
