//! Unique identifiers: 32 lower-case hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use keypair_agent::policy::types::Invalid;
use uuid::Uuid;

use crate::clock;
use crate::ledger::CommandIdentity;

/// The id of a request to the platform's API.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(String);

impl RequestId {
    /// Generates a new id.
    pub fn generate() -> Self {
        Self(generate_id())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RequestId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let is_digit = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
        if text.len() != 32 || !text.bytes().all(is_digit) {
            return Err(Invalid("a request's id is 32 lower-case hexadecimal digits".into()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Generates a new identifier.
pub fn generate_id() -> String {
    Uuid::new_v4().simple().to_string()
}

/// The id and the time for a command that is queued now.
///
/// # Errors
/// None in practice: [`generate_id`] returns a valid id.
pub fn new_command_identity() -> Result<CommandIdentity, Invalid> {
    Ok(CommandIdentity { id: generate_id().parse()?, now: clock::now_millis() })
}
