//! The keywords of sshd_config(5) that this module can resolve, and how sshd treats each of them.

/// Which lines count if several lines set one keyword.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Multiplicity {
    /// Only the first line that sshd reads counts.
    FirstWins,
    /// All lines count, one after the other. Lines inside `Match` blocks replace the global lines.
    Cumulative,
}

/// A keyword of sshd_config(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyword {
    /// The name, as the manual page spells it.
    pub name: &'static str,
    /// Its older names.
    pub aliases: &'static [&'static str],
    /// Whether the keyword may stand in a `Match` block.
    pub allowed_in_match: bool,
    /// Which of its lines count.
    pub multiplicity: Multiplicity,
}

/// Every keyword that this module can resolve. tests/sshd_agrees.rs compares the results with sshd for each keyword.
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
    /// Returns the keyword with this name or alias, in upper or lower case.
    pub fn lookup(name: &str) -> Option<&'static Self> {
        KNOWN_KEYWORDS.iter().find(|keyword| keyword.is_named(name))
    }

    /// Returns true if `name` is the name or an alias of this keyword.
    pub fn is_named(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
            || self.aliases.iter().any(|also| also.eq_ignore_ascii_case(name))
    }
}

/// Returns the spelling of sshd_config(5) if `name` is the main name of a known keyword. Otherwise returns `name`
/// itself.
pub fn canonical_spelling(name: &str) -> &str {
    let names =
        KNOWN_KEYWORDS.iter().flat_map(|keyword| std::iter::once(&keyword.name).chain(keyword.aliases));
    names.copied().find(|known| known.eq_ignore_ascii_case(name)).unwrap_or(name)
}

/// Returns true if both names mean the same option.
pub(super) fn is_same_option(one: &str, other: &str) -> bool {
    match Keyword::lookup(one) {
        Some(keyword) => keyword.is_named(other),
        None => one.eq_ignore_ascii_case(other),
    }
}
