//! The lockout guard: what refuses a login after sshd has accepted the key, judged from facts before passwords go off
//! (KP-6.19 and KP-6.20). Whether sshd accepts the key, a private sshd is asked: the trial.

mod account;
mod session;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use super::effective::Effective;
use super::observation::{Account, Connection, Login};
use super::outcome::Warning;
use super::sshd_config::{Decider, Reading};

pub use super::key_paths::authorized_keys_path;
pub(crate) use account::is_closed;

/// What one rule says: nothing, a warning, or a refusal.
type Judged = Result<Option<Warning>, Finding>;

/// Makes the table of the guard's rules: a rule has a variant, a name and a function, or it does not compile.
macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident, $name:literal, $judge:path;)*) => {
        /// What decides about a login after sshd has accepted the key. What sshd decides before that, a private sshd
        /// is asked (KP-10.2).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Rule {
            $($(#[$doc])* $variant,)*
        }

        impl Rule {
            /// Every rule, in the order in which a login meets them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name: the keyword of sshd_config(5), or what it is about.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            fn judge(self, facts: &Facts<'_>) -> Judged {
                match self {
                    $(Self::$variant => $judge(facts),)*
                }
            }
        }
    };
}

rules! {
    /// sshd_config(5) "PermitRootLogin", for uid 0.
    PermitRootLogin, "PermitRootLogin", permit_root_login;
    /// A list that one key alone satisfies: sshd_config(5) "AuthenticationMethods".
    AuthenticationMethods, "AuthenticationMethods", authentication_methods;
    /// The account's end, where PAM asks for it: shadow(5).
    ExpiredAccount, "Expired account", account::expired;
    /// An entry where passwd(5) says that there is one: shadow(5), pam_unix(8).
    ShadowEntry, "Shadow entry", account::no_shadow_entry;
    /// A password that has to be changed first: shadow(5), pam_unix(8).
    ForcedPasswordChange, "Forced password change", account::forced_change;
    /// nologin(5).
    Nologin, "nologin", account::nologin;
    /// Rules of PAM that are not evaluated: pam.d(5).
    Pam, "PAM", account::pam;
    /// A shell that lets nobody in.
    Shell, "Shell", account::shell;
    /// sshd_config(5) "MaxSessions".
    MaxSessions, "MaxSessions", session::max_sessions;
    /// sshd_config(5) "ChrootDirectory".
    ChrootDirectory, "ChrootDirectory", session::chroot_directory;
    /// sshd_config(5) "ForceCommand".
    ForceCommand, "ForceCommand", session::force_command;
}

/// Why a login would be refused (KP-6.19: rule, file, line and remedy).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule: a keyword of sshd_config(5), or what it is about.
    pub name: &'static str,
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
    /// His account beside sshd's settings.
    pub login: &'a Login,
    /// What sshd says of the candidate configuration, for `connection`.
    pub effective: &'a Effective,
    /// For whom it says so.
    pub connection: &'a Connection,
    /// The configuration as text and the options of sshd's command line, to name what decides.
    pub reading: &'a Reading,
}

/// What the guard says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Why the login would be refused, in the order in which it meets the rules.
    pub refusals: Vec<Finding>,
    /// What the owner should know although the key is let in.
    pub warnings: Vec<Warning>,
}

/// What would refuse a login with a key that sshd accepts, by every rule.
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
    if facts.account.uid != 0
        || matches!(said.to_ascii_lowercase().as_str(), "yes" | "prohibit-password" | "without-password")
    {
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
        name,
        message: format!("{name}: {cause}, because of {}; {remedy}", decides.describe(name)),
        file: decides.file().map(ToOwned::to_owned),
        line: decides.line(),
    }
}
