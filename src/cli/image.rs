//! `check --image`: what a clone of this guest would carry along. What is ours decides; what else would go wrong in a
//! clone is told as well.

use std::path::Path;

use crate::config::Config;
use crate::guest::real::RealGuest;
use crate::guest::{Guest, image};
use crate::policy::image::{Finding, Setting, judge};
use crate::policy::sshd_config::placement;
use crate::transaction::Transaction;

use super::report::{Check, Report};
use super::{FAILED, diff};

/// `check --image [--json]`.
pub(super) fn check(config: &Config, json: bool) -> u8 {
    let transaction = super::transaction(config);
    let mut checks = Vec::new();
    checks.push(
        match transaction.load() {
            Ok(state) if state.remembers_anything() => Check::fails(
                "state",
                "it remembers a key pair, a setting or results of this instance; run 'keypair-agent undo'",
            ),
            Ok(_) => Check::holds("state", "nothing is remembered"),
            Err(refusal) => Check::fails("state", &refusal.message),
        }
        .at(Some(&config.state_dir.join("state.json")), None),
    );
    let standing = transaction.standing();
    for edit in &standing.edits {
        let message = format!("{} of ours stands there; run 'keypair-agent undo'", diff::what(edit));
        checks.push(Check::fails("file", &message).at(Some(&edit.path), None));
    }
    if standing.edits.is_empty() {
        checks.push(Check::holds("files", "neither a key block nor a password setting of ours stands"));
    }
    for note in &standing.notes {
        checks.push(Check::note("note", note));
    }
    let carries = checks.iter().any(|check| !check.ok) || !standing.failures.is_empty();
    checks.extend(others(&transaction, config));
    let what = if carries { "something of ours along: see what FAILs" } else { "nothing of ours along" };
    let more = match checks.iter().any(|check| check.remedy.is_some() && check.ok) {
        true if carries => ", and the notes on what else every clone would get.",
        true => "; see the notes below on what else every clone would get.",
        false if carries => " below.",
        false => ".",
    };
    let status = Report::new(format!("An image of this guest would carry {what}{more}"), checks).show(json);
    if standing.failures.is_empty() {
        return status;
    }
    for failure in standing.failures {
        super::complain(&failure.message);
    }
    FAILED
}

/// What is not ours, and would go wrong in a clone.
fn others(transaction: &Transaction<RealGuest>, config: &Config) -> Vec<Check> {
    let mut checks = vec![component(transaction, config)];
    if let Some(id) = &config.instance_id {
        let text = format!(
            "the configuration says that this is {id}, and each clone would refuse its own commands \
             (WRONG_INSTANCE); take `instance_id` out of it"
        );
        checks.push(Check::note("instance_id", &text));
    }
    let place = transaction.guest().sshd_files().and_then(|files| placement(&files, true)).ok();
    let setting = Setting {
        target_is_root: config.target_user == "root",
        place: place.map(|placement| placement.place),
    };
    checks.extend(judge(&image::observe(Path::new("/")), &setting).iter().map(Check::from));
    let target = config.target_user.as_str();
    for user in ["root"].into_iter().filter(|root| *root != target).chain([target]) {
        if let Some((file, count)) = transaction.keys_of_others(user) {
            let text =
                format!("keys that let {user} in to every clone, ours aside: {count}; remove the builder's");
            checks.push(Check::note("keys", &text).at(Some(&file), None));
        }
    }
    checks
}

/// Without the component each command to a clone fails.
fn component(transaction: &Transaction<RealGuest>, config: &Config) -> Check {
    match transaction.component().and_then(|version| version.gate().map(|()| version)) {
        Ok(version) => Check::holds("component", version.to_string()),
        Err(refusal) => {
            let text = format!("every command to a clone would fail: {}", refusal.message);
            Check::note("component", &text)
        }
    }
    .at(Some(&config.component_info), None)
}

impl From<&Finding> for Check {
    fn from(finding: &Finding) -> Self {
        let check = match finding.is_well {
            true => Self::holds(finding.name, finding.message.as_str()),
            false => Self::note(finding.name, &finding.message),
        };
        check.at(finding.file.as_deref(), finding.line)
    }
}
