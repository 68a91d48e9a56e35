//! The guest behind each agent of a fleet. It reports every command as done and changes nothing. Its results and
//! reports are about as long as those of a real guest.

use std::sync::atomic::AtomicBool;

use keypair_agent::VERSION;
use keypair_agent::agent::CommandEngine;
use keypair_agent::policy::command::{self, Command, Origin, ReceivedCommand};
use keypair_agent::policy::outcome::{
    Code, CommandResult, EffectiveReport, KeyAcceptance, ProbeReport, Refusal, Status,
};
use keypair_agent::policy::types::{CommandId, InstanceId, PasswordAuth};
use keypair_agent::transaction::perform::{CompletedCommand, Execution};
use keypair_agent::transaction::state::StoredResult;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A guest without a machine behind it.
#[derive(Debug, Default)]
pub(super) struct NullGuest {
    instance: Option<InstanceId>,
    /// The last accepted command, and its result.
    last: Option<(Command, StoredResult)>,
}

impl NullGuest {
    fn build_outcome(&self, received: &ReceivedCommand, refused: Option<&Refusal>) -> CommandResult {
        let command = received.command.as_ref().ok();
        let public_key = command.and_then(|command| command.action.public_key());
        let passwords = received.password_auth == Some(PasswordAuth::Yes);
        CommandResult {
            command_id: received.id.clone(),
            instance_id: self.instance.as_ref().map(|id| id.as_str().to_owned()),
            action: received.action,
            status: if refused.is_some() { Status::Failed } else { Status::Succeeded },
            code: refused.map_or(Code::Ok, |refusal| refusal.reason.code()),
            reason: refused.map(|refusal| refusal.reason),
            message: refused.map_or("taken as done: there is no guest here".to_owned(), |refusal| {
                refusal.message.clone()
            }),
            changed: refused.is_none(),
            key_name: received.key_name.clone(),
            fingerprint: public_key.map(|key| key.fingerprint()),
            user: Some("root".to_owned()),
            authorized_keys_file: Some("/root/.ssh/authorized_keys".to_owned()),
            password_auth: received.password_auth,
            effective: Some(EffectiveReport {
                password_authentication: passwords,
                kbd_interactive_authentication: passwords,
                pubkey_authentication: true,
            }),
            trial: None,
            proof: Some(ProbeReport {
                key: KeyAcceptance::NotTaken,
                methods: None,
                address: None,
                not_taken: Some("there is no sshd here".to_owned()),
            }),
            warnings: Vec::new(),
            component_version: Some(VERSION.to_owned()),
            agent_version: VERSION.to_owned(),
            finished_at: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            duration_ms: 0,
        }
    }
}

impl CommandEngine for NullGuest {
    fn recover(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn configured_instance_id(&self) -> Option<InstanceId> {
        None
    }

    fn adopt_instance_id(&mut self, id: &InstanceId) -> Result<(), String> {
        self.instance = Some(id.clone());
        Ok(())
    }

    fn execute_command(&mut self, bytes: &[u8], _: &AtomicBool) -> Execution {
        let received = match parse_received_command(bytes) {
            Ok(received) => received,
            Err(why) => return Execution::NotExecuted(why),
        };
        if let Some((_, stored)) = self.last.as_ref().filter(|(_, stored)| stored.command_id == received.id) {
            return Execution::Completed(to_answered(stored, true, true));
        }
        let outcome = self.build_outcome(&received, received.command.as_ref().err());
        let stored = StoredResult { command_id: received.id, result: outcome.to_json() };
        let done = to_answered(&stored, received.command.is_ok(), false);
        if let Ok(command) = received.command {
            self.last = Some((command, stored));
        }
        Execution::Completed(done)
    }

    fn undelivered_result(&mut self) -> Result<Option<StoredResult>, String> {
        Ok(None)
    }

    fn mark_delivered(&mut self, _: &CommandId) -> Result<(), String> {
        Ok(())
    }

    fn build_agent_report(&mut self) -> String {
        let last = self.last.as_ref().map(|(command, _)| command);
        let bound = last.and_then(|command| Some((command.action.key_name()?, command.action.public_key()?)));
        json!({
            "agentVersion": VERSION,
            "componentVersion": VERSION,
            "instanceId": self.instance,
            "hostName": self.instance,
            "os": { "name": "Debian GNU/Linux", "version": "12", "kernel": "6.1.0-18-amd64", "architecture": "x86_64" },
            "capabilities": ["attach", "detach", "setPasswordAuth"],
            "binding": bound.map(|(key_name, key)| {
                json!({ "keyName": key_name, "fingerprint": key.fingerprint(), "inherited": false })
            }),
            "passWordAuth": last.and_then(|command| command.action.password_auth()),
            "effective": null,
            "highestSequence": last.and_then(|command| command.sequence),
            "undelivered": 0,
            "warnings": [],
            "hostKeys": [
                { "type": "ssh-ed25519", "sha256": "SHA256:none-there-is-no-sshd-here-000000000000000000" },
            ],
        })
        .to_string()
    }

    fn summary(&mut self) -> String {
        String::new()
    }
}

/// Parses a command as far as possible. `Err` if it cannot be answered at all.
pub(super) fn parse_received_command(bytes: &[u8]) -> Result<ReceivedCommand, String> {
    let nobody = CommandId::try_from("none".to_owned()).map_err(|error| error.to_string())?;
    command::parse_command(bytes, Origin::Channel, &nobody).map_err(|error| error.to_string())
}

fn to_answered(stored: &StoredResult, succeeded: bool, repeated: bool) -> CompletedCommand {
    CompletedCommand {
        id: stored.command_id.clone(),
        result: stored.result.clone(),
        succeeded,
        changed: succeeded && !repeated,
        recorded: false,
        is_new: !repeated,
        repeated,
    }
}
