//! KP-6.17 and KP-6.18. After a command that names a password setting, the agent's own line is in sshd's files, so
//! that later lines of others have no effect. After a change between the look and the write, the agent makes a new
//! plan.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::{
    GuestOptions, TestGuest, TestKey, attach_command, has_tools, set_password_auth_command, wait_for,
    warning_reasons,
};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// Reloads sshd, and waits until it offers passwords or no longer offers them.
fn reload_until_password_offered(guest: &TestGuest, offers: bool) {
    kill(Pid::from_raw(guest.sshd.pid() as i32), Signal::SIGHUP).unwrap();
    wait_for("sshd to do what its files say", || (guest.sshd.offers_password() == offers).then_some(()));
}

/// The effective password setting for root in sshd's files.
fn query_password_auth(guest: &TestGuest) -> String {
    let mut sshd = Command::new("/usr/sbin/sshd");
    let output = sshd.arg("-T").arg("-f").arg(guest.path("sshd_config")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find(|line| line.starts_with("passwordauthentication ")).unwrap().to_owned()
}

/// Edits like cloud-init with `ssh_pwauth` if the main file includes no drop-ins. It changes the value in every line
/// with this keyword, or appends a line (cloudinit/ssh_util.py, update_ssh_config_lines).
fn edit_as_cloud_init(guest: &TestGuest, value: &str) {
    let main = fs::read_to_string(guest.path("sshd_config")).unwrap();
    let mut is_found = false;
    let mut lines: Vec<String> = Vec::new();
    for line in main.lines().map(str::trim) {
        let mut words = line.splitn(2, char::is_whitespace);
        let keyword = words.next().unwrap_or_default();
        let keyword = if words.next().is_none() { keyword.split('=').next().unwrap() } else { keyword };
        let is_it = !line.starts_with('#') && keyword.eq_ignore_ascii_case("PasswordAuthentication");
        is_found |= is_it;
        lines.push(if is_it { format!("{keyword} {value}") } else { line.to_owned() });
    }
    if !is_found {
        lines.push(format!("PasswordAuthentication {value}"));
    }
    fs::write(guest.path("sshd_config"), lines.join("\n") + "\n").unwrap();
}

fn apply_successfully(guest: &TestGuest, command: &Value, changed: bool) -> Value {
    let result = guest.apply(command);
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(changed)), "{result}");
    result
}

/// KP-6.17.
#[test]
fn already_effective_setting_is_written_anyway() {
    if !has_tools(&TOOLS) {
        return;
    }
    let off = "PasswordAuthentication no\nKbdInteractiveAuthentication no\n";
    let on = "PasswordAuthentication yes\n";
    for (main, asked, later) in [(off, "no", "yes"), (on, "yes", "no"), ("", "yes", "no")] {
        for without_drop_ins in [false, true] {
            for sets_alone in [false, true] {
                let at = format!("{main:?} {asked} {without_drop_ins} {sets_alone}");
                let guest = TestGuest::with_options(GuestOptions {
                    main,
                    without_drop_ins,
                    ..GuestOptions::default()
                });
                let key = TestKey::new(&guest.folder, "k");
                let before = guest.snapshot();
                let command = match sets_alone {
                    true => {
                        fs::write(guest.key_file(), format!("{}\n", key.line)).unwrap();
                        set_password_auth_command(asked)
                    }
                    false => attach_command("my-test", &key, asked),
                };
                apply_successfully(&guest, &command, true);
                assert_eq!(guest.drop_in().exists(), !without_drop_ins, "{at}");
                let stands = guest.snapshot();
                apply_successfully(&guest, &command, false);
                assert_eq!(guest.snapshot(), stands, "{at}: a repeated command changes nothing");
                // A line that another program adds later has no effect.
                match without_drop_ins {
                    true => edit_as_cloud_init(&guest, later),
                    false => fs::write(
                        guest.path("sshd_config.d/50-cloud-init.conf"),
                        format!("PasswordAuthentication {later}\n"),
                    )
                    .unwrap(),
                }
                reload_until_password_offered(&guest, asked == "yes");
                assert_eq!(query_password_auth(&guest), format!("passwordauthentication {asked}"), "{at}");
                apply_successfully(&guest, &command, false);
                // Without the later lines, `undo` restores every byte.
                match without_drop_ins {
                    true => edit_as_cloud_init(&guest, if main.is_empty() { later } else { asked }),
                    false => fs::remove_file(guest.path("sshd_config.d/50-cloud-init.conf")).unwrap(),
                }
                assert!(guest.run_agent(&["undo"]).status.success(), "{at}");
                let main_file = |files: &[(std::path::PathBuf, String, u32, u32)]| {
                    files.iter().find(|file| file.0.ends_with("sshd_config")).unwrap().1.clone()
                };
                if !main.is_empty() {
                    assert_eq!(main_file(&guest.snapshot()), main_file(&before), "{at}");
                }
                assert!(!guest.drop_in().exists(), "{at}");
            }
        }
    }
}

