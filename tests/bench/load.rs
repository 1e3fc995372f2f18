//! Load on a proxy, bounded in count and time: wrk and h2load where they fit, else a few threads with plain sockets.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};

/// The host that every request is for, and the name in the certificate.
pub const HOST: &str = "bench.example";

/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a load came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Requests, connections, handshakes: what the row counts.
    pub units: u64,
    pub bytes: u64,
    pub took: Duration,
    pub p50: Option<Duration>,
    pub p99: Option<Duration>,
}

impl Outcome {
    fn of(mut latencies: Vec<Duration>, bytes: u64, took: Duration) -> Self {
        latencies.sort_unstable();
        let at =
            |share: f64| latencies.get(((latencies.len() as f64 * share) as usize).min(latencies.len().max(1) - 1));
        Self { units: latencies.len() as u64, bytes, took, p50: at(0.5).copied(), p99: at(0.99).copied() }
    }
}

/// As many requests as come through on this many connections that stay; with `close`, a new one for each.
pub fn wrk(url: &str, connections: usize, seconds: u64, close: bool) -> anyhow::Result<Outcome> {
    let mut command = Command::new("wrk");
    command.args(["--threads", "1", "--latency"]);
    command.args(["--connections", &connections.to_string(), "--duration", &format!("{seconds}s")]);
    command.args(["--header", &format!("Host: {HOST}")]);
    if close {
        command.args(["--header", "Connection: close"]);
    }
    let text = output(command.arg(url))?;
    if let Some(line) = text.lines().find(|line| line.contains("Socket errors") || line.contains("Non-2xx")) {
        bail!("wrk: {}", line.trim());
    }
    let mut outcome = Outcome::default();
    for line in text.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [count, "requests", "in", took, ..] => {
                outcome.units = count.parse()?;
                outcome.took = duration(took.trim_end_matches(','))?;
            }
            ["50%", value] => outcome.p50 = Some(duration(value)?),
            ["99%", value] => outcome.p99 = Some(duration(value)?),
            _ => {}
        }
    }
    ensure!(outcome.units > 0, "wrk: not one request came through");
    Ok(outcome)
}

/// As many requests as come through by HTTP/2 with prior knowledge, on connections of so many streams.
pub fn http2(address: SocketAddr, connections: usize, streams: usize, seconds: u64) -> anyhow::Result<Outcome> {
    let url = format!("http://{address}/");
    h2load(
        &[&format!("--max-concurrent-streams={streams}"), &format!("--header=:authority: {HOST}"), &url],
        connections,
        seconds,
    )
}

/// As many requests as come through by HTTP/1.1 over TLS: wrk names an address to the server, and not all like that.
pub fn https(address: SocketAddr, connections: usize, seconds: u64) -> anyhow::Result<Outcome> {
    let url = format!("https://{HOST}:{}/", address.port());
    h2load(&["--h1", &format!("--connect-to={address}"), &url], connections, seconds)
}

fn h2load(arguments: &[&str], connections: usize, seconds: u64) -> anyhow::Result<Outcome> {
    let log = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("h2load");
    command.args(["--threads=1", &format!("--clients={connections}"), &format!("--duration={seconds}")]);
    command.arg("--log-file").arg(log.path());
    let began = Instant::now();
    output(command.args(arguments))?;
    let took = began.elapsed();
    // A line a request: when it began, the status, and its µs.
    let mut latencies = Vec::new();
    for line in std::fs::read_to_string(log.path())?.lines() {
        match line.split('\t').collect::<Vec<_>>()[..] {
            [_, "200", micros, ..] => latencies.push(Duration::from_micros(micros.parse()?)),
            // What was under way at the end.
            [_, "-1", ..] => {}
            _ => bail!("h2load: {line}"),
        }
    }
    ensure!(!latencies.is_empty(), "h2load: not one request came through");
    Ok(Outcome::of(latencies, 0, took))
}

/// What a program prints. One that does not end by itself is ended.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut bounded = Command::new("timeout");
    bounded.args(["--signal=KILL", "60", &program]).args(command.get_args());
    let output = bounded.stdin(Stdio::null()).output().context("cannot run timeout")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (status, error) = (output.status, String::from_utf8_lossy(&output.stderr));
    ensure!(status.success(), "{program}: {status} {error}{text}");
    Ok(text)
}

/// As wrk writes it: `812.00us`, `1.25ms`, `1.00s`.
fn duration(word: &str) -> anyhow::Result<Duration> {
    let unit = word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let value: f64 = word[..word.len() - unit.len()].parse().with_context(|| format!("{word} is no time"))?;
    let seconds = match unit {
        "us" => value / 1e6,
        "ms" => value / 1e3,
        "s" => value,
        "m" => value * 60.0,
        _ => bail!("{word} is no time"),
    };
    Ok(Duration::from_secs_f64(seconds))
}

pub fn request(path: &str, close: bool) -> String {
    let close = if close { "Connection: close\r\n" } else { "" };
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{close}\r\n")
}

