//! Which requests are taken (RFC 9113, 8.2 and 8.3).
//!
//! What `h2` hands over has been looked at: names and values are those of HTTP, pseudo fields are complete and come
//! first, nothing is said about the connection. The rest is decided here, as strictly as for HTTP/1.1: a request that
//! could mean two things to two readers is none.

use bytes::{BufMut, BytesMut};
use h2::Reason;
use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST};
use http::{HeaderMap, HeaderValue, request};

use crate::proxy::http1::head::{Field, HeadLimits, Host, Length, RequestHead};
use crate::proxy::page::Page;

/// The longest method that is looked at.
const METHOD_BYTES_MAX: usize = 32;

/// What a request is told that has a body without a meaning (RFC 9110, 9.3.1).
pub(super) const NO_BODY: Page = Page::BadRequest("a request of this method has no body");

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is malformed: its stream is reset.
    Malformed,
    /// It is answered so.
    Page(Page),
}

impl Refusal {
    /// What a malformed request's stream is reset with.
    pub(super) const REASON: Reason = Reason::PROTOCOL_ERROR;
}

/// Cookies that came one by one (RFC 9113, 8.2.3) as one field; none if there is nothing to join.
pub(super) fn join_cookies(fields: &HeaderMap) -> Option<BytesMut> {
    let mut cookies = fields.get_all(COOKIE).iter();
    let first = cookies.next()?;
    let mut joined = BytesMut::new();
    for cookie in cookies {
        if joined.is_empty() {
            joined.put_slice(first.as_bytes());
        }
        joined.put_slice(b"; ");
        joined.put_slice(cookie.as_bytes());
    }
    (!joined.is_empty()).then_some(joined)
}

/// All fields, with the joined cookies in the place of the first.
pub(super) fn list<'b>(fields: &'b HeaderMap, cookies: Option<&'b BytesMut>) -> Vec<Field<'b>> {
    let mut list = Vec::with_capacity(fields.len());
    let mut has_cookies = false;
    for (name, value) in fields {
        let value = match cookies {
            Some(_) if name == COOKIE && has_cookies => continue,
            Some(joined) if name == COOKIE => {
                has_cookies = true;
                joined.as_ref()
            }
            _ => value.as_bytes(),
        };
        list.push(Field { name: name.as_str(), value });
    }
    list
}

/// Reads a request; `fields` are those of `parts`. `is_whole` if no body follows.
pub(super) fn read<'h, 'b>(
    parts: &'b request::Parts,
    fields: &'h [Field<'b>],
    is_whole: bool,
    limits: &HeadLimits,
) -> Result<RequestHead<'h, 'b>, Refusal> {
    let method = parts.method.as_str();
    if method.len() > METHOD_BYTES_MAX {
        return Err(Refusal::Page(Page::NotImplemented));
    }
    if parts.headers.len() > limits.header_fields {
        return Err(Refusal::Page(Page::HeaderTooLarge));
    }
    if !parts.headers.values().all(is_value) {
        return Err(Refusal::Malformed);
    }
    let host = host(parts)?;
    if method == "CONNECT" || method == "TRACE" {
        return Err(Refusal::Page(Page::Method));
    }
    let path = parts.uri.path_and_query().ok_or(Refusal::Malformed)?.as_str();
    if path.len() > limits.target_bytes {
        return Err(Refusal::Page(Page::TargetTooLong));
    }
    let is_path = path.starts_with('/') || (path == "*" && method == "OPTIONS");
    // What follows a `#`, and the sign itself, is gone by now: the engine's type for a target has none. All that read this
    // request read the same.
    let is_url_byte = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'#' | b'<' | b'>');
    if !is_path || !path.bytes().all(is_url_byte) {
        return Err(Refusal::Malformed);
    }
    let is_bodiless = method == "GET" || method == "HEAD";
    let length = match (only(&parts.headers, &CONTENT_LENGTH)?, is_whole) {
        (None, true) => Length::None,
        // Its end may come by itself.
        (None, false) if is_bodiless => Length::None,
        (None, false) => Length::Chunked,
        (Some(length), _) => Length::Known(number(length.as_bytes()).ok_or(Refusal::Malformed)?),
    };
    let has_body = !matches!(length, Length::None | Length::Known(0));
    if is_whole && has_body {
        return Err(Refusal::Malformed);
    }
    if is_bodiless && has_body {
        return Err(Refusal::Page(NO_BODY));
    }
    let expectations = parts.headers.get_all(EXPECT);
    if !expectations.iter().all(is_continue) {
        return Err(Refusal::Page(Page::Expectation));
    }
    Ok(RequestHead {
        method,
        path,
        host,
        text: &[],
        fields,
        names_fields: true,
        length,
        is_http11: true,
        keeps_alive: true,
        upgrade: None,
        expects_continue: has_body && expectations.iter().next().is_some(),
    })
}

