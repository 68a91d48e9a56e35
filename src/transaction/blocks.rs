//! The places where the block of the bound key pair may stand (KP-5.7): where it was written, and what sshd reads
//! now. Each file is listed once, even if several paths lead to it.

use std::path::{Path, PathBuf};

use crate::guest::Guest;
use crate::guest::files::FileError;
use crate::policy::authorized_keys::{find_managed_keys, parse_key_lines};
use crate::policy::edit::FileKind;
use crate::policy::key_paths::resolve_key_paths;
use crate::policy::observation::{Account, KeyFile, KeyFileOwner, Sshd, SshdAnswer, UserStatus};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::plan::{Binding, PlanInputs};
use crate::policy::public_key::PublicKey;
use crate::policy::sshd_config::ParsedConfig;

use super::Engine;
use super::observe::{default_key_path, find_key_path};

/// A path that may lead to a block of the agent.
#[derive(Debug)]
pub(super) struct KeyFileCandidate {
    /// The account as which the file is opened.
    pub(super) account: Account,
    /// The path.
    pub(super) path: PathBuf,
    /// Whether the file is always listed. Otherwise it is listed only if it has a block with a known key.
    pub(super) always: bool,
}

/// What was found at the paths of the candidates.
#[derive(Debug, Clone, Default)]
pub(super) struct FoundBlocks {
    /// The files, in the order of the candidates.
    pub(super) files: Vec<(Account, KeyFile)>,
    /// Paths that cannot be reached safely and contain a block of the agent, or that cannot be read at all.
    pub(super) unreached: Vec<Refusal>,
    /// Paths that cannot be reached safely and contain no block of the agent.
    pub(super) passed_over: Vec<Refusal>,
}

impl FoundBlocks {
    /// Whether any of the files contains a block of the agent.
    pub(super) fn has_block(&self, known: &[PublicKey]) -> bool {
        self.files.iter().any(|(_, file)| !find_managed_keys(content_or_empty(file), known).is_empty())
    }

    fn join_paths(&self) -> String {
        let paths: Vec<String> = self.files.iter().map(|(_, file)| file.path.display().to_string()).collect();
        paths.join(", ")
    }
}

fn content_or_empty(file: &KeyFile) -> &[u8] {
    file.content.as_deref().unwrap_or_default()
}

/// Whether the content has a block of the agent with one of these keys. If no key is known, any block counts.
fn has_block_with_key(content: &[u8], known: &[PublicKey]) -> bool {
    let mut blocks = find_managed_keys(content, known).into_iter();
    match known {
        [] => blocks.next().is_some(),
        known => blocks.any(|block| parse_key_lines(&block.bytes).any(|line| known.contains(&line.key))),
    }
}

/// The other files that may contain the block of a binding, besides the file that the command changes.
#[derive(Debug, Default)]
pub(super) struct OtherKeyFiles {
    /// The files.
    pub(super) files: Vec<(Account, KeyFile)>,
    /// Notes for the result.
    pub(super) notes: Vec<String>,
}

