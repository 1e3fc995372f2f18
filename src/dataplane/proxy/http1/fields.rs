//! What of a message's header is passed on, and how it is written.

use std::ops::Range;
use std::ptr;

use memchr::memchr;

use super::head::{Field, Length, RequestHead, ResponseHead};

/// Fields that mean something to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Connection,
    ContentLength,
    Date,
    Expect,
    Host,
    Te,
    TransferEncoding,
    Upgrade,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    /// Between two neighbours only (RFC 9110, 7.6.1), whether `Connection` names it or not.
    HopByHop,
    /// Another one that tells, or is taken by some program to tell, who stands behind a client.
    Forwarded,
    /// One that a program behind CGI or WSGI cannot tell from another that has its meaning here.
    Lookalike,
    /// Nobody can have it dropped by naming it in `Connection`.
    Kept,
    Other,
}

/// A name that means something.
struct Name {
    key: (u64, u64),
    name: &'static [u8],
    meaning: Known,
}

impl Name {
    const fn new(name: &'static [u8], meaning: Known) -> Self {
        Self { key: key(name), name, meaning }
    }
}

/// The first bytes of a token and the last, whatever their case: all of one that has no more than [`KEY_BYTES`], but for
/// one of three bytes, as no name here is. The bit between upper and lower case tells no other two bytes of tokens apart
/// but `^` and `~`, and no name here has one.
const fn key(name: &[u8]) -> (u64, u64) {
    const CASE: u64 = 0x2020_2020_2020_2020;
    let (first, last) = if let (Some(first), Some(last)) = (name.first_chunk::<8>(), name.last_chunk::<8>()) {
        (u64::from_le_bytes(*first), u64::from_le_bytes(*last))
    } else if let (Some(first), Some(last)) = (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        (u32::from_le_bytes(*first) as u64, u32::from_le_bytes(*last) as u64)
    } else if let [first, .., last] = name {
        (*first as u64, *last as u64)
    } else {
        (0, 0)
    };
    (first | CASE, last | CASE)
}

const KEY_BYTES: usize = 16;

/// By how long they are. They are compared with each field of each message, so that it is done in words.
static NAMES: [&[Name]; 20] = [
    &[],
    &[],
    &[Name::new(b"te", Known::Te)],
    &[],
    &[Name::new(b"host", Known::Host), Name::new(b"date", Known::Date)],
    // CGI programs take it for the address of a proxy of their own.
    &[Name::new(b"proxy", Known::HopByHop)],
    &[Name::new(b"expect", Known::Expect), Name::new(b"cookie", Known::Kept)],
    &[Name::new(b"upgrade", Known::Upgrade)],
    &[],
    &[
        Name::new(b"forwarded", Known::Forwarded),
        Name::new(b"x-real-ip", Known::Forwarded),
        Name::new(b"x_real_ip", Known::Forwarded),
    ],
    &[
        Name::new(b"connection", Known::Connection),
        Name::new(b"keep-alive", Known::HopByHop),
        Name::new(b"set-cookie", Known::Kept),
    ],
    &[],
    &[Name::new(b"content-type", Known::Kept)],
    &[Name::new(b"authorization", Known::Kept)],
    &[Name::new(b"content-length", Known::ContentLength)],
    &[Name::new(b"x-forwarded-for", Known::XForwardedFor)],
    &[Name::new(b"x-forwarded-host", Known::XForwardedHost), Name::new(b"proxy-connection", Known::HopByHop)],
    &[
        Name::new(b"x-forwarded-proto", Known::XForwardedProto),
        Name::new(b"transfer-encoding", Known::TransferEncoding),
    ],
    &[Name::new(b"proxy-authenticate", Known::HopByHop)],
    &[Name::new(b"proxy-authorization", Known::HopByHop)],
];

/// What a field's name, a token, means.
pub(super) fn known(name: &str) -> Known {
    let name = name.as_bytes();
    let key = key(name);
    for other in NAMES.get(name.len()).copied().unwrap_or_default() {
        if other.key == key && (name.len() <= KEY_BYTES || name.eq_ignore_ascii_case(other.name)) {
            return other.meaning;
        }
    }
    match name.first().map_or(0, u8::to_ascii_lowercase) {
        _ if name.len() < 12 => Known::Other,
        b'x' if is_forwarded(name) => Known::Forwarded,
        b'a' | b'b' | b'd'..=b's' | b'u'..=b'z' => Known::Other,
        _ if name.len() > 12 && is_lookalike(name) => Known::Lookalike,
        _ => Known::Other,
    }
}

