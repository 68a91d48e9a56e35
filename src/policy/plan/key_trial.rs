//! Decides whether a key lets the target user in: the trial with a private sshd, and the guard for sshd's later checks
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

/// Runs a trial with a private sshd. It returns one answer for each connection of the request.
pub type TrialRunner<'a> = dyn FnMut(&TrialRequest) -> Vec<TrialOutcome> + 'a;

/// The maximum number of `Match` blocks about addresses in one trial.
const MAX_TRIAL_MATCH_BLOCKS: usize = 8;

/// The inputs of a trial, except the key.
pub(super) struct KeyTrial<'a> {
    pub(super) facts: &'a PlanInputs,
    pub(super) config: &'a ParsedConfig,
    /// The directives that a private sshd reads before sshd's files.
    pub(super) ahead: &'a str,
    /// The key files that will change, with their new content.
    pub(super) key_files: &'a [PlannedKeyFile],
    /// sshd's answers (`sshd -T`) for the connections that matter.
    pub(super) answers: &'a [SshdAnswer],
    /// The samples of the `Match` blocks, with sshd's answers (`sshd -T`) for them.
    pub(super) witnesses: &'a [(MatchSample, SshdAnswer)],
    /// Whether the key goes into the user's own key file.
    pub(super) binds_key: bool,
}

/// The result of a trial of one key.
#[derive(Debug, Clone)]
pub(super) struct KeyTrialResult {
    /// The trial's part of the command result.
    pub(super) report: Option<TrialReport>,
    /// Whether the key lets the user in.
    pub(super) access: KeyAccess,
    /// Further warnings for the owner.
    pub(super) warnings: Vec<Warning>,
}

/// Whether a key lets the user in.
#[derive(Debug, Clone)]
pub(super) enum KeyAccess {
    /// The key lets the user in.
    Granted,
    /// The key does not let the user in.
    Denied(GuardFinding),
    /// A trial is possible only after the key is in place.
    Deferred(TrialRequest),
    /// A trial is not possible. The text says why.
    Unknown(String),
}

impl KeyTrial<'_> {
    /// Applies the guard, then runs the trial.
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

    /// Returns what would refuse a login after sshd accepted the key, over all connections.
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

    /// Returns the same for one connection.
    fn check_guard_for(&self, answer: &SshdAnswer) -> Option<lockout::GuardReport> {
        Some(lockout::evaluate_guard(&lockout::GuardInputs {
            account: &self.facts.account,
            login: self.facts.login.as_ref()?,
            effective: &answer.effective,
            connection: &answer.connection,
            reading: self.config,
        }))
    }

    /// Runs the trial without the guard.
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
            // A client that connects over IPv4 cannot use a login that works only over IPv6.
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

    /// Returns one connection if the configuration does not depend on addresses, otherwise all. Only connections to
    /// addresses on which sshd listens are included.
    fn trial_connections(&self, needs_addresses: bool) -> Vec<Connection> {
        let listens = |answer: &&SshdAnswer| listens_for(&answer.effective, &answer.connection);
        let all = self.answers.iter().filter(listens).map(|answer| answer.connection.clone());
        match needs_addresses {
            true => all.collect(),
            false => all.take(1).collect(),
        }
    }

    /// Returns why an answer does not allow a full login: sshd's refusal, or options of the key's line that restrict
    /// it.
    fn find_restriction(&self, connection: &Connection, answer: &TrialOutcome) -> Option<GuardFinding> {
        let name = &self.facts.account.name;
        match answer {
            // The private sshd does not run in sshd's SELinux domain, so its answer does not cover the label.
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

    /// Returns why SELinux forbids sshd to read a key file.
    fn find_unreadable(&self, file: &Path) -> Option<GuardFinding> {
        match check_key_file_label(self.facts, self.key_files, file) {
            LabelCheck::Unreadable(finding, _) => Some(finding),
            LabelCheck::Readable | LabelCheck::Fixable(_) | LabelCheck::Tolerated(_) => None,
        }
    }

    /// Finds the first source in the configuration from which the key lets the user in. The caller uses it if sshd
    /// refuses addresses that no rule names.
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
            // It is unknown whether a connection arrives at another address of this guest. The agent looks up no host
            // name here.
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

    /// Returns a SOURCE_LIMITED warning for each `Match` block about addresses from which the key does not let the
    /// user in.
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

/// Builds the SOURCE_LIMITED warning, with the line that refuses the other sources.
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

/// Returns the trial's part of the command result: the report of the first answer.
fn first_trial_report(tried: &[(Connection, TrialOutcome)]) -> Option<TrialReport> {
    Some(trial_report(&tried.first()?.1))
}

/// Converts an answer into a report.
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

/// Evaluates the answers of a private sshd that ran after the key was in place.
///
/// # Errors
/// `LOCKOUT_GUARD`, if sshd refuses the key or gave no answer.
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

/// Returns the message for a trial without an answer. The agent then refuses the step.
pub(super) fn trial_unavailable_message(why: &str) -> String {
    format!("whether sshd lets the key in could not be asked: {why}; mend that, and try again")
}
