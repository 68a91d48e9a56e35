//! The bound key after a change under it: of the home, of the files that sshd reads, of the account or of the volume.
//! Each test has its own guest, a real sshd and real logins.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod matrix_support;
mod support;

use std::fs;
use std::process::Output;

use matrix_support::land::{GuestFixture, OWN_FILE, SECOND_USER, with_guest};
use serde_json::{Value, json};
use support::detach_command;

#[test]
fn home_symlink_replaced_by_target_keeps_managed_block() {
    let setup = "umount /root; rm -rf /root; mkdir -m 700 /var/roothome; ln -s var/roothome /root; \
                 mkdir -m 700 /root/.ssh; echo '# mine' >/root/.ssh/authorized_keys";
    with_guest("root", setup, "", |land| {
        land.apply_ok(&land.attach_command("no"));
        assert!(land.accepts_bound_key("root"));
        land.run_script("sed -i 's,:/root:,:/var/roothome:,' /etc/passwd");
        land.apply_ok(&land.attach_command("no"));
        assert_eq!(land.count_blocks("/var/roothome/.ssh/authorized_keys"), 1);
        assert!(land.accepts_bound_key("root"));
        let check = CheckOutput::from_output(&land.run_agent(&["check", "--json"], ""));
        assert!(check.contains("holds the key pair k"), "{check:?}");
        land.apply_ok(&detach_command("k"));
        assert_eq!(land.read_text("/var/roothome/.ssh/authorized_keys"), "# mine\n");
    });
    let setup = format!("mv /home /var/home; ln -s var/home /home; {OWN_FILE}");
    with_guest("u", &setup, "", |land| {
        land.apply_ok(&land.attach_command("no"));
        land.run_script("sed -i 's,:/home/u:,:/var/home/u:,' /etc/passwd");
        // The check and the drift compare files, not path texts.
        let check = CheckOutput::from_output(&land.run_agent(&["check", "--json"], ""));
        assert!(check.contains("holds the key pair k"), "{check:?}");
        land.apply_ok(&land.attach_command("no"));
        assert_eq!(land.count_blocks("/var/home/u/.ssh/authorized_keys"), 1);
        assert!(land.accepts_bound_key("u"));
        land.assert_undo();
        assert_eq!(land.read_text("/var/home/u/.ssh/authorized_keys"), "");
    });
}

#[derive(Debug)]
struct CheckOutput(String);

impl CheckOutput {
    fn from_output(output: &Output) -> Self {
        Self(GuestFixture::combine_output(output))
    }

    fn contains(&self, words: &str) -> bool {
        self.0.contains(words)
    }
}

/// This holds for any path in sshd's configuration and for any owner of the link.
#[test]
fn key_path_through_link_is_refused() {
    let planted = "install -d -m 700 /root/.ssh; echo '# root' >/root/.ssh/authorized_keys; ";
    let link = "ln -s /root/.ssh /home/u/.ssh; ";
    for (setup, path) in [
        (format!("{link} ln -s /home /home2"), "/home2/%u/.ssh/authorized_keys"),
        (format!("{link} ln -s /home/u /h-u"), "/h-%u/.ssh/authorized_keys"),
        (link.to_owned(), "/proc/self/root/home/%u/.ssh/authorized_keys"),
        (format!("{link} mkdir /home2; mount --bind /home /home2"), "/home2/%u/.ssh/authorized_keys"),
        (format!("{link} mkdir /x; ln -s /home/u/.ssh /x/u"), "/x/%u/authorized_keys"),
        ("mkdir /x; ln -s /root/.ssh /x/u".to_owned(), "/x/%u/authorized_keys"),
        ("mkdir -p /x/u; mount --bind /root/.ssh /x/u".to_owned(), "/x/%u/authorized_keys"),
        ("install -d /x/root; ln -s root /x/u; echo '# x' >/x/root/keys".to_owned(), "/x/%u/keys"),
        (format!("{SECOND_USER} install -d /x/v; ln -s v /x/u; echo '# x' >/x/v/keys"), "/x/%u/keys"),
        ("mkdir /home/u/.ssh; mount --bind /root/.ssh /home/u/.ssh".to_owned(), ".ssh/authorized_keys"),
        // A directory of the user beside the home: the user can rename root's links in it.
        ("mkdir -p /x/u; chown u: /x/u; ln -s /root/.ssh /x/u/s".to_owned(), "/x/%u/s/authorized_keys"),
    ] {
        with_guest("u", &format!("{planted}{setup}"), &format!("AuthorizedKeysFile {path}\n"), |land| {
            for password_auth in ["yes", "no"] {
                land.assert_refused(&land.attach_command(password_auth), "UNSAFE_PATH", "");
            }
            assert_eq!(land.read_text("/root/.ssh/authorized_keys"), "# root\n", "{setup}");
            assert_eq!(
                land.read_text("/x/root/keys") + &land.read_text("/x/v/keys"),
                if path == "/x/%u/keys" { "# x\n" } else { "" }
            );
            assert!(!land.accepts_bound_key("root"), "{setup}");
        });
    }
}

