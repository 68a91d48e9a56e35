//! SELinux: whether sshd may read the files on which a command depends, by the labels of the file and of every
//! directory on its path. Also the remedy for a label with which sshd may not read. selinux(8), restorecon(8),
//! file_contexts(5).
//!
//! The kernel's policy decides whether sshd may read. The label that file_contexts(5) names is only the remedy. So
//! the agent does not change a label that an administrator set on purpose and with which sshd can read.

use std::fmt;
use std::path::{Path, PathBuf};

use super::lockout::GuardFinding;
use super::outcome::{Warning, WarningReason};

/// The name of the rule in findings.
const LABEL_RULE: &str = "SELinux label";

/// The maximum length of a label in bytes. The kernel's own labels are far shorter.
const MAX_LABEL_BYTES: usize = 1024;

/// A security context: `user:role:type`, and a range if the policy has levels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label(String);

impl Label {
    /// Parses a label from an extended attribute, a file of selinuxfs or a program's output. `None` if it is not a
    /// label.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes).trim_ascii();
        let fits = bytes.len() <= MAX_LABEL_BYTES
            && bytes.iter().all(u8::is_ascii_graphic)
            && bytes.split(|byte| *byte == b':').count() >= 3
            && !bytes.starts_with(b"<<");
        let text = std::str::from_utf8(bytes).ok().filter(|_| fits)?;
        Some(Self(text.to_owned()))
    }

    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The label's type, which decides in nearly every rule of a policy. A process's type is called its domain.
    pub fn type_name(&self) -> &str {
        self.0.split(':').nth(2).unwrap_or_default()
    }

    /// This label with the type of another label. restorecon(8) changes only the type by itself.
    #[must_use]
    pub fn with_type_of(&self, other: &Self) -> Self {
        let parts = self.0.splitn(4, ':').enumerate();
        let parts: Vec<&str> =
            parts.map(|(index, part)| if index == 2 { other.type_name() } else { part }).collect();
        Self(parts.join(":"))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How SELinux treats sshd's accesses on this guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enforcement {
    /// SELinux does not run.
    #[default]
    Absent,
    /// SELinux only logs what it would deny, either for the whole system or for sshd's domain.
    Permissive,
    /// SELinux denies accesses.
    Enforcing,
}

/// Whether the policy allows sshd to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The policy allows it.
    Granted,
    /// The policy does not allow it.
    Denied,
    /// The agent could not query the kernel.
    Unknown,
}

/// The kind of a component of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelledKind {
    /// A directory that sshd traverses.
    Directory,
    /// A symbolic link that sshd follows.
    Link,
    /// The file that sshd reads.
    File,
}

/// An existing directory, link or file on the path to a file that sshd reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledComponent {
    /// The component's path, with links resolved.
    pub path: PathBuf,
    /// The component's kind.
    pub kind: LabelledKind,
    /// Whether the agent may change the label: the user's home and everything below it, a key file, the agent's
    /// drop-in.
    pub may_be_relabelled: bool,
    /// The component's label.
    pub label: Option<Label>,
    /// The label that the policy names for the path. The agent looks it up only if sshd may not read with the present
    /// label.
    pub named: Option<Label>,
    /// Whether sshd may read or search the component.
    pub now: Access,
    /// Whether sshd could do so with the label that the policy names.
    pub if_named: Access,
}

/// The path to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledPath {
    /// The file, as sshd names it.
    pub file: PathBuf,
    /// The existing components of the path, `/` first.
    pub places: Vec<LabelledComponent>,
}

/// The SELinux facts about sshd and the files that it reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels {
    /// Whether SELinux denies accesses.
    pub enforcement: Enforcement,
    /// The domain in which sshd reads. `None` if the agent cannot determine it.
    pub domain: Option<Label>,
    /// The user's home.
    pub home: PathBuf,
    /// The paths to the user's key files.
    pub key_files: Vec<LabelledPath>,
    /// The paths to the files of sshd's configuration.
    pub config: Vec<LabelledPath>,
}

/// A label that the agent sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relabel {
    /// The file at the end of the path.
    pub file: PathBuf,
    /// The directory or file on the path that gets the label.
    pub place: PathBuf,
    /// The present label.
    pub was: Option<Label>,
    /// The new label.
    pub label: Label,
}

