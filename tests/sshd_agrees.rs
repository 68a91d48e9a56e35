//! Compares the agent's parser with sshd on random configurations. For each keyword the value, and so the deciding
//! line, must be the same (KP-6.7).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use keypair_agent::guest::accounts;
use keypair_agent::policy::effective::EffectiveConfig;
use keypair_agent::policy::observation::{ConfigTree, Connection, IncludedFiles};
use keypair_agent::policy::sshd_config::{
    KNOWN_KEYWORDS, KbdNames, Keyword, Multiplicity, ParsedConfig, Place, choose_placement, read_directives,
};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{FileFailurePersistence, TestRunner};

/// The number of configurations.
const CASES: u32 = 2_000;

/// The environment variable that names another sshd than the installed one.
const SSHD_ENV: &str = "KEYPAIR_TEST_SSHD";

fn sshd_path() -> PathBuf {
    std::env::var_os(SSHD_ENV).map_or_else(|| PathBuf::from("/usr/sbin/sshd"), PathBuf::from)
}

/// Six users and addresses. One of them has no account.
fn sample_connections() -> Vec<(Connection, Vec<String>)> {
    [
        ("root", "192.0.2.1", "192.0.2.2", 22),
        ("root", "127.0.0.1", "127.0.0.1", 22),
        ("daemon", "10.1.2.3", "192.0.2.2", 22),
        ("nobody", "2001:db8::5", "2001:db8::2", 22),
        ("ghost", "192.0.2.200", "192.0.2.2", 22),
        ("bin", "10.9.9.9", "10.0.0.1", 2222),
    ]
    .map(|(user, addr, laddr, lport)| {
        let addr: IpAddr = addr.parse().unwrap();
        let connection = Connection {
            user: user.into(),
            host: addr.to_string(),
            addr,
            laddr: laddr.parse().unwrap(),
            lport,
        };
        (
            connection,
            accounts::lookup_account(user).unwrap().map(|account| account.groups).unwrap_or_default(),
        )
    })
    .to_vec()
}

/// A folder with a main file, a drop-in directory and a host key.
struct ConfigDir(tempfile::TempDir);

impl ConfigDir {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.path("host_key"));
        assert!(keygen.status().unwrap().success());
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write_files(&self, files: &BTreeMap<PathBuf, String>) {
        let _ = fs::remove_dir_all(self.path("d"));
        fs::create_dir(self.path("d")).unwrap();
        for (file, text) in files {
            fs::write(file, text).unwrap();
        }
    }

    /// sshd's answer for this configuration; the error text if sshd refuses it.
    fn query_sshd(&self, options: &[String], who: &Connection) -> Result<EffectiveConfig, String> {
        let Connection { user, host, addr, laddr, lport } = who;
        let output = Command::new(sshd_path())
            .arg("-T")
            .args(["-f".as_ref(), self.path("main").as_os_str()])
            .args(["-h".as_ref(), self.path("host_key").as_os_str()])
            .args(options)
            .args(["-C", &format!("user={user},host={host},addr={addr},laddr={laddr},lport={lport}")])
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(EffectiveConfig::parse(&String::from_utf8_lossy(&output.stdout))),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// The configuration tree on the disk.
    fn read_config_tree(&self) -> ConfigTree {
        let mut tree = ConfigTree { main: self.path("main"), ..ConfigTree::default() };
        let mut open = vec![tree.main.clone()];
        while let Some(file) = open.pop() {
            let Ok(content) = fs::read(&file) else { continue };
            if tree.files.insert(file.clone(), content).is_some() {
                continue;
            }
            for directive in read_directives(&ConfigTree { main: file.clone(), ..tree.clone() }) {
                if directive.keyword != "include" || directive.file != file {
                    continue;
                }
                let included: Vec<IncludedFiles> =
                    directive.arguments.iter().map(|argument| resolve_include(argument)).collect();
                open.extend(included.iter().flat_map(|included| included.files.clone()));
                tree.includes.insert((file.clone(), directive.line), included);
            }
        }
        tree
    }
}