/// The one host that a request names, in `:authority`, in `host`, or in both.
fn host(parts: &request::Parts) -> Result<Host<'_>, Refusal> {
    if parts.uri.scheme_str().is_some_and(|scheme| scheme != "http" && scheme != "https") {
        return Err(Refusal::Malformed);
    }
    let field = only(&parts.headers, &HOST)?.map(HeaderValue::as_bytes);
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = match (authority, field) {
        (Some(authority), Some(field)) if !authority.eq_ignore_ascii_case(field) => return Err(Refusal::Malformed),
        (Some(host), _) | (None, Some(host)) => host,
        (None, None) => return Err(Refusal::Malformed),
    };
    Host::read(host).ok_or(Refusal::Malformed)
}

fn only<'b>(fields: &'b HeaderMap, name: &http::HeaderName) -> Result<Option<&'b HeaderValue>, Refusal> {
    let mut values = fields.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(Refusal::Malformed) } else { Ok(first) }
}

/// Whether a value has no white space around it (RFC 9113, 8.2.1); the rest was looked at.
pub(super) fn is_value(value: &HeaderValue) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let bytes = value.as_bytes();
    !is_blank(bytes.first()) && !is_blank(bytes.last())
}

fn is_continue(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"100-continue")
}

/// Digits alone, in the range of 63 bits, as for HTTP/1.1.
fn number(text: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse::<i64>().ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const LIMITS: HeadLimits = HeadLimits { header_bytes: 2000, header_fields: 5, target_bytes: 20 };

    fn judge(method: &str, uri: &str, fields: &[(&str, &str)], is_whole: bool) -> Result<(String, Length), Refusal> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let cookies = join_cookies(&parts.headers);
        let fields = list(&parts.headers, cookies.as_ref());
        read(&parts, &fields, is_whole, &LIMITS).map(|head| {
            let cookie = head.fields.iter().filter(|field| field.name == "cookie").map(|field| field.value);
            let cookie = cookie.collect::<Vec<_>>().join(&b'|');
            (
                format!(
                    "{}{} {}",
                    head.path,
                    String::from_utf8_lossy(&cookie),
                    String::from_utf8_lossy(head.host.field())
                ),
                head.length,
            )
        })
    }

    #[test]
    fn one_host_and_one_meaning() {
        let get = |uri: &str, fields: &[(&str, &str)]| judge("GET", uri, fields, true).map(|(text, _)| text);
        assert_eq!(get("http://a.example/x?y", &[]), Ok("/x?y a.example".to_owned()));
        assert_eq!(get("/x", &[("host", "b:80")]), Ok("/x b:80".to_owned()));
        assert_eq!(get("https://A/x", &[("host", "a")]), Ok("/x A".to_owned()));
        for (uri, fields) in [
            ("http://a/x", &[("host", "b")][..]),
            ("http://a/x", &[("host", "a:80")]),
            ("/x", &[]),
            ("/x", &[("host", "a"), ("host", "a")]),
            ("/x", &[("host", "a/b")]),
            ("http://me@a/x", &[]),
            ("ftp://a/x", &[]),
            ("http://a?x", &[]),
            ("http://a/x", &[("x", " y")]),
            ("http://a/x", &[("x", "y\t")]),
        ] {
            assert_eq!(get(uri, fields), Err(Refusal::Malformed), "{uri} {fields:?}");
        }
        let many = [("a", "1"), ("b", "1"), ("c", "1"), ("d", "1"), ("e", "1"), ("f", "1")];
        assert_eq!(get("http://a/", &many), Err(Refusal::Page(Page::HeaderTooLarge)));
        assert_eq!(get("http://a/123456789012345678901", &[]), Err(Refusal::Page(Page::TargetTooLong)));
        assert_eq!(get("http://a/", &[("expect", "more")]), Err(Refusal::Page(Page::Expectation)));
        assert_eq!(judge("TRACE", "http://a/", &[], true), Err(Refusal::Page(Page::Method)));
    }

    #[test]
    fn one_length() {
        let post =
            |fields: &[(&str, &str)], is_whole| judge("POST", "http://a/", fields, is_whole).map(|(_, length)| length);
        assert_eq!(post(&[], false), Ok(Length::Chunked));
        assert_eq!(post(&[], true), Ok(Length::None));
        assert_eq!(post(&[("content-length", "7")], false), Ok(Length::Known(7)));
        assert_eq!(post(&[("content-length", "0")], true), Ok(Length::Known(0)));
        for (length, is_whole) in [
            ("7", true),
            ("+7", false),
            ("", false),
            ("7,7", false),
            ("9223372036854775808", false),
            ("99999999999999999999", false),
        ] {
            assert_eq!(post(&[("content-length", length)], is_whole), Err(Refusal::Malformed), "{length}");
        }
        assert_eq!(post(&[("content-length", "7"), ("content-length", "7")], false), Err(Refusal::Malformed));
        let get =
            |fields: &[(&str, &str)], is_whole| judge("GET", "http://a/", fields, is_whole).map(|(_, length)| length);
        assert_eq!(get(&[], false), Ok(Length::None));
        assert_eq!(get(&[("content-length", "7")], false), Err(Refusal::Page(NO_BODY)));
    }

    #[test]
    fn cookies_are_one() {
        let cookies = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")];
        assert_eq!(judge("GET", "http://a/", &cookies, true).unwrap().0, "/a=1; b=2; c=3 a");
        assert_eq!(judge("GET", "http://a/", &cookies[..1], true).unwrap().0, "/a=1 a");
    }
}
