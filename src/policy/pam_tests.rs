//! Tables of PAM stacks. The answers of libpam 1.5 and 1.7 for the same files are beside each stack.

use super::*;

/// Every module is installed except `pam_gone.so` and names without a suffix.
fn refusing_rules(files: &[(&str, &str)]) -> Vec<(String, usize, bool)> {
    refusing_rules_with_nologin(false, files)
}

/// The same, with or without nologin(5)'s file.
fn refusing_rules_with_nologin(is_closed: bool, files: &[(&str, &str)]) -> Vec<(String, usize, bool)> {
    let file = |service: &str| match files.iter().find(|(name, _)| *name == service) {
        Some((name, text)) => {
            ServiceFile::Content(Path::new("/etc/pam.d").join(name), text.as_bytes().to_vec())
        }
        None => ServiceFile::Missing,
    };
    let has_module = |module: &str| module.ends_with(".so") && module != "pam_gone.so";
    let found =
        find_refusing_rules("sshd", &PamInstallation { file: &file, has_module: &has_module, is_closed });
    found.into_iter().map(|rule| (rule.module, rule.line, rule.refuses)).collect()
}

const PERMIT_STACK: &str = "account required pam_permit.so\nsession required pam_permit.so\n";

#[test]
fn stock_pam_stacks_permit_login() {
    let debian = "account required pam_nologin.so\n# account required pam_access.so\n@include common-account\n\
                  session [success=ok ignore=ignore module_unknown=ignore default=bad] pam_selinux.so close\n\
                  session required pam_loginuid.so\nsession optional pam_keyinit.so force revoke\n\
                  @include common-session\n\
                  session optional pam_motd.so motd=/run/motd.dynamic\nsession required pam_limits.so\n\
                  session required pam_env.so user_readenv=1 envfile=/etc/default/locale\n";
    let account = "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\n\
                   account requisite pam_deny.so\naccount required pam_permit.so\n";
    let session = "session [default=1] pam_permit.so\nsession requisite pam_deny.so\n\
                   session required pam_permit.so\nsession required pam_unix.so\nsession optional pam_systemd.so\n";
    assert_eq!(
        refusing_rules(&[("sshd", debian), ("common-account", account), ("common-session", session)]),
        []
    );
    let redhat = "account required pam_sepermit.so\naccount required pam_nologin.so\naccount include password-auth\n\
                  session required pam_loginuid.so\nsession include password-auth\n";
    let password_auth = "auth required pam_deny.so\naccount required pam_unix.so\naccount sufficient pam_localuser.so\n\
                         account sufficient pam_succeed_if.so uid < 1000 quiet\n\
                         account [default=bad success=ok user_unknown=ignore] pam_sss.so\n\
                         account required pam_permit.so\nsession required pam_limits.so\n-session optional pam_systemd.so\n\
                         session [success=1 default=ignore] pam_succeed_if.so service in crond quiet use_uid\n\
                         session required pam_unix.so\n";
    assert_eq!(refusing_rules(&[("sshd", redhat), ("password-auth", password_auth)]), []);
}

