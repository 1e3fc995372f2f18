//! A real S3 server for tests: SeaweedFS, on loopback, with a data folder and ports of its own.
//!
//! `tests/run` installs it and names it in `SCRIMP_TEST_WEED`; without that it is looked for where `tests/run`
//! puts it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The bucket that is there from the start.
pub(crate) const BUCKET: &str = "seed";

/// A running S3 server; it ends when this is dropped, and its data with it.
pub(crate) struct S3 {
    folder: tempfile::TempDir,
    ports: Ports,
    server: Option<Child>,
}

#[derive(Clone, Copy)]
struct Ports([u16; 10]);

impl S3 {
    /// Starts a server with an empty bucket and waits until it serves.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the S3 server");
        fs::create_dir(folder.path().join("data")).expect("data folder");
        fs::write(folder.path().join("s3.json"), IDENTITIES).expect("identities");
        for (name, (key, secret)) in [("admin", ADMIN), ("reader", READER), ("wrong", (ADMIN.0, "wrong"))] {
            let profile = format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
            fs::write(folder.path().join(name), profile).expect("credentials");
        }
        let mut server = Self { folder, ports: Ports::free(), server: None };
        // Between choosing the ports and opening them another process may take one.
        for attempt in 1.. {
            match server.try_start() {
                Ok(()) => break,
                Err(problem) if attempt == 3 => panic!("the S3 server does not start: {problem}"),
                Err(_) => server.ports = Ports::free(),
            }
        }
        server
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.0[0])
    }

    /// The seed URL of a prefix in the bucket, with rights to read and write.
    pub(crate) fn url(&self, prefix: &str) -> String {
        self.url_as(BUCKET, prefix, "admin")
    }

    /// The seed URL of a prefix in a bucket, for `admin`, `reader` (no writing) or `wrong` (a wrong secret).
    pub(crate) fn url_as(&self, bucket: &str, prefix: &str, who: &str) -> String {
        let credentials = self.credentials(who);
        format!("s3://{bucket}/{prefix}?endpoint={}&credentials={}", self.endpoint(), credentials.display())
    }

    /// A file of credentials, in the form of `~/.aws/credentials`.
    pub(crate) fn credentials(&self, who: &str) -> PathBuf {
        self.folder.path().join(who)
    }

    /// The access key and the secret of the one who may do everything.
    pub(crate) fn keys(&self) -> (&'static str, &'static str) {
        ADMIN
    }

    /// Kills the server; what it stored stays.
    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Starts it again on the same data and ports, and waits until it serves.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.try_start().expect("the S3 server starts again");
    }

    fn try_start(&mut self) -> Result<(), String> {
        let log = File::create(self.folder.path().join("log")).map_err(|error| error.to_string())?;
        let mut command = Command::new(weed());
        command.args(self.arguments()).current_dir(self.folder.path()).env("AWS_EC2_METADATA_DISABLED", "true");
        command.stdin(Stdio::null()).stderr(log.try_clone().map_err(|error| error.to_string())?).stdout(log);
        self.server = Some(command.spawn().map_err(|error| error.to_string())?);
        self.await_ready(Instant::now() + Duration::from_secs(60)).inspect_err(|_| self.stop())
    }

    fn arguments(&self) -> Vec<String> {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let [s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc, admin, admin_grpc] =
            self.ports.0;
        vec![
            "mini".to_owned(),
            format!("-dir={}", path("data")),
            "-ip=127.0.0.1".to_owned(),
            "-ip.bind=127.0.0.1".to_owned(),
            "-master.telemetry=false".to_owned(),
            "-webdav=false".to_owned(),
            "-admin.ui=false".to_owned(),
            "-s3.port.iceberg=0".to_owned(),
            "-s3.port.lance=0".to_owned(),
            format!("-s3.port={s3}"),
            format!("-s3.port.grpc={s3_grpc}"),
            format!("-s3.localSocket={}", path("s3.sock")),
            format!("-s3.config={}", path("s3.json")),
            format!("-master.port={master}"),
            format!("-master.port.grpc={master_grpc}"),
            format!("-volume.port={volume}"),
            format!("-volume.port.grpc={volume_grpc}"),
            format!("-filer.port={filer}"),
            format!("-filer.port.grpc={filer_grpc}"),
            format!("-filer.localSocket={}", path("filer.sock")),
            format!("-admin.port={admin}"),
            format!("-admin.port.grpc={admin_grpc}"),
            format!("-bucket={BUCKET}"),
        ]
    }

    /// It serves once S3 answers, the bucket is there, and something can be stored, which the filer tells without
    /// credentials.
    fn await_ready(&mut self, deadline: Instant) -> Result<(), String> {
        let (s3, filer) = (self.ports.0[0], self.ports.0[6]);
        let bucket = format!("/buckets/{BUCKET}/");
        let serves = || {
            status(s3, "GET", "/", "").is_some()
                && status(filer, "GET", &bucket, "") == Some(200)
                && status(filer, "PUT", "/ready", "ready") == Some(201)
                && status(filer, "GET", "/ready", "") == Some(200)
        };
        loop {
            if serves() {
                return Ok(());
            }
            let ended = self.server.as_mut().and_then(|server| server.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(format!("ended: {ended:?}; its log: {log}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Ports {
    /// Ports that were free a moment ago.
    fn free() -> Self {
        let listeners = [(); 10].map(|()| TcpListener::bind(("127.0.0.1", 0)).expect("a free port"));
        Self(listeners.map(|listener| listener.local_addr().expect("its address").port()))
    }
}

const ADMIN: (&str, &str) = ("scrimpadmin", "admin-secret");
const READER: (&str, &str) = ("scrimpreader", "reader-secret");
const IDENTITIES: &str = r#"{"identities": [
  {"name": "admin", "credentials": [{"accessKey": "scrimpadmin", "secretKey": "admin-secret"}],
   "actions": ["Admin", "Read", "Write", "List"]},
  {"name": "reader", "credentials": [{"accessKey": "scrimpreader", "secretKey": "reader-secret"}],
   "actions": ["Read:seed", "List:seed"]}
]}"#;

fn weed() -> PathBuf {
    if let Some(path) = std::env::var_os("SCRIMP_TEST_WEED") {
        return path.into();
    }
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/seaweedfs/bin/weed");
    assert!(installed.is_file(), "SeaweedFS is not installed; tests/run does that");
    installed
}

/// The status with which a request is answered, if it is.
fn status(port: u16, method: &str, path: &str, body: &str) -> Option<u16> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut connection = TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()?;
    connection.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    let length = body.len();
    write!(connection, "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n{body}").ok()?;
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).ok()?;
    std::str::from_utf8(&answer).ok()?.rsplit(' ').next()?.parse().ok()
}
