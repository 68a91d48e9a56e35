//! Queries to systemd about sshd's service: `systemctl show`, and busctl(1) for the quotes of ExecStart, which
//! `show` loses.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{child, process, unit_words};

/// The names that distributions use for sshd's service.
const SSHD_SERVICES: [&str; 2] = ["ssh.service", "sshd.service"];

/// The time to wait for a unit in a transitional state (KP-6.23).
const UNIT_SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The time to wait for a manager or a bus that does not respond (KP-6.23). systemd executes itself again at each
/// upgrade.
const BUS_RECONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The time limit of one try of a query, and the time until which another try follows. systemd may lose a query
/// while it executes itself again, and then never answers. All tries together stay below a child's 10 s.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
const QUERY_RETRY_TIMEOUT: Duration = Duration::from_secs(7);

/// Error messages of bus clients while systemd or the bus executes itself again. Each entry is a part of such a
/// message.
const BUS_AWAY_ERRORS: [&str; 13] = [
    "connect to bus",
    "connect to system",
    "connection reset",
    "connection refused",
    "connection terminated",
    "connection timed out",
    "connection is closed",
    "not connected",
    "disconnected",
    "broken pipe",
    "did not receive a reply",
    "name org.freedesktop.systemd1",
    "wait for response",
];

/// The socket of the system's bus.
const BUS_SOCKET: &str = "/run/dbus/system_bus_socket";

/// No job of the agent may wait for another job. systemd runs a stop before everything that is ordered after the
/// stopped unit, and the agent is ordered before sshd.
const JOB_MODE_OPTION: &str = "--job-mode=ignore-dependencies";

/// A unit, as `systemctl show` reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    /// The unit's primary name, not an alias.
    pub(super) id: String,
    /// `loaded`, `not-found`, `masked`, …
    pub(super) load_state: String,
    /// `active`, `inactive`, `failed`, `activating`, …
    pub(super) active_state: String,
    /// The pid of the main process; 0 if there is none.
    pub(super) main_pid: i32,
    /// The units that start it.
    pub(super) triggered_by: Vec<String>,
    /// Of a socket unit: true if each connection gets its own process.
    pub(super) accept: bool,
    /// True if the unit supports a reload (`ExecReload=`).
    pub(super) can_reload: bool,
    /// `enabled`, `disabled`, `masked`, …; empty if no file defines it.
    pub(super) file_state: String,
}

impl Unit {
    pub(super) fn is_active(&self) -> bool {
        self.active_state == "active"
    }

    /// Returns true if `systemctl reload` reaches the unit's process. It does not if the unit is masked, even if
    /// the process runs.
    pub(super) fn is_reloadable(&self) -> bool {
        self.is_active() && self.can_reload && self.load_state == "loaded"
    }

    /// Returns true if the unit is masked. A running unit can be masked too.
    pub(super) fn is_masked(&self) -> bool {
        self.load_state == "masked" || self.file_state.starts_with("masked")
    }

    /// Returns true if the unit will change its state without further action.
    pub(super) fn is_transitioning(&self) -> bool {
        matches!(self.active_state.as_str(), "activating" | "reloading" | "deactivating" | "refreshing")
    }
}

/// Returns true if systemd is the init system: sd_booted(3).
pub(super) fn is_booted() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// sshd's service; `None` if there is none. Waits if the service is in a transitional state.
pub(super) fn find_sshd_service() -> Result<Option<Unit>, String> {
    wait_until_settled(&SSHD_SERVICES)
}

/// The unit with this name; `None` if there is none. Waits if the unit is in a transitional state.
pub(super) fn find_settled_unit(name: &str) -> Result<Option<Unit>, String> {
    wait_until_settled(&[name])
}

/// The socket units that trigger this service and hold its sockets (`Accept=no`).
pub(super) fn list_active_sockets(service: &Unit) -> Result<Vec<String>, String> {
    let sockets: Vec<&str> =
        service.triggered_by.iter().map(String::as_str).filter(|name| name.ends_with(".socket")).collect();
    if sockets.is_empty() {
        return Ok(Vec::new());
    }
    let held = |unit: &Unit| unit.is_active() && !unit.accept;
    Ok(show_units(&sockets)?.into_iter().filter(held).map(|unit| unit.id).collect())
}

