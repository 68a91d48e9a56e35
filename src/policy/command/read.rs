//! Parses bytes into a command. It reports every fault of the fields (KP-3.20 to KP-3.25), in the order of KP-3.26.

use std::collections::BTreeMap;
use std::fmt;

use base64ct::{Base64, Encoding};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Action, ActionName, Command, KeyPair, Origin, ReceivedCommand, Unanswerable};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::public_key::PublicKey;
use crate::policy::signature::Envelope;
use crate::policy::types::{CommandId, KeyName, PasswordAuth, Sequence};

/// Parses the bytes of a command. If they are an envelope, its payload is the command. This function does not check
/// the signature (KP-3.42).
///
/// The console may leave out the `commandId`, and its command then gets `fallback_id`. If the console's bytes are no
/// command at all, the refusal also has that id, because a person waits for an answer.
///
/// # Errors
/// [`Unanswerable`] if the channel's bytes are not a JSON object with a usable `commandId`.
pub fn parse_command(
    bytes: &[u8],
    origin: Origin,
    fallback_id: &CommandId,
) -> Result<ReceivedCommand, Unanswerable> {
    let read = CommandFields::from_command_bytes(bytes)
        .and_then(|(fields, envelope)| Ok((fields.command_id()?, fields, envelope)));
    let (id, fields, envelope) = match (read, origin) {
        (Ok((Some(id), fields, envelope)), _) => (id, fields, envelope),
        (Ok((None, fields, envelope)), Origin::Console) => (fallback_id.clone(), fields, envelope),
        (Ok((None, ..)), Origin::Channel) => return Err(Unanswerable("the command has no commandId".into())),
        (Err(why), Origin::Channel) => return Err(why),
        (Err(Unanswerable(why)), Origin::Console) => {
            return Ok(ReceivedCommand {
                id: fallback_id.clone(),
                action: None,
                instance_id: None,
                key_name: None,
                password_auth: None,
                envelope: None,
                command: Err(malformed_command(why)),
            });
        }
    };
    let refusal = match fields.to_command(&id, origin) {
        Ok(command) => return Ok(ReceivedCommand { envelope, ..command.into() }),
        Err(refusal) => refusal,
    };
    let action = fields.action();
    let named = fields.get_string("keyName").ok().flatten().and_then(|name| name.parse().ok());
    Ok(ReceivedCommand {
        id,
        action,
        instance_id: fields.get_string("instanceId").ok().flatten().map(str::to_owned),
        key_name: named.filter(|_| action != Some(ActionName::SetPasswordAuth)),
        password_auth: fields.password_auth().ok().filter(|_| action != Some(ActionName::Detach)),
        envelope,
        command: Err(refusal),
    })
}

/// The fields of a JSON object. If two fields have the same name, the first one is kept and the name is recorded.
struct CommandFields {
    map: BTreeMap<String, Value>,
    duplicate_field: Option<String>,
    has_conflicting_ids: bool,
    has_non_string_signature: bool,
}

