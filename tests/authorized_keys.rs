//! The user's key file: the agent's block is at its top, and every other byte stays as the user wrote it (KP-5.4 to
//! KP-5.6).

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::{
    GuestOptions, TestGuest, TestKey, attach_command, detach_command, has_tools, set_password_auth_command,
    warning_reasons,
};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

fn format_managed_block(name: &str, key: &TestKey) -> String {
    format!(
        "# BEGIN keypair-agent {name} (bound by the cloud; \"keypair-agent undo\" takes it out)\n{}\n\
         # END keypair-agent {name}\n",
        key.line
    )
}

/// KP-4.4, KP-4.11, KP-5.4, KP-5.5, KP-5.6, KP-5.9.
#[test]
fn key_file_content_mode_and_acl_are_preserved() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    let acl = has_tools(&["setfacl", "getfacl"]);
    for (content, mode) in [
        (&b""[..], 0o600),
        (b"# one\r\n\r\nssh-rsa AAAA broken\r\n", 0o640),
        (b"\xef\xbb\xbfssh-ed25519 AAAA", 0o644),
        (b"\xff\xfe\0 no text at all, no newline", 0o400),
    ] {
        fs::write(guest.key_file(), content).unwrap();
        fs::set_permissions(guest.key_file(), fs::Permissions::from_mode(mode)).unwrap();
        let entries = |set: bool| {
            if set {
                assert!(
                    Command::new("setfacl")
                        .args(["-m", "u:65534:r"])
                        .arg(guest.key_file())
                        .status()
                        .unwrap()
                        .success()
                );
            }
            Command::new("getfacl").arg("-cE").arg(guest.key_file()).output().unwrap().stdout
        };
        let before_acl = acl.then(|| entries(true));
        let before = fs::metadata(guest.key_file()).unwrap().mode();
        let result = guest.apply(&attach_command("my-test", &key, "yes"));
        assert_eq!(result["status"], "succeeded", "{result}");
        let attached = fs::read(guest.key_file()).unwrap();
        assert_eq!(attached, [format_managed_block("my-test", &key).as_bytes(), content].concat());
        assert!(guest.sshd.accepts_key(&key));

        let seen = fs::metadata(guest.key_file()).unwrap();
        let again = guest.apply(&attach_command("my-test", &key, "yes"));
        assert_eq!(again["changed"], false, "{again}");
        let unchanged = fs::metadata(guest.key_file()).unwrap();
        assert_eq!((unchanged.ino(), unchanged.mtime_nsec()), (seen.ino(), seen.mtime_nsec()));

        guest.apply(&detach_command("my-test"));
        assert_eq!(fs::read(guest.key_file()).unwrap(), content);
        assert_eq!(fs::metadata(guest.key_file()).unwrap().mode(), before);
        assert_eq!(acl.then(|| entries(false)), before_acl);
    }
}

/// KP-5.5.
#[test]
fn managed_block_edited_by_hand_is_repaired() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let (key, mine) = (TestKey::new(&guest.folder, "k"), TestKey::new(&guest.folder, "mine"));
    let lines = format_managed_block("my-test", &key);
    let [begin, ours, end] = lines.split_inclusive('\n').collect::<Vec<_>>()[..] else { panic!() };
    let his = format!("{}\n", mine.line);
    for edited in [
        format!("{begin}{his}{ours}{end}"),
        format!("{begin}{ours}{his}"),
        format!("{his}{ours}{end}"),
        format!("{begin}{begin}{ours}{end}{his}"),
        format!("{begin}{ours}{end}{end}{his}"),
        format!("{his}{begin}{ours}{end}"),
    ] {
        fs::write(guest.key_file(), &his).unwrap();
        guest.apply(&attach_command("my-test", &key, "yes"));
        fs::write(guest.key_file(), &edited).unwrap();
        let repaired = guest.apply(&attach_command("my-test", &key, "yes"));
        assert_eq!(repaired["changed"], true, "{edited}");
        assert_eq!(fs::read_to_string(guest.key_file()).unwrap(), format!("{lines}{his}"), "{edited}");
        fs::write(guest.key_file(), &edited).unwrap();
        guest.apply(&detach_command("my-test"));
        assert_eq!(fs::read_to_string(guest.key_file()).unwrap(), his, "{edited}");
    }
}

