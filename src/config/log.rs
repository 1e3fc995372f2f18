//! What is logged, and how: `[log]`.

use crate::cli;
use crate::log::LogFormat;

use super::section::{Section, unknown};
use super::source::{Environment, given};
use super::tree::{Node, quote};
use super::value;

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Lines for people or for programs.
    pub format: LogFormat,
    /// A level, or several with their targets, as `tracing_subscriber::filter::Targets` takes them.
    pub filter: String,
}

/// Reads `[log]`.
pub(super) fn read(mut section: Section<'_>, flags: &cli::Common, env: Environment<'_>) -> LogConfig {
    let formats = [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = given(flags.log_format.as_deref(), "--log-format", "SCRIMP_LOG_FORMAT", env);
    let level = given(flags.log.as_deref(), "--log", "SCRIMP_LOG", env);
    let config = LogConfig {
        format: section
            .take_unless("format", format.as_ref(), |node| value::choice(node, &formats))
            .unwrap_or_default(),
        filter: section.take_unless("level", level.as_ref(), log_filter).unwrap_or_else(|| "info".to_owned()),
    };
    section.finish();
    config
}

/// A level, or `target=level`, or several with commas between. A bare word that is no level is refused, though
/// `Targets` would take it for a target: it is a misspelt level.
fn log_filter(node: &Node) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let given = value::text(node, "a level like \"info\"")?.to_ascii_lowercase();
    for directive in given.split(',') {
        let directive = directive.trim();
        let (target, level) = directive.split_once('=').unwrap_or(("scrimp", directive));
        if target.is_empty() || !target.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-')) {
            return Err(format!("{} names no part of the program: use one like scrimp::seed=debug", quote(directive)));
        }
        if !LEVELS.contains(&level) {
            return Err(unknown(level, &LEVELS));
        }
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::mistake::Place;

    #[test]
    fn a_misspelt_level_is_no_target() {
        let filter = |text: &str| log_filter(&Node::word(Place::nowhere(), text));
        assert_eq!(filter("INFO"), Ok("info".to_owned()));
        assert_eq!(filter("warn,scrimp::seed=debug"), Ok("warn,scrimp::seed=debug".to_owned()));
        assert!(filter("inof").unwrap_err().contains("did you mean info?"));
        assert!(filter("").is_err() && filter("=info").is_err() && filter("a b=info").is_err());
    }
}
