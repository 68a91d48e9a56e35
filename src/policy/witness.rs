//! The further connections for which the agent queries sshd (KP-6.8). There is one witness for each `Match` block, so
//! that the agent reports every user who may still log in with a password.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use super::connection::listening_ports;
use super::effective::EffectiveConfig;
use super::foreign::sanitize_text;
use super::lockout::{is_nologin_shell, is_same_except_passwords};
use super::observation::{Account, Connection, LocalAccount, Login, SshdAnswer};
use super::outcome::{Warning, WarningReason};
use super::pattern::{
    ListMatch, match_address_list, match_host_list, match_pattern_list, matches_group_list, matches_pattern,
    matches_source, matches_user_pattern,
};
use super::sshd_config::{
    ConfigSource, Directive, KbdInteractive, Keyword, ParsedConfig, Scope, matches_connection,
    parse_criteria_pairs,
};

/// The maximum number of `Match` blocks that get a witness each.
const MAX_MATCH_SAMPLES: usize = 64;

/// The maximum number of addresses to try for one source.
const MAX_SOURCES: usize = 6;

/// The criteria of a `Match` line that the agent knows.
const KNOWN_CRITERIA: [&str; 6] = ["user", "group", "host", "address", "localaddress", "localport"];

/// The criteria about the client's address or the address and port at which a connection arrives.
const SOURCE_CRITERIA: [&str; 4] = ["host", "address", "localaddress", "localport"];

/// The position of a `Match` line: its file and its line number from 1.
pub type MatchLine = (PathBuf, usize);

/// A connection that a `Match` block matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchSample {
    /// The connection.
    pub connection: Connection,
    /// The groups of the connection's user.
    pub groups: Vec<String>,
    /// The block's criteria as written. `None` for loopback.
    pub criteria: Option<String>,
    /// Whether the block names this very user. If not, the user stands for any user.
    pub names_user: bool,
    /// Whether the block names a source, or an address or port at which a connection arrives.
    pub names_source: bool,
    /// The block's `Match` line; `None` for loopback.
    pub place: Option<MatchLine>,
}

/// A `Match` block for which the agent found no sample connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsampledBlock {
    /// The block's criteria as written.
    pub criteria: String,
    /// The block's `Match` line.
    pub place: MatchLine,
    /// Why there is no sample connection.
    pub why: String,
}

/// The result of the search for a connection that a block matches.
enum SampleResult {
    Sample(Box<MatchSample>),
    /// No connection matches: the block needs an account, a group or an address that does not exist here.
    Nobody,
    /// The agent cannot determine whether a connection matches.
    Unknown(String),
}

/// Finds one witness for each `Match` block that matches some connection. The witness is a user, a group member or an
/// address that the block names. For everything else it is the target user from an address that no rule names. `base`
/// is the first of the connections that must have the requested setting.
///
/// A block that no connection here can match (a group without members, another port) has no witness. A block about a
/// source that also matches the target user has one more witness, for the target user.
/// The second part of the return value lists the blocks for which there is no sample connection although one may
/// match.
pub fn sample_match_blocks(
    reading: &ParsedConfig,
    base: &Connection,
    account: &Account,
    login: &Login,
    effective: &EffectiveConfig,
) -> (Vec<MatchSample>, Vec<UnsampledBlock>) {
    let blocks = reading.directives().iter().filter(|directive| directive.keyword == "match");
    let mut found: Vec<MatchSample> = Vec::new();
    let mut left: Vec<UnsampledBlock> = Vec::new();
    for block in blocks {
        let Scope::Match { criteria, file, line } = &block.scope else { continue };
        let place = (file.clone(), *line);
        let known: BTreeSet<String> = found.iter().map(|witness| witness.connection.user.clone()).collect();
        let who = CandidateUsers { account, people: &login.people, groups: &login.groups, known: &known };
        let met = find_match_sample(criteria, &place, base, &who, effective);
        let only_target = CandidateUsers { people: &[], ..who };
        let of_target = names_source(criteria)
            .then(|| find_match_sample(criteria, &place, base, &only_target, effective));
        if let SampleResult::Unknown(why) = &met {
            left.push(UnsampledBlock {
                criteria: criteria.join(" "),
                place: place.clone(),
                why: why.clone(),
            });
        }
        for met in [Some(met), of_target].into_iter().flatten() {
            let SampleResult::Sample(witness) = met else { continue };
            let is_new = found.iter().all(|other| other.connection != witness.connection);
            if !is_new || witness.connection == *base {
                continue;
            }
            if found.len() < MAX_MATCH_SAMPLES {
                found.push(*witness);
            } else if left.iter().all(|other| other.place != place) {
                let why = format!("there are more than {MAX_MATCH_SAMPLES} blocks");
                left.push(UnsampledBlock { criteria: criteria.join(" "), place: place.clone(), why });
            }
        }
    }
    (found, left)
}

