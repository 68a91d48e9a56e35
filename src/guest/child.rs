//! Child processes (KP-6.5). A child gets a clean environment and an input, and returns an output of limited size.
//! The agent reaps it. A child that the kernel blocks on a mount whose server does not respond cannot be killed.
//! The agent leaves it behind, and starts no other child of that program while it exists.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::pulse;
use crate::policy::foreign::sanitize_text;

/// The time limit for a child.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum size that is kept of each of a child's outputs.
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;

/// The interval between two checks of a child that closed its outputs, or left them to a child of its own.
const CHILD_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The time to wait for a killed child.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// The directories in which programs are searched.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The result of a child that ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOutput {
    /// Its exit status.
    pub status: i32,
    /// The text that it wrote to standard output.
    pub stdout: String,
    /// The text that it wrote to standard error.
    pub stderr: String,
}

impl CommandOutput {
    /// Returns true if the exit status is 0.
    pub fn succeeded(&self) -> bool {
        self.status == 0
    }

    /// The output for a message: [`Self::full_diagnostic`], shortened.
    pub fn diagnostic(&self) -> String {
        sanitize_text(&self.full_diagnostic())
    }

    /// The output in one line: standard error, else standard output, else the exit status.
    pub fn full_diagnostic(&self) -> String {
        let said =
            [&self.stderr, &self.stdout].into_iter().map(|text| text.trim()).find(|text| !text.is_empty());
        let Some(said) = said else { return format!("exit status {}", self.status) };
        said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
    }
}

/// The reason why a child returned no usable output.
#[derive(Debug)]
pub enum ChildError {
    /// A system call failed.
    Io {
        /// The program.
        path: PathBuf,
        /// The action that failed.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The child did not end in time and was killed.
    TimedOut {
        /// The program.
        path: PathBuf,
        /// Its time limit.
        limit: Duration,
    },
    /// A signal ended it.
    Killed {
        /// The program.
        path: PathBuf,
        /// The signal's number.
        signal: i32,
    },
    /// The child wrote more than the agent reads.
    OutputTooLarge {
        /// The program.
        path: PathBuf,
    },
    /// An earlier child of this program hangs in the kernel and could not be killed.
    PreviousHung {
        /// The program.
        path: PathBuf,
    },
}

impl ChildError {
    /// Returns true if the program does not exist.
    pub fn is_missing_program(&self) -> bool {
        matches!(self, Self::Io { action: "start", source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl fmt::Display for ChildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, action, source } => write!(f, "cannot {action} {}: {source}", path.display()),
            Self::TimedOut { path, limit } => {
                write!(f, "{} did not end within {} s and was killed", path.display(), limit.as_secs())
            }
            Self::Killed { path, signal } => write!(f, "{} was ended by signal {signal}", path.display()),
            Self::OutputTooLarge { path } => {
                write!(f, "{} said more than {MAX_OUTPUT_BYTES} bytes", path.display())
            }
            Self::PreviousHung { path } => write!(
                f,
                "an earlier {} hangs and cannot be killed; bring the server of the mount back that it waits for, or \
                 unmount it (umount -f)",
                path.display()
            ),
        }
    }
}

impl std::error::Error for ChildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Returns true if a program with this name is installed.
pub fn is_installed(program: &str) -> bool {
    SEARCH_PATH.split(':').any(|directory| Path::new(directory).join(program).is_file())
}

/// Runs `program` with `arguments` and with `input` on its standard input, for 10 s at most.
pub fn run(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    input: &str,
) -> Result<CommandOutput, ChildError> {
    run_with_timeout(program, arguments, input, DEFAULT_TIMEOUT)
}

/// Like [`run`], with an input that need not be text.
pub fn run_bytes(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    input: &[u8],
) -> Result<CommandOutput, ChildError> {
    run_bytes_with_timeout(program, arguments, input, DEFAULT_TIMEOUT)
}

/// Like [`run`], with its own time limit.
pub fn run_with_timeout(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    input: &str,
    limit: Duration,
) -> Result<CommandOutput, ChildError> {
    run_bytes_with_timeout(program, arguments, input.as_bytes(), limit)
}

fn run_bytes_with_timeout(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    input: &[u8],
    limit: Duration,
) -> Result<CommandOutput, ChildError> {
    let output =
        RunningChild::start(program, arguments, input)?.wait_for_output(program, input, limit, || false)?;
    output.ok_or_else(|| ChildError::TimedOut { path: program.to_owned(), limit })
}

/// Runs `program` until it ends or `is_over` returns true. In the second case the child is ended and there is no
/// output.
pub fn run_until(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    limit: Duration,
    is_over: impl FnMut() -> bool,
) -> Result<Option<CommandOutput>, ChildError> {
    RunningChild::start(program, arguments, &[])?.wait_for_output(program, &[], limit, is_over)
}

/// A child with its own descriptors. Dropping it ends the child.
pub struct BackgroundChild {
    running: RunningChild,
}

impl BackgroundChild {
    /// Starts `program` with these descriptors.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(
        program: &Path,
        arguments: &[impl AsRef<OsStr>],
        [stdin, stdout, stderr]: [Stdio; 3],
    ) -> Result<Self, ChildError> {
        refuse_if_hung(program)?;
        let mut command = build_command(program, arguments);
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let child = command.spawn().map_err(|source| child_io_error(program, "start", source))?;
        Ok(Self { running: RunningChild { child: Some(child), program: program.to_owned() } })
    }

