//! Making a changed configuration live (KP-6.22 to KP-6.25): whether it can be done without ending sshd,
//! doing it, seeing that it was done, and bringing sshd back where it was not.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::locate::{self, DEFAULT_PID_FILE};
use super::sockets::{self, Listening};
use super::sshd::{SshdSettings, effective_now};
use super::{child, process, sessions, systemd};
use crate::policy::connection::listen_addresses;
use crate::policy::listener;
use crate::policy::observation::{Reload, Sshd};
use crate::policy::outcome::{Reason, Refusal};

/// How long the ports may take to listen again.
pub(super) const AGAIN: Duration = Duration::from_secs(5);

/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How long a supervisor has to start a listener again that it kept in the foreground.
const SUPERVISOR: Duration = Duration::from_secs(1);

/// Why a changed configuration did not become live: `SSHD_RELOAD_FAILED`, after the files were restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadFailure {
    /// One line for a person.
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

fn failure(message: impl Into<String>) -> ReloadFailure {
    ReloadFailure { message: message.into() }
}

/// Whether sshd survives a SIGHUP as it is: it makes pending edits live too, and ends where it can bind none of a
/// port's addresses. So each port must be its own already, and each address that it has must still be wanted. Where a
/// socket unit holds them nothing is bound. Since OpenSSH 9.8 it ends, too, where the programs are missing that serve a
/// connection.
pub fn reload_is_safe(settings: &SshdSettings, sshd: &Sshd) -> Result<(), Refusal> {
    let started = started_since(settings, sshd)?;
    let sshd = started.as_ref().unwrap_or(sshd);
    let pid = match listener_now(settings, sshd) {
        Ok(Listener::Nobody) => return Ok(()),
        Ok(Listener::Pid(pid)) => pid,
        Err(message) => return Err(Refusal::new(Reason::SshdReloadUnsafe, message)),
    };
    let effective = effective_now(settings, sshd)?;
    if let Some(why) = sessions::missing(&sshd.binary, &effective) {
        let message = format!(
            "{why}: a reload would end sshd, or leave one that serves nobody; put the program in its place, or correct \
             the setting, and try again"
        );
        return Err(Refusal::new(Reason::SshdReloadUnsafe, message));
    }
    if matches!(sshd.reload, Reload::SocketUnit(_)) {
        return Ok(());
    }
    let wanted = listen_addresses(&effective);
    let sockets = sockets_of(Some(pid)).map_err(|failure| Refusal::new(Reason::IoError, failure.message))?;
    if let Some(port) = silent_port(&wanted, &sockets, owned_by(pid)) {
        let addresses: Vec<String> =
            wanted.iter().filter(|address| address.port() == port).map(SocketAddr::to_string).collect();
        let message = format!(
            "sshd's configuration says port {port} ({}), where the running sshd does not listen: a reload would \
             make this edit live too, and might end sshd; restart sshd, or take the edit back, and try again",
            addresses.join(", ")
        );
        return Err(Refusal::new(Reason::SshdReloadUnsafe, message));
    }
    let held = Held::by(pid, &sockets, &wanted);
    let Some(address) = held.addresses().find(|address| !names(&wanted, address)) else { return Ok(()) };
    let message = format!(
        "the running sshd listens on {address}, and its configuration no longer says so: a reload would make this edit \
         live too, and nobody could come in there; restart sshd, or take the edit back, and try again"
    );
    Err(Refusal::new(Reason::SshdReloadUnsafe, message))
}

/// The sockets on which an sshd listens.
struct Held(Vec<Listening>);

impl Held {
    /// Those of this process. Where its descriptors cannot be read, those of its user on the ports that are `wanted`.
    fn by(pid: i32, sockets: &[Listening], wanted: &[SocketAddr]) -> Self {
        let own = process::socket_inodes(pid);
        let is_wanted = |socket: &Listening| wanted.iter().any(|it| it.port() == socket.address.port());
        let counts = |socket: &&Listening| match &own {
            Some(own) => own.contains(&socket.inode),
            None => owned_by_us(socket) && is_wanted(socket),
        };
        Self(sockets.iter().filter(counts).copied().collect())
    }

    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|socket| socket.address)
    }
}

