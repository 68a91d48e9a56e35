//! The rules of a binding, one row each.
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

/// A ledger with the outside world around it: which key pairs are live, ids and a clock.
#[derive(Default)]
struct Scene {
    ledger: Ledger,
    deleted: Vec<String>,
    commands: u64,
    now: u64,
}

impl Scene {
    fn stamp(&mut self) -> Stamp {
        self.commands += 1;
        Stamp { id: format!("c{}", self.commands).parse().unwrap(), now: self.now }
    }

    fn take(&mut self, next: Result<Next, NotNow>) -> Result<String, NotNow> {
        Ok(match next? {
            Next::Waiting(id) => id.to_string(),
            Next::Queue(entry) => {
                let id = entry.command.id.to_string();
                self.ledger.push(*entry);
                id
            }
        })
    }

    /// The id of the command that binds the key pair: a name, and an id behind a slash.
    fn attach(&mut self, name: &str, password_auth: PasswordAuth) -> Result<String, NotNow> {
        let stamp = self.stamp();
        let wanted = Binding { key_pair: key_pair(name.split('/').next().unwrap(), name), password_auth };
        let live = |bound: &StoredKeyPair| !self.deleted.contains(&bound.id);
        let next = self.ledger.attach(&"i-1".parse().unwrap(), &wanted, live, stamp);
        self.take(next)
    }

    fn detach(&mut self, name: &str) -> Result<String, NotNow> {
        let stamp = self.stamp();
        let next = self.ledger.detach(&"i-1".parse().unwrap(), &name.parse().unwrap(), stamp);
        self.take(next)
    }

    fn answer(&mut self, id: &str, status: &str) -> Settled {
        let outcome = json!({
            "commandId": id, "instanceId": "i-1", "action": "attach", "status": status, "code": "OK",
            "reason": null, "message": "", "changed": true, "keyName": null, "fingerprint": null,
            "user": null, "authorizedKeysFile": null, "passWordAuth": null, "effective": null,
            "proof": null, "warnings": [], "componentVersion": null, "agentVersion": "3.1.0",
            "finishedAt": "2026-01-01T00:00:00Z", "durationMs": 1
        });
        let bytes = outcome.to_string().into_bytes();
        self.ledger.settle(Answer { outcome: serde_json::from_value(outcome).unwrap(), bytes })
    }

    fn bound(&self) -> Option<&str> {
        self.ledger.binding().map(|binding| binding.key_pair.id.as_str())
    }

    fn next(&self) -> Option<&str> {
        self.ledger.oldest_unanswered().map(|command| command.id.as_str())
    }

    fn replaces(&self, id: &str) -> bool {
        let entry = self.ledger.entry(&id.parse().unwrap()).unwrap();
        matches!(entry.command.action, Action::Attach { replace: true, .. })
    }
}

use PasswordAuth::{No, Yes};

/// KP-9.5.
#[test]
fn a_queued_attach_counts_as_attached() {
    let mut scene = Scene::default();
    scene.attach("k", No).unwrap();
    assert_eq!(scene.bound(), Some("k"));
    assert_eq!(scene.attach("l", No), Err(NotNow::Bound));
    assert_eq!(scene.attach("k", Yes), Err(NotNow::Bound), "another setting is another attach");
}

/// KP-9.5.
#[test]
fn the_same_attach_again_is_the_queued_command_until_it_is_answered() {
    let mut scene = Scene::default();
    let first = scene.attach("k", No).unwrap();
    assert_eq!(scene.attach("k", No).unwrap(), first);
    scene.answer(&first, "succeeded");
    assert_eq!(scene.attach("k", No), Err(NotNow::Bound));
}

#[test]
fn a_failed_attach_frees_the_instance() {
    let mut scene = Scene::default();
    let first = scene.attach("k", No).unwrap();
    assert!(matches!(scene.answer(&first, "failed"), Settled::Stored(_)));
    assert_eq!((scene.bound(), scene.next()), (None, None));
    let second = scene.attach("l", No).unwrap();
    assert!(!scene.replaces(&second));
}

