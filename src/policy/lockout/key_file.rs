//! Which file sshd reads a user's keys from, and whether it does: AuthorizedKeysFile and StrictModes.

use std::path::{Component, Path, PathBuf};

use super::{Facts, Finding, Judged, Rule};
use crate::policy::effective::Effective;
use crate::policy::observation::{Account, EntryKind, PathFact};
use crate::policy::outcome::{Reason, Refusal};

/// The file our block goes into: the first path of AuthorizedKeysFile that is in the user's home or names
/// the user (contract 5). Only a shared file, or `none`: AUTHORIZED_KEYS_UNSUPPORTED.
pub fn authorized_keys_path(effective: &Effective, account: &Account) -> Result<PathBuf, Refusal> {
    let unsupported = |why: String| {
        let remedy = "set `AuthorizedKeysFile .ssh/authorized_keys` in sshd's configuration";
        Refusal::new(Reason::AuthorizedKeysUnsupported, format!("{why}; {remedy}"))
    };
    let paths = expanded(effective, account).map_err(unsupported)?;
    match paths.into_iter().find(|path| path.is_his) {
        Some(path) => Ok(path.path),
        None => {
            let said = effective.words("authorizedkeysfile").join(" ");
            let why = format!("AuthorizedKeysFile `{said}` names no file of {}'s own", account.name);
            Err(unsupported(why))
        }
    }
}

/// All files that sshd reads for a user, shared ones too, in its order; none where it gives up on one.
pub fn authorized_keys_files(effective: &Effective, account: &Account) -> Vec<PathBuf> {
    let paths = expanded(effective, account).unwrap_or_default().into_iter();
    paths.map(|path| path.path).filter(|path| path.is_absolute()).collect()
}

/// A path of AuthorizedKeysFile for one user.
struct KeysPath {
    path: PathBuf,
    is_his: bool,
}

/// The paths that sshd reads for a user, in its order; what is wrong where it gives up on one.
fn expanded(effective: &Effective, account: &Account) -> Result<Vec<KeysPath>, String> {
    let templates = effective.words("authorizedkeysfile");
    let templates = templates.into_iter().filter(|template| !template.eq_ignore_ascii_case("none"));
    templates.map(|template| expand(template, account)).collect()
}

/// One path with its tokens replaced: sshd_config(5) "TOKENS".
fn expand(template: &str, account: &Account) -> Result<KeysPath, String> {
    let home = account.home.to_string_lossy();
    let mut text = String::new();
    let mut names_him = false;
    let mut characters = template.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        match characters.next() {
            Some('%') => text.push('%'),
            Some('h') => text.push_str(&home),
            Some('u') => {
                names_him = true;
                text.push_str(&account.name);
            }
            Some('U') => {
                names_him = true;
                text.push_str(&account.uid.to_string());
            }
            _ => return Err(format!("AuthorizedKeysFile `{template}` has a token that sshd does not know")),
        }
    }
    let is_in_home = template.starts_with("%h/") || !text.starts_with('/');
    let path = account.home.join(&text);
    let components = || path.components();
    let is_his = is_in_home
        || names_him
        || account.home.parent().is_some() && path.starts_with(&account.home)
        || components().any(|component| component.as_os_str() == account.name.as_str());
    let climbs = components().any(|component| component == Component::ParentDir);
    Ok(KeysPath { is_his: is_his && !climbs && path.is_absolute(), path })
}

/// The file must be one that sshd reads for this user, a regular one, and he must be able to read it: sshd
/// opens it as him.
pub(super) fn authorized_keys_file(facts: &Facts<'_>) -> Judged {
    let (account, file) = (facts.account, &facts.key_file.path);
    let said = facts.effective.words("authorizedkeysfile").join(" ");
    let refused =
        |cause: &str, remedy: &str| Err(facts.by_value(Rule::AuthorizedKeysFile, &said, cause, remedy));
    let is_read = match expanded(facts.effective, account) {
        Ok(paths) => paths.iter().any(|path| path.path == *file),
        Err(cause) => return refused(&cause, "correct it"),
    };
    if !is_read {
        let cause = format!("sshd reads `{said}` for {}, not {}", account.name, file.display());
        return refused(&cause, "add `.ssh/authorized_keys` to it");
    }
    for fact in &facts.key_file.path_facts {
        let is_file = fact.path == *file;
        let right = if is_file { EntryKind::File } else { EntryKind::Directory };
        if fact.kind != right {
            let what = if is_file { "a regular file" } else { "a directory" };
            let (cause, remedy) = (format!("{} is not {what}", fact.path.display()), "move it away");
            return Err(about(Rule::AuthorizedKeysFile, &fact.path, &cause, remedy));
        }
        if !may_open(fact, account) {
            let cause = format!("{} may not read {}", account.name, fact.path.display());
            let remedy = format!("chown {} {}", account.name, fact.path.display());
            return Err(about(Rule::AuthorizedKeysFile, &fact.path, &cause, &remedy));
        }
    }
    Ok(None)
}

/// Whether the mode lets the user read a file, or go through a directory. Of his groups only the primary
/// one is known by its id; one that would be needed beyond it counts as missing.
fn may_open(fact: &PathFact, account: &Account) -> bool {
    let bit = if fact.kind == EntryKind::Directory { 0o1 } else { 0o4 };
    let shift = if fact.uid == account.uid {
        6
    } else if fact.gid == account.gid {
        3
    } else {
        0
    };
    account.uid == 0 || fact.mode & (bit << shift) != 0
}

/// Owners and modes as sshd's `safe_path` has them: the file and each directory belong to root or the user,
/// and nobody else may write there. Debian's build accepts what the user owns and only his own private group
/// may write as well; other builds do not. Nothing observed tells the builds apart, so that is accepted where
/// the group is known to be his alone, and the proof has the last word. What does not exist yet is not judged:
/// it will be created right.
pub(super) fn strict_modes(facts: &Facts<'_>) -> Judged {
    if facts.effective.value("strictmodes") == "no" {
        return Ok(None);
    }
    let account = facts.account;
    for fact in &facts.key_file.path_facts {
        let path = fact.path.display();
        if fact.uid != 0 && fact.uid != account.uid {
            let cause = format!("{path} belongs to uid {}, neither root nor {}", fact.uid, account.name);
            let remedy = format!("chown {} {path}", account.name);
            return Err(about(Rule::StrictModes, &fact.path, &cause, &remedy));
        }
        let is_his_alone = account.group_is_private && fact.gid == account.gid && fact.uid == account.uid;
        let forbidden = if is_his_alone { 0o002 } else { 0o022 };
        if fact.mode & forbidden != 0 {
            let cause = format!("{path} may be written by others (mode {:04o})", fact.mode & 0o7777);
            let remedy = format!("chmod go-w {path}");
            return Err(about(Rule::StrictModes, &fact.path, &cause, &remedy));
        }
    }
    Ok(None)
}

/// A finding about a file's own owner, mode or kind.
fn about(rule: Rule, path: &Path, cause: &str, remedy: &str) -> Finding {
    let message = format!("{}: {cause}; {remedy}", rule.name());
    Finding { rule, message, file: Some(path.to_owned()), line: None }
}
