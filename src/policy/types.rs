//! The text values of the wire format as types, so that code cannot confuse a validated value with an unvalidated
//! one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a value of one of the types below. It never repeats the text itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid(pub String);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

/// Defines a text type that is valid by construction and after deserialization.
macro_rules! text {
    ($name:ident) => {
        impl $name {
            /// The text as it appears on the wire.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
    };
}

/// The id of a command: 1 to 128 of letters, digits, `.`, `_`, `-`. It is not `.` or `..`, because it becomes part of
/// a path (KP-3.21).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommandId(String);
text!(CommandId);

impl FromStr for CommandId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > 128 || !text.bytes().all(allowed) || text == "." || text == ".." {
            return Err(Invalid("a commandId is 1 to 128 letters, digits, '.', '_' or '-'".into()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The name of a key pair: letters, digits, `_` and `-`, at most 32 (KP-1.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyName(String);
text!(KeyName);

impl FromStr for KeyName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if text.is_empty() || text.len() > 32 || !text.bytes().all(allowed) {
            return Err(Invalid("a key pair's name is 1 to 32 letters, digits, '_' or '-'".into()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The id of an instance, as the platform assigns it: 1 to 128 printable ASCII characters without blanks or quotes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(String);
text!(InstanceId);

impl FromStr for InstanceId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let allowed = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
        if text.is_empty() || text.len() > 128 || !text.bytes().all(allowed) {
            return Err(Invalid("an instance id is 1 to 128 printable characters without blanks".into()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The place of a command in the order of its instance: 1 to 2^53-1 (KP-3.27).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Sequence(u64);

impl TryFrom<u64> for Sequence {
    type Error = Invalid;
    fn try_from(number: u64) -> Result<Self, Invalid> {
        match number {
            1..=0x1F_FFFF_FFFF_FFFF => Ok(Self(number)),
            _ => Err(Invalid("a sequence is an integer from 1 to 2^53-1".into())),
        }
    }
}

impl From<Sequence> for u64 {
    fn from(sequence: Sequence) -> u64 {
        sequence.0
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `passWordAuth`: whether SSH password login is allowed (`yes`) or forbidden (`no`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PasswordAuth {
    /// Password login is allowed.
    Yes,
    /// Password login is forbidden.
    No,
}

impl PasswordAuth {
    /// The word on the wire and in sshd_config(5): `yes` or `no`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
        }
    }
}

impl fmt::Display for PasswordAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PasswordAuth {
    type Err = Invalid;
    /// Accepts `yes`, `no`, `true` and `false` in any case (KP-3.23).
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.to_ascii_lowercase().as_str() {
            "yes" | "true" => Ok(Self::Yes),
            "no" | "false" => Ok(Self::No),
            _ => Err(Invalid("passWordAuth is 'yes' or 'no'".into())),
        }
    }
}

/// The SHA-256 of a file's content. The agent uses it to notice changes by other programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContentHash(String);

impl ContentHash {
    /// Computes the hash of `content`.
    pub fn from_content(content: &[u8]) -> Self {
        use sha2::{Digest, Sha256};
        Self(Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KP-3.21.
    #[test]
    fn command_id_charset_and_length_are_checked() {
        for good in ["a", "c2hmmaan8w06w19qcdfuic4w03f7ft2d", "a.b_c-D", "...", &"x".repeat(128)] {
            assert!(good.parse::<CommandId>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(bad.parse::<CommandId>().is_err(), "{bad}");
        }
    }

    /// KP-1.1.
    #[test]
    fn key_name_charset_and_length_are_checked() {
        for good in ["a", "my-test", "A_1", &"x".repeat(32)] {
            assert!(good.parse::<KeyName>().is_ok(), "{good}");
        }
        for bad in ["", "a.b", "a b", "a\n", "ä", &"x".repeat(33)] {
            assert!(bad.parse::<KeyName>().is_err(), "{bad}");
        }
    }

    /// KP-3.27.
    #[test]
    fn sequence_range_is_checked() {
        assert!(Sequence::try_from(1).is_ok());
        assert!(Sequence::try_from((1 << 53) - 1).is_ok());
        assert!(Sequence::try_from(0).is_err());
        assert!(Sequence::try_from(1 << 53).is_err());
    }

    /// KP-3.23.
    #[test]
    fn password_auth_accepts_both_spellings() {
        for yes in ["yes", "YES", "True", "true"] {
            assert_eq!(yes.parse(), Ok(PasswordAuth::Yes));
        }
        for no in ["no", "No", "false", "FALSE"] {
            assert_eq!(no.parse(), Ok(PasswordAuth::No));
        }
        for bad in ["", "1", "on", " yes", "yes\n"] {
            assert!(bad.parse::<PasswordAuth>().is_err(), "{bad:?}");
        }
    }
}
