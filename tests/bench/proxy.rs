//! What the request path costs, beside nginx, HAProxy and, when installed, Envoy and Caddy.
//!
//! ```text
//! cargo bench --bench proxy -- [ROW...] [--rounds N] [--seconds N] [--quick] [--peers NAME,NAME]
//!                              [--scrimp [NAME=]PATH]... [--strace] [--list]
//! ```
//!
//! Every proxy is a real process with one worker on one core; load and origins have another. All get the same load
//! in turns, round by round, and a ratio is the median of the ratios of neighbouring samples: the machine may change
//! its speed meanwhile. Where a goal is missed it says what was tried and where the time goes: the kernel's share of it is
//! in every row, and the system calls are counted, ours and those of the others. It fails only when it could not measure.
#![allow(missing_docs, unreachable_pub)]

mod load;
mod meter;
mod peers;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use load::Outcome;
use peers::{Door, Kind, Origins, Peer, Setup};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use scrimp::app::{App, AppState, Offer, PolicyName, Protocol};
use scrimp::generate::{self, TemplateSource};
use scrimp::member::{Member, MemberState, NodeId, Reach, Role, Roster};
use scrimp::name::{PathPrefix, Port, Weight};
use scrimp::pool::{Pools, PortRoutes, Rules};

const CONNECTIONS: usize = 64;
const BULK_CONNECTIONS: usize = 4;
const TLS_CONNECTIONS: usize = 8;
const HANDSHAKES_A_SECOND: f64 = 1000.0;
const RELOAD_GAP: Duration = Duration::from_millis(100);
const HTTP2_CONNECTIONS: usize = 16;
const HTTP2_STREAMS: usize = 8;
const IDLE_CLIENTS: usize = 9000;
/// Requests a second, a tenth of what there is room for.
const GENTLE_RATE: f64 = 10_000.0;
const STORM_CLIENTS: usize = 10_000;
const STORMS: usize = 3;
const PICK_MORE_NS: f64 = 200.0;
const MANY_BACKENDS: u16 = 10_000;
const RENDER_MAX: Duration = Duration::from_millis(100);
/// Long enough that setting up the connections is little of what a tracer counts.
const TRACE_SECONDS: u64 = 5;
const DESCRIPTORS: u64 = 65_536;

struct Options {
    rows: Vec<String>,
    rounds: usize,
    seconds: u64,
    peers: Vec<String>,
    scrimps: Vec<Kind>,
    traces: bool,
}

/// What a row asks for.
struct Row {
    name: &'static str,
    title: &'static str,
    run: fn(&mut Bench) -> anyhow::Result<()>,
}

const ROWS: &[Row] = &[
    Row { name: "http", title: "HTTP/1.1, keep-alive, 64 B, 64 connections", run: Bench::http },
    Row { name: "layer7", title: "HTTP/1.1 on our own TCP round trip: the layer-7 tax", run: Bench::layer7 },
    Row { name: "tcp", title: "TCP round trip: the same requests", run: Bench::tcp },
    Row { name: "connect", title: "TCP: connect, request, close", run: Bench::connect },
    Row { name: "tcp-bulk", title: "TCP, bodies of 64 MiB", run: Bench::tcp_bulk },
    Row { name: "http-bulk", title: "HTTP/1.1, bodies of 64 MiB", run: Bench::http_bulk },
    Row { name: "handshake", title: "TLS 1.3, full handshake, one request", run: Bench::full_handshakes },
    Row { name: "resume", title: "TLS 1.3, resumed handshake, one request", run: Bench::resumed_handshakes },
    Row {
        name: "reload",
        title: "TLS 1.3, 1,000 full handshakes a second, without and with reloads",
        run: Bench::reload,
    },
    Row { name: "https", title: "HTTPS, keep-alive, 64 B, 64 connections", run: Bench::https },
    Row { name: "http2", title: "HTTP/2 in, HTTP/1.1 out, 16 connections of 8 streams", run: Bench::http2 },
    Row { name: "latency", title: "HTTP/1.1 at half of HAProxy's most", run: Bench::latency },
    Row { name: "memory", title: "Memory: idle, 9,000 idle clients, storms of 10,000", run: Bench::memory },
    Row { name: "pick", title: "Picking one of 3 and of 10,000 backends", run: Bench::pick },
    Row { name: "render", title: "nginx's configuration for 10,000 backends", run: Bench::render },
    Row { name: "udp", title: "UDP: 64 B there and back, 64 flows", run: Bench::udp },
];

