//! What never answers (KP-8.14): a name service, a mount whose server is away, a step. No look at it holds up the
//! queue, the lock, the console or the end of a process, and `status` says so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::daemon::{Daemon, Manager, queued};
use support::dead::{Mount, NameService, has_fuse};
use support::scene::apart;
use support::{Form, Guest, Key, Metadata, attach, available, detach, wait_for};

const TOOLS: [&str; 6] = ["sshd", "ssh", "ssh-keygen", "unshare", "mount", "ip"];

const FILES_FIRST: &str = "passwd: files hesiod\ngroup: files hesiod\nshadow: files\n";

/// The agent, which must end: a process that hangs is waited for for a minute and a half.
fn ends(guest: &Guest, words: &[&str], input: &str) -> Output {
    let input_file = guest.path("input");
    fs::write(&input_file, input).unwrap();
    let mut command = guest.command(words);
    command.stdin(fs::File::open(&input_file).unwrap());
    command.stdout(fs::File::create(guest.path("out")).unwrap());
    command.stderr(fs::File::create(guest.path("err")).unwrap());
    let mut child = command.spawn().unwrap();
    let status = wait_for(&format!("the end of {words:?}"), || child.try_wait().unwrap());
    let [stdout, stderr] = ["out", "err"].map(|name| fs::read(guest.path(name)).unwrap());
    Output { status, stdout, stderr }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn applied(guest: &Guest, command: &Value) -> Value {
    let output = ends(guest, &["apply", "-"], &command.to_string());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

/// The scouts of this guest's agent that are there.
fn scouts() -> usize {
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

/// Another account with a password, whose key file is `keys/other`.
fn add_another_account(guest: &Guest) {
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

/// In a scene of its own, with a name service that obeys and a key file that holds `# mine`.
fn with_name_service(test: impl FnOnce(&Guest, &NameService, &Key) + Send) {
    if !available(&TOOLS) {
        return;
    }
    apart(|| {
        let guest = Guest::new();
        let Some(names) = NameService::new(&guest.folder, FILES_FIRST) else { return };
        let key = Key::new(&guest.folder, "me");
        fs::write(guest.key_file(), "# mine\n").unwrap();
        test(&guest, &names, &key);
    });
}

/// `group: files slow`: everything that needs no groups works, and the rest is refused by name.
/// KP-8.14.
#[test]
fn a_name_service_that_hangs() {
    with_name_service(|guest, names, key| {
        names.does("slow");
        let bound = applied(guest, &attach("k", key, "no"));
        assert_eq!(bound["status"], "succeeded", "a slow one is waited for: {bound}");
        names.does_not("slow");
        names.does("hang");
        let refused = applied(guest, &attach("k", key, "yes"));
        assert_eq!(refused["reason"], "IO_ERROR", "{refused}");
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains("the name service did not answer"), "{refused}");
        let status = ends(guest, &["status"], "");
        assert_eq!(status.status.code(), Some(1), "{status:?}");
        assert!(said(&status).contains("the name service did not answer"), "{status:?}");
        for words in [&["check"][..], &["plan", "-"]] {
            let output = ends(guest, words, &attach("k", key, "yes").to_string());
            assert!(said(&output).contains("the name service did not answer"), "{words:?}: {output:?}");
            assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        }
        let undone = ends(guest, &["undo"], "");
        assert_eq!(undone.status.code(), Some(0), "{undone:?}");
        assert_eq!(fs::read_to_string(guest.key_file()).unwrap(), "# mine\n");
        assert!(!guest.drop_in().exists());
        names.does_not("hang");
        assert!(!guest.sshd.lets_in(key) && guest.sshd.offers_password());
        wait_for("the end of all scouts", || (scouts() == 0).then_some(()));
    });
}

#[test]
fn a_detach_needs_no_groups() {
    with_name_service(|guest, names, key| {
        assert_eq!(applied(guest, &attach("k", key, "yes"))["status"], "succeeded");
        names.does("hang");
        let detached = applied(guest, &detach("k"));
        assert_eq!(detached["status"], "succeeded", "{detached}");
        assert_eq!(fs::read_to_string(guest.key_file()).unwrap(), "# mine\n");
    });
}

/// A source that ends the process that asks it, and one that hangs: the next command is carried out.
/// KP-8.14.
#[test]
fn a_hostile_name_service_stops_no_queue() {
    if !available(&TOOLS) {
        return;
    }
    apart(|| {
        let metadata = Metadata::start();
        let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
        let Some(names) = NameService::new(&guest.folder, FILES_FIRST) else { return };
        let key = Key::new(&guest.folder, "me");
        let mut daemon = Daemon::start(&guest);
        for (sequence, what) in [(1, "abort"), (2, "hang")] {
            names.does(what);
            let id = format!("c-{sequence}");
            metadata.queue(queued(&id, sequence, attach("k", &key, "yes")));
            let result = wait_for("the result", || metadata.result(&id));
            assert_eq!(result["reason"], "IO_ERROR", "{what}: {result}");
            assert!(daemon.is_alive(), "{what}");
            names.does_not(what);
        }
        metadata.queue(queued("c-3", 3, attach("k", &key, "yes")));
        let result = wait_for("the result", || metadata.result("c-3"));
        assert_eq!(result["status"], "succeeded", "{result}");
        assert!(guest.sshd.lets_in(&key));
        assert_eq!(daemon.terminate().code(), Some(0));
    });
}

/// Whose key file it is decides whether the command is refused; one child at most hangs there, and nothing waits for it.
/// KP-8.14.
#[test]
fn a_mount_whose_server_is_away() {
    if !available(&TOOLS) || !has_fuse() {
        return;
    }
    apart(|| {
        let metadata = Metadata::start();
        let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
        let key = Key::new(&guest.folder, "me");
        fs::write(guest.key_file(), "# mine\n").unwrap();
        add_another_account(&guest);
        let dead = guest.path("dead");
        fs::create_dir(&dead).unwrap();
        std::os::unix::fs::symlink(dead.join("authorized_keys"), guest.path("keys/other")).unwrap();
        let mount = Mount::of_root(&dead);
        // Another account's keys: only a warning depends on them.
        let bound = applied(&guest, &attach("k", &key, "no"));
        assert_eq!(bound["status"], "succeeded", "{bound}");
        let message = bound["message"].as_str().unwrap();
        let silence = format!("the fuse mount at {} did not answer", dead.display());
        assert!(message.contains(&silence), "{bound}");
        assert!(guest.sshd.lets_in(&key));

        // His own: refused by name, again and again, and one child hangs.
        fs::rename(guest.key_file(), guest.path("kept")).unwrap();
        std::os::unix::fs::symlink(dead.join("authorized_keys"), guest.key_file()).unwrap();
        let daemon = Daemon::start(&guest);
        for sequence in 1..=3 {
            let id = format!("c-{sequence}");
            metadata.queue(queued(&id, sequence, attach("k", &key, "yes")));
            let result = wait_for("the result", || metadata.result(&id));
            assert_eq!(result["reason"], "IO_ERROR", "{result}");
            assert!(result["message"].as_str().unwrap().contains(&silence), "{result}");
        }
        // One hangs of the console's, and one of the daemon's; one that waits for questions ends soon after the result.
        wait_for("the end of all other scouts", || (scouts() <= 2).then_some(()));
        let status = ends(&guest, &["status"], "");
        assert_eq!(status.status.code(), Some(1), "{status:?}");
        assert!(said(&status).contains(&silence), "{status:?}");
        let undone = ends(&guest, &["undo"], "");
        assert!(said(&undone).contains(&silence), "{undone:?}");
        assert!(!guest.drop_in().exists(), "what can be reached is taken back");
        assert_eq!(daemon.terminate().code(), Some(0));

        drop(mount);
        wait_for("the end of all scouts", || (scouts() == 0).then_some(()));
        fs::rename(guest.path("kept"), guest.key_file()).unwrap();
        assert_eq!(applied(&guest, &attach("k", &key, "yes"))["status"], "succeeded");
    });
}

/// He cannot make root wait: the kernel keeps root out of his mount, and it is passed over.
#[test]
fn an_ordinary_users_mount_holds_nobody_up() {
    if !available(&TOOLS) || !has_fuse() {
        return;
    }
    apart(|| {
        let guest = Guest::new();
        let key = Key::new(&guest.folder, "me");
        fs::write(guest.key_file(), "# mine\n").unwrap();
        add_another_account(&guest);
        let dead = guest.path("dead");
        fs::create_dir(&dead).unwrap();
        std::os::unix::fs::symlink(dead.join("authorized_keys"), guest.path("keys/other")).unwrap();
        let _mount = Mount::of_user(&dead, 4242);
        let bound = applied(&guest, &attach("k", &key, "no"));
        assert_eq!(bound["status"], "succeeded", "{bound}");
        assert!(!bound["message"].as_str().unwrap().contains("did not answer"), "{bound}");
        assert_eq!(scouts(), 0);
    });
}

/// A command that is in flight for more than a minute; also where `run` itself hangs.
/// KP-8.15.
#[test]
fn status_names_what_is_in_flight_for_too_long() {
    if !available(&TOOLS) {
        return;
    }
    apart(|| {
        let metadata = Metadata::start();
        let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
        let Some(names) = NameService::new(&guest.folder, FILES_FIRST) else { return };
        let key = Key::new(&guest.folder, "me");
        let daemon = Daemon::start(&guest);
        names.does("hang");
        metadata.queue(queued("c-1", 1, attach("k", &key, "yes")));
        let file = guest.path("run/channel.json");
        let mut seen: Value = wait_for("a command in flight", || {
            let seen: Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
            (seen["inFlight"]["commandId"] == "c-1").then_some(seen)
        });
        daemon.signal(Signal::SIGSTOP);
        names.does_not("hang");
        let problem = "command c-1 is in flight since";
        let young = ends(&guest, &["status"], "");
        assert!(!said(&young).contains(problem), "{young:?}");
        seen["inFlight"]["sinceBoot"] = json!(seen["inFlight"]["sinceBoot"].as_u64().unwrap() - 61);
        seen["inFlight"]["step"] = json!("some step");
        fs::write(&file, seen.to_string()).unwrap();
        let status = ends(&guest, &["status"], "");
        assert_eq!(status.status.code(), Some(1), "{status:?}");
        assert!(said(&status).contains(problem) && said(&status).contains("step: some step"), "{status:?}");
        let status = ends(&guest, &["status", "--json"], "");
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

/// The watchdog is fed by the one who works, not by the clock. What hangs here is the agent's own directory, on which it
/// has to rely.
/// KP-8.15.
#[test]
fn a_step_that_never_ends_feeds_no_watchdog() {
    if !available(&TOOLS) || !has_fuse() {
        return;
    }
    apart(|| {
        let metadata = Metadata::start();
        let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
        let key = Key::new(&guest.folder, "me");
        let mut manager = Manager::listen(&guest);
        let socket = manager.path.to_str().unwrap().to_owned();
        let daemon = Daemon::start_with(&guest, &[("NOTIFY_SOCKET", &socket), ("WATCHDOG_USEC", "1000000")]);
        let fed = |manager: &mut Manager| manager.said().iter().filter(|line| *line == "WATCHDOG=1").count();
        wait_for("an idle one to be fed", || (fed(&mut manager) > 2).then_some(()));
        wait_for("its state", || guest.path("state/state.json").exists().then_some(()));
        let mount = Mount::of_root(&guest.path("state"));
        metadata.queue(queued("c-1", 1, attach("k", &key, "yes")));
        wait_for("the end of its meals", || {
            manager.said();
            daemon.log().contains("the watchdog is not fed any more").then_some(())
        });
        let before = fed(&mut manager);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(fed(&mut manager), before);
        // As systemd does then; the next start is as after a crash.
        daemon.signal(Signal::SIGKILL);
        drop(mount);
        daemon.kill();
        let daemon = Daemon::start(&guest);
        let result = wait_for("the result", || metadata.result("c-1"));
        assert_eq!(result["status"], "succeeded", "{result}");
        assert_eq!(daemon.terminate().code(), Some(0));
    });
}
