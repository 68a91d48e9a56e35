//! The user's authorized_keys file (KP-5.9 to KP-5.13).

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::policy::observation::{Account, FileId, KeyFile};
use crate::policy::selinux::Relabel;
use crate::policy::types::ContentHash;

use super::super::accounts;
use super::directory::{CreatedDirectory, Directory};
use super::error::{FileError, display_path};
use super::label::{self, PathLabel};
use super::read::{ensure_responsive, open_regular_file};
use super::replace::{FileTarget, NewFileAttrs, ReplaceOutcome};
use super::sweep::remove_temporaries_in;
use super::walk::{DirectoryId, PathWalker, TrustPolicy, is_root_or_current_user, split_parent_and_name};

/// The maximum size of an authorized_keys file, in bytes.
pub const MAX_KEY_FILE_BYTES: usize = 16 * 1024 * 1024;
/// The mode of a new authorized_keys file.
const NEW_FILE_MODE: u32 = 0o600;

/// The resolved path to the user's file.
struct ResolvedKeyFile<'a> {
    walk: PathWalker,
    way: TrustPolicy,
    name: &'a OsStr,
    /// The user's home; `None` if it does not exist.
    home: Option<DirectoryId>,
}

impl<'a> ResolvedKeyFile<'a> {
    /// Walks to the file's directory. Returns an error if the path is in a home that does not exist.
    fn resolve_in_existing_home(account: &Account, path: &'a Path) -> Result<Self, FileError> {
        let key_path = Self::resolve(account, path)?;
        let is_in_home = account.home.is_absolute() && path.starts_with(&account.home);
        if is_in_home && key_path.home.is_none() {
            let why = format!("the home of {} does not exist; create it, owned by him", account.name);
            return Err(FileError::unsafe_path(&account.home, why));
        }
        Ok(key_path)
    }

    /// Walks towards the file's directory as far as directories exist.
    fn resolve(account: &Account, path: &'a Path) -> Result<Self, FileError> {
        let (parent, name) = split_parent_and_name(path)?;
        ensure_responsive(&account.home)?;
        ensure_responsive(path)?;
        let home = match account.home.is_absolute() {
            true => DirectoryId::from_path(&account.home)?,
            false => None,
        };
        let way = TrustPolicy::OwnedByUserOrRoot(account.uid);
        let walk = PathWalker::walk_to(way, home, parent)?;
        let key_path = Self { walk, way, name, home };
        key_path.check_not_in_root_home(account, path)?;
        Ok(key_path)
    }

    /// Whether the stage at `index` is the home or below it.
    fn is_home_or_below(&self, index: usize) -> bool {
        let home = self.walk.components().iter().position(|stage| Some(stage.id()) == self.home);
        home.is_some_and(|home| home <= index)
    }

    /// Whether the path goes through the home.
    fn is_below_home(&self) -> bool {
        self.walk.components().iter().any(|stage| Some(stage.id()) == self.home)
    }

    /// Refuses a path into root's home if the account is another user's. Such a key would let that user log in as
    /// root.
    fn check_not_in_root_home(&self, account: &Account, path: &Path) -> Result<(), FileError> {
        if is_root_or_current_user(account.uid) {
            return Ok(());
        }
        let Some(roots) = find_root_home() else { return Ok(()) };
        let stages = self.walk.components();
        let deepest = stages.iter().rposition(|stage| Some(stage.id()) == self.home || stage.id() == roots);
        match deepest.and_then(|index| stages.get(index)) {
            Some(stage) if stage.id() == roots => {
                let why = format!(
                    "leads into {}, the home of root: a key of {} there would let in as root; name another file",
                    display_path(&stage.path),
                    account.name
                );
                Err(FileError::unsafe_path(path, why))
            }
            _ => Ok(()),
        }
    }

    /// The file's identity: the last existing directory, and the names below it.
    fn id(&self) -> Result<FileId, FileError> {
        let DirectoryId { device, inode } = self.walk.last()?.id();
        let name = self.walk.missing.iter().map(OsString::as_os_str).chain([self.name]).collect();
        Ok(FileId { device, inode, name })
    }

    /// The file's target for reading and writing, in a directory that exists.
    fn target<'t>(&self, directory: &'t Directory) -> FileTarget<'t>
    where
        'a: 't,
    {
        FileTarget { directory, name: self.name, way: self.way, limit: MAX_KEY_FILE_BYTES }
    }

    /// The file's directory; `None` if it does not exist.
    fn open_directory(&self) -> Result<Option<Directory>, FileError> {
        if self.walk.missing.is_empty() { Ok(Some(self.walk.last()?.open_directory()?)) } else { Ok(None) }
    }
}

