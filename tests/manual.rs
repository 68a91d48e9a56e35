//! The man pages, the completions, the default configuration and the tables of the documents must match the binary.
//!
//! The tests query the binary itself. `--help` names the commands. Flags and operands are tried with a missing
//! configuration file, so the binary never performs anything. Its error for an unknown key lists the keys.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use keypair_agent::config::Config;
use keypair_agent::policy::outcome::{Reason, WarningReason};
use serde::de::DeserializeOwned;

const MISSING_CONFIG: &str = "/nonexistent/keypair-agent.toml";

/// A set of words, for example options or the values of an option.
type WordSet = BTreeSet<String>;

fn to_word_set<'a>(words: impl IntoIterator<Item = &'a str>) -> WordSet {
    words.into_iter().map(str::to_owned).collect()
}

fn repository_path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read_repository_file(path: &str) -> String {
    fs::read_to_string(repository_path(path)).unwrap()
}

/// Runs the binary and returns stdout and stderr.
fn run_agent(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_keypair-agent")).args(arguments).output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// Whether the binary accepts these arguments: then its error is about the missing configuration.
fn accepts_arguments(arguments: &[&str]) -> bool {
    run_agent(&[arguments, &["--config", MISSING_CONFIG]].concat())
        .contains("the configuration cannot be read")
}

fn is_installed(tool: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(tool).exists()));
    if !found {
        eprintln!("SKIPPED: {tool} is not installed");
    }
    found
}

/// One command as in `--help`.
struct CommandSyntax {
    name: String,
    /// `FILE` or `yes|no`.
    operand: Option<String>,
    /// Its long options except `--help` and `--version`.
    options: WordSet,
}

impl CommandSyntax {
    /// The words of the command with a valid operand.
    fn example_arguments(&self) -> Vec<&str> {
        let operand = self.operand.as_deref().map(|operand| match operand {
            "FILE" => "-",
            values => values.split('|').next().unwrap(),
        });
        std::iter::once(self.name.as_str()).chain(operand).collect()
    }
}

/// Every `--option` in a text.
fn extract_options(text: &str) -> WordSet {
    let is_part = |c: char| c.is_ascii_lowercase() || c == '-';
    let after = text.match_indices("--").map(|(at, _)| &text[at..]);
    let names = after.map(|rest| &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())]);
    names.filter(|name| name.len() > 2 && !name.starts_with("---")).map(str::to_owned).collect()
}

fn parse_help() -> Vec<CommandSyntax> {
    let help = run_agent(&["--help"]);
    let named = extract_options(&help);
    let mut forms: Vec<CommandSyntax> = Vec::new();
    for line in help.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with('-'))
    {
        let line = line.split("  ").next().unwrap();
        let mut parts = line.split(' ').filter(|part| !part.starts_with(['-', '[']));
        let Some(name) = parts.next() else { continue };
        if forms.iter().any(|form| form.name == name) {
            continue;
        }
        let mut form = CommandSyntax {
            name: name.to_owned(),
            operand: parts.next().map(str::to_owned),
            options: WordSet::new(),
        };
        assert!(accepts_arguments(&form.example_arguments()), "--help names `{name}`");
        let value = |option: &str| if option == "--config" { Some(MISSING_CONFIG) } else { None };
        let taken = named.iter().filter(|option| !["--help", "--version"].contains(&option.as_str()));
        let taken = taken.filter(|option| {
            let option = [option.as_str()].into_iter().chain(value(option));
            accepts_arguments(&form.example_arguments().into_iter().chain(option).collect::<Vec<_>>())
        });
        form.options = taken.cloned().collect();
        forms.push(form);
    }
    assert!(forms.len() >= 8);
    forms
}

/// All options of all commands, with `--help`'s own.
fn known_options(forms: &[CommandSyntax]) -> WordSet {
    let own = forms.iter().flat_map(|form| form.options.clone());
    own.chain(["--help".to_owned(), "--version".to_owned()]).collect()
}

