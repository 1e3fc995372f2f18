//! What waits to be sent on one connection, all streams together.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use tokio::time::Instant;

/// As much as keeps a fast client busy, and no more for one that does not read.
const STOCK_BYTES_MAX: usize = 256 * 1024;

/// Counts the bytes that have been handed to the engine and not yet been written.
#[derive(Default)]
pub(super) struct Stock {
    bytes: Cell<usize>,
    /// When something came or was written last.
    moved: Cell<Option<Instant>>,
    waiting: RefCell<Vec<Waker>>,
}

impl Stock {
    /// Ready when there is room for more.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.bytes.get() < STOCK_BYTES_MAX {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Whether nothing waits to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.get() == 0
    }

    /// When something came or was written last, if anything ever did.
    pub(super) fn moved(&self) -> Option<Instant> {
        self.moved.get()
    }

    fn give_back(&self, bytes: usize) {
        let left = self.bytes.get().saturating_sub(bytes);
        self.bytes.set(left);
        if left < STOCK_BYTES_MAX / 2 {
            self.waiting.take().into_iter().for_each(Waker::wake);
        }
    }
}

/// A piece of a body; it counts until it has been written or thrown away.
pub(super) struct Piece {
    bytes: Bytes,
    counted: usize,
    stock: Rc<Stock>,
}

impl Piece {
    pub(super) fn new(bytes: Bytes, stock: &Rc<Stock>) -> Self {
        let counted = bytes.len();
        stock.bytes.set(stock.bytes.get() + counted);
        stock.moved.set(Some(Instant::now()));
        Self { bytes, counted, stock: Rc::clone(stock) }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.stock.moved.set(Some(Instant::now()));
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.stock.give_back(self.counted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_makes_room() {
        let stock = Rc::new(Stock::default());
        let mut cx = Context::from_waker(Waker::noop());
        let pieces: Vec<Piece> = (0..)
            .map_while(|_| {
                stock.poll_room(&mut cx).is_ready().then(|| Piece::new(Bytes::from_static(&[0; 16384]), &stock))
            })
            .collect();
        assert_eq!(pieces.len(), 16);
        drop(pieces);
        assert!(stock.poll_room(&mut cx).is_ready() && stock.bytes.get() == 0 && stock.waiting.borrow().is_empty());
    }
}
