//! Compares sshd's answers with the request, and applies the lockout guard (KP-6.7 and KP-6.19).

use super::super::authorized_keys::{filter_admitting_lines, parse_key_lines};
use super::super::edit::{FileEdit, FileKind};
use super::super::foreign::sanitize_text;
use super::super::lockout::is_nologin_shell;
use super::super::observation::{LocalAccount, ReloadMethod, Sshd, SshdAnswer};
use super::super::outcome::{Reason, Refusal, TrialReport, Warning, WarningReason};
use super::super::password;
use super::super::proof::{ExpectedProbe, ProbePlan};
use super::super::public_key::PublicKey;
use super::super::sources;
use super::super::sshd_config::{self, KbdInteractive, ParsedConfig};
use super::super::trial::{PlannedKeyFile, TrialOutcome, TrialRequest};
use super::super::types::PasswordAuth;
use super::super::witness::{self, MatchSample};
use super::key_trial::{KeyAccess, KeyTrial, KeyTrialResult, TrialRunner, trial_unavailable_message};
use super::{DraftPlan, Plan, PlanInputs, PlanRequest, SshdAnswers};

/// The maximum number of the user's own keys that a trial tests.
const MAX_TRIAL_KEYS: usize = 6;

/// The maximum number of account names in one warning.
const MAX_LISTED_ACCOUNTS: usize = 10;

impl DraftPlan {
    /// Returns the plan if sshd's answers, the guard and the trial allow it. `answers` are the answers to
    /// [`DraftPlan::sshd_queries`]. `ask` runs the trial with a private sshd.
    ///
    /// # Errors
    /// `PASSWORD_AUTH_NOT_EFFECTIVE` and `LOCKOUT_GUARD`.
    pub fn evaluate(
        mut self,
        purpose: &PlanRequest<'_>,
        facts: &PlanInputs,
        answers: SshdAnswers,
        ask: &mut TrialRunner<'_>,
    ) -> Result<Plan, PlanRefusal> {
        let expect = purpose.action.password_auth();
        let mut key_evaluation = KeyEvaluation::default();
        let mut proof = None;
        let mut unread = false;
        if let (Some(password_auth), Some(sshd)) = (expect, &facts.sshd) {
            check_sshd_password_auth(password_auth, purpose.kbd_interactive, facts, sshd, &answers.required)?;
            let replaces = self.takes_away.is_some();
            let access = AccessContext {
                purpose,
                facts,
                sshd,
                config: ParsedConfig::from_sshd(sshd),
                replaces_bound_key: replaces,
            };
            key_evaluation = self.evaluate_keys(&access, &answers, password_auth, ask)?;
            self.warnings.append(&mut key_evaluation.warnings);
            if facts.login.is_some() {
                self.warnings.extend(access.access_warnings(&answers, password_auth));
            }
            // If nothing changes, there is nothing to prove, unless the listener may use older settings than those in
            // its files.
            let changes = !self.key_edits.is_empty() || !self.sshd_edits.is_empty();
            let is_due = changes || sshd.has_read_its_files == Some(false);
            if is_due && purpose.proof {
                proof = Some(access.probe_plan(
                    &answers,
                    key_evaluation.key.as_ref(),
                    key_evaluation.accepts_at_loopback,
                ));
            }
            let depends = password_auth == PasswordAuth::No || replaces;
            unread = depends && self.sshd_edits.is_empty() && may_run_stale_config(sshd, replaces);
        }
        let labels = self.plan_labels(purpose, facts, key_evaluation.report.as_ref())?;
        self.warnings.extend(labels.warnings);
        let about_others = self.other_users_warnings(purpose, facts, &answers);
        self.warnings.extend(about_others);
        let reload =
            facts.sshd.as_ref().filter(|_| !self.sshd_edits.is_empty()).map(|sshd| sshd.reload.clone());
        Ok(Plan {
            key_edits: self.key_edits,
            sshd_edits: self.sshd_edits,
            key_labels: labels.key_files,
            sshd_labels: labels.config,
            decisive_key_file: labels.decisive,
            reload,
            unread,
            proof,
            deferred_trial: key_evaluation.deferred,
            trial: key_evaluation.report,
            expect,
            binding: self.binding,
            unbound: self.unbound,
            already: self.already,
            answers: answers.required,
            warnings: self.warnings,
        })
    }

