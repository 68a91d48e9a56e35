//! Splits one line of sshd_config into words as sshd does: a keyword, blanks or one `=`, arguments with quotes and
//! backslashes, and a comment.

/// The bytes that separate words.
const BLANK_BYTES: &[u8] = b" \t\r\n";

/// Returns the keyword as written and the arguments of a line. Returns `None` for an empty line or a comment. For some
/// lines that sshd would refuse (an open quote), it returns the part that can be parsed.
pub(super) fn split_config_line(line: &[u8]) -> Option<(String, Vec<String>)> {
    // sshd holds a line as a C string, which ends at the first zero byte.
    let line = line.split(|&byte| byte == 0).next().unwrap_or_default();
    let mut rest = skip_blanks(line);
    while let [head @ .., last] = rest {
        if !BLANK_BYTES.contains(last) && *last != b'\x0c' {
            break;
        }
        rest = head;
    }
    let (mut keyword, mut arguments) = first_word(rest)?;
    if keyword.is_empty() {
        (keyword, arguments) = first_word(arguments)?;
    }
    if keyword.is_empty() || keyword.starts_with(b"#") {
        return None;
    }
    Some((lossy_utf8(&keyword), split_arguments(arguments)))
}

fn lossy_utf8(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn skip_blanks(bytes: &[u8]) -> &[u8] {
    let from = bytes.iter().position(|byte| !BLANK_BYTES.contains(byte)).unwrap_or(bytes.len());
    bytes.get(from..).unwrap_or_default()
}

/// Returns the word up to a blank, a quote or `=`, and the rest of the line. Returns `None` if a quote is not closed.
fn first_word(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let end = bytes.iter().position(|&byte| BLANK_BYTES.contains(&byte) || byte == b'"' || byte == b'=');
    let Some((word, [separator, behind @ ..])) = end.and_then(|end| bytes.split_at_checked(end)) else {
        return Some((bytes.to_vec(), &[]));
    };
    if *separator == b'"' {
        let close = behind.iter().position(|&byte| byte == b'"')?;
        let (quoted, behind) = behind.split_at_checked(close)?;
        return Some(([word, quoted].concat(), skip_blanks(behind.get(1..).unwrap_or_default())));
    }
    let mut behind = skip_blanks(behind);
    if *separator != b'=' {
        behind = behind.strip_prefix(b"=").map_or(behind, skip_blanks);
    }
    Some((word.to_vec(), behind))
}

/// Returns the arguments, split at blanks outside quotes. A word that begins with `#` ends them.
fn split_arguments(bytes: &[u8]) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote: Option<u8> = None;
    let mut bytes = bytes.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match (byte, quote) {
            (b' ' | b'\t', None) => words.extend(word.take().map(|word| lossy_utf8(&word))),
            (b'#', None) if word.is_none() => break,
            (b'"' | b'\'', None) => {
                quote = Some(byte);
                word.get_or_insert_default();
            }
            (_, Some(open)) if byte == open => quote = None,
            (b'\\', _) => {
                let escaped = bytes.next_if(|&next| {
                    matches!(next, b'"' | b'\'' | b'\\') || (quote.is_none() && next == b' ')
                });
                word.get_or_insert_default().push(escaped.unwrap_or(byte));
            }
            _ => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word.map(|word| lossy_utf8(&word)));
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn config_line_is_split_as_sshd_does() {
        for (line, expected) in [
            ("PasswordAuthentication no", Some(("PasswordAuthentication", vec!["no"]))),
            ("  \tPasswordAuthentication\tno  ", Some(("PasswordAuthentication", vec!["no"]))),
            ("PasswordAuthentication=no", Some(("PasswordAuthentication", vec!["no"]))),
            ("PasswordAuthentication = no\r", Some(("PasswordAuthentication", vec!["no"]))),
            ("PasswordAuthentication =no", Some(("PasswordAuthentication", vec!["no"]))),
            ("PasswordAuthentication \"no\"", Some(("PasswordAuthentication", vec!["no"]))),
            ("PasswordAuthentication=\"no\"", Some(("PasswordAuthentication", vec!["no"]))),
            ("\"PasswordAuthentication\" no", Some(("PasswordAuthentication", vec!["no"]))),
            ("=PasswordAuthentication no", Some(("PasswordAuthentication", vec!["no"]))),
            ("PasswordAuthentication no # why", Some(("PasswordAuthentication", vec!["no"]))),
            ("PasswordAuthentication no\x0c", Some(("PasswordAuthentication", vec!["no"]))),
            ("Include \"/a b/*.conf\" c\\ d 'e f'", Some(("Include", vec!["/a b/*.conf", "c d", "e f"]))),
            ("Banner a#b \"\"", Some(("Banner", vec!["a#b", ""]))),
            ("UsePAM", Some(("UsePAM", vec![]))),
            ("# PasswordAuthentication no", None),
            ("\t#PasswordAuthentication no", None),
            ("", None),
            (" \r", None),
            ("\"open", None),
        ] {
            let said = split_config_line(line.as_bytes());
            let said = said.as_ref().map(|(k, v)| (k.as_str(), v.iter().map(String::as_str).collect()));
            assert_eq!(said, expected, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn config_line_of_any_bytes_is_split(line in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = split_config_line(&line);
        }
    }
}
