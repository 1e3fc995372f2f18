//! Choosing one backend of a pool. One file a policy; pure but for the atomics that a choice moves.

mod hash;
mod least_connections;
mod random;
mod round_robin;
mod two_choices;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::app::PolicyName;
use crate::backend::Backend;
use round_robin::RoundRobin;

/// A policy with its state for one set of backends.
#[derive(Debug)]
pub struct Balancer {
    policy: Policy,
}

#[derive(Debug)]
enum Policy {
    RoundRobin(RoundRobin),
    Random,
    LeastConnections(RoundRobin),
    TwoChoices,
    Hash,
}

impl Balancer {
    /// A policy that starts afresh.
    #[must_use]
    pub fn new(policy: PolicyName, backends: &[Arc<Backend>]) -> Self {
        let turns = || RoundRobin::new(&weights(backends));
        Self {
            policy: match policy {
                PolicyName::RoundRobin => Policy::RoundRobin(turns()),
                PolicyName::Random => Policy::Random,
                PolicyName::LeastConnections => Policy::LeastConnections(turns()),
                PolicyName::TwoChoices => Policy::TwoChoices,
                PolicyName::Hash => Policy::Hash,
            },
        }
    }

    /// The same for a changed set: whose turn it was stays next, if it is still there.
    #[must_use]
    pub fn next(&self, policy: PolicyName, last: &[Arc<Backend>], backends: &[Arc<Backend>]) -> Self {
        let next = Self::new(policy, backends);
        if let (Policy::RoundRobin(old), Policy::RoundRobin(new))
        | (Policy::LeastConnections(old), Policy::LeastConnections(new)) = (&self.policy, &next.policy)
        {
            let place = |at: usize| backends.binary_search_by_key(&last.get(at)?.address, |b| b.address).ok();
            new.resume(old.upcoming().find_map(place));
        }
        next
    }

    /// Which policy this is.
    #[must_use]
    pub fn policy(&self) -> PolicyName {
        match self.policy {
            Policy::RoundRobin(_) => PolicyName::RoundRobin,
            Policy::Random => PolicyName::Random,
            Policy::LeastConnections(_) => PolicyName::LeastConnections,
            Policy::TwoChoices => PolicyName::TwoChoices,
            Policy::Hash => PolicyName::Hash,
        }
    }

    /// The index of the chosen backend, never one whose address is in `tried`; none if there is no other.
    pub fn pick(&self, backends: &[Arc<Backend>], client: SocketAddr, tried: &[SocketAddr]) -> Option<usize> {
        let is_free = |at: &usize| !tried.contains(&backends[*at].address);
        let first = match &self.policy {
            Policy::RoundRobin(turns) => turns.take().filter(|at| *at < backends.len()),
            Policy::Random => random::pick(backends),
            Policy::LeastConnections(turns) => least_connections::pick(backends, turns, tried),
            Policy::TwoChoices => two_choices::pick(backends),
            Policy::Hash => hash::pick(backends, client.ip(), tried),
        };
        match first {
            Some(at) if is_free(&at) => Some(at),
            // Its place in the order was tried already: the next one in the order that was not.
            Some(at) => (at + 1..backends.len()).chain(0..at).find(is_free),
            None => None,
        }
    }
}

fn weights(backends: &[Arc<Backend>]) -> Vec<u16> {
    backends.iter().map(|backend| backend.weight.get()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::app::Protocol;
    use crate::member::NodeId;
    use crate::name::Weight;

    pub(crate) fn backend(last_octet: u8, weight: u16) -> Arc<Backend> {
        Arc::new(Backend {
            node: NodeId(u64::from(last_octet)),
            node_name: format!("n{last_octet}").parse().unwrap(),
            address: SocketAddr::from(([127, 0, 0, last_octet], 80)),
            protocol: Protocol::Http,
            domain: None,
            proxy_protocol: None,
            weight: Weight::try_from(weight).unwrap(),
            load: Arc::default(),
        })
    }

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, (port >> 8) as u8, port as u8], port))
    }

    const ALL: [PolicyName; 5] = [
        PolicyName::RoundRobin,
        PolicyName::Random,
        PolicyName::LeastConnections,
        PolicyName::TwoChoices,
        PolicyName::Hash,
    ];

    #[test]
    fn every_policy_says_none_for_an_empty_pool_and_for_one_that_was_all_tried() {
        let backends = [backend(1, 100), backend(2, 100)];
        let all: Vec<SocketAddr> = backends.iter().map(|b| b.address).collect();
        for policy in ALL {
            assert_eq!(Balancer::new(policy, &[]).pick(&[], client(1), &[]), None, "{policy:?}");
            let balancer = Balancer::new(policy, &backends);
            assert_eq!(balancer.pick(&backends, client(1), &all), None, "{policy:?}");
            for _ in 0..50 {
                assert_eq!(balancer.pick(&backends, client(1), &all[..1]), Some(1), "{policy:?}");
            }
        }
    }

    #[test]
    fn every_policy_but_least_connections_keeps_to_the_weights() {
        let backends = [backend(1, 100), backend(2, 300)];
        for policy in ALL {
            let balancer = Balancer::new(policy, &backends);
            let mut counts = [0_u32; 2];
            for port in 0..8000 {
                counts[balancer.pick(&backends, client(port), &[]).unwrap()] += 1;
            }
            let share = f64::from(counts[1]) / 8000.0;
            match policy {
                PolicyName::RoundRobin | PolicyName::LeastConnections => assert_eq!(counts, [2000, 6000], "{policy:?}"),
                PolicyName::Random | PolicyName::Hash => assert!((0.70..0.80).contains(&share), "{policy:?} {share}"),
                // Of two idle backends it takes the one that can bear more.
                PolicyName::TwoChoices => assert_eq!(counts, [0, 8000], "{policy:?}"),
            }
        }
    }
}
