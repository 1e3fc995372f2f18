//! From a value as written to a value with a meaning. Every refusal says what was expected and what was found.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::name::Port;

use super::section::unknown;
use super::tree::{Node, Value, quote};

/// A text; `expected` completes "expected …" if it is something else.
pub(super) fn text<'n>(node: &'n Node, expected: &str) -> Result<&'n str, String> {
    match &node.value {
        Value::Text(text) | Value::Word(text) => Ok(text),
        other => Err(format!("expected {expected}, found {}", other.describe())),
    }
}

/// A text that a type parses itself, with an error that is fit for a person.
pub(super) fn word<T: FromStr<Err: std::fmt::Display>>(node: &Node) -> Result<T, String> {
    text(node, "a text in quotes")?.parse().map_err(|error: T::Err| error.to_string())
}

/// One of a few words.
pub(super) fn choice<T: Copy>(node: &Node, choices: &[(&str, T)]) -> Result<T, String> {
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let given = text(node, &format!("one of {}", words.join(", ")))?;
    let chosen = choices.iter().find(|(word, _)| *word == given);
    chosen.map(|(_, meaning)| *meaning).ok_or_else(|| unknown(given, &words))
}

/// Yes or no.
pub(super) fn boolean(node: &Node) -> Result<bool, String> {
    match &node.value {
        Value::Boolean(is) => Ok(*is),
        other => Err(format!("expected true or false, found {}", other.describe())),
    }
}

/// A whole number.
pub(super) fn integer(node: &Node, range: RangeInclusive<i64>) -> Result<i64, String> {
    let number = match &node.value {
        Value::Integer(number) => Some(*number),
        Value::Word(text) => text.parse().ok(),
        _ => None,
    };
    number.filter(|number| range.contains(number)).ok_or_else(|| {
        format!("expected a whole number from {} to {}, found {}", range.start(), range.end(), node.value.describe())
    })
}

/// A port; its digits may stand in quotes.
pub(super) fn port(node: &Node) -> Result<Port, String> {
    let number = match &node.value {
        Value::Integer(number) => u16::try_from(*number).ok(),
        Value::Text(text) | Value::Word(text) => text.parse().ok(),
        _ => None,
    };
    number
        .and_then(Port::new)
        .ok_or_else(|| format!("expected a port from 1 to 65535, found {}", node.value.describe()))
}

/// An IP address without a port.
pub(super) fn ip(node: &Node) -> Result<IpAddr, String> {
    const EXPECTED: &str = "an IP address without port, like 127.0.0.1";
    let given = text(node, EXPECTED)?;
    given.parse().map_err(|_| format!("expected {EXPECTED}, found {}", quote(given)))
}

/// A time span with its unit.
pub(super) fn duration(node: &Node, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    const EXPECTED: &str = "a duration with its unit, like \"10s\" or \"500ms\"";
    let given = text(node, EXPECTED)?;
    let span = humantime::parse_duration(given).map_err(|_| format!("expected {EXPECTED}, found {}", quote(given)))?;
    if range.contains(&span) {
        return Ok(span);
    }
    let [least, most] = [range.start(), range.end()].map(|bound| humantime::format_duration(*bound));
    Err(format!("expected a duration from {least} to {most}, found {}", quote(given)))
}

/// A number of bytes: `"64KiB"`, or bare.
pub(super) fn size(node: &Node, range: RangeInclusive<u64>) -> Result<u64, String> {
    let bytes = match &node.value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::Text(text) | Value::Word(text) => parse_size(text),
        _ => None,
    };
    bytes.filter(|bytes| range.contains(bytes)).ok_or_else(|| {
        let [least, most] = [range.start(), range.end()].map(|bytes| format_size(*bytes));
        let found = node.value.describe();
        format!("expected a size in B, KiB or MiB from \"{least}\" to \"{most}\", found {found}")
    })
}

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let unit = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (digits, factor) = unit.unwrap_or((text, 1));
    let digits = digits.trim_end();
    let is_plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|_| is_plain)?.checked_mul(factor)
}

fn format_size(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

/// A path. A relative one counts from the configuration file's folder, or, in a flag, from the current one.
pub(super) fn path(node: &Node) -> Result<PathBuf, String> {
    let given = text(node, "a path in quotes")?;
    if given.is_empty() || given.contains('\0') {
        return Err(format!("expected a path, found {}", quote(given)));
    }
    Ok(node.place.folder().join(given))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::mistake::Place;

    fn node(value: Value) -> Node {
        Node { place: Place::nowhere(), value }
    }

    fn quoted(text: &str) -> Node {
        node(Value::Text(text.to_owned()))
    }

    #[test]
    fn sizes_have_binary_units() {
        let all = 0..=u64::MAX;
        for (text, bytes) in [("64KiB", 65536), ("1MiB", 1 << 20), ("2 GiB", 2 << 30), ("512", 512), ("7B", 7)] {
            assert_eq!(size(&quoted(text), all.clone()), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "64KB", "64k", "1.5KiB", "-1", "+1", "99999999999999GiB", "1 2"] {
            assert!(size(&quoted(text), all.clone()).is_err(), "{text}");
        }
        let error = size(&node(Value::Integer(5)), 1024..=1 << 20).unwrap_err();
        assert!(error.contains("\"1KiB\" to \"1MiB\", found the number 5"), "{error}");
    }

    #[test]
    fn durations_need_a_unit_and_a_range() {
        let range = Duration::from_millis(1)..=Duration::from_secs(86400);
        assert_eq!(duration(&quoted("1m 30s"), range.clone()), Ok(Duration::from_secs(90)));
        for (given, found) in [
            (quoted("10"), "found \"10\""),
            (node(Value::Integer(10)), "found the number 10"),
            (quoted("0s"), "from 1ms to 1day, found \"0s\""),
            (quoted("25h"), "from 1ms to 1day"),
        ] {
            let error = duration(&given, range.clone()).unwrap_err();
            assert!(error.contains(found), "{error}");
        }
    }

    #[test]
    fn ports_may_stand_in_quotes_and_other_numbers_may_not() {
        assert_eq!(port(&quoted("8080")).unwrap().get(), 8080);
        for bad in [quoted("0"), quoted("65536"), quoted(""), node(Value::Integer(-1)), node(Value::Boolean(true))] {
            assert!(port(&bad).is_err(), "{bad:?}");
        }
        assert!(integer(&quoted("5"), 0..=9).is_err());
        assert_eq!(integer(&node(Value::Word("5".to_owned())), 0..=9), Ok(5));
    }
}
