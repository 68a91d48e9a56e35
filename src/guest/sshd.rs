//! Queries to the sshd of this guest (KP-6.2 to KP-6.10): its answers for its present files, and for a setting that
//! is not written yet.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::config_tree::IncludeRules;
use super::files::{canonicalize_path, ensure_responsive, read_file};
use super::locate::{self, LocatedSshd};
use super::question::{ConfigInput, SshdQuery};
use super::sockets::{self, ListeningSocket};
use super::{child, config_tree, process};
use crate::policy::connection::{default_neutral_connection, list_neutral_connections, listening_ports};
use crate::policy::effective::EffectiveConfig;
use crate::policy::foreign::sanitize_text;
use crate::policy::listener;
use crate::policy::observation::{ConfigTree, Connection, OtherListener, ReloadMethod, Sshd, SshdAnswer};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::sshd_config::{has_relative_include, parse_rule_hosts};

/// The main file of an sshd that was built as all distributions build it.
const DEFAULT_CONFIG: &str = "/etc/ssh/sshd_config";

/// The main file that sshd reads if [`DEFAULT_CONFIG`] does not exist, on systems that keep `/etc` for the
/// administrator.
const VENDOR_CONFIG: &str = "/usr/etc/ssh/sshd_config";

/// The maximum size of a host's public key file that is read.
const MAX_PUBLIC_KEY_BYTES: usize = 64 * 1024;

/// The section `[sshd]` of the agent's configuration (KP-8.10), and its `run_dir`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshdSettings {
    /// The sshd program that the agent queries.
    pub binary: PathBuf,
    /// The main configuration file.
    pub config: PathBuf,
    /// The listener's pid file, if the agent must use it and not systemd's unit.
    pub pid_file: Option<PathBuf>,
    /// The directory in which the agent may create a private directory for the duration of a query.
    pub run_dir: PathBuf,
}

/// Finds sshd, reads its files and queries its configuration for `user` (KP-6.2 and KP-6.6).
pub fn inspect_sshd(settings: &SshdSettings, user: &str) -> Result<Sshd, Refusal> {
    let (main, main_is_writable) = choose_main_file(&settings.config, DEFAULT_CONFIG, VENDOR_CONFIG)?;
    let mut located = locate::find_sshd(settings)?;
    if located.pid.is_none() && !process::list_sshd_listeners(&settings.binary).is_empty() {
        // During a slow boot, this guest's sshd may have begun to listen after the first look.
        located = locate::find_sshd(settings)?;
    }
    ensure_responsive(&located.program)?;
    if !located.program.exists() {
        let text = format!(
            "there is no sshd at {}; install the OpenSSH server, or name its program as 'binary' in [sshd] of \
             the agent's configuration",
            located.program.display()
        );
        return Err(Refusal::new(Reason::SshdNotFound, text));
    }
    let options = resolve_options(settings, &located, &main)?;
    config_tree::refuse_blocking_includes(&main)?;
    let mut questioner = SshdQuery::new(&located.program, &main, &options, &settings.run_dir);
    questioner.test_config(ConfigInput::Live)?.map_err(config_already_invalid)?;
    // The listening addresses are the same for all users, so one query is enough.
    let effective = questioner
        .query_effective(ConfigInput::Live, &default_neutral_connection(user))?
        .map_err(config_already_invalid)?;
    let config = read_tree_like_sshd(&located.program, &main, &effective)?;
    let connections = list_neutral_connections(user, &effective, &list_named_hosts(&config, &options));
    let answers =
        questioner.query_connections(ConfigInput::Live, connections)?.map_err(config_already_invalid)?;
    drop(questioner);
    let listeners = process::list_sshd_listeners(&settings.binary);
    refuse_unidentified_listener(settings, &located, &effective, &listeners)?;
    refuse_other_listener_on_port(&located, &effective, &listeners)?;
    let has_read_its_files = is_listener_current(effective.value("pidfile"), &config);
    let others = select_other_listeners(listeners, &located, &listening_ports(&effective));
    Ok(Sshd {
        binary: located.program,
        options,
        running: located.running,
        is_awaited: !located.running && is_listener_expected(settings, &effective),
        main_is_writable,
        config,
        answers,
        reload: located.reload,
        has_read_its_files,
        others,
    })
}

