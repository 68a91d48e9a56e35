//! Whether a valid command is to be obeyed at all: component, instance, expiry, sequence (KP-3.26 to
//! KP-3.29).

use time::{Duration, OffsetDateTime};

use crate::guest::Guest;
use crate::policy::command::{Command, Origin};
use crate::policy::component::ComponentVersion;
use crate::policy::foreign::foreign_path;
use crate::policy::outcome::{Reason, Refusal};

use super::Transaction;
use super::sheet::{Sheet, rfc3339};
use super::state::{Highest, State};

/// Before this moment no clock can be right: this version did not exist (seconds since 1970; 2026-11-01).
const BUILD_DATE: i64 = 1_793_491_200;

/// How far ahead a signed command may expire.
const LONGEST: Duration = Duration::hours(24);

/// What became of the question.
pub(super) enum Judgement {
    /// It is to be obeyed.
    Obey,
    /// It is not.
    Refuse(Refusal),
    /// It cannot be told yet: the clock is not set.
    TryLater(String),
}

impl<G: Guest> Transaction<G> {
    /// The component's version, read afresh.
    ///
    /// # Errors
    /// `COMPONENT_VERSION_UNREADABLE`, with the cause and the remedy.
    pub fn component(&self) -> Result<ComponentVersion, Refusal> {
        let content = self.guest.component_info();
        let named = |why| format!("{}: {why}", foreign_path(&self.guest.component_file()));
        content.and_then(|content| ComponentVersion::parse(&content).map_err(named)).map_err(|why| {
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
        if let Err(refusal) = self.obey(command, origin, state, sheet) {
            return Judgement::Refuse(refusal);
        }
        match self.is_in_time(command, origin) {
            Judgement::Obey => {}
            not => return not,
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

    /// Expiry. A signed command says when, and soon: else whoever kept one could come back with it at any time.
    fn is_in_time(&self, command: &Command, origin: Origin) -> Judgement {
        let expired = |why: String| Judgement::Refuse(Refusal::new(Reason::Expired, why));
        let is_signed = self.signers_for(origin).is_some();
        let Some(expires_at) = command.expires_at else {
            return match is_signed {
                true => expired("the command does not say until when it is to be obeyed (expiresAt), and a signed one must".into()),
                false => Judgement::Obey,
            };
        };
        let past =
            || expired(format!("the command was to be obeyed until {}, which is past", rfc3339(expires_at)));
        match (self.clock(), origin) {
            (None, Origin::Channel) => self.try_later("whether the command expired"),
            (None, Origin::Console) => past(),
            (Some(now), _) if now >= expires_at => past(),
            (Some(now), _) if is_signed && expires_at - now > LONGEST => expired(format!(
                "the command is to be obeyed until {}, and a signed one for 24 hours at most",
                rfc3339(expires_at)
            )),
            (Some(_), _) => Judgement::Obey,
        }
    }

    /// The time; `None` while the clock is not set.
    pub(super) fn clock(&self) -> Option<OffsetDateTime> {
        Some(self.guest.now()).filter(|now| now.unix_timestamp() >= BUILD_DATE)
    }

    /// The answer where the clock is not set.
    pub(super) fn try_later(&self, what: &str) -> Judgement {
        Judgement::TryLater(format!(
            "the clock says {}: {what} cannot be told yet",
            rfc3339(self.guest.now())
        ))
    }

    /// Component and instance.
    fn obey(
        &self,
        command: &Command,
        origin: Origin,
        state: &State,
        sheet: &mut Sheet,
    ) -> Result<(), Refusal> {
        let component = self.component()?;
        sheet.outcome.component_version = Some(component.to_string());
        component.gate()?;
        let wrong = |why: String| Err(Refusal::new(Reason::WrongInstance, why));
        match (&command.instance_id, self.settings.instance(state)) {
            (Some(named), Some(ours)) if named != ours.as_str() => {
                wrong(format!("the command is for another instance; this one is {ours}"))
            }
            (_, None) if origin == Origin::Channel => {
                wrong("the command names an instance, and which one this is is not known".to_owned())
            }
            _ => Ok(()),
        }
    }
}
