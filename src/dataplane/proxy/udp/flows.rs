//! The flows that a worker knows: who is there, who has been quiet the longest, and who makes way. Pure.
//!
//! A flow is *proven* when its client has spoken again after an answer: whoever only claims to be at an address does
//! not hear what is sent there. (The kernel's connection tracking calls such a flow assured, and spares it when its
//! table is full; so does this one.)

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The flows that came in through one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Group(u32);

/// What makes a flow: where it came in, who sent it, and to which of our addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) group: Group,
    pub(super) client: SocketAddr,
    pub(super) local: IpAddr,
}

/// The place of a flow in the table; its own until it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u32);

/// What addresses of one IPv6 network have in common: their first 64 bits.
const HOST_MASK_V6: u128 = !0 << 64;
/// A host that has one in so many of all flows, or more, is a crowd.
const CROWD_PART: usize = 16;
/// So many flows are looked at to find one of a host that has many.
const DRAWS: usize = 8;
/// No place.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Flows<T> {
    /// Clients choose the keys: the standard library's hash has a secret.
    index: HashMap<Key, u32>,
    /// How many flows each host has.
    hosts: HashMap<IpAddr, u32>,
    slots: Vec<Option<Slot<T>>>,
    free: Vec<u32>,
    groups: Vec<Option<Lists>>,
}

#[derive(Debug)]
struct Slot<T> {
    key: Key,
    value: T,
    is_proven: bool,
    active: Instant,
    older: u32,
    newer: u32,
}

/// The flows of one group, those that are proven and those that are not, each in the order of their last datagram.
#[derive(Debug, Default)]
struct Lists {
    unproven: List,
    proven: List,
}

#[derive(Debug)]
struct List {
    oldest: u32,
    newest: u32,
    length: usize,
}

impl Default for List {
    fn default() -> Self {
        Self { oldest: NONE, newest: NONE, length: 0 }
    }
}

impl<T> Default for Flows<T> {
    fn default() -> Self {
        Self { index: HashMap::new(), hosts: HashMap::new(), slots: Vec::new(), free: Vec::new(), groups: Vec::new() }
    }
}

impl<T> Flows<T> {
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// A group without flows.
    pub(super) fn open_group(&mut self) -> Group {
        let at = self.groups.iter().position(Option::is_none).unwrap_or(self.groups.len());
        if at == self.groups.len() {
            self.groups.push(None);
        }
        self.groups[at] = Some(Lists::default());
        Group(u32::try_from(at).unwrap_or(NONE))
    }

    /// Ends a group that has no flows any more; says whether it could.
    pub(super) fn close_group(&mut self, group: Group) -> bool {
        let Some(lists) = self.groups.get_mut(group.0 as usize) else {
            return true;
        };
        let is_empty = lists.as_ref().is_none_or(|lists| lists.unproven.length + lists.proven.length == 0);
        if is_empty {
            *lists = None;
        }
        is_empty
    }

    pub(super) fn find(&self, key: &Key) -> Option<Place> {
        self.index.get(key).copied().map(Place)
    }

