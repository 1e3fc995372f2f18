//! Heads of requests and responses: read strictly, or not at all.
//!
//! Two readers that disagree about where a message ends are how requests are smuggled. So a head is taken only if it
//! can mean one thing (RFC 9110, RFC 9112); `httparse` splits it into fields, and what that lets through is refused
//! here: bare line feeds, doubled lengths, hosts that are none. Nothing is copied: a head points into the bytes it was
//! read from.

use std::mem::MaybeUninit;
use std::net::Ipv6Addr;

use memchr::{memchr, memchr2};

use super::fields::{self, Known};
use crate::proxy::Limits;
use crate::proxy::page::Page;

/// One field of a head: its name, which is a token, and its value, without white space around it.
pub(in crate::proxy) type Field<'b> = httparse::Header<'b>;

/// Fields for which there is room without asking for memory.
pub(super) const FIELDS_INLINE: usize = 128;
/// The longest method that is looked at.
const METHOD_BYTES_MAX: usize = 32;
/// What `Connection` may name: each of it is compared with each field.
const CONNECTION_TOKENS_MAX: usize = 64;
/// The longest host that is looked up: 253 bytes of name, or an IPv6 address in brackets.
const HOST_BYTES_MAX: usize = 255;

/// How much a request's head may have.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct HeadLimits {
    /// Bytes in all.
    pub(in crate::proxy) header_bytes: usize,
    /// Fields.
    pub(in crate::proxy) header_fields: usize,
    /// Bytes of the target.
    pub(in crate::proxy) target_bytes: usize,
}

impl From<&Limits> for HeadLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            header_bytes: limits.header_bytes,
            header_fields: limits.header_fields,
            target_bytes: limits.target_bytes,
        }
    }
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Length {
    /// There is none, and nothing says how long it would be.
    None,
    /// So many bytes.
    Known(u64),
    /// It says so piece by piece.
    Chunked,
    /// As long as the connection lasts (responses alone).
    UntilClose,
}

/// A request's head: the neutral form in which a request is routed and sent on, whatever it was read from.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct RequestHead<'h, 'b> {
    /// The method, a token.
    pub(in crate::proxy) method: &'b str,
    /// The target: a path with its query, a query alone (the path is `/` then), or `*`.
    pub(in crate::proxy) path: &'b str,
    /// The host.
    pub(in crate::proxy) host: Host<'b>,
    /// The text in which the fields stand; empty: they were not read from one.
    pub(in crate::proxy) text: &'b [u8],
    /// All fields, those about the connection and `Host` among them.
    pub(in crate::proxy) fields: &'h [Field<'b>],
    /// Whether `Connection` may name fields that are for one hop alone.
    pub(in crate::proxy) names_fields: bool,
    /// The body.
    pub(in crate::proxy) length: Length,
    /// Whether the client is one of HTTP/1.1 or later.
    pub(in crate::proxy) is_http11: bool,
    /// Whether another request may follow on this connection.
    pub(in crate::proxy) keeps_alive: bool,
    /// What an upgrade is asked to, if one is asked for.
    pub(in crate::proxy) upgrade: Option<&'b [u8]>,
    /// Whether the client waits for a `100 Continue`.
    pub(in crate::proxy) expects_continue: bool,
}

/// A response's head.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct ResponseHead<'h, 'b> {
    /// Three digits.
    pub(in crate::proxy) status: u16,
    /// What the backend calls it.
    pub(in crate::proxy) reason: &'b [u8],
    /// The text in which the fields stand; empty: they were not read from one.
    pub(in crate::proxy) text: &'b [u8],
    /// All fields.
    pub(in crate::proxy) fields: &'h [Field<'b>],
    /// Whether `Connection` may name fields that are for one hop alone.
    pub(in crate::proxy) names_fields: bool,
    /// The body, as the fields say: a response to HEAD has none all the same.
    pub(in crate::proxy) length: Length,
    /// Whether the connection stays as far as the backend is concerned.
    pub(in crate::proxy) keeps_alive: bool,
    /// What the protocol becomes, if `Upgrade` says so.
    pub(in crate::proxy) upgrade: Option<&'b [u8]>,
}

/// Looks for the end of a head in bytes that arrive bit by bit; no byte is looked at twice.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::proxy) struct Scan {
    /// Where to go on.
    at: usize,
    /// Where the last line begins that has no end yet.
    line: usize,
}

