//! What a crowd of clients took goes back to the kernel when it has gone.
//!
//! The C library keeps what was freed, for the next crowd. Of some thousand connections that is tens of megabytes, on a
//! machine that has half a gigabyte for everything.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;

/// How often it is looked. Workers let go of buffers that nobody needs as often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A crowd: what fewer connections leave behind is not worth the walk through it.
const CROWD: usize = 500;

/// Looks after the memory until the proxy stops.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut crowd = Crowd::default();
    while shared.stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        if crowd.has_left(shared.admission.take_most(), shared.admission.open()) {
            // It takes some milliseconds for each ten megabytes, which are no worker's.
            let _ = tokio::task::spawn_blocking(give_back).await;
        }
    }
}

/// How many there were at most since the last time.
#[derive(Default)]
struct Crowd {
    peak: usize,
    /// What the last buffers of a crowd left is given back a little later.
    rounds: u8,
}

impl Crowd {
    /// Whether half of a crowd, or more, has gone, of which there were `most` since it was asked last.
    fn has_left(&mut self, most: usize, open: usize) -> bool {
        self.peak = self.peak.max(most).max(open);
        if self.peak >= CROWD && open <= self.peak / 2 {
            (self.peak, self.rounds) = (open, 3);
        }
        let is_round = self.rounds > 0;
        self.rounds = self.rounds.saturating_sub(1);
        is_round
    }
}

/// Gives back what is free, wherever in the heap it is.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the only way to say it, and a call without conditions")]
fn give_back() {
    // SAFETY: malloc_trim(3) may be called at any time by any thread.
    unsafe { nix::libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_back_when_half_of_a_crowd_has_gone() {
        let mut crowd = Crowd::default();
        let mut looked = |all: &[usize]| all.iter().map(|open| crowd.has_left(*open, *open)).collect::<Vec<_>>();
        assert_eq!(looked(&[0, CROWD - 1, 0, 0]), [false; 4], "that was none");
        assert_eq!(looked(&[9000, 8000, 4501]), [false; 3]);
        assert_eq!(looked(&[4500, 4400, 4300, 4200]), [true, true, true, false]);
        assert_eq!(looked(&[2000, 500, 0, 0, 0, 0]), [true, true, true, true, true, false]);
        assert_eq!(looked(&[100, 0]), [false; 2]);
        assert!(crowd.has_left(9000, 0), "one that came and went in between");
    }
}
