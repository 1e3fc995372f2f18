//! TLS for clients: certificates by name, swapped while running, and the handshake.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsStream;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::crypto::aws_lc_rs::{self, cipher_suite};
use tokio_rustls::rustls::server::{Accepted, Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, HandshakeKind, ServerConfig, SupportedCipherSuite};
use tokio_rustls::server::StartHandshake;

use super::hello::HANDSHAKE;
use super::load::{self, Loaded};
use super::names::Names;
use super::{TlsError, refusal};
use crate::certificate::Certificate;
use crate::name::Port;
use crate::proxy::dial::reset_on_close;
use crate::proxy::stream::Stream;
use crate::proxy::{Shared, Timeouts};

/// What is spoken inside, the preferred first.
const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];
/// Those of Mozilla's intermediate profile in its order, but for DHE, which nobody needs any more. The order is
/// kept: OpenSSL's clients ask for 256 bits of AES first, which take more work and protect nobody better.
const SUITES: [SupportedCipherSuite; 9] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];
/// What is read at once while a client introduces itself.
const READ_BYTES: usize = 4096;
/// After a refusal: how long, and how much of what the client still sends, is read before the close.
const FAREWELL: (Duration, usize) = (Duration::from_secs(1), 64 * 1024);
/// The alert of that name (RFC 8446, 6.2): a record of version 1.2 with two bytes, fatal.
const DECODE_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];

/// TLS as it is spoken to clients.
#[derive(Debug)]
pub(super) struct Server {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    /// Handshakes under way.
    handshakes: AtomicUsize,
}

/// The certificates in use. A change is seen by the next handshake; what is open goes on.
#[derive(Debug)]
struct Certificates(ArcSwap<Table>);

/// The certificates of one moment.
#[derive(Debug, Default)]
pub(super) struct Table {
    keys: Vec<Arc<CertifiedKey>>,
    names: Names,
    /// Those that nobody will accept today, by their place, and why.
    out_of_time: Vec<(usize, String)>,
}

impl Table {
    /// Reads all of them.
    pub(super) fn load(files: &[Certificate]) -> Result<Self, TlsError> {
        let (provider, now) = (aws_lc_rs::default_provider(), SystemTime::now());
        let mut errors = Vec::new();
        let mut load = |files| load::load(files, &provider, now).map_err(|error| errors.push(error)).ok();
        let all: Vec<Loaded> = files.iter().filter_map(&mut load).collect();
        if !errors.is_empty() {
            return Err(TlsError(errors));
        }
        Ok(Self {
            names: Names::new(all.iter().map(|one| one.names.as_slice())),
            out_of_time: all.iter().enumerate().filter_map(|(at, one)| Some((at, one.out_of_time.clone()?))).collect(),
            keys: all.into_iter().map(|one| one.key).collect(),
        })
    }

    /// What is wrong with those that nobody will accept today.
    pub(super) fn out_of_time(&self) -> impl Iterator<Item = &str> {
        self.out_of_time.iter().map(|(_, why)| why.as_str())
    }

    fn has(&self, key: &CertifiedKey) -> bool {
        self.keys.iter().any(|mine| mine.cert == key.cert)
    }
}

impl ResolvesServerCert for Certificates {
    /// The first of those for the name that the client can make something of, a wildcard if none that names it is; without a name, or with one that nobody
    /// has, the first of all.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.0.load();
        let (places, others) = match hello.server_name().map(host_of).map(|name| (name, table.names.find(name))) {
            None | Some((_, [])) => (&[0][..], &[][..]),
            Some((name, places)) => (places, table.names.wildcards(name)),
        };
        let mut keys = places.iter().chain(others).filter_map(|at| table.keys.get(*at));
        let suits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        keys.clone().find(suits).or_else(|| keys.next()).cloned()
    }
}