/// What was tried for rows that have missed their goals, and what came of it.
const TRIED: &[(&str, &str)] = &[
    (
        "layer7",
        "a request takes fewer system calls than with the others; the tax is what is computed, about 2 µs of it, where a \
         round trip takes 1. Kept: heads parsed in place and copied line by line, names compared as words, one question \
         for readiness a read, the crate it is in built for speed, as is the round trip that it is measured by.",
    ),
    (
        "tcp",
        "nine tenths of it is the kernel's, and of the rest a third was waiting for memory. Kept: one small task a \
         connection whose state lies close together, a piece passed on in one step, the kernel's tick for a clock, no lock \
         for a direction that waits, a timer asked only when it has fired.",
    ),
    (
        "connect",
        "seven eighths of it are the kernel's, no more of it than with nginx. Kept: the end leaves with the last bytes, no \
         wait for a reset where somebody reads. What is left is the runtime's: two calls of epoll_ctl at a connection's end, \
         and three blocks aligned to 128 bytes, which cost glibc a tenth of all that is computed (other allocators save 1 %, \
         and do not give back what a crowd took: jemalloc 1.7 times what was idle, mimalloc 1.9 times when idle). Without a \
         gain: an epoll instance of our own within the runtime's, which computes a sixth less and has the kernel wake twice; a \
         connect that does not ask for the socket's error; TCP_NODELAY before the second piece only; two packets of 19 saved \
         by acknowledging with the first words. Where the machine's caches are shared with busy neighbours it has been 1.05.",
    ),
    (
        "tcp-bulk",
        "98 % of it is the kernel's, nearly all of that copying to and from the load and the origins. Without a gain: pipes of \
         64 KiB instead of 256. From run to run it is as far apart as 0.8 and 1.1.",
    ),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs this too, with nothing or with names of tests.
    if !arguments.iter().any(|argument| argument == "--bench")
        && (arguments.is_empty() || arguments.iter().any(|argument| argument == "--test"))
    {
        println!("skipped: run it with `cargo bench --bench proxy`");
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--list") {
        ROWS.iter().for_each(|row| println!("{:10} {}", row.name, row.title));
        return ExitCode::SUCCESS;
    }
    let options = match options(arguments) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    match run(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("cannot measure: {problem:#}");
            ExitCode::FAILURE
        }
    }
}

fn options(arguments: Vec<String>) -> Result<Options, String> {
    let (mut rounds, mut seconds) = (9, 1);
    let (mut rows, mut scrimps, mut peers, mut traces) = (Vec::new(), Vec::new(), None, false);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} wants a value"));
        let number =
            |value: String| value.parse::<u64>().ok().filter(|n| (1..1000).contains(n)).ok_or("no such number");
        match argument.as_str() {
            "--rounds" => rounds = number(value()?)? as usize,
            "--seconds" => seconds = number(value()?)?,
            "--quick" => rounds = 3,
            "--strace" => (traces, seconds) = (true, TRACE_SECONDS),
            "--peers" => peers = Some(value()?.split(',').map(str::to_owned).collect()),
            "--scrimp" => {
                let value = value()?;
                let (name, path) = value.split_once('=').unwrap_or(("scrimp", &value));
                scrimps.push(Kind::Scrimp { name: name.to_owned(), program: path.into() });
            }
            "--bench" => {}
            other if other.starts_with('-') => return Err(format!("{other} is no option of this benchmark")),
            row if ROWS.iter().any(|known| known.name == row) => rows.push(row.to_owned()),
            other => return Err(format!("no row is called {other}: --list shows all")),
        }
    }
    if scrimps.is_empty() {
        scrimps.push(Kind::Scrimp { name: "scrimp".to_owned(), program: env!("CARGO_BIN_EXE_scrimp").into() });
    }
    let peers = peers.unwrap_or_else(|| ["nginx", "haproxy", "envoy", "caddy"].map(str::to_owned).to_vec());
    Ok(Options { rows, rounds, seconds, peers, scrimps, traces })
}

/// Whether everything that was there could be measured.
fn run(options: Options) -> anyhow::Result<bool> {
    for program in ["nginx", "wrk", "setpriv", "taskset", "openssl"] {
        peers::find(program).map_err(anyhow::Error::msg)?;
    }
    let mut all = options.scrimps.clone();
    let known = [Kind::Haproxy, Kind::Nginx, Kind::Envoy, Kind::Caddy];
    all.extend(known.into_iter().filter(|kind| options.peers.iter().any(|name| name == kind.name())));
    let descriptors = raise_descriptors();
    let (proxy_core, load_core) = cores()?;
    // A thread's, and so that of all which come after it: processes too.
    let mut own = CpuSet::new();
    own.set(load_core);
    sched_setaffinity(None, &own)?;
    let priority = Priority::take();
    println!("machine: {}", machine());
    println!("order:   {}", if priority.is_some() { "before all else (nice -10)" } else { "as all else" });
    println!("cores:   {proxy_core} for the proxies, {load_core} for load and origins");
    println!("samples: {} rounds of {} s, in turns\n", options.rounds, options.seconds);
    let mut kinds = Vec::new();
    for kind in all {
        match kind.program().and_then(|_| kind.version().map_err(|problem| format!("{problem:#}"))) {
            Ok(version) => {
                match &kind {
                    Kind::Scrimp { name, program } => println!("{name:12} {version}, {}", program.display()),
                    _ => println!("{:12} {version}", kind.name()),
                }
                kinds.push(kind);
            }
            Err(problem) if matches!(kind, Kind::Scrimp { .. }) => bail!(problem),
            Err(problem) => println!("{:12} left out: {problem}", kind.name()),
        }
    }
    if options
        .scrimps
        .iter()
        .any(|kind| kind.program().is_ok_and(|path| path.display().to_string().contains("/debug/")))
    {
        println!("NOTE: a scrimp built for debugging says nothing: use `cargo bench`, or --scrimp PATH");
    }
    let folder = tempfile::tempdir()?;
    let certificate = peers::certificate(folder.path())?;
    let origins = Origins::start(folder.path())?;
    let mut bench = Bench {
        folder: folder.path().to_owned(),
        core: proxy_core,
        descriptors,
        certificate,
        origins,
        kinds,
        options,
        plain: Vec::new(),
        secure: Vec::new(),
        verdicts: Vec::new(),
        failures: Vec::new(),
    };
    for row in ROWS {
        if !bench.options.rows.is_empty() && !bench.options.rows.iter().any(|name| name == row.name) {
            continue;
        }
        println!("\n{}: {}", row.name, row.title);
        if let Err(problem) = (row.run)(&mut bench) {
            println!("  could not be measured: {problem:#}");
            bench.failures.push(format!("{}: {problem:#}", row.name));
        }
    }
    println!("\nsummary");
    bench.verdicts.iter().for_each(|verdict| println!("  {verdict}"));
    bench.failures.iter().for_each(|failure| println!("  could not be measured: {failure}"));
    Ok(bench.failures.is_empty())
}

