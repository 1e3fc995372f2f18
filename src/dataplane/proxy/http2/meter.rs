//! When a peer makes us work for nothing.
//!
//! Every frame costs a little, more if it has to be answered; what is of use to somebody pays for it: a request that was
//! answered, bytes that were sent or received. What the crate `h2` bounds by itself is counted here all the same, since it
//! forgives what was accepted: a stream that is opened and reset at once has cost a backend its work by then.

use std::time::{Duration, Instant};

use h2::Reason;

use super::frames::{CONTINUATION, DATA, HEADERS, Head, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE};

/// What a peer may have at most, and begins with: 500 PINGs in a row, 2,000 windows that are opened for nothing.
const CREDIT_MAX: u32 = 2000;
/// What comes back by itself: somebody who asks two times a second whether we are still there may.
const CREDIT_A_SECOND: u32 = 10;
/// Bytes sent or received that pay for one frame: a download of full frames pays for the windows that it needs 60 times
/// over, one of single bytes for none.
const BYTES_A_CREDIT: u32 = 128;
/// Requests given up that a peer may have at once; the same as bursts of other servers allow. Each one that was answered
/// makes room for another.
const RESETS_MAX: u32 = 200;
/// The same, by itself: a client whose deadlines run out for minutes.
const RESETS_A_SECOND: u32 = 20;

/// What one peer has done.
#[derive(Debug)]
pub(super) struct Meter {
    credit: u32,
    resets: u32,
    /// Whether it is a client, which gives up what it has asked for: a backend says no.
    is_client: bool,
    /// Bytes that make no whole credit yet.
    rest: u32,
    /// Whether something was sent since the last PING that was free, and since the last window of the connection that
    /// was. Who measures the way (gRPC does) sends one of each for every round in which something came.
    owes_ping: bool,
    owes_window: bool,
    refilled: Instant,
}

impl Meter {
    pub(super) fn new(is_client: bool, now: Instant) -> Self {
        Self {
            credit: CREDIT_MAX,
            resets: RESETS_MAX,
            is_client,
            rest: 0,
            owes_ping: false,
            owes_window: false,
            refilled: now,
        }
    }

    /// A frame has come.
    ///
    /// # Errors
    /// When it was one too many.
    pub(super) fn frame(&mut self, head: &Head, now: Instant) -> Result<(), Reason> {
        let cost = match head.kind {
            DATA if head.length > 0 => {
                self.pay_bytes(head.length);
                return Ok(());
            }
            DATA if head.is_end() => return Ok(()),
            DATA | PRIORITY => 2,
            // A block may be small and mean much.
            HEADERS | CONTINUATION => 1 + head.length / 256,
            RST_STREAM if self.is_client => return self.give_up(now),
            SETTINGS => 8,
            PING if std::mem::take(&mut self.owes_ping) => 0,
            PING => 4,
            WINDOW_UPDATE if head.is_of_connection() && std::mem::take(&mut self.owes_window) => 0,
            WINDOW_UPDATE | RST_STREAM => 1,
            _ => 2 + head.length / 256,
        };
        self.refill(now);
        self.credit = self.credit.checked_sub(cost).ok_or(Reason::ENHANCE_YOUR_CALM)?;
        Ok(())
    }

    /// A stream was given up, by the peer or for what the peer sent on it.
    ///
    /// # Errors
    /// When it was one too many.
    pub(super) fn give_up(&mut self, now: Instant) -> Result<(), Reason> {
        self.refill(now);
        self.resets = self.resets.checked_sub(1).ok_or(Reason::ENHANCE_YOUR_CALM)?;
        Ok(())
    }

    /// A request was answered; the headers that came from the peer for it were so long.
    pub(super) fn answered(&mut self, header_bytes: usize) {
        self.resets = (self.resets + 1).min(RESETS_MAX);
        self.pay(8 + u32::try_from(header_bytes / 128).unwrap_or(CREDIT_MAX));
    }

