//! The guard, rule by rule.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::policy::connection::anybody;
use crate::policy::observation::{
    EntryKind, FileId, PamRule, PathFact, Revocation, Shadow, ShadowEntry, Shell,
};
use crate::policy::outcome::{Reason, WarningReason};
use crate::policy::sshd_config::fixture::tree;
use crate::policy::sshd_config::{Names, Reading};

const MAIN: &str = "/etc/ssh/sshd_config";
const SAID: &str = "pubkeyauthentication yes\nauthorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2\n\
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
        group_is_private: false,
    }
}

fn fact(path: &str, kind: EntryKind, id: u32, mode: u32) -> PathFact {
    PathFact { path: path.into(), kind, uid: id, gid: id, mode }
}

fn key_file(account: &Account, facts: Vec<PathFact>) -> KeyFile {
    KeyFile {
        path: account.home.join(".ssh/authorized_keys"),
        id: FileId { device: 0, inode: 0, name: "authorized_keys".into() },
        mount: None,
        content: None,
        missing_directory: None,
        path_facts: facts,
    }
}

fn login() -> Login {
    Login {
        shell: Shell::Runs,
        shadow: Shadow::NoEntry,
        today: 20000,
        nologin: None,
        pam: Vec::new(),
        revocations: Default::default(),
        people: Vec::new(),
    }
}

const ED: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF86eSkqX3I2gC8oUEbWaJ54JKEt/jagDdVjCuOifDfx";

fn key() -> PublicKey {
    PublicKey::parse(ED).unwrap()
}

/// The verdict on `account` where `sshd -T` says `said` ahead of what lets him in, and `main` is the text.
fn verdict(account: &Account, facts: Vec<PathFact>, said: &str, main: &str, options: &[&str]) -> Verdict {
    whole_verdict(account, &login(), &key(), facts, said, main, options)
}

/// The same with what beside sshd's settings decides, and by another key.
fn whole_verdict(
    account: &Account,
    login: &Login,
    key: &PublicKey,
    facts: Vec<PathFact>,
    said: &str,
    main: &str,
    options: &[&str],
) -> Verdict {
    let options: Vec<String> = options.iter().map(|&word| word.to_owned()).collect();
    let is_said = |line: &str| line.split(' ').next().is_some_and(|keyword| said.contains(keyword));
    let defaults: String =
        SAID.lines().filter(|line| !is_said(line)).map(|line| format!("{line}\n")).collect();
    judge(&Facts {
        account,
        key,
        login,
        key_file: &key_file(account, facts),
        effective: &Effective::parse(&format!("{said}{defaults}")),
        connection: &anybody("root"),
        reading: &Reading::new(&tree(&[(MAIN, main)]), &options, Names::One),
    })
}

/// The rule and the line that refuse root, by one configuration that also is what `sshd -T` says.
fn refused(text: &str) -> Option<(Rule, Option<usize>)> {
    let said = text.lines().map(|line| match line.split_once(' ') {
        Some((keyword, value)) => format!("{} {value}\n", keyword.to_lowercase()),
        None => String::new(),
    });
    let verdict = verdict(&root(), vec![], &said.collect::<String>(), text, &[]);
    verdict.refusals.first().map(|finding| (finding.rule, finding.line))
}

