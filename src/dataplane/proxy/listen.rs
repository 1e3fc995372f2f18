//! Opening listen ports.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::dial::{keep_alive, tune};
use super::udp;

/// Clients that may wait to be accepted; the kernel lowers it to net.core.somaxconn (4,096 on Linux).
const BACKLOG: i32 = 4096;

/// Why a port is not open.
#[derive(Debug)]
pub(super) enum ListenError {
    /// This machine has no such kind of address; nothing is wrong.
    NoSuchFamily,
    /// The reason and a remedy, in words for a person.
    Failed(String),
}

/// Opens a port for TCP. An IPv6 address takes IPv6 alone: IPv4 has an address of its own to bind.
pub(super) fn open(address: SocketAddr) -> Result<TcpListener, ListenError> {
    bind(address).map_err(|error| explain(address, &error, "-ltnp"))
}

/// Opens a port for UDP, one socket a worker.
pub(super) fn open_udp(address: SocketAddr, workers: usize) -> Result<Vec<UdpSocket>, ListenError> {
    udp::open(address, workers).map_err(|error| explain(address, &error, "-lunp"))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A port is not taken by connections of the last run that are still ending.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    tune(&socket);
    keep_alive(&socket);
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// `holders` are the flags with which ss shows who has such a port.
fn explain(address: SocketAddr, error: &io::Error, holders: &str) -> ListenError {
    use rustix::io::Errno;
    let code = error.raw_os_error();
    let is = |errno: Errno| code == Some(errno.raw_os_error());
    let unspecified_v6 = address.is_ipv6() && address.ip().is_unspecified();
    if is(Errno::AFNOSUPPORT) || (unspecified_v6 && is(Errno::ADDRNOTAVAIL)) {
        return ListenError::NoSuchFamily;
    }
    let port = address.port();
    ListenError::Failed(match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {port} is taken at {}: stop what holds it (ss {holders} 'sport = :{port}'), or give the application \
             another listen port",
            address.ip()
        ),
        io::ErrorKind::PermissionDenied => format!(
            "port {port} may not be opened at {}: ports below 1024 need the capability CAP_NET_BIND_SERVICE \
             (AmbientCapabilities=CAP_NET_BIND_SERVICE in a systemd unit), or use a higher listen port",
            address.ip()
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("port {port} cannot be opened at {}: this machine does not have that address", address.ip())
        }
        _ => format!("port {port} cannot be opened at {}: {error}", address.ip()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_the_remedy() {
        let address: SocketAddr = "0.0.0.0:80".parse().unwrap();
        let reason = |errno: rustix::io::Errno| match explain(address, &errno.into(), "-ltnp") {
            ListenError::Failed(reason) => reason,
            ListenError::NoSuchFamily => panic!("{errno:?}"),
        };
        assert!(reason(rustix::io::Errno::ADDRINUSE).contains("ss -ltnp 'sport = :80'"));
        assert!(reason(rustix::io::Errno::ACCESS).contains("CAP_NET_BIND_SERVICE"));
        assert!(reason(rustix::io::Errno::ADDRNOTAVAIL).contains("does not have that address"));
        let nothing = explain("[::]:80".parse().unwrap(), &rustix::io::Errno::AFNOSUPPORT.into(), "-ltnp");
        assert!(matches!(nothing, ListenError::NoSuchFamily));
    }

    #[test]
    fn what_is_accepted_is_tuned() {
        let listener = open("127.0.0.1:0".parse().unwrap()).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let accepted = Socket::from(listener.accept().unwrap().0);
        assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap());
        assert!(accepted.out_of_band_inline().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), std::time::Duration::from_secs(60));
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 4);
    }

    #[test]
    fn both_families_open_one_port_side_by_side() {
        let v4 = open("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = v4.local_addr().unwrap().port();
        match open(SocketAddr::from(([0_u16; 8], port))) {
            Ok(_) | Err(ListenError::NoSuchFamily) => {}
            Err(ListenError::Failed(reason)) => panic!("{reason}"),
        }
        assert!(matches!(open(SocketAddr::from(([0, 0, 0, 0], port))), Err(ListenError::Failed(_))));
    }
}
