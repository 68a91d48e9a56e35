//! `--signing-key`: both OpenSSH and the agent accept the signature of a command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use keypair_agent::policy::allowed_signers::AllowedSigners;
use keypair_agent::policy::command::{Origin, ReceivedCommand, parse_command};
use keypair_agent::policy::local_time::LocalTimeZone;
use keypair_agent::policy::signature::SignatureCheck;
use ssh_key::PrivateKey;
use support::{Server, controlplane_command};
use time::{Duration, OffsetDateTime};

/// A directory of keys, removed after the test.
struct KeyDir(PathBuf);

impl KeyDir {
    /// `None` if ssh-keygen is not installed; it also prints that the test is skipped.
    fn new(name: &str) -> Option<Self> {
        if Command::new("ssh-keygen").arg("-?").output().is_err() {
            eprintln!("SKIPPED: ssh-keygen is not installed");
            return None;
        }
        Some(Self(support::create_temp_dir(name)))
    }

    fn generate_key(&self, name: &str, words: &[&str]) -> String {
        let path = self.0.join(name);
        let made =
            Command::new("ssh-keygen").args(["-q", "-C", "platform", "-f"]).arg(&path).args(words).status();
        assert!(made.unwrap().success());
        path.to_str().unwrap().to_owned()
    }

    fn write_file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for KeyDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Polls the next command and parses it with the agent's parser.
fn receive_command(server: &Server) -> ReceivedCommand {
    let response = server.guest("i-1").get("/keypair/command?wait=60");
    assert_eq!(response.status, 200);
    parse_command(response.body.as_bytes(), Origin::Channel, &"none".parse().unwrap()).unwrap()
}

/// OpenSSH writes every fourth P-521 key with a scalar that is shorter than its curve.
#[test]
fn signing_key_with_short_ecdsa_scalar_is_accepted() {
    let Some(keys) = KeyDir::new("short") else { return };
    let mut made = (0..100)
        .map(|number| keys.generate_key(&format!("key{number}"), &["-t", "ecdsa", "-b", "521", "-N", ""]));
    let is_short = |key: &String| PrivateKey::from_openssh(fs::read_to_string(key).unwrap()).is_err();
    let key = made.find(is_short).unwrap();
    assert_command_verifies(&keys, &key);
}

/// KP-9.10.
#[test]
fn signed_command_verifies_with_ssh_keygen_and_agent() {
    let Some(keys) = KeyDir::new("signing") else { return };
    for words in [
        &["-t", "ed25519"][..],
        &["-t", "ecdsa"],
        &["-t", "ecdsa", "-b", "384"],
        &["-t", "ecdsa", "-b", "521"],
    ] {
        let key = keys.generate_key(&words.concat(), &[words, &["-N", ""]].concat());
        assert_command_verifies(&keys, &key);
    }
}

/// Starts a control plane with this signing key. OpenSSH and the agent must accept its command.
#[track_caller]
fn assert_command_verifies(keys: &KeyDir, key: &str) {
    let signers = format!("platform {}", fs::read_to_string(format!("{key}.pub")).unwrap());
    let server = Server::start(&["--instance", "i-1", "--attach-wait", "0", "--signing-key", key]);
    server.import("k", 1).result();
    server.attach("k", &["i-1"], "no").result();

    let first = receive_command(&server);
    let envelope = first.envelope.clone().unwrap();
    let command = first.command.unwrap();
    let now = OffsetDateTime::now_utc();
    let expires_in = command.expires_at.unwrap() - now;
    assert!(expires_in > Duration::minutes(30) && expires_in <= Duration::hours(1), "{expires_in}");

    let trusted =
        AllowedSigners::parse(signers.as_bytes(), Path::new("signers"), &LocalTimeZone::from_localtime(None))
            .unwrap();
    assert_eq!(envelope.verify_signature(&trusted, Some(now)), SignatureCheck::Valid, "{key}");
    let (file, signature) =
        (keys.write_file("signers", &signers), keys.write_file("signature", &envelope.signature));
    let mut verify = Command::new("ssh-keygen")
        .args(["-q", "-Y", "verify", "-I", "platform", "-n", "keypair-agent", "-f"])
        .arg(file)
        .arg("-s")
        .arg(signature)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    verify.stdin.take().unwrap().write_all(&envelope.payload).unwrap();
    assert!(verify.wait().unwrap().success(), "{key}");

    // A second hand-out is the same command, except for `expiresAt`.
    let mut again = receive_command(&server).command.unwrap();
    assert!(again.expires_at >= command.expires_at);
    again.expires_at = command.expires_at;
    assert_eq!(again, command);
}

#[test]
fn signing_key_unusable_is_refused_with_remedy() {
    let Some(keys) = KeyDir::new("refused") else { return };
    let locked = keys.generate_key("locked", &["-t", "ed25519", "-N", "a passphrase"]);
    let rsa = keys.generate_key("rsa", &["-t", "rsa", "-b", "2048", "-N", ""]);
    let pem = keys.generate_key("pem", &["-t", "ecdsa", "-m", "PEM", "-N", ""]);
    let missing = keys.0.join("missing").to_str().unwrap().to_owned();
    for (path, said) in [
        (&locked, "ssh-keygen -p -N ''"),
        (&rsa, "kind ssh-rsa does not sign commands"),
        (&pem, "no OpenSSH private key"),
        (&format!("{rsa}.pub"), "no OpenSSH private key"),
        (&missing, "cannot be read: No such file"),
    ] {
        let output = controlplane_command().args(["serve", "--signing-key", path]).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(path.as_str()) && error.contains(said), "{error}");
    }
}
