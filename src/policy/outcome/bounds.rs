//! What a result may hold at most, whatever the guest looks like (KP-3.33).

use std::collections::BTreeMap;

use super::super::foreign::{self, FOREIGN_MAX};
use super::{Outcome, Proof, Status, TrialReport, Warning, WarningReason};

/// The bytes that a result stays under, as it is stored and sent.
pub const RESULT_MAX: usize = 48 * 1024;

/// The most warnings of a list; where there were more, the last one says how many were left out.
pub const WARNINGS_MAX: usize = 64;

/// The most authentication methods that a result names.
const METHODS_MAX: usize = 16;

/// The most characters of a method's name.
const METHOD_MAX: usize = 64;

/// The first of these warnings, `most` at most. Of the reasons with the most warnings the most are left out, and the last
/// one says how many.
pub fn limited(warnings: Vec<Warning>, most: usize) -> Vec<Warning> {
    let Some(kept) = most.checked_sub(1).filter(|_| warnings.len() > most) else { return warnings };
    let mut quota: BTreeMap<WarningReason, usize> = BTreeMap::new();
    for warning in &warnings {
        *quota.entry(warning.reason).or_default() += 1;
    }
    let left_out = warnings.len() - kept;
    let mut about = None;
    for _ in 0..left_out {
        if let Some((reason, count)) = quota.iter_mut().max_by_key(|(_, count)| **count) {
            *count -= 1;
            about = Some(*reason);
        }
    }
    let fits = |warning: &Warning| match quota.get_mut(&warning.reason) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    };
    let mut limited: Vec<Warning> = warnings.into_iter().filter(fits).collect();
    let text = format!("{left_out} more warnings were left out; see `keypair-agent check`");
    limited.extend(about.map(|reason| Warning::new(reason, text)));
    limited
}

impl Outcome {
    /// The result as it goes over the wire and into the state: one line of JSON, under [`RESULT_MAX`] bytes. There is no
    /// other way from a result to its bytes.
    pub fn to_json(&self) -> String {
        let mut bounded = self.bounded();
        let mut most = WARNINGS_MAX;
        loop {
            // Serializing fails only for maps with keys that are no strings, and there is no map here.
            let text = serde_json::to_string(&bounded).unwrap_or_default();
            if text.len() < RESULT_MAX || most == 0 {
                return text;
            }
            most /= 2;
            bounded.warnings = if most == 0 { Vec::new() } else { limited(self.short_warnings(), most) };
        }
    }

    /// The same with every text and list cut.
    fn bounded(&self) -> Self {
        let methods = |methods: &Option<Vec<String>>| {
            let methods = methods.as_ref()?.iter().take(METHODS_MAX);
            Some(methods.map(|method| foreign::cut(method, METHOD_MAX)).collect())
        };
        Self {
            instance_id: short(&self.instance_id),
            message: foreign::message(&self.message),
            user: short(&self.user),
            authorized_keys_file: short(&self.authorized_keys_file),
            trial: self.trial.as_ref().map(|trial| TrialReport {
                file: short(&trial.file),
                methods: methods(&trial.methods),
                not_taken: short(&trial.not_taken),
                ..trial.clone()
            }),
            proof: self.proof.as_ref().map(|proof| Proof {
                key: proof.key,
                methods: methods(&proof.methods),
                address: short(&proof.address),
                not_taken: short(&proof.not_taken),
            }),
            warnings: limited(self.short_warnings(), WARNINGS_MAX),
            component_version: short(&self.component_version),
            agent_version: foreign::cut(&self.agent_version, FOREIGN_MAX),
            finished_at: foreign::cut(&self.finished_at, FOREIGN_MAX),
            ..self.clone()
        }
    }

    /// Also those that were read, and not made here.
    fn short_warnings(&self) -> Vec<Warning> {
        let warnings = self.warnings.iter();
        let bounded = |warning: &Warning| Warning {
            message: foreign::message(&warning.message),
            file: short(&warning.file),
            ..*warning
        };
        warnings.map(bounded).collect()
    }

