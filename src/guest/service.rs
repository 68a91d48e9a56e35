//! Reloads sshd (KP-6.22 to KP-6.25): checks that a reload does not end sshd, reloads it, and verifies that the new
//! configuration is in effect. If sshd did not survive, this module starts it again.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::locate::{self, DEFAULT_PID_FILE};
use super::sockets::{self, ListeningSocket};
use super::sshd::{SshdSettings, query_current_effective};
use super::{child, process, sessions, systemd};
use crate::policy::connection::listen_addresses;
use crate::policy::listener;
use crate::policy::observation::{ReloadMethod, Sshd};
use crate::policy::outcome::{Reason, Refusal};

/// The time limit within which sshd must listen on its ports again.
pub(super) const RELOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The interval between two looks at the listening sockets.
const SOCKET_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The time that a supervisor gets to restart a listener that it kept in the foreground.
const SUPERVISOR_RESTART_TIMEOUT: Duration = Duration::from_secs(1);

/// The reason why a changed configuration did not come into effect: `SSHD_RELOAD_FAILED`, after the files were
/// restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadFailure {
    /// The reason in one line, for a person.
    pub message: String,
}

impl fmt::Display for ReloadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ReloadFailure {}

impl From<ReloadFailure> for Refusal {
    fn from(failure: ReloadFailure) -> Self {
        Self::new(Reason::SshdReloadFailed, failure.message)
    }
}

fn reload_failure(message: impl Into<String>) -> ReloadFailure {
    ReloadFailure { message: message.into() }
}

/// Checks that sshd would survive a SIGHUP now. A SIGHUP also applies pending edits, and sshd ends if it can bind
/// none of a port's addresses. So sshd must already listen on each configured port, and each address on which it
/// listens must still be configured. If a socket unit holds the sockets, sshd binds none. Since OpenSSH 9.8 sshd
/// also ends if the programs that serve a connection are missing.
pub fn check_reload_safe(settings: &SshdSettings, sshd: &Sshd) -> Result<(), Refusal> {
    let started = find_sshd_started_since(settings, sshd)?;
    let sshd = started.as_ref().unwrap_or(sshd);
    let pid = match find_reload_target(settings, sshd) {
        Ok(ReloadTarget::NotRunning) => return Ok(()),
        Ok(ReloadTarget::Pid(pid)) => pid,
        Err(message) => return Err(Refusal::new(Reason::SshdReloadUnsafe, message)),
    };
    let effective = query_current_effective(settings, sshd)?;
    if let Some(why) = sessions::check_session_programs(&sshd.binary, &effective) {
        let message = format!(
            "{why}: a reload would end sshd, or leave one that serves nobody; put the program in its place, or correct \
             the setting, and try again"
        );
        return Err(Refusal::new(Reason::SshdReloadUnsafe, message));
    }
    if matches!(sshd.reload, ReloadMethod::SocketUnit(_)) {
        return Ok(());
    }
    let wanted = listen_addresses(&effective);
    let sockets = read_listening_sockets(Some(pid))
        .map_err(|failure| Refusal::new(Reason::IoError, failure.message))?;
    if let Some(port) = find_unserved_port(&wanted, &sockets, owned_by(pid)) {
        let addresses: Vec<String> =
            wanted.iter().filter(|address| address.port() == port).map(SocketAddr::to_string).collect();
        let message = format!(
            "sshd's configuration says port {port} ({}), where the running sshd does not listen: a reload would \
             make this edit live too, and might end sshd; restart sshd, or take the edit back, and try again",
            addresses.join(", ")
        );
        return Err(Refusal::new(Reason::SshdReloadUnsafe, message));
    }
    let held = HeldSockets::from_pid(pid, &sockets, &wanted);
    let Some(address) = held.addresses().find(|address| !contains_address(&wanted, address)) else {
        return Ok(());
    };
    let message = format!(
        "the running sshd listens on {address}, and its configuration no longer says so: a reload would make this edit \
         live too, and nobody could come in there; restart sshd, or take the edit back, and try again"
    );
    Err(Refusal::new(Reason::SshdReloadUnsafe, message))
}

