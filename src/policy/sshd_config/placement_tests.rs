//! Tests of the placement: a table, and a small file system that is read again after the placement.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::fixture::{build_config_tree, resolve_includes};
use super::*;
use crate::policy::block::{BEGIN_MARKER, END_MARKER};

const MAIN_CONFIG: &str = "/etc/ssh/sshd_config";
const DROP_IN_PATH: &str = "/etc/ssh/c.d/00-keypair-agent.conf";
const MANAGED_LINE: &str = "PasswordAuthentication no\n";

fn drop_in_place() -> Place {
    Place::DropIn(DROP_IN_PATH.into())
}

fn top_block_place() -> Place {
    Place::TopBlock(MAIN_CONFIG.into())
}

fn managed_block_text() -> String {
    format!("{BEGIN_MARKER} (why)\n{MANAGED_LINE}{END_MARKER}\n")
}

/// KP-6.12.
#[test]
fn placement_prefers_first_included_drop_in() {
    let include = "Include /etc/ssh/c.d/*.conf\n";
    let later = format!("{include}PasswordAuthentication yes\n");
    let behind = format!("PasswordAuthentication yes\n{include}");
    let behind_kbd = format!("ChallengeResponseAuthentication yes\n{include}");
    let in_match = format!("Match User bob\n{include}");
    let second = "Include /etc/ssh/a /etc/ssh/c.d/*.conf\n".to_owned();
    for (name, files, place) in [
        ("plain", vec![(MAIN_CONFIG, include)], drop_in_place()),
        ("relative, quoted", vec![(MAIN_CONFIG, "Include \"c.d/*.conf\"\n")], drop_in_place()),
        ("later lines", vec![(MAIN_CONFIG, &later)], drop_in_place()),
        ("no Include", vec![(MAIN_CONFIG, "UsePAM yes\n")], top_block_place()),
        ("no directory", vec![(MAIN_CONFIG, "Include /etc/ssh/absent/*.conf\n")], top_block_place()),
        ("other names", vec![(MAIN_CONFIG, "Include /etc/ssh/c.d/[1-9]*.conf\n")], top_block_place()),
        ("wildcard directory", vec![(MAIN_CONFIG, "Include /etc/ssh/*.d/*.conf\n")], top_block_place()),
        ("behind a line", vec![(MAIN_CONFIG, &behind)], top_block_place()),
        ("behind the other name", vec![(MAIN_CONFIG, &behind_kbd)], top_block_place()),
        ("inside a Match", vec![(MAIN_CONFIG, &in_match)], top_block_place()),
        (
            "a file that sorts first",
            vec![(MAIN_CONFIG, include), ("/etc/ssh/c.d/+a.conf", MANAGED_LINE)],
            top_block_place(),
        ),
        (
            "a file that sorts later",
            vec![(MAIN_CONFIG, include), ("/etc/ssh/c.d/000-a.conf", MANAGED_LINE)],
            drop_in_place(),
        ),
        (
            "harmless first file",
            vec![(MAIN_CONFIG, include), ("/etc/ssh/c.d/+a.conf", "UsePAM yes\n")],
            drop_in_place(),
        ),
        (
            "first file, inside a Match",
            vec![(MAIN_CONFIG, include), ("/etc/ssh/c.d/+a.conf", "Match all\nPasswordAuthentication yes\n")],
            drop_in_place(),
        ),
        (
            "first file includes",
            vec![
                (MAIN_CONFIG, include),
                ("/etc/ssh/c.d/+a.conf", "Include a\n"),
                ("/etc/ssh/a", MANAGED_LINE),
            ],
            top_block_place(),
        ),
        ("an earlier pattern", vec![(MAIN_CONFIG, &second), ("/etc/ssh/a", MANAGED_LINE)], top_block_place()),
        (
            "a harmless earlier pattern",
            vec![(MAIN_CONFIG, &second), ("/etc/ssh/a", "Port 22\n")],
            drop_in_place(),
        ),
        (
            "the second directory",
            vec![(MAIN_CONFIG, "Include b.d/1* c.d/*.conf\n"), ("/etc/ssh/b.d/1", "Port 22\n")],
            drop_in_place(),
        ),
    ] {
        let expected = Placement { place, stale: vec![] };
        assert_eq!(choose_placement(&build_config_tree(&files), true), Ok(expected), "{name}");
    }
}

/// KP-6.12.
#[test]
fn placement_keeps_existing_place_while_first() {
    let include = "Include /etc/ssh/c.d/*.conf\n";
    let block_first = managed_block_text() + include;
    let block_last = format!("{include}PasswordAuthentication yes\n{}", managed_block_text());
    let behind = format!("PasswordAuthentication yes\n{include}");
    for (name, files, place, stale) in [
        ("our drop-in", vec![(MAIN_CONFIG, include), (DROP_IN_PATH, MANAGED_LINE)], drop_in_place(), vec![]),
        ("our block, though a directory came", vec![(MAIN_CONFIG, &block_first)], top_block_place(), vec![]),
        (
            "both: the block decides",
            vec![(MAIN_CONFIG, &block_first), (DROP_IN_PATH, MANAGED_LINE)],
            top_block_place(),
            vec![drop_in_place()],
        ),
        (
            "a block that does not decide",
            vec![(MAIN_CONFIG, &block_last)],
            drop_in_place(),
            vec![top_block_place()],
        ),
        (
            "both: the drop-in decides",
            vec![(MAIN_CONFIG, &block_last), (DROP_IN_PATH, MANAGED_LINE)],
            drop_in_place(),
            vec![top_block_place()],
        ),
        (
            "a drop-in overtaken",
            vec![(MAIN_CONFIG, &behind), (DROP_IN_PATH, MANAGED_LINE)],
            top_block_place(),
            vec![drop_in_place()],
        ),
        (
            "a drop-in that sorts late",
            vec![
                (MAIN_CONFIG, include),
                (DROP_IN_PATH, MANAGED_LINE),
                ("/etc/ssh/c.d/+a.conf", MANAGED_LINE),
            ],
            top_block_place(),
            vec![drop_in_place()],
        ),
    ] {
        let expected = Placement { place, stale };
        assert_eq!(choose_placement(&build_config_tree(&files), true), Ok(expected), "{name}");
    }
}

