//! Connecting to a backend.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::Shared;
use super::stream::Stream;
use crate::backend::{Backend, Lease};

/// When a peer that is silent is asked whether it is still there, how often, and how many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

/// Connects to the backend of `lease` and counts what goes wrong, as the backend's failure if it is one.
pub(super) async fn backend(shared: &Shared, lease: &Lease, deadline: Duration) -> io::Result<Stream> {
    let opening = tokio::time::timeout(deadline, open(shared, lease.backend()));
    let result = opening.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    if let Err(error) = &result {
        shared.counters.connect_failures.inc();
        if !is_ours(error) {
            lease.failed();
        }
    }
    result
}

async fn open(shared: &Shared, backend: &Backend) -> io::Result<Stream> {
    let stream = connect(backend.address).await?;
    if backend.protocol.is_tls() {
        // Boxed, so that a connection without it does not carry room for it.
        return Box::pin(shared.tls.connect(stream, backend)).await;
    }
    Ok(Stream::from(stream))
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // Where nobody listens, on this machine, a socket can meet itself.
    if stream.local_addr()? == address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    tune(&stream);
    Ok(stream)
}

/// Small pieces go out at once, and a peer that vanished without a word is found out in the end. What is accepted has
/// this from the socket that listens.
pub(super) fn tune<'a>(socket: impl Into<SockRef<'a>>) {
    let (socket, (after, every, times)) = (socket.into(), KEEPALIVE);
    // Neither is worth losing a connection for.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(after).with_interval(every).with_retries(times));
}

/// Makes the close of a connection that broke off a reset, so that its peer cannot take it for the end.
pub(super) fn reset_on_close(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Out of descriptors, ports or memory: this machine's trouble, not the backend's.
pub(super) fn is_ours(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const OURS: [Errno; 5] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| OURS.iter().any(|ours| ours.raw_os_error() == code))
}
