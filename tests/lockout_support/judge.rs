//! The judge: real logins before and after each command. It uses only the status and the warnings of a result.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::matrix_support::client::{Credential, LoginAttempt, LoginTarget, login_with_options};
use crate::matrix_support::guest::{NamespaceGuest, combined_output};
use crate::matrix_support::lab::MatrixEnvironment;
use crate::matrix_support::row::MatrixCase;
use crate::matrix_support::snapshot::Snapshot;
use crate::support::{TestKey, attach_command, detach_command, set_password_auth_command, with_field};

use super::case::{CommandPlan, FuzzCase};

/// The client's message if it gets no terminal.
const NO_TERMINAL: &str = "PTY allocation request failed";

/// A broken promise of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// `succeeded`, but neither the key nor a password nor another key gives access.
    LockedOut,
    /// `succeeded`, but the key gives no access; another key does.
    KeyRefused,
    /// `succeeded`, but the session of the key is restricted.
    Restricted,
    /// `succeeded`, but a password gives access.
    PasswordOpen,
    /// `succeeded`, but the user's own key, which gave access before, does not any more.
    OwnKeyLost,
    /// `succeeded` with `replace` or a detach, but the old key still gives access and there is no warning.
    OldKeyLetsIn,
    /// `failed`, but a byte, a mode or an owner has changed.
    StateChanged,
    /// `failed`, or `succeeded` with `yes`, but a login that worked before does not work now.
    LoginLost,
    /// `succeeded` with `yes`, but the key gives no access and there is no warning.
    MissingWarning,
    /// `PAM_NOT_EVALUATED`, although PAM's rules are those of the distribution.
    UnjustifiedWarning,
    /// `LOCKOUT_GUARD`, although the key gave unrestricted access before the command.
    FalseRefusal,
    /// No result at all.
    NoResult,
}

#[derive(Debug, Clone)]
pub struct Finding {
    pub kind: FindingKind,
    pub text: String,
}

/// The outcome of a case.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The reason why the case could not run.
    pub skipped: Option<String>,
    /// The last result in one word.
    pub end: String,
    pub findings: Vec<Finding>,
    /// The warnings that excused a failed login.
    pub excuses: Vec<&'static str>,
    /// A full log for a person.
    pub story: String,
    pub logins: usize,
}

/// The logins that work.
#[derive(Debug, Clone, Copy, Default)]
struct Ways {
    key: bool,
    is_key_unrestricted: bool,
    own: bool,
    password: bool,
    nothing: bool,
}

impl Ways {
    fn any(self) -> bool {
        self.key || self.own || self.password || self.nothing
    }

    /// Whether a login works here that does not work in `other`.
    fn has_login_missing_in(self, other: Self) -> bool {
        (self.key && !other.key)
            || (self.own && !other.own)
            || (self.password && !other.password)
            || (self.nothing && !other.nothing)
    }
}

struct CaseRun<'a> {
    lab: &'a MatrixEnvironment,
    case: &'a FuzzCase,
    row: &'a MatrixCase,
    guest: NamespaceGuest<'a>,
    /// Whether the first attach succeeded. A replace removes only a key that was bound.
    is_bound: bool,
    verdict: Verdict,
}

/// Runs a case in a new guest.
pub fn run_fuzz_case(lab: &MatrixEnvironment, case: &FuzzCase) -> Verdict {
    let row = case.to_matrix_case();
    let guest = match NamespaceGuest::new(lab, &row) {
        Ok(guest) => guest,
        Err(error) => return Verdict { skipped: Some(error), ..Verdict::default() },
    };
    let mut judge = CaseRun { lab, case, row: &row, guest, is_bound: false, verdict: Verdict::default() };
    judge.log_line(&format!("{}\nsshd_config:\n{}", case, row.files["/etc/ssh/sshd_config"]));
    judge.run_commands();
    let log = judge.guest.log();
    judge.log_line(&format!("sshd's log:\n{log}"));
    judge.verdict
}

