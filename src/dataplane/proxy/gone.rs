//! Backends that are gone, and what becomes of what still runs over them.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use tokio_util::sync::WaitForCancellationFuture;

use super::{OnRemoval, Shared};
use crate::backend::{Lease, Load};

/// Runs `work` to its end, or until its backend is gone and connections of gone backends are to be ended: none.
pub(super) async fn until_gone<T>(
    shared: &Shared,
    lease: &Lease,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> Option<T> {
    let load = &lease.backend().load;
    let cancelled = pin!(load.gone.cancelled());
    let mut gone = Gone::new(shared, load, cancelled);
    poll_fn(|cx| match gone.poll(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => work.as_mut().poll(cx).map(Some),
    })
    .await
}

/// Hears that a backend is gone and its connections are to be ended. A task that waits for other things too looks each
/// time it is woken: only the first look takes the token's locks, which all workers share.
pub(super) struct Gone<'a, 'l> {
    shared: &'l Shared,
    load: &'l Load,
    cancelled: Pin<&'a mut WaitForCancellationFuture<'l>>,
    /// Who is woken.
    waker: Option<Waker>,
    /// It is gone, and its connections may go on.
    is_let: bool,
}

impl<'a, 'l> Gone<'a, 'l> {
    /// `cancelled` is the load's own `gone`. A cancelled token stays cancelled, so there is no moment at which a removal
    /// could be missed.
    pub(super) fn new(
        shared: &'l Shared,
        load: &'l Load,
        cancelled: Pin<&'a mut WaitForCancellationFuture<'l>>,
    ) -> Self {
        Self { shared, load, cancelled, waker: None, is_let: false }
    }

    /// Ready when that has happened.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_let {
            return Poll::Pending;
        }
        ready!(self.poll_gone(cx));
        self.is_let = self.shared.config.load().on_removal != OnRemoval::Kill;
        if self.is_let { Poll::Pending } else { Poll::Ready(()) }
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.load.is_gone() {
            return Poll::Ready(());
        }
        if self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.waker = Some(cx.waker().clone());
        self.cancelled.as_mut().poll(cx)
    }
}
