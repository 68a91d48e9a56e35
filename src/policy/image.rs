//! The problems that a clone of this guest would have, apart from the agent's own files (KP-8.7). The judgement uses
//! only observed facts and is for a person who builds an image.

use std::path::{Path, PathBuf};

use super::sshd_config::{DROP_IN_NAME, Place};

/// The facts about the files that every clone gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageFacts {
    /// The bytes of machine-id(5)'s file. `None` if there is no such file.
    pub machine_id: Option<Vec<u8>>,
    /// D-Bus's copy of the machine id, if it is a separate file and not empty.
    pub dbus_machine_id: Option<PathBuf>,
    /// The private host keys at sshd's usual paths.
    pub host_keys: Vec<PathBuf>,
    /// The unit that creates host keys at boot if there are none.
    pub key_maker: Option<PathBuf>,
    /// cloud-init's configuration files with their bytes, in the order in which it reads them. `None` if cloud-init
    /// is not installed or is switched off.
    pub cloud_init: Option<Vec<(PathBuf, Vec<u8>)>>,
    /// The items that the agent could not examine, with the cause.
    pub unseen: Vec<String>,
}

/// The agent's own settings that the judgement needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageLintContext {
    /// Whether the key is for root's account.
    pub target_is_root: bool,
    /// The place of the password setting, if the agent can determine it.
    pub place: Option<Place>,
}

/// One finding about a clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFinding {
    /// The subject of the finding.
    pub name: &'static str,
    /// Whether the state is as it should be.
    pub is_well: bool,
    /// One line for a person. If the person must do something, it is after the last semicolon.
    pub message: String,
    /// The file that the finding concerns.
    pub file: Option<PathBuf>,
    /// The line in the file, from 1.
    pub line: Option<usize>,
}

impl ImageFinding {
    fn pass(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, is_well: true, message: message.into(), file: None, line: None }
    }

    fn fail(name: &'static str, message: impl Into<String>) -> Self {
        Self { is_well: false, ..Self::pass(name, message) }
    }

    fn with_location(mut self, file: impl AsRef<Path>, line: Option<usize>) -> Self {
        self.file = Some(file.as_ref().to_owned());
        self.line = line;
        self
    }
}

/// All findings about an image, including the good ones.
pub fn lint_image(image: &ImageFacts, setting: &ImageLintContext) -> Vec<ImageFinding> {
    let mut findings = lint_machine_id(image);
    findings.extend(lint_host_keys(image));
    if let Some(files) = &image.cloud_init {
        findings.extend(lint_ssh_pwauth(files, setting.place.as_ref()));
        findings.extend(setting.target_is_root.then(|| lint_disable_root(files)).flatten());
    }
    findings.extend(image.unseen.iter().map(|why| ImageFinding::fail("not looked at", why)));
    findings
}

fn lint_machine_id(image: &ImageFacts) -> Vec<ImageFinding> {
    const NAME: &str = "machine-id";
    const FILE: &str = "/etc/machine-id";
    let own = match image.machine_id.as_deref().map(<[u8]>::trim_ascii) {
        None => ImageFinding::pass(NAME, "there is none: each clone makes its own"),
        Some(b"" | b"uninitialized") => ImageFinding::pass(NAME, "it is not set: each clone makes its own"),
        Some(_) => ImageFinding::fail(NAME, format!("every clone would have this one; truncate -s 0 {FILE}")),
    };
    let copy = image.dbus_machine_id.as_ref().map(|file| {
        let text =
            "D-Bus's copy is a file of its own, and systemd gives it to a clone whose machine-id is empty";
        ImageFinding::fail(NAME, format!("{text}; ln -sf {FILE} {}", file.display()))
            .with_location(file, None)
    });
    std::iter::once(own.with_location(FILE, None)).chain(copy).collect()
}

fn lint_host_keys(image: &ImageFacts) -> Option<ImageFinding> {
    const NAME: &str = "host keys";
    let deletes = image.cloud_init.as_deref().map(|files| {
        let setting = find_last_scalar(files, "ssh_deletekeys");
        setting.is_none_or(|setting| !setting.is_falsy())
    });
    let Some(first) = image.host_keys.first() else {
        return Some(match (deletes, &image.key_maker) {
            (Some(_), _) => ImageFinding::pass(NAME, "there are none: cloud-init makes them in each clone"),
            (None, Some(unit)) => ImageFinding::pass(
                NAME,
                format!("there are none: {} makes them in each clone", unit.display()),
            ),
            (None, None) => ImageFinding::fail(
                NAME,
                "there are none, and nothing was seen that makes them at a clone's first boot: its sshd will not \
                 start; add a unit that runs `ssh-keygen -A` before it",
            ),
        });
    };
    let again = match (deletes, &image.key_maker) {
        (Some(true), _) => return Some(ImageFinding::pass(NAME, "cloud-init makes others in each clone")),
        (Some(false), _) => {
            "cloud-init, which leaves these alone (`ssh_deletekeys`), makes new ones".to_owned()
        }
        (None, Some(unit)) => format!("{} makes new ones", unit.display()),
        (None, None) => {
            "nothing was seen that makes new ones (Debian's ssh.service does not): add a unit that runs \
                         `ssh-keygen -A` before sshd"
                .to_owned()
        }
    };
    let directory = first.parent().unwrap_or(Path::new("/")).display();
    let count = image.host_keys.len();
    let text = format!("every clone would have these {count}; rm {directory}/ssh_host_*, and {again}");
    Some(ImageFinding::fail(NAME, text).with_location(first, None))
}

