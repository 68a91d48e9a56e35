//! A command as the channel or the console delivers it (KP-3.20).

mod read;

use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::outcome::Refusal;
use super::public_key::PublicKey;
use super::signature::Envelope;
use super::types::{CommandId, KeyName, PasswordAuth, Sequence};

pub use read::parse_command;

/// The origin of a command. The console may omit fields that the channel must send (KP-8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The metadata channel: `sequence` and `instanceId` are required, and the agent delivers the result.
    Channel,
    /// The console: `apply`, `plan` and the short commands.
    Console,
}

/// The three actions, with their names on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ActionName {
    /// Bind a key pair.
    Attach,
    /// Unbind a key pair.
    Detach,
    /// Turn password login on or off.
    SetPasswordAuth,
}

impl fmt::Display for ActionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A key pair: the name and the key. Two key pairs are equal if both are equal (KP-4.8).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyPair {
    /// The key pair's name on the platform.
    pub key_name: KeyName,
    /// The public key.
    pub public_key: PublicKey,
}

/// What the command requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Bind `key_pair`, then set password login.
    Attach {
        /// The key pair to bind.
        key_pair: KeyPair,
        /// Whether password login is allowed afterwards.
        password_auth: PasswordAuth,
        /// Whether the command also replaces a key pair that is already bound.
        replace: bool,
    },
    /// Unbind the key pair of this name.
    Detach {
        /// The key pair's name. `None` means whichever is bound; only the console can omit the name.
        key_name: Option<KeyName>,
    },
    /// Set only password login.
    SetPasswordAuth {
        /// Whether password login is allowed afterwards.
        password_auth: PasswordAuth,
    },
}

impl Action {
    /// The action's name on the wire.
    pub fn name(&self) -> ActionName {
        match self {
            Self::Attach { .. } => ActionName::Attach,
            Self::Detach { .. } => ActionName::Detach,
            Self::SetPasswordAuth { .. } => ActionName::SetPasswordAuth,
        }
    }

    /// The key name in the command.
    pub fn key_name(&self) -> Option<&KeyName> {
        match self {
            Self::Attach { key_pair, .. } => Some(&key_pair.key_name),
            Self::Detach { key_name } => key_name.as_ref(),
            Self::SetPasswordAuth { .. } => None,
        }
    }

    /// The key in the command.
    pub fn public_key(&self) -> Option<&PublicKey> {
        match self {
            Self::Attach { key_pair, .. } => Some(&key_pair.public_key),
            Self::Detach { .. } | Self::SetPasswordAuth { .. } => None,
        }
    }

    /// The password setting in the command.
    pub fn password_auth(&self) -> Option<PasswordAuth> {
        match self {
            Self::Attach { password_auth, .. } | Self::SetPasswordAuth { password_auth } => {
                Some(*password_auth)
            }
            Self::Detach { .. } => None,
        }
    }
}

/// A valid command. It serializes to the wire format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The command's id.
    pub id: CommandId,
    /// The command's place in the order. Only the console may omit it.
    pub sequence: Option<Sequence>,
    /// The instance to which the command is addressed. Only the console may omit it. The agent compares it and never
    /// trusts it.
    pub instance_id: Option<String>,
    /// The requested action.
    pub action: Action,
    /// The time at which the command expires.
    pub expires_at: Option<OffsetDateTime>,
}

impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("commandId", &self.id)?;
        if let Some(sequence) = self.sequence {
            map.serialize_entry("sequence", &sequence)?;
        }
        map.serialize_entry("action", &self.action.name())?;
        if let Some(instance_id) = &self.instance_id {
            map.serialize_entry("instanceId", instance_id)?;
        }
        if let Some(key_name) = self.action.key_name() {
            map.serialize_entry("keyName", key_name)?;
        }
        if let Some(public_key) = self.action.public_key() {
            map.serialize_entry("publicKey", public_key)?;
        }
        if let Some(password_auth) = self.action.password_auth() {
            map.serialize_entry("passWordAuth", &password_auth)?;
        }
        if let Action::Attach { replace, .. } = &self.action {
            map.serialize_entry("replace", replace)?;
        }
        if let Some(expires_at) = self.expires_at {
            map.serialize_entry(
                "expiresAt",
                &expires_at.format(&Rfc3339).map_err(serde::ser::Error::custom)?,
            )?;
        }
        map.end()
    }
}

/// A command that the agent cannot answer because it has no usable `commandId`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswerable(pub String);

impl fmt::Display for Unanswerable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unanswerable {}

/// The fields that the agent could read of a command, valid or not. They are enough to answer it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedCommand {
    /// The command's id.
    pub id: CommandId,
    /// The command's action, if it names one.
    pub action: Option<ActionName>,
    /// The instance that the command names.
    pub instance_id: Option<String>,
    /// The command's key name, if it is valid.
    pub key_name: Option<KeyName>,
    /// The command's password setting, if it is valid.
    pub password_auth: Option<PasswordAuth>,
    /// The envelope that contained the command, if there was one.
    pub envelope: Option<Envelope>,
    /// The command itself, or why it is not valid.
    pub command: Result<Command, Refusal>,
}

impl From<Command> for ReceivedCommand {
    fn from(command: Command) -> Self {
        Self {
            id: command.id.clone(),
            action: Some(command.action.name()),
            instance_id: command.instance_id.clone(),
            key_name: command.action.key_name().cloned(),
            password_auth: command.action.password_auth(),
            envelope: None,
            command: Ok(command),
        }
    }
}
