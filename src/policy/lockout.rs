//! The lockout guard: rules for what may refuse a login after sshd has accepted the key. The agent applies them to
//! the facts before it turns passwords off (KP-6.19 and KP-6.20). The trial asks a private sshd whether it accepts
//! the key.

mod account;
mod session;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use super::effective::EffectiveConfig;
use super::observation::{Account, Connection, Login};
use super::outcome::Warning;
use super::sshd_config::{ConfigSource, ParsedConfig};

pub use super::key_paths::resolve_authorized_keys_path;
pub(crate) use account::is_nologin_shell;

/// The result of one rule: nothing, a warning, or a refusal.
type RuleResult = Result<Option<Warning>, GuardFinding>;

/// Defines the table of the guard's rules. The code does not compile unless each rule has a variant, a name and a
/// function.
macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident, $name:literal, $judge:path;)*) => {
        /// A rule about a login after sshd has accepted the key. The agent queries a private sshd about everything
        /// before that (KP-10.2).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Rule {
            $($(#[$doc])* $variant,)*
        }

        impl Rule {
            /// Every rule, in the order in which a login reaches them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The rule's name: the keyword of sshd_config(5), or its subject.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            fn judge(self, facts: &GuardInputs<'_>) -> RuleResult {
                match self {
                    $(Self::$variant => $judge(facts),)*
                }
            }
        }
    };
}

rules! {
    /// sshd_config(5) "PermitRootLogin", for uid 0.
    PermitRootLogin, "PermitRootLogin", check_permit_root_login;
    /// A list of methods that one key alone satisfies: sshd_config(5) "AuthenticationMethods".
    AuthenticationMethods, "AuthenticationMethods", check_authentication_methods;
    /// The expiry date of the account, if PAM checks it: shadow(5).
    ExpiredAccount, "Expired account", account::check_account_expiry;
    /// A missing entry in shadow(5) although passwd(5) refers to one: shadow(5), pam_unix(8).
    ShadowEntry, "Shadow entry", account::check_shadow_entry;
    /// A password that the user must change first: shadow(5), pam_unix(8).
    ForcedPasswordChange, "Forced password change", account::check_forced_password_change;
    /// nologin(5).
    Nologin, "nologin", account::check_nologin_file;
    /// PAM rules that the agent does not evaluate: pam.d(5).
    Pam, "PAM", account::check_pam;
    /// A shell that allows no login.
    Shell, "Shell", account::check_shell;
    /// sshd_config(5) "MaxSessions".
    MaxSessions, "MaxSessions", session::check_max_sessions;
    /// sshd_config(5) "ChrootDirectory".
    ChrootDirectory, "ChrootDirectory", session::check_chroot_directory;
    /// sshd_config(5) "ForceCommand".
    ForceCommand, "ForceCommand", session::check_force_command;
}

/// Why a login would be refused (KP-6.19: rule, file, line and remedy).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardFinding {
    /// The rule: a keyword of sshd_config(5), or its subject.
    pub name: &'static str,
    /// Rule, cause, place and remedy, in one line for a person.
    pub message: String,
    /// The file that decides: a file of sshd's configuration, or the file whose owner or mode is wrong.
    pub file: Option<PathBuf>,
    /// The line in the file, from 1.
    pub line: Option<usize>,
}

/// The inputs of the guard.
#[derive(Debug, Clone, Copy)]
pub struct GuardInputs<'a> {
    /// The target user.
    pub account: &'a Account,
    /// The account's facts besides sshd's settings.
    pub login: &'a Login,
    /// sshd's answer for the candidate configuration and `connection`.
    pub effective: &'a EffectiveConfig,
    /// The connection of that answer.
    pub connection: &'a Connection,
    /// The configuration as text and the options of sshd's command line. The guard uses them to name the line that
    /// decides.
    pub reading: &'a ParsedConfig,
}

/// The result of the guard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuardReport {
    /// Why the login would be refused, in the order in which a login reaches the rules.
    pub refusals: Vec<GuardFinding>,
    /// Warnings for the owner although the key allows a login.
    pub warnings: Vec<Warning>,
}

/// Applies every rule and reports what would refuse a login with a key that sshd accepts.
pub fn evaluate_guard(facts: &GuardInputs<'_>) -> GuardReport {
    let mut verdict = GuardReport::default();
    for rule in Rule::ALL {
        match rule.judge(facts) {
            Ok(warning) => verdict.warnings.extend(warning),
            Err(finding) => verdict.refusals.push(finding),
        }
    }
    verdict
}

/// Whether two answers of sshd are equal except for passwords, so that a result for one also holds for the other.
pub fn is_same_except_passwords(one: &EffectiveConfig, other: &EffectiveConfig) -> bool {
    one.is_equal_except(
        other,
        &["passwordauthentication", "kbdinteractiveauthentication", "challengeresponseauthentication"],
    )
}

fn check_authentication_methods(facts: &GuardInputs<'_>) -> RuleResult {
    if facts.effective.method_suffices("publickey") {
        return Ok(None);
    }
    let lists = facts.effective.words("authenticationmethods").join(" ");
    let cause = format!("`{lists}` asks for more than one key");
    let remedy = "add a list that is `publickey` alone, or remove the line";
    Err(facts.finding_for_value(Rule::AuthenticationMethods, &lists, &cause, remedy))
}

fn check_permit_root_login(facts: &GuardInputs<'_>) -> RuleResult {
    let said = facts.effective.value("permitrootlogin");
    if facts.account.uid != 0
        || matches!(said.to_ascii_lowercase().as_str(), "yes" | "prohibit-password" | "without-password")
    {
        return Ok(None);
    }
    let cause = format!("`{said}` keeps {} out even with a key", facts.account.name);
    let remedy = "set `PermitRootLogin prohibit-password` there";
    Err(facts.finding_for_value(Rule::PermitRootLogin, said, &cause, remedy))
}

impl GuardInputs<'_> {
    /// A finding about a keyword that has one value.
    fn finding_for_value(&self, rule: Rule, observed: &str, cause: &str, remedy: &str) -> GuardFinding {
        let groups = Some(self.account.groups.as_slice());
        let decides = self.reading.find_value_source(rule.name(), observed, self.connection, groups);
        guard_finding(rule, &decides, cause, remedy)
    }
}

/// A finding that names the line or option that decides.
fn guard_finding(rule: Rule, decides: &ConfigSource, cause: &str, remedy: &str) -> GuardFinding {
    let name = rule.name();
    GuardFinding {
        name,
        message: format!("{name}: {cause}, because of {}; {remedy}", decides.describe(name)),
        file: decides.file().map(ToOwned::to_owned),
        line: decides.line(),
    }
}
