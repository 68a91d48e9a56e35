//! SELinux: whether sshd may read what a command depends on, by the labels of the file and of every directory on the
//! way, and what is done about a label by which it may not. selinux(8), restorecon(8), file_contexts(5).
//!
//! The kernel's policy decides whether sshd may read; the label that file_contexts(5) names is only the remedy. So a
//! label that an administrator gave on purpose, and by which sshd reads, is left alone.

use std::fmt;
use std::path::{Path, PathBuf};

use super::lockout::GuardFinding;
use super::outcome::{Warning, WarningReason};

/// The name of the rule in findings.
const LABEL_RULE: &str = "SELinux label";

/// The most bytes of a label; the kernel's own are far shorter.
const MAX_LABEL_BYTES: usize = 1024;

/// A security context: `user:role:type`, and a range where the policy has levels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label(String);

impl Label {
    /// A label as an extended attribute, a file of selinuxfs or a program gives it; `None` for what is none.
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

    /// Its type, by which nearly every rule of a policy decides; for a process it is called the domain.
    pub fn type_name(&self) -> &str {
        self.0.split(':').nth(2).unwrap_or_default()
    }

    /// This label with the type of another: all that restorecon(8) changes by itself.
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

/// What SELinux does on this guest to what sshd does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enforcement {
    /// It does not run.
    #[default]
    Absent,
    /// It runs and logs what it would deny: the whole of it, or for sshd's domain alone.
    Permissive,
    /// It denies.
    Enforcing,
}

/// Whether the policy lets sshd read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It does.
    Granted,
    /// It does not.
    Denied,
    /// The kernel could not be asked.
    Unknown,
}

/// What a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelledKind {
    /// A directory, through which sshd goes.
    Directory,
    /// A symbolic link, which it follows.
    Link,
    /// The file, which it reads.
    File,
}

/// A directory, link or file that exists on the way to a file that sshd reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledComponent {
    /// Its path, links resolved.
    pub path: PathBuf,
    /// What it is.
    pub kind: LabelledKind,
    /// Whether the agent may give it another label: the user's home and what is below it, a key file, our drop-in.
    pub may_be_relabelled: bool,
    /// Its label.
    pub label: Option<Label>,
    /// The label that the policy names for its path. Looked up only where sshd may not read by the label it has.
    pub named: Option<Label>,
    /// Whether sshd may read, or search, it.
    pub now: Access,
    /// Whether it might with the label that the policy names.
    pub if_named: Access,
}

/// The way to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledPath {
    /// The file, as sshd names it.
    pub file: PathBuf,
    /// What exists of the way, `/` first.
    pub places: Vec<LabelledComponent>,
}

/// What SELinux says of sshd and the files that it reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels {
    /// Whether it denies.
    pub enforcement: Enforcement,
    /// The domain in which sshd reads; `None` where that cannot be told.
    pub domain: Option<Label>,
    /// The user's home.
    pub home: PathBuf,
    /// The ways to the user's key files.
    pub key_files: Vec<LabelledPath>,
    /// The ways to the files of sshd's configuration.
    pub config: Vec<LabelledPath>,
}

/// A label to be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relabel {
    /// The file to which the way leads.
    pub file: PathBuf,
    /// The directory, or the file, on it.
    pub place: PathBuf,
    /// The label that it has.
    pub was: Option<Label>,
    /// The label that it gets.
    pub label: Label,
}

impl Relabel {
    /// What is going to be done, for `plan`.
    pub fn describe_plan(&self) -> String {
        format!("the SELinux label of {} becomes {}", self.place.display(), self.label)
    }

    /// What is wrong while it is not set, and what helps.
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

/// What a way comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelCheck {
    /// sshd may read the file.
    Readable,
    /// It may not, but SELinux does not enforce.
    Tolerated(Warning),
    /// It may once these labels are set.
    Fixable(Vec<Relabel>),
    /// It may not, for a place of this kind.
    Unreadable(GuardFinding, LabelledKind),
}

/// What one place comes to.
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
            // The kernel is not to be asked: restorecon(8) compares types.
            (Access::Unknown, Some(label), Some(named)) if label.type_name() == named.type_name() => {
                ComponentStatus::Readable
            }
            (Access::Unknown, _, Some(named)) => ComponentStatus::Fixable(named),
            (Access::Unknown, _, None) => ComponentStatus::Unknown,
        }
    }
}

impl Labels {
    /// Whether sshd may read a key file. `holds_others` tells of a key file whether keys stand in it that are not ours:
    /// nothing is relabelled by which such a key would come to let in.
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

    /// Whether sshd may read every file of its configuration: the first that it may not read, else all cures.
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

    /// What helps where the policy names a better label; `None` where the agent sets it by itself.
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

    /// What helps where the policy names no label by which sshd could read.
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

    /// What is wrong with a place: file, label, and the label that the policy names.
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

/// Where neither the kernel nor the policy's files can be asked.
const UNKNOWN_REMEDY: &str =
    "install matchpathcon (libselinux-utils, or selinux-utils on Debian), and try again";

fn restorecon_command(path: &Path) -> String {
    format!("restorecon -Rv -F {}", shell_quote(path))
}

/// A path as a word of a shell.
fn shell_quote(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@:,%".contains(c));
    if is_plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
#[path = "selinux_tests.rs"]
mod tests;