impl<G: Guest> Engine<G> {
    /// Reads every candidate. `files` are the files that were read before.
    pub(super) fn search_key_files(
        &self,
        files: Vec<(Account, KeyFile)>,
        candidates: Vec<KeyFileCandidate>,
        known: &[PublicKey],
    ) -> FoundBlocks {
        let mut blocks = FoundBlocks { files, ..FoundBlocks::default() };
        let mut refused = Vec::new();
        for KeyFileCandidate { account, path, always } in candidates {
            if blocks.files.iter().any(|(_, file)| file.path == path) {
                continue;
            }
            // A path that the agent cannot see may still exist.
            if let Err(hidden) = self.guest.check_path_visible(&path) {
                blocks.unreached.push(hidden.into());
                continue;
            }
            match self.guest.read_key_file_for_removal(&account, &path) {
                Ok(file) => {
                    let is_listed = blocks.files.iter().any(|(_, other)| other.id == file.id);
                    if !is_listed && (always || has_block_with_key(content_or_empty(&file), known)) {
                        blocks.files.push((account, file));
                    }
                }
                Err(error) => refused.push((account, path, error)),
            }
        }
        for (account, path, error) in refused {
            if self.resolves_to_known_file(&blocks.files, &account, &path) {
                continue;
            }
            // Read the file as sshd reads it, by its path alone. This read leads to no write.
            match self.guest.read(&FileKind::SshdConfig, &path) {
                Ok(Some(content)) if has_block_with_key(&content, known) => {
                    let Refusal { reason, message } = Refusal::from(error);
                    let message = format!("a block of ours still stands in {}: {message}", path.display());
                    blocks.unreached.push(Refusal::new(reason, message));
                }
                Ok(_) | Err(FileError::Unsafe { .. }) => blocks.passed_over.push(error.into()),
                Err(_) => blocks.unreached.push(error.into()),
            }
        }
        blocks
    }

    /// Whether a path that contains a link leads to a file that is already listed.
    fn resolves_to_known_file(&self, files: &[(Account, KeyFile)], account: &Account, path: &Path) -> bool {
        let resolved = self.guest.canonicalize_path(path);
        resolved != path
            && self
                .guest
                .read_key_file_for_removal(account, &resolved)
                .is_ok_and(|file| files.iter().any(|(_, other)| other.id == file.id))
    }

