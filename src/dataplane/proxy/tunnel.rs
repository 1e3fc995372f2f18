//! What follows an upgrade: bytes both ways, whatever they mean.

use bytes::Bytes;

use super::Shared;
use super::dial::reset_on_close;
use super::relay::{self, End, Outcome};
use super::stream::Stream;
use super::tcp::until_gone;
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
        let client_end = End { stream: &mut *client, ahead, sent: None, load: None };
        let backend_end = End { stream: &mut backend, ahead: behind, sent: None, load };
        match until_gone(shared, &lease, relay::run(client_end, backend_end, idle)).await {
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
