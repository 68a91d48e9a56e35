//! The restrictions outside sshd's settings that decide whether an account can log in: shadow(5), nologin(5), and
//! sshd's PAM service.

use std::fs;
use std::path::{Path, PathBuf};

use super::accounts::{MAX_PASSWD_BYTES, PASSWD_FILE};
use super::child;
use super::config_tree::expand_glob;
use super::files::{MAX_KEY_FILE_BYTES, device_and_inode, read_file};
use crate::policy::content::SharedBytes;
use crate::policy::effective::EffectiveConfig;
use crate::policy::key_paths::KeyPath;
use crate::policy::observation::{KeyFile, PamRule, Shadow, ShadowEntry};
use crate::policy::pam::{self, ServiceFile};

const NOLOGIN_FILE: &str = "/etc/nologin";
const SHADOW_FILE: &str = "/etc/shadow";
pub(super) const GROUP_FILE: &str = "/etc/group";

/// The maximum size of an account file that is read.
pub(super) const MAX_ACCOUNT_FILE_BYTES: usize = 64 * 1024 * 1024;

/// The exit status of getent(1) if it does not find a key.
const GETENT_NOT_FOUND: i32 = 2;

/// The maximum size of a PAM file that is read.
const MAX_PAM_FILE_BYTES: usize = 1024 * 1024;

/// The directories of service files. The distribution's directories come after the administrator's.
const PAM_DIRECTORIES: [&str; 3] = ["/etc/pam.d", "/usr/lib/pam.d", "/usr/etc/pam.d"];

/// The single file for all services that is used if the first of these directories does not exist: pam.conf(5).
const PAM_CONF: &str = "/etc/pam.conf";

/// The file of nologin(5), if it exists.
pub(super) fn find_nologin_file() -> Option<PathBuf> {
    Path::new(NOLOGIN_FILE).exists().then(|| PathBuf::from(NOLOGIN_FILE))
}

/// The user's entry as getspnam(3) returns it, from any source of nsswitch.conf(5). If there is none, the password
/// field of passwd(5) counts, unless it refers to shadow(5). The agent gives up after 10 s if the name service does
/// not answer.
pub(super) fn read_shadow(user: &str) -> Shadow {
    if !nix::unistd::geteuid().is_root() {
        return Shadow::Unreadable(format!("{SHADOW_FILE} is root's to read; run this as root"));
    }
    match run_getent("shadow", user) {
        Ok(Some(line)) => match parse_shadow_line(&line) {
            Some((_, entry)) => Shadow::Entry(entry),
            None => Shadow::Unreadable(format!("`getent shadow {user}` does not say an entry of shadow(5)")),
        },
        Ok(None) => lookup_shadow_in_passwd(user),
        Err(error) if error.is_missing_program() => lookup_shadow_in_files(user),
        Err(error) => Shadow::Unreadable(error.to_string()),
    }
}

/// The entry from passwd(5) for an account that has no entry in shadow(5).
fn lookup_shadow_in_passwd(user: &str) -> Shadow {
    match run_getent("passwd", user) {
        Ok(Some(line)) => match find_password_field(&line, user) {
            Some(field) if refers_to_shadow(field) => Shadow::NoEntry,
            Some(hash) => Shadow::Entry(shadow_entry_from_hash(hash)),
            None => Shadow::Unreadable(format!("`getent passwd {user}` says another account")),
        },
        Ok(None) => Shadow::Unreadable(format!("no source of nsswitch.conf(5) has {user}")),
        Err(error) => Shadow::Unreadable(error.to_string()),
    }
}

