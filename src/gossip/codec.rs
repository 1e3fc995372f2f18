//! foca's headers and members as bytes, at fixed places: small, and nothing to allocate.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, State};

use super::identity::{Identity, plain};
use crate::member::NodeId;

/// Why bytes are no header or member, or why one does not fit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("bytes end too early")]
    Short,
    #[error("unknown tag {0}")]
    Tag(u8),
    #[error("no address of a node")]
    Address,
    #[error("no room left")]
    Full,
}

impl From<bytes::TryGetError> for CodecError {
    fn from(_: bytes::TryGetError) -> Self {
        Self::Short
    }
}

/// The longest identity: family, IPv6, port, epoch, node.
const IDENTITY_BYTES_MAX: usize = 1 + 16 + 2 + 8 + 8;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Codec;

impl foca::Codec<Identity> for Codec {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<Identity>, mut buf: impl BufMut) -> Result<(), CodecError> {
        // foca gives a whole empty packet for a header, so this cannot be for want of room.
        if buf.remaining_mut() < 3 * IDENTITY_BYTES_MAX + 4 {
            return Err(CodecError::Full);
        }
        put_identity(&mut buf, &header.src);
        buf.put_u16(header.src_incarnation);
        put_identity(&mut buf, &header.dst);
        put_message(&mut buf, &header.message);
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Identity>, CodecError> {
        Ok(Header {
            src: get_identity(&mut buf)?,
            src_incarnation: buf.try_get_u16()?,
            dst: get_identity(&mut buf)?,
            message: get_message(&mut buf)?,
        })
    }

    fn encode_member(&mut self, member: &Member<Identity>, mut buf: impl BufMut) -> Result<(), CodecError> {
        if buf.remaining_mut() < IDENTITY_BYTES_MAX + 3 {
            return Err(CodecError::Full);
        }
        put_identity(&mut buf, member.id());
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Identity>, CodecError> {
        let identity = get_identity(&mut buf)?;
        let incarnation = buf.try_get_u16()?;
        let state = match buf.try_get_u8()? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            other => return Err(CodecError::Tag(other)),
        };
        Ok(Member::new(identity, incarnation, state))
    }
}

fn put_identity(buf: &mut impl BufMut, identity: &Identity) {
    put_address(buf, identity.addr);
    buf.put_u64(identity.epoch);
    buf.put_u64(identity.node.0);
}

fn get_identity(buf: &mut impl Buf) -> Result<Identity, CodecError> {
    let addr = get_address(buf)?;
    Ok(Identity::new(addr, buf.try_get_u64()?, NodeId(buf.try_get_u64()?)))
}

/// Family (4 or 6), address, port.
pub(crate) fn put_address(buf: &mut impl BufMut, addr: SocketAddr) {
    match plain(addr).ip() {
        IpAddr::V4(ip) => {
            buf.put_u8(4);
            buf.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            buf.put_u8(6);
            buf.put_slice(&ip.octets());
        }
    }
    buf.put_u16(addr.port());
}

/// The address that [`put_address`] wrote. What no node can have is refused: nothing is ever sent there.
pub(crate) fn get_address(buf: &mut impl Buf) -> Result<SocketAddr, CodecError> {
    let ip = match buf.try_get_u8()? {
        4 => IpAddr::from(buf.try_get_u32()?.to_be_bytes()),
        6 => IpAddr::from(buf.try_get_u128()?.to_be_bytes()),
        other => return Err(CodecError::Tag(other)),
    };
    let addr = plain(SocketAddr::new(ip, buf.try_get_u16()?));
    let ip = addr.ip();
    let is_nobodys = ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    if is_nobodys || addr.port() == 0 { Err(CodecError::Address) } else { Ok(addr) }
}

fn put_message(buf: &mut impl BufMut, message: &Message<Identity>) {
    let (tag, number, about) = match message {
        Message::Ping(number) => (0, Some(*number), None),
        Message::Ack(number) => (1, Some(*number), None),
        Message::PingReq { target, probe_number } => (2, Some(*probe_number), Some(target)),
        Message::IndirectPing { origin, probe_number } => (3, Some(*probe_number), Some(origin)),
        Message::IndirectAck { target, probe_number } => (4, Some(*probe_number), Some(target)),
        Message::ForwardedAck { origin, probe_number } => (5, Some(*probe_number), Some(origin)),
        Message::Announce => (6, None, None),
        Message::Feed => (7, None, None),
        Message::Gossip => (8, None, None),
        Message::Broadcast => (9, None, None),
        Message::TurnUndead => (10, None, None),
    };
    buf.put_u8(tag);
    if let Some(number) = number {
        buf.put_u8(number);
    }
    if let Some(identity) = about {
        put_identity(buf, identity);
    }
}