#[test]
fn commands_follow_moved_home() {
    for move_it in
        ["mkdir /data; usermod -m -d /data/u u", "mkdir /data; cp -a /home/u /data/u; usermod -d /data/u u"]
    {
        with_guest("u", OWN_FILE, "", |land| {
            land.apply_ok(&land.attach_command("yes"));
            land.run_script(move_it);
            assert!(land.accepts_bound_key("u"));
            let result = land.apply_ok(&detach_command("k"));
            assert_eq!(result["changed"], true, "{result}");
            assert!(!land.accepts_bound_key("u"));
            let left = land.count_blocks("/data/u/.ssh/authorized_keys")
                + land.count_blocks("/home/u/.ssh/authorized_keys");
            assert_eq!(left, 0);

            land.run_script("usermod -d /home/u u; mkdir -p /home/u; chown u: /home/u");
            land.run_script(OWN_FILE);
            land.apply_ok(&land.attach_command("no"));
            land.run_script("mkdir /data2; mv /home/u /data2/u; usermod -d /data2/u u");
            land.apply_ok(&land.attach_command("no"));
            assert_eq!(land.count_blocks("/data2/u/.ssh/authorized_keys"), 1);
            assert!(land.accepts_bound_key("u"));
            land.run_script("mv /data2 /data3; usermod -d /data3/u u");
            land.assert_undo();
            assert_eq!(land.count_blocks("/data3/u/.ssh/authorized_keys"), 0);
            assert!(!land.accepts_bound_key("u"));
        });
    }
}

/// KP-5.7.
#[test]
fn commands_follow_changed_authorized_keys_file() {
    let move_it = |land: &GuestFixture<'_>, to: &str, line: &str| {
        land.run_script(&format!(
            "mkdir -p $(dirname {to}); mv /home/u/.ssh/authorized_keys {to}; chown u: {to}; chmod 644 {to}; \
             echo 'AuthorizedKeysFile {line}' >>/etc/ssh/sshd_config"
        ));
        land.reload_sshd();
        assert!(land.accepts_bound_key("u"));
    };
    for (to, line) in [
        ("/etc/ssh/keys/u", "/etc/ssh/keys/%u"),
        ("/home/u/.ssh/authorized_keys2", ".ssh/authorized_keys .ssh/authorized_keys2"),
        ("/etc/ssh/keys/all", "/etc/ssh/keys/all .ssh/authorized_keys"),
        ("/etc/ssh/keys/all", "/etc/ssh/keys/all"),
    ] {
        with_guest("u", OWN_FILE, "", |land| {
            land.apply_ok(&land.attach_command("yes"));
            move_it(land, to, line);
            let result = land.apply_ok(&detach_command("k"));
            assert_eq!(result["changed"], true, "{result}");
            assert!(!land.accepts_bound_key("u"), "{line}");
            assert_eq!(land.count_blocks(to), 0);
        });
        with_guest("u", OWN_FILE, "", |land| {
            land.apply_ok(&land.attach_command("no"));
            move_it(land, to, line);
            land.assert_undo();
            assert!(!land.accepts_bound_key("u"), "{line}");
            assert_eq!(land.count_blocks(to), 0);
        });
    }
}

