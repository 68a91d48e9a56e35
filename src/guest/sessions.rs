//! The programs with which sshd serves a connection, since OpenSSH 9.8 (`sshd-session`) and 10.0 (`sshd-auth`).
//! Without them a listener ends at its start, although `sshd -t` reports no error, or it serves no connection.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::policy::effective::EffectiveConfig;

/// The keyword of sshd_config(5) that names such a program, and the program's usual name.
const SESSION_PROGRAMS: [(&str, &str); 2] =
    [("sshdsessionpath", "sshd-session"), ("sshdauthpath", "sshd-auth")];

/// The maximum size of sshd's own program that is read.
const MAX_PROGRAM_BYTES: u64 = 64 * 1024 * 1024;

/// The reason why this sshd could not serve a connection with these settings; `None` if it could.
pub(super) fn check_session_programs(sshd: &Path, effective: &EffectiveConfig) -> Option<String> {
    SESSION_PROGRAMS.into_iter().find_map(|(keyword, name)| {
        let path = match effective.value(keyword) {
            "" => find_built_in_path(sshd, name)?,
            named => PathBuf::from(named),
        };
        let shown = path.display();
        match fs::metadata(&path) {
            Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => None,
            Ok(_) => Some(format!("sshd's {name} is {shown}, which is no program")),
            Err(error) => Some(format!("sshd's {name} is {shown}, which cannot be used: {error}")),
        }
    })
}

/// The program in which this sshd authenticates a user; `None` if sshd does that itself, before OpenSSH 9.8.
pub(super) fn find_session_program(sshd: &Path, effective: Option<&EffectiveConfig>) -> Option<PathBuf> {
    let [(keyword, name), _] = SESSION_PROGRAMS;
    match effective.map(|effective| effective.value(keyword)).unwrap_or_default() {
        "" => find_built_in_path(sshd, name),
        named => Some(PathBuf::from(named)),
    }
}

/// The path of such a program that is compiled into sshd, as a string in sshd's program file. `None` before OpenSSH
/// 9.8.
fn find_built_in_path(sshd: &Path, name: &str) -> Option<PathBuf> {
    let mut content = Vec::new();
    File::open(sshd).ok()?.take(MAX_PROGRAM_BYTES).read_to_end(&mut content).ok()?;
    find_path_string(&content, name)
}

/// The first absolute path with this file name among the NUL-terminated strings of a program.
fn find_path_string(content: &[u8], name: &str) -> Option<PathBuf> {
    content.split(|byte| *byte == 0).find_map(|string| {
        let text = std::str::from_utf8(string).ok().filter(|text| text.starts_with('/'))?;
        let path = Path::new(text);
        path.file_name().is_some_and(|file| file == name).then(|| path.to_owned())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn missing_session_program_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("plain"), "").unwrap();
        fs::write(at("runs"), "").unwrap();
        fs::set_permissions(at("runs"), fs::Permissions::from_mode(0o755)).unwrap();
        let session = at("sshd-session");
        fs::write(at("new"), format!("\u{7f}ELF\0{}\0x", session.display())).unwrap();
        fs::write(at("old"), "\u{7f}ELF\0sshd-session\0/etc/ssh/sshd_config\0").unwrap();
        let said = |keyword: &str, name: &str| format!("{keyword} {}\n", at(name).display());
        for (sshd, text, expected) in [
            ("old", String::new(), None),
            ("new", String::new(), Some("sshd-session is /")),
            ("new", said("SshdSessionPath", "runs"), None),
            ("new", said("sshdsessionpath", "none"), Some("/none")),
            ("new", said("sshdsessionpath", "plain"), Some("no program")),
            ("new", said("sshdsessionpath", ""), Some("no program")),
            ("new", said("SshdSessionPath", "runs") + &said("SshdAuthPath", "none"), Some("sshd-auth is /")),
        ] {
            let why = check_session_programs(&at(sshd), &EffectiveConfig::parse(&text));
            let is_expected =
                expected.map_or(why.is_none(), |part| why.as_ref().is_some_and(|why| why.contains(part)));
            assert!(is_expected, "{sshd} {text}: {why:?}");
        }
        fs::copy(at("runs"), &session).unwrap();
        assert_eq!(check_session_programs(&at("new"), &EffectiveConfig::default()), None);
    }
}
