//! Looking without a lock and without a change: what stands of ours, and who changed it (contract 8, `status`
//! and `check`).

use std::path::PathBuf;

use crate::guest::Guest;
use crate::policy::command::Action;
use crate::policy::observation::Sshd;
use crate::policy::outcome::Refusal;
use crate::policy::plan::{self, Purpose};
use crate::policy::sshd_config::{Directive, contrary_lines, taken};

use super::Transaction;
use super::sheet::timestamp;
use super::state::State;

/// What is not as a command left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drift {
    /// This file of ours, or our block in it, was changed or taken out by somebody.
    Changed(PathBuf),
    /// sshd does not do what was set, although our lines stand.
    Overridden(String),
}

impl<G: Guest> Transaction<G> {
    /// What of ours was changed by others since the last command. Nothing, where nothing was ever done.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub fn drift(&self, state: &State) -> Result<Vec<Drift>, Refusal> {
        let action = match (&state.binding, state.password_auth) {
            (Some(binding), Some(password_auth)) => {
                Action::Attach { key_pair: binding.key_pair.clone(), password_auth, replace: true }
            }
            (None, Some(password_auth)) => Action::SetPasswordAuth { password_auth },
            (_, None) => return Ok(Vec::new()),
        };
        let when = timestamp(&self.guest);
        let purpose = Purpose {
            action: &action,
            binding: state.binding.as_ref(),
            instance_id: self.settings.instance(state),
            kbd_interactive: self.settings.kbd_interactive,
            proof: false,
            when: &when,
            command_id: "status",
        };
        let facts = self.observe_sshd_user(state.binding.as_ref())?;
        let draft = plan::draft(&purpose, &facts)?;
        let mut drift: Vec<Drift> =
            draft.key_edits.iter().map(|edit| Drift::Changed(edit.path.clone())).collect();
        if let (Some(sshd), Some(asked), Some(_)) = (&facts.sshd, action.password_auth(), &draft.ahead) {
            // Where ours stands as it was written, it is somebody else's line that changed what holds.
            let overridden =
                plan::judge_setting(asked, self.settings.kbd_interactive, &facts, sshd, &sshd.answers).err();
            drift.push(match (overridden, draft.sshd_edits.first()) {
                (Some(refusal), _) => Drift::Overridden(refusal.message),
                (None, Some(edit)) => Drift::Changed(edit.path.clone()),
                (None, None) => return Ok(drift),
            });
        }
        Ok(drift)
    }

    /// The later global lines that say otherwise than ours: someone's change that we override.
    pub fn contrary(&self, sshd: &Sshd) -> Vec<Directive> {
        taken(&sshd.config).iter().flat_map(|place| contrary_lines(&sshd.config, place)).collect()
    }
}
