//! sshd's present configuration files: the main file and all files that its `Include` directives lead to, resolved
//! as in sshd_config(5).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern, glob_with};

use super::scout::{self, LookupError};
use crate::policy::observation::{ConfigTree, IncludedFiles};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::sshd_config::{
    COMMENT_PREFIX, DROP_IN_NAME, SSH_DIR, is_managed_drop_in, parse_commented_include_patterns,
    parse_include_patterns_in,
};

/// The depth to which sshd follows `Include` directives.
const MAX_INCLUDE_DEPTH: usize = 16;

/// The maximum size of one file that is read.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// The maximum number of entries of the main file's directory that are examined.
const MAX_DIR_ENTRIES: usize = 1024;

/// The device number of `/dev/null`, null(4): major 1, minor 3.
const NULL_DEVICE: u64 = 0x103;

/// The rules of glob(3) without flags: a wildcard matches neither a `/` nor a leading dot.
const SSHD_GLOB_OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// The rules by which an sshd follows `Include` directives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IncludeRules {
    /// The directory to which a relative path refers; `None` if a relative path leads to no file (OpenSSH 8.2).
    pub(super) ssh_dir: Option<PathBuf>,
}

impl Default for IncludeRules {
    fn default() -> Self {
        Self { ssh_dir: Some(PathBuf::from(SSH_DIR)) }
    }
}

/// A file's device and inode.
type DevIno = (u64, u64);

/// The state while a tree is read.
struct TreeReader<'r> {
    tree: ConfigTree,
    rules: &'r IncludeRules,
    /// The path of each file in the tree: the one under which sshd reads it first.
    known: HashMap<DevIno, PathBuf>,
    /// The paths that cannot be read as a regular file.
    irregular: Vec<PathBuf>,
}

/// Reads the main file and the files that it includes. A file with several names (a directory that is included
/// under two names) is in the tree once, under the name that sshd reads first. The tree also contains a drop-in of
/// the agent to which no `Include` leads.
pub(super) fn read_config_tree(main: &Path, rules: &IncludeRules) -> Result<ConfigTree, Refusal> {
    let mut reader = TreeReader::new(main, rules);
    if reader.add_file(main, 0)?.is_none() {
        let text =
            format!("sshd's configuration {} is not a regular file; put it in its place", main.display());
        return Err(Refusal::new(Reason::SshdNotFound, text));
    }
    reader.add_orphaned_drop_ins();
    Ok(reader.tree)
}

/// Refuses an included file on which sshd would block or never reach the end: a FIFO, a socket, a device other than
/// null(4). Every sshd that reads its files would hang, including the listener. So the agent refuses before it
/// queries any sshd.
///
/// # Errors
/// `UNSAFE_PATH` if the file is in the place of the agent's drop-in; `SSHD_CONFIG_ALREADY_INVALID` for other files.
pub(super) fn refuse_blocking_includes(main: &Path) -> Result<(), Refusal> {
    let rules = IncludeRules::default();
    let mut reader = TreeReader::new(main, &rules);
    reader.add_file(main, 0)?;
    let endless = reader.irregular.iter().find_map(|file| Some((file, blocking_file_kind(file)?)));
    let Some((file, kind)) = endless else { return Ok(()) };
    let reason = match is_managed_drop_in(file) {
        true => Reason::UnsafePath,
        false => Reason::SshdConfigAlreadyInvalid,
    };
    let file = file.display();
    Err(Refusal::new(
        reason,
        format!(
            "{file}: {kind}, where sshd's configuration includes a regular file: sshd would hang; remove it"
        ),
    ))
}

/// The kind of a file on which sshd would hang. `None` for a directory, which sshd skips, and for `/dev/null`.
fn blocking_file_kind(file: &Path) -> Option<&'static str> {
    let metadata = fs::metadata(file).ok()?;
    let kind = metadata.file_type();
    if kind.is_fifo() {
        Some("a FIFO")
    } else if kind.is_socket() {
        Some("a socket")
    } else if kind.is_block_device() || kind.is_char_device() && metadata.rdev() != NULL_DEVICE {
        Some("a device")
    } else {
        None
    }
}

