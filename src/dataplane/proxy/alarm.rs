//! A timer for a deadline that moves with almost every byte.

use std::ops::DerefMut;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

use super::stream::is_registered;

/// Wakes its task at a deadline. The runtime's timer is moved when it fires, or has to fire sooner, and not each time the
/// deadline moves; and it is not asked again before it has fired. One task's own: it wakes who asked last.
pub(super) struct Alarm<P> {
    timer: Pin<P>,
    /// The timer wakes the task when it fires; until then there is nothing to be seen.
    is_set: bool,
}

impl Alarm<Box<Sleep>> {
    /// One on the heap, that can be moved.
    pub(super) fn boxed(deadline: Instant) -> Self {
        Self::new(Box::pin(tokio::time::sleep_until(deadline)))
    }
}

impl<P: DerefMut<Target = Sleep>> Alarm<P> {
    pub(super) fn new(timer: Pin<P>) -> Self {
        Self { timer, is_set: false }
    }

    /// Whether it will wake its task, and no deadline so far has passed.
    fn is_quiet(&self) -> bool {
        self.is_set && !self.timer.is_elapsed()
    }

    /// Ready at `deadline`.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        if deadline < self.timer.deadline() {
            self.timer.as_mut().reset(deadline);
        } else if self.is_quiet() {
            return Poll::Pending;
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                self.is_set = false;
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
        self.is_set = is_registered();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Duration;

    use tokio::task::coop::{consume_budget, has_budget_remaining};

    /// Waits for it; how late it was.
    async fn rung<P: DerefMut<Target = Sleep>>(alarm: &mut Alarm<P>, deadline: Instant) -> Duration {
        poll_fn(|cx| alarm.poll(cx, deadline)).await;
        let now = Instant::now();
        assert!(now >= deadline, "it rang {:?} too early", deadline - now);
        now - deadline
    }

    #[tokio::test]
    async fn it_rings_at_the_latest_deadline() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut alarm = Alarm::boxed(start + ms(1));
        for deadline in [1, 3, 30, 30, 60] {
            rung(&mut alarm, start + ms(deadline)).await;
        }
        // A late one, and then one that is sooner.
        assert!(poll_fn(|cx| Poll::Ready(alarm.poll(cx, start + ms(3_600_000)))).await.is_pending());
        assert!(alarm.is_quiet());
        assert!(rung(&mut alarm, start + ms(90)).await < ms(60_000));
    }

    #[tokio::test]
    async fn who_has_no_budget_left_asks_again() {
        let deadline = Instant::now() + Duration::from_millis(50);
        let mut alarm = Alarm::boxed(deadline);
        poll_fn(|cx| {
            while has_budget_remaining() {
                let _ = pin!(consume_budget()).poll(cx);
            }
            assert!(alarm.poll(cx, deadline).is_pending() && !alarm.is_quiet());
            Poll::Ready(())
        })
        .await;
        rung(&mut alarm, deadline).await;
    }
}
