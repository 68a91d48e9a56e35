//! Patterns as sshd and glob(3) match them: ssh_config(5) "PATTERNS", sshd_config(5) "Match" and
//! "AllowUsers", glob(7).

use std::net::IpAddr;
use std::path::Path;

/// The result of a comma-separated list of patterns for a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListMatch {
    /// A pattern matches, and no negated pattern does.
    Yes,
    /// A pattern with `!` matches. It takes precedence over every other match.
    Negated,
    /// No pattern matches.
    No,
}

/// An address pattern whose mask does not fit its address (`10.0.0.1/8`). sshd then refuses every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadMask;

/// The maximum length of a pattern in a list. At a longer one sshd ends the list without a match.
const PATTERN_BYTES_LIMIT: usize = 1023;

/// Whether `pattern` (`*`: any text, `?`: any one byte) matches all of `text`: ssh_config(5) "PATTERNS".
pub fn matches_pattern(text: &str, pattern: &str) -> bool {
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    let (mut t, mut p) = (0, 0);
    // The position to continue from after the last `*`: behind it in the pattern, and one byte further in the text.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                retry = Some((p, t));
            }
            Some(&byte) if byte == b'?' || Some(&byte) == text.get(t) => {
                t += 1;
                p += 1;
            }
            _ => match retry {
                Some((behind, from)) => {
                    p = behind;
                    t = from + 1;
                    retry = Some((behind, t));
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).is_none_or(|rest| rest.iter().all(|&byte| byte == b'*'))
}

/// Matches `text` against the list `patterns`: ssh_config(5) "pattern-list".
pub fn match_pattern_list(text: &str, patterns: &str) -> ListMatch {
    let mut found = ListMatch::No;
    let patterns = patterns.strip_suffix(',').unwrap_or(patterns);
    for entry in patterns.split(',') {
        let (negated, pattern) = strip_negation(entry);
        if pattern.len() >= PATTERN_BYTES_LIMIT {
            return ListMatch::No;
        }
        if matches_pattern(text, pattern) {
            if negated {
                return ListMatch::Negated;
            }
            found = ListMatch::Yes;
        }
    }
    found
}

/// The same for a host name, without regard to upper and lower case.
pub fn match_host_list(host: &str, patterns: &str) -> ListMatch {
    match_pattern_list(&host.to_ascii_lowercase(), &patterns.to_ascii_lowercase())
}

/// Whether the list `patterns` matches a user in these groups: it matches one of them and negates none.
/// sshd_config(5) "Match Group".
pub fn matches_group_list(groups: &[String], patterns: &str) -> bool {
    let said: Vec<ListMatch> = groups.iter().map(|group| match_pattern_list(group, patterns)).collect();
    said.contains(&ListMatch::Yes) && !said.contains(&ListMatch::Negated)
}

/// Matches `address` against a list of addresses, networks in CIDR form and patterns: sshd_config(5) "Match".
pub fn match_address_list(address: IpAddr, patterns: &str) -> Result<ListMatch, BadMask> {
    let text = address.to_string();
    let mut found = ListMatch::No;
    for entry in patterns.split(',') {
        let (negated, pattern) = strip_negation(entry);
        if pattern.is_empty() {
            return Err(BadMask);
        }
        let hit = match parse_network(pattern)? {
            Some((base, bits)) => network_contains(base, bits, address),
            None => matches_pattern(&text, pattern),
        };
        if hit {
            if negated {
                return Ok(ListMatch::Negated);
            }
            found = ListMatch::Yes;
        }
    }
    Ok(found)
}

/// Whether the host part of a `user@host` pattern, a list, matches a client: sshd_config(5) "AllowUsers".
pub fn matches_source(host: &str, address: IpAddr, patterns: &str) -> Result<bool, BadMask> {
    let by_address = match_address_list(address, patterns)?;
    if by_address == ListMatch::Negated {
        return Ok(false);
    }
    Ok(match match_host_list(host, patterns) {
        ListMatch::Negated => false,
        ListMatch::Yes => true,
        ListMatch::No => by_address == ListMatch::Yes,
    })
}

/// Whether one `user` or `user@host` pattern matches a user who connects from this source: sshd_config(5)
/// "AllowUsers". The user part allows no `!` and no list.
pub fn matches_user_pattern(name: &str, host: &str, address: IpAddr, pattern: &str) -> Result<bool, BadMask> {
    match pattern.split_once('@') {
        None => Ok(matches_pattern(name, pattern)),
        Some((user, source)) => Ok(matches_pattern(name, user) && matches_source(host, address, source)?),
    }
}

fn strip_negation(entry: &str) -> (bool, &str) {
    entry.strip_prefix('!').map_or((false, entry), |pattern| (true, pattern))
}

