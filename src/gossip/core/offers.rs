//! Records: what each node says of itself, straight from its owner to everybody.
//!
//! A change goes to the balancers first, is repeated until it is acknowledged, and the version in every datagram
//! tells whoever missed it all the same. Applications that do not fit a record are fetched from their owner.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{
    App, Apps, AppsDigest, Core, Dropped, Effect, Held, Identity, MEMBERS_MAX, Message, NodeId, Offer, Record, Role,
    Stamp, Timer,
};
use crate::gossip::record::{digest_of, encode_apps, offer};

/// How long a record may be on its way before it is asked for.
pub(super) const ASK_DELAY: Duration = Duration::from_millis(100);
/// How long at most between two askings.
const ASK_DELAY_MAX: Duration = Duration::from_secs(5);

/// The first wait for an acknowledgement, a little more than most ways take there and back; each further one is
/// twice as long. At 5 % loss each way three tries, 150 ms, fail once in eight thousand; and what all six miss is
/// left to the version in every datagram.
const PUSH_DELAY: Duration = Duration::from_millis(50);
const PUSH_TRIES: u32 = 6;
/// A change goes to this many members at once, the next as many 10 ms later.
const PUSH_BURST: u32 = 64;

const PULL_DELAY: Duration = Duration::from_millis(200);
const PULL_DELAY_MAX: Duration = Duration::from_secs(5);
/// All places are taken: look again after this.
const PULL_PAUSE: Duration = Duration::from_millis(20);
/// Fetched at once: half a megabyte at most, and a hundred backends' 64 KiB within seconds.
const PULLS_MAX: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pull {
    Idle,
    Waiting(Duration),
    Running(Duration),
}

impl Core {
    pub(super) fn send_record(&mut self, addr: SocketAddr, node: NodeId) {
        let bytes = std::mem::take(&mut self.record_bytes);
        self.send(addr, node, Message::Record(&bytes));
        self.record_bytes = bytes;
    }

    /// Greets a new member with our record, and expects its.
    pub(super) fn member_up(&mut self, now: Instant, id: Identity) {
        let held = self.hold(now, id.node, id.addr);
        held.addr = id.addr;
        let is_unknown = held.record.is_none() && held.ask_delay.is_none();
        if is_unknown {
            held.ask_delay = Some(ASK_DELAY);
        }
        held.push_tries = Some(0);
        self.schedule(now, Duration::ZERO, Timer::Push(id.node));
        if is_unknown {
            self.schedule(now, ASK_DELAY, Timer::Ask(id.node));
        }
    }

    /// Only the owner's word about itself counts, and only if it is newer.
    pub(super) fn take_record(&mut self, now: Instant, stamp: Stamp, bytes: &[u8]) -> Result<(), Dropped> {
        let record = Record::decode(bytes).filter(|record| record.node == stamp.node).ok_or(Dropped::Invalid)?;
        if !self.held.contains_key(&stamp.node) && self.held.len() >= 2 * MEMBERS_MAX {
            return Err(Dropped::Excess);
        }
        self.send(stamp.addr, stamp.node, Message::Ack(record.version));
        let held = self.hold(now, stamp.node, stamp.addr);
        if held.record.as_ref().is_some_and(|known| known.version >= record.version) {
            return Ok(());
        }
        if let Apps::Inline(apps) = &record.apps {
            held.apps = Some((AppsDigest::default(), apps.clone()));
        }
        held.record = Some(record);
        held.ask_delay = held.ask_delay.filter(|_| held.is_behind());
        held.refresh_offer();
        if held.missing_apps().is_some() && held.pull == Pull::Idle {
            held.pull = Pull::Waiting(PULL_DELAY);
            self.schedule(now, Duration::ZERO, Timer::Pull(stamp.node));
        }
        self.begin_echo(now, stamp.node);
        self.mark_changed(now);
        Ok(())
    }

    pub(super) fn ask(&mut self, now: Instant, node: NodeId) {
        let Some(held) = self.held.get_mut(&node) else {
            return;
        };
        let Some(delay) = held.ask_delay.filter(|_| held.is_behind()) else {
            held.ask_delay = None;
            return;
        };
        let (addr, next) = (held.addr, (delay * 2).min(ASK_DELAY_MAX));
        let is_member = self.foca.iter_members().any(|member| member.id().node == node);
        held.ask_delay = is_member.then_some(next);
        self.send(addr, node, Message::Ask);
        if is_member {
            self.schedule(now, next, Timer::Ask(node));
        }
    }

