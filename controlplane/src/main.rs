//! Reference control plane.
fn main() {}