    /// The key files that sshd reads for an account: first the file into which a key is written, then the others.
    pub(super) fn list_sshd_key_paths(&self, sshd: &Sshd, account: &Account) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = find_key_path(sshd, account).into_iter().collect();
        for answer in &sshd.answers {
            for path in list_key_paths_for_answer(sshd, answer, account) {
                if !paths.contains(&path) {
                    paths.push(path);
                }
            }
        }
        paths
    }

    /// The account as which the recorded file of a binding is opened.
    ///
    /// # Errors
    /// `IO_ERROR`.
    pub(super) fn find_holder(&self, binding: &Binding) -> Result<KeyFileOwner, Refusal> {
        self.guest.resolve_key_file_owner(&binding.user, binding.uid, &binding.path)
    }

    /// For a command that decides about logins: the other files that may contain the bound block.
    ///
    /// # Errors
    /// If a file with the block cannot be reached, or its volume is not mounted.
    pub(super) fn find_other_key_files(
        &self,
        binding: &Binding,
        account: &Account,
        sshd: &Sshd,
        key_file: &KeyFile,
    ) -> Result<OtherKeyFiles, Refusal> {
        let known = std::slice::from_ref(&binding.key_pair.public_key);
        let holder = self.find_holder(binding)?;
        let read = |account: &Account, sshd: &Sshd| {
            let paths = self.list_sshd_key_paths(sshd, account).into_iter();
            let account = account.clone();
            paths.map(move |path| KeyFileCandidate { account: account.clone(), path, always: false })
        };
        let mut candidates: Vec<KeyFileCandidate> = read(account, sshd).collect();
        candidates.push(KeyFileCandidate {
            account: holder.account.clone(),
            path: binding.path.clone(),
            always: true,
        });
        if holder.fate != UserStatus::Gone
            && holder.account.name != account.name
            && let Ok(sshd) = self.guest.inspect_sshd(&holder.account.name)
        {
            candidates.extend(read(&holder.account, &sshd));
        }
        let first = vec![(account.clone(), key_file.clone())];
        let mut blocks = self.search_key_files(first, candidates, known);
        self.check_all_reached(binding, &blocks)?;
        let notes = describe_holder_change(binding, &holder, blocks.has_block(known)).into_iter().collect();
        Ok(OtherKeyFiles { files: blocks.files.split_off(1), notes })
    }

    /// If the user's file cannot be read: the refusal that says that a volume is not mounted, if that is the cause.
    pub(super) fn find_unmounted_refusal(
        &self,
        binding: Option<&Binding>,
        account: &Account,
        sshd: &Sshd,
        path: &Path,
    ) -> Option<Refusal> {
        let binding = binding?;
        let file = self.guest.read_key_file_for_removal(account, path).ok()?;
        self.find_other_key_files(binding, account, sshd, &file)
            .err()
            .filter(|refusal| refusal.reason == Reason::IoError)
    }

    /// Refuses to write a key into a file that sshd also reads for another account. For root this is checked for
    /// every path; for other accounts only if the file is not in the user's home.
    ///
    /// # Errors
    /// `UNSAFE_PATH`, `IO_ERROR`.
    pub(super) fn refuse_shared_key_file(&self, facts: &PlanInputs) -> Result<(), Refusal> {
        let PlanInputs { account, key_file: Some(key_file), sshd: Some(sshd), .. } = facts else {
            return Ok(());
        };
        let is_in_home = key_file.path.starts_with(&account.home);
        if account.uid == 0 && is_in_home {
            return Ok(());
        }
        for other in self.guest.people()?.into_iter().map(|person| person.account) {
            if other.uid == account.uid || (other.uid != 0 && is_in_home) {
                continue;
            }
            let read = sshd.answers.first().map(|first| list_key_paths_for_answer(sshd, first, &other));
            // A `Match` block may name another file for root than for the user.
            let usual = Some(default_key_path(&other)).filter(|_| other.uid == 0);
            let read = read.unwrap_or_default().into_iter().chain(usual);
            // A file in another account's home that only this account can change is not searched for in every home.
            for path in read.filter(|path| other.uid == 0 || !path.starts_with(&other.home)) {
                if self.guest.file_id(&path).is_some_and(|theirs| theirs == key_file.id) {
                    let message = format!(
                        "{}: sshd reads this file for {} too ({}), and a key of {} there would let in as both; \
                         name a file of his own in AuthorizedKeysFile",
                        key_file.path.display(),
                        other.name,
                        path.display(),
                        account.name
                    );
                    return Err(Refusal::new(Reason::UnsafePath, message));
                }
            }
        }
        Ok(())
    }

    /// For a detach: every file that may contain the block. The file that sshd reads now comes first.
    ///
    /// # Errors
    /// As for [`Self::find_other_key_files`].
    pub(super) fn find_binding_blocks(
        &self,
        binding: &Binding,
        holder: &KeyFileOwner,
        sshd: Option<&Sshd>,
    ) -> Result<(FoundBlocks, Vec<String>), Refusal> {
        let known = std::slice::from_ref(&binding.key_pair.public_key);
        let blocks = self.search_key_files(Vec::new(), self.list_candidates(binding, holder, sshd), known);
        self.check_all_reached(binding, &blocks)?;
        if let (true, Some(refusal)) = (blocks.files.is_empty(), blocks.passed_over.first()) {
            return Err(refusal.clone());
        }
        let is_found = blocks.has_block(known);
        let mut notes: Vec<String> = describe_holder_change(binding, holder, is_found).into_iter().collect();
        if !is_found {
            notes.push(describe_no_block_found(&blocks));
            if sshd.is_none() && holder.fate != UserStatus::Gone {
                notes.push("sshd could not be asked which files it reads".to_owned());
            }
            notes.extend(blocks.passed_over.iter().map(|refusal| refusal.message.clone()));
        }
        Ok((blocks, notes))
    }

    /// The paths at which the block of a binding may stand.
    pub(super) fn list_candidates(
        &self,
        binding: &Binding,
        holder: &KeyFileOwner,
        sshd: Option<&Sshd>,
    ) -> Vec<KeyFileCandidate> {
        let KeyFileOwner { account, fate } = holder;
        let mut read: Vec<KeyFileCandidate> = Vec::new();
        match (sshd, fate) {
            (Some(sshd), _) => {
                let is_his = find_key_path(sshd, account).is_ok();
                let paths = self.list_sshd_key_paths(sshd, account).into_iter().enumerate();
                read.extend(paths.map(|(index, path)| KeyFileCandidate {
                    account: account.clone(),
                    path,
                    always: index == 0 && is_his,
                }));
            }
            (None, UserStatus::Present | UserStatus::Renamed) => read.push(KeyFileCandidate {
                account: account.clone(),
                path: default_key_path(account),
                always: false,
            }),
            // The target user may now have the name of the bound user.
            (None, UserStatus::Gone) => {
                let target = self.guest.lookup_account_for_removal(&self.settings.target_user).ok();
                let asked =
                    target.and_then(|target| Some((self.guest.inspect_sshd(&target.name).ok()?, target)));
                if let Some((sshd, target)) = asked {
                    let paths = self.list_sshd_key_paths(&sshd, &target).into_iter();
                    read.extend(paths.map(|path| KeyFileCandidate {
                        account: target.clone(),
                        path,
                        always: false,
                    }));
                }
            }
        }
        let recorded =
            KeyFileCandidate { account: account.clone(), path: binding.path.clone(), always: true };
        let at = usize::from(read.first().is_some_and(|first| first.always));
        read.insert(at, recorded);
        read
    }

    /// Whether every file that may contain the block could be read.
    ///
    /// # Errors
    /// If a file with the block cannot be reached. Also if the block was not found and the volume of its file is not
    /// mounted.
    pub(super) fn check_all_reached(&self, binding: &Binding, blocks: &FoundBlocks) -> Result<(), Refusal> {
        let known = std::slice::from_ref(&binding.key_pair.public_key);
        self.guest.check_path_visible(&binding.path)?;
        if let Some(mount) = binding.mount.as_deref()
            && !blocks.has_block(known)
            && !self.guest.is_mounted(mount)
        {
            let message = format!(
                "the block of key pair {} was put into {}, and {}, on which that file was, is not mounted; mount it, then \
                 try again",
                binding.key_pair.key_name,
                binding.path.display(),
                mount.display()
            );
            return Err(Refusal::new(Reason::IoError, message));
        }
        blocks.unreached.first().map_or(Ok(()), |refusal| Err(refusal.clone()))
    }
}

