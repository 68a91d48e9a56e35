//! Decides which connections a `Match` line picks: sshd_config(5) "Match".

use crate::policy::observation::Connection;
use crate::policy::pattern::{
    ListMatch, match_address_list, match_host_list, match_pattern_list, matches_group_list,
};

/// Returns whether the criteria of a `Match` line hold for this connection. Returns `None` if that depends on
/// something unknown: a criterion of a newer sshd, or groups that were not looked up.
pub fn matches_connection(
    criteria: &[String],
    connection: &Connection,
    groups: Option<&[String]>,
) -> Option<bool> {
    let mut known = true;
    for (name, patterns) in parse_criteria_pairs(criteria) {
        match criterion_matches(&name.to_ascii_lowercase(), patterns?, connection, groups) {
            Some(true) => {}
            Some(false) => return Some(false),
            None => known = false,
        }
    }
    known.then_some(true)
}

/// Returns the criteria, each with its patterns, without `all`. If the last criterion has no patterns, the line has an
/// error and its second value is `None`.
pub fn parse_criteria_pairs(criteria: &[String]) -> Vec<(&str, Option<&str>)> {
    let mut words = split_criteria(criteria).into_iter();
    let mut pairs = Vec::new();
    while let Some(name) = words.next() {
        if !name.eq_ignore_ascii_case("all") {
            pairs.push((name, words.next()));
        }
    }
    pairs
}

fn criterion_matches(
    name: &str,
    patterns: &str,
    connection: &Connection,
    groups: Option<&[String]>,
) -> Option<bool> {
    let is_listed = |said: ListMatch| Some(said == ListMatch::Yes);
    match name {
        "user" => is_listed(match_pattern_list(&connection.user, patterns)),
        "host" => is_listed(match_host_list(&connection.host, patterns)),
        "address" => is_listed(match_address_list(connection.addr, patterns).unwrap_or(ListMatch::No)),
        "localaddress" => is_listed(match_address_list(connection.laddr, patterns).unwrap_or(ListMatch::No)),
        "localport" => Some(patterns.parse() == Ok(connection.lport)),
        "group" => Some(matches_group_list(groups?, patterns)),
        _ => None,
    }
}

/// Splits at equals signs: `name=patterns` and `name = patterns` mean `name patterns`.
fn split_criteria(criteria: &[String]) -> Vec<&str> {
    criteria.iter().flat_map(|word| word.splitn(2, '=')).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::connection::default_neutral_connection;

    #[test]
    fn match_criteria_select_connection() {
        let connection = default_neutral_connection("root");
        let groups = ["root".to_owned(), "wheel".to_owned()];
        for (criteria, said) in [
            ("all", Some(true)),
            ("User root", Some(true)),
            ("user=root", Some(true)),
            ("User = root", Some(true)),
            ("User bob", Some(false)),
            ("User *,!root", Some(false)),
            ("Address 192.0.2.0/24", Some(true)),
            ("Address *,!127.0.0.1", Some(true)),
            ("Address 10.0.0.1/8", Some(false)),
            ("Host 192.0.*", Some(true)),
            ("LocalAddress 192.0.2.2", Some(true)),
            ("LocalPort 2222", Some(false)),
            ("LocalPort 22", Some(true)),
            ("Group wheel", Some(true)),
            ("Group *,!wheel", Some(false)),
            ("User root Address 10.0.0.0/8", Some(false)),
            ("RDomain x", None),
            ("RDomain x User bob", Some(false)),
            ("User", None),
        ] {
            let words: Vec<String> = criteria.split(' ').map(str::to_owned).collect();
            assert_eq!(matches_connection(&words, &connection, Some(&groups)), said, "{criteria}");
        }
        assert_eq!(matches_connection(&["Group".into(), "x".into()], &connection, None), None);
    }
}