fn resolve_include(argument: &str) -> IncludedFiles {
    let pattern = Path::new("/etc/ssh").join(argument);
    // In glob(3), a wildcard never matches a leading dot.
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
    let found = glob::glob_with(&pattern.to_string_lossy(), options).into_iter().flatten();
    let mut files: Vec<PathBuf> = found.filter_map(Result::ok).collect();
    files.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    let directory_exists = pattern.parent().is_some_and(Path::is_dir);
    IncludedFiles { pattern, directory_exists, files }
}

/// The name under which `sshd -T` prints a keyword; `None` if this sshd does not know it.
fn printed_name(keyword: &Keyword, defaults: &EffectiveConfig) -> Option<String> {
    let names = std::iter::once(&keyword.name).chain(keyword.aliases).map(|name| name.to_ascii_lowercase());
    // sshd prints lists only if they are not empty.
    names
        .into_iter()
        .find(|name| keyword.multiplicity == Multiplicity::Cumulative || defaults.has_keyword(name))
}

/// Normalises words of sshd, so that two spellings of one value are equal.
fn normalize_words(words: &[&str]) -> Vec<String> {
    words
        .iter()
        .map(|word| match word.to_ascii_lowercase().as_str() {
            "prohibit-password" => "without-password".to_owned(),
            low @ ("yes" | "no" | "none" | "any") => low.to_owned(),
            _ => (*word).to_owned(),
        })
        .collect()
}

/// Typical values of each keyword.
fn sample_values(keyword: &str) -> Vec<&'static str> {
    match keyword {
        "AllowGroups" | "DenyGroups" => vec!["root", "wheel staff", "*", "\"nogroup\" d*"],
        "AllowUsers" | "DenyUsers" => {
            vec!["root", "bin daemon@10.0.0.0/8", "ro?t", "*@192.0.2.*", "\"ghost\""]
        }
        "AuthenticationMethods" => vec!["any", "publickey", "publickey,password publickey", "\"any\""],
        "AuthorizedKeysCommand" => vec!["/bin/true %u", "none", "/usr/bin/keys"],
        "AuthorizedKeysFile" => vec![".ssh/authorized_keys", "%h/k /etc/keys/%u", "none", "\"/etc/a b\""],
        "ChrootDirectory" => vec!["none", "/srv/%u", "/srv"],
        "ForceCommand" => vec!["none", "/bin/false", "internal-sftp -l INFO"],
        "MaxSessions" => vec!["0", "10", "3"],
        "PermitRootLogin" => {
            vec!["yes", "no", "prohibit-password", "without-password", "forced-commands-only"]
        }
        "PubkeyAcceptedAlgorithms" => vec!["ssh-ed25519", "rsa-sha2-512,rsa-sha2-256", "ecdsa-sha2-nistp256"],
        "RequiredRSASize" => vec!["1024", "3072"],
        "RevokedKeys" => vec!["none", "/etc/ssh/revoked"],
        _ => vec!["yes", "no", "\"yes\"", "No", "YES"],
    }
}

/// The properties of one sshd from which configurations are generated.
#[derive(Clone)]
struct ConfigGenerator {
    keywords: Vec<&'static Keyword>,
    two_names: bool,
}

impl ConfigGenerator {
    /// One setting as a line, in any valid spelling.
    fn setting_line(&self, in_match: bool) -> impl Strategy<Value = String> + use<> {
        let names: Vec<(&'static str, &'static str)> = self
            .keywords
            .iter()
            .filter(|keyword| keyword.allowed_in_match || !in_match)
            // The keywords that the agent sets occur more often.
            .flat_map(|keyword| {
                let often = if keyword.name.ends_with("Authentication") { 4 } else { 1 };
                std::iter::repeat_n((keyword.name, keyword.name), often)
                    .chain(keyword.aliases.iter().map(|also| (keyword.name, *also)))
            })
            // Before 8.7, the older names are not allowed in a Match.
            .filter(|(keyword, name)| {
                !(in_match && self.two_names && *keyword == "KbdInteractiveAuthentication" && name != keyword)
            })
            .collect();
        let plain = self.two_names;
        let line = select(names).prop_flat_map(|(keyword, name)| {
            let spelled = vec![name.to_owned(), name.to_ascii_lowercase(), name.to_ascii_uppercase()];
            (select(spelled), select(sample_values(keyword)), Just(keyword))
        });
        let separator = select(vec![" ", "\t", "=", " = ", "= ", "  "]);
        let end = select(vec!["\n", " \n", "\r\n", "\t#\n", "\n\n"]);
        (select(vec!["", " ", "\t"]), line, separator, end).prop_map(
            move |(lead, (name, value, keyword), separator, end)| {
                // sshd takes a command as it is, up to the end of the line.
                let end = if keyword.ends_with("Command") || plain { "\n" } else { end };
                format!("{lead}{name}{separator}{value}{end}")
            },
        )
    }

