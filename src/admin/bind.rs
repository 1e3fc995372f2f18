//! Opens the admin server's sockets.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::AdminAddr;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 64;

/// Why an admin address cannot be bound, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Another process answers at the unix socket.
    #[error("another scrimp answers at {0}; stop it, or give this one another with --admin")]
    SocketInUse(PathBuf),
    /// Something that is not a socket is in the place of the unix socket.
    #[error("{0} exists and is not a socket; move it away, or choose another path with --admin")]
    NotASocket(PathBuf),
    /// The unix socket cannot be made.
    #[error("cannot open the admin socket {path}: {source}; {remedy}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The TCP port is taken.
    #[error("admin address {0} is in use; stop what listens there (ss -ltnp shows it), or choose another with --admin")]
    PortInUse(SocketAddr),
    /// The TCP port cannot be opened.
    #[error("cannot listen on admin address {address}: {source}; choose another with --admin")]
    Port {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// One bound address.
#[derive(Debug)]
pub(super) enum Listener {
    Unix { listener: UnixListener, address: AdminAddr, file: SocketFile },
    Tcp { listener: TcpListener, address: AdminAddr, bound: SocketAddr },
}

impl Listener {
    pub(super) fn bind(address: &AdminAddr) -> Result<Self, AdminError> {
        match address {
            AdminAddr::Unix(path) => bind_unix(path),
            AdminAddr::Tcp(address) => bind_tcp(*address),
        }
    }

    pub(super) fn address(&self) -> &AdminAddr {
        match self {
            Self::Unix { address, .. } | Self::Tcp { address, .. } => address,
        }
    }
}

/// The file of a unix socket. Removed on drop, unless another has taken its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind_tcp(address: SocketAddr) -> Result<Listener, AdminError> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok(Listener::Tcp { listener, address: AdminAddr::Tcp(bound), bound })
    };
    bind().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => AdminError::PortInUse(address),
        _ => AdminError::Port { address, source },
    })
}

fn bind_unix(path: &Path) -> Result<Listener, AdminError> {
    let fail = |source: io::Error| AdminError::Socket { path: path.to_owned(), remedy: remedy(&source), source };
    let name = SockAddr::unix(path).map_err(fail)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(parent).map_err(fail)?;
    let _turn = take_turn(parent);
    make_room(path, &name)?;
    let bind = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&name)?;
        // Nobody can connect before `listen`, so nobody meets the socket with wider permissions.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let made = fs::symlink_metadata(path)?;
        let file = SocketFile { path: path.to_owned(), inode: (made.dev(), made.ino()) };
        let address = AdminAddr::Unix(path.to_owned());
        Ok(Listener::Unix { listener: UnixListener::from(std::os::fd::OwnedFd::from(socket)), address, file })
    };
    bind().map_err(fail)
}

/// Two nodes that start at the same moment must not take each other's fresh socket for a stale one: whoever
/// holds the lock on the folder goes first. Others may lock folders for reasons of their own, so the wait ends.
fn take_turn(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    for _ in 0..100 {
        if file.try_lock().is_ok() {
            return Some(file);
        }
        thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Removes a socket that nobody listens to any more.
fn make_room(path: &Path, name: &SockAddr) -> Result<(), AdminError> {
    let fail = |source: io::Error| AdminError::Socket { path: path.to_owned(), remedy: remedy(&source), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(AdminError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    if is_answered(name).map_err(fail)? {
        return Err(AdminError::SocketInUse(path.to_owned()));
    }
    fs::remove_file(path).map_err(fail)
}

fn is_answered(name: &SockAddr) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Without this a connect to a listener with a full backlog would wait for it.
    socket.set_nonblocking(true)?;
    match socket.connect(name) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run scrimp as a user that may write there, or choose a path with --admin",
        io::ErrorKind::ReadOnlyFilesystem => "choose a path that can be written with --admin",
        io::ErrorKind::InvalidInput => "a socket's path has at most 107 bytes: choose a shorter one with --admin",
        _ => "choose another path with --admin",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &Path) -> Result<Listener, AdminError> {
        Listener::bind(&AdminAddr::Unix(path.to_owned()))
    }

    #[test]
    fn a_socket_is_for_its_owner_only_and_goes_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/s.sock");
        let listener = unix(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_is_left_alone_and_a_stale_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let other = UnixListener::bind(&path).unwrap();
        let error = unix(&path).unwrap_err();
        assert!(matches!(error, AdminError::SocketInUse(_)), "{error}");
        assert!(error.to_string().contains("--admin"), "{error}");
        drop(other);
        assert!(path.exists(), "the stale file is there");
        unix(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(unix(&path), Err(AdminError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn a_socket_that_took_the_place_of_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let ours = unix(&path).unwrap();
        fs::rename(&path, folder.path().join("away")).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }

    #[test]
    fn errors_say_what_to_do() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        assert!(unix(&long).unwrap_err().to_string().contains("107 bytes"));
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = Listener::bind(&AdminAddr::Tcp(taken.local_addr().unwrap())).unwrap_err().to_string();
        assert!(error.contains("is in use") && error.contains("--admin"), "{error}");
    }
}