/// sshd's present file holds the block, but its path is not safe. The command fails and names the file.
#[test]
fn unremovable_block_is_named_in_refusal() {
    with_guest("u", OWN_FILE, "", |land| {
        land.apply_ok(&land.attach_command("yes"));
        land.run_script(
            "mkdir /keys; mv /home/u/.ssh/authorized_keys /keys/u; chown u: /keys/u; ln -s u /keys/l-u; \
             echo 'AuthorizedKeysFile /keys/l-%u' >>/etc/ssh/sshd_config",
        );
        land.reload_sshd();
        assert!(land.accepts_bound_key("u"));
        land.assert_refused(&detach_command("k"), "UNSAFE_PATH", "/keys/l-u");
        let output = land.run_agent(&["undo"], "");
        assert!(
            output.status.code() == Some(1) && GuestFixture::combine_output(&output).contains("/keys/l-u"),
            "{output:?}"
        );
        assert!(land.accepts_bound_key("u"));
        land.run_script("rm /keys/l-u; mv /keys/u /keys/l-u");
        land.apply_ok(&detach_command("k"));
        assert!(!land.accepts_bound_key("u"));
    });
    // A link to the key file itself and an unrelated FIFO prevent nothing.
    with_guest(
        "u",
        OWN_FILE,
        "AuthorizedKeysFile .ssh/authorized_keys .ssh/authorized_keys2 /fifo\n",
        |land| {
            land.run_script("ln -s authorized_keys /home/u/.ssh/authorized_keys2; mkfifo /fifo");
            land.apply_ok(&land.attach_command("yes"));
            land.apply_ok(&detach_command("k"));
            assert_eq!(land.read_text("/home/u/.ssh/authorized_keys"), "");
        },
    );
}

/// KP-5.7.
#[test]
fn detach_of_missing_block_reports_not_found() {
    with_guest("u", OWN_FILE, "", |land| {
        for (gone, place) in [
            (": >/home/u/.ssh/authorized_keys", "/home/u/.ssh/authorized_keys"),
            ("mv /home/u/.ssh /home/u/old", "/home/u/.ssh/authorized_keys"),
            ("rm -rf /home/u", "/home/u/.ssh/authorized_keys"),
        ] {
            land.apply_ok(&land.attach_command("yes"));
            land.run_script(gone);
            let result = land.apply_ok(&detach_command("k"));
            let message = result["message"].as_str().unwrap();
            assert!(message.contains("no block of it was found in") && message.contains(place), "{result}");
            assert_eq!(result["changed"], false);
            assert!(land.read_state()["binding"].is_null());
        }
    });
}

/// KP-5.7.
#[test]
fn unmounted_home_volume_refuses_commands() {
    let setup = format!(
        "mkdir -p /vol; mount -t tmpfs -o mode=755 v /vol; mv /home/u /vol/u; mkdir /home/u; \
         mount --bind /vol/u /home/u; {OWN_FILE}"
    );
    with_guest("u", &setup, "", |land| {
        land.apply_ok(&land.attach_command("no"));
        assert_eq!(land.read_state()["binding"]["mount"], "/home/u");
        for unmount in ["umount /home/u; chown u: /home/u", "rmdir /home/u"] {
            land.run_script(unmount);
            let before = land.read_text("/var/lib/keypair-agent/state.json");
            for command in [detach_command("k"), land.attach_command("no"), land.attach_command("yes")] {
                land.assert_refused(&command, "IO_ERROR", "/home/u, on which that file was, is not mounted");
            }
            let output = land.run_agent(&["undo"], "");
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(GuestFixture::combine_output(&output).contains("is not mounted"), "{output:?}");
            assert!(!land.read_state()["binding"].is_null(), "{before}");
        }
        land.run_script("mkdir /home/u; mount --bind /vol/u /home/u");
        assert!(land.accepts_bound_key("u"));
        land.apply_ok(&land.attach_command("no"));
        assert_eq!(land.count_blocks("/home/u/.ssh/authorized_keys"), 1);
        land.apply_ok(&detach_command("k"));
        assert!(!land.accepts_bound_key("u"));
    });
    // Another mount above the home hides the volume too.
    with_guest("u", &setup, "", |land| {
        land.apply_ok(&land.attach_command("yes"));
        land.run_script("mount -t tmpfs h /home; mkdir /home/u; chown u: /home/u");
        land.assert_refused(&detach_command("k"), "IO_ERROR", "/home/u, on which");
        land.run_script("umount /home");
        // If the block is found, no volume has to be mounted.
        land.run_script("mkdir /data; cp -a /home/u /data/u; usermod -d /data/u u; umount /home/u");
        land.apply_ok(&detach_command("k"));
        assert_eq!(land.count_blocks("/data/u/.ssh/authorized_keys"), 0);
    });
    // A directory that is mounted on itself, like systemd's ReadWritePaths, is no volume. A state of 3.1.0 stores no
    // mount.
    with_guest("u", &format!("mount --bind /home /home; {OWN_FILE}"), "", |land| {
        land.apply_ok(&land.attach_command("yes"));
        assert_eq!(land.read_state()["binding"]["mount"], "/");
        land.downgrade_state();
        land.run_script("umount /home; rm /home/u/.ssh/authorized_keys");
        land.apply_ok(&detach_command("k"));
    });
}

