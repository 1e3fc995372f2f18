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

use super::{Addition, Codec, Core, Dropped, Identity, MEMBERS_MAX, NodeId, Stamp, Timer};

/// A timer that is so late tells that this node did not run: paused, or its machine was starved. Well above what
/// a busy machine takes, well below anything that is judged.
const STALL: Duration = Duration::from_millis(50);

/// A verdict that may not be passed yet is looked at again after this.
pub(super) const RECHECK: Duration = Duration::from_millis(250);

/// So many others an accuser must have heard since its suspicion began, if there are as many. One who hears fewer
/// may be the sick one: it waits, and if that lasts it starts over.
pub(super) const WITNESSES: usize = 3;

/// Members that one member may have named and nobody has heard from. A newcomer to a large cluster learns a
/// thousand from its first contact, and hears from them within seconds.
pub(super) const UNPROVEN_MAX: usize = 1024;

/// Since when this node itself suspects whom, by incarnation.
#[derive(Debug, Default)]
pub(super) struct Accusations(HashMap<(NodeId, u16), Instant>);

impl Accusations {
    pub(super) fn begin(&mut self, now: Instant, node: NodeId, incarnation: u16) {
        self.0.entry((node, incarnation)).or_insert(now);
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
        self.accusations.0.values_mut().for_each(|since| *since += gap);
        for held in self.held.values_mut() {
            held.last_heard = held.last_heard.map(|heard| (heard + gap).min(now));
            if let Some(echo) = &mut held.echo {
                echo.make_up(gap);
            }
        }
        self.joining.in_since += gap;
    }

    /// Whether a suspicion has become a verdict. A member that answers in between has a new incarnation, and foca
    /// drops the old suspicion by itself.
    pub(super) fn may_convict(&mut self, accused: Identity, incarnation: u16) -> bool {
        let key = (accused.node, incarnation);
        let Some(since) = self.accusations.0.get(&key).copied() else {
            return true;
        };
        if !self.has(Addition::WitnessGuard) {
            return true;
        }
        let has_spoken =
            |node: NodeId| self.held.get(&node).and_then(|held| held.last_heard).is_some_and(|heard| heard >= since);
        let (mut others, mut spoke) = (0, 0);
        for id in self.foca.iter_members().map(foca::Member::id).filter(|id| **id != accused) {
            others += 1;
            spoke += usize::from(has_spoken(id.node));
        }
        let may = spoke >= others.min(WITNESSES);
        if may {
            self.accusations.0.remove(&key);
        }
        may
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