/// An address, or a network whose host bits are all zero. `None` if the text is neither.
fn parse_network(text: &str) -> Result<Option<(IpAddr, u32)>, BadMask> {
    let (address, bits) = match text.split_once('/') {
        None => (text, None),
        Some((address, bits)) => match bits.parse::<u32>() {
            Ok(number) if number <= 128 => (address, Some(number)),
            _ => return Ok(None),
        },
    };
    let Ok(address) = address.parse::<IpAddr>() else { return Ok(None) };
    let (value, width) = address_to_bits(address);
    let bits = bits.unwrap_or(width);
    if bits > width || value & host_mask(bits, width) != 0 {
        return Err(BadMask);
    }
    Ok(Some((address, bits)))
}

fn network_contains(base: IpAddr, bits: u32, address: IpAddr) -> bool {
    let ((base, width), (address, other)) = (address_to_bits(base), address_to_bits(address));
    width == other && (base ^ address) & !host_mask(bits, width) == 0
}

/// An address as a number, and its width in bits.
fn address_to_bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u32::from(v4).into(), 32),
        IpAddr::V6(v6) => (v6.into(), 128),
    }
}

/// The bits of the host part for a prefix of `bits` bits.
fn host_mask(bits: u32, width: u32) -> u128 {
    let host_bits = width.saturating_sub(bits);
    1u128.checked_shl(host_bits).map_or(u128::MAX, |bit| bit - 1)
}

/// Whether glob(7) would match a name without a leading dot: `*`, `?`, `[...]`, `\` before a character.
pub fn glob_matches(name: &str, pattern: &str) -> bool {
    let (name, pattern): (Vec<char>, Vec<char>) = (name.chars().collect(), pattern.chars().collect());
    let (mut n, mut p) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                p += 1;
                retry = Some((p, n));
                continue;
            }
            _ => name.get(n).and_then(|&c| match_glob_element(c, pattern.get(p..).unwrap_or_default())),
        };
        match (step, retry) {
            (Some(length), _) => {
                p += length;
                n += 1;
            }
            (None, Some((behind, from))) => {
                p = behind;
                n = from + 1;
                retry = Some((behind, n));
            }
            (None, None) => return false,
        }
    }
    pattern.get(p..).is_none_or(|rest| rest.iter().all(|&c| c == '*'))
}

/// Whether the pattern's first element, which is not `*`, matches `c`. If so, returns that element's length.
fn match_glob_element(c: char, pattern: &[char]) -> Option<usize> {
    match *pattern.first()? {
        '?' => Some(1),
        '\\' if pattern.len() > 1 => (pattern.get(1) == Some(&c)).then_some(2),
        '[' => match match_bracket(c, pattern) {
            Some((length, taken)) => taken.then_some(length),
            None => (c == '[').then_some(1),
        },
        literal => (literal == c).then_some(1),
    }
}

/// The length of a bracket expression and whether it matches `c`. `None` if no `]` closes it.
fn match_bracket(c: char, pattern: &[char]) -> Option<(usize, bool)> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let first = if negated { 2 } else { 1 };
    let (mut at, mut taken) = (first, false);
    loop {
        match *pattern.get(at)? {
            ']' if at > first => return Some((at + 1, taken != negated)),
            low => match (pattern.get(at + 1), pattern.get(at + 2)) {
                (Some('-'), Some(&high)) if high != ']' => {
                    taken |= (low..=high).contains(&c);
                    at += 3;
                }
                _ => {
                    taken |= low == c;
                    at += 1;
                }
            },
        }
    }
}

/// Whether a path contains a character that glob(7) does not take literally.
pub fn has_wildcard(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().iter().any(|byte| matches!(byte, b'*' | b'?' | b'[' | b'\\'))
}

