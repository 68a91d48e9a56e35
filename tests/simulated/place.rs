//! What is not bytes of a file: whose home it is, whether its volume is mounted, and what a private sshd says.

use std::path::Path;

use keypair_agent::policy::observation::{Account, Fate, Holder};

use super::disk::SSH_DIRECTORY;

/// The mount point of the first home's volume.
pub const VOLUME: &str = "/root";

/// The surroundings of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// What became of the user for whom the first key is bound.
    pub who: Who,
    /// Whether the volume of the first home is mounted.
    pub is_mounted: bool,
    /// Whether sshd refuses every key, for a reason that only sshd knows.
    pub refuses_keys: bool,
    /// How a private sshd can be asked.
    pub trial: Trial,
}

impl Default for Place {
    fn default() -> Self {
        Self { who: Who::Root, is_mounted: true, refuses_keys: false, trial: Trial::Told }
    }
}

/// The one account that is not a service's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Who {
    /// As at the beginning.
    Root,
    /// He has another home.
    Moved,
    /// He has another name, and is the target user by that one.
    Renamed,
    /// He is gone, and another one is the target user.
    Heir,
    /// He is gone, and one of his name was made, with another uid and another home.
    Anew,
    /// He is gone, and is the target user still.
    Nobody,
}

/// How a private sshd can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trial {
    /// It says what it would do.
    Told,
    /// It says so of the key files as they stand: planned ones cannot be shown to it.
    NotShown,
    /// No ssh client is installed: nobody can be asked, the running sshd neither.
    NotTaken,
}

impl Place {
    /// The name of the target user, as it is configured.
    pub fn target(self) -> &'static str {
        match self.who {
            Who::Root | Who::Moved | Who::Anew | Who::Nobody => "root",
            Who::Renamed => "admin",
            Who::Heir => "heir",
        }
    }

    /// The account; `None` where nobody is left.
    pub fn account(self) -> Option<Account> {
        let (uid, home) = match self.who {
            Who::Root | Who::Renamed => (0, "/root"),
            Who::Moved => (0, "/data"),
            Who::Heir | Who::Anew => (1001, "/data"),
            Who::Nobody => return None,
        };
        Some(Account {
            name: self.target().to_owned(),
            uid,
            gid: uid,
            home: home.into(),
            shell: "/bin/bash".into(),
            groups: vec![self.target().to_owned()],
        })
    }

    /// As whom a file is reached: see `Guest::holder`. The first home is of uid 0.
    pub fn holder(self, user: &str, uid: Option<u32>, path: &Path, has_directory: bool) -> Holder {
        let owner = has_directory.then_some(if path.starts_with(SSH_DIRECTORY) { 0 } else { 1001 });
        let known = self.account();
        let is_his = |account: &Account| {
            uid.is_none_or(|uid| uid == account.uid || owner.is_none_or(|owner| owner != uid))
        };
        if let Some(account) = known.clone().filter(|account| account.name == user && is_his(account)) {
            return Holder { account, fate: Fate::Present };
        }
        if let Some(account) = known.filter(|account| Some(account.uid) == uid) {
            return Holder { account, fate: Fate::Renamed };
        }
        let uid = uid.or(owner).unwrap_or_default();
        let account = Account { uid, gid: uid, name: user.to_owned(), ..Account::without_entry(user) };
        Holder { account, fate: Fate::Gone }
    }
}
