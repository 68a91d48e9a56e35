//! The version check of the platform's component, which reads `componentInfo.cfg` (KP-2.2 to KP-2.4).

use std::fmt;

use semver::{BuildMetadata, Version};

use super::outcome::{Reason, Refusal};

/// The oldest component that supports binding a key pair.
pub const MIN_COMPONENT_VERSION: Version = Version::new(3, 0, 1042);

/// The maximum number of bytes that the agent reads of `componentInfo.cfg`: 64 KiB.
pub const MAX_COMPONENT_INFO_BYTES: usize = 64 * 1024;

/// A component's version: the text in its file, and the form for comparisons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentVersion {
    text: String,
    version: Version,
}

impl fmt::Display for ComponentVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl ComponentVersion {
    /// Parses the file's content: a JSON object with `version`, `version = …` lines, or a bare version line.
    ///
    /// # Errors
    /// The cause, worded to follow "the component's version is unreadable:".
    pub fn parse(content: &[u8]) -> Result<Self, String> {
        if content.len() > MAX_COMPONENT_INFO_BYTES {
            return Err("the file is larger than 64 KiB".into());
        }
        let text = std::str::from_utf8(content).map_err(|_| "the file is not text")?;
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            return Err("the file is empty".into());
        }
        let stated =
            if text.starts_with('{') { find_version_in_json(text)? } else { find_version_in_lines(text)? };
        let version = parse_component_version(&stated)
            .ok_or("the version is not of the form MAJOR.MINOR.BUILD[.HASH]")?;
        Ok(Self { text: stated, version })
    }

    /// Checks whether this component is new enough. The hash does not count.
    ///
    /// # Errors
    /// `COMPONENT_TOO_OLD`, with both versions and the remedy.
    pub fn check_minimum_version(&self) -> Result<(), Refusal> {
        if self.version.cmp_precedence(&MIN_COMPONENT_VERSION).is_ge() {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::ComponentTooOld,
            format!(
                "the platform component is {self}, and at least {MIN_COMPONENT_VERSION} is needed; upgrade it"
            ),
        ))
    }
}

fn find_version_in_json(text: &str) -> Result<String, String> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("it is not JSON (line {})", error.line()))?;
    match value.get("version") {
        Some(serde_json::Value::String(version)) => Ok(version.trim().to_owned()),
        Some(_) => Err("its \"version\" is not a string".into()),
        None => Err("it has no \"version\"".into()),
    }
}

fn find_version_in_lines(text: &str) -> Result<String, String> {
    let lines =
        || text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';']));
    let assigned = lines().find_map(|line| {
        let (key, value) = line.split_once(['=', ':'])?;
        key.trim().eq_ignore_ascii_case("version").then(|| strip_quotes(value.trim()).to_owned())
    });
    assigned
        .or_else(|| lines().find(|line| parse_component_version(line).is_some()).map(str::to_owned))
        .ok_or_else(|| "it has neither a line 'version = …' nor a version alone on a line".into())
}

fn strip_quotes(text: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inner.trim();
        }
    }
    text
}

/// `MAJOR.MINOR.BUILD[.HASH]` as a semantic version with the hash as build metadata.
fn parse_component_version(text: &str) -> Option<Version> {
    let mut parts = text.splitn(4, '.');
    let mut number = || {
        let part = parts.next()?;
        (!part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())).then(|| part.parse().ok())?
    };
    let (major, minor, build) = (number()?, number()?, number()?);
    let mut version = Version::new(major, minor, build);
    if let Some(hash) = parts.next() {
        version.build = BuildMetadata::new(hash).ok().filter(|metadata| !metadata.is_empty())?;
    }
    Some(version)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// KP-2.2.
    #[test]
    fn component_version_formats_are_parsed() {
        for (content, stated) in [
            ("3.0.1042", "3.0.1042"),
            ("3.0.1042.d89c570\n", "3.0.1042.d89c570"),
            ("\u{feff}3.0.1086\r\n", "3.0.1086"),
            ("{\"version\": \"3.0.1042\"}", "3.0.1042"),
            ("{\"name\": \"agent\", \"version\": \"1.0.641.fc127b7\"}", "1.0.641.fc127b7"),
            ("version = 3.0.1042", "3.0.1042"),
            ("[agent]\nname=x\nVersion: \"3.1.0\"\r\n", "3.1.0"),
            ("VERSION='3.0.1042'\n", "3.0.1042"),
            ("# comment\nversion=3.0.1042 \n", "3.0.1042"),
        ] {
            assert_eq!(
                ComponentVersion::parse(content.as_bytes()).unwrap().to_string(),
                stated,
                "{content:?}"
            );
        }
        for content in [
            "",
            "  \n",
            "3.0",
            "3.0.x",
            "v3.0.1042",
            "{",
            "{}",
            "{\"version\": 3}",
            "name=x",
            "3.0.1042.",
            "-3.0.1",
        ] {
            assert!(ComponentVersion::parse(content.as_bytes()).is_err(), "{content:?}");
        }
        assert!(ComponentVersion::parse(&[0xff, 0xfe]).is_err());
        assert!(ComponentVersion::parse(&vec![b'\n'; MAX_COMPONENT_INFO_BYTES + 1]).is_err());
    }

    /// KP-2.3, KP-2.4.
    #[test]
    fn component_version_order_is_numeric() {
        let passes =
            |text: &str| ComponentVersion::parse(text.as_bytes()).unwrap().check_minimum_version().is_ok();
        for new in ["3.0.1042", "3.0.1042.d89c570", "3.0.10420", "3.1.0", "10.0.0"] {
            assert!(passes(new), "{new}");
        }
        for old in ["3.0.999", "3.0.1041.ffffff", "2.9.9999", "1.0.641.fc127b7"] {
            assert!(!passes(old), "{old}");
        }
    }
}
