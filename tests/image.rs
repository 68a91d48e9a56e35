//! `check --image` on a guest with its own system files: in a mount namespace, with an overlay over /etc.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::process::{Command, Output};

use serde_json::Value;
use support::{TestGuest, TestKey, attach_command, has_tools};

const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "unshare"];

/// Runs before each script: a system without any finding for an image.
const CLEAN_IMAGE_SCRIPT: &str = r#"
mount -t tmpfs -o mode=755 scratch "$AT"
mkdir "$AT/upper" "$AT/work" "$AT/units" "$AT/dbus" "$AT/root"
mount -t overlay -o "lowerdir=/etc,upperdir=$AT/upper,workdir=$AT/work" scratch /etc
if [ -d /usr/lib/systemd/system ]; then mount --bind "$AT/units" /usr/lib/systemd/system; fi
if [ -d /var/lib/dbus ]; then mount --bind "$AT/dbus" /var/lib/dbus; fi
rm -rf /etc/machine-id /etc/ssh/ssh_host_* /etc/cloud
mkdir -p /etc/cloud/cloud.cfg.d /etc/systemd/system
printf '[Service]\nExecStart=/usr/bin/ssh-keygen -A\n' >/etc/systemd/system/keys.service
"#;

/// Runs the agent after the script, in a namespace that ends with it.
fn run_after_script(guest: &TestGuest, script: &str, arguments: &[&str]) -> Output {
    let at = guest.path("at");
    let _ = std::fs::create_dir(&at);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &format!("{CLEAN_IMAGE_SCRIPT}{script}\nexec \"$0\" \"$@\"")]);
    command.arg(env!("CARGO_BIN_EXE_keypair-agent")).args(arguments).arg("--config").arg(&guest.config);
    command.env("AT", at).output().unwrap()
}

/// The names and remedies of the notes.
fn check_image_notes(guest: &TestGuest, script: &str) -> Vec<(String, String, Value)> {
    let output = run_after_script(guest, script, &["check", "--image", "--json"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "nothing of ours stands: {said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    let checks = report["checks"].as_array().unwrap().iter();
    let notes = checks.filter(|check| !check["remedy"].is_null());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    notes.map(|note| (text(&note["name"]), text(&note["remedy"]), note["file"].clone())).collect()
}

/// KP-8.7.
#[test]
fn check_image_notes_leftovers_without_failing() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let file = |path: &str| Value::from(path);
    assert_eq!(check_image_notes(&guest, ""), []);
    for (script, name, remedy, place) in [
        (
            "echo 0123456789abcdef0123456789abcdef >/etc/machine-id",
            "machine-id",
            "truncate -s 0 /etc/machine-id",
            file("/etc/machine-id"),
        ),
        (
            "touch /etc/ssh/ssh_host_rsa_key /etc/ssh/ssh_host_rsa_key.pub",
            "host keys",
            "rm /etc/ssh/ssh_host_*, and /etc/systemd/system/keys.service makes new ones",
            file("/etc/ssh/ssh_host_rsa_key"),
        ),
        (
            "rm /etc/systemd/system/keys.service",
            "host keys",
            "add a unit that runs `ssh-keygen -A` before it",
            Value::Null,
        ),
        (
            "printf 'disable_root: 0\\nssh_pwauth: 1\\n' >/etc/cloud/cloud.cfg",
            "cloud-init ssh_pwauth",
            "`ssh_pwauth: unchanged` leaves it to the platform",
            file("/etc/cloud/cloud.cfg"),
        ),
        (
            "touch /etc/cloud/cloud.cfg; echo 'disable_root: true' >/etc/cloud/cloud.cfg.d/9.cfg",
            "cloud-init disable_root",
            "`disable_root: false` lets them in as they are",
            file("/etc/cloud/cloud.cfg.d/9.cfg"),
        ),
    ] {
        assert_eq!(
            check_image_notes(&guest, script),
            [(name.to_owned(), remedy.to_owned(), place)],
            "{script}"
        );
    }
    let text =
        String::from_utf8(run_after_script(&guest, "echo x >/etc/machine-id", &["check", "--image"]).stdout)
            .unwrap();
    assert!(
        text.starts_with("An image of this guest would carry nothing of ours along; see the notes"),
        "{text}"
    );
    assert!(text.contains("\nnote  machine-id"), "{text}");
}

/// KP-8.7.
#[test]
fn check_image_notes_foreign_keys_and_old_component() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "builder");
    let other = TestKey::new(&guest.folder, "other");
    let keys = format!("# mine\n{}\nfrom=\"192.0.2.1\" {}\n", key.line, other.line);
    std::fs::write(guest.key_file(), keys).unwrap();
    guest.write_component_info("3.0.1041");
    let seen = check_image_notes(&guest, "");
    let names: Vec<&str> = seen.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["component", "keys"], "{seen:?}");

    // The agent's own key does not count as a foreign key, and it alone makes the check fail.
    guest.write_component_info("3.0.1042");
    guest.apply(&attach_command("my-test", &other, "yes"));
    let output = run_after_script(&guest, "", &["check", "--image", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let keys = checks.iter().find(|check| check["name"] == "keys").unwrap();
    assert!(keys["message"].as_str().unwrap().ends_with("every clone, ours aside: 1"), "{keys}");
    assert_eq!(guest.run_agent(&["undo"]).status.code(), Some(0));
    assert_eq!(
        run_after_script(&guest, "", &["check", "--image"]).status.code(),
        Some(0),
        "undo leaves nothing of ours"
    );
}
