//! authorized_keys as sshd(8) reads it, and the agent's block in it (KP-5.3 to KP-5.6).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::block::{self, Marker, Segment, has_bom, split_lines};
use super::command::KeyPair;
use super::outcome::{Warning, WarningReason};
use super::public_key::PublicKey;

/// Options without a value, which `no-` in front negates. The flags say whether the option, and whether its negation,
/// refuses or redirects a login. sshd(8), "AUTHORIZED_KEYS FILE FORMAT".
const FLAG_OPTIONS: [(&str, bool, bool); 7] = [
    ("port-forwarding", false, false),
    ("agent-forwarding", false, false),
    ("x11-forwarding", false, false),
    ("touch-required", false, false),
    ("verify-required", true, false),
    ("pty", false, true),
    ("user-rc", false, false),
];

/// Options with a value. Each of them refuses or redirects a login, or may do so.
const VALUE_OPTIONS: [&str; 8] =
    ["command", "principals", "from", "expiry-time", "environment", "permitopen", "permitlisten", "tunnel"];

/// The options with a value that a line may contain only once.
const SINGLE_USE_OPTIONS: [&str; 4] = ["command", "principals", "from", "tunnel"];

/// The effect of the options in front of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OptionsEffect {
    /// The key allows a login.
    Unrestricted,
    /// sshd may refuse the key, or redirects its login.
    Restricted,
    /// The key signs certificates. By itself it does not allow a login, and sshd continues with the next line.
    CertAuthority,
    /// sshd cannot parse the options and continues with the next line.
    Invalid,
}

/// A line that sshd would read as a key of an accepted kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLine {
    /// The line's number, from 1.
    pub line: usize,
    /// The options in front of the key.
    pub options: String,
    /// The key.
    pub key: PublicKey,
}

impl KeyLine {
    /// Whether no option in front of the key refuses or redirects a login.
    pub fn is_unrestricted(&self) -> bool {
        evaluate_options(&self.options) == OptionsEffect::Unrestricted
    }

    /// Whether sshd uses this line for the key and stops its search, unless the line's own options make it continue.
    pub fn is_decisive(&self) -> bool {
        matches!(evaluate_options(&self.options), OptionsEffect::Unrestricted | OptionsEffect::Restricted)
    }
}

/// The effect of the options, as sshd itself reads them.
fn evaluate_options(options: &str) -> OptionsEffect {
    let (mut restricts, mut signs) = (false, false);
    let mut once: Vec<&str> = Vec::new();
    let mut rest = options;
    while !rest.is_empty() {
        let name_end = rest.find(['=', ',']).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(name_end);
        let name = name.to_ascii_lowercase();
        rest = behind;
        if let Some(value) = VALUE_OPTIONS.iter().find(|value| **value == name) {
            let Some(after) = behind.strip_prefix('=').and_then(skip_quoted_value) else {
                return OptionsEffect::Invalid;
            };
            if SINGLE_USE_OPTIONS.contains(value) && once.contains(value) {
                return OptionsEffect::Invalid;
            }
            once.push(value);
            restricts = true;
            rest = after;
        } else if name == "restrict" {
            restricts = true;
        } else if name == "cert-authority" {
            signs = true;
        } else {
            let (plain, negated) =
                name.strip_prefix("no-").map_or((name.as_str(), false), |plain| (plain, true));
            let Some((_, if_on, if_off)) = FLAG_OPTIONS.iter().find(|(flag, _, _)| *flag == plain) else {
                return OptionsEffect::Invalid;
            };
            restricts |= if negated { *if_off } else { *if_on };
        }
        match rest.strip_prefix(',') {
            Some("") => return OptionsEffect::Invalid,
            Some(next) => rest = next,
            None if rest.is_empty() => {}
            None => return OptionsEffect::Invalid,
        }
    }
    match (signs, restricts) {
        (true, _) => OptionsEffect::CertAuthority,
        (false, true) => OptionsEffect::Restricted,
        (false, false) => OptionsEffect::Unrestricted,
    }
}

