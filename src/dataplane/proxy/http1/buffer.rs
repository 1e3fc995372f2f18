//! Buffers of a worker: taken when there are bytes, given back when there are none, so that an idle connection holds
//! none.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use crate::proxy::stream::Stream;

/// What one read can bring.
pub(in crate::proxy) const BUFFER_BYTES: usize = 16 * 1024;
/// What it can bring when reads come back full: a body that is long.
const BULK_BYTES: usize = 64 * 1024;
/// What it may bring where there is room for less, see [`Input::poll_fill_some`].
const SMALL_BYTES: [usize; 2] = [4 * 1024, 1024];
/// What is there to write with.
const SCRATCH_BYTES: usize = 4 * 1024;
/// Buffers of each kind that a worker keeps for the next who needs one.
const KEPT_MAX: usize = 64;
/// The same for the large ones.
const BULK_KEPT_MAX: usize = 16;

thread_local! {
    static READ: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static BULK: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static WRITTEN: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

type Store = std::thread::LocalKey<RefCell<Vec<Vec<u8>>>>;

fn take(store: &'static Store) -> Option<Vec<u8>> {
    store.with_borrow_mut(Vec::pop)
}

fn give_back(store: &'static Store, max: usize, bytes: Vec<u8>) {
    // The thread may be ending, its store gone already.
    let _ = store.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.len() < max {
            kept.push(bytes);
        }
    });
}

/// A buffer for one read, which goes back with [`give_back_read`]. Measured by others: larger ones gain little for a
/// connection whose bytes are passed on at once.
pub(in crate::proxy) fn take_read() -> Vec<u8> {
    take(&READ).unwrap_or_else(|| vec![0; BUFFER_BYTES])
}

/// Gives a buffer of [`take_read`] back, if there is one. Others are dropped.
pub(in crate::proxy) fn give_back_read(bytes: Option<Vec<u8>>) {
    if let Some(bytes) = bytes.filter(|bytes| bytes.len() == BUFFER_BYTES) {
        give_back(&READ, KEPT_MAX, bytes);
    }
}

/// Lets go of most buffers that nobody needs now: what a crowd had is gone soon after it.
pub(in crate::proxy) fn sweep() {
    for store in [&READ, &BULK, &WRITTEN] {
        store.with_borrow_mut(|kept| {
            kept.truncate(kept.len() / 4);
            kept.shrink_to_fit();
        });
    }
}

/// Lets go of the first bytes, and with the last of them of the memory: an empty rest would hold all of it.
pub(in crate::proxy) fn consume(bytes: &mut Bytes, count: usize) {
    bytes.advance(count.min(bytes.len()));
    if bytes.is_empty() {
        *bytes = Bytes::new();
    }
}

/// Bytes that were read and not yet used.
pub(in crate::proxy) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    fn new(size: usize) -> Self {
        let kept = match size {
            BULK_BYTES => take(&BULK),
            BUFFER_BYTES => take(&READ),
            _ => None,
        };
        Self { bytes: kept.unwrap_or_else(|| vec![0; size]), start: 0, end: 0 }
    }

    pub(in crate::proxy) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(in crate::proxy) fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Whether nothing more fits in.
    pub(in crate::proxy) fn is_full(&self) -> bool {
        self.end - self.start == self.bytes.len()
    }

    /// Lets go of the first bytes.
    pub(in crate::proxy) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Makes room for `bytes` in all, if there is less.
    pub(in crate::proxy) fn grow(&mut self, bytes: usize) {
        if bytes > self.bytes.len() {
            self.bytes.resize(bytes, 0);
        }
    }

    /// Reads once; none: nothing was there.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        limit: usize,
    ) -> Poll<io::Result<Option<usize>>> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.bytes.len() {
            // Not to be taken for the connection's end.
            return Poll::Ready(Err(io::ErrorKind::StorageFull.into()));
        }
        let most = self.bytes.len().min(self.end.saturating_add(limit.max(SMALL_BYTES[1])));
        let count = ready!(stream.poll_receive(cx, &mut self.bytes[self.end..most]))?;
        self.end += count.unwrap_or(0);
        Poll::Ready(Ok(count))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // One that had to grow is not kept.
        match self.bytes.len() {
            BUFFER_BYTES => give_back(&READ, KEPT_MAX, std::mem::take(&mut self.bytes)),
            BULK_BYTES => give_back(&BULK, BULK_KEPT_MAX, std::mem::take(&mut self.bytes)),
            _ => {}
        }
    }
}

