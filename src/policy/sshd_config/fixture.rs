//! Configuration trees for the tests. Their `Include` directives are resolved as sshd resolves them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::tokens;
use crate::policy::observation::{ConfigTree, IncludedFiles};

/// Builds the tree of these files. The main file is `/etc/ssh/sshd_config`. A directory exists if one of the files is
/// in it, or if its name ends in `.d`.
pub(crate) fn build_config_tree(files: &[(&str, &str)]) -> ConfigTree {
    let files: BTreeMap<PathBuf, Vec<u8>> =
        files.iter().map(|(path, text)| (PathBuf::from(path), text.as_bytes().to_vec())).collect();
    resolve_includes(PathBuf::from("/etc/ssh/sshd_config"), files)
}

/// Does the same from a map, so that a test can change files and resolve the includes again.
pub(crate) fn resolve_includes(main: PathBuf, files: BTreeMap<PathBuf, Vec<u8>>) -> ConfigTree {
    let mut includes = BTreeMap::new();
    for (path, content) in &files {
        for (index, line) in content.split(|&byte| byte == b'\n').enumerate() {
            if let Some((keyword, arguments)) = tokens::split_config_line(line)
                && keyword.eq_ignore_ascii_case("include")
            {
                let patterns = arguments.iter().map(|argument| resolve_include(&files, argument)).collect();
                includes.insert((path.clone(), index + 1), patterns);
            }
        }
    }
    ConfigTree { main, files, includes }
}

fn resolve_include(files: &BTreeMap<PathBuf, Vec<u8>>, argument: &str) -> IncludedFiles {
    let pattern = Path::new("/etc/ssh").join(argument);
    let matcher = glob::Pattern::new(&pattern.to_string_lossy()).unwrap_or_default();
    let options = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
    let mut found: Vec<PathBuf> =
        files.keys().filter(|path| matcher.matches_path_with(path, options)).cloned().collect();
    found.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    let directory = pattern.parent().unwrap_or(Path::new("/")).to_owned();
    let directory_exists = directory.extension().is_some_and(|suffix| suffix == "d")
        || files.keys().any(|path| path.parent() == Some(&directory));
    IncludedFiles { pattern, directory_exists, files: found }
}
