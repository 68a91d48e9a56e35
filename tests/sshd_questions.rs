//! KP-6.2 to KP-6.10 with the real sshd: the program that the agent queries, the connections it queries for, and the
//! test of a new setting before it is live.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

#[path = "support/private_sshd.rs"]
#[allow(dead_code)]
mod private_sshd;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use keypair_agent::guest::sshd::{
    self, SshdSettings, inspect_sshd, is_sshd_possibly_running, read_public_host_keys,
};
use keypair_agent::policy::observation::{Connection, ReloadMethod, Sshd, SshdAnswer};
use keypair_agent::policy::outcome::{Reason, Refusal};
use keypair_agent::policy::public_key::compute_fingerprint;
use keypair_agent::policy::sshd_config::{Place, choose_placement};
use private_sshd::{PrivateSshd, SSHD};

fn password_settings(answers: &[SshdAnswer]) -> Vec<bool> {
    answers.iter().map(|answer| answer.effective.password_authentication()).collect()
}

fn queried_connections(seen: &Sshd) -> Vec<Connection> {
    seen.answers.iter().map(|answer| answer.connection.clone()).collect()
}

fn query_with_prepended(
    settings: &SshdSettings,
    seen: &Sshd,
    ahead: &str,
) -> Result<Vec<SshdAnswer>, Refusal> {
    sshd::query_with_prepended(settings, seen, ahead, &queried_connections(seen))
}

fn query_live_config(settings: &SshdSettings, seen: &Sshd) -> Result<Vec<SshdAnswer>, Refusal> {
    sshd::query_live_config(settings, seen, &queried_connections(seen))
}

fn expect_refusal(settings: &SshdSettings) -> Refusal {
    inspect_sshd(settings, "root").unwrap_err()
}

/// KP-6.2.
#[test]
fn listener_options_are_repeated_in_queries() {
    needs_sshd!();
    let sshd =
        PrivateSshd::start_daemon("PasswordAuthentication no", &["-o", "PasswordAuthentication=yes", "-4"]);
    let settings = sshd.settings();
    let seen = inspect_sshd(&settings, "root").unwrap();
    assert_eq!(seen.options, ["-o", "PasswordAuthentication=yes", "-4"]);
    assert!(seen.running && seen.main_is_writable);
    assert_eq!(password_settings(&seen.answers), [true, true]);
    let ReloadMethod::Pid { pid, arguments } = &seen.reload else { panic!("{:?}", seen.reload) };
    assert_eq!(Some(*pid), sshd.pid());
    assert_eq!(arguments[0], SSHD);
    assert_eq!(seen.config.main, sshd.config());
    assert_eq!(seen.config.files[&sshd.config()], fs::read(sshd.config()).unwrap());
    // No file overrides an option of the command line.
    assert_eq!(
        password_settings(&query_with_prepended(&settings, &seen, "PasswordAuthentication no").unwrap()),
        [true, true]
    );
    assert_eq!(password_settings(&query_live_config(&settings, &seen).unwrap()), [true, true]);
}

/// KP-6.6.
#[test]
fn query_covers_each_port_and_address_family() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("");
    let second = private_sshd::free_port();
    sshd.write_config(&format!("Port {second}\nListenAddress ::1"));
    sshd.start(Path::new(SSHD), &["-D"]);
    let seen = inspect_sshd(&sshd.settings(), "root").unwrap();
    let asked: Vec<String> = seen
        .answers
        .iter()
        .map(|SshdAnswer { connection: c, .. }| {
            format!("{} {} {} {} {}", c.user, c.host, c.addr, c.laddr, c.lport)
        })
        .collect();
    let expected = |port: u16| {
        [
            format!("root 192.0.2.1 192.0.2.1 127.0.0.1 {port}"),
            format!("root 2001:db8::1 2001:db8::1 ::1 {port}"),
        ]
    };
    assert_eq!(asked, [expected(sshd.port), expected(second)].concat());
}

