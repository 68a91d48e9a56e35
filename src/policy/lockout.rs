//! The lockout guard: whether sshd would let the target user in with his key, judged from facts before
//! passwords go off (contract 6, "Lockout guard"). The running sshd's own word, the proof, stands beside it:
//! neither is enough alone.

mod access;
mod account;
mod key;
mod key_file;
mod session;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use super::effective::Effective;
use super::observation::{Account, Connection, KeyFile, Login};
use super::outcome::Warning;
use super::public_key::PublicKey;
use super::sshd_config::{Decider, Reading};

pub use access::may_come;
pub(crate) use account::is_closed;
pub use key::revoked_keys_file;
pub use key_file::{authorized_keys_files, authorized_keys_path};

/// What sshd asks of a user who comes with a key. A new rule is a variant here, its place in [`Rule::ALL`]
/// and its judgement in `Rule::judge`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// The user's shell: passwd(5), sshd's `allowed_user`.
    Shell,
    /// A locked password, without PAM: sshd's `allowed_user`.
    LockedAccount,
    /// sshd_config(5) "DenyUsers".
    DenyUsers,
    /// sshd_config(5) "AllowUsers".
    AllowUsers,
    /// sshd_config(5) "DenyGroups".
    DenyGroups,
    /// sshd_config(5) "AllowGroups".
    AllowGroups,
    /// sshd_config(5) "RefuseConnection".
    RefuseConnection,
    /// sshd_config(5) "PubkeyAuthentication".
    PubkeyAuthentication,
    /// sshd_config(5) "PubkeyAcceptedAlgorithms".
    PubkeyAcceptedAlgorithms,
    /// sshd_config(5) "RequiredRSASize".
    RequiredRSASize,
    /// sshd_config(5) "RevokedKeys".
    RevokedKeys,
    /// The file must be one that sshd reads, and that the user may read: sshd_config(5).
    AuthorizedKeysFile,
    /// Owners and modes of the key file and its directories: sshd_config(5) "StrictModes".
    StrictModes,
    /// sshd_config(5) "PermitRootLogin", for uid 0.
    PermitRootLogin,
    /// A list that one key alone satisfies: sshd_config(5) "AuthenticationMethods".
    AuthenticationMethods,
    /// The account's end: shadow(5).
    ExpiredAccount,
    /// A password that has to be changed first: shadow(5), pam_unix(8).
    ForcedPasswordChange,
    /// nologin(5).
    Nologin,
    /// Rules of PAM that are not evaluated: pam.d(5).
    Pam,
    /// sshd_config(5) "MaxSessions".
    MaxSessions,
    /// sshd_config(5) "ChrootDirectory".
    ChrootDirectory,
    /// sshd_config(5) "ForceCommand".
    ForceCommand,
}

/// What one rule says: nothing, a warning, or a refusal.
type Judged = Result<Option<Warning>, Finding>;

