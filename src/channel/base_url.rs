//! The address of the metadata service: `metadata_url` of the configuration (KP-3.1).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a valid base URL, as one line for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidUrl(&'static str);

impl fmt::Display for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidUrl {}

/// An `http` URL with a literal address. So no resolver, hosts file or proxy decides which service controls a root
/// daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BaseUrl {
    address: SocketAddr,
    authority: String,
    path: String,
}

impl BaseUrl {
    /// Returns the address to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the value of the `Host` header.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Returns the path before the path of every call, without a slash at its end.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl Default for BaseUrl {
    /// Returns `http://169.254.169.254/metadata/latest`.
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([169, 254, 169, 254], 80)),
            authority: "169.254.169.254".to_owned(),
            path: "/metadata/latest".to_owned(),
        }
    }
}

impl FromStr for BaseUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            _ => {
                return Err(InvalidUrl(
                    "the metadata URL begins with 'http://'; other schemes are not spoken",
                ));
            }
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(InvalidUrl("the metadata URL has no user or password in it"));
        }
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').unwrap_or(""))),
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let literal = if authority.starts_with('[') {
            host.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
        } else {
            host.parse().ok().map(IpAddr::V4)
        };
        let Some(ip) = literal else {
            return Err(InvalidUrl(
                "the metadata URL names a literal address (169.254.169.254, or IPv6 as [fd00::1]), not a host name",
            ));
        };
        let port = match port {
            None => 80,
            // `parse` would accept a plus sign.
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or(InvalidUrl("the metadata URL's port is a number from 1 to 65535"))?,
            Some(_) => return Err(InvalidUrl("the metadata URL's port is a number from 1 to 65535")),
        };
        if path.contains(['?', '#']) {
            return Err(InvalidUrl("the metadata URL has no query and no fragment"));
        }
        if !path.bytes().all(|byte| byte.is_ascii_graphic() && !br#""<>\^`{|}"#.contains(&byte)) {
            return Err(InvalidUrl("the metadata URL's path holds a character that must be percent-encoded"));
        }
        let host = match ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        Ok(Self {
            address: SocketAddr::new(ip, port),
            authority: if port == 80 { host } else { format!("{host}:{port}") },
            path: path.trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

impl TryFrom<String> for BaseUrl {
    type Error = InvalidUrl;
    fn try_from(text: String) -> Result<Self, InvalidUrl> {
        text.parse()
    }
}

impl From<BaseUrl> for String {
    fn from(url: BaseUrl) -> String {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    /// KP-3.1.
    #[test]
    fn base_url_valid_text_is_parsed_and_normalized() {
        for (text, shown, address) in [
            (
                "http://169.254.169.254/metadata/latest",
                "http://169.254.169.254/metadata/latest",
                "169.254.169.254:80",
            ),
            (
                "HTTP://127.0.0.1:8481/i-demo/metadata/latest/",
                "http://127.0.0.1:8481/i-demo/metadata/latest",
                "127.0.0.1:8481",
            ),
            ("http://127.0.0.1", "http://127.0.0.1", "127.0.0.1:80"),
            ("http://127.0.0.1:80/", "http://127.0.0.1", "127.0.0.1:80"),
            ("http://[fd00:ec2::254]/latest", "http://[fd00:ec2::254]/latest", "[fd00:ec2::254]:80"),
            ("http://[::1]:8080/a%20b", "http://[::1]:8080/a%20b", "[::1]:8080"),
        ] {
            let url: BaseUrl = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(url.to_string(), shown);
            assert_eq!(url.address(), address.parse().unwrap());
            assert_eq!(url.to_string().parse::<BaseUrl>().unwrap(), url);
        }
        assert_eq!(BaseUrl::default(), BaseUrl::default().to_string().parse().unwrap());
    }

    /// KP-3.1.
    #[test]
    fn base_url_invalid_text_is_refused_with_cause() {
        for (text, word) in [
            ("", "http://"),
            ("https://169.254.169.254/", "http://"),
            ("169.254.169.254", "http://"),
            ("http:///latest", "literal address"),
            ("http://localhost/", "literal address"),
            ("http://metadata.internal/latest", "literal address"),
            ("http://[::1/", "literal address"),
            ("http://::1/", "literal address"),
            ("http://[127.0.0.1]/", "literal address"),
            ("http://[fe80::1%eth0]/", "literal address"),
            ("http://0x7f.1/", "literal address"),
            ("http://root@127.0.0.1/", "user"),
            ("http://127.0.0.1:/", "port"),
            ("http://127.0.0.1:0/", "port"),
            ("http://127.0.0.1:+80/", "port"),
            ("http://127.0.0.1:65536/", "port"),
            ("http://[::1]80/", "port"),
            ("http://127.0.0.1/a?b=c", "query"),
            ("http://127.0.0.1?b=c", "query"),
            ("http://127.0.0.1/#a", "fragment"),
            ("http://127.0.0.1/a b", "percent"),
            ("http://127.0.0.1/\r\nX: y", "percent"),
            ("http://127.0.0.1/ä", "percent"),
        ] {
            let error = text.parse::<BaseUrl>().expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
