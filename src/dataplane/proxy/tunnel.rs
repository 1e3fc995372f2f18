//! What follows an upgrade: bytes both ways, whatever they mean.

use bytes::Bytes;

use super::Shared;
use super::relay::{self, End};
use super::stream::Stream;
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
        let client_end = End { stream: client, ahead, sent: None };
        let backend_end = End { stream: &mut backend, ahead: behind, sent: None };
        relay::run(shared, &lease, client_end, backend_end, idle).await;
    }
}
