//! Limits on text and data from others in a result, in the state and in the locks (KP-3.33 and KP-8.17), with the
//! built binary.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::daemon::{Daemon, make_channel_command};
use support::{
    GuestOptions, MetadataService, TestGuest, TestKey, attach_command, has_tools, set_password_auth_command,
    wait_for,
};

const TOOLS: [&str; 6] = ["sshd", "ssh", "ssh-keygen", "setpriv", "flock", "bash"];

/// The upper limit for a result, stored or sent, in bytes.
const MAX_RESULT_BYTES: usize = 48 * 1024;

/// A process of an ordinary user. It ends with the test.
struct UnprivilegedProcess(Child);

impl UnprivilegedProcess {
    /// Runs a bash script with this uid and gid. The script prints `ready` when it is ready.
    fn spawn(ids: [&str; 2], script: &str) -> Self {
        let child = Command::new("setpriv")
            .args([&format!("--reuid={}", ids[0]), &format!("--regid={}", ids[1]), "--clear-groups"])
            .args(["bash", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn spawn_as_nobody(script: &str) -> Self {
        Self::spawn(["65534", "65534"], script)
    }

    /// Waits for the process's first line, and returns it.
    fn wait_until_ready(mut self) -> (Self, String) {
        use std::io::{BufRead, BufReader};
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (self, line.trim().to_owned())
    }
}

impl Drop for UnprivilegedProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn generate_match_blocks(count: usize, user_bytes: usize) -> String {
    let block = |number: usize| {
        let users = format!("bob{number},").repeat(user_bytes / format!("bob{number},").len());
        format!("Match User {}x\n  PasswordAuthentication yes\n", users)
    };
    (0..count).map(block).collect()
}

/// Asserts that the size of a result is limited, and that each text from others in it is limited.
#[track_caller]
fn assert_result_is_bounded(result: &Value) {
    let text = result.to_string();
    assert!(text.len() < MAX_RESULT_BYTES, "{} bytes", text.len());
    let warnings = result["warnings"].as_array().unwrap();
    assert!(warnings.len() <= 64, "{}", warnings.len());
    for warning in warnings {
        let message = warning["message"].as_str().unwrap();
        // The longest word. The tests use long words as input.
        let longest = message.split(['`', '\'', '(', ')', ' ']).map(|word| word.chars().count()).max();
        assert!(longest <= Some(200), "{message}");
    }
}

/// KP-3.33.
#[test]
fn result_with_long_match_blocks_is_bounded() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::with_options(GuestOptions {
        main: &generate_match_blocks(60, 1400),
        ..GuestOptions::default()
    });
    let key = TestKey::new(&guest.folder, "k");
    let result = guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_result_is_bounded(&result);
    assert!(result["warnings"].as_array().unwrap().len() >= 60, "{result}");
    assert!(fs::metadata(guest.path("state/state.json")).unwrap().len() < 100 * 1024);
}

/// KP-3.33.
#[test]
fn result_with_many_match_blocks_drops_warnings() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::with_options(GuestOptions {
        main: &generate_match_blocks(660, 1400),
        ..GuestOptions::default()
    });
    let result = guest.apply(&set_password_auth_command("no"));
    // No key gives access here. The test only checks that there is a result.
    assert_eq!(result["reason"], "LOCKOUT_GUARD", "{result}");
    let key = TestKey::new(&guest.folder, "k");
    let result = guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_result_is_bounded(&result);
    let last = result["warnings"].as_array().unwrap().last().unwrap();
    assert!(last["message"].as_str().unwrap().contains("more warnings were left out"), "{last}");
    assert!(fs::metadata(guest.path("state/state.json")).unwrap().len() < 100 * 1024);
}

/// The state has almost its maximum size, and the agent can still read it after the next command.
/// KP-7.1.
#[test]
fn state_file_near_size_limit_stays_loadable() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    assert_eq!(guest.apply(&attach_command("my-test", &key, "yes"))["status"], "succeeded");
    let path = guest.path("state/state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let results: Vec<Value> = (0..127)
        .map(|n| json!({ "commandId": format!("c-{n}"), "result": "\"".repeat(64 * 1024 - 300) }))
        .collect();
    state["results"] = json!(results);
    let full = serde_json::to_vec(&state).unwrap();
    assert!(full.len() > 15 << 20 && full.len() < 16 << 20, "{}", full.len());
    fs::write(&path, full).unwrap();
    // The state keeps the old bytes of this drop-in for the duration of the command.
    let drop_in = guest.drop_in();
    let _ = fs::remove_file(&drop_in);
    for setting in ["no", "yes", "no"] {
        let result = guest.apply(&set_password_auth_command(setting));
        assert_eq!(result["status"], "succeeded", "{result}");
    }
    let state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let ids: Vec<&str> =
        state["results"].as_array().unwrap().iter().map(|one| one["commandId"].as_str().unwrap()).collect();
    assert!(!ids.contains(&"c-0") && ids.contains(&"c-126"), "{ids:?}");
    assert!(fs::metadata(&path).unwrap().len() <= 8 << 20);
}

/// Lines that look like the start of the agent's block. The intent keeps all of them, so that the command can be
/// undone.
#[test]
fn key_file_full_of_markers_fails_without_change() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    fs::write(guest.key_file(), "# BEGIN keypair-agent\n".repeat(500_000)).unwrap();
    let before = guest.snapshot();
    let result = guest.apply(&attach_command("my-test", &key, "yes"));
    assert_eq!(result["reason"], "IO_ERROR", "{result}");
    assert!(result["message"].as_str().unwrap().contains("keys/root"), "{result}");
    assert_eq!(guest.snapshot(), before);
    fs::write(guest.key_file(), "").unwrap();
    let result = guest.apply(&attach_command("my-test", &key, "yes"));
    assert_eq!(result["status"], "succeeded", "{result}");
}

