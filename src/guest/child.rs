//! Child processes (KP-6.5): a clean environment, text in, bounded text out, reaped. One that cannot be killed, since
//! the kernel waits for a mount whose server is away, is left behind, and no other of its program is started as long
//! as it is there.

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
use crate::policy::foreign::foreign;

/// How long a child may take.
const LIMIT: Duration = Duration::from_secs(10);

/// The most that is kept of what a child says on each of its outputs.
const MAX_OUTPUT: usize = 1024 * 1024;

/// How often a child is looked after that closed its outputs, or left them to a child of its own.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long a killed child is waited for.
const END: Duration = Duration::from_secs(1);

/// Where programs are looked for.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a child that ended by itself left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// What it said on standard output.
    pub stdout: String,
    /// What it said on standard error.
    pub stderr: String,
}

impl Output {
    /// Whether its exit status is 0.
    pub fn succeeded(&self) -> bool {
        self.status == 0
    }

    /// What it said, for a message: as [`Self::all_words`], and cut.
    pub fn words(&self) -> String {
        foreign(&self.all_words())
    }

    /// What it said: standard error in one line, else standard output, else its exit status.
    pub fn all_words(&self) -> String {
        let said =
            [&self.stderr, &self.stdout].into_iter().map(|text| text.trim()).find(|text| !text.is_empty());
        let Some(said) = said else { return format!("exit status {}", self.status) };
        said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
    }
}

