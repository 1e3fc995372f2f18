//! What is wrong in a configuration, and where.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a setting was given, or is missing.
///
/// Shown as `FILE:LINE:COLUMN: KEY` (TOML), `FILE: KEY` (JSON), `--flag` or `SCRIMP_VARIABLE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    origin: Origin,
    line_column: Option<(usize, usize)>,
    key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// As typed: `--bind`, `--app web:8080`.
    Flag(String),
    /// A variable of the environment.
    Variable(&'static str),
    File(Arc<Path>),
    /// Nowhere: no file was there to read.
    Nowhere,
}

impl Place {
    pub(super) fn flag(flag: impl Into<String>) -> Self {
        Self::new(Origin::Flag(flag.into()))
    }

    pub(super) fn variable(name: &'static str) -> Self {
        Self::new(Origin::Variable(name))
    }

    pub(super) fn file(file: &Arc<Path>) -> Self {
        Self::new(Origin::File(Arc::clone(file)))
    }

    pub(super) fn nowhere() -> Self {
        Self::new(Origin::Nowhere)
    }

    fn new(origin: Origin) -> Self {
        Self { origin, line_column: None, key: String::new() }
    }

    /// The same file at a line and column, both counted from 1.
    pub(super) fn at(&self, line: usize, column: usize) -> Self {
        Self { line_column: Some((line, column)), ..self.clone() }
    }

    /// The place of a key below this one.
    pub(super) fn key(&self, key: &str) -> Self {
        let dot = if self.key.is_empty() { "" } else { "." };
        // A key is the file's text: it may hold anything, a terminal's escapes included.
        let key = format!("{}{dot}{}", self.key, key.escape_debug());
        Self { key, ..self.clone() }
    }

    /// The place of an element of the list here, counted from 1.
    pub(super) fn element(&self, number: usize) -> Self {
        Self { key: format!("{}[{number}]", self.key), ..self.clone() }
    }

    /// The path of the key here: `lb.timeouts`.
    pub(super) fn key_path(&self) -> &str {
        &self.key
    }

    /// The folder from which relative paths at this place count: the file's, else the current one.
    pub(super) fn folder(&self) -> PathBuf {
        match &self.origin {
            Origin::File(file) => file.parent().map(Path::to_owned).unwrap_or_default(),
            _ => PathBuf::new(),
        }
    }

    /// The place without its key, for a message about a whole file.
    pub(super) fn whole(&self) -> Self {
        Self::new(self.origin.clone())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Flag(text) => f.write_str(text)?,
            Origin::Variable(name) => f.write_str(name)?,
            Origin::File(file) => file.display().fmt(f)?,
            Origin::Nowhere => return f.write_str(if self.key.is_empty() { "configuration" } else { &self.key }),
        }
        if let Some((line, column)) = self.line_column {
            write!(f, ":{line}:{column}")?;
        }
        if self.key.is_empty() { Ok(()) } else { write!(f, ": {}", self.key) }
    }
}

/// One thing that is wrong: where, what, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// What, and the remedy.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Everything that is wrong, in the order in which it was written: flags, environment, files. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.0 {
            writeln!(f, "{mistake}")?;
        }
        match self.0.len() {
            1 => f.write_str("1 mistake in the configuration"),
            many => write!(f, "{many} mistakes in the configuration"),
        }
    }
}

impl std::error::Error for Mistakes {}

/// Collects mistakes while everything is read to its end.
#[derive(Debug, Default)]
pub(super) struct Notes(RefCell<Vec<Mistake>>);

impl Notes {
    pub(super) fn add(&self, place: Place, message: impl Into<String>) {
        self.0.borrow_mut().push(Mistake { place, message: message.into() });
    }

    /// `value`, if nothing was wrong.
    pub(super) fn or<T>(self, value: T) -> Result<T, Mistakes> {
        let mut mistakes = self.0.into_inner();
        if mistakes.is_empty() {
            return Ok(value);
        }
        mistakes.sort();
        mistakes.dedup();
        Err(Mistakes(mistakes))
    }
}