/// The home of root; `None` if it is `/`, which contains the files of all users.
fn find_root_home() -> Option<DirectoryId> {
    let home = accounts::root_home()?;
    ensure_responsive(&home).ok()?;
    let home = DirectoryId::from_path(&home).ok()??;
    (DirectoryId::from_path(Path::new("/")).ok()?? != home).then_some(home)
}

/// Reads the user's file over a path that is checked as in KP-5.11 and KP-5.12. If the file or its directory does
/// not exist, `content` is `None`. A home that does not exist is an error ([`FileError::Unsafe`]).
pub fn read_key_file(account: &Account, path: &Path) -> Result<KeyFile, FileError> {
    read_resolved_key_file(ResolvedKeyFile::resolve_in_existing_home(account, path)?, path)
}

/// Same as [`read_key_file`], for a removal: a home that does not exist means that there is no content.
pub fn read_key_file_for_removal(account: &Account, path: &Path) -> Result<KeyFile, FileError> {
    read_resolved_key_file(ResolvedKeyFile::resolve(account, path)?, path)
}

/// The identity of the file at `path`, with the links on the path followed; `None` if its directory does not
/// exist. No owner and no mode is checked: use this only for comparisons.
pub fn resolve_file_id(path: &Path) -> Option<FileId> {
    let (parent, name) = split_parent_and_name(path).ok()?;
    ensure_responsive(parent).ok()?;
    let DirectoryId { device, inode } = DirectoryId::from_path(parent).ok()??;
    Some(FileId { device, inode, name: name.into() })
}

fn read_resolved_key_file(key_path: ResolvedKeyFile<'_>, path: &Path) -> Result<KeyFile, FileError> {
    let mut content = None;
    let directory = key_path.open_directory()?;
    let missing_directory = match directory {
        Some(_) => None,
        None => path.parent().map(Path::to_owned),
    };
    if let Some(directory) = directory
        && let Some((_, bytes)) = key_path.target(&directory).read()?
    {
        content = Some(bytes.into());
    }
    let (id, mount) = (key_path.id()?, key_path.walk.last()?.mount_point());
    Ok(KeyFile { path: path.to_owned(), id, mount, content, missing_directory })
}

/// The SELinux labels of the existing components of the path to the user's file, and of the file.
pub fn read_key_file_labels(account: &Account, path: &Path) -> Result<Vec<PathLabel>, FileError> {
    let key_path = ResolvedKeyFile::resolve(account, path)?;
    let stages = key_path.walk.components().iter().enumerate();
    let stages =
        stages.map(|(index, stage)| label::read_component_label(stage, key_path.is_home_or_below(index)));
    let passed = key_path.walk.traversed().iter().map(|stage| label::read_component_label(stage, false));
    let mut found: Vec<PathLabel> = passed.chain(stages).collect::<Result<_, _>>()?;
    if let Some(directory) = key_path.open_directory()?
        && let Some(opened) = open_regular_file(&directory, key_path.name)?
    {
        found.push(label::read_file_label(&opened.file, directory.entry_path(key_path.name))?);
    }
    Ok(found)
}

/// Sets a label on the path to the user's file. The function walks the path again.
pub fn relabel_key_file_path(account: &Account, relabel: &Relabel) -> Result<(), FileError> {
    let Relabel { file, place, was, label } = relabel;
    let key_path = ResolvedKeyFile::resolve(account, file)?;
    let mut stages = key_path.walk.components().iter().enumerate();
    let stage = stages.find(|(index, stage)| stage.path == *place && key_path.is_home_or_below(*index));
    if let Some((_, stage)) = stage {
        return label::replace_label(stage.open_directory()?, place, was.as_ref(), label);
    }
    let directory =
        key_path.open_directory()?.filter(|directory| directory.entry_path(key_path.name) == *place);
    let opened = match &directory {
        Some(directory) => key_path.target(directory).read()?,
        None => None,
    };
    match opened {
        Some((opened, _)) => label::replace_label(&opened.file, place, was.as_ref(), label),
        None => Err(FileError::Changed { path: place.clone() }),
    }
}

