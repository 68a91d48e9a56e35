//! The invariants, by name.

/// An invariant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Invariant {
    /// KP-4's table.
    Outcome,
    /// One result per command, with the same bytes at each repetition of the command (KP-4.7, KP-7.3).
    OneResult,
    /// Passwords are never off without a key that gives access, except after a detach or the user's own edit. This
    /// holds at any time, for the running sshd and for one that starts now.
    NeverLockedOut,
    /// Never two keys of the agent, and never none during a replacement (KP-4.2).
    NeverTwoKeys,
    /// Never a key that no command asked for.
    NoUnrequestedKey,
    /// Every byte of the user's lines is kept (KP-5.5, KP-6.13).
    UserBytesKept,
    /// `succeeded` is true for the running sshd and for authorized_keys at that moment.
    SucceededIsTrue,
    /// `failed` left everything as before (KP-4.9).
    FailedChangesNothing,
    /// After a restart and its recovery: no open intent, no temporary files, each file as before, and sshd runs with
    /// the settings in its files.
    Recovered,
    /// After the last fault, every command gets an answer.
    Answered,
}

impl Invariant {
    /// All invariants.
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

/// The violation of an invariant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Violation {
    /// The violated invariant.
    pub property: Invariant,
    /// The observation.
    pub what: String,
}
