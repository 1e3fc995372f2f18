//! One connection, to a client or to a backend, with TLS or without: what passes through is the same.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::has_budget_remaining;
use tokio_rustls::TlsStream;

/// A connection that bytes are read from and written to.
#[derive(Debug)]
pub(super) enum Stream {
    /// As the bytes come.
    Plain(TcpStream),
    /// Sealed. In a box, so that a plain connection is not as large as one with TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// The connection below: its options, its addresses, and what becomes of its close. Reading from it or writing
    /// to it is for those who know that it is plain.
    pub(super) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// The connection, if what passes is not sealed.
    pub(super) fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(_) => None,
        }
    }

    /// Pending if nothing can be there to be read. With TLS something may always be.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_readable(self.plain(), cx)
    }

    /// Reads where [`Self::poll_readable`] was ready. None: nothing is there after all, and that is to be asked again.
    pub(super) fn poll_receive(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<Option<usize>>> {
        Side::of(self).poll_receive(cx, room)
    }

    /// Whether what passes is sealed.
    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self::Plain(tcp)
    }
}

impl From<TlsStream<TcpStream>> for Stream {
    fn from(tls: TlsStream<TcpStream>) -> Self {
        Self::Tls(Box::new(tls))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => loop {
                ready!(tcp.poll_read_ready(cx))?;
                if let Some(count) = receive(tcp, buffer.initialize_unfilled())? {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
            },
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Side::of(self.get_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, pieces),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Side::of(self.get_mut()).poll_flush(cx)
    }

    /// Says that nothing more is sent: a FIN, and before it, with TLS, that this is the end.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// A connection as both directions of a relay use it at once.
pub(super) enum Side<'a> {
    Plain(&'a TcpStream),
    Tls(Pin<&'a mut TlsStream<TcpStream>>),
}

impl<'a> Side<'a> {
    pub(super) fn of(stream: &'a mut Stream) -> Self {
        match stream {
            Stream::Plain(tcp) => Self::Plain(tcp),
            Stream::Tls(tls) => Self::Tls(Pin::new(tls)),
        }
    }

    /// The connection, if what passes is not sealed.
    pub(super) fn plain(&self) -> Option<&'a TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(_) => None,
        }
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Pending if nothing can be there to be read. With TLS something may always be.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_readable(self.plain(), cx)
    }

    /// Reads where [`Self::poll_readable`] was ready. None: nothing is there after all, and that is to be asked again.
    pub(super) fn poll_receive(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<Option<usize>>> {
        match self {
            Self::Plain(tcp) => Poll::Ready(receive(tcp, room)),
            Self::Tls(tls) => {
                let mut room = ReadBuf::new(room);
                tls.as_mut().poll_read(cx, &mut room).map_ok(|()| Some(room.filled().len()))
            }
        }
    }

    /// Reads what is there; 0: its end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_readable(cx))?;
            if let Some(count) = ready!(self.poll_receive(cx, room))? {
                return Poll::Ready(Ok(count));
            }
        }
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes, SendFlags::empty())
    }

    /// Writes what is followed by the end at once, so that the kernel may send both in one packet.
    pub(super) fn poll_write_last(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes, SendFlags::MORE)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8], flags: SendFlags) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(tcp) => poll_transmit(tcp, cx, bytes, flags),
            Self::Tls(tls) => tls.as_mut().poll_write(cx, bytes),
        }
    }

    /// Nothing of what was written waits here any more.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => tls.as_mut().poll_flush(cx),
        }
    }

    /// Says that nothing more is written.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => Poll::Ready(SockRef::from(*tcp).shutdown(Shutdown::Write)),
            Self::Tls(tls) => tls.as_mut().poll_shutdown(cx),
        }
    }
}

/// Whether there may be something to read, without waiting for it: this takes no lock.
pub(super) fn is_readable(tcp: &TcpStream) -> bool {
    tcp.try_io(Interest::READABLE, || Ok(())).is_ok()
}

/// Whether who was just told to wait for a socket or a timer is woken by it. Without a budget it was told to come again
/// instead.
pub(super) fn is_registered() -> bool {
    has_budget_remaining()
}

fn poll_readable(plain: Option<&TcpStream>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    plain.map_or(Poll::Ready(Ok(())), |tcp| tcp.poll_read_ready(cx))
}

/// What is there now; none: nothing is. What tokio's own does, but for the C library's wrapper, which looks after threads
/// that are cancelled. A socket that does not fill the buffer is empty now, and is not asked again before the kernel says
/// that more has come; that its end has come is said for good.
pub(super) fn receive(tcp: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    as_far_as_there_is(tcp, Interest::READABLE, buffer.len(), || {
        rustix::net::recv(tcp, &mut *buffer, RecvFlags::empty()).map(|(_, count)| count)
    })
}

/// The same for writing: a socket that does not take all is full now.
pub(super) fn transmit(tcp: &TcpStream, bytes: &[u8], flags: SendFlags) -> io::Result<Option<usize>> {
    as_far_as_there_is(tcp, Interest::WRITABLE, bytes.len(), || {
        rustix::net::send(tcp, bytes, flags | SendFlags::NOSIGNAL)
    })
}

fn poll_transmit(tcp: &TcpStream, cx: &mut Context<'_>, bytes: &[u8], flags: SendFlags) -> Poll<io::Result<usize>> {
    loop {
        if let Some(count) = transmit(tcp, bytes, flags)? {
            return Poll::Ready(Ok(count));
        }
        ready!(tcp.poll_write_ready(cx))?;
    }
}

/// A call; none: nothing is there, or no room. One that moved less than `wanted` has moved all there is: the runtime is
/// told as if the next had found nothing.
fn as_far_as_there_is(
    tcp: &TcpStream,
    interest: Interest,
    wanted: usize,
    mut call: impl FnMut() -> rustix::io::Result<usize>,
) -> io::Result<Option<usize>> {
    let mut moved = None;
    let asked = tcp.try_io(interest, || {
        let count = retry_on_intr(&mut call)?;
        moved = Some(count);
        if (1..wanted).contains(&count) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match asked {
        Err(error) if moved.is_none() && error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(moved),
    }
}
