//! Asking the running sshd once its files are live (KP-10.13): key and methods in one connection.

use crate::guest::Guest;
use crate::policy::observation::{Answer, Reload, Sshd};
use crate::policy::outcome::{KeyProof, Proof, Refusal, TrialReport};
use crate::policy::proof::{Forecast, ProofPlan, Seen, Verdict, contradicted, not_taken};

/// The most connections that one command makes: sshd counts them (sshd_config(5), "PerSourcePenalties").
const MAX_CONNECTIONS: u8 = 2;

/// What became of the questions, over all tries of one command.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    connections: u8,
    /// What the result says of the running sshd; `None` where nothing was asked.
    pub proof: Option<Proof>,
    /// What the result says of a private sshd; `None` where it was not asked.
    pub trial: Option<TrialReport>,
}

impl Asked {
    /// Asks the running sshd, once the files are live. A contradiction gets one more reload while a connection is left:
    /// the listener may not have read its files. `live` is what `sshd -T` says of the connection since its files were
    /// written; `reloading` is set where sshd was told. Whether it said that it does what its files say, and takes the key.
    ///
    /// # Errors
    /// `PROOF_CONTRADICTED`, `SSHD_RELOAD_UNSAFE`, `SSHD_RELOAD_FAILED`.
    pub(super) fn ask(
        &mut self,
        guest: &mut impl Guest,
        plan: &ProofPlan,
        sshd: &Sshd,
        live: Option<&Answer>,
        reloading: &mut bool,
    ) -> Result<bool, Refusal> {
        match self.verdict(guest, plan, sshd, live, reloading)? {
            Verdict::Contradicted(why) => Err(contradicted(&why)),
            Verdict::AsForetold => Ok(self.takes(plan)),
            Verdict::NotTaken(_) => Ok(false),
        }
    }

    /// The same, with what a contradiction says.
    ///
    /// # Errors
    /// `SSHD_RELOAD_UNSAFE`, `SSHD_RELOAD_FAILED`.
    pub(super) fn verdict(
        &mut self,
        guest: &mut impl Guest,
        plan: &ProofPlan,
        sshd: &Sshd,
        live: Option<&Answer>,
        reloading: &mut bool,
    ) -> Result<Verdict, Refusal> {
        let mut not_asked = |why: &str| {
            self.proof = Some(not_taken(why));
            Ok(Verdict::NotTaken(why.to_owned()))
        };
        let forecast = match &plan.forecast {
            _ if !sshd.running => return not_asked("sshd is not running"),
            None => return not_asked("sshd listens neither on 127.0.0.1 nor on ::1"),
            Some(forecast) => live.map_or_else(|| forecast.clone(), |live| forecast.clone().by(live)),
        };
        let said = self.question(guest, plan, sshd, &forecast);
        let is_final = self.connections >= MAX_CONNECTIONS || matches!(sshd.reload, Reload::None(_));
        if is_final || !matches!(said, Verdict::Contradicted(_)) {
            return Ok(said);
        }
        guest.reload_is_safe(sshd)?;
        *reloading = true;
        guest.reload(sshd)?;
        Ok(self.question(guest, plan, sshd, &forecast))
    }

    /// Whether the key of the plan was accepted, where it has one.
    fn takes(&self, plan: &ProofPlan) -> bool {
        plan.key.is_none() || self.proof.as_ref().is_some_and(|proof| proof.key == KeyProof::Accepted)
    }

    /// One connection, noted for the result.
    fn question(
        &mut self,
        guest: &impl Guest,
        plan: &ProofPlan,
        sshd: &Sshd,
        forecast: &Forecast,
    ) -> Verdict {
        let said = if self.connections < MAX_CONNECTIONS {
            self.connections += 1;
            guest.probe(sshd, forecast.address, &plan.user, plan.key.as_ref())
        } else {
            Err(format!("{MAX_CONNECTIONS} connections were made for this command already"))
        };
        let (methods, key) = (forecast.judge_methods(&said), forecast.judge_key(&said));
        let why = match (&methods, &key, &plan.key) {
            (Verdict::NotTaken(why), _, _) => Some(why.clone()),
            (_, Verdict::NotTaken(why), Some(_)) => Some(why.clone()),
            (_, _, None) => Some("the command has no key to ask about".to_owned()),
            (_, _, Some(_)) => None,
        };
        self.proof = Some(Proof {
            key: key_proof(&said),
            methods: said.ok().map(|seen| seen.methods),
            address: Some(forecast.address.to_string()),
            not_taken: why,
        });
        match (methods, key) {
            (contradicted @ Verdict::Contradicted(_), _) | (_, contradicted @ Verdict::Contradicted(_)) => {
                contradicted
            }
            (methods, _) => methods,
        }
    }
}

fn key_proof(said: &Result<Seen, String>) -> KeyProof {
    match said {
        Ok(Seen { accepts_key: Some(true), .. }) => KeyProof::Accepted,
        Ok(Seen { accepts_key: Some(false), .. }) => KeyProof::Refused,
        Ok(Seen { accepts_key: None, .. }) | Err(_) => KeyProof::NotTaken,
    }
}