impl Scan {
    /// How long the head is with its empty line; none as long as that is not there. Lines end with CR LF alone.
    pub(in crate::proxy) fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        while let Some(found) = bytes.get(self.at..).and_then(|rest| memchr2(b'\r', b'\n', rest)) {
            self.at += found;
            match bytes.get(self.at..) {
                Some([b'\r', b'\n', ..]) => {}
                // Its other half may come.
                Some([b'\r']) => return Ok(None),
                Some([b'\r', ..]) => return Err("a carriage return within a line"),
                _ => return Err("a line ends without a carriage return"),
            }
            let is_empty = self.at == self.line;
            self.at += 2;
            self.line = self.at;
            if is_empty {
                return Ok(Some(self.at));
            }
        }
        self.at = bytes.len();
        Ok(None)
    }

    /// The same for a request, which is refused for what is there as soon as that is wrong. Lines are looked at when they
    /// are whole, and not again with each byte that follows.
    pub(super) fn find_request(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Option<usize>, Page> {
        let before = self.line;
        let end = self.find(bytes).map_err(Page::BadRequest)?;
        if end.is_none() && (self.line > before || before == 0) {
            check_beginning(bytes, self.line, limits)?;
        } else if end.is_none() && bytes.len() >= limits.header_bytes {
            return Err(Page::HeaderTooLarge);
        }
        Ok(end)
    }

    /// How many bytes of whole lines have been seen.
    pub(in crate::proxy) fn whole_lines(&self) -> usize {
        self.line
    }
}

/// Whether the beginning of a request, whose head is not there yet, is refused for what is there.
fn check_beginning(bytes: &[u8], whole_lines: usize, limits: &HeadLimits) -> Result<(), Page> {
    let method = &bytes[..memchr(b' ', bytes).unwrap_or(bytes.len())];
    if !method.iter().copied().all(fields::is_token_byte) && !method.starts_with(b"\r") {
        return Err(Page::BadRequest("the method is not a word"));
    }
    if method.len() > METHOD_BYTES_MAX {
        return Err(Page::NotImplemented);
    }
    let target = bytes.get(method.len() + 1..).unwrap_or_default();
    if target.iter().take_while(|byte| !matches!(byte, b' ' | b'\r')).count() > limits.target_bytes {
        return Err(Page::TargetTooLong);
    }
    if bytes.len() >= limits.header_bytes {
        return Err(Page::HeaderTooLarge);
    }
    if whole_lines > 0 {
        let mut room = [const { MaybeUninit::uninit() }; FIELDS_INLINE];
        match httparse::Request::new(&mut []).parse_with_uninit_headers(&bytes[..whole_lines], &mut room) {
            Ok(_) | Err(httparse::Error::TooManyHeaders) => {}
            Err(error) => return Err(refusal(error, bytes)),
        }
    }
    Ok(())
}

/// Reads a whole request head, as [`Scan`] found it.
pub(super) fn parse_request<'h, 'b>(
    bytes: &'b [u8],
    room: &'h mut [MaybeUninit<Field<'b>>],
    limits: &HeadLimits,
    is_tls: bool,
) -> Result<RequestHead<'h, 'b>, Page> {
    if bytes.len() > limits.header_bytes {
        // Its first line may be what is too long.
        check_beginning(bytes, 0, limits)?;
        return Err(Page::HeaderTooLarge);
    }
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, room) {
        Ok(httparse::Status::Complete(read)) if read == bytes.len() => {}
        Ok(_) => return Err(Page::BadRequest("the header ends where it should not")),
        Err(error) => {
            check_beginning(bytes, 0, limits)?;
            return Err(refusal(error, bytes));
        }
    }
    let httparse::Request { method: Some(method), path: Some(target), version: Some(version), headers } = request
    else {
        return Err(Page::BadRequest("the header is not whole"));
    };
    if headers.len() > limits.header_fields {
        return Err(Page::HeaderTooLarge);
    }
    if method.len() > METHOD_BYTES_MAX {
        return Err(Page::NotImplemented);
    }
    if method == "CONNECT" || method == "TRACE" {
        return Err(Page::Method);
    }
    if target.len() > limits.target_bytes {
        return Err(Page::TargetTooLong);
    }
    read_request(method, target, version == 1, bytes, headers, is_tls)
}

