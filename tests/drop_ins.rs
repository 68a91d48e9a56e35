//! KP-6.12: a drop-in directory that is included under two names, and a drop-in of the agent that no Include reads
//! any more.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use support::{
    GuestOptions, TestGuest, TestKey, attach_command, has_tools, set_password_auth_command, wait_for,
};

fn apply_successfully(guest: &TestGuest, command: &Value) -> Value {
    let result = guest.apply(command);
    assert_eq!(result["status"], "succeeded", "{result}");
    result
}

fn run_undo(guest: &TestGuest) {
    let undone = guest.run_agent(&["undo"]);
    assert!(undone.status.success(), "{}", String::from_utf8_lossy(&undone.stderr));
}

/// Replaces the main file's own Include by these lines, and reloads sshd.
fn replace_include(guest: &TestGuest, lines: &str) {
    let main = fs::read_to_string(guest.path("sshd_config")).unwrap();
    let rest = main.split_once('\n').unwrap().1;
    fs::write(guest.path("sshd_config"), format!("{lines}{rest}")).unwrap();
    reload_sshd(guest);
}

fn reload_sshd(guest: &TestGuest) {
    let sockets = || {
        let text = fs::read_to_string("/proc/self/net/tcp").unwrap();
        let port = format!(":{:04X} ", guest.sshd.port);
        let own: Vec<String> = text.lines().filter(|line| line.contains(&port)).map(str::to_owned).collect();
        own
    };
    let pid = nix::unistd::Pid::from_raw(guest.sshd.pid() as i32);
    let inode = |line: &String| line.split_whitespace().nth(9).map(str::to_owned);
    let before: Vec<_> = sockets().iter().filter_map(inode).collect();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    wait_for("sshd's reload", || {
        let now = sockets();
        let is_new =
            |line: &String| line.contains(" 0A ") && inode(line).is_some_and(|it| !before.contains(&it));
        now.iter().any(is_new).then_some(())
    });
}

/// The tools that these tests need.
const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// Every drop-in of the agent below the guest's folder, by its path without links.
fn find_drop_ins(guest: &TestGuest) -> Vec<PathBuf> {
    let output = Command::new("find")
        .arg(guest.folder.path())
        .args(["-name", "00-keypair-agent.conf"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect()
}

/// KP-6.12.
#[test]
fn drop_in_directory_included_twice_gets_one_drop_in() {
    if !has_tools(&TOOLS) {
        return;
    }
    // The link first, the link second, the same name twice.
    for order in
        [["conf.d", "sshd_config.d"], ["sshd_config.d", "conf.d"], ["sshd_config.d", "sshd_config.d"]]
    {
        let guest = TestGuest::new();
        let key = TestKey::new(&guest.folder, "k");
        fs::write(guest.path("sshd_config.d/50-image.conf"), "X11Forwarding no\n").unwrap();
        symlink("sshd_config.d", guest.path("conf.d")).unwrap();
        replace_include(
            &guest,
            &order.map(|name| format!("Include {}/*.conf\n", guest.path(name).display())).concat(),
        );
        let before = guest.snapshot();
        for (asked, offers) in [("no", false), ("no", false), ("yes", true), ("no", false), ("yes", true)] {
            let result = apply_successfully(&guest, &attach_command("my-test", &key, asked));
            assert_eq!(guest.sshd.offers_password(), offers, "{order:?} {asked}: {result}");
            assert!(find_drop_ins(&guest).len() <= 1, "{:?}", find_drop_ins(&guest));
        }
        let again = guest.apply(&attach_command("my-test", &key, "yes"));
        assert_eq!(again["changed"], false, "{order:?}: {again}");
        run_undo(&guest);
        assert_eq!(find_drop_ins(&guest), Vec::<PathBuf>::new(), "{order:?}");
        let after = guest.snapshot().into_iter().filter(|file| !file.0.ends_with("keys/root"));
        assert_eq!(after.collect::<Vec<_>>(), before, "{order:?}");
        assert!(guest.sshd.offers_password());
    }
}

/// A guest with a bound key, and with passwords off by a drop-in that is no longer included.
fn create_guest_with_unread_drop_in(
    directory: &str,
    instead: impl Fn(&TestGuest) -> String,
) -> (TestGuest, TestKey) {
    let guest = TestGuest::with_options(GuestOptions::default());
    let key = TestKey::new(&guest.folder, "k");
    if directory != "sshd_config.d" {
        fs::rename(guest.path("sshd_config.d"), guest.path(directory)).unwrap();
        fs::create_dir(guest.path("sshd_config.d")).unwrap();
        replace_include(&guest, &format!("Include {}/*.conf\n", guest.path(directory).display()));
    }
    apply_successfully(&guest, &attach_command("my-test", &key, "no"));
    assert_eq!(find_drop_ins(&guest), [guest.path(directory).join("00-keypair-agent.conf")]);
    replace_include(&guest, &instead(&guest));
    assert!(guest.sshd.offers_password(), "it is not read any more");
    (guest, key)
}

/// KP-6.12.
#[test]
fn drop_in_no_longer_included_is_removed() {
    if !has_tools(&TOOLS) {
        return;
    }
    type IncludeReplacement = fn(&TestGuest) -> String;
    let cases: [(&str, IncludeReplacement); 4] = [
        // The Include is removed, commented out, replaced by another directory, or its pattern does not match the
        // drop-in.
        ("sshd_config.d", |_| String::new()),
        ("conf.d", |guest| format!("#Include {}/conf.d/*.conf\n", guest.folder.path().display())),
        ("conf.d", |guest| format!("Include {}/sshd_config.d/*.conf\n", guest.folder.path().display())),
        ("sshd_config.d", |guest| {
            format!("Include {}/sshd_config.d/9*.conf\n", guest.folder.path().display())
        }),
    ];
    for (at, (directory, instead)) in cases.into_iter().enumerate() {
        for command in ["no", "yes", "setPasswordAuth", "undo"] {
            let (guest, key) = create_guest_with_unread_drop_in(directory, instead);
            let unread = guest.path(directory).join("00-keypair-agent.conf");
            match command {
                "undo" => run_undo(&guest),
                "setPasswordAuth" => drop(apply_successfully(&guest, &set_password_auth_command("yes"))),
                asked => drop(apply_successfully(&guest, &attach_command("my-test", &key, asked))),
            }
            assert!(!unread.exists(), "{at} {command}");
            assert_eq!(guest.sshd.offers_password(), command != "no", "{at} {command}");
            if command == "no" {
                run_undo(&guest);
                assert!(guest.sshd.offers_password());
            }
            assert!(
                command != "undo" || find_drop_ins(&guest).is_empty(),
                "{at}: {:?}",
                find_drop_ins(&guest)
            );
        }
    }
}
