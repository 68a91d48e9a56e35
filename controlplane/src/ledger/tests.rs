//! Unit tests of the ledger's rules.
#![allow(clippy::unwrap_used, clippy::panic)]

use base64ct::{Base64, Encoding};
use keypair_agent::policy::command::KeyPair;
use keypair_agent::policy::public_key::PublicKey;
use serde_json::json;
use time::OffsetDateTime;

use super::*;
use crate::keypair::Region;

fn key_pair(name: &str, id: &str) -> StoredKeyPair {
    let blob = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 32], &[7; 32]].concat();
    let line = format!("ssh-ed25519 {}", Base64::encode_string(&blob));
    StoredKeyPair {
        id: id.to_owned(),
        region: Region::default(),
        key_pair: KeyPair { key_name: name.parse().unwrap(), public_key: PublicKey::parse(&line).unwrap() },
        create_time: OffsetDateTime::UNIX_EPOCH,
    }
}

/// A ledger with its environment: the deleted key pairs, the command ids and a clock.
#[derive(Default)]
struct LedgerFixture {
    ledger: Ledger,
    deleted: Vec<String>,
    commands: u64,
    now: u64,
}

impl LedgerFixture {
    fn next_identity(&mut self) -> CommandIdentity {
        self.commands += 1;
        CommandIdentity { id: format!("c{}", self.commands).parse().unwrap(), now: self.now }
    }

    fn enqueue(&mut self, next: Result<QueueDecision, QueueError>) -> Result<String, QueueError> {
        Ok(match next? {
            QueueDecision::AlreadyQueued(id) => id.to_string(),
            QueueDecision::Enqueue(entry) => {
                let id = entry.command.id.to_string();
                self.ledger.push(*entry);
                id
            }
        })
    }

    /// Attaches a key pair and returns the command id. `name` is a key name, optionally followed by `/` and a number
    /// for another id.
    fn attach(&mut self, name: &str, password_auth: PasswordAuth) -> Result<String, QueueError> {
        let stamp = self.next_identity();
        let wanted = Binding { key_pair: key_pair(name.split('/').next().unwrap(), name), password_auth };
        let live = |bound: &StoredKeyPair| !self.deleted.contains(&bound.id);
        let next = self.ledger.attach(&"i-1".parse().unwrap(), &wanted, live, stamp);
        self.enqueue(next)
    }

    fn detach(&mut self, name: &str) -> Result<String, QueueError> {
        let stamp = self.next_identity();
        let next = self.ledger.detach(&"i-1".parse().unwrap(), &name.parse().unwrap(), stamp);
        self.enqueue(next)
    }

    fn store_result(&mut self, id: &str, status: &str) -> StoreResultOutcome {
        let outcome = json!({
            "commandId": id, "instanceId": "i-1", "action": "attach", "status": status, "code": "OK",
            "reason": null, "message": "", "changed": true, "keyName": null, "fingerprint": null,
            "user": null, "authorizedKeysFile": null, "passWordAuth": null, "effective": null,
            "proof": null, "warnings": [], "componentVersion": null, "agentVersion": "3.1.0",
            "finishedAt": "2026-01-01T00:00:00Z", "durationMs": 1
        });
        let bytes = outcome.to_string().into_bytes();
        self.ledger.store_result(ReceivedResult { outcome: serde_json::from_value(outcome).unwrap(), bytes })
    }

    fn bound_key_pair_id(&self) -> Option<&str> {
        self.ledger.binding().map(|binding| binding.key_pair.id.as_str())
    }

    fn next_command_id(&self) -> Option<&str> {
        self.ledger.oldest_unanswered().map(|command| command.id.as_str())
    }

    fn is_replacing(&self, id: &str) -> bool {
        let entry = self.ledger.entry(&id.parse().unwrap()).unwrap();
        matches!(entry.command.action, Action::Attach { replace: true, .. })
    }
}

use PasswordAuth::{No, Yes};

/// KP-9.5.
#[test]
fn attach_queued_counts_as_bound() {
    let mut scene = LedgerFixture::default();
    scene.attach("k", No).unwrap();
    assert_eq!(scene.bound_key_pair_id(), Some("k"));
    assert_eq!(scene.attach("l", No), Err(QueueError::AlreadyBound));
    assert_eq!(scene.attach("k", Yes), Err(QueueError::AlreadyBound), "another setting is another attach");
}

/// KP-9.5.
#[test]
fn attach_repeated_returns_queued_command_until_answered() {
    let mut scene = LedgerFixture::default();
    let first = scene.attach("k", No).unwrap();
    assert_eq!(scene.attach("k", No).unwrap(), first);
    scene.store_result(&first, "succeeded");
    assert_eq!(scene.attach("k", No), Err(QueueError::AlreadyBound));
}

