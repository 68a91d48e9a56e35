//! The files from which sshd reads a user's keys: AuthorizedKeysFile with its tokens replaced, in sshd's order. Also
//! the one of these files that gets the agent's block (KP-5.1 and KP-5.3).

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use super::effective::EffectiveConfig;
use super::foreign::sanitize_text;
use super::observation::{Account, Connection};
use super::outcome::{Reason, Refusal};
use super::pattern::has_wildcard;
use super::sshd_config::{Keyword, ParsedConfig, Scope};

/// A path of AuthorizedKeysFile for one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPath {
    /// The path as an absolute path. If `is_pattern`, it is a pattern of glob(7).
    pub path: PathBuf,
    /// Whether the path belongs to this user alone. A path that other users share does not.
    pub is_users_own: bool,
    /// Whether the path contains a character that glob(7) does not take literally. OpenSSH 10.0 and later then read
    /// every file that matches. Earlier versions read the file with exactly this name.
    pub is_pattern: bool,
}

/// The exact words of AuthorizedKeysFile for a connection. `sshd -T` prints them on one line without quotes, so a
/// blank in a path looks like a blank between two paths. If a line of the configuration contains such a path, the
/// words are taken from the line that matches the output.
///
/// # Errors
/// `AUTHORIZED_KEYS_UNSUPPORTED`: the agent cannot determine which line that is.
pub fn authorized_keys_file_arguments(
    effective: &EffectiveConfig,
    reading: &ParsedConfig,
    connection: &Connection,
    groups: &[String],
) -> Result<Vec<String>, Refusal> {
    resolve_keyword_arguments("AuthorizedKeysFile", effective, reading, connection, Some(groups)).ok_or_else(|| {
        let said = sanitize_text(effective.value("authorizedkeysfile"));
        authorized_keys_unsupported(&format!(
            "sshd prints AuthorizedKeysFile as `{said}`, and which line of its configuration says so cannot be told"
        ))
    })
}

/// The exact words of a keyword that `sshd -T` prints on one line. `None` if the agent cannot determine them.
pub fn resolve_keyword_arguments(
    keyword: &str,
    effective: &EffectiveConfig,
    reading: &ParsedConfig,
    connection: &Connection,
    groups: Option<&[String]>,
) -> Option<Vec<String>> {
    let printed = effective.value(&keyword.to_ascii_lowercase());
    let split = || Some(printed.split_ascii_whitespace().map(str::to_owned).collect());
    let is_it = |name: &str| match Keyword::lookup(keyword) {
        Some(known) => known.is_named(name),
        None => name.eq_ignore_ascii_case(keyword),
    };
    let has_blank =
        |words: &&[String]| words.iter().any(|word| word.contains(|c: char| c.is_ascii_whitespace()));
    let says_so = |words: &&[String]| words.join(" ").trim() == printed;
    let said = reading.applicable_settings(keyword, connection, groups);
    let lines =
        reading.directives().iter().filter(|line| is_it(&line.keyword)).map(|line| line.arguments.as_slice());
    let all: Vec<&[String]> = lines.chain(said.iter().map(|saying| saying.arguments.as_slice())).collect();
    if !all.iter().any(has_blank) {
        return split();
    }
    let decides = said.first().filter(|first| first.certain).map(|first| first.arguments.as_slice());
    let mut matching: Vec<&[String]> = all.into_iter().filter(says_so).collect();
    matching.sort_unstable();
    matching.dedup();
    match matching.as_slice() {
        [words] => Some(words.to_vec()),
        // The output differs from the text of the configuration, as with `~`, or no line sets the keyword.
        [] if said.is_empty() || decides.is_some_and(|words| !has_blank(&words)) => split(),
        [] => None,
        _ => decides.filter(says_so).map(<[String]>::to_vec),
    }
}

/// The paths that sshd reads for a user, in its order.
///
/// # Errors
/// `AUTHORIZED_KEYS_UNSUPPORTED`: sshd rejects one of them, or the agent cannot determine the words.
pub fn resolve_key_paths(
    effective: &EffectiveConfig,
    reading: &ParsedConfig,
    connection: &Connection,
    account: &Account,
) -> Result<Vec<KeyPath>, Refusal> {
    let words = authorized_keys_file_arguments(effective, reading, connection, &account.groups)?;
    let may_be_foreign = account.uid == 0
        || !effective.is_no("strictmodes")
        || is_set_in_match_user_block(reading, connection, &account.groups);
    words
        .iter()
        .filter(|word| !word.eq_ignore_ascii_case("none"))
        .map(|word| expand_tokens(word, account, may_be_foreign))
        .collect()
}

