//! The PROXY protocol, versions 1 and 2 (haproxy.org, `proxy-protocol.txt`, 2020): whose connection it is, said by a proxy
//! before anything else. Pure.
//!
//! Strict: one form for each thing that can be said, nothing longer than it may be, and no guessing whether a header is
//! there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::app::ProxyProtocol;

/// The longest header of version 1, its line end included.
const V1_BYTES_MAX: usize = 107;
/// The longest header of version 2 that is taken: addresses and some kilobytes of what else a proxy may tell.
pub(super) const V2_BYTES_MAX: usize = 4096;
/// What version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_FIXED_BYTES: usize = 16;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A header of so many bytes. No source: the connection is the proxy's own, or nothing is known of whose it is.
    Whole {
        /// Its length.
        length: usize,
        /// Whose connection it is.
        source: Option<SocketAddr>,
    },
    /// All of them belong to a header that has more.
    Partial,
    /// No header.
    Invalid,
}

/// Reads a header from the first bytes of a connection, as many as have come.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    match bytes.first() {
        None => Parsed::Partial,
        Some(b'P') => parse_v1(bytes),
        Some(_) => parse_v2(bytes),
    }
}

fn parse_v1(bytes: &[u8]) -> Parsed {
    const START: &[u8] = b"PROXY ";
    let known = bytes.len().min(START.len());
    if bytes[..known] != START[..known] {
        return Parsed::Invalid;
    }
    let within = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < V1_BYTES_MAX { Parsed::Partial } else { Parsed::Invalid };
    };
    let Some(text) = within.get(START.len()..end).and_then(|text| std::str::from_utf8(text).ok()) else {
        return Parsed::Invalid;
    };
    let length = end + 2;
    let mut words = text.split(' ');
    let source = match words.next() {
        // Whatever follows means nothing.
        Some("UNKNOWN") => return Parsed::Whole { length, source: None },
        Some("TCP4") => v1_addresses::<Ipv4Addr>(words),
        Some("TCP6") => v1_addresses::<Ipv6Addr>(words),
        _ => None,
    };
    source.map_or(Parsed::Invalid, |source| Parsed::Whole { length, source: Some(source) })
}

/// Source, destination, and their ports; nothing more and nothing less.
fn v1_addresses<'a, A: std::str::FromStr + Into<IpAddr>>(words: impl Iterator<Item = &'a str>) -> Option<SocketAddr> {
    let words: Vec<&str> = words.take(5).collect();
    let [source, destination, source_port, destination_port] = words.as_slice() else {
        return None;
    };
    let (source, _) = (source.parse::<A>().ok()?, destination.parse::<A>().ok()?);
    let (port, _) = (v1_port(source_port)?, v1_port(destination_port)?);
    Some(SocketAddr::new(source.into(), port))
}

/// Digits alone, none to fill up.
fn v1_port(word: &str) -> Option<u16> {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word.len() == 1 || !word.starts_with('0'));
    word.parse().ok().filter(|_| is_plain)
}

fn parse_v2(bytes: &[u8]) -> Parsed {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return Parsed::Invalid;
    }
    let Some(&[command, family, high, low]) = bytes.get(SIGNATURE.len()..V2_FIXED_BYTES) else {
        return Parsed::Partial;
    };
    let length = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if command >> 4 != 2 || command & 0xf > 1 || length > V2_BYTES_MAX {
        return Parsed::Invalid;
    }
    let Some(said) = bytes.get(V2_FIXED_BYTES..length) else {
        return Parsed::Partial;
    };
    // The proxy itself has connected, to see whether we are here.
    if command & 0xf == 0 {
        return Parsed::Whole { length, source: None };
    }
    let source = match family {
        // Nothing is known, or of a kind that has no address of ours: datagrams, sockets of one machine.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => Some(None),
        0x11 => v2_addresses::<4>(said).map(|(ip, port)| Some(SocketAddr::from((ip, port)))),
        0x21 => v2_addresses::<16>(said).map(|(ip, port)| Some(SocketAddr::from((ip, port)))),
        _ => None,
    };
    source.map_or(Parsed::Invalid, |source| Parsed::Whole { length, source })
}

