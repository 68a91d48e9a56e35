//! Finds the sshd that the agent queries and reloads (KP-6.1 to KP-6.3 and KP-6.22). The candidates are, in this
//! order: the listener of the configured pid file, systemd's unit, the listener of /run/sshd.pid. If they lead to
//! no listener, the agent takes the listener that uses the agent's main file, whatever started it. The agent
//! queries the program of that listener.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::ensure_responsive;
use super::process::{self, NotListener};
use super::service::{RELOAD_TIMEOUT, wait_until};
use super::sshd::{self, SshdSettings};
use super::systemd;
use crate::policy::listener;
use crate::policy::observation::{OtherListener, ReloadMethod};
use crate::policy::outcome::{Reason, Refusal};

/// The pid file of an sshd for which no other one is configured.
pub(super) const DEFAULT_PID_FILE: &str = "/run/sshd.pid";

/// The sshd that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocatedSshd {
    /// The program that the agent queries: the listener's own, else the one that the unit would start, else the
    /// configured one.
    pub(super) program: PathBuf,
    /// The listener's arguments, else those with which it would be started. The first one is the program.
    pub(super) arguments: Vec<String>,
    /// True if something listens for this sshd: `arguments` belong to a running listener, or a socket unit starts
    /// an sshd for each connection.
    pub(super) running: bool,
    /// The pid of that listener.
    pub(super) pid: Option<i32>,
    /// True if the options are known with which sshd runs or would be started.
    pub(super) options_are_known: bool,
    /// The way to reload it.
    pub(super) reload: ReloadMethod,
    /// The name of this sshd, for messages.
    pub(super) name: String,
}

/// Finds the sshd of this guest.
pub(super) fn find_sshd(settings: &SshdSettings) -> Result<LocatedSshd, Refusal> {
    if let Some(pid_file) = &settings.pid_file {
        return find_by_pid_file(settings, pid_file);
    }
    if systemd::is_booted() {
        let unit = systemd::find_sshd_service().map_err(systemd_error)?;
        if let Some(unit) = unit {
            return find_by_unit(settings, &unit);
        }
    }
    find_by_pid_file(settings, Path::new(DEFAULT_PID_FILE))
}

fn sshd_not_found(text: impl Into<String>) -> Refusal {
    Refusal::new(Reason::SshdNotFound, text)
}

/// `IO_ERROR` if systemd does not answer. This is not the same as a missing sshd: otherwise recovery would finish
/// without a reload.
fn systemd_error(error: String) -> Refusal {
    Refusal::new(Reason::IoError, format!("systemd does not say who sshd is: {error}"))
}

fn find_by_unit(settings: &SshdSettings, unit: &systemd::Unit) -> Result<LocatedSshd, Refusal> {
    let words = systemd::read_exec_start(&unit.id);
    let id = &unit.id;
    if unit.is_active() {
        return match find_unit_main_process(settings, unit, &words) {
            Err(refusal) if refusal.reason == Reason::SshdNotFound => {
                find_by_main_file(settings)?.ok_or(refusal)
            }
            found => found,
        };
    }
    if let Some(found) = find_by_main_file(settings)? {
        return Ok(found);
    }
    if let Some(text) = describe_stuck_unit(unit) {
        return Err(Refusal::new(Reason::SshdReloadUnsafe, text));
    }
    let words = words.map_err(|error| {
        sshd_not_found(format!(
            "{id} is {}, and the options that sshd starts with can't be told: {error}; start it, or \
             correct the unit",
            unit.active_state
        ))
    })?;
    let socket = systemd::find_accept_socket().map_err(systemd_error)?;
    Ok(LocatedSshd {
        program: choose_start_program(&words.program, settings),
        arguments: words.arguments,
        running: socket.is_some(),
        pid: None,
        options_are_known: true,
        reload: ReloadMethod::None(match &socket {
            Some(socket) => {
                format!("{socket} starts an sshd for each connection, which reads its files then")
            }
            None => format!("{id} is {}: nothing runs that would have to be told", unit.active_state),
        }),
        name: id.clone(),
    })
}

