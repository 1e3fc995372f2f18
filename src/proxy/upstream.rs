//! Idle connections to backends.

/// Idle.
#[derive(Default)]
pub(super) struct Upstreams;

impl Upstreams {
    /// Drops what is old.
    pub(super) fn sweep(&self) {}
}