/// cloud-init writes `ssh_pwauth` to sshd's files once per instance, late in its first boot.
fn lint_ssh_pwauth(files: &[(PathBuf, Vec<u8>)], place: Option<&Place>) -> Option<ImageFinding> {
    const NAME: &str = "cloud-init ssh_pwauth";
    let setting = find_last_scalar(files, "ssh_pwauth")?;
    let value = match (setting.is_true(), setting.is_false()) {
        (true, _) => "yes",
        (_, true) => "no",
        _ => return None,
    };
    let sets = format!("it sets `PasswordAuthentication {value}` at a clone's first boot");
    let does = match place {
        Some(Place::TopBlock(main)) => format!(
            "{sets}, in {}; it holds until a command says otherwise: the agent's block is read ahead of it",
            main.display()
        ),
        Some(Place::DropIn(_)) => {
            format!("{sets}; it holds until a command says otherwise: {DROP_IN_NAME} is read ahead of it")
        }
        None => sets,
    };
    let text = format!("{does}; `ssh_pwauth: unchanged` leaves it to the platform");
    Some(ImageFinding::fail(NAME, text).with_location(setting.file, Some(setting.line)))
}

/// `disable_root` is on by default.
fn lint_disable_root(files: &[(PathBuf, Vec<u8>)]) -> Option<ImageFinding> {
    let setting = find_last_scalar(files, "disable_root");
    if setting.as_ref().is_some_and(|setting| !setting.is_true()) {
        return None;
    }
    let by = if setting.is_some() { "" } else { ", which is its default" };
    let text = format!(
        "the keys that it is given go into root's file with `command=` in front{by}: ours stands ahead and decides \
         (RESTRICTED_COPY), and is shut out again once it is detached; `disable_root: false` lets them in as they are"
    );
    let finding = ImageFinding::fail("cloud-init disable_root", text);
    Some(match setting {
        Some(setting) => finding.with_location(setting.file, Some(setting.line)),
        None => finding,
    })
}

/// A key of cloud-init's configuration. Its value is in lower case and without quotes.
#[derive(Debug, PartialEq, Eq)]
struct YamlScalar<'a> {
    file: &'a Path,
    line: usize,
    value: String,
}

impl YamlScalar<'_> {
    fn is_true(&self) -> bool {
        ["true", "1", "on", "yes"].contains(&self.value.as_str())
    }

    fn is_false(&self) -> bool {
        ["false", "0", "off", "no"].contains(&self.value.as_str())
    }

    /// Whether a scripting language would treat the value as false.
    fn is_falsy(&self) -> bool {
        self.is_false() || ["", "null", "~"].contains(&self.value.as_str())
    }
}

/// The last value of a top-level key, which is the effective one. The function does not parse YAML in general, only
/// lines of the form `key: value` that are not indented. It understands neither a file in braces nor an anchor, a
/// template or `merge_how`. User data of a clone overrides all of this.
fn find_last_scalar<'a>(files: &'a [(PathBuf, Vec<u8>)], key: &str) -> Option<YamlScalar<'a>> {
    let mut found = None;
    for (file, content) in files {
        for (index, line) in String::from_utf8_lossy(content).lines().enumerate() {
            if let Some((name, value)) = line.split_once(':')
                && name.trim_end().trim_matches(['"', '\'']) == key
                && (value.is_empty() || value.starts_with([' ', '\t']))
            {
                found = Some(YamlScalar { file, line: index + 1, value: normalize_scalar(value) });
            }
        }
    }
    found
}

