//! Tables for the files of AuthorizedKeysFile.

use proptest::prelude::*;

use super::*;
use crate::policy::connection::default_neutral_connection;
use crate::policy::sshd_config::KbdNames;
use crate::policy::sshd_config::fixture::build_config_tree;

const MAIN: &str = "/etc/ssh/sshd_config";

fn account(name: &str, uid: u32, home: &str) -> Account {
    Account {
        name: name.into(),
        uid,
        gid: uid,
        home: home.into(),
        shell: "/bin/sh".into(),
        groups: vec![name.to_owned()],
    }
}

fn bob() -> Account {
    account("bob", 1000, "/home/bob")
}

/// The path to which the agent writes for this user if `sshd -T` prints `printed` and the main file is `main`.
fn managed_path(printed: &str, main: &str, account: &Account) -> Result<String, Reason> {
    let reading = ParsedConfig::new(&build_config_tree(&[(MAIN, main)]), &[], KbdNames::One);
    let effective = EffectiveConfig::parse(printed);
    let path = resolve_authorized_keys_path(
        &effective,
        &reading,
        &default_neutral_connection(&account.name),
        account,
    );
    path.map(|path| path.to_string_lossy().into_owned()).map_err(|refusal| refusal.reason)
}

/// KP-5.1.
#[test]
fn key_path_is_first_per_user_path() {
    let (bob, root) = (bob(), account("root", 0, "/root"));
    let (nobody, odd) = (account("nobody", 65534, "/"), account("odd", 1001, "/home/[odd]"));
    for (account, said, expected) in [
        (&bob, ".ssh/authorized_keys .ssh/authorized_keys2", Some("/home/bob/.ssh/authorized_keys")),
        (&bob, "%h/keys", Some("/home/bob/keys")),
        (&bob, "/etc/keys /etc/ssh/keys/%u", Some("/etc/ssh/keys/bob")),
        (&bob, "/etc/ssh/keys/%U.pub", Some("/etc/ssh/keys/1000.pub")),
        (&bob, "/etc/ssh/keys%h/ak", Some("/etc/ssh/keys/home/bob/ak")),
        (&bob, "/home/bob/.ssh/a", Some("/home/bob/.ssh/a")),
        (&root, "/root/.ssh/a", Some("/root/.ssh/a")),
        // One file for all users, whatever its path contains.
        (&bob, "/etc/ssh/bob/keys", None),
        (&bob, "/etc/ssh/bob", None),
        (&bob, "/home/bobby/.ssh/a", None),
        (&bob, "/home/bob/../joe/a", None),
        (&bob, "/etc/ssh/keys", None),
        (&bob, "/etc/ssh/%%u", None),
        (&bob, "../keys", None),
        (&bob, "%h/../keys", None),
        (&bob, "%x/keys", None),
        (&bob, "none", None),
        (&bob, "None", None),
        (&bob, "", None),
        (&nobody, "/etc/keys", None),
        (&nobody, "/etc/keys%h/ak", None),
        (&nobody, ".ssh/authorized_keys", Some("/.ssh/authorized_keys")),
        // The agent never writes to patterns.
        (&bob, ".ssh/authorized_keys*", None),
        (&bob, ".ssh/authorized_keys? .ssh/keys", Some("/home/bob/.ssh/keys")),
        (&bob, "/etc/ssh/keys/%u[12]", None),
        (&bob, "/etc/ssh/keys/%u\\k", None),
        (&odd, ".ssh/authorized_keys", None),
        (&odd, "/etc/ssh/keys/%u", Some("/etc/ssh/keys/odd")),
    ] {
        let found = managed_path(&format!("authorizedkeysfile {said}\n"), "", account);
        let expected = expected.map(str::to_owned).ok_or(Reason::AuthorizedKeysUnsupported);
        assert_eq!(found, expected, "{} {said}", account.name);
    }
}

#[test]
fn key_path_in_home_shared_by_all_needs_strict_modes() {
    let said = "authorizedkeysfile /home/bob/keys\n";
    let global = "AuthorizedKeysFile /home/bob/keys\n";
    let match_bob = "Match User bob\nAuthorizedKeysFile /home/bob/keys\n";
    let expected = Ok("/home/bob/keys".to_owned());
    assert_eq!(managed_path(said, global, &bob()), expected);
    // Without StrictModes the file would allow root to log in too.
    let loose = format!("{said}strictmodes no\n");
    assert_eq!(managed_path(&loose, global, &bob()), Err(Reason::AuthorizedKeysUnsupported));
    assert_eq!(managed_path(&loose, match_bob, &bob()), expected);
}