#[test]
fn query_address_avoids_addresses_named_in_rules() {
    needs_sshd!();
    let sshd = PrivateSshd::new_stopped(
        "AllowUsers root@192.0.2.1 root@*\nPasswordAuthentication no\nMatch User root Address 2001:db8::/32,*\n \
         PasswordAuthentication yes\nMatch LocalPort 1\n X11Forwarding no",
    );
    let settings = sshd.settings();
    let seen = inspect_sshd(&settings, "root").unwrap();
    assert!(!seen.running);
    assert!(
        matches!(&seen.reload, ReloadMethod::None(text) if text.contains("there is no")),
        "{:?}",
        seen.reload
    );
    assert_eq!(password_settings(&seen.answers), [true, true]);
    assert_eq!(seen.answers[0].connection.addr.to_string(), "198.51.100.1");
    assert_eq!(seen.answers[1].connection.addr.to_string(), "3fff::1");
    // A `Match` block overrides lines before it.
    let tried = query_with_prepended(&settings, &seen, "PasswordAuthentication no").unwrap();
    assert_eq!(password_settings(&tried), [true, true]);
    assert_eq!(password_settings(&inspect_sshd(&settings, "nobody").unwrap().answers), [false, false]);
}

/// KP-6.9.
#[test]
fn new_setting_is_tested_without_writing() {
    needs_sshd!();
    let sshd = PrivateSshd::start_daemon("AuthenticationMethods publickey,password password", &[]);
    let settings = sshd.settings();
    let seen = inspect_sshd(&settings, "root").unwrap();
    let before = sshd.snapshot();
    let tried = query_with_prepended(&settings, &seen, "KbdInteractiveAuthentication no").unwrap();
    assert_eq!(password_settings(&tried), [true, true]);
    assert_eq!(tried[0].connection, seen.answers[0].connection);
    let refused = query_with_prepended(&settings, &seen, "PasswordAuthentication no").unwrap_err();
    assert_eq!(refused.reason, Reason::SshdConfigRejected);
    assert!(refused.message.contains("AuthenticationMethods"), "{}", refused.message);
    let refused = query_with_prepended(&settings, &seen, "NoSuchOption yes").unwrap_err();
    assert_eq!(refused.reason, Reason::SshdConfigRejected);
    assert!(
        refused.message.contains("the new setting: line 1: Bad configuration option"),
        "{}",
        refused.message
    );
    assert_eq!(sshd.snapshot(), before);
}

#[test]
fn large_setting_is_passed_by_stdin() {
    needs_sshd!();
    let sshd = PrivateSshd::new_stopped("");
    let seen = inspect_sshd(&sshd.settings(), "root").unwrap();
    let ahead = format!("{}PasswordAuthentication no", "# a comment of some length\n".repeat(8000));
    assert_eq!(
        password_settings(&query_with_prepended(&sshd.settings(), &seen, &ahead).unwrap()),
        [false, false]
    );
}

/// OpenSSH before 8.2 has no Include, and 8.2 ignores each `Match` after one. The stand-in refuses Include, and
/// passes all other questions to the real sshd.
#[test]
fn query_never_includes_main_file() {
    needs_sshd!();
    let sshd = PrivateSshd::new_stopped(
        "PasswordAuthentication yes\nMatch User nobody\n PasswordAuthentication yes",
    );
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *-f\\ /dev/stdin*) ;; *) exec {SSHD} \"$@\" ;; esac\ntext=$(cat)\n\
         case $text in *Include*) echo '/dev/stdin: line 2: Bad configuration option: Include' >&2; exit 255 ;; \
         esac\nprintf '%s\\n' \"$text\" | exec {SSHD} \"$@\"\n"
    );
    fs::write(sshd.path("script"), script).unwrap();
    let installed =
        Command::new("install").arg("-m755").args([sshd.path("script"), sshd.path("old-sshd")]).status();
    assert!(installed.unwrap().success());
    let mut settings = sshd.settings();
    settings.binary = sshd.path("old-sshd");
    let seen = inspect_sshd(&settings, "root").unwrap();
    assert_eq!(
        password_settings(&query_with_prepended(&settings, &seen, "PasswordAuthentication no").unwrap()),
        [false, false]
    );
    let nobody = inspect_sshd(&settings, "nobody").unwrap();
    assert_eq!(
        password_settings(&query_with_prepended(&settings, &nobody, "PasswordAuthentication no").unwrap()),
        [true, true]
    );
    let refused = query_with_prepended(&settings, &seen, "NoSuchOption yes").unwrap_err();
    assert_eq!(refused.reason, Reason::SshdConfigRejected);
}

#[test]
fn main_file_path_with_glob_characters_works() {
    needs_sshd!();
    let sshd = PrivateSshd::new_stopped("PasswordAuthentication yes");
    for name in ["a[b]c", "a*c", "a?", "a \"b\" c", "a\\c"] {
        let mut settings = sshd.settings();
        settings.config = sshd.path(name);
        fs::copy(sshd.config(), &settings.config).unwrap();
        let seen = inspect_sshd(&settings, "root").unwrap();
        let tried = query_with_prepended(&settings, &seen, "PasswordAuthentication no").unwrap();
        assert_eq!(password_settings(&tried), [false, false], "{name}");
    }
}

