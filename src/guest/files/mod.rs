//! Files of the guest, reached and replaced so that no owner of a directory on the way can turn it against
//! root (KP-5.10 to KP-5.12, KP-7.3).
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
//! Once the walk is over a path is a text for messages: every operation is relative to a descriptor of a
//! directory that was judged, and nothing is looked up by its whole name a second time.

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
    KEY_FILE_LIMIT, file_id, labels_to_key_file, observe_key_file, observe_standing_key_file,
    relabel_to_key_file, remove_created_key_file, replace_key_file, sweep_key_directory,
};
pub use label::Labelled;
pub use lock::{Guard, LockError};
pub(super) use mounts::Mounts;
pub use mounts::{View, is_mounted, view};
pub use read::read_file;
pub(super) use read::{identity, reach, resolved};
pub use replace::Replaced;
pub use root_file::{
    ROOT_FILE_LIMIT, labels_to_root_file, read_root_file, relabel_root_file, remove_root_file,
    replace_root_file,
};
pub use state::{STATE_FILE, StateDirectory};
pub use sweep::sweep;
pub use writable::{key_file_is_writable, root_file_is_writable};
