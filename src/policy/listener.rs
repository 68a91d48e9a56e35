//! Derives the options that every query to sshd repeats from a listener's /proc/PID/cmdline (KP-6.2; the option
//! letters are those of sshd(8)).
//!
//! Before OpenSSH 8.2, and if the title would be over 1,023 bytes, the file holds the exact NUL-separated arguments.
//! Otherwise it holds a title: `sshd: ` (the program's name), the arguments joined with blanks, ` [listener] 0 of
//! 10-100 startups`. The title loses the quotes of the arguments. With a small environment, its end is cut off.

use std::fmt;
use std::path::PathBuf;

use super::foreign::sanitize_text;

/// The letters of sshd(8)'s flags, of every version since 7.4.
const FLAG_LETTERS: &str = "46DGIQRTVdeiqrt";

/// The letters of sshd(8)'s options with an argument.
const ARGUMENT_LETTERS: &str = "CEbcfghkopu";

/// The start of a title: the program's name, which a colon follows.
const TITLE_NAME: &str = "sshd";

/// The text behind the arguments in a listener's title.
const LISTENER_MARK: &str = " [listener] ";

/// Why a command line is not usable as that of an sshd listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerError {
    /// The process is another program, or an sshd that serves one connection or one query.
    NotAListener(String),
    /// The title's end is missing, and it is not the beginning of a known unit's command line.
    Truncated(String),
    /// A word is not an option and cannot be an option's argument.
    Ambiguous(String),
    /// `-f` has a path that depends on a working directory.
    RelativeConfig(String),
}

impl fmt::Display for ListenerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAListener(line) => write!(f, "'{}' is not an sshd listener", sanitize_text(line)),
            Self::Truncated(title) => {
                write!(f, "its title is cut short and hides options: '{}'", sanitize_text(title))
            }
            Self::Ambiguous(word) => write!(
                f,
                "its options can't be told apart: '{}' is neither an option nor an argument",
                sanitize_text(word)
            ),
            Self::RelativeConfig(path) => {
                write!(f, "it was started with a relative '-f {}'", sanitize_text(path))
            }
        }
    }
}

impl std::error::Error for ListenerError {}

/// The listener's arguments that a query to sshd repeats.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListenerOptions {
    /// The path of `-f`, absolute.
    pub config: Option<PathBuf>,
    /// `-o`, `-p`, `-h`, `-c`, `-g`, `-u`, `-b`, `-k`, `-4`, `-6`: each option is one word, and its argument is
    /// another.
    pub options: Vec<String>,
}

/// An option as getopt(3) parses it.
struct CmdlineOption {
    letter: char,
    argument: Option<String>,
}

/// The arguments of a listener, the program first, from the bytes of its /proc/PID/cmdline. `unit` is the expanded
/// command line of the service unit that started it, if it is known.
pub fn parse_listener_cmdline(cmdline: &[u8], unit: Option<&[String]>) -> Result<Vec<String>, ListenerError> {
    let end = cmdline.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let cmdline = &cmdline[..end];
    let shown = || String::from_utf8_lossy(cmdline).replace('\0', " ");
    let Ok(text) = std::str::from_utf8(cmdline) else {
        return Err(ListenerError::Ambiguous(shown()));
    };
    match strip_title_name(text) {
        Some(title) => parse_title_arguments(title, unit),
        None => parse_exact_arguments(text).ok_or_else(|| ListenerError::NotAListener(shown())),
    }
}

/// The text behind the program's name in a title. sshd requires an absolute path for itself. Titles such as `root
/// [priv]` and `[accepted]` belong to its children.
fn strip_title_name(text: &str) -> Option<&str> {
    let (name, title) = text.split_once(": ").filter(|(_, title)| title.starts_with('/'))?;
    let program = title.split(' ').next().and_then(|path| path.rsplit('/').next());
    (name == TITLE_NAME || Some(name) == program).then_some(title)
}

/// Selects the options to repeat. It drops those that decide how sshd runs (`-D`, `-d`, `-e`, `-E`, `-i`, `-q`, `-r`,
/// `-R`) and those that make a query (`-t`, `-T`, `-G`, `-C`, `-V`).
pub fn select_query_options(arguments: &[String]) -> Result<ListenerOptions, ListenerError> {
    let mut found = ListenerOptions::default();
    for opt in parse_options(arguments)? {
        match (opt.letter, opt.argument) {
            ('f', Some(path)) if path.starts_with('/') => found.config = Some(PathBuf::from(path)),
            ('f', Some(path)) => return Err(ListenerError::RelativeConfig(path)),
            (letter @ ('o' | 'p' | 'h' | 'c' | 'g' | 'u' | 'b' | 'k'), Some(argument)) => {
                found.options.extend([format!("-{letter}"), argument]);
            }
            (letter @ ('4' | '6'), None) => found.options.push(format!("-{letter}")),
            _ => {}
        }
    }
    Ok(found)
}

