//! Always the same backend for a client's address, as long as it is there.
//!
//! A ring that is asked at several places (multi-probe consistent hashing, Appleton and O'Reilly 2015): each backend
//! has points at places of its own on a ring, a client has [`PROBES`] places, and is served by the backend whose point
//! comes soonest after any of them. Where a point is depends on its backend's address alone, so all balancers that see
//! the same members agree, and a backend that leaves or comes moves its own clients only. A backend that was tried is
//! left out as if it had left: who takes over for one request takes over for good.
//!
//! How many points a backend has is its weight's share of [`POINTS`] for each member, parts of a point included: that
//! one counts for the part of the clients that hash says. Weights 1 and 2 do what 100 and 200 do, and there are no
//! sizes at which everything moves. When weights differ, one that leaves or comes changes the average that the shares
//! go by, and what the others have changes by as little.
//!
//! The shares of backends with equal weights have a standard deviation of 5 % (a point's after 8 probes is 26 %, and
//! there are 32); the memory is 300 bytes a backend.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::tried::Tried;
use crate::backend::Backend;

/// Points on the ring for each backend, on average.
const POINTS: u64 = 32;
/// Places of a client.
const PROBES: u64 = 8;
/// At most so many points after a probe are looked at: more are passed over only when most backends were tried.
const WALK_MAX: usize = 64;
/// Parts of a point.
const PARTS: u64 = 1 << PART_BITS;

const INDEX_BITS: u32 = 24;
const PART_BITS: u32 = 8;
const PLACE_SHIFT: u32 = INDEX_BITS + PART_BITS;
/// 2^64 divided by the golden ratio: the step of SplitMix64 (Steele, Lea, Flood 2014).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Debug)]
pub(super) struct Ring {
    /// Sorted: the place (32 bits), how many parts of it count (8 bits, 0: all), the index of its backend (24 bits).
    points: Vec<u64>,
    /// Where the points of each of equal pieces of the ring begin.
    starts: Vec<u32>,
    /// How many low bits of a place say where in its piece it is.
    piece_bits: u32,
}

impl Ring {
    pub(super) fn new(backends: &[Arc<Backend>]) -> Self {
        let total: u64 = backends.iter().map(|backend| u64::from(backend.weight.get())).sum::<u64>().max(1);
        let all = backends.len() as u64 * POINTS * PARTS;
        let mut points = Vec::with_capacity(backends.len() * (POINTS as usize + 1));
        for (at, backend) in (0..1_u64 << INDEX_BITS).zip(backends) {
            let parts = (u64::from(backend.weight.get()) * all / total).max(1);
            let seed = of_address(backend.address);
            let point = |number: u64, parts: u64| (place(seed, number) << PLACE_SHIFT) | (parts << INDEX_BITS) | at;
            let whole = parts / PARTS;
            points.extend((0..whole).map(|number| point(number, 0)));
            if !parts.is_multiple_of(PARTS) {
                points.push(point(whole, parts % PARTS));
            }
        }
        points.sort_unstable();
        let pieces_log2 = (points.len() / 4).max(1).next_power_of_two().ilog2().min(INDEX_BITS);
        let piece_bits = 32 - pieces_log2;
        let mut starts = Vec::with_capacity(1 << pieces_log2);
        let mut at = 0;
        for piece in 0..1_u64 << pieces_log2 {
            while points.get(at).is_some_and(|point| point >> PLACE_SHIFT < piece << piece_bits) {
                at += 1;
            }
            starts.push(u32::try_from(at).unwrap_or(u32::MAX));
        }
        Self { points, starts, piece_bits }
    }

    /// The client's backend; none if there is none, or so many were tried that it was not found quickly.
    pub(super) fn find(&self, backends: &[Arc<Backend>], client: IpAddr, tried: &Tried<'_>) -> Option<usize> {
        let seed = of_ip(client);
        let mut soonest: Option<(u64, usize)> = None;
        for number in 0..PROBES {
            let probe = place(seed, number);
            let max = soonest.map_or(u64::MAX, |(distance, _)| distance);
            if let Some(found) = self.after(probe, max, |point| {
                let backend = backends.get(index(point))?;
                (counts(point, seed) && !tried.has(&backend.address)).then(|| index(point))
            }) {
                soonest = Some(found);
            }
        }
        soonest.map(|(_, at)| at)
    }

