//! The configuration file (KP-8.10, keypair-agent.toml(5)). It is read once at start and validated as a whole.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::channel::base_url::BaseUrl;
use crate::policy::foreign::{sanitize_message, sanitize_text};
use crate::policy::sshd_config::KbdInteractive;
use crate::policy::types::InstanceId;

/// The path of the configuration file if `--config` is not given.
pub const DEFAULT_CONFIG_PATH: &str = "/etc/keypair-agent/config.toml";

/// The most bytes that a configuration file may have.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// The validated configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The base URL of the metadata service.
    pub metadata_url: BaseUrl,
    /// How long a poll waits for a command, in seconds: 1 to 600.
    pub long_poll_seconds: u32,
    /// The user whose authorized_keys file gets the key.
    pub target_user: String,
    /// The file in which the platform component states its version.
    pub component_info: PathBuf,
    /// The directory of the state file.
    pub state_dir: PathBuf,
    /// The directory in which the daemon writes the channel's state for `status`.
    pub run_dir: PathBuf,
    /// Whether the keyboard-interactive setting follows the setting for password login.
    pub kbd_interactive: KbdInteractive,
    /// Whether the agent asks the running sshd for a proof.
    pub proof: bool,
    /// The instance id, if the agent must not take it from the channel.
    pub instance_id: Option<InstanceId>,
    /// The file of the signers who must sign the channel's commands, as in ssh-keygen(1), "ALLOWED SIGNERS".
    pub trusted_signers: Option<PathBuf>,
    /// The sshd of this guest.
    pub sshd: SshdConfig,
}

/// The `[sshd]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshdConfig {
    /// The path of the sshd program.
    pub binary: PathBuf,
    /// The path of sshd's main configuration file.
    pub config: PathBuf,
    /// The pid file of the listener. If it is set, the agent manages this listener and not systemd's unit.
    pub pid_file: Option<PathBuf>,
}

/// Why there is no usable configuration. The text is one line: file, line, cause, remedy.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The file does not have the form that keypair-agent.toml(5) describes.
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line number, counted from 1, if it is known.
        line: Option<usize>,
        /// The cause.
        why: String,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, source } => {
                write!(f, "{}: the configuration cannot be read: {source}", path.display())
            }
            Self::Invalid { path, line: Some(line), why } => write!(f, "{}:{line}: {why}", path.display()),
            Self::Invalid { path, line: None, why } => write!(f, "{}: {why}", path.display()),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The file as written; an absent key is `None`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    metadata_url: Option<BaseUrl>,
    long_poll_seconds: Option<LongPollSeconds>,
    target_user: Option<LoginName>,
    component_info: Option<AbsolutePath>,
    state_dir: Option<AbsolutePath>,
    run_dir: Option<AbsolutePath>,
    kbd_interactive: Option<KbdInteractive>,
    proof: Option<bool>,
    instance_id: Option<InstanceId>,
    trusted_signers: Option<AbsolutePath>,
    #[serde(default)]
    sshd: SshdFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SshdFile {
    binary: Option<AbsolutePath>,
    config: Option<AbsolutePath>,
    pid_file: Option<AbsolutePath>,
}

#[derive(Debug)]
struct LongPollSeconds(u32);

impl<'de> Deserialize<'de> for LongPollSeconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match i64::deserialize(deserializer)? {
            seconds @ 1..=600 => Ok(Self(seconds as u32)),
            _ => Err(D::Error::custom("long_poll_seconds is an integer from 1 to 600")),
        }
    }
}

#[derive(Debug)]
struct LoginName(String);

impl<'de> Deserialize<'de> for LoginName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        // The names that `sshd -C` accepts as a user: no comma, no white space, no control character.
        let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, ',' | ':' | '/');
        if name.is_empty() || name.starts_with('-') || name.contains(odd) {
            return Err(D::Error::custom("target_user is the login name of an account, as in \"root\""));
        }
        Ok(Self(name))
    }
}

#[derive(Debug)]
struct AbsolutePath(PathBuf);