/// KP-6.14.
#[test]
fn placement_never_writes_vendor_main_file() {
    let include = "Include /etc/ssh/c.d/*.conf\n";
    assert_eq!(
        choose_placement(&build_config_tree(&[(MAIN_CONFIG, include)]), false).map(|p| p.place),
        Ok(drop_in_place())
    );
    let behind = format!("PasswordAuthentication yes\n{include}");
    for (main, word) in [("UsePAM yes\n", "includes no directory"), (&behind, "sshd_config line 1")] {
        let refusal = choose_placement(&build_config_tree(&[(MAIN_CONFIG, main)]), false).err();
        let (reason, message) = refusal.map(|r| (r.reason, r.message)).unzip();
        assert_eq!(reason, Some(Reason::PasswordAuthNotEffective));
        assert!(message.is_some_and(|m| m.starts_with(MAIN_CONFIG) && m.contains(word)), "{main}");
    }
}

#[test]
fn overridden_directives_are_listed() {
    let main = "PasswordAuthentication yes\nInclude c.d/*\nPasswordAuthentication yes\nPasswordAuthentication NO\n\
                SkeyAuthentication yes\nMatch User bob\nPasswordAuthentication yes\n";
    let tree = build_config_tree(&[
        (MAIN_CONFIG, main),
        (DROP_IN_PATH, "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"),
    ]);
    let lines: Vec<usize> =
        find_overridden_directives(&tree, &drop_in_place()).iter().map(|d| d.line).collect();
    assert_eq!(lines, [3, 5]);
}

/// Generates a file of a few lines that matter for the placement.
fn config_text_strategy() -> impl Strategy<Value = String> {
    let lines = prop::sample::select(vec![
        "PasswordAuthentication yes\n",
        "kbdinteractiveauthentication=yes\n",
        "ChallengeResponseAuthentication no\n",
        "Match User bob\n",
        "Include c.d/*.conf\n",
        "Include b.d/*\n",
        "Include b.d/[!0-9]* c.d/0*\n",
        "Include ?.d/*.conf x\n",
        "UsePAM yes\n",
        "# BEGIN keypair-agent (why)\n",
        "# END keypair-agent\n",
    ]);
    prop::collection::vec(lines, 0..6).prop_map(|lines| lines.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// After the agent writes at the chosen place, sshd reads the agent's lines first.
    #[test]
    fn placement_puts_managed_lines_first(
        main in config_text_strategy(),
        others in prop::collection::btree_map(
            prop::sample::select(vec![
                "/etc/ssh/b.d/+a.conf", "/etc/ssh/b.d/1", "/etc/ssh/c.d/000.conf", "/etc/ssh/c.d/+x.conf",
                DROP_IN_PATH, "/etc/ssh/b.d/00-keypair-agent.conf", "/etc/ssh/x",
            ]),
            config_text_strategy(),
            0..4,
        ),
        writable in any::<bool>(),
    ) {
        let mut files: BTreeMap<PathBuf, Vec<u8>> =
            others.into_iter().map(|(path, text)| (path.into(), text.into_bytes())).collect();
        files.insert(MAIN_CONFIG.into(), main.clone().into_bytes());
        let before = resolve_includes(MAIN_CONFIG.into(), files.clone());
        match choose_placement(&before, writable) {
            Err(refusal) => {
                prop_assert!(!writable);
                prop_assert_eq!(refusal.reason, Reason::PasswordAuthNotEffective);
            }
            Ok(Placement { place, stale }) => {
                prop_assert!(!stale.contains(&place));
                for other in stale.iter().chain([&place]) {
                    match other {
                        Place::DropIn(file) => {
                            files.remove(file);
                        }
                        Place::TopBlock(file) => {
                            files.insert(file.clone(), remove_managed_lines(&main).into_bytes());
                        }
                    }
                }
                let content = match &place {
                    Place::DropIn(_) => MANAGED_LINE.as_bytes().to_vec(),
                    Place::TopBlock(_) => (managed_block_text() + &remove_managed_lines(&main)).into_bytes(),
                };
                files.insert(place.file().to_owned(), content);
                let after = resolve_includes(MAIN_CONFIG.into(), files);
                let found = read_directives(&after);
                let first = found.iter().find(|d| d.is_global() && is_managed_keyword(&d.keyword));
                prop_assert_eq!(first.map(|d| d.file.as_path()), Some(place.file()));
                prop_assert!(first.is_some_and(|d| is_managed_directive_at(&after, &place, d)));
                prop_assert_eq!(choose_placement(&after, writable).map(|p| p.place), Ok(place));
            }
        }
    }
}

/// Returns the main file without the block. A user's lines inside the block stay.
fn remove_managed_lines(main: &str) -> String {
    let ours = managed_line_numbers(main.as_bytes());
    let kept = main.split_inclusive('\n').zip(1..).filter(|(_, number)| !ours.contains(number));
    kept.map(|(line, _)| line).collect()
}
