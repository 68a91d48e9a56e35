//! Parses the log of one connection that a private sshd wrote with `-e -o LogLevel=DEBUG1`: sshd(8), OpenSSH 7.4 to
//! 10.5.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::outcome::escape_unprintable;

/// The maximum number of characters kept from one line of sshd.
const MAX_LOG_MESSAGE_CHARS: usize = 200;

/// The line at which sshd found a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyMatch {
    /// The file, or the command that printed the line, as sshd names it.
    pub file: String,
    /// The line in it, from 1.
    pub line: usize,
}

impl fmt::Display for KeyMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} line {}", self.file, self.line)
    }
}

/// Why sshd refuses a key, if its log shows the cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RefusalCause {
    /// The user is not in AllowUsers.
    AllowUsers,
    /// The user is in DenyUsers.
    DenyUsers,
    /// No group of the user is in AllowGroups.
    AllowGroups,
    /// A group of the user is in DenyGroups.
    DenyGroups,
    /// The user's shell does not exist or cannot be executed.
    Shell,
    /// The account is locked, and sshd does not use PAM.
    LockedAccount,
    /// The account has expired, and sshd does not use PAM.
    ExpiredAccount,
    /// StrictModes refuses the owner or the mode of this path.
    Modes(String),
    /// The key file cannot be read, or is not a regular file.
    KeyFile(String),
    /// RevokedKeys names the key, or cannot be read.
    Revoked,
    /// sshd does not accept the signature algorithm.
    Algorithm,
    /// The RSA key is too short.
    KeyLength,
    /// The `from=` option of this line does not name the source.
    Source(KeyMatch),
    /// The `expiry-time` of this line has passed.
    Expired(KeyMatch),
    /// sshd does not offer public-key authentication.
    MethodNotOffered,
    /// sshd ends every connection of this kind.
    ConnectionRefused,
    /// sshd does not know the user.
    UnknownUser,
    /// The key is in no file that sshd reads.
    NotFound,
    /// The log names no cause that this module knows.
    Other,
}

/// The private sshd's report on one connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerReport {
    /// Every line at which sshd found the key, in order.
    pub matches: Vec<KeyMatch>,
    /// The line at which sshd accepted the key, if this release logs it.
    accepted: Option<KeyMatch>,
    /// The options of that line as this release lists them. `None` before OpenSSH 7.7.
    pub options: Option<String>,
    refusals: Vec<(RefusalCause, String)>,
    fault: Option<String>,
}

impl ServerReport {
    /// Parses a log.
    pub fn parse(log: &str) -> Self {
        let mut report = Self::default();
        for line in log.lines() {
            let line = line.trim_end();
            let line = line.strip_suffix(" [preauth]").unwrap_or(line);
            let (is_debug, text) = match line.strip_prefix("debug").and_then(|rest| rest.split_once(": ")) {
                Some(("1" | "2" | "3", text)) => (true, text),
                _ => (false, line),
            };
            report.record_line(text);
            if !is_debug && !text.is_empty() {
                report.fault = Some(text.to_owned());
            }
        }
        report
    }

    fn record_line(&mut self, text: &str) {
        if let Some(found) = parse_key_match(text) {
            self.matches.push(found);
            self.options = None;
        } else if let Some(rest) = text.strip_prefix("Accepted key ") {
            self.accepted = rest.rsplit_once(" found at ").and_then(|(_, place)| parse_place(place));
        } else if let Some((_, options)) = text.split_once(": key options:") {
            self.options = Some(options.to_owned());
        } else if let Some(cause) = parse_refusal_cause(text) {
            self.refusals.push((cause, text.to_owned()));
        }
    }

    /// Returns the line at which sshd accepted the key: the line that the log names, otherwise the last line that
    /// matched.
    pub fn accepted_at(&self) -> Option<KeyMatch> {
        self.accepted.clone().or_else(|| self.matches.last().cloned())
    }

