//! An OpenSSH public key that may be bound: parsed, of an accepted kind, strong enough (contract 3).

use std::fmt;

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, EcdsaCurve};

use super::outcome::{Reason, Refusal};

/// The longest line that is read as a key: 16 KiB.
const MAX_LINE: usize = 16 * 1024;

/// The fewest bits of an RSA modulus.
const MIN_RSA_BITS: usize = 2048;

/// A public key's fingerprints, as ssh-keygen(1) `-l -E sha256` and the platform show them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// `SHA256:` and unpadded base64.
    pub sha256: String,
    /// Lower-case pairs joined by colons (RFC 4716).
    pub md5: String,
}

/// A public key of an accepted kind, without options: type, blob and comment.
///
/// Two are equal when type and blob are; the comment takes no part in it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey {
    algorithm: String,
    blob: Vec<u8>,
    comment: String,
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.blob == other.blob
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    /// The fingerprint alone: key text never reaches a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint().sha256)
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.line()
    }
}

impl TryFrom<String> for PublicKey {
    type Error = String;
    fn try_from(line: String) -> Result<Self, String> {
        Self::parse(&line).map_err(|refusal| refusal.message)
    }
}

impl PublicKey {
    /// Reads `publicKey` of a command: one OpenSSH line (one newline at its end is dropped), or that line
    /// in base64.
    ///
    /// # Errors
    /// `INVALID_PUBLIC_KEY` or `WEAK_PUBLIC_KEY`, with the cause.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        if text.len() > MAX_LINE {
            return Err(invalid("it is longer than 16 KiB"));
        }
        let line = strip_newline(text);
        if !line.contains([' ', '\t']) && !line.is_empty() {
            let decoded = Base64::decode_vec(line)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| invalid("it is neither an OpenSSH line nor one in base64"))?;
            return Self::parse_line(strip_newline(&decoded));
        }
        Self::parse_line(line)
    }

    fn parse_line(line: &str) -> Result<Self, Refusal> {
        if line.contains(['\r', '\n', '\0']) {
            return Err(invalid("it holds a CR, LF or NUL: one key on one line is expected"));
        }
        let line = line.trim_matches([' ', '\t']);
        let (algorithm, rest) = split_word(line);
        let (encoded, comment) = split_word(rest);
        if encoded.is_empty() {
            return Err(invalid("it has no key type and blob: 'ssh-ed25519 AAAA... comment' is expected"));
        }
        if algorithm.contains("-cert-v0") {
            return Err(invalid("it is a certificate, and only plain keys can be bound"));
        }
        if matches!(algorithm, "ssh-dss" | "ssh-rsa1") {
            return Err(Refusal::new(Reason::WeakPublicKey, "DSA keys are no longer accepted by sshd"));
        }
        if !is_accepted(algorithm) {
            return Err(invalid(
                "it does not begin with an accepted key type (no options may stand in front)",
            ));
        }
        let blob = Base64::decode_vec(encoded).map_err(|_| invalid("its blob is not base64"))?;
        let key = ssh_key::PublicKey::from_bytes(&blob)
            .map_err(|_| invalid("its blob is not a well-formed public key"))?;
        if key.algorithm().as_str() != algorithm {
            return Err(invalid("its blob is of another type than the line says"));
        }
        // sshd reads the blob strictly; what it would write differently it may refuse.
        let canonical = key.to_bytes().ok();
        if canonical.as_deref() != Some(blob.as_slice()) {
            return Err(invalid("its blob is not in canonical form"));
        }
        if let KeyData::Rsa(rsa) = key.key_data() {
            let bits = rsa.n.as_positive_bytes().map_or(0, bit_length);
            if bits < MIN_RSA_BITS {
                return Err(Refusal::new(
                    Reason::WeakPublicKey,
                    format!("the RSA key has {bits} bits; at least {MIN_RSA_BITS} are needed"),
                ));
            }
            let exponent = rsa.e.as_positive_bytes().unwrap_or_default();
            if exponent.last().is_none_or(|low| low % 2 == 0) || exponent == [1] {
                return Err(Refusal::new(Reason::WeakPublicKey, "the RSA key's exponent is 1 or even"));
            }
        }
        if holds_a_key(comment) {
            return Err(invalid("a second key stands on the line"));
        }
        Ok(Self { algorithm: algorithm.to_owned(), blob, comment: comment.to_owned() })
    }

    /// The key type, as in `ssh-ed25519`.
    pub fn algorithm(&self) -> &str {
        &self.algorithm
    }

    /// The key in its wire form (RFC 4253, 6.6).
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// The line as it is written into authorized_keys, without a newline.
    pub fn line(&self) -> String {
        let encoded = Base64::encode_string(&self.blob);
        match self.comment.as_str() {
            "" => format!("{} {encoded}", self.algorithm),
            comment => format!("{} {encoded} {comment}", self.algorithm),
        }
    }

    /// Both fingerprints.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint_of(&self.blob)
    }

    /// The bits of an RSA modulus; `None` for the other kinds.
    pub fn rsa_bits(&self) -> Option<usize> {
        match ssh_key::PublicKey::from_bytes(&self.blob).map(KeyData::from) {
            Ok(KeyData::Rsa(rsa)) => rsa.n.as_positive_bytes().map(bit_length),
            _ => None,
        }
    }
}

/// Both fingerprints of a key blob.
pub fn fingerprint_of(blob: &[u8]) -> Fingerprint {
    use base64ct::Base64Unpadded;
    use md5::Md5;
    use sha2::{Digest, Sha256};
    let md5: Vec<String> = Md5::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    Fingerprint {
        sha256: format!("SHA256:{}", Base64Unpadded::encode_string(&Sha256::digest(blob))),
        md5: md5.join(":"),
    }
}

/// Whether `algorithm` is one of the kinds that may be bound (contract 3).
fn is_accepted(algorithm: &str) -> bool {
    matches!(
        Algorithm::new(algorithm),
        Ok(Algorithm::Ed25519
            | Algorithm::Rsa { hash: None }
            | Algorithm::SkEd25519
            | Algorithm::SkEcdsaSha2NistP256
            | Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 | EcdsaCurve::NistP384 | EcdsaCurve::NistP521 })
    )
}

/// Whether a comment hides a second key: a key type followed by a blob of that type.
fn holds_a_key(comment: &str) -> bool {
    let words: Vec<&str> = comment.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
    words.windows(2).any(|pair| {
        Base64::decode_vec(pair[1]).is_ok_and(|blob| {
            let mut named = Vec::from((pair[0].len() as u32).to_be_bytes());
            named.extend_from_slice(pair[0].as_bytes());
            blob.starts_with(&named)
        })
    })
}

fn bit_length(bytes: &[u8]) -> usize {
    let significant: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
    significant.first().map_or(0, |first| significant.len() * 8 - first.leading_zeros() as usize)
}

fn strip_newline(text: &str) -> &str {
    text.strip_suffix('\n').unwrap_or(text)
}

/// The first word and what follows it, without the blanks between them.
fn split_word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    (word, rest.trim_start_matches([' ', '\t']))
}

fn invalid(why: &str) -> Refusal {
    Refusal::new(Reason::InvalidPublicKey, format!("publicKey is refused: {why}"))
}
