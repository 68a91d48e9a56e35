//! The text of our drop-in and of the block at the top of the main file, there and back
//! (contract 6, "Where").

use crate::policy::block::{self, BEGIN, END};

use super::keyword::spelling;
use super::{CHALLENGE_RESPONSE, KBD_INTERACTIVE, PASSWORD, tokens};

/// How every comment of ours begins, so that it can be told from a user's.
pub const COMMENT: &str = "# keypair-agent: ";

/// Who set this, when and why, and how to take it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provenance<'a> {
    /// The time, for a person.
    pub when: &'a str,
    /// The command it was set for.
    pub command_id: &'a str,
    /// The line of shell that takes it back.
    pub take_back: &'a str,
}

/// The text of our drop-in: who wrote it, when, for which command, how to take it back; then the directives.
pub fn render(directives: &[(String, String)], provenance: &Provenance<'_>) -> String {
    let Provenance { when, command_id, take_back } = provenance;
    let comments = [
        format!("written by keypair-agent at {when} for command {command_id}"),
        format!("to take it back: {take_back}"),
    ];
    let comments = comments.iter().map(|comment| format!("{COMMENT}{}\n", one_line(comment)));
    let settings = directives.iter().map(|(keyword, value)| format!("{keyword} {value}\n"));
    comments.chain(settings).collect()
}

/// The same between the markers of the block at the top of the main file.
pub fn render_block(directives: &[(String, String)], provenance: &Provenance<'_>) -> String {
    let text = render(directives, provenance);
    format!("{BEGIN} (set by the cloud; \"keypair-agent undo\" takes it out)\n{text}{END}\n")
}

/// A text that cannot end the comment it stands in.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What our drop-in, or our block, sets: comments do not count when asking whether it has to be written
/// anew. Keywords in the spelling of sshd_config(5).
pub fn directives_of_ours(content: &[u8]) -> Vec<(String, String)> {
    content
        .split(|&byte| byte == b'\n')
        .filter_map(tokens::split)
        .map(|(keyword, arguments)| (spelling(&keyword).to_owned(), arguments.join(" ")))
        .collect()
}

/// Whether a line is one that we write into a drop-in or a block, its markers aside: a comment of ours or a
/// directive in exactly our words. By it a block with a marker missing is told from a user's lines.
pub fn is_our_line_in_block(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let values: [(&str, &[&str]); 3] =
        [(PASSWORD, &["yes", "no"]), (KBD_INTERACTIVE, &["no"]), (CHALLENGE_RESPONSE, &["no"])];
    line.starts_with(COMMENT.as_bytes())
        || values.iter().any(|(keyword, values)| {
            values.iter().any(|value| line == format!("{keyword} {value}").as_bytes())
        })
}

/// The lines, from 1, that are ours in `content`: markers and what we wrote beside them; none where no marker
/// of ours stands.
pub(super) fn our_lines(content: &[u8]) -> Vec<usize> {
    let mut ours = block::find(content, is_our_line_in_block).into_iter().peekable();
    let mut is_in = |offset: usize| {
        while ours.next_if(|segment| segment.offset + segment.bytes.len() <= offset).is_some() {}
        ours.peek().is_some_and(|segment| segment.offset <= offset)
    };
    block::lines(content).zip(1..).filter(|(line, _)| is_in(line.offset)).map(|(_, number)| number).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn no() -> Vec<(String, String)> {
        vec![(PASSWORD.to_owned(), "no".to_owned()), (KBD_INTERACTIVE.to_owned(), "no".to_owned())]
    }

    const PROVENANCE: Provenance<'_> = Provenance {
        when: "2026-05-01T10:00:00Z",
        command_id: "c1",
        take_back: "rm /etc/ssh/sshd_config.d/00-keypair-agent.conf && systemctl reload ssh",
    };

    #[test]
    fn the_drop_in() {
        assert_eq!(
            render(&no(), &PROVENANCE),
            "# keypair-agent: written by keypair-agent at 2026-05-01T10:00:00Z for command c1\n\
             # keypair-agent: to take it back: rm /etc/ssh/sshd_config.d/00-keypair-agent.conf && systemctl reload ssh\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        );
    }

    #[test]
    fn the_block() {
        let block = render_block(&no(), &PROVENANCE);
        assert_eq!(directives_of_ours(block.as_bytes()), no());
        assert_eq!(our_lines(block.as_bytes()), [1, 2, 3, 4, 5, 6]);
        assert_eq!(our_lines(format!("Port 22\n{block}UsePAM yes\n").as_bytes()), [2, 3, 4, 5, 6, 7]);
        let open = block.replace(END, "UsePAM yes");
        assert_eq!(our_lines(open.as_bytes()), [1, 2, 3, 4, 5]);
        assert!(our_lines(b"# BEGIN keypair-agents\n").is_empty());
    }

    #[test]
    fn ours_and_not_ours() {
        for line in render(&no(), &PROVENANCE).lines() {
            assert!(is_our_line_in_block(line.as_bytes()), "{line}");
        }
        assert!(is_our_line_in_block(b"ChallengeResponseAuthentication no\r\n"));
        for line in
            ["", "# mine", "UsePAM yes", "KbdInteractiveAuthentication yes", "PasswordAuthentication  no"]
        {
            assert!(!is_our_line_in_block(line.as_bytes()), "{line}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            password in prop::sample::select(vec!["yes", "no"]), names in 0..3usize,
            when in ".*", command_id in ".*", take_back in "(.|\n|\r)*",
        ) {
            let keywords = [PASSWORD, KBD_INTERACTIVE, CHALLENGE_RESPONSE];
            let values = [password, "no", "no"];
            let directives: Vec<(String, String)> = keywords
                .iter()
                .zip(values)
                .take(names + 1)
                .map(|(k, v)| (k.to_string(), v.to_owned()))
                .collect();
            let provenance = Provenance { when: &when, command_id: &command_id, take_back: &take_back };
            prop_assert_eq!(directives_of_ours(render(&directives, &provenance).as_bytes()), directives.clone());
            let block = render_block(&directives, &provenance);
            prop_assert_eq!(directives_of_ours(block.as_bytes()), directives.clone());
            prop_assert_eq!(our_lines(block.as_bytes()), (1..=directives.len() + 4).collect::<Vec<_>>());
        }
    }
}
