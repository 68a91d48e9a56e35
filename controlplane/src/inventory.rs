//! The instances of the platform, from `--instance` and from the file of `--instances`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use keypair_agent::policy::types::{InstanceId, Invalid};
use serde::Deserialize;
use toml::Spanned;

use crate::keypair::Region;
use crate::toml_file::{TomlFile, TomlFileError};

/// The operating system of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OsType {
    /// Linux: key pairs can be bound.
    #[default]
    Linux,
    /// Windows: key pairs cannot be bound.
    Windows,
}

impl OsType {
    /// The value of `image/os-type` in the metadata tree.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Windows => "windows",
        }
    }
}

/// The state of an instance, as far as key pairs depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum Status {
    /// The agent of the instance answers.
    #[default]
    Running,
    /// The agent of the instance answers after the next boot.
    Stopped,
    /// Any other status of the platform: key pairs can be neither bound nor unbound.
    Other(String),
}

impl TryFrom<String> for Status {
    type Error = Invalid;
    fn try_from(word: String) -> Result<Self, Invalid> {
        match word.as_str() {
            "running" => Ok(Self::Running),
            "stopped" => Ok(Self::Stopped),
            "" => Err(Invalid("a status is a word: running, stopped or another of the platform's".into())),
            _ => Ok(Self::Other(word)),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Other(word) => word,
        })
    }
}

/// An instance of the platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The instance id.
    pub id: InstanceId,
    /// The region of the instance. API calls in other regions do not find it.
    pub region: Region,
    /// The operating system.
    pub os_type: OsType,
    /// The initial state. A later start, stop or reboot is kept in the store.
    pub status: Status,
    /// The host name.
    pub hostname: String,
    /// The source address of the instance's metadata calls.
    pub address: Option<IpAddr>,
}

impl Instance {
    /// A running Linux instance in cn-north-1. Its host name is its id.
    fn with_defaults(id: InstanceId) -> Self {
        Self {
            hostname: id.as_str().to_owned(),
            id,
            region: Region::default(),
            os_type: OsType::default(),
            status: Status::default(),
            address: None,
        }
    }
}

/// Why the given instances are invalid. The text names the place, the fault and the accepted values.
#[derive(Debug)]
pub enum InventoryError {
    /// A value of `--instance` is invalid.
    Flag(String),
    /// The file of `--instances` is invalid.
    File(TomlFileError),
}

