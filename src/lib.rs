//! The keypair agent: applies the SSH key that a cloud binds to this instance, and proves that it took effect.

pub mod channel;
pub mod guest;
pub mod policy;
