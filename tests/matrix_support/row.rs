//! A row: a configuration and its expected outcomes. tests/matrix/README.md explains every field.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::lab::MatrixEnvironment;

/// OpenSSH's version, as far as rows depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpensshVersion(pub u32, pub u32);

impl OpensshVersion {
    /// The first version in a text such as `OpenSSH_9.2p1 Debian-2`.
    pub fn find(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("OpenSSH_")?;
        Self::parse(rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl<'de> Deserialize<'de> for OpensshVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("an OpenSSH version, as in \"9.2\""))
    }
}

/// The origin of a row's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Files of the suite itself, copied from the places where its packages install them.
    Shipped,
    /// Written from knowledge: no suite of the tests ships them.
    Knowledge,
    /// Invented, in order to deceive the agent.
    Hostile,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyType {
    #[default]
    Ed25519,
    Rsa,
    Ecdsa,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatrixCase {
    /// The file's name.
    #[serde(skip)]
    pub name: String,
    pub what: String,
    pub source: Source,
    pub since: Option<OpensshVersion>,
    pub until: Option<OpensshVersion>,
    #[serde(default)]
    pub debian: bool,
    #[serde(default)]
    pub openssl: bool,
    #[serde(default = "root")]
    pub user: String,
    #[serde(default)]
    pub key: KeyType,
    #[serde(default)]
    pub agent: String,
    #[serde(default)]
    pub arguments: Vec<String>,
    #[serde(default)]
    pub accounts: Vec<String>,
    #[serde(default)]
    pub password_only: Vec<String>,
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    #[serde(default)]
    pub setup: String,
    #[serde(default = "copy")]
    pub program: String,
    #[serde(default)]
    pub pending: String,
    #[serde(default = "yes")]
    pub running: bool,
    #[serde(default = "yes")]
    pub valid: bool,
    #[serde(default = "yes")]
    pub host_key: bool,
    /// Whether the agent finds the cause of the refusal only when it writes the files. `plan` and `check` do not
    /// write.
    #[serde(default)]
    pub refused_by_a_write: bool,
    /// Whether `check` reaches another verdict than the attach of this row's key. `check` tests with any Ed25519 key.
    #[serde(default)]
    pub check_differs: bool,
    #[serde(default)]
    pub keeps: Vec<PathBuf>,
    #[serde(default = "server")]
    pub to: String,
    #[serde(default = "ssh_port")]
    pub port: u16,
    #[serde(default)]
    pub before: LoginExpectation,
    pub no: AttachExpectation,
    pub yes: AttachExpectation,
}

/// The expected login of a client. [`MatrixCase::expected_before`] and [`MatrixCase::expected_after`] give the
/// defaults.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginExpectation {
    pub offers: Option<Vec<String>>,
    pub key: Option<bool>,
    pub password: Option<bool>,
}

/// The expected outcome of an attach.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachExpectation {
    /// The reason of its failure; absent if it succeeds.
    pub reason: Option<String>,
    /// Parts of the result's message.
    #[serde(default)]
    pub says: Vec<String>,
    /// The reasons of all its warnings.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Parts of the warnings: of their messages and places.
    #[serde(default)]
    pub warns: Vec<String>,
    #[serde(default)]
    pub proof: ProofKind,
    /// Whether the agent reloads sshd although none of its files changes, because sshd has not read them.
    #[serde(default)]
    pub reloads: bool,
    /// A sh script that runs in the guest between the command and the checks.
    #[serde(default)]
    pub then: String,
    pub offers: Option<Vec<String>>,
    pub key: Option<bool>,
    pub password: Option<bool>,
    /// Other clients.
    #[serde(default)]
    pub client: Vec<ClientExpectation>,
}

/// The expected proof, if the command changes sshd's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProofKind {
    /// Both questions are answered.
    #[default]
    Asked,
    /// At least one question is not answered, and the result says why.
    NotTaken,
    /// The key is refused from loopback, as this row expects, or no question is sent.
    Refused,
    /// There is no proof.
    None,
}

impl AttachExpectation {
    /// Whether the row describes this attach at all; if not, the default expectation holds.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A client other than the target user's client from an address that no rule names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientExpectation {
    pub user: Option<String>,
    pub from: Option<String>,
    pub to: Option<String>,
    pub port: Option<u16>,
    pub offers: Option<Vec<String>>,
    pub key: Option<bool>,
    pub password: Option<bool>,
}

