//! What of a message's header is passed on, and what of a request decides where it goes.

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, FORWARDED, HOST, HeaderName,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Uri, Version, request};

use super::page::Page;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// CGI programs take it for the address of a proxy of their own.
const PROXY: HeaderName = HeaderName::from_static("proxy");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Fields between two neighbours only (RFC 9110, 7.6.1), whether `Connection` names them or not.
const HOP_BY_HOP: [HeaderName; 8] =
    [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE];

/// Fields that nobody can have dropped by naming them in `Connection`.
const KEPT: [HeaderName; 7] = [AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, FORWARDED, HOST, SET_COOKIE];

/// The longest host that is looked up: 253 bytes of name, or an IPv6 address in brackets.
const HOST_BYTES_MAX: usize = 255;

/// Where a request wants to go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The host to route by: lower case, no port, no final dot.
    pub(super) host: String,
    /// The host as the client named it.
    pub(super) host_field: HeaderValue,
    /// The target in origin form.
    pub(super) path: PathAndQuery,
}

impl Target {
    /// Reads the target and the host of a request, strictly.
    pub(super) fn of(parts: &request::Parts, target_bytes_max: usize) -> Result<Self, Page> {
        let path = parts.uri.path_and_query().ok_or(Page::BadRequest("the target has no path"))?.clone();
        let authority_bytes = parts.uri.authority().map_or(0, |authority| authority.as_str().len());
        if path.as_str().len() + authority_bytes > target_bytes_max {
            return Err(Page::TargetTooLong);
        }
        let is_star = path.as_str() == "*" && parts.method == Method::OPTIONS;
        if !path.as_str().starts_with('/') && !is_star {
            return Err(Page::BadRequest("the target is neither a path nor an http URL"));
        }
        let host_field = host_field(&parts.headers)?;
        let host_field = match (parts.uri.scheme(), parts.uri.authority()) {
            (None, None) => host_field.clone(),
            // The target names the host, and the field does not count (RFC 9112, 3.2.2).
            (Some(scheme), Some(authority)) if *scheme == Scheme::HTTP => authority_field(authority)?,
            _ => return Err(Page::BadRequest("the target is neither a path nor an http URL")),
        };
        let host = host_name(host_field.as_bytes()).ok_or(Page::BadRequest("the host is not a host name"))?;
        Ok(Self { host, host_field, path })
    }

    /// The path to route by. A question about the server as a whole (`OPTIONS *`) goes where `/` does.
    pub(super) fn route_path(&self) -> &str {
        if self.path.as_str() == "*" { "/" } else { self.path.path() }
    }
}

fn host_field(headers: &HeaderMap) -> Result<&HeaderValue, Page> {
    let mut fields = headers.get_all(HOST).iter();
    match (fields.next(), fields.next()) {
        (Some(host), None) => Ok(host),
        (None, _) => Err(Page::BadRequest("the request names no host")),
        (Some(_), Some(_)) => Err(Page::BadRequest("the request names more than one host")),
    }
}

fn authority_field(authority: &Authority) -> Result<HeaderValue, Page> {
    HeaderValue::from_str(authority.as_str()).map_err(|_| Page::BadRequest("the host is not a host name"))
}

/// The name in a `Host` field: `name`, `name:port`, or an address in brackets.
fn host_name(field: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(field).ok()?;
    let (name, port) = match text.rfind(']') {
        Some(end) => text.split_at_checked(end + 1)?,
        None => text.split_at_checked(text.find(':').unwrap_or(text.len()))?,
    };
    let is_port = port.is_empty()
        || port.strip_prefix(':').is_some_and(|digits| {
            digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits.is_empty() || digits.parse::<u16>().is_ok())
        });
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_name = match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
        None => name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')),
    };
    let fits = (1..=HOST_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && !name.contains("..");
    (is_port && is_name && fits).then(|| name.to_ascii_lowercase())
}