#[test]
fn attach_failed_leaves_instance_unbound() {
    let mut scene = LedgerFixture::default();
    let first = scene.attach("k", No).unwrap();
    assert!(matches!(scene.store_result(&first, "failed"), StoreResultOutcome::Stored(_)));
    assert_eq!((scene.bound_key_pair_id(), scene.next_command_id()), (None, None));
    let second = scene.attach("l", No).unwrap();
    assert!(!scene.is_replacing(&second));
}

#[test]
fn detach_failed_leaves_instance_bound() {
    let mut scene = LedgerFixture::default();
    let attach = scene.attach("k", No).unwrap();
    scene.store_result(&attach, "succeeded");
    let detach = scene.detach("k").unwrap();
    assert_eq!(scene.bound_key_pair_id(), None);
    scene.store_result(&detach, "failed");
    assert_eq!(scene.bound_key_pair_id(), Some("k"));
    let detach = scene.detach("k").unwrap();
    scene.store_result(&detach, "succeeded");
    assert_eq!(scene.bound_key_pair_id(), None);
}

#[test]
fn detach_of_other_key_pair_is_refused() {
    let mut scene = LedgerFixture::default();
    scene.attach("k", No).unwrap();
    assert_eq!(scene.detach("l"), Err(QueueError::AlreadyBound));
}

#[test]
fn detach_with_nothing_bound_is_queued_once() {
    let mut scene = LedgerFixture::default();
    let first = scene.detach("k").unwrap();
    assert_eq!(scene.detach("k").unwrap(), first);
    let other = scene.detach("l").unwrap();
    assert_ne!(other, first);
    scene.store_result(&first, "succeeded");
    scene.store_result(&other, "succeeded");
    assert_ne!(scene.detach("l").unwrap(), other);
}

/// KP-9.7.
#[test]
fn deleted_key_pair_is_replaced_unless_new_attach_fails() {
    let mut scene = LedgerFixture::default();
    let first = scene.attach("k", No).unwrap();
    scene.store_result(&first, "succeeded");
    scene.deleted.push("k".into());
    assert_eq!(scene.bound_key_pair_id(), Some("k"), "it goes on working in the guest");
    let second = scene.attach("l", No).unwrap();
    assert!(scene.is_replacing(&second));
    assert_eq!(scene.bound_key_pair_id(), Some("l"));
    assert_eq!(scene.attach("m", No), Err(QueueError::AlreadyBound));
    scene.store_result(&second, "failed");
    assert_eq!(scene.bound_key_pair_id(), Some("k"));
    let third = scene.attach("m", No).unwrap();
    assert!(scene.is_replacing(&third));
    scene.store_result(&third, "succeeded");
    assert_eq!(scene.bound_key_pair_id(), Some("m"));
}

#[test]
fn reimported_key_name_is_a_different_key_pair() {
    let mut scene = LedgerFixture::default();
    scene.attach("k/1", No).unwrap();
    scene.deleted.push("k/1".into());
    let second = scene.attach("k/2", No).unwrap();
    assert!(scene.is_replacing(&second));
    // The key pair can still be unbound by name, because the guest knows only names.
    scene.detach("k").unwrap();
    assert_eq!(scene.bound_key_pair_id(), None);
}

#[test]
fn unanswered_commands_are_returned_in_queue_order() {
    let mut scene = LedgerFixture::default();
    let one = scene.attach("k", No).unwrap();
    let two = scene.detach("k").unwrap();
    let three = scene.attach("l", Yes).unwrap();
    assert_eq!(scene.bound_key_pair_id(), Some("l"));
    for id in [one, two, three] {
        assert_eq!(scene.next_command_id(), Some(id.as_str()));
        scene.store_result(&id, "succeeded");
    }
    assert_eq!((scene.next_command_id(), scene.bound_key_pair_id()), (None, Some("l")));
}

#[test]
fn late_result_of_older_command_keeps_binding() {
    let mut scene = LedgerFixture::default();
    let attach = scene.attach("k", No).unwrap();
    let detach = scene.detach("k").unwrap();
    scene.store_result(&detach, "succeeded");
    scene.store_result(&attach, "succeeded");
    assert_eq!(scene.bound_key_pair_id(), None);
}

#[test]
fn result_repeated_is_duplicate_and_changed_is_conflict() {
    let mut scene = LedgerFixture::default();
    let id = scene.attach("k", No).unwrap();
    let sequence = scene.ledger.entry(&id.parse().unwrap()).unwrap().sequence;
    let settlement = CompletedCommand { action: ActionName::Attach, sequence };
    assert_eq!(scene.store_result(&id, "succeeded"), StoreResultOutcome::Stored(settlement));
    assert_eq!(scene.store_result(&id, "succeeded"), StoreResultOutcome::Duplicate);
    assert_eq!(scene.store_result(&id, "failed"), StoreResultOutcome::Conflict);
    assert_eq!(scene.store_result("other", "failed"), StoreResultOutcome::UnknownCommand);
    assert_eq!(scene.bound_key_pair_id(), Some("k"));
}

