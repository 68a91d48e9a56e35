//! The scenarios of a row: an attach with `no`, one with `yes`, a rollback, and a failing reload.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use super::client::{Credential, LoginAttempt, LoginTarget, login};
use super::guest::{NamespaceGuest, combined_output};
use super::judge;
use super::lab::MatrixEnvironment;
use super::row::{AttachExpectation, LoginExpectation, MatrixCase, ProofKind};
use super::snapshot::Snapshot;
use crate::support::{attach_command, detach_command};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixScenario {
    AttachNo,
    AttachYes,
    /// The agent is killed before it can write its result.
    Rollback,
    /// sshd does not survive its reload.
    FailingReload,
}

impl MatrixScenario {
    pub const ALL: [Self; 4] = [Self::AttachNo, Self::AttachYes, Self::Rollback, Self::FailingReload];
}

impl fmt::Display for MatrixScenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AttachNo => "no",
            Self::AttachYes => "yes",
            Self::Rollback => "rollback",
            Self::FailingReload => "failing reload",
        })
    }
}

/// Facts from the scenario with `no` that the others need.
struct AttachBaseline {
    /// Whether it changed sshd's files and reloaded a running sshd.
    reloads: bool,
    /// Whether it changed any file.
    changes: bool,
    /// The system call that stores the result, and its number among the calls of its kind.
    result_stored_by: Option<(String, usize)>,
}

/// A guest, and the number of the agent's connections to its sshd from loopback.
struct GuestSession<'a> {
    guest: NamespaceGuest<'a>,
    commands: usize,
    own_questions: usize,
}

pub struct CaseRunner<'a> {
    lab: &'a MatrixEnvironment,
    row: &'a MatrixCase,
    stand: Option<GuestSession<'a>>,
    was_looked_at: bool,
    known: Option<AttachBaseline>,
    tried: usize,
    faults: Vec<String>,
}

/// Runs every scenario of a row. Returns their number and all faults. Rollback and failing reload of a command that
/// changes nothing run only in the thorough run, on a root file system that was named explicitly.
pub fn run_case(lab: &MatrixEnvironment, row: &MatrixCase) -> (usize, Vec<(MatrixScenario, String)>) {
    let mut course =
        CaseRunner { lab, row, stand: None, was_looked_at: false, known: None, tried: 0, faults: Vec::new() };
    let mut all = Vec::new();
    for trial in MatrixScenario::ALL {
        if !lab.is_thorough && course.is_skipped(trial) {
            continue;
        }
        course.tried += 1;
        if let Err(fault) = course.run_scenario(trial) {
            course.faults.push(fault);
        }
        if let (false, Some(stand)) = (course.faults.is_empty(), &course.stand) {
            course.faults.push(format!("(sshd's log: {})", stand.guest.log().replace('\n', " | ")));
        }
        // The next scenario starts in the state that the row describes. The rollback uses call numbers from the first
        // scenario, so it must start in the same state: without state file and key file, if the row has none.
        if !course.faults.is_empty() || row.needs_fresh_guests() || trial == MatrixScenario::AttachYes {
            course.stand = None;
        }
        all.extend(course.faults.drain(..).map(|fault| (trial, fault)));
    }
    (course.tried, all)
}

/// `make test` runs a fixed third of the rows for rollbacks, failing reloads, attaches with `yes` that the row does
/// not describe, and the predictions of `plan` and `check`. `make test-sshd` runs all of them.
fn is_sampled(row: &MatrixCase) -> bool {
    row.name.bytes().map(usize::from).sum::<usize>().is_multiple_of(3)
}

impl<'a> CaseRunner<'a> {
    /// Whether `make test` leaves this scenario to the thorough run.
    fn is_skipped(&self, trial: MatrixScenario) -> bool {
        match trial {
            MatrixScenario::AttachNo => false,
            MatrixScenario::AttachYes => self.row.yes.is_default() && !is_sampled(self.row),
            // If the scenario with `no` changes nothing, these would repeat it.
            MatrixScenario::Rollback | MatrixScenario::FailingReload => {
                !is_sampled(self.row) || self.known.as_ref().is_some_and(|known| !known.changes)
            }
        }
    }