    /// Checks that the key of the command, or one of the user's keys, lets the user in. The agent does this before it
    /// turns passwords off, and before it removes the key that lets the user in (KP-10.1).
    fn evaluate_keys(
        &self,
        access: &AccessContext<'_>,
        answers: &SshdAnswers,
        password_auth: PasswordAuth,
        ask: &mut TrialRunner<'_>,
    ) -> Result<KeyEvaluation, PlanRefusal> {
        let key_files = self.planned_key_files();
        let trial = access.build_key_trial(&key_files, self.ahead.as_deref().unwrap_or_default(), answers);
        let evaluation = match (access.purpose.action.public_key(), password_auth) {
            (Some(key), PasswordAuth::No) => access.require_key(&trial, key, ask)?,
            (Some(key), PasswordAuth::Yes) => self.evaluate_optional_key(access, &trial, key, ask)?,
            (None, PasswordAuth::No) => access.require_any_key(&trial, ask)?,
            (None, PasswordAuth::Yes) => return Ok(KeyEvaluation::default()),
        };
        Ok(access.add_loopback_answer(evaluation, &trial, answers, ask))
    }

    /// Checks the key of a command with `yes`. It must let the user in only if it replaces a working key and no
    /// password login is left.
    fn evaluate_optional_key(
        &self,
        access: &AccessContext<'_>,
        trial: &KeyTrial<'_>,
        key: &PublicKey,
        ask: &mut TrialRunner<'_>,
    ) -> Result<KeyEvaluation, PlanRefusal> {
        let password_login_remains = access.is_password_login_left(trial.answers);
        let removed_key = self.takes_away.as_ref().filter(|_| !password_login_remains);
        if removed_key.is_none() && !access.purpose.asks_for_yes {
            return Ok(KeyEvaluation::default());
        }
        let verdict = trial.evaluate_key(key, ask);
        let is_accepted = matches!(verdict.access, KeyAccess::Granted) && !key.is_security_key();
        if let Some(removed_key) = removed_key.filter(|_| !is_accepted) {
            let present = KeyTrial { key_files: &[], ahead: "", ..*trial };
            let lets_in_now = !matches!(present.evaluate_key(removed_key, ask).access, KeyAccess::Denied(_));
            if lets_in_now {
                return access.require_access(key, verdict);
            }
        }
        let mut warnings = verdict.warnings;
        if let KeyAccess::Denied(finding) = &verdict.access {
            let warning = Warning::new(WarningReason::KeyNotUsable, finding.message.clone());
            warnings = vec![match &finding.file {
                Some(file) => warning.with_location(file, finding.line),
                None => Warning { line: finding.line, ..warning },
            }];
        }
        let accepts = match verdict.access {
            KeyAccess::Granted => Some(true),
            KeyAccess::Denied(_) => Some(false),
            KeyAccess::Deferred(_) | KeyAccess::Unknown(_) => None,
        };
        Ok(KeyEvaluation {
            report: verdict.report,
            warnings,
            key: Some(key.clone()),
            accepts,
            accepts_at_loopback: None,
            deferred: None,
        })
    }

    /// Returns the key files that this command changes, with their new content.
    pub(super) fn planned_key_files(&self) -> Vec<PlannedKeyFile> {
        let planned = |edit: &FileEdit| match (&edit.kind, &edit.after) {
            (FileKind::AuthorizedKeys { user, .. }, Some(content)) => {
                Some(PlannedKeyFile { path: edit.path.clone(), user: user.clone(), content: content.clone() })
            }
            _ => None,
        };
        self.key_edits.iter().filter_map(planned).collect()
    }
}

/// The refusal of a command, with the trial's result up to that point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRefusal {
    /// The reason.
    pub refusal: Refusal,
    /// The answer of the private sshd, if the agent ran a trial.
    pub trial: Option<Box<TrialReport>>,
}

impl From<Refusal> for PlanRefusal {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, trial: None }
    }
}

/// The results about the keys that a command depends on.
#[derive(Debug, Clone, Default)]
struct KeyEvaluation {
    /// The trial's part of the command result.
    report: Option<TrialReport>,
    /// Warnings for the owner.
    warnings: Vec<Warning>,
    /// The key that the proof offers to the running sshd.
    key: Option<PublicKey>,
    /// Whether sshd accepts the key from an address that no rule names. `None` if this is unknown.
    accepts: Option<bool>,
    /// Whether sshd accepts the key from loopback.
    accepts_at_loopback: Option<bool>,
    /// The query for a private sshd after the key is in place.
    deferred: Option<TrialRequest>,
}