fn read_request<'h, 'b>(
    method: &'b str,
    target: &'b str,
    is_http11: bool,
    text: &'b [u8],
    fields: &'h [Field<'b>],
    is_tls: bool,
) -> Result<RequestHead<'h, 'b>, Page> {
    let mut said = Said::default();
    for field in fields {
        said.take(field).map_err(Page::BadRequest)?;
    }
    let host = said.host.ok_or(Page::BadRequest("the request names no host"))?;
    let (authority, path) = split_target(target, method, is_tls)?;
    let read = |field| Host::read(field).ok_or(Page::BadRequest("the host is not a host name"));
    let (host, authority) = (read(host)?, authority.map(|host| read(host.as_bytes())).transpose()?);
    let length = match (said.length, said.is_chunked) {
        (Some(_), true) => return Err(Page::BadRequest("Content-Length and Transfer-Encoding in one request")),
        (None, true) if !is_http11 => return Err(Page::BadRequest("Transfer-Encoding in HTTP/1.0")),
        (None, true) => Length::Chunked,
        (Some(length), false) => Length::Known(length),
        (None, false) => Length::None,
    };
    let has_body = !matches!(length, Length::None | Length::Known(0));
    if has_body && (method == "GET" || method == "HEAD") {
        // It has no meaning, and who does not expect it takes it for the next request (RFC 9110, 9.3.1).
        return Err(Page::BadRequest("a request of this method has no body"));
    }
    if said.has_unknown_expectation {
        return Err(Page::Expectation);
    }
    Ok(RequestHead {
        method,
        path,
        // The target names the host, and the field does not count (RFC 9112, 3.2.2).
        host: authority.unwrap_or(host),
        text,
        fields,
        names_fields: said.names_fields,
        length,
        is_http11,
        keeps_alive: !said.is_close && (is_http11 || said.is_keep_alive),
        upgrade: said.asked_upgrade().filter(|_| is_http11 && !has_body),
        // Of an older client it is not heard (RFC 9110, 10.1.1).
        expects_continue: said.expects_continue && is_http11,
    })
}

/// The host in an absolute target, if it is one, and the path.
fn split_target<'b>(target: &'b str, method: &str, is_tls: bool) -> Result<(Option<&'b str>, &'b str), Page> {
    const NO_PATH: Page = Page::BadRequest("the target is neither a path nor an http URL");
    if target.bytes().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'#' | b'<' | b'>')) {
        return Err(Page::BadRequest("the target holds what a URL cannot"));
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok((None, target));
    }
    let rest = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some((scheme, rest)) if is_tls && scheme.eq_ignore_ascii_case("https") => rest,
        _ => return Err(NO_PATH),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    // A question about the server as a whole, when it has come to the last proxy (RFC 9112, 3.2.4).
    let empty = if method == "OPTIONS" { "*" } else { "/" };
    Ok((Some(authority), if path.is_empty() { empty } else { path }))
}

/// What `httparse` refuses, in our words.
fn refusal(error: httparse::Error, bytes: &[u8]) -> Page {
    match error {
        httparse::Error::TooManyHeaders => Page::HeaderTooLarge,
        httparse::Error::Version if is_other_version(bytes) => Page::Version,
        httparse::Error::Version => Page::BadRequest("the version is none of HTTP"),
        httparse::Error::HeaderName => Page::BadRequest("a header field's name is not a word"),
        httparse::Error::HeaderValue => Page::BadRequest("a header field holds a control byte"),
        httparse::Error::NewLine => Page::BadRequest("a line ends without a line feed"),
        _ => Page::BadRequest("the request makes no sense"),
    }
}

