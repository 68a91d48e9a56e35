//! Which sshd is asked and told (contract 6, "Whom we ask" and "Reload", and 10.5): the listener of the configured pid
//! file, else systemd's unit, else the listener of /run/sshd.pid. The program that is asked is that listener's own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::process::{self, NotListener};
use super::service::{AGAIN, comes_within};
use super::sshd::SshdSettings;
use super::systemd;
use crate::policy::observation::Reload;
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
    /// Whether they are a running listener's.
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
    if let Some(text) = held_up(unit) {
        return Err(Refusal::new(Reason::SshdReloadUnsafe, text));
    }
    if !unit.is_active() {
        let words = words.map_err(|error| {
            not_found(format!(
                "{id} is {}, and the options that sshd starts with can't be told: {error}; start it, or \
                 correct the unit",
                unit.active_state
            ))
        })?;
        let reload =
            Reload::None(format!("{id} is {}: nothing runs that would have to be told", unit.active_state));
        return Ok(Located {
            program: to_be_started(&words.program, settings),
            arguments: words.arguments,
            running: false,
            pid: None,
            options_are_known: true,
            reload,
            name: id.clone(),
        });
    }
    let name = format!("{id} (pid {})", unit.main_pid);
    let unit_words = words.as_ref().ok().map(|words| words.arguments.as_slice());
    let found = process::listener_arguments(unit.main_pid, &settings.binary, unit_words);
    let arguments = found.map_err(|error| match (error, &words) {
        (NotListener::Gone, _) => not_found(format!("{id} is active without a main process; restart it")),
        (NotListener::Other(text), _) => not_found(format!("the main process of {name} is no sshd: {text}")),
        (NotListener::Io(text), _) => Refusal::new(Reason::IoError, format!("{name}: {text}")),
        (NotListener::Unclear(text), Err(error)) => not_found(format!("{name}: {text}; {error}")),
        (NotListener::Unclear(text), Ok(_)) => {
            not_found(format!("{name}: {text}; restart it, so that it runs with its unit's options"))
        }
    })?;
    let program = program_of(unit.main_pid, &arguments, &name)?;
    let sockets = systemd::active_sockets(unit).map_err(unsaid)?;
    let reload = if sockets.is_empty() { Reload::Unit(id.clone()) } else { Reload::SocketUnit(id.clone()) };
    let pid = Some(unit.main_pid);
    Ok(Located { program, arguments, running: true, pid, options_are_known: true, reload, name })
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
    let is_one = program.is_absolute() && program.is_file() && process::is_sshd(program, &settings.binary);
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
    super::files::reach(pid_file)?;
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
