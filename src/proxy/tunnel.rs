//! What follows an upgrade: bytes both ways, whatever they mean.

use bytes::Bytes;

use super::Shared;
use super::dial::reset_on_close;
use super::relay::{self, End, Outcome};
use super::stream::Stream;
use super::tcp::until_gone;
use super::tls;
use super::upstream::Upstream;
use crate::backend::Lease;

/// An upgrade that a backend has agreed to.
pub(super) struct Tunnel {
    pub(super) backend: Upstream,
    pub(super) lease: Lease,
}

impl Tunnel {
    /// Passes bytes until both sides are done. `ahead` is what the client sent right behind its request.
    pub(super) async fn run(self, shared: &Shared, client: &mut Stream, ahead: Bytes) {
        let Self { backend: Upstream { stream: mut backend, input }, lease } = self;
        let behind = Bytes::copy_from_slice(input.filled());
        drop(input);
        let idle = shared.config.load().timeouts.tcp_idle;
        let load = Some(&*lease.backend().load);
        let outcome = if !client.is_tls() && !backend.is_tls() {
            let client = End { stream: client.tcp(), ahead, sent: None, load: None };
            let backend = End { stream: backend.tcp(), ahead: behind, sent: None, load };
            until_gone(shared, &lease, relay::run(client, backend, idle)).await
        } else {
            let client = tls::relay::End { stream: &mut *client, ahead, sent: None, load: None };
            let backend = tls::relay::End { stream: &mut backend, ahead: behind, sent: None, load };
            until_gone(shared, &lease, tls::relay::run(client, backend, idle)).await
        };
        match outcome {
            Some(Outcome::BackendBroke) => {
                shared.counters.broken.inc();
                lease.failed();
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