/// The sockets on which an sshd listens.
struct HeldSockets(Vec<ListeningSocket>);

impl HeldSockets {
    /// The sockets of this process. If its descriptors cannot be read: the sockets of its user on the ports of
    /// `wanted`.
    fn from_pid(pid: i32, sockets: &[ListeningSocket], wanted: &[SocketAddr]) -> Self {
        let own = process::socket_inodes(pid);
        let is_wanted = |socket: &ListeningSocket| wanted.iter().any(|it| it.port() == socket.address.port());
        let counts = |socket: &&ListeningSocket| match &own {
            Some(own) => own.contains(&socket.inode),
            None => is_owned_by_own_user(socket) && is_wanted(socket),
        };
        Self(sockets.iter().filter(counts).copied().collect())
    }

    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|socket| socket.address)
    }
}

/// Returns true if `address` is one of the addresses. Neither side has a zone (`%eth0`).
fn contains_address(addresses: &[SocketAddr], address: &SocketAddr) -> bool {
    addresses.iter().any(|other| other.ip() == address.ip() && other.port() == address.port())
}

/// Makes the running sshd read its files again, and waits until it has done so. Then sshd listens again on each
/// port, on a new socket, and on each address on which it listened before.
pub fn reload_sshd(settings: &SshdSettings, sshd: &Sshd) -> Result<(), ReloadFailure> {
    let started =
        find_sshd_started_since(settings, sshd).map_err(|refusal| reload_failure(refusal.message))?;
    let sshd = started.as_ref().unwrap_or(sshd);
    let pid = match find_reload_target(settings, sshd).map_err(reload_failure)? {
        ReloadTarget::NotRunning => return Ok(()),
        ReloadTarget::Pid(pid) => pid,
    };
    if let ReloadMethod::SocketUnit(unit) = &sshd.reload {
        return restart_socket_activated_unit(settings, unit, pid);
    }
    let effective =
        query_current_effective(settings, sshd).map_err(|refusal| reload_failure(refusal.message))?;
    let wanted = listen_addresses(&effective);
    // An sshd that still handles an earlier SIGHUP would lose this one, and does not have all its sockets yet.
    if !wait_until(RELOAD_TIMEOUT, || process::catches_sighup(pid) != Some(false)) {
        return Err(reload_failure(format!("sshd (pid {pid}) ignores SIGHUP; see whether it started")));
    }
    let sockets = read_listening_sockets(Some(pid))?;
    let before = SocketsBeforeReload {
        inodes: sockets.iter().map(|socket| socket.inode).collect(),
        must_return: HeldSockets::from_pid(pid, &sockets, &wanted)
            .addresses()
            .filter(|it| contains_address(&wanted, it))
            .collect(),
        perhaps_its_own: match process::socket_inodes(pid) {
            None if sshd.has_read_its_files != Some(true) => {
                let is_alike =
                    |it: &&ListeningSocket| wanted.iter().any(|other| other.ip() == it.address.ip());
                sockets
                    .iter()
                    .filter(|it| is_owned_by_own_user(it))
                    .filter(is_alike)
                    .map(|it| it.address)
                    .collect()
            }
            _ => Vec::new(),
        },
    };
    request_reload(settings, sshd, pid)?;
    wait_until_listening(sshd, pid, &wanted, &before)
}

/// Reloads the listener: by its unit if the unit is active and supports a reload, otherwise by a signal (KP-6.22).
fn request_reload(settings: &SshdSettings, sshd: &Sshd, pid: i32) -> Result<(), ReloadFailure> {
    if let ReloadMethod::Unit(unit) = &sshd.reload {
        let can_be_told = |unit: &systemd::Unit| unit.is_reloadable() && unit.main_pid == pid;
        let told = match systemd::show_unit(unit) {
            Ok(Some(found)) if can_be_told(&found) => systemd::run_job("reload", unit),
            Ok(_) => Err(format!("{unit} cannot be reloaded now")),
            Err(why) => Err(why),
        };
        let Err(why) = told else { return Ok(()) };
        tracing::warn!("{why}; sshd (pid {pid}) is told by a signal");
        // If the unit's reload failed because sshd refuses its files, a SIGHUP would end sshd.
        query_current_effective(settings, sshd).map_err(|refusal| reload_failure(refusal.message))?;
    }
    kill(Pid::from_raw(pid), Signal::SIGHUP)
        .map_err(|errno| reload_failure(format!("cannot send SIGHUP to sshd (pid {pid}): {errno}")))
}

