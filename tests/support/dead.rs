//! Things that never answer: a FUSE file system whose server reads requests and does nothing, and a source of the
//! name service. Tests use both in the mount namespace of [`super::scene::run_in_namespaces`].

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{TestDir, has_tools};

/// `FUSE_INIT` of linux/fuse.h.
const FUSE_INIT: u32 = 26;

/// A mount whose server does not answer. When this value is dropped, pending requests get an error.
pub struct HungFuseMount {
    point: PathBuf,
    ended: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

/// Whether FUSE is available here.
pub fn has_fuse() -> bool {
    has_tools(&["mount"]) && Path::new("/dev/fuse").exists()
        || super::report_skipped("/dev/fuse does not exist")
}

impl HungFuseMount {
    /// Mounts a file system that every user may use, like one that an administrator mounted.
    pub fn mount_for_all(point: &Path) -> Self {
        Self::new(point, 0, ",allow_other")
    }

    /// Mounts a file system that only this user may use. The kernel refuses access to all others, also to root.
    pub fn mount_for_user(point: &Path, uid: u32) -> Self {
        Self::new(point, uid, "")
    }

    fn new(point: &Path, uid: u32, more: &str) -> Self {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id={uid},group_id={uid}{more}", device.as_raw_fd());
        mount(Some("dead"), point, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let server = std::thread::spawn(move || {
            while !until.load(Ordering::SeqCst) {
                serve_fuse_request(&device);
            }
        });
        Self { point: point.to_owned(), ended, server: Some(server) }
    }
}

/// Reads one request. The server answers only the first one, because the kernel sends no other before that.
fn serve_fuse_request(mut device: &File) {
    let mut ends = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ends, PollTimeout::from(50_u8)).unwrap_or(0) == 0 {
        return;
    }
    let mut request = vec![0; 1024 * 1024];
    let Ok(40..) = device.read(&mut request) else { return };
    let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
    if opcode == FUSE_INIT {
        let mut reply = Vec::new();
        reply.extend_from_slice(&80_u32.to_ne_bytes());
        reply.extend_from_slice(&0_i32.to_ne_bytes());
        reply.extend_from_slice(&request[8..16]);
        for word in [7_u32, 31, 65536, 0, 0, 4096] {
            reply.extend_from_slice(&word.to_ne_bytes());
        }
        reply.resize(80, 0);
        device.write_all(&reply).unwrap();
    }
}

impl Drop for HungFuseMount {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // The end of this thread closes the descriptor. That ends the connection and releases the processes that
        // hang.
        let _ = self.server.take().unwrap().join();
        let _ = umount2(&self.point, MntFlags::MNT_DETACH);
    }
}

/// A source of the name service that hangs, is slow, or aborts the process that calls it.
pub struct FaultyNssModule {
    folder: PathBuf,
}

const NSS_MODULE_SOURCE: &str = r#"
#include <nss.h>
#include <pwd.h>
#include <grp.h>
#include <stdlib.h>
#include <unistd.h>
static enum nss_status answer(void) {
  if (access(PLACE "/abort", F_OK) == 0) abort();
  if (access(PLACE "/slow", F_OK) == 0) usleep(300000);
  while (access(PLACE "/hang", F_OK) == 0) usleep(20000);
  return NSS_STATUS_NOTFOUND;
}
enum nss_status _nss_hesiod_getpwnam_r(const char *n, struct passwd *p, char *b, size_t s, int *e) { return answer(); }
enum nss_status _nss_hesiod_getpwuid_r(uid_t u, struct passwd *p, char *b, size_t s, int *e) { return answer(); }
enum nss_status _nss_hesiod_getgrnam_r(const char *n, struct group *g, char *b, size_t s, int *e) { return answer(); }
enum nss_status _nss_hesiod_getgrgid_r(gid_t g, struct group *r, char *b, size_t s, int *e) { return answer(); }
enum nss_status _nss_hesiod_initgroups_dyn(const char *u, gid_t g, long *st, long *si, gid_t **gs, long l, int *e) { return answer(); }
"#;

impl FaultyNssModule {
    /// Makes it a source of these databases. `lines` are lines of nsswitch.conf(5) that name it `hesiod`. Returns
    /// `None` if this machine lacks gcc, mount or a libnss_hesiod.so.2 to replace.
    pub fn new(folder: &TestDir, lines: &str) -> Option<Self> {
        if !has_tools(&["gcc", "mount"]) {
            return None;
        }
        let library = ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64"]
            .map(|directory| Path::new(directory).join("libnss_hesiod.so.2"));
        let Some(library) = library.into_iter().find(|library| library.exists()) else {
            super::report_skipped(
                "there is no libnss_hesiod.so.2 in whose place another source could be put",
            );
            return None;
        };
        let at = |name: &str| folder.path().join(name);
        fs::write(at("source.c"), NSS_MODULE_SOURCE).unwrap();
        let made = Command::new("gcc")
            .args(["-w", "-shared", "-fPIC", &format!("-DPLACE=\"{}\"", folder.path().display()), "-o"])
            .args([at("source.so"), at("source.c")])
            .status();
        assert!(made.unwrap().success());
        fs::write(at("nsswitch.conf"), lines).unwrap();
        for (from, to) in [(at("source.so"), library), (at("nsswitch.conf"), "/etc/nsswitch.conf".into())] {
            assert!(Command::new("mount").arg("--bind").arg(from).arg(to).status().unwrap().success());
        }
        Some(Self { folder: folder.path().to_owned() })
    }

    /// Enables one fault: `hang`, `slow` or `abort`.
    pub fn enable_fault(&self, what: &str) {
        fs::write(self.folder.join(what), "").unwrap();
    }

    /// Disables that fault.
    pub fn disable_fault(&self, what: &str) {
        fs::remove_file(self.folder.join(what)).unwrap();
    }
}
