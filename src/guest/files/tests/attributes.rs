//! What a file carries besides its bytes survives (KP-5.10).

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::guest::files::replace_key_file;

use super::*;

fn acl_of(path: &Path) -> Option<Vec<u8>> {
    xattr::get(path, "system.posix_acl_access").unwrap_or_default()
}

/// KP-5.6, KP-5.10.
#[test]
fn an_acl_survives() {
    let home = Home::new();
    let keys = home.with_keys("old\n");
    if !tool("setfacl", &["-m", "u:61002:r,g:61002:rw", &keys.to_string_lossy()]) {
        return;
    }
    let (mode, acl) = (owner_and_mode(&keys), acl_of(&keys));
    assert!(acl.is_some());
    replace_key_file(&home.account, &keys, Some(&hash("old\n")), b"new\n").unwrap();
    assert_eq!((owner_and_mode(&keys), acl_of(&keys)), (mode, acl));
    assert_eq!(fs::read(&keys).unwrap(), b"new\n");
}

#[test]
fn a_directorys_default_acl_does_not_reach_a_file_without_one() {
    let home = Home::new();
    let keys = home.with_keys("old\n");
    if !tool("setfacl", &["-d", "-m", "u:61002:rw", &home.at(".ssh").to_string_lossy()]) {
        return;
    }
    replace_key_file(&home.account, &keys, Some(&hash("old\n")), b"new\n").unwrap();
    assert_eq!(acl_of(&keys), None);
    assert_eq!(owner_and_mode(&keys).2, 0o600);
}

/// KP-5.6, KP-5.10.
#[test]
fn user_attributes_and_the_label_survive() {
    let home = Home::new();
    let keys = home.with_keys("old\n");
    if let Err(error) = xattr::set(&keys, "user.origin", b"his") {
        eprintln!("SKIPPED: user attributes: {error}");
        return;
    }
    let label = b"system_u:object_r:ssh_home_t:s0\0";
    let labelled = xattr::set(&keys, "security.selinux", label);
    if let Err(error) = &labelled {
        eprintln!("SKIPPED: the SELinux label: {error}");
    }
    replace_key_file(&home.account, &keys, Some(&hash("old\n")), b"new\n").unwrap();
    assert_eq!(xattr::get(&keys, "user.origin").unwrap().as_deref(), Some(&b"his"[..]));
    if labelled.is_ok() {
        assert_eq!(xattr::get(&keys, "security.selinux").unwrap().as_deref(), Some(&label[..]));
    }
}

#[test]
fn a_foreign_owner_and_odd_bits_survive() {
    if !is_root("a file of root's in a user's directory") {
        return;
    }
    let home = Home::new();
    let keys = home.with_keys("old\n");
    chown(&keys, Some(0), Some(OTHER)).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o4640)).unwrap();
    replace_key_file(&home.account, &keys, Some(&hash("old\n")), b"new\n").unwrap();
    assert_eq!(owner_and_mode(&keys), (0, OTHER, 0o4640));
}
