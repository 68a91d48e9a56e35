//! What /proc says of a process, and whether it is an sshd listener: proc(5). Under reduced capabilities the
//! command line is readable, `exe` and `fd` are not: what can't be read does not decide.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::files::{canonicalize_path, device_and_inode};
use super::{scout, sockets};
use crate::policy::foreign::sanitize_text;
use crate::policy::holders::{find_status_field, has_ids};
use crate::policy::listener::{self, ListenerError};
use crate::policy::observation::OtherListener;

/// How long a listener may be without a socket: while it executes itself anew it has none.
const SOCKET_WAIT_TIMEOUT: Duration = Duration::from_millis(500);

/// The most that is read of a command line: sshd's options are far shorter.
const MAX_CMDLINE_BYTES: u64 = 128 * 1024;
/// How long a fork may look like its parent before it is taken for its child: until then the parent may end in its favour.
const FORK_SETTLE_TIMEOUT: Duration = Duration::from_millis(300);

/// Why a process is not taken for the listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotListener {
    /// There is no such process.
    Gone,
    /// It is something else.
    Other(String),
    /// It is one, and its options can't be told.
    Unclear(String),
    /// The system did not say: nothing follows from that, least of all that nobody runs.
    Io(String),
}

impl NotListener {
    /// What a file of /proc that cannot be read means: without the process there is none.
    fn from_proc_error(path: &str, error: &io::Error) -> Self {
        match is_no_such_process(error) {
            true => Self::Gone,
            false => Self::Io(format!("cannot read {path}: {error}")),
        }
    }
}

/// Whether an error of a file of /proc says that there is no such process, proc(5).
fn is_no_such_process(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// Whether the process exists and has not ended, as far as can be told.
pub(super) fn is_alive(pid: i32) -> bool {
    try_is_alive(pid).unwrap_or(true)
}

/// Whether the process exists and has not ended.
fn try_is_alive(pid: i32) -> Result<bool, NotListener> {
    let path = format!("/proc/{pid}/stat");
    let stat = match fs::read_to_string(&path) {
        Ok(stat) => stat,
        Err(error) if is_no_such_process(&error) => return Ok(false),
        Err(error) => return Err(NotListener::from_proc_error(&path, &error)),
    };
    // pid (comm) state …; the name may hold blanks and brackets.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    Ok(!matches!(state, Some('Z' | 'X' | 'x') | None))
}

/// The inodes of the sockets it holds; `None` where that can't be read.
pub(super) fn socket_inodes(pid: i32) -> Option<BTreeSet<u64>> {
    let mut inodes = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()? {
        // A descriptor may close while we look; one that may not be read makes the list useless.
        let target = match fs::read_link(entry.ok()?.path()) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => return None,
        };
        let target = target.to_string_lossy();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        inodes.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
    }
    Some(inodes)
}

/// The arguments of the sshd listener that `pid` is. `binary` is the configured program, `unit` the expanded
/// words of the unit that started it.
pub(super) fn listener_arguments(
    pid: i32,
    binary: &Path,
    unit: Option<&[String]>,
) -> Result<Vec<String>, NotListener> {
    if pid <= 0 || !try_is_alive(pid)? {
        return Err(NotListener::Gone);
    }
    // A title is whatever its process makes it: only a process of root's is believed.
    if has_own_ids(pid) == Some(false) {
        return Err(NotListener::Other("it belongs to another user".into()));
    }
    if is_in_own_netns(pid) == Some(false) {
        return Err(NotListener::Other("it is in another network namespace".into()));
    }
    if is_in_own_pidns(pid) == Some(false) {
        return Err(NotListener::Other("it is in another PID namespace".into()));
    }
    if let Some(exe) = read_exe_link(pid).filter(|exe| !is_sshd(exe, binary)) {
        return Err(NotListener::Other(format!("it runs {}", exe.display())));
    }
    let path = format!("/proc/{pid}/cmdline");
    let cmdline = read_cmdline(pid).map_err(|error| NotListener::from_proc_error(&path, &error))?;
    let arguments = listener::parse_listener_cmdline(&cmdline, unit).map_err(|error| match error {
        ListenerError::NotAListener(_) => NotListener::Other(error.to_string()),
        _ => NotListener::Unclear(error.to_string()),
    })?;
    let deadline = Instant::now() + SOCKET_WAIT_TIMEOUT;
    while is_alive(pid) {
        if has_listening_socket(pid) != Some(false) {
            return Ok(arguments);
        }
        if Instant::now() >= deadline {
            return Err(NotListener::Other("it listens on no TCP port".into()));
        }
        sleep(Duration::from_millis(20));
    }
    Err(NotListener::Gone)
}

