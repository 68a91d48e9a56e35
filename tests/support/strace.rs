//! The agent under strace(1): which calls it makes, and what becomes of it when one of them fails or is its last.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::Guest;

/// The calls by which the agent changes anything, in the guest or in its own state.
pub const CHANGING: &str = "renameat,renameat2,fsync,unlinkat,mkdirat,kill";

/// The `nth` call of a name in the thread that does the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub call: String,
    pub nth: usize,
    /// The line of the trace: what it was.
    pub words: String,
}

impl Point {
    /// strace's words for it.
    pub fn inject(&self, what: &str) -> String {
        format!("inject={}:{what}:when={}", self.call, self.nth)
    }
}

/// The agent under strace, without its children: `apply` does all of its work in one thread.
fn traced(guest: &Guest, options: &[&str], arguments: &[&str]) -> Command {
    let agent = guest.command(arguments);
    let mut command = Command::new("strace");
    command.args(["-qq", "-y", "-o"]).arg(guest.path("strace.log")).args(options);
    command.arg(agent.get_program()).args(agent.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn command_file(guest: &Guest, command: &Value) -> String {
    let path = guest.path("command.log");
    fs::write(&path, command.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Carries `command` out, and lists its calls of these names.
pub fn points(guest: &Guest, command: &Value, calls: &str) -> Vec<Point> {
    let file = command_file(guest, command);
    let trace = format!("trace={calls}");
    let output = traced(guest, &["-e", &trace], &["apply", &file]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = fs::read_to_string(guest.path("strace.log")).unwrap();
    let mut points: Vec<Point> = Vec::new();
    for line in text.lines() {
        let Some((call, _)) = line.split_once('(') else { continue };
        let nth = 1 + points.iter().filter(|point| point.call == call).count();
        points.push(Point { call: call.to_owned(), nth, words: line.to_owned() });
    }
    points
}

/// strace injects only into what it traces.
fn trace_of(inject: &str) -> String {
    format!("trace={}", inject.trim_start_matches("inject=").split(':').next().unwrap())
}

/// `apply` of a command with something injected.
pub fn apply(guest: &Guest, command: &Value, inject: &str) -> Output {
    let file = command_file(guest, command);
    traced(guest, &["-e", &trace_of(inject), "-e", inject], &["apply", &file]).output().unwrap()
}

/// `apply` of a command that is killed at this point, before the call is made.
pub fn killed(guest: &Guest, command: &Value, point: &Point) {
    let output = apply(guest, command, &point.inject("signal=SIGKILL"));
    assert_eq!(output.status.signal(), Some(9), "{point:?}: {output:?}");
}

/// `run` with something injected into any of its threads, until it ends.
pub fn run(guest: &Guest, inject: &str) -> Output {
    traced(guest, &["-f", "-e", &trace_of(inject), "-e", inject], &["run"]).output().unwrap()
}

/// A call that changes what is on the disk, or relies on it. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A new, empty file, with its mode.
    Create(PathBuf, u32),
    /// Bytes at a file's end.
    Write(PathBuf, Bytes),
    Mode(PathBuf, u32),
    Owner(PathBuf, u32, u32),
    /// Another change of a file: none that the agent makes here.
    Change(PathBuf),
    /// fsync(2) of a file or a directory.
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    /// A new directory, with its mode.
    MakeDirectory(PathBuf, u32),
    Unlink(PathBuf),
    RemoveDirectory(PathBuf),
    /// A signal to sshd.
    Signal,
    /// A result's `PUT`.
    Report,
}

impl Call {
    /// What it is done to, by the name that it has afterwards.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Create(path, _)
            | Self::Write(path, _)
            | Self::Mode(path, _)
            | Self::Owner(path, ..)
            | Self::Change(path)
            | Self::Sync(path)
            | Self::Rename(_, path)
            | Self::MakeDirectory(path, _)
            | Self::Unlink(path)
            | Self::RemoveDirectory(path) => Some(path),
            Self::Signal | Self::Report => None,
        }
    }
}

/// Shown as text.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// All calls by which a file could change; strings whole, and in hexadecimal, so that nothing in them is syntax.
const CALLS: [&str; 6] = [
    "-f",
    "-xx",
    "-s",
    "16777216",
    "-e",
    "trace=open,openat,openat2,creat,write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,truncate,ftruncate,fallocate,\
     copy_file_range,sendfile,link,linkat,symlink,symlinkat,chmod,fchmod,fchmodat,chown,fchown,fchownat,setxattr,\
     fsetxattr,fremovexattr,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,rmdir,unlink,unlinkat,kill",
];

/// The calls of `apply`.
pub fn calls_of_apply(guest: &Guest, command: &Value) -> Vec<Call> {
    calls_with(guest, command, &CALLS)
}

/// The calls of `apply` of a command with something injected into one of them.
pub fn calls_of_failing_apply(guest: &Guest, command: &Value, inject: &str) -> Vec<Call> {
    calls_with(guest, command, &[&CALLS[..], &["-e", inject]].concat())
}

fn calls_with(guest: &Guest, command: &Value, options: &[&str]) -> Vec<Call> {
    let file = command_file(guest, command);
    let output = traced(guest, options, &["apply", &file]).output().unwrap();
    // Which result it is, is the caller's to judge.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    calls(guest)
}

/// The calls of `run`, from its start until `until` returns.
pub fn calls_of_run(guest: &Guest, until: impl FnOnce()) -> Vec<Call> {
    let tracer = traced(guest, &CALLS, &["run"]).spawn().unwrap();
    until();
    let pid = fs::read_to_string(guest.path("run/run.lock")).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    let output = tracer.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    calls(guest)
}

/// The trace's calls on the guest's own files, each where it returned: threads interleave.
fn calls(guest: &Guest) -> Vec<Call> {
    let text = fs::read_to_string(guest.path("strace.log")).unwrap();
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        let (thread, rest) = line.trim_start().split_once(' ').unwrap();
        let rest = rest.trim_start();
        let whole = if let Some(start) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, start);
            continue;
        } else if rest.starts_with("<... ") {
            let (_, end) = rest.split_once(" resumed>").unwrap();
            format!("{}{end}", begun.remove(thread).unwrap())
        } else {
            rest.to_owned()
        };
        // `name(arguments) = result`; a result may have words behind it.
        let Some((call, result)) = whole.rsplit_once(" = ") else { continue };
        if !result.starts_with(['-', '?']) {
            calls.extend(self::call(call.trim_end(), result).filter(|call| concerns(call, guest)));
        }
    }
    calls
}

