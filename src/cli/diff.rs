//! A file's edit as a unified diff, as diff(1) `-u` prints it.

use diffy::PatchFormatter;

use crate::policy::edit::{Change, FileEdit, FileKind};
use crate::policy::sshd_config::is_drop_in;

/// The diff of one edit. It shows key text: `plan` and `undo` alone print it.
pub(super) fn of(edit: &FileEdit) -> Vec<u8> {
    let before = edit.before.as_deref().unwrap_or_default();
    let after = edit.after.as_deref().unwrap_or_default();
    let name = |content: &Option<Vec<u8>>| match content {
        Some(_) => edit.path.to_string_lossy().into_owned(),
        None => "/dev/null".to_owned(),
    };
    let mut text = Vec::new();
    if let Some(directory) = &edit.creates_directory {
        text.extend_from_slice(format!("# creates {} (0700)\n", directory.display()).as_bytes());
    }
    text.extend_from_slice(format!("--- {}\n+++ {}\n", name(&edit.before), name(&edit.after)).as_bytes());
    let mut hunks = Vec::new();
    let patch = diffy::create_patch_bytes(before, after);
    if PatchFormatter::new().write_patch_into(&patch, &mut hunks).is_ok() {
        // The library names the files "original" and "modified"; their real names stand above.
        let from = hunks.windows(3).position(|window| window == b"@@ ").unwrap_or(hunks.len());
        text.extend_from_slice(&hunks[from..]);
    }
    text
}

/// What of ours an edit is about, in words.
pub(super) fn what(edit: &FileEdit) -> &'static str {
    match (&edit.kind, &edit.change) {
        (FileKind::AuthorizedKeys { .. }, _) => "a key block",
        (FileKind::SshdConfig, Change::Block(_)) if is_drop_in(&edit.path) => {
            "a drop-in with the password setting and lines of somebody else's"
        }
        (FileKind::SshdConfig, Change::Block(_)) => "a block with the password setting",
        (FileKind::SshdConfig, Change::Whole { .. }) => "a drop-in with the password setting",
    }
}
