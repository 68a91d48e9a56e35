//! The findings of `check`, as text for a person and as JSON (KP-8.6).

use std::path::Path;

use serde::Serialize;

use crate::policy::outcome::Warning;

use super::{EXIT_FAILED, EXIT_OK};

/// The width of the column with a check's name.
const NAME: usize = 23;

/// The output of `check --json`.
#[derive(Debug, Serialize)]
pub(super) struct CheckReport {
    /// The overall verdict, for a person.
    #[serde(skip)]
    pub(super) summary: String,
    /// Whether every check passed.
    pub(super) accepted: bool,
    /// Every precondition, in the order in which a command checks them.
    pub(super) checks: Vec<Check>,
}

/// One precondition, or a note.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    /// The name of the check.
    pub(super) name: String,
    /// Whether the precondition holds.
    pub(super) ok: bool,
    /// The finding.
    pub(super) message: String,
    /// The file that decides.
    pub(super) file: Option<String>,
    /// The line in that file.
    pub(super) line: Option<usize>,
    /// The remedy.
    pub(super) remedy: Option<String>,
    /// Whether this is only a note and not a precondition.
    #[serde(skip)]
    is_note: bool,
}

impl Check {
    /// A precondition that holds.
    pub(super) fn passed(name: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            name: name.to_owned(),
            ok: true,
            message,
            file: None,
            line: None,
            remedy: None,
            is_note: false,
        }
    }

    /// A precondition that does not hold. In the agent's messages, the remedy follows the last semicolon.
    pub(super) fn failed(name: &str, message: &str) -> Self {
        Self { ok: false, ..Self::passed(name, "") }.with_message(message)
    }

    /// A note, which is not a precondition.
    pub(super) fn note(name: &str, message: &str) -> Self {
        Self { is_note: true, ..Self::passed(name, "") }.with_message(message)
    }

    fn with_message(mut self, message: &str) -> Self {
        let (message, remedy) = match message.rsplit_once("; ") {
            Some((message, remedy)) => (message, Some(remedy.to_owned())),
            None => (message, None),
        };
        self.message = message.to_owned();
        self.remedy = remedy;
        self
    }

    /// Adds the file and the line to a check.
    pub(super) fn with_location(mut self, file: Option<&Path>, line: Option<usize>) -> Self {
        self.file = file.map(|file| file.to_string_lossy().into_owned());
        self.line = line;
        self
    }
}

impl From<&Warning> for Check {
    fn from(warning: &Warning) -> Self {
        Self::note(&warning.reason.to_string(), &warning.message)
            .with_location(warning.file.as_deref().map(Path::new), warning.line)
    }
}

impl CheckReport {
    /// A report of these checks.
    pub(super) fn new(summary: impl Into<String>, checks: Vec<Check>) -> Self {
        Self { summary: summary.into(), accepted: checks.iter().all(|check| check.ok), checks }
    }

    /// Prints the report and returns the exit status.
    pub(super) fn print_report(&self, json: bool) -> u8 {
        let text = match json {
            true => format!("{}\n", serde_json::to_string(self).unwrap_or_default()),
            false => self.to_text(),
        };
        super::print(&text);
        if self.accepted { EXIT_OK } else { EXIT_FAILED }
    }

    fn to_text(&self) -> String {
        let mut text = format!("{}\n\n", self.summary);
        for check in &self.checks {
            let mark = match (check.ok, check.is_note) {
                (false, _) => "FAIL",
                (true, true) => "note",
                (true, false) => "ok",
            };
            let place = match (&check.file, check.line) {
                (Some(file), Some(line)) if !check.message.contains(file) => format!(" [{file} line {line}]"),
                (Some(file), None) if !check.message.contains(file) => format!(" [{file}]"),
                _ => String::new(),
            };
            text.push_str(&format!("{mark:<5} {:<NAME$} {}{place}\n", check.name, check.message));
            if let Some(remedy) = &check.remedy {
                text.push_str(&format!("{:<5} {:<NAME$} what to do: {remedy}\n", "", ""));
            }
        }
        text
    }
}
