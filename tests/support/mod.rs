//! Shared parts of the integration tests: a private sshd with the real ssh client, a metadata service that speaks the
//! HTTP protocol, and the built agent. No test needs a fixed port, and no test leaves files or processes behind.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod daemon;
pub mod dead;
pub mod dice;
pub mod disk;
pub mod liar;
pub mod metadata;
pub mod scene;
pub mod server;
pub mod signing;
pub mod sshd;
pub mod strace;
pub mod tracer;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use metadata::MetadataService;
pub use sshd::TestSshd;

/// Returns true if these tools are installed; otherwise prints why the test is skipped.
pub fn has_tools(what: &[&str]) -> bool {
    for tool in what {
        let found =
            ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|dir| Path::new(dir).join(tool).exists());
        if !found {
            return report_skipped(&format!("{tool} is not installed"));
        }
    }
    if !nix::unistd::geteuid().is_root() {
        return report_skipped("not root, and a private sshd that logs root in needs it");
    }
    true
}

/// Writes to stderr directly: the test harness hides the output of `eprintln!` if the test passes.
fn report_skipped(why: &str) -> bool {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
    false
}

/// Waits for a condition that another process fulfils; fails after 90 s.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A test of this test program in its own process. `words` is the command (with arguments) that starts it.
pub fn build_isolated_test(words: &[&str], program: &Path, test: &str) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(program).args(["--exact", test, "--ignored", "--nocapture"]);
    command
}

/// A private folder. All its parent directories belong to root, so `StrictModes` accepts it.
pub struct TestDir(PathBuf);

impl TestDir {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/run/keypair-agent-test.{}.{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = Command::new("chattr").args(["-R", "-i"]).arg(&self.0).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A test guest: a folder, an sshd, the platform's component, and the agent's configuration.
pub struct TestGuest {
    pub sshd: TestSshd,
    pub folder: TestDir,
    pub config: PathBuf,
}

/// The differences between test guests.
#[derive(Default)]
pub struct GuestOptions<'a> {
    /// Lines of the main file, before the lines that every guest has.
    pub main: &'a str,
    /// Whether the main file includes no drop-in directory.
    pub without_drop_ins: bool,
    /// sshd's arguments in addition to `-f`.
    pub arguments: &'a [&'a str],
    /// Lines of the agent's configuration, before its tables.
    pub agent: &'a str,
    /// Whether sshd runs from a copy of its binary (`sshd9` in the folder), which a test can replace.
    pub copied_binary: bool,
    /// The metadata service; `None`: nothing listens at the configured address.
    pub metadata: Option<&'a MetadataService>,
}

impl TestGuest {
    pub fn new() -> Self {
        Self::with_options(GuestOptions::default())
    }

    pub fn with_options(form: GuestOptions<'_>) -> Self {
        let folder = TestDir::new();
        let sshd = TestSshd::start(folder.path(), &form);
        let guest = Self { config: folder.path().join("agent.toml"), sshd, folder };
        guest.write_component_info("3.0.1042");
        let metadata =
            form.metadata.map_or("http://127.0.0.1:9/metadata/latest".to_owned(), MetadataService::url);
        guest.write_agent_config(form.agent, &metadata);
        guest
    }

