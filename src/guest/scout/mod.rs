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
use crate::policy::observation::Included;
use crate::policy::outcome::printable;

pub(crate) use serve::serve;
pub(super) use wire::{Entry, MountName};
use wire::{Question, Reply};

/// How long a look may take; what comes before and after it has the rest of KP-8.14's ten seconds.
const LIMIT: Duration = Duration::from_secs(8);

/// The most scouts that are left behind; each hangs at a place of its own.
const MOST_LEFT: usize = 8;

/// The word that makes this program a scout.
pub(crate) const WORD: &str = "scout";

/// The most that is read of one reply.
const MAX_REPLY: usize = 4 * 1024 * 1024;

/// A place that did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
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
    Everywhere,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Silence {
    /// None came in time.
    NoAnswer(Place),
    /// Nobody could be sent.
    Io(io::Error),
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = LIMIT.as_secs();
        match self {
            Self::NoAnswer(Place::NameService) => write!(
                f,
                "the name service did not answer within {seconds} s; mend the source in nsswitch.conf(5) that hangs \
                 (sssd, nscd, LDAP, winbind), or take it out"
            ),
            Self::NoAnswer(Place::Mount { point, kind, .. }) => {
                let point = printable(&point.to_string_lossy());
                write!(
                    f,
                    "the {kind} mount at {point} did not answer within {seconds} s; bring its server back, or unmount it: \
                     umount -l {point}"
                )
            }
            Self::NoAnswer(Place::Path(path)) => write!(
                f,
                "{} did not answer within {seconds} s; look for a mount below it whose server is away",
                printable(&path.to_string_lossy())
            ),
            Self::NoAnswer(Place::Everywhere) => write!(
                f,
                "{MOST_LEFT} looks at other places hang already; unmount what does not answer (umount -l)"
            ),
            Self::Io(error) => write!(f, "the child that was sent to look did not come back: {error}"),
        }
    }
}

impl std::error::Error for Silence {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::NoAnswer(_) => None,
        }
    }
}

impl From<Silence> for io::Error {
    fn from(silence: Silence) -> Self {
        match silence {
            Silence::Io(error) => error,
            silence => Self::new(io::ErrorKind::TimedOut, silence),
        }
    }
}

/// A place that does not answer, and the child that still hangs there.
struct Silent {
    place: Place,
    left: Option<Child>,
}

/// A scout that waits for questions.
struct Scout {
    child: Child,
    questions: ChildStdin,
    replies: ChildStdout,
    /// What was read and is no whole line yet.
    buffer: Vec<u8>,
    /// Whose namespaces it has.
    sender: ThreadId,
}

/// All that this process knows of its scouts.
struct Scouts {
    /// This program; `None` where it is another that uses this crate: it looks for itself.
    program: Option<PathBuf>,
    waiting: Option<Scout>,
    silent: Vec<Silent>,
    /// Entries and groups that were asked for since the last [`rest`].
    known: Vec<(Question, Reply)>,
}

static SCOUTS: Mutex<Scouts> =
    Mutex::new(Scouts { program: None, waiting: None, silent: Vec::new(), known: Vec::new() });

fn scouts() -> MutexGuard<'static, Scouts> {
    SCOUTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on this program's own children look first.
pub(crate) fn enable() {
    // Also where the program was replaced by an upgrade, proc(5).
    scouts().program = Some(PathBuf::from("/proc/self/exe"));
}

/// At the end of a command: the scout that waits goes, and what did not answer may be asked once more, unless a child
/// still hangs there.
pub fn rest() {
    let mut scouts = scouts();
    scouts.known.clear();
    if let Some(Scout { mut child, questions, replies, .. }) = scouts.waiting.take() {
        drop((questions, replies));
        if !child::ends_within(&mut child, Duration::from_secs(1)) {
            let _left = child::end(child);
        }
    }
    scouts.forget();
}

/// Before a thread with namespaces of its own ends: a scout that it sent is in them, and goes with it.
pub(super) fn leave() {
    let mut scouts = scouts();
    let own = thread::current().id();
    if let Some(scout) = scouts.waiting.take_if(|scout| scout.sender == own) {
        let _left = child::end(scout.child);
    }
}

/// What did not answer since the last [`rest`], or hangs since longer.
pub(super) fn silent_places() -> Vec<Place> {
    scouts().silent.iter().map(|silent| silent.place.clone()).collect()
}

/// Whether everything on the way to a path, and what stands there, answers, if only by an error.
///
/// # Errors
/// That it does not.
pub(super) fn reach(path: &Path) -> Result<(), Silence> {
    let mut scouts = scouts();
    // What this process says of itself answers.
    if scouts.program.is_none() || !path.is_absolute() || path.starts_with("/proc") {
        return Ok(());
    }
    let question = Question::Reach { path: bytes(path), silent: scouts.silent_mounts() };
    match scouts.ask(&question, Place::Path(path.to_owned()))? {
        Reply::Silent(mount) => Err(Silence::NoAnswer(Place::from(mount))),
        _ => Ok(()),
    }
}

/// What a pattern of an Include directive matches.
///
/// # Errors
/// That a directory on the way does not answer.
pub(super) fn expand(pattern: PathBuf) -> Result<Included, Silence> {
    let question = Question::Expand(bytes(&pattern));
    match scouts().ask(&question, Place::Path(pattern.clone()))? {
        Reply::Expanded { directory_exists, files } => {
            let files = files.into_iter().map(|file| PathBuf::from(OsString::from_vec(file))).collect();
            Ok(Included { pattern, directory_exists, files })
        }
        reply => Err(unexpected(&reply)),
    }
}

