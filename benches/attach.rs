//! One attach against the floor: what the disk alone takes to put a small file in a file's place for good (write,
//! fsync, rename, fsync of the directory), on the same disk, in the same run. A ratio, since machines differ.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use support::{Guest, Key, attach, available, detach};

const ROUNDS: usize = 15;

fn floor(folder: &Path) -> Duration {
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

fn main() {
    if !available(&["sshd", "ssh", "ssh-keygen"]) {
        return;
    }
    let guest = Guest::new();
    let key = Key::new(&guest.folder, "k");
    let folder = guest.path("state");
    guest.apply(&attach("my-test", &key, "no"));
    guest.apply(&detach("my-test"));
    let timed = |what: &dyn Fn()| {
        let begun = Instant::now();
        what();
        begun.elapsed()
    };
    let (mut key_only, mut with_sshd, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        floors.push(floor(&folder));
        key_only.push(timed(&|| assert_eq!(guest.apply(&attach("my-test", &key, "no"))["changed"], true)));
        guest.apply(&detach("my-test"));
        assert_eq!(guest.agent(&["undo"]).status.code(), Some(0));
        with_sshd.push(timed(&|| assert_eq!(guest.apply(&attach("my-test", &key, "no"))["changed"], true)));
        guest.apply(&detach("my-test"));
    }
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
