//! Discovery through S3: the real program against a real S3 server, processes that have a bucket in common and
//! nothing else.

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
mod node;
#[path = "support/s3.rs"]
#[allow(dead_code)]
mod s3;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use node::{Cluster, Node, Origin, eventually_within, ready, receive, scrimp};
use s3::{BUCKET, S3};
use scrimp::seed::SeedObject;

/// In which five nodes that start together have found each other.
const DISCOVERY_LIMIT: Duration = Duration::from_secs(2);
/// A balancer in company reads its stores every 15 s, a lonely node at least as often; a call may take 5 s.
const NEXT_READ: Duration = Duration::from_secs(45);
/// A balancer whose writes failed writes again within a minute.
const NEXT_WRITE: Duration = Duration::from_secs(90);
/// Whose seeds they are, as `Cluster` leaves it: the default cluster's.
const FOLDER: &str = "clusters/default/seeds/";

/// One at a time: each test has a server of its own, and one of them looks at the clock.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- finding each other

#[test]
fn five_processes_with_a_bucket_in_common_find_each_other_in_two_seconds() {
    let _turn = turn();
    let (server, origin) = (S3::start(), Origin::line("hello"));
    let bucket = Bucket::of(&server);
    // The first object ever in a bucket takes this server a second, in which it makes room.
    bucket.put("before", &object("before", Duration::ZERO));
    for attempt in 1..=3 {
        // Another try is for a machine that is busy with something else; each starts from an empty prefix.
        let prefix = format!("try-{attempt}");
        let cluster = cluster_at(&server.url(&prefix));
        let spec = format!("db:{}/tcp,listen={}", origin.port(), cluster.listen().port());
        let balancers = [cluster.balancer("lb-1", ""), second_balancer(&cluster)];
        let backends = ["web-1", "web-2", "web-3"].map(|name| cluster.backend(name, &[&spec]));
        let began = balancers[0].started;
        for node in balancers.iter().chain(&backends) {
            node.wait_alive(&["lb-1", "lb-2", "web-1", "web-2", "web-3"]);
        }
        for balancer in &balancers {
            balancer.wait_json("/v1/apps", "all offers", |apps| ready(apps, "db") == 3);
        }
        let took = began.elapsed();
        println!("try {attempt}: two balancers and three backends found each other in {} ms", took.as_millis());

        let objects = ["lb-1.json", "lb-2.json"].map(|name| format!("{prefix}/{FOLDER}{name}"));
        assert_eq!(bucket.keys(&prefix), objects, "both balancers' objects, and no other");
        let listed = seeds(&cluster, &[]);
        for balancer in &balancers {
            let address = gossip_address(balancer);
            let line = listed.lines().find(|line| line.contains(&balancer.name)).unwrap_or_default();
            assert!(line.contains(&address) && line.contains("written "), "{address} of {}:\n{listed}", balancer.name);
        }
        for node in balancers.iter().chain(&backends).filter(|node| !node.name.ends_with('2')) {
            println!("{} has {} KiB resident (this build), S3 in use", node.name, node.resident_kib());
        }
        if took <= DISCOVERY_LIMIT {
            return;
        }
    }
    panic!("not once in three tries within {DISCOVERY_LIMIT:?}");
}

#[test]
fn what_a_killed_balancer_leaves_behind_hinders_nobody_and_a_graceful_end_leaves_nothing() {
    let _turn = turn();
    let (server, origin) = (S3::start(), Origin::line("hello"));
    let (cluster, bucket) = (cluster_at(&server.url("p")), Bucket::of(&server));
    let listen = cluster.listen();
    let spec = format!("db:{}/tcp,listen={}", origin.port(), listen.port());
    let (mut first, mut second) = (cluster.balancer("lb-1", ""), second_balancer(&cluster));
    first.wait_alive(&["lb-1", "lb-2"]);
    let [dead, living] = ["lb-1", "lb-2"].map(|name| format!("p/{FOLDER}{name}.json"));
    wait("both objects", || bucket.keys("p") == [dead.clone(), living.clone()]);
    first.kill();

    let backend = cluster.backend("web-1", &[&spec]);
    second.wait_ready_backends("db", 1);
    assert_eq!(receive(SocketAddr::from((SECOND_IP, listen.port()))).unwrap(), "hello\n");
    assert_eq!(bucket.keys("p"), [dead.clone(), living], "what was left behind is still there");
    backend.wait_json("/v1/members", "the dead one is no member of its cluster", |members| {
        let all = members["members"].as_array().into_iter().flatten();
        let mut others = all.filter(|member| member["name"] != "web-1" && member["name"] != "lb-2");
        others.all(|member| member["state"] == "down")
    });

    assert!(second.end().success());
    assert_eq!(bucket.keys("p"), [dead], "its own object, and only its own, is gone when it has ended");
}

