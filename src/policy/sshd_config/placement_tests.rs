//! Where ours goes: a table, and a small file system that is looked at again after the placement.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::fixture::{resolved, tree};
use super::*;
use crate::policy::block::{BEGIN, END};

const MAIN: &str = "/etc/ssh/sshd_config";
const OURS: &str = "/etc/ssh/c.d/00-keypair-agent.conf";
const SET: &str = "PasswordAuthentication no\n";

fn drop_in() -> Place {
    Place::DropIn(OURS.into())
}

fn top() -> Place {
    Place::TopBlock(MAIN.into())
}

fn block() -> String {
    format!("{BEGIN} (why)\n{SET}{END}\n")
}

/// KP-6.12.
#[test]
fn where_it_goes() {
    let include = "Include /etc/ssh/c.d/*.conf\n";
    let later = format!("{include}PasswordAuthentication yes\n");
    let behind = format!("PasswordAuthentication yes\n{include}");
    let behind_kbd = format!("ChallengeResponseAuthentication yes\n{include}");
    let in_match = format!("Match User bob\n{include}");
    let second = "Include /etc/ssh/a /etc/ssh/c.d/*.conf\n".to_owned();
    for (name, files, place) in [
        ("plain", vec![(MAIN, include)], drop_in()),
        ("relative, quoted", vec![(MAIN, "Include \"c.d/*.conf\"\n")], drop_in()),
        ("later lines", vec![(MAIN, &later)], drop_in()),
        ("no Include", vec![(MAIN, "UsePAM yes\n")], top()),
        ("no directory", vec![(MAIN, "Include /etc/ssh/absent/*.conf\n")], top()),
        ("other names", vec![(MAIN, "Include /etc/ssh/c.d/[1-9]*.conf\n")], top()),
        ("wildcard directory", vec![(MAIN, "Include /etc/ssh/*.d/*.conf\n")], top()),
        ("behind a line", vec![(MAIN, &behind)], top()),
        ("behind the other name", vec![(MAIN, &behind_kbd)], top()),
        ("inside a Match", vec![(MAIN, &in_match)], top()),
        ("a file that sorts first", vec![(MAIN, include), ("/etc/ssh/c.d/+a.conf", SET)], top()),
        ("a file that sorts later", vec![(MAIN, include), ("/etc/ssh/c.d/000-a.conf", SET)], drop_in()),
        ("harmless first file", vec![(MAIN, include), ("/etc/ssh/c.d/+a.conf", "UsePAM yes\n")], drop_in()),
        (
            "first file, inside a Match",
            vec![(MAIN, include), ("/etc/ssh/c.d/+a.conf", "Match all\nPasswordAuthentication yes\n")],
            drop_in(),
        ),
        (
            "first file includes",
            vec![(MAIN, include), ("/etc/ssh/c.d/+a.conf", "Include a\n"), ("/etc/ssh/a", SET)],
            top(),
        ),
        ("an earlier pattern", vec![(MAIN, &second), ("/etc/ssh/a", SET)], top()),
        ("a harmless earlier pattern", vec![(MAIN, &second), ("/etc/ssh/a", "Port 22\n")], drop_in()),
        (
            "the second directory",
            vec![(MAIN, "Include b.d/1* c.d/*.conf\n"), ("/etc/ssh/b.d/1", "Port 22\n")],
            drop_in(),
        ),
    ] {
        let expected = Placement { place, stale: vec![] };
        assert_eq!(placement(&tree(&files), true), Ok(expected), "{name}");
    }
}

/// KP-6.12.
#[test]
fn a_place_once_taken() {
    let include = "Include /etc/ssh/c.d/*.conf\n";
    let block_first = block() + include;
    let block_last = format!("{include}PasswordAuthentication yes\n{}", block());
    let behind = format!("PasswordAuthentication yes\n{include}");
    for (name, files, place, stale) in [
        ("our drop-in", vec![(MAIN, include), (OURS, SET)], drop_in(), vec![]),
        ("our block, though a directory came", vec![(MAIN, &block_first)], top(), vec![]),
        ("both: the block decides", vec![(MAIN, &block_first), (OURS, SET)], top(), vec![drop_in()]),
        ("a block that does not decide", vec![(MAIN, &block_last)], drop_in(), vec![top()]),
        ("both: the drop-in decides", vec![(MAIN, &block_last), (OURS, SET)], drop_in(), vec![top()]),
        ("a drop-in overtaken", vec![(MAIN, &behind), (OURS, SET)], top(), vec![drop_in()]),
        (
            "a drop-in that sorts late",
            vec![(MAIN, include), (OURS, SET), ("/etc/ssh/c.d/+a.conf", SET)],
            top(),
            vec![drop_in()],
        ),
    ] {
        let expected = Placement { place, stale };
        assert_eq!(placement(&tree(&files), true), Ok(expected), "{name}");
    }
}

