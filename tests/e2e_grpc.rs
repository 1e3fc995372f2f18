//! gRPC through the proxy: Google's own client and server (grpcio, installed by `tests/install`).
#![allow(missing_docs)]

mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use scrimp::app::Protocol;
use support::{Bed, Node, app};

/// A server that ends with the test.
struct Server(Child, SocketAddr);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn python(script: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = std::env::var_os("SCRIMP_TEST_GRPC").map_or_else(|| root.join("target/tools/grpc"), PathBuf::from);
    assert!(packages.join("grpc").exists(), "grpcio is missing: tests/install installs it");
    let mut python = Command::new("python3");
    python.arg(root.join("tests/grpc").join(script)).env("PYTHONPATH", packages).env_remove("http_proxy");
    python.env("GRPC_VERBOSITY", "NONE").stdin(Stdio::null());
    python
}

fn serve() -> Server {
    let mut child = python("server.py").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port: u16 = line.trim().parse().expect("the server's port");
    Server(child, SocketAddr::from(([127, 0, 0, 1], port)))
}

#[test]
fn every_kind_of_call_goes_through() {
    let servers = [serve(), serve()];
    let bed = Bed::new();
    let port = bed.port();
    // One backend for what counts who has left; the other is for the second round.
    for server in &servers {
        bed.publish_and_open(&[Node::new(1, vec![app("grpc", Protocol::H2c, port, server.1)])], port);
        let output = python("client.py").arg(bed.address(port).to_string()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let cases: Vec<&str> = said.lines().collect();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "after {cases:?}:\n{errors}");
        assert!(cases.len() == 13 && cases.last() == Some(&"all"), "{cases:?}");
    }
}
