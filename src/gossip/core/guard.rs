//! Against wrong verdicts: nobody is convicted by a node that was paused, starved or deaf, and nobody may claim
//! more than a few.
//!
//! Lifeguard (arXiv:1707.00788) found that most of SWIM's false positives come from the accuser being the sick
//! one. Here an accuser first looks at itself: did it run, and did it hear the others, while the accused was silent?

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Buf as _;
use foca::Codec as _;

use super::{Addition, Codec, Core, Dropped, Identity, MEMBERS_MAX, Message, NodeId, Stamp, Timer};

/// A timer that is so late tells that this node did not run: paused, or its machine was starved. Well above what
/// a busy machine takes, well below anything that is judged.
const STALL: Duration = Duration::from_millis(50);

/// So long a suspect may answer before it is called down.
pub(super) const SUSPICION: Duration = Duration::from_secs(2);

/// A verdict that may not be passed yet is looked at again after this.
const RECHECK: Duration = Duration::from_millis(250);

/// So many others an accuser must have heard since its suspicion began, if there are as many. One who hears fewer
/// may be the sick one: it waits, and if that lasts it starts over.
pub(super) const WITNESSES: usize = 3;

/// Members that one member may have named and nobody has heard from. A newcomer to a large cluster learns a
/// thousand from its first contact, and hears from them within seconds.
pub(super) const UNPROVEN_MAX: usize = 1024;

/// Whom this node itself suspects, by incarnation.
#[derive(Debug, Default)]
pub(super) struct Accusations(HashMap<(NodeId, u16), Accusation>);

#[derive(Debug, Clone, Copy)]
struct Accusation {
    since: Instant,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    First,
    /// There were too few witnesses when it was due.
    HeldBack,
    /// The accused was asked.
    Asked,
}

impl Accusations {
    pub(super) fn begin(&mut self, now: Instant, node: NodeId, incarnation: u16) {
        self.0.entry((node, incarnation)).or_insert(Accusation { since: now, stage: Stage::First });
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Members that a packet names and that nobody named before.
pub(super) type Claims = Vec<(NodeId, SocketAddr)>;

impl Core {
    /// If this node did not run for a while, everybody else gets that while on top: the answers may lie in the
    /// socket. foca alone would fire both halves of a probe back to back and suspect whoever was being asked.
    pub(super) fn make_up_for_a_stall(&mut self, now: Instant) {
        let last_turn = std::mem::replace(&mut self.last_turn, now);
        let gap = self.next_deadline().map_or(Duration::ZERO, |deadline| now - deadline.max(last_turn));
        if gap < STALL || !self.has(Addition::StallGuard) {
            return;
        }
        let timers: BinaryHeap<_> = std::mem::take(&mut self.timers)
            .into_iter()
            .map(|Reverse((deadline, number, slot))| {
                Reverse((if slot.0.is_judging() { deadline + gap } else { deadline }, number, slot))
            })
            .collect();
        self.timers = timers;
        self.accusations.0.values_mut().for_each(|accusation| accusation.since += gap);
        for held in self.held.values_mut() {
            for last in [&mut held.last_heard, &mut held.last_answer] {
                *last = last.map(|last| (last + gap).min(now));
            }
            if let Some(echo) = &mut held.echo {
                echo.make_up(gap);
            }
        }
        self.joining.in_since += gap;
    }

    /// How long a suspicion that is due still waits to become a verdict; none: it is one, or foca drops it, since the
    /// suspect has answered by a new incarnation. But it may have answered everybody else while this node was cut off:
    /// whoever was suspected without witnesses, or was heard since, is asked first, and is left alone for as long as it
    /// answers. One that is deaf speaks, but does not answer.
    pub(super) fn wait_for_verdict(&mut self, now: Instant, accused: Identity, incarnation: u16) -> Option<Duration> {
        let key = (accused.node, incarnation);
        let Accusation { since, stage } = *self.accusations.0.get(&key).filter(|_| self.has(Addition::WitnessGuard))?;
        let has_spoken =
            |node: NodeId| self.held.get(&node).and_then(|held| held.last_heard).is_some_and(|heard| heard >= since);
        let (mut is_suspect, mut others, mut spoke) = (false, 0, 0);
        for member in self.foca.iter_members() {
            if *member.id() == accused {
                is_suspect = member.state() == foca::State::Suspect && member.incarnation() == incarnation;
            } else {
                others += 1;
                spoke += usize::from(has_spoken(member.id().node));
            }
        }
        let has_answered =
            || self.held.get(&accused.node).and_then(|held| held.last_answer).is_some_and(|answer| answer >= since);
        let (next, wait) = match stage {
            // It has answered everybody.
            _ if !is_suspect => return self.decided(key),
            _ if spoke < others.min(WITNESSES) => (Accusation { since, stage: Stage::HeldBack }, RECHECK),
            Stage::First if !has_spoken(accused.node) => return self.decided(key),
            Stage::Asked if now < since + SUSPICION => (Accusation { since, stage }, RECHECK),
            Stage::Asked if !has_answered() => return self.decided(key),
            Stage::First | Stage::HeldBack | Stage::Asked => (Accusation { since: now, stage: Stage::Asked }, RECHECK),
        };
        // Again and again: a question may be lost.
        if next.stage == Stage::Asked && !has_answered() {
            self.send(accused.addr, accused.node, Message::Echo(0));
        }
        self.accusations.0.insert(key, next);
        Some(wait)
    }

    fn decided(&mut self, accusation: (NodeId, u16)) -> Option<Duration> {
        self.accusations.0.remove(&accusation);
        None
    }

    /// Reads which members a packet names that are new, and refuses it if its sender names too many.
    pub(super) fn check_claims(&self, stamp: &Stamp, mut updates: &[u8]) -> Result<Claims, Dropped> {
        let me = self.foca.identity();
        let mut claims = Claims::new();
        // A length, then members; foca itself says what else is wrong with it.
        for _ in 0..updates.try_get_u16().unwrap_or(0) {
            let Ok(member) = Codec.decode_member(&mut updates) else {
                return Err(Dropped::Invalid);
            };
            let id = member.id();
            if id.node != me.node && id.addr != me.addr && !self.held.contains_key(&id.node) {
                claims.push((id.node, id.addr));
            }
        }
        let is_new = !self.held.contains_key(&stamp.node);
        if claims.is_empty() && !is_new {
            return Ok(claims);
        }
        let known = self.foca.iter_membership_state().len();
        let unproven = self.held.values().filter(|held| held.introducer == Some(stamp.node)).count();
        let fits = known + claims.len() + usize::from(is_new) <= MEMBERS_MAX && unproven + claims.len() <= UNPROVEN_MAX;
        if fits { Ok(claims) } else { Err(Dropped::Excess) }
    }

    /// Notes who named whom first.
    pub(super) fn remember_claims(&mut self, now: Instant, stamp: &Stamp, claims: &Claims) {
        for (node, addr) in claims {
            let held = self.hold(now, *node, *addr);
            if held.last_heard.is_none() && *node != stamp.node {
                held.introducer = Some(stamp.node);
            }
        }
    }
}

impl Timer {
    /// Whether it passes a judgement on another node.
    fn is_judging(&self) -> bool {
        use foca::Timer::{ChangeSuspectToDown, ProbeRandomMember, SendIndirectProbe};
        matches!(
            self,
            Self::Echo(_) | Self::Foca(ProbeRandomMember(_) | SendIndirectProbe { .. } | ChangeSuspectToDown { .. })
        )
    }
}
