//! `check`: each precondition of an attach that forbids passwords, on this guest as it stands.

use std::path::Path;

use serde::Serialize;

use crate::config::Config;
use crate::guest::Guest;
use crate::policy::command::{Action, Command, KeyPair, Origin, Received};
use crate::policy::observation::{Reload, Sshd};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::public_key::PublicKey;
use crate::policy::sshd_config::{Decider, Reading};
use crate::policy::types::PasswordAuth;
use crate::transaction::Transaction;
use crate::transaction::perform::{Answered, Planned};
use crate::transaction::state::State;

use super::{FAILED, OK};

/// A key of the usual kind for a guest where none is bound: RFC 8709's kind, made of zeros, never written.
const ANY_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// What `check --json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Whether all is well.
    pub(super) accepted: bool,
    /// Each precondition, in the order a command meets them.
    pub(super) checks: Vec<Check>,
}

/// One precondition.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    /// Its name.
    pub(super) name: &'static str,
    /// Whether it holds.
    pub(super) ok: bool,
    /// What was found.
    pub(super) message: String,
    /// The file that decides.
    pub(super) file: Option<String>,
    /// The line in it.
    pub(super) line: Option<usize>,
    /// What to do where it does not hold.
    pub(super) remedy: Option<String>,
}

impl Check {
    /// One that holds.
    pub(super) fn holds(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, ok: true, message: message.into(), file: None, line: None, remedy: None }
    }

    /// One that does not. What helps stands behind the last semicolon of our messages.
    pub(super) fn fails(name: &'static str, message: &str) -> Self {
        let (message, remedy) = match message.rsplit_once("; ") {
            Some((message, remedy)) => (message, Some(remedy.to_owned())),
            None => (message, None),
        };
        Self { name, ok: false, message: message.to_owned(), file: None, line: None, remedy }
    }

    /// The same, about a place.
    pub(super) fn at(mut self, file: Option<&Path>, line: Option<usize>) -> Self {
        self.file = file.map(|file| file.to_string_lossy().into_owned());
        self.line = line;
        self
    }
}

/// `check [--json]`.
pub(super) fn check(config: &Config, json: bool) -> u8 {
    show(&Report::from(look(config)), json)
}

impl From<Vec<Check>> for Report {
    fn from(checks: Vec<Check>) -> Self {
        Self { accepted: checks.iter().all(|check| check.ok), checks }
    }
}

/// Prints a report; its exit status.
pub(super) fn show(report: &Report, json: bool) -> u8 {
    if json {
        super::print(&format!("{}\n", serde_json::to_string(report).unwrap_or_default()));
    } else {
        for check in &report.checks {
            let place = match (&check.file, check.line) {
                (Some(file), Some(line)) => format!(" [{file}:{line}]"),
                (Some(file), None) => format!(" [{file}]"),
                (None, _) => String::new(),
            };
            let mark = if check.ok { "ok  " } else { "FAIL" };
            super::print(&format!("{mark} {:<15} {}{place}\n", check.name, check.message));
            if let Some(remedy) = &check.remedy {
                super::print(&format!("     {:<15} remedy: {remedy}\n", ""));
            }
        }
    }
    if report.accepted { OK } else { FAILED }
}