/// Whether a listener was started to stay its parent's child (`-D`, `-d`). A supervisor may then restart it.
pub fn stays_in_foreground(arguments: &[String]) -> bool {
    parse_options(arguments).is_ok_and(|options| options.iter().any(|opt| matches!(opt.letter, 'D' | 'd')))
}

/// The arguments to restart a dead listener as a daemon: without the program, and without the options that would keep
/// it in the foreground (`-D`, `-d`, `-e`).
pub fn strip_foreground_options(arguments: &[String]) -> Result<Vec<String>, ListenerError> {
    let mut words = Vec::new();
    for opt in parse_options(arguments)? {
        if !matches!(opt.letter, 'D' | 'd' | 'e') {
            words.push(format!("-{}", opt.letter));
            words.extend(opt.argument);
        }
    }
    Ok(words)
}

/// The exact arguments, if they are those of a listener.
fn parse_exact_arguments(text: &str) -> Option<Vec<String>> {
    let arguments: Vec<String> = text.split('\0').map(str::to_owned).collect();
    let program = arguments.first()?;
    let name = program.rsplit('/').next()?;
    let is_sshd_program = name.starts_with("sshd") && !name.starts_with("sshd-") && !program.contains(' ');
    let serves_or_asks = |opt: &CmdlineOption| matches!(opt.letter, 'i' | 'R' | 't' | 'T' | 'G' | 'V');
    let listens = parse_options(&arguments).is_ok_and(|options| !options.iter().any(serves_or_asks));
    (is_sshd_program && listens).then_some(arguments)
}

/// The arguments in a title, without the program's name in front.
fn parse_title_arguments(title: &str, unit: Option<&[String]>) -> Result<Vec<String>, ListenerError> {
    let joined = unit.map(|words| words.join(" "));
    // A title that ends in `[listener]` was cut exactly there and lost no option.
    let whole = title
        .rfind(LISTENER_MARK)
        .map(|at| &title[..at])
        .or_else(|| title.strip_suffix(LISTENER_MARK.trim_end()));
    match (whole, unit, joined) {
        (Some(shown), Some(words), Some(joined)) if joined == shown => Ok(words.to_vec()),
        (Some(shown), _, _) => split_title(shown),
        (None, Some(words), Some(joined)) if format!("{joined}{LISTENER_MARK}").starts_with(title) => {
            Ok(words.to_vec())
        }
        (None, _, _) => Err(ListenerError::Truncated(title.to_owned())),
    }
}

/// Splits a title's text into arguments at sshd's own option letters. An argument extends to the next word that is an
/// option.
fn split_title(shown: &str) -> Result<Vec<String>, ListenerError> {
    let mut words = shown.split(' ').peekable();
    let mut arguments: Vec<String> = words.next().map(str::to_owned).into_iter().collect();
    while let Some(word) = words.next() {
        let mut argument = match classify_option_word(word) {
            Some(OptionForm::Flags) => {
                arguments.push(word.to_owned());
                continue;
            }
            Some(OptionForm::Attached) => word.to_owned(),
            Some(OptionForm::Separate) => {
                arguments.push(word.to_owned());
                words.next().ok_or_else(|| ListenerError::Ambiguous(word.to_owned()))?.to_owned()
            }
            None => return Err(ListenerError::Ambiguous(word.to_owned())),
        };
        while let Some(more) = words.next_if(|next| classify_option_word(next).is_none()) {
            argument.push(' ');
            argument.push_str(more);
        }
        arguments.push(argument);
    }
    Ok(arguments)
}

/// The form of an option word.
enum OptionForm {
    /// Only flags.
    Flags,
    /// An option with its argument in the same word.
    Attached,
    /// An option whose argument is the next word.
    Separate,
}

