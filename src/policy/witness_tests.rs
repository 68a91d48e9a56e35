//! Tests of witnesses, one `Match` block at a time.

use super::*;
use crate::policy::connection::default_neutral_connection;
use crate::policy::observation::Shadow;
use crate::policy::sshd_config::KbdNames;
use crate::policy::sshd_config::fixture::build_config_tree;

const MAIN: &str = "/etc/ssh/sshd_config";
const LISTENS: &str = "port 22\nlistenaddress 0.0.0.0:22\n";

fn account(name: &str, uid: u32, groups: &[&str]) -> Account {
    Account {
        name: name.into(),
        uid,
        gid: uid,
        home: "/".into(),
        shell: "/bin/sh".into(),
        groups: groups.iter().map(|&group| group.to_owned()).collect(),
    }
}

fn login() -> Login {
    let person = |account, has_password| LocalAccount { account, has_password, has_key: false };
    Login {
        shadow: Shadow::NoEntry,
        today: 0,
        nologin: None,
        pam: Vec::new(),
        people: vec![
            person(account("root", 0, &["root"]), false),
            person(account("daemon", 1, &["daemon"]), false),
            person(account("bob", 1000, &["bob", "sftp"]), true),
        ],
        groups: ["root", "daemon", "bob", "sftp", "nobodys"].map(str::to_owned).to_vec(),
    }
}

fn match_samples(main: &str, said: &str) -> Vec<MatchSample> {
    let reading = ParsedConfig::new(&build_config_tree(&[(MAIN, main)]), &[], KbdNames::One);
    let effective = EffectiveConfig::parse(&format!("{LISTENS}{said}"));
    sample_match_blocks(
        &reading,
        &default_neutral_connection("root"),
        &account("root", 0, &["root"]),
        &login(),
        &effective,
    )
    .0
}

/// KP-6.8.
#[test]
fn match_block_gets_one_sample_if_satisfiable() {
    for (criteria, said, expected) in [
        ("User bob", "", Some("bob 192.0.2.1 192.0.2.1 192.0.2.2 22")),
        ("User b*,!bo?", "", Some("b 192.0.2.1 192.0.2.1 192.0.2.2 22")),
        ("User *,!root", "", Some("bob 192.0.2.1 192.0.2.1 192.0.2.2 22")),
        ("User ghost,other", "", Some("ghost 192.0.2.1 192.0.2.1 192.0.2.2 22")),
        ("Group sftp", "", Some("bob 192.0.2.1 192.0.2.1 192.0.2.2 22")),
        ("Group nobodys", "", None),
        ("Address 10.0.0.0/8", "", Some("root 10.0.0.1 10.0.0.1 192.0.2.2 22")),
        ("Address 10.0.0.0/8,!10.0.0.1", "", Some("root 10.0.0.2 10.0.0.2 192.0.2.2 22")),
        ("Address 10.1.*", "", Some("root 10.1.1.1 10.1.1.1 192.0.2.2 22")),
        ("Address 2001:db8::/32", "", Some("root 2001:db8::1 2001:db8::1 192.0.2.2 22")),
        ("Address fd00::7,::1", "", Some("root fd00::7 fd00::7 192.0.2.2 22")),
        ("Address 10.0.0.1/8", "", None),
        ("Host 172.16.*", "", Some("root 172.16.1.1 172.16.1.1 192.0.2.2 22")),
        ("Host *.example.org", "", None),
        ("Host *.example.org", "usedns yes\n", Some("root .example.org 192.0.2.1 192.0.2.2 22")),
        ("User bob Address 10.0.0.0/24 LocalPort 22", "", Some("bob 10.0.0.1 10.0.0.1 192.0.2.2 22")),
        ("LocalPort 2222", "", None),
        (
            "LocalPort 2222",
            "port 2222\nlistenaddress 0.0.0.0:2222\n",
            Some("root 192.0.2.1 192.0.2.1 192.0.2.2 2222"),
        ),
        ("LocalAddress 10.9.9.9", "", Some("root 192.0.2.1 192.0.2.1 10.9.9.9 22")),
        ("RDomain red", "", None),
        // The agent queries these connections in any case.
        ("User root", "", None),
        ("all", "", None),
    ] {
        let seen: Vec<String> = match_samples(&format!("Match {criteria}\nX11Forwarding no\n"), said)
            .into_iter()
            .map(|MatchSample { connection: c, .. }| {
                format!("{} {} {} {} {}", c.user, c.host, c.addr, c.laddr, c.lport)
            })
            .collect();
        assert_eq!(seen.first().map(String::as_str), expected, "{criteria}");
    }
    let blocks = "Match User bob\nX11Forwarding no\n".repeat(3);
    assert_eq!(match_samples(&blocks, "").len(), 1, "one connection is asked once");
}