fn look(config: &Config) -> Vec<Check> {
    let transaction = super::transaction(config);
    let guest = transaction.guest();
    let mut checks = Vec::new();
    checks.push(match transaction.component().and_then(|version| version.gate().map(|()| version)) {
        Ok(version) => Check::holds("component", version.to_string()).at(Some(&config.component_info), None),
        Err(refusal) => Check::fails("component", &refusal.message).at(Some(&config.component_info), None),
    });
    let state = match transaction.load() {
        Ok(state) if state.intent.is_some() => {
            checks.push(Check::fails(
                "state",
                "a command was interrupted; run 'keypair-agent undo' or the agent",
            ));
            return checks;
        }
        Ok(state) => state,
        Err(refusal) => {
            checks.push(Check::fails("state", &refusal.message));
            return checks;
        }
    };
    let account = match guest.account(&config.target_user) {
        Ok(account) => account,
        Err(refusal) => {
            checks.push(Check::fails("user", &refusal.message));
            return checks;
        }
    };
    checks.push(Check::holds(
        "user",
        format!("{} (uid {}), home {}", account.name, account.uid, account.home.display()),
    ));
    match guest.sshd(&account.name) {
        Err(refusal) => checks.push(Check::fails("sshd", &refusal.message)),
        Ok(sshd) => {
            checks.push(Check::holds("sshd", found(&sshd)).at(Some(&sshd.config.main), None));
            checks.push(present(&sshd));
        }
    }
    checks.push(attach(&transaction, &state));
    checks
}

fn found(sshd: &Sshd) -> String {
    let options = match sshd.options.is_empty() {
        true => String::new(),
        false => format!(" with {}", sshd.options.join(" ")),
    };
    let reload = match &sshd.reload {
        Reload::Unit(unit) => format!("reloaded as {unit}"),
        Reload::SocketUnit(unit) => format!("started by a socket, restarted as {unit}"),
        Reload::Pid { pid, .. } => format!("reloaded by SIGHUP to pid {pid}"),
        Reload::None(why) => format!("not running: {why}"),
    };
    format!("{}{options}, {reload}", sshd.binary.display())
}

/// What sshd would answer now, and what decides it.
fn present(sshd: &Sshd) -> Check {
    let Some(first) = sshd.answers.first() else {
        return Check::fails("password login", "sshd names no port on which it would listen");
    };
    let word = if first.effective.password_authentication() { "on" } else { "off" };
    let decides = Reading::of(sshd).decision("PasswordAuthentication", &first.connection, None).by;
    let by = match &decides {
        Decider::Option(option) => format!("by the command line, {option}"),
        Decider::Line { .. } => "by".to_owned(),
        Decider::Default => "by sshd's own default".to_owned(),
    };
    Check::holds("password login", format!("{word} now, {by}")).at(decides.file(), decides.line())
}

/// The attach itself, planned and not carried out.
fn attach(transaction: &Transaction<impl Guest>, state: &State) -> Check {
    const NAME: &str = "attach with no";
    let key_pair = state.binding.as_ref().map(|binding| Ok(binding.key_pair.clone()));
    let any = || -> Result<KeyPair, Refusal> {
        let key_name =
            "check".parse().map_err(|error| Refusal::new(Reason::InvalidKeyName, format!("{error}")))?;
        Ok(KeyPair { key_name, public_key: PublicKey::parse(ANY_KEY)? })
    };
    let key_pair = match key_pair.unwrap_or_else(any) {
        Ok(key_pair) => key_pair,
        Err(refusal) => return Check::fails(NAME, &refusal.message),
    };
    let action = Action::Attach { key_pair, password_auth: PasswordAuth::No, replace: true };
    let id = transaction.guest().random_id();
    let received =
        Received::from(Command { id, sequence: None, instance_id: None, action, expires_at: None });
    match transaction.plan_received(&received, Origin::Console) {
        Ok(Planned::Plan(plan)) => {
            let files: Vec<String> = plan
                .key_edits
                .iter()
                .chain(&plan.sshd_edits)
                .map(|edit| edit.path.display().to_string())
                .collect();
            let mut message = match files.as_slice() {
                [] => "would be accepted, and has nothing to change".to_owned(),
                files => format!("would be accepted, and write {}", files.join(" and ")),
            };
            for warning in &plan.warnings {
                message.push_str(&format!("; warning: {}", warning.message));
            }
            Check::holds(NAME, message)
        }
        Ok(Planned::Refused(outcome)) => Check::fails(NAME, &outcome.message),
        Ok(Planned::Repeated(Answered { result, .. })) => Check::fails(NAME, &result),
        Err(failure) => Check::fails(NAME, &failure.to_string()),
    }
}