#[test]
fn setting_behind_equal_line_is_moved_ahead() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    apply_successfully(&guest, &attach_command("my-test", &key, "no"), true);
    let main = fs::read_to_string(guest.path("sshd_config")).unwrap();
    fs::write(guest.path("sshd_config"), format!("PasswordAuthentication no\n{main}")).unwrap();
    apply_successfully(&guest, &attach_command("my-test", &key, "no"), true);
    apply_successfully(&guest, &attach_command("my-test", &key, "no"), false);
    edit_as_cloud_init(&guest, "yes");
    reload_until_password_offered(&guest, false);
    assert_eq!(query_password_auth(&guest), "passwordauthentication no");
}

#[test]
fn managed_block_of_previous_version_is_upgraded() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::with_options(GuestOptions { without_drop_ins: true, ..GuestOptions::default() });
    let key = TestKey::new(&guest.folder, "k");
    apply_successfully(&guest, &attach_command("my-test", &key, "no"), true);
    let main = fs::read_to_string(guest.path("sshd_config")).unwrap();
    fs::write(guest.path("sshd_config"), main.replace("Authentication= ", "Authentication ")).unwrap();
    let status: Value = serde_json::from_slice(&guest.run_agent(&["status", "--json"]).stdout).unwrap();
    assert!(!status["problems"].to_string().contains("changed by somebody"), "it is no drift: {status}");
    apply_successfully(&guest, &attach_command("my-test", &key, "no"), true);
    assert_eq!(
        fs::read_to_string(guest.path("sshd_config")).unwrap().matches("Authentication= no").count(),
        2
    );
    apply_successfully(&guest, &attach_command("my-test", &key, "no"), false);
}

/// KP-6.17.
#[test]
fn unwritable_setting_is_accepted_if_effective() {
    if !has_tools(&TOOLS) || !has_tools(&["chattr"]) {
        return;
    }
    let off = "PasswordAuthentication no\nKbdInteractiveAuthentication no\n";
    type MakeUnwritable = fn(&TestGuest);
    let link: MakeUnwritable = |guest| symlink("/dev/null", guest.drop_in()).unwrap();
    // A pending edit: a reload would end sshd, or move it to another port.
    let pending: MakeUnwritable = |guest| {
        let main = fs::read_to_string(guest.path("sshd_config")).unwrap();
        let port = format!("Port {}\n", guest.sshd.port);
        fs::write(guest.path("sshd_config"), main.replace(&port, "Port 9\n")).unwrap();
    };
    for (main, asked, spoil, name) in
        [(off, "no", link, "link"), ("", "yes", link, "link"), ("", "yes", pending, "pending")]
    {
        let guest = TestGuest::with_options(GuestOptions { main, ..GuestOptions::default() });
        let key = TestKey::new(&guest.folder, "k");
        fs::write(guest.key_file(), format!("{}\n", key.line)).unwrap();
        spoil(&guest);
        let before = guest.snapshot();
        for command in [set_password_auth_command(asked), set_password_auth_command(asked)] {
            let result = apply_successfully(&guest, &command, false);
            assert_eq!(warning_reasons(&result), ["SETTING_NOT_OWNED"], "{name} {asked} {result}");
            assert_eq!(guest.snapshot(), before, "{name} {asked}");
        }
        let result = guest.apply(&attach_command("my-test", &key, asked));
        assert_eq!(result["status"], "succeeded", "{name} {asked} {result}");
        assert!(warning_reasons(&result).contains(&"SETTING_NOT_OWNED"), "{name} {asked} {result}");
        assert!(guest.sshd.accepts_key(&key), "{name} {asked}");
        // If sshd does not have the requested setting already, the command fails as usual.
        let other = if asked == "no" { "yes" } else { "no" };
        let (stands, offers) = (guest.snapshot(), guest.sshd.offers_password());
        let result = guest.apply(&set_password_auth_command(other));
        assert_eq!(result["status"], "failed", "{name} {other} {result}");
        assert_eq!((guest.snapshot(), guest.sshd.offers_password()), (stands, offers), "{name} {other}");
    }
}

