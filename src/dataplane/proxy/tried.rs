//! The backends that one request or one connection was tried on in vain, and whether it may be tried on another.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

/// Tried at most: more than most pools have.
const BACKENDS_MAX: usize = 10;
/// Tried however long they take to fail.
const PATIENT_MAX: usize = 3;
/// That got a request which can be repeated: it may be the request that is bad for them.
const GIVEN_MAX: usize = 3;

/// Those that failed. Those that refuse a connection do so at once: all of them are tried. Of those that say nothing, a
/// few.
#[derive(Debug, Default)]
pub(super) struct Tried {
    addresses: Vec<SocketAddr>,
    given: usize,
    late_at: Option<Instant>,
    is_late: bool,
}

impl Tried {
    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub(super) fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    pub(super) fn may_go_on(&self) -> bool {
        let most = if self.is_late { PATIENT_MAX } else { BACKENDS_MAX };
        self.addresses.len() < most && self.given < GIVEN_MAX
    }

    /// One failed, for which a connection may take as long as `connect`; with `was_given` it has got the request.
    pub(super) fn add(&mut self, address: SocketAddr, was_given: bool, connect: Duration, now: Instant) {
        let late_at = *self.late_at.get_or_insert(now + connect);
        self.is_late = now >= late_at;
        self.given += usize::from(was_given);
        self.addresses.push(address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECT: Duration = Duration::from_secs(2);

    /// How many are tried if each takes so long.
    fn tried(was_given: bool, each: Duration) -> usize {
        let (mut tried, mut now) = (Tried::default(), Instant::now());
        for port in 0.. {
            if !tried.may_go_on() {
                break;
            }
            now += each;
            tried.add(SocketAddr::from(([127, 0, 0, 1], port)), was_given, CONNECT, now);
        }
        tried.addresses().len()
    }

    #[test]
    fn who_refuses_is_passed_by_and_who_is_silent_a_few_times() {
        assert_eq!(tried(false, Duration::from_millis(1)), BACKENDS_MAX);
        assert_eq!(tried(false, CONNECT), PATIENT_MAX);
        assert_eq!(tried(false, 10 * CONNECT), PATIENT_MAX);
        assert_eq!(tried(true, Duration::from_millis(1)), GIVEN_MAX);
    }
}
