//! Real parts for the tests: an nginx of its own, origins, a running generator, and a client.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use scrimp::app::{App, AppState, Offer, PolicyName, Protocol};
use scrimp::generate::{Config, Generator, TemplateSource};
use scrimp::member::{Member, MemberState, NodeId, Reach, Role, Roster};
use scrimp::name::{PathPrefix, Port, Weight};
use scrimp::pool::{Pools, Rules};
use scrimp::report::{GenerateCounters, GenerateReport};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long anything may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for a condition, or fails with what was seen last.
pub(crate) fn eventually<T: std::fmt::Debug>(what: &str, mut probe: impl FnMut() -> Result<(), T>) {
    let begun = Instant::now();
    loop {
        match probe() {
            Ok(()) => return,
            Err(seen) if begun.elapsed() > DEADLINE => panic!("{what}: not within {DEADLINE:?}; last seen: {seen:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// A port that nobody listens on now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

// ---- rosters --------------------------------------------------------------------------------------------------------

/// An application for any host, to be changed as a test needs.
pub(crate) fn app(name: &str, protocol: Protocol, port: u16, listen: u16) -> App {
    App {
        name: name.parse().unwrap(),
        protocol,
        port: Port::new(port).unwrap(),
        listen: Port::new(listen).unwrap(),
        domains: Vec::new(),
        path: PathPrefix::root(),
        weight: Weight::default(),
        policy: None,
        proxy_protocol: None,
    }
}

/// The same with domains.
pub(crate) fn web(name: &str, port: u16, listen: u16, domains: &[&str]) -> App {
    let domains = domains.iter().map(|domain| domain.parse().unwrap()).collect();
    App { domains, ..app(name, Protocol::Http, port, listen) }
}

/// An application under a path.
pub(crate) fn at_path(app: App, path: &str) -> App {
    App { path: path.parse().unwrap(), ..app }
}

/// A backend that offers applications that are ready.
pub(crate) fn member(number: u64, ip: &str, apps: Vec<App>) -> Member {
    let mut apps: Vec<(App, AppState)> = apps.into_iter().map(|app| (app, AppState::Ready)).collect();
    apps.sort();
    Member {
        id: NodeId(number),
        name: Some(format!("node-{number}").parse().unwrap()),
        role: Some(Role::Backend),
        address: SocketAddr::new(ip.parse::<IpAddr>().unwrap(), 7377),
        state: MemberState::Alive,
        since: SystemTime::UNIX_EPOCH,
        reach: Reach::Unknown,
        offer: Some(Arc::new(Offer { apps })),
    }
}

/// The same while it takes nothing new.
pub(crate) fn draining(mut member: Member) -> Member {
    let apps = member.offer.iter().flat_map(|offer| &offer.apps).map(|(app, _)| (app.clone(), AppState::Draining));
    member.offer = Some(Arc::new(Offer { apps: apps.collect() }));
    member
}

/// The pools of some members, with no history.
pub(crate) fn pools(members: Vec<Member>) -> Pools {
    pools_with(members, PolicyName::RoundRobin)
}

/// The same with a default policy.
pub(crate) fn pools_with(members: Vec<Member>, policy: PolicyName) -> Pools {
    let roster = Roster { cluster: "test".parse().unwrap(), me: NodeId(0), members };
    Pools::default().next(&roster, &Rules { policy, ..Rules::default() }, Instant::now())
}

// ---- the generator --------------------------------------------------------------------------------------------------

/// A generator at work in a thread of its own.
pub(crate) struct Running {
    pools: watch::Sender<Arc<Pools>>,
    report: watch::Receiver<Arc<GenerateReport>>,
    pub(crate) counters: Arc<GenerateCounters>,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start(config: Config, first: Pools) -> Self {
        let counters = Arc::new(GenerateCounters::default());
        let generator = Generator::new(config, Arc::clone(&counters)).unwrap();
        let (pools, pools_out) = watch::channel(Arc::new(first));
        let (report_in, report) = watch::channel(Arc::default());
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let work = move || block_on(generator.run(pools_out, report_in, stop));
        Self { pools, report, counters, shutdown, thread: Some(std::thread::spawn(work)) }
    }

    pub(crate) fn publish(&self, pools: Pools) {
        self.pools.send_replace(Arc::new(pools));
    }

    pub(crate) fn report(&self) -> GenerateReport {
        GenerateReport::clone(&self.report.borrow())
    }

    /// Waits until some number of reloads has been made.
    pub(crate) fn await_reloads(&self, count: u64) {
        eventually("reloads", || match self.counters.reloads.get() {
            made if made >= count => Ok(()),
            made => Err((made, self.report())),
        });
    }

    /// Waits for a failure whose reason holds `part`.
    pub(crate) fn await_error(&self, part: &str) -> String {
        eventually(part, || match self.report().error {
            Some(error) if error.contains(part) => Ok(()),
            other => Err(other),
        });
        self.report().error.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs a future to its end.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Commands as a configuration has them.
pub(crate) fn words(words: &[&str]) -> Option<Vec<String>> {
    Some(words.iter().map(|word| (*word).to_owned()).collect())
}

/// A program that counts its calls in a file, and ends with the status that another file holds (0 if there is none).
pub(crate) struct Script {
    pub(crate) path: PathBuf,
    folder: PathBuf,
}

impl Script {
    pub(crate) fn new(folder: &Path, name: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join(name);
        let text = format!(
            "#!/bin/sh\necho call >> {0}/{name}.calls\ncat {0}/{name}.says >&2 2>/dev/null\n\
             exit $(cat {0}/{name}.status 2>/dev/null || echo 0)\n",
            folder.display()
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { path, folder: folder.to_owned() }
    }

    pub(crate) fn command(&self) -> Option<Vec<String>> {
        Some(vec![self.path.display().to_string()])
    }

    pub(crate) fn calls(&self) -> usize {
        std::fs::read_to_string(self.path.with_extension("calls")).map_or(0, |text| text.lines().count())
    }

    pub(crate) fn answer(&self, status: u8, says: &str) {
        let name = self.path.file_name().unwrap().to_str().unwrap();
        std::fs::write(self.folder.join(format!("{name}.says")), says).unwrap();
        std::fs::write(self.folder.join(format!("{name}.status")), status.to_string()).unwrap();
    }
}

// ---- nginx ----------------------------------------------------------------------------------------------------------

/// A real nginx with a folder of its own; nothing of the system's is read or written.
pub(crate) struct Nginx {
    pub(crate) folder: TempDir,
    child: Option<Child>,
}

impl Nginx {
    /// Its folder and configuration; it does not run yet.
    pub(crate) fn prepare() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        for sub in ["conf.d", "stream.d"] {
            std::fs::create_dir(at.join(sub)).unwrap();
        }
        let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
        let load = if Path::new(module).exists() { format!("load_module {module};") } else { String::new() };
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|part| format!("    {part}_temp_path {}/{part};\n", at.display()))
            .collect();
        let main = format!(
            "{user}\n{load}\nworker_processes 2;\nworker_shutdown_timeout 10s;\npid {0}/nginx.pid;\n\
             error_log {0}/error.log;\nevents {{ worker_connections 512; }}\n\
             http {{\n    access_log off;\n{temporary}    include {0}/conf.d/*.conf;\n}}\n\
             stream {{\n    include {0}/stream.d/*.conf;\n}}\n",
            at.display()
        );
        std::fs::write(at.join("nginx.conf"), main).unwrap();
        Self { folder, child: None }
    }

    pub(crate) fn start() -> Self {
        let mut nginx = Self::prepare();
        nginx.launch();
        nginx
    }

    pub(crate) fn launch(&mut self) {
        let child = Command::new("nginx")
            .args(self.place())
            .args(["-g", "daemon off;"])
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need nginx with its stream module: apt-get install nginx libnginx-mod-stream");
        self.child = Some(child);
        let pid = self.folder.path().join("nginx.pid");
        eventually("nginx runs", || match std::fs::read_to_string(&pid) {
            Ok(text) if text.trim().parse::<u32>().is_ok() => Ok(()),
            other => Err((other, self.error_log())),
        });
    }

    fn place(&self) -> Vec<String> {
        let at = self.folder.path().display();
        vec!["-c".to_owned(), format!("{at}/nginx.conf"), "-p".to_owned(), at.to_string()]
    }

    pub(crate) fn error_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("error.log")).unwrap_or_default()
    }

    fn command(&self, what: &[&str]) -> Option<Vec<String>> {
        let words = ["nginx"].iter().chain(what).map(|word| (*word).to_owned());
        Some(words.chain(self.place()).collect())
    }

    /// Settings that write for this nginx.
    pub(crate) fn config(&self, template: TemplateSource) -> Config {
        let folder = if template == TemplateSource::NginxStream { "stream.d" } else { "conf.d" };
        Config {
            template,
            target: self.folder.path().join(folder).join("scrimp.conf"),
            check: self.command(&["-t"]),
            reload: self.command(&["-s", "reload"]),
            certificates: Vec::new(),
        }
    }

    /// The built-in template with other numbers for the ports 80 and 443, which a test may not take.
    pub(crate) fn template_elsewhere(&self, port_80: u16, port_443: u16) -> TemplateSource {
        let text = std::fs::read_to_string("templates/nginx.conf.tera").unwrap();
        let other = format!(
            "{{% if port.listen == 80 %}}{port_80}{{% elif port.listen == 443 %}}{port_443}\
             {{% else %}}{{{{ port.listen }}}}{{% endif %}}"
        );
        let path = self.folder.path().join("elsewhere.tera");
        std::fs::write(&path, text.replace("{{ port.listen }}", &other)).unwrap();
        TemplateSource::File(path)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let master = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            // TERM, so that the master ends its workers too.
            let _ = rustix::process::kill_process(master, rustix::process::Signal::TERM);
            let _ = child.wait();
        }
    }
}

// ---- origins and clients --------------------------------------------------------------------------------------------

/// An HTTP server that answers every request with its name and the request's head.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Origin {
    pub(crate) fn http(name: &str, address: &str) -> Self {
        let name = name.to_owned();
        Self::serve(address, move |stream| answer_requests(stream, &name))
    }

    /// Echoes bytes after its name.
    pub(crate) fn tcp(name: &str, address: &str) -> Self {
        let name = name.to_owned();
        Self::serve(address, move |mut stream| {
            let mut bytes = [0; 64];
            while let Ok(length @ 1..) = stream.read(&mut bytes) {
                let _ = stream.write_all(format!("{name}:").as_bytes());
                let _ = stream.write_all(&bytes[..length]);
            }
        })
    }

    fn serve(address: &str, handle: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let handle = handle.clone();
                std::thread::spawn(move || handle(stream));
            }
        });
        Self { address, stop }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn ip(&self) -> String {
        self.address.ip().to_string()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn answer_requests(stream: TcpStream, name: &str) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let body = format!("{name}\n{head}");
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if reader.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// A response as the tests look at it.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Response {
    /// The name of the origin that answered.
    pub(crate) fn origin(&self) -> &str {
        self.body.lines().next().unwrap_or("")
    }
}

