//! Tests of the guard, rule by rule.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::policy::connection::default_neutral_connection;
use crate::policy::observation::{PamRule, Shadow, ShadowEntry};
use crate::policy::outcome::WarningReason;
use crate::policy::sshd_config::fixture::build_config_tree;
use crate::policy::sshd_config::{KbdNames, ParsedConfig};

const MAIN_CONFIG: &str = "/etc/ssh/sshd_config";
const DEFAULT_EFFECTIVE: &str = "pubkeyauthentication yes\nauthorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2\n\
                    strictmodes yes\npermitrootlogin without-password\nauthenticationmethods any\n";

fn root() -> Account {
    account("root", 0, "/root", &["root", "wheel"])
}

fn bob() -> Account {
    account("bob", 1000, "/home/bob", &["bob"])
}

fn account(name: &str, id: u32, home: &str, groups: &[&str]) -> Account {
    Account {
        name: name.into(),
        uid: id,
        gid: id,
        home: home.into(),
        shell: "/bin/sh".into(),
        groups: groups.iter().map(|&group| group.to_owned()).collect(),
    }
}

fn login() -> Login {
    Login {
        shadow: Shadow::Entry(ShadowEntry {
            is_locked: false,
            has_password: false,
            is_empty: false,
            last_change: None,
            maximum: None,
            inactive: None,
            expires: None,
        }),
        today: 20000,
        nologin: None,
        pam: Vec::new(),
        people: Vec::new(),
        groups: Vec::new(),
    }
}

/// Returns the guard's report on `account`. `said` are lines of `sshd -T` that replace the permissive defaults, and
/// `main` is the text of the main file.
fn guard_report(account: &Account, said: &str, main: &str, options: &[&str]) -> GuardReport {
    guard_report_with_login(account, &login(), said, main, options)
}

/// Does the same with the facts besides sshd's settings that decide.
fn guard_report_with_login(
    account: &Account,
    login: &Login,
    said: &str,
    main: &str,
    options: &[&str],
) -> GuardReport {
    let options: Vec<String> = options.iter().map(|&word| word.to_owned()).collect();
    let is_overridden = |line: &str| line.split(' ').next().is_some_and(|keyword| said.contains(keyword));
    let defaults: String = DEFAULT_EFFECTIVE
        .lines()
        .filter(|line| !is_overridden(line))
        .map(|line| format!("{line}\n"))
        .collect();
    evaluate_guard(&GuardInputs {
        account,
        login,
        effective: &EffectiveConfig::parse(&format!("{said}{defaults}")),
        connection: &default_neutral_connection("root"),
        reading: &ParsedConfig::new(&build_config_tree(&[(MAIN_CONFIG, main)]), &options, KbdNames::One),
    })
}

/// Returns the rule and the line that refuse root. The text serves both as the configuration and as the output of
/// `sshd -T`.
fn first_refusal(text: &str) -> Option<(&'static str, Option<usize>)> {
    let effective_lines = text.lines().map(|line| match line.split_once(' ') {
        // sshd prints these lists with one pattern per line.
        Some((keyword, value)) if keyword.starts_with("Allow") || keyword.starts_with("Deny") => {
            value.split(' ').map(|pattern| format!("{} {pattern}\n", keyword.to_lowercase())).collect()
        }
        Some((keyword, value)) => format!("{} {value}\n", keyword.to_lowercase()),
        None => String::new(),
    });
    let verdict = guard_report(&root(), &effective_lines.collect::<String>(), text, &[]);
    verdict.refusals.first().map(|finding| (finding.name, finding.line))
}

/// KP-6.19.
#[test]
fn config_rules_refuse_or_allow_login() {
    for (text, expected) in [
        ("", None),
        ("PermitRootLogin no", Some(("PermitRootLogin", Some(1)))),
        ("PermitRootLogin forced-commands-only", Some(("PermitRootLogin", Some(1)))),
        ("PermitRootLogin prohibit-password", None),
        ("PermitRootLogin yes", None),
        ("AuthenticationMethods publickey,password", Some(("AuthenticationMethods", Some(1)))),
        ("AuthenticationMethods publickey,publickey", Some(("AuthenticationMethods", Some(1)))),
        ("AuthenticationMethods publickey,password publickey", None),
        ("MaxSessions 0", Some(("MaxSessions", Some(1)))),
        ("MaxSessions 1", None),
        ("ForceCommand none", None),
        ("ForceCommand /bin/false", Some(("ForceCommand", Some(1)))),
        ("ForceCommand internal-sftp", Some(("ForceCommand", Some(1)))),
        ("ChrootDirectory none", None),
        ("ChrootDirectory /srv/%u", Some(("ChrootDirectory", Some(1)))),
    ] {
        assert_eq!(first_refusal(text), expected, "{text}");
    }
}

