//! Request bodies: a JSON object, whatever its content type says. Unknown fields are ignored.

use std::collections::HashSet;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use keypair_agent::policy::types::{Invalid, KeyName, PasswordAuth};
use serde_json::{Map, Value};

use super::error::ApiError;

/// The body of a request, as axum passes it to a handler.
pub type RawBody = Result<Bytes, BytesRejection>;

/// The fields of a request's body. A field that is `null` counts as absent.
#[derive(Debug)]
pub struct RequestFields(Map<String, Value>);

impl RequestFields {
    /// Parses a body.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the body is not a JSON object, or is too long.
    pub fn from_body(body: RawBody) -> Result<Self, ApiError> {
        let bytes = body.map_err(|_| body_too_long())?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        // The message of serde_json may quote the input, so the error gives only line and column.
        serde_json::from_slice(bytes).map(Self).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            invalid_argument(format!("the body is not a JSON object (line {line}, column {column})"))
        })
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// The value of a required string field.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the field is missing, or is not a string.
    pub fn required_str(&self, name: &str) -> Result<&str, ApiError> {
        match self.get(name) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(invalid_argument(format!("{name} is not a string"))),
            None => Err(invalid_argument(format!("{name} is missing"))),
        }
    }

    /// `keyName`, the name of a new key pair.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the field is missing, or is not a valid name.
    pub fn key_name(&self) -> Result<KeyName, ApiError> {
        let refused = |error: Invalid| invalid_argument(format!("keyName is refused: {error}"));
        self.required_str("keyName")?.parse().map_err(refused)
    }

    /// `instanceIds`, without duplicates, in the order of the request.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the field is not an array of at least one string.
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

    /// `passWordAuth`. Both spellings of the field and all values of real clients are accepted. If both are given,
    /// their meanings are compared.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the field is missing, has an unknown value, or if the two spellings differ.
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

/// The error for a body that is too long, or whose sender disconnected.
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
