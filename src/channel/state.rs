//! The channel's state for `status`: `{run_dir}/channel.json`. Only `run` writes it. The file is not durable
//! (KP-8.5).

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::foreign::sanitize_path;
use crate::policy::types::CommandId;

const STATUS_FILE: &str = "channel.json";
const NEW_STATUS_FILE: &str = ".channel.json.new";

/// The condition of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelPhase {
    /// The agent has made no call yet.
    Starting,
    /// The last call succeeded.
    Polling,
    /// The last call failed.
    Failing,
}

/// The state that `status` reads. It does not say whether that `run` is still alive:
/// [`super::run_lock::find_lock_holder`] does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelStatus {
    /// The process id of `run`.
    pub pid: u32,
    /// When `run` started. All times here are RFC 3339, in UTC.
    pub started_at: String,
    /// The condition of the channel.
    pub state: ChannelPhase,
    /// When the last poll ended.
    pub last_poll_at: Option<String>,
    /// Whether the last poll succeeded. `null` before the first poll.
    pub last_poll_succeeded: Option<bool>,
    /// Why the channel fails, as the error's message.
    pub failure: Option<String>,
    /// When the failure began.
    pub failing_since: Option<String>,
    /// The work in progress. Absent before 3.2.
    #[serde(default)]
    pub in_flight: Option<InFlight>,
}

/// The work in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InFlight {
    /// The command. `null` if the agent undoes an earlier command at start.
    pub command_id: Option<CommandId>,
    /// When the work began.
    pub since: String,
    /// When the work began, in seconds since the boot. Nothing can set that clock.
    pub since_boot: u64,
    /// The step that began last. It is updated every few seconds.
    pub step: String,
}

impl InFlight {
    /// Returns how long the work has been in progress. It uses the boot clock, because the wall clock may have been
    /// set since.
    pub fn age(&self) -> Duration {
        Duration::from_secs(boottime_seconds().saturating_sub(self.since_boot))
    }
}

/// Returns the seconds since the boot, including suspended time: clock_gettime(2), `CLOCK_BOOTTIME`.
pub fn boottime_seconds() -> u64 {
    u64::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec).unwrap_or_default()
}

impl ChannelStatus {
    /// Returns the path of the file, for messages.
    pub fn display_path(run_dir: &Path) -> String {
        sanitize_path(&run_dir.join(STATUS_FILE))
    }

    /// Reads the state that the last `run` wrote.
    ///
    /// # Errors
    /// If the file does not exist or has another format. The error is `NotFound` if no `run` started since the boot.
    pub fn read(run_dir: &Path) -> io::Result<Self> {
        serde_json::from_slice(&fs::read(run_dir.join(STATUS_FILE))?).map_err(io::Error::from)
    }

    /// Replaces the file, so that `status` reads either the complete old state or the complete new one.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn write(&self, run_dir: &Path) -> io::Result<()> {
        let new = run_dir.join(NEW_STATUS_FILE);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // `create_new` does not follow a link that another process created in between.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        fs::rename(&new, run_dir.join(STATUS_FILE))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn sample_status() -> ChannelStatus {
        ChannelStatus {
            pid: 7,
            started_at: "2026-01-01T00:00:00Z".into(),
            state: ChannelPhase::Failing,
            last_poll_at: Some("2026-01-01T00:00:01Z".into()),
            last_poll_succeeded: Some(false),
            failure: Some("timed out".into()),
            failing_since: Some("2026-01-01T00:00:01Z".into()),
            in_flight: Some(InFlight {
                command_id: "c-1".parse().ok(),
                since: "2026-01-01T00:00:01Z".into(),
                since_boot: 5,
                step: "a step".into(),
            }),
        }
    }

    #[test]
    fn status_file_round_trips_with_documented_names() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ChannelStatus::read(dir.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
        sample_status().write(dir.path()).unwrap();
        sample_status().write(dir.path()).unwrap();
        assert_eq!(ChannelStatus::read(dir.path()).unwrap(), sample_status());
        let json: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.path().join(STATUS_FILE)).unwrap()).unwrap();
        assert_eq!(json["state"], "failing");
        assert_eq!(json["lastPollSucceeded"], false);
        assert_eq!(json["failingSince"], "2026-01-01T00:00:01Z");
        assert_eq!(json["inFlight"]["commandId"], "c-1");
        let mode = fs::metadata(dir.path().join(STATUS_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn status_file_symlink_is_replaced_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        for name in [STATUS_FILE, NEW_STATUS_FILE] {
            std::os::unix::fs::symlink(&victim, dir.path().join(name)).unwrap();
        }
        sample_status().write(dir.path()).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }
}
