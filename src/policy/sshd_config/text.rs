//! Writes and reads the text of the agent's drop-in and of its block at the top of the main file (KP-6.12, KP-6.13 and
//! KP-6.15).

use crate::policy::block::{self, BEGIN_MARKER, END_MARKER, Segment};

use super::keyword::canonical_spelling;
use super::{CHALLENGE_RESPONSE, KBD_INTERACTIVE, PASSWORD_AUTHENTICATION, tokens};

/// The beginning of every comment of the agent. It distinguishes the agent's comments from a user's comments.
pub const COMMENT_PREFIX: &str = "# keypair-agent: ";

/// The facts about a setting for its comments: when and for which command the agent made it, and how to revert it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provenance<'a> {
    /// The time, in a form for people.
    pub when: &'a str,
    /// The id of the command that made the setting.
    pub command_id: &'a str,
    /// The shell command that reverts the setting.
    pub revert_command: &'a str,
}

/// Renders the text of the agent's drop-in: first comments with the author, the time, the command and how to revert
/// it, then the directives.
pub fn render_drop_in(directives: &[(String, String)], provenance: &Provenance<'_>) -> String {
    let Provenance { when, command_id, revert_command: take_back } = provenance;
    let comments = [
        format!("written by keypair-agent at {when} for command {command_id}"),
        format!("to take it back: {take_back}"),
    ];
    let comments =
        comments.iter().map(|comment| format!("{COMMENT_PREFIX}{}\n", replace_control_chars(comment)));
    let settings = directives.iter().map(|(keyword, value)| format!("{keyword} {value}\n"));
    comments.chain(settings).collect()
}

/// Renders the same text between the markers of the block at the top of the main file. Each directive has an equals
/// sign, because cloud-init edits a line `PasswordAuthentication ...` of the main file in place. cloud-init does not
/// recognize a line with `PasswordAuthentication=`.
pub fn render_block(directives: &[(String, String)], provenance: &Provenance<'_>) -> String {
    let comments = render_drop_in(&[], provenance);
    let settings = directives.iter().map(|(keyword, value)| format!("{keyword}= {value}\n"));
    let text: String = std::iter::once(comments).chain(settings).collect();
    format!("{BEGIN_MARKER} (set by the cloud; \"keypair-agent undo\" takes it out)\n{text}{END_MARKER}\n")
}

