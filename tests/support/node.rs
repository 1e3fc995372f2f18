//! The real program, as a person runs it: processes, a folder in common, the admin API.

#[path = "oracle.rs"]
mod oracle;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_scrimp");

/// How long anything may take that takes a moment.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until `condition` gives something; fails after `limit` with `what` and what `context` says.
pub fn eventually_within<T>(
    limit: Duration,
    what: &str,
    context: impl Fn() -> String,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}\n{}", context());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    eventually_within(PATIENCE, what, String::new, || condition().then_some(()));
}

/// A port of 127.0.0.1 that nobody has now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What the nodes of one test have in common: a folder, a key, seeds.
pub struct Cluster {
    pub folder: tempfile::TempDir,
    pub seed: String,
    pub key: PathBuf,
    pub env: Vec<(String, String)>,
    /// A program, with its arguments, that nodes are started through: one that takes powers away, say.
    pub under: Vec<String>,
    /// The program that nodes are.
    pub program: PathBuf,
    /// Where its balancers listen: a loopback address of this cluster's own, so that no other test can have
    /// taken the port that was free a moment ago.
    pub ip: Ipv4Addr,
}

impl Cluster {
    /// A cluster whose seeds are in its folder.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let seed = format!("file://{}", folder.path().join("seeds").display());
        let key = write_key(folder.path(), "cluster.key");
        let ip = Ipv4Addr::new(127, fastrand::u8(1..255), fastrand::u8(..), fastrand::u8(1..255));
        Self { folder, seed, key, env: Vec::new(), under: Vec::new(), program: PROGRAM.into(), ip }
    }

    /// A free listen port at this cluster's address.
    pub fn listen(&self) -> SocketAddr {
        TcpListener::bind((self.ip, 0)).unwrap().local_addr().unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A balancer that listens at this cluster's address, with more configuration in TOML. Sections: write `[lb]` keys first.
    pub fn balancer(&self, name: &str, lb: &str) -> Node {
        self.start("lb", name, &format!("[lb]\nbind = [\"{}\"]\n{lb}", self.ip), &[])
    }

    /// A backend with these `--app`s.
    pub fn backend(&self, name: &str, apps: &[&str]) -> Node {
        let arguments: Vec<&str> = apps.iter().flat_map(|app| ["--app", app]).collect();
        self.start("backend", name, "", &arguments)
    }

    /// Starts a node with a configuration file of its own and more arguments, which stand for those that every
    /// node gets here. It need not come up.
    pub fn start(&self, role: &str, name: &str, config: &str, arguments: &[&str]) -> Node {
        let file = self.path(&format!("{name}.toml"));
        fs::write(&file, config).unwrap();
        let socket = self.path(&format!("{name}.sock"));
        let log_path = self.path(&format!("{name}.log"));
        let log = fs::File::options().create(true).append(true).open(&log_path).unwrap();
        let (key, admin) = (self.key.display().to_string(), format!("unix:{}", socket.display()));
        let usual =
            [("--name", name), ("--bind", "127.0.0.1:0"), ("--seed", &self.seed), ("--key", &key), ("--admin", &admin)];
        let mut command = scrimp_under(&self.under, self.program.as_ref());
        command.arg(role).arg("--config").arg(&file);
        // What stands behind `--` is its program's own.
        let own = arguments.split(|argument| *argument == "--").next().unwrap_or_default();
        for (flag, value) in usual.into_iter().filter(|(flag, _)| !own.contains(flag)) {
            command.args([flag, value]);
        }
        command
            .args(arguments)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let started = Instant::now();
        let child = command.spawn().unwrap();
        Node { name: name.to_owned(), child, socket, log: log_path, config: file, started }
    }
}

/// The program under test, with none of this machine's settings.
pub fn scrimp() -> Command {
    scrimp_under(&[], PROGRAM.as_ref())
}

