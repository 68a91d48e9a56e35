//! The owner of the home against the agent (KP-5.11): thousands of times its files are changed while he swaps what
//! is on the way, and nothing outside the one path changes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hostile;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hostile::land::{Land, USER};
use hostile::{mounter, user};
use keypair_agent::guest::files::{
    FileError, observe_key_file, remove_created_key_file, replace_key_file, sweep_key_directory,
};
use keypair_agent::policy::types::ContentHash;
use serde_json::{Value, json};
use support::dice::Dice;
use support::{Folder, apart, available};

const LAND: &str = "KEYPAIR_HOSTILE_LAND";
const SEED: &str = "KEYPAIR_HOSTILE_SEED";
/// How many races each way; `make test-hostile-guest` says 10,000.
const RACES: &str = "KEYPAIR_HOSTILE_RACES";

/// KP-5.11.
#[test]
fn by_openat2() {
    races(&["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=none"]);
}

/// KP-5.11.
#[test]
fn by_openat() {
    races(&["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "inject=openat2:error=ENOSYS"]);
}

/// The three in a mount namespace of their own; what they say of themselves at the end.
fn races(tracer: &[&str]) {
    if !available(&["unshare", "strace"]) {
        return;
    }
    let folder = Folder::new();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let land = Land::at(folder.path());
    land.prepare();
    let program = folder.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let before = land.victims();
    let seed = std::env::var(SEED).unwrap_or_else(|_| std::process::id().to_string());
    println!("seed {seed}: {SEED}={seed} takes it again");
    let alone = [&["timeout", "300", "unshare", "--mount", "--propagation", "private"], tracer].concat();
    let output =
        apart(&alone, &program, "the_agent").env(LAND, folder.path()).env(SEED, &seed).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let told = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(land.path(name)).unwrap_or_else(|_| panic!("{name}: {text}")))
            .unwrap()
    };
    let (agent, user) = (told("agent.json"), told("user.json"));
    println!("{text}the agent: {agent}\nthe user: {user}\nmounted: {}", told("mounter.json"));
    assert_eq!(land.victims(), before);
    assert_eq!(land.leaks(), Vec::<PathBuf>::new());
    // A directory of ours that somebody mounted over is his: nothing to be removed, and no failure.
    assert!(!text.contains("resource busy"), "{text}");
    // Both had their share of it, else there was no race.
    for outcome in ["written", "unsafe", "changed", "removed"] {
        assert!(agent[outcome].as_u64().unwrap() >= 20, "{outcome}: {agent}");
    }
    assert!(
        user.as_object().unwrap().values().filter(|count| count.as_u64() > Some(0)).count() >= 12,
        "{user}"
    );
}

fn land() -> Land {
    Land::at(Path::new(&std::env::var_os(LAND).expect("started by the other tests")))
}

fn seed() -> u64 {
    std::env::var(SEED).unwrap().parse().unwrap()
}

/// What the agent does to a key file in the course of commands, over and over.
#[test]
#[ignore = "a part of the other tests, in a process of its own"]
fn the_agent() {
    let land = land();
    let start = |name: &str, uid: u32| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--ignored"]).uid(uid).gid(uid).stdout(Stdio::null());
        command.spawn().unwrap()
    };
    fs::write(land.path("user.json"), "").unwrap();
    std::os::unix::fs::chown(land.path("user.json"), Some(USER), None).unwrap();
    let mut others = [start("the_user", USER), start("the_mounter", 0)];
    let (account, paths) = (land.account(), land.key_files());
    let mut dice = Dice::of(seed());
    let mut count = std::collections::BTreeMap::<&str, usize>::new();
    let races: usize = std::env::var(RACES).map_or(2_500, |text| text.parse().expect(RACES));
    for race in 0..races {
        let path = &paths[dice.roll(2)];
        let done = observe_key_file(&account, path).and_then(|seen| {
            let old = seen.content.unwrap_or_default();
            let expected = (!old.is_empty()).then(|| ContentHash::of(&old));
            // An attach: our line ahead of all that is there.
            let new = [format!("key {race}\n").as_bytes(), &old[..old.len().min(4096)]].concat();
            replace_key_file(&account, path, expected.as_ref(), &new)?;
            *count.entry("written").or_default() += 1;
            match dice.roll(3) {
                0 => {
                    let parent = path.parent();
                    remove_created_key_file(&account, path, &ContentHash::of(&new), parent)?;
                    *count.entry("removed").or_default() += 1;
                }
                1 => drop(sweep_key_directory(&account, path)?),
                _ => {}
            }
            Ok(())
        });
        let outcome = match done {
            Ok(()) => "undisturbed",
            Err(FileError::Unsafe { .. }) => "unsafe",
            Err(FileError::Changed { .. }) => "changed",
            Err(error) => {
                println!("{error}");
                "failed"
            }
        };
        *count.entry(outcome).or_default() += 1;
    }
    fs::write(land.path("done"), "").unwrap();
    for other in &mut others {
        assert!(other.wait().unwrap().success());
    }
    fs::write(land.path("agent.json"), json!(count).to_string()).unwrap();
}

#[test]
#[ignore = "a part of the other tests, in a process of its own"]
fn the_user() {
    let land = land();
    let count = user::work(&land, seed() ^ 0x5eed);
    fs::write(land.path("user.json"), json!(count).to_string()).unwrap();
}

#[test]
#[ignore = "a part of the other tests, in a process of its own"]
fn the_mounter() {
    let land = land();
    fs::write(land.path("mounter.json"), json!(mounter::work(&land, seed() ^ 0x707)).to_string()).unwrap();
}
