//! Sets up the log: lines on standard error, one for each thing a person would want to know.
//!
//! What others send may stand in a line, but it cannot make one: control characters in messages and values are
//! escaped in every format.

use std::collections::HashMap;
use std::env;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::fs::fstat;
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format as Lines, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

/// How lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text; with colours on a terminal, in the journal's own way under systemd.
    #[default]
    Auto,
    /// Text without colours.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("log format {text:?} is not known: use auto, text or json")),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Libraries that tell much at `info` and `debug`; whoever wants to hear it names them.
const QUIET: &str =
    "aws_=warn,aws_config=error,aws_smithy_runtime=error,aws_sdk_s3=error,h2=warn,hyper=warn,rustls=warn,tower=warn";

/// Starts the log of this process, on standard error. `filter` is a level, or directives as in
/// `info,scrimp::gossip=debug`.
///
/// # Errors
/// A sentence, if the filter is not valid or the log was started before.
pub fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    let look = Look::choose(format, io::stderr().is_terminal(), env::var_os("NO_COLOR").is_some(), is_journal());
    let subscriber = subscriber(look, filter, io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| "the log was started before".to_owned())
}

/// What the surroundings make of a [`LogFormat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Plain,
    Colours,
    /// Without time, which the journal adds, and with the level as the journal reads it.
    Journal,
    Json,
}

impl Look {
    fn choose(format: LogFormat, is_terminal: bool, no_color: bool, is_journal: bool) -> Self {
        match format {
            LogFormat::Json => Self::Json,
            LogFormat::Text => Self::Plain,
            LogFormat::Auto if is_journal => Self::Journal,
            LogFormat::Auto if is_terminal && !no_color => Self::Colours,
            LogFormat::Auto => Self::Plain,
        }
    }
}

/// Whether standard error is the journal: the variable alone is inherited by whatever a service starts, so
/// systemd puts the stream's device and inode there to be compared.
fn is_journal() -> bool {
    let Some(stream) = env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino).as_str())
}

type Boxed = Box<dyn Subscriber + Send + Sync>;

fn subscriber<W>(look: Look, filter: &str, writer: W) -> Result<Boxed, String>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = parse(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(look == Look::Colours)
        .with_writer(writer);
    Ok(match look {
        Look::Json => Box::new(builder.json().flatten_event(true).finish().with(filter)),
        Look::Journal => {
            let lines = JournalLines(Lines::default().without_time().with_level(false).with_ansi(false));
            Box::new(builder.fmt_fields(fields()).event_format(lines).finish().with(filter))
        }
        Look::Plain | Look::Colours => Box::new(builder.fmt_fields(fields()).finish().with(filter)),
    })
}

/// Levels by target. `EnvFilter` could do more, with a regular-expression engine that costs a megabyte of memory.
fn parse(filter: &str) -> Result<Targets, String> {
    let filter = if filter.trim().is_empty() { "info" } else { filter };
    format!("{QUIET},info,{filter}").parse().map_err(|error| {
        let shown: String = filter.chars().take(200).collect();
        format!(
            "log level {shown:?} is not valid ({error}): use error, warn, info, debug or trace, or directives like info,scrimp::gossip=debug"
        )
    })
}

/// Message and values, with control characters escaped.
fn fields() -> impl for<'a> FormatFields<'a> + Send + Sync + 'static {
    tracing_subscriber::fmt::format::debug_fn(|writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug| {
        match field.name() {
            "message" => write!(Escaping(writer), "{value:?}"),
            name => write!(Escaping(writer), "{name}={value:?}"),
        }
    })
    .delimited(" ")
}

/// Passes text on with control characters as Rust writes them (`\n`, `\u{1b}`), and marks for the direction of
/// text too.
struct Escaping<'a, 'w>(&'a mut Writer<'w>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let steers = c.is_control()
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if steers { write!(self.0, "{}", c.escape_default())? } else { self.0.write_char(c)? }
        }
        Ok(())
    }
}

/// Lines for the journal: `<6>` and so on in front, which is how it learns the level (sd-daemon(3)).
struct JournalLines(Lines<tracing_subscriber::fmt::format::Full, ()>);

impl<S, N> FormatEvent<S, N> for JournalLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

/// At most one line in a while for each kind of event, however often it happens. Pure: `now` is passed in.
///
/// Kinds are words of the program, so there are only as many as the program names.
#[derive(Debug)]
pub struct Limiter {
    every: Duration,
    kinds: HashMap<&'static str, (Instant, u64)>,
}

impl Limiter {
    /// One line for each kind in `every`.
    #[must_use]
    pub fn new(every: Duration) -> Self {
        Self { every, kinds: HashMap::new() }
    }

