//! Which line, or which option of the command line, decides what sshd does (KP-6.7).

use std::path::{Path, PathBuf};

use super::criteria::matches_connection;
use super::keyword::{Keyword, Multiplicity, canonical_spelling, is_same_option};
use super::reader::{Directive, Scope, read_directives};
use super::{CHALLENGE_RESPONSE, KBD_INTERACTIVE, options};
use crate::policy::foreign::{sanitize_path, sanitize_text};
use crate::policy::observation::{ConfigTree, Connection, Sshd};
use crate::policy::outcome::Warning;

/// What decides the value of a keyword.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigSource {
    /// An option of sshd's command line, as it is written there after `-o`.
    CommandLine(String),
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

impl ConfigSource {
    /// The place for a person, in words that fit after "by" or before "decides".
    pub fn describe(&self, keyword: &str) -> String {
        match self {
            Self::CommandLine(text) => {
                format!("the option `-o {}` of sshd's command line", sanitize_text(text))
            }
            Self::Line { file, line, in_match, text } => {
                let block = if *in_match { ", in a Match block" } else { "" };
                format!("{} line {line} (`{}`{block})", sanitize_path(file), sanitize_text(text))
            }
            Self::Default => format!("sshd's default of {}, which no file sets", canonical_spelling(keyword)),
        }
    }

    /// The warning, about this place where it is a line.
    pub fn add_place(&self, warning: Warning) -> Warning {
        match self {
            Self::Line { file, line, .. } => warning.with_location(file, Some(*line)),
            Self::CommandLine(_) | Self::Default => warning,
        }
    }

    /// The file, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Line { file, .. } => Some(file),
            Self::CommandLine(_) | Self::Default => None,
        }
    }

    /// The line in that file.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::Line { line, .. } => Some(*line),
            Self::CommandLine(_) | Self::Default => None,
        }
    }
}

impl From<&Directive> for ConfigSource {
    fn from(directive: &Directive) -> Self {
        Self::Line {
            file: directive.file.clone(),
            line: directive.line,
            in_match: !directive.is_global(),
            text: format!("{} {}", canonical_spelling(&directive.keyword), directive.value()),
        }
    }
}

/// How this sshd names keyboard-interactive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KbdNames {
    /// Since OpenSSH 8.7 `ChallengeResponseAuthentication` is another name of the one option.
    One,
    /// Before it they were two, and the older one, `yes` by default and not for `Match`, turned the method on.
    Two,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedValue {
    /// What sets it.
    pub by: ConfigSource,
    /// The words it is set to; `None` where nothing sets it.
    pub value: Option<Vec<String>>,
}

/// One line or option that has a say on a keyword for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplicableSetting {
    /// Which one.
    pub by: ConfigSource,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// False where it depends on what is not known here whether its `Match` picks the connection.
    pub certain: bool,
}

/// All that sshd reads, its command line first.
#[derive(Debug, Clone)]
pub struct ParsedConfig {
    directives: Vec<Directive>,
    options: Vec<options::CommandLineSetting>,
    names: KbdNames,
}

impl ParsedConfig {
    /// What the files of `tree` and the listener's `options` say.
    pub fn new(tree: &ConfigTree, options: &[String], names: KbdNames) -> Self {
        Self {
            directives: read_directives(tree),
            options: options::parse_command_line_settings(options),
            names,
        }
    }

    /// The same of an sshd that was observed.
    pub fn from_sshd(sshd: &Sshd) -> Self {
        let has_two = sshd.answers.first().is_some_and(|first| first.effective.has_challenge_response());
        Self::new(&sshd.config, &sshd.options, if has_two { KbdNames::Two } else { KbdNames::One })
    }

    /// Every directive, in sshd's reading order.
    pub fn directives(&self) -> &[Directive] {
        &self.directives
    }

    /// Whether an option of the command line limits users to sources.
    pub fn has_source_limit_option(&self) -> bool {
        self.options.iter().any(|setting| {
            ["allowusers", "denyusers"].contains(&setting.keyword.to_ascii_lowercase().as_str())
                && setting.arguments.iter().any(|argument| argument.contains('@'))
        })
    }

