//! Changes that the owner of the guest makes to the key file, sshd's files and their surroundings.

use std::fmt;

use super::disk::{DROP_IN, Disk, KEY_FILE, MAIN_CONFIG, OTHER_KEY_FILE};
use super::keys;
use super::place::{AccountState, TrialMode};

/// One change, or the reversal of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UserEdit {
    /// The user adds their own key.
    AddKey,
    /// The user removes the agent's block.
    RemoveBlock,
    /// The user empties the key file.
    RemoveAllKeys,
    /// The user writes `PasswordAuthentication` at the top of sshd_config.
    SetPasswordAuth(bool),
    /// The user removes the agent's setting: the drop-in, or the block at the top.
    RemoveSetting,
    /// The user writes `PubkeyAuthentication no` at the top.
    DisablePubkey,
    /// The user writes a line that sshd does not know.
    BreakConfig,
    /// The user removes that line.
    RepairConfig,
    /// The account gets another home. The key file may move too.
    MoveHome(KeyFileMove),
    /// The account changes or is deleted.
    ReplaceAccount(AccountState),
    /// The volume of the first home is mounted or unmounted.
    ToggleVolume,
    /// From now on sshd refuses every key, for a reason that only sshd knows (a mode of the home).
    LoosenHomeMode,
    /// The private sshd can answer more or fewer questions than before.
    SetTrialMode(TrialMode),
}

/// What happens to the key file when the home moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyFileMove {
    /// The key file moves to the new home.
    Moved,
    /// The key file is in both homes.
    Copied,
    /// The key file stays in the old home.
    Left,
}

const MISSPELT_LINE: &str = "PaswordAuthentication no\n";

impl UserEdit {
    /// Applies the change.
    pub fn apply(self, disk: &mut Disk) {
        let prepend_line = |disk: &mut Disk, line: &str| {
            let main = [line.as_bytes(), disk.read_or_empty(MAIN_CONFIG)].concat();
            disk.write_file(MAIN_CONFIG, &main);
        };
        match self {
            Self::AddKey => {
                let added = [disk.read_key_file(), keys::USERS_KEY.as_bytes()].concat();
                disk.write_file(disk.key_file(), &added);
            }
            Self::RemoveBlock if disk.read(disk.key_file()).is_some() => {
                let (_, users) = keys::split_key_file(disk.read_key_file());
                disk.write_file(disk.key_file(), &users);
            }
            Self::RemoveAllKeys if disk.read(disk.key_file()).is_some() => {
                disk.write_file(disk.key_file(), b"")
            }
            Self::RemoveBlock | Self::RemoveAllKeys => {}
            Self::SetPasswordAuth(true) => prepend_line(disk, "PasswordAuthentication yes\n"),
            Self::SetPasswordAuth(false) => prepend_line(disk, "PasswordAuthentication no\n"),
            Self::DisablePubkey => prepend_line(disk, "PubkeyAuthentication no\n"),
            Self::BreakConfig => prepend_line(disk, MISSPELT_LINE),
            Self::RemoveSetting => remove_agent_setting(disk),
            Self::RepairConfig => {
                let main =
                    String::from_utf8_lossy(disk.read_or_empty(MAIN_CONFIG)).replace(MISSPELT_LINE, "");
                disk.write_file(MAIN_CONFIG, main.as_bytes());
            }
            Self::MoveHome(keys) if disk.place.who == AccountState::Original => {
                disk.place.who = AccountState::Moved;
                let standing = disk.read(KEY_FILE).map(<[u8]>::to_vec).filter(|_| keys != KeyFileMove::Left);
                if let Some(standing) = standing {
                    disk.write_file(OTHER_KEY_FILE, &standing);
                }
                if keys == KeyFileMove::Moved {
                    disk.remove_file(KEY_FILE);
                }
            }
            Self::ReplaceAccount(who) if disk.place.who == AccountState::Original => disk.place.who = who,
            Self::MoveHome(_) | Self::ReplaceAccount(_) => {}
            Self::ToggleVolume => disk.toggle_volume(),
            Self::LoosenHomeMode => disk.place.refuses_keys = true,
            Self::SetTrialMode(trial) => disk.place.trial = trial,
        }
    }

    /// Whether the change concerns only the surroundings of the files. Such a change comes between two calls.
    pub fn is_environment_edit(self) -> bool {
        matches!(
            self,
            Self::MoveHome(_) | Self::ReplaceAccount(_) | Self::ToggleVolume | Self::SetTrialMode(_)
        )
    }

    /// Whether the change edits authorized_keys; otherwise it edits sshd's files.
    pub fn is_key_file_edit(self) -> bool {
        matches!(self, Self::AddKey | Self::RemoveBlock | Self::RemoveAllKeys | Self::LoosenHomeMode)
    }

    /// Whether the change removes lines of the agent.
    pub fn removes_agent_lines(self) -> bool {
        matches!(self, Self::RemoveBlock | Self::RemoveAllKeys | Self::RemoveSetting)
    }
}

/// Removes the agent's setting from sshd's files.
pub fn remove_agent_setting(disk: &mut Disk) {
    disk.remove_file(DROP_IN);
    let (_, users) = keys::split_main_file(disk.read_or_empty(MAIN_CONFIG));
    disk.write_file(MAIN_CONFIG, &users);
}

impl fmt::Display for UserEdit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::AddKey => "the user adds a key of his own",
            Self::RemoveBlock => "the user takes our block out of authorized_keys",
            Self::RemoveAllKeys => "the user empties authorized_keys",
            Self::SetPasswordAuth(true) => {
                "the user puts PasswordAuthentication yes at the top of sshd_config"
            }
            Self::SetPasswordAuth(false) => {
                "the user puts PasswordAuthentication no at the top of sshd_config"
            }
            Self::RemoveSetting => "the user takes our setting out of sshd's files",
            Self::DisablePubkey => "the user puts PubkeyAuthentication no at the top of sshd_config",
            Self::BreakConfig => "the user writes a line into sshd_config that sshd does not know",
            Self::RepairConfig => "the user takes that line out again",
            Self::MoveHome(KeyFileMove::Moved) => "the user gets another home, and his keys move along",
            Self::MoveHome(KeyFileMove::Copied) => {
                "the user gets another home, and his keys are copied along"
            }
            Self::MoveHome(KeyFileMove::Left) => "the user gets another home, and his keys stay behind",
            Self::ReplaceAccount(who) => return write!(out, "the account is now {who:?}"),
            Self::ToggleVolume => "the volume of the home is mounted, or taken away",
            Self::LoosenHomeMode => "sshd refuses every key from now on",
            Self::SetTrialMode(trial) => return write!(out, "a private sshd is from now on {trial:?}"),
        })
    }
}
