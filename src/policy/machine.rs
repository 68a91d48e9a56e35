//! What tells this machine from a copy of its disk: the UUID that its maker, or its hypervisor, gave it (KP-3.43).

use serde::{Deserialize, Serialize};

/// A machine's UUID and where it is from, so that one is never compared with the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Machine(String);

/// UUIDs that makers of mainboards left as they were: many machines have them.
const PLACEHOLDERS: [&str; 1] = ["03000200040005000006000700080009"];

impl Machine {
    /// The machine by its DMI product UUID, or by machine-id(5) where there is none; by the contents of their files.
    pub fn of(product_uuid: Option<&[u8]>, machine_id: Option<&[u8]>) -> Option<Self> {
        let dmi = product_uuid.and_then(uuid).map(|uuid| format!("dmi:{uuid}"));
        dmi.or_else(|| machine_id.and_then(uuid).map(|id| format!("machine-id:{id}"))).map(Self)
    }

    /// Whether it is known by the same kind of UUID, so that one says something of the other.
    pub fn is_comparable(&self, other: &Self) -> bool {
        self.0.split(':').next() == other.0.split(':').next()
    }
}

/// 32 hexadecimal digits, with or without dashes, that are one machine's alone.
fn uuid(content: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(content).ok()?.trim();
    let digits: String = text.chars().filter(|c| *c != '-').collect::<String>().to_ascii_lowercase();
    let is_uuid = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let first = digits.chars().next()?;
    let is_placeholder = digits.chars().all(|c| c == first) || PLACEHOLDERS.contains(&digits.as_str());
    (is_uuid && !is_placeholder).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &[u8] = b"0123456789abcdef0123456789abcdef\n";

    #[test]
    fn the_product_uuid_comes_first() {
        let uuid = b"4C4C4544-0042-3510-8058-B4C04F4E4D32\n";
        let machine = Machine::of(Some(uuid), Some(ID));
        assert_eq!(machine, Machine::of(Some(b"4c4c4544-0042-3510-8058-b4c04f4e4d32"), None));
        assert_ne!(machine, Machine::of(None, Some(ID)));
        assert_ne!(Machine::of(Some(ID), None), Machine::of(None, Some(ID)));
    }

    #[test]
    fn what_is_no_machine_of_its_own() {
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
            assert_eq!(Machine::of(Some(uuid), Some(ID)), Machine::of(None, Some(ID)));
            assert_eq!(Machine::of(Some(uuid), Some(uuid)), None);
        }
    }
}
