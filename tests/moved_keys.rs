//! The bound key where something moved under it: the home, the files that sshd reads, the account, the volume. In guests
//! of their own, with a real sshd and real logins.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod matrix_support;
mod support;

use std::fs;
use std::process::Output;

use matrix_support::land::{Land, OWN_FILE, SECOND_USER, land};
use serde_json::{Value, json};
use support::detach;

#[test]
fn a_home_that_is_a_link_and_later_the_links_target() {
    let setup = "umount /root; rm -rf /root; mkdir -m 700 /var/roothome; ln -s var/roothome /root; \
                 mkdir -m 700 /root/.ssh; echo '# mine' >/root/.ssh/authorized_keys";
    land("root", setup, "", |land| {
        land.done(&land.attach("no"));
        assert!(land.lets_in("root"));
        land.sh("sed -i 's,:/root:,:/var/roothome:,' /etc/passwd");
        land.done(&land.attach("no"));
        assert_eq!(land.blocks("/var/roothome/.ssh/authorized_keys"), 1);
        assert!(land.lets_in("root"));
        let check = LandCheck::of(&land.agent(&["check", "--json"], ""));
        assert!(check.says("holds the key pair k"), "{check:?}");
        land.done(&detach("k"));
        assert_eq!(land.text("/var/roothome/.ssh/authorized_keys"), "# mine\n");
    });
    let setup = format!("mv /home /var/home; ln -s var/home /home; {OWN_FILE}");
    land("u", &setup, "", |land| {
        land.done(&land.attach("no"));
        land.sh("sed -i 's,:/home/u:,:/var/home/u:,' /etc/passwd");
        // The check compares files, not texts, and so does the drift.
        let check = LandCheck::of(&land.agent(&["check", "--json"], ""));
        assert!(check.says("holds the key pair k"), "{check:?}");
        land.done(&land.attach("no"));
        assert_eq!(land.blocks("/var/home/u/.ssh/authorized_keys"), 1);
        assert!(land.lets_in("u"));
        land.undone();
        assert_eq!(land.text("/var/home/u/.ssh/authorized_keys"), "");
    });
}

#[derive(Debug)]
struct LandCheck(String);

impl LandCheck {
    fn of(output: &Output) -> Self {
        Self(Land::said(output))
    }

    fn says(&self, words: &str) -> bool {
        self.0.contains(words)
    }
}

/// Whatever path sshd's configuration names, and whoever owns the link.
#[test]
fn below_the_home_no_link_is_followed_however_the_path_is_spelt() {
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
        // A directory of his own beside the home: he can rename root's links in it.
        ("mkdir -p /x/u; chown u: /x/u; ln -s /root/.ssh /x/u/s".to_owned(), "/x/%u/s/authorized_keys"),
    ] {
        land("u", &format!("{planted}{setup}"), &format!("AuthorizedKeysFile {path}\n"), |land| {
            for password_auth in ["yes", "no"] {
                land.refused(&land.attach(password_auth), "UNSAFE_PATH", "");
            }
            assert_eq!(land.text("/root/.ssh/authorized_keys"), "# root\n", "{setup}");
            assert_eq!(
                land.text("/x/root/keys") + &land.text("/x/v/keys"),
                if path == "/x/%u/keys" { "# x\n" } else { "" }
            );
            assert!(!land.lets_in("root"), "{setup}");
        });
    }
}

#[test]
fn the_home_moves_and_the_key_goes_with_it() {
    for move_it in
        ["mkdir /data; usermod -m -d /data/u u", "mkdir /data; cp -a /home/u /data/u; usermod -d /data/u u"]
    {
        land("u", OWN_FILE, "", |land| {
            land.done(&land.attach("yes"));
            land.sh(move_it);
            assert!(land.lets_in("u"));
            let result = land.done(&detach("k"));
            assert_eq!(result["changed"], true, "{result}");
            assert!(!land.lets_in("u"));
            let left =
                land.blocks("/data/u/.ssh/authorized_keys") + land.blocks("/home/u/.ssh/authorized_keys");
            assert_eq!(left, 0);

            land.sh("usermod -d /home/u u; mkdir -p /home/u; chown u: /home/u");
            land.sh(OWN_FILE);
            land.done(&land.attach("no"));
            land.sh("mkdir /data2; mv /home/u /data2/u; usermod -d /data2/u u");
            land.done(&land.attach("no"));
            assert_eq!(land.blocks("/data2/u/.ssh/authorized_keys"), 1);
            assert!(land.lets_in("u"));
            land.sh("mv /data2 /data3; usermod -d /data3/u u");
            land.undone();
            assert_eq!(land.blocks("/data3/u/.ssh/authorized_keys"), 0);
            assert!(!land.lets_in("u"));
        });
    }
}

