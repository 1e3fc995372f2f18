//! TLS to backends: whom to believe, and the handshake.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio_rustls::{TlsConnector, TlsStream};
use tracing::warn;

use super::{TlsError, load};
use crate::app::Protocol;
use crate::backend::Backend;
use crate::name::Hostname;
use crate::proxy::BackendTls;
use crate::proxy::stream::Stream;

/// What a backend that speaks HTTP is asked to speak inside.
const ALPN_HTTP: &[u8] = b"http/1.1";
/// Backends that are not believed are told of no more often.
const WARN_EVERY: Duration = Duration::from_secs(30);

/// TLS as it is spoken to backends.
#[derive(Debug)]
pub(super) struct Backends {
    /// The name that every backend's certificate is for, if it is one for all.
    name: Option<Hostname>,
    source: Source,
    /// Made when it is first needed: the authorities of a machine take memory, and most clusters need none.
    clients: OnceCell<Clients>,
    warned: Mutex<Option<Instant>>,
}

#[derive(Debug)]
enum Source {
    /// The authorities that this machine believes.
    Machine,
    /// Authorities, or the backends' own certificates, from a file.
    File(Vec<CertificateDer<'static>>),
    /// Everybody is believed.
    Anybody,
}

#[derive(Debug)]
struct Clients {
    http: Arc<ClientConfig>,
    tcp: Arc<ClientConfig>,
    verifier: Arc<Verifier>,
}

impl Backends {
    pub(super) fn load(config: &BackendTls) -> Result<Self, TlsError> {
        let source = match (&config.ca, config.verify) {
            (_, false) => Source::Anybody,
            (Some(file), true) => Source::File(load_authorities(file)?),
            (None, true) => Source::Machine,
        };
        let name = config.server_name.clone();
        Ok(Self { name, source, clients: OnceCell::new(), warned: Mutex::new(None) })
    }

    /// Makes a fresh connection to a backend one with TLS, if it is who it should be.
    pub(super) async fn connect(&self, tcp: TcpStream, backend: &Backend) -> io::Result<Stream> {
        let connected = self.handshake(tcp, backend).await;
        if let Err(error) = &connected {
            self.warn(backend, error);
        }
        connected
    }

    async fn handshake(&self, tcp: TcpStream, backend: &Backend) -> io::Result<Stream> {
        let clients = self.clients.get_or_try_init(|| Clients::new(&self.source)).await?;
        let config = if backend.protocol == Protocol::Https { &clients.http } else { &clients.tcp };
        let names = self.names(backend);
        let name = names.first().cloned().unwrap_or_else(|| ServerName::from(backend.address.ip()));
        let stream = TlsConnector::from(Arc::clone(config)).connect(name, tcp).await?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        clients.verifier.judge_name(leaf, &names).map_err(io::Error::other)?;
        Ok(Stream::from(TlsStream::from(stream)))
    }

    /// What a backend's certificate may be for; the first is asked for. All of it is its own word, sealed with the
    /// cluster's key.
    fn names(&self, backend: &Backend) -> Vec<ServerName<'static>> {
        let name = |name: &str| ServerName::try_from(name.to_owned()).ok();
        if let Some(one) = &self.name {
            return name(one.as_str()).into_iter().collect();
        }
        let domain = backend.domain.as_ref().and_then(|domain| name(domain.as_str()));
        // A number with dots is read as an address, which would not be its own.
        let node = backend.node_name.as_str().parse::<Hostname>().ok().and_then(|node| name(node.as_str()));
        let node = node.filter(|name| matches!(name, ServerName::DnsName(_)));
        domain.into_iter().chain(node).chain([ServerName::from(backend.address.ip().to_canonical())]).collect()
    }

    fn warn(&self, backend: &Backend, error: &io::Error) {
        let now = Instant::now();
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|last| now.duration_since(last) >= WARN_EVERY) {
            *warned = Some(now);
            let name = |name: &ServerName<'_>| name.to_str().into_owned();
            let names: Vec<String> = self.names(backend).iter().map(name).collect();
            warn!(
                target: "scrimp::proxy::tls::backends",
                "backend {} at {} fails its TLS handshake: {error}; its certificate must be for {} and from an \
                 authority that this machine, or lb.backend-tls.ca, knows",
                backend.node_name,
                backend.address,
                names.join(" or ")
            );
        }
    }
}

/// The certificates of a file of authorities.
fn load_authorities(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |error| TlsError(vec![format!("lb.backend-tls.ca: {error}")]);
    let all = load::read_chain(file).map_err(wrong)?;
    let mut roots = RootCertStore::empty();
    for (at, certificate) in all.iter().enumerate() {
        roots.add(certificate.clone()).map_err(|error| {
            wrong(format!("certificate {} of {} cannot be used: {error}: take it away", at + 1, file.display()))
        })?;
    }
    Ok(all)
}

impl Clients {
    async fn new(source: &Source) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        let mut pins = Vec::new();
        match source {
            Source::Anybody => {}
            Source::File(all) => {
                roots.add_parsable_certificates(all.iter().cloned());
                pins.clone_from(all);
            }
            Source::Machine => {
                let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await?;
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    let message =
                        "this machine knows no authorities: install ca-certificates, or set lb.backend-tls.ca";
                    return Err(io::Error::other(message));
                }
            }
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let verifier = Arc::new(Verifier { roots, pins, is_off: matches!(source, Source::Anybody), algorithms });
        let tcp = client_config(provider, Arc::clone(&verifier)).map_err(io::Error::other)?;
        let mut http = tcp.clone();
        http.alpn_protocols = vec![ALPN_HTTP.to_vec()];
        Ok(Self { http: Arc::new(http), tcp: Arc::new(tcp), verifier })
    }
}

fn client_config(provider: Arc<CryptoProvider>, verifier: Arc<Verifier>) -> Result<ClientConfig, rustls::Error> {
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// Judges who signed a backend's certificate. Whom it is for is judged after the handshake, when all names are at hand
/// that it may be for.
#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    /// Certificates that are believed for themselves: those that backends signed themselves, say.
    pins: Vec<CertificateDer<'static>>,
    is_off: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn is_known(&self, leaf: &CertificateDer<'_>) -> bool {
        self.is_off || self.pins.iter().any(|pin| pin == leaf)
    }

    fn judge_name(&self, leaf: Option<&CertificateDer<'_>>, names: &[ServerName<'_>]) -> Result<(), rustls::Error> {
        let leaf = leaf.ok_or(rustls::Error::NoCertificatesPresented)?;
        if self.is_known(leaf) {
            return Ok(());
        }
        let leaf = ParsedCertificate::try_from(leaf)?;
        let is_for = |name: &ServerName<'_>| verify_server_name(&leaf, name).is_ok();
        if names.iter().any(is_for) { Ok(()) } else { Err(CertificateError::NotValidForName.into()) }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.is_known(leaf) {
            let leaf = ParsedCertificate::try_from(leaf)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, algorithms)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
