//! sshd's PAM service: pam.d(5). A login with a key passes only the `account` and the `session` rules. The agent
//! knows the answers of a few modules. It follows the rules for every answer that the other modules may give.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::foreign::sanitize_text;
use super::observation::{PAM_NOLOGIN, PamRule};

/// Modules whose answer the agent knows, or that refuse no user who could otherwise log in.
const HARMLESS_MODULES: &[&str] = &[
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

/// The service that PAM uses if another service has no file, or no rule of a type.
const OTHER_SERVICE: &str = "other";

/// The maximum depth of includes.
const MAX_PAM_INCLUDE_DEPTH: usize = 16;

/// The maximum number of rules of one type that the agent follows.
const MAX_RULES_PER_TYPE: usize = 1024;

/// The types of rules that a login with a key passes.
const RULE_TYPES: [&str; 2] = ["account", "session"];

/// The file of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceFile {
    /// There is no file.
    Missing,
    /// The file at this path cannot be read.
    Unreadable(PathBuf),
    /// The file's path and bytes.
    Content(PathBuf, Vec<u8>),
}

/// The parts of PAM: the files of services by name, and whether a module (as a rule names it) is installed.
pub struct PamInstallation<'a> {
    /// Returns the file of a service.
    pub file: &'a dyn Fn(&str) -> ServiceFile,
    /// Whether the module of this name exists.
    pub has_module: &'a dyn Fn(&str) -> bool,
    /// Whether pam_nologin(8) refuses this user: nologin(5)'s file exists and the user is not root.
    pub is_closed: bool,
}

/// The rules with which `service` refuses or may refuse a login with a key. A rule with `refuses` certainly refuses.
pub fn find_refusing_rules(service: &str, installation: &PamInstallation<'_>) -> Vec<PamRule> {
    let mut found = Vec::new();
    let own = load_service(service, installation);
    let other = load_service(OTHER_SERVICE, installation);
    let at = |file: &Path, line: usize, what: String, refuses: bool| PamRule {
        file: file.to_owned(),
        line,
        module: what,
        refuses,
    };
    for broken in [&own, &other].into_iter().filter_map(|loaded| loaded.broken.as_ref()) {
        // In this case PAM refuses to start at all.
        found.push(PamRule { refuses: true, ..broken.clone() });
    }
    found.extend(own.unread.iter().chain(&other.unread).cloned());
    let Some(file) = own.file.as_ref().or(other.file.as_ref()) else {
        let place = Path::new("/etc/pam.d").join(service);
        let what = format!("no file of the service {service}, and none of {OTHER_SERVICE}");
        return vec![at(&place, 1, what, true)];
    };
    let is_known = found.is_empty();
    for kind in RULE_TYPES {
        let rules = own.rules_of_type(kind);
        let (rules, is_other) =
            if rules.is_empty() { (other.rules_of_type(kind), true) } else { (rules, false) };
        if rules.is_empty() {
            found.push(at(file, 1, format!("no {kind} rule at all"), is_known));
            continue;
        }
        if is_other {
            let place = other.file.as_ref().unwrap_or(file);
            let what = format!("the service {OTHER_SERVICE}, since {service} has no {kind} rule");
            found.push(at(place, 1, what, false));
        }
        found.extend(
            evaluate_stack(&rules)
                .into_iter()
                .map(|rule| PamRule { refuses: rule.refuses && is_known, ..rule }),
        );
    }
    found
}

/// A service together with the files that it includes.
#[derive(Default)]
struct LoadedService {
    file: Option<PathBuf>,
    entries: Vec<StackRule>,
    /// The place at which an error ends the reading.
    broken: Option<PamRule>,
    /// The files that could not be read.
    unread: Vec<PamRule>,
}

impl LoadedService {
    fn rules_of_type(&self, kind: &str) -> Vec<&StackRule> {
        self.entries.iter().filter(|entry| entry.kind == kind).collect()
    }
}

