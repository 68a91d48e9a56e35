//! The agent under strace(1): which calls it makes, and what becomes of it when one of them fails or is its last.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

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
