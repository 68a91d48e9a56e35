//! A key pair as the platform knows it.

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

/// A region of the platform, as in `cn-north-1`: 1 to 32 lower-case letters, digits and `-`.
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
    /// Where an instance is when nothing else is said: cn-north-1.
    fn default() -> Self {
        Self("cn-north-1".to_owned())
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key pair that was imported or made here. Its name may be used again after a deletion; its `id` never is, so that a
/// binding to the deleted one is told apart from one to its namesake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKeyPair {
    /// What identifies it for good.
    pub id: String,
    /// Where it belongs: a name is unique in its region.
    pub region: Region,
    /// Name and public key, as a command carries them.
    pub key_pair: KeyPair,
    /// When it was imported or made.
    pub create_time: OffsetDateTime,
}

/// A key pair made here: ECDSA on P-256, whose PKCS#8 every OpenSSH reads (an Ed25519 key in it only those from 9.6 on).
pub struct GeneratedKey {
    /// Its public half.
    pub public_key: PublicKey,
    /// Its private half, PEM of PKCS#8 without a passphrase.
    pub private_key: Zeroizing<String>,
}

impl GeneratedKey {
    /// A new one.
    ///
    /// # Errors
    /// None in practice: each step takes what the one before it makes.
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
