//! Runs all seeds and all former findings of the fuzz targets (fuzz/, `make fuzz`), without a fuzzer.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub)] // It is a crate of its own for the fuzzer.
mod fuzzed;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

#[test]
fn fuzz_targets_pass_on_corpus() {
    for (name, target) in fuzzed::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut tried = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            assert!(catch_unwind(|| target(&bytes)).is_ok(), "{} is a finding", path.display());
            tried += 1;
        }
        assert!(tried > 2, "{} is all but empty", folder.display());
    }
}

/// With an invalid seed, the target could not distinguish a forged envelope from a genuine one.
#[test]
fn seed_envelopes_verify() {
    for kind in ["ed25519", "ecdsa"] {
        let path = format!("fuzz/genuine/envelope-{kind}.json");
        let bytes = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path)).unwrap();
        assert!(fuzzed::is_valid_envelope(&bytes), "{path}");
    }
}
