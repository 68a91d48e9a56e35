//! Look-ups that may hang: at the name service, and at files on a mount whose server does not respond (KP-8.14). A
//! child process that runs this same program does the look-up first. If it does not answer in time, the agent
//! kills it. A child that cannot be killed is left behind; it shares no lock, no descriptor and no thread with
//! this process.
//!
//! ```text
//!   this process ──question──► scout ──► getpwnam(3), lstat(2), read(2), …
//!        │  ◄──at this mount──── │
//!        │  ◄──answer─────────── │        no answer in 8 s: killed; its place is silent from then on
//! ```
//!
//! A second look-up at a silent place fails at once and starts no child.

mod serve;
mod wire;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{child, pulse};
use crate::policy::observation::IncludedFiles;
use crate::policy::outcome::escape_unprintable;

pub(crate) use serve::answer_questions;
pub(super) use wire::{MountIdentity, PasswdEntry};
use wire::{ScoutQuestion, ScoutReply};

/// The timeout of one look-up. KP-8.14 allows ten seconds in total; the steps before and after the look-up use the
/// rest.
const SCOUT_TIMEOUT: Duration = Duration::from_secs(8);

/// The maximum number of hung scouts. Each hangs at a different place.
const MAX_HUNG_SCOUTS: usize = 8;

/// The subcommand that runs this program as a scout.
pub(crate) const SCOUT_SUBCOMMAND: &str = "scout";

/// The maximum size of one reply, in bytes.
const MAX_SCOUT_REPLY_BYTES: usize = 4 * 1024 * 1024;

/// The target of a look-up, for messages about a look-up that did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupTarget {
    /// The sources of accounts in nsswitch.conf(5).
    NameService,
    /// A mount.
    Mount {
        /// Its mount point.
        point: PathBuf,
        /// The type of its file system.
        kind: String,
        /// `major:minor`.
        device: String,
    },
    /// A path: for example a file of an Include pattern, or a file of /proc.
    Path(PathBuf),
    /// Too many scouts hang already.
    TooManyHung,
}

/// Why a look-up has no answer.
#[derive(Debug)]
pub enum LookupError {
    /// No answer came in time.
    TimedOut(LookupTarget),
    /// The scout could not be started, or it failed.
    Io(io::Error),
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = SCOUT_TIMEOUT.as_secs();
        match self {
            Self::TimedOut(LookupTarget::NameService) => write!(
                f,
                "the name service did not answer within {seconds} s; mend the source in nsswitch.conf(5) that hangs \
                 (sssd, nscd, LDAP, winbind), or take it out"
            ),
            Self::TimedOut(LookupTarget::Mount { point, kind, .. }) => {
                let point = escape_unprintable(&point.to_string_lossy());
                write!(
                    f,
                    "the {kind} mount at {point} did not answer within {seconds} s; bring its server back, or unmount it: \
                     umount -l {point}"
                )
            }
            Self::TimedOut(LookupTarget::Path(path)) => write!(
                f,
                "{} did not answer within {seconds} s; look for a mount below it whose server is away",
                escape_unprintable(&path.to_string_lossy())
            ),
            Self::TimedOut(LookupTarget::TooManyHung) => write!(
                f,
                "{MAX_HUNG_SCOUTS} looks at other places hang already; unmount what does not answer (umount -l)"
            ),
            Self::Io(error) => write!(f, "the child that was sent to look did not come back: {error}"),
        }
    }
}

impl std::error::Error for LookupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::TimedOut(_) => None,
        }
    }
}

impl From<LookupError> for io::Error {
    fn from(silence: LookupError) -> Self {
        match silence {
            LookupError::Io(error) => error,
            silence => Self::new(io::ErrorKind::TimedOut, silence),
        }
    }
}

/// A place that does not answer, and the scout that still hangs there, if any.
struct HungLookup {
    place: LookupTarget,
    left: Option<Child>,
}

/// A running scout, and its pipes.
struct ScoutProcess {
    child: Child,
    questions: ChildStdin,
    replies: ChildStdout,
    /// Bytes of a reply line that is not complete yet.
    buffer: Vec<u8>,
    /// The thread that started the scout. The scout is in the namespaces of that thread.
    sender: ThreadId,
}

/// The state of all scouts of this process.
struct ScoutPool {
    /// The executable of this program. `None` if another program uses this crate; then the process does the
    /// look-ups itself.
    program: Option<PathBuf>,
    waiting: Option<ScoutProcess>,
    silent: Vec<HungLookup>,
    /// Accounts and groups that were looked up since the last [`reset_scouts`].
    known: Vec<(ScoutQuestion, ScoutReply)>,
}

static SCOUT_POOL: Mutex<ScoutPool> =
    Mutex::new(ScoutPool { program: None, waiting: None, silent: Vec::new(), known: Vec::new() });

fn lock_scout_pool() -> MutexGuard<'static, ScoutPool> {
    SCOUT_POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Enables scouts: from now on, a child of this program does each look-up first.
