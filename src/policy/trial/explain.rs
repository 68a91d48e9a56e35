//! Explains a refusal by sshd to a person: the rule, the cause, the file and line that decide, and the remedy.

use std::path::PathBuf;

use super::{RefusalCause, Rejection};
use crate::policy::foreign::sanitize_text;
use crate::policy::lockout::GuardFinding;
use crate::policy::observation::{Account, Connection};
use crate::policy::sshd_config::{ConfigSource, ParsedConfig};

/// The inputs for finding the line that decides.
#[derive(Debug, Clone, Copy)]
pub struct RejectionContext<'a> {
    /// The user that sshd refused.
    pub account: &'a Account,
    /// The connection that sshd refused.
    pub connection: &'a Connection,
    /// sshd's configuration, parsed.
    pub reading: &'a ParsedConfig,
    /// The key file that contains the key, or will contain it.
    pub key_file: Option<&'a std::path::Path>,
}

/// Returns the finding for a refusal. The cause that sshd names decides, and this function looks up its line in the
/// configuration.
pub fn explain_rejection(rejection: &Rejection, decides: &RejectionContext<'_>) -> GuardFinding {
    let Account { name, shell, .. } = decides.account;
    let said = match &rejection.said {
        Some(said) => format!(" (sshd: \"{}\")", sanitize_text(said)),
        None => String::new(),
    };
    match &rejection.cause {
        RefusalCause::AllowUsers => decides.list_finding(
            "AllowUsers",
            &format!("no pattern of the list matches {name}{said}"),
            &format!("add {name} to it"),
        ),
        RefusalCause::DenyUsers => decides.list_finding(
            "DenyUsers",
            &format!("a pattern of the list matches {name}{said}"),
            "take it out of the list",
        ),
        RefusalCause::AllowGroups => decides.list_finding(
            "AllowGroups",
            &format!("no pattern of the list matches a group of {name}{said}"),
            &format!("add one of {name}'s groups to it, or {name} to one"),
        ),
        RefusalCause::DenyGroups => decides.list_finding(
            "DenyGroups",
            &format!("a pattern of the list matches a group of {name}{said}"),
            &format!("take it out of the list, or {name} out of the group"),
        ),
        RefusalCause::Shell => system_file_finding(
            "Shell",
            "/etc/passwd",
            &format!("sshd takes no user whose shell {} cannot be executed{said}", shell.display()),
            &format!("usermod -s /bin/sh {name}"),
        ),
        RefusalCause::LockedAccount => system_file_finding(
            "Locked account",
            "/etc/shadow",
            &format!("{name}'s password is locked, and without UsePAM sshd then takes no key either{said}"),
            &format!("usermod -p '*' {name}, or set `UsePAM yes`"),
        ),
        RefusalCause::ExpiredAccount => system_file_finding(
            "Expired account",
            "/etc/shadow",
            &format!("the account {name} expired{said}"),
            &format!("chage -E -1 {name}"),
        ),
        RefusalCause::Modes(path) => GuardFinding {
            name: "StrictModes",
            message: format!(
                "StrictModes: {path} may be written by others, or belongs neither to root nor to {name}{said}; \
                 chmod go-w {path}, and chown {name} {path} where the owner is wrong"
            ),
            file: Some(PathBuf::from(path)),
            line: None,
        },
        RefusalCause::KeyFile(why) => GuardFinding {
            name: "AuthorizedKeysFile",
            message: format!(
                "AuthorizedKeysFile: sshd cannot read the key file as {name}: {}; make it a regular file that {name} \
                 may read",
                sanitize_text(why)
            ),
            file: decides.key_file.map(ToOwned::to_owned),
            line: None,
        },
        RefusalCause::Revoked => decides.keyword_finding(
            "RevokedKeys",
            &format!("sshd refuses the key by its list of revoked keys, or cannot read that list{said}"),
            "bind another key, or correct the list",
        ),
        RefusalCause::Algorithm => decides.keyword_finding(
            "PubkeyAcceptedAlgorithms",
            &format!("sshd does not take keys of this kind{said}"),
            "add it to the list, or bind a key of another kind",
        ),
        RefusalCause::KeyLength => decides.keyword_finding(
            "RequiredRSASize",
            &format!("the RSA key is too short for this sshd{said}"),
            "bind a longer key, or an ssh-ed25519 one",
        ),
        RefusalCause::Source(at) => GuardFinding {
            name: "from",
            message: format!(
                "from: the line at {at} does not let {name} in from there{said}; take its `from=` out"
            ),
            file: (!at.file.is_empty()).then(|| PathBuf::from(&at.file)),
            line: (at.line > 0).then_some(at.line),
        },
        RefusalCause::Expired(at) => GuardFinding {
            name: "expiry-time",
            message: format!("expiry-time: the line at {at} is over{said}; take that line out"),
            file: Some(PathBuf::from(&at.file)),
            line: Some(at.line),
        },
        RefusalCause::MethodNotOffered => decides.keyword_finding(
            "PubkeyAuthentication",
            &format!("sshd takes no keys{said}"),
            "set `PubkeyAuthentication yes` there",
        ),
        RefusalCause::ConnectionRefused => decides.keyword_finding(
            "RefuseConnection",
            &format!("sshd refuses every connection{said}"),
            "remove that line",
        ),
        RefusalCause::UnknownUser => system_file_finding(
            "User",
            "/etc/nsswitch.conf",
            &format!("sshd does not know the user {name}{said}"),
            "see whether the name service answers: getent passwd",
        ),
        // OpenSSH 10.0 and later look for the files with glob(3) as the user, and log nothing about a file that this
        // user cannot see.
        RefusalCause::NotFound => {
            let (holder, remedy) = match decides.key_file {
                Some(file) => (
                    format!(", not even in {}", file.display()),
                    format!(
                        "see whether {name} may read that file, and whether `AuthorizedKeysFile` names it"
                    ),
                ),
                None => (String::new(), "add `.ssh/authorized_keys` to it".to_owned()),
            };
            let cause = format!("sshd finds the key in no file that it reads for {name}{said}{holder}");
            decides.keyword_finding("AuthorizedKeysFile", &cause, &remedy)
        }
        RefusalCause::Other => GuardFinding {
            name: "sshd",
            message: format!(
                "sshd: a private run of it refuses the key{said}; see sshd's manual for that message"
            ),
            file: None,
            line: None,
        },
    }
}

