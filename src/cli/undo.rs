//! `undo`: everything of ours goes, and the diff of it is shown. `recover`: what an interrupted command did goes.

use crate::config::Config;

use super::{FAILED, OK, apply, diff};

/// `undo`.
pub(super) fn undo(config: &Config) -> u8 {
    let undone = match super::transaction(config).undo() {
        Ok(undone) => undone,
        Err(failure) => return apply::fail(&failure.to_string()),
    };
    for note in &undone.notes {
        super::complain(&format!("note: {note}"));
    }
    for edit in &undone.edits {
        super::print_bytes(&diff::of(edit));
    }
    for failure in &undone.failures {
        super::complain(&format!("not done: {}", failure.message));
    }
    if undone.failures.is_empty() {
        if undone.edits.is_empty() {
            super::print("# nothing of ours was found\n");
        }
        OK
    } else {
        FAILED
    }
}

/// `recover`.
pub(super) fn recover(config: &Config) -> u8 {
    match super::transaction(config).recover_if_open() {
        Ok(()) => OK,
        Err(failure) => apply::fail(&failure.to_string()),
    }
}