/// The volume is unmounted while a command is in flight. Other commands do not wait for it, and the key does not
/// stay.
/// KP-7.11.
#[test]
fn rollback_with_unmounted_home_is_deferred() {
    let setup = format!(
        "mkdir -p /vol; mount -t tmpfs -o mode=755 v /vol; mv /home/u /vol/u; mkdir /home/u; \
         mount --bind /vol/u /home/u; {OWN_FILE}"
    );
    with_guest("u", &setup, "", |land| {
        let killed = [
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=kill",
            "-e",
            "inject=kill:signal=SIGKILL:when=1",
        ];
        land.guest.run_agent(&killed, &["apply", "-"], &land.attach_command("no").to_string());
        assert!(land.read_state()["intent"].is_object() && land.accepts_bound_key("u"), "it was not killed");
        land.run_script("umount /home/u; chown u: /home/u");
        for password_auth in ["yes", "no", "yes"] {
            let command = support::set_password_auth_command(password_auth);
            let result = land.apply(&command);
            // Without a key, `no` would lock the user out. There is no other reason for the refusal.
            let expected = if password_auth == "no" { json!("LOCKOUT_GUARD") } else { Value::Null };
            assert_eq!(result["reason"], expected, "{result}");
            assert!(
                land.read_state()["intent"].is_null() && land.read_state()["owed"].is_array(),
                "{result}"
            );
        }
        let result = land.apply_ok(&support::set_password_auth_command("yes"));
        let says = "not taken back yet in /home/u/.ssh/authorized_keys, since /home/u";
        assert!(result["message"].as_str().unwrap().contains(says), "{result}");
        land.assert_refused(&detach_command("k"), "IO_ERROR", says);
        let status = land.run_agent(&["status"], "");
        assert!(
            status.status.code() == Some(1) && GuestFixture::combine_output(&status).contains(says),
            "{status:?}"
        );
        let output = land.run_agent(&["undo"], "");
        assert!(
            output.status.code() == Some(1) && GuestFixture::combine_output(&output).contains(says),
            "{output:?}"
        );
        land.run_script("mount --bind /vol/u /home/u");
        assert!(land.accepts_bound_key("u"));
        let result = land.apply_ok(&detach_command("k"));
        assert_eq!(result["changed"], false, "{result}");
        assert!(!land.accepts_bound_key("u") && land.read_state()["owed"].is_null());
        assert_eq!(land.read_text("/home/u/.ssh/authorized_keys"), "");
        // The late rollback does not remove a key that was bound in the meantime.
        land.guest.run_agent(&killed, &["apply", "-"], &land.attach_command("no").to_string());
        land.run_script("umount /home/u; chown u: /home/u");
        land.apply_ok(&land.attach_command("yes"));
        land.run_script("mount --bind /vol/u /home/u");
        land.apply_ok(&land.attach_command("yes"));
        assert!(land.accepts_bound_key("u") && land.read_state()["owed"].is_null());
    });
}

/// KP-3.36, KP-5.8.
#[test]
fn deleted_user_block_is_removed() {
    for is_old in [false, true] {
        for (remove, stands) in [("userdel u", true), ("userdel -r u 2>/dev/null || true", false)] {
            with_guest("u", &format!("{SECOND_USER}{OWN_FILE}"), "", |land| {
                let path = "/home/u/.ssh/authorized_keys";
                land.apply_ok(&land.attach_command("yes"));
                if is_old {
                    land.downgrade_state();
                }
                land.run_script(remove);
                assert_eq!(land.count_blocks(path), usize::from(stands));
                let status = GuestFixture::combine_output(&land.run_agent(&["status"], ""));
                assert!(status.contains("user u"), "{status}");
                let result = land.apply_ok(&detach_command("k"));
                assert!(
                    result["message"].as_str().unwrap().contains("user u, for whom it was bound"),
                    "{result}"
                );
                assert_eq!(result["changed"], stands, "{result}");
                assert_eq!(land.count_blocks(path), 0);
                let state = land.read_state();
                assert!(
                    state["binding"].is_null() && state.to_string().contains("user u, for whom"),
                    "{state}"
                );
            });
            with_guest("u", &format!("{SECOND_USER}{OWN_FILE}"), "", |land| {
                let path = "/home/u/.ssh/authorized_keys";
                land.apply_ok(&land.attach_command("yes"));
                if is_old {
                    land.downgrade_state();
                }
                land.run_script(remove);
                land.set_target_user("v");
                let result = land.apply_ok(&land.attach_command("no"));
                assert!(
                    result["message"].as_str().unwrap().contains("user u, for whom it was bound"),
                    "{result}"
                );
                assert!(land.accepts_bound_key("v"));
                assert_eq!(
                    (land.count_blocks(path), land.read_state()["binding"]["user"].as_str()),
                    (0, Some("v"))
                );
                land.run_script("userdel v");
                land.assert_undo();
                assert_eq!(land.count_blocks("/home/v/.ssh/authorized_keys"), 0);
            });
        }
    }
}

