//! For whom sshd is asked about a draft (KP-6.6 and KP-6.8).

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

/// The connections that sshd is asked about.
#[derive(Debug, Clone, Default)]
pub struct SshdQueries {
    /// Those that must all say what was asked.
    required: Vec<Connection>,
    /// One for each `Match` block.
    witnesses: Vec<MatchSample>,
    /// The blocks that have none, although somebody may meet them.
    unexamined: Vec<UnsampledBlock>,
    /// From loopback, where sshd listens there: the first one is the proof's.
    loopback: Vec<(SocketAddr, Connection)>,
}

/// What sshd said about them.
#[derive(Debug, Clone, Default)]
pub struct SshdAnswers {
    /// Of those that must all say what was asked.
    pub required: Vec<SshdAnswer>,
    /// Of the witnesses.
    pub witnesses: Vec<(MatchSample, SshdAnswer)>,
    /// The `Match` blocks that have none, although somebody may meet them.
    pub unexamined: Vec<UnsampledBlock>,
    /// Of loopback.
    pub loopback: Vec<(SocketAddr, SshdAnswer)>,
    /// About the present configuration, for those who have no way in by the answers of the witnesses.
    pub current: Vec<SshdAnswer>,
}

impl DraftPlan {
    /// For whom sshd is to be asked, with the draft's lines ahead.
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
    /// What the plan means for others than the target user.
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
        // That nobody gets in from there is said once.
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
    /// Every connection, in an order that [`Self::pair_answers`] knows.
    pub fn connections(&self) -> Vec<Connection> {
        let witnesses = self.witnesses.iter().map(|witness| &witness.connection);
        let loopback = self.loopback.iter().map(|(_, connection)| connection);
        self.required.iter().chain(witnesses).chain(loopback).cloned().collect()
    }

    /// Each with its answer; `answers` are those to [`Self::connections`].
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
