//! The agent under ptrace(2). The tracer kills it right before or right after one system call, or lets the call fail.
//!
//! strace(1) is not sufficient: it counts calls per thread and cannot act after a call. A worker thread of `run` may
//! live for any time, and strace counts the calls of children too. Here a name, a path and a number in the whole
//! process identify a call, whichever thread makes it. The tracer ignores children.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use super::TestGuest;

/// A system call. Its identity is the same in every trace of the same command.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TracedCall {
    pub name: &'static str,
    /// The path or other object of the call, without the parts that differ between guests.
    pub path: String,
    /// The ordinal number among the calls with this name and path, from 1.
    pub nth: usize,
    /// Whether the call can change something: an open for writing, a write.
    pub changes: bool,
}

impl TracedCall {
    /// The first call of this name and path that changes something.
    pub fn first_mutation(name: &'static str, path: &str) -> Self {
        Self { name, path: path.to_owned(), nth: 1, changes: true }
    }

    /// The signal to sshd.
    pub fn reload_signal() -> Self {
        Self::first_mutation("kill", RELOAD_SIGNAL_NAME)
    }
}

const RELOAD_SIGNAL_NAME: &str = "SIGHUP to sshd";

/// The fault that the tracer injects at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    KillBefore,
    KillAfter,
    Fail(Errno),
}

/// The result of a traced run.
pub struct TraceOutcome {
    pub status: WaitStatus,
    /// The calls of the process, in the order in which they began.
    pub calls: Vec<TracedCall>,
    /// Whether the process reached the call of the injection.
    pub reached: bool,
}

/// A traced process.
pub struct Tracee {
    pub pid: Pid,
    closing: Arc<AtomicBool>,
    tracer: JoinHandle<TraceOutcome>,
}

impl Tracee {
    /// Starts the agent with these arguments. Its output goes to `out.log` and `err.log` in the guest's folder.
    #[allow(clippy::zombie_processes)] // The tracer waits for all that it traces.
    pub fn start(guest: &TestGuest, arguments: &[&str], deed: Option<(TracedCall, Injection)>) -> Self {
        let agent = guest.agent_command(arguments);
        // The shell waits until the tracer is attached, then it executes the agent.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read go; exec \"$@\" </dev/null", "sh"]).arg(agent.get_program());
        command.args(agent.get_args()).stdin(Stdio::piped());
        command.stdout(File::create(guest.path("out.log")).unwrap());
        command.stderr(File::create(guest.path("err.log")).unwrap());
        let sshd = guest.sshd.pid().to_string();
        let names = PathNormalizer { folder: guest.folder.path().to_owned(), sshd, own: String::new() };
        let closing = Arc::new(AtomicBool::new(false));
        let (tell, told) = channel();
        let closes = Arc::clone(&closing);
        // ptrace(2) accepts requests only from the tracing thread. That thread waits only for its own children.
        let tracer = std::thread::spawn(move || {
            let mut child = command.spawn().unwrap();
            let pid = Pid::from_raw(child.id() as i32);
            let options = Options::PTRACE_O_TRACESYSGOOD
                | Options::PTRACE_O_TRACECLONE
                | Options::PTRACE_O_TRACEEXEC
                | Options::PTRACE_O_EXITKILL;
            ptrace::seize(pid, options).unwrap();
            tell.send(pid).unwrap();
            child.stdin.take().unwrap().write_all(b"\n").unwrap();
            let names = PathNormalizer { own: pid.to_string(), ..names };
            let (counts, calls) = (HashMap::new(), Vec::new());
            Tracer { pid, names, deed, closing: closes, is_agent: false, counts, calls }.run_event_loop()
        });
        let pid = Receiver::recv(&told).unwrap();
        Self { pid, closing, tracer }
    }

    /// Whether the process has ended and the tracer has waited for it.
    pub fn has_ended(&self) -> bool {
        self.tracer.is_finished()
    }

    /// Sends SIGTERM. The trace does not list later calls.
    pub fn terminate(self) -> TraceOutcome {
        self.closing.store(true, Ordering::SeqCst);
        let _ = kill(self.pid, Signal::SIGTERM);
        self.wait()
    }

