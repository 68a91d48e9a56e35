//! A guest for many injection points. It is restored between two points, and its sshd is reloaded.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::subject::{CrashScenario, FixtureKeys, GuestLayout};
use crate::support::tracer::{self, Injection, TracedCall};
use crate::support::{GuestOptions, MetadataService, TestGuest, attach_command, wait_for, with_field};

/// The command's id.
pub const COMMAND_ID: &str = "c-1";
/// A line that the user adds to a file.
const USER_LINE: &str = "# his line\n";
/// Files in `run_dir` that a daemon may leave.
const DAEMON_RUN_FILES: [&str; 3] = ["run.lock", "channel.json", CHANNEL_STATUS_TEMP_FILE];
const CHANNEL_STATUS_TEMP_FILE: &str = ".channel.json.new";

pub struct CrashFixture {
    pub guest: TestGuest,
    pub subject: &'static CrashScenario,
    pub keys: FixtureKeys,
    /// The parent directory of a key file that is below the home.
    home: Option<HomeDirectory>,
    /// The guest before the command, and its state directory at that time.
    start: GuestSnapshot,
    state: Vec<FileEntry>,
    /// The guest without the command's changes.
    pub before: GuestSnapshot,
    /// The guest with the command's changes; times and ids are masked.
    pub after: GuestSnapshot,
}

/// A folder below root's home in which this sshd looks for root's keys.
struct HomeDirectory(PathBuf);

impl Drop for HomeDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file or directory, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    path: PathBuf,
    /// `None` for a directory.
    content: Option<String>,
    mode: u32,
    owner: (u32, u32),
}

/// Everything that a command may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSnapshot {
    files: Vec<FileEntry>,
    binding: Value,
    password_auth: Value,
    /// From `sshd -T`.
    allows_password: bool,
}

impl GuestSnapshot {
    /// Masks the time and the command id in the agent's files.
    pub fn mask_timestamps(mut self) -> Self {
        for content in self.files.iter_mut().filter_map(|entry| entry.content.as_mut()) {
            *content = mask_times(content);
        }
        self
    }
}

/// Whether the guest is as before or as after the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommandState {
    Before,
    After,
}

