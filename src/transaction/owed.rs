//! The proof that a command could not get because no sshd ran. The agent gets it as soon as sshd runs (KP-10.16).

use serde::{Deserialize, Serialize};

use crate::guest::Guest;
use crate::policy::command::Command;
use crate::policy::connection::list_loopback_connections;
use crate::policy::edit::FileIntent;
use crate::policy::observation::Sshd;
use crate::policy::outcome::{KeyAcceptance, Refusal};
use crate::policy::proof::{ExpectedProbe, ProbePlan, ProbeVerdict};
use crate::policy::public_key::PublicKey;
use crate::policy::sshd_config::{self, ParsedConfig};
use crate::policy::types::{CommandId, PasswordAuth};

use super::observe::PreparedPlan;
use super::proof::ProbeSession;
use super::recovery::restore_password_setting;
use super::state::State;
use super::{Engine, EngineError};

/// How often a question without an answer is repeated.
const MAX_UNANSWERED_PROBES: u8 = 3;

/// The proof that the running sshd must still give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwedProof {
    /// The command that was carried out.
    pub command_id: CommandId,
    /// The user for whom the proof is.
    user: String,
    /// The key that was written; `None` for a command without a key.
    key: Option<PublicKey>,
    /// Whether a private sshd accepted the key from loopback; `None` if this is unknown.
    accepts_key: Option<bool>,
    /// The requested password setting.
    #[serde(rename = "passWordAuth")]
    password_auth: PasswordAuth,
    /// The last setting that an earlier command made.
    before: Option<PasswordAuth>,
    /// The edits to undo to restore the earlier setting. Filled if the command turned passwords off and they were on
    /// before.
    restore: Vec<FileIntent>,
    /// How many questions got no answer.
    #[serde(default)]
    tries: u8,
    /// Set if sshd refuses the key: the reason. The earlier setting is then being restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restoring: Option<String>,
}

/// What the running sshd answered, if it contradicts a command that had succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contradiction {
    /// The id of the command.
    pub command_id: CommandId,
    /// sshd's answer, what the agent did about it, and the remedy.
    pub message: String,
}

/// The outcome of a check for an owed proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwedProofOutcome {
    /// No proof is owed.
    NoneOwed,
    /// The proof is still owed: sshd does not run yet, or gave no answer.
    StillOwed,
    /// sshd answered as expected.
    Confirmed,
    /// sshd's answer contradicts the command. The agent must report this to the control plane.
    Contradicted,
}

/// The answer of the running sshd.
enum OwedProofVerdict {
    AsExpected,
    Unanswered(String),
    /// The contradiction, and whether sshd definitely refuses the key.
    Contradicted(String, bool),
}

impl State {
    /// Records the proof that a successful command still owes, and settles the owed proofs of earlier commands.
    pub(super) fn record_owed_proof(
        &mut self,
        command: &Command,
        prepared: &PreparedPlan,
        asked: &ProbeSession,
    ) {
        let PreparedPlan { plan, facts } = prepared;
        let changes = plan.changes_files();
        let is_proved = asked
            .proof
            .as_ref()
            .is_some_and(|proof| proof.methods.is_some() || proof.key != KeyAcceptance::NotTaken);
        if changes || is_proved {
            self.contradiction = None;
        }
        let earlier = match changes || is_proved {
            true => self.owed_proof.take(),
            false => return,
        };
        let (Some(password_auth), Some(sshd)) = (command.action.password_auth(), &facts.sshd) else { return };
        let Some(proof) = plan.proof.as_ref().filter(|_| !sshd.running) else { return };
        let Some(forecast) = &proof.forecast else { return };
        let passwords_were_on = sshd.answers.iter().any(|answer| answer.effective.password_authentication());
        let earlier =
            earlier.filter(|earlier| earlier.password_auth == password_auth && plan.sshd_edits.is_empty());
        let (before, restore) = match earlier {
            // Neither command was proved, so a restore goes back to the setting before both.
            Some(earlier) => (earlier.before, earlier.restore),
            None if password_auth == PasswordAuth::No && passwords_were_on => {
                (self.password_auth, plan.sshd_edits.iter().map(|edit| edit.to_intent()).collect())
            }
            None => (self.password_auth, Vec::new()),
        };
        self.owed_proof = Some(OwedProof {
            command_id: command.id.clone(),
            user: proof.user.clone(),
            key: proof.key.clone(),
            accepts_key: forecast.accepts_key,
            password_auth,
            before,
            restore,
            tries: 0,
            restoring: None,
        });
    }
}