/// Starts sshd again after a reload that failed and after the files were restored. A running sshd is not touched.
pub fn ensure_sshd_running(settings: &SshdSettings, sshd: &Sshd) -> Result<(), Refusal> {
    let lost = |message: String| {
        let text = format!("sshd did not come back: {message}; {}", recovery_hint());
        Refusal::new(Reason::SshdReloadFailed, text)
    };
    if matches!(sshd.reload, ReloadMethod::None(_)) {
        return Ok(());
    }
    // Query sshd first, because the query also creates sshd's directory. If the query fails, the earlier answer
    // counts.
    let wanted = match (query_current_effective(settings, sshd), sshd.answers.first()) {
        (Ok(effective), _) => listen_addresses(&effective),
        (Err(_), Some(answer)) => listen_addresses(&answer.effective),
        (Err(_), None) => Vec::new(),
    };
    match &sshd.reload {
        ReloadMethod::None(_) => return Ok(()),
        ReloadMethod::Unit(unit) => {
            let silent = || {
                find_unserved_port(
                    &wanted,
                    &read_listening_sockets(None).unwrap_or_default(),
                    is_owned_by_own_user,
                )
            };
            let is_alive = match find_reload_target(settings, sshd) {
                Ok(found) => matches!(found, ReloadTarget::Pid(_)),
                // systemd does not answer, so it could not start anything either.
                Err(_) => silent().is_none(),
            };
            if !is_alive {
                check_unit_startable(unit).map_err(lost)?;
                start_unit(unit).map_err(lost)?;
            }
        }
        ReloadMethod::SocketUnit(unit) => {
            start_failed_sockets(unit).map_err(lost)?;
            return start_unit(unit).map_err(lost);
        }
        ReloadMethod::Pid { arguments, .. } => {
            let alive = || matches!(find_reload_target(settings, sshd), Ok(ReloadTarget::Pid(_)));
            if alive()
                || (listener::stays_in_foreground(arguments) && wait_until(SUPERVISOR_RESTART_TIMEOUT, alive))
            {
                return Ok(());
            }
            restart_by_command_line(settings, arguments).map_err(lost)?;
        }
    }
    let silent = || {
        find_unserved_port(&wanted, &read_listening_sockets(None).unwrap_or_default(), is_owned_by_own_user)
    };
    // sshd listens before it writes its pid file. Until then, the next look would take it for a foreign listener.
    let is_named = || matches!(find_reload_target(settings, sshd), Ok(ReloadTarget::Pid(_)));
    wait_until(RELOAD_TIMEOUT, || silent().is_none() && is_named());
    match silent() {
        None => Ok(()),
        Some(port) => Err(lost(format!("nothing listens on port {port}"))),
    }
}

/// The sshd that did not run at the observation but was started since. It has read the files as they were then or
/// as they are now. An sshd that starts later reads the present files.
fn find_sshd_started_since(settings: &SshdSettings, sshd: &Sshd) -> Result<Option<Sshd>, Refusal> {
    if !matches!(sshd.reload, ReloadMethod::None(_)) {
        return Ok(None);
    }
    let found = locate::find_sshd(settings)?;
    Ok(found.running.then(|| Sshd { reload: found.reload, binary: found.program, ..sshd.clone() }))
}

/// The process that a reload must reach now.
enum ReloadTarget {
    /// No sshd runs that needs a reload.
    NotRunning,
    /// The pid of the unit's main process, or of a process that was verified to be an sshd listener.
    Pid(i32),
}