/// KP-5.7.
#[test]
fn the_keys_move_with_authorized_keys_file() {
    let move_it = |land: &Land<'_>, to: &str, line: &str| {
        land.sh(&format!(
            "mkdir -p $(dirname {to}); mv /home/u/.ssh/authorized_keys {to}; chown u: {to}; chmod 644 {to}; \
             echo 'AuthorizedKeysFile {line}' >>/etc/ssh/sshd_config"
        ));
        land.reload();
        assert!(land.lets_in("u"));
    };
    for (to, line) in [
        ("/etc/ssh/keys/u", "/etc/ssh/keys/%u"),
        ("/home/u/.ssh/authorized_keys2", ".ssh/authorized_keys .ssh/authorized_keys2"),
        ("/etc/ssh/keys/all", "/etc/ssh/keys/all .ssh/authorized_keys"),
        ("/etc/ssh/keys/all", "/etc/ssh/keys/all"),
    ] {
        land("u", OWN_FILE, "", |land| {
            land.done(&land.attach("yes"));
            move_it(land, to, line);
            let result = land.done(&detach("k"));
            assert_eq!(result["changed"], true, "{result}");
            assert!(!land.lets_in("u"), "{line}");
            assert_eq!(land.blocks(to), 0);
        });
        land("u", OWN_FILE, "", |land| {
            land.done(&land.attach("no"));
            move_it(land, to, line);
            land.undone();
            assert!(!land.lets_in("u"), "{line}");
            assert_eq!(land.blocks(to), 0);
        });
    }
}

/// The file that sshd reads now cannot be reached safely and holds the block: that is a failure that says where.
#[test]
fn where_the_block_still_is_when_it_cannot_be_taken_out() {
    land("u", OWN_FILE, "", |land| {
        land.done(&land.attach("yes"));
        land.sh(
            "mkdir /keys; mv /home/u/.ssh/authorized_keys /keys/u; chown u: /keys/u; ln -s u /keys/l-u; \
             echo 'AuthorizedKeysFile /keys/l-%u' >>/etc/ssh/sshd_config",
        );
        land.reload();
        assert!(land.lets_in("u"));
        land.refused(&detach("k"), "UNSAFE_PATH", "/keys/l-u");
        let output = land.agent(&["undo"], "");
        assert!(output.status.code() == Some(1) && Land::said(&output).contains("/keys/l-u"), "{output:?}");
        assert!(land.lets_in("u"));
        land.sh("rm /keys/l-u; mv /keys/u /keys/l-u");
        land.done(&detach("k"));
        assert!(!land.lets_in("u"));
    });
    // One that leads to the file itself, and one that is somebody else's business, stop nothing.
    land("u", OWN_FILE, "AuthorizedKeysFile .ssh/authorized_keys .ssh/authorized_keys2 /fifo\n", |land| {
        land.sh("ln -s authorized_keys /home/u/.ssh/authorized_keys2; mkfifo /fifo");
        land.done(&land.attach("yes"));
        land.done(&detach("k"));
        assert_eq!(land.text("/home/u/.ssh/authorized_keys"), "");
    });
}

/// KP-5.7.
#[test]
fn a_block_that_is_nowhere_is_said_to_be_nowhere() {
    land("u", OWN_FILE, "", |land| {
        for (gone, place) in [
            (": >/home/u/.ssh/authorized_keys", "/home/u/.ssh/authorized_keys"),
            ("mv /home/u/.ssh /home/u/old", "/home/u/.ssh/authorized_keys"),
            ("rm -rf /home/u", "/home/u/.ssh/authorized_keys"),
        ] {
            land.done(&land.attach("yes"));
            land.sh(gone);
            let result = land.done(&detach("k"));
            let message = result["message"].as_str().unwrap();
            assert!(message.contains("no block of it was found in") && message.contains(place), "{result}");
            assert_eq!(result["changed"], false);
            assert!(land.state()["binding"].is_null());
        }
    });
}

