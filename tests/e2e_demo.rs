//! The README's first command. With `SCRIMP_TEST_RELEASE` (tests/run sets it) it is the release build's, and its
//! figures are held against what is promised.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Promised: the first routed request within this of the start.
const FIRST_REQUEST_MS_MAX: u64 = 1000;
/// Promised: resident memory of an idle balancer and of an idle backend.
/// 15 MB and 10 MB as the kernel counts them. Nine tenths are pages of program text that are in the page cache anyway,
/// mapped 64 KiB around each that is used.
const BALANCER_BYTES_MAX: u64 = 15 << 20;
const BACKEND_BYTES_MAX: u64 = 10 << 20;

fn program() -> (PathBuf, bool) {
    match std::env::var_os("SCRIMP_TEST_RELEASE") {
        Some(path) => (path.into(), true),
        None => (env!("CARGO_BIN_EXE_scrimp").into(), false),
    }
}

#[test]
fn the_demo_kills_and_replaces_a_backend_and_no_request_fails() {
    let (program, is_release) = program();
    let output = Command::new(&program)
        .args(["demo", "--for", "20s", "--json"])
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["ok"], true);
    assert_eq!(told["failed"], 0);
    assert!(told["requests"].as_u64().unwrap() > 500, "few requests prove little");
    let killed = told["killed"].as_str().unwrap();
    let replacement = told["replacement"].as_str().unwrap();
    assert_ne!(killed, replacement);
    assert!(told["by_backend"][killed].as_u64().unwrap() > 0 && told["by_backend"][replacement].as_u64().unwrap() > 0);
    if is_release {
        let first = told["first_request_ms"].as_u64().unwrap();
        assert!(first <= FIRST_REQUEST_MS_MAX, "the first request was answered after {first} ms");
        let memory = |role: &str| told["idle_memory_bytes"][role].as_u64().unwrap();
        assert!((1..=BALANCER_BYTES_MAX).contains(&memory("balancer")), "balancer: {} bytes", memory("balancer"));
        assert!((1..=BACKEND_BYTES_MAX).contains(&memory("backend")), "backend: {} bytes", memory("backend"));
    }
}

#[test]
fn the_demo_leaves_nothing_behind_when_it_is_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .args(["demo", "--for", "600s"])
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let seen = lines.by_ref().map_while(Result::ok).any(|line| line.contains("all 3 backends serve"));
    assert!(seen, "it tells that the backends serve");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(!child.wait().unwrap().success(), "it could not show what it was to show");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "its folder is gone");
}