/// Whether the first line ends with a version of HTTP, one that is not spoken here.
fn is_other_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ').skip(2);
    let is_version = |word: &[u8]| matches!(word, [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']);
    words.next().is_some_and(is_version) && words.next().is_none()
}

/// Reads a whole response head, as [`Scan`] found it.
pub(super) fn parse_response<'h, 'b>(
    bytes: &'b [u8],
    room: &'h mut [MaybeUninit<Field<'b>>],
) -> Result<ResponseHead<'h, 'b>, &'static str> {
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, room);
    match parsed {
        Ok(httparse::Status::Complete(read)) if read == bytes.len() => {}
        Ok(_) => return Err("the header ends where it should not"),
        Err(_) => return Err("the header makes no sense"),
    }
    let httparse::Response { version: Some(version), code: Some(status), headers, .. } = response else {
        return Err("the header is not whole");
    };
    if status < 100 {
        return Err("the status is none");
    }
    let (is_http11, fields) = (version == 1, &*headers);
    let mut said = Said::default();
    for field in fields {
        said.take(field)?;
    }
    let length = match (said.length, said.is_chunked) {
        (Some(_), true) => return Err("Content-Length and Transfer-Encoding in one response"),
        (None, true) if !is_http11 => return Err("Transfer-Encoding in HTTP/1.0"),
        (None, true) => Length::Chunked,
        (Some(length), false) => Length::Known(length),
        (None, false) => Length::UntilClose,
    };
    // Behind `HTTP/1.1 200`, to the line's end; what is in it was looked at.
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let reason = line.get(13..).unwrap_or_default();
    Ok(ResponseHead {
        status,
        reason,
        text: bytes,
        fields,
        names_fields: said.names_fields,
        length,
        keeps_alive: !said.is_close && (is_http11 || said.is_keep_alive),
        upgrade: said.upgrade.filter(|_| !said.has_more_upgrades),
    })
}

/// What the fields of one head say about the message and the connection.
#[derive(Default)]
struct Said<'b> {
    host: Option<&'b [u8]>,
    length: Option<u64>,
    is_chunked: bool,
    connection_tokens: usize,
    is_close: bool,
    is_keep_alive: bool,
    is_upgrade: bool,
    names_fields: bool,
    upgrade: Option<&'b [u8]>,
    has_more_upgrades: bool,
    expects_continue: bool,
    has_unknown_expectation: bool,
}

impl<'b> Said<'b> {
    fn take(&mut self, field: &Field<'b>) -> Result<(), &'static str> {
        let value = field.value;
        match fields::known(field.name) {
            Known::Host if self.host.replace(value).is_some() => return Err("the request names more than one host"),
            Known::ContentLength => {
                let length = parse_decimal(value).ok_or("Content-Length is not a number")?;
                if self.length.replace(length).is_some() {
                    return Err("Content-Length more than once");
                }
            }
            Known::TransferEncoding => {
                if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err("Transfer-Encoding is not chunked alone");
                }
                self.is_chunked = true;
            }
            Known::Connection => {
                for token in fields::tokens(value) {
                    self.connection_tokens += 1;
                    if self.connection_tokens > CONNECTION_TOKENS_MAX {
                        return Err("Connection names too many fields");
                    }
                    match () {
                        () if token.eq_ignore_ascii_case(b"close") => self.is_close = true,
                        () if token.eq_ignore_ascii_case(b"keep-alive") => self.is_keep_alive = true,
                        () if token.eq_ignore_ascii_case(b"upgrade") => self.is_upgrade = true,
                        () => self.names_fields = true,
                    }
                }
            }
            Known::Upgrade => self.has_more_upgrades |= self.upgrade.replace(value).is_some(),
            Known::Expect => {
                let is_continue = value.eq_ignore_ascii_case(b"100-continue");
                self.expects_continue |= is_continue;
                self.has_unknown_expectation |= !is_continue;
            }
            _ => {}
        }
        Ok(())
    }

    /// What is asked for, if `Connection` says so too. HTTP/2 is not passed on: behind it, requests would no longer be
    /// seen.
    fn asked_upgrade(&self) -> Option<&'b [u8]> {
        let is_http2 = |protocols: &[u8]| {
            fields::tokens(protocols).any(|protocol| protocol.get(..2).is_some_and(|it| it.eq_ignore_ascii_case(b"h2")))
        };
        self.upgrade.filter(|protocols| self.is_upgrade && !self.has_more_upgrades && !is_http2(protocols))
    }
}

/// Digits alone; zeros before them are allowed. In the range of 63 bits: many who read the same know no more.
fn parse_decimal(text: &[u8]) -> Option<u64> {
    let digit = |number: i64, byte: &u8| {
        number.checked_mul(10)?.checked_add(i64::from(byte.is_ascii_digit().then(|| byte - b'0')?))
    };
    (!text.is_empty()).then(|| text.iter().try_fold(0, digit)).flatten().map(i64::unsigned_abs)
}

/// A host as a request names it: `name`, `name:port`, or an address in brackets.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct Host<'b> {
    field: &'b [u8],
    name_bytes: usize,
}

