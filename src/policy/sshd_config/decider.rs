//! Which line, or which option of the command line, decides what sshd does (contract 6, "For whom").

use std::path::{Path, PathBuf};

use super::criteria::applies;
use super::reader::{Directive, Scope, directives};
use super::{is_same_option, spelling, tokens};
use crate::policy::observation::{ConfigTree, Connection};

/// What decides the value of a keyword.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decider {
    /// An option of sshd's command line, as it is written there after `-o`.
    Option(String),
    /// A line of a file.
    Line {
        /// The file.
        file: PathBuf,
        /// The line in it, from 1.
        line: usize,
        /// Whether it stands in a `Match` block, which beats every global value.
        in_match: bool,
        /// The arguments.
        value: String,
    },
    /// Nothing sets it: sshd's own default holds.
    Default,
}

impl Decider {
    /// The place for a person, in words that fit after "by" or before "decides".
    pub fn describe(&self, keyword: &str) -> String {
        let keyword = spelling(keyword);
        match self {
            Self::Option(text) => format!("the option `-o {text}` of sshd's command line"),
            Self::Line { file, line, in_match, value } => {
                let block = if *in_match { ", in a Match block" } else { "" };
                format!("{} line {line} (`{keyword} {value}`{block})", file.display())
            }
            Self::Default => format!("sshd's default of {keyword}, which no file sets"),
        }
    }

    /// The file, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Line { file, .. } => Some(file),
            _ => None,
        }
    }

    /// The line in that file.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::Line { line, .. } => Some(*line),
            _ => None,
        }
    }
}

impl From<&Directive> for Decider {
    fn from(directive: &Directive) -> Self {
        Self::Line {
            file: directive.file.clone(),
            line: directive.line,
            in_match: !directive.is_global(),
            value: directive.value(),
        }
    }
}

/// What decides `keyword` (in any case, under any of its names) for those whom no `Match` picks: the first
/// option of the command line, else the first global line, else the default: sshd_config(5), sshd(8) `-o`.
pub fn decider(tree: &ConfigTree, options: &[String], keyword: &str) -> Decider {
    if let Some((text, _)) = options_setting(options, keyword).into_iter().next() {
        return Decider::Option(text);
    }
    let found = directives(tree);
    let first = found.iter().find(|d| d.is_global() && is_same_option(&d.keyword, keyword));
    first.map_or(Decider::Default, Decider::from)
}

/// The directives on `keyword` inside `Match` blocks, in reading order: sshd_config(5) "Match".
pub fn match_scoped(tree: &ConfigTree, keyword: &str) -> Vec<Directive> {
    directives(tree).into_iter().filter(|d| !d.is_global() && is_same_option(&d.keyword, keyword)).collect()
}

/// What the listener's options (`-o`, in its forms of getopt(3)) say on `keyword`: the text after `-o`, and
/// the value in it. The first one counts: sshd(8).
pub fn options_setting(options: &[String], keyword: &str) -> Vec<(String, String)> {
    /// sshd's own option letters that take an argument.
    const WITH_ARGUMENT: &[char] = &['C', 'E', 'b', 'c', 'f', 'g', 'h', 'k', 'o', 'p', 'u'];
    let mut found = Vec::new();
    let mut words = options.iter();
    while let Some(word) = words.next() {
        let Some(letters) = word.strip_prefix('-') else { continue };
        let Some((at, letter)) = letters.char_indices().find(|(_, c)| WITH_ARGUMENT.contains(c)) else {
            continue;
        };
        let attached = letters.get(at + letter.len_utf8()..).unwrap_or_default();
        let argument = if attached.is_empty() { words.next().map(String::as_str) } else { Some(attached) };
        if let ('o', Some(text)) = (letter, argument)
            && let Some((name, arguments)) = tokens::split(text.as_bytes())
            && is_same_option(&name, keyword)
        {
            found.push((text.to_owned(), arguments.join(" ")));
        }
    }
    found
}

