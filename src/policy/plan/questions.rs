//! The connections for which the agent queries sshd about a draft (KP-6.6 and KP-6.8).

use std::net::SocketAddr;

use super::super::connection::list_loopback_connections;
use super::super::observation::{Connection, SshdAnswer};
use super::super::outcome::{Warning, WarningReason};
use super::super::sshd_config::ParsedConfig;
use super::super::types::PasswordAuth;
use super::super::witness::{
    MatchSample, UnsampledBlock, sample_match_blocks, warn_shut_out_accounts, warn_unsampled_blocks,
};
use super::{DraftPlan, PlanInputs, PlanRequest};

/// The connections for which the agent queries sshd.
#[derive(Debug, Clone, Default)]
pub struct SshdQueries {
    /// The connections that must all have the requested setting.
    required: Vec<Connection>,
    /// One sample connection for each `Match` block.
    witnesses: Vec<MatchSample>,
    /// The blocks without a sample connection, although they may apply to a user.
    unexamined: Vec<UnsampledBlock>,
    /// Connections from loopback, if sshd listens there. The proof uses the first one.
    loopback: Vec<(SocketAddr, Connection)>,
}

/// sshd's answers to [`SshdQueries`].
#[derive(Debug, Clone, Default)]
pub struct SshdAnswers {
    /// The answers for the connections that must all have the requested setting.
    pub required: Vec<SshdAnswer>,
    /// The answers for the witnesses.
    pub witnesses: Vec<(MatchSample, SshdAnswer)>,
    /// The `Match` blocks without a sample connection, although they may apply to a user.
    pub unexamined: Vec<UnsampledBlock>,
    /// The answers for the loopback connections.
    pub loopback: Vec<(SocketAddr, SshdAnswer)>,
    /// Answers about the present configuration, for witnesses whose new answers leave no way to log in.
    pub current: Vec<SshdAnswer>,
}

impl DraftPlan {
    /// Returns the connections for which the agent must query sshd, with the draft's lines before sshd's files.
    pub fn sshd_queries(&self, purpose: &PlanRequest<'_>, facts: &PlanInputs) -> SshdQueries {
        let Some(sshd) = &facts.sshd else { return SshdQueries::default() };
        let must: Vec<Connection> = sshd.answers.iter().map(|answer| answer.connection.clone()).collect();
        let (Some(asked), Some(login), Some(first)) =
            (purpose.action.password_auth(), &facts.login, sshd.answers.first())
        else {
            return SshdQueries { required: must, ..SshdQueries::default() };
        };
        let effective = &first.effective;
        let (witnesses, unexamined) = match asked {
            PasswordAuth::No => sample_match_blocks(
                &ParsedConfig::from_sshd(sshd),
                &first.connection,
                &facts.account,
                login,
                effective,
            ),
            PasswordAuth::Yes => (Vec::new(), Vec::new()),
        };
        SshdQueries {
            required: must,
            witnesses,
            unexamined,
            loopback: list_loopback_connections(&facts.account.name, effective),
        }
    }
}

impl DraftPlan {
    /// Returns the warnings about what the plan means for users other than the target user.
    pub(super) fn other_users_warnings(
        &self,
        purpose: &PlanRequest<'_>,
        facts: &PlanInputs,
        answers: &SshdAnswers,
    ) -> Vec<Warning> {
        let (Some(PasswordAuth::No), Some(sshd), Some(login)) =
            (purpose.action.password_auth(), &facts.sshd, &facts.login)
        else {
            return Vec::new();
        };
        let (Some(present), Some(first)) = (sshd.answers.first(), answers.required.first()) else {
            return Vec::new();
        };
        let config = ParsedConfig::from_sshd(sshd);
        let kbd = purpose.kbd_interactive;
        let mut warnings = warn_shut_out_accounts(&answers.current, &answers.witnesses, &login.people);
        // A source from which no user can log in needs only one warning.
        let is_already_warned = |one: &Warning| {
            let said = self.warnings.iter().filter(|said| said.reason == WarningReason::SourceLimited);
            { said }.any(|other| (&other.file, other.line) == (&one.file, one.line))
        };
        warnings.retain(|warning| !is_already_warned(warning));
        warnings.extend(warn_unsampled_blocks(
            &config,
            &answers.unexamined,
            &present.effective,
            &first.effective,
            kbd,
        ));
        warnings
    }
}

impl SshdQueries {
    /// Returns all connections. [`Self::pair_answers`] expects the answers in this order.
    pub fn connections(&self) -> Vec<Connection> {
        let witnesses = self.witnesses.iter().map(|witness| &witness.connection);
        let loopback = self.loopback.iter().map(|(_, connection)| connection);
        self.required.iter().chain(witnesses).chain(loopback).cloned().collect()
    }

    /// Pairs each connection with its answer. `answers` must have the order of [`Self::connections`].
    pub fn pair_answers(&self, answers: Vec<SshdAnswer>) -> SshdAnswers {
        let mut answers = answers.into_iter();
        SshdAnswers {
            required: answers.by_ref().take(self.required.len()).collect(),
            witnesses: self.witnesses.iter().cloned().zip(answers.by_ref()).collect(),
            unexamined: self.unexamined.clone(),
            loopback: self.loopback.iter().map(|(address, _)| *address).zip(answers).collect(),
            current: Vec::new(),
        }
    }
}
