//! Whether a key lets the target user in: the trial by a private sshd, and the guard for what sshd decides after it
//! (KP-10.1 and KP-10.6).

use std::path::Path;

use super::super::connection::listens_for;
use super::super::foreign::foreign;
use super::super::lockout::{self, Finding};
use super::super::observation::{Answer, Connection, Sshd};
use super::super::outcome::{Reason, Refusal, TrialKey, TrialReport, Warning, WarningReason};
use super::super::public_key::PublicKey;
use super::super::selinux::Verdict;
use super::super::sources;
use super::super::sshd_config::Reading;
use super::super::trial::{Acceptance, Decides, PlannedKeyFile, TrialAnswer, TrialQuestion, explain};
use super::super::witness::{self, Source, Witness};
use super::labels::judge_key_file;
use super::{Facts, PlanRefusal};

/// Asks a private sshd: an answer for each connection of the question.
pub type AskTrial<'a> = dyn FnMut(&TrialQuestion) -> Vec<TrialAnswer> + 'a;

/// The most `Match` blocks about addresses that a trial asks about.
const MAX_BLOCKS: usize = 8;

/// What a trial is made of, but for the key.
pub(super) struct KeyTrial<'a> {
    pub(super) facts: &'a Facts,
    pub(super) reading: &'a Reading,
    /// The directives ahead of sshd's files.
    pub(super) ahead: &'a str,
    /// The key files as they will be, those that differ.
    pub(super) key_files: &'a [PlannedKeyFile],
    /// What `sshd -T` says for the connections that matter.
    pub(super) answers: &'a [Answer],
    /// The `Match` blocks' witnesses, with what `sshd -T` says for them.
    pub(super) witnesses: &'a [(Witness, Answer)],
    /// Whether the key goes into the file that is the user's own.
    pub(super) binds: bool,
}

/// What became of the question about one key.
#[derive(Debug, Clone)]
pub(super) struct KeyVerdict {
    /// What the result says of the trial.
    pub(super) report: Option<TrialReport>,
    /// Whether the key lets in.
    pub(super) access: Access,
    /// What the owner should know besides.
    pub(super) warnings: Vec<Warning>,
}

/// Whether a key lets in.
#[derive(Debug, Clone)]
pub(super) enum Access {
    /// It does.
    Granted,
    /// It does not.
    Denied(Finding),
    /// A private sshd can be asked once the key is in place.
    Deferred(TrialQuestion),
    /// A private sshd cannot be asked. The text says why.
    Unknown(String),
}