#[test]
fn root_is_recognized_by_uid_0() {
    let said = "permitrootlogin no\n";
    assert_eq!(guard_report(&bob(), said, "", &[]).refusals, []);
    let toor = account("toor", 0, "/root", &["root"]);
    let refusals = guard_report(&toor, said, "", &[]).refusals;
    assert_eq!(refusals.iter().map(|finding| finding.name).collect::<Vec<_>>(), ["PermitRootLogin"]);
}

/// KP-6.19.
#[test]
fn guard_refusal_names_deciding_line_or_option() {
    let message = |said: &str, main: &str, options: &[&str]| {
        let verdict = guard_report(&root(), said, main, options);
        verdict.refusals.first().map(|finding| finding.message.clone()).unwrap_or_default()
    };
    let said = "permitrootlogin no\n";
    let main =
        "PermitRootLogin yes\nMatch Group bob\nPermitRootLogin no\nMatch Group wheel\nPermitRootLogin no\n";
    assert_eq!(
        message(said, main, &[]),
        "PermitRootLogin: `no` keeps root out even with a key, because of /etc/ssh/sshd_config line 5 \
         (`PermitRootLogin no`, in a Match block); set `PermitRootLogin prohibit-password` there"
    );
    let by_option = message(said, "PermitRootLogin yes\n", &["-o", "PermitRootLogin=no"]);
    assert!(by_option.contains("the option `-o PermitRootLogin=no`"), "{by_option}");
}

/// KP-6.20.
#[test]
fn account_expiry_and_password_age_rules() {
    let valid_entry = ShadowEntry {
        is_locked: false,
        has_password: true,
        is_empty: false,
        last_change: Some(19000),
        maximum: Some(99999),
        inactive: None,
        expires: None,
    };
    let (pam, no_pam) = ("usepam yes\n", "usepam no\n");
    let expired = Some("Expired account");
    let forced = Some("Forced password change");
    for (name, entry, said, expected) in [
        ("whole", valid_entry, pam, None),
        ("locked, with PAM", ShadowEntry { is_locked: true, ..valid_entry }, pam, None),
        ("ends today", ShadowEntry { expires: Some(20000), ..valid_entry }, pam, expired),
        ("ends today, sshd counts", ShadowEntry { expires: Some(20000), ..valid_entry }, no_pam, None),
        ("ended, sshd sees to it", ShadowEntry { expires: Some(19999), ..valid_entry }, no_pam, None),
        ("ends tomorrow", ShadowEntry { expires: Some(20001), ..valid_entry }, pam, None),
        ("to be changed", ShadowEntry { last_change: Some(0), ..valid_entry }, pam, forced),
        ("to be changed, nobody asks", ShadowEntry { last_change: Some(0), ..valid_entry }, no_pam, None),
        ("aged", ShadowEntry { maximum: Some(999), ..valid_entry }, pam, forced),
        ("just not aged", ShadowEntry { maximum: Some(1000), ..valid_entry }, pam, None),
        (
            "changed in the future",
            ShadowEntry { last_change: Some(30000), maximum: Some(1), ..valid_entry },
            pam,
            None,
        ),
        ("never changed", ShadowEntry { last_change: None, maximum: Some(1), ..valid_entry }, pam, None),
    ] {
        let login = Login { shadow: Shadow::Entry(entry), ..login() };
        let verdict = guard_report_with_login(&bob(), &login, said, "", &[]);
        assert_eq!(verdict.refusals.first().map(|finding| finding.name), expected, "{name}");
    }
}

/// KP-6.19, KP-6.20.
#[test]
fn nologin_shell_and_nologin_file_refuse_login() {
    for (path, expected) in
        [("/bin/bash", None), ("/usr/sbin/nologin", Some("Shell")), ("/bin/false", Some("Shell"))]
    {
        let account = Account { shell: path.into(), ..bob() };
        let verdict = guard_report_with_login(&account, &login(), "", "", &[]);
        assert_eq!(verdict.refusals.first().map(|finding| finding.name), expected, "{path}");
    }
    let closed = Login { nologin: Some("/etc/nologin".into()), ..login() };
    for (account, expected) in [(root(), None), (bob(), Some("nologin"))] {
        let verdict = guard_report_with_login(&account, &closed, "", "", &[]);
        assert_eq!(verdict.refusals.first().map(|finding| finding.name), expected, "{}", account.name);
    }
}

/// KP-6.21.
#[test]
fn pam_unevaluated_rule_gives_warning() {
    let rule =
        PamRule { file: "/etc/pam.d/sshd".into(), line: 7, module: "pam_access".into(), refuses: false };
    let login = Login { pam: vec![rule], ..login() };
    for (said, expected) in
        [("usepam no\n", vec![]), ("usepam yes\n", vec![(WarningReason::PamNotEvaluated, Some(7))])]
    {
        let verdict = guard_report_with_login(&root(), &login, said, "", &[]);
        assert_eq!(verdict.refusals, []);
        let warnings: Vec<_> = verdict.warnings.iter().map(|w| (w.reason, w.line)).collect();
        assert_eq!(warnings, expected);
    }
}
