//! The messages from `run` to systemd (KP-8.15): readiness, a status line, the watchdog.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::daemon::{Daemon, NotifySocket, make_channel_command};
use support::metadata::{PollFault, ServiceRequest};
use support::{GuestOptions, MetadataService, TestGuest, TestKey, attach_command, has_tools, wait_for};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

fn create_guest(metadata: &MetadataService) -> TestGuest {
    TestGuest::with_options(GuestOptions { metadata: Some(metadata), ..GuestOptions::default() })
}

/// KP-3.17, KP-8.15.
#[test]
fn ready_is_sent_after_queued_commands() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let key = TestKey::new(&guest.folder, "me");
    let mut manager = NotifySocket::listen(&guest);
    metadata.queue(make_channel_command("c-1", 1, attach_command("my-test", &key, "no")));
    let daemon = Daemon::start_with_env(&guest, &[("NOTIFY_SOCKET", manager.path.to_str().unwrap())]);
    manager.wait_for_message("READY=1", |line| line == "READY=1");
    // Queued commands take effect before systemd would start sshd.
    assert_eq!(metadata.result("c-1").expect("a result before READY=1")["status"], "succeeded");
    let status = manager.wait_for_message("the status", |line| {
        line.starts_with("STATUS=") && line.contains("my-test") && line.contains("password login off")
    });
    assert!(status.contains("3.0.1042") && status.contains("waiting for commands"), "{status}");

    metadata.set_fault(Some(PollFault::Raw(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n".to_vec())));
    let status =
        manager.wait_for_message("the failure", |line| line.starts_with("STATUS=") && line.contains("500"));
    assert!(status.contains("my-test") && status.contains("failing"), "{status}");

    assert_eq!(daemon.terminate().code(), Some(0));
    manager.wait_for_message("STOPPING=1", |line| line == "STOPPING=1");
    let said = manager.messages();
    assert_eq!(said.iter().filter(|line| *line == "READY=1").count(), 1, "{said:?}");
    assert!(!said.iter().any(|line| line == "WATCHDOG=1"), "{said:?}");
    let known = ["READY=1", "STOPPING=1"];
    let stray = said.iter().find(|line| !known.contains(&line.as_str()) && !line.starts_with("STATUS="));
    assert_eq!(stray, None);
    assert!(!said.concat().contains(key.line.split(' ').nth(1).unwrap()));
}

#[test]
fn notify_status_follows_console_changes() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let form =
        GuestOptions { metadata: Some(&metadata), agent: "long_poll_seconds = 1", ..GuestOptions::default() };
    let guest = TestGuest::with_options(form);
    let key = TestKey::new(&guest.folder, "me");
    let mut manager = NotifySocket::listen(&guest);
    let daemon = Daemon::start_with_env(&guest, &[("NOTIFY_SOCKET", manager.path.to_str().unwrap())]);
    manager.wait_for_message("READY=1", |line| line == "READY=1");
    guest.apply(&attach_command("my-test", &key, "no"));
    manager.wait_for_message("the binding", |line| line.starts_with("STATUS=key pair my-test bound"));
    assert_eq!(guest.run_agent(&["undo"]).status.code(), Some(0));
    wait_for("its end", || {
        let last = manager.messages().iter().rfind(|line| line.starts_with("STATUS="))?;
        last.starts_with("STATUS=no key pair bound, password login as configured").then_some(())
    });
    assert_eq!(daemon.terminate().code(), Some(0));
}

/// KP-3.17, KP-3.18.
#[test]
fn ready_is_sent_while_service_hangs() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    metadata.set_fault(Some(PollFault::Hang));
    let mut manager = NotifySocket::listen(&guest);
    let mut daemon = Daemon::start_with_env(&guest, &[("NOTIFY_SOCKET", manager.path.to_str().unwrap())]);
    wait_for("the first poll", || metadata.requests().contains(&ServiceRequest::Poll(0)).then_some(()));
    manager.wait_for_message("READY=1", |line| line == "READY=1");
    let polls: Vec<ServiceRequest> =
        metadata.requests().into_iter().filter(|asked| matches!(asked, ServiceRequest::Poll(_))).collect();
    assert!(!polls.is_empty() && polls.iter().all(|poll| *poll == ServiceRequest::Poll(0)), "{polls:?}");
    assert!(daemon.is_alive());
    // The hanging poll is still in flight.
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn watchdog_is_fed_during_long_poll() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let mut manager = NotifySocket::listen(&guest);
    let socket = manager.path.to_str().unwrap().to_owned();
    let daemon = Daemon::start_with_env(&guest, &[("NOTIFY_SOCKET", &socket), ("WATCHDOG_USEC", "400000")]);
    wait_for("a long poll", || {
        // Reads like systemd: a process that writes to a socket without a reader blocks at some time.
        manager.messages();
        metadata.requests().contains(&ServiceRequest::Poll(60)).then_some(())
    });
    let fed =
        |manager: &mut NotifySocket| manager.messages().iter().filter(|line| *line == "WATCHDOG=1").count();
    let before = fed(&mut manager);
    wait_for("three more", || (fed(&mut manager) >= before + 3).then_some(()));
    assert_eq!(metadata.requests().iter().filter(|asked| **asked == ServiceRequest::Poll(60)).count(), 1);
    assert_eq!(daemon.terminate().code(), Some(0));
}
