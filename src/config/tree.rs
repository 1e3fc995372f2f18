//! TOML and JSON as one tree whose every value knows its place.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use toml::de::{DeTable, DeValue};

use super::mistake::{Notes, Place};

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Boolean(bool),
    Integer(i64),
    List(Vec<Node>),
    /// Of a kind that no setting takes: the kind, in words.
    Other(&'static str),
    Table(Vec<Entry>),
    Text(String),
    /// From a flag or the environment, where numbers are text too.
    Word(String),
}

/// One key of a table.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Where the key stands; the value has its own place.
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Node {
    pub(super) fn word(place: Place, word: impl Into<String>) -> Self {
        Self { place, value: Value::Word(word.into()) }
    }

    pub(super) fn empty(place: Place) -> Self {
        Self { place, value: Value::Table(Vec::new()) }
    }
}

impl Value {
    /// What this is, in words for a person: `the number 10`.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Boolean(is) => is.to_string(),
            Self::Integer(number) => format!("the number {number}"),
            Self::List(_) => "a list".to_owned(),
            Self::Other(kind) => (*kind).to_owned(),
            Self::Table(_) => "a table".to_owned(),
            Self::Text(text) | Self::Word(text) => quote(text),
        }
    }
}

/// A text of the user's in a message: quoted, escaped, not longer than a line.
pub(super) fn quote(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    match text.char_indices().nth(CHARS_MAX) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

/// What came of reading a file's text.
pub(super) struct Parsed {
    /// What could be understood.
    pub(super) root: Node,
    /// Whether that is all of it. If not, nothing can be said about what is missing.
    pub(super) is_whole: bool,
}

impl Parsed {
    /// What was read, or nothing if it was read in part only: a part has mistakes that the file has not.
    pub(super) fn whole(self) -> Node {
        if self.is_whole { self.root } else { Node::empty(self.root.place) }
    }

    /// Whether nothing at all could be understood.
    pub(super) fn is_lost(&self) -> bool {
        !self.is_whole && matches!(&self.root.value, Value::Table(entries) if entries.is_empty())
    }
}

/// Reads the text of `file` as JSON if its name ends in `.json`, else as TOML. Syntax errors become notes.
pub(super) fn parse(file: &Arc<Path>, text: &str, notes: &Notes) -> Parsed {
    let place = Place::file(file);
    if file.extension().is_some_and(|extension| extension == "json") {
        parse_json(&place, text, notes)
    } else {
        parse_toml(&place, text, notes)
    }
}

fn parse_toml(file: &Place, text: &str, notes: &Notes) -> Parsed {
    let lines = Lines::new(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut last_line = 0;
    for error in &errors {
        let (line, column) = lines.position(error.span().map_or(text.len(), |span| span.start));
        // What follows on the same line is mostly the parser's confusion about the first.
        if line != last_line {
            notes.add(file.at(line, column), format!("this is not TOML: {}", error.message().replace('\n', ", ")));
        }
        last_line = line;
    }
    let root = Node { place: file.clone(), value: lines.table(root.get_ref(), file) };
    Parsed { root, is_whole: errors.is_empty() }
}

/// Turns byte offsets into places.
struct Lines<'t> {
    text: &'t str,
    /// The offset at which each line starts.
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn new(text: &'t str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|at| self.starts.get(at)).copied().unwrap_or(0);
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count());
        (line, column + 1)
    }

    /// `key_place` with the line and column of `offset`.
    fn place(&self, key_place: &Place, offset: usize) -> Place {
        let (line, column) = self.position(offset);
        key_place.at(line, column)
    }

    // Recursion is bounded: toml's parser refuses more than 80 levels.
    fn node(&self, value: &toml::Spanned<DeValue<'_>>, key_place: &Place) -> Node {
        let place = self.place(key_place, value.span().start);
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix())
                .map_or(Value::Other("a number that is too large"), Value::Integer),
            DeValue::Float(_) => Value::Other("a number with a fraction"),
            DeValue::Boolean(is) => Value::Boolean(*is),
            DeValue::Datetime(_) => Value::Other("a date"),
            DeValue::Array(array) => Value::List(
                array.iter().enumerate().map(|(at, element)| self.node(element, &key_place.element(at + 1))).collect(),
            ),
            DeValue::Table(table) => self.table(table, key_place),
        };
        Node { place, value }
    }

    fn table(&self, table: &DeTable<'_>, key_place: &Place) -> Value {
        let entry = |(key, value): (&toml::Spanned<_>, _)| {
            let name: &std::borrow::Cow<'_, str> = key.get_ref();
            let below = key_place.key(name);
            Entry { key: name.to_string(), place: self.place(&below, key.span().start), node: self.node(value, &below) }
        };
        Value::Table(table.iter().map(entry).collect())
    }
}

