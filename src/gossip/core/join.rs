//! Getting in, and in again.
//!
//! A newcomer knocks at the addresses of its seeds, not knowing who lives there. The answer is a number, with
//! which it joins: so nobody gets in who is not reached where it says it is, and a recorded knock opens nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foca::Foca;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::guard::WITNESSES;
use super::{Addition, Codec, Core, Dropped, Effect, Identity, Message, Stamp, Timer, foca_config, read_header};
use crate::gossip::identity::plain;
use crate::report::{ContactReport, JoinReport};

/// A node that is not in knocks after this long, then after twice as long each time.
const KNOCK_DELAY: Duration = Duration::from_millis(200);
const KNOCK_DELAY_MAX: Duration = Duration::from_secs(5);
/// An answer to a knock is believed for so long.
const KNOCK_LIMIT: Duration = Duration::from_secs(10);
/// Seeds tried at once.
const SEEDS_MAX: usize = 16;
/// Of former members, so many are tried beside the seeds.
const FRIENDS_MAX: usize = 3;
/// A seed that was silent for so long is asked over TCP why, and again after [`CONTACT_DELAY`].
const SILENCE: Duration = Duration::from_secs(1);
const CONTACT_DELAY: Duration = Duration::from_secs(10);

/// A node that has heard nobody for so long, or fewer than it needs to convict anybody, is cut off, or deaf. Whom it
/// would call dead by now are most likely well; it calls nobody anything and starts over.
pub(super) const CUT_OFF_AFTER: Duration = Duration::from_secs(20);
/// The same when somebody knocks: who has just started over, because the same others are silent, is not to learn of them
/// again from one that is about to. Two that are left of five would tell each other of the dead for ever.
const NEARLY_CUT_OFF_AFTER: Duration = Duration::from_secs(15);

/// Who hears of nobody new for so long knows everybody, most likely, and announces itself less often: the answer
/// to an announcement is a datagram full of members, which costs more than all else that a quiet node sends.
const NEWS: Duration = Duration::from_secs(30);

/// A run cannot have begun later than this (the year 4199): a clock beyond it would leave no room for the next.
const EPOCH_MAX: u64 = 1 << 46;

/// A node that renews itself so often, with no more than [`CALM`] in between, shares its address with another: a member
/// that was called dead, or came back with a clock gone back, does so once or twice.
const CONTESTED_RENEWALS: u32 = 10;
const CALM: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Joining {
    /// Whether somebody took this node in, under its present identity.
    pub(super) is_in: bool,
    /// Since when.
    pub(super) in_since: Instant,
    pub(super) knocked: Option<Instant>,
    /// When somebody new was last heard of.
    pub(super) last_up: Instant,
    /// Renewals one after the other, and when the last was.
    renewals: (u32, Instant),
    seeds: BTreeMap<SocketAddr, Seed>,
    delay: Duration,
}

#[derive(Debug)]
struct Seed {
    since: Instant,
    contacted: Option<Instant>,
    outcome: Option<String>,
}

impl Joining {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            is_in: false,
            in_since: now,
            knocked: None,
            last_up: now,
            renewals: (0, now),
            seeds: BTreeMap::new(),
            delay: KNOCK_DELAY,
        }
    }

    /// How many times as long as foca asks for one of its timers waits.
    pub(super) fn patience(&self, now: Instant, timer: &foca::Timer<Identity>) -> u32 {
        let is_settled = now - self.last_up > NEWS;
        if is_settled && matches!(timer, foca::Timer::PeriodicAnnounce(_)) { 3 } else { 1 }
    }
}

impl Core {
    pub(super) fn is_alone(&self) -> bool {
        self.foca.num_members() == 0
    }

    pub(super) fn take_seeds(&mut self, now: Instant, found: &[SocketAddr]) {
        let me = self.foca.identity().addr;
        let found: Vec<SocketAddr> = found.iter().map(|addr| plain(*addr)).filter(|addr| *addr != me).collect();
        let mut news = Vec::new();
        for addr in found.iter().take(SEEDS_MAX) {
            let is_member = self.foca.iter_members().any(|member| member.id().addr == *addr);
            if !is_member && (!self.is_alone() || !self.joining.seeds.contains_key(addr)) {
                news.push(*addr);
            }
        }
        self.joining.seeds.retain(|addr, _| found.contains(addr));
        for addr in found.into_iter().take(SEEDS_MAX) {
            self.joining.seeds.entry(addr).or_insert(Seed { since: now, contacted: None, outcome: None });
        }
        if self.is_alone() && !news.is_empty() {
            self.knock_soon(now);
        }
        for addr in news {
            self.announce(Identity::unknown_at(addr));
        }
        self.mark_changed(now);
    }

