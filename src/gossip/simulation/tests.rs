//! The core and the simulation, tested with each other.

use std::time::Duration;

use rand::RngExt as _;

use super::scenario::{self, Measure, Setup, offer};
use super::*;
use crate::app::AppState;
use crate::gossip::core::{Addition, DATAGRAM_BYTES_MAX};
use crate::member::Roster;

impl Simulation {
    fn ours(seed: u64) -> Self {
        Self::new(seed, Mode::Ours, 10)
    }

    /// Starts a node; host 1 is the balancer of every test.
    fn add(&mut self, host: u32, seeds: &[u32]) {
        let role = if host == 1 { Role::Balancer } else { Role::Backend };
        let (seeds, offer) = (Seeds::Fixed(seeds.to_vec()), offer(1, 1, 100));
        self.start(Start { host, role, seeds, offer, clock_back: Duration::ZERO, twin_of: None });
    }

    /// Moves a node that runs to another host.
    fn carry_away(&mut self, from: u32, to: u32) {
        let places = self.hosts.len().max(to as usize + 1);
        self.hosts.resize_with(places, || None);
        self.latest_runs.resize(places, 0);
        self.hosts.swap(from as usize, to as usize);
        self.host_mut(to).unwrap().wake_at = None;
    }

    fn node(&self, host: u32) -> &Host {
        self.host(host).expect("it is there")
    }

    /// Runs until a condition holds and says how long that took; fails after `limit`.
    fn until(&mut self, limit: Duration, what: &str, condition: impl Fn(&Self) -> bool) -> Duration {
        let (began, until) = (self.now, self.now + limit);
        while !condition(self) {
            assert!(self.step(until), "seed {}: not within {limit:?}: {what}", self.seed);
        }
        assert!(self.largest_datagram <= DATAGRAM_BYTES_MAX, "seed {}: {} bytes", self.seed, self.largest_datagram);
        let nonsense: u64 = self.alive().map(|(_, node)| node.counters.invalid).sum();
        assert_eq!(nonsense, 0, "seed {}: messages of ours made no sense", self.seed);
        self.now - began
    }

    fn roster(&self, host: u32) -> Option<&Roster> {
        self.host(host)?.roster.as_deref()
    }

    /// How `observer` sees `host`.
    fn state(&self, observer: u32, host: u32) -> Option<MemberState> {
        let mut members = self.roster(observer)?.members.iter();
        members.find(|member| member.address == at(host)).map(|member| member.state)
    }

    /// Whether every node sees exactly these hosts as active, with their names and offers.
    fn all_see(&self, hosts: &[u32]) -> bool {
        self.alive().filter(|(_, node)| !node.has_left).all(|(_, node)| {
            let Some(roster) = &node.roster else { return false };
            let active: Vec<_> = roster.members.iter().filter(|member| member.state.is_active()).collect();
            active.len() == hosts.len()
                && hosts.iter().all(|host| {
                    active
                        .iter()
                        .any(|member| member.address == at(*host) && member.name.is_some() && member.offer.is_some())
                })
        })
    }

    fn apps_seen(&self, observer: u32, host: u32) -> usize {
        let members = &self.roster(observer).unwrap().members;
        let member = members.iter().find(|member| member.address == at(host));
        member.and_then(|member| member.offer.as_ref()).map_or(0, |offer| offer.apps.len())
    }
}

/// A balancer (host 1) and backends, all joined.
fn cluster(seed: u64, hosts: u32) -> Simulation {
    let mut sim = Simulation::ours(seed);
    for host in 1..=hosts {
        sim.add(host, &[1]);
    }
    let all: Vec<u32> = (1..=hosts).collect();
    sim.until(30 * SECOND, "all see all", |sim| sim.all_see(&all));
    sim
}

#[test]
fn a_handful_of_nodes_finds_itself_within_a_second() {
    for seed in 0..20 {
        let mut sim = Simulation::ours(seed);
        for host in 1..=5 {
            sim.add(host, &[1]);
        }
        let took = sim.until(SECOND, "all see all", |sim| sim.all_see(&[1, 2, 3, 4, 5]));
        assert!(took > Duration::ZERO);
    }
}

