//! A path in JSON, which allows only text. A byte that is not UTF-8 is written as NUL and two hexadecimal digits. No
//! path contains a NUL, so this encoding is unambiguous. A version that does not know it finds no such file, and not
//! a wrong one.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Writes a path.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode_path(path))
}

/// Reads a path.
///
/// # Errors
/// If a NUL is not followed by two hexadecimal digits.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(deserializer)?;
    decode_path(&text).ok_or_else(|| D::Error::custom("not a path"))
}

/// The same for a path that may be absent.
pub mod option {
    use super::{Deserialize, Deserializer, Error, PathBuf, Serializer, decode_path, encode_path};

    /// Writes a path or `null`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        match path {
            Some(path) => serializer.serialize_some(&encode_path(path)),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a path or `null`.
    ///
    /// # Errors
    /// If a NUL is not followed by two hexadecimal digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| decode_path(&text).ok_or_else(|| D::Error::custom("not a path")))
            .transpose()
    }
}

fn encode_path(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\0{byte:02x}")));
    }
    text
}

fn decode_path(text: &str) -> Option<PathBuf> {
    let mut parts = text.split('\0');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn utf8_path_is_written_verbatim() {
        for path in ["", "/home/u/.ssh/authorized_keys", "/home/jürgen \\ \"x\"\n"] {
            assert_eq!(encode_path(Path::new(path)), path);
        }
        let path = PathBuf::from(OsString::from_vec(b"/home/j\xfcrgen/\xc3k".to_vec()));
        assert_eq!(encode_path(&path), "/home/j\0fcrgen/\0c3k");
        for wrong in ["\0", "\0f", "\0+1", "\0g0", "a\0\0fc"] {
            assert_eq!(decode_path(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn path_encoding_round_trips(bytes in proptest::collection::vec(1..=255u8, 0..40)) {
            let path = PathBuf::from(OsString::from_vec(bytes));
            prop_assert_eq!(decode_path(&encode_path(&path)), Some(path));
        }
    }
}