    /// Returns the cause of a refusal. The first cause in the log counts. After sshd refuses a connection or an
    /// account, it continues as for an unknown user.
    pub fn cause(&self) -> RefusalCause {
        let known = self.refusals.iter().map(|(cause, _)| cause.clone()).next();
        known.unwrap_or(if self.matches.is_empty() { RefusalCause::NotFound } else { RefusalCause::Other })
    }

    /// Returns sshd's own message for the refusal.
    pub fn refusal_message(&self) -> Option<String> {
        self.refusals.first().map(|(_, said)| truncate_printable(said))
    }

    /// Returns the last line that is not debugging output. If there was no answer, this line says why.
    pub fn fault(&self) -> Option<String> {
        self.fault.as_deref().map(truncate_printable)
    }

    /// Returns true if sshd ended the connection because of its configuration.
    pub fn refuses_connection(&self) -> bool {
        self.refusals.iter().any(|(cause, _)| *cause == RefusalCause::ConnectionRefused)
    }

    /// Returns true if sshd did not find the user in the name service.
    pub fn is_unknown_user(&self) -> bool {
        self.refusals.iter().any(|(cause, _)| *cause == RefusalCause::UnknownUser)
    }

    /// Returns true if the private sshd does not support the key exchange that it was started with.
    pub fn lacks_key_exchange(log: &str) -> bool {
        log.lines().any(|line| {
            line.contains("Bad SSH2 KexAlgorithms") || line.contains("no matching key exchange method")
        })
    }
}

fn truncate_printable(text: &str) -> String {
    escape_unprintable(&text.chars().take(MAX_LOG_MESSAGE_CHARS).collect::<String>())
}

/// Parses `FILE:LINE: matching key found: …`, or before OpenSSH 7.7 `matching key found: file FILE, line LINE …`.
fn parse_key_match(text: &str) -> Option<KeyMatch> {
    if let Some(rest) = text.strip_prefix("matching key found: file ") {
        let (file, rest) = rest.rsplit_once(", line ")?;
        let line = rest.split(' ').next()?.parse().ok()?;
        return Some(KeyMatch { file: unescape_vis(file), line });
    }
    let (place, _) = text.split_once(": matching key found: ")?;
    parse_place(place)
}

/// Parses `FILE:LINE`.
fn parse_place(place: &str) -> Option<KeyMatch> {
    let (file, line) = place.rsplit_once(':')?;
    Some(KeyMatch { file: unescape_vis(file), line: line.parse().ok()? })
}

