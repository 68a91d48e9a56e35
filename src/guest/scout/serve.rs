//! The scout's side. Its look-ups may hang.

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
use super::super::files::{MAX_KEY_FILE_BYTES, MountTable};
use super::wire::{MountIdentity, PasswdEntry, ScoutQuestion, ScoutReply};

/// The maximum number of links on the path to a file, path_resolution(7).
const MAX_SYMLINKS: usize = 40;

/// Answers questions until the input ends.
///
/// # Errors
/// Reading a question or writing an answer failed, for example because the parent closed the pipe.
pub(crate) fn answer_questions(input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let mut say = |reply: &ScoutReply| {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        output.write_all(&line)?;
        output.flush()
    };
    for line in input.lines() {
        let question: ScoutQuestion = serde_json::from_str(&line?)?;
        let reply = answer_question(&question, &mut say)?;
        say(&reply)?;
    }
    Ok(())
}

/// Answers one question. Calls `say` with each mount before the mount is accessed.
pub(super) fn answer_question(
    question: &ScoutQuestion,
    say: &mut impl FnMut(&ScoutReply) -> io::Result<()>,
) -> io::Result<ScoutReply> {
    let failed = |error: io::Error| ScoutReply::Failed(error.raw_os_error().unwrap_or(Errno::EIO as i32));
    Ok(match question {
        ScoutQuestion::Entry(name) => match String::from_utf8(name.clone()) {
            Ok(name) => user_reply(User::from_name(&name)),
            Err(_) => ScoutReply::Entry(None),
        },
        ScoutQuestion::EntryOfUid(uid) => user_reply(User::from_uid(Uid::from_raw(*uid))),
        ScoutQuestion::Groups { name, gid } => match list_group_names(name, Gid::from_raw(*gid)) {
            Ok(groups) => ScoutReply::Groups(groups),
            Err(errno) => ScoutReply::Failed(errno as i32),
        },
        ScoutQuestion::Reach { path, silent } => {
            traverse_path(Path::new(OsStr::from_bytes(path)), silent, say)?
        }
        ScoutQuestion::Expand(pattern) => {
            let found =
                config_tree::expand_glob_in_process(PathBuf::from(OsString::from_vec(pattern.clone())));
            let files = found.files.into_iter().map(|file| file.into_os_string().into_vec()).collect();
            ScoutReply::Expanded { directory_exists: found.directory_exists, files }
        }
        ScoutQuestion::Content { path, limit } => {
            match read_prefix(Path::new(OsStr::from_bytes(path)), *limit) {
                Ok(content) => ScoutReply::Content(content),
                Err(error) => failed(error),
            }
        }
    })
}

fn user_reply(answer: nix::Result<Option<User>>) -> ScoutReply {
    match not_found_as_none(answer) {
        Ok(user) => ScoutReply::Entry(user.map(|user| PasswdEntry {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            home: user.dir.into_os_string().into_vec(),
            shell: user.shell.into_os_string().into_vec(),
        })),
        Err(errno) => ScoutReply::Failed(errno as i32),
    }
}

fn list_group_names(name: &[u8], primary: Gid) -> nix::Result<Vec<String>> {
    let own = not_found_as_none(Group::from_gid(primary))?;
    let mut groups: Vec<String> = own.into_iter().map(|group| group.name).collect();
    let login = CString::new(name).map_err(|_| Errno::EINVAL)?;
    for gid in getgrouplist(&login, primary)? {
        if gid == primary {
            continue;
        }
        // A group without a name cannot be in AllowGroups. sshd omits it too.
        groups.extend(not_found_as_none(Group::from_gid(gid))?.map(|group| group.name));
    }
    Ok(groups)
}

/// Converts the errors that getpwnam(3) lists for "not found" to `None`.
fn not_found_as_none<T>(answer: nix::Result<Option<T>>) -> nix::Result<Option<T>> {
    match answer {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        answer => answer,
    }
}

/// Follows a path component by component, with links, and reads the entry at its end. A system error counts as an
/// answer: the process that sent the question gets the same error when it accesses the path.
fn traverse_path(
    path: &Path,
    silent: &[MountIdentity],
    say: &mut impl FnMut(&ScoutReply) -> io::Result<()>,
) -> io::Result<ScoutReply> {
    let Some(mounts) = MountTable::read() else { return Ok(ScoutReply::Reached) };
    let mut pending = split_components(path);
    let (mut current, mut links) = (PathBuf::from("/"), 0);
    let mut last = None;
    while let Some(part) = pending.pop_front() {
        if part == ".." {
            current.pop();
            continue;
        }
        let next = current.join(&part);
        let mount = mounts.identify_mount(&next);
        if mount != last {
            if let Some(mount) = &mount {
                if silent.contains(mount) {
                    return Ok(ScoutReply::Silent(mount.clone()));
                }
                say(&ScoutReply::At(mount.clone()))?;
            }
            last = mount;
        }
        let Ok(metadata) = fs::symlink_metadata(&next) else { return Ok(ScoutReply::Reached) };
        if !metadata.is_symlink() {
            current = next;
            continue;
        }
        links += 1;
        let Ok(target) = fs::read_link(&next) else { return Ok(ScoutReply::Reached) };
        if links > MAX_SYMLINKS {
            return Ok(ScoutReply::Reached);
        }
        if target.is_absolute() {
            current = PathBuf::from("/");
        }
        for part in split_components(&target).into_iter().rev() {
            pending.push_front(part);
        }
    }
    // Ignore an error: the process that reads the path next gets it too.
    let _ = read_through(&current);
    Ok(ScoutReply::Reached)
}

/// The components of a path that are names or `..`.
fn split_components(path: &Path) -> VecDeque<OsString> {
    let is_step = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(is_step).map(|part| part.as_os_str().to_owned()).collect()
}

/// Reads a regular file to its end, or the first entry of a directory.
fn read_through(path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        fs::read_dir(path)?.next().transpose()?;
    } else if metadata.is_file() {
        io::copy(&mut open_nonblocking(path)?.take(MAX_KEY_FILE_BYTES as u64 + 1), &mut io::sink())?;
    }
    Ok(())
}

fn read_prefix(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_nonblocking(path)?.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// Opens a file for reading. The call does not wait for a writer, and a terminal does not become the controlling
/// terminal.
fn open_nonblocking(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits()).open(path)
}