/// Returns true if systemd holds sshd's sockets, for a service that starts at the first connection or at each one.
pub(super) fn is_sshd_socket_active() -> bool {
    show_units(&["ssh.socket", "sshd.socket"]).is_ok_and(|units| units.iter().any(Unit::is_active))
}

/// Returns true if systemd holds sshd's sockets or will hold them. During a boot, the job of the socket unit may
/// still be queued.
pub(super) fn is_sshd_socket_active_or_queued() -> bool {
    let arguments = ["show", "--no-pager", "--property=ActiveState,Job", "ssh.socket", "sshd.socket"];
    run_systemctl(&arguments).is_ok_and(|output| output.split("\n\n").any(is_active_or_queued))
}

/// Returns true if a unit's block of `systemctl show` says that the unit is active, or that it has a job.
fn is_active_or_queued(block: &str) -> bool {
    block.lines().filter_map(|line| line.split_once('=')).any(|(name, value)| match name {
        "ActiveState" => matches!(value, "active" | "activating"),
        "Job" => value.parse::<u64>().is_ok_and(|job| job != 0),
        _ => false,
    })
}

/// The active socket unit that starts an sshd for each connection (`Accept=yes`), if there is one.
pub(super) fn find_accept_socket() -> Result<Option<String>, String> {
    let sockets = show_units(&["ssh.socket", "sshd.socket"])?;
    Ok(sockets.into_iter().find(|unit| unit.is_active() && unit.accept).map(|unit| unit.id))
}

/// The active service whose main process has this pid.
pub(super) fn find_service_by_main_pid(pid: i32) -> Result<Option<Unit>, String> {
    let Some(name) = process::read_cgroup_service(pid).filter(|_| is_booted()) else { return Ok(None) };
    let is_its_main = |unit: &Unit| unit.is_active() && unit.main_pid == pid;
    Ok(show_units(&[&name])?.into_iter().find(is_its_main))
}

/// The masked units among sshd's usual services.
pub(super) fn list_masked_services() -> Vec<String> {
    let units = show_units(&SSHD_SERVICES).unwrap_or_default();
    units.into_iter().filter(Unit::is_masked).map(|unit| unit.id).collect()
}

/// The unit with this name, in any state; `None` if systemd does not report it.
pub(super) fn show_unit(name: &str) -> Result<Option<Unit>, String> {
    Ok(show_units(&[name])?.into_iter().next())
}

/// Queues a job for the unit and waits for its end. The job itself waits for no other job.
pub(super) fn run_job(verb: &str, unit: &str) -> Result<(), String> {
    run_systemctl(&[JOB_MODE_OPTION, verb, unit]).map(drop)
}

/// Runs `systemctl` with these arguments. The error contains the output of systemctl.
pub(super) fn run_systemctl(arguments: &[&str]) -> Result<String, String> {
    check_systemctl_output(arguments, run_client("systemctl", arguments))
}

fn check_systemctl_output(
    arguments: &[&str],
    ended: Result<child::CommandOutput, child::ChildError>,
) -> Result<String, String> {
    let output = ended.map_err(|error| error.to_string())?;
    if output.succeeded() {
        return Ok(output.stdout);
    }
    Err(format!("'systemctl {}' failed: {}", arguments.join(" "), output.diagnostic()))
}

/// Runs a systemd client for an action. Retries for 5 s while systemd or the bus does not respond.
pub(super) fn run_client(
    program: &str,
    arguments: &[impl AsRef<OsStr>],
) -> Result<child::CommandOutput, child::ChildError> {
    retry_while_bus_away(program, || child::run(Path::new(program), arguments, ""))
}

/// Like [`run_client`], for a query, whose answer may be lost.
fn run_query(program: &str, arguments: &[&str]) -> Result<child::CommandOutput, child::ChildError> {
    let begun = Instant::now();
    retry_while_bus_away(program, || {
        loop {
            let answer = child::run_with_timeout(Path::new(program), arguments, "", QUERY_TIMEOUT);
            let is_lost = matches!(answer, Err(child::ChildError::TimedOut { .. }));
            if !is_lost || begun.elapsed() > QUERY_RETRY_TIMEOUT {
                return answer;
            }
        }
    })
}

