//! Whom a `Match` line picks: sshd_config(5) "Match".

use crate::policy::observation::Connection;
use crate::policy::pattern::{Listed, listed, listed_address, listed_host, lists_group};

/// Whether the criteria of a `Match` line hold for this connection; `None` where that depends on what is
/// not known here (a criterion of a newer sshd, groups that were not looked up).
pub fn applies(criteria: &[String], connection: &Connection, groups: Option<&[String]>) -> Option<bool> {
    let mut known = true;
    for (name, patterns) in criteria_pairs(criteria) {
        match holds(&name.to_ascii_lowercase(), patterns?, connection, groups) {
            Some(true) => {}
            Some(false) => return Some(false),
            None => known = false,
        }
    }
    known.then_some(true)
}

/// The criteria, each with its patterns; `all` is left out. A last one without patterns is a mistake of its writer.
pub fn criteria_pairs(criteria: &[String]) -> Vec<(&str, Option<&str>)> {
    let mut words = words(criteria).into_iter();
    let mut pairs = Vec::new();
    while let Some(name) = words.next() {
        if !name.eq_ignore_ascii_case("all") {
            pairs.push((name, words.next()));
        }
    }
    pairs
}

fn holds(name: &str, patterns: &str, connection: &Connection, groups: Option<&[String]>) -> Option<bool> {
    let is = |said: Listed| Some(said == Listed::Yes);
    match name {
        "user" => is(listed(&connection.user, patterns)),
        "host" => is(listed_host(&connection.host, patterns)),
        "address" => is(listed_address(connection.addr, patterns).unwrap_or(Listed::No)),
        "localaddress" => is(listed_address(connection.laddr, patterns).unwrap_or(Listed::No)),
        "localport" => Some(patterns.parse() == Ok(connection.lport)),
        "group" => Some(lists_group(groups?, patterns)),
        _ => None,
    }
}

/// `name=patterns` and `name = patterns` are `name patterns`.
fn words(criteria: &[String]) -> Vec<&str> {
    criteria.iter().flat_map(|word| word.splitn(2, '=')).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::connection::anybody;

    #[test]
    fn whom_a_match_line_picks() {
        let connection = anybody("root");
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
            assert_eq!(applies(&words, &connection, Some(&groups)), said, "{criteria}");
        }
        assert_eq!(applies(&["Group".into(), "x".into()], &connection, None), None);
    }
}
