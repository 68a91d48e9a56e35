//! TOML files that are named by flags. Their errors give file, line, cause and remedy.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Why the file of a flag is not accepted. The text is one line.
#[derive(Debug)]
pub enum TomlFileError {
    /// The file cannot be read.
    Unreadable {
        /// The flag that names the file.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        cause: io::Error,
    },
    /// The content of the file is invalid.
    InvalidContent {
        /// The file.
        path: PathBuf,
        /// The line in the file, from 1.
        line: usize,
        /// The fault, and the accepted values.
        message: String,
    },
}

impl fmt::Display for TomlFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { flag, path, cause } => {
                write!(f, "{flag}: {} is not readable: {cause}", path.display())
            }
            Self::InvalidContent { path, line, message } => write!(f, "{}:{line}: {message}", path.display()),
        }
    }
}

impl std::error::Error for TomlFileError {}

/// The text of a file, with its path.
#[derive(Debug)]
pub struct TomlFile {
    path: PathBuf,
    text: String,
}

impl TomlFile {
    /// Reads the file that the flag names.
    ///
    /// # Errors
    /// [`TomlFileError::Unreadable`].
    pub fn read(flag: &'static str, path: &Path) -> Result<Self, TomlFileError> {
        let unreadable = |cause| TomlFileError::Unreadable { flag, path: path.to_owned(), cause };
        Ok(Self::new(path, std::fs::read_to_string(path).map_err(unreadable)?))
    }

    /// A file with this path and text.
    pub fn new(path: &Path, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), text: text.into() }
    }

    /// Parses the text.
    ///
    /// # Errors
    /// [`TomlFileError::InvalidContent`] for the first syntax error, or for a missing, unknown or mistyped field. The
    /// error does not repeat values of the file.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, TomlFileError> {
        toml::from_str(&self.text).map_err(|error| {
            self.error_at_offset(error.span().map_or(0, |span| span.start), error.message().trim().to_owned())
        })
    }

    /// An error at this byte offset of the text.
    pub fn error_at_offset(&self, offset: usize, message: impl Into<String>) -> TomlFileError {
        TomlFileError::InvalidContent {
            path: self.path.clone(),
            line: self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1,
            message: message.into(),
        }
    }
}
