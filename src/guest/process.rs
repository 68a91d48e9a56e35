//! Reads /proc about a process, and decides whether it is an sshd listener: proc(5). Under reduced capabilities the
//! command line is readable, but `exe` and `fd` are not. A file that cannot be read decides nothing.

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

/// The time that a listener may be without a socket. It has none while it executes itself again.
const SOCKET_WAIT_TIMEOUT: Duration = Duration::from_millis(500);

/// The maximum length of a command line that is read. sshd's options are far shorter.
const MAX_CMDLINE_BYTES: u64 = 128 * 1024;
/// The time that a fork may look like its parent before it counts as a child. Until then the parent may end and
/// leave the fork in its place.
const FORK_SETTLE_TIMEOUT: Duration = Duration::from_millis(300);

/// The reason why a process is not taken for the listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotListener {
    /// There is no such process.
    Gone,
    /// It is another program.
    Other(String),
    /// It is an sshd listener, but its options cannot be determined.
    Unclear(String),
    /// The system did not answer. The caller must conclude nothing from this, and must not assume that no sshd
    /// runs.
    Io(String),
}

impl NotListener {
    /// The reason for a file of /proc that cannot be read. [`Self::Gone`] if the process does not exist.
    fn from_proc_error(path: &str, error: &io::Error) -> Self {
        match is_no_such_process(error) {
            true => Self::Gone,
            false => Self::Io(format!("cannot read {path}: {error}")),
        }
    }
}

