//! The cluster's key is changed while it serves, with real processes; and what somebody without it can send.
//! With `SCRIMP_TEST_RELEASE` (tests/run sets it) the flood meets the release build, a million times a kind.

#[path = "support/flood.rs"]
mod flood;
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
#[path = "support/node.rs"]
mod node;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use flood::{Flood, Kind, Relay};
use node::{Cluster, Node, Origin, PATIENCE, eventually, eventually_within, http_get, run, scrimp};
use scrimp::config::keygen;

/// Writes a key file; the first key is preferred.
fn put_keys(cluster: &Cluster, name: &str, keys: &[&str]) -> PathBuf {
    let path = cluster.path(&format!("{name}.key"));
    fs::write(&path, keys.join("\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn ask(node: &Node, command: &str) -> (bool, String) {
    let (status, text) = run(&[command, "--admin", &format!("unix:{}", node.socket.display())]);
    (status.success(), text)
}

/// Drops for one reason.
fn dropped(node: &Node, reason: &str) -> u64 {
    let name = format!("scrimp_gossip_dropped_total{{reason=\"{reason}\"}}");
    node.metric(&name).map_or_else(|| panic!("{} has no {name}", node.name), |count| count as u64)
}

fn all_dropped(node: &Node) -> u64 {
    let (_, text) = node.get("/metrics").unwrap_or_default();
    let values = text.lines().filter_map(|line| line.strip_prefix("scrimp_gossip_dropped_total")?.rsplit_once(' '));
    values.filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
}

/// The problems of its status, as one text.
fn problems(node: &Node) -> String {
    node.json("/v1/status")["problems"].to_string()
}

/// Clients that ask again and again.
struct Clients {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    failures: Arc<std::sync::Mutex<Vec<String>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Clients {
    fn start(listen: SocketAddr) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let failures = Arc::new(std::sync::Mutex::new(Vec::new()));
        let client = |_| {
            let (stop, served, failures) = (Arc::clone(&stop), Arc::clone(&served), Arc::clone(&failures));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match http_get(listen, "example.com", "/") {
                        Ok((200, _)) => drop(served.fetch_add(1, Ordering::Relaxed)),
                        other => failures.lock().unwrap().push(format!("{other:?}")),
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        };
        let threads = (0..2).map(client).collect();
        Self { stop, served, failures, threads }
    }

    fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        (self.served.load(Ordering::Relaxed), self.failures.lock().unwrap().clone())
    }
}

/// Three of four nodes add, promote and remove in any order; the fourth is late, out once they all have removed
/// what it has, and back when it follows. No request fails, and nobody else is ever missed.
#[test]
fn the_key_changes_node_by_node_while_requests_are_served() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (cluster, old, new) = (Cluster::new(), keygen(), keygen());
    let listen = cluster.listen();
    let origins = ["a", "b", "c"].map(Origin::http);
    let key = |name: &str| put_keys(&cluster, name, &[&old]).display().to_string();
    let lb_config = format!("[lb]\nbind = [\"{}\"]\n", cluster.ip);
    let lb = cluster.start("lb", "lb", &lb_config, &["--key", &key("lb")]);
    let backend = |name: &str, origin: &Origin| {
        let app = format!("web:{},listen={}", origin.port(), listen.port());
        cluster.start("backend", name, "", &["--key", &key(name), "--app", &app])
    };
    let [a, b, late] =
        [("a", &origins[0]), ("b", &origins[1]), ("late", &origins[2])].map(|(name, origin)| backend(name, origin));
    let everybody = ["a", "b", "late", "lb"];
    let nodes = [&lb, &a, &b, &late];
    nodes.iter().for_each(|node| node.wait_alive(&everybody));
    lb.wait_ready_backends("web", 3);
    let old_id = lb.wait_json("/v1/status", "its key", |status| status["keys"][0]["id"].is_string());
    let old_id = old_id["keys"][0]["id"].as_str().unwrap().to_owned();
    let clients = Clients::start(listen);

    // Adding and promoting, each node at its own pace.
    let steps: [&[&str]; 2] = [&[&old, &new], &[&new, &old]];
    let mut done = [0; 3];
    let mut new_id = String::new();
    while done != [2; 3] {
        let at = random.usize(..3);
        if done[at] < 2 {
            put_keys(&cluster, &nodes[at].name, steps[done[at]]);
            let (is_done, text) = ask(nodes[at], "reload");
            assert!(is_done && text.contains("cluster key") && text.contains("accepted too"), "{text}");
            done[at] += 1;
            let keys = nodes[at].json("/v1/status")["keys"].clone();
            assert_eq!(keys[done[at] - 1]["id"], old_id.as_str(), "in use once it is reloaded: {keys:#}");
            keys[2 - done[at]]["id"].as_str().unwrap().clone_into(&mut new_id);
        }
    }
    let status = lb.wait_json("/v1/status", "who is late", |status| {
        let keys = &status["keys"];
        keys[0]["id"] == new_id.as_str()
            && keys[0]["missing_at"] == serde_json::json!(["late"])
            && keys[1]["id"] == old_id.as_str()
            && keys[1]["used_by"] == serde_json::json!(["late"])
    });
    assert_eq!(status["keys"][0]["used_by"], serde_json::json!(["a", "b"]));
    let (_, text) = ask(&lb, "status");
    assert!(text.contains(&format!("{new_id} is in use, missing at 1: late")), "{text}");
    assert!(text.contains(&format!("{old_id} is accepted, needed by 1: late")), "{text}");
    let (_, text) = ask(&lb, "members");
    assert!(
        text.contains(&format!("key {old_id}: late")) && text.contains(&format!("key {new_id}: a, b, lb")),
        "{text}"
    );

    // It stays so for longer than it takes to miss somebody: the late one is with everybody.
    let received = || late.metric("scrimp_gossip_datagrams_total{direction=\"received\"}").unwrap_or_default();
    let before = received();
    eventually_within(Duration::from_secs(60), "it hears the others", String::new, || {
        (received() - before > 100.0).then_some(())
    });
    for node in nodes {
        assert_eq!(node.alive(), everybody, "{} sees", node.name);
        assert_eq!((dropped(node, "unknown-key"), dropped(node, "unauthenticated")), (0, 0), "{}", node.name);
        assert!(!node.log().contains(" is down") && !node.log().contains("does not answer"), "{}", node.log());
    }

    // Removing: the late one is out.
    let mut order = [0, 1, 2];
    random.shuffle(&mut order);
    for at in order {
        put_keys(&cluster, &nodes[at].name, &[&new]);
        let (is_done, text) = ask(nodes[at], "reload");
        let is_told = text.contains("lost here until they get one of these keys: late");
        assert!(is_done && is_told && text.contains(&format!("cluster key {new_id} is in use")), "{text}");
    }
    for node in &nodes[..3] {
        node.wait_alive(&["a", "b", "lb"]);
        assert_eq!(node.json("/v1/status")["keys"].as_array().map(Vec::len), Some(1));
    }
    let told = format!("(it names a key {}…, ours: {new_id})", &old_id[..2]);
    eventually_within(
        PATIENCE,
        "somebody says why",
        || lb.log(),
        || nodes[..3].iter().any(|node| node.log().contains(&told)).then_some(()),
    );
    let why = "its cluster key or its cluster name is not ours";
    let context = || format!("{}\n{}", problems(&late), late.log());
    eventually_within(Duration::from_secs(40), "the late one knows why", context, || {
        (problems(&late).contains(why) && late.log().contains(why)).then_some(())
    });

    // It follows, and is back.
    put_keys(&cluster, "late", &[&new]);
    assert!(ask(&late, "reload").0);
    nodes.iter().for_each(|node| node.wait_alive(&everybody));
    lb.wait_ready_backends("web", 3);
    let (_, text) = ask(&lb, "status");
    assert!(text.contains(&format!("{new_id} is in use\n")), "{text}");
    let (served, failures) = clients.end();
    assert!(served > 300 && failures.is_empty(), "{served} served, failed: {failures:?}");
    for node in [&lb, &a, &b] {
        let log = node.log();
        let missed = log.lines().filter(|line| line.contains(" is down") && !line.contains("backend late"));
        assert_eq!(missed.collect::<Vec<_>>(), [""; 0], "{}", node.name);
        assert_eq!(dropped(node, "unauthenticated"), 0);
        for secret in [&old, &new] {
            assert!(!log.contains(secret.as_str()));
        }
    }
}

#[test]
fn a_key_file_that_is_wrong_changes_nothing() {
    let (cluster, key) = (Cluster::new(), keygen());
    let file = put_keys(&cluster, "own", &[&key]);
    let arguments = ["--key", file.to_str().unwrap()];
    let (lb, other) = (cluster.start("lb", "lb", "", &arguments), cluster.start("lb", "other", "", &arguments));
    lb.wait_alive(&["lb", "other"]);
    let keys = lb.json("/v1/status")["keys"].clone();
    let five: Vec<String> = (0..5).map(|_| keygen()).collect();
    let five: Vec<&str> = five.iter().map(String::as_str).collect();
    for (wrong, reason) in [
        (vec!["hunter2"], ":1: 7 characters: a key is 64 hex digits"),
        (vec![], "there is no key in it"),
        (vec![&key, &key], ":2: this key stands here twice"),
        (five, "5 keys, but at most 4 are tried"),
    ] {
        put_keys(&cluster, "own", &wrong);
        let (is_done, text) = ask(&lb, "reload");
        assert!(!is_done && text.contains(reason) && text.contains("everything stays as it was"), "{text}");
        assert!(!text.contains("hunter2") && !text.contains(&key), "{text}");
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(ask(&lb, "reload").1.contains("chmod 600"));
    fs::remove_file(&file).unwrap();
    assert!(ask(&lb, "reload").1.contains("scrimp keygen >"));
    assert_eq!(lb.json("/v1/status")["keys"], keys);
    assert_eq!(other.alive(), ["lb", "other"]);
}

struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cluster becomes neither open nor closed while it runs.
#[test]
fn a_reload_neither_gives_a_first_key_nor_takes_the_last() {
    let cluster = Cluster::new();
    let with = format!("[cluster]\nkey = \"{}\"\n", cluster.key.display());
    for (first, second, reason) in
        [(with.as_str(), "", "runs with a key and would have none"), ("", with.as_str(), "runs without a key")]
    {
        let config = cluster.path("node.toml");
        fs::write(&config, first).unwrap();
        let admin = format!("unix:{}", cluster.path("node.sock").display());
        let mut command = scrimp();
        command.args(["lb", "--bind", "127.0.0.1:0", "--admin", &admin, "--config"]).arg(&config);
        let _node = Guard(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        eventually("ready", || run(&["healthcheck", "--admin", &admin]).0.success());
        fs::write(&config, second).unwrap();
        let (status, text) = run(&["reload", "--admin", &admin]);
        assert!(!status.success() && text.contains(reason) && text.contains("stays as it was"), "{text}");
    }
}

#[test]
fn a_flood_of_what_was_recorded_forged_or_is_of_others_changes_nothing() {
    let release = std::env::var("SCRIMP_TEST_RELEASE").ok();
    let count = if release.is_some() { 1_000_000 } else { 20_000 };
    let mut cluster = Cluster::new();
    // The program that every other test runs is taken away from the words, and this one put there.
    if let Some(program) = &release {
        let words = ["sh", "-c", "shift; exec \"$0\" \"$@\"", program];
        cluster.under = words.map(ToOwned::to_owned).to_vec();
    }
    let gossip = SocketAddr::from(([127, 0, 0, 1], node::free_port()));
    let relay = Relay::start(Some(gossip));
    let (bind, advertise) = (gossip.to_string(), relay.address.to_string());
    let lb = cluster.start("lb", "lb", "", &["--bind", &bind, "--advertise", &advertise]);
    let web = cluster.backend("web", &["web:1"]);
    lb.wait_alive(&["lb", "web"]);
    let sinks = [(); 2].map(|()| Relay::start(None));
    let [stranger, elsewhere] = sinks.each_ref().map(|sink| sink.address.to_string());
    let other = put_keys(&cluster, "other", &[&keygen()]);
    let mut strangers = [
        cluster.start("lb", "stranger", "", &["--key", other.to_str().unwrap(), "--seed", &stranger]),
        cluster.start("lb", "elsewhere", "", &["--cluster", "other", "--seed", &elsewhere]),
    ];
    let (ours, [stranger, elsewhere]) = (relay.recorded(50), sinks.each_ref().map(|sink| sink.recorded(4)));
    strangers.iter_mut().for_each(Node::kill);
    let (members, lines, own) = (lb.json("/v1/members"), lb.log().lines().count(), dropped(&web, "replayed"));
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let counted = || all_dropped(&lb);
    let random = fastrand::Rng::with_seed(seed);
    let mut flood = Flood { to: gossip, ours: &ours, foreign: &stranger, batch: 200, dropped: &counted, random };
    flood.send(Kind::Replayed, 1000);
    let resident = lb.resident_kib();
    // An envelope names its key with one byte, which another key may have too.
    let of_stranger = if stranger[0][1] == ours[0][1] { "unauthenticated" } else { "unknown-key" };
    // What was recorded counts as replayed before anybody looks into it.
    let damaged = "malformed unknown-key unauthenticated replayed";
    let floods = [
        (Kind::Replayed, count, &stranger, "replayed"),
        (Kind::Forged, count, &stranger, "unauthenticated"),
        (Kind::Foreign, count / 2, &stranger, of_stranger),
        (Kind::Foreign, count / 2, &elsewhere, "unauthenticated"),
        (Kind::Flipped, count / 10, &stranger, damaged),
        (Kind::Cut, count / 10, &stranger, "malformed replayed"),
    ];
    for (kind, count, foreign, reasons) in floods {
        let counted = || reasons.split(' ').map(|reason| dropped(&lb, reason)).sum::<u64>();
        let before = counted();
        flood.foreign = foreign;
        flood.send(kind, count);
        assert_eq!(counted() - before, count, "{kind:?} is to be counted as {reasons}");
    }
    let grown = lb.resident_kib().saturating_sub(resident);
    assert!(grown < 2 * 1024, "memory grew by {grown} KiB");
    assert_eq!(lb.json("/v1/members"), members);
    assert_eq!((web.alive(), dropped(&web, "replayed")), (vec!["lb".to_owned(), "web".to_owned()], own));
    assert!(lb.log().lines().count() <= lines + 1, "{}", lb.log());
}
