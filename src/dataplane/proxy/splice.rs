//! Bytes from one socket to another through a pipe in the kernel: they are moved, not copied.
//!
//! A pipe is filled only when it is empty: then a socket that gives nothing is empty too, and not the pipe full (a full
//! pipe says the same), and the end of a connection is seen only when nothing is left to be written. A pipe holds
//! nothing but what is on its way; whoever is done with one gives it back to the worker.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a pipe is asked to hold: 64 pieces of a packet or more each. The kernel's own default is 16, which a network
/// card fills with 23 KiB.
const PIPE_BYTES: usize = 256 * 1024;
/// One that holds less is not worth its descriptors: the kernel's own default.
const PIPE_BYTES_MIN: usize = 64 * 1024;
/// Empty pipes that a worker keeps for the next who needs one.
const PIPES_KEPT: usize = 16;
/// A direction is bulk when so many bytes came in pieces of [`LARGE_BYTES`] or more, one after the other.
const BULK_BYTES: usize = 64 * 1024;
/// Smaller pieces are copied faster than moved.
const LARGE_BYTES: usize = 8 * 1024;
/// So many smaller ones in a row, and the direction is bulk no more.
const SMALL_MAX: u8 = 4;

thread_local! {
    static PIPES: RefCell<Pipes> = const { RefCell::new(Pipes { kept: Vec::new(), open: 0, limit: 16 }) };
}

/// The pipes of one worker.
struct Pipes {
    kept: Vec<Ends>,
    open: usize,
    limit: usize,
}

struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
}

/// Lets this thread have so many pipes at once; each takes two descriptors.
pub(super) fn allow(limit: usize) {
    PIPES.with_borrow_mut(|pipes| pipes.limit = limit);
}

/// A pipe and what is in it.
pub(super) struct Pipe {
    ends: Option<Ends>,
    held: usize,
}

impl Pipe {
    /// An empty pipe; none: this worker has as many as it may have, or no descriptor or memory is left.
    pub(super) fn take() -> Option<Self> {
        PIPES.with_borrow_mut(|pipes| {
            if let Some(ends) = pipes.kept.pop() {
                return Some(Self { ends: Some(ends), held: 0 });
            }
            if pipes.open >= pipes.limit {
                return None;
            }
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
            // Whoever has no privilege may have so much in pipes, and gets them tiny from then on. These are all there are.
            let is_large = || fcntl_getpipe_size(&writer).is_ok_and(|bytes| bytes >= PIPE_BYTES_MIN);
            if fcntl_setpipe_size(&writer, PIPE_BYTES).is_err() && !is_large() {
                pipes.limit = pipes.open;
                return None;
            }
            pipes.open += 1;
            Some(Self { ends: Some(Ends { reader, writer }), held: 0 })
        })
    }

    /// How many bytes are in it.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves what there is, but no more than `limit` bytes, into the pipe, which must be empty; 0: the socket has come to
    /// its end.
    pub(super) fn fill(&mut self, from: impl AsFd, limit: usize) -> io::Result<usize> {
        let Some(ends) = self.ends.as_ref().filter(|_| self.held == 0) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.held = moved(|| splice(&from, None, &ends.writer, None, limit.min(PIPE_BYTES), flags()))?;
        Ok(self.held)
    }