/// KP-3.10.
#[test]
fn rejected_result_is_replaced_by_short_result() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let main = &generate_match_blocks(4, 300);
    let guest =
        TestGuest::with_options(GuestOptions { metadata: Some(&metadata), main, ..GuestOptions::default() });
    let key = TestKey::new(&guest.folder, "k");
    metadata.limit_results(1500);
    let _daemon = Daemon::start(&guest);
    metadata.queue(make_channel_command("c-1", 1, attach_command("my-test", &key, "no")));
    metadata.queue(make_channel_command("c-2", 2, set_password_auth_command("yes")));
    let short = metadata.wait_for_result("c-1");
    assert_eq!((&short["status"], &short["code"]), (&json!("succeeded"), &json!("OK")), "{short}");
    assert_eq!(short["warnings"], json!([]));
    assert!(short["message"].as_str().unwrap().contains("413"), "{short}");
    metadata.wait_for_result("c-2");
    let attempts = metadata.result_attempts();
    assert_eq!(attempts.iter().filter(|(id, _)| id == "c-1").count(), 2, "{attempts:?}");
    // From now on the short result is the command's result.
    metadata.forget_result("c-1");
    metadata.queue(make_channel_command("c-1", 1, attach_command("my-test", &key, "no")));
    assert_eq!(metadata.wait_for_result("c-1"), short);
    // If the service accepts no result at all, the agent still continues with the next command.
    metadata.set_result_status(Some(400));
    metadata.queue(make_channel_command("c-3", 3, set_password_auth_command("no")));
    wait_for("two tries", || {
        (metadata.result_attempts().iter().filter(|(id, _)| id == "c-3").count() >= 2).then_some(())
    });
    metadata.withdraw_command("c-3");
    metadata.set_result_status(None);
    metadata.queue(make_channel_command("c-4", 4, set_password_auth_command("yes")));
    assert_eq!(metadata.wait_for_result("c-4")["status"], "succeeded");
}

