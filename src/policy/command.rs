//! A command as the channel or the console hands it over (contract 3, "Command").

use std::collections::BTreeMap;
use std::fmt;

use base64ct::{Base64, Encoding};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::outcome::{Reason, Refusal};
use super::public_key::PublicKey;
use super::types::{CommandId, KeyName, PasswordAuth, Sequence};

/// Where a command came from; the console may leave out what the channel must say (contract 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The metadata channel: `sequence` and `instanceId` are required, the result is delivered.
    Channel,
    /// `apply`, `plan` and the words at the console.
    Console,
}

/// The three actions, as the wire names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ActionName {
    /// Bind a key pair.
    Attach,
    /// Unbind it.
    Detach,
    /// Turn password login on or off.
    SetPasswordAuth,
}

/// A key pair: the name and the key. Two are the same when both are (contract 4).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyPair {
    /// Its name on the platform.
    pub key_name: KeyName,
    /// Its public half.
    pub public_key: PublicKey,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Bind `key_pair`, then set password login.
    Attach {
        /// What to bind.
        key_pair: KeyPair,
        /// Whether password login is allowed afterwards.
        password_auth: PasswordAuth,
        /// Whether a bound key pair is replaced in the same step.
        replace: bool,
    },
    /// Unbind the key pair of this name.
    Detach {
        /// Its name; `None`, whichever is bound, is said at the console alone.
        key_name: Option<KeyName>,
    },
    /// Set password login alone.
    SetPasswordAuth {
        /// Whether it is allowed afterwards.
        password_auth: PasswordAuth,
    },
}

impl Action {
    /// Its name on the wire.
    pub fn name(&self) -> ActionName {
        match self {
            Self::Attach { .. } => ActionName::Attach,
            Self::Detach { .. } => ActionName::Detach,
            Self::SetPasswordAuth { .. } => ActionName::SetPasswordAuth,
        }
    }

    /// The command's own key name.
    pub fn key_name(&self) -> Option<&KeyName> {
        match self {
            Self::Attach { key_pair, .. } => Some(&key_pair.key_name),
            Self::Detach { key_name } => key_name.as_ref(),
            Self::SetPasswordAuth { .. } => None,
        }
    }

    /// The command's own key.
    pub fn public_key(&self) -> Option<&PublicKey> {
        match self {
            Self::Attach { key_pair, .. } => Some(&key_pair.public_key),
            Self::Detach { .. } | Self::SetPasswordAuth { .. } => None,
        }
    }

    /// The command's own setting.
    pub fn password_auth(&self) -> Option<PasswordAuth> {
        match self {
            Self::Attach { password_auth, .. } | Self::SetPasswordAuth { password_auth } => {
                Some(*password_auth)
            }
            Self::Detach { .. } => None,
        }
    }
}

/// A valid command. It serializes to the wire's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What identifies it.
    pub id: CommandId,
    /// Its place in the order; only the console may leave it out.
    pub sequence: Option<Sequence>,
    /// Whom it is for; only the console may leave it out. Compared, never trusted.
    pub instance_id: Option<String>,
    /// What is to be done.
    pub action: Action,
    /// When it is no longer to be obeyed.
    pub expires_at: Option<OffsetDateTime>,
}

impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("commandId", &self.id)?;
        if let Some(sequence) = self.sequence {
            map.serialize_entry("sequence", &sequence)?;
        }
        map.serialize_entry("action", &self.action.name())?;
        if let Some(instance_id) = &self.instance_id {
            map.serialize_entry("instanceId", instance_id)?;
        }
        if let Some(key_name) = self.action.key_name() {
            map.serialize_entry("keyName", key_name)?;
        }
        if let Some(public_key) = self.action.public_key() {
            map.serialize_entry("publicKey", public_key)?;
        }
        if let Some(password_auth) = self.action.password_auth() {
            map.serialize_entry("passWordAuth", &password_auth)?;
        }
        if let Action::Attach { replace, .. } = &self.action {
            map.serialize_entry("replace", replace)?;
        }
        if let Some(expires_at) = self.expires_at {
            map.serialize_entry(
                "expiresAt",
                &expires_at.format(&Rfc3339).map_err(serde::ser::Error::custom)?,
            )?;
        }
        map.end()
    }
}

/// A command that cannot be answered, since it has no usable `commandId`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswerable(pub String);

impl fmt::Display for Unanswerable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unanswerable {}

/// What could be told of a command, valid or not: enough to answer it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// What identifies it.
    pub id: CommandId,
    /// Its action, where it names one.
    pub action: Option<ActionName>,
    /// The instance it names.
    pub instance_id: Option<String>,
    /// Its key name, where that is valid.
    pub key_name: Option<KeyName>,
    /// Its setting, where that is valid.
    pub password_auth: Option<PasswordAuth>,
    /// The command itself, or why it is none.
    pub command: Result<Command, Refusal>,
}

impl From<Command> for Received {
    fn from(command: Command) -> Self {
        Self {
            id: command.id.clone(),
            action: Some(command.action.name()),
            instance_id: command.instance_id.clone(),
            key_name: command.action.key_name().cloned(),
            password_auth: command.action.password_auth(),
            command: Ok(command),
        }
    }
}