impl KeyTrial<'_> {
    /// The guard, then the trial.
    pub(super) fn judge(&self, key: &PublicKey, ask: &mut AskTrial<'_>) -> KeyVerdict {
        let guard = self.guard();
        let own = self.facts.key_file.as_ref().filter(|_| self.binds);
        let unreadable = own.and_then(|own| self.unreadable(&own.path));
        if let Some(finding) = guard.refusals.into_iter().next().or(unreadable) {
            return KeyVerdict { report: None, access: Access::Denied(finding), warnings: Vec::new() };
        }
        let mut verdict = self.ask(key, ask);
        verdict.warnings.extend(guard.warnings);
        verdict
    }

    /// What would refuse a login with a key that sshd accepts, for every connection.
    fn guard(&self) -> lockout::Verdict {
        let mut verdict = lockout::Verdict::default();
        for one in self.answers.iter().filter_map(|answer| self.guard_of(answer)) {
            verdict.refusals.extend(one.refusals);
            for warning in one.warnings {
                if !verdict.warnings.contains(&warning) {
                    verdict.warnings.push(warning);
                }
            }
        }
        verdict
    }

    /// The same for one connection.
    fn guard_of(&self, answer: &Answer) -> Option<lockout::Verdict> {
        Some(lockout::judge(&lockout::Facts {
            account: &self.facts.account,
            login: self.facts.login.as_ref()?,
            effective: &answer.effective,
            connection: &answer.connection,
            reading: self.reading,
        }))
    }

    /// The trial alone.
    fn ask(&self, key: &PublicKey, ask: &mut AskTrial<'_>) -> KeyVerdict {
        let needs_addresses = sources::depends_on_address(self.reading);
        let question = |connections: Vec<Connection>| TrialQuestion {
            user: self.facts.account.name.clone(),
            key: key.clone(),
            ahead: self.ahead.to_owned(),
            key_files: self.key_files.to_vec(),
            connections,
            needs_addresses,
        };
        let first = question(self.connections(needs_addresses));
        let answers = ask(&first);
        let mut tried: Vec<(Connection, TrialAnswer)> =
            first.connections.iter().cloned().zip(answers).collect();
        tried.retain(|(_, answer)| *answer != TrialAnswer::NoSuchFamily);
        let mut report = report_of(&tried);
        for (_, answer) in &tried {
            match answer {
                TrialAnswer::NotTaken(why) => {
                    return KeyVerdict::new(report, Access::Unknown(why.clone()));
                }
                TrialAnswer::NotShown(_) => {
                    let deferred = TrialQuestion { key_files: Vec::new(), ..first.clone() };
                    return KeyVerdict::new(report, Access::Deferred(deferred));
                }
                TrialAnswer::Accepted(_) | TrialAnswer::Refused(_) | TrialAnswer::NoSuchFamily => {}
            }
        }
        let Some((_, _)) = tried.first() else {
            return KeyVerdict::new(report, Access::Unknown("no connection could be tried".to_owned()));
        };
        let mut warnings = Vec::new();
        let refused: Vec<(&Connection, Finding)> = tried
            .iter()
            .filter_map(|(connection, answer)| Some((connection, self.finding(connection, answer)?)))
            .collect();
        for port in ports(&tried) {
            let of_port = |connection: &&Connection| connection.lport == port;
            // Whoever comes by IPv4 is not helped by IPv6.
            let has_ipv4 =
                tried.iter().map(|(connection, _)| connection).any(|c| of_port(&c) && c.laddr.is_ipv4());
            let decides = |connection: &Connection| connection.laddr.is_ipv4() == has_ipv4;
            let mut refused_here = refused.iter().filter(|(connection, _)| of_port(connection));
            let Some((at, finding)) = refused_here
                .clone()
                .find(|(connection, _)| decides(connection))
                .or_else(|| refused_here.next())
            else {
                continue;
            };
            let accepted = tried.iter().any(|(connection, answer)| {
                of_port(&connection) && decides(connection) && self.finding(connection, answer).is_none()
            });
            let elsewhere = match accepted {
                true => None,
                false => self.ask_from_sources(at, &question, ask),
            };
            match (accepted, elsewhere) {
                (true, _) => warnings.push(limited(finding, None)),
                (false, Some((source, acceptance))) => {
                    report = Some(accepted_report(&acceptance));
                    warnings.push(limited(finding, Some(&source)));
                }
                (false, None) => {
                    return KeyVerdict::new(report, Access::Denied(finding.clone()));
                }
            }
        }
        warnings.extend(self.limiting_blocks(&question, ask));
        KeyVerdict { report, access: Access::Granted, warnings }
    }

    /// One connection where nothing depends on it, else each; only those for which sshd listens.
    fn connections(&self, needs_addresses: bool) -> Vec<Connection> {
        let listens = |answer: &&Answer| listens_for(&answer.effective, &answer.connection);
        let all = self.answers.iter().filter(listens).map(|answer| answer.connection.clone());
        match needs_addresses {
            true => all.collect(),
            false => all.take(1).collect(),
        }
    }

    /// Why an answer is no login: sshd's refusal, or options of the line that restrict it.
    fn finding(&self, connection: &Connection, answer: &TrialAnswer) -> Option<Finding> {
        let name = &self.facts.account.name;
        match answer {
            // The private sshd does not run in sshd's domain.
            TrialAnswer::Accepted(acceptance) if acceptance.restrictions.is_empty() => {
                self.unreadable(Path::new(&acceptance.at.file))
            }
            TrialAnswer::Accepted(Acceptance { at, restrictions, .. }) => Some(Finding {
                name: "authorized_keys",
                message: format!(
                    "authorized_keys: sshd takes the key at {at}, whose options restrict the login of {name} ({}); take \
                     that line or its options out",
                    foreign(&restrictions.join(", "))
                ),
                file: Some(at.file.clone().into()),
                line: Some(at.line),
            }),
            TrialAnswer::Refused(rejection) => Some(explain(
                rejection,
                &Decides {
                    account: &self.facts.account,
                    connection,
                    reading: self.reading,
                    key_file: self.facts.key_file.as_ref().map(|file| file.path.as_path()),
                },
            )),
            TrialAnswer::NotShown(_) | TrialAnswer::NoSuchFamily | TrialAnswer::NotTaken(_) => None,
        }
    }

    /// Why sshd, in its own domain, may not read a key file.
    fn unreadable(&self, file: &Path) -> Option<Finding> {
        match judge_key_file(self.facts, self.key_files, file) {
            Verdict::Unreadable(finding, _) => Some(finding),
            Verdict::Readable | Verdict::Curable(_) | Verdict::Tolerated(_) => None,
        }
    }

    /// Where neutral addresses are refused: the first source that the configuration names from which the key lets in.
    fn ask_from_sources(
        &self,
        refused: &Connection,
        question: &impl Fn(Vec<Connection>) -> TrialQuestion,
        ask: &mut AskTrial<'_>,
    ) -> Option<(Source, Acceptance)> {
        let answer = self.answers.iter().find(|answer| answer.connection == *refused)?;
        let mut sources = witness::sources(self.reading, refused, &self.facts.account, &answer.effective);
        sources.retain(|Source { connection, .. }| {
            // Nobody knows whether a connection arrives at another address of this guest; and no name is looked up here.
            connection.laddr == refused.laddr
                && connection.host == connection.addr.to_string()
                && connection.is_of_one_family()
        });
        if sources.is_empty() {
            return None;
        }
        let asked = question(sources.iter().map(|source| source.connection.clone()).collect());
        let answers = ask(&asked);
        sources.into_iter().zip(answers).find_map(|(source, answer)| match answer {
            TrialAnswer::Accepted(acceptance) if acceptance.restrictions.is_empty() => {
                Some((source, acceptance))
            }
            _ => None,
        })
    }

    /// SOURCE_LIMITED for each `Match` block about addresses from which the key does not let in.
    fn limiting_blocks(
        &self,
        question: &impl Fn(Vec<Connection>) -> TrialQuestion,
        ask: &mut AskTrial<'_>,
    ) -> Vec<Warning> {
        let Some(first) = self.answers.first() else { return Vec::new() };
        let limiting = witness::limiting_witnesses(first, self.witnesses);
        let arriving = limiting.into_iter().filter(|(_, answer)| answer.connection.is_of_one_family());
        let limiting: Vec<_> = arriving.take(MAX_BLOCKS).collect();
        if limiting.is_empty() {
            return Vec::new();
        }
        let asked = question(limiting.iter().map(|(_, answer)| answer.connection.clone()).collect());
        let answers = ask(&asked);
        let mut warnings = Vec::new();
        for ((witness, limited), answer) in limiting.into_iter().zip(answers) {
            let after_key = || self.guard_of(limited)?.refusals.into_iter().next();
            let connection = &limited.connection;
            let Some(finding) = self.finding(connection, &answer).or_else(after_key) else { continue };
            let message = format!(
                "the key does not let {} in from {}: {}",
                self.facts.account.name, connection.addr, finding.message
            );
            let warning = Warning::new(WarningReason::SourceLimited, message);
            warnings.push(match &witness.place {
                Some((file, line)) => warning.at(file, Some(*line)),
                None => warning,
            });
        }
        warnings
    }
}

