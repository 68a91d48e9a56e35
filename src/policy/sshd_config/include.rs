//! Parses `Include` directives, and the hosts that `Match` and `AllowUsers` rules name. A query to sshd about all
//! users must avoid these hosts.

use std::path::{Path, PathBuf};

use super::tokens;

/// The directory of relative `Include` paths, sshd_config(5). It holds for every sshd that is built like those of all
/// distributions.
pub const SSH_DIR: &str = "/etc/ssh";

/// Returns the `Include` directives of a file: line number (from 1) and absolute patterns.
pub fn parse_include_patterns(content: &[u8]) -> Vec<(usize, Vec<PathBuf>)> {
    parse_include_patterns_in(Some(Path::new(SSH_DIR)), content)
}

/// Does the same with `ssh_dir` as the directory of relative patterns. If it is `None`, relative patterns are left
/// out.
pub fn parse_include_patterns_in(ssh_dir: Option<&Path>, content: &[u8]) -> Vec<(usize, Vec<PathBuf>)> {
    let absolute = |pattern: String| match ssh_dir {
        Some(ssh_dir) => Some(ssh_dir.join(pattern)),
        None => Some(PathBuf::from(pattern)).filter(|pattern| pattern.is_absolute()),
    };
    parse_directive_lines(content)
        .filter(|(_, keyword, _)| keyword == "include")
        .map(|(line, _, arguments)| (line, arguments.into_iter().filter_map(absolute).collect()))
        .collect()
}

/// Returns true if a file has an `Include` with a relative path.
pub fn has_relative_include(content: &[u8]) -> bool {
    parse_directive_lines(content).any(|(_, keyword, arguments)| {
        keyword == "include" && arguments.iter().any(|pattern| !pattern.starts_with('/'))
    })
}

/// Returns the patterns of `Include` directives that are commented out in a file. The file may have included them in
/// the past.
pub fn parse_commented_include_patterns(content: &[u8]) -> Vec<PathBuf> {
    let uncommented = |line: &[u8]| {
        let line = line.trim_ascii_start();
        let text = line.strip_prefix(b"#")?;
        let (keyword, arguments) = tokens::split_config_line(text)?;
        keyword.eq_ignore_ascii_case("include").then_some(arguments)
    };
    let patterns = content.split(|byte| *byte == b'\n').filter_map(uncommented).flatten();
    patterns.map(|pattern| Path::new(SSH_DIR).join(pattern)).collect()
}

/// Returns the host patterns that the rules of a file name. They come from `Match Address`, from `Match Host`, and
/// from the part after an `@` in `AllowUsers` and `DenyUsers`.
pub fn parse_rule_hosts(content: &[u8]) -> Vec<String> {
    let mut hosts = Vec::new();
    for (_, keyword, arguments) in parse_directive_lines(content) {
        match keyword.as_str() {
            "match" => {
                // The form is `Match Address 10.0.0.0/8`, and since 9.9 also `Match Address=10.0.0.0/8`.
                let words: Vec<&str> = arguments.iter().flat_map(|word| word.split('=')).collect();
                for pair in words.windows(2) {
                    if ["address", "host"].contains(&pair[0].to_ascii_lowercase().as_str()) {
                        hosts.extend(pair[1].split(',').map(str::to_owned));
                    }
                }
            }
            "allowusers" | "denyusers" => {
                let of = |word: &String| word.rsplit_once('@').map(|(_, host)| host.to_owned());
                hosts.extend(arguments.iter().filter_map(of));
            }
            _ => {}
        }
    }
    hosts
}

/// Returns the directives of a file: line number (from 1), keyword in lower case, arguments.
fn parse_directive_lines(content: &[u8]) -> impl Iterator<Item = (usize, String, Vec<String>)> + '_ {
    content.split(|byte| *byte == b'\n').zip(1..).filter_map(|(line, number)| {
        let (keyword, arguments) = tokens::split_config_line(line)?;
        Some((number, keyword.to_ascii_lowercase(), arguments))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn include_patterns_are_parsed_and_made_absolute() {
        type Case<'c> = (&'c str, &'c [(usize, &'c [&'c str])]);
        let cases: &[Case<'_>] = &[
            ("", &[]),
            ("Include /a/*.conf\n", &[(1, &["/a/*.conf"])]),
            ("#Include /a\nPort 22\n  iNCLUDE\t/a b # /c\r\n", &[(3, &["/a", "/etc/ssh/b"])]),
            ("Include=/a", &[(1, &["/a"])]),
            ("Include = \"/a b/*\" '/c d'", &[(1, &["/a b/*", "/c d"])]),
            (
                "Match User x\n Include sshd_config.d/x\nInclude y",
                &[(2, &["/etc/ssh/sshd_config.d/x"]), (3, &["/etc/ssh/y"])],
            ),
            ("Includes /a", &[]),
        ];
        for (text, expected) in cases {
            let expected: Vec<(usize, Vec<PathBuf>)> = expected
                .iter()
                .map(|(line, paths)| (*line, paths.iter().map(PathBuf::from).collect()))
                .collect();
            assert_eq!(parse_include_patterns(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn relative_include_starts_at_given_directory() {
        let text = b"Include d/*.conf /a\n";
        let found = parse_include_patterns_in(Some(Path::new("/usr/local/etc")), text);
        assert_eq!(found, [(1, vec![PathBuf::from("/usr/local/etc/d/*.conf"), PathBuf::from("/a")])]);
        assert_eq!(parse_include_patterns_in(None, text), [(1, vec![PathBuf::from("/a")])]);
        for (text, expected) in [
            ("Include d/*.conf", true),
            ("Include /a b\n", true),
            ("Include /a\n#Include b\n", false),
            ("", false),
        ] {
            assert_eq!(has_relative_include(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn commented_include_patterns_are_found() {
        let text = "#Include /a/*.conf\n  # include b/c\nInclude /d\n# includes /e\n##Include /f\n#\n";
        let expected = ["/a/*.conf", "/etc/ssh/b/c"].map(PathBuf::from);
        assert_eq!(parse_commented_include_patterns(text.as_bytes()), expected);
    }

    #[test]
    fn rule_hosts_are_listed() {
        let text = "AllowUsers root@192.0.2.1 joe u@10.0.0.0/8\nDenyUsers \"x@*.evil\"\n\
                    Match user y address 192.0.2.0/24,!192.0.2.7\nMatch Host=a.b,c LocalAddress 1.2.3.4\n";
        let expected = ["192.0.2.1", "10.0.0.0/8", "*.evil", "192.0.2.0/24", "!192.0.2.7", "a.b", "c"];
        assert_eq!(parse_rule_hosts(text.as_bytes()), expected);
    }
}
