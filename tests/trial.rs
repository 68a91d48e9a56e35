//! The trial (KP-10.1): the agent asks a private sshd before it turns passwords off, and before it removes a key that
//! gives access. Each test has its own guest, and checks by real logins whether a key or a password works.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod matrix_support;
mod support;

use std::fs;
use std::io::Write as _;
use std::process::{Output, Stdio};

use matrix_support::client::Credential;
use matrix_support::lab::PASSWORD_HASH;
use matrix_support::land::{GuestFixture, OWN_FILE, SECOND_USER, with_guest, with_guest_config};
use serde_json::{Value, json};
use support::{
    TestGuest, TestKey, attach_command, detach_command, has_tools, set_password_auth_command, strace,
    warning_reasons, with_field,
};

/// A security key whose private part does not exist.
const SECURITY_KEY: &str = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIF86eSkqX3I2gC8oUEbWaJ54JKEt/jagDdVjCuOifDfxAAAABHNzaDo=";

/// The methods that give the user `u` access, tested by logins: the first key, the second key, the password.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct LoginMethods {
    key: bool,
    second: bool,
    password: bool,
}

const FIRST_KEY_ONLY: LoginMethods = LoginMethods { key: true, second: false, password: false };
const SECOND_KEY_ONLY: LoginMethods = LoginMethods { key: false, second: true, password: false };
const PASSWORD_ONLY: LoginMethods = LoginMethods { key: false, second: false, password: true };

impl LoginMethods {
    fn try_logins(land: &GuestFixture<'_>) -> Self {
        Self {
            key: land.accepts_bound_key("u"),
            second: land.accepts_key("u", &land.lab.second),
            password: land.accepts_password("u"),
        }
    }

    fn any(self) -> bool {
        self.key || self.second || self.password
    }
}

/// A second user, with a password.
fn second_user_setup() -> String {
    format!("{SECOND_USER}usermod -p '{PASSWORD_HASH}' v; {OWN_FILE}")
}

fn message(result: &Value) -> &str {
    result["message"].as_str().unwrap()
}

/// Asserts that a command is refused and changes nothing: no byte of a file, and no login.
fn assert_refused_without_change(
    land: &GuestFixture<'_>,
    command: &Value,
    reason: &str,
    says: &str,
) -> Value {
    let (before, ways) = (land.snapshot(), LoginMethods::try_logins(land));
    let result = land.assert_refused(command, reason, says);
    assert_eq!(before.describe_changes(&land.snapshot()), None, "{result}");
    assert_eq!(LoginMethods::try_logins(land), ways, "{result}");
    assert_eq!(result["changed"], false, "{result}");
    result
}

// Row F.

/// KP-4.6.
#[test]
fn password_auth_yes_works_despite_broken_key_or_user() {
    for (broken, user_is_left) in [
        ("rm -rf /home/u", true),
        ("mv /home/u/.ssh /home/u/old; ln -s /root/.ssh /home/u/.ssh", true),
        ("chown -R v: /home/u", true),
        ("chmod 777 /home/u /home/u/.ssh", true),
        ("rm /home/u/.ssh/authorized_keys; mkfifo /home/u/.ssh/authorized_keys", true),
        ("rm /home/u/.ssh/authorized_keys; mkdir /home/u/.ssh/authorized_keys", true),
        ("echo 'AuthorizedKeysFile none' >>/etc/ssh/sshd_config", true),
        ("echo 'AuthorizedKeysFile /etc/ssh/everybodys' >>/etc/ssh/sshd_config", true),
        ("userdel u", false),
        ("userdel -r u 2>/dev/null || true; echo 'AuthorizedKeysFile none' >>/etc/ssh/sshd_config", false),
    ] {
        with_guest("u", &second_user_setup(), "", |land| {
            let result = land.apply_ok(&land.attach_command("no"));
            assert_eq!(warning_reasons(&result), ["PASSWORD_ONLY_ACCOUNTS"], "{result}");
            assert!(
                land.accepts_bound_key("u") && !land.accepts_password("u") && !land.accepts_password("v")
            );
            land.run_script(broken);
            let output = land.run_agent(&["password-auth", "yes"], "");
            assert_eq!(output.status.code(), Some(0), "{broken}: {output:?}");
            let result = GuestFixture::parse_result(&output);
            assert_eq!(result["status"], "succeeded", "{broken}: {result}");
            assert_eq!(
                (
                    &result["authorizedKeysFile"],
                    &result["trial"],
                    &result["effective"]["passwordAuthentication"]
                ),
                (&json!(null), &json!(null), &json!(true)),
                "{broken}: {result}"
            );
            assert!(land.accepts_password("v"), "{broken}");
            assert_eq!(land.accepts_password("u"), user_is_left, "{broken}");
        });
    }
}

// Row H.

