//! Generate mode through the real program: a balancer that keeps the configuration of a real nginx, backends as
//! processes of their own, and clients that must not notice.

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
mod node;
#[path = "generate/support.rs"]
#[allow(dead_code, reason = "each test program uses a part of what they share")]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use node::{Cluster, Node, eventually_within};
use rustix::process::Signal;
use scrimp::generate::TemplateSource;
use socket2::{Domain, SockAddr, Socket, Type};
use support::{Client, Nginx, get};

/// How long a change may take to reach the clients: a member that dies is given up after some seconds, and two cores
/// may have much else to do.
const LIMIT: Duration = Duration::from_secs(60);

// ---- the place of a test --------------------------------------------------------------------------------------------

/// What stands before the first balancer writes.
const BEFORE: &str = "# from before\n";

/// A cluster, an nginx, and a port at which nginx serves.
struct Place {
    cluster: Cluster,
    nginx: Nginx,
    listen: HeldPort,
}

impl Place {
    /// With an nginx that runs.
    fn new() -> Self {
        let mut place = Self::prepare();
        place.nginx.launch();
        place
    }

    /// With an nginx that does not run yet. A file from before stands, so that balancers wait for the cluster: while
    /// nobody is there, nginx would take port 80, which a test may not have.
    fn prepare() -> Self {
        let place = Self { cluster: Cluster::new(), nginx: Nginx::prepare(), listen: HeldPort::new() };
        fs::write(place.target(), BEFORE).unwrap();
        place
    }

    fn port(&self) -> u16 {
        self.listen.port
    }

    fn target(&self) -> PathBuf {
        self.nginx.config(TemplateSource::Nginx).target
    }

    fn text(&self) -> String {
        fs::read_to_string(self.target()).unwrap_or_default()
    }

    fn balancer(&self, name: &str) -> Node {
        self.balancer_with(name, &self.settings("nginx", &self.target()))
    }

    fn balancer_with(&self, name: &str, settings: &str) -> Node {
        let lb = self.cluster.start("lb", name, settings, &[]);
        lb.wait_ready();
        lb
    }

    /// The configuration of a balancer that writes for this nginx.
    fn settings(&self, template: &str, target: &Path) -> String {
        let commands = self.nginx.config(TemplateSource::Nginx);
        settings(template, target, &commands.check.unwrap(), &commands.reload.unwrap())
    }

    /// A balancer whose file nobody loads.
    fn settings_unused(&self, target: &Path) -> String {
        let nothing = ["true".to_owned()];
        settings("nginx", target, &nothing, &nothing)
    }

    /// A backend with an application `web` for these domains, and its program. Killed, it takes the program along.
    fn backend(&self, name: &str, domains: &[&str]) -> Web {
        self.backend_at(name, HeldPort::new(), &format!("domains = {domains:?}\n"))
    }

    fn backend_at(&self, name: &str, origin: HeldPort, more: &str) -> Web {
        let config = web(origin.port, self.port(), more);
        let (address, program) = (format!("127.0.0.1:{}", origin.port), env!("CARGO_BIN_EXE_scrimp"));
        let command = ["--", program, "demo-app", "--listen", &address, "--name", name];
        Web { node: self.cluster.start("backend", name, &config, &command), origin }
    }

    /// Waits until requests for a host reach exactly these backends, and nginx's file names exactly them for it.
    fn await_served(&self, lb: &Node, host: &str, expected: &[&str]) {
        let seen = || self.served(host);
        let context = || format!("seen: {:?}\n{}\n{}\n{}", seen(), self.text(), lb.log(), self.nginx.error_log());
        eventually_within(LIMIT, &format!("{host} is answered by {expected:?}"), context, || {
            let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
            (seen() == expected).then_some(())
        });
    }

    fn served(&self, host: &str) -> BTreeSet<String> {
        (0..12).map(|_| asked(self.port(), host, "/")).collect()
    }

    fn await_text(&self, lb: &Node, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let context = || format!("{}\n{}\n{}", self.text(), lb.log(), self.nginx.error_log());
        eventually_within(LIMIT, what, context, || Some(self.text()).filter(|text| condition(text)))
    }
}

/// Who answers one request, or how it fails.
fn asked(port: u16, host: &str, path: &str) -> String {
    match get(port, host, path) {
        Ok(response) => served_by(&response).unwrap_or_else(|| response.status.to_string()),
        Err(error) => error.to_string(),
    }
}

fn served_by(response: &support::Response) -> Option<String> {
    (response.status == 200).then(|| response.headers.get("x-served-by").cloned())?
}