pub(crate) fn enable() {
    // This link also works after an upgrade replaced the program's file, proc(5).
    lock_scout_pool().program = Some(PathBuf::from("/proc/self/exe"));
}

/// Ends the idle scout and clears the cache. Called at the end of a command. A place that did not answer may be
/// asked again, unless a scout still hangs there.
pub fn reset_scouts() {
    let mut scouts = lock_scout_pool();
    scouts.known.clear();
    if let Some(ScoutProcess { mut child, questions, replies, .. }) = scouts.waiting.take() {
        drop((questions, replies));
        if !child::wait_for_child_exit(&mut child, Duration::from_secs(1)) {
            let _left = child::kill_child_group(child);
        }
    }
    scouts.forget_ended();
}

/// Ends the scout that the calling thread started. Called before a thread with its own namespaces ends, because
/// the scout is in these namespaces.
pub(super) fn end_scout_of_thread() {
    let mut scouts = lock_scout_pool();
    let own = thread::current().id();
    if let Some(scout) = scouts.waiting.take_if(|scout| scout.sender == own) {
        let _left = child::kill_child_group(scout.child);
    }
}

/// The places that did not answer since the last [`reset_scouts`], or where a scout still hangs.
pub(super) fn unresponsive_targets() -> Vec<LookupTarget> {
    lock_scout_pool().silent.iter().map(|silent| silent.place.clone()).collect()
}

/// Checks that every component of a path, and the entry at the path, responds. An error from the system counts as
/// a response.
///
/// # Errors
/// A component does not respond.
pub(super) fn check_responsive(path: &Path) -> Result<(), LookupError> {
    let mut scouts = lock_scout_pool();
    // The kernel answers for this process's own files in /proc.
    if scouts.program.is_none() || !path.is_absolute() || path.starts_with("/proc") {
        return Ok(());
    }
    let question = ScoutQuestion::Reach { path: path_bytes(path), silent: scouts.hung_mounts() };
    match scouts.ask_with_retry(&question, LookupTarget::Path(path.to_owned()))? {
        ScoutReply::Silent(mount) => Err(LookupError::TimedOut(LookupTarget::from(mount))),
        _ => Ok(()),
    }
}

/// The files that a pattern of an Include directive matches.
///
/// # Errors
/// A directory on the path does not respond.
pub(super) fn expand_include(pattern: PathBuf) -> Result<IncludedFiles, LookupError> {
    let question = ScoutQuestion::Expand(path_bytes(&pattern));
    match lock_scout_pool().ask_with_retry(&question, LookupTarget::Path(pattern.clone()))? {
        ScoutReply::Expanded { directory_exists, files } => {
            let files = files.into_iter().map(|file| PathBuf::from(OsString::from_vec(file))).collect();
            Ok(IncludedFiles { pattern, directory_exists, files })
        }
        reply => Err(unexpected_reply(&reply)),
    }
}

/// Reads at most `limit` bytes of a file. Meant for files in /proc whose read another process can block. An
/// example is a command line in a memory page that never becomes available.
///
/// # Errors
/// The system's error, or that the file does not respond.
pub(super) fn read_file_prefix(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let question = ScoutQuestion::Content { path: path_bytes(path), limit };
    match lock_scout_pool()
        .ask_with_retry(&question, LookupTarget::Path(path.to_owned()))
        .map_err(io::Error::from)?
    {
        ScoutReply::Content(content) => Ok(content),
        ScoutReply::Failed(errno) => Err(io::Error::from_raw_os_error(errno)),
        reply => Err(unexpected_reply(&reply).into()),
    }
}

/// The passwd(5) entry of a user name; `None` if there is none.
///
/// # Errors
/// The name service does not respond, or fails.
pub(super) fn lookup_user_by_name(name: &str) -> io::Result<Option<PasswdEntry>> {
    lookup_user(ScoutQuestion::Entry(name.as_bytes().to_vec()))
}

/// Same as [`lookup_user_by_name`], by uid.
///
/// # Errors
/// As for [`lookup_user_by_name`].
pub(super) fn lookup_user_by_uid(uid: u32) -> io::Result<Option<PasswdEntry>> {
    lookup_user(ScoutQuestion::EntryOfUid(uid))
}

fn lookup_user(question: ScoutQuestion) -> io::Result<Option<PasswdEntry>> {
    match lock_scout_pool().ask_cached(question)? {
        ScoutReply::Entry(entry) => Ok(entry),
        ScoutReply::Failed(errno) => Err(io::Error::from_raw_os_error(errno)),
        reply => Err(unexpected_reply(&reply).into()),
    }
}

/// The names of a user's groups, the primary one first.
///
/// # Errors
/// As for [`lookup_user_by_name`].
pub(super) fn lookup_groups(name: &str, gid: u32) -> io::Result<Vec<String>> {
    match lock_scout_pool().ask_cached(ScoutQuestion::Groups { name: name.as_bytes().to_vec(), gid })? {
        ScoutReply::Groups(groups) => Ok(groups),
        ScoutReply::Failed(errno) => Err(io::Error::from_raw_os_error(errno)),
        reply => Err(unexpected_reply(&reply).into()),
    }
}

