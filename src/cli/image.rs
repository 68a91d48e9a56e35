//! `check --image`: what a clone of this guest would carry along of ours.

use crate::config::Config;

use super::report::{Check, Report};
use super::{FAILED, diff};

/// `check --image [--json]`.
pub(super) fn check(config: &Config, json: bool) -> u8 {
    let transaction = super::transaction(config);
    let mut checks = Vec::new();
    checks.push(
        match transaction.load() {
            Ok(state) if state.remembers_anything() => Check::fails(
                "state",
                "it remembers a key pair, a setting or results of this instance; run 'keypair-agent undo'",
            ),
            Ok(_) => Check::holds("state", "nothing is remembered"),
            Err(refusal) => Check::fails("state", &refusal.message),
        }
        .at(Some(&config.state_dir.join("state.json")), None),
    );
    let standing = transaction.standing();
    for edit in &standing.edits {
        let message = format!("{} of ours stands there; run 'keypair-agent undo'", diff::what(edit));
        checks.push(Check::fails("file", &message).at(Some(&edit.path), None));
    }
    if standing.edits.is_empty() {
        checks.push(Check::holds("files", "neither a key block nor a password setting of ours stands"));
    }
    for note in standing.notes {
        checks.push(Check::note("note", &note));
    }
    let carries = checks.iter().any(|check| !check.ok) || !standing.failures.is_empty();
    let summary = match carries {
        true => "An image of this guest would carry something of ours along: see what FAILs below.",
        false => "An image of this guest would carry nothing of ours along.",
    };
    let status = Report::new(summary, checks).show(json);
    if standing.failures.is_empty() {
        return status;
    }
    for failure in standing.failures {
        eprintln!("keypair-agent: {}", failure.message);
    }
    FAILED
}