/// KP-6.6.
#[test]
fn key_path_with_blanks_is_resolved_from_config() {
    for (printed, main, expected) in [
        (
            "/etc/ssh/keys dir/%u",
            "AuthorizedKeysFile \"/etc/ssh/keys dir/%u\"\n",
            Some("/etc/ssh/keys dir/bob"),
        ),
        ("%h/my keys/ak", "AuthorizedKeysFile %h/my\\ keys/ak\n", Some("/home/bob/my keys/ak")),
        ("my keys/ak", "AuthorizedKeysFile 'my keys/ak'\n", Some("/home/bob/my keys/ak")),
        ("my  keys/ak", "AuthorizedKeysFile \"my  keys/ak\"\n", Some("/home/bob/my  keys/ak")),
        ("/a b %h/ak", "AuthorizedKeysFile \"/a b\" %h/ak\n", Some("/home/bob/ak")),
        // No line has a blank inside an argument, so the words are as printed.
        ("/etc/a %h/ak", "AuthorizedKeysFile /etc/a %h/ak\n", Some("/home/bob/ak")),
        // A line that does not match the output.
        (
            ".ssh/authorized_keys",
            "Match User joe\nAuthorizedKeysFile \"a b\"\n",
            Some("/home/bob/.ssh/authorized_keys"),
        ),
        // The block that decides, and one that may decide.
        (
            "a b",
            "AuthorizedKeysFile a b\nMatch User bob\nAuthorizedKeysFile \"a b\"\n",
            Some("/home/bob/a b"),
        ),
        (
            "a b",
            "AuthorizedKeysFile \"a b\"\nMatch User joe\nAuthorizedKeysFile a b\n",
            Some("/home/bob/a b"),
        ),
        ("a b", "AuthorizedKeysFile \"a b\"\nMatch RDomain x\nAuthorizedKeysFile a b\n", None),
        ("x y", "AuthorizedKeysFile x y\nMatch RDomain x\nAuthorizedKeysFile \"a b\"\n", Some("/home/bob/x")),
        // The output differs from the text in the file.
        ("/root/a b", "AuthorizedKeysFile \"~/a b\"\n", None),
        ("'my keys/ak'", "AuthorizedKeysFile 'my keys/ak'\n", None),
        ("/root/ak", "AuthorizedKeysFile ~/ak\nMatch User joe\nAuthorizedKeysFile \"a b\"\n", None),
    ] {
        let found = managed_path(&format!("authorizedkeysfile {printed}\n"), main, &bob());
        let expected = expected.map(str::to_owned).ok_or(Reason::AuthorizedKeysUnsupported);
        assert_eq!(found, expected, "{printed} by {main}");
    }
}

#[test]
fn key_path_from_sshd_command_line_is_used() {
    let options = ["-o".to_owned(), "AuthorizedKeysFile=\"%h/a b\"".to_owned()];
    let reading = ParsedConfig::new(&build_config_tree(&[(MAIN, "")]), &options, KbdNames::One);
    let effective = EffectiveConfig::parse("authorizedkeysfile %h/a b\n");
    let path = resolve_authorized_keys_path(&effective, &reading, &default_neutral_connection("bob"), &bob());
    assert_eq!(path.ok(), Some(PathBuf::from("/home/bob/a b")));
}

#[test]
fn key_paths_keep_sshd_order() {
    let reading = ParsedConfig::new(&build_config_tree(&[(MAIN, "")]), &[], KbdNames::One);
    let effective = EffectiveConfig::parse("authorizedkeysfile /etc/shared .ssh/a* none .ssh/b\n");
    let paths = resolve_key_paths(&effective, &reading, &default_neutral_connection("bob"), &bob())
        .unwrap_or_default();
    let seen: Vec<(String, bool, bool)> = paths
        .into_iter()
        .map(|path| (path.path.to_string_lossy().into_owned(), path.is_users_own, path.is_pattern))
        .collect();
    assert_eq!(
        seen,
        [
            ("/etc/shared".to_owned(), false, false),
            ("/home/bob/.ssh/a*".to_owned(), true, true),
            ("/home/bob/.ssh/b".to_owned(), true, false),
        ]
    );
}

proptest! {
    /// For any quoting of a list of paths, the words are exactly the paths.
    #[test]
    fn quoted_key_paths_round_trip(words in prop::collection::vec("[a-z]{1,3}( {1,2}[a-z]{1,3}){0,2}", 1..4)) {
        let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
        let main = format!("AuthorizedKeysFile {}\n", quoted.join(" "));
        let reading = ParsedConfig::new(&build_config_tree(&[(MAIN, &main)]), &[], KbdNames::One);
        let effective = EffectiveConfig::parse(&format!("authorizedkeysfile {}\n", words.join(" ")));
        prop_assert_eq!(authorized_keys_file_arguments(&effective, &reading, &default_neutral_connection("bob"), &[]), Ok(words));
    }

    /// The path that the agent writes to is never shared, never a pattern, and never contains `..`.
    /// KP-5.1.
    #[test]
    fn managed_key_path_is_never_shared_or_a_pattern(said in "((%h|%u|%U|%%|/|\\.\\.|a|bob|home|\\*|\\[| ){1,8})") {
        let reading = ParsedConfig::new(&build_config_tree(&[(MAIN, "")]), &[], KbdNames::One);
        let effective = EffectiveConfig::parse(&format!("authorizedkeysfile {said}\n"));
        let of = |account: &Account| resolve_authorized_keys_path(&effective, &reading, &default_neutral_connection(&account.name), account);
        if let Ok(path) = of(&bob()) {
            prop_assert!(!has_wildcard(&path) && path.is_absolute());
            prop_assert!(!path.components().any(|component| component == Component::ParentDir));
            let joe = account("joe", 1001, "/home/joe");
            prop_assert!(of(&joe).is_ok_and(|other| other != path) || path.starts_with("/home/bob"));
        }
    }
}
