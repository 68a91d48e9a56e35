//! Queries to sshd: `-t` and `-T`, with the listener's own options (KP-6.2 and KP-6.4).

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::child;
use super::host_key;
use super::private::{HOST_KEY_DIR_PREFIX, ScratchDir};
use crate::policy::effective::EffectiveConfig;
use crate::policy::observation::{Connection, SshdAnswer};
use crate::policy::outcome::{Reason, Refusal};

/// sshd's error message if it has no host key.
const NO_HOST_KEY_ERROR: &str = "no hostkeys available";

/// sshd's error message if its privilege separation directory does not exist. The directory's path follows.
const MISSING_PRIVSEP_DIR_ERROR: &str = "Missing privilege separation directory: ";

/// The configuration that a query is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum ConfigInput<'t> {
    /// The present files.
    Live,
    /// This text as the whole configuration, on standard input. Nothing is written.
    Text(&'t [u8]),
}

/// sshd's answer: its output, or its error message if it refuses the configuration.
pub(super) type SshdOutput = Result<String, String>;

/// One sshd and the options that every query repeats.
pub(super) struct SshdQuery<'a> {
    binary: &'a Path,
    main: &'a Path,
    options: &'a [String],
    run_dir: &'a Path,
    key: Option<TemporaryHostKey>,
}

impl<'a> SshdQuery<'a> {
    pub(super) fn new(binary: &'a Path, main: &'a Path, options: &'a [String], run_dir: &'a Path) -> Self {
        Self { binary, main, options, run_dir, key: None }
    }

    /// `sshd -t`.
    pub(super) fn test_config(&mut self, about: ConfigInput<'_>) -> Result<SshdOutput, Refusal> {
        self.run(&["-t"], about)
    }

    /// `sshd -T` for one connection. A query without a connection is not possible: if there is a `Match LocalPort`,
    /// `-T` alone is fatal.
    pub(super) fn query_effective(
        &mut self,
        about: ConfigInput<'_>,
        connection: &Connection,
    ) -> Result<Result<EffectiveConfig, String>, Refusal> {
        let Connection { user, host, addr, laddr, lport } = connection;
        let words = format!("user={user},host={host},addr={addr},laddr={laddr},lport={lport}");
        Ok(self
            .run(&["-T", "-C", &words], about)?
            .map(|wait_for_output| EffectiveConfig::parse(&wait_for_output)))
    }

    /// `sshd -T -C` for each of the connections.
    pub(super) fn query_connections(
        &mut self,
        about: ConfigInput<'_>,
        connections: impl IntoIterator<Item = Connection>,
    ) -> Result<Result<Vec<SshdAnswer>, String>, Refusal> {
        let mut answers = Vec::new();
        for connection in connections {
            match self.query_effective(about, &connection)? {
                Ok(effective) => answers.push(SshdAnswer { connection, effective }),
                Err(words) => return Ok(Err(words)),
            }
        }
        Ok(Ok(answers))
    }

    /// Runs a query. Repeats it if only a host key or the privilege separation directory was missing, because
    /// neither makes a configuration invalid.
    fn run(&mut self, question: &[&str], about: ConfigInput<'_>) -> Result<SshdOutput, Refusal> {
        let mut made_directory = false;
        loop {
            let output = self.run_once(question, about)?;
            if output.succeeded() {
                return Ok(Ok(self.strip_temporary_host_key(output.stdout)));
            }
            if let Some(directory) = parse_missing_privsep_dir(&output.stderr).filter(|_| !made_directory) {
                create_privsep_dir(&directory)?;
                made_directory = true;
            } else if self.key.is_none() && output.stderr.contains(NO_HOST_KEY_ERROR) {
                self.key = Some(TemporaryHostKey::generate(self.run_dir)?);
            } else {
                return Ok(Err(output.full_diagnostic()));
            }
        }
    }

