//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::prelude::*;

use crate::guest::scout;
use crate::policy::types::PasswordAuth;

/// The output of `--help`.
pub(super) const USAGE_TEXT: &str = "\
usage: keypair-agent COMMAND [--config PATH]

  run                     the daemon: receive, decide, apply, report
  apply FILE              carry out the command in FILE ('-': standard input), print its result
  plan FILE               show what apply would do, as a diff; changes nothing
  password-auth yes|no    allow or forbid SSH password login
  detach                  take the bound key pair out
  undo                    take back all that is ours: the key, the password setting, the memory
  status [--json]         what is bound and how the agent is; exit 0 when healthy
  check [--json]          whether an attach that forbids passwords would be accepted here, and why not
  check --image [--json]  what a clone of this guest would carry along

  --config PATH           the configuration (default /etc/keypair-agent/config.toml)
  --help, --version

exit: 0 done or healthy, 1 failed or unhealthy, 2 wrong usage or configuration
";

/// What the command line requests.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Invocation {
    /// `--help`.
    Help,
    /// `--version`.
    Version,
    /// A command.
    Subcommand(Arguments),
}

/// A command and the path of its configuration.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arguments {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// The command.
    pub word: Subcommand,
}

/// The source of a command's bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CommandSource {
    /// `-`.
    StandardInput,
    /// A file.
    File(PathBuf),
}

/// The commands of KP-8.1 to KP-8.8.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Subcommand {
    /// `run`.
    Run,
    /// `apply FILE`.
    Apply(CommandSource),
    /// `plan FILE`.
    Plan(CommandSource),
    /// `password-auth yes|no`.
    PasswordAuth(PasswordAuth),
    /// `detach`.
    Detach,
    /// `undo`.
    Undo,
    /// `recover`: only for the removal of the packages, so the usage text does not name it.
    Recover,
    /// `trial-helper`: only for systemd, so the usage text does not name it.
    TrialHelper,
    /// `scout`: only for this program itself.
    Scout,
    /// `status`.
    Status {
        /// `--json`.
        json: bool,
    },
    /// `check`.
    Check {
        /// `--json`.
        json: bool,
        /// `--image`.
        image: bool,
    },
}

/// Parses the arguments after the program's name.
///
/// # Errors
/// The error in the arguments, in one line.
pub(super) fn parse_arguments(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut config = None;
    let mut words: Vec<OsString> = Vec::new();
    let (mut json, mut image) = (false, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Invocation::Help),
            Short('V') | Long("version") => return Ok(Invocation::Version),
            Long("config") => config = Some(PathBuf::from(parser.value()?)),
            Long("json") => json = true,
            Long("image") => image = true,
            Value(word) => words.push(word),
            other => return Err(other.unexpected()),
        }
    }
    let mut words = words.into_iter();
    let name = words.next().ok_or("a command is needed")?.string()?;
    let mut operand = |what: &str| words.next().ok_or(lexopt::Error::from(format!("'{name}' needs {what}")));
    let source = |word: OsString| {
        if word == "-" { CommandSource::StandardInput } else { CommandSource::File(word.into()) }
    };
    let word = match name.as_str() {
        "run" => Subcommand::Run,
        "apply" => Subcommand::Apply(source(operand("a FILE, or '-' for standard input")?)),
        "plan" => Subcommand::Plan(source(operand("a FILE, or '-' for standard input")?)),
        "password-auth" => Subcommand::PasswordAuth(match operand("'yes' or 'no'")?.string()?.parse() {
            Ok(password_auth) => password_auth,
            Err(_) => return Err("'password-auth' takes 'yes' or 'no'".into()),
        }),
        "detach" => Subcommand::Detach,
        "undo" => Subcommand::Undo,
        "recover" => Subcommand::Recover,
        "trial-helper" => Subcommand::TrialHelper,
        scout::SCOUT_SUBCOMMAND => Subcommand::Scout,
        "status" => Subcommand::Status { json: std::mem::take(&mut json) },
        "check" => Subcommand::Check { json: std::mem::take(&mut json), image: std::mem::take(&mut image) },
        unknown => return Err(format!("there is no command '{unknown}'").into()),
    };
    if let Some(extra) = words.next() {
        return Err(format!("unexpected argument '{}' for '{name}'", extra.to_string_lossy()).into());
    }
    if json || image {
        return Err(
            format!("'--{}' is not an option of '{name}'", if json { "json" } else { "image" }).into()
        );
    }
    Ok(Invocation::Subcommand(Arguments { config, word }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn parse_subcommand(line: &str) -> Result<Subcommand, String> {
        match parse_arguments(line.split_whitespace().map(OsString::from)) {
            Ok(Invocation::Subcommand(arguments)) => Ok(arguments.word),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn subcommands_are_parsed() {
        assert_eq!(parse_subcommand("run"), Ok(Subcommand::Run));
        assert_eq!(parse_subcommand("apply -"), Ok(Subcommand::Apply(CommandSource::StandardInput)));
        assert_eq!(
            parse_subcommand("plan --config /c /f"),
            Ok(Subcommand::Plan(CommandSource::File("/f".into())))
        );
        assert_eq!(parse_subcommand("password-auth No"), Ok(Subcommand::PasswordAuth(PasswordAuth::No)));
        assert_eq!(parse_subcommand("status --json"), Ok(Subcommand::Status { json: true }));
        assert_eq!(
            parse_subcommand("--json check --image"),
            Ok(Subcommand::Check { json: true, image: true })
        );
    }

    #[test]
    fn wrong_usage_is_rejected() {
        for wrong in [
            "",
            "attach",
            "apply",
            "apply a b",
            "run --json",
            "status --image",
            "password-auth maybe",
            "run --foo",
        ] {
            assert!(parse_subcommand(wrong).is_err(), "{wrong}");
        }
    }
}
