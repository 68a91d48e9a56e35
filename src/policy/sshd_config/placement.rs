//! Where our directives go, so that they are the first sshd reads (KP-6.12).

use std::path::{Path, PathBuf};

use super::keyword::{is_same_option, spelling};
use super::reader::{Directive, directives};
use super::text::{is_ours_alone, numbers, our_lines, ours_in_drop_in};
use super::{DROP_IN, is_set_by_us};
use crate::policy::observation::ConfigTree;
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::pattern::{glob_path, has_wildcard};

/// A place for our directives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Our drop-in, this file.
    DropIn(PathBuf),
    /// The block at the very top of this main file.
    TopBlock(PathBuf),
}

impl Place {
    /// The file that is written there.
    pub fn file(&self) -> &Path {
        match self {
            Self::DropIn(file) | Self::TopBlock(file) => file,
        }
    }
}

/// Where ours goes, and what of ours stands elsewhere and has to go: never both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The place.
    pub place: Place,
    /// Our own things at other places, the main file aside where it may not be written.
    pub stale: Vec<Place>,
}

/// Where our directives go (KP-6.12). A place once taken is kept while nothing that sshd reads
/// ahead of it sets them; else the first drop-in directory that the main file includes ahead of everything
/// that sets them; else the top of the main file. Where that may not be written either,
/// PASSWORD_AUTH_NOT_EFFECTIVE names the file.
pub fn placement(tree: &ConfigTree, main_is_writable: bool) -> Result<Placement, Refusal> {
    let taken = taken(tree);
    let may_be = |place: &Place| main_is_writable || matches!(place, Place::DropIn(_));
    let kept = taken.iter().find(|place| may_be(place) && ahead_of(tree, place).is_none());
    let place = match kept {
        Some(place) => place.clone(),
        None => {
            let mut candidates = drop_ins(tree).into_iter();
            match candidates.find(|place| ahead_of(tree, place).is_none()) {
                Some(place) => place,
                None if main_is_writable => Place::TopBlock(tree.main.clone()),
                None => return Err(nowhere(tree)),
            }
        }
    };
    let stale = taken.iter().filter(|&other| *other != place && may_be(other)).cloned().collect();
    Ok(Placement { place, stale })
}

/// The places where something of ours stands already, in whole or in part.
pub fn taken(tree: &ConfigTree) -> Vec<Place> {
    let drop_ins = tree.files.iter().filter(|(file, content)| {
        is_drop_in(file) && (!ours_in_drop_in(content).is_empty() || is_ours_alone(content))
    });
    let mut taken: Vec<Place> = drop_ins.map(|(file, _)| Place::DropIn(file.clone())).collect();
    if tree.files.get(&tree.main).is_some_and(|content| !our_lines(content).is_empty()) {
        taken.push(Place::TopBlock(tree.main.clone()));
    }
    taken
}

/// Whether sshd reads what stands at a place: nothing leads to a drop-in whose Include is gone.
pub fn is_read(tree: &ConfigTree, place: &Place) -> bool {
    match place {
        Place::TopBlock(_) => true,
        Place::DropIn(file) => {
            tree.includes.values().flatten().any(|included| included.files.iter().any(|other| other == file))
        }
    }
}

/// Whether sshd reads what stands at a place of ours ahead of every other line about it: then whoever writes later loses.
pub fn is_first(tree: &ConfigTree, place: &Place) -> bool {
    ahead_of(tree, place).is_none()
}

/// Whether a file has the name of our drop-in.
pub fn is_drop_in(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == DROP_IN)
}

/// The drop-ins that the main file would read at global scope, in reading order.
fn drop_ins(tree: &ConfigTree) -> Vec<Place> {
    directives(tree)
        .iter()
        .filter(|d| d.keyword == "include" && d.is_global() && d.file == tree.main)
        .filter_map(|d| tree.includes.get(&(d.file.clone(), d.line)))
        .flatten()
        .filter(|included| included.directory_exists)
        .filter_map(|included| {
            let directory = included.pattern.parent().filter(|directory| !has_wildcard(directory))?;
            let file = directory.join(DROP_IN);
            glob_path(&file, &included.pattern).then_some(Place::DropIn(file))
        })
        .collect()
}

