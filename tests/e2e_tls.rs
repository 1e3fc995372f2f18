//! TLS through the real program, and what outside judges say of it: curl, sslyze and testssl.sh where they are there.

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
mod node;
#[path = "support/tls.rs"]
mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use node::{Cluster, Node, Origin, eventually, run};
use rustix::process::Signal;
use scrimp::certificate::Certificate;
use tls::{Authority, DAY, Site, any_client, connect, get, leaf, replace, valid};

/// Promised: an idle connection with TLS takes no more memory than this.
const IDLE_KIB_MAX: u64 = 30;
/// How long an outside judge may take; alone on a machine it takes half a minute.
const JUDGE_SECONDS: &str = "300";

fn certificate(Certificate { chain, key }: &Certificate) -> String {
    format!("[[lb.certificate]]\nchain = {chain:?}\nkey = {key:?}\n")
}

/// A balancer with TLS at its port, and a backend that answers with its name.
struct Serving {
    lb: Node,
    _backend: Node,
    _origin: Origin,
    listen: SocketAddr,
    cluster: Cluster,
}

fn serving(site: &Site, lb: &str) -> Serving {
    let cluster = Cluster::new();
    let (listen, origin) = (cluster.listen(), Origin::http("origin"));
    let lb = cluster.balancer("lb", &format!("{lb}\n{}", certificate(&site.files)));
    let spec = format!("web:{},listen={},domain=a.example", origin.port(), listen.port());
    let backend = cluster.backend("one", &[&spec]);
    lb.wait_ready_backends("web", 1);
    Serving { lb, _backend: backend, _origin: origin, listen, cluster }
}

fn shown(address: SocketAddr) -> rustls_pki_types::CertificateDer<'static> {
    leaf(&connect(address, &any_client(), Some("a.example")).unwrap())
}

#[test]
fn renewed_certificates_come_in_with_a_reload_and_wrong_ones_do_not() {
    let authority = Authority::new();
    let site = authority.site("site", &["a.example"]);
    let renewed = authority.site("renewed", &["a.example"]);
    let serving = serving(&site, "");
    let mut open = connect(serving.listen, &any_client(), Some("a.example")).unwrap();
    assert!(get(&mut open, "a.example", "/").unwrap().0.starts_with("http/1.1 200"));
    replace(&site.files, &renewed.files);
    let socket = format!("unix:{}", serving.lb.socket.display());
    let reload = || run(&["reload", "--admin", &socket]);
    let (status, said) = reload();
    assert!(status.success(), "{said}");
    assert_eq!(shown(serving.listen), renewed.leaf);
    // The same by signal.
    let second = authority.site("second", &["a.example"]);
    replace(&site.files, &second.files);
    serving.lb.signal(Signal::HUP);
    eventually("the certificate is in use", || shown(serving.listen) == second.leaf);
    let late = authority.site_with("late", &["a.example"], |params| {
        valid(params, SystemTime::now() - 9 * DAY, SystemTime::now() - 2 * DAY);
    });
    replace(&site.files, &late.files);
    let (status, said) = reload();
    assert!(!status.success() && said.contains("site.pem expired on"), "{said}");
    std::fs::remove_file(&site.files.key).unwrap();
    let (status, said) = reload();
    assert!(!status.success() && said.contains("site.key does not exist"), "{said}");
    assert_eq!(shown(serving.listen), second.leaf);
    assert!(get(&mut open, "a.example", "/").unwrap().0.starts_with("http/1.1 200"), "it was open all the time");
    drop(serving.cluster);
}

