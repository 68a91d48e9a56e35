//! The judge: real logins before and after each command, and nothing that the agent says but its status and warnings.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::matrix_support::client::{Seen, Way, With, login_with};
use crate::matrix_support::guest::{Guest, both};
use crate::matrix_support::lab::Lab;
use crate::matrix_support::row::Row;
use crate::matrix_support::snapshot::Snapshot;
use crate::support::{Key, attach, detach, set_password_auth, with};

use super::case::{Case, Course};

/// What a client says that gets no terminal.
const NO_TERMINAL: &str = "PTY allocation request failed";

/// A promise that was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `succeeded`, and neither the key nor a password nor another key lets in.
    LockedOut,
    /// `succeeded`, the key does not let in, another key does.
    KeyRefused,
    /// `succeeded`, and the key's session is a restricted one.
    Restricted,
    /// `succeeded`, and a password lets in.
    PasswordOpen,
    /// `succeeded`, and the user's own key, which let in, does not.
    OwnKeyLost,
    /// `succeeded` with `replace` or a detach, and the old key lets in without a warning.
    OldKeyLetsIn,
    /// `failed`, and a byte, mode or owner is another.
    NotAsBefore,
    /// `failed`, or `succeeded` with `yes`, and what let in does not.
    WayLost,
    /// `succeeded` with `yes`, and the key does not let in without a warning.
    NotSaid,
    /// `PAM_NOT_EVALUATED`, and PAM's rules are the distribution's.
    Unjustified,
    /// `LOCKOUT_GUARD`, although the key let in unrestricted before the command.
    FalseRefusal,
    /// No result at all.
    NoResult,
}

#[derive(Debug, Clone)]
pub struct Finding {
    pub kind: Kind,
    pub text: String,
}

/// What became of a case.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Why it could not be tried.
    pub skipped: Option<String>,
    /// The last result in a word.
    pub end: String,
    pub findings: Vec<Finding>,
    /// What the warnings of a result excused.
    pub excuses: Vec<&'static str>,
    /// Everything, for a person.
    pub story: String,
    pub logins: usize,
}

/// Who gets in.
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

    /// Whether one of them let in that does not.
    fn is_more_than(self, other: Self) -> bool {
        (self.key && !other.key)
            || (self.own && !other.own)
            || (self.password && !other.password)
            || (self.nothing && !other.nothing)
    }
}

struct Judge<'a> {
    lab: &'a Lab,
    case: &'a Case,
    row: &'a Row,
    guest: Guest<'a>,
    /// Whether the first attach succeeded: a key that was never bound is not taken away by a replace.
    is_bound: bool,
    verdict: Verdict,
}

/// Tries a case in a guest of its own.
pub fn run(lab: &Lab, case: &Case) -> Verdict {
    let row = case.row();
    let guest = match Guest::new(lab, &row) {
        Ok(guest) => guest,
        Err(error) => return Verdict { skipped: Some(error), ..Verdict::default() },
    };
    let mut judge = Judge { lab, case, row: &row, guest, is_bound: false, verdict: Verdict::default() };
    judge.tell(&format!("{}\nsshd_config:\n{}", case, row.files["/etc/ssh/sshd_config"]));
    judge.course();
    let log = judge.guest.log();
    judge.tell(&format!("sshd's log:\n{log}"));
    judge.verdict
}

