//! The outcome of a command: the Result of KP-3.31, word for word.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::command::ActionName;
use super::foreign::{self, sanitize_path};
use super::public_key::Fingerprint;
use super::types::{CommandId, KeyName, PasswordAuth};

pub use super::foreign::escape_unprintable;

mod bounds;

pub use bounds::{MAX_RESULT_BYTES, MAX_WARNINGS, limit_warnings, shorten_result};

/// Whether a command took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The command is in effect.
    Succeeded,
    /// No part of the command is in effect.
    Failed,
}

/// The class of a result, as the platform names its errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// The command succeeded.
    Ok,
    /// The command itself is wrong.
    InvalidArgument,
    /// The state of the guest does not allow the command now.
    FailedPrecondition,
    /// An error that should not have happened.
    Internal,
}

/// Why a command failed: the closed, stable set of KP-3.32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)] // the names are the documentation: KP-3.32 and docs/protocol.md
pub enum Reason {
    MalformedCommand,
    InvalidPasswordAuth,
    InvalidKeyName,
    InvalidPublicKey,
    WeakPublicKey,
    ComponentTooOld,
    ComponentVersionUnreadable,
    WrongInstance,
    Expired,
    BadSignature,
    StaleCommand,
    AlreadyAttached,
    NotAttached,
    UserNotFound,
    UnsafePath,
    AuthorizedKeysUnsupported,
    LockoutGuard,
    SshdNotFound,
    SshdConfigAlreadyInvalid,
    SshdConfigRejected,
    SshdReloadUnsafe,
    PasswordAuthNotEffective,
    SshdReloadFailed,
    ProofContradicted,
    IoError,
    Interrupted,
}

impl Reason {
    /// The class to which this reason belongs.
    pub fn code(self) -> Code {
        match self {
            Self::MalformedCommand
            | Self::InvalidPasswordAuth
            | Self::InvalidKeyName
            | Self::InvalidPublicKey
            | Self::WeakPublicKey => Code::InvalidArgument,
            Self::ComponentTooOld
            | Self::ComponentVersionUnreadable
            | Self::WrongInstance
            | Self::Expired
            | Self::BadSignature
            | Self::StaleCommand
            | Self::AlreadyAttached
            | Self::NotAttached
            | Self::UserNotFound
            | Self::UnsafePath
            | Self::AuthorizedKeysUnsupported
            | Self::LockoutGuard
            | Self::SshdNotFound
            | Self::SshdConfigAlreadyInvalid
            | Self::SshdConfigRejected
            | Self::SshdReloadUnsafe
            | Self::PasswordAuthNotEffective => Code::FailedPrecondition,
            Self::SshdReloadFailed | Self::ProofContradicted | Self::IoError | Self::Interrupted => {
                Code::Internal
            }
        }
    }
}

/// A failure with its reason and a message for a person: cause, place and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The stable reason.
    pub reason: Reason,
    /// One line for a person. It never contains key text.
    pub message: String,
}

impl Refusal {
    /// Creates a refusal for `reason` with the explanation `message`.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: foreign::sanitize_message(&message.into()) }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for WarningReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The subject of a warning: the closed, stable set of KP-3.32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)] // the names are the documentation: KP-3.32 and docs/protocol.md
pub enum WarningReason {
    MatchAllowsPassword,
    SourceLimited,
    RestrictedCopy,
    KeyStillPresent,
    NoWayIn,
    RootPasswordProhibited,
    KbdInteractiveLeft,
    KeyNotUsable,
    PamNotEvaluated,
    SshdNotRunning,
    SecondSshd,
    PasswordOnlyAccounts,
    InheritedKeyReplaced,
    AccountShutOut,
    SettingNotOwned,
    WrongLabel,
}

/// Something the owner should know although the command succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// The subject.
    pub reason: WarningReason,
    /// One line for a person. It never contains key text.
    pub message: String,
    /// The file that the warning concerns.
    pub file: Option<String>,
    /// The line in that file, from 1.
    pub line: Option<usize>,
}

impl Warning {
    /// Creates a warning that names no file.
    pub fn new(reason: WarningReason, message: impl Into<String>) -> Self {
        Self { reason, message: foreign::sanitize_message(&message.into()), file: None, line: None }
    }

