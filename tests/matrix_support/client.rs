//! The judge: a real client, from an address that is not loopback.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use super::guest::{NamespaceGuest, combined_output};
use super::lab::MatrixEnvironment;

/// What the client's user wants to be told by the other end.
const LOGIN_MARKER: &str = "here-I-am";

/// What says it. A forced command that repeats its order does not.
const MARKER_COMMAND: &str = "echo here-''I-am";

/// One login, or the refusal of it.
#[derive(Debug, Clone)]
pub struct LoginAttempt {
    /// Whether sshd answered at all.
    pub answered: bool,
    /// The methods that it offers at first.
    pub offers: BTreeSet<String>,
    /// Whether a command of the user's ran there.
    pub let_in: bool,
    /// What the client said of it.
    pub said: String,
}

/// Who comes, and from where to where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginTarget {
    pub user: String,
    /// `None`: an address that nobody came from yet.
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

/// The same, with further words for ssh(1), ahead of all others: its first value wins.
pub fn login_with_options(
    lab: &MatrixEnvironment,
    guest: &NamespaceGuest<'_>,
    way: &LoginTarget,
    with: Credential<'_>,
    words: &[&str],
) -> LoginAttempt {
    let from = way.from.clone().unwrap_or_else(|| lab.next_client_address(&way.to));
    // What the client itself says is there; a banner is not.
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
        // The cheapest that every sshd has, and one for those that have nothing but what is post-quantum.
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
