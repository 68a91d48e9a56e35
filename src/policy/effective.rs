//! The output of `sshd -T`: keywords with their arguments, as sshd_config(5) names them. Releases differ in upper and
//! lower case, so comparisons of keywords and of words such as `yes` ignore case.

use std::collections::BTreeMap;

use super::outcome::EffectiveReport;

/// A parsed output of `sshd -T`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EffectiveConfig {
    lines: BTreeMap<String, Vec<String>>,
}

impl EffectiveConfig {
    /// Parses the output of `sshd -T`: one `keyword arguments` per line. A keyword may appear in several lines.
    pub fn parse(output: &str) -> Self {
        let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in output.lines() {
            let (keyword, arguments) = line.split_once(' ').unwrap_or((line, ""));
            if !keyword.is_empty() {
                lines.entry(keyword.to_ascii_lowercase()).or_default().push(arguments.to_owned());
            }
        }
        Self { lines }
    }

    /// The arguments of the first line with this keyword (lower case). `""` if there is no such line.
    pub fn value(&self, keyword: &str) -> &str {
        self.lines.get(keyword).and_then(|values| values.first()).map_or("", |value| value.trim())
    }

    /// Every line with this keyword, exactly as sshd printed it. AllowUsers, AllowGroups and similar keywords have
    /// one pattern per line, without quotes, and a blank in the line is part of the pattern.
    pub fn values(&self, keyword: &str) -> &[String] {
        self.lines.get(keyword).map_or(&[], Vec::as_slice)
    }

    /// The words of all lines with this keyword, for values that contain no blanks.
    pub fn words(&self, keyword: &str) -> Vec<&str> {
        self.values(keyword).iter().flat_map(|line| line.split_ascii_whitespace()).collect()
    }

    /// Whether every line is the same, except for lines with these keywords (lower case).
    pub fn is_equal_except(&self, other: &Self, keywords: &[&str]) -> bool {
        let counts = |(keyword, _): &(&String, &Vec<String>)| !keywords.contains(&keyword.as_str());
        self.lines.iter().filter(counts).eq(other.lines.iter().filter(counts))
    }

    /// Whether sshd knows this keyword.
    pub fn has_keyword(&self, keyword: &str) -> bool {
        self.lines.contains_key(keyword)
    }

    /// Whether a yes/no keyword is `yes`.
    pub fn is_yes(&self, keyword: &str) -> bool {
        self.value(keyword).eq_ignore_ascii_case("yes")
    }

    /// Whether a keyword is `no`.
    pub fn is_no(&self, keyword: &str) -> bool {
        self.value(keyword).eq_ignore_ascii_case("no")
    }

    /// Returns the same settings with another value of one keyword (lower case).
    #[must_use]
    pub fn with_value(&self, keyword: &str, value: &str) -> Self {
        let mut changed = self.clone();
        changed.lines.insert(keyword.to_owned(), vec![value.to_owned()]);
        changed
    }

    /// `PasswordAuthentication`.
    pub fn password_authentication(&self) -> bool {
        self.is_yes("passwordauthentication")
    }

    /// Keyboard-interactive, under either of its names. Before OpenSSH 8.7 there were two options, and either of them
    /// turned the method on.
    pub fn kbd_interactive_authentication(&self) -> bool {
        self.is_yes("kbdinteractiveauthentication") || self.is_yes("challengeresponseauthentication")
    }

    /// Whether this sshd still has `ChallengeResponseAuthentication` as an option of its own (before 8.7).
    pub fn has_challenge_response(&self) -> bool {
        self.has_keyword("challengeresponseauthentication")
    }

    /// The lists of `AuthenticationMethods`, each with its methods. Empty if any single method is enough.
    pub fn authentication_methods(&self) -> Vec<Vec<&str>> {
        let lists: Vec<Vec<&str>> =
            self.words("authenticationmethods").into_iter().map(|list| list.split(',').collect()).collect();
        let is_any = |list: &Vec<&str>| matches!(list.as_slice(), [one] if one.eq_ignore_ascii_case("any"));
        if lists.iter().any(is_any) { Vec::new() } else { lists }
    }

    /// Whether one login with only `method` is enough for AuthenticationMethods.
    pub fn method_suffices(&self, method: &str) -> bool {
        let lists = self.authentication_methods();
        lists.is_empty() || lists.iter().any(|list| list.as_slice() == [method])
    }