/// `X-Forwarded-…` in the spellings that programs behind CGI and WSGI take for it.
fn is_forwarded(name: &[u8]) -> bool {
    let is_same = |byte: u8, wanted: u8| byte.eq_ignore_ascii_case(&wanted) || (byte == b'_' && wanted == b'-');
    const BEGINNING: &[u8; 12] = b"x-forwarded-";
    name.len() >= BEGINNING.len() && name.iter().zip(BEGINNING).all(|(byte, wanted)| is_same(*byte, *wanted))
}

/// A length in a spelling that some take for one: `Content_Length`, `Transfer--Encoding`, `TransferXEncoding`,
/// `-Content-Length`, `Content-Lengt#`. What counts is what a reader sees who skips all but letters and digits, or who
/// minds neither the byte between the two words nor a mark that stands where a letter should.
fn is_lookalike(name: &[u8]) -> bool {
    let marks = name.iter().take_while(|byte| !byte.is_ascii_alphanumeric()).count();
    let name = name.get(marks..).unwrap_or_default();
    match name.first() {
        Some(b'c' | b'C') => is_like(name, b"content", b"length"),
        Some(b't' | b'T') => is_like(name, b"transfer", b"encoding"),
        _ => false,
    }
}

fn is_like(name: &[u8], first: &[u8], second: &[u8]) -> bool {
    let letters = name.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase);
    if letters.eq(first.iter().chain(second).copied()) {
        return true;
    }
    let mut rest = behind(name, first);
    if rest.len() + first.len() == name.len() {
        let between = 1 + rest.iter().skip(1).take_while(|byte| !byte.is_ascii_alphanumeric()).count();
        rest = behind(rest.get(between..).unwrap_or_default(), second);
    }
    !rest.iter().any(u8::is_ascii_alphanumeric)
}

/// What follows the letters that `name` and `word` begin with.
fn behind<'a>(name: &'a [u8], word: &[u8]) -> &'a [u8] {
    let same = name.iter().zip(word).take_while(|(byte, wanted)| byte.eq_ignore_ascii_case(wanted)).count();
    name.get(same..).unwrap_or_default()
}

/// Whether a byte may stand in a token: a method, a field's name (RFC 9110, 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a byte may stand in a field's value (RFC 9110, 5.5).
pub(super) fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// The members of a comma-separated list, but for empty ones.
pub(in crate::proxy) fn tokens(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        while !list.is_empty() {
            let (member, rest) = list.split_at(memchr(b',', list).unwrap_or(list.len()));
            list = rest.get(1..).unwrap_or_default();
            if !member.trim_ascii().is_empty() {
                return Some(member.trim_ascii());
            }
        }
        None
    })
}

/// What a backend is told about the client.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct Via<'a> {
    /// The client's address.
    pub(in crate::proxy) client: &'a str,
    /// Whether what the client says of those behind it is kept and added to.
    pub(in crate::proxy) is_trusted: bool,
    /// Whether the client came with TLS.
    pub(in crate::proxy) is_tls: bool,
}

/// The most bytes of addresses that are passed on: some 30 proxies in a row.
const CHAIN_BYTES_MAX: usize = 1024;

/// What a trusted client says of those behind it.
#[derive(Default)]
struct Told<'b> {
    chain: Vec<u8>,
    proto: Option<&'b [u8]>,
    host: Option<&'b [u8]>,
}

impl<'b> Told<'b> {
    fn by(fields: &[Field<'b>]) -> Self {
        let only = |which| {
            let mut values = fields.iter().filter(|field| known(field.name) == which).map(|field| field.value);
            values.next().filter(|_| values.next().is_none())
        };
        let addresses = fields.iter().filter(|field| known(field.name) == Known::XForwardedFor);
        let addresses = addresses.map(|field| field.value).filter(|list| !list.is_empty());
        Self {
            chain: addresses.collect::<Vec<_>>().join(&b", "[..]),
            proto: only(Known::XForwardedProto).filter(|proto| *proto == b"http" || *proto == b"https"),
            host: only(Known::XForwardedHost),
        }
    }
}

/// Where in the head that a backend gets the two things are by which it was routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) struct Places {
    /// The path with its query.
    pub(in crate::proxy) path: (usize, usize),
    /// The host's name: no port, no final dot.
    pub(in crate::proxy) host: (usize, usize),
}

