//! SELinux queries about sshd and about labels. The kernel answers through selinuxfs, and matchpathcon(8) reads
//! file_contexts(5). Without SELinux, this costs one file access.
//!
//! The agent asks the kernel, because the kernel decides: in which domain systemd starts sshd (`create`), and
//! whether that domain may read an object with a label (`access`). libselinux uses the same files:
//! security_compute_av(3), security_compute_create(3).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::child;
use super::sessions;
use crate::policy::effective::EffectiveConfig;
use crate::policy::selinux::{Access, Enforcement, Label, LabelledKind};

/// The mount point of the kernel's interface.
const SELINUXFS: &str = "/sys/fs/selinux";

/// The file with the label of systemd, which starts sshd: proc_pid_attr(5).
const INIT_LABEL_FILE: &str = "/proc/1/attr/current";

/// The file with the label of this process.
const OWN_LABEL_FILE: &str = "/proc/self/attr/current";

/// The label of every process while no policy is loaded.
const NO_POLICY_LABEL: &[u8] = b"kernel";

/// The maximum size of an answer that is read. The kernel limits its answers to one page.
const MAX_ANSWER_BYTES: u64 = 4096;

/// The flag in an answer to `access` that says that the domain is permissive.
const AVD_FLAGS_PERMISSIVE: u32 = 1;

/// The extended attribute that holds the label, xattr(7).
pub(super) const SELINUX_XATTR: &str = "security.selinux";

/// sshd's use of an object on the path to a file. StrictModes reads the attributes of each object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AccessKind {
    /// sshd passes through a directory.
    Search,
    /// sshd follows a symbolic link.
    Follow,
    /// sshd lists a directory, for the pattern of an `Include`.
    List,
    /// sshd reads a file.
    Read,
}

impl AccessKind {
    /// The object class and the permissions that this use needs.
    fn class_and_permissions(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Search => ("dir", &["getattr", "search"]),
            Self::Follow => ("lnk_file", &["getattr", "read"]),
            Self::List => ("dir", &["getattr", "open", "read", "search"]),
            Self::Read => ("file", &["getattr", "open", "read"]),
        }
    }
}

/// The enforcement mode of SELinux in this guest.
pub(super) fn read_enforcement() -> Enforcement {
    let said = match fs::read(Path::new(SELINUXFS).join("enforce")) {
        Ok(said) => said,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Enforcement::Absent,
        // SELinux runs and denies this process the read.
        Err(_) => return Enforcement::Enforcing,
    };
    if read_bounded(Path::new(OWN_LABEL_FILE))
        .is_some_and(|own| own.strip_suffix(b"\0").unwrap_or(&own) == NO_POLICY_LABEL)
    {
        return Enforcement::Absent;
    }
    match said.trim_ascii() {
        b"0" => Enforcement::Permissive,
        _ => Enforcement::Enforcing,
    }
}

/// Queries the kernel's SELinux policy for sshd.
#[derive(Debug)]
pub(super) struct PolicyChecker {
    /// The mode: whether SELinux denies an access that the policy does not allow.
    pub(super) enforcement: Enforcement,
    /// The domain in which sshd reads; `None` if the kernel does not report it.
    pub(super) domain: Option<Label>,
    known: RefCell<BTreeMap<(Label, AccessKind), Access>>,
}

impl PolicyChecker {
    /// A checker for the domain of this sshd; `None` if SELinux does not run.
    pub(super) fn for_sshd(sshd: &Path, effective: Option<&EffectiveConfig>) -> Option<Self> {
        let enforcement = read_enforcement();
        if enforcement == Enforcement::Absent {
            return None;
        }
        let domain = find_sshd_domain(sshd, effective);
        let mut kernel = Self { enforcement, domain, known: RefCell::default() };
        // A single domain can be permissive: semanage-permissive(8). Every answer about that domain says so.
        let own = kernel.domain.clone();
        if own
            .and_then(|own| kernel.query_access(&own, AccessKind::Read))
            .is_some_and(|answer| answer.is_permissive)
        {
            kernel.enforcement = Enforcement::Permissive;
        }
        Some(kernel)
    }

    /// The decision whether sshd may use an object with this label in this way.
    pub(super) fn check_access(&self, label: &Label, used: AccessKind) -> Access {
        let key = (label.clone(), used);
        if let Some(known) = self.known.borrow().get(&key) {
            return *known;
        }
        let access = match self.query_access(label, used) {
            Some(AccessDecision { is_granted: true, .. }) => Access::Granted,
            Some(AccessDecision { is_granted: false, .. }) => Access::Denied,
            None => Access::Unknown,
        };
        self.known.borrow_mut().insert(key, access);
        access
    }

    fn query_access(&self, label: &Label, used: AccessKind) -> Option<AccessDecision> {
        let domain = self.domain.as_ref()?;
        let (class, permissions) = used.class_and_permissions();
        let index = read_class_index(class)?;
        let mut wanted = 0;
        for permission in permissions.iter().filter(|name| **name != "open" || checks_open_permission()) {
            wanted |= read_permission_bit(class, permission)?;
        }
        let question = |label: &str| query_selinuxfs("access", &format!("{domain} {label} {index}"));
        // If this policy does not know a label, the kernel uses the initial label of unlabelled objects.
        let said = question(label.as_str()).or_else(|| {
            let unlabelled = read_bounded(&Path::new(SELINUXFS).join("initial_contexts/unlabeled"))?;
            question(Label::parse(&unlabelled)?.as_str())
        })?;
        AccessDecision::parse(&said, wanted)
    }
}

