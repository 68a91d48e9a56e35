//! The directives of sshd's configuration, each with its file and line, in the order in which sshd reads them.

use std::path::{Path, PathBuf};

use super::tokens;
use crate::policy::observation::ConfigTree;

/// The nesting depth of `Include` directives at which sshd stops.
const SERVCONF_MAX_DEPTH: usize = 16;

/// An upper bound on the number of directives, so that files that include each other many times cost no more than
/// this.
const MAX_DIRECTIVES: usize = 1 << 16;

/// The connections for which a directive holds: sshd_config(5) "Match".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The directive holds for every connection, and the first value wins.
    Global,
    /// The directive holds only for the connections that a `Match` line picks. It overrides every global value.
    Match {
        /// The file of the innermost `Match` line.
        file: PathBuf,
        /// The number of that line, from 1.
        line: usize,
        /// The words of that line. If an `Include` inside other `Match` blocks led to this file, the words of those
        /// blocks come first.
        criteria: Vec<String>,
    },
}

/// One directive. `Include` and `Match` lines are directives too. A `Match` line belongs to the scope that it opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// The keyword in lower case, under the name in the file: aliases are not resolved.
    pub keyword: String,
    /// Its arguments, without quotes.
    pub arguments: Vec<String>,
    /// The file that contains it.
    pub file: PathBuf,
    /// The line in that file, from 1.
    pub line: usize,
    /// The connections for which it holds.
    pub scope: Scope,
}

impl Directive {
    /// Returns the arguments, joined with blanks.
    pub fn value(&self) -> String {
        self.arguments.join(" ")
    }

    /// Returns true if the directive is outside every `Match` block.
    pub fn is_global(&self) -> bool {
        self.scope == Scope::Global
    }

    /// Returns true if the directive holds for every connection: outside every `Match` block, or in `Match all`.
    pub fn is_for_all(&self) -> bool {
        match &self.scope {
            Scope::Global => true,
            Scope::Match { criteria, .. } => criteria.iter().all(|word| word.eq_ignore_ascii_case("all")),
        }
    }
}

/// Returns every directive of `tree` in sshd's reading order: sshd_config(5). The files of an `Include` are read at
/// the place of that `Include`. Inside a `Match`, an included file is read in the scope of that `Match`. A `Match`
/// inside an included file ends with that file.
pub fn read_directives(tree: &ConfigTree) -> Vec<Directive> {
    let mut found = Vec::new();
    collect_directives(tree, &tree.main, &Scope::Global, &mut Vec::new(), &mut found);
    found
}

fn collect_directives<'a>(
    tree: &'a ConfigTree,
    file: &'a Path,
    outer_scope: &Scope,
    include_stack: &mut Vec<&'a Path>,
    found: &mut Vec<Directive>,
) {
    let Some(content) = tree.files.get(file) else { return };
    // sshd stops with an error if a file includes itself. Here such a file is read once.
    if include_stack.len() > SERVCONF_MAX_DEPTH || include_stack.contains(&file) {
        return;
    }
    include_stack.push(file);
    let mut scope = outer_scope.clone();
    for (index, bytes) in content.split(|&byte| byte == b'\n').enumerate() {
        let Some((keyword, arguments)) = tokens::split_config_line(bytes) else { continue };
        if found.len() >= MAX_DIRECTIVES {
            break;
        }
        let (keyword, line) = (keyword.to_ascii_lowercase(), index + 1);
        if keyword == "match" {
            let mut criteria = match outer_scope {
                Scope::Global => Vec::new(),
                Scope::Match { criteria, .. } => criteria.clone(),
            };
            criteria.extend_from_slice(&arguments);
            scope = Scope::Match { file: file.to_owned(), line, criteria };
        }
        let includes = keyword == "include";
        found.push(Directive { keyword, arguments, file: file.to_owned(), line, scope: scope.clone() });
        if includes {
            let patterns = tree.includes.get(&(file.to_owned(), line)).map_or(&[][..], Vec::as_slice);
            for included in patterns.iter().flat_map(|pattern| &pattern.files) {
                collect_directives(tree, included, &scope, include_stack, found);
            }
        }
    }
    include_stack.pop();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixture::build_config_tree;
    use super::*;

    fn format_directives(tree: &ConfigTree) -> Vec<String> {
        read_directives(tree)
            .into_iter()
            .map(|d| {
                let scope = match d.scope {
                    Scope::Global => String::new(),
                    Scope::Match { criteria, .. } => format!(" [{}]", criteria.join(" ")),
                };
                format!("{}:{} {}={}{scope}", d.file.display(), d.line, d.keyword, d.arguments.join(" "))
            })
            .collect()
    }

    #[test]
    fn directives_keep_reading_order_and_scope() {
        let tree = build_config_tree(&[
            ("/etc/ssh/sshd_config", "Include d/*.conf x\nUsePAM yes\nMatch User bob\nInclude m\nBanner a\n"),
            ("/etc/ssh/d/a.conf", "Port 1\nMatch Group g\n  Banner b\n"),
            ("/etc/ssh/d/b.conf", "Port 2\r\n"),
            ("/etc/ssh/x", "Port 3"),
            ("/etc/ssh/m", "Banner c\nMatch all\nBanner d\n"),
        ]);
        assert_eq!(
            format_directives(&tree),
            [
                "/etc/ssh/sshd_config:1 include=d/*.conf x",
                "/etc/ssh/d/a.conf:1 port=1",
                "/etc/ssh/d/a.conf:2 match=Group g [Group g]",
                "/etc/ssh/d/a.conf:3 banner=b [Group g]",
                "/etc/ssh/d/b.conf:1 port=2",
                "/etc/ssh/x:1 port=3",
                "/etc/ssh/sshd_config:2 usepam=yes",
                "/etc/ssh/sshd_config:3 match=User bob [User bob]",
                "/etc/ssh/sshd_config:4 include=m [User bob]",
                "/etc/ssh/m:1 banner=c [User bob]",
                "/etc/ssh/m:2 match=all [User bob all]",
                "/etc/ssh/m:3 banner=d [User bob all]",
                "/etc/ssh/sshd_config:5 banner=a [User bob]",
            ]
        );
    }

    #[test]
    fn include_cycle_terminates() {
        let line = "Include a b\n".repeat(40);
        let tree = build_config_tree(&[
            ("/etc/ssh/sshd_config", "Include a\n"),
            ("/etc/ssh/a", line.as_str()),
            ("/etc/ssh/b", line.as_str()),
        ]);
        assert!(read_directives(&tree).len() <= MAX_DIRECTIVES);
    }

    proptest! {
        #[test]
        fn directives_are_read_from_any_bytes(main in prop::collection::vec(any::<u8>(), 0..256)) {
            let tree = ConfigTree {
                main: "/m".into(),
                files: [("/m".into(), main)].into(),
                includes: Default::default(),
            };
            let _ = read_directives(&tree);
        }

        #[test]
        fn directives_are_read_from_any_text(
            main in "((Include|Match|Port|\"|=| |#|a|\\*|\n|\r){0,30})",
            other in "((Include|Match|Port|\"|=| |#|a|\\*|\n|\r){0,30})",
        ) {
            let _ = read_directives(&build_config_tree(&[("/etc/ssh/sshd_config", &main), ("/etc/ssh/a", &other)]));
        }
    }
}