/// Edits of sshd's files that the listener has not read yet, and the reason why the second key's attach fails, if
/// any.
const PENDING_EDITS: [(&str, Option<&str>); 7] = [
    ("install -d /etc/ssh/keys; echo 'AuthorizedKeysFile /etc/ssh/keys/%u' >>/etc/ssh/sshd_config", None),
    ("echo 'AuthorizedKeysFile .ssh/other' >>/etc/ssh/sshd_config", None),
    ("echo 'AllowUsers v' >>/etc/ssh/sshd_config", Some("LOCKOUT_GUARD")),
    ("echo 'AllowUsers u@10.0.0.0/8' >>/etc/ssh/sshd_config", None),
    (
        "echo '@SECOND_KEY@' >/etc/ssh/revoked; echo 'RevokedKeys /etc/ssh/revoked' >>/etc/ssh/sshd_config",
        Some("LOCKOUT_GUARD"),
    ),
    // With a changed listening address, the listener must not be reloaded.
    (
        "echo 'AuthorizedKeysFile .ssh/other' >>/etc/ssh/sshd_config; echo 'ListenAddress 10.99.0.1' >>/etc/ssh/sshd_config",
        Some("SSHD_RELOAD_UNSAFE"),
    ),
    (
        "echo 'AuthorizedKeysFile .ssh/other' >>/etc/ssh/sshd_config; echo 'Nonsense yes' >>/etc/ssh/sshd_config",
        Some("SSHD_CONFIG_ALREADY_INVALID"),
    ),
];

/// The listener does not listen on loopback, or the proof is off, or `AllowUsers` excludes loopback. sshd's files
/// already have the setting, so only the pending edit is a reason for a reload.
/// KP-6.22.
#[test]
fn unprobed_listener_is_still_reloaded() {
    let moved = "echo 'AuthorizedKeysFile .ssh/other' >>/etc/ssh/sshd_config";
    for (lines, edit, agent) in [
        ("ListenAddress 10.99.0.1\n", "", ""),
        ("", "", "proof = false\n"),
        ("", "; echo 'AllowUsers u@10.0.0.0/8' >>/etc/ssh/sshd_config", ""),
    ] {
        for password_auth in ["no", "yes"] {
            with_guest("u", OWN_FILE, lines, |land| {
                let config = format!("target_user = \"u\"\n{agent}");
                land.guest.write("/etc/keypair-agent/config.toml", &config).unwrap();
                land.apply_ok(&land.attach_command("no"));
                assert_eq!(LoginMethods::try_logins(land), FIRST_KEY_ONLY);
                let password = password_auth == "yes";
                if password {
                    land.run_script(
                        "sed -i 's/Authentication no/Authentication yes/' /etc/ssh/sshd_config.d/*",
                    );
                }
                land.run_script(&format!("{moved}{edit}"));
                let result = land.apply_ok(&land.replace_command(password_auth));
                let ways = LoginMethods { password, ..SECOND_KEY_ONLY };
                assert_eq!(LoginMethods::try_logins(land), ways, "{lines}{edit}{agent}: {result}");
            });
        }
    }
}

/// KP-10.1.
#[test]
fn pending_sshd_edit_locks_nobody_out() {
    for (edit, reason) in PENDING_EDITS {
        for is_bound in [true, false] {
            with_guest("u", OWN_FILE, "", |land| {
                if is_bound {
                    land.apply_ok(&land.attach_command("no"));
                }
                let before = LoginMethods::try_logins(land);
                assert_eq!(before, if is_bound { FIRST_KEY_ONLY } else { PASSWORD_ONLY });
                land.run_script(&edit.replace("@SECOND_KEY@", &land.lab.second.line));
                let result = land.apply(&land.replace_command("no"));
                let at = format!("{edit}, bound: {is_bound}: {result}");
                assert_eq!(result["reason"].as_str(), reason, "{at}");
                let ways = LoginMethods::try_logins(land);
                match reason {
                    None => {
                        assert_eq!(ways, SECOND_KEY_ONLY, "{at}");
                        assert_eq!(result["trial"]["key"], "accepted", "{at}");
                    }
                    Some(_) => {
                        assert_eq!(ways, before, "{at}");
                        assert_eq!(result["changed"], false, "{at}");
                    }
                }
            });
        }
    }
}