    /// Fetches applications that did not fit their record. Backends route nothing and need none.
    pub(super) fn pull(&mut self, now: Instant, node: NodeId) {
        let running = self.held.values().filter(|held| matches!(held.pull, Pull::Running(_))).count();
        let is_balancer = self.settings.role == Role::Balancer;
        let Some(held) = self.held.get_mut(&node) else {
            return;
        };
        let (Pull::Waiting(delay), Some(digest), true) = (held.pull, held.missing_apps(), is_balancer) else {
            held.pull = Pull::Idle;
            return;
        };
        if running >= PULLS_MAX {
            self.schedule(now, PULL_PAUSE, Timer::Pull(node));
            return;
        }
        held.pull = Pull::Running(delay);
        let from = held.addr;
        self.effects.push_back(Effect::Pull { from, node, digest });
    }

    pub(super) fn pulled(&mut self, now: Instant, node: NodeId, digest: AppsDigest, result: Result<Vec<App>, String>) {
        let Some(held) = self.held.get_mut(&node) else {
            return;
        };
        let delay = match held.pull {
            Pull::Running(delay) => delay,
            _ => PULL_DELAY,
        };
        held.pull = Pull::Idle;
        if let Ok(apps) = result {
            held.apps = Some((digest, apps));
            held.refresh_offer();
        }
        if held.missing_apps().is_some() {
            let next = (delay * 2).min(PULL_DELAY_MAX);
            held.pull = Pull::Waiting(next);
            self.schedule(now, delay, Timer::Pull(node));
        }
        self.begin_echo(now, node);
        self.mark_changed(now);
    }

    pub(super) fn offer(&mut self, now: Instant, mut offer: Offer) {
        offer.apps.sort();
        let (apps, states): (Vec<App>, Vec<_>) = offer.apps.into_iter().unzip();
        let bytes = encode_apps(&apps);
        let apps = Apps::Inline(apps);
        if self.record.apps == apps && self.record.states == states {
            return;
        }
        if self.record.apps != apps {
            self.effects.push_back(Effect::Serve { digest: digest_of(&bytes), apps: bytes.into() });
        }
        self.record.apps = apps;
        self.record.states = states;
        self.record_changed(now);
    }

    /// A new version, to everybody who is there.
    pub(super) fn record_changed(&mut self, now: Instant) {
        self.record.version += 1;
        self.record_bytes = self.record.encode();
        // Tries of the last version that are still due would be counted as tries of this one, and end them early.
        self.timers.retain(|Reverse((_, _, slot))| !matches!(slot.0, Timer::Push(_)));
        self.held.values_mut().for_each(|held| held.push_tries = None);
        let mut nodes: Vec<NodeId> = self.foca.iter_members().map(|member| member.id().node).collect();
        // Whoever sends requests must know first.
        nodes.sort_by_key(|node| !self.held.get(node).is_some_and(Held::is_balancer));
        for (node, place) in nodes.into_iter().zip(0_u32..) {
            if let Some(held) = self.held.get_mut(&node) {
                held.push_tries = Some(0);
                self.schedule(now, Duration::from_millis(10) * (place / PUSH_BURST), Timer::Push(node));
            }
        }
        self.mark_changed(now);
    }

    pub(super) fn push_again(&mut self, now: Instant, node: NodeId) {
        let Some(held) = self.held.get_mut(&node) else {
            return;
        };
        let Some(tries) = held.push_tries else {
            return;
        };
        let addr = held.addr;
        held.push_tries = (tries + 1 < PUSH_TRIES).then_some(tries + 1);
        self.send_record(addr, node);
        if tries + 1 < PUSH_TRIES {
            self.schedule(now, PUSH_DELAY * 2_u32.pow(tries), Timer::Push(node));
        }
    }

    pub(super) fn acknowledged(&mut self, now: Instant, node: NodeId, version: u32) {
        if version == self.record.version
            && let Some(held) = self.held.get_mut(&node)
        {
            held.push_tries = None;
        }
        self.notice_heard();
        if self.leaving == Some(false) && self.is_heard() {
            self.leave_now(now);
        }
    }

    pub(super) fn notice_heard(&mut self) {
        if !self.is_heard() && self.held.values().all(|held| held.push_tries.is_none()) {
            self.heard = self.record.version;
            self.effects.push_back(Effect::Heard);
        }
    }
}

impl Held {
    /// Whether its owner has a newer record than is known here.
    pub(super) fn is_behind(&self) -> bool {
        self.record.as_ref().is_none_or(|record| record.version < self.version_told)
    }

    /// The digest of the applications that are still to be pulled.
    fn missing_apps(&self) -> Option<AppsDigest> {
        match self.record.as_ref()?.apps {
            Apps::Digest(wanted) if self.apps.as_ref().is_none_or(|(digest, _)| *digest != wanted) => Some(wanted),
            _ => None,
        }
    }

    /// Until new applications are here, the last whole offer stands.
    fn refresh_offer(&mut self) {
        if let (None, Some((_, apps)), Some(record)) = (self.missing_apps(), &self.apps, &self.record) {
            self.offer = offer(apps, &record.states).or_else(|| self.offer.take());
        }
    }

    fn is_balancer(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.role == Role::Balancer)
    }
}
