//! Whether a key lets the target user in: the trial by a private sshd, and the guard for what sshd decides after it
//! (KP-10.1 and KP-10.6).

use std::path::Path;

use super::super::connection::listens_for;
use super::super::foreign::sanitize_text;
use super::super::lockout::{self, GuardFinding};
use super::super::observation::{Connection, Sshd, SshdAnswer};
use super::super::outcome::{Reason, Refusal, TrialKey, TrialReport, Warning, WarningReason};
use super::super::public_key::PublicKey;
use super::super::selinux::LabelCheck;
use super::super::sources;
use super::super::sshd_config::ParsedConfig;
use super::super::trial::{
    Acceptance, PlannedKeyFile, RejectionContext, TrialOutcome, TrialRequest, explain_rejection,
};
use super::super::witness::{self, AllowedSource, MatchSample};
use super::labels::check_key_file_label;
use super::{PlanInputs, PlanRefusal};

/// Asks a private sshd: an answer for each connection of the question.
pub type TrialRunner<'a> = dyn FnMut(&TrialRequest) -> Vec<TrialOutcome> + 'a;

/// The most `Match` blocks about addresses that a trial asks about.
const MAX_TRIAL_MATCH_BLOCKS: usize = 8;

/// What a trial is made of, but for the key.
pub(super) struct KeyTrial<'a> {
    pub(super) facts: &'a PlanInputs,
    pub(super) config: &'a ParsedConfig,
    /// The directives ahead of sshd's files.
    pub(super) ahead: &'a str,
    /// The key files as they will be, those that differ.
    pub(super) key_files: &'a [PlannedKeyFile],
    /// What `sshd -T` says for the connections that matter.
    pub(super) answers: &'a [SshdAnswer],
    /// The `Match` blocks' witnesses, with what `sshd -T` says for them.
    pub(super) witnesses: &'a [(MatchSample, SshdAnswer)],
    /// Whether the key goes into the file that is the user's own.
    pub(super) binds_key: bool,
}

/// What became of the question about one key.
#[derive(Debug, Clone)]
pub(super) struct KeyTrialResult {
    /// What the result says of the trial.
    pub(super) report: Option<TrialReport>,
    /// Whether the key lets in.
    pub(super) access: KeyAccess,
    /// What the owner should know besides.
    pub(super) warnings: Vec<Warning>,
}

/// Whether a key lets in.
#[derive(Debug, Clone)]
pub(super) enum KeyAccess {
    /// It does.
    Granted,
    /// It does not.
    Denied(GuardFinding),
    /// A private sshd can be asked once the key is in place.
    Deferred(TrialRequest),
    /// A private sshd cannot be asked. The text says why.
    Unknown(String),
}

