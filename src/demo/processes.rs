//! The demo's processes and the temporary folder that they share.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::story::Memory;
use crate::config;

/// How long the parts may take to end when asked.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How much of a log is shown when something does not start.
const LOG_LINES: usize = 15;

/// A folder, a balancer, backends.
pub(super) struct Stage {
    folder: PathBuf,
    program: PathBuf,
    listen: SocketAddr,
    /// Keeps another demo from choosing the same listen port: see [`reserve`].
    _reservation: UdpSocket,
    balancer: Option<Child>,
    backends: Vec<(String, Child)>,
    started: usize,
}

impl Stage {
    pub(super) fn build() -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let folder =
            std::env::temp_dir().join(format!("scrimp-demo-{}-{:08x}", std::process::id(), rand::random::<u32>()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let (listen, reservation) = reserve(8080).or_else(|_| reserve(0))?;
        let stage = Self {
            listen,
            _reservation: reservation,
            folder,
            program,
            balancer: None,
            backends: Vec::new(),
            started: 0,
        };
        stage.write("key", &config::keygen())?;
        stage.write("lb.toml", "[lb]\nbind = [\"127.0.0.1\"]\n")?;
        Ok(stage)
    }

    fn write(&self, name: &str, content: &str) -> anyhow::Result<()> {
        use std::io::Write as _;
        let path = self.folder.join(name);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| writeln!(file, "{content}"))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Where clients go.
    pub(super) fn target(&self) -> SocketAddr {
        self.listen
    }

    pub(super) fn seed_url(&self) -> String {
        format!("file://{}", self.folder.join("seeds").display())
    }

    pub(super) fn status_command(&self) -> String {
        format!("{} status --admin unix:{}", self.program.display(), self.socket("lb").display())
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.sock"))
    }

    pub(super) fn start_balancer(&mut self) -> anyhow::Result<()> {
        let config = self.folder.join("lb.toml");
        let mut command = self.scrimp("lb", "lb")?;
        command.arg("--config").arg(config);
        self.balancer = Some(command.spawn().context("cannot start the balancer")?);
        Ok(())
    }

    /// Starts one more backend with its application; its name.
    pub(super) fn start_backend(&mut self) -> anyhow::Result<String> {
        self.started += 1;
        let name = format!("web-{}", self.started);
        let address = format!("127.0.0.1:{}", free_port()?);
        let port = address.rsplit(':').next().unwrap_or_default();
        let mut command = self.scrimp("backend", &name)?;
        // No configuration of this machine's may slip in.
        command.arg("--config").arg(self.empty_config()?);
        command.arg("--app").arg(format!("web:{port},listen={},health=/", self.listen.port()));
        command.arg("--").arg(&self.program).args(["demo-app", "--listen", &address, "--name", &name]);
        self.backends.push((name.clone(), command.spawn().context("cannot start a backend")?));
        Ok(name)
    }

    fn empty_config(&self) -> anyhow::Result<PathBuf> {
        let path = self.folder.join("backend.toml");
        if !path.exists() {
            self.write("backend.toml", "")?;
        }
        Ok(path)
    }

    fn scrimp(&self, role: &str, name: &str) -> anyhow::Result<Command> {
        let log = fs::File::create(self.folder.join(format!("{name}.log"))).context("cannot write a log")?;
        let mut command = Command::new(&self.program);
        for (variable, _) in std::env::vars_os().filter(|(variable, _)| is_ours(variable)) {
            command.env_remove(variable);
        }
        command
            .arg(role)
            .args(["--name", name, "--cluster", "demo", "--bind", "127.0.0.1:0", "--log", "info"])
            .args(["--seed", &self.seed_url()])
            .arg("--key")
            .arg(self.folder.join("key"))
            .arg("--admin")
            .arg(format!("unix:{}", self.socket(name).display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        Ok(command)
    }

    /// Ends the oldest backend as a power cut would; its name.
    pub(super) fn kill_oldest_backend(&mut self) -> Option<String> {
        if self.backends.is_empty() {
            return None;
        }
        let (name, mut child) = self.backends.remove(0);
        child.start_kill().ok()?;
        Some(name)
    }

    /// Resident memory of the balancer, and of the largest backend.
    pub(super) fn memory(&self) -> Memory {
        let resident = |child: &Child| child.id().and_then(resident_bytes).unwrap_or(0);
        Memory {
            balancer: self.balancer.as_ref().map_or(0, resident),
            backend: self.backends.iter().map(|(_, child)| resident(child)).max().unwrap_or(0),
        }
    }

    /// The ends of all logs.
    pub(super) fn logs(&self) -> String {
        let mut names: Vec<PathBuf> = fs::read_dir(&self.folder)
            .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
            .unwrap_or_default();
        names.retain(|path| path.extension() == Some(OsStr::new("log")));
        names.sort();
        names.iter().map(|path| tail(path)).collect()
    }

    /// Ends everybody and removes the folder.
    pub(super) async fn strike(&mut self) {
        let children = self.backends.drain(..).map(|(_, child)| child).chain(self.balancer.take());
        let mut children: Vec<Child> = children.collect();
        for child in &children {
            let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
            pid.map(|pid| kill_process(pid, Signal::TERM));
        }
        for child in &mut children {
            if tokio::time::timeout(END_LIMIT, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn is_ours(variable: &OsStr) -> bool {
    variable.to_string_lossy().starts_with("SCRIMP_")
}

/// A port of 127.0.0.1 that nobody listens at. The balancer opens it only when a backend offers something for it;
/// until then its UDP twin is held, which every other demo tries to hold too.
fn reserve(port: u16) -> anyhow::Result<(SocketAddr, UdpSocket)> {
    let reservation = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).context("no port is free on 127.0.0.1")?;
    let address = reservation.local_addr()?;
    TcpListener::bind(address).with_context(|| format!("{address} is taken"))?;
    Ok((address, reservation))
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n  ");
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    format!("\n{name} said:\n  {end}")
}