fn retry_while_bus_away(
    program: &str,
    run: impl Fn() -> Result<child::CommandOutput, child::ChildError>,
) -> Result<child::CommandOutput, child::ChildError> {
    let deadline = Instant::now() + BUS_RECONNECT_TIMEOUT;
    // systemctl has its own socket to systemd. The other clients have only the bus, which a small system may lack.
    let can_reconnect = program == "systemctl" || Path::new(BUS_SOCKET).exists();
    loop {
        let output = run()?;
        let is_away = can_reconnect && !output.succeeded() && is_bus_away_error(&output.diagnostic());
        if !is_away || Instant::now() >= deadline {
            return Ok(output);
        }
        sleep(Duration::from_millis(100));
    }
}

/// Returns true if an error means that systemd or the bus did not answer. Other errors are answers.
fn is_bus_away_error(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    BUS_AWAY_ERRORS.iter().any(|part| words.contains(part))
}

/// The command with which a unit starts its program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExecStart {
    /// The program.
    pub(super) program: PathBuf,
    /// Its arguments, argv[0] first, with the variables of its environment expanded.
    pub(super) arguments: Vec<String>,
}

/// The command with which the unit starts its program.
pub(super) fn read_exec_start(unit: &str) -> Result<ExecStart, String> {
    let object = format!("/org/freedesktop/systemd1/unit/{}", escape_object_path(unit));
    let interface = "org.freedesktop.systemd1.Service";
    let arguments = [
        "get-property",
        "org.freedesktop.systemd1",
        &object,
        interface,
        "ExecStart",
        "Environment",
        "EnvironmentFiles",
        "PassEnvironment",
    ];
    let output = run_query("busctl", &arguments).map_err(|error| error.to_string())?;
    if !output.succeeded() {
        return Err(format!("busctl does not tell how {unit} starts: {}", output.diagnostic()));
    }
    parse_exec_start(&output.stdout, |path| fs::read_to_string(path))
        .map_err(|error| format!("{unit}: {error}"))
}

/// Parses the output of busctl, which has one property per line. `read` returns the content of an environment file.
fn parse_exec_start(output: &str, read: impl Fn(&Path) -> io::Result<String>) -> Result<ExecStart, String> {
    let mut lines = output.lines();
    let mut next = || lines.next().unwrap_or("");
    let (program, words) =
        unit_words::parse_exec_start_property(next()).ok_or("its ExecStart can't be read")?;
    let assignments = unit_words::parse_string_list(next()).ok_or("its Environment can't be read")?;
    let files = unit_words::parse_environment_files(next()).ok_or("its EnvironmentFile can't be read")?;
    // systemd before 228 has no PassEnvironment.
    let passed = unit_words::parse_string_list(next()).unwrap_or_default();
    let mut environment: BTreeMap<String, String> = BTreeMap::new();
    environment.extend(
        assignments.iter().filter_map(|word| word.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())),
    );
    for (path, may_be_missing) in files {
        match read(&path) {
            Ok(text) => environment.extend(unit_words::parse_environment_file(&text)),
            Err(error) if may_be_missing && error.kind() == io::ErrorKind::NotFound => {
                if path.to_string_lossy().contains(['*', '?', '[']) {
                    return Err(format!("its EnvironmentFile={} can't be expanded", path.display()));
                }
            }
            Err(error) => return Err(format!("its EnvironmentFile={}: {error}", path.display())),
        }
    }
    unit_words::expand_variables(&words, &environment, &passed)
        .map(|arguments| ExecStart { program, arguments })
        .map_err(|name| format!("${name} of its ExecStart can't be expanded (PassEnvironment)"))
}

/// The first of these units that is active or in a transitional state, else the first one that is loaded.
fn wait_until_settled(names: &[&str]) -> Result<Option<Unit>, String> {
    let deadline = Instant::now() + UNIT_SETTLE_TIMEOUT;
    loop {
        let unit = choose_unit(show_units(names)?);
        if !unit.as_ref().is_some_and(Unit::is_transitioning) || Instant::now() >= deadline {
            return Ok(unit);
        }
        sleep(Duration::from_millis(100));
    }
}

fn choose_unit(units: Vec<Unit>) -> Option<Unit> {
    let rank = |unit: &Unit| match unit {
        unit if unit.is_active() => 0,
        unit if unit.is_transitioning() => 1,
        unit if unit.load_state == "loaded" => 2,
        _ => 3,
    };
    units.into_iter().filter(|unit| rank(unit) < 3).min_by_key(rank)
}

