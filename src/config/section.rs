//! Reads one table of a configuration: takes the keys it knows, notes what is wrong, names what is left over.

use std::collections::BTreeMap;

use super::mistake::{Notes, Place};
use super::tree::{Entry, Node, Value, quote};

/// A table being read.
pub(super) struct Section<'n> {
    place: Place,
    entries: BTreeMap<String, Entry>,
    /// Every key that was asked for, with the place of its value if it was there.
    asked: BTreeMap<&'static str, Option<Place>>,
    /// Those whose value, or a part of it, was refused.
    wrong: Vec<&'static str>,
    notes: &'n Notes,
}

impl<'n> Section<'n> {
    /// A table; anything else is noted and counts as an empty one.
    pub(super) fn new(node: Node, notes: &'n Notes) -> Self {
        let entries = match node.value {
            Value::Table(entries) => entries,
            other => {
                let hint = if matches!(other, Value::List(_)) { ": write one table, not a list of them" } else { "" };
                notes.add(node.place.clone(), format!("expected a table, found {}{hint}", other.describe()));
                Vec::new()
            }
        };
        let entries = entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        Self { place: node.place, entries, asked: BTreeMap::new(), wrong: Vec::new(), notes }
    }

    /// Whether a key stands here that nobody took yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether a table stands here under `key`.
    pub(super) fn has_table(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|entry| matches!(entry.node.value, Value::Table(_)))
    }

    /// Whether a value was there when `key` was taken, right or wrong.
    pub(super) fn was_given(&self, key: &str) -> bool {
        self.asked.get(key).is_some_and(Option::is_some)
    }

    /// Whether the value of `key`, or a part of it, was there and was refused.
    pub(super) fn is_wrong(&self, key: &str) -> bool {
        self.wrong.contains(&key)
    }

    /// Whether a list with nothing in it stands here under `key`.
    pub(super) fn has_empty_list(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|entry| matches!(&entry.node.value, Value::List(list) if list.is_empty()))
    }

    /// Where the value of `key` stands; if it is not there, where it would be.
    pub(super) fn place(&self, key: &'static str) -> Place {
        match self.asked.get(key) {
            Some(Some(place)) => place.clone(),
            _ => self.place.key(key),
        }
    }

    /// Where the table itself stands.
    pub(super) fn own_place(&self) -> &Place {
        &self.place
    }

    /// The value of a key; none if it is missing, or wrong and noted.
    pub(super) fn take<T>(&mut self, key: &'static str, convert: impl FnOnce(&Node) -> Result<T, String>) -> Option<T> {
        let node = self.take_node(key)?;
        self.noted(key, &node, convert)
    }

    /// The value of a key, or `default` if it is missing; none only if it is wrong and noted.
    pub(super) fn take_or<T>(
        &mut self,
        key: &'static str,
        default: T,
        convert: impl FnOnce(&Node) -> Result<T, String>,
    ) -> Option<T> {
        if self.has(key) {
            return self.take(key, convert);
        }
        self.asked.insert(key, None);
        Some(default)
    }

    /// The same where a flag or the environment counts more. Both are judged.
    pub(super) fn take_unless<T>(
        &mut self,
        key: &'static str,
        over: Option<&Node>,
        convert: impl Fn(&Node) -> Result<T, String>,
    ) -> Option<T> {
        let mine = self.take(key, &convert);
        let Some(over) = over else { return mine };
        self.asked.insert(key, Some(over.place.clone()));
        self.noted(key, over, convert)
    }

    /// A value that must be there; `remedy` says what to write.
    pub(super) fn require<T>(
        &mut self,
        key: &'static str,
        remedy: &str,
        convert: impl FnOnce(&Node) -> Result<T, String>,
    ) -> Option<T> {
        if !self.has(key) {
            self.asked.insert(key, None);
            self.notes.add(self.place.clone(), format!("{key} is missing: {remedy}"));
        }
        self.take(key, convert)
    }

    /// A list, element by element, with each one's place; a single value counts as a list of one.
    pub(super) fn take_list<T>(
        &mut self,
        key: &'static str,
        convert: impl FnMut(&Node) -> Result<T, String>,
    ) -> Option<Vec<(Place, T)>> {
        self.take_list_unless(key, Vec::new(), convert)
    }

    /// The same where flags or the environment, if they give any, count instead of the whole list.
    pub(super) fn take_list_unless<T>(
        &mut self,
        key: &'static str,
        over: Vec<Node>,
        mut convert: impl FnMut(&Node) -> Result<T, String>,
    ) -> Option<Vec<(Place, T)>> {
        let mine = self.take_node(key).map(|node| match node.value {
            Value::List(list) => list,
            _ => vec![node],
        });
        let mut read = |nodes: Vec<Node>| -> Vec<(Place, T)> {
            let one = |node: Node| Some((node.place.clone(), self.noted(key, &node, &mut convert)?));
            nodes.into_iter().filter_map(one).collect()
        };
        let mine = mine.map(&mut read);
        if over.is_empty() { mine } else { Some(read(over)) }
    }

    /// A table below; empty if it is missing.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        let node = self.take_node(key).unwrap_or_else(|| Node::empty(self.place.key(key)));
        Section::new(node, self.notes)
    }

    /// A list of tables below (`[[key]]`).
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let Some(node) = self.take_node(key) else { return Vec::new() };
        match node.value {
            Value::List(list) => list.into_iter().map(|node| Section::new(node, self.notes)).collect(),
            other => {
                let (found, path) = (other.describe(), self.place.key(key).key_path().to_owned());
                self.notes.add(node.place, format!("expected a list of tables, found {found}: write [[{path}]]"));
                Vec::new()
            }
        }
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self) {
        let known: Vec<&str> = self.asked.keys().copied().collect();
        for entry in self.entries.into_values() {
            self.notes.add(entry.place, unknown(&entry.key, &known));
        }
    }

    /// The same table, whose further mistakes go to `notes`.
    pub(super) fn noting_to(self, notes: &'n Notes) -> Self {
        Self { notes, ..self }
    }

    pub(super) fn note(&self, place: Place, message: impl Into<String>) {
        self.notes.add(place, message);
    }

    fn take_node(&mut self, key: &'static str) -> Option<Node> {
        let node = self.entries.remove(key).map(|entry| entry.node);
        self.asked.insert(key, node.as_ref().map(|node| node.place.clone()));
        node
    }

    fn noted<T>(
        &mut self,
        key: &'static str,
        node: &Node,
        convert: impl FnOnce(&Node) -> Result<T, String>,
    ) -> Option<T> {
        match convert(node) {
            Ok(value) => Some(value),
            Err(message) => {
                self.notes.add(node.place.clone(), message);
                self.wrong.push(key);
                None
            }
        }
    }
}

/// The message for a word that is none of the `known`: the nearest of them, else all.
pub(super) fn unknown(word: &str, known: &[&str]) -> String {
    let word_in_kebab_case = word.to_ascii_lowercase().replace('_', "-");
    // One slip in three letters: more would guess.
    let near = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word_in_kebab_case, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).clamp(1, 3))
        .min();
    match near {
        Some((_, candidate)) => format!("{} is not known here: did you mean {candidate}?", quote(word)),
        None => format!("{} is not known here: use {}", quote(word), join(known)),
    }
}

fn join(words: &[&str]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}
