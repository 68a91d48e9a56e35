//! Start, stop and reboot of an instance: enough of the platform's states to play those that an attach depends on.

use time::{Duration, OffsetDateTime};

use crate::inventory::{Instance, Status};

/// How long an instance is `starting` or `rebooting`.
const BOOT: Duration = Duration::seconds(2);

/// A state an instance was brought into, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The state.
    pub status: Status,
    /// Since when.
    pub since: OffsetDateTime,
}

impl State {
    /// The state by now: a boot ends by itself.
    pub fn by(&self, now: OffsetDateTime) -> Status {
        match &self.status {
            Status::Other(word)
                if matches!(word.as_str(), STARTING | REBOOTING) && now - self.since >= BOOT =>
            {
                Status::Running
            }
            status => status.clone(),
        }
    }
}

/// The state that an instance is in by now, where this is the last one it was brought into.
pub fn status_by(instance: &Instance, last: Option<&State>, now: OffsetDateTime) -> Status {
    last.map_or_else(|| instance.status.clone(), |state| state.by(now))
}

const STARTING: &str = "starting";
const REBOOTING: &str = "rebooting";

/// What can be done with an instance, as the platform's API names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `startInstance`, of a stopped one.
    Start,
    /// `stopInstance`, of a running one.
    Stop,
    /// `rebootInstance`, of a running one.
    Reboot,
}

impl Verb {
    /// The state it leads to; `None` where it cannot be done in this one.
    pub fn from(self, status: &Status) -> Option<Status> {
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
    fn a_boot_ends_by_itself() {
        let since = OffsetDateTime::UNIX_EPOCH;
        let starting = Verb::Start.from(&Status::Stopped).map(|status| State { status, since });
        let by =
            |seconds| starting.as_ref().map(|state| state.by(since + Duration::seconds(seconds)).to_string());
        assert_eq!((by(1).as_deref(), by(2).as_deref()), (Some("starting"), Some("running")));
        let stopped = State { status: Status::Stopped, since };
        assert_eq!(stopped.by(since + Duration::days(1)), Status::Stopped);
        let error = State { status: Status::Other("error".into()), since };
        assert_eq!(error.by(since + Duration::days(1)), error.status);
    }

    #[test]
    fn what_can_be_done_in_which_state() {
        let error = Status::Other("error".into());
        for (verb, running, stopped) in [
            (Verb::Start, None, Some("starting")),
            (Verb::Stop, Some("stopped"), None),
            (Verb::Reboot, Some("rebooting"), None),
        ] {
            let to = |status: &Status| verb.from(status).map(|status| status.to_string());
            assert_eq!(to(&Status::Running).as_deref(), running);
            assert_eq!(to(&Status::Stopped).as_deref(), stopped);
            assert_eq!(to(&error), None);
        }
    }
}
