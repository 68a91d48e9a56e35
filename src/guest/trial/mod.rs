//! The trial: a private sshd is asked whether it would accept a key (KP-10.1 and KP-10.3). By this process where it
//! may make namespaces, else by the helper unit, else over a pipe.
//!
//! ```text
//!   this process ──► a thread in a network and a mount namespace of its own
//!                      key file and configuration as they will be, at their own paths
//!                      ssh ──TCP──► sshd -i        (a run for each connection)
//! ```

pub mod helper;
mod namespace;
mod netlink;
mod planned_files;
mod run;

use std::io;
use std::path::Path;
use std::thread;

use namespace::Namespaces;
use planned_files::Stand;
use run::{Link, PrivateSshd};

use super::private::{PrivateDirectory, TRIAL};
use super::sshd::SshdSettings;
use super::{child, scout, ssh_client, systemd};
use crate::policy::observation::{ConfigTree, Sshd};
use crate::policy::trial::{Candidate, TrialAnswer, TrialQuestion, candidate};

/// Where sshd records failed logins of unknown users: a trial leaves no record.
const BTMP: &str = "/var/log/btmp";

/// Asks a private sshd; an answer for each connection of the question.
pub(super) fn ask(settings: &SshdSettings, sshd: &Sshd, question: &TrialQuestion) -> Vec<TrialAnswer> {
    match ask_here(settings, sshd, question) {
        Ok(answers) => answers,
        Err(no_namespaces) => match helper::ask(&settings.run_dir, question) {
            Some(answers) => answers,
            None => {
                let answers = ask_over_pipe(settings, sshd, question, &no_namespaces);
                match systemd::is_running() {
                    true => answers.into_iter().map(|answer| without_helper(settings, answer)).collect(),
                    false => answers,
                }
            }
        },
    }
}

/// Under systemd there is a helper that would have known more.
fn without_helper(settings: &SshdSettings, answer: TrialAnswer) -> TrialAnswer {
    let more = |why: String| format!("{}; without it: {why}", helper::not_running(&settings.run_dir));
    match answer {
        TrialAnswer::NotTaken(why) => TrialAnswer::NotTaken(more(why)),
        TrialAnswer::NotShown(why) => TrialAnswer::NotShown(more(why)),
        answer => answer,
    }
}

/// Asks in namespaces of this process.
///
/// # Errors
/// That this process may not make namespaces.
fn ask_here(
    settings: &SshdSettings,
    sshd: &Sshd,
    question: &TrialQuestion,
) -> Result<Vec<TrialAnswer>, io::Error> {
    let directory = match prepare(settings) {
        Ok(directory) => directory,
        Err(why) => return Ok(not_taken(question, &why)),
    };
    let answers = thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let namespaces = Namespaces::enter()?;
            let answers = in_namespaces(namespaces, directory.path(), sshd, question);
            scout::leave();
            Ok(answers)
        });
        asked.join().unwrap_or_else(|_| Err(io::Error::other("the thread of the trial ended")))
    })?;
    // Whom the name service knows here alone is asked about where it can be reached.
    let asks_again = !question.needs_addresses && question.key_files.is_empty();
    if asks_again && answers.iter().any(|(_, knows_user)| !knows_user) {
        return Ok(over_pipe(directory.path(), sshd, question));
    }
    Ok(answers.into_iter().map(|(answer, _)| answer).collect())
}

/// The private directory, if there is a client to ask with.
fn prepare(settings: &SshdSettings) -> Result<PrivateDirectory, String> {
    if !child::finds(ssh_client::PROGRAM) {
        return Err("there is no ssh client: install openssh-client (openssh-clients)".to_owned());
    }
    PrivateDirectory::make(&settings.run_dir, TRIAL).map_err(|error| {
        format!("no private directory can be made in {}: {error}", settings.run_dir.display())
    })
}

fn not_taken(question: &TrialQuestion, why: &str) -> Vec<TrialAnswer> {
    question.connections.iter().map(|_| TrialAnswer::NotTaken(why.to_owned())).collect()
}

