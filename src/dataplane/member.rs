//! Who is in the cluster: the roster, as one immutable value.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::app::Offer;
use crate::name::{ClusterName, NodeName};

/// One run of one node: random, new at each start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes requests and passes them on.
    Balancer,
    /// Offers applications.
    Backend,
}

impl Role {
    /// The word for it in tables and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::Backend => "backend",
        }
    }
}

/// How the gossip sees a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It did not answer somebody; it has a moment to object.
    Suspect,
    /// It did not answer and did not object.
    Down,
    /// It said goodbye.
    Left,
}

impl MemberState {
    /// The word for it in tables and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
        }
    }

    /// Whether the member counts as part of the cluster now.
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

/// What this node's own probes say of a member. Only a balancer probes, and only who offers something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// It is not probed, or not yet long enough to tell.
    #[default]
    Unknown,
    /// It answers this node.
    Answers,
    /// It has not answered this node for more than a second.
    Silent,
}

/// One node as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Which run of which node.
    pub id: NodeId,
    /// Its name; none until its record has arrived.
    pub name: Option<NodeName>,
    /// What it is for; none until its record has arrived.
    pub role: Option<Role>,
    /// Where its gossip is reached; its applications are at the same IP address.
    pub address: SocketAddr,
    /// How the gossip sees it.
    pub state: MemberState,
    /// Since when it is seen so, by this machine's clock.
    pub since: SystemTime,
    /// What this node's own probes say.
    pub reach: Reach,
    /// What it offers; none until that has arrived.
    pub offer: Option<Arc<Offer>>,
}

/// Everybody, this node included, sorted by name, then address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    /// The cluster.
    pub cluster: ClusterName,
    /// This node.
    pub me: NodeId,
    /// The members, those that went down or left within the last hour included.
    pub members: Vec<Member>,
}

impl Roster {
    /// How many members of a role are active, this node included.
    #[must_use]
    pub fn active(&self, role: Role) -> usize {
        self.members.iter().filter(|member| member.state.is_active() && member.role == Some(role)).count()
    }
}

#[cfg(any(test, feature = "testing"))]
mod testing {
    use super::*;
    use crate::app::{App, AppState, Protocol};
    use crate::name::{PathPrefix, Port, Weight};

    impl Roster {
        /// For tests: one backend that is ready, with one application at `backend` that is served at `listen`.
        ///
        /// # Panics
        /// If the backend has no port.
        #[must_use]
        pub fn of_one(backend: SocketAddr, protocol: Protocol, listen: Port, reach: Reach) -> Self {
            let app = App {
                name: "web".parse().unwrap(),
                protocol,
                port: Port::new(backend.port()).unwrap(),
                listen,
                domains: Vec::new(),
                path: PathPrefix::root(),
                weight: Weight::default(),
                policy: None,
                proxy_protocol: None,
            };
            let member = Member {
                id: NodeId(1),
                name: Some("n1".parse().unwrap()),
                role: Some(Role::Backend),
                address: SocketAddr::new(backend.ip(), 7377),
                state: MemberState::Alive,
                since: SystemTime::UNIX_EPOCH,
                reach,
                offer: Some(Arc::new(Offer { apps: vec![(app, AppState::Ready)] })),
            };
            Self { cluster: "test".parse().unwrap(), me: NodeId(0), members: vec![member] }
        }
    }
}
