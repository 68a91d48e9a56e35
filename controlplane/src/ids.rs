//! Identifiers that nobody had before: 32 lower-case hexadecimal digits.

use keypair_agent::policy::types::{CommandId, Invalid};
use uuid::Uuid;

/// A new identifier.
pub fn fresh() -> String {
    Uuid::new_v4().simple().to_string()
}

/// A new command's id.
///
/// # Errors
/// None in practice: what [`fresh`] makes is a valid id.
pub fn fresh_command_id() -> Result<CommandId, Invalid> {
    fresh().parse()
}
