//! sshd itself is asked what random configurations amount to, and the reader has to predict its answer.
//! Passes without a word where there is no sshd to ask.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use keypair_agent::policy::effective::Effective;
use keypair_agent::policy::observation::{ConfigTree, Connection, Included};
use keypair_agent::policy::sshd_config::{Place, Scope, applies, directives, placement};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const SSHD: &str = "/usr/sbin/sshd";
const KEYWORDS: [&str; 3] =
    ["passwordauthentication", "pubkeyauthentication", "kbdinteractiveauthentication"];

fn connection() -> Connection {
    Connection {
        user: "root".into(),
        host: "192.0.2.1".into(),
        addr: IpAddr::from([192, 0, 2, 1]),
        laddr: IpAddr::from([192, 0, 2, 2]),
        lport: 22,
    }
}

/// What sshd says of the configuration in `directory`; `None` where it refuses it.
fn asked(directory: &Path) -> Option<Effective> {
    let output = Command::new(SSHD)
        .arg("-T")
        .args(["-f".as_ref(), directory.join("main").as_os_str()])
        .args(["-h".as_ref(), directory.join("host_key").as_os_str()])
        .args(["-C", "user=root,host=192.0.2.1,addr=192.0.2.1,laddr=192.0.2.2,lport=22"])
        .output()
        .ok()?;
    output.status.success().then(|| Effective::parse(&String::from_utf8_lossy(&output.stdout)))
}

/// The tree as it stands on the disk.
fn observed(directory: &Path) -> ConfigTree {
    let mut tree = ConfigTree { main: directory.join("main"), ..ConfigTree::default() };
    let mut open = vec![tree.main.clone()];
    while let Some(file) = open.pop() {
        let Ok(content) = fs::read(&file) else { continue };
        if tree.files.insert(file.clone(), content).is_some() {
            continue;
        }
        for directive in directives(&ConfigTree { main: file.clone(), ..tree.clone() }) {
            if directive.keyword != "include" || directive.file != file {
                continue;
            }
            let included: Vec<Included> =
                directive.arguments.iter().map(|argument| include(argument)).collect();
            open.extend(included.iter().flat_map(|included| included.files.clone()));
            tree.includes.insert((file.clone(), directive.line), included);
        }
    }
    tree
}

fn include(argument: &str) -> Included {
    let pattern = Path::new("/etc/ssh").join(argument);
    // glob(3) never finds a leading dot by a wildcard.
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
    let found = glob::glob_with(&pattern.to_string_lossy(), options).into_iter().flatten();
    let mut files: Vec<PathBuf> = found.filter_map(Result::ok).collect();
    files.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    let directory_exists = pattern.parent().is_some_and(Path::is_dir);
    Included { pattern, directory_exists, files }
}

/// What the reader predicts: a `Match` block that picks the connection, else the first global value.
fn predicted(tree: &ConfigTree, keyword: &str) -> Option<String> {
    let is_named = |name: &str| match name {
        "challengeresponseauthentication" | "skeyauthentication" => keyword == "kbdinteractiveauthentication",
        _ => name == keyword,
    };
    let mut found = directives(tree);
    found.retain(|d| is_named(&d.keyword));
    let picks = |scope: &Scope| match scope {
        Scope::Global => false,
        Scope::Match { criteria, .. } => applies(criteria, &connection(), None) == Some(true),
    };
    let first = found.iter().find(|d| picks(&d.scope)).or_else(|| found.iter().find(|d| d.is_global()));
    first.map(|d| d.value().to_ascii_lowercase())
}