fn names_source(criteria: &[String]) -> bool {
    let pairs = parse_criteria_pairs(criteria);
    pairs.iter().any(|(name, _)| SOURCE_CRITERIA.iter().any(|known| name.eq_ignore_ascii_case(known)))
}

/// The users who may become a witness.
#[derive(Clone, Copy)]
struct CandidateUsers<'a> {
    account: &'a Account,
    people: &'a [LocalAccount],
    groups: &'a [String],
    /// The users of other witnesses. The search prefers a different user.
    known: &'a BTreeSet<String>,
}

/// Finds a connection that meets every criterion.
fn find_match_sample(
    criteria: &[String],
    place: &MatchLine,
    base: &Connection,
    who: &CandidateUsers<'_>,
    effective: &EffectiveConfig,
) -> SampleResult {
    let pairs = parse_criteria_pairs(criteria);
    let of = |names: &[&str]| -> Vec<&str> {
        let is_named = |name: &str| names.iter().any(|other| name.eq_ignore_ascii_case(other));
        pairs.iter().filter(|(name, _)| is_named(name)).filter_map(|(_, patterns)| *patterns).collect()
    };
    let is_known = |name: &&str| KNOWN_CRITERIA.iter().any(|known| name.eq_ignore_ascii_case(known));
    let strange = pairs.iter().map(|(name, _)| *name).find(|name| !is_known(name));
    if strange.is_some_and(|name| name.eq_ignore_ascii_case("invalid-user")) {
        return SampleResult::Nobody;
    }
    let (users, groups) = (of(&["user"]), of(&["group"]));
    let mut connection = base.clone();
    let names_user = !users.is_empty() || !groups.is_empty();
    let mut user_groups = who.account.groups.clone();
    if names_user {
        let is_meant = |name: &str, his: &[String]| {
            users.iter().all(|patterns| match_pattern_list(name, patterns) == ListMatch::Yes)
                && groups.iter().all(|patterns| matches_group_list(his, patterns))
        };
        // Prefer a user with a password, if there is one.
        let with = who.people.iter().filter(|person| person.has_password).chain(who.people);
        let accounts = with.map(|person| &person.account).chain([who.account]);
        let meant: Vec<&Account> = accounts.filter(|person| is_meant(&person.name, &person.groups)).collect();
        let is_new = |person: &&&Account| !who.known.contains(&person.name);
        match meant.iter().find(is_new).or(meant.first()) {
            Some(person) => {
                connection.user = person.name.clone();
                user_groups = person.groups.clone();
            }
            // No account has this name now, but one may be created.
            None => {
                let mut names =
                    users.iter().flat_map(|patterns| patterns.split(',')).flat_map(instantiate_pattern);
                match names.find(|name| is_meant(name, &[])) {
                    Some(name) => connection.user = name,
                    None => return explain_missing_group(&groups, who.groups),
                }
                user_groups = Vec::new();
            }
        }
    }
    // Without UseDNS a client's host is its address.
    let by_name = effective.is_yes("usedns");
    let addresses: Vec<&str> = match by_name {
        true => of(&["address"]),
        false => of(&["address", "host"]),
    };
    let fits = |addr: IpAddr| {
        of(&["address"]).iter().all(|patterns| match_address_list(addr, patterns) == Ok(ListMatch::Yes))
            && (by_name
                || of(&["host"]).iter().all(|p| match_host_list(&addr.to_string(), p) == ListMatch::Yes))
    };
    if !addresses.is_empty() && !fits(connection.addr) {
        match find_matching_address(&addresses, fits) {
            Some(addr) => connection.addr = addr,
            None => return explain_missing_address(&addresses),
        }
    }
    connection.host = connection.addr.to_string();
    if by_name && let [patterns, ..] = of(&["host"]).as_slice() {
        let mut hosts = patterns.split(',').flat_map(instantiate_pattern);
        let Some(host) = hosts.find(|host| match_host_list(host, patterns) == ListMatch::Yes) else {
            return SampleResult::Nobody;
        };
        connection.host = host;
    }
    let local = of(&["localaddress"]);
    let is_local = |addr: IpAddr| local.iter().all(|p| match_address_list(addr, p) == Ok(ListMatch::Yes));
    if !is_local(connection.laddr) {
        match find_matching_address(&local, is_local) {
            Some(addr) => connection.laddr = addr,
            None => return explain_missing_address(&local),
        }
    }
    if let [port, ..] = of(&["localport"]).as_slice() {
        let port = port.parse().ok().filter(|port| listening_ports(effective).contains(port));
        let Some(port) = port else { return SampleResult::Nobody };
        connection.lport = port;
    }
    if let Some(name) = strange {
        return SampleResult::Unknown(format!(
            "whom its criterion {} picks is not known here",
            sanitize_text(name)
        ));
    }
    match matches_connection(criteria, &connection, Some(&user_groups)) {
        Some(true) => SampleResult::Sample(Box::new(MatchSample {
            connection,
            groups: user_groups,
            criteria: Some(criteria.join(" ")),
            names_user,
            names_source: names_source(criteria),
            place: Some(place.clone()),
        })),
        Some(false) => SampleResult::Nobody,
        None => SampleResult::Unknown("whom it picks is not known here".to_owned()),
    }
}

