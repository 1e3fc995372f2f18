//! At random, by weight.

use std::sync::Arc;

use crate::backend::Backend;

/// An index drawn by weight.
pub(super) fn pick(backends: &[Arc<Backend>]) -> Option<usize> {
    let total: u32 = backends.iter().map(|backend| u32::from(backend.weight.get())).sum();
    if total == 0 {
        return None;
    }
    let mut ticket = fastrand::u32(0..total);
    backends.iter().position(|backend| {
        let weight = u32::from(backend.weight.get());
        let is_mine = ticket < weight;
        ticket = ticket.saturating_sub(weight);
        is_mine
    })
}