/// The entry from the files alone, if getent(1) is not installed.
fn lookup_shadow_in_files(user: &str) -> Shadow {
    let content = match read_shadow_file() {
        Ok(content) => content,
        Err(why) => return Shadow::Unreadable(why),
    };
    if let Some((_, entry)) = content.lines().filter_map(parse_shadow_line).find(|(name, _)| *name == user) {
        return Shadow::Entry(entry);
    }
    match read_file(Path::new(PASSWD_FILE), MAX_PASSWD_BYTES) {
        Err(error) => Shadow::Unreadable(error.to_string()),
        Ok(content) => {
            let text = String::from_utf8_lossy(content.as_deref().unwrap_or_default()).into_owned();
            match find_password_field(&text, user) {
                Some(hash) if !refers_to_shadow(hash) => Shadow::Entry(shadow_entry_from_hash(hash)),
                _ => Shadow::Unreadable(format!(
                    "neither {SHADOW_FILE} nor {PASSWD_FILE} says it of {user}, and there is no getent(1) to ask"
                )),
            }
        }
    }
}

/// The account's line in a database of the name service. getent(1) runs as a child that may be left behind.
fn run_getent(database: &str, user: &str) -> Result<Option<String>, child::ChildError> {
    let output = child::run(Path::new("getent"), &[database, "--", user], "")?;
    match output.status {
        0 => Ok(Some(output.stdout.lines().next().unwrap_or_default().to_owned())),
        GETENT_NOT_FOUND => Ok(None),
        _ => Ok(Some(String::new())),
    }
}

/// Returns true if the password field of passwd(5) says that the password is in shadow(5): pam_unix(8).
fn refers_to_shadow(field: &str) -> bool {
    field == "x" || field.starts_with("##")
}

/// The user's password field in passwd(5).
fn find_password_field<'t>(passwd: &'t str, user: &str) -> Option<&'t str> {
    passwd.lines().find_map(|line| line.strip_prefix(user)?.strip_prefix(':')?.split(':').next())
}

/// The content of shadow(5).
pub(super) fn read_shadow_file() -> Result<String, String> {
    match read_file(Path::new(SHADOW_FILE), MAX_ACCOUNT_FILE_BYTES) {
        Ok(content) => Ok(String::from_utf8_lossy(content.as_deref().unwrap_or_default()).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The entry for a password field if nothing is known about the password's age.
pub(super) fn shadow_entry_from_hash(hash: &str) -> ShadowEntry {
    ShadowEntry {
        is_locked: hash.starts_with('!'),
        has_password: is_password_hash(hash),
        is_empty: hash.is_empty(),
        last_change: None,
        maximum: None,
        inactive: None,
        expires: None,
    }
}

/// Returns true if a password can have this hash: crypt(5). Any other text, such as `*`, `!`, `x`, `*LK*` or `NP`,
/// is no hash.
fn is_password_hash(field: &str) -> bool {
    let is_plain =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"./".contains(&byte));
    match field.strip_prefix('$') {
        Some(rest) => rest.contains('$'),
        None => {
            let by_des = field.len() == 13 && is_plain(field);
            by_des || field.len() == 20 && field.strip_prefix('_').is_some_and(is_plain)
        }
    }
}

/// Parses one line of shadow(5): the user's name and the entry.
pub(super) fn parse_shadow_line(line: &str) -> Option<(&str, ShadowEntry)> {
    let mut fields = line.split(':');
    let (name, hash) = (fields.next()?, fields.next()?);
    let mut day = || fields.next().and_then(|field| field.trim().parse::<i64>().ok());
    let (last_change, _minimum, maximum, _warning) = (day(), day(), day(), day());
    let (inactive, expires) = (day(), day());
    let entry = ShadowEntry {
        last_change,
        maximum,
        inactive,
        // An empty field and -1 mean "never".
        expires: expires.filter(|day| *day >= 0),
        ..shadow_entry_from_hash(hash)
    };
    Some((name, entry))
}

/// The rules of sshd's PAM service that refuse, or may refuse, a login with a key. For `is_closed` see
/// [`pam::PamInstallation`].
pub(super) fn find_pam_refusals(effective: &EffectiveConfig, is_closed: bool) -> Vec<PamRule> {
    let service = match effective.value("pamservicename") {
        "" => "sshd",
        service => service,
    };
    let directories: Vec<PathBuf> = list_pam_module_dirs();
    pam::find_refusing_rules(
        service,
        &pam::PamInstallation {
            file: &read_pam_service_file,
            // If no module directory is found, it is unknown which modules are installed.
            has_module: &|module| directories.is_empty() || has_pam_module(&directories, module),
            is_closed,
        },
    )
}

/// The file of a PAM service.
fn read_pam_service_file(service: &str) -> ServiceFile {
    let places = PAM_DIRECTORIES.map(|directory| Path::new(directory).join(service));
    let Some(file) = places.into_iter().find(|file| file.exists()) else {
        // Without that directory, all services are in one file.
        let whole = Path::new(PAM_CONF);
        let is_single_file = !Path::new(PAM_DIRECTORIES[0]).exists() && whole.exists();
        return if is_single_file { ServiceFile::Unreadable(whole.to_owned()) } else { ServiceFile::Missing };
    };
    match read_file(&file, MAX_PAM_FILE_BYTES) {
        Ok(Some(content)) => ServiceFile::Content(file, content),
        Ok(None) => ServiceFile::Missing,
        Err(_) => ServiceFile::Unreadable(file),
    }
}

/// The directories of PAM modules: the distributions' directories, and those below the directories of each
/// architecture.
fn list_pam_module_dirs() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for library in ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"] {
        let library = Path::new(library);
        found.push(library.join("security"));
        let entries = fs::read_dir(library).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| entry.path().join("security")));
    }
    found.retain(|directory| directory.is_dir());
    found
}