    /// Writes the agent's configuration, with the lines `agent` before its tables.
    pub fn write_agent_config(&self, agent: &str, metadata_url: &str) {
        fs::write(
            &self.config,
            format!(
                "{agent}\nmetadata_url = \"{metadata_url}\"\ncomponent_info = \"{dir}/componentInfo.cfg\"\n\
                 state_dir = \"{dir}/state\"\nrun_dir = \"{dir}/run\"\n\
                 [sshd]\nconfig = \"{dir}/sshd_config\"\npid_file = \"{dir}/sshd.pid\"\n",
                dir = self.folder.path().display()
            ),
        )
        .unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write_component_info(&self, content: &str) {
        fs::write(self.path("componentInfo.cfg"), content).unwrap();
    }

    /// The target user's key file, as configured in this sshd.
    pub fn key_file(&self) -> PathBuf {
        self.path("keys/root")
    }

    pub fn drop_in(&self) -> PathBuf {
        self.path("sshd_config.d/00-keypair-agent.conf")
    }

    /// Replaces the copied binary by one that still answers questions (`-T`, `-t`), but exits instead of listening.
    pub fn break_copied_binary(&self) {
        self.replace_copied_binary(include_str!("answers_and_dies.sh"));
    }

    /// Replaces the copied binary by a script, in the way of an upgrade. Uses install(1), for the same reason as the
    /// copy uses cp(1).
    pub fn replace_copied_binary(&self, text: &str) {
        let (script, new) = (self.path("script"), self.path("sshd9.new"));
        fs::write(&script, text).unwrap();
        let done = Command::new("install").arg("-m755").arg(&script).arg(&new).status().unwrap();
        assert!(done.success());
        fs::rename(new, self.path("sshd9")).unwrap();
    }

    pub fn run_agent(&self, arguments: &[&str]) -> Output {
        self.run_agent_with_input(arguments, "")
    }

    pub fn run_agent_with_input(&self, arguments: &[&str], input: &str) -> Output {
        use std::io::Write;
        let mut child = self.agent_command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// The agent's command line, not yet started.
    pub fn agent_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keypair-agent"));
        command.args(arguments).arg("--config").arg(&self.config);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `apply` with a command and returns its result. Fails if the result and the exit status do not agree.
    pub fn apply(&self, command: &Value) -> Value {
        let output = self.run_agent_with_input(&["apply", "-"], &command.to_string());
        let result: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            panic!(
                "no result: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        });
        let status = if result["status"] == "succeeded" { 0 } else { 1 };
        assert_eq!(output.status.code(), Some(status), "{result}");
        result
    }

    /// Content, mode and owner of each file that a command may change.
    pub fn snapshot(&self) -> Vec<(PathBuf, String, u32, u32)> {
        use std::os::unix::fs::MetadataExt;
        let mut seen = Vec::new();
        for directory in ["", "keys", "sshd_config.d"] {
            for entry in fs::read_dir(self.path(directory)).unwrap().flatten() {
                let metadata = entry.path().symlink_metadata().unwrap();
                // sshd itself writes its log and its pid file.
                let own = entry
                    .path()
                    .extension()
                    .is_some_and(|extension| extension == "log" || extension == "pid");
                if metadata.is_file() && !own {
                    seen.push((
                        entry.path(),
                        fs::read(entry.path()).unwrap().escape_ascii().to_string(),
                        metadata.mode(),
                        metadata.uid(),
                    ));
                }
            }
        }
        seen.sort();
        seen
    }
}

/// A key pair of the owner, made by ssh-keygen.
pub struct TestKey {
    pub private: PathBuf,
    pub line: String,
}

impl TestKey {
    pub fn new(folder: &TestDir, name: &str) -> Self {
        Self::of_type(folder, name, &["-t", "ed25519"])
    }

    pub fn of_type(folder: &TestDir, name: &str, kind: &[&str]) -> Self {
        let private = folder.path().join(format!("{name}.key"));
        let done = Command::new("ssh-keygen")
            .args(["-q", "-N", "", "-C", &format!("{name}@laptop"), "-f"])
            .arg(&private)
            .args(kind)
            .status()
            .unwrap();
        assert!(done.success());
        let line = fs::read_to_string(private.with_extension("key.pub")).unwrap().trim_end().to_owned();
        Self { private, line }
    }

    pub fn fingerprint(&self, hash: &str) -> String {
        let output =
            Command::new("ssh-keygen").args(["-l", "-E", hash, "-f"]).arg(&self.private).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let print = text.split_whitespace().nth(1).unwrap();
        print.strip_prefix("MD5:").unwrap_or(print).to_owned()
    }
}

/// The reasons of a result's warnings, without the warnings about sshds of other tests that run at the same time.
pub fn warning_reasons(result: &Value) -> Vec<&str> {
    let reasons =
        result["warnings"].as_array().unwrap().iter().map(|warning| warning["reason"].as_str().unwrap());
    reasons.filter(|reason| *reason != "SECOND_SSHD").collect()
}

/// An `attach` command for the console.
pub fn attach_command(name: &str, key: &TestKey, password_auth: &str) -> Value {
    serde_json::json!({ "action": "attach", "keyName": name, "publicKey": key.line, "passWordAuth": password_auth })
}

/// A `detach` command for the console.
pub fn detach_command(name: &str) -> Value {
    serde_json::json!({ "action": "detach", "keyName": name })
}

/// A `setPasswordAuth` command for the console.
pub fn set_password_auth_command(password_auth: &str) -> Value {
    serde_json::json!({ "action": "setPasswordAuth", "passWordAuth": password_auth })
}

/// The command with one field set, or with the field removed if `value` is `null`.
pub fn with_field(mut command: Value, name: &str, value: Value) -> Value {
    let fields = command.as_object_mut().unwrap();
    match value {
        Value::Null => drop(fields.remove(name)),
        value => drop(fields.insert(name.to_owned(), value)),
    }
    command
}
