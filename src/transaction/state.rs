//! The one state file: the binding, the command in flight and how to undo it, the results, and the outbox (KP-7.1).

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::command::Origin;
use crate::policy::edit::FileIntent;
use crate::policy::machine::MachineId;
use crate::policy::plan::Binding;
use crate::policy::types::{CommandId, InstanceId, PasswordAuth, Sequence};

use super::owed::{Contradiction, OwedProof};

mod size;

pub use size::StateSerializeError;

/// The version of the state file's format. The agent does not touch a state file of a higher version.
const STATE_FORMAT_VERSION: u32 = 1;

/// How many results the state keeps.
const MAX_KEPT_RESULTS: usize = 128;

/// How many interruptions of a command make `INTERRUPTED` its result.
pub const MAX_INTERRUPTIONS: u32 = 3;

/// Everything that survives a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The version of the format.
    version: u32,
    /// The id of this instance, if it is known.
    pub instance_id: Option<InstanceId>,
    /// The machine on which the agent learned the instance id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    machine: Option<MachineId>,
    /// The key pair that is bound.
    pub binding: Option<Binding>,
    /// The password setting of the last command that made one.
    #[serde(rename = "passWordAuth")]
    pub password_auth: Option<PasswordAuth>,
    /// Whether sshd still needs a reload, after an `undo` took the agent's setting out of sshd's files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reload_is_owed: bool,
    /// The highest sequence that passed its check, with its command.
    pub highest: Option<HighestSequence>,
    /// The command in flight.
    pub intent: Option<Intent>,
    /// Edits of key files that are still to be undone, because the volume was not mounted. Absent before 3.2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owed: Vec<FileIntent>,
    /// How often the last interrupted command was interrupted.
    pub interrupted: Option<InterruptionCount>,
    /// The last results, the newest at the end.
    results: VecDeque<StoredResult>,
    /// The result that the control plane has not accepted yet.
    pub undelivered: Option<StoredResult>,
    /// The proof of the last command for which the agent must still ask the running sshd. Absent before 3.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owed_proof: Option<OwedProof>,
    /// What the running sshd answered, if it contradicts the success of an earlier command. Absent before 3.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contradiction: Option<Contradiction>,
}

/// The highest sequence so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HighestSequence {
    /// The sequence.
    pub sequence: Sequence,
    /// The command that had this sequence.
    pub command_id: CommandId,
}

/// How often one command was interrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterruptionCount {
    /// The command.
    pub command_id: CommandId,
    /// How many recoveries found this command in flight.
    pub times: u32,
}

/// What the state did with an instance id that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adoption {
    /// The id was already known.
    Known,
    /// The id was new, and the state keeps it now.
    Adopted,
    /// The id was refused; the state keeps the other one.
    Refused,
}

/// A result exactly as it was sent, or will be sent, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredResult {
    /// The command that this result answers.
    pub command_id: CommandId,
    /// The JSON text of the result.
    pub result: String,
}

/// The record of a command in flight. It is written before the command's first effect and removed with its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// The command.
    pub command: InFlight,
    /// The edits of authorized_keys files.
    pub key_files: Vec<FileIntent>,
    /// The edits of sshd's configuration.
    pub sshd_files: Vec<FileIntent>,
    /// Whether the command turns passwords on. Then sshd's files were written first, and are undone last.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub opens: bool,
}

/// The data for the result of a command that was interrupted too often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InFlight {
    /// The command.
    pub id: CommandId,
    /// Whether the command came from the channel or from the console.
    pub origin: Origin,
    /// The result that the agent sends if the command was interrupted too often.
    pub outline: crate::policy::outcome::CommandResult,
}

/// Why a state file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateParseError {
    /// The content does not have the form that this program writes.
    Malformed {
        /// The line of the error.
        line: usize,
        /// The error, without any text of the file.
        why: String,
    },
    /// A newer version of this program wrote it.
    NewerVersion(u32),
}

impl fmt::Display for StateParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { line, why } => write!(f, "it cannot be read (line {line}: {why})"),
            Self::NewerVersion(version) => write!(
                f,
                "it is of format {version}, written by a newer version; this one knows format {STATE_FORMAT_VERSION}"
            ),
        }
    }
}

impl std::error::Error for StateParseError {}

