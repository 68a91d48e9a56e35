//! The agent refuses a command that is sure to fail before it changes the first file. One failed step of an undo does
//! not stop the other steps (KP-7.7 and KP-7.9): a newly bound key is removed even if something else cannot be
//! restored.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use serde_json::Value;
use support::strace::{self, SyscallPoint};
use support::{
    GuestOptions, TestGuest, TestKey, attach_command, detach_command, has_tools, set_password_auth_command,
};

const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "strace"];

fn set_file_flag(flag: &str, path: &Path) -> bool {
    let done = Command::new("chattr").arg(flag).arg(path).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

fn message(result: &Value) -> &str {
    result["message"].as_str().unwrap()
}

/// An entry in the drop-in's place that the agent cannot replace, and how to remove it.
struct Obstacle {
    name: &'static str,
    reason: &'static str,
    put: fn(&Path) -> bool,
    mend: fn(&Path),
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

const OBSTACLES: [Obstacle; 10] = [
    Obstacle {
        name: "a link to null",
        reason: "UNSAFE_PATH",
        put: |path| symlink("/dev/null", path).is_ok(),
        mend: remove,
    },
    Obstacle {
        // sshd itself refuses such a configuration.
        name: "a link that leads nowhere",
        reason: "SSHD_CONFIG_ALREADY_INVALID",
        put: |path| symlink("/nowhere/at/all", path).is_ok(),
        mend: remove,
    },
    Obstacle {
        name: "a link to another drop-in",
        reason: "UNSAFE_PATH",
        put: |path| symlink("50-image.conf", path).is_ok(),
        mend: remove,
    },
    Obstacle {
        name: "a directory",
        reason: "UNSAFE_PATH",
        put: |path| fs::create_dir(path).is_ok(),
        mend: |path| fs::remove_dir(path).unwrap(),
    },
    Obstacle {
        name: "a FIFO",
        reason: "UNSAFE_PATH",
        put: |path| mkfifo(path, Mode::S_IRWXU).is_ok(),
        mend: remove,
    },
    Obstacle {
        name: "a socket",
        reason: "UNSAFE_PATH",
        put: |path| UnixListener::bind(path).is_ok(),
        mend: remove,
    },
    Obstacle {
        name: "a device",
        reason: "UNSAFE_PATH",
        put: |path| mknod(path, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 5)).is_ok(),
        mend: remove,
    },
    Obstacle {
        name: "a file with two names",
        reason: "UNSAFE_PATH",
        put: |path| {
            fs::write(path.with_extension("other"), "# mine\n").is_ok()
                && fs::hard_link(path.with_extension("other"), path).is_ok()
        },
        mend: |path| {
            remove(path);
            remove(&path.with_extension("other"));
        },
    },
    Obstacle {
        name: "an immutable file",
        reason: "IO_ERROR",
        put: |path| fs::write(path, "PasswordAuthentication yes\n").is_ok() && set_file_flag("+i", path),
        mend: |path| {
            set_file_flag("-i", path);
            remove(path);
        },
    },
    Obstacle {
        name: "an immutable directory",
        reason: "IO_ERROR",
        put: |path| set_file_flag("+i", path.parent().unwrap()),
        mend: |path| {
            set_file_flag("-i", path.parent().unwrap());
            let _ = fs::remove_file(path);
        },
    },
];

/// KP-7.9.
#[test]
fn unwritable_drop_in_is_refused_before_any_change() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    fs::write(guest.path("sshd_config.d/50-image.conf"), "X11Forwarding no\n").unwrap();
    let drop_in = guest.drop_in();
    for Obstacle { name, reason, put, mend } in OBSTACLES {
        if !put(&drop_in) {
            eprintln!("SKIPPED: {name} cannot be made here");
            mend(&drop_in);
            continue;
        }
        let before = guest.snapshot();
        for asked in ["no", "no"] {
            let result = guest.apply(&attach_command("my-test", &key, asked));
            assert_eq!(
                (&result["status"], &result["changed"]),
                (&"failed".into(), &false.into()),
                "{name}: {result}"
            );
            assert_eq!(result["reason"], reason, "{name}: {result}");
            let at = drop_in.parent().unwrap().to_str().unwrap();
            assert!(message(&result).contains(at), "{name}: {result}");
            assert!(
                ["remove it", "chattr -i", "copy it", "correct it"]
                    .iter()
                    .any(|it| message(&result).contains(it)),
                "{result}"
            );
            assert!(!guest.key_file().exists(), "{name}: the key file was touched");
            assert_eq!(guest.snapshot(), before, "{name}");
            assert!(!guest.sshd.accepts_key(&key), "{name}");
        }
        mend(&drop_in);
    }
    let result = guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
    assert!(guest.sshd.accepts_key(&key) && !guest.sshd.offers_password());
}