impl Relabel {
    /// Describes the planned change, for `plan`.
    pub fn describe_plan(&self) -> String {
        format!("the SELinux label of {} becomes {}", self.place.display(), self.label)
    }

    /// Describes the problem while the label is not set, and the remedy.
    pub fn describe_problem(&self) -> String {
        let Self { place, was, label, .. } = self;
        format!(
            "{LABEL_RULE}: sshd may not read {}: its label is {}, the policy names {label} for that path; {}",
            place.display(),
            was.as_ref().map_or("not known", Label::as_str),
            restorecon_command(place)
        )
    }
}

impl fmt::Display for Relabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let was = self.was.as_ref().map_or("none", Label::as_str);
        write!(f, "the SELinux label of {} was {was} and is {} now", self.place.display(), self.label)
    }
}

/// The result for one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelCheck {
    /// sshd may read the file.
    Readable,
    /// sshd may not read it, but SELinux does not enforce.
    Tolerated(Warning),
    /// sshd may read it once these labels are set.
    Fixable(Vec<Relabel>),
    /// sshd may not read it, because of a component of this kind.
    Unreadable(GuardFinding, LabelledKind),
}

/// The result for one component.
enum ComponentStatus<'a> {
    Readable,
    Fixable(&'a Label),
    Denied,
    Unknown,
}

impl LabelledComponent {
    fn status(&self) -> ComponentStatus<'_> {
        match (self.now, &self.label, &self.named) {
            (Access::Granted, _, _) => ComponentStatus::Readable,
            (Access::Denied, label, Some(named))
                if self.if_named == Access::Granted && label.as_ref() != Some(named) =>
            {
                ComponentStatus::Fixable(named)
            }
            (Access::Denied, _, _) => ComponentStatus::Denied,
            // The kernel cannot be queried. restorecon(8) compares only types.
            (Access::Unknown, Some(label), Some(named)) if label.type_name() == named.type_name() => {
                ComponentStatus::Readable
            }
            (Access::Unknown, _, Some(named)) => ComponentStatus::Fixable(named),
            (Access::Unknown, _, None) => ComponentStatus::Unknown,
        }
    }
}

impl Labels {
    /// Whether sshd may read a key file. `holds_others` returns whether a key file contains keys that the agent does
    /// not manage. The agent changes no label if that would allow a login with such a key.
    pub fn check_key_file(&self, file: &Path, holds_others: &dyn Fn(&Path) -> bool) -> LabelCheck {
        let shares = |place: &LabelledComponent| {
            self.key_files
                .iter()
                .any(|way| way.places.iter().any(|other| other.path == place.path) && holds_others(&way.file))
        };
        match self.key_files.iter().find(|way| way.file == file) {
            Some(way) => self.check_path(way, &shares),
            None => LabelCheck::Readable,
        }
    }

    /// Whether sshd may read every file of its configuration. Returns the first file that it may not read, or else
    /// all label changes that are needed.
    pub fn check_config_files(&self) -> LabelCheck {
        let mut cures = Vec::new();
        let mut tolerated = None;
        for way in &self.config {
            match self.check_path(way, &|_| false) {
                LabelCheck::Readable => {}
                LabelCheck::Fixable(more) => cures.extend(more),
                LabelCheck::Tolerated(warning) => tolerated = tolerated.or(Some(warning)),
                unreadable @ LabelCheck::Unreadable(..) => return unreadable,
            }
        }
        match (cures.is_empty(), tolerated) {
            (false, _) => LabelCheck::Fixable(cures),
            (true, Some(warning)) => LabelCheck::Tolerated(warning),
            (true, None) => LabelCheck::Readable,
        }
    }