/// The kernel's answer for one domain, label and class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct AccessDecision {
    /// True if all requested permissions are allowed.
    is_granted: bool,
    /// True if the domain is permissive.
    is_permissive: bool,
}

impl AccessDecision {
    /// Parses `allowed decided auditallow auditdeny seqno flags`. All fields except the fifth are hexadecimal.
    fn parse(said: &str, wanted: u32) -> Option<Self> {
        let words: Vec<&str> = said.split_ascii_whitespace().collect();
        let [allowed, _, _, _, _, flags] = words.as_slice() else { return None };
        let number = |word: &str| u32::from_str_radix(word, 16).ok();
        Some(Self {
            is_granted: number(allowed)? & wanted == wanted,
            is_permissive: number(flags)? & AVD_FLAGS_PERMISSIVE != 0,
        })
    }
}

/// The domain in which systemd starts this sshd or, since OpenSSH 9.8, in which sshd serves a connection. The
/// kernel computes it, because during a boot no sshd runs yet.
fn find_sshd_domain(sshd: &Path, effective: Option<&EffectiveConfig>) -> Option<Label> {
    let init = Label::parse(&read_bounded(Path::new(INIT_LABEL_FILE))?)?;
    let started = |by: &Label, program: &Path| {
        let label = Label::parse(&xattr::get_deref(program, SELINUX_XATTR).ok()??)?;
        let said = query_selinuxfs("create", &format!("{by} {label} {}", read_class_index("process")?))?;
        Label::parse(said.as_bytes())
    };
    let listener = started(&init, sshd)?;
    match sessions::find_session_program(sshd, effective) {
        Some(program) => started(&listener, &program),
        None => Some(listener),
    }
}

/// One query to selinuxfs: the function writes the question and reads the answer from the same descriptor.
fn query_selinuxfs(file: &str, question: &str) -> Option<String> {
    let mut file = OpenOptions::new().read(true).write(true).open(Path::new(SELINUXFS).join(file)).ok()?;
    file.write_all(question.as_bytes()).ok()?;
    let mut answer = [0; MAX_ANSWER_BYTES as usize];
    let length = file.read(&mut answer).ok()?;
    let answer = answer.get(..length)?;
    Some(String::from_utf8_lossy(answer).trim_end_matches('\0').to_owned())
}

fn read_class_index(class: &str) -> Option<u32> {
    read_number(&Path::new(SELINUXFS).join("class").join(class).join("index"))
}

/// The bit of a permission. Permissions are numbered from 1.
fn read_permission_bit(class: &str, permission: &str) -> Option<u32> {
    let file = Path::new(SELINUXFS).join("class").join(class).join("perms").join(permission);
    1_u32.checked_shl(read_number(&file)?.checked_sub(1)?)
}

/// Returns true if this policy checks `open` in addition to `read`.
fn checks_open_permission() -> bool {
    read_number(&Path::new(SELINUXFS).join("policy_capabilities/open_perms")) != Some(0)
}

fn read_number(file: &Path) -> Option<u32> {
    std::str::from_utf8(&read_bounded(file)?).ok()?.trim().parse().ok()
}

fn read_bounded(file: &Path) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(file).ok()?.take(MAX_ANSWER_BYTES).read_to_end(&mut content).ok()?;
    Some(content)
}

/// The label that the policy defines for a path: matchpathcon(8). `None` if that program is not installed or names
/// no label.
pub(super) fn lookup_file_context(path: &Path, kind: LabelledKind) -> Option<Label> {
    let kind = match kind {
        LabelledKind::Directory => "dir",
        LabelledKind::Link => "lnk_file",
        LabelledKind::File => "file",
    };
    let arguments = [PathBuf::from("-n"), "-m".into(), kind.into(), path.to_owned()];
    let output = child::run(Path::new("matchpathcon"), &arguments, "").ok()?;
    if output.succeeded() { Label::parse(output.stdout.as_bytes()) } else { None }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn access_decision_is_parsed() {
        let answer = |said: &str, wanted| AccessDecision::parse(said, wanted);
        let granted = Some(AccessDecision { is_granted: true, is_permissive: false });
        let denied = Some(AccessDecision { is_granted: false, is_permissive: false });
        assert_eq!(answer("2 ffffffff 0 ffffffff 12 0", 2), granted);
        assert_eq!(answer("f3 ffffffff 0 fffffffe 12 0", 0x13), granted);
        assert_eq!(answer("f1 ffffffff 0 fffffffe 12 0", 0x13), denied);
        let permissive = Some(AccessDecision { is_granted: false, is_permissive: true });
        assert_eq!(answer("0 ffffffff 0 ffffffff 12 1", 2), permissive);
        for none in ["", "x y z", "0 0 0 0 0", "g 0 0 0 0 0", "system_u:system_r:sshd_t:s0 a:b:c 4"] {
            assert_eq!(answer(none, 1), None, "{none}");
        }
    }
}