/// What a number of a row is, and whether less of it is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// µs of processor time for one of these.
    Time(&'static str),
    /// GB for a second of processor time.
    Bytes,
    /// µs that 99 % of the answers take at most.
    P99,
}

impl Unit {
    fn title(self) -> String {
        match self {
            Self::Time(one) => format!("µs/{one}"),
            Self::Bytes => "GB/CPU s".to_owned(),
            Self::P99 => "p99 µs".to_owned(),
        }
    }

    fn value(self, sample: &Sample) -> f64 {
        let spent = sample.spent.as_secs_f64();
        match self {
            Self::Time(_) => spent * 1e6 / sample.outcome.units as f64,
            Self::Bytes => sample.outcome.bytes as f64 / 1e9 / spent,
            Self::P99 => sample.outcome.p99.map_or(f64::NAN, |p99| p99.as_secs_f64() * 1e6),
        }
    }
}

/// Ours divided by another's, and the most (of bytes: the least) that it may be.
struct Goal {
    against: &'static str,
    limit: f64,
}

/// A load on one proxy.
struct Entrant<'a> {
    name: String,
    /// None: the load goes straight to an origin.
    peer: Option<&'a Peer>,
    run: Box<dyn Fn() -> anyhow::Result<Outcome> + 'a>,
}

struct Sample {
    outcome: Outcome,
    spent: Duration,
    kernel_share: f64,
    memory_bytes: u64,
}

impl Entrant<'_> {
    fn sample(&self) -> anyhow::Result<Sample> {
        let tree = self.peer.map(|peer| peer.tree.clone()).unwrap_or_default();
        let before = tree.spent();
        let outcome = (self.run)().with_context(|| self.name.clone())?;
        let after = tree.spent();
        let (spent, kernel_share) = (after.since(&before), after.kernel_share_since(&before));
        Ok(Sample { outcome, spent, kernel_share, memory_bytes: tree.memory_bytes() })
    }
}

struct Bench {
    folder: PathBuf,
    core: usize,
    descriptors: u64,
    certificate: Vec<u8>,
    origins: Origins,
    kinds: Vec<Kind>,
    options: Options,
    /// The proxies, once a row has asked for them.
    plain: Vec<Peer>,
    /// Those that have certificates.
    secure: Vec<Peer>,
    verdicts: Vec<String>,
    failures: Vec<String>,
}

impl Bench {
    fn http(&mut self) -> anyhow::Result<()> {
        let goals = [Goal { against: "haproxy", limit: 0.85 }];
        self.compete("http", Door::Http, Unit::Time("request"), &goals, |at, seconds| {
            load::wrk(&format!("http://{at}/"), CONNECTIONS, seconds, false)
        })
    }

    fn layer7(&mut self) -> anyhow::Result<()> {
        self.start()?;
        let seconds = self.options.seconds;
        let mut entrants = Vec::new();
        for peer in &self.plain {
            for (door, name) in [(Door::Http, peer.name.clone()), (Door::Tcp, format!("{} tcp", peer.name))] {
                let Some(address) = peer.door(door) else { continue };
                let run = move || load::wrk(&format!("http://{address}/"), CONNECTIONS, seconds, false);
                entrants.push(Entrant { name, peer: Some(peer), run: Box::new(run) });
            }
        }
        let goals = [Goal { against: "scrimp tcp", limit: 1.1 }];
        self.in_turns("layer7", Unit::Time("request"), &goals, &entrants).map(|verdicts| self.verdicts.extend(verdicts))
    }

    fn tcp(&mut self) -> anyhow::Result<()> {
        let goals = [Goal { against: "haproxy", limit: 0.95 }, Goal { against: "nginx", limit: 1.0 }];
        self.compete("tcp", Door::Tcp, Unit::Time("round trip"), &goals, |at, seconds| {
            load::wrk(&format!("http://{at}/"), CONNECTIONS, seconds, false)
        })
    }

    fn connect(&mut self) -> anyhow::Result<()> {
        let goals = [Goal { against: "nginx", limit: 1.0 }];
        self.compete("connect", Door::Tcp, Unit::Time("connection"), &goals, |at, seconds| {
            load::wrk(&format!("http://{at}/"), CONNECTIONS, seconds, true)
        })
    }