/// Whether one of the addresses is this one. A zone (`%eth0`) is in neither.
fn names(addresses: &[SocketAddr], address: &SocketAddr) -> bool {
    addresses.iter().any(|other| other.ip() == address.ip() && other.port() == address.port())
}

/// Tells the running sshd to read its files again, and waits until it has: each port listens again, on another socket
/// than before, and so does each address that listened before.
pub fn reload(settings: &SshdSettings, sshd: &Sshd) -> Result<(), ReloadFailure> {
    let started = started_since(settings, sshd).map_err(|refusal| failure(refusal.message))?;
    let sshd = started.as_ref().unwrap_or(sshd);
    let pid = match listener_now(settings, sshd).map_err(failure)? {
        Listener::Nobody => return Ok(()),
        Listener::Pid(pid) => pid,
    };
    if let Reload::SocketUnit(unit) = &sshd.reload {
        return restart_behind_socket(settings, unit, pid);
    }
    let effective = effective_now(settings, sshd).map_err(|refusal| failure(refusal.message))?;
    let wanted = listen_addresses(&effective);
    // One that is still on its way through an earlier SIGHUP would lose this one, and has not all its sockets yet.
    if !comes_within(AGAIN, || process::catches_hup(pid) != Some(false)) {
        return Err(failure(format!("sshd (pid {pid}) ignores SIGHUP; see whether it started")));
    }
    let sockets = sockets_of(Some(pid))?;
    let before = Before {
        inodes: sockets.iter().map(|socket| socket.inode).collect(),
        must_return: Held::by(pid, &sockets, &wanted).addresses().filter(|it| names(&wanted, it)).collect(),
        perhaps_its_own: match process::socket_inodes(pid) {
            None if sshd.has_read_its_files != Some(true) => {
                let is_alike = |it: &&Listening| wanted.iter().any(|other| other.ip() == it.address.ip());
                sockets.iter().filter(|it| owned_by_us(it)).filter(is_alike).map(|it| it.address).collect()
            }
            _ => Vec::new(),
        },
    };
    tell(settings, sshd, pid)?;
    listens_again(sshd, pid, &wanted, &before)
}

/// Tells the listener: by its unit, where that is active and can; else by a signal (KP-6.22).
fn tell(settings: &SshdSettings, sshd: &Sshd, pid: i32) -> Result<(), ReloadFailure> {
    if let Reload::Unit(unit) = &sshd.reload {
        let can_be_told = |unit: &systemd::Unit| unit.can_be_told() && unit.main_pid == pid;
        let told = match systemd::as_it_is(unit) {
            Ok(Some(found)) if can_be_told(&found) => systemd::job("reload", unit),
            Ok(_) => Err(format!("{unit} cannot be reloaded now")),
            Err(why) => Err(why),
        };
        let Err(why) = told else { return Ok(()) };
        tracing::warn!("{why}; sshd (pid {pid}) is told by a signal");
        // What its unit had against the files would end it.
        effective_now(settings, sshd).map_err(|refusal| failure(refusal.message))?;
    }
    kill(Pid::from_raw(pid), Signal::SIGHUP)
        .map_err(|errno| failure(format!("cannot send SIGHUP to sshd (pid {pid}): {errno}")))
}

