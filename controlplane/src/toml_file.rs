//! The TOML files that flags name: read, and their faults said with file, line, cause and remedy.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Why a file is not what its flag wants. Its text is one line.
#[derive(Debug)]
pub enum TomlFileError {
    /// It cannot be read.
    Unreadable {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It says something that cannot be.
    InvalidContent {
        /// The file.
        path: PathBuf,
        /// The line in it, from 1.
        line: usize,
        /// What is wrong, and what would do.
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

/// A file's text, and where it came from.
#[derive(Debug)]
pub struct TomlFile {
    path: PathBuf,
    text: String,
}

impl TomlFile {
    /// Reads the file that this flag names.
    ///
    /// # Errors
    /// [`TomlFileError::Unreadable`].
    pub fn read(flag: &'static str, path: &Path) -> Result<Self, TomlFileError> {
        let unreadable = |cause| TomlFileError::Unreadable { flag, path: path.to_owned(), cause };
        Ok(Self::new(path, std::fs::read_to_string(path).map_err(unreadable)?))
    }

    /// A file of this text.
    pub fn new(path: &Path, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), text: text.into() }
    }

    /// What it says.
    ///
    /// # Errors
    /// The first fault of its syntax, or what is missing, unknown or of the wrong type. Values are not repeated.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, TomlFileError> {
        toml::from_str(&self.text).map_err(|error| {
            self.error_at_offset(error.span().map_or(0, |span| span.start), error.message().trim().to_owned())
        })
    }

    /// A fault of what stands at this byte.
    pub fn error_at_offset(&self, offset: usize, message: impl Into<String>) -> TomlFileError {
        TomlFileError::InvalidContent {
            path: self.path.clone(),
            line: self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1,
            message: message.into(),
        }
    }
}