    /// Returns the same warning with a file and line.
    #[must_use]
    pub fn with_location(mut self, file: &Path, line: Option<usize>) -> Self {
        self.file = Some(sanitize_path(file));
        self.line = line;
        self
    }
}

/// The last answer of `sshd -T` in a command, for the target user at the first port from the IPv4 address that no
/// rule names (KP-3.35 and KP-6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveReport {
    /// `PasswordAuthentication`.
    pub password_authentication: bool,
    /// `KbdInteractiveAuthentication`, under the name that this sshd knows.
    pub kbd_interactive_authentication: bool,
    /// `PubkeyAuthentication`.
    pub pubkey_authentication: bool,
}

/// The answer of the running sshd about the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyAcceptance {
    /// sshd would accept the key.
    Accepted,
    /// sshd would not accept the key.
    Refused,
    /// The agent did not send the query, or got no answer.
    NotTaken,
}

/// The answers to the two queries to the running sshd (KP-10.13).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeReport {
    /// Whether sshd would accept this key for this user.
    pub key: KeyAcceptance,
    /// The methods that sshd offers after the reload.
    pub methods: Option<Vec<String>>,
    /// The address of the sshd that the agent queried.
    pub address: Option<String>,
    /// Why there is no answer, for the first query without one.
    pub not_taken: Option<String>,
}

/// The answer of a private sshd about the key (KP-10.5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrialReport {
    /// Whether the private sshd would accept this key for this user.
    pub key: TrialKey,
    /// The file in which the key matched, or the command that printed the line.
    pub file: Option<String>,
    /// The line in that file.
    pub line: Option<usize>,
    /// The methods that the private sshd offers.
    pub methods: Option<Vec<String>>,
    /// Why there is no answer.
    pub not_taken: Option<String>,
}

impl TrialReport {
    /// Creates the report of a trial without an answer.
    pub fn without_answer(why: impl Into<String>) -> Self {
        Self { key: TrialKey::NotTaken, file: None, line: None, methods: None, not_taken: Some(why.into()) }
    }

    /// Whether the private sshd offers a method.
    pub fn offers_method(&self, method: &str) -> bool {
        self.methods.iter().flatten().any(|offered| offered == method)
    }
}

/// Whether an sshd accepts the key.
pub type TrialKey = KeyAcceptance;

/// The Result of KP-3.31. Every field is always present, and `null` if it does not apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandResult {
    /// The id of the command that this result answers.
    pub command_id: CommandId,
    /// The id of this instance, if the agent knows it. Otherwise the instance that the command named.
    pub instance_id: Option<String>,
    /// The action of the command. `null` if the command does not name one.
    pub action: Option<ActionName>,
    /// Whether the command took effect.
    pub status: Status,
    /// The class of `reason`.
    pub code: Code,
    /// Why the command failed.
    pub reason: Option<Reason>,
    /// One line for a person.
    pub message: String,
    /// Whether the command changed a byte of the guest's files.
    pub changed: bool,
    /// The key name in the command.
    pub key_name: Option<KeyName>,
    /// The fingerprint of the command's key, or of the unbound key for a detach.
    pub fingerprint: Option<Fingerprint>,
    /// The user whose authorized_keys file the command concerns.
    pub user: Option<String>,
    /// The file that sshd reads for that user.
    pub authorized_keys_file: Option<String>,
    /// The setting in the command.
    #[serde(rename = "passWordAuth")]
    pub password_auth: Option<PasswordAuth>,
    /// The last answer of `sshd -T` in this command.
    pub effective: Option<EffectiveReport>,
    /// The private sshd's answer, which the agent got before a step depended on it.
    #[serde(default)]
    pub trial: Option<TrialReport>,
    /// The running sshd's answer.
    pub proof: Option<ProbeReport>,
    /// Further information for the owner.
    pub warnings: Vec<Warning>,
    /// The component's version as its file states it.
    pub component_version: Option<String>,
    /// This agent's version.
    pub agent_version: String,
    /// The end of the command in RFC 3339 format, in UTC.
    pub finished_at: String,
    /// The time from the first look at the command to the result, in milliseconds.
    pub duration_ms: u64,
}
