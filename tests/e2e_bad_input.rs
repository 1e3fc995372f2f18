//! Everything wrong that a person or the network can feed to the real program: each refusal names its place and
//! its remedy, nothing that runs is disturbed, and no word of it holds the key.

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
mod node;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use node::{Cluster, Node, Origin, PATIENCE, eventually, eventually_within, http_get, receive, scrimp, write_key};
use rustix::process::Signal;
use serde_json::Value;

/// Runs a command that is to end by itself: its exit status and all it said.
fn end_of(command: &mut Command) -> (i32, String) {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
            let output = child.wait_with_output().unwrap();
            panic!("it runs on: {command:?}\n{}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.code().unwrap_or(-1), text)
}

/// Runs `scrimp` with these words, separated by spaces, in a folder.
fn said(folder: &Path, words: &str) -> (i32, String) {
    end_of(scrimp().current_dir(folder).args(words.split_whitespace()))
}

/// Runs `scrimp` and wants this exit status, and all these fragments in what it says.
#[track_caller]
fn refused(folder: &Path, words: &str, status: i32, fragments: &[&str]) {
    let (ended, text) = said(folder, words);
    for fragment in fragments {
        assert!(text.contains(fragment), "scrimp {words}\n{fragment:?} is not in:\n{text}");
    }
    assert_eq!(ended, status, "scrimp {words}\n{text}");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn put(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Asks a running node as a person does.
fn ask(node: &Node, command: &str) -> (i32, String) {
    let admin = format!("unix:{}", node.socket.display());
    end_of(scrimp().args(command.split_whitespace()).args(["--admin", &admin]))
}

fn problems(node: &Node) -> String {
    let status = node.json("/v1/status");
    let problems = status["problems"].as_array().cloned().unwrap_or_default();
    problems.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
}

/// Waits until the problems of a node name all these.
fn wait_problem(node: &Node, fragments: &[&str]) -> String {
    let context = || format!("{}\nthe log of {}:\n{}", problems(node), node.name, node.log());
    eventually_within(PATIENCE, &format!("problems name {fragments:?}"), context, || {
        Some(problems(node)).filter(|text| fragments.iter().all(|fragment| text.contains(fragment)))
    })
}

/// Whether any of these texts shows what is in the key file.
#[track_caller]
fn no_secret(key: &Path, texts: &[String]) {
    let key = fs::read_to_string(key).unwrap();
    let key = key.trim().to_lowercase();
    for text in texts {
        assert!(!text.to_lowercase().contains(&key[..16]), "the key stands in:\n{text}");
        assert!(!text.to_lowercase().contains(&key[48..]), "the key stands in:\n{text}");
    }
}

fn count(log: &str, fragment: &str) -> usize {
    log.lines().filter(|line| line.contains(fragment)).count()
}

fn tcp_spec(name: &str, origin: &Origin, listen: SocketAddr) -> String {
    format!("{name}:{}/tcp,listen={}", origin.port(), listen.port())
}

fn member_count(node: &Node, name: &str, state: &str) -> usize {
    let members = node.json("/v1/members");
    let members = members["members"].as_array().cloned().unwrap_or_default();
    members.iter().filter(|member| member["name"] == name && member["state"] == state).count()
}

fn gossip_address(node: &Node) -> String {
    let status = node.wait_json("/v1/status", "its address", |status| status["node"]["address"].is_string());
    status["node"]["address"].as_str().unwrap().to_owned()
}

/// The sum of a metric over all its labels.
fn metric_sum(node: &Node, name: &str) -> u64 {
    let (_, text) = node.get("/metrics").unwrap_or_default();
    let values = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    values.filter_map(|(_, value)| value.parse::<f64>().ok()).sum::<f64>() as u64
}

// === configuration ===

#[test]
fn mistakes_of_a_file_come_all_at_once_each_with_its_line() {
    let folder = folder();
    put(
        folder.path(),
        "bad.toml",
        "[node]\nnam = \"x\"\nbind = \"127.0.0.1\"\n[lb]\nworkers = \"many\"\n[lb.timeouts]\nheader = 10\n",
    );
    let expected = [
        "bad.toml:2:1: node.nam: \"nam\" is not known here: did you mean name?",
        "bad.toml:5:11: lb.workers: expected a whole number from 0 to 256, found \"many\"",
        "bad.toml:7:10: lb.timeouts.header: expected a duration with its unit, like \"10s\"",
        "3 mistakes in the configuration",
    ];
    refused(folder.path(), "lb --config bad.toml", 78, &expected);
    refused(folder.path(), "check --config bad.toml", 78, &expected);
    refused(folder.path(), "lb --config ./bad.toml --bind nowhere", 78, &["--bind: expected an IP address"]);
    put(folder.path(), "worse.toml", "[node\nname = 1\n");
    refused(folder.path(), "lb --config worse.toml", 78, &["worse.toml:1:", "this is not TOML"]);
}

#[test]
fn files_that_cannot_be_read_are_named_with_a_remedy() {
    let folder = folder();
    let folder = folder.path();
    fs::create_dir(folder.join("box")).unwrap();
    refused(folder, "lb --config no.toml", 78, &["--config: cannot read no.toml: No such file", "check the path"]);
    refused(folder, "lb --config box", 78, &["--config: cannot read box", "name a file in it"]);
    refused(folder, "lb --key no.key", 78, &["--key: cannot read no.key", "scrimp keygen > no.key; chmod 600 no.key"]);
    refused(folder, "lb --key box", 78, &["--key: box is a folder", "name a file in it"]);
    let open = write_key(folder, "open.key");
    chmod(&open, 0o644);
    refused(folder, "lb --key open.key", 78, &["--key: open.key is open to everybody", "chmod 600 open.key"]);
    let short = put(folder, "short.key", "hunter2hunter2\n");
    chmod(&short, 0o600);
    refused(folder, "lb --key short.key", 78, &["--key: short.key:1: 14 characters", "scrimp keygen"]);
    assert!(!said(folder, "lb --key short.key").1.contains("hunter2"), "what may be a secret is not shown");
    put(folder, "token.toml", "[node]\nbind = \"127.0.0.1:0\"\n[admin]\ntoken = \"no.token\"\n");
    refused(folder, "lb --config token.toml", 78, &["token.toml:4:9: admin.token: cannot read", "check the path"]);
}

/// Root reads everything: this runs as a user who does not.
#[test]
fn files_of_somebody_else_are_named_with_a_remedy() {
    let folder = folder();
    let folder = folder.path();
    chmod(folder, 0o755);
    chmod(&write_key(folder, "its.key"), 0o000);
    chmod(&put(folder, "its.toml", ""), 0o000);
    let is_root = rustix::process::geteuid().is_root();
    let as_other = |words: &str| {
        let mut command = scrimp();
        if is_root {
            // The program itself may stand in a folder that others cannot enter.
            let program = folder.join("scrimp");
            if !program.exists() {
                fs::copy(env!("CARGO_BIN_EXE_scrimp"), &program).unwrap();
            }
            command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
            command.env("AWS_EC2_METADATA_DISABLED", "true");
        }
        end_of(command.current_dir(folder).args(words.split_whitespace()))
    };
    if is_root && Command::new("setpriv").arg("--version").output().is_err() {
        eprintln!("not tried: there is no setpriv to become another user");
        return;
    }
    for (words, place) in [
        ("lb --bind 127.0.0.1:0 --key its.key", "--key: cannot read its.key: Permission denied"),
        ("lb --bind 127.0.0.1:0 --config its.toml", "--config: cannot read its.toml: Permission denied"),
    ] {
        let (status, text) = as_other(words);
        assert!(text.contains(place) && text.contains("run scrimp as a user that may read it"), "{words}\n{text}");
        assert_eq!(status, 78, "{words}\n{text}");
    }
    // So are sockets: of one's own that cannot be made, and of somebody else.
    let (status, text) = as_other("lb --bind 127.0.0.1:0 --admin unix:/root/no/such/place.sock");
    assert!(text.contains("cannot open the admin socket") && text.contains("choose a path with --admin"), "{text}");
    assert_eq!(status, 1, "{text}");
    let listener = std::os::unix::net::UnixListener::bind(folder.join("its.sock")).unwrap();
    chmod(&folder.join("its.sock"), 0o000);
    let (status, text) = as_other(&format!("status --admin unix:{}/its.sock", folder.display()));
    assert!(text.contains("not allowed to talk to") && text.contains("run this as root"), "{text}");
    assert_eq!(status, 1, "{text}");
    drop(listener);
}

#[test]
fn seeds_that_are_none_are_refused_with_what_to_write() {
    let folder = folder();
    for (seed, remedy) in [
        ("ftp://example.com/x", "write s3://BUCKET/PREFIX, file:///DIR or HOST:PORT"),
        ("http://minio:9000/bucket", "s3://BUCKET/PREFIX?endpoint=http://HOST"),
        ("10.0.0.1", "write 10.0.0.1:7377"),
        ("lb.example.com", "the gossip port is missing, as in HOST:7377"),
        ("10.0.0.1:port", "\"port\" is not a port"),
        ("s3:/bucket/x", "its slashes are missing; write s3://bucket/x"),
        ("file:/var/seeds", "its slashes are missing; write file:///var/seeds"),
        ("file://seeds", "file:///var/lib/scrimp/seeds"),
        ("s3://", "the bucket is missing"),
        ("s3://bucket?regoin=x", "did you mean region?"),
        ("s3://bucket?endpoint=minio", "write endpoint=http://HOST:PORT"),
    ] {
        let words = format!("backend --bind 127.0.0.1:0 --app web:8080 --seed {seed}");
        refused(folder.path(), &words, 78, &["--seed: ", seed, remedy]);
    }
    let words = "lb --bind 127.0.0.1:0 --seed s3://AKIAEXAMPLE:topsecret@bucket/x";
    refused(folder.path(), words, 78, &["access keys do not belong in the address"]);
    assert!(!said(folder.path(), words).1.contains("topsecret"));
    let (status, text) = end_of(scrimp().args(["lb", "--bind", "127.0.0.1:0"]).env("SCRIMP_SEED", "nonsense"));
    assert!(status == 78 && text.contains("SCRIMP_SEED: seed \"nonsense\""), "{status} {text}");
}

#[test]
fn applications_that_cannot_stand_side_by_side_are_refused() {
    let folder = folder();
    let start = "backend --bind 127.0.0.1:0";
    let apps = "--app web:8080,domain=example.com --app api:8443/https,domain=example.com";
    refused(
        folder.path(),
        &format!("{start} {apps}"),
        78,
        &["--app \"api:8443/https", "one route with different protocols (https and http)", "change domains, path or"],
    );
    let apps = "--app web:8080 --app db:5432/tcp,listen=80";
    let expected = ["db wants listen port 80 for tcp", "has it for http", "give one of them another listen port"];
    refused(folder.path(), &format!("{start} {apps}"), 78, &expected);
    refused(
        folder.path(),
        &format!("{start} --app web"),
        78,
        &["expected NAME:PORT[/PROTOCOL]", "for example web:8080"],
    );
    refused(folder.path(), &format!("{start} --app web:80,helth=/up"), 78, &["did you mean health?"]);
    refused(folder.path(), start, 78, &["nothing to offer", "--app NAME:PORT"]);
}

#[test]
fn past_a_limit_a_backend_refuses_to_start_and_says_which() {
    let folder = folder();
    let app =
        |number: usize, domains: &str| format!("[[app]]\nname = \"a{number}\"\nport = 8080\ndomains = [{domains}]\n");
    let base = "[node]\nbind = \"127.0.0.1:0\"\n";
    let apps: String = (0..257).map(|n| app(n, &format!("\"d{n}.example.com\""))).collect();
    let many = |count: usize, name: &dyn Fn(usize) -> String| {
        (0..count).map(|n| format!("\"{}\"", name(n))).collect::<Vec<_>>().join(",")
    };
    let domains = app(0, &many(1025, &|n| format!("d{n}.example.com")));
    let label = "x".repeat(60);
    let bytes = app(0, &many(400, &|n| format!("d{n}.{label}.{label}.{label}.example.com")));
    for (name, text, limit) in [
        ("apps.toml", &apps, "a node offers at most 256 applications, these are 257"),
        ("domains.toml", &domains, "a node offers at most 1024 domains, these are 1025"),
        ("bytes.toml", &bytes, "a node's offer takes at most 65536 bytes, this one takes"),
    ] {
        put(folder.path(), name, &format!("{base}{text}"));
        let expected = [name, limit, "1 mistake in the configuration"];
        refused(folder.path(), &format!("backend --config {name}"), 78, &expected);
        refused(folder.path(), &format!("check --config {name}"), 78, &expected);
    }
    let apps: String = (0..256).map(|n| app(n, &many(4, &|i| format!("d{n}-{i}.example.com")))).collect();
    put(folder.path(), "full.toml", &format!("{base}{apps}"));
    refused(folder.path(), "check --config full.toml", 0, &["right, for a backend"]);
}

#[test]
fn without_a_key_a_node_stays_on_this_machine() {
    let folder = folder();
    let remedy = ["the key is missing", "scrimp keygen >", "chmod 600", "or bind to 127.0.0.1"];
    refused(folder.path(), "lb", 78, &remedy);
    refused(folder.path(), "lb --bind 0.0.0.0:0", 78, &remedy);
    refused(folder.path(), "lb --bind 127.0.0.1:0 --advertise 192.0.2.1", 78, &["not at 192.0.2.1"]);
    let socket = folder.path().join("s.sock");
    let log = folder.path().join("log");
    let mut lb = Guard(
        scrimp()
            .args(["lb", "--bind", "127.0.0.1:0", "--admin", &format!("unix:{}", socket.display())])
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap(),
    );
    let is_ready = || said(folder.path(), &format!("healthcheck --admin unix:{}", socket.display())).0 == 0;
    eventually("it is ready without a key", is_ready);
    let text = fs::read_to_string(&log).unwrap();
    assert_eq!(count(&text, "no cluster key: gossip is readable by anybody on this machine"), 1, "{text}");
    assert!(lb.0.try_wait().unwrap().is_none());
}

struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// === what is taken ===

#[test]
fn addresses_that_are_taken_are_named_and_who_has_them_serves_on() {
    let cluster = Cluster::new();
    let lb = cluster.start("lb", "lb", "", &["--admin", "127.0.0.1:0"]);
    let told = || lb.log().lines().find_map(|line| line.split_once("status` at ").map(|(_, at)| at.trim().to_owned()));
    let admin = eventually_within(PATIENCE, "its admin address", || lb.log(), told);
    let gossip = eventually_within(
        PATIENCE,
        "its gossip address",
        || lb.log(),
        || Some(lb.log().split_once("takes gossip at ")?.1.split_once(',')?.0.to_owned()),
    );
    let (folder, key) = (cluster.folder.path(), cluster.key.display());
    refused(
        folder,
        &format!("lb --key {key} --bind {gossip} --admin unix:{}", folder.join("2.sock").display()),
        1,
        &[&format!("cannot listen for gossip at UDP {gossip}"), "is another scrimp running here?", "--bind"],
    );
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    refused(
        folder,
        &format!("lb --key {key} --bind {taken} --admin unix:{}", folder.join("2.sock").display()),
        1,
        &[&format!("cannot listen for gossip at TCP {taken}"), "--bind"],
    );
    refused(
        folder,
        &format!("lb --key {key} --bind 192.0.2.123:7377 --admin unix:{}", folder.join("2.sock").display()),
        1,
        &["192.0.2.123:7377", "this machine does not have that address", "scrimp addresses"],
    );
    let usual = format!("lb --key {key} --bind 127.0.0.1:0 --admin");
    refused(folder, &format!("{usual} {admin}"), 1, &[&admin, "is in use", "ss -ltnp", "--admin"]);
    let file = put(folder, "file", "mine");
    refused(folder, &format!("{usual} unix:{}", file.display()), 1, &["exists and is not a socket", "--admin"]);
    assert_eq!(fs::read_to_string(file).unwrap(), "mine");
    let (status, text) = said(folder, &format!("healthcheck --admin {admin}"));
    assert_eq!(status, 0, "the first goes on: {text}");
}

#[test]
fn the_admin_socket_of_a_live_node_is_not_taken_that_of_a_dead_one_is() {
    let cluster = Cluster::new();
    let mut lb = cluster.balancer("lb", "");
    lb.wait_ready();
    let socket = format!("unix:{}", lb.socket.display());
    let words = format!("lb --key {} --bind 127.0.0.1:0 --admin {socket}", cluster.key.display());
    refused(cluster.folder.path(), &words, 1, &["admin.listen: another scrimp answers at", "give this one another"]);
    assert_eq!(lb.get("/readyz").unwrap().0, 200);
    lb.kill();
    assert!(lb.socket.exists(), "killed, it left its socket");
    let _next = cluster.start("lb", "next", "", &["--admin", &socket]);
    lb.wait_ready();
}

#[test]
fn a_listen_port_that_is_taken_is_told_and_opens_when_it_is_free() {
    let cluster = Cluster::new();
    let (listen, origin) = (cluster.listen(), Origin::line("it"));
    let holder = TcpListener::bind(listen).unwrap();
    let lb = cluster.balancer("lb", "");
    let _backend = cluster.backend("a", &[&tcp_spec("db", &origin, listen)]);
    let port = listen.port();
    let taken = format!("port {port} is taken at {}", listen.ip());
    wait_problem(&lb, &[&taken, &format!("ss -ltnp 'sport = :{port}'"), "another listen port"]);
    let (status, text) = ask(&lb, "status");
    assert!(status == 0 && text.contains(&format!("port {port} is taken")), "{text}");
    drop(holder);
    lb.wait_ready_backends("db", 1);
    eventually("it opens by itself", || receive(listen).is_ok_and(|text| text == "it\n"));
    lb.wait_json("/v1/status", "no problem left", |status| status["problems"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn p_domain_steal_who_has_a_port_or_a_route_first_keeps_it_and_the_other_is_told_why() {
    let cluster = Cluster::new();
    let (port, route) = (cluster.listen(), cluster.listen());
    let (db, web) = (Origin::line("db"), Origin::http("web"));
    let lb = cluster.balancer("lb", "");
    let mut first = cluster.backend(
        "first",
        &[&tcp_spec("db", &db, port), &format!("web:{},listen={},domain=example.com", web.port(), route.port())],
    );
    lb.wait_ready_backends("db", 1);
    lb.wait_ready_backends("web", 1);
    // Smaller names: what came first counts, not the alphabet.
    let late = Origin::http("late");
    let _second = cluster.backend(
        "second",
        &[
            &format!("aaa:{},listen={}", late.port(), port.port()),
            &format!("api:{}/https,listen={},domain=example.com", late.port(), route.port()),
        ],
    );
    wait_problem(
        &lb,
        &[
            &format!("application aaa of second is not served in full: port {} is already served", port.port()),
            "application api of second is not served in full: ",
            "belongs to application web",
            "give one of the two applications another listen port, domain or path",
        ],
    );
    let status = lb.json("/v1/status");
    let refused: Vec<_> =
        status["refused"].as_array().unwrap().iter().map(|one| one["app"].as_str().unwrap()).collect();
    assert_eq!(refused, ["aaa", "api"]);
    assert_eq!(lb.metric("scrimp_refused_offers"), Some(2.0));
    let apps = lb.json("/v1/apps");
    let aaa = apps["apps"].as_array().unwrap().iter().find(|app| app["name"] == "aaa").unwrap();
    assert!(aaa["backends"][0]["reason"].as_str().unwrap().contains("already served"), "{aaa}");
    for _ in 0..4 {
        assert_eq!(receive(port).unwrap(), "db\n");
        assert_eq!(http_get(route, "example.com", "/").unwrap(), (200, "web\n".to_owned()));
    }
    // When the first goes, the other gets what it wanted.
    assert!(first.end().success());
    eventually("the second has the port", || {
        http_get(port, "x", "/").is_ok_and(|answer| answer == (200, "late\n".into()))
    });
}

#[test]
fn what_a_balancer_does_not_allow_is_told() {
    let cluster = Cluster::new();
    let origin = Origin::http("a");
    let listen = cluster.listen();
    let lb = cluster.balancer("lb", "allow = [{ domains = [\"*.example.com\"] }]\n");
    let port = listen.port();
    let _backend = cluster.backend(
        "a",
        &[
            &format!("good:{},listen={port},domain=www.example.com", origin.port()),
            &format!("evil:{},listen={port},domain=example.org", origin.port()),
            &format!("low:{}/tcp,listen=22", origin.port()),
        ],
    );
    wait_problem(
        &lb,
        &[
            &format!(
                "application evil of a is not served in full: lb.allow does not let backends claim example.org on port {port}"
            ),
            "application low of a is not served in full: lb.allow does not let backends claim port 22",
            "allow it on this balancer",
        ],
    );
    eventually("the rest is served", || {
        http_get(listen, "www.example.com", "/").is_ok_and(|(status, _)| status == 200)
    });
    assert_eq!(http_get(listen, "example.org", "/").unwrap().0, 404);
}

// === generate mode ===

fn generate(folder: &Path, more: &str) -> String {
    format!("[lb]\nmode = \"generate\"\n[lb.generate]\ntarget = \"{}\"\n{more}", folder.join("out.conf").display())
}

#[test]
fn a_template_that_does_not_parse_is_a_wrong_configuration() {
    let folder = folder();
    put(folder.path(), "t.tera", "upstream x {\n{% if apps %}\n");
    put(
        folder.path(),
        "g.toml",
        &generate(folder.path(), "template = \"t.tera\"\ncheck = [\"true\"]\nreload = [\"true\"]\n"),
    );
    for command in ["check", "lb"] {
        let words = format!("{command} --bind 127.0.0.1:0 --config g.toml");
        refused(folder.path(), &words, 78, &["t.tera, line 3: ", "nginx.conf.tera lists what a template can use"]);
    }
    fs::remove_file(folder.path().join("t.tera")).unwrap();
    let expected = ["g.toml:5:12: lb.generate.template: cannot read", "No such file", "check the path"];
    refused(folder.path(), "lb --bind 127.0.0.1:0 --config g.toml", 78, &expected);
    assert!(!folder.path().join("out.conf").exists());
}

#[test]
fn where_nginx_is_missing_the_node_says_what_to_install_and_goes_on() {
    let mut cluster = Cluster::new();
    cluster.env.push(("PATH".to_owned(), "/nonexistent".to_owned()));
    let lb = cluster.start("lb", "lb", &generate(cluster.folder.path(), ""), &[]);
    lb.wait_ready();
    wait_problem(
        &lb,
        &["the newest state is not in use in", "out.conf", "nginx is not there", "apt-get install nginx"],
    );
    let config = lb.config.display();
    let words = format!("check --bind 127.0.0.1:0 --config {config}");
    let (status, text) = end_of(scrimp().args(words.split_whitespace()).env("PATH", "/nonexistent"));
    assert!(status == 78 && text.contains("lb.generate: nginx is not there"), "{status} {text}");
    assert!(!cluster.path("out.conf").exists());
}

#[test]
fn when_the_check_fails_the_last_good_file_stands() {
    let cluster = Cluster::new();
    let (origin, listen) = (Origin::http("a"), cluster.listen());
    let allow = put(cluster.folder.path(), "allow", "");
    let check =
        format!("test -e {} || {{ echo 'directive is not allowed here in x.conf:3' >&2; exit 1; }}", allow.display());
    let more = format!("check = [\"sh\", \"-c\", \"{check}\"]\nreload = [\"true\"]\n");
    let lb = cluster.start("lb", "lb", &generate(cluster.folder.path(), &more), &[]);
    let target = cluster.path("out.conf");
    // It stands for a moment before it is checked: the report counts.
    lb.wait_json("/v1/status", "the first file is in use", |status| status["generate"]["ok"] == true);
    let first = fs::read(&target).unwrap();
    fs::remove_file(&allow).unwrap();
    let _backend = cluster.backend("a", &[&format!("web:{},listen={}", origin.port(), listen.port())]);
    wait_problem(&lb, &["the last good file stands", "failed (exit status: 1)", "not allowed here in x.conf:3"]);
    assert_eq!(fs::read(&target).unwrap(), first, "byte for byte");
    assert_eq!(lb.get("/readyz").unwrap().0, 200);
    fs::write(&allow, "").unwrap();
    eventually("it is tried again by itself", || fs::read_to_string(&target).is_ok_and(|text| text.contains("web")));
    lb.wait_json("/v1/status", "up to date", |status| status["generate"]["ok"] == true);
}

// === reload ===

#[test]
fn a_wrong_configuration_is_not_taken_over_while_running() {
    let cluster = Cluster::new();
    let (listen, origin) = (cluster.listen(), Origin::line("it"));
    let lb = cluster.balancer("lb", "");
    let _backend = cluster.backend("a", &[&tcp_spec("db", &origin, listen)]);
    lb.wait_ready_backends("db", 1);
    let right = fs::read_to_string(&lb.config).unwrap();
    let refusal = "the configuration was not taken over, everything stays as it was: ";
    for (number, wrong) in ["[lb\n", "[lb]\nbnd = [\"127.0.0.1\"]\nworkers = -1\n"].into_iter().enumerate() {
        fs::write(&lb.config, wrong).unwrap();
        lb.signal(Signal::HUP);
        eventually("the log tells", || count(&lb.log(), refusal) == 2 * number + 1);
        let (status, text) = ask(&lb, "reload");
        assert_eq!(status, 1, "{text}");
        let place = format!("{}:", lb.config.display());
        assert!(text.contains(refusal.trim_end()) && text.contains(&place), "{text}");
        assert_eq!(receive(listen).unwrap(), "it\n");
    }
    assert!(lb.log().contains("did you mean bind?; "), "several mistakes stand in one line:\n{}", lb.log());
    assert!(!lb.log().contains("\\n"), "{}", lb.log());
    fs::remove_file(&lb.config).unwrap();
    assert_eq!(ask(&lb, "reload").0, 1, "a file that is gone");
    fs::write(&lb.config, right).unwrap();
    let (status, text) = ask(&lb, "reload");
    assert!(status == 0 && text.contains("in use"), "{status} {text}");
}

#[test]
fn a_backend_keeps_its_offer_when_the_new_one_is_wrong() {
    let cluster = Cluster::new();
    let (listen, origin) = (cluster.listen(), Origin::line("it"));
    let lb = cluster.balancer("lb", "");
    let app = |name: &str, port: u16| {
        let listen = listen.port();
        format!("[[app]]\nname = \"{name}\"\nprotocol = \"tcp\"\nport = {port}\nlisten = {listen}\n")
    };
    let right = app("db", origin.port());
    let backend = cluster.start("backend", "a", &right, &[]);
    lb.wait_ready_backends("db", 1);
    let many: String =
        (0..257).map(|n| format!("[[app]]\nname = \"a{n}\"\nport = 1\ndomains = [\"d{n}.x\"]\n")).collect();
    for (wrong, reason) in [
        (many, "at most 256 applications"),
        (String::new(), "nothing to offer"),
        (format!("{right}{}", app("other", 1)), "one route with db"),
    ] {
        fs::write(&backend.config, wrong).unwrap();
        let (status, text) = ask(&backend, "reload");
        assert!(status == 1 && text.contains(reason) && text.contains("stays as it was"), "{reason}: {status} {text}");
        assert_eq!(receive(listen).unwrap(), "it\n");
    }
    assert_eq!(backend.json("/v1/status")["local_apps"].as_array().map(Vec::len), Some(1));
}

// === strangers ===

/// Two nodes that cannot read each other: each says so once a minute at most, and the joiner's status too.
fn strangers(cluster: &Cluster, lb: &Node, backend: &mut Node) {
    let both = || format!("balancer:\n{}\nbackend:\n{}", lb.log(), backend.log());
    let dropped = |reason| metric_sum(lb, &format!("scrimp_gossip_dropped_total{{reason=\"{reason}\"}}"));
    let drops = || dropped("unauthenticated") + dropped("unknown-key");
    // The eighth announcement comes after some 16 s, and with it the second question over TCP.
    eventually_within(Duration::from_secs(60), "eight tries", both, || (drops() >= 8).then_some(()));
    let remedy = "the same cluster.key file and the same cluster.name";
    let text = problems(backend);
    assert!(text.contains("this node is alone: no seed let it in"), "{text}");
    assert!(text.contains("its cluster key or its cluster name is not ours") && text.contains(remedy), "{text}");
    assert_eq!(text.matches(&gossip_address(lb)).count(), 1, "the address once: {text}");
    let (_, shown) = ask(backend, "status");
    assert!(shown.contains("this node is alone"), "{shown}");
    assert_eq!(lb.alive(), ["lb"]);
    assert!(backend.end().success());
    let (theirs, ours) = (lb.log(), backend.log());
    let dropped = "is not sealed with our cluster key for our cluster name: dropped";
    assert_eq!(count(&theirs, dropped), 1, "{theirs}");
    assert_eq!(count(&theirs, remedy), 1, "{theirs}");
    assert_eq!(count(&ours, "does not let this node in: its cluster key or its cluster name"), 1, "{ours}");
    assert_eq!(count(&ours, "WARN"), 1, "{ours}");
    no_secret(&cluster.key, &[theirs, ours, text, shown]);
}

#[test]
fn another_key_is_told_on_both_sides_once_a_minute() {
    let cluster = Cluster::new();
    let lb = cluster.start("lb", "lb", "", &["--log", "trace"]);
    lb.wait_ready();
    let other = write_key(cluster.folder.path(), "other.key");
    let arguments = ["--key", other.to_str().unwrap(), "--app", "web:1"];
    let mut backend = cluster.start("backend", "a", "", &arguments);
    strangers(&cluster, &lb, &mut backend);
    no_secret(&other, &[lb.log(), backend.log()]);
}

#[test]
fn another_cluster_name_is_told_on_both_sides_once_a_minute() {
    let cluster = Cluster::new();
    let lb = cluster.start("lb", "lb", "", &[]);
    let seed = gossip_address(&lb);
    let mut backend = cluster.start("backend", "a", "", &["--cluster", "other", "--seed", &seed, "--app", "web:1"]);
    strangers(&cluster, &lb, &mut backend);
}

#[test]
fn no_log_holds_the_key_whatever_is_logged() {
    let cluster = Cluster::new();
    let (listen, origin) = (cluster.listen(), Origin::line("it"));
    let lb = cluster.start("lb", "lb", &format!("[lb]\nbind = [\"{}\"]\n", cluster.ip), &["--log", "trace"]);
    let app = tcp_spec("db", &origin, listen);
    let mut backend = cluster.start("backend", "a", "", &["--log", "trace", "--log-format", "json", "--app", &app]);
    lb.wait_ready_backends("db", 1);
    let answers = ["/v1/status", "/v1/members", "/v1/apps", "/metrics"].map(|path| lb.get(path).unwrap().1);
    let seeds = said(cluster.folder.path(), &format!("seeds --seed {}", cluster.seed)).1;
    let check = said(
        cluster.folder.path(),
        &format!("check --key {} --seed {} --role lb", cluster.key.display(), cluster.seed),
    );
    assert_eq!(check.0, 0, "{}", check.1);
    assert!(backend.end().success());
    let mut all = vec![lb.log(), backend.log(), seeds, check.1];
    all.extend(answers);
    no_secret(&cluster.key, &all);
    let broken: String = fs::read_to_string(&cluster.key).unwrap().trim().chars().take(63).collect();
    chmod(&put(cluster.folder.path(), "broken.key", &broken), 0o600);
    let (status, text) = said(cluster.folder.path(), "lb --key broken.key --bind 127.0.0.1:0");
    assert!(status == 78 && text.contains("63 characters"), "{text}");
    no_secret(&cluster.key, &[text]);
}

/// Bytes from a generator with a fixed seed: a failure can be had again.
struct Noise(fastrand::Rng);

impl Noise {
    /// One in four begins as an envelope does, so that some get as far as being opened.
    fn datagram(&mut self) -> Vec<u8> {
        let length = self.0.usize(..1400);
        let mut bytes: Vec<u8> = (0..length).map(|_| self.0.u8(..)).collect();
        if let (Some(first), 0) = (bytes.first_mut(), self.0.u8(..4)) {
            *first = 0x51;
        }
        bytes
    }
}

#[test]
fn a_hundred_thousand_random_datagrams_change_nothing() {
    const DATAGRAMS: u64 = 100_000;
    let cluster = Cluster::new();
    let (listen, origin) = (cluster.listen(), Origin::line("it"));
    let lb = cluster.balancer("lb", "");
    let backend = cluster.backend("a", &[&tcp_spec("db", &origin, listen)]);
    lb.wait_ready_backends("db", 1);
    lb.wait_alive(&["a", "lb"]);
    let gossip: SocketAddr = gossip_address(&lb).parse().unwrap();
    let (members, lines) = (lb.json("/v1/members"), lb.log().lines().count());
    let apps_before = offers(&lb);
    let clients = Clients::start(listen);

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut noise = Noise(fastrand::Rng::with_seed(7));
    let drops = || metric_sum(&lb, "scrimp_gossip_dropped_total");
    let (before, mut resident) = (drops(), 0);
    for sent in (0..DATAGRAMS).step_by(100) {
        for _ in 0..100 {
            // The odd one is refused when the receiver's buffer is full; it is simply not sent then.
            while socket.send_to(&noise.datagram(), gossip).is_err() {}
        }
        // No more under way than its buffer holds: all of them are to be met.
        let context = || format!("{} of {} counted\n{}", drops() - before, sent + 100, lb.log());
        eventually_within(PATIENCE, "they are counted", context, || (drops() - before >= sent + 100).then_some(()));
        if sent == DATAGRAMS / 5 {
            resident = lb.resident_kib();
        }
    }
    let grown = lb.resident_kib().saturating_sub(resident);
    assert!(grown < 4 * 1024, "memory grew by {grown} KiB in the last 80,000");
    let (served, failed) = clients.end();
    assert!(served > 100 && failed == 0, "{served} served, {failed} failed");
    assert_eq!(lb.json("/v1/members"), members);
    assert_eq!(offers(&lb), apps_before);
    assert_eq!(backend.alive(), ["a", "lb"]);
    let log = lb.log();
    assert!(log.lines().count() <= lines + 2, "{log}");
    assert!(metric_sum(&lb, "scrimp_gossip_dropped_total{reason=\"malformed\"}") > DATAGRAMS / 2);
    assert!(metric_sum(&lb, "scrimp_gossip_dropped_total{reason=\"unknown-key\"}") > DATAGRAMS / 5);
    assert!(metric_sum(&lb, "scrimp_gossip_dropped_total{reason=\"unauthenticated\"}") > 0);
    // The gossip's TCP side takes noise too.
    for length in [0, 3, 4, 300, 100_000] {
        let mut stream = TcpStream::connect(gossip).unwrap();
        let bytes: Vec<u8> = (0..length).map(|_| noise.0.u8(..)).collect();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "strangers are told nothing");
    }
    assert_eq!(lb.alive(), ["a", "lb"]);
    assert!(lb.log().lines().count() <= lines + 2, "{}", lb.log());
}

/// What is offered, without the counts of requests.
fn offers(lb: &Node) -> Vec<(Value, Value)> {
    let apps = lb.json("/v1/apps");
    let apps = apps["apps"].as_array().cloned().unwrap_or_default();
    let backends = |app: &Value| {
        app["backends"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["address"].clone(), one["state"].clone()))
            .collect::<Vec<_>>()
    };
    apps.iter().flat_map(backends).collect()
}

/// A client that connects again and again.
struct Clients {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

impl Clients {
    fn start(listen: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (served, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (stopped, good, bad) = (Arc::clone(&stop), Arc::clone(&served), Arc::clone(&failed));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let is_good = receive(listen).is_ok_and(|text| text == "it\n");
                if is_good { &good } else { &bad }.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, served, failed, thread }
    }

    fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        (self.served.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

// === lives and deaths ===

#[test]
fn a_killed_backend_comes_back_at_its_address_under_its_name() {
    let cluster = Cluster::new();
    let (listen, origin) = (cluster.listen(), Origin::line("it"));
    let lb = cluster.balancer("lb", "");
    let app = tcp_spec("db", &origin, listen);
    let bind = format!("127.0.0.1:{}", node::free_port());
    let arguments = ["--bind", bind.as_str(), "--app", &app];
    let mut last = cluster.start("backend", "a", "", &arguments);
    lb.wait_ready_backends("db", 1);
    for _ in 0..3 {
        let old = lb.json("/v1/members");
        let old_id =
            old["members"].as_array().unwrap().iter().find(|member| member["name"] == "a").unwrap()["id"].clone();
        last.kill();
        last = cluster.start("backend", "a", "", &arguments);
        lb.wait_json("/v1/members", "the new run, and it alone", |members| {
            let all = members["members"].as_array().cloned().unwrap_or_default();
            let alive: Vec<_> = all.iter().filter(|one| one["name"] == "a" && one["state"] == "alive").collect();
            alive.len() == 1 && alive[0]["id"] != old_id
        });
        lb.wait_ready_backends("db", 1);
        assert_eq!(receive(listen).unwrap(), "it\n");
    }
    assert!(last.end().success());
}

#[test]
fn two_nodes_of_one_name_both_serve_and_are_told_apart() {
    let cluster = Cluster::new();
    let (listen, one, two) = (cluster.listen(), Origin::line("one"), Origin::line("two"));
    let lb = cluster.balancer("lb", "");
    let (app_one, app_two) = (tcp_spec("db", &one, listen), tcp_spec("db", &two, listen));
    let _one = cluster.start("backend", "one", "", &["--name", "same", "--app", &app_one]);
    let mut second = cluster.start("backend", "two", "", &["--name", "same", "--app", &app_two]);
    lb.wait_ready_backends("db", 2);
    let mut answers = [receive(listen).unwrap(), receive(listen).unwrap()];
    answers.sort();
    assert_eq!(answers, ["one\n", "two\n"]);
    wait_problem(&lb, &["2 nodes are named same", "give each a name of its own (node.name or --name)"]);
    assert!(second.end().success());
    assert_eq!(member_count(&lb, "same", "alive"), 1);
    eventually("nothing is wrong any more", || !problems(&lb).contains("named same"));
}

/// A script that `scrimp backend` runs; the words are its own.
fn script(cluster: &Cluster, text: &str) -> String {
    let path = put(cluster.folder.path(), "program.sh", &format!("#!/bin/sh\n{text}\n"));
    chmod(&path, 0o755);
    path.display().to_string()
}

#[test]
fn the_exit_status_of_a_program_is_passed_on() {
    let cluster = Cluster::new();
    for (text, status) in [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137)] {
        let mut backend = cluster.start("backend", "a", "", &["--app", "web:1", "--", "sh", "-c", text]);
        assert_eq!(backend.wait_end().code(), Some(status), "{text}\n{}", backend.log());
    }
    let mut backend = cluster.start("backend", "a", "", &["--app", "web:1", "--", "no-such-program-here"]);
    assert_eq!(backend.wait_end().code(), Some(127), "{}", backend.log());
    assert!(
        backend.log().contains("cannot start no-such-program-here: there is no such program; check"),
        "{}",
        backend.log()
    );
    let plain = put(cluster.folder.path(), "plain", "text").display().to_string();
    let mut backend = cluster.start("backend", "a", "", &["--app", "web:1", "--", &plain]);
    assert_eq!(backend.wait_end().code(), Some(126), "{}", backend.log());
    assert!(backend.log().contains("chmod +x"), "{}", backend.log());
}

#[test]
fn a_program_is_offered_while_it_accepts_and_drains_before_it_ends() {
    let cluster = Cluster::new();
    let listen = cluster.listen();
    let lb = cluster.balancer("lb", "");
    let port = node::free_port();
    let (go, at_term) = (cluster.path("go"), cluster.path("at-term.json"));
    // When it is told to end it asks the balancer how it sees it: what it finds is what was so at that moment.
    let program = script(
        &cluster,
        &format!(
            "trap '{scrimp} apps --json --admin unix:{socket} > {at_term}; exit 7' TERM\n\
             while ! test -e {go}; do sleep 0.02; done\n\
             {scrimp} demo-app --listen 127.0.0.1:{port} --name program & wait",
            scrimp = env!("CARGO_BIN_EXE_scrimp"),
            socket = lb.socket.display(),
            at_term = at_term.display(),
            go = go.display(),
        ),
    );
    let app = format!("web:{port},listen={}", listen.port());
    let mut backend = cluster.start("backend", "a", "", &["--app", &app, "--", &program]);
    let state = |wanted: &'static str| move |apps: &Value| apps["apps"][0]["backends"][0]["state"] == wanted;
    lb.wait_json("/v1/apps", "offered as starting", state("starting"));
    backend.wait_json("/v1/status", "it says why", |status| {
        status["problems"][0].as_str().is_some_and(|text| text.contains("application web is not ready: cannot connect"))
    });
    eventually("503 meanwhile", || http_get(listen, "x", "/").is_ok_and(|(status, _)| status == 503));
    fs::write(&go, "").unwrap();
    lb.wait_ready_backends("web", 1);
    assert_eq!(http_get(listen, "x", "/").unwrap().0, 200);
    assert_eq!(backend.end().code(), Some(7), "{}", backend.log());
    let seen: Value = serde_json::from_str(&fs::read_to_string(&at_term).unwrap()).unwrap();
    assert!(state("draining")(&seen), "{seen:#}");
    assert_eq!(member_count(&lb, "a", "left"), 1);
}

/// A process that still runs; one that waits for its parent alone does not.
fn runs(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_second_signal_ends_at_once() {
    let cluster = Cluster::new();
    let pid = cluster.path("pid");
    let program = script(&cluster, &format!("trap '' TERM\necho $$ > {}\nwhile :; do sleep 0.05; done", pid.display()));
    let mut backend = cluster.start("backend", "a", "", &["--app", "web:1", "--", &program]);
    backend.wait_ready();
    let told = || fs::read_to_string(&pid).ok().filter(|text| text.ends_with('\n')).map(|text| text.trim().to_owned());
    let pid = eventually_within(PATIENCE, "the program runs", String::new, told);
    let began = Instant::now();
    backend.signal(Signal::TERM);
    eventually("it drains", || backend.get("/readyz").is_some_and(|(status, _)| status == 503));
    backend.signal(Signal::TERM);
    assert_eq!(backend.wait_end().code(), Some(1), "{}", backend.log());
    assert!(began.elapsed() < Duration::from_secs(20), "30 s are what the program would have got");
    assert_eq!(count(&backend.log(), "told to end twice: ending at once"), 1);
    eventually("its program went with it", || !runs(&pid));

    // A balancer with an open connection would wait for it.
    let (listen, origin) = (cluster.listen(), Origin::serve(|mut stream| drop(stream.read(&mut [0]))));
    let mut lb = cluster.balancer("lb", "");
    let _other = cluster.backend("b", &[&tcp_spec("db", &origin, listen)]);
    lb.wait_ready_backends("db", 1);
    let _open = TcpStream::connect(listen).unwrap();
    eventually("it is open", || lb.metric("scrimp_connections_open").is_some_and(|open| open >= 1.0));
    let began = Instant::now();
    lb.signal(Signal::TERM);
    eventually("it drains", || lb.get("/readyz").is_some_and(|(status, _)| status == 503));
    lb.signal(Signal::INT);
    assert_eq!(lb.wait_end().code(), Some(1), "{}", lb.log());
    assert!(began.elapsed() < Duration::from_secs(20));
}
