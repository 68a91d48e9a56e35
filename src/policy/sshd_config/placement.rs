//! Where our directives go, so that they are the first sshd reads (KP-6.12).

use std::path::{Path, PathBuf};

use super::keyword::{canonical_spelling, is_same_option};
use super::reader::{Directive, read_directives};
use super::text::{
    find_managed_in_drop_in, has_only_managed_lines, managed_line_numbers, segment_line_numbers,
};
use super::{DROP_IN_NAME, is_managed_keyword};
use crate::policy::observation::ConfigTree;
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::pattern::{glob_path_matches, has_wildcard};

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
pub fn choose_placement(tree: &ConfigTree, main_is_writable: bool) -> Result<Placement, Refusal> {
    let existing_places = managed_places(tree);
    let is_place_writable = |place: &Place| main_is_writable || matches!(place, Place::DropIn(_));
    let kept =
        existing_places.iter().find(|place| is_place_writable(place) && find_obstacle(tree, place).is_none());
    let place = match kept {
        Some(place) => place.clone(),
        None => {
            let mut candidates = candidate_drop_ins(tree).into_iter();
            match candidates.find(|place| find_obstacle(tree, place).is_none()) {
                Some(place) => place,
                None if main_is_writable => Place::TopBlock(tree.main.clone()),
                None => return Err(no_place_refusal(tree)),
            }
        }
    };
    let stale = existing_places
        .iter()
        .filter(|&other| *other != place && is_place_writable(other))
        .cloned()
        .collect();
    Ok(Placement { place, stale })
}

/// The places where something of ours stands already, in whole or in part.
pub fn managed_places(tree: &ConfigTree) -> Vec<Place> {
    let drop_ins = tree.files.iter().filter(|(file, content)| {
        is_managed_drop_in(file)
            && (!find_managed_in_drop_in(content).is_empty() || has_only_managed_lines(content))
    });
    let mut places: Vec<Place> = drop_ins.map(|(file, _)| Place::DropIn(file.clone())).collect();
    if tree.files.get(&tree.main).is_some_and(|content| !managed_line_numbers(content).is_empty()) {
        places.push(Place::TopBlock(tree.main.clone()));
    }
    places
}

/// Whether sshd reads what stands at a place: nothing leads to a drop-in whose Include is gone.
pub fn is_place_read(tree: &ConfigTree, place: &Place) -> bool {
    match place {
        Place::TopBlock(_) => true,
        Place::DropIn(file) => {
            tree.includes.values().flatten().any(|included| included.files.iter().any(|other| other == file))
        }
    }
}

/// Whether sshd reads what stands at a place of ours ahead of every other line about it: then whoever writes later loses.
pub fn is_place_first(tree: &ConfigTree, place: &Place) -> bool {
    find_obstacle(tree, place).is_none()
}

/// Whether a file has the name of our drop-in.
pub fn is_managed_drop_in(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == DROP_IN_NAME)
}

/// The drop-ins that the main file would read at global scope, in reading order.
fn candidate_drop_ins(tree: &ConfigTree) -> Vec<Place> {
    read_directives(tree)
        .iter()
        .filter(|d| d.keyword == "include" && d.is_global() && d.file == tree.main)
        .filter_map(|d| tree.includes.get(&(d.file.clone(), d.line)))
        .flatten()
        .filter(|included| included.directory_exists)
        .filter_map(|included| {
            let directory = included.pattern.parent().filter(|directory| !has_wildcard(directory))?;
            let file = directory.join(DROP_IN_NAME);
            glob_path_matches(&file, &included.pattern).then_some(Place::DropIn(file))
        })
        .collect()
}

/// What sshd would read ahead of `place`, globally and on what we set; the place itself where it would not
/// be read at all.
fn find_obstacle(tree: &ConfigTree, place: &Place) -> Option<PlacementObstacle> {
    let tree = match place {
        Place::DropIn(file) => &with_drop_in(tree, file),
        Place::TopBlock(_) => tree,
    };
    match read_directives(tree).into_iter().find(|d| d.is_global() && is_managed_keyword(&d.keyword)) {
        Some(directive) if is_managed_directive_at(tree, place, &directive) => None,
        Some(directive) => Some(PlacementObstacle::Line(Box::new(directive))),
        None => Some(PlacementObstacle::NotRead),
    }
}

enum PlacementObstacle {
    Line(Box<Directive>),
    NotRead,
}

/// The tree as sshd would find it with our drop-in. Where one stands elsewhere, nothing is reached through
/// it: it goes.
fn with_drop_in(tree: &ConfigTree, file: &Path) -> ConfigTree {
    let mut tree = tree.clone();
    let content = b"PasswordAuthentication no\n";
    tree.files.insert(file.to_owned(), content.to_vec());
    for (_, other) in tree.files.iter_mut().filter(|(other, _)| is_managed_drop_in(other)) {
        *other = content.to_vec();
    }
    for included in tree.includes.values_mut().flatten() {
        if glob_path_matches(file, &included.pattern) && !included.files.iter().any(|other| other == file) {
            // sshd reads what a pattern finds in the order of the bytes.
            let position = included.files.partition_point(|other| other.as_os_str() < file.as_os_str());
            included.files.insert(position, file.to_owned());
        }
    }
    tree
}

/// Whether a directive of `tree` is one of ours at `place`.
fn is_managed_directive_at(tree: &ConfigTree, place: &Place, directive: &Directive) -> bool {
    let managed_numbers = |content: &Vec<u8>| match place {
        Place::DropIn(_) => segment_line_numbers(content, &find_managed_in_drop_in(content)),
        Place::TopBlock(_) => managed_line_numbers(content),
    };
    directive.file == place.file()
        && tree
            .files
            .get(place.file())
            .is_some_and(|content| managed_numbers(content).contains(&directive.line))
}

/// Whether a directive is ours, wherever it stands.
pub(super) fn is_managed_directive(tree: &ConfigTree, directive: &Directive) -> bool {
    managed_places(tree).iter().any(|place| is_managed_directive_at(tree, place, directive))
}

fn no_place_refusal(tree: &ConfigTree) -> Refusal {
    let main = tree.main.display();
    let why = match candidate_drop_ins(tree).iter().find_map(|place| find_obstacle(tree, place)) {
        Some(PlacementObstacle::Line(d)) => format!(
            "{} line {} sets {} ahead of where a drop-in of ours would be read; take that line out, or",
            d.file.display(),
            d.line,
            canonical_spelling(&d.keyword)
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
pub fn find_overridden_directives(tree: &ConfigTree, managed_place: &Place) -> Vec<Directive> {
    let mut managed: Vec<Directive> = Vec::new();
    let mut overridden = Vec::new();
    for directive in
        read_directives(tree).into_iter().filter(|d| d.is_global() && is_managed_keyword(&d.keyword))
    {
        let first = managed.iter().find(|d| is_same_option(&d.keyword, &directive.keyword));
        if is_managed_directive_at(tree, managed_place, &directive) {
            managed.push(directive);
        } else if first.is_some_and(|first| !first.value().eq_ignore_ascii_case(&directive.value())) {
            overridden.push(directive);
        }
    }
    overridden
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
