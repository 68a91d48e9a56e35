//! Turns a command and the observed facts into a plan or a refusal (KP-3.26).
//!
//! Only sshd can judge its own configuration, so planning has two steps. [`draft_plan`] lists the files that would
//! change and the lines to query sshd about. [`DraftPlan::evaluate`] checks sshd's answers against the command and
//! the lockout guard.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::authorized_keys::{self, LocatedKeyLine};
use super::command::{Action, KeyPair};
use super::content::SharedBytes;
use super::edit::{FileEdit, FileKind};
use super::foreign::sanitize_text;
use super::observation::{Account, ConfigTree, KeyFile, Login, ReloadMethod, Sshd, SshdAnswer};
use super::outcome::{Reason, Refusal, TrialReport, Warning, WarningReason};
use super::password;
use super::path_bytes;
use super::proof::ProbePlan;
use super::public_key::PublicKey;
use super::selinux::{Labels, Relabel};
use super::sshd_config::{self, KbdInteractive};
use super::trial::TrialRequest;
use super::types::PasswordAuth;

mod key_trial;
mod labels;
mod questions;
mod setting;
mod verdict;

pub use key_trial::{TrialRunner, check_deferred_trial};
pub use labels::{verify_written_config_labels, verify_written_key_file_label};
pub use questions::{SshdAnswers, SshdQueries};
pub use verdict::{PlanRefusal, check_sshd_password_auth};

use setting::removal_edit;

/// The bound key pair and the place of its block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// The bound key pair.
    #[serde(flatten)]
    pub key_pair: KeyPair,
    /// The user whose authorized_keys file holds the block.
    pub user: String,
    /// The path of that authorized_keys file.
    #[serde(with = "path_bytes")]
    pub path: PathBuf,
    /// The user's id at the time of the bind. The agent uses it to reach the file if the user name no longer exists.
    /// Absent before 3.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The mount point that held the file at the time of the bind. Absent before 3.2.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "path_bytes::option")]
    pub mount: Option<PathBuf>,
    /// Whether the key pair was bound to another instance of which this instance is a clone (KP-7.10).
    pub inherited: bool,
}

impl Binding {
    /// Creates the binding of a key pair in this user's key file.
    pub fn new(key_pair: KeyPair, account: &Account, key_file: &KeyFile) -> Self {
        Self {
            key_pair,
            user: account.name.clone(),
            path: key_file.path.clone(),
            uid: Some(account.uid),
            mount: key_file.mount.clone(),
            inherited: false,
        }
    }
}

/// The facts that the agent observed for a command.
#[derive(Debug, Clone)]
pub struct PlanInputs {
    /// The target user.
    pub account: Account,
    /// The sshd of this guest. `None` only for a detach that found no sshd.
    pub sshd: Option<Sshd>,
    /// The file that sshd reads for the target user. If a detach cannot determine it, this is the recorded file.
    /// `None` if the command only allows passwords: then no key matters.
    pub key_file: Option<KeyFile>,
    /// Other files that may hold the bound block, with their owners: the file of the bind, and other files that sshd
    /// reads now.
    pub elsewhere: Vec<(Account, KeyFile)>,
    /// All files that sshd reads for the target user, in sshd's order, with their bytes.
    pub key_files: Vec<(PathBuf, SharedBytes)>,
    /// Notes about these files for the result.
    pub notes: Vec<String>,
    /// The other facts that decide about a login. `None` if there is no sshd.
    pub login: Option<Login>,
    /// What SELinux's policy says about sshd's access to these files. Empty if SELinux does not run.
    pub labels: Labels,
}

impl PlanInputs {
    /// The file that sshd reads for the target user.
    ///
    /// # Errors
    /// `AUTHORIZED_KEYS_UNSUPPORTED`: the facts belong to a command that does not concern a key.
    fn key_file(&self) -> Result<&KeyFile, Refusal> {
        self.key_file.as_ref().ok_or_else(|| {
            Refusal::new(
                Reason::AuthorizedKeysUnsupported,
                "no key file was looked for; attach a key pair again",
            )
        })
    }
}

