//! The platform's request signatures, `JDCLOUD2-HMAC-SHA256` and `JDCLOUD3-HMAC-SHA256`. Parses the `Authorization`
//! header of the public signers, and verifies it against the request. No I/O.
//!
//! A signature covers the request in a canonical form. All JDCLOUD3 signers use one form. The JDCLOUD2 signers differ
//! in how they write path and query, so each of their forms is accepted. Go and Node sign the text that they send;
//! Java and Rust parse the query and sort it. Each form includes method, path, query, headers and body, so each
//! covers the whole request.

use std::borrow::Cow;

use axum::http::HeaderMap;
use hmac::{Hmac, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

/// All characters except the unreserved ones of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// Like [`RESERVED`], but without `/`, which separates the segments of a path.
const RESERVED_IN_PATH: &AsciiSet = &RESERVED.remove(b'/');

/// The two signature schemes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Jdcloud2,
    Jdcloud3,
}

impl Scheme {
    fn algorithm(self) -> &'static str {
        match self {
            Self::Jdcloud2 => "JDCLOUD2-HMAC-SHA256",
            Self::Jdcloud3 => "JDCLOUD3-HMAC-SHA256",
        }
    }

    fn secret_prefix(self) -> &'static str {
        match self {
            Self::Jdcloud2 => "JDCLOUD2",
            Self::Jdcloud3 => "JDCLOUD3",
        }
    }

    fn terminator(self) -> &'static str {
        match self {
            Self::Jdcloud2 => "jdcloud2_request",
            Self::Jdcloud3 => "jdcloud3_request",
        }
    }
}

/// A parsed `Authorization` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization<'a> {
    scheme: Scheme,
    /// The id of the access key that the header names.
    pub access_key_id: &'a str,
    /// The day of the signature, as in `20261128`.
    pub date: &'a str,
    region: &'a str,
    service: &'a str,
    signed_headers: &'a str,
    /// The signature: 32 bytes of HMAC-SHA256.
    pub signature: [u8; 32],
}

impl<'a> Authorization<'a> {
    /// Parses `ALGORITHM Credential=ID/DATE/REGION/SERVICE/TERMINATOR, SignedHeaders=A;B, Signature=HEX`. `None` for
    /// any other text.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (algorithm, rest) = text.trim().split_once(' ')?;
        let scheme =
            [Scheme::Jdcloud2, Scheme::Jdcloud3].into_iter().find(|one| one.algorithm() == algorithm)?;
        let mut parts = rest.split(',').map(str::trim);
        let credential = parts.next()?.strip_prefix("Credential=")?;
        let signed_headers = parts.next()?.strip_prefix("SignedHeaders=")?;
        let signature = from_hex(parts.next()?.strip_prefix("Signature=")?)?;
        let scope: Vec<&str> = credential.split('/').collect();
        let &[access_key_id, date, region, service, terminator] = scope.as_slice() else { return None };
        if parts.next().is_some() || terminator != scheme.terminator() {
            return None;
        }
        Some(Self { scheme, access_key_id, date, region, service, signed_headers, signature })
    }

    /// Whether this is the signature of `request` with `secret`. The comparison takes the same time, wherever the two
    /// values differ.
    pub fn verify(&self, request: &SignedRequest<'_>, secret: &str) -> bool {
        let Some(headers) = self.canonical_headers(request.headers) else { return false };
        let body = to_hex(&Sha256::digest(request.body));
        let scope = format!("{}/{}/{}/{}", self.date, self.region, self.service, self.scheme.terminator());
        let first = [self.scheme.secret_prefix(), secret].concat().into_bytes();
        let key = scope.split('/').fold(first, |key, part| hmac_sha256(&key, part));
        let mut holds = false;
        for path in self.canonical_paths(request.path) {
            for query in self.canonical_queries(request.query) {
                let signed_headers = self.signed_headers;
                let canonical =
                    format!("{}\n{path}\n{query}\n{headers}\n{signed_headers}\n{body}", request.method);
                let digest = to_hex(&Sha256::digest(canonical));
                let to_sign = format!("{}\n{}\n{scope}\n{digest}", self.scheme.algorithm(), request.date);
                holds |=
                    new_hmac(&key, &to_sign).is_some_and(|mac| mac.verify_slice(&self.signature).is_ok());
            }
        }
        holds
    }

    fn canonical_paths<'b>(&self, path: &'b str) -> Vec<Cow<'b, str>> {
        let normal = Cow::Owned(normalize_path(path));
        match self.scheme {
            Scheme::Jdcloud3 => vec![normal],
            Scheme::Jdcloud2 => vec![normal, Cow::Borrowed(path)],
        }
    }

    fn canonical_queries<'b>(&self, query: &'b str) -> Vec<Cow<'b, str>> {
        let normal = Cow::Owned(join_query_pairs(sort_pairs(
            decode_query_pairs(query).map(|(name, value)| (percent_encode(&name), percent_encode(&value))),
        )));
        match self.scheme {
            Scheme::Jdcloud3 => vec![normal],
            Scheme::Jdcloud2 => {
                // This form sorts the pairs before it encodes them.
                let other = sort_pairs(form_urlencoded::parse(query.as_bytes()).into_owned());
                let other = join_query_pairs(
                    other.into_iter().map(|(name, value)| (percent_encode(&name), percent_encode(&value))),
                );
                vec![normal, Cow::Owned(other), Cow::Borrowed(query)]
            }
        }
    }

    /// The signed headers, in the order of the header's list. `None` if the request lacks one of them.
    fn canonical_headers(&self, headers: &HeaderMap) -> Option<String> {
        let mut lines = String::new();
        for name in self.signed_headers.split(';').filter(|name| !name.is_empty()) {
            let values: Result<Vec<&str>, _> =
                headers.get_all(name).iter().map(|value| value.to_str().map(str::trim)).collect();
            let value = values.ok().filter(|values| !values.is_empty())?.join(",");
            let value = match self.scheme {
                Scheme::Jdcloud3 => value,
                Scheme::Jdcloud2 => collapse_spaces(&value),
            };
            lines += &format!("{name}:{value}\n");
        }
        Some(lines)
    }
}

