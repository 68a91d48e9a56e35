//! The control plane: the commands of an instance in their order, and one stored result for each command.

use std::collections::BTreeMap;
use std::fmt;

use super::keys::PlatformKeyPair;

/// The action of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SimOrder {
    /// Bind a key pair, then set password login. With `replace`, unbind the bound key pair in the same step.
    Attach {
        /// The key pair.
        pair: PlatformKeyPair,
        /// `passWordAuth`.
        passwords: bool,
        /// `replace`.
        replace: bool,
    },
    /// Unbind the key pair.
    Detach(PlatformKeyPair),
    /// Only set password login.
    SetPasswordAuth(bool),
}

impl SimOrder {
    /// `passWordAuth`.
    pub fn password_auth(self) -> Option<bool> {
        match self {
            Self::Attach { passwords, .. } | Self::SetPasswordAuth(passwords) => Some(passwords),
            Self::Detach(_) => None,
        }
    }
}

/// The instances that a command may be for: the first one, and its clone.
pub const INSTANCES: [&str; 2] = ["i-one", "i-clone"];

/// A command as the channel returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SimCommand {
    /// Its index among the commands, from 0.
    pub number: usize,
    /// The index of its instance in [`INSTANCES`].
    pub instance: usize,
    /// Its action.
    pub order: SimOrder,
    /// Its expiry time, in seconds since 1970.
    pub expires_at: Option<i64>,
}

impl SimCommand {
    /// Its `commandId`.
    pub fn id(&self) -> String {
        format!("c{}-{}", self.number + 1, INSTANCES[self.instance])
    }

    /// Its `sequence`.
    pub fn sequence(&self) -> u64 {
        self.number as u64 + 1
    }

    /// Its JSON bytes.
    pub fn encode(&self) -> Vec<u8> {
        let word = |passwords: bool| if passwords { "yes" } else { "no" };
        let mut command = serde_json::json!({
            "commandId": self.id(), "sequence": self.sequence(), "instanceId": INSTANCES[self.instance],
        });
        let mut set = |name: &str, value: serde_json::Value| command[name] = value;
        match self.order {
            SimOrder::Attach { pair, passwords, replace } => {
                set("action", "attach".into());
                set("keyName", pair.name().into());
                set("publicKey", pair.public_key().into());
                set("passWordAuth", word(passwords).into());
                set("replace", replace.into());
            }
            SimOrder::Detach(pair) => {
                set("action", "detach".into());
                set("keyName", pair.name().into());
            }
            SimOrder::SetPasswordAuth(passwords) => {
                set("action", "setPasswordAuth".into());
                set("passWordAuth", word(passwords).into());
            }
        }
        if let Some(moment) =
            self.expires_at.and_then(|at| time::OffsetDateTime::from_unix_timestamp(at).ok())
        {
            let format = time::format_description::well_known::Rfc3339;
            set("expiresAt", moment.format(&format).unwrap().into());
        }
        command.to_string().into_bytes()
    }
}

/// The service's answer to a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// The service has stored this result.
    Accepted,
    /// The service has a different result for this command (409).
    Conflict,
}

/// The state of the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlane {
    /// The actions of the commands, in order of sequence.
    pub orders: Vec<SimOrder>,
    /// The expiry time of the first command, if it has one.
    pub first_expires_at: Option<i64>,
    /// The index in [`INSTANCES`] of the instance that the control plane serves.
    pub instance: usize,
    /// The stored result of each command, by its id.
    pub results: BTreeMap<String, String>,
}

impl ControlPlane {
    /// The command of this number for this instance.
    pub fn command_at(&self, number: usize, instance: usize) -> SimCommand {
        let expires_at = self.first_expires_at.filter(|_| number == 0);
        SimCommand { number, instance, order: self.orders[number], expires_at }
    }

    /// Whether a command has a result. For a clone, the commands that its origin answered count as answered.
    pub fn is_answered(&self, number: usize) -> bool {
        (0..=self.instance).any(|instance| self.results.contains_key(&self.command_at(number, instance).id()))
    }

    /// The commands without a result, the oldest first.
    pub fn unanswered_commands(&self) -> impl Iterator<Item = SimCommand> {
        let open = (0..self.orders.len()).filter(|number| !self.is_answered(*number));
        open.map(|number| self.command_at(number, self.instance))
    }

    /// Stores a result. Only the first result of each command is kept.
    pub fn store_result(&mut self, id: &str, result: &str) -> Stored {
        let kept = self.results.entry(id.to_owned()).or_insert_with(|| result.to_owned());
        if kept == result { Stored::Accepted } else { Stored::Conflict }
    }
}

impl fmt::Display for SimOrder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |passwords: &bool| if *passwords { "yes" } else { "no" };
        match self {
            Self::Attach { pair, passwords, replace } => {
                let replace = if *replace { " with replace" } else { "" };
                write!(out, "attach {pair:?}{replace}, passWordAuth {}", word(passwords))
            }
            Self::Detach(pair) => write!(out, "detach {pair:?}"),
            Self::SetPasswordAuth(passwords) => write!(out, "setPasswordAuth {}", word(passwords)),
        }
    }
}

impl fmt::Display for SimCommand {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({})", self.id(), self.order)
    }
}