/// KP-6.8.
#[test]
fn match_block_allowing_passwords_is_warned_about() {
    let on = "passwordauthentication yes\npermitrootlogin without-password\n";
    let kbd = "passwordauthentication no\nusepam yes\nkbdinteractiveauthentication yes\n";
    use KbdInteractive::{Follow, Leave};
    for (main, said, kbd, expected) in [
        ("Match User bob\nPasswordAuthentication yes\n", on.to_owned(), Follow, Some(2)),
        (
            "Match User bob\nPasswordAuthentication no\n",
            "passwordauthentication no\n".to_owned(),
            Follow,
            None,
        ),
        ("Match User bob\nKbdInteractiveAuthentication yes\n", kbd.to_owned(), Follow, Some(2)),
        ("Match User bob\nKbdInteractiveAuthentication yes\n", kbd.to_owned(), Leave, None),
        ("Match User bob\nPasswordAuthentication yes\n", format!("{on}denyusers bob\n"), Follow, None),
        ("Match User bob\nPasswordAuthentication yes\n", format!("{on}allowgroups wheel\n"), Follow, None),
        (
            "Match User bob\nPasswordAuthentication yes\n",
            format!("{on}authenticationmethods publickey\n"),
            Follow,
            None,
        ),
        (
            "Match User bob\nPasswordAuthentication yes\n",
            format!("{on}authenticationmethods publickey,password\n"),
            Follow,
            Some(2),
        ),
        // Root's own block allows root only if PermitRootLogin does. A block about an address allows any user.
        ("Match User root Address 10.0.0.0/8\nPasswordAuthentication yes\n", on.to_owned(), Follow, None),
        ("Match Address 10.0.0.0/8\nPasswordAuthentication yes\n", on.to_owned(), Follow, Some(2)),
    ] {
        let reading = ParsedConfig::new(&build_config_tree(&[(MAIN, main)]), &[], KbdNames::One);
        let answers: Vec<(MatchSample, SshdAnswer)> = match_samples(main, "")
            .into_iter()
            .map(|witness| {
                let connection = witness.connection.clone();
                (witness, SshdAnswer { connection, effective: EffectiveConfig::parse(&said) })
            })
            .collect();
        assert!(!answers.is_empty(), "{main}");
        let warnings = warn_passwords_allowed(&reading, &answers, &login().people, kbd);
        assert_eq!(warnings.first().map(|warning| warning.line), expected.map(Some), "{main} {said}");
        assert!(warnings.len() < 2, "{main}");
    }
}

/// The blocks of `main` without a sample connection: their lines and the cause.
fn unsampled_blocks(main: &str, said: &str) -> Vec<(usize, String)> {
    let reading = ParsedConfig::new(&build_config_tree(&[(MAIN, main)]), &[], KbdNames::One);
    let effective = EffectiveConfig::parse(&format!("{LISTENS}{said}"));
    let root = account("root", 0, &["root"]);
    let (_, found) =
        sample_match_blocks(&reading, &default_neutral_connection("root"), &root, &login(), &effective);
    found.into_iter().map(|block| (block.place.1, block.why)).collect()
}