#[test]
fn each_rule_of_the_configuration() {
    for (text, expected) in [
        ("", None),
        ("PubkeyAuthentication no", Some((Rule::PubkeyAuthentication, Some(1)))),
        ("PermitRootLogin no", Some((Rule::PermitRootLogin, Some(1)))),
        ("PermitRootLogin forced-commands-only", Some((Rule::PermitRootLogin, Some(1)))),
        ("PermitRootLogin prohibit-password", None),
        ("PermitRootLogin yes", None),
        ("AuthenticationMethods publickey,password", Some((Rule::AuthenticationMethods, Some(1)))),
        ("AuthenticationMethods publickey,publickey", Some((Rule::AuthenticationMethods, Some(1)))),
        ("AuthenticationMethods publickey,password publickey", None),
        ("DenyUsers bob", None),
        ("DenyUsers bob\nDenyUsers ro*", Some((Rule::DenyUsers, Some(2)))),
        ("DenyUsers root@10.0.0.0/8", None),
        ("DenyUsers root@192.0.2.0/24", Some((Rule::DenyUsers, Some(1)))),
        ("DenyUsers root@10.0.0.1/8", Some((Rule::DenyUsers, Some(1)))),
        ("AllowUsers bob", Some((Rule::AllowUsers, Some(1)))),
        ("AllowUsers bob\nAllowUsers root", None),
        ("AllowUsers root@!10.0.0.0/8", Some((Rule::AllowUsers, Some(1)))),
        ("AllowUsers !bob", Some((Rule::AllowUsers, Some(1)))),
        ("DenyGroups whee?", Some((Rule::DenyGroups, Some(1)))),
        ("DenyGroups users", None),
        ("AllowGroups users wheel", None),
        ("AllowGroups users", Some((Rule::AllowGroups, Some(1)))),
        ("AuthorizedKeysFile /etc/keys", Some((Rule::AuthorizedKeysFile, Some(1)))),
        ("AuthorizedKeysFile none", Some((Rule::AuthorizedKeysFile, Some(1)))),
        ("AuthorizedKeysFile /etc/keys %h/.ssh/authorized_keys", None),
        ("PubkeyAcceptedAlgorithms rsa-sha2-512,ssh-rsa", Some((Rule::PubkeyAcceptedAlgorithms, Some(1)))),
        ("UsePAM no\nPubkeyAcceptedKeyTypes ecdsa-*", Some((Rule::PubkeyAcceptedAlgorithms, Some(2)))),
        ("PubkeyAcceptedAlgorithms *ed25519", None),
        ("RequiredRSASize 16384", None),
        ("RefuseConnection no", None),
        ("RefuseConnection yes", Some((Rule::RefuseConnection, Some(1)))),
        ("MaxSessions 0", Some((Rule::MaxSessions, Some(1)))),
        ("MaxSessions 1", None),
        ("ForceCommand none", None),
        ("ForceCommand /bin/false", Some((Rule::ForceCommand, Some(1)))),
        ("ForceCommand internal-sftp", Some((Rule::ForceCommand, Some(1)))),
        ("ChrootDirectory none", None),
        ("ChrootDirectory /srv/%u", Some((Rule::ChrootDirectory, Some(1)))),
        ("RevokedKeys none", None),
        ("RevokedKeys /etc/ssh/not-looked-at", None),
    ] {
        assert_eq!(refused(text), expected, "{text}");
    }
}

#[test]
fn root_is_uid_0_by_any_name() {
    let said = "permitrootlogin no\n";
    assert_eq!(verdict(&bob(), vec![], said, "", &[]).refusals, []);
    let toor = account("toor", 0, "/root", &["root"]);
    let refusals = verdict(&toor, vec![], said, "", &[]).refusals;
    assert_eq!(refusals.iter().map(|finding| finding.rule).collect::<Vec<_>>(), [Rule::PermitRootLogin]);
}

#[test]
fn sources() {
    for (list, warned) in [
        ("root", false),
        ("root@*", false),
        ("root@10.0.0.0/8", true),
        ("root@192.0.2.0/24", true),
        ("root@*,!10.0.0.0/8", true),
        ("root@10.0.0.0/8 root", false),
    ] {
        let (said, main) = (format!("allowusers {list}\n"), format!("UsePAM yes\nAllowUsers {list}\n"));
        let verdict = verdict(&root(), vec![], &said, &main, &[]);
        assert_eq!(verdict.refusals, [], "{list}");
        let warnings: Vec<_> = verdict.warnings.iter().map(|w| (w.reason, w.line)).collect();
        assert_eq!(warnings.contains(&(WarningReason::SourceLimited, Some(2))), warned, "{list}");
    }
}

