//! A process that mounts where the user permits it, like fusermount(1) for a user, in its own mount namespace.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::land::{HomeFixture, USER};
use crate::support::dice::SeededRng;

/// Mounts over `.ssh` and unmounts it again until the file `done` exists. Returns the number of mounts.
pub fn run_mount_attack(land: &HomeFixture, seed: u64) -> usize {
    let mut dice = SeededRng::from_seed(seed);
    let mut mounted = 0;
    let place = land.home().join(".ssh");
    let options = format!("uid={USER},gid={USER},mode=700,size=1m");
    while !land.path("done").exists() {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        // Uses a descriptor, so that the user cannot redirect the mount to a directory of others.
        if let Ok(held) = OpenOptions::new().read(true).custom_flags(flags.bits()).open(&place) {
            let target = format!("/proc/self/fd/{}", held.as_raw_fd());
            let none = Some("none");
            if mount(none, target.as_str(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).is_ok() {
                mounted += 1;
                sleep(Duration::from_millis(dice.next_below(4) as u64));
                let _ = fs::metadata(&place);
                unmount_all(land);
            }
        }
        sleep(Duration::from_millis(dice.next_below(8) as u64));
    }
    mounted
}

/// The user may have moved the directory below the mount, so all mounts in the home are removed.
fn unmount_all(land: &HomeFixture) {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let places = table.lines().filter_map(|line| line.split(' ').nth(1));
    for place in places.filter(|place| Path::new(place).starts_with(land.home())) {
        umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).unwrap();
    }
}
