//! A backend's own applications: does each answer?
//!
//! [`Health`] decides (pure); [`run`] asks, within bounds. An application is up with the first answer and down
//! after two failures in a row: one lost probe must not take a backend out of every pool.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::app::{App, AppState, Protocol};
use crate::name::{AppName, DomainPattern, Port};
use crate::report::LocalAppReport;

/// One application of this node, and how to ask for its health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The application; it is asked at its `port`.
    pub app: App,
    /// Where it is asked.
    pub address: IpAddr,
    /// How it is asked.
    pub check: Check,
    /// How often it is asked while it is up.
    pub interval: Duration,
}

/// How an application is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Check {
    /// Not at all: it counts as up.
    None,
    /// It is up if it accepts a connection.
    Tcp,
    /// It is up if it answers a GET of `path` with 2xx or 3xx. Applications that are spoken to with TLS or
    /// HTTP/2 are asked as with [`Check::Tcp`].
    Http {
        /// The path, with a query if need be.
        path: String,
    },
}

/// The most probes at once.
const PROBES_MAX: usize = 32;
/// The longest that a probe may take, whatever the interval is.
const PROBE_LIMIT_MAX: Duration = Duration::from_secs(2);
/// The shortest wait between two probes.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// The longest wait between two probes of an application that is not up.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// The wait before the second try, when an application that is up failed once: long enough for a short stall.
const DOUBT: Duration = Duration::from_millis(500);
/// So many failures in a row take an application down.
const FAILURES_TO_DOWN: u32 = 2;
/// The most bytes of an answer's head. hyper asks for no less than 8 KiB; the body is not read.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What is known of one application. Pure: every `now` is passed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    interval: Duration,
    /// Up, or down since then.
    down_since: Option<Instant>,
    failures: u32,
    reason: Option<String>,
    next: Instant,
}

impl Health {
    /// An application that was not asked yet: down, and to be asked at once.
    #[must_use]
    pub fn new(interval: Duration, now: Instant) -> Self {
        let reason = Some("not asked yet".to_owned());
        Self { interval: interval.max(RETRY_MIN), down_since: Some(now), failures: 0, reason, next: now }
    }

    /// Takes in the outcome of a probe. `spread`, from 0 to 1, is where in the interval the next probe falls when
    /// the application has just come up: it keeps many that start together from being asked together for ever.
    pub fn record(&mut self, outcome: Result<(), String>, now: Instant, spread: f64) {
        let wait = match (outcome, self.down_since) {
            (Ok(()), down_since) => {
                let came_up = down_since.is_some();
                (self.down_since, self.failures, self.reason) = (None, 0, None);
                if came_up { self.interval.mul_f64(spread.clamp(0.0, 1.0)).max(RETRY_MIN) } else { self.interval }
            }
            (Err(reason), Some(since)) => {
                self.reason = Some(reason);
                // Often at first and less often the longer it takes, so that the wait adds a fifth at most.
                (now.saturating_duration_since(since) / 5).clamp(RETRY_MIN, RETRY_MAX)
            }
            (Err(reason), None) => self.fail_while_up(reason, now),
        };
        self.next = now + wait;
    }

    fn fail_while_up(&mut self, reason: String, now: Instant) -> Duration {
        self.failures += 1;
        if self.failures < FAILURES_TO_DOWN {
            return self.interval.min(DOUBT);
        }
        (self.down_since, self.failures, self.reason) = (Some(now), 0, Some(reason));
        RETRY_MIN
    }

    /// Whether the application is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.down_since.is_none()
    }

    /// Why it is not up.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// When it is to be asked next.
    #[must_use]
    pub fn next_probe(&self) -> Instant {
        self.next
    }

    /// How long a probe may take.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.interval.min(PROBE_LIMIT_MAX)
    }
}

/// Asks all `targets`, which may change, until `shutdown`; keeps `out` at what is known, sorted as an offer is.
/// It is complete before the first probe: every application is there, `starting` until it has answered.
pub async fn run(
    mut targets: watch::Receiver<Arc<Vec<Target>>>,
    out: watch::Sender<Arc<Vec<LocalAppReport>>>,
    shutdown: CancellationToken,
) {
    let mut prober = Prober::default();
    prober.retarget(&targets.borrow_and_update().clone(), Instant::now());
    let mut may_change = true;
    loop {
        prober.publish(&out);
        let wake = prober.start_due(Instant::now());
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            Some(done) = prober.probes.join_next() => {
                if let Ok((key, outcome)) = done {
                    prober.record(&key, outcome, Instant::now());
                }
            }
            changed = targets.changed(), if may_change => match changed {
                Ok(()) => prober.retarget(&targets.borrow_and_update().clone(), Instant::now()),
                Err(_) => may_change = false,
            },
        }
    }
}

