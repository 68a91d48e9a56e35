//! Files of the guest. The agent opens and replaces them safely: no owner of a directory on the path can misuse
//! the agent's root rights (KP-5.10 to KP-5.12, KP-7.3).
//!
//! ```text
//!   path ──► walk: from `/`, a descriptor a component ──► the directory, held open, and a name in it
//!                                                             │
//!                            read (regular, not blocking) ◄───┤
//!            replace: temporary → owner, mode, ACL, label ◄───┤
//!                     → fsync → compare → rename → fsync      │
//!                         sweep: temporaries left by a crash ◄┘
//! ```
//!
//! After the walk, the path is only text for messages. Every operation is relative to the descriptor of a
//! directory that the walk checked. No operation resolves the full path a second time.

mod attributes;
mod beneath;
mod directory;
mod error;
mod key_file;
mod label;
mod lock;
mod mounts;
mod own_directory;
mod read;
mod replace;
mod root_file;
mod state;
mod sweep;
mod temporary;
mod walk;
mod writable;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;

pub use error::FileError;
pub use key_file::{
    MAX_KEY_FILE_BYTES, read_key_file, read_key_file_for_removal, read_key_file_labels,
    relabel_key_file_path, remove_created_key_file, remove_key_dir_temporaries, replace_key_file,
    resolve_file_id,
};
pub use label::PathLabel;
pub use lock::{LockError, LockGuard};
pub(super) use mounts::MountTable;
pub use mounts::{PathView, compare_view_with_process, is_mounted};
pub use read::read_file;
pub(super) use read::{canonicalize_path, device_and_inode, ensure_responsive};
pub use replace::ReplaceOutcome;
pub use root_file::{
    MAX_ROOT_FILE_BYTES, read_root_file, read_root_file_labels, relabel_root_file, remove_root_file,
    replace_root_file,
};
pub use state::{STATE_FILE_NAME, StateDirectory};
pub use sweep::remove_root_dir_temporaries;
pub use writable::{check_key_file_writable, check_root_file_writable};
