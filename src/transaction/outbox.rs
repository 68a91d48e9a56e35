//! The functions with which the loop of `run` reads the state: the result to deliver, and what runs here (KP-3.8,
//! KP-3.37).

use serde::Serialize;

use crate::guest::{Guest, HostInfo, HostKeyFingerprint, OperatingSystem};
use crate::policy::foreign::sanitize_text;
use crate::policy::observation::Sshd;
use crate::policy::outcome::{EffectiveReport, Reason, Refusal};
use crate::policy::public_key::Fingerprint;
use crate::policy::types::{CommandId, InstanceId, KeyName, PasswordAuth, Sequence};

use super::state::{State, StoredResult};
use super::{Engine, EngineError};

/// The capabilities that the agent reports to the control plane. `signed` is listed with and without
/// `trusted_signers`.
const CAPABILITIES: [&str; 6] = ["attach", "detach", "setPasswordAuth", "replace", "proof", "signed"];

/// The most host keys that the report names.
const MAX_REPORTED_HOST_KEYS: usize = 16;

/// The document of `PUT keypair/agent`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AgentReport {
    agent_version: &'static str,
    component_version: Option<String>,
    instance_id: Option<InstanceId>,
    #[serde(flatten)]
    identity: HostInfo,
    capabilities: [&'static str; 6],
    binding: Option<ReportedBinding>,
    #[serde(rename = "passWordAuth")]
    password_auth: Option<PasswordAuth>,
    effective: Option<EffectiveReport>,
    highest_sequence: Option<Sequence>,
    undelivered: usize,
    warnings: Vec<String>,
    host_keys: Vec<HostKeyFingerprint>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReportedBinding {
    key_name: KeyName,
    fingerprint: Fingerprint,
    inherited: bool,
}

/// Warnings for the report: a contradiction of the running sshd to the last command, and why sshd cannot be queried.
fn collect_warnings(state: Option<&State>, not_asked: Option<&Refusal>) -> Vec<String> {
    let contradiction = state.and_then(|state| state.contradiction.as_ref());
    let contradiction = contradiction.map(|said| format!("{}: {}", Reason::ProofContradicted, said.message));
    contradiction.into_iter().chain(not_asked.map(|refusal| refusal.message.clone())).collect()
}

impl<G: Guest> Engine<G> {
    /// The result that the control plane has not accepted yet.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn undelivered_result(&self) -> Result<Option<StoredResult>, EngineError> {
        Ok(self.load()?.undelivered)
    }

    /// Removes the result of `id` from the outbox.
    ///
    /// # Errors
    /// If the state cannot be read or written.
    pub fn mark_delivered(&mut self, id: &CommandId) -> Result<(), EngineError> {
        let _lock = self.guest.lock()?;
        let mut state = self.load()?;
        if state.undelivered.as_ref().is_some_and(|stored| stored.command_id == *id) {
            state.undelivered = None;
            self.save(&state)?;
        }
        Ok(())
    }

    /// Stores `result` in place of the result of `id`.
    ///
    /// # Errors
    /// If the state cannot be read or written.
    pub fn replace_result(&mut self, id: &CommandId, result: &str) -> Result<(), EngineError> {
        let _lock = self.guest.lock()?;
        let mut state = self.load()?;
        state.replace_result(id, result);
        Ok(self.save(&state)?)
    }

    /// The document of `PUT keypair/agent`: what runs here.
    pub fn build_agent_report(&self) -> String {
        let state = self.load().ok();
        let sshd = self.guest.inspect_sshd(&self.settings.target_user);
        let first = sshd.as_ref().ok().and_then(|sshd| sshd.answers.first());
        let document = AgentReport {
            agent_version: crate::VERSION,
            component_version: self
                .read_component_version()
                .ok()
                .map(|version| sanitize_text(&version.to_string())),
            instance_id: state.as_ref().and_then(|state| self.settings.effective_instance_id(state)).cloned(),
            identity: truncate_identity(self.guest.identity()),
            capabilities: CAPABILITIES,
            binding: state.as_ref().and_then(|state| state.binding.as_ref()).map(|binding| ReportedBinding {
                key_name: binding.key_pair.key_name.clone(),
                fingerprint: binding.key_pair.public_key.fingerprint(),
                inherited: binding.inherited,
            }),
            password_auth: state.as_ref().and_then(|state| state.password_auth),
            effective: first.map(|answer| answer.effective.to_report()),
            highest_sequence: state
                .as_ref()
                .and_then(|state| state.highest.as_ref())
                .map(|highest| highest.sequence),
            undelivered: state.as_ref().map_or(0, |state| usize::from(state.undelivered.is_some())),
            warnings: collect_warnings(state.as_ref(), sshd.as_ref().err()),
            host_keys: sshd.as_ref().map(|sshd| self.list_host_keys(sshd)).unwrap_or_default(),
        };
        // Serialization fails only for maps with keys that are not strings, and this document contains no map.
        serde_json::to_string(&document).unwrap_or_default()
    }

    fn list_host_keys(&self, sshd: &Sshd) -> Vec<HostKeyFingerprint> {
        let keys = self.guest.host_key_fingerprints(sshd).into_iter().take(MAX_REPORTED_HOST_KEYS);
        keys.map(|key| HostKeyFingerprint { key_type: sanitize_text(&key.key_type), ..key }).collect()
    }

    /// One line for `systemctl status`: binding, password login, component.
    pub fn summary(&self) -> String {
        let (bound, password) = match self.load() {
            Err(refusal) => return refusal.message,
            Ok(state) => (
                state.binding.map_or("no key pair bound".to_owned(), |binding| {
                    format!("key pair {} bound", binding.key_pair.key_name)
                }),
                match state.password_auth {
                    Some(PasswordAuth::Yes) => "password login on",
                    Some(PasswordAuth::No) => "password login off",
                    None => "password login as configured",
                },
            ),
        };
        let component = match self.read_component_version() {
            Ok(version) => format!("component {version}"),
            Err(_) => "component version unreadable".to_owned(),
        };
        format!("{bound}, {password}, {component}")
    }
}

/// Limits the length of the texts: os-release(5) and the host name are set by the administrator.
fn truncate_identity(identity: HostInfo) -> HostInfo {
    let text = |text: Option<String>| text.map(|text| sanitize_text(&text));
    let OperatingSystem { name, version, kernel, architecture } = identity.os;
    let os = OperatingSystem {
        name: text(name),
        version: text(version),
        kernel: text(kernel),
        architecture: sanitize_text(&architecture),
    };
    HostInfo { host_name: text(identity.host_name), os }
}