/// Whether `pattern` matches `path` as in glob(3), component by component.
pub fn glob_path_matches(path: &Path, pattern: &Path) -> bool {
    let (mut names, mut globs) = (path.components(), pattern.components());
    loop {
        match (names.next(), globs.next()) {
            (None, None) => return true,
            (Some(name), Some(pattern)) => {
                let (name, pattern) = (name.as_os_str(), pattern.as_os_str());
                if name != pattern && !glob_matches(&name.to_string_lossy(), &pattern.to_string_lossy()) {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition of a match, implemented literally and slowly.
    fn naive_match(text: &[u8], pattern: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', rest @ ..] => (0..=text.len()).any(|from| naive_match(&text[from..], rest)),
            [b'?', rest @ ..] => !text.is_empty() && naive_match(&text[1..], rest),
            [byte, rest @ ..] => text.first() == Some(byte) && naive_match(&text[1..], rest),
        }
    }

    proptest! {
        #[test]
        fn pattern_match_agrees_with_definition(text in "[ab]{0,8}", pattern in "[ab*?]{0,8}") {
            prop_assert_eq!(matches_pattern(&text, &pattern), naive_match(text.as_bytes(), pattern.as_bytes()));
            prop_assert_eq!(glob_matches(&text, &pattern), naive_match(text.as_bytes(), pattern.as_bytes()));
        }

        #[test]
        fn matchers_accept_any_pattern(text in ".{0,12}", pattern in ".{0,12}", address in any::<u32>()) {
            let address = IpAddr::V4(address.into());
            let _ = (match_pattern_list(&text, &pattern), glob_matches(&text, &pattern));
            let _ = (match_address_list(address, &pattern), matches_user_pattern(&text, &text, address, &pattern));
        }

        #[test]
        fn network_match_agrees_with_definition(base in any::<u32>(), bits in 0u32..=32, address in any::<u32>()) {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            let list = format!("{}/{bits}", IpAddr::V4((base & mask).into()));
            let inside = address & mask == base & mask;
            let said = match_address_list(IpAddr::V4(address.into()), &list);
            prop_assert_eq!(said, Ok(if inside { ListMatch::Yes } else { ListMatch::No }));
        }
    }

    #[test]
    fn pattern_list_honours_negation() {
        for (text, patterns, said) in [
            ("root", "root", ListMatch::Yes),
            ("root", "a,ro*", ListMatch::Yes),
            ("root", "*,!root", ListMatch::Negated),
            ("root", "!root,*", ListMatch::Negated),
            ("root", "!bob", ListMatch::No),
            ("root", "", ListMatch::No),
            ("root", "a,", ListMatch::No),
            ("Root", "root", ListMatch::No),
        ] {
            assert_eq!(match_pattern_list(text, patterns), said, "{text} {patterns}");
        }
        assert_eq!(match_host_list("Host.Example", "*.EXAMPLE"), ListMatch::Yes);
        assert_eq!(
            match_pattern_list("root", &format!("{},root", "x".repeat(PATTERN_BYTES_LIMIT))),
            ListMatch::No
        );
    }

    #[test]
    fn address_list_matches_cidr_and_patterns() {
        for (address, patterns, said) in [
            ("192.0.2.1", "192.0.2.0/24", Ok(ListMatch::Yes)),
            ("192.0.3.1", "192.0.2.0/24", Ok(ListMatch::No)),
            ("192.0.2.1", "192.0.2.1", Ok(ListMatch::Yes)),
            ("192.0.2.1", "192.0.2.*", Ok(ListMatch::Yes)),
            ("192.0.2.1", "*,!192.0.2.1", Ok(ListMatch::Negated)),
            ("192.0.2.1", "0.0.0.0/0", Ok(ListMatch::Yes)),
            ("2001:db8::1", "2001:db8::/32", Ok(ListMatch::Yes)),
            ("2001:db8::1", "::/0", Ok(ListMatch::Yes)),
            ("2001:db8::1", "0.0.0.0/0", Ok(ListMatch::No)),
            ("192.0.2.1", "10.0.0.1/8", Err(BadMask)),
            ("192.0.2.1", "10.0.0.0/33", Err(BadMask)),
            ("192.0.2.1", "a,,b", Err(BadMask)),
            ("192.0.2.1", "10.0.0.0/x", Ok(ListMatch::No)),
        ] {
            let answer = address.parse().map(|address| match_address_list(address, patterns));
            assert_eq!(answer, Ok(said), "{address} {patterns}");
        }
    }

    #[test]
    fn user_pattern_matches_name_and_source() {
        let from = |pattern| matches_user_pattern("root", "192.0.2.1", IpAddr::from([192, 0, 2, 1]), pattern);
        assert_eq!(from("root"), Ok(true));
        assert_eq!(from("ro?t"), Ok(true));
        assert_eq!(from("root@192.0.2.0/24"), Ok(true));
        assert_eq!(from("root@10.0.0.0/8"), Ok(false));
        assert_eq!(from("root@10.0.0.0/8,192.*"), Ok(true));
        assert_eq!(from("root@*,!192.0.2.1"), Ok(false));
        assert_eq!(from("root,bob"), Ok(false));
        assert_eq!(from("!root"), Ok(false));
        assert_eq!(from("root@10.0.0.1/8"), Err(BadMask));
    }

    #[test]
    fn glob_matches_names_and_paths() {
        for (pattern, found) in [
            ("*.conf", true),
            ("*", true),
            ("00-keypair-agent.conf", true),
            ("0?-*.conf", true),
            ("[0-9][0-9]-*.conf", true),
            ("[!a-z]*.conf", true),
            ("[^0]*.conf", false),
            ("[]0]0-*", true),
            ("[a-z]*.conf", false),
            ("*.cfg", false),
            ("\\00-*", true),
            ("[00-*", false),
            ("5*", false),
        ] {
            assert_eq!(glob_matches("00-keypair-agent.conf", pattern), found, "{pattern}");
        }
        assert!(glob_path_matches(Path::new("/etc/ssh/d/a.conf"), Path::new("/etc/ssh/*/*.conf")));
        assert!(!glob_path_matches(Path::new("/etc/ssh/d/a.conf"), Path::new("/etc/ssh/*.conf")));
    }
}