/// In the thread that entered them: each answer, and whether sshd knew the user.
fn in_namespaces(
    mut namespaces: Namespaces,
    directory: &Path,
    sshd: &Sshd,
    question: &TrialQuestion,
) -> Vec<(TrialAnswer, bool)> {
    let all = |answer: TrialAnswer| question.connections.iter().map(|_| (answer.clone(), true)).collect();
    let mut stand = Stand { directory, namespaces: &namespaces, count: 0 };
    for planned in &question.key_files {
        if let Err(error) = stand.show_key_file(planned) {
            return all(TrialAnswer::NotShown(format!(
                "{} cannot be shown to a private sshd as it will be: {error}",
                planned.path.display()
            )));
        }
    }
    let config = match show_candidate(&mut stand, &sshd.config, &question.ahead) {
        Ok(config) => config,
        Err(error) => {
            return all(TrialAnswer::NotTaken(format!(
                "sshd's configuration cannot be shown to a private sshd as it will be: {error}"
            )));
        }
    };
    let mut private = PrivateSshd::new(sshd, question, directory, config);
    let mut answers = Vec::with_capacity(question.connections.len());
    for connection in &question.connections {
        let added: io::Result<bool> = [connection.addr, connection.laddr]
            .into_iter()
            .filter(|address| !address.is_loopback())
            .try_fold(true, |all, address| Ok(namespaces.add_address(address)? && all));
        let routed = added.and_then(|added| {
            if added {
                namespaces.wait_until_connected(connection.addr, connection.laddr)?;
            }
            Ok(added)
        });
        answers.push(match routed {
            Ok(true) => private.ask(Link::Tcp(connection)),
            Ok(false) => (TrialAnswer::NoSuchFamily, true),
            Err(error) => {
                let text = format!(
                    "{} and {} cannot be addresses of the trial: {error}",
                    connection.addr, connection.laddr
                );
                (TrialAnswer::NotTaken(text), true)
            }
        });
    }
    answers
}

/// The candidate's main file as a private file; included files that differ at their own paths.
fn show_candidate(stand: &mut Stand<'_>, tree: &ConfigTree, ahead: &str) -> io::Result<std::path::PathBuf> {
    let Candidate { main, included } = candidate(tree, ahead);
    for (path, content) in &included {
        stand.show_content(path, content)?;
    }
    if Path::new(BTMP).is_file() {
        let empty = stand.file(b"")?;
        stand.namespaces.show(&empty, Path::new(BTMP))?;
    }
    stand.file(&main)
}

/// Where no namespace can be made: sshd sees no address, and the key files as they stand.
fn ask_over_pipe(
    settings: &SshdSettings,
    sshd: &Sshd,
    question: &TrialQuestion,
    no_namespaces: &io::Error,
) -> Vec<TrialAnswer> {
    if question.needs_addresses {
        let why = format!(
            "sshd's configuration depends on addresses, and no network namespace can be made here to ask it with one: \
             {no_namespaces}"
        );
        return not_taken(question, &why);
    }
    if !question.key_files.is_empty() {
        let why = format!("no mount namespace can be made here: {no_namespaces}");
        return question.connections.iter().map(|_| TrialAnswer::NotShown(why.clone())).collect();
    }
    match prepare(settings) {
        Ok(directory) => over_pipe(directory.path(), sshd, question),
        Err(why) => not_taken(question, &why),
    }
}

/// One run over a pipe stands for every connection: the configuration does not tell them apart.
fn over_pipe(directory: &Path, sshd: &Sshd, question: &TrialQuestion) -> Vec<TrialAnswer> {
    let config = directory.join("candidate");
    let Candidate { main, .. } = candidate(&sshd.config, &question.ahead);
    if let Err(error) = std::fs::write(&config, main) {
        return not_taken(question, &format!("cannot write {}: {error}", config.display()));
    }
    let mut private = PrivateSshd::new(sshd, question, directory, config);
    let (answer, _) = private.ask(Link::Pipe);
    question.connections.iter().map(|_| answer.clone()).collect()
}
