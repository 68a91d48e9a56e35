//! The agent's log. Under systemd it goes to the journal in the journal's own format; otherwise it goes to stderr as
//! text.
//!
//! Every event has a fixed `MESSAGE_ID`. So `journalctl MESSAGE_ID=…` finds a kind of event even if its text changed
//! in another version. The log never contains key text; it contains fingerprints (KP-3.34).

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};

use nix::sys::stat::fstat;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event as Record, Level, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::policy::outcome::escape_unprintable;

/// The environment variable that sets the level: `error`, `warn`, `info` (the default) or `debug`.
pub const LOG_LEVEL_ENV: &str = "KEYPAIR_AGENT_LOG";

/// The field that becomes the journal's `MESSAGE_ID`. Text output does not show it.
const MESSAGE_ID: &str = "MESSAGE_ID";

/// The events of the log. An event is emitted as `tracing::info!(MESSAGE_ID = Event::Started.id(), "…")`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// `run` started.
    Started,
    /// `run` ended in order.
    Stopped,
    /// A command was received.
    CommandReceived,
    /// A command succeeded and changed something.
    CommandSucceeded,
    /// A command succeeded, and nothing had to change.
    CommandUnchanged,
    /// A command succeeded with a warning for the owner (KP-3.32).
    CommandWarned,
    /// A command was refused: `INVALID_ARGUMENT` or `FAILED_PRECONDITION`.
    CommandRefused,
    /// A command failed although it should have worked: `INTERNAL`.
    CommandFailed,
    /// A command seen before was answered with its stored result.
    CommandRepeated,
    /// A received command has no usable id, or could not be judged now.
    CommandUnanswerable,
    /// The service accepted the result.
    ResultDelivered,
    /// The service refused the result for good.
    ResultRefused,
    /// The channel works, for the first time or again.
    ChannelUp,
    /// The channel fails, or fails in another way than before.
    ChannelDown,
    /// The service returned the instance id.
    InstanceIdentified,
    /// The state or its lock cannot be used, or recovery could not finish.
    TransactionFailed,
    /// The service refused the report on what runs here.
    AnnounceFailed,
}

impl Event {
    /// The `MESSAGE_ID` of this event. It never changes after a release.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Started => "8e6f8cf1792d4ed0b8ac50acb68459ff",
            Self::Stopped => "4ac0f9762c5d4cfc831b56a697b36209",
            Self::CommandReceived => "ce6ddf448e5f408e8eae9497a0e7c62c",
            Self::CommandSucceeded => "edca2945a7a14960bc607ef223e8d32d",
            Self::CommandUnchanged => "f5642c684cb84ccdbb29d94c606797cc",
            Self::CommandWarned => "2f1d6c8e0b7a4c53a9d4e6f18b20c7d5",
            Self::CommandRefused => "013c8bbb522541fc954b1a8058ae257c",
            Self::CommandFailed => "3829bbd0d6374aba8ae0f5236474c20d",
            Self::CommandRepeated => "bb8ea762f28343e59491f0089a69298a",
            Self::CommandUnanswerable => "b8bb7de7f9c2465ab9a09db9336510e8",
            Self::ResultDelivered => "990eed8f526949ac9fbad071d1659e05",
            Self::ResultRefused => "523674472b7e4a38872705b264cd69fd",
            Self::ChannelUp => "f56daaead0c94d4197f3def9fad836f2",
            Self::ChannelDown => "32e40a04373448448a9a65e1bcd44687",
            Self::InstanceIdentified => "6df800318e974a6db413bd5770406139",
            Self::TransactionFailed => "10b40cfeb38d4b5196c32045f13ccb41",
            Self::AnnounceFailed => "2a04cf2930c642debf424b54861ad251",
        }
    }
}

/// Sets up the log of this process. Called once, early.
pub fn init() {
    let named = std::env::var(LOG_LEVEL_ENV).ok();
    let level = named.as_deref().map_or(Some(LevelFilter::INFO), parse_level);
    let registry = tracing_subscriber::registry().with(level.unwrap_or(LevelFilter::INFO));
    // If the journal cannot be reached, log to stderr as text.
    let journal = if is_stderr_journal() { tracing_journald::layer().ok() } else { None };
    let set = match journal {
        Some(journal) => {
            // Map `info` to "informational": the journal's "notice" is too high for ordinary messages.
            let priorities = PriorityMappings {
                info: Priority::Informational,
                debug: Priority::Debug,
                ..PriorityMappings::new()
            };
            let journal = journal
                .with_field_prefix(None)
                .with_syslog_identifier("keypair-agent".to_owned())
                .with_priority_mappings(priorities);
            tracing::subscriber::set_global_default(registry.with(journal))
        }
        None => {
            let text = TextLayer { times: !io::stderr().is_terminal(), out: io::stderr };
            tracing::subscriber::set_global_default(registry.with(text))
        }
    };
    if set.is_ok() && level.is_none() {
        tracing::warn!("{LOG_LEVEL_ENV} is none of error, warn, info and debug; taken as info");
    }
}