/// KP-9.12.
#[test]
fn bad_signature_result_closes_command_after_an_hour() {
    let mut scene = LedgerFixture::default();
    let id = scene.attach("k", No).unwrap();
    let bad = |ledger: &mut Ledger, id: &str, now: u64| {
        let outcome = json!({
            "commandId": id, "instanceId": "i-1", "action": "attach", "status": "failed",
            "code": "FAILED_PRECONDITION", "reason": "BAD_SIGNATURE", "message": "", "changed": false,
            "keyName": null, "fingerprint": null, "user": null, "authorizedKeysFile": null, "passWordAuth": null,
            "effective": null, "proof": null, "warnings": [], "componentVersion": null, "agentVersion": "3.1.0",
            "finishedAt": "2026-01-01T00:00:00Z", "durationMs": 1
        });
        let bytes = outcome.to_string().into_bytes();
        ledger
            .store_result_at(ReceivedResult { outcome: serde_json::from_value(outcome).unwrap(), bytes }, now)
    };
    // The command was never handed out, so the hour has not begun.
    assert_eq!(bad(&mut scene.ledger, &id, u64::MAX), StoreResultOutcome::Redelivered);
    assert!(scene.ledger.mark_handed_out(1000).is_some());
    assert!(scene.ledger.mark_handed_out(2000).is_none());
    for now in [1000, 900, 999 + BAD_SIGNATURE_REDELIVERY_MILLIS] {
        assert_eq!(bad(&mut scene.ledger, &id, now), StoreResultOutcome::Redelivered);
        assert_eq!(scene.next_command_id(), Some(id.as_str()));
    }
    assert_eq!(bad(&mut scene.ledger, "other", 1000), StoreResultOutcome::UnknownCommand);
    assert!(matches!(
        bad(&mut scene.ledger, &id, 1000 + BAD_SIGNATURE_REDELIVERY_MILLIS),
        StoreResultOutcome::Stored(_)
    ));
    assert_eq!((scene.next_command_id(), scene.bound_key_pair_id()), (None, None));
    // The genuine result is stored at once. After it, the result of a late forged copy has no effect.
    let id = scene.attach("k", No).unwrap();
    scene.ledger.mark_handed_out(5000);
    assert_eq!(bad(&mut scene.ledger, &id, 5001), StoreResultOutcome::Redelivered);
    assert!(matches!(scene.store_result(&id, "succeeded"), StoreResultOutcome::Stored(_)));
    assert_eq!(bad(&mut scene.ledger, &id, 5002), StoreResultOutcome::Conflict);
}

/// KP-9.8.
#[test]
fn sequences_follow_clock_and_always_rise() {
    let mut scene = LedgerFixture::default();
    let mut sequences = Vec::new();
    for now in [1000, 1000, 500, 2000] {
        scene.now = now;
        let id = scene.detach(&format!("k{}", sequences.len())).unwrap();
        sequences.push(u64::from(scene.ledger.entry(&id.parse().unwrap()).unwrap().sequence));
    }
    assert_eq!(sequences, [1000, 1001, 1002, 2000]);
    scene.now = u64::MAX;
    assert!(matches!(scene.detach("k"), Err(QueueError::SequenceExhausted(_))));
}

#[test]
fn answered_commands_are_dropped_unanswered_ones_kept() {
    let mut scene = LedgerFixture::default();
    let silent = scene.detach("silent").unwrap();
    let first = scene.detach("k0").unwrap();
    scene.store_result(&first, "succeeded");
    for number in 1..=MAX_ANSWERED_COMMANDS {
        let id = scene.detach(&format!("k{number}")).unwrap();
        scene.store_result(&id, "succeeded");
    }
    assert_eq!(scene.store_result(&first, "succeeded"), StoreResultOutcome::UnknownCommand);
    assert_eq!(scene.ledger.entries.len(), MAX_ANSWERED_COMMANDS + 1);
    assert_eq!(scene.next_command_id(), Some(silent.as_str()));
}

#[test]
fn attach_repeated_after_password_reset_returns_queued() {
    let mut scene = LedgerFixture::default();
    let attach = scene.attach("k", No).unwrap();
    let stamp = scene.next_identity();
    let next = scene.ledger.allow_passwords(&"i-1".parse().unwrap(), stamp);
    let reset = scene.enqueue(next).unwrap();
    assert_eq!(scene.attach("k", No), Ok(attach));
    assert_eq!(scene.attach("k", Yes), Err(QueueError::AlreadyBound));
    let stamp = scene.next_identity();
    let next = scene.ledger.allow_passwords(&"i-1".parse().unwrap(), stamp);
    assert_eq!(scene.enqueue(next), Ok(reset));
}
