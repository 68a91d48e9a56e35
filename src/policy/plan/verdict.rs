//! sshd's answers and the lockout guard, held against what was asked (KP-6.7 and KP-6.19).

use super::super::authorized_keys::{key_lines, ways_in};
use super::super::edit::{FileEdit, FileKind};
use super::super::foreign::foreign;
use super::super::lockout::is_closed;
use super::super::observation::{Answer, Person, Reload, Sshd};
use super::super::outcome::{Reason, Refusal, TrialReport, Warning, WarningReason};
use super::super::password;
use super::super::proof::{Forecast, ProofPlan};
use super::super::public_key::PublicKey;
use super::super::sources;
use super::super::sshd_config::{self, KbdInteractive, Reading};
use super::super::trial::{PlannedKeyFile, TrialAnswer, TrialQuestion};
use super::super::types::PasswordAuth;
use super::super::witness::{self, Witness};
use super::key_trial::{Access, AskTrial, KeyTrial, KeyVerdict, unknown};
use super::{Answers, Draft, Facts, Plan, Purpose};

/// The most keys of the user's own that a trial asks about.
const MAX_KEYS: usize = 6;

/// The most names of accounts that one warning lists.
const MOST_NAMES: usize = 10;

impl Draft {
    /// The plan, if sshd's answers, the guard and the trial allow it. `answers` are those to [`Draft::questions`]; `ask`
    /// asks a private sshd.
    ///
    /// # Errors
    /// `PASSWORD_AUTH_NOT_EFFECTIVE` and `LOCKOUT_GUARD`.
    pub fn judge(
        mut self,
        purpose: &Purpose<'_>,
        facts: &Facts,
        answers: Answers,
        ask: &mut AskTrial<'_>,
    ) -> Result<Plan, PlanRefusal> {
        let expect = purpose.action.password_auth();
        let mut judged = Judged::default();
        let mut proof = None;
        let mut unread = false;
        if let (Some(password_auth), Some(sshd)) = (expect, &facts.sshd) {
            judge_setting(password_auth, purpose.kbd_interactive, facts, sshd, &answers.must)?;
            let replaces = self.takes_away.is_some();
            let access = AccessContext { purpose, facts, sshd, reading: Reading::of(sshd), replaces };
            judged = self.judge_keys(&access, &answers, password_auth, ask)?;
            self.warnings.append(&mut judged.warnings);
            if facts.login.is_some() {
                self.warnings.extend(access.warnings(&answers, password_auth));
            }
            // Where nothing changes there is nothing to prove, unless the listener may do another thing than its files say.
            let changes = !self.key_edits.is_empty() || !self.sshd_edits.is_empty();
            let is_due = changes || sshd.has_read_its_files == Some(false);
            if is_due && purpose.proof {
                proof = Some(access.proof(&answers, judged.key.as_ref(), judged.accepts_at_loopback));
            }
            let depends = password_auth == PasswordAuth::No || replaces;
            unread = depends && self.sshd_edits.is_empty() && may_not_have_read(sshd, replaces);
        }
        let labels = self.judge_labels(purpose, facts, judged.report.as_ref())?;
        self.warnings.extend(labels.warnings);
        let about_others = self.about_others(purpose, facts, &answers);
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
            deferred_trial: judged.deferred,
            trial: judged.report,
            expect,
            binding: self.binding,
            unbound: self.unbound,
            already: self.already,
            answers: answers.must,
            warnings: self.warnings,
        })
    }

    /// Whether the key of the command, or one of the user's keys, lets in: before passwords go off, and before the key
    /// that lets in is taken away (KP-10.1).
    fn judge_keys(
        &self,
        access: &AccessContext<'_>,
        answers: &Answers,
        password_auth: PasswordAuth,
        ask: &mut AskTrial<'_>,
    ) -> Result<Judged, PlanRefusal> {
        let key_files = self.planned_key_files();
        let trial = access.trial(&key_files, self.ahead.as_deref().unwrap_or_default(), answers);
        let judged = match (access.purpose.action.public_key(), password_auth) {
            (Some(key), PasswordAuth::No) => access.needs(&trial, key, ask)?,
            (Some(key), PasswordAuth::Yes) => self.judge_optional_key(access, &trial, key, ask)?,
            (None, PasswordAuth::No) => access.needs_any(&trial, ask)?,
            (None, PasswordAuth::Yes) => return Ok(Judged::default()),
        };
        Ok(access.with_loopback(judged, &trial, answers, ask))
    }

    /// With `yes` the key is needed only where it takes the place of one that lets in, and no password is left.
    fn judge_optional_key(
        &self,
        access: &AccessContext<'_>,
        trial: &KeyTrial<'_>,
        key: &PublicKey,
        ask: &mut AskTrial<'_>,
    ) -> Result<Judged, PlanRefusal> {
        let password_is_left = access.password_is_left(trial.answers);
        let taken = self.takes_away.as_ref().filter(|_| !password_is_left);
        if taken.is_none() && !access.purpose.asks_for_yes {
            return Ok(Judged::default());
        }
        let verdict = trial.judge(key, ask);
        let is_accepted = matches!(verdict.access, Access::Granted) && !key.is_security_key();
        if let Some(taken) = taken.filter(|_| !is_accepted) {
            let present = KeyTrial { key_files: &[], ahead: "", ..*trial };
            let lets_in_now = !matches!(present.judge(taken, ask).access, Access::Denied(_));
            if lets_in_now {
                return access.needs_verdict(key, verdict);
            }
        }
        let mut warnings = verdict.warnings;
        if let Access::Denied(finding) = &verdict.access {
            let warning = Warning::new(WarningReason::KeyNotUsable, finding.message.clone());
            warnings = vec![match &finding.file {
                Some(file) => warning.at(file, finding.line),
                None => Warning { line: finding.line, ..warning },
            }];
        }
        let accepts = match verdict.access {
            Access::Granted => Some(true),
            Access::Denied(_) => Some(false),
            Access::Deferred(_) | Access::Unknown(_) => None,
        };
        Ok(Judged {
            report: verdict.report,
            warnings,
            key: Some(key.clone()),
            accepts,
            accepts_at_loopback: None,
            deferred: None,
        })
    }

    /// The key files as they will be, those that this command changes.
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