/// A few lines, written as people write them.
fn content(directory: &str) -> impl Strategy<Value = String> + use<> {
    let keyword = prop::sample::select(vec![
        "PasswordAuthentication",
        "passwordauthentication",
        "\"PasswordAuthentication\"",
        "PubkeyAuthentication",
        "KbdInteractiveAuthentication",
        "ChallengeResponseAuthentication",
        "SkeyAuthentication",
    ]);
    let separator = prop::sample::select(vec![" ", "\t", "=", " = ", "= ", "  "]);
    let value = prop::sample::select(vec!["yes", "no", "\"yes\"", "'no'", "No", "\"no\" # why"]);
    let end = prop::sample::select(vec!["\n", " \n", "\r\n", "\t#\n", "\x0c\n"]);
    let setting = (prop::sample::select(vec!["", " ", "\t"]), keyword, separator, value, end)
        .prop_map(|(lead, keyword, separator, value, end)| format!("{lead}{keyword}{separator}{value}{end}"));
    let criteria = prop::sample::select(vec![
        "all",
        "User root",
        "User bob",
        "user=root",
        "User *,!root",
        "Address 192.0.2.0/24",
        "Address *,!192.0.2.1",
        "Address 10.0.0.0/8",
        "Host 192.0.2.?",
        "LocalPort 22",
        "LocalAddress 192.0.2.2 User ro*",
        "Address 2001:db8::/32,192.0.2.1",
        "Host \"192.*\"",
    ]);
    let block = criteria.prop_map(|criteria| format!("Match {criteria}\n"));
    let d = directory.to_owned();
    let include = prop::sample::select(vec!["d/*.conf", "d/[0-9]*", "d/?b*", "d/absent d/a.conf"]).prop_map(
        move |names| {
            let patterns: Vec<String> = names.split(' ').map(|name| format!("\"{d}/{name}\"")).collect();
            format!("Include {}\n", patterns.join(" "))
        },
    );
    let other = prop::sample::select(vec!["\n", "# PasswordAuthentication no\n", "UsePAM no\n", " \t\n"])
        .prop_map(str::to_owned);
    let line = prop_oneof![4 => setting, 2 => block, 1 => include, 1 => other];
    prop::collection::vec(line, 0..7).prop_map(|lines| lines.concat())
}

#[test]
fn what_the_reader_predicts() -> std::io::Result<()> {
    let directory = tempfile::tempdir()?;
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(directory.path().join("host_key"))
        .status();
    if !Path::new(SSHD).exists() || !made.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    fs::create_dir(directory.path().join("d"))?;
    fs::write(directory.path().join("main"), "")?;
    let Some(defaults) = asked(directory.path()) else { return Ok(()) };
    if defaults.has_challenge_response() {
        return Ok(()); // two options under the names of one: only the newer rule is held here
    }
    let text = directory.path().to_string_lossy().into_owned();
    let names =
        prop::sample::select(vec!["+a.conf", "a.conf", "0b.conf", "00-keypair-agent.conf", ".c.conf"]);
    let drop_ins = prop::collection::btree_map(names, content(&text), 0..3);
    let config = ProptestConfig {
        cases: 150,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    };
    let answered = std::cell::Cell::new(0);
    let run = proptest::test_runner::TestRunner::new(config).run(
        &(content(&text), drop_ins),
        |(main, drop_ins)| {
            let files: BTreeMap<PathBuf, String> = drop_ins
                .into_iter()
                .map(|(name, text)| (directory.path().join("d").join(name), text))
                .chain([(directory.path().join("main"), main)])
                .collect();
            fs::remove_dir_all(directory.path().join("d"))?;
            fs::create_dir(directory.path().join("d"))?;
            for (file, text) in &files {
                fs::write(file, text)?;
            }
            let Some(said) = asked(directory.path()) else { return Ok(()) };
            answered.set(answered.get() + 1);
            let tree = observed(directory.path());
            for keyword in KEYWORDS {
                let expected =
                    predicted(&tree, keyword).unwrap_or_else(|| defaults.value(keyword).to_owned());
                prop_assert_eq!(said.value(keyword), expected, "{} in {:#?}", keyword, files);
            }
            // Put where the placement says, ours decides for all but those whom a Match block picks.
            if let Ok(placement) = placement(&tree, true) {
                let other = if said.password_authentication() { "no" } else { "yes" };
                let ours = format!("PasswordAuthentication {other}\n");
                match &placement.place {
                    Place::DropIn(file) => fs::write(file, ours)?,
                    Place::TopBlock(file) => fs::write(file, ours + &fs::read_to_string(file)?)?,
                }
                let picked =
                    directives(&tree).iter().any(|d| d.keyword == "passwordauthentication" && !d.is_global());
                if let (false, Some(said)) = (picked, asked(directory.path())) {
                    prop_assert_eq!(
                        said.value("passwordauthentication"),
                        other,
                        "{:?} in {:#?}",
                        placement,
                        files
                    );
                }
            }
            Ok(())
        },
    );
    assert_eq!(run.map_err(|failure| failure.to_string()), Ok(()));
    assert!(answered.get() > 50, "sshd took only {} of the configurations", answered.get());
    Ok(())
}
