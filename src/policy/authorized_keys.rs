//! authorized_keys as sshd(8) reads it, and our block in it (contract 5).

use super::block::{self, Marker, Segment, lines};
use super::command::KeyPair;
use super::public_key::PublicKey;

/// Options in front of a key that neither refuse a login nor send it elsewhere (sshd(8),
/// "AUTHORIZED_KEYS FILE FORMAT").
const HARMLESS_OPTIONS: [&str; 10] = [
    "agent-forwarding",
    "no-agent-forwarding",
    "no-port-forwarding",
    "no-touch-required",
    "no-user-rc",
    "no-x11-forwarding",
    "port-forwarding",
    "pty",
    "user-rc",
    "x11-forwarding",
];

/// A line that sshd would read as a key of an accepted kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLine {
    /// Its number, from 1.
    pub line: usize,
    /// What stands in front of the key.
    pub options: String,
    /// The key.
    pub key: PublicKey,
}

impl KeyLine {
    /// Whether every option in front of it is one that neither refuses a login nor redirects it.
    pub fn is_unrestricted(&self) -> bool {
        self.options.split(',').all(|option| {
            option.is_empty() || HARMLESS_OPTIONS.contains(&option.to_ascii_lowercase().as_str())
        })
    }
}

/// The options of a line that restrict a login, for sshd before 7.7, whose log does not list them; empty: none, or
/// the line is no key.
pub fn restrictions(line: &[u8]) -> Vec<String> {
    let options = parse_line(line).map(|(options, _)| options).unwrap_or_default();
    let names = options.split(',').map(|option| option.split('=').next().unwrap_or_default());
    let is_harmless =
        |name: &str| name.is_empty() || HARMLESS_OPTIONS.contains(&name.to_ascii_lowercase().as_str());
    names.filter(|name| !is_harmless(name)).map(|name| name.chars().take(40).collect()).collect()
}

/// The key lines of a file, in order. Comments, blank lines and what sshd could not parse are passed over; so
/// is a first line behind a byte order mark, which sshd cannot parse either.
pub fn key_lines(content: &[u8]) -> Vec<KeyLine> {
    content
        .split(|byte| *byte == b'\n')
        .enumerate()
        .filter_map(|(index, line)| {
            let (options, key) = parse_line(line)?;
            Some(KeyLine { line: index + 1, options, key })
        })
        .collect()
}

/// The options and the key of one line.
fn parse_line(line: &[u8]) -> Option<(String, PublicKey)> {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches(['\r', '\n']).trim_start_matches([' ', '\t']);
    if text.is_empty() || text.starts_with('#') {
        return None;
    }
    if let Some(key) = key_at(text) {
        return Some((String::new(), key));
    }
    // Options run to the first blank outside quotes.
    let mut quoted = false;
    let mut escaped = false;
    let end = text.find(|character| {
        match character {
            '"' if !escaped => quoted = !quoted,
            ' ' | '\t' if !quoted => return true,
            _ => {}
        }
        escaped = character == '\\' && !escaped;
        false
    })?;
    let (options, rest) = text.split_at(end);
    Some((options.to_owned(), key_at(rest.trim_start_matches([' ', '\t']))?))
}

/// The key that `text` begins with; what follows the blob takes no part in it.
fn key_at(text: &str) -> Option<PublicKey> {
    let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
    let (algorithm, blob) = (words.next()?, words.next()?);
    PublicKey::parse(&format!("{algorithm} {blob}")).ok()
}

/// Our block for a key pair: begin, the key with its comment, end.
pub fn render(key_pair: &KeyPair) -> Vec<u8> {
    let KeyPair { key_name, public_key } = key_pair;
    format!(
        "{} {key_name} (bound by the cloud; \"keypair-agent undo\" takes it out)\n{}\n{} {key_name}\n",
        block::BEGIN,
        public_key.line(),
        block::END
    )
    .into_bytes()
}

/// What is ours in the file. `known` are the keys that the state says we bound; where it says nothing, the
/// first key without options beside our markers is ours.
pub fn ours(content: &[u8], known: &[PublicKey]) -> Vec<Segment> {
    let mut first: Option<PublicKey> = None;
    block::find(content, |line| match parse_line(line) {
        Some((_, key)) if !known.is_empty() => known.contains(&key),
        Some((options, key)) if options.is_empty() => *first.get_or_insert_with(|| key.clone()) == key,
        _ => false,
    })
}

/// The key pair whose block stands in the file, told by the block alone.
pub fn standing(content: &[u8]) -> Option<KeyPair> {
    let mut name = None;
    for line in lines(content) {
        match block::marker(line.bytes) {
            Some(Marker::Begin(named)) => name = named,
            Some(Marker::End) => name = None,
            None => {
                if let (Some(key_name), Some((options, public_key))) = (&name, parse_line(line.bytes))
                    && options.is_empty()
                {
                    let text = String::from_utf8_lossy(line.bytes);
                    // With its comment where that can be told, since the block is written with it.
                    let public_key = PublicKey::parse(text.trim()).unwrap_or(public_key);
                    return Some(KeyPair { key_name: key_name.clone(), public_key });
                }
            }
        }
    }
    None
}

/// Another line with this key: the first one in the file as it is without our block.
pub fn copy_of<'a>(without_ours: &'a [KeyLine], key: &PublicKey) -> Option<&'a KeyLine> {
    without_ours.iter().find(|line| line.key == *key)
}