/// KP-4.5, KP-5.3.
#[test]
fn key_copies_in_key_file_cause_warnings() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    fs::write(guest.key_file(), format!("# mine\ncommand=\"echo no\",no-pty {}\n", key.line)).unwrap();
    let result = guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!(warning_reasons(&result), ["RESTRICTED_COPY"]);
    assert_eq!(result["warnings"][0]["line"], 2);
    assert!(guest.sshd.accepts_key(&key), "ours stands ahead of the copy");
    let result = guest.apply(&detach_command("my-test"));
    assert_eq!(warning_reasons(&result), ["KEY_STILL_PRESENT", "NO_WAY_IN"], "{result}");
    assert_eq!(result["keyName"], "my-test");

    fs::write(guest.key_file(), format!("{}\n", key.line)).unwrap();
    assert_eq!(warning_reasons(&guest.apply(&attach_command("my-test", &key, "no"))), [] as [&str; 0]);
    assert_eq!(warning_reasons(&guest.apply(&detach_command("my-test"))), ["KEY_STILL_PRESENT"]);
    fs::write(guest.key_file(), "").unwrap();
    guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!(warning_reasons(&guest.apply(&detach_command("my-test"))), ["NO_WAY_IN"]);
    assert_eq!(guest.apply(&set_password_auth_command("yes"))["status"], "succeeded");
    guest.apply(&attach_command("my-test", &key, "yes"));
    // Password login is on. Whether root can use it depends on root's own password.
    let expected: &[&str] = if root_has_password() { &[] } else { &["NO_WAY_IN"] };
    assert_eq!(warning_reasons(&guest.apply(&detach_command("my-test"))), expected);
}

/// KP-4.5.
#[test]
fn authorized_keys_command_key_warns_on_replace() {
    if !has_tools(&TOOLS) {
        return;
    }
    let mut guest = TestGuest::new();
    let (key, other) = (TestKey::new(&guest.folder, "k"), TestKey::new(&guest.folder, "l"));
    let line = key.line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    boot_with_prepended_lines(
        &mut guest,
        &format!("AuthorizedKeysCommand /bin/echo {line}\nAuthorizedKeysCommandUser root"),
    );
    assert_eq!(guest.apply(&attach_command("my-test", &key, "yes"))["status"], "succeeded");
    let result =
        guest.apply(&support::with_field(attach_command("other", &other, "no"), "replace", json!(true)));
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_eq!(warning_reasons(&result), ["KEY_STILL_PRESENT"], "{result}");
    assert!(guest.sshd.accepts_key(&key) && guest.sshd.accepts_key(&other), "as the warning says");
}

/// Restarts the guest's sshd with these lines before those of its main file.
fn boot_with_prepended_lines(guest: &mut TestGuest, lines: &str) {
    let text = fs::read_to_string(guest.path("sshd_config")).unwrap();
    fs::write(guest.path("sshd_config"), format!("{lines}\n{text}")).unwrap();
    guest.sshd.start_listener_again();
}

/// Whether root of this machine has a usable password.
fn root_has_password() -> bool {
    let shadow = fs::read_to_string("/etc/shadow").unwrap_or_default();
    shadow.lines().any(|line| line.starts_with("root:$"))
}

/// KP-4.5, KP-5.3.
#[test]
fn key_copies_in_all_authorized_keys_files_are_reported() {
    if !has_tools(&TOOLS) {
        return;
    }
    let mut guest = TestGuest::new();
    let (key, other) = (TestKey::new(&guest.folder, "k"), TestKey::new(&guest.folder, "l"));
    let (shared, second) = (guest.path("shared keys"), guest.path("keys2"));
    let all =
        format!("\"{}\" {}/keys/%u {}", shared.display(), guest.folder.path().display(), second.display());
    boot_with_prepended_lines(&mut guest, &format!("AuthorizedKeysFile {all}"));
    // A copy after the agent's block: after a detach it still gives access.
    fs::write(&second, format!("#\n{}\n", key.line)).unwrap();
    assert_eq!(warning_reasons(&guest.apply(&attach_command("my-test", &key, "no"))), [] as [&str; 0]);
    let result = guest.apply(&detach_command("my-test"));
    assert_eq!(warning_reasons(&result), ["KEY_STILL_PRESENT"], "{result}");
    assert_eq!(result["warnings"][0]["file"], second.to_string_lossy().as_ref());
    assert_eq!(result["warnings"][0]["line"], 2);
    assert!(guest.sshd.accepts_key(&key), "as the warning says");
    // The same if another key replaces the bound one.
    guest.apply(&attach_command("my-test", &key, "no"));
    let result =
        guest.apply(&support::with_field(attach_command("other", &other, "no"), "replace", json!(true)));
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_eq!(warning_reasons(&result), ["KEY_STILL_PRESENT"], "{result}");
    assert!(guest.sshd.accepts_key(&key) && guest.sshd.accepts_key(&other));
    // A restricted copy gives no access.
    fs::write(&second, format!("command=\"/bin/false \\\\\" x\" {}\n", key.line)).unwrap();
    let result = guest.apply(&detach_command("other"));
    assert_eq!(warning_reasons(&result), ["NO_WAY_IN"], "{result}");
    assert!(!guest.sshd.accepts_key(&key));
    // A copy before the agent's block takes precedence over it.
    fs::write(&second, "").unwrap();
    fs::write(&shared, format!("command=\"/bin/false\" {}\n", key.line)).unwrap();
    let result = guest.apply(&attach_command("my-test", &key, "yes"));
    let copy =
        result["warnings"].as_array().unwrap().iter().find(|warning| warning["reason"] == "RESTRICTED_COPY");
    let copy = copy.unwrap_or_else(|| panic!("{result}"));
    assert_eq!(copy["file"], shared.to_string_lossy().as_ref());
    assert_eq!(copy["line"], 1);
    assert!(!guest.sshd.accepts_key(&key));
}