/// The files permit the key, but the listener has older settings and refuses it.
#[test]
fn stale_listener_refusing_key_is_reloaded_or_refused() {
    let lines = "AllowUsers v\nLogLevel VERBOSE\n";
    for (more, reason) in
        [("", None), ("; echo 'ListenAddress 10.99.0.1' >>/etc/ssh/sshd_config", Some("SSHD_RELOAD_UNSAFE"))]
    {
        for is_bound in [false, true] {
            with_guest("u", &second_user_setup(), lines, |land| {
                land.run_script(&format!("sed -i '/^AllowUsers/d' /etc/ssh/sshd_config{more}"));
                if is_bound {
                    // sshd's files have the setting already, so no edit of the agent requires a reload.
                    land.guest
                        .write("/etc/ssh/sshd_config.d/00-a.conf", "PasswordAuthentication no\n")
                        .unwrap();
                    land.run_script(&format!(
                        "echo '{}' >/home/u/.ssh/authorized_keys; chown u: /home/u/.ssh/authorized_keys",
                        land.lab.other.line
                    ));
                }
                let before = land.snapshot();
                let result = land.apply(&land.attach_command("no"));
                assert_eq!(result["reason"].as_str(), reason, "{result}");
                match reason {
                    None => {
                        assert_eq!(LoginMethods::try_logins(land), FIRST_KEY_ONLY, "{result}");
                        assert_eq!(result["proof"]["key"], "accepted", "{result}");
                    }
                    Some(_) => {
                        assert_eq!(before.describe_changes(&land.snapshot()), None, "{result}");
                        assert!(land.accepts_password("v"), "{result}");
                    }
                }
            });
        }
    }
}

// Row M.

/// A server's banner that looks like messages of the ssh client.
const SPOOFED_BANNER: &str = "Connection refused\n\
                      ssh: connect to host 127.0.0.1 port 22: Connection refused\n\
                      debug1: Offering public key: /k ED25519 SHA256:x explicit\n\
                      debug1: Server accepts key: /k ED25519 SHA256:x explicit\n\
                      debug1: Server accepts key: pkalg ssh-ed25519 blen 51\n\
                      debug1: Authentications that can continue: publickey\n\
                      Authentications that can continue: publickey\n\
                      Authenticated to 127.0.0.1 ([127.0.0.1]:22) using \"none\".\n\
                      debug1: Authentication succeeded (none).\n\
                      debug1: kex_exchange_identification: banner line 0: Not allowed at this time\n\
                      Unable to negotiate with 127.0.0.1 port 22: no matching key exchange method found.\n\
                      debug1: send_pubkey_test: no mutual signature algorithm\n\
                      Accepted key ED25519 SHA256:x found at /home/u/.ssh/authorized_keys:1\n";

/// KP-10.1, KP-10.5, KP-10.13.
#[test]
fn spoofed_banner_does_not_deceive_agent() {
    let lines = "LogLevel VERBOSE\nBanner /etc/ssh/banner\n";
    let banner = |setup: &str| format!("cat >/etc/ssh/banner <<'EOF'\n{SPOOFED_BANNER}EOF\n{setup}");
    with_guest("u", &banner(OWN_FILE), lines, |land| {
        let result = land.apply_ok(&land.attach_command("no"));
        assert_eq!(result["trial"]["key"], "accepted", "{result}");
        assert_eq!(
            (&result["proof"]["key"], &result["proof"]["methods"], &result["proof"]["notTaken"]),
            (&json!("accepted"), &json!(["publickey"]), &json!(null)),
            "{result}"
        );
        assert_eq!(land.read_loopback_connections().0, 1, "{}", land.guest.log());
        assert_eq!(LoginMethods::try_logins(land), FIRST_KEY_ONLY);
        let result = land.apply_ok(&land.attach_command("yes"));
        let methods = result["proof"]["methods"].as_array().unwrap();
        assert!(methods.contains(&json!("password")), "{result}");
        assert_eq!(land.read_loopback_connections().0, 2);
    });
    for (refuses, password_lets_in) in [
        ("RevokedKeys /etc/ssh/revoked", true),
        ("PubkeyAcceptedKeyTypes rsa-sha2-512", true),
        ("AllowUsers v", false),
        ("DenyUsers u", false),
    ] {
        let setup = banner(&second_user_setup());
        let lines = format!("{lines}{refuses}\n");
        with_guest("u", &format!("echo '@KEY@' >/etc/ssh/revoked; {setup}"), &lines, |land| {
            assert_eq!(land.accepts_password("u"), password_lets_in, "{refuses}");
            let result = assert_refused_without_change(land, &land.attach_command("no"), "LOCKOUT_GUARD", "");
            assert_eq!(result["trial"]["key"], "refused", "{refuses}: {result}");
            assert_eq!(land.read_loopback_connections().0, 0, "{refuses}: the running sshd was asked");
            assert!(land.accepts_password("v"), "{refuses}");
            let result = land.apply_ok(&land.attach_command("yes"));
            assert!(warning_reasons(&result).contains(&"KEY_NOT_USABLE"), "{refuses}: {result}");
            assert_ne!(result["proof"]["key"], "accepted", "{refuses}: {result}");
            assert!(land.read_loopback_connections().0 <= 1, "{refuses}: {}", land.guest.log());
            assert!(!land.accepts_bound_key("u"), "{refuses}");
        });
    }
}

