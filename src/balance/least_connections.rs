//! The fewest open requests or connections for its weight; among equals, in turn.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::round_robin::RoundRobin;
use crate::backend::Backend;

pub(super) fn pick(backends: &[Arc<Backend>], turns: &RoundRobin, tried: &[SocketAddr]) -> Option<usize> {
    let turn = turns.take().filter(|at| *at < backends.len())?;
    (turn..backends.len())
        .chain(0..turn)
        .filter(|at| !tried.contains(&backends[*at].address))
        .min_by(|a, b| load(&backends[*a]).cmp(&load(&backends[*b])))
}

/// Open uses for each unit of weight, scaled to stay whole. The first of equals wins `min_by`.
fn load(backend: &Backend) -> u64 {
    u64::from(backend.load.active.load(Ordering::Relaxed)) * 1_000_000 / u64::from(backend.weight.get())
}

#[cfg(test)]
mod tests {
    use crate::app::PolicyName;
    use crate::backend::Lease;
    use crate::balance::Balancer;
    use crate::balance::tests::backend;
    use std::net::SocketAddr;
    use std::sync::Arc;

    #[test]
    fn the_idle_one_is_chosen_and_load_counts_by_weight() {
        let client = SocketAddr::from(([1, 1, 1, 1], 1));
        let backends = [backend(1, 100), backend(2, 200)];
        let balancer = Balancer::new(PolicyName::LeastConnections, &backends);
        let mut held = Vec::new();
        for _ in 0..30 {
            let at = balancer.pick(&backends, client, &[]).unwrap();
            held.push(Lease::new(Arc::clone(&backends[at])));
        }
        let to_second = held.iter().filter(|lease| Arc::ptr_eq(lease.backend(), &backends[1])).count();
        assert_eq!(to_second, 20);
        held.retain(|lease| Arc::ptr_eq(lease.backend(), &backends[1]));
        for _ in 0..5 {
            assert_eq!(balancer.pick(&backends, client, &[]), Some(0));
        }
    }

    #[test]
    fn among_equals_the_turn_goes_on_when_the_set_changes() {
        let client = SocketAddr::from(([1, 1, 1, 1], 1));
        let (a, b, c) = (backend(1, 100), backend(2, 100), backend(3, 100));
        let all = [a.clone(), b.clone(), c.clone()];
        let first = Balancer::new(PolicyName::LeastConnections, &all);
        assert_eq!(first.pick(&all, client, &[]), Some(0));
        // The one that is next is suspected, and back.
        let fewer = [a, c];
        let second = first.next(PolicyName::LeastConnections, &all, &fewer);
        assert_eq!(second.pick(&fewer, client, &[]), Some(1));
        let third = second.next(PolicyName::LeastConnections, &fewer, &all);
        assert_eq!([third.pick(&all, client, &[]), third.pick(&all, client, &[])], [Some(0), Some(1)]);
    }
}
