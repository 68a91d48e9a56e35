//! One run: a private sshd that serves one connection (`sshd -i`), and the ssh client that connects to it.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::netlink::LOOPBACK_INDEX;
use crate::guest::child::BackgroundChild;
use crate::guest::host_key;
use crate::guest::ssh_client::{ClientProbe, FAST_KEX, Route, quote_shell_word, read_log};
use crate::policy::observation::{Connection, Sshd};
use crate::policy::public_key::PublicKey;
use crate::policy::trial::{
    ClientReport, KeyMatch, ServerReport, TrialOutcome, TrialRequest, interpret_logs,
};

/// The interval, in ms, between checks whether the client has ended, while no connection arrives.
const ACCEPT_POLL_MS: u8 = 50;

/// How long a private sshd may run after its client has ended.
const SERVER_END_TIMEOUT: Duration = Duration::from_secs(2);

/// sshd's log message if it has no host key.
const NO_HOST_KEY_MESSAGE: &str = "no hostkeys available";

/// The maximum number of bytes read from a key file to find the options of one line.
const MAX_MATCHED_FILE_BYTES: usize = 16 * 1024 * 1024;

/// The parameters of a private sshd.
pub(super) struct PrivateSshd<'a> {
    /// The program.
    binary: &'a Path,
    /// The listener's options.
    options: &'a [String],
    /// The candidate's main file.
    config: PathBuf,
    /// A private directory for logs and keys.
    directory: &'a Path,
    /// The name of the user whose login is tried.
    user: &'a str,
    /// The key.
    key: &'a PublicKey,
    /// A temporary host key, set only after sshd reported that it has none.
    host_key: Option<PathBuf>,
}

/// How the client reaches the private sshd.
#[derive(Debug, Clone, Copy)]
pub(super) enum Transport<'c> {
    /// With the addresses of this connection, in a network namespace.
    Tcp(&'c Connection),
    /// Over a pipe. sshd sees no address.
    Pipe,
}

/// The logs of one run.
struct RunLogs {
    client: String,
    server: String,
}

impl<'a> PrivateSshd<'a> {
    /// Uses the listener's own program and options, with the candidate's main file and a private directory.
    pub(super) fn new(
        sshd: &'a Sshd,
        question: &'a TrialRequest,
        directory: &'a Path,
        config: PathBuf,
    ) -> Self {
        Self {
            binary: &sshd.binary,
            options: &sshd.options,
            config,
            directory,
            user: &question.user,
            key: &question.key,
            host_key: None,
        }
    }

    /// Asks with the fastest key exchange first, then with the client's default if sshd or ssh does not support
    /// it. If sshd has no host key, asks again with a temporary one. The second value is whether sshd knew the
    /// user.
    pub(super) fn ask(&mut self, link: Transport<'_>) -> (TrialOutcome, bool) {
        let mut kex = Some(FAST_KEX);
        loop {
            let logs = match self.run_once(link, kex) {
                Ok(logs) => logs,
                Err(why) => return (TrialOutcome::NotTaken(why), true),
            };
            if self.host_key.is_none() && logs.server.contains(NO_HOST_KEY_MESSAGE) {
                match self.generate_host_key() {
                    Ok(key) => self.host_key = Some(key),
                    Err(why) => return (TrialOutcome::NotTaken(why), true),
                }
                continue;
            }
            let lacks = ClientReport::lacks_key_exchange(&logs.client)
                || ServerReport::lacks_key_exchange(&logs.server);
            if lacks && kex.take().is_some() {
                continue;
            }
            let server = ServerReport::parse(&logs.server);
            let answer = interpret_logs(&ClientReport::parse(&logs.client), &server, read_matched_line);
            return (answer, !server.is_unknown_user());
        }
    }

