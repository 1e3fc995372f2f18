//! One line in the log for each thing that a person would want to know of the cluster.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::member::{Member, MemberState, NodeId, Roster};
use crate::report::JoinReport;

/// Tells who comes and goes, and whether this node is alone, until `closed`.
pub(super) async fn tell(
    mut roster: watch::Receiver<Arc<Roster>>,
    mut join: watch::Receiver<Arc<JoinReport>>,
    closed: CancellationToken,
) {
    let mut known: HashMap<NodeId, MemberState> = HashMap::new();
    let mut was_alone = true;
    loop {
        let now = Arc::clone(&roster.borrow_and_update());
        tell_members(&now, &mut known);
        let is_alone = join.borrow_and_update().alone;
        if is_alone && !was_alone {
            warn!("alone: no other member is left; looking for seeds");
        }
        was_alone = is_alone;
        tokio::select! {
            changed = roster.changed() => if changed.is_err() { return },
            changed = join.changed() => if changed.is_err() { return },
            () = closed.cancelled() => return,
        }
    }
}

fn tell_members(roster: &Roster, known: &mut HashMap<NodeId, MemberState>) {
    known.retain(|id, _| roster.members.iter().any(|member| member.id == *id));
    // A member without a name has not told yet what it is; its line comes with its record.
    for member in roster.members.iter().filter(|member| member.id != roster.me && member.name.is_some()) {
        let last = known.insert(member.id, member.state);
        match (last, member.state) {
            (Some(last), now) if last == now => {}
            (None, MemberState::Alive) => info!("{} joined", describe(member)),
            (Some(_), MemberState::Alive) => info!("{} is back", describe(member)),
            (None, MemberState::Suspect) => info!("{} joined, and does not answer everybody", describe(member)),
            (Some(_), MemberState::Suspect) => info!("{} does not answer", describe(member)),
            (_, MemberState::Down) => warn!("{} is down", describe(member)),
            (_, MemberState::Left) => info!("{} left", describe(member)),
        }
    }
}

fn describe(member: &Member) -> String {
    let role = member.role.map_or("member", crate::member::Role::as_str);
    let name = member.name.as_ref().map_or("?", |name| name.as_str());
    format!("{role} {name} ({})", member.address)
}
