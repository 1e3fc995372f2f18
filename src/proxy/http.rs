//! HTTP/1.1 applications: requests in, each routed by its host and path.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;

use super::worker::Worker;
use crate::name::Port;

/// Serves one client connection to its end.
pub(super) async fn serve(_worker: Rc<Worker>, _client: TcpStream, _peer: SocketAddr, _port: Port) {}
