//! What has to hold, by name.

/// An invariant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Invariant {
    /// KP-4's table.
    Outcome,
    /// One result a command, and the same bytes whenever it is handed out again (KP-4.7, KP-7.3).
    OneResult,
    /// Passwords are never off without a key that lets in, but by a detach or the user's own edit: in the running sshd,
    /// and in one that starts now, at every instant.
    NeverLockedOut,
    /// Never two keys of ours, nor none while one replaces the other (KP-4.2).
    NeverTwoKeys,
    /// Never a key that was not asked for.
    NoUnrequestedKey,
    /// Each byte of the user's (KP-5.5, KP-6.13).
    UserBytesKept,
    /// `succeeded` is true of the running sshd and of authorized_keys at that moment.
    SucceededIsTrue,
    /// `failed` left everything as it was (KP-4.9).
    FailedChangesNothing,
    /// After a restart and its recovery: no open intent, no temporaries, each file as it was, sshd runs by its files.
    Recovered,
    /// Once faults stop, every command is answered.
    Answered,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Outcome,
        Self::OneResult,
        Self::NeverLockedOut,
        Self::NeverTwoKeys,
        Self::NoUnrequestedKey,
        Self::UserBytesKept,
        Self::SucceededIsTrue,
        Self::FailedChangesNothing,
        Self::Recovered,
        Self::Answered,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outcome => "the outcome is the one of KP-4.1 to KP-4.8",
            Self::OneResult => "one result a command, the same bytes every time",
            Self::NeverLockedOut => "passwords are never off without a key that lets in",
            Self::NeverTwoKeys => "never two keys of ours, nor none in between",
            Self::NoUnrequestedKey => "never a key that was not asked for",
            Self::UserBytesKept => "the user's bytes are intact",
            Self::SucceededIsTrue => "a succeeded result is true",
            Self::FailedChangesNothing => "a failed command leaves everything as it was",
            Self::Recovered => "recovery finishes or takes back",
            Self::Answered => "every command is answered in the end",
        }
    }
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Violation {
    /// Which invariant does not hold.
    pub property: Invariant,
    /// What was seen.
    pub what: String,
}