impl<'r> TreeReader<'r> {
    fn new(main: &Path, rules: &'r IncludeRules) -> Self {
        let tree = ConfigTree { main: main.to_owned(), files: BTreeMap::new(), includes: BTreeMap::new() };
        Self { tree, rules, known: HashMap::new(), irregular: Vec::new() }
    }

    /// Adds a file and the files that it includes. Returns the file's path in the tree; `None` if it cannot be read
    /// as a regular file.
    fn add_file(&mut self, file: &Path, depth: usize) -> Result<Option<PathBuf>, Refusal> {
        if self.tree.files.contains_key(file) {
            return Ok(Some(file.to_owned()));
        }
        let Some((identity, content)) = read_regular_file(file).map_err(|error| {
            Refusal::new(
                Reason::IoError,
                format!("cannot read sshd's configuration {}: {error}", file.display()),
            )
        })?
        else {
            self.irregular.push(file.to_owned());
            return Ok(None);
        };
        if let Some(known) = self.known.get(&identity) {
            return Ok(Some(known.clone()));
        }
        self.known.insert(identity, file.to_owned());
        let directives = parse_include_patterns_in(self.rules.ssh_dir.as_deref(), &content);
        self.tree.files.insert(file.to_owned(), content);
        if depth == MAX_INCLUDE_DEPTH {
            return Ok(Some(file.to_owned()));
        }
        for (line, patterns) in directives {
            let mut all = Vec::with_capacity(patterns.len());
            for pattern in patterns {
                all.push(self.expand_include(pattern, depth)?);
            }
            self.tree.includes.insert((file.to_owned(), line), all);
        }
        Ok(Some(file.to_owned()))
    }

    /// The files that match a pattern in a file at this depth.
    fn expand_include(&mut self, pattern: PathBuf, depth: usize) -> Result<IncludedFiles, Refusal> {
        let mut included = expand_glob(pattern).map_err(|silence| {
            Refusal::new(Reason::IoError, format!("cannot read sshd's configuration: {silence}"))
        })?;
        let mut files = Vec::with_capacity(included.files.len());
        for found in included.files {
            files.extend(self.add_file(&found, depth + 1)?);
        }
        included.files = files;
        Ok(included)
    }

    /// Adds each drop-in of the agent that sshd read in the past and to which no `Include` leads now. It would
    /// become active again together with its `Include`. A file that cannot be read is not added.
    fn add_orphaned_drop_ins(&mut self) {
        for directory in self.candidate_drop_in_dirs() {
            let path = directory.join(DROP_IN_NAME);
            if self.tree.files.contains_key(&path) {
                continue;
            }
            if let Ok(Some((identity, content))) = read_regular_file(&path)
                && !self.known.contains_key(&identity)
                && (has_agent_comment(&content) || directory.ends_with("sshd_config.d"))
            {
                self.known.insert(identity, path.clone());
                self.tree.files.insert(path, content);
            }
        }
    }

    /// The directories that may contain such a drop-in: the main file's directory, each directory in it, and the
    /// directories to which an `Include` leads or, commented out, led. Only directories that root alone can change,
    /// because the agent changes no file elsewhere.
    fn candidate_drop_in_dirs(&self) -> BTreeSet<PathBuf> {
        let main = &self.tree.main;
        let beside = [Some(main.clone()), fs::canonicalize(main).ok()].into_iter().flatten();
        let mut directories: BTreeSet<PathBuf> =
            beside.filter_map(|main| main.parent().map(Path::to_owned)).collect();
        let entries: Vec<PathBuf> = directories
            .iter()
            .filter_map(|directory| fs::read_dir(directory).ok())
            .flat_map(|entries| entries.flatten().take(MAX_DIR_ENTRIES).map(|entry| entry.path()))
            .collect();
        directories.extend(entries);
        let patterns = self.tree.includes.values().flatten().map(|included| included.pattern.clone());
        let former = self.tree.files.values().flat_map(|content| parse_commented_include_patterns(content));
        directories.extend(patterns.chain(former).filter_map(|pattern| pattern.parent().map(Path::to_owned)));
        directories.retain(|directory| is_root_only_dir(directory));
        directories
    }
}