impl<'de> Deserialize<'de> for AbsolutePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = PathBuf::from(String::deserialize(deserializer)?);
        if !path.is_absolute() {
            return Err(D::Error::custom("an absolute path is needed"));
        }
        Ok(Self(path))
    }
}

impl Config {
    /// Reads `path`, or the default file if `path` is `None`. If the default file does not exist, the defaults apply.
    ///
    /// # Errors
    /// The file, the line and the cause.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let named = path.unwrap_or(Path::new(DEFAULT_CONFIG_PATH));
        match read_config_file(named) {
            Ok(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) => Self::parse(text, named),
                Err(error) => Err(not_utf8_error(&bytes[..error.valid_up_to()], named)),
            },
            // A dangling link at the default path is an error: the person who created it wants the file that it
            // names.
            Err(error)
                if path.is_none() && error.kind() == io::ErrorKind::NotFound && !named.is_symlink() =>
            {
                Self::parse("", named)
            }
            Err(source) => Err(ConfigError::Unreadable { path: named.to_owned(), source }),
        }
    }

    /// Validates the text of a configuration file. `path` is used only for error messages.
    ///
    /// # Errors
    /// The line and the cause.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: ConfigFile =
            toml::from_str(text).map_err(|error| invalid_config_error(&error, text, path))?;
        let or = |given: Option<AbsolutePath>, usual: &str| {
            given.map_or_else(|| PathBuf::from(usual), |path| path.0)
        };
        Ok(Self {
            metadata_url: file.metadata_url.unwrap_or_default(),
            long_poll_seconds: file.long_poll_seconds.map_or(60, |seconds| seconds.0),
            target_user: file.target_user.map_or_else(|| "root".to_owned(), |name| name.0),
            component_info: or(file.component_info, "/usr/local/share/jcloud/agent/core/componentInfo.cfg"),
            state_dir: or(file.state_dir, "/var/lib/keypair-agent"),
            run_dir: or(file.run_dir, "/run/keypair-agent"),
            kbd_interactive: file.kbd_interactive.unwrap_or(KbdInteractive::Follow),
            proof: file.proof.unwrap_or(true),
            instance_id: file.instance_id,
            trusted_signers: file.trusted_signers.map(|path| path.0),
            sshd: SshdConfig {
                binary: or(file.sshd.binary, "/usr/sbin/sshd"),
                config: or(file.sshd.config, "/etc/ssh/sshd_config"),
                pid_file: file.sshd.pid_file.map(|path| path.0),
            },
        })
    }
}

/// Reads the file, and one byte more than the limit at most.
fn read_config_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        ..=MAX_CONFIG_BYTES => Ok(bytes),
        _ => Err(io::Error::other("it is larger than 1 MiB; name the right file")),
    }
}

fn line_number_after(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count() + 1
}

fn not_utf8_error(before: &[u8], path: &Path) -> ConfigError {
    ConfigError::Invalid {
        path: path.to_owned(),
        line: Some(line_number_after(before)),
        why: "it is not UTF-8; write the file as UTF-8".to_owned(),
    }
}

/// The error for a file that is not valid: place, key, cause and remedy.
fn invalid_config_error(error: &toml::de::Error, text: &str, path: &Path) -> ConfigError {
    let before = error.span().and_then(|span| text.get(..span.start));
    let key = error.span().and_then(|span| find_key_at(text, span.start));
    let cause = sanitize_message(&error.message().replace('\n', " "));
    let why = match key {
        Some(key) => format!("{}: {cause}; {}", sanitize_text(key), remedy_for_key(key)),
        None => format!("{cause}; correct it as keypair-agent.toml(5) describes"),
    };
    ConfigError::Invalid {
        path: path.to_owned(),
        line: before.map(|text| line_number_after(text.as_bytes())),
        why,
    }
}

