//! TLS: towards clients with certificates chosen by the name they ask for, towards backends with a judgement of who
//! they are. rustls stays in here and in `stream`.

mod backends;
mod hello;
mod load;
mod names;
mod refusal;
mod server;

use std::fmt;
use std::io::ErrorKind;
use std::rc::Rc;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsStream;

use super::stream::Stream;
use super::{Config, Shared, Timeouts};
use crate::backend::Backend;
use crate::name::{Hostname, Port};
use crate::pool::{Pools, PortRoutes};
use backends::Backends;
use hello::Hello;
use server::{Server, Table, host_of};

/// What is wrong with certificates: each with its file, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsError(Vec<String>);

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for TlsError {}

/// Reads all certificates that `config` names, and judges them.
///
/// # Errors
/// All that is wrong with them, their age too.
pub fn check(config: &Config) -> Result<(), TlsError> {
    let table = Table::load(&config.certificates);
    let backends = Backends::load(&config.backend_tls);
    let mut errors = Vec::new();
    match &table {
        Ok(table) => errors.extend(table.out_of_time().map(str::to_owned)),
        Err(TlsError(more)) => errors.extend_from_slice(more),
    }
    errors.extend(backends.err().into_iter().flat_map(|TlsError(more)| more));
    if errors.is_empty() { Ok(()) } else { Err(TlsError(errors)) }
}

/// TLS on both sides of the proxy.
#[derive(Debug)]
pub(super) struct Tls {
    server: Server,
    backends: ArcSwap<Backends>,
}

impl Tls {
    /// Reads what `config` names. A certificate that is out of time is served all the same, and told of: a machine that
    /// starts again after a renewal has failed had better serve what it can.
    pub(super) fn new(config: &Config) -> Result<Self, TlsError> {
        let table = Table::load(&config.certificates)?;
        table.out_of_time().for_each(|why| tracing::error!(target: "scrimp::proxy::tls", "{why}"));
        Ok(Self { server: Server::new(table)?, backends: ArcSwap::from_pointee(Backends::load(&config.backend_tls)?) })
    }

    /// Reads it all again. On an error nothing has changed.
    pub(super) fn reload(&self, config: &Config) -> Result<(), TlsError> {
        let table = Table::load(&config.certificates)?;
        let backends = Backends::load(&config.backend_tls)?;
        self.server.judge(&table)?;
        table.out_of_time().for_each(|why| tracing::error!(target: "scrimp::proxy::tls", "{why}"));
        self.server.replace(table);
        self.backends.store(backends.into());
        Ok(())
    }

    /// Whether an HTTP port speaks TLS.
    pub(super) fn is_for(&self, port: Port, config: &Config) -> bool {
        port != config.https.clear_port && self.server.is_on()
    }

    /// Makes a client's connection of `since` one with TLS; none if it cannot be, with all said that is to be said.
    /// `ahead` is what was read from it already.
    pub(super) async fn accept(
        &self,
        shared: &Shared,
        client: TcpStream,
        ahead: &[u8],
        port: Port,
        since: Instant,
    ) -> Option<Stream> {
        self.server.accept(shared, client, ahead, port, since).await
    }

    /// Makes a fresh connection to a backend one with TLS, if it is who it should be.
    pub(super) async fn connect(&self, tcp: TcpStream, backend: &Backend) -> std::io::Result<Stream> {
        // The newest settings may come while this waits.
        let backends = self.backends.load_full();
        backends.connect(tcp, backend).await
    }

    /// Whether a request for `host` (lower case, no port, no final dot) may come over a client's connection; if not, the
    /// client is told to make another for it (421).
    pub(super) fn covers(&self, client: &Client, host: &str) -> bool {
        match client {
            Client::Plain => true,
            Client::Tls { sni } => self.server.covers(sni.as_deref(), host),
        }
    }

    /// The port that is open for nothing but to lead clients to HTTPS, if there is one.
    pub(super) fn standing_port(&self, config: &Config, pools: &Pools) -> Option<Port> {
        let https = &config.https;
        let leads_somewhere = https.redirect
            && self.server.is_on()
            && matches!(pools.stream(https.tls_port), Some(PortRoutes::Http(_)))
            && pools.stream(https.clear_port).is_none();
        leads_somewhere.then_some(https.clear_port)
    }