    fn include_line(&self, folder: &Path) -> impl Strategy<Value = String> + use<> {
        let folder = folder.display().to_string();
        select(vec!["d/*.conf", "d/[0-9]*", "d/?b*", "d/absent d/a.conf", "d/c/*"]).prop_map(move |names| {
            let patterns: Vec<String> = names.split(' ').map(|name| format!("\"{folder}/{name}\"")).collect();
            format!("Include {}\n", patterns.join(" "))
        })
    }

    /// Global lines, then `Match` blocks.
    fn config_text(&self, folder: &Path) -> BoxedStrategy<String> {
        let criteria = select(vec![
            "all",
            "User root",
            "User bin,daemon",
            "user=root",
            "User *,!root",
            "Group root",
            "Group *,!nogroup",
            "Address 192.0.2.0/24",
            "Address *,!192.0.2.1",
            "Address *,!127.0.0.1",
            "Address 10.0.0.0/8",
            "Host 192.0.2.?",
            "LocalPort 22",
            "LocalPort 2222",
            "LocalAddress 192.0.2.2 User ro*",
            "LocalAddress 127.0.0.1",
            "Address 2001:db8::/32,192.0.2.1",
            "Host \"192.*\"",
        ]);
        let other = select(vec!["\n", "# PasswordAuthentication no\n", " \t\n", "X11Forwarding no\n"]);
        let line = |in_match: bool| {
            prop_oneof![
                6 => self.setting_line(in_match),
                1 => self.include_line(folder),
                1 => other.clone().prop_map(str::to_owned),
            ]
        };
        let block = (criteria, prop::collection::vec(line(true), 0..4))
            .prop_map(|(criteria, lines)| format!("Match {criteria}\n{}", lines.concat()));
        let (globals, blocks) =
            (prop::collection::vec(line(false), 0..6), prop::collection::vec(block, 0..4));
        (globals, blocks).prop_map(|(lines, blocks)| lines.concat() + &blocks.concat()).boxed()
    }

    fn cmdline_options(&self) -> impl Strategy<Value = Vec<String>> + use<> {
        let setting = select(self.keywords.clone()).prop_flat_map(|keyword| {
            select(sample_values(keyword.name)).prop_map(move |value| {
                vec!["-o".to_owned(), format!("{}={}", keyword.name, value.replace('"', ""))]
            })
        });
        prop_oneof![3 => Just(Vec::new()), 1 => setting]
    }
}

#[test]
fn config_parser_agrees_with_sshd() {
    if !sshd_path().exists() {
        eprintln!("SKIPPED: {} is not there", sshd_path().display());
        return;
    }
    let folder = ConfigDir::new();
    folder.write_files(&[(folder.path("main"), String::new())].into());
    let connections = sample_connections();
    let defaults = folder.query_sshd(&[], &connections[0].0).unwrap();
    let known = KNOWN_KEYWORDS.iter().filter(|keyword| printed_name(keyword, &defaults).is_some()).collect();
    let language = ConfigGenerator { keywords: known, two_names: defaults.has_challenge_response() };
    let answered = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| run_cases(&language, &defaults, &connections, CASES.div_ceil(threads), &answered));
        }
    });
    let answered = answered.load(Ordering::Relaxed);
    println!("{answered} of {CASES} configurations were ones that sshd takes");
    assert!(answered > CASES as usize / 2, "sshd took only {answered} of the configurations");
}

