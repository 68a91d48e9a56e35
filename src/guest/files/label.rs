//! The SELinux label the policy gives a new file (contract 5: "with the label the policy gives them").
//!
//! A file that is created inherits its directory's label, which in a well-labelled home is the right one
//! already. Where `matchpathcon` is installed the policy itself is asked; where it is not, or does not
//! answer, the inherited label stays, and nothing fails for it. restorecon(8) would set the same label by path,
//! which the owner of a home can turn elsewhere meanwhile; here it is set on the descriptor.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::attributes::{SELINUX, XattrFile};

const SELINUX_FILESYSTEM: &str = "/sys/fs/selinux/enforce";
const MATCHPATHCON: [&str; 3] = ["/usr/sbin/matchpathcon", "/sbin/matchpathcon", "/usr/bin/matchpathcon"];
/// Every child process has 10 s (contract 6).
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether this kernel runs SELinux, selinux(8).
pub(super) fn selinux_runs() -> bool {
    Path::new(SELINUX_FILESYSTEM).exists()
}

/// Gives a new file or directory the label the policy has for `path`, where it has one.
pub(super) fn apply_policy(descriptor: impl AsFd, path: &Path) {
    let Some(label) = policy_label(path) else { return };
    if let Ok(file) = XattrFile::of(descriptor) {
        // Not fatal: the inherited label stays.
        let _ = file.set(SELINUX, &label);
    }
}

/// The policy's label as the kernel stores it, NUL-terminated; `None` without SELinux or without an answer.
fn policy_label(path: &Path) -> Option<Vec<u8>> {
    if !selinux_runs() {
        return None;
    }
    let program = MATCHPATHCON.iter().find(|program| Path::new(program).exists())?;
    let mut child = Command::new(program)
        .arg("-n")
        .arg(path)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let asked = Instant::now();
    let succeeded = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.success(),
            Ok(None) if asked.elapsed() < PATIENCE => sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
        }
    };
    let mut answer = Vec::new();
    child.stdout.take()?.take(4096).read_to_end(&mut answer).ok()?;
    if succeeded { label_of(&answer) } else { None }
}

/// The label in what matchpathcon(8) printed: one line, `user:role:type` and maybe a range.
fn label_of(answer: &[u8]) -> Option<Vec<u8>> {
    let label = answer.trim_ascii();
    let fits = label.iter().filter(|byte| **byte == b':').count() >= 2
        && label.iter().all(|byte| byte.is_ascii_graphic())
        && !label.starts_with(b"<<");
    fits.then(|| [label, b"\0"].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        let answer = b"system_u:object_r:ssh_home_t:s0\n";
        assert_eq!(label_of(answer).as_deref(), Some(&b"system_u:object_r:ssh_home_t:s0\0"[..]));
        for none in [&b""[..], b"<<none>>\n", b"a:b", b"a:b:c\na:b:c\n"] {
            assert_eq!(label_of(none), None);
        }
    }
}