/// The listener contradicts the trial, and the banner claims something else: the agent makes only two connections.
/// KP-10.13.
#[test]
fn live_probe_makes_two_connections_at_most() {
    let setup = format!("cat >/etc/ssh/banner <<'EOF'\n{SPOOFED_BANNER}EOF\n{OWN_FILE}");
    with_guest("u", &setup, "LogLevel VERBOSE\nBanner /etc/ssh/banner\nDenyUsers u\n", |land| {
        land.guest.write("/etc/ssh/sshd_config.d/00-a.conf", "PasswordAuthentication no\n").unwrap();
        land.run_script("sed -i '/^DenyUsers/d' /etc/ssh/sshd_config");
        land.apply_ok(&land.attach_command("no"));
        assert!(matches!(land.read_loopback_connections().0, 1 | 2), "{}", land.guest.log());
        assert_eq!(LoginMethods::try_logins(land), FIRST_KEY_ONLY);
    });
}

/// A login shell that creates a file, so that the test notices any session.
const MARKING_SHELL: &str = "printf '#!/bin/sh\\ntouch /tmp/mark\\nexec /bin/sh \"$@\"\\n' >/usr/local/bin/marking; \
                             chmod 755 /usr/local/bin/marking; echo /usr/local/bin/marking >>/etc/shells; \
                             usermod -s /usr/local/bin/marking -p '' u; ";

/// KP-10.9.
#[test]
fn account_without_password_gets_no_session() {
    let lines = "LogLevel VERBOSE\nPermitEmptyPasswords yes\n";
    let bare = "Include /etc/ssh/sshd_config.d/*.conf\nUsePAM no\nKbdInteractiveAuthentication no\n";
    let setup = format!("{MARKING_SHELL}{OWN_FILE}");
    with_guest_config("u", &setup, &format!("{bare}{lines}"), |land| {
        let no_session = |at: &str| {
            let (_, log) = land.read_loopback_connections();
            assert!(!log.contains("Starting session"), "{at}: {log}");
            assert!(!log.contains("session opened"), "{at}: {log}");
            assert!(!land.guest.host_path("/tmp/mark").exists(), "{at}");
        };
        let result = land.apply_ok(&land.attach_command("yes"));
        assert_eq!(result["proof"]["key"], "notTaken", "{result}");
        assert!(result["proof"]["notTaken"].as_str().unwrap().contains("PermitEmptyPasswords"), "{result}");
        assert_eq!(result["trial"]["key"], "accepted", "{result}");
        no_session("yes");
        let result = land.apply_ok(&land.attach_command("no"));
        assert_eq!(result["trial"]["key"], "accepted", "{result}");
        no_session("no");
        assert!(land.accepts_bound_key("u"));
        assert!(!land.login_with("u", Credential::None, &[]).let_in, "let in by `none`");
        // A real session creates the file.
        assert!(land.guest.host_path("/tmp/mark").exists());
        fs::remove_file(land.guest.host_path("/tmp/mark")).unwrap();
        land.apply_ok(&set_password_auth_command("yes"));
        assert!(land.login_with("u", Credential::None, &[]).let_in, "not let in by `none`");
    });
    // sshd refuses the key but would accept the method `none`. The trial must ask about the key.
    with_guest_config(
        "u",
        &format!("echo '@KEY@' >/etc/ssh/revoked; {setup}"),
        &format!("{bare}{lines}RevokedKeys /etc/ssh/revoked\n"),
        |land| {
            let result = land.assert_refused(&land.attach_command("no"), "LOCKOUT_GUARD", "RevokedKeys");
            assert_eq!(result["trial"]["key"], "refused", "{result}");
            assert!(!land.guest.host_path("/tmp/mark").exists());
            assert!(land.login_with("u", Credential::None, &[]).let_in);
        },
    );
}

// Row D, key files that sshd parses in an unexpected way.

/// KP-10.2, KP-10.5.
#[test]
fn key_line_parsing_matches_real_logins() {
    let lines: &[&str] = &[
        "command=\"/bin/false \\\\\" x\" @KEY@\n",
        "command=\"/bin/false \\\\\" x\" @KEY@\n@KEY@\n",
        "command=\"/bin/false \\\" x\" @KEY@\n@KEY@\n",
        "command=\"/bin/false\\\" @KEY@\n@KEY@\n",
        "@KEY@\n",
        "@KEY@\0\n",
        "@KEY@ c\0omment\n",
        "\0@KEY@\n",
        "\0@KEY@\n@KEY@\n",
        "# \0\n@KEY@\n",
        "command=\"/bin/false\0\" @KEY@\n@KEY@\n",
        "command=\"/bin/false\0\" @KEY@\n",
        "x\0command=\"/bin/false\" @KEY@\n@KEY@\n",
        "from=\"10.0.0.0/8\0\" @KEY@\n@KEY@\n",
        "expiry-time=\"20200101\0\" @KEY@\n@KEY@\n",
        " \t@KEY@\n",
        "@KEY@\r\n",
    ];
    with_guest("u", OWN_FILE, "", |land| {
        for text in lines {
            let file = text.replace("@KEY@", &land.key().line);
            land.guest.write("/home/u/.ssh/authorized_keys", &file).unwrap();
            let key_lets_in = land.accepts_bound_key("u");
            assert!(land.accepts_password("u"));
            let result = land.apply(&set_password_auth_command("no"));
            let at = format!("{text:?}, which lets in: {key_lets_in}: {result}");
            match key_lets_in {
                true => assert_eq!(result["status"], "succeeded", "{at}"),
                false => assert_eq!(result["reason"], "LOCKOUT_GUARD", "{at}"),
            }
            assert_eq!(
                LoginMethods::try_logins(land),
                if key_lets_in { FIRST_KEY_ONLY } else { PASSWORD_ONLY },
                "{at}"
            );
            assert_eq!(land.read_text("/home/u/.ssh/authorized_keys"), file, "{at}");
            land.apply_ok(&set_password_auth_command("yes"));
            // The block with the attached key goes before the existing lines.
            let result = land.apply_ok(&land.attach_command("no"));
            assert_eq!(LoginMethods::try_logins(land), FIRST_KEY_ONLY, "{at}, then {result}");
            land.apply_ok(&detach_command("k"));
            assert_eq!(land.read_text("/home/u/.ssh/authorized_keys"), file, "{at}");
            land.apply_ok(&set_password_auth_command("yes"));
        }
    });
}