/// No account of this guest is in these groups. An account may still be in one of them if that group is not in
/// group(5).
fn explain_missing_group(lists: &[&str], local: &[String]) -> SampleResult {
    let entries = lists.iter().flat_map(|list| list.split(',')).filter(|entry| !entry.starts_with('!'));
    let is_foreign = |pattern: &&str| !local.iter().any(|group| matches_pattern(group, pattern));
    match { entries }.find(is_foreign) {
        Some(group) => SampleResult::Unknown(format!(
            "no account of this guest's files is in the group {}",
            sanitize_text(group)
        )),
        None => SampleResult::Nobody,
    }
}

/// No address was found that the lists match. The look of the entries tells whether there may be one.
fn explain_missing_address(lists: &[&str]) -> SampleResult {
    let entries = lists.iter().flat_map(|list| list.split(',')).filter(|entry| !entry.starts_with('!'));
    // sshd refuses every connection if a mask does not fit its address.
    let is_sound = lists.iter().all(|list| match_address_list(Ipv4Addr::LOCALHOST.into(), list).is_ok());
    let is_address = |entry: &str| {
        entry.contains(['.', ':', '*']) && entry.chars().all(|c| c.is_ascii_hexdigit() || ".:*?/".contains(c))
    };
    match is_sound && { entries }.any(is_address) {
        true => SampleResult::Unknown("no address was found that it picks".to_owned()),
        false => SampleResult::Nobody,
    }
}

/// Texts that a pattern matches. The function fills `*` with arbitrary text and `?` with one letter.
fn instantiate_pattern(pattern: &str) -> Vec<String> {
    let filled = ["", "x", "y0"].map(|fill| pattern.replace('*', fill).replace('?', "x"));
    filled.into_iter().filter(|plain| !plain.is_empty() && matches_pattern(plain, pattern)).collect()
}

/// An address that some entry of the lists means: the address itself, the first host of a network, or a completed
/// pattern.
fn find_matching_address(lists: &[&str], fits: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let entries =
        lists.iter().flat_map(|patterns| patterns.split(',')).filter(|entry| !entry.starts_with('!'));
    entries.flat_map(list_candidate_addresses).find(|addr| fits(*addr))
}

