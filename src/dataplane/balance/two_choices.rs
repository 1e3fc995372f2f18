//! The less loaded of two chosen at random (Mitzenmacher, 1996): nearly as even as looking at all of them, at
//! the price of looking at two, and it does not send everybody to the same idle backend at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::backend::Backend;

pub(super) fn pick(backends: &[Arc<Backend>]) -> Option<usize> {
    let count = backends.len();
    if count < 2 {
        return (count == 1).then_some(0);
    }
    let one = fastrand::usize(0..count);
    let other = (one + fastrand::usize(1..count)) % count;
    // One more on top of what is open, for each unit of weight, compared without dividing.
    let cost = |at: usize, rival: usize| {
        (u64::from(backends[at].load.active.load(Ordering::Relaxed)) + 1) * u64::from(backends[rival].weight.get())
    };
    Some(if cost(one, other) <= cost(other, one) { one } else { other })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Lease;
    use crate::balance::tests::backend;

    #[test]
    fn the_most_loaded_of_three_is_never_chosen() {
        let backends = [backend(1, 100), backend(2, 100), backend(3, 100)];
        let _busy: Vec<Lease> = (0..5).map(|_| Lease::new(Arc::clone(&backends[1]))).collect();
        assert!((0..200).all(|_| pick(&backends) != Some(1)));
    }
}