/// One HTTP/1.1 connection of a client that waits for each answer.
pub struct Client {
    stream: BufReader<TcpStream>,
    line: String,
}

impl Client {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(512, stream), line: String::new() })
    }

    pub fn send(&mut self, path: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(request(path, false).as_bytes())
    }

    /// The next answer: the origin it names, and the length of its body, which is not read yet.
    pub fn head(&mut self) -> anyhow::Result<(String, u64)> {
        let (mut origin, mut length) = (String::new(), 0);
        self.next_line()?;
        ensure!(self.line.contains(" 200"), "the answer is {:?}", self.line.trim());
        loop {
            self.next_line()?;
            let Some((name, value)) = self.line.trim().split_once(": ") else {
                return Ok((origin, length));
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse()?;
            } else if name.eq_ignore_ascii_case("x-origin") {
                origin = value.to_owned();
            }
        }
    }

    fn next_line(&mut self) -> anyhow::Result<()> {
        self.line.clear();
        ensure!(self.stream.read_line(&mut self.line)? > 0, "the connection ended");
        Ok(())
    }

    /// The next answer with its body, and the origin that gave it.
    pub fn answer(&mut self) -> anyhow::Result<String> {
        let (origin, length) = self.head()?;
        io::copy(&mut (&mut self.stream).take(length), &mut io::sink())?;
        Ok(origin)
    }

    pub fn ask(&mut self, path: &str) -> anyhow::Result<String> {
        self.send(path)?;
        self.answer()
    }
}

/// Runs clients side by side, each on a thread of its own, and puts together what they counted.
fn clients(
    count: usize,
    each: impl Fn(usize, Instant) -> anyhow::Result<(Vec<Duration>, u64)> + Sync,
) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let (mut latencies, mut bytes) = (Vec::new(), 0);
    thread::scope(|scope| {
        let each = &each;
        let threads: Vec<_> = (0..count).map(|at| scope.spawn(move || each(at, began))).collect();
        for thread in threads {
            let (more, more_bytes) = thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            latencies.extend(more);
            bytes += more_bytes;
        }
        anyhow::Ok(())
    })?;
    Ok(Outcome::of(latencies, bytes, began.elapsed()))
}

/// One connection of a load at a rate.
struct Paced {
    client: Client,
    /// When the next request is to be sent.
    due: Instant,
    /// From when on the answer under way counts, if one is.
    from: Option<Instant>,
    /// The last answer came when the next request was due already.
    is_behind: bool,
    answer: Vec<u8>,
}

/// Requests at a rate, evenly spread over the connections, whatever the answers take: a latency counts from the
/// moment at which the request was due, unless it was this client that overslept.
pub fn at_rate(address: SocketAddr, connections: usize, rate: f64, time: Duration) -> anyhow::Result<Outcome> {
    const SHORTEST_SLEEP: Duration = Duration::from_micros(20);
    let gap = Duration::from_secs_f64(connections as f64 / rate);
    let text = request("/", false);
    let mut all = Vec::new();
    for _ in 0..connections {
        let mut client = Client::connect(address)?;
        client.ask("/")?;
        client.stream.get_ref().set_nonblocking(true)?;
        all.push(Paced { client, due: Instant::now(), from: None, is_behind: false, answer: Vec::new() });
    }
    let began = Instant::now();
    all.iter_mut().enumerate().for_each(|(at, paced)| paced.due = began + gap.mul_f64(at as f64 / connections as f64));
    let (mut latencies, mut buffer) = (Vec::new(), [0; 2048]);
    while began.elapsed() < time {
        let now = Instant::now();
        for paced in all.iter_mut().filter(|paced| paced.from.is_none() && paced.due <= now) {
            paced.client.stream.get_mut().write_all(text.as_bytes())?;
            paced.from = Some(if paced.is_behind { paced.due } else { now });
            paced.due += gap;
        }
        let next = all.iter().filter(|paced| paced.from.is_none()).map(|paced| paced.due).min();
        let left = next.map_or(Duration::from_millis(10), |due| due.saturating_duration_since(Instant::now()));
        let ready: Vec<usize> = {
            let fds = all.iter().map(|paced| PollFd::new(paced.client.stream.get_ref(), PollFlags::IN));
            let mut fds: Vec<PollFd<'_>> = fds.collect();
            let left = Timespec::try_from(left.max(SHORTEST_SLEEP))?;
            poll(&mut fds, Some(&left))?;
            (0..fds.len()).filter(|at| !fds[*at].revents().is_empty()).collect()
        };
        for at in ready {
            let paced = &mut all[at];
            let count = paced.client.stream.get_mut().read(&mut buffer)?;
            ensure!(count > 0, "the connection ended");
            paced.answer.extend_from_slice(&buffer[..count]);
            if paced.answer.ends_with(&[b'x'; 64]) {
                ensure!(paced.answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&paced.answer));
                paced.answer.clear();
                latencies.extend(paced.from.take().map(|from| from.elapsed()));
                paced.is_behind = paced.due <= Instant::now();
            }
        }
    }
    Ok(Outcome::of(latencies, 0, began.elapsed()))
}