fn scrimp_under(words: &[String], program: &Path) -> Command {
    let mut command = match words {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCRIMP_") || name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

/// Runs the program to its end: its status, and all it printed (output, then errors).
pub fn run(arguments: &[impl AsRef<OsStr>]) -> (ExitStatus, String) {
    let output = scrimp().args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status, text)
}

/// A new key file.
pub fn write_key(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, scrimp::config::keygen()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// One running node. Dropped, it is killed.
pub struct Node {
    pub name: String,
    pub child: Child,
    pub socket: PathBuf,
    pub config: PathBuf,
    pub started: Instant,
    log: PathBuf,
}

impl Node {
    /// Everything it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `GET` of its admin API: the status and the body, none if it does not answer.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.get(9..12)?.parse().ok()?, body.to_owned()))
    }

    /// A JSON answer of its admin API; null if there is none.
    pub fn json(&self, path: &str) -> Value {
        self.get(path).and_then(|(_, body)| serde_json::from_str(&body).ok()).unwrap_or(Value::Null)
    }

    /// Waits until `condition` holds of a JSON answer.
    pub fn wait_json(&self, path: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let context = || format!("{path} of {} says {:#}\nits log:\n{}", self.name, self.json(path), self.log());
        eventually_within(PATIENCE, what, context, || Some(self.json(path)).filter(|value| condition(value)))
    }

    /// Waits until it is ready.
    pub fn wait_ready(&self) -> &Self {
        let context = || format!("the log of {}:\n{}", self.name, self.log());
        let is_ready = || self.get("/readyz").filter(|(status, _)| *status == 200).map(drop);
        eventually_within(PATIENCE, "ready", context, is_ready);
        self
    }

    /// The names of the members that it sees as alive, sorted.
    pub fn alive(&self) -> Vec<String> {
        let members = self.json("/v1/members");
        let members = members["members"].as_array().cloned().unwrap_or_default();
        let alive = members.iter().filter(|member| member["state"] == "alive");
        let mut names: Vec<String> = alive.filter_map(|member| Some(member["name"].as_str()?.to_owned())).collect();
        names.sort();
        names
    }

    /// Waits until it sees exactly these as alive (sorted names).
    pub fn wait_alive(&self, names: &[&str]) {
        let context = || format!("{} sees {:?}; its log:\n{}", self.name, self.alive(), self.log());
        eventually_within(PATIENCE, &format!("alive: {names:?}"), context, || (self.alive() == names).then_some(()));
    }

    /// Waits until it has so many ready backends of an application, and all listen ports are open.
    pub fn wait_ready_backends(&self, app: &str, count: usize) {
        let apps =
            self.wait_json("/v1/apps", &format!("{count} ready backends of {app}"), |apps| ready(apps, app) == count);
        let wanted = apps["apps"].as_array().into_iter().flatten().filter_map(|app| app["listen"].as_u64());
        let wanted: Vec<u64> = wanted.collect();
        self.wait_json("/v1/status", &format!("open ports: {wanted:?}"), |status| {
            let Some(listeners) = status["listeners"].as_array() else { return true };
            let is_open = |listener: &Value| listener["addresses"].as_array().is_some_and(|at| !at.is_empty());
            wanted.iter().all(|port| listeners.iter().any(|one| one["port"] == *port && is_open(one)))
        });
    }

    /// The value of a metric without labels, or with exactly these.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics")?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// As a power cut does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Tells it to end and waits until it has.
    pub fn end(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_end()
    }

    /// Waits until it ends by itself.
    pub fn wait_end(&mut self) -> ExitStatus {
        let log = self.log.clone();
        let context = move || format!("its log:\n{}", fs::read_to_string(&log).unwrap_or_default());
        eventually_within(Duration::from_secs(40), "it ends", context, || self.child.try_wait().unwrap())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("== log of {}\n{}", self.name, self.log());
        }
    }
}

/// How many backends of an application are ready, by `/v1/apps`.
pub fn ready(apps: &Value, app: &str) -> usize {
    let all = apps["apps"].as_array().into_iter().flatten().filter(|entry| entry["name"] == app);
    all.flat_map(|entry| entry["backends"].as_array().into_iter().flatten())
        .filter(|backend| backend["state"] == "ready")
        .count()
}

/// A real origin on a port of its own: sends its name to whoever connects and closes, or answers HTTP with it.
pub struct Origin {
    pub address: SocketAddr,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    /// Judges the requests that [`Origin::http`] reads.
    court: oracle::Court,
}

impl Origin {
    /// Writes `name` and a line end to each connection, then closes it.
    pub fn line(name: &str) -> Self {
        let name = name.to_owned();
        Self::serve(move |mut stream| {
            let _ = writeln!(stream, "{name}");
        })
    }

    /// Answers each HTTP request with its name, keeping connections.
    pub fn http(name: &str) -> Self {
        let name = name.to_owned();
        Self::serve(move |stream| {
            let _ = answer_requests(&stream, &name);
        })
    }

    /// Hands each connection to `handle`, on a thread of its own.
    pub fn serve(handle: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (stopped, handle) = (std::sync::Arc::clone(&stop), std::sync::Arc::new(handle));
        let court = oracle::Court::default();
        let judges = court.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), handle, court) = (stream, std::sync::Arc::clone(&handle), judges.clone()) else {
                    continue;
                };
                std::thread::spawn(move || {
                    court.sit();
                    handle(stream);
                });
            }
        });
        Self { address, stop, court }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        // Wakes the accept, which then sees it.
        let _ = TcpStream::connect(self.address);
        self.court.close();
    }
}

fn answer_requests(stream: &TcpStream, name: &str) -> std::io::Result<()> {
    use std::io::{BufRead as _, BufReader};
    let mut lines = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut head = String::new();
        if lines.read_line(&mut head)? == 0 {
            return Ok(());
        }
        while lines.read_line(&mut head)? > 0 && !head.ends_with("\r\n\r\n") {}
        oracle::judge(head.as_bytes());
        let body = format!("{name}\n");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-served-by: {name}\r\n\r\n{body}", body.len());
        writer.write_all(answer.as_bytes())?;
    }
}

/// Everything a connection to `address` receives until it is closed.
pub fn receive(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// One HTTP request on a connection of its own: status and body.
pub fn http_get(address: SocketAddr, host: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let broken = || std::io::Error::new(std::io::ErrorKind::InvalidData, answer.clone());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.get(9..12).and_then(|digits| digits.parse().ok()).ok_or_else(broken)?;
    Ok((status, body.to_owned()))
}
