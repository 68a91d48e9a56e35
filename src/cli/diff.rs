//! The edit of a file as a unified diff, in the format of diff(1) `-u`.

use diffy::PatchFormatter;

use crate::policy::content::SharedBytes;
use crate::policy::edit::{FileChange, FileEdit, FileKind};
use crate::policy::sshd_config::is_managed_drop_in;

/// The diff of one edit. It contains key text, so only `plan` and `undo` print it.
pub(super) fn render_diff(edit: &FileEdit) -> Vec<u8> {
    let before = edit.before.as_deref().unwrap_or_default();
    let after = edit.after.as_deref().unwrap_or_default();
    let name = |content: &Option<SharedBytes>| match content {
        Some(_) => edit.path.to_string_lossy().into_owned(),
        None => "/dev/null".to_owned(),
    };
    let mut text = Vec::new();
    if let Some(directory) = &edit.creates_directory {
        text.extend_from_slice(format!("# creates {} (0700)\n", directory.display()).as_bytes());
    }
    text.extend_from_slice(format!("--- {}\n+++ {}\n", name(&edit.before), name(&edit.after)).as_bytes());
    let mut hunks = Vec::new();
    let ChangedRegion { skipped, before, after } = ChangedRegion::between(before, after);
    let patch = diffy::create_patch_bytes(before, after);
    if PatchFormatter::new().write_patch_into(&patch, &mut hunks).is_ok() {
        // The library names the files "original" and "modified"; the lines above already give the real names.
        let from = hunks.windows(3).position(|window| window == b"@@ ").unwrap_or(hunks.len());
        for line in hunks[from..].split_inclusive(|byte| *byte == b'\n') {
            match std::str::from_utf8(line).ok().and_then(|line| shift_hunk_header(line, skipped)) {
                Some(moved) => text.extend_from_slice(moved.as_bytes()),
                None => text.extend_from_slice(line),
            }
        }
    }
    text
}

/// How many unchanged lines are shown around a change.
const CONTEXT_LINES: usize = 3;

/// The part in which two files differ, with the lines around it. Only this part is compared, since a key file may
/// have millions of lines.
struct ChangedRegion<'f> {
    /// How many lines come before the region.
    skipped: usize,
    before: &'f [u8],
    after: &'f [u8],
}

impl<'f> ChangedRegion<'f> {
    fn between(before: &'f [u8], after: &'f [u8]) -> Self {
        let same = before.iter().zip(after).take_while(|(one, other)| one == other).count();
        let mut from = line_start(&before[..same]);
        for _ in 0..CONTEXT_LINES {
            from = line_start(&before[..from.saturating_sub(1)]);
        }
        let skipped = before[..from].iter().filter(|byte| **byte == b'\n').count();
        let (before, after) = (&before[from..], &after[from..]);
        let both = before.iter().rev().zip(after.iter().rev());
        let most = before.len().min(after.len()) - (same - from);
        let same_end = both.take(most).take_while(|(one, other)| one == other).count();
        // Keep only the whole lines after the change that the diff shows; leave out the rest.
        let end = &before[before.len() - same_end..];
        let starts_line = before.len() == same_end || before[before.len() - same_end - 1] == b'\n';
        let skip = usize::from(!starts_line) + CONTEXT_LINES;
        let ends = end.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        let left_out = ends.take(skip).nth(skip - 1).map_or(0, |at| end.len() - at);
        Self { skipped, before: &before[..before.len() - left_out], after: &after[..after.len() - left_out] }
    }
}

/// The offset at which the last line of a text begins.
fn line_start(text: &[u8]) -> usize {
    text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

/// The header of a hunk, with its line numbers raised by `by`.
fn shift_hunk_header(line: &str, by: usize) -> Option<String> {
    let (ranges, rest) = line.strip_prefix("@@ -")?.split_once(" @@")?;
    let (before, after) = ranges.split_once(" +")?;
    let range = |range: &str| -> Option<String> {
        let (first, count) =
            range.split_once(',').map_or((range, None), |(first, count)| (first, Some(count)));
        let first = first.parse::<usize>().ok()? + by;
        Some(count.map_or_else(|| first.to_string(), |count| format!("{first},{count}")))
    };
    Some(format!("@@ -{} +{} @@{rest}", range(before)?, range(after)?))
}

/// Names the part of the agent's data that an edit changes.
pub(super) fn describe_edit(edit: &FileEdit) -> &'static str {
    match (&edit.kind, &edit.change) {
        (FileKind::AuthorizedKeys { .. }, _) => "a key block",
        (FileKind::SshdConfig, FileChange::Block(_)) if is_managed_drop_in(&edit.path) => {
            "a drop-in with the password setting and lines of somebody else's"
        }
        (FileKind::SshdConfig, FileChange::Block(_)) => "a block with the password setting",
        (FileKind::SshdConfig, FileChange::Whole { .. }) => "a drop-in with the password setting",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn render_hunks(before: &[u8], after: &[u8]) -> String {
        let edit = FileEdit {
            path: "/f".into(),
            kind: FileKind::SshdConfig,
            change: FileChange::Whole { before: None, after: None, raw_before: None },
            before: Some(before.to_vec().into()),
            after: Some(after.to_vec().into()),
            creates_directory: None,
            mount: None,
        };
        String::from_utf8(render_diff(&edit)).unwrap()
    }

    #[test]
    fn diff_shows_context_around_distant_change() {
        let lines: Vec<String> = (1..=1000).map(|number| format!("{number}\n")).collect();
        let (before, mut after) = (lines.concat(), lines.clone());
        after.splice(499..501, ["new\n".to_owned()]);
        assert_eq!(
            render_hunks(before.as_bytes(), after.concat().as_bytes()),
            "--- /f\n+++ /f\n@@ -497,8 +497,7 @@\n 497\n 498\n 499\n-500\n-501\n+new\n 502\n 503\n 504\n"
        );
    }

    proptest! {
        #[test]
        fn diff_applies_to_new_content(
            head in "[ab\n]{0,20}", out in "[abc\n]{0,6}", new in "[abc\n]{0,6}", tail in "[ab\n]{0,20}",
        ) {
            let (before, after) = (format!("{head}{out}{tail}"), format!("{head}{new}{tail}"));
            let shown = render_hunks(before.as_bytes(), after.as_bytes());
            let patch = diffy::Patch::from_bytes(shown.as_bytes());
            if before != after {
                prop_assert_eq!(diffy::apply_bytes(before.as_bytes(), &patch.unwrap()).unwrap(), after.as_bytes());
            }
        }
    }
}
