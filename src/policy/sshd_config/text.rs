//! The text of our drop-in and of the block at the top of the main file, there and back
//! (KP-6.12, KP-6.13 and KP-6.15).

use crate::policy::block::{self, BEGIN_MARKER, END_MARKER, Segment};

use super::keyword::canonical_spelling;
use super::{CHALLENGE_RESPONSE, KBD_INTERACTIVE, PASSWORD_AUTHENTICATION, tokens};

/// How every comment of ours begins, so that it can be told from a user's.
pub const COMMENT_PREFIX: &str = "# keypair-agent: ";

/// Who set this, when and why, and how to take it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provenance<'a> {
    /// The time, for a person.
    pub when: &'a str,
    /// The command it was set for.
    pub command_id: &'a str,
    /// The line of shell that takes it back.
    pub revert_command: &'a str,
}

/// The text of our drop-in: who wrote it, when, for which command, how to take it back; then the directives.
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

/// The same between the markers of the block at the top of the main file, each directive with an equals sign: cloud-init
/// edits a line `PasswordAuthentication ...` of the main file in place, and knows none by the name
/// `PasswordAuthentication=`.
pub fn render_block(directives: &[(String, String)], provenance: &Provenance<'_>) -> String {
    let comments = render_drop_in(&[], provenance);
    let settings = directives.iter().map(|(keyword, value)| format!("{keyword}= {value}\n"));
    let text: String = std::iter::once(comments).chain(settings).collect();
    format!("{BEGIN_MARKER} (set by the cloud; \"keypair-agent undo\" takes it out)\n{text}{END_MARKER}\n")
}

/// A text that cannot end the comment it stands in.
fn replace_control_chars(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Whether every directive of a block has the form that [`render_block`] gives it: before 3.2 it had another.
pub fn has_block_form(block: &[u8]) -> bool {
    block.split(|&byte| byte == b'\n').filter_map(|line| Some((line, tokens::split_config_line(line)?))).all(
        |(line, (keyword, arguments))| {
            line.strip_suffix(b"\r").unwrap_or(line)
                == format!("{keyword}= {}", arguments.join(" ")).as_bytes()
        },
    )
}

/// What our drop-in, or our block, sets: comments do not count when asking whether it has to be written
/// anew. Keywords in the spelling of sshd_config(5).
pub fn parse_managed_directives(content: &[u8]) -> Vec<(String, String)> {
    content
        .split(|&byte| byte == b'\n')
        .filter_map(tokens::split_config_line)
        .map(|(keyword, arguments)| (canonical_spelling(&keyword).to_owned(), arguments.join(" ")))
        .collect()
}

/// Whether a line is one that we write into a drop-in or a block, its markers aside: a comment of ours or a
/// directive in exactly our words. By it a block with a marker missing is told from a user's lines.
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

/// What is ours in sshd's main file: the markers and what we wrote beside them. What stands below a `Match` that somebody
/// wrote between them is his.
pub fn find_managed_in_main(content: &[u8]) -> Vec<Segment> {
    let mut in_match = false;
    block::find_block_segments(content, |line| {
        in_match |= is_match_line(line);
        is_managed_line(line) && (!in_match || line.starts_with(COMMENT_PREFIX.as_bytes()))
    })
}

/// What is ours in our drop-in: the lines that are ours in word and stand ahead of any `Match`; below one our comments, and
/// what stands right beneath them. All else somebody wrote, and keeps.
pub fn find_managed_in_drop_in(content: &[u8]) -> Vec<Segment> {
    let (mut in_match, mut is_beneath) = (false, false);
    block::select_lines(content, |line| {
        in_match |= is_match_line(line);
        let is_comment = line.starts_with(COMMENT_PREFIX.as_bytes());
        is_beneath = is_managed_line(line) && (is_comment || is_beneath || !in_match);
        is_beneath
    })
}

/// Whether the first directive of our drop-in is ours, so that nobody's decides ahead of it.
pub fn starts_with_managed_directive(content: &[u8]) -> bool {
    let managed_segments = find_managed_in_drop_in(content);
    let first = block::split_lines(content).find(|line| tokens::split_config_line(line.bytes).is_some());
    first.is_some_and(|first| is_offset_in_segments(&managed_segments, first.offset))
}

/// Whether nothing stands in our drop-in but what is ours.
pub fn has_only_managed_lines(content: &[u8]) -> bool {
    block::remove_segments(content, find_managed_in_drop_in(content)).iter().all(u8::is_ascii_whitespace)
}

fn is_match_line(line: &[u8]) -> bool {
    tokens::split_config_line(line).is_some_and(|(keyword, _)| keyword.eq_ignore_ascii_case("match"))
}

fn is_offset_in_segments(segments: &[Segment], offset: usize) -> bool {
    segments.iter().any(|segment| (segment.offset..segment.offset + segment.bytes.len()).contains(&offset))
}

/// The lines, from 1, of these segments.
pub(super) fn segment_line_numbers(content: &[u8], segments: &[Segment]) -> Vec<usize> {
    block::split_lines(content)
        .zip(1..)
        .filter(|(line, _)| is_offset_in_segments(segments, line.offset))
        .map(|(_, number)| number)
        .collect()
}

/// The lines, from 1, that are ours in `content`: markers and what we wrote beside them; none where no marker
/// of ours stands.
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
        // Between the markers of the block in the main file, too.
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