/// Returns true if a module exists. `module` is the name in a rule.
fn has_pam_module(directories: &[PathBuf], module: &str) -> bool {
    // `$ISA` stands for a directory of the architecture.
    if module.starts_with('/') && !module.contains("$ISA") {
        return Path::new(module).exists();
    }
    let name = module.rsplit('/').next().unwrap_or(module);
    directories.iter().any(|directory| directory.join(name).exists())
}

/// The maximum number of files that are read for one user.
const MAX_KEY_FILES: usize = 64;

/// The files from which sshd reads a user's keys, with their content, in sshd's order. `own` is the file that was
/// read already. A pattern leads to the files that it matches and to the file with exactly that name. A file with
/// two names counts once. A file that cannot be read is left out.
pub(super) fn read_key_files(paths: &[KeyPath], own: Option<&KeyFile>) -> Vec<(PathBuf, SharedBytes)> {
    let own_identity = own.and_then(|own| device_and_inode(&own.path).ok());
    let named = paths.iter().flat_map(|path| {
        let found = path.is_pattern.then(|| expand_glob(path.path.clone()));
        let matched = found.and_then(Result::ok).map_or_else(Vec::new, |found| found.files);
        matched.into_iter().chain([path.path.clone()])
    });
    let mut seen = Vec::new();
    let mut found: Vec<(PathBuf, SharedBytes)> = Vec::new();
    for path in named {
        let file = device_and_inode(&path).ok();
        let is_own = |own: &&KeyFile| path == own.path || file.is_some() && file == own_identity;
        if found.len() >= MAX_KEY_FILES || file.is_some() && seen.contains(&file) {
            continue;
        }
        if let Some(own) = own.filter(is_own) {
            if found.iter().all(|(other, _)| *other != own.path) {
                found.push(own.path_and_content());
            }
        } else if let Ok(Some(content)) = read_file(&path, MAX_KEY_FILE_BYTES) {
            found.push((path, content.into()));
        }
        seen.push(file);
    }
    found
}

