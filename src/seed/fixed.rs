//! One host that somebody wrote down: nothing is kept there, its name is resolved at each read.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use tokio::time::timeout;

use super::url::FixedHost;
use super::{ADDRESSES_MAX, Blocking, Listing, SeedError, SeedErrorKind};
use crate::name::Port;

const RESOLVE_LIMIT: Duration = Duration::from_secs(5);

/// A fixed host and port.
#[derive(Debug)]
pub(super) struct FixedStore {
    host: FixedHost,
    port: Port,
    resolver: Blocking,
}

impl FixedStore {
    pub(super) fn new(host: FixedHost, port: Port) -> Self {
        Self { host, port, resolver: Blocking::default() }
    }

    pub(super) async fn list(&self) -> Result<Listing, SeedError> {
        let port = self.port.get();
        let fixed = match &self.host {
            FixedHost::Ip(ip) => vec![SocketAddr::new(*ip, port)],
            FixedHost::Name(name) => self.resolve(name.as_str().to_owned(), port).await?,
        };
        Ok(Listing { fixed, ..Listing::default() })
    }

    async fn resolve(&self, name: String, port: u16) -> Result<Vec<SocketAddr>, SeedError> {
        let asked = name.clone();
        let answer = self.resolver.run(move || {
            (asked.as_str(), port).to_socket_addrs().map(|all| all.take(ADDRESSES_MAX).collect::<Vec<_>>())
        });
        let unreachable = |problem: &str| {
            SeedError::new(
                SeedErrorKind::Unreachable,
                format_args!("the host name {name} cannot be resolved: {problem}; check its spelling and the DNS"),
            )
        };
        match timeout(RESOLVE_LIMIT, answer).await {
            Ok(Ok(mut addresses)) => {
                addresses.dedup();
                Ok(addresses)
            }
            Ok(Err(error)) => Err(unreachable(&error.to_string())),
            Err(_) => Err(unreachable("no answer within 5 s")),
        }
    }
}