/// Runs `apply` as under a unit that makes a directory read-only.
fn apply_with_read_only_dir(guest: &TestGuest, directory: &str, command: &Value) -> Output {
    let input = guest.path("command.json");
    fs::write(&input, command.to_string()).unwrap();
    let apply = guest.agent_command(&["apply", input.to_str().unwrap()]);
    Command::new("unshare")
        .args(["--mount", "sh", "-ec"])
        .arg("mount --bind \"$0\" \"$0\"; mount -o remount,bind,ro \"$0\"; exec \"$@\"")
        .arg(guest.path(directory))
        .arg(apply.get_program())
        .args(apply.get_args())
        .output()
        .unwrap()
}

#[test]
fn read_only_directory_is_io_error() {
    if !has_tools(&[&TOOLS[..], &["unshare", "mount"]].concat()) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    for directory in ["sshd_config.d", "keys"] {
        let before = guest.snapshot();
        let output = apply_with_read_only_dir(&guest, directory, &attach_command("my-test", &key, "no"));
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&result["reason"], &result["changed"]), (&"IO_ERROR".into(), &false.into()), "{result}");
        assert!(message(&result).contains("Read-only file system"), "{result}");
        fs::remove_file(guest.path("command.json")).unwrap();
        assert_eq!(guest.snapshot(), before, "{directory}");
    }
    assert_eq!(guest.apply(&attach_command("my-test", &key, "no"))["status"], "succeeded");
}

/// A guest whose user has a line in the key file, and an attach that was killed at this point.
fn create_guest_with_killed_attach(nth: &SyscallPoint) -> (TestGuest, TestKey) {
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "me");
    fs::write(guest.key_file(), "# mine\n").unwrap();
    assert_eq!(guest.apply(&detach_command("nothing"))["status"], "succeeded");
    strace::kill_apply_at(&guest, &attach_command("my-test", &key, "no"), nth);
    assert!(guest.sshd.accepts_key(&key), "it was not killed where it should have been");
    (guest, key)
}

/// The key is in place, and the drop-in would be next.
fn drop_in_rename_point() -> SyscallPoint {
    SyscallPoint { call: "renameat2".to_owned(), nth: 1, words: "the drop-in".to_owned() }
}

/// Both files are written, and sshd is not reloaded yet.
fn reload_point() -> SyscallPoint {
    SyscallPoint { call: "kill".to_owned(), nth: 1, words: "the reload".to_owned() }
}

fn read_intent(guest: &TestGuest) -> Value {
    let state: Value = serde_json::from_slice(&fs::read(guest.path("state/state.json")).unwrap()).unwrap();
    state["intent"].clone()
}

