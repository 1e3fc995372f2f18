//! When to apply: soon after a change, but not at every one of a storm. Pure: the time comes from outside.

use std::time::{Duration, Instant};

/// How long after a change the next ones are waited for.
pub const GATHER: Duration = Duration::from_millis(100);
/// In how long one more turn comes free. Each reload leaves a generation of workers behind for a while, and makes
/// nginx's clients connect anew.
pub const TURN: Duration = Duration::from_secs(2);
/// The most turns that can be saved up.
const TURNS_MAX: f64 = 2.0;

/// A token bucket of two turns, refilled by one in two seconds. Its second turn is for a change that comes alone: while
/// changes go on without a pause there is none before that time is over, so that a storm of a second costs two
/// turns, one at its beginning and one for its last state. Nothing waits longer than that time.
#[derive(Debug)]
pub struct Pace {
    turns: f64,
    counted_at: Instant,
    first: Option<Instant>,
    last: Instant,
}

impl Pace {
    /// With all turns free and nothing to do.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { turns: TURNS_MAX, counted_at: now, first: None, last: now }
    }

    /// There is a new state.
    pub fn changed(&mut self, now: Instant) {
        self.first.get_or_insert(now);
        self.last = now;
    }

    /// When the newest state is to be applied; none: it has been.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let gathered = self.first? + GATHER;
        let alone = (self.last + GATHER).max(self.free_at(1.0));
        let in_a_storm = self.counted_at + TURN.mul_f64((TURNS_MAX - self.turns).clamp(0.0, 1.0));
        Some(gathered.max(alone.min(in_a_storm)))
    }

    /// The newest state is being applied.
    pub fn begin(&mut self) {
        self.first = None;
    }

    /// Applying it took a turn: something was reloaded, or should have been.
    pub fn took_turn(&mut self, now: Instant) {
        self.turns = (self.turns_at(now) - 1.0).max(0.0);
        self.counted_at = now;
    }

    fn turns_at(&self, now: Instant) -> f64 {
        let refill = now.saturating_duration_since(self.counted_at).as_secs_f64() / TURN.as_secs_f64();
        (self.turns + refill).min(TURNS_MAX)
    }

    fn free_at(&self, turns: f64) -> Instant {
        self.counted_at + TURN.mul_f64((turns - self.turns).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays changes at the given milliseconds; when each turn was taken, and what the last change seen was.
    fn play(changes: &[u64]) -> Vec<(u64, u64)> {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut turns = Vec::new();
        let mut changes = changes.iter().copied().peekable();
        let mut seen = 0;
        for millisecond in 0..20_000 {
            let now = start + Duration::from_millis(millisecond);
            while let Some(at) = changes.next_if(|at| *at <= millisecond) {
                pace.changed(now);
                seen = at;
            }
            if pace.due().is_some_and(|due| due <= now) {
                pace.begin();
                pace.took_turn(now);
                turns.push((millisecond, seen));
            }
        }
        turns
    }

    #[test]
    fn a_lone_change_waits_a_tenth_of_a_second() {
        assert_eq!(play(&[1000]), [(1100, 1000)]);
        assert_eq!(play(&[1000, 1300]), [(1100, 1000), (1400, 1300)]);
    }

    #[test]
    fn five_hundred_changes_in_a_second_take_two_turns_and_the_last_state_is_applied() {
        let storm: Vec<u64> = (0..500).map(|i| 1000 + i * 2).collect();
        let turns = play(&storm);
        assert_eq!(turns.len(), 2, "{turns:?}");
        assert_eq!(turns.last().unwrap().1, 1998);
    }

    #[test]
    fn a_long_storm_takes_one_turn_in_two_seconds() {
        let storm: Vec<u64> = (0..1000).map(|i| 1000 + i * 10).collect();
        let turns = play(&storm);
        assert!(turns.len() <= 7, "{turns:?}");
        assert!(turns.windows(2).all(|pair| pair[1].0 - pair[0].0 <= 2001), "{turns:?}");
        assert_eq!(turns.last().unwrap().1, 10_990);
    }

    #[test]
    fn a_storm_after_two_changes_that_came_alone_waits_no_longer_than_any() {
        let storm = (0..1000).map(|i| 1500 + i * 10);
        let turns = play(&[1000, 1200].into_iter().chain(storm).collect::<Vec<_>>());
        assert!(turns.windows(2).all(|pair| pair[1].0 - pair[0].0 <= 2001), "{turns:?}");
        assert!(turns.len() <= 8, "{turns:?}");
    }

    #[test]
    fn who_flaps_each_second_takes_one_turn_in_two_however_many_they_are() {
        // Suspected and back, each for a second; one alone, and fifty at their own moments.
        for flapping in [1, 50] {
            let mut changes: Vec<u64> =
                (0..flapping).flat_map(|at| (0..18).map(move |second| 1000 + second * 1000 + at * 19)).collect();
            changes.sort_unstable();
            let turns = play(&changes);
            assert!(turns.len() <= 11, "{flapping}: {} turns: {turns:?}", turns.len());
            let in_any_ten_seconds = turns
                .iter()
                .map(|(from, _)| turns.iter().filter(|(at, _)| (*from..from + 10_000).contains(at)).count());
            assert!(in_any_ten_seconds.max() <= Some(6), "{flapping}: {turns:?}");
            assert_eq!(turns.last().unwrap().1, *changes.last().unwrap());
        }
    }

    #[test]
    fn a_slow_drip_takes_one_turn_in_two_seconds_too() {
        let drip: Vec<u64> = (0..50).map(|i| 1000 + i * 150).collect();
        let turns = play(&drip);
        assert!(turns.len() <= 6, "{turns:?}");
        assert_eq!(turns.last().unwrap().1, 1000 + 49 * 150);
    }
}
