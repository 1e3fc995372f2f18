//! What follows an upgrade: bytes both ways, whatever they mean.

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::Shared;
use super::dial::reset_on_close;
use super::relay::{self, End, Outcome};
use super::stream::Stream;
use super::tcp::until_gone;
use super::tls;
use crate::backend::Lease;

/// An upgrade that a backend has agreed to.
pub(super) struct Tunnel {
    pub(super) backend: OnUpgrade,
    pub(super) lease: Lease,
}

impl Tunnel {
    /// Passes bytes until both sides are done. `ahead` is what the client sent right behind its request.
    pub(super) async fn run(self, shared: &Shared, mut client: Stream, ahead: Bytes) {
        let Ok(upgraded) = self.backend.await else {
            return reset_on_close(client.tcp());
        };
        let Ok(parts) = upgraded.downcast::<TokioIo<Stream>>() else {
            return reset_on_close(client.tcp());
        };
        let mut backend = parts.io.into_inner();
        let load = Some(&*self.lease.backend().load);
        let idle = shared.config.load().timeouts.tcp_idle;
        let outcome = if !client.is_tls() && !backend.is_tls() {
            let client = End { stream: client.tcp(), ahead, sent: None, load: None };
            let backend = End { stream: backend.tcp(), ahead: parts.read_buf, sent: None, load };
            until_gone(shared, &self.lease, relay::run(client, backend, idle)).await
        } else {
            let client = tls::relay::End { stream: &mut client, ahead, sent: None, load: None };
            let backend = tls::relay::End { stream: &mut backend, ahead: parts.read_buf, sent: None, load };
            until_gone(shared, &self.lease, tls::relay::run(client, backend, idle)).await
        };
        match outcome {
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
