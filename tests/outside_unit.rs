//! KP-6.22 with the built binary: the agent queries and reloads the sshd that listens, whatever its unit or its pid
//! file says. A script replaces systemd, in the test's own mount and network namespace.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use support::scene::run_in_namespaces;
use support::sshd::free_port;
use support::{
    GuestOptions, TestGuest, TestKey, attach_command, has_tools, set_password_auth_command, wait_for,
};

/// The tools that these tests need.
const TOOLS: [&str; 6] = ["sshd", "ssh", "ssh-keygen", "mount", "ip", "unshare"];

/// The manager's answer about a unit that was masked and unmasked while it ran.
const INACTIVE_UNIT: &str =
    "LoadState=loaded\nActiveState=inactive\nMainPID=0\nCanReload=yes\nUnitFileState=enabled";

/// A script in place of systemd, with a record of its calls.
struct FakeSystemd {
    guest: TestGuest,
    key: TestKey,
}

impl FakeSystemd {
    /// A guest whose sshd runs, but without the configured pid file.
    fn new(form: GuestOptions<'_>) -> Self {
        for directory in ["/run", "/usr/local/sbin"] {
            assert!(
                Command::new("mount")
                    .args(["-t", "tmpfs", "-o", "mode=755", "t", directory])
                    .status()
                    .unwrap()
                    .success()
            );
        }
        for directory in ["/run/systemd/system", "/run/dbus", "/run/sshd"] {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write("/run/dbus/system_bus_socket", "").unwrap();
        install_script("systemctl", SYSTEMCTL_SCRIPT);
        install_script("busctl", BUSCTL_SCRIPT);
        install_script("systemd-run", "echo systemd-run \"$@\" >>/run/calls; exit 1");
        let guest = TestGuest::with_options(form);
        let text = fs::read_to_string(&guest.config).unwrap();
        fs::write(
            &guest.config,
            text.lines()
                .filter(|line| !line.starts_with("pid_file"))
                .fold(String::new(), |text, line| text + line + "\n"),
        )
        .unwrap();
        let main = guest.path("sshd_config").display().to_string();
        let words = ["/usr/sbin/sshd", "-D", "-e", "-f", &main].map(|word| format!("\"{word}\"")).join(" ");
        let line = format!("a(sasbttttuii) 1 \"/usr/sbin/sshd\" 5 {words} false 0 0 0 0 0 0 0");
        fs::write("/run/words", format!("{line}\nas 0\na(sb) 0\nas 0\n")).unwrap();
        let key = TestKey::new(&guest.folder, "k");
        let manager = Self { guest, key };
        manager.set_unit_state(INACTIVE_UNIT);
        manager
    }

    /// Sets the state of ssh.service.
    fn set_unit_state(&self, state: &str) {
        fs::write("/run/unit", format!("Id=ssh.service\n{state}\n")).unwrap();
    }

    /// Makes the unit active with the guest's sshd as main process, except for these properties.
    fn set_unit_active(&self, but: &[(&str, &str)]) {
        let pid = self.guest.sshd.pid().to_string();
        let mut lines = vec![
            ("LoadState", "loaded"),
            ("ActiveState", "active"),
            ("MainPID", &pid),
            ("CanReload", "yes"),
            ("UnitFileState", "enabled"),
        ];
        for (name, value) in but {
            lines.retain(|(other, _)| other != name);
            lines.push((name, value));
        }
        self.set_unit_state(
            &lines.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("\n"),
        );
    }

    /// The calls other than queries since the last call of this function.
    fn take_jobs(&self) -> Vec<String> {
        let calls = fs::read_to_string("/run/calls").unwrap_or_default();
        let _ = fs::remove_file("/run/calls");
        let is_job = |line: &&str| !line.starts_with("show") && !line.contains("reset-failed");
        calls.lines().filter(is_job).map(str::to_owned).collect()
    }

    fn apply(&self, password_auth: &str) -> Value {
        self.guest.apply(&attach_command("k", &self.key, password_auth))
    }

    /// Asserts that two commands in a row succeed and have their effect.
    fn assert_apply_succeeds(&self, expected_jobs: &[&str]) {
        for password_auth in ["no", "yes"] {
            let result = self.apply(password_auth);
            assert_eq!(result["status"], "succeeded", "{result}");
            assert_eq!(warning_reasons(&result), Vec::<&str>::new(), "{result}");
            assert!(result["proof"]["notTaken"].is_null() && !result["proof"].is_null(), "{result}");
            assert_eq!(self.guest.sshd.offers_password(), password_auth == "yes", "{result}");
            assert!(self.guest.sshd.accepts_key(&self.key));
            assert_eq!(self.take_jobs(), expected_jobs, "{result}");
        }
    }
}

fn install_script(name: &str, text: &str) {
    let (plain, program) = (format!("/run/{name}.text"), format!("/usr/local/sbin/{name}"));
    fs::write(&plain, format!("#!/bin/sh\n{text}\n")).unwrap();
    assert!(Command::new("install").args(["-m755", &plain, &program]).status().unwrap().success());
}

/// Prints /run/unit and /run/sockets, reloads sshd by a signal, and fails as many times as /run/away says.
const SYSTEMCTL_SCRIPT: &str = r#"
echo "$*" >>/run/calls
left=$(cat /run/away 2>/dev/null || echo 0)
if [ "$left" -gt 0 ]; then
  echo $((left - 1)) >/run/away
  echo 'Failed to connect to bus: Connection refused' >&2
  exit 1
fi
case "$*" in
show*.socket*) cat /run/sockets 2>/dev/null ;;
show*ssh.service*) cat /run/unit ;;
*reload*)
  [ ! -e /run/canceled ] || { echo 'Job for ssh.service canceled.' >&2; exit 1; }
  kill -HUP "$(sed -n 's/^MainPID=//p' /run/unit)" ;;