    fn run_once(&self, question: &[&str], about: ConfigInput<'_>) -> Result<child::CommandOutput, Refusal> {
        let (file, input) = match about {
            ConfigInput::Live => (self.main, &b""[..]),
            ConfigInput::Text(text) => (Path::new("/dev/stdin"), text),
        };
        let mut arguments: Vec<&std::ffi::OsStr> = question.iter().map(|word| word.as_ref()).collect();
        arguments.extend(["-f".as_ref(), file.as_os_str()]);
        arguments.extend(self.options.iter().map(|word| -> &std::ffi::OsStr { word.as_ref() }));
        if let Some(key) = &self.key {
            arguments.extend(["-h".as_ref(), key.path.as_os_str()]);
        }
        child::run_bytes(self.binary, &arguments, input).map_err(|error| {
            if error.is_missing_program() {
                let text = format!(
                    "there is no sshd at {}; install the OpenSSH server, or name its program as 'binary' in \
                     [sshd] of the agent's configuration",
                    self.binary.display()
                );
                return Refusal::new(Reason::SshdNotFound, text);
            }
            Refusal::new(Reason::IoError, format!("asking sshd: {error}"))
        })
    }

    /// The temporary key is no host key of this guest, so its line is removed from the output.
    fn strip_temporary_host_key(&self, output: String) -> String {
        match &self.key {
            Some(key) => strip_host_key_line(&output, &key.path),
            None => output,
        }
    }
}

/// The output of `sshd -T` without the line that names this host key. Keywords are in lower case up to OpenSSH
/// 10.4, and spelled as in sshd_config(5) since then.
fn strip_host_key_line(output: &str, path: &Path) -> String {
    let path = path.to_string_lossy();
    let names_it = |line: &&str| {
        let words = line.split_once(' ');
        words.is_some_and(|(keyword, named)| {
            keyword.eq_ignore_ascii_case("hostkey") && named.trim().trim_matches('"') == path
        })
    };
    output.lines().filter(|line| !names_it(line)).flat_map(|line| [line, "\n"]).collect()
}

/// The missing directory that sshd's error message names.
fn parse_missing_privsep_dir(stderr: &str) -> Option<PathBuf> {
    let path = stderr.lines().find_map(|line| line.split_once(MISSING_PRIVSEP_DIR_ERROR))?.1.trim();
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// Creates sshd's privilege separation directory with the mode that sshd's own start would set: 0755.
fn create_privsep_dir(path: &Path) -> Result<(), Refusal> {
    let made = match DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    };
    made.map_err(|error| {
        let text = format!(
            "sshd misses its directory {}, and it cannot be created: {error}; create it: mkdir -m 0755 {}",
            path.display(),
            path.display()
        );
        Refusal::new(Reason::IoError, text)
    })
}

/// A host key for queries only, in a private directory that is removed together with it.
struct TemporaryHostKey {
    path: PathBuf,
    _directory: ScratchDir,
}

impl TemporaryHostKey {
    fn generate(run_dir: &Path) -> Result<Self, Refusal> {
        let failed = |error: &dyn std::fmt::Display| {
            let text = format!(
                "sshd has no host key yet, and none to ask it with can be made in {}: {error}; make its own: \
                 ssh-keygen -A",
                run_dir.display()
            );
            Refusal::new(Reason::IoError, text)
        };
        let directory = ScratchDir::create(run_dir, HOST_KEY_DIR_PREFIX).map_err(|error| failed(&error))?;
        let path = directory.path().join("key");
        host_key::generate_host_key(&path).map_err(|error| failed(&error))?;
        Ok(Self { path, _directory: directory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_host_key_is_left_out_of_output() {
        let key = Path::new("/run/k/key");
        for keyword in ["hostkey", "HostKey"] {
            let said = format!("port 22\n{keyword} /run/k/key\n{keyword} /etc/ssh/k\nbanner /run/k/key\n");
            let left = format!("port 22\n{keyword} /etc/ssh/k\nbanner /run/k/key\n");
            assert_eq!(strip_host_key_line(&said, key), left);
        }
    }

    #[test]
    fn missing_privsep_dir_is_parsed() {
        let found = parse_missing_privsep_dir("x\nMissing privilege separation directory: /run/sshd\r\n");
        assert_eq!(found, Some(PathBuf::from("/run/sshd")));
        assert_eq!(parse_missing_privsep_dir("Missing privilege separation directory: run\n"), None);
        assert_eq!(parse_missing_privsep_dir("sshd: no hostkeys available -- exiting.\n"), None);
    }
}