/// Replaces the content of the user's file, which must still be the file that was observed (KP-5.9). `expected` is
/// `None` if there was no file: then it is created with mode 0600 and owned by the user. Its directory is created
/// with mode 0700, owned by the user, if only that directory is missing below the home. Content that is already
/// there is not written again.
pub fn replace_key_file(
    account: &Account,
    path: &Path,
    expected: Option<&ContentHash>,
    content: &[u8],
) -> Result<ReplaceOutcome, FileError> {
    let key_path = ResolvedKeyFile::resolve_in_existing_home(account, path)?;
    let owner = (account.uid, account.gid);
    let fresh = NewFileAttrs { owner, mode: NEW_FILE_MODE, label_path: path };
    if let Some(directory) = key_path.open_directory()? {
        let created_file = key_path.target(&directory).replace(expected, content, &fresh)?;
        return Ok(ReplaceOutcome { created_directory: None, created_file });
    }
    if expected.is_some() {
        return Err(FileError::Changed { path: path.to_owned() });
    }
    let created = match (key_path.walk.missing.as_slice(), key_path.is_below_home()) {
        ([name], true) => CreatedDirectory::create(key_path.walk.last()?.open_directory()?, name, owner)?,
        _ => return Err(missing_directory_error(path)),
    };
    let created_file = key_path.target(&created.directory).replace(None, content, &fresh)?;
    Ok(ReplaceOutcome { created_directory: Some(created.keep()), created_file })
}

/// Calls `file` with the file that [`replace_key_file`] would write. If the file's directory does not exist and
/// would be created, calls `above` with the parent of that directory instead.
pub(super) fn with_key_file_target(
    account: &Account,
    path: &Path,
    expected: Option<&ContentHash>,
    file: impl FnOnce(&FileTarget<'_>, Option<&ContentHash>) -> Result<(), FileError>,
    above: impl FnOnce(&Directory) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let key_path = ResolvedKeyFile::resolve_in_existing_home(account, path)?;
    if let Some(directory) = key_path.open_directory()? {
        return file(&key_path.target(&directory), expected);
    }
    if expected.is_some() {
        return Err(FileError::Changed { path: path.to_owned() });
    }
    match (key_path.walk.missing.as_slice(), key_path.is_below_home()) {
        ([_], true) => above(&key_path.walk.last()?.open_directory()?),
        _ => Err(missing_directory_error(path)),
    }
}

/// The error if the file's directory does not exist and the agent does not create it.
fn missing_directory_error(path: &Path) -> FileError {
    let why = "its directory does not exist; create it, owned by root or the user and not world-writable";
    FileError::unsafe_path(path, why)
}

/// Undoes the creation by a command (KP-7.4): removes the file if its content is still `expected`, then its own
/// `directory` if that is empty. If the file, the directory or the home is already gone, that is no error, so that
/// a second attempt after a crash succeeds. A file with other content stays, and the result is
/// [`FileError::Changed`]. Temporary files of the agent that a crash left in the directory are removed too.
pub fn remove_created_key_file(
    account: &Account,
    path: &Path,
    expected: &ContentHash,
    directory: Option<&Path>,
) -> Result<(), FileError> {
    let key_path = ResolvedKeyFile::resolve(account, path)?;
    let Some(held) = key_path.open_directory()? else { return Ok(()) };
    key_path.target(&held).remove(expected)?;
    let Some(directory) = directory else { return Ok(()) };
    let [.., above, own] = key_path.walk.components() else { return Ok(()) };
    // Only the file's own directory, and only below the home. No component there is a link, so the stage above is
    // its parent.
    let is_below = key_path.is_below_home() && Some(own.id()) != key_path.home;
    let is_own = is_below && is_parent_directory(directory, path, &own.path);
    let Some(name) = own.path.file_name().filter(|_| is_own) else { return Ok(()) };
    remove_temporaries_in(&held, key_path.way)?;
    let above = above.open_directory()?;
    if above.rmdir_if_empty(name)? {
        above.sync()?;
    }
    Ok(())
}

/// Removes the agent's temporary files from the directory of the user's authorized_keys file at `path` (KP-5.10).
/// Returns their number. The caller must hold the lock on the state directory, as for
/// [`super::remove_root_dir_temporaries`].
pub fn remove_key_dir_temporaries(account: &Account, path: &Path) -> Result<usize, FileError> {
    let key_path = ResolvedKeyFile::resolve(account, path)?;
    match key_path.open_directory()? {
        Some(directory) => remove_temporaries_in(&directory, key_path.way),
        None => Ok(0),
    }
}

/// Whether `directory` is the file's directory, either as configured or as resolved.
fn is_parent_directory(directory: &Path, file: &Path, resolved: &Path) -> bool {
    Some(directory) == file.parent() || directory == resolved
}