// Row S, security keys.

/// KP-10.8.
#[test]
fn security_key_needs_password_auth_yes() {
    with_guest("u", OWN_FILE, "", |land| {
        let security_key = TestKey { private: "/nonexistent".into(), line: SECURITY_KEY.to_owned() };
        let command = |password_auth: &str| {
            with_field(attach_command("sk", &security_key, password_auth), "replace", json!(true))
        };
        let result = assert_refused_without_change(land, &command("no"), "LOCKOUT_GUARD", "`yes`");
        assert!(message(&result).contains("security key"), "{result}");
        assert!(land.accepts_password("u"));
        let result = land.apply_ok(&command("yes"));
        assert_eq!(result["changed"], true, "{result}");
        assert!(land.read_text("/home/u/.ssh/authorized_keys").contains(SECURITY_KEY), "{result}");
        assert!(land.accepts_password("u"));
        // A security key is no reason to turn passwords off later, and must not replace a key that alone gives
        // access.
        assert_refused_without_change(land, &set_password_auth_command("no"), "LOCKOUT_GUARD", "`yes`");
        land.apply_ok(&with_field(land.attach_command("no"), "replace", json!(true)));
        assert_refused_without_change(land, &command("no"), "LOCKOUT_GUARD", "`yes`");
        land.run_script("usermod -p '!' u");
        assert_refused_without_change(land, &command("yes"), "LOCKOUT_GUARD", "");
        assert_eq!(LoginMethods::try_logins(land), FIRST_KEY_ONLY);
        // With a password left, the replacement is allowed.
        land.run_script(&format!("usermod -p '{PASSWORD_HASH}' u"));
        land.apply_ok(&command("yes"));
        assert_eq!(LoginMethods::try_logins(land), PASSWORD_ONLY);
    });
}

// The text of a refusal.

/// KP-3.31, KP-4.2, KP-8.6.
#[test]
fn refusal_and_check_messages_name_cause_and_remedy() {
    with_guest("u", OWN_FILE, "", |land| {
        land.apply_ok(&land.attach_command("yes"));
        let second = |instance: &str| {
            with_field(attach_command("l", &land.lab.second, "yes"), "instanceId", json!(instance))
        };
        let result = land.assert_refused(&second("i-of-the-command"), "ALREADY_ATTACHED", "");
        assert_eq!(message(&result), "Already attached key pair. instance id i-of-the-command", "{result}");
        assert_eq!(result["instanceId"], "i-of-the-command");
        assert_eq!(LoginMethods::try_logins(land), LoginMethods { key: true, second: false, password: true });

        let check = |says: [&str; 2]| {
            let output = land.run_agent(&["check", "--json"], "");
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            let said = GuestFixture::combine_output(&output);
            assert!(says.iter().all(|words| said.contains(words)), "{says:?}: {said}");
        };
        land.set_target_user("nobody-here");
        check([
            "\"there is no user nobody-here\"",
            "\"remedy\":\"set target_user to an account of this guest, or create it\"",
        ]);
        land.set_target_user("u");
        land.run_script("mv /etc/ssh/sshd_config /etc/ssh/gone");
        check([
            "\"there is no sshd configuration /etc/ssh/sshd_config\"",
            "\"remedy\":\"install the OpenSSH server, or name the file",
        ]);
        land.run_script(
            "mv /etc/ssh/gone /etc/ssh/sshd_config; kill $(cat /run/sshd.pid); rm /usr/sbin/sshd",
        );
        support::wait_for("sshd to end", || (!land.guest.host_path("/run/sshd.pid").exists()).then_some(()));
        check([
            "\"there is no sshd at /usr/sbin/sshd\"",
            "\"remedy\":\"install the OpenSSH server, or name its program",
        ]);
    });
}