/// The text behind a value in quotes, in which `\"` is a quote.
fn skip_quoted_value(text: &str) -> Option<&str> {
    let inside = text.strip_prefix('"')?;
    let mut characters = inside.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return inside.get(at + 1..),
            '\\' => drop(characters.next_if(|(_, next)| *next == '"')),
            _ => {}
        }
    }
    None
}

/// The restrictions of a line, for sshd before 7.7, whose log does not list them. If the line's options restrict a
/// login, this is the name of the first such option. Empty if there is no restriction or the line is not a key.
pub fn list_restrictions(line: &[u8]) -> Vec<String> {
    match parse_key_line(line) {
        Some((options, _)) if evaluate_options(&options) != OptionsEffect::Unrestricted => {
            let name = options.split(['=', ',']).next().unwrap_or_default();
            vec![name.chars().take(40).collect()]
        }
        _ => Vec::new(),
    }
}

/// The key lines of a file, in order. The iterator skips comments, blank lines and lines that sshd cannot parse. It
/// also skips a first line behind a byte order mark, which sshd cannot parse either. It yields the lines one by one,
/// because a file may have 200,000.
pub fn parse_key_lines(content: &[u8]) -> impl Iterator<Item = KeyLine> {
    content.split(|byte| *byte == b'\n').enumerate().filter_map(|(index, line)| {
        let (options, key) = parse_key_line(line)?;
        Some(KeyLine { line: index + 1, options, key })
    })
}

/// The options and the key of one line. sshd holds a line as a C string, so the line ends at a NUL.
fn parse_key_line(line: &[u8]) -> Option<(String, PublicKey)> {
    let line = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches(['\r', '\n']).trim_start_matches([' ', '\t']);
    if text.is_empty() || text.starts_with('#') {
        return None;
    }
    if let Some(key) = parse_leading_key(text) {
        return Some((String::new(), key));
    }
    let (options, rest) = split_options(text)?;
    Some((options.to_owned(), parse_leading_key(rest)?))
}

/// Splits `text` into its options, up to the first blank outside quotes, and the text behind the blanks. `\"` is a
/// quote that neither opens nor closes. A backslash before any other character, even before another backslash, is an
/// ordinary character. `None` if a quote is not closed.
pub(super) fn split_options(text: &str) -> Option<(&str, &str)> {
    let mut quoted = false;
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => drop(characters.next_if(|(_, next)| *next == '"')),
            '"' => quoted = !quoted,
            ' ' | '\t' if !quoted => {
                let (options, rest) = text.split_at(at);
                return Some((options, rest.trim_start_matches([' ', '\t'])));
            }
            _ => {}
        }
    }
    (!quoted).then_some((text, ""))
}

/// The key at the start of `text`. The function ignores the text behind the blob. White space other than blanks and
/// tabs is not part of base64. The names of signature algorithms count as names of their key's type.
fn parse_leading_key(text: &str) -> Option<PublicKey> {
    let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
    let (algorithm, blob) = (words.next()?, words.next()?);
    let algorithm = match algorithm {
        "rsa-sha2-256" | "rsa-sha2-512" => "ssh-rsa",
        "webauthn-sk-ecdsa-sha2-nistp256@openssh.com" => "sk-ecdsa-sha2-nistp256@openssh.com",
        other => other,
    };
    let blob = blob.replace(['\r', '\n', '\x0b', '\x0c'], "");
    PublicKey::parse(&format!("{algorithm} {blob}")).ok()
}

/// The agent's block for a key pair: begin marker, key with its comment, end marker.
pub fn render_key_block(key_pair: &KeyPair) -> Vec<u8> {
    let KeyPair { key_name, public_key } = key_pair;
    format!(
        "{} {key_name} (bound by the cloud; \"keypair-agent undo\" takes it out)\n{}\n{} {key_name}\n",
        block::BEGIN_MARKER,
        public_key.line(),
        block::END_MARKER
    )
    .into_bytes()
}