/// Brings sshd back after a reload that failed and after the files were restored. One that is alive is left
/// alone.
pub fn bring_back(settings: &SshdSettings, sshd: &Sshd) -> Result<(), Refusal> {
    let lost = |message: String| {
        let text = format!("sshd did not come back: {message}; {}", what_to_do());
        Refusal::new(Reason::SshdReloadFailed, text)
    };
    if matches!(sshd.reload, Reload::None(_)) {
        return Ok(());
    }
    // Asked first, since that also makes its directory. Where it can't be asked, what it said before counts.
    let wanted = match (effective_now(settings, sshd), sshd.answers.first()) {
        (Ok(effective), _) => listen_addresses(&effective),
        (Err(_), Some(answer)) => listen_addresses(&answer.effective),
        (Err(_), None) => Vec::new(),
    };
    match &sshd.reload {
        Reload::None(_) => return Ok(()),
        Reload::Unit(unit) => {
            let silent = || silent_port(&wanted, &sockets_of(None).unwrap_or_default(), owned_by_us);
            let is_alive = match listener_now(settings, sshd) {
                Ok(found) => matches!(found, Listener::Pid(_)),
                // systemd does not say it, and so it could start nothing.
                Err(_) => silent().is_none(),
            };
            if !is_alive {
                may_be_started(unit).map_err(lost)?;
                start_unit(unit).map_err(lost)?;
            }
        }
        Reload::SocketUnit(unit) => {
            start_failed_sockets(unit).map_err(lost)?;
            return start_unit(unit).map_err(lost);
        }
        Reload::Pid { arguments, .. } => {
            let alive = || matches!(listener_now(settings, sshd), Ok(Listener::Pid(_)));
            if alive() || (listener::stays_in_foreground(arguments) && comes_within(SUPERVISOR, alive)) {
                return Ok(());
            }
            start_again(settings, arguments).map_err(lost)?;
        }
    }
    let silent = || silent_port(&wanted, &sockets_of(None).unwrap_or_default(), owned_by_us);
    // It listens before it writes its pid file, and who looks in between takes it for somebody else's.
    let is_named = || matches!(listener_now(settings, sshd), Ok(Listener::Pid(_)));
    comes_within(AGAIN, || silent().is_none() && is_named());
    match silent() {
        None => Ok(()),
        Some(port) => Err(lost(format!("nothing listens on port {port}"))),
    }
}

/// The sshd that did not run when the guest was looked at, and was started since: on the files as they were then, or as
/// they are. One that starts after this look reads them as they are.
fn started_since(settings: &SshdSettings, sshd: &Sshd) -> Result<Option<Sshd>, Refusal> {
    if !matches!(sshd.reload, Reload::None(_)) {
        return Ok(None);
    }
    let found = locate::locate(settings)?;
    Ok(found.running.then(|| Sshd { reload: found.reload, binary: found.program, ..sshd.clone() }))
}

/// Who is to be told now.
enum Listener {
    /// Nobody runs who would have to be.
    Nobody,
    /// The main process, or the pid that was verified to be an sshd listener.
    Pid(i32),
}

/// The listener as it is now: it may have been started anew since the observation.
fn listener_now(settings: &SshdSettings, sshd: &Sshd) -> Result<Listener, String> {
    match &sshd.reload {
        Reload::None(_) => Ok(Listener::Nobody),
        Reload::Unit(unit) | Reload::SocketUnit(unit) => {
            let unit = systemd::unit(unit)?;
            if let Some(unit) = unit.as_ref().filter(|unit| unit.is_active()) {
                return Ok(Listener::Pid(unit.main_pid));
            }
            // Whatever its unit says now, it may listen: somebody masked it, or took its file away.
            match (locate::pid_by_main_file(settings), unit.as_ref().and_then(locate::held_up)) {
                (Some(pid), _) => Ok(Listener::Pid(pid)),
                (None, Some(message)) => Err(message),
                (None, None) => Ok(Listener::Nobody),
            }
        }
        Reload::Pid { pid, .. } => {
            let verified = |pid: &i32| process::listener_arguments(*pid, &settings.binary, None).is_ok();
            let file = settings.pid_file.as_deref().unwrap_or(Path::new(DEFAULT_PID_FILE));
            let named = || locate::read_pid(file).ok().flatten();
            let found = Some(*pid).filter(verified).or_else(|| named().filter(verified));
            found.or_else(|| locate::pid_by_main_file(settings)).map(Listener::Pid).ok_or_else(|| {
                format!("pid {pid} is no sshd listener any more, and {} names none", file.display())
            })
        }
    }
}