#[test]
fn the_place_that_decides_is_named() {
    let message = |said: &str, main: &str, options: &[&str]| {
        let verdict = verdict(&root(), vec![], said, main, options);
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
    let by_default = message("allowusers bob\n", "", &["-oAllowUsers=bob"]);
    assert!(by_default.contains("`-o AllowUsers=bob`"), "{by_default}");
    let replaced = "AllowUsers root\nMatch Address 192.0.2.0/24\nAllowUsers bob\n";
    assert!(message("allowusers bob\n", replaced, &[]).contains("line 3"));
}

#[test]
fn owners_and_modes() {
    use EntryKind::{Directory, File, Other};
    let path = |file: (u32, u32), ssh: (u32, u32), home: (u32, u32)| {
        vec![
            fact("/home/bob/.ssh/authorized_keys", File, file.0, file.1),
            fact("/home/bob/.ssh", Directory, ssh.0, ssh.1),
            fact("/home/bob", Directory, home.0, home.1),
        ]
    };
    let private = Account { group_is_private: true, ..bob() };
    let strict = Some(Rule::StrictModes);
    let unread = Some(Rule::AuthorizedKeysFile);
    for (name, account, facts, expected) in [
        ("right", bob(), path((1000, 0o600), (1000, 0o700), (1000, 0o755)), None),
        ("root's, readable", bob(), path((0, 0o644), (0, 0o755), (0, 0o755)), None),
        ("root's, unreadable", bob(), path((0, 0o600), (0, 0o755), (0, 0o755)), unread),
        ("root's, closed directory", bob(), path((0, 0o644), (0, 0o700), (0, 0o755)), unread),
        ("another's file", bob(), path((1001, 0o644), (1000, 0o700), (1000, 0o755)), strict),
        ("another's home", bob(), path((1000, 0o600), (1000, 0o700), (1001, 0o755)), strict),
        ("file writable by all", bob(), path((1000, 0o602), (1000, 0o700), (1000, 0o755)), strict),
        ("home writable by a group", bob(), path((1000, 0o600), (1000, 0o700), (1000, 0o775)), strict),
        (
            "home writable by his own",
            private.clone(),
            path((1000, 0o600), (1000, 0o700), (1000, 0o775)),
            None,
        ),
        ("home writable by all", private.clone(), path((1000, 0o600), (1000, 0o700), (1000, 0o777)), strict),
        ("root's, writable by a group", private, path((1000, 0o600), (1000, 0o700), (0, 0o775)), strict),
        ("nothing there yet", bob(), vec![fact("/home/bob", Directory, 1000, 0o755)], None),
        ("a pipe", bob(), vec![fact("/home/bob/.ssh/authorized_keys", Other, 1000, 0o600)], unread),
        ("a directory", bob(), vec![fact("/home/bob/.ssh/authorized_keys", Directory, 1000, 0o700)], unread),
    ] {
        let verdict = verdict(&account, facts, "", "", &[]);
        assert_eq!(verdict.refusals.first().map(|finding| finding.rule), expected, "{name}");
    }
    let open = path((1000, 0o666), (1000, 0o777), (1000, 0o777));
    assert_eq!(verdict(&bob(), open, "strictmodes no\n", "", &[]).refusals, []);
    let loose = path((1000, 0o600), (1000, 0o700), (1000, 0o777));
    let refusals = verdict(&bob(), loose, "", "", &[]).refusals;
    assert_eq!(
        refusals.first().map(|finding| finding.message.as_str()),
        Some("StrictModes: /home/bob may be written by others (mode 0777); chmod go-w /home/bob")
    );
}

#[test]
fn the_file_sshd_reads() {
    let bob = bob();
    let nobody = account("nobody", 65534, "/", &["nogroup"]);
    for (account, said, expected) in [
        (&bob, ".ssh/authorized_keys .ssh/authorized_keys2", Some("/home/bob/.ssh/authorized_keys")),
        (&bob, "%h/keys", Some("/home/bob/keys")),
        (&bob, "/etc/keys /etc/ssh/keys/%u", Some("/etc/ssh/keys/bob")),
        (&bob, "/etc/ssh/keys/%U.pub", Some("/etc/ssh/keys/1000.pub")),
        (&bob, "/etc/ssh/bob/keys", Some("/etc/ssh/bob/keys")),
        (&bob, "/home/bob/.ssh/a", Some("/home/bob/.ssh/a")),
        (&bob, "/home/bobby/.ssh/a", None),
        (&bob, "/etc/ssh/keys", None),
        (&bob, "/etc/ssh/%%u", None),
        (&bob, "../keys", None),
        (&bob, "%x/keys", None),
        (&bob, "none", None),
        (&bob, "", None),
        (&nobody, "/etc/keys", None),
        (&nobody, ".ssh/authorized_keys", Some("/.ssh/authorized_keys")),
    ] {
        let path = authorized_keys_path(&Effective::parse(&format!("authorizedkeysfile {said}")), account);
        match expected {
            Some(expected) => assert_eq!(path, Ok(PathBuf::from(expected)), "{said}"),
            None => assert_eq!(
                path.map_err(|refusal| refusal.reason),
                Err(Reason::AuthorizedKeysUnsupported),
                "{said}"
            ),
        }
    }
}

#[test]
fn where_a_password_is_left() {
    for (account, said, left) in [
        (bob(), "passwordauthentication yes\n", true),
        (bob(), "passwordauthentication no\n", false),
        (bob(), "passwordauthentication yes\nauthenticationmethods publickey\n", false),
        (bob(), "passwordauthentication no\nusepam yes\nkbdinteractiveauthentication yes\n", true),
        (bob(), "passwordauthentication no\nusepam no\nkbdinteractiveauthentication yes\n", false),
        (root(), "passwordauthentication yes\npermitrootlogin without-password\n", false),
        (root(), "passwordauthentication yes\npermitrootlogin yes\n", true),
    ] {
        assert_eq!(password_would_let_in(&Effective::parse(said), &account), left, "{said}");
    }
}

#[test]
fn the_account_itself() {
    let whole = ShadowEntry {
        is_locked: false,
        has_password: true,
        last_change: Some(19000),
        maximum: Some(99999),
        inactive: None,
        expires: None,
    };
    let (pam, no_pam) = ("usepam yes\n", "usepam no\n");
    let expired = Some(Rule::ExpiredAccount);
    let forced = Some(Rule::ForcedPasswordChange);
    for (name, entry, said, expected) in [
        ("whole", whole, pam, None),
        ("locked, with PAM", ShadowEntry { is_locked: true, ..whole }, pam, None),
        ("locked", ShadowEntry { is_locked: true, ..whole }, no_pam, Some(Rule::LockedAccount)),
        ("ends today", ShadowEntry { expires: Some(20000), ..whole }, pam, expired),
        ("ends today, sshd counts", ShadowEntry { expires: Some(20000), ..whole }, no_pam, None),
        ("ended", ShadowEntry { expires: Some(19999), ..whole }, no_pam, expired),
        ("ends tomorrow", ShadowEntry { expires: Some(20001), ..whole }, pam, None),
        ("to be changed", ShadowEntry { last_change: Some(0), ..whole }, pam, forced),
        ("to be changed, nobody asks", ShadowEntry { last_change: Some(0), ..whole }, no_pam, None),
        ("aged", ShadowEntry { maximum: Some(999), ..whole }, pam, forced),
        ("just not aged", ShadowEntry { maximum: Some(1000), ..whole }, pam, None),
        (
            "changed in the future",
            ShadowEntry { last_change: Some(30000), maximum: Some(1), ..whole },
            pam,
            None,
        ),
        ("never changed", ShadowEntry { last_change: None, maximum: Some(1), ..whole }, pam, None),
    ] {
        let login = Login { shadow: Shadow::Entry(entry), ..login() };
        let verdict = whole_verdict(&bob(), &login, &key(), vec![], said, "", &[]);
        assert_eq!(verdict.refusals.first().map(|finding| finding.rule), expected, "{name}");
    }
}

#[test]
fn shells_and_nologin() {
    let with_shell = |path: &str, shell| {
        let account = Account { shell: path.into(), ..bob() };
        let verdict = whole_verdict(&account, &Login { shell, ..login() }, &key(), vec![], "", "", &[]);
        verdict.refusals.first().map(|finding| finding.rule)
    };
    for (path, shell, expected) in [
        ("/bin/bash", Shell::Runs, None),
        ("/bin/bash", Shell::Missing, Some(Rule::Shell)),
        ("/bin/bash", Shell::NotExecutable, Some(Rule::Shell)),
        ("/usr/sbin/nologin", Shell::Runs, Some(Rule::Shell)),
        ("/bin/false", Shell::Runs, Some(Rule::Shell)),
    ] {
        assert_eq!(with_shell(path, shell), expected, "{path} {shell:?}");
    }
    let closed = Login { nologin: Some("/etc/nologin".into()), ..login() };
    for (account, expected) in [(root(), None), (bob(), Some(Rule::Nologin))] {
        let verdict = whole_verdict(&account, &closed, &key(), vec![], "", "", &[]);
        assert_eq!(verdict.refusals.first().map(|finding| finding.rule), expected, "{}", account.name);
    }
}

#[test]
fn keys_that_sshd_does_not_take() {
    let rsa = PublicKey::parse(include_str!("rsa3072.pub").trim_end()).unwrap();
    let judged = |key: &PublicKey, login: &Login, said: &str| {
        let verdict = whole_verdict(&root(), login, key, vec![], said, "", &[]);
        verdict.refusals.first().map(|finding| finding.rule)
    };
    assert_eq!(judged(&rsa, &login(), "pubkeyacceptedalgorithms rsa-sha2-256\nrequiredrsasize 3072\n"), None);
    assert_eq!(
        judged(&rsa, &login(), "pubkeyacceptedalgorithms ssh-rsa\n"),
        Some(Rule::PubkeyAcceptedAlgorithms),
        "no client of today signs by SHA-1"
    );
    assert_eq!(judged(&rsa, &login(), "requiredrsasize 4096\n"), Some(Rule::RequiredRSASize));
    for (revocation, expected) in [
        (Revocation::NotRevoked, None),
        (Revocation::Revoked, Some(Rule::RevokedKeys)),
        (Revocation::Unreadable("gone".into()), Some(Rule::RevokedKeys)),
    ] {
        let place = (PathBuf::from("/etc/revoked"), key().fingerprint().sha256);
        let login = Login { revocations: [(place, revocation)].into(), ..login() };
        assert_eq!(judged(&key(), &login, "revokedkeys /etc/revoked\n"), expected);
        assert_eq!(judged(&rsa, &login, "revokedkeys /etc/revoked\n"), None);
    }
}

#[test]
fn rules_of_pam_that_nobody_evaluates() {
    let rule = PamRule { file: "/etc/pam.d/sshd".into(), line: 7, module: "pam_access".into() };
    let login = Login { pam: vec![rule], ..login() };
    for (said, expected) in
        [("usepam no\n", vec![]), ("usepam yes\n", vec![(WarningReason::PamNotEvaluated, Some(7))])]
    {
        let verdict = whole_verdict(&root(), &login, &key(), vec![], said, "", &[]);
        assert_eq!(verdict.refusals, []);
        let warnings: Vec<_> = verdict.warnings.iter().map(|w| (w.reason, w.line)).collect();
        assert_eq!(warnings, expected);
    }
}
