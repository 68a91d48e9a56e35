//! A private sshd on a loopback port, with its own configuration, host key and pid file in a temporary directory.
//! Tests end it by its own pid, and only if its command line names that directory.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use keypair_agent::guest::sshd::SshdSettings;

/// The installed sshd.
pub const SSHD: &str = "/usr/sbin/sshd";

/// The reason why the tests with a real sshd cannot run here; `None`: they can.
pub fn unavailable() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    (!Path::new(SSHD).exists()).then_some("there is no /usr/sbin/sshd")
}

/// Ends the test with a message on stderr if it cannot run here.
#[macro_export]
macro_rules! needs_sshd {
    () => {
        if let Some(reason) = private_sshd::unavailable() {
            eprintln!("SKIPPED: {reason}");
            return;
        }
    };
}

/// A port that is free at this moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The private sshd, or its files if it does not run.
pub struct PrivateSshd {
    directory: tempfile::TempDir,
    pub port: u16,
    child: Option<Child>,
}

impl PrivateSshd {
    /// Creates only its files. No process runs.
    pub fn new_stopped(lines: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("private-sshd-").tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let sshd = Self { directory, port: free_port(), child: None };
        let key = sshd.path("host_key");
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(key).status();
        assert!(made.unwrap().success());
        sshd.write_config(lines);
        sshd
    }

    /// Writes its configuration: the necessary lines, then `lines`.
    pub fn write_config(&self, lines: &str) {
        let text = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {}\nPidFile {}\nUsePAM no\n{lines}\n",
            self.port,
            self.path("host_key").display(),
            self.pid_file().display()
        );
        fs::write(self.config(), text).unwrap();
    }

    /// Starts it as a daemon.
    pub fn start_daemon(lines: &str, arguments: &[&str]) -> Self {
        let mut sshd = Self::new_stopped(lines);
        sshd.start(Path::new(SSHD), arguments);
        sshd
    }

    /// Starts `binary` with its configuration. With `-D` among the arguments it stays a child of the test.
    pub fn start(&mut self, binary: &Path, arguments: &[&str]) {
        let config = self.config();
        self.start_on(binary, &config, arguments);
    }

    /// Starts `binary` in its directory, with any main file.
    pub fn start_on(&mut self, binary: &Path, config: &Path, arguments: &[&str]) {
        let mut command = Command::new(binary);
        command.arg("-f").arg(config).args(arguments).current_dir(self.directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        if arguments.contains(&"-D") {
            self.child = Some(child);
        } else {
            assert!(child.wait().unwrap().success());
        }
        wait_until("the private sshd writes its pid file", || self.pid().is_some());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("sshd_config")
    }

    pub fn pid_file(&self) -> PathBuf {
        self.path("pid")
    }

    pub fn pid(&self) -> Option<i32> {
        fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()
    }

    /// The agent's settings for this sshd.
    pub fn settings(&self) -> SshdSettings {
        SshdSettings {
            binary: PathBuf::from(SSHD),
            config: self.config(),
            pid_file: Some(self.pid_file()),
            run_dir: self.path("run"),
        }
    }

    /// A copy of the real program with a built-in directory other than /etc/ssh, and with a main file and a drop-in
    /// there. The new path has the same length as the old one, because the copy is patched in place.
    pub fn copy_with_own_sysconfdir(&self) -> RelocatedSshd {
        let real = self.path("conf");
        let directory = PathBuf::from(format!("/run/{:03x}", std::process::id() & 0xfff));
        fs::create_dir_all(real.join("d")).unwrap();
        let _ = fs::remove_file(&directory);
        std::os::unix::fs::symlink(&real, &directory).unwrap();
        let edit = format!(r"s#/etc/ssh\([/\x00]\)#{}\1#g", directory.display());
        let program = self.path("sshd");
        let done_by =
            format!("sed '{edit}' {SSHD} > {0}.new; chmod 755 {0}.new; mv {0}.new {0}", program.display());
        run_checked(Command::new("sh").args(["-ec", &done_by]));
        let main = fs::read_to_string(self.config()).unwrap();
        fs::write(real.join("sshd_config"), format!("Include d/*.conf\n{main}")).unwrap();
        fs::write(real.join("d/a.conf"), "PasswordAuthentication no\n").unwrap();
        RelocatedSshd { program, config: directory.join("sshd_config"), link: directory }
    }

    /// Starts a program as a daemon, with its built-in main file.
    pub fn start_with_default_config(&mut self, binary: &Path) {
        let mut command = Command::new(binary);
        command.current_dir(self.directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        run_checked(&mut command);
        wait_until("the private sshd writes its pid file", || self.pid().is_some());
    }

    /// A copy of the real program. cp(1) makes it: if the test wrote the file itself, a child of a parallel test
    /// could inherit the descriptor that is open for writing. The kernel does not run such a file (ETXTBSY).
    pub fn copy_program(&self, name: &str) -> PathBuf {
        let copy = self.path(name);
        run_checked(Command::new("cp").arg(SSHD).arg(&copy));
        copy
    }

    /// Replaces a program by a script in the way of an upgrade: a new file under the same name.
    pub fn replace_program(&self, program: &Path, script: &str) {
        fs::write(self.path("script"), script).unwrap();
        let new = program.with_extension("new");
        run_checked(Command::new("install").arg("-m755").arg(self.path("script")).arg(&new));
        fs::rename(new, program).unwrap();
    }

    /// Names and modification times of all files in its directory.
    pub fn snapshot(&self) -> Vec<(PathBuf, std::time::SystemTime)> {
        let mut entries: Vec<_> = fs::read_dir(self.directory.path())
            .unwrap()
            .flatten()
            .map(|entry| (entry.path(), entry.metadata().unwrap().modified().unwrap()))
            .collect();
        entries.sort();
        entries
    }

    /// Ends it if it runs.
    pub fn stop(&mut self) {
        let listener = self.pid().filter(|pid| self.is_own_process(*pid));
        if let Some(pid) = listener {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while listener.is_some_and(|pid| self.is_own_process(pid)) && Instant::now() < deadline {
            sleep(Duration::from_millis(5));
        }
    }

    /// Whether a pid is a process that was started in this directory.
    fn is_own_process(&self, pid: i32) -> bool {
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        let directory = self.directory.path();
        String::from_utf8_lossy(&cmdline).contains(&*directory.to_string_lossy())
            || cwd.starts_with(directory)
    }
}

impl Drop for PrivateSshd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An sshd with another built-in directory. The directory is removed together with this value.
pub struct RelocatedSshd {
    pub program: PathBuf,
    pub config: PathBuf,
    link: PathBuf,
}

impl Drop for RelocatedSshd {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.link);
    }
}

fn run_checked(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// A program that answers every question like the real sshd, but exits instead of listening.
pub const DYING_SSHD_SCRIPT: &str = include_str!("answers_and_dies.sh");

/// Waits for a condition; fails with its description after 20 s.
pub fn wait_until(what: &str, mut come: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !come() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        sleep(Duration::from_millis(5));
    }
}