fn run_cases(
    language: &ConfigGenerator,
    defaults: &EffectiveConfig,
    connections: &[(Connection, Vec<String>)],
    cases: u32,
    answered: &AtomicUsize,
) {
    let folder = ConfigDir::new();
    let names = select(vec!["+a.conf", "a.conf", "0b.conf", "00-keypair-agent.conf", ".c.conf"]);
    let drop_ins = prop::collection::btree_map(names, language.config_text(folder.0.path()), 0..3);
    let config = ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    };
    let all = (language.config_text(folder.0.path()), drop_ins, language.cmdline_options());
    let run = TestRunner::new(config).run(&all, |(main, drop_ins, cmdline_options)| {
        // An AuthorizedKeysCommand needs the account that runs it.
        let main = format!("{main}\n");
        let needed = "AuthorizedKeysCommandUser nobody\n".to_owned();
        let files: BTreeMap<PathBuf, String> = drop_ins
            .into_iter()
            .map(|(name, text)| (folder.path("d").join(name), text))
            .chain([(folder.path("main"), needed + &main)])
            .collect();
        folder.write_files(&files);
        let tree = folder.read_config_tree();
        let names = if language.two_names { KbdNames::Two } else { KbdNames::One };
        let reading = ParsedConfig::new(&tree, &cmdline_options, names);
        for (index, (who, groups)) in connections.iter().enumerate() {
            let Ok(said) = folder.query_sshd(&cmdline_options, who) else { return Ok(()) };
            if index == 0 {
                answered.fetch_add(1, Ordering::Relaxed);
                check_placed_setting_wins(&folder, &tree, &cmdline_options, who, &said, &files)?;
                folder.write_files(&files);
            }
            for keyword in &language.keywords {
                let Some(name) = printed_name(keyword, defaults) else { continue };
                let decision = reading.resolve_value(keyword.name, who, Some(groups));
                let expected = match &decision.value {
                    Some(value) => value.join(" "),
                    None => defaults.words(&name).join(" "),
                };
                let expected: Vec<&str> = expected.split_ascii_whitespace().collect();
                prop_assert_eq!(
                    normalize_words(&said.words(&name)),
                    normalize_words(&expected),
                    "{} for {:?}, by {:?}, options {:?}, in {:#?}",
                    keyword.name,
                    who,
                    decision.by,
                    cmdline_options,
                    files
                );
            }
        }
        Ok(())
    });
    if let Err(failure) = run {
        panic!("{failure}");
    }
}

/// At the place that the placement chooses, the agent's setting decides. Exceptions are connections for which a
/// `Match` block or an option sets the value.
fn check_placed_setting_wins(
    folder: &ConfigDir,
    tree: &ConfigTree,
    options: &[String],
    who: &Connection,
    said: &EffectiveConfig,
    files: &BTreeMap<PathBuf, String>,
) -> Result<(), TestCaseError> {
    let sets = |d: &keypair_agent::policy::sshd_config::Directive| d.keyword == "passwordauthentication";
    let picked = read_directives(tree).iter().any(|d| sets(d) && !d.is_global());
    let Ok(placement) = choose_placement(tree, true) else { return Ok(()) };
    if picked || options.iter().any(|option| option.starts_with("PasswordAuthentication")) {
        return Ok(());
    }
    let other = if said.password_authentication() { "no" } else { "yes" };
    let ours = format!("PasswordAuthentication {other}\n");
    match &placement.place {
        Place::DropIn(file) => fs::write(file, ours)?,
        Place::TopBlock(file) => fs::write(file, ours + &fs::read_to_string(file)?)?,
    }
    // The configuration may require a method that is off now; then sshd refuses it.
    if let Ok(said) = folder.query_sshd(options, who) {
        prop_assert_eq!(said.value("passwordauthentication"), other, "{:?} in {:#?}", placement, files);
    }
    Ok(())
}
