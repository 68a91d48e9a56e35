//! The surroundings of the files: the user's account, the mounted volume, and the abilities of the private sshd.

use std::path::Path;

use keypair_agent::policy::observation::{Account, KeyFileOwner, UserStatus};

use super::disk::SSH_DIRECTORY;

/// The mount point of the first home's volume.
pub const HOME_VOLUME: &str = "/root";

/// The surroundings of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostEnvironment {
    /// What happened to the account for which the first key is bound.
    pub who: AccountState,
    /// Whether the volume of the first home is mounted.
    pub is_mounted: bool,
    /// Whether sshd refuses every key, for a reason that only sshd knows.
    pub refuses_keys: bool,
    /// The questions that a private sshd can answer.
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

/// The only account that does not belong to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccountState {
    /// Unchanged.
    Original,
    /// It has another home.
    Moved,
    /// It has another name, and the configuration names it so.
    Renamed,
    /// It is deleted, and another account is the target user.
    Successor,
    /// It was deleted and created again with the same name, another uid and another home.
    Recreated,
    /// It is deleted, but still configured as the target user.
    Deleted,
}

/// The questions that a private sshd can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TrialMode {
    /// It answers all of them.
    Available,
    /// It answers only about the key files on the disk; it cannot read planned ones.
    WithoutPlannedFiles,
    /// No ssh client is installed: neither a private sshd nor the running one can answer.
    Unavailable,
}

impl HostEnvironment {
    /// The name of the target user in the configuration.
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

    /// The account; `None` if it is deleted.
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

    /// The account as which the agent accesses a file: see `Guest::resolve_key_file_owner`. The first home has uid 0.
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