fn list_candidate_addresses(entry: &str) -> Vec<IpAddr> {
    if let Ok(addr) = entry.parse() {
        return vec![addr];
    }
    if let Some((network, _)) = entry.split_once('/') {
        let Ok(network) = network.parse::<IpAddr>() else { return Vec::new() };
        // Try the first host, the next ones if a negated entry excludes it, and the network's own address.
        let host = |n: u8| match network {
            IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) | u32::from(n)).into()),
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) | u128::from(n)).into()),
        };
        // Also try further addresses: each bit of the host part by itself.
        let bit = |n: u32| match network {
            IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) | 1u32.checked_shl(n).unwrap_or(0)).into()),
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) | 1u128.checked_shl(n).unwrap_or(0)).into()),
        };
        return (1..=16).map(host).chain((4..128).map(bit)).chain([network]).collect();
    }
    let completed = |fill: &&str| entry.replace('*', fill).replace('?', "1").parse().ok();
    ["1", "1.1", "1.1.1", "1.1.1.1", "::1", "1::1", ":1"].iter().filter_map(completed).collect()
}

/// MATCH_ALLOWS_PASSWORD for each witness that may still use a password, once for each line that allows it.
pub fn warn_passwords_allowed(
    reading: &ParsedConfig,
    answers: &[(MatchSample, SshdAnswer)],
    people: &[LocalAccount],
    kbd: KbdInteractive,
) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = Vec::new();
    for (witness, answer) in answers {
        let Some(keyword) = find_sample_password_keyword(witness, &answer.effective, people, kbd) else {
            continue;
        };
        let who = &witness.connection;
        let by = reading.find_value_source(keyword, "yes", who, Some(&witness.groups));
        let somebody = match witness.names_user {
            true => format!(
                "{} may still use a password (asked as from {}, port {})",
                sanitize_text(&who.user),
                who.addr,
                who.lport
            ),
            false => {
                format!("whoever comes from {} (to port {}) may still use a password", who.addr, who.lport)
            }
        };
        let remedy = match &witness.criteria {
            Some(criteria) => {
                format!("if that is not meant, take it out of the block `Match {}`", sanitize_text(criteria))
            }
            None => "if that is not meant, take it out of its Match block".to_owned(),
        };
        let message = format!("{somebody}, because of {}; {remedy}", by.describe(keyword));
        let warning = by.add_place(Warning::new(WarningReason::MatchAllowsPassword, message));
        let is_new = |other: &Warning| (&other.file, other.line) != (&warning.file, warning.line);
        if warnings.iter().all(is_new) {
            warnings.push(warning);
        }
    }
    warnings
}

/// Whether the four lists allow this connection, as in sshd's `allowed_user`. Releases of sshd split a pattern with
/// several `@` at different ones. Such a pattern counts as the variant that allows the connection.
pub fn is_user_allowed(effective: &EffectiveConfig, who: &Connection, groups: &[String]) -> bool {
    let by_last = |pattern: &str| {
        let Some((name, hosts)) = pattern.rsplit_once('@') else {
            return matches_pattern(&who.user, pattern);
        };
        matches_pattern(&who.user, name) && matches_source(&who.host, who.addr, hosts) == Ok(true)
    };
    let by_first = |pattern: &str| matches_user_pattern(&who.user, &who.host, who.addr, pattern) == Ok(true);
    let denied = effective.values("denyusers").iter().any(|pattern| by_first(pattern) && by_last(pattern));
    let allow = effective.values("allowusers");
    let allowed = allow.is_empty() || allow.iter().any(|pattern| by_first(pattern) || by_last(pattern));
    let grouped = |keyword| {
        let patterns = effective.values(keyword);
        let hits = patterns.iter().any(|pattern| groups.iter().any(|group| matches_pattern(group, pattern)));
        (!patterns.is_empty(), hits)
    };
    let ((_, group_denied), (group_limited, group_allowed)) = (grouped("denygroups"), grouped("allowgroups"));
    !denied && !group_denied && allowed && (group_allowed || !group_limited)
}

