//! The owner of the home. This process has only the user's own rights; an attack may fail, and then it tries another.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::land::HomeFixture;
use crate::support::dice::SeededRng;

/// The attacks on a path.
const PATH_ATTACKS: [&str; 14] = [
    "aside and back",
    "link to a victim",
    "link to his own",
    "link in a circle",
    "fifo",
    "socket",
    "directory",
    "hard link of his own",
    "hard link of a victim",
    "root's thing in its place",
    "his file",
    "append",
    "mode",
    "gone",
];

/// Attacks until the file `done` exists. Returns how often each attack succeeded.
pub fn run_path_attacks(land: &HomeFixture, seed: u64) -> BTreeMap<String, usize> {
    let mut dice = SeededRng::from_seed(seed);
    let mut count = BTreeMap::new();
    fs::create_dir_all(land.home().join(".ssh")).unwrap();
    fs::write(land.home().join("own"), "his own\n").unwrap();
    while !land.path("done").exists() {
        let key_files = land.key_files();
        let key_file = &key_files[dice.next_below(2)];
        let directory = key_file.parent().unwrap();
        let (kind, done) = match dice.next_below(10) {
            0..=2 => attack_path(land, &mut dice, directory, "directory"),
            3 => attack_path(
                land,
                &mut dice,
                directory.parent().filter(|up| *up != land.home()).unwrap_or(directory),
                "parent",
            ),
            4..=6 => attack_path(land, &mut dice, key_file, "file"),
            7 => attack_temp_file(land, &mut dice, directory),
            // Restores the path, so that the agent can work and there is a race again.
            _ => ("the way is free", restore_path(land, directory, key_file)),
        };
        *count.entry(kind.to_owned()).or_default() += usize::from(done.is_ok());
    }
    count
}

fn attack_path(
    land: &HomeFixture,
    dice: &mut SeededRng,
    path: &Path,
    what: &str,
) -> (&'static str, io::Result<()>) {
    let deed = PATH_ATTACKS[dice.next_below(PATH_ATTACKS.len())];
    let aside = land.home().join(format!("aside-{what}"));
    let home = land.home();
    let victims =
        ["victim", "victim/authorized_keys", "empty", "stranger", "stranger/authorized_keys", "everyones"];
    let victim = land.path(victims[dice.next_below(victims.len())]);
    // If the attack puts something in the path's place, the present entry is moved aside first.
    let instead = |place: &dyn Fn() -> io::Result<()>| {
        remove_own(&aside);
        let _ = fs::rename(path, &aside);
        place()
    };
    let done = match deed {
        "aside and back" => fs::rename(path, &aside).and_then(|()| fs::rename(&aside, path)),
        "link to a victim" => instead(&|| symlink(&victim, path)),
        "link to his own" => instead(&|| symlink(home.join("own"), path)),
        "link in a circle" => instead(&|| symlink(path, path)),
        "fifo" => instead(&|| Ok(mkfifo(path, Mode::S_IRWXU)?)),
        "socket" => instead(&|| UnixListener::bind(path).map(drop)),
        "directory" => instead(&|| fs::create_dir(path)),
        "hard link of his own" => instead(&|| fs::hard_link(home.join("own"), path)),
        "hard link of a victim" => instead(&|| fs::hard_link(&victim, path)),
        "root's thing in its place" => {
            let thing = home.join(["treasure", "roots"][dice.next_below(2)]);
            instead(&|| fs::rename(&thing, path)).and_then(|()| fs::rename(path, &thing))
        }
        "his file" => write_nonblocking(OpenOptions::new().create(true).truncate(true), path, "his\n"),
        "append" => write_nonblocking(OpenOptions::new().append(true), path, "more\n"),
        "mode" => fs::set_permissions(
            path,
            fs::Permissions::from_mode([0o700, 0o777, 0o600, 0o000][dice.next_below(4)]),
        ),
        _ => {
            remove_own(path);
            Ok(())
        }
    };
    (deed, done)
}

/// The agent's temporary file is in the user's directory too.
fn attack_temp_file(
    land: &HomeFixture,
    dice: &mut SeededRng,
    directory: &Path,
) -> (&'static str, io::Result<()>) {
    let find = || {
        let found = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
        found.into_iter().find(|path| path.to_string_lossy().contains(".keypair-agent-"))
    };
    let Some(path) = (0..100).find_map(|_| find()) else {
        return ("no temporary to be seen", Ok(()));
    };
    let away = land.home().join("stolen");
    match dice.next_below(4) {
        0 => ("temporary stolen", fs::rename(&path, away)),
        1 => (
            "temporary replaced by a link",
            replace_file(&path, &away, || symlink(land.path("victim/authorized_keys"), &path)),
        ),
        2 => (
            "temporary replaced by a file",
            replace_file(&path, &away, || {
                write_nonblocking(OpenOptions::new().create(true), &path, "planted\n")
            }),
        ),
        _ => ("temporary linked", fs::hard_link(&path, away)),
    }
}

fn replace_file(path: &Path, away: &Path, place: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    fs::rename(path, away)?;
    place()
}

fn restore_path(land: &HomeFixture, directory: &Path, key_file: &Path) -> io::Result<()> {
    let parents: Vec<PathBuf> = directory.ancestors().map(Path::to_owned).collect();
    for parent in parents.into_iter().rev().filter(|parent| parent.starts_with(land.home())) {
        if parent.symlink_metadata().is_ok_and(|metadata| !metadata.is_dir()) {
            remove_own(&parent);
        }
        let _ = fs::create_dir(&parent);
        let _ = fs::set_permissions(&parent, fs::Permissions::from_mode(0o755));
    }
    if !key_file.symlink_metadata().is_ok_and(|metadata| metadata.is_file()) {
        remove_own(key_file);
    }
    write_nonblocking(OpenOptions::new().create(true).append(true), key_file, "")
}

/// Removes what the user may remove. Entries of root are moved back to their places.
fn remove_own(path: &Path) {
    let Ok(metadata) = path.symlink_metadata() else { return };
    if !metadata.is_dir() {
        let _ = fs::remove_file(path);
    } else if fs::remove_dir_all(path).is_err() {
        let away = path.with_extension("kept");
        let _ = fs::rename(path, away);
    }
}

/// Writes without waiting for a reader of a FIFO.
fn write_nonblocking(how: &mut OpenOptions, path: &Path, words: &str) -> io::Result<()> {
    how.write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?.write_all(words.as_bytes())
}