impl CrashFixture {
    pub fn new(subject: &'static CrashScenario) -> Self {
        let without_drop_ins = subject.guest == GuestLayout::WithoutDropIns;
        let guest = TestGuest::with_options(GuestOptions { without_drop_ins, ..GuestOptions::default() });
        let keys = FixtureKeys::write_to(guest.folder.path());
        let home = (subject.guest == GuestLayout::WithoutKeyDirectory).then(|| {
            let name = guest.folder.path().file_name().unwrap().to_str().unwrap();
            let main = guest.path("sshd_config");
            let text = fs::read_to_string(&main).unwrap();
            let old = format!("AuthorizedKeysFile {}/keys/%u", guest.folder.path().display());
            let new = format!("AuthorizedKeysFile .{name}/ssh/authorized_keys");
            assert!(text.contains(&old), "{text}");
            fs::write(&main, text.replace(&old, &new)).unwrap();
            let root = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(0)).unwrap().unwrap();
            let folder = HomeDirectory(root.dir.join(format!(".{name}")));
            fs::create_dir(&folder.0).unwrap();
            folder
        });
        let nothing = GuestSnapshot {
            files: Vec::new(),
            binding: Value::Null,
            password_auth: Value::Null,
            allows_password: true,
        };
        let (start, before, after) = (nothing.clone(), nothing.clone(), nothing);
        let mut scene = Self { guest, subject, keys, home, start, state: Vec::new(), before, after };
        if scene.home.is_none() {
            fs::write(scene.guest.key_file(), format!("# mine\n{}\n", scene.keys.own.line)).unwrap();
        }
        scene.reload_sshd();
        for command in (subject.prepare)(&scene.keys) {
            let result = scene.guest.apply(&command);
            assert_eq!(result["status"], "succeeded", "{result}");
        }
        scene.before = scene.take_snapshot(&[]);
        if subject.interrupted {
            let cut_off = attach_command("my-test", &scene.keys.key, "no");
            let ended = tracer::apply_traced(
                &scene.guest,
                &cut_off,
                Some((TracedCall::reload_signal(), Injection::KillAfter)),
            );
            assert!(ended.was_killed(), "{:?}", ended.status);
        }
        scene.start = scene.take_snapshot(&[]);
        scene.state = list_entries(&scene.guest.path("state"));
        let result = scene.guest.apply(&scene.command());
        scene.after = scene.take_snapshot(&[]).mask_timestamps();
        assert_eq!(result["status"], "succeeded", "{}: {result}", subject.name);
        assert_eq!(result["changed"], scene.changes_files(), "{}: {result}", subject.name);
        assert_ne!(scene.start.clone().mask_timestamps(), scene.after, "{}: nothing to do", subject.name);
        scene.reset();
        scene
    }

    /// Whether the command changes the guest's files.
    pub fn changes_files(&self) -> bool {
        self.before.clone().mask_timestamps() != self.after
    }

    /// The command with its id, as at the console.
    pub fn command(&self) -> Value {
        with_field((self.subject.command)(&self.keys), "commandId", json!(COMMAND_ID))
    }

    /// Restores the guest to its state before the command. Returns a new metadata service.
    pub fn reset(&self) -> MetadataService {
        for directory in ["state", "run"] {
            let _ = fs::remove_dir_all(self.guest.path(directory));
        }
        for FileEntry { path, content, .. } in self.list_files() {
            let _ = if content.is_some() { fs::remove_file(path) } else { fs::remove_dir_all(path) };
        }
        for FileEntry { path, content, mode, owner } in self.start.files.iter().chain(&self.state) {
            match content {
                Some(content) => fs::write(path, content).unwrap(),
                None => fs::create_dir(path).unwrap(),
            }
            chown(path, Some(owner.0), Some(owner.1)).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777)).unwrap();
        }
        self.reload_sshd();
        assert_eq!(self.take_snapshot(&[]), self.start, "put back");
        let metadata = MetadataService::start();
        self.guest.write_agent_config("", &metadata.url());
        metadata
    }

    /// Whether sshd is still the same process. The fixture cannot reload a new one.
    pub fn is_reusable(&self) -> bool {
        let pid = fs::read_to_string(self.guest.path("sshd.pid")).unwrap_or_default();
        pid.trim() == self.guest.sshd.pid().to_string()
    }

    /// Reloads sshd, and waits until it has read its files.
    fn reload_sshd(&self) {
        let written = || {
            let metadata = fs::metadata(self.guest.path("sshd.pid")).ok()?;
            let text = fs::read_to_string(self.guest.path("sshd.pid")).ok()?;
            text.ends_with('\n').then_some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
        };
        let pid = self.guest.sshd.pid();
        // An sshd that still handles the last signal ignores a new one, signal(7).
        let hears = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
            u64::from_str_radix(caught.trim(), 16).unwrap() & 1 != 0
        };
        wait_briefly_for("sshd to hear", || hears().then_some(()));
        let old = wait_briefly_for("a pid file", written);
        kill(Pid::from_raw(pid as i32), Signal::SIGHUP).unwrap();
        wait_briefly_for("sshd to read its files", || written().filter(|now| *now != old && hears()));
    }

    /// Every file that a command may change, with its content.
    fn list_files(&self) -> Vec<FileEntry> {
        let mut files = Vec::new();
        for directory in ["keys", "sshd_config.d"] {
            files.extend(list_entries(&self.guest.path(directory)));
        }
        for entry in fs::read_dir(self.guest.folder.path()).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let kept = ["agent.toml", "componentInfo.cfg", "keys", "sshd_config.d", "state", "run"];
            let of_tests = [".log", ".pid", ".key", ".key.pub"].iter().any(|end| name.ends_with(end));
            if !kept.contains(&name.as_str()) && !of_tests && !name.starts_with("host_key") {
                files.extend(read_entry(&entry.path()));
            }
        }
        if let Some(home) = &self.home {
            files.extend(list_entries(&home.0));
        }
        files
    }

    fn read_state(&self) -> Value {
        let text = fs::read(self.guest.path("state/state.json")).unwrap_or_else(|_| b"{}".to_vec());
        serde_json::from_slice(&text).unwrap()
    }

    /// The present state without the user's additions to these files.
    pub fn take_snapshot(&self, edited: &[PathBuf]) -> GuestSnapshot {
        let mut files = self.list_files();
        for entry in &mut files {
            let Some(content) = &mut entry.content else { continue };
            if edited.contains(&entry.path) {
                let without = content.strip_suffix(USER_LINE);
                *content = without.unwrap_or_else(|| panic!("his line is gone: {content}")).to_owned();
            }
        }
        let state = self.read_state();
        GuestSnapshot {
            files,
            binding: state["binding"].clone(),
            password_auth: state["passWordAuth"].clone(),
            allows_password: self.config_allows_password(),
        }
    }

    /// Adds lines of the user to files, and returns those files.
    pub fn apply_user_edits(&self) -> Vec<PathBuf> {
        let mut edited = Vec::new();
        for path in [self.guest.key_file(), self.guest.path("sshd_config")] {
            if let Ok(text) = fs::read_to_string(&path) {
                fs::write(&path, text + USER_LINE).unwrap();
                edited.push(path);
            }
        }
        edited
    }

    /// Whether sshd, with the files on the disk, allows password login. sshd must accept the files.
    fn config_allows_password(&self) -> bool {
        let output =
            Command::new("/usr/sbin/sshd").arg("-T").arg("-f").arg(self.guest.path("sshd_config")).output();
        let output = output.unwrap();
        assert!(output.status.success(), "sshd refuses its files: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().any(|line| line == "passwordauthentication yes")
    }

    /// Asserts that nothing is half done: every file is old or new, sshd behaves as they say, and nothing is left
    /// over. Slow checks run only at some numbers: `status` without problems at every second one, real logins at
    /// every sixteenth.
    pub fn assert_settled(&self, edited: &[PathBuf], number: usize) -> CommandState {
        assert_eq!(self.read_state()["undelivered"], json!(null), "an undelivered result");
        assert!(
            !self.guest.path("run").join(CHANNEL_STATUS_TEMP_FILE).exists(),
            "the channel's state, half written"
        );
        let now = self.assert_settled_except_delivery(edited);
        if number % 16 == 1 {
            let text: String = self.list_files().into_iter().filter_map(|entry| entry.content).collect();
            for key in self.keys.all() {
                let stands = text.contains(key.line.split(' ').nth(1).unwrap());
                assert_eq!(self.guest.sshd.accepts_key(key), stands, "{}", key.private.display());
            }
        }
        if number % 2 == 1 {
            let output = self.guest.run_agent(&["status", "--json"]);
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let problems = report["problems"].as_array().unwrap().iter();
            let problems: Vec<&Value> =
                problems.filter(|problem| !problem.as_str().unwrap().contains("not running")).collect();
            assert!(problems.is_empty(), "{report}");
        }
        now
    }

    /// The same check if a daemon must still deliver the result and rewrite the channel's state.
    pub fn assert_settled_except_delivery(&self, edited: &[PathBuf]) -> CommandState {
        assert_eq!(self.read_state()["intent"], json!(null), "an open intent");
        for (directory, allowed) in [("state", &["state.json"][..]), ("run", &DAEMON_RUN_FILES[..])] {
            for entry in list_entries(&self.guest.path(directory)) {
                let name = entry.path.file_name().unwrap().to_str().unwrap();
                assert!(
                    entry.path == self.guest.path(directory) || allowed.contains(&name),
                    "left over: {}",
                    entry.path.display()
                );
            }
        }
        let look = self.take_snapshot(edited);
        let now = match &look {
            look if *look == self.before => CommandState::Before,
            look if look.clone().mask_timestamps() == self.after => CommandState::After,
            look => panic!("neither old nor new: {look:#?}\nold: {:#?}\nnew: {:#?}", self.before, self.after),
        };
        assert_eq!(
            self.guest.sshd.offers_password(),
            look.allows_password,
            "the running sshd does another thing than its files say ({now:?})"
        );
        now
    }
}

