//! Things that never answer (KP-8.14): a name service, a mount whose server is away, a step. They delay neither the
//! queue nor the lock, the console or the end of a process, and `status` reports them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::daemon::{Daemon, NotifySocket, make_channel_command};
use support::dead::{FaultyNssModule, HungFuseMount, has_fuse};
use support::scene::run_in_namespaces;
use support::{
    GuestOptions, MetadataService, TestGuest, TestKey, attach_command, detach_command, has_tools, wait_for,
};

const TOOLS: [&str; 6] = ["sshd", "ssh", "ssh-keygen", "unshare", "mount", "ip"];

const NSSWITCH_FILES_FIRST: &str = "passwd: files hesiod\ngroup: files hesiod\nshadow: files\n";

/// Runs the agent, which must end within a minute and a half.
fn run_to_end(guest: &TestGuest, words: &[&str], input: &str) -> Output {
    let input_file = guest.path("input");
    fs::write(&input_file, input).unwrap();
    let mut command = guest.agent_command(words);
    command.stdin(fs::File::open(&input_file).unwrap());
    command.stdout(fs::File::create(guest.path("out")).unwrap());
    command.stderr(fs::File::create(guest.path("err")).unwrap());
    let mut child = command.spawn().unwrap();
    let status = wait_for(&format!("the end of {words:?}"), || child.try_wait().unwrap());
    let [stdout, stderr] = ["out", "err"].map(|name| fs::read(guest.path(name)).unwrap());
    Output { status, stdout, stderr }
}

