//! An sshd with few rules of sshd_config(5): the main file and the drop-ins that it includes, the first value wins.
//! What runs is what was read at the last start or reload, whatever the files say since.

use std::collections::BTreeMap;
use std::path::PathBuf;

use keypair_agent::policy::observation::{Account, ConfigTree, IncludedFiles};

use super::disk::{DROP_INS, Disk, MAIN_CONFIG};
use super::keys;
use super::place::HostEnvironment;

/// The keywords that count here, and their defaults.
const KEYWORDS: [(&str, &str); 5] = [
    ("passwordauthentication", "yes"),
    ("kbdinteractiveauthentication", "yes"),
    ("pubkeyauthentication", "yes"),
    ("permitrootlogin", "prohibit-password"),
    ("usepam", "no"),
];

/// What `sshd -T` prints besides.
const REST: &str = "port 22\nlistenaddress 0.0.0.0:22\nlistenaddress [::]:22\nauthenticationmethods any\n\
                    authorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2\nauthorizedkeyscommand none\n\
                    strictmodes yes\nusedns no\nmaxsessions 10\nrevokedkeys none\nrequiredrsasize 1024\n";

/// The values of the keywords, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SimSshdConfig(Vec<String>);

/// A keyword that sshd does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownKeyword;

impl SimSshdConfig {
    /// What the files say, with these lines ahead.
    pub fn from_disk(disk: &Disk, ahead: &str) -> Result<Self, UnknownKeyword> {
        let mut values = BTreeMap::new();
        read(ahead, disk, &mut values)?;
        read(&String::from_utf8_lossy(disk.read_or_empty(MAIN_CONFIG)), disk, &mut values)?;
        let value = |(keyword, default): &(&str, &str)| {
            values.get(*keyword).cloned().unwrap_or_else(|| (*default).to_owned())
        };
        Ok(Self(KEYWORDS.iter().map(value).collect()))
    }

    fn has_value(&self, keyword: &str, value: &str) -> bool {
        KEYWORDS.iter().zip(&self.0).any(|((name, _), said)| *name == keyword && said == value)
    }

    /// What `sshd -T` says.
    pub fn text(&self) -> String {
        let lines = KEYWORDS.iter().zip(&self.0).map(|((keyword, _), value)| {
            // The old word, as sshd prints it.
            let value = if value == "prohibit-password" { "without-password" } else { value };
            format!("{keyword} {value}\n")
        });
        format!("{}{REST}", lines.collect::<String>())
    }

    /// `PasswordAuthentication`.
    pub fn password_authentication(&self) -> bool {
        self.has_value("passwordauthentication", "yes")
    }

    /// Whether anybody's password opens the door, by either method.
    pub fn takes_passwords(&self) -> bool {
        self.password_authentication()
            || self.has_value("kbdinteractiveauthentication", "yes") && self.has_value("usepam", "yes")
    }

    /// Whether the target user's does.
    pub fn lets_in_by_password(&self, place: HostEnvironment) -> bool {
        self.takes_passwords() && self.permits_password(place)
    }

    /// Whether it would if passwords were taken.
    pub fn permits_password(&self, place: HostEnvironment) -> bool {
        place.account().is_some_and(|account| account.uid != 0 || self.has_value("permitrootlogin", "yes"))
    }

    /// Whether a key of his opens it, if there is one, as far as the guard and `sshd -T` can tell.
    pub fn permits_keys(&self, place: HostEnvironment) -> bool {
        let is_permitted = |account: Account| account.uid != 0 || !self.has_value("permitrootlogin", "no");
        self.has_value("pubkeyauthentication", "yes") && place.account().is_some_and(is_permitted)
    }

    /// Whether one really does.
    pub fn takes_keys(&self, place: HostEnvironment) -> bool {
        self.permits_keys(place) && !place.refuses_keys
    }

    /// Whether the target user has a way in.
    pub fn lets_in(&self, disk: &Disk) -> bool {
        self.lets_in_by_password(disk.place)
            || self.takes_keys(disk.place) && keys::has_any_key(disk.read_key_file())
    }

    /// The methods that are offered.
    pub fn methods(&self) -> Vec<String> {
        let all = [
            ("publickey", self.has_value("pubkeyauthentication", "yes")),
            ("password", self.password_authentication()),
            ("keyboard-interactive", self.has_value("kbdinteractiveauthentication", "yes")),
        ];
        all.into_iter().filter(|(_, is_on)| *is_on).map(|(name, _)| name.to_owned()).collect()
    }
}

fn read(text: &str, disk: &Disk, values: &mut BTreeMap<String, String>) -> Result<(), UnknownKeyword> {
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (keyword, value) = line.split_once(' ').unwrap_or((line, ""));
        let keyword = keyword.trim_end_matches('=').to_ascii_lowercase();
        if keyword == "include" {
            for (_, content) in drop_ins(disk) {
                read(&String::from_utf8_lossy(content), disk, values)?;
            }
        } else if KEYWORDS.iter().any(|(known, _)| *known == keyword) {
            values.entry(keyword).or_insert_with(|| value.to_owned());
        } else {
            return Err(UnknownKeyword);
        }
    }
    Ok(())
}

fn drop_ins(disk: &Disk) -> impl Iterator<Item = (&PathBuf, &[u8])> {
    disk.files_in(DROP_INS)
}

/// The files and what the Include of the main file leads to.
pub fn tree(disk: &Disk) -> ConfigTree {
    let mut tree = ConfigTree { main: MAIN_CONFIG.into(), ..ConfigTree::default() };
    tree.files.insert(MAIN_CONFIG.into(), disk.read_or_empty(MAIN_CONFIG).to_vec());
    let main = String::from_utf8_lossy(disk.read_or_empty(MAIN_CONFIG)).into_owned();
    for (number, _) in (1..).zip(main.lines()).filter(|(_, line)| line.starts_with("Include ")) {
        let files = drop_ins(disk).map(|(path, _)| path.clone()).collect();
        let pattern = PathBuf::from(DROP_INS).join("*.conf");
        tree.includes.insert(
            (MAIN_CONFIG.into(), number),
            vec![IncludedFiles { pattern, directory_exists: true, files }],
        );
        tree.files.extend(drop_ins(disk).map(|(path, content)| (path.clone(), content.to_vec())));
    }
    // Ours is seen without an Include, too.
    let ours = drop_ins(disk).filter(|(path, _)| path.ends_with("00-keypair-agent.conf"));
    tree.files.extend(ours.map(|(path, content)| (path.clone(), content.to_vec())));
    tree
}
