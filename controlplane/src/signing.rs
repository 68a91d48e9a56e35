//! `--signing-key`: each command is signed at hand-out, and sent in an envelope (KP-9.10).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use keypair_agent::policy::command::Command;
use keypair_agent::policy::signature::SIGNATURE_NAMESPACE;
use serde_json::json;
use ssh_encoding::Decode;
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey};
use time::{Duration, OffsetDateTime};

/// The validity of a signed command. It starts at hand-out, so that a command does not expire in the queue. It is
/// long, because the guest's clock decides.
const SIGNED_COMMAND_VALIDITY: Duration = Duration::hours(1);

/// The private key that signs commands.
pub struct SigningKey(PrivateKey);

/// Why the signing key cannot be used. The text is one line: file, cause and remedy.
#[derive(Debug)]
pub struct SigningKeyError {
    path: PathBuf,
    why: SigningKeyProblem,
}

#[derive(Debug)]
enum SigningKeyProblem {
    Unreadable(io::Error),
    NotPrivateKey,
    Encrypted,
    UnsupportedAlgorithm(String),
}

impl fmt::Display for SigningKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.why {
            SigningKeyProblem::Unreadable(error) => {
                write!(f, "--signing-key {path}: it cannot be read: {error}")
            }
            SigningKeyProblem::NotPrivateKey => write!(
                f,
                "--signing-key {path}: this is no OpenSSH private key; make one with ssh-keygen -t ed25519 -N '' -f FILE"
            ),
            SigningKeyProblem::Encrypted => write!(
                f,
                "--signing-key {path}: the key has a passphrase, and nobody is here to say it; ssh-keygen -p -N '' -f FILE \
                 takes it off"
            ),
            SigningKeyProblem::UnsupportedAlgorithm(kind) => write!(
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

/// A command could not be signed; holds the cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningError(String);

impl fmt::Display for SigningError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a command cannot be signed: {}", self.0)
    }
}

impl std::error::Error for SigningError {}

impl SigningKey {
    /// Reads an OpenSSH private key without a passphrase.
    ///
    /// # Errors
    /// The file cannot be read, or its key is not usable. The error names the file, the cause and the remedy.
    pub fn load(path: &Path) -> Result<Self, SigningKeyError> {
        let fault = |why| SigningKeyError { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => fault(SigningKeyProblem::NotPrivateKey),
            _ => fault(SigningKeyProblem::Unreadable(error)),
        })?;
        let key = PrivateKey::from_openssh(&text)
            .ok()
            .or_else(|| PrivateKey::from_bytes(&pad_ecdsa_scalar(&text)?).ok())
            .ok_or_else(|| fault(SigningKeyProblem::NotPrivateKey))?;
        if key.is_encrypted() {
            return Err(fault(SigningKeyProblem::Encrypted));
        }
        match key.algorithm() {
            Algorithm::Ed25519 | Algorithm::Ecdsa { .. } => Ok(Self(key)),
            other => Err(fault(SigningKeyProblem::UnsupportedAlgorithm(other.to_string()))),
        }
    }

    /// Signs a command and returns its envelope as JSON. A later hand-out of the same command differs only in
    /// `expiresAt`.
    ///
    /// # Errors
    /// [`SigningError`]; a loaded key does not cause it in practice.
    pub fn sign_command(&self, command: &Command, now: OffsetDateTime) -> Result<String, SigningError> {
        let expires_at =
            (now + SIGNED_COMMAND_VALIDITY).replace_nanosecond(0).unwrap_or(now + SIGNED_COMMAND_VALIDITY);
        let command = Command { expires_at: Some(expires_at), ..command.clone() };
        let failed = |why: &dyn fmt::Display| SigningError(why.to_string());
        let payload = serde_json::to_vec(&command).map_err(|error| failed(&error))?;
        let signature =
            self.0.sign(SIGNATURE_NAMESPACE, HashAlg::Sha512, &payload).map_err(|error| failed(&error))?;
        let signature = signature.to_pem(LineEnding::LF).map_err(|error| failed(&error))?;
        Ok(json!({ "payload": Base64::encode_string(&payload), "signature": signature }).to_string())
    }
}

/// Pads the scalar of a private ECDSA key with leading zeros, as the `ssh-key` crate expects. OpenSSH omits leading
/// zeros (PROTOCOL.key), so every fourth P-521 key would be too short for the crate. `None` if it is a key of another
/// kind, or has a passphrase.
fn pad_ecdsa_scalar(text: &str) -> Option<Vec<u8>> {
    const MAGIC: &[u8] = b"openssh-key-v1\0";
    let lines = text.lines().filter(|line| !line.starts_with("-----"));
    let blob = Base64::decode_vec(&lines.collect::<String>()).ok()?;
    let mut rest = blob.strip_prefix(MAGIC)?;
    let string = |from: &mut &[u8]| Vec::<u8>::decode(from).ok();
    let (cipher, kdf, options) = (string(&mut rest)?, string(&mut rest)?, string(&mut rest)?);
    let count = u32::decode(&mut rest).ok()?;
    let (public, private) = (string(&mut rest)?, string(&mut rest)?);
    if cipher != b"none" || !rest.is_empty() {
        return None;
    }
    let mut rest = private.as_slice();
    let check = u64::decode(&mut rest).ok()?;
    let kind = string(&mut rest)?;
    let size: usize = match kind.as_slice() {
        b"ecdsa-sha2-nistp256" => 32,
        b"ecdsa-sha2-nistp384" => 48,
        b"ecdsa-sha2-nistp521" => 66,
        _ => return None,
    };
    let (curve, point) = (string(&mut rest)?, string(&mut rest)?);
    let (scalar, comment) = (string(&mut rest)?, string(&mut rest)?);
    let zeros = vec![0u8; size.checked_sub(scalar.len())?];
    let mut private = check.to_be_bytes().to_vec();
    for part in [kind, curve, point, [zeros, scalar].concat(), comment] {
        write_ssh_string(&mut private, &part)?;
    }
    // The padding up to a whole block is 1, 2, 3, …
    let missing = private.len().next_multiple_of(8) - private.len();
    private.extend((1u8..).take(missing));
    let mut whole = MAGIC.to_vec();
    for part in [cipher, kdf, options] {
        write_ssh_string(&mut whole, &part)?;
    }
    whole.extend(count.to_be_bytes());
    write_ssh_string(&mut whole, &public)?;
    write_ssh_string(&mut whole, &private)?;
    Some(whole)
}

/// Appends a `string` of RFC 4251: its length, then its bytes.
fn write_ssh_string(to: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    to.extend(u32::try_from(bytes.len()).ok()?.to_be_bytes());
    to.extend(bytes);
    Some(())
}
