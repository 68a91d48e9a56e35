//! Every account of this guest, as passwd(5), group(5) and shadow(5) list them. Other sources of the name service
//! mostly do not let themselves be enumerated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::accounts::{PASSWD, PASSWD_LIMIT};
use super::files::{FileError, read_file};
use super::login::{self, ACCOUNT_FILE_LIMIT, GROUP};
use crate::policy::observation::{Account, Person};

/// All of them; whether they have keys is not looked up here.
///
/// # Errors
/// That a file cannot be read.
pub(super) fn people() -> Result<Vec<Person>, FileError> {
    let text = |file: &str, limit| -> Result<String, FileError> {
        let content = read_file(Path::new(file), limit)?;
        Ok(String::from_utf8_lossy(content.as_deref().unwrap_or_default()).into_owned())
    };
    let (passwd, group) = (text(PASSWD, PASSWD_LIMIT)?, text(GROUP, ACCOUNT_FILE_LIMIT)?);
    Ok(listed(&passwd, &group, &login::shadow_file().unwrap_or_default()))
}

fn listed(passwd: &str, group: &str, shadow: &str) -> Vec<Person> {
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
        .filter_map(login::shadow_entry)
        .map(|(name, entry)| (name, entry.has_password))
        .collect();
    let person = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, hash, uid, gid, _, home, shell, ..] = fields.as_slice() else { return None };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        let primary = groups.iter().find(|(_, id, _)| *id == gid);
        let member_of = groups.iter().filter(|(_, id, members)| *id != gid && members.contains(name));
        let is_hash = login::entry_of(hash).has_password;
        Some(Person {
            account: Account {
                name: (*name).to_owned(),
                uid,
                gid,
                home: PathBuf::from(home),
                shell: PathBuf::from(if shell.is_empty() { "/bin/sh" } else { shell }),
                groups: primary.into_iter().chain(member_of).map(|(name, _, _)| (*name).to_owned()).collect(),
            },
            has_password: with_password.get(name).copied().unwrap_or(is_hash),
            has_key: false,
        })
    };
    passwd.lines().filter_map(person).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_here() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbob:x:1000:1000::/home/bob:/bin/zsh\n+nis\n\
                      old:$1$x$y:1001:100::/home/old:\nlocked:x:1002:1000::/:/bin/sh\n";
        let group = "root:x:0:\nwheel:x:10:root,bob\nbob:x:1000:\nusers:x:100:bob\nbroken\n";
        let shadow = "root:*:19000:0:99999:7:::\nbob:$y$x:19000:0:99999:7:::\nlocked:!$y$x:1::::::\n";
        let people = listed(passwd, group, shadow);
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