/// The listener that is the main process of an active unit.
fn find_unit_main_process(
    settings: &SshdSettings,
    unit: &systemd::Unit,
    words: &Result<systemd::ExecStart, String>,
) -> Result<LocatedSshd, Refusal> {
    let id = &unit.id;
    let name = format!("{id} (pid {})", unit.main_pid);
    let unit_words = words.as_ref().ok().map(|words| words.arguments.as_slice());
    let found = process::listener_arguments(unit.main_pid, &settings.binary, unit_words);
    let arguments = found.map_err(|error| match (error, words) {
        (NotListener::Gone, _) => {
            sshd_not_found(format!("{id} is active without a main process; restart it"))
        }
        (NotListener::Other(text), _) => {
            sshd_not_found(format!("the main process of {name} is no sshd: {text}"))
        }
        (NotListener::Io(text), _) => Refusal::new(Reason::IoError, format!("{name}: {text}")),
        (NotListener::Unclear(text), Err(error)) => sshd_not_found(format!("{name}: {text}; {error}")),
        (NotListener::Unclear(text), Ok(_)) => {
            sshd_not_found(format!("{name}: {text}; restart it, so that it runs with its unit's options"))
        }
    })?;
    let program = require_listener_program(unit.main_pid, &arguments, &name)?;
    let reload = choose_reload_method(unit.main_pid, &arguments, Some(unit))?;
    let pid = Some(unit.main_pid);
    Ok(LocatedSshd { program, arguments, running: true, pid, options_are_known: true, reload, name })
}

/// The way to reload a listener: by the service whose main process it is if that service supports a reload,
/// otherwise by a signal.
fn choose_reload_method(
    pid: i32,
    arguments: &[String],
    unit: Option<&systemd::Unit>,
) -> Result<ReloadMethod, Refusal> {
    let by_signal = ReloadMethod::Pid { pid, arguments: arguments.to_vec() };
    let Some(unit) = unit else { return Ok(by_signal) };
    let sockets = systemd::list_active_sockets(unit).map_err(systemd_error)?;
    match (sockets.is_empty(), unit.is_masked()) {
        (true, _) if unit.is_reloadable() => Ok(ReloadMethod::Unit(unit.id.clone())),
        (true, _) => Ok(by_signal),
        (false, false) => Ok(ReloadMethod::SocketUnit(unit.id.clone())),
        // A SIGHUP would end this sshd, and systemd starts no masked unit.
        (false, true) => Err(Refusal::new(
            Reason::SshdReloadUnsafe,
            format!(
                "{0} is masked and its sockets are systemd's, so that its sshd can't be told of a change: `systemctl unmask \
                 {0}`, and try again",
                unit.id
            ),
        )),
    }
}

/// The listener that uses the agent's main file, whatever started it (KP-6.22): a person, another unit, a
/// supervisor, a unit that claims to be inactive. If there are several, the one that listens on a port of that
/// file.
fn find_by_main_file(settings: &SshdSettings) -> Result<Option<LocatedSshd>, Refusal> {
    let Ok(main) = sshd::find_main_file(settings) else { return Ok(None) };
    let mut found = Vec::new();
    for listener in process::list_sshd_listeners(&settings.binary) {
        found.extend(match_main_file(settings, &main, listener)?);
    }
    if found.len() > 1 {
        let configured = sshd::query_listening_ports(settings, &main, &settings.binary, &[])?;
        let is_it = |(located, ports): &(LocatedSshd, Vec<u16>)| {
            let ports_by_options =
                || sshd::query_listening_ports(settings, &main, &located.program, &located.arguments);
            let own = if ports.is_empty() { ports_by_options().unwrap_or_default() } else { ports.clone() };
            own.iter().any(|port| configured.contains(port))
        };
        let names: Vec<String> = found.iter().map(|(located, _)| located.name.clone()).collect();
        found.retain(is_it);
        if found.len() != 1 {
            return Err(sshd_not_found(format!(
                "several sshd run by {}, and which of them is meant cannot be told: {}; end all but one, or name its pid file \
                 as 'pid_file' in [sshd] of the agent's configuration",
                main.display(),
                names.join(", ")
            )));
        }
    }
    let Some((mut located, _)) = found.pop() else { return Ok(None) };
    if let Some(pid) = located.pid {
        let unit = systemd::find_service_by_main_pid(pid).map_err(systemd_error)?;
        located.reload = choose_reload_method(pid, &located.arguments, unit.as_ref())?;
    }
    Ok(Some(located))
}

