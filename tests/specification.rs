//! docs/specification numbers each clause once; what is cited is there; each clause is cited by a test, or stands in
//! untested.md with the reason.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Section and clause, as in `KP-6.7`.
type Number = (u32, u32);

/// Where a clause may be cited.
const CITING: [&str; 9] = [
    "src",
    "controlplane",
    "tests",
    "docs",
    "fuzz/src",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

fn files(path: &Path, found: &mut Vec<PathBuf>) {
    if !path.is_dir() {
        found.push(path.to_owned());
        return;
    }
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "target" && !entry.file_type().unwrap().is_symlink() {
            files(&entry.path(), found);
        }
    }
}

/// Every file in which a clause may be cited, and its text; but for this one, which has examples.
fn texts() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for place in CITING {
        files(&root().join(place), &mut found);
    }
    found.sort();
    let texts = found.iter().map(|path| (name(path), fs::read(path).unwrap()));
    let texts = texts.map(|(name, bytes)| (name, String::from_utf8_lossy(&bytes).into_owned()));
    texts.filter(|(name, _)| name != file!()).collect()
}

/// The digits at the start, as a number, and what is behind them.
fn digits(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// Each `KP-6.7`, and each `KP-6`, which names a section.
fn citations(text: &str) -> Vec<(u32, Option<u32>)> {
    let behind = text.split("KP-").skip(1).filter_map(digits);
    let clause = |rest: &str| rest.strip_prefix('.').and_then(digits).map(|(clause, _)| clause);
    behind.map(|(section, rest)| (section, clause(rest))).collect()
}

/// The number at the start of a list item in bold, and the text behind it.
fn item(line: &str) -> Option<(Number, &str)> {
    let (number, text) = line.strip_prefix("- **")?.split_once("**")?;
    let (section, rest) = digits(number.strip_prefix("KP-")?)?;
    let (clause, rest) = digits(rest.strip_prefix('.')?)?;
    rest.is_empty().then_some(((section, clause), text.trim()))
}

fn documents() -> Vec<(String, String)> {
    texts().into_iter().filter(|(name, _)| name.starts_with("docs/specification/")).collect()
}

/// Each clause, and the file that it stands in.
fn clauses() -> BTreeMap<Number, String> {
    let mut clauses = BTreeMap::new();
    for (name, text) in documents().into_iter().filter(|(name, _)| !name.ends_with("/untested.md")) {
        for (number, _) in text.lines().filter_map(item) {
            let twice = clauses.insert(number, name.clone());
            assert_eq!(twice, None, "KP-{}.{} stands in {name} again", number.0, number.1);
        }
    }
    assert!(clauses.len() >= 80, "{}", clauses.len());
    clauses
}

/// The clauses of untested.md, each with its reason.
fn untested() -> BTreeMap<Number, String> {
    let text = fs::read_to_string(root().join("docs/specification/untested.md")).unwrap();
    text.lines().filter_map(item).map(|(number, reason)| (number, reason.to_owned())).collect()
}

/// The parts of a source file that are tests: all of it, by its name, or its `#[cfg(test)]` modules.
fn tests_in(name: &str, text: &str) -> String {
    let all = ["tests/", "controlplane/tests/"].iter().any(|folder| name.starts_with(folder));
    if all || name.contains("/tests/") || name.ends_with("tests.rs") {
        return text.to_owned();
    }
    if !name.ends_with(".rs") {
        return String::new();
    }
    let modules = text.split("#[cfg(test)]\n").skip(1).filter(|rest| {
        let head = rest.lines().find(|line| !line.starts_with("#[")).unwrap_or_default();
        head.contains("mod ") && head.ends_with('{')
    });
    modules.map(|rest| rest.split("\n}\n").next().unwrap_or_default()).collect()
}

#[test]
fn clause_numbers_are_unique_and_without_gaps() {
    let clauses = clauses();
    for &(section, clause) in clauses.keys().filter(|(_, clause)| *clause != 1) {
        assert!(clauses.contains_key(&(section, clause - 1)), "there is no KP-{section}.{}", clause - 1);
    }
    for (name, text) in documents() {
        for line in text.lines().filter(|line| line.contains("**KP-")) {
            assert!(item(line).is_some(), "{name}: not a clause as `- **KP-6.7** …`: {line}");
        }
    }
}

#[test]
fn every_cited_clause_exists() {
    let clauses = clauses();
    let sections: BTreeSet<u32> = clauses.keys().map(|(section, _)| *section).collect();
    for (name, text) in texts() {
        for (section, clause) in citations(&text) {
            match clause {
                Some(clause) => assert!(
                    clauses.contains_key(&(section, clause)),
                    "{name} cites KP-{section}.{clause}, which is not there"
                ),
                None => {
                    assert!(sections.contains(&section), "{name} cites KP-{section}, which is not there")
                }
            }
        }
    }
}

#[test]
fn every_clause_is_cited_by_a_test_or_listed_with_the_reason() {
    let mut cited = BTreeSet::new();
    for (name, text) in texts().iter().filter(|(name, _)| !name.starts_with("docs/")) {
        let tests = citations(&tests_in(name, text));
        cited.extend(tests.into_iter().filter_map(|(section, clause)| Some((section, clause?))));
    }
    let (clauses, untested) = (clauses(), untested());
    for number @ (section, clause) in clauses.keys() {
        let is_listed = untested.contains_key(number);
        assert!(
            cited.contains(number) || is_listed,
            "no test cites KP-{section}.{clause}, and it is not listed in docs/specification/untested.md"
        );
        assert!(
            !cited.contains(number) || !is_listed,
            "KP-{section}.{clause} is cited by a test, and listed in docs/specification/untested.md"
        );
    }
    for ((section, clause), reason) in untested {
        assert!(clauses.contains_key(&(section, clause)), "untested.md lists KP-{section}.{clause}");
        assert!(!reason.is_empty(), "untested.md gives no reason for KP-{section}.{clause}");
    }
}

#[test]
fn every_link_of_the_specification_leads_somewhere() {
    for (name, text) in documents() {
        let folder = root().join(&name).parent().unwrap().to_owned();
        let targets = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for target in targets.filter(|target| !target.contains("://")) {
            let file = target.split('#').next().unwrap();
            assert!(folder.join(file).exists(), "{name}: {target}");
        }
    }
}

#[test]
fn citations_and_tests_are_found() {
    assert_eq!(citations("(KP-5.3 to KP-5.10; KP-4's) KP-x"), [(5, Some(3)), (5, Some(10)), (4, None)]);
    assert_eq!(item("- **KP-5.3** The agent"), Some(((5, 3), "The agent")));
    assert_eq!(item("- KP-5.3 The agent"), None);
    let source = "//! KP-1.1\n#[cfg(test)]\nmod tests;\n/// KP-1.2\n#[cfg(test)]\n#[allow(x)]\nmod more {\n// KP-1.3\n}\n// KP-1.4\n";
    assert_eq!(citations(&tests_in("src/a.rs", source)), [(1, Some(3))]);
    assert_eq!(citations(&tests_in("src/a_tests.rs", source)).len(), 4);
}