impl CaseRun<'_> {
    fn run_commands(&mut self) {
        let lab = self.lab;
        let (k, l) = (lab.key(self.row.key), &lab.second);
        let before = self.probe_logins(k);
        match self.case.course {
            CommandPlan::AttachNo => {
                self.apply_and_check_no(&attach_command("fuzz", k, "no"), k, None, before);
            }
            CommandPlan::AttachNoThenDetach => {
                if self.apply_and_check_no(&attach_command("fuzz", k, "no"), k, None, before)
                    && self.run_intermediate_script()
                {
                    self.apply_and_check_detach(k);
                }
            }
            CommandPlan::SetPasswordNo => {
                self.apply_and_check_no(&set_password_auth_command("no"), k, None, before);
            }
            CommandPlan::AttachYesThenNo => {
                let now = self.apply_and_check_yes(&attach_command("fuzz", k, "yes"), k, before);
                if let Some(now) = self.probe_logins_after_script(k, now) {
                    self.apply_and_check_no(&attach_command("fuzz", k, "no"), k, None, now);
                }
            }
            CommandPlan::AttachYesThenReplace => {
                let now = self.apply_and_check_yes(&attach_command("fuzz", k, "yes"), k, before);
                let command = with_field(attach_command("other", l, "no"), "replace", json!(true));
                if let Some(now) = self.probe_logins_after_script(k, now) {
                    if self.is_bound {
                        self.apply_and_check_no(&command, l, Some(k), now);
                    } else {
                        // The first attach failed, and the earlier logins used another key than this command does.
                        let now =
                            self.probe_selected_logins(l, true, self.case.mentions("@OTHER_KEY@"), true);
                        self.apply_and_check_no(&command, l, None, now);
                    }
                }
            }
        }
    }

    /// Runs the script between two commands. Returns whether it succeeded.
    fn run_intermediate_script(&mut self) -> bool {
        let Some(script) = self.case.intermediate_script() else { return true };
        let done = self.guest.run_script(&script);
        self.log_line(&format!("between the commands: {done:?}"));
        done.is_ok()
    }

    /// The logins that work after that script; `None` if the script failed.
    fn probe_logins_after_script(&mut self, key: &TestKey, now: Ways) -> Option<Ways> {
        if self.case.intermediate_script().is_none() {
            return Some(now);
        }
        self.run_intermediate_script()
            .then(|| self.probe_selected_logins(key, true, self.case.mentions("@OTHER_KEY@"), true))
    }

    /// Applies a detach. The detached key must give no access, unless a warning says that the key is still present.
    fn apply_and_check_detach(&mut self, key: &TestKey) {
        let files = self.take_snapshot();
        let Some(result) = self.apply_command(&detach_command("fuzz")) else { return };
        if result["status"] != "succeeded" {
            if let Some(difference) = files.describe_changes(&self.take_snapshot()) {
                let text = format!("{}: {difference}", summarize_result(&result));
                self.verdict.findings.push(Finding { kind: FindingKind::StateChanged, text });
            }
            return;
        }
        let seen = self.login_with_key(key, false);
        if seen.let_in && !collect_warning_reasons(&result).contains("KEY_STILL_PRESENT") {
            self.add_finding(FindingKind::OldKeyLetsIn, &result, &seen);
        }
    }

    /// Applies a command with `no`. `old` is the key that it removes. Returns whether the command succeeded.
    fn apply_and_check_no(
        &mut self,
        command: &Value,
        key: &TestKey,
        old: Option<&TestKey>,
        before: Ways,
    ) -> bool {
        let files = self.take_snapshot();
        let Some(result) = self.apply_command(command) else { return false };
        if result["status"] != "succeeded" {
            self.check_failure(&result, &files, old.unwrap_or(key), before, old.is_none());
            return false;
        }
        let is_set_only = command["action"] == "setPasswordAuth";
        let warned = collect_warning_reasons(&result);
        let seen = self.login_with_key(key, true);
        let own = self.case.mentions("@OTHER_KEY@").then(|| self.login_with_own_key());
        let own_lets_in = own.as_ref().is_some_and(|seen| seen.let_in);
        let password = self.try_login(Credential::Password, &[]);
        let empty = self.allows_empty_password().then(|| self.try_login(Credential::None, &[]));
        if password.let_in || empty.as_ref().is_some_and(|seen| seen.let_in) {
            self.add_finding(FindingKind::PasswordOpen, &result, &password);
        }
        let lets_in = if is_set_only { seen.let_in || own_lets_in } else { seen.let_in };
        if !lets_in {
            let whose = if is_set_only { &self.lab.other } else { key };
            self.check_key_refused(&result, &seen, own_lets_in || password.let_in, &warned, whose);
        } else if !is_set_only && is_pty_refused(&seen) {
            self.add_finding(FindingKind::Restricted, &result, &seen);
        }
        if before.own && !own_lets_in && !self.case.has_unread_edits() {
            let seen = own.unwrap_or(seen);
            self.add_finding(FindingKind::OwnKeyLost, &result, &seen);
        }
        if let Some(old) = old
            && !warned.contains("KEY_STILL_PRESENT")
        {
            let seen = self.login_with_key(old, false);
            if seen.let_in {
                self.add_finding(FindingKind::OldKeyLetsIn, &result, &seen);
            }
        }
        if lets_in && warned.contains("PAM_NOT_EVALUATED") && !self.case.mentions("pam") {
            self.add_finding(FindingKind::UnjustifiedWarning, &result, &empty_login_attempt());
        }
        true
    }

    /// Handles a key that gives no access after `succeeded`.
    fn check_key_refused(
        &mut self,
        result: &Value,
        seen: &LoginAttempt,
        others: bool,
        warned: &BTreeSet<String>,
        key: &TestKey,
    ) {
        if warned.contains("PAM_NOT_EVALUATED") && self.case.mentions("pam") {
            return self.verdict.excuses.push("PAM_NOT_EVALUATED");
        }
        if warned.contains("SOURCE_LIMITED") {
            // The warning excuses the key only if some source has access.
            if self.accepts_key_from_named_source(key) {
                return self.verdict.excuses.push("SOURCE_LIMITED");
            }
        }
        // A second try: on a busy machine the first login may fail without a fault of the agent.
        if self.login_with_key(key, false).let_in {
            return;
        }
        self.add_finding(if others { FindingKind::KeyRefused } else { FindingKind::LockedOut }, result, seen);
    }

    /// Whether the key gives access from a source that a rule names.
    fn accepts_key_from_named_source(&mut self, key: &TestKey) -> bool {
        let named = LoginTarget { from: Some("198.51.100.7".into()), ..self.default_target() };
        let own = if self.row.to.contains(':') { "::1" } else { "127.0.0.1" };
        let loopback = LoginTarget { from: Some(own.into()), to: own.into(), ..self.default_target() };
        [named, loopback].iter().any(|way| self.try_login_at(way, Credential::Key(&key.private), &[]).let_in)
    }

    /// Applies a command with `yes`. Returns the logins that work after it.
    fn apply_and_check_yes(&mut self, command: &Value, key: &TestKey, before: Ways) -> Ways {
        let files = self.take_snapshot();
        let Some(result) = self.apply_command(command) else { return before };
        if result["status"] != "succeeded" {
            self.check_failure(&result, &files, key, before, false);
            return before;
        }
        self.is_bound = true;
        let warned = collect_warning_reasons(&result);
        let after =
            self.probe_selected_logins(key, true, before.own || self.case.mentions("@OTHER_KEY@"), true);
        if !self.case.has_unread_edits() {
            self.check_logins_kept(before, after, &result);
        }
        let excuses = ["KEY_NOT_USABLE", "SOURCE_LIMITED", "PAM_NOT_EVALUATED", "RESTRICTED_COPY"];
        // Edits that sshd has not read may be the cause, and may stay unread.
        if self.case.has_unread_edits() {
            return after;
        }
        if !after.key && !excuses.iter().any(|excuse| warned.contains(*excuse)) {
            self.add_finding(FindingKind::MissingWarning, &result, &empty_login_attempt());
        }
        if after.is_key_unrestricted
            && warned.contains("KEY_NOT_USABLE")
            && self.has_single_listener()
            && !self.case.mentions("ChrootDirectory")
        {
            self.add_finding(FindingKind::FalseRefusal, &result, &empty_login_attempt());
        }
        after
    }

    fn check_failure(
        &mut self,
        result: &Value,
        files: &Snapshot,
        key: &TestKey,
        before: Ways,
        is_plain: bool,
    ) {
        if let Some(difference) = files.describe_changes(&self.take_snapshot()) {
            let text = format!("{}: {difference}", summarize_result(result));
            self.verdict.findings.push(Finding { kind: FindingKind::StateChanged, text });
        }
        let mut after = self.probe_selected_logins(key, before.key, before.own, before.password);
        if before.has_login_missing_in(after) {
            after = self.probe_selected_logins(key, before.key, before.own, before.password);
        }
        self.check_logins_kept(before, after, result);
        let is_lockout =
            result["reason"] == "LOCKOUT_GUARD" && self.case.course != CommandPlan::SetPasswordNo;
        // A test from outside cannot know whether a user can work below a ChrootDirectory, so the refusal is right.
        let is_known = before.is_key_unrestricted
            && after.key
            && !self.case.has_unread_edits()
            && self.has_single_listener()
            && !self.case.mentions("ChrootDirectory");
        if is_plain && is_lockout && is_known {
            self.add_finding(FindingKind::FalseRefusal, result, &empty_login_attempt());
        }
    }

    /// Every login that worked before must work now.
    fn check_logins_kept(&mut self, before: Ways, after: Ways, result: &Value) {
        let ways = [
            ("the key", before.key, after.key),
            ("the own key", before.own, after.own),
            ("the password", before.password, after.password),
            ("nothing at all", before.nothing, after.nothing),
        ];
        for (what, was, is) in ways {
            if was && !is {
                let text = format!("{what} let in and does not: {}", summarize_result(result));
                self.verdict.findings.push(Finding { kind: FindingKind::LoginLost, text });
            }
        }
        if before.any() && !after.any() {
            self.log_line("nobody gets in any more");
        }
    }

    /// The logins that work before any command. The judge does not try a key that is in no file.
    fn probe_logins(&mut self, key: &TestKey) -> Ways {
        let (is_key_there, is_own_there) = (self.case.mentions("@KEY@"), self.case.mentions("@OTHER_KEY@"));
        self.probe_selected_logins(key, is_key_there, is_own_there, true)
    }

    fn probe_selected_logins(
        &mut self,
        key: &TestKey,
        also_key: bool,
        also_own: bool,
        also_password: bool,
    ) -> Ways {
        let mut ways = Ways::default();
        if also_key {
            let seen = self.login_with_key(key, true);
            ways.key = seen.let_in;
            ways.is_key_unrestricted = seen.let_in && !is_pty_refused(&seen);
        }
        ways.own = also_own && self.login_with_own_key().let_in;
        ways.password = also_password && self.try_login(Credential::Password, &[]).let_in;
        ways.nothing = self.allows_empty_password() && self.try_login(Credential::None, &[]).let_in;
        ways
    }

    /// Whether the judge's observations at one port over IPv4 are valid for the other port and for IPv6 too.
    fn has_single_listener(&self) -> bool {
        let two_ports = self.case.mentions("LocalPort") && self.case.mentions("2222");
        !two_ports && !self.case.mentions("0.0.0.0/0")
    }

    fn allows_empty_password(&self) -> bool {
        self.case.mentions("PermitEmptyPasswords yes") && self.case.mentions("@USER@::/'")
    }

    /// A client that requires a terminal exits if it gets none. Then a second try without a terminal shows whether
    /// sshd accepts the key.
    fn login_with_key(&mut self, key: &TestKey, with_terminal: bool) -> LoginAttempt {
        let with = Credential::Key(&key.private);
        let seen = self.try_login(with, if with_terminal { &["-tt"] } else { &[] });
        if seen.let_in || !is_pty_refused(&seen) {
            return seen;
        }
        let mut without = self.try_login(with, &[]);
        without.said = format!("{NO_TERMINAL}\n{}", without.said);
        without
    }

    fn login_with_own_key(&mut self) -> LoginAttempt {
        let lab = self.lab;
        self.try_login(Credential::Key(&lab.other.private), &[])
    }

    fn try_login(&mut self, with: Credential<'_>, words: &[&str]) -> LoginAttempt {
        let way = self.default_target();
        self.try_login_at(&way, with, words)
    }

    /// sshd may drop a connection right after a reload, so such a login is tried again.
    fn try_login_at(&mut self, way: &LoginTarget, with: Credential<'_>, words: &[&str]) -> LoginAttempt {
        let mut words = words.to_vec();
        if self.case.mentions("KexAlgorithms") {
            words.extend(["-o", "KexAlgorithms=curve25519-sha256,ecdh-sha2-nistp256"]);
        }
        let mut seen = login_with_options(self.lab, &self.guest, way, with, &words);
        for _ in 0..3 {
            self.verdict.logins += 1;
            if seen.answered {
                break;
            }
            std::thread::sleep(Duration::from_millis(150));
            seen = login_with_options(self.lab, &self.guest, way, with, &words);
        }
        let end: Vec<&str> = seen.said.lines().rev().take(2).collect();
        self.log_line(&format!("login {with:?} {words:?}: {} ({})", seen.let_in, end.join(" / ")));
        seen
    }

    fn default_target(&self) -> LoginTarget {
        let MatrixCase { user, to, port, .. } = self.row;
        LoginTarget { user: user.clone(), from: None, to: to.clone(), port: *port }
    }

    fn apply_command(&mut self, command: &Value) -> Option<Value> {
        let output = self.guest.run_agent(&["timeout", "90"], &["apply", "-"], &command.to_string());
        let Ok(result) = serde_json::from_slice::<Value>(&output.stdout) else {
            let text = combined_output(&output);
            self.verdict.findings.push(Finding { kind: FindingKind::NoResult, text });
            self.verdict.end = "no result".into();
            return None;
        };
        self.log_line(&format!("{}: {result}", command["action"]));
        self.verdict.end = result["reason"].as_str().unwrap_or("succeeded").to_owned();
        Some(result)
    }

    fn take_snapshot(&self) -> Snapshot {
        Snapshot::capture(&self.guest, &self.row.home(), &self.row.keeps)
    }

    fn add_finding(&mut self, kind: FindingKind, result: &Value, seen: &LoginAttempt) {
        let end: Vec<&str> = seen.said.lines().rev().take(2).collect();
        let text = format!("{} ({})", summarize_result(result), end.join(" / "));
        self.verdict.findings.push(Finding { kind, text });
    }

    fn log_line(&mut self, what: &str) {
        self.verdict.story += &format!("{what}\n");
    }
}

fn empty_login_attempt() -> LoginAttempt {
    LoginAttempt { answered: true, offers: BTreeSet::new(), let_in: false, said: String::new() }
}

/// Whether sshd refused a terminal in this session.
fn is_pty_refused(seen: &LoginAttempt) -> bool {
    seen.said.contains(NO_TERMINAL)
}

fn collect_warning_reasons(result: &Value) -> BTreeSet<String> {
    let all = result["warnings"].as_array().into_iter().flatten();
    all.filter_map(|warning| warning["reason"].as_str()).map(str::to_owned).collect()
}

fn summarize_result(result: &Value) -> String {
    let warned: Vec<String> = collect_warning_reasons(result).into_iter().collect();
    let reason = result["reason"].as_str().unwrap_or("succeeded");
    format!("{reason} {:?} {warned:?}", result["message"].as_str().unwrap_or_default())
}