// Replace with `yes` if the bound key is the only access.

/// Runs `apply` under strace(1), which may kill it. Returns its output and the trace.
fn apply_under_strace(land: &GuestFixture<'_>, command: &Value, options: &[&str]) -> (Output, String) {
    let log = land.lab.folder.path().join("strace.log");
    let mut words = vec!["strace", "-f", "-qq", "-o", log.to_str().unwrap()];
    words.extend(options);
    let output = land.guest.run_agent(&words, &["apply", "-"], &command.to_string());
    (output, fs::read_to_string(&log).unwrap())
}

/// The calls that change something, made by the thread that makes most of them. Each has its number among the calls
/// of its name.
fn parse_mutating_calls(log: &str) -> Vec<(String, usize)> {
    let calls: Vec<(&str, &str)> = log
        .lines()
        .filter(|line| !line.contains("resumed>"))
        .filter_map(|line| {
            let (thread, rest) = line.trim_start().split_once(' ')?;
            Some((thread, rest.trim_start().split_once('(')?.0))
        })
        .filter(|(_, call)| call.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
        .collect();
    let worker = calls.iter().map(|(thread, _)| *thread).max_by_key(|thread| {
        calls.iter().filter(|(other, call)| other == thread && call.starts_with("rename")).count()
    });
    let mut found: Vec<(String, usize)> = Vec::new();
    for (_, call) in calls.iter().filter(|(thread, _)| Some(*thread) == worker) {
        let nth = 1 + found.iter().filter(|(other, _)| other == call).count();
        found.push(((*call).to_owned(), nth));
    }
    found
}

/// At any point at which the agent is killed, the old key or the password gives access. sshd refuses the new key;
/// `yes` permits that.
/// KP-4.10.
#[test]
fn replace_killed_at_any_point_keeps_a_login() {
    if !has_tools(&["strace"]) {
        return;
    }
    with_guest("u", OWN_FILE, "RevokedKeys /etc/ssh/revoked\n", |land| {
        land.guest.write("/etc/ssh/revoked", &format!("{}\n", land.lab.second.line)).unwrap();
        let begin = |land: &GuestFixture<'_>| {
            land.apply_ok(&with_field(land.attach_command("no"), "replace", json!(true)));
            assert_eq!(LoginMethods::try_logins(land), FIRST_KEY_ONLY);
        };
        let command = land.replace_command("yes");
        begin(land);
        let (output, log) = apply_under_strace(land, &command, &["-e", "trace=renameat,renameat2,kill"]);
        assert_eq!(GuestFixture::parse_result(&output)["status"], "succeeded", "{output:?}");
        assert_eq!(LoginMethods::try_logins(land), PASSWORD_ONLY);
        let points = parse_mutating_calls(&log);
        assert!(points.len() >= 4 && points.iter().any(|(call, _)| call == "kill"), "{points:?}: {log}");
        let mut seen = Vec::new();
        for (call, nth) in points {
            begin(land);
            let inject = format!("inject={call}:signal=SIGKILL:when={nth}");
            let (output, _) =
                apply_under_strace(land, &command, &["-e", &format!("trace={call}"), "-e", &inject]);
            assert!(output.stdout.is_empty(), "{call} {nth}: not killed: {output:?}");
            let ways = LoginMethods::try_logins(land);
            assert!(ways.any(), "{call} {nth}: nobody gets in");
            seen.push(ways);
        }
        // The agent was killed before the reload and after it.
        assert!(seen.contains(&FIRST_KEY_ONLY), "{seen:?}");
        assert!(seen.contains(&LoginMethods { password: true, ..FIRST_KEY_ONLY }), "{seen:?}");
    });
}

/// With `yes`: sshd's file, the reload, then the key file. With `no` the order is reversed.
/// KP-4.10.
#[test]
fn key_setting_and_reload_run_in_safe_order() {
    if !has_tools(&["strace", "sshd", "ssh", "ssh-keygen"]) {
        return;
    }
    let guest = TestGuest::new();
    let (first, second) = (TestKey::new(&guest.folder, "first"), TestKey::new(&guest.folder, "second"));
    let order = |command: &Value| -> Vec<&str> {
        let calls = strace::trace_apply(&guest, command);
        let name = |call: &strace::DiskCall| match call {
            strace::DiskCall::Signal => Some("reload"),
            strace::DiskCall::Rename(_, to) if *to == guest.drop_in() => Some("setting"),
            strace::DiskCall::Rename(_, to) if *to == guest.key_file() => Some("key"),
            _ => None,
        };
        calls.iter().filter_map(name).collect()
    };
    assert_eq!(order(&attach_command("a", &first, "no")), ["key", "setting", "reload"]);
    assert_eq!(
        order(&with_field(attach_command("b", &second, "yes"), "replace", json!(true))),
        ["setting", "reload", "key"]
    );
    assert!(
        guest.sshd.accepts_key(&second) && !guest.sshd.accepts_key(&first) && guest.sshd.offers_password()
    );
    assert_eq!(
        order(&with_field(attach_command("a", &first, "no"), "replace", json!(true))),
        ["key", "setting", "reload"]
    );
    assert!(
        guest.sshd.accepts_key(&first) && !guest.sshd.accepts_key(&second) && !guest.sshd.offers_password()
    );
}