fn combined_output(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn apply_to_end(guest: &TestGuest, command: &Value) -> Value {
    let output = run_to_end(guest, &["apply", "-"], &command.to_string());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

/// The number of scouts of this guest's agent that run now.
fn count_scouts() -> usize {
    let agent = fs::canonicalize(env!("CARGO_BIN_EXE_keypair-agent")).unwrap();
    let own = fs::read_link("/proc/thread-self/ns/mnt").unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let is_one = |process: &Path| {
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        words.ends_with(b"\0scout\0")
            && fs::read_link(process.join("exe")).is_ok_and(|exe| exe == agent)
            && fs::read_link(process.join("ns/mnt")).is_ok_and(|namespace| namespace == own)
    };
    processes.filter(|process| is_one(process)).count()
}

/// Adds another account with a password, whose key file is `keys/other`.
fn add_another_account(guest: &TestGuest) {
    for (name, line) in [
        ("passwd", "other:x:4242:4242::/nonexistent:/bin/sh\n"),
        ("shadow", "other:$6$salt$hash:19000:0:99999:7:::\n"),
    ] {
        let etc = Path::new("/etc").join(name);
        fs::write(guest.path(name), fs::read_to_string(&etc).unwrap() + line).unwrap();
        let done = Command::new("mount").arg("--bind").arg(guest.path(name)).arg(etc).status();
        assert!(done.unwrap().success());
    }
}

/// Runs a test in its own namespace, with a controllable name service and a key file that holds `# mine`.
fn run_with_name_service(test: impl FnOnce(&TestGuest, &FaultyNssModule, &TestKey) + Send) {
    if !has_tools(&TOOLS) {
        return;
    }
    run_in_namespaces(|| {
        let guest = TestGuest::new();
        let Some(names) = FaultyNssModule::new(&guest.folder, NSSWITCH_FILES_FIRST) else { return };
        let key = TestKey::new(&guest.folder, "me");
        fs::write(guest.key_file(), "# mine\n").unwrap();
        test(&guest, &names, &key);
    });
}

/// With `group: files slow`, everything that needs no groups works. The refusal of the rest names the cause.
/// KP-8.14.
#[test]
fn hanging_name_service_fails_only_group_lookups() {
    run_with_name_service(|guest, names, key| {
        names.enable_fault("slow");
        let bound = apply_to_end(guest, &attach_command("k", key, "no"));
        assert_eq!(bound["status"], "succeeded", "a slow one is waited for: {bound}");
        names.disable_fault("slow");
        names.enable_fault("hang");
        let refused = apply_to_end(guest, &attach_command("k", key, "yes"));
        assert_eq!(refused["reason"], "IO_ERROR", "{refused}");
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains("the name service did not answer"), "{refused}");
        let status = run_to_end(guest, &["status"], "");
        assert_eq!(status.status.code(), Some(1), "{status:?}");
        assert!(combined_output(&status).contains("the name service did not answer"), "{status:?}");
        for words in [&["check"][..], &["plan", "-"]] {
            let output = run_to_end(guest, words, &attach_command("k", key, "yes").to_string());
            assert!(
                combined_output(&output).contains("the name service did not answer"),
                "{words:?}: {output:?}"
            );
            assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        }
        let undone = run_to_end(guest, &["undo"], "");
        assert_eq!(undone.status.code(), Some(0), "{undone:?}");
        assert_eq!(fs::read_to_string(guest.key_file()).unwrap(), "# mine\n");
        assert!(!guest.drop_in().exists());
        names.disable_fault("hang");
        assert!(!guest.sshd.accepts_key(key) && guest.sshd.offers_password());
        wait_for("the end of all scouts", || (count_scouts() == 0).then_some(()));
    });
}

#[test]
fn detach_needs_no_group_lookup() {
    run_with_name_service(|guest, names, key| {
        assert_eq!(apply_to_end(guest, &attach_command("k", key, "yes"))["status"], "succeeded");
        names.enable_fault("hang");
        let detached = apply_to_end(guest, &detach_command("k"));
        assert_eq!(detached["status"], "succeeded", "{detached}");
        assert_eq!(fs::read_to_string(guest.key_file()).unwrap(), "# mine\n");
    });
}

/// A name service that aborts its caller, and one that hangs: the agent still performs the next command.
/// KP-8.14.
#[test]
fn hostile_name_service_does_not_block_queue() {
    if !has_tools(&TOOLS) {
        return;
    }
    run_in_namespaces(|| {
        let metadata = MetadataService::start();
        let guest =
            TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
        let Some(names) = FaultyNssModule::new(&guest.folder, NSSWITCH_FILES_FIRST) else { return };
        let key = TestKey::new(&guest.folder, "me");
        let mut daemon = Daemon::start(&guest);
        for (sequence, what) in [(1, "abort"), (2, "hang")] {
            names.enable_fault(what);
            let id = format!("c-{sequence}");
            metadata.queue(make_channel_command(&id, sequence, attach_command("k", &key, "yes")));
            let result = wait_for("the result", || metadata.result(&id));
            assert_eq!(result["reason"], "IO_ERROR", "{what}: {result}");
            assert!(daemon.is_alive(), "{what}");
            names.disable_fault(what);
        }
        metadata.queue(make_channel_command("c-3", 3, attach_command("k", &key, "yes")));
        let result = wait_for("the result", || metadata.result("c-3"));
        assert_eq!(result["status"], "succeeded", "{result}");
        assert!(guest.sshd.accepts_key(&key));
        assert_eq!(daemon.terminate().code(), Some(0));
    });
}

/// If the key file of the target user hangs, the command is refused. At most one child hangs there, and nothing waits
/// for it.
/// KP-8.14.
#[test]
fn dead_mount_of_key_file_is_refused_without_blocking() {
    if !has_tools(&TOOLS) || !has_fuse() {
        return;
    }
    run_in_namespaces(|| {
        let metadata = MetadataService::start();
        let guest =
            TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
        let key = TestKey::new(&guest.folder, "me");
        fs::write(guest.key_file(), "# mine\n").unwrap();
        add_another_account(&guest);
        let dead = guest.path("dead");
        fs::create_dir(&dead).unwrap();
        std::os::unix::fs::symlink(dead.join("authorized_keys"), guest.path("keys/other")).unwrap();
        let mount = HungFuseMount::mount_for_all(&dead);
        // The key file of another account hangs: only a warning depends on it.
        let bound = apply_to_end(&guest, &attach_command("k", &key, "no"));
        assert_eq!(bound["status"], "succeeded", "{bound}");
        let message = bound["message"].as_str().unwrap();
        let silence = format!("the fuse mount at {} did not answer", dead.display());
        assert!(message.contains(&silence), "{bound}");
        assert!(guest.sshd.accepts_key(&key));

        // The target user's own key file hangs: each command is refused with the path, and only one child hangs.
        fs::rename(guest.key_file(), guest.path("kept")).unwrap();
        std::os::unix::fs::symlink(dead.join("authorized_keys"), guest.key_file()).unwrap();
        let daemon = Daemon::start(&guest);
        for sequence in 1..=3 {
            let id = format!("c-{sequence}");
            metadata.queue(make_channel_command(&id, sequence, attach_command("k", &key, "yes")));
            let result = wait_for("the result", || metadata.result(&id));
            assert_eq!(result["reason"], "IO_ERROR", "{result}");
            assert!(result["message"].as_str().unwrap().contains(&silence), "{result}");
        }
        // One scout of the console hangs, and one of the daemon. An idle scout ends soon after the result.
        wait_for("the end of all other scouts", || (count_scouts() <= 2).then_some(()));
        let status = run_to_end(&guest, &["status"], "");
        assert_eq!(status.status.code(), Some(1), "{status:?}");
        assert!(combined_output(&status).contains(&silence), "{status:?}");
        let undone = run_to_end(&guest, &["undo"], "");
        assert!(combined_output(&undone).contains(&silence), "{undone:?}");
        assert!(!guest.drop_in().exists(), "what can be reached is taken back");
        assert_eq!(daemon.terminate().code(), Some(0));

        drop(mount);
        wait_for("the end of all scouts", || (count_scouts() == 0).then_some(()));
        fs::rename(guest.path("kept"), guest.key_file()).unwrap();
        assert_eq!(apply_to_end(&guest, &attach_command("k", &key, "yes"))["status"], "succeeded");
    });
}

/// An ordinary user cannot make root wait: the kernel denies root access to the user's mount, and the agent skips it.
#[test]
fn unprivileged_fuse_mount_does_not_block_agent() {
    if !has_tools(&TOOLS) || !has_fuse() {
        return;
    }
    run_in_namespaces(|| {
        let guest = TestGuest::new();
        let key = TestKey::new(&guest.folder, "me");
        fs::write(guest.key_file(), "# mine\n").unwrap();
        add_another_account(&guest);
        let dead = guest.path("dead");
        fs::create_dir(&dead).unwrap();
        std::os::unix::fs::symlink(dead.join("authorized_keys"), guest.path("keys/other")).unwrap();
        let _mount = HungFuseMount::mount_for_user(&dead, 4242);
        let bound = apply_to_end(&guest, &attach_command("k", &key, "no"));
        assert_eq!(bound["status"], "succeeded", "{bound}");
        assert!(!bound["message"].as_str().unwrap().contains("did not answer"), "{bound}");
        assert_eq!(count_scouts(), 0);
    });
}

/// A command that is in flight for more than a minute, also if `run` itself hangs.
/// KP-8.15.
#[test]
fn status_names_command_in_flight_too_long() {
    if !has_tools(&TOOLS) {
        return;
    }
    run_in_namespaces(|| {
        let metadata = MetadataService::start();
        let guest =
            TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
        let Some(names) = FaultyNssModule::new(&guest.folder, NSSWITCH_FILES_FIRST) else { return };
        let key = TestKey::new(&guest.folder, "me");
        let daemon = Daemon::start(&guest);
        names.enable_fault("hang");
        metadata.queue(make_channel_command("c-1", 1, attach_command("k", &key, "yes")));
        let file = guest.path("run/channel.json");
        let mut seen: Value = wait_for("a command in flight", || {
            let seen: Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
            (seen["inFlight"]["commandId"] == "c-1").then_some(seen)
        });
        daemon.signal(Signal::SIGSTOP);
        names.disable_fault("hang");
        let problem = "command c-1 is in flight since";
        let young = run_to_end(&guest, &["status"], "");
        assert!(!combined_output(&young).contains(problem), "{young:?}");
        seen["inFlight"]["sinceBoot"] = json!(seen["inFlight"]["sinceBoot"].as_u64().unwrap() - 61);
        seen["inFlight"]["step"] = json!("some step");
        fs::write(&file, seen.to_string()).unwrap();
        let status = run_to_end(&guest, &["status"], "");
        assert_eq!(status.status.code(), Some(1), "{status:?}");
        assert!(
            combined_output(&status).contains(problem)
                && combined_output(&status).contains("step: some step"),
            "{status:?}"
        );
        let status = run_to_end(&guest, &["status", "--json"], "");
        let report: Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(report["channel"]["inFlight"]["commandId"], "c-1", "{report}");
        daemon.signal(Signal::SIGCONT);
        wait_for("the result", || metadata.result("c-1"));
        wait_for("nothing in flight", || {
            let seen: Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
            seen["inFlight"].is_null().then_some(())
        });
    });
}

/// Watchdog messages depend on the worker's progress, not on the clock. Here the agent's own directory hangs, which
/// the agent needs.
/// KP-8.15.
#[test]
fn hanging_step_stops_watchdog_pings() {
    if !has_tools(&TOOLS) || !has_fuse() {
        return;
    }
    run_in_namespaces(|| {
        let metadata = MetadataService::start();
        let guest =
            TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
        let key = TestKey::new(&guest.folder, "me");
        let mut manager = NotifySocket::listen(&guest);
        let socket = manager.path.to_str().unwrap().to_owned();
        let daemon =
            Daemon::start_with_env(&guest, &[("NOTIFY_SOCKET", &socket), ("WATCHDOG_USEC", "1000000")]);
        let fed = |manager: &mut NotifySocket| {
            manager.messages().iter().filter(|line| *line == "WATCHDOG=1").count()
        };
        wait_for("an idle one to be fed", || (fed(&mut manager) > 2).then_some(()));
        wait_for("its state", || guest.path("state/state.json").exists().then_some(()));
        let mount = HungFuseMount::mount_for_all(&guest.path("state"));
        metadata.queue(make_channel_command("c-1", 1, attach_command("k", &key, "yes")));
        wait_for("the end of its meals", || {
            manager.messages();
            daemon.log().contains("the watchdog is not fed any more").then_some(())
        });
        let before = fed(&mut manager);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(fed(&mut manager), before);
        // systemd would do this now. The next start is the same as after a crash.
        daemon.signal(Signal::SIGKILL);
        drop(mount);
        daemon.kill();
        let daemon = Daemon::start(&guest);
        let result = wait_for("the result", || metadata.result("c-1"));
        assert_eq!(result["status"], "succeeded", "{result}");
        assert_eq!(daemon.terminate().code(), Some(0));
    });
}