    fn announce(&mut self, to: Identity) {
        // Its only errors are foca's own state, and there is none in which an announcement may not be made.
        drop(self.foca.announce(to, &mut self.runtime));
    }

    pub(super) fn taken_in(&mut self, now: Instant) {
        self.joining.is_in = true;
        self.joining.in_since = now;
    }

    /// This node is not in: it knocks from now on, faster first.
    pub(super) fn knock_soon(&mut self, now: Instant) {
        self.joining.is_in = false;
        self.joining.delay = KNOCK_DELAY;
        self.schedule_knock(now, KNOCK_DELAY);
    }

    fn schedule_knock(&mut self, now: Instant, after: Duration) {
        // Several wishes for this timer are one.
        self.timers.retain(|Reverse((_, _, slot))| slot.0 != Timer::Knock);
        self.schedule(now, after, Timer::Knock);
    }

    /// Knocks at the seeds, and at some who are, or were, members.
    pub(super) fn knock(&mut self, now: Instant) {
        if self.joining.is_in || self.leaving.is_some() || !self.has(Addition::Knocks) {
            return;
        }
        let seeds: Vec<SocketAddr> = self.joining.seeds.keys().copied().collect();
        for addr in &seeds {
            self.announce(Identity::unknown_at(*addr));
            self.contact_if_silent(now, *addr);
        }
        let me = self.foca.identity().addr;
        let known = self.held.values().map(|held| held.addr);
        let mut friends: Vec<SocketAddr> = known.filter(|addr| *addr != me && !seeds.contains(addr)).collect();
        friends.sort();
        for _ in 0..FRIENDS_MAX.min(friends.len()) {
            let friend = friends.swap_remove(self.rng.random_range(..friends.len()));
            self.announce(Identity::unknown_at(friend));
        }
        self.schedule_knock(now, self.joining.delay);
        self.joining.delay = (self.joining.delay * 2).min(KNOCK_DELAY_MAX);
    }

    fn contact_if_silent(&mut self, now: Instant, addr: SocketAddr) {
        let is_alone = self.is_alone();
        let Some(seed) = self.joining.seeds.get_mut(&addr).filter(|_| is_alone) else {
            return;
        };
        let is_due = seed.contacted.is_none_or(|last| now - last >= CONTACT_DELAY);
        if now - seed.since >= SILENCE && is_due {
            seed.contacted = Some(now);
            self.effects.push_back(Effect::Contact(addr));
        }
    }

    pub(super) fn contacted(&mut self, now: Instant, addr: SocketAddr, outcome: String) {
        if let Some(seed) = self.joining.seeds.get_mut(&addr) {
            seed.outcome = Some(outcome);
            self.mark_changed(now);
        }
    }

    /// Somebody knocks who does not know who lives here. A member may; a stranger is told, and comes again. The
    /// answer is no longer than the knock, and changes nothing of what is known here.
    pub(super) fn answer_knock(&mut self, now: Instant, stamp: &Stamp, packet: &[u8]) -> Result<(), Dropped> {
        let header = read_header(stamp, &mut &packet[..])?;
        if header.message != foca::Message::Announce {
            return Err(Dropped::Misaddressed);
        }
        if self.is_cut_off(now, NEARLY_CUT_OFF_AFTER) {
            self.start_over(now);
        }
        let is_known = self.foca.iter_membership_state().any(|member| *member.id() == header.src);
        if is_known && header.dst.addr == self.foca.identity().addr {
            return self.feed(packet);
        }
        self.send(stamp.addr, stamp.node, Message::Welcome);
        Ok(())
    }

    pub(super) fn welcomed(&mut self, now: Instant, stamp: &Stamp) {
        if self.joining.knocked.is_some_and(|knocked| now - knocked < KNOCK_LIMIT) {
            self.announce(Identity::new(stamp.addr, 0, stamp.node));
        }
    }