/// Runs `apply` without the right to inspect other processes, as under the packaged unit.
fn apply_without_ptrace(guest: &TestGuest, command: &Value) -> Value {
    let mut child = Command::new("setpriv")
        .args(["--bounding-set=-sys_ptrace", env!("CARGO_BIN_EXE_keypair-agent"), "apply", "-"])
        .arg("--config")
        .arg(&guest.config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(command.to_string().as_bytes()).unwrap();
    serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap()
}

/// KP-6.1.
#[test]
fn process_titled_sshd_of_other_user_is_ignored() {
    if !has_tools(&[&TOOLS[..], &["su"]].concat()) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    let text = "IMPOSTOR".repeat(10_000);
    let title = format!("sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups {text}");
    // Three processes with an sshd title: su(1) and sudo(8) that wait for a password, and one with its own listening
    // socket.
    let impostors = [
        UnprivilegedProcess::spawn_as_nobody(&format!("exec -a '{title}' su -c x root")),
        UnprivilegedProcess::spawn(["0", "65534"], &format!("exec -a '{title}' sleep 600")),
        UnprivilegedProcess::spawn_as_nobody(&format!("exec -a '{title}' sleep 600")),
    ];
    for impostor in &impostors {
        let cmdline = format!("/proc/{}/cmdline", impostor.0.id());
        wait_for("the impostor's title", || {
            fs::read_to_string(&cmdline).is_ok_and(|line| line.starts_with("sshd: ")).then_some(())
        });
    }
    for result in [
        apply_without_ptrace(&guest, &attach_command("my-test", &key, "no")),
        guest.apply(&attach_command("my-test", &key, "yes")),
    ] {
        assert_eq!(result["status"], "succeeded", "{result}");
        assert!(!result.to_string().contains("IMPOSTOR"), "{result}");
        assert!(result.to_string().len() < MAX_RESULT_BYTES);
    }
    let state = fs::metadata(guest.path("state/state.json")).unwrap();
    assert!(state.len() < 100 * 1024, "{}", state.len());
}

fn read_mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// Creates a directory with mode 0755, as an older version or an administrator may have created it.
fn create_world_readable_dir(directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
}

/// KP-8.17.
#[test]
fn unprivileged_lock_holder_blocks_no_command() {
    if !has_tools(&TOOLS) {
        return;
    }
    for holder in ["flock -x 9; echo ready; read line", "flock -s 9; sleep 600 & echo $!"] {
        let metadata = MetadataService::start();
        let guest =
            TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
        for directory in ["run", "state"] {
            create_world_readable_dir(&guest.path(directory));
        }
        let lock = guest.path("run/run.lock");
        fs::write(&lock, "1\n").unwrap();
        fs::set_permissions(&lock, Permissions::from_mode(0o644)).unwrap();
        // The process that took the second lock has ended, but a child of it still has the descriptor.
        let held = [guest.path("state"), lock.clone()].map(|path| {
            UnprivilegedProcess::spawn_as_nobody(&format!("exec 9< {}; {holder}", path.display()))
                .wait_until_ready()
        });
        let daemon = Daemon::start(&guest);
        metadata.queue(make_channel_command("c-1", 1, set_password_auth_command("yes")));
        let result = metadata.wait_for_result("c-1");
        assert_eq!(result["status"], "succeeded", "{result} {}", daemon.log());
        assert_eq!((read_mode(&guest.path("run")), read_mode(&guest.path("state"))), (0o700, 0o700));
        assert_eq!(read_mode(&lock), 0o600);
        // Two daemons still exclude each other.
        let second = guest.run_agent(&["run"]);
        assert_eq!(second.status.code(), Some(1));
        let said = String::from_utf8_lossy(&second.stderr);
        assert!(said.contains(&format!("process {}", daemon.pid())), "{said}");
        let concurrent: Vec<Child> =
            (0..4).map(|_| guest.agent_command(&["password-auth", "yes"]).spawn().unwrap()).collect();
        for child in concurrent {
            assert!(child.wait_with_output().unwrap().status.success());
        }
        for (_, pid) in &held {
            if let Ok(pid) = pid.parse() {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
    }
}

/// KP-8.17.
#[test]
fn run_and_state_dirs_of_other_user_are_taken_over() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest =
        TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
    for directory in ["run", "state"].map(|name| guest.path(name)) {
        create_world_readable_dir(&directory);
        std::os::unix::fs::chown(&directory, Some(65534), Some(65534)).unwrap();
    }
    let _daemon = Daemon::start(&guest);
    metadata.queue(make_channel_command("c-1", 1, set_password_auth_command("yes")));
    assert_eq!(metadata.wait_for_result("c-1")["status"], "succeeded");
    for directory in ["run", "state"].map(|name| guest.path(name)) {
        let now = fs::metadata(&directory).unwrap();
        assert_eq!((now.uid(), now.gid(), now.mode() & 0o7777), (0, 0, 0o700), "{}", directory.display());
    }
}

/// A descriptor to which no write succeeds.
#[derive(Debug, Clone, Copy)]
enum UnwritableFd {
    Full,
    NoReader,
    Closed,
}

fn run_with_unwritable_fd(
    config: &Path,
    words: &[&str],
    input: &str,
    number: u8,
    sink: UnwritableFd,
) -> std::process::Output {
    let binary = env!("CARGO_BIN_EXE_keypair-agent");
    let mut command = match sink {
        UnwritableFd::Closed => {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("exec \"$@\" {number}>&-"), "sh", binary]);
            shell
        }
        UnwritableFd::Full | UnwritableFd::NoReader => Command::new(binary),
    };
    command.args(words).arg("--config").arg(config);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let descriptor: Option<OwnedFd> = match sink {
        UnwritableFd::Full => Some(File::options().write(true).open("/dev/full").unwrap().into()),
        UnwritableFd::NoReader => Some(UnixStream::pair().unwrap().0.into()),
        UnwritableFd::Closed => None,
    };
    if let Some(descriptor) = descriptor {
        match number {
            1 => command.stdout(descriptor),
            _ => command.stderr(descriptor),
        };
    }
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// KP-8.9.
#[test]
fn command_completes_with_unwritable_stdout_or_stderr() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let sinks = [1, 2].into_iter().flat_map(|number| {
        [UnwritableFd::Full, UnwritableFd::NoReader, UnwritableFd::Closed]
            .into_iter()
            .map(move |sink| (number, sink))
    });
    // Without sshd's main file, every command must report an error at once.
    let main = guest.path("sshd_config");
    fs::rename(&main, guest.path("away")).unwrap();
    let attach = json!({ "action": "setPasswordAuth", "passWordAuth": "no" }).to_string();
    for (number, sink) in sinks.clone() {
        for (words, expected) in [
            (&["--help"][..], 0),
            (&["--version"], 0),
            (&["nonsense"], 2),
            (&["status"], 1),
            (&["status", "--json"], 1),
            (&["check"], 1),
            (&["check", "--json"], 1),
            (&["check", "--image"], 0),
            (&["check", "--image", "--json"], 0),
            (&["plan", "-"], 1),
            (&["plan", "/nonexistent"], 1),
            (&["apply", "-"], 1),
            (&["apply", "/nonexistent"], 1),
            (&["password-auth", "no"], 1),
            (&["detach"], 0),
            (&["undo"], 0),
        ] {
            let output = run_with_unwritable_fd(&guest.config, words, &attach, number, sink);
            assert_eq!(output.status.code(), Some(expected), "{words:?} {number} {sink:?}: {output:?}");
        }
        let helper = run_with_unwritable_fd(&guest.config, &["trial-helper"], "{}", number, sink);
        assert!(matches!(helper.status.code(), Some(0 | 1)), "{number} {sink:?}: {helper:?}");
        let bad = guest.path("bad.toml");
        fs::write(&bad, "proof = 1\n").unwrap();
        for words in [&["run"][..], &["undo"], &["status"]] {
            assert_eq!(
                run_with_unwritable_fd(&bad, words, "", number, sink).status.code(),
                Some(2),
                "{words:?} {sink:?}"
            );
        }
    }
    fs::rename(guest.path("away"), &main).unwrap();
    // The diff is printed although stderr is not writable.
    let key = TestKey::new(&guest.folder, "k");
    for sink in [UnwritableFd::Full, UnwritableFd::NoReader, UnwritableFd::Closed] {
        assert_eq!(guest.apply(&attach_command("my-test", &key, "no"))["status"], "succeeded");
        let output = run_with_unwritable_fd(&guest.config, &["undo"], "", 2, sink);
        assert_eq!(output.status.code(), Some(0), "{sink:?}: {output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("-PasswordAuthentication no"), "{sink:?}: {said}");
    }
}

#[test]
fn unreadable_file_is_named_in_message() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    fs::create_dir(guest.path("state")).unwrap();
    fs::write(guest.path("state/state.json"), "{").unwrap();
    let state = guest.path("state/state.json").display().to_string();
    let result = guest.apply(&set_password_auth_command("yes"));
    assert!(result["message"].as_str().unwrap().contains(&state), "{result}");
    fs::remove_file(guest.path("state/state.json")).unwrap();
    guest.write_component_info("");
    let component = guest.path("componentInfo.cfg").display().to_string();
    let result = guest.apply(&set_password_auth_command("yes"));
    assert!(result["message"].as_str().unwrap().contains(&component), "{result}");
    fs::write(&guest.config, "\nproof = \"yes\"\n").unwrap();
    let output = guest.run_agent(&["status"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("{}:2: proof: ", guest.config.display())), "{said}");
    assert!(said.contains("write true or false"), "{said}");
}
