//! Accounts as the guest's name service has them: passwd(5), group(5), nsswitch.conf(5).

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::stat;

use super::people;
use super::scout::{self, Entry};
use crate::policy::observation::{Account, Fate, Holder};

pub(super) const PASSWD: &str = "/etc/passwd";
pub(super) const PASSWD_LIMIT: usize = 64 * 1024 * 1024;

/// The name service did not answer.
#[derive(Debug)]
pub struct AccountError {
    /// Whom it was asked for.
    pub name: String,
    /// What it said.
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

/// Looks an account up by its login name; `None` where there is none.
///
/// # Errors
/// That the name service does not answer, or fails.
pub fn account(name: &str) -> Result<Option<Account>, AccountError> {
    let failed = |source: io::Error| AccountError { name: name.to_owned(), source };
    if name.contains('\0') {
        return Ok(None);
    }
    let Some(entry) = scout::entry(name).map_err(failed)? else { return Ok(None) };
    let groups = scout::groups(name, entry.gid).map_err(failed)?;
    Ok(Some(with_groups(entry, groups)))
}

/// The same to take something out, which needs no groups: while the name service does not answer or fails, the entry of passwd(5)
/// itself counts.
///
/// # Errors
/// That neither has it.
pub fn account_to_clean(name: &str) -> Result<Option<Account>, AccountError> {
    let failure = match account(name) {
        Err(error) => error,
        answer => return answer,
    };
    let entry = scout::entry(name).ok().flatten();
    let account =
        entry.map(|entry| with_groups(entry, Vec::new())).or_else(|| listed(|person| person.name == name));
    account.map_or(Err(failure), |account| Ok(Some(account)))
}

/// The home of root; `None` where there is no such account.
pub(super) fn home_of_root() -> Option<PathBuf> {
    match scout::entry_of_uid(0) {
        Ok(entry) => entry.map(|entry| PathBuf::from(OsString::from_vec(entry.home))),
        Err(_) => listed(|person| person.uid == 0).map(|root| root.home),
    }
}

/// The first account of passwd(5)'s own file that is meant.
fn listed(is_meant: impl Fn(&Account) -> bool) -> Option<Account> {
    people::people().ok()?.into_iter().map(|person| person.account).find(is_meant)
}

fn with_groups(entry: Entry, groups: Vec<String>) -> Account {
    let Entry { name, uid, gid, home, shell } = entry;
    Account {
        name,
        uid,
        gid,
        home: PathBuf::from(OsString::from_vec(home)),
        // passwd(5): an empty one is /bin/sh.
        shell: if shell.is_empty() { "/bin/sh".into() } else { PathBuf::from(OsString::from_vec(shell)) },
        groups,
    }
}

/// As whom the file at `path` is reached that holds, or held, a block of this user's: see `Guest::holder`.
///
/// # Errors
/// As for [`account_to_clean`].
pub fn holder(name: &str, uid: Option<u32>, path: &Path) -> Result<Holder, AccountError> {
    let answers = |directory: &&Path| scout::reach(directory).is_ok();
    let directory = path.parent().filter(answers).and_then(|directory| stat(directory).ok());
    // One whose uid was changed owns his files by the new one.
    let is_anothers = |uid: u32| directory.as_ref().is_some_and(|directory| directory.st_uid == uid);
    if let Some(account) = account_to_clean(name)?
        .filter(|account| uid.is_none_or(|uid| uid == account.uid || !is_anothers(uid)))
    {
        return Ok(Holder { account, fate: Fate::Present });
    }
    let failed = |source: io::Error| AccountError { name: name.to_owned(), source };
    if let Some(uid) = uid
        && let Some(entry) = scout::entry_of_uid(uid).map_err(failed)?
        && let Some(account) = account_to_clean(&entry.name)?.filter(|account| account.uid == uid)
    {
        return Ok(Holder { account, fate: Fate::Renamed });
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
        // None: an empty path is below nothing.
        home: PathBuf::new(),
        shell: PathBuf::new(),
        groups: Vec::new(),
    };
    Ok(Holder { account, fate: Fate::Gone })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_nobody_of_that_name_is_not() {
        let root = account("root").unwrap().unwrap();
        assert_eq!((root.uid, root.gid, root.name.as_str()), (0, 0, "root"));
        assert!(root.home.is_absolute());
        assert_eq!(root.groups.first().map(String::as_str), Some("root"));
        for none in ["no-such-user-here", "", "a\0b", "root\n"] {
            assert_eq!(account(none).unwrap(), None, "{none:?}");
        }
    }
}
