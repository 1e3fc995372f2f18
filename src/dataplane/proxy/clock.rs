//! The time, for what is asked it with each piece or request.

use std::sync::OnceLock;
use std::time::Duration;

use nix::time::{ClockId, clock_getres, clock_gettime};
use tokio::time::Instant;

/// The kernel's next tick: what begins now has begun by then, so that a deadline counted from it is not too early unless
/// the machine is late with its tick. It is 1 to 10 ms away at most, as the kernel was built, and costs a quarter of
/// the exact time (5 ns for 19).
pub(super) fn next_tick() -> Instant {
    static START: OnceLock<(Instant, Duration)> = OnceLock::new();
    let tick = since_boot(ClockId::CLOCK_MONOTONIC_COARSE);
    // An instant is made of the exact clock, which the coarse one follows.
    let (start, start_since_boot) =
        START.get_or_init(|| (Instant::now() + resolution(), since_boot(ClockId::CLOCK_MONOTONIC)));
    *start + tick.saturating_sub(*start_since_boot)
}

/// Where there is no coarse clock the exact one does.
fn since_boot(clock: ClockId) -> Duration {
    let time = clock_gettime(clock).or_else(|_| clock_gettime(ClockId::CLOCK_MONOTONIC));
    time.map_or(Duration::ZERO, Duration::from)
}

fn resolution() -> Duration {
    clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_not_before_now_and_not_long_after() {
        let resolution = resolution();
        assert!(resolution > Duration::ZERO && resolution <= Duration::from_millis(10), "{resolution:?}");
        let begin = Instant::now();
        let (mut looks, mut early, mut ticks) = (0, 0, 0);
        let mut last = next_tick();
        while ticks < 5 {
            let (before, tick, after) = (Instant::now(), next_tick(), Instant::now());
            assert!(tick <= after + resolution && tick >= last, "{last:?} {tick:?} {after:?}");
            looks += 1;
            // A machine that is busy elsewhere is late with its tick.
            early += u32::from(tick < before);
            ticks += u32::from(std::mem::replace(&mut last, tick) != tick);
            assert!(begin.elapsed() < Duration::from_secs(10), "it stands still");
        }
        assert!(early * 2 < looks, "{early} of {looks} are past");
    }
}
