//! At random, by weight: an alias table (Walker 1977; made as in Vose 1991), so that a pick looks at one place of it,
//! however many backends there are. All whole numbers: the shares are exactly the weights'.

#[derive(Debug)]
pub(super) struct Random {
    /// One place for each backend. A ticket below `bound` is its own, any other its alias's.
    places: Vec<Place>,
    /// The sum of the weights, which is how many tickets a place has.
    total: u64,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    bound: u32,
    alias: u32,
}

impl Random {
    pub(super) fn new(weights: &[u16]) -> Self {
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let count = weights.len() as u64;
        // In tickets: each backend has its weight's share of `count` places with `total` tickets each.
        let mut left: Vec<u64> = weights.iter().map(|weight| u64::from(*weight) * count).collect();
        let mut places: Vec<Place> =
            (0..weights.len()).map(|at| Place { bound: ticket(total), alias: ticket(at as u64) }).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..left.len()).partition(|at| left[*at] < total);
        while let (Some(few), Some(many)) = (small.pop(), large.last().copied()) {
            places[few] = Place { bound: ticket(left[few]), alias: ticket(many as u64) };
            left[many] -= total - left[few];
            if left[many] < total {
                large.pop();
                small.push(many);
            }
        }
        Self { places, total }
    }

    /// An index drawn by weight.
    pub(super) fn draw(&self) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let at = fastrand::usize(0..self.places.len());
        let Place { bound, alias } = self.places[at];
        let is_own = fastrand::u64(0..self.total.max(1)) < u64::from(bound);
        Some(if is_own { at } else { alias as usize })
    }
}

/// Weights are at most 1,000 and a pool that has four million members has other troubles.
fn ticket(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_backend_has_exactly_its_weights_share_of_the_tickets(
            weights in proptest::collection::vec(1_u16..=1000, 1..300),
        ) {
            let random = Random::new(&weights);
            let mut tickets = vec![0_u64; weights.len()];
            for (at, place) in random.places.iter().enumerate() {
                tickets[at] += u64::from(place.bound);
                tickets[place.alias as usize] += random.total - u64::from(place.bound);
            }
            let due: Vec<u64> = weights.iter().map(|weight| u64::from(*weight) * weights.len() as u64).collect();
            prop_assert_eq!(tickets, due);
        }
    }

    #[test]
    fn draws_keep_to_the_weights_of_ten_thousand() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        fastrand::seed(seed);
        let weights: Vec<u16> = (0..10_000).map(|at| if at % 100 == 7 { 900 } else { 100 }).collect();
        let random = Random::new(&weights);
        let to_heavy = (0..100_000).filter(|_| random.draw().unwrap() % 100 == 7).count();
        // 900 of 10,800 are 8.33 %; a standard deviation is 87 draws, and this seven of them.
        assert!((7730..8940).contains(&to_heavy), "{to_heavy}");
    }
}
