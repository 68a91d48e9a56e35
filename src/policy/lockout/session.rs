//! Rules for the session after the login: a session must be possible, with the user's own shell and in the guest's own
//! root directory.

use super::{GuardInputs, Rule, RuleResult};
use crate::policy::foreign::sanitize_text;

/// Refuses a forced command in place of the shell, because the agent does not know what it allows.
pub(super) fn check_force_command(facts: &GuardInputs<'_>) -> RuleResult {
    require_keyword_unset(facts, Rule::ForceCommand, "forcecommand", "runs instead of the shell")
}

/// Refuses another root directory, because it may not even contain a shell.
pub(super) fn check_chroot_directory(facts: &GuardInputs<'_>) -> RuleResult {
    require_keyword_unset(facts, Rule::ChrootDirectory, "chrootdirectory", "is all that the user sees")
}

fn require_keyword_unset(facts: &GuardInputs<'_>, rule: Rule, keyword: &str, does: &str) -> RuleResult {
    let configured = facts.effective.value(keyword);
    if configured.is_empty() || configured.eq_ignore_ascii_case("none") {
        return Ok(None);
    }
    let (shown, name) = (sanitize_text(configured), &facts.account.name);
    let cause = format!("`{shown}` {does}, and whether that lets {name} in is not known");
    Err(facts.finding_for_value(
        rule,
        configured,
        &cause,
        "remove that line, or restrict it to others with a Match",
    ))
}

/// Refuses if sshd allows no sessions, because then there is no shell.
pub(super) fn check_max_sessions(facts: &GuardInputs<'_>) -> RuleResult {
    if facts.effective.value("maxsessions") != "0" {
        return Ok(None);
    }
    Err(facts.finding_for_value(
        Rule::MaxSessions,
        "0",
        "sshd opens no session",
        "set `MaxSessions 10` there",
    ))
}