impl KeyVerdict {
    fn new(report: Option<TrialReport>, access: Access) -> Self {
        Self { report, access, warnings: Vec::new() }
    }
}

fn ports(tried: &[(Connection, TrialAnswer)]) -> Vec<u16> {
    let mut ports: Vec<u16> = Vec::new();
    for (connection, _) in tried {
        if !ports.contains(&connection.lport) {
            ports.push(connection.lport);
        }
    }
    ports
}

/// SOURCE_LIMITED, about the line that refuses the others.
fn limited(finding: &Finding, source: Option<&Source>) -> Warning {
    let from = match source {
        Some(Source { connection, by }) => {
            let by = by.describe("AllowUsers");
            format!("from some addresses only ({} among them, because of {by})", connection.addr)
        }
        None => "from some addresses only".to_owned(),
    };
    let warning =
        Warning::new(WarningReason::SourceLimited, format!("the key lets in {from}: {}", finding.message));
    match &finding.file {
        Some(file) => warning.at(file, finding.line),
        None => warning,
    }
}

/// What the result says: of the first answer.
fn report_of(tried: &[(Connection, TrialAnswer)]) -> Option<TrialReport> {
    Some(report(&tried.first()?.1))
}

/// The report of an answer.
pub(super) fn report(answer: &TrialAnswer) -> TrialReport {
    match answer {
        TrialAnswer::Accepted(acceptance) => accepted_report(acceptance),
        TrialAnswer::Refused(rejection) => TrialReport {
            key: TrialKey::Refused,
            file: None,
            line: None,
            methods: Some(rejection.methods.clone()),
            not_taken: None,
        },
        TrialAnswer::NotShown(why) | TrialAnswer::NotTaken(why) => TrialReport::not_taken(why),
        TrialAnswer::NoSuchFamily => TrialReport::not_taken("the kernel has no such address family"),
    }
}