#[test]
fn main_file_is_passed_byte_for_byte() {
    needs_sshd!();
    let sshd = PrivateSshd::new_stopped("");
    let mut text = fs::read(sshd.config()).unwrap();
    text.extend(b"Banner /tmp/\xff\xfe\n# \xff\nMatch User nobody\n PasswordAuthentication yes\n");
    fs::write(sshd.config(), &text).unwrap();
    let seen = inspect_sshd(&sshd.settings(), "root").unwrap();
    let tried = query_with_prepended(&sshd.settings(), &seen, "PasswordAuthentication no").unwrap();
    assert_eq!(password_settings(&tried), [false, false]);
    assert_eq!(tried[0].effective.value("banner"), seen.answers[0].effective.value("banner"));
    // An invalid line of the main file is reported with its file, even if only the new setting makes it invalid.
    sshd.write_config("Match User bob\n X11Forwarding no");
    let seen = inspect_sshd(&sshd.settings(), "root").unwrap();
    let refused =
        query_with_prepended(&sshd.settings(), &seen, "PasswordAuthentication no\nMatch User x").unwrap_err();
    let line = format!("{} line 1", sshd.config().display());
    assert!(refused.message.contains(&line), "{}", refused.message);
}

/// KP-6.9, KP-6.10.
#[test]
fn invalid_configuration_is_refused() {
    needs_sshd!();
    let sshd = PrivateSshd::start_daemon("", &[]);
    let seen = inspect_sshd(&sshd.settings(), "root").unwrap();
    sshd.write_config("Nonsense yes");
    let refused = expect_refusal(&sshd.settings());
    assert_eq!(refused.reason, Reason::SshdConfigAlreadyInvalid);
    assert!(refused.message.contains(&*sshd.config().to_string_lossy()), "{}", refused.message);
    assert!(refused.message.contains("line 6"), "{}", refused.message);
    assert_eq!(query_live_config(&sshd.settings(), &seen).unwrap_err().reason, Reason::SshdConfigRejected);
}

/// KP-6.4.
#[test]
fn query_works_without_host_key() {
    needs_sshd!();
    let sshd = PrivateSshd::new_stopped("PasswordAuthentication no");
    fs::remove_file(sshd.path("host_key")).unwrap();
    let seen = inspect_sshd(&sshd.settings(), "root").unwrap();
    assert_eq!(password_settings(&seen.answers), [false, false]);
    assert_eq!(seen.answers[0].effective.values("hostkey"), [sshd.path("host_key").to_string_lossy()]);
    assert_eq!(
        password_settings(
            &query_with_prepended(&sshd.settings(), &seen, "PasswordAuthentication yes").unwrap()
        ),
        [true, true]
    );
    assert!(!sshd.path("run").exists());
}

/// OpenSSH 10.5 prints keywords in the spelling of sshd_config(5).
/// KP-6.6.
#[test]
fn keyword_case_in_sshd_output_is_ignored() {
    needs_sshd!();
    let sshd = PrivateSshd::new_stopped("PasswordAuthentication no");
    fs::remove_file(sshd.path("host_key")).unwrap();
    let script = format!(
        "#!/bin/sh\ncase $1 in -T) {SSHD} \"$@\" | sed 's/^hostkey /HostKey /; s/^password/Password/' ;; *) exec {SSHD} \"$@\" ;; esac\n"
    );
    let program = sshd.path("new-sshd");
    sshd.replace_program(&program, &script);
    let mut settings = sshd.settings();
    settings.binary = program;
    // Two looks in a row give the same facts, although each creates its own temporary host key.
    let seen = inspect_sshd(&settings, "root").unwrap();
    let again = inspect_sshd(&settings, "root").unwrap();
    assert_eq!(seen.answers, again.answers);
    assert_eq!(seen.answers[0].effective.values("hostkey"), [sshd.path("host_key").to_string_lossy()]);
}

