//! The key pairs, the user's own key, and the agent's lines in a file. This module recognises those lines by their
//! text alone, without the product's parser.

/// A key pair of the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PlatformKeyPair {
    /// The first one.
    K,
    /// The second one.
    L,
    /// The name of the first with the key of the second: a third pair (KP-4.8).
    KWithAnotherKey,
}

const KEY_K: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF86eSkqX3I2gC8oUEbWaJ54JKEt/jagDdVjCuOifDfx owner@cloud";
const KEY_L: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBbwm4k+8KMF07qcLVz/eSGyj97QI+EJtkleEe2kMvbt owner@cloud";

/// The user's own key. It is not bound by the agent.
pub const USERS_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHpX0nWcl0oVZlKZ3S0w1hKq4VtqQz0m2m3Qd7yqO1aa me@home\n";

/// The user's own copy of K: the same key with another comment.
pub const USERS_COPY_OF_K: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF86eSkqX3I2gC8oUEbWaJ54JKEt/jagDdVjCuOifDfx me@laptop\n";

const BEGIN: &[u8] = b"# BEGIN keypair-agent";
const END: &[u8] = b"# END keypair-agent";

impl PlatformKeyPair {
    /// Its name on the platform.
    pub fn name(self) -> &'static str {
        match self {
            Self::K | Self::KWithAnotherKey => "key-k",
            Self::L => "key-l",
        }
    }

    /// Its public key.
    pub fn public_key(self) -> &'static str {
        match self {
            Self::K => KEY_K,
            Self::L | Self::KWithAnotherKey => KEY_L,
        }
    }

    /// The block that binds it, in the form of KP-5.4.
    pub fn block(self) -> String {
        let (name, key) = (self.name(), self.public_key());
        format!(
            "# BEGIN keypair-agent {name} (bound by the cloud; \"keypair-agent undo\" takes it out)\n{key}\n\
             # END keypair-agent {name}\n"
        )
    }

    /// The pair that this block binds.
    pub fn from_block(block: &[u8]) -> Option<Self> {
        [Self::K, Self::L, Self::KWithAnotherKey].into_iter().find(|pair| pair.block().as_bytes() == block)
    }
}

fn split_lines(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    content.split_inclusive(|byte| *byte == b'\n')
}

fn is_agent_key(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line == KEY_K.as_bytes() || line == KEY_L.as_bytes()
}

fn is_marker(line: &[u8]) -> bool {
    line.starts_with(BEGIN) || line.starts_with(END)
}

/// Splits an authorized_keys file into the agent's lines and the user's lines.
pub fn split_key_file(content: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (ours, users): (Vec<&[u8]>, Vec<&[u8]>) =
        split_lines(content).partition(|line| is_marker(line) || is_agent_key(line));
    (ours.concat(), users.concat())
}

/// Splits sshd's main file in the same way. The agent's lines are those from one marker to the other.
pub fn split_main_file(content: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut inside = false;
    let (ours, users): (Vec<&[u8]>, Vec<&[u8]>) = split_lines(content).partition(|line| {
        let is_ours = inside || is_marker(line);
        inside = is_ours && !line.starts_with(END);
        is_ours
    });
    (ours.concat(), users.concat())
}

/// The agent's keys in a file.
pub fn agent_keys(content: &[u8]) -> Vec<&[u8]> {
    split_lines(content)
        .filter(|line| is_agent_key(line))
        .map(|line| line.strip_suffix(b"\n").unwrap_or(line))
        .collect()
}

/// Whether any line would give access. Every key of this simulation would.
pub fn has_any_key(content: &[u8]) -> bool {
    split_lines(content).any(|line| line.starts_with(b"ssh-ed25519 "))
}

/// Whether the file contains this key.
pub fn has_key(content: &[u8], key: &str) -> bool {
    find_key_line(content, key).is_some()
}

/// The number of the line with this key, from 1.
pub fn find_key_line(content: &[u8], key: &str) -> Option<usize> {
    let blob = key.split(' ').nth(1).unwrap_or_default();
    let is_it = |line: &[u8]| line.split(|byte| *byte == b' ').nth(1) == Some(blob.as_bytes());
    split_lines(content).position(is_it).map(|index| index + 1)
}
