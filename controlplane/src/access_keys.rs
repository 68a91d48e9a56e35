//! `--access-keys`: the access keys that may sign calls of the platform's API (KP-9.9).

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use crate::toml_file::{TomlFile, TomlFileError};

/// The access keys and their secrets, by key id.
pub struct AccessKeys(HashMap<String, String>);

impl fmt::Debug for AccessKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl AccessKeys {
    /// Reads the TOML file: one `[[access_key]]` table for each key, with `id` and `secret`.
    ///
    /// # Errors
    /// The file cannot be read or parsed, or it holds no key. An id is invalid or is given twice. A secret is empty.
    pub fn load(path: &Path) -> Result<Self, TomlFileError> {
        Self::from_toml(&TomlFile::read("--access-keys", path)?)
    }

    fn from_toml(file: &TomlFile) -> Result<Self, TomlFileError> {
        let form: AccessKeysFile = file.parse()?;
        let mut keys = HashMap::new();
        for AccessKeyForm { id, secret } in form.access_keys {
            let (start, id) = (id.span().start, id.into_inner());
            // These three characters separate the parts of the Authorization header.
            let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b',' | b'=');
            if id.is_empty() || !id.bytes().all(allowed) {
                let message = "an access key's id is printable ASCII without blanks, '/', ',' and '='";
                return Err(file.error_at_offset(start, message));
            }
            if secret.get_ref().is_empty() {
                let message = format!("the secret of access key '{id}' is empty");
                return Err(file.error_at_offset(secret.span().start, message));
            }
            if keys.insert(id.clone(), secret.into_inner()).is_some() {
                return Err(
                    file.error_at_offset(start, format!("access key '{id}' is given twice; ids are unique"))
                );
            }
        }
        if keys.is_empty() {
            let message = "there is no access key: write [[access_key]] with id and secret";
            return Err(file.error_at_offset(0, message));
        }
        Ok(Self(keys))
    }

    /// The secret of the access key with this id; `None` if there is no such key.
    pub fn secret(&self, id: &str) -> Option<&str> {
        self.0.get(id).map(String::as_str)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccessKeysFile {
    #[serde(rename = "access_key", default)]
    access_keys: Vec<AccessKeyForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccessKeyForm {
    id: Spanned<String>,
    secret: Spanned<String>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AccessKeys, String> {
        AccessKeys::from_toml(&TomlFile::new(Path::new("keys.toml"), text)).map_err(|error| error.to_string())
    }

    #[test]
    fn access_keys_are_found_by_id() {
        let keys = parse("[[access_key]]\nid = 'a'\nsecret = 's'\n[[access_key]]\nid = 'b'\nsecret = 't'\n")
            .unwrap();
        assert_eq!((keys.secret("a"), keys.secret("b"), keys.secret("c")), (Some("s"), Some("t"), None));
        assert!(!format!("{keys:?}").contains('s'));
    }

    #[test]
    fn access_key_file_error_names_line_and_hides_secret() {
        let cases = [
            ("", 1, "no access key"),
            ("[[access_key]]\nid = 'a'\n", 1, "secret"),
            ("[[access_key]]\nid = 'a/b'\nsecret = 'hidden'\n", 2, "printable"),
            ("[[access_key]]\nid = 'a'\nsecret = ''\n", 3, "empty"),
            (
                "[[access_key]]\nid = 'a'\nsecret = 'hidden'\n[[access_key]]\nid = 'a'\nsecret = 'hidden'\n",
                5,
                "twice",
            ),
            ("[[access_key]]\nid = 'a'\nsecret = 'hidden'\nsecrets = 'hidden'\n", 4, "secrets"),
            ("[[access_key]]\nid = 'a'\nsecret = ['hidden']\n", 3, "string"),
        ];
        for (text, line, what) in cases {
            let error = parse(text).unwrap_err();
            assert!(
                error.starts_with(&format!("keys.toml:{line}: ")) && error.contains(what),
                "{text:?}: {error}"
            );
            assert!(!error.contains("hidden"), "{error}");
        }
    }
}
