//! Tests of the public functions of this module, with real files in a real directory.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{getegid, geteuid};
use tempfile::TempDir;

use crate::policy::observation::Account;
use crate::policy::types::ContentHash;

use super::walk::{PathWalker, TrustPolicy};

mod again;
mod attributes;
mod disk;
mod faults;
mod key_file;
mod races;
mod root_file;
mod state;

mod way;

/// Uids that no account on the test machine has.
const USER_UID: u32 = 61_001;
const OTHER_UID: u32 = 61_002;

/// An environment variable with the directory for the tests' files. It is optional.
const SCRATCH_VAR: &str = "KEYPAIR_AGENT_TEST_SCRATCH";

/// A temporary directory in a place where every directory on the path is safe. /tmp is not safe.
fn create_scratch_dir() -> TempDir {
    let mut refused = String::new();
    let told = std::env::var_os(SCRATCH_VAR).map(PathBuf::from);
    // Try /var/lib first: other users may pass through it, whatever the location of the checkout.
    let bases = ["/var/lib", concat!(env!("CARGO_MANIFEST_DIR"), "/target"), "/root"].map(PathBuf::from);
    for base in told.into_iter().chain(bases) {
        match PathWalker::walk_to(TrustPolicy::RootOnly, None, &base) {
            Ok(walk) if walk.missing.is_empty() && walk.check_last_writers().is_ok() => {
                match tempfile::Builder::new().prefix("files-").tempdir_in(&base) {
                    Ok(scratch) => return scratch,
                    Err(error) => refused.push_str(&error.to_string()),
                }
            }
            Ok(_) => refused.push_str(&base.to_string_lossy()),
            Err(error) => refused.push_str(&error.to_string()),
        }
    }
    panic!("no safe directory for the tests: {refused}");
}

/// Whether the test runs as root. If not, prints that the test is skipped.
fn is_root_or_skip(what: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: {what} needs root");
    }
    root
}

/// The account that owns a home.
fn test_account(home: &Path, uid: u32) -> Account {
    Account {
        name: "joe".into(),
        uid,
        gid: if geteuid().is_root() { uid } else { getegid().as_raw() },
        home: home.to_owned(),
        shell: "/bin/sh".into(),
        groups: vec!["joe".into()],
    }
}

/// A home and the account that owns it. If the tests run as root, it is another user's; otherwise it is the
/// current user's.
struct TestHome {
    scratch: TempDir,
    account: Account,
}

impl TestHome {
    fn new() -> Self {
        let uid = if geteuid().is_root() { USER_UID } else { geteuid().as_raw() };
        let scratch = create_scratch_dir();
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let home = scratch.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).unwrap();
        let account = test_account(&home, uid);
        chown(&home, Some(account.uid), Some(account.gid)).unwrap();
        Self { scratch, account }
    }

    /// A path beside the home, in a directory that only root can write.
    fn sibling_path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn home_path(&self, name: &str) -> PathBuf {
        self.account.home.join(name)
    }

    fn key_file_path(&self) -> PathBuf {
        self.home_path(".ssh/authorized_keys")
    }

    fn chown_to_user(&self, path: &Path) {
        chown(path, Some(self.account.uid), Some(self.account.gid)).unwrap();
    }

    /// Creates a directory in the home, owned by the user.
    fn create_directory(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.home_path(name);
        fs::create_dir(&path).unwrap();
        self.chown_to_user(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Creates `.ssh` and the key file in it, both owned by the user.
    fn create_key_file(&self, content: &str) -> PathBuf {
        self.create_directory(".ssh", 0o700);
        self.create_file(".ssh/authorized_keys", content)
    }

    /// Creates a file in the home with mode 0600, owned by the user.
    fn create_file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.home_path(name);
        fs::write(&path, content).unwrap();
        self.chown_to_user(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

fn content_hash(content: &str) -> ContentHash {
    ContentHash::from_content(content.as_bytes())
}

/// The names of a directory's entries, sorted.
fn list_names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Owner, group and mode.
fn owner_and_mode(path: &Path) -> (u32, u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.uid(), stat.gid(), stat.mode() & 0o7777)
}

/// Runs a tool. Returns false, and prints the reason, if the tool is missing or fails.
fn run_tool_or_skip(program: &str, arguments: &[&str]) -> bool {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("SKIPPED: {program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
            false
        }
        Err(error) => {
            eprintln!("SKIPPED: {program}: {error}");
            false
        }
    }
}