// ---- the server away

#[test]
fn without_the_server_nothing_that_runs_is_disturbed() {
    let _turn = turn();
    let (mut server, origin) = (S3::start(), Origin::line("hello"));
    let cluster = cluster_at(&server.url("p"));
    let listen = cluster.listen();
    let spec = format!("db:{}/tcp,listen={}", origin.port(), listen.port());
    let (first, second) = (cluster.balancer("lb-1", ""), second_balancer(&cluster));
    let stays = cluster.backend("web-1", &[&spec]);
    let mut leaves = cluster.backend("web-2", &[&spec]);
    for balancer in [&first, &second] {
        balancer.wait_alive(&["lb-1", "lb-2", "web-1", "web-2"]);
    }
    first.wait_ready_backends("db", 2);

    server.stop();
    let visitor = Visitor::start(listen);
    let told = wait_status(&first, "fails:", NEXT_READ);
    for words in [server.endpoint().as_str(), "cannot be reached", "last answer 20"] {
        assert!(told.contains(words), "{words} is not in: {told}");
    }
    assert!(!told.contains("alone"), "{told}");

    // Members go on to come and go, by what they know of each other.
    assert!(leaves.end().success());
    first.wait_ready_backends("db", 1);
    let by_address = ["--seed", &gossip_address(&first), "--app", &spec].map(str::to_owned);
    let _guided = cluster.start("backend", "web-3", "", &by_address.each_ref().map(String::as_str));
    first.wait_ready_backends("db", 2);
    // Whoever has only the bucket waits, and says for what.
    let newcomer = cluster.backend("web-4", &[&spec]);
    let told = wait_status(&newcomer, "fails:", NEXT_READ);
    for words in ["this node is alone", &server.endpoint(), "cannot be reached", "it has never answered"] {
        assert!(told.contains(words), "{words} is not in: {told}");
    }
    for node in [&first, &second, &stays] {
        node.wait_alive(&["lb-1", "lb-2", "web-1", "web-3"]);
        assert!(!node.log().contains("is down") && !node.log().contains("does not answer"), "{}", node.log());
    }
    wait("several tries", || newcomer.metric("scrimp_seed_read_failures_total").is_some_and(|count| count >= 4.0));
    for node in [&first, &newcomer] {
        assert_eq!(lines_with(node, "cannot be reached"), 1, "told once: {}", node.log());
    }

    server.restart();
    wait_within(NEXT_READ, "it joins by itself", &newcomer, || {
        newcomer.alive() == ["lb-1", "lb-2", "web-1", "web-3", "web-4"]
    });
    first.wait_ready_backends("db", 3);
    wait_status(&first, "no problems", NEXT_WRITE);
    // It may not have read since the other balancer's seed was there.
    wait_status(&first, "2 seeds", NEXT_READ);
    visitor.stop_without_a_failure();
}

#[test]
fn a_balancer_that_starts_without_its_server_serves_alone_and_leaves_word_later() {
    let _turn = turn();
    let (mut server, origin) = (S3::start(), Origin::line("hello"));
    server.stop();
    let cluster = cluster_at(&server.url("p"));
    let listen = cluster.listen();
    let spec = format!("db:{}/tcp,listen={}", origin.port(), listen.port());
    let balancer = cluster.balancer("lb-1", "");
    balancer.wait_ready();
    let guided = ["--seed", &gossip_address(&balancer), "--app", &spec].map(str::to_owned);
    let _guided = cluster.start("backend", "web-1", "", &guided.each_ref().map(String::as_str));
    balancer.wait_ready_backends("db", 1);
    assert_eq!(receive(listen).unwrap(), "hello\n");
    wait_status(&balancer, "cannot be reached", NEXT_READ);
    assert_eq!(balancer.get("/readyz").map(|(status, _)| status), Some(200));

    server.restart();
    let bucket = Bucket::of(&server);
    wait_within(NEXT_WRITE, "its object", &balancer, || bucket.keys("p") == [format!("p/{FOLDER}lb-1.json")]);
    let other = cluster.backend("web-2", &[&spec]);
    wait_within(NEXT_READ, "who has only the bucket joins", &other, || other.alive() == ["lb-1", "web-1", "web-2"]);
}