impl KeyTrial<'_> {
    /// The guard, then the trial.
    pub(super) fn evaluate_key(&self, key: &PublicKey, ask: &mut TrialRunner<'_>) -> KeyTrialResult {
        let guard = self.check_guard();
        let own = self.facts.key_file.as_ref().filter(|_| self.binds_key);
        let unreadable = own.and_then(|own| self.find_unreadable(&own.path));
        if let Some(finding) = guard.refusals.into_iter().next().or(unreadable) {
            return KeyTrialResult { report: None, access: KeyAccess::Denied(finding), warnings: Vec::new() };
        }
        let mut verdict = self.run_trial(key, ask);
        verdict.warnings.extend(guard.warnings);
        verdict
    }

    /// What would refuse a login with a key that sshd accepts, for every connection.
    fn check_guard(&self) -> lockout::GuardReport {
        let mut verdict = lockout::GuardReport::default();
        for one in self.answers.iter().filter_map(|answer| self.check_guard_for(answer)) {
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
    fn check_guard_for(&self, answer: &SshdAnswer) -> Option<lockout::GuardReport> {
        Some(lockout::evaluate_guard(&lockout::GuardInputs {
            account: &self.facts.account,
            login: self.facts.login.as_ref()?,
            effective: &answer.effective,
            connection: &answer.connection,
            reading: self.config,
        }))
    }

    /// The trial alone.
    fn run_trial(&self, key: &PublicKey, ask: &mut TrialRunner<'_>) -> KeyTrialResult {
        let needs_addresses = sources::depends_on_address(self.config);
        let question = |connections: Vec<Connection>| TrialRequest {
            user: self.facts.account.name.clone(),
            key: key.clone(),
            ahead: self.ahead.to_owned(),
            key_files: self.key_files.to_vec(),
            connections,
            needs_addresses,
        };
        let first = question(self.trial_connections(needs_addresses));
        let answers = ask(&first);
        let mut tried: Vec<(Connection, TrialOutcome)> =
            first.connections.iter().cloned().zip(answers).collect();
        tried.retain(|(_, answer)| *answer != TrialOutcome::NoSuchFamily);
        let mut report = first_trial_report(&tried);
        for (_, answer) in &tried {
            match answer {
                TrialOutcome::NotTaken(why) => {
                    return KeyTrialResult::new(report, KeyAccess::Unknown(why.clone()));
                }
                TrialOutcome::NotShown(_) => {
                    let deferred = TrialRequest { key_files: Vec::new(), ..first.clone() };
                    return KeyTrialResult::new(report, KeyAccess::Deferred(deferred));
                }
                TrialOutcome::Accepted(_) | TrialOutcome::Refused(_) | TrialOutcome::NoSuchFamily => {}
            }
        }
        let Some((_, _)) = tried.first() else {
            return KeyTrialResult::new(
                report,
                KeyAccess::Unknown("no connection could be tried".to_owned()),
            );
        };
        let mut warnings = Vec::new();
        let refused: Vec<(&Connection, GuardFinding)> = tried
            .iter()
            .filter_map(|(connection, answer)| Some((connection, self.find_restriction(connection, answer)?)))
            .collect();
        for port in distinct_ports(&tried) {
            let of_port = |connection: &&Connection| connection.lport == port;
            // Whoever comes by IPv4 is not helped by IPv6.
            let has_ipv4 =
                tried.iter().map(|(connection, _)| connection).any(|c| of_port(&c) && c.laddr.is_ipv4());
            let decides = |connection: &Connection| connection.laddr.is_ipv4() == has_ipv4;
            let mut refused_here = refused.iter().filter(|(connection, _)| of_port(connection));
            let Some((refused_connection, finding)) = refused_here
                .clone()
                .find(|(connection, _)| decides(connection))
                .or_else(|| refused_here.next())
            else {
                continue;
            };
            let accepted = tried.iter().any(|(connection, answer)| {
                of_port(&connection)
                    && decides(connection)
                    && self.find_restriction(connection, answer).is_none()
            });
            let elsewhere = match accepted {
                true => None,
                false => self.try_named_sources(refused_connection, &question, ask),
            };
            match (accepted, elsewhere) {
                (true, _) => warnings.push(source_limited_warning(finding, None)),
                (false, Some((source, acceptance))) => {
                    report = Some(accepted_report(&acceptance));
                    warnings.push(source_limited_warning(finding, Some(&source)));
                }
                (false, None) => {
                    return KeyTrialResult::new(report, KeyAccess::Denied(finding.clone()));
                }
            }
        }
        warnings.extend(self.limiting_block_warnings(&question, ask));
        KeyTrialResult { report, access: KeyAccess::Granted, warnings }
    }

    /// One connection where nothing depends on it, else each; only those for which sshd listens.
    fn trial_connections(&self, needs_addresses: bool) -> Vec<Connection> {
        let listens = |answer: &&SshdAnswer| listens_for(&answer.effective, &answer.connection);
        let all = self.answers.iter().filter(listens).map(|answer| answer.connection.clone());
        match needs_addresses {
            true => all.collect(),
            false => all.take(1).collect(),
        }
    }

    /// Why an answer is no login: sshd's refusal, or options of the line that restrict it.
    fn find_restriction(&self, connection: &Connection, answer: &TrialOutcome) -> Option<GuardFinding> {
        let name = &self.facts.account.name;
        match answer {
            // The private sshd does not run in sshd's domain.
            TrialOutcome::Accepted(acceptance) if acceptance.restrictions.is_empty() => {
                self.find_unreadable(Path::new(&acceptance.at.file))
            }
            TrialOutcome::Accepted(Acceptance { at, restrictions, .. }) => Some(GuardFinding {
                name: "authorized_keys",
                message: format!(
                    "authorized_keys: sshd takes the key at {at}, whose options restrict the login of {name} ({}); take \
                     that line or its options out",
                    sanitize_text(&restrictions.join(", "))
                ),
                file: Some(at.file.clone().into()),
                line: Some(at.line),
            }),
            TrialOutcome::Refused(rejection) => Some(explain_rejection(
                rejection,
                &RejectionContext {
                    account: &self.facts.account,
                    connection,
                    reading: self.config,
                    key_file: self.facts.key_file.as_ref().map(|file| file.path.as_path()),
                },
            )),
            TrialOutcome::NotShown(_) | TrialOutcome::NoSuchFamily | TrialOutcome::NotTaken(_) => None,
        }
    }

    /// Why sshd, in its own domain, may not read a key file.
    fn find_unreadable(&self, file: &Path) -> Option<GuardFinding> {
        match check_key_file_label(self.facts, self.key_files, file) {
            LabelCheck::Unreadable(finding, _) => Some(finding),
            LabelCheck::Readable | LabelCheck::Fixable(_) | LabelCheck::Tolerated(_) => None,
        }
    }

    /// Where neutral addresses are refused: the first source that the configuration names from which the key lets in.
    fn try_named_sources(
        &self,
        refused: &Connection,
        question: &impl Fn(Vec<Connection>) -> TrialRequest,
        ask: &mut TrialRunner<'_>,
    ) -> Option<(AllowedSource, Acceptance)> {
        let answer = self.answers.iter().find(|answer| answer.connection == *refused)?;
        let mut sources =
            witness::list_allowed_sources(self.config, refused, &self.facts.account, &answer.effective);
        sources.retain(|AllowedSource { connection, .. }| {
            // Nobody knows whether a connection arrives at another address of this guest; and no name is looked up here.
            connection.laddr == refused.laddr
                && connection.host == connection.addr.to_string()
                && connection.is_single_family()
        });
        if sources.is_empty() {
            return None;
        }
        let asked = question(sources.iter().map(|source| source.connection.clone()).collect());
        let answers = ask(&asked);
        sources.into_iter().zip(answers).find_map(|(source, answer)| match answer {
            TrialOutcome::Accepted(acceptance) if acceptance.restrictions.is_empty() => {
                Some((source, acceptance))
            }
            _ => None,
        })
    }

    /// SOURCE_LIMITED for each `Match` block about addresses from which the key does not let in.
    fn limiting_block_warnings(
        &self,
        question: &impl Fn(Vec<Connection>) -> TrialRequest,
        ask: &mut TrialRunner<'_>,
    ) -> Vec<Warning> {
        let Some(first) = self.answers.first() else { return Vec::new() };
        let limiting = witness::list_limiting_samples(first, self.witnesses);
        let arriving = limiting.into_iter().filter(|(_, answer)| answer.connection.is_single_family());
        let limiting: Vec<_> = arriving.take(MAX_TRIAL_MATCH_BLOCKS).collect();
        if limiting.is_empty() {
            return Vec::new();
        }
        let asked = question(limiting.iter().map(|(_, answer)| answer.connection.clone()).collect());
        let answers = ask(&asked);
        let mut warnings = Vec::new();
        for ((witness, limited), answer) in limiting.into_iter().zip(answers) {
            let after_key = || self.check_guard_for(limited)?.refusals.into_iter().next();
            let connection = &limited.connection;
            let Some(finding) = self.find_restriction(connection, &answer).or_else(after_key) else {
                continue;
            };
            let message = format!(
                "the key does not let {} in from {}: {}",
                self.facts.account.name, connection.addr, finding.message
            );
            let warning = Warning::new(WarningReason::SourceLimited, message);
            warnings.push(match &witness.place {
                Some((file, line)) => warning.with_location(file, Some(*line)),
                None => warning,
            });
        }
        warnings
    }
}

impl KeyTrialResult {
    fn new(report: Option<TrialReport>, access: KeyAccess) -> Self {
        Self { report, access, warnings: Vec::new() }
    }
}

fn distinct_ports(tried: &[(Connection, TrialOutcome)]) -> Vec<u16> {
    let mut ports: Vec<u16> = Vec::new();
    for (connection, _) in tried {
        if !ports.contains(&connection.lport) {
            ports.push(connection.lport);
        }
    }
    ports
}

/// SOURCE_LIMITED, about the line that refuses the others.
fn source_limited_warning(finding: &GuardFinding, source: Option<&AllowedSource>) -> Warning {
    let from = match source {
        Some(AllowedSource { connection, by }) => {
            let by = by.describe("AllowUsers");
            format!("from some addresses only ({} among them, because of {by})", connection.addr)
        }
        None => "from some addresses only".to_owned(),
    };
    let warning =
        Warning::new(WarningReason::SourceLimited, format!("the key lets in {from}: {}", finding.message));
    match &finding.file {
        Some(file) => warning.with_location(file, finding.line),
        None => warning,
    }
}

/// What the result says: of the first answer.
fn first_trial_report(tried: &[(Connection, TrialOutcome)]) -> Option<TrialReport> {
    Some(trial_report(&tried.first()?.1))
}

/// The report of an answer.
pub(super) fn trial_report(answer: &TrialOutcome) -> TrialReport {
    match answer {
        TrialOutcome::Accepted(acceptance) => accepted_report(acceptance),
        TrialOutcome::Refused(rejection) => TrialReport {
            key: TrialKey::Refused,
            file: None,
            line: None,
            methods: Some(rejection.methods.clone()),
            not_taken: None,
        },
        TrialOutcome::NotShown(why) | TrialOutcome::NotTaken(why) => TrialReport::without_answer(why),
        TrialOutcome::NoSuchFamily => TrialReport::without_answer("the kernel has no such address family"),
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
pub fn check_deferred_trial(
    facts: &PlanInputs,
    sshd: &Sshd,
    question: &TrialRequest,
    answers: &[TrialOutcome],
) -> Result<TrialReport, PlanRefusal> {
    let config = ParsedConfig::from_sshd(sshd);
    let trial = KeyTrial {
        facts,
        config: &config,
        ahead: &question.ahead,
        key_files: &[],
        answers: &[],
        witnesses: &[],
        binds_key: false,
    };
    let refuse = |message: String, trial: Option<TrialReport>| PlanRefusal {
        refusal: Refusal::new(Reason::LockoutGuard, message),
        trial: trial.map(Box::new),
    };
    let mut accepted = None;
    for (connection, answer) in question.connections.iter().zip(answers) {
        let answer_report = trial_report(answer);
        match (answer, trial.find_restriction(connection, answer)) {
            (TrialOutcome::NoSuchFamily, _) => {}
            (TrialOutcome::NotShown(why) | TrialOutcome::NotTaken(why), _) => {
                return Err(refuse(trial_unavailable_message(why), Some(answer_report)));
            }
            (TrialOutcome::Refused(_) | TrialOutcome::Accepted(_), Some(finding)) => {
                return Err(refuse(finding.message, Some(answer_report)));
            }
            (TrialOutcome::Refused(_) | TrialOutcome::Accepted(_), None) => {
                accepted = accepted.or(Some(answer_report))
            }
        }
    }
    accepted.ok_or_else(|| refuse(trial_unavailable_message("no connection could be tried"), None))
}

/// Without an answer of a private sshd the step is refused.
pub(super) fn trial_unavailable_message(why: &str) -> String {
    format!("whether sshd lets the key in could not be asked: {why}; mend that, and try again")
}
