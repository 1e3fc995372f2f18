//! Plain foca with its preset for local networks: what our core is compared with. It speaks our codec with our
//! identities, so that bytes compare. foca leaves joining to its user; this one announces itself to its seeds once a
//! second while it is alone, which is generous.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use foca::{AccumulatingRuntime, Foca, NoCustomBroadcast, OwnedNotification};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::node::Action;
use crate::gossip::codec::Codec;
use crate::gossip::core::{Effect, Input};
use crate::gossip::identity::Identity;
use crate::member::MemberState;

const ANNOUNCE_DELAY: Duration = Duration::from_secs(1);
/// How long it goes on after its goodbye, so that the goodbye is passed on.
const LEAVE_DELAY: Duration = Duration::from_millis(300);

/// One node.
pub(super) struct Plain {
    foca: Foca<Identity, Codec, StdRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Identity>,
    timers: BinaryHeap<Reverse<Due>>,
    timers_made: u64,
    seeds: Vec<SocketAddr>,
    announces_at: Option<Instant>,
    leaves_at: Option<Instant>,
    actions: VecDeque<Action>,
}

struct Due {
    at: Instant,
    timer: foca::Timer<Identity>,
    place: u64,
}

impl Plain {
    pub(super) fn new(identity: Identity, cluster_size: u32, random_seed: u64) -> Self {
        let size = NonZeroU32::new(cluster_size).unwrap_or(NonZeroU32::MIN);
        let rng = StdRng::seed_from_u64(random_seed);
        Self {
            foca: Foca::new(identity, foca::Config::new_lan(size), rng, Codec),
            runtime: AccumulatingRuntime::new(),
            timers: BinaryHeap::new(),
            timers_made: 0,
            seeds: Vec::new(),
            announces_at: None,
            leaves_at: None,
            actions: VecDeque::new(),
        }
    }

    pub(super) fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Message(_) if self.leaves_at.is_some() => {}
            // What makes no sense to foca is as good as lost; its own state stands.
            Input::Message(bytes) => drop(self.foca.handle_data(bytes, &mut self.runtime)),
            Input::Seeds(found) => {
                self.seeds = found;
                self.announces_at = self.announces_at.or(Some(now));
                self.announce(now);
            }
            Input::Leave => {
                drop(self.foca.leave_cluster(&mut self.runtime));
                self.leaves_at = Some(now + LEAVE_DELAY);
            }
            Input::Wake => self.wake(now),
            _ => {}
        }
        self.drain(now);
    }

    /// Takes these for members, from hearsay that it does not pass on.
    pub(super) fn know(&mut self, now: Instant, others: &[Identity]) {
        let me = *self.foca.identity();
        let others = others.iter().filter(|other| **other != me).map(|other| foca::Member::alive(*other));
        drop(self.foca.apply_many(others, false, &mut self.runtime));
        self.drain(now);
    }

    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse(due)| due.at);
        timer.into_iter().chain(self.announces_at).chain(self.leaves_at).min()
    }

    pub(super) fn identity(&self) -> Identity {
        *self.foca.identity()
    }

    fn wake(&mut self, now: Instant) {
        while self.timers.peek().is_some_and(|Reverse(due)| due.at <= now) {
            let Some(Reverse(due)) = self.timers.pop() else { return };
            drop(self.foca.handle_timer(due.timer, &mut self.runtime));
            self.drain(now);
        }
        self.announce(now);
        if self.leaves_at.is_some_and(|at| at <= now) {
            self.leaves_at = None;
            self.actions.push_back(Action::Core(Effect::Left));
        }
    }

    fn announce(&mut self, now: Instant) {
        if self.announces_at.is_some_and(|at| at <= now) {
            self.announces_at = Some(now + ANNOUNCE_DELAY);
            if self.foca.num_members() == 0 && self.leaves_at.is_none() {
                for addr in self.seeds.clone() {
                    drop(self.foca.announce(Identity::unknown_at(addr), &mut self.runtime));
                }
            }
        }
    }

    fn drain(&mut self, now: Instant) {
        while let Some((to, packet)) = self.runtime.to_send() {
            self.actions.push_back(Action::Core(Effect::Send { to: to.addr, message: packet.to_vec() }));
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers_made += 1;
            self.timers.push(Reverse(Due { at: now + after, timer, place: self.timers_made }));
        }
        while let Some(news) = self.runtime.to_notify() {
            let mut seen = |id: Identity, state| self.actions.push_back(Action::Seen(id.node, state));
            match news {
                OwnedNotification::MemberUp(id) => seen(id, MemberState::Alive),
                OwnedNotification::MemberDown(id) => seen(id, MemberState::Down),
                OwnedNotification::Rename(old, new) => {
                    if old.node != new.node {
                        seen(old, MemberState::Down);
                    }
                    seen(new, MemberState::Alive);
                }
                _ => {}
            }
        }
    }
}

// Timers that are due together go in the order that foca asks for.
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at).then_with(|| self.timer.cmp(&other.timer)).then_with(|| self.place.cmp(&other.place))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == std::cmp::Ordering::Equal
    }
}

impl Eq for Due {}