    fn run_scenario(&mut self, trial: MatrixScenario) -> Result<(), String> {
        if self.stand.is_none() {
            let guest = NamespaceGuest::new(self.lab, self.row)?;
            // The row's own set-up may have connected already.
            let own_questions = count_loopback_connections(&guest.log());
            self.stand = Some(GuestSession { guest, commands: 0, own_questions });
        }
        if !self.was_looked_at {
            self.was_looked_at = true;
            let faults = self.check_login(&self.row.expected_before(), self.row.before.key.is_some());
            self.record_faults("before any command", faults);
        }
        match trial {
            MatrixScenario::AttachNo => self.check_attach("no", &self.row.no)?,
            MatrixScenario::AttachYes => self.check_attach("yes", &self.row.yes)?,
            MatrixScenario::Rollback => self.check_rollback()?,
            MatrixScenario::FailingReload => self.check_failing_reload()?,
        }
        if self.row.valid
            && self.row.host_key
            && let Some(complaint) = self.guest().find_config_error()
        {
            self.faults.push(format!("sshd -t refuses the configuration at the end: {complaint}"));
        }
        Ok(())
    }

    fn check_attach(&mut self, setting: &str, expected: &'a AttachExpectation) -> Result<(), String> {
        let before = self.take_snapshot();
        let command = attach_command("matrix", self.lab.key(self.row.key), setting);
        let asked_before = count_loopback_connections(&self.guest().log());
        let is_foretold = self.lab.is_thorough || is_sampled(self.row);
        let planned = is_foretold.then(|| self.guest().run_agent(&[], &["plan", "-"], &command.to_string()));
        let checked =
            (is_foretold && setting == "no").then(|| self.guest().run_agent(&[], &["check", "--json"], ""));
        let asked = count_loopback_connections(&self.guest().log()).saturating_sub(asked_before);
        if let Some(stand) = &mut self.stand {
            stand.own_questions += asked;
        }
        if let Some(difference) = before.describe_changes(&self.take_snapshot()) {
            self.faults.push(format!("plan or check changed files: {difference}"));
        }
        let (result, output) = self.apply_command(&command, &[])?;
        let succeeded = result["status"] == "succeeded";
        if let Some(planned) = planned.filter(|_| !self.row.refused_by_a_write) {
            self.record_faults("plan", judge::compare_plan(&planned, &result));
        }
        if let Some(checked) = checked.filter(|_| !self.row.check_differs && !self.row.refused_by_a_write) {
            self.record_faults("check", judge::compare_check(&checked, &result));
        }
        self.record_faults("", judge::compare_result(expected, &result));
        let after = self.take_snapshot();
        let difference = before.describe_changes(&after);
        if !succeeded && let Some(difference) = &difference {
            self.faults.push(format!("it failed, and changed files: {difference}"));
        }
        if result["changed"] != difference.is_some() {
            self.faults.push(format!("changed is {}, and it did this: {difference:?}", result["changed"]));
        }
        let key_file = PathBuf::from(result["authorizedKeysFile"].as_str().unwrap_or_default());
        let tells_sshd = (expected.reloads || after.has_sshd_changes(&before, &key_file)) && self.row.running;
        if setting == "no" {
            let result_stored_by = self.find_last_rename();
            self.known =
                Some(AttachBaseline { reloads: tells_sshd, changes: difference.is_some(), result_stored_by });
        }
        self.guest().run_script(&expected.then)?;

        let wanted = if succeeded == expected.reason.is_none() {
            self.row.expected_after(expected, setting == "no")
        } else {
            // The result was judged before. The rest is to check that a failure changed nothing.
            if succeeded { LoginExpectation::default() } else { self.row.expected_before() }
        };
        let is_open = self.row.running || !expected.then.is_empty();
        let key = (is_open && succeeded)
            .then(|| self.login_with_retry(&self.default_target(), self.bound_key_credential()));
        let password = is_open.then(|| self.login_with_retry(&self.default_target(), Credential::Password));
        let faults = judge::compare_login(&wanted, key.as_ref(), password.as_ref());
        self.record_faults("then", faults);
        if let (true, Some(key), Some(password)) = (succeeded, &key, &password) {
            self.record_faults("the result", judge::compare_effective(self.row, &result, password));
            self.check_proof(expected, tells_sshd, &result, key.let_in);
        }
        if succeeded {
            self.check_other_clients(expected);
        }
        if !expected.then.is_empty() {
            return Ok(());
        }

        if succeeded {
            let (result, _) = self.apply_command(&detach_command("matrix"), &[])?;
            if result["status"] != "succeeded" {
                self.faults.push(format!("the detach failed: {result}"));
            }
            let now = self.take_snapshot();
            if now.content(&key_file) != before.content(&key_file) {
                self.faults.push("the detach does not give back the bytes of the key file".into());
            }
        }
        let undo = self.guest().run_agent(&[], &["undo"], "");
        // With an unsafe path the agent may not look there, so it cannot exclude that its lines are left.
        if !undo.status.success() && result["reason"] != "UNSAFE_PATH" {
            self.faults.push(format!("undo failed: {}", combined_output(&undo)));
        }
        let now = self.take_snapshot().without_empty_leftovers(&before, &key_file);
        if let Some(difference) = before.describe_changes(&now) {
            self.faults.push(format!("undo does not give everything back: {difference}"));
        }
        // After a failure, the logins were checked above. By now pending edits are live.
        if self.row.pending.is_empty() && succeeded {
            let faults = self.check_login(&self.row.expected_before(), self.row.before.key.is_some());
            self.record_faults("after undo", faults);
        }
        if !self.faults.is_empty() {
            let log = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            self.faults.push(format!("(agent: {log})"));
        }
        Ok(())
    }