fn get_message(buf: &mut impl Buf) -> Result<Message<Identity>, CodecError> {
    Ok(match buf.try_get_u8()? {
        0 => Message::Ping(buf.try_get_u8()?),
        1 => Message::Ack(buf.try_get_u8()?),
        2 => Message::PingReq { probe_number: buf.try_get_u8()?, target: get_identity(buf)? },
        3 => Message::IndirectPing { probe_number: buf.try_get_u8()?, origin: get_identity(buf)? },
        4 => Message::IndirectAck { probe_number: buf.try_get_u8()?, target: get_identity(buf)? },
        5 => Message::ForwardedAck { probe_number: buf.try_get_u8()?, origin: get_identity(buf)? },
        6 => Message::Announce,
        7 => Message::Feed,
        8 => Message::Gossip,
        9 => Message::Broadcast,
        10 => Message::TurnUndead,
        other => return Err(CodecError::Tag(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use foca::Codec as _;
    use proptest::prelude::*;

    fn identity() -> impl Strategy<Value = Identity> {
        let ip = any::<IpAddr>().prop_filter("a node's", |ip| {
            let ip = ip.to_canonical();
            !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
        });
        (ip, 1..=u16::MAX, any::<u64>(), any::<u64>())
            .prop_map(|(ip, port, epoch, node)| Identity::new(SocketAddr::new(ip, port), epoch, NodeId(node)))
    }

    fn message() -> impl Strategy<Value = Message<Identity>> {
        let about = || (identity(), any::<u8>());
        prop_oneof![
            any::<u8>().prop_map(Message::Ping),
            any::<u8>().prop_map(Message::Ack),
            about().prop_map(|(target, probe_number)| Message::PingReq { target, probe_number }),
            about().prop_map(|(origin, probe_number)| Message::IndirectPing { origin, probe_number }),
            about().prop_map(|(target, probe_number)| Message::IndirectAck { target, probe_number }),
            about().prop_map(|(origin, probe_number)| Message::ForwardedAck { origin, probe_number }),
            Just(Message::Announce),
            Just(Message::Feed),
            Just(Message::Gossip),
            Just(Message::Broadcast),
            Just(Message::TurnUndead),
        ]
    }

    proptest! {
        #[test]
        fn a_header_survives_and_no_strict_prefix_does(
            src in identity(), dst in identity(), src_incarnation in any::<u16>(), message in message()
        ) {
            let header = Header { src, src_incarnation, dst, message };
            let mut bytes = bytes::BytesMut::with_capacity(200);
            Codec.encode_header(&header, &mut bytes).unwrap();
            prop_assert_eq!(Codec.decode_header(&bytes[..]).unwrap(), header);
            for length in 0..bytes.len() {
                prop_assert!(Codec.decode_header(&bytes[..length]).is_err());
            }
        }

        #[test]
        fn a_member_survives(id in identity(), incarnation in any::<u16>(), state in 0..3_u8) {
            let state = [State::Alive, State::Suspect, State::Down][usize::from(state)];
            let member = Member::new(id, incarnation, state);
            let mut bytes = bytes::BytesMut::with_capacity(64);
            Codec.encode_member(&member, &mut bytes).unwrap();
            prop_assert_eq!(Codec.decode_member(&bytes[..]).unwrap(), member);
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Codec.decode_header(&noise[..]);
            let _ = Codec.decode_member(&noise[..]);
        }
    }

    #[test]
    fn an_address_that_no_node_has_is_refused() {
        for addr in ["0.0.0.0:1", "255.255.255.255:1", "224.0.0.1:1", "[::]:1", "[ff02::1]:1", "10.0.0.1:0"] {
            let mut bytes = bytes::BytesMut::new();
            put_address(&mut bytes, addr.parse().unwrap());
            assert!(matches!(get_address(&mut bytes), Err(CodecError::Address)), "{addr}");
        }
    }

    #[test]
    fn a_full_packet_takes_no_member() {
        let member = Member::alive(Identity::unknown_at(([1, 2, 3, 4], 5).into()));
        let mut room = [0_u8; 10];
        assert!(matches!(Codec.encode_member(&member, &mut room[..]), Err(CodecError::Full)));
    }
}
