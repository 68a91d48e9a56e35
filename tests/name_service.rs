//! The agent uses the answer of getspnam(3) about an account, whatever source of nsswitch.conf(5) it comes from
//! (KP-6.20). The source is a test module in a mount namespace.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::scene::run_in_namespaces;
use support::{GuestOptions, TestGuest, TestKey, attach_command, has_tools};

/// The tools that these tests need.
const TOOLS: [&str; 6] = ["sshd", "ssh", "ssh-keygen", "mount", "ip", "getent"];

/// A module with the name of one that every glibc contains and that is not in use: nss(5). It reads files like
/// libnss-extrausers.
const NSS_MODULE_SOURCE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <nss.h>
#include <pwd.h>
#include <shadow.h>
#include <stdio.h>
#include <string.h>
#define FIND(file, type, get, field) \
  FILE *from = fopen(FOLDER file, "re"); type *found; \
  while (from && !get(from, entry, text, length, &found)) \
    if (!strcmp(entry->field, name)) { fclose(from); return NSS_STATUS_SUCCESS; } \
  if (from) fclose(from); \
  *error = ENOENT; return NSS_STATUS_NOTFOUND
enum nss_status _nss_hesiod_getpwnam_r(const char *name, struct passwd *entry, char *text, size_t length, int *error) {
  FIND("/nss-passwd", struct passwd, fgetpwent_r, pw_name);
}
enum nss_status _nss_hesiod_getspnam_r(const char *name, struct spwd *entry, char *text, size_t length, int *error) {
  FIND("/nss-shadow", struct spwd, fgetspent_r, sp_namp);
}
"#;

fn run_successfully(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn bind_mount(from: &Path, to: &Path) {
    run_successfully(Command::new("mount").arg("--bind").arg(from).arg(to));
}

/// The file of the module that the test replaces.
fn find_nss_module() -> Option<PathBuf> {
    let compiles = Command::new("gcc").arg("--version").output().is_ok_and(|said| said.status.success());
    let directories = ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64"];
    let found = directories.map(|directory| Path::new(directory).join("libnss_hesiod.so.2"));
    let found = found.into_iter().find(|file| file.exists()).filter(|_| compiles);
    if found.is_none() {
        eprintln!("SKIPPED: a name service of our own needs gcc, and a libnss_hesiod.so.2 to put it over");
    }
    found
}

/// A guest with an account that only this name service knows. sshd uses PAM for it.
fn create_guest_with_nss_module(module: &Path) -> TestGuest {
    let guest = TestGuest::with_options(GuestOptions {
        agent: "target_user = \"carol\"",
        arguments: &["-o", "UsePAM=yes", "-o", "AuthorizedKeysFile=.ssh/authorized_keys"],
        ..GuestOptions::default()
    });
    let home = guest.path("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(61_234), Some(0)).unwrap();
    let passwd = format!("carol:x:61234:0::{}:/bin/sh\n", home.display());
    fs::write(guest.path("nss-passwd"), passwd).unwrap();
    fs::write(guest.path("module.c"), NSS_MODULE_SOURCE).unwrap();
    run_successfully(
        Command::new("gcc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(guest.path("module.so"))
            .arg(format!("-DFOLDER=\"{}\"", guest.folder.path().display()))
            .arg(guest.path("module.c")),
    );
    let switch = "passwd: files hesiod\nshadow: files hesiod\ngroup: files\nhosts: files\n";
    fs::write(guest.path("nsswitch.conf"), switch).unwrap();
    bind_mount(&guest.path("module.so"), &fs::canonicalize(module).unwrap());
    bind_mount(&guest.path("nsswitch.conf"), Path::new("/etc/nsswitch.conf"));
    guest
}

/// KP-6.20.
#[test]
fn shadow_entry_from_nss_module_is_checked() {
    if !has_tools(&TOOLS) {
        return;
    }
    let Some(module) = find_nss_module() else { return };
    run_in_namespaces(move || {
        let mut guest = create_guest_with_nss_module(&module);
        // sshd reads nsswitch.conf only once.
        guest.sshd.start_listener_with_args(&[
            "-o",
            "UsePAM=yes",
            "-o",
            "AuthorizedKeysFile=.ssh/authorized_keys",
        ]);
        let key = TestKey::new(&guest.folder, "k");
        let shadow = |line: &str| fs::write(guest.path("nss-shadow"), line).unwrap();
        let apply = || -> Value { guest.apply(&attach_command("k", &key, "no")) };
        for (line, rule) in [
            ("carol:$6$a$b:19000:0:99999:7::1:\n", "Expired account"),
            ("carol:$6$a$b:19000:0:99999:7::0:\n", "Expired account"),
            ("carol:$6$a$b:0:0:99999:7:::\n", "Forced password change"),
            ("carol:$6$a$b:19000:0:1:7:1::\n", "Forced password change"),
            ("carol:$6$a$b:19000:0:1:7:::\n", "Forced password change"),
            ("", "Shadow entry"),
        ] {
            shadow(line);
            let result = apply();
            assert_eq!(result["reason"], "LOCKOUT_GUARD", "{line}: {result}");
            let message = result["message"].as_str().unwrap();
            assert!(message.contains(rule) && message.contains("carol"), "{line}: {message}");
            assert!(guest.sshd.offers_password());
        }
        shadow("carol:$6$a$b:19000:0:99999:7:::\n");
        let result = apply();
        assert_eq!(result["status"], "succeeded", "{result}");
        // If the source does not answer, the agent does not assume that the account permits a login.
        fs::remove_file(guest.path("nss-shadow")).unwrap();
        run_successfully(Command::new("mkfifo").arg(guest.path("nss-shadow")));
        let result = guest.apply(&attach_command("k", &key, "yes"));
        assert_eq!(result["status"], "succeeded", "{result}");
        let result = apply();
        assert_eq!(result["reason"], "LOCKOUT_GUARD", "{result}");
        assert!(result["message"].as_str().unwrap().contains("cannot be told"), "{result}");
        assert!(guest.sshd.offers_password());
    });
}