    /// What decides `keyword` (in any case, under any of its names) for this connection: sshd_config(5). A line of
    /// a `Match` block that picks it; else the first option of the command line; else the first line outside every
    /// `Match` but `Match all`; else the default. For a keyword whose every line counts, the first of them.
    pub fn resolve_value(
        &self,
        keyword: &str,
        connection: &Connection,
        groups: Option<&[String]>,
    ) -> ResolvedValue {
        let said = self.applicable_settings(keyword, connection, groups);
        let mut certain = said.iter().filter(|saying| saying.certain).peekable();
        let Some(first) = certain.peek() else {
            return ResolvedValue { by: ConfigSource::Default, value: None };
        };
        let by = first.by.clone();
        let value = match Keyword::lookup(keyword).map(|keyword| keyword.multiplicity) {
            Some(Multiplicity::Cumulative) => certain.flat_map(|saying| saying.arguments.clone()).collect(),
            Some(Multiplicity::FirstWins) | None => first.arguments.clone(),
        };
        ResolvedValue { by, value: Some(value) }
    }

    /// What most likely made sshd say `observed`: what decides, unless a `Match` block that may pick the
    /// connection says just that.
    pub fn find_value_source(
        &self,
        keyword: &str,
        observed: &str,
        connection: &Connection,
        groups: Option<&[String]>,
    ) -> ConfigSource {
        let says_so = |arguments: &[String]| is_same_value(&arguments.join(" "), observed);
        let decision = self.resolve_value(keyword, connection, groups);
        if decision.value.as_deref().is_some_and(says_so) {
            return decision.by;
        }
        let said = self.applicable_settings(keyword, connection, groups);
        let perhaps = said.into_iter().find(|saying| !saying.certain && says_so(&saying.arguments));
        perhaps.map_or(decision.by, |saying| saying.by)
    }

    /// Every line and option that has a say on `keyword` for this connection, in the order in which they count.
    pub fn applicable_settings(
        &self,
        keyword: &str,
        connection: &Connection,
        groups: Option<&[String]>,
    ) -> Vec<ApplicableSetting> {
        // A keyword that sshd refuses inside a `Match` counts in `Match all` as outside of it.
        if Keyword::lookup(keyword).is_some_and(|keyword| !keyword.allowed_in_match) {
            return self.global_settings(keyword);
        }
        let in_match = self.match_block_settings(keyword, connection, groups);
        if in_match.iter().any(|saying| saying.certain) {
            return in_match;
        }
        let two = self.names == KbdNames::Two && is_same_option(keyword, KBD_INTERACTIVE);
        let challenge = if two { self.challenge_response_settings() } else { None };
        in_match.into_iter().chain(challenge.unwrap_or_else(|| self.global_settings(keyword))).collect()
    }

    fn match_block_settings(
        &self,
        keyword: &str,
        connection: &Connection,
        groups: Option<&[String]>,
    ) -> Vec<ApplicableSetting> {
        let of = |directive: &Directive| {
            let Scope::Match { criteria, .. } = &directive.scope else { return None };
            let picks = matches_connection(criteria, connection, groups);
            (self.is_name_of(&directive.keyword, keyword) && picks != Some(false)).then(|| {
                ApplicableSetting {
                    by: ConfigSource::from(directive),
                    arguments: directive.arguments.clone(),
                    certain: picks == Some(true),
                }
            })
        };
        self.directives.iter().filter_map(of).collect()
    }

    /// Options, then the lines that hold for everyone.
    fn global_settings(&self, keyword: &str) -> Vec<ApplicableSetting> {
        let options = self.options.iter().filter(|setting| self.is_name_of(&setting.keyword, keyword));
        let options =
            options.map(|setting| (ConfigSource::CommandLine(setting.text.clone()), &setting.arguments));
        let lines = self.directives.iter().filter(|d| d.is_for_all() && self.is_name_of(&d.keyword, keyword));
        let lines = lines.map(|directive| (ConfigSource::from(directive), &directive.arguments));
        let all = options.chain(lines);
        all.map(|(by, arguments)| ApplicableSetting { by, arguments: arguments.clone(), certain: true })
            .collect()
    }

    /// Before OpenSSH 8.7: what the older name says, where that turns the method on, or off with nobody to turn it on
    /// by the other name.
    fn challenge_response_settings(&self) -> Option<Vec<ApplicableSetting>> {
        let said = self.global_settings(CHALLENGE_RESPONSE);
        let is_off = said.first().is_some_and(|first| is_same_value(&first.arguments.join(" "), "no"));
        (!is_off || self.global_settings(KBD_INTERACTIVE).is_empty()).then_some(said)
    }

    /// Whether a name in the text is a name of this keyword to this sshd. While there were two, the third,
    /// `SkeyAuthentication`, stood for nothing.
    fn is_name_of(&self, name: &str, keyword: &str) -> bool {
        let is_separate_option = |name: &str| {
            self.names == KbdNames::Two
                && is_same_option(name, KBD_INTERACTIVE)
                && !name.eq_ignore_ascii_case(KBD_INTERACTIVE)
        };
        match is_separate_option(name) || is_separate_option(keyword) {
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