/// The program that a listener is, and that it executes anew at a SIGHUP: `arguments` are its own, the program first. The
/// error says why it cannot be told, and names the programs that it may be.
///
/// The executable is compared by device and inode. Where it was replaced since (`exe` is "(deleted)"), or where the system
/// does not let us read it, the program is the one at the path of argv[0]: sshd insists on an absolute one.
pub(super) fn find_listener_program(pid: i32, arguments: &[String]) -> Result<PathBuf, String> {
    let link = format!("/proc/{pid}/exe");
    let argv0 = arguments.first().map(String::as_str).unwrap_or_default();
    let named = Some(PathBuf::from(argv0)).filter(|path| path.is_absolute());
    let (executable, named) = match (fs::read_link(&link), named) {
        (Ok(executable), Some(named)) => (executable, named),
        (Ok(executable), None) if strip_deleted_suffix(&executable).is_none() => return Ok(executable),
        (Ok(executable), None) => {
            let executable = executable.display();
            return Err(format!(
                "it runs {executable}, and was started as '{argv0}', which is no absolute path"
            ));
        }
        (Err(_), Some(named)) => return Ok(named),
        (Err(error), None) => {
            return Err(format!(
                "it was started as '{argv0}', which is no absolute path, and {link}: {error}"
            ));
        }
    };
    let named_identity = match device_and_inode(&named) {
        Ok(found) => found,
        Err(error) => {
            let (executable, named) = (executable.display(), named.display());
            return Err(format!(
                "it runs {executable}, and {named}, which it would execute at a reload, cannot be looked at: {error}"
            ));
        }
    };
    let is_same = device_and_inode(Path::new(&link)).is_ok_and(|running| running == named_identity);
    // In its own root directory, too, it is that file: a container may share our network.
    let is_same_in_its_root = || {
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        named
            .strip_prefix("/")
            .is_ok_and(|below| device_and_inode(&root.join(below)).is_ok_and(|it| it == named_identity))
    };
    if is_same || (is_same_executable_path(&executable, &named) && is_same_in_its_root()) {
        return Ok(named);
    }
    Err(format!(
        "it runs {}, and at a reload it would execute {}, which is another program",
        executable.display(),
        named.display()
    ))
}

/// The path of an executable that was removed or replaced since it was started, proc(5).
fn strip_deleted_suffix(executable: &Path) -> Option<PathBuf> {
    executable.to_str()?.strip_suffix(" (deleted)").map(PathBuf::from)
}

/// Whether an executable was at the path `named`, where another file may be now: it was replaced, or a file system is
/// mounted over it (systemd-sysext).
fn is_same_executable_path(executable: &Path, named: &Path) -> bool {
    let path = strip_deleted_suffix(executable).unwrap_or_else(|| executable.to_owned());
    path == named || canonicalize_path(&path).is_some_and(|path| canonicalize_path(named) == Some(path))
}

/// A process's command line, proc_pid_cmdline(5). It is memory of that process, and a page of it may be a file's that never
/// comes.
fn read_cmdline(pid: i32) -> io::Result<Vec<u8>> {
    scout::read_file_prefix(Path::new(&format!("/proc/{pid}/cmdline")), MAX_CMDLINE_BYTES)
}

/// Every process of our own rank that looks like an sshd listener of this system: in our namespaces of networks and of
/// processes. No ports where its descriptors can't be read.
pub(super) fn list_sshd_listeners(binary: &Path) -> Vec<OtherListener> {
    let deadline = Instant::now() + FORK_SETTLE_TIMEOUT;
    loop {
        let found = scan_listeners(binary);
        // A fork has its parent's title and sockets for a moment: it is about to serve a connection, or its parent about to
        // leave it in its place.
        let forks: BTreeSet<i32> = found
            .iter()
            .filter(|it| {
                parent_pid(it.pid).is_some_and(|parent| found.iter().any(|other| other.pid == parent))
            })
            .map(|it| it.pid)
            .collect();
        if forks.is_empty() || Instant::now() >= deadline {
            return found.into_iter().filter(|it| !forks.contains(&it.pid)).collect();
        }
        sleep(Duration::from_millis(20));
    }
}

fn scan_listeners(binary: &Path) -> Vec<OtherListener> {
    let to_listener = |pid: i32| {
        let is_here = is_in_own_netns(pid) != Some(false) && is_in_own_pidns(pid) != Some(false);
        let cmdline = read_listener_cmdline(pid, binary).filter(|_| is_here)?;
        let ports = list_listening_ports(pid)?;
        let line = sanitize_text(String::from_utf8_lossy(&cmdline).replace('\0', " ").trim_end());
        Some(OtherListener { pid, line, ports })
    };
    list_pids().filter_map(to_listener).collect()
}

