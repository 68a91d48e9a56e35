//! Who decides, by tables; tests/sshd_agrees.rs holds the same against sshd.

use super::super::fixture::tree;
use super::*;
use crate::policy::connection::anybody;

const MAIN: &str = "/etc/ssh/sshd_config";

fn reading(files: &[(&str, &str)], options: &[&str], names: Names) -> Reading {
    let options: Vec<String> = options.iter().map(|&word| word.to_owned()).collect();
    Reading::new(&tree(files), &options, names)
}

/// The place and the value, in short.
fn decided(reading: &Reading, keyword: &str) -> String {
    let Decision { by, value } = reading.decision(keyword, &anybody("root"), Some(&["root".to_owned()]));
    let by = match by {
        Decider::Option(text) => format!("-o {text}"),
        Decider::Line { line, .. } => format!("line {line}"),
        Decider::Default => "default".into(),
    };
    format!("{by}: {}", value.unwrap_or_default().join(" "))
}

#[test]
fn who_decides() {
    let password = "PasswordAuthentication";
    for (main, options, keyword, expected) in [
        ("", "", "UsePAM", "default: "),
        (
            "PasswordAuthentication no\npasswordauthentication yes\n",
            "",
            "passwordauthentication",
            "line 1: no",
        ),
        (
            "PasswordAuthentication no\n",
            "-oPasswordAuthentication=yes",
            password,
            "-o PasswordAuthentication=yes: yes",
        ),
        (
            "PasswordAuthentication no\nMatch User root\nPasswordAuthentication no\n",
            "-oPasswordAuthentication=yes",
            password,
            "line 3: no",
        ),
        (
            "Match User bob\nPasswordAuthentication yes\nMatch all\nPasswordAuthentication no\n",
            "",
            password,
            "line 4: no",
        ),
        ("Match all\nUsePAM no\n", "", "UsePAM", "line 2: no"),
        ("UsePAM yes\nMatch all\nUsePAM no\n", "", "UsePAM", "line 1: yes"),
        ("AllowUsers a b\nAllowUsers c\n", "-oAllowUsers=z", "AllowUsers", "-o AllowUsers=z: z a b c"),
        (
            "AllowUsers a\nMatch User root\nAllowUsers b\nMatch all\nAllowUsers c\n",
            "",
            "allowusers",
            "line 3: b c",
        ),
        (
            "ChallengeResponseAuthentication yes\nKbdInteractiveAuthentication no\n",
            "",
            KBD_INTERACTIVE,
            "line 1: yes",
        ),
        ("PubkeyAcceptedKeyTypes ssh-rsa\n", "", "PubkeyAcceptedAlgorithms", "line 1: ssh-rsa"),
    ] {
        let options: Vec<&str> = options.split_ascii_whitespace().collect();
        assert_eq!(decided(&reading(&[(MAIN, main)], &options, Names::One), keyword), expected, "{main}");
    }
}

#[test]
fn the_older_name_on_its_own() {
    for (main, expected) in [
        ("KbdInteractiveAuthentication no\n", "default: "),
        ("ChallengeResponseAuthentication no\nKbdInteractiveAuthentication yes\n", "line 2: yes"),
        ("ChallengeResponseAuthentication no\n", "line 1: no"),
        ("ChallengeResponseAuthentication no\nSkeyAuthentication yes\n", "line 1: no"),
        ("Match User root\nKbdInteractiveAuthentication no\n", "line 2: no"),
    ] {
        assert_eq!(decided(&reading(&[(MAIN, main)], &[], Names::Two), KBD_INTERACTIVE), expected, "{main}");
    }
}

#[test]
fn a_match_that_may_pick_the_connection() {
    let main = "PasswordAuthentication no\nMatch User bob\nPasswordAuthentication yes\nMatch RDomain x\n\
                PasswordAuthentication yes\n";
    let reading = reading(&[(MAIN, main)], &[], Names::One);
    let told = |observed| reading.explain("PasswordAuthentication", observed, &anybody("root"), None).line();
    assert_eq!((told("no"), told("yes")), (Some(1), Some(5)));
}

#[test]
fn the_place_in_words() {
    let files = [(MAIN, "Include d.d/*\n"), ("/etc/ssh/d.d/a.conf", "\nskeyauthentication yes\n")];
    let by = reading(&files, &[], Names::One).decision(KBD_INTERACTIVE, &anybody("root"), None).by;
    assert_eq!(by.describe(KBD_INTERACTIVE), "/etc/ssh/d.d/a.conf line 2 (`SkeyAuthentication yes`)");
    assert_eq!(Decider::Default.describe("usepam"), "sshd's default of UsePAM, which no file sets");
}