/// The pid of the listener that uses the agent's main file, if it runs with these options. Another sshd on the same
/// files, with its own port, is not the one that was observed.
pub(super) fn find_pid_by_main_file(settings: &SshdSettings, options: &[String]) -> Option<i32> {
    let found = find_by_main_file(settings).ok().flatten()?;
    found.pid.filter(|_| has_options(&found.arguments, options))
}

/// Returns true if the agent would query a listener with these arguments with these options.
pub(super) fn has_options(arguments: &[String], options: &[String]) -> bool {
    listener::select_query_options(arguments).is_ok_and(|found| found.options == options)
}

/// The located sshd for a listener, with its ports, if the listener uses the agent's main file.
fn match_main_file(
    settings: &SshdSettings,
    main: &Path,
    OtherListener { pid, ports, .. }: OtherListener,
) -> Result<Option<(LocatedSshd, Vec<u16>)>, Refusal> {
    let Some(arguments) = resolve_listener_arguments(settings, pid) else { return Ok(None) };
    let named = listener::select_query_options(&arguments).ok().and_then(|found| found.config);
    if named.as_ref().is_some_and(|named| !sshd::is_same_file(named, main)) {
        return Ok(None);
    }
    let name = format!("the sshd with pid {pid}");
    let program = require_listener_program(pid, &arguments, &name)?;
    // A program that does not report its built-in main file may be another program with the same name.
    let is_built_with_main = || {
        let built_in = sshd::query_built_in_config(&program)?;
        Ok::<bool, Refusal>(built_in.is_some_and(|read| sshd::is_same_file(&read, main)))
    };
    if named.is_none() && !is_built_with_main()? {
        return Ok(None);
    }
    let reload = ReloadMethod::Pid { pid, arguments: arguments.clone() };
    let located = LocatedSshd {
        program,
        arguments,
        running: true,
        pid: Some(pid),
        options_are_known: true,
        reload,
        name,
    };
    Ok(Some((located, ports)))
}

/// The arguments of a listener. If its process title is too short for them, they may come from its service.
fn resolve_listener_arguments(settings: &SshdSettings, pid: i32) -> Option<Vec<String>> {
    match process::listener_arguments(pid, &settings.binary, None) {
        Ok(arguments) => Some(arguments),
        Err(NotListener::Unclear(_)) if systemd::is_booted() => {
            let words = systemd::read_exec_start(&process::read_cgroup_service(pid)?).ok()?;
            process::listener_arguments(pid, &settings.binary, Some(&words.arguments)).ok()
        }
        Err(_) => None,
    }
}

/// The program of a running listener.
fn require_listener_program(pid: i32, arguments: &[String], name: &str) -> Result<PathBuf, Refusal> {
    process::find_listener_program(pid, arguments).map_err(|why| {
        sshd_not_found(format!(
            "{name}: which program answers for it cannot be told: {why}; install that program again, or restart this sshd"
        ))
    })
}

/// The program that a unit would start that does not run. If the unit starts a script around sshd, the configured
/// program is used.
fn choose_start_program(program: &Path, settings: &SshdSettings) -> PathBuf {
    let answers = ensure_responsive(program).is_ok();
    let is_one =
        answers && program.is_absolute() && program.is_file() && process::is_sshd(program, &settings.binary);
    if is_one { program.to_owned() } else { settings.binary.clone() }
}

/// The reason why a unit's sshd cannot be reloaded. A unit that stays in a transitional state loses a reload. If
/// its listener does not exist yet, it starts in a moment, and it is unknown which files it will have read.
pub(super) fn describe_stuck_unit(unit: &systemd::Unit) -> Option<String> {
    let (id, state) = (&unit.id, &unit.active_state);
    let stays = unit.is_transitioning() && state != "deactivating";
    stays.then(|| {
        format!(
            "{id} stays {state}, so that its sshd can't be told of a change: see 'systemctl status {id}', and try again"
        )
    })
}