fn path_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn unexpected_reply(_reply: &ScoutReply) -> LookupError {
    LookupError::Io(io::Error::other("it said something that was not asked"))
}

impl From<MountIdentity> for LookupTarget {
    fn from(mount: MountIdentity) -> Self {
        let MountIdentity { point, device, kind } = mount;
        Self::Mount { point: PathBuf::from(OsStr::from_bytes(&point)), device, kind }
    }
}

impl ScoutPool {
    /// Asks each question once per command. The answer is cached until the next [`reset_scouts`].
    fn ask_cached(&mut self, question: ScoutQuestion) -> Result<ScoutReply, LookupError> {
        if let Some((_, reply)) = self.known.iter().find(|(known, _)| *known == question) {
            return Ok(reply.clone());
        }
        let reply = self.ask_with_retry(&question, LookupTarget::NameService)?;
        if self.program.is_some() && !matches!(reply, ScoutReply::Failed(_)) {
            self.known.push((question, reply.clone()));
        }
        Ok(reply)
    }

    /// Sends the question to a scout. `place` is the place in the error, unless the scout reports a mount.
    fn ask_with_retry(
        &mut self,
        question: &ScoutQuestion,
        place: LookupTarget,
    ) -> Result<ScoutReply, LookupError> {
        let Some(program) = self.program.clone() else {
            return serve::answer_question(question, &mut |_| Ok(())).map_err(LookupError::Io);
        };
        if self.silent.iter().any(|silent| silent.place == place) {
            return Err(LookupError::TimedOut(place));
        }
        // A scout that exited or was killed by another process is not a hang, so try once more.
        let mut tries = 2;
        loop {
            tries -= 1;
            let mut scout = match self.waiting.take() {
                Some(scout) => scout,
                None if self.count_hung() >= MAX_HUNG_SCOUTS => {
                    return Err(LookupError::TimedOut(LookupTarget::TooManyHung));
                }
                None => ScoutProcess::spawn(&program).map_err(LookupError::Io)?,
            };
            let mut place = place.clone();
            let answered = scout.ask(question, &mut place);
            pulse::record_progress();
            match answered {
                Ok(Some(reply)) => {
                    self.waiting = Some(scout);
                    return Ok(reply);
                }
                Ok(None) => {
                    let left = child::kill_child_group(scout.child);
                    self.silent.push(HungLookup { place: place.clone(), left });
                    return Err(LookupError::TimedOut(place));
                }
                Err(error) => {
                    let _left = child::kill_child_group(scout.child);
                    if tries == 0 {
                        return Err(LookupError::Io(error));
                    }
                }
            }
        }
    }

    fn hung_mounts(&self) -> Vec<MountIdentity> {
        let mount = |silent: &HungLookup| match &silent.place {
            LookupTarget::Mount { point, kind, device } => {
                Some(MountIdentity { point: path_bytes(point), device: device.clone(), kind: kind.clone() })
            }
            _ => None,
        };
        self.silent.iter().filter_map(mount).collect()
    }

    /// The number of scouts that still hang.
    fn count_hung(&mut self) -> usize {
        for silent in &mut self.silent {
            silent.left.take_if(|child| !matches!(child.try_wait(), Ok(None)));
        }
        self.silent.iter().filter(|silent| silent.left.is_some()).count()
    }

    /// Removes the places at which no scout hangs any more.
    fn forget_ended(&mut self) {
        self.count_hung();
        self.silent.retain(|silent| silent.left.is_some());
    }
}

impl ScoutProcess {
    fn spawn(program: &Path) -> io::Result<Self> {
        let mut child = child::spawn_with_pipes(program, &[SCOUT_SUBCOMMAND])?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(questions), Some(replies)) => {
                let sender = thread::current().id();
                Ok(Self { child, questions, replies, buffer: Vec::new(), sender })
            }
            _ => Err(io::Error::other("it has no pipes")),
        }
    }

    /// Asks the scout; `None` if no answer came in time. `place` is updated to the mount that the scout reports.
    fn ask(&mut self, question: &ScoutQuestion, place: &mut LookupTarget) -> io::Result<Option<ScoutReply>> {
        let deadline = Instant::now() + SCOUT_TIMEOUT;
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        // This write does not block: the scout waits for this line, and the pipe can hold all of it.
        self.questions.write_all(&line)?;
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                match serde_json::from_slice(&line)? {
                    ScoutReply::At(mount) => *place = mount.into(),
                    reply => return Ok(Some(reply)),
                }
            }
            if self.buffer.len() > MAX_SCOUT_REPLY_BYTES {
                return Err(io::Error::other("it says more than is read"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let mut ends = [PollFd::new(self.replies.as_fd(), PollFlags::POLLIN)];
            // Round up. Otherwise the loop would spin during the last millisecond.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
            match poll(&mut ends, timeout) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(errno.into()),
            }
            let mut chunk = [0; 8192];
            match self.replies.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.buffer.extend_from_slice(&chunk[..count]),
            }
        }
    }
}
