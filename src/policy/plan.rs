//! From a command and the facts to a plan, or a refusal (KP-3.26).
//!
//! A plan is made in two strokes, since sshd is the judge of its own configuration: [`draft_plan`] says which files
//! would change and which lines sshd is to be asked about; [`DraftPlan::evaluate`] holds its answers against what was
//! asked and against the lockout guard.

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

/// The key pair that is bound here, and where its block stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// What is bound.
    #[serde(flatten)]
    pub key_pair: KeyPair,
    /// Whose authorized_keys file holds the block.
    pub user: String,
    /// That file.
    #[serde(with = "path_bytes")]
    pub path: PathBuf,
    /// The user's id at the bind: by it the file is reached where his name is gone. Absent before 3.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The mount point that held the file at the bind. Absent before 3.2.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "path_bytes::option")]
    pub mount: Option<PathBuf>,
    /// Whether it was bound to another instance, of which this one is a clone (KP-7.10).
    pub inherited: bool,
}

impl Binding {
    /// The binding of a key pair in this file of this user's.
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

/// What was observed for a command.
#[derive(Debug, Clone)]
pub struct PlanInputs {
    /// The target user.
    pub account: Account,
    /// The sshd of this guest; `None` only for a detach that found none.
    pub sshd: Option<Sshd>,
    /// The file that sshd reads for that user; on a detach where that cannot be told, the file that was recorded. `None`
    /// where passwords are allowed and nothing else is done: no key matters then.
    pub key_file: Option<KeyFile>,
    /// Other files that may hold the bound block, and whose they are: where it was put, and what else sshd reads now.
    pub elsewhere: Vec<(Account, KeyFile)>,
    /// All files that sshd reads for that user, in its order, with their bytes.
    pub key_files: Vec<(PathBuf, SharedBytes)>,
    /// What the result has to say of them.
    pub notes: Vec<String>,
    /// What else decides about a login; `None` where there is no sshd.
    pub login: Option<Login>,
    /// What SELinux says of sshd's reading of those files; nothing where it does not run.
    pub labels: Labels,
}

impl PlanInputs {
    /// The file that sshd reads for the target user.
    ///
    /// # Errors
    /// `AUTHORIZED_KEYS_UNSUPPORTED`: the facts are of a command that is about no key.
    fn key_file(&self) -> Result<&KeyFile, Refusal> {
        self.key_file.as_ref().ok_or_else(|| {
            Refusal::new(
                Reason::AuthorizedKeysUnsupported,
                "no key file was looked for; attach a key pair again",
            )
        })
    }
}

/// What a plan is made for besides the command's own action.
#[derive(Debug, Clone, Copy)]
pub struct PlanRequest<'a> {
    /// What is to be done.
    pub action: &'a Action,
    /// What the state says is bound.
    pub binding: Option<&'a Binding>,
    /// This instance, for the platform's own words.
    pub instance_id: Option<&'a str>,
    /// Whether keyboard-interactive follows password login.
    pub kbd_interactive: KbdInteractive,
    /// Whether the running sshd can and shall be asked as well.
    pub proof: bool,
    /// Whether a private sshd is asked about a key although passwords stay on: `proof` of the configuration.
    pub asks_for_yes: bool,
    /// RFC 3339, for the comment in sshd's configuration.
    pub when: &'a str,
    /// For the same comment.
    pub command_id: &'a str,
    /// Why our own setting could not be written a moment ago: where sshd does what is asked, it is left at that.
    pub not_owned: Option<&'a str>,
}

/// A plan that sshd has yet to be asked about.
#[derive(Debug, Clone)]
pub struct DraftPlan {
    /// The edits of authorized_keys files, in order.
    pub key_edits: Vec<FileEdit>,
    /// The edits of sshd's configuration, in order.
    pub sshd_edits: Vec<FileEdit>,
    /// The lines that sshd is asked about ahead of its present configuration.
    pub ahead: Option<String>,
    /// What is bound afterwards.
    pub binding: Option<Binding>,
    /// The key pair that was unbound, by a detach.
    pub unbound: Option<KeyPair>,
    /// Whether sshd's files say what is asked as they stand: what would be written is ours besides.
    pub already: bool,
    /// Whether ours stands as a command would write it, or nothing of ours stands.
    pub untouched: bool,
    warnings: Vec<Warning>,
    takes_away: Option<PublicKey>,
}