impl<G: Guest> Engine<G> {
    /// Gets the owed proof, if sshd runs now.
    ///
    /// # Errors
    /// If the state cannot be read or written, or the earlier setting cannot be restored. The agent tries again.
    pub fn check_owed_proof(&mut self) -> Result<OwedProofOutcome, EngineError> {
        if self.load()?.owed_proof.is_none() {
            return Ok(OwedProofOutcome::NoneOwed);
        }
        let _lock = self.guest.lock()?;
        let mut state = self.load()?;
        let was_restoring = state.owed_proof.as_ref().is_some_and(|owed| owed.restoring.is_some());
        self.close_intent(&mut state)?;
        let Some(mut owed) = state.owed_proof.clone() else {
            return Ok(if was_restoring {
                OwedProofOutcome::Contradicted
            } else {
                OwedProofOutcome::NoneOwed
            });
        };
        let Ok(sshd) = self.guest.inspect_sshd(&owed.user) else { return Ok(OwedProofOutcome::StillOwed) };
        if !sshd.running && !sshd.is_awaited {
            return Ok(OwedProofOutcome::StillOwed);
        }
        match self.probe_owed_proof(&owed, sshd) {
            OwedProofVerdict::AsExpected => {
                tracing::info!(command = %owed.command_id, "the running sshd does what was asked");
                state.owed_proof = None;
                self.save(&state)?;
                Ok(OwedProofOutcome::Confirmed)
            }
            OwedProofVerdict::Unanswered(why) => {
                owed.tries += 1;
                let gives_up = owed.tries >= MAX_UNANSWERED_PROBES;
                if gives_up {
                    tracing::warn!(command = %owed.command_id, "the running sshd was not asked in the end: {why}");
                }
                state.owed_proof = Some(owed).filter(|_| !gives_up);
                self.save(&state)?;
                Ok(if gives_up { OwedProofOutcome::NoneOwed } else { OwedProofOutcome::StillOwed })
            }
            OwedProofVerdict::Contradicted(why, refuses_key) => {
                if refuses_key && !owed.restore.is_empty() {
                    owed.restoring = Some(why);
                    state.owed_proof = Some(owed);
                    self.save(&state)?;
                    self.close_intent(&mut state)?;
                } else {
                    state.owed_proof = None;
                    let remedy = match refuses_key {
                        true => {
                            "no password setting was changed; log in at the console, and attach another key pair"
                        }
                        false => "see what else runs or is configured there, then send the command again",
                    };
                    self.record_contradiction(&mut state, &owed.command_id, &format!("{why}; {remedy}"))?;
                }
                Ok(OwedProofOutcome::Contradicted)
            }
        }
    }