/// The present listener. It may have been restarted since the observation.
fn find_reload_target(settings: &SshdSettings, sshd: &Sshd) -> Result<ReloadTarget, String> {
    match &sshd.reload {
        ReloadMethod::None(_) => Ok(ReloadTarget::NotRunning),
        ReloadMethod::Unit(unit) | ReloadMethod::SocketUnit(unit) => {
            let unit = systemd::find_settled_unit(unit)?;
            if let Some(unit) = unit.as_ref().filter(|unit| unit.is_active()) {
                return Ok(ReloadTarget::Pid(unit.main_pid));
            }
            // The listener may still run, whatever the state of its unit: an administrator may have masked the unit
            // or removed its file.
            match (
                locate::find_pid_by_main_file(settings, &sshd.options),
                unit.as_ref().and_then(locate::describe_stuck_unit),
            ) {
                (Some(pid), _) => Ok(ReloadTarget::Pid(pid)),
                (None, Some(message)) => Err(message),
                (None, None) => Ok(ReloadTarget::NotRunning),
            }
        }
        ReloadMethod::Pid { pid, .. } => {
            let verified = |pid: &i32| process::listener_arguments(*pid, &settings.binary, None).is_ok();
            let file = settings.pid_file.as_deref().unwrap_or(Path::new(DEFAULT_PID_FILE));
            let named = || locate::read_pid_file(file).ok().flatten();
            let is_same_sshd = |pid: &i32| {
                process::listener_arguments(*pid, &settings.binary, None)
                    .is_ok_and(|arguments| locate::has_options(&arguments, &sshd.options))
            };
            let found = Some(*pid).filter(verified).or_else(|| named().filter(is_same_sshd));
            found
                .or_else(|| locate::find_pid_by_main_file(settings, &sshd.options))
                .map(ReloadTarget::Pid)
                .ok_or_else(|| {
                    format!("pid {pid} is no sshd listener any more, and {} names none", file.display())
                })
        }
    }
}

/// The first port for which no wanted address has a socket that satisfies `counts`.
fn find_unserved_port(
    wanted: &[SocketAddr],
    sockets: &[ListeningSocket],
    counts: impl Fn(&ListeningSocket) -> bool,
) -> Option<u16> {
    let listens = |address: &SocketAddr| {
        let same = |socket: &&ListeningSocket| {
            // Neither side has a zone (`%eth0`).
            socket.address.ip() == address.ip() && socket.address.port() == address.port()
        };
        sockets.iter().filter(same).any(&counts)
    };
    let served: BTreeSet<u16> =
        wanted.iter().filter(|address| listens(address)).map(SocketAddr::port).collect();
    wanted.iter().map(SocketAddr::port).find(|port| !served.contains(port))
}

/// Returns a check whether a socket belongs to the process `pid`: by its descriptors if they can be read, otherwise
/// by its user.
fn owned_by(pid: i32) -> impl Fn(&ListeningSocket) -> bool {
    let own = process::socket_inodes(pid);
    move |socket| own.as_ref().map_or_else(|| is_owned_by_own_user(socket), |own| own.contains(&socket.inode))
}

fn is_owned_by_own_user(socket: &ListeningSocket) -> bool {
    socket.uid == geteuid().as_raw()
}

fn read_listening_sockets(pid: Option<i32>) -> Result<Vec<ListeningSocket>, ReloadFailure> {
    sockets::list_listening_sockets(pid)
        .map_err(|error| reload_failure(format!("cannot read who listens (/proc/self/net/tcp): {error}")))
}

/// The listening sockets before a reload.
struct SocketsBeforeReload {
    /// The inodes of all listening sockets.
    inodes: BTreeSet<u64>,
    /// The addresses on which the listener must listen again.
    must_return: Vec<SocketAddr>,
    /// Used only if the listener's descriptors cannot be read and edits may have waited for the reload. The
    /// listening addresses of its user's sockets on one of the configured IP addresses.
    perhaps_its_own: Vec<SocketAddr>,
}

impl SocketsBeforeReload {
    /// Returns a check whether a socket belongs to the listener and did not exist before the reload.
    fn is_new(&self, pid: i32) -> impl Fn(&ListeningSocket) -> bool {
        let own = owned_by(pid);
        move |socket| !self.inodes.contains(&socket.inode) && own(socket)
    }