// ---- S3 says no

#[test]
fn what_s3_forbids_is_told_once_with_its_remedy_and_mended_in_a_running_node() {
    let _turn = turn();
    let server = S3::start();
    let bucket = Bucket::of(&server);
    for (who, prefix, complaint) in
        [("wrong", "w", "refused the credentials in"), ("reader", "r", "refused to write: give this machine")]
    {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        fs::copy(server.credentials(who), &keys).unwrap();
        let url = format!("s3://{BUCKET}/{prefix}?endpoint={}&credentials={}", server.endpoint(), keys.display());
        let cluster = cluster_at(&url);
        let mut balancer = cluster.balancer("lb-1", "");
        let told = wait_status(&balancer, complaint, NEXT_READ);
        let remedies: &[&str] = match who {
            "wrong" => &[keys.to_str().unwrap(), "replace them", "SignatureDoesNotMatch"],
            _ => &["s3:PutObject and s3:DeleteObject) on arn:aws:s3:::seed/r/clusters/*", "AccessDenied"],
        };
        for words in [&url, "s3://"].iter().chain(remedies) {
            assert!(told.contains(words), "{words} is not in: {told}");
        }
        wait("several failures", || {
            let failures = ["read", "write"].map(|act| format!("scrimp_seed_{act}_failures_total"));
            failures.iter().filter_map(|name| balancer.metric(name)).sum::<f64>() >= 4.0
        });
        assert_eq!(lines_with(&balancer, complaint), 1, "told once: {}", balancer.log());
        assert_eq!(lines_with(&balancer, "WARN"), 1, "and nothing else: {}", balancer.log());
        assert_eq!(balancer.get("/readyz").map(|(status, _)| status), Some(200), "it serves");

        fs::copy(server.credentials("admin"), &keys).unwrap();
        let object = format!("{prefix}/{FOLDER}lb-1.json");
        wait_within(NEXT_WRITE, "the mended keys are used", &balancer, || bucket.keys(prefix) == [object.clone()]);
        wait_within(NEXT_READ, "and all is well", &balancer, || !status(&balancer).contains("fails:"));
        assert!(balancer.end().success());
    }
}

// ---- what leaves the machine

#[test]
fn nothing_leaves_loopback() {
    let _turn = turn();
    // A network of its own: beside loopback an interface that leads nowhere, with the default route, on which
    // everything would show that is meant for anybody else.
    let script = "set -e
        ip link set lo up
        ip link add out type veth peer name nowhere
        echo 1 >/proc/sys/net/ipv6/conf/out/disable_ipv6
        echo 1 >/proc/sys/net/ipv6/conf/nowhere/disable_ipv6
        ip address add 192.0.2.1/24 dev out
        ip link set nowhere up
        ip link set out up
        ip route add default via 192.0.2.2
        exec \"$0\" --exact in_a_network_that_leads_nowhere --ignored --nocapture --test-threads=1";
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--net", "--", "sh", "-c", script]).arg(std::env::current_exe().unwrap());
    command.env("SCRIMP_TEST_NOWHERE", "yes");
    let Output { status, stdout, stderr } = command.output().expect("unshare of util-linux");
    let said = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(status.success() && said.contains("1 passed"), "{said}");
}