/// The listeners other than the queried one and other than a new one with which its service is replacing it.
fn select_other_listeners(
    listeners: Vec<OtherListener>,
    located: &LocatedSshd,
    ports: &[u16],
) -> Vec<OtherListener> {
    let service = located.pid.and_then(process::read_cgroup_service);
    let is_its_own = |other: &OtherListener| {
        let is_on_its_ports = other.ports.is_empty() || other.ports.iter().any(|port| ports.contains(port));
        Some(other.pid) == located.pid
            || (service.is_some() && is_on_its_ports && process::read_cgroup_service(other.pid) == service)
    };
    listeners.into_iter().filter(|other| !is_its_own(other)).collect()
}

/// sshd's present files, read without a query to sshd.
pub fn read_config_files(settings: &SshdSettings) -> Result<ConfigTree, Refusal> {
    let (main, _) = choose_main_file(&settings.config, DEFAULT_CONFIG, VENDOR_CONFIG)?;
    config_tree::read_config_tree(&main, &IncludeRules::default())
}

/// The present files of an sshd that was observed, resolved as that sshd resolves them.
pub fn reread_config_files(sshd: &Sshd) -> Result<ConfigTree, Refusal> {
    let main = &sshd.config.main;
    match sshd.answers.first() {
        Some(first) => read_tree_like_sshd(&sshd.binary, main, &first.effective),
        None => config_tree::read_config_tree(main, &IncludeRules::default()),
    }
}

/// sshd's files as this sshd reads them. The function queries its version and its configuration directory only if
/// they matter. OpenSSH 8.2 and 8.3 do not find a relative `Include`. They also listen on port 22 as soon as any
/// file is included.
fn read_tree_like_sshd(
    program: &Path,
    main: &Path,
    effective: &EffectiveConfig,
) -> Result<ConfigTree, Refusal> {
    let tree = config_tree::read_config_tree(main, &IncludeRules::default())?;
    let has_relative = tree.files.values().any(|content| has_relative_include(content));
    let would_add_port_22 = |tree: &ConfigTree| {
        let mut included = tree.includes.values().flatten();
        !tree.includes.is_empty()
            && included.all(|included| included.files.is_empty())
            && listening_ports(effective) != [22]
    };
    if !has_relative && !would_add_port_22(&tree) {
        return Ok(tree);
    }
    let is_old = matches!(query_version(program)?, Some((8, 2 | 3)));
    let ssh_dir = match (is_old, has_relative) {
        (true, _) => None,
        (false, true) => {
            query_built_in_config(program)?.and_then(|config| config.parent().map(Path::to_owned))
        }
        (false, false) => return Ok(tree),
    };
    let rules = if is_old || ssh_dir.is_some() { IncludeRules { ssh_dir } } else { IncludeRules::default() };
    let mut tree = config_tree::read_config_tree(main, &rules)?;
    if is_old && would_add_port_22(&tree) {
        // The drop-in would be the first file that is included, so there is no place for it.
        for included in tree.includes.values_mut().flatten() {
            included.directory_exists = false;
        }
    }
    Ok(tree)
}

/// The version that this sshd reports. Up to OpenSSH 8.9, sshd has no option for that, but it prints its version
/// with the error.
fn query_version(program: &Path) -> Result<Option<(u32, u32)>, Refusal> {
    let output = child::run(program, &["-V"], "")
        .map_err(|error| Refusal::new(Reason::IoError, format!("asking sshd for its version: {error}")))?;
    Ok([&output.stderr, &output.stdout].into_iter().find_map(|text| parse_version(text)))
}

/// The version in a text such as `OpenSSH_8.2p1 Ubuntu-4ubuntu0.11`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("OpenSSH_")?;
    let (major, rest) = rest.split_once('.')?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    Some((major.parse().ok()?, rest.get(..digits)?.parse().ok()?))
}

/// sshd's answers if `ahead` stood before its present configuration (KP-6.9). Nothing is written.
pub fn query_with_prepended(
    settings: &SshdSettings,
    sshd: &Sshd,
    ahead: &str,
    connections: &[Connection],
) -> Result<Vec<SshdAnswer>, Refusal> {
    // Use the text itself and not an `Include` of it. OpenSSH before 8.2 has no `Include`. 8.2 and 8.3 skip every
    // `Match` of an included file and also listen on port 22.
    let main = &sshd.config.main;
    let mut text = format!("{ahead}\n").into_bytes();
    let prepended_lines = text.iter().filter(|byte| **byte == b'\n').count();
    text.extend(sshd.config.files.get(main).into_iter().flatten());
    check_and_query(&mut new_query(settings, sshd), connections, ConfigInput::Text(&text))?
        .map_err(|words| config_rejected(&words, main, prepended_lines))
}

