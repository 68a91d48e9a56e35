//! SELinux labels that prevent sshd from reading necessary files. This kernel has no SELinux. The tests lay out its
//! answers as files in their own guest, and a test program replaces matchpathcon(8). Tests with real SELinux are in
//! `tests/guests/selinux.sh`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod matrix_support;
mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use matrix_support::land::{GuestFixture, OWN_FILE, with_guest};
use rustix::pty::{ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use serde_json::Value;
use support::{detach_command, has_tools, set_password_auth_command, warning_reasons};

const KEY_FILE: &str = "/home/u/.ssh/authorized_keys";
const DROP_IN: &str = "/etc/ssh/sshd_config.d/00-keypair-agent.conf";
const SSH_HOME_LABEL: &str = "unconfined_u:object_r:ssh_home_t:s0";
const USER_HOME_LABEL: &str = "unconfined_u:object_r:user_home_dir_t:s0";
const USER_TMP_LABEL: &str = "unconfined_u:object_r:user_tmp_t:s0";

/// A script that lays out SELinux's file system, enforcing or not, and optionally installs matchpathcon.
fn selinux_setup_script(enforce: u8, has_matchpathcon: bool) -> String {
    let policy = if has_matchpathcon { "mv /matchpathcon /usr/local/sbin/matchpathcon" } else { ":" };
    format!(
        "S=/sys/fs/selinux; mkdir -p $S /usr/local/sbin; echo {enforce} >$S/enforce; touch $S/access $S/create
         for class in file dir process; do
           mkdir -p $S/class/$class/perms; echo 1 >$S/class/$class/index
           for bit in getattr open read search; do echo 1 >$S/class/$class/perms/$bit; done
         done
         cat >/matchpathcon <<'E'
#!/bin/sh
case $4 in
  /home/u/.ssh*) echo {SSH_HOME_LABEL} ;;
  /home/u) echo {USER_HOME_LABEL} ;;
  /etc/ssh*) echo system_u:object_r:etc_t:s0 ;;
  *) exit 1 ;;
esac
E
         chmod 755 /matchpathcon; {policy}; {}; {}; {}; {}",
        setfattr_command("/home/u", USER_HOME_LABEL),
        OWN_FILE,
        setfattr_command("/home/u/.ssh", SSH_HOME_LABEL),
        setfattr_command(KEY_FILE, SSH_HOME_LABEL),
    )
}

/// From now on the simulated kernel answers: sshd is in the domain sshd_t, and `access` gives the allowed permissions
/// and the flags for a label.
fn serve_selinux_decisions(land: &GuestFixture<'_>, access: fn(&str) -> (u32, u32)) {
    land.run_script(&setfattr_command("/usr/local/sbin/sshd", "system_u:object_r:sshd_exec_t:s0"));
    land.run_script("printf system_u:system_r:init_t:s0 >/init; mount --bind /init /proc/1/attr/current");
    serve_selinuxfs_file(land, "create", |_| "system_u:system_r:sshd_t:s0-s0:c0.c1023".to_owned());
    serve_selinuxfs_file(land, "access", move |question| {
        let (allowed, flags) = access(question.split(' ').nth(1).unwrap());
        format!("{allowed:x} ffffffff 0 ffffffff 7 {flags:x}")
    });
}

/// A file of selinuxfs that answers each write: a pseudo-terminal in the guest, with its other end in the test.
fn serve_selinuxfs_file(land: &GuestFixture<'_>, file: &str, with: impl Fn(&str) -> String + Send + 'static) {
    let open = |path: PathBuf| fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut master = open(land.guest.host_path("/dev/pts/ptmx"));
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = open(land.guest.host_path(&name));
    let mut raw = tcgetattr(&slave).unwrap();
    raw.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &raw).unwrap();
    land.run_script(&format!("mount --bind {name} /sys/fs/selinux/{file}"));
    std::thread::spawn(move || {
        // Without an open slave, the master reports a hang-up between two questions.
        let _slave = slave;
        let mut question = [0; 4096];
        while let Ok(length) = master.read(&mut question) {
            let asked = String::from_utf8_lossy(&question[..length]).into_owned();
            master.write_all(with(&asked).as_bytes()).unwrap();
        }
    });
}

fn setfattr_command(path: &str, label: &str) -> String {
    format!("setfattr -n security.selinux -v {label} {path}")
}

