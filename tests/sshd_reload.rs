//! Contract 6, "Reload", against the real sshd: when a SIGHUP is safe, that it is seen to have worked, and that
//! sshd comes back where it has not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

#[path = "support/private_sshd.rs"]
#[allow(dead_code)]
mod private_sshd;

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use keypair_agent::guest::service::{bring_back, reload, reload_is_safe};
use keypair_agent::guest::sockets::listening;
use keypair_agent::guest::sshd::observe;
use keypair_agent::policy::observation::{Reload, Sshd};
use keypair_agent::policy::outcome::{Reason, Refusal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use private_sshd::{PrivateSshd, SSHD, free_port, wait_until};

fn seen(sshd: &PrivateSshd) -> Sshd {
    let seen = observe(&sshd.settings(), "root").unwrap();
    assert!(matches!(seen.reload, Reload::Pid { .. }), "{:?}", seen.reload);
    seen
}

fn inodes(port: u16) -> Vec<u64> {
    listening(None).unwrap().iter().filter(|s| s.address.port() == port).map(|s| s.inode).collect()
}

fn answers(port: u16) -> bool {
    let mut banner = [0; 4];
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.read_exact(&mut banner).is_ok() && &banner == b"SSH-"
}

fn is_gone(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

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

#[test]
fn a_listener_whose_program_is_gone_comes_back_by_the_configured_one() {
    needs_sshd!();
    let mut sshd = PrivateSshd::files("");
    let copy = sshd.at("sshd");
    assert!(Command::new("cp").arg(SSHD).arg(&copy).status().unwrap().success());
    sshd.start(&copy, &[]);
    fs::remove_file(&copy).unwrap();
    let settings = sshd.settings();
    let seen = seen(&sshd);
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
    let copy: PathBuf = sshd.at("secure-shell");
    assert!(Command::new("cp").arg(SSHD).arg(&copy).status().unwrap().success());
    sshd.start(Path::new(&copy), &[]);
    let mut settings = sshd.settings();
    // By its name it is no sshd; as the configured program it is.
    assert!(!observe(&settings, "root").is_ok_and(|seen| seen.running));
    settings.binary = copy;
    let seen = observe(&settings, "root").unwrap();
    assert!(seen.running);
    reload(&settings, &seen).unwrap();
}
