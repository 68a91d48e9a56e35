//! The scout's side: it looks, and may never come back from it.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::super::config_tree;
use super::super::files::{KEY_FILE_LIMIT, Mounts};
use super::wire::{Entry, MountName, Question, Reply};

/// The most links on the way to a file, path_resolution(7).
const MOST_LINKS: usize = 40;

/// Answers questions until there are no more.
///
/// # Errors
/// That nobody listens any more.
pub(crate) fn serve(input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let mut say = |reply: &Reply| {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        output.write_all(&line)?;
        output.flush()
    };
    for line in input.lines() {
        let question: Question = serde_json::from_str(&line?)?;
        let reply = answer(&question, &mut say)?;
        say(&reply)?;
    }
    Ok(())
}

/// The answer; `say` is told of each mount before it is touched.
pub(super) fn answer(
    question: &Question,
    say: &mut impl FnMut(&Reply) -> io::Result<()>,
) -> io::Result<Reply> {
    let failed = |error: io::Error| Reply::Failed(error.raw_os_error().unwrap_or(Errno::EIO as i32));
    Ok(match question {
        Question::Entry(name) => match String::from_utf8(name.clone()) {
            Ok(name) => entry(User::from_name(&name)),
            Err(_) => Reply::Entry(None),
        },
        Question::EntryOfUid(uid) => entry(User::from_uid(Uid::from_raw(*uid))),
        Question::Groups { name, gid } => match groups(name, Gid::from_raw(*gid)) {
            Ok(groups) => Reply::Groups(groups),
            Err(errno) => Reply::Failed(errno as i32),
        },
        Question::Reach { path, silent } => reach(Path::new(OsStr::from_bytes(path)), silent, say)?,
        Question::Expand(pattern) => {
            let found = config_tree::expand_here(PathBuf::from(OsString::from_vec(pattern.clone())));
            let files = found.files.into_iter().map(|file| file.into_os_string().into_vec()).collect();
            Reply::Expanded { directory_exists: found.directory_exists, files }
        }
        Question::Content { path, limit } => match content(Path::new(OsStr::from_bytes(path)), *limit) {
            Ok(content) => Reply::Content(content),
            Err(error) => failed(error),
        },
    })
}

fn entry(answer: nix::Result<Option<User>>) -> Reply {
    match found(answer) {
        Ok(user) => Reply::Entry(user.map(|user| Entry {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            home: user.dir.into_os_string().into_vec(),
            shell: user.shell.into_os_string().into_vec(),
        })),
        Err(errno) => Reply::Failed(errno as i32),
    }
}

fn groups(name: &[u8], primary: Gid) -> nix::Result<Vec<String>> {
    let own = found(Group::from_gid(primary))?;
    let mut groups: Vec<String> = own.into_iter().map(|group| group.name).collect();
    let login = CString::new(name).map_err(|_| Errno::EINVAL)?;
    for gid in getgrouplist(&login, primary)? {
        if gid == primary {
            continue;
        }
        // A group without a name is in no one's AllowGroups: sshd leaves it out too.
        groups.extend(found(Group::from_gid(gid))?.map(|group| group.name));
    }
    Ok(groups)
}

/// "Not found" in the ways getpwnam(3) lists, some of which are errors.
fn found<T>(answer: nix::Result<Option<T>>) -> nix::Result<Option<T>> {
    match answer {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        answer => answer,
    }
}

/// Walks to a path, link after link, and reads what stands there. An error is an answer: whoever sent the scout meets it
/// by himself.
fn reach(
    path: &Path,
    silent: &[MountName],
    say: &mut impl FnMut(&Reply) -> io::Result<()>,
) -> io::Result<Reply> {
    let Some(mounts) = Mounts::read() else { return Ok(Reply::Reached) };
    let mut pending = parts(path);
    let (mut current, mut links) = (PathBuf::from("/"), 0);
    let mut last = None;
    while let Some(part) = pending.pop_front() {
        if part == ".." {
            current.pop();
            continue;
        }
        let next = current.join(&part);
        let mount = mounts.above(&next);
        if mount != last {
            if let Some(mount) = &mount {
                if silent.contains(mount) {
                    return Ok(Reply::Silent(mount.clone()));
                }
                say(&Reply::At(mount.clone()))?;
            }
            last = mount;
        }
        let Ok(metadata) = fs::symlink_metadata(&next) else { return Ok(Reply::Reached) };
        if !metadata.is_symlink() {
            current = next;
            continue;
        }
        links += 1;
        let Ok(target) = fs::read_link(&next) else { return Ok(Reply::Reached) };
        if links > MOST_LINKS {
            return Ok(Reply::Reached);
        }
        if target.is_absolute() {
            current = PathBuf::from("/");
        }
        for part in parts(&target).into_iter().rev() {
            pending.push_front(part);
        }
    }
    // An error is the reader's own to meet.
    let _ = read_through(&current);
    Ok(Reply::Reached)
}

/// The components of a path that are names or steps upwards.
fn parts(path: &Path) -> VecDeque<OsString> {
    let is_step = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(is_step).map(|part| part.as_os_str().to_owned()).collect()
}

/// Reads a regular file to its end, and the beginning of a directory.
fn read_through(path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        fs::read_dir(path)?.next().transpose()?;
    } else if metadata.is_file() {
        io::copy(&mut open(path)?.take(KEY_FILE_LIMIT as u64 + 1), &mut io::sink())?;
    }
    Ok(())
}

fn content(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// Opens for reading without waiting for a writer, and without becoming a terminal's owner.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits()).open(path)
}
