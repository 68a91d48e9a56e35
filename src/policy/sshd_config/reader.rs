//! The directives of sshd's configuration in the order in which sshd reads them, each with its place.

use std::path::{Path, PathBuf};

use super::tokens;
use crate::policy::observation::ConfigTree;

/// How deep sshd lets Include directives go.
const DEEPEST: usize = 16;

/// A bound on what is read, so that files that include each other over and over cost no more than this.
const MOST: usize = 1 << 16;

/// For whom a directive holds: sshd_config(5) "Match".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// For everyone, and the first value wins.
    Global,
    /// For those whom a `Match` line picks; it beats every global value.
    Match {
        /// The file of the innermost `Match` line.
        file: PathBuf,
        /// That line, from 1.
        line: usize,
        /// The words of it, ahead of them those of the `Match` blocks around an Include that led here.
        criteria: Vec<String>,
    },
}

/// One directive. `Include` and `Match` lines are directives too; a `Match` line is in the scope it opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// The keyword in lower case, as it stands there: aliases are not resolved.
    pub keyword: String,
    /// Its arguments, quotes taken off.
    pub arguments: Vec<String>,
    /// The file it stands in.
    pub file: PathBuf,
    /// The line in that file, from 1.
    pub line: usize,
    /// For whom it holds.
    pub scope: Scope,
}

impl Directive {
    /// The arguments as one text.
    pub fn value(&self) -> String {
        self.arguments.join(" ")
    }

    /// Whether it stands outside every `Match` block.
    pub fn is_global(&self) -> bool {
        self.scope == Scope::Global
    }

    /// Whether it holds for everyone: outside every `Match` block, or in `Match all`.
    pub fn is_for_all(&self) -> bool {
        match &self.scope {
            Scope::Global => true,
            Scope::Match { criteria, .. } => criteria.iter().all(|word| word.eq_ignore_ascii_case("all")),
        }
    }
}

/// Every directive of `tree` in sshd's reading order, Include followed where it stands: sshd_config(5).
/// Inside a `Match` an Include is followed in that scope; an included file's own `Match` ends with it.
pub fn directives(tree: &ConfigTree) -> Vec<Directive> {
    let mut found = Vec::new();
    read(tree, &tree.main, &Scope::Global, &mut Vec::new(), &mut found);
    found
}

fn read<'a>(
    tree: &'a ConfigTree,
    file: &'a Path,
    around: &Scope,
    open: &mut Vec<&'a Path>,
    found: &mut Vec<Directive>,
) {
    let Some(content) = tree.files.get(file) else { return };
    // sshd gives up on a file that includes itself; here it is read once.
    if open.len() > DEEPEST || open.contains(&file) {
        return;
    }
    open.push(file);
    let mut scope = around.clone();
    for (index, bytes) in content.split(|&byte| byte == b'\n').enumerate() {
        let Some((keyword, arguments)) = tokens::split(bytes) else { continue };
        if found.len() >= MOST {
            break;
        }
        let (keyword, line) = (keyword.to_ascii_lowercase(), index + 1);
        if keyword == "match" {
            let mut criteria = match around {
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
                read(tree, included, &scope, open, found);
            }
        }
    }
    open.pop();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixture::tree;
    use super::*;

    fn told(tree: &ConfigTree) -> Vec<String> {
        directives(tree)
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
    fn order_and_scope() {
        let tree = tree(&[
            ("/etc/ssh/sshd_config", "Include d/*.conf x\nUsePAM yes\nMatch User bob\nInclude m\nBanner a\n"),
            ("/etc/ssh/d/a.conf", "Port 1\nMatch Group g\n  Banner b\n"),
            ("/etc/ssh/d/b.conf", "Port 2\r\n"),
            ("/etc/ssh/x", "Port 3"),
            ("/etc/ssh/m", "Banner c\nMatch all\nBanner d\n"),
        ]);
        assert_eq!(
            told(&tree),
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
    fn files_that_include_each_other_end() {
        let line = "Include a b\n".repeat(40);
        let tree = tree(&[
            ("/etc/ssh/sshd_config", "Include a\n"),
            ("/etc/ssh/a", line.as_str()),
            ("/etc/ssh/b", line.as_str()),
        ]);
        assert!(directives(&tree).len() <= MOST);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(main in prop::collection::vec(any::<u8>(), 0..256)) {
            let tree = ConfigTree {
                main: "/m".into(),
                files: [("/m".into(), main)].into(),
                includes: Default::default(),
            };
            let _ = directives(&tree);
        }

        #[test]
        fn any_text_is_read(
            main in "((Include|Match|Port|\"|=| |#|a|\\*|\n|\r){0,30})",
            other in "((Include|Match|Port|\"|=| |#|a|\\*|\n|\r){0,30})",
        ) {
            let _ = directives(&tree(&[("/etc/ssh/sshd_config", &main), ("/etc/ssh/a", &other)]));
        }
    }
}