    /// Checks the proof in the result, and that the agent did not connect to sshd too often.
    fn check_proof(
        &mut self,
        expected: &AttachExpectation,
        tells_sshd: bool,
        result: &Value,
        key_lets_in: bool,
    ) {
        let kind = if self.row.running { expected.proof } else { ProofKind::NotTaken };
        // Uses the address at which the agent connected. The test's own connection may be the first one there.
        let asked = result["proof"]["address"].as_str().and_then(|text| text.parse::<SocketAddr>().ok());
        let asked = asked.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], self.row.port)));
        let (to, port) = (asked.ip().to_string(), asked.port());
        let way = LoginTarget { from: Some(to.clone()), to, port, ..self.default_target() };
        let loopback = self.login_with_retry(&way, Credential::None);
        if let Some(stand) = &mut self.stand {
            stand.own_questions += 1;
        }
        self.record_faults("", judge::compare_proof(kind, tells_sshd, result, key_lets_in, &loopback));
    }

    fn check_other_clients(&mut self, expected: &AttachExpectation) {
        for client in &expected.client {
            let usual = self.default_target();
            let way = LoginTarget {
                user: client.user.clone().unwrap_or(usual.user),
                from: client.from.clone(),
                to: client.to.clone().unwrap_or(usual.to),
                port: client.port.unwrap_or(usual.port),
            };
            let wanted = LoginExpectation {
                offers: client.offers.clone(),
                key: client.key,
                password: client.password,
            };
            let key = client.key.map(|_| self.login_with_retry(&way, self.credential_of(&way.user)));
            let password = (key.is_none() || client.password.is_some())
                .then(|| self.login_with_retry(&way, Credential::Password));
            let faults = judge::compare_login(&wanted, key.as_ref(), password.as_ref());
            self.record_faults(&format!("for {way}"), faults);
        }
    }

    fn check_rollback(&mut self) -> Result<(), String> {
        let Some(AttachBaseline { result_stored_by: Some((call, nth)), changes, reloads }) = &self.known
        else {
            return Err("the trial with `no` stored no result, so there is no moment to kill it at".into());
        };
        let (changes, reloads) = (*changes, *reloads);
        let inject = format!("inject={call}:signal=SIGKILL:when={nth}");
        let trace = format!("trace={call}");
        let before = self.take_snapshot();
        let command = attach_command("matrix", self.lab.key(self.row.key), "no").to_string();
        let log = self.trace_log_path();
        let tracer = ["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-e", &trace, "-e", &inject];
        let output = self.guest().run_agent(&tracer, &["apply", "-"], &command);
        if !output.stdout.is_empty() {
            return Err(format!("it was not killed before its result: {}", combined_output(&output)));
        }
        if changes && self.take_snapshot() == before {
            self.faults.push("it was killed before it did anything".into());
        }
        let (result, _) = self.apply_command(&detach_command("nobodys"), &[])?;
        // A cause that prevents any command prevents this one too.
        let is_quiet = result["reason"].is_null()
            || result["reason"] == "NOT_ATTACHED"
            || result["reason"].as_str() == self.row.no.reason.as_deref();
        if !is_quiet || result["changed"] != false {
            self.faults.push(format!("the next command: {result}"));
        }
        if let Some(difference) = before.describe_changes(&self.take_snapshot()) {
            self.faults.push(format!("the recovery does not give everything back: {difference}"));
        }
        if self.row.pending.is_empty() || !reloads {
            let faults = self.check_login(&self.row.expected_before(), self.row.before.key.is_some());
            self.record_faults("after the recovery", faults);
        }
        Ok(())
    }

    fn check_failing_reload(&mut self) -> Result<(), String> {
        let reloads = self.known.as_ref().is_some_and(|known| known.reloads);
        self.guest().break_sshd_binary()?;
        let before = self.take_snapshot();
        let (result, _) =
            self.apply_command(&attach_command("matrix", self.lab.key(self.row.key), "no"), &[])?;
        let reason = match &self.row.no.reason {
            None if reloads => Some("SSHD_RELOAD_FAILED".to_owned()),
            reason => reason.clone(),
        };
        let failed = reason.is_some();
        // The scenario with `no` judges a refusal.
        self.record_faults(
            "",
            judge::compare_result(
                &AttachExpectation { reason, ..AttachExpectation::default() },
                &strip_warnings(&result),
            ),
        );
        if !failed {
            return Ok(());
        }
        if let Some(difference) = before.describe_changes(&self.take_snapshot()) {
            self.faults.push(format!("it failed, and changed files: {difference}"));
        }
        if self.row.pending.is_empty() || !reloads {
            let faults = self.check_login(&self.row.expected_before(), self.row.before.key.is_some());
            self.record_faults("after the failure", faults);
        } else if !self.login_with_retry(&self.default_target(), Credential::Password).answered {
            // sshd's offer follows the pending edits. It only has to run.
            self.faults.push("after the failure nobody answers".into());
        }
        Ok(())
    }

    /// Checks the target user's login with a password and, if `also_by_key`, with the key.
    fn check_login(&self, wanted: &LoginExpectation, also_by_key: bool) -> Vec<String> {
        if !self.row.running {
            return Vec::new();
        }
        let key =
            also_by_key.then(|| self.login_with_retry(&self.default_target(), self.bound_key_credential()));
        let password = self.login_with_retry(&self.default_target(), Credential::Password);
        let mut faults = judge::compare_login(wanted, key.as_ref(), Some(&password));
        if !password.answered && wanted.offers.as_ref().is_some_and(|offers| !offers.is_empty()) {
            faults.push(format!("nobody answers: {}", password.said));
        }
        faults
    }

    /// Tries a login again if sshd dropped it because an earlier connection was still open (`MaxStartups`).
    fn login_with_retry(&self, way: &LoginTarget, with: Credential<'_>) -> LoginAttempt {
        let mut known = 0;
        loop {
            let seen = login(self.lab, self.guest(), way, with);
            if seen.answered {
                return seen;
            }
            let turned_away = self.guest().log().matches("past MaxStartups").count();
            if turned_away == known {
                return seen;
            }
            known = turned_away;
        }
    }

    fn default_target(&self) -> LoginTarget {
        let MatrixCase { user, to, port, .. } = self.row;
        LoginTarget { user: user.clone(), from: None, to: to.clone(), port: *port }
    }

    fn bound_key_credential(&self) -> Credential<'a> {
        Credential::Key(&self.lab.key(self.row.key).private)
    }

    fn credential_of(&self, user: &str) -> Credential<'a> {
        if user == self.row.user {
            self.bound_key_credential()
        } else {
            Credential::Key(&self.lab.other.private)
        }
    }

    /// Runs `apply`, and records its renames with strace(1). Returns the result.
    fn apply_command(&mut self, command: &Value, arguments: &[&str]) -> Result<(Value, Output), String> {
        let log = self.trace_log_path();
        let tracer = [
            "strace",
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-o",
            log.to_str().unwrap(),
            "-e",
            "trace=renameat,renameat2",
        ];
        // Only the attach with `no` needs the trace. A daemon that the agent starts would stay under strace.
        let traced = command["passWordAuth"] == "no" && self.known.is_none();
        let tracer = if traced { &tracer[..] } else { &[] };
        let words: Vec<&str> = ["apply", "-"].iter().chain(arguments).copied().collect();
        let output = self.guest().run_agent(tracer, &words, &command.to_string());
        let stand = self.stand.as_mut().unwrap();
        stand.commands += 1;
        let (asked, allowed) =
            (count_loopback_connections(&stand.guest.log()), 2 * stand.commands + stand.own_questions);
        if asked > allowed {
            let text = format!("{asked} connections from loopback for {} commands", stand.commands);
            self.faults.push(text);
        }
        let result: Value = serde_json::from_slice(&output.stdout)
            .map_err(|_| format!("no result: {}", combined_output(&output)))?;
        if output.status.success() != (result["status"] == "succeeded") {
            self.faults.push(format!("its exit status is {}: {result}", output.status));
        }
        Ok((result, output))
    }

    fn trace_log_path(&self) -> PathBuf {
        self.lab.folder.path().join(format!("strace.{}", self.guest().pid()))
    }

    /// The agent's last rename: of the state file with the result.
    fn find_last_rename(&self) -> Option<(String, usize)> {
        let text = fs::read_to_string(self.trace_log_path()).ok()?;
        let calls: Vec<&str> = text
            .lines()
            .filter(|line| !line.contains("resumed"))
            .filter_map(|line| line.split_once('(')?.0.split_whitespace().last())
            .collect();
        let last = (*calls.last()?).to_owned();
        let nth = calls.iter().filter(|call| **call == last).count();
        Some((last, nth))
    }

    fn take_snapshot(&self) -> Snapshot {
        Snapshot::capture(self.guest(), &self.row.home(), &self.row.keeps)
    }

    fn guest(&self) -> &NamespaceGuest<'a> {
        &self.stand.as_ref().unwrap().guest
    }

    fn record_faults(&mut self, when: &str, faults: Vec<String>) {
        let head = if when.is_empty() { String::new() } else { format!("{when}: ") };
        self.faults.extend(faults.into_iter().map(|fault| head.clone() + &fault));
    }
}

fn strip_warnings(result: &Value) -> Value {
    let mut result = result.clone();
    result["warnings"] = json!([]);
    result
}

/// The number of connections from loopback in sshd's log.
pub fn count_loopback_connections(log: &str) -> usize {
    let ports: BTreeSet<&str> = log
        .lines()
        .filter(|line| !line.contains("listening on"))
        .flat_map(|line| ["127.0.0.1 port ", "::1 port "].map(|from| line.split_once(from)))
        .flatten()
        .filter_map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next())
        .collect();
    ports.len()
}

/// The directory of the rows.
pub fn case_directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/matrix"))
}