#[test]
fn a_wrong_certificate_is_told_by_check_and_ends_the_start() {
    let authority = Authority::new();
    let (site, other) = (authority.site("site", &["a.example"]), authority.site("other", &["a.example"]));
    let wrong = Certificate { key: other.files.key.clone(), ..site.files.clone() };
    let late = authority.site_with("late", &["a.example"], |params| {
        valid(params, SystemTime::now() - 9 * DAY, SystemTime::now() - 2 * DAY);
    });
    let cluster = Cluster::new();
    let key = cluster.key.display().to_string();
    let check = |files: &Certificate| {
        let file = cluster.path("check.toml");
        std::fs::write(&file, certificate(files)).unwrap();
        run(&["check", "--role", "lb", "--key", &key, "--config", &file.display().to_string()])
    };
    let (status, said) = check(&site.files);
    assert!(status.success(), "{said}");
    let (status, said) = check(&late.files);
    assert!(status.code() == Some(78) && said.contains("late.pem expired on"), "{status} {said}");
    let (status, said) = check(&wrong);
    assert!(status.code() == Some(78) && said.contains("other.key is not the key of"), "{status} {said}");
    let mut lb = cluster.balancer("lb", &certificate(&wrong));
    assert!(!lb.wait_end().success());
    assert!(lb.log().contains("other.key is not the key of the certificate in"), "{}", lb.log());
}

#[test]
fn curl_is_content_and_port_80_leads_to_443() {
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        return eprintln!("skipped: curl is not installed");
    }
    let authority = Authority::new();
    let site = authority.site("site", &["a.example"]);
    let cluster = Cluster::new();
    if std::net::TcpListener::bind((cluster.ip, 443)).is_err() {
        return eprintln!("skipped: this user may not open port 443");
    }
    let origin = Origin::http("origin");
    let lb = cluster.balancer("lb", &format!("hsts = \"730d\"\n{}", certificate(&site.files)));
    let _backend = cluster.backend("one", &[&format!("web:{},listen=443,domain=a.example", origin.port())]);
    lb.wait_ready_backends("web", 1);
    lb.wait_json("/v1/status", "port 80 is open", |status| {
        status["listeners"].as_array().is_some_and(|all| all.iter().any(|one| one["port"] == 80))
    });
    let ca = authority.file();
    let curl = |more: &[&str]| {
        let resolve = [80, 443].map(|port| format!("a.example:{port}:{}", cluster.ip));
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--include", "--max-time", "15", "--cacert"]).arg(&ca);
        command.args(["--resolve", &resolve[0], "--resolve", &resolve[1]]).args(more);
        let output = command.output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).to_ascii_lowercase()
    };
    for (version, first) in [("--http1.1", "http/1.1 200"), ("--http2", "http/2 200")] {
        let said = curl(&[version, "https://a.example/x"]);
        assert!(said.starts_with(first) && said.ends_with("origin\n"), "{said}");
        assert!(said.contains("strict-transport-security: max-age=63072000\r\n"), "{said}");
    }
    let said = curl(&["http://a.example/x?y"]);
    assert!(said.contains("301") && said.contains("location: https://a.example/x?y\r\n"), "{said}");
    let said = curl(&["--location", "http://a.example/x"]);
    assert!(said.ends_with("origin\n"), "{said}");
    for version in ["1.2", "1.3"] {
        let said = curl(&["--tls-max", version, &format!("--tlsv{version}"), "https://a.example/"]);
        assert!(said.ends_with("origin\n"), "{version}: {said}");
    }
}

#[test]
fn idle_connections_take_little_memory() {
    const COUNT: u64 = 400;
    let authority = Authority::new();
    let serving = serving(&authority.site("site", &["a.example"]), "workers = 1\n[lb.timeouts]\nidle = \"10m\"\n");
    let open = || {
        let mut stream = connect(serving.listen, &any_client(), Some("a.example")).unwrap();
        assert!(get(&mut stream, "a.example", "/").unwrap().0.starts_with("http/1.1 200"));
        stream
    };
    // What is taken once is not counted.
    drop((0..20).map(|_| open()).collect::<Vec<_>>());
    let before = serving.lb.resident_kib();
    let all: Vec<_> = (0..COUNT).map(|_| open()).collect();
    let each = serving.lb.resident_kib().saturating_sub(before) * 1024 / COUNT;
    println!("an idle connection with TLS takes {each} bytes");
    assert!(each <= IDLE_KIB_MAX * 1024, "{each} bytes");
    assert_eq!(all.len() as u64, COUNT);
}

