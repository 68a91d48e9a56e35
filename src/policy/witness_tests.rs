//! Witnesses, block by block.

use super::*;
use crate::policy::connection::anybody;
use crate::policy::observation::{Shadow, Shell};
use crate::policy::sshd_config::Names;
use crate::policy::sshd_config::fixture::tree;

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
        group_is_private: false,
    }
}

fn login() -> Login {
    let person = |account, has_password| Person { account, has_password, has_key: false };
    Login {
        shell: Shell::Runs,
        shadow: Shadow::NoEntry,
        today: 0,
        nologin: None,
        pam: Vec::new(),
        revocations: Default::default(),
        people: vec![
            person(account("root", 0, &["root"]), false),
            person(account("daemon", 1, &["daemon"]), false),
            person(account("bob", 1000, &["bob", "sftp"]), true),
        ],
        groups: ["root", "daemon", "bob", "sftp", "nobodys"].map(str::to_owned).to_vec(),
    }
}

fn found(main: &str, said: &str) -> Vec<Witness> {
    let reading = Reading::new(&tree(&[(MAIN, main)]), &[], Names::One);
    let effective = Effective::parse(&format!("{LISTENS}{said}"));
    witnesses(&reading, &anybody("root"), &account("root", 0, &["root"]), &login(), &effective)
}

#[test]
fn one_for_each_block_that_somebody_meets() {
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
        // Those who must say what was asked are asked anyway.
        ("User root", "", None),
        ("all", "", None),
    ] {
        let seen: Vec<String> = found(&format!("Match {criteria}\nX11Forwarding no\n"), said)
            .into_iter()
            .map(|Witness { connection: c, .. }| {
                format!("{} {} {} {} {}", c.user, c.host, c.addr, c.laddr, c.lport)
            })
            .collect();
        assert_eq!(seen.first().map(String::as_str), expected, "{criteria}");
    }
    let blocks = "Match User bob\nX11Forwarding no\n".repeat(3);
    assert_eq!(found(&blocks, "").len(), 1, "one connection is asked once");
}

#[test]
fn who_may_still_use_a_password() {
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
        // Root's own block lets root in only where PermitRootLogin does; an address's lets anybody.
        ("Match User root Address 10.0.0.0/8\nPasswordAuthentication yes\n", on.to_owned(), Follow, None),
        ("Match Address 10.0.0.0/8\nPasswordAuthentication yes\n", on.to_owned(), Follow, Some(2)),
    ] {
        let reading = Reading::new(&tree(&[(MAIN, main)]), &[], Names::One);
        let answers: Vec<(Witness, Answer)> = found(main, "")
            .into_iter()
            .map(|witness| {
                let connection = witness.connection.clone();
                (witness, Answer { connection, effective: Effective::parse(&said) })
            })
            .collect();
        assert!(!answers.is_empty(), "{main}");
        let warnings = allowed(&reading, &answers, &login().people, kbd);
        assert_eq!(warnings.first().map(|warning| warning.line), expected.map(Some), "{main} {said}");
        assert!(warnings.len() < 2, "{main}");
    }
}