    pub(super) fn get(&self, place: Place) -> Option<&T> {
        self.slot(place.0).map(|slot| &slot.value)
    }

    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        self.slot_mut(place.0).map(|slot| &mut slot.value)
    }

    /// A new flow, not proven yet. Its key must be new, its group open.
    pub(super) fn insert(&mut self, key: Key, value: T, now: Instant) -> Place {
        let slot = Slot { key, value, is_proven: false, active: now, older: NONE, newer: NONE };
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).unwrap_or(NONE)
            }
        };
        self.slots[at as usize] = Some(slot);
        self.index.insert(key, at);
        *self.hosts.entry(host(key.client)).or_default() += 1;
        self.link(at);
        Place(at)
    }

    /// A datagram passed at `now`.
    pub(super) fn touch(&mut self, place: Place, now: Instant) {
        self.relink(place, |slot| slot.active = now);
    }

    /// The client has spoken again after an answer.
    pub(super) fn prove(&mut self, place: Place) {
        if self.slot(place.0).is_some_and(|slot| !slot.is_proven) {
            self.relink(place, |slot| slot.is_proven = true);
        }
    }

    pub(super) fn remove(&mut self, place: Place) -> Option<T> {
        self.unlink(place.0);
        let slot = self.slots.get_mut(place.0 as usize)?.take()?;
        self.index.remove(&slot.key);
        if let Entry::Occupied(mut count) = self.hosts.entry(host(slot.key.client)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        self.free.push(place.0);
        if self.index.is_empty() {
            // What a flood took is given back.
            (self.slots, self.free) = (Vec::new(), Vec::new());
            self.index.shrink_to_fit();
            self.hosts.shrink_to_fit();
        }
        Some(slot.value)
    }

    /// Who makes way for a new flow: of the group that has the most flows that are not proven, the one that has been
    /// quiet the longest, and for `quiet` at least. None: nobody does.
    pub(super) fn makes_way(&self, now: Instant, quiet: Duration) -> Option<Place> {
        let lists = self.groups.iter().flatten().max_by_key(|lists| lists.unproven.length)?;
        self.if_quiet(lists.unproven.oldest, now, quiet)
    }

    /// Who makes way for a flow of `newcomer`'s when nobody does by [`Flows::makes_way`]: a flow, proven or not, of a host
    /// that has a good part of all, and at least two more than the newcomer's. Less than such a part nobody loses: those
    /// who come may be nobody, under as many addresses as they like. Of a few flows drawn at random, the quietest of the host with the
    /// most: whoever has a quarter of all is found nine times out of ten, at a cost that does not grow.
    pub(super) fn of_a_crowd(&self, newcomer: IpAddr) -> Option<Place> {
        let count = |client: IpAddr| self.hosts.get(&host((client, 0).into())).copied().unwrap_or(0);
        let drawn = (0..DRAWS.min(self.slots.len())).filter_map(|_| {
            let at = fastrand::usize(..self.slots.len());
            let slot = self.slots[at].as_ref()?;
            Some((count(slot.key.client.ip()), Reverse(slot.active), at))
        });
        let (most, _, at) = drawn.max()?;
        let is_crowd = most as usize * CROWD_PART >= self.len() && most >= count(newcomer) + 2;
        is_crowd.then_some(Place(u32::try_from(at).ok()?))
    }

    /// One on which nothing has moved for `idle`.
    pub(super) fn idle(&self, now: Instant, idle: Duration) -> Option<Place> {
        let lists = self.groups.iter().flatten().flat_map(|lists| [lists.unproven.oldest, lists.proven.oldest]);
        lists.into_iter().find_map(|oldest| self.if_quiet(oldest, now, idle))
    }

    /// All of a group.
    pub(super) fn of_group(&self, group: Group) -> Vec<Place> {
        let mut places = Vec::new();
        if let Some(Some(lists)) = self.groups.get(group.0 as usize) {
            for oldest in [lists.unproven.oldest, lists.proven.oldest] {
                let mut at = oldest;
                while let Some(slot) = self.slot(at) {
                    places.push(Place(at));
                    at = slot.newer;
                }
            }
        }
        places
    }

    fn if_quiet(&self, at: u32, now: Instant, quiet: Duration) -> Option<Place> {
        let slot = self.slot(at)?;
        (now.saturating_duration_since(slot.active) >= quiet).then_some(Place(at))
    }

    fn slot(&self, at: u32) -> Option<&Slot<T>> {
        self.slots.get(at as usize)?.as_ref()
    }

    fn slot_mut(&mut self, at: u32) -> Option<&mut Slot<T>> {
        self.slots.get_mut(at as usize)?.as_mut()
    }

    fn list_of(&mut self, at: u32) -> Option<&mut List> {
        let slot = self.slots.get(at as usize)?.as_ref()?;
        let lists = self.groups.get_mut(slot.key.group.0 as usize)?.as_mut()?;
        Some(if slot.is_proven { &mut lists.proven } else { &mut lists.unproven })
    }

    fn relink(&mut self, place: Place, change: impl FnOnce(&mut Slot<T>)) {
        self.unlink(place.0);
        if let Some(slot) = self.slot_mut(place.0) {
            change(slot);
            self.link(place.0);
        }
    }

    /// Puts a flow at the new end of its list.
    fn link(&mut self, at: u32) {
        let Some(list) = self.list_of(at) else {
            return;
        };
        let older = std::mem::replace(&mut list.newest, at);
        list.length += 1;
        if older == NONE {
            list.oldest = at;
        }
        if let Some(slot) = self.slot_mut(older) {
            slot.newer = at;
        }
        if let Some(slot) = self.slot_mut(at) {
            (slot.older, slot.newer) = (older, NONE);
        }
    }

    fn unlink(&mut self, at: u32) {
        let Some(slot) = self.slot(at) else {
            return;
        };
        let (older, newer) = (slot.older, slot.newer);
        if let Some(list) = self.list_of(at) {
            list.length -= 1;
            if older == NONE {
                list.oldest = newer;
            }
            if newer == NONE {
                list.newest = older;
            }
        }
        if let Some(slot) = self.slot_mut(older) {
            slot.newer = newer;
        }
        if let Some(slot) = self.slot_mut(newer) {
            slot.older = older;
        }
    }
}