/// KP-5.7.
#[test]
fn a_volume_that_is_not_mounted() {
    let setup = format!(
        "mkdir -p /vol; mount -t tmpfs -o mode=755 v /vol; mv /home/u /vol/u; mkdir /home/u; \
         mount --bind /vol/u /home/u; {OWN_FILE}"
    );
    land("u", &setup, "", |land| {
        land.done(&land.attach("no"));
        assert_eq!(land.state()["binding"]["mount"], "/home/u");
        for unmount in ["umount /home/u; chown u: /home/u", "rmdir /home/u"] {
            land.sh(unmount);
            let before = land.text("/var/lib/keypair-agent/state.json");
            for command in [detach("k"), land.attach("no"), land.attach("yes")] {
                land.refused(&command, "IO_ERROR", "/home/u, on which that file was, is not mounted");
            }
            let output = land.agent(&["undo"], "");
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(Land::said(&output).contains("is not mounted"), "{output:?}");
            assert!(!land.state()["binding"].is_null(), "{before}");
        }
        land.sh("mkdir /home/u; mount --bind /vol/u /home/u");
        assert!(land.lets_in("u"));
        land.done(&land.attach("no"));
        assert_eq!(land.blocks("/home/u/.ssh/authorized_keys"), 1);
        land.done(&detach("k"));
        assert!(!land.lets_in("u"));
    });
    // A mount of something else above it hides the volume too.
    land("u", &setup, "", |land| {
        land.done(&land.attach("yes"));
        land.sh("mount -t tmpfs h /home; mkdir /home/u; chown u: /home/u");
        land.refused(&detach("k"), "IO_ERROR", "/home/u, on which");
        land.sh("umount /home");
        // Where the block is found, nothing has to be mounted.
        land.sh("mkdir /data; cp -a /home/u /data/u; usermod -d /data/u u; umount /home/u");
        land.done(&detach("k"));
        assert_eq!(land.blocks("/data/u/.ssh/authorized_keys"), 0);
    });
    // What is mounted on itself, as systemd's ReadWritePaths are, is no volume; a state of 3.1.0 knows none.
    land("u", &format!("mount --bind /home /home; {OWN_FILE}"), "", |land| {
        land.done(&land.attach("yes"));
        assert_eq!(land.state()["binding"]["mount"], "/");
        land.make_the_state_older();
        land.sh("umount /home; rm /home/u/.ssh/authorized_keys");
        land.done(&detach("k"));
    });
}

/// The volume goes while a command is in flight: nothing else waits for it, and the key does not stay.
/// KP-7.11.
#[test]
fn a_volume_that_is_not_mounted_when_a_command_is_taken_back() {
    let setup = format!(
        "mkdir -p /vol; mount -t tmpfs -o mode=755 v /vol; mv /home/u /vol/u; mkdir /home/u; \
         mount --bind /vol/u /home/u; {OWN_FILE}"
    );
    land("u", &setup, "", |land| {
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
        land.guest.agent(&killed, &["apply", "-"], &land.attach("no").to_string());
        assert!(land.state()["intent"].is_object() && land.lets_in("u"), "it was not killed");
        land.sh("umount /home/u; chown u: /home/u");
        for password_auth in ["yes", "no", "yes"] {
            let command = support::set_password_auth(password_auth);
            let result = land.apply(&command);
            // Without a key `no` would lock him out, for that reason alone.
            let expected = if password_auth == "no" { json!("LOCKOUT_GUARD") } else { Value::Null };
            assert_eq!(result["reason"], expected, "{result}");
            assert!(land.state()["intent"].is_null() && land.state()["owed"].is_array(), "{result}");
        }
        let result = land.done(&support::set_password_auth("yes"));
        let says = "not taken back yet in /home/u/.ssh/authorized_keys, since /home/u";
        assert!(result["message"].as_str().unwrap().contains(says), "{result}");
        land.refused(&detach("k"), "IO_ERROR", says);
        let status = land.agent(&["status"], "");
        assert!(status.status.code() == Some(1) && Land::said(&status).contains(says), "{status:?}");
        let output = land.agent(&["undo"], "");
        assert!(output.status.code() == Some(1) && Land::said(&output).contains(says), "{output:?}");
        land.sh("mount --bind /vol/u /home/u");
        assert!(land.lets_in("u"));
        let result = land.done(&detach("k"));
        assert_eq!(result["changed"], false, "{result}");
        assert!(!land.lets_in("u") && land.state()["owed"].is_null());
        assert_eq!(land.text("/home/u/.ssh/authorized_keys"), "");
        // What is bound meanwhile is not taken out.
        land.guest.agent(&killed, &["apply", "-"], &land.attach("no").to_string());
        land.sh("umount /home/u; chown u: /home/u");
        land.done(&land.attach("yes"));
        land.sh("mount --bind /vol/u /home/u");
        land.done(&land.attach("yes"));
        assert!(land.lets_in("u") && land.state()["owed"].is_null());
    });
}

