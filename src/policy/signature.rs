//! The envelope of a signed command and the check of its signature (KP-3.38 and KP-3.39; the signature's format is
//! OpenSSH's PROTOCOL.sshsig).

use std::fmt;

use base64ct::{Base64, Encoding};
use ssh_encoding::Decode;
use ssh_key::{HashAlg, PublicKey, Signature, SshSig};
use time::OffsetDateTime;

use super::allowed_signers::{AllowedSigners, Signer, SignerValidity};
use super::public_key::compute_fingerprint;

/// The namespace of signed commands. A signature that was made for another purpose is therefore not valid for a
/// command.
pub const SIGNATURE_NAMESPACE: &str = "keypair-agent";

const ARMOR_BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const ARMOR_END: &str = "-----END SSH SIGNATURE-----";

/// A command's exact bytes and their signature.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The signed bytes.
    pub payload: Vec<u8>,
    /// The signature as text, not parsed yet.
    pub signature: String,
}

impl fmt::Debug for Envelope {
    /// Prints only the sizes: key text must never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Envelope({} bytes, signature of {})", self.payload.len(), self.signature.len())
    }
}

/// The result of a signature check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignatureCheck {
    /// A listed signer made the signature and may sign now.
    Valid,
    /// The signature is not valid. The text says why.
    Invalid(String),
    /// A listed signer made the signature. Whether it may sign now depends on the time, which the agent does not
    /// know.
    TimeNeeded,
}

impl Envelope {
    /// Verifies the signature. `now` is `None` while the clock is not set.
    pub fn verify_signature(&self, trusted: &AllowedSigners, now: Option<OffsetDateTime>) -> SignatureCheck {
        match self.find_signers(trusted) {
            Err(why) => SignatureCheck::Invalid(why),
            Ok(find_signers) => check_signer_validity(&find_signers, trusted, now),
        }
    }

    /// Verifies the signature of the payload and returns the lines of its signer.
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
        // For some kinds of keys, the crate accepts a signature of another kind than its key.
        if signature.algorithm() != key.algorithm() {
            return Err("it is of another kind than its key".to_owned());
        }
        SshSig::new(key.key_data().clone(), namespace, hash, signature)
            .and_then(|signature| key.verify(SIGNATURE_NAMESPACE, &self.payload, &signature))
            .map_err(|_| "it is not a signature of these bytes".to_owned())?;
        Ok(signers)
    }
}

/// One line that allows the signer to sign is enough.
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

/// The parts of a signature.
#[derive(Debug, PartialEq, Eq)]
struct SshsigParts {
    /// The signer's key in the wire format.
    key: Vec<u8>,
    namespace: String,
    hash: HashAlg,
    signature: Signature,
}

impl SshsigParts {
    /// Removes the armour as ssh-keygen does, which ignores where the lines end, and parses the content. The agent
    /// parses it here for two reasons: the crate accepts lengths that contradict each other, and it parses a key
    /// before it is known to be listed. The fields that are not signed (version, reserved field) must have their
    /// present values.
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
        // Two strings. The second one includes the data that a security key appends.
        let length = 4 + signature.algorithm().as_str().len() + 4 + signature.as_bytes().len();
        let is_canonical =
            version == SshSig::VERSION && reserved.is_empty() && rest.is_empty() && length == made.len();
        is_canonical.then_some(Self { key, namespace, hash, signature })
    }
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