/// A guest whose sshd runs this shell script before it answers each question of the agent by -t or -T. `$n` counts
/// the questions, and `$dir` is the drop-in directory.
fn create_guest_with_query_hook(script: &str) -> TestGuest {
    let guest = TestGuest::with_options(GuestOptions { copied_binary: true, ..GuestOptions::default() });
    let folder = guest.folder.path().display();
    guest.replace_copied_binary(&format!(
        "#!/bin/sh\ncase $1 in -[tT])\n  dir={folder}/sshd_config.d\n  n=$(($(cat {folder}/count 2>/dev/null || echo 0) + 1))\n  \
         echo $n >{folder}/count\n  {script}\n;; esac\nexec /usr/sbin/sshd \"$@\"\n"
    ));
    guest
}

/// KP-6.9, KP-6.18.
#[test]
fn plan_is_redone_when_config_changes() {
    if !has_tools(&TOOLS) {
        return;
    }
    // The edit comes at one question of the command per round, until no question is left. One kind of edit overrides
    // the agent's setting, the other is harmless.
    let mut questions = 0;
    for at in 1.. {
        let mut is_met = false;
        for (line, wins) in [("Match all\\n  PasswordAuthentication yes", true), ("X11Forwarding no", false)]
        {
            if !wins && at % 4 != 0 {
                continue;
            }
            let guest = create_guest_with_query_hook(&format!(
                "[ $n != {at} ] || printf '{line}\\n' >$dir/60-late.conf"
            ));
            let key = TestKey::new(&guest.folder, "k");
            let result = guest.apply(&attach_command("my-test", &key, "no"));
            is_met |= guest.path("sshd_config.d/60-late.conf").exists();
            match result["reason"].as_str() {
                None => {
                    assert!(
                        !guest.sshd.offers_password() && guest.sshd.accepts_key(&key),
                        "{at} {line}: {result}"
                    );
                }
                Some("PASSWORD_AUTH_NOT_EFFECTIVE") if wins => {
                    assert!(
                        result["message"].as_str().unwrap().contains("60-late.conf line 2"),
                        "{at} {line}: {result}"
                    );
                    assert!(guest.sshd.offers_password(), "{at} {line}");
                }
                _ => panic!("{at} {line}: {result}"),
            }
        }
        if !is_met {
            break;
        }
        questions = at;
    }
    assert!(questions >= 6, "only {questions} questions");
}

/// KP-6.18.
#[test]
fn config_changing_twice_is_io_error() {
    if !has_tools(&TOOLS) {
        return;
    }
    for line in ["X11Forwarding no", "Match all\\n  PasswordAuthentication yes"] {
        let guest = create_guest_with_query_hook(&format!("printf '# %s\\n{line}\\n' $n >$dir/60-late.conf"));
        let key = TestKey::new(&guest.folder, "k");
        let result = guest.apply(&attach_command("my-test", &key, "no"));
        assert_eq!(result["reason"], "IO_ERROR", "{result}");
        let message = result["message"].as_str().unwrap();
        assert!(message.contains("60-late.conf") && message.contains("twice"), "{message}");
        assert!(!guest.drop_in().exists() && !guest.key_file().exists());
        assert!(guest.sshd.offers_password());
    }
}
