//! What follows an upgrade: bytes both ways, whatever they mean.

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Shared;
use super::dial::reset_on_close;
use super::relay::{self, End, Outcome};
use super::stream::Stream;
use super::tcp::until_gone;
use crate::backend::Lease;

/// An upgrade that a backend has agreed to.
pub(super) struct Tunnel {
    pub(super) backend: OnUpgrade,
    pub(super) lease: Lease,
}

impl Tunnel {
    /// Passes bytes until both sides are done. `ahead` is what the client sent right behind its request.
    pub(super) async fn run(self, shared: &Shared, client: TcpStream, ahead: Bytes) {
        let Ok(upgraded) = self.backend.await else {
            return reset_on_close(&client);
        };
        let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else {
            return reset_on_close(&client);
        };
        let (mut client, mut backend) = (Stream::from(client), Stream::from(parts.io.into_inner()));
        let client_end = End { stream: &mut client, ahead, sent: None, load: None };
        let load = Some(&*self.lease.backend().load);
        let backend_end = End { stream: &mut backend, ahead: parts.read_buf, sent: None, load };
        let idle = shared.config.load().timeouts.tcp_idle;
        match until_gone(shared, &self.lease, relay::run(client_end, backend_end, idle)).await {
            Some(Outcome::BackendBroke) => {
                shared.counters.broken.inc();
                self.lease.failed();
            }
            Some(Outcome::Finished | Outcome::Idle | Outcome::ClientBroke) => {}
            None => {
                shared.counters.killed.inc();
                reset_on_close(client.tcp());
                reset_on_close(backend.tcp());
            }
        }
    }
}
