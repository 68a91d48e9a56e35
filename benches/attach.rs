//! A trial against the bare client and sshd that it consists of. One attach against the floor: what the disk alone takes to put a small file in a file's place for good (write,
//! fsync, rename, fsync of the directory), on the same disk, in the same run. A ratio, since machines differ.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use keypair_agent::config::Config;
use keypair_agent::guest::Guest as _;
use keypair_agent::guest::real::LinuxGuest;
use keypair_agent::policy::observation::Sshd;
use keypair_agent::policy::public_key::PublicKey;
use keypair_agent::policy::trial::{TrialOutcome, TrialRequest};

use support::{TestGuest, TestKey, attach_command, detach_command, has_tools};

const ROUNDS: usize = 15;

fn time_durable_replace(folder: &Path) -> Duration {
    let begun = Instant::now();
    let (new, name) = (folder.join("floor.new"), folder.join("floor"));
    let mut file = File::create(&new).unwrap();
    file.write_all(&[b'k'; 400]).unwrap();
    file.sync_all().unwrap();
    fs::rename(&new, &name).unwrap();
    File::open(folder).unwrap().sync_all().unwrap();
    begun.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A bare ssh(1) that a private `sshd -i` refuses: what a trial cannot do without.
fn time_refused_ssh(guest: &TestGuest, key: &TestKey) -> Duration {
    let sshd = format!("ProxyCommand=exec /usr/sbin/sshd -i -f {}", guest.path("sshd_config").display());
    let begun = Instant::now();
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-n", "-N", "-T", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
    ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"]);
    ssh.args([
        "-o",
        "KexAlgorithms=curve25519-sha256",
        "-o",
        "PreferredAuthentications=publickey",
        "-o",
        &sshd,
    ]);
    ssh.arg("-i").arg(&key.private).arg("root@private-sshd");
    let status = ssh.stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(255), "it is refused");
    begun.elapsed()
}

/// The trial of one key, as a command asks for it.
fn time_trial(guest: &LinuxGuest, sshd: &Sshd, key: &TestKey) -> Duration {
    let question = TrialRequest {
        user: "root".to_owned(),
        key: PublicKey::parse(&key.line).unwrap(),
        ahead: "PasswordAuthentication no\n".to_owned(),
        key_files: Vec::new(),
        connections: sshd.answers.iter().take(1).map(|answer| answer.connection.clone()).collect(),
        needs_addresses: false,
    };
    let begun = Instant::now();
    let answers = guest.run_trial(sshd, &question);
    assert!(matches!(answers.as_slice(), [TrialOutcome::Refused(_)]), "{answers:?}");
    begun.elapsed()
}

fn main() {
    if !has_tools(&["sshd", "ssh", "ssh-keygen"]) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    let folder = guest.path("state");
    guest.apply(&attach_command("my-test", &key, "no"));
    guest.apply(&detach_command("my-test"));
    let timed = |what: &dyn Fn()| {
        let begun = Instant::now();
        what();
        begun.elapsed()
    };
    let (mut key_only, mut with_sshd, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        floors.push(time_durable_replace(&folder));
        key_only.push(timed(&|| {
            assert_eq!(guest.apply(&attach_command("my-test", &key, "no"))["changed"], true)
        }));
        guest.apply(&detach_command("my-test"));
        assert_eq!(guest.run_agent(&["undo"]).status.code(), Some(0));
        with_sshd.push(timed(&|| {
            assert_eq!(guest.apply(&attach_command("my-test", &key, "no"))["changed"], true)
        }));
        guest.apply(&detach_command("my-test"));
    }
    let config = Config::load(Some(&guest.config)).unwrap();
    let (real, mut bare, mut trials) = (LinuxGuest::new(&config), Vec::new(), Vec::new());
    let sshd = real.inspect_sshd("root").unwrap();
    for _ in 0..ROUNDS {
        bare.push(time_refused_ssh(&guest, &key));
        trials.push(time_trial(&real, &sshd, &key));
    }
    let (bare, trial) = (median(bare), median(trials));
    println!("a bare ssh to an sshd -i that refuses it               {bare:>10.2?}");
    let ratio = trial.as_secs_f64() / bare.as_secs_f64();
    println!(
        "a trial                                                {trial:>10.2?}  {ratio:.2} times the bare ssh"
    );
    let floor = median(floors);
    println!("floor (write, fsync, rename, fsync of the directory)   {floor:>10.2?}");
    for (what, times) in [
        ("attach, sshd's setting in place already", key_only),
        ("attach with the setting, its trials and the reload", with_sshd),
    ] {
        let time = median(times);
        println!("{what:<54} {time:>10.2?}  {:.0} times the floor", time.as_secs_f64() / floor.as_secs_f64());
    }
}
