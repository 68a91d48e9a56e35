//! The commands that are killed and disturbed, and the guests on which they are.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::support::{Folder, Key, attach, detach, set_password_auth, with};

/// A command on a guest.
pub struct Subject {
    pub name: &'static str,
    /// Where the user's key file stands, and whether sshd has a drop-in directory.
    pub guest: Shape,
    /// At the console, before.
    pub prepare: fn(&Keys) -> Vec<Value>,
    pub command: fn(&Keys) -> Value,
    /// Whether it is one of the four that are tried at full width; the others add what differs in them.
    pub is_main: bool,
    /// Whether an attach was cut off before, right after sshd was told: what is tried is how it is taken back.
    pub interrupted: bool,
}

/// How a guest's files are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A key file with lines of the user's, a drop-in directory.
    Usual,
    /// No drop-in directory: the setting goes into the main file.
    WithoutDropIns,
    /// Neither key file nor its directory, below the user's home.
    WithoutKeyDirectory,
}

pub static SUBJECTS: [Subject; 8] = [
    Subject {
        name: "attach no",
        guest: Shape::Usual,
        prepare: |_| vec![],
        command: |keys| attach("my-test", &keys.key, "no"),
        is_main: true,
        interrupted: false,
    },
    Subject {
        name: "attach replace",
        guest: Shape::Usual,
        prepare: |keys| vec![attach("my-test", &keys.key, "no")],
        command: |keys| with(attach("other", &keys.other, "yes"), "replace", json!(true)),
        is_main: true,
        interrupted: false,
    },
    Subject {
        name: "detach",
        guest: Shape::Usual,
        prepare: |keys| vec![attach("my-test", &keys.key, "no")],
        command: |_| detach("my-test"),
        is_main: true,
        interrupted: false,
    },
    Subject {
        name: "setPasswordAuth no",
        guest: Shape::Usual,
        prepare: |keys| vec![attach("my-test", &keys.key, "yes")],
        command: |_| set_password_auth("no"),
        is_main: true,
        interrupted: false,
    },
    Subject {
        name: "setPasswordAuth yes",
        guest: Shape::Usual,
        prepare: |keys| vec![attach("my-test", &keys.key, "no")],
        command: |_| set_password_auth("yes"),
        is_main: false,
        interrupted: false,
    },
    Subject {
        name: "attach no, in the main file",
        guest: Shape::WithoutDropIns,
        prepare: |_| vec![],
        command: |keys| attach("my-test", &keys.key, "no"),
        is_main: false,
        interrupted: false,
    },
    Subject {
        name: "attach no, no directory",
        guest: Shape::WithoutKeyDirectory,
        prepare: |_| vec![],
        command: |keys| attach("my-test", &keys.key, "no"),
        is_main: false,
        interrupted: false,
    },
    Subject {
        name: "recovery",
        guest: Shape::Usual,
        prepare: |_| vec![],
        command: |_| detach("nobodys"),
        is_main: false,
        interrupted: true,
    },
];

/// Who uses a guest. Made once a process: ssh-keygen(1) takes longer than it takes to write them down.
pub struct Keys {
    /// Bound, or to be bound.
    pub key: Key,
    pub other: Key,
    /// The user's own, in the file from the start.
    pub own: Key,
}

impl Keys {
    /// Their files in this folder.
    pub fn write(folder: &Path) -> Self {
        static MADE: OnceLock<[(String, String); 3]> = OnceLock::new();
        let made = MADE.get_or_init(|| {
            let folder = Folder::new();
            ["me", "other", "own"].map(|name| {
                let Key { private, line } = Key::new(&folder, name);
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
                Key { private, line: line.clone() }
            });
        Self { key, other, own }
    }

    pub fn all(&self) -> [&Key; 3] {
        [&self.key, &self.other, &self.own]
    }
}