/// KP-7.7.
#[test]
fn obstacle_in_drop_in_place_does_not_keep_key() {
    if !has_tools(&TOOLS) {
        return;
    }
    let puts: [fn(&Path); 2] =
        [|path| symlink("/dev/null", path).unwrap(), |path| fs::create_dir(path).unwrap()];
    for (point, put) in [drop_in_rename_point, reload_point].into_iter().zip(puts) {
        let (guest, key) = create_guest_with_killed_attach(&point());
        let _ = fs::remove_file(guest.drop_in());
        put(&guest.drop_in());
        let result = guest.apply(&detach_command("my-test"));
        assert_eq!(result["status"], "succeeded", "{result}");
        assert!(!guest.sshd.accepts_key(&key), "{result}");
        assert_eq!(fs::read_to_string(guest.key_file()).unwrap(), "# mine\n");
        assert_eq!(read_intent(&guest), Value::Null);
        assert!(guest.sshd.offers_password());
        // The obstacle still prevents a write to this path, but nothing else.
        assert_eq!(guest.apply(&attach_command("my-test", &key, "no"))["reason"], "UNSAFE_PATH");
        let undone = guest.run_agent(&["undo"]);
        assert!(undone.status.success(), "{}", String::from_utf8_lossy(&undone.stderr));
    }
}

/// KP-7.7.
#[test]
fn unrestorable_drop_in_keeps_key_while_passwords_off() {
    if !has_tools(&TOOLS) {
        return;
    }
    let (guest, key) = create_guest_with_killed_attach(&reload_point());
    if !set_file_flag("+i", &guest.drop_in()) {
        eprintln!("SKIPPED: this file system has no immutable flag");
        return;
    }
    for _ in 0..2 {
        let result = guest.apply(&set_password_auth_command("yes"));
        assert_eq!(result["reason"], "IO_ERROR", "{result}");
        for file in [guest.drop_in(), guest.key_file()] {
            assert!(message(&result).contains(file.to_str().unwrap()), "{result}");
        }
        assert!(message(&result).contains("only way in"), "{result}");
        assert!(guest.sshd.accepts_key(&key), "{result}");
    }
    // Another line allows passwords anyway, so access does not depend on the key.
    let main = fs::read_to_string(guest.path("sshd_config")).unwrap();
    fs::write(guest.path("sshd_config"), format!("PasswordAuthentication yes\n{main}")).unwrap();
    let result = guest.apply(&set_password_auth_command("yes"));
    assert!(
        result["status"] == "failed" && message(&result).contains(guest.drop_in().to_str().unwrap()),
        "{result}"
    );
    assert!(!guest.sshd.accepts_key(&key) && guest.sshd.offers_password(), "{result}");
    assert!(set_file_flag("-i", &guest.drop_in()));
    let result = guest.apply(&detach_command("my-test"));
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_eq!((read_intent(&guest), guest.drop_in().exists()), (Value::Null, false));
}

#[test]
fn undo_removes_every_removable_key() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::with_options(GuestOptions { main: "", ..GuestOptions::default() });
    let key = TestKey::new(&guest.folder, "k");
    let folder = guest.folder.path().display();
    let main = fs::read_to_string(guest.path("sshd_config")).unwrap();
    let both = format!("AuthorizedKeysFile {folder}/keys/%u {folder}/keys2/%u");
    fs::write(
        guest.path("sshd_config"),
        main.replace(&format!("AuthorizedKeysFile {folder}/keys/%u"), &both),
    )
    .unwrap();
    assert_eq!(guest.apply(&attach_command("my-test", &key, "yes"))["status"], "succeeded");
    // A copy of the block, in a directory that everybody can write to.
    fs::create_dir(guest.path("keys2")).unwrap();
    fs::copy(guest.key_file(), guest.path("keys2/root")).unwrap();
    fs::set_permissions(guest.path("keys2"), fs::Permissions::from_mode(0o777)).unwrap();
    let output = guest.run_agent(&["undo"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("keys2"), "{output:?}");
    assert_eq!(fs::read_to_string(guest.key_file()).unwrap(), "");
    fs::set_permissions(guest.path("keys2"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(guest.run_agent(&["undo"]).status.code(), Some(0));
    assert_eq!(fs::read_to_string(guest.path("keys2/root")).unwrap(), "");
}
