//! Which keys the others have, as their own datagrams say.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use super::identity::plain;
use super::message::{self, Tag};
use super::seal::{KeySet, Opened};
use crate::member::{NodeId, Roster};
use crate::report::{KeyId, KeyReport, MemberKeys};

/// Addresses known at once, as many as there may be members. What is beyond gets a copy under each key.
const PEERS_MAX: usize = 4096;

/// What is known, by address.
#[derive(Debug, Default)]
pub(super) struct Peers {
    known: HashMap<SocketAddr, Peer>,
    /// Who has just knocked, and what it opens. Good for the answer alone: a knock may have been recorded.
    guest: Option<(SocketAddr, KeySet)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peer {
    node: NodeId,
    /// Of its record, when it said so.
    version: u32,
    sealed_with: KeyId,
    opens: KeySet,
}

impl Peers {
    /// Notes what a datagram says that the core has taken; whether that is news.
    pub(super) fn note(&mut self, opened: &Opened<'_>) -> bool {
        let Some((stamp, _)) = message::decode(opened.message) else {
            return false;
        };
        let address = plain(stamp.addr);
        if stamp.to == Tag::ANYBODY {
            self.guest = Some((address, opened.opens));
            return false;
        }
        let peer = Peer { node: stamp.node, version: stamp.version, sealed_with: opened.key, opens: opened.opens };
        let is_full = self.known.len() >= PEERS_MAX;
        match self.known.get_mut(&address) {
            // Each change of keys is a new version of its record: what comes late does not bring old ones back.
            Some(known) if known.node == peer.node && known.version > peer.version => false,
            Some(known) => {
                let last = std::mem::replace(known, peer);
                Peer { version: last.version, ..peer } != last
            }
            None if is_full => false,
            None => self.known.insert(address, peer).is_none(),
        }
    }

    /// What somebody opens; none if it has never been heard.
    pub(super) fn opens(&self, address: SocketAddr) -> Option<&KeySet> {
        let guest = self.guest.as_ref().filter(|(of, _)| *of == address).map(|(_, opens)| opens);
        guest.or_else(|| self.known.get(&address).map(|peer| &peer.opens))
    }

    /// The answer to a knock is sent.
    pub(super) fn forget_guest(&mut self) {
        self.guest = None;
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
    use crate::gossip::message::{Message, Stamp};

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

    const KEY: KeyId = KeyId([1; 4]);
    const OLD: KeyId = KeyId([2; 4]);

    /// What is told by a node at a port.
    fn said(peers: &mut Peers, to: Tag, (node, port, version): (u64, u16, u32), keys: &[KeyId]) -> bool {
        let stamp = Stamp { node: NodeId(node), to, addr: ([127, 0, 0, 1], port).into(), version };
        let message = message::encode(&stamp, Message::Ask);
        peers.note(&Opened { message: &message, key: keys[0], opens: keys.iter().copied().collect() })
    }

    #[test]
    fn only_members_are_kept_and_told() {
        let (mut peers, to) = (Peers::default(), Tag::of(NodeId(9)));
        assert!(said(&mut peers, to, (1, 1, 1), &[KEY]));
        assert!(!said(&mut peers, to, (1, 1, 2), &[KEY]), "no news");
        assert!(said(&mut peers, to, (2, 2, 1), &[KEY]));
        for port in 0..=u16::MAX {
            said(&mut peers, to, (3, port, 1), &[KEY]);
        }
        assert_eq!(peers.known.len(), PEERS_MAX);
        // Another node was heard at the address of node 1 since.
        let members = roster(&[(1, 1), (3, 2)]);
        let report = peers.report(&[KEY], &members);
        assert_eq!(report.members.keys().copied().collect::<Vec<_>>(), [NodeId(3)]);
        peers.keep_members(&members);
        assert_eq!(peers.known.len(), 2);
    }

    #[test]
    fn what_comes_late_brings_no_old_key_back() {
        let (mut peers, to, address) = (Peers::default(), Tag::of(NodeId(9)), ([127, 0, 0, 1], 1).into());
        assert!(said(&mut peers, to, (1, 1, 5), &[KEY]));
        assert!(!said(&mut peers, to, (1, 1, 4), &[OLD]));
        assert_eq!(peers.opens(address).unwrap().as_slice(), [KEY]);
        assert!(said(&mut peers, to, (2, 1, 1), &[OLD]), "another run counts anew");
        assert!(said(&mut peers, to, (2, 1, 2), &[KEY]));
    }

    #[test]
    fn a_knock_is_good_for_its_answer_alone() {
        let (mut peers, address) = (Peers::default(), ([127, 0, 0, 1], 1).into());
        said(&mut peers, Tag::of(NodeId(9)), (1, 1, 5), &[KEY]);
        assert!(!said(&mut peers, Tag::ANYBODY, (1, 1, 9), &[OLD]));
        assert_eq!(peers.opens(address).unwrap().as_slice(), [OLD]);
        assert_eq!(peers.opens(([127, 0, 0, 1], 2).into()), None);
        peers.forget_guest();
        assert_eq!(peers.opens(address).unwrap().as_slice(), [KEY]);
    }
}