/// The first port of which none of the wanted addresses has a socket that counts.
fn silent_port(
    wanted: &[SocketAddr],
    sockets: &[Listening],
    counts: impl Fn(&Listening) -> bool,
) -> Option<u16> {
    let listens = |address: &SocketAddr| {
        let same = |socket: &&Listening| {
            // A zone (`%eth0`) is in neither.
            socket.address.ip() == address.ip() && socket.address.port() == address.port()
        };
        sockets.iter().filter(same).any(&counts)
    };
    let served: BTreeSet<u16> =
        wanted.iter().filter(|address| listens(address)).map(SocketAddr::port).collect();
    wanted.iter().map(SocketAddr::port).find(|port| !served.contains(port))
}

/// Whether a socket is that process's own: by its descriptors, where they can be read, else by its user.
fn owned_by(pid: i32) -> impl Fn(&Listening) -> bool {
    let own = process::socket_inodes(pid);
    move |socket| own.as_ref().map_or_else(|| owned_by_us(socket), |own| own.contains(&socket.inode))
}

fn owned_by_us(socket: &Listening) -> bool {
    socket.uid == geteuid().as_raw()
}

fn sockets_of(pid: Option<i32>) -> Result<Vec<Listening>, ReloadFailure> {
    sockets::listening(pid)
        .map_err(|error| failure(format!("cannot read who listens (/proc/self/net/tcp): {error}")))
}

/// Who listened before a reload.
struct Before {
    /// The inodes of all listening sockets.
    inodes: BTreeSet<u64>,
    /// On which addresses the listener must listen again.
    must_return: Vec<SocketAddr>,
    /// Where its descriptors cannot be read, and edits may have waited for the reload: where else some process of its user
    /// listened on one of its own addresses.
    perhaps_its_own: Vec<SocketAddr>,
}

impl Before {
    /// Which sockets are the listener's own and were not there.
    fn is_new(&self, pid: i32) -> impl Fn(&Listening) -> bool {
        let own = owned_by(pid);
        move |socket| !self.inodes.contains(&socket.inode) && own(socket)
    }

    /// An address on which it does not listen again, by a socket that `is_new`. One that nobody has any more since the
    /// reload was its own.
    fn lost(&self, now: &[Listening], is_new: impl Fn(&Listening) -> bool) -> Option<SocketAddr> {
        let is_back = |address: &SocketAddr| now.iter().any(|it| it.address == *address && is_new(it));
        let is_there = |address: &SocketAddr| now.iter().any(|it| it.address == *address);
        let missing = self.must_return.iter().find(|address| !is_back(address));
        missing.or_else(|| self.perhaps_its_own.iter().find(|address| !is_there(address))).copied()
    }
}

fn lost_address(pid: i32, address: SocketAddr) -> String {
    format!(
        "sshd (pid {pid}) listened on {address} before its reload, and does not any more: see whether another program took \
         that address"
    )
}

/// Waits until each port listens on another socket than before, and each address that has to.
fn listens_again(
    sshd: &Sshd,
    mut pid: i32,
    wanted: &[SocketAddr],
    before: &Before,
) -> Result<(), ReloadFailure> {
    let deadline = Instant::now() + AGAIN;
    loop {
        if !process::is_alive(pid) {
            pid = successor(sshd, pid)?;
        }
        let mut sockets = sockets_of(Some(pid))?;
        let silent = silent_port(wanted, &sockets, before.is_new(pid));
        // Once it is another one that catches SIGHUP, it has bound all that it will, and the next SIGHUP is heard.
        let catches_hup = process::catches_hup(pid).filter(|_| silent.is_none());
        let mut lost = before.lost(&sockets, before.is_new(pid));
        if lost.is_some() && catches_hup == Some(true) {
            // What it bound between the two looks counts.
            sockets = sockets_of(Some(pid))?;
            lost = before.lost(&sockets, before.is_new(pid));
        }
        match lost {
            None if silent.is_none() && catches_hup != Some(false) => return Ok(()),
            Some(address) if catches_hup == Some(true) => return Err(failure(lost_address(pid, address))),
            _ => {}
        }
        if Instant::now() >= deadline {
            let seconds = AGAIN.as_secs();
            let as_before = silent_port(wanted, &sockets, owned_by(pid)).is_none();
            return Err(failure(match (silent, lost) {
                (Some(_), _) if as_before => {
                    format!(
                        "sshd (pid {pid}) was told to reload and still has its old sockets after {seconds} s"
                    )
                }
                (Some(port), _) => {
                    format!("sshd does not listen on port {port} again within {seconds} s of its reload")
                }
                (None, Some(address)) => lost_address(pid, address),
                (None, None) => format!("sshd (pid {pid}) did not finish its reload within {seconds} s"),
            }));
        }
        sleep(LOOK);
    }
}