/// Writes the head that a backend gets.
pub(in crate::proxy) fn write_request(head: &RequestHead<'_, '_>, via: &Via<'_>, out: &mut Vec<u8>) -> Places {
    let told = if via.is_trusted { Told::by(head.fields) } else { Told::default() };
    put(out, &[head.method.as_bytes(), b" "]);
    let path_from = out.len();
    let root: &[u8] = if head.path.starts_with('?') { b"/" } else { b"" };
    put(out, &[root, head.path.as_bytes()]);
    let path = (path_from, out.len());
    put(out, &[b" HTTP/1.1\r\nhost: "]);
    let host = (out.len(), out.len() + head.host.name_bytes());
    put(out, &[head.host.field(), b"\r\n"]);
    let named = Named::of(head.fields, head.names_fields);
    let mut takes_trailers = false;
    let mut lines = Lines::of(head.text, out);
    for field in head.fields {
        match known(field.name) {
            Known::Other if named.has(field.name) => {}
            Known::Other | Known::Kept | Known::Date => lines.put(field),
            Known::Te => takes_trailers |= tokens(field.value).any(|coding| coding.eq_ignore_ascii_case(b"trailers")),
            _ => {}
        }
    }
    lines.end();
    put_length(out, head.length);
    put(out, &[b"x-forwarded-for: "]);
    if !told.chain.is_empty() && told.chain.len() <= CHAIN_BYTES_MAX {
        put(out, &[&told.chain, b", "]);
    }
    let proto = told.proto.unwrap_or(if via.is_tls { b"https" } else { b"http" });
    let host_told = told.host.unwrap_or_else(|| head.host.field());
    put(out, &[via.client.as_bytes(), b"\r\nx-forwarded-proto: ", proto]);
    put(out, &[b"\r\nx-forwarded-host: ", host_told, b"\r\n"]);
    if takes_trailers {
        put(out, &[b"te: trailers\r\n"]);
    }
    if head.expects_continue {
        put(out, &[b"expect: 100-continue\r\n"]);
    }
    if let Some(protocol) = head.upgrade {
        put(out, &[b"connection: upgrade\r\nupgrade: ", protocol, b"\r\n"]);
    }
    put(out, &[b"\r\n"]);
    Places { path, host }
}

/// What a client is told about its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Nothing: it stays.
    Silent,
    /// It stays, which a client of HTTP/1.0 has to be told.
    KeepAlive,
    Close,
    /// It changes its protocol.
    Upgrade,
}

/// Which hosts are asked over TLS alone. Of two such fields the first counts (RFC 6797, 8.1).
pub(in crate::proxy) const HSTS: &str = "strict-transport-security";

/// Writes the head that a client of HTTP/1 gets. `length` is how the body is framed for it, `hsts` takes the place of the
/// backend's own field, `date` is for a response that has none.
pub(super) fn write_response(
    head: &ResponseHead<'_, '_>,
    length: Length,
    after: After,
    hsts: Option<&str>,
    date: impl FnOnce(&mut Vec<u8>),
    out: &mut Vec<u8>,
) {
    let status =
        [b'0' + (head.status / 100 % 10) as u8, b'0' + (head.status / 10 % 10) as u8, b'0' + (head.status % 10) as u8];
    put(out, &[b"HTTP/1.1 ", &status, b" ", head.reason, b"\r\n"]);
    let mut lines = Lines::of(head.text, out);
    let has_date = put_response_fields(head, |field| {
        if hsts.is_none() || !field.name.eq_ignore_ascii_case(HSTS) {
            lines.put(field);
        }
    });
    lines.end();
    if let Some(hsts) = hsts {
        put_field(out, HSTS.as_bytes(), hsts.as_bytes());
    }
    put_length(out, length);
    if head.status >= 200 && !has_date {
        date(out);
    }
    match after {
        After::Silent => {}
        After::KeepAlive => put(out, &[b"connection: keep-alive\r\n"]),
        After::Close => put(out, &[b"connection: close\r\n"]),
        After::Upgrade => put(out, &[b"connection: upgrade\r\nupgrade: ", head.upgrade.unwrap_or_default(), b"\r\n"]),
    }
    put(out, &[b"\r\n"]);
}