impl<'b> Host<'b> {
    /// None: it is no host.
    pub(in crate::proxy) fn read(field: &'b [u8]) -> Option<Self> {
        let is_address = field.first() == Some(&b'[');
        let name_bytes = if is_address {
            memchr(b']', field)? + 1
        } else {
            // A name is short: looked at byte by byte it is found sooner than by what is good for long ones.
            field.iter().position(|byte| *byte == b':').unwrap_or(field.len())
        };
        let (name, port) = field.split_at_checked(name_bytes)?;
        let is_port = match port {
            [] | [b':'] => true,
            [b':', digits @ ..] => parse_decimal(digits).is_some_and(|port| port <= u64::from(u16::MAX)),
            _ => false,
        };
        let name = name.strip_suffix(b".").unwrap_or(name);
        let is_name = if is_address { is_address_in_brackets(name) } else { is_host_name(name) };
        (is_port && is_name && name.len() <= HOST_BYTES_MAX).then_some(Self { field, name_bytes: name.len() })
    }

    /// As the client wrote it, a port with it perhaps.
    pub(in crate::proxy) fn field(&self) -> &'b [u8] {
        self.field
    }

    /// How many bytes of the field are the name: no port, no final dot.
    pub(in crate::proxy) fn name_bytes(&self) -> usize {
        self.name_bytes
    }
}

/// Labels of letters, digits, `-` and `_`, none of them empty.
fn is_host_name(name: &[u8]) -> bool {
    let mut last = b'.';
    let is_good = name.iter().all(|&byte| {
        let before = std::mem::replace(&mut last, byte);
        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || (byte == b'.' && before != b'.')
    });
    is_good && last != b'.'
}

fn is_address_in_brackets(name: &[u8]) -> bool {
    let address = name.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    let address = address.and_then(|address| std::str::from_utf8(address).ok());
    address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
}