/// What an upgrade is asked to, if one is asked for: a request without a body that says so in `Connection` too.
/// HTTP/2 is not passed on: behind it, requests would no longer be seen.
pub(super) fn asked_upgrade(parts: &request::Parts, has_body: bool) -> Option<HeaderValue> {
    let mut fields = parts.headers.get_all(UPGRADE).iter();
    let (Some(upgrade), None) = (fields.next(), fields.next()) else {
        return None;
    };
    let is_asked = parts.version == Version::HTTP_11
        && !has_body
        && connection_tokens(&parts.headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let is_http2 = upgrade.to_str().is_ok_and(|protocols| {
        protocols.split(',').any(|protocol| protocol.trim().to_ascii_lowercase().starts_with("h2"))
    });
    (is_asked && !is_http2).then(|| upgrade.clone())
}

/// Makes a client's header one for a backend. What a trusted client says of those behind it is kept and added to.
pub(super) fn to_backend(
    headers: &mut HeaderMap,
    client: &HeaderValue,
    host: &HeaderValue,
    upgrade: Option<HeaderValue>,
    is_trusted: bool,
    is_tls: bool,
) {
    let told = if is_trusted { Told::by(headers) } else { Told::default() };
    let takes_trailers = headers.get_all(TE).iter().any(|value| {
        value.to_str().is_ok_and(|codings| codings.split(',').any(|it| it.trim().eq_ignore_ascii_case("trailers")))
    });
    drop_hop_by_hop(headers);
    drop_forwarded(headers);
    // Answered here: the engine says 100 when the body is asked for.
    headers.remove(EXPECT);
    headers.remove(PROXY);
    headers.insert(HOST, host.clone());
    headers.insert(X_FORWARDED_FOR, told.chain(client));
    headers.insert(
        X_FORWARDED_PROTO,
        told.proto.unwrap_or(HeaderValue::from_static(if is_tls { "https" } else { "http" })),
    );
    headers.insert(X_FORWARDED_HOST, told.host.unwrap_or_else(|| host.clone()));
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        put_upgrade(headers, protocol);
    }
}

/// The most bytes of addresses that are passed on: some 30 proxies in a row.
const CHAIN_BYTES_MAX: usize = 1024;

/// What a trusted client says of those behind it.
#[derive(Default)]
struct Told {
    chain: Vec<u8>,
    proto: Option<HeaderValue>,
    host: Option<HeaderValue>,
}

impl Told {
    fn by(headers: &HeaderMap) -> Self {
        let only = |name| {
            let mut values = headers.get_all(name).iter();
            values.next().filter(|_| values.next().is_none()).cloned()
        };
        let addresses = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
        Self {
            chain: addresses.filter(|list| !list.is_empty()).collect::<Vec<_>>().join(&b", "[..]),
            proto: only(X_FORWARDED_PROTO).filter(|proto| proto == "http" || proto == "https"),
            host: only(X_FORWARDED_HOST),
        }
    }

    /// The addresses told, then the one that told them.
    fn chain(&self, client: &HeaderValue) -> HeaderValue {
        if self.chain.is_empty() || self.chain.len() > CHAIN_BYTES_MAX {
            return client.clone();
        }
        let chain = [&self.chain, &b", "[..], client.as_bytes()].concat();
        HeaderValue::from_bytes(&chain).unwrap_or_else(|_| client.clone())
    }
}

/// Makes a backend's header one for a client.
pub(super) fn to_client(headers: &mut HeaderMap) {
    // Of two lengths the engine went by the chunks; the other must not reach the client.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    drop_hop_by_hop(headers);
}

/// Says that the connection changes its protocol.
pub(super) fn put_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// The target as a backend gets it: path and query alone.
pub(super) fn origin_form(path: PathAndQuery) -> Uri {
    Uri::from(path)
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_tokens(headers)
        .filter(|token| !token.eq_ignore_ascii_case("keep-alive") && !token.eq_ignore_ascii_case("close"))
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| !KEPT.contains(name) && !is_forwarded(name))
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|tokens| tokens.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// What a client says about who stands behind it is not known to be true.
fn drop_forwarded(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers.keys().filter(|name| is_forwarded(name)).cloned().collect();
    for name in &named {
        headers.remove(name);
    }
}