#[test]
fn a_node_that_is_alone_keeps_trying_its_seed() {
    let mut sim = Simulation::ours(1);
    sim.add(2, &[1]);
    sim.run(120 * SECOND);
    let join = sim.node(2).join.clone().unwrap();
    assert!(join.alone);
    assert_eq!(join.contacts[0].outcome, "asked", "it looks into the silence");
    sim.add(1, &[]);
    sim.until(6 * SECOND, "joined", |sim| sim.all_see(&[1, 2]));
    assert!(!sim.node(2).join.as_ref().unwrap().alone);
}

#[test]
fn the_largest_offer_arrives() {
    let mut sim = cluster(2, 3);
    sim.input(2, Input::Offer(offer(256, 4, 100)));
    let took = sim.until(SECOND, "256 applications", |sim| sim.apps_seen(1, 2) == 256);
    assert!(took < 300 * MS, "{took:?}");
    assert_eq!(sim.apps_seen(3, 2), 1, "a backend does not fetch what it does not need");
}

#[test]
fn a_state_that_changes_needs_no_second_pull() {
    let mut sim = cluster(3, 2);
    let mut large = offer(256, 4, 100);
    sim.input(2, Input::Offer(large.clone()));
    sim.until(SECOND, "256 applications", |sim| sim.apps_seen(1, 2) == 256);
    sim.host_mut(2).unwrap().served = None;
    large.apps[7].1 = AppState::Draining;
    sim.input(2, Input::Offer(large));
    let is_draining = |sim: &Simulation| {
        let roster = sim.node(1).roster.as_ref().unwrap();
        let member = roster.members.iter().find(|member| member.address == at(2)).unwrap();
        member.offer.as_ref().unwrap().apps[7].1 == AppState::Draining
    };
    sim.until(200 * MS, "the state alone", is_draining);
}

#[test]
fn an_offer_is_heard_when_all_have_it_or_cannot_be_reached() {
    let mut sim = cluster(8, 4);
    let before = sim.node(2).times_heard;
    sim.input(2, Input::Offer(offer(2, 1, 100)));
    assert_eq!(sim.node(2).times_heard, before, "not before it was sent");
    sim.until(100 * MS, "heard", |sim| sim.node(2).times_heard > before);
    // It has it; 20 ms later it is published.
    sim.run(20 * MS);
    assert_eq!(sim.apps_seen(1, 2), 2);
    sim.crash(3);
    sim.input(2, Input::Offer(offer(3, 1, 100)));
    let took = sim.until(2 * SECOND, "heard", |sim| sim.node(2).times_heard > before + 1);
    assert!(took > 500 * MS, "it was tried several times: {took:?}");
}

#[test]
fn a_change_that_was_missed_is_noticed() {
    for seed in 0..10 {
        let mut sim = cluster(seed, 3);
        // One way only and for two seconds: long enough for every push to be lost, too short for a Down.
        sim.network.cut.insert((2, 1));
        sim.input(2, Input::Offer(offer(3, 1, 100)));
        sim.run(2 * SECOND);
        assert_eq!(sim.apps_seen(1, 2), 1);
        sim.network.cut.clear();
        sim.until(5 * SECOND, "the change", |sim| sim.apps_seen(1, 2) == 3);
    }
}

#[test]
fn a_dead_node_is_down_and_nobody_else_is() {
    for seed in 0..20 {
        let mut sim = cluster(seed, 6);
        sim.crash(4);
        let took = sim.until(8 * SECOND, "down", |sim| sim.all_see(&[1, 2, 3, 5, 6]));
        assert!(took > SECOND, "{took:?}");
        assert_eq!(sim.state(1, 4), Some(MemberState::Down));
    }
}