/// The text of a man page without requests, escapes and quotes.
fn read_man_page(path: &str) -> String {
    let source = read_repository_file(path);
    let lines = source.lines().filter(|line| !line.starts_with(".\\\"")).map(|line| {
        let line = match line.strip_prefix('.').map(|line| line.split_once(' ').unwrap_or((line, ""))) {
            // These requests alternate between two fonts within one word. Only blanks inside quotes are printed.
            Some((request, rest)) if ["BR", "BI", "RB", "IR", "RI"].contains(&request) => {
                let parts = rest.split('"').enumerate();
                parts
                    .map(|(n, part)| if n % 2 == 0 { part.replace(' ', "") } else { part.to_owned() })
                    .collect()
            }
            Some((_, rest)) => rest.replace('"', ""),
            None => line.to_owned(),
        };
        line.replace("\\-", "-").replace("\\(dq", "\"")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The tags of the paragraphs of a section, and their texts.
fn parse_man_paragraphs(path: &str, section: &str) -> Vec<(String, String)> {
    let source = read_repository_file(path);
    let from = source.split(&format!("\n.SH {section}\n")).nth(1).unwrap();
    let section = from.split("\n.SH ").next().unwrap();
    let paragraphs = section.split(".TP\n").skip(1).map(|paragraph| {
        let (tag, rest) = paragraph.split_once('\n').unwrap();
        let tag = tag.split_once(' ').unwrap().1.replace('"', "").replace("\\-", "-");
        (tag, rest.replace("\\(dq", "\"").replace("\\-", "-"))
    });
    paragraphs.collect()
}

#[test]
fn command_man_page_matches_help() {
    const PAGE: &str = "packaging/man/keypair-agent.8";
    let forms = parse_help();
    let page = read_man_page(PAGE);
    assert_eq!(
        extract_options(&page),
        known_options(&forms),
        "{PAGE}: what --help names, and no other option"
    );
    let synopsis = page.split("SYNOPSIS").nth(1).unwrap().split("DESCRIPTION").next().unwrap();
    let explained = parse_man_paragraphs(PAGE, "COMMANDS");
    let names: WordSet = explained.iter().map(|(tag, _)| tag.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(names, forms.iter().map(|form| form.name.clone()).collect(), "{PAGE}: COMMANDS");
    let tags: Vec<&str> = explained.iter().map(|(tag, _)| tag.as_str()).collect();
    for CommandSyntax { name, operand, options } in &forms {
        let line = synopsis.split("keypair-agent ").find(|form| form.starts_with(name.as_str())).unwrap();
        assert_eq!(&extract_options(line), options, "{PAGE}: SYNOPSIS of {name}");
        let own: Vec<&&str> = tags.iter().filter(|tag| tag.split(' ').next() == Some(name)).collect();
        for option in options.iter().filter(|option| *option != "--config") {
            assert!(own.iter().any(|tag| tag.contains(option.as_str())), "{PAGE}: {option} of {name}");
        }
        for value in operand.iter().flat_map(|operand| operand.split('|')) {
            assert!(
                line.contains(value) && own.iter().all(|tag| tag.contains(value)),
                "{PAGE}: {name} {value}"
            );
        }
    }
    let explained: WordSet =
        parse_man_paragraphs(PAGE, "OPTIONS").iter().flat_map(|(tag, _)| extract_options(tag)).collect();
    assert_eq!(explained, known_options(&forms), "{PAGE}: OPTIONS");
    for short in ["-h", "-V"] {
        assert!(page.contains(short) && !run_agent(&[short]).contains("invalid option"), "{short}");
    }
    for used in ["KEYPAIR_AGENT_LOG", "/etc/keypair-agent/config.toml", "00-keypair-agent.conf"] {
        assert!(page.contains(used), "{PAGE}: {used}");
    }
}

/// The configuration keys in the binary's own error message. Keys of `[sshd]` appear as `sshd.…`.
fn list_config_keys() -> WordSet {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let mut keys = WordSet::new();
    for (table, before) in [("", ""), ("sshd.", "[sshd]\n")] {
        fs::write(&path, format!("{before}no_such_key = 1\n")).unwrap();
        let complaint = run_agent(&["status", "--config", path.to_str().unwrap()]);
        let (_, list) = complaint.split_once("expected").unwrap_or_else(|| panic!("{complaint}"));
        keys.extend(list.split('`').skip(1).step_by(2).map(|key| format!("{table}{key}")));
    }
    assert!(keys.remove("sshd"));
    assert!(keys.len() >= 13, "{keys:?}");
    keys
}

/// The lines of packaging/config.toml with every key active, and each key with its value.
fn parse_default_configuration() -> (String, BTreeMap<String, String>) {
    let source = read_repository_file("packaging/config.toml");
    let is_key = |line: &str| {
        line.split_once(" = ").is_some_and(|(key, _)| {
            !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        })
    };
    let lines = source.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if is_key(key) => key,
        _ => line,
    });
    let lines: Vec<&str> = lines.collect();
    let mut table = String::new();
    let mut keys = BTreeMap::new();
    for line in &lines {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            table = format!("{name}.");
        } else if is_key(line) {
            let (key, value) = line.split_once(" = ").unwrap();
            keys.insert(format!("{table}{key}"), value.to_owned());
        }
    }
    (lines.join("\n") + "\n", keys)
}

/// Keys that have no default value. The configuration file shows an example for them.
const KEYS_WITHOUT_DEFAULT: [&str; 3] = ["instance_id", "trusted_signers", "sshd.pid_file"];

#[test]
fn default_configuration_lists_every_key_and_default() {
    let (text, values) = parse_default_configuration();
    assert_eq!(values.keys().cloned().collect::<WordSet>(), list_config_keys());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let with = |text: &str| {
        fs::write(&path, text).unwrap();
        run_agent(&["apply", "/nonexistent/command.json", "--config", path.to_str().unwrap()])
    };
    let said = with(&fs::read_to_string(repository_path("packaging/config.toml")).unwrap());
    assert!(said.contains("the command cannot be read"), "as it is shipped: {said}");
    let without = |keys: &[&str]| -> String {
        let wanted = |line: &&str| !keys.iter().any(|key| line.starts_with(&format!("{key} = ")));
        text.lines().filter(wanted).map(|line| format!("{line}\n")).collect()
    };
    let said = with(&text);
    assert!(said.contains("the command cannot be read"), "every key uncommented: {said}");
    let parse = |text: &str| Config::parse(text, Path::new("packaging/config.toml")).unwrap();
    let optional = KEYS_WITHOUT_DEFAULT.map(|key| key.rsplit('.').next().unwrap());
    assert_eq!(parse(&without(&optional)), parse(""), "its values are the defaults");
}

#[test]
fn config_man_page_matches_keys_and_defaults() {
    const PAGE: &str = "packaging/man/keypair-agent.toml.5";
    let source = read_repository_file(PAGE);
    let (top, sshd) = source.split_once(".SS [sshd]\n").unwrap();
    let count = top.matches("\n.TP\n").count();
    assert!(sshd.contains(".TP\n.B binary\n"));
    let (_, values) = parse_default_configuration();
    let mut explained = WordSet::new();
    for (number, (key, meaning)) in parse_man_paragraphs(PAGE, "KEYS").into_iter().enumerate() {
        let key = if number < count { key } else { format!("sshd.{key}") };
        let (_, default) =
            meaning.split_once("Default:").unwrap_or_else(|| panic!("{PAGE}: {key}: no default"));
        let value = values.get(&key).unwrap_or_else(|| panic!("{PAGE}: {key}: no such key"));
        let has_none = KEYS_WITHOUT_DEFAULT.contains(&key.as_str());
        let wanted = if has_none { "none" } else { value };
        assert!(default.contains(wanted), "{PAGE}: {key}: the default is {wanted}, not{default}");
        explained.insert(key);
    }
    assert_eq!(explained, list_config_keys(), "{PAGE}");
    assert_eq!(extract_options(&read_man_page(PAGE)), to_word_set(["--config"]), "{PAGE}");
}

#[test]
fn man_pages_pass_groff_and_mandoc() {
    for path in ["packaging/man/keypair-agent.8", "packaging/man/keypair-agent.toml.5"] {
        let path = repository_path(path);
        for tool in [&["groff", "-man", "-ww", "-Tutf8"][..], &["mandoc", "-Tlint"]] {
            if is_installed(tool[0]) {
                let output = Command::new(tool[0]).args(&tool[1..]).arg(&path).output().unwrap();
                let said = if tool[0] == "mandoc" { output.stdout } else { output.stderr };
                assert_eq!(String::from_utf8_lossy(&said), "", "{tool:?} {}", path.display());
            }
        }
    }
}

/// A shell with completion: returns the completions of each given line.
struct Shell {
    name: &'static str,
    /// The working directory of the shell: some files, and the shell's own set-up.
    folder: tempfile::TempDir,
}

impl Shell {
    fn new(name: &'static str) -> Option<Self> {
        if !is_installed(name) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a command.json"), "").unwrap();
        fs::create_dir(folder.path().join("a folder")).unwrap();
        Some(Self { name, folder })
    }

    fn list_completions(&self, lines: &[String]) -> Vec<WordSet> {
        let completion = repository_path("packaging/completions");
        let mut command = Command::new(self.name);
        command.current_dir(self.folder.path());
        match self.name {
            "bash" => {
                // The words are split as bash splits them: at blanks, and around `=`.
                let script = r#"source "$1"; shift
                    for line; do
                        spaced=${line//=/ = }; COMP_WORDS=($spaced); COMPREPLY=()
                        [[ $line == *' ' ]] && COMP_WORDS+=('')
                        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
                        _keypair_agent keypair-agent "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>/dev/null
                        printf '%s\t' "${COMPREPLY[@]}"; echo
                    done; complete -p keypair-agent"#;
                command.args(["--norc", "-c", script, "bash"]).arg(completion.join("bash/keypair-agent"));
            }
            "zsh" => {
                fs::copy(completion.join("zsh/_keypair-agent"), self.folder.path().join("_keypair-agent"))
                    .unwrap();
                command.arg("-f").arg(repository_path("tests/manual/capture.zsh")).arg(self.folder.path());
            }
            "fish" => {
                let script = r#"source $argv[1]
                    for line in $argv[2..-1]
                        for offer in (complete -C $line)
                            printf '%s\t' (string split \t -- $offer)[1]
                        end
                        echo
                    end"#;
                command.env("HOME", self.folder.path()).args(["--no-config", "-c", script]);
                command.arg(completion.join("fish/keypair-agent.fish"));
            }
            other => panic!("{other}"),
        }
        let output = command.args(lines).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {said}{}", self.name, String::from_utf8_lossy(&output.stderr));
        let offered = said.lines().take(lines.len()).map(|line| {
            let offers = line.split('\t').filter(|word| !word.is_empty());
            offers.map(|word| word.trim_end_matches('/').replace('\\', "")).collect()
        });
        let offered: Vec<WordSet> = offered.collect();
        assert_eq!(offered.len(), lines.len(), "{}: {said}", self.name);
        offered
    }
}

/// Asserts that the completions at each position are exactly the valid commands, options and operands.
fn assert_completions_match_help(shell: &'static str) {
    let Some(shell) = Shell::new(shell) else { return };
    let forms = parse_help();
    let names: WordSet = forms.iter().map(|form| form.name.clone()).collect();
    let mut asked: Vec<(String, WordSet)> = vec![
        ("keypair-agent ".into(), names.clone()),
        ("keypair-agent --config x ".into(), names.clone()),
        ("keypair-agent --config=x ".into(), names),
        ("keypair-agent p".into(), to_word_set(["plan", "password-auth"])),
        ("keypair-agent --".into(), to_word_set(["--config", "--help", "--version"])),
        ("keypair-agent --config a".into(), to_word_set(["a command.json", "a folder"])),
        ("keypair-agent status --config a".into(), to_word_set(["a command.json", "a folder"])),
        ("keypair-agent --config=a".into(), to_word_set(["a command.json", "a folder"])),
        ("keypair-agent nonesuch x".into(), to_word_set([])),
    ];
    for form in &forms {
        let mut options = form.options.clone();
        options.insert("--help".into());
        asked.push((format!("keypair-agent {} --", form.name), options.clone()));
        asked.push((format!("keypair-agent --config x {} --", form.example_arguments().join(" ")), {
            let mut rest = options.clone();
            rest.remove("--config");
            rest
        }));
        for option in form.options.iter().filter(|option| *option != "--config") {
            let mut rest = options.clone();
            rest.remove(option);
            asked.push((format!("keypair-agent {} {option} --", form.name), rest));
        }
        let operands = match form.operand.as_deref() {
            Some("FILE") => to_word_set(["a command.json", "a folder"]),
            Some(values) => to_word_set(values.split('|')),
            None => WordSet::new(),
        };
        let begun = if form.operand.as_deref() == Some("FILE") { "a" } else { "" };
        asked.push((format!("keypair-agent {} {begun}", form.name), operands));
        if form.operand.is_some() {
            asked.push((format!("keypair-agent {} ", form.example_arguments().join(" ")), WordSet::new()));
        }
    }
    let lines: Vec<String> = asked.iter().map(|(line, _)| line.clone()).collect();
    for ((line, wanted), mut offered) in asked.into_iter().zip(shell.list_completions(&lines)) {
        offered = offered.iter().map(|word| word.trim_start_matches("--config=").to_owned()).collect();
        // Shells differ in three cases, which the test ignores: short options, options where none was begun, and
        // options that are already in the line.
        let given: WordSet = line.split([' ', '=']).map(str::to_owned).collect();
        offered.retain(|word| {
            let is_option = word.starts_with('-');
            !is_option || word.starts_with("--") && line.ends_with("--") && !given.contains(word)
        });
        assert_eq!(offered, wanted, "{}: `{line}`", shell.name);
    }
}

#[test]
fn bash_completion_matches_help() {
    assert_completions_match_help("bash");
}

#[test]
fn zsh_completion_matches_help() {
    assert_completions_match_help("zsh");
}

#[test]
fn fish_completion_matches_help() {
    assert_completions_match_help("fish");
}

#[test]
fn completion_scripts_name_only_known_options() {
    let known = known_options(&parse_help());
    for path in ["bash/keypair-agent", "zsh/_keypair-agent"] {
        let text = read_repository_file(&format!("packaging/completions/{path}"));
        assert_eq!(extract_options(&text), known, "{path}");
    }
    let fish = read_repository_file("packaging/completions/fish/keypair-agent.fish");
    let named = fish.split(" -l ").skip(1).map(|rest| rest.split(' ').next().unwrap());
    assert_eq!(
        named
            .filter(|name| *name != "skip" && *name != "words")
            .map(|name| format!("--{name}"))
            .collect::<WordSet>(),
        known
    );
}

/// The words of a protocol enumeration, from the error message for an unknown word.
fn list_enum_words<T: DeserializeOwned>() -> WordSet {
    let complaint = serde_json::from_str::<T>("\"NO_SUCH_WORD\"").err().unwrap().to_string();
    let words: WordSet = complaint.split('`').skip(3).step_by(2).map(str::to_owned).collect();
    assert!(words.len() > 10, "{complaint}");
    words
}

const OPERATING_DOCUMENT: &str = "docs/operating.md";

/// The first cells of the tables below a heading, without backquotes. The tables must have no empty first cell.
fn read_first_cells(document: &str, heading: &str) -> Vec<String> {
    let text = read_repository_file(document);
    let (_, section) =
        text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("{document}: {heading}"));
    let section = section.split("\n#").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let is_told =
            document != OPERATING_DOCUMENT || cells.len() > 1 && cells.iter().all(|cell| !cell.is_empty());
        assert!(is_told, "{document}: {row}");
        cells[0].trim_matches('`').to_owned()
    })
    .collect()
}

