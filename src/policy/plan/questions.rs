//! For whom sshd is asked about a draft (KP-6.6 and KP-6.8).

use std::net::SocketAddr;

use super::super::connection::loopbacks;
use super::super::observation::{Answer, Connection};
use super::super::outcome::{Warning, WarningReason};
use super::super::sshd_config::Reading;
use super::super::types::PasswordAuth;
use super::super::witness::{Unexamined, Witness, examine, shut_out, unexamined_warnings};
use super::{Draft, Facts, Purpose};

/// The connections that sshd is asked about.
#[derive(Debug, Clone, Default)]
pub struct Questions {
    /// Those that must all say what was asked.
    must: Vec<Connection>,
    /// One for each `Match` block.
    witnesses: Vec<Witness>,
    /// The blocks that have none, although somebody may meet them.
    unexamined: Vec<Unexamined>,
    /// From loopback, where sshd listens there: the first one is the proof's.
    loopback: Vec<(SocketAddr, Connection)>,
}

/// What sshd said about them.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// Of those that must all say what was asked.
    pub must: Vec<Answer>,
    /// Of the witnesses.
    pub witnesses: Vec<(Witness, Answer)>,
    /// The `Match` blocks that have none, although somebody may meet them.
    pub unexamined: Vec<Unexamined>,
    /// Of loopback.
    pub loopback: Vec<(SocketAddr, Answer)>,
    /// About the present configuration, for those who have no way in by the answers of the witnesses.
    pub before: Vec<Answer>,
}

impl Draft {
    /// For whom sshd is to be asked, with the draft's lines ahead.
    pub fn questions(&self, purpose: &Purpose<'_>, facts: &Facts) -> Questions {
        let Some(sshd) = &facts.sshd else { return Questions::default() };
        let must: Vec<Connection> = sshd.answers.iter().map(|answer| answer.connection.clone()).collect();
        let (Some(asked), Some(login), Some(first)) =
            (purpose.action.password_auth(), &facts.login, sshd.answers.first())
        else {
            return Questions { must, ..Questions::default() };
        };
        let effective = &first.effective;
        let (witnesses, unexamined) = match asked {
            PasswordAuth::No => {
                examine(&Reading::of(sshd), &first.connection, &facts.account, login, effective)
            }
            PasswordAuth::Yes => (Vec::new(), Vec::new()),
        };
        Questions { must, witnesses, unexamined, loopback: loopbacks(&facts.account.name, effective) }
    }
}

impl Draft {
    /// What the plan means for others than the target user.
    pub(super) fn about_others(
        &self,
        purpose: &Purpose<'_>,
        facts: &Facts,
        answers: &Answers,
    ) -> Vec<Warning> {
        let (Some(PasswordAuth::No), Some(sshd), Some(login)) =
            (purpose.action.password_auth(), &facts.sshd, &facts.login)
        else {
            return Vec::new();
        };
        let (Some(present), Some(first)) = (sshd.answers.first(), answers.must.first()) else {
            return Vec::new();
        };
        let reading = Reading::of(sshd);
        let kbd = purpose.kbd_interactive;
        let mut warnings = shut_out(&answers.before, &answers.witnesses, &login.people);
        // That nobody gets in from there is said once.
        let is_said = |one: &Warning| {
            let said = self.warnings.iter().filter(|said| said.reason == WarningReason::SourceLimited);
            { said }.any(|other| (&other.file, other.line) == (&one.file, one.line))
        };
        warnings.retain(|warning| !is_said(warning));
        warnings.extend(unexamined_warnings(
            &reading,
            &answers.unexamined,
            &present.effective,
            &first.effective,
            kbd,
        ));
        warnings
    }
}

impl Questions {
    /// Every connection, in an order that [`Self::answered`] knows.
    pub fn connections(&self) -> Vec<Connection> {
        let witnesses = self.witnesses.iter().map(|witness| &witness.connection);
        let loopback = self.loopback.iter().map(|(_, connection)| connection);
        self.must.iter().chain(witnesses).chain(loopback).cloned().collect()
    }

    /// Each with its answer; `answers` are those to [`Self::connections`].
    pub fn answered(&self, answers: Vec<Answer>) -> Answers {
        let mut answers = answers.into_iter();
        Answers {
            must: answers.by_ref().take(self.must.len()).collect(),
            witnesses: self.witnesses.iter().cloned().zip(answers.by_ref()).collect(),
            unexamined: self.unexamined.clone(),
            loopback: self.loopback.iter().map(|(address, _)| *address).zip(answers).collect(),
            before: Vec::new(),
        }
    }
}
