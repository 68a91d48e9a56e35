//! The envelope of a signed command, and whether its signature counts (KP-3.38 and KP-3.39; the signature
//! itself is OpenSSH's PROTOCOL.sshsig).

use std::fmt;

use base64ct::{Base64, Encoding};
use ssh_encoding::Decode;
use ssh_key::{HashAlg, PublicKey, Signature, SshSig};
use time::OffsetDateTime;

use super::allowed_signers::{AllowedSigners, Signer, SignerValidity};
use super::public_key::compute_fingerprint;

/// The namespace commands are signed in, so that no signature made for something else counts.
pub const SIGNATURE_NAMESPACE: &str = "keypair-agent";

const ARMOR_BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const ARMOR_END: &str = "-----END SSH SIGNATURE-----";

/// A command's exact bytes, and the signature that came with them.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    /// What was signed.
    pub payload: Vec<u8>,
    /// The signature as text, not looked at yet.
    pub signature: String,
}

impl fmt::Debug for Envelope {
    /// Its sizes alone: key text never reaches a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Envelope({} bytes, signature of {})", self.payload.len(), self.signature.len())
    }
}

/// Whether a signature counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignatureCheck {
    /// It is a listed signer's, and he may sign now.
    Valid,
    /// It does not, and why.
    Invalid(String),
    /// It is a listed signer's, and whether he may sign now depends on the time, which is not known.
    TimeNeeded,
}

impl Envelope {
    /// Judges the signature; `now` is `None` while the clock is not set.
    pub fn verify_signature(&self, trusted: &AllowedSigners, now: Option<OffsetDateTime>) -> SignatureCheck {
        match self.find_signers(trusted) {
            Err(why) => SignatureCheck::Invalid(why),
            Ok(find_signers) => check_signer_validity(&find_signers, trusted, now),
        }
    }

    /// The lines of him who made the signature, which is a signature of the payload.
    fn find_signers<'s>(&self, trusted: &'s AllowedSigners) -> Result<Vec<&'s Signer>, String> {
        let SshsigParts { key, namespace, hash, signature } = SshsigParts::parse_armored(&self.signature).ok_or(
            "it is no SSH signature (PROTOCOL.sshsig) of a key that signs commands: Ed25519, ECDSA, the sk- kinds of both",
        )?;
        if namespace != SIGNATURE_NAMESPACE {
            return Err(format!("it was made for another namespace than {SIGNATURE_NAMESPACE}"));
        }
        let signers: Vec<&Signer> =
            trusted.signers.iter().filter(|signer| signer.key.blob() == key.as_slice()).collect();
        if signers.is_empty() {
            let by = compute_fingerprint(&key).sha256;
            return Err(format!("its signer, {by}, is not listed in {}", trusted.path.display()));
        }
        let key = PublicKey::from_bytes(&key).map_err(|_| "its key is not well-formed".to_owned())?;
        // The crate takes a signature of another kind than its key for some kinds.
        if signature.algorithm() != key.algorithm() {
            return Err("it is of another kind than its key".to_owned());
        }
        SshSig::new(key.key_data().clone(), namespace, hash, signature)
            .and_then(|signature| key.verify(SIGNATURE_NAMESPACE, &self.payload, &signature))
            .map_err(|_| "it is not a signature of these bytes".to_owned())?;
        Ok(signers)
    }
}

/// One line that lets him sign is enough.
fn check_signer_validity(
    signers: &[&Signer],
    trusted: &AllowedSigners,
    now: Option<OffsetDateTime>,
) -> SignatureCheck {
    let mut verdict = None;
    for signer in signers {
        let why = match signer.validity(SIGNATURE_NAMESPACE, now) {
            SignerValidity::Valid => return SignatureCheck::Valid,
            SignerValidity::TimeNeeded => {
                verdict = Some(SignatureCheck::TimeNeeded);
                continue;
            }
            SignerValidity::OtherNamespace => "may sign in other namespaces alone",
            SignerValidity::TooEarly => "may not sign yet (valid-after)",
            SignerValidity::TooLate => "may not sign any more (valid-before)",
        };
        let why = format!("its signer {why}, {} line {}", trusted.path.display(), signer.line);
        verdict.get_or_insert(SignatureCheck::Invalid(why));
    }
    verdict.unwrap_or_else(|| SignatureCheck::Invalid("it has no signer".to_owned()))
}

/// What a signature is made of.
#[derive(Debug, PartialEq, Eq)]
struct SshsigParts {
    /// The signer's key, in its wire form.
    key: Vec<u8>,
    namespace: String,
    hash: HashAlg,
    signature: Signature,
}

impl SshsigParts {
    /// Takes the armour off as ssh-keygen does, which does not mind where the lines end, and reads what is inside. It is
    /// read here, since the crate takes lengths that contradict each other, and parses a key before it is known to be
    /// listed. What is not signed (version, reserved field) has to be as it is today.
    fn parse_armored(text: &str) -> Option<Self> {
        let inside = text.trim().strip_prefix(ARMOR_BEGIN)?.strip_suffix(ARMOR_END)?;
        let encoded: String = inside.split_ascii_whitespace().collect();
        let blob = Base64::decode_vec(&encoded).ok()?;
        let mut rest = blob.strip_prefix(b"SSHSIG")?;
        let version = u32::decode(&mut rest).ok()?;
        let key = Vec::decode(&mut rest).ok()?;
        let namespace = String::decode(&mut rest).ok()?;
        let reserved = Vec::<u8>::decode(&mut rest).ok()?;
        let hash = HashAlg::decode(&mut rest).ok()?;
        let made = Vec::decode(&mut rest).ok()?;
        let signature = Signature::try_from(made.as_slice()).ok()?;
        // Two strings, the second with what a security key adds to it.
        let length = 4 + signature.algorithm().as_str().len() + 4 + signature.as_bytes().len();
        let is_canonical =
            version == SshSig::VERSION && reserved.is_empty() && rest.is_empty() && length == made.len();
        is_canonical.then_some(Self { key, namespace, hash, signature })
    }
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