fn settings(template: &str, target: &Path, check: &[String], reload: &[String]) -> String {
    format!(
        "[lb]\nmode = \"generate\"\n[lb.generate]\ntemplate = {template:?}\ntarget = {target:?}\ncheck = {check:?}\n\
         reload = {reload:?}\n"
    )
}

/// The configuration of an application `web`.
fn web(port: u16, listen: u16, more: &str) -> String {
    format!("[[app]]\nname = \"web\"\nport = {port}\nlisten = {listen}\n{more}")
}

/// A backend and where its program listens.
struct Web {
    node: Node,
    origin: HeldPort,
}

/// A port of the system's choosing that stays ours: bound but not listening, so that no connection and no other
/// test is given it, while a program that sets SO_REUSEADDR, as servers do, can listen there.
struct HeldPort {
    port: u16,
    _sockets: Vec<Socket>,
}

impl HeldPort {
    fn new() -> Self {
        let any = Self::hold(Domain::IPV4, &SockAddr::from(std::net::SocketAddrV4::new([0; 4].into(), 0))).unwrap();
        let port = any.local_addr().unwrap().as_socket().unwrap().port();
        let six = std::net::SocketAddrV6::new([0_u16; 8].into(), port, 0, 0);
        // Not every machine has IPv6.
        let six = Self::hold(Domain::IPV6, &SockAddr::from(six)).ok();
        Self { port, _sockets: [any].into_iter().chain(six).collect() }
    }

    fn hold(domain: Domain, address: &SockAddr) -> std::io::Result<Socket> {
        let socket = Socket::new(domain, Type::STREAM, None)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(address)?;
        Ok(socket)
    }
}

// ---- load -----------------------------------------------------------------------------------------------------------

/// Clients that ask one host all the time, on new connections and on kept ones, and note what fails.
struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    failures: std::sync::Mutex<Vec<String>>,
}

impl Load {
    fn start(port: u16, host: &str) -> Self {
        let shared = Arc::<Shared>::default();
        let client = |is_kept: bool| {
            let (shared, host) = (Arc::clone(&shared), host.to_owned());
            std::thread::spawn(move || shared.ask(port, &host, is_kept))
        };
        let threads = [false, false, true, true].map(client).into();
        Self { shared, threads }
    }

    /// Waits until so many more requests were answered, so that what happened before met some of them.
    fn await_more(&self, more: u64) {
        let wanted = self.shared.answered.load(Ordering::Relaxed) + more;
        let context = || format!("{:?}", self.shared.failures.lock().unwrap());
        eventually_within(LIMIT, "requests are answered", context, || {
            (self.shared.answered.load(Ordering::Relaxed) >= wanted).then_some(())
        });
    }

