//! What the views look like on a terminal: plain text, aligned, made for 80 to 120 columns.
//!
//! What does not fit is shortened with its number (`+3 more`) or wrapped, never cut off. Words that came from
//! elsewhere are cleaned of characters that would steer a terminal.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::SystemTime;

use super::view::{AppView, AppsView, KeyView, MemberView, MembersView, SeedStoreView, StatusView, Time};

/// Where lines are broken and lists shortened.
const WIDTH: usize = 100;

/// `scrimp status`.
#[must_use]
pub fn status(view: &StatusView, now: SystemTime) -> String {
    let node = &view.node;
    let mut text = format!("{}: {} of cluster {}, {}\n", node.name, node.role, view.cluster, view.state);
    let mut facts = Table::indented("  ");
    let address = node.address.as_deref().unwrap_or("not known yet");
    facts.row(["address", address]);
    facts.row(["id", &node.id]);
    facts.row(["version", &format!("{}, up for {}", view.version, span(view.uptime_seconds))]);
    facts.row(["members", &members_line(view)]);
    for (at, key) in view.keys.iter().enumerate() {
        facts.row([if at == 0 { "keys" } else { "" }, &key_line(key, at == 0, view.keys.len())]);
    }
    if view.seeds.is_empty() {
        facts.row(["seeds", "no store"]);
    }
    for (at, store) in view.seeds.iter().enumerate() {
        facts.row([if at == 0 { "seeds" } else { "" }, &store_line(store, now)]);
    }
    if let Some(routes) = view.routes {
        facts.row(["routes", &routes.to_string()]);
    }
    if let Some(listeners) = &view.listeners {
        let open = listeners.iter().filter(|port| port.error.is_none());
        let open: Vec<_> = open.map(|port| format!("{} {}", port.port, port.transport)).collect();
        facts.row(["ports", &shorten(&open, WIDTH - 15, "none open")]);
    }
    if let Some(generate) = &view.generate {
        let last = generate
            .last_ok
            .map_or_else(|| "not yet in use".to_owned(), |last| format!("in use, checked {}", ago(last, now)));
        facts.row(["generates", &format!("{}, {last}", generate.target)]);
    }
    for (at, app) in view.local_apps.iter().flatten().enumerate() {
        let label = if at == 0 { "apps" } else { "" };
        facts.row([label, &format!("{} on port {}, {}", app.name, app.port, app.state)]);
    }
    text.push_str(&facts.to_text(&[]));
    text.push_str(&problems(&view.problems));
    clean(&text)
}

/// `scrimp members`.
#[must_use]
pub fn members(view: &MembersView, now: SystemTime) -> String {
    let mut table = Table::default();
    table.row(["NODE", "ROLE", "ADDRESS", "STATE", "SINCE", "APPS"]);
    for member in &view.members {
        let unknown = || format!("({})", member.id);
        table.row([
            &member.name.clone().unwrap_or_else(unknown),
            member.role.as_deref().unwrap_or("unknown"),
            &member.address,
            &state(member),
            &ago(member.since, now),
            "",
        ]);
    }
    let room = WIDTH.saturating_sub(table.width()).max(24);
    for (row, member) in table.rows.iter_mut().skip(1).zip(&view.members) {
        row[5] = shorten(&member.apps, room, "-");
    }
    let text = if view.members.is_empty() { "no members\n".to_owned() } else { table.to_text(&[]) };
    clean(&(text + &keys_in_use(view)))
}

/// While more than one cluster key is in use: who seals with which.
fn keys_in_use(view: &MembersView) -> String {
    let mut users: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for member in &view.members {
        if let Some(key) = &member.key {
            users.entry(key).or_default().push(member.name.clone().unwrap_or_else(|| member.id.clone()));
        }
    }
    if users.len() < 2 {
        return String::new();
    }
    let line = |(key, names): (&str, Vec<String>)| format!("key {key}: {}\n", shorten(&names, WIDTH - 14, "-"));
    users.into_iter().map(line).collect()
}