/// A file's bytes, `limit` of them at most. For files of /proc that another process can keep from being read, as its
/// command line by a page that never comes.
///
/// # Errors
/// The system's; that it does not answer.
pub(super) fn content(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let question = Question::Content { path: bytes(path), limit };
    match scouts().ask(&question, Place::Path(path.to_owned())).map_err(io::Error::from)? {
        Reply::Content(content) => Ok(content),
        Reply::Failed(errno) => Err(io::Error::from_raw_os_error(errno)),
        reply => Err(unexpected(&reply).into()),
    }
}

/// The entry of passwd(5) of this name; `None` where there is none.
///
/// # Errors
/// That the name service does not answer, or fails.
pub(super) fn entry(name: &str) -> io::Result<Option<Entry>> {
    ask_for_entry(Question::Entry(name.as_bytes().to_vec()))
}

/// The same by uid.
///
/// # Errors
/// As for [`entry`].
pub(super) fn entry_of_uid(uid: u32) -> io::Result<Option<Entry>> {
    ask_for_entry(Question::EntryOfUid(uid))
}

fn ask_for_entry(question: Question) -> io::Result<Option<Entry>> {
    match scouts().ask_once(question)? {
        Reply::Entry(entry) => Ok(entry),
        Reply::Failed(errno) => Err(io::Error::from_raw_os_error(errno)),
        reply => Err(unexpected(&reply).into()),
    }
}

/// The names of a user's groups, the primary one first.
///
/// # Errors
/// As for [`entry`].
pub(super) fn groups(name: &str, gid: u32) -> io::Result<Vec<String>> {
    match scouts().ask_once(Question::Groups { name: name.as_bytes().to_vec(), gid })? {
        Reply::Groups(groups) => Ok(groups),
        Reply::Failed(errno) => Err(io::Error::from_raw_os_error(errno)),
        reply => Err(unexpected(&reply).into()),
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn unexpected(_reply: &Reply) -> Silence {
    Silence::Io(io::Error::other("it said something that was not asked"))
}

impl From<MountName> for Place {
    fn from(mount: MountName) -> Self {
        let MountName { point, device, kind } = mount;
        Self::Mount { point: PathBuf::from(OsStr::from_bytes(&point)), device, kind }
    }
}

impl Scouts {
    /// The same question once a command: its answer stands until the next [`rest`].
    fn ask_once(&mut self, question: Question) -> Result<Reply, Silence> {
        if let Some((_, reply)) = self.known.iter().find(|(known, _)| *known == question) {
            return Ok(reply.clone());
        }
        let reply = self.ask(&question, Place::NameService)?;
        if self.program.is_some() && !matches!(reply, Reply::Failed(_)) {
            self.known.push((question, reply.clone()));
        }
        Ok(reply)
    }

    /// Sends a scout. `place` is where it is as long as it says nothing else.
    fn ask(&mut self, question: &Question, place: Place) -> Result<Reply, Silence> {
        let Some(program) = self.program.clone() else {
            return serve::answer(question, &mut |_| Ok(())).map_err(Silence::Io);
        };
        if self.silent.iter().any(|silent| silent.place == place) {
            return Err(Silence::NoAnswer(place));
        }
        // One that ended by itself, or was ended by somebody, is no silence: once more.
        let mut tries = 2;
        loop {
            tries -= 1;
            let mut scout = match self.waiting.take() {
                Some(scout) => scout,
                None if self.left() >= MOST_LEFT => return Err(Silence::NoAnswer(Place::Everywhere)),
                None => Scout::send(&program).map_err(Silence::Io)?,
            };
            let mut place = place.clone();
            let answered = scout.ask(question, &mut place);
            pulse::moved();
            match answered {
                Ok(Some(reply)) => {
                    self.waiting = Some(scout);
                    return Ok(reply);
                }
                Ok(None) => {
                    let left = child::end(scout.child);
                    self.silent.push(Silent { place: place.clone(), left });
                    return Err(Silence::NoAnswer(place));
                }
                Err(error) => {
                    let _left = child::end(scout.child);
                    if tries == 0 {
                        return Err(Silence::Io(error));
                    }
                }
            }
        }
    }

    fn silent_mounts(&self) -> Vec<MountName> {
        let mount = |silent: &Silent| match &silent.place {
            Place::Mount { point, kind, device } => {
                Some(MountName { point: bytes(point), device: device.clone(), kind: kind.clone() })
            }
            _ => None,
        };
        self.silent.iter().filter_map(mount).collect()
    }

    /// How many children hang.
    fn left(&mut self) -> usize {
        for silent in &mut self.silent {
            silent.left.take_if(|child| !matches!(child.try_wait(), Ok(None)));
        }
        self.silent.iter().filter(|silent| silent.left.is_some()).count()
    }

    /// Forgets the places at which no child hangs.
    fn forget(&mut self) {
        self.left();
        self.silent.retain(|silent| silent.left.is_some());
    }
}

impl Scout {
    fn send(program: &Path) -> io::Result<Self> {
        let mut child = child::partner(program, &[WORD])?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(questions), Some(replies)) => {
                let sender = thread::current().id();
                Ok(Self { child, questions, replies, buffer: Vec::new(), sender })
            }
            _ => Err(io::Error::other("it has no pipes")),
        }
    }

    /// The answer; `None` where none came in time. `place` follows the scout.
    fn ask(&mut self, question: &Question, place: &mut Place) -> io::Result<Option<Reply>> {
        let deadline = Instant::now() + LIMIT;
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        // It waits for this line, which the pipe holds as a whole.
        self.questions.write_all(&line)?;
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                match serde_json::from_slice(&line)? {
                    Reply::At(mount) => *place = mount.into(),
                    reply => return Ok(Some(reply)),
                }
            }
            if self.buffer.len() > MAX_REPLY {
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
