//! What became of a command: the Result of KP-3.31, word for word.

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
    /// It is in effect.
    Succeeded,
    /// Nothing of it is.
    Failed,
}

/// The class of a result, as the platform names its errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// It succeeded.
    Ok,
    /// The command itself is wrong.
    InvalidArgument,
    /// The guest, or the moment, does not allow it.
    FailedPrecondition,
    /// It should have worked.
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
    /// The class this reason belongs to.
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

/// A failure with its reason and its explanation: cause, place and remedy, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The stable reason.
    pub reason: Reason,
    /// One line for a person; never key text.
    pub message: String,
}

impl Refusal {
    /// A refusal for `reason`, explained by `message`.
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

/// What a warning is about: the closed, stable set of KP-3.32.
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
    /// What it is about.
    pub reason: WarningReason,
    /// One line for a person; never key text.
    pub message: String,
    /// The file it is about.
    pub file: Option<String>,
    /// The line in that file, from 1.
    pub line: Option<usize>,
}

impl Warning {
    /// A warning that names no file.
    pub fn new(reason: WarningReason, message: impl Into<String>) -> Self {
        Self { reason, message: foreign::sanitize_message(&message.into()), file: None, line: None }
    }

    /// The same warning about a place.
    #[must_use]
    pub fn with_location(mut self, file: &Path, line: Option<usize>) -> Self {
        self.file = Some(sanitize_path(file));
        self.line = line;
        self
    }
}

/// What the last `sshd -T` of a command said, for the target user from the first port's neutral IPv4
/// address (KP-3.35 and KP-6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveReport {
    /// `PasswordAuthentication`.
    pub password_authentication: bool,
    /// `KbdInteractiveAuthentication`, under whichever name this sshd knows.
    pub kbd_interactive_authentication: bool,
    /// `PubkeyAuthentication`.
    pub pubkey_authentication: bool,
}

/// What the running sshd said of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyAcceptance {
    /// It would accept the key.
    Accepted,
    /// It would not.
    Refused,
    /// The question was not asked, or got no answer.
    NotTaken,
}

/// The two questions to the running sshd (KP-10.13).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeReport {
    /// Would it accept this key for this user?
    pub key: KeyAcceptance,
    /// What it offers, after the reload.
    pub methods: Option<Vec<String>>,
    /// Where it was asked.
    pub address: Option<String>,
    /// Why the first question without an answer has none.
    pub not_taken: Option<String>,
}

/// What a private sshd said of the key (KP-10.5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrialReport {
    /// Would it accept this key for this user?
    pub key: TrialKey,
    /// The file at which the key matched, or the command that printed the line.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<usize>,
    /// The methods that it offers.
    pub methods: Option<Vec<String>>,
    /// Why there is no answer.
    pub not_taken: Option<String>,
}

impl TrialReport {
    /// A trial without an answer.
    pub fn without_answer(why: impl Into<String>) -> Self {
        Self { key: TrialKey::NotTaken, file: None, line: None, methods: None, not_taken: Some(why.into()) }
    }

    /// Whether it offers a method.
    pub fn offers_method(&self, method: &str) -> bool {
        self.methods.iter().flatten().any(|offered| offered == method)
    }
}

/// Whether a sshd accepts the key.
pub type TrialKey = KeyAcceptance;

/// The Result of KP-3.31. Every field is always there, `null` where it does not apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandResult {
    /// The command this answers.
    pub command_id: CommandId,
    /// This instance, where it is known; else the instance the command named.
    pub instance_id: Option<String>,
    /// What was to be done; `null` where the command does not say it.
    pub action: Option<ActionName>,
    /// Whether it took effect.
    pub status: Status,
    /// The class of `reason`.
    pub code: Code,
    /// Why it failed.
    pub reason: Option<Reason>,
    /// One line for a person.
    pub message: String,
    /// Whether a byte of the guest's files is another than before.
    pub changed: bool,
    /// The command's own key name.
    pub key_name: Option<KeyName>,
    /// Of the command's key; on a detach, of the unbound one.
    pub fingerprint: Option<Fingerprint>,
    /// Whose authorized_keys it is about.
    pub user: Option<String>,
    /// The file that sshd reads for that user.
    pub authorized_keys_file: Option<String>,
    /// The command's own setting.
    #[serde(rename = "passWordAuth")]
    pub password_auth: Option<PasswordAuth>,
    /// The last `sshd -T` of this command.
    pub effective: Option<EffectiveReport>,
    /// What a private sshd said, before a step depended on it.
    #[serde(default)]
    pub trial: Option<TrialReport>,
    /// What the running sshd said.
    pub proof: Option<ProbeReport>,
    /// What the owner should know besides.
    pub warnings: Vec<Warning>,
    /// The component's version as its file states it.
    pub component_version: Option<String>,
    /// This agent's version.
    pub agent_version: String,
    /// RFC 3339, UTC.
    pub finished_at: String,
    /// From the first look at the command to the result, in milliseconds.
    pub duration_ms: u64,
}
