//! sshd's configuration as text: what it says and where, what ours shall say and where it goes
//! (contract 6, "What is set" and "Where"). What it amounts to is sshd's own to say (`sshd -T`).

mod criteria;
mod decider;
#[cfg(test)]
pub(crate) mod fixture;
mod include;
mod placement;
mod reader;
mod setting;
mod text;
mod tokens;

pub use criteria::applies;
pub use decider::{Decider, decider, match_scoped, options_setting, winner};
pub use include::{include_patterns, named_hosts};
pub use placement::{Place, Placement, contrary_lines, placement, taken};
pub use reader::{Directive, Scope, directives};
pub use setting::{KbdInteractive, desired, judge_setting};
pub use text::{COMMENT, Provenance, directives_of_ours, is_our_line_in_block, render, render_block};

/// The name of our drop-in (contract 6, "Where").
pub const DROP_IN: &str = "00-keypair-agent.conf";

/// The keywords we set, as sshd_config(5) spells them.
const PASSWORD: &str = "PasswordAuthentication";
const KBD_INTERACTIVE: &str = "KbdInteractiveAuthentication";
const CHALLENGE_RESPONSE: &str = "ChallengeResponseAuthentication";

/// The option a keyword stands for, in lower case: since OpenSSH 8.7 the names of keyboard-interactive are
/// one option, and before it either name turned the method on.
fn option_of(keyword: &str) -> String {
    let keyword = keyword.to_ascii_lowercase();
    match keyword.as_str() {
        "challengeresponseauthentication" | "skeyauthentication" => KBD_INTERACTIVE.to_ascii_lowercase(),
        "dsaauthentication" => "pubkeyauthentication".to_owned(),
        _ => keyword,
    }
}

/// Whether two keywords are names of one option.
fn is_same_option(one: &str, other: &str) -> bool {
    option_of(one) == option_of(other)
}

/// Whether a keyword is one of those that we set, under any of its names.
fn is_set_by_us(keyword: &str) -> bool {
    is_same_option(keyword, PASSWORD) || is_same_option(keyword, KBD_INTERACTIVE)
}

/// A keyword as sshd_config(5) spells it, where it is one we speak of.
pub fn spelling(keyword: &str) -> &str {
    const KNOWN: &[&str] = &[
        PASSWORD,
        KBD_INTERACTIVE,
        CHALLENGE_RESPONSE,
        "AllowGroups",
        "AllowUsers",
        "AuthenticationMethods",
        "AuthorizedKeysFile",
        "DenyGroups",
        "DenyUsers",
        "PermitRootLogin",
        "PubkeyAuthentication",
        "StrictModes",
        "UsePAM",
    ];
    KNOWN.iter().find(|known| known.eq_ignore_ascii_case(keyword)).copied().unwrap_or(keyword)
}
