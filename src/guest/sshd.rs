//! The sshd of this guest, asked (KP-6.2 to KP-6.10): what it says of its files as they stand, and of a setting that
//! is not there yet.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::config_tree::Rules;
use super::files::{reach, read_file, resolved};
use super::locate::{self, Located};
use super::question::{About, Questioner};
use super::sockets::{self, Listening};
use super::{child, config_tree, process};
use crate::policy::connection::{anybody, connections, listening_ports};
use crate::policy::effective::Effective;
use crate::policy::foreign::foreign;
use crate::policy::listener;
use crate::policy::observation::{Answer, ConfigTree, Connection, OtherListener, Reload, Sshd};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::sshd_config::{has_relative_include, named_hosts};

/// The main file of an sshd that was built as all distributions do.
const DEFAULT_CONFIG: &str = "/etc/ssh/sshd_config";

/// Where sshd looks when that one does not exist, on systems that keep `/etc` for the administrator.
const VENDOR_CONFIG: &str = "/usr/etc/ssh/sshd_config";

/// The most that is read of a host's public key.
const MAX_PUBLIC_KEY: usize = 64 * 1024;

/// `[sshd]` of the agent's configuration (KP-8.10), and its `run_dir`.
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

/// Finds sshd, reads its files and asks it for `user` (KP-6.2 and KP-6.6).
pub fn observe(settings: &SshdSettings, user: &str) -> Result<Sshd, Refusal> {
    let (main, main_is_writable) = main_file(&settings.config, DEFAULT_CONFIG, VENDOR_CONFIG)?;
    let mut located = locate::locate(settings)?;
    if located.pid.is_none() && !process::listeners(&settings.binary).is_empty() {
        // Its own sshd may have begun to listen since: a slow boot.
        located = locate::locate(settings)?;
    }
    reach(&located.program)?;
    if !located.program.exists() {
        let text = format!(
            "there is no sshd at {}; install the OpenSSH server, or name its program as 'binary' in [sshd] of \
             the agent's configuration",
            located.program.display()
        );
        return Err(Refusal::new(Reason::SshdNotFound, text));
    }
    let options = options_of(settings, &located, &main)?;
    config_tree::refuse_endless(&main)?;
    let mut questioner = Questioner::new(&located.program, &main, &options, &settings.run_dir);
    questioner.test(About::Live)?.map_err(already_invalid)?;
    // Where it listens is the same for everybody.
    let effective = questioner.effective(About::Live, &anybody(user))?.map_err(already_invalid)?;
    let config = tree_as_it_reads_it(&located.program, &main, &effective)?;
    let connections = connections(user, &effective, &hosts(&config, &options));
    let answers = questioner.answers(About::Live, connections)?.map_err(already_invalid)?;
    drop(questioner);
    let listeners = process::listeners(&settings.binary);
    refuse_an_unseen_listener(settings, &located, &effective, &listeners)?;
    refuse_another_ports_listener(&located, &effective, &listeners)?;
    let has_read_its_files = has_read_its_files(effective.value("pidfile"), &config);
    let others = others(listeners, &located, &listening_ports(&effective));
    Ok(Sshd {
        binary: located.program,
        options,
        running: located.running,
        is_awaited: !located.running && is_awaited(settings, &effective),
        main_is_writable,
        config,
        answers,
        reload: located.reload,
        has_read_its_files,
        others,
    })
}

/// The listeners that are neither the one that is asked nor one that its service is putting in its place.
fn others(listeners: Vec<OtherListener>, located: &Located, ports: &[u16]) -> Vec<OtherListener> {
    let service = located.pid.and_then(process::service);
    let is_its_own = |other: &OtherListener| {
        let is_on_its_ports = other.ports.is_empty() || other.ports.iter().any(|port| ports.contains(port));
        Some(other.pid) == located.pid
            || (service.is_some() && is_on_its_ports && process::service(other.pid) == service)
    };
    listeners.into_iter().filter(|other| !is_its_own(other)).collect()
}

/// sshd's files as they stand, without asking it.
pub fn files(settings: &SshdSettings) -> Result<ConfigTree, Refusal> {
    let (main, _) = main_file(&settings.config, DEFAULT_CONFIG, VENDOR_CONFIG)?;
    config_tree::read_tree(&main, &Rules::default())
}

/// The files of an sshd that was observed, as they stand now and as it reads them.
pub fn files_of(sshd: &Sshd) -> Result<ConfigTree, Refusal> {
    let main = &sshd.config.main;
    match sshd.answers.first() {
        Some(first) => tree_as_it_reads_it(&sshd.binary, main, &first.effective),
        None => config_tree::read_tree(main, &Rules::default()),
    }
}