/// KP-6.2.
#[test]
fn listener_binary_is_queried() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("");
    let copy = sshd.copy_program("sshd");
    sshd.start(&copy, &[]);
    let settings = sshd.settings();
    assert_eq!(inspect_sshd(&settings, "root").unwrap().binary, copy);
    // The agent needs no other sshd program.
    let without = SshdSettings { binary: PathBuf::from("/nonexistent/sshd"), ..settings.clone() };
    assert_eq!(inspect_sshd(&without, "root").unwrap().binary, copy);
    // After an upgrade, the agent queries the program at the same path. This one answers `no` to every question.
    let script = format!(
        "#!/bin/sh\ncase $1 in -T) {SSHD} \"$@\" | sed 's/^passwordauthentication .*/passwordauthentication no/' ;; *) exec {SSHD} \"$@\" ;; esac\n"
    );
    assert_eq!(password_settings(&inspect_sshd(&settings, "root").unwrap().answers), [true, true]);
    sshd.replace_program(&copy, &script);
    let seen = inspect_sshd(&settings, "root").unwrap();
    assert_eq!((seen.binary, password_settings(&seen.answers)), (copy.clone(), vec![false, false]));
    // The program is deleted, and no other program may answer instead.
    fs::remove_file(&copy).unwrap();
    let refused = expect_refusal(&settings);
    assert_eq!(refused.reason, Reason::SshdNotFound);
    assert!(refused.message.contains(&*copy.to_string_lossy()), "{}", refused.message);
    assert_eq!(is_sshd_possibly_running(&settings), Ok(true));
}

/// KP-6.3.
#[test]
fn listener_with_swapped_binary_is_refused() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("");
    let (copy, other) = (sshd.copy_program("sshd"), sshd.copy_program("sshd-other"));
    sshd.start(&copy, &[]);
    // The program was moved away, and another one was put in its place by hand.
    fs::rename(&copy, sshd.path("sshd-old")).unwrap();
    fs::rename(other, &copy).unwrap();
    let refused = expect_refusal(&sshd.settings());
    assert_eq!(refused.reason, Reason::SshdNotFound);
    let (named, runs) = (copy.display().to_string(), sshd.path("sshd-old").display().to_string());
    assert!(refused.message.contains(&named) && refused.message.contains(&runs), "{}", refused.message);
}

/// An sshd that was built for another directory, while the distribution's sshd is installed too.
#[test]
fn listener_built_with_other_main_file_is_refused() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("");
    let built_for = sshd.copy_with_own_sysconfdir();
    sshd.start_with_default_config(&built_for.program);
    let settings = SshdSettings { config: PathBuf::from("/etc/ssh/sshd_config"), ..sshd.settings() };
    if settings.config.exists() {
        let refused = expect_refusal(&settings);
        assert_eq!(refused.reason, Reason::SshdNotFound);
        for named in [&built_for.program, &built_for.config, &settings.binary, &settings.config] {
            assert!(refused.message.contains(&*named.to_string_lossy()), "{}: {named:?}", refused.message);
        }
        assert_eq!(is_sshd_possibly_running(&settings), Ok(false), "it reads nothing of ours");
    }
    // With its main file configured, the agent queries it. A relative Include starts at its own directory.
    let settings = SshdSettings { config: built_for.config.clone(), ..settings };
    let seen = inspect_sshd(&settings, "root").unwrap();
    assert_eq!((&seen.binary, seen.running), (&built_for.program, true));
    let drop_in = built_for.config.with_file_name("d").join("a.conf");
    assert_eq!(seen.config.files.keys().collect::<Vec<_>>(), [&drop_in, &built_for.config]);
    assert_eq!(password_settings(&seen.answers), [false, false]);
    sshd.stop();
}

/// OpenSSH 8.2 and 8.3: a relative Include finds no file, and the first included file makes sshd listen on port 22
/// too. The stand-in reports such a version.
#[test]
fn relative_include_follows_openssh_version() {
    needs_sshd!();
    let sshd = PrivateSshd::new_stopped("");
    let version = |version: &str| {
        let program = sshd.path(version);
        let script = format!(
            "#!/bin/sh\ncase $1 in -V) echo 'unknown option -- V' >&2; echo '{version}, OpenSSL' >&2; exit 1 ;; esac\nexec {SSHD} \"$@\"\n"
        );
        sshd.replace_program(&program, &script);
        SshdSettings { binary: program, ..sshd.settings() }
    };
    fs::create_dir(sshd.path("d")).unwrap();
    let file = |seen: &Sshd| choose_placement(&seen.config, true).unwrap().place;
    let top = Place::TopBlock(sshd.config());
    let drop_in = Place::DropIn(sshd.path("d/00-keypair-agent.conf"));
    let text = fs::read_to_string(sshd.config()).unwrap();
    let absolute = format!("Include {}/*.conf\n{text}", sshd.path("d").display());
    for (version_of, expected) in
        [("OpenSSH_8.2p1", &top), ("OpenSSH_8.3p1", &top), ("OpenSSH_8.4p1", &drop_in)]
    {
        let settings = version(version_of);
        fs::write(sshd.config(), &absolute).unwrap();
        assert_eq!(file(&inspect_sshd(&settings, "root").unwrap()), *expected, "{version_of}");
        // A file that is already included changes nothing.
        fs::write(sshd.path("d/50-a.conf"), "X11Forwarding no\n").unwrap();
        assert_eq!(file(&inspect_sshd(&settings, "root").unwrap()), drop_in, "{version_of}");
        fs::remove_file(sshd.path("d/50-a.conf")).unwrap();
        // The directory belongs to this machine's own sshd. The test writes nothing there.
        fs::write(sshd.config(), format!("Include sshd_config.d/*.conf\n{text}")).unwrap();
        let seen = inspect_sshd(&settings, "root").unwrap();
        let leads_somewhere = seen.config.includes[&(sshd.config(), 1)].len();
        assert_eq!(leads_somewhere, usize::from(version_of == "OpenSSH_8.4p1"), "{version_of}");
    }
}

