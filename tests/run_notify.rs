//! What `run` tells systemd (KP-8.15): readiness, one line of status, the watchdog.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::daemon::{Daemon, Manager, queued};
use support::metadata::{Asked, Fault};
use support::{Form, Guest, Key, Metadata, attach, available, wait_for};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

fn guest(metadata: &Metadata) -> Guest {
    Guest::of(Form { metadata: Some(metadata), ..Form::default() })
}

/// KP-3.17, KP-8.15.
#[test]
fn ready_comes_after_what_was_queued_and_status_says_how_things_are() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = guest(&metadata);
    let key = Key::new(&guest.folder, "me");
    let mut manager = Manager::listen(&guest);
    metadata.queue(queued("c-1", 1, attach("my-test", &key, "no")));
    let daemon = Daemon::start_with(&guest, &[("NOTIFY_SOCKET", manager.path.to_str().unwrap())]);
    manager.wait_for("READY=1", |line| line == "READY=1");
    // What was queued is in effect before sshd would open.
    assert_eq!(metadata.result("c-1").expect("a result before READY=1")["status"], "succeeded");
    let status = manager.wait_for("the status", |line| {
        line.starts_with("STATUS=") && line.contains("my-test") && line.contains("password login off")
    });
    assert!(status.contains("3.0.1042") && status.contains("waiting for commands"), "{status}");

    metadata.fault(Some(Fault::Raw(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n".to_vec())));
    let status = manager.wait_for("the failure", |line| line.starts_with("STATUS=") && line.contains("500"));
    assert!(status.contains("my-test") && status.contains("failing"), "{status}");

    assert_eq!(daemon.terminate().code(), Some(0));
    manager.wait_for("STOPPING=1", |line| line == "STOPPING=1");
    let said = manager.said();
    assert_eq!(said.iter().filter(|line| *line == "READY=1").count(), 1, "{said:?}");
    assert!(!said.iter().any(|line| line == "WATCHDOG=1"), "{said:?}");
    let known = ["READY=1", "STOPPING=1"];
    let stray = said.iter().find(|line| !known.contains(&line.as_str()) && !line.starts_with("STATUS="));
    assert_eq!(stray, None);
    assert!(!said.concat().contains(key.line.split(' ').nth(1).unwrap()));
}

#[test]
fn status_follows_what_is_done_at_the_console() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let form = Form { metadata: Some(&metadata), agent: "long_poll_seconds = 1", ..Form::default() };
    let guest = Guest::of(form);
    let key = Key::new(&guest.folder, "me");
    let mut manager = Manager::listen(&guest);
    let daemon = Daemon::start_with(&guest, &[("NOTIFY_SOCKET", manager.path.to_str().unwrap())]);
    manager.wait_for("READY=1", |line| line == "READY=1");
    guest.apply(&attach("my-test", &key, "no"));
    manager.wait_for("the binding", |line| line.starts_with("STATUS=key pair my-test bound"));
    assert_eq!(guest.agent(&["undo"]).status.code(), Some(0));
    wait_for("its end", || {
        let last = manager.said().iter().rfind(|line| line.starts_with("STATUS="))?;
        last.starts_with("STATUS=no key pair bound, password login as configured").then_some(())
    });
    assert_eq!(daemon.terminate().code(), Some(0));
}

/// KP-3.17, KP-3.18.
#[test]
fn ready_comes_although_the_service_hangs_and_polls_do_not_wait_until_then() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = guest(&metadata);
    metadata.fault(Some(Fault::Hang));
    let mut manager = Manager::listen(&guest);
    let mut daemon = Daemon::start_with(&guest, &[("NOTIFY_SOCKET", manager.path.to_str().unwrap())]);
    wait_for("the first poll", || metadata.asked().contains(&Asked::Poll(0)).then_some(()));
    manager.wait_for("READY=1", |line| line == "READY=1");
    let polls: Vec<Asked> =
        metadata.asked().into_iter().filter(|asked| matches!(asked, Asked::Poll(_))).collect();
    assert!(!polls.is_empty() && polls.iter().all(|poll| *poll == Asked::Poll(0)), "{polls:?}");
    assert!(daemon.is_alive());
    // With the hanging poll in flight.
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn the_watchdog_is_fed_in_a_long_poll() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = guest(&metadata);
    let mut manager = Manager::listen(&guest);
    let socket = manager.path.to_str().unwrap().to_owned();
    let daemon = Daemon::start_with(&guest, &[("NOTIFY_SOCKET", &socket), ("WATCHDOG_USEC", "400000")]);
    wait_for("a long poll", || {
        // As systemd does: whoever tells a socket that nobody reads waits for it.
        manager.said();
        metadata.asked().contains(&Asked::Poll(60)).then_some(())
    });
    let fed = |manager: &mut Manager| manager.said().iter().filter(|line| *line == "WATCHDOG=1").count();
    let before = fed(&mut manager);
    wait_for("three more", || (fed(&mut manager) >= before + 3).then_some(()));
    assert_eq!(metadata.asked().iter().filter(|asked| **asked == Asked::Poll(60)).count(), 1);
    assert_eq!(daemon.terminate().code(), Some(0));
}
