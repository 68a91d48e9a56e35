//! The key itself: of an algorithm that sshd takes, long enough, not revoked.

use std::path::PathBuf;

use super::{Facts, Judged, Rule};
use crate::policy::observation::Revocation;
use crate::policy::pattern::{Listed, listed};

/// The signature algorithm must be in the list; a client of today signs with an RSA key by SHA-2 alone.
pub(super) fn accepted_algorithms(facts: &Facts<'_>) -> Judged {
    let effective = facts.effective;
    let list = ["pubkeyacceptedalgorithms", "pubkeyacceptedkeytypes"];
    let list = list.iter().map(|name| effective.value(name)).find(|list| !list.is_empty());
    let algorithms: &[&str] = match facts.key.algorithm() {
        "ssh-rsa" => &["rsa-sha2-512", "rsa-sha2-256"],
        other => &[other],
    };
    match list {
        Some(list) if !algorithms.iter().any(|algorithm| listed(algorithm, list) == Listed::Yes) => {
            let cause = format!("sshd does not take {}", algorithms.join(" or "));
            let remedy = "add it to the list, or bind a key of another kind";
            Err(facts.by_value(Rule::PubkeyAcceptedAlgorithms, list, &cause, remedy))
        }
        _ => Ok(None),
    }
}

/// OpenSSH 9.1 on: the fewest bits of an RSA key.
pub(super) fn required_rsa_size(facts: &Facts<'_>) -> Judged {
    let effective = facts.effective;
    let least =
        ["requiredrsasize", "rsaminsize"].iter().find_map(|name| effective.value(name).parse::<usize>().ok());
    match (facts.key.rsa_bits(), least) {
        (Some(bits), Some(least)) if bits < least => {
            let cause = format!("the key has {bits} bits, and sshd takes RSA keys of {least} and more");
            let remedy = "bind a longer key, or an ssh-ed25519 one";
            Err(facts.by_value(Rule::RequiredRSASize, &least.to_string(), &cause, remedy))
        }
        _ => Ok(None),
    }
}

/// A key in RevokedKeys is refused; where that file cannot be read, every key is.
pub(super) fn revoked_keys(facts: &Facts<'_>) -> Judged {
    let Some(file) = revoked_keys_file(facts.effective.value("revokedkeys")) else { return Ok(None) };
    let fingerprint = facts.key.fingerprint().sha256;
    let (cause, remedy) = match facts.login.revocations.get(&(file.clone(), fingerprint.clone())) {
        None | Some(Revocation::NotRevoked) => return Ok(None),
        Some(Revocation::Revoked) => {
            (format!("{} revokes the key {fingerprint}", file.display()), "bind another key")
        }
        Some(Revocation::Unreadable(why)) => (
            format!("sshd cannot read {} and takes no key then: {why}", file.display()),
            "put it there, or remove the line",
        ),
    };
    Err(facts.by_value(Rule::RevokedKeys, &file.to_string_lossy(), &cause, remedy))
}

/// The file that a value of RevokedKeys names: sshd_config(5).
pub fn revoked_keys_file(value: &str) -> Option<PathBuf> {
    (!value.is_empty() && !value.eq_ignore_ascii_case("none")).then(|| PathBuf::from(value))
}
