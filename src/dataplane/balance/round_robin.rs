//! In turn, smoothly by weight.
//!
//! The turn is a schedule, made once for a set of backends, and a counter that all workers share: a pick is one
//! atomic addition, however many backends there are, and any run of whole rounds is exactly fair.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A schedule longer than this is made from coarser weights. 4,096 picks hold the weights of a pool of
/// 40 backends with the default weight and one odd one exactly.
const SCHEDULE_MAX: usize = 4096;
/// Nor is it longer than this for each backend of a larger pool: the weights are right to a sixteenth of the mean.
const TURNS_MAX: usize = 8;
/// Up to so many backends the schedule is made turn by turn; that takes the time of each with each.
const TURN_BY_TURN: usize = 256;

#[derive(Debug)]
pub(super) struct RoundRobin {
    /// Indices of backends, in the order of their turns.
    schedule: Vec<u32>,
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
        Some(self.schedule[at] as usize)
    }

    /// Whose turns come, in order, one round of them; does not move on.
    pub(super) fn upcoming(&self) -> impl Iterator<Item = usize> {
        let length = self.schedule.len();
        let at = self.at.load(Ordering::Relaxed);
        (0..length).map(move |i| self.schedule[(at.wrapping_add(i)) % length] as usize)
    }

    /// Makes it the turn of the backend with this index.
    pub(super) fn resume(&self, backend: Option<usize>) {
        if let Some(at) = backend.and_then(|b| self.schedule.iter().position(|turn| *turn as usize == b)) {
            self.at.store(at, Ordering::Relaxed);
        }
    }
}

fn schedule(weights: &[u16]) -> Vec<u32> {
    let weights = reduced(weights);
    if weights.iter().all(|weight| *weight == 1) {
        (0..weights.len()).map(index).collect()
    } else if weights.len() <= TURN_BY_TURN {
        turn_by_turn(&weights)
    } else {
        at_once(&weights)
    }
}

/// Smooth weighted round robin, played once through: each turn goes to the backend with the most credit;
/// everybody earns its weight a turn, and a turn costs the sum of all (nginx's algorithm, 2012).
fn turn_by_turn(weights: &[u32]) -> Vec<u32> {
    let total: i64 = weights.iter().map(|weight| i64::from(*weight)).sum();
    let mut credits = vec![0_i64; weights.len()];
    (0..total)
        .map(|_| {
            let mut best = 0;
            for at in 0..credits.len() {
                credits[at] += i64::from(weights[at]);
                if credits[at] > credits[best] {
                    best = at;
                }
            }
            credits[best] -= total;
            index(best)
        })
        .collect()
}

/// As smooth, and no slower than sorting: a backend's turns are spread evenly over the round, and begin where no other
/// backend's do (multiples of the golden ratio are spread evenly too).
fn at_once(weights: &[u32]) -> Vec<u32> {
    const ROUND: u64 = 1 << 32;
    let mut turns: Vec<(u64, u32)> = Vec::new();
    for (at, weight) in weights.iter().enumerate() {
        let first = (at as u64).wrapping_mul(0x9e37_79b9) % ROUND;
        let place = |turn: u32| (u64::from(turn) * ROUND + first) / u64::from((*weight).max(1));
        turns.extend((0..*weight).map(|turn| (place(turn), index(at))));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, at)| at).collect()
}

fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// The weights divided by what they have in common, and made coarser if their sum would still be too long
/// (never below one turn a round).
fn reduced(weights: &[u16]) -> Vec<u32> {
    let common = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
    let weights: Vec<u32> = weights.iter().map(|weight| u32::from(weight / common)).collect();
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let max = SCHEDULE_MAX.max(TURNS_MAX * weights.len()) as u64;
    if total <= max {
        return weights;
    }
    let coarser = |weight: u32| u32::try_from((u64::from(weight) * max + total / 2) / total).unwrap_or(u32::MAX);
    weights.into_iter().map(|weight| coarser(weight).max(1)).collect()
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
        assert!(turns.schedule.len() <= 9 * 1000);
        assert!((0..1000).all(|at| turns.schedule.contains(&at)));
        let few = RoundRobin::new(&[997, 991, 983, 977, 971]);
        assert!(few.schedule.len() <= SCHEDULE_MAX + 5);
    }

    #[test]
    fn many_backends_keep_their_weights_and_are_spread_over_the_round() {
        let weights: Vec<u16> = (0..10_000).map(|at| if at % 10 == 3 { 399 } else { 100 + at % 2 }).collect();
        let turns = RoundRobin::new(&weights);
        let round = turns.schedule.len();
        assert!(round <= 9 * 10_000, "{round}");
        let mut at = vec![Vec::new(); weights.len()];
        for (turn, backend) in turns.schedule.iter().enumerate() {
            at[*backend as usize].push(turn);
        }
        let mean = 130.0 / 8.0;
        for (turns, weight) in at.iter().zip(&weights) {
            assert!((turns.len() as f64 - f64::from(*weight) / mean).abs() <= 1.0, "{} of {weight}", turns.len());
            let even = round / turns.len();
            let gaps = turns.iter().zip(turns.iter().cycle().skip(1)).map(|(one, next)| (next + round - one) % round);
            assert!(gaps.clone().all(|gap| gap * 10 > even * 9 && gap * 10 < even * 11), "{gaps:?} for {even}");
        }
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
