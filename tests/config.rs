//! The configuration as a person meets it: files, environment and flags in, meaning or mistakes out.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use scrimp::address::Advertise;
use scrimp::admin::AdminAddr;
use scrimp::app::{App, PolicyName, Protocol};
use scrimp::cli::Common;
use scrimp::config::{self, Config, Health, Mistakes, Mode, Purpose, Sources, keygen, restart_needed};
use scrimp::generate::{Certificate, TemplateSource};
use scrimp::log::LogFormat;
use scrimp::member::Role;
use scrimp::name::{PathPrefix, Port, Weight};
use scrimp::pool::{Allow, AllowRule};
use scrimp::proxy::{Limits, OnRemoval, Timeouts};

/// A folder as `/etc/scrimp` might be: keys, certificates, a template. No configuration yet.
struct Etc(tempfile::TempDir);

impl Etc {
    fn new() -> Self {
        let etc = Self(tempfile::tempdir().unwrap());
        for (name, text) in [
            ("cluster.key", keygen()),
            ("open.key", keygen()),
            ("short.key", "# mine\nhunter2\n".to_owned()),
            ("admin.token", "secret".to_owned()),
            ("tls/chain.pem", String::new()),
            ("tls/key.pem", String::new()),
            ("own.tera", String::new()),
        ] {
            etc.write(name, &text);
        }
        let everybody = fs::Permissions::from_mode(0o644);
        fs::set_permissions(etc.path("open.key"), everybody).unwrap();
        etc
    }

