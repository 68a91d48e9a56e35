//! Parses the `-o` options of sshd's command line: sshd(8).

use super::tokens;

/// The option letters of sshd that take an argument.
const SSHD_OPTIONS_WITH_ARGUMENT: &[char] = &['C', 'E', 'b', 'c', 'f', 'g', 'h', 'k', 'o', 'p', 'u'];

/// A setting that an `-o` option makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandLineSetting {
    /// The text after `-o`.
    pub(super) text: String,
    /// The keyword in it.
    pub(super) keyword: String,
    /// Its arguments.
    pub(super) arguments: Vec<String>,
}

/// Returns the settings that the listener's `-o` options make, in order. It accepts every form that getopt(3) accepts.
pub(super) fn parse_command_line_settings(options: &[String]) -> Vec<CommandLineSetting> {
    let mut found = Vec::new();
    let mut words = options.iter();
    while let Some(word) = words.next() {
        let Some(letters) = word.strip_prefix('-') else { continue };
        let Some((at, letter)) = letters.char_indices().find(|(_, c)| SSHD_OPTIONS_WITH_ARGUMENT.contains(c))
        else {
            continue;
        };
        let attached = letters.get(at + letter.len_utf8()..).unwrap_or_default();
        let argument = if attached.is_empty() { words.next().map(String::as_str) } else { Some(attached) };
        if let ('o', Some(text)) = (letter, argument)
            && let Some((keyword, arguments)) = tokens::split_config_line(text.as_bytes())
        {
            found.push(CommandLineSetting { text: text.to_owned(), keyword, arguments });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_option_is_parsed_in_every_form() {
        for (words, said) in [
            (vec!["-o", "PasswordAuthentication=yes"], Some("PasswordAuthentication yes")),
            (vec!["-oPasswordAuthentication=yes"], Some("PasswordAuthentication yes")),
            (vec!["-Do", "passwordauthentication no"], Some("passwordauthentication no")),
            (
                vec!["-D", "-p", "2222", "-o", "PasswordAuthentication yes"],
                Some("PasswordAuthentication yes"),
            ),
            (vec!["-p", "-oPasswordAuthentication=yes"], None),
            (vec!["-o", "AllowUsers = a b"], Some("AllowUsers a b")),
            (vec!["-o"], None),
        ] {
            let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
            let found = parse_command_line_settings(&words);
            let found = found.first().map(|one| format!("{} {}", one.keyword, one.arguments.join(" ")));
            assert_eq!(found.as_deref(), said, "{words:?}");
        }
    }
}
