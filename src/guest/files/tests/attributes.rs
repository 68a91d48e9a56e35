//! The metadata of a file survives a replacement (KP-5.10).

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::guest::files::replace_key_file;

use super::*;

fn read_acl(path: &Path) -> Option<Vec<u8>> {
    xattr::get(path, "system.posix_acl_access").unwrap_or_default()
}

/// KP-5.6, KP-5.10.
#[test]
fn key_file_acl_survives_replacement() {
    let home = TestHome::new();
    let keys = home.create_key_file("old\n");
    if !run_tool_or_skip("setfacl", &["-m", "u:61002:r,g:61002:rw", &keys.to_string_lossy()]) {
        return;
    }
    let (mode, acl) = (owner_and_mode(&keys), read_acl(&keys));
    assert!(acl.is_some());
    replace_key_file(&home.account, &keys, Some(&content_hash("old\n")), b"new\n").unwrap();
    assert_eq!((owner_and_mode(&keys), read_acl(&keys)), (mode, acl));
    assert_eq!(fs::read(&keys).unwrap(), b"new\n");
}

#[test]
fn default_acl_of_directory_is_not_applied_to_key_file() {
    let home = TestHome::new();
    let keys = home.create_key_file("old\n");
    if !run_tool_or_skip("setfacl", &["-d", "-m", "u:61002:rw", &home.home_path(".ssh").to_string_lossy()]) {
        return;
    }
    replace_key_file(&home.account, &keys, Some(&content_hash("old\n")), b"new\n").unwrap();
    assert_eq!(read_acl(&keys), None);
    assert_eq!(owner_and_mode(&keys).2, 0o600);
}

/// KP-5.6, KP-5.10.
#[test]
fn user_xattrs_and_selinux_label_survive_replacement() {
    let home = TestHome::new();
    let keys = home.create_key_file("old\n");
    if let Err(error) = xattr::set(&keys, "user.origin", b"his") {
        eprintln!("SKIPPED: user attributes: {error}");
        return;
    }
    let label = b"system_u:object_r:ssh_home_t:s0\0";
    let labelled = xattr::set(&keys, "security.selinux", label);
    if let Err(error) = &labelled {
        eprintln!("SKIPPED: the SELinux label: {error}");
    }
    replace_key_file(&home.account, &keys, Some(&content_hash("old\n")), b"new\n").unwrap();
    assert_eq!(xattr::get(&keys, "user.origin").unwrap().as_deref(), Some(&b"his"[..]));
    if labelled.is_ok() {
        assert_eq!(xattr::get(&keys, "security.selinux").unwrap().as_deref(), Some(&label[..]));
    }
}

#[test]
fn foreign_owner_and_setuid_bit_survive_replacement() {
    if !is_root_or_skip("a file of root's in a user's directory") {
        return;
    }
    let home = TestHome::new();
    let keys = home.create_key_file("old\n");
    chown(&keys, Some(0), Some(OTHER_UID)).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o4640)).unwrap();
    replace_key_file(&home.account, &keys, Some(&content_hash("old\n")), b"new\n").unwrap();
    assert_eq!(owner_and_mode(&keys), (0, OTHER_UID, 0o4640));
}