/// The path to route by. A question about the server as a whole (`OPTIONS *`) goes where `/` does.
pub(in crate::proxy) fn route_path(path: &str) -> &str {
    match path.split('?').next() {
        Some(path) if path.starts_with('/') => path,
        _ => "/",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { header_bytes: 2000, header_fields: 20, target_bytes: 200 };

    /// What becomes of a request, as a status, read whole and read byte by byte.
    fn judge(bytes: &[u8]) -> u16 {
        let read = |bytes: &[u8]| -> Result<(), Page> {
            let mut room = [const { MaybeUninit::uninit() }; FIELDS_INLINE];
            let mut scan = Scan::default();
            let end = scan.find(bytes).map_err(Page::BadRequest)?;
            let end = end.ok_or(Page::BadRequest("it is not whole"))?;
            parse_request(&bytes[..end], &mut room, &LIMITS, false).map(drop)
        };
        let whole = read(bytes).map_or_else(Page::status, |()| 200);
        let mut scan = Scan::default();
        let bit_by_bit = (1..=bytes.len()).find_map(|end| match scan.find_request(&bytes[..end], &LIMITS) {
            Err(page) => Some(page.status()),
            Ok(Some(end)) => Some(read(&bytes[..end]).map_or_else(Page::status, |()| 200)),
            Ok(None) => None,
        });
        assert_eq!(bit_by_bit.unwrap_or(400), whole, "{:?}", String::from_utf8_lossy(bytes));
        whole
    }

    fn with(fields: &str) -> u16 {
        judge(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n").as_bytes())
    }

    #[test]
    fn hosts_are_read_strictly() {
        let named = |field: &str| Host::read(field.as_bytes()).map(|host| field[..host.name_bytes()].to_owned());
        for (field, name) in [
            ("example.com", "example.com"),
            ("Example.COM.:8080", "Example.COM"),
            ("example.com:", "example.com"),
            ("under_score.example", "under_score.example"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[::1]:80", "[::1]"),
            ("[2001:DB8::1]", "[2001:DB8::1]"),
        ] {
            assert_eq!(named(field).as_deref(), Some(name), "{field}");
        }
        let long = "a".repeat(256);
        for field in [
            "", ".", ":80", "a b", "a,b", "a/b", "a@b", "a:b", "a:99999", "a:80:80", "[::1", "::1", "[x]", "a..b",
            "a..", ".a", "a\\b", "ü", "a%20b", &long,
        ] {
            assert_eq!(named(field), None, "{field}");
            assert_eq!(judge(format!("GET / HTTP/1.1\r\nHost: {field}\r\n\r\n").as_bytes()), 400, "{field}");
        }
    }

    #[test]
    fn heads_that_two_readers_may_read_in_two_ways_are_refused() {
        for fields in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
            "Transfer-Encoding: chunked\r\nContent-Length: 0",
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: 3\r\ncontent-length: 4",
            "Content-Length: +3",
            "Content-Length: -3",
            "Content-Length: 0x3",
            "Content-Length: 3 3",
            "Content-Length: 3, 3",
            "Content-Length: 3,",
            "Content-Length: 9223372036854775808",
            "Content-Length: 18446744073709551615",
            "Content-Length: 18446744073709551616",
            "Content-Length: 99999999999999999999",
            "Content-Length:",
            "Content-Length: \u{a0}3",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked,",
            "Transfer-Encoding: ,chunked",
            "Transfer-Encoding: chunked;x=y",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding:",
            "A: b\r\n folded",
            "A: b\r\n\tfolded",
            " A: b",
            "A: b\nContent-Length: 3",
            "A: b\rContent-Length: 3",
            "A: b\r\r",
            "A: b\0",
            "A: b\x01c",
            "A: b\x7f",
            "A : b",
            "A\t: b",
            "A(: b",
            "Ä: b",
            ": b",
            "no colon",
            "Host: a",
            "Host: b",
            &format!("Connection: {}", "a,".repeat(65)),
        ] {
            assert_eq!(with(fields), 400, "{fields:?}");
        }
    }

    #[test]
    fn what_is_allowed_is_taken() {
        for fields in [
            "Content-Length: 005",
            "Content-Length:\t 5 \t",
            "Content-Length: 9223372036854775807",
            "Transfer-Encoding:  Chunked\t",
            "transfer-encoding:chunked",
            "A:",
            "A: \u{e4}\u{f6}",
            "A: b, , c\r\nA:\td",
            "!#$%&'*+-.^_`|~: b",
            "Connection: , close,,",
        ] {
            assert_eq!(with(fields), 200, "{fields:?}");
        }
        for head in [
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "M-SEARCH /a?b=%00&{c}|[d] HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET HTTP://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(judge(head.as_bytes()), 200, "{head:?}");
        }
    }

    #[test]
    fn request_lines_are_read_strictly() {
        let long = "x".repeat(201);
        let fields: String = (0..21).map(|i| format!("f{i}: x\r\n")).collect();
        for (head, status) in [
            ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/1.0\r\n\r\n".to_owned(), 400),
            ("GET /\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
            (" GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET /\t HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET / http/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/11\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/1.10\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET / FTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".to_owned(), 200),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n".to_owned(), 400),
            ("HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".to_owned(), 505),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n".to_owned(), 505),
            ("GET / HTTP/0.9\r\nHost: a\r\n\r\n".to_owned(), 505),
            ("PRI * HTTP/2.0\r\n\r\n".to_owned(), 505),
            ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 405),
            ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 405),
            (format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "G".repeat(33)), 501),
            (format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 414),
            (format!("GET http://{long}/ HTTP/1.1\r\nHost: a\r\n\r\n"), 414),
            (format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"), 431),
            (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(2000)), 431),
            ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n".to_owned(), 417),
            ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), 400),
        ] {
            assert_eq!(judge(head.as_bytes()), status, "{head:?}");
        }
        for target in [
            "x",
            "*",
            "a:80",
            "https://a/",
            "ftp://a/",
            "http://user@a/",
            "http:///x",
            "http://",
            "http:/a",
            "/a#b",
            "/<x>",
            "//a b",
            "/\u{fc}",
            "/\x7f",
            "http://a,b/",
            "http://a:x/",
        ] {
            assert_eq!(judge(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()), 400, "{target}");
        }
        assert_eq!(judge(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(judge(b"\x16\x03\x01\x02\x00\x01\x00"), 400);
    }

    fn parsed(head: &str, look: impl FnOnce(&RequestHead<'_, '_>)) {
        let mut room = [const { MaybeUninit::uninit() }; FIELDS_INLINE];
        look(&parse_request(head.as_bytes(), &mut room, &LIMITS, true).unwrap());
    }

    #[test]
    fn the_target_of_a_request_names_its_host_and_path() {
        for (target, host, path, route) in [
            ("/a?b", "A.example:80", "/a?b", "/a"),
            ("http://b.example/x", "b.example", "/x", "/x"),
            ("https://b.example:8443/x", "b.example:8443", "/x", "/x"),
            ("http://b.example", "b.example", "/", "/"),
            ("http://b.example?x=/y", "b.example", "?x=/y", "/"),
        ] {
            parsed(&format!("GET {target} HTTP/1.1\r\nHost: A.example:80\r\n\r\n"), |head| {
                assert_eq!((head.host.field(), head.path), (host.as_bytes(), path), "{target}");
                assert_eq!(route_path(head.path), route, "{target}");
            });
        }
        for target in ["*", "http://b.example"] {
            parsed(&format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\n\r\n"), |head| {
                assert_eq!((head.path, route_path(head.path)), ("*", "/"));
            });
        }
    }

    #[test]
    fn a_connection_is_kept_as_both_versions_say() {
        for (version, field, is_kept) in [
            ("1.1", "A: b", true),
            ("1.1", "Connection: Close", false),
            ("1.1", "Connection: x\r\nConnection: keep-alive, close", false),
            ("1.0", "A: b", false),
            ("1.0", "Connection: Keep-Alive", true),
            ("1.0", "Connection: keep-alive, close", false),
        ] {
            parsed(&format!("GET / HTTP/{version}\r\nHost: a\r\n{field}\r\n\r\n"), |head| {
                assert_eq!(head.keeps_alive, is_kept, "{version} {field}");
            });
        }
    }

    #[test]
    fn an_upgrade_is_asked_for_twice_or_not_at_all() {
        for (fields, is_asked) in [
            ("Connection: keep-alive, Upgrade\r\nUpgrade: websocket", true),
            ("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0", true),
            ("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1", false),
            ("Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked", false),
            ("Connection: upgrade\r\nUpgrade: a\r\nUpgrade: b", false),
            ("Upgrade: websocket", false),
            ("Connection: upgrade", false),
            ("Connection: upgrade, http2-settings\r\nUpgrade: h2c", false),
            ("Connection: upgrade\r\nUpgrade: websocket, H2C", false),
        ] {
            parsed(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"), |head| {
                assert_eq!(head.upgrade.is_some(), is_asked, "{fields}");
            });
        }
    }

    fn response(head: &str) -> Result<(u16, Length, bool), &'static str> {
        let mut room = [const { MaybeUninit::uninit() }; FIELDS_INLINE];
        let end = Scan::default().find(head.as_bytes())?.ok_or("it is not whole")?;
        let parsed = parse_response(&head.as_bytes()[..end], &mut room)?;
        Ok((parsed.status, parsed.length, parsed.keeps_alive))
    }

    #[test]
    fn responses_are_read_as_strictly() {
        for head in [
            "hello\r\n\r\n",
            "HTTP/1.1\r\n\r\n",
            "HTTP/1.1 99 Low\r\n\r\n",
            "HTTP/1.1 099 Low\r\n\r\n",
            "HTTP/1.1 2000 High\r\n\r\n",
            "HTTP/1.1 20x No\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1 200 O\0K\r\n\r\n",
            "HTTP/1.1 200 O\rK\r\n\r\n",
            "HTTP/1.1 200 OK\n\n",
            "HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\x01\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(response(head).is_err(), "{head:?}");
        }
        for (head, read) in [
            ("HTTP/1.1 200 OK\r\n\r\n", (200, Length::UntilClose, true)),
            ("HTTP/1.1 200\r\nContent-Length: 007\r\n\r\n", (200, Length::Known(7), true)),
            ("HTTP/1.1 404 \r\nConnection: close\r\nTransfer-Encoding: CHUNKED\r\n\r\n", (404, Length::Chunked, false)),
            ("HTTP/1.0 999 \u{fc}\r\nContent-Length: 0\r\n\r\n", (999, Length::Known(0), false)),
            ("HTTP/1.0 200 x\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", (200, Length::Known(0), true)),
        ] {
            assert_eq!(response(head), Ok(read), "{head:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_in_any_pieces_find_one_end(
            bytes in proptest::collection::vec(proptest::sample::select(b"\r\n\r\n :aZ\0".to_vec()), 0..60),
            cut in 0_usize..60,
        ) {
            let (mut whole, mut pieces) = (Scan::default(), Scan::default());
            let once = whole.find(&bytes);
            let front = pieces.find(&bytes[..cut.min(bytes.len())]);
            let twice = if front == Ok(None) { pieces.find(&bytes) } else { front };
            proptest::prop_assert_eq!(once, twice);
        }
    }
}
