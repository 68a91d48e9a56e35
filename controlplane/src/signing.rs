//! `--signing-key`: commands go out in an envelope, signed when they are handed out (contract 3, "Signed commands").

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use keypair_agent::policy::command::Command;
use keypair_agent::policy::signature::NAMESPACE;
use serde_json::json;
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey};
use time::{Duration, OffsetDateTime};

/// How long a signed command is to be obeyed. It is counted from its handing out, so that one that waits does not
/// expire; and long, since the guest's clock decides.
const OBEYED_FOR: Duration = Duration::hours(1);

/// The key that commands are signed with.
pub struct SigningKey(PrivateKey);

/// Why there is no such key. Its text is one line: file, cause, remedy.
#[derive(Debug)]
pub struct SigningKeyError {
    path: PathBuf,
    why: Why,
}

#[derive(Debug)]
enum Why {
    Unreadable(io::Error),
    NoKey,
    Encrypted,
    OtherKind(String),
}

impl fmt::Display for SigningKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.why {
            Why::Unreadable(error) => write!(f, "--signing-key {path}: it cannot be read: {error}"),
            Why::NoKey => write!(
                f,
                "--signing-key {path}: this is no OpenSSH private key; make one with ssh-keygen -t ed25519 -N '' -f FILE"
            ),
            Why::Encrypted => write!(
                f,
                "--signing-key {path}: the key has a passphrase, and nobody is here to say it; ssh-keygen -p -N '' -f FILE \
                 takes it off"
            ),
            Why::OtherKind(kind) => write!(
                f,
                "--signing-key {path}: a key of the kind {kind} does not sign commands; Ed25519 and ECDSA keys do"
            ),
        }
    }
}

impl std::error::Error for SigningKeyError {}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.0.fingerprint(HashAlg::Sha256))
    }
}

/// A command was not signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotSigned(String);

impl fmt::Display for NotSigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a command cannot be signed: {}", self.0)
    }
}

impl std::error::Error for NotSigned {}

impl SigningKey {
    /// Reads an OpenSSH private key without a passphrase.
    ///
    /// # Errors
    /// The file, what is wrong with it, and the remedy.
    pub fn load(path: &Path) -> Result<Self, SigningKeyError> {
        let fault = |why| SigningKeyError { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => fault(Why::NoKey),
            _ => fault(Why::Unreadable(error)),
        })?;
        let key = PrivateKey::from_openssh(text).map_err(|_| fault(Why::NoKey))?;
        if key.is_encrypted() {
            return Err(fault(Why::Encrypted));
        }
        match key.algorithm() {
            Algorithm::Ed25519 | Algorithm::Ecdsa { .. } => Ok(Self(key)),
            other => Err(fault(Why::OtherKind(other.to_string()))),
        }
    }

    /// The envelope of a command that is handed out now. Handed out again it is the same command: what is signed differs
    /// in `expiresAt` alone.
    ///
    /// # Errors
    /// [`NotSigned`], which a key that was loaded does not cause.
    pub fn seal(&self, command: &Command, now: OffsetDateTime) -> Result<String, NotSigned> {
        let expires_at = (now + OBEYED_FOR).replace_nanosecond(0).unwrap_or(now + OBEYED_FOR);
        let command = Command { expires_at: Some(expires_at), ..command.clone() };
        let failed = |why: &dyn fmt::Display| NotSigned(why.to_string());
        let payload = serde_json::to_vec(&command).map_err(|error| failed(&error))?;
        let signature = self.0.sign(NAMESPACE, HashAlg::Sha512, &payload).map_err(|error| failed(&error))?;
        let signature = signature.to_pem(LineEnding::LF).map_err(|error| failed(&error))?;
        Ok(json!({ "payload": Base64::encode_string(&payload), "signature": signature }).to_string())
    }
}