/// KP-3.32.
#[test]
fn reasons_and_warnings_are_documented_once() {
    for (document, reasons, warnings) in [
        (OPERATING_DOCUMENT, "## Reasons", "## Warnings"),
        ("docs/protocol.md", "### Reasons", "### Warnings"),
    ] {
        for (heading, known) in
            [(reasons, list_enum_words::<Reason>()), (warnings, list_enum_words::<WarningReason>())]
        {
            let cells = read_first_cells(document, heading);
            assert_eq!(cells.iter().cloned().collect::<WordSet>(), known, "{document}: {heading}");
            assert_eq!(cells.len(), known.len(), "{document}: {heading}: one of them twice");
        }
    }
}

#[test]
fn status_lines_are_documented() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let at = folder.path().display();
    fs::write(&path, format!("state_dir = \"{at}/state\"\nrun_dir = \"{at}/run\"\n")).unwrap();
    let said = run_agent(&["status", "--config", path.to_str().unwrap()]);
    let lines = said.lines().skip(1).take_while(|line| !line.contains("problem:"));
    let labels: Vec<&str> = lines.filter(|line| line.len() > 17).map(|line| line[2..17].trim()).collect();
    assert!(labels.len() >= 7, "{said}");
    assert_eq!(read_first_cells(OPERATING_DOCUMENT, "## Is it well?"), labels, "{OPERATING_DOCUMENT}");
}