/// The main process that came in place of one that ended; a failure where none does.
fn successor(sshd: &Sshd, pid: i32) -> Result<i32, ReloadFailure> {
    if let Reload::Unit(unit) = &sshd.reload {
        let active = systemd::unit(unit).map_err(failure)?.filter(systemd::Unit::is_active);
        if let Some(active) = active.filter(|unit| unit.main_pid != pid && unit.main_pid != 0) {
            return Ok(active.main_pid);
        }
        return Err(failure(format!("{unit}: sshd (pid {pid}) ended when it was told to reload")));
    }
    Err(failure(format!("sshd (pid {pid}) ended when it was told to reload")))
}

/// A service whose sockets systemd holds: a SIGHUP would kill it, a new start is in effect at once, and open
/// sessions survive it.
fn restart_behind_socket(settings: &SshdSettings, unit: &str, pid: i32) -> Result<(), ReloadFailure> {
    // Nothing has to have failed.
    let _ = systemd::systemctl(&["reset-failed", unit]);
    systemd::job("try-restart", unit).map_err(failure)?;
    let is_new = || {
        let active = systemd::unit(unit).ok().flatten().filter(systemd::Unit::is_active);
        active.is_some_and(|unit| {
            let listener = || process::listener_arguments(unit.main_pid, &settings.binary, None);
            unit.main_pid != pid && !matches!(listener(), Err(process::NotListener::Gone))
        })
    };
    if comes_within(AGAIN, is_new) {
        return Ok(());
    }
    Err(failure(format!("{unit} is not active again within {} s of its restart", AGAIN.as_secs())))
}

/// `systemctl reset-failed` and `start`: nothing happens to a unit that is active.
fn start_unit(unit: &str) -> Result<(), String> {
    let _ = systemd::systemctl(&["reset-failed", unit]);
    systemd::job("start", unit)
}

/// Whether a unit may be started that is not active: not one that somebody masked, or disabled and stopped.
fn may_be_started(unit: &str) -> Result<(), String> {
    match systemd::as_it_is(unit)? {
        Some(found) if found.is_masked() => Err(format!("{unit} is masked")),
        Some(found) if found.active_state == "inactive" && found.file_state.starts_with("disabled") => {
            Err(format!("{unit} is disabled, and was stopped"))
        }
        _ => Ok(()),
    }
}

/// How a person brings sshd back.
fn what_to_do() -> String {
    let masked = if systemd::is_running() { systemd::masked_services() } else { Vec::new() };
    match masked.as_slice() {
        [] => "start it from the console".to_owned(),
        [unit, ..] => format!("from the console: `systemctl unmask {unit}`, then `systemctl start {unit}`"),
    }
}

/// A socket unit fails when its service was started too often.
fn start_failed_sockets(unit: &str) -> Result<(), String> {
    let Some(service) = systemd::unit(unit)? else { return Ok(()) };
    for socket in service.triggered_by.iter().filter(|name| name.ends_with(".socket")) {
        if systemd::unit(socket)?.is_some_and(|socket| socket.active_state == "failed") {
            start_unit(socket)?;
        }
    }
    Ok(())
}