fn key_line(key: &KeyView, is_first: bool, count: usize) -> String {
    let room = WIDTH - 60;
    let names = |names: &[String]| format!("{}: {}", names.len(), shorten(names, room, "-"));
    let mut line = match (is_first, key.missing_at.as_slice()) {
        (true, []) => format!("{} is in use", key.id),
        (true, some) => format!("{} is in use, missing at {}", key.id, names(some)),
        (false, []) if key.used_by.is_empty() => {
            format!("{} is accepted, everybody has it, nobody needs it: it may go, or be put first", key.id)
        }
        (false, some) if key.used_by.is_empty() => {
            format!("{} is accepted, nobody needs it, missing at {}", key.id, names(some))
        }
        (false, _) => format!("{} is accepted, needed by {}", key.id, names(&key.used_by)),
    };
    if count > 1 && !key.unheard.is_empty() {
        let _ = write!(line, "; not heard yet {}", names(&key.unheard));
    }
    line
}

/// What the gossip says, and where this node's own probes say otherwise.
fn state(member: &MemberView) -> String {
    match (member.state.as_str(), member.reach.as_str()) {
        (state @ ("alive" | "suspect"), reach @ "silent") | (state @ "down", reach @ "answers") => {
            format!("{state}, {reach}")
        }
        (state, _) => state.to_owned(),
    }
}

/// `scrimp apps`.
#[must_use]
pub fn apps(view: &AppsView) -> String {
    if view.apps.is_empty() {
        return "no applications\n".to_owned();
    }
    let texts: Vec<String> = view.apps.iter().map(app).collect();
    clean(&texts.join("\n"))
}

fn app(app: &AppView) -> String {
    let mut head = format!("{}: {} on port {}", app.name, app.protocol, app.listen);
    if matches!(app.protocol.as_str(), "http" | "https" | "h2c") {
        let room = WIDTH.saturating_sub(head.len() + 8 + app.path.len()).max(24);
        let _ = write!(head, " for {}", shorten(&app.domains, room, "any host"));
    }
    if app.path != "/" {
        let _ = write!(head, ", path {}", app.path);
    }
    head.push('\n');
    if app.backends.is_empty() {
        return head + "  no backend: those that offered it are gone\n";
    }
    let mut table = Table::indented("  ");
    table.row(["NODE", "ADDRESS", "STATE", "WEIGHT", "ACTIVE", "REQUESTS", "FAILURES"]);
    for backend in &app.backends {
        table.row([
            &backend.node,
            &backend.address,
            &backend.state,
            &backend.weight.to_string(),
            &backend.active.to_string(),
            &backend.requests.to_string(),
            &backend.failures.to_string(),
        ]);
    }
    head + &table.to_text(&[3, 4, 5, 6]) + &reasons(app)
}

/// Reasons are sentences: they stand below the table, each once, with the nodes that they are about.
fn reasons(app: &AppView) -> String {
    let mut text = String::new();
    let mut told: Vec<&str> = Vec::new();
    for reason in app.backends.iter().filter_map(|backend| backend.reason.as_deref()) {
        if told.contains(&reason) {
            continue;
        }
        told.push(reason);
        let nodes = app.backends.iter().filter(|backend| backend.reason.as_deref() == Some(reason));
        let nodes: Vec<_> = nodes.map(|backend| backend.node.clone()).collect();
        text.push_str(&wrap(&format!("{}: {reason}", shorten(&nodes, 40, "")), "  "));
    }
    text
}

fn members_line(view: &StatusView) -> String {
    let counts = &view.members;
    let mut text = format!("{}, {}", number(counts.balancers, "balancer"), number(counts.backends, "backend"));
    for (found, what) in [
        (counts.unknown, "not yet known"),
        (counts.suspect, "of them in doubt"),
        (counts.silent, "silent to this node"),
        (counts.down, "down"),
        (counts.left, "left"),
    ] {
        if found > 0 {
            let _ = write!(text, ", {found} {what}");
        }
    }
    text
}

