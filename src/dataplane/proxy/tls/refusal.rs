//! What a client is told that speaks HTTP without TLS to a port with it. Pure.

use crate::name::{Hostname, Port};

/// Whether this is how a request begins: with the letters of a method.
pub(super) fn is_http(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(u8::is_ascii_uppercase)
}

/// The whole answer to a request of which this is the beginning.
pub(super) fn page(request: &[u8], port: Port) -> Vec<u8> {
    let place = host(request).map_or_else(
        || "https://".to_owned(),
        |host| match port.get() {
            443 => format!("https://{host}/"),
            other => format!("https://{host}:{other}/"),
        },
    );
    let text = format!("400: this port speaks HTTPS, and the request came without TLS: use {place}\n");
    format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{text}",
        text.len()
    )
    .into_bytes()
}

/// The host that it names, if that is a host name.
fn host(request: &[u8]) -> Option<Hostname> {
    let mut fields = request.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let value = fields.find_map(|field| {
        let (name, value) = field.split_at_checked("host:".len())?;
        name.eq_ignore_ascii_case(b"host:").then_some(value)
    })?;
    let value = std::str::from_utf8(value.trim_ascii()).ok()?;
    value.split(':').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(request: &str, port: u16) -> String {
        String::from_utf8(page(request.as_bytes(), Port::new(port).unwrap())).unwrap()
    }

    #[test]
    fn the_remedy_names_the_host_if_that_can_be_trusted() {
        let ends = |request, port, end: &str| {
            let said = said(request, port);
            assert!(said.ends_with(&format!("use {end}\n")), "{said}");
        };
        ends("GET / HTTP/1.1\r\nHost: Shop.example\r\n\r\n", 443, "https://shop.example/");
        ends("GET / HTTP/1.1\r\nA: b\r\nhOST:shop.example:8443\r\n", 8443, "https://shop.example:8443/");
        ends("GET / HTTP/1.1\r\nHost: <script>\r\n\r\n", 443, "https://");
        ends("GET / HTTP/1.1\r\nHost: a\x1b[2J\r\n\r\n", 443, "https://");
        ends("GET", 443, "https://");
    }

    #[test]
    fn its_length_is_right() {
        let said = said("GET / HTTP/1.1\r\n\r\n", 443);
        let (head, body) = said.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    }
}
