//! The keypair agent.

fn main() {}
