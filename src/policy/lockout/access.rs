//! Who may come at all, for warnings about other accounts: DenyUsers, AllowUsers, DenyGroups and AllowGroups as sshd's
//! `allowed_user` has them.

use crate::policy::effective::Effective;
use crate::policy::observation::Connection;
use crate::policy::pattern::{matches, user};

/// Whether the four lists let this very connection come: sshd's `allowed_user`.
pub fn may_come(effective: &Effective, who: &Connection, groups: &[String]) -> bool {
    let named = |keyword| {
        let patterns = effective.words(keyword);
        let hits = patterns.iter().any(|pattern| user(&who.user, &who.host, who.addr, pattern) == Ok(true));
        (!patterns.is_empty(), hits)
    };
    let grouped = |keyword| {
        let patterns = effective.words(keyword);
        let hits = patterns.iter().any(|pattern| groups.iter().any(|group| matches(group, pattern)));
        (!patterns.is_empty(), hits)
    };
    let ((_, denied), (limited, allowed)) = (named("denyusers"), named("allowusers"));
    let ((_, group_denied), (group_limited, group_allowed)) = (grouped("denygroups"), grouped("allowgroups"));
    !denied && !group_denied && (allowed || !limited) && (group_allowed || !group_limited)
}
