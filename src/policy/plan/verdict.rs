//! sshd's answers and the lockout guard, held against what was asked (contract 6).

use super::super::authorized_keys::{key_lines, ways_in};
use super::super::command::Action;
use super::super::lockout::{self, Finding, Rule, Verdict};
use super::super::observation::{Answer, Login, Person, Reload, Sshd};
use super::super::outcome::{Reason, Refusal, Warning, WarningReason};
use super::super::password;
use super::super::proof::{Forecast, ProofPlan};
use super::super::public_key::PublicKey;
use super::super::sshd_config::{self, KbdInteractive, Reading};
use super::super::types::PasswordAuth;
use super::super::witness::{self, Witness};
use super::{Answers, Draft, Facts, Plan, Purpose};

/// The most names of accounts that one warning lists.
const MOST_NAMES: usize = 10;

impl Draft {
    /// The plan, if sshd's answers and the guard allow it. `answers` are those to [`Draft::questions`].
    ///
    /// # Errors
    /// `PASSWORD_AUTH_NOT_EFFECTIVE` and `LOCKOUT_GUARD`.
    pub fn judge(mut self, purpose: &Purpose<'_>, facts: &Facts, answers: Answers) -> Result<Plan, Refusal> {
        let expect = purpose.action.password_auth();
        let mut proof = None;
        if let (Some(password_auth), Some(sshd), Some(login)) = (expect, &facts.sshd, &facts.login) {
            judge_setting(password_auth, purpose.kbd_interactive, facts, sshd, &answers.must)?;
            let door = Door { purpose, facts, sshd, login, reading: Reading::of(sshd) };
            self.guard(&door, &answers.must, password_auth)?;
            self.warnings.extend(door.warnings(&answers, password_auth));
            // Where nothing changes there is nothing to prove, unless the listener may do another thing than its files say.
            let changes = !self.key_edits.is_empty() || !self.sshd_edits.is_empty();
            let is_due = changes || sshd.has_read_its_files == Some(false);
            proof = (is_due && purpose.proof).then(|| door.proof(&answers));
        }
        let reload =
            facts.sshd.as_ref().filter(|_| !self.sshd_edits.is_empty()).map(|sshd| sshd.reload.clone());
        Ok(Plan {
            key_edits: self.key_edits,
            sshd_edits: self.sshd_edits,
            reload,
            proof,
            expect,
            binding: self.binding,
            unbound: self.unbound,
            answers: answers.must,
            warnings: self.warnings,
        })
    }

    /// The lockout guard, before passwords go off.
    fn guard(
        &mut self,
        door: &Door<'_>,
        answers: &[Answer],
        password_auth: PasswordAuth,
    ) -> Result<(), Refusal> {
        let verdict = door.any_key_verdict(answers);
        let needed = match password_auth {
            PasswordAuth::No => true,
            PasswordAuth::Yes => {
                self.takes_away.as_ref().is_some_and(|taken| door.was_the_way_in(taken, answers))
            }
        };
        let is_attach = matches!(door.purpose.action, Action::Attach { .. });
        match verdict.refusals.first() {
            None if needed || is_attach => self.warnings.extend(verdict.warnings),
            None => {}
            Some(finding) if needed => {
                return Err(Refusal::new(Reason::LockoutGuard, finding.message.clone()));
            }
            Some(finding) if is_attach => self.warnings.push(Warning {
                file: finding.file.as_ref().map(|file| file.to_string_lossy().into_owned()),
                line: finding.line,
                ..Warning::new(WarningReason::KeyNotUsable, finding.message.clone())
            }),
            Some(_) => {}
        }
        Ok(())
    }
}

/// All that is known of who gets in.
struct Door<'a> {
    purpose: &'a Purpose<'a>,
    facts: &'a Facts,
    sshd: &'a Sshd,
    login: &'a Login,
    reading: Reading,
}

