//! KP-6.22 to KP-6.25, against the real sshd: when a SIGHUP is safe, that it is seen to have worked, and that
//! sshd comes back where it has not.

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

use keypair_agent::guest::service::{bring_back, reload, reload_is_safe};
use keypair_agent::guest::sockets::listening;
use keypair_agent::guest::sshd::observe;
use keypair_agent::policy::observation::{Reload, Sshd};
use keypair_agent::policy::outcome::{Reason, Refusal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use private_sshd::{ANSWERS_AND_DIES, PrivateSshd, SSHD, free_port, wait_until};

fn seen(sshd: &PrivateSshd) -> Sshd {
    let seen = observe(&sshd.settings(), "root").unwrap();
    assert!(matches!(seen.reload, Reload::Pid { .. }), "{:?}", seen.reload);
    seen
}

fn inodes(port: u16) -> Vec<u64> {
    listening(None).unwrap().iter().filter(|s| s.address.port() == port).map(|s| s.inode).collect()
}

fn answers(port: u16) -> bool {
    answers_at("127.0.0.1", port)
}

fn answers_at(host: &str, port: u16) -> bool {
    let mut banner = [0; 4];
    let Ok(mut stream) = TcpStream::connect((host, port)) else { return false };
    stream.read_exact(&mut banner).is_ok() && &banner == b"SSH-"
}

/// On which addresses something listens at a port.
fn addresses(port: u16) -> Vec<String> {
    let sockets = listening(None).unwrap();
    let mut found: Vec<String> = sockets
        .iter()
        .filter(|socket| socket.address.port() == port)
        .map(|socket| socket.address.ip().to_string())
        .collect();
    found.sort();
    found
}

fn is_gone(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

/// KP-6.25.
#[test]
fn a_reload_is_seen() {
    needs_sshd!();
    for arguments in [&[] as &[&str], &["-D", "-o", "PasswordAuthentication=yes"]] {
        let sshd = PrivateSshd::daemon("", arguments);
        let settings = sshd.settings();
        let seen = seen(&sshd);
        let (pid, before) = (sshd.pid(), inodes(sshd.port));
        for _ in 0..3 {
            reload_is_safe(&settings, &seen).unwrap();
            reload(&settings, &seen).unwrap();
        }
        assert_eq!(sshd.pid(), pid);
        assert!(inodes(sshd.port).iter().all(|inode| !before.contains(inode)));
        assert!(answers(sshd.port));
        // Alive: nothing to do.
        let now = inodes(sshd.port);
        bring_back(&settings, &seen).unwrap();
        assert_eq!(inodes(sshd.port), now);
    }
}

/// KP-6.24.
#[test]
fn pending_edits_that_would_end_or_move_it() {
    needs_sshd!();
    let sshd = PrivateSshd::daemon("", &[]);
    let settings = sshd.settings();
    let seen = seen(&sshd);
    let before = inodes(sshd.port);
    let original = fs::read_to_string(sshd.config()).unwrap();
    let unsafe_with = |text: String, named: &str| {
        fs::write(sshd.config(), text).unwrap();
        let Refusal { reason, message } = reload_is_safe(&settings, &seen).unwrap_err();
        assert_eq!(reason, Reason::SshdReloadUnsafe);
        assert!(message.contains(named), "{message}");
    };
    unsafe_with(original.replace("127.0.0.1", "203.0.113.9"), &format!("203.0.113.9:{}", sshd.port));
    let pending = free_port();
    unsafe_with(original.replace(&sshd.port.to_string(), &pending.to_string()), &format!("port {pending}"));
    unsafe_with(format!("{original}Port {pending}\n"), &format!("port {pending}"));
    // Another program's port is not the listener's own.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().port();
    unsafe_with(format!("{original}Port {taken}\n"), &format!("port {taken}"));
    // One address that can be bound is enough.
    fs::write(sshd.config(), format!("{original}ListenAddress 203.0.113.9\n")).unwrap();
    reload_is_safe(&settings, &seen).unwrap();
    assert_eq!(inodes(sshd.port), before);
    reload(&settings, &seen).unwrap();
    assert!(answers(sshd.port));
}

/// KP-6.22.
#[test]
fn nobody_to_tell() {
    needs_sshd!();
    let sshd = PrivateSshd::files("");
    let seen = observe(&sshd.settings(), "root").unwrap();
    assert!(matches!(seen.reload, Reload::None(_)));
    assert_eq!(reload_is_safe(&sshd.settings(), &seen), Ok(()));
    assert_eq!(reload(&sshd.settings(), &seen), Ok(()));
    assert_eq!(bring_back(&sshd.settings(), &seen), Ok(()));
    assert!(sshd.pid().is_none());
}

#[test]
fn one_that_started_since_is_told() {
    needs_sshd!();
    let mut sshd = PrivateSshd::files("");
    let settings = sshd.settings();
    let seen = observe(&settings, "root").unwrap();
    assert!(matches!(seen.reload, Reload::None(_)));
    sshd.start(Path::new(SSHD), &[]);
    let before = inodes(sshd.port);
    let original = fs::read_to_string(sshd.config()).unwrap();
    fs::write(sshd.config(), original.clone() + "Port 1\n").unwrap();
    assert_eq!(reload_is_safe(&settings, &seen).unwrap_err().reason, Reason::SshdReloadUnsafe);
    fs::write(sshd.config(), original).unwrap();
    reload_is_safe(&settings, &seen).unwrap();
    reload(&settings, &seen).unwrap();
    assert!(inodes(sshd.port).iter().all(|inode| !before.contains(inode)));
    assert!(answers(sshd.port));
}

/// KP-6.25.
#[test]
fn a_listener_that_dies_of_its_edit_comes_back() {
    needs_sshd!();
    for arguments in
        [&["-o", "AllowUsers=root nobody"] as &[&str], &["-D", "-e", "-o", "AllowUsers=root nobody"]]
    {
        let mut sshd = PrivateSshd::daemon("", arguments);
        let settings = sshd.settings();
        let seen = seen(&sshd);
        let pid = sshd.pid().unwrap();
        let original = fs::read_to_string(sshd.config()).unwrap();
        // Bound to nothing that is there: the listener ends.
        fs::write(sshd.config(), original.replace("127.0.0.1", "203.0.113.9")).unwrap();
        let failed = reload(&settings, &seen).unwrap_err();
        assert!(failed.message.contains(&format!("pid {pid}")), "{failed}");
        assert!(is_gone(pid));
        fs::write(sshd.config(), &original).unwrap();
        bring_back(&settings, &seen).unwrap();
        assert!(answers(sshd.port));
        let anew = observe(&settings, "root").unwrap();
        assert_ne!(sshd.pid(), Some(pid));
        assert_eq!(anew.options, seen.options);
        let session = fs::read_to_string(format!("/proc/{}/stat", sshd.pid().unwrap())).unwrap();
        let own = session.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().parse::<i32>().unwrap();
        let ours = nix::unistd::getsid(None).unwrap().as_raw();
        assert_ne!(own, ours);
        reload(&settings, &anew).unwrap();
        // The observation of before still finds it, by its pid file.
        reload(&settings, &seen).unwrap();
        sshd.stop();
    }
}

/// KP-6.24.
#[test]
fn each_address_must_still_be_wanted() {
    needs_sshd!();
    let mut sshd = PrivateSshd::files("ListenAddress ::1");
    let second = free_port();
    sshd.configure(&format!("ListenAddress ::1\nListenAddress 127.0.0.1:{second}"));
    sshd.start(Path::new(SSHD), &[]);
    let settings = sshd.settings();
    let seen = seen(&sshd);
    reload_is_safe(&settings, &seen).unwrap();
    let before = inodes(sshd.port);
    let original = fs::read_to_string(sshd.config()).unwrap();
    for (pending, lost) in [
        (original.replace("ListenAddress ::1\n", ""), format!("[::1]:{}", sshd.port)),
        (original.replace(&format!("ListenAddress 127.0.0.1:{second}"), ""), format!("127.0.0.1:{second}")),
        (original.replace("ListenAddress 127.0.0.1\n", ""), format!("127.0.0.1:{}", sshd.port)),
    ] {
        fs::write(sshd.config(), &pending).unwrap();
        let refused = reload_is_safe(&settings, &seen).unwrap_err();
        assert_eq!(refused.reason, Reason::SshdReloadUnsafe, "{pending}");
        assert!(refused.message.contains(&lost), "{pending}: {}", refused.message);
    }
    assert_eq!(inodes(sshd.port), before, "nobody was told");
    fs::write(sshd.config(), original).unwrap();
    reload_is_safe(&settings, &seen).unwrap();
}

/// One that could not be bound from the start is not missed afterwards.
#[test]
fn an_address_that_cannot_be_bound_stays_away() {
    needs_sshd!();
    let sshd = PrivateSshd::daemon("ListenAddress 203.0.113.9", &[]);
    let settings = sshd.settings();
    let seen = seen(&sshd);
    for _ in 0..2 {
        reload_is_safe(&settings, &seen).unwrap();
        reload(&settings, &seen).unwrap();
    }
    assert!(answers(sshd.port));
}

/// Takes an address as soon as it is free, and writes a file then; until it is told to give it back.
struct Taker {
    give_back: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Taker {
    fn of(address: SocketAddr, taken: PathBuf) -> Self {
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

    fn end(&mut self) {
        self.give_back.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// KP-6.25.
#[test]
fn an_address_that_another_process_takes_meanwhile_is_a_failure() {
    needs_sshd!();
    let mut sshd = PrivateSshd::files("ListenAddress ::1");
    let copy = sshd.copy_of_program("sshd");
    sshd.start(&copy, &[]);
    // Between its old sockets and its new ones there is time enough for another process.
    let slow = format!(
        "#!/bin/sh\ncase $1 in -[tT]) ;; *) until [ -e {} ]; do sleep 0.01; done ;; esac\nexec {SSHD} \"$@\"\n",
        sshd.at("taken").display()
    );
    sshd.replace_program(&copy, &slow);
    let settings = sshd.settings();
    let seen = seen(&sshd);
    let mut taker = Taker::of(SocketAddr::from(([127, 0, 0, 1], sshd.port)), sshd.at("taken"));
    let failed = reload(&settings, &seen);
    let failed = Refusal::from(failed.unwrap_err());
    taker.end();
    assert_eq!(failed.reason, Reason::SshdReloadFailed);
    assert!(failed.message.contains(&format!("127.0.0.1:{}", sshd.port)), "{}", failed.message);
    assert!(answers_at("::1", sshd.port), "the listener lives");
    // What lives is left alone; the reload of its restored files brings the address back.
    bring_back(&settings, &seen).unwrap();
    assert_eq!(addresses(sshd.port), ["::1"]);
    reload_is_safe(&settings, &seen).unwrap();
    reload(&settings, &seen).unwrap();
    assert_eq!(addresses(sshd.port), ["127.0.0.1", "::1"]);
}

/// Since OpenSSH 9.8. The stand-in says what such an sshd says; `sshd -t` is content with either.
/// KP-6.24.
#[test]
fn programs_that_serve_connections_must_be_there() {
    needs_sshd!();
    let mut sshd = PrivateSshd::files("");
    let copy = sshd.copy_of_program("sshd");
    sshd.start(&copy, &[]);
    let settings = sshd.settings();
    let (session, auth) = (sshd.at("sshd-session"), sshd.at("sshd-auth"));
    let script = format!(
        "#!/bin/sh\ncase $1 in -T) echo 'SshdSessionPath {}'; echo 'sshdauthpath {}' ;; esac\nexec {SSHD} \"$@\"\n",
        session.display(),
        auth.display()
    );
    sshd.replace_program(&copy, &script);
    let seen = seen(&sshd);
    let before = inodes(sshd.port);
    let unsafe_because = |named: &Path| {
        let refused = reload_is_safe(&settings, &seen).unwrap_err();
        assert_eq!(refused.reason, Reason::SshdReloadUnsafe);
        assert!(refused.message.contains(&*named.to_string_lossy()), "{}", refused.message);
    };
    unsafe_because(&session);
    fs::write(&session, "").unwrap();
    unsafe_because(&session);
    sshd.replace_program(&session, "#!/bin/sh\n");
    unsafe_because(&auth);
    sshd.replace_program(&auth, "#!/bin/sh\n");
    reload_is_safe(&settings, &seen).unwrap();
    assert_eq!(inodes(sshd.port), before);
}

#[test]
fn a_listener_whose_program_breaks_comes_back_by_the_configured_one() {
    needs_sshd!();
    let mut sshd = PrivateSshd::files("");
    let copy = sshd.copy_of_program("sshd");
    sshd.start(&copy, &[]);
    sshd.replace_program(&copy, ANSWERS_AND_DIES);
    let settings = sshd.settings();
    let seen = seen(&sshd);
    assert_eq!(seen.binary, copy);
    reload_is_safe(&settings, &seen).unwrap();
    let failed = Refusal::from(reload(&settings, &seen).unwrap_err());
    assert_eq!(failed.reason, Reason::SshdReloadFailed);
    bring_back(&settings, &seen).unwrap();
    assert!(answers(sshd.port));
    let exe = fs::read_link(format!("/proc/{}/exe", sshd.pid().unwrap())).unwrap();
    assert_eq!(exe, fs::canonicalize(SSHD).unwrap());
}

#[test]
fn a_listener_that_cannot_come_back_is_said() {
    needs_sshd!();
    let mut sshd = PrivateSshd::daemon("", &[]);
    let seen = seen(&sshd);
    sshd.stop();
    sshd.configure("Nonsense yes");
    let refused = bring_back(&sshd.settings(), &seen).unwrap_err();
    assert_eq!(refused.reason, Reason::SshdReloadFailed);
    assert!(refused.message.contains("line 6: Bad configuration option"), "{}", refused.message);
}

#[test]
fn a_pid_that_became_another_process_gets_no_signal() {
    needs_sshd!();
    let mut sshd = PrivateSshd::daemon("", &[]);
    let mut seen = seen(&sshd);
    sshd.stop();
    let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
    let pid = i32::try_from(sleeper.id()).unwrap();
    seen.reload = Reload::Pid { pid, arguments: vec![SSHD.into()] };
    fs::write(sshd.pid_file(), pid.to_string()).unwrap();
    assert_eq!(reload_is_safe(&sshd.settings(), &seen).unwrap_err().reason, Reason::SshdReloadUnsafe);
    assert!(reload(&sshd.settings(), &seen).is_err());
    // SIGHUP would have ended it.
    assert!(sleeper.try_wait().unwrap().is_none());
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

/// KP-6.25.
#[test]
fn a_listener_that_does_not_move_is_a_failure() {
    needs_sshd!();
    let sshd = PrivateSshd::daemon("", &[]);
    let settings = sshd.settings();
    let seen = seen(&sshd);
    let pid = Pid::from_raw(sshd.pid().unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let failed = reload(&settings, &seen);
    kill(pid, Signal::SIGCONT).unwrap();
    let failed = failed.unwrap_err();
    assert!(failed.message.contains("still has its old sockets"), "{failed}");
    bring_back(&settings, &seen).unwrap();
    wait_until("it answers again", || answers(sshd.port));
}

#[test]
fn a_program_under_another_name() {
    needs_sshd!();
    let mut sshd = PrivateSshd::files("");
    let copy = sshd.copy_of_program("secure-shell");
    sshd.start(&copy, &[]);
    let mut settings = sshd.settings();
    // By its name it is no sshd; as the configured program it is.
    assert!(!observe(&settings, "root").is_ok_and(|seen| seen.running));
    settings.binary = copy;
    let seen = observe(&settings, "root").unwrap();
    assert!(seen.running);
    reload(&settings, &seen).unwrap();
}