/// KP-4.12, KP-10.6.
#[test]
fn failed_replace_keeps_only_login() {
    // The trial refuses the new key, and no password is left.
    let setup = format!("usermod -p '!' u; {OWN_FILE}");
    for password_auth in ["yes", "no"] {
        with_guest("u", &setup, "RevokedKeys /etc/ssh/revoked\nLogLevel VERBOSE\n", |land| {
            land.guest.write("/etc/ssh/revoked", &format!("{}\n", land.lab.second.line)).unwrap();
            land.apply_ok(&land.attach_command("no"));
            let result = assert_refused_without_change(
                land,
                &land.replace_command(password_auth),
                "LOCKOUT_GUARD",
                "RevokedKeys",
            );
            assert_eq!(result["trial"]["key"], "refused", "{result}");
            assert_eq!(LoginMethods::try_logins(land), FIRST_KEY_ONLY);
        });
    }
    // The new key gives access, and it replaces the old one at once.
    with_guest("u", &setup, "", |land| {
        land.apply_ok(&land.attach_command("no"));
        let result = land.apply_ok(&land.replace_command("yes"));
        assert_eq!(result["trial"]["key"], "accepted", "{result}");
        assert_eq!(LoginMethods::try_logins(land), SECOND_KEY_ONLY);
    });
    // sshd exits during its reload.
    with_guest("u", OWN_FILE, "", |land| {
        land.apply_ok(&land.attach_command("no"));
        land.guest.break_sshd_binary().unwrap();
        let result = land.assert_refused(&land.replace_command("yes"), "SSHD_RELOAD_FAILED", "");
        assert_eq!(
            (LoginMethods::try_logins(land), &result["changed"]),
            (FIRST_KEY_ONLY, &json!(false)),
            "{result}"
        );
    });
}

// Without the right to create namespaces.

