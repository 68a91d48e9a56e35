//! What the owner of the guest does to the two files meanwhile.

use std::fmt;

use super::disk::{DROP_IN, Disk, KEY_FILE, MAIN, OTHER_KEY_FILE};
use super::keys;
use super::place::{Trial, Who};

/// One edit of his, or one that he takes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Edit {
    /// He adds a key of his own.
    AddsKey,
    /// He takes our block out.
    RemovesBlock,
    /// He empties the file.
    RemovesAllKeys,
    /// He puts `PasswordAuthentication` at the top of sshd_config.
    SetsPasswords(bool),
    /// He takes our setting out: the drop-in, or the block at the top.
    RemovesSetting,
    /// He puts `PubkeyAuthentication no` at the top.
    RefusesKeys,
    /// He writes a line that sshd does not know.
    Misspells,
    /// He takes that line out again.
    Corrects,
    /// The account gets another home, and perhaps the keys.
    Moves(Keys),
    /// The account becomes another one, or goes.
    Becomes(Who),
    /// The volume of the first home is mounted, or not any more.
    SwitchesVolume,
    /// sshd refuses every key from now on, for a reason that only sshd knows: a mode of the home.
    OpensHome,
    /// What can be asked of a private sshd is another.
    Asks(Trial),
}

/// What becomes of the key file when the home moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Keys {
    /// It goes along.
    Moved,
    /// It stands in both.
    Copied,
    /// It stays behind.
    Left,
}

const UNKNOWN: &str = "PaswordAuthentication no\n";

impl Edit {
    /// Makes it.
    pub fn apply(self, disk: &mut Disk) {
        let at_the_top = |disk: &mut Disk, line: &str| {
            let main = [line.as_bytes(), disk.text(MAIN)].concat();
            disk.put(MAIN, &main);
        };
        match self {
            Self::AddsKey => {
                let added = [disk.keys(), keys::USERS_KEY.as_bytes()].concat();
                disk.put(disk.key_file(), &added);
            }
            Self::RemovesBlock if disk.read(disk.key_file()).is_some() => {
                let (_, users) = keys::apart(disk.keys());
                disk.put(disk.key_file(), &users);
            }
            Self::RemovesAllKeys if disk.read(disk.key_file()).is_some() => disk.put(disk.key_file(), b""),
            Self::RemovesBlock | Self::RemovesAllKeys => {}
            Self::SetsPasswords(true) => at_the_top(disk, "PasswordAuthentication yes\n"),
            Self::SetsPasswords(false) => at_the_top(disk, "PasswordAuthentication no\n"),
            Self::RefusesKeys => at_the_top(disk, "PubkeyAuthentication no\n"),
            Self::Misspells => at_the_top(disk, UNKNOWN),
            Self::RemovesSetting => without_setting(disk),
            Self::Corrects => {
                let main = String::from_utf8_lossy(disk.text(MAIN)).replace(UNKNOWN, "");
                disk.put(MAIN, main.as_bytes());
            }
            Self::Moves(keys) if disk.place.who == Who::Root => {
                disk.place.who = Who::Moved;
                let standing = disk.read(KEY_FILE).map(<[u8]>::to_vec).filter(|_| keys != Keys::Left);
                if let Some(standing) = standing {
                    disk.put(OTHER_KEY_FILE, &standing);
                }
                if keys == Keys::Moved {
                    disk.take(KEY_FILE);
                }
            }
            Self::Becomes(who) if disk.place.who == Who::Root => disk.place.who = who,
            Self::Moves(_) | Self::Becomes(_) => {}
            Self::SwitchesVolume => disk.switch_volume(),
            Self::OpensHome => disk.place.refuses_keys = true,
            Self::Asks(trial) => disk.place.trial = trial,
        }
    }

    /// Whether it is of the surroundings alone, and comes between two calls.
    pub fn is_of_the_place(self) -> bool {
        matches!(self, Self::Moves(_) | Self::Becomes(_) | Self::SwitchesVolume | Self::Asks(_))
    }

    /// Whether it is an edit of authorized_keys; else of sshd's files.
    pub fn is_of_keys(self) -> bool {
        matches!(self, Self::AddsKey | Self::RemovesBlock | Self::RemovesAllKeys | Self::OpensHome)
    }

    /// Whether it takes away what is ours.
    pub fn takes_ours(self) -> bool {
        matches!(self, Self::RemovesBlock | Self::RemovesAllKeys | Self::RemovesSetting)
    }
}

/// Takes all that is ours out of sshd's files.
pub fn without_setting(disk: &mut Disk) {
    disk.take(DROP_IN);
    let (_, users) = keys::main_file_apart(disk.text(MAIN));
    disk.put(MAIN, &users);
}

impl fmt::Display for Edit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::AddsKey => "the user adds a key of his own",
            Self::RemovesBlock => "the user takes our block out of authorized_keys",
            Self::RemovesAllKeys => "the user empties authorized_keys",
            Self::SetsPasswords(true) => "the user puts PasswordAuthentication yes at the top of sshd_config",
            Self::SetsPasswords(false) => "the user puts PasswordAuthentication no at the top of sshd_config",
            Self::RemovesSetting => "the user takes our setting out of sshd's files",
            Self::RefusesKeys => "the user puts PubkeyAuthentication no at the top of sshd_config",
            Self::Misspells => "the user writes a line into sshd_config that sshd does not know",
            Self::Corrects => "the user takes that line out again",
            Self::Moves(Keys::Moved) => "the user gets another home, and his keys move along",
            Self::Moves(Keys::Copied) => "the user gets another home, and his keys are copied along",
            Self::Moves(Keys::Left) => "the user gets another home, and his keys stay behind",
            Self::Becomes(who) => return write!(out, "the account is now {who:?}"),
            Self::SwitchesVolume => "the volume of the home is mounted, or taken away",
            Self::OpensHome => "sshd refuses every key from now on",
            Self::Asks(trial) => return write!(out, "a private sshd is from now on {trial:?}"),
        })
    }
}
