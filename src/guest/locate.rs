//! Which sshd is asked and told (KP-6.1 to KP-6.3 and KP-6.22): the listener of the configured pid
//! file, else systemd's unit, else the listener of /run/sshd.pid. Where these lead to no listener, the one that runs by our
//! main file, whatever started it. The program that is asked is that listener's own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::reach;
use super::process::{self, NotListener};
use super::service::{AGAIN, comes_within};
use super::sshd::{self, SshdSettings};
use super::systemd;
use crate::policy::listener;
use crate::policy::observation::{OtherListener, Reload};
use crate::policy::outcome::{Reason, Refusal};

/// The pid file of an sshd that nobody configured otherwise.
pub(super) const DEFAULT_PID_FILE: &str = "/run/sshd.pid";

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    /// The program that is asked: the listener's own, else the one that the unit would start, else the configured one.
    pub(super) program: PathBuf,
    /// The listener's arguments, else those it would be started with; the program first.
    pub(super) arguments: Vec<String>,
    /// Whether something listens for it: they are a running listener's, or a socket unit starts an sshd for each connection.
    pub(super) running: bool,
    /// That listener.
    pub(super) pid: Option<i32>,
    /// Whether it is known with which options sshd runs or would be started.
    pub(super) options_are_known: bool,
    /// How it is told.
    pub(super) reload: Reload,
    /// Who it is, for messages.
    pub(super) name: String,
}

/// Finds the sshd of this guest.
pub(super) fn locate(settings: &SshdSettings) -> Result<Located, Refusal> {
    if let Some(pid_file) = &settings.pid_file {
        return by_pid_file(settings, pid_file);
    }
    if systemd::is_running() {
        let unit = systemd::sshd_service().map_err(unsaid)?;
        if let Some(unit) = unit {
            return by_unit(settings, &unit);
        }
    }
    by_pid_file(settings, Path::new(DEFAULT_PID_FILE))
}

fn not_found(text: impl Into<String>) -> Refusal {
    Refusal::new(Reason::SshdNotFound, text)
}

/// A systemd that does not answer is no sshd that is not there: recovery would tell nobody, and be done.
fn unsaid(error: String) -> Refusal {
    Refusal::new(Reason::IoError, format!("systemd does not say who sshd is: {error}"))
}

fn by_unit(settings: &SshdSettings, unit: &systemd::Unit) -> Result<Located, Refusal> {
    let words = systemd::start_words(&unit.id);
    let id = &unit.id;
    if unit.is_active() {
        return match main_process(settings, unit, &words) {
            Err(refusal) if refusal.reason == Reason::SshdNotFound => by_main_file(settings)?.ok_or(refusal),
            found => found,
        };
    }
    if let Some(found) = by_main_file(settings)? {
        return Ok(found);
    }
    if let Some(text) = held_up(unit) {
        return Err(Refusal::new(Reason::SshdReloadUnsafe, text));
    }
    let words = words.map_err(|error| {
        not_found(format!(
            "{id} is {}, and the options that sshd starts with can't be told: {error}; start it, or \
             correct the unit",
            unit.active_state
        ))
    })?;
    let socket = systemd::socket_for_each_connection().map_err(unsaid)?;
    Ok(Located {
        program: to_be_started(&words.program, settings),
        arguments: words.arguments,
        running: socket.is_some(),
        pid: None,
        options_are_known: true,
        reload: Reload::None(match &socket {
            Some(socket) => {
                format!("{socket} starts an sshd for each connection, which reads its files then")
            }
            None => format!("{id} is {}: nothing runs that would have to be told", unit.active_state),
        }),
        name: id.clone(),
    })
}

/// The listener that is the main process of an active unit.
fn main_process(
    settings: &SshdSettings,
    unit: &systemd::Unit,
    words: &Result<systemd::StartWords, String>,
) -> Result<Located, Refusal> {
    let id = &unit.id;
    let name = format!("{id} (pid {})", unit.main_pid);
    let unit_words = words.as_ref().ok().map(|words| words.arguments.as_slice());
    let found = process::listener_arguments(unit.main_pid, &settings.binary, unit_words);
    let arguments = found.map_err(|error| match (error, words) {
        (NotListener::Gone, _) => not_found(format!("{id} is active without a main process; restart it")),
        (NotListener::Other(text), _) => not_found(format!("the main process of {name} is no sshd: {text}")),
        (NotListener::Io(text), _) => Refusal::new(Reason::IoError, format!("{name}: {text}")),
        (NotListener::Unclear(text), Err(error)) => not_found(format!("{name}: {text}; {error}")),
        (NotListener::Unclear(text), Ok(_)) => {
            not_found(format!("{name}: {text}; restart it, so that it runs with its unit's options"))
        }
    })?;
    let program = program_of(unit.main_pid, &arguments, &name)?;
    let reload = told(unit.main_pid, &arguments, Some(unit))?;
    let pid = Some(unit.main_pid);
    Ok(Located { program, arguments, running: true, pid, options_are_known: true, reload, name })
}