/// A command that is refused, and what the trial said until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRefusal {
    /// Why.
    pub refusal: Refusal,
    /// What a private sshd said, where it was asked.
    pub trial: Option<Box<TrialReport>>,
}

impl From<Refusal> for PlanRefusal {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, trial: None }
    }
}

/// What was found about the keys that a command depends on.
#[derive(Debug, Clone, Default)]
struct Judged {
    /// What the result says of the trial.
    report: Option<TrialReport>,
    /// What the owner should know.
    warnings: Vec<Warning>,
    /// The key that the running sshd is asked about.
    key: Option<PublicKey>,
    /// Whether sshd accepts it from a neutral address; `None`: not known.
    accepts: Option<bool>,
    /// Whether it accepts it from loopback.
    accepts_at_loopback: Option<bool>,
    /// The question for a private sshd once the key is in place.
    deferred: Option<TrialQuestion>,
}

/// All that is known of who gets in.
struct AccessContext<'a> {
    purpose: &'a Purpose<'a>,
    facts: &'a Facts,
    sshd: &'a Sshd,
    reading: Reading,
    /// Whether the command takes a bound key away.
    replaces: bool,
}

impl AccessContext<'_> {
    fn trial<'t>(
        &'t self,
        key_files: &'t [PlannedKeyFile],
        ahead: &'t str,
        answers: &'t Answers,
    ) -> KeyTrial<'t> {
        KeyTrial {
            facts: self.facts,
            reading: &self.reading,
            ahead,
            key_files,
            answers: &answers.must,
            witnesses: &answers.witnesses,
            binds: self.purpose.action.public_key().is_some(),
        }
    }

    /// The key has to let in.
    fn needs(
        &self,
        trial: &KeyTrial<'_>,
        key: &PublicKey,
        ask: &mut AskTrial<'_>,
    ) -> Result<Judged, PlanRefusal> {
        let verdict = trial.judge(key, ask);
        self.needs_verdict(key, verdict)
    }

    /// The verdict has to be that the key lets in.
    fn needs_verdict(&self, key: &PublicKey, verdict: KeyVerdict) -> Result<Judged, PlanRefusal> {
        let KeyVerdict { report, access, warnings } = verdict;
        let refuse = |message: String| PlanRefusal {
            refusal: Refusal::new(Reason::LockoutGuard, message),
            trial: report.clone().map(Box::new),
        };
        let deferred = match access {
            Access::Denied(finding) => return Err(refuse(finding.message)),
            Access::Granted | Access::Deferred(_) | Access::Unknown(_) if key.is_security_key() => {
                return Err(refuse(format!(
                    "the public half of a security key ({}) cannot tell whether sshd accepts its signatures (touch, PIN), \
                     so it may be no way in; attach it with passWordAuth `yes`",
                    key.algorithm()
                )));
            }
            Access::Unknown(why) => return Err(refuse(unknown(&why))),
            Access::Deferred(_) if self.replaces => {
                return Err(refuse(unknown(
                    "the new key cannot be shown to a private sshd before the old one is taken away",
                )));
            }
            Access::Deferred(question) => Some(question),
            Access::Granted => None,
        };
        if report.as_ref().is_some_and(|report| report.offers("password"))
            && self.purpose.action.password_auth() == Some(PasswordAuth::No)
        {
            let message = "with the new setting a private sshd still offers `password`, although `sshd -T` says no; see \
                           whether a Match block about hosts decides, and take the setting out of it";
            return Err(PlanRefusal {
                refusal: Refusal::new(Reason::PasswordAuthNotEffective, message),
                trial: report.map(Box::new),
            });
        }
        Ok(Judged {
            report,
            warnings,
            key: Some(key.clone()),
            accepts: deferred.is_none().then_some(true),
            accepts_at_loopback: None,
            deferred,
        })
    }

    /// One of the user's keys has to let in: the bound one, else one that sshd reads without options.
    fn needs_any(&self, trial: &KeyTrial<'_>, ask: &mut AskTrial<'_>) -> Result<Judged, PlanRefusal> {
        let bound = self.purpose.binding.map(|binding| binding.key_pair.public_key.clone());
        let mut keys: Vec<PublicKey> = bound.into_iter().collect();
        let files = self.facts.key_files.iter();
        for line in files.flat_map(|(_, content)| ways_in(key_lines(content))) {
            if keys.len() == MAX_KEYS {
                break;
            }
            if !keys.contains(&line.key) {
                keys.push(line.key);
            }
        }
        let mut first = None;
        for key in &keys {
            match self.needs(trial, key, ask) {
                Ok(judged) => return Ok(judged),
                Err(refusal) => {
                    first.get_or_insert(refusal);
                }
            }
        }
        Err(first.unwrap_or_else(|| self.no_key()))
    }

    fn no_key(&self) -> PlanRefusal {
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

    /// Whether the running sshd should accept the key from loopback, where it is asked.
    fn with_loopback(
        &self,
        mut judged: Judged,
        trial: &KeyTrial<'_>,
        answers: &Answers,
        ask: &mut AskTrial<'_>,
    ) -> Judged {
        judged.accepts_at_loopback = judged.accepts;
        let (Some(key), Some((_, loopback))) = (&judged.key, answers.loopback.first()) else { return judged };
        if !self.purpose.proof || judged.accepts.is_none() || !sources::depends_on_address(&self.reading) {
            return judged;
        }
        let question = TrialQuestion {
            user: self.facts.account.name.clone(),
            key: key.clone(),
            ahead: trial.ahead.to_owned(),
            key_files: trial.key_files.to_vec(),
            connections: vec![loopback.connection.clone()],
            needs_addresses: true,
        };
        judged.accepts_at_loopback = match ask(&question).first() {
            Some(TrialAnswer::Accepted(_)) => Some(true),
            Some(TrialAnswer::Refused(_)) => Some(false),
            _ => None,
        };
        judged
    }

    /// Whether a password would let the target user in, everywhere.
    fn password_is_left(&self, answers: &[Answer]) -> bool {
        let account = &self.facts.account;
        let Some(login) = &self.facts.login else { return false };
        answers.iter().all(|answer| password::would_let_in(login, account, &answer.effective))
    }

    fn warnings(&self, answers: &Answers, asked: PasswordAuth) -> Vec<Warning> {
        let mut warnings = Vec::new();
        match asked {
            PasswordAuth::No => {
                warnings.extend(self.still_allowed(answers));
                warnings.extend(self.kbd_interactive_left(&answers.must));
                warnings.extend(self.password_only());
            }
            PasswordAuth::Yes => warnings.extend(self.root_password_prohibited(&answers.must)),
        }
        if !self.sshd.running && !self.sshd.is_awaited {
            let found = match &self.sshd.reload {
                Reload::None(found) => found.as_str(),
                Reload::Unit(_) | Reload::SocketUnit(_) | Reload::Pid { .. } => "no listener was found",
            };
            let message = format!("sshd is not running: {found}");
            warnings.push(Warning::new(WarningReason::SshdNotRunning, message));
        }
        warnings.extend(self.second_sshd());
        warnings
    }

    /// Those who may still use a password: witnesses and loopback.
    fn still_allowed(&self, answers: &Answers) -> Vec<Warning> {
        let loopback = answers.loopback.iter().map(|(_, answer)| {
            let witness = Witness {
                connection: answer.connection.clone(),
                groups: self.facts.account.groups.clone(),
                criteria: None,
                names_user: false,
                names_source: false,
                place: None,
            };
            (witness, answer.clone())
        });
        let all: Vec<(Witness, Answer)> = answers.witnesses.iter().cloned().chain(loopback).collect();
        let people = self.facts.login.as_ref().map_or(&[][..], |login| login.people.as_slice());
        witness::allowed(&self.reading, &all, people, self.purpose.kbd_interactive)
    }

    fn kbd_interactive_left(&self, answers: &[Answer]) -> Option<Warning> {
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

    /// Accounts that had nothing but their password.
    fn password_only(&self) -> Option<Warning> {
        let Some(login) = &self.facts.login else { return None };
        let is_one = |person: &&Person| {
            person.has_password
                && !person.has_key
                && person.account.name != self.facts.account.name
                && !is_closed(&person.account.shell)
        };
        let names: Vec<&str> =
            login.people.iter().filter(is_one).map(|person| person.account.name.as_str()).collect();
        let more = match names.len().saturating_sub(MOST_NAMES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let listed = names.iter().take(MOST_NAMES).copied().collect::<Vec<_>>().join(", ");
        (!names.is_empty()).then(|| {
            Warning::new(
                WarningReason::PasswordOnlyAccounts,
                format!(
                    "these accounts have a password and no key of their own: {listed}{more}; give them keys"
                ),
            )
        })
    }

    /// `yes` lets everybody in with a password but root.
    fn root_password_prohibited(&self, answers: &[Answer]) -> Option<Warning> {
        let answer = answers.iter().find(|answer| !answer.effective.is_yes("permitrootlogin"))?;
        if self.facts.account.uid != 0 {
            return None;
        }
        let said = answer.effective.value("permitrootlogin");
        let groups = Some(self.facts.account.groups.as_slice());
        let by = self.reading.explain("PermitRootLogin", said, &answer.connection, groups);
        let message = format!(
            "password login is on, but not for {}, because of {}; set `PermitRootLogin yes` there if it shall be",
            self.facts.account.name,
            by.describe("PermitRootLogin")
        );
        Some(by.place(Warning::new(WarningReason::RootPasswordProhibited, message)))
    }

    fn second_sshd(&self) -> impl Iterator<Item = Warning> {
        // Nobody is told to end the only one.
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
                foreign(&other.line)
            );
            Warning::new(WarningReason::SecondSshd, message)
        })
    }

    /// What the running sshd is asked, and what it should say (KP-10.13 and KP-10.14).
    fn proof(&self, answers: &Answers, key: Option<&PublicKey>, accepts_key: Option<bool>) -> ProofPlan {
        let forecast = answers.loopback.first().map(|(address, answer)| Forecast {
            address: *address,
            connection: answer.connection.clone(),
            methods: answer.effective.offered_methods(),
            accepts_key,
        });
        ProofPlan { user: self.facts.account.name.clone(), key: key.cloned(), forecast }
    }
}

/// Whether a listener that can be told may do another thing than its files say. Where that cannot be told it counts if a
/// key is taken away.
fn may_not_have_read(sshd: &Sshd, replaces: bool) -> bool {
    let can_be_told = matches!(sshd.reload, Reload::Unit(_) | Reload::Pid { .. });
    sshd.running && can_be_told && !sshd.has_read_its_files.unwrap_or(!replaces)
}

/// Whether every answer says what was asked.
///
/// # Errors
/// `PASSWORD_AUTH_NOT_EFFECTIVE`.
pub fn judge_setting(
    asked: PasswordAuth,
    kbd_interactive: KbdInteractive,
    facts: &Facts,
    sshd: &Sshd,
    answers: &[Answer],
) -> Result<(), Refusal> {
    let groups = &facts.account.groups;
    sshd_config::judge_setting(asked, kbd_interactive, answers, &Reading::of(sshd), groups)
}