    /// Where a request for which this port has no route is to come again: over TLS, if the host has a certificate and a
    /// route there. `target` is its path and query.
    pub(super) fn redirect(
        &self,
        config: &Config,
        pools: &Pools,
        port: Port,
        host: &str,
        target: &str,
    ) -> Option<String> {
        let https = &config.https;
        if !https.redirect || port != https.clear_port || !target.starts_with('/') || !self.server.has(host) {
            return None;
        }
        let Some(PortRoutes::Http(routes)) = pools.stream(https.tls_port) else { return None };
        routes.find(host, target.split(['?', '#']).next()?)?;
        Some(match https.tls_port.get() {
            443 => format!("https://{host}{target}"),
            other => format!("https://{host}:{other}{target}"),
        })
    }
}

/// How a client came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Client {
    /// Without TLS.
    Plain,
    /// With TLS, and the name that it asked for, without a final dot.
    Tls { sni: Option<Rc<str>> },
}

impl Client {
    pub(super) fn of(stream: &Stream) -> Self {
        match stream {
            Stream::Tls(tls) => Self::Tls {
                sni: match &**tls {
                    TlsStream::Server(tls) => tls.get_ref().1.server_name().map(host_of).map(Rc::from),
                    TlsStream::Client(_) => None,
                },
            },
            Stream::Plain(_) => Self::Plain,
        }
    }
}

/// Reads what a client of a TCP port says first, until it is known which name it asks for, if it speaks TLS at all. Gives
/// what was read, to be passed on; none if it said nothing, or not enough, in the time that it has since `since`.
pub(super) async fn read_name(
    client: &TcpStream,
    since: Instant,
    timeouts: &Timeouts,
) -> Option<(Bytes, Option<Hostname>)> {
    /// What is read at once.
    const READ_BYTES: usize = 2048;
    let mut said = BytesMut::new();
    loop {
        // A socket that was just accepted says that it is readable: only what is read counts.
        let wait = if said.is_empty() { timeouts.first_byte } else { timeouts.first_byte.max(timeouts.header) };
        timeout_at(since + wait, client.readable()).await.ok()?.ok()?;
        said.reserve(READ_BYTES);
        match client.try_read_buf(&mut said) {
            Ok(0) => return None,
            Ok(_) => match hello::read(&said) {
                Hello::Incomplete => {}
                Hello::Tls(name) => return Some((said.freeze(), name)),
                Hello::Other => return Some((said.freeze(), None)),
            },
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

/// Entry points for tests and the fuzzer.
#[cfg(any(test, feature = "testing"))]
pub mod testing {
    use tokio_rustls::rustls::server::Acceptor;

    use super::hello::{self, Hello};

    /// Looks for the name in a client's first message: `None` as long as it is not whole, `Some(None)` if there is none.
    ///
    /// # Panics
    /// When rustls, which the message may be meant for, finds another name in it.
    #[must_use]
    pub fn name_in_hello(bytes: &[u8]) -> Option<Option<String>> {
        let (ours, theirs) = (hello::read(bytes), by_rustls(bytes));
        match (&ours, &theirs) {
            (Hello::Tls(ours), Some(theirs)) => {
                let ours = ours.as_ref().map(|name| name.as_str().to_owned());
                assert_eq!(ours, *theirs, "two names in one message");
            }
            (Hello::Incomplete, Some(_)) => panic!("it is whole"),
            // It is strict where rustls is not, and does not look at what rustls judges.
            (Hello::Other, _) | (_, None) => {}
        }
        match ours {
            Hello::Incomplete => None,
            Hello::Other => Some(None),
            Hello::Tls(name) => Some(name.map(|name| name.as_str().to_owned())),
        }
    }

    fn by_rustls(mut bytes: &[u8]) -> Option<Option<String>> {
        let mut acceptor = Acceptor::default();
        while !bytes.is_empty() && acceptor.read_tls(&mut bytes).is_ok_and(|count| count > 0) {}
        let accepted = acceptor.accept().ok()??;
        Some(accepted.client_hello().server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase()))
    }
}