/// The source, of addresses of so many bytes; none: what follows the addresses is no list of things told.
fn v2_addresses<const N: usize>(said: &[u8]) -> Option<([u8; N], u16)> {
    let (source, rest) = said.split_first_chunk::<N>()?;
    let (_, rest) = rest.split_first_chunk::<N>()?;
    let ([high, low, _, _], mut told) = rest.split_first_chunk::<4>()?;
    while let Some((&[_, long, short], rest)) = told.split_first_chunk::<3>() {
        told = rest.get(usize::from(u16::from_be_bytes([long, short]))..)?;
    }
    told.is_empty().then_some((*source, u16::from_be_bytes([*high, *low])))
}

/// The header for a connection from `source` that came in at `destination`.
pub(super) fn header(version: ProxyProtocol, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let plain = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    let ((source, source_port), (destination, destination_port)) = (plain(source), plain(destination));
    let (source, destination, is_v4) = match (source, destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) => (source, destination, true),
        // Both are of one family in a header.
        _ => (IpAddr::V6(as_v6(source)), IpAddr::V6(as_v6(destination)), false),
    };
    if version == ProxyProtocol::V1 {
        let family = if is_v4 { "TCP4" } else { "TCP6" };
        let line = format!("PROXY {family} {source} {destination} {source_port} {destination_port}\r\n");
        return line.into_bytes();
    }
    let (family, length): (u8, u16) = if is_v4 { (0x11, 12) } else { (0x21, 36) };
    let mut bytes = [&SIGNATURE[..], &[0x21, family], &length.to_be_bytes()].concat();
    for ip in [source, destination] {
        match ip {
            IpAddr::V4(ip) => bytes.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
        }
    }
    bytes.extend_from_slice(&source_port.to_be_bytes());
    bytes.extend_from_slice(&destination_port.to_be_bytes());
    bytes
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// For the fuzzer: whatever comes first, a header is a prefix of it and parses alone as it does with what follows, and
/// each part of a header is one that has more.
#[cfg(feature = "testing")]
pub fn check(bytes: &[u8]) {
    if let whole @ Parsed::Whole { length, .. } = parse(bytes) {
        assert!(length <= bytes.len() && length <= V2_BYTES_MAX);
        assert_eq!(parse(&bytes[..length]), whole);
        for part in 0..length {
            assert_eq!(parse(&bytes[..part]), Parsed::Partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(length: usize, source: &str) -> Parsed {
        Parsed::Whole { length, source: source.parse().ok() }
    }

    fn v2(command: u8, family: u8, said: &[u8]) -> Vec<u8> {
        let length = u16::try_from(said.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, said].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0x12, 0x34, 0, 80];

    #[test]
    fn headers_of_version_1() {
        for (line, source) in [
            ("PROXY TCP4 192.0.2.1 192.0.2.2 4660 80\r\n", "192.0.2.1:4660"),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255:65535"),
            ("PROXY TCP6 2001:db8::1 ::1 0 80\r\n", "[2001:db8::1]:0"),
            ("PROXY UNKNOWN\r\n", ""),
            ("PROXY UNKNOWN ffff::1 whatever\r\n", ""),
        ] {
            assert_eq!(parse(line.as_bytes()), whole(line.len(), source), "{line}");
            assert_eq!(parse(format!("{line}GET / HTTP/1.1\r\n").as_bytes()), whole(line.len(), source), "{line}");
            for part in 0..line.len() {
                assert_eq!(parse(&line.as_bytes()[..part]), Parsed::Partial, "{part} bytes of {line}");
            }
        }
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX - 16));
        assert_eq!(parse(longest.as_bytes()), whole(V1_BYTES_MAX, ""));
    }

    #[test]
    fn what_is_no_header_of_version_1() {
        for line in [
            "GET / HTTP/1.1\r\n",
            "PROXy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            "PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 99999999999\r\n",
            "PROXY TCP4\t192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY \r\n",
            "PROXY UNKNOWN\u{fc}\r\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Parsed::Invalid, "{line:?}");
        }
        assert_eq!(parse(b"PROXY \xff\r\n"), Parsed::Invalid);
        assert_eq!(parse("PROXY UNKNOWN ".repeat(8).as_bytes()), Parsed::Invalid, "too long without an end");
        let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX - 15));
        assert_eq!(parse(too_long.as_bytes()), Parsed::Invalid);
    }

    #[test]
    fn what_is_written_is_read() {
        for (source, destination, read) in [
            ("192.0.2.1:4660", "192.0.2.2:80", "192.0.2.1:4660"),
            ("[2001:db8::1]:65535", "[::1]:1", "[2001:db8::1]:65535"),
            ("[::ffff:192.0.2.1]:9", "192.0.2.2:80", "192.0.2.1:9"),
            ("192.0.2.1:9", "[2001:db8::2]:80", "[::ffff:192.0.2.1]:9"),
        ] {
            for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
                let bytes = header(version, source.parse().unwrap(), destination.parse().unwrap());
                assert_eq!(parse(&bytes), whole(bytes.len(), read), "{version:?} {source}");
            }
        }
        let golden = header(ProxyProtocol::V2, "192.0.2.1:4660".parse().unwrap(), "192.0.2.2:80".parse().unwrap());
        assert_eq!(golden, v2(0x21, 0x11, &V4));
    }

    #[test]
    fn headers_of_version_2() {
        let v6 = [&[0x20, 1, 0xd, 0xb8], &[0; 11][..], &[1], &[0; 16], &[0, 7, 0, 80]].concat();
        let told = [&V4[..], &[0x04, 0, 3, 1, 2, 3, 0x20, 0, 0]].concat();
        for (bytes, source) in [
            (v2(0x21, 0x11, &V4), "192.0.2.1:4660"),
            (v2(0x21, 0x11, &told), "192.0.2.1:4660"),
            (v2(0x21, 0x21, &v6), "[2001:db8::1]:7"),
            // The proxy's own, whatever else is said.
            (v2(0x20, 0x00, &[]), ""),
            (v2(0x20, 0x11, &V4), ""),
            (v2(0x20, 0xff, &[1, 2, 3]), ""),
            (v2(0x21, 0x00, &[]), ""),
            (v2(0x21, 0x12, &V4), ""),
            (v2(0x21, 0x31, &[0; 216]), ""),
            (v2(0x20, 0x00, &[0; V2_BYTES_MAX - 16]), ""),
        ] {
            assert_eq!(parse(&bytes), whole(bytes.len(), source), "{bytes:x?}");
            assert_eq!(parse(&[&bytes[..], b"more"].concat()), whole(bytes.len(), source), "{bytes:x?}");
            for part in 0..bytes.len() {
                assert_eq!(parse(&bytes[..part]), Parsed::Partial, "{part} bytes of {bytes:x?}");
            }
        }
    }

    #[test]
    fn what_is_no_header_of_version_2() {
        for bytes in [
            b"\r\n\r\n\0\r\nQUIT\r".to_vec(),
            b"\r\nGET".to_vec(),
            v2(0x11, 0x11, &V4),
            v2(0x22, 0x11, &V4),
            v2(0x21, 0x13, &V4),
            v2(0x21, 0x41, &V4),
            v2(0x21, 0x11, &V4[..11]),
            v2(0x21, 0x21, &V4),
            // Things told that do not add up.
            v2(0x21, 0x11, &[&V4[..], &[4]].concat()),
            v2(0x21, 0x11, &[&V4[..], &[4, 0, 2, 1]].concat()),
            v2(0x20, 0x00, &[0; V2_BYTES_MAX - 15]),
        ] {
            assert_eq!(parse(&bytes), Parsed::Invalid, "{bytes:x?}");
        }
        // Its length is refused before any of it has come.
        assert_eq!(parse(&v2(0x20, 0x00, &[0; V2_BYTES_MAX])[..16]), Parsed::Invalid);
    }
}
