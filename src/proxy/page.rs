//! The proxy's own answers: one plain line each, without a word about what stands behind.

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

/// An answer of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    /// The request's framing, target or host makes no sense, or may mean two things.
    BadRequest(&'static str),
    NoRoute,
    /// The connection was made for another host.
    Misdirected,
    Method,
    RequestTimeout,
    TargetTooLong,
    Expectation,
    BadGateway,
    /// All backends want a protocol that is not spoken here.
    Protocol,
    NoBackend,
    Busy,
    GatewayTimeout,
}

impl Page {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::BadGateway | Self::Protocol => StatusCode::BAD_GATEWAY,
            Self::NoBackend | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::BadRequest(reason) => reason,
            Self::NoRoute => "no application is served for this host and path",
            Self::Misdirected => "this connection was made for another host: make a new one for this host",
            Self::Method => "this method is not allowed here",
            Self::RequestTimeout => "the request's body stopped arriving",
            Self::TargetTooLong => "the request's target is too long",
            Self::Expectation => "this expectation cannot be met",
            Self::BadGateway => "no backend of this application could answer",
            Self::Protocol => "the backends of this application speak h2c, which is not served in proxy mode",
            Self::NoBackend => "this application has no backend ready at the moment",
            Self::Busy => "this application has as many requests open as it may have",
            Self::GatewayTimeout => "the backend took too long to answer",
        }
    }

    fn field(self) -> Option<(HeaderName, &'static str)> {
        match self {
            Self::Method => Some((ALLOW, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")),
            Self::NoBackend | Self::Busy => Some((RETRY_AFTER, "1")),
            // Where the next request would begin is not sure.
            Self::BadRequest(_) | Self::RequestTimeout => Some((CONNECTION, "close")),
            _ => None,
        }
    }

    /// The response, with its text to be sent as its body.
    pub(super) fn response(self) -> Response<Bytes> {
        let status = self.status();
        let mut response = Response::new(Bytes::from(format!("{}: {}\n", status.as_u16(), self.text())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if let Some((name, value)) = self.field() {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
