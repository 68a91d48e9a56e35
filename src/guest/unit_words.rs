//! Parses the command with which a systemd unit starts its program: the output of busctl(1), environment files
//! (systemd.exec(5)) and the expansion of variables (systemd.service(5), "Command lines"). Pure functions.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// One property in busctl's output: the signature and the values. Strings are without their quotes.
struct BusctlProperty {
    signature: String,
    values: std::vec::IntoIter<String>,
}

impl BusctlProperty {
    /// The next string or number; `None` after the last one.
    fn next_value(&mut self) -> Option<String> {
        self.values.next()
    }

    fn next_count(&mut self) -> Option<usize> {
        self.next_value()?.parse().ok()
    }

    fn next_strings(&mut self) -> Option<Vec<String>> {
        let count = self.next_count()?;
        // Not `take(count)`: a wrong count must be an error.
        (0..count).map(|_| self.next_value()).collect()
    }
}

/// The program of the first command of `ExecStart`, and its arguments. If the line begins with `@`, argv[0] is not
/// the program's path.
pub(super) fn parse_exec_start_property(line: &str) -> Option<(PathBuf, Vec<String>)> {
    let mut property = parse_property(line)?;
    if !property.signature.starts_with("a(sas") || property.next_count()? == 0 {
        return None;
    }
    let program = PathBuf::from(property.next_value()?);
    let words = property.next_strings().filter(|words| !words.is_empty())?;
    Some((program, words))
}

/// A list of strings, such as `Environment` or `PassEnvironment`.
pub(super) fn parse_string_list(line: &str) -> Option<Vec<String>> {
    let mut property = parse_property(line).filter(|property| property.signature == "as")?;
    property.next_strings()
}

/// `EnvironmentFiles`: each path, and whether it may be missing.
pub(super) fn parse_environment_files(line: &str) -> Option<Vec<(PathBuf, bool)>> {
    let mut property = parse_property(line).filter(|property| property.signature == "a(sb)")?;
    let count = property.next_count()?;
    (0..count)
        .map(|_| Some((PathBuf::from(property.next_value()?), property.next_value()? == "true")))
        .collect()
}