/// Whose a client's address is: in IPv6 a host has as many as it likes.
fn host(client: SocketAddr) -> IpAddr {
    match client.ip() {
        IpAddr::V6(ip) => IpAddr::from((u128::from(ip) & HOST_MASK_V6).to_be_bytes()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(group: Group, client: u16) -> Key {
        Key { group, client: SocketAddr::from(([10, 0, 0, 1], client)), local: IpAddr::from([127, 0, 0, 1]) }
    }

    const QUIET: Duration = Duration::from_millis(10);

    #[test]
    fn the_quietest_of_the_largest_group_makes_way_and_the_proven_never_do() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let (small, large) = (flows.open_group(), flows.open_group());
        flows.insert(key(small, 1), "small", at(0));
        let first = flows.insert(key(large, 1), "first", at(1));
        flows.insert(key(large, 2), "second", at(2));
        flows.insert(key(large, 3), "third", at(3));
        let quietest =
            |flows: &Flows<&'static str>, now| flows.makes_way(now, QUIET).and_then(|place| flows.get(place)).copied();
        assert_eq!(quietest(&flows, at(10)), None, "nobody has been quiet for long enough");
        assert_eq!(quietest(&flows, at(11)), Some("first"));
        flows.touch(first, at(4));
        assert_eq!(quietest(&flows, at(20)), Some("second"));
        flows.prove(flows.find(&key(large, 2)).unwrap());
        assert_eq!(quietest(&flows, at(20)), Some("third"));
        flows.prove(flows.find(&key(large, 3)).unwrap());
        flows.prove(first);
        assert_eq!(quietest(&flows, at(20)), Some("small"));
        flows.prove(flows.find(&key(small, 1)).unwrap());
        assert_eq!(quietest(&flows, at(99)), None);
    }

    #[test]
    fn one_of_a_crowd_makes_way_for_those_who_have_less() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        fastrand::seed(seed);
        let (mut flows, start) = (Flows::default(), Instant::now());
        let group = flows.open_group();
        let local = IpAddr::from([127, 0, 0, 1]);
        let key_of = |ip: [u8; 4], port| Key { group, client: (ip, port).into(), local };
        let mut begin = |client: SocketAddr| {
            let place = flows.insert(Key { group, client, local }, client.ip(), start);
            flows.prove(place);
        };
        (1..=3).for_each(|last| begin(SocketAddr::from(([10, 0, 0, last], 1))));
        (1..=60).for_each(|last| begin(SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 1))));
        let (crowd, stranger) = ("2001:db8::99".parse().unwrap(), "2001:db8:0:1::1".parse().unwrap());
        assert_eq!(flows.of_a_crowd(crowd), None, "their own");
        // All eight are others once in ten thousand million times.
        for left in (2..=60).rev() {
            let Some(place) = (0..1000).find_map(|_| flows.of_a_crowd(stranger)) else { panic!("{left} left") };
            assert!(flows.remove(place).unwrap().is_ipv6());
        }
        assert_eq!(flows.of_a_crowd(stranger), None, "one each");
        assert_eq!((flows.len(), flows.hosts.len()), (4, 4));
        // Whoever has two of many keeps them, whoever comes.
        for last in 4..=20 {
            for port in 1..=2 {
                flows.insert(key_of([10, 0, 0, last], port), local, start);
            }
        }
        assert!((0..100).all(|_| flows.of_a_crowd(stranger).is_none()));
    }

    /// The same against a plain list, over many random steps.
    #[test]
    fn the_table_is_what_a_plain_list_would_be() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut flows, start) = (Flows::default(), Instant::now());
        let groups = [flows.open_group(), flows.open_group()];
        // Key, value, proven, last active.
        let mut model: Vec<(Key, u32, bool, u64)> = Vec::new();
        for step in 1..20_000_u32 {
            let now = u64::from(step);
            let at = start + Duration::from_millis(now);
            let key = key(groups[random.usize(..2)], random.u16(1..60));
            let known = model.iter().position(|(other, ..)| *other == key);
            let found = flows.find(&key);
            assert_eq!(found.map(|place| *flows.get(place).unwrap()), known.map(|known| model[known].1));
            match (random.u8(..10), found, known) {
                (0..6, Some(place), Some(known)) => {
                    flows.touch(place, at);
                    let mut flow = model.remove(known);
                    flow.3 = now;
                    model.push(flow);
                }
                (6, Some(place), Some(known)) => {
                    flows.prove(place);
                    let mut flow = model.remove(known);
                    flow.2 = true;
                    model.push(flow);
                    flows.touch(place, at);
                    model.last_mut().unwrap().3 = now;
                }
                (7, Some(place), Some(known)) => {
                    assert_eq!(flows.remove(place), Some(model.remove(known).1));
                }
                (8, ..) => {
                    if let Some(place) = flows.idle(at, Duration::from_millis(100)) {
                        let value = flows.remove(place).unwrap();
                        let known = model.iter().position(|flow| flow.1 == value).unwrap();
                        assert!(model.remove(known).3 + 100 <= now);
                    } else {
                        assert!(model.iter().all(|flow| flow.3 + 100 > now));
                    }
                }
                (_, None, None) => {
                    flows.insert(key, step, at);
                    model.push((key, step, false, now));
                }
                _ => {}
            }
            let unproven = |group| model.iter().filter(move |flow| flow.0.group == group && !flow.2);
            // Of two groups of one size the later counts, as `max_by_key` has it.
            let largest = groups.into_iter().max_by_key(|group| unproven(*group).count()).unwrap();
            let quietest = unproven(largest).min_by_key(|flow| flow.3).filter(|flow| flow.3 + 10 <= now);
            let place = flows.makes_way(at, QUIET);
            assert_eq!(place.and_then(|place| flows.get(place)).copied(), quietest.map(|flow| flow.1));
            assert_eq!(flows.len(), model.len());
            if step % 100 == 0 {
                for group in groups {
                    let mut of_group: Vec<u32> =
                        flows.of_group(group).into_iter().filter_map(|place| flows.get(place).copied()).collect();
                    let mut expected: Vec<u32> = model.iter().filter(|f| f.0.group == group).map(|f| f.1).collect();
                    of_group.sort_unstable();
                    expected.sort_unstable();
                    assert_eq!(of_group, expected);
                }
            }
        }
    }
}