/// A certificate as an authority would give it, so that judges have nothing to say of the certificate itself.
fn respectable(authority: &Authority) -> Site {
    authority.site_with("site", &["a.example"], |params| {
        params.crl_distribution_points =
            vec![rcgen::CrlDistributionPoint { uris: vec!["http://crl.example/".to_owned()] }];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name.push(rcgen::DnType::CommonName, "a.example");
    })
}

/// Where `tests/install` puts tools.
fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools")
}

#[test]
fn sslyze_finds_mozillas_intermediate_profile() {
    let python = tools().join("sslyze/bin/python");
    if !python.exists() {
        return eprintln!("skipped: sslyze is not installed (tests/install does that)");
    }
    let authority = Authority::new();
    let serving = serving(&respectable(&authority), "hsts = \"max-age=63072000; includeSubDomains\"");
    let (name, address) = ("a.example", serving.listen);
    let output = Command::new("timeout")
        .arg(JUDGE_SECONDS)
        .arg(python)
        .args(["-m", "sslyze", "--mozilla_config=intermediate", "--certinfo_ca_file"])
        .arg(authority.file())
        // Named, and found without a resolver.
        .arg(format!("{name}:{}{{{}}}", address.port(), address.ip()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("OK - Compliant"), "{said}");
    for line in said.lines().filter(|line| line.contains("VULNERABLE") || line.contains("rejected")) {
        println!("{}", line.trim());
    }
    assert!(!said.contains("VULNERABLE - "), "{said}");
    // A judge that did not see the versions that there are would be content with anything.
    assert!(
        said.contains("TLS_AES_128_GCM_SHA256") && said.contains("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
        "{said}"
    );
}

#[test]
fn testssl_finds_nothing_above_low() {
    if Command::new("testssl").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return eprintln!("skipped: testssl.sh is not installed (tests/install does that)");
    }
    let authority = Authority::new();
    let serving = serving(&respectable(&authority), "hsts = \"max-age=63072000; includeSubDomains\"");
    let file = serving.cluster.path("testssl.csv");
    let asked = || {
        let _ = std::fs::remove_file(&file);
        let status = Command::new("timeout")
            .arg(JUDGE_SECONDS)
            .args(["testssl", "--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--fast"])
            .args(["--protocols", "--server-defaults", "--server-preference", "--fs", "--headers", "--vulnerable"])
            .arg("--add-ca")
            .arg(authority.file())
            .arg("--csvfile")
            .arg(&file)
            .arg("--ip")
            .arg(serving.listen.ip().to_string())
            .arg(format!("a.example:{}", serving.listen.port()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        (status, std::fs::read_to_string(&file).unwrap_or_default())
    };
    let (mut status, mut report) = asked();
    // Once in a while its own client does not get through the second handshake of a session, and it says so.
    if report.contains("connect problem") {
        println!("asked again after {status}: {report}");
        (status, report) = asked();
    }
    // Cut off by its deadline, or ended by itself before its end.
    assert!(status.success(), "{status}: {report}");
    // What it could not look at is WARN or FATAL. Two things are for the lack of an old OpenSSL, and rustls has neither.
    let is_fine = |line: &&str| {
        let word = |at: usize| line.trim_start_matches('"').split("\",\"").nth(at).unwrap_or_default();
        match word(3) {
            "OK" | "INFO" | "LOW" => true,
            "WARN" => ["engine_problem", "RC4"].contains(&word(0)),
            _ => false,
        }
    };
    let bad: Vec<&str> = report.lines().skip(1).filter(|line| !is_fine(line)).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(report.lines().count() > 40 && report.contains("heartbleed"), "{status}: {report}");
}