    fn tcp_bulk(&mut self) -> anyhow::Result<()> {
        let goals = [Goal { against: "haproxy", limit: 1.0 }];
        self.compete("tcp-bulk", Door::TcpBulk, Unit::Bytes, &goals, |at, seconds| {
            load::bulk(at, BULK_CONNECTIONS, Duration::from_secs(seconds))
        })
    }

    fn http_bulk(&mut self) -> anyhow::Result<()> {
        let goals = [Goal { against: "nginx", limit: 2.0 }];
        self.compete("http-bulk", Door::HttpBulk, Unit::Bytes, &goals, |at, seconds| {
            load::bulk(at, BULK_CONNECTIONS, Duration::from_secs(seconds))
        })
    }

    fn full_handshakes(&mut self) -> anyhow::Result<()> {
        self.handshakes("handshake", false)
    }

    fn resumed_handshakes(&mut self) -> anyhow::Result<()> {
        self.handshakes("resume", true)
    }

    fn handshakes(&mut self, row: &'static str, resumes: bool) -> anyhow::Result<()> {
        let goals = [Goal { against: "haproxy", limit: 1.0 }];
        let certificate = self.certificate.clone();
        self.compete(row, Door::Https, Unit::Time("handshake"), &goals, |at, seconds| {
            load::handshakes(at, &certificate, resumes, TLS_CONNECTIONS, Duration::from_secs(seconds))
        })
    }