#[test]
fn match_block_without_sample_is_listed() {
    for (criteria, expected) in [
        ("Group domain-admins", Some("group domain-admins")),
        ("Group \"domain admins\"", Some("group domain admins")),
        ("Group nobodys,corp*", Some("group corp*")),
        ("RDomain red", Some("RDomain")),
        ("RDomain red User bob", Some("RDomain")),
        ("Address 10.0.0.0/8,!10.0.0.0/8", Some("no address")),
        // No account can meet these criteria, so there is no finding.
        ("Group nobodys", None),
        ("Group nobody*", None),
        ("Group sftp", None),
        ("Host *.example.org", None),
        ("LocalPort 2222", None),
        ("Address 10.0.0.1/8", None),
        ("User !bob", None),
        ("invalid-user", None),
        ("RDomain red LocalPort 2222", None),
        ("User bob", None),
        ("Address 10.0.0.0/8,!10.0.0.0/28", None),
    ] {
        let found = unsampled_blocks(&format!("Match {criteria}\nPasswordAuthentication yes\n"), "");
        assert_eq!(found.len(), usize::from(expected.is_some()), "{criteria}: {found:?}");
        assert!(found.iter().all(|(_, why)| why.contains(expected.unwrap_or("?"))), "{criteria}: {found:?}");
    }
    let many: String = (0..66).map(|n| format!("Match User user{n}\nX11Forwarding no\n")).collect();
    let lines: Vec<usize> = unsampled_blocks(&many, "").into_iter().map(|(line, _)| line).collect();
    assert_eq!(lines, [129, 131], "a witness each for the first 64");
}

#[test]
fn unsampled_block_text_is_checked_for_passwords() {
    use KbdInteractive::{Follow, Leave};
    let global = |password: &str| {
        EffectiveConfig::parse(&format!(
            "usepam yes\npubkeyauthentication yes\npasswordauthentication {password}\nkbdinteractiveauthentication {password}\n"
        ))
    };
    for (lines, kbd, expected) in [
        ("PasswordAuthentication yes", Follow, Some((WarningReason::MatchAllowsPassword, 2))),
        (
            "X11Forwarding no\nPasswordAuthentication Yes",
            Follow,
            Some((WarningReason::MatchAllowsPassword, 3)),
        ),
        ("KbdInteractiveAuthentication yes", Follow, Some((WarningReason::MatchAllowsPassword, 2))),
        ("ChallengeResponseAuthentication yes", Follow, Some((WarningReason::MatchAllowsPassword, 2))),
        ("KbdInteractiveAuthentication yes", Leave, None),
        ("PasswordAuthentication no", Follow, None),
        ("X11Forwarding no", Follow, None),
        ("PasswordAuthentication yes\nAuthenticationMethods publickey", Follow, None),
        ("AuthenticationMethods publickey,password", Follow, Some((WarningReason::AccountShutOut, 1))),
        ("AuthenticationMethods publickey,password publickey", Follow, None),
        ("PubkeyAuthentication no", Follow, Some((WarningReason::AccountShutOut, 1))),
        (
            "PubkeyAuthentication no\nPasswordAuthentication yes",
            Follow,
            Some((WarningReason::MatchAllowsPassword, 3)),
        ),
    ] {
        let main = format!("Match Group corp\n{lines}\nMatch User bob\nPasswordAuthentication yes\n");
        let reading = ParsedConfig::new(&build_config_tree(&[(MAIN, &main)]), &[], KbdNames::One);
        let effective = EffectiveConfig::parse(LISTENS);
        let blocks = sample_match_blocks(
            &reading,
            &default_neutral_connection("root"),
            &account("root", 0, &["root"]),
            &login(),
            &effective,
        )
        .1;
        let warnings = warn_unsampled_blocks(&reading, &blocks, &global("yes"), &global("no"), kbd);
        let seen = warnings.first().map(|warning| (warning.reason, warning.line.unwrap_or(0)));
        assert_eq!(seen, expected, "{lines}");
        assert!(warnings.len() < 2, "{lines}");
    }
}

