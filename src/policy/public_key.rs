//! An OpenSSH public key that may be bound: it is valid, of an accepted kind, and strong enough (KP-3.24 and
//! KP-3.25).

use std::fmt;

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, EcdsaCurve};

use super::outcome::{Reason, Refusal};

/// The maximum length of a key line: 16 KiB.
const MAX_KEY_LINE_BYTES: usize = 16 * 1024;

/// The minimum number of bits of an RSA modulus.
const MIN_RSA_BITS: usize = 2048;

/// A public key's fingerprints, as ssh-keygen(1) `-l -E sha256` and the platform show them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// `SHA256:` and unpadded base64.
    pub sha256: String,
    /// Lower-case pairs of hexadecimal digits, joined by colons (RFC 4716).
    pub md5: String,
}

/// A public key of an accepted kind, without options: type, blob and comment.
///
/// Two keys are equal if type and blob are equal. The comment does not count.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey {
    algorithm: String,
    blob: Vec<u8>,
    comment: String,
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        #[cfg(test)]
        counted::increment();
        self.blob == other.blob
    }
}

/// Counts how often this thread parsed or compared a key. Tests use it to measure the cost of a file with many lines.
#[cfg(test)]
pub(super) mod counted {
    use std::cell::Cell;

    thread_local!(static COUNT: Cell<u64> = const { Cell::new(0) });

    pub(super) fn increment() {
        COUNT.set(COUNT.get() + 1);
    }

    pub(in crate::policy) fn total() -> u64 {
        COUNT.get()
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    /// Prints only the fingerprint: key text must never reach a log.
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
    /// Parses `publicKey` of a command: one OpenSSH line (without one newline at its end), or that line in base64.
    ///
    /// # Errors
    /// `INVALID_PUBLIC_KEY` or `WEAK_PUBLIC_KEY`, with the cause.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        Self::parse_line_or_base64(text).map_err(|refusal| match refusal.reason {
            Reason::InvalidPublicKey => invalid_key(&format!("publicKey is refused: {}", refusal.message)),
            _ => refusal,
        })
    }

    fn parse_line_or_base64(text: &str) -> Result<Self, Refusal> {
        if text.len() > MAX_KEY_LINE_BYTES {
            return Err(invalid_key("it is longer than 16 KiB"));
        }
        let line = strip_newline(text);
        if !line.contains([' ', '\t']) && !line.is_empty() {
            let decoded = Base64::decode_vec(line)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| invalid_key("it is neither an OpenSSH line nor one in base64"))?;
            return Self::parse_line(strip_newline(&decoded));
        }
        Self::parse_line(line)
    }

    /// Parses one OpenSSH line without a newline: type, blob and comment.
    ///
    /// # Errors
    /// As [`Self::parse`]. The message does not repeat the refused text.
    pub(super) fn parse_line(line: &str) -> Result<Self, Refusal> {
        #[cfg(test)]
        counted::increment();
        if line.contains(['\r', '\n', '\0']) {
            return Err(invalid_key("it holds a CR, LF or NUL: one key on one line is expected"));
        }
        let line = line.trim_matches([' ', '\t']);
        let (algorithm, rest) = split_word(line);
        let (encoded, comment) = split_word(rest);
        if encoded.is_empty() {
            return Err(invalid_key(
                "it has no key type and blob: 'ssh-ed25519 AAAA... comment' is expected",
            ));
        }
        if algorithm.contains("-cert-v0") {
            return Err(invalid_key("it is a certificate, and only plain keys can be bound"));
        }
        if matches!(algorithm, "ssh-dss" | "ssh-rsa1") {
            return Err(Refusal::new(Reason::WeakPublicKey, "DSA keys are no longer accepted by sshd"));
        }
        if !is_accepted_algorithm(algorithm) {
            return Err(invalid_key(
                "it does not begin with an accepted key type (no options may stand in front)",
            ));
        }
        let blob = Base64::decode_vec(encoded).map_err(|_| invalid_key("its blob is not base64"))?;
        let key = ssh_key::PublicKey::from_bytes(&blob)
            .map_err(|_| invalid_key("its blob is not a well-formed public key"))?;
        if key.algorithm().as_str() != algorithm {
            return Err(invalid_key("its blob is of another type than the line says"));
        }
        // sshd parses the blob strictly. It may refuse a blob that it would encode differently.
        let canonical = key.to_bytes().ok();
        if canonical.as_deref() != Some(blob.as_slice()) {
            return Err(invalid_key("its blob is not in canonical form"));
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
        if comment_contains_key(comment) {
            return Err(invalid_key("a second key stands on the line"));
        }
        Ok(Self { algorithm: algorithm.to_owned(), blob, comment: comment.to_owned() })
    }

    /// Whether the private key is on a security key. Its signatures may need a touch or a PIN.
    pub fn is_security_key(&self) -> bool {
        self.algorithm().starts_with("sk-")
    }

    /// The key type, as in `ssh-ed25519`.
    pub fn algorithm(&self) -> &str {
        &self.algorithm
    }

    /// The key in its wire format (RFC 4253, 6.6).
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// The key's line for authorized_keys, without a newline.
    pub fn line(&self) -> String {
        let encoded = Base64::encode_string(&self.blob);
        match self.comment.as_str() {
            "" => format!("{} {encoded}", self.algorithm),
            comment => format!("{} {encoded} {comment}", self.algorithm),
        }
    }

    /// Both fingerprints.
    pub fn fingerprint(&self) -> Fingerprint {
        compute_fingerprint(&self.blob)
    }

    /// The number of bits of an RSA modulus. `None` for the other kinds.
    pub fn rsa_bits(&self) -> Option<usize> {
        match ssh_key::PublicKey::from_bytes(&self.blob).map(KeyData::from) {
            Ok(KeyData::Rsa(rsa)) => rsa.n.as_positive_bytes().map(bit_length),
            _ => None,
        }
    }
}