/// The host that a client means by a name: one with a final dot is the same.
pub(super) fn host_of(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

impl Server {
    pub(super) fn new(table: Table) -> Result<Self, TlsError> {
        let certificates = Arc::new(Certificates(ArcSwap::from_pointee(table)));
        let config = config(Arc::clone(&certificates)).map_err(|error| TlsError(vec![error.to_string()]))?;
        Ok(Self { config: Arc::new(config), certificates, handshakes: AtomicUsize::new(0) })
    }

    /// Whether there is any certificate, so that ports can speak TLS.
    pub(super) fn is_on(&self) -> bool {
        !self.certificates.0.load().keys.is_empty()
    }

    /// See [`Names::covers`].
    pub(super) fn covers(&self, sni: Option<&str>, host: &str) -> bool {
        self.certificates.0.load().names.covers(sni, host)
    }

    /// Whether some certificate is for this host.
    pub(super) fn has(&self, host: &str) -> bool {
        !self.certificates.0.load().names.find(host).is_empty()
    }

    /// Whether a table may take the place of the one in use: one that is out of time may stay, but none may come.
    pub(super) fn judge(&self, table: &Table) -> Result<(), TlsError> {
        let current = self.certificates.0.load();
        let is_new = |at: &usize| table.keys.get(*at).is_some_and(|key| !current.has(key));
        let errors: Vec<String> =
            table.out_of_time.iter().filter(|(at, _)| is_new(at)).map(|(_, why)| why.clone()).collect();
        if errors.is_empty() { Ok(()) } else { Err(TlsError(errors)) }
    }

    pub(super) fn replace(&self, table: Table) {
        self.certificates.0.store(Arc::new(table));
    }

    /// Makes a connection of `since` one with TLS; none if that fails, with all said that is to be said. `ahead` is what
    /// was read from it already.
    pub(super) async fn accept(
        &self,
        shared: &Shared,
        client: TcpStream,
        ahead: &[u8],
        port: Port,
        since: Instant,
    ) -> Option<Stream> {
        let timeouts = &shared.config.load_full().timeouts;
        let result = match self.enter(shared) {
            Some(_under_way) => self.handshake(client, ahead, port, since, timeouts).await,
            None => {
                reset_on_close(&client);
                Err(Failure::Mute)
            }
        };
        match result {
            Ok(stream) => {
                shared.counters.tls_handshakes.inc();
                if stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
                    shared.counters.tls_resumed.inc();
                }
                Some(Stream::from(stream))
            }
            Err(failure) => {
                if !matches!(failure, Failure::Left) {
                    shared.counters.tls_failures.inc();
                }
                if let Failure::Told(client, words) = failure {
                    farewell(client, &words).await;
                }
                None
            }
        }
    }

    /// Counts one more under way. Clients that stall may have half of the places for connections: the others are for
    /// those that are done, and for ports without TLS.
    fn enter(&self, shared: &Shared) -> Option<UnderWay<'_>> {
        let limit = (shared.admission.limit() / 2).max(1);
        let before = self.handshakes.fetch_add(1, Ordering::Relaxed);
        let under_way = UnderWay(&self.handshakes);
        (before < limit).then_some(under_way)
    }

    async fn handshake(
        &self,
        client: TcpStream,
        ahead: &[u8],
        port: Port,
        since: Instant,
        timeouts: &Timeouts,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let whole = since + timeouts.header.max(timeouts.first_byte);
        let first = since + timeouts.first_byte;
        let accepted = match introduce(&client, ahead, port, first, whole).await {
            Ok(accepted) => accepted,
            Err(Refusal::Left) => return Err(Failure::Left),
            Err(Refusal::Slow) => return Err(Failure::Mute),
            Err(Refusal::Told(words)) => return Err(Failure::Told(client, words)),
        };
        let rest = StartHandshake::from_parts(accepted, client).into_stream(Arc::clone(&self.config)).into_fallible();
        match timeout_at(whole, rest).await {
            Ok(Ok(stream)) => Ok(stream.into()),
            // What is wrong was said; it must not be overtaken by a reset.
            Ok(Err((_, client))) => Err(Failure::Told(client, Vec::new())),
            Err(_) => Err(Failure::Mute),
        }
    }
}