/// sshd's answers for its present files.
pub fn query_live_config(
    settings: &SshdSettings,
    sshd: &Sshd,
    connections: &[Connection],
) -> Result<Vec<SshdAnswer>, Refusal> {
    check_and_query(&mut new_query(settings, sshd), connections, ConfigInput::Live)?.map_err(|words| {
        Refusal::new(
            Reason::SshdConfigRejected,
            format!("sshd refuses its configuration: {}", sanitize_text(&words)),
        )
    })
}

/// The public half of a host key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicHostKey {
    /// The key type, for example `ssh-ed25519`.
    pub key_type: String,
    /// The key's bytes.
    pub blob: Vec<u8>,
}

/// The public host keys of this guest. A key that cannot be read is left out.
pub fn read_public_host_keys(sshd: &Sshd) -> Vec<PublicHostKey> {
    let files = sshd.answers.first().map(|answer| answer.effective.values("hostkey")).unwrap_or_default();
    files.iter().filter_map(|file| read_public_host_key(Path::new(&format!("{file}.pub")))).collect()
}

/// Returns true if something listens or will listen although no sshd runs: systemd's socket unit of any name, or a
/// port of sshd that is in use. The caller has already checked that no sshd has that port.
fn is_listener_expected(settings: &SshdSettings, effective: &EffectiveConfig) -> bool {
    if settings.pid_file.is_some() || !super::systemd::is_booted() {
        return false;
    }
    let ports = listening_ports(effective);
    let sockets = sockets::list_listening_sockets(None).unwrap_or_default();
    sockets.iter().any(|socket| ports.contains(&socket.address.port()))
        || super::systemd::is_sshd_socket_active_or_queued()
}

/// Returns true if the listener has read the present files. sshd writes its pid file again each time it reads them.
/// `None` if there is no pid file.
fn is_listener_current(pid_file: &str, config: &ConfigTree) -> Option<bool> {
    let written = fs::metadata(pid_file).ok()?;
    let written = (written.mtime(), written.mtime_nsec());
    let changed = |file: &PathBuf| fs::metadata(file).map(|file| (file.ctime(), file.ctime_nsec())).ok();
    let included = config.includes.values().flatten().flat_map(|included| &included.files);
    let read: BTreeSet<&PathBuf> = included.chain([&config.main]).collect();
    Some(read.into_iter().filter_map(changed).all(|changed| changed < written))
}

/// The output of `sshd -T` for the present files, for the first connection of the observation.
pub(super) fn query_current_effective(
    settings: &SshdSettings,
    sshd: &Sshd,
) -> Result<EffectiveConfig, Refusal> {
    let connection = sshd
        .answers
        .first()
        .map_or_else(|| default_neutral_connection("root"), |answer| answer.connection.clone());
    new_query(settings, sshd).query_effective(ConfigInput::Live, &connection)?.map_err(config_already_invalid)
}

fn new_query<'a>(settings: &'a SshdSettings, sshd: &'a Sshd) -> SshdQuery<'a> {
    SshdQuery::new(&sshd.binary, &sshd.config.main, &sshd.options, &settings.run_dir)
}

fn check_and_query(
    questioner: &mut SshdQuery<'_>,
    connections: &[Connection],
    about: ConfigInput<'_>,
) -> Result<Result<Vec<SshdAnswer>, String>, Refusal> {
    if let Err(words) = questioner.test_config(about)? {
        return Ok(Err(words));
    }
    questioner.query_connections(about, connections.iter().cloned())
}

fn config_already_invalid(words: String) -> Refusal {
    let words = sanitize_text(&words);
    let text =
        format!("sshd refuses its present configuration, before any change of ours: {words}; correct it");
    Refusal::new(Reason::SshdConfigAlreadyInvalid, text)
}

fn config_rejected(words: &str, main: &Path, prepended_lines: usize) -> Refusal {
    let words = sanitize_text(&map_stdin_lines_to_file(words, main, prepended_lines));
    let text =
        format!("sshd refuses the new setting ahead of {}: {words}; nothing was changed", main.display());
    Refusal::new(Reason::SshdConfigRejected, text)
}

/// Rewrites the line numbers in sshd's messages about a text on its standard input. The first lines of that text
/// are the new setting, the rest is the main file. Each line is named by the file that it comes from.
fn map_stdin_lines_to_file(words: &str, main: &Path, prepended_lines: usize) -> String {
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
            Some((between, line, behind)) if line > prepended_lines => {
                let line = line - prepended_lines;
                said.push_str(&format!("{}{between}{line}{behind}", main.display()));
            }
            _ => said.push_str(&format!("the new setting{part}")),
        }
    }
    said
}

