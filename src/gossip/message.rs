//! What stands inside a datagram once it is open.

use std::net::SocketAddr;

use bytes::{Buf, BufMut};

use super::codec::{get_address, put_address};
use crate::member::NodeId;

/// In front of every message: who sent it, to which run of which node, where the sender is reached, and which
/// version its record has. The version makes every datagram a chance to notice a change that was missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) node: NodeId,
    pub(crate) to: Tag,
    pub(crate) addr: SocketAddr,
    pub(crate) version: u32,
}

/// The longest stamp and kind.
pub(crate) const STAMP_BYTES_MAX: usize = 1 + 8 + 4 + 19 + 4;

/// One run of one node, short: half of its random number. A run takes what bears its own tag, so that nothing
/// that was recorded before it started means anything to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag(u32);

impl Tag {
    /// Whoever is at the address: only to knock with.
    pub(crate) const ANYBODY: Self = Self(0);

    pub(crate) fn of(node: NodeId) -> Self {
        let half = (node.0 & u64::from(u32::MAX)) as u32;
        // The number 0 is nobody's; of 4 billion runs one shares its tag with its neighbour.
        Self(if node == NodeId(0) { 0 } else { half.max(1) })
    }
}

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
    /// "Are you there?", with a number to be repeated.
    Echo(u32),
    /// The answer to an echo.
    Echoed(u32),
    /// The answer to a knock: "here is my number; join with it".
    Welcome,
    /// "There is a newer run at your address, of this epoch": its clock went back, or another node has its address.
    Stale(u64),
}

/// A stamped message as bytes.
pub(crate) fn encode(stamp: &Stamp, message: Message<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(STAMP_BYTES_MAX + 64);
    bytes.put_u8(match message {
        Message::Swim(_) => 0,
        Message::Ask => 1,
        Message::Record(_) => 2,
        Message::Ack(_) => 3,
        Message::Echo(_) => 4,
        Message::Echoed(_) => 5,
        Message::Welcome => 6,
        Message::Stale(_) => 7,
    });
    bytes.put_u64(stamp.node.0);
    bytes.put_u32(stamp.to.0);
    put_address(&mut bytes, stamp.addr);
    bytes.put_u32(stamp.version);
    match message {
        Message::Swim(body) | Message::Record(body) => bytes.put_slice(body),
        Message::Ack(number) | Message::Echo(number) | Message::Echoed(number) => bytes.put_u32(number),
        Message::Stale(epoch) => bytes.put_u64(epoch),
        Message::Ask | Message::Welcome => {}
    }
    bytes
}

/// Reads a stamped message; none if it is not one.
pub(crate) fn decode(mut bytes: &[u8]) -> Option<(Stamp, Message<'_>)> {
    let kind = bytes.try_get_u8().ok()?;
    let stamp = Stamp {
        node: NodeId(bytes.try_get_u64().ok()?),
        to: Tag(bytes.try_get_u32().ok()?),
        addr: get_address(&mut bytes).ok()?,
        version: bytes.try_get_u32().ok()?,
    };
    let message = match kind {
        0 => Message::Swim(bytes),
        1 if bytes.is_empty() => Message::Ask,
        2 => Message::Record(bytes),
        3 if bytes.len() == 4 => Message::Ack(bytes.get_u32()),
        4 if bytes.len() == 4 => Message::Echo(bytes.get_u32()),
        5 if bytes.len() == 4 => Message::Echoed(bytes.get_u32()),
        6 if bytes.is_empty() => Message::Welcome,
        7 if bytes.len() == 8 => Message::Stale(bytes.get_u64()),
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
        let addr = "[2001:db8::1]:7377".parse().unwrap();
        let stamp = Stamp { node: NodeId(9), to: Tag::of(NodeId(7)), addr, version: 4 };
        for message in [
            Message::Swim(b"abc"),
            Message::Ask,
            Message::Record(b"def"),
            Message::Ack(5),
            Message::Echo(6),
            Message::Echoed(7),
            Message::Welcome,
            Message::Stale(8),
        ] {
            assert_eq!(decode(&encode(&stamp, message)), Some((stamp, message)));
        }
    }

    #[test]
    fn nobodys_number_alone_has_no_tag() {
        assert_eq!(Tag::of(NodeId(0)), Tag::ANYBODY);
        assert_ne!(Tag::of(NodeId(1 << 32)), Tag::ANYBODY);
        assert_ne!(Tag::of(NodeId(1)), Tag::of(NodeId(2)));
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&noise);
        }
    }
}