#[test]
fn a_goodbye_is_heard_at_once_and_holds() {
    for seed in 0..20 {
        let mut sim = cluster(seed, 5);
        sim.input(3, Input::Leave);
        let took = sim.until(300 * MS, "left", |sim| sim.state(1, 3) == Some(MemberState::Left));
        assert!(took < 100 * MS, "{took:?}");
        sim.until(2 * SECOND, "it ends", |sim| sim.node(3).has_left);
        sim.crash(3);
        sim.run(30 * SECOND);
        assert!(sim.all_see(&[1, 2, 4, 5]));
        assert_eq!(sim.state(1, 3), Some(MemberState::Left), "and not down");
    }
}

#[test]
fn a_restart_at_the_same_address_takes_the_old_ones_place() {
    for seed in 0..20 {
        let mut sim = cluster(seed, 4);
        sim.crash(2);
        sim.run(300 * MS);
        sim.add(2, &[1]);
        sim.until(3 * SECOND, "one view", |sim| sim.all_see(&[1, 2, 3, 4]));
        let run = sim.runs;
        let members = &sim.node(1).roster.as_ref().unwrap().members;
        let there: Vec<_> = members.iter().filter(|member| member.address == at(2)).map(|member| member.id).collect();
        assert_eq!(there, [node_id(2, run)], "seed {seed}: the new run, once");
    }
}

#[test]
fn lost_packets_remove_and_rename_nobody() {
    for seed in 0..2 {
        let mut sim = cluster(seed, 10);
        sim.forget_counters();
        sim.network.loss = 0.3;
        sim.run(5 * MINUTE);
        // As the long form counts, and nobody of any role may even be called down.
        let counted = (sim.false_removals, sim.identity_changes(), sim.false_downs);
        assert_eq!(counted, (0, 0, 0), "seed {seed}: backends removed, identities changed, members called down");
        sim.network.loss = 0.0;
        let all: Vec<u32> = (1..=10).collect();
        sim.until(20 * SECOND, "all see all", |sim| sim.all_see(&all));
    }
    is_met(1, |setup| scenario::false_removals(setup, 10, 0.3, 2 * MINUTE));
}

#[test]
fn clusters_born_apart_merge_when_one_sees_the_others_seed() {
    let mut sim = Simulation::ours(5);
    sim.add(1, &[]);
    sim.add(2, &[1]);
    sim.add(3, &[]);
    sim.add(4, &[3]);
    sim.run(3 * SECOND);
    assert!(!sim.all_see(&[1, 2, 3, 4]));
    sim.input(1, Input::Seeds(vec![at(1), at(3)]));
    sim.until(12 * SECOND, "one view", |sim| sim.all_see(&[1, 2, 3, 4]));
}

#[test]
fn a_node_that_is_alone_may_move() {
    let mut sim = Simulation::ours(6);
    sim.add(1, &[]);
    sim.add(2, &[]);
    sim.carry_away(2, 9);
    sim.input(9, Input::Advertise(at(9)));
    sim.input(9, Input::Seeds(vec![at(1)]));
    sim.until(SECOND, "joined", |sim| sim.all_see(&[1, 9]));
}

#[test]
fn noise_inside_the_envelope_changes_nothing() {
    let mut sim = cluster(7, 3);
    let before = sim.node(1).roster.clone();
    for length in 0..200_usize {
        let noise: Vec<u8> = (0..length).map(|_| sim.rng.random()).collect();
        sim.input(1, Input::Message(&noise));
    }
    sim.run(5 * SECOND);
    assert_eq!(sim.node(1).roster, before);
}

/// The promises that a case of the benchmark breaks, in short.
fn broken(setup: &Setup, case: impl Fn(&Setup) -> Vec<Measure>) -> Vec<String> {
    let mut measures = case(setup);
    measures.iter_mut().for_each(|measure| measure.values.sort_by(f64::total_cmp));
    let broken = measures.iter().filter(|measure| !measure.is_met());
    broken.map(|measure| format!("{}: {:?} {}", measure.what, measure.values, measure.unit)).collect()
}