    /// The same without a cluster key in the default place.
    fn keyless() -> Self {
        let etc = Self::new();
        fs::rename(etc.path("cluster.key"), etc.path("other.key")).unwrap();
        etc
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn load(&self, typed: &Typed, purpose: Purpose) -> Result<Config, Mistakes> {
        typed.with(self.0.path(), |sources| config::load(sources, purpose))
    }

    fn check(&self, typed: &Typed) -> Result<Config, Mistakes> {
        self.load(typed, Purpose::Check(None))
    }

    fn mistakes(&self, typed: &Typed) -> String {
        self.check(typed).unwrap_err().to_string()
    }
}

/// What a person typed, and their environment.
#[derive(Default)]
struct Typed {
    flags: Common,
    apps: Vec<String>,
    env: HashMap<&'static str, String>,
}

impl Typed {
    fn env(pairs: &[(&'static str, &str)]) -> Self {
        Self { env: pairs.iter().map(|(name, text)| (*name, (*text).to_owned())).collect(), ..Self::default() }
    }

    fn apps(specs: &[&str]) -> Self {
        Self { apps: specs.iter().map(|spec| (*spec).to_owned()).collect(), ..Self::local() }
    }

    /// On loopback, so that no key is needed.
    fn local() -> Self {
        Self { flags: Common { bind: Some("127.0.0.1:0".to_owned()), ..Common::default() }, ..Self::default() }
    }

    fn with<T>(&self, etc: &Path, use_them: impl FnOnce(&Sources<'_>) -> T) -> T {
        let env = |name: &str| self.env.get(name).cloned();
        let mut sources = Sources::new(&self.flags, &env);
        sources.apps = &self.apps;
        sources.etc = etc;
        sources.judge_seed = |seed| match seed {
            _ if seed.starts_with("s3://") || seed.starts_with("file:///") || !seed.contains("//") => Ok(()),
            _ => Err(format!("{seed:?} is no seed")),
        };
        use_them(&sources)
    }
}

fn fixtures(kind: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config").join(kind);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml" || extension == "json"));
    files.sort();
    files
}

/// Loads a fixture as `scrimp.toml` or `scrimp.json` of a folder with or without a default key.
fn load_fixture(file: &Path, etc: &Etc) -> Result<Config, Mistakes> {
    let name = format!("scrimp.{}", file.extension().unwrap().to_str().unwrap());
    etc.write(&name, &fs::read_to_string(file).unwrap());
    etc.check(&Typed::default())
}

#[test]
fn every_valid_fixture_is_right() {
    let files = fixtures("valid");
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        if let Err(mistakes) = load_fixture(&file, &Etc::new()) {
            panic!("{}: {mistakes}", file.display());
        }
    }
}

/// Beside each stands what must be said about it: `.expected`, one fragment a line, and the number of mistakes.
#[test]
fn every_invalid_fixture_is_refused_with_place_and_remedy() {
    let files = fixtures("invalid");
    assert!(files.len() >= 15, "{files:?}");
    let mut wrong = String::new();
    for file in files {
        let etc = Etc::keyless();
        let said = match load_fixture(&file, &etc) {
            Ok(_) => "nothing".to_owned(),
            Err(mistakes) => mistakes.to_string(),
        };
        let said = said.replace(&format!("{}/", etc.0.path().display()), "");
        let mut expected_file = file.clone().into_os_string();
        expected_file.push(".expected");
        let expected = fs::read_to_string(&expected_file).unwrap_or_else(|_| "(no .expected file)".to_owned());
        for fragment in expected.lines().filter(|line| !said.contains(line)) {
            wrong += &format!("{}: {fragment:?} is not said; said is:\n{said}\n\n", file.display());
        }
        // The count stands there too: nothing more may be said than what is wrong.
        if !expected.trim_end().ends_with("in the configuration") {
            wrong += &format!("{}: the last line must be the count; said is:\n{said}\n\n", file.display());
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = Etc::new().load(&Typed::default(), Purpose::Run(Role::Balancer)).unwrap();
    let host: String = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(config.node.name.as_str(), host);
    assert_eq!(config.node.bind, "0.0.0.0:7377".parse().unwrap());
    assert_eq!(config.node.advertise, Advertise::Auto);
    assert_eq!(config.node.state_dir, Some("/var/lib/scrimp".into()));
    assert_eq!(config.cluster.name.as_str(), "default");
    assert_eq!(config.cluster.seeds, []);
    assert_eq!(config.cluster.keys.len(), 1, "cluster.key beside it is found");
    assert_eq!(config.admin.listen, [AdminAddr::Unix("/run/scrimp/scrimp.sock".into())]);
    assert!(config.admin.is_default && config.admin.token.is_none());
    assert_eq!((config.log.format, config.log.filter.as_str()), (LogFormat::Auto, "info"));
    assert!(config.apps.is_empty() && config.files.is_empty());

    let lb = config.lb;
    assert_eq!(lb.mode, Mode::Proxy);
    assert_eq!(lb.proxy.bind, [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)]);
    assert_eq!((lb.proxy.workers, lb.proxy.on_removal), (0, OnRemoval::Drain));
    assert_eq!((lb.rules.policy, lb.rules.allow), (PolicyName::RoundRobin, Allow::default()));
    assert!(lb.generate.is_none() && lb.proxy.trusted_proxies.is_empty() && lb.certificates.is_empty());
    let seconds = Duration::from_secs;
    let timeouts = Timeouts {
        connect: seconds(2),
        first_byte: seconds(10),
        header: seconds(10),
        body_progress: seconds(30),
        idle: seconds(75),
        response: seconds(60),
        tcp_idle: seconds(3600),
        udp_idle: seconds(30),
    };
    assert_eq!(lb.proxy.timeouts, timeouts);
    let limits = Limits {
        connections: None,
        app_connections: None,
        udp_flows: 10_000,
        header_bytes: 32 * 1024,
        header_fields: 100,
        target_bytes: 8 * 1024,
    };
    assert_eq!(lb.proxy.limits, limits);
}

#[test]
fn every_setting_of_a_file_arrives() {
    let etc = Etc::new();
    let fixture = fixtures("valid").into_iter().find(|file| file.ends_with("everything.toml")).unwrap();
    let config = load_fixture(&fixture, &etc).unwrap();
    assert_eq!(config.role, Some(Role::Balancer));
    assert_eq!(config.files, [etc.path("scrimp.toml")]);
    assert_eq!(config.node.name.as_str(), "web-1");
    assert_eq!(config.node.advertise, Advertise::Addr("192.0.2.7:7377".parse().unwrap()));
    assert_eq!(config.cluster.name.as_str(), "prod");
    let seeds: Vec<&str> = config.cluster.seed_urls().collect();
    assert_eq!(seeds, ["s3://bucket/prefix?region=eu-central-1", "file:///srv/seeds", "192.0.2.1:7377"]);
    assert!(config.cluster.seeds[1].place.to_string().ends_with("scrimp.toml:10:52: cluster.seeds[2]"));
    assert_eq!(config.cluster.key_path, Some(etc.path("cluster.key")));
    assert_eq!(format!("{:?}", config.cluster.keys), "[ClusterKey(MASKED)]");
    let tcp = AdminAddr::Tcp("127.0.0.1:9377".parse().unwrap());
    assert_eq!(config.admin.listen, [AdminAddr::Unix("/run/scrimp/scrimp.sock".into()), tcp]);
    assert_eq!((config.admin.is_default, config.admin.token), (false, Some(etc.path("admin.token"))));
    assert_eq!((config.log.format, config.log.filter.as_str()), (LogFormat::Json, "warn,scrimp::seed=debug"));

    let lb = config.lb;
    assert_eq!((lb.proxy.workers, lb.proxy.on_removal), (2, OnRemoval::Kill));
    assert_eq!(lb.proxy.proxy_protocol, [port(443), port(5432)]);
    let seconds = Duration::from_secs;
    let timeouts = Timeouts {
        connect: seconds(1),
        first_byte: seconds(5),
        header: seconds(6),
        body_progress: seconds(20),
        idle: seconds(90),
        response: seconds(50),
        tcp_idle: seconds(7200),
        udp_idle: seconds(20),
    };
    assert_eq!(lb.proxy.timeouts, timeouts);
    let limits = Limits {
        connections: Some(10000),
        app_connections: Some(5000),
        udp_flows: 20_000,
        header_bytes: 64 * 1024,
        header_fields: 50,
        target_bytes: 4096,
    };
    assert_eq!(lb.proxy.limits, limits);
    assert_eq!(lb.rules.policy, PolicyName::LeastConnections);
    let domains = vec!["*.example.com".parse().unwrap()];
    let rules = vec![
        AllowRule { domains, ports: vec![port(80), port(443)] },
        AllowRule { domains: vec![], ports: vec![port(5432)] },
    ];
    assert_eq!(lb.rules.allow, Allow { rules });
    let trusts = |ip: &str| lb.proxy.trusted_proxies.iter().any(|net| net.contains(&ip.parse::<IpAddr>().unwrap()));
    for ip in ["10.1.2.3", "fd00::1", "104.16.0.1", "2606:4700::1", "198.51.100.7", "203.0.113.9", "::1"] {
        assert!(trusts(ip), "{ip}");
    }
    assert!(!trusts("203.0.113.8") && !trusts("8.8.8.8") && !trusts("2001:db8::1"));
    let certificate = Certificate { chain: etc.path("tls/chain.pem"), key: etc.path("tls/key.pem") };
    assert_eq!(lb.certificates, [certificate]);
    assert!(lb.generate.is_none(), "the mode is proxy");

    let web = App {
        name: "web".parse().unwrap(),
        protocol: Protocol::Http,
        port: port(8080),
        listen: port(8000),
        domains: vec!["example.com".parse().unwrap(), "*.example.com".parse().unwrap()],
        path: "/shop".parse().unwrap(),
        weight: Weight::try_from(50).unwrap(),
        policy: Some(PolicyName::Hash),
        proxy_protocol: None,
    };
    assert_eq!(config.apps[0].app, web);
    assert_eq!(config.apps[0].address, IpAddr::from([127, 0, 0, 2]));
    let health = Health::Http { path: "/up?full=1".to_owned(), interval: Duration::from_millis(500) };
    assert_eq!(config.apps[0].health, health);
    let db = &config.apps[1];
    assert_eq!((db.app.protocol, db.app.listen, &db.health), (Protocol::Tcp, port(5432), &tcp_health(10)));
    let dns = &config.apps[2];
    assert_eq!((dns.app.protocol, dns.app.listen, &dns.health), (Protocol::Udp, port(53), &Health::None));
}

fn port(number: u16) -> Port {
    Port::new(number).unwrap()
}

fn tcp_health(seconds: u64) -> Health {
    Health::Tcp { interval: Duration::from_secs(seconds) }
}

#[test]
fn generate_mode_takes_its_certificates_and_the_templates_own_commands() {
    let etc = Etc::new();
    let fixture = fixtures("valid").into_iter().find(|file| file.ends_with("generate.toml")).unwrap();
    let config = load_fixture(&fixture, &etc).unwrap();
    let generate = config.lb.generate.unwrap();
    assert_eq!((config.lb.mode, generate.template), (Mode::Generate, TemplateSource::Nginx));
    assert_eq!(generate.target, PathBuf::from("/etc/nginx/conf.d/scrimp.conf"));
    assert_eq!((generate.check, generate.reload), (None, None));
    assert_eq!(generate.certificates, config.lb.certificates);
    assert_eq!(generate.certificates.len(), 1);
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let etc = Etc::new();
    etc.write(
        "scrimp.toml",
        r#"
        node = { name = "file", bind = "127.0.0.1:1", advertise = "127.0.0.1" }
        cluster = { name = "file", seeds = ["file:1", "file:2"], key = "other.key" }
        admin.listen = "unix:/file"
        log = { level = "warn", format = "text" }
        "#,
    );
    etc.write("other.key", &keygen());
    let seen = |typed: &Typed| {
        let config = etc.load(typed, Purpose::Run(Role::Balancer)).unwrap();
        let key = config.cluster.key_path.as_ref().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        [
            config.node.name.to_string(),
            config.node.bind.to_string(),
            format!("{:?}", config.node.advertise),
            config.cluster.name.to_string(),
            config.cluster.seed_urls().collect::<Vec<_>>().join(" "),
            key,
            format!("{:?}", config.admin.listen),
            config.log.filter,
            format!("{:?}", config.log.format),
        ]
    };
    let file = ["file", "127.0.0.1:1", "Ip(127.0.0.1)", "file", "file:1 file:2"];
    let rest = ["other.key", "[Unix(\"/file\")]", "warn", "Text"];
    assert_eq!(seen(&Typed::default()), [&file[..], &rest[..]].concat()[..]);

    let cluster_key = etc.path("cluster.key").display().to_string();
    let mut typed = Typed::env(&[
        ("SCRIMP_NAME", "env"),
        ("SCRIMP_BIND", "127.0.0.1:2"),
        ("SCRIMP_ADVERTISE", "ec2"),
        ("SCRIMP_CLUSTER", "env"),
        ("SCRIMP_SEED", "env:1, env:2,"),
        ("SCRIMP_KEY", &cluster_key),
        ("SCRIMP_ADMIN", "127.0.0.1:3,unix:/env"),
        ("SCRIMP_LOG", "debug"),
        ("SCRIMP_LOG_FORMAT", "json"),
    ]);
    let env = ["env", "127.0.0.1:2", "Ec2", "env", "env:1 env:2"];
    let rest = ["cluster.key", "[Tcp(127.0.0.1:3), Unix(\"/env\")]", "debug", "Json"];
    assert_eq!(seen(&typed), [&env[..], &rest[..]].concat()[..]);

    typed.flags = Common {
        name: Some("flag".to_owned()),
        bind: Some("127.0.0.1:4".to_owned()),
        advertise: Some("interface:eth0".to_owned()),
        cluster: Some("flag".to_owned()),
        seeds: vec!["flag:1".to_owned()],
        key: Some(etc.path("other.key").display().to_string()),
        admin: vec!["unix:/flag".to_owned()],
        log: Some("error".to_owned()),
        log_format: Some("auto".to_owned()),
        config: None,
    };
    let flag = ["flag", "127.0.0.1:4", "Interface(\"eth0\")", "flag", "flag:1"];
    let rest = ["other.key", "[Unix(\"/flag\")]", "error", "Auto"];
    assert_eq!(seen(&typed), [&flag[..], &rest[..]].concat()[..]);

    let empty = Typed::env(&[("SCRIMP_NAME", ""), ("SCRIMP_SEED", " "), ("SCRIMP_CONFIG", "")]);
    assert_eq!(seen(&empty)[0], "file", "an empty variable is none");
}

#[test]
fn a_mistake_is_told_where_it_was_made() {
    let etc = Etc::keyless();
    let mut typed = Typed::env(&[("SCRIMP_NAME", "a b"), ("SCRIMP_SEED", "ftp://x"), ("SCRIMP_APP", "web")]);
    typed.flags = Common { bind: Some("here".to_owned()), log_format: Some("jsno".to_owned()), ..Common::default() };
    etc.write("scrimp.toml", "[node]\nname = 1\nbind = '127.0.0.1'\n");
    let said = etc.mistakes(&typed);
    let file = etc.path("scrimp.toml");
    for expected in [
        "--bind: expected an IP address",
        "--log-format: \"jsno\" is not known here: did you mean json?",
        "SCRIMP_NAME: node name \"a b\" is not valid",
        "SCRIMP_SEED: \"ftp://x\" is no seed",
        "SCRIMP_APP \"web\": \"web\" is no NAME:PORT",
        &format!("{}:2:8: node.name: expected a text", file.display()),
        "6 mistakes in the configuration",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in:\n{said}");
    }
}

#[test]
fn a_named_file_must_be_there_and_another_need_not() {
    let etc = Etc::new();
    assert!(etc.load(&Typed::default(), Purpose::Run(Role::Balancer)).is_ok());
    let mut typed = Typed::local();
    typed.flags.config = Some(etc.path("none.toml"));
    let said = etc.mistakes(&typed);
    assert!(said.starts_with("--config: cannot read ") && said.contains("none.toml: No such file"), "{said}");
    assert!(said.ends_with("\n1 mistake in the configuration"), "{said}");
    let typed = Typed::env(&[("SCRIMP_CONFIG", "/none.toml")]);
    assert!(etc.mistakes(&typed).starts_with("SCRIMP_CONFIG: cannot read /none.toml: No such file"));

    typed_file(&etc, "big.toml", &"# \n".repeat(400_000), "more than 1048576 bytes");
    fs::write(etc.path("latin1.toml"), b"# caf\xe9\n").unwrap();
    let mut typed = Typed::local();
    typed.flags.config = Some(etc.path("latin1.toml"));
    assert!(etc.mistakes(&typed).contains("byte 6 is not UTF-8"));
}

fn typed_file(etc: &Etc, name: &str, text: &str, expected: &str) {
    etc.write(name, text);
    let mut typed = Typed::local();
    typed.flags.config = Some(etc.path(name));
    let said = etc.mistakes(&typed);
    assert!(said.contains(expected), "{said}");
}

#[test]
fn json_is_the_same_and_two_default_files_are_one_too_many() {
    let etc = Etc::new();
    etc.write("scrimp.json", r#"{"node": {"name": "j"}, "app": [{"name": "web", "port": "8080"}]}"#);
    let config = etc.check(&Typed::default()).unwrap();
    assert_eq!((config.node.name.as_str(), config.role), ("j", Some(Role::Backend)));
    assert_eq!(config.apps[0].app.port, port(8080));
    etc.write("scrimp.toml", "[node]\nname = \"t\"");
    assert!(etc.mistakes(&Typed::default()).contains("scrimp.toml is there too: take one away"));
}

#[test]
fn applications_may_stand_one_to_a_file() {
    let etc = Etc::new();
    etc.write("apps.d/20-api.json", r#"{"name": "api", "port": 2, "path": "/api"}"#);
    etc.write("apps.d/10-web.toml", "name = 'web'\nport = 1");
    for other in ["README", ".hidden.toml", "old.toml~", "x.yaml"] {
        etc.write(&format!("apps.d/{other}"), "nothing of ours");
    }
    let names = |config: &Config| config.apps.iter().map(|app| app.app.name.to_string()).collect::<Vec<_>>();
    let config = etc.check(&Typed::default()).unwrap();
    assert_eq!((names(&config), config.role), (vec!["web".to_owned(), "api".to_owned()], Some(Role::Backend)));

    etc.write("scrimp.toml", "[[app]]\nname = 'main'\nport = 3\npath = '/main'");
    assert_eq!(names(&etc.check(&Typed::default()).unwrap()), ["main", "web", "api"]);
    assert_eq!(names(&etc.check(&Typed::apps(&["typed:9"])).unwrap()), ["typed"], "what is typed counts instead");
    let from_env = Typed::env(&[("SCRIMP_APP", "one:1,path=/one  two:2,path=/two")]);
    assert_eq!(names(&etc.check(&from_env).unwrap()), ["one", "two"]);

    etc.write("apps.d/30-bad.toml", "[[app]]\nname = 'x'\nport = 1");
    etc.write("apps.d/40-bad.toml", "name = 'y'\nprot = 'tcp'\nport = 7\nlisten = 81");
    etc.write("apps.d/50-bad.toml", "name = 'web'\nport = 8\nlisten = 82");
    etc.write("apps.d/60-bad.toml", "name = ");
    let said = etc.mistakes(&Typed::default());
    for expected in [
        "30-bad.toml: write one application's settings at the top of its file, without [[app]]",
        "40-bad.toml:2:1: prot: \"prot\" is not known here: did you mean port?",
        "50-bad.toml: the name web is taken by another application (",
        "60-bad.toml:1:8: this is not TOML",
        "4 mistakes",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in:\n{said}");
    }
}

#[test]
fn a_backend_needs_applications_and_a_balancer_does_not() {
    let etc = Etc::new();
    let said = etc.load(&Typed::default(), Purpose::Run(Role::Backend)).unwrap_err().to_string();
    assert!(said.contains("a backend without applications") && said.contains("--app NAME:PORT"), "{said}");
    assert!(etc.load(&Typed::default(), Purpose::Check(Some(Role::Backend))).is_err());
    assert!(etc.load(&Typed::default(), Purpose::Run(Role::Balancer)).is_ok());
    let wrong = etc.load(&Typed::apps(&["web"]), Purpose::Run(Role::Backend)).unwrap_err();
    assert_eq!(wrong.0.len(), 1, "{wrong}");
    etc.write("scrimp.toml", "app = []");
    let wrong = etc.load(&Typed::default(), Purpose::Run(Role::Backend)).unwrap_err();
    assert_eq!(wrong.0.len(), 1, "{wrong}");
}

#[test]
fn without_a_key_only_this_machine_may_come_in() {
    let etc = Etc::keyless();
    let load = |bind: &str, advertise: &str| {
        let flags = Common { bind: Some(bind.to_owned()), advertise: Some(advertise.to_owned()), ..Common::default() };
        etc.load(&Typed { flags, ..Typed::default() }, Purpose::Run(Role::Balancer))
    };
    for (bind, advertise) in
        [("127.0.0.1", "auto"), ("127.9.9.9:0", "127.0.0.1"), ("[::1]:0", "[::1]:5"), ("[::ffff:127.0.0.1]:0", "auto")]
    {
        assert!(load(bind, advertise).unwrap().cluster.keys.is_empty(), "{bind} {advertise}");
    }
    for (bind, advertise) in
        [("0.0.0.0", "auto"), ("192.0.2.1", "auto"), ("::", "auto"), ("127.0.0.1", "192.0.2.1"), ("127.0.0.1", "ec2")]
    {
        let said = load(bind, advertise).unwrap_err().to_string();
        assert!(said.contains("scrimp keygen > ") && said.contains("bind to 127.0.0.1"), "{bind} {advertise}: {said}");
    }
    let inspected = etc.load(&Typed::default(), Purpose::Inspect).unwrap();
    assert!(inspected.cluster.keys.is_empty());
}

#[test]
fn an_application_that_is_wrong_clashes_with_nobody() {
    let etc = Etc::new();
    etc.write("scrimp.toml", "[[app]]\nname = 'a'\nport = 1\n[[app]]\nname = 'b'\nport = 2\ndomains = ['b c']");
    let said = etc.mistakes(&Typed::default());
    assert!(
        said.contains("domain \"b c\" is not valid") && said.ends_with("\n1 mistake in the configuration"),
        "{said}"
    );
}

#[test]
fn several_keys_are_read_in_order() {
    let etc = Etc::new();
    let [first, second] = [keygen(), keygen()];
    etc.write("cluster.key", &format!("# in use\n{first}\n\n  {second}\n"));
    let keys = etc.check(&Typed::default()).unwrap().cluster.keys;
    let shown: Vec<String> = keys.iter().map(|key| key.0.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    assert_eq!(shown, [first, second]);
}

#[test]
fn a_spec_says_the_same_as_a_table() {
    let etc = Etc::new();
    let one = |spec: &str| etc.check(&Typed::apps(&[spec])).unwrap().apps.remove(0);
    let web = one("web:8080,domain=example.com,domain=www.example.com,health=/up");
    assert_eq!(web.app.domains.len(), 2);
    assert_eq!((web.app.protocol, web.app.port, web.app.listen), (Protocol::Http, port(8080), port(80)));
    assert_eq!((web.app.path, web.app.weight), (PathPrefix::root(), Weight::default()));
    assert_eq!(web.health, Health::Http { path: "/up".to_owned(), interval: Duration::from_secs(2) });
    assert_eq!(web.address, IpAddr::from(Ipv4Addr::LOCALHOST));

    for (spec, protocol, listen, health) in [
        ("a:1", Protocol::Http, 80, tcp_health(2)),
        ("a:1/https", Protocol::Https, 80, tcp_health(2)),
        ("a:1/h2c,listen=8080", Protocol::H2c, 8080, tcp_health(2)),
        ("a:5432/tcp", Protocol::Tcp, 5432, tcp_health(2)),
        ("a:5432/tcp,listen=15432,health=tcp", Protocol::Tcp, 15432, tcp_health(2)),
        ("a:5353/udp,listen=53", Protocol::Udp, 53, Health::None),
    ] {
        let app = one(spec);
        assert_eq!((app.app.protocol, app.app.listen, app.health), (protocol, port(listen), health), "{spec}");
    }
    let full = one("a:1/http,listen=81,path=/a,weight=7,address=::1");
    assert_eq!((full.app.listen, full.app.path.as_str(), full.app.weight.get()), (port(81), "/a", 7));
    assert_eq!(full.address, IpAddr::from(Ipv6Addr::LOCALHOST));
}

#[test]
fn a_wrong_spec_is_told_part_by_part() {
    let etc = Etc::new();
    for (spec, expected) in [
        ("", "\"\" is no NAME:PORT: expected NAME:PORT[/PROTOCOL]"),
        ("web", "\"web\" is no NAME:PORT"),
        ("8080", "\"8080\" is no NAME:PORT"),
        ("web:", "port: expected a port from 1 to 65535, found \"\""),
        ("web:http", "port: expected a port from 1 to 65535, found \"http\""),
        ("web:70000", "port: expected a port"),
        (":80", "name: application name \"\" is not valid"),
        ("Web:80", "name: application name \"Web\" is not valid"),
        ("web:80/", "protocol: protocol \"\" is not known: use http, https, h2c, tcp, tls or udp"),
        ("web:80/htpp", "protocol: protocol \"htpp\" is not known"),
        ("web:80,", "\"\" is no key=value"),
        ("web:80,tcp", "\"tcp\" is no key=value"),
        ("web:80,domains=a.com", "\"domains\" is not known here: did you mean domain?"),
        ("web:80,lsten=1", "did you mean listen?"),
        ("web:80,name=x", "use listen, domain, path, weight, health, address or proxy-protocol"),
        ("web:80,proxy-protocol=v1", "it is for tcp applications alone: take proxy-protocol away"),
        ("db:1/tcp,proxy-protocol=v3", "proxy-protocol: \"v3\" is not known here"),
        ("web:80,listen=1,listen=2", "listen is given twice"),
        ("web:80,listen=0", "listen: expected a port"),
        ("web:80,domain=a b", "domain \"a b\" is not valid"),
        ("web:80,path=x", "path: path \"x\" is not valid"),
        ("web:80,weight=0", "weight: expected a whole number from 1 to 1000, found \"0\""),
        ("web:80,health=up", "health: expected a path like \"/up\", or \"tcp\""),
        ("web:80,address=localhost", "address: expected an IP address"),
        ("db:1/tls,domain=a.com", "clients of a tls application speak no TLS themselves, so that they name no host"),
        ("db:1/tcp,path=/", "a tcp application has no paths: take path away"),
        ("dns:1/udp,health=tcp", "a udp application has no health check"),
    ] {
        let wrong = etc.load(&Typed::apps(&[spec]), Purpose::Run(Role::Backend)).unwrap_err();
        let said = wrong.to_string();
        assert!(said.starts_with(&format!("--app {spec:?}: ")) && said.contains(expected), "{spec}: {said}");
        assert_eq!(wrong.0.len(), 1, "{spec}: {said}");
    }
    let both = etc.mistakes(&Typed::apps(&["web:x,weight=y,colour=red", "b:0"]));
    assert!(both.ends_with("4 mistakes in the configuration"), "{both}");
}

proptest::proptest! {
    #[test]
    fn no_spec_makes_it_panic(any in "(?s).{0,40}", near in "[a-z]{0,3}:?[0-9]{0,6}(/[a-z]{0,4})?(,[a-z]{0,7}=?[a-z0-9/.:*-]{0,9}){0,4}") {
        let etc = tempfile::tempdir().unwrap();
        for spec in [any, near] {
            let _ = Typed::apps(&[&spec]).with(etc.path(), |sources| config::load(sources, Purpose::Inspect));
        }
    }
}

#[test]
fn a_node_offers_no_more_than_travels() {
    let etc = Etc::new();
    let apps = |count: usize, more: &dyn Fn(usize) -> String| {
        (0..count)
            .map(|i| format!("[[app]]\nname = 'a{i}'\nport = 1\npath = '/{i}'\n{}\n", more(i)))
            .collect::<String>()
    };
    let nothing = |_: usize| String::new();
    let domains = |count: usize, length: usize| {
        let names: Vec<String> = (0..count).map(|i| format!("'d{i}.{}.com'", "x".repeat(length))).collect();
        format!("[[app]]\nname = 'wide'\nport = 1\ndomains = [{}]", names.join(","))
    };
    for (text, expected) in [
        (apps(256, &nothing), None),
        (apps(257, &nothing), Some("at most 256 applications, these are 257")),
        (domains(1024, 1), None),
        (domains(1025, 1), Some("at most 1024 domains, these are 1025")),
        (domains(1000, 63), Some("at most 65536 bytes")),
    ] {
        etc.write("scrimp.toml", &text);
        match (etc.check(&Typed::default()), expected) {
            (Ok(_), None) => {}
            (Err(wrong), Some(limit)) => {
                let said = wrong.to_string();
                assert!(said.contains(limit) && said.contains("scrimp.toml: "), "{said}");
                assert_eq!(wrong.0.len(), 1, "{said}");
            }
            (Ok(_), Some(limit)) => panic!("{limit}: not said"),
            (Err(wrong), None) => panic!("{wrong}"),
        }
    }
}

#[test]
fn a_client_finds_the_node_whatever_else_is_wrong() {
    let etc = Etc::keyless();
    let admin = |typed: &Typed| typed.with(etc.0.path(), config::admin);
    let tcp = |text: &str| AdminAddr::Tcp(text.parse::<SocketAddr>().unwrap());
    assert!(admin(&Typed::default()).unwrap().is_default, "no file, no key");
    etc.write("scrimp.toml", "[node]\nname = 'a b'\ncolour = 1\n[lb\n[admin]\nlisten = '127.0.0.1:5'\n");
    assert_eq!(admin(&Typed::default()).unwrap().listen, [tcp("127.0.0.1:5")]);
    assert_eq!(admin(&Typed::env(&[("SCRIMP_ADMIN", "127.0.0.1:6")])).unwrap().listen, [tcp("127.0.0.1:6")]);

    etc.write("scrimp.toml", "[admin]\nlisten = 'here'\n");
    let said = admin(&Typed::default()).unwrap_err().to_string();
    assert!(said.contains("scrimp.toml:2:10: admin.listen: expected unix:/PATH or IP:PORT"), "{said}");
    let named = |name: &str| {
        let flags = Common { config: Some(etc.path(name)), ..Common::default() };
        admin(&Typed { flags, ..Typed::default() })
    };
    assert!(named("none.toml").unwrap_err().to_string().contains("--config: cannot read"));
    etc.write("broken.json", "{\"admin\": {\"listen\": \"127.0.0.1:5\"},}");
    assert!(named("broken.json").unwrap_err().to_string().contains("this is not JSON"));
    etc.write("empty.toml", "");
    assert!(named("empty.toml").unwrap().is_default);
}

#[test]
fn what_needs_a_restart_is_named() {
    let etc = Etc::new();
    let load = |text: &str| {
        etc.write("scrimp.toml", text);
        etc.load(&Typed::default(), Purpose::Run(Role::Balancer)).unwrap()
    };
    let old = load("");
    assert_eq!(restart_needed(&old, &load("# moved\n\n[lb]\npolicy = 'hash'\n[lb.timeouts]\nidle = '1s'")), [""; 0]);
    let seeded = load("[cluster]\nseeds = ['a:1']");
    assert_eq!(restart_needed(&seeded, &load("\n\n[cluster]\nseeds = ['a:1']")), [""; 0], "a place is no setting");
    for (text, name) in [
        ("node.name = 'other'", "node.name"),
        ("node.bind = '127.0.0.1'", "node.bind"),
        ("node.advertise = 'ipv6'", "node.advertise"),
        ("node.state-dir = ''", "node.state-dir"),
        ("cluster.name = 'other'", "cluster.name"),
        ("cluster.seeds = ['a:1']", "cluster.seeds"),
        ("admin.listen = []", "admin.listen"),
        ("lb = { mode = 'generate', generate.target = '/x' }", "lb.mode"),
        ("lb.bind = '::'", "lb.bind"),
        ("lb.workers = 3", "lb.workers"),
    ] {
        assert_eq!(restart_needed(&old, &load(text)), [name], "{text}");
    }
    etc.write("other.key", &keygen());
    assert_eq!(restart_needed(&old, &load("cluster.key = 'other.key'")), [""; 0], "keys change while it runs");
}

#[test]
fn who_speaks_the_proxy_protocol_is_named() {
    let etc = Etc::new();
    etc.write("scrimp.toml", "[lb]\nproxy-protocol = [443]\ntrusted-proxies = [\"private\"]");
    assert_eq!(etc.check(&Typed::default()).unwrap().lb.proxy.proxy_protocol, [port(443)]);
    etc.write("scrimp.toml", "[lb]\nproxy-protocol = [443]");
    assert!(etc.mistakes(&Typed::default()).contains(":2:18: lb.proxy-protocol: nobody would be believed"));
}

#[test]
fn small_limits_stay_consistent() {
    let etc = Etc::new();
    etc.write("scrimp.toml", "[lb.limits]\nheader-bytes = '2KiB'");
    assert_eq!(etc.check(&Typed::default()).unwrap().lb.proxy.limits.target_bytes, 2048);
    etc.write("scrimp.toml", "[lb.limits]\nheader-bytes = '2KiB'\ntarget-bytes = '4KiB'");
    assert!(etc.mistakes(&Typed::default()).contains(":3:16: lb.limits.target-bytes: more than header-bytes (2048)"));
    etc.write("scrimp.toml", "[lb]\nallow = []");
    assert_eq!(etc.check(&Typed::default()).unwrap().lb.rules.allow, Allow { rules: vec![] });
}

/// The examples that packages install are right but for the files that an administrator makes.
#[test]
fn every_deployed_example_is_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|file| file.extension().is_some_and(|extension| extension == "toml")).collect();
    assert!(files.len() >= 3, "one of each kind: {files:?}");
    for file in files {
        let etc = Etc::new();
        let flags = Common { config: Some(file.clone()), ..Common::default() };
        if let Err(mistakes) = etc.load(&Typed { flags, ..Typed::default() }, Purpose::Inspect) {
            panic!("{}: {mistakes}", file.display());
        }
    }
}