    /// Whether an event is to be logged: if so, how many of its kind were held back since the last one that was.
    pub fn pass(&mut self, kind: &'static str, now: Instant) -> Option<u64> {
        match self.kinds.get_mut(kind) {
            Some((last, held)) if now.saturating_duration_since(*last) < self.every => {
                *held += 1;
                None
            }
            Some(slot) => Some(std::mem::replace(slot, (now, 0)).1),
            None => {
                self.kinds.insert(kind, (now, 0));
                Some(0)
            }
        }
    }
}

impl Default for Limiter {
    /// One line a minute.
    fn default() -> Self {
        Self::new(Duration::from_secs(60))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(look: Look, filter: &str, act: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = subscriber(look, filter, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, act);
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn nothing_that_is_logged_can_forge_a_line() {
        let evil = "x\n2027-01-01 ERROR all is lost\r\u{1b}[2J\u{9b}31m\u{202e}";
        let all = || {
            tracing::warn!(display = %evil, debug = ?evil, text = evil, "message {evil}");
            let error: &(dyn std::error::Error + 'static) = &io::Error::other(evil);
            tracing::error!(error, "failed");
        };
        for look in [Look::Plain, Look::Journal, Look::Json, Look::Colours] {
            let text = logged(look, "info", all);
            assert_eq!(text.lines().count(), 2, "{look:?}: {text:?}");
            assert!(!text.contains("\u{1b}[2J") && !text.contains('\r'), "{look:?}: {text:?}");
            if look != Look::Json {
                assert!(!text.contains('\u{9b}') && !text.contains('\u{202e}'), "{look:?}: {text:?}");
            }
            assert!(text.contains("x\\n2027"), "{look:?}: {text:?}");
        }
    }

    #[test]
    fn each_look_is_what_its_readers_expect() {
        let say = || tracing::info!(members = 3, "joined the cluster");
        let journal = logged(Look::Journal, "info", say);
        assert_eq!(journal, "<6>scrimp::log::tests: joined the cluster members=3\n");
        let plain = logged(Look::Plain, "info", say);
        assert!(plain.starts_with("20") && plain.contains(" INFO ") && !plain.contains('\u{1b}'), "{plain}");
        assert!(logged(Look::Colours, "info", say).contains('\u{1b}'));
        let json: serde_json::Value = serde_json::from_str(&logged(Look::Json, "info", say)).unwrap();
        assert_eq!(
            (&json["level"], &json["message"], &json["members"]),
            (&"INFO".into(), &"joined the cluster".into(), &3.into())
        );
    }

    #[test]
    fn libraries_are_quiet_until_they_are_named() {
        let say = || {
            tracing::debug!("ours");
            tracing::info!(target: "aws_smithy_runtime::x", "theirs");
            tracing::debug!(target: "hyper_util::y", "theirs");
            tracing::warn!(target: "aws_sigv4", "their warning");
        };
        let text = logged(Look::Plain, "debug", say);
        assert!(text.contains("ours") && text.contains("their warning") && !text.contains("theirs"), "{text}");
        assert!(logged(Look::Plain, "info,hyper=debug", say).contains("hyper_util"));
        assert!(!logged(Look::Plain, "", say).contains("ours"), "info is the default");
    }

    #[test]
    fn a_wrong_filter_is_explained() {
        let error = parse("scrimp=loud").unwrap_err();
        assert!(error.contains("scrimp=loud") && error.contains("debug"), "{error}");
    }

    #[test]
    fn the_surroundings_decide_about_auto_only() {
        let auto = |terminal, no_color, journal| Look::choose(LogFormat::Auto, terminal, no_color, journal);
        assert_eq!(auto(true, false, false), Look::Colours);
        assert_eq!(auto(true, true, false), Look::Plain);
        assert_eq!(auto(false, false, false), Look::Plain);
        assert_eq!(auto(false, false, true), Look::Journal);
        assert_eq!(Look::choose(LogFormat::Text, true, false, true), Look::Plain);
        assert_eq!(Look::choose(LogFormat::Json, true, false, true), Look::Json);
    }

    #[test]
    fn the_limiter_lets_one_of_a_kind_through_and_counts_the_rest() {
        let start = Instant::now();
        let mut limiter = Limiter::default();
        assert_eq!(limiter.pass("key", start), Some(0));
        for second in 1..60 {
            assert_eq!(limiter.pass("key", start + Duration::from_secs(second)), None);
        }
        assert_eq!(limiter.pass("other", start), Some(0), "kinds do not hold each other back");
        assert_eq!(limiter.pass("key", start + Duration::from_secs(60)), Some(59));
        assert_eq!(limiter.pass("key", start + Duration::from_secs(61)), None);
    }
}