impl Rule {
    /// Every rule, in the order in which sshd comes to them.
    pub const ALL: &'static [Self] = &[
        Self::Shell,
        Self::LockedAccount,
        Self::DenyUsers,
        Self::AllowUsers,
        Self::DenyGroups,
        Self::AllowGroups,
        Self::RefuseConnection,
        Self::PubkeyAuthentication,
        Self::PubkeyAcceptedAlgorithms,
        Self::RequiredRSASize,
        Self::RevokedKeys,
        Self::AuthorizedKeysFile,
        Self::StrictModes,
        Self::PermitRootLogin,
        Self::AuthenticationMethods,
        Self::ExpiredAccount,
        Self::ForcedPasswordChange,
        Self::Nologin,
        Self::Pam,
        Self::MaxSessions,
        Self::ChrootDirectory,
        Self::ForceCommand,
    ];

    /// Its name: the keyword of sshd_config(5), or what it is about.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shell => "Shell",
            Self::LockedAccount => "Locked account",
            Self::DenyUsers => "DenyUsers",
            Self::AllowUsers => "AllowUsers",
            Self::DenyGroups => "DenyGroups",
            Self::AllowGroups => "AllowGroups",
            Self::RefuseConnection => "RefuseConnection",
            Self::PubkeyAuthentication => "PubkeyAuthentication",
            Self::PubkeyAcceptedAlgorithms => "PubkeyAcceptedAlgorithms",
            Self::RequiredRSASize => "RequiredRSASize",
            Self::RevokedKeys => "RevokedKeys",
            Self::AuthorizedKeysFile => "AuthorizedKeysFile",
            Self::StrictModes => "StrictModes",
            Self::PermitRootLogin => "PermitRootLogin",
            Self::AuthenticationMethods => "AuthenticationMethods",
            Self::ExpiredAccount => "Expired account",
            Self::ForcedPasswordChange => "Forced password change",
            Self::Nologin => "nologin",
            Self::Pam => "PAM",
            Self::MaxSessions => "MaxSessions",
            Self::ChrootDirectory => "ChrootDirectory",
            Self::ForceCommand => "ForceCommand",
        }
    }

    /// Whether sshd says that it accepts a key although this rule refuses the login: only where a session is to
    /// begin is it asked.
    pub fn comes_after_the_key(self, effective: &Effective) -> bool {
        match self {
            Self::PermitRootLogin
            | Self::AuthenticationMethods
            | Self::ForcedPasswordChange
            | Self::Nologin
            | Self::Pam
            | Self::MaxSessions
            | Self::ChrootDirectory
            | Self::ForceCommand => true,
            // Without PAM sshd asks it of every user who comes.
            Self::ExpiredAccount => effective.is_yes("usepam"),
            Self::Shell
            | Self::LockedAccount
            | Self::DenyUsers
            | Self::AllowUsers
            | Self::DenyGroups
            | Self::AllowGroups
            | Self::RefuseConnection
            | Self::PubkeyAuthentication
            | Self::PubkeyAcceptedAlgorithms
            | Self::RequiredRSASize
            | Self::RevokedKeys
            | Self::AuthorizedKeysFile
            | Self::StrictModes => false,
        }
    }

    fn judge(self, facts: &Facts<'_>) -> Judged {
        match self {
            Self::Shell => account::shell(facts),
            Self::LockedAccount => account::locked(facts),
            Self::DenyUsers => access::deny_users(facts),
            Self::AllowUsers => access::allow_users(facts),
            Self::DenyGroups => access::deny_groups(facts),
            Self::AllowGroups => access::allow_groups(facts),
            Self::RefuseConnection => session::refuse_connection(facts),
            Self::PubkeyAuthentication => pubkey_authentication(facts),
            Self::PubkeyAcceptedAlgorithms => key::accepted_algorithms(facts),
            Self::RequiredRSASize => key::required_rsa_size(facts),
            Self::RevokedKeys => key::revoked_keys(facts),
            Self::AuthorizedKeysFile => key_file::authorized_keys_file(facts),
            Self::StrictModes => key_file::strict_modes(facts),
            Self::PermitRootLogin => permit_root_login(facts),
            Self::AuthenticationMethods => authentication_methods(facts),
            Self::ExpiredAccount => account::expired(facts),
            Self::ForcedPasswordChange => account::forced_change(facts),
            Self::Nologin => account::nologin(facts),
            Self::Pam => account::pam(facts),
            Self::MaxSessions => session::max_sessions(facts),
            Self::ChrootDirectory => session::chroot_directory(facts),
            Self::ForceCommand => session::force_command(facts),
        }
    }
}

/// A rule by which sshd would refuse the key (contract 6: rule, file, line and remedy).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// Rule, cause, place and remedy, in one line for a person.
    pub message: String,
    /// The file that decides: of sshd's configuration or, for owners and modes, the one they are wrong of.
    pub file: Option<PathBuf>,
    /// The line in it, from 1.
    pub line: Option<usize>,
}