    fn check_path(&self, way: &LabelledPath, shares: &dyn Fn(&LabelledComponent) -> bool) -> LabelCheck {
        let mut cures = Vec::new();
        for place in &way.places {
            let (remedy, named) = match place.status() {
                ComponentStatus::Readable => continue,
                ComponentStatus::Fixable(named) => (Self::restorecon_remedy(place, shares), Some(named)),
                ComponentStatus::Denied => (Some(self.policy_remedy(place)), None),
                ComponentStatus::Unknown if self.enforcement == Enforcement::Permissive => continue,
                ComponentStatus::Unknown => (Some(UNKNOWN_REMEDY.to_owned()), None),
            };
            match (self.enforcement, remedy, named) {
                (Enforcement::Absent, _, _) => {}
                (Enforcement::Permissive, remedy, _) => {
                    let remedy = remedy.unwrap_or_else(|| restorecon_command(&place.path));
                    let message = format!(
                        "{}; SELinux does not enforce that now (permissive), so it lets in until it does; {remedy}",
                        self.describe_cause(place)
                    );
                    let warning =
                        Warning::new(WarningReason::WrongLabel, message).with_location(&place.path, None);
                    return LabelCheck::Tolerated(warning);
                }
                (Enforcement::Enforcing, None, Some(named)) => cures.push(Relabel {
                    file: way.file.clone(),
                    place: place.path.clone(),
                    was: place.label.clone(),
                    label: named.clone(),
                }),
                (Enforcement::Enforcing, remedy, _) => {
                    let remedy = remedy.unwrap_or_else(|| restorecon_command(&place.path));
                    let finding = GuardFinding {
                        name: LABEL_RULE,
                        message: format!("{LABEL_RULE}: {}; {remedy}", self.describe_cause(place)),
                        file: Some(place.path.clone()),
                        line: None,
                    };
                    return LabelCheck::Unreadable(finding, place.kind);
                }
            }
        }
        if cures.is_empty() { LabelCheck::Readable } else { LabelCheck::Fixable(cures) }
    }

    /// The remedy if the policy names a better label. `None` if the agent sets it by itself.
    fn restorecon_remedy(
        place: &LabelledComponent,
        shares: &dyn Fn(&LabelledComponent) -> bool,
    ) -> Option<String> {
        let restore = restorecon_command(&place.path);
        if shares(place) {
            return Some(format!(
                "keys that are not the agent's would let in as soon as it is corrected: see whose they are, then {restore}"
            ));
        }
        (!place.may_be_relabelled).then_some(restore)
    }

    /// The remedy if the policy names no label with which sshd could read.
    fn policy_remedy(&self, place: &LabelledComponent) -> String {
        let is_own = |homes: &&Path| homes.parent().is_some() && *homes != Path::new("/home");
        let homes = self.home.parent().filter(is_own);
        match (&place.named, homes) {
            (None, _) => restorecon_command(&place.path),
            (Some(_), Some(homes))
                if place.path.starts_with(&self.home) || self.home.starts_with(&place.path) =>
            {
                let highest = if place.path.starts_with(&self.home) { &self.home } else { &place.path };
                format!(
                    "tell the policy that homes are there, semanage fcontext -a -e /home {}, then {}",
                    shell_quote(homes),
                    restorecon_command(highest)
                )
            }
            (Some(_), _) => format!(
                "tell the policy of a type that sshd may read, semanage fcontext -a -t ssh_home_t {}, then {}",
                shell_quote(&place.path),
                restorecon_command(&place.path)
            ),
        }
    }

    /// Describes the problem of a component: file, label, and the label that the policy names.
    fn describe_cause(&self, place: &LabelledComponent) -> String {
        let path = place.path.display();
        let label = place.label.as_ref().map_or("not known", Label::as_str);
        let verb = match place.kind {
            LabelledKind::Directory => "search",
            LabelledKind::Link => "follow",
            LabelledKind::File => "read",
        };
        let named = match &place.named {
            Some(named) if place.label.as_ref().is_some_and(|is| is.type_name() == named.type_name()) => {
                "and the policy names no other type for that path".to_owned()
            }
            Some(named) => format!("the policy names {named} for that path"),
            None => "which one the policy names for that path could not be asked (matchpathcon)".to_owned(),
        };
        match (&self.domain, place.now) {
            (Some(domain), Access::Denied | Access::Granted) => format!(
                "sshd, in the domain {}, may not {verb} {path}: its label is {label}, {named}",
                domain.type_name()
            ),
            (_, Access::Unknown) | (None, _) => {
                format!("whether sshd may {verb} {path} is not known: its label is {label}, {named}")
            }
        }
    }
}

/// The remedy if the agent can query neither the kernel nor the policy's files.
const UNKNOWN_REMEDY: &str =
    "install matchpathcon (libselinux-utils, or selinux-utils on Debian), and try again";

fn restorecon_command(path: &Path) -> String {
    format!("restorecon -Rv -F {}", shell_quote(path))
}

/// A path quoted as a word of a shell.
fn shell_quote(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@:,%".contains(c));
    if is_plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
#[path = "selinux_tests.rs"]
mod tests;