    /// The first point at or after a place, nearer than `max`, of which `take` makes something, and how far it is.
    fn after(&self, probe: u64, max: u64, take: impl Fn(u64) -> Option<usize>) -> Option<(u64, usize)> {
        let mut at = *self.starts.get((probe >> self.piece_bits) as usize)? as usize;
        while self.points.get(at).is_some_and(|point| point >> PLACE_SHIFT < probe) {
            at += 1;
        }
        for _ in 0..WALK_MAX.min(self.points.len()) {
            let point = *self.points.get(at).or_else(|| self.points.first())?;
            at = if at < self.points.len() { at + 1 } else { 1 };
            let distance = (point >> PLACE_SHIFT).wrapping_sub(probe) & u64::from(u32::MAX);
            if distance >= max {
                return None;
            }
            if let Some(taken) = take(point) {
                return Some((distance, taken));
            }
        }
        None
    }
}

fn index(point: u64) -> usize {
    (point & ((1 << INDEX_BITS) - 1)) as usize
}

/// Whether a point that is there in parts is there for this client.
fn counts(point: u64, seed: u64) -> bool {
    let parts = (point >> INDEX_BITS) % PARTS;
    parts == 0 || mix(seed ^ (point >> PLACE_SHIFT)) % PARTS < parts
}

/// One of the places, 32 bits, that a seed has on the ring.
fn place(seed: u64, number: u64) -> u64 {
    mix(seed.wrapping_add(number.wrapping_mul(STEP))) >> 32
}

/// Spelt out rather than the standard library's `Hash`: that promises nothing across versions and machines, and all
/// balancers must agree.
fn of_ip(ip: IpAddr) -> u64 {
    let bits = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    mix(mix((bits >> 64) as u64 ^ STEP).wrapping_add(bits as u64))
}

fn of_address(address: SocketAddr) -> u64 {
    mix(of_ip(address.ip()).wrapping_add(u64::from(address.port()) + 1))
}