/// Gives `put` each field of a backend's response that a client may see, whatever it speaks; the body's length is not
/// among them. Says whether there was a date.
pub(in crate::proxy) fn put_response_fields(head: &ResponseHead<'_, '_>, mut put: impl FnMut(&Field<'_>)) -> bool {
    let named = Named::of(head.fields, head.names_fields);
    let mut has_date = false;
    for field in head.fields {
        match known(field.name) {
            Known::Other | Known::Forwarded | Known::Lookalike if named.has(field.name) => {}
            Known::Connection
            | Known::ContentLength
            | Known::HopByHop
            | Known::Te
            | Known::TransferEncoding
            | Known::Upgrade => {}
            kind => {
                has_date |= kind == Known::Date;
                put(field);
            }
        }
    }
    has_date
}

/// Writes fields. Those that stand in their text as they would be written are copied, neighbours all at once.
struct Lines<'o, 'b> {
    text: &'b [u8],
    out: &'o mut Vec<u8>,
    /// What of the text is to be copied next.
    run: Range<usize>,
}

impl<'o, 'b> Lines<'o, 'b> {
    fn of(text: &'b [u8], out: &'o mut Vec<u8>) -> Self {
        Self { text, out, run: 0..0 }
    }

    fn put(&mut self, field: &Field<'_>) {
        match self.place(field) {
            Some(line) if line.start == self.run.end => self.run.end = line.end,
            Some(line) => {
                self.end();
                self.run = line;
            }
            None => {
                self.end();
                put_field(self.out, field.name.as_bytes(), field.value);
            }
        }
    }

    /// Where the field stands, if it does so as `name: value` and the line's end.
    fn place(&self, field: &Field<'_>) -> Option<Range<usize>> {
        let (name, value) = (field.name.as_bytes(), field.value);
        let start = name.as_ptr().addr().checked_sub(self.text.as_ptr().addr())?;
        let line = self.text.get(start..start + name.len() + value.len() + 4)?;
        let (before, rest) = line.split_at(name.len() + 2);
        let is_it = before.ends_with(b": ") && ptr::eq(rest.as_ptr(), value.as_ptr()) && rest.ends_with(b"\r\n");
        is_it.then_some(start..start + line.len())
    }

    /// Copies what is still to be copied.
    fn end(&mut self) {
        let run = std::mem::take(&mut self.run);
        self.out.extend_from_slice(self.text.get(run).unwrap_or_default());
    }
}

/// Writes `name: value` and the line's end.
pub(in crate::proxy) fn put_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put(out, &[name, b": ", value, b"\r\n"]);
}

fn put(out: &mut Vec<u8>, pieces: &[&[u8]]) {
    for piece in pieces {
        out.extend_from_slice(piece);
    }
}

/// Says how long a body is: in our own digits, so that nobody reads the sender's in another way.
fn put_length(out: &mut Vec<u8>, length: Length) {
    match length {
        Length::None | Length::UntilClose => {}
        Length::Known(length) => {
            put(out, &[b"content-length: "]);
            put_decimal(out, length);
            put(out, &[b"\r\n"]);
        }
        Length::Chunked => put(out, &[b"transfer-encoding: chunked\r\n"]),
    }
}

/// Writes a number in decimal digits.
pub(super) fn put_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The fields that `Connection` names besides those that are known.
struct Named<'b>(Vec<&'b [u8]>);

