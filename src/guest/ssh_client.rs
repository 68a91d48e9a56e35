//! Runs ssh(1) as the client that probes an sshd: with the public half of a key only, without a session, and with
//! its log in a file to which no other program writes.

use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::child::{self, ChildError};
use crate::policy::public_key::PublicKey;
use crate::policy::trial::ClientReport;

/// The program name.
pub(super) const SSH_PROGRAM: &str = "ssh";

/// The key exchange that nearly every client and sshd supports and that costs least. The probe transfers no
/// secrets.
pub(super) const FAST_KEX: &str = "curve25519-sha256";

/// The time limit for one probe.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum size of a log that is read.
const MAX_LOG_BYTES: u64 = 1024 * 1024;

/// A probe of an sshd.
#[derive(Debug)]
pub(super) struct ClientProbe<'a> {
    /// A private directory for the client's files.
    pub(super) directory: &'a Path,
    /// The user name for the probe.
    pub(super) user: &'a str,
    /// The key that the client offers.
    pub(super) key: Option<&'a PublicKey>,
    /// The connection to sshd.
    pub(super) route: Route<'a>,
    /// The lines of known_hosts(5) and the name for which they are valid; `None`: the client accepts any host key.
    pub(super) host: Option<(&'a str, &'a str)>,
    /// `KexAlgorithms`; `None`: the client's default.
    pub(super) kex: Option<&'a str>,
}

/// The connection from the client to sshd.
#[derive(Debug, Clone)]
pub(super) enum Route<'a> {
    /// Over TCP.
    Tcp {
        /// The client's own address; `None`: any.
        from: Option<IpAddr>,
        /// sshd's address, with a scope if the address needs one.
        to: String,
        /// sshd's port.
        port: u16,
    },
    /// Over standard input and output of this shell command: ssh_config(5) "ProxyCommand".
    ProxyCommand(&'a str),
}

/// The output of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientLog {
    /// The text of its log.
    pub(super) text: String,
}

/// The paths of one client's files.
struct ClientFiles {
    log: PathBuf,
    key: PathBuf,
    known_hosts: PathBuf,
}

impl ClientProbe<'_> {
    fn file_paths(&self) -> ClientFiles {
        let at = |name: &str| self.directory.join(name);
        ClientFiles { log: at("client.log"), key: at("key"), known_hosts: at("known_hosts") }
    }

    /// Runs the probe. The client ends by itself, because it does not have the private half of the key. A client
    /// that is let in without a key is ended.
    ///
    /// # Errors
    /// The client cannot be run, or did not end in time.
    pub(super) fn run(&self) -> Result<ClientLog, ClientError> {
        let files = self.file_paths();
        self.write_files(&files).map_err(ClientError::Files)?;
        let is_over = || read_log(&files.log).is_ok_and(|log| ClientReport::is_authenticated(&log));
        let ran =
            child::run_until(Path::new(SSH_PROGRAM), &self.build_arguments(&files), CLIENT_TIMEOUT, is_over);
        let output = ran.map_err(ClientError::Child)?;
        let log = match read_log(&files.log) {
            Ok(log) if !log.is_empty() => log,
            // The client reports errors in its command line before it opens its log.
            Ok(_) | Err(_) => output.map(|output| output.stderr).unwrap_or_default(),
        };
        Ok(ClientLog { text: log })
    }

    /// Writes the files that the client reads.
    fn write_files(&self, files: &ClientFiles) -> io::Result<()> {
        match fs::remove_file(&files.log) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some((_, lines)) = self.host {
            fs::write(&files.known_hosts, lines)?;
        }
        if let Some(key) = self.key {
            // The client requires a mode without access for others, as for a private key.
            fs::write(&files.key, format!("{}\n", key.line()))?;
            fs::set_permissions(&files.key, Permissions::from_mode(0o600))?;
        }
        Ok(())
    }

    /// The client's arguments: no configuration, agent, control socket or secret of the client's user; one method;
    /// no session.
    fn build_arguments(&self, files: &ClientFiles) -> Vec<String> {
        let mut words: Vec<String> = ["-v", "-n", "-N", "-T", "-F", "none", "-E"].map(str::to_owned).to_vec();
        words.push(files.log.to_string_lossy().into_owned());
        words.extend(["-l".to_owned(), self.user.to_owned()]);
        let mut options: Vec<String> = [
            "BatchMode=yes",
            "CheckHostIP=no",
            "ClearAllForwardings=yes",
            "ConnectTimeout=5",
            "ControlMaster=no",
            "ControlPath=none",
            "GlobalKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "NumberOfPasswordPrompts=0",
            "PermitLocalCommand=no",
            "UpdateHostKeys=no",
        ]
        .map(str::to_owned)
        .to_vec();
        options.push(format!(
            "PreferredAuthentications={}",
            if self.key.is_some() { "publickey" } else { "none" }
        ));
        match self.host {
            Some((name, _)) => options.extend([
                format!("HostKeyAlias={name}"),
                "StrictHostKeyChecking=yes".to_owned(),
                format!("UserKnownHostsFile={}", files.known_hosts.display()),
            ]),
            None => options
                .extend(["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"].map(str::to_owned)),
        }
        options.extend(self.kex.map(|kex| format!("KexAlgorithms={kex}")));
        let to = match &self.route {
            Route::Tcp { from, to, port } => {
                options.push("ProxyCommand=none".to_owned());
                words.extend(["-p".to_owned(), port.to_string()]);
                if let Some(from) = from {
                    words.extend(["-b".to_owned(), from.to_string()]);
                }
                to.clone()
            }
            Route::ProxyCommand(command) => {
                options.push(format!("ProxyCommand={command}"));
                "private-sshd".to_owned()
            }
        };
        for option in options {
            words.extend(["-o".to_owned(), option]);
        }
        if self.key.is_some() {
            words.extend(["-i".to_owned(), files.key.to_string_lossy().into_owned()]);
        }
        words.extend(["--".to_owned(), to]);
        words
    }
}

/// The reason why a probe did not run.
#[derive(Debug)]
pub(super) enum ClientError {
    /// The client's files cannot be written.
    Files(io::Error),
    /// The client cannot be run.
    Child(ChildError),
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Files(error) => write!(f, "the files of the ssh client cannot be written: {error}"),
            Self::Child(error) if error.is_missing_program() => {
                f.write_str("there is no ssh client: install openssh-client (openssh-clients)")
            }
            Self::Child(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Files(error) => Some(error),
            Self::Child(error) => Some(error),
        }
    }
}

/// The content of a log.
pub(super) fn read_log(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_LOG_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Quotes a word for sh(1) and for ssh_config(5), in which `%` has a special meaning.
pub(super) fn quote_shell_word(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''").replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_word_is_quoted() {
        assert_eq!(quote_shell_word("/usr/sbin/sshd"), "'/usr/sbin/sshd'");
        assert_eq!(quote_shell_word("it's 5%"), "'it'\\''s 5%%'");
    }
}
