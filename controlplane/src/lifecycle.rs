//! Start, stop and reboot of an instance: enough of the platform's states to play those that an attach depends on.

use time::{Duration, OffsetDateTime};

use crate::inventory::{Instance, Status};

/// How long an instance is `starting` or `rebooting`.
const BOOT_DURATION: Duration = Duration::seconds(2);

/// A state an instance was brought into, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceState {
    /// The state.
    pub status: Status,
    /// Since when.
    pub since: OffsetDateTime,
}

impl InstanceState {
    /// The state by now: a boot ends by itself.
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

/// The state that an instance is in by now, where this is the last one it was brought into.
pub fn current_status(instance: &Instance, last: Option<&InstanceState>, now: OffsetDateTime) -> Status {
    last.map_or_else(|| instance.status.clone(), |state| state.status_at(now))
}

const STARTING: &str = "starting";
const REBOOTING: &str = "rebooting";

/// What can be done with an instance, as the platform's API names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceAction {
    /// `startInstance`, of a stopped one.
    Start,
    /// `stopInstance`, of a running one.
    Stop,
    /// `rebootInstance`, of a running one.
    Reboot,
}

impl InstanceAction {
    /// The state it leads to; `None` where it cannot be done in this one.
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