/// The names of the groups in group(5).
pub(super) fn list_group_names() -> Vec<String> {
    let content = read_file(Path::new(GROUP_FILE), MAX_ACCOUNT_FILE_BYTES).ok().flatten().unwrap_or_default();
    let text = String::from_utf8_lossy(&content).into_owned();
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::observation::FileId;

    #[test]
    fn shadow_line_is_parsed() {
        let entry = |line: &str| parse_shadow_line(line).map(|(_, entry)| entry);
        let plain = ShadowEntry {
            is_locked: false,
            has_password: true,
            is_empty: false,
            last_change: Some(19000),
            maximum: Some(99999),
            inactive: None,
            expires: None,
        };
        assert_eq!(entry("u:$y$j9T$x:19000:0:99999:7:::"), Some(plain));
        assert_eq!(
            entry("u:$y$x:0:0:90:7:14:20000:"),
            Some(ShadowEntry {
                last_change: Some(0),
                maximum: Some(90),
                inactive: Some(14),
                expires: Some(20000),
                ..plain
            })
        );
        for (line, is_locked, has_password) in [
            ("u:!$y$x:1::::::", true, false),
            ("u:*:1::::::", false, false),
            ("u:!!::", true, false),
            ("u::1::::::", false, false),
        ] {
            let seen = entry(line).map(|entry| (entry.is_locked, entry.has_password));
            assert_eq!(seen, Some((is_locked, has_password)), "{line}");
        }
        assert_eq!(entry("broken"), None);
        assert_eq!(entry("u::1::::::").map(|entry| entry.is_empty), Some(true));
    }

    #[test]
    #[allow(clippy::unwrap_used)]
    fn key_files_are_read_once_in_sshd_order() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (name, content) in [("shared", "s"), ("ak", "o"), ("ak2", "2"), ("ak[", "b")] {
            fs::write(at(name), content).unwrap();
        }
        std::os::unix::fs::symlink(at("ak"), at("link")).unwrap();
        fs::create_dir(at("ak3")).unwrap();
        let own = KeyFile {
            path: at("ak"),
            id: FileId { device: 0, inode: 0, name: "ak".into() },
            mount: None,
            content: Some(b"own".to_vec().into()),
            missing_directory: None,
        };
        let read = |names: &[(&str, bool)]| -> Vec<(String, String)> {
            let path = |(name, is_pattern): &(&str, bool)| KeyPath {
                path: at(name),
                is_users_own: true,
                is_pattern: *is_pattern,
            };
            let paths: Vec<KeyPath> = names.iter().map(path).collect();
            let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
            let text = |content: SharedBytes| String::from_utf8(content.to_vec()).unwrap();
            read_key_files(&paths, Some(&own))
                .into_iter()
                .map(|(path, content)| (name(&path), text(content)))
                .collect()
        };
        let own_file = || ("ak".to_owned(), "own".to_owned());
        let two = || ("ak2".to_owned(), "2".to_owned());
        let shared = || ("shared".to_owned(), "s".to_owned());
        assert_eq!(read(&[("shared", false), ("ak", false), ("ak2", false)]), [shared(), own_file(), two()]);
        assert_eq!(read(&[("gone", false), ("ak3", false), ("link", false), ("ak", false)]), [own_file()]);
        let bracket = || ("ak[".to_owned(), "b".to_owned());
        assert_eq!(read(&[("ak*", true)]), [own_file(), two(), bracket()]);
        assert_eq!(read(&[("ak[", true)]), [bracket()], "no pattern before OpenSSH 10.0");
    }

    #[test]
    fn password_field_hash_is_recognised() {
        for (field, expected) in [
            ("$6$salt$hash", true),
            ("$y$j9T$x$y", true),
            ("abcdefghijklm", true),
            ("_J9..rasmBYk8r9AiWNc", true),
            ("", false),
            ("x", false),
            ("*", false),
            ("!", false),
            ("!!", false),
            ("!$6$salt$hash", false),
            ("*LK*", false),
            ("NP", false),
            ("$", false),
            ("##user", false),
        ] {
            assert_eq!(shadow_entry_from_hash(field).has_password, expected, "{field}");
        }
        let passwd = "root:x:0:0::/root:/bin/sh\nuu:$1$a$b:1:1::/:/bin/sh\nu:!:1000:1000::/home/u:/bin/sh\n";
        assert_eq!(find_password_field(passwd, "u"), Some("!"));
        assert_eq!(find_password_field(passwd, "uu"), Some("$1$a$b"));
        assert_eq!(find_password_field(passwd, "v"), None);
    }
}
