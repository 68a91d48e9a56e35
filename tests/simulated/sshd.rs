//! An sshd with few rules of sshd_config(5): the main file and the drop-ins that it includes; the first value wins.
//! Until the next start or reload, sshd runs with the settings that it has read, even if the files change.

use std::collections::BTreeMap;
use std::path::PathBuf;

use keypair_agent::policy::observation::{Account, ConfigTree, IncludedFiles};

use super::disk::{DROP_INS, Disk, MAIN_CONFIG};
use super::keys;
use super::place::HostEnvironment;

/// The keywords that the simulation needs, and their defaults.
const KEYWORDS: [(&str, &str); 5] = [
    ("passwordauthentication", "yes"),
    ("kbdinteractiveauthentication", "yes"),
    ("pubkeyauthentication", "yes"),
    ("permitrootlogin", "prohibit-password"),
    ("usepam", "no"),
];

/// The other lines that `sshd -T` prints.
const REST: &str = "port 22\nlistenaddress 0.0.0.0:22\nlistenaddress [::]:22\nauthenticationmethods any\n\
                    authorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2\nauthorizedkeyscommand none\n\
                    strictmodes yes\nusedns no\nmaxsessions 10\nrevokedkeys none\nrequiredrsasize 1024\n";

/// The values of the keywords, in the order of `KEYWORDS`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SimSshdConfig(Vec<String>);

/// The error for a keyword that sshd does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownKeyword;

impl SimSshdConfig {
    /// The settings in the files, with the lines `ahead` before them.
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

    /// The output of `sshd -T`.
    pub fn text(&self) -> String {
        let lines = KEYWORDS.iter().zip(&self.0).map(|((keyword, _), value)| {
            // sshd prints the old name of this value.
            let value = if value == "prohibit-password" { "without-password" } else { value };
            format!("{keyword} {value}\n")
        });
        format!("{}{REST}", lines.collect::<String>())
    }

    /// `PasswordAuthentication`.
    pub fn password_authentication(&self) -> bool {
        self.has_value("passwordauthentication", "yes")
    }

    /// Whether sshd accepts passwords at all, by either method.
    pub fn takes_passwords(&self) -> bool {
        self.password_authentication()
            || self.has_value("kbdinteractiveauthentication", "yes") && self.has_value("usepam", "yes")
    }

    /// Whether sshd accepts the target user's password.
    pub fn lets_in_by_password(&self, place: HostEnvironment) -> bool {
        self.takes_passwords() && self.permits_password(place)
    }

    /// Whether sshd would accept the target user's password if it accepted passwords at all.
    pub fn permits_password(&self, place: HostEnvironment) -> bool {
        place.account().is_some_and(|account| account.uid != 0 || self.has_value("permitrootlogin", "yes"))
    }

    /// Whether sshd would accept a key of the target user, as far as the guard and `sshd -T` can tell.
    pub fn permits_keys(&self, place: HostEnvironment) -> bool {
        let is_permitted = |account: Account| account.uid != 0 || !self.has_value("permitrootlogin", "no");
        self.has_value("pubkeyauthentication", "yes") && place.account().is_some_and(is_permitted)
    }

    /// Whether sshd really accepts such a key.
    pub fn takes_keys(&self, place: HostEnvironment) -> bool {
        self.permits_keys(place) && !place.refuses_keys
    }

    /// Whether the target user can log in.
    pub fn lets_in(&self, disk: &Disk) -> bool {
        self.lets_in_by_password(disk.place)
            || self.takes_keys(disk.place) && keys::has_any_key(disk.read_key_file())
    }

    /// The methods that sshd offers.
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

/// The main file and the files that its Include lines name.
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
    // The tree holds the agent's drop-in even without an Include.
    let ours = drop_ins(disk).filter(|(path, _)| path.ends_with("00-keypair-agent.conf"));
    tree.files.extend(ours.map(|(path, content)| (path.clone(), content.to_vec())));
    tree
}