fn parse_level(name: &str) -> Option<LevelFilter> {
    match name {
        "" | "info" => Some(LevelFilter::INFO),
        "error" => Some(LevelFilter::ERROR),
        "warn" => Some(LevelFilter::WARN),
        "debug" => Some(LevelFilter::DEBUG),
        _ => None,
    }
}

/// Whether systemd connected stderr to the journal. `JOURNAL_STREAM` contains the device and the inode of that
/// connection. A child of a service inherits the variable too, so the function compares both with stderr.
fn is_stderr_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(io::stderr()).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Writes every event as one line of text.
struct TextLayer<O> {
    times: bool,
    out: fn() -> O,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>, O: io::Write + 'static> Layer<S> for TextLayer<O> {
    fn on_event(&self, record: &Record<'_>, _: Context<'_, S>) {
        let now = self.times.then(now_rfc3339);
        let mut line = format_line(record, now.as_deref());
        line.push('\n');
        // If this write fails, there is no other place to report the failure.
        let _ = (self.out)().write_all(line.as_bytes());
    }
}

/// The current time in whole seconds; RFC 3339, UTC.
pub(crate) fn now_rfc3339() -> String {
    let now = OffsetDateTime::now_utc();
    // The time has no nanoseconds and a year of four digits, so both calls succeed.
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}

/// Formats an event as `2026-01-01T00:00:00Z WARN words of the event field=value`.
fn format_line(record: &Record<'_>, time: Option<&str>) -> String {
    let mut fields = EventFields::default();
    record.record(&mut fields);
    let mut line = String::new();
    if let Some(time) = time {
        line.push_str(time);
        line.push(' ');
    }
    // The level `info` gets no label.
    if *record.metadata().level() != Level::INFO {
        let _ = write!(line, "{}: ", record.metadata().level().as_str().to_ascii_lowercase());
    }
    line.push_str(&fields.message);
    line.push_str(&fields.others);
    line
}

/// The fields of an event. Every field is on one line, whatever it contains.
#[derive(Default)]
struct EventFields {
    message: String,
    others: String,
}

impl EventFields {
    fn push_field(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(&escape_unprintable(value)),
            MESSAGE_ID => {}
            name => {
                let _ = write!(self.others, " {name}={}", escape_unprintable(value));
            }
        }
    }
}

impl Visit for EventFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push_field(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push_field(field, &format!("{value:?}"));
    }
}

/// Captures the log lines of a test's thread.
#[cfg(test)]
pub(crate) mod capture {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Collects log lines until it is dropped.
    pub(crate) struct CapturedLog {
        lines: Arc<Mutex<Vec<String>>>,
        _guard: tracing::subscriber::DefaultGuard,
    }

    impl CapturedLog {
        pub(crate) fn start_capture() -> Self {
            let lines = Arc::default();
            let registry =
                tracing_subscriber::registry().with(LevelFilter::INFO).with(LineLayer(Arc::clone(&lines)));
            Self { lines, _guard: tracing::subscriber::set_default(registry) }
        }

        pub(crate) fn lines(&self) -> Vec<String> {
            self.lines.lock().unwrap().clone()
        }
    }

    struct LineLayer(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for LineLayer {
        fn on_event(&self, record: &Record<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(format_line(record, None));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use super::*;

    const ALL_EVENTS: [Event; 17] = [
        Event::Started,
        Event::Stopped,
        Event::CommandReceived,
        Event::CommandSucceeded,
        Event::CommandUnchanged,
        Event::CommandWarned,
        Event::CommandRefused,
        Event::CommandFailed,
        Event::CommandRepeated,
        Event::CommandUnanswerable,
        Event::ResultDelivered,
        Event::ResultRefused,
        Event::ChannelUp,
        Event::ChannelDown,
        Event::InstanceIdentified,
        Event::TransactionFailed,
        Event::AnnounceFailed,
    ];

    #[test]
    fn message_ids_are_distinct_and_well_formed() {
        let ids: BTreeSet<_> = ALL_EVENTS.iter().map(|event| event.id()).collect();
        assert_eq!(ids.len(), ALL_EVENTS.len());
        for id in ids {
            assert!(
                id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
                "{id}"
            );
        }
    }

    #[test]
    fn level_names_are_parsed() {
        assert_eq!(parse_level("debug"), Some(LevelFilter::DEBUG));
        assert_eq!(parse_level(""), Some(LevelFilter::INFO));
        assert_eq!(parse_level("trace"), None);
    }

    static TEST_OUTPUT: Mutex<Vec<u8>> = Mutex::new(Vec::new());

    struct TestWriter;

    impl io::Write for TestWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            TEST_OUTPUT.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn text_log_is_one_line_per_event_without_message_id() {
        let subscriber = tracing_subscriber::registry().with(TextLayer { times: false, out: || TestWriter });
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(MESSAGE_ID = Event::Started.id(), command = %"c-1", "received");
            tracing::warn!(count = 2, "two\nlines \u{1b}[31m");
        });
        let written = String::from_utf8(TEST_OUTPUT.lock().unwrap().clone()).unwrap();
        assert_eq!(written, "received command=c-1\nwarn: two\\nlines \\u{1b}[31m count=2\n");
    }
}