/// Runs the agent without the right to create namespaces, as in an unprivileged container.
fn run_without_namespaces(land: &GuestFixture<'_>, words: &[&str], input: &str) -> Output {
    let mut command = land.guest.guest_command("setpriv");
    command.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]).args(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn apply_without_namespaces(land: &GuestFixture<'_>, command: &Value) -> Value {
    let probe = run_without_namespaces(land, &["unshare", "--net", "true"], "");
    assert!(!probe.status.success(), "namespaces can be made all the same");
    GuestFixture::parse_result(&run_without_namespaces(
        land,
        &["/usr/bin/keypair-agent", "apply", "-"],
        &command.to_string(),
    ))
}

/// KP-10.3.
#[test]
fn trial_without_namespaces_uses_pipe() {
    if !has_tools(&["setpriv"]) {
        return;
    }
    with_guest("u", OWN_FILE, "", |land| {
        let result = apply_without_namespaces(land, &land.attach_command("no"));
        assert_eq!(result["status"], "succeeded", "{result}");
        assert_eq!(
            (&result["trial"]["key"], &result["trial"]["file"]),
            (&json!("accepted"), &json!("/home/u/.ssh/authorized_keys")),
            "{result}"
        );
        assert_eq!(LoginMethods::try_logins(land), FIRST_KEY_ONLY);
        // Without a namespace, a private sshd cannot read the new key file before the old one is replaced.
        for password_auth in ["no", "yes"] {
            if password_auth == "yes" {
                land.run_script("usermod -p '!' u");
            }
            let before = land.snapshot();
            let result = apply_without_namespaces(land, &land.replace_command(password_auth));
            assert_eq!(result["reason"], "LOCKOUT_GUARD", "{result}");
            assert!(message(&result).contains("before the old one is taken away"), "{result}");
            assert_eq!(before.describe_changes(&land.snapshot()), None);
            assert_eq!(LoginMethods::try_logins(land), FIRST_KEY_ONLY, "{result}");
        }
        // The same key again needs no change of the key file.
        let result = apply_without_namespaces(land, &land.attach_command("no"));
        assert_eq!(result["status"], "succeeded", "{result}");
        // With namespaces, the command succeeds.
        land.apply_ok(&land.replace_command("no"));
        assert_eq!(LoginMethods::try_logins(land), SECOND_KEY_ONLY);
    });
    for (lines, says) in [
        ("AllowUsers u@10.0.0.0/8\n", "depends on addresses"),
        ("Match Address 10.0.0.0/8\n  PubkeyAuthentication yes\n", "depends on addresses"),
        ("RevokedKeys /etc/ssh/revoked\n", "RevokedKeys"),
        ("DenyUsers v\nPubkeyAcceptedKeyTypes rsa-sha2-512\n", ""),
    ] {
        with_guest("u", &format!("echo '@KEY@' >/etc/ssh/revoked; {OWN_FILE}"), lines, |land| {
            let before = land.snapshot();
            let result = apply_without_namespaces(land, &land.attach_command("no"));
            assert_eq!(result["reason"], "LOCKOUT_GUARD", "{lines}: {result}");
            assert!(message(&result).contains(says), "{lines}: {result}");
            assert_eq!(before.describe_changes(&land.snapshot()), None, "{lines}");
            assert_eq!(LoginMethods::try_logins(land), PASSWORD_ONLY, "{lines}");
        });
    }
}

// If no sshd listens on loopback.

/// KP-10.15.
#[test]
fn trial_works_for_sshd_without_loopback_address() {
    for lines in ["ListenAddress 10.99.0.1\n", "ListenAddress 10.99.0.1\nListenAddress 10.1.2.3\n"] {
        with_guest("u", OWN_FILE, lines, |land| {
            assert_eq!(LoginMethods::try_logins(land), PASSWORD_ONLY);
            let result = land.apply_ok(&land.attach_command("no"));
            assert_eq!(result["trial"]["key"], "accepted", "{result}");
            assert!(result["proof"]["notTaken"].as_str().unwrap().contains("127.0.0.1"), "{result}");
            assert_eq!(LoginMethods::try_logins(land), FIRST_KEY_ONLY);
            land.apply_ok(&land.replace_command("no"));
            assert_eq!(LoginMethods::try_logins(land), SECOND_KEY_ONLY);
        });
        for refuses in [
            "RevokedKeys /etc/ssh/revoked\n",
            "AuthorizedKeysFile .ssh/authorized_keys\nPubkeyAuthentication no\n",
        ] {
            let setup = format!("echo '@KEY@' >/etc/ssh/revoked; {OWN_FILE}");
            with_guest("u", &setup, &format!("{lines}{refuses}"), |land| {
                let result =
                    assert_refused_without_change(land, &land.attach_command("no"), "LOCKOUT_GUARD", "");
                assert_eq!(result["trial"]["key"], "refused", "{result}");
                assert_eq!(LoginMethods::try_logins(land), PASSWORD_ONLY);
            });
        }
    }
}

/// KP-10.6.
#[test]
fn missing_ssh_client_forbids_relying_on_key() {
    with_guest("u", OWN_FILE, "", |land| {
        land.apply_ok(&land.attach_command("yes"));
        land.run_script("rm /usr/bin/ssh");
        for command in
            [land.attach_command("no"), land.replace_command("no"), set_password_auth_command("no")]
        {
            let result = assert_refused_without_change(land, &command, "LOCKOUT_GUARD", "no ssh client");
            assert!(message(&result).contains("openssh-client"), "{result}");
        }
        // Passwords are on, so access does not depend on the new key.
        land.apply_ok(&land.replace_command("yes"));
        assert_eq!(LoginMethods::try_logins(land), LoginMethods { key: false, second: true, password: true });
    });
    with_guest("u", &format!("usermod -p '!' u; {OWN_FILE}"), "", |land| {
        land.apply_ok(&land.attach_command("no"));
        land.run_script("rm /usr/bin/ssh");
        for password_auth in ["yes", "no"] {
            assert_refused_without_change(
                land,
                &land.replace_command(password_auth),
                "LOCKOUT_GUARD",
                "openssh-client",
            );
        }
        assert_eq!(LoginMethods::try_logins(land), FIRST_KEY_ONLY);
    });
}

/// sshd does not offer the key exchange that the agent prefers.
#[test]
fn trial_works_with_post_quantum_kex_only() {
    const KEX: &str = "KexAlgorithms=sntrup761x25519-sha512@openssh.com";
    let lines = "KexAlgorithms sntrup761x25519-sha512@openssh.com\nLogLevel VERBOSE\n";
    for refuses in ["", "RevokedKeys /etc/ssh/revoked\n"] {
        with_guest(
            "u",
            &format!("echo '@KEY@' >/etc/ssh/revoked; {OWN_FILE}"),
            &format!("{lines}{refuses}"),
            |land| {
                let key = || land.login_with("u", Credential::Key(&land.key().private), &["-o", KEX]).let_in;
                let password = || land.login_with("u", Credential::Password, &["-o", KEX]).let_in;
                assert!(!key() && password());
                let result = land.apply(&land.attach_command("no"));
                assert_eq!(
                    result["trial"]["key"],
                    if refuses.is_empty() { "accepted" } else { "refused" },
                    "{result}"
                );
                assert_eq!(
                    result["status"],
                    if refuses.is_empty() { "succeeded" } else { "failed" },
                    "{result}"
                );
                assert_eq!((key(), password()), (refuses.is_empty(), !refuses.is_empty()), "{result}");
            },
        );
    }
}
