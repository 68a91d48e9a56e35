//! Accounts as the guest's name service has them: passwd(5), group(5), nsswitch.conf(5).

use std::ffi::CString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::stat;
use nix::unistd::{Group, Uid, User, getgrouplist};

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
pub fn account(name: &str) -> Result<Option<Account>, AccountError> {
    let failed = |error: Errno| AccountError { name: name.to_owned(), source: error.into() };
    let Some(user) = found(User::from_name(name)).map_err(failed)? else { return Ok(None) };
    let primary = found(Group::from_gid(user.gid)).map_err(failed)?;
    let login = CString::new(name).map_err(|_| failed(Errno::EINVAL))?;
    let mut groups: Vec<String> = primary.iter().map(|group| group.name.clone()).collect();
    for gid in getgrouplist(&login, user.gid).map_err(failed)? {
        if gid == user.gid {
            continue;
        }
        // A group without a name is in no one's AllowGroups: sshd leaves it out too.
        if let Some(group) = found(Group::from_gid(gid)).map_err(failed)? {
            groups.push(group.name);
        }
    }
    Ok(Some(Account {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        home: user.dir,
        // passwd(5): an empty one is /bin/sh.
        shell: if user.shell.as_os_str().is_empty() { "/bin/sh".into() } else { user.shell },
        groups,
    }))
}

/// As whom the file at `path` is reached that holds, or held, a block of this user's: see `Guest::holder`.
pub fn holder(name: &str, uid: Option<u32>, path: &Path) -> Result<Holder, AccountError> {
    let directory = path.parent().and_then(|directory| stat(directory).ok());
    // One whose uid was changed owns his files by the new one.
    let is_anothers = |uid: u32| directory.as_ref().is_some_and(|directory| directory.st_uid == uid);
    if let Some(account) =
        account(name)?.filter(|account| uid.is_none_or(|uid| uid == account.uid || !is_anothers(uid)))
    {
        return Ok(Holder { account, fate: Fate::Present });
    }
    let failed = |error: Errno| AccountError { name: name.to_owned(), source: error.into() };
    if let Some(uid) = uid
        && let Some(user) = found(User::from_uid(Uid::from_raw(uid))).map_err(failed)?
        && let Some(account) = account(&user.name)?.filter(|account| account.uid == uid)
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

/// "Not found" in the ways getpwnam(3) lists, some of which are errors.
fn found<T>(answer: nix::Result<Option<T>>) -> nix::Result<Option<T>> {
    match answer {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        answer => answer,
    }
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