*start*) echo 'Failed to start ssh.service: Unit ssh.service is masked.' >&2; exit 1 ;;
esac
exit 0"#;

const BUSCTL_SCRIPT: &str = r#"
left=$(cat /run/away 2>/dev/null || echo 0)
if [ "$left" -gt 0 ]; then
  echo $((left - 1)) >/run/away
  echo 'Failed to get property: The name org.freedesktop.systemd1 was not provided by any .service files' >&2
  exit 1
fi
cat /run/words"#;

fn warning_reasons(result: &Value) -> Vec<&str> {
    result["warnings"].as_array().unwrap().iter().map(|it| it["reason"].as_str().unwrap()).collect()
}

/// Whether a warning names another sshd than the guest's.
fn warns_of_second_sshd(result: &Value, pid: u32) -> bool {
    let named = format!("pid {pid},");
    let warnings = result["warnings"].as_array().unwrap();
    warnings
        .iter()
        .any(|it| it["reason"] == "SECOND_SSHD" && it["message"].as_str().unwrap().contains(&named))
}

/// KP-6.22.
#[test]
fn stale_pid_file_still_finds_listener() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
    let file = guest.path("sshd.pid");
    for (content, password_auth) in
        [(None, "no"), (Some(sleeper.id().to_string()), "yes"), (Some(String::new()), "no")]
    {
        match &content {
            Some(content) => fs::write(&file, content).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let result = guest.apply(&attach_command("k", &key, password_auth));
        assert_eq!(result["status"], "succeeded", "{content:?} {result}");
        assert!(result["proof"]["notTaken"].is_null(), "{result}");
        assert_eq!(guest.sshd.offers_password(), password_auth == "yes", "{content:?}");
        assert!(guest.sshd.accepts_key(&key));
    }
    assert!(sleeper.try_wait().unwrap().is_none());
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

/// The main file names a port. An sshd that was started with the same file on another port is not the listener.
/// KP-6.1, KP-6.26.
#[test]
fn second_sshd_with_same_config_is_told_apart_by_port() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    let port = free_port().to_string();
    let pid_file = format!("PidFile={}", guest.path("second.pid").display());
    let address = format!("ListenAddress=127.0.0.1:{port}");
    let words = ["-D", "-p", &port, "-o", &pid_file, "-o", &address, "-f"];
    let second =
        SecondSshd::start(&guest, Command::new("/usr/sbin/sshd").args(words).arg(guest.path("sshd_config")));
    fs::remove_file(guest.path("sshd.pid")).unwrap();
    let result = guest.apply(&attach_command("k", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
    assert!(warns_of_second_sshd(&result, second.0.id()), "{result}");
    assert!(!guest.sshd.offers_password() && guest.sshd.accepts_key(&key));
}

/// KP-6.22.
#[test]
fn inactive_or_foreign_unit_is_bypassed() {
    if !has_tools(&TOOLS) {
        return;
    }
    run_in_namespaces(|| {
        let manager = FakeSystemd::new(GuestOptions::default());
        for state in [
            INACTIVE_UNIT,
            "LoadState=loaded\nActiveState=failed\nMainPID=0\nCanReload=yes",
            "LoadState=not-found\nActiveState=inactive\nMainPID=0",
            "LoadState=masked\nActiveState=inactive\nMainPID=0\nUnitFileState=masked",
            // Its main process is a supervisor.
            "LoadState=loaded\nActiveState=active\nMainPID=1\nCanReload=yes",
        ] {
            manager.set_unit_state(state);
            manager.assert_apply_succeeds(&[]);
        }
        // The unit fails to start again and again, because the port is taken.
        manager.set_unit_state("LoadState=loaded\nActiveState=activating\nMainPID=0\nCanReload=yes");
        manager.assert_apply_succeeds(&[]);
    });
}

/// KP-6.22.
#[test]
fn unreloadable_unit_falls_back_to_sighup() {
    if !has_tools(&TOOLS) {
        return;
    }
    run_in_namespaces(|| {
        let manager = FakeSystemd::new(GuestOptions::default());
        let reload = "--job-mode=ignore-dependencies reload ssh.service";
        manager.set_unit_active(&[]);
        manager.assert_apply_succeeds(&[reload]);
        manager.set_unit_active(&[("LoadState", "masked"), ("UnitFileState", "masked")]);
        manager.assert_apply_succeeds(&[]);
        manager.set_unit_active(&[("CanReload", "no")]);
        manager.assert_apply_succeeds(&[]);
        manager.set_unit_active(&[]);
        fs::write("/run/canceled", "").unwrap();
        manager.assert_apply_succeeds(&[reload]);
    });
}

/// A listener that dies during the reload is restarted with its own command line. Its masked unit is not started.
/// KP-6.22.
#[test]
fn masked_unit_is_never_started() {
    if !has_tools(&TOOLS) {
        return;
    }
    run_in_namespaces(|| {
        let manager = FakeSystemd::new(GuestOptions { copied_binary: true, ..GuestOptions::default() });
        manager.set_unit_active(&[("LoadState", "masked"), ("UnitFileState", "masked")]);
        manager.guest.break_copied_binary();
        let result = manager.apply("no");
        assert_eq!(result["reason"], "SSHD_RELOAD_FAILED", "{result}");
        let jobs = manager.take_jobs();
        assert!(jobs.iter().all(|job| job.starts_with("systemd-run ")), "{jobs:?}");
        assert!(manager.guest.sshd.offers_password());
        manager.set_unit_state("LoadState=masked\nActiveState=inactive\nMainPID=0\nUnitFileState=masked");
        manager.assert_apply_succeeds(&[]);
    });
}

/// KP-6.23.
#[test]
fn unavailable_dbus_is_retried() {
    if !has_tools(&TOOLS) {
        return;
    }
    run_in_namespaces(|| {
        let manager = FakeSystemd::new(GuestOptions::default());
        manager.set_unit_active(&[]);
        for (away, password_auth) in [(1, "no"), (5, "yes"), (12, "no")] {
            fs::write("/run/away", away.to_string()).unwrap();
            let result = manager.apply(password_auth);
            assert_eq!(result["status"], "succeeded", "away {away} times: {result}");
            assert_eq!(manager.guest.sshd.offers_password(), password_auth == "yes");
        }
        // If systemd does not come back, the error names it, and nothing is changed.
        fs::write("/run/away", "1000000").unwrap();
        let before = manager.guest.snapshot();
        let result = manager.guest.apply(&set_password_auth_command("no"));
        assert_eq!(result["reason"], "IO_ERROR", "{result}");
        assert_eq!(manager.guest.snapshot(), before);
    });
}

/// The sshd of a container in the same network does not belong to this system. A second sshd of this system does.
/// KP-6.26.
#[test]
fn second_sshd_is_warned_about_unless_in_container() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    for (words, is_one) in
        [(&["unshare", "--pid", "--fork", "--kill-child"] as &[&str], false), (&["env"], true)]
    {
        let second = start_second_sshd(&guest, words);
        let id = second.0.id();
        let child = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let pid = child.trim().parse().unwrap_or(id);
        let result = guest.apply(&attach_command("k", &key, if is_one { "no" } else { "yes" }));
        assert_eq!(result["status"], "succeeded", "{result}");
        assert_eq!(warns_of_second_sshd(&result, pid), is_one, "{words:?}: {result}");
    }
}

/// A second sshd, or the process that started it. It ends with the test.
struct SecondSshd(Child);

impl SecondSshd {
    /// Starts it, and waits until it has written `second.pid` in the guest's folder.
    fn start(guest: &TestGuest, command: &mut Command) -> Self {
        let pid_file = guest.path("second.pid");
        let _ = fs::remove_file(&pid_file);
        let second = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_for("the second sshd", || fs::read_to_string(&pid_file).ok());
        second
    }
}

impl Drop for SecondSshd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_second_sshd(guest: &TestGuest, words: &[&str]) -> SecondSshd {
    let config = guest.path("second_config");
    let text = fs::read_to_string(guest.path("sshd_config")).unwrap();
    let text = text.replace(&format!("Port {}", guest.sshd.port), &format!("Port {}", free_port()));
    fs::write(&config, text.replace("sshd.pid", "second.pid")).unwrap();
    let mut command = Command::new(words[0]);
    SecondSshd::start(guest, command.args(&words[1..]).args(["/usr/sbin/sshd", "-D", "-f"]).arg(config))
}

/// A socket unit with `Accept=yes` starts an sshd for each connection, so there is no listener.
/// KP-6.23, KP-6.26.
#[test]
fn per_connection_sshd_needs_no_reload() {
    if !has_tools(&TOOLS) {
        return;
    }
    run_in_namespaces(|| {
        let manager = FakeSystemd::new(GuestOptions::default());
        let mut inetd = Inetd::replace_listener(&manager.guest);
        fs::write("/run/sockets", "Id=ssh.socket\nLoadState=loaded\nActiveState=active\nAccept=yes\n")
            .unwrap();
        manager.assert_apply_succeeds(&[]);
        inetd.stop();
        // Nothing listens any more.
        fs::write("/run/sockets", "Id=ssh.socket\nLoadState=loaded\nActiveState=inactive\nAccept=yes\n")
            .unwrap();
        let result = manager.apply("no");
        assert_eq!(warning_reasons(&result), ["SSHD_NOT_RUNNING"], "{result}");
        assert_eq!(result["proof"]["notTaken"], "sshd is not running", "{result}");
    });
}

/// Starts `sshd -i` for each connection to a port.
struct Inetd {
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    port: u16,
}

impl Inetd {
    /// Replaces the guest's listener, which ends.
    fn replace_listener(guest: &TestGuest) -> Self {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(guest.sshd.pid()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let port = guest.sshd.port;
        let listener = wait_for("its port", || TcpListener::bind(("127.0.0.1", port)).ok());
        let (ended, config): (Arc<AtomicBool>, PathBuf) = (Arc::default(), guest.path("sshd_config"));
        let is_ended = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let mut children: Vec<Child> = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if is_ended.load(Ordering::Relaxed) {
                    break;
                }
                let (stdin, stdout) = (OwnedFd::from(stream.try_clone().unwrap()), OwnedFd::from(stream));
                let mut sshd = Command::new("/usr/sbin/sshd");
                sshd.arg("-i").arg("-f").arg(&config).stdin(stdin).stdout(stdout).stderr(Stdio::null());
                children.push(sshd.spawn().unwrap());
            }
            for mut child in children {
                let _ = child.kill();
                let _ = child.wait();
            }
        });
        Self { ended, thread: Some(thread), port }
    }

    fn stop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = std::net::TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Inetd {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}
