//! A refusal of sshd's in words for a person: rule, cause, the file and line that decide, remedy.

use std::path::PathBuf;

use super::{RefusalCause, Rejection};
use crate::policy::foreign::foreign;
use crate::policy::lockout::Finding;
use crate::policy::observation::{Account, Connection};
use crate::policy::sshd_config::{Decider, Reading};

/// What is needed to name the line that decides.
#[derive(Debug, Clone, Copy)]
pub struct Decides<'a> {
    /// The user that was refused.
    pub account: &'a Account,
    /// The connection that sshd refused.
    pub connection: &'a Connection,
    /// sshd's configuration as text.
    pub reading: &'a Reading,
    /// The key file that holds the key, or will.
    pub key_file: Option<&'a std::path::Path>,
}

/// The finding for a refusal. What sshd itself names decides; the line is looked up in its configuration.
pub fn explain(rejection: &Rejection, decides: &Decides<'_>) -> Finding {
    let Account { name, shell, .. } = decides.account;
    let said = match &rejection.said {
        Some(said) => format!(" (sshd: \"{}\")", foreign(said)),
        None => String::new(),
    };
    match &rejection.cause {
        RefusalCause::AllowUsers => decides.by_list(
            "AllowUsers",
            &format!("no pattern of the list matches {name}{said}"),
            &format!("add {name} to it"),
        ),
        RefusalCause::DenyUsers => decides.by_list(
            "DenyUsers",
            &format!("a pattern of the list matches {name}{said}"),
            "take it out of the list",
        ),
        RefusalCause::AllowGroups => decides.by_list(
            "AllowGroups",
            &format!("no pattern of the list matches a group of {name}{said}"),
            &format!("add one of {name}'s groups to it, or {name} to one"),
        ),
        RefusalCause::DenyGroups => decides.by_list(
            "DenyGroups",
            &format!("a pattern of the list matches a group of {name}{said}"),
            &format!("take it out of the list, or {name} out of the group"),
        ),
        RefusalCause::Shell => about(
            "Shell",
            "/etc/passwd",
            &format!("sshd takes no user whose shell {} cannot be executed{said}", shell.display()),
            &format!("usermod -s /bin/sh {name}"),
        ),
        RefusalCause::LockedAccount => about(
            "Locked account",
            "/etc/shadow",
            &format!("{name}'s password is locked, and without UsePAM sshd then takes no key either{said}"),
            &format!("usermod -p '*' {name}, or set `UsePAM yes`"),
        ),
        RefusalCause::ExpiredAccount => about(
            "Expired account",
            "/etc/shadow",
            &format!("the account {name} expired{said}"),
            &format!("chage -E -1 {name}"),
        ),
        RefusalCause::Modes(path) => Finding {
            name: "StrictModes",
            message: format!(
                "StrictModes: {path} may be written by others, or belongs neither to root nor to {name}{said}; \
                 chmod go-w {path}, and chown {name} {path} where the owner is wrong"
            ),
            file: Some(PathBuf::from(path)),
            line: None,
        },
        RefusalCause::KeyFile(why) => Finding {
            name: "AuthorizedKeysFile",
            message: format!(
                "AuthorizedKeysFile: sshd cannot read the key file as {name}: {}; make it a regular file that {name} \
                 may read",
                foreign(why)
            ),
            file: decides.key_file.map(ToOwned::to_owned),
            line: None,
        },
        RefusalCause::Revoked => decides.by_keyword(
            "RevokedKeys",
            &format!("sshd refuses the key by its list of revoked keys, or cannot read that list{said}"),
            "bind another key, or correct the list",
        ),
        RefusalCause::Algorithm => decides.by_keyword(
            "PubkeyAcceptedAlgorithms",
            &format!("sshd does not take keys of this kind{said}"),
            "add it to the list, or bind a key of another kind",
        ),
        RefusalCause::KeyLength => decides.by_keyword(
            "RequiredRSASize",
            &format!("the RSA key is too short for this sshd{said}"),
            "bind a longer key, or an ssh-ed25519 one",
        ),
        RefusalCause::Source(at) => Finding {
            name: "from",
            message: format!(
                "from: the line at {at} does not let {name} in from there{said}; take its `from=` out"
            ),
            file: (!at.file.is_empty()).then(|| PathBuf::from(&at.file)),
            line: (at.line > 0).then_some(at.line),
        },
        RefusalCause::Expired(at) => Finding {
            name: "expiry-time",
            message: format!("expiry-time: the line at {at} is over{said}; take that line out"),
            file: Some(PathBuf::from(&at.file)),
            line: Some(at.line),
        },
        RefusalCause::MethodNotOffered => decides.by_keyword(
            "PubkeyAuthentication",
            &format!("sshd takes no keys{said}"),
            "set `PubkeyAuthentication yes` there",
        ),
        RefusalCause::ConnectionRefused => decides.by_keyword(
            "RefuseConnection",
            &format!("sshd refuses every connection{said}"),
            "remove that line",
        ),
        RefusalCause::UnknownUser => about(
            "User",
            "/etc/nsswitch.conf",
            &format!("sshd does not know the user {name}{said}"),
            "see whether the name service answers: getent passwd",
        ),
        // OpenSSH 10.0 and later look for the files with glob(3) as the user, and say nothing of one that is hidden.
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
            decides.by_keyword("AuthorizedKeysFile", &cause, &remedy)
        }
        RefusalCause::Other => Finding {
            name: "sshd",
            message: format!(
                "sshd: a private run of it refuses the key{said}; see sshd's manual for that message"
            ),
            file: None,
            line: None,
        },
    }
}

impl Decides<'_> {
    /// A finding about a list; the first line or option that has a say on it.
    fn by_list(&self, keyword: &'static str, cause: &str, remedy: &str) -> Finding {
        let said = self.reading.sayings(keyword, self.connection, Some(&self.account.groups));
        let by = said.into_iter().next().map_or(Decider::Default, |saying| saying.by);
        finding(keyword, &by, cause, remedy)
    }

    /// A finding about a keyword whose first value counts.
    fn by_keyword(&self, keyword: &'static str, cause: &str, remedy: &str) -> Finding {
        let decision = self.reading.decision(keyword, self.connection, Some(&self.account.groups));
        finding(keyword, &decision.by, cause, remedy)
    }
}

fn finding(name: &'static str, by: &Decider, cause: &str, remedy: &str) -> Finding {
    Finding {
        name,
        message: format!("{name}: {cause}, because of {}; {remedy}", by.describe(name)),
        file: by.file().map(ToOwned::to_owned),
        line: by.line(),
    }
}

fn about(name: &'static str, file: &str, cause: &str, remedy: &str) -> Finding {
    Finding {
        name,
        message: format!("{name}: {cause} ({file}); {remedy}"),
        file: Some(file.into()),
        line: None,
    }
}