/// `Forwarded`, `X-Real-IP`, and `X-Forwarded-…` in the spellings that programs behind CGI and WSGI take for it.
fn is_forwarded(name: &HeaderName) -> bool {
    let name_text = name.as_str();
    *name == FORWARDED
        || *name == X_REAL_IP
        || (name_text.starts_with('x') && name_text.replace('_', "-").starts_with("x-forwarded-"))
        || name_text == "x_real_ip"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_strictly() {
        for (field, name) in [
            ("example.com", "example.com"),
            ("Example.COM.:8080", "example.com"),
            ("example.com:", "example.com"),
            ("under_score.example", "under_score.example"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[::1]:80", "[::1]"),
            ("[2001:DB8::1]", "[2001:db8::1]"),
        ] {
            assert_eq!(host_name(field.as_bytes()).as_deref(), Some(name), "{field}");
        }
        let long = "a".repeat(256);
        for field in [
            "", ".", ":80", "a b", "a,b", "a/b", "a@b", "a:b", "a:99999", "a:80:80", "[::1", "::1", "[x]", "a..b",
            ".a", "a\\b", "ü", "a%20b", &long,
        ] {
            assert_eq!(host_name(field.as_bytes()), None, "{field}");
        }
    }

    fn parts(target: &str, fields: &[(&str, &str)]) -> request::Parts {
        let mut request = http::Request::builder().uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_target_of_a_request_names_its_host_and_path() {
        let target = Target::of(&parts("/a?b", &[("host", "A.example:80")]), 100).unwrap();
        assert_eq!((target.host.as_str(), target.path.as_str()), ("a.example", "/a?b"));
        assert_eq!(target.host_field, "A.example:80");
        let target = Target::of(&parts("http://b.example/x", &[("host", "a.example")]), 100).unwrap();
        assert_eq!((target.host.as_str(), target.path.as_str()), ("b.example", "/x"));
        assert_eq!(target.host_field, "b.example");
        let bad = |target: &str, fields: &[(&str, &str)]| Target::of(&parts(target, fields), 100).unwrap_err();
        for page in [
            bad("/", &[]),
            bad("/", &[("host", "a"), ("host", "a")]),
            bad("/", &[("host", "a b")]),
            bad("*", &[("host", "a")]),
            bad("a", &[("host", "a")]),
            bad("https://a/", &[("host", "a")]),
            bad("http://user@a/", &[("host", "a")]),
        ] {
            assert!(matches!(page, Page::BadRequest(_)), "{page:?}");
        }
        assert_eq!(bad(&format!("/{}", "x".repeat(100)), &[("host", "a")]), Page::TargetTooLong);
    }

    #[test]
    fn a_client_cannot_have_what_matters_dropped() {
        let mut headers = parts(
            "/",
            &[
                ("connection", "close, x-secret, authorization, host, x-forwarded-for, cookie"),
                ("x-secret", "1"),
                ("authorization", "2"),
                ("cookie", "3"),
                ("te", "gzip, trailers"),
                ("x_forwarded_for", "4"),
                ("x-forwarded-server", "5"),
                ("forwarded", "6"),
                ("x-real-ip", "7"),
                ("proxy", "8"),
            ],
        )
        .headers;
        let (client, host) = (HeaderValue::from_static("9.9.9.9"), HeaderValue::from_static("a"));
        to_backend(&mut headers, &client, &host, None, false, false);
        let mut left: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        left.sort_unstable();
        let expected = [
            ("authorization", "2"),
            ("cookie", "3"),
            ("host", "a"),
            ("te", "trailers"),
            ("x-forwarded-for", "9.9.9.9"),
            ("x-forwarded-host", "a"),
            ("x-forwarded-proto", "http"),
        ];
        assert_eq!(left, expected);
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_added_to() {
        let fields = [
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-for", "5.6.7.8, 10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example"),
            ("x-real-ip", "7.7.7.7"),
        ];
        let forwarded = |is_trusted| {
            let mut headers = parts("/", &fields).headers;
            let (client, host) = (HeaderValue::from_static("10.0.0.2"), HeaderValue::from_static("a"));
            to_backend(&mut headers, &client, &host, None, is_trusted, false);
            assert!(!headers.contains_key("x-real-ip"));
            ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"].map(|name| {
                let values: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
                values.join("|")
            })
        };
        assert_eq!(forwarded(true), ["1.2.3.4, 5.6.7.8, 10.0.0.1, 10.0.0.2", "https", "shop.example"]);
        assert_eq!(forwarded(false), ["10.0.0.2", "http", "a"]);
    }

    #[test]
    fn an_upgrade_is_asked_for_twice_or_not_at_all() {
        let asked = |fields: &[(&str, &str)], has_body| asked_upgrade(&parts("/", fields), has_body).is_some();
        assert!(asked(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")], false));
        assert!(!asked(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")], true));
        assert!(!asked(&[("upgrade", "websocket")], false));
        assert!(!asked(&[("connection", "upgrade")], false));
        assert!(!asked(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")], false));
        assert!(!asked(&[("connection", "upgrade"), ("upgrade", "websocket, H2C")], false));
    }

    #[test]
    fn of_two_lengths_the_client_sees_neither() {
        let mut headers = parts("/", &[("content-length", "3"), ("transfer-encoding", "chunked")]).headers;
        to_client(&mut headers);
        assert!(headers.is_empty(), "{headers:?}");
    }
}
