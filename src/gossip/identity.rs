//! Who a datagram is from, as foca needs it: an address, and which run of which node is there.

use std::net::SocketAddr;

use crate::member::NodeId;

/// A node's identity in the protocol. Nothing that changes while the node runs may stand in it: foca answers a
/// changed identity with a disconnection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    /// The advertised address, with IPv4 never in its IPv6 form: what others send to.
    pub(crate) addr: SocketAddr,
    /// When this run began, in milliseconds of Unix time; grows by one at each renewal. The newer run at one
    /// address wins.
    pub(crate) epoch: u64,
    /// Which run of which node.
    pub(crate) node: NodeId,
}

impl Identity {
    pub(crate) fn new(addr: SocketAddr, epoch: u64, node: NodeId) -> Self {
        Self { addr: plain(addr), epoch, node }
    }

    /// Enough of an identity to announce to: foca accepts an announcement by address alone.
    pub(crate) fn unknown_at(addr: SocketAddr) -> Self {
        Self::new(addr, 0, NodeId(0))
    }
}

/// The one form of an address: IPv4 as IPv4, no flow or scope.
pub(crate) fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl foca::Identity for Identity {
    type Addr = SocketAddr;

    fn renew(&self) -> Option<Self> {
        Some(Self { epoch: self.epoch.saturating_add(1), ..*self })
    }

    fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A strict order over distinct identities at one address: a tie would make two nodes rename each other
    /// for ever.
    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.epoch, self.node) > (adversary.epoch, adversary.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foca::Identity as _;

    #[test]
    fn the_newer_run_wins_and_there_is_no_tie() {
        let at = |epoch, node| Identity::new(([127, 0, 0, 1], 1).into(), epoch, NodeId(node));
        assert!(at(2, 1).win_addr_conflict(&at(1, 9)));
        assert!(at(1, 2).win_addr_conflict(&at(1, 1)));
        assert!(!at(1, 1).win_addr_conflict(&at(1, 2)));
        let renewed = at(1, 1).renew().unwrap();
        assert!(renewed.win_addr_conflict(&at(1, 1)));
    }

    #[test]
    fn an_ipv4_address_has_one_form() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:7".parse().unwrap();
        assert_eq!(Identity::unknown_at(mapped), Identity::unknown_at(([10, 0, 0, 1], 7).into()));
    }
}