/// The key whose value is at `at`, or the key that is itself at `at`.
fn find_key_at(text: &str, at: usize) -> Option<&str> {
    let (before, behind) = text.split_at_checked(at)?;
    let line = before.rsplit('\n').next().unwrap_or_default();
    let is_key_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let named = match line.rsplit_once('=') {
        Some((key, _)) => key.trim_end().rsplit(|c| !is_key_char(c)).next(),
        None => behind.split(|c| !is_key_char(c)).next(),
    };
    named?.rsplit('.').next().filter(|key| !key.is_empty())
}

/// Describes the valid values of a key, with an example.
fn remedy_for_key(key: &str) -> &'static str {
    match key {
        "metadata_url" => "write a URL in quotes, as in \"http://169.254.169.254/metadata/latest\"",
        "long_poll_seconds" => "write an integer from 1 to 600, without quotes",
        "target_user" => "write the login name of an account in quotes, as in \"root\"",
        "kbd_interactive" => "write \"follow\" or \"leave\"",
        "proof" => "write true or false, without quotes",
        "instance_id" => "write the instance's id in quotes",
        "component_info" | "state_dir" | "run_dir" | "trusted_signers" | "binary" | "config" | "pid_file" => {
            "write an absolute path in quotes"
        }
        "sshd" => "write [sshd] on a line of its own, and its keys below",
        _ => "take it out, or correct it as keypair-agent.toml(5) describes",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse_text(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/keypair-agent/config.toml"))
    }

    /// KP-8.10.
    #[test]
    fn empty_file_means_defaults() {
        let config = parse_text("").unwrap();
        assert_eq!(config.long_poll_seconds, 60);
        assert_eq!(config.target_user, "root");
        assert_eq!(config.sshd.binary, Path::new("/usr/sbin/sshd"));
        assert_eq!(config.sshd.pid_file, None);
        assert!(config.proof);
    }

    /// KP-8.10.
    #[test]
    fn errors_name_the_line() {
        for (text, line, word) in [
            ("target_user = \"root\"\nshell = 1\n", 2, "unknown field `shell`"),
            ("\n\nproof = \"yes\"\n", 3, "expected a boolean"),
            ("[sshd]\nbinary = \"sshd\"\n", 2, "absolute path"),
            ("[sshd]\nconf = \"/x\"\n", 2, "unknown field `conf`"),
            ("metadata_url = \"https://169.254.169.254/\"\n", 1, "http"),
            ("long_poll_seconds = 0\n", 1, "1 to 600"),
            ("kbd_interactive = \"off\"\n", 1, "follow"),
            ("target_user = \"a,b\"\n", 1, "login name"),
            ("trusted_signers = \"allowed_signers\"\n", 1, "absolute path"),
            ("a = \n", 1, ""),
            ("\nproof = \"yes\"\n", 2, "proof: "),
            ("\nproof = \"yes\"\n", 2, "; write true or false"),
            ("long_poll_seconds = \"60\"\n", 1, "long_poll_seconds: "),
            ("target_user = [\"root\",\n \"bob\"]\n", 1, "; write the login name"),
            ("proof = true\nsshd = { binary = 5 }\n", 2, "binary: "),
            ("sshd.binary = 5\n", 1, "binary: "),
            ("\nsshd = \"/usr/sbin/sshd\"\n", 2, "; write [sshd]"),
            ("[sshd]\n\npid_file = true\n", 3, "pid_file: "),
            ("state_dir = 1979-05-27\n", 1, "; write an absolute path"),
        ] {
            let error = parse_text(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("/etc/keypair-agent/config.toml:{line}: ")), "{error}");
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn non_utf8_or_oversized_file_is_named_in_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, b"proof = true\n# caf\xe9\n").unwrap();
        let error = Config::load(Some(&path)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}:2: it is not UTF-8", path.display())), "{error}");
        std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
        let error = Config::load(Some(&path)).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()) && error.contains("1 MiB"), "{error}");
        let long = format!("target_user = \"{}\"\n", ",".repeat(100_000));
        assert!(parse_text(&long).unwrap_err().to_string().len() < 600);
    }

    /// KP-8.10.
    #[test]
    fn missing_named_config_file_is_an_error() {
        assert!(Config::load(Some(Path::new("/nonexistent/config.toml"))).is_err());
    }
}
