//! For whom else sshd is asked (contract 6, "For whom"): one witness for each `Match` block, so that nobody who may
//! still use a password goes unnamed.

use std::net::IpAddr;

use super::connection::listening_ports;
use super::effective::Effective;
use super::observation::{Account, Answer, Connection, Login, Person};
use super::outcome::{Warning, WarningReason};
use super::pattern::{Listed, listed, listed_address, listed_host, lists_group, matches, user};
use super::sshd_config::{KbdInteractive, Reading, Scope, applies, criteria_pairs};

/// The most `Match` blocks that get a witness each.
const MOST: usize = 64;

/// A connection that some `Match` block picks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The connection.
    pub connection: Connection,
    /// The groups of its user.
    pub groups: Vec<String>,
    /// The block's own words; `None` for loopback.
    pub criteria: Option<String>,
    /// Whether the block is about this very user: else he stands for anybody.
    pub names_user: bool,
}

/// One witness for each `Match` block that picks some connection: a user, a group's member or an address it names,
/// the target user from nowhere in particular in all else. `base` is the first of the connections that must say
/// what was asked. A block that nobody here can meet (a group without members, another port) has none.
pub fn witnesses(
    reading: &Reading,
    base: &Connection,
    account: &Account,
    login: &Login,
    effective: &Effective,
) -> Vec<Witness> {
    let blocks = reading.directives().iter().filter(|directive| directive.keyword == "match");
    let mut found: Vec<Witness> = Vec::new();
    for block in blocks {
        let Scope::Match { criteria, .. } = &block.scope else { continue };
        let Some(witness) = witness(criteria, base, account, &login.people, effective) else { continue };
        let is_new = found.iter().all(|other| other.connection != witness.connection);
        if is_new && witness.connection != *base && found.len() < MOST {
            found.push(witness);
        }
    }
    found
}

/// A connection that meets every criterion.
fn witness(
    criteria: &[String],
    base: &Connection,
    account: &Account,
    people: &[Person],
    effective: &Effective,
) -> Option<Witness> {
    let pairs = criteria_pairs(criteria);
    let of = |names: &[&str]| -> Vec<&str> {
        let is_named = |name: &str| names.iter().any(|other| name.eq_ignore_ascii_case(other));
        pairs.iter().filter(|(name, _)| is_named(name)).filter_map(|(_, patterns)| *patterns).collect()
    };
    let (users, groups) = (of(&["user"]), of(&["group"]));
    let mut connection = base.clone();
    let names_user = !users.is_empty() || !groups.is_empty();
    let mut his_groups = account.groups.clone();
    if names_user {
        let is_meant = |name: &str, groups: &[String]| {
            users.iter().all(|patterns| listed(name, patterns) == Listed::Yes)
                && of(&["group"]).iter().all(|patterns| lists_group(groups, patterns))
        };
        // Somebody with a password, if there is one.
        let with = people.iter().filter(|person| person.has_password).chain(people);
        let accounts = with.map(|person| &person.account).chain([account]);
        match { accounts }.find(|person| is_meant(&person.name, &person.groups)) {
            Some(person) => {
                connection.user = person.name.clone();
                his_groups = person.groups.clone();
            }
            // No account of this name now; one may come.
            None => {
                let names = users.iter().flat_map(|patterns| patterns.split(',')).map(instance);
                connection.user = names.into_iter().find(|name| is_meant(name, &[]))?;
                his_groups = Vec::new();
            }
        }
    }
    // Without UseDNS a client's host is his address.
    let by_name = effective.is_yes("usedns");
    let addresses: Vec<&str> = match by_name {
        true => of(&["address"]),
        false => of(&["address", "host"]),
    };
    let fits = |addr: IpAddr| {
        of(&["address"]).iter().all(|patterns| listed_address(addr, patterns) == Ok(Listed::Yes))
            && (by_name || of(&["host"]).iter().all(|p| listed_host(&addr.to_string(), p) == Listed::Yes))
    };
    if !addresses.is_empty() && !fits(connection.addr) {
        connection.addr = address_in(&addresses, fits)?;
    }
    connection.host = connection.addr.to_string();
    if by_name && let [patterns, ..] = of(&["host"]).as_slice() {
        connection.host =
            patterns.split(',').map(instance).find(|h| listed_host(h, patterns) == Listed::Yes)?;
    }
    let local = of(&["localaddress"]);
    let is_local = |addr: IpAddr| local.iter().all(|p| listed_address(addr, p) == Ok(Listed::Yes));
    if !is_local(connection.laddr) {
        connection.laddr = address_in(&local, is_local)?;
    }
    if let [port, ..] = of(&["localport"]).as_slice() {
        connection.lport = port.parse().ok().filter(|port| listening_ports(effective).contains(port))?;
    }
    let criteria_hold = applies(criteria, &connection, Some(&his_groups)) == Some(true);
    let words = criteria.join(" ");
    criteria_hold.then_some(Witness { connection, groups: his_groups, criteria: Some(words), names_user })
}

