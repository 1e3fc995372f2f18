//! What is held of responses on one connection, all streams together.
//!
//! A client that asks for a hundred long bodies and takes none of them shall cost no more than one that does so once on
//! each of some connections.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use tokio::time::Instant;

/// As much as keeps a fast client busy, and no more for one that does not read.
const STOCK_BYTES_MAX: usize = 192 * 1024;
/// What was read and cannot be sent: the closer it comes, the less is read at once.
const HELD_BYTES_MAX: usize = 256 * 1024;

/// Counts the bytes that have been handed to the engine and not yet been written, and those that were read for a stream
/// whose client does not let it send.
#[derive(Default)]
pub(super) struct Stock {
    bytes: Cell<usize>,
    held: Cell<usize>,
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

    /// How much of a body may be read at once when there is [room](Self::poll_room): a quarter of what may be held, so
    /// that a dozen streams that wait leave others full reads.
    pub(super) fn room(&self) -> usize {
        HELD_BYTES_MAX.saturating_sub(self.held.get()) / 4
    }

    /// The same, of less, for a head, which is read whether there is room or not, and brings some of its body along.
    pub(super) fn head_room(&self) -> usize {
        STOCK_BYTES_MAX.saturating_sub(self.bytes.get() + self.held.get()) / 2
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

/// What was read for one stream and cannot be handed over yet. It keeps nobody else from sending, but from reading much.
pub(super) struct Held {
    bytes: usize,
    stock: Rc<Stock>,
}

impl Held {
    pub(super) fn new(stock: &Rc<Stock>) -> Self {
        Self { bytes: 0, stock: Rc::clone(stock) }
    }

    /// So many bytes are held now.
    pub(super) fn set(&mut self, bytes: usize) {
        let others = self.stock.held.get() - std::mem::replace(&mut self.bytes, bytes);
        self.stock.held.set(others + bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
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
        assert_eq!(pieces.len(), 12);
        assert_eq!((stock.room(), stock.head_room()), (HELD_BYTES_MAX / 4, 0));
        drop(pieces);
        // One after another, each of a part of what is left, and nobody waits for who holds it.
        assert_eq!(stock.head_room(), STOCK_BYTES_MAX / 2);
        let mut held: Vec<Held> = (0..3).map(|_| Held::new(&stock)).collect();
        let rooms = held.iter_mut().map(|held| {
            let room = stock.room();
            held.set(room);
            room
        });
        assert_eq!(rooms.collect::<Vec<_>>(), [65_536, 49_152, 36_864]);
        assert!(stock.poll_room(&mut cx).is_ready());
        held[1].set(10);
        drop(held);
        assert_eq!(stock.room(), HELD_BYTES_MAX / 4);
        assert!(stock.poll_room(&mut cx).is_ready() && stock.bytes.get() == 0 && stock.waiting.borrow().is_empty());
    }
}
