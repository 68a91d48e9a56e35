//! The sshd of this guest, asked (contract 6): what it says of its files as they stand, and of a setting that
//! is not there yet.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::locate::{self, Located};
use super::question::{About, Questioner};
use super::{child, config_tree, process, sockets};
use crate::policy::connection::{anybody, connections, listening_ports};
use crate::policy::effective::Effective;
use crate::policy::listener;
use crate::policy::observation::{Answer, ConfigTree, Connection, OtherListener, Reload, Sshd};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::sshd_config::named_hosts;

/// The main file of an sshd that was built as all distributions do.
const DEFAULT_CONFIG: &str = "/etc/ssh/sshd_config";

/// Where sshd looks when that one does not exist, on systems that keep `/etc` for the administrator.
const VENDOR_CONFIG: &str = "/usr/etc/ssh/sshd_config";

/// The most that is read of a host's public key.
const MAX_PUBLIC_KEY: u64 = 64 * 1024;

/// `[sshd]` of the agent's configuration (contract 8), and its `run_dir`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshdSettings {
    /// The program that is asked.
    pub binary: PathBuf,
    /// The main configuration file.
    pub config: PathBuf,
    /// The listener's pid file, where it is not systemd's unit that is meant.
    pub pid_file: Option<PathBuf>,
    /// Where a private directory may be made for the time of a question.
    pub run_dir: PathBuf,
}

/// Finds sshd, reads its files and asks it for `user` (contract 6, "Whom we ask" and "For whom").
pub fn observe(settings: &SshdSettings, user: &str) -> Result<Sshd, Refusal> {
    let (main, main_is_writable) = main_file(&settings.config, DEFAULT_CONFIG, VENDOR_CONFIG)?;
    if !settings.binary.exists() {
        let text = format!(
            "there is no sshd at {}: install the OpenSSH server, or name its program as 'binary' in [sshd] of \
             the agent's configuration",
            settings.binary.display()
        );
        return Err(Refusal::new(Reason::SshdNotFound, text));
    }
    let located = locate::locate(settings)?;
    let options = options_of(settings, &located, &main)?;
    let mut questioner = Questioner::new(&settings.binary, &main, &options, &settings.run_dir);
    questioner.test(About::Live)?.map_err(already_invalid)?;
    let config = config_tree::read_tree(&main)?;
    // Where it listens is the same for everybody.
    let effective = questioner.effective(About::Live, &anybody(user))?.map_err(already_invalid)?;
    let connections = connections(user, &effective, &hosts(&config, &options));
    let answers = questioner.answers(About::Live, connections)?.map_err(already_invalid)?;
    drop(questioner);
    let listeners = process::listeners(&settings.binary);
    refuse_an_unseen_listener(settings, &located, &effective, &listeners)?;
    let has_read_its_files = has_read_its_files(effective.value("pidfile"), &config);
    Ok(Sshd {
        binary: settings.binary.clone(),
        options,
        running: located.running,
        main_is_writable,
        config,
        answers,
        reload: located.reload,
        has_read_its_files,
        others: listeners.into_iter().filter(|other| Some(other.pid) != located.pid).collect(),
    })
}

/// sshd's files as they stand, without asking it.
pub fn files(settings: &SshdSettings) -> Result<ConfigTree, Refusal> {
    let (main, _) = main_file(&settings.config, DEFAULT_CONFIG, VENDOR_CONFIG)?;
    config_tree::read_tree(&main)
}

/// What sshd would say if `ahead` stood ahead of its present configuration (contract 6, "Tried before it is
/// live"). Nothing is written.
pub fn try_ahead(
    settings: &SshdSettings,
    sshd: &Sshd,
    ahead: &str,
    connections: &[Connection],
) -> Result<Vec<Answer>, Refusal> {
    let main = &sshd.config.main;
    let path = main.to_string_lossy();
    if path.contains(['[', '*', '?', '"', '\\', '\n']) {
        let text = format!("{path}: sshd's Include would take this path for a pattern; rename the file");
        return Err(Refusal::new(Reason::UnsafePath, text));
    }
    let mut questioner = questioner(settings, sshd);
    let include = format!("{ahead}\nInclude \"{path}\"\n");
    let refused = match answer(&mut questioner, connections, About::Text(&include))? {
        Ok(answers) => return Ok(answers),
        Err(words) => words,
    };
    if !refused.to_ascii_lowercase().contains("bad configuration option: include") {
        return Err(rejected(&refused, main));
    }
    // Before OpenSSH 8.2.
    let text = sshd.config.files.get(main).map(|bytes| String::from_utf8_lossy(bytes)).unwrap_or_default();
    let inlined = format!("{ahead}\n{text}");
    answer(&mut questioner, connections, About::Text(&inlined))?.map_err(|words| rejected(&words, main))
}

