//! A guest with its own namespaces and overlay, an sshd inside it, and the agent.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lab::{MatrixEnvironment, PASSWORD_HASH, PATH};
use super::row::{MatrixCase, OpensshVersion};

/// Paths that a guest must not inherit from the test machine.
const CLEARED_PATHS: [&str; 7] = [
    "etc/ssh/sshd_config",
    "etc/ssh/sshd_config.d",
    "usr/etc/ssh",
    "etc/nologin",
    "etc/keypair-agent",
    "var/lib/keypair-agent",
    "run/nologin",
];

pub struct NamespaceGuest<'a> {
    lab: &'a MatrixEnvironment,
    row: &'a MatrixCase,
    init: Child,
    pid: String,
    log: Arc<Mutex<String>>,
    ended: Arc<AtomicBool>,
}

impl<'a> NamespaceGuest<'a> {
    /// A guest in the state that the row describes, before any command.
    pub fn new(lab: &'a MatrixEnvironment, row: &'a MatrixCase) -> Result<Self, String> {
        let mut init = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c"])
            .arg(include_str!("guest.sh"))
            .env_clear()
            .envs([("PATH", PATH.as_ref()), ("AT", lab.mount_point().as_os_str())])
            .envs([("ROOT", lab.root.as_os_str()), ("AGENT", lab.agent.as_os_str())])
            .env("OPENSSH", lab.openssh.clone().unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut pid = String::new();
        let said = BufReader::new(init.stdout.take().unwrap()).read_line(&mut pid);
        let (log, ended) = (Arc::default(), Arc::default());
        let guest = Self { lab, row, init, pid: pid.trim().to_owned(), log, ended };
        if said.is_err() || guest.pid.is_empty() {
            return Err("the guest's namespaces or overlay could not be made".into());
        }
        guest.set_up_files().map_err(|error| format!("the guest's files: {error}"))?;
        guest.run_script(&row.setup)?;
        if row.running {
            guest.start_sshd()?;
        }
        guest.run_script(&row.pending)?;
        Ok(guest)
    }

    /// The path of a guest's file outside of the guest. Its parents must contain no absolute links.
    pub fn host_path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        Path::new("/proc").join(&self.pid).join("root").join(path.strip_prefix("/").unwrap_or(path))
    }

