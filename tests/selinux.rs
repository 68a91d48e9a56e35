//! Labels by which sshd may not read what a command depends on. This kernel has no SELinux: what it would say is laid out
//! as files in a guest of its own, and a matchpathcon(8) of ours stands for the policy. The real thing is in
//! `tests/guests/selinux.sh`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod matrix_support;
mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use matrix_support::land::{Land, OWN_FILE, land};
use rustix::pty::{ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use serde_json::Value;
use support::{available, detach, set_password_auth, warnings};

const KEYS: &str = "/home/u/.ssh/authorized_keys";
const DROP_IN: &str = "/etc/ssh/sshd_config.d/00-keypair-agent.conf";
const RIGHT: &str = "unconfined_u:object_r:ssh_home_t:s0";
const HOME: &str = "unconfined_u:object_r:user_home_dir_t:s0";
const WRONG: &str = "unconfined_u:object_r:user_tmp_t:s0";

/// SELinux as its file system shows it, enforcing or not; matchpathcon.
fn selinux(enforce: u8, has_matchpathcon: bool) -> String {
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
  /home/u/.ssh*) echo {RIGHT} ;;
  /home/u) echo {HOME} ;;
  /etc/ssh*) echo system_u:object_r:etc_t:s0 ;;
  *) exit 1 ;;
esac
E
         chmod 755 /matchpathcon; {policy}; {}; {}; {}; {}",
        set_label("/home/u", HOME),
        OWN_FILE,
        set_label("/home/u/.ssh", RIGHT),
        set_label(KEYS, RIGHT),
    )
}

/// The kernel answers from now on: sshd is in the domain sshd_t, and `access` gives allowed permissions and flags of the
/// label that it is asked about.
fn kernel(land: &Land<'_>, access: fn(&str) -> (u32, u32)) {
    land.sh(&set_label("/usr/local/sbin/sshd", "system_u:object_r:sshd_exec_t:s0"));
    land.sh("printf system_u:system_r:init_t:s0 >/init; mount --bind /init /proc/1/attr/current");
    answer(land, "create", |_| "system_u:system_r:sshd_t:s0-s0:c0.c1023".to_owned());
    answer(land, "access", move |question| {
        let (allowed, flags) = access(question.split(' ').nth(1).unwrap());
        format!("{allowed:x} ffffffff 0 ffffffff 7 {flags:x}")
    });
}

/// A file of selinuxfs that answers what is written to it: a terminal of the guest's, its other end held here.
fn answer(land: &Land<'_>, file: &str, with: impl Fn(&str) -> String + Send + 'static) {
    let open = |path: PathBuf| fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut master = open(land.guest.at("/dev/pts/ptmx"));
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = open(land.guest.at(&name));
    let mut raw = tcgetattr(&slave).unwrap();
    raw.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &raw).unwrap();
    land.sh(&format!("mount --bind {name} /sys/fs/selinux/{file}"));
    std::thread::spawn(move || {
        // Without it the master hangs up between two questions.
        let _slave = slave;
        let mut question = [0; 4096];
        while let Ok(length) = master.read(&mut question) {
            let asked = String::from_utf8_lossy(&question[..length]).into_owned();
            master.write_all(with(&asked).as_bytes()).unwrap();
        }
    });
}

fn set_label(path: &str, label: &str) -> String {
    format!("setfattr -n security.selinux -v {label} {path}")
}

fn label_of(land: &Land<'_>, path: &str) -> String {
    let label = xattr::get_deref(land.guest.at(path), "security.selinux").unwrap().unwrap_or_default();
    String::from_utf8(label).unwrap().trim_end_matches('\0').to_owned()
}

