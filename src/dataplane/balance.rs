//! Choosing one backend of a pool. One file a policy; pure but for the atomics that a choice moves.
//!
//! A choice costs about the same whether there are 3 or 10,000: what it goes by is made with the pool, not on the
//! request path.

mod hash;
mod least_connections;
mod random;
mod round_robin;
mod tried;
mod two_choices;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::app::PolicyName;
use crate::backend::Backend;
use hash::Ring;
use random::Random;
use round_robin::RoundRobin;
use tried::Tried;

/// So often a policy chooses again if it chose one that was tried; then the next one in order takes over.
const DRAWS: usize = 4;

/// A policy with its state for one set of backends.
#[derive(Debug)]
pub struct Balancer {
    policy: Policy,
}

#[derive(Debug)]
enum Policy {
    RoundRobin(RoundRobin),
    Random(Random),
    LeastConnections(RoundRobin),
    TwoChoices,
    Hash(Ring),
}

impl Balancer {
    /// A policy that starts afresh.
    #[must_use]
    pub fn new(policy: PolicyName, backends: &[Arc<Backend>]) -> Self {
        let turns = || RoundRobin::new(&weights(backends));
        Self {
            policy: match policy {
                PolicyName::RoundRobin => Policy::RoundRobin(turns()),
                PolicyName::Random => Policy::Random(Random::new(&weights(backends))),
                PolicyName::LeastConnections => Policy::LeastConnections(turns()),
                PolicyName::TwoChoices => Policy::TwoChoices,
                PolicyName::Hash => Policy::Hash(Ring::new(backends)),
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
            Policy::Random(_) => PolicyName::Random,
            Policy::LeastConnections(_) => PolicyName::LeastConnections,
            Policy::TwoChoices => PolicyName::TwoChoices,
            Policy::Hash(_) => PolicyName::Hash,
        }
    }

    /// The index of the chosen backend, never one whose address is in `tried`; none if there is no other.
    pub fn pick(&self, backends: &[Arc<Backend>], client: SocketAddr, tried: &[SocketAddr]) -> Option<usize> {
        let tried = Tried::new(tried);
        let mut last = 0;
        for _ in 0..DRAWS {
            let chosen = match &self.policy {
                Policy::RoundRobin(turns) => turns.take(),
                Policy::Random(random) => random.draw(),
                Policy::LeastConnections(turns) => least_connections::pick(backends, turns, &tried),
                Policy::TwoChoices => two_choices::pick(backends),
                Policy::Hash(ring) => ring.find(backends, client.ip(), &tried),
            };
            let Some(at) = chosen else { break };
            let backend = backends.get(at)?;
            if !tried.has(&backend.address) {
                return Some(at);
            }
            last = at;
        }
        (last..backends.len()).chain(0..last).find(|at| !tried.has(&backends[*at].address))
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
    use proptest::prelude::*;
    use std::net::IpAddr;

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

    /// So many, sorted by address.
    pub(crate) fn many(count: usize, weight: impl Fn(usize) -> u16) -> Vec<Arc<Backend>> {
        let at_address = |at: usize| {
            let [_, high, middle, low] = u32::try_from(at).unwrap().to_be_bytes();
            let address = SocketAddr::from(([10, high, middle, low], 80));
            Arc::new(Backend { address, ..Backend::clone(&backend(1, weight(at))) })
        };
        (0..count).map(at_address).collect()
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

    /// Those that are chosen one after the other, until there is none.
    fn all_chosen(balancer: &Balancer, backends: &[Arc<Backend>], mut tried: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let before = tried.len();
        while let Some(at) = balancer.pick(backends, client(7), &tried) {
            tried.push(backends[at].address);
            assert!(tried.len() <= before + backends.len(), "it goes on for ever");
        }
        let mut chosen = tried.split_off(before);
        chosen.sort_unstable();
        chosen
    }

    #[test]
    fn of_ten_thousand_the_last_few_that_were_not_tried_are_each_found_once() {
        let backends = many(10_000, |at| if at == 4321 { 1000 } else { 100 });
        let (left, tried): (Vec<SocketAddr>, Vec<SocketAddr>) =
            backends.iter().map(|backend| backend.address).partition(
                |address| matches!(address.ip(), IpAddr::V4(ip) if ip.octets()[3] == 77 && ip.octets()[2] % 10 == 1),
            );
        assert_eq!((left.len(), tried.len()), (4, 9996));
        for policy in ALL {
            assert_eq!(all_chosen(&Balancer::new(policy, &backends), &backends, tried.clone()), left, "{policy:?}");
        }
    }

    proptest! {
        #[test]
        fn everybody_who_was_not_tried_is_chosen_once(
            weights in proptest::collection::vec(1_u16..=1000, 0..100),
            tried in proptest::collection::vec(0_usize..100, 0..100),
        ) {
            let backends = many(weights.len(), |at| weights[at]);
            let tried: Vec<SocketAddr> = tried.iter().filter_map(|at| Some(backends.get(*at)?.address)).collect();
            let left: Vec<SocketAddr> =
                backends.iter().map(|backend| backend.address).filter(|address| !tried.contains(address)).collect();
            for policy in ALL {
                prop_assert_eq!(&all_chosen(&Balancer::new(policy, &backends), &backends, tried.clone()), &left);
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
