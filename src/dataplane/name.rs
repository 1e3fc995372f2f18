//! Names that cannot be wrong: every word that travels between machines is parsed once, here.
//!
//! A value of one of these types can be written into a log line, a template or a file name as it is:
//! none of them can hold white space, quotes, braces, semicolons, dollar signs or control bytes.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a word was refused: what was expected, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} is not valid: {expected}")]
pub struct NameError {
    what: &'static str,
    given: String,
    expected: &'static str,
}

impl NameError {
    fn new(what: &'static str, given: &str, expected: &'static str) -> Self {
        // A refused word may be as long as its sender likes; a message about it may not.
        let given = given.chars().take(80).collect();
        Self { what, given, expected }
    }
}

/// A string type whose only constructor is a check.
macro_rules! checked_word {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// The word as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(NameError::new($what, text, $expected))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(word: $name) -> Self {
                word.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

checked_word!(
    /// An application's name: `[a-z0-9-]{1,63}`.
    AppName,
    "application name",
    |text| (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
    "use 1 to 63 of a-z, 0-9 and -"
);

checked_word!(
    /// A node's name as people read it: `[A-Za-z0-9._-]{1,64}`, not starting with a dot.
    NodeName,
    "node name",
    |text| is_plain_word(text, 64),
    "use 1 to 64 of A-Z, a-z, 0-9, dot, _ and -, not starting with a dot"
);

checked_word!(
    /// A cluster's name: the same alphabet as a node's.
    ClusterName,
    "cluster name",
    |text| is_plain_word(text, 64),
    "use 1 to 64 of A-Z, a-z, 0-9, dot, _ and -, not starting with a dot"
);

checked_word!(
    /// The path prefix of a route: `/`, or `/` and plain segments. No `//`, no `.` or `..` segment,
    /// nothing percent-encoded, at most 256 bytes. Matches whole segments: see [`PathPrefix::covers`].
    PathPrefix,
    "path",
    is_path_prefix,
    "start with / and use A-Z, a-z, 0-9, _ - . ~ in its segments, without //, /./ or /../, at most 256 bytes"
);

impl PathPrefix {
    /// `/`, which covers every path.
    #[must_use]
    pub fn root() -> Self {
        Self("/".into())
    }

    /// Whether a request for `path` belongs to this prefix: equal to it, or below it at a segment's border,
    /// so that `/api` covers `/api` and `/api/x` but not `/apix`.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        let prefix = self.0.trim_end_matches('/');
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

fn is_plain_word(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_path_prefix(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('/') else {
        return false;
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    text.len() <= 256
        && (text == "/"
            || rest.split('/').all(|segment| {
                !segment.is_empty()
                    && segment != "."
                    && segment != ".."
                    && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'~'))
            }))
}

/// A host name of letters, digits and hyphens (RFC 1123), in lower case, at most 253 bytes.
/// International names come in their ASCII form (`xn--…`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hostname(Box<str>);

impl Hostname {
    /// The name as text, in lower case, without a final dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Hostname {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if name.len() <= 253 && name.split('.').all(is_label) {
            Ok(Self(name.into()))
        } else {
            Err(NameError::new(
                "host name",
                text,
                "use labels of letters, digits and -, joined by dots, at most 253 bytes (international names as xn--…)",
            ))
        }
    }
}

impl TryFrom<String> for Hostname {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Hostname> for String {
    fn from(name: Hostname) -> Self {
        name.0.into()
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The hosts that a route serves: one name, or every name below one (`*.example.com`, any depth, as nginx does).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DomainPattern {
    /// Exactly this host.
    Exact(Hostname),
    /// Every host that ends in a dot and this name.
    Wildcard(Hostname),
}

impl DomainPattern {
    /// Whether every host that `other` can match is matched by this pattern too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(mine), Self::Exact(theirs)) => mine == theirs,
            (Self::Exact(_), Self::Wildcard(_)) => false,
            (Self::Wildcard(mine), Self::Exact(theirs)) => is_below(theirs.as_str(), mine.as_str()),
            (Self::Wildcard(mine), Self::Wildcard(theirs)) => {
                mine == theirs || is_below(theirs.as_str(), mine.as_str())
            }
        }
    }
}

fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}

impl FromStr for DomainPattern {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix("*.") {
            Some(parent) => parent.parse().map(Self::Wildcard),
            None => text.parse().map(Self::Exact),
        }
        .map_err(|_| {
            NameError::new(
                "domain",
                text,
                "use a host name like www.example.com, or one wildcard in front: *.example.com",
            )
        })
    }
}