fn root() -> String {
    "root".to_owned()
}

/// cp(1) makes the copy: if the test wrote the file itself, a child of a parallel trial could inherit the descriptor
/// that is open for writing. The kernel does not run such a file (ETXTBSY).
fn copy() -> String {
    "cp /usr/sbin/sshd /usr/local/sbin/sshd".to_owned()
}

fn yes() -> bool {
    true
}

fn server() -> String {
    "10.99.0.1".to_owned()
}

fn ssh_port() -> u16 {
    22
}

impl MatrixCase {
    /// All rows of a directory, sorted by name.
    ///
    /// # Panics
    /// If a file is not a valid row.
    pub fn load_all(directory: &Path) -> Vec<Self> {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        paths.sort();
        paths
            .iter()
            .map(|path| {
                let text = fs::read_to_string(path).unwrap();
                let mut row: Self =
                    toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                row.name = path.file_stem().unwrap().to_string_lossy().into_owned();
                row
            })
            .collect()
    }

    /// A row without content, for tests that have no row file.
    pub fn empty(name: &str, user: &str, key: KeyType) -> Self {
        let row: Self = toml::from_str("what = \"\"\nsource = \"hostile\"\n[no]\n[yes]\n").unwrap();
        Self { name: name.to_owned(), user: user.to_owned(), key, ..row }
    }

    /// Whether the row applies to the lab's OpenSSH.
    pub fn applies_to(&self, lab: &MatrixEnvironment) -> bool {
        self.since.is_none_or(|since| since <= lab.version)
            && self.until.is_none_or(|until| lab.version < until)
            && (lab.has_openssl || !self.openssl && self.key == KeyType::Ed25519)
            && (lab.is_debian || !self.debian)
            && (lab.version >= OpensshVersion(8, 2) || !self.includes_files())
    }

    /// Whether its main file includes other files. OpenSSH 8.2 is the first version with Include.
    fn includes_files(&self) -> bool {
        let mut names = self.files.keys().chain([&self.setup, &self.pending]);
        self.name.contains("include") || names.any(|text| text.contains("sshd_config.d"))
    }

    /// Whether a scenario changes the guest permanently, even after the agent has removed everything of its own.
    pub fn needs_fresh_guests(&self) -> bool {
        !self.pending.is_empty() || !self.no.then.is_empty() || !self.yes.then.is_empty()
    }

    /// The expected login before any command.
    pub fn expected_before(&self) -> LoginExpectation {
        if !self.running {
            return LoginExpectation { offers: Some(Vec::new()), key: Some(false), password: Some(false) };
        }
        LoginExpectation {
            offers: Some(
                self.before.offers.clone().unwrap_or_else(|| to_strings(&["publickey", "password"])),
            ),
            key: Some(self.before.key.unwrap_or(false)),
            password: Some(self.before.password.unwrap_or(true)),
        }
    }

    /// The expected login after a command. Without other data in the row, a refused command changes nothing. A `no`
    /// leaves the key, and a `yes` adds the password.
    pub fn expected_after(&self, expected: &AttachExpectation, no: bool) -> LoginExpectation {
        let usual = if expected.reason.is_some() || (!self.running && expected.then.is_empty()) {
            self.expected_before()
        } else if no {
            LoginExpectation {
                offers: Some(to_strings(&["publickey"])),
                key: Some(true),
                password: Some(false),
            }
        } else {
            LoginExpectation {
                offers: Some(to_strings(&["publickey", "password"])),
                key: Some(true),
                password: Some(true),
            }
        };
        LoginExpectation {
            offers: expected.offers.clone().or(usual.offers),
            key: expected.key.or(usual.key),
            password: expected.password.or(usual.password),
        }
    }

    /// Whether some configuration may hide a method that is on from the first offer.
    pub fn sets_authentication_methods(&self) -> bool {
        let name = "authenticationmethods";
        self.files
            .values()
            .chain(&self.arguments)
            .chain([&self.setup, &self.pending])
            .any(|text| text.to_ascii_lowercase().contains(name))
    }

    /// The target user's home in the guest.
    pub fn home(&self) -> PathBuf {
        match self.user.as_str() {
            "root" => PathBuf::from("/root"),
            user => Path::new("/home").join(user),
        }
    }
}

fn to_strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
