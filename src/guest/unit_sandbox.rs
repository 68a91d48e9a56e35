//! Finds files that the agent's own unit hides from the agent (systemd.exec(5), "SANDBOXING"). If an administrator
//! added `ProtectHome=yes`, the agent sees an empty home directory and finds nothing to remove there. The mount
//! tables decide, and systemd names the line.

use std::fs;
use std::path::{Path, PathBuf};

use super::files::{PathView, compare_view_with_process};
use super::locate;
use super::sshd::SshdSettings;
use super::systemd;

/// The process that sees the system's own files.
const INIT_PID: i32 = 1;

/// The directories that `ProtectHome` covers.
const PROTECT_HOME_DIRS: [&str; 3] = ["/home", "/root", "/run/user"];

/// The directives that take paths.
const PATH_LIST_DIRECTIVES: [&str; 8] = [
    "InaccessiblePaths",
    "InaccessibleDirectories",
    "ReadOnlyPaths",
    "ReadOnlyDirectories",
    "TemporaryFileSystem",
    "BindPaths",
    "BindReadOnlyPaths",
    "RootDirectory",
];

/// The reason why this process sees another file at `path` than sshd does, and the remedy; `None` if both see the
/// same.
pub(super) fn explain_hidden_path(settings: &SshdSettings, path: &Path) -> Option<String> {
    match compare_view(settings, path)? {
        PathView::Hidden(point) => Some(format!(
            "the agent does not see there what sshd sees: something else is mounted on {} for the agent alone; {}",
            point.display(),
            describe_remedy(path, false)
        )),
        PathView::Same | PathView::ReadOnly(_) => None,
    }
}

/// The reason why this process cannot write at `path` although others can, and the remedy; `None` if no process
/// can.
pub(super) fn explain_read_only_path(settings: &SshdSettings, path: &Path) -> Option<String> {
    match compare_view(settings, path)? {
        PathView::ReadOnly(point) => {
            let directory = path.parent().unwrap_or(path).display();
            Some(format!(
                "Read-only file system, for the agent alone: its unit mounts {} read-only; name {directory} in a line \
                 `ReadWritePaths=` below [Service] (systemctl edit keypair-agent), or {}",
                point.display(),
                describe_remedy(path, true)
            ))
        }
        PathView::Same | PathView::Hidden(_) => None,
    }
}

/// The difference between this process's view of a path and the system's view. If the view differs from the first
/// process's, it is compared with the listener's view if there is a listener. That view counts if both are in a
/// container or a namespace. If nothing listens, only a unit of its own can hide files from the agent that the
/// first process sees.
fn compare_view(settings: &SshdSettings, path: &Path) -> Option<PathView> {
    let init_view = compare_view_with_process(path, INIT_PID);
    if init_view == Some(PathView::Same) {
        return init_view;
    }
    let listener = locate::find_sshd(settings).ok().and_then(|located| located.pid);
    match listener {
        Some(pid) => compare_view_with_process(path, pid),
        None => init_view.filter(|_| find_own_unit().is_some()),
    }
}

/// The line that the administrator must remove from the unit, with its file and line number if systemd reports
/// them.
fn describe_remedy(path: &Path, is_read_only: bool) -> String {
    let again = "then systemctl daemon-reload and systemctl restart keypair-agent";
    let Some(unit) = find_own_unit() else {
        return "start it where it sees the system's own files".to_owned();
    };
    match list_unit_files(&unit).iter().rev().find_map(|file| find_sandbox_line(file, path, is_read_only)) {
        Some(line) => format!("take out {line}, {again}"),
        None => format!("see `systemctl cat {unit}` for what hides {}, {again}", path.display()),
    }
}

/// The service to which this process belongs, by its control group: cgroups(7), `/proc/self/cgroup`.
fn find_own_unit() -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut units = groups.lines().filter_map(|line| line.rsplit('/').next());
    units.find(|unit| unit.ends_with(".service")).map(str::to_owned)
}

/// The files of a unit, in systemd's order: a later file overrides an earlier one.
fn list_unit_files(unit: &str) -> Vec<PathBuf> {
    let properties = ["show", "--property=FragmentPath,DropInPaths", unit];
    let Ok(shown) = systemd::run_systemctl(&properties) else { return Vec::new() };
    let value = |name: &str| {
        let line = shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().split_ascii_whitespace().map(PathBuf::from)
    };
    value("FragmentPath").chain(value("DropInPaths")).collect()
}

/// The last line of a unit's file that may hide `path`, as text for a message.
fn find_sandbox_line(file: &Path, path: &Path, is_read_only: bool) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let concerns = |line: &str| {
        let assigned = line.split_once('=');
        assigned
            .is_some_and(|(key, value)| affects_path(key.trim_end(), value.trim_start(), path, is_read_only))
    };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let index = lines.iter().rposition(|line| concerns(line))?;
    Some(format!("`{}`, line {} of {}", lines.get(index)?, index + 1, file.display()))
}

/// Returns true if a directive may hide `path`, or make it read-only.
fn affects_path(key: &str, value: &str, path: &Path, is_read_only: bool) -> bool {
    let is_off = ["", "no", "false", "off", "0", "n", "f"].iter().any(|off| value.eq_ignore_ascii_case(off));
    let is_below = |above: &str| path.starts_with(above);
    match key {
        "ProtectHome" => !is_off && PROTECT_HOME_DIRS.into_iter().any(is_below),
        "ProtectSystem" => !is_off && is_read_only,
        "PrivateTmp" => !is_off && (is_below("/tmp") || is_below("/var/tmp")),
        key if PATH_LIST_DIRECTIVES.contains(&key) => value.split_ascii_whitespace().any(|word| {
            let word = word.trim_start_matches(['-', '+', '!']);
            // The forms are `BindPaths=source:destination:options` and `TemporaryFileSystem=path:options`.
            word.split(':').any(|part| part.starts_with('/') && is_below(part))
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KP-5.15.
    #[test]
    fn sandbox_directive_affecting_path_is_recognised() {
        let root = Path::new("/root/.ssh/authorized_keys");
        for (key, value, hides, read_only) in [
            ("ProtectHome", "yes", true, true),
            ("ProtectHome", "tmpfs", true, true),
            ("ProtectHome", "no", false, false),
            ("ProtectSystem", "strict", false, true),
            ("InaccessiblePaths", "-/srv -/root", true, true),
            ("TemporaryFileSystem", "/root:ro", true, true),
            ("BindPaths", "/srv/x:/root/.ssh", true, true),
            ("ReadOnlyPaths", "/rootless /home", false, false),
            ("ReadWritePaths", "/root", false, false),
        ] {
            assert_eq!(affects_path(key, value, root, false), hides, "{key}={value}");
            assert_eq!(affects_path(key, value, root, true), read_only, "{key}={value}");
        }
        assert!(!affects_path("ProtectHome", "yes", Path::new("/srv/keys/u"), false));
    }
}