impl<'b> Named<'b> {
    /// `has_some` if there may be any.
    fn of(fields: &[Field<'b>], has_some: bool) -> Self {
        const USUAL: [&[u8]; 3] = [b"keep-alive", b"close", b"upgrade"];
        let mut named = Vec::new();
        if !has_some {
            return Self(named);
        }
        for field in fields.iter().filter(|field| known(field.name) == Known::Connection) {
            let unusual = |token: &&[u8]| !USUAL.iter().any(|usual| token.eq_ignore_ascii_case(usual));
            named.extend(tokens(field.value).filter(unusual));
        }
        Self(named)
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|token| token.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// Whether a field may stand in trailers: not what frames, routes or authorizes a message, nor what was decided by
/// when it began (RFC 9110, 6.5.1).
pub(in crate::proxy) fn may_trail(name: &str) -> bool {
    const NEVER: [&str; 28] = [
        "age",
        "allow",
        "cache-control",
        "content-encoding",
        "content-location",
        "content-range",
        "content-type",
        "expires",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "location",
        "max-forwards",
        "pragma",
        "proxy-authentication-info",
        "range",
        "referer",
        "retry-after",
        "trailer",
        "vary",
        "via",
        "warning",
        "www-authenticate",
        "authentication-info",
        "alt-svc",
        "content-disposition",
    ];
    known(name) == Known::Other && !NEVER.iter().any(|never| name.eq_ignore_ascii_case(never))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::MaybeUninit;

    use crate::proxy::http1::head::{HeadLimits, parse_request, parse_response};

    /// What a backend gets behind the host.
    fn written(fields: &str, is_trusted: bool) -> String {
        let limits = HeadLimits { header_bytes: 8000, header_fields: 100, target_bytes: 100 };
        let text = format!("POST http://a?q HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        let mut room = [const { MaybeUninit::uninit() }; 100];
        let head = parse_request(text.as_bytes(), &mut room, &limits, false).unwrap();
        let mut out = Vec::new();
        let places = write_request(&head, &Via { client: "10.0.0.2", is_trusted, is_tls: false }, &mut out);
        assert_eq!(&out[places.path.0..places.path.1], b"/?q");
        assert_eq!(&out[places.host.0..places.host.1], b"a");
        let text = String::from_utf8(out).unwrap();
        text.strip_prefix("POST /?q HTTP/1.1\r\nhost: a\r\n").unwrap().to_owned()
    }

    fn rewritten(fields: &str, is_trusted: bool) -> String {
        let text = written(fields, is_trusted).to_ascii_lowercase();
        let mut lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        lines.sort_unstable();
        lines.join("|")
    }

    #[test]
    fn a_client_cannot_have_what_matters_dropped() {
        let left = rewritten(
            "Connection: close, X-Secret, authorization, host, x-forwarded-for, cookie, content-length, te\r\n\
             X-Secret: 1\r\nAuthorization: 2\r\nCookie: 3\r\nTE: gzip, trailers\r\nX_Forwarded_For: 4\r\n\
             X-Forwarded-Server: 5\r\nForwarded: 6\r\nX-Real-IP: 7\r\nProxy: 8\r\nKeep-Alive: 9\r\n\
             Proxy-Connection: 10\r\nContent-Length: 0011\r\nContent_Length: 3\r\nTransfer_Encoding: chunked\r\n\
             Content.Length: 3\r\nTransfer--Encoding: chunked\r\nTransfer-Encodings: x\r\n\
             TransferXEncoding: chunked\r\nContent5Length: 3\r\nContent-Lengt`: 3\r\n-Content-Length: 3\r\n\
             Transfer-Encoding---------------------: chunked\r\nTransfer-_-encoding!: chunked\r\n\
             c#############: 3\r\n\
             X-Forwarded: 12\r\nXyForwarded-By: 13",
            false,
        );
        let expected = "authorization: 2|content-length: 11|cookie: 3|te: trailers|transfer-encodings: x|\
                        x-forwarded-for: 10.0.0.2|x-forwarded-host: a|x-forwarded-proto: http|x-forwarded: 12|xyforwarded-by: 13";
        assert_eq!(left, expected);
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_added_to() {
        let fields = "X-Forwarded-For: 1.2.3.4\r\nx-forwarded-for: 5.6.7.8, 10.0.0.1\r\nX-Forwarded-Proto: https\r\n\
                      X-Forwarded-Host: shop.example\r\nX-Real-IP: 7.7.7.7";
        assert_eq!(
            rewritten(fields, true),
            "x-forwarded-for: 1.2.3.4, 5.6.7.8, 10.0.0.1, 10.0.0.2|x-forwarded-host: shop.example|\
             x-forwarded-proto: https"
        );
        let own = "x-forwarded-for: 10.0.0.2|x-forwarded-host: a|x-forwarded-proto: http";
        assert_eq!(rewritten(fields, false), own);
        assert_eq!(rewritten(&format!("X-Forwarded-For: {}", "1.1.1.1, ".repeat(200)), true), own);
        assert_eq!(rewritten("X-Forwarded-Proto: gopher", true), own);
    }

    #[test]
    fn a_request_says_how_its_body_and_its_connection_go_on() {
        let said = |fields| rewritten(fields, false).split("|x-forwarded-for").next().unwrap().to_owned();
        assert_eq!(said("Transfer-Encoding: CHUNKED"), "transfer-encoding: chunked");
        assert_eq!(said("Expect: 100-Continue\r\nContent-Length: 1"), "content-length: 1|expect: 100-continue");
        assert_eq!(said("Connection: x, upgrade\r\nUpgrade: websocket"), "connection: upgrade|upgrade: websocket");
    }

    fn answered(head: &str, length: Length, after: After) -> String {
        let mut room = [const { MaybeUninit::uninit() }; 100];
        let head = parse_response(head.as_bytes(), &mut room).unwrap();
        let mut out = Vec::new();
        write_response(&head, length, after, None, |out| out.extend_from_slice(b"date: now\r\n"), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_client_sees_nothing_of_the_connection_behind() {
        let head = "HTTP/1.0 200 Fine\r\nContent-Length: 02\r\nConnection: x-hop, set-cookie\r\nX-Hop: 1\r\n\
                    Keep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nUpgrade: h2c\r\nDate: then\r\nSet-Cookie: a\r\n\
                    Set-Cookie: b\r\nTE: x\r\n\r\n";
        assert_eq!(
            answered(head, Length::Known(2), After::Silent),
            "HTTP/1.1 200 Fine\r\nDate: then\r\nSet-Cookie: a\r\nSet-Cookie: b\r\ncontent-length: 2\r\n\r\n"
        );
        assert_eq!(
            answered("HTTP/1.1 404\r\n\r\n", Length::Chunked, After::Close),
            "HTTP/1.1 404 \r\ntransfer-encoding: chunked\r\ndate: now\r\nconnection: close\r\n\r\n"
        );
        assert_eq!(
            answered("HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", Length::None, After::Upgrade),
            "HTTP/1.1 101 Go\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
        );
    }

    #[test]
    fn fields_are_passed_on_as_they_stand_or_as_they_should() {
        let passed = |fields: &str| written(fields, false).split("x-forwarded-for").next().unwrap().to_owned();
        let plain = "A: b\r\nC-D: e  f\r\nSet-Cookie: g";
        assert_eq!(passed(plain), format!("{plain}\r\n"));
        let other =
            "A:b\r\nB: \t c\t \r\nC:\r\nD: \r\nConnection: x, y\r\nX: 1\r\nE: f\r\nY: 2\r\nTE: gzip\r\nG: h\r\nI:j";
        let lines = ["A: b", "B: c", "C: ", "D: ", "E: f", "G: h", "I: j"];
        assert_eq!(passed(other), format!("{}\r\n", lines.join("\r\n")));
    }

    #[test]
    fn names_stand_where_their_length_finds_them() {
        for (length, names) in NAMES.iter().enumerate() {
            for Name { name, meaning, .. } in *names {
                let name = std::str::from_utf8(name).unwrap();
                assert_eq!((name.len(), known(&name.to_uppercase())), (length, *meaning), "{name}");
                for at in 0..length {
                    let other = format!("{}q{}", &name[..at], &name[at + 1..]);
                    assert_ne!(known(&other), *meaning, "{other}");
                }
            }
        }
    }

    #[test]
    fn lists_are_read_without_their_empty_members() {
        let read =
            |list: &'static str| tokens(list.as_bytes()).map(|it| std::str::from_utf8(it).unwrap()).collect::<Vec<_>>();
        assert_eq!(read(" a ,, b\t,c,"), ["a", "b", "c"]);
        assert!(read(" , ,").is_empty() && read("").is_empty());
    }

    #[test]
    fn numbers_are_written_in_digits() {
        for number in [0, 7, 10, 12345, u64::MAX] {
            let mut out = Vec::new();
            put_decimal(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }
}
