//! Patterns as sshd and glob(3) match them: ssh_config(5) "PATTERNS", sshd_config(5) "Match" and
//! "AllowUsers", glob(7).

use std::net::IpAddr;
use std::path::Path;

/// What a comma-separated list of patterns says of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// A pattern matches, and none that is negated does.
    Yes,
    /// A pattern with `!` matches, ahead of whatever else would.
    Negated,
    /// None matches.
    No,
}

/// An address pattern whose mask does not fit its address (`10.0.0.1/8`): sshd refuses everyone there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadMask;

/// The longest pattern of a list that sshd looks at; a longer one ends the list without a match.
const LONGEST: usize = 1023;

/// Whether `pattern` (`*`: any text, `?`: any one byte) matches all of `text`: ssh_config(5) "PATTERNS".
pub fn matches(text: &str, pattern: &str) -> bool {
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    let (mut t, mut p) = (0, 0);
    // Where to go on after the last `*`: behind it in the pattern, and one byte further in the text.
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

/// What the list `patterns` says of `text`: ssh_config(5) "pattern-list".
pub fn listed(text: &str, patterns: &str) -> Listed {
    let mut found = Listed::No;
    let patterns = patterns.strip_suffix(',').unwrap_or(patterns);
    for entry in patterns.split(',') {
        let (negated, pattern) = without_negation(entry);
        if pattern.len() >= LONGEST {
            return Listed::No;
        }
        if matches(text, pattern) {
            if negated {
                return Listed::Negated;
            }
            found = Listed::Yes;
        }
    }
    found
}

/// The same for a host name, whose letters may stand in either case.
pub fn listed_host(host: &str, patterns: &str) -> Listed {
    listed(&host.to_ascii_lowercase(), &patterns.to_ascii_lowercase())
}

/// Whether the list `patterns` picks one who is in these groups: one of them is meant, and none is negated. sshd_config(5)
/// "Match Group".
pub fn lists_group(groups: &[String], patterns: &str) -> bool {
    let said: Vec<Listed> = groups.iter().map(|group| listed(group, patterns)).collect();
    said.contains(&Listed::Yes) && !said.contains(&Listed::Negated)
}

/// What a list of addresses, networks in CIDR form and patterns says of `address`: sshd_config(5) "Match".
pub fn listed_address(address: IpAddr, patterns: &str) -> Result<Listed, BadMask> {
    let text = address.to_string();
    let mut found = Listed::No;
    for entry in patterns.split(',') {
        let (negated, pattern) = without_negation(entry);
        if pattern.is_empty() {
            return Err(BadMask);
        }
        let hit = match network(pattern)? {
            Some((base, bits)) => contains(base, bits, address),
            None => matches(&text, pattern),
        };
        if hit {
            if negated {
                return Ok(Listed::Negated);
            }
            found = Listed::Yes;
        }
    }
    Ok(found)
}

/// Whether the host part of a `user@host` pattern, a list, matches a client: sshd_config(5) "AllowUsers".
pub fn from_source(host: &str, address: IpAddr, patterns: &str) -> Result<bool, BadMask> {
    let by_address = listed_address(address, patterns)?;
    if by_address == Listed::Negated {
        return Ok(false);
    }
    Ok(match listed_host(host, patterns) {
        Listed::Negated => false,
        Listed::Yes => true,
        Listed::No => by_address == Listed::Yes,
    })
}

/// Whether one `user` or `user@host` pattern matches a user who comes from there: sshd_config(5)
/// "AllowUsers". No `!` and no list in the user's part.
pub fn user(name: &str, host: &str, address: IpAddr, pattern: &str) -> Result<bool, BadMask> {
    match pattern.split_once('@') {
        None => Ok(matches(name, pattern)),
        Some((user, source)) => Ok(matches(name, user) && from_source(host, address, source)?),
    }
}

fn without_negation(entry: &str) -> (bool, &str) {
    entry.strip_prefix('!').map_or((false, entry), |pattern| (true, pattern))
}

/// An address, or a network whose host bits are all zero; `None` where the text is neither.
fn network(text: &str) -> Result<Option<(IpAddr, u32)>, BadMask> {
    let (address, bits) = match text.split_once('/') {
        None => (text, None),
        Some((address, bits)) => match bits.parse::<u32>() {
            Ok(number) if number <= 128 => (address, Some(number)),
            _ => return Ok(None),
        },
    };
    let Ok(address) = address.parse::<IpAddr>() else { return Ok(None) };
    let (value, width) = number(address);
    let bits = bits.unwrap_or(width);
    if bits > width || value & host_mask(bits, width) != 0 {
        return Err(BadMask);
    }
    Ok(Some((address, bits)))
}

fn contains(base: IpAddr, bits: u32, address: IpAddr) -> bool {
    let ((base, width), (address, other)) = (number(base), number(address));
    width == other && (base ^ address) & !host_mask(bits, width) == 0
}

/// An address as a number, and its width in bits.
fn number(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u32::from(v4).into(), 32),
        IpAddr::V6(v6) => (v6.into(), 128),
    }
}

/// The bits that a prefix of `bits` leaves to hosts.
fn host_mask(bits: u32, width: u32) -> u128 {
    let host_bits = width.saturating_sub(bits);
    1u128.checked_shl(host_bits).map_or(u128::MAX, |bit| bit - 1)
}

