//! `keypair-agent run` as a child process of the test, and commands as the metadata service sends them.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{TestGuest, wait_for, with_field};

/// A running daemon. It ends with the test.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub fn start(guest: &TestGuest) -> Self {
        Self::start_with_env(guest, &[])
    }

    /// Starts the daemon with these additional environment variables.
    pub fn start_with_env(guest: &TestGuest, variables: &[(&str, &str)]) -> Self {
        let mut command = guest.agent_command(&["run"]);
        command.envs(variables.iter().copied());
        Self::spawn(guest, command)
    }

    /// Starts the daemon by a given command, which must end in an exec of the agent.
    pub fn spawn(guest: &TestGuest, mut command: Command) -> Self {
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

    /// Sends SIGKILL: the daemon cannot clean up, as at a power failure.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM, waits, and returns the exit status.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.child.wait().unwrap()
    }

    /// The log so far. It includes earlier runs in the same guest.
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

/// The resources of a process that must not grow over time.
#[derive(Debug)]
pub struct ProcessUsage {
    pub rss_kib: u64,
    pub descriptors: usize,
    pub state_bytes: u64,
}

impl ProcessUsage {
    pub fn measure(daemon: &Daemon, guest: &TestGuest) -> Self {
        let process = format!("/proc/{}", daemon.pid());
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            rss_kib: rss.trim().strip_suffix(" kB").unwrap().parse().unwrap(),
            descriptors: fs::read_dir(format!("{process}/fd")).unwrap().count(),
            state_bytes: fs::metadata(guest.path("state/state.json")).unwrap().len(),
        }
    }

    /// Whether the resident memory grew by at most 5 % or 256 KiB.
    pub fn has_memory_within(&self, first: &Self) -> bool {
        self.rss_kib <= (first.rss_kib + 256).max(first.rss_kib * 105 / 100)
    }
}

/// A console command in the form in which the metadata service of instance `i-test` sends it.
pub fn make_channel_command(id: &str, sequence: u64, command: Value) -> Value {
    let command = with_field(command, "commandId", json!(id));
    with_field(with_field(command, "sequence", json!(sequence)), "instanceId", json!("i-test"))
}

/// A socket in place of systemd's notify socket.
pub struct NotifySocket {
    socket: UnixDatagram,
    pub path: PathBuf,
    said: Vec<String>,
}

impl NotifySocket {
    pub fn listen(guest: &TestGuest) -> Self {
        let path = guest.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        Self { socket, path, said: Vec::new() }
    }

    /// All messages so far, one assignment per line.
    pub fn messages(&mut self) -> &[String] {
        let mut datagram = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut datagram) {
            let text = String::from_utf8(datagram[..length].to_vec()).unwrap();
            self.said.extend(text.lines().map(str::to_owned));
        }
        &self.said
    }

    /// Waits for a line that fits, and returns the first one.
    pub fn wait_for_message(&mut self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        wait_for(what, || self.messages().iter().find(|line| fits(line)).cloned())
    }
}