/// Decodes a file name of sshd's log. There, a backslash is doubled, and a byte that is not ASCII is octal (vis(3),
/// `VIS_OCTAL`).
fn unescape_vis(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        (rest, _) = match rest {
            [b'\\', b'\\', behind @ ..] => (behind, bytes.push(b'\\')),
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', behind @ ..] => {
                (behind, bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0')))
            }
            _ => (behind, bytes.push(*first)),
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn parse_refusal_cause(text: &str) -> Option<RefusalCause> {
    if let Some((_, why)) =
        text.strip_prefix("User ").and_then(|rest| rest.split_once(" not allowed because "))
    {
        return Some(match why {
            why if why.starts_with("not listed in AllowUsers") => RefusalCause::AllowUsers,
            why if why.starts_with("listed in DenyUsers") => RefusalCause::DenyUsers,
            why if why.starts_with("none of user's groups are listed in AllowGroups") => {
                RefusalCause::AllowGroups
            }
            why if why.starts_with("not in any group") => RefusalCause::AllowGroups,
            why if why.starts_with("a group is listed in DenyGroups") => RefusalCause::DenyGroups,
            why if why.starts_with("shell ") => RefusalCause::Shell,
            why if why.starts_with("account is locked") => RefusalCause::LockedAccount,
            _ => RefusalCause::Other,
        });
    }
    if text.starts_with("Account ") && text.ends_with(" has expired") {
        return Some(RefusalCause::ExpiredAccount);
    }
    if let Some(rest) = text.strip_prefix("Authentication refused: ") {
        for what in ["bad ownership or modes for directory ", "bad ownership or modes for file "] {
            if let Some(path) = rest.strip_prefix(what) {
                return Some(RefusalCause::Modes(path.to_owned()));
            }
        }
        return Some(RefusalCause::KeyFile(rest.to_owned()));
    }
    if let Some(rest) = text
        .strip_prefix("Could not open user '")
        .or_else(|| text.strip_prefix("Could not open authorized keys '"))
    {
        // A missing file is not a fault: sshd continues with the next file.
        return (!rest.ends_with("No such file or directory"))
            .then(|| RefusalCause::KeyFile(text.to_owned()));
    }
    if text.starts_with("User '") && text.ends_with(" is not a regular file") {
        return Some(RefusalCause::KeyFile(text.to_owned()));
    }
    if text.starts_with("Authentication key ") && text.contains(" revoked by file ")
        || text.starts_with("Error checking authentication key ")
    {
        return Some(RefusalCause::Revoked);
    }
    if text.contains(" not in PubkeyAcceptedAlgorithms") || text.contains(" not in PubkeyAcceptedKeyTypes") {
        return Some(RefusalCause::Algorithm);
    }
    if text.starts_with("refusing ") && text.contains(" key") && text.contains("nvalid key length") {
        return Some(RefusalCause::KeyLength);
    }
    if let Some((place, _)) = text.split_once(": Authentication tried for ")
        && text.contains("correct key but not from a permitted host")
    {
        return parse_place(place).map(RefusalCause::Source);
    }
    if text.starts_with("Authentication tried for ")
        && text.contains("correct key but not from a permitted host")
    {
        // Before OpenSSH 7.7 the log names no line.
        return Some(RefusalCause::Source(KeyMatch { file: String::new(), line: 0 }));
    }
    if let Some((place, _)) = text.split_once(": entry expired at ") {
        return parse_place(place).map(RefusalCause::Expired);
    }
    if text.starts_with("Invalid user ") {
        return Some(RefusalCause::UnknownUser);
    }
    if text.starts_with("administratively prohibited connection ") || text.contains("RefuseConnection") {
        return Some(RefusalCause::ConnectionRefused);
    }
    None
}

/// Returns the options of sshd's list that restrict a login. For a line without options, sshd lists five permissions.
/// A login needs only one of these, the terminal.
pub(super) fn parse_restrictions(options: &str) -> Vec<String> {
    const PERMISSIONS: [&str; 6] =
        ["agent-forwarding", "no-touch-required", "port-forwarding", "pty", "user-rc", "x11-forwarding"];
    let mut found = Vec::new();
    let mut has_terminal = false;
    for word in options.split_ascii_whitespace() {
        // sshd prints no blank before `expires`.
        let (word, expires) = match word.strip_suffix("expires") {
            Some(word) => (word, true),
            None => (word, false),
        };
        if expires {
            found.push("expiry-time".to_owned());
        }
        has_terminal |= word == "pty";
        if !word.is_empty() && !PERMISSIONS.contains(&word) {
            found.push(escape_unprintable(&word.chars().take(40).collect::<String>()));
        }
    }
    if !has_terminal {
        found.push("no-pty".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_match(file: &str, line: usize) -> KeyMatch {
        KeyMatch { file: file.to_owned(), line }
    }

    #[test]
    fn key_match_is_parsed_for_every_release() {
        let new = "debug1: /root/.ssh/authorized_keys:2: matching key found: ED25519 SHA256:x\r\n\
                   debug1: /root/.ssh/authorized_keys:2: key options: agent-forwarding port-forwarding pty user-rc x11-forwarding\r\n\
                   Accepted key ED25519 SHA256:x found at /root/.ssh/authorized_keys:2\r\n";
        let report = ServerReport::parse(new);
        assert_eq!(report.accepted_at(), Some(key_match("/root/.ssh/authorized_keys", 2)));
        assert_eq!(parse_restrictions(report.options.as_deref().unwrap_or("x")), Vec::<String>::new());
        let old = "debug1: matching key found: file /a b/k, line 12 ED25519 SHA256:x\r\n";
        let report = ServerReport::parse(old);
        assert_eq!((report.accepted_at(), report.options), (Some(key_match("/a b/k", 12)), None));
        let escaped = "debug1: /home/j\\303\\274rgen/\\\\k\\374:1: matching key found: RSA SHA256:x\r\n";
        assert_eq!(
            ServerReport::parse(escaped).accepted_at(),
            Some(key_match("/home/jürgen/\\k\u{fffd}", 1))
        );
        let command = "debug1: /usr/bin/keys %u:1: matching key found: RSA SHA256:x\r\n";
        assert_eq!(ServerReport::parse(command).accepted_at(), Some(key_match("/usr/bin/keys %u", 1)));
    }

    /// KP-10.5.
    #[test]
    fn restricting_options_are_listed() {
        for (options, expected) in [
            (" agent-forwarding port-forwarding pty user-rc x11-forwarding", &[] as &[&str]),
            (" pty", &[]),
            (" agent-forwarding command port-forwarding pty user-rc x11-forwarding", &["command"]),
            (" agent-forwardingexpires port-forwarding pty", &["expiry-time"]),
            ("", &["no-pty"]),
            (" pty uv", &["uv"]),
            (" permitopen pty tun=3", &["permitopen", "tun=3"]),
        ] {
            assert_eq!(parse_restrictions(options), expected, "{options}");
        }
    }

    #[test]
    fn refusal_causes_are_recognized() {
        for (line, expected) in [
            ("User u from 192.0.2.1 not allowed because not listed in AllowUsers", RefusalCause::AllowUsers),
            ("User u from 192.0.2.1 not allowed because listed in DenyUsers", RefusalCause::DenyUsers),
            (
                "User u from 192.0.2.1 not allowed because none of user's groups are listed in AllowGroups",
                RefusalCause::AllowGroups,
            ),
            (
                "User u from 192.0.2.1 not allowed because a group is listed in DenyGroups",
                RefusalCause::DenyGroups,
            ),
            ("User u not allowed because shell /x does not exist", RefusalCause::Shell),
            ("User u not allowed because account is locked", RefusalCause::LockedAccount),
            (
                "Authentication refused: bad ownership or modes for directory /home/u",
                RefusalCause::Modes("/home/u".into()),
            ),
            ("Authentication key ED25519 SHA256:x revoked by file /r", RefusalCause::Revoked),
            (
                "Error checking authentication key ED25519 SHA256:x in revoked keys file /r: No such file or directory",
                RefusalCause::Revoked,
            ),
            (
                "userauth_pubkey: signature algorithm ssh-ed25519 not in PubkeyAcceptedAlgorithms",
                RefusalCause::Algorithm,
            ),
            (
                "userauth_pubkey: key type ssh-ed25519 not in PubkeyAcceptedKeyTypes [preauth]",
                RefusalCause::Algorithm,
            ),
            ("refusing RSA key: Invalid key length [preauth]", RefusalCause::KeyLength),
            (
                "/k:3: Authentication tried for u with correct key but not from a permitted host (host=h, ip=i, required=r).",
                RefusalCause::Source(key_match("/k", 3)),
            ),
            ("debug1: /k:4: entry expired at 2020-01-01T00:00:00", RefusalCause::Expired(key_match("/k", 4))),
            ("Invalid user u from 192.0.2.1 port 5", RefusalCause::UnknownUser),
            (
                "debug1: Could not open user 'u' authorized keys '/k': No such file or directory",
                RefusalCause::NotFound,
            ),
        ] {
            assert_eq!(ServerReport::parse(line).cause(), expected, "{line}");
        }
        let denied = "debug1: Could not open user 'u' authorized keys '/k': Permission denied";
        assert!(matches!(ServerReport::parse(denied).cause(), RefusalCause::KeyFile(_)));
    }
}