    /// Waits up to `limit`; returns true if the child ended.
    pub fn wait_for_exit(&mut self, limit: Duration) -> bool {
        let Some(child) = &mut self.running.child else { return true };
        let ended = wait_for_child_exit(child, limit);
        if ended {
            self.running.child = None;
        }
        ended
    }
}

/// Waits up to `limit`; returns true if the child ended.
pub(super) fn wait_for_child_exit(child: &mut Child, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return true,
            Ok(None) if Instant::now() < deadline => sleep(Duration::from_millis(2)),
            Ok(None) | Err(_) => return false,
        }
    }
}

/// Kills a child and its process group. Returns the child if it could not be killed.
pub(super) fn kill_child_group(mut child: Child) -> Option<Child> {
    // The child is not reaped yet, so the process group is still its own.
    if matches!(child.try_wait(), Ok(None))
        && let Ok(pid) = i32::try_from(child.id())
    {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = child.kill();
    (!wait_for_child_exit(&mut child, KILL_TIMEOUT)).then_some(child)
}

/// Starts a child with pipes on its standard input and output.
pub(super) fn spawn_with_pipes(program: &Path, arguments: &[impl AsRef<OsStr>]) -> io::Result<Child> {
    let mut command = build_command(program, arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn()
}

/// The children that could not be killed, with their programs.
static UNKILLABLE_CHILDREN: Mutex<Vec<(PathBuf, Child)>> = Mutex::new(Vec::new());

/// Refuses a program if a child of it hangs already, because another child would most likely hang too.
fn refuse_if_hung(program: &Path) -> Result<(), ChildError> {
    let mut left = UNKILLABLE_CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    left.retain_mut(|(_, child)| matches!(child.try_wait(), Ok(None)));
    match left.iter().any(|(hangs, _)| hangs == program) {
        true => Err(ChildError::PreviousHung { path: program.to_owned() }),
        false => Ok(()),
    }
}

/// A command with a clean environment and its own process group.
fn build_command(program: &Path, arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("LC_ALL", "C")
        .current_dir("/")
        .process_group(0);
    command
}

fn child_io_error(program: &Path, action: &'static str, source: io::Error) -> ChildError {
    ChildError::Io { path: program.to_owned(), action, source }
}

/// A child. If it is dropped before it ended, the child and its process group are killed, and the child is reaped.
struct RunningChild {
    /// `None` after the child has ended.
    child: Option<Child>,
    program: PathBuf,
}

/// The exit status and the outputs of a child that ended.
struct ExitedChild {
    status: std::process::ExitStatus,
    stdout: CapturedOutput,
    stderr: CapturedOutput,
}

/// The result of waiting for a child.
enum WaitOutcome {
    Exited(ExitedChild),
    TimedOut,
    StopRequested,
}

impl RunningChild {
    fn start(program: &Path, arguments: &[impl AsRef<OsStr>], input: &[u8]) -> Result<Self, ChildError> {
        refuse_if_hung(program)?;
        let mut command = build_command(program, arguments);
        command
            .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().map_err(|source| child_io_error(program, "start", source))?;
        Ok(Self { child: Some(child), program: program.to_owned() })
    }

    /// The child's output until its end; `None` if `is_over` returned true first.
    fn wait_for_output(
        mut self,
        program: &Path,
        input: &[u8],
        limit: Duration,
        is_over: impl FnMut() -> bool,
    ) -> Result<Option<CommandOutput>, ChildError> {
        let deadline = Instant::now() + limit;
        let attended = self.pump_until_exit(input, deadline, is_over);
        pulse::record_progress();
        let ExitedChild { status, stdout, stderr } = match attended
            .map_err(|source| child_io_error(program, "attend to", source))?
        {
            WaitOutcome::Exited(ended) => ended,
            WaitOutcome::StopRequested => return Ok(None),
            WaitOutcome::TimedOut => return Err(ChildError::TimedOut { path: program.to_owned(), limit }),
        };
        if stdout.cut {
            return Err(ChildError::OutputTooLarge { path: program.to_owned() });
        }
        match status.code() {
            Some(status) => {
                Ok(Some(CommandOutput { status, stdout: stdout.into_text(), stderr: stderr.into_text() }))
            }
            None => {
                let signal = status.signal().unwrap_or_default();
                Err(ChildError::Killed { path: program.to_owned(), signal })
            }
        }
    }

    /// Writes the input to the child and reads its outputs until it ends.
    fn pump_until_exit(
        &mut self,
        mut input: &[u8],
        deadline: Instant,
        mut is_over: impl FnMut() -> bool,
    ) -> io::Result<WaitOutcome> {
        let Some(child) = &mut self.child else { return Err(io::ErrorKind::NotFound.into()) };
        let mut stdin = child.stdin.take();
        let mut stdout = OutputPipe::new(child.stdout.take())?;
        let mut stderr = OutputPipe::new(child.stderr.take())?;
        if let Some(stdin) = &stdin {
            set_nonblocking(stdin.as_fd())?;
        }
        loop {
            // A grandchild may keep the outputs open, so the child's end is checked separately.
            if let Some(status) = child.try_wait()? {
                self.child = None;
                stdout.read_available()?;
                stderr.read_available()?;
                let ended = ExitedChild { status, stdout: stdout.captured, stderr: stderr.captured };
                return Ok(WaitOutcome::Exited(ended));
            }
            if is_over() {
                return Ok(WaitOutcome::StopRequested);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(WaitOutcome::TimedOut);
            }
            poll_pipes(stdin.as_ref(), &stdout, &stderr, left.min(CHILD_POLL_INTERVAL))?;
            write_input(&mut stdin, &mut input)?;
            stdout.read_available()?;
            stderr.read_available()?;
        }
    }
}

impl Drop for RunningChild {
    fn drop(&mut self) {
        if let Some(child) = self.child.take().and_then(kill_child_group) {
            UNKILLABLE_CHILDREN
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((std::mem::take(&mut self.program), child));
        }
    }
}

/// The part of an output that was kept.
#[derive(Default)]
struct CapturedOutput {
    bytes: Vec<u8>,
    cut: bool,
}

impl CapturedOutput {
    fn into_text(self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// A pipe from one of the child's outputs, until its end.
struct OutputPipe<R> {
    from: Option<R>,
    captured: CapturedOutput,
}

impl<R: Read + AsFd> OutputPipe<R> {
    fn new(from: Option<R>) -> io::Result<Self> {
        if let Some(from) = &from {
            set_nonblocking(from.as_fd())?;
        }
        Ok(Self { from, captured: CapturedOutput::default() })
    }

    /// Reads the available bytes. Bytes beyond the limit are discarded, so that the child can continue.
    fn read_available(&mut self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        while let Some(from) = &mut self.from {
            match from.read(&mut buffer) {
                Ok(0) => self.from = None,
                Ok(count) => {
                    let room = MAX_OUTPUT_BYTES - self.captured.bytes.len();
                    self.captured.cut |= count > room;
                    self.captured.bytes.extend_from_slice(&buffer[..count.min(room)]);
                    if self.captured.cut {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Writes as much of `input` as the child accepts, and closes its standard input after the last byte.
fn write_input(stdin: &mut Option<ChildStdin>, input: &mut &[u8]) -> io::Result<()> {
    while let Some(to) = stdin {
        if input.is_empty() {
            *stdin = None;
            break;
        }
        match to.write(input) {
            Ok(count) => *input = &input[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The child closed its input early. Its exit status shows whether that is an error.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => *stdin = None,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits up to `limit` until the child reads or writes, or closes a pipe.
fn poll_pipes<A: AsFd, B: AsFd>(
    stdin: Option<&ChildStdin>,
    stdout: &OutputPipe<A>,
    stderr: &OutputPipe<B>,
    limit: Duration,
) -> io::Result<()> {
    let mut ends: Vec<PollFd<'_>> = Vec::with_capacity(3);
    ends.extend(stdin.map(|end| PollFd::new(end.as_fd(), PollFlags::POLLOUT)));
    ends.extend(stdout.from.as_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN)));
    ends.extend(stderr.from.as_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN)));
    if ends.is_empty() {
        sleep(limit.min(Duration::from_millis(1)));
        return Ok(());
    }
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    match poll(&mut ends, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sh(script: &str, input: &str, limit: Duration) -> Result<CommandOutput, ChildError> {
        run_with_timeout(Path::new("/bin/sh"), &["-c", script], input, limit)
    }

    #[test]
    fn output_has_status_stdout_and_stderr() {
        let output = sh("cat; echo no >&2; exit 3", "hello", DEFAULT_TIMEOUT).unwrap();
        assert_eq!(output, CommandOutput { status: 3, stdout: "hello".into(), stderr: "no\n".into() });
        assert_eq!(output.diagnostic(), "no");
        assert_eq!(sh("exit 4", "", DEFAULT_TIMEOUT).unwrap().diagnostic(), "exit status 4");
    }

    /// KP-6.5.
    #[test]
    fn child_environment_is_clean() {
        let output = run(Path::new("env"), &[] as &[&str], "").unwrap();
        let mut names: Vec<&str> = output.stdout.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }

    #[test]
    fn child_large_input_and_output_do_not_deadlock() {
        let much = "0123456789abcdef".repeat(40_000);
        assert_eq!(sh("cat", &much, DEFAULT_TIMEOUT).unwrap().stdout, much);
        assert!(sh("exec cat >/dev/null <&-", &much, DEFAULT_TIMEOUT).is_ok());
        assert!(matches!(
            sh("yes | head -c 2000000", "", DEFAULT_TIMEOUT),
            Err(ChildError::OutputTooLarge { .. })
        ));
    }

    /// KP-6.5.
    #[test]
    fn child_timeout_kills_its_process_group() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; exec >&- 2>&-; wait", pid_file.display());
        let killed = sh(&script, "", Duration::from_millis(500));
        assert!(matches!(killed, Err(ChildError::TimedOut { .. })), "{killed:?}");
        let pid = std::fs::read_to_string(pid_file).unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        while !state().is_empty() && !state().contains(" Z ") {
            sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn child_exit_does_not_wait_for_grandchild_with_pipes() {
        let output = sh("sleep 3 & echo $!", "", DEFAULT_TIMEOUT).unwrap();
        let pid: i32 = output.stdout.trim().parse().unwrap();
        let alive = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        assert!(alive.is_ok());
    }

    #[test]
    fn child_error_names_program_and_cause() {
        let missing = run(Path::new("/nonexistent/sshd"), &["-t"], "").unwrap_err();
        assert!(missing.is_missing_program());
        assert!(missing.to_string().starts_with("cannot start /nonexistent/sshd: No such file"), "{missing}");
        let killed = sh("kill -9 $$", "", DEFAULT_TIMEOUT).unwrap_err();
        assert_eq!(killed.to_string(), "/bin/sh was ended by signal 9");
    }
}