/// What is known when the guard is asked.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The target user.
    pub account: &'a Account,
    /// The key he is to get in with.
    pub key: &'a PublicKey,
    /// His key file as it stands; what is missing will be created right.
    pub key_file: &'a KeyFile,
    /// His account beside sshd's settings.
    pub login: &'a Login,
    /// What sshd says of the candidate configuration, for `connection`.
    pub effective: &'a Effective,
    /// For whom it says so.
    pub connection: &'a Connection,
    /// The configuration as text and the options of sshd's command line, to name what decides.
    pub reading: &'a Reading,
}

/// What the guard says: no refusals, no lockout.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Every rule by which the key would be refused, in sshd's own order.
    pub refusals: Vec<Finding>,
    /// What the owner should know although the key is let in.
    pub warnings: Vec<Warning>,
}

/// Whether sshd would let the user in with this key in his file, by every rule (contract 6, "Lockout guard").
pub fn judge(facts: &Facts<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    for rule in Rule::ALL {
        match rule.judge(facts) {
            Ok(warning) => verdict.warnings.extend(warning),
            Err(finding) => verdict.refusals.push(finding),
        }
    }
    verdict
}

/// Whether what sshd says is the same but for passwords, so that a verdict by the one stands by the other.
pub fn says_the_same(one: &Effective, other: &Effective) -> bool {
    one.is_same_but_for(
        other,
        &["passwordauthentication", "kbdinteractiveauthentication", "challengeresponseauthentication"],
    )
}

/// Whether a password would still let this user in, as far as sshd's settings go: by the password method, or
/// by keyboard-interactive where PAM asks for it there; root where PermitRootLogin is `yes`. Who may come at
/// all (Allow*, Deny*) and whether the account has a password are other questions.
pub fn password_would_let_in(effective: &Effective, account: &Account) -> bool {
    let by_password = effective.password_authentication() && effective.method_suffices("password");
    let pam_asks = effective.is_yes("usepam") && effective.kbd_interactive_authentication();
    let by_dialogue = pam_asks
        && ["keyboard-interactive", "keyboard-interactive:pam"]
            .iter()
            .any(|method| effective.method_suffices(method));
    let may_be_root = account.uid != 0 || effective.is_yes("permitrootlogin");
    (by_password || by_dialogue) && may_be_root
}

fn pubkey_authentication(facts: &Facts<'_>) -> Judged {
    if facts.effective.is_yes("pubkeyauthentication") {
        return Ok(None);
    }
    let cause = "sshd takes no keys";
    Err(facts.by_value(Rule::PubkeyAuthentication, "no", cause, "set `PubkeyAuthentication yes` there"))
}

fn authentication_methods(facts: &Facts<'_>) -> Judged {
    if facts.effective.method_suffices("publickey") {
        return Ok(None);
    }
    let lists = facts.effective.words("authenticationmethods").join(" ");
    let cause = format!("`{lists}` asks for more than one key");
    let remedy = "add a list that is `publickey` alone, or remove the line";
    Err(facts.by_value(Rule::AuthenticationMethods, &lists, &cause, remedy))
}

fn permit_root_login(facts: &Facts<'_>) -> Judged {
    let said = facts.effective.value("permitrootlogin");
    if facts.account.uid != 0 || matches!(said, "yes" | "prohibit-password" | "without-password") {
        return Ok(None);
    }
    let cause = format!("`{said}` keeps {} out even with a key", facts.account.name);
    let remedy = "set `PermitRootLogin prohibit-password` there";
    Err(facts.by_value(Rule::PermitRootLogin, said, &cause, remedy))
}

impl Facts<'_> {
    /// A finding about a keyword that has one value.
    fn by_value(&self, rule: Rule, observed: &str, cause: &str, remedy: &str) -> Finding {
        let groups = Some(self.account.groups.as_slice());
        let decides = self.reading.explain(rule.name(), observed, self.connection, groups);
        finding(rule, &decides, cause, remedy)
    }
}

/// A finding that names what decides.
fn finding(rule: Rule, decides: &Decider, cause: &str, remedy: &str) -> Finding {
    let name = rule.name();
    Finding {
        rule,
        message: format!("{name}: {cause}, because of {}; {remedy}", decides.describe(name)),
        file: decides.file().map(ToOwned::to_owned),
        line: decides.line(),
    }
}