/// One connection that stays open.
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    pub(crate) fn connect(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self(BufReader::new(stream)))
    }

    pub(crate) fn get(&mut self, host: &str, path: &str) -> std::io::Result<Response> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }

    pub(crate) fn send(&mut self, request: &str) -> std::io::Result<Response> {
        self.0.get_mut().write_all(request.as_bytes())?;
        read_response(&mut self.0)
    }
}

/// Reads a response whose length is told.
pub(crate) fn read_response(reader: &mut impl BufRead) -> std::io::Result<Response> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Response { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

/// One request on a connection of its own.
pub(crate) fn get(port: u16, host: &str, path: &str) -> std::io::Result<Response> {
    Client::connect(port)?.get(host, path)
}

/// Waits until a host is answered by exactly these origins (or, for none, with a status).
pub(crate) fn await_origins(port: u16, host: &str, path: &str, expected: &[&str]) {
    eventually(&format!("{host}{path} is answered by {expected:?}"), || {
        let mut seen: Vec<String> = (0..12)
            .map(|_| get(port, host, path).map_or_else(|error| error.to_string(), |r| r.origin().to_owned()))
            .collect();
        seen.sort();
        seen.dedup();
        if seen == expected { Ok(()) } else { Err(seen) }
    });
}

/// Waits until a host is answered with a status.
pub(crate) fn await_status(port: u16, host: &str, path: &str, expected: u16) -> Response {
    let mut last = None;
    eventually(&format!("{host}{path} is answered with {expected}"), || {
        match get(port, host, path).map_err(|error| error.to_string()) {
            Ok(response) if response.status == expected => {
                last = Some(response);
                Ok(())
            }
            other => Err(other),
        }
    });
    last.unwrap()
}
