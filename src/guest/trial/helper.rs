//! The helper unit's side of a trial and the daemon's: the daemon's sandbox allows no namespaces and no change of user,
//! so a service that a socket unit starts (`keypair-agent-trial.socket`) asks for it. One JSON question a connection, one
//! JSON answer. The helper finds sshd itself: its caller names no program.

use std::io::{self, BufWriter, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::accounts;
use super::super::files;
use super::super::sshd::{self, SshdSettings};
use crate::policy::sshd_config::is_managed_line;
use crate::policy::trial::{TrialOutcome, TrialRequest};

/// The socket's name in the run directory.
const HELPER_SOCKET_NAME: &str = "trial.sock";

/// How long a question and its answer may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// The most bytes of a question: a key file as it will be is in it.
const MAX_QUESTION_BYTES: u64 = 32 * 1024 * 1024;

/// The most bytes of an answer.
const MAX_ANSWER_BYTES: u64 = 1024 * 1024;

/// The most connections of one question.
const MAX_CONNECTIONS: usize = 64;

/// What the helper says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum HelperReply {
    /// An answer for each connection.
    Answers(Vec<TrialOutcome>),
    /// The question is refused; the text says why.
    Error(String),
}

/// Asks the helper; `None` where there is none.
pub(super) fn ask_helper(run_dir: &Path, question: &TrialRequest) -> Option<Vec<TrialOutcome>> {
    let path = run_dir.join(HELPER_SOCKET_NAME);
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        // The socket's file outlives its unit.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return Some(super::all_not_taken(question, &describe_helper_not_running(run_dir)));
        }
        Err(error) => return Some(all_unanswered(question, &path, &error.to_string())),
    };
    Some(match send_question(stream, question) {
        Ok(HelperReply::Answers(answers)) if answers.len() == question.connections.len() => answers,
        Ok(HelperReply::Answers(_)) => all_unanswered(question, &path, "its answer is incomplete"),
        Ok(HelperReply::Error(why)) => all_unanswered(question, &path, &why),
        Err(error) => all_unanswered(question, &path, &error.to_string()),
    })
}

/// What is missing where the helper's socket is.
pub(super) fn describe_helper_not_running(run_dir: &Path) -> String {
    format!(
        "the trial's helper does not listen at {}: systemctl start keypair-agent-trial.socket",
        run_dir.join(HELPER_SOCKET_NAME).display()
    )
}

fn all_unanswered(question: &TrialRequest, path: &Path, why: &str) -> Vec<TrialOutcome> {
    let text = format!(
        "the trial's helper at {} did not answer: {why}; see: systemctl status keypair-agent-trial.socket",
        path.display()
    );
    super::all_not_taken(question, &text)
}

fn send_question(mut stream: UnixStream, question: &TrialRequest) -> io::Result<HelperReply> {
    stream.set_read_timeout(Some(HELPER_TIMEOUT))?;
    stream.set_write_timeout(Some(HELPER_TIMEOUT))?;
    let mut writer = BufWriter::new(&mut stream);
    serde_json::to_writer(&mut writer, question)?;
    writer.flush()?;
    drop(writer);
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}

/// The helper's service: reads one question, asks, writes the answer.
///
/// # Errors
/// That the connection failed.
pub fn serve_trial_question(
    settings: &SshdSettings,
    input: impl Read,
    mut output: impl Write,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    input.take(MAX_QUESTION_BYTES + 1).read_to_end(&mut bytes)?;
    let reply = match run_requested_trial(settings, &bytes) {
        Ok(answers) => HelperReply::Answers(answers),
        Err(why) => HelperReply::Error(why.to_string()),
    };
    output.write_all(&serde_json::to_vec(&reply)?)?;
    output.flush()
}

/// Why the helper refuses a question.
#[derive(Debug)]
enum QuestionError {
    /// It is longer than a question may be.
    TooLong,
    /// It is no question.
    Malformed(serde_json::Error),
    /// It asks for something that a trial does not need.
    NotAllowed(&'static str),
    /// sshd or the account cannot be found, or the key file is unsafe.
    Refused(crate::policy::outcome::Refusal),
}

impl std::fmt::Display for QuestionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong => write!(f, "the question is longer than {MAX_QUESTION_BYTES} bytes"),
            Self::Malformed(error) => write!(f, "the question cannot be read: {error}"),
            Self::NotAllowed(what) => write!(f, "the question is not allowed: {what}"),
            Self::Refused(refusal) => f.write_str(&refusal.message),
        }
    }
}

impl std::error::Error for QuestionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Malformed(error) => Some(error),
            Self::TooLong | Self::NotAllowed(_) | Self::Refused(_) => None,
        }
    }
}

fn run_requested_trial(settings: &SshdSettings, bytes: &[u8]) -> Result<Vec<TrialOutcome>, QuestionError> {
    if bytes.len() as u64 > MAX_QUESTION_BYTES {
        return Err(QuestionError::TooLong);
    }
    let question: TrialRequest = serde_json::from_slice(bytes).map_err(QuestionError::Malformed)?;
    if question.connections.len() > MAX_CONNECTIONS {
        return Err(QuestionError::NotAllowed("too many connections"));
    }
    if !question.ahead.lines().all(|line| is_managed_line(line.as_bytes())) {
        return Err(QuestionError::NotAllowed("a directive that the agent does not set"));
    }
    for planned in &question.key_files {
        let account = accounts::lookup_account(&planned.user).ok().flatten();
        let account = account.ok_or(QuestionError::NotAllowed("the key file of an unknown user"))?;
        files::read_key_file(&account, &planned.path)
            .map_err(|error| QuestionError::Refused(error.into()))?;
    }
    let sshd = sshd::inspect_sshd(settings, &question.user).map_err(QuestionError::Refused)?;
    // An unprivileged container allows the helper no namespaces either.
    Ok(super::ask_in_namespaces(settings, &sshd, &question)
        .unwrap_or_else(|no_namespaces| super::ask_over_pipe(settings, &sshd, &question, &no_namespaces)))
}
