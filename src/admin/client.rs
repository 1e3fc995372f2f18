//! Asks a running node.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::AdminAddr;
use super::view::{AppsView, DoneView, ErrorView, MembersView, StatusView};

/// How long connecting may take, and an answer to a question.
const LIMIT: Duration = Duration::from_secs(5);
/// How long the answer to a wish may take: longer than the server's own limit for it.
const POST_LIMIT: Duration = Duration::from_secs(60);
/// The most bytes of an answer: 100 nodes with 256 applications each take about 10 MB.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One admin address, to be asked.
#[derive(Debug, Clone)]
pub struct Client {
    address: AdminAddr,
    token: Option<String>,
}

/// Why there is no answer, in words for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("nothing answers at {0}: is scrimp running here? If it has another admin address, name it with --admin")]
    NobodyThere(AdminAddr),
    /// The socket is not for this user.
    #[error("not allowed to talk to {0}: run this as root or as the user that scrimp runs as")]
    NotAllowed(AdminAddr),
    /// Too slow.
    #[error("{0} did not answer within {n} s", n = .1.as_secs())]
    TooSlow(AdminAddr, Duration),
    /// The connection failed.
    #[error("cannot talk to {0}: {1}")]
    Broken(AdminAddr, String),
    /// The node answered that it will not, or cannot.
    #[error("{message}")]
    Refused {
        /// The status of its answer.
        status: StatusCode,
        /// What it said.
        message: String,
    },
    /// The answer makes no sense.
    #[error("{0} answers, but not as scrimp does ({1}): name scrimp's admin address with --admin")]
    NotUnderstood(AdminAddr, String),
}

impl Client {
    /// Asks at `address`; `token` goes along with wishes.
    #[must_use]
    pub fn new(address: AdminAddr, token: Option<String>) -> Self {
        Self { address, token }
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn status(&self) -> Result<StatusView, ClientError> {
        self.get("/v1/status").await
    }

    /// `GET /v1/members`.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn members(&self) -> Result<MembersView, ClientError> {
        self.get("/v1/members").await
    }

    /// `GET /v1/apps`.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn apps(&self) -> Result<AppsView, ClientError> {
        self.get("/v1/apps").await
    }

    /// `GET` of a JSON answer, as a type or as `serde_json::Value`.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let (status, body) = self.ask(Method::GET, path, LIMIT).await?;
        self.read(status, &body)
    }

    /// Whether the node is ready; the error says why it is not.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn ready(&self) -> Result<(), ClientError> {
        let (status, body) = self.ask(Method::GET, "/readyz", LIMIT).await?;
        if status.is_success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&body).trim().chars().take(200).collect::<String>();
        Err(ClientError::Refused { status, message: format!("the node is not ready: {reason}") })
    }

    /// `POST` of a wish; gives back what the node says it did.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn post(&self, path: &str) -> Result<String, ClientError> {
        let (status, body) = self.ask(Method::POST, path, POST_LIMIT).await?;
        self.read(status, &body).map(|done: DoneView| done.message)
    }

    fn read<T: DeserializeOwned>(&self, status: StatusCode, body: &[u8]) -> Result<T, ClientError> {
        if status.is_success() {
            return serde_json::from_slice(body)
                .map_err(|error| ClientError::NotUnderstood(self.address.clone(), error.to_string()));
        }
        Err(match serde_json::from_slice(body) {
            Ok(ErrorView { error }) => ClientError::Refused { status, message: error },
            Err(_) => ClientError::NotUnderstood(self.address.clone(), format!("status {status}")),
        })
    }

    async fn ask(&self, method: Method, path: &str, limit: Duration) -> Result<(StatusCode, Bytes), ClientError> {
        let asking = async {
            match &self.address {
                AdminAddr::Unix(socket) => {
                    let stream =
                        within(LIMIT, UnixStream::connect(socket)).await.map_err(|e| self.connect_error(&e))?;
                    self.converse(stream, method, path).await
                }
                AdminAddr::Tcp(address) => {
                    let stream =
                        within(LIMIT, TcpStream::connect(address)).await.map_err(|e| self.connect_error(&e))?;
                    self.converse(stream, method, path).await
                }
            }
        };
        timeout(limit, asking).await.unwrap_or_else(|_| Err(ClientError::TooSlow(self.address.clone(), limit)))
    }

    async fn converse(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let broken = |error: &dyn std::error::Error| ClientError::Broken(self.address.clone(), deepest(error));
        let request = self.request(method, path).map_err(|error| broken(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
        let asking = async {
            let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok((status, body.map_err(|error| broken(&*error))?.to_bytes()))
        };
        let mut asking = std::pin::pin!(asking);
        tokio::select! {
            answer = &mut asking => answer,
            // The answer may be all there when the connection ends.
            _ = connection => asking.await,
        }
    }

    fn request(&self, method: Method, path: &str) -> http::Result<Request<Empty<Bytes>>> {
        let host = match &self.address {
            AdminAddr::Unix(_) => "localhost".to_owned(),
            AdminAddr::Tcp(address) => address.to_string(),
        };
        let mut request = Request::builder().uri(path).header(HOST, host).header(CONNECTION, "close");
        if let Some(token) = self.token.as_ref().filter(|_| method == Method::POST) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.method(method).body(Empty::new())
    }

    fn connect_error(&self, error: &io::Error) -> ClientError {
        let address = self.address.clone();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NobodyThere(address),
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed(address),
            io::ErrorKind::TimedOut => ClientError::TooSlow(address, LIMIT),
            _ => ClientError::Broken(address, error.to_string()),
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The cause at the bottom says most: "connection reset by peer" rather than "error reading a body".
fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
