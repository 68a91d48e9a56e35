//! The trial: the agent asks a private sshd whether it would accept a key (KP-10.1 and KP-10.3). This process runs
//! it if it may create namespaces. Otherwise the helper unit runs it. Without a helper, the question goes over a
//! pipe.
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
use planned_files::PlannedFiles;
use run::{PrivateSshd, Transport};

use super::private::{ScratchDir, TRIAL_DIR_PREFIX};
use super::sshd::SshdSettings;
use super::{child, scout, ssh_client, systemd};
use crate::policy::observation::{ConfigTree, Sshd};
use crate::policy::trial::{CandidateConfig, TrialOutcome, TrialRequest, build_candidate_config};

/// The file in which sshd records failed logins of unknown users. A trial must not add a record.
const BTMP_PATH: &str = "/var/log/btmp";

/// Asks a private sshd. Returns one answer for each connection of the question.
pub(super) fn ask_private_sshd(
    settings: &SshdSettings,
    sshd: &Sshd,
    question: &TrialRequest,
) -> Vec<TrialOutcome> {
    match ask_in_namespaces(settings, sshd, question) {
        Ok(answers) => answers,
        Err(no_namespaces) => match helper::ask_helper(&settings.run_dir, question) {
            Some(answers) => answers,
            None => {
                let answers = ask_over_pipe(settings, sshd, question, &no_namespaces);
                match systemd::is_booted() {
                    true => answers.into_iter().map(|answer| add_helper_hint(settings, answer)).collect(),
                    false => answers,
                }
            }
        },
    }
}

/// Adds to an answer that the helper is not running, because it could have given a better answer.
fn add_helper_hint(settings: &SshdSettings, answer: TrialOutcome) -> TrialOutcome {
    let more = |why: String| {
        format!("{}; without it: {why}", helper::describe_helper_not_running(&settings.run_dir))
    };
    match answer {
        TrialOutcome::NotTaken(why) => TrialOutcome::NotTaken(more(why)),
        TrialOutcome::NotShown(why) => TrialOutcome::NotShown(more(why)),
        answer => answer,
    }
}

/// Runs the trial in new namespaces of a thread of this process.
///
/// # Errors
/// This process may not create namespaces.
fn ask_in_namespaces(
    settings: &SshdSettings,
    sshd: &Sshd,
    question: &TrialRequest,
) -> Result<Vec<TrialOutcome>, io::Error> {
    let directory = match make_trial_directory(settings) {
        Ok(directory) => directory,
        Err(why) => return Ok(all_not_taken(question, &why)),
    };
    let answers = thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let namespaces = Namespaces::enter()?;
            let answers = ask_each_connection(namespaces, directory.path(), sshd, question);
            scout::end_scout_of_thread();
            Ok(answers)
        });
        asked.join().unwrap_or_else(|_| Err(io::Error::other("the thread of the trial ended")))
    })?;
    // sshd did not know the user. The name service may be reachable only outside of the network namespace, so ask
    // again over a pipe.
    let asks_again = !question.needs_addresses && question.key_files.is_empty();
    if asks_again && answers.iter().any(|(_, knows_user)| !knows_user) {
        return Ok(ask_once_over_pipe(directory.path(), sshd, question));
    }
    Ok(answers.into_iter().map(|(answer, _)| answer).collect())
}

/// Creates the private directory. Returns an error text if no ssh client is installed.
fn make_trial_directory(settings: &SshdSettings) -> Result<ScratchDir, String> {
    if !child::is_installed(ssh_client::SSH_PROGRAM) {
        return Err("there is no ssh client: install openssh-client (openssh-clients)".to_owned());
    }
    ScratchDir::create(&settings.run_dir, TRIAL_DIR_PREFIX).map_err(|error| {
        format!("no private directory can be made in {}: {error}", settings.run_dir.display())
    })
}

fn all_not_taken(question: &TrialRequest, why: &str) -> Vec<TrialOutcome> {
    question.connections.iter().map(|_| TrialOutcome::NotTaken(why.to_owned())).collect()
}

/// Runs in the thread that entered the namespaces. Returns each answer, and whether sshd knew the user.
fn ask_each_connection(
    mut namespaces: Namespaces,
    directory: &Path,
    sshd: &Sshd,
    question: &TrialRequest,
) -> Vec<(TrialOutcome, bool)> {
    let all = |answer: TrialOutcome| question.connections.iter().map(|_| (answer.clone(), true)).collect();
    let mut stand = PlannedFiles { directory, namespaces: &namespaces, count: 0 };
    for planned in &question.key_files {
        if let Err(error) = stand.mount_key_file(planned) {
            return all(TrialOutcome::NotShown(format!(
                "{} cannot be shown to a private sshd as it will be: {error}",
                planned.path.display()
            )));
        }
    }
    let config = match mount_candidate_config(&mut stand, &sshd.config, &question.ahead) {
        Ok(config) => config,
        Err(error) => {
            return all(TrialOutcome::NotTaken(format!(
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
            Ok(true) => private.ask(Transport::Tcp(connection)),
            Ok(false) => (TrialOutcome::NoSuchFamily, true),
            Err(error) => {
                let text = format!(
                    "{} and {} cannot be addresses of the trial: {error}",
                    connection.addr, connection.laddr
                );
                (TrialOutcome::NotTaken(text), true)
            }
        });
    }
    answers
}

/// Writes the candidate's main file as a private file, and mounts changed included files at their own paths.
fn mount_candidate_config(
    stand: &mut PlannedFiles<'_>,
    tree: &ConfigTree,
    ahead: &str,
) -> io::Result<std::path::PathBuf> {
    let CandidateConfig { main, included } = build_candidate_config(tree, ahead);
    for (path, content) in &included {
        stand.mount_content(path, content)?;
    }
    if Path::new(BTMP_PATH).is_file() {
        let empty = stand.write_private_file(b"")?;
        stand.namespaces.bind_mount(&empty, Path::new(BTMP_PATH))?;
    }
    stand.write_private_file(&main)
}

/// The trial without namespaces: sshd sees no client address, and sees the key files as they are now.
fn ask_over_pipe(
    settings: &SshdSettings,
    sshd: &Sshd,
    question: &TrialRequest,
    no_namespaces: &io::Error,
) -> Vec<TrialOutcome> {
    if question.needs_addresses {
        let why = format!(
            "sshd's configuration depends on addresses, and no network namespace can be made here to ask it with one: \
             {no_namespaces}"
        );
        return all_not_taken(question, &why);
    }
    if !question.key_files.is_empty() {
        let why = format!("no mount namespace can be made here: {no_namespaces}");
        return question.connections.iter().map(|_| TrialOutcome::NotShown(why.clone())).collect();
    }
    match make_trial_directory(settings) {
        Ok(directory) => ask_once_over_pipe(directory.path(), sshd, question),
        Err(why) => all_not_taken(question, &why),
    }
}

/// Runs sshd once over a pipe and uses its answer for every connection. The caller knows that the configuration
/// does not distinguish them.
fn ask_once_over_pipe(directory: &Path, sshd: &Sshd, question: &TrialRequest) -> Vec<TrialOutcome> {
    let config = directory.join("candidate");
    let CandidateConfig { main, .. } = build_candidate_config(&sshd.config, &question.ahead);
    if let Err(error) = std::fs::write(&config, main) {
        return all_not_taken(question, &format!("cannot write {}: {error}", config.display()));
    }
    let mut private = PrivateSshd::new(sshd, question, directory, config);
    let (answer, _) = private.ask(Transport::Pipe);
    question.connections.iter().map(|_| answer.clone()).collect()
}