/// The keyword that still allows a password for this witness, alone or together with another method.
fn find_sample_password_keyword(
    witness: &MatchSample,
    effective: &EffectiveConfig,
    people: &[LocalAccount],
    kbd: KbdInteractive,
) -> Option<&'static str> {
    let by = find_password_keyword(effective, kbd)?;
    let who = &witness.connection;
    let person = people.iter().map(|person| &person.account).find(|account| account.name == who.user);
    let is_root = person.map_or(who.user == "root", |account| account.uid == 0);
    let is_let_in = !witness.names_user
        || (is_user_allowed(effective, who, &witness.groups)
            && (!is_root || effective.is_yes("permitrootlogin")));
    is_let_in.then_some(by)
}

/// The keyword that makes sshd accept a password, alone or together with another method.
fn find_password_keyword(effective: &EffectiveConfig, kbd: KbdInteractive) -> Option<&'static str> {
    let lists = effective.authentication_methods();
    let is_asked = |method: &str| {
        let is_it = |one: &&str| one.split(':').next() == Some(method);
        lists.is_empty() || lists.iter().flatten().any(is_it)
    };
    if effective.password_authentication() && is_asked("password") {
        return Some("PasswordAuthentication");
    }
    let asks = kbd == KbdInteractive::Follow
        && effective.is_yes("usepam")
        && effective.kbd_interactive_authentication()
        && is_asked("keyboard-interactive");
    asks.then_some("KbdInteractiveAuthentication")
}

/// Whether sshd's settings leave a login method: a list of AuthenticationMethods whose methods are all on, or any
/// single method. Without `has_password`, a method that needs only a password does not count.
fn has_login_method(effective: &EffectiveConfig, has_password: bool, is_root: bool) -> bool {
    let root = effective.value("permitrootlogin").to_ascii_lowercase();
    if is_root && root == "no" {
        return false;
    }
    let takes_passwords = has_password && (!is_root || root == "yes" || root.is_empty());
    let is_on = |method: &str| match method.split(':').next().unwrap_or_default() {
        "publickey" => effective.is_yes("pubkeyauthentication"),
        "password" => takes_passwords && effective.password_authentication(),
        "keyboard-interactive" => effective.kbd_interactive_authentication(),
        "hostbased" => effective.is_yes("hostbasedauthentication"),
        "gssapi-with-mic" => effective.is_yes("gssapiauthentication"),
        "gssapi-keyex" => effective.is_yes("gssapikeyexchange"),
        "none" => effective.is_yes("permitemptypasswords"),
        _ => false,
    };
    let alone =
        |method: &str| is_on(method) && (takes_passwords || !method.starts_with("keyboard-interactive"));
    let lists = effective.authentication_methods();
    if lists.is_empty() {
        let any = ["publickey", "password", "keyboard-interactive", "hostbased", "gssapi-with-mic"];
        return any.into_iter().any(alone);
    }
    lists.iter().any(|list| match list.as_slice() {
        [method] => alone(method),
        methods => methods.iter().all(|method| is_on(method)),
    })
}

/// Whether sshd's settings let the witness's account log in. The answer is no for an account that does not exist.
fn can_sample_log_in(witness: &MatchSample, effective: &EffectiveConfig, people: &[LocalAccount]) -> bool {
    let who = &witness.connection;
    if effective.is_yes("refuseconnection") {
        return false;
    }
    if !witness.names_user {
        // The witness stands for any user, so the function does not check whom the lists allow.
        return has_login_method(effective, true, false);
    }
    let Some(person) = people.iter().find(|person| person.account.name == who.user) else { return false };
    is_user_allowed(effective, who, &witness.groups)
        && !is_nologin_shell(&person.account.shell)
        && has_login_method(effective, person.has_password, person.account.uid == 0)
}

/// The connections whose accounts have no login method by these answers. The caller must query sshd whether they had
/// one before.
pub fn list_shut_out_connections(
    after: &[(MatchSample, SshdAnswer)],
    people: &[LocalAccount],
) -> Vec<Connection> {
    let has_none = |(witness, answer): &&(MatchSample, SshdAnswer)| {
        !can_sample_log_in(witness, &answer.effective, people)
    };
    after.iter().filter(has_none).map(|(witness, _)| witness.connection.clone()).collect()
}