/// What most likely made sshd say `observed` on `keyword` for this connection, where something else was
/// asked: an option that says so; else a `Match` block that may pick this connection and says so; else the
/// first global line that says so; else whatever decides for everyone (contract 6, "For whom").
pub fn winner(
    tree: &ConfigTree,
    options: &[String],
    keyword: &str,
    observed: &str,
    connection: &Connection,
    groups: Option<&[String]>,
) -> Decider {
    if let Some((text, value)) = options_setting(options, keyword).into_iter().next()
        && is_same_value(&value, observed)
    {
        return Decider::Option(text);
    }
    let mut found = directives(tree);
    found.retain(|d| is_same_option(&d.keyword, keyword) && is_same_value(&d.value(), observed));
    let picks = |directive: &Directive, said: Option<bool>| match &directive.scope {
        Scope::Global => false,
        Scope::Match { criteria, .. } => applies(criteria, connection, groups) == said,
    };
    let first = found
        .iter()
        .find(|d| picks(d, Some(true)))
        .or_else(|| found.iter().find(|d| picks(d, None)))
        .or_else(|| found.iter().find(|d| d.is_global()));
    first.map_or_else(|| decider(tree, options, keyword), Decider::from)
}

/// Whether two values are the same to sshd, as far as yes, no and lists go.
fn is_same_value(one: &str, other: &str) -> bool {
    let plain = |value: &str| {
        let value = value.to_ascii_lowercase();
        if value == "without-password" { "prohibit-password".to_owned() } else { value }
    };
    plain(one) == plain(other)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::fixture::tree;
    use super::*;

    fn options(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn line(file: &str, line: usize, in_match: bool, value: &str) -> Decider {
        Decider::Line { file: file.into(), line, in_match, value: value.into() }
    }

    const MAIN: &str = "/etc/ssh/sshd_config";

    #[test]
    fn options_in_every_form() {
        for (words, said) in [
            (vec!["-o", "PasswordAuthentication=yes"], Some("yes")),
            (vec!["-oPasswordAuthentication=yes"], Some("yes")),
            (vec!["-Do", "passwordauthentication no"], Some("no")),
            (vec!["-D", "-p", "2222", "-o", "PasswordAuthentication yes"], Some("yes")),
            (vec!["-p", "-oPasswordAuthentication=yes"], None),
            (vec!["-o", "UsePAM=yes"], None),
            (vec!["-o"], None),
        ] {
            let found = options_setting(&options(&words), "passwordauthentication");
            assert_eq!(found.first().map(|(_, value)| value.as_str()), said, "{words:?}");
        }
    }

    #[test]
    fn who_decides() {
        let tree = tree(&[
            (
                MAIN,
                "Include d.d/*\nPasswordAuthentication yes\nMatch User root\nPasswordAuthentication yes\n",
            ),
            ("/etc/ssh/d.d/a.conf", "ChallengeResponseAuthentication yes\npasswordauthentication no\n"),
        ]);
        let password = |options: &[String]| decider(&tree, options, "PasswordAuthentication");
        assert_eq!(password(&[]), line("/etc/ssh/d.d/a.conf", 2, false, "no"));
        assert_eq!(
            password(&options(&["-oPasswordAuthentication=yes"])),
            Decider::Option("PasswordAuthentication=yes".into())
        );
        let kbd = decider(&tree, &[], "kbdinteractiveauthentication");
        assert_eq!(kbd, line("/etc/ssh/d.d/a.conf", 1, false, "yes"));
        assert_eq!(decider(&tree, &[], "usepam"), Decider::Default);
        assert_eq!(match_scoped(&tree, "passwordauthentication").len(), 1);
    }

    #[test]
    fn who_won() {
        let connection = Connection {
            user: "root".into(),
            host: "192.0.2.1".into(),
            addr: IpAddr::from([192, 0, 2, 1]),
            laddr: IpAddr::from([192, 0, 2, 2]),
            lport: 22,
        };
        let won = |text: &str, given: &[&str]| {
            winner(
                &tree(&[(MAIN, text)]),
                &options(given),
                "passwordauthentication",
                "yes",
                &connection,
                None,
            )
        };
        let others = "PasswordAuthentication no\nMatch User bob\nPasswordAuthentication yes\n";
        for (text, given, expected) in [
            (
                format!("{others}Match Address *\nPasswordAuthentication yes\n"),
                vec![],
                line(MAIN, 5, true, "yes"),
            ),
            (
                format!("{others}Match Group g\nPasswordAuthentication yes\n"),
                vec![],
                line(MAIN, 5, true, "yes"),
            ),
            (others.to_owned(), vec![], line(MAIN, 1, false, "no")),
            (
                format!("PasswordAuthentication no\n{}", "PasswordAuthentication yes\n"),
                vec![],
                line(MAIN, 2, false, "yes"),
            ),
            (
                others.to_owned(),
                vec!["-oPasswordAuthentication=yes"],
                Decider::Option("PasswordAuthentication=yes".into()),
            ),
            (String::new(), vec![], Decider::Default),
        ] {
            assert_eq!(won(&text, &given), expected, "{text}");
        }
    }
}