    /// Ends, and says what failed.
    fn end(mut self) -> Vec<String> {
        self.await_more(50);
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.shared.failures.lock().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn ask(&self, port: u16, host: &str, is_kept: bool) {
        let mut kept = None;
        while !self.stop.load(Ordering::Relaxed) {
            let answer = if is_kept { ask_kept(&mut kept, port, host) } else { get(port, host, "/") };
            match answer {
                Ok(response) if response.status == 200 => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                }
                other => self.failures.lock().unwrap().push(format!("{other:?}")),
            }
            // Bounded: some hundred requests a second are enough to be in the way of every reload.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// On the connection of the last time. nginx ends idle connections when it reloads: then what every client does
/// is to open another, once.
fn ask_kept(kept: &mut Option<Client>, port: u16, host: &str) -> std::io::Result<support::Response> {
    const ENDED: [ErrorKind; 3] = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    if let Some(client) = kept {
        match client.get(host, "/") {
            Err(error) if ENDED.contains(&error.kind()) => *kept = None,
            other => return other,
        }
    }
    kept.insert(Client::connect(port)?).get(host, "/")
}

// ---- requests while backends change ---------------------------------------------------------------------------------

#[test]
fn a_backend_that_joins_gets_requests_and_none_fails() {
    let place = Place::new();
    let lb = place.balancer("lb");
    let _a = place.backend("a", &["site.example"]);
    place.await_served(&lb, "site.example", &["a"]);
    let load = Load::start(place.port(), "site.example");
    load.await_more(50);
    let _b = place.backend("b", &["site.example"]);
    place.await_served(&lb, "site.example", &["a", "b"]);
    let _c = place.backend("c", &["site.example"]);
    place.await_served(&lb, "site.example", &["a", "b", "c"]);
    assert_eq!(load.end(), [""; 0]);
    assert_eq!(lb.metric("scrimp_generate_failures_total"), Some(0.0), "{}", lb.log());
    assert_eq!(get(place.port(), "other.example", "/").unwrap().status, 404);
}

#[test]
fn a_backend_that_leaves_gets_no_more_requests_and_none_fails() {
    let place = Place::new();
    let lb = place.balancer("lb");
    let _other = place.backend("other", &["other.example"]);
    let mut backends: Vec<Web> = ["a", "b", "c"].map(|name| place.backend(name, &["site.example"])).into();
    place.await_served(&lb, "site.example", &["a", "b", "c"]);
    let load = Load::start(place.port(), "site.example");
    load.await_more(50);
    // Its program ends with it: had nginx not let go of it before, requests would meet a closed port.
    backends[1].node.end();
    place.await_served(&lb, "site.example", &["a", "c"]);
    backends[0].node.end();
    place.await_served(&lb, "site.example", &["c"]);
    assert_eq!(load.end(), [""; 0]);
    // The last one takes the route with it; somebody else's stays.
    backends[2].node.end();
    let text = place.await_text(&lb, "nobody is left", |text| !text.contains("# c\n"));
    assert!(!text.contains("site.example") && text.contains("other.example"), "{text}");
}

#[test]
fn a_backend_that_loses_its_power_is_taken_out_and_none_fails() {
    let place = Place::new();
    let lb = place.balancer("lb");
    let mut backends: Vec<Web> = ["a", "b", "c"].map(|name| place.backend(name, &["site.example"])).into();
    place.await_served(&lb, "site.example", &["a", "b", "c"]);
    let load = Load::start(place.port(), "site.example");
    load.await_more(50);
    backends[1].node.kill();
    let gone = format!("127.0.0.1:{}", backends[1].origin.port);
    eventually_within(LIMIT, "its program is gone too", String::new, || TcpStream::connect(&gone).err());
    place.await_text(&lb, "it is taken out", |text| !text.contains(&gone));
    place.await_served(&lb, "site.example", &["a", "c"]);
    assert_eq!(load.end(), [""; 0]);
    // With nobody left, the last ones stay, as a last resort.
    backends[0].node.kill();
    backends[2].node.kill();
    await_problem(&lb, &["application web on port", "has no backend that answers this balancer"]);
    place.await_served(&lb, "site.example", &["502"]);
    let all = [0, 1, 2].map(|at| format!("127.0.0.1:{}", backends[at].origin.port));
    let text = place.await_text(&lb, "all are listed", |text| all.iter().all(|address| text.contains(address)));
    assert!(!text.contains("No server is ready"), "{text}");
    // The first that is back is in rotation, and the others are not.
    let again = place.backend("d", &["site.example"]);
    place.await_served(&lb, "site.example", &["d"]);
    let text = place.await_text(&lb, "the dead ones leave", |text| !text.contains(&gone));
    assert!(text.contains(&format!("127.0.0.1:{}", again.origin.port)), "{text}");
}

#[test]
fn a_backend_that_changes_its_domains_serves_the_new_ones_and_none_fails() {
    let place = Place::new();
    let lb = place.balancer("lb");
    let _a = place.backend("a", &["site.example"]);
    let b = place.backend("b", &["site.example"]);
    place.await_served(&lb, "site.example", &["a", "b"]);
    assert_eq!(asked(place.port(), "shop.example", "/"), "404");
    let load = Load::start(place.port(), "site.example");
    load.await_more(50);
    let change = |domains: &str| {
        fs::write(&b.node.config, web(b.origin.port, place.port(), &format!("domains = {domains}\n"))).unwrap();
        b.node.signal(Signal::HUP);
    };
    change("[\"site.example\", \"*.shop.example\"]");
    place.await_served(&lb, "www.shop.example", &["b"]);
    place.await_served(&lb, "site.example", &["a", "b"]);
    change("[\"shop.example\"]");
    place.await_served(&lb, "shop.example", &["b"]);
    place.await_served(&lb, "site.example", &["a"]);
    place.await_served(&lb, "www.shop.example", &["404"]);
    // What cannot be understood changes nothing.
    change("[\"shop example\"]");
    eventually_within(LIMIT, "it says so", || b.node.log(), || b.node.log().contains("stays as it was").then_some(()));
    place.await_served(&lb, "shop.example", &["b"]);
    assert_eq!(load.end(), [""; 0]);
}

#[test]
fn two_backends_may_offer_one_name_with_different_fields() {
    let place = Place::new();
    let lb = place.balancer("lb");
    let second = HeldPort::new();
    let site = "domains = [\"site.example\"]\n";
    let _a = place.backend_at("a", HeldPort::new(), &format!("{site}policy = \"least-connections\"\n"));
    let _b = place.backend_at("b", HeldPort::new(), &format!("{site}policy = \"hash\"\nweight = 300\n"));
    let _c = place.backend_at("c", HeldPort::new(), &format!("{site}path = \"/api\"\n"));
    let d = place.backend_at("d", HeldPort::new(), site);
    d.node.wait_ready();
    fs::write(&d.node.config, web(d.origin.port, second.port, site)).unwrap();
    d.node.signal(Signal::HUP);
    place.await_served(&lb, "site.example", &["a", "b"]);
    let at = |port, path, expected: &str| {
        eventually_within(
            LIMIT,
            &format!("{path} at {port} is answered by {expected}"),
            || place.text(),
            || (asked(port, "site.example", path) == expected).then_some(()),
        );
    };
    at(place.port(), "/api/x", "c");
    at(place.port(), "/api", "c");
    at(second.port, "/", "d");
    assert_eq!(asked(second.port, "site.example", "/api"), "d");
    assert_eq!(get(place.port(), "other.example", "/api").unwrap().status, 404);
    let text = place.text();
    assert!(text.contains("least_conn;") && text.contains("weight=3 ") && !text.contains("hash $remote"), "{text}");
    assert_eq!(lb.json("/v1/status")["problems"], serde_json::json!([]));
}

#[test]
fn tcp_passes_through_the_stream_template() {
    let place = Place::new();
    let target = place.nginx.folder.path().join("stream.d/scrimp.conf");
    let lb = place.balancer_with("lb", &place.settings("nginx-stream", &target));
    let [one, two] = ["one", "two"].map(node::Origin::line);
    let serve = |name: &str, origin: &node::Origin| {
        place.cluster.backend(name, &[&format!("db:{}/tcp,listen={}", origin.port(), place.port())])
    };
    let mut backends: Vec<Node> = vec![serve("a", &one), serve("b", &two)];
    let answers = || -> BTreeSet<String> {
        let answer = |_| node::receive(([127, 0, 0, 1], place.port()).into()).map_err(|error| error.kind());
        (0..8).map(answer).map(|answer| answer.unwrap_or_else(|kind| kind.to_string())).collect()
    };
    let expect = |expected: &[&str]| {
        let context = || format!("{:?}\n{}", answers(), lb.log());
        eventually_within(LIMIT, &format!("{expected:?}"), context, || {
            answers().iter().map(String::as_str).eq(expected.iter().copied()).then_some(())
        });
    };
    expect(&["one\n", "two\n"]);
    backends[1].end();
    expect(&["one\n"]);
    // No application is left, but its node is: clients are closed at once.
    drop(one);
    eventually_within(
        LIMIT,
        "it is taken out",
        || lb.log(),
        || fs::read_to_string(&target).unwrap().contains("No backend of db is ready").then_some(()),
    );
    let is_closed = |answers: BTreeSet<String>| answers.iter().all(|text| text.is_empty() || text.contains("reset"));
    eventually_within(LIMIT, "closed", || format!("{:?}", answers()), || is_closed(answers()).then_some(()));
}

#[test]
fn a_balancer_without_backends_answers_503_from_the_start() {
    let place = Place::new();
    fs::remove_file(place.target()).unwrap();
    // The built-in template with other numbers for the ports 80 and 443, which a test may not take.
    let secure = HeldPort::new();
    let TemplateSource::File(template) = place.nginx.template_elsewhere(place.port(), secure.port) else { panic!() };
    let lb = place.balancer_with("lb", &place.settings(&template.display().to_string(), &place.target()));
    place.await_served(&lb, "any.example", &["503"]);
    let answer = get(place.port(), "any.example", "/").unwrap();
    assert_eq!(answer.headers.get("retry-after").map(String::as_str), Some("5"));
    assert!(answer.body.contains("Nothing is served here yet"), "{}", answer.body);
    let status = lb.wait_json("/v1/status", "it is in use", |status| status["generate"]["ok"] == true);
    assert_eq!(status["generate"]["target"], place.target().display().to_string());
    let origin = node::Origin::http("a");
    let _a = place.cluster.backend("a", &[&format!("web:{},domain=site.example", origin.port())]);
    place.await_served(&lb, "site.example", &["a"]);
}

// ---- what is written, and when --------------------------------------------------------------------------------------

#[test]
fn one_cluster_gives_the_same_bytes_everywhere_and_every_time() {
    let place = Place::new();
    let other = place.cluster.path("other.conf");
    let (first, second) = (place.settings("nginx", &place.target()), place.settings_unused(&other));
    let mut lbs = [place.balancer_with("lb-1", &first), place.balancer_with("lb-2", &second)];
    let ports: Vec<u16> = (0..3).map(|_| HeldPort::new().port).collect();
    let fields = ["policy = \"hash\"\nweight = 50\n", "policy = \"least-connections\"\n", "path = \"/c\"\n"];
    let start = |at: usize| {
        let name = ["a", "b", "c"][at];
        let more = format!("domains = [\"{name}.example\", \"site.example\"]\n{}", fields[at]);
        let origin = HeldPort { port: ports[at], _sockets: Vec::new() };
        place.backend_at(name, origin, &more)
    };
    let is_whole = |text: &str| ["# a\n", "# b\n", "# c\n"].iter().all(|node| text.contains(node));
    let mut backends = [0, 1, 2].map(start);
    let text = place.await_text(&lbs[0], "all three are in it", is_whole);
    let same = |lb: &Node, path: &Path| {
        let read = || fs::read_to_string(path).unwrap_or_default();
        let context = || format!("{}\n--- expected\n{text}\n{}", read(), lb.log());
        eventually_within(LIMIT, &format!("{} has the same bytes", path.display()), context, || {
            (read() == text).then_some(())
        });
    };
    same(&lbs[1], &other);

    // Everybody again, in another order, and nothing to go by.
    lbs.iter_mut().for_each(|lb| assert!(lb.end().success()));
    backends.iter_mut().for_each(|backend| assert_eq!(backend.node.end().code(), Some(128 + 15)));
    fs::remove_file(&other).unwrap();
    fs::write(place.target(), BEFORE).unwrap();
    let mut lbs: Vec<Node> = vec![place.balancer_with("lb-2", &second)];
    let _backends = [2, 0, 1].map(start);
    lbs.push(place.balancer_with("lb-1", &first));
    same(&lbs[0], &other);
    same(&lbs[1], &place.target());
}

/// What of a file shows that nobody touched it.
fn stamp(path: &Path) -> (u64, i64, i64) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
}

#[test]
fn what_changes_nothing_for_nginx_writes_nothing_and_reloads_nothing() {
    let place = Place::new();
    let settings = place.settings("nginx", &place.target())
        + "[[lb.allow]]\ndomains = [\"site.example\"]\n[[lb.allow]]\ndomains = [\"*.site.example\"]\n";
    let mut lb = place.balancer_with("lb", &settings);
    let backends = ["a", "b", "c"].map(|name| place.backend(name, &["site.example"]));
    place.await_served(&lb, "site.example", &["a", "b", "c"]);
    let metric = |lb: &Node, name: &str| lb.metric(&format!("scrimp_generate_{name}_total")).unwrap();
    let wait_ok = |lb: &Node| {
        lb.wait_json("/v1/status", "it is in use", |status| status["generate"]["ok"] == true);
        // nginx has the new file a moment before its reload is counted.
        eventually_within(
            LIMIT,
            "what was written is in use",
            || lb.log(),
            || (metric(lb, "writes") == metric(lb, "reloads")).then_some(()),
        );
    };
    wait_ok(&lb);
    let state = |lb: &Node| (stamp(&place.target()), metric(lb, "writes"), metric(lb, "reloads"));
    let before = state(&lb);
    let unchanged_by = |what: &str, change: &dyn Fn()| {
        let renders = metric(&lb, "renders");
        change();
        eventually_within(
            LIMIT,
            &format!("{what} is looked at"),
            || lb.log(),
            || (metric(&lb, "renders") > renders).then_some(()),
        );
        wait_ok(&lb);
        assert_eq!(state(&lb), before, "{what}\n{}", lb.log());
    };
    let second = place.cluster.path("second.conf");
    let other = std::cell::RefCell::new(None);
    unchanged_by("another balancer comes", &|| {
        *other.borrow_mut() = Some(place.balancer_with("second", &place.settings_unused(&second)));
    });
    unchanged_by("it goes", &|| assert!(other.borrow_mut().take().unwrap().end().success()));
    unchanged_by("an offer that is not allowed", &|| {
        *other.borrow_mut() = Some(place.backend("mallory", &["bank.example"]).node);
    });
    unchanged_by("the same configuration again", &|| lb.signal(Signal::HUP));
    let refused = lb.wait_json("/v1/status", "it is refused", |status| status["refused"][0]["node"] == "mallory");
    assert!(refused["problems"].to_string().contains("lb.allow does not let backends claim bank.example"), "{refused}");
    for backend in &backends {
        backend.node.signal(Signal::HUP);
    }
    place.await_served(&lb, "site.example", &["a", "b", "c"]);

    // The balancer starts again: the file is right, and nginx knows it.
    assert!(lb.end().success());
    let stamped = stamp(&place.target());
    let lb = place.balancer_with("lb", &settings);
    // The one that is not allowed is ready too.
    lb.wait_ready_backends("web", 4);
    wait_ok(&lb);
    assert_eq!((stamp(&place.target()), metric(&lb, "writes"), metric(&lb, "reloads")), (stamped, 0.0, 0.0));
    assert_eq!(before.0, stamped);

    // And a change that is one.
    let _d = place.backend("d", &["site.example"]);
    place.await_served(&lb, "site.example", &["a", "b", "c", "d"]);
    wait_ok(&lb);
    assert_ne!(stamp(&place.target()), stamped);
    assert_eq!((metric(&lb, "writes"), metric(&lb, "reloads")), (1.0, 1.0), "{}", lb.log());
}

// ---- what goes wrong ------------------------------------------------------------------------------------------------

/// What `scrimp status` prints of a node.
fn status(lb: &Node) -> String {
    let (_, text) = node::run(&["status", "--admin", &format!("unix:{}", lb.socket.display())]);
    // Lines are broken for the terminal.
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn await_problem(lb: &Node, parts: &[&str]) {
    eventually_within(
        LIMIT,
        &format!("status says {parts:?}"),
        || status(lb) + "\n" + &lb.log(),
        || {
            let text = status(lb);
            parts.iter().all(|part| text.contains(part)).then_some(())
        },
    );
}

#[test]
fn a_broken_file_of_the_users_is_named_and_the_old_file_stands_until_it_is_mended() {
    let place = Place::new();
    let lb = place.balancer("lb");
    let _a = place.backend("a", &["site.example"]);
    place.await_served(&lb, "site.example", &["a"]);
    let (text, stamped) = (place.text(), stamp(&place.target()));
    let broken = place.target().with_file_name("zz-mine.conf");
    fs::write(&broken, "# mine\nserver { listn 1; }\n").unwrap();
    let _b = place.backend("b", &["site.example"]);
    await_problem(&lb, &["unknown directive \"listn\" in", "zz-mine.conf:2", "scrimp's own file is in order"]);
    assert_eq!((place.text(), stamp(&place.target())), (text, stamped));
    assert_eq!(place.served("site.example"), BTreeSet::from(["a".to_owned()]));
    assert_eq!(lb.metric("scrimp_generate_up_to_date"), Some(0.0));
    fs::remove_file(&broken).unwrap();
    place.await_served(&lb, "site.example", &["a", "b"]);
    await_problem(&lb, &["no problems"]);
    assert_eq!(lb.metric("scrimp_generate_up_to_date"), Some(1.0));
}

#[test]
fn an_nginx_that_does_not_run_is_named_and_starts_with_the_newest_file() {
    let mut place = Place::prepare();
    let lb = place.balancer("lb");
    let _a = place.backend("a", &["site.example"]);
    await_problem(&lb, &["nginx is not running: start it (systemctl start nginx)"]);
    place.await_text(&lb, "the newest file is there for its start", |text| text.contains("# a\n"));
    // Being told to read its configuration again makes nothing well.
    let renders = lb.metric("scrimp_generate_renders_total");
    lb.signal(Signal::HUP);
    eventually_within(
        LIMIT,
        "it tries again",
        || lb.log(),
        || (lb.metric("scrimp_generate_renders_total") > renders).then_some(()),
    );
    await_problem(&lb, &["nginx is not running"]);
    place.nginx.launch();
    place.await_served(&lb, "site.example", &["a"]);
    await_problem(&lb, &["no problems"]);
}

#[test]
fn a_folder_that_cannot_be_written_is_named_and_the_old_file_stands_until_it_can() {
    let mut place = Place::new();
    if rustix::process::geteuid().is_root() {
        // Root may write anywhere unless it has given that power away, as the systemd unit's root has.
        let words = ["setpriv", "--bounding-set=-dac_override"];
        place.cluster.under = words.map(str::to_owned).into();
    }
    let lb = place.balancer("lb");
    place.cluster.under.clear();
    let _a = place.backend("a", &["site.example"]);
    place.await_served(&lb, "site.example", &["a"]);
    let (text, stamped) = (place.text(), stamp(&place.target()));
    let target = place.target();
    let folder = target.parent().unwrap();
    let allow = |mode| fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
    allow(0o555);
    let _b = place.backend("b", &["site.example"]);
    let remedy = format!("let the user that scrimp runs as write to {}", folder.display());
    await_problem(&lb, &["Permission denied", &remedy]);
    assert_eq!((place.text(), stamp(&place.target())), (text, stamped));
    assert_eq!(place.served("site.example"), BTreeSet::from(["a".to_owned()]));
    allow(0o755);
    place.await_served(&lb, "site.example", &["a", "b"]);
    await_problem(&lb, &["no problems"]);
}

#[test]
fn a_file_that_nginx_does_not_load_is_not_called_in_use() {
    let place = Place::new();
    let folder = place.cluster.path("elsewhere");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("scrimp.conf"), BEFORE).unwrap();
    let lb = place.balancer_with("lb", &place.settings("nginx", &folder.join("scrimp.conf")));
    let _a = place.backend("a", &["site.example"]);
    let include = format!("include {}/*.conf;", folder.display());
    await_problem(&lb, &["nginx does not load", &include]);
    assert_eq!(lb.metric("scrimp_generate_reloads_total"), Some(0.0));
    assert_eq!(fs::read_to_string(folder.join("scrimp.conf")).unwrap(), BEFORE);
    fs::write(place.target().with_file_name("more.conf"), include).unwrap();
    place.await_served(&lb, "site.example", &["a"]);
    await_problem(&lb, &["no problems"]);
}

#[test]
fn settings_that_change_are_taken_over_and_broken_ones_change_nothing() {
    let place = Place::new();
    let lb = place.balancer("lb");
    let _a = place.backend("a", &["site.example"]);
    place.await_served(&lb, "site.example", &["a"]);
    let admin = format!("unix:{}", lb.socket.display());
    let reload = |settings: &str| {
        fs::write(&lb.config, settings).unwrap();
        node::run(&["reload", "--admin", &admin])
    };
    let built_in = fs::read_to_string("templates/nginx.conf.tera").unwrap();
    let template = place.cluster.path("mine.tera");
    fs::write(&template, format!("{built_in}# mine: {{{{ pools | length }}}} pools\n")).unwrap();
    let mine = place.settings(&template.display().to_string(), &place.target());

    let (outcome, said) = reload(&mine);
    assert!(outcome.success(), "{said}");
    let text = place.await_text(&lb, "my template is in use", |text| text.ends_with("# mine: 1 pools\n"));
    place.await_served(&lb, "site.example", &["a"]);
    let stamped = stamp(&place.target());

    fs::write(&template, "one\n{% for pool in pool %}\n").unwrap();
    let nowhere = place.settings("nginx", Path::new("/nonexistent/scrimp.conf"));
    let misspelt = mine.replace("target", "taget");
    for (settings, parts) in [
        (&mine, ["mine.tera, line 3: Unexpected end", "nginx.conf.tera"]),
        (&nowhere, ["/nonexistent", "mkdir -p"]),
        (&misspelt, ["taget", "did you mean"]),
    ] {
        let (outcome, said) = reload(settings);
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(!outcome.success() && parts.iter().all(|part| said.contains(part)), "{parts:?}: {said}");
        assert!(lb.log().contains("everything stays as it was"), "{}", lb.log());
    }
    assert_eq!((place.text(), stamp(&place.target())), (text, stamped));
    // The template of before goes on being used.
    let _b = place.backend("b", &["shop.example"]);
    place.await_text(&lb, "my template is still in use", |text| text.ends_with("# mine: 2 pools\n"));
    place.await_served(&lb, "shop.example", &["b"]);

    let (outcome, said) = reload(&place.settings("nginx", &place.target()));
    assert!(outcome.success(), "{said}");
    place.await_text(&lb, "the built-in template is in use again", |text| !text.contains("# mine"));
    place.await_served(&lb, "site.example", &["a"]);
}

// ---- what can be asked ----------------------------------------------------------------------------------------------

/// What a command prints on its standard output alone.
fn output(arguments: &[&str]) -> (ExitStatus, String) {
    let output = node::scrimp().args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status, String::from_utf8(output.stdout).unwrap())
}

#[test]
fn render_prints_the_bytes_that_stand_in_the_file() {
    let place = Place::new();
    let lb = place.balancer("lb");
    let site = "domains = [\"site.example\", \"*.site.example\"]\npolicy = \"two-choices\"\n";
    let _a = place.backend_at("a", HeldPort::new(), &format!("{site}weight = 200\n"));
    let _b = place.backend_at("b", HeldPort::new(), &format!("{site}health = {{ path = \"/\" }}\n"));
    let mut gone = place.backend_at("gone", HeldPort::new(), "domains = [\"gone.example\"]\npath = \"/x\"\n");
    let silent = HeldPort::new();
    let silent = format!("db:{},domain=silent.example,listen={}", silent.port, place.port());
    let _silent = place.cluster.backend("silent", &[&silent]);
    place.await_served(&lb, "site.example", &["a", "b"]);
    place.await_text(&lb, "all are there", |text| text.contains("# gone\n") && text.contains("silent.example"));
    gone.node.kill();
    await_problem(&lb, &["application web on port", "has no backend that answers this balancer"]);
    let text = place.await_text(&lb, "a last resort", |text| text.contains("# gone\n"));
    assert!(text.contains("gone.example") && text.contains("random two least_conn;"), "{text}");

    let admin = format!("unix:{}", lb.socket.display());
    let config = lb.config.display().to_string();
    let (_, rendered) = output(&["render", "--config", &config, "--admin", &admin]);
    assert_eq!(rendered, place.text());

    // From what was saved, with nobody to ask.
    let (_, saved) = output(&["apps", "--json", "--admin", &admin]);
    let roster = place.cluster.path("roster.json");
    fs::write(&roster, saved).unwrap();
    let stamped = stamp(&place.target());
    drop(lb);
    let (_, rendered) = output(&["render", "--config", &config, "--roster", &roster.display().to_string()]);
    assert_eq!(rendered, text);
    assert_eq!(stamp(&place.target()), stamped);
}

#[test]
fn check_judges_what_would_be_written() {
    let place = Place::new();
    let file = place.cluster.path("check.toml");
    let check = |settings: &str, path: Option<&Path>| {
        fs::write(&file, settings).unwrap();
        let mut command = node::scrimp();
        command.args(["check", "--role", "lb", "--seed", &place.cluster.seed, "--config"]).arg(&file);
        command.arg("--key").arg(&place.cluster.key);
        command.envs(path.map(|path| ("PATH", path)));
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    };
    let right = place.settings("nginx", &place.target());
    let (status, said) = check(&right, None);
    assert!(status == 0 && said.contains("nginx takes what would be in"), "{status} {said}");
    assert_eq!(place.text(), BEFORE);

    let template = place.cluster.path("mine.tera");
    fs::write(&template, "# one\n# two\n{% if pools %}\n").unwrap();
    let (status, said) = check(&place.settings(&template.display().to_string(), &place.target()), None);
    assert!(status != 0 && said.contains(&format!("{}, line 4", template.display())), "{status} {said}");
    fs::write(&template, "# one\n{{ pools | nonsense }}\n").unwrap();
    let (status, said) = check(&place.settings(&template.display().to_string(), &place.target()), None);
    assert!(status != 0 && said.contains(&format!("{}, line 2", template.display())), "{status} {said}");

    let bare = format!("[lb]\nmode = \"generate\"\n[lb.generate]\ntarget = {:?}\n", place.target());
    let empty = place.cluster.path("empty");
    fs::create_dir(&empty).unwrap();
    let (status, said) = check(&bare, Some(&empty));
    assert!(status != 0 && said.contains("nginx is not installed: apt-get install nginx"), "{status} {said}");

    let wrong = place.cluster.path("wrong.pem");
    let certificate = |chain: &Path| format!("{right}[[lb.certificate]]\nchain = {chain:?}\nkey = {chain:?}\n");
    let (status, said) = check(&certificate(&wrong), None);
    let place_of_it = format!("{}:", file.display());
    assert!(
        status == 78 && said.contains("wrong.pem does not exist") && said.contains(&place_of_it),
        "{status} {said}"
    );
    fs::write(&wrong, "no certificate\n").unwrap();
    let (status, said) = check(&certificate(&wrong), None);
    assert!(status != 0 && said.contains("does not begin with a certificate"), "{status} {said}");

    // What would go wrong only once the file is there: a default server as Debian has one, a folder that nginx does
    // not read, and the wrong block.
    let other = place.target().with_file_name("other.conf");
    fs::write(&other, "server { listen 80 default_server; }\n").unwrap();
    let (status, said) = check(&right, None);
    assert!(status != 0 && said.contains("other.conf already is the default server"), "{status} {said}");
    fs::remove_file(&other).unwrap();
    let (status, said) = check(&place.settings("nginx", &place.cluster.path("scrimp.conf")), None);
    assert!(status != 0 && said.contains("nginx does not load"), "{status} {said}");
    let (status, said) = check(&place.settings("nginx-stream", &place.target()), None);
    assert!(status != 0 && said.contains("in its http block"), "{status} {said}");

    fs::write(&other, "nonsense;\n").unwrap();
    let (status, said) = check(&right, None);
    assert!(status != 0 && said.contains("other.conf:1"), "{status} {said}");
}
