//! What the owner of the guest does to the two files meanwhile.

use std::fmt;

use super::disk::{DROP_IN, Disk, KEY_FILE, MAIN_CONFIG, OTHER_KEY_FILE};
use super::keys;
use super::place::{AccountState, TrialMode};

/// One edit of his, or one that he takes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UserEdit {
    /// He adds a key of his own.
    AddKey,
    /// He takes our block out.
    RemoveBlock,
    /// He empties the file.
    RemoveAllKeys,
    /// He puts `PasswordAuthentication` at the top of sshd_config.
    SetPasswordAuth(bool),
    /// He takes our setting out: the drop-in, or the block at the top.
    RemoveSetting,
    /// He puts `PubkeyAuthentication no` at the top.
    DisablePubkey,
    /// He writes a line that sshd does not know.
    BreakConfig,
    /// He takes that line out again.
    RepairConfig,
    /// The account gets another home, and perhaps the keys.
    MoveHome(KeyFileMove),
    /// The account becomes another one, or goes.
    ReplaceAccount(AccountState),
    /// The volume of the first home is mounted, or not any more.
    ToggleVolume,
    /// sshd refuses every key from now on, for a reason that only sshd knows: a mode of the home.
    LoosenHomeMode,
    /// What can be asked of a private sshd is another.
    SetTrialMode(TrialMode),
}

/// What becomes of the key file when the home moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyFileMove {
    /// It goes along.
    Moved,
    /// It stands in both.
    Copied,
    /// It stays behind.
    Left,
}

const MISSPELT_LINE: &str = "PaswordAuthentication no\n";

impl UserEdit {
    /// Makes it.
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

    /// Whether it is of the surroundings alone, and comes between two calls.
    pub fn is_environment_edit(self) -> bool {
        matches!(
            self,
            Self::MoveHome(_) | Self::ReplaceAccount(_) | Self::ToggleVolume | Self::SetTrialMode(_)
        )
    }

    /// Whether it is an edit of authorized_keys; else of sshd's files.
    pub fn is_key_file_edit(self) -> bool {
        matches!(self, Self::AddKey | Self::RemoveBlock | Self::RemoveAllKeys | Self::LoosenHomeMode)
    }

    /// Whether it takes away what is ours.
    pub fn removes_agent_lines(self) -> bool {
        matches!(self, Self::RemoveBlock | Self::RemoveAllKeys | Self::RemoveSetting)
    }
}

/// Takes all that is ours out of sshd's files.
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
