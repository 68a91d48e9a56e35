//! `undo`: removes everything of the agent's and shows the diff. `recover`: undoes what an interrupted command did.

use crate::config::Config;

use super::{EXIT_FAILED, EXIT_OK, apply, diff};

/// `undo`.
pub(super) fn undo(config: &Config) -> u8 {
    let undone = match super::open_engine(config).uninstall() {
        Ok(undone) => undone,
        Err(failure) => return apply::print_failure(&failure.to_string()),
    };
    for note in &undone.notes {
        super::print_error(&format!("note: {note}"));
    }
    for edit in &undone.edits {
        super::print_bytes(&diff::render_diff(edit));
    }
    for failure in &undone.failures {
        super::print_error(&format!("not done: {}", failure.message));
    }
    if undone.failures.is_empty() {
        if undone.edits.is_empty() {
            super::print("# nothing of ours was found\n");
        }
        EXIT_OK
    } else {
        EXIT_FAILED
    }
}

/// `recover`.
pub(super) fn recover(config: &Config) -> u8 {
    match super::open_engine(config).recover_if_open() {
        Ok(()) => EXIT_OK,
        Err(failure) => apply::print_failure(&failure.to_string()),
    }
}