    pub fn wait(self) -> TraceOutcome {
        self.tracer.join().unwrap()
    }
}

/// Runs `apply` of a command under the tracer.
pub fn apply_traced(
    guest: &TestGuest,
    command: &Value,
    deed: Option<(TracedCall, Injection)>,
) -> TraceOutcome {
    let file = guest.path("command.log");
    fs::write(&file, command.to_string()).unwrap();
    Tracee::start(guest, &["apply", file.to_str().unwrap()], deed).wait()
}

impl TraceOutcome {
    /// Whether the process was killed at the injection's call.
    pub fn was_killed(&self) -> bool {
        self.reached && matches!(self.status, WaitStatus::Signaled(_, Signal::SIGKILL, _))
    }
}

struct Tracer {
    pid: Pid,
    names: PathNormalizer,
    deed: Option<(TracedCall, Injection)>,
    closing: Arc<AtomicBool>,
    /// Whether the process executes the agent by now, and not the shell.
    is_agent: bool,
    counts: HashMap<(&'static str, String), usize>,
    calls: Vec<TracedCall>,
}

/// The system call in which a thread of the process is.
#[derive(Default)]
struct ThreadState {
    in_call: bool,
    pending: Option<Injection>,
}

impl Tracer {
    fn run_event_loop(mut self) -> TraceOutcome {
        let mut threads: HashMap<Pid, ThreadState> = HashMap::new();
        let mut reached = false;
        loop {
            // An error is harmless: the thread has ended, or another thread's exec replaced it.
            let go_on = |pid: Pid, signal: Option<Signal>| {
                let _ = ptrace::syscall(pid, signal);
            };
            let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            match waitpid(None, Some(flags)).unwrap() {
                WaitStatus::PtraceSyscall(pid) => {
                    let thread = threads.entry(pid).or_default();
                    thread.in_call = !thread.in_call;
                    if thread.in_call {
                        let deed = self.record_syscall_entry(pid);
                        match deed {
                            Some(Injection::KillBefore) => {
                                reached = true;
                                skip(pid);
                                kill(self.pid, Signal::SIGKILL).unwrap();
                            }
                            Some(Injection::Fail(_)) => skip(pid),
                            Some(Injection::KillAfter) | None => {}
                        }
                        thread.pending = deed;
                    } else {
                        match thread.pending.take() {
                            Some(Injection::KillAfter) => {
                                reached = true;
                                kill(self.pid, Signal::SIGKILL).unwrap();
                            }
                            Some(Injection::Fail(errno)) => {
                                reached = true;
                                answer(pid, errno);
                            }
                            Some(Injection::KillBefore) | None => {}
                        }
                    }
                    go_on(pid, None);
                }
                WaitStatus::PtraceEvent(pid, _, event) => {
                    if event == libc::PTRACE_EVENT_EXEC {
                        // The tracer may also see the shell's own exec.
                        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
                        self.is_agent = program == Path::new(env!("CARGO_BIN_EXE_keypair-agent"));
                        threads.insert(pid, ThreadState { in_call: true, pending: None });
                    }
                    go_on(pid, None);
                }
                WaitStatus::Stopped(pid, signal) => go_on(pid, Some(signal)),
                status @ (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) if pid == self.pid => {
                    return TraceOutcome { status, calls: self.calls, reached };
                }
                _ => {}
            }
        }
    }