/// What was read ahead on one connection.
#[derive(Default)]
pub(in crate::proxy) struct Input {
    buffer: Option<Buffer>,
    /// The last read came back full.
    is_bulk: bool,
}

impl Input {
    pub(in crate::proxy) fn filled(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], Buffer::filled)
    }

    pub(in crate::proxy) fn filled_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map_or(&mut [], Buffer::filled_mut)
    }

    pub(in crate::proxy) fn is_empty(&self) -> bool {
        self.filled().is_empty()
    }

    /// Whether the last read came back full.
    pub(in crate::proxy) fn is_bulk(&self) -> bool {
        self.is_bulk
    }

    /// Whether nothing more fits in, as long as it is not made to [grow](Self::grow).
    pub(in crate::proxy) fn is_full(&self) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| buffer.is_full() && buffer.bytes.len() >= BUFFER_BYTES)
    }

    pub(in crate::proxy) fn grow(&mut self, bytes: usize) {
        if let Some(buffer) = &mut self.buffer {
            buffer.grow(bytes);
        }
    }

    pub(in crate::proxy) fn consume(&mut self, count: usize) {
        if let Some(buffer) = &mut self.buffer {
            buffer.consume(count);
        }
    }

    /// Reads what is there; 0 is the end. A buffer is held only if something has come.
    pub(in crate::proxy) fn poll_fill(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<usize>> {
        self.poll_fill_some(cx, stream, usize::MAX)
    }

    /// The same, of no more than `limit` bytes, or of a [small](SMALL_BYTES) buffer if those are less. What does not fit
    /// into a small one, a line that is long, gets a larger one.
    pub(in crate::proxy) fn poll_fill_some(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            // Most of the time nothing is there, and no buffer is needed to see that.
            let Poll::Ready(readable) = stream.poll_readable(cx) else {
                self.release();
                return Poll::Pending;
            };
            readable?;
            let size = match if self.is_bulk { BULK_BYTES } else { BUFFER_BYTES } {
                size if size <= limit => size,
                _ if BUFFER_BYTES <= limit => BUFFER_BYTES,
                _ => SMALL_BYTES[usize::from(limit < SMALL_BYTES[0])],
            };
            self.buffer.take_if(|buffer| buffer.filled().is_empty() && buffer.bytes.len() != size);
            let buffer = self.buffer.get_or_insert_with(|| Buffer::new(size));
            if buffer.is_full() && buffer.bytes.len() < BUFFER_BYTES {
                buffer.grow(size.max(4 * buffer.bytes.len()));
            }
            let filled = buffer.poll_fill(cx, stream, limit);
            if matches!(filled, Poll::Ready(Ok(Some(_)))) {
                // A large buffer is worth having as long as reads bring more than a small one would hold.
                self.is_bulk = buffer.filled().len() >= BUFFER_BYTES;
            }
            self.release();
            if let Some(count) = ready!(filled)? {
                return Poll::Ready(Ok(count));
            }
        }
    }

    /// Holds what has to wait in no more than twice the memory that it takes.
    pub(in crate::proxy) fn tighten(&mut self) {
        if let Some(buffer) = &mut self.buffer
            && 2 * buffer.filled().len() < buffer.bytes.len()
        {
            let bytes = buffer.filled().to_vec();
            *buffer = Buffer { start: 0, end: bytes.len(), bytes };
        }
        self.release();
    }

    /// Gives the buffer back if nothing is in it.
    pub(in crate::proxy) fn release(&mut self) {
        self.buffer.take_if(|buffer| buffer.filled().is_empty());
    }
}

/// Bytes that are written in one piece; its memory comes from the store and goes back there.
#[derive(Default)]
pub(in crate::proxy) struct Scratch(Vec<u8>);

impl Scratch {
    pub(in crate::proxy) fn new() -> Self {
        Self(take(&WRITTEN).unwrap_or_else(|| Vec::with_capacity(SCRATCH_BYTES)))
    }

    /// Holds no more memory than its bytes take from now on: they are kept for a while.
    pub(in crate::proxy) fn tighten(&mut self) {
        *self = Self(self.0.as_slice().to_vec());
    }
}