/// Returns true if the agent wrote this drop-in. A line then starts with the agent's comment.
fn has_agent_comment(content: &[u8]) -> bool {
    content.split(|byte| *byte == b'\n').any(|line| line.starts_with(COMMENT_PREFIX.as_bytes()))
}

/// Returns true if this is a directory that only root can change. In tests: that only the present user can change.
fn is_root_only_dir(directory: &Path) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    scout::check_responsive(directory).is_ok()
        && fs::metadata(directory).is_ok_and(|directory| {
            directory.is_dir()
                && (directory.uid() == 0 || directory.uid() == own)
                && directory.mode() & 0o022 == 0
        })
}

/// The files that a pattern matches, in the order in which sshd reads them: bytewise.
///
/// # Errors
/// A directory on the path does not respond.
pub(super) fn expand_glob(pattern: PathBuf) -> Result<IncludedFiles, LookupError> {
    let directory = pattern.parent().unwrap_or(Path::new("/"));
    let tame = directory.ancestors().find(|directory| !has_wildcard(directory));
    scout::check_responsive(tame.unwrap_or(Path::new("/")))?;
    scout::expand_include(pattern)
}

fn has_wildcard(path: &Path) -> bool {
    path.as_os_str().as_bytes().iter().any(|byte| b"*?[".contains(byte))
}

