//! The tested commands and their guests.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::support::{
    TestDir, TestKey, attach_command, detach_command, set_password_auth_command, with_field,
};

/// A command on a guest.
pub struct CrashScenario {
    pub name: &'static str,
    /// The place of the user's key file, and whether sshd has a drop-in directory.
    pub guest: GuestLayout,
    /// Console commands that run before.
    pub prepare: fn(&FixtureKeys) -> Vec<Value>,
    pub command: fn(&FixtureKeys) -> Value,
    /// Whether it is one of the four commands that are tested in full. The others add only their differences.
    pub is_main: bool,
    /// Whether an attach was interrupted before, right after the reload of sshd. Then its undo is tested.
    pub interrupted: bool,
}

/// The layout of a guest's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestLayout {
    /// A key file with lines of the user, and a drop-in directory.
    Standard,
    /// No drop-in directory: the setting goes into the main file.
    WithoutDropIns,
    /// Neither the key file nor its directory exists, below the user's home.
    WithoutKeyDirectory,
}

pub static SCENARIOS: [CrashScenario; 8] = [
    CrashScenario {
        name: "attach no",
        guest: GuestLayout::Standard,
        prepare: |_| vec![],
        command: |keys| attach_command("my-test", &keys.key, "no"),
        is_main: true,
        interrupted: false,
    },
    CrashScenario {
        name: "attach replace",
        guest: GuestLayout::Standard,
        prepare: |keys| vec![attach_command("my-test", &keys.key, "no")],
        command: |keys| with_field(attach_command("other", &keys.other, "yes"), "replace", json!(true)),
        is_main: true,
        interrupted: false,
    },
    CrashScenario {
        name: "detach",
        guest: GuestLayout::Standard,
        prepare: |keys| vec![attach_command("my-test", &keys.key, "no")],
        command: |_| detach_command("my-test"),
        is_main: true,
        interrupted: false,
    },
    CrashScenario {
        name: "setPasswordAuth no",
        guest: GuestLayout::Standard,
        prepare: |keys| vec![attach_command("my-test", &keys.key, "yes")],
        command: |_| set_password_auth_command("no"),
        is_main: true,
        interrupted: false,
    },
    CrashScenario {
        name: "setPasswordAuth yes",
        guest: GuestLayout::Standard,
        prepare: |keys| vec![attach_command("my-test", &keys.key, "no")],
        command: |_| set_password_auth_command("yes"),
        is_main: false,
        interrupted: false,
    },
    CrashScenario {
        name: "attach no, in the main file",
        guest: GuestLayout::WithoutDropIns,
        prepare: |_| vec![],
        command: |keys| attach_command("my-test", &keys.key, "no"),
        is_main: false,
        interrupted: false,
    },
    CrashScenario {
        name: "attach no, no directory",
        guest: GuestLayout::WithoutKeyDirectory,
        prepare: |_| vec![],
        command: |keys| attach_command("my-test", &keys.key, "no"),
        is_main: false,
        interrupted: false,
    },
    CrashScenario {
        name: "recovery",
        guest: GuestLayout::Standard,
        prepare: |_| vec![],
        command: |_| detach_command("nobodys"),
        is_main: false,
        interrupted: true,
    },
];

/// The keys of a guest. They are created once per process, because ssh-keygen(1) is slower than a write of the files.
pub struct FixtureKeys {
    /// The key that is bound or that the test binds.
    pub key: TestKey,
    pub other: TestKey,
    /// The user's own key, in the file from the start.
    pub own: TestKey,
}

impl FixtureKeys {
    /// Writes the keys into this folder.
    pub fn write_to(folder: &Path) -> Self {
        static MADE: OnceLock<[(String, String); 3]> = OnceLock::new();
        let made = MADE.get_or_init(|| {
            let folder = TestDir::new();
            ["me", "other", "own"].map(|name| {
                let TestKey { private, line } = TestKey::new(&folder, name);
                (fs::read_to_string(private).unwrap(), line)
            })
        });
        let [key, other, own] =
            [("me", &made[0]), ("other", &made[1]), ("own", &made[2])].map(|(name, key)| {
                use std::os::unix::fs::PermissionsExt;
                let (secret, line) = key;
                let private = folder.join(format!("{name}.key"));
                fs::write(&private, secret).unwrap();
                fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
                fs::write(private.with_extension("key.pub"), line).unwrap();
                TestKey { private, line: line.clone() }
            });
        Self { key, other, own }
    }

    pub fn all(&self) -> [&TestKey; 3] {
        [&self.key, &self.other, &self.own]
    }
}
