//! What is not bytes of a file: whose home it is, whether its volume is mounted, and what a private sshd says.

use std::path::Path;

use keypair_agent::policy::observation::{Account, KeyFileOwner, UserStatus};

use super::disk::SSH_DIRECTORY;

/// The mount point of the first home's volume.
pub const HOME_VOLUME: &str = "/root";

/// The surroundings of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostEnvironment {
    /// What became of the user for whom the first key is bound.
    pub who: AccountState,
    /// Whether the volume of the first home is mounted.
    pub is_mounted: bool,
    /// Whether sshd refuses every key, for a reason that only sshd knows.
    pub refuses_keys: bool,
    /// How a private sshd can be asked.
    pub trial: TrialMode,
}

impl Default for HostEnvironment {
    fn default() -> Self {
        Self {
            who: AccountState::Original,
            is_mounted: true,
            refuses_keys: false,
            trial: TrialMode::Available,
        }
    }
}

/// The one account that is not a service's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccountState {
    /// As at the beginning.
    Original,
    /// He has another home.
    Moved,
    /// He has another name, and is the target user by that one.
    Renamed,
    /// He is gone, and another one is the target user.
    Successor,
    /// He is gone, and one of his name was made, with another uid and another home.
    Recreated,
    /// He is gone, and is the target user still.
    Deleted,
}

/// How a private sshd can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TrialMode {
    /// It says what it would do.
    Available,
    /// It says so of the key files as they stand: planned ones cannot be shown to it.
    WithoutPlannedFiles,
    /// No ssh client is installed: nobody can be asked, the running sshd neither.
    Unavailable,
}

impl HostEnvironment {
    /// The name of the target user, as it is configured.
    pub fn target_user(self) -> &'static str {
        match self.who {
            AccountState::Original
            | AccountState::Moved
            | AccountState::Recreated
            | AccountState::Deleted => "root",
            AccountState::Renamed => "admin",
            AccountState::Successor => "heir",
        }
    }

    /// The account; `None` where nobody is left.
    pub fn account(self) -> Option<Account> {
        let (uid, home) = match self.who {
            AccountState::Original | AccountState::Renamed => (0, "/root"),
            AccountState::Moved => (0, "/data"),
            AccountState::Successor | AccountState::Recreated => (1001, "/data"),
            AccountState::Deleted => return None,
        };
        Some(Account {
            name: self.target_user().to_owned(),
            uid,
            gid: uid,
            home: home.into(),
            shell: "/bin/bash".into(),
            groups: vec![self.target_user().to_owned()],
        })
    }

    /// As whom a file is reached: see `Guest::holder`. The first home is of uid 0.
    pub fn holder(self, user: &str, uid: Option<u32>, path: &Path, has_directory: bool) -> KeyFileOwner {
        let owner = has_directory.then_some(if path.starts_with(SSH_DIRECTORY) { 0 } else { 1001 });
        let known = self.account();
        let is_his = |account: &Account| {
            uid.is_none_or(|uid| uid == account.uid || owner.is_none_or(|owner| owner != uid))
        };
        if let Some(account) = known.clone().filter(|account| account.name == user && is_his(account)) {
            return KeyFileOwner { account, fate: UserStatus::Present };
        }
        if let Some(account) = known.filter(|account| Some(account.uid) == uid) {
            return KeyFileOwner { account, fate: UserStatus::Renamed };
        }
        let uid = uid.or(owner).unwrap_or_default();
        let account = Account { uid, gid: uid, name: user.to_owned(), ..Account::placeholder(user) };
        KeyFileOwner { account, fate: UserStatus::Gone }
    }
}