/// Whether glob(7) would find a name that has no leading dot: `*`, `?`, `[...]`, `\` before a character.
pub fn glob(name: &str, pattern: &str) -> bool {
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
            _ => name.get(n).and_then(|&c| one(c, pattern.get(p..).unwrap_or_default())),
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

/// Whether the pattern's first element, other than `*`, takes `c`; if so, that element's length.
fn one(c: char, pattern: &[char]) -> Option<usize> {
    match *pattern.first()? {
        '?' => Some(1),
        '\\' if pattern.len() > 1 => (pattern.get(1) == Some(&c)).then_some(2),
        '[' => match bracket(c, pattern) {
            Some((length, taken)) => taken.then_some(length),
            None => (c == '[').then_some(1),
        },
        literal => (literal == c).then_some(1),
    }
}

/// A bracket expression's length and whether it takes `c`; `None` where no `]` closes it.
fn bracket(c: char, pattern: &[char]) -> Option<(usize, bool)> {
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

/// Whether a text holds a character that glob(7) does not take literally.
pub fn has_wildcard(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().iter().any(|byte| matches!(byte, b'*' | b'?' | b'[' | b'\\'))
}

/// Whether glob(3) would find `path` by `pattern`, component by component.
pub fn glob_path(path: &Path, pattern: &Path) -> bool {
    let (mut names, mut globs) = (path.components(), pattern.components());
    loop {
        match (names.next(), globs.next()) {
            (None, None) => return true,
            (Some(name), Some(pattern)) => {
                let (name, pattern) = (name.as_os_str(), pattern.as_os_str());
                if name != pattern && !glob(&name.to_string_lossy(), &pattern.to_string_lossy()) {
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

    /// The definition, word for word and as slow as it is.
    fn naive(text: &[u8], pattern: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', rest @ ..] => (0..=text.len()).any(|from| naive(&text[from..], rest)),
            [b'?', rest @ ..] => !text.is_empty() && naive(&text[1..], rest),
            [byte, rest @ ..] => text.first() == Some(byte) && naive(&text[1..], rest),
        }
    }

    proptest! {
        #[test]
        fn matches_as_defined(text in "[ab]{0,8}", pattern in "[ab*?]{0,8}") {
            prop_assert_eq!(matches(&text, &pattern), naive(text.as_bytes(), pattern.as_bytes()));
            prop_assert_eq!(glob(&text, &pattern), naive(text.as_bytes(), pattern.as_bytes()));
        }

        #[test]
        fn takes_any_pattern(text in ".{0,12}", pattern in ".{0,12}", address in any::<u32>()) {
            let address = IpAddr::V4(address.into());
            let _ = (listed(&text, &pattern), glob(&text, &pattern));
            let _ = (listed_address(address, &pattern), user(&text, &text, address, &pattern));
        }

        #[test]
        fn networks_as_defined(base in any::<u32>(), bits in 0u32..=32, address in any::<u32>()) {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            let list = format!("{}/{bits}", IpAddr::V4((base & mask).into()));
            let inside = address & mask == base & mask;
            let said = listed_address(IpAddr::V4(address.into()), &list);
            prop_assert_eq!(said, Ok(if inside { Listed::Yes } else { Listed::No }));
        }
    }

    #[test]
    fn lists() {
        for (text, patterns, said) in [
            ("root", "root", Listed::Yes),
            ("root", "a,ro*", Listed::Yes),
            ("root", "*,!root", Listed::Negated),
            ("root", "!root,*", Listed::Negated),
            ("root", "!bob", Listed::No),
            ("root", "", Listed::No),
            ("root", "a,", Listed::No),
            ("Root", "root", Listed::No),
        ] {
            assert_eq!(listed(text, patterns), said, "{text} {patterns}");
        }
        assert_eq!(listed_host("Host.Example", "*.EXAMPLE"), Listed::Yes);
        assert_eq!(listed("root", &format!("{},root", "x".repeat(LONGEST))), Listed::No);
    }

    #[test]
    fn addresses() {
        for (address, patterns, said) in [
            ("192.0.2.1", "192.0.2.0/24", Ok(Listed::Yes)),
            ("192.0.3.1", "192.0.2.0/24", Ok(Listed::No)),
            ("192.0.2.1", "192.0.2.1", Ok(Listed::Yes)),
            ("192.0.2.1", "192.0.2.*", Ok(Listed::Yes)),
            ("192.0.2.1", "*,!192.0.2.1", Ok(Listed::Negated)),
            ("192.0.2.1", "0.0.0.0/0", Ok(Listed::Yes)),
            ("2001:db8::1", "2001:db8::/32", Ok(Listed::Yes)),
            ("2001:db8::1", "::/0", Ok(Listed::Yes)),
            ("2001:db8::1", "0.0.0.0/0", Ok(Listed::No)),
            ("192.0.2.1", "10.0.0.1/8", Err(BadMask)),
            ("192.0.2.1", "10.0.0.0/33", Err(BadMask)),
            ("192.0.2.1", "a,,b", Err(BadMask)),
            ("192.0.2.1", "10.0.0.0/x", Ok(Listed::No)),
        ] {
            let answer = address.parse().map(|address| listed_address(address, patterns));
            assert_eq!(answer, Ok(said), "{address} {patterns}");
        }
    }

    #[test]
    fn users() {
        let from = |pattern| user("root", "192.0.2.1", IpAddr::from([192, 0, 2, 1]), pattern);
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
    fn globs() {
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
            assert_eq!(glob("00-keypair-agent.conf", pattern), found, "{pattern}");
        }
        assert!(glob_path(Path::new("/etc/ssh/d/a.conf"), Path::new("/etc/ssh/*/*.conf")));
        assert!(!glob_path(Path::new("/etc/ssh/d/a.conf"), Path::new("/etc/ssh/*.conf")));
    }
}