    /// The same for who waits.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || self.fill(from, limit)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    /// Moves what is in the pipe out of it; ready when some of it went.
    pub(super) fn poll_empty(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || self.empty(to)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    /// Moves what is in the pipe out of it; says how much of it went.
    fn empty(&mut self, to: impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let count = moved(|| splice(&ends.reader, None, &to, None, self.held, flags()))?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.held = self.held.saturating_sub(count);
        Ok(count)
    }
}

/// Not `MORE`: it would hold back the end of what is sent until more comes.
fn flags() -> SpliceFlags {
    SpliceFlags::MOVE | SpliceFlags::NONBLOCK
}

fn moved(mut splice: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<usize> {
    loop {
        match splice() {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let (Some(ends), is_empty) = (self.ends.take(), self.held == 0) else {
            return;
        };
        // The thread may be ending, its store gone already.
        let _ = PIPES.try_with(|pipes| {
            let mut pipes = pipes.borrow_mut();
            if is_empty && pipes.kept.len() < PIPES_KEPT {
                pipes.kept.push(ends);
            } else {
                pipes.open -= 1;
            }
        });
    }
}

/// Whether what comes from one side is worth a pipe.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    bytes: usize,
    small: u8,
    is_never: bool,
}

impl Bulk {
    pub(super) fn is(&self) -> bool {
        self.bytes >= BULK_BYTES && !self.is_never
    }

    /// It has turned out that it cannot be moved.
    pub(super) fn never(&mut self) {
        self.is_never = true;
    }

    /// A piece has come.
    pub(super) fn saw(&mut self, bytes: usize) {
        if bytes >= LARGE_BYTES {
            self.bytes = self.bytes.saturating_add(bytes);
            self.small = 0;
        } else if !self.is() || self.small + 1 >= SMALL_MAX {
            (self.bytes, self.small) = (0, 0);
        } else {
            self.small += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn large_pieces_make_bulk_and_small_ones_end_it() {
        let mut bulk = Bulk::default();
        for _ in 0..1000 {
            bulk.saw(LARGE_BYTES - 1);
        }
        assert!(!bulk.is(), "a conversation is not bulk however long it is");
        (0..7).for_each(|_| bulk.saw(LARGE_BYTES));
        assert!(!bulk.is());
        bulk.saw(1);
        (0..7).for_each(|_| bulk.saw(LARGE_BYTES));
        assert!(!bulk.is(), "a small one in between begins it anew");
        bulk.saw(LARGE_BYTES);
        assert!(bulk.is());
        for _ in 0..10 {
            (1..SMALL_MAX).for_each(|_| bulk.saw(1));
            bulk.saw(LARGE_BYTES);
        }
        assert!(bulk.is());
        (0..SMALL_MAX).for_each(|_| bulk.saw(1));
        assert!(!bulk.is());
    }

    #[test]
    fn only_so_many_pipes_are_open_and_only_empty_ones_are_used_again() {
        allow(2);
        let (mut far, near) = pair();
        let (one, mut two) = (Pipe::take().unwrap(), Pipe::take().unwrap());
        assert!(Pipe::take().is_none());
        drop(one);
        let one = Pipe::take().unwrap();
        far.write_all(b"left behind").unwrap();
        assert_eq!(two.fill(&near, usize::MAX).unwrap(), 11);
        assert!(two.fill(&near, usize::MAX).is_err(), "it is not empty");
        drop((one, two));
        let pipes = [Pipe::take().unwrap(), Pipe::take().unwrap()];
        assert!(Pipe::take().is_none());
        let (mut other, to) = pair();
        for mut pipe in pipes {
            far.write_all(b"new").unwrap();
            assert_eq!((pipe.fill(&near, usize::MAX).unwrap(), pipe.empty(&to).unwrap(), pipe.held()), (3, 3, 0));
            let mut read = [0; 3];
            other.read_exact(&mut read).unwrap();
            assert_eq!(&read, b"new", "nothing of what somebody else left");
        }
    }

    #[test]
    fn the_end_is_seen_when_the_pipe_is_empty() {
        let (mut far, near) = pair();
        far.write_all(b"the last").unwrap();
        drop(far);
        let mut pipe = Pipe::take().unwrap();
        assert_eq!(pipe.fill(&near, usize::MAX).unwrap(), 8);
        let (mut other, to) = pair();
        assert_eq!(pipe.empty(&to).unwrap(), 8);
        assert_eq!(pipe.fill(&near, usize::MAX).unwrap(), 0);
        drop(to);
        let mut read = String::new();
        other.read_to_string(&mut read).unwrap();
        assert_eq!(read, "the last");
    }
}
