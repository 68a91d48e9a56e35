//! Accounts as the guest's name service reports them: passwd(5), group(5), nsswitch.conf(5).

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::stat;

use super::people;
use super::scout::{self, PasswdEntry};
use crate::policy::observation::{Account, KeyFileOwner, UserStatus};

pub(super) const PASSWD_FILE: &str = "/etc/passwd";
pub(super) const MAX_PASSWD_BYTES: usize = 64 * 1024 * 1024;

/// The name service did not answer, or failed.
#[derive(Debug)]
pub struct AccountError {
    /// The name of the account that was looked up.
    pub name: String,
    /// The error of the name service.
    pub source: io::Error,
}

impl fmt::Display for AccountError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "cannot look up the account {}: {}; `getent passwd {}` asks the same",
            self.name.escape_default(),
            self.source,
            self.name.escape_default()
        )
    }
}

impl std::error::Error for AccountError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Looks up an account by its login name; `None` if there is none.
///
/// # Errors
/// The name service does not answer, or fails.
pub fn lookup_account(name: &str) -> Result<Option<Account>, AccountError> {
    let failed = |source: io::Error| AccountError { name: name.to_owned(), source };
    if name.contains('\0') {
        return Ok(None);
    }
    let Some(entry) = scout::lookup_user_by_name(name).map_err(failed)? else { return Ok(None) };
    let groups = scout::lookup_groups(name, entry.gid).map_err(failed)?;
    Ok(Some(account_from_entry(entry, groups)))
}

/// Looks up an account for a removal, which needs no groups. If the name service does not answer or fails, the
/// entry in the file of passwd(5) counts.
///
/// # Errors
/// The name service failed and the file has no such account.
pub fn lookup_account_for_removal(name: &str) -> Result<Option<Account>, AccountError> {
    let failure = match lookup_account(name) {
        Err(error) => error,
        answer => return answer,
    };
    let entry = scout::lookup_user_by_name(name).ok().flatten();
    let account = entry
        .map(|entry| account_from_entry(entry, Vec::new()))
        .or_else(|| find_in_passwd(|person| person.name == name));
    account.map_or(Err(failure), |account| Ok(Some(account)))
}

/// The home directory of root; `None` if there is no such account.
pub(super) fn root_home() -> Option<PathBuf> {
    match scout::lookup_user_by_uid(0) {
        Ok(entry) => entry.map(|entry| PathBuf::from(OsString::from_vec(entry.home))),
        Err(_) => find_in_passwd(|person| person.uid == 0).map(|root| root.home),
    }
}

/// The first account in the file of passwd(5) that satisfies `is_meant`.
fn find_in_passwd(is_meant: impl Fn(&Account) -> bool) -> Option<Account> {
    people::list_accounts().ok()?.into_iter().map(|person| person.account).find(is_meant)
}

fn account_from_entry(entry: PasswdEntry, groups: Vec<String>) -> Account {
    let PasswdEntry { name, uid, gid, home, shell } = entry;
    Account {
        name,
        uid,
        gid,
        home: PathBuf::from(OsString::from_vec(home)),
        // passwd(5): an empty shell field means /bin/sh.
        shell: if shell.is_empty() { "/bin/sh".into() } else { PathBuf::from(OsString::from_vec(shell)) },
        groups,
    }
}

/// The account as which the agent opens the file at `path` that holds, or held, a block of this user: see
/// [`Guest::resolve_key_file_owner`](super::Guest::resolve_key_file_owner).
///
/// # Errors
/// As for [`lookup_account_for_removal`].
pub fn resolve_key_file_owner(
    name: &str,
    uid: Option<u32>,
    path: &Path,
) -> Result<KeyFileOwner, AccountError> {
    let answers = |directory: &&Path| scout::check_responsive(directory).is_ok();
    let directory = path.parent().filter(answers).and_then(|directory| stat(directory).ok());
    // A user whose uid was changed owns their files with the new uid.
    let owns_directory = |uid: u32| directory.as_ref().is_some_and(|directory| directory.st_uid == uid);
    if let Some(account) = lookup_account_for_removal(name)?
        .filter(|account| uid.is_none_or(|uid| uid == account.uid || !owns_directory(uid)))
    {
        return Ok(KeyFileOwner { account, fate: UserStatus::Present });
    }
    let failed = |source: io::Error| AccountError { name: name.to_owned(), source };
    if let Some(uid) = uid
        && let Some(entry) = scout::lookup_user_by_uid(uid).map_err(failed)?
        && let Some(account) = lookup_account_for_removal(&entry.name)?.filter(|account| account.uid == uid)
    {
        return Ok(KeyFileOwner { account, fate: UserStatus::Renamed });
    }
    let (uid, gid) = match (uid, directory) {
        (Some(uid), Some(directory)) if directory.st_uid == uid => (uid, directory.st_gid),
        (Some(uid), _) => (uid, uid),
        (None, Some(directory)) => (directory.st_uid, directory.st_gid),
        (None, None) => (0, 0),
    };
    let account = Account {
        name: name.to_owned(),
        uid,
        gid,
        // No home: no path is below an empty one.
        home: PathBuf::new(),
        shell: PathBuf::new(),
        groups: Vec::new(),
    };
    Ok(KeyFileOwner { account, fate: UserStatus::Gone })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lookup_account_finds_root_and_no_unknown_name() {
        let root = lookup_account("root").unwrap().unwrap();
        assert_eq!((root.uid, root.gid, root.name.as_str()), (0, 0, "root"));
        assert!(root.home.is_absolute());
        assert_eq!(root.groups.first().map(String::as_str), Some("root"));
        for none in ["no-such-user-here", "", "a\0b", "root\n"] {
            assert_eq!(lookup_account(none).unwrap(), None, "{none:?}");
        }
    }
}
