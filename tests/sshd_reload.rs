//! KP-6.22 to KP-6.25, with the real sshd: when a SIGHUP is safe, how its success is verified, and how sshd is
//! restarted if the reload failed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

#[path = "support/private_sshd.rs"]
#[allow(dead_code)]
mod private_sshd;

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use keypair_agent::guest::service::{check_reload_safe, ensure_sshd_running, reload_sshd};
use keypair_agent::guest::sockets::list_listening_sockets;
use keypair_agent::guest::sshd::inspect_sshd;
use keypair_agent::policy::observation::{ReloadMethod, Sshd};
use keypair_agent::policy::outcome::{Reason, Refusal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use private_sshd::{DYING_SSHD_SCRIPT, PrivateSshd, SSHD, free_port, wait_until};

fn observe_running_sshd(sshd: &PrivateSshd) -> Sshd {
    let seen = inspect_sshd(&sshd.settings(), "root").unwrap();
    assert!(matches!(seen.reload, ReloadMethod::Pid { .. }), "{:?}", seen.reload);
    seen
}

fn listening_inodes(port: u16) -> Vec<u64> {
    list_listening_sockets(None)
        .unwrap()
        .iter()
        .filter(|s| s.address.port() == port)
        .map(|s| s.inode)
        .collect()
}

fn is_ssh_answering(port: u16) -> bool {
    is_ssh_answering_at("127.0.0.1", port)
}

fn is_ssh_answering_at(host: &str, port: u16) -> bool {
    let mut banner = [0; 4];
    let Ok(mut stream) = TcpStream::connect((host, port)) else { return false };
    stream.read_exact(&mut banner).is_ok() && &banner == b"SSH-"
}

/// The addresses on which a process listens at a port.
fn listening_addresses(port: u16) -> Vec<String> {
    let sockets = list_listening_sockets(None).unwrap();
    let mut found: Vec<String> = sockets
        .iter()
        .filter(|socket| socket.address.port() == port)
        .map(|socket| socket.address.ip().to_string())
        .collect();
    found.sort();
    found
}

fn is_process_gone(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

/// KP-6.25.
#[test]
fn reload_replaces_listening_sockets() {
    needs_sshd!();
    for arguments in [&[] as &[&str], &["-D", "-o", "PasswordAuthentication=yes"]] {
        let sshd = PrivateSshd::start_daemon("", arguments);
        let settings = sshd.settings();
        let seen = observe_running_sshd(&sshd);
        let (pid, before) = (sshd.pid(), listening_inodes(sshd.port));
        for _ in 0..3 {
            check_reload_safe(&settings, &seen).unwrap();
            reload_sshd(&settings, &seen).unwrap();
        }
        assert_eq!(sshd.pid(), pid);
        assert!(listening_inodes(sshd.port).iter().all(|inode| !before.contains(inode)));
        assert!(is_ssh_answering(sshd.port));
        // The listener runs: nothing to do.
        let now = listening_inodes(sshd.port);
        ensure_sshd_running(&settings, &seen).unwrap();
        assert_eq!(listening_inodes(sshd.port), now);
    }
}

/// KP-6.24.
#[test]
fn reload_with_pending_address_change_is_unsafe() {
    needs_sshd!();
    let sshd = PrivateSshd::start_daemon("", &[]);
    let settings = sshd.settings();
    let seen = observe_running_sshd(&sshd);
    let before = listening_inodes(sshd.port);
    let original = fs::read_to_string(sshd.config()).unwrap();
    let unsafe_with = |text: String, named: &str| {
        fs::write(sshd.config(), text).unwrap();
        let Refusal { reason, message } = check_reload_safe(&settings, &seen).unwrap_err();
        assert_eq!(reason, Reason::SshdReloadUnsafe);
        assert!(message.contains(named), "{message}");
    };
    unsafe_with(original.replace("127.0.0.1", "203.0.113.9"), &format!("203.0.113.9:{}", sshd.port));
    let pending = free_port();
    unsafe_with(original.replace(&sshd.port.to_string(), &pending.to_string()), &format!("port {pending}"));
    unsafe_with(format!("{original}Port {pending}\n"), &format!("port {pending}"));
    // A port of another program is not the listener's own port.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().port();
    unsafe_with(format!("{original}Port {taken}\n"), &format!("port {taken}"));
    // One address that sshd can bind is sufficient.
    fs::write(sshd.config(), format!("{original}ListenAddress 203.0.113.9\n")).unwrap();
    check_reload_safe(&settings, &seen).unwrap();
    assert_eq!(listening_inodes(sshd.port), before);
    reload_sshd(&settings, &seen).unwrap();
    assert!(is_ssh_answering(sshd.port));
}

/// KP-6.22.
#[test]
fn reload_without_listener_does_nothing() {
    needs_sshd!();
    let sshd = PrivateSshd::new_stopped("");
    let seen = inspect_sshd(&sshd.settings(), "root").unwrap();
    assert!(matches!(seen.reload, ReloadMethod::None(_)));
    assert_eq!(check_reload_safe(&sshd.settings(), &seen), Ok(()));
    assert_eq!(reload_sshd(&sshd.settings(), &seen), Ok(()));
    assert_eq!(ensure_sshd_running(&sshd.settings(), &seen), Ok(()));
    assert!(sshd.pid().is_none());
}

#[test]
fn sshd_started_after_observation_is_reloaded() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("");
    let settings = sshd.settings();
    let seen = inspect_sshd(&settings, "root").unwrap();
    assert!(matches!(seen.reload, ReloadMethod::None(_)));
    sshd.start(Path::new(SSHD), &[]);
    let before = listening_inodes(sshd.port);
    let original = fs::read_to_string(sshd.config()).unwrap();
    fs::write(sshd.config(), original.clone() + "Port 1\n").unwrap();
    assert_eq!(check_reload_safe(&settings, &seen).unwrap_err().reason, Reason::SshdReloadUnsafe);
    fs::write(sshd.config(), original).unwrap();
    check_reload_safe(&settings, &seen).unwrap();
    reload_sshd(&settings, &seen).unwrap();
    assert!(listening_inodes(sshd.port).iter().all(|inode| !before.contains(inode)));
    assert!(is_ssh_answering(sshd.port));
}

/// KP-6.25.
#[test]
fn listener_killed_by_edit_is_restarted() {
    needs_sshd!();
    for arguments in
        [&["-o", "AllowUsers=root nobody"] as &[&str], &["-D", "-e", "-o", "AllowUsers=root nobody"]]
    {
        let mut sshd = PrivateSshd::start_daemon("", arguments);
        let settings = sshd.settings();
        let seen = observe_running_sshd(&sshd);
        let pid = sshd.pid().unwrap();
        let original = fs::read_to_string(sshd.config()).unwrap();
        // No listed address can be bound: the listener exits.
        fs::write(sshd.config(), original.replace("127.0.0.1", "203.0.113.9")).unwrap();
        let failed = reload_sshd(&settings, &seen).unwrap_err();
        assert!(failed.message.contains(&format!("pid {pid}")), "{failed}");
        assert!(is_process_gone(pid));
        fs::write(sshd.config(), &original).unwrap();
        ensure_sshd_running(&settings, &seen).unwrap();
        assert!(is_ssh_answering(sshd.port));
        let anew = inspect_sshd(&settings, "root").unwrap();
        assert_ne!(sshd.pid(), Some(pid));
        assert_eq!(anew.options, seen.options);
        let session = fs::read_to_string(format!("/proc/{}/stat", sshd.pid().unwrap())).unwrap();
        let own = session.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().parse::<i32>().unwrap();
        let ours = nix::unistd::getsid(None).unwrap().as_raw();
        assert_ne!(own, ours);
        reload_sshd(&settings, &anew).unwrap();
        // The earlier observation still finds the listener, by its pid file.
        reload_sshd(&settings, &seen).unwrap();
        sshd.stop();
    }
}

/// KP-6.24.
#[test]
fn reload_losing_listen_address_is_unsafe() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("ListenAddress ::1");
    let second = free_port();
    sshd.write_config(&format!("ListenAddress ::1\nListenAddress 127.0.0.1:{second}"));
    sshd.start(Path::new(SSHD), &[]);
    let settings = sshd.settings();
    let seen = observe_running_sshd(&sshd);
    check_reload_safe(&settings, &seen).unwrap();
    let before = listening_inodes(sshd.port);
    let original = fs::read_to_string(sshd.config()).unwrap();
    for (pending, lost) in [
        (original.replace("ListenAddress ::1\n", ""), format!("[::1]:{}", sshd.port)),
        (original.replace(&format!("ListenAddress 127.0.0.1:{second}"), ""), format!("127.0.0.1:{second}")),
        (original.replace("ListenAddress 127.0.0.1\n", ""), format!("127.0.0.1:{}", sshd.port)),
    ] {
        fs::write(sshd.config(), &pending).unwrap();
        let refused = check_reload_safe(&settings, &seen).unwrap_err();
        assert_eq!(refused.reason, Reason::SshdReloadUnsafe, "{pending}");
        assert!(refused.message.contains(&lost), "{pending}: {}", refused.message);
    }
    assert_eq!(listening_inodes(sshd.port), before, "nobody was told");
    fs::write(sshd.config(), original).unwrap();
    check_reload_safe(&settings, &seen).unwrap();
}

