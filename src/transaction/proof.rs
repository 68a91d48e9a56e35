//! Queries the running sshd after its reload (KP-10.13), for the key and the methods in one connection.

use crate::guest::Guest;
use crate::policy::observation::{ReloadMethod, Sshd, SshdAnswer};
use crate::policy::outcome::{KeyAcceptance, ProbeReport, Refusal, TrialReport};
use crate::policy::proof::{
    ExpectedProbe, ProbePlan, ProbeResult, ProbeVerdict, probe_contradicted_refusal, probe_not_taken,
};

/// The most connections that one command makes. sshd counts connections (sshd_config(5), "PerSourcePenalties").
const MAX_PROBE_CONNECTIONS: u8 = 2;

/// The outcome of the questions, over all tries of one command.
#[derive(Debug, Clone, Default)]
pub struct ProbeSession {
    connections: u8,
    /// The result's report on the running sshd; `None` if it was not queried.
    pub proof: Option<ProbeReport>,
    /// The result's report on a private sshd; `None` if it was not queried.
    pub trial: Option<TrialReport>,
}

impl ProbeSession {
    /// Queries the running sshd after its files are written and reloaded. After a contradiction, sshd is reloaded
    /// once more if a connection is left: the listener may not have read its files. `live` is the answer of `sshd -T`
    /// for this connection, given after the files were written. `reloading` is set if sshd was reloaded. Returns
    /// whether sshd confirmed that it follows its files and accepts the key.
    ///
    /// # Errors
    /// `PROOF_CONTRADICTED`, `SSHD_RELOAD_UNSAFE`, `SSHD_RELOAD_FAILED`.
    pub(super) fn probe_running_sshd(
        &mut self,
        guest: &mut impl Guest,
        plan: &ProbePlan,
        sshd: &Sshd,
        live: Option<&SshdAnswer>,
        reloading: &mut bool,
    ) -> Result<bool, Refusal> {
        match self.probe_with_reload(guest, plan, sshd, live, reloading)? {
            ProbeVerdict::Contradicted(why) => Err(probe_contradicted_refusal(&why)),
            ProbeVerdict::AsExpected => Ok(self.is_key_accepted(plan)),
            ProbeVerdict::NotTaken(_) => Ok(false),
        }
    }

    /// Does the same, and returns the text of a contradiction instead of an error.
    ///
    /// # Errors
    /// `SSHD_RELOAD_UNSAFE`, `SSHD_RELOAD_FAILED`.
    pub(super) fn probe_with_reload(
        &mut self,
        guest: &mut impl Guest,
        plan: &ProbePlan,
        sshd: &Sshd,
        live: Option<&SshdAnswer>,
        reloading: &mut bool,
    ) -> Result<ProbeVerdict, Refusal> {
        let mut not_asked = |why: &str| {
            self.proof = Some(probe_not_taken(why));
            Ok(ProbeVerdict::NotTaken(why.to_owned()))
        };
        let forecast = match &plan.forecast {
            _ if !sshd.running => return not_asked("sshd is not running"),
            None => return not_asked("sshd listens neither on 127.0.0.1 nor on ::1"),
            Some(forecast) => {
                live.map_or_else(|| forecast.clone(), |live| forecast.clone().with_live_methods(live))
            }
        };
        let said = self.probe_once(guest, plan, sshd, &forecast);
        let is_final =
            self.connections >= MAX_PROBE_CONNECTIONS || matches!(sshd.reload, ReloadMethod::None(_));
        if is_final || !matches!(said, ProbeVerdict::Contradicted(_)) {
            return Ok(said);
        }
        guest.check_reload_safe(sshd)?;
        *reloading = true;
        guest.reload_sshd(sshd)?;
        Ok(self.probe_once(guest, plan, sshd, &forecast))
    }

    /// Whether the key of the plan was accepted, or the plan has no key.
    fn is_key_accepted(&self, plan: &ProbePlan) -> bool {
        plan.key.is_none() || self.proof.as_ref().is_some_and(|proof| proof.key == KeyAcceptance::Accepted)
    }

    /// Makes one connection and records its outcome for the result.
    fn probe_once(
        &mut self,
        guest: &impl Guest,
        plan: &ProbePlan,
        sshd: &Sshd,
        forecast: &ExpectedProbe,
    ) -> ProbeVerdict {
        let said = if self.connections < MAX_PROBE_CONNECTIONS {
            self.connections += 1;
            guest.probe_sshd(sshd, forecast.address, &plan.user, plan.key.as_ref())
        } else {
            Err(format!("{MAX_PROBE_CONNECTIONS} connections were made for this command already"))
        };
        let (methods, key) = (forecast.check_methods(&said), forecast.check_key(&said));
        let why = match (&methods, &key, &plan.key) {
            (ProbeVerdict::NotTaken(why), _, _) => Some(why.clone()),
            (_, ProbeVerdict::NotTaken(why), Some(_)) => Some(why.clone()),
            (_, _, None) => Some("the command has no key to ask about".to_owned()),
            (_, _, Some(_)) => None,
        };
        self.proof = Some(ProbeReport {
            key: to_key_proof(&said),
            methods: said.ok().map(|seen| seen.methods),
            address: Some(forecast.address.to_string()),
            not_taken: why,
        });
        match (methods, key) {
            (contradicted @ ProbeVerdict::Contradicted(_), _)
            | (_, contradicted @ ProbeVerdict::Contradicted(_)) => contradicted,
            (methods, _) => methods,
        }
    }
}

fn to_key_proof(said: &Result<ProbeResult, String>) -> KeyAcceptance {
    match said {
        Ok(ProbeResult { accepts_key: Some(true), .. }) => KeyAcceptance::Accepted,
        Ok(ProbeResult { accepts_key: Some(false), .. }) => KeyAcceptance::Refused,
        Ok(ProbeResult { accepts_key: None, .. }) | Err(_) => KeyAcceptance::NotTaken,
    }
}