fn read_label(land: &GuestFixture<'_>, path: &str) -> String {
    let label = xattr::get_deref(land.guest.host_path(path), "security.selinux").unwrap().unwrap_or_default();
    String::from_utf8(label).unwrap().trim_end_matches('\0').to_owned()
}

fn run_in_guest(setup: &str, work: impl FnOnce(&GuestFixture<'_>)) {
    if !has_tools(&["setfattr"]) {
        return;
    }
    if Path::new("/sys/fs/selinux").exists() {
        eprintln!("SKIPPED: SELinux runs here");
        return;
    }
    with_guest("u", setup, "", work);
}

fn run_with_enforcing_selinux(more: &str, work: impl FnOnce(&GuestFixture<'_>)) {
    run_in_guest(&format!("{}; {more}", selinux_setup_script(1, true)), work);
}

fn assert_contains_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// The problems with labels that `status` reports.
fn label_problems(land: &GuestFixture<'_>) -> Vec<String> {
    let report = GuestFixture::parse_result(&land.run_agent(&["status", "--json"], ""));
    assert_eq!(report["healthy"], false, "the agent does not run: {report}");
    let problems =
        report["problems"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned());
    problems.filter(|text| text.contains("SELinux label")).collect()
}

/// The lines of `check` about labels: whether each is a failure, and its text.
fn label_checks(land: &GuestFixture<'_>) -> Vec<(bool, String)> {
    let report = GuestFixture::parse_result(&land.run_agent(&["check", "--json"], ""));
    let checks = report["checks"].as_array().unwrap().iter().filter(|check| check["name"] == "labels");
    checks.map(|check| (check["ok"] == false, check.to_string())).collect()
}

/// A key file with a wrong label. It contains other keys, which would give access after a correction of the label.
/// KP-5.14.
#[test]
fn mislabelled_key_file_is_refused_and_named() {
    let moved = format!(
        "echo '@OTHER_KEY@' >/home/u/.ssh/authorized_keys; {}",
        setfattr_command(KEY_FILE, USER_TMP_LABEL)
    );
    run_with_enforcing_selinux(&moved, |land| {
        let before = land.snapshot();
        for command in [land.attach_command("no"), set_password_auth_command("no")] {
            let result = land.assert_refused(&command, "LOCKOUT_GUARD", KEY_FILE);
            let message = result["message"].as_str().unwrap();
            assert_contains_all(
                message,
                &[USER_TMP_LABEL, SSH_HOME_LABEL, "restorecon -Rv", "not the agent's"],
            );
            assert_eq!(before.describe_changes(&land.snapshot()), None, "{result}");
        }
        assert_eq!(read_label(land, KEY_FILE), USER_TMP_LABEL);
        assert!(land.accepts_password("u"));
        assert!(!label_checks(land).is_empty());

        // With `yes` the key is bound, with a warning that it is not usable; status reports that too.
        let result = land.apply_ok(&land.attach_command("yes"));
        assert_eq!(warning_reasons(&result), ["KEY_NOT_USABLE"], "{result}");
        assert_contains_all(
            &label_problems(land).concat(),
            &[KEY_FILE, USER_TMP_LABEL, SSH_HOME_LABEL, "restorecon -Rv"],
        );
        assert_eq!(read_label(land, KEY_FILE), USER_TMP_LABEL);

        // The remedy in the message works.
        land.run_script(&setfattr_command(KEY_FILE, SSH_HOME_LABEL));
        land.apply_ok(&land.attach_command("no"));
        assert_eq!((label_problems(land), label_checks(land)), (Vec::new(), Vec::new()));
        assert!(land.accepts_bound_key("u") && !land.accepts_password("u"));
    });
}

/// KP-5.14.
#[test]
fn label_is_corrected_if_only_bound_key_gains_access() {
    for place in [KEY_FILE, "/home/u/.ssh", "/home/u"] {
        let right = if place == "/home/u" { USER_HOME_LABEL } else { SSH_HOME_LABEL };
        run_with_enforcing_selinux(&setfattr_command(place, USER_TMP_LABEL), |land| {
            let planned = land.run_agent(&["plan", "-"], &land.attach_command("no").to_string());
            assert_contains_all(
                &GuestFixture::combine_output(&planned),
                &["the SELinux label of", place, right],
            );
            assert_eq!(read_label(land, place), USER_TMP_LABEL, "a plan changes nothing");
            let result = land.apply_ok(&land.attach_command("no"));
            assert_eq!(read_label(land, place), right, "{result}");
            assert_contains_all(result["message"].as_str().unwrap(), &[place, USER_TMP_LABEL, right]);
            assert_eq!((label_problems(land), label_checks(land)), (Vec::new(), Vec::new()), "{place}");
            assert!(land.accepts_bound_key("u") && !land.accepts_password("u"));

            // The label becomes wrong again while a key is bound.
            land.run_script(&setfattr_command(place, USER_TMP_LABEL));
            assert_contains_all(
                &label_problems(land).concat(),
                &[place, USER_TMP_LABEL, "attach the key pair again"],
            );
            assert!(label_checks(land).iter().all(|(fails, _)| !fails), "an attach corrects it");
            let result = land.apply_ok(&land.attach_command("no"));
            assert_eq!((read_label(land, place).as_str(), &result["changed"]), (right, &Value::Bool(false)));
            land.run_script(&setfattr_command(place, USER_TMP_LABEL));
            land.apply_ok(&set_password_auth_command("no"));
            assert_eq!(read_label(land, place), right);
            land.run_script(&setfattr_command(place, USER_TMP_LABEL));
            land.apply_ok(&land.replace_command("no"));
            assert_eq!(read_label(land, place), right);
            // A detach works even if sshd cannot read the file.
            land.run_script(&setfattr_command(place, USER_TMP_LABEL));
            land.apply_ok(&detach_command("l"));
        });
    }
}

/// KP-5.13.
#[test]
fn created_files_get_policy_label() {
    run_with_enforcing_selinux("rm -r /home/u/.ssh", |land| {
        land.apply_ok(&land.attach_command("no"));
        assert_eq!(
            (read_label(land, KEY_FILE).as_str(), read_label(land, "/home/u/.ssh").as_str()),
            (SSH_HOME_LABEL, SSH_HOME_LABEL)
        );
        assert_eq!(read_label(land, DROP_IN), "system_u:object_r:etc_t:s0");
        // A drop-in with another label would make sshd exit.
        land.run_script(&setfattr_command(DROP_IN, USER_TMP_LABEL));
        assert_contains_all(&label_problems(land).concat(), &[DROP_IN, USER_TMP_LABEL]);
        land.apply_ok(&land.attach_command("yes"));
        assert_eq!(read_label(land, DROP_IN), "system_u:object_r:etc_t:s0");
    });
}

#[test]
fn unknown_label_keeps_passwords_on() {
    run_in_guest(&selinux_setup_script(1, false), |land| {
        let result = land.assert_refused(&land.attach_command("no"), "LOCKOUT_GUARD", "/home/u");
        assert_contains_all(result["message"].as_str().unwrap(), &["not known", "install matchpathcon"]);
        assert!(land.accepts_password("u"));
        let result = land.apply_ok(&land.attach_command("yes"));
        assert_eq!(warning_reasons(&result), ["KEY_NOT_USABLE"], "{result}");
        land.run_script("mv /matchpathcon /usr/local/sbin");
        land.apply_ok(&land.attach_command("no"));
        assert!(land.accepts_bound_key("u"));
    });
}

const GRANTED: (u32, u32) = (0xffff_ffff, 0);
const DENIED: (u32, u32) = (0, 0);

#[test]
fn kernel_decision_overrides_label_name() {
    // Access is allowed: the agent keeps an administrator's label, and needs no matchpathcon.
    run_in_guest(
        &format!("{}; {}", selinux_setup_script(1, false), setfattr_command(KEY_FILE, USER_TMP_LABEL)),
        |land| {
            serve_selinux_decisions(land, |_| GRANTED);
            land.apply_ok(&land.attach_command("no"));
            assert_eq!(
                (read_label(land, KEY_FILE).as_str(), label_problems(land)),
                (USER_TMP_LABEL, Vec::new())
            );
        },
    );
    // Access is denied: the agent corrects the label if the policy names a better one. Otherwise it refuses the
    // command and names the domain.
    run_in_guest(
        &format!("{}; {}", selinux_setup_script(1, true), setfattr_command(KEY_FILE, USER_TMP_LABEL)),
        |land| {
            serve_selinux_decisions(land, |label| if label == USER_TMP_LABEL { DENIED } else { GRANTED });
            let plan = GuestFixture::combine_output(
                &land.run_agent(&["plan", "-"], &land.attach_command("no").to_string()),
            );
            assert_contains_all(&plan, &["the SELinux label of", KEY_FILE, SSH_HOME_LABEL]);
            land.run_script("mv /usr/local/sbin/matchpathcon /");
            let result = land.assert_refused(&land.attach_command("no"), "LOCKOUT_GUARD", KEY_FILE);
            assert_contains_all(
                result["message"].as_str().unwrap(),
                &["domain sshd_t, may not read", USER_TMP_LABEL, "restorecon -Rv"],
            );
            land.run_script("mv /matchpathcon /usr/local/sbin");
            land.apply_ok(&land.attach_command("no"));
            assert_eq!(read_label(land, KEY_FILE), SSH_HOME_LABEL);
            assert!(land.accepts_bound_key("u"));
        },
    );
    // A home for which the policy names no better label, and a new file in it.
    let other = "unconfined_u:object_r:default_t:s0";
    let elsewhere = format!(
        "sed -i s/ssh_home_t/default_t/ /matchpathcon /usr/local/sbin/matchpathcon || true
                             {}; {}",
        setfattr_command("/home/u/.ssh", other),
        "rm /home/u/.ssh/authorized_keys"
    );
    run_in_guest(&format!("{}; {elsewhere}", selinux_setup_script(1, true)), |land| {
        serve_selinux_decisions(land, |label| if label.contains("default_t") { DENIED } else { GRANTED });
        let result = land.assert_refused(&land.attach_command("no"), "LOCKOUT_GUARD", "/home/u/.ssh");
        assert_contains_all(
            result["message"].as_str().unwrap(),
            &["may not search", "names no other", "semanage fcontext"],
        );
        land.run_script(&setfattr_command("/home/u/.ssh", SSH_HOME_LABEL));
        // Only the written file shows the wrong label. Then the agent undoes everything.
        let result = land.assert_refused(&land.attach_command("no"), "LOCKOUT_GUARD", KEY_FILE);
        assert_contains_all(result["message"].as_str().unwrap(), &["may not read", "default_t"]);
        assert_eq!(land.read_text(KEY_FILE), "");
        assert!(land.accepts_password("u"));
    });
}

/// sshd's own files need a readable label too.
#[test]
fn sshd_config_with_unreadable_label_is_refused() {
    for (path, reason) in [
        ("/etc/ssh/sshd_config", "SSHD_RELOAD_UNSAFE"),
        ("/etc/ssh/sshd_config.d", "PASSWORD_AUTH_NOT_EFFECTIVE"),
    ] {
        run_in_guest(
            &format!("{}; {}", selinux_setup_script(1, true), setfattr_command(path, USER_TMP_LABEL)),
            |land| {
                serve_selinux_decisions(land, |label| if label == USER_TMP_LABEL { DENIED } else { GRANTED });
                let before = land.snapshot();
                for command in [land.attach_command("no"), set_password_auth_command("yes")] {
                    let result = land.assert_refused(&command, reason, path);
                    assert_contains_all(
                        result["message"].as_str().unwrap(),
                        &[USER_TMP_LABEL, "etc_t", "restorecon -Rv"],
                    );
                    assert_eq!(before.describe_changes(&land.snapshot()), None, "{result}");
                }
            },
        );
    }
}

/// KP-5.14.
#[test]
fn permissive_selinux_only_warns() {
    for (enforce, answer) in [(0, (|_| DENIED) as fn(&str) -> (u32, u32)), (1, |_| (0, 1))] {
        run_in_guest(
            &format!(
                "{}; {}",
                selinux_setup_script(enforce, true),
                setfattr_command(KEY_FILE, USER_TMP_LABEL)
            ),
            |land| {
                serve_selinux_decisions(land, answer);
                let result = land.apply_ok(&land.attach_command("no"));
                assert!(warning_reasons(&result).contains(&"WRONG_LABEL"), "{result}");
                assert_eq!(
                    (read_label(land, KEY_FILE).as_str(), label_problems(land)),
                    (USER_TMP_LABEL, Vec::new())
                );
                assert!(land.accepts_bound_key("u"));
            },
        );
    }
}
