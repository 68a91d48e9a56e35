//! Both sides of the connection between the daemon and the trial helper. The daemon's sandbox allows no namespaces
//! and no change of user. So the daemon asks a service that a socket unit (`keypair-agent-trial.socket`) starts.
//! Each connection carries one JSON question and one JSON answer. The helper finds sshd itself; the daemon cannot
//! name a program.

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

/// The timeout for each read and each write on the socket.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// The maximum size of a question in bytes. A question contains the planned key files.
const MAX_QUESTION_BYTES: u64 = 32 * 1024 * 1024;

/// The maximum size of an answer in bytes.
const MAX_ANSWER_BYTES: u64 = 1024 * 1024;

/// The maximum number of connections in one question.
const MAX_CONNECTIONS: usize = 64;

/// The helper's reply.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum HelperReply {
    /// One answer for each connection.
    Answers(Vec<TrialOutcome>),
    /// The helper refused the question, for this reason.
    Error(String),
}

/// Asks the helper; `None` if there is no helper socket.
pub(super) fn ask_helper(run_dir: &Path, question: &TrialRequest) -> Option<Vec<TrialOutcome>> {
    let path = run_dir.join(HELPER_SOCKET_NAME);
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        // The file of the socket remains after its unit has stopped.
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

/// The message if no helper listens on the socket.
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

/// The helper's main function: reads one question, runs the trial and writes the answer.
///
/// # Errors
/// Reading the question or writing the answer failed.
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
    /// It is longer than [`MAX_QUESTION_BYTES`].
    TooLong,
    /// It is not a valid question.
    Malformed(serde_json::Error),
    /// It contains something that a trial does not need.
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
    // In an unprivileged container, the helper may not create namespaces either.
    Ok(super::ask_in_namespaces(settings, &sshd, &question)
        .unwrap_or_else(|no_namespaces| super::ask_over_pipe(settings, &sshd, &question, &no_namespaces)))
}
