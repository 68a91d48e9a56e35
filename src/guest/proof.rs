//! One probe of the running sshd (KP-10.13).

use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};

use super::private::{PROBE_DIR_PREFIX, ScratchDir};
use super::ssh_client::{ClientProbe, FAST_KEX, Route};
use super::sshd::PublicHostKey;
use crate::policy::proof::{ProbeResult, parse_client_log};
use crate::policy::public_key::PublicKey;
use crate::policy::trial::ClientReport;

/// The name under which the client finds the guest's own host keys.
const HOST_KEY_ALIAS: &str = "keypair-agent-proof";

/// The time for which a refused connection is retried. A refused connection was never opened, and a listener that
/// reloads is back soon.
const CONNECTION_REFUSED_TIMEOUT: Duration = Duration::from_secs(2);

/// The interval between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Probes sshd at `address`: which methods it offers to `user`, and, if there is a key, whether it would accept the
/// key.
///
/// # Errors
/// The reason why there is no answer.
pub(super) fn probe(
    run_dir: &Path,
    host_keys: &[PublicHostKey],
    address: SocketAddr,
    user: &str,
    key: Option<&PublicKey>,
) -> Result<ProbeResult, String> {
    if host_keys.is_empty() {
        return Err("no public host key of this guest can be read, to know sshd by".to_owned());
    }
    let directory = ScratchDir::create(run_dir, PROBE_DIR_PREFIX)
        .map_err(|error| format!("no private directory can be made in {}: {error}", run_dir.display()))?;
    let known = |key: &PublicHostKey| {
        format!("{HOST_KEY_ALIAS} {} {}\n", key.key_type, Base64::encode_string(&key.blob))
    };
    let known_hosts: String = host_keys.iter().map(known).collect();
    let deadline = Instant::now() + CONNECTION_REFUSED_TIMEOUT;
    let mut kex = Some(FAST_KEX);
    loop {
        let question = ClientProbe {
            directory: directory.path(),
            user,
            key,
            route: Route::Tcp { from: None, to: address.ip().to_string(), port: address.port() },
            host: Some((HOST_KEY_ALIAS, &known_hosts)),
            kex,
        };
        let log = question.run().map_err(|error| error.to_string())?.text;
        if ClientReport::lacks_key_exchange(&log) && kex.take().is_some() {
            continue;
        }
        if !ClientReport::is_connection_refused(&log) || Instant::now() >= deadline {
            return parse_client_log(&log);
        }
        sleep(RETRY_INTERVAL);
    }
}