    /// Asks the running sshd one question. After a contradiction it reloads sshd and asks once more.
    fn probe_owed_proof(&mut self, owed: &OwedProof, sshd: Sshd) -> OwedProofVerdict {
        // The sshd of a socket unit starts with the first connection, which is this one.
        let sshd = Sshd { running: true, ..sshd };
        let Some(first) = sshd.answers.first() else {
            return OwedProofVerdict::Unanswered("sshd names no port on which it would listen".to_owned());
        };
        let Some((address, connection)) =
            list_loopback_connections(&owed.user, &first.effective).into_iter().next()
        else {
            return OwedProofVerdict::Unanswered("it listens neither on 127.0.0.1 nor on ::1".to_owned());
        };
        let groups = self.guest.lookup_account(&owed.user).map(|account| account.groups).unwrap_or_default();
        let (reading, kbd) = (ParsedConfig::from_sshd(&sshd), self.settings.kbd_interactive);
        let holds =
            sshd_config::check_password_auth(owed.password_auth, kbd, &sshd.answers, &reading, &groups);
        let live = match self.guest.query_effective_config(&sshd, None, std::slice::from_ref(&connection)) {
            Ok(answers) => answers.into_iter().next(),
            Err(refusal) => return OwedProofVerdict::Unanswered(refusal.message),
        };
        let methods = live.as_ref().map(|live| live.effective.offered_methods()).unwrap_or_default();
        let forecast = ExpectedProbe { address, connection, methods, accepts_key: owed.accepts_key };
        let plan = ProbePlan { user: owed.user.clone(), key: owed.key.clone(), forecast: Some(forecast) };
        let mut asked = ProbeSession::default();
        let verdict = asked.probe_with_reload(&mut self.guest, &plan, &sshd, live.as_ref(), &mut false);
        let refused = asked.proof.as_ref().is_some_and(|proof| proof.key == KeyAcceptance::Refused);
        match (verdict, holds) {
            (Ok(ProbeVerdict::Contradicted(why)), _) => {
                OwedProofVerdict::Contradicted(why, refused && owed.accepts_key == Some(true))
            }
            (_, Err(refusal)) => OwedProofVerdict::Contradicted(refusal.message, false),
            (Ok(ProbeVerdict::AsExpected), Ok(())) => OwedProofVerdict::AsExpected,
            (Ok(ProbeVerdict::NotTaken(why)), Ok(())) => OwedProofVerdict::Unanswered(why),
            (Err(refusal), Ok(())) => OwedProofVerdict::Unanswered(refusal.message),
        }
    }

    /// Restores the earlier setting if the running sshd refuses the command's key. It also completes a restore that
    /// was interrupted. Only the command's own edits are undone; the lines of others stay.
    ///
    /// # Errors
    /// If the restore could not be completed.
    pub(super) fn finish_setting_restore(&mut self, state: &mut State) -> Result<(), Refusal> {
        let Some(owed) = state.owed_proof.clone() else { return Ok(()) };
        let Some(why) = &owed.restoring else { return Ok(()) };
        for file in &owed.restore {
            self.guest.remove_stale_temporaries(&file.kind, &file.path);
        }
        let left_alone = restore_password_setting(&mut self.guest, &owed.restore, &owed.user)?;
        state.owed_proof = None;
        state.password_auth = owed.before;
        let now = match self.guest.inspect_sshd(&owed.user) {
            Ok(sshd) if sshd.answers.iter().all(|answer| answer.effective.password_authentication()) => "on",
            Ok(_) => "off",
            Err(_) => "as sshd's files say",
        };
        let done = match left_alone.first() {
            Some(path) => format!("{} was changed by somebody meanwhile and is left alone", path.display()),
            None => "the password setting that stood before is restored".to_owned(),
        };
        let message = format!("{why}; {done}, and password login is {now}: attach another key pair");
        self.record_contradiction(state, &owed.command_id, &message)
    }

    /// Stores and logs an answer of the running sshd that contradicts a command.
    fn record_contradiction(
        &mut self,
        state: &mut State,
        command_id: &CommandId,
        why: &str,
    ) -> Result<(), Refusal> {
        let message =
            format!("the sshd that runs now contradicts command {command_id}, which had succeeded: {why}");
        tracing::error!(command = %command_id, reason = "PROOF_CONTRADICTED", "{message}");
        state.contradiction = Some(Contradiction { command_id: command_id.clone(), message });
        self.save(state)
    }
}