/// Like [`expand_glob`], in this process itself.
pub(super) fn expand_glob_in_process(pattern: PathBuf) -> IncludedFiles {
    let directory = pattern.parent().unwrap_or(Path::new("/"));
    let directory_exists = !has_wildcard(directory) && directory.is_dir();
    let mut files = if has_wildcard(&pattern) || pattern.as_os_str().as_bytes().contains(&b'\\') {
        let translated = to_glob_crate_pattern(&pattern.to_string_lossy());
        // An invalid pattern, such as one with an open bracket, is also no pattern for glob(3).
        glob_with(&translated, SSHD_GLOB_OPTIONS).map(|found| found.flatten().collect()).unwrap_or_default()
    } else {
        vec![pattern.clone()]
    };
    files.sort_by(|a: &PathBuf, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    IncludedFiles { pattern, directory_exists, files }
}

/// Translates a pattern of glob(3) for the `glob` crate: `**` does not recurse, `[^` becomes `[!`, and a backslash
/// makes the next character literal.
fn to_glob_crate_pattern(pattern: &str) -> String {
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

/// The content of a regular file; `None` if the file does not exist or is no regular file (`sshd -t` judges that
/// case).
fn read_regular_file(file: &Path) -> io::Result<Option<(DevIno, Vec<u8>)>> {
    scout::check_responsive(file)?;
    // Without O_NONBLOCK, the open of a FIFO would wait for a writer.
    let opened = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(file);
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        // The file is a socket, or a device without a driver.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = opened.metadata()?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let mut content = Vec::new();
    opened.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_CONFIG_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_CONFIG_BYTES} bytes")));
    }
    Ok(Some(((metadata.dev(), metadata.ino()), content)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn config_tree_follows_includes_like_sshd() {
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
        let tree = read_config_tree(&at("main"), &IncludeRules::default()).unwrap();
        let included = &tree.includes[&(at("main"), 2)];
        let expected = ["+a.conf", "00-a.conf", "000-a.conf", "link.conf"].map(|name| at("d").join(name));
        assert_eq!(included[0].files, expected);
        assert!(included[0].directory_exists);
        assert_eq!(
            included[1],
            IncludedFiles { pattern: at("none/*"), directory_exists: false, files: Vec::new() }
        );
        assert_eq!(tree.includes[&(at("main"), 3)][0].files, [at("main")]);
        assert_eq!(tree.files.len(), 5);
        assert_eq!(tree.main, at("main"));
    }

    #[test]
    fn config_tree_lists_aliased_file_once() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("d")).unwrap();
        symlink("d", at("link.d")).unwrap();
        symlink("a.conf", at("d/b.conf")).unwrap();
        fs::write(at("d/a.conf"), "Port 1\n").unwrap();
        fs::hard_link(at("d/a.conf"), at("d/c.conf")).unwrap();
        let root = directory.path().display();
        fs::write(at("main"), format!("Include {root}/link.d/*.conf\nInclude {root}/d/*.conf {root}/main\n"))
            .unwrap();
        let tree = read_config_tree(&at("main"), &IncludeRules::default()).unwrap();
        let first = at("link.d/a.conf");
        // The file is listed as often as sshd reads it.
        assert_eq!(tree.includes[&(at("main"), 1)][0].files, vec![first.clone(); 3]);
        assert_eq!(tree.includes[&(at("main"), 2)][0].files, vec![first.clone(); 3]);
        assert_eq!(tree.includes[&(at("main"), 2)][1].files, [at("main")]);
        assert_eq!(tree.files.into_keys().collect::<Vec<_>>(), [first, at("main")]);
    }

    #[test]
    fn orphaned_drop_in_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let elsewhere = tempfile::tempdir().unwrap();
        let ours = format!("{COMMENT_PREFIX}written\nPasswordAuthentication no\n");
        for name in ["sshd_config.d", "old.d", "theirs.d", "open.d"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join(DROP_IN_NAME), &ours).unwrap();
        }
        fs::write(at("sshd_config.d").join(DROP_IN_NAME), "PasswordAuthentication no\n").unwrap();
        fs::write(at("theirs.d").join(DROP_IN_NAME), "PasswordAuthentication no\n").unwrap();
        fs::set_permissions(at("open.d"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        // Another name of a file that is already in the tree.
        symlink("old.d", at("same.d")).unwrap();
        let former = elsewhere.path().join(DROP_IN_NAME);
        fs::write(&former, &ours).unwrap();
        let main = format!("#Include {}/*.conf\n", elsewhere.path().display());
        fs::write(at("main"), &main).unwrap();
        let tree = read_config_tree(&at("main"), &IncludeRules::default()).unwrap();
        let mut expected =
            [at("main"), at("old.d").join(DROP_IN_NAME), at("sshd_config.d").join(DROP_IN_NAME), former];
        expected.sort();
        assert_eq!(tree.files.into_keys().collect::<Vec<_>>(), expected);
        fs::write(at("main"), format!("Include {}/*.conf\n", at("same.d").display())).unwrap();
        let tree = read_config_tree(&at("main"), &IncludeRules::default()).unwrap();
        let read = at("same.d").join(DROP_IN_NAME);
        assert_eq!(tree.includes[&(at("main"), 1)][0].files, std::slice::from_ref(&read));
        assert!(tree.files.contains_key(&read) && !tree.files.contains_key(&at("old.d").join(DROP_IN_NAME)));
    }

    #[test]
    fn relative_include_starts_at_ssh_dir() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/a.conf"), "Port 1\n").unwrap();
        fs::write(at("main"), "Include d/*.conf\n").unwrap();
        let found = |ssh_dir: Option<PathBuf>| {
            read_config_tree(&at("main"), &IncludeRules { ssh_dir })
                .unwrap()
                .files
                .contains_key(&at("d/a.conf"))
        };
        assert!(found(Some(directory.path().to_owned())));
        assert!(!found(None) && !found(Some("/etc/ssh".into())));
    }

    #[test]
    fn glob_patterns_are_translated() {
        for (pattern, expected) in
            [("/a/*.conf", "/a/*.conf"), ("/a/**", "/a/*"), ("/[^a]", "/[!a]"), ("/\\*a\\b", "/[*]ab")]
        {
            assert_eq!(to_glob_crate_pattern(pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn main_file_directory_or_oversized_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(
            read_config_tree(directory.path(), &IncludeRules::default()).unwrap_err().reason,
            Reason::SshdNotFound
        );
        let large = directory.path().join("large");
        fs::write(&large, vec![b'#'; 1024 * 1024 + 1]).unwrap();
        assert_eq!(read_config_tree(&large, &IncludeRules::default()).unwrap_err().reason, Reason::IoError);
    }
}
