//! Text in a message that the agent did not write itself (KP-3.33): configuration lines, command lines, names, paths,
//! output of other programs. The agent escapes it, and truncates it when it enters a message.

use std::path::Path;

/// The maximum number of characters of one foreign text in a message.
pub const MAX_FOREIGN_CHARS: usize = 200;

/// The maximum number of characters of a message, with any number of foreign texts in it.
pub const MAX_MESSAGE_CHARS: usize = 2000;

/// Marks the place at which text was cut off.
const ELLIPSIS: char = '…';

/// Turns a text into one line. It escapes control characters, which could end a line of a log or change a terminal,
/// and characters that change the direction of a line.
pub fn escape_unprintable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        push_escaped(&mut line, character);
    }
    line
}

/// A foreign text for a message: on one line, with at most [`MAX_FOREIGN_CHARS`] characters.
pub fn sanitize_text(text: &str) -> String {
    truncate_escaped(text, MAX_FOREIGN_CHARS)
}

/// A foreign path for a message, in the same form. Bytes that are not UTF-8 appear as U+FFFD.
pub fn sanitize_path(path: &Path) -> String {
    sanitize_text(&path.to_string_lossy())
}

/// A whole message: on one line, with at most [`MAX_MESSAGE_CHARS`] characters. No word of the agent's is as long as
/// a foreign text may be. So the function truncates a longer word (a path, a name) like a foreign text.
pub fn sanitize_message(text: &str) -> String {
    let text = escape_unprintable(text);
    let mut shown = String::with_capacity(text.len());
    for word in text.split_inclusive(' ') {
        let bare = word.trim_end_matches(' ');
        match bare.chars().nth(MAX_FOREIGN_CHARS) {
            None => shown.push_str(word),
            Some(_) => {
                shown.push_str(&truncate_chars(bare, MAX_FOREIGN_CHARS));
                shown.push_str(&word[bare.len()..]);
            }
        }
    }
    truncate_chars(&shown, MAX_MESSAGE_CHARS)
}

/// The text, or its beginning with a mark that text is missing.
pub fn truncate_chars(text: &str, most: usize) -> String {
    match text.chars().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most.saturating_sub(1)).chain([ELLIPSIS]).collect(),
    }
}

/// Escapes only the text that is shown, and never cuts an escape in two.
fn truncate_escaped(text: &str, most: usize) -> String {
    let mut shown = String::new();
    let mut length = 0;
    // The end that leaves space for the mark.
    let mut end = 0;
    for character in text.chars() {
        let from = shown.len();
        push_escaped(&mut shown, character);
        length += shown[from..].chars().count();
        if length > most {
            shown.truncate(end);
            shown.push(ELLIPSIS);
            return shown;
        }
        if length < most {
            end = shown.len();
        }
    }
    shown
}

fn push_escaped(line: &mut String, character: char) {
    // Line and paragraph separators, and characters that change or hide the direction: they make the text look
    // different.
    let misleads =
        matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if character.is_control() || misleads {
        line.extend(character.escape_default());
    } else {
        line.push(character);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KP-3.33.
    #[test]
    fn long_text_is_truncated_and_escaped() {
        assert_eq!(sanitize_text("Match User bob"), "Match User bob");
        assert_eq!(sanitize_text("a\nb\u{1b}[31m\u{202e}c"), "a\\nb\\u{1b}[31m\\u{202e}c");
        for (text, expected) in [
            ("x".repeat(200), "x".repeat(200)),
            ("x".repeat(201), format!("{}…", "x".repeat(199))),
            ("ü".repeat(1 << 20), format!("{}…", "ü".repeat(199))),
            // An escape has five characters here. None is cut in two.
            ("\u{1}".repeat(41), format!("{}…", "\\u{1}".repeat(39))),
        ] {
            let shown = sanitize_text(&text);
            assert_eq!(shown, expected);
            assert!(shown.chars().count() <= MAX_FOREIGN_CHARS);
        }
        assert_eq!(
            sanitize_path(Path::new(&format!("/{}", "d".repeat(4000)))).chars().count(),
            MAX_FOREIGN_CHARS
        );
    }

    #[test]
    fn message_length_is_bounded() {
        let long = "/p".repeat(2000);
        let shown = sanitize_message(&format!("{long}: it cannot be read; {long} is too long"));
        assert!(shown.contains("… it cannot be read"), "{shown}");
        assert!(shown.ends_with("… is too long") && shown.chars().count() < 500, "{shown}");
        assert_eq!(sanitize_message(&"word ".repeat(10_000)).chars().count(), MAX_MESSAGE_CHARS);
        assert_eq!(sanitize_message("as it is;  with two blanks\n"), "as it is;  with two blanks\\n");
    }
}
