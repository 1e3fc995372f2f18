//! Every command of the real program, used as a person would.

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
mod node;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use node::{Cluster, Node, Origin, PATIENCE, eventually, eventually_within, http_get, run, scrimp, write_key};
use rustix::process::Signal;
use serde_json::Value;

/// Runs `scrimp` with these words, separated by spaces: its exit status and all it said.
fn said(words: &str) -> (i32, String) {
    let (status, text) = run(&words.split_whitespace().collect::<Vec<_>>());
    (status.code().unwrap_or(-1), text)
}

/// The same about a node that runs.
fn ask(node: &Node, command: &str) -> (i32, String) {
    said(&format!("{command} --admin unix:{}", node.socket.display()))
}

/// What it prints when it ends well.
#[track_caller]
fn answer(node: &Node, command: &str) -> String {
    let (status, text) = ask(node, command);
    assert_eq!(status, 0, "scrimp {command}\n{text}");
    text
}

#[track_caller]
fn json(node: &Node, command: &str) -> Value {
    let text = answer(node, command);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("scrimp {command}: {error}\n{text}"))
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().map(String::as_str).collect()
}

/// Lines of a table: its words, line by line.
fn rows(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

/// A balancer, and a backend with one HTTP and one TCP application.
struct World {
    cluster: Cluster,
    lb: Node,
    backend: Node,
    web: SocketAddr,
    db: SocketAddr,
    origins: [Origin; 2],
}

impl World {
    fn new() -> Self {
        let cluster = Cluster::new();
        let (web, db) = (cluster.listen(), cluster.listen());
        let origins = [Origin::http("web"), Origin::line("db")];
        let lb = cluster.balancer("lb", "");
        let apps = [
            format!(
                "web:{},listen={},domain=example.com,domain=*.example.com,path=/shop,weight=200",
                origins[0].port(),
                web.port()
            ),
            format!("db:{}/tcp,listen={}", origins[1].port(), db.port()),
        ];
        let backend = cluster.backend("a", &apps.each_ref().map(String::as_str));
        lb.wait_ready_backends("web", 1);
        lb.wait_ready_backends("db", 1);
        lb.wait_alive(&["a", "lb"]);
        backend.wait_alive(&["a", "lb"]);
        Self { cluster, lb, backend, web, db, origins }
    }
}

// === asking the node ===

#[test]
fn members_as_a_table_and_as_json() {
    let world = World::new();
    let text = answer(&world.lb, "members");
    let table = rows(&text);
    assert_eq!(table[0], ["NODE", "ROLE", "ADDRESS", "STATE", "SINCE", "APPS"]);
    assert_eq!(&table[1][..2], ["a", "backend"]);
    assert_eq!((table[1][3], &table[1][table[1].len() - 2..]), ("alive", &["db,", "web"][..]));
    assert_eq!((&table[2][..2], table[2].last()), (&["lb", "balancer"][..], Some(&"-")));

    for node in [&world.lb, &world.backend] {
        let view = json(node, "members --json");
        assert_eq!(keys(&view), BTreeSet::from(["cluster", "members"]));
        assert_eq!(view["cluster"], "default");
        let members = view["members"].as_array().unwrap();
        assert_eq!(members.len(), 2);
        for (member, (name, role)) in members.iter().zip([("a", "backend"), ("lb", "balancer")]) {
            assert_eq!(
                keys(member),
                BTreeSet::from(["id", "name", "role", "address", "state", "reach", "since", "key", "apps"])
            );
            assert_eq!(
                (&member["name"], &member["role"], &member["state"]),
                (&name.into(), &role.into(), &"alive".into())
            );
            assert_eq!(member["id"].as_str().unwrap().len(), 16);
            assert!(member["address"].as_str().unwrap().parse::<SocketAddr>().unwrap().ip().is_loopback());
            humantime::parse_rfc3339(member["since"].as_str().unwrap()).unwrap();
        }
        assert_eq!(members[0]["apps"], serde_json::json!(["db", "web"]));
        assert_eq!(members[1]["apps"], serde_json::json!([]));
    }
}

#[test]
fn apps_as_a_table_and_as_json() {
    let world = World::new();
    for _ in 0..3 {
        assert_eq!(http_get(world.web, "www.example.com", "/shop/x").unwrap().0, 200);
    }
    let text = answer(&world.lb, "apps");
    let (web, db) = (world.web.port(), world.db.port());
    assert!(text.contains(&format!("db: tcp on port {db}\n")), "{text}");
    assert!(text.contains(&format!("web: http on port {web} for example.com, *.example.com, path /shop\n")), "{text}");
    let table = rows(&text);
    assert!(table.contains(&vec!["NODE", "ADDRESS", "STATE", "WEIGHT", "ACTIVE", "REQUESTS", "FAILURES"]), "{text}");
    let at = format!("127.0.0.1:{}", world.origins[0].port());
    assert!(table.iter().any(|row| row.starts_with(&["a", &at, "ready", "200"]) && row[5] == "3"), "{text}");

    let view = json(&world.lb, "apps --json");
    assert_eq!(keys(&view), BTreeSet::from(["apps"]));
    let apps = view["apps"].as_array().unwrap();
    assert_eq!(apps.len(), 2);
    for app in apps {
        assert_eq!(keys(app), BTreeSet::from(["name", "protocol", "listen", "domains", "path", "backends"]));
        let backend = &app["backends"][0];
        let expected = ["node", "address", "state", "reason", "weight", "policy", "active", "requests", "failures"];
        assert_eq!(keys(backend), BTreeSet::from(expected));
        assert_eq!(
            (&backend["node"], &backend["state"], &backend["reason"]),
            (&"a".into(), &"ready".into(), &Value::Null)
        );
    }
    assert_eq!((&apps[0]["name"], &apps[0]["protocol"], &apps[0]["listen"]), (&"db".into(), &"tcp".into(), &db.into()));
    assert_eq!((&apps[0]["domains"], &apps[0]["path"]), (&serde_json::json!([]), &"/".into()));
    assert_eq!(apps[1]["domains"], serde_json::json!(["example.com", "*.example.com"]));
    assert_eq!((&apps[1]["path"], &apps[1]["listen"]), (&"/shop".into(), &web.into()));
    let backend = &apps[1]["backends"][0];
    assert_eq!((&backend["weight"], &backend["requests"], &backend["failures"]), (&200.into(), &3.into(), &0.into()));
    assert_eq!(backend["address"], at);
}

#[test]
fn status_of_both_roles() {
    let mut world = World::new();
    let text = answer(&world.lb, "status");
    assert!(text.starts_with("lb: balancer of cluster default, ready\n"), "{text}");
    assert!(text.contains("members  1 balancer, 1 backend\n"), "{text}");
    assert!(text.contains(&format!("{} http", world.web.port())), "{text}");
    assert!(text.contains(&world.cluster.seed) && text.ends_with("no problems\n"), "{text}");
    let text = answer(&world.backend, "status");
    assert!(text.starts_with("a: backend of cluster default, ready\n"), "{text}");
    assert!(text.contains(&format!("db on port {}, ready", world.origins[1].port())), "{text}");
    assert!(text.ends_with("no problems\n"), "{text}");

    let view = json(&world.lb, "status --json");
    assert_eq!(
        (&view["node"]["name"], &view["node"]["role"], &view["state"]),
        (&"lb".into(), &"balancer".into(), &"ready".into())
    );
    assert_eq!((&view["members"]["backends"], &view["routes"]), (&1.into(), &3.into()));
    assert_eq!(view["problems"], serde_json::json!([]));
    assert_eq!(view["alone"]["alone"], false);

    world.lb.kill();
    let text = || answer(&world.backend, "status");
    let context = || format!("{}\n{}", text(), world.backend.log());
    eventually_within(PATIENCE, "the backend is alone and says so", context, || {
        text().contains("this node is alone").then_some(())
    });
}

#[test]
fn where_no_node_runs_each_command_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = format!("unix:{}", folder.path().join("no.sock").display());
    for command in ["status", "status --json", "members", "apps", "reload", "healthcheck", "render"] {
        let (status, text) = said(&format!("{command} --admin {nowhere}"));
        assert_eq!(status, 1, "scrimp {command}\n{text}");
        let expected = format!("scrimp: nothing answers at {nowhere}: is scrimp running here?");
        assert!(text.starts_with(&expected) && text.contains("name it with --admin"), "scrimp {command}\n{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let (status, text) = said(&format!("status --admin 127.0.0.1:{}", node::free_port()));
    assert!(status == 1 && text.contains("nothing answers at 127.0.0.1:"), "{status} {text}");
    // Somebody else's server.
    let other = Origin::http("something else");
    let (status, text) = said(&format!("status --admin 127.0.0.1:{}", other.port()));
    assert!(status == 1 && text.contains("answers, but not as scrimp does"), "{status} {text}");
    let (status, text) = said("status --admin somewhere");
    assert!(status == 78 && text.contains("expected unix:/PATH or IP:PORT"), "{status} {text}");
}

#[test]
fn the_admin_api_over_tcp_and_from_the_file_and_the_environment() {
    let cluster = Cluster::new();
    let lb = cluster.start("lb", "lb", "", &["--admin", "127.0.0.1:0"]);
    let told = || lb.log().lines().find_map(|line| line.split_once("status` at ").map(|(_, at)| at.trim().to_owned()));
    let admin = eventually_within(PATIENCE, "its admin address", || lb.log(), told);
    for command in ["status", "members", "apps", "healthcheck", "reload"] {
        let (status, text) = said(&format!("{command} --admin {admin}"));
        assert_eq!(status, 0, "scrimp {command}\n{text}");
    }
    let file = cluster.path("client.toml");
    // What else is wrong in the file is no matter for asking.
    fs::write(&file, format!("[admin]\nlisten = [\"{admin}\"]\n[lb]\nbnd = 1\n")).unwrap();
    let (status, text) = said(&format!("status --config {}", file.display()));
    assert!(status == 0 && text.contains("lb: balancer"), "{text}");
    let output = scrimp().arg("status").env("SCRIMP_ADMIN", &admin).output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("lb: balancer"));
    // A page of a browser cannot change anything.
    let answer = http(&admin, "POST /v1/reload HTTP/1.1\r\nhost: evil.example\r\n");
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let answer = http(&admin, "GET /v1/status HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example\r\n");
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(http(&admin, "GET /v1/nothing HTTP/1.1\r\nhost: localhost\r\n").starts_with("HTTP/1.1 404"));
}

fn http(address: &str, head: &str) -> String {
    use std::io::Read as _;
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{head}connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn healthcheck_is_0_while_ready_and_1_while_draining() {
    let world = World::new();
    for node in [&world.lb, &world.backend] {
        let (status, text) = ask(node, "healthcheck");
        assert_eq!((status, text.as_str()), (0, ""));
    }
    // An open connection keeps the balancer draining.
    let origin = Origin::serve(|mut stream| drop(std::io::Read::read(&mut stream, &mut [0])));
    let listen = world.cluster.listen();
    let _holder = world.cluster.backend("b", &[&format!("hold:{}/tcp,listen={}", origin.port(), listen.port())]);
    world.lb.wait_ready_backends("hold", 1);
    let _open = std::net::TcpStream::connect(listen).unwrap();
    eventually("it is open", || world.lb.metric("scrimp_connections_open").is_some_and(|open| open >= 1.0));
    world.lb.signal(Signal::TERM);
    eventually("not ready", || {
        let (status, text) = ask(&world.lb, "healthcheck");
        status == 1 && text == "scrimp: the node is not ready: draining\n"
    });
}

#[test]
fn reload_says_what_it_did_and_what_waits_for_a_restart() {
    let world = World::new();
    let text = answer(&world.lb, "reload");
    assert!(text.contains("in use") && !text.contains("restart"), "{text}");
    assert!(answer(&world.backend, "reload").contains("the same 2 applications offered"));
    let changed = format!(
        "[lb]\nbind = [\"{}\", \"127.0.0.1\"]\npolicy = \"random\"\n[cluster]\nname = \"other\"\n",
        world.cluster.ip
    );
    fs::write(&world.lb.config, changed).unwrap();
    let text = answer(&world.lb, "reload");
    assert!(text.contains("only a restart applies: cluster.name, lb.bind"), "{text}");
    assert!(world.lb.log().contains("configuration read again: rules and limits are in use"), "{}", world.lb.log());
    assert_eq!(world.lb.alive(), ["a", "lb"]);
}

// === seeds and addresses ===

#[test]
fn seeds_lists_what_is_there_and_prunes_what_is_dead() {
    let cluster = Cluster::new();
    let words = format!("seeds --seed {}", cluster.seed);
    let (status, text) = said(&words);
    assert_eq!((status, text), (0, format!("{}: empty\n", cluster.seed)));
    let lb = cluster.balancer("lb", "");
    lb.wait_ready();
    let folder = Path::new(cluster.seed.strip_prefix("file://").unwrap()).join("clusters/default/seeds");
    let status = lb.wait_json("/v1/status", "its address", |status| status["node"]["address"].is_string());
    let address = status["node"]["address"].as_str().unwrap();
    eventually("it has written itself", || folder.join("lb.json").exists());
    let old = "{\"version\":1,\"node\":\"old\",\"addresses\":[\"127.0.0.1:9\"],\"epoch\":1,\"written_at\":\"2020-01-01T00:00:00Z\"}";
    fs::write(folder.join("old.json"), old).unwrap();
    fs::write(folder.join("junk.json"), "not json").unwrap();
    let (status, text) = said(&words);
    assert_eq!(status, 0, "{text}");
    let line = |name: &str| text.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_default();
    assert!(line("lb").contains(address) && line("lb").contains("ago") && !line("lb").contains("dead"), "{text}");
    assert!(
        line("old").contains("127.0.0.1:9") && line("old").contains("dead? `scrimp seeds --prune` removes it"),
        "{text}"
    );
    assert!(line("junk").contains("passed over"), "{text}");
    let (status, text) = said(&format!("{words} --prune"));
    assert!(status == 0 && text.contains("removed old") && !text.contains("removed lb"), "{text}");
    assert!(!folder.join("old.json").exists() && folder.join("lb.json").exists());

    let (status, text) = said("seeds");
    assert!(status == 1 && text.contains("no seed store is configured: use --seed URL"), "{text}");
    let file = cluster.path("file");
    fs::write(&file, "").unwrap();
    let (status, text) = said(&format!("seeds --seed file://{}", file.display()));
    assert_eq!(status, 1, "{text}");
    assert!(text.contains(&file.display().to_string()), "{text}");
}

#[test]
fn addresses_shows_what_auto_would_take() {
    let (status, text) = said("addresses");
    assert_eq!(status, 0, "{text}");
    assert!(rows(&text).iter().any(|row| row.get(1) == Some(&"127.0.0.1")), "{text}");
    assert!(text.contains("advertise = \"auto\" takes ") || text.contains("advertise = \"auto\" finds none"), "{text}");
}

#[test]
fn keygen_prints_a_key_that_a_cluster_runs_with() {
    let keys: BTreeSet<String> = (0..3).map(|_| said("keygen").1).collect();
    assert_eq!(keys.len(), 3);
    for key in &keys {
        assert!(key.len() == 65 && key.trim().bytes().all(|b| b.is_ascii_hexdigit()), "{key}");
    }
    let mut cluster = Cluster::new();
    // As the help says it.
    let made = Command::new("sh")
        .arg("-c")
        .arg(format!("umask 077; {} keygen > new.key", env!("CARGO_BIN_EXE_scrimp")))
        .current_dir(cluster.folder.path())
        .status()
        .unwrap();
    assert!(made.success());
    cluster.key = cluster.path("new.key");
    let lb = cluster.balancer("lb", "");
    let _backend = cluster.backend("a", &["web:1"]);
    lb.wait_alive(&["a", "lb"]);
}

// === configuration ===

#[test]
fn check_says_what_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let key = write_key(folder.path(), "cluster.key");
    let file = folder.path().join("scrimp.toml");
    fs::write(
        &file,
        "[node]\nname = \"web-1\"\n[cluster]\nname = \"shop\"\nkey = \"cluster.key\"\nseeds = [\"10.0.0.1:7377\"]\n\
         [[app]]\nname = \"web\"\nport = 8080\n",
    )
    .unwrap();
    let (status, text) = said(&format!("check --config {}", file.display()));
    assert_eq!(status, 0, "{text}");
    assert!(text.contains(&format!("read: {}", file.display())), "{text}");
    assert!(text.contains("right, for a backend web-1 of cluster shop; seeds: 10.0.0.1:7377"), "{text}");
    assert!(text.contains("application web: http on port 8080, served on port 80"), "{text}");
    let (status, text) = said(&format!("check --config {} --role lb", file.display()));
    assert!(status == 0 && text.contains("for a balancer web-1"), "{text}");
    // Flag over environment over file.
    let check = |name: Option<&str>| {
        let mut command = scrimp();
        command.args(["check", "--config"]).arg(&file).env("SCRIMP_NAME", "env-1");
        command.args(name.into_iter().flat_map(|name| ["--name", name]));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    assert!(check(None).contains("backend env-1 of"));
    assert!(check(Some("flag-1")).contains("backend flag-1 of"));
    let text = fs::read_to_string(&key).unwrap();
    assert!(!check(None).contains(&text[..16]));
}

/// Beside each wrong configuration stands what must be said of it, one fragment a line.
#[test]
fn check_tells_every_mistake() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config/invalid");
    let mut tried = 0;
    for entry in fs::read_dir(fixtures).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // Keys need files beside them, with modes that a checkout does not keep.
        if name.ends_with(".expected") || name.starts_with("key-") || name.starts_with("no-key") {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = format!("scrimp.{}", path.extension().unwrap().to_str().unwrap());
        fs::copy(&path, folder.path().join(&file)).unwrap();
        let output = scrimp().current_dir(folder.path()).args(["check", "--config", &file]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{name}\n{text}");
        let expected = fs::read_to_string(format!("{}.expected", path.display())).unwrap();
        // The last line counts them; of seeds this program has its own to say.
        let fragments: Vec<&str> = expected
            .lines()
            .filter(|line| !line.ends_with("in the configuration") && !line.contains("is no seed"))
            .collect();
        for fragment in &fragments {
            assert!(text.contains(fragment), "{name}: {fragment:?} is not in:\n{text}");
        }
        assert!(text.lines().last().unwrap().ends_with("in the configuration"), "{name}\n{text}");
        tried += fragments.len();
    }
    assert!(tried > 80, "{tried}");
}

#[test]
fn render_prints_the_same_from_the_node_and_from_its_apps() {
    let cluster = Cluster::new();
    let (web, listen) = (Origin::http("web"), cluster.listen());
    let lb = cluster.balancer("lb", "");
    let _backend = cluster.backend("a", &[&format!("web:{},listen={},domain=example.com", web.port(), listen.port())]);
    lb.wait_ready_backends("web", 1);
    let admin = format!("unix:{}", lb.socket.display());
    let live = answer(&lb, "render");
    assert!(live.contains(&format!("server 127.0.0.1:{}", web.port())), "{live}");
    assert!(live.contains(&format!("listen {}", listen.port())) && live.contains("server_name example.com"), "{live}");
    let roster = cluster.path("roster.json");
    fs::write(&roster, answer(&lb, "apps --json")).unwrap();
    let (status, from_file) = said(&format!("render --roster {}", roster.display()));
    assert_eq!((status, &from_file), (0, &live));
    // A configuration of its own: another template, and nothing is written.
    let target = cluster.path("out.conf");
    let template = cluster.path("mine.tera");
    fs::write(
        &template,
        "{% for pool in pools %}{% for one in pool.backends %}{{ pool.app }} {{ one.address }}{% endfor %}{% endfor %}",
    )
    .unwrap();
    let config = cluster.path("generate.toml");
    let text = format!(
        "[lb]\nmode = \"generate\"\n[lb.generate]\ntemplate = \"{}\"\ntarget = \"{}\"\n",
        template.display(),
        target.display()
    );
    fs::write(&config, text).unwrap();
    let (status, text) = said(&format!("render --config {} --admin {admin}", config.display()));
    assert_eq!((status, text), (0, format!("web 127.0.0.1:{}\n", web.port())));
    assert!(!target.exists());

    for (content, expected) in [
        ("nonsense", "is no roster: it takes the form of `scrimp apps --json`"),
        ("{\"apps\": 5}", "is no roster"),
        (&from_file_with_bad_domain(), "application web, backend n: domain \"exa mple\" is not valid"),
    ] {
        fs::write(&roster, content).unwrap();
        let (status, text) = said(&format!("render --roster {}", roster.display()));
        assert!(status == 1 && text.contains(expected) && text.contains("scrimp: "), "{status} {text}");
    }
    let (status, text) = said("render --roster no.json");
    assert!(status == 1 && text.contains("cannot open the roster no.json"), "{text}");
}

fn from_file_with_bad_domain() -> String {
    let backend = "{\"node\":\"n\",\"address\":\"192.0.2.1:80\",\"state\":\"ready\",\"reason\":null,\"weight\":100,\
                   \"active\":0,\"requests\":0,\"failures\":0}";
    format!(
        "{{\"apps\":[{{\"name\":\"web\",\"protocol\":\"http\",\"listen\":80,\"domains\":[\"exa mple\"],\"path\":\"/\",\
         \"backends\":[{backend}]}}]}}"
    )
}

// === the command line itself ===

const COMMANDS: [&str; 14] = [
    "demo",
    "lb",
    "backend",
    "check",
    "status",
    "members",
    "apps",
    "reload",
    "render",
    "seeds",
    "keygen",
    "healthcheck",
    "addresses",
    "completions",
];

#[test]
fn every_command_has_help() {
    let (status, all) = said("help");
    assert_eq!(status, 0);
    for command in COMMANDS {
        assert!(all.contains(&format!("\n  {command} ")), "{command} is not in:\n{all}");
        let (status, text) = said(&format!("{command} --help"));
        assert_eq!(status, 0, "{text}");
        assert!(text.contains(&format!("Usage: scrimp {command}")), "{text}");
        assert_eq!(said(&format!("help {command}")).1, text);
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    }
    for words in ["lb --help", "backend --help"] {
        let text = said(words).1;
        for variable in ["SCRIMP_CONFIG", "SCRIMP_SEED", "SCRIMP_KEY", "SCRIMP_CLUSTER", "SCRIMP_NAME", "SCRIMP_BIND"] {
            assert!(text.contains(variable), "{variable} is not in {words}:\n{text}");
        }
    }
    assert!(!all.contains("demo-app"), "{all}");
    assert_eq!(said("--version"), (0, format!("scrimp {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn exit_statuses_are_0_1_2_and_78() {
    for (words, status) in [
        ("keygen", 0),
        ("--help", 0),
        ("check --bind 127.0.0.1:0", 0),
        ("status --admin unix:/nonexistent/s", 1),
        ("", 2),
        ("nonsense", 2),
        ("lb --nonsense", 2),
        ("lb stray", 2),
        ("completions nonsense", 2),
        ("demo --backends 0", 2),
        ("demo --for soon", 2),
        ("check --role nobody", 2),
        ("lb --bind nowhere", 78),
        ("lb --config /nonexistent.toml", 78),
        ("lb --bind 127.0.0.1:0 --log loud", 78),
        ("lb --bind 127.0.0.1:0 --log-format xml", 78),
        ("backend --bind 127.0.0.1:0", 78),
    ] {
        let (ended, text) = said(words);
        assert_eq!(ended, status, "scrimp {words}\n{text}");
        assert!(!text.trim().is_empty(), "scrimp {words} says nothing");
    }
    let (_, text) = said("statsu");
    assert!(text.contains("a similar subcommand exists: 'status'"), "{text}");
}

#[test]
fn completions_are_scripts_that_their_shells_take() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (status, script) = said(&format!("completions {shell}"));
        assert_eq!(status, 0, "{shell}");
        for word in ["healthcheck", "--seed", "--json"] {
            // fish writes `-l seed`.
            let word = if shell == "fish" { word.trim_start_matches('-') } else { word };
            assert!(script.contains(word), "{word} is not in the script for {shell}");
        }
        if ["bash", "zsh", "fish"].contains(&shell) {
            parses(shell, &script);
        }
    }
}

fn parses(shell: &str, script: &str) {
    let spawned = Command::new(shell).arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        assert_ne!(shell, "bash", "bash is missing");
        eprintln!("not tried: there is no {shell}");
        return;
    };
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
}

/// As in `scrimp members | head -1`.
#[test]
fn a_reader_that_goes_away_early_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = scrimp().args(["completions", "bash"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