/// Starts a listener by the command line it had, as a daemon: it takes a session of its own.
fn start_again(settings: &SshdSettings, arguments: &[String]) -> Result<(), String> {
    let words = listener::to_daemonize(arguments).map_err(|error| error.to_string())?;
    let own = arguments.first().map(Path::new).filter(|program| program.is_absolute() && program.is_file());
    let program = own.unwrap_or(&settings.binary);
    let Err(why) = start(program, &words) else { return Ok(()) };
    if program == settings.binary {
        return Err(why);
    }
    // Its own program does not run. The configured one does the same by the same main file.
    let mut words = words;
    if listener::repeated(arguments).is_ok_and(|found| found.config.is_none()) {
        words.extend(["-f".to_owned(), settings.config.to_string_lossy().into_owned()]);
    }
    tracing::error!("{why}; {} is started in its place", settings.binary.display());
    start(&settings.binary, &words)
}

fn start(program: &Path, words: &[String]) -> Result<(), String> {
    if systemd::is_running() && start_outside(program, words) {
        return Ok(());
    }
    let output = child::run(program, words, "").map_err(|error| error.to_string())?;
    if output.succeeded() { Ok(()) } else { Err(format!("{}: {}", program.display(), output.words())) }
}

/// Starts it as a service of its own: as our child it would live in our sandbox and end with our service.
fn start_outside(program: &Path, words: &[String]) -> bool {
    let mut arguments =
        ["--quiet", "--collect", "--service-type=forking", "--property=KillMode=process", "--"]
            .map(str::to_owned)
            .to_vec();
    arguments.push(program.to_string_lossy().into_owned());
    // systemd puts variables in.
    arguments.extend(words.iter().map(|word| word.replace('$', "$$")));
    systemd::client("systemd-run", &arguments).is_ok_and(|output| output.succeeded())
}

/// Whether it comes in this time.
pub(super) fn comes_within(limit: Duration, mut come: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if come() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(LOOK);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_did_not_come_back() {
        let all = |addresses: &[&str]| -> Vec<SocketAddr> {
            addresses.iter().map(|address| address.parse().unwrap()).collect()
        };
        let both = ["0.0.0.0:22", "[::]:22"];
        type Case<'c> = (&'c [&'c str], &'c [&'c str], &'c [(&'c str, u64)], Option<&'c str>);
        let cases: &[Case<'_>] = &[
            (&both, &[], &[("0.0.0.0:22", 5), ("[::]:22", 6)], None),
            (&both, &[], &[("[::]:22", 6)], Some("0.0.0.0:22")),
            // Inode 1 is that of a socket that is not new, or not the listener's.
            (&both, &[], &[("0.0.0.0:22", 1), ("[::]:22", 6)], Some("0.0.0.0:22")),
            // It listened on one of two from the start.
            (&["[::]:22"], &[], &[("[::]:22", 6)], None),
            (&["[::]:22"], &["[::]:22", "[::]:80"], &[("[::]:22", 6), ("[::]:80", 1)], None),
            (&["[::]:22"], &["[::]:22", "[::]:2222"], &[("[::]:22", 6)], Some("[::]:2222")),
        ];
        for (must_return, perhaps, now, expected) in cases {
            let before = Before {
                inodes: BTreeSet::new(),
                must_return: all(must_return),
                perhaps_its_own: all(perhaps),
            };
            let now: Vec<Listening> = now
                .iter()
                .map(|(address, inode)| Listening {
                    address: address.parse().unwrap(),
                    uid: 0,
                    inode: *inode,
                })
                .collect();
            let lost = before.lost(&now, |socket| socket.inode != 1);
            assert_eq!(lost, expected.map(|address| address.parse().unwrap()), "{must_return:?} {now:?}");
        }
    }

    #[test]
    fn ports_that_nobody_serves() {
        let socket = |(address, inode): &(&str, u64)| Listening {
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
            let sockets: Vec<Listening> = sockets.iter().map(socket).collect();
            let found = silent_port(&wanted, &sockets, |socket| socket.inode != 1);
            assert_eq!(found, *expected, "{wanted:?} {sockets:?}");
        }
    }
}