    /// An address on which the listener does not listen again with a socket that satisfies `is_new`. An address of
    /// `perhaps_its_own` was the listener's if no process listens on it since the reload.
    fn find_lost_address(
        &self,
        now: &[ListeningSocket],
        is_new: impl Fn(&ListeningSocket) -> bool,
    ) -> Option<SocketAddr> {
        let is_back = |address: &SocketAddr| now.iter().any(|it| it.address == *address && is_new(it));
        let is_there = |address: &SocketAddr| now.iter().any(|it| it.address == *address);
        let missing = self.must_return.iter().find(|address| !is_back(address));
        missing.or_else(|| self.perhaps_its_own.iter().find(|address| !is_there(address))).copied()
    }
}

fn describe_lost_address(pid: i32, address: SocketAddr) -> String {
    format!(
        "sshd (pid {pid}) listened on {address} before its reload, and does not any more: see whether another program took \
         that address"
    )
}

/// Waits until sshd listens on a new socket for each port, and for each address of `must_return`.
fn wait_until_listening(
    sshd: &Sshd,
    mut pid: i32,
    wanted: &[SocketAddr],
    before: &SocketsBeforeReload,
) -> Result<(), ReloadFailure> {
    let deadline = Instant::now() + RELOAD_TIMEOUT;
    loop {
        if !process::is_alive(pid) {
            pid = find_successor_pid(sshd, pid)?;
        }
        let mut sockets = read_listening_sockets(Some(pid))?;
        let silent = find_unserved_port(wanted, &sockets, before.is_new(pid));
        // A process that catches SIGHUP again has bound all the sockets that it will bind, and does not lose the
        // next SIGHUP.
        let catches_sighup = process::catches_sighup(pid).filter(|_| silent.is_none());
        let mut lost = before.find_lost_address(&sockets, before.is_new(pid));
        if lost.is_some() && catches_sighup == Some(true) {
            // A socket that sshd bound between the two reads counts.
            sockets = read_listening_sockets(Some(pid))?;
            lost = before.find_lost_address(&sockets, before.is_new(pid));
        }
        match lost {
            None if silent.is_none() && catches_sighup != Some(false) => return Ok(()),
            Some(address) if catches_sighup == Some(true) => {
                return Err(reload_failure(describe_lost_address(pid, address)));
            }
            _ => {}
        }
        if Instant::now() >= deadline {
            let seconds = RELOAD_TIMEOUT.as_secs();
            let has_old_sockets = find_unserved_port(wanted, &sockets, owned_by(pid)).is_none();
            return Err(reload_failure(match (silent, lost) {
                (Some(_), _) if has_old_sockets => {
                    format!(
                        "sshd (pid {pid}) was told to reload and still has its old sockets after {seconds} s"
                    )
                }
                (Some(port), _) => {
                    format!("sshd does not listen on port {port} again within {seconds} s of its reload")
                }
                (None, Some(address)) => describe_lost_address(pid, address),
                (None, None) => format!("sshd (pid {pid}) did not finish its reload within {seconds} s"),
            }));
        }
        sleep(SOCKET_POLL_INTERVAL);
    }
}

/// The new main process that replaced one that ended; an error if there is none.
fn find_successor_pid(sshd: &Sshd, pid: i32) -> Result<i32, ReloadFailure> {
    if let ReloadMethod::Unit(unit) = &sshd.reload {
        let active =
            systemd::find_settled_unit(unit).map_err(reload_failure)?.filter(systemd::Unit::is_active);
        if let Some(active) = active.filter(|unit| unit.main_pid != pid && unit.main_pid != 0) {
            return Ok(active.main_pid);
        }
        return Err(reload_failure(format!("{unit}: sshd (pid {pid}) ended when it was told to reload")));
    }
    Err(reload_failure(format!("sshd (pid {pid}) ended when it was told to reload")))
}