    /// The same handshakes without reloads and with one every [`RELOAD_GAP`], in turns.
    fn reload(&mut self) -> anyhow::Result<()> {
        self.start_secure();
        let ours = self.options.scrimps[0].name();
        let peer = self.secure.iter().find(|peer| peer.name == ours).context("nobody of ours speaks TLS")?;
        let address = peer.door(Door::Https).context("no door")?;
        peers::try_out(Door::Https, address, &self.certificate)?;
        let (certificate, time) = (&self.certificate, Duration::from_secs(self.options.seconds));
        let calm = move || {
            let outcome = load::handshakes_at_rate(address, certificate, HANDSHAKES_A_SECOND, TLS_CONNECTIONS, time)?;
            let rate = outcome.units as f64 / outcome.took.as_secs_f64();
            ensure!(rate >= 0.95 * HANDSHAKES_A_SECOND, "{rate:.0} handshakes a second were all that it took");
            Ok(outcome)
        };
        let reloading = move || {
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                let reloads = scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        peer.reload()?;
                        thread::sleep(RELOAD_GAP);
                    }
                    anyhow::Ok(())
                });
                let outcome = calm();
                is_over.store(true, Ordering::Relaxed);
                reloads.join().map_err(|_| anyhow::anyhow!("the reloads panicked"))??;
                outcome
            })
        };
        let entrants = [
            Entrant { name: ours.to_owned(), peer: Some(peer), run: Box::new(reloading) },
            Entrant { name: "no reloads".to_owned(), peer: Some(peer), run: Box::new(calm) },
        ];
        let goals = [Goal { against: "no reloads", limit: 1.2 }];
        self.in_turns("reload", Unit::P99, &goals, &entrants).map(|verdicts| self.verdicts.extend(verdicts))
    }

    fn https(&mut self) -> anyhow::Result<()> {
        let goals = [Goal { against: "haproxy", limit: 1.0 }];
        self.compete("https", Door::Https, Unit::Time("request"), &goals, |at, seconds| {
            load::https(at, CONNECTIONS, seconds)
        })
    }

    fn http2(&mut self) -> anyhow::Result<()> {
        peers::find("h2load").map_err(anyhow::Error::msg)?;
        let goals = [Goal { against: "nginx", limit: 0.9 }];
        self.compete("http2", Door::Http2, Unit::Time("request"), &goals, |at, seconds| {
            load::http2(at, HTTP2_CONNECTIONS, HTTP2_STREAMS, seconds)
        })
    }

    fn latency(&mut self) -> anyhow::Result<()> {
        self.start()?;
        let most = self.plain.iter().find(|peer| peer.name == "haproxy").unwrap_or(&self.plain[0]);
        let address = most.door(Door::Http).context("no door")?;
        let outcome = load::wrk(&format!("http://{address}/"), CONNECTIONS, 2, false)?;
        let rate = outcome.units as f64 / outcome.took.as_secs_f64() / 2.0;
        println!("  {rate:.0} requests a second, half of what {} did", most.name);
        let time = Duration::from_secs(self.options.seconds);
        let origin = self.origins.addresses[0];
        let mut entrants: Vec<Entrant<'_>> = Vec::new();
        for peer in &self.plain {
            let Some(address) = peer.door(Door::Http) else { continue };
            let run = move || load::at_rate(address, CONNECTIONS, rate, time);
            entrants.push(Entrant { name: peer.name.clone(), peer: Some(peer), run: Box::new(run) });
        }
        let run = move || load::at_rate(origin, CONNECTIONS, rate, time);
        entrants.push(Entrant { name: "no proxy".to_owned(), peer: None, run: Box::new(run) });
        let goals = [Goal { against: "haproxy", limit: 1.0 }];
        self.in_turns("latency", Unit::P99, &goals, &entrants).map(|verdicts| self.verdicts.extend(verdicts))
    }

    fn udp(&mut self) -> anyhow::Result<()> {
        let goals = [Goal { against: "nginx", limit: 1.0 }];
        self.compete("udp", Door::Udp, Unit::Time("round trip"), &goals, |at, seconds| {
            load::datagrams(at, CONNECTIONS, Duration::from_secs(seconds))
        })
    }

    /// Processes of their own, because what the other rows left behind is not idle.
    fn memory(&mut self) -> anyhow::Result<()> {
        let storm_clients = STORM_CLIENTS.min((self.descriptors as usize).saturating_sub(600) / 2);
        ensure!(
            storm_clients >= IDLE_CLIENTS,
            "{} open files are too few: raise the limit to 20,000",
            self.descriptors
        );
        if storm_clients < STORM_CLIENTS {
            println!("  storms of {storm_clients}: no more with {} open files", self.descriptors);
        }
        println!(
            "  {:12} {:>8} {:>12} {:>10} {:>10} {:>12} {:>12} {:>10} {:>16}",
            "MB", "idle", "with 9,000", "KB each", "after", "first storm", "last storm", "after/idle", "p99 µs, beside"
        );
        for kind in self.kinds.clone() {
            let setup = self.setup();
            let measured = kind.start(&setup, false).and_then(|peer| Footprint::of(&peer, storm_clients));
            let footprint = match measured {
                Ok(footprint) => footprint,
                Err(problem) => {
                    println!("  {:12} could not be measured: {problem:#}", kind.name());
                    self.failures.push(format!("memory: {}: {problem:#}", kind.name()));
                    continue;
                }
            };
            let each = footprint.busy.saturating_sub(footprint.idle) as f64 / IDLE_CLIENTS as f64 / 1000.0;
            let mb = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
            let [first, last] = [footprint.storms[0], footprint.storms[STORMS - 1]];
            let back = footprint.after as f64 / footprint.idle as f64;
            println!(
                "  {:12} {:>8} {:>12} {each:>10.1} {:>10} {:>12} {:>12} {back:>10.2} {:>8} {:>7}",
                kind.name(),
                mb(footprint.idle),
                mb(footprint.busy),
                mb(footprint.after),
                mb(first),
                mb(last),
                number(footprint.p99_alone),
                number(footprint.p99_beside)
            );
            if matches!(kind, Kind::Scrimp { .. }) {
                for (what, value, limit) in [
                    ("idle, MB", footprint.idle as f64 / 1e6, 12.0),
                    ("an idle client, KB", each, 10.0),
                    ("after 9,000 went / before", back, 1.1),
                    ("last storm / first", last as f64 / first as f64, 1.1),
                    ("p99 beside 9,000 / alone", footprint.p99_beside / footprint.p99_alone, 2.0),
                ] {
                    let verdict = if value <= limit { "MET" } else { "MISS" };
                    self.verdicts.push(format!("{:10} {what}: {value:.2}, goal ≤ {limit}: {verdict}", "memory"));
                }
            }
        }
        Ok(())
    }

    fn pick(&mut self) -> anyhow::Result<()> {
        println!("  {:20} {:>8} {:>8} {:>8}", "ns, in this program", "of 3", "of 10,000", "ratio");
        let policies = [
            ("round-robin", PolicyName::RoundRobin),
            ("random", PolicyName::Random),
            ("least-connections", PolicyName::LeastConnections),
            ("two-choices", PolicyName::TwoChoices),
            ("hash", PolicyName::Hash),
        ];
        for (name, policy) in policies {
            let few = pools(3, policy)?;
            let many = pools(MANY_BACKENDS, policy)?;
            // In turns too.
            let samples: Vec<(f64, f64)> = (0..self.options.rounds).map(|_| (pick_ns(&few), pick_ns(&many))).collect();
            let few = median(samples.iter().map(|(few, _)| *few).collect());
            let many = median(samples.iter().map(|(_, many)| *many).collect());
            println!("  {name:20} {few:>8.0} {many:>8.0} {:>8.2}", many / few);
            // What no cache holds any more may be looked at, but not all of it.
            let verdict = if many - few <= PICK_MORE_NS { "MET" } else { "MISS" };
            let goal = format!("goal: at most {PICK_MORE_NS} ns more");
            self.verdicts
                .push(format!("{:10} {name}: {few:.0} ns of 3, {many:.0} ns of 10,000, {goal}: {verdict}", "pick"));
        }
        Ok(())
    }

    fn render(&mut self) -> anyhow::Result<()> {
        let pools = pools(MANY_BACKENDS, PolicyName::RoundRobin)?;
        let config = generate::Config {
            template: TemplateSource::Nginx,
            target: self.folder.join("rendered.conf"),
            check: None,
            reload: None,
            certificates: Vec::new(),
        };
        let mut samples = Vec::new();
        for _ in 0..self.options.rounds {
            let began = Instant::now();
            let text = generate::preview(&config, &pools)?;
            samples.push(began.elapsed().as_secs_f64());
            let servers = text.lines().filter(|line| line.trim_start().starts_with("server 10.")).count();
            ensure!(servers == usize::from(MANY_BACKENDS), "{servers} backends of {MANY_BACKENDS} stand in it");
        }
        let took = median(samples);
        let verdict = if took <= RENDER_MAX.as_secs_f64() { "MET" } else { "MISS" };
        let line = format!("{:10} goal ≤ {} ms: {:.1} ms {verdict}", "render", RENDER_MAX.as_millis(), took * 1e3);
        println!("  {line}");
        self.verdicts.push(line);
        Ok(())
    }

    fn setup(&self) -> Setup<'_> {
        let (core, descriptors) = (self.core, self.descriptors);
        Setup { folder: &self.folder, core, descriptors, origins: &self.origins }
    }

    /// Starts the proxies that no row has asked for yet.
    fn start(&mut self) -> anyhow::Result<()> {
        if self.plain.is_empty() {
            let started: Vec<_> = self.kinds.iter().map(|kind| kind.start(&self.setup(), false)).collect();
            for started in started {
                match started {
                    Ok(peer) => self.plain.push(peer),
                    Err(problem) => self.failures.push(format!("{problem:#}")),
                }
            }
            let is_ours = |peer: &Peer| peer.name == self.options.scrimps[0].name();
            ensure!(self.plain.iter().any(is_ours), "{}", self.failures.join("; "));
        }
        Ok(())
    }

    fn start_secure(&mut self) {
        if self.secure.is_empty() {
            for kind in self.kinds.iter().filter(|kind| matches!(kind, Kind::Scrimp { .. })) {
                match kind.start(&self.setup(), true) {
                    Ok(peer) => self.secure.push(peer),
                    Err(problem) => println!("  {:12} not there yet: {problem:#}", kind.name()),
                }
            }
        }
    }

    /// The same load on every proxy that has the door.
    fn compete(
        &mut self,
        row: &'static str,
        door: Door,
        unit: Unit,
        goals: &[Goal],
        run: impl Fn(SocketAddr, u64) -> anyhow::Result<Outcome>,
    ) -> anyhow::Result<()> {
        self.start()?;
        if door == Door::Https {
            self.start_secure();
        }
        let seconds = self.options.seconds;
        let (mut entrants, run) = (Vec::new(), &run);
        for kind in &self.kinds {
            let of_kind = |peer: &&Peer| peer.name == kind.name() && peer.door(door).is_some();
            let peer = self.plain.iter().chain(&self.secure).find(of_kind);
            let is_ours = matches!(kind, Kind::Scrimp { .. });
            let Some((peer, address)) = peer.and_then(|peer| Some((peer, peer.door(door)?))) else {
                continue;
            };
            if is_ours && let Err(problem) = peers::try_out(door, address, &self.certificate) {
                println!("  {:12} not there yet: {problem:#}", kind.name());
                continue;
            }
            entrants.push(Entrant {
                name: peer.name.clone(),
                peer: Some(peer),
                run: Box::new(move || run(address, seconds)),
            });
        }
        let verdicts = self.in_turns(row, unit, goals, &entrants)?;
        self.verdicts.extend(verdicts);
        Ok(())
    }

    /// Rounds of samples, each beginning with another entrant, and a table of them; the verdicts on the goals.
    fn in_turns(&self, row: &str, unit: Unit, goals: &[Goal], entrants: &[Entrant<'_>]) -> anyhow::Result<Vec<String>> {
        if self.options.traces {
            return trace(entrants).map(|()| Vec::new());
        }
        // What is slow the first time.
        for entrant in entrants {
            entrant.sample()?;
        }
        let mut samples: Vec<Vec<Sample>> = entrants.iter().map(|_| Vec::new()).collect();
        for round in 0..self.options.rounds {
            for turn in 0..entrants.len() {
                let at = (round + turn) % entrants.len();
                samples[at].push(entrants[at].sample()?);
            }
        }
        let ours = self.options.scrimps[0].name();
        let our_samples = entrants.iter().position(|entrant| entrant.name == ours).map(|at| &samples[at]);
        println!(
            "  {:14} {:>14} {:>22} {:>9} {:>10} {:>8} {:>8} {:>8}",
            "",
            unit.title(),
            "ours ÷ it (middle half)",
            "kernel, %",
            if unit == Unit::Bytes { "MB/s" } else { "/s" },
            "p50 µs",
            "p99 µs",
            "MB"
        );
        let mut ratios: BTreeMap<&str, [f64; 3]> = BTreeMap::new();
        for (entrant, samples) in entrants.iter().zip(&samples) {
            let of = |value: &dyn Fn(&Sample) -> f64| median(samples.iter().map(value).collect());
            let ratio = our_samples.filter(|_| entrant.name != ours).map(|our_samples| {
                let pairs = our_samples.iter().zip(samples);
                let mut all: Vec<f64> = pairs.map(|(ours, its)| unit.value(ours) / unit.value(its)).collect();
                all.sort_by(f64::total_cmp);
                let [low, middle, high] =
                    [0.25, 0.5, 0.75].map(|share| all[((all.len() - 1) as f64 * share).round() as usize]);
                ratios.insert(&entrant.name, [low, middle, high]);
                format!("{middle:.2} ({low:.2} to {high:.2})")
            });
            let per_second = of(&|sample| {
                let count =
                    if unit == Unit::Bytes { sample.outcome.bytes as f64 / 1e6 } else { sample.outcome.units as f64 };
                count / sample.outcome.took.as_secs_f64()
            });
            println!(
                "  {:14} {:>14} {:>22} {:>9} {per_second:>10.0} {:>8} {:>8} {:>8}",
                entrant.name,
                number(of(&|sample| unit.value(sample))),
                ratio.unwrap_or_default(),
                number(of(&|sample| sample.kernel_share * 100.0)),
                number(of(&|sample| micros(sample.outcome.p50))),
                number(of(&|sample| micros(sample.outcome.p99))),
                number(of(&|sample| sample.memory_bytes as f64 / 1e6)),
            );
        }
        let verdicts = goals.iter().map(|goal| {
            let sign = if unit == Unit::Bytes { "≥" } else { "≤" };
            let against = goal.against.replace("scrimp", ours);
            let verdict = match ratios.get(against.as_str()) {
                Some([_, ratio, _]) => {
                    let is_met = if unit == Unit::Bytes { *ratio >= goal.limit } else { *ratio <= goal.limit };
                    format!("{ratio:.2} {}", if is_met { "MET" } else { "MISS" })
                }
                None => "not measured".to_owned(),
            };
            format!("{row:10} goal {sign} {:.2} × {against}: {verdict}", goal.limit)
        });
        let verdicts: Vec<String> = verdicts.collect();
        verdicts.iter().for_each(|verdict| println!("  {verdict}"));
        let is_missed = verdicts.iter().any(|verdict| verdict.ends_with("MISS"));
        // Nobody should be worse off than with nginx.
        if let (true, Some([low, ratio, high])) = (is_missed, ratios.get("nginx")) {
            let (is_worse, may_be_equal) =
                if unit == Unit::Bytes { (*ratio < 1.0, *high >= 1.0) } else { (*ratio > 1.0, *low <= 1.0) };
            let verdict = match (is_worse, may_be_equal) {
                (false, _) => "no worse",
                (true, true) => "no worse as far as can be told: the middle half holds 1.00",
                (true, false) => "worse",
            };
            println!("  {row:10} beside nginx: {ratio:.2}, {verdict}");
        }
        let tried = TRIED.iter().find(|(name, _)| *name == row).filter(|_| is_missed);
        tried.iter().for_each(|(_, tried)| println!("  tried:  {tried}"));
        if is_missed
            && unit != Unit::P99
            && let Err(problem) = trace(entrants)
        {
            println!("  the system calls could not be counted: {problem:#}");
        }
        Ok(verdicts)
    }
}