/// A rule and its position.
#[derive(Debug, Clone)]
struct StackRule {
    kind: String,
    level: usize,
    control: Control,
    says: ModuleAnswer,
    at: PamRule,
}

/// The answer of a rule's module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModuleAnswer {
    /// `success`.
    Success,
    /// The answer of pam_deny(8), and of pam_nologin(8) if it refuses.
    Denied,
    /// `module_unknown`: the module is not installed.
    ModuleUnknown,
    /// The line is not valid.
    InvalidLine,
    /// The agent does not know the answer.
    Unknown,
    /// No answer: a `substack` begins.
    SubstackStart,
}

fn load_service(service: &str, installation: &PamInstallation<'_>) -> LoadedService {
    let mut loaded = LoadedService::default();
    match (installation.file)(service) {
        ServiceFile::Missing => {}
        ServiceFile::Unreadable(file) => {
            loaded.unread.push(unreadable_file_rule(&file));
            loaded.file = Some(file);
        }
        ServiceFile::Content(file, content) => {
            read_service_file(&file, &content, None, 0, 0, installation, &mut loaded);
            loaded.file = Some(file);
        }
    }
    loaded
}

fn unreadable_file_rule(file: &Path) -> PamRule {
    PamRule {
        file: file.to_owned(),
        line: 1,
        module: "a file that cannot be read".to_owned(),
        refuses: false,
    }
}

/// Reads the lines of one file. Returns `false` if PAM gives up.
fn read_service_file(
    file: &Path,
    content: &[u8],
    asked: Option<&str>,
    level: usize,
    depth: usize,
    installation: &PamInstallation<'_>,
    loaded: &mut LoadedService,
) -> bool {
    let (lines, is_whole) = split_logical_lines(content);
    for (line, text) in lines {
        let at =
            |module: &str| PamRule { file: file.to_owned(), line, module: module.to_owned(), refuses: false };
        if loaded.entries.len() >= MAX_RULES_PER_TYPE {
            loaded.unread.push(at("too many rules"));
            return true;
        }
        let parsed = parse_pam_line(&text, asked);
        let entry = |kind: &str, control: Control, says: ModuleAnswer, module: &str| StackRule {
            kind: kind.to_owned(),
            level,
            control,
            says,
            at: at(module),
        };
        match parsed {
            PamLine::OtherKind => {}
            PamLine::Invalid(kind) => {
                loaded.entries.push(entry(
                    &kind,
                    Control::always_bad(),
                    ModuleAnswer::InvalidLine,
                    "a line that is not valid",
                ));
            }
            PamLine::Rule { kind, control, module } => {
                let name = strip_module_path(&module);
                let says = if !(installation.has_module)(&module) {
                    ModuleAnswer::ModuleUnknown
                } else if name == "pam_deny" || name == PAM_NOLOGIN && installation.is_closed {
                    ModuleAnswer::Denied
                } else if name == PAM_NOLOGIN || HARMLESS_MODULES.contains(&name) {
                    ModuleAnswer::Success
                } else {
                    ModuleAnswer::Unknown
                };
                let shown = match says {
                    ModuleAnswer::ModuleUnknown => format!("{}, which is not installed", sanitize_text(name)),
                    _ => sanitize_text(name),
                };
                loaded.entries.push(entry(&kind, control, says, &shown));
            }
            PamLine::Include { name, kind, is_substack } => {
                let inner = if is_substack { level + 1 } else { level };
                if let (true, Some(kind)) = (is_substack, &kind) {
                    loaded.entries.push(entry(
                        kind,
                        Control::always_bad(),
                        ModuleAnswer::SubstackStart,
                        &name,
                    ));
                }
                let missing = format!("the include of {}, which does not exist", sanitize_text(&name));
                match (installation.file)(&name) {
                    ServiceFile::Missing => match &kind {
                        Some(kind) => {
                            loaded.entries.push(entry(
                                kind,
                                Control::always_bad(),
                                ModuleAnswer::InvalidLine,
                                &missing,
                            ));
                        }
                        None => {
                            loaded.broken.get_or_insert_with(|| at(&missing));
                            return false;
                        }
                    },
                    ServiceFile::Unreadable(file) => loaded.unread.push(unreadable_file_rule(&file)),
                    ServiceFile::Content(..) if depth >= MAX_PAM_INCLUDE_DEPTH => {
                        loaded.unread.push(at("includes that go too deep"));
                    }
                    ServiceFile::Content(file, content) => {
                        let kind = kind.as_deref();
                        if !read_service_file(&file, &content, kind, inner, depth + 1, installation, loaded) {
                            return false;
                        }
                    }
                }
            }
        }
    }
    if !is_whole {
        let line = content.split(|&byte| byte == b'\n').count();
        let module = "a last line that ends in a backslash".to_owned();
        loaded.broken.get_or_insert(PamRule { file: file.to_owned(), line, module, refuses: false });
    }
    is_whole
}