fn parent_pid(pid: i32) -> Option<i32> {
    find_status_field(&read_proc_status(pid)?, "PPid:")?.trim().parse().ok()
}

/// The service in whose control group a process is, cgroups(7): the last part of its path that is named so.
pub(super) fn read_cgroup_service(pid: i32) -> Option<String> {
    parse_cgroup_service(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// The same from the lines of /proc/PID/cgroup. systemd's hierarchy is the unified one, else the one of its name.
fn parse_cgroup_service(cgroup: &str) -> Option<String> {
    let path = |hierarchy: &str| {
        cgroup.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(hierarchy)?.strip_prefix(':'))
    };
    let named = path("name=systemd").or_else(|| path(""))?;
    named.rsplit('/').find(|part| part.ends_with(".service")).map(str::to_owned)
}

fn list_pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The command line of a process of our own rank that looks like an sshd listener.
fn read_listener_cmdline(pid: i32, binary: &Path) -> Option<Vec<u8>> {
    if !has_own_ids(pid)? {
        return None;
    }
    let cmdline = read_cmdline(pid).ok()?;
    if matches!(listener::parse_listener_cmdline(&cmdline, None), Err(ListenerError::NotAListener(_))) {
        return None;
    }
    read_exe_link(pid).is_none_or(|exe| is_sshd(&exe, binary)).then_some(cmdline)
}

/// Whether some sshd of our network namespace was told to read its files and does not listen yet: until then it
/// ignores SIGHUP.
pub(super) fn is_any_sshd_starting(binary: &Path) -> bool {
    list_pids().any(|pid| {
        has_sighup_in_mask(pid, "SigIgn:") == Some(true)
            && is_in_own_netns(pid) == Some(true)
            && read_listener_cmdline(pid, binary).is_some()
            && has_listening_socket(pid) != Some(true)
    })
}

/// The ports of our network namespace on which it listens; `None` where it has none, empty where its
/// descriptors can't be read.
pub(super) fn list_listening_ports(pid: i32) -> Option<Vec<u16>> {
    let Some(own) = socket_inodes(pid) else { return Some(Vec::new()) };
    let sockets = sockets::list_listening_sockets(None).ok()?;
    let mut ports: Vec<u16> = sockets
        .iter()
        .filter(|socket| own.contains(&socket.inode))
        .map(|socket| socket.address.port())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    (!ports.is_empty()).then_some(ports)
}

/// Whether it holds a listening TCP socket, where that can be read.
fn has_listening_socket(pid: i32) -> Option<bool> {
    let own = socket_inodes(pid)?;
    let sockets = sockets::list_listening_sockets(Some(pid)).ok()?;
    Some(sockets.iter().any(|socket| own.contains(&socket.inode)))
}

/// The program it runs, where that can be read.
fn read_exe_link(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// Whether a program is an sshd: the configured one, or one named so; it may have been replaced since.
pub(super) fn is_sshd(exe: &Path, binary: &Path) -> bool {
    let name = exe.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    exe == binary
        || (name.starts_with("sshd") && !name.starts_with("sshd-"))
        || canonicalize_path(binary).is_some_and(|binary| binary == exe)
}

/// Whether its user and group ids are ours, which are root's but in tests. `None` where they cannot be read.
fn has_own_ids(pid: i32) -> Option<bool> {
    let (user, group) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    has_ids(&read_proc_status(pid)?, user, group)
}

/// Whether it is in our network namespace. Without the right to read another process's `ns/net`, the files of proc_net(5)
/// tell: each namespace has its own, with inodes of their own. `None` where neither can be read.
pub(super) fn is_in_own_netns(pid: i32) -> Option<bool> {
    let namespace = |who: &str| fs::read_link(format!("/proc/{who}/ns/net"));
    if let (Ok(its), Ok(own)) = (namespace(&pid.to_string()), namespace("self")) {
        return Some(its == own);
    }
    let table = |who: &str| fs::metadata(format!("/proc/{who}/net/tcp")).map(|file| file.ino());
    match (table(&pid.to_string()), table("self")) {
        (Ok(its), Ok(own)) => Some(its == own),
        _ => None,
    }
}

/// Whether it is in our PID namespace: pid_namespaces(7), by the number of namespaces in which it has a pid. A container may
/// share our network.
fn is_in_own_pidns(pid: i32) -> Option<bool> {
    let depth = |status: &str| status.split_ascii_whitespace().count();
    let own = fs::read_to_string("/proc/self/status").ok()?;
    let own = find_status_field(&own, "NSpid:")?;
    Some(depth(find_status_field(&read_proc_status(pid)?, "NSpid:")?) == depth(own))
}

/// Whether it catches SIGHUP: from one until it listens again sshd ignores it, and another one would be lost. `None`
/// where that can't be read.
pub(super) fn catches_sighup(pid: i32) -> Option<bool> {
    has_sighup_in_mask(pid, "SigCgt:")
}

/// Whether SIGHUP is in one of its sets of signals, of /proc/PID/status.
fn has_sighup_in_mask(pid: i32, set: &str) -> Option<bool> {
    let signals = u64::from_str_radix(find_status_field(&read_proc_status(pid)?, set)?.trim(), 16).ok()?;
    Some(signals & (1 << (nix::libc::SIGHUP - 1)) != 0)
}

fn read_proc_status(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/status")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listener_check_rejects_this_process() {
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        assert!(is_alive(pid));
        let binary = Path::new("/usr/sbin/sshd");
        let found = listener_arguments(pid, binary, None);
        assert!(matches!(found, Err(NotListener::Other(_))), "{found:?}");
        assert_eq!(listener_arguments(0, binary, None), Err(NotListener::Gone));
        assert_eq!(listener_arguments(i32::MAX, binary, None), Err(NotListener::Gone));
    }

    #[test]
    fn own_process_has_own_ids_and_namespaces() {
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        assert_eq!(has_own_ids(pid), Some(true));
        assert_eq!(is_in_own_netns(pid), Some(true));
        assert_eq!(is_in_own_pidns(pid), Some(true));
        assert_eq!(has_own_ids(i32::MAX), None);
        assert_eq!(is_in_own_netns(i32::MAX), None);
    }

    #[test]
    fn cgroup_service_is_parsed() {
        for (cgroup, expected) in [
            ("0::/system.slice/ssh.service\n", Some("ssh.service")),
            ("0::/system.slice/system-sshd.slice/sshd@1.service\n", Some("sshd@1.service")),
            (
                "12:pids:/system.slice/x.service\n1:name=systemd:/system.slice/ssh.service\n0::/\n",
                Some("ssh.service"),
            ),
            ("0::/user.slice/user-0.slice/session-3.scope\n", None),
            ("0::/user.slice/user-0.slice/user@0.service/app.slice/a.service/b\n", Some("a.service")),
            ("0::/\n", None),
            ("", None),
        ] {
            assert_eq!(parse_cgroup_service(cgroup).as_deref(), expected, "{cgroup}");
        }
    }

    #[test]
    fn listener_program_is_resolved_by_inode() -> io::Result<()> {
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let own = std::env::current_exe()?;
        let started_as =
            |argv0: &Path| find_listener_program(pid, &[argv0.to_string_lossy().into_owned(), "-D".into()]);
        assert_eq!(started_as(&own), Ok(own.clone()));
        // The same file by another name.
        let directory = tempfile::tempdir()?;
        let link = directory.path().join("sshd");
        std::os::unix::fs::symlink(&own, &link)?;
        assert_eq!(started_as(&link), Ok(link));
        // sshd -r needs no absolute path.
        assert_eq!(started_as(Path::new("sshd")), Ok(own.clone()));
        let own = own.display().to_string();
        for other in ["/bin/sh", "/nonexistent/sshd"] {
            let why = started_as(Path::new(other)).err().unwrap_or_default();
            assert!(why.contains(&own) && why.contains(other), "{why}");
        }
        Ok(())
    }

    #[test]
    fn replaced_executable_keeps_its_path() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let (at, link) = (directory.path().join("sshd"), directory.path().join("link"));
        fs::write(&at, "")?;
        std::os::unix::fs::symlink(&at, &link)?;
        let marked = PathBuf::from(format!("{} (deleted)", at.display()));
        assert!(
            is_same_executable_path(&marked, &at)
                && is_same_executable_path(&marked, &link)
                && is_same_executable_path(&at, &link)
        );
        assert!(
            !is_same_executable_path(Path::new("/old/sshd (deleted)"), &at)
                && !is_same_executable_path(Path::new("/old/sshd"), &at)
        );
        Ok(())
    }

    #[test]
    fn sshd_program_names_are_recognised() {
        let binary = Path::new("/opt/ssh/daemon");
        for (exe, expected) in [
            ("/usr/sbin/sshd", true),
            ("/usr/sbin/sshd (deleted)", true),
            ("/opt/ssh/daemon", true),
            ("/tmp/sshd9", true),
            ("/usr/lib/openssh/sshd-session", false),
            ("/usr/bin/ssh", false),
            ("/bin/sleep", false),
        ] {
            assert_eq!(is_sshd(Path::new(exe), binary), expected, "{exe}");
        }
    }
}