impl Deref for Scratch {
    type Target = Vec<u8>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if (SCRATCH_BYTES..=2 * BUFFER_BYTES).contains(&self.0.capacity()) {
            self.0.clear();
            give_back(&WRITTEN, KEPT_MAX, std::mem::take(&mut self.0));
        }
    }
}

/// Bytes that wait to be written to one connection.
#[derive(Default)]
pub(in crate::proxy) struct Queue {
    bytes: Option<Scratch>,
    written: usize,
    has_moved: bool,
}

impl Queue {
    /// Where to put what is to be written.
    pub(in crate::proxy) fn bytes(&mut self) -> &mut Vec<u8> {
        self.bytes.get_or_insert_with(Scratch::new)
    }

    /// How much waits.
    pub(in crate::proxy) fn len(&self) -> usize {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len() - self.written)
    }

    /// Whether something was written since this was asked last.
    pub(in crate::proxy) fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.has_moved)
    }

    /// Writes all of it; ready when the connection has taken it.
    pub(in crate::proxy) fn poll_write(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<()>> {
        while let Some(waiting) = self.bytes.as_deref().and_then(|bytes| bytes.get(self.written..)) {
            if waiting.is_empty() {
                self.bytes = None;
                self.written = 0;
                break;
            }
            match ready!(Pin::new(&mut *stream).poll_write(cx, waiting))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => {
                    self.written += count;
                    self.has_moved = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn a_connection_without_bytes_holds_no_buffer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut stream = Stream::from(listener.accept().await.unwrap().0);
        let mut input = Input::default();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(input.poll_fill(&mut cx, &mut stream).is_pending() && input.buffer.is_none());
        peer.write_all(b"hello").await.unwrap();
        let count = std::future::poll_fn(|cx| input.poll_fill(cx, &mut stream)).await.unwrap();
        assert_eq!((count, input.filled()), (5, &b"hello"[..]));
        input.consume(3);
        assert!(input.poll_fill(&mut cx, &mut stream).is_pending());
        assert_eq!(input.filled(), b"lo");
        input.consume(2);
        assert!(input.poll_fill(&mut cx, &mut stream).is_pending() && input.buffer.is_none());
        assert_eq!(READ.with_borrow(Vec::len), 1, "it is where the next one finds it");
        // Long bodies are read in larger pieces, as long as they come so.
        let sending = tokio::spawn(async move { peer.write_all(&[7; 300_000]).await.map(|()| peer) });
        let (mut read, mut largest) = (0, 0);
        while read < 300_000 {
            let count = std::future::poll_fn(|cx| input.poll_fill(cx, &mut stream)).await.unwrap();
            input.consume(count);
            (read, largest) = (read + count, largest.max(count));
        }
        assert!(largest > BUFFER_BYTES && largest <= BULK_BYTES, "{largest}");
        let mut peer = sending.await.unwrap().unwrap();
        // Where there is little room, little is read, and a long line has one that grows.
        peer.write_all(&[7; 20_000]).await.unwrap();
        for (limit, bytes) in [(5000, 4096), (4095, 1024), (0, 1024)] {
            let count = std::future::poll_fn(|cx| input.poll_fill_some(cx, &mut stream, limit)).await.unwrap();
            assert_eq!(count, bytes);
            input.consume(count);
        }
        let mut line = 0;
        while line < 10_000 {
            assert!(!input.is_full());
            line += std::future::poll_fn(|cx| input.poll_fill_some(cx, &mut stream, 0)).await.unwrap();
        }
        input.consume(line - 10);
        input.tighten();
        assert_eq!(input.buffer.as_ref().unwrap().bytes.len(), 10);
        peer.write_all(b"more").await.unwrap();
        let count = std::future::poll_fn(|cx| input.poll_fill(cx, &mut stream)).await.unwrap();
        assert!(input.filled().ends_with(b"more") && input.buffer.as_ref().unwrap().bytes.len() == BUFFER_BYTES);
        input.consume(10 + count);
        drop(peer);
        let _ = std::future::poll_fn(|cx| input.poll_fill(cx, &mut stream)).await.unwrap();
        assert!(input.buffer.is_none() && READ.with_borrow(Vec::len) > 0 && BULK.with_borrow(Vec::len) > 0);
    }
}