/// sshd's files as this sshd reads them. Its version and its own directory are asked for only where it matters: OpenSSH 8.2
/// and 8.3 do not find a relative Include, and listen on port 22 besides as soon as any file is included.
fn tree_as_it_reads_it(program: &Path, main: &Path, effective: &Effective) -> Result<ConfigTree, Refusal> {
    let tree = config_tree::read_tree(main, &Rules::default())?;
    let has_relative = tree.files.values().any(|content| has_relative_include(content));
    let would_open_22 = |tree: &ConfigTree| {
        let mut included = tree.includes.values().flatten();
        !tree.includes.is_empty()
            && included.all(|included| included.files.is_empty())
            && listening_ports(effective) != [22]
    };
    if !has_relative && !would_open_22(&tree) {
        return Ok(tree);
    }
    let is_old = matches!(version(program)?, Some((8, 2 | 3)));
    let ssh_dir = match (is_old, has_relative) {
        (true, _) => None,
        (false, true) => built_in_config(program)?.and_then(|config| config.parent().map(Path::to_owned)),
        (false, false) => return Ok(tree),
    };
    let rules = if is_old || ssh_dir.is_some() { Rules { ssh_dir } } else { Rules::default() };
    let mut tree = config_tree::read_tree(main, &rules)?;
    if is_old && would_open_22(&tree) {
        // No place for a drop-in, which would be the first file that is included.
        for included in tree.includes.values_mut().flatten() {
            included.directory_exists = false;
        }
    }
    Ok(tree)
}

/// The version of this sshd, as it says it of itself. Up to OpenSSH 8.9 it knows no option for that, and says it all the same.
fn version(program: &Path) -> Result<Option<(u32, u32)>, Refusal> {
    let output = child::run(program, &["-V"], "")
        .map_err(|error| Refusal::new(Reason::IoError, format!("asking sshd for its version: {error}")))?;
    Ok([&output.stderr, &output.stdout].into_iter().find_map(|text| version_in(text)))
}

/// The version in a text such as `OpenSSH_8.2p1 Ubuntu-4ubuntu0.11`.
fn version_in(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("OpenSSH_")?;
    let (major, rest) = rest.split_once('.')?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    Some((major.parse().ok()?, rest.get(..digits)?.parse().ok()?))
}

/// What sshd would say if `ahead` stood ahead of its present configuration (KP-6.9). Nothing is written.
pub fn try_ahead(
    settings: &SshdSettings,
    sshd: &Sshd,
    ahead: &str,
    connections: &[Connection],
) -> Result<Vec<Answer>, Refusal> {
    // The text itself, and no Include of it: OpenSSH before 8.2 has none, and 8.2 and 8.3 pass over every `Match` of an
    // included file and listen on port 22 besides.
    let main = &sshd.config.main;
    let mut text = format!("{ahead}\n").into_bytes();
    let lines_ahead = text.iter().filter(|byte| **byte == b'\n').count();
    text.extend(sshd.config.files.get(main).into_iter().flatten());
    answer(&mut questioner(settings, sshd), connections, About::Text(&text))?
        .map_err(|words| rejected(&words, main, lines_ahead))
}

