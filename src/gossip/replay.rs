//! Which counters of one session were seen (the sliding window of RFC 6479, in its plain form).

/// How far behind the newest a datagram may arrive. 1,024 is four seconds of a node that sends 250 a second.
const WIDTH: u64 = 1024;

/// The newest counter seen and a bit for each of the [`WIDTH`] up to it.
#[derive(Debug, Default)]
pub(crate) struct Window {
    newest: u64,
    bits: [u64; (WIDTH / 64) as usize],
}

impl Window {
    /// Whether a counter was not seen and is not too old. Counters begin at 1.
    pub(crate) fn is_new(&self, counter: u64) -> bool {
        if counter > self.newest {
            return true;
        }
        counter != 0 && self.newest - counter < WIDTH && !self.bit(counter)
    }

    /// Marks a counter as seen. Call it for authentic counters only: it moves the window.
    pub(crate) fn mark(&mut self, counter: u64) {
        if counter > self.newest {
            let first = (self.newest + 1).max(counter.saturating_sub(WIDTH - 1));
            for passed in first..=counter {
                self.bits[word(passed)] &= !mask(passed);
            }
            self.newest = counter;
        }
        self.bits[word(counter)] |= mask(counter);
    }

    fn bit(&self, counter: u64) -> bool {
        self.bits[word(counter)] & mask(counter) != 0
    }
}

fn word(counter: u64) -> usize {
    (counter % WIDTH / 64) as usize
}

fn mask(counter: u64) -> u64 {
    1 << (counter % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn zero_is_never_new() {
        assert!(!Window::default().is_new(0));
    }

    proptest! {
        /// Against the plain truth: a set of everything seen.
        #[test]
        fn agrees_with_a_set(steps in proptest::collection::vec((0..3000_u64, any::<bool>()), 1..400)) {
            let (mut window, mut seen, mut newest) = (Window::default(), HashSet::new(), 0_u64);
            for (step, is_jump) in steps {
                let counter = if is_jump { newest + step + 1 } else { newest.saturating_sub(step) };
                let expected = counter > newest
                    || (counter > 0 && newest - counter < WIDTH && !seen.contains(&counter));
                prop_assert_eq!(window.is_new(counter), expected, "{} after {}", counter, newest);
                if expected {
                    window.mark(counter);
                    seen.insert(counter);
                    newest = newest.max(counter);
                }
            }
        }
    }
}
