//! The platform's request signatures, `JDCLOUD2-HMAC-SHA256` and `JDCLOUD3-HMAC-SHA256`: what the public signers put into
//! the `Authorization` header, and how it is held against the request. No I/O.
//!
//! What is signed is the request in a canonical form. The signers of the newer kind agree on one; those of the older kind
//! differ in how they write path and query (Go and Node sign what they send, Java and Rust take the query apart and sort
//! it), so any of these is taken from them. Each form holds method, path, query, headers and body, and so the
//! request.

use std::borrow::Cow;

use axum::http::HeaderMap;
use hmac::{Hmac, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

/// All but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The same, but for the slashes of a path.
const RESERVED_IN_PATH: &AsciiSet = &RESERVED.remove(b'/');

/// The two kinds of signature.
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

/// An `Authorization` header, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization<'a> {
    scheme: Scheme,
    /// The access key that is said to have signed.
    pub access_key_id: &'a str,
    /// The day it was signed, as `20261128`.
    pub date: &'a str,
    region: &'a str,
    service: &'a str,
    signed_headers: &'a str,
    /// The signature.
    pub signature: [u8; 32],
}

impl<'a> Authorization<'a> {
    /// Reads `ALGORITHM Credential=COMMAND_ID/DATE/GUESTS_PER_REGION/SERVICE/TERMINATOR, SignedHeaders=A;B, Signature=HEX`.
    /// `None` where it is anything else.
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

    /// Whether it signs this request, by the holder of this secret. The comparison takes the same time wherever the
    /// two differ.
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
                // Sorted before it is encoded.
                let other = sort_pairs(form_urlencoded::parse(query.as_bytes()).into_owned());
                let other = join_query_pairs(
                    other.into_iter().map(|(name, value)| (percent_encode(&name), percent_encode(&value))),
                );
                vec![normal, Cow::Owned(other), Cow::Borrowed(query)]
            }
        }
    }

    /// The headers that are signed, in the order in which they are named; `None` where one of them is not there.
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

/// What is signed of a request, as it came over the wire.
#[derive(Debug, Clone, Copy)]
pub struct SignedRequest<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its path, encoded as it came.
    pub path: &'a str,
    /// Its query, encoded as it came; empty where there is none.
    pub query: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its `x-jdcloud-date`.
    pub date: &'a str,
    /// Its body.
    pub body: &'a [u8],
}

/// One slash between two segments, and everything encoded that may be.
fn normalize_path(path: &str) -> String {
    let decoded = percent_decode(path);
    let mut normal = String::from("/");
    for part in decoded.split_inclusive('/').filter(|part| *part != "/") {
        normal.extend(utf8_percent_encode(part, RESERVED_IN_PATH));
    }
    normal
}

/// The pairs of a query that have a name; a name without a value has an empty one.
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

/// A plus is a blank, and what is no escape stays as it is.
fn percent_decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn percent_encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Blanks that follow one another are one.
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
    // A key of any length is one.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(text.as_bytes());
    Some(mac)
}

fn hmac_sha256(key: &[u8], text: &str) -> Vec<u8> {
    new_hmac(key, text).map(|mac| mac.finalize().into_bytes().to_vec()).unwrap_or_default()
}

/// Lower-case hexadecimal digits.
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