/// What makes two targets the same application for its health: domains and weights may change meanwhile.
type Key = (AppName, Port, IpAddr, Check, Protocol);

fn key(target: &Target) -> Key {
    (target.app.name.clone(), target.app.port, target.address, target.check.clone(), target.app.protocol)
}

#[derive(Debug)]
struct Watched {
    target: Target,
    health: Health,
    is_asked: bool,
    spread: f64,
}

#[derive(Debug, Default)]
struct Prober {
    watched: HashMap<Key, Watched>,
    probes: JoinSet<(Key, Result<(), String>)>,
}

impl Prober {
    fn retarget(&mut self, targets: &[Target], now: Instant) {
        let mut last = std::mem::take(&mut self.watched);
        for (at, target) in targets.iter().enumerate() {
            let key = key(target);
            let spread = (at + 1) as f64 / targets.len() as f64;
            let (health, is_asked) = match last.remove(&key) {
                Some(known) if known.target.interval == target.interval => (known.health, known.is_asked),
                Some(known) => {
                    let interval = target.interval.max(RETRY_MIN);
                    (Health { interval, next: now, ..known.health }, known.is_asked)
                }
                None => (Health::new(target.interval, now), false),
            };
            self.watched.insert(key, Watched { target: target.clone(), health, is_asked, spread });
        }
    }

    /// Starts the probes that are due, those that wait longest first, as far as there is room. Gives back when
    /// the next one will be; none while there is no room, or nothing to ask.
    fn start_due(&mut self, now: Instant) -> Option<Instant> {
        let mut waiting: Vec<&mut Watched> = self
            .watched
            .values_mut()
            .filter(|watched| !watched.is_asked && watched.target.check != Check::None)
            .collect();
        waiting.sort_by_key(|watched| watched.health.next_probe());
        for watched in waiting {
            if self.probes.len() >= PROBES_MAX {
                return None;
            }
            if watched.health.next_probe() > now {
                return Some(watched.health.next_probe());
            }
            watched.is_asked = true;
            let (target, limit) = (watched.target.clone(), watched.health.limit());
            self.probes.spawn(async move { (key(&target), probe(&target, limit).await) });
        }
        None
    }

    fn record(&mut self, key: &Key, outcome: Result<(), String>, now: Instant) {
        if let Some(watched) = self.watched.get_mut(key) {
            watched.is_asked = false;
            watched.health.record(outcome, now, watched.spread);
        }
    }

    fn publish(&self, out: &watch::Sender<Arc<Vec<LocalAppReport>>>) {
        let mut reports: Vec<_> = self.watched.values().map(report).collect();
        reports.sort_by(|one, other| one.app.cmp(&other.app));
        out.send_if_modified(|last| {
            let is_new = **last != reports;
            if is_new {
                *last = Arc::new(reports);
            }
            is_new
        });
    }
}

fn report(watched: &Watched) -> LocalAppReport {
    let is_up = watched.target.check == Check::None || watched.health.is_up();
    let (state, reason) = match is_up {
        true => (AppState::Ready, None),
        false => (AppState::Starting, watched.health.reason().map(str::to_owned)),
    };
    LocalAppReport { app: watched.target.app.clone(), state, reason }
}

async fn probe(target: &Target, limit: Duration) -> Result<(), String> {
    let address = SocketAddr::new(target.address, target.app.port.get());
    let asking = async {
        let stream =
            TcpStream::connect(address).await.map_err(|error| format!("cannot connect to {address}: {error}"))?;
        match &target.check {
            Check::Http { path } if target.app.protocol == Protocol::Http => get(stream, target, address, path).await,
            _ => Ok(()),
        }
    };
    timeout(limit, asking)
        .await
        .unwrap_or_else(|_| Err(format!("no answer from {address} within {} ms", limit.as_millis())))
}

async fn get(stream: TcpStream, target: &Target, address: SocketAddr, path: &str) -> Result<(), String> {
    let request = Request::get(path)
        .header(HOST, host(&target.app, address))
        .header("x-forwarded-proto", "https")
        .header(USER_AGENT, "scrimp-health")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("the path {path:?} of its health check is not valid: {error}"))?;
    let failed = |error: hyper::Error| format!("GET {path} at {address} failed: {error}");
    let builder = &mut http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let mut answering = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        answer = &mut answering => answer,
        // The answer may be there already when the connection ends.
        _ = connection => answering.await,
    };
    judge(answer.map_err(failed)?.status(), path, address)
}

fn judge(status: StatusCode, path: &str, address: SocketAddr) -> Result<(), String> {
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(format!("GET {path} at {address} answers {}", status.as_u16()))
}

