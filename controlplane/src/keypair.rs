//! Key pairs as the platform stores them.

use std::fmt;
use std::str::FromStr;

use keypair_agent::policy::command::KeyPair;
use keypair_agent::policy::public_key::PublicKey;
use keypair_agent::policy::types::Invalid;
use p256::SecretKey;
use p256::pkcs8::{EncodePrivateKey, LineEnding};
use rand_core::OsRng;
use serde::Deserialize;
use ssh_key::public::{EcdsaPublicKey, KeyData};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// A region of the platform, for example `cn-north-1`: 1 to 32 lower-case letters, digits and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Region(String);

impl FromStr for Region {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if text.is_empty() || text.len() > 32 || !text.bytes().all(allowed) {
            return Err(Invalid("a region is 1 to 32 lower-case letters, digits or '-'".into()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Region {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl Default for Region {
    /// The default region of an instance: cn-north-1.
    fn default() -> Self {
        Self("cn-north-1".to_owned())
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key pair that was imported or generated here. Its name may be used again after a deletion. Its `id` is never
/// used again. So a binding to a deleted key pair differs from a binding to a new one with the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKeyPair {
    /// The permanent identifier.
    pub id: String,
    /// The region of the key pair. A name is unique in its region.
    pub region: Region,
    /// The name and the public key, as in a command.
    pub key_pair: KeyPair,
    /// The time of the import or of the generation.
    pub create_time: OffsetDateTime,
}

/// A generated key pair: ECDSA on P-256. Every OpenSSH version reads its PKCS#8 form. Only OpenSSH 9.6 and later read
/// an Ed25519 key in PKCS#8.
pub struct GeneratedKey {
    /// The public key.
    pub public_key: PublicKey,
    /// The private key, as PEM of PKCS#8 without a passphrase.
    pub private_key: Zeroizing<String>,
}

impl GeneratedKey {
    /// Generates a new key pair.
    ///
    /// # Errors
    /// None in practice: each step accepts the output of the step before.
    pub fn generate() -> Result<Self, Invalid> {
        let failed = |what: &dyn fmt::Display| Invalid(format!("a key pair cannot be made: {what}"));
        let secret = SecretKey::random(&mut OsRng);
        let public =
            KeyData::from(EcdsaPublicKey::from(p256::ecdsa::VerifyingKey::from(secret.public_key())));
        let line = ssh_key::PublicKey::from(public).to_openssh().map_err(|error| failed(&error))?;
        Ok(Self {
            public_key: PublicKey::parse(&line).map_err(|refusal| failed(&refusal.message))?,
            private_key: secret.to_pkcs8_pem(LineEnding::LF).map_err(|error| failed(&error))?,
        })
    }
}
