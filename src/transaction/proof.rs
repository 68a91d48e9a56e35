//! Asking the running sshd while a command is carried out (contract 6, "Proof"): two connections at most.

use crate::guest::Guest;
use crate::policy::observation::{Answer, Reload, Sshd};
use crate::policy::outcome::{KeyProof, Proof, Refusal};
use crate::policy::proof::{Forecast, ProofPlan, Seen, Verdict, contradicted, not_taken};

/// The most connections that one command makes: sshd counts them (sshd_config(5), "PerSourcePenalties").
const MOST: u8 = 2;

const NOT_READ: &str = "the sshd that listens may not have read its present files yet";

/// What became of the questions, over all tries of one command.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    connections: u8,
    /// What the result says; `None` where nothing was asked.
    pub proof: Option<Proof>,
    /// The answer to the key question, which also lists methods.
    first: Option<Result<Seen, String>>,
}

impl Asked {
    /// Begins a try: with the reason where nothing can be asked.
    pub(super) fn begin(&mut self, plan: &ProofPlan, sshd: &Sshd) {
        self.first = None;
        self.proof = Some(match &plan.forecast {
            _ if !sshd.running => not_taken("sshd is not running"),
            None => not_taken("sshd listens neither on 127.0.0.1 nor on ::1"),
            Some(forecast) => {
                let why = plan.key.is_none().then(|| "the command has no key to ask about".to_owned());
                let address = Some(forecast.address.to_string());
                Proof { key: KeyProof::NotTaken, methods: None, address, not_taken: why }
            }
        });
    }

    /// The key question: after the key is in place, before sshd is touched.
    ///
    /// # Errors
    /// `PROOF_CONTRADICTED`, by a listener that has read its present files.
    pub(super) fn key(&mut self, guest: &impl Guest, plan: &ProofPlan, sshd: &Sshd) -> Result<(), Refusal> {
        let (Some(key), Some(forecast)) = (&plan.key, askable(plan, sshd)) else { return Ok(()) };
        let said = self.ask(|| guest.probe(sshd, forecast.address, &plan.user, Some(key)));
        self.first = Some(said.clone());
        let (key, why) = match forecast.judge_key(&said) {
            Verdict::Contradicted(why) if sshd.has_read_its_files == Some(true) => {
                self.note(|proof| proof.key = KeyProof::Refused);
                return Err(contradicted(&why));
            }
            Verdict::Contradicted(_) => (KeyProof::NotTaken, Some(NOT_READ.to_owned())),
            Verdict::NotTaken(why) => (KeyProof::NotTaken, Some(why)),
            Verdict::AsForetold => (key_proof(&said), None),
        };
        self.note(|proof| {
            proof.key = key;
            proof.not_taken = why;
        });
        Ok(())
    }

    /// The methods question, where sshd was reloaded; else what the key question's answer says of it. A key that had
    /// no answer yet is offered along with it: nobody is left with a key that the reloaded sshd refuses. A
    /// contradiction gets one more reload while a connection is left. `live` is what `sshd -T` says of the connection
    /// since its files were written.
    ///
    /// # Errors
    /// `PROOF_CONTRADICTED`, `SSHD_RELOAD_UNSAFE`, `SSHD_RELOAD_FAILED`.
    pub(super) fn methods(
        &mut self,
        guest: &mut impl Guest,
        plan: &ProofPlan,
        sshd: &Sshd,
        live: Option<&Answer>,
        reloading: &mut bool,
    ) -> Result<(), Refusal> {
        let Some(forecast) = askable(plan, sshd) else { return Ok(()) };
        let forecast = &live.map_or_else(|| forecast.clone(), |live| forecast.clone().by(live));
        let is_open = |proof: &Proof| proof.key == KeyProof::NotTaken;
        let key = plan.key.as_ref().filter(|_| self.proof.as_ref().is_some_and(is_open));
        let said = match self.first.take() {
            Some(first) if !*reloading => first,
            _ => self.ask(|| guest.probe(sshd, forecast.address, &plan.user, key)),
        };
        let why = match self.judged(forecast, said, *reloading) {
            Verdict::Contradicted(why) => why,
            Verdict::AsForetold | Verdict::NotTaken(_) => return Ok(()),
        };
        if self.connections >= MOST || matches!(sshd.reload, Reload::None(_)) {
            return Err(contradicted(&why));
        }
        guest.reload_is_safe(sshd)?;
        *reloading = true;
        guest.reload(sshd)?;
        let again = self.ask(|| guest.probe(sshd, forecast.address, &plan.user, key));
        match self.judged(forecast, again, true) {
            Verdict::Contradicted(why) => Err(contradicted(&why)),
            Verdict::AsForetold | Verdict::NotTaken(_) => Ok(()),
        }
    }

    /// The verdict on the methods, noted for the result; by an sshd that was just reloaded, on the key too.
    fn judged(&mut self, forecast: &Forecast, said: Result<Seen, String>, reloaded: bool) -> Verdict {
        let verdict = match (forecast.judge_methods(&said), forecast.judge_key(&said)) {
            (Verdict::AsForetold, refused @ Verdict::Contradicted(_)) if reloaded => refused,
            (verdict, _) => verdict,
        };
        let first_reason = match &verdict {
            Verdict::NotTaken(why) => Some(why.clone()),
            Verdict::AsForetold | Verdict::Contradicted(_) => None,
        };
        self.note(|proof| {
            proof.methods = said.ok().map(|seen| seen.methods);
            proof.not_taken = proof.not_taken.take().or(first_reason);
        });
        verdict
    }

    fn ask(&mut self, question: impl FnOnce() -> Result<Seen, String>) -> Result<Seen, String> {
        if self.connections >= MOST {
            return Err(format!("{MOST} connections were made for this command already"));
        }
        self.connections += 1;
        question()
    }

    fn note(&mut self, note: impl FnOnce(&mut Proof)) {
        if let Some(proof) = &mut self.proof {
            note(proof);
        }
    }
}

/// What sshd should say, where it can be asked.
fn askable<'p>(plan: &'p ProofPlan, sshd: &Sshd) -> Option<&'p Forecast> {
    plan.forecast.as_ref().filter(|_| sshd.running)
}

fn key_proof(said: &Result<Seen, String>) -> KeyProof {
    match said {
        Ok(Seen { accepts_key: Some(true), .. }) => KeyProof::Accepted,
        Ok(Seen { accepts_key: Some(false), .. }) => KeyProof::Refused,
        Ok(Seen { accepts_key: None, .. }) | Err(_) => KeyProof::NotTaken,
    }
}
