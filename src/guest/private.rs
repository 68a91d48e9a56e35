//! A private directory in the run directory, for the time of a question; nothing of it is left behind.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The directory, 0700. Dropped in this order: itself, then the run directory if it was made for it.
pub(super) struct PrivateDirectory {
    directory: TempDir,
    _run_dir: Option<MadeDirectory>,
}

/// A directory that is removed again, if nothing stands in it.
struct MadeDirectory(PathBuf);

impl Drop for MadeDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

impl PrivateDirectory {
    pub(super) fn make(run_dir: &Path, prefix: &str) -> io::Result<Self> {
        let made = match DirBuilder::new().mode(0o755).create(run_dir) {
            Ok(()) => Some(MadeDirectory(run_dir.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
            Err(error) => return Err(error),
        };
        let directory = tempfile::Builder::new()
            .prefix(prefix)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(run_dir)?;
        Ok(Self { directory, _run_dir: made })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}