impl TryFrom<String> for DomainPattern {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<DomainPattern> for String {
    fn from(pattern: DomainPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Wildcard(parent) => f.pad(&format!("*.{parent}")),
        }
    }
}

/// A port that can be connected to: 1 to 65535.
pub type Port = NonZeroU16;

/// A backend's share of its pool, relative to the others: 1 to 1000, 100 by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Weight(NonZeroU16);

impl Weight {
    /// The weight as a number, 1 to 1000.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(const { NonZeroU16::new(100).unwrap() })
    }
}

impl TryFrom<u16> for Weight {
    type Error = NameError;
    fn try_from(number: u16) -> Result<Self, NameError> {
        NonZeroU16::new(number)
            .filter(|n| n.get() <= 1000)
            .map(Self)
            .ok_or_else(|| NameError::new("weight", &number.to_string(), "use a whole number from 1 to 1000"))
    }
}

impl From<Weight> for u16 {
    fn from(weight: Weight) -> Self {
        weight.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_could_break_a_configuration_are_refused() {
        for bad in ["", "a b", "a;b", "a{", "a}", "a\"", "a'", "a$b", "a\n", "a\0", "a\\", "../x", "Ü", "#"] {
            assert!(bad.parse::<AppName>().is_err(), "app {bad:?}");
            assert!(bad.parse::<NodeName>().is_err(), "node {bad:?}");
            assert!(bad.parse::<Hostname>().is_err(), "host {bad:?}");
            assert!(bad.parse::<DomainPattern>().is_err(), "domain {bad:?}");
            assert!(format!("/{bad}/x").parse::<PathPrefix>().is_err(), "path {bad:?}");
        }
    }

    #[test]
    fn host_names_follow_rfc_1123() {
        assert_eq!("WWW.Example.com.".parse::<Hostname>().unwrap().as_str(), "www.example.com");
        for bad in ["-a.com", "a-.com", "a..com", ".com", "a_b.com", &"a".repeat(64), &"a.".repeat(128)] {
            assert!(bad.parse::<Hostname>().is_err(), "{bad:?}");
        }
        assert!(format!("{}a", "a.".repeat(126)).parse::<Hostname>().is_ok());
    }

    #[test]
    fn a_wildcard_stands_in_front_only() {
        assert!("*.example.com".parse::<DomainPattern>().is_ok());
        for bad in ["*", "*.", "a.*.com", "**.com", "*.*.com", "*a.com"] {
            assert!(bad.parse::<DomainPattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pattern_covers_what_is_below_it() {
        let pattern = |text: &str| text.parse::<DomainPattern>().unwrap();
        assert!(pattern("*.example.com").covers(&pattern("a.b.example.com")));
        assert!(pattern("*.example.com").covers(&pattern("*.b.example.com")));
        assert!(!pattern("*.example.com").covers(&pattern("example.com")));
        assert!(!pattern("*.example.com").covers(&pattern("badexample.com")));
        assert!(!pattern("a.example.com").covers(&pattern("*.example.com")));
    }

    #[test]
    fn a_prefix_ends_at_a_segment() {
        let api: PathPrefix = "/api".parse().unwrap();
        assert!(api.covers("/api") && api.covers("/api/") && api.covers("/api/x"));
        assert!(!api.covers("/apix") && !api.covers("/"));
        assert!(PathPrefix::root().covers("/") && PathPrefix::root().covers("/x"));
        for bad in ["", "api", "//", "/a//b", "/../a", "/a/./b", "/a%2f", "/a b"] {
            assert!(bad.parse::<PathPrefix>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn weights_have_bounds() {
        assert!(Weight::try_from(0).is_err() && Weight::try_from(1001).is_err());
        assert_eq!(Weight::default().get(), 100);
    }
}
