//! The agent under strace(1): which calls it makes, and what becomes of it when one of them fails or is its last.

use std::collections::HashMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
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
    /// Bytes or attributes of a file.
    Change(PathBuf),
    /// fsync(2) of a file or a directory.
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    MakeDirectory(PathBuf),
    Unlink(PathBuf),
    /// A signal to sshd.
    Signal,
    /// A result's `PUT`.
    Report,
}

const CALLS: &str = "trace=write,writev,pwrite64,sendto,ftruncate,fchmod,fchown,fsetxattr,fsync,fdatasync,\
    rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,kill";

/// The calls of `apply`.
pub fn calls_of_apply(guest: &Guest, command: &Value) -> Vec<Call> {
    let file = command_file(guest, command);
    let output = traced(guest, &["-f", "-s", "64", "-e", CALLS], &["apply", &file]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    calls(guest)
}

/// The calls of `run`, from its start until `until` returns.
pub fn calls_of_run(guest: &Guest, until: impl FnOnce()) -> Vec<Call> {
    let tracer = traced(guest, &["-f", "-s", "64", "-e", CALLS], &["run"]).spawn().unwrap();
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
        let failed = whole.rsplit_once(" = ").is_some_and(|(_, result)| result.starts_with("-1"));
        if !failed {
            calls.extend(call(&whole).filter(|call| concerns(call, guest)));
        }
    }
    calls
}

/// Whether it is about the guest's files: not what is printed, nor `run_dir`, which is not durable.
fn concerns(call: &Call, guest: &Guest) -> bool {
    match call {
        Call::Change(path)
        | Call::Sync(path)
        | Call::MakeDirectory(path)
        | Call::Unlink(path)
        | Call::Rename(_, path) => {
            path.starts_with(guest.folder.path()) && !path.starts_with(guest.path("run"))
        }
        Call::Signal | Call::Report => true,
    }
}

/// A line of strace's, `name(arguments) = result`, its descriptors with their paths: `fsync(7</a/b>)`.
fn call(line: &str) -> Option<Call> {
    let (name, arguments) = line.split_once('(')?;
    let opened = |text: &str| Some(PathBuf::from(text.split_once('<')?.1.split_once('>')?.0));
    let quoted = |text: &str| Some(PathBuf::from(text.split('"').nth(1)?));
    match name {
        "write" | "writev" | "sendto"
            if arguments.contains("\"PUT ") && arguments.contains("/keypair/results") =>
        {
            Some(Call::Report)
        }
        "write" | "writev" | "pwrite64" | "ftruncate" | "fchmod" | "fchown" | "fsetxattr" => {
            opened(arguments).map(Call::Change)
        }
        "fsync" | "fdatasync" => opened(arguments).map(Call::Sync),
        "kill" if arguments.contains("SIGHUP") => Some(Call::Signal),
        "rename" => {
            let names: Vec<&str> = arguments.split('"').collect();
            Some(Call::Rename(names.get(1)?.into(), names.get(3)?.into()))
        }
        "renameat" | "renameat2" => {
            let (from, to) = arguments.split_once("\", ")?;
            Some(Call::Rename(
                opened(from)?.join(quoted(&format!("{from}\""))?),
                opened(to)?.join(quoted(to)?),
            ))
        }
        "mkdir" => quoted(arguments).map(Call::MakeDirectory),
        "unlink" => quoted(arguments).map(Call::Unlink),
        "mkdirat" => Some(Call::MakeDirectory(opened(arguments)?.join(quoted(arguments)?))),
        "unlinkat" => Some(Call::Unlink(opened(arguments)?.join(quoted(arguments)?))),
        _ => None,
    }
}