fn find_by_pid_file(settings: &SshdSettings, pid_file: &Path) -> Result<LocatedSshd, Refusal> {
    let named = find_pid_file_listener(settings, pid_file);
    match &named {
        Ok(LocatedSshd { running: true, .. }) => named,
        Err(refusal) if refusal.reason != Reason::SshdNotFound => named,
        Ok(_) | Err(_) => find_by_main_file(settings)?.map_or(named, Ok),
    }
}

/// The listener that a pid file names.
fn find_pid_file_listener(settings: &SshdSettings, pid_file: &Path) -> Result<LocatedSshd, Refusal> {
    let nobody = |text: String| LocatedSshd {
        program: settings.binary.clone(),
        arguments: vec![settings.binary.to_string_lossy().into_owned()],
        running: false,
        pid: None,
        options_are_known: false,
        reload: ReloadMethod::None(text),
        name: format!("the sshd of {}", pid_file.display()),
    };
    let Some(pid) = wait_for_pid_file(pid_file, &settings.binary)? else {
        return Ok(nobody(format!("there is no {}: no sshd runs", pid_file.display())));
    };
    match process::listener_arguments(pid, &settings.binary, None) {
        Ok(arguments) => {
            let name = format!("the sshd of {} (pid {pid})", pid_file.display());
            Ok(LocatedSshd {
                program: require_listener_program(pid, &arguments, &name)?,
                reload: ReloadMethod::Pid { pid, arguments: arguments.clone() },
                arguments,
                running: true,
                pid: Some(pid),
                options_are_known: true,
                name,
            })
        }
        Err(NotListener::Gone) => {
            Ok(nobody(format!("{} names pid {pid}, which does not run", pid_file.display())))
        }
        Err(NotListener::Other(text)) => {
            Ok(nobody(format!("{} names pid {pid}, which is no sshd listener: {text}", pid_file.display())))
        }
        Err(NotListener::Io(text)) => {
            Err(Refusal::new(Reason::IoError, format!("the sshd of {}: {text}", pid_file.display())))
        }
        Err(NotListener::Unclear(text)) => {
            let file = pid_file.display();
            Err(sshd_not_found(format!(
                "the sshd of {file} (pid {pid}): {text}; restart it with simpler options"
            )))
        }
    }
}

/// The pid in a pid file, after no sshd handles a SIGHUP any more. sshd removes its pid file, and writes it again
/// when it listens.
fn wait_for_pid_file(pid_file: &Path, binary: &Path) -> Result<Option<i32>, Refusal> {
    let mut pid = read_pid_file(pid_file);
    if matches!(pid, Ok(None)) {
        wait_until(RELOAD_TIMEOUT, || {
            // Keep this order: the second read sees an sshd that starts to listen between the two.
            let is_restarting = process::is_any_sshd_starting(binary);
            pid = read_pid_file(pid_file);
            !is_restarting || !matches!(pid, Ok(None))
        });
    }
    pid
}

/// The pid in a pid file; `None` if there is no such file.
pub(super) fn read_pid_file(pid_file: &Path) -> Result<Option<i32>, Refusal> {
    ensure_responsive(pid_file)?;
    let text = match fs::read(pid_file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let text = format!("cannot read sshd's pid file {}: {error}", pid_file.display());
            return Err(Refusal::new(Reason::IoError, text));
        }
    };
    let pid = text.trim().parse::<i32>().ok().filter(|pid| *pid > 1);
    pid.map(Some).ok_or_else(|| {
        sshd_not_found(format!(
            "sshd's pid file {} holds no pid: restart sshd, or correct 'pid_file' in [sshd] of the agent's \
             configuration",
            pid_file.display()
        ))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pid_file_content_is_validated() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        assert_eq!(read_pid_file(&file), Ok(None));
        // A file that cannot be read is not the same as a missing file.
        assert_eq!(read_pid_file(directory.path()).unwrap_err().reason, Reason::IoError);
        for (text, expected) in [
            ("12\n", Some(12)),
            (" 7", Some(7)),
            ("", None),
            ("0", None),
            ("-5", None),
            ("1", None),
            ("x", None),
        ] {
            fs::write(&file, text).unwrap();
            match expected {
                Some(pid) => assert_eq!(read_pid_file(&file), Ok(Some(pid))),
                None => {
                    assert_eq!(read_pid_file(&file).unwrap_err().reason, Reason::SshdNotFound, "{text:?}")
                }
            }
        }
    }
}
