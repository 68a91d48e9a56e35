//! Creates a host key for queries only, if sshd has none yet: ssh-keygen(1).

use std::path::Path;

use super::child;

/// Creates a host key without a passphrase at `path`. FIPS mode does not support Ed25519, and an sshd without
/// OpenSSL supports nothing else.
///
/// # Errors
/// The output of ssh-keygen.
pub(super) fn generate_host_key(path: &Path) -> Result<(), String> {
    let mut fault = String::new();
    for kind in ["ed25519", "ecdsa"] {
        let arguments = ["-q", "-t", kind, "-N", "", "-C", "", "-f"].map(AsRef::as_ref);
        let arguments: Vec<&std::ffi::OsStr> = arguments.into_iter().chain([path.as_os_str()]).collect();
        match child::run(Path::new("ssh-keygen"), &arguments, "") {
            Ok(output) if output.succeeded() => return Ok(()),
            Ok(output) => fault = output.diagnostic(),
            Err(error) => fault = error.to_string(),
        }
    }
    Err(fault)
}
