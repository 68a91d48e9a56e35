//! Whether a valid command is to be obeyed at all: component, instance, expiry, sequence (contract 3, "Order of
//! judgement").

use crate::guest::Guest;
use crate::policy::command::{Command, Origin};
use crate::policy::component::ComponentVersion;
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::types::InstanceId;

use super::sheet::{Sheet, rfc3339};
use super::state::{Highest, State};
use super::{Settings, Transaction};

/// Before this moment no clock can be right: this version did not exist (seconds since 1970; 2026-11-01).
const BUILD_DATE: i64 = 1_793_491_200;

/// What became of the question.
pub(super) enum Judgement {
    /// It is to be obeyed.
    Obey,
    /// It is not.
    Refuse(Refusal),
    /// It cannot be told yet: the clock is not set.
    TryLater(String),
}

impl Settings {
    /// This instance: what the configuration says, else what the state does.
    pub fn instance<'a>(&'a self, state: &'a State) -> Option<&'a InstanceId> {
        self.instance_id.as_ref().or(state.instance_id.as_ref())
    }
}

impl<G: Guest> Transaction<G> {
    /// The component's version, read afresh.
    ///
    /// # Errors
    /// `COMPONENT_VERSION_UNREADABLE`, with the cause and the remedy.
    pub fn component(&self) -> Result<ComponentVersion, Refusal> {
        let content = self.guest.component_info();
        content.and_then(|content| ComponentVersion::parse(&content)).map_err(|why| {
            Refusal::new(
                Reason::ComponentVersionUnreadable,
                format!("the platform component's version is unreadable: {why}; install or repair the platform's component"),
            )
        })
    }

    /// Judges a command, and raises the highest sequence where it passes that check.
    pub(super) fn judge(
        &self,
        command: &Command,
        origin: Origin,
        state: &mut State,
        sheet: &mut Sheet,
    ) -> Judgement {
        if let Err(refusal) = self.obey(command, state, sheet) {
            return Judgement::Refuse(refusal);
        }
        if let Some(expires_at) = command.expires_at {
            let now = self.guest.now();
            if now.unix_timestamp() < BUILD_DATE && origin == Origin::Channel {
                return Judgement::TryLater(format!(
                    "the clock says {}: whether the command expired cannot be told yet",
                    rfc3339(now)
                ));
            }
            if now.unix_timestamp() < BUILD_DATE || now >= expires_at {
                return Judgement::Refuse(Refusal::new(
                    Reason::Expired,
                    format!("the command was to be obeyed until {}, which is past", rfc3339(expires_at)),
                ));
            }
        }
        if let Some(sequence) = command.sequence {
            if let Some(highest) = &state.highest
                && (sequence < highest.sequence
                    || sequence == highest.sequence && command.id != highest.command_id)
            {
                return Judgement::Refuse(Refusal::new(
                    Reason::StaleCommand,
                    format!(
                        "sequence {sequence} is not above {}, which this instance has seen",
                        highest.sequence
                    ),
                ));
            }
            state.highest = Some(Highest { sequence, command_id: command.id.clone() });
        }
        Judgement::Obey
    }

    /// Component and instance.
    fn obey(&self, command: &Command, state: &State, sheet: &mut Sheet) -> Result<(), Refusal> {
        let component = self.component()?;
        sheet.outcome.component_version = Some(component.to_string());
        component.gate()?;
        if let (Some(named), Some(ours)) = (&command.instance_id, self.settings.instance(state))
            && named != ours.as_str()
        {
            return Err(Refusal::new(
                Reason::WrongInstance,
                format!("the command is for another instance; this one is {ours}"),
            ));
        }
        Ok(())
    }
}