    /// Records the call that a thread begins, and returns the injection for it.
    fn record_syscall_entry(&mut self, pid: Pid) -> Option<Injection> {
        if !self.is_agent || self.closing.load(Ordering::SeqCst) {
            return None;
        }
        let (name, path, changes) = self.names.describe_syscall(pid, &registers(pid)?)?;
        let count = self.counts.entry((name, path.clone())).or_default();
        *count += 1;
        let call = TracedCall { name, path, nth: *count, changes };
        let deed = self.deed.as_ref().filter(|(at, _)| *at == call).map(|(_, deed)| *deed);
        self.calls.push(call);
        deed
    }
}

/// The number of a call and its arguments.
struct Registers {
    number: i64,
    arguments: [u64; 4],
}

#[cfg(target_arch = "x86_64")]
fn registers(pid: Pid) -> Option<Registers> {
    let all = ptrace::getregs(pid).ok()?;
    Some(Registers { number: all.orig_rax as i64, arguments: [all.rdi, all.rsi, all.rdx, all.r10] })
}

/// Prevents the call that begins.
#[cfg(target_arch = "x86_64")]
fn skip(pid: Pid) {
    let mut all = ptrace::getregs(pid).unwrap();
    all.orig_rax = u64::MAX;
    ptrace::setregs(pid, all).unwrap();
}

/// Sets the error that the process gets instead.
#[cfg(target_arch = "x86_64")]
fn answer(pid: Pid, errno: Errno) {
    let mut all = ptrace::getregs(pid).unwrap();
    all.rax = (-i64::from(errno as i32)) as u64;
    ptrace::setregs(pid, all).unwrap();
}

#[cfg(not(target_arch = "x86_64"))]
fn registers(_: Pid) -> Option<Registers> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn skip(_: Pid) {}

#[cfg(not(target_arch = "x86_64"))]
fn answer(_: Pid, _: Errno) {}

/// Returns false, with a message, on a machine where the tracer does not work.
pub fn is_tracing_supported() -> bool {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("SKIPPED: the registers of a system call are known on x86_64 alone");
    }
    cfg!(target_arch = "x86_64")
}

/// Replaces names that differ between guests by fixed ones.
struct PathNormalizer {
    folder: PathBuf,
    sshd: String,
    own: String,
}

