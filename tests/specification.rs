//! Checks that docs/specification numbers each clause once, that each cited clause exists, and that a test cites each
//! clause or untested.md gives the reason why not.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Section and clause, as in `KP-6.7`.
type ClauseNumber = (u32, u32);

/// The paths in which clauses may be cited.
const CITING_PATHS: [&str; 9] = [
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

fn repository_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn relative_name(path: &Path) -> String {
    path.strip_prefix(repository_root()).unwrap().to_string_lossy().into_owned()
}

fn collect_files(path: &Path, found: &mut Vec<PathBuf>) {
    if !path.is_dir() {
        found.push(path.to_owned());
        return;
    }
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "target" && !entry.file_type().unwrap().is_symlink() {
            collect_files(&entry.path(), found);
        }
    }
}

/// Every file in which a clause may be cited, with its text, except this file, which contains examples.
fn read_citing_files() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for place in CITING_PATHS {
        collect_files(&repository_root().join(place), &mut found);
    }
    found.sort();
    let texts = found.iter().map(|path| (relative_name(path), fs::read(path).unwrap()));
    let texts = texts.map(|(name, bytes)| (name, String::from_utf8_lossy(&bytes).into_owned()));
    texts.filter(|(name, _)| name != file!()).collect()
}

/// The number at the start of a text, and the rest.
fn parse_leading_number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// Each citation: `KP-6.7` of a clause, `KP-6` of a section.
fn parse_citations(text: &str) -> Vec<(u32, Option<u32>)> {
    let behind = text.split("KP-").skip(1).filter_map(parse_leading_number);
    let clause = |rest: &str| rest.strip_prefix('.').and_then(parse_leading_number).map(|(clause, _)| clause);
    behind.map(|(section, rest)| (section, clause(rest))).collect()
}

/// The bold clause number at the start of a list item, and the text after it.
fn parse_clause_item(line: &str) -> Option<(ClauseNumber, &str)> {
    let (number, text) = line.strip_prefix("- **")?.split_once("**")?;
    let (section, rest) = parse_leading_number(number.strip_prefix("KP-")?)?;
    let (clause, rest) = parse_leading_number(rest.strip_prefix('.')?)?;
    rest.is_empty().then_some(((section, clause), text.trim()))
}

fn read_specification_documents() -> Vec<(String, String)> {
    read_citing_files().into_iter().filter(|(name, _)| name.starts_with("docs/specification/")).collect()
}

/// Each clause, and its file.
fn parse_clauses() -> BTreeMap<ClauseNumber, String> {
    let mut clauses = BTreeMap::new();
    for (name, text) in
        read_specification_documents().into_iter().filter(|(name, _)| !name.ends_with("/untested.md"))
    {
        for (number, _) in text.lines().filter_map(parse_clause_item) {
            let twice = clauses.insert(number, name.clone());
            assert_eq!(twice, None, "KP-{}.{} stands in {name} again", number.0, number.1);
        }
    }
    assert!(clauses.len() >= 80, "{}", clauses.len());
    clauses
}

/// The clauses in untested.md, each with its reason.
fn parse_untested_clauses() -> BTreeMap<ClauseNumber, String> {
    let text = fs::read_to_string(repository_root().join("docs/specification/untested.md")).unwrap();
    text.lines().filter_map(parse_clause_item).map(|(number, reason)| (number, reason.to_owned())).collect()
}

/// The tests in a source file: the whole file if its name says so, otherwise its `#[cfg(test)]` modules.
fn extract_tests(name: &str, text: &str) -> String {
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
    let clauses = parse_clauses();
    for &(section, clause) in clauses.keys().filter(|(_, clause)| *clause != 1) {
        assert!(clauses.contains_key(&(section, clause - 1)), "there is no KP-{section}.{}", clause - 1);
    }
    for (name, text) in read_specification_documents() {
        for line in text.lines().filter(|line| line.contains("**KP-")) {
            assert!(parse_clause_item(line).is_some(), "{name}: not a clause as `- **KP-6.7** …`: {line}");
        }
    }
}

#[test]
fn cited_clauses_exist() {
    let clauses = parse_clauses();
    let sections: BTreeSet<u32> = clauses.keys().map(|(section, _)| *section).collect();
    for (name, text) in read_citing_files() {
        for (section, clause) in parse_citations(&text) {
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
fn clauses_are_tested_or_listed_as_untested() {
    let mut cited = BTreeSet::new();
    for (name, text) in read_citing_files().iter().filter(|(name, _)| !name.starts_with("docs/")) {
        let tests = parse_citations(&extract_tests(name, text));
        cited.extend(tests.into_iter().filter_map(|(section, clause)| Some((section, clause?))));
    }
    let (clauses, untested) = (parse_clauses(), parse_untested_clauses());
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
fn specification_links_resolve() {
    for (name, text) in read_specification_documents() {
        let folder = repository_root().join(&name).parent().unwrap().to_owned();
        let targets = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for target in targets.filter(|target| !target.contains("://")) {
            let file = target.split('#').next().unwrap();
            assert!(folder.join(file).exists(), "{name}: {target}");
        }
    }
}

#[test]
fn clause_parser_finds_citations_and_tests() {
    assert_eq!(parse_citations("(KP-5.3 to KP-5.10; KP-4's) KP-x"), [(5, Some(3)), (5, Some(10)), (4, None)]);
    assert_eq!(parse_clause_item("- **KP-5.3** The agent"), Some(((5, 3), "The agent")));
    assert_eq!(parse_clause_item("- KP-5.3 The agent"), None);
    let source = "//! KP-1.1\n#[cfg(test)]\nmod tests;\n/// KP-1.2\n#[cfg(test)]\n#[allow(x)]\nmod more {\n// KP-1.3\n}\n// KP-1.4\n";
    assert_eq!(parse_citations(&extract_tests("src/a.rs", source)), [(1, Some(3))]);
    assert_eq!(parse_citations(&extract_tests("src/a_tests.rs", source)).len(), 4);
}