fn parse_json(file: &Place, text: &str, notes: &Notes) -> Parsed {
    match serde_json::from_str::<Json>(text) {
        Ok(json) => Parsed { root: json.node(file.clone()), is_whole: true },
        Err(error) => {
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or(&message);
            notes.add(file.at(error.line(), error.column().max(1)), format!("this is not JSON: {message}"));
            Parsed { root: Node::empty(file.clone()), is_whole: false }
        }
    }
}

/// JSON without places, in the order of the file. Unlike `serde_json::Value` it refuses a key given twice.
enum Json {
    Leaf(Value),
    List(Vec<Self>),
    Table(Vec<(String, Self)>),
}

impl Json {
    // Recursion is bounded: serde_json refuses more than 128 levels.
    fn node(self, place: Place) -> Node {
        let value = match self {
            Self::Leaf(value) => value,
            Self::List(list) => Value::List(
                list.into_iter().enumerate().map(|(at, element)| element.node(place.element(at + 1))).collect(),
            ),
            Self::Table(table) => Value::Table(
                table
                    .into_iter()
                    .map(|(key, value)| {
                        let place = place.key(&key);
                        Entry { key, place: place.clone(), node: value.node(place) }
                    })
                    .collect(),
            ),
        };
        Node { place, value }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, is: bool) -> Result<Json, E> {
        Ok(Json::Leaf(Value::Boolean(is)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Leaf(Value::Integer(number)))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        let too_large = Value::Other("a number that is too large");
        Ok(Json::Leaf(i64::try_from(number).map_or(too_large, Value::Integer)))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Leaf(Value::Other("a number with a fraction")))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Leaf(Value::Text(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Leaf(Value::Other("null")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = access.next_element()? {
            list.push(element);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut table = std::collections::BTreeMap::new();
        while let Some(key) = access.next_key::<String>()? {
            if table.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {} is given twice", quote(&key))));
            }
            table.insert(key, access.next_value()?);
        }
        Ok(Json::Table(table.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(file: &str, text: &str) -> Vec<String> {
        fn walk(node: &Node, found: &mut Vec<String>) {
            found.push(format!("{} = {}", node.place, node.value.describe()));
            match &node.value {
                Value::List(list) => list.iter().for_each(|node| walk(node, found)),
                Value::Table(table) => table.iter().for_each(|entry| walk(&entry.node, found)),
                _ => {}
            }
        }
        let notes = Notes::default();
        let parsed = parse(&Arc::from(Path::new(file)), text, &notes);
        let mut found = Vec::new();
        walk(&parsed.root, &mut found);
        if let Err(mistakes) = notes.or(()) {
            found.extend(mistakes.0.iter().map(ToString::to_string));
        }
        found.retain(|line| !line.ends_with("a table"));
        found
    }

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "# ü\n[lb.timeouts]\n\"ü\" = 1\nheader = \"10s\" \n[[app]]\nport=0x1F\ndomains = [ \"a\",\n \"b\" ]";
        assert_eq!(
            places("s.toml", text),
            [
                "s.toml:5:1: app = a list",
                "s.toml:7:11: app[1].domains = a list",
                "s.toml:7:13: app[1].domains[1] = \"a\"",
                "s.toml:8:2: app[1].domains[2] = \"b\"",
                "s.toml:6:6: app[1].port = the number 31",
                "s.toml:4:10: lb.timeouts.header = \"10s\"",
                "s.toml:3:7: lb.timeouts.ü = the number 1",
            ]
        );
    }

    #[test]
    fn json_is_the_same_with_keys_for_places() {
        assert_eq!(
            places("s.json", r#"{"lb": {"workers": 2, "bind": ["::"]}, "x": null, "y": 1.5}"#),
            [
                "s.json: lb.bind = a list",
                "s.json: lb.bind[1] = \"::\"",
                "s.json: lb.workers = the number 2",
                "s.json: x = null",
                "s.json: y = a number with a fraction",
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_says_where() {
        let one = |file: &str, text: &str| places(file, text).pop().unwrap_or_default();
        assert!(one("s.toml", "[lb]\nbind = [\"::\"\nworkers = 2").starts_with("s.toml:"));
        assert!(one("s.toml", "a = 1\na = 2").starts_with("s.toml:2:1: this is not TOML"));
        assert!(one("s.json", "{\n \"a\": 1,\n}").starts_with("s.json:3:1: this is not JSON: trailing comma"));
        assert!(one("s.json", "{\"a\": 1, \"a\": 2}").contains("\"a\" is given twice"));
        assert!(!places("s.toml", &"[".repeat(100_000)).is_empty());
        assert!(!places("s.json", &"[".repeat(100_000)).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,80}", toml in r#"([\[\]{}="'.,#a-c0-9 \n\\:ü]|\[a\]\n|a = ){0,40}"#) {
            places("s.toml", &text);
            places("s.toml", &toml);
            places("s.json", &text);
            places("s.json", &toml);
        }
    }
}