#[test]
fn a_failed_detach_leaves_it_bound() {
    let mut scene = Scene::default();
    let attach = scene.attach("k", No).unwrap();
    scene.answer(&attach, "succeeded");
    let detach = scene.detach("k").unwrap();
    assert_eq!(scene.bound(), None);
    scene.answer(&detach, "failed");
    assert_eq!(scene.bound(), Some("k"));
    let detach = scene.detach("k").unwrap();
    scene.answer(&detach, "succeeded");
    assert_eq!(scene.bound(), None);
}

#[test]
fn another_key_pair_is_not_detached() {
    let mut scene = Scene::default();
    scene.attach("k", No).unwrap();
    assert_eq!(scene.detach("l"), Err(NotNow::Bound));
}

#[test]
fn a_detach_of_nothing_is_queued_once() {
    let mut scene = Scene::default();
    let first = scene.detach("k").unwrap();
    assert_eq!(scene.detach("k").unwrap(), first);
    let other = scene.detach("l").unwrap();
    assert_ne!(other, first);
    scene.answer(&first, "succeeded");
    scene.answer(&other, "succeeded");
    assert_ne!(scene.detach("l").unwrap(), other);
}

/// KP-9.7.
#[test]
fn a_deleted_key_pair_is_replaced_and_stays_where_that_fails() {
    let mut scene = Scene::default();
    let first = scene.attach("k", No).unwrap();
    scene.answer(&first, "succeeded");
    scene.deleted.push("k".into());
    assert_eq!(scene.bound(), Some("k"), "it goes on working in the guest");
    let second = scene.attach("l", No).unwrap();
    assert!(scene.replaces(&second));
    assert_eq!(scene.bound(), Some("l"));
    assert_eq!(scene.attach("m", No), Err(NotNow::Bound));
    scene.answer(&second, "failed");
    assert_eq!(scene.bound(), Some("k"));
    let third = scene.attach("m", No).unwrap();
    assert!(scene.replaces(&third));
    scene.answer(&third, "succeeded");
    assert_eq!(scene.bound(), Some("m"));
}

#[test]
fn a_namesake_of_a_deleted_key_pair_is_another() {
    let mut scene = Scene::default();
    scene.attach("k/1", No).unwrap();
    scene.deleted.push("k/1".into());
    let second = scene.attach("k/2", No).unwrap();
    assert!(scene.replaces(&second));
    // By name it can be unbound all the same: the guest knows names alone.
    scene.detach("k").unwrap();
    assert_eq!(scene.bound(), None);
}

#[test]
fn a_silent_guest_gets_everything_in_order() {
    let mut scene = Scene::default();
    let one = scene.attach("k", No).unwrap();
    let two = scene.detach("k").unwrap();
    let three = scene.attach("l", Yes).unwrap();
    assert_eq!(scene.bound(), Some("l"));
    for id in [one, two, three] {
        assert_eq!(scene.next(), Some(id.as_str()));
        scene.answer(&id, "succeeded");
    }
    assert_eq!((scene.next(), scene.bound()), (None, Some("l")));
}

#[test]
fn a_late_word_on_an_older_command_says_nothing_about_now() {
    let mut scene = Scene::default();
    let attach = scene.attach("k", No).unwrap();
    let detach = scene.detach("k").unwrap();
    scene.answer(&detach, "succeeded");
    scene.answer(&attach, "succeeded");
    assert_eq!(scene.bound(), None);
}