/// Processes that are not a listener, whatever the pid file and their titles say.
/// KP-6.1.
#[test]
fn process_title_does_not_make_a_listener() {
    needs_sshd!();
    let sshd = PrivateSshd::new_stopped("");
    let not_taken = |command: &mut Command| {
        let mut child = command.spawn().unwrap();
        fs::write(sshd.pid_file(), child.id().to_string()).unwrap();
        let cmdline = format!("/proc/{}/cmdline", child.id());
        private_sshd::wait_until("its title", || {
            fs::read_to_string(&cmdline).is_ok_and(|line| line.starts_with("sshd: "))
        });
        let seen = inspect_sshd(&sshd.settings(), "root");
        child.kill().unwrap();
        child.wait().unwrap();
        match seen.map(|seen| (seen.running, seen.reload)) {
            Ok((false, ReloadMethod::None(why))) => why,
            other => panic!("{other:?}"),
        }
    };
    let title = "exec -a 'sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups' sleep 600";
    let why =
        not_taken(Command::new("setpriv").args(["--reuid=65534", "--clear-groups", "bash", "-c", title]));
    assert!(why.contains("another user"), "{why}");
    // Like the process of a set-user-id program.
    let why = not_taken(Command::new("setpriv").args(["--ruid=65534", "bash", "-pc", title]));
    assert!(why.contains("another user"), "{why}");
    let why = not_taken(Command::new("unshare").args(["-n", "bash", "-c", title]));
    assert!(why.contains("network namespace"), "{why}");
}

#[test]
fn missing_binary_or_config_is_named() {
    needs_sshd!();
    let sshd = PrivateSshd::new_stopped("");
    let with = |change: &dyn Fn(&mut SshdSettings)| {
        let mut settings = sshd.settings();
        change(&mut settings);
        let refused = expect_refusal(&settings);
        assert_eq!(refused.reason, Reason::SshdNotFound, "{}", refused.message);
        refused.message
    };
    let message = with(&|settings| settings.binary = PathBuf::from("/nonexistent/sshd"));
    assert!(message.contains("/nonexistent/sshd") && message.contains("'binary'"), "{message}");
    let message = with(&|settings| settings.config = PathBuf::from("/nonexistent/config"));
    assert!(message.contains("/nonexistent/config") && message.contains("'config'"), "{message}");
}

/// KP-6.3.
#[test]
fn listener_with_other_main_file_is_refused() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("");
    let other = sshd.path("other_config");
    fs::copy(sshd.config(), &other).unwrap();
    sshd.start_on(Path::new(SSHD), &other, &[]);
    let refused = expect_refusal(&sshd.settings());
    assert_eq!(refused.reason, Reason::SshdNotFound);
    assert!(
        refused.message.contains("other_config") && refused.message.contains("sshd_config"),
        "{}",
        refused.message
    );
    assert_eq!(is_sshd_possibly_running(&sshd.settings()), Ok(false), "it reads nothing of ours");
    // The same file under another name is accepted.
    let mut settings = sshd.settings();
    settings.config = sshd.path("link");
    std::os::unix::fs::symlink(&other, &settings.config).unwrap();
    assert!(inspect_sshd(&settings, "root").unwrap().running);
    // The listener may have read this main file before it was deleted.
    settings.config = sshd.path("gone");
    assert_eq!(is_sshd_possibly_running(&settings), Ok(true));
}

