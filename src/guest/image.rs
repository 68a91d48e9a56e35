//! Finds data in an image that every clone of this guest would share, for `check --image`: the machine id, host
//! keys, the cloud-init configuration.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::files::{FileError, read_file};
use crate::policy::image::ImageFacts;

/// The maximum size of one of these files that is read.
const MAX_IMAGE_FILE_BYTES: usize = 1024 * 1024;

const MACHINE_ID_FILE: &str = "etc/machine-id";
const DBUS_MACHINE_ID_FILE: &str = "var/lib/dbus/machine-id";
const HOST_KEY_DIR: &str = "etc/ssh";
const CLOUD_INIT_CONFIG: &str = "etc/cloud/cloud.cfg";
const CLOUD_INIT_CONFIG_DIR: &str = "etc/cloud/cloud.cfg.d";
const CLOUD_INIT_DISABLED: &str = "etc/cloud/cloud-init.disabled";

/// The directories of units. The administrator's directory comes first.
const UNIT_DIRS: [&str; 3] = ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];

/// The programs that create host keys: OpenSSH's own, and the scripts of Red Hat and SUSE.
const HOST_KEY_GENERATORS: [&str; 3] = ["ssh-keygen", "sshd-keygen", "sshd-gen-keys"];

/// Inspects the file tree at `root`, which is `/` except in tests. Host keys are searched only in their usual
/// directory.
pub fn inspect_image(root: &Path) -> ImageFacts {
    let mut look = ImageReader { root, unseen: Vec::new() };
    let machine_id = look.read(MACHINE_ID_FILE);
    let has_own_copy =
        root.join(DBUS_MACHINE_ID_FILE).symlink_metadata().is_ok_and(|metadata| metadata.is_file());
    let copy = has_own_copy.then(|| look.read(DBUS_MACHINE_ID_FILE)).flatten();
    ImageFacts {
        machine_id,
        dbus_machine_id: copy
            .filter(|id| !id.trim_ascii().is_empty())
            .map(|_| Path::new("/").join(DBUS_MACHINE_ID_FILE)),
        host_keys: look
            .list_entries(HOST_KEY_DIR, |name| name.starts_with("ssh_host_") && name.ends_with("_key")),
        key_maker: look.find_key_generator_unit(),
        cloud_init: look.read_cloud_init_config(),
        unseen: look.unseen,
    }
}

struct ImageReader<'a> {
    root: &'a Path,
    unseen: Vec<String>,
}

impl ImageReader<'_> {
    /// The content of a file. A file that cannot be read is recorded in `unseen` and counts as missing.
    fn read(&mut self, path: &str) -> Option<Vec<u8>> {
        match read_file(&self.root.join(path), MAX_IMAGE_FILE_BYTES) {
            Ok(content) => content,
            Err(error) => {
                self.unseen.push(FileError::to_string(&error));
                None
            }
        }
    }

    /// The entries of a directory whose names satisfy `wanted`, sorted.
    fn list_entries(&self, directory: &str, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.root.join(directory)) else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name());
        let names = names.filter(|name| name.to_str().is_some_and(&wanted));
        let mut paths: Vec<PathBuf> = names.map(|name| Path::new("/").join(directory).join(name)).collect();
        paths.sort();
        paths
    }

    /// The unit that runs one of the programs that create host keys. The function does not check whether the unit
    /// is enabled.
    fn find_key_generator_unit(&self) -> Option<PathBuf> {
        let units = UNIT_DIRS
            .iter()
            .flat_map(|directory| self.list_entries(directory, |name| name.ends_with(".service")));
        { units }.find(|unit| {
            let unit = self.root.join(unit.strip_prefix("/").unwrap_or(unit));
            // A masked unit is a link to /dev/null.
            let content = read_file(&unit, MAX_IMAGE_FILE_BYTES).ok().flatten().unwrap_or_default();
            let content = String::from_utf8_lossy(&content);
            let mut commands = content.lines().filter(|line| line.starts_with("Exec"));
            commands.any(|command| HOST_KEY_GENERATORS.iter().any(|program| command.contains(program)))
        })
    }

    fn read_cloud_init_config(&mut self) -> Option<Vec<(PathBuf, Vec<u8>)>> {
        if self.root.join(CLOUD_INIT_DISABLED).exists() || !self.root.join(CLOUD_INIT_CONFIG).exists() {
            return None;
        }
        let parts = self.list_entries(CLOUD_INIT_CONFIG_DIR, |name| {
            Path::new(name).extension() == Some(OsStr::new("cfg"))
        });
        let files = std::iter::once(Path::new("/").join(CLOUD_INIT_CONFIG)).chain(parts);
        let files = files.filter_map(|path| {
            let inside = path.strip_prefix("/").unwrap_or(&path).to_string_lossy().into_owned();
            self.read(&inside).map(|content| (path, content))
        });
        Some(files.collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn image_of_empty_root_is_default() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(inspect_image(root.path()), ImageFacts::default());
    }

    #[test]
    fn image_inspection_finds_all_files() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("etc/machine-id", "abc\n");
        put("var/lib/dbus/machine-id", "abc\n");
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "ssh_host_ed25519_key", "sshd_config"] {
            put(&format!("etc/ssh/{name}"), "");
        }
        put("etc/cloud/cloud.cfg", "a: 1\n");
        for name in ["20.cfg", "10.cfg", "README"] {
            put(&format!("etc/cloud/cloud.cfg.d/{name}"), name);
        }
        put("usr/lib/systemd/system/cloud-init.service", "[Unit]\nBefore=sshd-keygen.service\n");
        put("usr/lib/systemd/system/sshd-keygen@.service", "ExecStart=/usr/libexec/openssh/sshd-keygen %i\n");
        fs::create_dir_all(root.path().join("etc/systemd/system")).unwrap();
        symlink("/dev/null", root.path().join("etc/systemd/system/masked.service")).unwrap();
        let seen = inspect_image(root.path());
        let names = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(seen.host_keys, names(&["/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_rsa_key"]));
        assert_eq!(seen.machine_id.as_deref(), Some(&b"abc\n"[..]));
        assert_eq!(seen.dbus_machine_id, Some("/var/lib/dbus/machine-id".into()));
        assert_eq!(seen.key_maker, Some("/usr/lib/systemd/system/sshd-keygen@.service".into()));
        let read: Vec<PathBuf> = seen.cloud_init.unwrap().into_iter().map(|(path, _)| path).collect();
        assert_eq!(
            read,
            names(&[
                "/etc/cloud/cloud.cfg",
                "/etc/cloud/cloud.cfg.d/10.cfg",
                "/etc/cloud/cloud.cfg.d/20.cfg"
            ])
        );
        assert_eq!(seen.unseen, Vec::<String>::new());
        put("etc/cloud/cloud-init.disabled", "");
        fs::remove_file(root.path().join("var/lib/dbus/machine-id")).unwrap();
        symlink("/etc/machine-id", root.path().join("var/lib/dbus/machine-id")).unwrap();
        let seen = inspect_image(root.path());
        assert_eq!((seen.cloud_init, seen.dbus_machine_id), (None, None));
        fs::remove_file(root.path().join("etc/machine-id")).unwrap();
        fs::create_dir(root.path().join("etc/machine-id")).unwrap();
        let unseen = inspect_image(root.path()).unseen;
        assert!(unseen.len() == 1 && unseen[0].contains("etc/machine-id"), "{unseen:?}");
    }
}