/// The witnesses of `main`, each with the same answer.
fn samples_with_answer(main: &str, said: &str) -> Vec<(MatchSample, SshdAnswer)> {
    let effective = EffectiveConfig::parse(said);
    let with = |witness: MatchSample| {
        let answer = SshdAnswer { connection: witness.connection.clone(), effective: effective.clone() };
        (witness, answer)
    };
    match_samples(main, "").into_iter().map(with).collect()
}

/// KP-6.8.
#[test]
fn account_losing_its_last_login_method_is_warned_about() {
    let said = |passwords: &str, rest: &str| {
        format!(
            "usepam yes\npasswordauthentication {passwords}\nkbdinteractiveauthentication {passwords}\n{rest}"
        )
    };
    let key = "pubkeyauthentication yes\n";
    for (block, rest, expected) in [
        ("User bob", format!("{key}authenticationmethods publickey,keyboard-interactive\n"), Some(3)),
        ("User bob", format!("{key}authenticationmethods publickey,keyboard-interactive:pam\n"), Some(3)),
        ("User bob", format!("{key}authenticationmethods password\n"), Some(3)),
        ("Group sftp", format!("{key}authenticationmethods publickey,password password\n"), Some(3)),
        ("Address 10.0.0.0/8", format!("{key}authenticationmethods publickey,password\n"), Some(3)),
        ("User bob", "pubkeyauthentication no\n".to_owned(), Some(3)),
        // There is another login method, or there was none before.
        ("User bob", key.to_owned(), None),
        ("User bob", format!("{key}authenticationmethods publickey,password publickey\n"), None),
        ("User bob", format!("{key}authenticationmethods publickey,password\ndenyusers bob\n"), None),
        ("User bob", format!("{key}authenticationmethods publickey,password\nallowgroups wheel\n"), None),
        ("User bob", format!("{key}authenticationmethods publickey,gssapi-with-mic\n"), None),
        ("User ghost", format!("{key}authenticationmethods password\n"), None),
        // An account without a password cannot log in with one.
        ("User daemon", format!("{key}authenticationmethods password\n"), None),
        ("User daemon", "pubkeyauthentication no\n".to_owned(), None),
    ] {
        let main = format!("# a\n# b\nMatch {block}\nAuthenticationMethods x\n");
        let after = samples_with_answer(&main, &said("no", &rest));
        assert!(!after.is_empty(), "{block}");
        let people = login().people;
        let before: Vec<SshdAnswer> = list_shut_out_connections(&after, &people)
            .into_iter()
            .map(|connection| SshdAnswer {
                connection,
                effective: EffectiveConfig::parse(&said("yes", &rest)),
            })
            .collect();
        let warnings = warn_shut_out_accounts(&before, &after, &people);
        assert_eq!(warnings.first().map(|warning| warning.line), expected.map(Some), "{block} {rest}");
        assert!(warnings.iter().all(|warning| warning.reason == WarningReason::AccountShutOut));
        // There is no warning if the state was the same before.
        let as_after: Vec<SshdAnswer> = after.iter().map(|(_, answer)| answer.clone()).collect();
        assert_eq!(warn_shut_out_accounts(&as_after, &after, &people), []);
    }
}

