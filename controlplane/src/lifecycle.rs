//! Start, stop and reboot of an instance. Only the platform's states that affect an attach are simulated.

use time::{Duration, OffsetDateTime};

use crate::inventory::{Instance, Status};

/// The duration of the states `starting` and `rebooting`.
const BOOT_DURATION: Duration = Duration::seconds(2);

/// The last state that was set for an instance, and the time of the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceState {
    /// The state.
    pub status: Status,
    /// The time of the change.
    pub since: OffsetDateTime,
}

impl InstanceState {
    /// The state at the time `now`. A boot ends after `BOOT_DURATION`.
    pub fn status_at(&self, now: OffsetDateTime) -> Status {
        match &self.status {
            Status::Other(word)
                if matches!(word.as_str(), STARTING | REBOOTING) && now - self.since >= BOOT_DURATION =>
            {
                Status::Running
            }
            status => status.clone(),
        }
    }
}

/// The state of an instance at the time `now`. `last` is the last state that was set; `None` means the initial state.
pub fn current_status(instance: &Instance, last: Option<&InstanceState>, now: OffsetDateTime) -> Status {
    last.map_or_else(|| instance.status.clone(), |state| state.status_at(now))
}

const STARTING: &str = "starting";
const REBOOTING: &str = "rebooting";

/// The actions on an instance, as the platform's API names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceAction {
    /// `startInstance`, for a stopped instance.
    Start,
    /// `stopInstance`, for a running instance.
    Stop,
    /// `rebootInstance`, for a running instance.
    Reboot,
}

impl InstanceAction {
    /// The state after the action; `None` if the action is not possible in `status`.
    pub fn next_status(self, status: &Status) -> Option<Status> {
        match (self, status) {
            (Self::Start, Status::Stopped) => Some(Status::Other(STARTING.to_owned())),
            (Self::Stop, Status::Running) => Some(Status::Stopped),
            (Self::Reboot, Status::Running) => Some(Status::Other(REBOOTING.to_owned())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starting_instance_becomes_running_after_boot_duration() {
        let since = OffsetDateTime::UNIX_EPOCH;
        let starting =
            InstanceAction::Start.next_status(&Status::Stopped).map(|status| InstanceState { status, since });
        let by = |seconds| {
            starting.as_ref().map(|state| state.status_at(since + Duration::seconds(seconds)).to_string())
        };
        assert_eq!((by(1).as_deref(), by(2).as_deref()), (Some("starting"), Some("running")));
        let stopped = InstanceState { status: Status::Stopped, since };
        assert_eq!(stopped.status_at(since + Duration::days(1)), Status::Stopped);
        let error = InstanceState { status: Status::Other("error".into()), since };
        assert_eq!(error.status_at(since + Duration::days(1)), error.status);
    }

    #[test]
    fn instance_action_depends_on_status() {
        let error = Status::Other("error".into());
        for (verb, running, stopped) in [
            (InstanceAction::Start, None, Some("starting")),
            (InstanceAction::Stop, Some("stopped"), None),
            (InstanceAction::Reboot, Some("rebooting"), None),
        ] {
            let to = |status: &Status| verb.next_status(status).map(|status| status.to_string());
            assert_eq!(to(&Status::Running).as_deref(), running);
            assert_eq!(to(&Status::Stopped).as_deref(), stopped);
            assert_eq!(to(&error), None);
        }
    }
}