/// What a proxy holds of the memory, in bytes.
struct Footprint {
    idle: u64,
    busy: u64,
    after: u64,
    storms: Vec<u64>,
    /// Of requests, in microseconds: alone, and while there are many idle clients.
    p99_alone: f64,
    p99_beside: f64,
}

impl Footprint {
    fn of(peer: &Peer, storm_clients: usize) -> anyhow::Result<Self> {
        let address = peer.door(Door::Http).context("no door")?;
        let settled = || {
            thread::sleep(Duration::from_secs(2));
            peer.tree.memory_bytes()
        };
        let idle = settled();
        let clients = load::idle(address, IDLE_CLIENTS)?;
        let busy = settled();
        let p99 = || {
            let sample = || load::at_rate(address, CONNECTIONS, GENTLE_RATE, Duration::from_secs(1));
            let samples: anyhow::Result<Vec<f64>> = (0..5).map(|_| Ok(micros(sample()?.p99))).collect();
            anyhow::Ok(median(samples?))
        };
        let p99_beside = p99()?;
        drop(clients);
        // As little as it comes down to; who waits with giving back is waited for.
        let given_back = || {
            let (mut least, mut since) = (peer.tree.memory_bytes(), Instant::now());
            while since.elapsed() < Duration::from_secs(12) {
                thread::sleep(Duration::from_millis(500));
                let now = peer.tree.memory_bytes();
                if now + (1 << 20) < least {
                    since = Instant::now();
                }
                least = least.min(now);
            }
            least
        };
        let after = given_back();
        let mut storms = Vec::new();
        for _ in 0..STORMS {
            load::storm(address, storm_clients)?;
            storms.push(given_back());
        }
        Ok(Self { idle, busy, after, storms, p99_alone: p99()?, p99_beside })
    }
}