fn config(certificates: Arc<Certificates>) -> Result<ServerConfig, rustls::Error> {
    let provider = CryptoProvider { cipher_suites: SUITES.to_vec(), ..aws_lc_rs::default_provider() };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.ignore_client_order = true;
    config.alpn_protocols = ALPN.iter().map(|protocol| protocol.to_vec()).collect();
    // A session is kept by its client, sealed with a key that changes every few hours; nothing is kept here.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// How a handshake failed.
enum Failure {
    /// The client went before it had introduced itself: somebody looked whether the port is open, say.
    Left,
    /// Nothing is to be said to a client that was too slow, or one too many.
    Mute,
    /// This is to be said last, if anything is left to be said.
    Told(TcpStream, Vec<u8>),
}

/// One handshake under way.
struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why there is no first message.
enum Refusal {
    Left,
    Slow,
    /// What it was is answered so.
    Told(Vec<u8>),
}

/// Reads a client's first message, of which something has to be there at `first` and all at `whole`.
async fn introduce(
    client: &TcpStream,
    ahead: &[u8],
    port: Port,
    first: Instant,
    whole: Instant,
) -> Result<Accepted, Refusal> {
    let mut acceptor = Acceptor::default();
    let mut is_first = true;
    let mut judge = |bytes: &[u8]| {
        if std::mem::take(&mut is_first)
            && bytes.first().is_some_and(|kind| *kind != HANDSHAKE)
            && refusal::is_http(bytes)
        {
            return Err(Refusal::Told(refusal::page(bytes, port)));
        }
        feed(&mut acceptor, bytes).map_err(Refusal::Told)
    };
    if !ahead.is_empty()
        && let Some(accepted) = judge(ahead)?
    {
        return Ok(accepted);
    }
    let mut deadline = if ahead.is_empty() { first } else { whole };
    loop {
        // A socket that was just accepted says that it is readable: only what is read counts.
        timeout_at(deadline, client.readable()).await.map_err(|_| Refusal::Slow)?.map_err(|_| Refusal::Left)?;
        // Not held while waiting.
        let mut buffer = [0; READ_BYTES];
        match client.try_read(&mut buffer) {
            Ok(0) => return Err(Refusal::Left),
            Ok(count) => {
                deadline = whole;
                if let Some(accepted) = judge(buffer.get(..count).unwrap_or_default())? {
                    return Ok(accepted);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Refusal::Left),
        }
    }
}

/// The error is an alert.
fn feed(acceptor: &mut Acceptor, mut bytes: &[u8]) -> Result<Option<Accepted>, Vec<u8>> {
    // Nothing is taken any more when its buffer is full of what is no message.
    while !bytes.is_empty() && acceptor.read_tls(&mut bytes).is_ok_and(|count| count > 0) {}
    match acceptor.accept() {
        // What was read and has no place there would be missing later.
        Ok(_) if !bytes.is_empty() => Err(DECODE_ERROR.to_vec()),
        Ok(accepted) => Ok(accepted),
        Err((_, mut alert)) => {
            let mut words = Vec::new();
            let _ = alert.write_all(&mut words);
            Err(if words.is_empty() { DECODE_ERROR.to_vec() } else { words })
        }
    }
}

/// Says the last words to a client, and reads a little of what it still sends, so that they are not overtaken by a reset.
async fn farewell(client: TcpStream, words: &[u8]) {
    let (limit, bytes_max) = FAREWELL;
    let saying = async {
        let mut words = words;
        while !words.is_empty() && client.writable().await.is_ok() {
            match client.try_write(words) {
                Ok(count) => words = words.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
        if socket2::SockRef::from(&client).shutdown(Shutdown::Write).is_err() {
            return;
        }
        let mut left = bytes_max;
        while client.readable().await.is_ok() {
            let mut buffer = [0; READ_BYTES];
            match client.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(count) if count < left => left -= count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return,
            }
        }
    };
    let _ = timeout(limit, saying).await;
}
