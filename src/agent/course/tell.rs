//! The log's lines on commands and results: one a command, one an outcome. Key text is in none of them.

use crate::channel::{ChannelError, Delivery, Stored};
use crate::logging::Event;
use crate::policy::command::{Received, parse};
use crate::policy::outcome::{Code, Outcome};
use crate::policy::types::{CommandId, InstanceId, KeyName};

/// What can be told of a command before it is performed; nothing where it has no usable id.
pub(super) fn read(delivery: &Delivery) -> Option<Received> {
    let no_id = "none".parse().ok()?;
    parse(&delivery.bytes, delivery.origin, &no_id).ok()
}

pub(super) fn received(received: &Received) {
    let action = received.action.map_or("a command".to_owned(), |action| action.to_string());
    tracing::info!(
        MESSAGE_ID = Event::CommandReceived.id(),
        command = %received.id,
        key = received.key_name.as_ref().map(KeyName::as_str),
        "received: {action}"
    );
}

pub(super) fn outcome(id: &CommandId, result: &str, repeated: bool) {
    let Ok(outcome) = serde_json::from_str::<Outcome>(result) else {
        // The result is ours; one that is not understood here still goes out as it is.
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
            tracing::error!(MESSAGE_ID = Event::CommandBroken.id(), command = %id, key, reason, "failed: {message}");
        }
    }
}

pub(super) fn stored(id: &CommandId, stored: Stored) {
    let why = match stored {
        Stored::Accepted => {
            tracing::debug!(MESSAGE_ID = Event::ResultDelivered.id(), command = %id, "result delivered");
            return;
        }
        Stored::Unknown => "the service does not know the command (404)".to_owned(),
        Stored::Conflict => "the service has stored another result (409)".to_owned(),
        Stored::Refused(status) => format!("the service answered {status}"),
    };
    tracing::warn!(MESSAGE_ID = Event::ResultRefused.id(), command = %id, "the result is not taken: {why}");
}

pub(super) fn shortened(id: &CommandId, status: u16) {
    tracing::warn!(
        MESSAGE_ID = Event::ResultRefused.id(), command = %id,
        "the service refuses the form of the result ({status}): a short one is sent in its place"
    );
}

pub(super) fn instance(id: &InstanceId) {
    tracing::info!(MESSAGE_ID = Event::InstanceKnown.id(), instance = %id, "the metadata service says: this is {id}");
}

pub(super) fn trouble(what: &str, why: &str) {
    tracing::error!(MESSAGE_ID = Event::TransactionTrouble.id(), "{what}: {why}");
}

pub(super) fn announce_failed(error: &ChannelError) {
    tracing::warn!(
        MESSAGE_ID = Event::AnnounceFailed.id(),
        "the service was not told what runs here: {error}"
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::logging::capture::Captured;
    use crate::policy::command::Origin;

    const COMMAND: &str = r#"{"commandId": "c-1", "sequence": 7, "action": "attach", "instanceId": "i-1",
        "keyName": "my-test", "publicKey": "ssh-ed25519 AAAAC3SECRET me@laptop", "passWordAuth": "no"}"#;

    fn result(code: &str, reason: &str, changed: bool) -> String {
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
    fn one_line_a_command_and_an_outcome_and_no_key() {
        let captured = Captured::begin();
        let id = "c-1".parse().unwrap();
        received(&read(&Delivery { bytes: COMMAND.into(), origin: Origin::Channel }).unwrap());
        outcome(&id, &result("OK", "null", true), false);
        outcome(&id, &result("OK", "null", false), true);
        outcome(&id, &result("FAILED_PRECONDITION", "\"LOCKOUT_GUARD\"", false), false);
        outcome(&id, &result("INTERNAL", "\"IO_ERROR\"", false), false);
        stored(&id, Stored::Accepted);
        stored(&id, Stored::Refused(403));
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
    fn what_has_no_usable_id_is_not_told_as_a_command() {
        for bytes in ["", "{}", "[]", r#"{"commandId": ".."}"#] {
            assert!(read(&Delivery { bytes: bytes.into(), origin: Origin::Channel }).is_none(), "{bytes}");
        }
    }
}
