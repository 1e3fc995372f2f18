//! Connecting to a backend.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

use super::Shared;
use super::stream::Stream;
use crate::app::Protocol;
use crate::backend::{Backend, Lease};

/// When a peer that is silent is asked whether it is still there, how often, and how many times.
pub(super) const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

/// Connects to the backend of `lease` and counts what goes wrong, as the backend's failure if it is one.
pub(super) async fn backend(shared: &Shared, lease: &Lease, deadline: Duration) -> io::Result<Stream> {
    let opened = tokio::time::timeout(deadline, open(shared, lease.backend())).await;
    let result = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    if let Err(error) = &result {
        shared.counters.connect_failures.inc();
        if !is_ours(error) {
            lease.failed();
        }
    }
    result
}

async fn open(shared: &Shared, backend: &Backend) -> io::Result<Stream> {
    if leads_back(&shared.listening.load(), backend.address) {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let stream = connect(backend.address).await?;
    if backend.protocol == Protocol::H2c {
        // Shared by many for long. Others have deadlines, or a relay that sees to it when nothing moves.
        keep_alive(&stream);
    }
    if backend.protocol.is_tls() {
        // Boxed, so that a connection without it does not carry room for it.
        return Box::pin(shared.tls.connect(stream, backend)).await;
    }
    Ok(Stream::from(stream))
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // Where nobody listens, on this machine, a socket can meet itself.
    if local_ports().contains(&address.port()) && stream.local_addr()? == address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    tune(&stream);
    Ok(stream)
}

/// Whether what is sent to `address` comes in at one of the places where we listen: it would go round for ever. It is
/// asked before anything is sent, since a connection that is accepted begins the next round.
pub(super) fn leads_back(listening: &[SocketAddr], address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    listening.iter().any(|place| {
        let is_any = || place.ip().is_unspecified() && place.is_ipv4() == ip.is_ipv4() && is_here(ip);
        place.port() == address.port() && (place.ip() == ip || is_any())
    })
}

/// Whether an address is this machine's own: who speaks to it does so from the address itself. Nothing is sent.
fn is_here(ip: IpAddr) -> bool {
    let from = || {
        let socket = Socket::new(Domain::for_address((ip, 0).into()), Type::DGRAM, None)?;
        // Any port: none is spoken to.
        socket.connect(&SocketAddr::from((ip, 9)).into())?;
        socket.local_addr()
    };
    // 127.0.0.2 and its kin are spoken to from 127.0.0.1.
    ip.is_loopback() || from().is_ok_and(|from| from.as_socket().is_some_and(|from| from.ip() == ip))
}

/// The ports that the kernel gives to who connects.
fn local_ports() -> &'static RangeInclusive<u16> {
    static PORTS: OnceLock<RangeInclusive<u16>> = OnceLock::new();
    PORTS.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let mut words = text.split_whitespace().map(str::parse);
        match (words.next(), words.next()) {
            (Some(Ok(first)), Some(Ok(last))) => first..=last,
            _ => 0..=u16::MAX,
        }
    })
}

/// Small pieces go out at once, and an urgent byte is one like any other rather than dropped. What is accepted has this
/// from the socket that listens.
pub(super) fn tune<'a>(socket: impl Into<SockRef<'a>>) {
    let socket = socket.into();
    // Neither is worth losing a connection for.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_out_of_band_inline(true);
}

/// A peer that vanished without a word is found out in the end.
pub(super) fn keep_alive<'a>(socket: impl Into<SockRef<'a>>) {
    let (socket, (after, every, times)) = (socket.into(), KEEPALIVE);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(after).with_interval(every).with_retries(times));
}

/// Makes the close of a connection that broke off a reset, so that its peer cannot take it for the end.
pub(super) fn reset_on_close(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Out of descriptors, ports or memory: this machine's trouble, not the backend's.
pub(super) fn is_ours(error: &io::Error) -> bool {
    is_out_of_descriptors(error) || is_one_of(error, &[Errno::NOMEM, Errno::NOBUFS, Errno::ADDRNOTAVAIL])
}

/// Whether it failed since there are no descriptors left.
pub(super) fn is_out_of_descriptors(error: &io::Error) -> bool {
    is_one_of(error, &[Errno::MFILE, Errno::NFILE])
}

fn is_one_of(error: &io::Error, some: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|code| some.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_places_are_known() {
        let places = ["0.0.0.0:80", "192.0.2.1:81", "127.0.0.1:82", "[::]:83"].map(|place| place.parse().unwrap());
        for (address, expected) in [
            ("127.0.0.1:80", true),
            ("127.0.0.2:80", true),
            ("[::ffff:127.0.0.1]:80", true),
            ("127.0.0.1:79", false),
            ("[::1]:80", false),
            ("203.0.113.1:80", false),
            ("192.0.2.1:81", true),
            ("192.0.2.2:81", false),
            ("127.0.0.2:82", false),
            ("[::1]:83", true),
            ("127.0.0.1:83", false),
        ] {
            assert_eq!(leads_back(&places, address.parse().unwrap()), expected, "{address}");
        }
        // Whatever this machine's addresses are.
        for own in if_addrs::get_if_addrs().unwrap().iter().filter(|own| !own.is_link_local()) {
            assert!(is_here(own.ip()), "{own:?}");
        }
    }

    /// What sets it does not say whether that went well.
    #[tokio::test]
    async fn small_pieces_go_to_a_backend_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(stream.nodelay().unwrap());
        assert!(SockRef::from(&stream).out_of_band_inline().unwrap());
    }
}