fn store_line(store: &SeedStoreView, now: SystemTime) -> String {
    let last =
        store.last_ok.map_or_else(|| "has not answered yet".to_owned(), |last| format!("answered {}", ago(last, now)));
    let state = if store.error.is_some() { ", fails now" } else { "" };
    format!("{}, {}, {last}{state}", store.url, number(store.seeds, "seed"))
}

fn problems(problems: &[String]) -> String {
    if problems.is_empty() {
        return "no problems\n".to_owned();
    }
    let lines: String = problems.iter().map(|problem| wrap(problem, "  ")).collect();
    format!("{}:\n{lines}", number(problems.len(), "problem"))
}

fn number(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// As many of `words` as there is room for, at least one, and how many more there are.
fn shorten(words: &[String], room: usize, none: &str) -> String {
    let Some((first, rest)) = words.split_first() else {
        return none.to_owned();
    };
    let mut text = first.clone();
    for (at, word) in rest.iter().enumerate() {
        let left = rest.len() - at - 1;
        let more = if left > 0 { format!(" +{left} more").len() } else { 0 };
        if text.len() + 2 + word.len() + more > room {
            let _ = write!(text, " +{} more", left + 1);
            return text;
        }
        text.push_str(", ");
        text.push_str(word);
    }
    text
}

/// A sentence, broken at spaces, its first line marked and the others indented below it.
fn wrap(sentence: &str, indent: &str) -> String {
    let mut lines = vec![format!("{indent}-")];
    for word in sentence.split_whitespace() {
        let line = lines.last_mut().map_or(0, |line| line.chars().count());
        if line + 1 + word.chars().count() > WIDTH && line > indent.len() + 1 {
            lines.push(format!("{indent} "));
        }
        if let Some(line) = lines.last_mut() {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}

/// How long ago, in at most two units.
fn ago(time: Time, now: SystemTime) -> String {
    match now.duration_since(time.get()).unwrap_or_default().as_secs() {
        0 => "just now".to_owned(),
        seconds => span(seconds) + " ago",
    }
}

pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: u64, big_unit, small: u64, small_unit| match small {
        0 => format!("{big} {big_unit}"),
        small => format!("{big} {big_unit} {small} {small_unit}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => two(minutes, "min", seconds % 60, "s"),
        3600..86_400 => two(hours, "h", minutes % 60, "min"),
        _ => two(days, "d", hours % 24, "h"),
    }
}

/// Takes away what would steer a terminal or turn the direction of text: control characters but for line ends,
/// and Unicode's marks for direction.
fn clean(text: &str) -> String {
    let steers = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if steers(c) { '?' } else { c }).collect()
}

/// Columns two spaces apart.
#[derive(Default)]
struct Table {
    indent: &'static str,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn indented(indent: &'static str) -> Self {
        Self { indent, rows: Vec::new() }
    }

    fn row<const N: usize>(&mut self, cells: [&str; N]) {
        // A line end inside a cell would be a forged row.
        self.rows.push(cells.into_iter().map(|cell| cell.replace('\n', " ")).collect());
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |at: usize| self.rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
        (0..columns).map(|at| width(at).unwrap_or(0)).collect()
    }

    fn width(&self) -> usize {
        self.widths().iter().map(|width| width + 2).sum()
    }

    /// `right` names the columns of numbers.
    fn to_text(&self, right: &[usize]) -> String {
        let widths = self.widths();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = self.indent.to_owned();
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if at == 0 { "" } else { "  " };
                let _ = match right.contains(&at) {
                    true => write!(line, "{gap}{cell:>width$}"),
                    false => write!(line, "{gap}{cell:<width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::super::view::BackendView;
    use super::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn member(name: &str, apps: usize) -> MemberView {
        MemberView {
            id: "00000000000000aa".into(),
            name: Some(name.into()),
            role: Some("backend".into()),
            address: "10.0.0.2:7377".into(),
            state: "alive".into(),
            reach: "answers".into(),
            since: (now() - Duration::from_secs(7500)).into(),
            key: None,
            apps: (0..apps).map(|i| format!("app-{i}")).collect(),
        }
    }

    fn backend(node: &str, reason: Option<&str>) -> BackendView {
        BackendView {
            node: node.into(),
            address: "10.0.0.2:8080".into(),
            state: "ready".into(),
            reason: reason.map(Into::into),
            weight: 100,
            policy: None,
            active: 3,
            requests: 12_034,
            failures: 2,
        }
    }

    #[test]
    fn members_are_aligned_and_long_lists_shortened() {
        let seen = |name: &str, state: &str, reach: &str| MemberView {
            state: state.into(),
            reach: reach.into(),
            ..member(name, 0)
        };
        let mut view = MembersView { cluster: "default".into(), members: Vec::new() };
        view.members = vec![seen("a", "suspect", "silent"), seen("b", "down", "answers"), seen("c", "down", "silent")];
        let expected = "\
NODE  ROLE     ADDRESS        STATE            SINCE          APPS
a     backend  10.0.0.2:7377  suspect, silent  2 h 5 min ago  -
b     backend  10.0.0.2:7377  down, answers    2 h 5 min ago  -
c     backend  10.0.0.2:7377  down             2 h 5 min ago  -
";
        assert_eq!(members(&view, now()), expected);
        view.members = vec![member("web-1", 2), member("web-10", 50)];
        let text = members(&view, now());
        let expected = "\
NODE    ROLE     ADDRESS        STATE  SINCE          APPS
web-1   backend  10.0.0.2:7377  alive  2 h 5 min ago  app-0, app-1
web-10  backend  10.0.0.2:7377  alive  2 h 5 min ago  app-0, app-1, app-2, app-3 +46 more
";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_application_shows_its_backends_and_each_reason_once() {
        let reason = Some("another member did not hear from its node; it still gets requests");
        let view = AppsView {
            apps: vec![AppView {
                name: "web".into(),
                protocol: "http".into(),
                listen: 80,
                domains: (0..30).map(|i| format!("d{i}.example.com")).collect(),
                path: "/api".into(),
                backends: vec![backend("a", reason), backend("b", None), backend("c", reason)],
            }],
        };
        let expected = "\
web: http on port 80 for d0.example.com, d1.example.com, d2.example.com +27 more, path /api
  NODE  ADDRESS        STATE  WEIGHT  ACTIVE  REQUESTS  FAILURES
  a     10.0.0.2:8080  ready     100       3     12034         2
  b     10.0.0.2:8080  ready     100       3     12034         2
  c     10.0.0.2:8080  ready     100       3     12034         2
  - a, c: another member did not hear from its node; it still gets requests
";
        assert_eq!(apps(&view), expected);
    }

    #[test]
    fn words_from_elsewhere_cannot_steer_the_terminal_or_forge_a_row() {
        let mut evil = member("web-1", 0);
        evil.state = "\u{1b}[2J\u{202e}x\ny".into();
        let text = members(&MembersView { cluster: "c".into(), members: vec![evil] }, now());
        assert!(text.contains("?[2J?x y"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn spans_have_at_most_two_units() {
        let of = |seconds| span(seconds);
        assert_eq!([of(0), of(59), of(60), of(61)], ["0 s", "59 s", "1 min", "1 min 1 s"]);
        assert_eq!([of(3600), of(7500), of(90_000)], ["1 h", "2 h 5 min", "1 d 1 h"]);
        assert_eq!(ago((now() + Duration::from_secs(5)).into(), now()), "just now");
    }

    #[test]
    fn sentences_are_wrapped_and_nothing_is_lost() {
        let sentence = "word ".repeat(60);
        let text = wrap(&sentence, "  ");
        assert!(text.lines().count() > 2 && text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert_eq!(text.matches("word").count(), 60);
    }

    #[test]
    fn shortening_keeps_count() {
        let words: Vec<String> = (0..5).map(|i| format!("w{i}")).collect();
        assert_eq!(shorten(&words, 100, "-"), "w0, w1, w2, w3, w4");
        assert_eq!(shorten(&words, 17, "-"), "w0, w1 +3 more");
        assert_eq!(shorten(&words, 1, "-"), "w0 +4 more");
        assert_eq!(shorten(&[], 1, "-"), "-");
    }
}
