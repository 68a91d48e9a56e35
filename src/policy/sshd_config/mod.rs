//! sshd's configuration as text: what it says and where, what ours shall say and where it goes
//! (KP-6.11 and KP-6.12). What it amounts to is sshd's own to say (`sshd -T`).

mod criteria;
mod decider;
#[cfg(test)]
pub(crate) mod fixture;
mod include;
mod keyword;
mod options;
mod placement;
mod reader;
mod setting;
mod text;
mod tokens;

pub use criteria::{matches_connection, parse_criteria_pairs};
pub use decider::{ConfigSource, KbdNames, ParsedConfig, ResolvedValue};
pub use include::{
    SSH_DIR, has_relative_include, parse_commented_include_patterns, parse_include_patterns,
    parse_include_patterns_in, parse_rule_hosts,
};
pub use keyword::{KNOWN_KEYWORDS, Keyword, Multiplicity, canonical_spelling};
pub use placement::{
    Place, Placement, choose_placement, find_overridden_directives, is_managed_drop_in, is_place_first,
    is_place_read, managed_places,
};
pub use reader::{Directive, Scope, read_directives};
pub use setting::{KbdInteractive, check_password_auth, desired_directives, forbids_passwords_globally};
pub use text::{
    COMMENT_PREFIX, Provenance, find_managed_in_drop_in, find_managed_in_main, has_block_form,
    has_only_managed_lines, is_managed_line, parse_managed_directives, render_block, render_drop_in,
    starts_with_managed_directive,
};

use keyword::is_same_option;

/// The name of our drop-in (KP-6.12).
pub const DROP_IN_NAME: &str = "00-keypair-agent.conf";

/// The keyword we set above all, as sshd_config(5) spells it.
pub const PASSWORD_AUTHENTICATION: &str = "PasswordAuthentication";
const KBD_INTERACTIVE: &str = "KbdInteractiveAuthentication";
const CHALLENGE_RESPONSE: &str = "ChallengeResponseAuthentication";

/// Whether a keyword is one of those that we set, under any of its names.
fn is_managed_keyword(keyword: &str) -> bool {
    is_same_option(keyword, PASSWORD_AUTHENTICATION) || is_same_option(keyword, KBD_INTERACTIVE)
}
