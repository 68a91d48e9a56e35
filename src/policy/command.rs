//! A command as the channel or the console hands it over (KP-3.20).

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

/// Where a command came from; the console may leave out what the channel must say (KP-8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The metadata channel: `sequence` and `instanceId` are required, the result is delivered.
    Channel,
    /// `apply`, `plan` and the words at the console.
    Console,
}

/// The three actions, as the wire names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ActionName {
    /// Bind a key pair.
    Attach,
    /// Unbind it.
    Detach,
    /// Turn password login on or off.
    SetPasswordAuth,
}

impl fmt::Display for ActionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A key pair: the name and the key. Two are the same when both are (KP-4.8).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyPair {
    /// Its name on the platform.
    pub key_name: KeyName,
    /// Its public half.
    pub public_key: PublicKey,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Bind `key_pair`, then set password login.
    Attach {
        /// What to bind.
        key_pair: KeyPair,
        /// Whether password login is allowed afterwards.
        password_auth: PasswordAuth,
        /// Whether a bound key pair is replaced in the same step.
        replace: bool,
    },
    /// Unbind the key pair of this name.
    Detach {
        /// Its name; `None`, whichever is bound, is said at the console alone.
        key_name: Option<KeyName>,
    },
    /// Set password login alone.
    SetPasswordAuth {
        /// Whether it is allowed afterwards.
        password_auth: PasswordAuth,
    },
}

impl Action {
    /// Its name on the wire.
    pub fn name(&self) -> ActionName {
        match self {
            Self::Attach { .. } => ActionName::Attach,
            Self::Detach { .. } => ActionName::Detach,
            Self::SetPasswordAuth { .. } => ActionName::SetPasswordAuth,
        }
    }

    /// The command's own key name.
    pub fn key_name(&self) -> Option<&KeyName> {
        match self {
            Self::Attach { key_pair, .. } => Some(&key_pair.key_name),
            Self::Detach { key_name } => key_name.as_ref(),
            Self::SetPasswordAuth { .. } => None,
        }
    }

    /// The command's own key.
    pub fn public_key(&self) -> Option<&PublicKey> {
        match self {
            Self::Attach { key_pair, .. } => Some(&key_pair.public_key),
            Self::Detach { .. } | Self::SetPasswordAuth { .. } => None,
        }
    }

    /// The command's own setting.
    pub fn password_auth(&self) -> Option<PasswordAuth> {
        match self {
            Self::Attach { password_auth, .. } | Self::SetPasswordAuth { password_auth } => {
                Some(*password_auth)
            }
            Self::Detach { .. } => None,
        }
    }
}

/// A valid command. It serializes to the wire's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What identifies it.
    pub id: CommandId,
    /// Its place in the order; only the console may leave it out.
    pub sequence: Option<Sequence>,
    /// Whom it is for; only the console may leave it out. Compared, never trusted.
    pub instance_id: Option<String>,
    /// What is to be done.
    pub action: Action,
    /// When it is no longer to be obeyed.
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

/// A command that cannot be answered, since it has no usable `commandId`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswerable(pub String);

impl fmt::Display for Unanswerable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unanswerable {}

/// What could be told of a command, valid or not: enough to answer it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedCommand {
    /// What identifies it.
    pub id: CommandId,
    /// Its action, where it names one.
    pub action: Option<ActionName>,
    /// The instance it names.
    pub instance_id: Option<String>,
    /// Its key name, where that is valid.
    pub key_name: Option<KeyName>,
    /// Its setting, where that is valid.
    pub password_auth: Option<PasswordAuth>,
    /// The envelope it came in, where it did.
    pub envelope: Option<Envelope>,
    /// The command itself, or why it is none.
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
