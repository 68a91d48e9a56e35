//! What a login is good for: a session, with the user's own command, in the guest's own tree.

use super::{Facts, Judged, Rule};
use crate::policy::foreign::foreign;

/// A command instead of the shell: what it lets in to is not known.
pub(super) fn force_command(facts: &Facts<'_>) -> Judged {
    instead_of(facts, Rule::ForceCommand, "forcecommand", "runs instead of the shell")
}

/// Another root directory, where a shell may not even exist.
pub(super) fn chroot_directory(facts: &Facts<'_>) -> Judged {
    instead_of(facts, Rule::ChrootDirectory, "chrootdirectory", "is all that the user sees")
}

fn instead_of(facts: &Facts<'_>, rule: Rule, keyword: &str, does: &str) -> Judged {
    let said = facts.effective.value(keyword);
    if said.is_empty() || said.eq_ignore_ascii_case("none") {
        return Ok(None);
    }
    let (shown, name) = (foreign(said), &facts.account.name);
    let cause = format!("`{shown}` {does}, and whether that lets {name} in is not known");
    Err(facts.by_value(rule, said, &cause, "remove that line, or restrict it to others with a Match"))
}

/// Without sessions there is no shell.
pub(super) fn max_sessions(facts: &Facts<'_>) -> Judged {
    if facts.effective.value("maxsessions") != "0" {
        return Ok(None);
    }
    Err(facts.by_value(Rule::MaxSessions, "0", "sshd opens no session", "set `MaxSessions 10` there"))
}