    fn run_once(&self, link: Transport<'_>, kex: Option<&str>) -> Result<RunLogs, String> {
        let log = self.directory.join("server.log");
        match std::fs::remove_file(&log) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("cannot remove {}: {error}", log.display()));
            }
            _ => {}
        }
        let client = match link {
            Transport::Tcp(connection) => self.run_over_tcp(connection, &log, kex)?,
            Transport::Pipe => self.run_over_pipe(&log, kex)?,
        };
        // Without a connection there is no server log. Then the client's log has the reason.
        Ok(RunLogs { client, server: read_log(&log).unwrap_or_default() })
    }

    fn run_over_tcp(&self, connection: &Connection, log: &Path, kex: Option<&str>) -> Result<String, String> {
        let address = socket_address(connection.laddr, connection.lport);
        let listener =
            TcpListener::bind(address).map_err(|error| format!("cannot listen on {address}: {error}"))?;
        let question = self.client_question(
            Route::Tcp {
                from: Some(connection.addr),
                to: format_address(connection.laddr),
                port: connection.lport,
            },
            kex,
        );
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let server = scope.spawn(|| self.serve_connection(&listener, log, kex, &is_over));
            let asked = question.run();
            is_over.store(true, Ordering::Relaxed);
            let served = server.join().unwrap_or_else(|_| Err("the private sshd's thread ended".to_owned()));
            let log = asked.map_err(|error| error.to_string())?;
            served?;
            Ok(log.text)
        })
    }

    /// Accepts one connection and starts a private sshd on it.
    fn serve_connection(
        &self,
        listener: &TcpListener,
        log: &Path,
        kex: Option<&str>,
        is_over: &AtomicBool,
    ) -> Result<(), String> {
        let failed = |error: io::Error| format!("the private connection failed: {error}");
        let Some(stream) = accept_connection(listener, is_over).map_err(failed)? else { return Ok(()) };
        let output = OwnedFd::from(stream.try_clone().map_err(failed)?);
        let input = OwnedFd::from(stream);
        let log = File::create(log).map_err(failed)?;
        let descriptors = [Stdio::from(input), Stdio::from(output), Stdio::from(log)];
        let mut sshd = BackgroundChild::start(self.binary, &self.arguments(kex), descriptors)
            .map_err(|error| error.to_string())?;
        while !is_over.load(Ordering::Relaxed) {
            if sshd.wait_for_exit(Duration::from_millis(20)) {
                return Ok(());
            }
        }
        sshd.wait_for_exit(SERVER_END_TIMEOUT);
        Ok(())
    }

    fn run_over_pipe(&self, log: &Path, kex: Option<&str>) -> Result<String, String> {
        let mut words = vec![quote_shell_word(&self.binary.to_string_lossy())];
        words.extend(self.arguments(kex).iter().map(|word| quote_shell_word(word)));
        // The client runs the command with `exec` in front of it.
        let command = format!("{} 2>{}", words.join(" "), quote_shell_word(&log.to_string_lossy()));
        let log = self
            .client_question(Route::ProxyCommand(&command), kex)
            .run()
            .map_err(|error| error.to_string())?;
        Ok(log.text)
    }

    fn client_question<'q>(&'q self, route: Route<'q>, kex: Option<&'q str>) -> ClientProbe<'q> {
        ClientProbe {
            directory: self.directory,
            user: self.user,
            key: Some(self.key),
            route,
            host: None,
            kex,
        }
    }

    /// The arguments of `sshd -i`. If an option is given twice, sshd uses the first. The log goes to standard
    /// error: with `-E`, sshd 9.8 and 9.9 write the log into the connection.
    fn arguments(&self, kex: Option<&str>) -> Vec<String> {
        let mut words: Vec<String> = ["-i", "-e", "-f"].map(str::to_owned).to_vec();
        words.push(self.config.to_string_lossy().into_owned());
        let kex = kex.map(|kex| format!("KexAlgorithms={kex}"));
        for option in kex.into_iter().chain(["LogLevel=DEBUG1", "PermitEmptyPasswords=no"].map(str::to_owned))
        {
            words.extend(["-o".to_owned(), option]);
        }
        words.extend(self.options.iter().cloned());
        if let Some(key) = &self.host_key {
            words.extend(["-h".to_owned(), key.to_string_lossy().into_owned()]);
        }
        words
    }

    /// Creates a host key for this trial only.
    fn generate_host_key(&self) -> Result<PathBuf, String> {
        let path = self.directory.join("host_key");
        let made = host_key::generate_host_key(&path);
        made.map_err(|fault| format!("sshd has no host key, and none can be made for the trial: {fault}"))?;
        Ok(path)
    }
}

/// Waits for a connection; `None` if the client ended without one.
fn accept_connection(listener: &TcpListener, is_over: &AtomicBool) -> io::Result<Option<TcpStream>> {
    loop {
        let mut ends = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ends, PollTimeout::from(ACCEPT_POLL_MS)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return listener.accept().map(|(stream, _)| Some(stream)),
            Err(errno) => return Err(errno.into()),
        }
        if is_over.load(Ordering::Relaxed) {
            return Ok(None);
        }
    }
}

/// A link-local address needs the index of its device.
pub(super) fn socket_address(address: IpAddr, port: u16) -> SocketAddr {
    match address {
        IpAddr::V6(v6) if is_link_local(address) => SocketAddrV6::new(v6, port, 0, LOOPBACK_INDEX).into(),
        address => SocketAddr::new(address, port),
    }
}

fn format_address(address: IpAddr) -> String {
    if is_link_local(address) { format!("{address}%lo") } else { address.to_string() }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80)
}

/// Reads the matched line of a key file, for its options.
fn read_matched_line(at: &KeyMatch) -> Option<Vec<u8>> {
    let content = crate::guest::files::read_file(Path::new(&at.file), MAX_MATCHED_FILE_BYTES).ok()??;
    let line = content.split(|byte| *byte == b'\n').nth(at.line.checked_sub(1)?)?;
    Some(line.to_vec())
}