/// Runs a case of the benchmark in short on some seeds; each must meet the goals that it has there.
fn is_met(seeds: u64, case: impl Fn(&Setup) -> Vec<Measure>) {
    for seed in 0..seeds {
        let broken = broken(&Setup::new(seed, Mode::Ours, true), &case);
        assert!(broken.is_empty(), "seed {seed}: {broken:?}");
    }
}

#[test]
fn one_seed_is_one_run() {
    let run = || {
        let mut sim = Simulation::new(7, Mode::Ours, 8);
        sim.network = Network { loss: 0.5, ..Network::ordinary() };
        (500..506).for_each(|gone| sim.store.leave_stale(gone, at(gone)));
        (0..8).for_each(|host| sim.begin(host, 3, Seeds::Store));
        sim.run(MINUTE);
        sim.crash(5);
        sim.run(20 * SECOND);
        let bytes: Vec<u64> = sim.alive().map(|(_, node)| node.counters.bytes_out).collect();
        (sim.events, bytes)
    };
    assert_eq!(run(), run());
}

#[test]
fn a_node_id_tells_host_and_run_and_addresses_a_run() {
    let mut tags = std::collections::HashSet::new();
    for (host, run) in (0..50).flat_map(|host| (1..50).map(move |run| (host, run))) {
        assert_eq!(host_and_run(node_id(host, run)), (host, run));
        assert!(tags.insert(node_id(host, run).0 as u32), "two runs take each other's messages");
    }
}

#[test]
fn a_burst_loses_most_and_the_rest_of_the_time_little() {
    let bursts = network::Bursts { good: 10 * SECOND, bad: SECOND, longest: MINUTE, loss: 0.9 };
    let mut network = Network { bursts: Some(bursts), ..Network::default() };
    let mut rng = StdRng::seed_from_u64(1);
    let start = Instant::now();
    let is_lost = |at: u32| network.carry(&mut rng, start + 100 * MS * at, 1, 2)[0].is_none();
    let lost: Vec<bool> = (0..100_000).map(is_lost).collect();
    let share = lost.iter().filter(|lost| **lost).count() as f64 / 100_000.0;
    assert!((0.07..0.095).contains(&share), "a tenth of 0.9 is lost, about: {share}");
    let after_loss = lost.windows(2).filter(|pair| pair[0]).map(|pair| pair[1]);
    let (again, all) = after_loss.fold((0, 0), |(again, all), lost| (again + i32::from(lost), all + 1));
    assert!(f64::from(again) / f64::from(all) > 0.7, "losses come together: {again} of {all}");
}

#[test]
fn a_stream_takes_the_round_trips_of_slow_start() {
    let delay = (10 * MS, 10 * MS);
    let network = Network { delay, ..Network::default() };
    let mut rng = StdRng::seed_from_u64(1);
    assert_eq!(network.stream(&mut rng, 64 * 1024), 5 * 20 * MS);
    assert_eq!(network.stream(&mut rng, 1000), 3 * 20 * MS);
}

#[test]
fn who_is_paused_hears_the_socket_before_its_timers() {
    let mut sim = cluster(1, 3);
    sim.pause(2);
    let before = sim.node(2).counters;
    sim.run(SECOND);
    assert_eq!(sim.node(2).counters.datagrams_in, before.datagrams_in);
    assert_eq!(sim.node(2).counters.datagrams_out, before.datagrams_out);
    sim.resume(2);
    assert!(sim.node(2).counters.datagrams_in > before.datagrams_in, "what waited in the socket, at once");
    assert!(sim.node(2).node.next_deadline().unwrap() > sim.now, "and then what was due");
    assert_eq!(sim.node(2).counters.unread, 0, "in this order");
}

#[test]
fn who_is_throttled_acts_in_its_turns_alone() {
    let mut sim = cluster(2, 3);
    sim.throttle(2);
    let Pace::Throttled(phase) = sim.node(2).pace else { panic!("it is") };
    let until = sim.now + 10 * SECOND;
    let mut sent = sim.node(2).counters.datagrams_out;
    let mut turns = 0;
    while sim.step(until) {
        if sim.node(2).counters.datagrams_out > sent {
            sent = sim.node(2).counters.datagrams_out;
            let into = (sim.now - sim.start + phase).as_millis() % 200;
            assert!(into < 10, "{into} ms into its period");
            turns += 1;
        }
    }
    assert!(turns > 10);
}