/// Restarts a service whose sockets systemd holds. A SIGHUP would kill it. The new process reads the new files at
/// once, and open sessions survive the restart.
fn restart_socket_activated_unit(settings: &SshdSettings, unit: &str, pid: i32) -> Result<(), ReloadFailure> {
    // `reset-failed` may fail, because the unit need not be in the failed state.
    let _ = systemd::run_systemctl(&["reset-failed", unit]);
    systemd::run_job("try-restart", unit).map_err(reload_failure)?;
    let is_new = || {
        let active = systemd::find_settled_unit(unit).ok().flatten().filter(systemd::Unit::is_active);
        active.is_some_and(|unit| {
            let listener = || process::listener_arguments(unit.main_pid, &settings.binary, None);
            unit.main_pid != pid && !matches!(listener(), Err(process::NotListener::Gone))
        })
    };
    if wait_until(RELOAD_TIMEOUT, is_new) {
        return Ok(());
    }
    Err(reload_failure(format!(
        "{unit} is not active again within {} s of its restart",
        RELOAD_TIMEOUT.as_secs()
    )))
}

/// Runs `systemctl reset-failed` and `systemctl start`. An active unit is not changed.
fn start_unit(unit: &str) -> Result<(), String> {
    let _ = systemd::run_systemctl(&["reset-failed", unit]);
    systemd::run_job("start", unit)
}

/// Checks that a unit that is not active may be started: it is neither masked, nor disabled and stopped.
fn check_unit_startable(unit: &str) -> Result<(), String> {
    match systemd::show_unit(unit)? {
        Some(found) if found.is_masked() => Err(format!("{unit} is masked")),
        Some(found) if found.active_state == "inactive" && found.file_state.starts_with("disabled") => {
            Err(format!("{unit} is disabled, and was stopped"))
        }
        _ => Ok(()),
    }
}

/// The instructions with which a person starts sshd again.
fn recovery_hint() -> String {
    let masked = if systemd::is_booted() { systemd::list_masked_services() } else { Vec::new() };
    match masked.as_slice() {
        [] => "start it from the console".to_owned(),
        [unit, ..] => format!("from the console: `systemctl unmask {unit}`, then `systemctl start {unit}`"),
    }
}

/// Starts the failed socket units of a service. A socket unit fails if its service was started too often.
fn start_failed_sockets(unit: &str) -> Result<(), String> {
    let Some(service) = systemd::find_settled_unit(unit)? else { return Ok(()) };
    for socket in service.triggered_by.iter().filter(|name| name.ends_with(".socket")) {
        if systemd::find_settled_unit(socket)?.is_some_and(|socket| socket.active_state == "failed") {
            start_unit(socket)?;
        }
    }
    Ok(())
}

/// Starts a listener with the command line that it had, as a daemon with its own session.
fn restart_by_command_line(settings: &SshdSettings, arguments: &[String]) -> Result<(), String> {
    let words = listener::strip_foreground_options(arguments).map_err(|error| error.to_string())?;
    let own = arguments.first().map(Path::new).filter(|program| program.is_absolute() && program.is_file());
    let program = own.unwrap_or(&settings.binary);
    let Err(why) = start_program(program, &words) else { return Ok(()) };
    if program == settings.binary {
        return Err(why);
    }
    // The listener's own program does not start. The configured program does the same if it gets the same main
    // file.
    let mut words = words;
    if listener::select_query_options(arguments).is_ok_and(|found| found.config.is_none()) {
        words.extend(["-f".to_owned(), settings.config.to_string_lossy().into_owned()]);
    }
    tracing::error!("{why}; {} is started in its place", settings.binary.display());
    start_program(&settings.binary, &words)
}

fn start_program(program: &Path, words: &[String]) -> Result<(), String> {
    if systemd::is_booted() && start_transient_unit(program, words) {
        return Ok(());
    }
    let output = child::run(program, words, "").map_err(|error| error.to_string())?;
    if output.succeeded() { Ok(()) } else { Err(format!("{}: {}", program.display(), output.diagnostic())) }
}

