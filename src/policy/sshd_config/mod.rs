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

pub use criteria::{applies, criteria_pairs};
pub use decider::{Decider, Decision, Names, Reading};
pub use include::{
    SSH_DIR, former_include_patterns, has_relative_include, include_patterns, include_patterns_in,
    named_hosts,
};
pub use keyword::{Counts, KNOWN, Keyword, spelling};
pub use placement::{Place, Placement, contrary_lines, is_drop_in, is_first, is_read, placement, taken};
pub use reader::{Directive, Scope, directives};
pub use setting::{KbdInteractive, desired, forbids_all, judge_setting};
pub use text::{
    COMMENT, Provenance, directives_of_ours, is_in_form_of_block, is_our_line_in_block, is_ours_alone,
    ours_comes_first, ours_in_drop_in, ours_in_main, render, render_block,
};

use keyword::is_same_option;

/// The name of our drop-in (KP-6.12).
pub const DROP_IN: &str = "00-keypair-agent.conf";

/// The keyword we set above all, as sshd_config(5) spells it.
pub const PASSWORD: &str = "PasswordAuthentication";
const KBD_INTERACTIVE: &str = "KbdInteractiveAuthentication";
const CHALLENGE_RESPONSE: &str = "ChallengeResponseAuthentication";

/// Whether a keyword is one of those that we set, under any of its names.
fn is_set_by_us(keyword: &str) -> bool {
    is_same_option(keyword, PASSWORD) || is_same_option(keyword, KBD_INTERACTIVE)
}
