//! Whether a password would let an account log in: sshd's settings, and whether the account has a usable password.

use super::effective::EffectiveConfig;
use super::lockout::is_nologin_shell;
use super::observation::{Account, Login, Shadow};

/// Whether this account could log in with a password: sshd accepts one, and the account has a usable one.
pub fn can_log_in_with_password(login: &Login, account: &Account, effective: &EffectiveConfig) -> bool {
    sshd_accepts_password(effective, account) && account_has_usable_password(login, account, effective)
}

/// Whether this user could still log in with a password, as far as sshd's settings decide. Possible methods are the
/// password method, and keyboard-interactive if PAM asks for a password there. Root can do so if PermitRootLogin is
/// `yes`. Other functions check who may connect at all (Allow*, Deny*) and whether the account has a password.
pub fn sshd_accepts_password(effective: &EffectiveConfig, account: &Account) -> bool {
    let by_password = effective.password_authentication() && effective.method_suffices("password");
    let pam_asks = effective.is_yes("usepam") && effective.kbd_interactive_authentication();
    let by_kbd_interactive = pam_asks
        && ["keyboard-interactive", "keyboard-interactive:pam"]
            .iter()
            .any(|method| effective.method_suffices(method));
    let is_root_permitted = account.uid != 0 || effective.is_yes("permitrootlogin");
    (by_password || by_kbd_interactive) && is_root_permitted
}

/// Whether the account has a password that allows a login: shadow(5), passwd(5). A locked password, a text that is
/// not a hash, and the password of an expired account do not count. An empty password counts only if
/// PermitEmptyPasswords is `yes`. A password that the agent cannot read does not count.
pub fn account_has_usable_password(login: &Login, account: &Account, effective: &EffectiveConfig) -> bool {
    let entry = match &login.shadow {
        Shadow::Entry(entry) => entry,
        Shadow::Unreadable(_) | Shadow::NoEntry => return false,
    };
    let is_permitted = entry.has_password || entry.is_empty && effective.is_yes("permitemptypasswords");
    let is_kept_out =
        login.blocking_nologin_file(account, effective).is_some() || is_nologin_shell(&account.shell);
    // For pam_unix the account ends on that day, for sshd one day later. The earlier day counts.
    let has_ended = entry.expires.is_some_and(|expires| login.today >= expires);
    // If the password was not changed in time, the account ends some days after the password does.
    let last_day = entry
        .last_change
        .zip(entry.maximum)
        .zip(entry.inactive)
        .filter(|((_, maximum), inactive)| *maximum >= 0 && *inactive >= 0)
        .map(|((changed, maximum), inactive)| changed.saturating_add(maximum).saturating_add(inactive));
    let is_too_old = last_day.is_some_and(|day| login.today > day);
    is_permitted && !entry.is_locked && !is_kept_out && !has_ended && !is_too_old
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::observation::ShadowEntry;

    const VALID_ENTRY: ShadowEntry = ShadowEntry {
        is_locked: false,
        has_password: true,
        is_empty: false,
        last_change: Some(19_000),
        maximum: Some(99_999),
        inactive: None,
        expires: None,
    };

    fn login_with_shadow(shadow: Shadow) -> Login {
        Login {
            shadow,
            today: 20_000,
            nologin: None,
            pam: Vec::new(),
            people: Vec::new(),
            groups: Vec::new(),
        }
    }

    fn user(uid: u32, shell: &str) -> Account {
        Account {
            name: "u".into(),
            uid,
            gid: uid,
            home: "/home/u".into(),
            shell: shell.into(),
            groups: Vec::new(),
        }
    }

    #[test]
    fn password_is_usable_only_with_valid_shadow_entry() {
        let none = ShadowEntry { has_password: false, ..VALID_ENTRY };
        let empty = ShadowEntry { is_empty: true, ..none };
        for (name, entry, said, expected) in [
            ("whole", VALID_ENTRY, "", true),
            ("none", none, "", false),
            ("locked, as in cloud images", ShadowEntry { is_locked: true, ..none }, "", false),
            ("empty", empty, "", false),
            ("empty and permitted", empty, "permitemptypasswords yes\n", true),
            ("no hash, empty ones permitted", none, "permitemptypasswords yes\n", false),
            ("expires tomorrow", ShadowEntry { expires: Some(20_001), ..VALID_ENTRY }, "", true),
            ("expires today", ShadowEntry { expires: Some(20_000), ..VALID_ENTRY }, "", false),
            ("must be changed", ShadowEntry { last_change: Some(0), ..VALID_ENTRY }, "", true),
            ("old", ShadowEntry { maximum: Some(90), ..VALID_ENTRY }, "", true),
            (
                "old and inactive",
                ShadowEntry { maximum: Some(90), inactive: Some(7), ..VALID_ENTRY },
                "",
                false,
            ),
            ("young", ShadowEntry { maximum: Some(990), inactive: Some(10), ..VALID_ENTRY }, "", true),
        ] {
            let effective = EffectiveConfig::parse(said);
            let login = login_with_shadow(Shadow::Entry(entry));
            assert_eq!(
                account_has_usable_password(&login, &user(1000, "/bin/sh"), &effective),
                expected,
                "{name}"
            );
        }
        let effective = EffectiveConfig::default();
        for shadow in [Shadow::NoEntry, Shadow::Unreadable("denied".into())] {
            assert!(!account_has_usable_password(
                &login_with_shadow(shadow),
                &user(1000, "/bin/sh"),
                &effective
            ));
        }
        let whole = login_with_shadow(Shadow::Entry(VALID_ENTRY));
        assert!(!account_has_usable_password(&whole, &user(1000, "/usr/sbin/nologin"), &effective));
        let closed = Login { nologin: Some("/etc/nologin".into()), ..whole };
        assert!(!account_has_usable_password(&closed, &user(1000, "/bin/sh"), &effective));
        assert!(account_has_usable_password(&closed, &user(0, "/bin/sh"), &effective));
    }

    #[test]
    fn password_acceptance_follows_sshd_settings() {
        for (uid, said, left) in [
            (1000, "passwordauthentication yes\n", true),
            (1000, "passwordauthentication no\n", false),
            (1000, "passwordauthentication yes\nauthenticationmethods publickey\n", false),
            (1000, "passwordauthentication no\nusepam yes\nkbdinteractiveauthentication yes\n", true),
            (1000, "passwordauthentication no\nusepam no\nkbdinteractiveauthentication yes\n", false),
            (0, "passwordauthentication yes\npermitrootlogin without-password\n", false),
            (0, "passwordauthentication yes\npermitrootlogin yes\n", true),
        ] {
            assert_eq!(
                sshd_accepts_password(&EffectiveConfig::parse(said), &user(uid, "/bin/sh")),
                left,
                "{said}"
            );
        }
    }
}
