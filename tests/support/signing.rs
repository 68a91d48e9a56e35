//! Commands with the signature of a platform.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use base64ct::{Base64, Encoding};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::daemon::make_channel_command;
use super::{TestKey, with_field};

/// The time `duration` from now, in RFC 3339.
pub fn rfc3339_after(duration: Duration) -> Value {
    json!((OffsetDateTime::now_utc() + duration).format(&Rfc3339).unwrap())
}

/// A command that expires after this duration.
pub fn make_expiring_command(after: Duration, id: &str, sequence: u64, command: Value) -> Value {
    with_field(make_channel_command(id, sequence, command), "expiresAt", rfc3339_after(after))
}

/// A command that expires 10 minutes from now.
pub fn make_fresh_command(id: &str, sequence: u64, command: Value) -> Value {
    make_expiring_command(Duration::minutes(10), id, sequence, command)
}

/// A signature by `ssh-keygen -Y sign`.
pub fn sign_in_namespace(namespace: &str, key: &Path, payload: &[u8]) -> String {
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

pub fn sign_payload(key: &TestKey, payload: &[u8]) -> String {
    sign_in_namespace("keypair-agent", &key.private, payload)
}

pub fn make_envelope(payload: &[u8], signature: &str) -> Value {
    json!({ "payload": Base64::encode_string(payload), "signature": signature })
}

pub fn sign_command(key: &TestKey, command: &Value) -> Value {
    let payload = command.to_string().into_bytes();
    make_envelope(&payload, &sign_payload(key, &payload))
}
