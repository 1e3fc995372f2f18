//! One line in the log for each thing that a person would want to know of the cluster.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::member::{Member, MemberState, NodeId, Reach, Role, Roster};
use crate::report::JoinReport;

/// Lines about one member within [`WINDOW`]. Who flaps on is told about once a window, as it is seen then.
const LINES_MAX: u8 = 6;
/// How long lines about one member are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// Tells who comes and goes, and whether this node is alone, until `closed`.
pub(super) async fn tell(
    mut roster: watch::Receiver<Arc<Roster>>,
    mut join: watch::Receiver<Arc<JoinReport>>,
    closed: CancellationToken,
) {
    let mut known = HashMap::new();
    let mut was_alone = true;
    loop {
        let now = Arc::clone(&roster.borrow_and_update());
        let (lines, due) = lines(&now, &mut known, Instant::now());
        for Line { is_bad, text } in lines {
            if is_bad { warn!("{text}") } else { info!("{text}") }
        }
        let is_alone = join.borrow_and_update().alone;
        if is_alone && !was_alone {
            warn!("alone: no other member is left; looking for seeds");
        }
        was_alone = is_alone;
        tokio::select! {
            changed = roster.changed() => if changed.is_err() { return },
            changed = join.changed() => if changed.is_err() { return },
            () = super::sleep_until(due) => {}
            () = closed.cancelled() => return,
        }
    }
}

/// How a member is seen, by the gossip and by this node's own probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    Alive,
    /// It did not answer somebody.
    Suspect,
    /// It does not answer this node.
    Silent,
    /// It is down, and answers this node.
    DownAndAnswers,
    Down,
    Left,
}

impl Sight {
    fn of(member: &Member) -> Self {
        match (member.state, member.reach) {
            (MemberState::Left, _) => Self::Left,
            (MemberState::Down, Reach::Answers) => Self::DownAndAnswers,
            (MemberState::Down, _) => Self::Down,
            (_, Reach::Silent) => Self::Silent,
            (MemberState::Suspect, _) => Self::Suspect,
            (MemberState::Alive, _) => Self::Alive,
        }
    }
}

/// What was told of a member.
struct Known {
    told: Sight,
    seen: Sight,
    /// Changes since the last line that was told.
    changes: u32,
    lines: u8,
    window: Instant,
}

#[derive(Debug, PartialEq, Eq)]
struct Line {
    is_bad: bool,
    text: String,
}

/// What is new, and when to look again although nothing changes: somebody flapped, and is told about later.
fn lines(roster: &Roster, known: &mut HashMap<NodeId, Known>, now: Instant) -> (Vec<Line>, Option<Instant>) {
    known.retain(|id, _| roster.members.iter().any(|member| member.id == *id));
    let (mut lines, mut due) = (Vec::new(), None);
    // A member without a name has not told yet what it is; its line comes with its record.
    for member in roster.members.iter().filter(|member| member.id != roster.me && member.name.is_some()) {
        let seen = Sight::of(member);
        let Some(known) = known.get_mut(&member.id) else {
            known.insert(member.id, Known { told: seen, seen, changes: 0, lines: 1, window: now });
            lines.push(line(member, None, seen));
            continue;
        };
        if std::mem::replace(&mut known.seen, seen) != seen {
            known.changes += 1;
        }
        if now.saturating_duration_since(known.window) >= WINDOW {
            (known.window, known.lines) = (now, 0);
        }
        if seen == known.told {
            continue;
        }
        if known.lines >= LINES_MAX {
            let later = known.window + WINDOW;
            due = Some(due.map_or(later, |due: Instant| due.min(later)));
            continue;
        }
        let mut line = line(member, Some(known.told), seen);
        if known.changes > 1 {
            line.text.push_str(&format!(" ({} changes since the last line about it)", known.changes));
        }
        lines.push(line);
        (known.told, known.changes, known.lines) = (seen, 0, known.lines + 1);
    }
    (lines, due)
}

