//! From where a login may depend on: whether sshd's configuration tells connections apart by their addresses.

use std::path::PathBuf;

use super::observation::{Answer, Connection};
use super::sshd_config::{Reading, Scope, criteria_pairs};
use super::witness::Witness;

/// Whether some rule of the configuration names addresses, hosts or ports.
pub fn depends_on_address(reading: &Reading) -> bool {
    let is_about_users =
        |name: &str| ["user", "group", "all"].iter().any(|other| name.eq_ignore_ascii_case(other));
    reading.directives().iter().any(|directive| match (directive.keyword.as_str(), &directive.scope) {
        ("match", Scope::Match { criteria, .. }) => {
            criteria_pairs(criteria).iter().any(|(name, _)| !is_about_users(name))
        }
        ("allowusers" | "denyusers", _) => directive.arguments.iter().any(|argument| argument.contains('@')),
        _ => false,
    }) || reading.option_names_source()
}

/// A `Match` block about addresses by which the target user's login differs.
pub struct LimitingBlock {
    /// What `sshd -T` says there.
    pub answer: Answer,
    /// The file of the block.
    pub file: PathBuf,
    /// Its line, from 1.
    pub line: usize,
}

/// Placeholder.
pub fn sources(_reading: &Reading, _refused: &Connection, _user: &str) -> Vec<Connection> {
    Vec::new()
}

/// Placeholder.
pub fn limiting(
    _reading: &Reading,
    _first: &Answer,
    _witnesses: &[(Witness, Answer)],
    _user: &str,
) -> Vec<LimitingBlock> {
    Vec::new()
}
