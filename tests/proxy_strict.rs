//! What is refused, what is not, and what reaches an origin: bytes of all kinds through the proxy, beside a recording
//! origin and an oracle.
#![allow(missing_docs)]

mod support;

use support::oracle;

#[test]
fn the_oracle_knows_what_is_ambiguous() {
    for (head, is_safe) in [
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", true),
        ("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", true),
        ("GET / HTTP/1.1\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", false),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nA: \x01\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent_Length: 3\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", false),
    ] {
        let flaw = oracle::flaw(head.as_bytes());
        assert_eq!(flaw.is_none(), is_safe, "{head:?}: {flaw:?}");
    }
}