/// The agent's segments in the file. `known` are the keys that the agent bound, according to its state. If the state
/// names none, the first key without options beside the agent's markers counts as the agent's.
pub fn find_managed_keys(content: &[u8], known: &[PublicKey]) -> Vec<Segment> {
    let mut first: Option<PublicKey> = None;
    block::find_block_segments(content, |line| match parse_key_line(line) {
        Some((_, key)) if !known.is_empty() => known.contains(&key),
        Some((options, key)) if options.is_empty() => *first.get_or_insert_with(|| key.clone()) == key,
        _ => false,
    })
}

/// The key pair whose block is in the file, according to the block alone.
pub fn find_block_key_pair(content: &[u8]) -> Option<KeyPair> {
    let mut name = None;
    for line in split_lines(content) {
        match block::parse_marker(line.bytes) {
            Some(Marker::Begin(named)) => name = named,
            Some(Marker::End) => name = None,
            None => {
                if let (Some(key_name), Some((options, public_key))) = (&name, parse_key_line(line.bytes))
                    && options.is_empty()
                {
                    let text = String::from_utf8_lossy(line.bytes);
                    // Include the comment if it can be determined, because the agent writes the block with it.
                    let public_key = PublicKey::parse(text.trim()).unwrap_or(public_key);
                    return Some(KeyPair { key_name: key_name.clone(), public_key });
                }
            }
        }
    }
    None
}

/// The key lines that the agent does not manage, with their line numbers in the present file.
pub fn unmanaged_key_lines<'c>(
    content: &'c [u8],
    known: &[PublicKey],
) -> impl Iterator<Item = KeyLine> + use<'c> {
    let mut ours = find_managed_keys(content, known).into_iter().map(|segment| {
        let end = segment.offset + segment.bytes.len();
        segment.offset..end
    });
    let mut next = ours.next();
    // A line that ends up directly behind a byte order mark is no longer a key.
    let mut is_behind_mark = has_bom(content);
    split_lines(content).enumerate().filter_map(move |(index, line)| {
        while next.as_ref().is_some_and(|range| range.end <= line.offset) {
            next = ours.next();
        }
        if next.as_ref().is_some_and(|range| range.contains(&line.offset))
            || std::mem::take(&mut is_behind_mark)
        {
            return None;
        }
        let (options, key) = parse_key_line(line.bytes.strip_suffix(b"\n").unwrap_or(line.bytes))?;
        Some(KeyLine { line: index + 1, options, key })
    })
}

/// For each key: whether the first line that decides about it allows a login. The map holds a digest of each key.
#[derive(Default)]
struct FirstDecisions(HashMap<[u8; 16], bool>);

impl FirstDecisions {
    /// Whether this line lets the user log in: neither its own options nor those of an earlier line with the same key
    /// refuse or redirect the login.
    fn admits(&mut self, line: &KeyLine) -> bool {
        if !line.is_decisive() {
            return false;
        }
        let digest = Sha256::digest(line.key.blob());
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        let first = *self.0.entry(short).or_insert_with(|| line.is_unrestricted());
        first && line.is_unrestricted()
    }
}

/// The lines that let the user log in, as far as the file decides. Their options do not refuse or redirect the login,
/// and neither does an earlier line with the same key.
pub fn filter_admitting_lines(lines: impl Iterator<Item = KeyLine>) -> impl Iterator<Item = KeyLine> {
    let mut first = FirstDecisions::default();
    lines.filter(move |line| first.admits(line))
}

/// A key line and its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocatedKeyLine<'f> {
    /// The path of the file.
    pub path: &'f Path,
    /// The key line.
    pub line: KeyLine,
}

/// The key lines of all files that sshd reads for a user, in sshd's order. The agent's own lines in `own`, the file
/// that holds its block, are left out. The iterator yields the lines one by one.
pub fn locate_unmanaged_key_lines<'f, C: AsRef<[u8]>>(
    files: &'f [(PathBuf, C)],
    own: &'f Path,
    known: &'f [PublicKey],
) -> impl Iterator<Item = LocatedKeyLine<'f>> {
    files.iter().flat_map(move |(path, content)| {
        let (is_own, content) = (path == own, content.as_ref());
        let all = (!is_own).then(|| parse_key_lines(content)).into_iter().flatten();
        let theirs = is_own.then(|| unmanaged_key_lines(content, known)).into_iter().flatten();
        all.chain(theirs).map(move |line| LocatedKeyLine { path, line })
    })
}