/// Starts sshd as a service of its own. A child of the agent would run in the agent's sandbox and end with the
/// agent's service.
fn start_transient_unit(program: &Path, words: &[String]) -> bool {
    let mut arguments =
        ["--quiet", "--collect", "--service-type=forking", "--property=KillMode=process", "--"]
            .map(str::to_owned)
            .to_vec();
    arguments.push(program.to_string_lossy().into_owned());
    // systemd expands variables in these words.
    arguments.extend(words.iter().map(|word| word.replace('$', "$$")));
    systemd::run_client("systemd-run", &arguments).is_ok_and(|output| output.succeeded())
}

/// Waits up to `limit` until `come` returns true; returns false if the time is over.
pub(super) fn wait_until(limit: Duration, mut come: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if come() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(SOCKET_POLL_INTERVAL);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lost_address_after_reload_is_found() {
        let all = |addresses: &[&str]| -> Vec<SocketAddr> {
            addresses.iter().map(|address| address.parse().unwrap()).collect()
        };
        let both = ["0.0.0.0:22", "[::]:22"];
        type Case<'c> = (&'c [&'c str], &'c [&'c str], &'c [(&'c str, u64)], Option<&'c str>);
        let cases: &[Case<'_>] = &[
            (&both, &[], &[("0.0.0.0:22", 5), ("[::]:22", 6)], None),
            (&both, &[], &[("[::]:22", 6)], Some("0.0.0.0:22")),
            // Inode 1 stands for a socket that is not new, or that does not belong to the listener.
            (&both, &[], &[("0.0.0.0:22", 1), ("[::]:22", 6)], Some("0.0.0.0:22")),
            // sshd listened on only one of the two addresses from the start.
            (&["[::]:22"], &[], &[("[::]:22", 6)], None),
            (&["[::]:22"], &["[::]:22", "[::]:80"], &[("[::]:22", 6), ("[::]:80", 1)], None),
            (&["[::]:22"], &["[::]:22", "[::]:2222"], &[("[::]:22", 6)], Some("[::]:2222")),
        ];
        for (must_return, perhaps, now, expected) in cases {
            let before = SocketsBeforeReload {
                inodes: BTreeSet::new(),
                must_return: all(must_return),
                perhaps_its_own: all(perhaps),
            };
            let now: Vec<ListeningSocket> = now
                .iter()
                .map(|(address, inode)| ListeningSocket {
                    address: address.parse().unwrap(),
                    uid: 0,
                    inode: *inode,
                })
                .collect();
            let lost = before.find_lost_address(&now, |socket| socket.inode != 1);
            assert_eq!(lost, expected.map(|address| address.parse().unwrap()), "{must_return:?} {now:?}");
        }
    }

    #[test]
    fn unserved_port_is_found() {
        let socket = |(address, inode): &(&str, u64)| ListeningSocket {
            address: address.parse().unwrap(),
            uid: 0,
            inode: *inode,
        };
        type Case<'c> = (&'c [&'c str], &'c [(&'c str, u64)], Option<u16>);
        let cases: &[Case<'_>] = &[
            (&[], &[], None),
            (&["0.0.0.0:22", "[::]:22"], &[("0.0.0.0:22", 5)], None),
            (&["0.0.0.0:22", "[::]:22"], &[("[::]:22", 5), ("0.0.0.0:80", 6)], None),
            (&["0.0.0.0:22", "[::]:22"], &[("0.0.0.0:22", 1)], Some(22)),
            (&["0.0.0.0:22"], &[("127.0.0.1:22", 5)], Some(22)),
            (&["10.0.0.1:22", "10.0.0.1:2222"], &[("10.0.0.1:22", 5)], Some(2222)),
            (&["203.0.113.9:22", "127.0.0.1:22"], &[("127.0.0.1:22", 5)], None),
        ];
        for (wanted, sockets, expected) in cases {
            let wanted: Vec<SocketAddr> = wanted.iter().map(|address| address.parse().unwrap()).collect();
            let sockets: Vec<ListeningSocket> = sockets.iter().map(socket).collect();
            let found = find_unserved_port(&wanted, &sockets, |socket| socket.inode != 1);
            assert_eq!(found, *expected, "{wanted:?} {sockets:?}");
        }
    }
}
