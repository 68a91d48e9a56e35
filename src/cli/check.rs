//! `check`: what an attach with `passWordAuth` `no` would do on this guest now, why, and the remedy.

use crate::channel::run_lock;
use crate::config::Config;
use crate::guest::{Guest, service_view};
use crate::policy::command::{Action, Command, KeyPair, Origin, ReceivedCommand};
use crate::policy::observation::{Account, ReloadMethod, Shadow, Sshd};
use crate::policy::outcome::{MAX_WARNINGS, Reason, Refusal, limit_warnings};
use crate::policy::plan::Plan;
use crate::policy::proof::ProbeVerdict;
use crate::policy::public_key::PublicKey;
use crate::policy::sshd_config::{ConfigSource, ParsedConfig, canonical_spelling};
use crate::policy::types::PasswordAuth;
use crate::transaction::Engine;
use crate::transaction::look::{Drift, LabelProblem, LiveProbe};
use crate::transaction::perform::{CompletedCommand, PlanPreview};
use crate::transaction::state::State;

use super::report::{Check, CheckReport};

/// A placeholder key of the usual type, for a guest without a binding. It has the type of RFC 8709, consists of zeros
/// and is never written.
const PLACEHOLDER_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// `check [--json]`.
pub(super) fn check(config: &Config, json: bool) -> u8 {
    run_checks(config).print_report(json)
}

fn run_checks(config: &Config) -> CheckReport {
    let transaction = super::open_engine(config);
    let mut checks = Vec::new();
    checks.push(
        match transaction
            .read_component_version()
            .and_then(|version| version.check_minimum_version().map(|()| version))
        {
            Ok(version) => Check::passed("component", version.to_string())
                .with_location(Some(&config.component_info), None),
            Err(refusal) => {
                Check::failed("component", &refusal.message).with_location(Some(&config.component_info), None)
            }
        },
    );
    let signers = check_signers(&transaction, config);
    let rejects_all_commands = signers.iter().any(|check| !check.ok);
    checks.extend(signers);
    let state = match transaction.load() {
        Ok(state) => state,
        Err(refusal) => {
            checks.push(Check::failed("state", &refusal.message));
            return CheckReport::new(summarize_refused(None), checks);
        }
    };
    if state.intent.is_some() {
        let text = "a command was interrupted and is not taken back yet; start the agent, or run 'keypair-agent undo'";
        checks.push(Check::failed("state", text));
        return CheckReport::new(summarize_refused(None), checks);
    }
    check_guest(&transaction, config, &state, &mut checks);
    let (summary, verdict) = check_attach(&transaction, config, &state);
    checks.extend(verdict);
    let summary = if rejects_all_commands { summarize_refused(Some(Reason::BadSignature)) } else { summary };
    CheckReport::new(summary, checks)
}

/// The signers of the channel's commands, and the lines of that file that trust no signer.
fn check_signers(transaction: &Engine<impl Guest>, config: &Config) -> Vec<Check> {
    const NAME: &str = "signers";
    let Some(path) = &config.trusted_signers else { return Vec::new() };
    let signers = match transaction.read_allowed_signers(path) {
        Ok(signers) => signers,
        Err(why) => return vec![Check::failed(NAME, &why).with_location(Some(path), None)],
    };
    let (first, limited) = match transaction.count_valid_signers(&signers) {
        Err(why) => (Check::failed(NAME, &why), signers.signers.iter().collect()),
        Ok((count, limited)) => {
            let all = signers.signers.len();
            (
                Check::passed(NAME, format!("{count} of {all} listed may sign now; commands must be signed")),
                limited,
            )
        }
    };
    let limited = limited.into_iter().map(|signer| {
        let text = "this signer may not sign commands now (namespaces, valid-after, valid-before)";
        Check::note(NAME, text).with_location(Some(path), Some(signer.line))
    });
    let passed_over = signers
        .passed_over
        .iter()
        .map(|line| Check::note(NAME, &line.why).with_location(Some(path), Some(line.line)));
    std::iter::once(first.with_location(Some(path), None)).chain(limited).chain(passed_over).collect()
}

fn check_guest(transaction: &Engine<impl Guest>, config: &Config, state: &State, checks: &mut Vec<Check>) {
    let guest = transaction.guest();
    let account = match guest.lookup_account(&config.target_user) {
        Ok(account) => account,
        Err(refusal) => return checks.push(Check::failed("user", &refusal.message)),
    };
    checks.push(Check::passed("user", describe_user(&account)));
    let sshd = match guest.inspect_sshd(&account.name) {
        Ok(sshd) => sshd,
        Err(refusal) => return checks.push(Check::failed("sshd", &refusal.message)),
    };
    checks.push(Check::passed("sshd", describe_sshd(&sshd)).with_location(Some(&sshd.config.main), None));
    checks.push(check_key_file(transaction, &sshd, &account, state));
    checks.extend(check_labels(transaction, &sshd, state));
    checks.extend(check_effective_settings(&sshd, &account));
    for line in transaction.find_overridden_lines(&sshd) {
        let text = format!(
            "`{} {}` stands there, and our setting overrides it",
            canonical_spelling(&line.keyword),
            line.value()
        );
        checks.push(Check::note("another setting", &text).with_location(Some(&line.file), Some(line.line)));
    }
    if let Shadow::Unreadable(why) = guest.read_login_restrictions(&account, &sshd).shadow {
        let text = format!("whether the account is locked or expired was not seen: {why}");
        checks.push(Check::note("account", &text));
    }
    let key = state.binding.as_ref().map(|binding| &binding.key_pair.public_key);
    checks.push(check_running_sshd(transaction.probe_live_sshd(&sshd, &account, key), key.is_some()));
}

