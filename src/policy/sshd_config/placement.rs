//! Chooses where the agent writes its directives, so that sshd reads them first (KP-6.12).

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

/// A place at which the agent can write its directives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The agent's drop-in, at this path.
    DropIn(PathBuf),
    /// The block at the very top of this main file.
    TopBlock(PathBuf),
}

impl Place {
    /// Returns the file that the agent writes for this place.
    pub fn file(&self) -> &Path {
        match self {
            Self::DropIn(file) | Self::TopBlock(file) => file,
        }
    }
}

/// Where the agent writes its directives, and the other places from which it removes them. No place is both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The chosen place.
    pub place: Place,
    /// Other places that contain directives of the agent. The main file is not among them if the agent may not write
    /// it.
    pub stale: Vec<Place>,
}

/// Chooses where the agent writes its directives (KP-6.12), in this order:
///
/// 1. A place that the agent already uses, as long as sshd reads no other line that sets the same keywords before it.
/// 2. The first drop-in directory that the main file includes before every line that sets these keywords.
/// 3. The top of the main file.
///
/// # Errors
/// `PASSWORD_AUTH_NOT_EFFECTIVE`, which names the file, if the agent may not write the main file either.
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

/// Returns the places that already contain lines of the agent, all of them or some.
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

/// Returns true if sshd reads the file of this place. It does not read a drop-in if the `Include` for it is gone.
pub fn is_place_read(tree: &ConfigTree, place: &Place) -> bool {
    match place {
        Place::TopBlock(_) => true,
        Place::DropIn(file) => {
            tree.includes.values().flatten().any(|included| included.files.iter().any(|other| other == file))
        }
    }
}

/// Returns true if sshd reads the agent's lines at `place` before every other line that sets the same keywords. Then a
/// line that another program adds later has no effect.
pub fn is_place_first(tree: &ConfigTree, place: &Place) -> bool {
    find_obstacle(tree, place).is_none()
}

/// Returns true if a file has the name of the agent's drop-in.
pub fn is_managed_drop_in(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == DROP_IN_NAME)
}

/// The drop-ins that the main file would include at global scope, in reading order.
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

/// Returns the global line that sshd would read before `place` and that sets one of the agent's keywords. Returns
/// [`PlacementObstacle::NotRead`] if sshd would not read the place at all.
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

/// Returns the tree as it would be with the agent's drop-in at `file`. Every other drop-in of the agent loses its
/// includes in this tree, because the agent will remove it.
fn with_drop_in(tree: &ConfigTree, file: &Path) -> ConfigTree {
    let mut tree = tree.clone();
    let content = b"PasswordAuthentication no\n";
    tree.files.insert(file.to_owned(), content.to_vec());
    for (_, other) in tree.files.iter_mut().filter(|(other, _)| is_managed_drop_in(other)) {
        *other = content.to_vec();
    }
    for included in tree.includes.values_mut().flatten() {
        if glob_path_matches(file, &included.pattern) && !included.files.iter().any(|other| other == file) {
            // sshd reads the files that a pattern finds in byte order of their paths.
            let position = included.files.partition_point(|other| other.as_os_str() < file.as_os_str());
            included.files.insert(position, file.to_owned());
        }
    }
    tree
}

/// Returns true if the agent wrote this directive of `tree` at `place`.
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

/// Returns true if the agent wrote this directive, at any place.
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

/// Returns the global lines after the agent's lines that set another value. These are other programs' changes that the
/// agent overrides, for `status` and `check` (KP-6.16).
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
