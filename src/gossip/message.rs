//! What stands inside a datagram once it is open.

use std::net::SocketAddr;

use bytes::{Buf, BufMut};

use super::codec::{get_address, put_address};
use crate::member::NodeId;

/// In front of every message: who sent it, where it is reached, and which version its record has. The version
/// makes every datagram a chance to notice a change that was missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) node: NodeId,
    pub(crate) addr: SocketAddr,
    pub(crate) version: u32,
}

/// The longest stamp and kind.
pub(crate) const STAMP_BYTES_MAX: usize = 1 + 8 + 19 + 4;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// A packet of the membership protocol: foca's.
    Swim(&'a [u8]),
    /// "Send me your record."
    Ask,
    /// The sender's record. Answered with an acknowledgement.
    Record(&'a [u8]),
    /// "I have your record of this version."
    Ack(u32),
}

/// A stamped message as bytes.
pub(crate) fn encode(stamp: &Stamp, message: Message<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(STAMP_BYTES_MAX + 64);
    bytes.put_u8(match message {
        Message::Swim(_) => 0,
        Message::Ask => 1,
        Message::Record(_) => 2,
        Message::Ack(_) => 3,
    });
    bytes.put_u64(stamp.node.0);
    put_address(&mut bytes, stamp.addr);
    bytes.put_u32(stamp.version);
    match message {
        Message::Swim(body) | Message::Record(body) => bytes.put_slice(body),
        Message::Ack(version) => bytes.put_u32(version),
        Message::Ask => {}
    }
    bytes
}

/// Reads a stamped message; none if it is not one.
pub(crate) fn decode(mut bytes: &[u8]) -> Option<(Stamp, Message<'_>)> {
    let kind = bytes.try_get_u8().ok()?;
    let stamp = Stamp {
        node: NodeId(bytes.try_get_u64().ok()?),
        addr: get_address(&mut bytes).ok()?,
        version: bytes.try_get_u32().ok()?,
    };
    let message = match kind {
        0 => Message::Swim(bytes),
        1 if bytes.is_empty() => Message::Ask,
        2 => Message::Record(bytes),
        3 if bytes.len() == 4 => Message::Ack(bytes.get_u32()),
        _ => return None,
    };
    Some((stamp, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_kind_survives() {
        let stamp = Stamp { node: NodeId(9), addr: "[2001:db8::1]:7377".parse().unwrap(), version: 4 };
        for message in [Message::Swim(b"abc"), Message::Ask, Message::Record(b"def"), Message::Ack(5)] {
            assert_eq!(decode(&encode(&stamp, message)), Some((stamp, message)));
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&noise);
        }
    }
}
