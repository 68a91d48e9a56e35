//! Whether sshd's configuration distinguishes connections by their addresses, so that a login may depend on its
//! source.

use super::sshd_config::{ParsedConfig, Scope, parse_criteria_pairs};

/// Whether some rule of the configuration names addresses, hosts or ports.
pub fn depends_on_address(reading: &ParsedConfig) -> bool {
    let is_about_users =
        |name: &str| ["user", "group", "all"].iter().any(|other| name.eq_ignore_ascii_case(other));
    reading.directives().iter().any(|directive| match (directive.keyword.as_str(), &directive.scope) {
        ("match", Scope::Match { criteria, .. }) => {
            parse_criteria_pairs(criteria).iter().any(|(name, _)| !is_about_users(name))
        }
        ("allowusers" | "denyusers", _) => directive.arguments.iter().any(|argument| argument.contains('@')),
        _ => false,
    }) || reading.has_source_limit_option()
}