    /// A frame has been sent: a header, or one with bytes of a body.
    pub(super) fn sent(&mut self, bytes: usize) {
        (self.owes_ping, self.owes_window) = (true, true);
        self.pay_bytes(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    fn pay_bytes(&mut self, bytes: u32) {
        let bytes = self.rest.saturating_add(bytes);
        self.rest = bytes % BYTES_A_CREDIT;
        self.pay(bytes / BYTES_A_CREDIT);
    }

    fn pay(&mut self, credit: u32) {
        self.credit = self.credit.saturating_add(credit).min(CREDIT_MAX);
    }

    fn refill(&mut self, now: Instant) {
        let seconds = u32::try_from(now.saturating_duration_since(self.refilled).as_secs()).unwrap_or(u32::MAX);
        if seconds > 0 {
            self.refilled += Duration::from_secs(u64::from(seconds));
            self.pay(seconds.saturating_mul(CREDIT_A_SECOND));
            self.resets = self.resets.saturating_add(seconds.saturating_mul(RESETS_A_SECOND)).min(RESETS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::http2::frames::Follower;

    fn head(length: usize, kind: u8, flags: u8) -> Head {
        head_on(1, length, kind, flags)
    }

    fn head_on(stream: u8, length: usize, kind: u8, flags: u8) -> Head {
        let mut bytes = vec![0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
        bytes.extend_from_slice(&[kind, flags, 0, 0, 0, stream]);
        let mut last = None;
        let _ = Follower::new(false).follow(&bytes, |head| {
            last = Some(*head);
            Ok(())
        });
        last.unwrap()
    }

    /// How many of these frames a peer gets through.
    fn flood(length: usize, kind: u8, flags: u8, useful: impl Fn(&mut Meter)) -> usize {
        let now = Instant::now();
        let (mut meter, head) = (Meter::new(true, now), head(length, kind, flags));
        (0..20_000)
            .find(|_| {
                useful(&mut meter);
                meter.frame(&head, now).is_err()
            })
            .unwrap_or(usize::MAX)
    }

    #[test]
    fn what_is_for_nothing_ends_soon() {
        for (length, kind, frames_max) in [
            (8, PING, 500),
            (0, SETTINGS, 250),
            (0, DATA, 1000),
            (5, PRIORITY, 1000),
            (4, WINDOW_UPDATE, 2000),
            (4, RST_STREAM, 200),
            (16384, HEADERS, 31),
            (16384, 0xee, 31),
            (0, 0xee, 1000),
        ] {
            let count = flood(length, kind, 0, |_| {});
            assert!(count <= frames_max, "{kind}: {count}");
            assert!(count * (length + 9) <= 1 << 20, "{kind}: {count}");
        }
        // Bytes that are sent one by one pay for hardly anything.
        assert!(flood(4, WINDOW_UPDATE, 0, |meter| meter.sent(1)) < 2100);
    }

    #[test]
    fn what_is_of_use_never_ends() {
        assert_eq!(flood(1, DATA, 0, |_| {}), usize::MAX);
        assert_eq!(flood(0, DATA, 1, |_| {}), usize::MAX);
        assert_eq!(flood(4, WINDOW_UPDATE, 0, |meter| meter.sent(128)), usize::MAX);
        assert_eq!(flood(8000, HEADERS, 4, |meter| meter.answered(8000)), usize::MAX);
        assert_eq!(flood(4, RST_STREAM, 0, |meter| meter.answered(0)), usize::MAX);
    }

    #[test]
    fn small_messages_pay_for_measuring_the_way() {
        let now = Instant::now();
        for is_client in [true, false] {
            let mut meter = Meter::new(is_client, now);
            let (ping, window) = (head_on(0, 8, PING, 0), head_on(0, 4, WINDOW_UPDATE, 0));
            for _ in 0..20_000 {
                meter.sent(5);
                meter.frame(&window, now).unwrap();
                meter.frame(&ping, now).unwrap();
            }
            // One of each, and not more.
            let count = (0..20_000).take_while(|_| {
                meter.sent(5);
                meter.frame(&ping, now).is_ok() && meter.frame(&ping, now).is_ok()
            });
            assert!(count.count() <= 550);
        }
    }

    #[test]
    fn time_heals() {
        let mut now = Instant::now();
        let mut meter = Meter::new(true, now);
        for _ in 0..10_000 {
            now += Duration::from_millis(500);
            meter.frame(&head(8, PING, 0), now).unwrap();
        }
        while meter.give_up(now).is_ok() {}
        now += Duration::from_secs(1);
        let more = (0..1000).take_while(|_| meter.give_up(now).is_ok()).count();
        assert_eq!(more, RESETS_A_SECOND as usize);
    }
}
