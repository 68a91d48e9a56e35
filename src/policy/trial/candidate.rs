//! Builds sshd's configuration as it will be after the command, as text for a private sshd.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::policy::observation::ConfigTree;
use crate::policy::sshd_config::read_directives;

/// The text of a private sshd's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateConfig {
    /// The main file: the new directives, then the text of the present main file. The text is copied and not included,
    /// because OpenSSH 8.2 and 8.3 ignore `Match` in an included file.
    pub main: Vec<u8>,
    /// Included files with changed content, by path.
    pub included: BTreeMap<PathBuf, Vec<u8>>,
}

/// Builds the candidate: the directives `ahead`, then the present files. A `LogLevel` inside a `Match` would silence
/// the log that contains the answer, so such lines become comments.
pub fn build_candidate_config(tree: &ConfigTree, ahead: &str) -> CandidateConfig {
    let mut silenced: BTreeMap<&PathBuf, Vec<usize>> = BTreeMap::new();
    let all = read_directives(tree);
    for directive in all.iter().filter(|directive| directive.keyword == "loglevel" && !directive.is_global())
    {
        silenced.entry(&directive.file).or_default().push(directive.line);
    }
    let text_of = |file: &PathBuf| {
        let content = tree.files.get(file).map(Vec::as_slice).unwrap_or_default();
        match silenced.get(file) {
            Some(lines) => comment_out(content, lines),
            None => content.to_vec(),
        }
    };
    let mut main = ahead.as_bytes().to_vec();
    if !main.is_empty() && !main.ends_with(b"\n") {
        main.push(b'\n');
    }
    main.extend(text_of(&tree.main));
    let included = silenced.keys().filter(|file| ***file != tree.main);
    CandidateConfig { main, included: included.map(|file| ((*file).clone(), text_of(file))).collect() }
}

/// Returns the text with these lines (from 1) as comments.
fn comment_out(content: &[u8], lines: &[usize]) -> Vec<u8> {
    let mut text = Vec::with_capacity(content.len() + lines.len());
    for (line, number) in content.split_inclusive(|byte| *byte == b'\n').zip(1..) {
        if lines.contains(&number) {
            text.push(b'#');
        }
        text.extend_from_slice(line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sshd_config::fixture::build_config_tree;

    #[test]
    fn log_level_inside_match_is_commented_out() {
        let tree = build_config_tree(&[
            (
                "/etc/ssh/sshd_config",
                "LogLevel INFO\nInclude /etc/ssh/d.d/*\nMatch User u\n  LogLevel QUIET\n",
            ),
            ("/etc/ssh/d.d/a", "Match all\nloglevel=QUIET"),
            ("/etc/ssh/d.d/b", "LogLevel VERBOSE\n"),
        ]);
        let candidate = build_candidate_config(&tree, "PasswordAuthentication no");
        assert_eq!(
            String::from_utf8_lossy(&candidate.main),
            "PasswordAuthentication no\nLogLevel INFO\nInclude /etc/ssh/d.d/*\nMatch User u\n#  LogLevel QUIET\n"
        );
        let expected: BTreeMap<PathBuf, Vec<u8>> =
            [(PathBuf::from("/etc/ssh/d.d/a"), b"Match all\n#loglevel=QUIET".to_vec())].into();
        assert_eq!(candidate.included, expected);
    }
}