/// All facts that decide who can log in.
struct AccessContext<'a> {
    purpose: &'a PlanRequest<'a>,
    facts: &'a PlanInputs,
    sshd: &'a Sshd,
    config: ParsedConfig,
    /// Whether the command removes a bound key.
    replaces_bound_key: bool,
}

impl AccessContext<'_> {
    fn build_key_trial<'t>(
        &'t self,
        key_files: &'t [PlannedKeyFile],
        ahead: &'t str,
        answers: &'t SshdAnswers,
    ) -> KeyTrial<'t> {
        KeyTrial {
            facts: self.facts,
            config: &self.config,
            ahead,
            key_files,
            answers: &answers.required,
            witnesses: &answers.witnesses,
            binds_key: self.purpose.action.public_key().is_some(),
        }
    }

    /// Runs the guard and the trial for the key, and refuses the command if the key does not let the user in.
    fn require_key(
        &self,
        trial: &KeyTrial<'_>,
        key: &PublicKey,
        ask: &mut TrialRunner<'_>,
    ) -> Result<KeyEvaluation, PlanRefusal> {
        let verdict = trial.evaluate_key(key, ask);
        self.require_access(key, verdict)
    }

    /// Refuses the command unless the trial's result is that the key lets the user in.
    fn require_access(&self, key: &PublicKey, verdict: KeyTrialResult) -> Result<KeyEvaluation, PlanRefusal> {
        let KeyTrialResult { report, access, warnings } = verdict;
        let refuse = |message: String| PlanRefusal {
            refusal: Refusal::new(Reason::LockoutGuard, message),
            trial: report.clone().map(Box::new),
        };
        let deferred = match access {
            KeyAccess::Denied(finding) => return Err(refuse(finding.message)),
            KeyAccess::Granted | KeyAccess::Deferred(_) | KeyAccess::Unknown(_) if key.is_security_key() => {
                return Err(refuse(format!(
                    "the public half of a security key ({}) cannot tell whether sshd accepts its signatures (touch, PIN), \
                     so it may be no way in; attach it with passWordAuth `yes`",
                    key.algorithm()
                )));
            }
            KeyAccess::Unknown(why) => return Err(refuse(trial_unavailable_message(&why))),
            KeyAccess::Deferred(_) if self.replaces_bound_key => {
                return Err(refuse(trial_unavailable_message(
                    "the new key cannot be shown to a private sshd before the old one is taken away",
                )));
            }
            KeyAccess::Deferred(question) => Some(question),
            KeyAccess::Granted => None,
        };
        if report.as_ref().is_some_and(|report| report.offers_method("password"))
            && self.purpose.action.password_auth() == Some(PasswordAuth::No)
        {
            let message = "with the new setting a private sshd still offers `password`, although `sshd -T` says no; see \
                           whether a Match block about hosts decides, and take the setting out of it";
            return Err(PlanRefusal {
                refusal: Refusal::new(Reason::PasswordAuthNotEffective, message),
                trial: report.map(Box::new),
            });
        }
        Ok(KeyEvaluation {
            report,
            warnings,
            key: Some(key.clone()),
            accepts: deferred.is_none().then_some(true),
            accepts_at_loopback: None,
            deferred,
        })
    }

    /// Checks that one of the user's keys lets the user in: the bound key, otherwise a key that sshd reads without
    /// options.
    fn require_any_key(
        &self,
        trial: &KeyTrial<'_>,
        ask: &mut TrialRunner<'_>,
    ) -> Result<KeyEvaluation, PlanRefusal> {
        let bound = self.purpose.binding.map(|binding| binding.key_pair.public_key.clone());
        let mut keys: Vec<PublicKey> = bound.into_iter().collect();
        let files = self.facts.key_files.iter();
        for line in files.flat_map(|(_, content)| filter_admitting_lines(parse_key_lines(content))) {
            if keys.len() == MAX_TRIAL_KEYS {
                break;
            }
            if !keys.contains(&line.key) {
                keys.push(line.key);
            }
        }
        let mut first = None;
        for key in &keys {
            match self.require_key(trial, key, ask) {
                Ok(evaluation) => return Ok(evaluation),
                Err(refusal) => {
                    first.get_or_insert(refusal);
                }
            }
        }
        Err(first.unwrap_or_else(|| self.no_key_refusal()))
    }

    fn no_key_refusal(&self) -> PlanRefusal {
        let user = &self.facts.account.name;
        let paths: Vec<String> =
            self.facts.key_files.iter().map(|(path, _)| path.display().to_string()).collect();
        Refusal::new(
            Reason::LockoutGuard,
            format!(
                "AuthorizedKeysFile: {} holds no key that could let {user} in; attach a key pair first",
                paths.join(", ")
            ),
        )
        .into()
    }

    /// Adds whether the running sshd should accept the key from loopback, if the proof connects from there.
    fn add_loopback_answer(
        &self,
        mut evaluation: KeyEvaluation,
        trial: &KeyTrial<'_>,
        answers: &SshdAnswers,
        ask: &mut TrialRunner<'_>,
    ) -> KeyEvaluation {
        evaluation.accepts_at_loopback = evaluation.accepts;
        let (Some(key), Some((_, loopback))) = (&evaluation.key, answers.loopback.first()) else {
            return evaluation;
        };
        if !self.purpose.proof || evaluation.accepts.is_none() || !sources::depends_on_address(&self.config) {
            return evaluation;
        }
        let question = TrialRequest {
            user: self.facts.account.name.clone(),
            key: key.clone(),
            ahead: trial.ahead.to_owned(),
            key_files: trial.key_files.to_vec(),
            connections: vec![loopback.connection.clone()],
            needs_addresses: true,
        };
        evaluation.accepts_at_loopback = match ask(&question).first() {
            Some(TrialOutcome::Accepted(_)) => Some(true),
            Some(TrialOutcome::Refused(_)) => Some(false),
            _ => None,
        };
        evaluation
    }

    /// Returns true if a password would let the target user in, for every connection in `answers`.
    fn is_password_login_left(&self, answers: &[SshdAnswer]) -> bool {
        let account = &self.facts.account;
        let Some(login) = &self.facts.login else { return false };
        answers.iter().all(|answer| password::can_log_in_with_password(login, account, &answer.effective))
    }

    fn access_warnings(&self, answers: &SshdAnswers, asked: PasswordAuth) -> Vec<Warning> {
        let mut warnings = Vec::new();
        match asked {
            PasswordAuth::No => {
                warnings.extend(self.password_still_allowed_warnings(answers));
                warnings.extend(self.kbd_interactive_left_warning(&answers.required));
                warnings.extend(self.password_only_accounts_warning());
            }
            PasswordAuth::Yes => warnings.extend(self.root_password_prohibited_warning(&answers.required)),
        }
        if !self.sshd.running && !self.sshd.is_awaited {
            let found = match &self.sshd.reload {
                ReloadMethod::None(found) => found.as_str(),
                ReloadMethod::Unit(_) | ReloadMethod::SocketUnit(_) | ReloadMethod::Pid { .. } => {
                    "no listener was found"
                }
            };
            let message = format!("sshd is not running: {found}");
            warnings.push(Warning::new(WarningReason::SshdNotRunning, message));
        }
        warnings.extend(self.second_sshd_warnings());
        warnings
    }

    /// Warns about connections that may still use a password: the witnesses and loopback.
    fn password_still_allowed_warnings(&self, answers: &SshdAnswers) -> Vec<Warning> {
        let loopback = answers.loopback.iter().map(|(_, answer)| {
            let witness = MatchSample {
                connection: answer.connection.clone(),
                groups: self.facts.account.groups.clone(),
                criteria: None,
                names_user: false,
                names_source: false,
                place: None,
            };
            (witness, answer.clone())
        });
        let all: Vec<(MatchSample, SshdAnswer)> = answers.witnesses.iter().cloned().chain(loopback).collect();
        let people = self.facts.login.as_ref().map_or(&[][..], |login| login.people.as_slice());
        witness::warn_passwords_allowed(&self.config, &all, people, self.purpose.kbd_interactive)
    }

    fn kbd_interactive_left_warning(&self, answers: &[SshdAnswer]) -> Option<Warning> {
        let is_left = self.purpose.kbd_interactive == KbdInteractive::Leave
            && answers
                .iter()
                .any(|a| a.effective.kbd_interactive_authentication() && a.effective.is_yes("usepam"));
        is_left.then(|| {
            Warning::new(
                WarningReason::KbdInteractiveLeft,
                "keyboard-interactive is left on (kbd_interactive = \"leave\") and may ask for the same password",
            )
        })
    }

    /// Warns about accounts that have a password and no key.
    fn password_only_accounts_warning(&self) -> Option<Warning> {
        let Some(login) = &self.facts.login else { return None };
        let is_password_only = |person: &&LocalAccount| {
            person.has_password
                && !person.has_key
                && person.account.name != self.facts.account.name
                && !is_nologin_shell(&person.account.shell)
        };
        let names: Vec<&str> =
            login.people.iter().filter(is_password_only).map(|person| person.account.name.as_str()).collect();
        let more = match names.len().saturating_sub(MAX_LISTED_ACCOUNTS) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let listed = names.iter().take(MAX_LISTED_ACCOUNTS).copied().collect::<Vec<_>>().join(", ");
        (!names.is_empty()).then(|| {
            Warning::new(
                WarningReason::PasswordOnlyAccounts,
                format!(
                    "these accounts have a password and no key of their own: {listed}{more}; give them keys"
                ),
            )
        })
    }

    /// Warns that `yes` lets other users log in with a password, but not root.
    fn root_password_prohibited_warning(&self, answers: &[SshdAnswer]) -> Option<Warning> {
        let answer = answers.iter().find(|answer| !answer.effective.is_yes("permitrootlogin"))?;
        if self.facts.account.uid != 0 {
            return None;
        }
        let said = answer.effective.value("permitrootlogin");
        let groups = Some(self.facts.account.groups.as_slice());
        let by = self.config.find_value_source("PermitRootLogin", said, &answer.connection, groups);
        let message = format!(
            "password login is on, but not for {}, because of {}; set `PermitRootLogin yes` there if it shall be",
            self.facts.account.name,
            by.describe("PermitRootLogin")
        );
        Some(by.add_place(Warning::new(WarningReason::RootPasswordProhibited, message)))
    }

    fn second_sshd_warnings(&self) -> impl Iterator<Item = Warning> {
        // If this is the only sshd, the remedy must not be to end it.
        let remedy = if self.sshd.running { "end it, or set it up by hand" } else { "set it up by hand" };
        self.sshd.others.iter().map(move |other| {
            let ports: Vec<String> = other.ports.iter().map(ToString::to_string).collect();
            let on = match ports.as_slice() {
                [] => String::new(),
                ports => format!(" on port {}", ports.join(", ")),
            };
            let message = format!(
                "another sshd (pid {}, `{}`) listens{on}: it is neither asked nor told, and takes what its own \
                 configuration says; {remedy}",
                other.pid,
                sanitize_text(&other.line)
            );
            Warning::new(WarningReason::SecondSshd, message)
        })
    }

    /// Builds the query for the running sshd and the expected answer (KP-10.13 and KP-10.14).
    fn probe_plan(
        &self,
        answers: &SshdAnswers,
        key: Option<&PublicKey>,
        accepts_key: Option<bool>,
    ) -> ProbePlan {
        let forecast = answers.loopback.first().map(|(address, answer)| ExpectedProbe {
            address: *address,
            connection: answer.connection.clone(),
            methods: answer.effective.offered_methods(),
            accepts_key,
        });
        ProbePlan { user: self.facts.account.name.clone(), key: key.cloned(), forecast }
    }
}

/// Returns true if a listener that can be reloaded may use older settings than those in its files. If this is unknown,
/// the result is true if the command removes a key.
fn may_run_stale_config(sshd: &Sshd, replaces: bool) -> bool {
    let can_be_reloaded = matches!(sshd.reload, ReloadMethod::Unit(_) | ReloadMethod::Pid { .. });
    sshd.running && can_be_reloaded && !sshd.has_read_its_files.unwrap_or(!replaces)
}

/// Checks that every answer has the requested setting.
///
/// # Errors
/// `PASSWORD_AUTH_NOT_EFFECTIVE`.
pub fn check_sshd_password_auth(
    asked: PasswordAuth,
    kbd_interactive: KbdInteractive,
    facts: &PlanInputs,
    sshd: &Sshd,
    answers: &[SshdAnswer],
) -> Result<(), Refusal> {
    let groups = &facts.account.groups;
    sshd_config::check_password_auth(asked, kbd_interactive, answers, &ParsedConfig::from_sshd(sshd), groups)
}