/// What sshd says of its files as they stand now.
pub fn ask_live(
    settings: &SshdSettings,
    sshd: &Sshd,
    connections: &[Connection],
) -> Result<Vec<Answer>, Refusal> {
    answer(&mut questioner(settings, sshd), connections, About::Live)?.map_err(|words| {
        Refusal::new(Reason::SshdConfigRejected, format!("sshd refuses its configuration: {words}"))
    })
}

/// A host key's public half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey {
    /// Its type, as in `ssh-ed25519`.
    pub key_type: String,
    /// Its bytes.
    pub blob: Vec<u8>,
}

/// The public host keys of this guest. One that can't be read is left out.
pub fn host_keys(sshd: &Sshd) -> Vec<HostKey> {
    let files = sshd.answers.first().map(|answer| answer.effective.values("hostkey")).unwrap_or_default();
    files.iter().filter_map(|file| host_key(Path::new(&format!("{file}.pub")))).collect()
}

/// Whether the listener has read its files as they stand: it writes its pid file anew whenever it has. `None` where
/// there is none.
fn has_read_its_files(pid_file: &str, config: &ConfigTree) -> Option<bool> {
    let written = fs::metadata(pid_file).ok()?;
    let written = (written.mtime(), written.mtime_nsec());
    let changed = |file: &PathBuf| fs::metadata(file).map(|file| (file.ctime(), file.ctime_nsec())).ok();
    Some(config.files.keys().filter_map(changed).all(|changed| changed < written))
}

/// `sshd -T` of the files as they stand, for the first connection of the observation.
pub(super) fn effective_now(settings: &SshdSettings, sshd: &Sshd) -> Result<Effective, Refusal> {
    let connection = sshd.answers.first().map_or_else(|| anybody("root"), |answer| answer.connection.clone());
    questioner(settings, sshd).effective(About::Live, &connection)?.map_err(already_invalid)
}

fn questioner<'a>(settings: &'a SshdSettings, sshd: &'a Sshd) -> Questioner<'a> {
    Questioner::new(&sshd.binary, &sshd.config.main, &sshd.options, &settings.run_dir)
}

fn answer(
    questioner: &mut Questioner<'_>,
    connections: &[Connection],
    about: About<'_>,
) -> Result<Result<Vec<Answer>, String>, Refusal> {
    if let Err(words) = questioner.test(about)? {
        return Ok(Err(words));
    }
    questioner.answers(about, connections.iter().cloned())
}

fn already_invalid(words: String) -> Refusal {
    let text =
        format!("sshd refuses its present configuration, before any change of ours: {words}; correct it");
    Refusal::new(Reason::SshdConfigAlreadyInvalid, text)
}

fn rejected(words: &str, main: &Path) -> Refusal {
    let words = words.replace("/dev/stdin", "the new setting");
    let text =
        format!("sshd refuses the new setting ahead of {}: {words}; nothing was changed", main.display());
    Refusal::new(Reason::SshdConfigRejected, text)
}

/// The main file, and whether it may be written: the vendor's may not.
fn main_file(config: &Path, default: &str, vendor: &str) -> Result<(PathBuf, bool), Refusal> {
    if config.exists() {
        return Ok((config.to_owned(), config != Path::new(vendor)));
    }
    if config == Path::new(default) && Path::new(vendor).exists() {
        return Ok((PathBuf::from(vendor), false));
    }
    let text = format!(
        "there is no sshd configuration {}: install the OpenSSH server, or name the file as 'config' in [sshd] \
         of the agent's configuration",
        config.display()
    );
    Err(Refusal::new(Reason::SshdNotFound, text))
}

/// Whether an sshd may run by our main file: one that is not to be told apart, or to be asked, may.
///
/// # Errors
/// `IO_ERROR`, `SSHD_RELOAD_UNSAFE`: it cannot be told now.
pub fn may_run(settings: &SshdSettings) -> Result<bool, Refusal> {
    let located = match locate::locate(settings) {
        Ok(located) => located,
        Err(refusal) if refusal.reason == Reason::SshdNotFound => return Ok(true),
        Err(refusal) => return Err(refusal),
    };
    let main = main_file(&settings.config, DEFAULT_CONFIG, VENDOR_CONFIG);
    if !located.running {
        // All is there, and it could not be asked: something listens on its port that nobody names.
        return Ok(main.is_ok() && settings.binary.exists());
    }
    // By its own words another file is its main file.
    let named = listener::repeated(&located.arguments).ok().and_then(|found| found.config);
    let reads_another = named.zip(main.ok()).is_some_and(|(named, (main, _))| !is_same_file(&named, &main));
    Ok(!reads_another)
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    fs::canonicalize(one).ok().is_some_and(|one| fs::canonicalize(other).is_ok_and(|other| one == other))
}