/// An address that sshd never could bind is not missed after a reload.
#[test]
fn unbindable_address_does_not_block_reload() {
    needs_sshd!();
    let sshd = PrivateSshd::start_daemon("ListenAddress 203.0.113.9", &[]);
    let settings = sshd.settings();
    let seen = observe_running_sshd(&sshd);
    for _ in 0..2 {
        check_reload_safe(&settings, &seen).unwrap();
        reload_sshd(&settings, &seen).unwrap();
    }
    assert!(is_ssh_answering(sshd.port));
}

/// Takes an address as soon as it is free, and then writes a file; returns the address on request.
struct PortSquatter {
    give_back: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PortSquatter {
    fn start(address: SocketAddr, taken: PathBuf) -> Self {
        let give_back = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&give_back);
        let thread = std::thread::spawn(move || {
            let mut held = None;
            while !ends.load(Ordering::Relaxed) {
                if held.is_none() {
                    held = TcpListener::bind(address).ok();
                    if held.is_some() {
                        fs::write(&taken, "").unwrap();
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { give_back, thread: Some(thread) }
    }

    fn stop(&mut self) {
        self.give_back.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// KP-6.25.
#[test]
fn address_taken_during_reload_is_failure() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("ListenAddress ::1");
    let copy = sshd.copy_program("sshd");
    sshd.start(&copy, &[]);
    // Another process has enough time to take the port between the listener's old sockets and its new ones.
    let slow = format!(
        "#!/bin/sh\ncase $1 in -[tT]) ;; *) until [ -e {} ]; do sleep 0.01; done ;; esac\nexec {SSHD} \"$@\"\n",
        sshd.path("taken").display()
    );
    sshd.replace_program(&copy, &slow);
    let settings = sshd.settings();
    let seen = observe_running_sshd(&sshd);
    let mut taker = PortSquatter::start(SocketAddr::from(([127, 0, 0, 1], sshd.port)), sshd.path("taken"));
    let failed = reload_sshd(&settings, &seen);
    let failed = Refusal::from(failed.unwrap_err());
    taker.stop();
    assert_eq!(failed.reason, Reason::SshdReloadFailed);
    assert!(failed.message.contains(&format!("127.0.0.1:{}", sshd.port)), "{}", failed.message);
    assert!(is_ssh_answering_at("::1", sshd.port), "the listener lives");
    // The agent does not restart an sshd that runs. A reload with the restored files brings the address back.
    ensure_sshd_running(&settings, &seen).unwrap();
    assert_eq!(listening_addresses(sshd.port), ["::1"]);
    check_reload_safe(&settings, &seen).unwrap();
    reload_sshd(&settings, &seen).unwrap();
    assert_eq!(listening_addresses(sshd.port), ["127.0.0.1", "::1"]);
}

/// Since OpenSSH 9.8. The stand-in prints the messages of such an sshd; `sshd -t` accepts both cases.
/// KP-6.24.
#[test]
fn missing_sshd_session_makes_reload_unsafe() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("");
    let copy = sshd.copy_program("sshd");
    sshd.start(&copy, &[]);
    let settings = sshd.settings();
    let (session, auth) = (sshd.path("sshd-session"), sshd.path("sshd-auth"));
    let script = format!(
        "#!/bin/sh\ncase $1 in -T) echo 'SshdSessionPath {}'; echo 'sshdauthpath {}' ;; esac\nexec {SSHD} \"$@\"\n",
        session.display(),
        auth.display()
    );
    sshd.replace_program(&copy, &script);
    let seen = observe_running_sshd(&sshd);
    let before = listening_inodes(sshd.port);
    let unsafe_because = |named: &Path| {
        let refused = check_reload_safe(&settings, &seen).unwrap_err();
        assert_eq!(refused.reason, Reason::SshdReloadUnsafe);
        assert!(refused.message.contains(&*named.to_string_lossy()), "{}", refused.message);
    };
    unsafe_because(&session);
    fs::write(&session, "").unwrap();
    unsafe_because(&session);
    sshd.replace_program(&session, "#!/bin/sh\n");
    unsafe_because(&auth);
    sshd.replace_program(&auth, "#!/bin/sh\n");
    check_reload_safe(&settings, &seen).unwrap();
    assert_eq!(listening_inodes(sshd.port), before);
}

#[test]
fn listener_with_broken_binary_restarts_configured_one() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("");
    let copy = sshd.copy_program("sshd");
    sshd.start(&copy, &[]);
    sshd.replace_program(&copy, DYING_SSHD_SCRIPT);
    let settings = sshd.settings();
    let seen = observe_running_sshd(&sshd);
    assert_eq!(seen.binary, copy);
    check_reload_safe(&settings, &seen).unwrap();
    let failed = Refusal::from(reload_sshd(&settings, &seen).unwrap_err());
    assert_eq!(failed.reason, Reason::SshdReloadFailed);
    ensure_sshd_running(&settings, &seen).unwrap();
    assert!(is_ssh_answering(sshd.port));
    let exe = fs::read_link(format!("/proc/{}/exe", sshd.pid().unwrap())).unwrap();
    assert_eq!(exe, fs::canonicalize(SSHD).unwrap());
}

#[test]
fn unrestartable_listener_is_reported() {
    needs_sshd!();
    let mut sshd = PrivateSshd::start_daemon("", &[]);
    let seen = observe_running_sshd(&sshd);
    sshd.stop();
    sshd.write_config("Nonsense yes");
    let refused = ensure_sshd_running(&sshd.settings(), &seen).unwrap_err();
    assert_eq!(refused.reason, Reason::SshdReloadFailed);
    assert!(refused.message.contains("line 6: Bad configuration option"), "{}", refused.message);
}

#[test]
fn reused_pid_gets_no_signal() {
    needs_sshd!();
    let mut sshd = PrivateSshd::start_daemon("", &[]);
    let mut seen = observe_running_sshd(&sshd);
    sshd.stop();
    let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
    let pid = i32::try_from(sleeper.id()).unwrap();
    seen.reload = ReloadMethod::Pid { pid, arguments: vec![SSHD.into()] };
    fs::write(sshd.pid_file(), pid.to_string()).unwrap();
    assert_eq!(check_reload_safe(&sshd.settings(), &seen).unwrap_err().reason, Reason::SshdReloadUnsafe);
    assert!(reload_sshd(&sshd.settings(), &seen).is_err());
    // A SIGHUP would have ended this process.
    assert!(sleeper.try_wait().unwrap().is_none());
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

/// KP-6.25.
#[test]
fn unresponsive_listener_fails_reload() {
    needs_sshd!();
    let sshd = PrivateSshd::start_daemon("", &[]);
    let settings = sshd.settings();
    let seen = observe_running_sshd(&sshd);
    let pid = Pid::from_raw(sshd.pid().unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let failed = reload_sshd(&settings, &seen);
    kill(pid, Signal::SIGCONT).unwrap();
    let failed = failed.unwrap_err();
    assert!(failed.message.contains("still has its old sockets"), "{failed}");
    ensure_sshd_running(&settings, &seen).unwrap();
    wait_until("it answers again", || is_ssh_answering(sshd.port));
}

#[test]
fn sshd_under_other_name_needs_configured_binary() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("");
    let copy = sshd.copy_program("secure-shell");
    sshd.start(&copy, &[]);
    let mut settings = sshd.settings();
    // The process name is not sshd's, but as the configured program it counts as sshd.
    assert!(!inspect_sshd(&settings, "root").is_ok_and(|seen| seen.running));
    settings.binary = copy;
    let seen = inspect_sshd(&settings, "root").unwrap();
    assert!(seen.running);
    reload_sshd(&settings, &seen).unwrap();
}
