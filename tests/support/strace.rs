//! The agent under strace(1): lists its system calls, lets one of them fail, or kills the agent at one of them.

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

use super::TestGuest;

/// The calls by which the agent changes anything, in the guest or in its own state.
pub const MUTATING_SYSCALLS: &str = "renameat,renameat2,fsync,unlinkat,mkdirat,kill";

/// The `nth` call of a name in the thread that does the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyscallPoint {
    pub call: String,
    pub nth: usize,
    /// The line of the trace, for messages.
    pub words: String,
}

impl SyscallPoint {
    /// strace's option for an injection at this call.
    pub fn inject_option(&self, what: &str) -> String {
        format!("inject={}:{what}:when={}", self.call, self.nth)
    }
}

/// The agent under strace, without its children. `apply` does all of its work in one thread.
fn strace_command(guest: &TestGuest, options: &[&str], arguments: &[&str]) -> Command {
    let agent = guest.agent_command(arguments);
    let mut command = Command::new("strace");
    command.args(["-qq", "-y", "-o"]).arg(guest.path("strace.log")).args(options);
    command.arg(agent.get_program()).args(agent.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn write_command_file(guest: &TestGuest, command: &Value) -> String {
    let path = guest.path("command.log");
    fs::write(&path, command.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Performs `command`, and lists its calls of these names.
pub fn list_syscall_points(guest: &TestGuest, command: &Value, calls: &str) -> Vec<SyscallPoint> {
    let file = write_command_file(guest, command);
    let trace = format!("trace={calls}");
    let output = strace_command(guest, &["-e", &trace], &["apply", &file]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = fs::read_to_string(guest.path("strace.log")).unwrap();
    let mut points: Vec<SyscallPoint> = Vec::new();
    for line in text.lines() {
        let Some((call, _)) = line.split_once('(') else { continue };
        let nth = 1 + points.iter().filter(|point| point.call == call).count();
        points.push(SyscallPoint { call: call.to_owned(), nth, words: line.to_owned() });
    }
    points
}

/// strace injects only into calls that it traces.
fn trace_option(inject: &str) -> String {
    format!("trace={}", inject.trim_start_matches("inject=").split(':').next().unwrap())
}

/// Runs `apply` with an injection.
pub fn apply_with_injection(guest: &TestGuest, command: &Value, inject: &str) -> Output {
    let file = write_command_file(guest, command);
    strace_command(guest, &["-e", &trace_option(inject), "-e", inject], &["apply", &file]).output().unwrap()
}

/// Runs `apply`, and kills it at this point, before the call is made.
pub fn kill_apply_at(guest: &TestGuest, command: &Value, point: &SyscallPoint) {
    let output = apply_with_injection(guest, command, &point.inject_option("signal=SIGKILL"));
    assert_eq!(output.status.signal(), Some(9), "{point:?}: {output:?}");
}

/// Runs `run` until it ends, with an injection into any of its threads.
pub fn run_with_injection(guest: &TestGuest, inject: &str) -> Output {
    strace_command(guest, &["-f", "-e", &trace_option(inject), "-e", inject], &["run"]).output().unwrap()
}

/// A call that changes the disk or depends on it. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskCall {
    /// A new, empty file, with its mode.
    Create(PathBuf, u32),
    /// Bytes that are appended to a file.
    Write(PathBuf, EscapedBytes),
    Chmod(PathBuf, u32),
    Chown(PathBuf, u32, u32),
    /// Any other change of a file. The agent makes none in these tests.
    OtherChange(PathBuf),
    /// fsync(2) of a file or a directory.
    Fsync(PathBuf),
    Rename(PathBuf, PathBuf),
    /// A new directory, with its mode.
    Mkdir(PathBuf, u32),
    Unlink(PathBuf),
    Rmdir(PathBuf),
    /// A signal to sshd.
    Signal,
    /// The HTTP `PUT` of a result.
    PutResult,
}

impl DiskCall {
    /// The path that the call changes, by its name after the call.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Create(path, _)
            | Self::Write(path, _)
            | Self::Chmod(path, _)
            | Self::Chown(path, ..)
            | Self::OtherChange(path)
            | Self::Fsync(path)
            | Self::Rename(_, path)
            | Self::Mkdir(path, _)
            | Self::Unlink(path)
            | Self::Rmdir(path) => Some(path),
            Self::Signal | Self::PutResult => None,
        }
    }
}

/// Bytes that `Debug` prints as text.
#[derive(Clone, PartialEq, Eq)]
pub struct EscapedBytes(pub Vec<u8>);

impl fmt::Debug for EscapedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// strace's options for all calls that could change a file. Strings are complete and in hexadecimal, so that their
/// content cannot be mistaken for strace's syntax.
const STRACE_ARGS: [&str; 6] = [
    "-f",
    "-xx",
    "-s",
    "16777216",
    "-e",
    "trace=open,openat,openat2,creat,write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,truncate,ftruncate,fallocate,\
     copy_file_range,sendfile,link,linkat,symlink,symlinkat,chmod,fchmod,fchmodat,chown,fchown,fchownat,setxattr,\
     fsetxattr,fremovexattr,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,rmdir,unlink,unlinkat,kill",
];

/// The disk calls of `apply`.
pub fn trace_apply(guest: &TestGuest, command: &Value) -> Vec<DiskCall> {
    trace_apply_with(guest, command, &STRACE_ARGS)
}

/// The disk calls of `apply` with an injection into one of them.
pub fn trace_failing_apply(guest: &TestGuest, command: &Value, inject: &str) -> Vec<DiskCall> {
    trace_apply_with(guest, command, &[&STRACE_ARGS[..], &["-e", inject]].concat())
}

fn trace_apply_with(guest: &TestGuest, command: &Value, options: &[&str]) -> Vec<DiskCall> {
    let file = write_command_file(guest, command);
    let output = strace_command(guest, options, &["apply", &file]).output().unwrap();
    // The caller judges the result itself.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    read_trace(guest)
}

/// The disk calls of `run`, from its start until `until` returns.
pub fn trace_run(guest: &TestGuest, until: impl FnOnce()) -> Vec<DiskCall> {
    let tracer = strace_command(guest, &STRACE_ARGS, &["run"]).spawn().unwrap();
    until();
    let pid = fs::read_to_string(guest.path("run/run.lock")).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    let output = tracer.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    read_trace(guest)
}

/// The trace's calls on the guest's files, in the order of their returns, because threads interleave.
fn read_trace(guest: &TestGuest) -> Vec<DiskCall> {
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
        // `name(arguments) = result`; the result may be followed by a comment.
        let Some((call, result)) = whole.rsplit_once(" = ") else { continue };
        if !result.starts_with(['-', '?']) {
            calls.extend(
                parse_call(call.trim_end(), result).filter(|call| is_durable_guest_call(call, guest)),
            );
        }
    }
    calls
}

/// Whether a call concerns the guest's durable files. Output and `run_dir` do not count.
fn is_durable_guest_call(call: &DiskCall, guest: &TestGuest) -> bool {
    call.path()
        .is_none_or(|path| path.starts_with(guest.folder.path()) && !path.starts_with(guest.path("run")))
}

/// Parses `name(arguments)`. strace prints the path of a descriptor: `fsync(7<\x2f\x61>)`.
fn parse_call(line: &str, result: &str) -> Option<DiskCall> {
    let (name, arguments) = line.strip_suffix(')')?.split_once('(')?;
    let arguments: Vec<&str> = arguments.split(", ").collect();
    let argument = |number: usize| arguments.get(number).copied().unwrap_or_default();
    let opened = |number| {
        let (_, path) = argument(number).split_once('<')?;
        Some(PathBuf::from(OsString::from_vec(decode_hex_escapes(path.split_once('>')?.0))))
    };
    let quoted = |number| argument(number).split('"').nth(1).map(decode_hex_escapes);
    let named = |number| Some(PathBuf::from(OsString::from_vec(quoted(number)?)));
    // A directory's descriptor, then a name in it.
    let entry = |number| Some(opened(number)?.join(named(number + 1)?));
    let octal = |number| u32::from_str_radix(argument(number), 8).ok();
    let id = |number| argument(number).parse().ok();
    Some(match name {
        "open" | "openat" | "openat2" | "creat" => {
            let is_made = |flag| arguments.iter().any(|argument| argument.split('|').any(|set| set == flag));
            match name {
                "openat" if is_made("O_CREAT") && is_made("O_EXCL") => DiskCall::Create(entry(0)?, octal(3)?),
                _ if is_made("O_CREAT") || is_made("O_TRUNC") || name == "creat" => {
                    DiskCall::OtherChange(PathBuf::from(OsString::from_vec(decode_hex_escapes(
                        result.split_once('<')?.1.split_once('>')?.0,
                    ))))
                }
                _ => return None,
            }
        }
        "write" | "writev" | "sendto" | "sendmsg" if is_result_put(&arguments) => DiskCall::PutResult,
        "write" => {
            let mut written = quoted(1)?;
            // A short write: the next call writes the rest.
            written.truncate(result.trim().parse().unwrap());
            DiskCall::Write(opened(0)?, EscapedBytes(written))
        }
        "fchmod" => DiskCall::Chmod(opened(0)?, octal(1)?),
        "fchown" => DiskCall::Chown(opened(0)?, id(1)?, id(2)?),
        "fsync" | "fdatasync" => DiskCall::Fsync(opened(0)?),
        "kill" if argument(1).starts_with("SIGHUP") => DiskCall::Signal,
        "kill" => return None,
        "rename" => DiskCall::Rename(named(0)?, named(1)?),
        "renameat" | "renameat2" => DiskCall::Rename(entry(0)?, entry(2)?),
        "mkdir" => DiskCall::Mkdir(named(0)?, octal(1)?),
        "mkdirat" => DiskCall::Mkdir(entry(0)?, octal(2)?),
        "unlink" => DiskCall::Unlink(named(0)?),
        "unlinkat" if argument(2).contains("AT_REMOVEDIR") => DiskCall::Rmdir(entry(0)?),
        "unlinkat" => DiskCall::Unlink(entry(0)?),
        "rmdir" => DiskCall::Rmdir(named(0)?),
        "chmod" | "chown" | "truncate" | "setxattr" => DiskCall::OtherChange(named(0)?),
        "fchmodat" | "fchownat" => DiskCall::OtherChange(entry(0)?),
        "link" | "symlink" => DiskCall::OtherChange(named(1)?),
        "linkat" => DiskCall::OtherChange(entry(2)?),
        "symlinkat" => DiskCall::OtherChange(entry(1)?),
        "copy_file_range" => DiskCall::OtherChange(opened(2)?),
        _ => DiskCall::OtherChange(opened(0)?),
    })
}

/// Whether a call with these bytes sends a result.
fn is_result_put(arguments: &[&str]) -> bool {
    let sent = arguments
        .iter()
        .flat_map(|argument| argument.split('"').skip(1).step_by(2))
        .flat_map(decode_hex_escapes);
    let sent = sent.collect::<Vec<u8>>();
    sent.starts_with(b"PUT ") && sent.windows(16).any(|window| window == b"/keypair/results")
}

/// Decodes strace's `\x2f\x61` notation.
fn decode_hex_escapes(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect()
}