/// Splits a line of `busctl get-property`. A quoted string has C escapes.
fn parse_property(line: &str) -> Option<BusctlProperty> {
    let (signature, mut rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
    let mut values = Vec::new();
    loop {
        rest = rest.trim_start_matches(' ');
        if rest.is_empty() {
            break;
        }
        let Some(quoted) = rest.strip_prefix('"') else {
            let (word, behind) = rest.split_once(' ').unwrap_or((rest, ""));
            values.push(word.to_owned());
            rest = behind;
            continue;
        };
        let (value, behind) = unescape_c_string(quoted)?;
        values.push(value);
        rest = behind;
    }
    Some(BusctlProperty { signature: signature.to_owned(), values: values.into_iter() })
}

/// A string up to its closing quote, and the rest of the text after it.
fn unescape_c_string(text: &str) -> Option<(String, &str)> {
    let mut bytes = Vec::new();
    let mut chars = text.char_indices();
    loop {
        let (at, c) = chars.next()?;
        let (code, digits) = match c {
            '"' => return Some((String::from_utf8(bytes).ok()?, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => (b'\n', 0),
                't' => (b'\t', 0),
                'r' => (b'\r', 0),
                'a' => (7, 0),
                'b' => (8, 0),
                'f' => (12, 0),
                'v' => (11, 0),
                's' => (b' ', 0),
                'x' => (u8::from_str_radix(text.get(at + 2..at + 4)?, 16).ok()?, 2),
                '0'..='7' => (u8::from_str_radix(text.get(at + 1..at + 4)?, 8).ok()?, 2),
                other => (u8::try_from(other).ok()?, 0),
            },
            c => {
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
        };
        bytes.push(code);
        for _ in 0..digits {
            chars.next();
        }
    }
}

/// The assignments in an environment file. Comments, quotes and continued lines are handled as systemd does.
pub(super) fn parse_environment_file(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(first) = chars.peek().copied() {
        if first.is_whitespace() {
            chars.next();
            continue;
        }
        if matches!(first, '#' | ';') {
            while chars.next().is_some_and(|c| c != '\n') {}
            continue;
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| !matches!(c, '=' | '\n')) {
            name.push(c);
        }
        if chars.next() == Some('=') {
            found.push((name.trim_end().to_owned(), parse_value(&mut chars)));
        }
    }
    found
}

/// The value after the `=` of an assignment, up to the end of its line.
fn parse_value(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    let mut value = String::new();
    // Blanks at the end, outside of quotes, are removed.
    let mut kept = 0;
    let mut bare = false;
    while let Some(c) = chars.next() {
        match c {
            '\n' => break,
            '\'' if !bare => {
                value.extend(std::iter::from_fn(|| chars.next_if(|c| *c != '\'')));
                chars.next();
                kept = value.len();
            }
            '"' if !bare => {
                parse_double_quoted(chars, &mut value);
                kept = value.len();
            }
            '\\' => {
                bare = true;
                value.extend(chars.next().filter(|c| *c != '\n'));
                kept = value.len();
            }
            c if c.is_whitespace() && !bare => {}
            c => {
                bare = true;
                value.push(c);
                if !c.is_whitespace() {
                    kept = value.len();
                }
            }
        }
    }
    value.truncate(kept);
    value
}

/// Reads up to the closing double quote. Inside, a backslash escapes only `"`, `\`, `` ` ``, `$` and a line's end.
fn parse_double_quoted(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, value: &mut String) {
    while let Some(c) = chars.next() {
        match c {
            '"' => return,
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some(c @ ('"' | '\\' | '`' | '$')) => value.push(c),
                Some(c) => value.extend(['\\', c]),
            },
            c => value.push(c),
        }
    }
}

/// Expands the words of a command as systemd does before it starts the command. `$NAME` as a whole word becomes the
/// words of its value, or no word if it is unset. `${NAME}` becomes its value without a split. `$$` becomes `$`.
///
/// `unknown` are the variables whose value cannot be known. The error is the name of such a variable if a word uses
/// it.
pub(super) fn expand_variables(
    words: &[String],
    environment: &BTreeMap<String, String>,
    unknown: &[String],
) -> Result<Vec<String>, String> {
    let lookup = |name: &str| match environment.get(name) {
        Some(value) => Ok(value.as_str()),
        None if unknown.iter().any(|unknown| unknown == name) => Err(name.to_owned()),
        None => Ok(""),
    };
    let mut expanded = Vec::new();
    for word in words {
        match word.strip_prefix('$').filter(|rest| !rest.starts_with(['{', '$'])) {
            Some(name) if !name.is_empty() => expanded.extend(split_words(lookup(name)?)),
            _ => expanded.push(expand_braced_variables(word, lookup)?),
        }
    }
    Ok(expanded)
}

/// Expands `${NAME}` and `$$` inside a word.
fn expand_braced_variables<'v>(
    word: &str,
    lookup: impl Fn(&str) -> Result<&'v str, String>,
) -> Result<String, String> {
    let mut expanded = String::with_capacity(word.len());
    let mut rest = word;
    while let Some((before, behind)) = rest.split_once('$') {
        expanded.push_str(before);
        rest = behind;
        if let Some(behind) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = behind;
        } else if let Some((name, behind)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            expanded.push_str(lookup(name)?);
            rest = behind;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Splits the value of a variable at blanks. Quotes and backslashes are respected.
fn split_words(value: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_ascii_whitespace() => words.extend(word.take()),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), c) if c == open => quote = None,
            (_, '\\') => word.get_or_insert_default().extend(chars.next()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn busctl_properties_are_parsed() {
        let line = r#"a(sasbttttuii) 1 "/usr/sbin/sshd" 4 "/usr/sbin/sshd" "-D" "-oBanner=\"a b\"\x41\303\244\n" "$SSHD_OPTS" false 1 2 3 4 0 0 0"#;
        let expected = words(&["/usr/sbin/sshd", "-D", "-oBanner=\"a b\"Aä\n", "$SSHD_OPTS"]);
        assert_eq!(parse_exec_start_property(line), Some((PathBuf::from("/usr/sbin/sshd"), expected)));
        let line = r#"a(sasbttttuii) 1 "/opt/sshd" 2 "/usr/sbin/sshd" "-D" false 1 2 3 4 0 0 0"#;
        let expected = words(&["/usr/sbin/sshd", "-D"]);
        assert_eq!(parse_exec_start_property(line), Some((PathBuf::from("/opt/sshd"), expected)));
        for line in
            ["", "a(sasbttttuii) 0", "as 1 \"x\"", r#"a(sasbttttuii) 1 "/x" 3 "/x" "-D""#, r#"a(sas) 1 "/x"#]
        {
            assert_eq!(parse_exec_start_property(line), None, "{line}");
        }
        assert_eq!(parse_string_list(r#"as 2 "A=b c" "D=""#), Some(words(&["A=b c", "D="])));
        assert_eq!(parse_string_list("as 0\n"), Some(Vec::new()));
        assert_eq!(parse_string_list("s \"\""), None);
        let files = parse_environment_files(r#"a(sb) 2 "/etc/default/ssh" true "/etc/x" false"#);
        assert_eq!(files, Some(vec![("/etc/default/ssh".into(), true), ("/etc/x".into(), false)]));
    }

    #[test]
    fn environment_file_is_parsed_like_systemd() {
        for (text, expected) in [
            ("", &[] as &[(&str, &str)]),
            ("# c\n; d\n\nA=b\n B = c d  \nC\n", &[("A", "b"), ("B", "c d")]),
            ("SSHD_OPTS=\n", &[("SSHD_OPTS", "")]),
            ("A=\"-o X=y \\\"z\\\" \\d\" \nB='q \"r\\' s\n", &[("A", "-o X=y \"z\" \\d"), ("B", "q \"r\\s")]),
            ("A=b \\\n c\nB=\"x\\\ny\"", &[("A", "b  c"), ("B", "xy")]),
            ("A=it's # not a comment\n", &[("A", "it's # not a comment")]),
        ] {
            let found = parse_environment_file(text);
            let found: Vec<(&str, &str)> = found.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn exec_start_variables_are_expanded() {
        let environment: BTreeMap<String, String> =
            [("OPTS", "-o 'Banner=a b' -p\\ 22"), ("EMPTY", ""), ("PORT", "22 23")]
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
        let unknown = words(&["PASSED"]);
        for (given, expected) in [
            (&["s", "-D", "$OPTS"] as &[&str], Ok(&["s", "-D", "-o", "Banner=a b", "-p 22"] as &[&str])),
            (&["s", "$EMPTY", "$UNSET", "-D"], Ok(&["s", "-D"])),
            (
                &["s", "-p${PORT}", "x$OPTS", "a$$b", "$$PORT", "${UNSET}", "$"],
                Ok(&["s", "-p22 23", "x$OPTS", "a$b", "$PORT", "", "$"]),
            ),
            (&["s", "$PASSED"], Err("PASSED")),
            (&["s", "-o${PASSED}"], Err("PASSED")),
        ] {
            let found = expand_variables(&words(given), &environment, &unknown);
            assert_eq!(found, expected.map(words).map_err(str::to_owned), "{given:?}");
        }
    }
}