/// KP-3.36, KP-5.8.
#[test]
fn a_user_who_is_gone() {
    for is_old in [false, true] {
        for (remove, stands) in [("userdel u", true), ("userdel -r u 2>/dev/null || true", false)] {
            land("u", &format!("{SECOND_USER}{OWN_FILE}"), "", |land| {
                let path = "/home/u/.ssh/authorized_keys";
                land.done(&land.attach("yes"));
                if is_old {
                    land.make_the_state_older();
                }
                land.sh(remove);
                assert_eq!(land.blocks(path), usize::from(stands));
                let status = Land::said(&land.agent(&["status"], ""));
                assert!(status.contains("user u"), "{status}");
                let result = land.done(&detach("k"));
                assert!(
                    result["message"].as_str().unwrap().contains("user u, for whom it was bound"),
                    "{result}"
                );
                assert_eq!(result["changed"], stands, "{result}");
                assert_eq!(land.blocks(path), 0);
                let state = land.state();
                assert!(
                    state["binding"].is_null() && state.to_string().contains("user u, for whom"),
                    "{state}"
                );
            });
            land("u", &format!("{SECOND_USER}{OWN_FILE}"), "", |land| {
                let path = "/home/u/.ssh/authorized_keys";
                land.done(&land.attach("yes"));
                if is_old {
                    land.make_the_state_older();
                }
                land.sh(remove);
                land.target("v");
                let result = land.done(&land.attach("no"));
                assert!(
                    result["message"].as_str().unwrap().contains("user u, for whom it was bound"),
                    "{result}"
                );
                assert!(land.lets_in("v"));
                assert_eq!((land.blocks(path), land.state()["binding"]["user"].as_str()), (0, Some("v")));
                land.sh("userdel v");
                land.undone();
                assert_eq!(land.blocks("/home/v/.ssh/authorized_keys"), 0);
            });
        }
    }
}

/// KP-5.8.
#[test]
fn a_user_who_has_another_name_or_another_uid() {
    for change in ["usermod -l w u", "usermod -l w -m -d /home/w u", "usermod -u 4400 u"] {
        for command in ["detach", "undo", "attach"] {
            land("u", OWN_FILE, "", |land| {
                land.done(&land.attach("no"));
                land.sh(change);
                let name = if change.contains(" w") { "w" } else { "u" };
                assert!(land.lets_in(name), "{change}");
                match command {
                    "detach" => drop(land.done(&detach("k"))),
                    "undo" => land.undone(),
                    _ => {
                        land.target(name);
                        land.done(&land.attach("no"));
                        let home = if change.contains("/home/w") { "w" } else { "u" };
                        assert_eq!(land.blocks(&format!("/home/{home}/.ssh/authorized_keys")), 1);
                    }
                }
                assert_eq!(land.lets_in(name), command == "attach", "{change}, {command}");
            });
        }
    }
}

/// His files are the old account's, whose uid the state knows.
#[test]
fn a_user_who_was_made_anew_with_another_uid() {
    land("u", OWN_FILE, "", |land| {
        land.done(&land.attach("yes"));
        land.sh("userdel u; useradd -M -u 4400 -d /home/new -s /bin/sh u");
        let result = land.done(&detach("k"));
        assert_eq!(result["changed"], true, "{result}");
        assert_eq!(land.blocks("/home/u/.ssh/authorized_keys"), 0);
    });
}

/// The old home is somebody else's by now: nothing of his is touched, and the key goes from where sshd reads.
/// KP-5.8.
#[test]
fn an_old_home_that_is_somebody_elses() {
    land("u", &format!("{SECOND_USER}{OWN_FILE}"), "", |land| {
        land.done(&land.attach("yes"));
        land.sh(
            "mkdir /data; usermod -m -d /data/u u; mkdir -p /home/u/.ssh; echo '# his' >/home/u/.ssh/authorized_keys; \
             chown -R v: /home/u",
        );
        land.done(&detach("k"));
        assert!(!land.lets_in("u"));
        assert_eq!(land.text("/home/u/.ssh/authorized_keys"), "# his\n");
    });
}

#[test]
fn another_target_user_between_two_commands() {
    land("u", &format!("{SECOND_USER}{OWN_FILE}"), "", |land| {
        land.done(&land.attach("yes"));
        land.target("v");
        land.done(&land.attach("yes"));
        assert!(land.lets_in("v") && !land.lets_in("u"));
        land.target("u");
        land.done(&detach("k"));
        assert!(!land.lets_in("v") && !land.lets_in("u"));
    });
}

