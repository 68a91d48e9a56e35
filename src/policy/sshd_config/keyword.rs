//! The keywords of sshd_config(5) whose decision the reader claims to know, and how sshd treats each.

/// Which of several lines count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Multiplicity {
    /// The first one that is read.
    FirstWins,
    /// All of them, one after the other; inside `Match` blocks they replace the global ones.
    Cumulative,
}

/// A keyword of sshd_config(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyword {
    /// As the manual page spells it.
    pub name: &'static str,
    /// Its older names.
    pub aliases: &'static [&'static str],
    /// Whether it may stand in a `Match` block.
    pub allowed_in_match: bool,
    /// Which of its lines count.
    pub multiplicity: Multiplicity,
}

/// Every keyword that the reader claims to know; tests/sshd_agrees.rs holds it against sshd on each.
pub const KNOWN_KEYWORDS: &[Keyword] = &[
    cumulative("AllowGroups"),
    cumulative("AllowUsers"),
    first_wins("AuthenticationMethods"),
    first_wins("AuthorizedKeysCommand"),
    first_wins("AuthorizedKeysFile"),
    first_wins("ChrootDirectory"),
    cumulative("DenyGroups"),
    cumulative("DenyUsers"),
    first_wins("ForceCommand"),
    Keyword {
        aliases: &["ChallengeResponseAuthentication", "SkeyAuthentication"],
        ..first_wins("KbdInteractiveAuthentication")
    },
    first_wins("MaxSessions"),
    first_wins("PasswordAuthentication"),
    first_wins("PermitEmptyPasswords"),
    first_wins("PermitRootLogin"),
    Keyword { aliases: &["PubkeyAcceptedKeyTypes"], ..first_wins("PubkeyAcceptedAlgorithms") },
    Keyword { aliases: &["DSAAuthentication"], ..first_wins("PubkeyAuthentication") },
    first_wins("RefuseConnection"),
    Keyword { aliases: &["RSAMinSize"], ..first_wins("RequiredRSASize") },
    first_wins("RevokedKeys"),
    global_only("StrictModes"),
    global_only("UseDNS"),
    global_only("UsePAM"),
];

const fn first_wins(name: &'static str) -> Keyword {
    Keyword { name, aliases: &[], allowed_in_match: true, multiplicity: Multiplicity::FirstWins }
}

const fn cumulative(name: &'static str) -> Keyword {
    Keyword { name, aliases: &[], allowed_in_match: true, multiplicity: Multiplicity::Cumulative }
}

const fn global_only(name: &'static str) -> Keyword {
    Keyword { name, aliases: &[], allowed_in_match: false, multiplicity: Multiplicity::FirstWins }
}

impl Keyword {
    /// The keyword of this name, in any case and under any of its names.
    pub fn lookup(name: &str) -> Option<&'static Self> {
        KNOWN_KEYWORDS.iter().find(|keyword| keyword.is_named(name))
    }

    /// Whether `name` is one of its names.
    pub fn is_named(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
            || self.aliases.iter().any(|also| also.eq_ignore_ascii_case(name))
    }
}

/// A keyword as sshd_config(5) spells it, where it is one that is known here under this very name.
pub fn canonical_spelling(name: &str) -> &str {
    let names =
        KNOWN_KEYWORDS.iter().flat_map(|keyword| std::iter::once(&keyword.name).chain(keyword.aliases));
    names.copied().find(|known| known.eq_ignore_ascii_case(name)).unwrap_or(name)
}

/// Whether two names are names of one option.
pub(super) fn is_same_option(one: &str, other: &str) -> bool {
    match Keyword::lookup(one) {
        Some(keyword) => keyword.is_named(other),
        None => one.eq_ignore_ascii_case(other),
    }
}