/// Not a test by itself: what `nothing_leaves_loopback` runs.
#[test]
#[ignore = "run by another test, in a network of its own"]
fn in_a_network_that_leads_nowhere() {
    if std::env::var_os("SCRIMP_TEST_NOWHERE").is_none() {
        return;
    }
    let (server, origin) = (S3::start(), Origin::line("hello"));
    let mut cluster = cluster_at(&server.url("p"));
    cluster.env.push(("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned()));
    let listen = cluster.listen();
    let spec = format!("db:{}/tcp,listen={}", origin.port(), listen.port());
    let balancer = cluster.balancer("lb-1", "");
    let _backend = cluster.backend("web-1", &[&spec]);
    balancer.wait_ready_backends("db", 1);
    assert_eq!(receive(listen).unwrap(), "hello\n");
    // With no credentials anywhere the instance's would be next.
    cluster.seed = format!("s3://{BUCKET}/p?endpoint={}", server.endpoint());
    let lonely = cluster.backend("web-2", &[&spec]);
    let told = wait_status(&lonely, "no credentials were found", NEXT_READ);
    assert!(told.contains("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), "{told}");
    assert!(told.contains("?credentials=/etc/scrimp/s3.credentials"), "{told}");
    assert_eq!(packets_out(), 0, "somebody spoke to the outside");

    // Allowed to, it asks: this network would have shown it.
    cluster.env.push(("AWS_EC2_METADATA_DISABLED".to_owned(), "false".to_owned()));
    let asks = cluster.backend("web-3", &[&spec]);
    wait_within(NEXT_READ, "instance credentials are asked for", &asks, || packets_out() > 0);
}

/// Packets sent by the interface that leads nowhere.
fn packets_out() -> u64 {
    let interfaces = fs::read_to_string("/proc/self/net/dev").unwrap();
    let line = interfaces.lines().find_map(|line| line.trim().strip_prefix("out:")).unwrap();
    line.split_whitespace().nth(9).unwrap().parse().unwrap()
}

// ---- looking into the bucket

#[test]
fn seeds_lists_the_bucket_and_prune_takes_out_what_is_dead() {
    let _turn = turn();
    let server = S3::start();
    let (cluster, bucket) = (cluster_at(&server.url("p")), Bucket::of(&server));
    assert_eq!(seeds(&cluster, &[]), format!("{}: empty\n", cluster.seed));
    let balancer = cluster.balancer("lb-1", "");
    let living = format!("p/{FOLDER}lb-1.json");
    wait("the object of a balancer that lives", || bucket.keys("p") == [living.clone()]);
    let [old, strange, other] = ["lb-old.json", "page.json", "../../green/seeds/lb-9.json"]
        .map(|name| format!("p/{FOLDER}{name}").replace("default/seeds/../../", ""));
    bucket.put(&old, &object("lb-old", Duration::from_secs(3 * 24 * 3600 + 61)));
    bucket.put(&strange, b"<html>no such page</html>");
    bucket.put(&other, &object("lb-9", Duration::from_secs(3600)));

    let listed = seeds(&cluster, &[]);
    let line = |node: &str| listed.lines().find(|line| line.contains(node)).unwrap_or_default().to_owned();
    assert!(line("lb-1").contains(&gossip_address(&balancer)) && !line("lb-1").contains("dead"), "{listed}");
    assert!(line("lb-old").contains("10.0.0.200:7377") && line("lb-old").contains("written 3days"), "{listed}");
    assert!(line("lb-old").contains("dead? `scrimp seeds --prune` removes it"), "{listed}");
    assert!(line("page.json").contains("passed over"), "{listed}");
    assert!(!listed.contains("lb-9"), "another cluster's: {listed}");

    let pruned = seeds(&cluster, &["--prune"]);
    assert!(pruned.contains("removed lb-old") && !pruned.contains("removed lb-1"), "{pruned}");
    assert_eq!(bucket.keys("p"), [living, strange, other], "what is dead, and nothing else");
    let again = seeds(&cluster, &["--prune"]);
    assert!(again.contains("nothing is dead") && again.contains("lb-1"), "{again}");

    let forbidden = cluster_at(&server.url_as(BUCKET, "p", "reader"));
    bucket.put(&old, &object("lb-old", Duration::from_secs(3600)));
    let output = command(&forbidden, &["--prune"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not pruned: ") && said.contains("s3:DeleteObject"), "{said}");
}

/// An object as a balancer wrote it that long ago.
fn object(node: &str, age: Duration) -> Vec<u8> {
    let addresses = vec!["10.0.0.200:7377".parse().unwrap()];
    SeedObject { node: node.parse().unwrap(), addresses, epoch: 1, written_at: SystemTime::now() - age }.to_json()
}

// ---- fixtures

/// A cluster with its seeds at `url`, and nothing of this user's own in its environment.
fn cluster_at(url: &str) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.seed = url.to_owned();
    cluster.env.push(("HOME".to_owned(), cluster.folder.path().display().to_string()));
    cluster
}

/// A second balancer's listen ports are the first one's, at this address.
const SECOND_IP: Ipv4Addr = Ipv4Addr::new(127, 99, 0, 2);

fn second_balancer(cluster: &Cluster) -> Node {
    cluster.start("lb", "lb-2", &format!("[lb]\nbind = [\"{SECOND_IP}\"]\n"), &[])
}

fn gossip_address(node: &Node) -> String {
    let told = node.wait_json("/v1/status", "its address", |status| status["node"]["address"].is_string());
    told["node"]["address"].as_str().unwrap_or_default().to_owned()
}

fn command(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = scrimp();
    command.args(["seeds", "--seed", &cluster.seed]).args(arguments).env("HOME", cluster.folder.path());
    command
}

/// What `scrimp seeds` prints.
fn seeds(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = command(cluster, arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// What `scrimp status` prints, each run of white space as one blank: its lines are broken anywhere.
fn status(node: &Node) -> String {
    let output = scrimp().args(["status", "--admin"]).arg(format!("unix:{}", node.socket.display())).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn wait_status(node: &Node, words: &str, limit: Duration) -> String {
    let context = || format!("{}\nits log:\n{}", status(node), node.log());
    eventually_within(limit, &format!("status says {words:?}"), context, || {
        Some(status(node)).filter(|text| text.contains(words))
    })
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    eventually_within(node::PATIENCE, what, String::new, || condition().then_some(()));
}

fn wait_within(limit: Duration, what: &str, node: &Node, mut condition: impl FnMut() -> bool) {
    let context = || format!("the log of {}:\n{}", node.name, node.log());
    eventually_within(limit, what, context, || condition().then_some(()));
}

fn lines_with(node: &Node, words: &str) -> usize {
    node.log().lines().filter(|line| line.contains(words)).count()
}

/// A bucket through the store's own API, past scrimp.
struct Bucket {
    runtime: tokio::runtime::Runtime,
    client: aws_sdk_s3::Client,
}

impl Bucket {
    fn of(server: &S3) -> Self {
        use aws_sdk_s3::config::{Credentials, Region};
        let (key, secret) = server.keys();
        let config = aws_sdk_s3::Config::builder()
            .behavior_version_latest()
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .credentials_provider(Credentials::new(key, secret, None, None, "test"))
            .region(Region::new("us-east-1"))
            .endpoint_url(server.endpoint())
            .force_path_style(true);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { runtime, client: aws_sdk_s3::Client::from_conf(config.build()) }
    }

    /// The keys below a prefix, sorted.
    fn keys(&self, prefix: &str) -> Vec<String> {
        let list = self.client.list_objects_v2().bucket(BUCKET).prefix(format!("{prefix}/"));
        let answer = self.runtime.block_on(list.send()).unwrap();
        answer.contents().iter().filter_map(|object| object.key().map(str::to_owned)).collect()
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        let put = self.client.put_object().bucket(BUCKET).key(key).body(bytes.to_vec().into());
        self.runtime.block_on(put.send()).unwrap();
    }
}

/// Somebody who connects again and again, and counts what goes wrong.
struct Visitor {
    stop: Arc<AtomicBool>,
    visits: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Visitor {
    fn start(address: SocketAddr) -> Self {
        let (stop, visits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&visits));
        let thread = std::thread::spawn(move || {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match receive(address) {
                    Ok(text) if text == "hello\n" => {}
                    other => failures.push(format!("{other:?}")),
                }
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
            failures
        });
        Self { stop, visits, thread }
    }

    fn stop_without_a_failure(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.thread.join().unwrap();
        let visits = self.visits.load(Ordering::Relaxed);
        println!("{visits} connections through the balancers, {} failed", failures.len());
        assert!(failures.is_empty() && visits > 100, "{} of {visits} failed: {failures:?}", failures.len());
    }
}