/// The lines that let the user in as far as the file goes: no option refuses or redirects them, and no earlier line
/// with the same key does.
pub fn ways_in(lines: &[KeyLine]) -> impl Iterator<Item = &KeyLine> {
    lines.iter().filter(|line| {
        line.is_unrestricted() && copy_of(lines, &line.key).is_none_or(KeyLine::is_unrestricted)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::block::BlockEdit;
    use super::*;
    use proptest::prelude::*;

    fn bind(content: &[u8], known: &[PublicKey], key_pair: &KeyPair) -> Vec<u8> {
        BlockEdit { removed: ours(content, known), inserted: render(key_pair) }.apply(content)
    }

    fn unbind(content: &[u8], known: &[PublicKey]) -> Vec<u8> {
        BlockEdit { removed: ours(content, known), inserted: Vec::new() }.apply(content)
    }

    const ED: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF86eSkqX3I2gC8oUEbWaJ54JKEt/jagDdVjCuOifDfx";
    const ED2: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBbwm4k+8KMF07qcLVz/eSGyj97QI+EJtkleEe2kMvbt";

    fn pair(name: &str, line: &str) -> KeyPair {
        KeyPair { key_name: name.parse().unwrap(), public_key: PublicKey::parse(line).unwrap() }
    }

    #[test]
    fn the_block_is_as_the_contract_says() {
        let text = String::from_utf8(render(&pair("my-test", &format!("{ED} me@laptop")))).unwrap();
        assert_eq!(
            text,
            format!(
                "# BEGIN keypair-agent my-test (bound by the cloud; \"keypair-agent undo\" takes it out)\n\
                 {ED} me@laptop\n# END keypair-agent my-test\n"
            )
        );
        assert_eq!(standing(text.as_bytes()), Some(pair("my-test", ED)));
    }

    #[test]
    fn lines_as_sshd_reads_them() {
        let content = format!(
            "# c\n\n  {ED} x\r\n{ED2}\ncommand=\"echo \\\"a b\\\" c\",no-pty {ED} y\nfrom=\"10.0.0.0/8\" {ED2}\nbroken\n{ED}{ED2}\n"
        );
        let lines = key_lines(content.as_bytes());
        let seen: Vec<(usize, &str)> = lines.iter().map(|line| (line.line, line.options.as_str())).collect();
        assert_eq!(
            seen,
            [(3, ""), (4, ""), (5, "command=\"echo \\\"a b\\\" c\",no-pty"), (6, "from=\"10.0.0.0/8\"")]
        );
        assert!(key_lines(format!("\u{feff}{ED}\n").as_bytes()).is_empty());
    }

    #[test]
    fn the_users_lines_in_our_block_stay() {
        let bound = pair("k", ED);
        let block = String::from_utf8(render(&bound)).unwrap();
        let content = block.replace(&format!("{ED}\n"), &format!("{ED2} mine\n{ED}\n"));
        let left = unbind(content.as_bytes(), std::slice::from_ref(&bound.public_key));
        assert_eq!(String::from_utf8(left).unwrap(), format!("{ED2} mine\n"));
        let again = bind(content.as_bytes(), std::slice::from_ref(&bound.public_key), &bound);
        assert_eq!(String::from_utf8(again).unwrap(), format!("{block}{ED2} mine\n"));
    }

    #[test]
    fn what_still_lets_the_user_in() {
        let restricted = key_lines(format!("command=\"x\" {ED}\n{ED}\n").as_bytes());
        assert_eq!(ways_in(&restricted).next(), None, "the first line with a key captures it");
        let free = key_lines(format!("no-agent-forwarding,no-X11-forwarding {ED}\n").as_bytes());
        assert_eq!(ways_in(&free).next().map(|line| line.line), Some(1));
        let other = key_lines(format!("restrict {ED}\n{ED2}\n").as_bytes());
        assert_eq!(ways_in(&other).next().map(|line| line.line), Some(2));
    }

    fn files(marker: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
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
        /// Attach, then detach, gives back the same bytes, whatever they were.
        #[test]
        fn attach_then_detach_is_the_identity(content in files(b"# BEGIN somebody else\n")) {
            prop_assume!(ours(&content, &[]).is_empty());
            let bound = pair("my-test", &format!("{ED} me@laptop"));
            let attached = bind(&content, &[], &bound);
            prop_assert!(attached.starts_with(&render(&bound)));
            prop_assert_eq!(&unbind(&attached, std::slice::from_ref(&bound.public_key)), &content);
            prop_assert_eq!(&unbind(&attached, &[]), &content);
            let again = bind(&attached, std::slice::from_ref(&bound.public_key), &bound);
            prop_assert_eq!(again, attached);
        }

        /// Whatever the file, a bound key is bound once, at the top, and no line of the user's is lost.
        #[test]
        fn attach_over_anything(content in files(b"# BEGIN keypair-agent\n")) {
            let bound = pair("my-test", ED);
            let attached = bind(&content, std::slice::from_ref(&bound.public_key), &bound);
            prop_assert_eq!(standing(&attached), Some(bound.clone()));
            let kept = attached.len() - render(&bound).len();
            let gone: usize = ours(&content, std::slice::from_ref(&bound.public_key)).iter().map(|s| s.bytes.len()).sum();
            prop_assert_eq!(kept + gone, content.len());
        }
    }
}