    /// Tells a newcomer whose clock went back that its address is known with a newer run: nobody would take it in,
    /// and its own renewals, each a millisecond newer, would take as long as the clock is wrong.
    pub(super) fn tell_if_stale(&mut self, src: &Identity) {
        use foca::Identity as _;
        let newer = self.foca.iter_membership_state().map(foca::Member::id).find(|known| known.addr == src.addr);
        if let Some(newer) = newer.filter(|known| *known != src && known.win_addr_conflict(src))
            && self.has(Addition::StaleNotice)
        {
            let epoch = newer.epoch;
            self.send(src.addr, src.node, Message::Stale(epoch));
        }
    }

    /// There was a newer run at this address: this one becomes the newest.
    pub(super) fn outdated(&mut self, now: Instant, stamp: &Stamp, epoch: u64) {
        let last = *self.foca.identity();
        if (last.epoch..EPOCH_MAX).contains(&epoch) {
            self.become_known_as(now, Identity { epoch: epoch + 1, ..last });
            self.renewed(now);
            self.announce(Identity::new(stamp.addr, 0, stamp.node));
        }
    }

    /// This run became a newer one, since another was said to be at its address.
    pub(super) fn renewed(&mut self, now: Instant) {
        let (count, last) = self.joining.renewals;
        let count = if now - last < CALM { count.saturating_add(1) } else { 1 };
        self.joining.renewals = (count, now);
        if count >= CONTESTED_RENEWALS {
            self.effects.push_back(Effect::Contested(self.foca.identity().addr));
        }
    }

    pub(super) fn advertise(&mut self, now: Instant, addr: SocketAddr) {
        let last = *self.foca.identity();
        let next = Identity::new(addr, last.epoch + 1, last.node);
        if self.is_alone() && next.addr != last.addr {
            self.become_known_as(now, next);
        }
    }

    fn become_known_as(&mut self, now: Instant, next: Identity) {
        self.settings.identity = next;
        // Another identity, as the callers saw to: the one error it knows cannot be.
        drop(self.foca.change_identity(next, &mut self.runtime));
        self.knock_soon(now);
        self.mark_changed(now);
    }

    /// Whether there are others, and too few of them were heard for so long.
    pub(super) fn is_cut_off(&self, now: Instant, after: Duration) -> bool {
        let needed = self.foca.num_members().min(WITNESSES);
        if needed < 2 || !self.has(Addition::StartOver) || now - self.joining.in_since < after {
            return false;
        }
        let is_heard = |heard: Instant| now - heard < after;
        let nodes = self.foca.iter_members().map(|member| member.id().node);
        let heard = nodes.filter_map(|node| self.held.get(&node)?.last_heard).filter(|heard| is_heard(*heard));
        heard.take(needed).count() < needed
    }

    /// Forgets the membership, not what was known of the members, and comes back as a newcomer. Calling the others
    /// dead instead would make each of them change its identity the moment this node is heard again.
    pub(super) fn start_over(&mut self, now: Instant) {
        let next = foca::Identity::renew(self.foca.identity()).unwrap_or_else(|| *self.foca.identity());
        self.settings.identity = next;
        let config = foca_config(|addition| self.has(addition));
        self.foca = Foca::new(next, config, StdRng::from_rng(&mut self.rng), Codec);
        self.timers.retain(|Reverse((_, _, slot))| !matches!(slot.0, Timer::Foca(_)));
        self.accusations.clear();
        self.joining.seeds.values_mut().for_each(|seed| seed.since = now);
        self.knock_soon(now);
        self.mark_changed(now);
    }

    pub(super) fn join_report(&self) -> JoinReport {
        let alone = self.is_alone();
        let mut contacts: Vec<ContactReport> = self
            .joining
            .seeds
            .iter()
            .filter(|_| alone)
            .map(|(addr, seed)| ContactReport {
                address: *addr,
                outcome: seed.outcome.clone().unwrap_or_else(|| "no answer yet".to_owned()),
            })
            .collect();
        contacts.sort_by_key(|contact| contact.address);
        JoinReport { alone, contacts }
    }
}