fn show_units(names: &[&str]) -> Result<Vec<Unit>, String> {
    let properties = "--property=Id,LoadState,ActiveState,MainPID,TriggeredBy,Accept,CanReload,UnitFileState";
    let mut arguments = vec!["show", "--no-pager", properties];
    arguments.extend(names);
    check_systemctl_output(&arguments, run_query("systemctl", &arguments)).map(|output| parse_show(&output))
}

/// Parses the output of `systemctl show`: blocks of `Name=value` with an empty line between them.
fn parse_show(output: &str) -> Vec<Unit> {
    output
        .split("\n\n")
        .filter_map(|block| {
            let lines: BTreeMap<&str, &str> = block.lines().filter_map(|line| line.split_once('=')).collect();
            let value = |name: &str| lines.get(name).copied().unwrap_or("");
            Some(Unit {
                id: lines.get("Id").filter(|id| !id.is_empty())?.to_string(),
                load_state: value("LoadState").to_owned(),
                active_state: value("ActiveState").to_owned(),
                main_pid: value("MainPID").parse().unwrap_or(0),
                triggered_by: value("TriggeredBy").split_ascii_whitespace().map(str::to_owned).collect(),
                accept: value("Accept") == "yes",
                can_reload: value("CanReload") == "yes",
                file_state: value("UnitFileState").to_owned(),
            })
        })
        .collect()
}

