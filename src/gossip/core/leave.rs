//! Saying goodbye: first our own record, acknowledged, then foca's notice.

use std::time::{Duration, Instant};

use super::{Core, Effect, Timer};

/// A goodbye waits this long for acknowledgements.
const LEAVE_DELAY: Duration = Duration::from_secs(1);
/// Then foca's own notice goes out this many times, so far apart.
const LEAVE_ROUNDS: u8 = 4;
const LEAVE_ROUND: Duration = Duration::from_millis(60);

impl Core {
    pub(super) fn leave(&mut self, now: Instant) {
        if self.leaving.is_some() {
            return;
        }
        self.leaving = Some(false);
        self.record.is_leaving = true;
        self.record_changed(now);
        let delay = if self.is_alone() { Duration::ZERO } else { LEAVE_DELAY };
        self.schedule(now, delay, Timer::Leave(0));
    }

    pub(super) fn leave_now(&mut self, now: Instant) {
        if self.leaving == Some(true) {
            return;
        }
        self.leaving = Some(true);
        drop(self.foca.leave_cluster(&mut self.runtime));
        self.drain_foca(now);
        self.schedule(now, LEAVE_ROUND, Timer::Leave(1));
    }

    pub(super) fn leave_round(&mut self, now: Instant, round: u8) {
        match round {
            0 if self.is_alone() && self.leaving == Some(false) => self.effects.push_back(Effect::Left),
            0 => self.leave_now(now),
            LEAVE_ROUNDS => self.effects.push_back(Effect::Left),
            _ => {
                drop(self.foca.gossip(&mut self.runtime));
                self.drain_foca(now);
                self.schedule(now, LEAVE_ROUND, Timer::Leave(round + 1));
            }
        }
    }
}