/// KP-6.14.
#[test]
fn a_main_file_that_is_never_written() {
    let include = "Include /etc/ssh/c.d/*.conf\n";
    assert_eq!(placement(&tree(&[(MAIN, include)]), false).map(|p| p.place), Ok(drop_in()));
    let behind = format!("PasswordAuthentication yes\n{include}");
    for (main, word) in [("UsePAM yes\n", "includes no directory"), (&behind, "sshd_config line 1")] {
        let refusal = placement(&tree(&[(MAIN, main)]), false).err();
        let (reason, message) = refusal.map(|r| (r.reason, r.message)).unzip();
        assert_eq!(reason, Some(Reason::PasswordAuthNotEffective));
        assert!(message.is_some_and(|m| m.starts_with(MAIN) && m.contains(word)), "{main}");
    }
}

#[test]
fn lines_that_say_otherwise() {
    let main = "PasswordAuthentication yes\nInclude c.d/*\nPasswordAuthentication yes\nPasswordAuthentication NO\n\
                SkeyAuthentication yes\nMatch User bob\nPasswordAuthentication yes\n";
    let tree = tree(&[(MAIN, main), (OURS, "PasswordAuthentication no\nKbdInteractiveAuthentication no\n")]);
    let lines: Vec<usize> = contrary_lines(&tree, &drop_in()).iter().map(|d| d.line).collect();
    assert_eq!(lines, [3, 5]);
}

/// A file of a few lines that matter.
fn content() -> impl Strategy<Value = String> {
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

    /// Put where the placement says, and looked at as sshd would, ours comes first.
    #[test]
    fn ours_comes_first(
        main in content(),
        others in prop::collection::btree_map(
            prop::sample::select(vec![
                "/etc/ssh/b.d/+a.conf", "/etc/ssh/b.d/1", "/etc/ssh/c.d/000.conf", "/etc/ssh/c.d/+x.conf",
                OURS, "/etc/ssh/b.d/00-keypair-agent.conf", "/etc/ssh/x",
            ]),
            content(),
            0..4,
        ),
        writable in any::<bool>(),
    ) {
        let mut files: BTreeMap<PathBuf, Vec<u8>> =
            others.into_iter().map(|(path, text)| (path.into(), text.into_bytes())).collect();
        files.insert(MAIN.into(), main.clone().into_bytes());
        let before = resolved(MAIN.into(), files.clone());
        match placement(&before, writable) {
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
                            files.insert(file.clone(), without_block(&main).into_bytes());
                        }
                    }
                }
                let content = match &place {
                    Place::DropIn(_) => SET.as_bytes().to_vec(),
                    Place::TopBlock(_) => (block() + &without_block(&main)).into_bytes(),
                };
                files.insert(place.file().to_owned(), content);
                let after = resolved(MAIN.into(), files);
                let found = directives(&after);
                let first = found.iter().find(|d| d.is_global() && is_set_by_us(&d.keyword));
                prop_assert_eq!(first.map(|d| d.file.as_path()), Some(place.file()));
                prop_assert!(first.is_some_and(|d| stands_in(&after, &place, d)));
                prop_assert_eq!(placement(&after, writable).map(|p| p.place), Ok(place));
            }
        }
    }
}

/// The main file without the block; a user's lines inside it stay.
fn without_block(main: &str) -> String {
    let ours = our_lines(main.as_bytes());
    let kept = main.split_inclusive('\n').zip(1..).filter(|(_, number)| !ours.contains(number));
    kept.map(|(line, _)| line).collect()
}
