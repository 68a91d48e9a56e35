//! Tables of which line decides. tests/sshd_agrees.rs compares the same with sshd.

use super::super::fixture::build_config_tree;
use super::*;
use crate::policy::connection::default_neutral_connection;

const MAIN_CONFIG: &str = "/etc/ssh/sshd_config";

fn parsed_config(files: &[(&str, &str)], options: &[&str], names: KbdNames) -> ParsedConfig {
    let options: Vec<String> = options.iter().map(|&word| word.to_owned()).collect();
    ParsedConfig::new(&build_config_tree(files), &options, names)
}

/// Formats the place and the value in short form.
fn format_resolved_value(reading: &ParsedConfig, keyword: &str) -> String {
    let ResolvedValue { by, value } =
        reading.resolve_value(keyword, &default_neutral_connection("root"), Some(&["root".to_owned()]));
    let by = match by {
        ConfigSource::CommandLine(text) => format!("-o {text}"),
        ConfigSource::Line { line, .. } => format!("line {line}"),
        ConfigSource::Default => "default".into(),
    };
    format!("{by}: {}", value.unwrap_or_default().join(" "))
}

#[test]
fn resolved_value_names_deciding_source() {
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
        assert_eq!(
            format_resolved_value(&parsed_config(&[(MAIN_CONFIG, main)], &options, KbdNames::One), keyword),
            expected,
            "{main}"
        );
    }
}

#[test]
fn challenge_response_is_separate_before_8_7() {
    for (main, expected) in [
        ("KbdInteractiveAuthentication no\n", "default: "),
        ("ChallengeResponseAuthentication no\nKbdInteractiveAuthentication yes\n", "line 2: yes"),
        ("ChallengeResponseAuthentication no\n", "line 1: no"),
        ("ChallengeResponseAuthentication no\nSkeyAuthentication yes\n", "line 1: no"),
        ("Match User root\nKbdInteractiveAuthentication no\n", "line 2: no"),
    ] {
        assert_eq!(
            format_resolved_value(
                &parsed_config(&[(MAIN_CONFIG, main)], &[], KbdNames::Two),
                KBD_INTERACTIVE
            ),
            expected,
            "{main}"
        );
    }
}

#[test]
fn uncertain_match_block_explains_observed_value() {
    let main = "PasswordAuthentication no\nMatch User bob\nPasswordAuthentication yes\nMatch RDomain x\n\
                PasswordAuthentication yes\n";
    let reading = parsed_config(&[(MAIN_CONFIG, main)], &[], KbdNames::One);
    let told = |observed| {
        reading
            .find_value_source("PasswordAuthentication", observed, &default_neutral_connection("root"), None)
            .line()
    };
    assert_eq!((told("no"), told("yes")), (Some(1), Some(5)));
}

#[test]
fn config_source_description_names_place() {
    let files = [(MAIN_CONFIG, "Include d.d/*\n"), ("/etc/ssh/d.d/a.conf", "\nskeyauthentication yes\n")];
    let by = parsed_config(&files, &[], KbdNames::One)
        .resolve_value(KBD_INTERACTIVE, &default_neutral_connection("root"), None)
        .by;
    assert_eq!(by.describe(KBD_INTERACTIVE), "/etc/ssh/d.d/a.conf line 2 (`SkeyAuthentication yes`)");
    assert_eq!(ConfigSource::Default.describe("usepam"), "sshd's default of UsePAM, which no file sets");
}
