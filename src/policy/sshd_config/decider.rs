//! Finds the line, or the command-line option, that decides what sshd does (KP-6.7).

use std::path::{Path, PathBuf};

use super::criteria::matches_connection;
use super::keyword::{Keyword, Multiplicity, canonical_spelling, is_same_option};
use super::reader::{Directive, Scope, read_directives};
use super::{CHALLENGE_RESPONSE, KBD_INTERACTIVE, options};
use crate::policy::foreign::{sanitize_path, sanitize_text};
use crate::policy::observation::{ConfigTree, Connection, Sshd};
use crate::policy::outcome::Warning;

/// The source of a keyword's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigSource {
    /// An option of sshd's command line: the text after `-o`.
    CommandLine(String),
    /// A line of a file.
    Line {
        /// The file.
        file: PathBuf,
        /// The line in it, from 1.
        line: usize,
        /// Whether the line is in a `Match` block, which overrides every global value.
        in_match: bool,
        /// The keyword and its arguments.
        text: String,
    },
    /// Nothing sets the keyword, so sshd's own default holds.
    Default,
}

impl ConfigSource {
    /// Describes the place for a person, in words that fit after "by" or before "decides".
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

    /// Adds this file and line to the warning. An option or the default changes nothing.
    pub fn add_place(&self, warning: Warning) -> Warning {
        match self {
            Self::Line { file, line, .. } => warning.with_location(file, Some(*line)),
            Self::CommandLine(_) | Self::Default => warning,
        }
    }

    /// Returns the file, if the source is a line.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Line { file, .. } => Some(file),
            Self::CommandLine(_) | Self::Default => None,
        }
    }

    /// Returns the line number in that file, if the source is a line.
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

/// How many options this release of sshd has for keyboard-interactive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KbdNames {
    /// Since OpenSSH 8.7, `ChallengeResponseAuthentication` is another name of the same option.
    One,
    /// Before OpenSSH 8.7 there were two options. The older one was `yes` by default, was not allowed in `Match`, and
    /// turned the method on.
    Two,
}

/// A value and its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedValue {
    /// The source of the value.
    pub by: ConfigSource,
    /// The arguments, or `None` if nothing sets the keyword.
    pub value: Option<Vec<String>>,
}

/// One line or option that may set a keyword for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplicableSetting {
    /// The line or option.
    pub by: ConfigSource,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// False if it is unknown whether the `Match` of this line picks the connection.
    pub certain: bool,
}

/// The complete configuration that sshd reads: the command line first, then the files.
#[derive(Debug, Clone)]
pub struct ParsedConfig {
    directives: Vec<Directive>,
    options: Vec<options::CommandLineSetting>,
    names: KbdNames,
}

impl ParsedConfig {
    /// Parses the files of `tree` and the listener's `options`.
    pub fn new(tree: &ConfigTree, options: &[String], names: KbdNames) -> Self {
        Self {
            directives: read_directives(tree),
            options: options::parse_command_line_settings(options),
            names,
        }
    }

    /// Parses the configuration of an sshd that the agent observed.
    pub fn from_sshd(sshd: &Sshd) -> Self {
        let has_two = sshd.answers.first().is_some_and(|first| first.effective.has_challenge_response());
        Self::new(&sshd.config, &sshd.options, if has_two { KbdNames::Two } else { KbdNames::One })
    }

    /// Returns every directive, in sshd's reading order.
    pub fn directives(&self) -> &[Directive] {
        &self.directives
    }

    /// Returns true if an option of the command line limits users to some source addresses.
    pub fn has_source_limit_option(&self) -> bool {
        self.options.iter().any(|setting| {
            ["allowusers", "denyusers"].contains(&setting.keyword.to_ascii_lowercase().as_str())
                && setting.arguments.iter().any(|argument| argument.contains('@'))
        })
    }

    /// Returns the source that decides `keyword` for this connection: sshd_config(5). The keyword is accepted in any
    /// case and under any of its names. The order is:
    ///
    /// 1. A line of a `Match` block that picks the connection.
    /// 2. The first option of the command line.
    /// 3. The first line outside every `Match` except `Match all`.
    /// 4. sshd's default.
    ///
    /// If every line of a keyword counts, the result is the first of them.
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

    /// Returns the most likely source of the value `observed` that sshd printed. This is the deciding source, unless a
    /// `Match` block that may pick the connection sets exactly that value.
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

    /// Returns every line and option that may set `keyword` for this connection, in the order in which they count.
    pub fn applicable_settings(
        &self,
        keyword: &str,
        connection: &Connection,
        groups: Option<&[String]>,
    ) -> Vec<ApplicableSetting> {
        // If sshd refuses a keyword inside a `Match`, it treats a line in `Match all` like a global line.
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

    /// Returns the options, then the lines that hold for every connection.
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

    /// Returns the settings of the older name, for sshd before OpenSSH 8.7. Returns `None` if the older name is off
    /// and the other name has a setting, because then the other name decides.
    fn challenge_response_settings(&self) -> Option<Vec<ApplicableSetting>> {
        let said = self.global_settings(CHALLENGE_RESPONSE);
        let is_off = said.first().is_some_and(|first| is_same_value(&first.arguments.join(" "), "no"));
        (!is_off || self.global_settings(KBD_INTERACTIVE).is_empty()).then_some(said)
    }

    /// Returns true if this sshd accepts `name` as a name of `keyword`. While sshd had two options, the third name,
    /// `SkeyAuthentication`, belonged to neither.
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

/// Returns true if sshd treats both values as equal. This covers yes, no and lists.
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