/// How a listener is told: by the service whose main process it is, where that can; else by a signal.
fn told(pid: i32, arguments: &[String], unit: Option<&systemd::Unit>) -> Result<Reload, Refusal> {
    let by_signal = Reload::Pid { pid, arguments: arguments.to_vec() };
    let Some(unit) = unit else { return Ok(by_signal) };
    let sockets = systemd::active_sockets(unit).map_err(unsaid)?;
    match (sockets.is_empty(), unit.is_masked()) {
        (true, _) if unit.can_be_told() => Ok(Reload::Unit(unit.id.clone())),
        (true, _) => Ok(by_signal),
        (false, false) => Ok(Reload::SocketUnit(unit.id.clone())),
        // A SIGHUP would end it, and systemd starts none that is masked.
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

/// The listener that runs by our main file, whatever started it (KP-6.22): by hand, by another unit, by a supervisor,
/// by a unit that says it is inactive. Among several, the one that listens on a port which that file names.
fn by_main_file(settings: &SshdSettings) -> Result<Option<Located>, Refusal> {
    let Ok(main) = sshd::main_file_of(settings) else { return Ok(None) };
    let mut found = Vec::new();
    for listener in process::listeners(&settings.binary) {
        found.extend(runs_by(settings, &main, listener)?);
    }
    if found.len() > 1 {
        let configured = sshd::ports_of(settings, &main, &settings.binary, &[])?;
        let is_it = |(located, ports): &(Located, Vec<u16>)| {
            let by_its_options = || sshd::ports_of(settings, &main, &located.program, &located.arguments);
            let own = if ports.is_empty() { by_its_options().unwrap_or_default() } else { ports.clone() };
            own.iter().any(|port| configured.contains(port))
        };
        let names: Vec<String> = found.iter().map(|(located, _)| located.name.clone()).collect();
        found.retain(is_it);
        if found.len() != 1 {
            return Err(not_found(format!(
                "several sshd run by {}, and which of them is meant cannot be told: {}; end all but one, or name its pid file \
                 as 'pid_file' in [sshd] of the agent's configuration",
                main.display(),
                names.join(", ")
            )));
        }
    }
    let Some((mut located, _)) = found.pop() else { return Ok(None) };
    if let Some(pid) = located.pid {
        let unit = systemd::service_of(pid).map_err(unsaid)?;
        located.reload = told(pid, &located.arguments, unit.as_ref())?;
    }
    Ok(Some(located))
}

/// The pid of that listener.
pub(super) fn pid_by_main_file(settings: &SshdSettings) -> Option<i32> {
    by_main_file(settings).ok().flatten()?.pid
}

/// A listener as the one that is meant, with its ports, if it runs by our main file.
fn runs_by(
    settings: &SshdSettings,
    main: &Path,
    OtherListener { pid, ports, .. }: OtherListener,
) -> Result<Option<(Located, Vec<u16>)>, Refusal> {
    let Some(arguments) = arguments_of(settings, pid) else { return Ok(None) };
    let named = listener::repeated(&arguments).ok().and_then(|found| found.config);
    if named.as_ref().is_some_and(|named| !sshd::is_same_file(named, main)) {
        return Ok(None);
    }
    let name = format!("the sshd with pid {pid}");
    let program = program_of(pid, &arguments, &name)?;
    // One that does not say which file it was built with may be another program of such a name.
    let is_built_with_ours = || {
        let built_in = sshd::built_in_config(&program)?;
        Ok::<bool, Refusal>(built_in.is_some_and(|read| sshd::is_same_file(&read, main)))
    };
    if named.is_none() && !is_built_with_ours()? {
        return Ok(None);
    }
    let reload = Reload::Pid { pid, arguments: arguments.clone() };
    let located =
        Located { program, arguments, running: true, pid: Some(pid), options_are_known: true, reload, name };
    Ok(Some((located, ports)))
}

/// The arguments of a listener; its service may know those that its title is too short for.
fn arguments_of(settings: &SshdSettings, pid: i32) -> Option<Vec<String>> {
    match process::listener_arguments(pid, &settings.binary, None) {
        Ok(arguments) => Some(arguments),
        Err(NotListener::Unclear(_)) if systemd::is_running() => {
            let words = systemd::start_words(&process::service(pid)?).ok()?;
            process::listener_arguments(pid, &settings.binary, Some(&words.arguments)).ok()
        }
        Err(_) => None,
    }
}

/// The program of a running listener.
fn program_of(pid: i32, arguments: &[String], name: &str) -> Result<PathBuf, Refusal> {
    process::program(pid, arguments).map_err(|why| {
        not_found(format!(
            "{name}: which program answers for it cannot be told: {why}; install that program again, or restart this sshd"
        ))
    })
}

/// The program that a unit which does not run would start. A script around sshd is not asked in its place.
fn to_be_started(program: &Path, settings: &SshdSettings) -> PathBuf {
    let answers = reach(program).is_ok();
    let is_one =
        answers && program.is_absolute() && program.is_file() && process::is_sshd(program, &settings.binary);
    if is_one { program.to_owned() } else { settings.binary.clone() }
}

/// Why a unit's sshd can't be told: one that stays on its way swallows a reload. Where its listener is not there yet,
/// it comes in a moment, and nobody knows which files it will have read.
pub(super) fn held_up(unit: &systemd::Unit) -> Option<String> {
    let (id, state) = (&unit.id, &unit.active_state);
    let stays = unit.is_on_its_way() && state != "deactivating";
    stays.then(|| {
        format!(
            "{id} stays {state}, so that its sshd can't be told of a change: see 'systemctl status {id}', and try again"
        )
    })
}

fn by_pid_file(settings: &SshdSettings, pid_file: &Path) -> Result<Located, Refusal> {
    let named = named_by(settings, pid_file);
    match &named {
        Ok(Located { running: true, .. }) => named,
        Err(refusal) if refusal.reason != Reason::SshdNotFound => named,
        Ok(_) | Err(_) => by_main_file(settings)?.map_or(named, Ok),
    }
}

/// Whom a pid file names.
fn named_by(settings: &SshdSettings, pid_file: &Path) -> Result<Located, Refusal> {
    let nobody = |text: String| Located {
        program: settings.binary.clone(),
        arguments: vec![settings.binary.to_string_lossy().into_owned()],
        running: false,
        pid: None,
        options_are_known: false,
        reload: Reload::None(text),
        name: format!("the sshd of {}", pid_file.display()),
    };
    let Some(pid) = settled_pid(pid_file, &settings.binary)? else {
        return Ok(nobody(format!("there is no {}: no sshd runs", pid_file.display())));
    };
    match process::listener_arguments(pid, &settings.binary, None) {
        Ok(arguments) => {
            let name = format!("the sshd of {} (pid {pid})", pid_file.display());
            Ok(Located {
                program: program_of(pid, &arguments, &name)?,
                reload: Reload::Pid { pid, arguments: arguments.clone() },
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
            Err(not_found(format!("the sshd of {file} (pid {pid}): {text}; restart it with simpler options")))
        }
    }
}

/// The same, once no sshd is on its way through a SIGHUP: it takes its pid file away, and writes it anew when it listens.
fn settled_pid(pid_file: &Path, binary: &Path) -> Result<Option<i32>, Refusal> {
    let mut pid = read_pid(pid_file);
    if matches!(pid, Ok(None)) {
        comes_within(AGAIN, || {
            // In this order: what arrives between the two looks is seen by the second.
            let is_coming = process::is_one_on_its_way(binary);
            pid = read_pid(pid_file);
            !is_coming || !matches!(pid, Ok(None))
        });
    }
    pid
}

/// The pid in a pid file; `None` where there is no such file.
pub(super) fn read_pid(pid_file: &Path) -> Result<Option<i32>, Refusal> {
    reach(pid_file)?;
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
        not_found(format!(
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
    fn pid_files() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        assert_eq!(read_pid(&file), Ok(None));
        // What cannot be read is not what is not there.
        assert_eq!(read_pid(directory.path()).unwrap_err().reason, Reason::IoError);
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
                Some(pid) => assert_eq!(read_pid(&file), Ok(Some(pid))),
                None => assert_eq!(read_pid(&file).unwrap_err().reason, Reason::SshdNotFound, "{text:?}"),
            }
        }
    }
}
