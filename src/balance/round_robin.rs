//! In turn, smoothly by weight.
//!
//! The turn is a schedule, made once for a set of backends, and a counter that all workers share: a pick is one
//! atomic addition, however many backends there are, and any run of whole rounds is exactly fair.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A schedule longer than this is made from coarser weights. 4,096 picks hold the weights of a pool of
/// 40 backends with the default weight and one odd one exactly.
const SCHEDULE_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct RoundRobin {
    /// Indices of backends, in the order of their turns.
    schedule: Vec<u16>,
    at: AtomicUsize,
}

impl RoundRobin {
    pub(super) fn new(weights: &[u16]) -> Self {
        Self { schedule: schedule(weights), at: AtomicUsize::new(0) }
    }

    /// Whose turn it is; moves on.
    pub(super) fn take(&self) -> Option<usize> {
        let length = self.schedule.len();
        if length == 0 {
            return None;
        }
        // Wraps after 2^64 picks; the one uneven round then is nobody's trouble.
        let at = self.at.fetch_add(1, Ordering::Relaxed) % length;
        Some(usize::from(self.schedule[at]))
    }

    /// Whose turns come, in order, one round of them; does not move on.
    pub(super) fn upcoming(&self) -> impl Iterator<Item = usize> {
        let length = self.schedule.len();
        let at = self.at.load(Ordering::Relaxed);
        (0..length).map(move |i| usize::from(self.schedule[(at.wrapping_add(i)) % length]))
    }

    /// Makes it the turn of the backend with this index.
    pub(super) fn resume(&self, backend: Option<usize>) {
        if let Some(at) = backend.and_then(|b| self.schedule.iter().position(|turn| usize::from(*turn) == b)) {
            self.at.store(at, Ordering::Relaxed);
        }
    }
}

/// Smooth weighted round robin, played once through: each turn goes to the backend with the most credit;
/// everybody earns its weight a turn, and a turn costs the sum of all (nginx's algorithm, 2012).
fn schedule(weights: &[u16]) -> Vec<u16> {
    let weights = reduced(weights);
    let total: i64 = weights.iter().sum();
    let mut credits = vec![0_i64; weights.len()];
    if weights.iter().all(|weight| *weight == 1) {
        return (0..weights.len()).map(|at| u16::try_from(at).unwrap_or(u16::MAX)).collect();
    }
    (0..total)
        .map(|_| {
            let mut best = 0;
            for at in 0..credits.len() {
                credits[at] += weights[at];
                if credits[at] > credits[best] {
                    best = at;
                }
            }
            credits[best] -= total;
            u16::try_from(best).unwrap_or(u16::MAX)
        })
        .collect()
}

/// The weights divided by what they have in common, and made coarser if their sum would still be too long
/// (never below one turn a round).
fn reduced(weights: &[u16]) -> Vec<i64> {
    let common = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
    let weights: Vec<i64> = weights.iter().map(|weight| i64::from(weight / common)).collect();
    let total: i64 = weights.iter().sum();
    let max = SCHEDULE_MAX.max(weights.len()) as i64;
    if total <= max {
        return weights;
    }
    weights.iter().map(|weight| (weight * max / total).max(1)).collect()
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::PolicyName;
    use crate::balance::Balancer;
    use crate::balance::tests::backend;
    use std::net::SocketAddr;

    fn take(turns: &RoundRobin, count: usize) -> Vec<usize> {
        (0..count).map(|_| turns.take().unwrap()).collect()
    }

    #[test]
    fn equal_weights_take_turns() {
        assert_eq!(take(&RoundRobin::new(&[100, 100, 100]), 7), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn a_heavy_backend_is_spread_over_the_round() {
        assert_eq!(take(&RoundRobin::new(&[500, 100, 100]), 7), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn any_whole_rounds_are_exactly_fair_from_any_start() {
        let turns = RoundRobin::new(&[30, 20, 40]);
        for start in 0..20 {
            let mut counts = [0; 3];
            for at in take(&turns, 27) {
                counts[at] += 1;
            }
            assert_eq!(counts, [9, 6, 12], "start {start}");
            turns.take();
        }
    }

    #[test]
    fn odd_weights_of_many_backends_stay_bounded() {
        let weights: Vec<u16> = (0..1000).map(|i| 997 - (i % 5)).collect();
        let turns = RoundRobin::new(&weights);
        assert!(turns.schedule.len() <= SCHEDULE_MAX + 1000);
        assert!((0..1000).all(|at| turns.schedule.contains(&at)));
    }

    #[test]
    fn a_change_of_the_set_neither_skips_nor_repeats() {
        let pick =
            |balancer: &Balancer, set: &[_]| balancer.pick(set, SocketAddr::from(([1, 1, 1, 1], 1)), &[]).unwrap();
        let (a, b, c, d) = (backend(1, 1), backend(2, 1), backend(3, 1), backend(4, 1));
        let abd = [a.clone(), b.clone(), d.clone()];
        let first = Balancer::new(PolicyName::RoundRobin, &abd);
        assert_eq!(pick(&first, &abd), 0);
        // b is next, and stays next when a leaves and c comes.
        let bcd = [b.clone(), c.clone(), d.clone()];
        let second = first.next(PolicyName::RoundRobin, &abd, &bcd);
        assert_eq!([pick(&second, &bcd), pick(&second, &bcd)], [0, 1]);
        // d is next; it leaves, so the one after it is.
        let abc = [a, b, c];
        let third = second.next(PolicyName::RoundRobin, &bcd, &abc);
        assert_eq!(pick(&third, &abc), 1, "after d came b, the start of the round");
    }
}