/// Escapes a unit's name for the last part of its D-Bus object path. A character that is no letter or digit becomes
/// `_` and its code. So does a leading digit.
fn escape_object_path(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len() + 8);
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'0'..=b'9' if at == 0 => escaped.push_str(&format!("_{byte:02x}")),
            byte if byte.is_ascii_alphanumeric() => escaped.push(char::from(byte)),
            byte => escaped.push_str(&format!("_{byte:02x}")),
        }
    }
    escaped
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DEBIAN_SHOW: &str = "MainPID=712\nId=ssh.service\nTriggeredBy=ssh.socket other.path\nLoadState=loaded\n\
                          ActiveState=active\n\nMainPID=712\nId=ssh.service\nTriggeredBy=ssh.socket\n\
                          LoadState=loaded\nActiveState=active\n";
    const NO_SSHD_SHOW: &str = "MainPID=0\nId=ssh.service\nLoadState=not-found\nActiveState=inactive\n\n\
                           MainPID=0\nId=sshd.service\nLoadState=masked\nActiveState=inactive\n";

    #[test]
    fn systemctl_show_output_is_parsed() {
        let units = parse_show(DEBIAN_SHOW);
        assert_eq!(units.len(), 2);
        let unit = choose_unit(units).unwrap();
        assert_eq!((unit.id.as_str(), unit.main_pid, unit.is_active()), ("ssh.service", 712, true));
        assert_eq!(unit.triggered_by, ["ssh.socket", "other.path"]);
        let socket = parse_show("Id=ssh.socket\nActiveState=active\nAccept=yes\n");
        assert!(socket[0].accept);
        assert_eq!(parse_show(""), []);
    }

    #[test]
    fn unit_choice_prefers_active_then_loaded() {
        assert_eq!(choose_unit(parse_show(NO_SSHD_SHOW)), None);
        for (states, expected) in [
            (["loaded inactive", "loaded active"], Some("sshd.service")),
            (["loaded failed", "not-found inactive"], Some("ssh.service")),
            (["not-found inactive", "masked active"], Some("sshd.service")),
            (["loaded inactive", "loaded activating"], Some("sshd.service")),
            (["masked inactive", "loaded inactive"], Some("sshd.service")),
        ] {
            let block = |(id, states): (&str, &str)| {
                let (load, active) = states.split_once(' ').unwrap();
                format!("Id={id}\nLoadState={load}\nActiveState={active}\n")
            };
            let output: Vec<String> = SSHD_SERVICES.into_iter().zip(states).map(block).collect();
            let unit = choose_unit(parse_show(&output.join("\n")));
            assert_eq!(unit.as_ref().map(|unit| unit.id.as_str()), expected, "{states:?}");
        }
    }

    #[test]
    fn socket_active_or_queued_is_recognised() {
        for (block, expected) in [
            ("ActiveState=active\n", true),
            ("ActiveState=inactive\nJob=12\n", true),
            ("Job=0\nActiveState=inactive\n", false),
            ("ActiveState=failed\n", false),
            ("", false),
        ] {
            assert_eq!(is_active_or_queued(block), expected, "{block}");
        }
    }

    #[test]
    fn unit_reloadable_and_masked_are_recognised() {
        for (states, can_be_told, is_masked) in [
            ("LoadState=loaded\nActiveState=active\nCanReload=yes\nUnitFileState=enabled", true, false),
            ("LoadState=loaded\nActiveState=active\nCanReload=no", false, false),
            ("LoadState=loaded\nActiveState=inactive\nCanReload=yes", false, false),
            ("LoadState=masked\nActiveState=active\nCanReload=yes\nUnitFileState=masked", false, true),
            ("LoadState=loaded\nActiveState=active\nCanReload=yes\nUnitFileState=masked-runtime", true, true),
        ] {
            let unit = &parse_show(&format!("Id=ssh.service\n{states}\n"))[0];
            assert_eq!((unit.is_reloadable(), unit.is_masked()), (can_be_told, is_masked), "{states}");
        }
    }

    #[test]
    fn bus_away_error_is_recognised() {
        for (words, expected) in [
            ("Failed to connect to bus: Connection refused", true),
            ("Failed to reload ssh.service: Connection reset by peer", true),
            (
                "Warning! D-Bus connection terminated.; Failed to wait for response: Connection reset by peer",
                true,
            ),
            ("Failed to get property ExecStart on interface …: Remote peer disconnected", true),
            ("The name org.freedesktop.systemd1 was not provided by any .service files", true),
            (
                "Failed to get property X on interface org.freedesktop.systemd1.Service: Unknown property",
                false,
            ),
            ("Failed to reload ssh.service: Unit ssh.service is masked.", false),
            ("Job for ssh.service failed because the control process exited with error code.", false),
            ("Failed to start x.service: Unit x.service not found.", false),
        ] {
            assert_eq!(is_bus_away_error(words), expected, "{words}");
        }
    }

    #[test]
    fn object_path_is_escaped() {
        assert_eq!(escape_object_path("ssh.service"), "ssh_2eservice");
        assert_eq!(escape_object_path("1-sshd@a.service"), "_31_2dsshd_40a_2eservice");
    }

    /// KP-6.2.
    #[test]
    fn exec_start_is_expanded_with_environment() {
        let exec = r#"a(sasbttttuii) 1 "/usr/sbin/sshd" 4 "/usr/sbin/sshd" "-D" "$SSHD_OPTS" "-o${B}" false 0 0 0 0 0 0 0"#;
        let output = |environment: &str, files: &str, passed: &str| {
            format!("{exec}\n{environment}\n{files}\n{passed}\n")
        };
        let read = |path: &Path| match path.to_str() {
            Some("/etc/default/ssh") => Ok("SSHD_OPTS=\"-o 'A=b c'\"\n".to_owned()),
            Some("/denied") => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        let words = |environment: &str, files: &str, passed: &str| {
            parse_exec_start(&output(environment, files, passed), read).map(|words| words.arguments)
        };
        let debian = words(r#"as 2 "B=d=e f" "SSHD_OPTS=x""#, r#"a(sb) 1 "/etc/default/ssh" true"#, "as 0");
        let expected = ["/usr/sbin/sshd", "-D", "-o", "A=b c", "-od=e f"];
        assert_eq!(debian.unwrap(), expected);
        let absent = words("as 0", r#"a(sb) 1 "/absent" true"#, "as 0").unwrap();
        assert_eq!(absent, ["/usr/sbin/sshd", "-D", "-o"]);
        for (files, passed, named) in [
            (r#"a(sb) 1 "/absent" false"#, "as 0", "/absent"),
            (r#"a(sb) 1 "/denied" true"#, "as 0", "/denied"),
            (r#"a(sb) 1 "/etc/ssh.d/*" true"#, "as 0", "/etc/ssh.d/*"),
            ("a(sb) 0", r#"as 1 "SSHD_OPTS""#, "$SSHD_OPTS"),
        ] {
            let error = words("as 0", files, passed).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
