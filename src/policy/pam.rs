//! sshd's PAM service as text: pam.d(5). What is looked for are the rules that may refuse a login with a key and
//! that nobody evaluates here; a login with a key passes the `account` and `session` rules alone.

/// What a line of a service's file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Another file's lines stand here: the file's name, and for which type of rules (`None`: all).
    Include(String, Option<String>),
    /// A rule.
    Rule(Rule),
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `account`, `auth`, `password` or `session`.
    pub kind: String,
    /// The control: a word, or what stands between brackets.
    pub control: String,
    /// The module, without its directory and suffix.
    pub module: String,
}

/// Modules whose verdict is known here, or that refuse nobody who could come in.
const HARMLESS: &[&str] = &[
    "pam_apparmor",
    "pam_env",
    "pam_faillock",
    "pam_fprintd",
    "pam_keyinit",
    "pam_lastlog",
    "pam_lastlog2",
    "pam_limits",
    "pam_localuser",
    "pam_loginuid",
    "pam_mail",
    "pam_mkhomedir",
    "pam_motd",
    "pam_namespace",
    "pam_nologin",
    "pam_oddjob_mkhomedir",
    "pam_permit",
    "pam_reauthorize",
    "pam_selinux",
    "pam_sepermit",
    "pam_ssh_add",
    "pam_systemd",
    "pam_tally2",
    "pam_umask",
    "pam_unix",
    "pam_usertype",
    "pam_warn",
    "pam_xauth",
];

/// The lines of a file, each with the number (from 1) of its first one.
pub fn lines(content: &[u8]) -> Vec<(usize, Line)> {
    let text = String::from_utf8_lossy(content);
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (line, number) in text.lines().zip(1..) {
        let line = line.split('#').next().unwrap_or_default();
        let (start, mut whole) = open.take().unwrap_or((number, String::new()));
        match line.trim_end().strip_suffix('\\') {
            Some(more) => {
                whole.push_str(more);
                whole.push(' ');
                open = Some((start, whole));
            }
            None => {
                whole.push_str(line);
                found.extend(parse(&whole).map(|line| (start, line)));
            }
        }
    }
    found
}

fn parse(line: &str) -> Option<Line> {
    let (first, rest) = word(line)?;
    if first == "@include" {
        return Some(Line::Include(word(rest)?.0.to_owned(), None));
    }
    let kind = first.trim_start_matches('-').to_ascii_lowercase();
    let (control, rest) = match rest.trim_start().strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => word(rest)?,
    };
    let (module, _) = word(rest)?;
    if ["include", "substack"].contains(&control) {
        return Some(Line::Include(module.to_owned(), Some(kind)));
    }
    let name = module.rsplit('/').next().unwrap_or(module);
    let name = name.strip_suffix(".so").unwrap_or(name);
    // A module that is not installed is passed over where its type begins with a dash; whether it is is not known.
    Some(Line::Rule(Rule { kind, control: control.to_ascii_lowercase(), module: name.to_owned() }))
}

fn word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (!text.is_empty()).then(|| text.split_at(end))
}

impl Rule {
    /// Whether it may refuse a login with a key, and nobody evaluates it here. `before` is the rule ahead of it.
    pub fn is_not_evaluated(&self, before: Option<&Self>) -> bool {
        if !["account", "session"].contains(&self.kind.as_str()) || !self.can_refuse() {
            return false;
        }
        match self.module.as_str() {
            // The end of a choice: the rule ahead of it jumps over it.
            "pam_deny" => !before.is_some_and(Self::jumps),
            module => !HARMLESS.contains(&module),
        }
    }

    /// Whether some verdict of it passes over the rules behind it.
    fn jumps(&self) -> bool {
        let values = self.control.split_ascii_whitespace().filter_map(|pair| pair.split_once('='));
        { values }.any(|(_, action)| action.starts_with(|digit: char| digit.is_ascii_digit()))
    }

    /// By its control: `optional` and `sufficient` rules refuse nobody; one that ignores whom it does not know
    /// leaves the accounts of passwd(5) alone.
    fn can_refuse(&self) -> bool {
        match self.control.as_str() {
            "optional" | "sufficient" => false,
            "required" | "requisite" => true,
            values => {
                let refuses = values.contains("bad") || values.contains("die");
                refuses && !values.contains("user_unknown=ignore")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The modules that are not evaluated, with their lines.
    fn left(text: &str) -> Vec<(usize, String)> {
        let mut before: Option<Rule> = None;
        let mut found = Vec::new();
        for (number, line) in lines(text.as_bytes()) {
            if let Line::Rule(rule) = line {
                if rule.is_not_evaluated(before.as_ref()) {
                    found.push((number, rule.module.clone()));
                }
                before = Some(rule);
            }
        }
        found
    }

    #[test]
    fn stock_stacks_are_evaluated() {
        let debian = "account required pam_nologin.so\n# account required pam_access.so\n\
                      account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\n\
                      account requisite pam_deny.so\naccount required pam_permit.so\n\
                      session [success=ok ignore=ignore module_unknown=ignore default=bad] pam_selinux.so close\n\
                      session required pam_loginuid.so\nsession optional pam_keyinit.so force revoke\n\
                      session optional pam_motd.so motd=/run/motd.dynamic\nsession required pam_limits.so\n\
                      session required pam_env.so user_readenv=1 envfile=/etc/default/locale\n\
                      session [default=1] pam_permit.so\nsession requisite pam_deny.so\n\
                      session required pam_permit.so\nsession required pam_unix.so\n";
        let redhat = "account required pam_sepermit.so\naccount required pam_nologin.so\n\
                      account required pam_unix.so\naccount sufficient pam_localuser.so\n\
                      account sufficient pam_succeed_if.so uid < 1000 quiet\n\
                      account [default=bad success=ok user_unknown=ignore] pam_sss.so\naccount required pam_permit.so\n\
                      session required pam_namespace.so\n-session optional pam_systemd.so\n\
                      session [success=1 default=ignore] pam_succeed_if.so service in crond quiet use_uid\n";
        assert_eq!(left(debian), []);
        assert_eq!(left(redhat), []);
    }

    #[test]
    fn what_nobody_evaluates() {
        for (text, expected) in [
            ("account required pam_access.so\n", Some((1, "pam_access"))),
            ("auth required pam_access.so\npassword required pam_pwquality.so\n", None),
            (
                "\n-account \\\n  requisite \\\n /lib/security/pam_listfile.so item=user\n",
                Some((2, "pam_listfile")),
            ),
            ("account [success=ok default=die] pam_time.so\n", Some((1, "pam_time"))),
            ("account [success=ok default=ignore] pam_time.so\n", None),
            ("account required pam_deny.so\n", Some((1, "pam_deny"))),
            ("Account Required pam_slurm.so", Some((1, "pam_slurm"))),
            ("account required\n", None),
        ] {
            let expected: Vec<(usize, String)> =
                expected.into_iter().map(|(line, module)| (line, module.to_owned())).collect();
            assert_eq!(left(text), expected, "{text}");
        }
    }

    #[test]
    fn includes() {
        let found =
            lines(b"@include common-account\naccount include password-auth # x\nsession substack a\n");
        let include = |file: &str, kind: Option<&str>| Line::Include(file.into(), kind.map(str::to_owned));
        let expected = [
            (1, include("common-account", None)),
            (2, include("password-auth", Some("account"))),
            (3, include("a", Some("session"))),
        ];
        assert_eq!(found, expected);
    }
}