/// The file that gets the agent's block: the first path that belongs to the user alone.
///
/// # Errors
/// `AUTHORIZED_KEYS_UNSUPPORTED`: there is no such path, or it is a pattern.
pub fn resolve_authorized_keys_path(
    effective: &EffectiveConfig,
    reading: &ParsedConfig,
    connection: &Connection,
    account: &Account,
) -> Result<PathBuf, Refusal> {
    let paths = resolve_key_paths(effective, reading, connection, account)?;
    if let Some(path) = paths.iter().find(|path| path.is_users_own && !path.is_pattern) {
        return Ok(path.path.clone());
    }
    let said = sanitize_text(effective.value("authorizedkeysfile"));
    let name = &account.name;
    Err(authorized_keys_unsupported(&match paths.iter().find(|path| path.is_users_own) {
        Some(pattern) => format!(
            "AuthorizedKeysFile `{said}` names {} for {name}, a pattern of several files",
            pattern.path.display()
        ),
        None => format!("AuthorizedKeysFile `{said}` names no file of {name}'s own"),
    }))
}

fn authorized_keys_unsupported(why: &str) -> Refusal {
    let remedy = "set `AuthorizedKeysFile .ssh/authorized_keys` in sshd's configuration";
    Refusal::new(Reason::AuthorizedKeysUnsupported, format!("{why}; {remedy}"))
}

/// Whether the line that decides is in a `Match User` block. Its path then does not apply to every user.
fn is_set_in_match_user_block(reading: &ParsedConfig, connection: &Connection, groups: &[String]) -> bool {
    let decides = reading.resolve_value("AuthorizedKeysFile", connection, Some(groups)).by;
    let decides = |file: &Path, line: usize| decides.file() == Some(file) && decides.line() == Some(line);
    reading.directives().iter().any(|directive| {
        let Scope::Match { criteria, .. } = &directive.scope else { return false };
        let names_users = criteria.iter().any(|word| {
            let word = word.split('=').next().unwrap_or_default();
            word.eq_ignore_ascii_case("user")
        });
        names_users && decides(&directive.file, directive.line)
    })
}

/// Replaces the tokens of one path: sshd_config(5) "TOKENS". `in_home` says whether a path without tokens that is in
/// the user's home may count as the user's own.
fn expand_tokens(template: &str, account: &Account, in_home: bool) -> Result<KeyPath, Refusal> {
    // The agent read the output of `sshd -T` as text. Bytes that are not UTF-8 are lost.
    if template.contains(char::REPLACEMENT_CHARACTER) {
        return Err(authorized_keys_unsupported(&format!(
            "AuthorizedKeysFile `{template}` holds bytes that are not UTF-8"
        )));
    }
    // If the home is `/`, it does not distinguish users when it is inside a path.
    let has_home = account.home.parent().is_some();
    let mut text = OsString::new();
    let mut names_user = false;
    let mut characters = template.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character.encode_utf8(&mut [0; 4]));
            continue;
        }
        match characters.next() {
            Some('%') => text.push("%"),
            Some('h') => {
                names_user |= has_home || text.is_empty();
                text.push(&account.home);
            }
            Some('u') => {
                names_user = true;
                text.push(&account.name);
            }
            Some('U') => {
                names_user = true;
                text.push(account.uid.to_string());
            }
            _ => {
                let why = format!(
                    "AuthorizedKeysFile `{}` has a token that sshd does not know",
                    sanitize_text(template)
                );
                return Err(authorized_keys_unsupported(&why));
            }
        }
    }
    let is_relative = Path::new(&text).is_relative();
    let path = account.home.join(&text);
    let climbs = path.components().any(|component| component == Component::ParentDir);
    let is_users_own = names_user || is_relative || in_home && has_home && path.starts_with(&account.home);
    Ok(KeyPath {
        is_users_own: is_users_own && !climbs && path.is_absolute(),
        is_pattern: has_wildcard(&path),
        path,
    })
}

#[cfg(test)]
#[path = "key_paths_tests.rs"]
mod tests;