/// The part of an intent that put the block where it stands in this file, which was empty before.
fn file_intent(land: &Land<'_>, user: &str, uid: Option<u32>) -> Value {
    use base64ct::{Base64, Encoding};
    use keypair_agent::policy::types::ContentHash;
    let path = format!("/home/{user}/.ssh/authorized_keys");
    let content = land.text(&path);
    let key = land.state()["binding"]["publicKey"].clone();
    let mut kind = json!({ "user": user, "known": [key] });
    if let Some(uid) = uid {
        kind["uid"] = json!(uid);
    }
    json!({
        "path": path,
        "kind": { "authorizedKeys": kind },
        "change": { "block": { "removed": [], "inserted": Base64::encode_string(content.as_bytes()) } },
        "hashBefore": ContentHash::of(b""),
        "hashAfter": ContentHash::of(content.as_bytes()),
        "createsDirectory": null,
    })
}

/// What is left of a command that was killed: both users' files hold its block.
fn interrupted<'a>(land: &Land<'a>, uid: Option<u32>) {
    land.sh("install -d -o 4300 -g 4300 -m 700 /home/v/.ssh; install -o 4300 -g 4300 -m 600 /dev/null /home/v/.ssh/authorized_keys");
    let outline = land.done(&land.attach("yes"));
    land.sh("cat /home/u/.ssh/authorized_keys >/home/v/.ssh/authorized_keys");
    let mut state = land.state();
    let id = outline["commandId"].clone();
    state["intent"] = json!({
        "command": { "id": id, "origin": "console", "outline": outline },
        "keyFiles": [file_intent(land, "u", uid), file_intent(land, "v", Some(4300))],
        "sshdFiles": [],
    });
    state["binding"] = Value::Null;
    fs::write(land.guest.at("/var/lib/keypair-agent/state.json"), state.to_string()).unwrap();
}

/// KP-7.7.
#[test]
fn a_file_that_cannot_be_restored_stops_no_other() {
    land("u", &format!("{SECOND_USER}{OWN_FILE}"), "", |land| {
        interrupted(land, Some(4242));
        land.sh("chmod o+w /home/v/.ssh");
        land.refused(&detach("k"), "IO_ERROR", "/home/v/.ssh");
        assert_eq!(
            (land.text("/home/u/.ssh/authorized_keys").as_str(), land.blocks("/home/v/.ssh/authorized_keys")),
            ("", 1)
        );
        land.sh("chmod o-w /home/v/.ssh");
        land.done(&detach("k"));
        assert_eq!(land.text("/home/v/.ssh/authorized_keys"), "");
        assert!(land.state()["intent"].is_null());
    });
}

#[test]
fn what_was_done_for_a_user_who_is_gone_is_taken_back() {
    for (uid, remove, stands) in [
        (Some(4242), "userdel u", true),
        (None, "userdel u", true),
        (Some(4242), "userdel -r u 2>/dev/null || true", false),
    ] {
        land("u", &format!("{SECOND_USER}{OWN_FILE}"), "", |land| {
            interrupted(land, uid);
            land.target("v");
            land.sh(remove);
            assert_eq!(land.blocks("/home/u/.ssh/authorized_keys"), usize::from(stands));
            land.done(&detach("k"));
            assert_eq!(land.blocks("/home/u/.ssh/authorized_keys"), 0);
            assert_eq!(land.text("/home/v/.ssh/authorized_keys"), "");
            assert!(land.state()["intent"].is_null());
        });
    }
}

/// A second name of the file, a directory in its place, a home that is `/`, a slash too many.
/// KP-5.2, KP-5.12.
#[test]
fn odd_places() {
    land("u", OWN_FILE, "", |land| {
        land.done(&land.attach("no"));
        land.sh("sed -i 's,:/home/u:,://home/./u//:,' /etc/passwd");
        let result = land.done(&land.attach("no"));
        assert_eq!(land.blocks("/home/u/.ssh/authorized_keys"), 1, "{result}");
        land.sh("ln /home/u/.ssh/authorized_keys /home/u/other");
        land.refused(&detach("k"), "UNSAFE_PATH", "a block of ours still stands in");
        land.sh("rm /home/u/other; mv /home/u/.ssh/authorized_keys /home/u/old; mkdir /home/u/.ssh/authorized_keys");
        land.refused(&detach("k"), "UNSAFE_PATH", "a directory");
        land.sh("rmdir /home/u/.ssh/authorized_keys; mv /home/u/old /home/u/.ssh/authorized_keys");
        land.done(&detach("k"));
        assert!(!land.lets_in("u"));
    });
    land("root", "sed -i 's,:/root:,:/:,' /etc/passwd", "", |land| {
        land.done(&land.attach("no"));
        assert!(land.lets_in("root"));
        land.done(&detach("k"));
        assert!(!land.lets_in("root"));
        land.undone();
    });
}
