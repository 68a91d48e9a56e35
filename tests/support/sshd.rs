//! A private sshd on a free loopback port, and the real ssh client for it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{GuestOptions, TestKey, wait_for};

pub struct TestSshd {
    child: Child,
    folder: PathBuf,
    pub port: u16,
}

/// A port on which no process listens.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl TestSshd {
    pub fn start(folder: &Path, form: &GuestOptions<'_>) -> Self {
        for directory in ["keys", "sshd_config.d"] {
            fs::create_dir(folder.join(directory)).unwrap();
        }
        let key = folder.join("host_key");
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.unwrap().success());
        let mut program = PathBuf::from("/usr/sbin/sshd");
        if form.copied_binary {
            // cp(1) makes the copy: if the test wrote the file itself, a child of a parallel test could inherit the
            // descriptor that is open for writing. The kernel does not run such a file (ETXTBSY).
            let copy = folder.join("sshd9");
            assert!(Command::new("cp").arg(&program).arg(&copy).status().unwrap().success());
            program = copy;
        }
        // Another process may take the free port before sshd binds it. Then sshd exits, and the next port is tried.
        for _ in 0..20 {
            let port = free_port();
            fs::write(folder.join("sshd_config"), Self::render_config(folder, form, port)).unwrap();
            let child = Self::spawn(&program, folder, form.arguments);
            let mut sshd = Self { child, folder: folder.to_owned(), port };
            let is_up = wait_for("sshd to listen or to end", || {
                // sshd writes the pid file after it has bound the port.
                let bound = fs::read_to_string(folder.join("sshd.pid")).is_ok_and(|pid| pid.ends_with('\n'));
                if bound { Some(true) } else { (!sshd.is_alive()).then_some(false) }
            });
            if is_up {
                return sshd;
            }
        }
        panic!("sshd does not start: {}", fs::read_to_string(folder.join("sshd.log")).unwrap());
    }

    fn render_config(folder: &Path, form: &GuestOptions<'_>, port: u16) -> String {
        let dir = folder.display();
        let include = match form.without_drop_ins {
            true => String::new(),
            false => format!("Include {dir}/sshd_config.d/*.conf\n"),
        };
        format!(
            "{include}Port {port}\nListenAddress 127.0.0.1\nHostKey {dir}/host_key\nPidFile {dir}/sshd.pid\n\
             AuthorizedKeysFile {dir}/keys/%u\nUsePAM no\nPermitRootLogin yes\n{}",
            form.main
        )
    }

    fn spawn(program: &Path, folder: &Path, arguments: &[&str]) -> Child {
        // sshd does not start without this directory. A running system has it, a fresh machine may not.
        let _ = fs::create_dir("/run/sshd");
        let log = fs::File::create(folder.join("sshd.log")).unwrap();
        Command::new(program)
            .arg("-D")
            .arg("-e")
            .arg("-f")
            .arg(folder.join("sshd_config"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Whether the listener that this test started still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the listener.
    fn stop(&mut self) {
        // A reload may have replaced the listener; the pid file in this test's own folder names the present one.
        if let Ok(text) = fs::read_to_string(self.folder.join("sshd.pid"))
            && let Ok(pid) = text.trim().parse::<i32>()
            && pid != self.child.id() as i32
        {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts another listener with the present files, as at a boot. No other process may take the port meanwhile.
    pub fn start_listener_again(&mut self) {
        self.start_listener_with_args(&[]);
    }

    /// Ends the listener and removes its pid file, as on a machine that is off.
    pub fn stop_and_remove_pid_file(&mut self) {
        self.stop();
        let _ = fs::remove_file(self.folder.join("sshd.pid"));
    }

    /// The same as [`Self::start_listener_again`], with these additional arguments.
    pub fn start_listener_with_args(&mut self, arguments: &[&str]) {
        self.stop_and_remove_pid_file();
        let pid_file = self.folder.join("sshd.pid");
        self.child = Self::spawn(Path::new("/usr/sbin/sshd"), &self.folder, arguments);
        wait_for("sshd to listen", || {
            assert!(
                self.is_alive(),
                "sshd does not start: {}",
                fs::read_to_string(self.folder.join("sshd.log")).unwrap()
            );
            fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n')).then_some(())
        });
    }

    fn ssh_command(&self) -> Command {
        let mut command = Command::new("ssh");
        command
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                "IdentityAgent=none",
            ])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            // The default post-quantum key exchange takes ten times as long as the rest of a login.
            .args(["-o", "KexAlgorithms=curve25519-sha256"])
            .args(["-o", "ControlPath=none", "-p", &self.port.to_string()])
            .stdin(Stdio::null());
        command
    }

    /// Whether root can log in with this key.
    pub fn accepts_key(&self, key: &TestKey) -> bool {
        let mut client = self.ssh_command();
        client.arg("-i").arg(&key.private).args(["root@127.0.0.1", "true"]);
        client.stderr(Stdio::null()).status().unwrap().success()
    }

    /// The methods that the running sshd offers.
    pub fn offered_methods(&self) -> Vec<String> {
        wait_for("sshd's offer", || {
            let mut client = self.ssh_command();
            client.args(["-v", "-o", "PreferredAuthentications=none", "root@127.0.0.1", "true"]);
            let output = client.output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let (_, methods) = text.split_once("Authentications that can continue: ")?;
            Some(methods.lines().next()?.trim().split(',').map(str::to_owned).collect())
        })
    }

    /// Whether the running sshd offers password login.
    pub fn offers_password(&self) -> bool {
        self.offered_methods().iter().any(|method| method == "password")
    }
}

impl Drop for TestSshd {
    fn drop(&mut self) {
        self.stop();
    }
}