/// KP-5.8.
#[test]
fn renamed_user_or_changed_uid_is_followed() {
    for change in ["usermod -l w u", "usermod -l w -m -d /home/w u", "usermod -u 4400 u"] {
        for command in ["detach", "undo", "attach"] {
            with_guest("u", OWN_FILE, "", |land| {
                land.apply_ok(&land.attach_command("no"));
                land.run_script(change);
                let name = if change.contains(" w") { "w" } else { "u" };
                assert!(land.accepts_bound_key(name), "{change}");
                match command {
                    "detach" => drop(land.apply_ok(&detach_command("k"))),
                    "undo" => land.assert_undo(),
                    _ => {
                        land.set_target_user(name);
                        land.apply_ok(&land.attach_command("no"));
                        let home = if change.contains("/home/w") { "w" } else { "u" };
                        assert_eq!(land.count_blocks(&format!("/home/{home}/.ssh/authorized_keys")), 1);
                    }
                }
                assert_eq!(land.accepts_bound_key(name), command == "attach", "{change}, {command}");
            });
        }
    }
}

/// The home still belongs to the old account, whose uid is in the state.
#[test]
fn recreated_user_with_new_uid_loses_old_block() {
    with_guest("u", OWN_FILE, "", |land| {
        land.apply_ok(&land.attach_command("yes"));
        land.run_script("userdel u; useradd -M -u 4400 -d /home/new -s /bin/sh u");
        let result = land.apply_ok(&detach_command("k"));
        assert_eq!(result["changed"], true, "{result}");
        assert_eq!(land.count_blocks("/home/u/.ssh/authorized_keys"), 0);
    });
}

/// The old home belongs to another user now. The agent changes nothing there, and removes the key from the file that
/// sshd reads.
/// KP-5.8.
#[test]
fn old_home_owned_by_other_user_is_untouched() {
    with_guest("u", &format!("{SECOND_USER}{OWN_FILE}"), "", |land| {
        land.apply_ok(&land.attach_command("yes"));
        land.run_script(
            "mkdir /data; usermod -m -d /data/u u; mkdir -p /home/u/.ssh; echo '# his' >/home/u/.ssh/authorized_keys; \
             chown -R v: /home/u",
        );
        land.apply_ok(&detach_command("k"));
        assert!(!land.accepts_bound_key("u"));
        assert_eq!(land.read_text("/home/u/.ssh/authorized_keys"), "# his\n");
    });
}

#[test]
fn changed_target_user_moves_key() {
    with_guest("u", &format!("{SECOND_USER}{OWN_FILE}"), "", |land| {
        land.apply_ok(&land.attach_command("yes"));
        land.set_target_user("v");
        land.apply_ok(&land.attach_command("yes"));
        assert!(land.accepts_bound_key("v") && !land.accepts_bound_key("u"));
        land.set_target_user("u");
        land.apply_ok(&detach_command("k"));
        assert!(!land.accepts_bound_key("v") && !land.accepts_bound_key("u"));
    });
}

/// The part of an intent that has put the block into this file, which was empty before.
fn build_file_intent(land: &GuestFixture<'_>, user: &str, uid: Option<u32>) -> Value {
    use base64ct::{Base64, Encoding};
    use keypair_agent::policy::types::ContentHash;
    let path = format!("/home/{user}/.ssh/authorized_keys");
    let content = land.read_text(&path);
    let key = land.read_state()["binding"]["publicKey"].clone();
    let mut kind = json!({ "user": user, "known": [key] });
    if let Some(uid) = uid {
        kind["uid"] = json!(uid);
    }
    json!({
        "path": path,
        "kind": { "authorizedKeys": kind },
        "change": { "block": { "removed": [], "inserted": Base64::encode_string(content.as_bytes()) } },
        "hashBefore": ContentHash::from_content(b""),
        "hashAfter": ContentHash::from_content(content.as_bytes()),
        "createsDirectory": null,
    })
}