/// Returns the text without control characters, so that it cannot end the comment that contains it.
fn replace_control_chars(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Returns true if every directive of a block has the form that [`render_block`] writes. Before version 3.2 the form
/// was different.
pub fn has_block_form(block: &[u8]) -> bool {
    block.split(|&byte| byte == b'\n').filter_map(|line| Some((line, tokens::split_config_line(line)?))).all(
        |(line, (keyword, arguments))| {
            line.strip_suffix(b"\r").unwrap_or(line)
                == format!("{keyword}= {}", arguments.join(" ")).as_bytes()
        },
    )
}

/// Returns the directives of the agent's drop-in or block. Comments are left out, because a different comment is no
/// reason to write the file again. The keywords have the spelling of sshd_config(5).
pub fn parse_managed_directives(content: &[u8]) -> Vec<(String, String)> {
    content
        .split(|&byte| byte == b'\n')
        .filter_map(tokens::split_config_line)
        .map(|(keyword, arguments)| (canonical_spelling(&keyword).to_owned(), arguments.join(" ")))
        .collect()
}

/// Returns true if the agent writes such a line into a drop-in or a block: a comment of the agent, or a directive in
/// exactly its wording. Markers are not included. If a marker is missing, this test distinguishes the agent's lines
/// from a user's lines.
pub fn is_managed_line(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let values: [(&str, &[&str]); 3] = [
        (PASSWORD_AUTHENTICATION, &["yes", "no"]),
        (KBD_INTERACTIVE, &["no"]),
        (CHALLENGE_RESPONSE, &["no"]),
    ];
    line.starts_with(COMMENT_PREFIX.as_bytes())
        || values.iter().any(|(keyword, values)| {
            values.iter().any(|value| {
                line == format!("{keyword} {value}").as_bytes()
                    || line == format!("{keyword}= {value}").as_bytes()
            })
        })
}

/// Finds the agent's lines in sshd's main file: the markers and the lines that the agent wrote between them. If a user
/// wrote a `Match` between the markers, the lines below it belong to the user.
pub fn find_managed_in_main(content: &[u8]) -> Vec<Segment> {
    let mut in_match = false;
    block::find_block_segments(content, |line| {
        in_match |= is_match_line(line);
        is_managed_line(line) && (!in_match || line.starts_with(COMMENT_PREFIX.as_bytes()))
    })
}

/// Finds the agent's lines in its drop-in. Before any `Match`, these are the lines with the agent's exact wording.
/// Below a `Match`, these are the agent's comments and the lines directly under them. All other lines belong to a
/// user, and the agent keeps them.
pub fn find_managed_in_drop_in(content: &[u8]) -> Vec<Segment> {
    let (mut in_match, mut is_beneath) = (false, false);
    block::select_lines(content, |line| {
        in_match |= is_match_line(line);
        let is_comment = line.starts_with(COMMENT_PREFIX.as_bytes());
        is_beneath = is_managed_line(line) && (is_comment || is_beneath || !in_match);
        is_beneath
    })
}

/// Returns true if the agent wrote the first directive of its drop-in, so that no user's directive takes effect before
/// it.
pub fn starts_with_managed_directive(content: &[u8]) -> bool {
    let managed_segments = find_managed_in_drop_in(content);
    let first = block::split_lines(content).find(|line| tokens::split_config_line(line.bytes).is_some());
    first.is_some_and(|first| is_offset_in_segments(&managed_segments, first.offset))
}

/// Returns true if the drop-in contains only lines of the agent.
pub fn has_only_managed_lines(content: &[u8]) -> bool {
    block::remove_segments(content, find_managed_in_drop_in(content)).iter().all(u8::is_ascii_whitespace)
}

fn is_match_line(line: &[u8]) -> bool {
    tokens::split_config_line(line).is_some_and(|(keyword, _)| keyword.eq_ignore_ascii_case("match"))
}

fn is_offset_in_segments(segments: &[Segment], offset: usize) -> bool {
    segments.iter().any(|segment| (segment.offset..segment.offset + segment.bytes.len()).contains(&offset))
}

/// Returns the line numbers of these segments, from 1.
pub(super) fn segment_line_numbers(content: &[u8], segments: &[Segment]) -> Vec<usize> {
    block::split_lines(content)
        .zip(1..)
        .filter(|(line, _)| is_offset_in_segments(segments, line.offset))
        .map(|(_, number)| number)
        .collect()
}

/// Returns the numbers, from 1, of the agent's lines in `content`: the markers and the lines that the agent wrote
/// between them. Returns none if `content` has no marker of the agent.
pub(super) fn managed_line_numbers(content: &[u8]) -> Vec<usize> {
    segment_line_numbers(content, &find_managed_in_main(content))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn password_off_directives() -> Vec<(String, String)> {
        vec![
            (PASSWORD_AUTHENTICATION.to_owned(), "no".to_owned()),
            (KBD_INTERACTIVE.to_owned(), "no".to_owned()),
        ]
    }

    const PROVENANCE: Provenance<'_> = Provenance {
        when: "2026-05-01T10:00:00Z",
        command_id: "c1",
        revert_command: "rm /etc/ssh/sshd_config.d/00-keypair-agent.conf && systemctl reload ssh",
    };

    /// KP-6.15.
    #[test]
    fn drop_in_text_has_comments_then_directives() {
        assert_eq!(
            render_drop_in(&password_off_directives(), &PROVENANCE),
            "# keypair-agent: written by keypair-agent at 2026-05-01T10:00:00Z for command c1\n\
             # keypair-agent: to take it back: rm /etc/ssh/sshd_config.d/00-keypair-agent.conf && systemctl reload ssh\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        );
    }

    #[test]
    fn block_text_is_recognized_and_parsed() {
        let block = render_block(&password_off_directives(), &PROVENANCE);
        assert_eq!(parse_managed_directives(block.as_bytes()), password_off_directives());
        assert_eq!(managed_line_numbers(block.as_bytes()), [1, 2, 3, 4, 5, 6]);
        assert!(
            block.contains("\nPasswordAuthentication= no\nKbdInteractiveAuthentication= no\n"),
            "{block}"
        );
        assert!(
            has_block_form(block.as_bytes())
                && !has_block_form(render_drop_in(&password_off_directives(), &PROVENANCE).as_bytes())
        );
        assert_eq!(
            managed_line_numbers(format!("Port 22\n{block}UsePAM yes\n").as_bytes()),
            [2, 3, 4, 5, 6, 7]
        );
        let open = block.replace(END_MARKER, "UsePAM yes");
        assert_eq!(managed_line_numbers(open.as_bytes()), [1, 2, 3, 4, 5]);
        assert!(managed_line_numbers(b"# BEGIN keypair-agents\n").is_empty());
    }

    #[test]
    fn drop_in_lines_of_administrator_are_kept() {
        let ours = render_drop_in(&password_off_directives(), &PROVENANCE);
        let rest = |content: &str| {
            let left =
                block::remove_segments(content.as_bytes(), find_managed_in_drop_in(content.as_bytes()));
            String::from_utf8(left).unwrap()
        };
        for theirs in [
            "",
            "X11Forwarding no\n",
            "# mine\n\nMatch User bob\nPasswordAuthentication yes\nKbdInteractiveAuthentication no",
            "PasswordAuthentication  yes\r\n",
            "match all\r\n PasswordAuthentication yes\r\n",
        ] {
            assert_eq!(rest(&format!("{ours}{theirs}")), theirs);
            let (first, second) = ours.split_at(ours.find("Kbd").unwrap());
            if !theirs.to_lowercase().contains("match") && theirs.ends_with('\n') {
                assert_eq!(rest(&format!("{first}{theirs}{second}")), theirs);
            }
            if theirs.ends_with('\n') || theirs.is_empty() {
                assert_eq!(rest(&format!("{theirs}{ours}")), theirs);
                let comes_first = theirs.is_empty();
                assert_eq!(
                    starts_with_managed_directive(format!("{theirs}{ours}").as_bytes()),
                    comes_first,
                    "{theirs}"
                );
            }
            assert!(starts_with_managed_directive(format!("# mine\n{ours}{theirs}").as_bytes()));
            assert_eq!(has_only_managed_lines(format!("{ours}\r\n{theirs}").as_bytes()), theirs.is_empty());
        }
        // The same holds between the markers of the block in the main file.
        let theirs = "Match User bob\nPasswordAuthentication yes\n";
        let block = render_block(&password_off_directives(), &PROVENANCE)
            .replace(END_MARKER, &format!("{theirs}{END_MARKER}"));
        let left = block::remove_segments(block.as_bytes(), find_managed_in_main(block.as_bytes()));
        assert_eq!(String::from_utf8(left).unwrap(), theirs);
    }

    #[test]
    fn managed_line_is_recognized_by_exact_text() {
        for line in render_drop_in(&password_off_directives(), &PROVENANCE).lines() {
            assert!(is_managed_line(line.as_bytes()), "{line}");
        }
        assert!(is_managed_line(b"ChallengeResponseAuthentication no\r\n"));
        assert!(is_managed_line(b"PasswordAuthentication= no\n"));
        for line in
            ["", "# mine", "UsePAM yes", "KbdInteractiveAuthentication yes", "PasswordAuthentication  no"]
        {
            assert!(!is_managed_line(line.as_bytes()), "{line}");
        }
    }

    proptest! {
        #[test]
        fn rendered_directives_parse_back_unchanged(
            password in prop::sample::select(vec!["yes", "no"]), names in 0..3usize,
            when in ".*", command_id in ".*", take_back in "(.|\n|\r)*",
        ) {
            let keywords = [PASSWORD_AUTHENTICATION, KBD_INTERACTIVE, CHALLENGE_RESPONSE];
            let values = [password, "no", "no"];
            let directives: Vec<(String, String)> = keywords
                .iter()
                .zip(values)
                .take(names + 1)
                .map(|(k, v)| (k.to_string(), v.to_owned()))
                .collect();
            let provenance = Provenance { when: &when, command_id: &command_id, revert_command: &take_back };
            prop_assert_eq!(parse_managed_directives(render_drop_in(&directives, &provenance).as_bytes()), directives.clone());
            let block = render_block(&directives, &provenance);
            prop_assert_eq!(parse_managed_directives(block.as_bytes()), directives.clone());
            prop_assert_eq!(managed_line_numbers(block.as_bytes()), (1..=directives.len() + 4).collect::<Vec<_>>());
        }
    }
}
