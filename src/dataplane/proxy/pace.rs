//! How long a client may take to send a request's body.

use std::time::Duration;

/// What an upload brings at least, on average. Far less than any line that people use; an attack sends a byte now and
/// then. (Apache's `mod_reqtimeout` asks for 500, Kestrel for 240.)
const LEAST_BYTES_PER_SECOND: u64 = 128;

/// The time that is left to a client whose turn it is.
///
/// A body of no known length may be a stream, which says something when there is something to say: each piece gives it
/// the whole time again. One of a known length is an upload and earns its time by its bytes; else one byte now and then
/// would hold a connection to a backend for hours.
#[derive(Debug)]
pub(super) struct Pace {
    is_upload: bool,
    most: Duration,
    left: Duration,
    /// Bytes that have come since the last turn ended.
    came_bytes: u64,
    is_clients_turn: bool,
}

impl Pace {
    pub(super) fn new(is_upload: bool, most: Duration) -> Self {
        Self { is_upload, most, left: most, came_bytes: 0, is_clients_turn: false }
    }

    /// So many bytes of the body have gone on.
    pub(super) fn pass(&mut self, bytes: usize) {
        self.came_bytes += bytes as u64;
    }

    /// A turn has ended that `took` so long, and the next is the client's or not.
    pub(super) fn turn(&mut self, took: Duration, is_clients_turn: bool) {
        if self.is_upload {
            let spent = if self.is_clients_turn { took } else { Duration::ZERO };
            let earned = Duration::from_millis(self.came_bytes.saturating_mul(1000) / LEAST_BYTES_PER_SECOND);
            self.left = self.left.saturating_sub(spent).saturating_add(earned).min(self.most);
        }
        self.came_bytes = 0;
        self.is_clients_turn = is_clients_turn;
    }

    /// How long the client's turn may take.
    pub(super) fn left(&self) -> Duration {
        self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(30);

    /// What is left after pieces of `bytes` with `gap` between them; none if it was cut before that.
    fn after(is_upload: bool, pieces: u32, bytes: usize, gap: Duration) -> Option<Duration> {
        let mut pace = Pace::new(is_upload, MOST);
        pace.turn(Duration::ZERO, true);
        for _ in 0..pieces {
            if gap >= pace.left() {
                return None;
            }
            pace.pass(bytes);
            pace.turn(gap, true);
        }
        Some(pace.left())
    }

    #[test]
    fn an_upload_earns_its_time() {
        assert_eq!(after(true, 4, 1, Duration::from_secs(10)), None);
        assert_eq!(after(true, 1000, 1, Duration::from_secs(1)), None, "a byte a second");
        assert_eq!(after(true, 100_000, 128, Duration::from_secs(1)), Some(MOST));
        assert_eq!(after(true, 1000, 1280, Duration::from_secs(10)), Some(MOST));
        assert_eq!(after(true, 2, 1, Duration::from_secs(10)), Some(MOST - Duration::from_millis(19_986)));
        assert_eq!(after(true, 1, 1 << 40, Duration::from_secs(1)), Some(MOST), "nothing is saved up");
    }

    #[test]
    fn a_stream_says_something_when_there_is_something() {
        assert_eq!(after(false, 1000, 1, Duration::from_secs(29)), Some(MOST));
        assert_eq!(after(false, 1, 1, MOST), None);
    }

    #[test]
    fn the_backends_time_is_not_the_clients() {
        let mut pace = Pace::new(true, MOST);
        for _ in 0..100 {
            pace.turn(Duration::from_secs(20), false);
        }
        pace.turn(Duration::from_secs(20), true);
        assert_eq!(pace.left(), MOST);
        pace.turn(Duration::from_secs(20), false);
        assert_eq!(pace.left(), MOST - Duration::from_secs(20));
    }
}
