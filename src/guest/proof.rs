//! One question to the running sshd, with the ssh client and the public half of a key alone (contract 6, "Proof").

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};

use super::child;
use super::private::{PROOF, PrivateDirectory};
use super::sshd::HostKey;
use crate::policy::proof::{Seen, read};
use crate::policy::public_key::PublicKey;

/// The name under which the client finds this host's own keys.
const ALIAS: &str = "keypair-agent-proof";

/// Key exchanges that every client and nearly every sshd has. A hybrid with a lattice takes three times the whole
/// question's work, and nothing secret is said here.
const KEX: &str = "curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,ecdh-sha2-nistp384,\
                   ecdh-sha2-nistp521,diffie-hellman-group14-sha256,diffie-hellman-group16-sha512";

/// How long a refused connection is tried again: nothing was opened, and a listener that reloads comes back soon.
const REFUSED: Duration = Duration::from_secs(2);

/// How soon it is tried again.
const LOOK: Duration = Duration::from_millis(50);

/// Asks sshd at `address` what it offers `user` and, where there is a key, whether it would accept it.
///
/// # Errors
/// Why there is no answer.
pub(super) fn probe(
    run_dir: &Path,
    host_keys: &[HostKey],
    address: SocketAddr,
    user: &str,
    key: Option<&PublicKey>,
) -> Result<Seen, String> {
    if host_keys.is_empty() {
        return Err("no public host key of this guest can be read, to know sshd by".to_owned());
    }
    let directory = prepared(run_dir, host_keys, key)
        .map_err(|error| format!("no private directory can be made in {}: {error}", run_dir.display()))?;
    let deadline = Instant::now() + REFUSED;
    loop {
        let output = child::run(Path::new("ssh"), &arguments(directory.path(), address, user, key), "")
            .map_err(|error| error.to_string())?;
        let refused = output.stderr.contains("Connection refused");
        if !refused || Instant::now() >= deadline {
            return read(&output.stderr, key.is_some());
        }
        sleep(LOOK);
    }
}

/// No configuration, agent, control socket or secret of the client's; one method; the host key as we know it.
fn arguments(directory: &Path, address: SocketAddr, user: &str, key: Option<&PublicKey>) -> Vec<String> {
    let known_hosts = directory.join("known_hosts");
    let mut words: Vec<String> =
        ["-v", "-n", "-T", "-F", "none", "-l", user, "-p"].map(str::to_owned).to_vec();
    words.push(address.port().to_string());
    let options = [
        "BatchMode=yes".to_owned(),
        "CheckHostIP=no".to_owned(),
        "ClearAllForwardings=yes".to_owned(),
        "ConnectTimeout=5".to_owned(),
        "ControlMaster=no".to_owned(),
        "ControlPath=none".to_owned(),
        "GlobalKnownHostsFile=/dev/null".to_owned(),
        format!("HostKeyAlias={ALIAS}"),
        "IdentitiesOnly=yes".to_owned(),
        "IdentityAgent=none".to_owned(),
        format!("KexAlgorithms={KEX}"),
        "NumberOfPasswordPrompts=0".to_owned(),
        "PermitLocalCommand=no".to_owned(),
        "ProxyCommand=none".to_owned(),
        "StrictHostKeyChecking=yes".to_owned(),
        "UpdateHostKeys=no".to_owned(),
        format!("UserKnownHostsFile={}", known_hosts.display()),
        format!("PreferredAuthentications={}", if key.is_some() { "publickey" } else { "none" }),
    ];
    for option in options {
        words.extend(["-o".to_owned(), option]);
    }
    if key.is_some() {
        words.extend(["-i".to_owned(), directory.join("key").to_string_lossy().into_owned()]);
    }
    // A session never begins: there is no private half, and `none` is refused.
    words.extend(["--".to_owned(), address.ip().to_string(), "exit".to_owned()]);
    words
}

/// A private directory with the host's own keys and the key to ask about.
fn prepared(run_dir: &Path, host_keys: &[HostKey], key: Option<&PublicKey>) -> io::Result<PrivateDirectory> {
    let directory = PrivateDirectory::make(run_dir, PROOF)?;
    let known = |key: &HostKey| format!("{ALIAS} {} {}\n", key.key_type, Base64::encode_string(&key.blob));
    fs::write(directory.path().join("known_hosts"), host_keys.iter().map(known).collect::<String>())?;
    if let Some(key) = key {
        // The client wants it closed to others, as if it were the private half.
        let file = directory.path().join("key");
        fs::write(&file, format!("{}\n", key.line()))?;
        fs::set_permissions(&file, Permissions::from_mode(0o600))?;
    }
    Ok(directory)
}
