//! Which line, or which option of the command line, decides what sshd does (KP-6.7).

use std::path::{Path, PathBuf};

use super::criteria::applies;
use super::keyword::{Counts, Keyword, is_same_option, spelling};
use super::reader::{Directive, Scope, directives};
use super::{CHALLENGE_RESPONSE, KBD_INTERACTIVE, options};
use crate::policy::foreign::{foreign, foreign_path};
use crate::policy::observation::{ConfigTree, Connection, Sshd};
use crate::policy::outcome::Warning;

/// What decides the value of a keyword.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decider {
    /// An option of sshd's command line, as it is written there after `-o`.
    Option(String),
    /// A line of a file.
    Line {
        /// The file.
        file: PathBuf,
        /// The line in it, from 1.
        line: usize,
        /// Whether it stands in a `Match` block, which beats every global value.
        in_match: bool,
        /// The keyword and its arguments.
        text: String,
    },
    /// Nothing sets it: sshd's own default holds.
    Default,
}

impl Decider {
    /// The place for a person, in words that fit after "by" or before "decides".
    pub fn describe(&self, keyword: &str) -> String {
        match self {
            Self::Option(text) => format!("the option `-o {}` of sshd's command line", foreign(text)),
            Self::Line { file, line, in_match, text } => {
                let block = if *in_match { ", in a Match block" } else { "" };
                format!("{} line {line} (`{}`{block})", foreign_path(file), foreign(text))
            }
            Self::Default => format!("sshd's default of {}, which no file sets", spelling(keyword)),
        }
    }

    /// The warning, about this place where it is a line.
    pub fn place(&self, warning: Warning) -> Warning {
        match self {
            Self::Line { file, line, .. } => warning.at(file, Some(*line)),
            Self::Option(_) | Self::Default => warning,
        }
    }

    /// The file, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Line { file, .. } => Some(file),
            Self::Option(_) | Self::Default => None,
        }
    }

    /// The line in that file.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::Line { line, .. } => Some(*line),
            Self::Option(_) | Self::Default => None,
        }
    }
}

impl From<&Directive> for Decider {
    fn from(directive: &Directive) -> Self {
        Self::Line {
            file: directive.file.clone(),
            line: directive.line,
            in_match: !directive.is_global(),
            text: format!("{} {}", spelling(&directive.keyword), directive.value()),
        }
    }
}

/// How this sshd names keyboard-interactive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Since OpenSSH 8.7 `ChallengeResponseAuthentication` is another name of the one option.
    One,
    /// Before it they were two, and the older one, `yes` by default and not for `Match`, turned the method on.
    Two,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What sets it.
    pub by: Decider,
    /// The words it is set to; `None` where nothing sets it.
    pub value: Option<Vec<String>>,
}

/// One line or option that has a say on a keyword for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saying {
    /// Which one.
    pub by: Decider,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// False where it depends on what is not known here whether its `Match` picks the connection.
    pub certain: bool,
}

/// All that sshd reads, its command line first.
#[derive(Debug, Clone)]
pub struct Reading {
    directives: Vec<Directive>,
    options: Vec<options::Setting>,
    names: Names,
}

impl Reading {
    /// What the files of `tree` and the listener's `options` say.
    pub fn new(tree: &ConfigTree, options: &[String], names: Names) -> Self {
        Self { directives: directives(tree), options: options::settings(options), names }
    }

    /// The same of an sshd that was observed.
    pub fn of(sshd: &Sshd) -> Self {
        let has_two = sshd.answers.first().is_some_and(|first| first.effective.has_challenge_response());
        Self::new(&sshd.config, &sshd.options, if has_two { Names::Two } else { Names::One })
    }

    /// Every directive, in sshd's reading order.
    pub fn directives(&self) -> &[Directive] {
        &self.directives
    }

    /// Whether an option of the command line limits users to sources.
    pub fn option_names_source(&self) -> bool {
        self.options.iter().any(|setting| {
            ["allowusers", "denyusers"].contains(&setting.keyword.to_ascii_lowercase().as_str())
                && setting.arguments.iter().any(|argument| argument.contains('@'))
        })
    }

    /// What decides `keyword` (in any case, under any of its names) for this connection: sshd_config(5). A line of
    /// a `Match` block that picks it; else the first option of the command line; else the first line outside every
    /// `Match` but `Match all`; else the default. For a keyword whose every line counts, the first of them.
    pub fn decision(&self, keyword: &str, connection: &Connection, groups: Option<&[String]>) -> Decision {
        let said = self.sayings(keyword, connection, groups);
        let mut certain = said.iter().filter(|saying| saying.certain).peekable();
        let Some(first) = certain.peek() else { return Decision { by: Decider::Default, value: None } };
        let by = first.by.clone();
        let value = match Keyword::of(keyword).map(|keyword| keyword.counts) {
            Some(Counts::Every) => certain.flat_map(|saying| saying.arguments.clone()).collect(),
            Some(Counts::First) | None => first.arguments.clone(),
        };
        Decision { by, value: Some(value) }
    }