impl State {
    /// Parses the content of a state file. `None` (no file) gives the empty state.
    ///
    /// # Errors
    /// [`StateParseError`]: the caller must then change nothing.
    pub fn parse(bytes: Option<&[u8]>) -> Result<Self, StateParseError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Some(bytes) = bytes else { return Ok(Self { version: STATE_FORMAT_VERSION, ..Self::default() }) };
        let garbled = |error: serde_json::Error| {
            let why = match error.classify() {
                serde_json::error::Category::Eof => "it ends too early",
                serde_json::error::Category::Syntax => "it is not JSON",
                serde_json::error::Category::Data => "a field is missing or of the wrong type",
                serde_json::error::Category::Io => "it could not be read",
            };
            StateParseError::Malformed { line: error.line(), why: why.to_owned() }
        };
        // Read the version first: a file of a newer version may not parse in this version's format.
        let Versioned { version } = serde_json::from_slice(bytes).map_err(garbled)?;
        if version > STATE_FORMAT_VERSION {
            return Err(StateParseError::NewerVersion(version));
        }
        serde_json::from_slice(bytes).map_err(garbled)
    }

    /// The stored result of a command that was seen before.
    pub fn find_result(&self, id: &CommandId) -> Option<&StoredResult> {
        self.results.iter().rev().chain(&self.undelivered).find(|stored| stored.command_id == *id)
    }

    /// Whether the state remembers this command as seen. A result that only waits for its delivery does not count.
    pub fn has_seen_command(&self, id: &CommandId) -> bool {
        self.results.iter().any(|stored| stored.command_id == *id)
    }

    /// Remembers a result as seen.
    pub fn add_result(&mut self, stored: StoredResult) {
        self.results.push_back(stored);
        while self.results.len() > MAX_KEPT_RESULTS {
            self.drop_oldest_result();
        }
    }

    /// The command with the highest sequence is accepted again under its id, so its result is dropped last.
    fn drop_oldest_result(&mut self) -> Option<StoredResult> {
        let highest = self.highest.as_ref().map(|highest| &highest.command_id);
        let oldest = self.results.iter().position(|stored| Some(&stored.command_id) != highest);
        self.results.remove(oldest.unwrap_or_default())
    }

    /// Replaces the stored result of this command by `result`.
    pub fn replace_result(&mut self, id: &CommandId, result: &str) {
        let kept = self.results.iter_mut().chain(&mut self.undelivered);
        for stored in kept.filter(|stored| stored.command_id == *id) {
            result.clone_into(&mut stored.result);
        }
    }

    /// Counts an interruption of `id`. Returns how often this command was interrupted so far.
    pub fn count_interruption(&mut self, id: &CommandId) -> u32 {
        let before = self.interrupted.take().filter(|one| one.command_id == *id).map_or(0, |one| one.times);
        self.interrupted = Some(InterruptionCount { command_id: id.clone(), times: before + 1 });
        before + 1
    }

    /// Takes `id` as the id of this instance, on this machine. If another id was known, this instance is a clone: its
    /// results and its sequence are dropped, and its binding stays as inherited (KP-7.10). With
    /// `requires_new_machine` it is a clone only if both machines are known and differ.
    pub fn adopt_instance_id(
        &mut self,
        id: &InstanceId,
        machine: Option<&MachineId>,
        requires_new_machine: bool,
    ) -> Adoption {
        // Only UUIDs of the same kind can be compared. If the other kind was read this time, the machine counts as
        // unknown.
        let machine =
            machine.filter(|now| self.machine.as_ref().is_none_or(|known| known.is_comparable(now)));
        let is_another = |known: &InstanceId| known != id;
        if self.instance_id.as_ref().is_some_and(is_another) {
            let moved = self.machine.is_some() && machine.is_some() && self.machine.as_ref() != machine;
            if requires_new_machine && !moved {
                return Adoption::Refused;
            }
            self.results.clear();
            self.undelivered = None;
            self.highest = None;
            self.interrupted = None;
            self.owed_proof = None;
            self.contradiction = None;
            if let Some(binding) = &mut self.binding {
                binding.inherited = true;
            }
            self.machine = None;
        }
        let machine = machine.or(self.machine.as_ref()).cloned();
        let is_known = self.instance_id.as_ref() == Some(id) && self.machine == machine;
        self.instance_id = Some(id.clone());
        self.machine = machine;
        if is_known { Adoption::Known } else { Adoption::Adopted }
    }

    /// A text for a person that names the edits which are still to be undone; `None` if there are none.
    pub fn describe_owed_edits(&self) -> Option<String> {
        let words = self.owed.iter().map(|file| {
            let mount = file.mount.as_deref().unwrap_or(&file.path).display();
            format!("{}, since {mount}, on which that file is, is not mounted", file.path.display())
        });
        let words: Vec<String> = words.collect();
        (!words.is_empty()).then(|| {
            format!(
                "what a failed command did is not taken back yet in {}; mount it: the next run, apply or undo does that",
                words.join(" and in ")
            )
        })
    }

    /// Whether the state holds anything besides the instance id and the machine. A clone replaces those by its own.
    pub fn has_recorded_data(&self) -> bool {
        let (instance_id, machine) = (self.instance_id.clone(), self.machine.clone());
        *self != Self { version: self.version, instance_id, machine, ..Self::default() }
    }

    /// Forgets the binding, the sequence and the results, as `undo` does (KP-8.4). The instance id stays. A result
    /// that was not delivered yet is still delivered: otherwise the service sends its command again, and that reverts
    /// the `undo`.
    pub fn forget(&mut self) {
        let (instance_id, machine) = (self.instance_id.take(), self.machine.take());
        let undelivered = self.undelivered.take();
        *self = Self { version: STATE_FORMAT_VERSION, instance_id, machine, undelivered, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn stored_result(id: &str) -> StoredResult {
        StoredResult { command_id: id.parse().unwrap(), result: format!("{{\"commandId\":\"{id}\"}}") }
    }

    /// KP-7.1.
    #[test]
    fn state_roundtrips_through_bytes() {
        let mut state = State::parse(None).unwrap();
        state.add_result(stored_result("a"));
        state.undelivered = Some(stored_result("b"));
        assert_eq!(State::parse(Some(&state.to_bounded_bytes().unwrap())), Ok(state.clone()));
        assert!(state.find_result(&"b".parse().unwrap()).is_some());
    }

    /// KP-7.8.
    #[test]
    fn state_parse_rejects_malformed_and_newer() {
        assert!(matches!(State::parse(Some(b"{\"version\": 2}")), Err(StateParseError::NewerVersion(2))));
        for garbled in ["", "{", "[]", "{}", "{\"version\": 1}", "\0\0\0"] {
            assert!(
                matches!(State::parse(Some(garbled.as_bytes())), Err(StateParseError::Malformed { .. })),
                "{garbled}"
            );
        }
    }

    /// KP-4.7.
    #[test]
    fn results_beyond_128_are_dropped_except_highest_sequence() {
        let mut state = State::parse(None).unwrap();
        for number in 0..200 {
            state.add_result(stored_result(&format!("c{number}")));
        }
        assert!(state.find_result(&"c71".parse().unwrap()).is_none());
        assert!(state.find_result(&"c72".parse().unwrap()).is_some());
        let highest = HighestSequence { sequence: 7.try_into().unwrap(), command_id: "c72".parse().unwrap() };
        state.highest = Some(highest);
        state.add_result(stored_result("c200"));
        state.add_result(stored_result("c201"));
        assert!(state.find_result(&"c72".parse().unwrap()).is_some(), "it would be obeyed once more");
        assert!(state.find_result(&"c74".parse().unwrap()).is_none());
        assert_eq!(state.results.len(), MAX_KEPT_RESULTS);
    }

    fn test_machine(name: &str) -> Option<MachineId> {
        MachineId::from_uuids(Some(format!("{:0>31}a", name).as_bytes()), None)
    }

    /// A state of `i-1` on machine 1, with some data in it.
    fn state_with_history() -> State {
        let mut state = State::parse(None).unwrap();
        assert_eq!(
            state.adopt_instance_id(&"i-1".parse().unwrap(), test_machine("1").as_ref(), true),
            Adoption::Adopted
        );
        state.add_result(stored_result("a"));
        state.highest =
            Some(HighestSequence { sequence: 7.try_into().unwrap(), command_id: "a".parse().unwrap() });
        state
    }

    /// KP-7.10.
    #[test]
    fn clone_with_new_id_loses_results_and_sequence() {
        for (requires_new_machine, now_on) in
            [(false, None), (false, test_machine("1")), (true, test_machine("2"))]
        {
            let mut state = state_with_history();
            assert_eq!(
                state.adopt_instance_id(&"i-2".parse().unwrap(), now_on.as_ref(), requires_new_machine),
                Adoption::Adopted
            );
            assert_eq!((state.find_result(&"a".parse().unwrap()), &state.highest), (None, &None));
            assert_eq!((state.instance_id, state.machine), ("i-2".parse().ok(), now_on));
        }
    }

    /// KP-3.43.
    #[test]
    fn new_instance_id_is_refused_on_same_machine() {
        for now_on in [test_machine("1"), None] {
            let (before, mut state) = (state_with_history(), state_with_history());
            assert_eq!(
                state.adopt_instance_id(&"i-2".parse().unwrap(), now_on.as_ref(), true),
                Adoption::Refused
            );
            assert_eq!(state, before);
        }
        // A UUID of the other kind does not identify this machine, so the known machine stays.
        let other_kind = MachineId::from_uuids(None, Some(format!("{:0>31}a", "2").as_bytes()));
        let (before, mut state) = (state_with_history(), state_with_history());
        assert_eq!(
            state.adopt_instance_id(&"i-2".parse().unwrap(), other_kind.as_ref(), true),
            Adoption::Refused
        );
        assert_eq!(
            state.adopt_instance_id(&"i-1".parse().unwrap(), other_kind.as_ref(), true),
            Adoption::Known
        );
        assert_eq!(state, before);
        // A state of a version that did not record the machine.
        let mut state = State { machine: None, ..state_with_history() };
        assert_eq!(
            state.adopt_instance_id(&"i-2".parse().unwrap(), test_machine("2").as_ref(), true),
            Adoption::Refused
        );
    }

    /// A state file as version 3.1.0 writes it.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct OldBinding {
        #[serde(flatten)]
        key_pair: crate::policy::command::KeyPair,
        user: String,
        path: std::path::PathBuf,
        inherited: bool,
    }

    /// A path that is not valid UTF-8, in a binding and in an intent.
    #[test]
    fn non_utf8_paths_survive_state_roundtrip() {
        let bytes = b"/home/j\xfcrgen/.ssh/authorized_keys".to_vec();
        let path = std::path::PathBuf::from(std::ffi::OsString::from_vec(bytes));
        let mut state = state_with_history();
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF86eSkqX3I2gC8oUEbWaJ54JKEt/jagDdVjCuOifDfx";
        let old =
            format!(r#"{{"keyName":"k","publicKey":"{key}","user":"u","path":"/x","inherited":false}}"#);
        let mut binding: Binding = serde_json::from_str(&old).unwrap();
        binding.path.clone_from(&path);
        binding.mount = path.parent().map(Into::into);
        state.binding = Some(binding);
        let bytes = state.to_bounded_bytes().unwrap();
        assert!(bytes.len() > 100 && bytes.ends_with(b"}\n"), "{bytes:?}");
        assert_eq!(State::parse(Some(&bytes)), Ok(state));
    }

    /// KP-3.36.
    #[test]
    fn binding_is_compatible_with_previous_version() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF86eSkqX3I2gC8oUEbWaJ54JKEt/jagDdVjCuOifDfx";
        let old =
            format!(r#"{{"keyName":"k","publicKey":"{key}","user":"u","path":"/h/u/k","inherited":false}}"#);
        let mut binding: Binding = serde_json::from_str(&old).unwrap();
        assert_eq!((binding.uid, &binding.mount), (None, &None));
        assert_eq!(
            serde_json::to_value(&binding).unwrap(),
            serde_json::from_str::<serde_json::Value>(&old).unwrap()
        );
        (binding.uid, binding.mount) = (Some(1000), Some("/h".into()));
        let read: OldBinding = serde_json::from_slice(&serde_json::to_vec(&binding).unwrap()).unwrap();
        assert_eq!((read.key_pair, read.user, read.path), (binding.key_pair, binding.user, binding.path));
        assert!(!read.inherited);
    }

    #[test]
    fn known_instance_id_keeps_results() {
        let mut state = state_with_history();
        let id = "i-1".parse().unwrap();
        for (now_on, adoption) in [
            (test_machine("1"), Adoption::Known),
            (None, Adoption::Known),
            (test_machine("2"), Adoption::Adopted),
        ] {
            assert_eq!(state.adopt_instance_id(&id, now_on.as_ref(), true), adoption);
            assert!(state.has_seen_command(&"a".parse().unwrap()));
        }
        assert_eq!(state.machine, test_machine("2"));
        state.forget();
        assert_eq!((state.instance_id.as_ref(), &state.machine), (Some(&id), &test_machine("2")));
        assert!(!state.has_recorded_data());
    }
}