impl fmt::Display for InventoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(message) => write!(f, "--instance: {message}"),
            Self::File(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for InventoryError {}

/// All instances, ordered by id.
#[derive(Debug, Default)]
pub struct Inventory {
    instances: BTreeMap<InstanceId, Instance>,
}

impl Inventory {
    /// Reads the instances from the flags and from the file.
    ///
    /// # Errors
    /// An id is invalid, is given twice, or cannot be a path segment. Two instances have the same address. The file
    /// cannot be read or parsed.
    pub fn load(ids: &[String], file: Option<&Path>) -> Result<Self, InventoryError> {
        let mut inventory = Self::default();
        for text in ids {
            let id = parse_path_safe_id(text)
                .map_err(|error| InventoryError::Flag(format!("'{text}': {error}")))?;
            inventory.add(Instance::with_defaults(id)).map_err(InventoryError::Flag)?;
        }
        if let Some(path) = file {
            let file = TomlFile::read("--instances", path).map_err(InventoryError::File)?;
            inventory.add_file(&file).map_err(InventoryError::File)?;
        }
        Ok(inventory)
    }

    fn add_file(&mut self, file: &TomlFile) -> Result<(), TomlFileError> {
        let form: InventoryFile = file.parse()?;
        for entry in form.instances {
            let start = entry.id.span().start;
            let id = parse_path_safe_id(entry.id.get_ref()).map_err(|error| {
                file.error_at_offset(start, format!("id '{}': {error}", entry.id.get_ref()))
            })?;
            let instance = Instance {
                hostname: entry.hostname.unwrap_or_else(|| id.as_str().to_owned()),
                id,
                region: entry.region,
                os_type: entry.os_type,
                status: entry.status,
                address: entry.address,
            };
            self.add(instance).map_err(|message| file.error_at_offset(start, message))?;
        }
        Ok(())
    }

    fn add(&mut self, instance: Instance) -> Result<(), String> {
        if self.instances.contains_key(&instance.id) {
            return Err(format!("instance '{}' is given twice; ids are unique", instance.id));
        }
        let namesake = |other: &&Instance| instance.address.is_some() && other.address == instance.address;
        if let Some(other) = self.instances.values().find(namesake) {
            return Err(format!(
                "instances '{}' and '{}' have the same address; a caller could not be told apart",
                other.id, instance.id
            ));
        }
        self.instances.insert(instance.id.clone(), instance);
        Ok(())
    }

    /// The instance with this id.
    pub fn get(&self, id: &str) -> Option<&Instance> {
        self.instances.get(&id.parse().ok()?)
    }

    /// The instance with the caller's address. If no address matches and there is only one instance, that one
    /// (KP-9.1).
    pub fn find_by_caller(&self, caller: IpAddr) -> Option<&Instance> {
        let caller = caller.to_canonical();
        let by_address = self.instances.values().find(|instance| instance.address == Some(caller));
        by_address.or_else(|| match self.instances.len() {
            1 => self.instances.values().next(),
            _ => None,
        })
    }

    /// All instances, ordered by id.
    pub fn iter(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }
}

/// Parses an instance id. It must be usable as a path segment, because the metadata service's paths contain it.
fn parse_path_safe_id(text: &str) -> Result<InstanceId, Invalid> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !text.bytes().all(allowed) || text == "." || text == ".." {
        return Err(Invalid(
            "an instance id is letters, digits, '-', '_' and '.' here, since it stands in a path".into(),
        ));
    }
    text.parse()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InventoryFile {
    #[serde(rename = "instance", default)]
    instances: Vec<InstanceForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InstanceForm {
    id: Spanned<String>,
    #[serde(default)]
    region: Region,
    #[serde(default)]
    os_type: OsType,
    #[serde(default)]
    status: Status,
    hostname: Option<String>,
    address: Option<IpAddr>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn inventory_from_toml(text: &str) -> Result<Inventory, String> {
        let mut inventory = Inventory::default();
        inventory
            .add_file(&TomlFile::new(Path::new("fleet.toml"), text))
            .map_err(|error| error.to_string())?;
        Ok(inventory)
    }

    #[test]
    fn instance_flag_defaults_to_running_linux_in_cn_north_1() {
        let inventory = Inventory::load(&["i-1".into()], None).unwrap();
        let instance = inventory.get("i-1").unwrap();
        assert_eq!(instance.region.to_string(), "cn-north-1");
        assert_eq!((instance.os_type, &instance.status), (OsType::Linux, &Status::Running));
        assert_eq!(instance.hostname, "i-1");
    }

    #[test]
    fn instances_file_sets_every_field() {
        let inventory = inventory_from_toml(
            "[[instance]]\nid = 'i-1'\nregion = 'cn-east-2'\nos_type = 'windows'\nstatus = 'error'\n\
             hostname = 'web'\naddress = '10.0.0.3'\n[[instance]]\nid = 'i-2'\n",
        )
        .unwrap();
        let first = inventory.get("i-1").unwrap();
        assert_eq!(first.region.to_string(), "cn-east-2");
        assert_eq!((first.os_type, first.status.to_string()), (OsType::Windows, "error".to_owned()));
        assert_eq!(first.hostname, "web");
        assert_eq!(inventory.get("i-2").unwrap().status, Status::Running);
    }

    #[test]
    fn instances_file_error_names_file_and_line() {
        let cases = [
            ("[[instance]]\nid = 'i-1'\nregio = 'x'\n", "fleet.toml:3: ", "regio"),
            ("[[instance]]\nid = 'i-1'\nos_type = 'bsd'\n", "fleet.toml:3: ", "bsd"),
            ("[[instance]]\nid = 'i-1'\nstatus = ''\n", "fleet.toml:3: ", "status"),
            ("[[instance]]\nid = 'i-1'\naddress = 'here'\n", "fleet.toml:3: ", "IP"),
            ("[[instance]]\nid = 'i-1'\nregion = 'A B'\n", "fleet.toml:3: ", "region"),
            ("\n[[instance]]\nstatus = 'running'\n", "fleet.toml:2: ", "id"),
            ("[[instance]]\nid = 'a/b'\n", "fleet.toml:2: ", "a/b"),
            ("[[instance]]\nid = 'i-1'\n\n[[instance]]\nid = 'i-1'\n", "fleet.toml:5: ", "twice"),
            (
                "[[instance]]\nid = 'a'\naddress = '::1'\n[[instance]]\nid = 'b'\naddress = '::1'\n",
                "fleet.toml:5: ",
                "same address",
            ),
            ("nonsense", "fleet.toml:1: ", ""),
        ];
        for (text, place, what) in cases {
            let error = inventory_from_toml(text).unwrap_err();
            assert!(error.starts_with(place) && error.contains(what), "{text:?}: {error}");
        }
    }

    #[test]
    fn instance_flag_invalid_or_duplicate_is_refused() {
        for bad in [vec!["".to_owned()], vec!["..".into()], vec!["i-1".into(), "i-1".into()]] {
            assert!(matches!(Inventory::load(&bad, None), Err(InventoryError::Flag(_))), "{bad:?}");
        }
    }

    #[test]
    fn caller_is_found_by_address_or_as_only_instance() {
        let caller: IpAddr = "10.0.0.3".parse().unwrap();
        let two =
            inventory_from_toml("[[instance]]\nid = 'a'\naddress = '10.0.0.3'\n[[instance]]\nid = 'b'\n")
                .unwrap();
        assert_eq!(two.find_by_caller(caller).unwrap().id.as_str(), "a");
        assert_eq!(two.find_by_caller("::ffff:10.0.0.3".parse().unwrap()).unwrap().id.as_str(), "a");
        assert!(two.find_by_caller("10.0.0.4".parse().unwrap()).is_none());
        let one = Inventory::load(&["i-1".into()], None).unwrap();
        assert_eq!(one.find_by_caller(caller).unwrap().id.as_str(), "i-1");
    }
}