fn describe_user(account: &Account) -> String {
    let Account { name, uid, home, shell, .. } = account;
    format!("{name} (uid {uid}), home {}, shell {}", home.display(), shell.display())
}

fn describe_sshd(sshd: &Sshd) -> String {
    let options = match sshd.options.is_empty() {
        true => String::new(),
        false => format!(" with {}", sshd.options.join(" ")),
    };
    format!("{}{options}, {}", sshd.binary.display(), describe_reload(sshd))
}

fn describe_reload(sshd: &Sshd) -> String {
    match &sshd.reload {
        ReloadMethod::Unit(unit) => format!("reloaded as {unit}"),
        ReloadMethod::SocketUnit(unit) => format!("started by a socket, restarted as {unit}"),
        ReloadMethod::Pid { pid, .. } => format!("reloaded by SIGHUP to pid {pid}"),
        ReloadMethod::None(why) if sshd.running => why.clone(),
        ReloadMethod::None(why) => format!("not running: {why}"),
    }
}

/// The key file that sshd reads for the user, and its content.
fn check_key_file(transaction: &Engine<impl Guest>, sshd: &Sshd, account: &Account, state: &State) -> Check {
    const NAME: &str = "key file";
    match transaction.read_key_file(sshd, account) {
        Err(refusal) => Check::failed(NAME, &refusal.message),
        Ok(file) => {
            let what = match (&state.binding, &file.content) {
                (Some(binding), Some(_)) if transaction.is_bound_file(binding, &file) => {
                    let name = &binding.key_pair.key_name;
                    let is_changed =
                        |drift: &Drift| matches!(drift, Drift::Changed(path) if *path == file.path);
                    match transaction.detect_drift(state) {
                        Ok(drift) if drift.iter().any(is_changed) => {
                            let text = format!(
                                "{}: somebody changed the block of {name}; attach the key pair again, which repairs it",
                                file.path.display()
                            );
                            return Check::note(NAME, &text).with_location(Some(&file.path), None);
                        }
                        _ => format!("holds the key pair {name}"),
                    }
                }
                (_, Some(_)) => "stands".to_owned(),
                (_, None) => "does not exist yet".to_owned(),
            };
            Check::passed(NAME, format!("{} {what}", file.path.display()))
                .with_location(Some(&file.path), None)
        }
    }
}

/// The files that SELinux keeps sshd from reading.
fn check_labels(transaction: &Engine<impl Guest>, sshd: &Sshd, state: &State) -> Vec<Check> {
    const NAME: &str = "labels";
    let unreadable = match transaction.find_label_problems(state, sshd) {
        Ok(unreadable) => unreadable,
        Err(refusal) => return vec![Check::note(NAME, &refusal.message)],
    };
    let checks = unreadable.iter().map(|one| match one {
        LabelProblem::Denied(why) => Check::failed(NAME, why),
        LabelProblem::DeniedUntilAttach(why) => Check::note(NAME, &format!("{why}; an attach does that too")),
        LabelProblem::DeniedIfEnforcing(why) => Check::note(NAME, why),
    });
    checks.collect()
}

/// The settings that sshd would apply now, and the lines that decide them.
fn check_effective_settings(sshd: &Sshd, account: &Account) -> Vec<Check> {
    let Some(first) = sshd.answers.first() else {
        return vec![Check::failed("password login", "sshd names no port on which it would listen")];
    };
    let reading = ParsedConfig::from_sshd(sshd);
    let about = |name: &str, keyword: &str, is_on: bool| {
        let decides = reading.resolve_value(keyword, &first.connection, Some(&account.groups)).by;
        let by = match &decides {
            ConfigSource::CommandLine(option) => format!("by `-o {option}` on sshd's command line"),
            ConfigSource::Line { text, .. } => format!("by `{text}`"),
            ConfigSource::Default => "by sshd's own default".to_owned(),
        };
        let word = if is_on { "on" } else { "off" };
        Check::passed(name, format!("{word} now, {by}")).with_location(decides.file(), decides.line())
    };
    let effective = &first.effective;
    vec![
        about("password login", "PasswordAuthentication", effective.password_authentication()),
        about(
            "keyboard-interactive",
            "KbdInteractiveAuthentication",
            effective.kbd_interactive_authentication(),
        ),
    ]
}