/// Both fingerprints of a key blob.
pub fn compute_fingerprint(blob: &[u8]) -> Fingerprint {
    use base64ct::Base64Unpadded;
    use md5::Md5;
    use sha2::{Digest, Sha256};
    let md5: Vec<String> = Md5::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    Fingerprint {
        sha256: format!("SHA256:{}", Base64Unpadded::encode_string(&Sha256::digest(blob))),
        md5: md5.join(":"),
    }
}

/// Whether `algorithm` is one of the kinds that may be bound (KP-3.24).
pub(super) fn is_accepted_algorithm(algorithm: &str) -> bool {
    matches!(
        Algorithm::new(algorithm),
        Ok(Algorithm::Ed25519
            | Algorithm::Rsa { hash: None }
            | Algorithm::SkEd25519
            | Algorithm::SkEcdsaSha2NistP256
            | Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 | EcdsaCurve::NistP384 | EcdsaCurve::NistP521 })
    )
}

/// Whether a comment contains a second key: a key type, followed by a blob of that type.
fn comment_contains_key(comment: &str) -> bool {
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

/// The first word and the text behind it, without the blanks between them.
fn split_word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    (word, rest.trim_start_matches([' ', '\t']))
}

fn invalid_key(why: &str) -> Refusal {
    Refusal::new(Reason::InvalidPublicKey, why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF86eSkqX3I2gC8oUEbWaJ54JKEt/jagDdVjCuOifDfx";
    const RSA_2048: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCI9jzNlp5KiAb4JIO7tbA5Ru4POU1NtTpTwwDJ6bwE00PRuSHByNr3pzSsVsuMjEXahtFCMtycUvqC1+fqv/jWxZWpSi+3Ag7yKRvzHu9zAYNUPFHChXFfZNGrkNSLtRErjL2k5mPjwVax8q1WX0ZJEeSLuX2v0chA4xeQEOHCYx8cm+QaGdUTGbogTd3ao2lvwMssKvPrs2qaN8Fzb9TYt0mwITW71YyDSVpGTxDowIgkuaMU1lnTJzsAmCeZpMDfNTYUl2GLm1ypNAL4ASYADBnnV1pRSe+0GhSdSH1OOIJutkL4YwOjQVOEDkc3EEBY8SwVjrOrvcEbj/N5Z88r";
    const ACCEPTED: [&str; 7] = [
        ED25519,
        RSA_2048,
        "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBFwqkl3S48X6z9EaFcU3vkiTTaPppyQlUdaxAJdrd2FeDpAIJ11FDK3qvPMTHibeMMC9Zil1TcRE3CtOphwyTOY=",
        "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBK0gowBafdXjrhdc3YqMA9mMaeinH5ecON43+4VN5eBATi2Us13e7CNCJiBtnsi5CTi1y2slSihHvr/kTOxeKWW4YOKdLSvCDElSm476rYE0y/nGTdfiognrUVdkypvK5g==",
        "ecdsa-sha2-nistp521 AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBAFZDzZ5BlEZeQNPm03W1CBxBTv26z5XCstgq0hjoA6LBcKYCJHMo+3JZf579j+Mmp2rbWV3I0jBtrYlex9cDAK5SgH/KvqAV36e4nOUB+dWBqaP3go7MzSyE/K61Y60CcqZTswWr8Mn1I9vzCszusoq3zLI0Uni0/cqW+eNksui4NSHYw==",
        "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIF86eSkqX3I2gC8oUEbWaJ54JKEt/jagDdVjCuOifDfxAAAABHNzaDo=",
        "sk-ecdsa-sha2-nistp256@openssh.com AAAAInNrLWVjZHNhLXNoYTItbmlzdHAyNTZAb3BlbnNzaC5jb20AAAAIbmlzdHAyNTYAAABBBFwqkl3S48X6z9EaFcU3vkiTTaPppyQlUdaxAJdrd2FeDpAIJ11FDK3qvPMTHibeMMC9Zil1TcRE3CtOphwyTOYAAAAEc3NoOg==",
    ];
    const WEAK: [&str; 3] = [
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQCeNIHRXa13Y4dOl1rbPD6zwSFBgaftYIGLoWxeTb/DGufM2lobuR8oP6Gbn2y3NxHUnrGZ/PLLacABAvVSORWC2xcug6luG5Qb3EmckcczWs749wAW6wTPIAuciaCHq+CZP2G38C/fbIITcJ2UFZ/6A5IDFO4/nFrN3vthKzhJnw==",
        "ssh-dss AAAAB3NzaC1kc3MAAACBANTN+YnQ7U1joh5OPkGHesZxWZrhxVR4NN94ciXIKHuN0IxkjiPtiXKfG3S0iBv9wlGa1WNMTkOuzn3PcJtmPKVX4UCyggDFVwf4wKwLPn6C06GQV9YvEVsMoUEgFTQg7Sg06mq3tJbJgniAUTBW7gX8/yVXzlZUwaD9y+PPA4WLAAAAFQDfzn06P/MNf7sEUQWNVCdq7cyTIQAAAIEArhruBzWNV9iDpXk/evBXu0bza7Ck36DeY2/ZwR+fDIyl8+cTJzUaRdPfwQy4WgO8QMzIG887LLPoRxDoywZ7WSzCsgdbWgzd8vR6MrVXE849gCx4p5SU1+N/31qaJAgSpA8h2c/VOKIt9ZLEbdqgKAX8tcQHHCrP0Bugb+KN0NwAAACALiSc2RbOe9O1GOxCmQq9j4qoDgXSX1WWAd3H8hBEwnCgqdD3Z0pfXlVe1K57nwi9MoMv1VrMmO0lxDQ492LNogqw4JnHwbMIDi16+8xeFaure+MilN7lNvQgA539m2ir77AApqeiN2pLk6BiS0BAeL4zjd3Y3J83zqLaXiQpQoo=",
        // With exponent 1, a signature equals its message.
        "ssh-rsa AAAAB3NzaC1yc2EAAAABAQAAAQEAiPY8zZaeSogG+CSDu7WwOUbuDzlNTbU6U8MAyem8BNND0bkhwcja96c0rFbLjIxF2obRQjLcnFL6gtfn6r/41sWVqUovtwIO8ikb8x7vcwGDVDxRwoVxX2TRq5DUi7URK4y9pOZj48FWsfKtVl9GSRHki7l9r9HIQOMXkBDhwmMfHJvkGhnVExm6IE3d2qNpb8DLLCrz67NqmjfBc2/U2LdJsCE1u9WMg0laRk8Q6MCIJLmjFNZZ0yc7AJgnmaTA3zU2FJdhi5tcqTQC+AEmAAwZ51daUUnvtBoUnUh9TjiCbrZC+GMDo0FThA5HNxBAWPEsFY6zq73BG4/zeWfPKw==",
    ];

    fn refusal_reason(text: &str) -> Reason {
        PublicKey::parse(text).unwrap_err().reason
    }

    /// KP-3.24.
    #[test]
    fn accepted_key_types_are_parsed() {
        for line in ACCEPTED {
            let key = PublicKey::parse(line).unwrap();
            assert_eq!(key.line(), line);
            assert_eq!(PublicKey::parse(&format!("{line} me@laptop, at home\n")).unwrap(), key);
            assert_eq!(
                PublicKey::parse(&Base64::encode_string(format!("{line} c\n").as_bytes())).unwrap(),
                key
            );
        }
    }

    /// KP-3.25.
    #[test]
    fn weak_keys_are_refused() {
        for line in WEAK {
            assert_eq!(refusal_reason(line), Reason::WeakPublicKey, "{line}");
        }
    }

    /// KP-3.24, KP-3.25.
    #[test]
    fn malformed_key_lines_are_refused() {
        let blob = ED25519.split(' ').nth(1).unwrap();
        let trailing = Base64::encode_string(&[Base64::decode_vec(blob).unwrap(), vec![0]].concat());
        for line in [
            String::new(),
            "ssh-ed25519".into(),
            "ssh-ed25519 AAAA".into(),
            format!("no-pty {ED25519}"),
            format!("command=\"x\" {ED25519}"),
            format!("{ED25519}\n{ED25519}"),
            format!("{ED25519}\r\n"),
            format!("{ED25519} a\0b"),
            format!("{ED25519} {RSA_2048}"),
            format!("ssh-rsa {blob}"),
            format!("ecdsa-sha2-nistp256 {blob}"),
            format!("ssh-ed25519-cert-v01@openssh.com {blob}"),
            format!("ssh-ed25519 {trailing}"),
            format!("ssh-ed25519 {}", blob.trim_end_matches('x')),
            format!("{ED25519} {}", "c".repeat(16 * 1024)),
            Base64::encode_string(b"not a key"),
        ] {
            assert_eq!(refusal_reason(&line), Reason::InvalidPublicKey, "{line:.200}");
        }
    }

    /// KP-3.34.
    #[test]
    fn debug_output_hides_key_text() {
        let key = PublicKey::parse(ED25519).unwrap();
        assert!(!format!("{key:?}").contains("AAAA"));
        assert!(key.fingerprint().sha256.starts_with("SHA256:"));
        assert_eq!(key.fingerprint().md5.len(), 47);
    }
}