impl Door<'_> {
    /// What the guard says of this key, for every connection.
    fn verdict<'a>(&self, key: &PublicKey, answers: impl IntoIterator<Item = &'a Answer>) -> Verdict {
        let mut verdict = Verdict::default();
        for answer in answers {
            let one = lockout::judge(&lockout::Facts {
                account: &self.facts.account,
                key,
                key_file: &self.facts.key_file,
                login: self.login,
                effective: &answer.effective,
                connection: &answer.connection,
                reading: &self.reading,
            });
            verdict.refusals.extend(one.refusals);
            for warning in one.warnings {
                if !verdict.warnings.contains(&warning) {
                    verdict.warnings.push(warning);
                }
            }
        }
        verdict
    }

    /// The verdict on the command's key; where it has none, on the first key of the user's that lets him in.
    fn any_key_verdict(&self, answers: &[Answer]) -> Verdict {
        if let Some(key) = self.purpose.action.public_key() {
            return self.verdict(key, answers);
        }
        let lines = key_lines(self.facts.key_file.content.as_deref().unwrap_or_default());
        let mut verdicts = ways_in(&lines).map(|line| self.verdict(&line.key, answers)).peekable();
        let first = verdicts.peek().cloned();
        let good = verdicts.find(|verdict| verdict.refusals.is_empty());
        good.or(first).unwrap_or_else(|| self.no_key())
    }

    fn no_key(&self) -> Verdict {
        let (user, path) = (&self.facts.account.name, &self.facts.key_file.path);
        let finding = Finding {
            rule: Rule::AuthorizedKeysFile,
            message: format!(
                "AuthorizedKeysFile: {} holds no key of {user}'s that could let him in; attach a key pair first",
                path.display()
            ),
            file: Some(path.clone()),
            line: None,
        };
        Verdict { refusals: vec![finding], warnings: Vec::new() }
    }

    /// Whether a key that is taken away lets in now, and no password would be left.
    fn was_the_way_in(&self, taken: &PublicKey, answers: &[Answer]) -> bool {
        let account = &self.facts.account;
        !answers.iter().all(|answer| password::would_let_in(self.login, account, &answer.effective))
            && self.verdict(taken, answers).refusals.is_empty()
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
        if !self.sshd.running {
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
        witness::allowed(&self.reading, &all, &self.login.people, self.purpose.kbd_interactive)
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
        let is_one = |person: &&Person| {
            person.has_password
                && !person.has_key
                && person.account.name != self.facts.account.name
                && !lockout::is_closed(&person.account.shell)
        };
        let names: Vec<&str> =
            self.login.people.iter().filter(is_one).map(|person| person.account.name.as_str()).collect();
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
        self.sshd.others.iter().map(|other| {
            let ports: Vec<String> = other.ports.iter().map(ToString::to_string).collect();
            let on = match ports.as_slice() {
                [] => String::new(),
                ports => format!(" on port {}", ports.join(", ")),
            };
            let message = format!(
                "another sshd (pid {}, `{}`) listens{on}: it is neither asked nor told, and takes what its own \
                 configuration says; end it, or set it up by hand",
                other.pid, other.line
            );
            Warning::new(WarningReason::SecondSshd, message)
        })
    }

    /// What the running sshd is asked, and what it should say (contract 6, "Proof").
    fn proof(&self, answers: &Answers) -> ProofPlan {
        let key = self.purpose.action.public_key();
        let forecast = answers.loopback.first().map(|(address, answer)| Forecast {
            address: *address,
            connection: answer.connection.clone(),
            methods: answer.effective.offered_methods(),
            // The guard passes a list that lets in from some addresses; loopback is one address.
            accepts_key: key.is_some_and(|key| {
                let refusals = self.verdict(key, [answer]).refusals;
                let groups = &self.facts.account.groups;
                refusals.iter().all(|finding| finding.rule.comes_after_the_key(&answer.effective))
                    && lockout::may_come(&answer.effective, &answer.connection, groups)
            }),
        });
        ProofPlan { user: self.facts.account.name.clone(), key: key.cloned(), forecast }
    }
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