/// Waits for a condition that becomes true within milliseconds.
fn wait_briefly_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        if begun.elapsed() > Duration::from_millis(200) {
            return wait_for(what, look);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A directory and everything below it.
fn list_entries(path: &Path) -> Vec<FileEntry> {
    let mut found: Vec<FileEntry> = read_entry(path).into_iter().collect();
    let mut names: Vec<PathBuf> = match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => Vec::new(),
    };
    names.sort();
    for name in names {
        if name.is_dir() { found.extend(list_entries(&name)) } else { found.extend(read_entry(&name)) }
    }
    found
}

fn read_entry(path: &Path) -> Option<FileEntry> {
    let metadata = path.symlink_metadata().ok()?;
    let content = (!metadata.is_dir()).then(|| fs::read_to_string(path).unwrap());
    let owner = (metadata.uid(), metadata.gid());
    Some(FileEntry { path: path.to_owned(), content, mode: metadata.mode(), owner })
}

fn mask_times(content: &str) -> String {
    let mut masked = String::new();
    for word in content.split_inclusive([' ', '\n']) {
        let is_time = word.len() == 21 && word.starts_with("20") && word.trim_end().ends_with('Z');
        masked.push_str(match word {
            _ if is_time => "TIME ",
            "c-1\n" | "c-2\n" => "ID\n",
            word => word,
        });
    }
    masked
}
