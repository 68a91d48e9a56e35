//! `check --image`: what a clone of this guest would inherit. Only the agent's own data decides the verdict; other
//! problems of a clone are reported too.

use std::path::Path;

use crate::config::Config;
use crate::guest::real::LinuxGuest;
use crate::guest::{Guest, image};
use crate::policy::image::{ImageFinding, ImageLintContext, lint_image};
use crate::policy::sshd_config::choose_placement;
use crate::transaction::Engine;

use super::report::{Check, CheckReport};
use super::{EXIT_FAILED, diff};

/// `check --image [--json]`.
pub(super) fn check_image(config: &Config, json: bool) -> u8 {
    let transaction = super::open_engine(config);
    let mut checks = Vec::new();
    checks.push(
        match transaction.load() {
            Ok(state) if state.has_recorded_data() => Check::failed(
                "state",
                "it remembers a key pair, a setting or results of this instance; run 'keypair-agent undo'",
            ),
            Ok(_) => Check::passed("state", "nothing is remembered"),
            Err(refusal) => Check::failed("state", &refusal.message),
        }
        .with_location(Some(&config.state_dir.join("state.json")), None),
    );
    let standing = transaction.plan_uninstall();
    for edit in &standing.edits {
        let message = format!("{} of ours stands there; run 'keypair-agent undo'", diff::describe_edit(edit));
        checks.push(Check::failed("file", &message).with_location(Some(&edit.path), None));
    }
    if standing.edits.is_empty() {
        checks.push(Check::passed("files", "neither a key block nor a password setting of ours stands"));
    }
    for note in &standing.notes {
        checks.push(Check::note("note", note));
    }
    let carries = checks.iter().any(|check| !check.ok) || !standing.failures.is_empty();
    checks.extend(check_clone_hazards(&transaction, config));
    let what = if carries { "something of ours along: see what FAILs" } else { "nothing of ours along" };
    let more = match checks.iter().any(|check| check.remedy.is_some() && check.ok) {
        true if carries => ", and the notes on what else every clone would get.",
        true => "; see the notes below on what else every clone would get.",
        false if carries => " below.",
        false => ".",
    };
    let status = CheckReport::new(format!("An image of this guest would carry {what}{more}"), checks)
        .print_report(json);
    if standing.failures.is_empty() {
        return status;
    }
    for failure in standing.failures {
        super::print_error(&failure.message);
    }
    EXIT_FAILED
}

/// Problems in a clone that the agent's own data does not cause.
fn check_clone_hazards(transaction: &Engine<LinuxGuest>, config: &Config) -> Vec<Check> {
    let mut checks = vec![check_component(transaction, config)];
    if let Some(id) = &config.instance_id {
        let text = format!(
            "the configuration says that this is {id}, and each clone would refuse its own commands \
             (WRONG_INSTANCE); take `instance_id` out of it"
        );
        checks.push(Check::note("instance_id", &text));
    }
    let place = transaction.guest().sshd_files().and_then(|files| choose_placement(&files, true)).ok();
    let setting = ImageLintContext {
        target_is_root: config.target_user == "root",
        place: place.map(|placement| placement.place),
    };
    checks.extend(lint_image(&image::inspect_image(Path::new("/")), &setting).iter().map(Check::from));
    let target = config.target_user.as_str();
    for user in ["root"].into_iter().filter(|root| *root != target).chain([target]) {
        if let Some((file, count)) = transaction.count_foreign_keys(user) {
            let text =
                format!("keys that let {user} in to every clone, ours aside: {count}; remove the builder's");
            checks.push(Check::note("keys", &text).with_location(Some(&file), None));
        }
    }
    checks
}

/// Without the component, every command to a clone fails.
fn check_component(transaction: &Engine<LinuxGuest>, config: &Config) -> Check {
    match transaction
        .read_component_version()
        .and_then(|version| version.check_minimum_version().map(|()| version))
    {
        Ok(version) => Check::passed("component", version.to_string()),
        Err(refusal) => {
            let text = format!("every command to a clone would fail: {}", refusal.message);
            Check::note("component", &text)
        }
    }
    .with_location(Some(&config.component_info), None)
}

impl From<&ImageFinding> for Check {
    fn from(finding: &ImageFinding) -> Self {
        let check = match finding.is_well {
            true => Self::passed(finding.name, finding.message.as_str()),
            false => Self::note(finding.name, &finding.message),
        };
        check.with_location(finding.file.as_deref(), finding.line)
    }
}