/// Large bodies, one after the other; what is under way at the end is cut.
pub fn bulk(address: SocketAddr, connections: usize, time: Duration) -> anyhow::Result<Outcome> {
    clients(connections, |_, began| {
        let mut client = Client::connect(address)?;
        let (mut bytes, mut buffer) = (0, vec![0; 1 << 18]);
        while began.elapsed() < time {
            client.send("/bulk")?;
            let (_, length) = client.head()?;
            let mut body = (&mut client.stream).take(length);
            while body.limit() > 0 && began.elapsed() < time {
                let count = body.read(&mut buffer)?;
                ensure!(count > 0, "the body broke off");
                bytes += count as u64;
            }
        }
        Ok((Vec::new(), bytes))
    })
}

/// What a client of TLS 1.3 needs: full handshakes, or all but the first one resumed.
pub fn tls(certificate: &[u8], resumes: bool) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate.to_vec()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    if !resumes {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

/// One handshake, a request and its answer to the end of the connection; whether the session was a resumed one.
pub fn handshake(address: SocketAddr, config: &Arc<ClientConfig>) -> anyhow::Result<bool> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    let mut connection = ClientConnection::new(Arc::clone(config), ServerName::try_from(HOST)?)?;
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    stream.write_all(request("/", true).as_bytes())?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // An end without a word is an end all the same: the answer says how long it is.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error.into()),
        _ => {}
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "the answer is {:?}", String::from_utf8_lossy(&answer));
    Ok(connection.handshake_kind() == Some(HandshakeKind::Resumed))
}

/// Handshakes one after the other. Each client has sessions of its own.
pub fn handshakes(
    address: SocketAddr,
    certificate: &[u8],
    resumes: bool,
    connections: usize,
    time: Duration,
) -> anyhow::Result<Outcome> {
    clients(connections, |_, began| {
        let config = tls(certificate, resumes)?;
        let (mut latencies, mut resumed) = (Vec::new(), 0);
        while began.elapsed() < time {
            let from = Instant::now();
            resumed += usize::from(handshake(address, &config)?);
            latencies.push(from.elapsed());
        }
        let expected = if resumes { latencies.len() - 1 } else { 0 };
        ensure!(resumed == expected, "{resumed} of {} sessions were resumed", latencies.len());
        Ok((latencies, 0))
    })
}

/// Full handshakes at a rate, evenly spread over the clients, whatever each takes: it counts from the moment at which it
/// was due, unless it was this client that overslept.
pub fn handshakes_at_rate(
    address: SocketAddr,
    certificate: &[u8],
    rate: f64,
    connections: usize,
    time: Duration,
) -> anyhow::Result<Outcome> {
    let gap = Duration::from_secs_f64(connections as f64 / rate);
    clients(connections, |client, began| {
        let config = tls(certificate, false)?;
        let mut due = began + gap.mul_f64(client as f64 / connections as f64);
        let (mut latencies, mut is_behind) = (Vec::new(), false);
        while began.elapsed() < time {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let from = if is_behind { due } else { Instant::now() };
            handshake(address, &config)?;
            latencies.push(from.elapsed());
            due += gap;
            is_behind = due <= Instant::now();
        }
        Ok((latencies, 0))
    })
}

/// A datagram there and back.
pub fn datagram(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 128];
    socket.send(&[7; 64])?;
    socket.recv(&mut buffer).map(|_| ())
}

pub fn udp_client(address: SocketAddr, patience: Duration) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address.ip(), 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

/// Datagrams there and back, one under way in each flow; a lost one is missed after a moment, and not counted.
pub fn datagrams(address: SocketAddr, flows: usize, time: Duration) -> anyhow::Result<Outcome> {
    clients(flows, |_, began| {
        let socket = udp_client(address, Duration::from_millis(100))?;
        let mut latencies = Vec::new();
        while began.elapsed() < time {
            let from = Instant::now();
            if datagram(&socket).is_ok() {
                latencies.push(from.elapsed());
            }
        }
        Ok((latencies, 0))
    })
}

/// Clients that have asked once and stay.
pub fn idle(address: SocketAddr, count: usize) -> anyhow::Result<Vec<Client>> {
    (0..count)
        .map(|_| {
            let mut client = Client::connect(address)?;
            client.ask("/")?;
            Ok(client)
        })
        .collect()
}

/// Clients that all ask at the same time, and go.
pub fn storm(address: SocketAddr, count: usize) -> anyhow::Result<()> {
    let mut all = (0..count).map(|_| Client::connect(address)).collect::<io::Result<Vec<_>>>()?;
    for client in &mut all {
        client.send("/")?;
    }
    for client in &mut all {
        client.answer()?;
    }
    Ok(())
}
