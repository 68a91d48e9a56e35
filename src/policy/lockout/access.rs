//! Who may come at all: DenyUsers, AllowUsers, DenyGroups and AllowGroups as sshd's `allowed_user` has them.

use super::{Facts, Finding, Judged, Rule, finding};
use crate::policy::outcome::{Warning, WarningReason};
use crate::policy::pattern::{BadMask, from_source, matches, user};
use crate::policy::sshd_config::Decider;

pub use crate::policy::witness::may_come;

/// Any pattern that matches name and source refuses.
pub(super) fn deny_users(facts: &Facts<'_>) -> Judged {
    let (account, client) = (facts.account, facts.connection);
    for pattern in facts.effective.values("denyusers") {
        match user(&account.name, &client.host, client.addr, pattern) {
            Ok(false) => {}
            Ok(true) => {
                let cause = format!("the pattern `{pattern}` matches {}", account.name);
                return Err(facts.by_pattern(Rule::DenyUsers, pattern, &cause, "take it out of the list"));
            }
            Err(BadMask) => return Err(facts.bad_mask(Rule::DenyUsers, pattern)),
        }
    }
    Ok(None)
}

/// Where there is a list, a pattern has to match. One that matches only with its host part lets in from
/// some sources: SOURCE_LIMITED (contract 6).
pub(super) fn allow_users(facts: &Facts<'_>) -> Judged {
    let (account, client) = (facts.account, facts.connection);
    let patterns = facts.effective.values("allowusers");
    let mut limited = None;
    for pattern in patterns {
        let (name, source) = pattern.split_once('@').unwrap_or((pattern, "*"));
        if !matches(&account.name, name) {
            continue;
        }
        if from_source(&client.host, client.addr, source) == Err(BadMask) {
            return Err(facts.bad_mask(Rule::AllowUsers, pattern));
        }
        let entries = || source.split(',');
        if entries().any(|entry| entry == "*") && !entries().any(|entry| entry.starts_with('!')) {
            return Ok(None);
        }
        if entries().any(|entry| !entry.starts_with('!')) {
            limited.get_or_insert(pattern);
        }
    }
    match limited {
        None if patterns.is_empty() => Ok(None),
        None => {
            let cause = format!("no pattern of the list matches {}", account.name);
            Err(facts.by_list(Rule::AllowUsers, &cause, &format!("add {} to it", account.name)))
        }
        Some(pattern) => {
            let decides = facts.says(Rule::AllowUsers, |said| said == pattern);
            let message = format!(
                "AllowUsers lets {} in from some addresses only (`{pattern}`), by {}",
                account.name,
                decides.describe("AllowUsers")
            );
            Ok(Some(decides.place(Warning::new(WarningReason::SourceLimited, message))))
        }
    }
}

/// A pattern that matches any of the user's groups refuses.
pub(super) fn deny_groups(facts: &Facts<'_>) -> Judged {
    for pattern in facts.effective.values("denygroups") {
        if let Some(group) = facts.account.groups.iter().find(|group| matches(group, pattern)) {
            let cause = format!("the pattern `{pattern}` matches {}'s group {group}", facts.account.name);
            let remedy = format!("take it out of the list, or {} out of the group", facts.account.name);
            return Err(facts.by_pattern(Rule::DenyGroups, pattern, &cause, &remedy));
        }
    }
    Ok(None)
}

/// Where there is a list, a pattern has to match one of the user's groups.
pub(super) fn allow_groups(facts: &Facts<'_>) -> Judged {
    let patterns = facts.effective.values("allowgroups");
    let is_in = |pattern: &String| facts.account.groups.iter().any(|group| matches(group, pattern));
    if patterns.is_empty() || patterns.iter().any(is_in) {
        return Ok(None);
    }
    let name = &facts.account.name;
    let cause = format!("no pattern of the list matches a group of {name}");
    Err(facts.by_list(
        Rule::AllowGroups,
        &cause,
        &format!("add one of {name}'s groups to it, or {name} to one"),
    ))
}

impl Facts<'_> {
    fn by_pattern(&self, rule: Rule, pattern: &str, cause: &str, remedy: &str) -> Finding {
        finding(rule, &self.says(rule, |said| said == pattern), cause, remedy)
    }

    fn by_list(&self, rule: Rule, cause: &str, remedy: &str) -> Finding {
        finding(rule, &self.says(rule, |_| true), cause, remedy)
    }

    fn bad_mask(&self, rule: Rule, pattern: &str) -> Finding {
        let cause = format!("sshd gives up on the pattern `{pattern}`, whose mask does not fit its address");
        self.by_pattern(rule, pattern, &cause, "correct it")
    }

    /// The first line or option on the list that says something for this connection.
    fn says(&self, rule: Rule, something: impl Fn(&str) -> bool) -> Decider {
        let said = self.reading.sayings(rule.name(), self.connection, Some(&self.account.groups));
        let mut said = said.into_iter();
        let found = said.find(|saying| saying.arguments.iter().any(|argument| something(argument)));
        found.map_or(Decider::Default, |saying| saying.by)
    }
}
