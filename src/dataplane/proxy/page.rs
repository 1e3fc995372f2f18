//! The proxy's own answers: one plain line each, without a word about what stands behind.

/// An answer of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    /// The request's framing, target or host makes no sense, or may mean two things.
    BadRequest(&'static str),
    /// Over TLS. What is more than a question has to come again as it is.
    Moved,
    MovedAsItIs,
    NoRoute,
    /// The connection was made for another host.
    Misdirected,
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
    NoBackend,
    Busy,
    GatewayTimeout,
}

impl Page {
    pub(super) fn status(self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::Moved => 301,
            Self::MovedAsItIs => 308,
            Self::NoRoute => 404,
            Self::Misdirected => 421,
            Self::Method => 405,
            Self::RequestTimeout => 408,
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::HeaderTooLarge => 431,
            Self::NotImplemented => 501,
            Self::BadGateway => 502,
            Self::NoBackend | Self::Busy => 503,
            Self::GatewayTimeout => 504,
            Self::Version => 505,
        }
    }

    /// What the status is called.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::BadRequest(_) => "Bad Request",
            Self::Moved => "Moved Permanently",
            Self::MovedAsItIs => "Permanent Redirect",
            Self::NoRoute => "Not Found",
            Self::Misdirected => "Misdirected Request",
            Self::Method => "Method Not Allowed",
            Self::RequestTimeout => "Request Timeout",
            Self::TargetTooLong => "URI Too Long",
            Self::Expectation => "Expectation Failed",
            Self::HeaderTooLarge => "Request Header Fields Too Large",
            Self::NotImplemented => "Not Implemented",
            Self::BadGateway => "Bad Gateway",
            Self::NoBackend | Self::Busy => "Service Unavailable",
            Self::GatewayTimeout => "Gateway Timeout",
            Self::Version => "HTTP Version Not Supported",
        }
    }

    /// What happened, in a line for a person.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::BadRequest(reason) => reason,
            Self::NoRoute => "no application is served for this host and path",
            Self::Moved | Self::MovedAsItIs => "this host is served over HTTPS",
            Self::Misdirected => "this connection was made for another host: make a new one for this host",
            Self::Method => "this method is not allowed here",
            Self::RequestTimeout => "the request's body stopped arriving",
            Self::TargetTooLong => "the request's target is too long",
            Self::HeaderTooLarge => "the request's header is too large",
            Self::NotImplemented => "no such method is served here",
            Self::Version => "this version of HTTP is not served here",
            Self::Expectation => "this expectation cannot be met",
            Self::BadGateway => "no backend of this application could answer",
            Self::NoBackend => "this application has no backend ready at the moment",
            Self::Busy => "this application has as many requests open as it may have",
            Self::GatewayTimeout => "the backend took too long to answer",
        }
    }

    /// A field that goes with it.
    pub(super) fn field(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Method => Some(("allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")),
            Self::NoBackend | Self::Busy => Some(("retry-after", "1")),
            _ => None,
        }
    }

    /// Whether a connection on which requests follow each other ends behind it: where the next one would begin is not
    /// sure.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::BadRequest(_) | Self::RequestTimeout)
    }
}
