//! The bytes of the state file and their limit. The limit ensures that every saved state can be loaded.

use std::fmt;
use std::path::PathBuf;

use super::{State, StoredResult};
use crate::policy::block::{BEGIN_MARKER, END_MARKER};
use crate::policy::edit::FileIntent;
use crate::policy::foreign::sanitize_path;

/// The most bytes of a state file that the agent writes; it reads twice as many. 128 results of the usual size are
/// some 150 KiB.
const MAX_STATE_FILE_BYTES: usize = 8 * 1024 * 1024;

/// Why a state cannot be stored.
#[derive(Debug)]
pub enum StateSerializeError {
    /// The state is too large even without any old result.
    TooLarge {
        /// The size in bytes.
        bytes: usize,
        /// The file whose edit is the largest part of the state.
        file: Option<PathBuf>,
    },
    /// A part of the state cannot be written as JSON.
    NotJson(serde_json::Error),
}

impl fmt::Display for StateSerializeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, file) = match self {
            Self::TooLarge { bytes, file } => (bytes, file),
            Self::NotJson(error) => return write!(f, "it cannot be written as JSON: {error}"),
        };
        let most = MAX_STATE_FILE_BYTES >> 20;
        write!(f, "it has {bytes} bytes, most of them to take this command back, and {most} MiB are kept")?;
        match file {
            Some(file) => {
                let file = sanitize_path(file);
                write!(
                    f,
                    "; remove the lines `{BEGIN_MARKER}` and `{END_MARKER}` from {file} that somebody added there"
                )
            }
            None => Ok(()),
        }
    }
}

impl std::error::Error for StateSerializeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooLarge { .. } => None,
            Self::NotJson(error) => Some(error),
        }
    }
}

impl State {
    /// The bytes of the state file. If there are too many, the oldest results are left out.
    ///
    /// # Errors
    /// [`StateSerializeError`]: the caller must then write nothing.
    pub fn to_bounded_bytes(&self) -> Result<Vec<u8>, StateSerializeError> {
        let bytes = self.to_json_bytes()?;
        if bytes.len() <= MAX_STATE_FILE_BYTES {
            return Ok(bytes);
        }
        // Includes the comma after the result.
        let size = |stored: &StoredResult| serde_json::to_vec(stored).map_or(0, |bytes| bytes.len() + 1);
        let mut length = bytes.len();
        let mut smaller = self.clone();
        while length > MAX_STATE_FILE_BYTES {
            let Some(oldest) = smaller.drop_oldest_result() else {
                return Err(StateSerializeError::TooLarge { bytes: length, file: self.find_largest_edit() });
            };
            length = length.saturating_sub(size(&oldest));
        }
        smaller.to_json_bytes()
    }

    fn to_json_bytes(&self) -> Result<Vec<u8>, StateSerializeError> {
        let mut bytes = serde_json::to_vec(self).map_err(StateSerializeError::NotJson)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The file whose edit takes the most space in the intent of the command in flight.
    fn find_largest_edit(&self) -> Option<PathBuf> {
        let intent = self.intent.as_ref()?;
        let size = |file: &&FileIntent| serde_json::to_vec(file).map_or(0, |bytes| bytes.len());
        Some(intent.key_files.iter().chain(&intent.sshd_files).max_by_key(size)?.path.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::transaction::state::HighestSequence;

    fn result_of_size(number: usize, bytes: usize) -> StoredResult {
        StoredResult { command_id: format!("c{number}").parse().unwrap(), result: "\"".repeat(bytes / 2) }
    }

    /// KP-7.1.
    #[test]
    fn oldest_results_are_dropped_when_state_is_too_large() {
        let mut state = State::parse(None).unwrap();
        state.highest =
            Some(HighestSequence { sequence: 7.try_into().unwrap(), command_id: "c0".parse().unwrap() });
        state.undelivered = Some(result_of_size(500, 48 * 1024));
        for number in 0..128 {
            state.add_result(result_of_size(number, 96 * 1024));
        }
        let bytes = state.to_bounded_bytes().unwrap();
        assert!(
            bytes.len() <= MAX_STATE_FILE_BYTES && bytes.len() > MAX_STATE_FILE_BYTES - 100 * 1024,
            "{}",
            bytes.len()
        );
        let read = State::parse(Some(&bytes)).unwrap();
        assert_eq!(read.undelivered, state.undelivered);
        let is_kept = |number: usize| read.has_seen_command(&format!("c{number}").parse().unwrap());
        assert!(is_kept(0), "the highest sequence's would be obeyed once more");
        assert!(!is_kept(1) && !is_kept(40) && is_kept(127));
    }

    /// KP-7.1.
    #[test]
    fn oversized_state_is_not_serialized() {
        let mut state = State::parse(None).unwrap();
        state.undelivered = Some(result_of_size(0, 2 * MAX_STATE_FILE_BYTES));
        state.add_result(result_of_size(1, 1024));
        assert!(matches!(state.to_bounded_bytes(), Err(StateSerializeError::TooLarge { .. })));
    }
}
