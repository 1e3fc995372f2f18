//! The name in a TLS client's first message (RFC 8446, 4.1.2; RFC 6066, 3). Pure: bytes go in, as far as they have
//! come. Nothing is decrypted, and nothing is judged beyond what it takes to find the name: that is for whom it is
//! passed on to.

use crate::name::Hostname;

/// The most that is looked at. Those of browsers take 2 KiB with post-quantum keys.
pub(super) const HELLO_BYTES_MAX: usize = 16 * 1024;

/// The kind of a record that holds handshake messages.
pub(super) const HANDSHAKE: u8 = 22;
/// A record's kind, its version, its length.
const RECORD_HEADER_BYTES: usize = 5;
/// The most that a record may hold (RFC 8446, 5.1).
const RECORD_BYTES_MAX: usize = 1 << 14;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What the first bytes of a connection say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hello {
    /// Not everything has come yet.
    Incomplete,
    /// A client that speaks TLS, and the host it names.
    Tls(Option<Hostname>),
    /// Something else.
    Other,
}

/// Looks at what a connection has said so far.
pub(super) fn read(bytes: &[u8]) -> Hello {
    match message(bytes) {
        Ok(message) => server_name(&message).map_or(Hello::Other, Hello::Tls),
        Err(Short) if bytes.len() < HELLO_BYTES_MAX => Hello::Incomplete,
        Err(_) => Hello::Other,
    }
}

use Stop::{Short, Wrong};

/// Why there is no message.
enum Stop {
    Short,
    Wrong,
}

/// The whole of a first handshake message, without its header, which may come in several records.
fn message(mut bytes: &[u8]) -> Result<Vec<u8>, Stop> {
    let mut message = Vec::new();
    loop {
        // What can be known to be wrong is said at once: nothing more may come.
        if bytes.first().is_some_and(|kind| *kind != HANDSHAKE) || bytes.get(1).is_some_and(|major| *major != 3) {
            return Err(Wrong);
        }
        let (header, rest) = bytes.split_at_checked(RECORD_HEADER_BYTES).ok_or(Short)?;
        let length = header.iter().skip(3).fold(0, |high, low| high << 8 | usize::from(*low));
        if length == 0 || length > RECORD_BYTES_MAX {
            return Err(Wrong);
        }
        message.extend_from_slice(rest.get(..length).unwrap_or(rest));
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Wrong);
        }
        if let Some((_, [high, middle, low], body)) = split_header(&message) {
            let wanted = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            if wanted > HELLO_BYTES_MAX {
                return Err(Wrong);
            }
            if let Some(body) = body.get(..wanted) {
                return Ok(body.to_vec());
            }
        }
        bytes = rest.get(length..).ok_or(Short)?;
    }
}

fn split_header(message: &[u8]) -> Option<(u8, [u8; 3], &[u8])> {
    let ([kind, high, middle, low], body) = message.split_first_chunk()?;
    Some((*kind, [*high, *middle, *low], body))
}

/// The host that a client names, if it names one; none at all if this is no such message.
fn server_name(message: &[u8]) -> Option<Option<Hostname>> {
    let mut fields = Fields(message);
    fields.take(2 + 32)?;
    fields.prefixed(1)?;
    let suites = fields.prefixed(2)?;
    let compressions = fields.prefixed(1)?;
    if suites.is_empty() || compressions.is_empty() {
        return None;
    }
    // Before TLS 1.2 there may be none.
    if fields.0.is_empty() {
        return Some(None);
    }
    let mut extensions = Fields(fields.prefixed(2)?);
    if !fields.0.is_empty() {
        return None;
    }
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let content = extensions.prefixed(2)?;
        if kind == usize::from(SERVER_NAME) {
            // Twice, whoever it is passed on to might take the other one.
            if found.replace(host_name(content)?).is_some() {
                return None;
            }
        }
    }
    Some(found)
}

fn host_name(extension: &[u8]) -> Option<Hostname> {
    let mut fields = Fields(extension);
    let mut list = Fields(fields.prefixed(2)?);
    let kind = list.number(1)?;
    let name = list.prefixed(2)?;
    // There is one kind of name, and one name of a kind.
    if kind != usize::from(HOST_NAME) || !list.0.is_empty() || !fields.0.is_empty() {
        return None;
    }
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// Bytes that are taken from the front.
struct Fields<'b>(&'b [u8]);

