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
    Method,
    RequestTimeout,
    TargetTooLong,
    HeaderTooLarge,
    /// A method that is longer than any.
    NotImplemented,
    /// A version of HTTP that is not spoken here.
    Version,
    Expectation,
    BadGateway,
    /// All backends want a protocol that is not spoken here.
    Protocol,
    NoBackend,
    Busy,
    GatewayTimeout,
}

impl Page {
    pub(super) fn status(self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::NoRoute => 404,
            Self::Method => 405,
            Self::RequestTimeout => 408,
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::HeaderTooLarge => 431,
            Self::NotImplemented => 501,
            Self::BadGateway | Self::Protocol => 502,
            Self::NoBackend | Self::Busy => 503,
            Self::GatewayTimeout => 504,
            Self::Version => 505,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::BadRequest(reason) => reason,
            Self::NoRoute => "no application is served for this host and path",
            Self::Method => "this method is not allowed here",
            Self::RequestTimeout => "the request's body stopped arriving",
            Self::TargetTooLong => "the request's target is too long",
            Self::HeaderTooLarge => "the request's header is too large",
            Self::NotImplemented => "no such method is served here",
            Self::Version => "this version of HTTP is not served here",
            Self::Expectation => "this expectation cannot be met",
            Self::BadGateway => "no backend of this application could answer",
            Self::Protocol => "the backends of this application speak https or h2c, which is not served in proxy mode",
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
        let mut response = Response::new(Bytes::from(format!("{status}: {}\n", self.text())));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if let Some((name, value)) = self.field() {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
