//! Bodies of requests: a JSON object, whatever content type it claims to be, with fields nobody asked for.

use std::collections::HashSet;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use keypair_agent::policy::types::{Invalid, KeyName, PasswordAuth};
use serde_json::{Map, Value};

use super::error::ApiError;

/// A request's body as the handlers take it.
pub type RawBody = Result<Bytes, BytesRejection>;

/// The fields of a request's body; `null` counts as absent.
#[derive(Debug)]
pub struct RequestFields(Map<String, Value>);

impl RequestFields {
    /// Reads a body.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where it is no JSON object or too long.
    pub fn from_body(body: RawBody) -> Result<Self, ApiError> {
        let bytes = body.map_err(|_| body_too_long())?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        // serde_json's own message may quote the input; its place does not.
        serde_json::from_slice(bytes).map(Self).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            invalid_argument(format!("the body is not a JSON object (line {line}, column {column})"))
        })
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where it is not, or is no text.
    pub fn required_str(&self, name: &str) -> Result<&str, ApiError> {
        match self.get(name) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(invalid_argument(format!("{name} is not a string"))),
            None => Err(invalid_argument(format!("{name} is missing"))),
        }
    }

    /// `keyName`, of a key pair that is to be.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where it is missing, or no name.
    pub fn key_name(&self) -> Result<KeyName, ApiError> {
        let refused = |error: Invalid| invalid_argument(format!("keyName is refused: {error}"));
        self.required_str("keyName")?.parse().map_err(refused)
    }

    /// `instanceIds`, each once, in the order given.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where it is not an array of at least one text.
    pub fn instance_ids(&self) -> Result<Vec<&str>, ApiError> {
        let wrong = || invalid_argument("instanceIds is not an array of instance ids");
        let values = self.get("instanceIds").ok_or_else(|| invalid_argument("instanceIds is missing"))?;
        let (mut ids, mut seen) = (Vec::new(), HashSet::new());
        for value in values.as_array().ok_or_else(wrong)? {
            let id = value.as_str().ok_or_else(wrong)?;
            if seen.insert(id) {
                ids.push(id);
            }
        }
        if ids.is_empty() {
            return Err(invalid_argument("instanceIds is empty: at least one instance is needed"));
        }
        Ok(ids)
    }

    /// `passWordAuth`, in both spellings and with every value that real clients send; compared by meaning.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where it is missing, contradicts itself or means nothing.
    pub fn password_auth(&self) -> Result<PasswordAuth, ApiError> {
        let mut found = None;
        for name in ["passWordAuth", "passwordAuth"] {
            let value = match self.get(name) {
                None => continue,
                Some(Value::Bool(true)) => PasswordAuth::Yes,
                Some(Value::Bool(false)) => PasswordAuth::No,
                Some(Value::String(text)) => {
                    text.parse().map_err(|error| invalid_argument(format!("{error}")))?
                }
                Some(_) => return Err(invalid_argument("passWordAuth is 'yes' or 'no'")),
            };
            if found.is_some_and(|first| first != value) {
                return Err(invalid_argument("passWordAuth is given in both spellings, and they differ"));
            }
            found = Some(value);
        }
        found.ok_or_else(|| invalid_argument("passWordAuth is missing: 'yes' or 'no' is needed"))
    }
}

/// A body that is too long, or whose sender went away.
pub fn body_too_long() -> ApiError {
    invalid_argument("the body cannot be read: 1 MiB is read at most")
}

fn invalid_argument(what: impl Into<String>) -> ApiError {
    ApiError::InvalidArgument(what.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse_fields(text: &str) -> RequestFields {
        RequestFields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn password_auth_accepts_both_spellings_and_all_values() {
        for (text, meant) in [
            (r#"{"passWordAuth":"yes"}"#, PasswordAuth::Yes),
            (r#"{"passwordAuth":"No"}"#, PasswordAuth::No),
            (r#"{"passwordAuth":"True"}"#, PasswordAuth::Yes),
            (r#"{"passWordAuth":"FALSE"}"#, PasswordAuth::No),
            (r#"{"passWordAuth":true}"#, PasswordAuth::Yes),
            (r#"{"passWordAuth":false,"passwordAuth":null}"#, PasswordAuth::No),
            (r#"{"passWordAuth":"no","passwordAuth":false}"#, PasswordAuth::No),
        ] {
            assert_eq!(parse_fields(text).password_auth(), Ok(meant), "{text}");
        }
        for text in [
            "{}",
            r#"{"passWordAuth":null}"#,
            r#"{"passWordAuth":"maybe"}"#,
            r#"{"passWordAuth":1}"#,
            r#"{"passWordAuth":"yes","passwordAuth":"no"}"#,
            r#"{"passWordAuth":"yes","passwordAuth":"maybe"}"#,
        ] {
            assert!(
                matches!(parse_fields(text).password_auth(), Err(ApiError::InvalidArgument(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn instance_ids_are_deduplicated_in_order() {
        assert_eq!(parse_fields(r#"{"instanceIds":["b","a","b"]}"#).instance_ids().unwrap(), ["b", "a"]);
        for text in ["{}", r#"{"instanceIds":[]}"#, r#"{"instanceIds":"a"}"#, r#"{"instanceIds":["a",1]}"#] {
            assert!(parse_fields(text).instance_ids().is_err(), "{text}");
        }
    }

    #[test]
    fn body_parse_error_does_not_echo_input() {
        for text in ["", "[]", "null", "{\"a\":", "ssh-ed25519 AAAA"] {
            let error = RequestFields::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("line ") && !error.contains("AAAA"), "{error}");
        }
    }
}
