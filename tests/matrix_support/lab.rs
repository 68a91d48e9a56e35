//! The shared parts of all guests: their root file system, the agent, the keys, and the client's password.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::row::{KeyType, OpensshVersion};
use crate::support::{TestDir, TestKey};

/// The password of every account that has one.
pub const PASSWORD: &str = "let-me-in";

/// Its hash for /etc/shadow, with few rounds because it is verified often.
pub const PASSWORD_HASH: &str = "$6$rounds=1000$matrix$LO7ykdxJaW4DGi948fnCHmAYBTfoliO1H8oUv8SDfR.ND4YORGG3vNRX2g4XRnHO4m7V7RZJ4AVwrKACcD81K1";

/// The directories of programs, in the guest and outside.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

pub struct MatrixEnvironment {
    pub folder: TestDir,
    /// The lower layer of every guest.
    pub root: PathBuf,
    /// The prefix of another OpenSSH, which replaces the one of the root file system in every guest.
    pub openssh: Option<PathBuf>,
    /// Whether scenarios that can change nothing run too.
    pub is_thorough: bool,
    pub agent: PathBuf,
    pub version: OpensshVersion,
    /// Whether this OpenSSH supports RSA and ECDSA. A build without OpenSSL supports neither.
    pub has_openssl: bool,
    /// Whether this OpenSSH has Debian's changes.
    pub is_debian: bool,
    pub ed25519: TestKey,
    pub rsa: TestKey,
    pub ecdsa: TestKey,
    /// The own key of accounts that have one.
    pub other: TestKey,
    /// A key that replaces another one.
    pub second: TestKey,
    next_address: AtomicU32,
}

impl MatrixEnvironment {
    pub fn new() -> Self {
        let named = std::env::var_os("KEYPAIR_MATRIX_ROOT");
        let is_thorough = named.is_some();
        let root = named.map_or_else(|| "/".into(), PathBuf::from);
        let agent = std::env::var_os("KEYPAIR_MATRIX_AGENT")
            .map_or_else(|| env!("CARGO_BIN_EXE_keypair-agent").into(), PathBuf::from);
        remove_stale_directories();
        let folder = TestDir::new();
        let openssh = std::env::var_os("KEYPAIR_MATRIX_OPENSSH").map(PathBuf::from);
        let text = query_sshd_version(&root, openssh.as_deref());
        let version = OpensshVersion::find(&text).unwrap_or_else(|| panic!("no OpenSSH version in {text:?}"));
        let lab = Self {
            ed25519: TestKey::new(&folder, "ed25519"),
            rsa: TestKey::of_type(&folder, "rsa", &["-t", "rsa", "-b", "2048"]),
            ecdsa: TestKey::of_type(&folder, "ecdsa", &["-t", "ecdsa"]),
            other: TestKey::new(&folder, "other"),
            second: TestKey::new(&folder, "second"),
            folder,
            root,
            openssh,
            is_thorough,
            agent,
            version,
            has_openssl: !text.contains("without OpenSSL"),
            is_debian: ["Debian", "Ubuntu"].iter().any(|name| text.contains(name)),
            next_address: AtomicU32::new(0),
        };
        TestKey::new(&lab.folder, "host");
        fs::create_dir(lab.mount_point()).unwrap();
        fs::write(lab.askpass(), format!("#!/bin/sh\necho {PASSWORD}\n")).unwrap();
        fs::set_permissions(lab.askpass(), fs::Permissions::from_mode(0o755)).unwrap();
        lab
    }

    pub fn key(&self, kind: KeyType) -> &TestKey {
        match kind {
            KeyType::Ed25519 => &self.ed25519,
            KeyType::Rsa => &self.rsa,
            KeyType::Ecdsa => &self.ecdsa,
        }
    }

    /// The private host key. The public one is in the same directory.
    pub fn host_key(&self) -> PathBuf {
        self.folder.path().join("host.key")
    }

    pub fn askpass(&self) -> PathBuf {
        self.folder.path().join("askpass")
    }

    /// The mount point of each guest's file systems, in its own mount namespace.
    pub fn mount_point(&self) -> PathBuf {
        self.folder.path().join("guest")
    }

    /// A new address for one login in the server's family, because sshd remembers addresses (PerSourcePenalties).
    pub fn next_client_address(&self, server: &str) -> String {
        let number = self.next_address.fetch_add(1, Ordering::Relaxed);
        if server.contains(':') {
            return format!("fd99::1:{:x}", 1 + number);
        }
        format!("10.99.{}.{}", 1 + number / 250 % 250, 2 + number % 250)
    }
}

/// Removes the folders of killed labs. Their guests have ended, but the folders stay.
fn remove_stale_directories() {
    for entry in fs::read_dir("/run").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("keypair-agent-test.").and_then(|rest| rest.split('.').next())
        else {
            continue;
        };
        if entry.path().join("askpass").exists() && !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The version of the guests' sshd. Before 9.0 it has no option for that, but prints its version after a usage error.
fn query_sshd_version(root: &Path, openssh: Option<&Path>) -> String {
    let mut command = match openssh {
        Some(prefix) => Command::new(prefix.join("sbin/sshd")),
        None => {
            let mut command = Command::new("chroot");
            command.arg(root).arg("/usr/sbin/sshd");
            command
        }
    };
    let output = command.arg("-V").output().unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}
