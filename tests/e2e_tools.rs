//! Other people's programs against the proxy: slowhttptest attacks it, a WebSocket client and server speak through it,
//! httplint judges what it says by itself. `tests/install` installs them.
#![allow(missing_docs)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use scrimp::app::AppState;
use support::front::Front;
use support::origin::{Recorder, Step};
use support::{Node, Origin, http_app, nobody, ok, until};

/// Python with a package that `tests/install` has put into a folder of its own.
fn python(package: &str, arguments: &[&str]) -> Command {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tools").join(package);
    assert!(folder.join(package).is_dir(), "{} is missing: run tests/install", folder.display());
    let mut command = Command::new("python3");
    command.args(arguments).env("PYTHONPATH", &folder).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn p_ws_a_real_client_and_a_real_server_understand_each_other() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/websocket.py");
    let mut server =
        python("websockets", &[script, "serve"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut port = String::new();
    BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut port).unwrap();
    let server = Running(server);
    let front = Front::new(&[SocketAddr::from(([127, 0, 0, 1], port.trim().parse().unwrap()))]);
    let url = format!("ws://{}", front.bed.address(front.port));
    let output = python("websockets", &[script, "client", &url]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("passed 73"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    until("all tunnels are over", || {
        front.bed.counters.connections.get() == front.bed.counters.connections_closed.get()
    });
    drop(server);
}

/// Deadlines of the proxy while it is attacked.
const DEADLINE: Duration = Duration::from_secs(3);
/// What it may take beyond that to end a thousand connections: a second that the proxy reads on behind an answer, and
/// the rest is a busy machine's.
const MARGIN: Duration = Duration::from_secs(5);
/// The time it may take a thousand connections to come to such a machine.
const ARRIVAL_MAX: Duration = Duration::from_secs(30);

/// What slowhttptest has said so far of whether the service is available, as often as it said so.
#[derive(Default)]
struct Verdicts {
    yes: AtomicUsize,
    no: AtomicUsize,
}

/// Attacks with a thousand connections; meanwhile everybody else is served, and the proxy ends every one of them.
fn attack(mode: &[&str], path: &str) {
    let origin = Origin::http(|request| {
        let is_large = request.line.contains("/large");
        Some(ok(&"x".repeat(if is_large { 300_000 } else { 10 })))
    });
    let front = Front::with(&[origin.address], |config| {
        config.workers = 2;
        config.timeouts.first_byte = DEADLINE;
        config.timeouts.header = DEADLINE;
        config.timeouts.body_progress = DEADLINE;
        config.timeouts.idle = DEADLINE;
    });
    let counters = &front.bed.counters;
    let url = format!("http://{}{path}", front.bed.address(front.port));
    let start = Instant::now();
    // Line by line: it is stopped before it has filled a buffer.
    let mut command = Command::new("stdbuf");
    command.args(["-oL", "slowhttptest"]).args(mode);
    command.args(["-c", "1000", "-r", "500", "-l", "60", "-p", "2", "-v", "1", "-u", &url]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = Running(child.expect("stdbuf is missing: it is one of coreutils"));
    let output = BufReader::new(child.0.stdout.take().unwrap());
    let verdicts = Arc::new(Verdicts::default());
    let reading = thread::spawn({
        let verdicts = Arc::clone(&verdicts);
        move || {
            let mut text = String::new();
            for line in output.lines().map_while(Result::ok) {
                let is_verdict = line.contains("service available");
                verdicts.yes.fetch_add(usize::from(is_verdict && line.contains("YES")), Ordering::SeqCst);
                verdicts.no.fetch_add(usize::from(is_verdict && line.contains("NO")), Ordering::SeqCst);
                text += &(line + "\n");
            }
            text
        }
    });
    let (mut slowest, mut asked) = (Duration::ZERO, 0);
    // When all were there, and when the last of them was gone. It sees late, if it reads slowly, that it was cut off:
    // the proxy's own count is asked.
    let (mut crowded, mut deserted) = (None, None);
    // Its first verdict is from before the attack, and before any answer.
    while deserted.is_none() || verdicts.yes.load(Ordering::SeqCst) + verdicts.no.load(Ordering::SeqCst) < 2 {
        let begin = Instant::now();
        assert_eq!(front.get("/").status(), 200);
        slowest = slowest.max(begin.elapsed());
        asked += 1;
        let (closed, accepted) = (counters.connections_closed.get(), counters.connections.get());
        if accepted >= asked + 1000 {
            let crowded = *crowded.get_or_insert_with(Instant::now);
            if closed == accepted {
                deserted.get_or_insert_with(|| crowded.elapsed());
            }
            let limit = DEADLINE + MARGIN;
            assert!(
                deserted.is_some() || crowded.elapsed() < limit,
                "attackers are there after {limit:?}: {counters:?}"
            );
        }
        let is_late = start.elapsed() > ARRIVAL_MAX + DEADLINE + MARGIN;
        assert!(!is_late, "{accepted} came, {asked} of them others: is slowhttptest there? See tests/install");
        thread::sleep(Duration::from_millis(20));
    }
    drop(child);
    let text = reading.join().unwrap();
    let (yes, no) = (verdicts.yes.load(Ordering::SeqCst), verdicts.no.load(Ordering::SeqCst));
    println!(
        "{mode:?}: {:?}, the last attacker was gone {:?} after all were there; {yes} times YES; {asked} others asked, \
         the slowest took {slowest:?}",
        start.elapsed(),
        deserted.unwrap(),
    );
    assert!(yes > 1 && no == 0, "the service was not available:\n{text}");
    assert!(slowest < Duration::from_secs(3), "somebody waited for {slowest:?}");
}

#[test]
fn p_slowloris_a_thousand_at_once_keep_nobody_from_being_served() {
    attack(&["-H", "-i", "1"], "/");
}

#[test]
fn p_slowbody_a_thousand_at_once_keep_nobody_from_being_served() {
    // Something comes every second, of a body that says how long it is.
    attack(&["-B", "-i", "1", "-x", "10"], "/");
}

#[test]
fn p_slowread_a_thousand_at_once_keep_nobody_from_being_served() {
    attack(&["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32"], "/large");
}

#[test]
fn what_scrimp_says_by_itself_is_good_http() {
    let silent = Recorder::new(|_| vec![Step::UntilEnd]);
    let front = Front::with(&[silent.address], |config| {
        config.timeouts.response = Duration::from_millis(100);
        config.timeouts.body_progress = Duration::from_millis(100);
    });
    let app = |name: &str, at| http_app(name, front.port, at, &[&format!("{name}.example")], "/");
    let nodes = [
        Node::new(1, vec![app("none", nobody())]).with_state(AppState::Starting),
        Node::new(2, vec![app("refused", nobody()), app("silent", silent.address)]),
    ];
    front.bed.publish(&nodes);
    until("the applications are there", || front.get("/").status() == 404);
    let large = "x".repeat(40_000);
    let mut wrong = Vec::new();
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: nobody.example\r\n\r\n".to_owned(), 404),
        ("GET / HTTP/1.1\r\nHost: none.example\r\n\r\n".to_owned(), 503),
        ("GET / HTTP/1.1\r\nHost: refused.example\r\n\r\n".to_owned(), 502),
        ("GET / HTTP/1.1\r\nHost: silent.example\r\n\r\n".to_owned(), 504),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("TRACE / HTTP/1.1\r\nHost: silent.example\r\n\r\n".to_owned(), 405),
        ("POST / HTTP/1.1\r\nHost: silent.example\r\nContent-Length: 5\r\n\r\n".to_owned(), 408),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", &large[..9000]), 414),
        ("POST / HTTP/1.1\r\nHost: silent.example\r\nExpect: x\r\nContent-Length: 5\r\n\r\n".to_owned(), 417),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nA: {large}\r\n\r\n"), 431),
    ] {
        let mut client = front.client();
        client.send(&request);
        let (mut message, mut raw) = client.reader.head().unwrap();
        assert_eq!(message.status(), status);
        client.reader.body(&mut message, support::reader::Without::ToEnd).unwrap();
        raw.extend_from_slice(&message.body);
        let mut lint = python("httplint", &["-c", "from httplint.cli import main; main()", "--now"]);
        let mut lint = lint.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        lint.stdin.take().unwrap().write_all(&raw).unwrap();
        let output = lint.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("[GOOD]"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        // What the status says is no fault of the answer.
        let says_status =
            |line: &str| ["understand the request", "accept a URI this long"].iter().any(|words| line.contains(words));
        let is_fault = |line: &&str| (line.contains("[BAD]") || line.contains("[WARN]")) && !says_status(line);
        let faults: Vec<&str> = text.lines().filter(is_fault).collect();
        wrong
            .extend((!faults.is_empty()).then(|| format!("{status}: {faults:?} in {}", String::from_utf8_lossy(&raw))));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
