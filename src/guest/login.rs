//! What beside sshd's settings decides whether an account gets in: shadow(5), nologin(5), and sshd's service of PAM.

use std::path::{Path, PathBuf};

use super::files::read_file;
use crate::policy::effective::Effective;
use crate::policy::observation::{PamRule, Shadow, ShadowEntry};
use crate::policy::pam::{self, Line, Rule};

const NOLOGIN: &str = "/etc/nologin";
const SHADOW: &str = "/etc/shadow";

/// The most that is read of an account file.
pub(super) const ACCOUNT_FILE_LIMIT: usize = 64 * 1024 * 1024;

/// The most that is read of a file of PAM's, and how deep they may include each other.
const PAM_LIMIT: usize = 1024 * 1024;
const DEEPEST: usize = 16;

/// Where services are configured; the distribution's own directories come behind the administrator's.
const PAM_DIRECTORIES: [&str; 3] = ["/etc/pam.d", "/usr/lib/pam.d", "/usr/etc/pam.d"];

/// nologin(5)'s file, where it stands.
pub(super) fn nologin() -> Option<PathBuf> {
    Path::new(NOLOGIN).exists().then(|| PathBuf::from(NOLOGIN))
}

/// The user's entry in shadow(5).
pub(super) fn shadow(user: &str) -> Shadow {
    let content = match shadow_file() {
        Ok(content) => content,
        Err(why) => return Shadow::Unseen(why),
    };
    let entry = content.lines().find_map(|line| shadow_entry(line).filter(|(name, _)| *name == user));
    entry.map_or(Shadow::NoEntry, |(_, entry)| Shadow::Entry(entry))
}

/// The bytes of shadow(5).
pub(super) fn shadow_file() -> Result<String, String> {
    match read_file(Path::new(SHADOW), ACCOUNT_FILE_LIMIT) {
        Ok(content) => Ok(String::from_utf8_lossy(content.as_deref().unwrap_or_default()).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// One line of shadow(5): the name and what it says.
pub(super) fn shadow_entry(line: &str) -> Option<(&str, ShadowEntry)> {
    let mut fields = line.split(':');
    let (name, hash) = (fields.next()?, fields.next()?);
    let mut day = || fields.next().and_then(|field| field.trim().parse::<i64>().ok());
    let (last_change, _minimum, maximum, _warning) = (day(), day(), day(), day());
    let (inactive, expires) = (day(), day());
    let entry = ShadowEntry {
        is_locked: hash.starts_with('!'),
        has_password: !hash.is_empty() && !hash.starts_with(['!', '*']) && hash != "x",
        last_change,
        maximum,
        inactive,
        // An empty field and -1 mean never.
        expires: expires.filter(|day| *day >= 0),
    };
    Some((name, entry))
}

/// The rules of sshd's service that may refuse a login with a key and are not evaluated; a file that cannot be read is
/// one of them.
pub(super) fn pam(effective: &Effective) -> Vec<PamRule> {
    let service = match effective.value("pamservicename") {
        "" => "sshd",
        service => service,
    };
    let mut found = Vec::new();
    let mut before = None;
    follow(service, None, 0, &mut before, &mut found);
    found
}

fn follow(
    service: &str,
    kind: Option<&str>,
    depth: usize,
    before: &mut Option<Rule>,
    found: &mut Vec<PamRule>,
) {
    let places = PAM_DIRECTORIES.map(|directory| Path::new(directory).join(service));
    let Some(file) = places.into_iter().find(|file| file.exists()).filter(|_| depth <= DEEPEST) else {
        return;
    };
    let Ok(Some(content)) = read_file(&file, PAM_LIMIT) else {
        found.push(PamRule { file, line: 1, module: "a file that cannot be read".to_owned() });
        return;
    };
    for (line, entry) in pam::lines(&content) {
        match entry {
            Line::Include(service, of) if kind.is_none() || of.is_none() || of.as_deref() == kind => {
                follow(&service, of.as_deref().or(kind), depth + 1, before, found);
            }
            Line::Rule(rule) if kind.is_none_or(|kind| kind == rule.kind) => {
                if rule.is_not_evaluated(before.as_ref()) {
                    found.push(PamRule { file: file.clone(), line, module: rule.module.clone() });
                }
                *before = Some(rule);
            }
            Line::Include(..) | Line::Rule(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_shadow() {
        let entry = |line: &str| shadow_entry(line).map(|(_, entry)| entry);
        let plain = ShadowEntry {
            is_locked: false,
            has_password: true,
            last_change: Some(19000),
            maximum: Some(99999),
            inactive: None,
            expires: None,
        };
        assert_eq!(entry("u:$y$j9T$x:19000:0:99999:7:::"), Some(plain));
        assert_eq!(
            entry("u:$y$x:0:0:90:7:14:20000:"),
            Some(ShadowEntry {
                last_change: Some(0),
                maximum: Some(90),
                inactive: Some(14),
                expires: Some(20000),
                ..plain
            })
        );
        for (line, is_locked, has_password) in [
            ("u:!$y$x:1::::::", true, false),
            ("u:*:1::::::", false, false),
            ("u:!!::", true, false),
            ("u::1::::::", false, false),
        ] {
            let seen = entry(line).map(|entry| (entry.is_locked, entry.has_password));
            assert_eq!(seen, Some((is_locked, has_password)), "{line}");
        }
        assert_eq!(entry("broken"), None);
    }
}