/// The system calls that one unit of work takes, as strace counts them.
fn trace(entrants: &[Entrant<'_>]) -> anyhow::Result<()> {
    for entrant in entrants {
        let Some(worker) = entrant.peer.and_then(|peer| peer.tree.worker()) else { continue };
        entrant.sample()?;
        let file = tempfile::NamedTempFile::new()?;
        let mut tracer = Command::new("strace")
            .args(["-f", "-c", "-U", "name,calls,errors", "-p", &worker.to_string(), "-o"])
            .arg(file.path())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("strace is missing: apt-get install strace")?;
        let is_traced = || {
            let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap_or_default();
            status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
        };
        let began = Instant::now();
        while !is_traced() {
            ensure!(began.elapsed() < Duration::from_secs(5), "strace does not attach");
            thread::sleep(Duration::from_millis(10));
        }
        let sample = entrant.sample();
        kill_process(Pid::from_child(&tracer), Signal::INT)?;
        tracer.wait()?;
        let outcome = sample?.outcome;
        let units = if outcome.units > 0 { outcome.units as f64 } else { outcome.bytes as f64 / 1e6 };
        let each = if outcome.units > 0 { "unit" } else { "MB" };
        let mut calls: Vec<(f64, String)> = Vec::new();
        for line in fs::read_to_string(file.path())?.lines() {
            if let [name, count, errors @ ..] = &line.split_whitespace().collect::<Vec<_>>()[..]
                && let Ok(count) = count.parse::<f64>()
            {
                let failed = errors.first().and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0) / units;
                let failed = if failed >= 0.005 { format!(" ({failed:.2} failed)") } else { String::new() };
                calls.push((count / units, format!("{name} {:.2}{failed}", count / units)));
            }
        }
        calls.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let shown: Vec<String> = calls.into_iter().filter(|(count, _)| *count >= 0.005).map(|(_, text)| text).collect();
        println!("  {:14} calls a {each}: {}", entrant.name, shown.join(", "));
    }
    Ok(())
}

