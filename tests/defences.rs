//! The defences of docs/threat-model.md. Each row names a defence in tests/defences.toml, and the test there fails if
//! the defence is removed. `make test-defences` verifies that in a copy of the sources.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;

/// The defences to remove: `all`, or names that are separated by commas.
const MUTATIONS_ENV: &str = "KEYPAIR_DEFENCES";

#[derive(Deserialize)]
struct DefencesFile {
    defence: Vec<Defence>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Defence {
    name: String,
    /// The test program (or `lib`), and the test in it.
    test: (String, String),
    out: Vec<SourceMutation>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceMutation {
    file: PathBuf,
    find: String,
    put: String,
}

fn repository_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read_defences() -> Vec<Defence> {
    let text = fs::read_to_string(repository_root().join("tests/defences.toml")).unwrap();
    toml::from_str::<DefencesFile>(&text).unwrap().defence
}

/// The files in which the source of a test may be.
fn list_test_sources(program: &str) -> Vec<PathBuf> {
    match program {
        "lib" => list_rust_files(&repository_root().join("src")),
        program => vec![repository_root().join(format!("tests/{program}.rs"))],
    }
}

fn list_rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let found = entries.flat_map(|path| if path.is_dir() { list_rust_files(&path) } else { vec![path] });
    found.filter(|path| path.extension().is_some_and(|ending| ending == "rs")).collect()
}

#[test]
fn threat_model_rows_match_defences_and_tests() {
    let model = fs::read_to_string(repository_root().join("docs/threat-model.md")).unwrap();
    let rows = model.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| What"));
    let rows: Vec<Vec<&str>> = rows.map(|line| line.split('|').map(str::trim).collect()).collect();
    let named: Vec<&str> = rows.iter().flat_map(|row| row[3].split(", ")).collect();
    let named: Vec<&str> = named.into_iter().map(|name| name.trim_matches('`')).collect();
    let defences = read_defences();
    let known: BTreeSet<&str> = defences.iter().map(|defence| defence.name.as_str()).collect();
    assert_eq!(named.iter().copied().collect::<BTreeSet<_>>(), known);
    assert_eq!(named.len(), defences.len(), "a defence is named twice");
    for Defence { name, test: (program, test), out } in &defences {
        let function = format!("fn {}(", test.rsplit("::").next().unwrap());
        let is_there = list_test_sources(program)
            .iter()
            .any(|path| fs::read_to_string(path).unwrap().contains(&function));
        assert!(is_there, "{name}: no {test} in {program}");
        assert!(!out.is_empty(), "{name}");
        for SourceMutation { file, find, .. } in out {
            let found =
                fs::read_to_string(repository_root().join(file)).unwrap().matches(find.as_str()).count();
            assert_eq!(found, 1, "{name}: `{find}` in {}", file.display());
        }
    }
}

#[test]
fn removed_defence_fails_its_test() {
    let Ok(asked) = std::env::var(MUTATIONS_ENV) else {
        println!(
            "SKIPPED: {MUTATIONS_ENV} is not set; `make test-defences` takes them out, one after another"
        );
        return;
    };
    let asked: Vec<&str> = asked.split(',').collect();
    let scratch = repository_root().join("target/defences");
    copy_sources(&scratch);
    let mut unmissed = Vec::new();
    for Defence { name, test, out } in read_defences() {
        if asked != ["all"] && !asked.contains(&name.as_str()) {
            continue;
        }
        for SourceMutation { file, find, put } in &out {
            apply_mutation(&scratch.join(file), find, put);
        }
        let built = run_cargo_test(&scratch, &test, &["--no-run"]);
        assert!(built.status.success(), "{name}: it does not build:\n{}", combined_output(&built));
        let ran = run_cargo_test(&scratch, &test, &["--", "--exact", &test.1]);
        let failed = format!("test {} ... FAILED", test.1);
        let is_missed = combined_output(&ran).contains(&failed);
        println!("{name}: {} {}", test.1, if is_missed { "fails" } else { "does not fail" });
        if !is_missed {
            println!("{}", combined_output(&ran));
            unmissed.push(name);
        }
        for SourceMutation { file, .. } in &out {
            fs::copy(repository_root().join(file), scratch.join(file)).unwrap();
        }
    }
    assert_eq!(unmissed, Vec::<String>::new());
}

/// Copies all files that git tracks, in their present state. The build of the last run is kept.
fn copy_sources(scratch: &Path) {
    let listed =
        Command::new("git").args(["ls-files", "-z"]).current_dir(repository_root()).output().unwrap();
    assert!(listed.status.success(), "this is no clone: {}", combined_output(&listed));
    for name in String::from_utf8(listed.stdout).unwrap().split_terminator('\0') {
        let (from, to) = (repository_root().join(name), scratch.join(name));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        if fs::read(&from).ok() != fs::read(&to).ok() {
            fs::copy(from, to).unwrap();
        }
    }
}

fn apply_mutation(path: &Path, find: &str, put: &str) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, text.replacen(find, put, 1)).unwrap();
}

fn run_cargo_test(scratch: &Path, (program, _): &(String, String), arguments: &[&str]) -> Output {
    // Without a defence, a test may never end.
    let mut command = Command::new("timeout");
    command.args(["300", env!("CARGO"), "test", "--package", "keypair-agent", "--target-dir", "build"]);
    match program.as_str() {
        "lib" => command.arg("--lib"),
        program => command.args(["--test", program]),
    };
    // The compile time is much longer than the run time, so the build is not optimised.
    command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "0").env("RUSTFLAGS", "--cap-lints warn");
    command.args(arguments).current_dir(scratch).output().unwrap()
}

fn combined_output(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}
