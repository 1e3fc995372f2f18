//! Sockets for datagrams: those that listen, and those that speak with one backend.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg, sendmsg,
    setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

/// What waits to be read, asked for: a burst of some thousand small datagrams. The kernel lowers it to
/// net.core.rmem_max (208 KiB on Linux).
const RECEIVE_BUFFER_BYTES: usize = 1024 * 1024;

/// Opens a port, one socket a worker. The kernel gives the datagrams of one client to one and the same socket, as long
/// as their number stays.
pub(in crate::proxy) fn open(address: SocketAddr, workers: usize) -> io::Result<Vec<UdpSocket>> {
    // The first has the port for itself: somebody else's sockets would take a share of the datagrams.
    let first = bind(address, false)?;
    first.set_reuse_port(true)?;
    // A test may leave the choice of the port to the kernel.
    let address = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first.into()];
    for _ in 1..workers {
        sockets.push(bind(address, true)?.into());
    }
    Ok(sockets)
}

fn bind(address: SocketAddr, is_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(is_shared)?;
    if address.ip().is_unspecified() {
        // An answer leaves from the address that was asked.
        match address {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        }
    }
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A socket that hears nobody but `backend`.
pub(super) fn connect(backend: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(backend), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.connect(&backend.into())?;
    Ok(socket)
}

/// Room for what the kernel says of a datagram.
#[derive(Debug)]
pub(super) struct Control(Vec<u8>);

impl Default for Control {
    fn default() -> Self {
        Self(cmsg_space!(libc::in6_pktinfo))
    }
}

/// A datagram that was received.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) length: usize,
    pub(super) client: SocketAddr,
    /// The address of ours that it was sent to.
    pub(super) local: IpAddr,
}

/// Reads one datagram from a socket that is bound to `bound`.
pub(super) fn receive(
    socket: &UdpSocket,
    bound: IpAddr,
    buffer: &mut [u8],
    control: &mut Control,
) -> io::Result<Received> {
    if !bound.is_unspecified() {
        let (length, client) = socket.recv_from(buffer)?;
        return Ok(Received { length, client: plain(client), local: bound });
    }
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control.0), MsgFlags::empty())?;
    let local = message.cmsgs()?.find_map(|said| match said {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(IpAddr::from(u32::from_be(info.ipi_spec_dst.s_addr).to_be_bytes()))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    });
    let client = message.address.and_then(|address| {
        let v4 = || address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
        v4().or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
    });
    match (client, local) {
        (Some(client), Some(local)) => Ok(Received { length: message.bytes, client: plain(client), local }),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A client stays the same whatever the label of its packets.
fn plain(client: SocketAddr) -> SocketAddr {
    match client {
        SocketAddr::V6(mut v6) => {
            v6.set_flowinfo(0);
            SocketAddr::V6(v6)
        }
        v4 @ SocketAddr::V4(_) => v4,
    }
}

/// Sends one datagram from `local` to `client`.
pub(super) fn reply(
    socket: &UdpSocket,
    bound: IpAddr,
    bytes: &[u8],
    client: SocketAddr,
    local: IpAddr,
) -> io::Result<()> {
    if !bound.is_unspecified() {
        return socket.send_to(bytes, client).map(drop);
    }
    let (fd, slices, flags) = (socket.as_raw_fd(), [IoSlice::new(bytes)], MsgFlags::empty());
    match (client, local) {
        (SocketAddr::V4(client), IpAddr::V4(local)) => {
            let from = libc::in_addr { s_addr: u32::from(local).to_be() };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: from, ipi_addr: libc::in_addr { s_addr: 0 } };
            sendmsg(fd, &slices, &[ControlMessage::Ipv4PacketInfo(&info)], flags, Some(&SockaddrIn::from(client)))
        }
        (SocketAddr::V6(client), IpAddr::V6(local)) => {
            let from = libc::in6_addr { s6_addr: local.octets() };
            let info = libc::in6_pktinfo { ipi6_ifindex: 0, ipi6_addr: from };
            sendmsg(fd, &slices, &[ControlMessage::Ipv6PacketInfo(&info)], flags, Some(&SockaddrIn6::from(client)))
        }
        _ => Err(Errno::EAFNOSUPPORT),
    }?;
    Ok(())
}