fn guest(setup: &str, work: impl FnOnce(&Land<'_>)) {
    if !available(&["setfattr"]) {
        return;
    }
    if Path::new("/sys/fs/selinux").exists() {
        eprintln!("SKIPPED: SELinux runs here");
        return;
    }
    land("u", setup, "", work);
}

fn enforcing(more: &str, work: impl FnOnce(&Land<'_>)) {
    guest(&format!("{}; {more}", selinux(1, true)), work);
}

fn says_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// The problems that `status` has about labels.
fn problems(land: &Land<'_>) -> Vec<String> {
    let report = Land::result(&land.agent(&["status", "--json"], ""));
    assert_eq!(report["healthy"], false, "the agent does not run: {report}");
    let problems =
        report["problems"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned());
    problems.filter(|text| text.contains("SELinux label")).collect()
}

/// The lines of `check` about labels: whether each is a failure, and its text.
fn checks(land: &Land<'_>) -> Vec<(bool, String)> {
    let report = Land::result(&land.agent(&["check", "--json"], ""));
    let checks = report["checks"].as_array().unwrap().iter().filter(|check| check["name"] == "labels");
    checks.map(|check| (check["ok"] == false, check.to_string())).collect()
}

/// A file that somebody moved here: with keys in it that would come to let in with its label.
/// KP-5.14.
#[test]
fn a_moved_key_file_is_refused_and_named() {
    let moved = format!("echo '@OTHER_KEY@' >/home/u/.ssh/authorized_keys; {}", set_label(KEYS, WRONG));
    enforcing(&moved, |land| {
        let before = land.snapshot();
        for command in [land.attach("no"), set_password_auth("no")] {
            let result = land.refused(&command, "LOCKOUT_GUARD", KEYS);
            let message = result["message"].as_str().unwrap();
            says_all(message, &[WRONG, RIGHT, "restorecon -Rv", "not the agent's"]);
            assert_eq!(before.difference(&land.snapshot()), None, "{result}");
        }
        assert_eq!(label_of(land, KEYS), WRONG);
        assert!(land.takes_password("u"));
        assert!(!checks(land).is_empty());

        // With `yes` it is bound, and said to be of no use; status says so as well.
        let result = land.done(&land.attach("yes"));
        assert_eq!(warnings(&result), ["KEY_NOT_USABLE"], "{result}");
        says_all(&problems(land).concat(), &[KEYS, WRONG, RIGHT, "restorecon -Rv"]);
        assert_eq!(label_of(land, KEYS), WRONG);

        // The remedy that is named helps.
        land.sh(&set_label(KEYS, RIGHT));
        land.done(&land.attach("no"));
        assert_eq!((problems(land), checks(land)), (Vec::new(), Vec::new()));
        assert!(land.lets_in("u") && !land.takes_password("u"));
    });
}

/// KP-5.14.
#[test]
fn a_label_is_corrected_where_only_our_key_comes_to_let_in() {
    for place in [KEYS, "/home/u/.ssh", "/home/u"] {
        let right = if place == "/home/u" { HOME } else { RIGHT };
        enforcing(&set_label(place, WRONG), |land| {
            let planned = land.agent(&["plan", "-"], &land.attach("no").to_string());
            says_all(&Land::said(&planned), &["the SELinux label of", place, right]);
            assert_eq!(label_of(land, place), WRONG, "a plan changes nothing");
            let result = land.done(&land.attach("no"));
            assert_eq!(label_of(land, place), right, "{result}");
            says_all(result["message"].as_str().unwrap(), &[place, WRONG, right]);
            assert_eq!((problems(land), checks(land)), (Vec::new(), Vec::new()), "{place}");
            assert!(land.lets_in("u") && !land.takes_password("u"));

            // It becomes wrong again under a bound key.
            land.sh(&set_label(place, WRONG));
            says_all(&problems(land).concat(), &[place, WRONG, "attach the key pair again"]);
            assert!(checks(land).iter().all(|(fails, _)| !fails), "an attach corrects it");
            let result = land.done(&land.attach("no"));
            assert_eq!((label_of(land, place).as_str(), &result["changed"]), (right, &Value::Bool(false)));
            land.sh(&set_label(place, WRONG));
            land.done(&set_password_auth("no"));
            assert_eq!(label_of(land, place), right);
            land.sh(&set_label(place, WRONG));
            land.done(&land.replace("no"));
            assert_eq!(label_of(land, place), right);
            // To take a key out none has to be readable.
            land.sh(&set_label(place, WRONG));
            land.done(&detach("l"));
        });
    }
}

/// KP-5.13.
#[test]
fn what_is_created_has_the_label_of_the_policy() {
    enforcing("rm -r /home/u/.ssh", |land| {
        land.done(&land.attach("no"));
        assert_eq!((label_of(land, KEYS).as_str(), label_of(land, "/home/u/.ssh").as_str()), (RIGHT, RIGHT));
        assert_eq!(label_of(land, DROP_IN), "system_u:object_r:etc_t:s0");
        // A drop-in with another label would end sshd.
        land.sh(&set_label(DROP_IN, WRONG));
        says_all(&problems(land).concat(), &[DROP_IN, WRONG]);
        land.done(&land.attach("yes"));
        assert_eq!(label_of(land, DROP_IN), "system_u:object_r:etc_t:s0");
    });
}

#[test]
fn without_matchpathcon_and_an_answer_of_the_kernel_passwords_stay() {
    guest(&selinux(1, false), |land| {
        let result = land.refused(&land.attach("no"), "LOCKOUT_GUARD", "/home/u");
        says_all(result["message"].as_str().unwrap(), &["not known", "install matchpathcon"]);
        assert!(land.takes_password("u"));
        let result = land.done(&land.attach("yes"));
        assert_eq!(warnings(&result), ["KEY_NOT_USABLE"], "{result}");
        land.sh("mv /matchpathcon /usr/local/sbin");
        land.done(&land.attach("no"));
        assert!(land.lets_in("u"));
    });
}

const GRANTED: (u32, u32) = (0xffff_ffff, 0);
const DENIED: (u32, u32) = (0, 0);

#[test]
fn the_kernel_decides_and_not_the_name_of_a_label() {
    // Allowed: an administrator's label is left alone, and no program is needed.
    guest(&format!("{}; {}", selinux(1, false), set_label(KEYS, WRONG)), |land| {
        kernel(land, |_| GRANTED);
        land.done(&land.attach("no"));
        assert_eq!((label_of(land, KEYS).as_str(), problems(land)), (WRONG, Vec::new()));
    });
    // Denied: corrected where the policy names a better one, else refused, the domain named.
    guest(&format!("{}; {}", selinux(1, true), set_label(KEYS, WRONG)), |land| {
        kernel(land, |label| if label == WRONG { DENIED } else { GRANTED });
        let plan = Land::said(&land.agent(&["plan", "-"], &land.attach("no").to_string()));
        says_all(&plan, &["the SELinux label of", KEYS, RIGHT]);
        land.sh("mv /usr/local/sbin/matchpathcon /");
        let result = land.refused(&land.attach("no"), "LOCKOUT_GUARD", KEYS);
        says_all(
            result["message"].as_str().unwrap(),
            &["domain sshd_t, may not read", WRONG, "restorecon -Rv"],
        );
        land.sh("mv /matchpathcon /usr/local/sbin");
        land.done(&land.attach("no"));
        assert_eq!(label_of(land, KEYS), RIGHT);
        assert!(land.lets_in("u"));
    });
    // A home for which the policy names nothing that helps, and a file that is new in it.
    let other = "unconfined_u:object_r:default_t:s0";
    let elsewhere = format!(
        "sed -i s/ssh_home_t/default_t/ /matchpathcon /usr/local/sbin/matchpathcon || true
                             {}; {}",
        set_label("/home/u/.ssh", other),
        "rm /home/u/.ssh/authorized_keys"
    );
    guest(&format!("{}; {elsewhere}", selinux(1, true)), |land| {
        kernel(land, |label| if label.contains("default_t") { DENIED } else { GRANTED });
        let result = land.refused(&land.attach("no"), "LOCKOUT_GUARD", "/home/u/.ssh");
        says_all(
            result["message"].as_str().unwrap(),
            &["may not search", "names no other", "semanage fcontext"],
        );
        land.sh(&set_label("/home/u/.ssh", RIGHT));
        // Only what is written shows it: then all is taken back.
        let result = land.refused(&land.attach("no"), "LOCKOUT_GUARD", KEYS);
        says_all(result["message"].as_str().unwrap(), &["may not read", "default_t"]);
        assert_eq!(land.text(KEYS), "");
        assert!(land.takes_password("u"));
    });
}

/// sshd reads its own files by their labels, too.
#[test]
fn a_configuration_that_sshd_may_not_read_is_refused() {
    for (path, reason) in [
        ("/etc/ssh/sshd_config", "SSHD_RELOAD_UNSAFE"),
        ("/etc/ssh/sshd_config.d", "PASSWORD_AUTH_NOT_EFFECTIVE"),
    ] {
        guest(&format!("{}; {}", selinux(1, true), set_label(path, WRONG)), |land| {
            kernel(land, |label| if label == WRONG { DENIED } else { GRANTED });
            let before = land.snapshot();
            for command in [land.attach("no"), set_password_auth("yes")] {
                let result = land.refused(&command, reason, path);
                says_all(result["message"].as_str().unwrap(), &[WRONG, "etc_t", "restorecon -Rv"]);
                assert_eq!(before.difference(&land.snapshot()), None, "{result}");
            }
        });
    }
}

/// KP-5.14.
#[test]
fn what_does_not_enforce_only_warns() {
    for (enforce, answer) in [(0, (|_| DENIED) as fn(&str) -> (u32, u32)), (1, |_| (0, 1))] {
        guest(&format!("{}; {}", selinux(enforce, true), set_label(KEYS, WRONG)), |land| {
            kernel(land, answer);
            let result = land.done(&land.attach("no"));
            assert!(warnings(&result).contains(&"WRONG_LABEL"), "{result}");
            assert_eq!((label_of(land, KEYS).as_str(), problems(land)), (WRONG, Vec::new()));
            assert!(land.lets_in("u"));
        });
    }
}
