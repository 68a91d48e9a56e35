//! The SELinux labels on the paths to the files that sshd reads, and whether SELinux lets sshd use them.

use std::path::{Path, PathBuf};

use super::files::{self, PathLabel};
use super::selinux::{self, AccessKind, PolicyChecker};
use crate::policy::observation::{Account, Sshd};
use crate::policy::selinux::{Access, Label, LabelledComponent, LabelledKind, LabelledPath, Labels};
use crate::policy::sshd_config;

/// The labels that decide whether sshd may read its configuration and these key files. A configuration file that
/// cannot be reached is left out: the code that needs it reports why.
pub(super) fn collect_labels(sshd: &Sshd, account: &Account, key_files: &[PathBuf]) -> Labels {
    let effective = sshd.answers.first().map(|answer| &answer.effective);
    let Some(kernel) = PolicyChecker::for_sshd(&sshd.binary, effective) else { return Labels::default() };
    let way = |file: &Path, found: Vec<PathLabel>| LabelledPath {
        file: file.to_owned(),
        places: found
            .into_iter()
            .filter_map(|found| check_place(&kernel, found, AccessKind::Search))
            .collect(),
    };
    let key_files = key_files
        .iter()
        .map(|file| match files::read_key_file_labels(account, file) {
            Ok(found) => way(file, found),
            // The label is unknown, so the file must not count as readable.
            Err(error) => LabelledPath { file: file.clone(), places: vec![unknown_place(error.path())] },
        })
        .collect();
    // The place of the agent's own file, whether or not the file exists.
    let placement = sshd_config::choose_placement(&sshd.config, sshd.main_is_writable).ok();
    let ours = placement.map(|placement| placement.place.file().to_owned());
    let mut files: Vec<&Path> = sshd.config.files.keys().map(PathBuf::as_path).collect();
    files.extend(ours.as_deref().filter(|ours| !sshd.config.files.contains_key(*ours)));
    let config = files
        .into_iter()
        .filter_map(|file| {
            let mut found = files::read_root_file_labels(file).ok()?;
            let is_drop_in = sshd_config::is_managed_drop_in(file);
            for found in &mut found {
                found.is_owners &= is_drop_in;
            }
            let listed = file.parent().filter(|_| is_drop_in);
            let places = found.into_iter().filter_map(|found| {
                let used =
                    if Some(found.path.as_path()) == listed { AccessKind::List } else { AccessKind::Search };
                // An unknown label on sshd's own files must not block a command.
                check_place(&kernel, found, used)
                    .filter(|place| place.now != Access::Unknown || place.named.is_some())
            });
            Some(LabelledPath { file: file.to_owned(), places: places.collect() })
        })
        .collect();
    let home = account.home.clone();
    Labels { enforcement: kernel.enforcement, domain: kernel.domain, home, key_files, config }
}

/// One object on a path, checked for `directory_use` if it is a directory. If the kernel gives no answer, types are
/// compared only for objects of the owner: an administrator may have labelled the others on purpose.
fn check_place(
    kernel: &PolicyChecker,
    found: PathLabel,
    directory_use: AccessKind,
) -> Option<LabelledComponent> {
    let PathLabel { path, kind, is_owners, label } = found;
    let used = match kind {
        LabelledKind::Directory => directory_use,
        LabelledKind::Link => AccessKind::Follow,
        LabelledKind::File => AccessKind::Read,
    };
    let ask = |label: Option<&Label>| label.map_or(Access::Unknown, |label| kernel.check_access(label, used));
    let now = ask(label.as_ref());
    if now == Access::Unknown && !is_owners {
        return None;
    }
    let named = match now {
        Access::Granted => None,
        Access::Denied | Access::Unknown => selinux::lookup_file_context(&path, kind),
    };
    let if_named = ask(named.as_ref());
    Some(LabelledComponent { path, kind, may_be_relabelled: is_owners, label, named, now, if_named })
}

fn unknown_place(path: &Path) -> LabelledComponent {
    LabelledComponent {
        path: path.to_owned(),
        kind: LabelledKind::File,
        may_be_relabelled: false,
        label: None,
        named: None,
        now: Access::Unknown,
        if_named: Access::Unknown,
    }
}
