//! The processes that hold a lock, and their owners: proc_locks(5) and proc_pid_status(5) as text.

/// The processes that hold a flock(2) lock on this file, limited to those in this /proc. On some filesystems /proc
/// names another device than stat(2) does. If no lock has this device, the locks with this inode count.
pub fn find_flock_holders(locks: &str, major: u32, minor: u32, inode: u64) -> Vec<i32> {
    let device = format!("{major:02x}:{minor:02x}");
    let (mut exact, mut by_inode) = (Vec::new(), Vec::new());
    for line in locks.lines() {
        // Format: `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`. A waiting lock has `->` after its number.
        let mut words = line.split_whitespace().skip(1);
        if words.next() != Some("FLOCK") {
            continue;
        }
        let (Some(pid), Some(place)) = (words.nth(2), words.next()) else { continue };
        let (Ok(pid), Some((of, number))) = (pid.parse::<i32>(), place.rsplit_once(':')) else { continue };
        if number.parse() == Ok(inode) && pid > 0 {
            if of == device {
                exact.push(pid);
            }
            by_inode.push(pid);
        }
    }
    if exact.is_empty() { by_inode } else { exact }
}

/// Whether a process has only these user and group ids: real, effective and saved. A set-user-id program keeps the
/// real ids of the user who started it, and runs under any name that this user gave it. A program such as sudo makes
/// itself root completely before it asks for a password, but keeps the user's group id. `None` if `status` does not
/// contain the ids.
pub fn has_ids(status: &str, user: u32, group: u32) -> Option<bool> {
    let are = |name: &str, own: u32| {
        let ids = find_status_field(status, name)?.split_ascii_whitespace().take(3);
        Some(ids.filter_map(|id| id.parse().ok()).collect::<Vec<u32>>() == [own; 3])
    };
    Some(are("Uid:", user)? && are("Gid:", group)?)
}

/// The text after a field name in /proc/PID/status.
pub fn find_status_field<'s>(status: &'s str, name: &str) -> Option<&'s str> {
    status.lines().find_map(|line| line.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "1: POSIX  ADVISORY  WRITE 11 08:01:77 0 EOF\n\
                         2: FLOCK  ADVISORY  READ_FLAGS 22 08:01:77 0 EOF\n\
                         2: -> FLOCK  ADVISORY  WRITE 33 08:01:77 0 EOF\n\
                         3: FLOCK  ADVISORY  WRITE 44 08:02:77 0 EOF\n\
                         4: FLOCK  ADVISORY  WRITE 0 08:01:88 0 EOF\n\
                         5: FLOCK  ADVISORY  READ_FLAGS 55 00:2d:99 0 EOF\n\
                         6: FLOCK  ADVISORY  READ_FLAGS 23 08:01:77 0 EOF\n";

    #[test]
    fn flock_holders_are_found_by_device_and_inode() {
        assert_eq!(find_flock_holders(LOCKS, 8, 1, 77), [22, 23]);
        assert_eq!(find_flock_holders(LOCKS, 8, 2, 77), [44]);
        assert_eq!(find_flock_holders(LOCKS, 0, 0x2e, 99), [55]);
        assert_eq!(find_flock_holders(LOCKS, 7, 7, 77), [22, 44, 23]);
        assert!(find_flock_holders(LOCKS, 8, 1, 88).is_empty());
    }

    #[test]
    fn process_needs_all_six_ids_to_match() {
        let status =
            |user: &str, group: &str| format!("Name:\tsshd\nUid:\t{user}\nGid:\t{group}\nGroups:\t0\n");
        for (user, group, expected) in [
            ("0\t0\t0\t0", "0\t0\t0\t0", Some(true)),
            // su, sudo, a user.
            ("1000\t0\t0\t0", "0\t0\t0\t0", Some(false)),
            ("0\t0\t0\t0", "1000\t0\t0\t0", Some(false)),
            ("1000\t1000\t1000\t1000", "1000\t1000\t1000\t1000", Some(false)),
            ("0\t0\t1000\t0", "0\t0\t0\t0", Some(false)),
        ] {
            assert_eq!(has_ids(&status(user, group), 0, 0), expected, "{user} {group}");
        }
        assert_eq!(has_ids("Name:\tsshd\n", 0, 0), None);
    }
}
