//! The control plane: the commands of an instance in their order, and the one result that it keeps of each.

use std::collections::BTreeMap;
use std::fmt;

use super::keys::PlatformKeyPair;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SimOrder {
    /// Bind a key pair, then set password login; `replace` takes a bound one away in the same step.
    Attach {
        /// Which.
        pair: PlatformKeyPair,
        /// `passWordAuth`.
        passwords: bool,
        /// `replace`.
        replace: bool,
    },
    /// Unbind it.
    Detach(PlatformKeyPair),
    /// Set password login alone.
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

/// The instances that a command may be for: this one, and the one that is a clone of it.
pub const INSTANCES: [&str; 2] = ["i-one", "i-clone"];

/// A command as the channel hands it over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SimCommand {
    /// Its place among the commands, from 0.
    pub number: usize,
    /// For which of [`INSTANCES`].
    pub instance: usize,
    /// What is to be done.
    pub order: SimOrder,
    /// Until when; seconds since 1970.
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

    /// Its bytes.
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

/// What the service said to a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It has it.
    Accepted,
    /// It has another one of this command (409).
    Conflict,
}

/// The service's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlane {
    /// What is to be done, in order of sequence.
    pub orders: Vec<SimOrder>,
    /// Until when the first of them is to be obeyed, where that is said.
    pub first_expires_at: Option<i64>,
    /// Which of [`INSTANCES`] it speaks to.
    pub instance: usize,
    /// The result of each command, by its id.
    pub results: BTreeMap<String, String>,
}

impl ControlPlane {
    /// The command of this number, as this instance gets it.
    pub fn command_at(&self, number: usize, instance: usize) -> SimCommand {
        let expires_at = self.first_expires_at.filter(|_| number == 0);
        SimCommand { number, instance, order: self.orders[number], expires_at }
    }

    /// Whether a command has a result; for a clone, those that its origin answered are done with.
    pub fn is_answered(&self, number: usize) -> bool {
        (0..=self.instance).any(|instance| self.results.contains_key(&self.command_at(number, instance).id()))
    }

    /// The commands without a result, the oldest first.
    pub fn unanswered_commands(&self) -> impl Iterator<Item = SimCommand> {
        let open = (0..self.orders.len()).filter(|number| !self.is_answered(*number));
        open.map(|number| self.command_at(number, self.instance))
    }

    /// Keeps a result, the first of each command.
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