/// All paths that sshd reads for an account, in sshd's order, shared files included. Empty if sshd would reject one
/// of them.
fn list_key_paths_for_answer(sshd: &Sshd, answer: &SshdAnswer, account: &Account) -> Vec<PathBuf> {
    let paths =
        resolve_key_paths(&answer.effective, &ParsedConfig::from_sshd(sshd), &answer.connection, account);
    let paths = paths.into_iter().flatten().map(|path| path.path);
    paths.filter(|path| path.is_absolute()).collect()
}

/// A text that says that no block of the agent was found, and where the agent searched.
pub(super) fn describe_no_block_found(blocks: &FoundBlocks) -> String {
    format!("no block of it was found in {}: somebody took it out before", blocks.join_paths())
}

/// A text that says what happened to the bound user, if the account changed.
pub(super) fn describe_holder_change(
    binding: &Binding,
    holder: &KeyFileOwner,
    is_found: bool,
) -> Option<String> {
    let (user, path) = (&binding.user, binding.path.display());
    match holder.fate {
        UserStatus::Present => None,
        UserStatus::Renamed => {
            let now = &holder.account.name;
            Some(format!("user {user}, for whom it was bound, is gone; his uid is that of {now} now"))
        }
        UserStatus::Gone if is_found => {
            Some(format!("user {user}, for whom it was bound in {path}, is gone; his block is taken out"))
        }
        UserStatus::Gone => {
            Some(format!("user {user}, for whom it was bound, is gone, and so is the block in {path}"))
        }
    }
}