/// Creates the remains of a killed command: the files of both users hold its block.
fn write_interrupted_state<'a>(land: &GuestFixture<'a>, uid: Option<u32>) {
    land.run_script("install -d -o 4300 -g 4300 -m 700 /home/v/.ssh; install -o 4300 -g 4300 -m 600 /dev/null /home/v/.ssh/authorized_keys");
    let outline = land.apply_ok(&land.attach_command("yes"));
    land.run_script("cat /home/u/.ssh/authorized_keys >/home/v/.ssh/authorized_keys");
    let mut state = land.read_state();
    let id = outline["commandId"].clone();
    state["intent"] = json!({
        "command": { "id": id, "origin": "console", "outline": outline },
        "keyFiles": [build_file_intent(land, "u", uid), build_file_intent(land, "v", Some(4300))],
        "sshdFiles": [],
    });
    state["binding"] = Value::Null;
    fs::write(land.guest.host_path("/var/lib/keypair-agent/state.json"), state.to_string()).unwrap();
}

/// KP-7.7.
#[test]
fn failed_restore_does_not_stop_other_files() {
    with_guest("u", &format!("{SECOND_USER}{OWN_FILE}"), "", |land| {
        write_interrupted_state(land, Some(4242));
        land.run_script("chmod o+w /home/v/.ssh");
        land.assert_refused(&detach_command("k"), "IO_ERROR", "/home/v/.ssh");
        assert_eq!(
            (
                land.read_text("/home/u/.ssh/authorized_keys").as_str(),
                land.count_blocks("/home/v/.ssh/authorized_keys")
            ),
            ("", 1)
        );
        land.run_script("chmod o-w /home/v/.ssh");
        land.apply_ok(&detach_command("k"));
        assert_eq!(land.read_text("/home/v/.ssh/authorized_keys"), "");
        assert!(land.read_state()["intent"].is_null());
    });
}

#[test]
fn rollback_for_deleted_user_removes_block() {
    for (uid, remove, stands) in [
        (Some(4242), "userdel u", true),
        (None, "userdel u", true),
        (Some(4242), "userdel -r u 2>/dev/null || true", false),
    ] {
        with_guest("u", &format!("{SECOND_USER}{OWN_FILE}"), "", |land| {
            write_interrupted_state(land, uid);
            land.set_target_user("v");
            land.run_script(remove);
            assert_eq!(land.count_blocks("/home/u/.ssh/authorized_keys"), usize::from(stands));
            land.apply_ok(&detach_command("k"));
            assert_eq!(land.count_blocks("/home/u/.ssh/authorized_keys"), 0);
            assert_eq!(land.read_text("/home/v/.ssh/authorized_keys"), "");
            assert!(land.read_state()["intent"].is_null());
        });
    }
}

/// A second name of the file, a directory in its place, the home `/`, and a path with a double slash.
/// KP-5.2, KP-5.12.
#[test]
fn odd_home_and_key_file_paths_are_handled() {
    with_guest("u", OWN_FILE, "", |land| {
        land.apply_ok(&land.attach_command("no"));
        land.run_script("sed -i 's,:/home/u:,://home/./u//:,' /etc/passwd");
        let result = land.apply_ok(&land.attach_command("no"));
        assert_eq!(land.count_blocks("/home/u/.ssh/authorized_keys"), 1, "{result}");
        land.run_script("ln /home/u/.ssh/authorized_keys /home/u/other");
        land.assert_refused(&detach_command("k"), "UNSAFE_PATH", "a block of ours still stands in");
        land.run_script("rm /home/u/other; mv /home/u/.ssh/authorized_keys /home/u/old; mkdir /home/u/.ssh/authorized_keys");
        land.assert_refused(&detach_command("k"), "UNSAFE_PATH", "a directory");
        land.run_script("rmdir /home/u/.ssh/authorized_keys; mv /home/u/old /home/u/.ssh/authorized_keys");
        land.apply_ok(&detach_command("k"));
        assert!(!land.accepts_bound_key("u"));
    });
    with_guest("root", "sed -i 's,:/root:,:/:,' /etc/passwd", "", |land| {
        land.apply_ok(&land.attach_command("no"));
        assert!(land.accepts_bound_key("root"));
        land.apply_ok(&detach_command("k"));
        assert!(!land.accepts_bound_key("root"));
        land.assert_undo();
    });
}
