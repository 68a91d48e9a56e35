//! Decides whether a valid command is carried out at all: component, instance, expiry, sequence (KP-3.26 to KP-3.29).

use time::{Duration, OffsetDateTime};

use crate::guest::Guest;
use crate::policy::command::{Command, Origin};
use crate::policy::component::ComponentVersion;
use crate::policy::foreign::sanitize_path;
use crate::policy::outcome::{Reason, Refusal};

use super::Engine;
use super::sheet::{ResultBuilder, format_rfc3339};
use super::state::{HighestSequence, State};

/// No correct clock can show an earlier time: this version did not exist then (seconds since 1970; 2026-11-01).
const MIN_CLOCK_UNIX_SECONDS: i64 = 1_793_491_200;

/// The longest time until the expiry of a signed command.
const MAX_SIGNED_VALIDITY: Duration = Duration::hours(24);

/// The decision about a command.
pub(super) enum Admission {
    /// The command is carried out.
    Accept,
    /// The command is refused.
    Reject(Refusal),
    /// The decision is not possible yet, because the clock is not set.
    Defer(String),
}

impl<G: Guest> Engine<G> {
    /// The component's version, read anew at each call.
    ///
    /// # Errors
    /// `COMPONENT_VERSION_UNREADABLE`, with the cause and the remedy.
    pub fn read_component_version(&self) -> Result<ComponentVersion, Refusal> {
        let content = self.guest.component_info();
        let named = |why| format!("{}: {why}", sanitize_path(&self.guest.component_file()));
        content.and_then(|content| ComponentVersion::parse(&content).map_err(named)).map_err(|why| {
            Refusal::new(
                Reason::ComponentVersionUnreadable,
                format!("the platform component's version is unreadable: {why}; install or repair the platform's component"),
            )
        })
    }

    /// Judges a command. If the command passes the sequence check, its sequence becomes the highest.
    pub(super) fn admit_command(
        &self,
        command: &Command,
        origin: Origin,
        state: &mut State,
        sheet: &mut ResultBuilder,
    ) -> Admission {
        if let Err(refusal) = self.check_component_and_instance(command, origin, state, sheet) {
            return Admission::Reject(refusal);
        }
        match self.check_expiry(command, origin) {
            Admission::Accept => {}
            not => return not,
        }
        if let Some(sequence) = command.sequence {
            if let Some(highest) = &state.highest
                && (sequence < highest.sequence
                    || sequence == highest.sequence && command.id != highest.command_id)
            {
                return Admission::Reject(Refusal::new(
                    Reason::StaleCommand,
                    format!(
                        "sequence {sequence} is not above {}, which this instance has seen",
                        highest.sequence
                    ),
                ));
            }
            state.highest = Some(HighestSequence { sequence, command_id: command.id.clone() });
        }
        Admission::Accept
    }

    /// Checks the expiry. A signed command must expire, and soon: otherwise somebody could store it and send it at
    /// any time.
    fn check_expiry(&self, command: &Command, origin: Origin) -> Admission {
        let expired = |why: String| Admission::Reject(Refusal::new(Reason::Expired, why));
        let is_signed = self.required_signers_file(origin).is_some();
        let Some(expires_at) = command.expires_at else {
            return match is_signed {
                true => expired("the command does not say until when it is to be obeyed (expiresAt), and a signed one must".into()),
                false => Admission::Accept,
            };
        };
        let past = || {
            expired(format!(
                "the command was to be obeyed until {}, which is past",
                format_rfc3339(expires_at)
            ))
        };
        match (self.current_time_if_set(), origin) {
            (None, Origin::Channel) => self.defer_until_clock_set("whether the command expired"),
            (None, Origin::Console) => past(),
            (Some(now), _) if now >= expires_at => past(),
            (Some(now), _) if is_signed && expires_at - now > MAX_SIGNED_VALIDITY => expired(format!(
                "the command is to be obeyed until {}, and a signed one for 24 hours at most",
                format_rfc3339(expires_at)
            )),
            (Some(_), _) => Admission::Accept,
        }
    }

    /// The current time; `None` if the clock is not set.
    pub(super) fn current_time_if_set(&self) -> Option<OffsetDateTime> {
        Some(self.guest.now()).filter(|now| now.unix_timestamp() >= MIN_CLOCK_UNIX_SECONDS)
    }

    /// The decision if the clock is not set.
    pub(super) fn defer_until_clock_set(&self, what: &str) -> Admission {
        Admission::Defer(format!(
            "the clock says {}: {what} cannot be told yet",
            format_rfc3339(self.guest.now())
        ))
    }

    /// Checks the component and the instance.
    fn check_component_and_instance(
        &self,
        command: &Command,
        origin: Origin,
        state: &State,
        sheet: &mut ResultBuilder,
    ) -> Result<(), Refusal> {
        let component = self.read_component_version()?;
        sheet.outcome.component_version = Some(component.to_string());
        component.check_minimum_version()?;
        let wrong = |why: String| Err(Refusal::new(Reason::WrongInstance, why));
        match (&command.instance_id, self.settings.effective_instance_id(state)) {
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
