//! What the loop of `run` asks of the state: what is to be delivered, what runs here (KP-3.8 and KP-3.37).

use serde::Serialize;

use crate::guest::{Guest, HostKey, Identity, OperatingSystem};
use crate::policy::foreign::foreign;
use crate::policy::observation::Sshd;
use crate::policy::outcome::{EffectiveReport, Reason, Refusal};
use crate::policy::public_key::Fingerprint;
use crate::policy::types::{CommandId, InstanceId, KeyName, PasswordAuth, Sequence};

use super::state::{State, StoredResult};
use super::{Failure, Transaction};

/// What this agent can do, as it tells the control plane; `signed` whether or not `trusted_signers` asks for it.
const CAPABILITIES: [&str; 6] = ["attach", "detach", "setPasswordAuth", "replace", "proof", "signed"];

/// The most host keys that it names.
const HOST_KEYS_MAX: usize = 16;

/// The document of `PUT keypair/agent`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WhatRunsHere {
    agent_version: &'static str,
    component_version: Option<String>,
    instance_id: Option<InstanceId>,
    #[serde(flatten)]
    identity: Identity,
    capabilities: [&'static str; 6],
    binding: Option<BindingReport>,
    #[serde(rename = "passWordAuth")]
    password_auth: Option<PasswordAuth>,
    effective: Option<EffectiveReport>,
    highest_sequence: Option<Sequence>,
    undelivered: usize,
    warnings: Vec<String>,
    host_keys: Vec<HostKey>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BindingReport {
    key_name: KeyName,
    fingerprint: Fingerprint,
    inherited: bool,
}

/// What is wrong here: what the running sshd said against the last command, why sshd cannot be asked.
fn warnings(state: Option<&State>, not_asked: Option<&Refusal>) -> Vec<String> {
    let contradiction = state.and_then(|state| state.contradiction.as_ref());
    let contradiction = contradiction.map(|said| format!("{}: {}", Reason::ProofContradicted, said.message));
    contradiction.into_iter().chain(not_asked.map(|refusal| refusal.message.clone())).collect()
}

impl<G: Guest> Transaction<G> {
    /// The result that the control plane has yet to accept.
    ///
    /// # Errors
    /// That the state cannot be read.
    pub fn undelivered(&self) -> Result<Option<StoredResult>, Failure> {
        Ok(self.load()?.undelivered)
    }

    /// Takes `id`'s result out of the outbox.
    ///
    /// # Errors
    /// That the state cannot be read or written.
    pub fn delivered(&mut self, id: &CommandId) -> Result<(), Failure> {
        let _lock = self.guest.lock()?;
        let mut state = self.load()?;
        if state.undelivered.as_ref().is_some_and(|stored| stored.command_id == *id) {
            state.undelivered = None;
            self.save(&state)?;
        }
        Ok(())
    }

    /// Keeps `result` in the place of `id`'s.
    ///
    /// # Errors
    /// That the state cannot be read or written.
    pub fn replace_result(&mut self, id: &CommandId, result: &str) -> Result<(), Failure> {
        let _lock = self.guest.lock()?;
        let mut state = self.load()?;
        state.replace_result(id, result);
        Ok(self.save(&state)?)
    }

    /// The document of `PUT keypair/agent`: what runs here.
    pub fn describe(&self) -> String {
        let state = self.load().ok();
        let sshd = self.guest.sshd(&self.settings.target_user);
        let first = sshd.as_ref().ok().and_then(|sshd| sshd.answers.first());
        let document = WhatRunsHere {
            agent_version: crate::VERSION,
            component_version: self.component().ok().map(|version| foreign(&version.to_string())),
            instance_id: state.as_ref().and_then(|state| self.settings.instance(state)).cloned(),
            identity: bounded(self.guest.identity()),
            capabilities: CAPABILITIES,
            binding: state.as_ref().and_then(|state| state.binding.as_ref()).map(|binding| BindingReport {
                key_name: binding.key_pair.key_name.clone(),
                fingerprint: binding.key_pair.public_key.fingerprint(),
                inherited: binding.inherited,
            }),
            password_auth: state.as_ref().and_then(|state| state.password_auth),
            effective: first.map(|answer| answer.effective.report()),
            highest_sequence: state
                .as_ref()
                .and_then(|state| state.highest.as_ref())
                .map(|highest| highest.sequence),
            undelivered: state.as_ref().map_or(0, |state| usize::from(state.undelivered.is_some())),
            warnings: warnings(state.as_ref(), sshd.as_ref().err()),
            host_keys: sshd.as_ref().map(|sshd| self.host_keys(sshd)).unwrap_or_default(),
        };
        // Serializing fails only for maps with keys that are no strings, and there is no map here.
        serde_json::to_string(&document).unwrap_or_default()
    }

    fn host_keys(&self, sshd: &Sshd) -> Vec<HostKey> {
        let keys = self.guest.host_keys(sshd).into_iter().take(HOST_KEYS_MAX);
        keys.map(|key| HostKey { key_type: foreign(&key.key_type), ..key }).collect()
    }

    /// One line for `systemctl status`: what is bound, password login, the component.
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
        let component = match self.component() {
            Ok(version) => format!("component {version}"),
            Err(_) => "component version unreadable".to_owned(),
        };
        format!("{bound}, {password}, {component}")
    }
}

/// With texts that are as long as foreign ones may be: os-release(5) and the host name are the administrator's.
fn bounded(identity: Identity) -> Identity {
    let text = |text: Option<String>| text.map(|text| foreign(&text));
    let OperatingSystem { name, version, kernel, architecture } = identity.os;
    let os = OperatingSystem {
        name: text(name),
        version: text(version),
        kernel: text(kernel),
        architecture: foreign(&architecture),
    };
    Identity { host_name: text(identity.host_name), os }
}
