//! The agent keeps an administrator's lines in its drop-in and between the markers of its block, byte for byte
//! (KP-6.13): through every command, a crash and `undo`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::path::PathBuf;

use support::strace::{self, SyscallPoint};
use support::{
    GuestOptions, TestGuest, TestKey, attach_command, detach_command, has_tools, set_password_auth_command,
};

const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "strace"];

/// A carriage return, bytes that are not UTF-8, a `Match` block with a line like the agent's own, no newline at the
/// end.
const ADMIN_LINES: [&[u8]; 3] = [
    b"# caf\xe9\r\n\r\nX11Forwarding no\r\n",
    b"# theirs\n\nMatch User no.such.user\nPasswordAuthentication yes\n\tX11Forwarding no\n",
    b"PasswordAuthentication   yes\n# \xff\xfe\nMaxAuthTries 7",
];

fn read_or_empty(path: PathBuf) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
}

#[track_caller]
fn apply_successfully(guest: &TestGuest, command: &serde_json::Value) {
    let result = guest.apply(command);
    assert_eq!(result["status"], "succeeded", "{result}");
}

#[track_caller]
fn run_undo(guest: &TestGuest) {
    let output = guest.run_agent(&["undo"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// KP-6.13.
#[test]
fn drop_in_admin_lines_are_kept_byte_for_byte() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    for theirs in ADMIN_LINES {
        for behind in [true, false] {
            if !behind && !theirs.ends_with(b"\n") {
                continue;
            }
            apply_successfully(&guest, &attach_command("my-test", &key, "no"));
            let ours = read_or_empty(guest.drop_in());
            let both = if behind { [ours, theirs.to_vec()] } else { [theirs.to_vec(), ours] }.concat();
            fs::write(guest.drop_in(), both).unwrap();
            for (command, offers) in [
                (attach_command("my-test", &key, "yes"), true),
                (set_password_auth_command("no"), false),
                (detach_command("my-test"), false),
            ] {
                let at = format!("{} {behind} {command}", theirs.escape_ascii());
                apply_successfully(&guest, &command);
                let now = read_or_empty(guest.drop_in());
                assert!(now.windows(theirs.len()).any(|part| part == theirs), "{at}: {}", now.escape_ascii());
                assert_eq!(guest.sshd.offers_password(), offers, "{at}: {}", now.escape_ascii());
            }
            run_undo(&guest);
            assert_eq!(
                read_or_empty(guest.drop_in()).escape_ascii().to_string(),
                theirs.escape_ascii().to_string()
            );
            let again = guest.run_agent(&["undo"]);
            assert_eq!(String::from_utf8(again.stdout).unwrap(), "# nothing of ours was found\n");
            fs::remove_file(guest.drop_in()).unwrap();
        }
    }
}

/// KP-6.13.
#[test]
fn drop_in_admin_lines_survive_crash() {
    if !has_tools(&TOOLS) {
        return;
    }
    let reload = SyscallPoint { call: "kill".to_owned(), nth: 1, words: "the reload".to_owned() };
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    fs::write(guest.key_file(), "# mine\n").unwrap();
    for theirs in ADMIN_LINES {
        // The lines are written before the command, or after the crash.
        for is_before in [true, false] {
            let at = format!("{} {is_before}", theirs.escape_ascii());
            if is_before {
                fs::write(guest.drop_in(), theirs).unwrap();
            }
            strace::kill_apply_at(&guest, &attach_command("my-test", &key, "no"), &reload);
            if !is_before {
                let ours = read_or_empty(guest.drop_in());
                fs::write(guest.drop_in(), [ours, theirs.to_vec()].concat()).unwrap();
            }
            let result = guest.apply(&detach_command("my-test"));
            assert_eq!(
                (&result["status"], &result["changed"]),
                (&"succeeded".into(), &false.into()),
                "{at}: {result}"
            );
            assert_eq!(
                read_or_empty(guest.drop_in()).escape_ascii().to_string(),
                theirs.escape_ascii().to_string(),
                "{at}"
            );
            assert!(!guest.sshd.accepts_key(&key) && guest.sshd.offers_password(), "{at}");
            assert_eq!(fs::read_to_string(guest.key_file()).unwrap(), "# mine\n", "{at}");
            fs::remove_file(guest.drop_in()).unwrap();
        }
    }
}

/// KP-6.13.
#[test]
fn managed_block_admin_lines_are_kept() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::with_options(GuestOptions { without_drop_ins: true, ..GuestOptions::default() });
    let key = TestKey::new(&guest.folder, "k");
    let main = || read_or_empty(guest.path("sshd_config"));
    for theirs in
        ADMIN_LINES.into_iter().filter(|theirs| theirs.ends_with(b"\n") && !theirs.starts_with(b"# theirs"))
    {
        let before = main();
        apply_successfully(&guest, &attach_command("my-test", &key, "no"));
        let text = main();
        let end = 1 + text.windows(6).position(|part| part == b"\n# END").unwrap();
        fs::write(guest.path("sshd_config"), [&text[..end], theirs, &text[end..]].concat()).unwrap();
        for asked in ["yes", "no"] {
            apply_successfully(&guest, &attach_command("my-test", &key, asked));
            assert!(main().windows(theirs.len()).any(|part| part == theirs), "{}", main().escape_ascii());
            assert_eq!(guest.sshd.offers_password(), asked == "yes");
        }
        run_undo(&guest);
        assert_eq!(main().escape_ascii().to_string(), [theirs, &before].concat().escape_ascii().to_string());
        fs::write(guest.path("sshd_config"), before).unwrap();
    }
}