#[test]
fn plain_foca_is_the_baseline_that_it_is_said_to_be() {
    let setup = Setup::new(0, Mode::Plain, true);
    let lossy = scenario::false_removals(&setup, 10, 0.3, 5 * MINUTE);
    assert!(lossy[1].values[0] > 10.0, "it changes identities over and over: {lossy:?}");
    let dead = scenario::stop_using_dead(&setup, 10);
    assert!(dead[0].values.iter().all(|took| (3.0..15.0).contains(took)), "{dead:?}");
    assert_eq!(dead[1].values[0], 0.0);
}

#[test]
fn a_dead_backend_is_out_of_rotation_within_two_seconds() {
    is_met(4, |setup| scenario::stop_using_dead(setup, 10));
}

#[test]
fn nobody_is_removed_or_renamed_at_five_percent_loss_in_bursts_and_under_churn() {
    is_met(1, |setup| scenario::false_removals(setup, 20, 0.05, 10 * MINUTE));
    is_met(2, |setup| scenario::bursts(setup, 10));
    is_met(1, |setup| scenario::churn(setup, 20, 6 * MINUTE));
}

#[test]
fn half_of_all_restarting_removes_and_renames_nobody_else() {
    is_met(2, |setup| scenario::restart_storm(setup, 20, MINUTE));
}

#[test]
fn healthy_balancers_keep_healthy_backends_beside_throttled_ones() {
    is_met(2, |setup| scenario::throttled(setup, 10, 2 * MINUTE));
}

#[test]
fn who_was_paused_convicts_nobody_and_is_back_at_once() {
    is_met(4, |setup| scenario::paused(setup, 10));
}

#[test]
fn who_stands_still_again_and_again_convicts_nobody() {
    is_met(2, |setup| scenario::stuttering(setup, 10));
}

#[test]
fn one_that_is_deaf_removes_nobody_else() {
    is_met(2, |setup| scenario::deaf(setup, 10));
}

#[test]
fn one_that_only_one_other_reaches_removes_nobody_else() {
    is_met(2, |setup| scenario::one_link(setup, 10));
}

#[test]
fn a_split_heals_by_itself_and_empties_no_pool() {
    is_met(4, |setup| scenario::partition(setup, 10));
}

#[test]
fn a_cluster_that_starts_at_once_is_whole_in_three_seconds() {
    is_met(4, |setup| scenario::cold_start(setup, 20, 3.0));
}

#[test]
fn a_change_reaches_all_within_six_gossip_intervals() {
    is_met(4, |setup| scenario::change(setup, 10, 6.0));
}

#[test]
fn a_drain_is_known_to_five_balancers_at_once() {
    is_met(2, |setup| scenario::drain(setup, 10));
}

#[test]
fn a_steady_cluster_is_quiet() {
    is_met(2, |setup| scenario::traffic(setup, 10));
}

#[test]
fn a_large_offer_is_nearly_as_large_as_one_may_be() {
    let apps: Vec<_> = scenario::large_offer(102).apps.into_iter().map(|(app, _)| app).collect();
    let bytes = crate::gossip::record::encode_apps(&apps).len();
    assert!((60 * 1024..=64 * 1024).contains(&bytes), "{bytes}");
}

#[test]
fn large_offers_are_everywhere_in_five_seconds() {
    is_met(1, |setup| scenario::metadata(setup, 4));
}

#[test]
fn who_comes_back_is_in_at_once_even_with_a_clock_that_went_back() {
    is_met(2, scenario::restart);
}

#[test]
fn a_cluster_comes_back_with_a_store_full_of_stale_seeds() {
    is_met(2, scenario::cluster_restart);
}

#[test]
fn who_was_left_behind_or_came_first_finds_the_others() {
    is_met(2, scenario::left_behind);
    is_met(2, scenario::late_balancers);
}