/// A host that the application knows: many answer only to the names that they are for.
fn host(app: &App, address: SocketAddr) -> String {
    let exact = app.domains.iter().find_map(|domain| match domain {
        DomainPattern::Exact(name) => Some(name.to_string()),
        DomainPattern::Wildcard(_) => None,
    });
    exact.unwrap_or_else(|| address.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::sleep;

    use super::*;
    use crate::name::{PathPrefix, Weight};

    const INTERVAL: Duration = Duration::from_secs(2);

    fn fail() -> Result<(), String> {
        Err("refused".to_owned())
    }

    fn up(now: Instant) -> Health {
        let mut health = Health::new(INTERVAL, now);
        health.record(Ok(()), now, 1.0);
        health
    }

    #[test]
    fn one_answer_brings_up_and_two_failures_in_a_row_take_down() {
        let now = Instant::now();
        let mut health = Health::new(INTERVAL, now);
        assert!(!health.is_up() && health.next_probe() == now);
        health.record(Ok(()), now, 1.0);
        assert!(health.is_up() && health.reason().is_none());
        health.record(fail(), now, 1.0);
        assert!(health.is_up(), "one failure is forgiven");
        health.record(Ok(()), now, 1.0);
        health.record(fail(), now, 1.0);
        assert!(health.is_up(), "the success between them starts the count anew");
        health.record(fail(), now, 1.0);
        assert!(!health.is_up());
        assert_eq!(health.reason(), Some("refused"));
        health.record(Ok(()), now, 1.0);
        assert!(health.is_up() && health.reason().is_none());
    }

    #[test]
    fn an_application_that_starts_is_asked_often_and_then_less_often() {
        let start = Instant::now();
        let mut health = Health::new(INTERVAL, start);
        let (mut now, mut probes) = (start, 0);
        while now < start + Duration::from_secs(60) {
            health.record(fail(), now, 1.0);
            let wait = health.next_probe() - now;
            assert!((RETRY_MIN..=RETRY_MAX).contains(&wait), "{wait:?}");
            assert!(wait <= RETRY_MIN.max((now - start) / 5), "{wait:?} after {:?}", now - start);
            (now, probes) = (health.next_probe(), probes + 1);
        }
        assert!((30..60).contains(&probes), "{probes}");
    }

    #[test]
    fn a_failure_is_looked_into_soon() {
        let now = Instant::now();
        let mut health = up(now);
        health.record(fail(), now, 1.0);
        assert_eq!(health.next_probe(), now + DOUBT);
        health.record(fail(), now, 1.0);
        assert_eq!(health.next_probe(), now + RETRY_MIN);
    }

    #[test]
    fn applications_that_come_up_together_are_spread_over_the_interval() {
        let now = Instant::now();
        let at = |spread| {
            let mut health = Health::new(INTERVAL, now);
            health.record(Ok(()), now, spread);
            let first = health.next_probe() - now;
            health.record(Ok(()), now + first, spread);
            (first, health.next_probe() - now - first)
        };
        assert_eq!(at(0.25), (INTERVAL / 4, INTERVAL));
        assert_eq!(at(0.5), (INTERVAL / 2, INTERVAL));
        assert_eq!(at(0.0).0, RETRY_MIN);
    }

    fn target(name: &str, port: u16, check: Check) -> Target {
        let app = App {
            name: name.parse().unwrap(),
            protocol: Protocol::Http,
            port: Port::new(port).unwrap(),
            listen: Port::new(80).unwrap(),
            domains: vec!["*.example.com".parse().unwrap(), "www.example.com".parse().unwrap()],
            path: PathPrefix::root(),
            weight: Weight::default(),
            policy: None,
            proxy_protocol: None,
        };
        Target { app, address: IpAddr::from([127, 0, 0, 1]), check, interval: Duration::from_millis(200) }
    }

    fn http(path: &str) -> Check {
        Check::Http { path: path.to_owned() }
    }

    /// A server that answers every request with `status`, which may change, and keeps the requests.
    async fn server(status: Arc<AtomicUsize>) -> (u16, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = vec![0; 4096];
                let length = stream.read(&mut bytes).await.unwrap_or(0);
                kept.lock().unwrap().push(String::from_utf8_lossy(&bytes[..length]).into_owned());
                let status = status.load(Ordering::SeqCst);
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nset-cookie: a\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (port, requests)
    }

    type Reports = watch::Receiver<Arc<Vec<LocalAppReport>>>;

    fn start(targets: Vec<Target>) -> (watch::Sender<Arc<Vec<Target>>>, Reports, CancellationToken) {
        let (send_targets, targets) = watch::channel(Arc::new(targets));
        let (send, reports) = watch::channel(Arc::default());
        let shutdown = CancellationToken::new();
        tokio::spawn(run(targets, send, shutdown.clone()));
        (send_targets, reports, shutdown)
    }

    async fn until(reports: &mut Reports, what: &str, wanted: impl Fn(&[LocalAppReport]) -> bool) {
        let waiting = reports.wait_for(|reports| wanted(reports));
        let found = timeout(Duration::from_secs(20), waiting).await.map(drop);
        assert!(found.is_ok(), "{what}: {:?}", reports.borrow());
    }

    #[tokio::test]
    async fn an_application_is_followed_up_and_down() {
        let status = Arc::new(AtomicUsize::new(503));
        let (port, requests) = server(Arc::clone(&status)).await;
        let (_targets, mut reports, _) = start(vec![target("web", port, http("/up?x=1"))]);
        let says = |what: &'static str| {
            move |reports: &[LocalAppReport]| {
                reports[..].first().is_some_and(|report| report.reason.as_ref().is_some_and(|r| r.contains(what)))
            }
        };
        until(&mut reports, "503 is a reason", says("answers 503")).await;
        status.store(302, Ordering::SeqCst);
        until(&mut reports, "a redirect is up", |reports| reports[0].state == AppState::Ready).await;
        let asked = requests.lock().unwrap().len();
        let start = Instant::now();
        while requests.lock().unwrap().len() < asked + 3 {
            assert!(start.elapsed() < Duration::from_secs(20), "it is asked again and again");
            sleep(Duration::from_millis(10)).await;
        }
        assert!(!reports.has_changed().unwrap(), "what stays as it is, is not told again");
        status.store(404, Ordering::SeqCst);
        until(&mut reports, "404 is down", says("answers 404")).await;
        assert_eq!(reports.borrow()[0].state, AppState::Starting);
        let request = requests.lock().unwrap()[0].to_ascii_lowercase();
        for line in
            ["get /up?x=1 http/1.1", "host: www.example.com", "x-forwarded-proto: https", "user-agent: scrimp-health"]
        {
            assert!(request.contains(&format!("{line}\r\n")), "{request}");
        }
    }

    #[tokio::test]
    async fn each_way_to_fail_has_its_reason() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent_port = silent.local_addr().unwrap().port();
        let limit = Duration::from_millis(200);
        let reason = |target: Target| async move { probe(&target, limit).await.unwrap_err() };
        assert!(reason(target("a", closed, Check::Tcp)).await.contains("refused"));
        assert!(reason(target("a", silent_port, http("/"))).await.contains("no answer"));
        assert!(reason(target("a", silent_port, http("no path"))).await.contains("not valid"));
        assert_eq!(probe(&target("a", silent_port, Check::Tcp), limit).await, Ok(()));
    }

    #[tokio::test]
    async fn an_endless_head_is_not_swallowed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
            while stream.write_all(b"x-filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n").await.is_ok() {}
        });
        let error = probe(&target("a", port, http("/")), Duration::from_secs(10)).await.unwrap_err();
        assert!(error.contains("failed"), "{error}");
    }

    #[tokio::test]
    async fn targets_may_change_and_what_stays_keeps_its_health() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (targets, mut reports, _) = start(vec![target("web", port, Check::Tcp)]);
        until(&mut reports, "up", |reports| reports.first().is_some_and(|r| r.state == AppState::Ready)).await;
        let mut changed = target("web", port, Check::Tcp);
        changed.app.domains.clear();
        let more = target("more", port, Check::None);
        targets.send_replace(Arc::new(vec![changed.clone(), more]));
        reports.changed().await.unwrap();
        let now = reports.borrow_and_update().clone();
        assert_eq!(now.len(), 2);
        assert_eq!((&now[0].app.name, now[0].state), (&"more".parse().unwrap(), AppState::Ready), "sorted, unasked");
        assert_eq!((&now[1].app, now[1].state), (&changed.app, AppState::Ready), "never down for a change of domains");
    }

    #[tokio::test]
    async fn many_applications_are_never_asked_all_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counted, peak) = (Arc::clone(&open), Arc::clone(&most));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let open = Arc::clone(&counted);
                peak.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 1024]).await;
                    sleep(Duration::from_millis(20)).await;
                    // Before the answer: the prober may only then ask the next.
                    open.fetch_sub(1, Ordering::SeqCst);
                    let _ = stream.write_all(b"HTTP/1.1 204 X\r\n\r\n").await;
                });
            }
        });
        let targets = (0..200).map(|i| target(&format!("a{i}"), port, http("/"))).collect();
        let (_targets, mut reports, _) = start(targets);
        let all_up =
            |reports: &[LocalAppReport]| reports.len() == 200 && reports.iter().all(|r| r.state == AppState::Ready);
        until(&mut reports, "all up", all_up).await;
        let most = most.load(Ordering::SeqCst);
        assert!((2..=32).contains(&most), "{most} at once");
    }
}