/// ACCOUNT_SHUT_OUT for each witness whose account had a login method before and has none afterwards. `before` are
/// the answers for the present configuration, at least those for [`list_shut_out_connections`]. `after` are the
/// answers for the planned configuration.
pub fn warn_shut_out_accounts(
    before: &[SshdAnswer],
    after: &[(MatchSample, SshdAnswer)],
    people: &[LocalAccount],
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (witness, answer) in after {
        let earlier = before.iter().find(|earlier| earlier.connection == witness.connection);
        let had_one = earlier.is_some_and(|earlier| can_sample_log_in(witness, &earlier.effective, people));
        if !had_one || can_sample_log_in(witness, &answer.effective, people) {
            continue;
        }
        let who = match witness.names_user {
            true => sanitize_text(&witness.connection.user),
            false => format!("whoever comes from {}", witness.connection.addr),
        };
        let block = witness.criteria.as_deref().unwrap_or_default();
        warnings.push(build_shut_out_warning(&who, block, witness.place.as_ref(), &answer.effective));
    }
    warnings
}

fn build_shut_out_warning(
    who: &str,
    block: &str,
    place: Option<&MatchLine>,
    after: &EffectiveConfig,
) -> Warning {
    let methods = sanitize_text(&after.words("authenticationmethods").join(" "));
    let block = sanitize_text(block);
    let why = match after.is_yes("pubkeyauthentication") {
        false => "the block takes no keys, and passwords are off".to_owned(),
        true => format!("`AuthenticationMethods {methods}` asks for what is off"),
    };
    let message = format!(
        "{who} had a way in by the block `Match {block}` and has none any more: {why}; let a key alone suffice there"
    );
    let warning = Warning::new(WarningReason::AccountShutOut, message);
    match place {
        Some((file, line)) => warning.with_location(file, Some(*line)),
        None => warning,
    }
}

/// Warnings from the text of the blocks without a sample connection. MATCH_ALLOWS_PASSWORD if a block turns passwords
/// on, ACCOUNT_SHUT_OUT if a block no longer leaves a login method. `before` and `after` are the settings for
/// connections that no block matches.
pub fn warn_unsampled_blocks(
    reading: &ParsedConfig,
    blocks: &[UnsampledBlock],
    before: &EffectiveConfig,
    after: &EffectiveConfig,
    kbd: KbdInteractive,
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for block in blocks {
        let UnsampledBlock { criteria, place, why } = block;
        let is_inside = |directive: &&Directive| {
            let at = |file: &PathBuf, line: usize| *file == place.0 && line == place.1;
            matches!(&directive.scope, Scope::Match { file, line, .. } if at(file, *line))
        };
        let said = |keyword: &str| {
            let is_it = |name: &str| Keyword::lookup(keyword).is_some_and(|known| known.is_named(name));
            reading.directives().iter().filter(is_inside).find(|directive| is_it(&directive.keyword))
        };
        let within = |effective: &EffectiveConfig| {
            let keywords = [
                ("PasswordAuthentication", "passwordauthentication"),
                ("KbdInteractiveAuthentication", "kbdinteractiveauthentication"),
                ("PubkeyAuthentication", "pubkeyauthentication"),
                ("AuthenticationMethods", "authenticationmethods"),
            ];
            keywords.into_iter().fold(effective.clone(), |effective, (keyword, printed)| {
                said(keyword)
                    .map_or(effective.clone(), |directive| effective.with_value(printed, &directive.value()))
            })
        };
        let (before, after) = (within(before), within(after));
        if let Some(keyword) = find_password_keyword(&after, kbd)
            && let Some(directive) = said(keyword)
        {
            let criteria = sanitize_text(criteria);
            let message = format!(
                "the block `Match {criteria}` may allow passwords by {}, and could not be examined: {why}; if that is \
                 not meant, take it out of the block",
                ConfigSource::from(directive).describe(keyword)
            );
            let warning = Warning::new(WarningReason::MatchAllowsPassword, message);
            warnings.push(warning.with_location(&directive.file, Some(directive.line)));
        } else if has_login_method(&before, true, false) && !has_login_method(&after, true, false) {
            let who = format!("whoever is picked (it could not be examined: {why})");
            warnings.push(build_shut_out_warning(&who, criteria, Some(place), &after));
        }
    }
    warnings
}