impl<'de> Deserialize<'de> for CommandFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = CommandFields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<CommandFields, A::Error> {
                let mut fields = CommandFields {
                    map: BTreeMap::new(),
                    duplicate_field: None,
                    has_conflicting_ids: false,
                    has_non_string_signature: false,
                };
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    match fields.map.get(&name) {
                        None => drop(fields.map.insert(name, value)),
                        Some(first) => {
                            fields.has_conflicting_ids |= name == "commandId" && *first != value;
                            fields.duplicate_field.get_or_insert(name);
                        }
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

impl CommandFields {
    /// Reads the fields of a command, either bare or from an envelope's payload.
    fn from_command_bytes(bytes: &[u8]) -> Result<(Self, Option<Envelope>), Unanswerable> {
        let outer = Self::from_json(bytes)?;
        let (payload, signature) = match (outer.get("payload"), outer.get("signature")) {
            (Some(Value::String(payload)), Some(signature)) if !outer.has_field("commandId") => {
                (payload, signature)
            }
            _ => return Ok((outer, None)),
        };
        let payload = Base64::decode_vec(payload.trim_end())
            .map_err(|_| Unanswerable("the envelope's payload is not base64".into()))?;
        let mut fields = Self::from_json(&payload)?;
        // A duplicate field of the envelope is a fault of the command.
        fields.duplicate_field = outer.duplicate_field.clone().or(fields.duplicate_field);
        match signature {
            Value::String(signature) => {
                let signature = signature.clone();
                Ok((fields, Some(Envelope { payload, signature })))
            }
            _ => Ok((Self { has_non_string_signature: true, ..fields }, None)),
        }
    }

    /// Returns the `commandId`, or `None` if there is none.
    fn command_id(&self) -> Result<Option<CommandId>, Unanswerable> {
        match self.get("commandId") {
            Some(_) if self.has_conflicting_ids => {
                Err(Unanswerable("the command has two different commandIds".into()))
            }
            None => Ok(None),
            Some(Value::String(text)) => text
                .parse()
                .map(Some)
                .map_err(|error| Unanswerable(format!("the commandId is not usable: {error}"))),
            Some(_) => Err(Unanswerable("the commandId is not a string".into())),
        }
    }

    fn from_json(bytes: &[u8]) -> Result<Self, Unanswerable> {
        serde_json::from_slice(bytes).map_err(|error| {
            // serde_json's own message may quote the input, but its line and column do not.
            Unanswerable(format!(
                "the command is not a JSON object (line {}, column {})",
                error.line(),
                error.column()
            ))
        })
    }

    /// Returns the value of a field. `null` counts as absent.
    fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn has_field(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn get_string(&self, name: &str) -> Result<Option<&str>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(malformed_command(format!("{name} is not a string"))),
        }
    }

    fn action(&self) -> Option<ActionName> {
        match self.get_string("action") {
            Ok(Some("attach")) => Some(ActionName::Attach),
            Ok(Some("detach")) => Some(ActionName::Detach),
            Ok(Some("setPasswordAuth")) => Some(ActionName::SetPasswordAuth),
            _ => None,
        }
    }

    /// Reads the field under both spellings of its name. If both are present, they must have the same meaning.
    fn password_auth(&self) -> Result<PasswordAuth, Refusal> {
        let invalid = |why: &str| Refusal::new(Reason::InvalidPasswordAuth, format!("passWordAuth {why}"));
        let mut found = None;
        for name in ["passWordAuth", "passwordAuth"] {
            let value = match self.get(name) {
                None => continue,
                Some(Value::Bool(true)) => PasswordAuth::Yes,
                Some(Value::Bool(false)) => PasswordAuth::No,
                Some(Value::String(text)) => {
                    text.parse().map_err(|_| invalid("is neither 'yes' nor 'no'"))?
                }
                Some(_) => {
                    return Err(malformed_command(format!("{name} is neither a string nor a boolean")));
                }
            };
            if found.is_some_and(|first| first != value) {
                return Err(invalid("is given in both spellings, and they differ"));
            }
            found = Some(value);
        }
        found.ok_or_else(|| invalid("is missing: 'yes' or 'no' is required"))
    }

    fn key_name(&self) -> Result<KeyName, Refusal> {
        let invalid =
            |why: String| Refusal::new(Reason::InvalidKeyName, format!("keyName is refused: {why}"));
        match self.get_string("keyName")? {
            None => Err(invalid("it is missing".into())),
            Some(text) => text.parse().map_err(|error| invalid(format!("{error}"))),
        }
    }

    fn public_key(&self) -> Result<PublicKey, Refusal> {
        match self.get_string("publicKey")? {
            None => Err(Refusal::new(Reason::InvalidPublicKey, "publicKey is missing")),
            Some(text) => PublicKey::parse(text).and_then(|key| {
                // A control character would move the cursor of a terminal that shows the file.
                if key.line().contains(|c: char| c.is_control() && c != '\t') {
                    let why = "publicKey is refused: its comment holds a control character";
                    return Err(Refusal::new(Reason::InvalidPublicKey, why));
                }
                Ok(key)
            }),
        }
    }

    fn sequence(&self, origin: Origin) -> Result<Option<Sequence>, Refusal> {
        match (self.get("sequence"), origin) {
            (None, Origin::Console) => Ok(None),
            (None, Origin::Channel) => Err(malformed_command("sequence is missing")),
            (Some(value), _) => value
                .as_u64()
                .and_then(|number| Sequence::try_from(number).ok())
                .map(Some)
                .ok_or_else(|| malformed_command("sequence is not an integer from 1 to 2^53-1")),
        }
    }

    fn to_command(&self, id: &CommandId, origin: Origin) -> Result<Command, Refusal> {
        if let Some(name) = &self.duplicate_field {
            return Err(malformed_command(match name.as_str() {
                known @ ("commandId" | "sequence" | "action" | "instanceId" | "keyName" | "publicKey"
                | "passWordAuth" | "passwordAuth" | "replace" | "expiresAt") => {
                    format!("{known} is given twice")
                }
                _ => "a field is given twice".to_owned(),
            }));
        }
        if self.has_non_string_signature {
            return Err(malformed_command("the envelope's signature is not a string"));
        }
        let sequence = self.sequence(origin)?;
        let instance_id = self.get_string("instanceId")?.map(str::to_owned);
        if instance_id.is_none() && origin == Origin::Channel {
            return Err(malformed_command("instanceId is missing"));
        }
        let expires_at = match self.get_string("expiresAt")? {
            None => None,
            Some(text) => Some(
                OffsetDateTime::parse(text, &Rfc3339)
                    .map_err(|_| malformed_command("expiresAt is not an RFC 3339 time"))?,
            ),
        };
        let name = match self.get_string("action")? {
            None => return Err(malformed_command("action is missing")),
            Some(_) => self.action().ok_or_else(|| {
                malformed_command("action is none of 'attach', 'detach' and 'setPasswordAuth'")
            })?,
        };
        let action = match name {
            ActionName::Attach => {
                let replace = match self.get("replace") {
                    None => false,
                    Some(Value::Bool(replace)) => *replace,
                    Some(_) => return Err(malformed_command("replace is not a boolean")),
                };
                // Every malformed field is reported before a fault that has its own reason.
                let faults = [self.key_name().err(), self.public_key().err(), self.password_auth().err()];
                let faults = faults.iter().flatten();
                if let Some(fault) = faults.clone().find(|fault| fault.reason == Reason::MalformedCommand) {
                    return Err(fault.clone());
                }
                Action::Attach {
                    key_pair: KeyPair { key_name: self.key_name()?, public_key: self.public_key()? },
                    password_auth: self.password_auth()?,
                    replace,
                }
            }
            ActionName::Detach => Action::Detach { key_name: Some(self.key_name()?) },
            ActionName::SetPasswordAuth => Action::SetPasswordAuth { password_auth: self.password_auth()? },
        };
        Ok(Command { id: id.clone(), sequence, instance_id, action, expires_at })
    }
}

fn malformed_command(why: impl Into<String>) -> Refusal {
    Refusal::new(Reason::MalformedCommand, format!("the command is malformed: {}", why.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use Reason::{InvalidKeyName, InvalidPasswordAuth, InvalidPublicKey, MalformedCommand};

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF86eSkqX3I2gC8oUEbWaJ54JKEt/jagDdVjCuOifDfx";

    fn fallback_id() -> CommandId {
        "made".parse().unwrap()
    }

    fn parse_from_channel(text: &str) -> ReceivedCommand {
        parse_command(text.as_bytes(), Origin::Channel, &fallback_id()).unwrap()
    }

    fn attach_json(rest: &str) -> String {
        format!(r#"{{"commandId":"c","sequence":1,"instanceId":"i","action":"attach"{rest}}}"#)
    }

    fn complete_attach_json(password_auth: &str) -> String {
        attach_json(&format!(r#","keyName":"k","publicKey":"{KEY}","passWordAuth":{password_auth}"#))
    }

    #[test]
    fn command_serialized_and_parsed_is_unchanged() {
        for text in [
            complete_attach_json("\"no\""),
            r#"{"commandId":"c","sequence":9007199254740991,"instanceId":"i","action":"detach","keyName":"k"}"#.into(),
            r#"{"commandId":"c","sequence":1,"instanceId":"i","action":"setPasswordAuth","passWordAuth":"YES",
                "expiresAt":"2026-12-01T00:00:00Z","keyName":5,"replace":"x"}"#
                .into(),
        ] {
            let command = parse_from_channel(&text).command.unwrap();
            assert_eq!(parse_from_channel(&serde_json::to_string(&command).unwrap()).command.unwrap(), command);
        }
    }

    /// KP-3.20, KP-3.25, KP-3.26.
    #[test]
    fn refusal_reasons_follow_documented_order() {
        let key = format!(r#","publicKey":"{KEY}""#);
        for (text, reason) in [
            (attach_json(""), InvalidKeyName),
            (attach_json(r#","keyName":"a b""#), InvalidKeyName),
            (attach_json(r#","keyName":"k""#), InvalidPublicKey),
            (
                attach_json(&format!(
                    r#","keyName":"k","publicKey":"{KEY} \u001b]0;x\u0007","passWordAuth":"no""#
                )),
                InvalidPublicKey,
            ),
            (attach_json(&format!(r#","keyName":"k"{key}"#)), InvalidPasswordAuth),
            (attach_json(&format!(r#","keyName":"k"{key},"passWordAuth":"maybe""#)), InvalidPasswordAuth),
            (attach_json(&format!(r#","keyName":"k"{key},"passWordAuth":1"#)), MalformedCommand),
            (attach_json(r#","keyName":"","passWordAuth":[]"#), MalformedCommand),
            (
                attach_json(&format!(r#","keyName":"k"{key},"passWordAuth":"yes","replace":"true""#)),
                MalformedCommand,
            ),
            (attach_json(r#","keyName":"k","keyName":"k""#), MalformedCommand),
            (attach_json(r#","expiresAt":"tomorrow""#), MalformedCommand),
            (r#"{"commandId":"c","instanceId":"i","action":"attach"}"#.into(), MalformedCommand),
            (r#"{"commandId":"c","sequence":1,"action":"attach"}"#.into(), MalformedCommand),
            (r#"{"commandId":"c","sequence":1,"instanceId":"i"}"#.into(), MalformedCommand),
            (r#"{"commandId":"c","sequence":1,"instanceId":"i","action":"reboot"}"#.into(), MalformedCommand),
            (
                r#"{"commandId":"c","sequence":1.5,"instanceId":"i","action":"detach","keyName":"k"}"#.into(),
                MalformedCommand,
            ),
        ] {
            assert_eq!(parse_from_channel(&text).command.unwrap_err().reason, reason, "{text}");
        }
    }

    /// KP-3.23.
    #[test]
    fn password_auth_spellings_are_compared_by_meaning() {
        let both = |one: &str, other: &str| {
            parse_from_channel(&complete_attach_json(&format!(r#"{one},"passwordAuth":{other}"#)))
                .command
                .map_err(|refusal| refusal.reason)
        };
        assert!(both("\"yes\"", "true").is_ok());
        assert!(both("false", "\"No\"").is_ok());
        assert_eq!(both("\"yes\"", "\"no\"").unwrap_err(), InvalidPasswordAuth);
        assert_eq!(both("\"yes\"", "\"on\"").unwrap_err(), InvalidPasswordAuth);
    }

    /// KP-3.7, KP-3.21.
    #[test]
    fn bytes_without_command_id_are_unanswerable() {
        for text in [
            "",
            "[]",
            "null",
            "7",
            "{",
            r#"{"sequence":1}"#,
            r#"{"commandId":7}"#,
            r#"{"commandId":".."}"#,
            r#"{"commandId":"a","commandId":"b"}"#,
        ] {
            assert!(parse_command(text.as_bytes(), Origin::Channel, &fallback_id()).is_err(), "{text}");
            let at_the_console = parse_command(text.as_bytes(), Origin::Console, &fallback_id()).unwrap();
            assert_eq!(
                (at_the_console.id, at_the_console.command.unwrap_err().reason),
                (fallback_id(), MalformedCommand)
            );
        }
    }

    /// KP-3.20.
    #[test]
    fn field_of_other_action_is_ignored() {
        let text = r#"{"commandId":"c","sequence":1,"instanceId":"i","action":"detach","keyName":"k","passWordAuth":7}"#;
        let received = parse_from_channel(text);
        assert_eq!(received.password_auth, None);
        assert!(received.command.is_ok());
    }

    /// KP-3.42.
    #[test]
    fn envelope_is_parsed_as_its_payload() {
        let payload = Base64::encode_string(complete_attach_json("true").as_bytes());
        let text = format!(r#"{{"payload":"{payload}","signature":"-----BEGIN SSH SIGNATURE-----"}}"#);
        let opened = parse_from_channel(&text);
        assert_eq!(opened.command, parse_from_channel(&complete_attach_json("true")).command);
        assert_eq!(opened.envelope.unwrap().payload, complete_attach_json("true").into_bytes());
    }

    #[test]
    fn envelope_fault_makes_command_malformed() {
        let payload = Base64::encode_string(complete_attach_json("true").as_bytes());
        for text in [
            format!(r#"{{"payload":"{payload}","signature":7}}"#),
            format!(r#"{{"payload":"{payload}","payload":"{payload}","signature":"s"}}"#),
            format!(r#"{{"payload":"{payload}","signature":"s","signature":"t"}}"#),
        ] {
            assert_eq!(parse_from_channel(&text).command.unwrap_err().reason, MalformedCommand, "{text}");
        }
    }

    #[test]
    fn payload_beside_command_id_is_bare_command() {
        let inner = Base64::encode_string(complete_attach_json("true").as_bytes());
        let bare = complete_attach_json("false").replacen(
            '{',
            &format!(r#"{{"payload":"{inner}","signature":"s","#),
            1,
        );
        let bare = parse_from_channel(&bare);
        assert_eq!((bare.envelope, bare.password_auth), (None, Some(PasswordAuth::No)));
    }
}
