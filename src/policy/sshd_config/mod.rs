//! sshd's configuration as text: which directive stands at which place, which directives the agent needs, and where
//! the agent writes them (KP-6.11 and KP-6.12). Only sshd itself decides what the configuration does (`sshd -T`).

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

/// The file name of the agent's drop-in (KP-6.12).
pub const DROP_IN_NAME: &str = "00-keypair-agent.conf";

/// The most important keyword that the agent sets, as sshd_config(5) spells it.
pub const PASSWORD_AUTHENTICATION: &str = "PasswordAuthentication";
const KBD_INTERACTIVE: &str = "KbdInteractiveAuthentication";
const CHALLENGE_RESPONSE: &str = "ChallengeResponseAuthentication";

/// Returns true if the agent sets this keyword, under any of its names.
fn is_managed_keyword(keyword: &str) -> bool {
    is_same_option(keyword, PASSWORD_AUTHENTICATION) || is_same_option(keyword, KBD_INTERACTIVE)
}