/// The witnesses of blocks about a source that are the target user and for which sshd's answer differs from that for
/// the `first` connection. Differences about passwords do not count. Each has its `Match` line in `place`.
pub fn list_limiting_samples<'w>(
    first: &SshdAnswer,
    answered: &'w [(MatchSample, SshdAnswer)],
) -> Vec<&'w (MatchSample, SshdAnswer)> {
    let limits = |(witness, answer): &&(MatchSample, SshdAnswer)| {
        witness.names_source
            && witness.connection.user == first.connection.user
            && !is_same_except_passwords(&first.effective, &answer.effective)
    };
    answered.iter().filter(limits).collect()
}

/// A source from which the configuration may let the target user log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedSource {
    /// A connection from that source. Its host is a name if UseDNS is on and a pattern needs a name.
    pub connection: Connection,
    /// The configuration line that names the source.
    pub by: ConfigSource,
}

/// Sources from which the configuration may let the target user log in although it refuses the user from an address
/// that no rule names. These are the sources that AllowUsers names with the user, and the sources of `Match` blocks.
/// At most six.
pub fn list_allowed_sources(
    reading: &ParsedConfig,
    base: &Connection,
    account: &Account,
    effective: &EffectiveConfig,
) -> Vec<AllowedSource> {
    let groups = Some(account.groups.as_slice());
    let by_name = effective.is_yes("usedns");
    let mut found: Vec<AllowedSource> = Vec::new();
    let mut add = |connection: Connection, by: ConfigSource| {
        let is_known = |other: &AllowedSource| other.connection == connection;
        if found.len() < MAX_SOURCES && connection != *base && !found.iter().any(is_known) {
            found.push(AllowedSource { connection, by });
        }
    };
    for pattern in effective.values("allowusers") {
        // Some releases split at the first `@`, others at the last.
        let cuts = [pattern.split_once('@'), pattern.rsplit_once('@')];
        let Some((_, hosts)) =
            cuts.into_iter().flatten().find(|(name, _)| matches_pattern(&account.name, name))
        else {
            continue;
        };
        let is_it = |said: &String| said == pattern;
        let said = reading.applicable_settings("AllowUsers", base, groups).into_iter();
        let by = { said }
            .find(|saying| saying.arguments.iter().any(is_it))
            .map_or(ConfigSource::Default, |s| s.by);
        for entry in hosts.split(',').filter(|entry| !entry.starts_with('!')) {
            let comes = |host: &str, addr: IpAddr| matches_source(host, addr, hosts) == Ok(true);
            let addr =
                list_candidate_addresses(entry).into_iter().find(|addr| comes(&addr.to_string(), *addr));
            if let Some(addr) = addr {
                add(Connection { addr, host: addr.to_string(), ..base.clone() }, by.clone());
            } else if by_name
                && let Some(host) = instantiate_pattern(entry).into_iter().find(|h| comes(h, base.addr))
            {
                add(Connection { host, ..base.clone() }, by.clone());
            }
        }
    }
    let known = BTreeSet::new();
    let who = CandidateUsers { account, people: &[], groups: &[], known: &known };
    for block in reading.directives().iter().filter(|directive| directive.keyword == "match") {
        let Scope::Match { criteria, file, line } = &block.scope else { continue };
        if !names_source(criteria) {
            continue;
        }
        let met = find_match_sample(criteria, &(file.clone(), *line), base, &who, effective);
        if let SampleResult::Sample(witness) = met
            && witness.connection.user == account.name
        {
            add(witness.connection, ConfigSource::from(block));
        }
    }
    found
}

#[cfg(test)]
#[path = "witness_tests.rs"]
mod tests;