/// The inputs of a plan besides the observed facts.
#[derive(Debug, Clone, Copy)]
pub struct PlanRequest<'a> {
    /// The action of the command.
    pub action: &'a Action,
    /// The binding in the agent's state.
    pub binding: Option<&'a Binding>,
    /// The id of this instance, for messages in the platform's format.
    pub instance_id: Option<&'a str>,
    /// Whether keyboard-interactive follows the password setting.
    pub kbd_interactive: KbdInteractive,
    /// Whether the agent can and should query the running sshd too (the proof).
    pub proof: bool,
    /// Whether the agent runs the trial of a key even if passwords stay on: `proof` of the configuration.
    pub asks_for_yes: bool,
    /// The time in RFC 3339 format, for the comment in sshd's configuration.
    pub when: &'a str,
    /// The command's id, for the same comment.
    pub command_id: &'a str,
    /// Why the agent could not write its own setting in the attempt before. If sshd already has the requested
    /// setting, the plan leaves it as it is.
    pub not_owned: Option<&'a str>,
}

/// A plan for which the agent has not queried sshd yet.
#[derive(Debug, Clone)]
pub struct DraftPlan {
    /// The edits of authorized_keys files, in order.
    pub key_edits: Vec<FileEdit>,
    /// The edits of sshd's configuration, in order.
    pub sshd_edits: Vec<FileEdit>,
    /// The lines that sshd gets ahead of its present configuration when the agent queries it.
    pub ahead: Option<String>,
    /// The binding after the command.
    pub binding: Option<Binding>,
    /// The key pair that a detach unbinds.
    pub unbound: Option<KeyPair>,
    /// Whether sshd's files already contain the requested setting. The agent's own lines would then be an addition.
    pub already: bool,
    /// Whether the agent's lines are as a command would write them, or the agent has no lines there.
    pub untouched: bool,
    warnings: Vec<Warning>,
    takes_away: Option<PublicKey>,
}

/// The changes of a command and the state expected after them.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The edits of authorized_keys files, in order.
    pub key_edits: Vec<FileEdit>,
    /// The edits of sshd's configuration, in order.
    pub sshd_edits: Vec<FileEdit>,
    /// The SELinux labels to set on the path to a key file, after the edits.
    pub key_labels: Vec<Relabel>,
    /// The SELinux labels to set on the agent's drop-in, after the edits.
    pub sshd_labels: Vec<Relabel>,
    /// The key file with which the user logs in. `None` if nothing depends on it.
    pub decisive_key_file: Option<PathBuf>,
    /// How the agent activates a changed configuration. `None` if the configuration does not change.
    pub reload: Option<ReloadMethod>,
    /// Whether the listener may not have read the judged files yet while a login depends on them. The command changes
    /// no file of sshd, so the agent reloads sshd only if sshd does not report that it follows these files.
    pub unread: bool,
    /// The queries to the running sshd. `None` if the command changes nothing that sshd uses at a login and sshd has
    /// read its files.
    pub proof: Option<ProbePlan>,
    /// The trial to run once the key is in place, if the private sshd could not read the planned file before.
    pub deferred_trial: Option<TrialRequest>,
    /// The private sshd's answer about the key. `None` if the agent ran no trial.
    pub trial: Option<TrialReport>,
    /// The setting that sshd must report afterwards.
    pub expect: Option<PasswordAuth>,
    /// The binding after the command.
    pub binding: Option<Binding>,
    /// The key pair that a detach unbinds.
    pub unbound: Option<KeyPair>,
    /// Whether sshd's files already contain the requested setting. The agent's own lines are then an addition.
    pub already: bool,
    /// sshd's answers with the plan's lines ahead of its configuration.
    pub answers: Vec<SshdAnswer>,
    /// Warnings for the owner.
    pub warnings: Vec<Warning>,
}

impl Plan {
    /// Whether the plan changes a byte of the guest's files.
    pub fn changes_files(&self) -> bool {
        !self.key_edits.is_empty() || !self.sshd_edits.is_empty()
    }

    /// Whether the plan changes a byte or an SELinux label of the guest's files.
    pub fn changes_files_or_labels(&self) -> bool {
        self.changes_files() || !self.key_labels.is_empty() || !self.sshd_labels.is_empty()
    }

    /// Whether the agent must allow passwords again before it removes a key.
    pub fn enables_passwords(&self) -> bool {
        self.expect == Some(PasswordAuth::Yes)
    }

    /// Whether the agent reloads sshd whatever sshd reports about itself.
    pub fn must_reload_first(&self) -> bool {
        self.reload.is_some() || self.unread && self.enables_passwords()
    }
}

