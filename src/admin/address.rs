//! Where the admin server listens.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address of the admin server: `unix:/run/scrimp/scrimp.sock` or `127.0.0.1:9377`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AdminAddr {
    /// A unix socket: only this user and root can talk to it.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

/// Why a text is not an admin address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("admin address {0:?} is not valid: use unix:/run/scrimp/scrimp.sock, or IP:PORT like 127.0.0.1:9377")]
pub struct AdminAddrError(String);

impl FromStr for AdminAddr {
    type Err = AdminAddrError;
    fn from_str(text: &str) -> Result<Self, AdminAddrError> {
        let error = || AdminAddrError(text.chars().take(200).collect());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(error()) } else { Ok(Self::Unix(path.into())) };
        }
        if let Some(port) = text.strip_prefix("localhost:") {
            let port = port.parse().map_err(|_| error())?;
            return Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        text.parse().map(Self::Tcp).map_err(|_| error())
    }
}

impl TryFrom<String> for AdminAddr {
    type Error = AdminAddrError;
    fn try_from(text: String) -> Result<Self, AdminAddrError> {
        text.parse()
    }
}

impl From<AdminAddr> for String {
    fn from(address: AdminAddr) -> Self {
        address.to_string()
    }
}

impl fmt::Display for AdminAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["unix:/run/scrimp/scrimp.sock", "127.0.0.1:9377", "[::1]:9377", "0.0.0.0:0"] {
            assert_eq!(text.parse::<AdminAddr>().unwrap().to_string(), text);
        }
        assert_eq!("localhost:1".parse::<AdminAddr>().unwrap().to_string(), "127.0.0.1:1");
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example() {
        for text in ["", "unix:", "/run/scrimp.sock", "9377", ":9377", "example.com:80", "127.0.0.1:99999"] {
            let error = text.parse::<AdminAddr>().unwrap_err().to_string();
            assert!(error.contains("unix:/run/scrimp/scrimp.sock"), "{error}");
        }
    }
}
