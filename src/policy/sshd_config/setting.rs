//! Translates a command's `passWordAuth` into sshd's directives, and checks that sshd applies them (KP-6.7 and
//! KP-6.11).

use serde::{Deserialize, Serialize};

use super::placement::is_managed_directive;
use super::reader::read_directives;
use super::{CHALLENGE_RESPONSE, ConfigSource, KBD_INTERACTIVE, PASSWORD_AUTHENTICATION, ParsedConfig};
use crate::policy::effective::EffectiveConfig;
use crate::policy::foreign::sanitize_text;
use crate::policy::observation::{ConfigTree, Connection, SshdAnswer};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::types::PasswordAuth;

/// Whether the agent turns off the keyboard-interactive method together with passwords: `kbd_interactive` of the
/// configuration (KP-6.11). With PAM this method asks for the same password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KbdInteractive {
    /// The method goes off together with passwords.
    #[default]
    Follow,
    /// The agent does not change the method.
    Leave,
}

/// Returns the directives for a setting (KP-6.11). Before OpenSSH 8.7 the method had two names, and either of them
/// turned it on. The agent sets the second name too if a line that it did not write turns that name on.
pub fn desired_directives(
    asked: PasswordAuth,
    kbd: KbdInteractive,
    effective: &EffectiveConfig,
    tree: &ConfigTree,
) -> Vec<(String, String)> {
    let set = |keyword: &str, value: &str| (keyword.to_owned(), value.to_owned());
    let mut wanted = vec![set(PASSWORD_AUTHENTICATION, asked.as_str())];
    if asked == PasswordAuth::No && kbd == KbdInteractive::Follow {
        let has_two_names = effective.has_challenge_response();
        if has_two_names {
            wanted.push(set(CHALLENGE_RESPONSE, "no"));
        }
        if !has_two_names || has_foreign_kbd_interactive(tree) {
            wanted.push(set(KBD_INTERACTIVE, "no"));
        }
    }
    wanted
}

/// Returns true if the first global `KbdInteractiveAuthentication` that the agent did not write is not `no`.
fn has_foreign_kbd_interactive(tree: &ConfigTree) -> bool {
    read_directives(tree)
        .iter()
        .find(|d| {
            d.is_global() && d.keyword.eq_ignore_ascii_case(KBD_INTERACTIVE) && !is_managed_directive(tree, d)
        })
        .is_some_and(|d| !d.value().eq_ignore_ascii_case("no"))
}

/// Returns true if the configuration forbids passwords for every connection that no `Match` block picks. The answers
/// for the target user do not show this, because a `Match` block for that user alone may forbid passwords. `first` is
/// an answer for the target user.
pub fn forbids_passwords_globally(kbd: KbdInteractive, first: &SshdAnswer, reading: &ParsedConfig) -> bool {
    // No account has this name, and no pattern matches it except one that matches every name.
    let anybody = Connection { user: "nobody.in.particular".to_owned(), ..first.connection.clone() };
    let is_off = |keyword: &str| {
        let value = reading.resolve_value(keyword, &anybody, Some(&[])).value;
        value.is_some_and(|words| words.join(" ").eq_ignore_ascii_case("no"))
    };
    let asks = kbd == KbdInteractive::Follow && first.effective.is_yes("usepam");
    is_off(PASSWORD_AUTHENTICATION) && (!asks || is_off(KBD_INTERACTIVE))
}

/// Checks that every answer of sshd has the requested setting (KP-6.7). For `no`, sshd takes no password, and no
/// keyboard-interactive if UsePAM is on. For `yes`, PasswordAuthentication is yes, and a password alone satisfies
/// AuthenticationMethods.
///
/// # Errors
/// `PASSWORD_AUTH_NOT_EFFECTIVE`, which names the line or option that wins. That line may be one for the user's
/// `groups`.
pub fn check_password_auth(
    asked: PasswordAuth,
    kbd: KbdInteractive,
    answers: &[SshdAnswer],
    reading: &ParsedConfig,
    groups: &[String],
) -> Result<(), Refusal> {
    for answer in answers {
        if let Some(keyword) = find_mismatched_keyword(asked, kbd, &answer.effective) {
            return Err(not_effective_refusal(asked, keyword, answer, reading, groups));
        }
    }
    Ok(())
}

/// Returns the keyword whose value differs from the request.
fn find_mismatched_keyword(
    asked: PasswordAuth,
    kbd: KbdInteractive,
    said: &EffectiveConfig,
) -> Option<&'static str> {
    match asked {
        PasswordAuth::No if said.password_authentication() => Some(PASSWORD_AUTHENTICATION),
        PasswordAuth::No => {
            let asks = kbd == KbdInteractive::Follow && said.is_yes("usepam");
            (asks && said.kbd_interactive_authentication()).then_some(KBD_INTERACTIVE)
        }
        PasswordAuth::Yes if !said.password_authentication() => Some(PASSWORD_AUTHENTICATION),
        PasswordAuth::Yes => (!said.method_suffices("password")).then_some("AuthenticationMethods"),
    }
}

