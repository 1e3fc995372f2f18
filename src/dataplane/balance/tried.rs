//! The addresses that one request or connection was tried at.

use std::net::SocketAddr;

/// So many are looked through; more are sorted first.
const FEW: usize = 16;

#[derive(Debug)]
pub(super) struct Tried<'a> {
    given: &'a [SocketAddr],
    /// Empty if they are few.
    sorted: Vec<SocketAddr>,
}

impl<'a> Tried<'a> {
    pub(super) fn new(given: &'a [SocketAddr]) -> Self {
        let mut sorted = Vec::new();
        if given.len() > FEW {
            sorted.extend_from_slice(given);
            sorted.sort_unstable();
        }
        Self { given, sorted }
    }

    pub(super) fn has(&self, address: &SocketAddr) -> bool {
        if self.sorted.is_empty() { self.given.contains(address) } else { self.sorted.binary_search(address).is_ok() }
    }
}