/// The module's name without its directory and suffix.
fn strip_module_path(module: &str) -> &str {
    let name = module.rsplit('/').next().unwrap_or(module);
    name.strip_suffix(".so").unwrap_or(name)
}

/// The logical lines of a file, each with the number (from 1) of its first physical line, and whether the last one is
/// complete. A comment ends at the end of its physical line, even if that line ends in a backslash.
fn split_logical_lines(content: &[u8]) -> (Vec<(usize, String)>, bool) {
    let text = String::from_utf8_lossy(content);
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (line, number) in text.split('\n').zip(1..) {
        let line = line.trim_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.split('#').next().unwrap_or_default().trim_end_matches([' ', '\t']);
        let (start, mut whole) = open.take().unwrap_or((number, String::new()));
        match line.strip_suffix('\\') {
            Some(more) => {
                whole.push_str(more);
                whole.push(' ');
                open = Some((start, whole));
            }
            None => {
                whole.push_str(line);
                found.push((start, whole));
            }
        }
    }
    let is_whole = open.is_none();
    (found, is_whole)
}

/// The meaning of a line of a service's file.
#[derive(Debug, PartialEq, Eq)]
enum PamLine {
    /// A rule of a type that the caller did not request.
    OtherKind,
    /// An invalid rule of this type. It fails.
    Invalid(String),
    /// The rules of another file apply here: those of one type, or all (`None`).
    Include { name: String, kind: Option<String>, is_substack: bool },
    /// A rule.
    Rule { kind: String, control: Control, module: String },
}

fn parse_pam_line(line: &str, asked: Option<&str>) -> PamLine {
    let Some((first, rest)) = split_pam_word(line) else { return PamLine::OtherKind };
    let first = first.to_ascii_lowercase();
    if first == "@include" {
        let kind = asked.map(str::to_owned);
        return match split_pam_word(rest) {
            Some((name, _)) => PamLine::Include { name: name.to_owned(), kind, is_substack: false },
            None => asked.map_or(PamLine::OtherKind, |kind| PamLine::Invalid(kind.to_owned())),
        };
    }
    // The dash only keeps a missing module out of the log. The rule still fails.
    let kind = first.strip_prefix('-').unwrap_or(&first);
    // A type that PAM does not know counts as the requested type, or else as `auth`.
    let kind = match (["auth", "account", "password", "session"].contains(&kind), asked) {
        (true, _) => kind.to_owned(),
        (false, Some(asked)) => return PamLine::Invalid(asked.to_owned()),
        (false, None) => return PamLine::OtherKind,
    };
    if asked.is_some_and(|asked| asked != kind) || !RULE_TYPES.contains(&kind.as_str()) {
        return PamLine::OtherKind;
    }
    let Some((control, rest)) = split_pam_word(rest) else { return PamLine::Invalid(kind) };
    let Some((module, _)) = split_pam_word(rest) else { return PamLine::Invalid(kind) };
    match control.to_ascii_lowercase().as_str() {
        included @ ("include" | "substack") => PamLine::Include {
            name: module.to_owned(),
            kind: Some(kind),
            is_substack: included == "substack",
        },
        control => PamLine::Rule { kind, control: Control::parse(control), module: module.to_owned() },
    }
}