#[test]
fn event_message_ids_are_documented() {
    let ids = |text: &str| -> WordSet {
        let words = text.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 32);
        words.map(str::to_owned).collect()
    };
    assert_eq!(
        ids(&read_repository_file(OPERATING_DOCUMENT)),
        ids(&read_repository_file("src/logging.rs")),
        "{OPERATING_DOCUMENT}"
    );
}

/// The anchor of a heading, as links name it.
fn heading_anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    heading.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

#[test]
fn document_links_resolve() {
    let documents = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"].map(str::to_owned);
    let more = fs::read_dir(repository_path("docs")).unwrap().flatten();
    let more = more.map(|entry| format!("docs/{}", entry.file_name().to_string_lossy()));
    for document in documents.into_iter().chain(more.filter(|name| name.ends_with(".md"))) {
        let text = read_repository_file(&document);
        let targets = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for target in targets.filter(|target| !target.contains("://")) {
            let (file, part) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => repository_path(&document),
                file => repository_path(&document).parent().unwrap().join(file),
            };
            assert!(path.exists(), "{document}: {target}");
            if !part.is_empty() {
                let there = fs::read_to_string(&path).unwrap();
                let mut headings = there.lines().filter(|line| line.starts_with('#'));
                assert!(headings.any(|heading| heading_anchor(heading) == part), "{document}: {target}");
            }
        }
    }
}