impl PathNormalizer {
    /// Name and path of a traced call, and whether it can change something.
    fn describe_syscall(
        &self,
        pid: Pid,
        Registers { number, arguments: [a, b, c, d] }: &Registers,
    ) -> Option<(&'static str, String, bool)> {
        let (a, b, c, d) = (*a, *b, *c, *d);
        let of_fd = |name: &'static str| Some((name, self.normalize_path(&read_fd_path(pid, a)?), true));
        let at = |name: &'static str, directory: u64, path: u64| {
            Some((name, self.normalize_path(&self.resolve_path(pid, directory, path)?), true))
        };
        let here = libc::AT_FDCWD as u64;
        match *number {
            libc::SYS_openat | libc::SYS_openat2 => {
                let (name, path, _) = at("openat", a, b)?;
                // The flags of openat2 are the first word of the struct at this address: open_how(2type).
                let flags = match *number {
                    libc::SYS_openat2 => u64::from_ne_bytes(read_memory(pid, c, 8)?.try_into().ok()?),
                    _ => c,
                } as i32;
                let changes = flags & (libc::O_CREAT | libc::O_TRUNC) != 0 || flags & libc::O_ACCMODE != 0;
                Some((if changes { "openat for writing" } else { name }, path, changes))
            }
            libc::SYS_read | libc::SYS_pread64 => of_fd("read").map(|(name, path, _)| (name, path, false)),
            libc::SYS_write | libc::SYS_pwrite64 => match read_fd_path(pid, a)? {
                path if path.starts_with("socket:") => parse_put_request(&read_memory(pid, b, c.min(128))?),
                path => Some(("write", self.normalize_path(&path), true)),
            },
            libc::SYS_sendto => parse_put_request(&read_memory(pid, b, c.min(128))?),
            libc::SYS_writev => match read_fd_path(pid, a)? {
                path if path.starts_with("socket:") => {
                    let vector = read_memory(pid, b, 16)?;
                    let word = |at: usize| Some(u64::from_ne_bytes(vector.get(at..at + 8)?.try_into().ok()?));
                    parse_put_request(&read_memory(pid, word(0)?, word(8)?.min(128))?)
                }
                path => Some(("write", self.normalize_path(&path), true)),
            },
            libc::SYS_ftruncate => of_fd("ftruncate"),
            libc::SYS_fchmod => of_fd("fchmod"),
            libc::SYS_fchown => of_fd("fchown"),
            libc::SYS_fsetxattr => of_fd("fsetxattr"),
            libc::SYS_fremovexattr => of_fd("fremovexattr"),
            libc::SYS_fsync => of_fd("fsync"),
            libc::SYS_fdatasync => of_fd("fdatasync"),
            libc::SYS_flock => of_fd("flock"),
            libc::SYS_renameat | libc::SYS_renameat2 => at("rename", c, d),
            libc::SYS_mkdirat => at("mkdir", a, b),
            libc::SYS_unlinkat => at("unlink", a, b),
            libc::SYS_symlinkat => at("symlink", b, c),
            libc::SYS_linkat => at("link", c, d),
            libc::SYS_fchmodat => at("chmod", a, b),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename => at("rename", here, b),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_mkdir => at("mkdir", here, a),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rmdir | libc::SYS_unlink => at("unlink", here, a),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_chmod => at("chmod", here, a),
            libc::SYS_kill if b == libc::SIGHUP as u64 => Some(("kill", RELOAD_SIGNAL_NAME.to_owned(), true)),
            _ => None,
        }
    }

    /// A path in the process's memory, relative to the directory of a descriptor.
    fn resolve_path(&self, pid: Pid, directory: u64, path: u64) -> Option<String> {
        let bytes = read_c_string(pid, path)?;
        if bytes.starts_with('/') || directory as i32 == libc::AT_FDCWD {
            return Some(bytes);
        }
        let directory = read_fd_path(pid, directory)?;
        Some(if bytes == "." { directory } else { format!("{}/{bytes}", directory.trim_end_matches('/')) })
    }

    fn normalize_path(&self, path: &str) -> String {
        if let Some((kind, _)) = path.split_once(":[") {
            return kind.to_owned();
        }
        let path = path.trim_end_matches(" (deleted)");
        let mut shown = Vec::new();
        let (base, rest) = match Path::new(path).strip_prefix(&self.folder) {
            Ok(rest) => ("guest", rest.to_owned()),
            Err(_) => ("", PathBuf::from(path)),
        };
        for component in rest.components() {
            let Component::Normal(name) = component else { continue };
            let name = name.to_string_lossy();
            shown.push(match &*name {
                name if name == self.sshd => "SSHD".to_owned(),
                name if name == self.own => "OWN".to_owned(),
                name if name.parse::<u32>().is_ok() => "PID".to_owned(),
                name if name.starts_with(".keypair-agent-") => ".keypair-agent-*.tmp".to_owned(),
                name if name.starts_with("proof-") => "proof-*".to_owned(),
                name if name.starts_with("trial-") => "trial-*".to_owned(),
                name => name.to_owned(),
            });
        }
        format!("{base}/{}", shown.join("/"))
    }
}

/// Parses a `PUT` request to the metadata service.
fn parse_put_request(bytes: &[u8]) -> Option<(&'static str, String, bool)> {
    let text = String::from_utf8_lossy(bytes);
    let (_, resource) = text.lines().next()?.strip_prefix("PUT ")?.split_once("/latest/")?;
    Some(("PUT", resource.split(' ').next()?.to_owned(), true))
}

fn read_fd_path(pid: Pid, descriptor: u64) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/fd/{}", descriptor as i32)).ok()?;
    Some(path.to_string_lossy().into_owned())
}

fn read_memory(pid: Pid, address: u64, length: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    let read = File::open(format!("/proc/{pid}/mem")).ok()?.read_at(&mut bytes, address).ok()?;
    bytes.truncate(read);
    Some(bytes)
}

/// Reads a C string from the process's memory. It may reach up to the end of its page.
fn read_c_string(pid: Pid, address: u64) -> Option<String> {
    let page_ends = 4096 - address % 4096;
    let mut bytes = read_memory(pid, address, page_ends)?;
    if !bytes.contains(&0) {
        bytes.extend(read_memory(pid, address + page_ends, 4096)?);
    }
    let end = bytes.iter().position(|byte| *byte == 0)?;
    bytes.truncate(end);
    String::from_utf8(bytes).ok()
}
