//! What SELinux says of sshd and of a label: the kernel by selinuxfs, file_contexts(5) by matchpathcon(8). Without SELinux
//! this costs one look.
//!
//! The kernel decides, so it is asked: in which domain systemd starts sshd (`create`), and whether that domain may read
//! an object of a label (`access`). libselinux asks by the same files: security_compute_av(3), security_compute_create(3).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::child;
use super::sessions;
use crate::policy::effective::EffectiveConfig;
use crate::policy::selinux::{Access, Enforcement, Label, LabelledKind};

/// Where the kernel's own interface is mounted.
const SELINUXFS: &str = "/sys/fs/selinux";

/// The label of systemd, which starts sshd: proc_pid_attr(5).
const INIT_LABEL_FILE: &str = "/proc/1/attr/current";

/// The label of this process.
const OWN_LABEL_FILE: &str = "/proc/self/attr/current";

/// What a process is labelled while no policy is loaded.
const NO_POLICY_LABEL: &[u8] = b"kernel";

/// The most that is read of an answer; the kernel's end with their page.
const MAX_ANSWER_BYTES: u64 = 4096;

/// In the flags of an answer to `access`: the domain is permissive.
const AVD_FLAGS_PERMISSIVE: u32 = 1;

/// The label's attribute, xattr(7).
pub(super) const SELINUX_XATTR: &str = "security.selinux";

/// What sshd does with something on the way to a file. StrictModes looks at the attributes of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AccessKind {
    /// It goes through a directory.
    Search,
    /// It follows a link.
    Follow,
    /// It lists a directory, for the pattern of an Include.
    List,
    /// It reads a file.
    Read,
}

impl AccessKind {
    /// The class of the object, and the permissions.
    fn class_and_permissions(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Search => ("dir", &["getattr", "search"]),
            Self::Follow => ("lnk_file", &["getattr", "read"]),
            Self::List => ("dir", &["getattr", "open", "read", "search"]),
            Self::Read => ("file", &["getattr", "open", "read"]),
        }
    }
}

/// What SELinux does here.
pub(super) fn read_enforcement() -> Enforcement {
    let said = match fs::read(Path::new(SELINUXFS).join("enforce")) {
        Ok(said) => said,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Enforcement::Absent,
        // It runs, and keeps this process from looking.
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

/// The kernel, asked on behalf of sshd.
#[derive(Debug)]
pub(super) struct PolicyChecker {
    /// Whether it denies what the policy does not allow.
    pub(super) enforcement: Enforcement,
    /// The domain in which sshd reads; `None` where the kernel does not say.
    pub(super) domain: Option<Label>,
    known: RefCell<BTreeMap<(Label, AccessKind), Access>>,
}

impl PolicyChecker {
    /// The kernel and the domain of this sshd; `None` where SELinux does not run.
    pub(super) fn for_sshd(sshd: &Path, effective: Option<&EffectiveConfig>) -> Option<Self> {
        let enforcement = read_enforcement();
        if enforcement == Enforcement::Absent {
            return None;
        }
        let domain = find_sshd_domain(sshd, effective);
        let mut kernel = Self { enforcement, domain, known: RefCell::default() };
        // A domain can be permissive by itself: semanage-permissive(8). Its answers say so whatever they are about.
        let own = kernel.domain.clone();
        if own
            .and_then(|own| kernel.query_access(&own, AccessKind::Read))
            .is_some_and(|answer| answer.is_permissive)
        {
            kernel.enforcement = Enforcement::Permissive;
        }
        Some(kernel)
    }

    /// Whether sshd may use an object of this label so.
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
        // A label that this policy does not know counts as its initial one for what is unlabelled.
        let said = question(label.as_str()).or_else(|| {
            let unlabelled = read_bounded(&Path::new(SELINUXFS).join("initial_contexts/unlabeled"))?;
            question(Label::parse(&unlabelled)?.as_str())
        })?;
        AccessDecision::parse(&said, wanted)
    }
}

/// What the kernel says of one domain, label and class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct AccessDecision {
    /// Whether all that was asked for is allowed.
    is_granted: bool,
    /// Whether the domain is permissive by itself.
    is_permissive: bool,
}

impl AccessDecision {
    /// `allowed decided auditallow auditdeny seqno flags`, all but the fifth in hexadecimal.
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

/// The domain in which systemd starts this sshd, and, since OpenSSH 9.8, in which it serves a connection. At boot none runs
/// yet when this is asked.
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

/// One question to selinuxfs: what is written, and then read from the same descriptor.
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

/// The bit of a permission: its number is counted from 1.
fn read_permission_bit(class: &str, permission: &str) -> Option<u32> {
    let file = Path::new(SELINUXFS).join("class").join(class).join("perms").join(permission);
    1_u32.checked_shl(read_number(&file)?.checked_sub(1)?)
}

/// Whether this policy decides about `open` besides `read`.
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

/// The label that the policy names for a path: matchpathcon(8). `None` where that is not installed, or names none.
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
