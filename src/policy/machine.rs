//! Distinguishes this machine from a copy of its disk: the UUID that the manufacturer or the hypervisor assigned
//! (KP-3.43).

use serde::{Deserialize, Serialize};

/// A machine's UUID and its origin. UUIDs of different origins are never compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineId(String);

/// UUIDs that manufacturers of mainboards did not change. Many machines have them.
const PLACEHOLDER_UUIDS: [&str; 1] = ["03000200040005000006000700080009"];

impl MachineId {
    /// Identifies the machine by its DMI product UUID, or by machine-id(5) if there is none. The arguments are the
    /// contents of the two files.
    pub fn from_uuids(product_uuid: Option<&[u8]>, machine_id: Option<&[u8]>) -> Option<Self> {
        let dmi = product_uuid.and_then(parse_unique_uuid).map(|uuid| format!("dmi:{uuid}"));
        dmi.or_else(|| machine_id.and_then(parse_unique_uuid).map(|id| format!("machine-id:{id}"))).map(Self)
    }

    /// Whether both ids have the same origin, so that a comparison is meaningful.
    pub fn is_comparable(&self, other: &Self) -> bool {
        self.0.split(':').next() == other.0.split(':').next()
    }
}

/// 32 hexadecimal digits, with or without dashes, that only one machine has.
fn parse_unique_uuid(content: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(content).ok()?.trim();
    let digits: String = text.chars().filter(|c| *c != '-').collect::<String>().to_ascii_lowercase();
    let is_uuid = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let first = digits.chars().next()?;
    let is_placeholder = digits.chars().all(|c| c == first) || PLACEHOLDER_UUIDS.contains(&digits.as_str());
    (is_uuid && !is_placeholder).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &[u8] = b"0123456789abcdef0123456789abcdef\n";

    #[test]
    fn product_uuid_is_preferred_to_machine_id() {
        let uuid = b"4C4C4544-0042-3510-8058-B4C04F4E4D32\n";
        let machine = MachineId::from_uuids(Some(uuid), Some(ID));
        assert_eq!(machine, MachineId::from_uuids(Some(b"4c4c4544-0042-3510-8058-b4c04f4e4d32"), None));
        assert_ne!(machine, MachineId::from_uuids(None, Some(ID)));
        assert_ne!(MachineId::from_uuids(Some(ID), None), MachineId::from_uuids(None, Some(ID)));
    }

    #[test]
    fn placeholder_uuid_is_ignored() {
        for uuid in [
            &b""[..],
            b"\n",
            b"uninitialized\n",
            b"Not Settable",
            b"00000000-0000-0000-0000-000000000000\n",
            b"FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF\n",
            b"03000200-0400-0500-0006-000700080009\n",
            b"\xff\xfe",
        ] {
            assert_eq!(MachineId::from_uuids(Some(uuid), Some(ID)), MachineId::from_uuids(None, Some(ID)));
            assert_eq!(MachineId::from_uuids(Some(uuid), Some(uuid)), None);
        }
    }
}