/// The answer of the running sshd.
fn check_running_sshd(door: LiveProbe, asked_for_key: bool) -> Check {
    const NAME: &str = "running sshd";
    let (address, methods, key) = match door {
        LiveProbe::Skipped(why) => return Check::note(NAME, &format!("was not asked: {why}")),
        LiveProbe::Probed { address, methods, key, .. } => (address, methods, key),
    };
    match methods {
        (ProbeVerdict::Contradicted(why), _) => {
            Check::note(NAME, &format!("{why}; reload it, if it has not read its present files"))
        }
        (ProbeVerdict::NotTaken(why), _) => Check::note(NAME, &format!("{address} gave no answer: {why}")),
        (ProbeVerdict::AsExpected, offered) => {
            let offers = format!("{address} offers {}", offered.join(", "));
            match key {
                ProbeVerdict::Contradicted(_) if asked_for_key => {
                    let text = "and refuses the bound key; attach the key pair again, which repairs its file";
                    Check::note(NAME, &format!("{offers}, {text}"))
                }
                ProbeVerdict::AsExpected if asked_for_key => {
                    Check::passed(NAME, format!("{offers}, and accepts the bound key"))
                }
                _ => Check::passed(NAME, offers),
            }
        }
    }
}

/// Plans the attach without carrying it out. Returns the summary, the verdict and the notes.
fn check_attach(transaction: &Engine<impl Guest>, config: &Config, state: &State) -> (String, Vec<Check>) {
    const NAME: &str = "attach with no";
    let fails = |reason: Option<Reason>, message: &str| {
        (summarize_refused(reason), vec![Check::failed(NAME, message)])
    };
    let bound = state.binding.as_ref().map(|binding| Ok(binding.key_pair.clone()));
    let any = || -> Result<KeyPair, Refusal> {
        let key_name =
            "check".parse().map_err(|error| Refusal::new(Reason::InvalidKeyName, format!("{error}")))?;
        Ok(KeyPair { key_name, public_key: PublicKey::parse(PLACEHOLDER_KEY)? })
    };
    let key_pair = match bound.unwrap_or_else(any) {
        Ok(key_pair) => key_pair,
        Err(refusal) => return fails(Some(refusal.reason), &refusal.message),
    };
    let action = Action::Attach { key_pair, password_auth: PasswordAuth::No, replace: true };
    let id = transaction.guest().random_id();
    let received =
        ReceivedCommand::from(Command { id, sequence: None, instance_id: None, action, expires_at: None });
    match transaction.plan_received(&received, Origin::Console) {
        Ok(PlanPreview::Plan(plan)) => {
            if let Some(message) = find_sandbox_obstacle(config, &plan) {
                return fails(Some(Reason::IoError), &message);
            }
            let mut checks = vec![Check::passed(NAME, "would be accepted")];
            checks.extend(limit_warnings(plan.warnings.clone(), MAX_WARNINGS).iter().map(Check::from));
            (summarize_accepted(&plan), checks)
        }
        Ok(PlanPreview::Refused(outcome)) => fails(outcome.reason, &outcome.message),
        Ok(PlanPreview::Repeated(CompletedCommand { result, .. })) => fails(None, &result),
        Err(failure) => fails(None, &failure.to_string()),
    }
}

/// The obstacle if the service, in its sandbox, cannot write a path that this plan writes.
fn find_sandbox_obstacle(config: &Config, plan: &Plan) -> Option<String> {
    let pid = run_lock::find_lock_holder(&config.run_dir)??;
    // If sshd already follows the setting, the command succeeds without the agent's own lines.
    let needed = plan.sshd_edits.iter().filter(|_| !plan.already);
    let edits = plan.key_edits.iter().chain(needed);
    let directory = edits.filter_map(|edit| service_view::find_dir_read_only_for(pid, &edit.path)).next()?;
    let directory = directory.display();
    Some(format!(
        "the service (process {pid}) sees {directory} read-only; add the line `ReadWritePaths=-{directory}` below [Service] \
         with `systemctl edit keypair-agent`, then `systemctl restart keypair-agent`"
    ))
}

fn summarize_accepted(plan: &Plan) -> String {
    let edits = plan.key_edits.iter().chain(&plan.sshd_edits);
    let files: Vec<String> = edits.map(|edit| edit.path.display().to_string()).collect();
    let does = match (files.as_slice(), &plan.reload) {
        ([], _) if plan.changes_files_or_labels() => "it would correct SELinux labels".to_owned(),
        ([], _) => "there is nothing to change".to_owned(),
        (files, None | Some(ReloadMethod::None(_))) => format!("it would write {}", files.join(" and ")),
        (files, Some(ReloadMethod::SocketUnit(unit))) => {
            format!("it would write {} and restart {unit}", files.join(" and "))
        }
        (files, Some(ReloadMethod::Unit(unit))) => {
            format!("it would write {} and reload {unit}", files.join(" and "))
        }
        (files, Some(ReloadMethod::Pid { pid, .. })) => {
            format!("it would write {} and reload sshd (pid {pid})", files.join(" and "))
        }
    };
    format!("A key pair can be attached here with passwords forbidden: {does}.")
}

fn summarize_refused(reason: Option<Reason>) -> String {
    let word = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!(
        "A key pair cannot be attached here with passwords forbidden{word}: see what FAILs below; nothing would be touched."
    )
}
