//! The labels on the ways to the files that sshd reads, and what SELinux says of them.

use std::path::{Path, PathBuf};

use super::files::{self, Labelled};
use super::selinux::{self, Kernel, Use};
use crate::policy::observation::{Account, Sshd};
use crate::policy::selinux::{Access, Label, LabelledWay, Labels, Place, PlaceKind};
use crate::policy::sshd_config;

/// What SELinux says of sshd's reading of its configuration and of these key files. What cannot be reached is left out:
/// whoever needs it says why.
pub(super) fn of(sshd: &Sshd, account: &Account, key_files: &[PathBuf]) -> Labels {
    let effective = sshd.answers.first().map(|answer| &answer.effective);
    let Some(kernel) = Kernel::of(&sshd.binary, effective) else { return Labels::default() };
    let way = |file: &Path, found: Vec<Labelled>| LabelledWay {
        file: file.to_owned(),
        places: found.into_iter().filter_map(|found| place(&kernel, found, Use::Search)).collect(),
    };
    let key_files = key_files
        .iter()
        .map(|file| match files::labels_to_key_file(account, file) {
            Ok(found) => way(file, found),
            // Not known, which is not to be taken for readable.
            Err(error) => LabelledWay { file: file.clone(), places: vec![unseen(error.path())] },
        })
        .collect();
    // Where our own file is put, whether or not it exists.
    let placement = sshd_config::placement(&sshd.config, sshd.main_is_writable).ok();
    let ours = placement.map(|placement| placement.place.file().to_owned());
    let mut files: Vec<&Path> = sshd.config.files.keys().map(PathBuf::as_path).collect();
    files.extend(ours.as_deref().filter(|ours| !sshd.config.files.contains_key(*ours)));
    let config = files
        .into_iter()
        .filter_map(|file| {
            let mut found = files::labels_to_root_file(file).ok()?;
            let is_drop_in = sshd_config::is_drop_in(file);
            for found in &mut found {
                found.is_owners &= is_drop_in;
            }
            let listed = file.parent().filter(|_| is_drop_in);
            let places = found.into_iter().filter_map(|found| {
                let used = if Some(found.path.as_path()) == listed { Use::List } else { Use::Search };
                // What cannot be told of sshd's own files keeps nobody from setting them.
                place(&kernel, found, used)
                    .filter(|place| place.now != Access::Unknown || place.named.is_some())
            });
            Some(LabelledWay { file: file.to_owned(), places: places.collect() })
        })
        .collect();
    let home = account.home.clone();
    Labels { enforcement: kernel.enforcement, domain: kernel.domain, home, key_files, config }
}

/// One place, used so if it is a directory. Where the kernel says nothing, types are compared of what is the owner's alone:
/// an administrator may have labelled the rest on purpose.
fn place(kernel: &Kernel, found: Labelled, of_directory: Use) -> Option<Place> {
    let Labelled { path, kind, is_owners, label } = found;
    let used = match kind {
        PlaceKind::Directory => of_directory,
        PlaceKind::Link => Use::Follow,
        PlaceKind::File => Use::Read,
    };
    let ask = |label: Option<&Label>| label.map_or(Access::Unknown, |label| kernel.allows(label, used));
    let now = ask(label.as_ref());
    if now == Access::Unknown && !is_owners {
        return None;
    }
    let named = match now {
        Access::Granted => None,
        Access::Denied | Access::Unknown => selinux::named(&path, kind),
    };
    let if_named = ask(named.as_ref());
    Some(Place { path, kind, may_be_relabelled: is_owners, label, named, now, if_named })
}

fn unseen(path: &Path) -> Place {
    Place {
        path: path.to_owned(),
        kind: PlaceKind::File,
        may_be_relabelled: false,
        label: None,
        named: None,
        now: Access::Unknown,
        if_named: Access::Unknown,
    }
}