/// Why a child has no output to judge.
#[derive(Debug)]
pub enum ChildError {
    /// The system refused something.
    Io {
        /// The program.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// It did not end in time, and was killed.
    TimedOut {
        /// The program.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// A signal ended it.
    Killed {
        /// The program.
        path: PathBuf,
        /// The signal's number.
        signal: i32,
    },
    /// It said more than is read.
    TooMuch {
        /// The program.
        path: PathBuf,
    },
    /// One of this program's hangs in the kernel since before, and could not be killed.
    Hangs {
        /// The program.
        path: PathBuf,
    },
}

impl ChildError {
    /// Whether there is no such program.
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
            Self::TooMuch { path } => write!(f, "{} said more than {MAX_OUTPUT} bytes", path.display()),
            Self::Hangs { path } => write!(
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

/// Whether a program of this name would be found.
pub fn finds(program: &str) -> bool {
    SEARCH_PATH.split(':').any(|directory| Path::new(directory).join(program).is_file())
}

/// Runs `program` with `arguments` and `input` on its standard input, for 10 s at most.
pub fn run(program: &Path, arguments: &[impl AsRef<OsStr>], input: &str) -> Result<Output, ChildError> {
    run_for(program, arguments, input, LIMIT)
}

/// The same with an input that need not be text.
pub fn run_bytes(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    input: &[u8],
) -> Result<Output, ChildError> {
    run_bytes_for(program, arguments, input, LIMIT)
}

/// The same with a time limit of its own.
pub fn run_for(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    input: &str,
    limit: Duration,
) -> Result<Output, ChildError> {
    run_bytes_for(program, arguments, input.as_bytes(), limit)
}

fn run_bytes_for(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    input: &[u8],
    limit: Duration,
) -> Result<Output, ChildError> {
    let output = Running::start(program, arguments, input)?.output(program, input, limit, || false)?;
    output.ok_or_else(|| ChildError::TimedOut { path: program.to_owned(), limit })
}

/// Runs `program` until it ends or `is_over` says that it may be ended: then there is no output.
pub fn run_until(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    limit: Duration,
    is_over: impl FnMut() -> bool,
) -> Result<Option<Output>, ChildError> {
    Running::start(program, arguments, &[])?.output(program, &[], limit, is_over)
}

/// A child with descriptors of its own, that is ended when it is let go.
pub struct Background {
    running: Running,
}

impl Background {
    /// Starts `program` with these descriptors.
    ///
    /// # Errors
    /// That it cannot be started.
    pub fn start(
        program: &Path,
        arguments: &[impl AsRef<OsStr>],
        [stdin, stdout, stderr]: [Stdio; 3],
    ) -> Result<Self, ChildError> {
        refuse_another(program)?;
        let mut command = command(program, arguments);
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let child = command.spawn().map_err(|source| failed(program, "start", source))?;
        Ok(Self { running: Running { child: Some(child), program: program.to_owned() } })
    }

    /// Whether it ended within this time.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        let Some(child) = &mut self.running.child else { return true };
        let ended = ends_within(child, limit);
        if ended {
            self.running.child = None;
        }
        ended
    }
}

/// Whether a child ended within this time.
pub(super) fn ends_within(child: &mut Child, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return true,
            Ok(None) if Instant::now() < deadline => sleep(Duration::from_millis(2)),
            Ok(None) | Err(_) => return false,
        }
    }
}

/// Kills a child with its process group; the child, if it could not be killed.
pub(super) fn end(mut child: Child) -> Option<Child> {
    // Not reaped yet, so the group is still the child's own.
    if matches!(child.try_wait(), Ok(None))
        && let Ok(pid) = i32::try_from(child.id())
    {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = child.kill();
    (!ends_within(&mut child, END)).then_some(child)
}

/// A child that is spoken with by its standard input and output.
pub(super) fn partner(program: &Path, arguments: &[impl AsRef<OsStr>]) -> io::Result<Child> {
    let mut command = command(program, arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn()
}

/// Children that could not be killed, by their program.
static LEFT: Mutex<Vec<(PathBuf, Child)>> = Mutex::new(Vec::new());

/// Refuses a program of which a child hangs already: another one would most likely hang beside it.
fn refuse_another(program: &Path) -> Result<(), ChildError> {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    left.retain_mut(|(_, child)| matches!(child.try_wait(), Ok(None)));
    match left.iter().any(|(hangs, _)| hangs == program) {
        true => Err(ChildError::Hangs { path: program.to_owned() }),
        false => Ok(()),
    }
}

/// A clean environment and a process group of its own.
fn command(program: &Path, arguments: &[impl AsRef<OsStr>]) -> Command {
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

fn failed(program: &Path, action: &'static str, source: io::Error) -> ChildError {
    ChildError::Io { path: program.to_owned(), action, source }
}

/// A child that is killed, with its process group, and reaped if it is let go before it ended.
struct Running {
    /// `None` once it ended.
    child: Option<Child>,
    program: PathBuf,
}

/// How a child ended.
struct Ended {
    status: std::process::ExitStatus,
    stdout: Captured,
    stderr: Captured,
}

/// How the wait for a child ended.
enum Attended {
    Ended(Ended),
    TimeIsOver,
    MayBeEnded,
}

impl Running {
    fn start(program: &Path, arguments: &[impl AsRef<OsStr>], input: &[u8]) -> Result<Self, ChildError> {
        refuse_another(program)?;
        let mut command = command(program, arguments);
        command
            .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().map_err(|source| failed(program, "start", source))?;
        Ok(Self { child: Some(child), program: program.to_owned() })
    }

    /// What it said until it ended; `None` where `is_over` said that it may be ended.
    fn output(
        mut self,
        program: &Path,
        input: &[u8],
        limit: Duration,
        is_over: impl FnMut() -> bool,
    ) -> Result<Option<Output>, ChildError> {
        let deadline = Instant::now() + limit;
        let attended = self.attend(input, deadline, is_over);
        pulse::moved();
        let Ended { status, stdout, stderr } =
            match attended.map_err(|source| failed(program, "attend to", source))? {
                Attended::Ended(ended) => ended,
                Attended::MayBeEnded => return Ok(None),
                Attended::TimeIsOver => return Err(ChildError::TimedOut { path: program.to_owned(), limit }),
            };
        if stdout.cut {
            return Err(ChildError::TooMuch { path: program.to_owned() });
        }
        match status.code() {
            Some(status) => Ok(Some(Output { status, stdout: stdout.text(), stderr: stderr.text() })),
            None => {
                let signal = status.signal().unwrap_or_default();
                Err(ChildError::Killed { path: program.to_owned(), signal })
            }
        }
    }

    /// Feeds and reads the child until it ended.
    fn attend(
        &mut self,
        mut input: &[u8],
        deadline: Instant,
        mut is_over: impl FnMut() -> bool,
    ) -> io::Result<Attended> {
        let Some(child) = &mut self.child else { return Err(io::ErrorKind::NotFound.into()) };
        let mut stdin = child.stdin.take();
        let mut stdout = Pipe::new(child.stdout.take())?;
        let mut stderr = Pipe::new(child.stderr.take())?;
        if let Some(stdin) = &stdin {
            set_nonblocking(stdin.as_fd())?;
        }
        loop {
            // A grandchild may keep the outputs open: whether the child lives is asked beside them.
            if let Some(status) = child.try_wait()? {
                self.child = None;
                stdout.read()?;
                stderr.read()?;
                let ended = Ended { status, stdout: stdout.captured, stderr: stderr.captured };
                return Ok(Attended::Ended(ended));
            }
            if is_over() {
                return Ok(Attended::MayBeEnded);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Attended::TimeIsOver);
            }
            wait_for_any(stdin.as_ref(), &stdout, &stderr, left.min(LOOK_AGAIN))?;
            feed(&mut stdin, &mut input)?;
            stdout.read()?;
            stderr.read()?;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = self.child.take().and_then(end) {
            LEFT.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((std::mem::take(&mut self.program), child));
        }
    }
}

/// What was kept of an output.
#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    cut: bool,
}

impl Captured {
    fn text(self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// An output of the child, until its end.
struct Pipe<R> {
    from: Option<R>,
    captured: Captured,
}

impl<R: Read + AsFd> Pipe<R> {
    fn new(from: Option<R>) -> io::Result<Self> {
        if let Some(from) = &from {
            set_nonblocking(from.as_fd())?;
        }
        Ok(Self { from, captured: Captured::default() })
    }

    /// Reads what is there; beyond what is kept it is thrown away, so that the child can go on.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        while let Some(from) = &mut self.from {
            match from.read(&mut buffer) {
                Ok(0) => self.from = None,
                Ok(count) => {
                    let room = MAX_OUTPUT - self.captured.bytes.len();
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

/// Writes what the child takes of `input`, and closes its standard input behind it.
fn feed(stdin: &mut Option<ChildStdin>, input: &mut &[u8]) -> io::Result<()> {
    while let Some(to) = stdin {
        if input.is_empty() {
            *stdin = None;
            break;
        }
        match to.write(input) {
            Ok(count) => *input = &input[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // It does not want to hear the rest: its exit status says what it makes of it.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => *stdin = None,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits until the child takes or says something, or closes an end; `limit` at most.
fn wait_for_any<A: AsFd, B: AsFd>(
    stdin: Option<&ChildStdin>,
    stdout: &Pipe<A>,
    stderr: &Pipe<B>,
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

    fn sh(script: &str, input: &str, limit: Duration) -> Result<Output, ChildError> {
        run_for(Path::new("/bin/sh"), &["-c", script], input, limit)
    }

    #[test]
    fn says_what_it_said() {
        let output = sh("cat; echo no >&2; exit 3", "hello", LIMIT).unwrap();
        assert_eq!(output, Output { status: 3, stdout: "hello".into(), stderr: "no\n".into() });
        assert_eq!(output.words(), "no");
        assert_eq!(sh("exit 4", "", LIMIT).unwrap().words(), "exit status 4");
    }

    /// KP-6.5.
    #[test]
    fn has_a_clean_environment() {
        let output = run(Path::new("env"), &[] as &[&str], "").unwrap();
        let mut names: Vec<&str> = output.stdout.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }

    #[test]
    fn much_goes_in_and_out_at_once() {
        let much = "0123456789abcdef".repeat(40_000);
        assert_eq!(sh("cat", &much, LIMIT).unwrap().stdout, much);
        assert!(sh("exec cat >/dev/null <&-", &much, LIMIT).is_ok());
        assert!(matches!(sh("yes | head -c 2000000", "", LIMIT), Err(ChildError::TooMuch { .. })));
    }

    /// KP-6.5.
    #[test]
    fn is_killed_with_its_children_when_its_time_is_over() {
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
    fn a_grandchild_with_its_outputs_does_not_hold_it() {
        let output = sh("sleep 3 & echo $!", "", LIMIT).unwrap();
        let pid: i32 = output.stdout.trim().parse().unwrap();
        let alive = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        assert!(alive.is_ok());
    }

    #[test]
    fn says_what_is_wrong() {
        let missing = run(Path::new("/nonexistent/sshd"), &["-t"], "").unwrap_err();
        assert!(missing.is_missing_program());
        assert!(missing.to_string().starts_with("cannot start /nonexistent/sshd: No such file"), "{missing}");
        let killed = sh("kill -9 $$", "", LIMIT).unwrap_err();
        assert_eq!(killed.to_string(), "/bin/sh was ended by signal 9");
    }
}