/// What sshd would read ahead of `place`, globally and on what we set; the place itself where it would not
/// be read at all.
fn ahead_of(tree: &ConfigTree, place: &Place) -> Option<Obstacle> {
    let tree = match place {
        Place::DropIn(file) => &with_drop_in(tree, file),
        Place::TopBlock(_) => tree,
    };
    match directives(tree).into_iter().find(|d| d.is_global() && is_set_by_us(&d.keyword)) {
        Some(directive) if stands_in(tree, place, &directive) => None,
        Some(directive) => Some(Obstacle::Line(Box::new(directive))),
        None => Some(Obstacle::NotRead),
    }
}

enum Obstacle {
    Line(Box<Directive>),
    NotRead,
}

/// The tree as sshd would find it with our drop-in. Where one stands elsewhere, nothing is reached through
/// it: it goes.
fn with_drop_in(tree: &ConfigTree, file: &Path) -> ConfigTree {
    let mut tree = tree.clone();
    let content = b"PasswordAuthentication no\n";
    tree.files.insert(file.to_owned(), content.to_vec());
    for (_, other) in tree.files.iter_mut().filter(|(other, _)| is_drop_in(other)) {
        *other = content.to_vec();
    }
    for included in tree.includes.values_mut().flatten() {
        if glob_path(file, &included.pattern) && !included.files.iter().any(|other| other == file) {
            // sshd reads what a pattern finds in the order of the bytes.
            let at = included.files.partition_point(|other| other.as_os_str() < file.as_os_str());
            included.files.insert(at, file.to_owned());
        }
    }
    tree
}

/// Whether a directive of `tree` is one of ours at `place`.
fn stands_in(tree: &ConfigTree, place: &Place, directive: &Directive) -> bool {
    let ours = |content: &Vec<u8>| match place {
        Place::DropIn(_) => numbers(content, &ours_in_drop_in(content)),
        Place::TopBlock(_) => our_lines(content),
    };
    directive.file == place.file()
        && tree.files.get(place.file()).is_some_and(|content| ours(content).contains(&directive.line))
}

/// Whether a directive is ours, wherever it stands.
pub(super) fn is_ours(tree: &ConfigTree, directive: &Directive) -> bool {
    taken(tree).iter().any(|place| stands_in(tree, place, directive))
}

fn nowhere(tree: &ConfigTree) -> Refusal {
    let main = tree.main.display();
    let why = match drop_ins(tree).iter().find_map(|place| ahead_of(tree, place)) {
        Some(Obstacle::Line(d)) => format!(
            "{} line {} sets {} ahead of where a drop-in of ours would be read; take that line out, or",
            d.file.display(),
            d.line,
            spelling(&d.keyword)
        ),
        _ => "it includes no directory where a drop-in of ours would be read first;".to_owned(),
    };
    Refusal::new(
        Reason::PasswordAuthNotEffective,
        format!(
            "{main} is sshd's own default file and is never written, and {why} copy it to /etc/ssh/sshd_config"
        ),
    )
}

/// The global lines after ours that say otherwise than ours: someone's change that we override, for
/// `status` and `check` (KP-6.16).
pub fn contrary_lines(tree: &ConfigTree, ours: &Place) -> Vec<Directive> {
    let mut set: Vec<Directive> = Vec::new();
    let mut contrary = Vec::new();
    for directive in directives(tree).into_iter().filter(|d| d.is_global() && is_set_by_us(&d.keyword)) {
        let first = set.iter().find(|d| is_same_option(&d.keyword, &directive.keyword));
        if stands_in(tree, ours, &directive) {
            set.push(directive);
        } else if first.is_some_and(|first| !first.value().eq_ignore_ascii_case(&directive.value())) {
            contrary.push(directive);
        }
    }
    contrary
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
