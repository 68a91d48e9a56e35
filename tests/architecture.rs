//! Checks that the rooms of docs/architecture.md are the folders of src/, and that they import each other as
//! described.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms that each room may import, besides itself.
const ALLOWED_IMPORTS: [(&str, &[&str]); 8] = [
    ("policy", &[]),
    ("channel", &["policy"]),
    ("guest", &["policy", "config"]),
    ("transaction", &["policy", "guest"]),
    ("config", &["policy", "channel"]),
    ("logging", &["policy"]),
    ("agent", &["policy", "channel", "transaction", "logging"]),
    ("cli", &["policy", "channel", "guest", "transaction", "config", "logging", "agent"]),
];

fn collect_rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every file of src/ with its room and its code, without tests and comments.
fn read_source_files() -> Vec<(String, PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect_rust_files(&src, &mut files);
    assert!(files.len() > 40, "{}", files.len());
    files
        .into_iter()
        .filter(|path| !path.components().any(|part| part.as_os_str().to_string_lossy().contains("tests")))
        .map(|path| {
            let inside = path.strip_prefix(&src).unwrap();
            let room = inside.components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "");
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
            let code: String = code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .map(|line| format!("{line}\n"))
                .collect();
            (room, path, code)
        })
        .collect()
}

#[test]
fn modules_import_only_allowed_modules() {
    let names: Vec<&str> = ALLOWED_IMPORTS.iter().map(|(room, _)| *room).collect();
    for (room, path, code) in read_source_files() {
        let Some((_, allowed)) = ALLOWED_IMPORTS.iter().find(|(name, _)| *name == room) else {
            assert!(room == "lib" || room == "main", "{room} is no room of the picture");
            continue;
        };
        for name in &names {
            let used =
                code.contains(&format!("crate::{name}::")) || code.contains(&format!("crate::{name};"));
            assert!(
                !used || *name == room || allowed.contains(name),
                "{} uses crate::{name}",
                path.display()
            );
        }
    }
}

#[test]
fn policy_module_does_no_io() {
    for (room, path, code) in read_source_files() {
        if room == "policy" {
            // This module only converts the bytes of a path. It makes no system call.
            let code = code.replace("std::os::unix::ffi", "");
            for machine in ["std::fs", "std::process", "std::env", "SystemTime", "Instant", "tokio", "nix::"]
            {
                assert!(!code.contains(machine), "{} uses {machine}", path.display());
            }
            let sockets = code.replace("std::net::IpAddr", "").replace("std::net::{IpAddr, SocketAddr}", "");
            assert!(!sockets.contains("std::net::Tcp"), "{}", path.display());
        }
        if !["agent", "channel"].contains(&room.as_str()) {
            assert!(!code.contains("async ") && !code.contains(".await"), "{} is async", path.display());
        }
    }
}

#[test]
fn architecture_document_names_every_source_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let named: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    let mut files = Vec::new();
    collect_rust_files(&root.join("src"), &mut files);
    for path in files {
        let folder = format!("{}/", path.parent().unwrap().strip_prefix(root).unwrap().display());
        assert!(named.contains(&folder.as_str()), "docs/architecture.md does not name `{folder}`");
        let file = path.file_name().unwrap().to_str().unwrap();
        let whole = path.strip_prefix(root).unwrap().to_str().unwrap();
        let is_told = folder.ends_with("tests/") || file.contains("tests");
        assert!(
            is_told || named.contains(&file) || named.contains(&whole),
            "docs/architecture.md does not name `{whole}`"
        );
    }
    for path in named.iter().filter(|name| name.starts_with("src/")) {
        assert!(root.join(path).exists(), "docs/architecture.md names `{path}`, which is not there");
    }
}