/// Whether it is about the guest's files: not what is printed, nor `run_dir`, which is not durable.
fn concerns(call: &Call, guest: &Guest) -> bool {
    call.path()
        .is_none_or(|path| path.starts_with(guest.folder.path()) && !path.starts_with(guest.path("run")))
}

/// A call's words: `name(arguments)`, where a descriptor has its path, `fsync(7<\x2f\x61>)`.
fn call(line: &str, result: &str) -> Option<Call> {
    let (name, arguments) = line.strip_suffix(')')?.split_once('(')?;
    let arguments: Vec<&str> = arguments.split(", ").collect();
    let argument = |number: usize| arguments.get(number).copied().unwrap_or_default();
    let opened = |number| {
        let (_, path) = argument(number).split_once('<')?;
        Some(PathBuf::from(OsString::from_vec(bytes(path.split_once('>')?.0))))
    };
    let quoted = |number| argument(number).split('"').nth(1).map(bytes);
    let named = |number| Some(PathBuf::from(OsString::from_vec(quoted(number)?)));
    // A directory's descriptor, then a name in it.
    let entry = |number| Some(opened(number)?.join(named(number + 1)?));
    let octal = |number| u32::from_str_radix(argument(number), 8).ok();
    let id = |number| argument(number).parse().ok();
    Some(match name {
        "open" | "openat" | "openat2" | "creat" => {
            let is_made = |flag| arguments.iter().any(|argument| argument.split('|').any(|set| set == flag));
            match name {
                "openat" if is_made("O_CREAT") && is_made("O_EXCL") => Call::Create(entry(0)?, octal(3)?),
                _ if is_made("O_CREAT") || is_made("O_TRUNC") || name == "creat" => Call::Change(
                    PathBuf::from(OsString::from_vec(bytes(result.split_once('<')?.1.split_once('>')?.0))),
                ),
                _ => return None,
            }
        }
        "write" | "writev" | "sendto" | "sendmsg" if is_report(&arguments) => Call::Report,
        "write" => {
            let mut written = quoted(1)?;
            // The rest comes with the next one.
            written.truncate(result.trim().parse().unwrap());
            Call::Write(opened(0)?, Bytes(written))
        }
        "fchmod" => Call::Mode(opened(0)?, octal(1)?),
        "fchown" => Call::Owner(opened(0)?, id(1)?, id(2)?),
        "fsync" | "fdatasync" => Call::Sync(opened(0)?),
        "kill" if argument(1).starts_with("SIGHUP") => Call::Signal,
        "kill" => return None,
        "rename" => Call::Rename(named(0)?, named(1)?),
        "renameat" | "renameat2" => Call::Rename(entry(0)?, entry(2)?),
        "mkdir" => Call::MakeDirectory(named(0)?, octal(1)?),
        "mkdirat" => Call::MakeDirectory(entry(0)?, octal(2)?),
        "unlink" => Call::Unlink(named(0)?),
        "unlinkat" if argument(2).contains("AT_REMOVEDIR") => Call::RemoveDirectory(entry(0)?),
        "unlinkat" => Call::Unlink(entry(0)?),
        "rmdir" => Call::RemoveDirectory(named(0)?),
        "chmod" | "chown" | "truncate" | "setxattr" => Call::Change(named(0)?),
        "fchmodat" | "fchownat" => Call::Change(entry(0)?),
        "link" | "symlink" => Call::Change(named(1)?),
        "linkat" => Call::Change(entry(2)?),
        "symlinkat" => Call::Change(entry(1)?),
        "copy_file_range" => Call::Change(opened(2)?),
        _ => Call::Change(opened(0)?),
    })
}

/// Whether a result goes out with these bytes.
fn is_report(arguments: &[&str]) -> bool {
    let sent = arguments.iter().flat_map(|argument| argument.split('"').skip(1).step_by(2)).flat_map(bytes);
    let sent = sent.collect::<Vec<u8>>();
    sent.starts_with(b"PUT ") && sent.windows(16).any(|window| window == b"/keypair/results")
}

/// What strace wrote as `\x2f\x61`.
fn bytes(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect()
}
