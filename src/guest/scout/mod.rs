//! Looks that may never end: at the name service, and at files on a mount whose server is away (KP-8.14). A child of
//! this very program goes first. One that does not answer in time is killed, and left behind where it cannot be: no lock,
//! no descriptor and no thread of this process is its.
//!
//! ```text
//!   this process ──question──► scout ──► getpwnam(3), lstat(2), read(2), …
//!        │  ◄──at this mount──── │
//!        │  ◄──answer─────────── │        no answer in 8 s: killed; its place is silent from then on
//! ```
//!
//! A second look at a silent place is refused at once and adds no child.

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

/// How long a look may take; what comes before and after it has the rest of KP-8.14's ten seconds.
const SCOUT_TIMEOUT: Duration = Duration::from_secs(8);

/// The most scouts that are left behind; each hangs at a place of its own.
const MAX_HUNG_SCOUTS: usize = 8;

/// The word that makes this program a scout.
pub(crate) const SCOUT_SUBCOMMAND: &str = "scout";

/// The most that is read of one reply.
const MAX_SCOUT_REPLY_BYTES: usize = 4 * 1024 * 1024;

/// A place that did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupTarget {
    /// nsswitch.conf(5)'s sources of accounts.
    NameService,
    /// A mount.
    Mount {
        /// Where it is.
        point: PathBuf,
        /// The type of its file system.
        kind: String,
        /// `major:minor`.
        device: String,
    },
    /// One of the files that a pattern matches, or a file of /proc.
    Path(PathBuf),
    /// Too many children hang already.
    TooManyHung,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum LookupError {
    /// None came in time.
    TimedOut(LookupTarget),
    /// Nobody could be sent.
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

/// A place that does not answer, and the child that still hangs there.
struct HungLookup {
    place: LookupTarget,
    left: Option<Child>,
}

/// A scout that waits for questions.
struct ScoutProcess {
    child: Child,
    questions: ChildStdin,
    replies: ChildStdout,
    /// What was read and is no whole line yet.
    buffer: Vec<u8>,
    /// Whose namespaces it has.
    sender: ThreadId,
}

/// All that this process knows of its scouts.
struct ScoutPool {
    /// This program; `None` where it is another that uses this crate: it looks for itself.
    program: Option<PathBuf>,
    waiting: Option<ScoutProcess>,
    silent: Vec<HungLookup>,
    /// Entries and groups that were asked for since the last [`rest`].
    known: Vec<(ScoutQuestion, ScoutReply)>,
}

static SCOUT_POOL: Mutex<ScoutPool> =
    Mutex::new(ScoutPool { program: None, waiting: None, silent: Vec::new(), known: Vec::new() });

fn lock_scout_pool() -> MutexGuard<'static, ScoutPool> {
    SCOUT_POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on this program's own children look first.
pub(crate) fn enable() {
    // Also where the program was replaced by an upgrade, proc(5).
    lock_scout_pool().program = Some(PathBuf::from("/proc/self/exe"));
}

/// At the end of a command: the scout that waits goes, and what did not answer may be asked once more, unless a child
/// still hangs there.
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

/// Before a thread with namespaces of its own ends: a scout that it sent is in them, and goes with it.
pub(super) fn end_scout_of_thread() {
    let mut scouts = lock_scout_pool();
    let own = thread::current().id();
    if let Some(scout) = scouts.waiting.take_if(|scout| scout.sender == own) {
        let _left = child::kill_child_group(scout.child);
    }
}

/// What did not answer since the last [`rest`], or hangs since longer.
pub(super) fn unresponsive_targets() -> Vec<LookupTarget> {
    lock_scout_pool().silent.iter().map(|silent| silent.place.clone()).collect()
}

/// Whether everything on the way to a path, and what stands there, answers, if only by an error.
///
/// # Errors
/// That it does not.
pub(super) fn check_responsive(path: &Path) -> Result<(), LookupError> {
    let mut scouts = lock_scout_pool();
    // What this process says of itself answers.
    if scouts.program.is_none() || !path.is_absolute() || path.starts_with("/proc") {
        return Ok(());
    }
    let question = ScoutQuestion::Reach { path: path_bytes(path), silent: scouts.hung_mounts() };
    match scouts.ask_with_retry(&question, LookupTarget::Path(path.to_owned()))? {
        ScoutReply::Silent(mount) => Err(LookupError::TimedOut(LookupTarget::from(mount))),
        _ => Ok(()),
    }
}

/// What a pattern of an Include directive matches.
///
/// # Errors
/// That a directory on the way does not answer.
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

/// A file's bytes, `limit` of them at most. For files of /proc that another process can keep from being read, as its
/// command line by a page that never comes.
///
/// # Errors
/// The system's; that it does not answer.
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

/// The entry of passwd(5) of this name; `None` where there is none.
///
/// # Errors
/// That the name service does not answer, or fails.
pub(super) fn lookup_user_by_name(name: &str) -> io::Result<Option<PasswdEntry>> {
    lookup_user(ScoutQuestion::Entry(name.as_bytes().to_vec()))
}

/// The same by uid.
///
/// # Errors
/// As for [`entry`].
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
/// As for [`entry`].
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
    /// The same question once a command: its answer stands until the next [`rest`].
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

    /// Sends a scout. `place` is where it is as long as it says nothing else.
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
        // One that ended by itself, or was ended by somebody, is no silence: once more.
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

    /// How many children hang.
    fn count_hung(&mut self) -> usize {
        for silent in &mut self.silent {
            silent.left.take_if(|child| !matches!(child.try_wait(), Ok(None)));
        }
        self.silent.iter().filter(|silent| silent.left.is_some()).count()
    }

    /// Forgets the places at which no child hangs.
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

    /// The answer; `None` where none came in time. `place` follows the scout.
    fn ask(&mut self, question: &ScoutQuestion, place: &mut LookupTarget) -> io::Result<Option<ScoutReply>> {
        let deadline = Instant::now() + SCOUT_TIMEOUT;
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        // It waits for this line, which the pipe holds as a whole.
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
            // Rounded up, or the last millisecond would be waited for without rest.
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