    fn set_up_files(&self) -> std::io::Result<()> {
        self.listen_to_syslog()?;
        for path in CLEARED_PATHS {
            let path = self.host_path(path);
            match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path)?,
                Ok(_) => fs::remove_file(&path)?,
                Err(_) => {}
            }
        }
        for entry in fs::read_dir(self.host_path("/etc/ssh"))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
                fs::remove_file(entry.path())?;
            }
        }
        fs::create_dir(self.host_path("/etc/ssh/sshd_config.d"))?;
        if self.row.host_key {
            let to = self.host_path("/etc/ssh/ssh_host_ed25519_key");
            fs::copy(self.lab.host_key(), &to)?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
            fs::copy(self.lab.host_key().with_extension("key.pub"), to.with_extension("pub"))?;
        }
        // pam_unix waits two seconds after a wrong password. No test here needs that delay.
        if let Ok(text) = fs::read_to_string(self.host_path("/etc/pam.d/common-auth")) {
            fs::write(
                self.host_path("/etc/pam.d/common-auth"),
                text.replace("pam_unix.so", "pam_unix.so nodelay"),
            )?;
        }
        self.write_accounts()?;
        self.write("/usr/local/share/jcloud/agent/core/componentInfo.cfg", "3.0.1042\n")?;
        let MatrixCase { user, agent, .. } = self.row;
        self.write("/etc/keypair-agent/config.toml", &format!("target_user = \"{user}\"\n{agent}\n"))?;
        for (path, text) in &self.row.files {
            self.write(path, &self.expand_placeholders(text))?;
        }
        Ok(())
    }

    /// Replaces the row's placeholders by the values of this run. Before OpenSSH 8.7, a global line that turns
    /// keyboard-interactive off uses the older name, like the files of that time. Before 8.2, Include does not exist.
    fn expand_placeholders(&self, text: &str) -> String {
        let text = text
            .replace("@KEY@", &self.lab.key(self.row.key).line)
            .replace("@OTHER_KEY@", &self.lab.other.line);
        let version = self.lab.version;
        let lines = text.split_inclusive('\n').map(|line| {
            match line.strip_prefix("KbdInteractiveAuthentication no") {
                Some(rest) if version < OpensshVersion(8, 7) => {
                    format!("ChallengeResponseAuthentication no{rest}")
                }
                _ if version < OpensshVersion(8, 2) && line.starts_with("Include ") => format!("# {line}"),
                _ => line.to_owned(),
            }
        });
        lines.collect()
    }

    pub fn write(&self, path: &str, text: &str) -> std::io::Result<()> {
        let path = self.host_path(path);
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(path, text)
    }

    /// Sets passwords for the target user and the row's accounts only.
    fn write_accounts(&self) -> std::io::Result<()> {
        let MatrixCase { user, accounts, password_only, .. } = self.row;
        let [mut passwd, mut group, mut shadow] = ["passwd", "group", "shadow"]
            .map(|name| fs::read_to_string(self.host_path("/etc").join(name)).unwrap());
        shadow = shadow
            .lines()
            .map(|line| {
                let mut fields: Vec<&str> = line.split(':').collect();
                let hash = fields[1];
                fields[1] = match fields[0] {
                    "root" if user == "root" || password_only.iter().any(|name| name == "root") => {
                        PASSWORD_HASH
                    }
                    _ if hash.starts_with(['!', '*']) => hash,
                    _ => "!",
                };
                fields.join(":") + "\n"
            })
            .collect();
        let mut made: Vec<&String> = accounts.iter().chain(password_only).collect();
        if !made.contains(&user) {
            made.push(user);
        }
        made.retain(|name| *name != "root");
        for (name, uid) in made.into_iter().zip(4242..) {
            passwd += &format!("{name}:x:{uid}:{uid}::/home/{name}:/bin/sh\n");
            group += &format!("{name}:x:{uid}:\n");
            shadow += &format!("{name}:{PASSWORD_HASH}:19000:0:99999:7:::\n");
            let home = self.host_path("/home").join(name);
            fs::create_dir_all(&home)?;
            chown(&home, Some(uid), Some(uid))?;
            if accounts.contains(name) {
                let ssh = home.join(".ssh");
                fs::create_dir(&ssh)?;
                fs::write(ssh.join("authorized_keys"), format!("{}\n", self.lab.other.line))?;
            }
        }
        for (name, text) in [("passwd", passwd), ("group", group), ("shadow", shadow)] {
            fs::write(self.host_path("/etc").join(name), text)?;
        }
        Ok(())
    }

    /// Records sshd's log messages about connections. No other program listens on the guest's /dev/log.
    fn listen_to_syslog(&self) -> std::io::Result<()> {
        let socket = UnixDatagram::bind(self.host_path("/dev/log"))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let (log, ended) = (Arc::clone(&self.log), Arc::clone(&self.ended));
        std::thread::spawn(move || {
            let mut datagram = [0; 8192];
            while !ended.load(Ordering::Relaxed) {
                match socket.recv(&mut datagram) {
                    Ok(length) => {
                        let text = String::from_utf8_lossy(&datagram[..length]).into_owned();
                        *log.lock().unwrap() += &format!("{}\n", text.trim_end());
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => return,
                }
            }
        });
        Ok(())
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// A program inside the guest.
    pub fn guest_command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid, "-m", "-n", "-p", "-r", "-w", program]);
        command.env_clear().env("PATH", PATH).env("HOME", "/root").stdin(Stdio::null());
        command
    }

    /// A program outside of the guest, only in the guest's network.
    pub fn network_command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid, "-n", program]);
        command.env_clear().env("PATH", PATH).stdin(Stdio::null());
        command
    }

    /// Runs a script of the row.
    pub fn run_script(&self, script: &str) -> Result<(), String> {
        if script.is_empty() {
            return Ok(());
        }
        let output =
            self.guest_command("/bin/sh").args(["-ec", &self.expand_placeholders(script)]).output().unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("the row's script: {}", combined_output(&output)))
        }
    }

    fn start_sshd(&self) -> Result<(), String> {
        let start = format!("{}\nexec /usr/local/sbin/sshd \"$@\"", self.row.program);
        let output = self
            .guest_command("/bin/sh")
            .args(["-ec", &start, "sshd"])
            .args(&self.row.arguments)
            .output()
            .unwrap();
        if !output.status.success() {
            return Err(format!("sshd does not start: {}", combined_output(&output)));
        }
        // sshd writes the pid file after it listens. If it can bind no address, it exits without one.
        let end = Instant::now() + Duration::from_secs(20);
        while !fs::read_to_string(self.host_path("/run/sshd.pid")).is_ok_and(|pid| pid.ends_with('\n')) {
            if Instant::now() >= end {
                return Err("sshd writes no pid file".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// From now on sshd cannot execute itself again: a SIGHUP ends it. The program at its path still answers
    /// questions, like an sshd that lacks a library which it needs only for listening.
    pub fn break_sshd_binary(&self) -> Result<(), String> {
        let script = include_str!("../support/answers_and_dies.sh");
        self.write("/usr/local/sbin/sshd.new", script).map_err(|error| error.to_string())?;
        self.run_script(
            "chmod 755 /usr/local/sbin/sshd.new; mv /usr/local/sbin/sshd.new /usr/local/sbin/sshd",
        )
    }

    /// The error of `sshd -t`, if any.
    pub fn find_config_error(&self) -> Option<String> {
        let program = if self.row.running { "/usr/local/sbin/sshd" } else { "/usr/sbin/sshd" };
        let output = self.guest_command(program).arg("-t").args(&self.row.arguments).output().unwrap();
        (!output.status.success()).then(|| combined_output(&output))
    }

    /// Runs the agent with this standard input, under `tracer` if that is not empty.
    pub fn run_agent(&self, tracer: &[&str], arguments: &[&str], input: &str) -> Output {
        let inner = self.guest_command("/usr/bin/keypair-agent");
        let mut command = match tracer {
            [] => self.guest_command("/usr/bin/keypair-agent"),
            [program, options @ ..] => {
                let mut command = Command::new(program);
                command.args(options).arg(inner.get_program()).args(inner.get_args());
                command.env_clear().env("PATH", PATH).env("HOME", "/root");
                command
            }
        };
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    pub fn pid(&self) -> &str {
        &self.pid
    }
}

impl Drop for NamespaceGuest<'_> {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // The end of its input ends the init process, and --kill-child ends the rest.
        drop(self.init.stdin.take());
        let _ = self.init.wait();
    }
}

/// Whether this machine permits the creation of guests. A container may not permit it.
pub fn can_create_guests() -> bool {
    let script = "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w /mnt/r && \
                  mount -t overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w o /mnt/r && ip link set lo up";
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "sh", "-c", script])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if !output.status.success() {
        eprintln!(
            "SKIPPED: namespaces with an overlay are not allowed here: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    output.status.success()
}

/// The stdout and the stderr of a program.
pub fn combined_output(output: &Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    text.join(" ").trim().to_owned()
}