/// The pools of one application on this many backends.
fn pools(backends: u16, policy: PolicyName) -> anyhow::Result<Pools> {
    let port = Port::new(80).context("no port")?;
    let app = App {
        name: "web".parse().map_err(|_| anyhow::anyhow!("no name"))?,
        protocol: Protocol::Http,
        port: Port::new(8080).context("no port")?,
        listen: port,
        domains: Vec::new(),
        path: PathPrefix::root(),
        weight: Weight::default(),
        policy: Some(policy),
        proxy_protocol: None,
    };
    let member = |at: u16| {
        let [high, low] = at.to_be_bytes();
        anyhow::Ok(Member {
            id: NodeId(u64::from(at) + 1),
            name: format!("n{at}").parse().ok(),
            role: Some(Role::Backend),
            address: SocketAddr::from(([10, 0, high, low], 7377)),
            state: MemberState::Alive,
            since: SystemTime::UNIX_EPOCH,
            reach: Reach::Unknown,
            offer: Some(std::sync::Arc::new(Offer { apps: vec![(app.clone(), AppState::Ready)] })),
        })
    };
    let members: anyhow::Result<Vec<Member>> = (0..backends).map(member).collect();
    let cluster = "bench".parse().map_err(|_| anyhow::anyhow!("no name"))?;
    let roster = Roster { cluster, me: NodeId(0), members: members? };
    Ok(Pools::default().next(&roster, &Rules::default(), Instant::now()))
}

/// What it takes to find the route of a request, choose a backend and give it back.
fn pick_ns(pools: &Pools) -> f64 {
    const PICKS: u32 = 20_000;
    let port = Port::new(80).expect("not 0");
    let began = Instant::now();
    let mut picks = 0;
    // The hash policy with many backends would take a minute.
    while picks < PICKS && began.elapsed() < Duration::from_millis(100) {
        let Some(PortRoutes::Http(routes)) = pools.stream(port) else { return f64::NAN };
        let client = SocketAddr::from(([192, 0, 2, picks as u8], 1024 + (picks % 60_000) as u16));
        let lease = routes.find("www.example.com", "/").and_then(|pool| pool.pick(client, &[]));
        assert!(std::hint::black_box(lease).is_some(), "there is a backend");
        picks += 1;
    }
    began.elapsed().as_nanos() as f64 / f64::from(picks)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

fn micros(time: Option<Duration>) -> f64 {
    time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

fn number(value: f64) -> String {
    match value {
        value if value.is_nan() => "–".to_owned(),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// The first and the last core that this process may use.
fn cores() -> anyhow::Result<(usize, usize)> {
    let may = sched_getaffinity(None)?;
    let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| may.is_set(*core)).collect();
    match all[..] {
        [first, .., last] => Ok((first, last)),
        _ => bail!("one core for the proxies and one for their load are needed"),
    }
}

/// The storm takes two descriptors a client of a proxy: as many as may be, up to a bound.
fn raise_descriptors() -> u64 {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let own = Rlimit { current: Some(DESCRIPTORS), maximum: Some(maximum.unwrap_or(DESCRIPTORS).max(DESCRIPTORS)) };
    if setrlimit(Resource::Nofile, own).is_err() {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS)
}

/// What else this machine does shall not stand between a packet and who waits for it, where that may be asked for. It
/// is the session that has to be nice or not, on kernels that share the processor among sessions first.
struct Priority;

impl Priority {
    const SESSION: &str = "/proc/self/autogroup";

    fn take() -> Option<Self> {
        rustix::process::nice(-10).ok()?;
        let is_by_session = Path::new(Self::SESSION).exists();
        (!is_by_session || fs::write(Self::SESSION, "-10").is_ok()).then_some(Self)
    }
}

impl Drop for Priority {
    fn drop(&mut self) {
        let _ = fs::write(Self::SESSION, "0");
    }
}

/// In words: processor, cores, kernel, load.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(Path::new(path)).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, model)| model));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let memory = read("/proc/meminfo");
    let memory = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 20;
    let load = read("/proc/loadavg");
    format!(
        "{}, {} cores, {memory} GiB, Linux {}, load {}",
        model.unwrap_or("an unknown processor"),
        cpu.matches("processor\t").count().max(cores),
        read("/proc/sys/kernel/osrelease").trim(),
        load.split(' ').next().unwrap_or_default()
    )
}
