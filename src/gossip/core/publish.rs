//! What the rest of the program sees: the roster, and why this node is alone.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{Apps, Core, Effect, Held, Identity, MemberState, NodeId, Reach, Roster, Timer};
use crate::gossip::record::offer;
use crate::member::Member;

/// How long changes are gathered before a new roster is published.
const PUBLISH_DELAY: Duration = Duration::from_millis(20);

/// Members that went down or left are shown this long.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// What came from a node is kept this long, member or not.
const FRESH: Duration = Duration::from_secs(60);

impl Core {
    pub(super) fn mark_changed(&mut self, now: Instant) {
        if !self.publish_due {
            self.publish_due = true;
            self.schedule(now, PUBLISH_DELAY, Timer::Publish);
        }
    }

    pub(super) fn publish(&mut self, now: Instant) {
        self.publish_due = false;
        let roster = Arc::new(self.roster(now));
        if self.published.0.as_ref() != Some(&roster) {
            self.effects.push_back(Effect::Roster(Arc::clone(&roster)));
            self.published.0 = Some(roster);
        }
        let join = Arc::new(self.join_report());
        if self.published.1.as_ref() != Some(&join) {
            self.effects.push_back(Effect::Join(Arc::clone(&join)));
            self.published.1 = Some(join);
        }
    }

    fn roster(&mut self, now: Instant) -> Roster {
        let wall = self.wall(now);
        let me = *self.foca.identity();
        let mut seen: HashMap<NodeId, (Identity, MemberState)> = HashMap::new();
        for member in self.foca.iter_membership_state() {
            let id = *member.id();
            // A former identity of our own stands among the dead.
            if id.addr == me.addr || id.node == me.node {
                continue;
            }
            let state = match member.state() {
                foca::State::Alive => MemberState::Alive,
                foca::State::Suspect => MemberState::Suspect,
                foca::State::Down => MemberState::Down,
            };
            // One node at two addresses: it moved, and where it lives now counts.
            let best = seen.entry(id.node).or_insert((id, state));
            if (state.is_active(), id.epoch) > (best.1.is_active(), best.0.epoch) {
                *best = (id, state);
            }
        }
        let taken: HashSet<SocketAddr> = seen.values().map(|(id, _)| id.addr).collect();
        self.forget(now, &seen, &taken);
        let is_lost = |node: &NodeId, held: &Held| !seen.contains_key(node) && !taken.contains(&held.addr);
        let lost: Vec<NodeId> =
            self.held.iter().filter(|(node, held)| is_lost(node, held)).map(|(node, _)| *node).collect();
        let mut members = vec![self.myself()];
        for (node, (id, state)) in seen {
            self.hold(now, node, id.addr).addr = id.addr;
            members.extend(self.seen_as(wall, node, state));
        }
        for node in lost {
            members.extend(self.seen_as(wall, node, MemberState::Down));
        }
        members.sort_by(|a, b| (&a.name, a.address, a.id).cmp(&(&b.name, b.address, b.id)));
        Roster { cluster: self.settings.cluster.clone(), me: me.node, members }
    }

    /// A member in its new state; none for one that is not shown: long gone, or never more than a rumour.
    fn seen_as(&mut self, wall: SystemTime, node: NodeId, state: MemberState) -> Option<Member> {
        let held = self.held.get_mut(&node)?;
        let has_left = held.record.as_ref().is_some_and(|record| record.is_leaving);
        let state = if has_left { MemberState::Left } else { state };
        if !state.is_active() && (!held.was_member || held.record.is_none()) {
            return None;
        }
        held.was_member = true;
        if held.state.0 != state {
            held.state = (state, wall);
        }
        if !state.is_active() && held.is_past(wall) {
            held.echo = None;
            return None;
        }
        Some(held.member(node))
    }

    /// Drops what is known of nodes that are members no more. What was heard just now may be ahead of foca; and
    /// after a new start former members are remembered until somebody else has their address.
    fn forget(&mut self, now: Instant, seen: &HashMap<NodeId, (Identity, MemberState)>, taken: &HashSet<SocketAddr>) {
        let wall = self.wall(now);
        self.held.retain(|node, held| {
            let is_fresh = held.last_heard.is_some_and(|heard| now - heard < FRESH);
            let is_remembered = held.was_member && !taken.contains(&held.addr) && !held.is_past(wall);
            seen.contains_key(node) || is_fresh || is_remembered
        });
    }

    fn myself(&self) -> Member {
        let apps = match &self.record.apps {
            Apps::Inline(apps) => apps.as_slice(),
            Apps::Digest(_) => &[],
        };
        Member {
            id: self.settings.identity.node,
            name: Some(self.record.name.clone()),
            role: Some(self.record.role),
            address: self.foca.identity().addr,
            state: if self.record.is_leaving { MemberState::Left } else { MemberState::Alive },
            since: self.started.1,
            reach: Reach::Unknown,
            offer: offer(apps, &self.record.states),
        }
    }
}

impl Held {
    fn is_past(&self, wall: SystemTime) -> bool {
        wall.duration_since(self.state.1).is_ok_and(|age| age > REMEMBERED)
    }

    fn member(&self, node: NodeId) -> Member {
        let reach = self.echo.as_ref().map(|echo| echo.reach);
        // What a node offers counts once it has answered at its address: whoever has the key could name any.
        let offer = self.offer.clone().filter(|_| reach != Some(Reach::Unknown));
        Member {
            id: node,
            name: self.record.as_ref().map(|record| record.name.clone()),
            role: self.record.as_ref().map(|record| record.role),
            address: self.addr,
            state: self.state.0,
            since: self.state.1,
            reach: reach.unwrap_or_default(),
            offer,
        }
    }
}