#[test]
fn listener_without_config_option_is_refused() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("");
    let config = sshd.config();
    let text = fs::read_to_string(&config).unwrap();
    let options: Vec<String> =
        text.lines().filter_map(|line| line.split_once(' ')).map(|(k, v)| format!("-o{k}={v}")).collect();
    let mut arguments: Vec<&str> = options.iter().map(String::as_str).collect();
    arguments.push("-oBanner=none");
    // Without -f, sshd reads its built-in main file.
    let started = Command::new(SSHD).args(&arguments).current_dir(sshd.path("")).status();
    assert!(started.unwrap().success());
    private_sshd::wait_until("pid file", || sshd.pid().is_some());
    let refused = expect_refusal(&sshd.settings());
    assert_eq!(refused.reason, Reason::SshdNotFound);
    assert!(refused.message.contains("/etc/ssh/sshd_config"), "{}", refused.message);
    sshd.stop();
}

/// KP-6.3.
#[test]
fn listener_with_relative_config_path_is_refused() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("");
    sshd.start_on(Path::new(SSHD), Path::new("sshd_config"), &["-D"]);
    let refused = expect_refusal(&sshd.settings());
    assert_eq!(refused.reason, Reason::SshdNotFound);
    assert!(refused.message.contains("relative '-f sshd_config'"), "{}", refused.message);
}

/// KP-6.1.
#[test]
fn pid_file_without_listener_is_reported() {
    needs_sshd!();
    let mut sshd = PrivateSshd::new_stopped("");
    let none = |text: &str| {
        fs::write(sshd.pid_file(), text).unwrap();
        match inspect_sshd(&sshd.settings(), "root").map(|seen| (seen.running, seen.reload)) {
            Ok((false, ReloadMethod::None(why))) => why,
            other => panic!("{other:?}"),
        }
    };
    let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
    let why = none(&format!("{}\n", sleeper.id()));
    assert!(why.contains("no sshd listener"), "{why}");
    assert!(sleeper.try_wait().unwrap().is_none());
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(none("4194304").contains("does not run"));
    for garbage in ["", "sshd", "-1", "0"] {
        fs::write(sshd.pid_file(), garbage).unwrap();
        let refused = expect_refusal(&sshd.settings());
        assert_eq!(refused.reason, Reason::SshdNotFound);
        assert!(refused.message.contains("holds no pid"), "{}", refused.message);
        assert_eq!(is_sshd_possibly_running(&sshd.settings()), Ok(true));
    }
    fs::remove_file(sshd.pid_file()).unwrap();
    sshd.start(Path::new(SSHD), &[]);
    let pid = sshd.pid().unwrap().to_string();
    // The listener runs with the configured main file, but without a pid file.
    fs::remove_file(sshd.pid_file()).unwrap();
    let seen = inspect_sshd(&sshd.settings(), "root");
    fs::write(sshd.pid_file(), &pid).unwrap();
    let seen = seen.unwrap();
    assert!(seen.running, "{seen:?}");
    assert!(
        matches!(&seen.reload, ReloadMethod::Pid { pid: told, .. } if told.to_string() == pid),
        "{seen:?}"
    );
    // A listener with another main file, on the configured port.
    sshd.stop();
    let _ = fs::remove_file(sshd.pid_file());
    let other = sshd.path("other_config");
    fs::copy(sshd.config(), &other).unwrap();
    sshd.start_on(Path::new(SSHD), &other, &[]);
    let pid = sshd.pid().unwrap().to_string();
    fs::remove_file(sshd.pid_file()).unwrap();
    let refused = expect_refusal(&sshd.settings());
    let unseen = is_sshd_possibly_running(&sshd.settings());
    fs::write(sshd.pid_file(), &pid).unwrap();
    assert_eq!((refused.reason, unseen), (Reason::SshdNotFound, Ok(true)));
    assert!(refused.message.contains(&pid) && refused.message.contains("'pid_file'"), "{}", refused.message);
}

#[test]
fn host_keys_are_listed_by_fingerprint() {
    needs_sshd!();
    let sshd = PrivateSshd::new_stopped("HostKey /nonexistent/key");
    let seen = inspect_sshd(&sshd.settings(), "root").unwrap();
    let keys = read_public_host_keys(&seen);
    let shown = Command::new("ssh-keygen").arg("-lf").arg(sshd.path("host_key.pub")).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0].key_type, "ssh-ed25519");
    assert_eq!(Some(compute_fingerprint(&keys[0].blob).sha256.as_str()), shown.split(' ').nth(1));
}