/// The main file that the agent's configuration means.
pub(super) fn find_main_file(settings: &SshdSettings) -> Result<PathBuf, Refusal> {
    choose_main_file(&settings.config, DEFAULT_CONFIG, VENDOR_CONFIG).map(|(main, _)| main)
}

/// The ports on which `program` would listen with this main file and the options in `arguments`. The first argument
/// is the program.
pub(super) fn query_listening_ports(
    settings: &SshdSettings,
    main: &Path,
    program: &Path,
    arguments: &[String],
) -> Result<Vec<u16>, Refusal> {
    let options = listener::select_query_options(arguments).map(|found| found.options).unwrap_or_default();
    let mut questioner = SshdQuery::new(program, main, &options, &settings.run_dir);
    let effective = questioner
        .query_effective(ConfigInput::Live, &default_neutral_connection("root"))?
        .map_err(config_already_invalid)?;
    Ok(listening_ports(&effective))
}

/// The main file, and whether it may be written. The vendor's file may not be written.
fn choose_main_file(config: &Path, default: &str, vendor: &str) -> Result<(PathBuf, bool), Refusal> {
    ensure_responsive(config)?;
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

/// Returns true if an sshd that uses the agent's main file may be running. An sshd that cannot be identified or
/// queried counts.
///
/// # Errors
/// `IO_ERROR`, `SSHD_RELOAD_UNSAFE`: this cannot be determined now.
pub fn is_sshd_possibly_running(settings: &SshdSettings) -> Result<bool, Refusal> {
    let located = match locate::find_sshd(settings) {
        Ok(located) => located,
        Err(refusal) if refusal.reason == Reason::SshdNotFound => return Ok(true),
        Err(refusal) => return Err(refusal),
    };
    let main = choose_main_file(&settings.config, DEFAULT_CONFIG, VENDOR_CONFIG);
    if !located.running {
        // Everything is installed and the query failed all the same: an unidentified process listens on sshd's
        // port.
        return Ok(main.is_ok() && located.program.exists());
    }
    // The sshd may use another main file, by its own arguments or by its program's default.
    let named = match listener::select_query_options(&located.arguments) {
        Ok(found) => found.config.or_else(|| query_built_in_config(&located.program).ok().flatten()),
        Err(_) => None,
    };
    let reads_another = named.zip(main.ok()).is_some_and(|(named, (main, _))| !is_same_file(&named, &main));
    Ok(!reads_another)
}

pub(super) fn is_same_file(one: &Path, other: &Path) -> bool {
    canonicalize_path(one).is_some_and(|one| canonicalize_path(other) == Some(one))
}

/// The options that every query repeats; an error if the listener reads another main file.
fn resolve_options(
    settings: &SshdSettings,
    located: &LocatedSshd,
    main: &Path,
) -> Result<Vec<String>, Refusal> {
    let not_found = |text: String| Refusal::new(Reason::SshdNotFound, text);
    let name = &located.name;
    let found = listener::select_query_options(&located.arguments).map_err(|error| {
        not_found(format!("{name}: {error}; start it with an absolute path and plain options"))
    })?;
    let reads = match found.config {
        Some(config) => Some(config),
        None if located.options_are_known => query_built_in_config(&located.program)?,
        None => None,
    };
    // An sshd that was built for the default file reads the vendor's file if the default file does not exist.
    let is_vendor_fallback =
        |reads: &Path| main == Path::new(VENDOR_CONFIG) && reads == Path::new(DEFAULT_CONFIG);
    let Some(other) = reads.filter(|reads| !is_same_file(reads, main) && !is_vendor_fallback(reads)) else {
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

/// The main file that this sshd was built with, if its debug output names it.
pub(super) fn query_built_in_config(binary: &Path) -> Result<Option<PathBuf>, Refusal> {
    let output = child::run(binary, &["-t", "-ddd"], "")
        .map_err(|error| Refusal::new(Reason::IoError, format!("asking sshd: {error}")))?;
    let named = output.stderr.lines().find_map(|line| line.split_once("load_server_config: filename "));
    Ok(named.map(|(_, path)| PathBuf::from(path.trim())))
}

/// The hosts that rules name, in the files and in the options.
fn list_named_hosts(config: &ConfigTree, options: &[String]) -> Vec<String> {
    let mut hosts: Vec<String> = config.files.values().flat_map(|bytes| parse_rule_hosts(bytes)).collect();
    hosts.extend(options.iter().flat_map(|option| parse_rule_hosts(option.as_bytes())));
    hosts
}

/// Refuses if the pid file leads to no process but something listens on sshd's port. That listener would keep its
/// configuration, and the agent would report a change that did not happen.
fn refuse_unidentified_listener(
    settings: &SshdSettings,
    located: &LocatedSshd,
    effective: &EffectiveConfig,
    listeners: &[OtherListener],
) -> Result<(), Refusal> {
    let ReloadMethod::None(why) = &located.reload else { return Ok(()) };
    let ports = listening_ports(effective);
    let sockets = sockets::list_listening_sockets(None).unwrap_or_default();
    if settings.pid_file.is_none() && super::systemd::is_booted() {
        return refuse_listener_outside_unit(why, located, &ports, &sockets, listeners);
    }
    let Some(taken) = sockets.iter().map(|socket| socket.address.port()).find(|port| ports.contains(port))
    else {
        return Ok(());
    };
    let is_on_port = |own: &[u16]| own.is_empty() || own.iter().any(|port| ports.contains(port));
    let who = match listeners.iter().find(|listener| is_on_port(&listener.ports)) {
        Some(OtherListener { pid, line, .. }) => format!("pid {pid} ('{line}')"),
        None => "something".to_owned(),
    };
    let text = format!(
        "{why}, but {who} listens on its port {taken}: name that listener's pid file as 'pid_file' in [sshd] of \
         the agent's configuration"
    );
    Err(Refusal::new(Reason::SshdNotFound, text))
}

/// Refuses if the unit does not run but an sshd listens on its port, because it is unknown which files that sshd
/// reads. A socket that systemd itself holds for a socket unit belongs to no sshd.
fn refuse_listener_outside_unit(
    why: &str,
    located: &LocatedSshd,
    ports: &[u16],
    sockets: &[ListeningSocket],
    listeners: &[OtherListener],
) -> Result<(), Refusal> {
    let taken = sockets.iter().map(|socket| socket.address.port()).find(|port| ports.contains(port));
    let Some(taken) = taken else { return Ok(()) };
    let certain = listeners.iter().find(|listener| listener.ports.contains(&taken));
    // If no descriptors can be read, a process that looks like a listener may hold the port, unless systemd holds
    // it.
    let likely = || listeners.iter().find(|listener| listener.ports.is_empty());
    let Some(OtherListener { pid, line, .. }) =
        certain.or_else(|| likely().filter(|_| !super::systemd::is_sshd_socket_active()))
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

/// Refuses if the located sshd listens on none of its configured ports and another sshd listens on one of them.
/// Then the other sshd's answer would count.
fn refuse_other_listener_on_port(
    located: &LocatedSshd,
    effective: &EffectiveConfig,
    listeners: &[OtherListener],
) -> Result<(), Refusal> {
    let Some(pid) = located.pid else { return Ok(()) };
    let ports = listening_ports(effective);
    let has_configured_port = |own: &[u16]| own.iter().any(|port| ports.contains(port));
    let Some(own) = process::list_listening_ports(pid).filter(|own| !own.is_empty()) else { return Ok(()) };
    let other = listeners.iter().find(|other| other.pid != pid && has_configured_port(&other.ports));
    match other {
        Some(OtherListener { pid, line, .. }) if !has_configured_port(&own) => {
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
fn read_public_host_key(file: &Path) -> Option<PublicHostKey> {
    use base64ct::{Base64, Encoding};
    let content = read_file(file, MAX_PUBLIC_KEY_BYTES).ok()??;
    let line = String::from_utf8(content).ok()?;
    let mut words = line.split_ascii_whitespace();
    let (key_type, blob) = (words.next()?, words.next()?);
    Some(PublicHostKey { key_type: key_type.to_owned(), blob: Base64::decode_vec(blob).ok()? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn version_is_parsed() {
        for (text, expected) in [
            ("unknown option -- V\nOpenSSH_8.2p1, OpenSSL 3.0.22", Some((8, 2))),
            ("OpenSSH_10.0p2 Debian-7, OpenSSL", Some((10, 0))),
            ("OpenSSH_8.2p1 Ubuntu-4ubuntu0.11, x", Some((8, 2))),
            ("OpenSSH_9", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }

    #[test]
    fn stdin_lines_are_mapped_to_their_file() {
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
            assert_eq!(map_stdin_lines_to_file(words, main, 2), expected, "{words}");
        }
    }

    #[test]
    fn main_file_falls_back_to_vendor_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let choose = |config: &str| {
            choose_main_file(&at(config), at("default").to_str().unwrap(), at("vendor").to_str().unwrap())
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
