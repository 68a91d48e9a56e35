//! `keypair-agent run` as a child of the test, and commands as the service hands them out.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Guest, wait_for, with};

/// A daemon. It ends with the test.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub fn start(guest: &Guest) -> Self {
        Self::start_with(guest, &[])
    }

    /// With these variables besides.
    pub fn start_with(guest: &Guest, variables: &[(&str, &str)]) -> Self {
        let mut command = guest.command(&["run"]);
        command.envs(variables.iter().copied());
        Self::spawn(guest, command)
    }

    /// By a command that becomes it.
    pub fn spawn(guest: &Guest, mut command: Command) -> Self {
        let log = guest.path("run.log");
        let stderr = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        Self { child: command.stderr(stderr).spawn().unwrap(), log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// As by a power failure.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and what it ended with.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.child.wait().unwrap()
    }

    /// What it said so far, of this and of earlier runs of the guest.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What may not grow.
#[derive(Debug)]
pub struct Size {
    pub rss_kib: u64,
    pub descriptors: usize,
    pub state_bytes: u64,
}

impl Size {
    pub fn of(daemon: &Daemon, guest: &Guest) -> Self {
        let process = format!("/proc/{}", daemon.pid());
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            rss_kib: rss.trim().strip_suffix(" kB").unwrap().parse().unwrap(),
            descriptors: fs::read_dir(format!("{process}/fd")).unwrap().count(),
            state_bytes: fs::metadata(guest.path("state/state.json")).unwrap().len(),
        }
    }

    /// Within 5 % or 256 KiB.
    pub fn is_no_more_memory_than(&self, first: &Self) -> bool {
        self.rss_kib <= (first.rss_kib + 256).max(first.rss_kib * 105 / 100)
    }
}

/// A console's command as the service of `i-test` hands it out.
pub fn queued(id: &str, sequence: u64, command: Value) -> Value {
    let command = with(command, "commandId", json!(id));
    with(with(command, "sequence", json!(sequence)), "instanceId", json!("i-test"))
}

/// A socket that stands for systemd's.
pub struct Manager {
    socket: UnixDatagram,
    pub path: PathBuf,
    said: Vec<String>,
}

impl Manager {
    pub fn listen(guest: &Guest) -> Self {
        let path = guest.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        Self { socket, path, said: Vec::new() }
    }

    /// All that was said so far, an assignment a line.
    pub fn said(&mut self) -> &[String] {
        let mut datagram = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut datagram) {
            let text = String::from_utf8(datagram[..length].to_vec()).unwrap();
            self.said.extend(text.lines().map(str::to_owned));
        }
        &self.said
    }

    /// Waits for a line; the first that fits.
    pub fn wait_for(&mut self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        wait_for(what, || self.said().iter().find(|line| fits(line)).cloned())
    }
}
