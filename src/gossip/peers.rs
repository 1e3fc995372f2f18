//! Which keys the others have, as their own datagrams say.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use super::identity::plain;
use super::message::Stamp;
use super::seal::{KeySet, Opened};
use crate::member::{NodeId, Roster};
use crate::report::{KeyId, KeyReport, MemberKeys};

/// Addresses known at once, as many as there may be members. What is beyond gets a copy under each key.
const PEERS_MAX: usize = 4096;

/// What is known, by address.
#[derive(Debug, Default)]
pub(super) struct Peers {
    known: HashMap<SocketAddr, Peer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peer {
    node: NodeId,
    sealed_with: KeyId,
    opens: KeySet,
}

impl Peers {
    /// Notes what an authentic datagram says; whether that is news.
    pub(super) fn note(&mut self, stamp: &Stamp, opened: &Opened<'_>) -> bool {
        let peer = Peer { node: stamp.node, sealed_with: opened.key, opens: opened.opens };
        let address = plain(stamp.addr);
        let is_full = self.known.len() >= PEERS_MAX;
        match self.known.get_mut(&address) {
            Some(known) => std::mem::replace(known, peer) != peer,
            None if is_full => false,
            None => self.known.insert(address, peer).is_none(),
        }
    }

    /// What somebody opens; none if it has never been heard.
    pub(super) fn opens(&self, address: SocketAddr) -> Option<&KeySet> {
        self.known.get(&address).map(|peer| &peer.opens)
    }

    /// Forgets who is no member.
    pub(super) fn keep_members(&mut self, roster: &Roster) {
        let members: HashSet<SocketAddr> = roster.members.iter().map(|member| member.address).collect();
        self.known.retain(|address, _| members.contains(address));
    }

    /// What a person may want to know of it.
    pub(super) fn report(&self, own: &[KeyId], roster: &Roster) -> KeyReport {
        let of = |address| {
            let peer: &Peer = self.known.get(&address)?;
            Some((peer.node, MemberKeys { sealed_with: peer.sealed_with, opens: peer.opens.as_slice().to_vec() }))
        };
        let members =
            roster.members.iter().filter_map(|member| of(member.address).filter(|(node, _)| *node == member.id));
        KeyReport { own: own.to_vec(), members: members.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::message::Tag;

    fn roster(members: &[(u64, u16)]) -> Roster {
        let member = |(node, port): &(u64, u16)| crate::member::Member {
            id: NodeId(*node),
            name: None,
            role: None,
            address: ([127, 0, 0, 1], *port).into(),
            state: crate::member::MemberState::Alive,
            since: std::time::UNIX_EPOCH,
            reach: crate::member::Reach::Unknown,
            offer: None,
        };
        Roster { cluster: "a".parse().unwrap(), me: NodeId(0), members: members.iter().map(member).collect() }
    }

    #[test]
    fn only_members_are_kept_and_told() {
        let mut peers = Peers::default();
        let key = KeyId([1; 4]);
        let opened = Opened { message: b"", key, opens: [key].into_iter().collect() };
        let stamp = |node, port| Stamp {
            node: NodeId(node),
            to: Tag::ANYBODY,
            addr: ([127, 0, 0, 1], port).into(),
            version: 1,
        };
        assert!(peers.note(&stamp(1, 1), &opened));
        assert!(!peers.note(&stamp(1, 1), &opened), "no news");
        assert!(peers.note(&stamp(2, 2), &opened));
        for port in 0..=u16::MAX {
            peers.note(&stamp(3, port), &opened);
        }
        assert_eq!(peers.known.len(), PEERS_MAX);
        // Another node was heard at the address of node 1 since.
        let members = roster(&[(1, 1), (3, 2)]);
        let report = peers.report(&[key], &members);
        assert_eq!(report.members.keys().copied().collect::<Vec<_>>(), [NodeId(3)]);
        peers.keep_members(&members);
        assert_eq!(peers.known.len(), 2);
    }
}
