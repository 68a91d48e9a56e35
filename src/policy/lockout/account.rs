//! Rules for checks of the account that happen after sshd accepted the key: the shell, the expiry, a forced password
//! change, nologin(5) and PAM.

use std::path::Path;

use super::{GuardFinding, GuardInputs, Rule, RuleResult};
use crate::policy::foreign::sanitize_text;
use crate::policy::observation::{Shadow, ShadowEntry};
use crate::policy::outcome::{Warning, WarningReason};

const PASSWD_FILE: &str = "/etc/passwd";
const SHADOW_FILE: &str = "/etc/shadow";

/// Shells that end at once, or that allow no work.
const NOLOGIN_SHELLS: [&str; 7] = ["nologin", "false", "true", "sync", "halt", "shutdown", "git-shell"];

/// Refuses a shell that ends at once. sshd itself checks that the shell exists and can be executed.
pub(super) fn check_shell(facts: &GuardInputs<'_>) -> RuleResult {
    let account = facts.account;
    if !is_nologin_shell(&account.shell) {
        return Ok(None);
    }
    let cause = format!("{}'s shell {} lets nobody in", account.name, account.shell.display());
    Err(account_finding(Rule::Shell, PASSWD_FILE, &cause, &format!("usermod -s /bin/sh {}", account.name)))
}

/// Returns true if a shell allows no login although it can be executed.
pub(crate) fn is_nologin_shell(shell: &Path) -> bool {
    shell.file_name().is_some_and(|name| NOLOGIN_SHELLS.iter().any(|closed| name == *closed))
}

/// Refuses an expired account if pam_unix checks the expiry, which happens after the key. Without PAM, sshd checks the
/// expiry before the key.
pub(super) fn check_account_expiry(facts: &GuardInputs<'_>) -> RuleResult {
    let (name, today) = (&facts.account.name, facts.login.today);
    let entry = find_shadow_entry(facts).filter(|_| uses_pam(facts));
    let Some(expires) = entry.and_then(|entry| entry.expires).filter(|expires| today >= *expires) else {
        return Ok(None);
    };
    let cause = format!("the account {name} expired on day {expires} of shadow(5)'s count, today is {today}");
    Err(account_finding(Rule::ExpiredAccount, SHADOW_FILE, &cause, &format!("chage -E -1 {name}")))
}

/// Refuses an account whose passwd(5) entry refers to a shadow(5) entry that does not exist, because pam_unix refuses
/// it. Also refuses if the shadow(5) entry could not be read, because it may say that the account has expired.
pub(super) fn check_shadow_entry(facts: &GuardInputs<'_>) -> RuleResult {
    if !uses_pam(facts) {
        return Ok(None);
    }
    let name = &facts.account.name;
    match &facts.login.shadow {
        Shadow::Entry(_) => return Ok(None),
        Shadow::NoEntry => {}
        Shadow::Unreadable(why) => {
            let cause = format!("whether the account {name} is expired or locked cannot be told: {why}");
            let remedy = format!("see what `getent shadow {name}` says");
            return Err(account_finding(Rule::ShadowEntry, SHADOW_FILE, &cause, &remedy));
        }
    }
    let cause =
        format!("passwd(5) refers to an entry of {name} that does not exist: PAM lets nobody in without it");
    Err(account_finding(Rule::ShadowEntry, SHADOW_FILE, &cause, "run `pwconv`, which makes it"))
}

/// Refuses an account whose password must be changed first. With a terminal, PAM asks for the old password. Without a
/// terminal, PAM refuses.
pub(super) fn check_forced_password_change(facts: &GuardInputs<'_>) -> RuleResult {
    let (name, today) = (&facts.account.name, facts.login.today);
    let Some(entry) = find_shadow_entry(facts).filter(|_| uses_pam(facts)) else { return Ok(None) };
    let Some(last_change) = entry.last_change else { return Ok(None) };
    let age = today - last_change;
    let is_old = entry.maximum.is_some_and(|maximum| maximum >= 0 && last_change <= today && age > maximum);
    if last_change != 0 && !is_old {
        return Ok(None);
    }
    let cause = format!("the password of {name} must be changed before anybody gets in, also with a key");
    let remedy = format!("chage -d {today} {name}, and chage -M -1 {name} where passwords shall not age");
    Err(account_finding(Rule::ForcedPasswordChange, SHADOW_FILE, &cause, &remedy))
}

/// Refuses if nologin(5) keeps out every user except root.
pub(super) fn check_nologin_file(facts: &GuardInputs<'_>) -> RuleResult {
    let Some(file) = facts.login.blocking_nologin_file(facts.account, facts.effective) else {
        return Ok(None);
    };
    let cause = format!("{} keeps everyone out but root", file.display());
    Err(account_finding(Rule::Nologin, &file.to_string_lossy(), &cause, &format!("rm {}", file.display())))
}

/// Refuses if a PAM rule refuses the user. Warns with PAM_NOT_EVALUATED if PAM rules that the agent does not evaluate
/// may still refuse.
pub(super) fn check_pam(facts: &GuardInputs<'_>) -> RuleResult {
    let [first, ..] = facts.login.pam.as_slice() else { return Ok(None) };
    if !uses_pam(facts) {
        return Ok(None);
    }
    let name = &facts.account.name;
    if let Some(rule) = facts.login.pam.iter().find(|rule| rule.refuses) {
        let place = format!("{} line {}", rule.file.display(), rule.line);
        let cause = format!("PAM keeps {name} out, also with a key, by {}", rule.module);
        let message =
            format!("{}: {cause} ({place}); correct PAM's service, or set `UsePAM no`", Rule::Pam.name());
        return Err(GuardFinding {
            name: Rule::Pam.name(),
            message,
            file: Some(rule.file.clone()),
            line: Some(rule.line),
        });
    }
    let mut modules: Vec<&str> = facts.login.pam.iter().map(|rule| rule.module.as_str()).collect();
    modules.dedup();
    let modules = sanitize_text(&modules.join(", "));
    let message = format!("PAM may refuse {name} by rules that are not evaluated here: {modules}");
    Ok(Some(
        Warning::new(WarningReason::PamNotEvaluated, message).with_location(&first.file, Some(first.line)),
    ))
}

fn find_shadow_entry<'f>(facts: &GuardInputs<'f>) -> Option<&'f ShadowEntry> {
    match &facts.login.shadow {
        Shadow::Entry(entry) => Some(entry),
        Shadow::Unreadable(_) | Shadow::NoEntry => None,
    }
}

fn uses_pam(facts: &GuardInputs<'_>) -> bool {
    facts.effective.is_yes("usepam")
}

fn account_finding(rule: Rule, file: &str, cause: &str, remedy: &str) -> GuardFinding {
    GuardFinding {
        name: rule.name(),
        message: format!("{}: {cause} ({file}); {remedy}", rule.name()),
        file: Some(file.into()),
        line: None,
    }
}