/// KP-6.20, KP-6.21.
#[test]
fn pam_rules_that_may_refuse_are_found() {
    // The account rules before rules that allow the login, the expected finding, and whether it is certain.
    for (text, expected) in [
        ("", None),
        ("account required pam_access.so\n", Some(("pam_access", 1, false))),
        ("auth required pam_access.so\npassword required pam_pwquality.so\n", None),
        (
            "\n-account \\\n  requisite \\\n /lib/security/pam_listfile.so item=user\n",
            Some(("pam_listfile", 2, false)),
        ),
        ("account [success=ok default=die] pam_time.so\n", Some(("pam_time", 1, false))),
        ("account [success=ok default=ignore] pam_time.so\n", None),
        ("account optional pam_time.so\naccount sufficient pam_slurm.so\n", None),
        ("Account Required pam_slurm.so\n", Some(("pam_slurm", 1, false))),
        ("ACCOUNT REQUIRED pam_deny.so\n", Some(("pam_deny", 1, true))),
        ("account required pam_deny.so\n", Some(("pam_deny", 1, true))),
        ("account required [pam_deny.so]\n", Some(("pam_deny", 1, true))),
        ("account [ success=ok  default = die ] pam_deny.so\n", Some(("pam_deny", 1, true))),
        ("account [default=die] pam_permit.so\n", Some(("pam_permit", 1, true))),
        ("account required pam_deny.so\naccount [success=reset] pam_permit.so\n", None),
        // A jump that is taken, one that is not, one that may be taken, and one beyond the end.
        ("account [success=1 default=ignore] pam_permit.so\naccount requisite pam_deny.so\n", None),
        (
            "account [success=ignore default=1] pam_permit.so\naccount requisite pam_deny.so\n",
            Some(("pam_deny", 2, true)),
        ),
        (
            "account [success=1 default=ignore] pam_x.so\naccount requisite pam_deny.so\n",
            Some(("pam_x", 1, false)),
        ),
        (
            "account [success=9 default=ignore] pam_permit.so\naccount requisite pam_deny.so\n",
            Some(("pam_permit", 1, true)),
        ),
        // Modules that are not installed: the dash has no effect, `module_unknown` has.
        ("account required pam_gone.so\n", Some(("pam_gone, which is not installed", 1, true))),
        ("-account required pam_gone.so\n", Some(("pam_gone, which is not installed", 1, true))),
        ("account required pam_permit\n", Some(("pam_permit, which is not installed", 1, true))),
        ("account required pam_permit.so\r\n", Some(("pam_permit.so\\r, which is not installed", 1, true))),
        ("account optional pam_gone.so\n", None),
        ("account [success=ok module_unknown=ignore default=bad] pam_gone.so\n", None),
        // Lines that are not valid.
        ("account bogus pam_permit.so\n", Some(("pam_permit", 1, true))),
        ("account required\n", Some(("a line that is not valid", 1, true))),
        ("account\n", Some(("a line that is not valid", 1, true))),
        ("acount required pam_deny.so\n", None),
        // A comment ends where its line ends. Inside a continued line PAM skips it.
        ("# x \\\naccount required pam_deny.so\n", Some(("pam_deny", 2, true))),
        (
            "account required pam_permit.so # x \\\naccount required pam_deny.so\n",
            Some(("pam_deny", 2, true)),
        ),
        ("account required \\\n # x\n pam_deny.so\n", Some(("pam_deny", 1, true))),
    ] {
        let found = refusing_rules(&[("sshd", &format!("{text}{PERMIT_STACK}"))]);
        let expected = expected.map(|(module, line, certain)| (module.to_owned(), line, certain));
        assert_eq!(found.first(), expected.as_ref(), "{text}");
    }
}

/// KP-6.20.
#[test]
fn pam_stack_without_success_refuses() {
    let session = "session required pam_permit.so\n";
    for text in [
        "account optional pam_gone.so\n",
        "account [success=1 default=ignore] pam_permit.so\naccount requisite pam_deny.so\n",
    ] {
        let found = refusing_rules(&[("sshd", &format!("{text}{session}"))]);
        assert_eq!(found.iter().map(|rule| rule.2).collect::<Vec<_>>(), [true], "{text}");
    }
    let perhaps = refusing_rules(&[("sshd", &format!("account optional pam_x.so\n{session}"))]);
    assert_eq!(perhaps, [("pam_x".to_owned(), 1, false)]);
    assert_eq!(refusing_rules(&[("sshd", &format!("account optional pam_permit.so\n{session}"))]), []);
}