#[test]
fn results_are_stored_once() {
    let mut scene = Scene::default();
    let id = scene.attach("k", No).unwrap();
    let sequence = scene.ledger.entry(&id.parse().unwrap()).unwrap().sequence;
    let settlement = Settlement { action: ActionName::Attach, sequence };
    assert_eq!(scene.answer(&id, "succeeded"), Settled::Stored(settlement));
    assert_eq!(scene.answer(&id, "succeeded"), Settled::Again);
    assert_eq!(scene.answer(&id, "failed"), Settled::Conflict);
    assert_eq!(scene.answer("other", "failed"), Settled::Unknown);
    assert_eq!(scene.bound(), Some("k"));
}

/// KP-9.12.
#[test]
fn a_bad_signature_closes_a_command_after_an_hour() {
    let mut scene = Scene::default();
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
        ledger.settle_at(Answer { outcome: serde_json::from_value(outcome).unwrap(), bytes }, now)
    };
    // Nobody was given it: the hour has not begun.
    assert_eq!(bad(&mut scene.ledger, &id, u64::MAX), Settled::Kept);
    assert!(scene.ledger.hand_out(1000).is_some());
    assert!(scene.ledger.hand_out(2000).is_none());
    for now in [1000, 900, 999 + KEPT_FOR] {
        assert_eq!(bad(&mut scene.ledger, &id, now), Settled::Kept);
        assert_eq!(scene.next(), Some(id.as_str()));
    }
    assert_eq!(bad(&mut scene.ledger, "other", 1000), Settled::Unknown);
    assert!(matches!(bad(&mut scene.ledger, &id, 1000 + KEPT_FOR), Settled::Stored(_)));
    assert_eq!((scene.next(), scene.bound()), (None, None));
    // The genuine result counts at once, and a late copy's no more.
    let id = scene.attach("k", No).unwrap();
    scene.ledger.hand_out(5000);
    assert_eq!(bad(&mut scene.ledger, &id, 5001), Settled::Kept);
    assert!(matches!(scene.answer(&id, "succeeded"), Settled::Stored(_)));
    assert_eq!(bad(&mut scene.ledger, &id, 5002), Settled::Conflict);
}

/// KP-9.8.
#[test]
fn sequences_follow_the_clock_and_always_rise() {
    let mut scene = Scene::default();
    let mut sequences = Vec::new();
    for now in [1000, 1000, 500, 2000] {
        scene.now = now;
        let id = scene.detach(&format!("k{}", sequences.len())).unwrap();
        sequences.push(u64::from(scene.ledger.entry(&id.parse().unwrap()).unwrap().sequence));
    }
    assert_eq!(sequences, [1000, 1001, 1002, 2000]);
    scene.now = u64::MAX;
    assert!(matches!(scene.detach("k"), Err(NotNow::NoSequence(_))));
}

#[test]
fn answered_commands_are_forgotten_in_the_end_and_unanswered_ones_never() {
    let mut scene = Scene::default();
    let silent = scene.detach("silent").unwrap();
    let first = scene.detach("k0").unwrap();
    scene.answer(&first, "succeeded");
    for number in 1..=ANSWERED_KEPT {
        let id = scene.detach(&format!("k{number}")).unwrap();
        scene.answer(&id, "succeeded");
    }
    assert_eq!(scene.answer(&first, "succeeded"), Settled::Unknown);
    assert_eq!(scene.ledger.entries.len(), ANSWERED_KEPT + 1);
    assert_eq!(scene.next(), Some(silent.as_str()));
}

#[test]
fn an_attach_is_the_queued_one_also_behind_a_reset_of_the_password() {
    let mut scene = Scene::default();
    let attach = scene.attach("k", No).unwrap();
    let stamp = scene.stamp();
    let next = scene.ledger.allow_passwords(&"i-1".parse().unwrap(), stamp);
    let reset = scene.take(next).unwrap();
    assert_eq!(scene.attach("k", No), Ok(attach));
    assert_eq!(scene.attach("k", Yes), Err(NotNow::Bound));
    let stamp = scene.stamp();
    let next = scene.ledger.allow_passwords(&"i-1".parse().unwrap(), stamp);
    assert_eq!(scene.take(next), Ok(reset));
}
