//! sshd's configuration files as they stand: the main file and all that its Include directives lead to, as
//! sshd_config(5) follows them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern, glob_with};

use crate::policy::observation::{ConfigTree, Included};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::sshd_config::include_patterns;

/// How deep sshd follows Include directives.
const MAX_DEPTH: usize = 16;

/// The most that is read of one file.
const MAX_FILE: u64 = 1024 * 1024;

/// As glob(3) without flags: a wildcard matches neither a `/` nor a leading dot.
const LIKE_SSHD: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// Reads the main file and what it leads to.
pub(super) fn read_tree(main: &Path) -> Result<ConfigTree, Refusal> {
    let mut tree = ConfigTree { main: main.to_owned(), files: BTreeMap::new(), includes: BTreeMap::new() };
    if !add(&mut tree, main, 0)? {
        let text = format!("sshd's configuration {} is not a regular file", main.display());
        return Err(Refusal::new(Reason::SshdNotFound, text));
    }
    Ok(tree)
}

/// Adds a file and, below it, what it includes; false where it is none that can be read as one.
fn add(tree: &mut ConfigTree, file: &Path, depth: usize) -> Result<bool, Refusal> {
    if tree.files.contains_key(file) {
        return Ok(true);
    }
    let Some(content) = read(file).map_err(|error| {
        Refusal::new(Reason::IoError, format!("cannot read sshd's configuration {}: {error}", file.display()))
    })?
    else {
        return Ok(false);
    };
    let directives = include_patterns(&content);
    tree.files.insert(file.to_owned(), content);
    if depth == MAX_DEPTH {
        return Ok(true);
    }
    for (line, patterns) in directives {
        let mut all = Vec::with_capacity(patterns.len());
        for pattern in patterns {
            let mut included = expand(pattern);
            let mut files = Vec::with_capacity(included.files.len());
            for found in included.files {
                if add(tree, &found, depth + 1)? {
                    files.push(found);
                }
            }
            included.files = files;
            all.push(included);
        }
        tree.includes.insert((file.to_owned(), line), all);
    }
    Ok(true)
}

/// What a pattern matches, in the order sshd reads it: bytewise.
pub(super) fn expand(pattern: PathBuf) -> Included {
    let wild = |path: &Path| path.as_os_str().as_bytes().iter().any(|byte| b"*?[".contains(byte));
    let directory = pattern.parent().unwrap_or(Path::new("/"));
    let directory_exists = !wild(directory) && directory.is_dir();
    let mut files = if wild(&pattern) || pattern.as_os_str().as_bytes().contains(&b'\\') {
        let translated = translate(&pattern.to_string_lossy());
        // What is no pattern for us is none for glob(3) either: an open bracket.
        glob_with(&translated, LIKE_SSHD).map(|found| found.flatten().collect()).unwrap_or_default()
    } else {
        vec![pattern.clone()]
    };
    files.sort_by(|a: &PathBuf, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Included { pattern, directory_exists, files }
}

/// A pattern of glob(3) as the `glob` crate writes it: `**` is no recursion, `[^` is `[!`, a backslash takes
/// the next character as it is.
fn translate(pattern: &str) -> String {
    let mut translated = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' if translated.ends_with('*') => {}
            '^' if translated.ends_with('[') => translated.push('!'),
            '\\' => {
                let literal = chars.next().map(|c| Pattern::escape(&c.to_string()));
                translated.push_str(&literal.unwrap_or_default());
            }
            c => translated.push(c),
        }
    }
    translated
}

/// A regular file's bytes; `None` where there is none, or something else (`sshd -t` judges that).
fn read(file: &Path) -> io::Result<Option<Vec<u8>>> {
    // Without O_NONBLOCK, opening a FIFO would wait for its writer.
    let opened = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(file);
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        // A socket, or a device without a driver.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !opened.metadata()?.is_file() {
        return Ok(None);
    }
    let mut content = Vec::new();
    opened.take(MAX_FILE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(Some(content))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn follows_includes_as_sshd_does() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::create_dir(at("d/dir.conf")).unwrap();
        for name in ["+a.conf", "00-a.conf", "000-a.conf", ".hidden.conf", "a.txt"] {
            fs::write(at("d").join(name), "# x\n").unwrap();
        }
        symlink("/nonexistent", at("d/dangling.conf")).unwrap();
        nix::unistd::mkfifo(&at("d/fifo.conf"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink(at("d/a.txt"), at("d/link.conf")).unwrap();
        let root = directory.path().display();
        fs::write(
            at("main"),
            format!("Port 1\nInclude {root}/d/*.conf {root}/none/*\n include {root}/main\n"),
        )
        .unwrap();
        let tree = read_tree(&at("main")).unwrap();
        let included = &tree.includes[&(at("main"), 2)];
        let expected = ["+a.conf", "00-a.conf", "000-a.conf", "link.conf"].map(|name| at("d").join(name));
        assert_eq!(included[0].files, expected);
        assert!(included[0].directory_exists);
        assert_eq!(
            included[1],
            Included { pattern: at("none/*"), directory_exists: false, files: Vec::new() }
        );
        assert_eq!(tree.includes[&(at("main"), 3)][0].files, [at("main")]);
        assert_eq!(tree.files.len(), 5);
        assert_eq!(tree.main, at("main"));
    }

    #[test]
    fn patterns() {
        for (pattern, expected) in
            [("/a/*.conf", "/a/*.conf"), ("/a/**", "/a/*"), ("/[^a]", "/[!a]"), ("/\\*a\\b", "/[*]ab")]
        {
            assert_eq!(translate(pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn what_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_tree(directory.path()).unwrap_err().reason, Reason::SshdNotFound);
        let large = directory.path().join("large");
        fs::write(&large, vec![b'#'; 1024 * 1024 + 1]).unwrap();
        assert_eq!(read_tree(&large).unwrap_err().reason, Reason::IoError);
    }
}
