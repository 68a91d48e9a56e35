//! The upper limits of a result, for any state of the guest (KP-3.33).

use std::collections::BTreeMap;

use super::super::foreign::{self, MAX_FOREIGN_CHARS};
use super::{CommandResult, ProbeReport, Status, TrialReport, Warning, WarningReason};

/// A result in its stored and sent form has fewer bytes than this.
pub const MAX_RESULT_BYTES: usize = 48 * 1024;

/// The maximum number of warnings in a list. If there were more, the last one says how many were left out.
pub const MAX_WARNINGS: usize = 64;

/// The maximum number of authentication methods in a result.
const MAX_METHODS: usize = 16;

/// The maximum number of characters in a method's name.
const MAX_METHOD_CHARS: usize = 64;

/// Returns the first of these warnings, at most `max_count`. Warnings of the most frequent reasons are left out first.
/// In that case the last warning says how many were left out.
pub fn limit_warnings(warnings: Vec<Warning>, max_count: usize) -> Vec<Warning> {
    let Some(kept) = max_count.checked_sub(1).filter(|_| warnings.len() > max_count) else { return warnings };
    let mut quota: BTreeMap<WarningReason, usize> = BTreeMap::new();
    for warning in &warnings {
        *quota.entry(warning.reason).or_default() += 1;
    }
    let left_out = warnings.len() - kept;
    let mut omitted_reason = None;
    for _ in 0..left_out {
        if let Some((reason, count)) = quota.iter_mut().max_by_key(|(_, count)| **count) {
            *count -= 1;
            omitted_reason = Some(*reason);
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
    limited.extend(omitted_reason.map(|reason| Warning::new(reason, text)));
    limited
}

impl CommandResult {
    /// Returns the result as it is sent and stored: one line of JSON, under [`MAX_RESULT_BYTES`] bytes. No other
    /// function converts a result into bytes.
    pub fn to_json(&self) -> String {
        let mut bounded = self.to_bounded();
        let mut max_warnings = MAX_WARNINGS;
        loop {
            // Serializing fails only for maps whose keys are not strings, and there is no map here.
            let text = serde_json::to_string(&bounded).unwrap_or_default();
            if text.len() < MAX_RESULT_BYTES || max_warnings == 0 {
                return text;
            }
            max_warnings /= 2;
            bounded.warnings = if max_warnings == 0 {
                Vec::new()
            } else {
                limit_warnings(self.truncated_warnings(), max_warnings)
            };
        }
    }

    /// Returns the same result with every text and list shortened to its limit.
    fn to_bounded(&self) -> Self {
        let methods = |methods: &Option<Vec<String>>| {
            let methods = methods.as_ref()?.iter().take(MAX_METHODS);
            Some(methods.map(|method| foreign::truncate_chars(method, MAX_METHOD_CHARS)).collect())
        };
        Self {
            instance_id: truncate_field(&self.instance_id),
            message: foreign::sanitize_message(&self.message),
            user: truncate_field(&self.user),
            authorized_keys_file: truncate_field(&self.authorized_keys_file),
            trial: self.trial.as_ref().map(|trial| TrialReport {
                file: truncate_field(&trial.file),
                methods: methods(&trial.methods),
                not_taken: truncate_field(&trial.not_taken),
                ..trial.clone()
            }),
            proof: self.proof.as_ref().map(|proof| ProbeReport {
                key: proof.key,
                methods: methods(&proof.methods),
                address: truncate_field(&proof.address),
                not_taken: truncate_field(&proof.not_taken),
            }),
            warnings: limit_warnings(self.truncated_warnings(), MAX_WARNINGS),
            component_version: truncate_field(&self.component_version),
            agent_version: foreign::truncate_chars(&self.agent_version, MAX_FOREIGN_CHARS),
            finished_at: foreign::truncate_chars(&self.finished_at, MAX_FOREIGN_CHARS),
            ..self.clone()
        }
    }

    /// Shortens the warnings, including those that were parsed from a stored result.
    fn truncated_warnings(&self) -> Vec<Warning> {
        let warnings = self.warnings.iter();
        let bounded = |warning: &Warning| Warning {
            message: foreign::sanitize_message(&warning.message),
            file: truncate_field(&warning.file),
            ..*warning
        };
        warnings.map(bounded).collect()
    }

    /// Returns a short result for a result whose form the service refused with `status`. It has the same outcome, no
    /// warnings, and no text from other programs.
    #[must_use]
    fn to_short_form(&self, status: u16) -> Self {
        let word = match self.status {
            Status::Succeeded => "it succeeded",
            Status::Failed => "it failed",
        };
        Self {
            message: format!(
                "{word}; the service refused the whole result ({status}), so that message and warnings are left out: see \
                 the agent's log"
            ),
            instance_id: truncate_field(&self.instance_id),
            user: None,
            authorized_keys_file: None,
            trial: self.trial.as_ref().map(|trial| TrialReport {
                key: trial.key,
                file: None,
                line: None,
                methods: None,
                not_taken: None,
            }),
            proof: self.proof.as_ref().map(|proof| ProbeReport {
                key: proof.key,
                methods: None,
                address: None,
                not_taken: None,
            }),
            warnings: Vec::new(),
            component_version: truncate_field(&self.component_version),
            ..self.clone()
        }
    }
}

/// Returns the short form of a result's bytes. Returns `None` if they are not a result, or are already short.
pub fn shorten_result(result: &str, status: u16) -> Option<String> {
    let outcome: CommandResult = serde_json::from_str(result).ok()?;
    Some(outcome.to_short_form(status).to_json()).filter(|short| short != result)
}

/// Shortens a field whose text comes from outside the agent.
fn truncate_field(text: &Option<String>) -> Option<String> {
    text.as_deref().map(|text| foreign::truncate_chars(text, MAX_FOREIGN_CHARS))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::policy::outcome::{Code, KeyAcceptance};

    fn sample_outcome() -> CommandResult {
        CommandResult {
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
    fn result_json_stays_below_size_limit() {
        // Characters of one byte, of two bytes in JSON, of four bytes, and of six bytes in JSON.
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
            let large = CommandResult {
                instance_id: some.clone(),
                message: text.clone(),
                user: some.clone(),
                authorized_keys_file: some.clone(),
                trial: Some(TrialReport {
                    key: KeyAcceptance::Accepted,
                    file: some.clone(),
                    line: Some(1),
                    methods: methods.clone(),
                    not_taken: some.clone(),
                }),
                proof: Some(ProbeReport {
                    key: KeyAcceptance::Refused,
                    methods,
                    address: some.clone(),
                    not_taken: some.clone(),
                }),
                warnings: vec![warning; 700],
                component_version: some,
                agent_version: text.clone(),
                finished_at: text,
                ..sample_outcome()
            };
            let json = large.to_json();
            assert!(json.len() < MAX_RESULT_BYTES, "{} bytes of {character:?}", json.len());
            let read: CommandResult = serde_json::from_str(&json).unwrap();
            let last = read.warnings.last().unwrap();
            let left_out = 700 + 1 - read.warnings.len();
            assert!(last.message.starts_with(&format!("{left_out} more warnings")), "{}", last.message);
            assert_eq!(read.to_json(), json);
            let short = read.to_short_form(413);
            assert!(short.to_json().len() < 8192 && short.warnings.is_empty());
            assert_eq!((short.status, short.code, short.changed), (Status::Succeeded, Code::Ok, true));
            assert_eq!(short.proof.map(|proof| proof.key), Some(KeyAcceptance::Refused));
        }
    }

    #[test]
    fn warning_limit_keeps_reason_with_one_warning() {
        let many = (0..100).map(|n| Warning::new(WarningReason::MatchAllowsPassword, n.to_string()));
        let one = Warning::new(WarningReason::SecondSshd, "one");
        let warnings: Vec<Warning> = many.chain([one.clone()]).collect();
        let cut = limit_warnings(warnings.clone(), MAX_WARNINGS);
        assert_eq!(cut.len(), MAX_WARNINGS);
        assert_eq!(cut[..62], warnings[..62]);
        assert_eq!(cut[62], one);
        assert!(cut[63].message.starts_with("38 more warnings"), "{}", cut[63].message);
        assert_eq!(cut[63].reason, WarningReason::MatchAllowsPassword);
        assert_eq!(limit_warnings(warnings[..64].to_vec(), MAX_WARNINGS), warnings[..64]);
    }
}