/// RESTRICTED_COPY: a copy of the key with options that restrict it, in a file that sshd reads before `own`, or in
/// `own` below the agent's block. `files` are all files that sshd reads, in its order.
pub fn check_restricted_copy<C: AsRef<[u8]>>(
    files: &[(PathBuf, C)],
    own: &Path,
    known: &[PublicKey],
    key: &PublicKey,
) -> Option<Warning> {
    let upto = files.iter().position(|(path, _)| path == own).map_or(files.len(), |at| at + 1);
    let mut beneath = None;
    let mut ahead = None;
    for place in locate_unmanaged_key_lines(files.get(..upto).unwrap_or_default(), own, known) {
        if place.line.key != *key || !place.line.is_decisive() {
            continue;
        }
        if place.path != own {
            // The first match decides. If it has no restriction, later lines do not count.
            ahead = Some(place);
            break;
        }
        if beneath.is_none() && !place.line.is_unrestricted() {
            beneath = Some(place);
        }
    }
    let (place, which) = match ahead {
        Some(place) if place.line.is_unrestricted() => return None,
        Some(place) => (place, "sshd reads that file first, and this line decides"),
        None => (beneath?, "ours stands ahead of it and decides"),
    };
    let message = format!("a copy of this key stands in the file with options in front; {which}");
    Some(
        Warning::new(WarningReason::RestrictedCopy, message).with_location(place.path, Some(place.line.line)),
    )
}

/// KEY_STILL_PRESENT: the removed key is also in a line that the agent does not manage. `places` are the lines of all
/// files that sshd reads, without the agent's.
pub fn check_key_still_present<'f>(
    mut places: impl Iterator<Item = LocatedKeyLine<'f>>,
    taken: &PublicKey,
) -> Option<Warning> {
    let place = places.find(|place| place.line.key == *taken)?;
    let message = "the same key also stands in a line that is not ours, and goes on letting in";
    Some(
        Warning::new(WarningReason::KeyStillPresent, message)
            .with_location(place.path, Some(place.line.line)),
    )
}