fn line(member: &Member, last: Option<Sight>, now: Sight) -> Line {
    let what = match (last, now) {
        (None, Sight::Alive) => "joined",
        (Some(Sight::Silent), Sight::Alive) => "answers again",
        (Some(_), Sight::Alive) => "is back",
        (None, Sight::Suspect) => "joined, and does not answer everybody",
        (Some(Sight::Silent), Sight::Suspect) => "answers again, but not everybody",
        (Some(_), Sight::Suspect) => "does not answer everybody",
        (_, Sight::Silent) => "does not answer this node: suspected, nothing new is sent to it while others are there",
        (_, Sight::DownAndAnswers) => "is down in the gossip, but answers this node: it stays in use",
        (_, Sight::Down) => "is down",
        (_, Sight::Left) => "left",
    };
    let role = member.role.map_or("member", Role::as_str);
    let name = member.name.as_ref().map_or("?", |name| name.as_str());
    let is_bad = matches!(now, Sight::Silent | Sight::DownAndAnswers | Sight::Down);
    Line { is_bad, text: format!("{role} {name} ({}) {what}", member.address) }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::SystemTime;

    use super::*;

    fn roster(ways: &[(u64, MemberState, Reach)]) -> Roster {
        let member = |(id, state, reach): &(u64, MemberState, Reach)| Member {
            id: NodeId(*id),
            name: Some(format!("n{id}").parse().unwrap()),
            role: Some(Role::Backend),
            address: SocketAddr::from(([10, 0, 0, 1], 7377)),
            state: *state,
            since: SystemTime::UNIX_EPOCH,
            reach: *reach,
            offer: None,
        };
        Roster { cluster: "c".parse().unwrap(), me: NodeId(0), members: ways.iter().map(member).collect() }
    }

    fn texts(lines: &[Line]) -> Vec<String> {
        lines.iter().map(|line| line.text.replace("backend n1 (10.0.0.1:7377) ", "")).collect()
    }

    #[test]
    fn each_change_is_told_once_and_in_its_own_words() {
        use MemberState::{Alive, Down, Left, Suspect};
        use Reach::{Answers, Silent, Unknown};
        let (mut known, start) = (HashMap::new(), Instant::now());
        let mut told = Vec::new();
        let steps = [
            (Alive, Unknown),
            (Alive, Answers),
            (Suspect, Answers),
            (Suspect, Silent),
            (Alive, Answers),
            (Down, Answers),
            (Down, Answers),
            (Down, Silent),
            (Down, Unknown),
            (Alive, Unknown),
            (Alive, Silent),
            (Suspect, Answers),
            (Left, Silent),
        ];
        for (minute, (state, reach)) in (0..).zip(steps) {
            let (lines, due) = lines(&roster(&[(1, state, reach)]), &mut known, start + WINDOW * minute);
            told.extend(texts(&lines));
            assert_eq!(due, None);
        }
        let silent = "does not answer this node: suspected, nothing new is sent to it while others are there";
        assert_eq!(
            told,
            [
                "joined",
                "does not answer everybody",
                silent,
                "answers again",
                "is down in the gossip, but answers this node: it stays in use",
                "is down",
                "is back",
                silent,
                "answers again, but not everybody",
                "left",
            ]
        );
    }

    #[test]
    fn who_flaps_does_not_fill_the_log_and_the_last_line_is_true() {
        let (mut known, start) = (HashMap::new(), Instant::now());
        let mut told = Vec::new();
        let (mut due, mut last) = (None, Reach::Answers);
        // It changes each second for ten minutes; another one joins meanwhile.
        for second in 0..600_u32 {
            last = if second % 2 == 0 { Reach::Answers } else { Reach::Silent };
            let other = (2, MemberState::Alive, Reach::Answers);
            let members = [(1, MemberState::Alive, last), other];
            let members = if second < 300 { &members[..1] } else { &members };
            let (new, later) = lines(&roster(members), &mut known, start + Duration::from_secs(second.into()));
            due = later;
            told.extend(texts(&new));
        }
        assert!(told.iter().any(|text| text.contains("n2")), "another one is told about at once");
        assert!(told.len() <= 10 * usize::from(LINES_MAX) + 2, "{} lines: {told:?}", told.len());
        assert!(told.iter().any(|text| text.contains(" changes since the last line about it)")), "{told:?}");
        // It stays as it is: when the window is over, that is the last that was told.
        let members = roster(&[(1, MemberState::Alive, last), (2, MemberState::Alive, Reach::Answers)]);
        if let Some(due) = due {
            told.extend(texts(&lines(&members, &mut known, due).0));
        }
        let of_it = told.iter().rfind(|text| !text.contains("n2")).unwrap();
        assert!(of_it.starts_with("does not answer this node"), "{of_it}");
        assert_eq!(known[&NodeId(1)].told, Sight::Silent);
    }

    #[test]
    fn nobody_is_told_about_who_is_gone_or_has_no_name() {
        let (mut known, now) = (HashMap::new(), Instant::now());
        let mut nameless = roster(&[(1, MemberState::Alive, Reach::Unknown)]);
        nameless.members[0].name = None;
        assert_eq!(lines(&nameless, &mut known, now).0, []);
        assert_eq!(lines(&roster(&[(1, MemberState::Down, Reach::Unknown)]), &mut known, now).0.len(), 1);
        lines(&roster(&[]), &mut known, now);
        assert!(known.is_empty());
    }
}