impl Judge<'_> {
    fn course(&mut self) {
        let lab = self.lab;
        let (k, l) = (lab.key(self.row.key), &lab.second);
        let before = self.look(k);
        match self.case.course {
            Course::No => drop(self.no(&attach("fuzz", k, "no"), k, None, before)),
            Course::NoThenDetach => {
                if self.no(&attach("fuzz", k, "no"), k, None, before) && self.between() {
                    self.detach(k);
                }
            }
            Course::SetPasswordNo => drop(self.no(&set_password_auth("no"), k, None, before)),
            Course::YesThenNo => {
                let now = self.yes(&attach("fuzz", k, "yes"), k, before);
                if let Some(now) = self.after_between(k, now) {
                    self.no(&attach("fuzz", k, "no"), k, None, now);
                }
            }
            Course::YesThenReplace => {
                let now = self.yes(&attach("fuzz", k, "yes"), k, before);
                let command = with(attach("other", l, "no"), "replace", json!(true));
                if let Some(now) = self.after_between(k, now) {
                    if self.is_bound {
                        self.no(&command, l, Some(k), now);
                    } else {
                        // The first attach failed, and what was looked at is another key than this one's.
                        let now = self.look_at(l, true, self.case.has("@OTHER_KEY@"), true);
                        self.no(&command, l, None, now);
                    }
                }
            }
        }
    }

    /// What somebody does between two commands; whether it could be done.
    fn between(&mut self) -> bool {
        let Some(script) = self.case.between() else { return true };
        let done = self.guest.shell(&script);
        self.tell(&format!("between the commands: {done:?}"));
        done.is_ok()
    }

    /// Who gets in after that; nobody knows where it could not be done.
    fn after_between(&mut self, key: &Key, now: Ways) -> Option<Ways> {
        if self.case.between().is_none() {
            return Some(now);
        }
        self.between().then(|| self.look_at(key, true, self.case.has("@OTHER_KEY@"), true))
    }

    /// A key that was taken back lets nobody in, unless the result says where it still stands.
    fn detach(&mut self, key: &Key) {
        let files = self.snapshot();
        let Some(result) = self.apply(&detach("fuzz")) else { return };
        if result["status"] != "succeeded" {
            if let Some(difference) = files.difference(&self.snapshot()) {
                let text = format!("{}: {difference}", brief(&result));
                self.verdict.findings.push(Finding { kind: Kind::NotAsBefore, text });
            }
            return;
        }
        let seen = self.with_key(key, false);
        if seen.let_in && !warnings(&result).contains("KEY_STILL_PRESENT") {
            self.find(Kind::OldKeyLetsIn, &result, &seen);
        }
    }

    /// A command with `no`; `old` is the key that it takes away. Whether it succeeded.
    fn no(&mut self, command: &Value, key: &Key, old: Option<&Key>, before: Ways) -> bool {
        let files = self.snapshot();
        let Some(result) = self.apply(command) else { return false };
        if result["status"] != "succeeded" {
            self.failed(&result, &files, old.unwrap_or(key), before, old.is_none());
            return false;
        }
        let is_set_only = command["action"] == "setPasswordAuth";
        let warned = warnings(&result);
        let seen = self.with_key(key, true);
        let own = self.case.has("@OTHER_KEY@").then(|| self.see_own());
        let own_lets_in = own.as_ref().is_some_and(|seen| seen.let_in);
        let password = self.see(With::Password, &[]);
        let empty = self.is_empty_possible().then(|| self.see(With::Nothing, &[]));
        if password.let_in || empty.as_ref().is_some_and(|seen| seen.let_in) {
            self.find(Kind::PasswordOpen, &result, &password);
        }
        let lets_in = if is_set_only { seen.let_in || own_lets_in } else { seen.let_in };
        if !lets_in {
            let whose = if is_set_only { &self.lab.other } else { key };
            self.refused(&result, &seen, own_lets_in || password.let_in, &warned, whose);
        } else if !is_set_only && is_restricted(&seen) {
            self.find(Kind::Restricted, &result, &seen);
        }
        if before.own && !own_lets_in && !self.case.is_pending() {
            let seen = own.unwrap_or(seen);
            self.find(Kind::OwnKeyLost, &result, &seen);
        }
        if let Some(old) = old
            && !warned.contains("KEY_STILL_PRESENT")
        {
            let seen = self.with_key(old, false);
            if seen.let_in {
                self.find(Kind::OldKeyLetsIn, &result, &seen);
            }
        }
        if lets_in && warned.contains("PAM_NOT_EVALUATED") && !self.case.has("pam") {
            self.find(Kind::Unjustified, &result, &seen_nothing());
        }
        true
    }

    /// The key does not let in after a `succeeded`.
    fn refused(&mut self, result: &Value, seen: &Seen, others: bool, warned: &BTreeSet<String>, key: &Key) {
        if warned.contains("PAM_NOT_EVALUATED") && self.case.has("pam") {
            return self.verdict.excuses.push("PAM_NOT_EVALUATED");
        }
        if warned.contains("SOURCE_LIMITED") {
            // From nowhere at all is no limit.
            if self.lets_in_from_elsewhere(key) {
                return self.verdict.excuses.push("SOURCE_LIMITED");
            }
        }
        // A machine that is short of time is no fault of the agent's.
        if self.with_key(key, false).let_in {
            return;
        }
        self.find(if others { Kind::KeyRefused } else { Kind::LockedOut }, result, seen);
    }

    /// From a source that a rule names.
    fn lets_in_from_elsewhere(&mut self, key: &Key) -> bool {
        let named = Way { from: Some("198.51.100.7".into()), ..self.way() };
        let own = if self.row.to.contains(':') { "::1" } else { "127.0.0.1" };
        let loopback = Way { from: Some(own.into()), to: own.into(), ..self.way() };
        [named, loopback].iter().any(|way| self.see_on(way, With::Key(&key.private), &[]).let_in)
    }

    /// A command with `yes`; who gets in then.
    fn yes(&mut self, command: &Value, key: &Key, before: Ways) -> Ways {
        let files = self.snapshot();
        let Some(result) = self.apply(command) else { return before };
        if result["status"] != "succeeded" {
            self.failed(&result, &files, key, before, false);
            return before;
        }
        self.is_bound = true;
        let warned = warnings(&result);
        let after = self.look_at(key, true, before.own || self.case.has("@OTHER_KEY@"), true);
        if !self.case.is_pending() {
            self.hold(before, after, &result);
        }
        let excuses = ["KEY_NOT_USABLE", "SOURCE_LIMITED", "PAM_NOT_EVALUATED", "RESTRICTED_COPY"];
        // What sshd has not read may be the reason, and may go on being unread.
        if self.case.is_pending() {
            return after;
        }
        if !after.key && !excuses.iter().any(|excuse| warned.contains(*excuse)) {
            self.find(Kind::NotSaid, &result, &seen_nothing());
        }
        if after.is_key_unrestricted
            && warned.contains("KEY_NOT_USABLE")
            && self.is_one_door()
            && !self.case.has("ChrootDirectory")
        {
            self.find(Kind::FalseRefusal, &result, &seen_nothing());
        }
        after
    }

    fn failed(&mut self, result: &Value, files: &Snapshot, key: &Key, before: Ways, is_plain: bool) {
        if let Some(difference) = files.difference(&self.snapshot()) {
            let text = format!("{}: {difference}", brief(result));
            self.verdict.findings.push(Finding { kind: Kind::NotAsBefore, text });
        }
        let mut after = self.look_at(key, before.key, before.own, before.password);
        if before.is_more_than(after) {
            after = self.look_at(key, before.key, before.own, before.password);
        }
        self.hold(before, after, result);
        let is_lockout = result["reason"] == "LOCKOUT_GUARD" && self.case.course != Course::SetPasswordNo;
        // Whether a user can work below a ChrootDirectory nobody can tell from outside: a refusal is right.
        let is_known = before.is_key_unrestricted
            && after.key
            && !self.case.is_pending()
            && self.is_one_door()
            && !self.case.has("ChrootDirectory");
        if is_plain && is_lockout && is_known {
            self.find(Kind::FalseRefusal, result, &seen_nothing());
        }
    }

    /// What let in lets in.
    fn hold(&mut self, before: Ways, after: Ways, result: &Value) {
        let ways = [
            ("the key", before.key, after.key),
            ("the own key", before.own, after.own),
            ("the password", before.password, after.password),
            ("nothing at all", before.nothing, after.nothing),
        ];
        for (what, was, is) in ways {
            if was && !is {
                let text = format!("{what} let in and does not: {}", brief(result));
                self.verdict.findings.push(Finding { kind: Kind::WayLost, text });
            }
        }
        if before.any() && !after.any() {
            self.tell("nobody gets in any more");
        }
    }

    /// What lets in before any command. A key that stands nowhere is not tried.
    fn look(&mut self, key: &Key) -> Ways {
        let (is_key_there, is_own_there) = (self.case.has("@KEY@"), self.case.has("@OTHER_KEY@"));
        self.look_at(key, is_key_there, is_own_there, true)
    }

    fn look_at(&mut self, key: &Key, also_key: bool, also_own: bool, also_password: bool) -> Ways {
        let mut ways = Ways::default();
        if also_key {
            let seen = self.with_key(key, true);
            ways.key = seen.let_in;
            ways.is_key_unrestricted = seen.let_in && !is_restricted(&seen);
        }
        ways.own = also_own && self.see_own().let_in;
        ways.password = also_password && self.see(With::Password, &[]).let_in;
        ways.nothing = self.is_empty_possible() && self.see(With::Nothing, &[]).let_in;
        ways
    }

    /// Whether what the judge sees at one port and over IPv4 holds for the other port and for IPv6 too.
    fn is_one_door(&self) -> bool {
        let two_ports = self.case.has("LocalPort") && self.case.has("2222");
        !two_ports && !self.case.has("0.0.0.0/0")
    }

    fn is_empty_possible(&self) -> bool {
        self.case.has("PermitEmptyPasswords yes") && self.case.has("@USER@::/'")
    }

    /// A client that insists on a terminal ends where it gets none: whether it is let in is then seen without one.
    fn with_key(&mut self, key: &Key, with_terminal: bool) -> Seen {
        let with = With::Key(&key.private);
        let seen = self.see(with, if with_terminal { &["-tt"] } else { &[] });
        if seen.let_in || !is_restricted(&seen) {
            return seen;
        }
        let mut without = self.see(with, &[]);
        without.said = format!("{NO_TERMINAL}\n{}", without.said);
        without
    }

    fn see_own(&mut self) -> Seen {
        let lab = self.lab;
        self.see(With::Key(&lab.other.private), &[])
    }

    fn see(&mut self, with: With<'_>, words: &[&str]) -> Seen {
        let way = self.way();
        self.see_on(&way, with, words)
    }

    /// Right after a reload a connection may be cut: that is tried again.
    fn see_on(&mut self, way: &Way, with: With<'_>, words: &[&str]) -> Seen {
        let mut words = words.to_vec();
        if self.case.has("KexAlgorithms") {
            words.extend(["-o", "KexAlgorithms=curve25519-sha256,ecdh-sha2-nistp256"]);
        }
        let mut seen = login_with(self.lab, &self.guest, way, with, &words);
        for _ in 0..3 {
            self.verdict.logins += 1;
            if seen.answered {
                break;
            }
            std::thread::sleep(Duration::from_millis(150));
            seen = login_with(self.lab, &self.guest, way, with, &words);
        }
        let end: Vec<&str> = seen.said.lines().rev().take(2).collect();
        self.tell(&format!("login {with:?} {words:?}: {} ({})", seen.let_in, end.join(" / ")));
        seen
    }

    fn way(&self) -> Way {
        let Row { user, to, port, .. } = self.row;
        Way { user: user.clone(), from: None, to: to.clone(), port: *port }
    }

    fn apply(&mut self, command: &Value) -> Option<Value> {
        let output = self.guest.agent(&["timeout", "90"], &["apply", "-"], &command.to_string());
        let Ok(result) = serde_json::from_slice::<Value>(&output.stdout) else {
            let text = both(&output);
            self.verdict.findings.push(Finding { kind: Kind::NoResult, text });
            self.verdict.end = "no result".into();
            return None;
        };
        self.tell(&format!("{}: {result}", command["action"]));
        self.verdict.end = result["reason"].as_str().unwrap_or("succeeded").to_owned();
        Some(result)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.guest, &self.row.home(), &self.row.keeps)
    }

    fn find(&mut self, kind: Kind, result: &Value, seen: &Seen) {
        let end: Vec<&str> = seen.said.lines().rev().take(2).collect();
        let text = format!("{} ({})", brief(result), end.join(" / "));
        self.verdict.findings.push(Finding { kind, text });
    }

    fn tell(&mut self, what: &str) {
        self.verdict.story += &format!("{what}\n");
    }
}

fn seen_nothing() -> Seen {
    Seen { answered: true, offers: BTreeSet::new(), let_in: false, said: String::new() }
}

/// A session that sshd gives no terminal.
fn is_restricted(seen: &Seen) -> bool {
    seen.said.contains(NO_TERMINAL)
}

fn warnings(result: &Value) -> BTreeSet<String> {
    let all = result["warnings"].as_array().into_iter().flatten();
    all.filter_map(|warning| warning["reason"].as_str()).map(str::to_owned).collect()
}

fn brief(result: &Value) -> String {
    let warned: Vec<String> = warnings(result).into_iter().collect();
    let reason = result["reason"].as_str().unwrap_or("succeeded");
    format!("{reason} {:?} {warned:?}", result["message"].as_str().unwrap_or_default())
}