/// The finisher of SplitMix64.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::tests::{backend, many};
    use proptest::prelude::*;

    fn ip(host: u32) -> IpAddr {
        IpAddr::from(host.to_be_bytes())
    }

    fn served(ring: &Ring, backends: &[Arc<Backend>], host: u32, tried: &[SocketAddr]) -> SocketAddr {
        backends[ring.find(backends, ip(host), &Tried::new(tried)).unwrap()].address
    }

    /// How many of so many clients are served elsewhere.
    fn moved(before: &[Arc<Backend>], after: &[Arc<Backend>], clients: u32) -> u32 {
        let (old, new) = (Ring::new(before), Ring::new(after));
        (0..clients).filter(|host| served(&old, before, *host, &[]) != served(&new, after, *host, &[])).count() as u32
    }

    #[test]
    fn a_backend_that_leaves_moves_its_own_clients_only_and_to_where_a_retry_goes() {
        for (count, leaves) in [(2, 1), (4, 2), (65, 0), (1000, 321)] {
            let all = many(count, |_| 100);
            let mut fewer = all.clone();
            let gone = fewer.remove(leaves).address;
            let (old, new) = (Ring::new(&all), Ring::new(&fewer));
            let mut moved = 0;
            for host in 0..20_000 {
                let before = served(&old, &all, host, &[]);
                moved += u32::from(before == gone);
                let after = served(&new, &fewer, host, &[]);
                assert!(before == gone || before == after, "{count}");
                assert_eq!(served(&old, &all, host, &[gone]), after, "{count}");
            }
            let share = f64::from(moved) / 20_000.0 * count as f64;
            // Of 1,000, that are 20 clients give or take 4.5.
            assert!((0.3..1.9).contains(&share), "{share} times one of {count}");
        }
    }

    #[test]
    fn what_a_change_moves_beyond_its_own_share_is_small_when_weights_differ() {
        let all = many(200, |at| if at % 2 == 0 { 50 } else { 150 });
        let total = 200.0 * 100.0;
        for (leaves, own) in [(10, 50.0), (11, 150.0)] {
            let mut fewer = all.clone();
            fewer.remove(leaves);
            let share = f64::from(moved(&all, &fewer, 100_000)) / 100_000.0 / (own / total);
            println!("weight {own} leaves: {share:.2} times its own share moves");
            assert!((0.5..2.5).contains(&share), "{share} times the share of weight {own}");
        }
        // Twice the weight.
        let mut heavier = all.clone();
        heavier[10] = Arc::new(Backend { weight: 100.try_into().unwrap(), ..Backend::clone(&all[10]) });
        let share = f64::from(moved(&all, &heavier, 100_000)) / 100_000.0 / (50.0 / total);
        println!("50 becomes 100: {share:.2} times the difference moves");
        assert!((0.3..2.5).contains(&share), "{share}");
    }

    #[test]
    fn shares_keep_to_the_weights_whatever_their_unit() {
        for (unit, count) in [(1, 3), (1, 60), (100, 3), (100, 60), (333, 60)] {
            let all = many(count, |at| unit * (1 + at as u16 % 3));
            let ring = Ring::new(&all);
            let mut counts = vec![0_u32; count];
            for host in 0..60_000 {
                counts[ring.find(&all, ip(host), &Tried::new(&[])).unwrap()] += 1;
            }
            for weight in 1..=3 {
                let to_weight: u32 = counts.iter().skip(weight - 1).step_by(3).sum();
                let ratio = f64::from(to_weight) / 60_000.0 / (weight as f64 / 6.0);
                assert!((0.85..1.15).contains(&ratio), "weight {weight} of {count}, unit {unit}: {ratio}");
            }
        }
    }

    #[test]
    fn equal_backends_have_nearly_equal_shares() {
        for count in [10, 300] {
            let all = many(count, |_| 100);
            let ring = Ring::new(&all);
            let mut counts = vec![0_f64; count];
            let each = 1000.0;
            for host in 0..count as u32 * 1000 {
                counts[ring.find(&all, ip(host), &Tried::new(&[])).unwrap()] += 1.0;
            }
            let variance = counts.iter().map(|n| (n / each - 1.0).powi(2)).sum::<f64>() / count as f64;
            let most = counts.iter().copied().fold(0.0, f64::max) / each;
            println!("of {count}: deviation {:.3}, most {most:.3}", variance.sqrt());
            assert!(variance.sqrt() < 0.08 && most < 1.3, "of {count}: {:.3}, {most:.3}", variance.sqrt());
        }
    }

    #[test]
    fn clients_stay_where_they_are_across_versions() {
        // Another balancer may be another version: these may change with a release only that says so.
        let all = [backend(1, 100), backend(2, 100), backend(3, 300)];
        let ring = Ring::new(&all);
        let of = |client: &str| ring.find(&all, client.parse().unwrap(), &Tried::new(&[])).unwrap();
        let found: Vec<usize> =
            ["10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.7", "2001:db8::1", "2001:db8::2"].map(of).into();
        assert_eq!(found, [2, 1, 2, 2, 0, 2]);
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }

    proptest! {
        #[test]
        fn balancers_agree_and_every_choice_is_one_that_was_not_tried(
            weights in proptest::collection::vec(1_u16..=1000, 1..80),
            host: u32,
            tried in proptest::collection::vec(0_usize..80, 0..6),
        ) {
            let all = many(weights.len(), |at| weights[at]);
            let tried: Vec<SocketAddr> = tried.iter().filter_map(|at| Some(all.get(*at)?.address)).collect();
            let found = Ring::new(&all).find(&all, ip(host), &Tried::new(&tried));
            // Another balancer that has them in another order.
            let mut other = all.clone();
            other.reverse();
            let found_there = Ring::new(&other).find(&other, ip(host), &Tried::new(&tried));
            prop_assert_eq!(found.map(|at| all[at].address), found_there.map(|at| other[at].address));
            prop_assert!(found.is_none_or(|at| !tried.contains(&all[at].address)));
        }
    }
}