#[test]
fn match_blocks_that_limit_the_target_user_are_found() {
    let key = "pubkeyauthentication yes\npermitrootlogin yes\n";
    let first =
        SshdAnswer { connection: default_neutral_connection("root"), effective: EffectiveConfig::parse(key) };
    for (block, said, is_one) in [
        ("Address 10.0.0.0/8", "pubkeyauthentication no\npermitrootlogin yes\n", true),
        ("User root Address 10.0.0.0/8", "pubkeyauthentication no\npermitrootlogin yes\n", true),
        ("Address 10.0.0.0/8", "pubkeyauthentication yes\npermitrootlogin yes\nallowusers bob\n", true),
        ("LocalAddress 10.0.0.5", "pubkeyauthentication no\npermitrootlogin yes\n", true),
        ("Address 10.0.0.0/8", key, false),
        (
            "Address 10.0.0.0/8",
            "pubkeyauthentication yes\npermitrootlogin yes\npasswordauthentication no\n",
            false,
        ),
        ("User bob", "pubkeyauthentication no\n", false),
        ("User bob Address 10.0.0.0/8", "pubkeyauthentication no\n", false),
    ] {
        let all = samples_with_answer(&format!("Match {block}\nX11Forwarding no\n"), said);
        assert!(!all.is_empty(), "{block}");
        let limiting = list_limiting_samples(&first, &all);
        let line = limiting.first().and_then(|(witness, _)| witness.place.as_ref()).map(|(_, line)| *line);
        assert_eq!(line, is_one.then_some(1), "{block} {said}");
    }
    // A group's block about a source has a separate witness for the target user.
    let users: Vec<String> =
        match_samples("Match Group root,sftp Address 10.0.0.0/8\nX11Forwarding no\n", "")
            .into_iter()
            .map(|witness| witness.connection.user)
            .collect();
    assert_eq!(users, ["bob", "root"]);
}

#[test]
fn allowed_sources_follow_allowusers_and_match() {
    let from = |main: &str, said: &str| -> Vec<String> {
        let reading = ParsedConfig::new(&build_config_tree(&[(MAIN, main)]), &[], KbdNames::One);
        let effective = EffectiveConfig::parse(&format!("{LISTENS}{said}"));
        list_allowed_sources(
            &reading,
            &default_neutral_connection("root"),
            &account("root", 0, &["root"]),
            &effective,
        )
        .into_iter()
        .map(|source| {
            format!("{} {} by {:?}", source.connection.addr, source.connection.host, source.by.line())
        })
        .collect()
    };
    assert_eq!(
        from("AllowUsers bob root@10.0.0.0/8\n", "allowusers bob\nallowusers root@10.0.0.0/8\n"),
        ["10.0.0.1 10.0.0.1 by Some(1)"]
    );
    assert_eq!(
        from("", "allowusers ro*@172.16.*,!172.16.1.1\n"),
        [] as [&str; 0],
        "the one candidate is negated"
    );
    assert_eq!(
        from("", "allowusers root@host.example\n"),
        [] as [&str; 0],
        "without UseDNS no name ever matches"
    );
    assert_eq!(from("", "usedns yes\nallowusers root@*.example\n"), ["192.0.2.1 .example by None"]);
    assert_eq!(from("", "allowusers root@corp@10.0.0.0/8\n"), [] as [&str; 0]);
    assert_eq!(
        from("Match Address 10.0.0.0/8\nPermitRootLogin yes\nMatch User bob Address 10.1.0.0/16\n", ""),
        ["10.0.0.1 10.0.0.1 by Some(1)"]
    );
    let many: String = (1..9).map(|n| format!("allowusers root@10.0.0.{n}\n")).collect();
    assert_eq!(from("", &many).len(), 6);
}

#[test]
fn group_name_with_blank_is_one_pattern() {
    let connection = default_neutral_connection("root");
    let come = |said: &str, groups: &[&str]| {
        let groups: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
        is_user_allowed(&EffectiveConfig::parse(said), &connection, &groups)
    };
    assert!(come("allowgroups domain admins\n", &["domain admins"]));
    assert!(!come("allowgroups domain admins\n", &["domain"]));
    assert!(!come("denygroups domain users\n", &["domain users"]));
    assert!(come("denygroups domain users\n", &["domain", "users"]));
    assert!(come("AllowGroups domain admins\nAllowGroups wheel\n", &["wheel"]));
    assert!(!come("allowusers a root b\n", &["root"]));
}
