//! The bytes of the state file, and their bound: what is saved can be loaded.

use std::fmt;
use std::path::PathBuf;

use super::{State, StoredResult};
use crate::policy::block::{BEGIN, END};
use crate::policy::edit::FileIntent;
use crate::policy::foreign::foreign_path;

/// The most bytes of a state file that is written; twice as many are read. 128 results of the usual size are some 150 KiB.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// Why a state cannot be kept.
#[derive(Debug)]
pub enum Unkept {
    /// It does not fit, without a single old result.
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// Whose edit is the largest part of it.
        file: Option<PathBuf>,
    },
    /// A part of it cannot be written as JSON.
    NotJson(serde_json::Error),
}

impl fmt::Display for Unkept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, file) = match self {
            Self::TooLarge { bytes, file } => (bytes, file),
            Self::NotJson(error) => return write!(f, "it cannot be written as JSON: {error}"),
        };
        let most = MAX_BYTES >> 20;
        write!(f, "it has {bytes} bytes, most of them to take this command back, and {most} MiB are kept")?;
        match file {
            Some(file) => {
                let file = foreign_path(file);
                write!(f, "; remove the lines `{BEGIN}` and `{END}` from {file} that somebody added there")
            }
            None => Ok(()),
        }
    }
}

impl std::error::Error for Unkept {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooLarge { .. } => None,
            Self::NotJson(error) => Some(error),
        }
    }
}

impl State {
    /// The bytes of the state file. Where they are too many, the oldest results are not among them.
    ///
    /// # Errors
    /// [`Unkept`]: nothing is to be written then.
    pub fn kept_bytes(&self) -> Result<Vec<u8>, Unkept> {
        let bytes = self.serialized()?;
        if bytes.len() <= MAX_BYTES {
            return Ok(bytes);
        }
        // With the comma behind it.
        let size = |stored: &StoredResult| serde_json::to_vec(stored).map_or(0, |bytes| bytes.len() + 1);
        let mut length = bytes.len();
        let mut smaller = self.clone();
        while length > MAX_BYTES {
            let Some(oldest) = smaller.drop_oldest_result() else {
                return Err(Unkept::TooLarge { bytes: length, file: self.largest_edit() });
            };
            length = length.saturating_sub(size(&oldest));
        }
        smaller.serialized()
    }

    fn serialized(&self) -> Result<Vec<u8>, Unkept> {
        let mut bytes = serde_json::to_vec(self).map_err(Unkept::NotJson)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The file of which most has to be kept for the command in flight.
    fn largest_edit(&self) -> Option<PathBuf> {
        let intent = self.intent.as_ref()?;
        let size = |file: &&FileIntent| serde_json::to_vec(file).map_or(0, |bytes| bytes.len());
        Some(intent.key_files.iter().chain(&intent.sshd_files).max_by_key(size)?.path.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::transaction::state::Highest;

    fn result(number: usize, bytes: usize) -> StoredResult {
        StoredResult { command_id: format!("c{number}").parse().unwrap(), result: "\"".repeat(bytes / 2) }
    }

    /// KP-7.1.
    #[test]
    fn the_oldest_results_go_where_the_state_is_too_large() {
        let mut state = State::parse(None).unwrap();
        state.highest = Some(Highest { sequence: 7.try_into().unwrap(), command_id: "c0".parse().unwrap() });
        state.undelivered = Some(result(500, 48 * 1024));
        for number in 0..128 {
            state.remember(result(number, 96 * 1024));
        }
        let bytes = state.kept_bytes().unwrap();
        assert!(bytes.len() <= MAX_BYTES && bytes.len() > MAX_BYTES - 100 * 1024, "{}", bytes.len());
        let read = State::parse(Some(&bytes)).unwrap();
        assert_eq!(read.undelivered, state.undelivered);
        let is_kept = |number: usize| read.remembers(&format!("c{number}").parse().unwrap());
        assert!(is_kept(0), "the highest sequence's would be obeyed once more");
        assert!(!is_kept(1) && !is_kept(40) && is_kept(127));
    }

    /// KP-7.1.
    #[test]
    fn what_cannot_fit_is_not_written() {
        let mut state = State::parse(None).unwrap();
        state.undelivered = Some(result(0, 2 * MAX_BYTES));
        state.remember(result(1, 1024));
        assert!(matches!(state.kept_bytes(), Err(Unkept::TooLarge { .. })));
    }
}