fn normalize_scalar(text: &str) -> String {
    let text = text.trim_start();
    let value = match text.chars().next() {
        Some(quote @ ('"' | '\'')) => text[1..].split(quote).next().unwrap_or_default(),
        Some('#') => "",
        _ => text.split(" #").next().unwrap_or_default(),
    };
    value.trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(text: &str) -> Vec<(PathBuf, Vec<u8>)> {
        vec![("/etc/cloud/cloud.cfg".into(), text.into())]
    }

    /// An image without problems.
    fn clean_image() -> ImageFacts {
        ImageFacts { key_maker: Some("/u/sshd-keygen@.service".into()), ..ImageFacts::default() }
    }

    fn failed_findings(image: &ImageFacts, setting: &ImageLintContext) -> Vec<(&'static str, String)> {
        let findings = lint_image(image, setting).into_iter().filter(|finding| !finding.is_well);
        findings.map(|finding| (finding.name, finding.message)).collect()
    }

    #[test]
    fn machine_id_kept_in_image_is_reported() {
        for (id, copy, count) in [
            (None, None, 0),
            (Some(""), None, 0),
            (Some("\n"), None, 0),
            (Some("uninitialized\n"), None, 0),
            (Some("0123456789abcdef0123456789abcdef\n"), None, 1),
            (Some("anything"), Some("/var/lib/dbus/machine-id"), 2),
            (Some(""), Some("/var/lib/dbus/machine-id"), 1),
        ] {
            let image = ImageFacts {
                machine_id: id.map(Into::into),
                dbus_machine_id: copy.map(Into::into),
                ..clean_image()
            };
            let seen = failed_findings(&image, &ImageLintContext::default());
            assert_eq!(seen.len(), count, "{id:?} {copy:?} {seen:?}");
            assert!(seen.iter().all(|(name, text)| *name == "machine-id" && text.contains("; ")), "{seen:?}");
        }
    }

    #[test]
    fn host_keys_kept_in_image_are_reported() {
        let some = vec![PathBuf::from("/etc/ssh/ssh_host_ed25519_key")];
        let unit = Some(PathBuf::from("/u/keys.service"));
        let none = Vec::new();
        for (keys, unit, cloud_init, said) in [
            (&some, &None, None, Some("Debian's ssh.service does not")),
            (&some, &unit, None, Some("and /u/keys.service makes new ones")),
            (&some, &None, Some(""), None),
            (&some, &None, Some("ssh_deletekeys: true"), None),
            (&some, &None, Some("ssh_deletekeys: 1\n"), None),
            (&some, &None, Some("ssh_deletekeys: 0\n"), Some("which leaves these alone")),
            (&some, &None, Some("ssh_deletekeys:\n"), Some("which leaves these alone")),
            (&none, &None, Some("ssh_deletekeys: false"), None),
            (&none, &unit, None, None),
            (&none, &None, None, Some("its sshd will not start")),
        ] {
            let image = ImageFacts {
                host_keys: keys.clone(),
                key_maker: unit.clone(),
                cloud_init: cloud_init.map(config),
                ..ImageFacts::default()
            };
            let seen = failed_findings(&image, &ImageLintContext::default());
            let found = seen.first().map(|(_, text)| text.as_str());
            assert_eq!(found.is_some(), said.is_some(), "{cloud_init:?} {seen:?}");
            assert!(said.is_none_or(|said| found.unwrap().contains(said)), "{said:?} {seen:?}");
        }
    }

    #[test]
    fn cloud_init_settings_are_reported() {
        let drop_in = Some(Place::DropIn("/etc/ssh/sshd_config.d/00-keypair-agent.conf".into()));
        let top = Some(Place::TopBlock("/etc/ssh/sshd_config".into()));
        for (text, root, place, said) in [
            ("disable_root: false\n", true, &drop_in, vec![]),
            ("disable_root: false\nssh_pwauth: unchanged\n", true, &drop_in, vec![]),
            ("disable_root: false\n  ssh_pwauth: true\n#ssh_pwauth: true\n", true, &drop_in, vec![]),
            ("disable_root: false\nssh_pwauth: true\n", true, &drop_in, vec!["`PasswordAuthentication yes`"]),
            ("disable_root: 0\nssh_pwauth: 0 # no\n", true, &drop_in, vec!["`PasswordAuthentication no`"]),
            ("disable_root: no\n'ssh_pwauth': \"No\"\n", true, &None, vec!["`PasswordAuthentication no`"]),
            (
                "disable_root: off\nssh_pwauth: yes\n",
                true,
                &top,
                vec!["read ahead of it; `ssh_pwauth: unchanged`"],
            ),
            ("disable_root: off\nssh_pwauth: yes\nssh_pwauth:\n", true, &top, vec![]),
            ("disable_root: true\n", true, &drop_in, vec!["in front: ours"]),
            ("users:\n", true, &drop_in, vec!["its default"]),
            ("disable_root: true\n", false, &drop_in, vec![]),
        ] {
            let image = ImageFacts { cloud_init: Some(config(text)), ..clean_image() };
            let seen =
                failed_findings(&image, &ImageLintContext { target_is_root: root, place: place.clone() });
            assert_eq!(seen.len(), said.len(), "{text} {seen:?}");
            for ((_, seen), said) in seen.iter().zip(said) {
                assert!(seen.contains(said), "{text} {seen}");
            }
        }
    }

    #[test]
    fn cloud_init_last_file_wins() {
        let mut files = config("# x\nssh_pwauth: true\n");
        files.push(("/etc/cloud/cloud.cfg.d/99.cfg".into(), b"\nssh_pwauth: false\n".into()));
        let setting = find_last_scalar(&files, "ssh_pwauth").unwrap();
        assert_eq!((setting.file, setting.line), (Path::new("/etc/cloud/cloud.cfg.d/99.cfg"), 2));
        assert!(setting.is_false());
        assert_eq!(find_last_scalar(&files, "ssh_pw"), None);
    }
}
