//! Commands as a platform signs them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use base64ct::{Base64, Encoding};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::daemon::queued;
use super::{Key, with};

/// A time from now, in RFC 3339.
pub fn in_(duration: Duration) -> Value {
    json!((OffsetDateTime::now_utc() + duration).format(&Rfc3339).unwrap())
}

/// A command that expires so long from now.
pub fn expiring(after: Duration, id: &str, sequence: u64, command: Value) -> Value {
    with(queued(id, sequence, command), "expiresAt", in_(after))
}

/// A command that expires soon, in the future.
pub fn fresh(id: &str, sequence: u64, command: Value) -> Value {
    expiring(Duration::minutes(10), id, sequence, command)
}

/// `ssh-keygen -Y sign`.
pub fn signature_in(namespace: &str, key: &Path, payload: &[u8]) -> String {
    let mut child = Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", namespace, "-f"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(payload).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

pub fn signature(key: &Key, payload: &[u8]) -> String {
    signature_in("keypair-agent", &key.private, payload)
}

pub fn envelope(payload: &[u8], signature: &str) -> Value {
    json!({ "payload": Base64::encode_string(payload), "signature": signature })
}

pub fn signed(key: &Key, command: &Value) -> Value {
    let payload = command.to_string().into_bytes();
    envelope(&payload, &signature(key, &payload))
}
