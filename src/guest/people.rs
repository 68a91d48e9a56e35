//! Every account of this guest, as listed in passwd(5), group(5) and shadow(5). Most other sources of the name
//! service cannot be enumerated.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::accounts::{MAX_PASSWD_BYTES, PASSWD_FILE};
use super::files::{FileError, read_file};
use super::login::{self, GROUP_FILE, MAX_ACCOUNT_FILE_BYTES};
use crate::policy::observation::{Account, LocalAccount};

/// All accounts. This function does not look up whether they have keys.
///
/// # Errors
/// A file cannot be read.
pub(super) fn list_accounts() -> Result<Vec<LocalAccount>, FileError> {
    let passwd = read_file(Path::new(PASSWD_FILE), MAX_PASSWD_BYTES)?.unwrap_or_default();
    let group = read_file(Path::new(GROUP_FILE), MAX_ACCOUNT_FILE_BYTES)?.unwrap_or_default();
    Ok(parse_accounts(
        &passwd,
        &String::from_utf8_lossy(&group),
        &login::read_shadow_file().unwrap_or_default(),
    ))
}

fn parse_accounts(passwd: &[u8], group: &str, shadow: &str) -> Vec<LocalAccount> {
    let groups: Vec<(&str, u32, Vec<&str>)> = group
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, gid, members, ..] = fields.as_slice() else { return None };
            Some((*name, gid.parse().ok()?, members.split(',').filter(|name| !name.is_empty()).collect()))
        })
        .collect();
    let with_password: BTreeMap<&str, bool> = shadow
        .lines()
        .filter_map(login::parse_shadow_line)
        .map(|(name, entry)| (name, entry.has_password))
        .collect();
    let person = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let [name, hash, uid, gid, _, home, shell, ..] = fields.as_slice() else { return None };
        // A home directory may have any bytes. A name that is not text occurs nowhere else here.
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let [name, hash, uid, gid] = [name, hash, uid, gid].map(|field| String::from_utf8_lossy(field));
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        let primary = groups.iter().find(|(_, id, _)| *id == gid);
        let member_of = groups.iter().filter(|(_, id, members)| *id != gid && members.contains(&&*name));
        let is_hash = login::shadow_entry_from_hash(&hash).has_password;
        Some(LocalAccount {
            account: Account {
                name: name.clone().into_owned(),
                uid,
                gid,
                home: path(home),
                shell: path(if shell.is_empty() { b"/bin/sh" } else { shell }),
                groups: primary.into_iter().chain(member_of).map(|(name, _, _)| (*name).to_owned()).collect(),
            },
            has_password: with_password.get(&*name).copied().unwrap_or(is_hash),
            has_key: false,
        })
    };
    passwd.split(|byte| *byte == b'\n').filter_map(person).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_listed_with_groups_and_password() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbob:x:1000:1000::/home/bob:/bin/zsh\n+nis\n\
                      old:$1$x$y:1001:100::/home/old:\nlocked:x:1002:1000::/:/bin/sh\n";
        let group = "root:x:0:\nwheel:x:10:root,bob\nbob:x:1000:\nusers:x:100:bob\nbroken\n";
        let shadow = "root:*:19000:0:99999:7:::\nbob:$y$x:19000:0:99999:7:::\nlocked:!$y$x:1::::::\n";
        let people = parse_accounts(passwd.as_bytes(), group, shadow);
        let seen: Vec<(&str, bool, Vec<&str>)> = people
            .iter()
            .map(|person| {
                let groups = person.account.groups.iter().map(String::as_str).collect();
                (person.account.name.as_str(), person.has_password, groups)
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("root", false, vec!["root", "wheel"]),
                ("bob", true, vec!["bob", "wheel", "users"]),
                ("old", true, vec!["users"]),
                ("locked", false, vec!["bob"]),
            ]
        );
        assert_eq!(
            people.iter().find(|p| p.account.name == "old").map(|p| p.account.shell.clone()),
            Some("/bin/sh".into())
        );
    }
}