/// Splits off the first word and returns the text behind it. A word that begins with `[` ends at `]`. The function
/// removes the brackets of a module's name or an argument.
fn split_pam_word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches([' ', '\t']);
    if text.is_empty() {
        return None;
    }
    if let Some(inside) = text.strip_prefix('[') {
        return Some(inside.split_once(']').unwrap_or((inside, "")));
    }
    let end = text.find([' ', '\t']).unwrap_or(text.len());
    Some(text.split_at(end))
}

/// The action that follows from a module's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PamAction {
    Ok,
    Done,
    Bad,
    Die,
    Ignore,
    Reset,
    Jump(usize),
}

/// The control of a rule: the action for each named answer, and the action for all others.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Control {
    named: BTreeMap<String, PamAction>,
    default: PamAction,
}

impl Control {
    /// A control that refuses for every answer.
    fn always_bad() -> Self {
        Self { named: BTreeMap::new(), default: PamAction::Bad }
    }

    fn parse(text: &str) -> Self {
        let word = |success: PamAction, default: PamAction, ignores: bool| {
            let named = [("success", Some(success)), ("new_authtok_reqd", Some(success))];
            let ignore = ("ignore", ignores.then_some(PamAction::Ignore));
            let named = named.into_iter().chain([ignore]);
            Self { named: named.filter_map(|(name, act)| Some((name.to_owned(), act?))).collect(), default }
        };
        match text {
            "required" => return word(PamAction::Ok, PamAction::Bad, true),
            "requisite" => return word(PamAction::Ok, PamAction::Die, true),
            "optional" => return word(PamAction::Ok, PamAction::Ignore, false),
            "sufficient" => return word(PamAction::Done, PamAction::Ignore, false),
            _ => {}
        }
        // An answer without a name here refuses, and so does an action that PAM does not know.
        let mut control = Self::always_bad();
        let spaced = text.replace('=', " ");
        let mut words = spaced.split([' ', '\t']).filter(|word| !word.is_empty());
        while let (Some(name), Some(action)) = (words.next(), words.next()) {
            let act = match action {
                "ok" => PamAction::Ok,
                "done" => PamAction::Done,
                "die" => PamAction::Die,
                "ignore" => PamAction::Ignore,
                "reset" => PamAction::Reset,
                number => match number.parse() {
                    Ok(0) | Err(_) => PamAction::Bad,
                    Ok(number) => PamAction::Jump(number),
                },
            };
            match name {
                "default" => control.default = act,
                name => drop(control.named.insert(name.to_owned(), act)),
            }
        }
        control
    }

    fn action_for(&self, answer: &str) -> PamAction {
        self.named.get(answer).copied().unwrap_or(self.default)
    }

    /// The actions that may follow from the module's answer.
    fn possible_actions(&self, says: ModuleAnswer) -> BTreeSet<PamAction> {
        match says {
            ModuleAnswer::Success => [self.action_for("success")].into(),
            // The answer of pam_deny depends on the rule's type and on the release of PAM.
            ModuleAnswer::Denied => {
                ["auth_err", "acct_expired", "session_err"].map(|answer| self.action_for(answer)).into()
            }
            ModuleAnswer::ModuleUnknown => [self.action_for("module_unknown")].into(),
            ModuleAnswer::InvalidLine => [PamAction::Bad].into(),
            // Such a module ignores users that it does not know, and does not refuse the accounts of passwd(5).
            ModuleAnswer::Unknown if self.named.get("user_unknown") == Some(&PamAction::Ignore) => {
                [self.action_for("success"), PamAction::Ignore].into()
            }
            ModuleAnswer::Unknown => self.named.values().copied().chain([self.default]).collect(),
            ModuleAnswer::SubstackStart => [PamAction::Ignore].into(),
        }
    }
}