/// What is to be done, and what shall be true afterwards.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The edits of authorized_keys files, in order.
    pub key_edits: Vec<FileEdit>,
    /// The edits of sshd's configuration, in order.
    pub sshd_edits: Vec<FileEdit>,
    /// The SELinux labels that are set on the way to a key file, behind the edits.
    pub key_labels: Vec<Relabel>,
    /// The same of our drop-in.
    pub sshd_labels: Vec<Relabel>,
    /// The key file by which the user gets in; `None` where that matters to nothing.
    pub decisive_key_file: Option<PathBuf>,
    /// How a changed configuration is made live; `None` where it is not changed.
    pub reload: Option<ReloadMethod>,
    /// Whether the listener may have yet to read the files that were judged, and a way in depends on them. No file of its own changes, so it is told
    /// where it does not say of itself that it does what they say.
    pub unread: bool,
    /// What the running sshd is asked; `None` where nothing changes at its door, and it has read its files.
    pub proof: Option<ProbePlan>,
    /// What a private sshd is asked once the key is in place, where it could not be shown the planned file.
    pub deferred_trial: Option<TrialRequest>,
    /// What a private sshd said of the key; `None` where it was not asked.
    pub trial: Option<TrialReport>,
    /// What sshd must say afterwards.
    pub expect: Option<PasswordAuth>,
    /// What is bound afterwards.
    pub binding: Option<Binding>,
    /// The key pair that was unbound, by a detach.
    pub unbound: Option<KeyPair>,
    /// Whether sshd's files say what is asked as they stand: what is written there is ours besides.
    pub already: bool,
    /// What sshd said, with the plan's lines ahead.
    pub answers: Vec<SshdAnswer>,
    /// What the owner should know.
    pub warnings: Vec<Warning>,
}

impl Plan {
    /// Whether it changes a byte of the guest's files.
    pub fn changes_files(&self) -> bool {
        !self.key_edits.is_empty() || !self.sshd_edits.is_empty()
    }

    /// Whether it changes anything of the guest's files.
    pub fn changes_files_or_labels(&self) -> bool {
        self.changes_files() || !self.key_labels.is_empty() || !self.sshd_labels.is_empty()
    }

    /// Whether passwords are on again before a key is taken away.
    pub fn enables_passwords(&self) -> bool {
        self.expect == Some(PasswordAuth::Yes)
    }

    /// Whether sshd is told whatever it says of itself.
    pub fn must_reload_first(&self) -> bool {
        self.reload.is_some() || self.unread && self.enables_passwords()
    }
}

/// The key pair that counts as bound: the state's, else that of a block of ours that stands in the file.
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

/// Whether the bound key pair allows the command at all (KP-4.2 to KP-4.4). It needs no facts but the binding.
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

/// Which files the command would change, and how.
///
/// # Errors
/// Those of KP-4.2 to KP-4.4, and that there is no place for sshd's setting.
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

/// Everything of ours, taken out: what `undo` does (KP-8.4). `known` may be empty.
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

/// The key lines that are not ours, of all files that sshd reads; none where the file that is ours is not known.
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

/// The `AuthorizedKeysCommand` by which sshd gets keys for the target user as well.
fn find_authorized_keys_command(facts: &PlanInputs) -> Option<&str> {
    let effective = &facts.sshd.as_ref()?.answers.first()?.effective;
    let command = effective.value("authorizedkeyscommand");
    (!command.is_empty() && !command.eq_ignore_ascii_case("none")).then_some(command)
}

/// What it prints cannot be known without running it, so a key that was taken away may be among it.
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
    /// The block goes to the top of the file that sshd reads, and away from where it stood before.
    fn bind(&mut self, facts: &PlanInputs, key_file: &KeyFile, key_pair: &KeyPair, known: &[PublicKey]) {
        let path = &key_file.path;
        let inserted = authorized_keys::render_key_block(key_pair);
        let mut recognised = known.to_vec();
        if !known.is_empty() && !known.contains(&key_pair.public_key) {
            recognised.push(key_pair.public_key.clone());
        }
        self.key_edits.extend(edit_key_file(&facts.account, key_file, known, inserted).map(|mut edit| {
            // The inverse meets the block in either form.
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

    /// The block goes from every other file that holds it.
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