/// Whether some key lets the user log in without a restriction, as far as the files decide. `places` are the lines of
/// all files in sshd's order.
pub fn has_unrestricted_key<'f>(places: impl Iterator<Item = LocatedKeyLine<'f>>) -> bool {
    filter_admitting_lines(places.map(|place| place.line)).next().is_some()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::block::BlockEdit;
    use super::super::public_key::counted;
    use super::*;
    use base64ct::{Base64, Encoding};
    use proptest::prelude::*;

    fn attach_key(content: &[u8], known: &[PublicKey], key_pair: &KeyPair) -> Vec<u8> {
        BlockEdit { removed: find_managed_keys(content, known), inserted: render_key_block(key_pair) }
            .apply(content)
    }

    fn detach_keys(content: &[u8], known: &[PublicKey]) -> Vec<u8> {
        BlockEdit { removed: find_managed_keys(content, known), inserted: Vec::new() }.apply(content)
    }

    const ED: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF86eSkqX3I2gC8oUEbWaJ54JKEt/jagDdVjCuOifDfx";
    const ED2: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBbwm4k+8KMF07qcLVz/eSGyj97QI+EJtkleEe2kMvbt";

    fn make_key_pair(name: &str, line: &str) -> KeyPair {
        KeyPair { key_name: name.parse().unwrap(), public_key: PublicKey::parse(line).unwrap() }
    }

    /// KP-5.4.
    #[test]
    fn key_block_has_specified_format() {
        let text = String::from_utf8(render_key_block(&make_key_pair("my-test", &format!("{ED} me@laptop"))))
            .unwrap();
        assert_eq!(
            text,
            format!(
                "# BEGIN keypair-agent my-test (bound by the cloud; \"keypair-agent undo\" takes it out)\n\
                 {ED} me@laptop\n# END keypair-agent my-test\n"
            )
        );
        assert_eq!(find_block_key_pair(text.as_bytes()), Some(make_key_pair("my-test", ED)));
    }

    #[test]
    fn key_lines_are_read_as_sshd_does() {
        let content = format!(
            "# c\n\n  {ED} x\r\n{ED2}\ncommand=\"echo \\\"a b\\\" c\",no-pty {ED} y\nfrom=\"10.0.0.0/8\" {ED2}\nbroken\n{ED}{ED2}\n"
        );
        let lines: Vec<KeyLine> = parse_key_lines(content.as_bytes()).collect();
        let seen: Vec<(usize, &str)> = lines.iter().map(|line| (line.line, line.options.as_str())).collect();
        assert_eq!(
            seen,
            [(3, ""), (4, ""), (5, "command=\"echo \\\"a b\\\" c\",no-pty"), (6, "from=\"10.0.0.0/8\"")]
        );
        assert_eq!(parse_key_lines(format!("\u{feff}{ED}\n").as_bytes()).count(), 0);
    }

    #[test]
    fn key_options_quoting_matches_sshd() {
        for (line, options, decides, unrestricted) in [
            (
                format!("command=\"/bin/false \\\\\" x\" {ED}"),
                Some("command=\"/bin/false \\\\\" x\""),
                true,
                false,
            ),
            (format!("command=\"a\\\\b\" {ED}"), Some("command=\"a\\\\b\""), true, false),
            (format!("command=\"a\\\" {ED}"), None, false, false),
            (format!("\\\"pty {ED}"), Some("\\\"pty"), false, false),
            (format!("{ED}\0 x"), Some(""), true, true),
            (format!("\0{ED}"), None, false, false),
            (format!("#\0{ED}"), None, false, false),
            (format!("command=\"x\"\0 {ED}"), None, false, false),
            (format!("{ED}\r"), Some(""), true, true),
            (ED.replace("IF86", "\x0bIF86"), Some(""), true, true),
            (
                format!("pty,No-X11-Forwarding,user-rc {ED}"),
                Some("pty,No-X11-Forwarding,user-rc"),
                true,
                true,
            ),
            (
                format!("no-touch-required,touch-required {ED}"),
                Some("no-touch-required,touch-required"),
                true,
                true,
            ),
            (format!("restrict,pty {ED}"), Some("restrict,pty"), true, false),
            (format!("no-pty {ED}"), Some("no-pty"), true, false),
            (format!("verify-required {ED}"), Some("verify-required"), true, false),
            (format!("from=\"*\" {ED}"), Some("from=\"*\""), true, false),
            // sshd continues with the next line.
            (format!("cert-authority {ED}"), Some("cert-authority"), false, false),
            (format!("bogus {ED}"), Some("bogus"), false, false),
            (format!("pty, {ED}"), Some("pty,"), false, false),
            (format!(",pty {ED}"), Some(",pty"), false, false),
            (format!("from=10.0.0.1 {ED}"), Some("from=10.0.0.1"), false, false),
            (format!("from=\"a\"x {ED}"), Some("from=\"a\"x"), false, false),
            (format!("command=\"a\",command=\"b\" {ED}"), Some("command=\"a\",command=\"b\""), false, false),
            (format!("no-restrict {ED}"), Some("no-restrict"), false, false),
        ] {
            let lines: Vec<KeyLine> = parse_key_lines(line.as_bytes()).collect();
            assert_eq!(lines.first().map(|line| line.options.as_str()), options, "{line:?}");
            let seen = lines.first().map(|line| (line.is_decisive(), line.is_unrestricted()));
            assert_eq!(seen, options.map(|_| (decides, unrestricted)), "{line:?}");
        }
        let rsa = include_str!("rsa3072.pub").trim_end().replace("ssh-rsa ", "rsa-sha2-512 ");
        assert_eq!(
            parse_key_lines(rsa.as_bytes()).count(),
            1,
            "the name of a signature is one of its key's type"
        );
    }

    /// KP-4.5, KP-5.3.
    #[test]
    fn key_files_are_checked_in_sshd_order() {
        let own = Path::new("/home/u/.ssh/authorized_keys");
        let bound = make_key_pair("k", ED);
        let known = std::slice::from_ref(&bound.public_key);
        let block = String::from_utf8(render_key_block(&bound)).unwrap();
        // The shared file before, the agent's file, the file after, and the expected findings.
        for (ahead, ours, behind, copy, still, way) in [
            ("", "", "", None, None, false),
            (
                format!("command=\"/bin/false\" {ED}\n").as_str(),
                "",
                "",
                Some(("ahead", 1)),
                Some(("ahead", 1)),
                false,
            ),
            (&format!("{ED}\n"), &format!("command=\"x\" {ED}\n"), "", None, Some(("ahead", 1)), true),
            ("", &format!("\nno-pty {ED}\n"), "", Some(("own", 5)), Some(("own", 5)), false),
            ("", "", &format!("#\n{ED}\n"), None, Some(("behind", 2)), true),
            ("", "", &format!("restrict {ED}\n"), None, Some(("behind", 1)), false),
            (
                &format!("restrict {ED}\n"),
                "",
                &format!("{ED}\n"),
                Some(("ahead", 1)),
                Some(("ahead", 1)),
                false,
            ),
            (&format!("cert-authority {ED}\n"), "", &format!("{ED}\n"), None, Some(("ahead", 1)), true),
            (&format!("bogus {ED}\n"), "", "", None, Some(("ahead", 1)), false),
            (&format!("restrict {ED2}\n"), &format!("{ED2}\n"), "", None, None, false),
            ("", &format!("{ED2}\n"), &format!("restrict {ED2}\n"), None, None, true),
        ] {
            let files = [
                (PathBuf::from("ahead"), ahead.as_bytes().to_vec()),
                (own.to_owned(), format!("{block}{ours}").into_bytes()),
                (PathBuf::from("behind"), behind.as_bytes().to_vec()),
            ];
            let told = |warning: Option<Warning>| {
                warning.map(|w| {
                    (w.file.unwrap().replace("/home/u/.ssh/authorized_keys", "own"), w.line.unwrap())
                })
            };
            let expected = |place: Option<(&str, usize)>| place.map(|(file, line)| (file.to_owned(), line));
            let case = format!("{ahead:?} {ours:?} {behind:?}");
            assert_eq!(
                told(check_restricted_copy(&files, own, known, &bound.public_key)),
                expected(copy),
                "{case}"
            );
            let places = || locate_unmanaged_key_lines(&files, own, known);
            assert_eq!(told(check_key_still_present(places(), &bound.public_key)), expected(still), "{case}");
            assert_eq!(has_unrestricted_key(places()), way, "{case}");
        }
    }

    /// KP-5.5.
    #[test]
    fn user_lines_inside_managed_block_are_kept() {
        let bound = make_key_pair("k", ED);
        let block = String::from_utf8(render_key_block(&bound)).unwrap();
        let content = block.replace(&format!("{ED}\n"), &format!("{ED2} mine\n{ED}\n"));
        let left = detach_keys(content.as_bytes(), std::slice::from_ref(&bound.public_key));
        assert_eq!(String::from_utf8(left).unwrap(), format!("{ED2} mine\n"));
        let again = attach_key(content.as_bytes(), std::slice::from_ref(&bound.public_key), &bound);
        assert_eq!(String::from_utf8(again).unwrap(), format!("{block}{ED2} mine\n"));
    }

    #[test]
    fn admitting_lines_exclude_restricted_keys() {
        let first = |content: String| {
            filter_admitting_lines(parse_key_lines(content.as_bytes())).next().map(|line| line.line)
        };
        let restricted = format!("command=\"x\" {ED}\n{ED}\n");
        assert_eq!(first(restricted), None, "the first line with a key captures it");
        assert_eq!(first(format!("no-agent-forwarding,no-X11-forwarding {ED}\n")), Some(1));
        assert_eq!(first(format!("restrict {ED}\n{ED2}\n")), Some(2));
    }

    /// Counts the keys that the checks read or compare in a file of this many lines.
    fn count_key_operations(line: impl Fn(u32) -> String, count: u32) -> u64 {
        let own = Path::new("/keys");
        let bound = make_key_pair("k", ED);
        let known = std::slice::from_ref(&bound.public_key);
        let content: String = (0..count).map(line).collect();
        let files = [(own.to_owned(), [render_key_block(&bound), content.clone().into_bytes()].concat())];
        let before = counted::total();
        for known in [known, &[]] {
            let _ = check_restricted_copy(&files, own, known, &bound.public_key);
            let _ =
                check_key_still_present(locate_unmanaged_key_lines(&files, own, known), &bound.public_key);
            let _ = has_unrestricted_key(locate_unmanaged_key_lines(&files, own, known));
            let _ = filter_admitting_lines(unmanaged_key_lines(&files[0].1, known)).count();
            let _ = detach_keys(&files[0].1, known);
            let _ = detach_keys(content.as_bytes(), known);
        }
        counted::total() - before
    }

    #[test]
    fn key_file_cost_grows_linearly() {
        let key = |number: u32| {
            let mut blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
            blob.extend(std::iter::repeat_n(number.to_be_bytes(), 8).flatten());
            format!("ssh-ed25519 {}", Base64::encode_string(&blob))
        };
        let (begin, end) = (block::BEGIN_MARKER, block::END_MARKER);
        type Line<'l> = Box<dyn Fn(u32) -> String + 'l>;
        let shapes: [(&str, Line<'_>); 7] = [
            ("keys", Box::new(|n| format!("{}\n", key(n)))),
            ("restricted", Box::new(|n| format!("restrict {}\n", key(n)))),
            ("the same key", Box::new(|_| format!("restrict {ED}\n"))),
            ("its own key", Box::new(|_| format!("{ED}\n"))),
            ("ends", Box::new(|n| format!("{}\n{end} k\n", key(n)))),
            ("begins", Box::new(|n| format!("{begin} k\n{}\n", key(n)))),
            ("blocks", Box::new(|n| format!("{begin} k\n{}\n{end} k\n", key(n)))),
        ];
        for (name, line) in shapes {
            let (few, many) = (count_key_operations(&line, 100), count_key_operations(&line, 1000));
            assert!(few >= 100 && many <= 15 * few, "{name}: {few}, {many}");
        }
    }

    fn any_key_file(marker: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(format!("{ED} a\n").into_bytes()),
            Just(format!("{ED2}\r\n").into_bytes()),
            Just(format!("command=\"x\" {ED}\n").into_bytes()),
            Just(b"\xef\xbb\xbf".to_vec()),
            Just(marker.to_vec()),
            "[ -~]{0,30}\n".prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..40),
        ];
        proptest::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        /// Attach and then detach restores the same bytes, for any content.
        /// KP-5.6.
        #[test]
        fn attach_then_detach_restores_file(content in any_key_file(b"# BEGIN somebody else\n")) {
            prop_assume!(find_managed_keys(&content, &[]).is_empty());
            let bound = make_key_pair("my-test", &format!("{ED} me@laptop"));
            let attached = attach_key(&content, &[], &bound);
            prop_assert!(attached.starts_with(&render_key_block(&bound)));
            prop_assert_eq!(&detach_keys(&attached, std::slice::from_ref(&bound.public_key)), &content);
            prop_assert_eq!(&detach_keys(&attached, &[]), &content);
            let again = attach_key(&attached, std::slice::from_ref(&bound.public_key), &bound);
            prop_assert_eq!(again, attached);
        }

        /// For any file, an attach writes the key once, at the top, and loses no line of the user's.
        /// KP-5.4, KP-5.5.
        #[test]
        fn attach_to_any_file_binds_once_and_keeps_lines(content in any_key_file(b"# BEGIN keypair-agent\n")) {
            let bound = make_key_pair("my-test", ED);
            let attached = attach_key(&content, std::slice::from_ref(&bound.public_key), &bound);
            prop_assert_eq!(find_block_key_pair(&attached), Some(bound.clone()));
            let kept = attached.len() - render_key_block(&bound).len();
            let gone: usize = find_managed_keys(&content, std::slice::from_ref(&bound.public_key)).iter().map(|s| s.bytes.len()).sum();
            prop_assert_eq!(kept + gone, content.len());
        }
    }
}
