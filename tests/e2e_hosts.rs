//! Several hosts, each a network namespace of its own with one cable to a switch: what loopback cannot show.
//! Needs root for the namespaces; without, it says so and proves nothing.

#[path = "support/hosts.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
mod hosts;
#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test program uses a part of what they share")]
mod node;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hosts::{GOSSIP_PORT, Lab, Seen};
use node::{eventually, eventually_within, http_get};

fn wait_members(lab: &Lab, host: &str, what: &str, condition: impl Fn(&[Seen]) -> bool) {
    let context = || format!("{host} sees {:?}", lab.members(host));
    eventually_within(Duration::from_secs(30), what, context, || condition(&lab.members(host)).then_some(()));
}

/// One request from the client's host: who answered, or none if nobody did.
fn ask(lab: &Lab) -> Option<String> {
    let lb = lab.at("lb", 80);
    let (status, text) = lab.inside("client", || http_get(lb, "localhost", "/")).ok()?;
    (status == 200).then(|| text.rsplit(' ').next().unwrap_or_default().trim().to_owned())
}

fn wait_answers(lab: &Lab, hosts: &[&str]) {
    let mut seen = BTreeSet::new();
    eventually(&format!("answers from {hosts:?}"), || {
        seen.extend(ask(lab));
        hosts.iter().all(|host| seen.contains(*host))
    });
}

fn hosts_find_each_other_and_bear_a_pulled_cable(is_ipv6: bool) {
    let Some(mut lab) = Lab::new(&["lb", "web1", "web2", "client"], is_ipv6) else { return };
    // The seed shows each node which of its addresses reaches the others.
    lab.cluster.seed = lab.at("lb", GOSSIP_PORT).to_string();
    lab.start("lb", "lb", &[]);
    lab.start_backend("web1", &["web"], &[]);
    lab.start_backend("web2", &["web"], &[]);
    for host in ["lb", "web1", "web2"] {
        wait_members(&lab, host, "all three, at the addresses that reach each other", |members| {
            let is_there = |name: &str| {
                let address = lab.at(name, GOSSIP_PORT).to_string();
                members.iter().any(|seen| seen.name == name && seen.address == address && seen.state == "alive")
            };
            ["lb", "web1", "web2"].into_iter().all(is_there)
        });
    }
    wait_answers(&lab, &["web1", "web2"]);
    // The cable of one is pulled: connecting to it leads nowhere, and no request fails for it.
    lab.plug("web1", "down");
    let pulled = Instant::now();
    while pulled.elapsed() < Duration::from_secs(4) {
        assert_eq!(ask(&lab).as_deref(), Some("web2"));
    }
    wait_members(&lab, "lb", "web1 is down", |members| {
        members.iter().any(|seen| seen.name == "web1" && seen.state == "down")
    });
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(ask(&lab).as_deref(), Some("web2"));
    }
    assert!(began.elapsed() < Duration::from_secs(2), "nobody waits for it any more: {:?}", began.elapsed());
    // Plugged in again it is back by itself.
    lab.plug("web1", "up");
    wait_answers(&lab, &["web1", "web2"]);
}

#[test]
fn ipv4_hosts_find_each_other_and_bear_a_pulled_cable() {
    hosts_find_each_other_and_bear_a_pulled_cable(false);
}

#[test]
fn ipv6_hosts_find_each_other_and_bear_a_pulled_cable() {
    hosts_find_each_other_and_bear_a_pulled_cable(true);
}
