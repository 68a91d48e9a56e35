//! Lines that an administrator writes into the agent's drop-in, or between the markers of its block, are kept byte for byte
//! (KP-6.13): through every command, a crash and `undo`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::path::PathBuf;

use support::strace::{self, Point};
use support::{Form, Guest, Key, attach, available, detach, set_password_auth};

const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "strace"];

/// A carriage return, bytes that are not UTF-8, a `Match` block with a line in our words, no newline at the end.
const LINES: [&[u8]; 3] = [
    b"# caf\xe9\r\n\r\nX11Forwarding no\r\n",
    b"# theirs\n\nMatch User no.such.user\nPasswordAuthentication yes\n\tX11Forwarding no\n",
    b"PasswordAuthentication   yes\n# \xff\xfe\nMaxAuthTries 7",
];

fn read(path: PathBuf) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
}

#[track_caller]
fn done(guest: &Guest, command: &serde_json::Value) {
    let result = guest.apply(command);
    assert_eq!(result["status"], "succeeded", "{result}");
}

#[track_caller]
fn undo(guest: &Guest) {
    let output = guest.agent(&["undo"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// KP-6.13.
#[test]
fn lines_in_the_drop_in_are_kept_byte_for_byte() {
    if !available(&TOOLS) {
        return;
    }
    let guest = Guest::new();
    let key = Key::new(&guest.folder, "k");
    for theirs in LINES {
        for behind in [true, false] {
            if !behind && !theirs.ends_with(b"\n") {
                continue;
            }
            done(&guest, &attach("my-test", &key, "no"));
            let ours = read(guest.drop_in());
            let both = if behind { [ours, theirs.to_vec()] } else { [theirs.to_vec(), ours] }.concat();
            fs::write(guest.drop_in(), both).unwrap();
            for (command, offers) in [
                (attach("my-test", &key, "yes"), true),
                (set_password_auth("no"), false),
                (detach("my-test"), false),
            ] {
                let at = format!("{} {behind} {command}", theirs.escape_ascii());
                done(&guest, &command);
                let now = read(guest.drop_in());
                assert!(now.windows(theirs.len()).any(|part| part == theirs), "{at}: {}", now.escape_ascii());
                assert_eq!(guest.sshd.offers_password(), offers, "{at}: {}", now.escape_ascii());
            }
            undo(&guest);
            assert_eq!(read(guest.drop_in()).escape_ascii().to_string(), theirs.escape_ascii().to_string());
            let again = guest.agent(&["undo"]);
            assert_eq!(String::from_utf8(again.stdout).unwrap(), "# nothing of ours was found\n");
            fs::remove_file(guest.drop_in()).unwrap();
        }
    }
}

/// KP-6.13.
#[test]
fn a_crash_keeps_them_too_and_nothing_is_stuck() {
    if !available(&TOOLS) {
        return;
    }
    let reload = Point { call: "kill".to_owned(), nth: 1, words: "the reload".to_owned() };
    let guest = Guest::new();
    let key = Key::new(&guest.folder, "k");
    fs::write(guest.key_file(), "# mine\n").unwrap();
    for theirs in LINES {
        // Written before the command and after the crash.
        for is_before in [true, false] {
            let at = format!("{} {is_before}", theirs.escape_ascii());
            if is_before {
                fs::write(guest.drop_in(), theirs).unwrap();
            }
            strace::killed(&guest, &attach("my-test", &key, "no"), &reload);
            if !is_before {
                let ours = read(guest.drop_in());
                fs::write(guest.drop_in(), [ours, theirs.to_vec()].concat()).unwrap();
            }
            let result = guest.apply(&detach("my-test"));
            assert_eq!(
                (&result["status"], &result["changed"]),
                (&"succeeded".into(), &false.into()),
                "{at}: {result}"
            );
            assert_eq!(
                read(guest.drop_in()).escape_ascii().to_string(),
                theirs.escape_ascii().to_string(),
                "{at}"
            );
            assert!(!guest.sshd.lets_in(&key) && guest.sshd.offers_password(), "{at}");
            assert_eq!(fs::read_to_string(guest.key_file()).unwrap(), "# mine\n", "{at}");
            fs::remove_file(guest.drop_in()).unwrap();
        }
    }
}

/// KP-6.13.
#[test]
fn lines_between_the_markers_of_the_block() {
    if !available(&TOOLS) {
        return;
    }
    let guest = Guest::of(Form { without_drop_ins: true, ..Form::default() });
    let key = Key::new(&guest.folder, "k");
    let main = || read(guest.path("sshd_config"));
    for theirs in
        LINES.into_iter().filter(|theirs| theirs.ends_with(b"\n") && !theirs.starts_with(b"# theirs"))
    {
        let before = main();
        done(&guest, &attach("my-test", &key, "no"));
        let text = main();
        let end = 1 + text.windows(6).position(|part| part == b"\n# END").unwrap();
        fs::write(guest.path("sshd_config"), [&text[..end], theirs, &text[end..]].concat()).unwrap();
        for asked in ["yes", "no"] {
            done(&guest, &attach("my-test", &key, asked));
            assert!(main().windows(theirs.len()).any(|part| part == theirs), "{}", main().escape_ascii());
            assert_eq!(guest.sshd.offers_password(), asked == "yes");
        }
        undo(&guest);
        assert_eq!(main().escape_ascii().to_string(), [theirs, &before].concat().escape_ascii().to_string());
        fs::write(guest.path("sshd_config"), before).unwrap();
    }
}