/// The options that every question repeats, if the listener reads our main file.
fn options_of(settings: &SshdSettings, located: &Located, main: &Path) -> Result<Vec<String>, Refusal> {
    let not_found = |text: String| Refusal::new(Reason::SshdNotFound, text);
    let name = &located.name;
    let found = listener::repeated(&located.arguments).map_err(|error| {
        not_found(format!("{name}: {error}; start it with an absolute path and plain options"))
    })?;
    let reads = match found.config {
        Some(config) => Some(config),
        // `main` is what sshd itself would take, unless it was built for another place.
        None if main == Path::new(DEFAULT_CONFIG) || main == Path::new(VENDOR_CONFIG) => None,
        None if located.running => built_in_config(&settings.binary)?,
        None => None,
    };
    match reads.filter(|reads| !is_same_file(reads, main)) {
        None => Ok(found.options),
        Some(other) => Err(not_found(format!(
            "{name} reads {}, not {}: name that file as 'config' in [sshd] of the agent's configuration",
            other.display(),
            main.display()
        ))),
    }
}

/// The main file that this sshd was built with, where its debug output names it.
fn built_in_config(binary: &Path) -> Result<Option<PathBuf>, Refusal> {
    let output = child::run(binary, &["-t", "-ddd"], "")
        .map_err(|error| Refusal::new(Reason::IoError, format!("asking sshd: {error}")))?;
    let named = output.stderr.lines().find_map(|line| line.split_once("load_server_config: filename "));
    Ok(named.map(|(_, path)| PathBuf::from(path.trim())))
}

/// The hosts that rules name, in the files and in the options.
fn hosts(config: &ConfigTree, options: &[String]) -> Vec<String> {
    let mut hosts: Vec<String> = config.files.values().flat_map(|bytes| named_hosts(bytes)).collect();
    hosts.extend(options.iter().flat_map(|option| named_hosts(option.as_bytes())));
    hosts
}

/// Where a pid file leads to nobody, an sshd that listens all the same would keep its configuration, and
/// we would say it had changed.
fn refuse_an_unseen_listener(
    settings: &SshdSettings,
    located: &Located,
    effective: &Effective,
    listeners: &[OtherListener],
) -> Result<(), Refusal> {
    let Reload::None(why) = &located.reload else { return Ok(()) };
    if settings.pid_file.is_none() && super::systemd::is_running() {
        return Ok(());
    }
    let ports = listening_ports(effective);
    let sockets = sockets::listening(None).unwrap_or_default();
    let Some(taken) = sockets.iter().map(|socket| socket.address.port()).find(|port| ports.contains(port))
    else {
        return Ok(());
    };
    let on_a_port = |own: &[u16]| own.is_empty() || own.iter().any(|port| ports.contains(port));
    let who = match listeners.iter().find(|listener| on_a_port(&listener.ports)) {
        Some(OtherListener { pid, line, .. }) => format!("pid {pid} ('{line}')"),
        None => "something".to_owned(),
    };
    let text = format!(
        "{why}, but {who} listens on its port {taken}: name that listener's pid file as 'pid_file' in [sshd] of \
         the agent's configuration"
    );
    Err(Refusal::new(Reason::SshdNotFound, text))
}

/// The public key in a file.
fn host_key(file: &Path) -> Option<HostKey> {
    use base64ct::{Base64, Encoding};
    let mut line = String::new();
    fs::File::open(file).ok()?.take(MAX_PUBLIC_KEY).read_to_string(&mut line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let (key_type, blob) = (words.next()?, words.next()?);
    Some(HostKey { key_type: key_type.to_owned(), blob: Base64::decode_vec(blob).ok()? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn which_main_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let choose = |config: &str| {
            main_file(&at(config), at("default").to_str().unwrap(), at("vendor").to_str().unwrap())
        };
        let refusal = choose("default").unwrap_err();
        assert_eq!(refusal.reason, Reason::SshdNotFound);
        assert!(refusal.message.contains("/default"), "{}", refusal.message);
        fs::write(at("vendor"), "").unwrap();
        assert_eq!(choose("default"), Ok((at("vendor"), false)));
        assert_eq!(choose("vendor"), Ok((at("vendor"), false)));
        assert!(choose("other").is_err());
        fs::write(at("default"), "").unwrap();
        assert_eq!(choose("default"), Ok((at("default"), true)));
    }
}
