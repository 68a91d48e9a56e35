//! A home whose owner does what he can while the agent works in it, and what lies around it that is none of his.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

pub mod land;
pub mod mounter;
pub mod user;

/// Small, quick, and the same for the same seed (xorshift64).
pub struct Dice(u64);

impl Dice {
    pub fn of(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// From 0 to below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides
    }
}