/// The signed parts of a request, as received.
#[derive(Debug, Clone, Copy)]
pub struct SignedRequest<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// The path, percent-encoded as received.
    pub path: &'a str,
    /// The query, percent-encoded as received; empty if there is none.
    pub query: &'a str,
    /// All headers of the request.
    pub headers: &'a HeaderMap,
    /// The value of `x-jdcloud-date`.
    pub date: &'a str,
    /// The body.
    pub body: &'a [u8],
}

/// Joins repeated slashes into one, and percent-encodes each segment.
fn normalize_path(path: &str) -> String {
    let decoded = percent_decode(path);
    let mut normal = String::from("/");
    for part in decoded.split_inclusive('/').filter(|part| *part != "/") {
        normal.extend(utf8_percent_encode(part, RESERVED_IN_PATH));
    }
    normal
}

/// The pairs of a query. A pair without a name is dropped; a pair without `=` has an empty value.
fn decode_query_pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (percent_decode(name), percent_decode(value)))
        .filter(|(name, _)| !name.is_empty())
}

fn sort_pairs(pairs: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort();
    pairs
}

fn join_query_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> String {
    let pairs: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// Decodes percent escapes, and `+` as a blank. An invalid escape stays as it is.
fn percent_decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn percent_encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Replaces each run of blanks with one blank.
fn collapse_spaces(text: &str) -> String {
    let mut single = String::with_capacity(text.len());
    for c in text.chars() {
        if c != ' ' || !single.ends_with(' ') {
            single.push(c);
        }
    }
    single
}

fn new_hmac(key: &[u8], text: &str) -> Option<Hmac<Sha256>> {
    // HMAC accepts a key of any length, so this never fails.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(text.as_bytes());
    Some(mac)
}

fn hmac_sha256(key: &[u8], text: &str) -> Vec<u8> {
    new_hmac(key, text).map(|mac| mac.finalize().into_bytes().to_vec()).unwrap_or_default()
}

/// Encodes bytes as lower-case hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let bytes: Vec<u8> =
        digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte * 16 + digit)).collect();
    bytes.try_into().ok().filter(|_| text.len() == 64)
}

#[cfg(test)]
mod tests;