#[test]
fn two_that_are_left_of_five_call_the_dead_dead() {
    is_met(30, scenario::most_die);
}

#[test]
fn a_minute_without_any_network_costs_nobody_a_pool() {
    is_met(1, |setup| scenario::blackout(setup, 10));
}

/// Each addition to foca is missed somewhere: a promise that is kept with it, as the tests around this one show, is
/// broken without.
#[test]
fn without_any_one_addition_a_promise_is_broken() {
    let broken = |addition, case: &dyn Fn(&Setup) -> Vec<Measure>| {
        let setup = |seed| Setup { without: Some(addition), ..Setup::new(seed, Mode::Ours, true) };
        let broken = (0..2).map(|seed| broken(&setup(seed), case)).find(|broken| !broken.is_empty());
        println!("without {addition:?}: {:?}", broken.unwrap_or_else(|| panic!("{addition:?} earns nothing")));
    };
    broken(Addition::Echoes, &|setup| scenario::stop_using_dead(setup, 10));
    broken(Addition::UndeadFilter, &|setup| scenario::false_removals(setup, 10, 0.3, MINUTE));
    broken(Addition::Transmissions, &|setup| scenario::false_removals(setup, 20, 0.3, 2 * MINUTE));
    broken(Addition::Announcements, &|setup| scenario::partition(setup, 10));
    broken(Addition::StallGuard, &|setup| scenario::stuttering(setup, 10));
    broken(Addition::WitnessGuard, &|setup| scenario::deaf(setup, 10));
    broken(Addition::StartOver, &scenario::most_die);
    broken(Addition::Knocks, &scenario::late_balancers);
    broken(Addition::StaleNotice, &scenario::restart);
}

#[test]
fn a_store_that_fails_costs_no_member() {
    is_met(2, scenario::store_failing);
}

#[test]
fn two_at_one_address_harm_nobody_else() {
    is_met(1, scenario::duplicate_address);
}

#[test]
fn the_dead_do_not_come_back() {
    is_met(1, |setup| scenario::ghosts(setup, 10));
}

#[test]
fn keys_may_change_while_nothing_is_lost() {
    is_met(1, |setup| scenario::key_rotation(setup, 6));
}

/// The old key is taken away while one node has no other: that one is out until it has the new one, and nobody
/// else is missed meanwhile.
#[test]
fn a_key_taken_away_too_early_costs_only_who_has_no_other() {
    for (seed, early) in [(0, 1..=7), (1, 1..=7), (2, 1..=1)] {
        let mut sim = Simulation::ours(seed);
        sim.seals = true;
        (1..=8).for_each(|host| sim.add(host, &[1]));
        let all: Vec<u32> = (1..=8).collect();
        sim.until(30 * SECOND, "all see all", |sim| sim.all_see(&all));
        sim.run(10 * SECOND);
        for keys in [&[1, 2][..], &[2, 1]] {
            (1..=7).for_each(|host| sim.change_keys(host, keys));
            sim.run(2 * SECOND);
        }
        sim.forget_counters();
        let is_alone = early.clone().count() > 1;
        early.for_each(|host| sim.change_keys(host, &[2]));
        sim.host_mut(8).unwrap().is_ill = true;
        sim.run(MINUTE);
        let renewed: u64 = sim.alive().filter(|(host, _)| *host != 8).map(|(_, it)| it.counters.identity_changes).sum();
        assert_eq!((sim.false_removals, sim.false_downs, renewed), (0, 0, 0), "seed {seed}");
        assert!(sim.seen(1, 8).is_removed, "seed {seed}: it does not answer");
        // By one that lacks its key it is missed alone; the others vouch for it.
        let down = sim.state(1, 8) == Some(MemberState::Down);
        assert_eq!(down, is_alone, "seed {seed}: {:?}", sim.state(1, 8));
        sim.change_keys(8, &[2]);
        sim.host_mut(8).unwrap().is_ill = false;
        sim.until(20 * SECOND, "all see all again", |sim| sim.all_see(&all) && !sim.seen(1, 8).is_removed);
    }
}