impl RejectionContext<'_> {
    /// Returns a finding about a list, with the first line or option that may set it.
    fn list_finding(&self, keyword: &'static str, cause: &str, remedy: &str) -> GuardFinding {
        let said = self.reading.applicable_settings(keyword, self.connection, Some(&self.account.groups));
        let by = said.into_iter().next().map_or(ConfigSource::Default, |saying| saying.by);
        source_finding(keyword, &by, cause, remedy)
    }

    /// Returns a finding about a keyword whose first value counts.
    fn keyword_finding(&self, keyword: &'static str, cause: &str, remedy: &str) -> GuardFinding {
        let decision = self.reading.resolve_value(keyword, self.connection, Some(&self.account.groups));
        source_finding(keyword, &decision.by, cause, remedy)
    }
}

fn source_finding(name: &'static str, by: &ConfigSource, cause: &str, remedy: &str) -> GuardFinding {
    GuardFinding {
        name,
        message: format!("{name}: {cause}, because of {}; {remedy}", by.describe(name)),
        file: by.file().map(ToOwned::to_owned),
        line: by.line(),
    }
}

fn system_file_finding(name: &'static str, file: &str, cause: &str, remedy: &str) -> GuardFinding {
    GuardFinding {
        name,
        message: format!("{name}: {cause} ({file}); {remedy}"),
        file: Some(file.into()),
        line: None,
    }
}