    /// The result in place of one whose form the service refused with `status`: the same outcome, no warnings, no text of
    /// others.
    #[must_use]
    fn short_form(&self, status: u16) -> Self {
        let word = match self.status {
            Status::Succeeded => "it succeeded",
            Status::Failed => "it failed",
        };
        Self {
            message: format!(
                "{word}; the service refused the whole result ({status}), so that message and warnings are left out: see \
                 the agent's log"
            ),
            instance_id: short(&self.instance_id),
            user: None,
            authorized_keys_file: None,
            trial: self.trial.as_ref().map(|trial| TrialReport {
                key: trial.key,
                file: None,
                line: None,
                methods: None,
                not_taken: None,
            }),
            proof: self.proof.as_ref().map(|proof| Proof {
                key: proof.key,
                methods: None,
                address: None,
                not_taken: None,
            }),
            warnings: Vec::new(),
            component_version: short(&self.component_version),
            ..self.clone()
        }
    }
}

/// The short form of a result's bytes; `None` where they are none, or short already.
pub fn short_form(result: &str, status: u16) -> Option<String> {
    let outcome: Outcome = serde_json::from_str(result).ok()?;
    Some(outcome.short_form(status).to_json()).filter(|short| short != result)
}

/// A foreign field.
fn short(text: &Option<String>) -> Option<String> {
    text.as_deref().map(|text| foreign::cut(text, FOREIGN_MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::policy::outcome::{Code, KeyProof};

    fn outcome() -> Outcome {
        Outcome {
            command_id: "c-1".parse().unwrap(),
            instance_id: None,
            action: None,
            status: Status::Succeeded,
            code: Code::Ok,
            reason: None,
            message: "done".to_owned(),
            changed: true,
            key_name: None,
            fingerprint: None,
            user: None,
            authorized_keys_file: None,
            password_auth: None,
            effective: None,
            trial: None,
            proof: None,
            warnings: Vec::new(),
            component_version: None,
            agent_version: String::new(),
            finished_at: String::new(),
            duration_ms: 1,
        }
    }

    /// KP-3.33.
    #[test]
    fn a_result_is_bounded_whatever_is_in_it() {
        // Of one byte, of two in JSON, of four, of six in JSON.
        for character in ["x", "\"", "\u{1f600}", "\u{1}", " y"] {
            let text = character.repeat(4_000);
            let some = Some(text.clone());
            let methods = Some(vec![text.clone(); 100]);
            let warning = Warning {
                reason: WarningReason::MatchAllowsPassword,
                message: text.clone(),
                file: some.clone(),
                line: Some(usize::MAX),
            };
            let large = Outcome {
                instance_id: some.clone(),
                message: text.clone(),
                user: some.clone(),
                authorized_keys_file: some.clone(),
                trial: Some(TrialReport {
                    key: KeyProof::Accepted,
                    file: some.clone(),
                    line: Some(1),
                    methods: methods.clone(),
                    not_taken: some.clone(),
                }),
                proof: Some(Proof {
                    key: KeyProof::Refused,
                    methods,
                    address: some.clone(),
                    not_taken: some.clone(),
                }),
                warnings: vec![warning; 700],
                component_version: some,
                agent_version: text.clone(),
                finished_at: text,
                ..outcome()
            };
            let json = large.to_json();
            assert!(json.len() < RESULT_MAX, "{} bytes of {character:?}", json.len());
            let read: Outcome = serde_json::from_str(&json).unwrap();
            let last = read.warnings.last().unwrap();
            let left_out = 700 + 1 - read.warnings.len();
            assert!(last.message.starts_with(&format!("{left_out} more warnings")), "{}", last.message);
            assert_eq!(read.to_json(), json);
            let short = read.short_form(413);
            assert!(short.to_json().len() < 8192 && short.warnings.is_empty());
            assert_eq!((short.status, short.code, short.changed), (Status::Succeeded, Code::Ok, true));
            assert_eq!(short.proof.map(|proof| proof.key), Some(KeyProof::Refused));
        }
    }

    #[test]
    fn a_reason_of_which_there_is_one_warning_is_kept() {
        let many = (0..100).map(|n| Warning::new(WarningReason::MatchAllowsPassword, n.to_string()));
        let one = Warning::new(WarningReason::SecondSshd, "one");
        let warnings: Vec<Warning> = many.chain([one.clone()]).collect();
        let cut = limited(warnings.clone(), WARNINGS_MAX);
        assert_eq!(cut.len(), WARNINGS_MAX);
        assert_eq!(cut[..62], warnings[..62]);
        assert_eq!(cut[62], one);
        assert!(cut[63].message.starts_with("38 more warnings"), "{}", cut[63].message);
        assert_eq!(cut[63].reason, WarningReason::MatchAllowsPassword);
        assert_eq!(limited(warnings[..64].to_vec(), WARNINGS_MAX), warnings[..64]);
    }
}