/// Returns true if an error of a file of /proc means that the process does not exist, proc(5).
fn is_no_such_process(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// Returns true if the process exists and has not ended, or if this cannot be determined.
pub(super) fn is_alive(pid: i32) -> bool {
    try_is_alive(pid).unwrap_or(true)
}

/// Returns true if the process exists and has not ended.
fn try_is_alive(pid: i32) -> Result<bool, NotListener> {
    let path = format!("/proc/{pid}/stat");
    let stat = match fs::read_to_string(&path) {
        Ok(stat) => stat,
        Err(error) if is_no_such_process(&error) => return Ok(false),
        Err(error) => return Err(NotListener::from_proc_error(&path, &error)),
    };
    // The format is `pid (comm) state …`. The name may contain blanks and brackets.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    Ok(!matches!(state, Some('Z' | 'X' | 'x') | None))
}

/// The inodes of the sockets that the process holds; `None` if they cannot be read.
pub(super) fn socket_inodes(pid: i32) -> Option<BTreeSet<u64>> {
    let mut inodes = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()? {
        // A descriptor may close during the look. If one descriptor cannot be read, the list is useless.
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

/// The arguments of the sshd listener with this pid. `binary` is the configured program. `unit` has the expanded
/// words of the unit that started it.
pub(super) fn listener_arguments(
    pid: i32,
    binary: &Path,
    unit: Option<&[String]>,
) -> Result<Vec<String>, NotListener> {
    if pid <= 0 || !try_is_alive(pid)? {
        return Err(NotListener::Gone);
    }
    // A process can set its title freely, so only a process of root is trusted.
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

/// The program of a listener, which the listener executes again at a SIGHUP. `arguments` are the listener's own,
/// the program first. The error says why the program cannot be determined, and names the possible programs.
///
/// The executable is compared by device and inode. It may have been replaced since (`exe` is "(deleted)"), or the
/// system may not let the agent read it. Then the program is the file at the path of argv[0]. sshd requires an
/// absolute path there.
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
    // The file must be the same in the process's own root directory, because a container may share the guest's
    // network.
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

/// The path of an executable that was removed or replaced since its start, proc(5).
fn strip_deleted_suffix(executable: &Path) -> Option<PathBuf> {
    executable.to_str()?.strip_suffix(" (deleted)").map(PathBuf::from)
}

/// Returns true if an executable was at the path `named`, where another file may be now. It was replaced, or a file
/// system is mounted over it (systemd-sysext).
fn is_same_executable_path(executable: &Path, named: &Path) -> bool {
    let path = strip_deleted_suffix(executable).unwrap_or_else(|| executable.to_owned());
    path == named || canonicalize_path(&path).is_some_and(|path| canonicalize_path(named) == Some(path))
}

/// The command line of a process, proc_pid_cmdline(5). It is memory of that process. A page of it may belong to a
/// file whose file server never answers.
fn read_cmdline(pid: i32) -> io::Result<Vec<u8>> {
    scout::read_file_prefix(Path::new(&format!("/proc/{pid}/cmdline")), MAX_CMDLINE_BYTES)
}

/// Every process with the agent's own user and group ids that looks like an sshd listener of this system: in the
/// agent's network and PID namespaces. `ports` is empty if the descriptors of a process cannot be read.
pub(super) fn list_sshd_listeners(binary: &Path) -> Vec<OtherListener> {
    let deadline = Instant::now() + FORK_SETTLE_TIMEOUT;
    loop {
        let found = scan_listeners(binary);
        // For a moment, a fork has its parent's title and sockets. Either it is about to serve a connection, or its
        // parent is about to end and leave it in its place.
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

/// The service in whose control group a process is, cgroups(7): the last part of the path that ends with
/// `.service`.
pub(super) fn read_cgroup_service(pid: i32) -> Option<String> {
    parse_cgroup_service(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// The service in the lines of /proc/PID/cgroup. systemd's hierarchy is `name=systemd` if it exists, otherwise the
/// unified one.
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

/// The command line of a process with the agent's own user and group ids that looks like an sshd listener.
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

/// Returns true if an sshd in the agent's network namespace is handling a reload and does not listen yet. Until
/// then it ignores SIGHUP.
pub(super) fn is_any_sshd_starting(binary: &Path) -> bool {
    list_pids().any(|pid| {
        has_sighup_in_mask(pid, "SigIgn:") == Some(true)
            && is_in_own_netns(pid) == Some(true)
            && read_listener_cmdline(pid, binary).is_some()
            && has_listening_socket(pid) != Some(true)
    })
}

/// The ports in the agent's network namespace on which the process listens. `None` if there are none; empty if its
/// descriptors cannot be read.
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

/// Returns true if the process holds a listening TCP socket; `None` if this cannot be read.
fn has_listening_socket(pid: i32) -> Option<bool> {
    let own = socket_inodes(pid)?;
    let sockets = sockets::list_listening_sockets(Some(pid)).ok()?;
    Some(sockets.iter().any(|socket| own.contains(&socket.inode)))
}

/// The program that the process runs; `None` if it cannot be read.
fn read_exe_link(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// Returns true if a program is an sshd: the configured one, or one with such a name. The file may have been
/// replaced since.
pub(super) fn is_sshd(exe: &Path, binary: &Path) -> bool {
    let name = exe.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    exe == binary
        || (name.starts_with("sshd") && !name.starts_with("sshd-"))
        || canonicalize_path(binary).is_some_and(|binary| binary == exe)
}

/// Returns true if the process has the agent's user and group ids, which are root's except in tests. `None` if they
/// cannot be read.
fn has_own_ids(pid: i32) -> Option<bool> {
    let (user, group) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    has_ids(&read_proc_status(pid)?, user, group)
}

/// Returns true if the process is in the agent's network namespace. Without the right to read another process's
/// `ns/net`, the function compares the files of proc_net(5): each namespace has its own files with other inodes.
/// `None` if neither can be read.
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

/// Returns true if the process is in the agent's PID namespace, pid_namespaces(7). The function compares the number
/// of namespaces in which each has a pid. A container may share the guest's network.
fn is_in_own_pidns(pid: i32) -> Option<bool> {
    let depth = |status: &str| status.split_ascii_whitespace().count();
    let own = fs::read_to_string("/proc/self/status").ok()?;
    let own = find_status_field(&own, "NSpid:")?;
    Some(depth(find_status_field(&read_proc_status(pid)?, "NSpid:")?) == depth(own))
}

/// Returns true if the process catches SIGHUP. From one SIGHUP until it listens again, sshd ignores SIGHUP, and
/// another one would be lost. `None` if this cannot be read.
pub(super) fn catches_sighup(pid: i32) -> Option<bool> {
    has_sighup_in_mask(pid, "SigCgt:")
}

/// Returns true if SIGHUP is in one of the process's signal sets, from /proc/PID/status.
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
        // The same file under another name.
        let directory = tempfile::tempdir()?;
        let link = directory.path().join("sshd");
        std::os::unix::fs::symlink(&own, &link)?;
        assert_eq!(started_as(&link), Ok(link));
        // `sshd -r` needs no absolute path.
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
