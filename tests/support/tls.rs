//! What tests of TLS share: certificates made on the spot, and clients that are rustls on plain sockets.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use scrimp::certificate::Certificate;
use tokio_rustls::rustls;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, ServerConnection, StreamOwned};

pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// An authority, and a folder for what it signs.
pub struct Authority {
    pub folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate, as files and as what is shown.
#[derive(Debug, Clone)]
pub struct Site {
    pub files: Certificate,
    pub leaf: CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "an authority of the tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { folder: tempfile::tempdir().unwrap(), issuer: Issuer::new(params, key), pem }
    }

    /// The authority's own certificate, in a file.
    pub fn file(&self) -> PathBuf {
        self.write("authority.pem", &self.pem)
    }

    /// A certificate for these names (IP addresses too), in files of this name.
    pub fn site(&self, file: &str, names: &[&str]) -> Site {
        self.site_with(file, names, |_| {})
    }

    pub fn site_with(&self, file: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Site {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let now = SystemTime::now();
        valid(&mut params, now - DAY, now + 90 * DAY);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        self.written(file, &certificate.pem(), &key)
    }

    /// One with a key of RSA, for clients that understand nothing newer.
    pub fn rsa(&self, file: &str, names: &[&str]) -> Site {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        self.written(file, &certificate.pem(), &key)
    }

    /// One that nobody signed but itself, as `openssl req -x509` makes it: as an authority.
    pub fn self_signed(&self, file: &str, names: &[&str]) -> Site {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        self.written(file, &certificate.pem(), &key)
    }

    fn written(&self, file: &str, chain: &str, key: &KeyPair) -> Site {
        let files = Certificate {
            chain: self.write(&format!("{file}.pem"), chain),
            key: self.write(&format!("{file}.key"), &key.serialize_pem()),
        };
        let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
        Site { files, leaf }
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

/// Sets from when until when a certificate is valid, by whole days.
pub fn valid(params: &mut CertificateParams, from: SystemTime, until: SystemTime) {
    let date = |time| {
        let text = humantime::format_rfc3339_seconds(time).to_string();
        let number = |digits: std::ops::Range<usize>| text[digits].parse::<u16>().unwrap();
        let [month, day] = [5..7, 8..10].map(|digits| u8::try_from(number(digits)).unwrap());
        rcgen::date_time_ymd(number(0..4).into(), month, day)
    };
    params.not_before = date(from);
    params.not_after = date(until);
}

impl Site {
    /// TLS as a real server speaks it with this certificate.
    pub fn server(&self) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.leaf.clone()], PrivateKeyDer::from_pem_file(&self.files.key).unwrap())
            .unwrap();
        Arc::new(config)
    }
}

/// The server's side of a connection, with TLS.
pub fn served(stream: TcpStream, config: &Arc<ServerConfig>) -> StreamOwned<ServerConnection, TcpStream> {
    StreamOwned::new(ServerConnection::new(Arc::clone(config)).unwrap(), stream)
}

/// A client that believes everybody, and tells whom it met.
pub fn client(versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth()
}

pub fn any_client() -> Arc<ClientConfig> {
    Arc::new(client(rustls::ALL_VERSIONS))
}

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Connects and shakes hands. Without a name none is asked for.
pub fn connect(address: SocketAddr, config: &Arc<ClientConfig>, name: Option<&str>) -> std::io::Result<Tls> {
    let stream = TcpStream::connect(address)?;
    shake(stream, config, name)
}

pub fn shake(mut stream: TcpStream, config: &Arc<ClientConfig>, name: Option<&str>) -> std::io::Result<Tls> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // An address is not asked for by name.
    let name = ServerName::try_from(name.unwrap_or("127.0.0.1").to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// The certificate that was shown.
pub fn leaf(stream: &Tls) -> CertificateDer<'static> {
    stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

/// One request, its connection kept: the answer's head in lower case, and its body.
pub fn ask(stream: &mut (impl Read + Write), request: &str) -> std::io::Result<(String, String)> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let head = String::from_utf8_lossy(&read_head(stream)?).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; if request.starts_with("HEAD") { 0 } else { length }];
    stream.read_exact(&mut body)?;
    Ok((head, String::from_utf8_lossy(&body).into_owned()))
}

/// Up to the empty line, and not a byte more.
pub fn read_head(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(head)
}

pub fn get(stream: &mut (impl Read + Write), host: &str, path: &str) -> std::io::Result<(String, String)> {
    ask(stream, &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"))
}

/// The files of one certificate in the place of another's.
pub fn replace(place: &Certificate, by: &Certificate) {
    let copy = |from: &Path, to: &Path| {
        // As certbot does: never half a file.
        let fresh = to.with_extension("new");
        fs::copy(from, &fresh).unwrap();
        fs::rename(&fresh, to).unwrap();
    };
    copy(&by.chain, &place.chain);
    copy(&by.key, &place.key);
}

#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, leaf, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