fn accepted_report(acceptance: &Acceptance) -> TrialReport {
    TrialReport {
        key: TrialKey::Accepted,
        file: Some(acceptance.at.file.clone()),
        line: Some(acceptance.at.line),
        methods: Some(acceptance.methods.clone()),
        not_taken: None,
    }
}

/// What a private sshd said of a key once it was in place.
///
/// # Errors
/// `LOCKOUT_GUARD`: it refuses the key, or could not be asked.
pub fn judge_deferred(
    facts: &Facts,
    sshd: &Sshd,
    question: &TrialQuestion,
    answers: &[TrialAnswer],
) -> Result<TrialReport, PlanRefusal> {
    let reading = Reading::of(sshd);
    let trial = KeyTrial {
        facts,
        reading: &reading,
        ahead: &question.ahead,
        key_files: &[],
        answers: &[],
        witnesses: &[],
        binds: false,
    };
    let refuse = |message: String, trial: Option<TrialReport>| PlanRefusal {
        refusal: Refusal::new(Reason::LockoutGuard, message),
        trial: trial.map(Box::new),
    };
    let mut accepted = None;
    for (connection, answer) in question.connections.iter().zip(answers) {
        let said = report(answer);
        match (answer, trial.finding(connection, answer)) {
            (TrialAnswer::NoSuchFamily, _) => {}
            (TrialAnswer::NotShown(why) | TrialAnswer::NotTaken(why), _) => {
                return Err(refuse(unknown(why), Some(said)));
            }
            (TrialAnswer::Refused(_) | TrialAnswer::Accepted(_), Some(finding)) => {
                return Err(refuse(finding.message, Some(said)));
            }
            (TrialAnswer::Refused(_) | TrialAnswer::Accepted(_), None) => accepted = accepted.or(Some(said)),
        }
    }
    accepted.ok_or_else(|| refuse(unknown("no connection could be tried"), None))
}

/// Without an answer of a private sshd the step is refused.
pub(super) fn unknown(why: &str) -> String {
    format!("whether sshd lets the key in could not be asked: {why}; mend that, and try again")
}