/// The key pair that counts as bound: the one in the state, or else the one in the agent's block in the file.
pub fn find_binding(
    binding: Option<&Binding>,
    account: &Account,
    key_file: Option<&KeyFile>,
) -> Option<Binding> {
    binding.cloned().or_else(|| {
        let key_file = key_file?;
        let key_pair = authorized_keys::find_block_key_pair(key_file.content.as_deref()?)?;
        Some(Binding { inherited: true, ..Binding::new(key_pair, account, key_file) })
    })
}

/// Checks whether the bound key pair allows the command (KP-4.2 to KP-4.4). It needs no facts but the binding.
///
/// # Errors
/// `ALREADY_ATTACHED` and `NOT_ATTACHED`.
pub fn check_binding_allows(
    action: &Action,
    bound: Option<&Binding>,
    instance: Option<&str>,
) -> Result<(), Refusal> {
    match (action, bound) {
        (Action::Attach { key_pair, replace, .. }, Some(bound))
            if *key_pair != bound.key_pair && !replace && !bound.inherited =>
        {
            let instance = instance.unwrap_or("unknown");
            Err(Refusal::new(
                Reason::AlreadyAttached,
                format!("Already attached key pair. instance id {instance}"),
            ))
        }
        (Action::Detach { key_name: Some(key_name) }, Some(bound))
            if *key_name != bound.key_pair.key_name =>
        {
            Err(Refusal::new(
                Reason::NotAttached,
                format!("key pair {key_name} is not attached: {} is", bound.key_pair.key_name),
            ))
        }
        _ => Ok(()),
    }
}

/// Drafts which files the command would change, and how.
///
/// # Errors
/// Those of KP-4.2 to KP-4.4, and the case that there is no place for sshd's setting.
pub fn draft_plan(purpose: &PlanRequest<'_>, facts: &PlanInputs) -> Result<DraftPlan, Refusal> {
    let bound = find_binding(purpose.binding, &facts.account, facts.key_file.as_ref());
    check_binding_allows(purpose.action, bound.as_ref(), purpose.instance_id)?;
    let known: Vec<PublicKey> = bound.iter().map(|bound| bound.key_pair.public_key.clone()).collect();
    let mut draft = DraftPlan {
        key_edits: Vec::new(),
        sshd_edits: Vec::new(),
        ahead: None,
        binding: bound.clone(),
        unbound: None,
        already: false,
        untouched: false,
        warnings: Vec::new(),
        takes_away: None,
    };
    match purpose.action {
        Action::Attach { key_pair, password_auth, .. } => {
            if let Some(bound) = bound.as_ref().filter(|bound| bound.key_pair != *key_pair) {
                draft.takes_away = Some(bound.key_pair.public_key.clone());
                if bound.inherited {
                    draft.warnings.push(Warning::new(
                        WarningReason::InheritedKeyReplaced,
                        format!(
                            "key pair {} was bound before this instance was made from an image, and is replaced",
                            bound.key_pair.key_name
                        ),
                    ));
                }
            }
            draft.bind(facts, facts.key_file()?, key_pair, &known);
            draft.plan_sshd_edits(purpose, facts, *password_auth)?;
        }
        Action::Detach { .. } => draft.unbind(facts, facts.key_file()?, bound.as_ref(), &known),
        Action::SetPasswordAuth { password_auth } => draft.plan_sshd_edits(purpose, facts, *password_auth)?,
    }
    Ok(draft)
}

/// Drafts the edits of `undo` (KP-8.4), which remove everything of the agent's. `known` may be empty.
pub fn draft_undo(
    key_files: &[(Account, KeyFile)],
    config: Option<&ConfigTree>,
    known: &[PublicKey],
) -> Vec<FileEdit> {
    let keys = key_files.iter().filter_map(|(account, file)| edit_key_file(account, file, known, Vec::new()));
    let settings = config.into_iter().flat_map(|config| {
        sshd_config::managed_places(config).into_iter().filter_map(|place| removal_edit(config, &place))
    });
    settings.chain(keys).collect()
}

/// The key lines that the agent does not manage, of all files that sshd reads. Empty if the agent does not know its
/// key file.
fn list_unmanaged_key_lines<'f>(
    facts: &'f PlanInputs,
    known: &'f [PublicKey],
) -> impl Iterator<Item = LocatedKeyLine<'f>> {
    let own = facts.key_file.iter();
    own.flat_map(move |own| authorized_keys::locate_unmanaged_key_lines(&facts.key_files, &own.path, known))
}