/// The result of a stack so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Impression {
    Undefined,
    Positive,
    Negative,
}

/// The state of a stack: the present impression, and the impression at the start of each open (sub)stack.
type StackState = (Impression, Vec<Impression>);

/// Follows the rules of one type for every possible answer. Returns the rules because of which the stack refuses or
/// may refuse.
fn evaluate_stack(rules: &[&StackRule]) -> Vec<PamRule> {
    let mut ahead: BTreeMap<usize, BTreeMap<StackState, BTreeSet<usize>>> = BTreeMap::new();
    ahead.entry(0).or_default().insert((Impression::Undefined, Vec::new()), BTreeSet::new());
    let (mut lets_in, mut refused_by) = (false, BTreeSet::new());
    let mut refuses = false;
    while let Some((at, states)) = ahead.pop_first() {
        let Some(rule) = rules.get(at) else {
            for ((impression, _), blamed) in states {
                match impression {
                    Impression::Positive => lets_in = true,
                    Impression::Undefined | Impression::Negative => {
                        refuses = true;
                        refused_by.extend(blamed);
                    }
                }
            }
            continue;
        };
        let acts = rule.control.possible_actions(rule.says);
        for ((impression, mut began), blamed) in states {
            began.truncate(rule.level + 1);
            while began.len() <= rule.level {
                began.push(impression);
            }
            for act in &acts {
                let (next, then, is_to_blame) = apply_action(*act, impression, at, rules, &began);
                let mut blamed = blamed.clone();
                // If the stack skips an unknown answer, no rule may be left that allows the login.
                if is_to_blame || acts.len() > 1 && then == Impression::Undefined {
                    blamed.insert(at);
                }
                ahead.entry(next).or_default().entry((then, began.clone())).or_default().extend(blamed);
            }
        }
    }
    if !refuses {
        return Vec::new();
    }
    let certain = !lets_in;
    let mut found: Vec<PamRule> = refused_by
        .into_iter()
        .filter_map(|index| rules.get(index))
        .map(|rule| PamRule { refuses: certain, ..rule.at.clone() })
        .collect();
    if let (true, Some(last)) = (found.is_empty(), rules.last()) {
        let module = format!("no {} rule that lets anybody in", last.kind);
        found.push(PamRule { module, refuses: certain, ..last.at.clone() });
    }
    found
}

/// The next rule, the impression then, and whether this rule refused.
fn apply_action(
    act: PamAction,
    impression: Impression,
    at: usize,
    rules: &[&StackRule],
    began: &[Impression],
) -> (usize, Impression, bool) {
    let level = rules.get(at).map_or(0, |rule| rule.level);
    let is_inside = |index: usize| rules.get(index).is_some_and(|rule| rule.level >= level);
    let end_of_stack = || (at + 1..rules.len()).find(|index| !is_inside(*index)).unwrap_or(rules.len());
    let positive = if impression == Impression::Undefined { Impression::Positive } else { impression };
    match act {
        PamAction::Ok => (at + 1, positive, false),
        PamAction::Done if positive == Impression::Positive => (end_of_stack(), positive, false),
        PamAction::Done => (at + 1, positive, false),
        PamAction::Bad => (at + 1, Impression::Negative, true),
        PamAction::Die => (end_of_stack(), Impression::Negative, true),
        PamAction::Ignore => (at + 1, impression, false),
        PamAction::Reset => (at + 1, began.last().copied().unwrap_or(Impression::Undefined), false),
        PamAction::Jump(count) => {
            let (mut here, mut left) = (at, count);
            while left > 0 && is_inside(here + 1) {
                here += 1;
                // A substack counts as one rule.
                while rules.get(here + 1).is_some_and(|rule| rule.level > level) {
                    here += 1;
                }
                left -= 1;
            }
            // A jump beyond the end is an error.
            if left > 0 { (here + 1, Impression::Negative, true) } else { (here + 1, impression, false) }
        }
    }
}

#[cfg(test)]
#[path = "pam_tests.rs"]
mod tests;