/// What sshd says of its files as they stand now.
pub fn ask_live(
    settings: &SshdSettings,
    sshd: &Sshd,
    connections: &[Connection],
) -> Result<Vec<Answer>, Refusal> {
    answer(&mut questioner(settings, sshd), connections, About::Live)?.map_err(|words| {
        Refusal::new(
            Reason::SshdConfigRejected,
            format!("sshd refuses its configuration: {}", foreign(&words)),
        )
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

/// Whether something listens, or will, although no sshd runs: systemd's socket unit, whatever its name, or a port of
/// sshd's that is taken. That no sshd has it was seen before.
fn is_awaited(settings: &SshdSettings, effective: &Effective) -> bool {
    if settings.pid_file.is_some() || !super::systemd::is_running() {
        return false;
    }
    let ports = listening_ports(effective);
    let sockets = sockets::listening(None).unwrap_or_default();
    sockets.iter().any(|socket| ports.contains(&socket.address.port()))
        || super::systemd::will_listen_for_sshd()
}

/// Whether the listener has read its files as they stand: it writes its pid file anew whenever it has. `None` where
/// there is none.
fn has_read_its_files(pid_file: &str, config: &ConfigTree) -> Option<bool> {
    let written = fs::metadata(pid_file).ok()?;
    let written = (written.mtime(), written.mtime_nsec());
    let changed = |file: &PathBuf| fs::metadata(file).map(|file| (file.ctime(), file.ctime_nsec())).ok();
    let included = config.includes.values().flatten().flat_map(|included| &included.files);
    let read: BTreeSet<&PathBuf> = included.chain([&config.main]).collect();
    Some(read.into_iter().filter_map(changed).all(|changed| changed < written))
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
    let words = foreign(&words);
    let text =
        format!("sshd refuses its present configuration, before any change of ours: {words}; correct it");
    Refusal::new(Reason::SshdConfigAlreadyInvalid, text)
}

fn rejected(words: &str, main: &Path, lines_ahead: usize) -> Refusal {
    let words = foreign(&in_their_files(words, main, lines_ahead));
    let text =
        format!("sshd refuses the new setting ahead of {}: {words}; nothing was changed", main.display());
    Refusal::new(Reason::SshdConfigRejected, text)
}

/// sshd's words about a text on its standard input, of which the first lines are the new setting and the rest the main
/// file's: the lines are named by the file in which they stand.
fn in_their_files(words: &str, main: &Path, lines_ahead: usize) -> String {
    let mut said = String::with_capacity(words.len());
    let mut parts = words.split("/dev/stdin");
    said.push_str(parts.next().unwrap_or_default());
    for part in parts {
        // `/dev/stdin line 3: …` and `/dev/stdin: line 3: …`
        let numbered = [" line ", ": line "].into_iter().find_map(|between| {
            let rest = part.strip_prefix(between)?;
            let behind = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            let line: usize = rest[..rest.len() - behind.len()].parse().ok()?;
            Some((between, line, behind))
        });
        match numbered {
            Some((between, line, behind)) if line > lines_ahead => {
                let line = line - lines_ahead;
                said.push_str(&format!("{}{between}{line}{behind}", main.display()));
            }
            _ => said.push_str(&format!("the new setting{part}")),
        }
    }
    said
}

/// The main file that is meant.
pub(super) fn main_file_of(settings: &SshdSettings) -> Result<PathBuf, Refusal> {
    main_file(&settings.config, DEFAULT_CONFIG, VENDOR_CONFIG).map(|(main, _)| main)
}

/// The ports on which `program` would listen by this main file and the options of these arguments, the program first.
pub(super) fn ports_of(
    settings: &SshdSettings,
    main: &Path,
    program: &Path,
    arguments: &[String],
) -> Result<Vec<u16>, Refusal> {
    let options = listener::repeated(arguments).map(|found| found.options).unwrap_or_default();
    let mut questioner = Questioner::new(program, main, &options, &settings.run_dir);
    let effective = questioner.effective(About::Live, &anybody("root"))?.map_err(already_invalid)?;
    Ok(listening_ports(&effective))
}

/// The main file, and whether it may be written: the vendor's may not.
fn main_file(config: &Path, default: &str, vendor: &str) -> Result<(PathBuf, bool), Refusal> {
    reach(config)?;
    if config.exists() {
        return Ok((config.to_owned(), config != Path::new(vendor)));
    }
    if config == Path::new(default) && Path::new(vendor).exists() {
        return Ok((PathBuf::from(vendor), false));
    }
    let text = format!(
        "there is no sshd configuration {}; install the OpenSSH server, or name the file as 'config' in [sshd] \
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
        return Ok(main.is_ok() && located.program.exists());
    }
    // By its own words another file is its main file, or by its program's.
    let named = match listener::repeated(&located.arguments) {
        Ok(found) => found.config.or_else(|| built_in_config(&located.program).ok().flatten()),
        Err(_) => None,
    };
    let reads_another = named.zip(main.ok()).is_some_and(|(named, (main, _))| !is_same_file(&named, &main));
    Ok(!reads_another)
}

pub(super) fn is_same_file(one: &Path, other: &Path) -> bool {
    resolved(one).is_some_and(|one| resolved(other) == Some(one))
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
        None if located.options_are_known => built_in_config(&located.program)?,
        None => None,
    };
    // Built for the first, it takes the second where the first does not exist.
    let is_vendors = |reads: &Path| main == Path::new(VENDOR_CONFIG) && reads == Path::new(DEFAULT_CONFIG);
    let Some(other) = reads.filter(|reads| !is_same_file(reads, main) && !is_vendors(reads)) else {
        return Ok(found.options);
    };
    let (program, configured) = (&located.program, &settings.binary);
    Err(not_found(if is_same_file(program, configured) {
        format!(
            "{name} reads {}, not {}: name that file as 'config' in [sshd] of the agent's configuration",
            other.display(),
            main.display()
        )
    } else {
        format!(
            "{name} runs {}, which reads {}; the agent is told of {} and {}: name the first two as 'binary' and \
             'config' in [sshd] of the agent's configuration",
            program.display(),
            other.display(),
            configured.display(),
            main.display()
        )
    }))
}

/// The main file that this sshd was built with, where its debug output names it.
pub(super) fn built_in_config(binary: &Path) -> Result<Option<PathBuf>, Refusal> {
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
    let ports = listening_ports(effective);
    let sockets = sockets::listening(None).unwrap_or_default();
    if settings.pid_file.is_none() && super::systemd::is_running() {
        return refuse_a_listener_outside_its_unit(why, located, &ports, &sockets, listeners);
    }
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

/// The unit does not run, and an sshd listens on its port all the same: by which files, nobody says. What systemd itself
/// holds for a socket unit is no sshd's.
fn refuse_a_listener_outside_its_unit(
    why: &str,
    located: &Located,
    ports: &[u16],
    sockets: &[Listening],
    listeners: &[OtherListener],
) -> Result<(), Refusal> {
    let taken = sockets.iter().map(|socket| socket.address.port()).find(|port| ports.contains(port));
    let Some(taken) = taken else { return Ok(()) };
    let certain = listeners.iter().find(|listener| listener.ports.contains(&taken));
    // Where no descriptors can be read, one that looks like a listener may hold the port, unless systemd does.
    let likely = || listeners.iter().find(|listener| listener.ports.is_empty());
    let Some(OtherListener { pid, line, .. }) =
        certain.or_else(|| likely().filter(|_| !super::systemd::listens_for_sshd()))
    else {
        return Ok(());
    };
    let text = format!(
        "{why}, but pid {pid} ('{line}') listens on port {taken}, and the agent would ask {}: start sshd by its unit, \
         or name that listener's pid file as 'pid_file' in [sshd] of the agent's configuration",
        located.program.display()
    );
    Err(Refusal::new(Reason::SshdNotFound, text))
}

/// The sshd that was found listens on none of the ports of its configuration, and another one on one of them: it is that
/// one's answer that would count.
fn refuse_another_ports_listener(
    located: &Located,
    effective: &Effective,
    listeners: &[OtherListener],
) -> Result<(), Refusal> {
    let Some(pid) = located.pid else { return Ok(()) };
    let ports = listening_ports(effective);
    let has_one = |own: &[u16]| own.iter().any(|port| ports.contains(port));
    let Some(own) = process::listening_ports(pid).filter(|own| !own.is_empty()) else { return Ok(()) };
    let other = listeners.iter().find(|other| other.pid != pid && has_one(&other.ports));
    match other {
        Some(OtherListener { pid, line, .. }) if !has_one(&own) => {
            let text = format!(
                "{} ({}) listens on no port of its configuration, and pid {pid} ('{line}') on one of them: restart the \
                 first, or name the other's pid file as 'pid_file' in [sshd] of the agent's configuration",
                located.name,
                located.program.display()
            );
            Err(Refusal::new(Reason::SshdNotFound, text))
        }
        _ => Ok(()),
    }
}

/// The public key in a file.
fn host_key(file: &Path) -> Option<HostKey> {
    use base64ct::{Base64, Encoding};
    let content = read_file(file, MAX_PUBLIC_KEY).ok()??;
    let line = String::from_utf8(content).ok()?;
    let mut words = line.split_ascii_whitespace();
    let (key_type, blob) = (words.next()?, words.next()?);
    Some(HostKey { key_type: key_type.to_owned(), blob: Base64::decode_vec(blob).ok()? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, expected) in [
            ("unknown option -- V\nOpenSSH_8.2p1, OpenSSL 3.0.22", Some((8, 2))),
            ("OpenSSH_10.0p2 Debian-7, OpenSSL", Some((10, 0))),
            ("OpenSSH_8.2p1 Ubuntu-4ubuntu0.11, x", Some((8, 2))),
            ("OpenSSH_9", None),
            ("", None),
        ] {
            assert_eq!(version_in(text), expected, "{text}");
        }
    }

    #[test]
    fn lines_are_named_by_their_file() {
        let main = Path::new("/etc/ssh/sshd_config");
        for (words, expected) in [
            ("/dev/stdin: line 2: Bad x", "the new setting: line 2: Bad x"),
            (
                "/dev/stdin: line 3: Bad x; /dev/stdin: terminating",
                "/etc/ssh/sshd_config: line 1: Bad x; the new setting: terminating",
            ),
            ("/dev/stdin line 12: y", "/etc/ssh/sshd_config line 10: y"),
            ("/etc/ssh/a.conf line 1: y", "/etc/ssh/a.conf line 1: y"),
        ] {
            assert_eq!(in_their_files(words, main, 2), expected, "{words}");
        }
    }

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
