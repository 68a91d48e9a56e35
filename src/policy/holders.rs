//! Who holds a lock, and whose process that is: proc_locks(5) and proc_pid_status(5) as text.

/// The processes that hold a lock of flock(2) on this file, those alone that this /proc knows. Some filesystems name
/// another device there than stat(2) does: where none is of the device, those count that have the inode.
pub fn find_flock_holders(locks: &str, major: u32, minor: u32, inode: u64) -> Vec<i32> {
    let device = format!("{major:02x}:{minor:02x}");
    let (mut exact, mut by_inode) = (Vec::new(), Vec::new());
    for line in locks.lines() {
        // `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`; a waiting one has `->` behind its number.
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

/// Whether a process has these user and group ids alone: real, effective and saved. A set-user-id program keeps the real
/// ids of who started it, and runs in whatever name he gave it; one that makes itself root altogether before it asks for
/// a password (sudo) keeps that of his group. `None` where `status` does not say.
pub fn has_ids(status: &str, user: u32, group: u32) -> Option<bool> {
    let are = |name: &str, own: u32| {
        let ids = find_status_field(status, name)?.split_ascii_whitespace().take(3);
        Some(ids.filter_map(|id| id.parse().ok()).collect::<Vec<u32>>() == [own; 3])
    };
    Some(are("Uid:", user)? && are("Gid:", group)?)
}

/// What stands behind a name in /proc/PID/status.
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
