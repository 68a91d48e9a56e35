//! The owner of the home attacks the agent (KP-5.11). The agent changes its files thousands of times, while the user
//! replaces parts of their path. Nothing outside of that path may change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hostile;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hostile::land::{HomeFixture, USER};
use hostile::{mounter, user};
use keypair_agent::guest::files::{
    FileError, read_key_file, remove_created_key_file, remove_key_dir_temporaries, replace_key_file,
};
use keypair_agent::policy::types::ContentHash;
use serde_json::{Value, json};
use support::dice::SeededRng;
use support::{TestDir, build_isolated_test, has_tools};

const FIXTURE_DIR_ENV: &str = "KEYPAIR_HOSTILE_LAND";
const SEED_ENV: &str = "KEYPAIR_HOSTILE_SEED";
/// The number of races for each system call; `make test-hostile-guest` uses 10,000.
const RACES_ENV: &str = "KEYPAIR_HOSTILE_RACES";

/// KP-5.11.
#[test]
fn key_file_races_with_openat2_stay_in_path() {
    run_races(&["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=none"]);
}

/// KP-5.11.
#[test]
fn key_file_races_with_openat_stay_in_path() {
    run_races(&[
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "inject=openat2:error=ENOSYS",
    ]);
}

/// Runs the three processes in their own mount namespace, and checks their reports.
fn run_races(tracer: &[&str]) {
    if !has_tools(&["unshare", "strace"]) {
        return;
    }
    let folder = TestDir::new();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let land = HomeFixture::new(folder.path());
    land.create_files();
    let program = folder.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let before = land.snapshot_victims();
    let seed = std::env::var(SEED_ENV).unwrap_or_else(|_| std::process::id().to_string());
    println!("seed {seed}: {SEED_ENV}={seed} takes it again");
    let alone = [&["timeout", "300", "unshare", "--mount", "--propagation", "private"], tracer].concat();
    let output = build_isolated_test(&alone, &program, "agent_process")
        .env(FIXTURE_DIR_ENV, folder.path())
        .env(SEED_ENV, &seed)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let told = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(land.path(name)).unwrap_or_else(|_| panic!("{name}: {text}")))
            .unwrap()
    };
    let (agent, user) = (told("agent.json"), told("user.json"));
    println!("{text}the agent: {agent}\nthe user: {user}\nmounted: {}", told("mounter.json"));
    assert_eq!(land.snapshot_victims(), before);
    assert_eq!(land.find_leaks(), Vec::<PathBuf>::new());
    // If the user's mount is over the agent's directory, the agent does not remove it, and that is no failure.
    assert!(!text.contains("resource busy"), "{text}");
    // Both the agent and the user must have succeeded sometimes, otherwise there was no race.
    for outcome in ["written", "unsafe", "changed", "removed"] {
        assert!(agent[outcome].as_u64().unwrap() >= 20, "{outcome}: {agent}");
    }
    assert!(
        user.as_object().unwrap().values().filter(|count| count.as_u64() > Some(0)).count() >= 12,
        "{user}"
    );
}

fn open_fixture() -> HomeFixture {
    HomeFixture::new(Path::new(&std::env::var_os(FIXTURE_DIR_ENV).expect("started by the other tests")))
}

fn read_seed() -> u64 {
    std::env::var(SEED_ENV).unwrap().parse().unwrap()
}

/// Repeats the agent's changes of a key file.
#[test]
#[ignore = "a part of the other tests, in a process of its own"]
fn agent_process() {
    let land = open_fixture();
    let start = |name: &str, uid: u32| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--ignored"]).uid(uid).gid(uid).stdout(Stdio::null());
        command.spawn().unwrap()
    };
    fs::write(land.path("user.json"), "").unwrap();
    std::os::unix::fs::chown(land.path("user.json"), Some(USER), None).unwrap();
    let mut others = [start("path_race_attacker_process", USER), start("mount_attacker_process", 0)];
    let (account, paths) = (land.account(), land.key_files());
    let mut dice = SeededRng::from_seed(read_seed());
    let mut count = std::collections::BTreeMap::<&str, usize>::new();
    let races: usize = std::env::var(RACES_ENV).map_or(2_500, |text| text.parse().expect(RACES_ENV));
    for race in 0..races {
        let path = &paths[dice.next_below(2)];
        let done = read_key_file(&account, path).and_then(|seen| {
            let old = seen.content.unwrap_or_default();
            let expected = (!old.is_empty()).then(|| ContentHash::from_content(&old));
            // An attach: the agent's line before all present lines.
            let new = [format!("key {race}\n").as_bytes(), &old[..old.len().min(4096)]].concat();
            replace_key_file(&account, path, expected.as_ref(), &new)?;
            *count.entry("written").or_default() += 1;
            match dice.next_below(3) {
                0 => {
                    let parent = path.parent();
                    remove_created_key_file(&account, path, &ContentHash::from_content(&new), parent)?;
                    *count.entry("removed").or_default() += 1;
                }
                1 => drop(remove_key_dir_temporaries(&account, path)?),
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
fn path_race_attacker_process() {
    let land = open_fixture();
    let count = user::run_path_attacks(&land, read_seed() ^ 0x5eed);
    fs::write(land.path("user.json"), json!(count).to_string()).unwrap();
}

#[test]
#[ignore = "a part of the other tests, in a process of its own"]
fn mount_attacker_process() {
    let land = open_fixture();
    fs::write(
        land.path("mounter.json"),
        json!(mounter::run_mount_attack(&land, read_seed() ^ 0x707)).to_string(),
    )
    .unwrap();
}