/// A text that a pattern matches: `*` stands for nothing in particular, `?` for one letter.
fn instance(pattern: &str) -> String {
    let plain = pattern.replace('*', if pattern == "*" { "x" } else { "" }).replace('?', "x");
    if matches(&plain, pattern) { plain } else { String::new() }
}

/// An address that some entry of the lists means: itself, the first host of a network, a completed pattern.
fn address_in(lists: &[&str], fits: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let entries =
        lists.iter().flat_map(|patterns| patterns.split(',')).filter(|entry| !entry.starts_with('!'));
    entries.flat_map(candidates).find(|addr| fits(*addr))
}

fn candidates(entry: &str) -> Vec<IpAddr> {
    if let Ok(addr) = entry.parse() {
        return vec![addr];
    }
    if let Some((network, _)) = entry.split_once('/') {
        let Ok(network) = network.parse::<IpAddr>() else { return Vec::new() };
        // The first host, the next ones where a negated entry takes that away, and the network's own address.
        let host = |n: u8| match network {
            IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) | u32::from(n)).into()),
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) | u128::from(n)).into()),
        };
        return (1..=16).map(host).chain([network]).collect();
    }
    let completed = |fill: &&str| entry.replace('*', fill).replace('?', "1").parse().ok();
    ["1", "1.1", "1.1.1", "1.1.1.1", "::1", "1::1", ":1"].iter().filter_map(completed).collect()
}

/// MATCH_ALLOWS_PASSWORD for each witness who may still use a password, once for each line that lets him.
pub fn allowed(
    reading: &Reading,
    answers: &[(Witness, Answer)],
    people: &[Person],
    kbd: KbdInteractive,
) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = Vec::new();
    for (witness, answer) in answers {
        let Some(keyword) = may_use_password(witness, &answer.effective, people, kbd) else { continue };
        let who = &witness.connection;
        let by = reading.explain(keyword, "yes", who, Some(&witness.groups));
        let somebody = match witness.names_user {
            true => format!(
                "{} may still use a password (asked as from {}, port {})",
                who.user, who.addr, who.lport
            ),
            false => {
                format!("whoever comes from {} (to port {}) may still use a password", who.addr, who.lport)
            }
        };
        let remedy = match &witness.criteria {
            Some(criteria) => format!("if that is not meant, take it out of the block `Match {criteria}`"),
            None => "if that is not meant, take it out of its Match block".to_owned(),
        };
        let message = format!("{somebody}, because of {}; {remedy}", by.describe(keyword));
        let warning = by.place(Warning::new(WarningReason::MatchAllowsPassword, message));
        let is_new = |other: &Warning| (&other.file, other.line) != (&warning.file, warning.line);
        if warnings.iter().all(is_new) {
            warnings.push(warning);
        }
    }
    warnings
}

/// Whether the four lists let this very connection come: sshd's `allowed_user`.
pub fn may_come(effective: &Effective, who: &Connection, groups: &[String]) -> bool {
    let named = |keyword| {
        let patterns = effective.values(keyword);
        let hits = patterns.iter().any(|pattern| user(&who.user, &who.host, who.addr, pattern) == Ok(true));
        (!patterns.is_empty(), hits)
    };
    let grouped = |keyword| {
        let patterns = effective.values(keyword);
        let hits = patterns.iter().any(|pattern| groups.iter().any(|group| matches(group, pattern)));
        (!patterns.is_empty(), hits)
    };
    let ((_, denied), (limited, allowed)) = (named("denyusers"), named("allowusers"));
    let ((_, group_denied), (group_limited, group_allowed)) = (grouped("denygroups"), grouped("allowgroups"));
    !denied && !group_denied && (allowed || !limited) && (group_allowed || !group_limited)
}

/// The keyword by which a password may still be used, by itself or beside something else.
fn may_use_password(
    witness: &Witness,
    effective: &Effective,
    people: &[Person],
    kbd: KbdInteractive,
) -> Option<&'static str> {
    let lists = effective.authentication_methods();
    let is_asked = |method: &str| {
        let is_it = |one: &&str| one.split(':').next() == Some(method);
        lists.is_empty() || lists.iter().flatten().any(is_it)
    };
    let by = if effective.password_authentication() && is_asked("password") {
        "PasswordAuthentication"
    } else if kbd == KbdInteractive::Follow
        && effective.is_yes("usepam")
        && effective.kbd_interactive_authentication()
        && is_asked("keyboard-interactive")
    {
        "KbdInteractiveAuthentication"
    } else {
        return None;
    };
    let who = &witness.connection;
    let person = people.iter().map(|person| &person.account).find(|account| account.name == who.user);
    let is_root = person.map_or(who.user == "root", |account| account.uid == 0);
    let is_let_in = !witness.names_user
        || (may_come(effective, who, &witness.groups) && (!is_root || effective.is_yes("permitrootlogin")));
    is_let_in.then_some(by)
}

#[cfg(test)]
#[path = "witness_tests.rs"]
mod tests;
