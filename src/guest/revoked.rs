//! Whether a file of RevokedKeys names a key: sshd_config(5), ssh-keygen(1) "KEY REVOCATION LISTS".

use std::path::Path;

use super::child;
use super::files::read_file;
use crate::policy::authorized_keys::key_lines;
use crate::policy::observation::Revocation;
use crate::policy::public_key::PublicKey;

/// The most that is read of a list of revoked keys.
const LIMIT: usize = 64 * 1024 * 1024;

/// What a key revocation list begins with; any other file is one public key a line.
const KRL_MAGIC: &[u8] = b"SSHKRL\n\0";

pub(super) fn revocation(file: &Path, key: &PublicKey) -> Revocation {
    let content = match read_file(file, LIMIT) {
        Ok(Some(content)) => content,
        Ok(None) => return Revocation::Unreadable("there is no such file".to_owned()),
        Err(error) => return Revocation::Unreadable(error.to_string()),
    };
    if !content.starts_with(KRL_MAGIC) {
        let is_named = key_lines(&content).iter().any(|line| line.options.is_empty() && line.key == *key);
        return if is_named { Revocation::Revoked } else { Revocation::NotRevoked };
    }
    // It answers `ok` or `REVOKED` for the key; standard input is the key's file.
    let arguments = ["-Q".as_ref(), "-f".as_ref(), file.as_os_str(), "/dev/stdin".as_ref()];
    match child::run(Path::new("ssh-keygen"), &arguments, &format!("{}\n", key.line())) {
        Err(error) => Revocation::Unreadable(error.to_string()),
        Ok(output) if output.stdout.trim_end().ends_with("REVOKED") => Revocation::Revoked,
        Ok(output) if output.succeeded() => Revocation::NotRevoked,
        Ok(output) => Revocation::Unreadable(output.words()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn lists_of_both_kinds() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let made = |name: &str| {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(at(name))
                .status();
            made.is_ok_and(|status| status.success()).then(|| {
                PublicKey::parse(fs::read_to_string(at(name).with_extension("pub")).unwrap().trim_end())
                    .unwrap()
            })
        };
        let (Some(one), Some(other)) = (made("one"), made("other")) else {
            eprintln!("SKIPPED: ssh-keygen is not installed");
            return;
        };
        assert!(matches!(revocation(&at("none"), &one), Revocation::Unreadable(_)));
        fs::write(at("text"), format!("# revoked\n\n{}\n", one.line())).unwrap();
        let krl =
            Command::new("ssh-keygen").args(["-q", "-k", "-f"]).arg(at("krl")).arg(at("one.pub")).status();
        assert!(krl.unwrap().success());
        for list in ["text", "krl"] {
            assert_eq!(revocation(&at(list), &one), Revocation::Revoked, "{list}");
            assert_eq!(revocation(&at(list), &other), Revocation::NotRevoked, "{list}");
        }
        fs::write(at("broken"), KRL_MAGIC).unwrap();
        assert!(matches!(revocation(&at("broken"), &one), Revocation::Unreadable(_)));
    }
}
