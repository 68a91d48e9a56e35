//! Luck of which a seed makes the same again.

/// Small, quick, and the same for the same seed (xorshift64).
pub struct SeededRng(u64);

impl SeededRng {
    pub fn from_seed(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// From 0 to below `sides`.
    pub fn next_below(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides
    }
}