    /// What most likely made sshd say `observed`: what decides, unless a `Match` block that may pick the
    /// connection says just that.
    pub fn explain(
        &self,
        keyword: &str,
        observed: &str,
        connection: &Connection,
        groups: Option<&[String]>,
    ) -> Decider {
        let says_so = |arguments: &[String]| is_same_value(&arguments.join(" "), observed);
        let decision = self.decision(keyword, connection, groups);
        if decision.value.as_deref().is_some_and(says_so) {
            return decision.by;
        }
        let said = self.sayings(keyword, connection, groups);
        let perhaps = said.into_iter().find(|saying| !saying.certain && says_so(&saying.arguments));
        perhaps.map_or(decision.by, |saying| saying.by)
    }

    /// Every line and option that has a say on `keyword` for this connection, in the order in which they count.
    pub fn sayings(&self, keyword: &str, connection: &Connection, groups: Option<&[String]>) -> Vec<Saying> {
        // A keyword that sshd refuses inside a `Match` counts in `Match all` as outside of it.
        if Keyword::of(keyword).is_some_and(|keyword| !keyword.in_match) {
            return self.everywhere(keyword);
        }
        let in_match = self.in_match(keyword, connection, groups);
        if in_match.iter().any(|saying| saying.certain) {
            return in_match;
        }
        let two = self.names == Names::Two && is_same_option(keyword, KBD_INTERACTIVE);
        let challenge = if two { self.by_the_older_name() } else { None };
        in_match.into_iter().chain(challenge.unwrap_or_else(|| self.everywhere(keyword))).collect()
    }

    fn in_match(&self, keyword: &str, connection: &Connection, groups: Option<&[String]>) -> Vec<Saying> {
        let of = |directive: &Directive| {
            let Scope::Match { criteria, .. } = &directive.scope else { return None };
            let picks = applies(criteria, connection, groups);
            (self.names_it(&directive.keyword, keyword) && picks != Some(false)).then(|| Saying {
                by: Decider::from(directive),
                arguments: directive.arguments.clone(),
                certain: picks == Some(true),
            })
        };
        self.directives.iter().filter_map(of).collect()
    }

    /// Options, then the lines that hold for everyone.
    fn everywhere(&self, keyword: &str) -> Vec<Saying> {
        let options = self.options.iter().filter(|setting| self.names_it(&setting.keyword, keyword));
        let options = options.map(|setting| (Decider::Option(setting.text.clone()), &setting.arguments));
        let lines = self.directives.iter().filter(|d| d.is_for_all() && self.names_it(&d.keyword, keyword));
        let lines = lines.map(|directive| (Decider::from(directive), &directive.arguments));
        let all = options.chain(lines);
        all.map(|(by, arguments)| Saying { by, arguments: arguments.clone(), certain: true }).collect()
    }

    /// Before OpenSSH 8.7: what the older name says, where that turns the method on, or off with nobody to turn it on
    /// by the other name.
    fn by_the_older_name(&self) -> Option<Vec<Saying>> {
        let said = self.everywhere(CHALLENGE_RESPONSE);
        let is_off = said.first().is_some_and(|first| is_same_value(&first.arguments.join(" "), "no"));
        (!is_off || self.everywhere(KBD_INTERACTIVE).is_empty()).then_some(said)
    }

    /// Whether a name in the text is a name of this keyword to this sshd. While there were two, the third,
    /// `SkeyAuthentication`, stood for nothing.
    fn names_it(&self, name: &str, keyword: &str) -> bool {
        let is_apart = |name: &str| {
            self.names == Names::Two
                && is_same_option(name, KBD_INTERACTIVE)
                && !name.eq_ignore_ascii_case(KBD_INTERACTIVE)
        };
        match is_apart(name) || is_apart(keyword) {
            true => name.eq_ignore_ascii_case(keyword),
            false => is_same_option(name, keyword),
        }
    }
}

/// Whether two values are the same to sshd, as far as yes, no and lists go.
fn is_same_value(one: &str, other: &str) -> bool {
    let plain = |value: &str| {
        let value = value.to_ascii_lowercase();
        if value == "without-password" { "prohibit-password".to_owned() } else { value }
    };
    plain(one) == plain(other)
}

#[cfg(test)]
#[path = "decider_tests.rs"]
mod tests;
