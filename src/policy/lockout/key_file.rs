//! Which file sshd reads a user's keys from: AuthorizedKeysFile.

use std::path::{Component, PathBuf};

use crate::policy::effective::Effective;
use crate::policy::observation::Account;
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