/// The edit of one user's file.
fn edit_key_file(
    account: &Account,
    file: &KeyFile,
    known: &[PublicKey],
    inserted: Vec<u8>,
) -> Option<FileEdit> {
    let uid = Some(account.uid);
    let kind = FileKind::AuthorizedKeys { user: account.name.clone(), uid, known: known.to_vec() };
    let mut edit = FileEdit::edit_block(&file.path, kind, file.content.clone(), inserted)?;
    edit.creates_directory = file.missing_directory.clone();
    edit.mount = file.mount.clone();
    Some(edit)
}

/// The `AuthorizedKeysCommand` from which sshd also gets keys for the target user.
fn find_authorized_keys_command(facts: &PlanInputs) -> Option<&str> {
    let effective = &facts.sshd.as_ref()?.answers.first()?.effective;
    let command = effective.value("authorizedkeyscommand");
    (!command.is_empty() && !command.eq_ignore_ascii_case("none")).then_some(command)
}

/// The agent cannot know the output of this command without a run of it. A removed key may still be in that output.
fn warn_authorized_keys_command(command: &str) -> Warning {
    Warning::new(
        WarningReason::KeyStillPresent,
        format!(
            "AuthorizedKeysCommand {} still serves keys, this one perhaps among them",
            sanitize_text(command)
        ),
    )
}

impl DraftPlan {
    /// Puts the block at the top of the file that sshd reads, and removes it from its former place.
    fn bind(&mut self, facts: &PlanInputs, key_file: &KeyFile, key_pair: &KeyPair, known: &[PublicKey]) {
        let path = &key_file.path;
        let inserted = authorized_keys::render_key_block(key_pair);
        let mut recognised = known.to_vec();
        if !known.is_empty() && !known.contains(&key_pair.public_key) {
            recognised.push(key_pair.public_key.clone());
        }
        self.key_edits.extend(edit_key_file(&facts.account, key_file, known, inserted).map(|mut edit| {
            // The inverse of the edit must recognise the block in both forms.
            if let FileKind::AuthorizedKeys { known, .. } = &mut edit.kind {
                *known = recognised;
            }
            edit
        }));
        self.remove_from_other_files(facts, known);
        self.binding = Some(Binding::new(key_pair.clone(), &facts.account, key_file));
        let key = &key_pair.public_key;
        self.warnings.extend(authorized_keys::check_restricted_copy(&facts.key_files, path, known, key));
        if let Some(taken) = &self.takes_away {
            self.warnings.extend(authorized_keys::check_key_still_present(
                list_unmanaged_key_lines(facts, known),
                taken,
            ));
            self.warnings.extend(find_authorized_keys_command(facts).map(warn_authorized_keys_command));
        }
    }

    /// Removes the block from every other file that holds it.
    fn remove_from_other_files(&mut self, facts: &PlanInputs, known: &[PublicKey]) {
        let edits = facts.elsewhere.iter();
        self.key_edits
            .extend(edits.filter_map(|(account, file)| edit_key_file(account, file, known, Vec::new())));
    }

    fn unbind(
        &mut self,
        facts: &PlanInputs,
        key_file: &KeyFile,
        bound: Option<&Binding>,
        known: &[PublicKey],
    ) {
        self.binding = None;
        self.key_edits.extend(edit_key_file(&facts.account, key_file, known, Vec::new()));
        self.remove_from_other_files(facts, known);
        self.unbound = bound.map(|bound| bound.key_pair.clone());
        let Some(KeyPair { public_key: unbound, .. }) = &self.unbound else { return };
        let path = &key_file.path;
        self.warnings.extend(authorized_keys::check_key_still_present(
            list_unmanaged_key_lines(facts, known),
            unbound,
        ));
        let Some(effective) =
            facts.sshd.as_ref().and_then(|sshd| sshd.answers.first()).map(|first| &first.effective)
        else {
            return;
        };
        if let Some(command) = find_authorized_keys_command(facts) {
            self.warnings.push(warn_authorized_keys_command(command));
        } else if !authorized_keys::has_unrestricted_key(list_unmanaged_key_lines(facts, known))
            && !facts
                .login
                .as_ref()
                .is_some_and(|login| password::can_log_in_with_password(login, &facts.account, effective))
        {
            self.warnings.push(Warning::new(
                WarningReason::NoWayIn,
                format!(
                    "user {} has no key left in {}, and no password would let him in; attach a key pair or allow password login",
                    facts.account.name,
                    path.display()
                ),
            ));
        }
    }
}
