//! ssh(1) as the one who asks sshd a question: the public half of a key alone, no session, and its own log in a file
//! that nobody else writes to.

use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::child::{self, ChildError};
use crate::policy::public_key::PublicKey;
use crate::policy::trial::ClientReport;

/// The program.
pub(super) const SSH_PROGRAM: &str = "ssh";

/// The key exchange that nearly every client and sshd has and that costs least. Nothing secret is said here.
pub(super) const FAST_KEX: &str = "curve25519-sha256";

/// How long a question may take.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The most that is read of a log.
const MAX_LOG_BYTES: u64 = 1024 * 1024;

/// A question to some sshd.
#[derive(Debug)]
pub(super) struct ClientProbe<'a> {
    /// A private directory for the client's files.
    pub(super) directory: &'a Path,
    /// As whom it is asked.
    pub(super) user: &'a str,
    /// The key that is offered.
    pub(super) key: Option<&'a PublicKey>,
    /// How sshd is reached.
    pub(super) route: Route<'a>,
    /// The lines of known_hosts(5), and the name that they stand for; `None`: any host key will do.
    pub(super) host: Option<(&'a str, &'a str)>,
    /// `KexAlgorithms`; `None`: the client's default.
    pub(super) kex: Option<&'a str>,
}

/// How a question reaches sshd.
#[derive(Debug, Clone)]
pub(super) enum Route<'a> {
    /// Over TCP.
    Tcp {
        /// The address of the client's side; `None`: any.
        from: Option<IpAddr>,
        /// The address of sshd's side, with a scope where it needs one.
        to: String,
        /// sshd's port.
        port: u16,
    },
    /// Over the standard input and output of this shell command: ssh_config(5) "ProxyCommand".
    ProxyCommand(&'a str),
}

/// What the client wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientLog {
    /// Its log.
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

    /// Asks. The client ends by itself, since it has no private half of the key; one that is let in without any is
    /// ended.
    ///
    /// # Errors
    /// That the client cannot be run, or did not end in time.
    pub(super) fn run(&self) -> Result<ClientLog, ClientError> {
        let files = self.file_paths();
        self.write_files(&files).map_err(ClientError::Files)?;
        let is_over = || read_log(&files.log).is_ok_and(|log| ClientReport::is_authenticated(&log));
        let ran =
            child::run_until(Path::new(SSH_PROGRAM), &self.build_arguments(&files), CLIENT_TIMEOUT, is_over);
        let output = ran.map_err(ClientError::Child)?;
        let log = match read_log(&files.log) {
            Ok(log) if !log.is_empty() => log,
            // What is wrong with its command line it says before it opens its log.
            Ok(_) | Err(_) => output.map(|output| output.stderr).unwrap_or_default(),
        };
        Ok(ClientLog { text: log })
    }

    /// Writes what the client reads.
    fn write_files(&self, files: &ClientFiles) -> io::Result<()> {
        match fs::remove_file(&files.log) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some((_, lines)) = self.host {
            fs::write(&files.known_hosts, lines)?;
        }
        if let Some(key) = self.key {
            // The client wants it closed to others, as if it were the private half.
            fs::write(&files.key, format!("{}\n", key.line()))?;
            fs::set_permissions(&files.key, Permissions::from_mode(0o600))?;
        }
        Ok(())
    }

    /// No configuration, agent, control socket or secret of the client's; one method; no session.
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

/// Why a question was not asked.
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

/// The text of a log.
pub(super) fn read_log(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_LOG_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Quotes a word for sh(1), and for ssh_config(5), which replaces `%`.
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
