//! A real ssh client that connects from an address other than loopback.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use super::guest::{NamespaceGuest, combined_output};
use super::lab::MatrixEnvironment;

/// The text that the remote command prints.
const LOGIN_MARKER: &str = "here-I-am";

/// The remote command that prints it. A forced command that echoes its input does not print the same text.
const MARKER_COMMAND: &str = "echo here-''I-am";

/// One login attempt and its outcome.
#[derive(Debug, Clone)]
pub struct LoginAttempt {
    /// Whether sshd answered at all.
    pub answered: bool,
    /// The methods that sshd offers first.
    pub offers: BTreeSet<String>,
    /// Whether a command of the user ran in the guest.
    pub let_in: bool,
    /// The client's messages.
    pub said: String,
}

/// The user, the source and the destination of a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginTarget {
    pub user: String,
    /// `None`: a new address that no login has used yet.
    pub from: Option<String>,
    pub to: String,
    pub port: u16,
}

impl fmt::Display for LoginTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} port {}", self.user, self.to, self.port)?;
        self.from.as_ref().map_or(Ok(()), |from| write!(f, " from {from}"))
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Credential<'a> {
    None,
    Password,
    Key(&'a Path),
}

pub fn login(
    lab: &MatrixEnvironment,
    guest: &NamespaceGuest<'_>,
    way: &LoginTarget,
    with: Credential<'_>,
) -> LoginAttempt {
    login_with_options(lab, guest, way, with, &[])
}

/// The same with further options for ssh(1). They come first, because ssh uses the first value.
pub fn login_with_options(
    lab: &MatrixEnvironment,
    guest: &NamespaceGuest<'_>,
    way: &LoginTarget,
    with: Credential<'_>,
    words: &[&str],
) -> LoginAttempt {
    let from = way.from.clone().unwrap_or_else(|| lab.next_client_address(&way.to));
    // This log holds only the client's own messages, not the server's banner.
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = guest.network_command("timeout");
    command.args(["30", "ssh"]).args(words).arg("-E").arg(log.path());
    command.args(["-v", "-F", "none", "-b", &from, "-p", &way.port.to_string(), "-l", &way.user]);
    let mut options = vec![
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "GlobalKnownHostsFile=/dev/null",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "ControlPath=none",
        "NumberOfPasswordPrompts=1",
        "ConnectTimeout=10",
        // A fast key exchange that almost every sshd has, and one for an sshd that has only post-quantum ones.
        "KexAlgorithms=curve25519-sha256,sntrup761x25519-sha512@openssh.com",
    ];
    options.push(match with {
        Credential::None => "PreferredAuthentications=none",
        Credential::Password => "PreferredAuthentications=password,keyboard-interactive",
        Credential::Key(_) => "PreferredAuthentications=publickey",
    });
    for option in options {
        command.args(["-o", option]);
    }
    match with {
        Credential::None => {}
        Credential::Password => {
            command.env("SSH_ASKPASS", lab.askpass()).env("SSH_ASKPASS_REQUIRE", "force");
        }
        Credential::Key(private) => {
            command.arg("-i").arg(private);
        }
    }
    let output = command.arg(&way.to).arg(MARKER_COMMAND).output().unwrap();
    let said = String::from_utf8_lossy(&std::fs::read(log.path()).unwrap()).into_owned();
    let offers = said
        .lines()
        .find_map(|line| line.split_once("Authentications that can continue: "))
        .map(|(_, methods)| methods.trim().split(',').map(str::to_owned).collect())
        .unwrap_or_default();
    LoginAttempt {
        answered: said.contains("Remote protocol version"),
        offers,
        let_in: String::from_utf8_lossy(&output.stdout).contains(LOGIN_MARKER),
        said: format!("{}{said}", combined_output(&output)),
    }
}