impl<'b> Fields<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number of 1 or 2 bytes.
    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |high, low| high << 8 | usize::from(*low)))
    }

    /// What follows its own length.
    fn prefixed(&mut self, bytes: usize) -> Option<&'b [u8]> {
        let count = self.number(bytes)?;
        self.take(count)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The first message of a client that names a host.
    pub(in crate::proxy) fn hello(host: &str) -> Vec<u8> {
        let name = [&[HOST_NAME], &length(host.len())[..], host.as_bytes()].concat();
        let list = [&length(name.len())[..], &name].concat();
        let extensions = [extension(43, &[2, 3, 4]), extension(SERVER_NAME, &list), extension(16, &[])].concat();
        records(&client_hello(&extensions), usize::MAX)
    }

    fn length(count: usize) -> [u8; 2] {
        u16::try_from(count).unwrap().to_be_bytes()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &length(content.len()), content].concat()
    }

    fn client_hello(extensions: &[u8]) -> Vec<u8> {
        let body =
            [&[3, 3], &[7; 32][..], &[1, 9], &length(2), &[0x13, 1], &[1, 0], &length(extensions.len()), extensions]
                .concat();
        [&[CLIENT_HELLO, 0], &length(body.len())[..], &body].concat()
    }

    /// A message in records of so many bytes.
    fn records(message: &[u8], bytes: usize) -> Vec<u8> {
        let record = |piece: &[u8]| [&[HANDSHAKE, 3, 1], &length(piece.len())[..], piece].concat();
        message.chunks(bytes.min(RECORD_BYTES_MAX)).flat_map(record).collect()
    }

    fn host(name: &str) -> Hello {
        Hello::Tls(Some(name.parse().unwrap()))
    }

    #[test]
    fn the_name_is_found_as_soon_as_all_has_come() {
        let bytes = hello("Shop.Example.com");
        for length in 0..bytes.len() {
            assert_eq!(read(&bytes[..length]), Hello::Incomplete, "{length} of {}", bytes.len());
        }
        assert_eq!(read(&bytes), host("shop.example.com"));
        assert_eq!(read(&[&bytes[..], b"more"].concat()), host("shop.example.com"));
    }

    #[test]
    fn a_message_may_come_in_any_pieces() {
        let whole = hello("a.example");
        let message = &whole[RECORD_HEADER_BYTES..];
        for bytes in [1, 2, 3, 4, 5, 50] {
            assert_eq!(read(&records(message, bytes)), host("a.example"), "{bytes}");
        }
    }

    #[test]
    fn a_client_may_name_nobody() {
        let without = |extensions: &[u8]| read(&records(&client_hello(extensions), usize::MAX));
        assert_eq!(without(&[]), Hello::Tls(None));
        assert_eq!(without(&extension(43, &[2, 3, 4])), Hello::Tls(None));
        // As TLS 1.0 and 1.1 could.
        let old = [&[3, 1], &[7; 32][..], &[0], &length(2), &[0, 47], &[1, 0]].concat();
        let old = [&[CLIENT_HELLO, 0], &length(old.len())[..], &old].concat();
        assert_eq!(read(&records(&old, usize::MAX)), Hello::Tls(None));
    }

    #[test]
    fn what_is_something_else_is_known_at_the_first_byte() {
        for bytes in [&b"G"[..], b"\0", b"\x15\x03", b"\x16\x02", b"\x16\x03\x01\0\0", b"\x16\x03\x01\x40\x01"] {
            assert_eq!(read(bytes), Hello::Other, "{bytes:?}");
        }
        // Another handshake message, one that is too long.
        assert_eq!(read(&records(&[2], 1)), Hello::Other);
        assert_eq!(read(&records(&[CLIENT_HELLO, 1, 0, 0], 4)), Hello::Other);
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["", "a b", "a..b", "-a", "ü", "10.0.0.1/", "a\0b", &"a".repeat(254)] {
            assert_eq!(read(&hello(name)), Hello::Other, "{name:?}");
        }
        let name = |kind: u8, name: &[u8]| [&[kind], &length(name.len())[..], name].concat();
        let list = |names: &[Vec<u8>]| {
            let names = names.concat();
            extension(SERVER_NAME, &[&length(names.len())[..], &names].concat())
        };
        let read = |extensions: &[Vec<u8>]| read(&records(&client_hello(&extensions.concat()), usize::MAX));
        assert_eq!(read(&[list(&[name(0, b"a.b")])]), host("a.b"));
        assert_eq!(read(&[list(&[name(1, b"a.b")])]), Hello::Other);
        assert_eq!(read(&[list(&[name(0, b"a.b"), name(0, b"c.d")])]), Hello::Other);
        assert_eq!(read(&[list(&[name(0, b"a.b")]), list(&[name(0, b"c.d")])]), Hello::Other);
        assert_eq!(read(&[list(&[])]), Hello::Other);
        assert_eq!(read(&[extension(SERVER_NAME, &[])]), Hello::Other);
    }

    #[test]
    fn there_is_a_bound() {
        // Record after record of one byte: headers count too.
        let endless = records(&[&[CLIENT_HELLO, 0, 0x3f, 0xff], &[0; 8000][..]].concat(), 1);
        assert_eq!(read(&endless[..HELLO_BYTES_MAX - 1]), Hello::Incomplete);
        assert_eq!(read(&endless[..HELLO_BYTES_MAX]), Hello::Other);
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..200), at in 0..200_usize, byte: u8) {
            let _ = read(&noise);
            let _ = read(&[&[HANDSHAKE, 3, 1, 0, 200, CLIENT_HELLO, 0, 0, 190], &noise[..]].concat());
            let mut bent = hello("shop.example.com");
            if let Some(bent) = bent.get_mut(at) {
                *bent = byte;
            }
            let _ = read(&bent);
            let _ = crate::proxy::tls::testing::name_in_hello(&bent);
        }
    }
}
