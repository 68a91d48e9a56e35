//! sshd's configuration files, and what `sshd -T` says of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use keypair_agent::policy::connection::{anybody, connections, loopbacks};
use keypair_agent::policy::edit::{FileEdit, FileKind};
use keypair_agent::policy::effective::Effective;
use keypair_agent::policy::lockout::{self, authorized_keys_path};
use keypair_agent::policy::observation::{Account, ConfigTree, Included, Login, Person, Shadow};
use keypair_agent::policy::outcome::{Reason, Refusal};
use keypair_agent::policy::password;
use keypair_agent::policy::sshd_config::{
    KNOWN, Names, Place, Provenance, Reading, contrary_lines, directives, directives_of_ours,
    include_patterns, named_hosts, placement, render_block,
};
use keypair_agent::policy::witness;

use super::files::there_and_back;
use super::is_fit_to_print;

const MAIN: &str = "/etc/ssh/sshd_config";

/// The main file, and behind a NUL one that each of its Include directives leads to.
fn tree(bytes: &[u8]) -> ConfigTree {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let main = PathBuf::from(MAIN);
    let included = PathBuf::from("/etc/ssh/sshd_config.d/50.conf");
    let mut files = BTreeMap::from([(main.clone(), parts.next().unwrap_or_default().to_vec())]);
    files.extend(parts.next().map(|content| (included.clone(), content.to_vec())));
    let mut includes = BTreeMap::new();
    for (path, content) in &files {
        for (line, patterns) in include_patterns(content) {
            let leads = |pattern| Included {
                pattern,
                directory_exists: true,
                files: files.keys().filter(|file| **file == included).cloned().collect(),
            };
            includes.insert((path.clone(), line), patterns.into_iter().map(leads).collect());
        }
    }
    ConfigTree { main, files, includes }
}

/// sshd's configuration (KP-6.7).
pub fn sshd_config(bytes: &[u8]) {
    let tree = tree(bytes);
    for directive in directives(&tree) {
        let lines = tree.files[&directive.file].split(|byte| *byte == b'\n').count();
        assert!((1..=lines).contains(&directive.line));
    }
    let account = account();
    let anybody = anybody(&account.name);
    for content in tree.files.values() {
        connections(&account.name, &Effective::default(), &named_hosts(content));
    }
    for names in [Names::One, Names::Two] {
        let reading = Reading::new(&tree, &[], names);
        for keyword in KNOWN {
            reading.decision(keyword.name, &anybody, Some(&account.groups));
            reading.explain(keyword.name, "no", &anybody, None);
        }
        let (known, _) = witness::examine(&reading, &anybody, &account, &login(), &Effective::default());
        assert!(known.iter().all(|witness| witness.connection != anybody));
    }
    let block = block();
    match placement(&tree, true) {
        Err(refusal) => panic!("the main file may be written: {}", refusal.message),
        Ok(placement) if placement.place == Place::TopBlock(tree.main.clone()) => {
            let mut set = tree.clone();
            let main = set.files.get_mut(&tree.main).unwrap();
            let inserted = block.clone().into_bytes();
            if let Some(edit) =
                FileEdit::block(&tree.main, FileKind::SshdConfig, Some(main.clone().into()), inserted)
            {
                *main = edit.after.unwrap().into_vec();
            }
            assert!(
                contrary_lines(&set, &placement.place)
                    .iter()
                    .all(|line| line.line > 4 || line.file != tree.main)
            );
        }
        Ok(_) => {}
    }
    assert_eq!(directives_of_ours(block.as_bytes()).len(), 1);
    for content in tree.files.values() {
        there_and_back(FileKind::SshdConfig, content, block.clone().into_bytes());
    }
}

fn block() -> String {
    let provenance = Provenance { when: "now", command_id: "c-1", take_back: "keypair-agent undo" };
    render_block(&[("PasswordAuthentication".to_owned(), "no".to_owned())], &provenance)
}

fn account() -> Account {
    Account {
        name: "bob".to_owned(),
        uid: 1000,
        gid: 1000,
        home: PathBuf::from("/home/bob"),
        shell: PathBuf::from("/bin/sh"),
        groups: vec!["bob".to_owned(), "sudo".to_owned()],
    }
}

fn login() -> Login {
    Login {
        shadow: Shadow::NoEntry,
        today: 20_000,
        nologin: None,
        pam: Vec::new(),
        people: vec![Person { account: account(), has_password: true, has_key: false }],
        groups: Vec::new(),
    }
}

/// What `sshd -T` says, and behind a NUL the configuration that says it.
pub fn sshd_answer(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let effective = Effective::parse(&String::from_utf8_lossy(parts.next().unwrap_or_default()));
    let tree = tree(parts.next().unwrap_or_default());
    let reading = Reading::new(&tree, &[], Names::One);
    let account = account();
    let mut all = connections(&account.name, &effective, &[]);
    all.extend(loopbacks(&account.name, &effective).into_iter().map(|(_, connection)| connection));
    all.push(anybody(&account.name));
    if let Err(refusal) = authorized_keys_path(&effective, &reading, &anybody(&account.name), &account) {
        is_fit_to_print(&refusal.message);
    }
    for connection in all.iter().take(8) {
        let login = login();
        let facts = lockout::Facts {
            account: &account,
            login: &login,
            effective: &effective,
            connection,
            reading: &reading,
        };
        let verdict = lockout::judge(&facts);
        for finding in verdict.refusals {
            is_fit_to_print(&Refusal::new(Reason::LockoutGuard, finding.message).message);
        }
        verdict.warnings.iter().for_each(|warning| is_fit_to_print(&warning.message));
        witness::examine(&reading, connection, &account, &login, &effective);
    }
    password::would_let_in(&login(), &account, &effective);
    effective.offered_methods();
    assert!(lockout::says_the_same(&effective, &effective));
}
