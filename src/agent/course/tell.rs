//! The log lines about commands and results: one line for each command and one for each outcome. No line contains key
//! text.

use crate::channel::{ChannelError, Delivery, StoreResponse};
use crate::logging::Event;
use crate::policy::command::{ReceivedCommand, parse_command};
use crate::policy::outcome::{Code, CommandResult};
use crate::policy::types::{CommandId, InstanceId, KeyName};

/// Parses a command for the log, before it is performed. Returns `None` if the command has no usable id.
pub(super) fn parse_for_log(delivery: &Delivery) -> Option<ReceivedCommand> {
    let no_id = "none".parse().ok()?;
    parse_command(&delivery.bytes, delivery.origin, &no_id).ok()
}

pub(super) fn log_received(received: &ReceivedCommand) {
    let action = received.action.map_or("a command".to_owned(), |action| action.to_string());
    tracing::info!(
        MESSAGE_ID = Event::CommandReceived.id(),
        command = %received.id,
        key = received.key_name.as_ref().map(KeyName::as_str),
        "received: {action}"
    );
}

pub(super) fn log_outcome(id: &CommandId, result: &str, repeated: bool) {
    let Ok(outcome) = serde_json::from_str::<CommandResult>(result) else {
        // The agent made this result. A result that cannot be parsed here is still sent unchanged.
        tracing::info!(command = %id, "answered");
        return;
    };
    let message = &outcome.message;
    let key = outcome.key_name.as_ref().map(KeyName::as_str);
    if repeated {
        tracing::info!(
            MESSAGE_ID = Event::CommandRepeated.id(), command = %id, key,
            "seen before, answered as then: {message}"
        );
        return;
    }
    let reason = outcome.reason.map(tracing::field::display);
    match outcome.code {
        Code::Ok => {
            let event = if outcome.changed { Event::CommandSucceeded } else { Event::CommandUnchanged };
            tracing::info!(MESSAGE_ID = event.id(), command = %id, key, changed = outcome.changed, "succeeded: {message}");
            for warning in &outcome.warnings {
                tracing::warn!(MESSAGE_ID = Event::CommandWarned.id(), command = %id, key, reason = %warning.reason, "{}", warning.message);
            }
        }
        Code::InvalidArgument | Code::FailedPrecondition => {
            tracing::warn!(MESSAGE_ID = Event::CommandRefused.id(), command = %id, key, reason, "refused: {message}");
        }
        Code::Internal => {
            tracing::error!(MESSAGE_ID = Event::CommandFailed.id(), command = %id, key, reason, "failed: {message}");
        }
    }
}

pub(super) fn log_delivery(id: &CommandId, stored: StoreResponse) {
    let why = match stored {
        StoreResponse::Accepted => {
            tracing::debug!(MESSAGE_ID = Event::ResultDelivered.id(), command = %id, "result delivered");
            return;
        }
        StoreResponse::Unknown => "the service does not know the command (404)".to_owned(),
        StoreResponse::Conflict => "the service has stored another result (409)".to_owned(),
        StoreResponse::Refused(status) => format!("the service answered {status}"),
    };
    tracing::warn!(MESSAGE_ID = Event::ResultRefused.id(), command = %id, "the result is not taken: {why}");
}

pub(super) fn log_shortened_result(id: &CommandId, status: u16) {
    tracing::warn!(
        MESSAGE_ID = Event::ResultRefused.id(), command = %id,
        "the service refuses the form of the result ({status}): a short one is sent in its place"
    );
}

pub(super) fn log_instance_id(id: &InstanceId) {
    tracing::info!(MESSAGE_ID = Event::InstanceIdentified.id(), instance = %id, "the metadata service says: this is {id}");
}

pub(super) fn log_failure(what: &str, why: &str) {
    tracing::error!(MESSAGE_ID = Event::TransactionFailed.id(), "{what}: {why}");
}

pub(super) fn log_announce_failure(error: &ChannelError) {
    tracing::warn!(
        MESSAGE_ID = Event::AnnounceFailed.id(),
        "the service was not told what runs here: {error}"
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::logging::capture::CapturedLog;
    use crate::policy::command::Origin;

    const COMMAND: &str = r#"{"commandId": "c-1", "sequence": 7, "action": "attach", "instanceId": "i-1",
        "keyName": "my-test", "publicKey": "ssh-ed25519 AAAAC3SECRET me@laptop", "passWordAuth": "no"}"#;

    fn result_json(code: &str, reason: &str, changed: bool) -> String {
        let warnings = match changed {
            true => {
                r#"[{"reason": "NO_WAY_IN", "message": "no key and no password is left", "file": null, "line": null}]"#
            }
            false => "[]",
        };
        format!(
            r#"{{"commandId": "c-1", "instanceId": "i-1", "action": "attach", "status": "succeeded", "code": "{code}",
            "reason": {reason}, "message": "as it is", "changed": {changed}, "keyName": "my-test", "fingerprint": null,
            "user": null, "authorizedKeysFile": null, "passWordAuth": null, "effective": null, "proof": null,
            "warnings": {warnings}, "componentVersion": null, "agentVersion": "3.1.0", "finishedAt": "", "durationMs": 1}}"#
        )
    }

    /// KP-3.34.
    #[test]
    fn log_has_one_line_per_command_and_outcome_without_key() {
        let captured = CapturedLog::start_capture();
        let id = "c-1".parse().unwrap();
        log_received(&parse_for_log(&Delivery { bytes: COMMAND.into(), origin: Origin::Channel }).unwrap());
        log_outcome(&id, &result_json("OK", "null", true), false);
        log_outcome(&id, &result_json("OK", "null", false), true);
        log_outcome(&id, &result_json("FAILED_PRECONDITION", "\"LOCKOUT_GUARD\"", false), false);
        log_outcome(&id, &result_json("INTERNAL", "\"IO_ERROR\"", false), false);
        log_delivery(&id, StoreResponse::Accepted);
        log_delivery(&id, StoreResponse::Refused(403));
        assert_eq!(
            captured.lines(),
            [
                "received: attach command=c-1 key=my-test",
                "succeeded: as it is command=c-1 key=my-test changed=true",
                "warn: no key and no password is left command=c-1 key=my-test reason=NO_WAY_IN",
                "seen before, answered as then: as it is command=c-1 key=my-test",
                "warn: refused: as it is command=c-1 key=my-test reason=LOCKOUT_GUARD",
                "error: failed: as it is command=c-1 key=my-test reason=IO_ERROR",
                "warn: the result is not taken: the service answered 403 command=c-1",
            ]
        );
    }

    #[test]
    fn command_without_usable_id_is_not_logged() {
        for bytes in ["", "{}", "[]", r#"{"commandId": ".."}"#] {
            assert!(
                parse_for_log(&Delivery { bytes: bytes.into(), origin: Origin::Channel }).is_none(),
                "{bytes}"
            );
        }
    }
}