#[test]
fn pam_includes_and_substacks_are_followed() {
    let deny = "account requisite pam_deny.so\naccount requisite pam_deny.so\n";
    let done = "account sufficient pam_permit.so\n";
    for (text, inner, expected) in [
        ("@include s\n", done, None),
        ("@include s\n", deny, Some(("pam_deny", 1, true))),
        ("account include s\n", deny, Some(("pam_deny", 1, true))),
        ("session include s\n", deny, None),
        ("account substack s\n", deny, Some(("pam_deny", 1, true))),
        // The end of a substack is not the end of the whole stack.
        ("account include s\naccount required pam_deny.so\n", done, None),
        ("account substack s\naccount required pam_deny.so\n", done, Some(("pam_deny", 2, true))),
        // A substack counts as one rule. An include counts as its rules.
        ("account [success=1 default=ignore] pam_permit.so\naccount substack s\n", deny, None),
        (
            "account [success=1 default=ignore] pam_permit.so\naccount include s\n",
            deny,
            Some(("pam_deny", 2, true)),
        ),
        ("account include gone\n", "", Some(("the include of gone, which does not exist", 1, true))),
        ("account substack gone\n", "", Some(("the include of gone, which does not exist", 1, true))),
        ("session include gone\n", "", Some(("the include of gone, which does not exist", 1, true))),
        ("auth include gone\n", "", None),
        ("@include gone\n", "", Some(("the include of gone, which does not exist", 1, true))),
        ("@include sshd\n", "", Some(("includes that go too deep", 1, false))),
    ] {
        let found = refusing_rules(&[("sshd", &format!("{text}{PERMIT_STACK}")), ("s", inner)]);
        let expected = expected.map(|(module, line, certain)| (module.to_owned(), line, certain));
        assert_eq!(found.first(), expected.as_ref(), "{text}");
    }
}

#[test]
fn pam_service_other_is_the_fallback() {
    assert_eq!(refusing_rules(&[]).first().map(|rule| rule.2), Some(true));
    let said =
        |files: &[(&str, &str)]| refusing_rules(files).into_iter().map(|rule| rule.2).collect::<Vec<_>>();
    assert_eq!(said(&[("other", PERMIT_STACK)]), [false, false], "said, since nobody set it up for sshd");
    assert_eq!(said(&[("sshd", "session required pam_permit.so\n")]), [true]);
    assert_eq!(said(&[("sshd", "session required pam_permit.so\n"), ("other", PERMIT_STACK)]), [false]);
    let denies = "account required pam_deny.so\nsession required pam_deny.so\n";
    assert_eq!(said(&[("other", denies)]), [false, true, false, true]);
    assert_eq!(said(&[("sshd", PERMIT_STACK), ("other", denies)]), [] as [bool; 0]);
    assert_eq!(said(&[("sshd", PERMIT_STACK), ("other", "@include gone\n")]), [true], "PAM does not start");
    assert_eq!(said(&[("sshd", "account required pam_permit.so \\")]).first(), Some(&true));
}

proptest::proptest! {
    #[test]
    fn pam_parser_accepts_any_service_text(
        text in "((account|session|-account|required|sufficient|substack s|include s|@include|\\[|\\]|success=1|default=die|ok|pam_deny.so|pam_permit.so|pam_x.so|#|\\\\|=| |\n){0,40})",
    ) {
        let _ = refusing_rules(&[("sshd", &text), ("s", &text)]);
    }
}

#[test]
fn nologin_refuses_only_if_its_module_is_reached() {
    let first = format!("account required pam_nologin.so\n{PERMIT_STACK}");
    let jumped = format!("account [success=1 default=bad] pam_permit.so\n{first}");
    let optional = format!("account optional pam_nologin.so\n{PERMIT_STACK}");
    for (stack, expected) in [
        (first.as_str(), vec![("pam_nologin".to_owned(), 1, true)]),
        (jumped.as_str(), vec![]),
        (optional.as_str(), vec![]),
        (PERMIT_STACK, vec![]),
    ] {
        assert_eq!(refusing_rules_with_nologin(true, &[("sshd", stack)]), expected, "{stack}");
        assert_eq!(refusing_rules_with_nologin(false, &[("sshd", stack)]), [], "{stack}");
    }
}