#[test]
fn unusable_root_password_does_not_count_as_login() {
    if !has_tools(&TOOLS) {
        return;
    }
    if root_has_password() {
        eprintln!("SKIPPED: root of this machine has a password");
        return;
    }
    let guest = TestGuest::with_options(GuestOptions {
        main: "PubkeyAcceptedKeyTypes ssh-ed25519\n",
        ..GuestOptions::default()
    });
    let key = TestKey::new(&guest.folder, "k");
    assert_eq!(guest.apply(&set_password_auth_command("yes"))["status"], "succeeded");
    guest.apply(&attach_command("my-test", &key, "yes"));
    let rsa = TestKey::of_type(&guest.folder, "rsa", &["-t", "rsa", "-b", "2048"]);
    let result =
        guest.apply(&support::with_field(attach_command("other", &rsa, "yes"), "replace", json!(true)));
    assert_eq!(result["reason"], "LOCKOUT_GUARD", "{result}");
    assert!(guest.sshd.accepts_key(&key), "what let in lets in still");
    assert_eq!(warning_reasons(&guest.apply(&detach_command("my-test"))), ["NO_WAY_IN"]);
}

/// KP-5.6, KP-5.7.
#[test]
fn managed_block_follows_authorized_keys_file_setting() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::with_options(GuestOptions { main: "# stock\n", ..GuestOptions::default() });
    let key = TestKey::new(&guest.folder, "k");
    guest.apply(&attach_command("my-test", &key, "no"));
    let main = guest.path("sshd_config");
    let stock = fs::read_to_string(&main).unwrap();
    fs::create_dir(guest.path("other")).unwrap();
    fs::write(&main, stock.replace("/keys/%u", "/other/%u")).unwrap();
    let moved = guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!((&moved["status"], &moved["changed"]), (&json!("succeeded"), &json!(true)), "{moved}");
    assert_eq!(fs::read_to_string(guest.key_file()).unwrap(), "", "not in the old place");
    assert_eq!(fs::read_to_string(guest.path("other/root")).unwrap(), format_managed_block("my-test", &key));

    // A detach uses the file with the block, whatever sshd's settings are now, and needs no sshd.
    fs::write(&main, "nonsense\n").unwrap();
    let result = guest.apply(&detach_command("my-test"));
    assert_eq!((&result["status"], &result["effective"]), (&json!("succeeded"), &Value::Null), "{result}");
    assert_eq!(fs::read_to_string(guest.path("other/root")).unwrap(), "");
}

/// Without SELinux, some kernels require CAP_SYS_ADMIN to set a label that an earlier SELinux system left. The unit
/// does not have it, so the call fails with EPERM. Here strace injects the error, since not every kernel requires the
/// right.
#[test]
fn stale_selinux_label_eperm_is_ignored() {
    if !has_tools(&[&TOOLS[..], &["strace", "setfattr"]].concat()) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    fs::write(guest.key_file(), "# the user's\n").unwrap();
    let labelled = Command::new("setfattr")
        .args(["-n", "security.selinux", "-v", "system_u:object_r:ssh_home_t:s0"])
        .arg(guest.key_file())
        .status()
        .unwrap();
    if !labelled.success() || Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("SKIPPED: this file system takes no label, or SELinux runs here");
        return;
    }
    let command = guest.path("command.json");
    fs::write(&command, attach_command("my-test", &key, "yes").to_string()).unwrap();
    let agent = guest.agent_command(&["apply", command.to_str().unwrap()]);
    let trace = guest.path("trace");
    let output = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=fsetxattr", "-e", "inject=fsetxattr:error=EPERM", "-o"])
        .arg(&trace)
        .arg(agent.get_program())
        .args(agent.get_args())
        .output()
        .unwrap();
    assert!(fs::read_to_string(trace).unwrap().contains("\"security.selinux\""));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["status"], "succeeded", "{result}");
    assert!(guest.sshd.accepts_key(&key));
}

#[test]
fn key_lines_with_escapes_or_nul_are_parsed_as_sshd() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    for first in [
        format!("command=\"/bin/false \\\\\" x\" {}", key.line),
        format!("command=\"/bin/false\" {}\0 x", key.line),
    ] {
        fs::write(guest.key_file(), format!("{first}\n{}\n", key.line)).unwrap();
        assert!(!guest.sshd.accepts_key(&key), "{first:?}: its command runs");
        let result = guest.apply(&set_password_auth_command("no"));
        assert_eq!(result["reason"], "LOCKOUT_GUARD", "{first:?}: {result}");
    }
    // sshd ignores such a line, so its key has no effect on later lines.
    for first in
        [format!("bogus {}", key.line), format!("command=\"x\"\0 {}", key.line), format!("\0{}", key.line)]
    {
        fs::write(guest.key_file(), format!("{first}\n{}\n", key.line)).unwrap();
        assert!(guest.sshd.accepts_key(&key), "{first:?}");
        assert_eq!(guest.apply(&set_password_auth_command("no"))["status"], "succeeded", "{first:?}");
        guest.apply(&set_password_auth_command("yes"));
    }
}
