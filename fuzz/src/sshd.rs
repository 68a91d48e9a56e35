//! sshd's configuration files, and what `sshd -T` says of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use keypair_agent::policy::connection::{
    default_neutral_connection, list_loopback_connections, list_neutral_connections,
};
use keypair_agent::policy::edit::{FileEdit, FileKind};
use keypair_agent::policy::effective::EffectiveConfig;
use keypair_agent::policy::lockout::{self, resolve_authorized_keys_path};
use keypair_agent::policy::observation::{Account, ConfigTree, IncludedFiles, LocalAccount, Login, Shadow};
use keypair_agent::policy::outcome::{Reason, Refusal};
use keypair_agent::policy::password;
use keypair_agent::policy::sshd_config::{
    KNOWN_KEYWORDS, KbdNames, ParsedConfig, Place, Provenance, choose_placement, find_overridden_directives,
    parse_include_patterns, parse_managed_directives, parse_rule_hosts, read_directives, render_block,
};
use keypair_agent::policy::witness;

use super::assert_printable;
use super::files::check_block_round_trip;

const MAIN_CONFIG_PATH: &str = "/etc/ssh/sshd_config";

/// The main file, and behind a NUL one that each of its Include directives leads to.
fn build_config_tree(bytes: &[u8]) -> ConfigTree {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let main = PathBuf::from(MAIN_CONFIG_PATH);
    let included = PathBuf::from("/etc/ssh/sshd_config.d/50.conf");
    let mut files = BTreeMap::from([(main.clone(), parts.next().unwrap_or_default().to_vec())]);
    files.extend(parts.next().map(|content| (included.clone(), content.to_vec())));
    let mut includes = BTreeMap::new();
    for (path, content) in &files {
        for (line, patterns) in parse_include_patterns(content) {
            let leads = |pattern| IncludedFiles {
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
    let tree = build_config_tree(bytes);
    for directive in read_directives(&tree) {
        let lines = tree.files[&directive.file].split(|byte| *byte == b'\n').count();
        assert!((1..=lines).contains(&directive.line));
    }
    let account = test_account();
    let anybody = default_neutral_connection(&account.name);
    for content in tree.files.values() {
        list_neutral_connections(&account.name, &EffectiveConfig::default(), &parse_rule_hosts(content));
    }
    for names in [KbdNames::One, KbdNames::Two] {
        let reading = ParsedConfig::new(&tree, &[], names);
        for keyword in KNOWN_KEYWORDS {
            reading.resolve_value(keyword.name, &anybody, Some(&account.groups));
            reading.find_value_source(keyword.name, "no", &anybody, None);
        }
        let (known, _) = witness::sample_match_blocks(
            &reading,
            &anybody,
            &account,
            &test_login(),
            &EffectiveConfig::default(),
        );
        assert!(known.iter().all(|witness| witness.connection != anybody));
    }
    let block = render_test_block();
    match choose_placement(&tree, true) {
        Err(refusal) => panic!("the main file may be written: {}", refusal.message),
        Ok(placement) if placement.place == Place::TopBlock(tree.main.clone()) => {
            let mut set = tree.clone();
            let main = set.files.get_mut(&tree.main).unwrap();
            let inserted = block.clone().into_bytes();
            if let Some(edit) =
                FileEdit::edit_block(&tree.main, FileKind::SshdConfig, Some(main.clone().into()), inserted)
            {
                *main = edit.after.unwrap().into_vec();
            }
            assert!(
                find_overridden_directives(&set, &placement.place)
                    .iter()
                    .all(|line| line.line > 4 || line.file != tree.main)
            );
        }
        Ok(_) => {}
    }
    assert_eq!(parse_managed_directives(block.as_bytes()).len(), 1);
    for content in tree.files.values() {
        check_block_round_trip(FileKind::SshdConfig, content, block.clone().into_bytes());
    }
}

fn render_test_block() -> String {
    let provenance = Provenance { when: "now", command_id: "c-1", revert_command: "keypair-agent undo" };
    render_block(&[("PasswordAuthentication".to_owned(), "no".to_owned())], &provenance)
}

fn test_account() -> Account {
    Account {
        name: "bob".to_owned(),
        uid: 1000,
        gid: 1000,
        home: PathBuf::from("/home/bob"),
        shell: PathBuf::from("/bin/sh"),
        groups: vec!["bob".to_owned(), "sudo".to_owned()],
    }
}

fn test_login() -> Login {
    Login {
        shadow: Shadow::NoEntry,
        today: 20_000,
        nologin: None,
        pam: Vec::new(),
        people: vec![LocalAccount { account: test_account(), has_password: true, has_key: false }],
        groups: Vec::new(),
    }
}

/// What `sshd -T` says, and behind a NUL the configuration that says it.
pub fn sshd_answer(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let effective = EffectiveConfig::parse(&String::from_utf8_lossy(parts.next().unwrap_or_default()));
    let tree = build_config_tree(parts.next().unwrap_or_default());
    let reading = ParsedConfig::new(&tree, &[], KbdNames::One);
    let account = test_account();
    let mut all = list_neutral_connections(&account.name, &effective, &[]);
    all.extend(
        list_loopback_connections(&account.name, &effective).into_iter().map(|(_, connection)| connection),
    );
    all.push(default_neutral_connection(&account.name));
    if let Err(refusal) = resolve_authorized_keys_path(
        &effective,
        &reading,
        &default_neutral_connection(&account.name),
        &account,
    ) {
        assert_printable(&refusal.message);
    }
    for connection in all.iter().take(8) {
        let login = test_login();
        let facts = lockout::GuardInputs {
            account: &account,
            login: &login,
            effective: &effective,
            connection,
            reading: &reading,
        };
        let verdict = lockout::evaluate_guard(&facts);
        for finding in verdict.refusals {
            assert_printable(&Refusal::new(Reason::LockoutGuard, finding.message).message);
        }
        verdict.warnings.iter().for_each(|warning| assert_printable(&warning.message));
        witness::sample_match_blocks(&reading, connection, &account, &login, &effective);
    }
    password::can_log_in_with_password(&test_login(), &account, &effective);
    effective.offered_methods();
    assert!(lockout::is_same_except_passwords(&effective, &effective));
}
