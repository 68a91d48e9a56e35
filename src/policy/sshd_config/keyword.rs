//! The keywords of sshd_config(5) whose decision the reader claims to know, and how sshd treats each.

/// Which of several lines count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// The first one that is read.
    First,
    /// All of them, one after the other; inside `Match` blocks they replace the global ones.
    Every,
}

/// A keyword of sshd_config(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyword {
    /// As the manual page spells it.
    pub name: &'static str,
    /// Its older names.
    pub also: &'static [&'static str],
    /// Whether it may stand in a `Match` block.
    pub in_match: bool,
    /// Which of its lines count.
    pub counts: Counts,
}

/// Every keyword that the reader claims to know; tests/sshd_agrees.rs holds it against sshd on each.
pub const KNOWN: &[Keyword] = &[
    every("AllowGroups"),
    every("AllowUsers"),
    first("AuthenticationMethods"),
    first("AuthorizedKeysCommand"),
    first("AuthorizedKeysFile"),
    first("ChrootDirectory"),
    every("DenyGroups"),
    every("DenyUsers"),
    first("ForceCommand"),
    Keyword {
        also: &["ChallengeResponseAuthentication", "SkeyAuthentication"],
        ..first("KbdInteractiveAuthentication")
    },
    first("MaxSessions"),
    first("PasswordAuthentication"),
    first("PermitEmptyPasswords"),
    first("PermitRootLogin"),
    Keyword { also: &["PubkeyAcceptedKeyTypes"], ..first("PubkeyAcceptedAlgorithms") },
    Keyword { also: &["DSAAuthentication"], ..first("PubkeyAuthentication") },
    first("RefuseConnection"),
    Keyword { also: &["RSAMinSize"], ..first("RequiredRSASize") },
    first("RevokedKeys"),
    global("StrictModes"),
    global("UseDNS"),
    global("UsePAM"),
];

const fn first(name: &'static str) -> Keyword {
    Keyword { name, also: &[], in_match: true, counts: Counts::First }
}

const fn every(name: &'static str) -> Keyword {
    Keyword { name, also: &[], in_match: true, counts: Counts::Every }
}

const fn global(name: &'static str) -> Keyword {
    Keyword { name, also: &[], in_match: false, counts: Counts::First }
}

impl Keyword {
    /// The keyword of this name, in any case and under any of its names.
    pub fn of(name: &str) -> Option<&'static Self> {
        KNOWN.iter().find(|keyword| keyword.is_named(name))
    }

    /// Whether `name` is one of its names.
    pub fn is_named(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name) || self.also.iter().any(|also| also.eq_ignore_ascii_case(name))
    }
}

/// A keyword as sshd_config(5) spells it, where it is one that is known here under this very name.
pub fn spelling(name: &str) -> &str {
    let names = KNOWN.iter().flat_map(|keyword| std::iter::once(&keyword.name).chain(keyword.also));
    names.copied().find(|known| known.eq_ignore_ascii_case(name)).unwrap_or(name)
}

/// Whether two names are names of one option.
pub(super) fn is_same_option(one: &str, other: &str) -> bool {
    match Keyword::of(one) {
        Some(keyword) => keyword.is_named(other),
        None => one.eq_ignore_ascii_case(other),
    }
}