/// Reads a command's bytes. Without a `commandId`, the console's gets `fallback_id`; the channel's is
/// unanswerable. An envelope's payload is read as the command (contract 3, "Signed commands").
///
/// # Errors
/// [`Unanswerable`] where the bytes are not a JSON object with a usable `commandId`.
pub fn parse(bytes: &[u8], origin: Origin, fallback_id: &CommandId) -> Result<Received, Unanswerable> {
    let mut fields = Fields::from_json(bytes)?;
    if !fields.has("commandId")
        && let Some(Value::String(payload)) = fields.get("payload")
        && fields.has("signature")
    {
        let payload = Base64::decode_vec(payload.trim_end())
            .map_err(|_| Unanswerable("the envelope's payload is not base64".into()))?;
        fields = Fields::from_json(&payload)?;
    }
    let id = match (fields.get("commandId"), origin) {
        (Some(_), _) if fields.contradictory_id => {
            return Err(Unanswerable("the command has two different commandIds".into()));
        }
        (Some(Value::String(text)), _) => {
            text.parse().map_err(|error| Unanswerable(format!("the commandId is not usable: {error}")))?
        }
        (Some(_), _) => return Err(Unanswerable("the commandId is not a string".into())),
        (None, Origin::Console) => fallback_id.clone(),
        (None, Origin::Channel) => return Err(Unanswerable("the command has no commandId".into())),
    };
    let valid = |text: &str| text.parse().ok();
    Ok(Received {
        action: fields.action(),
        instance_id: fields.string("instanceId").ok().flatten().map(str::to_owned),
        key_name: fields.string("keyName").ok().flatten().and_then(valid),
        password_auth: fields.password_auth().ok(),
        command: fields.command(&id, origin),
        id,
    })
}

/// The fields of a JSON object; the first of two of the same name, and that there were two.
struct Fields {
    map: BTreeMap<String, Value>,
    repeated: Option<String>,
    contradictory_id: bool,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Fields, A::Error> {
                let mut fields = Fields { map: BTreeMap::new(), repeated: None, contradictory_id: false };
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    match fields.map.get(&name) {
                        None => drop(fields.map.insert(name, value)),
                        Some(first) => {
                            fields.contradictory_id |= name == "commandId" && *first != value;
                            fields.repeated.get_or_insert(name);
                        }
                    }
                }
                Ok(fields)
            }
            fn visit_unit<E: de::Error>(self) -> Result<Fields, E> {
                Err(E::invalid_type(de::Unexpected::Unit, &self))
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

impl Fields {
    fn from_json(bytes: &[u8]) -> Result<Self, Unanswerable> {
        serde_json::from_slice(bytes).map_err(|error| {
            // serde_json's own message may quote the input; its place does not.
            Unanswerable(format!(
                "the command is not a JSON object (line {}, column {})",
                error.line(),
                error.column()
            ))
        })
    }

    /// The value of a field; `null` counts as absent.
    fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn string(&self, name: &str) -> Result<Option<&str>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(malformed(format!("{name} is not a string"))),
        }
    }

    fn action(&self) -> Option<ActionName> {
        match self.string("action") {
            Ok(Some("attach")) => Some(ActionName::Attach),
            Ok(Some("detach")) => Some(ActionName::Detach),
            Ok(Some("setPasswordAuth")) => Some(ActionName::SetPasswordAuth),
            _ => None,
        }
    }

    /// Both spellings, compared by meaning.
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
                Some(_) => return Err(malformed(format!("{name} is neither a string nor a boolean"))),
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
        match self.string("keyName")? {
            None => Err(invalid("it is missing".into())),
            Some(text) => text.parse().map_err(|error| invalid(format!("{error}"))),
        }
    }

    fn public_key(&self) -> Result<PublicKey, Refusal> {
        match self.string("publicKey")? {
            None => Err(Refusal::new(Reason::InvalidPublicKey, "publicKey is missing")),
            Some(text) => PublicKey::parse(text),
        }
    }

    fn sequence(&self, origin: Origin) -> Result<Option<Sequence>, Refusal> {
        match (self.get("sequence"), origin) {
            (None, Origin::Console) => Ok(None),
            (None, Origin::Channel) => Err(malformed("sequence is missing")),
            (Some(value), _) => value
                .as_u64()
                .and_then(|number| Sequence::try_from(number).ok())
                .map(Some)
                .ok_or_else(|| malformed("sequence is not an integer from 1 to 2^53-1")),
        }
    }

    fn command(&self, id: &CommandId, origin: Origin) -> Result<Command, Refusal> {
        if let Some(name) = &self.repeated {
            return Err(malformed(match name.as_str() {
                known @ ("commandId" | "sequence" | "action" | "instanceId" | "keyName" | "publicKey"
                | "passWordAuth" | "passwordAuth" | "replace" | "expiresAt") => {
                    format!("{known} is given twice")
                }
                _ => "a field is given twice".to_owned(),
            }));
        }
        let sequence = self.sequence(origin)?;
        let instance_id = self.string("instanceId")?.map(str::to_owned);
        if instance_id.is_none() && origin == Origin::Channel {
            return Err(malformed("instanceId is missing"));
        }
        let expires_at = match self.string("expiresAt")? {
            None => None,
            Some(text) => Some(
                OffsetDateTime::parse(text, &Rfc3339)
                    .map_err(|_| malformed("expiresAt is not an RFC 3339 time"))?,
            ),
        };
        let name = match self.string("action")? {
            None => return Err(malformed("action is missing")),
            Some(_) => self
                .action()
                .ok_or_else(|| malformed("action is none of 'attach', 'detach' and 'setPasswordAuth'"))?,
        };
        let action = match name {
            ActionName::Attach => {
                let replace = match self.get("replace") {
                    None => false,
                    Some(Value::Bool(replace)) => *replace,
                    Some(_) => return Err(malformed("replace is not a boolean")),
                };
                // All that is malformed comes before the reasons a field has of its own.
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

fn malformed(why: impl Into<String>) -> Refusal {
    Refusal::new(Reason::MalformedCommand, format!("the command is malformed: {}", why.into()))
}