    /// The methods of [`AuthMethod`] that sshd offers at first: those that are on and with which a list of
    /// AuthenticationMethods begins.
    pub fn offered_methods(&self) -> Vec<AuthMethod> {
        let lists = self.authentication_methods();
        let firsts: Vec<&str> =
            lists.iter().filter_map(|list| list.first().and_then(|first| first.split(':').next())).collect();
        let begins = |method: AuthMethod| lists.is_empty() || firsts.contains(&method.as_str());
        let is_on = |method: &AuthMethod| match method {
            AuthMethod::PublicKey => self.is_yes("pubkeyauthentication"),
            AuthMethod::Password => self.password_authentication(),
            AuthMethod::KeyboardInteractive => self.kbd_interactive_authentication(),
        };
        AuthMethod::ALL.into_iter().filter(|method| is_on(method) && begins(*method)).collect()
    }

    /// The values of `Port`.
    pub fn ports(&self) -> Vec<u16> {
        self.words("port").into_iter().filter_map(|port| port.parse().ok()).collect()
    }

    /// The settings that the result reports.
    pub fn to_report(&self) -> EffectiveReport {
        EffectiveReport {
            password_authentication: self.password_authentication(),
            kbd_interactive_authentication: self.kbd_interactive_authentication(),
            pubkey_authentication: self.is_yes("pubkeyauthentication"),
        }
    }
}

/// A method of authentication: RFC 4252, RFC 4256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// `publickey`.
    PublicKey,
    /// `password`.
    Password,
    /// `keyboard-interactive`.
    KeyboardInteractive,
}

impl AuthMethod {
    /// The methods that the agent knows. sshd may offer others too.
    pub const ALL: [Self; 3] = [Self::PublicKey, Self::Password, Self::KeyboardInteractive];

    /// The method's name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PublicKey => "publickey",
            Self::Password => "password",
            Self::KeyboardInteractive => "keyboard-interactive",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offered_methods_follow_authentication_methods() {
        let on = "pubkeyauthentication yes\npasswordauthentication yes\nkbdinteractiveauthentication no\n";
        for (said, expected) in [
            (on.to_owned(), vec!["publickey", "password"]),
            (format!("{on}authenticationmethods publickey,password\n"), vec!["publickey"]),
            (format!("{on}authenticationmethods password keyboard-interactive:pam\n"), vec!["password"]),
            (format!("{on}authenticationmethods any\n"), vec!["publickey", "password"]),
            ("kbdinteractiveauthentication yes\nauthenticationmethods keyboard-interactive:pam,publickey\n".to_owned(), vec!["keyboard-interactive"]),
        ] {
            let offered: Vec<&str> = EffectiveConfig::parse(&said).offered_methods().into_iter().map(AuthMethod::as_str).collect();
            assert_eq!(offered, expected, "{said}");
        }
    }

    #[test]
    fn sshd_output_is_parsed() {
        let effective = EffectiveConfig::parse(
            "port 22\nport 2222\npasswordauthentication yes\nallowusers u\nallowusers root@10.0.0.0/8\n\
             kbdinteractiveauthentication no\npubkeyauthentication yes\nauthenticationmethods any\n",
        );
        assert_eq!(effective.ports(), [22, 2222]);
        assert_eq!(effective.words("allowusers"), ["u", "root@10.0.0.0/8"]);
        assert!(effective.method_suffices("publickey"));
        assert!(effective.to_report().password_authentication);
        assert!(!effective.to_report().kbd_interactive_authentication);
    }

    #[test]
    fn keyword_case_is_ignored() {
        let lower =
            "pubkeyauthentication yes\nauthenticationmethods any\nallowgroups domain admins\nport 2222\n";
        let upper =
            "PubkeyAuthentication Yes\nAuthenticationMethods Any\nAllowGroups domain admins\nPort 2222\n";
        for text in [lower, upper] {
            let effective = EffectiveConfig::parse(text);
            assert!(
                effective.is_yes("pubkeyauthentication") && effective.method_suffices("publickey"),
                "{text}"
            );
            assert_eq!(effective.values("allowgroups"), ["domain admins"], "a blank is part of the name");
            assert_eq!(effective.ports(), [2222]);
        }
        assert!(EffectiveConfig::parse("StrictModes No\n").is_no("strictmodes"));
        assert!(EffectiveConfig::parse("usepam yes\n").with_value("usepam", "no").is_no("usepam"));
    }

    #[test]
    fn method_suffices_only_if_listed_alone() {
        let with = |methods: &str| EffectiveConfig::parse(&format!("authenticationmethods {methods}\n"));
        assert!(with("publickey,password password").method_suffices("password"));
        assert!(!with("publickey,password").method_suffices("publickey"));
        assert!(!with("publickey,publickey").method_suffices("publickey"));
        assert!(with("publickey").method_suffices("publickey"));
    }

    #[test]
    fn kbd_interactive_is_on_under_either_name() {
        let old =
            EffectiveConfig::parse("kbdinteractiveauthentication no\nchallengeresponseauthentication yes\n");
        assert!(old.kbd_interactive_authentication());
        assert!(old.has_challenge_response());
    }
}