/// Whether a word is an option, or several bundled options, as getopt(3) parses them.
fn classify_option_word(word: &str) -> Option<OptionForm> {
    let letters = word.strip_prefix('-').filter(|letters| !letters.is_empty())?;
    for (at, letter) in letters.char_indices() {
        if ARGUMENT_LETTERS.contains(letter) {
            let rest = at + letter.len_utf8() < letters.len();
            return Some(if rest { OptionForm::Attached } else { OptionForm::Separate });
        }
        if !FLAG_LETTERS.contains(letter) {
            return None;
        }
    }
    Some(OptionForm::Flags)
}

/// Parses arguments into options and skips the program's name.
fn parse_options(arguments: &[String]) -> Result<Vec<CmdlineOption>, ListenerError> {
    let mut found = Vec::new();
    let mut words = arguments.iter().skip(1);
    while let Some(word) = words.next() {
        let unknown = || ListenerError::Ambiguous(word.clone());
        classify_option_word(word).ok_or_else(unknown)?;
        for (at, letter) in word.char_indices().skip(1) {
            if !ARGUMENT_LETTERS.contains(letter) {
                found.push(CmdlineOption { letter, argument: None });
                continue;
            }
            let glued = &word[at + letter.len_utf8()..];
            let argument = match glued {
                "" => words.next().ok_or_else(unknown)?.clone(),
                glued => glued.to_owned(),
            };
            found.push(CmdlineOption { letter, argument: Some(argument) });
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|word| (*word).to_owned()).collect()
    }

    /// KP-6.2.
    #[test]
    fn cmdline_yields_listener_arguments() {
        let quoted = words(&["/usr/sbin/sshd", "-D", "-o", "AllowUsers=a -D b"]);
        let plain = words(&["/usr/sbin/sshd", "-D"]);
        type Case<'c> = (&'c str, Option<&'c [String]>, &'c [&'c str]);
        let cases: &[Case<'_>] = &[
            // exact
            ("/usr/sbin/sshd\0-D\0-o\0X=y z\0", None, &["/usr/sbin/sshd", "-D", "-o", "X=y z"]),
            ("/usr/sbin/sshd", None, &["/usr/sbin/sshd"]),
            ("/opt/sshd-copy\0", None, &[]),
            // titles, cut at the option letters
            ("sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups\0\0", None, &["/usr/sbin/sshd", "-D"]),
            (
                "sshd: /usr/sbin/sshd -D -o X=y z -1 -no -oA=b c -p2222 -De [listener] 0 of 10-100 startups",
                None,
                &["/usr/sbin/sshd", "-D", "-o", "X=y z -1 -no", "-oA=b c", "-p2222", "-De"],
            ),
            ("sshd: /usr/sbin/sshd -Dp 22 [listener] 0 of 1", None, &["/usr/sbin/sshd", "-Dp", "22"]),
            ("sshd: /usr/sbin/sshd [listener] 0 of 10-100 startups", None, &["/usr/sbin/sshd"]),
            (
                "sshd: /usr/sbin/sshd -o A=[listener] b -D [listener] 0",
                None,
                &["/usr/sbin/sshd", "-o", "A=[listener] b", "-D"],
            ),
            // titles that match the unit's command line
            (
                "sshd: /usr/sbin/sshd -D -o AllowUsers=a -D b [listener] 0 of 10-100 startups",
                Some(&quoted),
                &["/usr/sbin/sshd", "-D", "-o", "AllowUsers=a -D b"],
            ),
            // under another name
            ("s: /opt/s -f /sshd_config [listener] 0 of 1", None, &["/opt/s", "-f", "/sshd_config"]),
            ("x: /opt/s -f /sshd_config [listener] 0 of 1", None, &[]),
            // the unit was edited since the start
            (
                "sshd: /usr/sbin/sshd -e [listener] 0 of 10-100 startups",
                Some(&plain),
                &["/usr/sbin/sshd", "-e"],
            ),
            // cut short: in the options, in the mark, after the mark
            (
                "sshd: /usr/sbin/sshd -D -o Allow",
                Some(&quoted),
                &["/usr/sbin/sshd", "-D", "-o", "AllowUsers=a -D b"],
            ),
            ("sshd: /usr/sbin/sshd -D [list", Some(&plain), &["/usr/sbin/sshd", "-D"]),
            ("sshd: /usr/sbin/sshd -D [listener]", None, &["/usr/sbin/sshd", "-D"]),
        ];
        for (cmdline, unit, expected) in cases {
            let found = parse_listener_cmdline(cmdline.as_bytes(), *unit);
            match expected {
                [] => assert!(matches!(found, Err(ListenerError::NotAListener(_))), "{cmdline}: {found:?}"),
                expected => assert_eq!(found, Ok(words(expected)), "{cmdline}"),
            }
        }
    }

    #[test]
    fn cmdline_of_other_process_is_not_a_listener() {
        for cmdline in [
            "",
            "/bin/sleep\x0060\0",
            "sshd: root [priv]",
            "sshd: [accepted]",
            "sshd: root@pts/0",
            "sshd-session: root [priv]",
            "/usr/sbin/sshd\0-D\0-R\0",
            "/usr/sbin/sshd\0-i\0",
            "/usr/sbin/sshd\0-T\0-C\0user=root\0",
            "/usr/lib/openssh/sshd-session\0-R\0",
        ] {
            let found = parse_listener_cmdline(cmdline.as_bytes(), None);
            assert!(matches!(found, Err(ListenerError::NotAListener(_))), "{cmdline}: {found:?}");
        }
    }

    /// KP-6.3.
    #[test]
    fn cmdline_truncated_or_ambiguous_is_refused() {
        let plain = words(&["/usr/sbin/sshd", "-D"]);
        let cut_short = |cmdline: &str, unit| parse_listener_cmdline(cmdline.as_bytes(), unit);
        for (cmdline, unit) in [
            ("sshd: /usr/sbin/sshd -D -o Passw", None),
            ("sshd: /usr/sbin/sshd -D -o Passw", Some(plain.as_slice())),
            ("sshd: /usr/sbin/ss", None),
        ] {
            let found = cut_short(cmdline, unit);
            assert!(matches!(found, Err(ListenerError::Truncated(_))), "{cmdline}: {found:?}");
        }
        for cmdline in ["sshd: /usr/sbin/sshd -D foo [listener] 0", "sshd: /usr/sbin/sshd -D -o [listener] 0"]
        {
            let found = parse_listener_cmdline(cmdline.as_bytes(), None);
            assert!(matches!(found, Err(ListenerError::Ambiguous(_))), "{cmdline}: {found:?}");
        }
        assert!(matches!(
            parse_listener_cmdline(b"sshd: /\xff [listener] 0", None),
            Err(ListenerError::Ambiguous(_))
        ));
    }

    #[test]
    fn query_options_are_selected_from_cmdline() {
        let cases: &[(&[&str], Option<&str>, &[&str])] = &[
            (&["s"], None, &[]),
            (&["s", "-D", "-d", "-e", "-q", "-r", "-E", "/log", "-C", "user=x"], None, &[]),
            (
                &["s", "-f", "/a", "-f/b", "-o", "X=y z", "-oKey=val"],
                Some("/b"),
                &["-o", "X=y z", "-o", "Key=val"],
            ),
            (&["s", "-De46p", "22", "-p2222"], None, &["-4", "-6", "-p", "22", "-p", "2222"]),
            (
                &["s", "-h", "/k", "-c", "/c", "-g", "5", "-u", "0", "-b", "1", "-k", "2"],
                None,
                &["-h", "/k", "-c", "/c", "-g", "5", "-u", "0", "-b", "1", "-k", "2"],
            ),
        ];
        for (arguments, config, options) in cases {
            let expected = ListenerOptions { config: config.map(PathBuf::from), options: words(options) };
            assert_eq!(select_query_options(&words(arguments)), Ok(expected), "{arguments:?}");
        }
        assert!(matches!(
            select_query_options(&words(&["s", "-f", "c"])),
            Err(ListenerError::RelativeConfig(_))
        ));
        for bad in [&["s", "-o"] as &[&str], &["s", "x"], &["s", "-Z"], &["s", "-"], &["s", ""]] {
            assert!(matches!(select_query_options(&words(bad)), Err(ListenerError::Ambiguous(_))), "{bad:?}");
        }
    }

    #[test]
    fn foreground_options_are_stripped_for_daemon() {
        let started = words(&["/usr/sbin/sshd", "-De", "-ddd", "-f", "/c", "-oA=b c", "-q"]);
        assert_eq!(strip_foreground_options(&started), Ok(words(&["-f", "/c", "-o", "A=b c", "-q"])));
        assert!(stays_in_foreground(&started));
        for daemon in [&["/s"] as &[&str], &["/s", "-e46", "-o", "-D"]] {
            assert!(!stays_in_foreground(&words(daemon)), "{daemon:?}");
        }
    }
}