fn not_effective_refusal(
    asked: PasswordAuth,
    keyword: &str,
    answer: &SshdAnswer,
    reading: &ParsedConfig,
    groups: &[String],
) -> Refusal {
    let who = &answer.connection;
    let observed = match keyword {
        "AuthenticationMethods" => answer.effective.words("authenticationmethods").join(" "),
        _ if asked == PasswordAuth::No => "yes".to_owned(),
        _ => "no".to_owned(),
    };
    let decides = reading.find_value_source(keyword, &observed, who, Some(groups));
    let remedy = match (&decides, keyword) {
        (ConfigSource::CommandLine(_), _) => {
            "take it out of the way sshd is started and restart sshd".to_owned()
        }
        (ConfigSource::Line { .. }, "AuthenticationMethods") => {
            "add a list there that is `password` alone, or remove the line".to_owned()
        }
        (ConfigSource::Line { .. }, _) => format!("remove that line or make it say `{asked}`"),
        (ConfigSource::Default, _) => "look at what `sshd -T` reads".to_owned(),
    };
    Refusal::new(
        Reason::PasswordAuthNotEffective,
        format!(
            "password login is not `{asked}` for {} from {} on port {}: sshd has {keyword} {} because of {}; {remedy}",
            who.user,
            who.addr,
            who.lport,
            sanitize_text(&observed),
            decides.describe(keyword)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::KbdNames;
    use super::super::fixture::build_config_tree;
    use super::*;
    use crate::policy::connection::default_neutral_connection;

    const MAIN_CONFIG: &str = "/etc/ssh/sshd_config";

    fn parse_answer(said: &str) -> SshdAnswer {
        SshdAnswer { connection: default_neutral_connection("root"), effective: EffectiveConfig::parse(said) }
    }

    /// KP-6.11.
    #[test]
    fn desired_directives_for_each_setting() {
        use KbdInteractive::{Follow, Leave};
        let new = "kbdinteractiveauthentication yes\n";
        let old = "kbdinteractiveauthentication yes\nchallengeresponseauthentication yes\n";
        let by_itself = "KbdInteractiveAuthentication yes\n";
        for (asked, kbd, said, main, expected) in [
            (PasswordAuth::Yes, Follow, new, "", vec!["PasswordAuthentication yes"]),
            (PasswordAuth::No, Leave, new, "", vec!["PasswordAuthentication no"]),
            (
                PasswordAuth::No,
                Follow,
                new,
                "",
                vec!["PasswordAuthentication no", "KbdInteractiveAuthentication no"],
            ),
            (
                PasswordAuth::No,
                Follow,
                old,
                "ChallengeResponseAuthentication yes\n",
                vec!["PasswordAuthentication no", "ChallengeResponseAuthentication no"],
            ),
            (
                PasswordAuth::No,
                Follow,
                old,
                by_itself,
                vec![
                    "PasswordAuthentication no",
                    "ChallengeResponseAuthentication no",
                    "KbdInteractiveAuthentication no",
                ],
            ),
        ] {
            let wanted = desired_directives(
                asked,
                kbd,
                &EffectiveConfig::parse(said),
                &build_config_tree(&[(MAIN_CONFIG, main)]),
            );
            let wanted: Vec<String> = wanted.iter().map(|(k, v)| format!("{k} {v}")).collect();
            assert_eq!(wanted, expected, "{asked} {kbd:?} {said}");
        }
    }

    #[test]
    fn desired_directives_ignore_managed_lines() {
        let old =
            EffectiveConfig::parse("kbdinteractiveauthentication no\nchallengeresponseauthentication no\n");
        let block = "# BEGIN keypair-agent\nKbdInteractiveAuthentication no\n# END keypair-agent\n";
        let main = format!("{block}KbdInteractiveAuthentication yes\n");
        assert_eq!(
            desired_directives(
                PasswordAuth::No,
                KbdInteractive::Follow,
                &old,
                &build_config_tree(&[(MAIN_CONFIG, &main)])
            )
            .len(),
            3
        );
        assert_eq!(
            desired_directives(
                PasswordAuth::No,
                KbdInteractive::Follow,
                &old,
                &build_config_tree(&[(MAIN_CONFIG, block)])
            )
            .len(),
            2
        );
    }

    /// KP-6.7.
    #[test]
    fn password_auth_is_checked_in_every_answer() {
        use KbdInteractive::{Follow, Leave};
        let off = "passwordauthentication no\nusepam yes\nkbdinteractiveauthentication no\n";
        let kbd = "passwordauthentication no\nusepam yes\nkbdinteractiveauthentication yes\n";
        let no_pam = "passwordauthentication no\nusepam no\nkbdinteractiveauthentication yes\n";
        let on = "passwordauthentication yes\nusepam yes\nkbdinteractiveauthentication no\n";
        let both = "passwordauthentication yes\nauthenticationmethods publickey,password\n";
        let either = "passwordauthentication yes\nauthenticationmethods publickey password\n";
        for (asked, follow, said, fine) in [
            (PasswordAuth::No, Follow, off, true),
            (PasswordAuth::No, Follow, kbd, false),
            (PasswordAuth::No, Leave, kbd, true),
            (PasswordAuth::No, Follow, no_pam, true),
            (PasswordAuth::No, Leave, on, false),
            (PasswordAuth::Yes, Follow, on, true),
            (PasswordAuth::Yes, Follow, off, false),
            (PasswordAuth::Yes, Follow, both, false),
            (PasswordAuth::Yes, Follow, either, true),
        ] {
            let answers =
                [parse_answer(if asked == PasswordAuth::No { off } else { on }), parse_answer(said)];
            let reading = ParsedConfig::new(&build_config_tree(&[(MAIN_CONFIG, "")]), &[], KbdNames::One);
            let judged = check_password_auth(asked, follow, &answers, &reading, &[]);
            assert_eq!(judged.is_ok(), fine, "{asked} {said}");
        }
    }

    #[test]
    fn passwords_forbidden_globally_apart_from_match_blocks() {
        use KbdInteractive::{Follow, Leave};
        let off = "KbdInteractiveAuthentication no\n";
        for (main, kbd, pam, expected) in [
            ("PasswordAuthentication no\n", Follow, "no", true),
            ("PasswordAuthentication no\n", Follow, "yes", false),
            ("PasswordAuthentication no\n", Leave, "yes", true),
            (&*format!("{off}PasswordAuthentication no\n"), Follow, "yes", true),
            ("", Follow, "no", false),
            ("Match User root\nPasswordAuthentication no\n", Follow, "no", false),
            ("Match all\nPasswordAuthentication no\n", Follow, "no", true),
            ("PasswordAuthentication no\nMatch User bob\nPasswordAuthentication yes\n", Follow, "no", true),
        ] {
            let reading = ParsedConfig::new(&build_config_tree(&[(MAIN_CONFIG, main)]), &[], KbdNames::One);
            let first = parse_answer(&format!("usepam {pam}\n"));
            assert_eq!(forbids_passwords_globally(kbd, &first, &reading), expected, "{main} {kbd:?} {pam}");
        }
    }

    /// KP-6.7.
    #[test]
    fn password_auth_refusal_names_winning_source() {
        let told = |main: &str, options: &[&str], asked, said: &str| {
            let options: Vec<String> = options.iter().map(|&word| word.to_owned()).collect();
            let answers = [parse_answer(said)];
            let reading =
                ParsedConfig::new(&build_config_tree(&[(MAIN_CONFIG, main)]), &options, KbdNames::One);
            match check_password_auth(
                asked,
                KbdInteractive::Follow,
                &answers,
                &reading,
                &["wheel".to_owned()],
            ) {
                Ok(()) => String::new(),
                Err(refusal) => refusal.message,
            }
        };
        let main = "PasswordAuthentication no\nMatch User root\n  PasswordAuthentication yes\n";
        let message = told(main, &[], PasswordAuth::No, "passwordauthentication yes\n");
        assert!(message.contains("/etc/ssh/sshd_config line 3"), "{message}");
        let main = "PasswordAuthentication no\n";
        let message =
            told(main, &["-oPasswordAuthentication=yes"], PasswordAuth::No, "passwordauthentication yes\n");
        assert!(message.contains("`-o PasswordAuthentication=yes`"), "{message}");
        let main = "Match Group wheel\nPasswordAuthentication yes\n";
        let message = told(main, &[], PasswordAuth::No, "passwordauthentication yes\n");
        assert!(message.contains("line 2 (`PasswordAuthentication yes`, in a Match block)"), "{message}");
        let main = "PasswordAuthentication yes\nAuthenticationMethods publickey,password\n";
        let said = "passwordauthentication yes\nauthenticationmethods publickey,password\n";
        let message = told(main, &[], PasswordAuth::Yes, said);
        assert!(message.contains("line 2 (`AuthenticationMethods publickey,password`)"), "{message}");
    }
}
