//! `check`: what an attach that forbids passwords would do on this guest as it stands, why, and what to do about it.

use crate::channel::run_lock;
use crate::config::Config;
use crate::guest::{Guest, service_view};
use crate::policy::command::{Action, Command, KeyPair, Origin, Received};
use crate::policy::observation::{Account, Reload, Shadow, Sshd};
use crate::policy::outcome::{Reason, Refusal, WARNINGS_MAX, limited};
use crate::policy::plan::Plan;
use crate::policy::proof::Verdict;
use crate::policy::public_key::PublicKey;
use crate::policy::sshd_config::{Decider, Reading, spelling};
use crate::policy::types::PasswordAuth;
use crate::transaction::Transaction;
use crate::transaction::look::{Door, Drift, Unreadable};
use crate::transaction::perform::{Answered, Planned};
use crate::transaction::state::State;

use super::report::{Check, Report};

/// A key of the usual kind for a guest where none is bound: RFC 8709's kind, made of zeros, never written.
const ANY_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// `check [--json]`.
pub(super) fn check(config: &Config, json: bool) -> u8 {
    look(config).show(json)
}

fn look(config: &Config) -> Report {
    let transaction = super::transaction(config);
    let mut checks = Vec::new();
    checks.push(match transaction.component().and_then(|version| version.gate().map(|()| version)) {
        Ok(version) => Check::holds("component", version.to_string()).at(Some(&config.component_info), None),
        Err(refusal) => Check::fails("component", &refusal.message).at(Some(&config.component_info), None),
    });
    let signers = signers(&transaction, config);
    let is_deaf = signers.iter().any(|check| !check.ok);
    checks.extend(signers);
    let state = match transaction.load() {
        Ok(state) => state,
        Err(refusal) => {
            checks.push(Check::fails("state", &refusal.message));
            return Report::new(refused(None), checks);
        }
    };
    if state.intent.is_some() {
        let text = "a command was interrupted and is not taken back yet; start the agent, or run 'keypair-agent undo'";
        checks.push(Check::fails("state", text));
        return Report::new(refused(None), checks);
    }
    about_the_guest(&transaction, config, &state, &mut checks);
    let (summary, verdict) = attach(&transaction, config, &state);
    checks.extend(verdict);
    let summary = if is_deaf { refused(Some(Reason::BadSignature)) } else { summary };
    Report::new(summary, checks)
}

/// Whose signatures the channel's commands must bear, and what of that file trusts nobody.
fn signers(transaction: &Transaction<impl Guest>, config: &Config) -> Vec<Check> {
    const NAME: &str = "signers";
    let Some(path) = &config.trusted_signers else { return Vec::new() };
    let signers = match transaction.signers(path) {
        Ok(signers) => signers,
        Err(why) => return vec![Check::fails(NAME, &why).at(Some(path), None)],
    };
    let (first, limited) = match transaction.may_sign_now(&signers) {
        Err(why) => (Check::fails(NAME, &why), signers.signers.iter().collect()),
        Ok((count, limited)) => {
            let all = signers.signers.len();
            (
                Check::holds(NAME, format!("{count} of {all} listed may sign now; commands must be signed")),
                limited,
            )
        }
    };
    let limited = limited.into_iter().map(|signer| {
        let text = "this signer may not sign commands now (namespaces, valid-after, valid-before)";
        Check::note(NAME, text).at(Some(path), Some(signer.line))
    });
    let passed_over =
        signers.passed_over.iter().map(|line| Check::note(NAME, &line.why).at(Some(path), Some(line.line)));
    std::iter::once(first.at(Some(path), None)).chain(limited).chain(passed_over).collect()
}

fn about_the_guest(
    transaction: &Transaction<impl Guest>,
    config: &Config,
    state: &State,
    checks: &mut Vec<Check>,
) {
    let guest = transaction.guest();
    let account = match guest.account(&config.target_user) {
        Ok(account) => account,
        Err(refusal) => return checks.push(Check::fails("user", &refusal.message)),
    };
    checks.push(Check::holds("user", user(&account)));
    let sshd = match guest.sshd(&account.name) {
        Ok(sshd) => sshd,
        Err(refusal) => return checks.push(Check::fails("sshd", &refusal.message)),
    };
    checks.push(Check::holds("sshd", found(&sshd)).at(Some(&sshd.config.main), None));
    checks.push(key_file(transaction, &sshd, &account, state));
    checks.extend(labels(transaction, &sshd, state));
    checks.extend(present(&sshd, &account));
    for line in transaction.contrary(&sshd) {
        let text = format!(
            "`{} {}` stands there, and our setting overrides it",
            spelling(&line.keyword),
            line.value()
        );
        checks.push(Check::note("another setting", &text).at(Some(&line.file), Some(line.line)));
    }
    if let Shadow::Unseen(why) = guest.login(&account, &sshd).shadow {
        let text = format!("whether the account is locked or expired was not seen: {why}");
        checks.push(Check::note("account", &text));
    }
    let key = state.binding.as_ref().map(|binding| &binding.key_pair.public_key);
    checks.push(running(transaction.door(&sshd, &account, key), key.is_some()));
}

fn user(account: &Account) -> String {
    let Account { name, uid, home, shell, .. } = account;
    format!("{name} (uid {uid}), home {}, shell {}", home.display(), shell.display())
}

fn found(sshd: &Sshd) -> String {
    let options = match sshd.options.is_empty() {
        true => String::new(),
        false => format!(" with {}", sshd.options.join(" ")),
    };
    format!("{}{options}, {}", sshd.binary.display(), reload(sshd))
}

fn reload(sshd: &Sshd) -> String {
    match &sshd.reload {
        Reload::Unit(unit) => format!("reloaded as {unit}"),
        Reload::SocketUnit(unit) => format!("started by a socket, restarted as {unit}"),
        Reload::Pid { pid, .. } => format!("reloaded by SIGHUP to pid {pid}"),
        Reload::None(why) if sshd.running => why.clone(),
        Reload::None(why) => format!("not running: {why}"),
    }
}

/// The file that sshd reads for the user, and what stands in it.
fn key_file(transaction: &Transaction<impl Guest>, sshd: &Sshd, account: &Account, state: &State) -> Check {
    const NAME: &str = "key file";
    match transaction.key_file(sshd, account) {
        Err(refusal) => Check::fails(NAME, &refusal.message),
        Ok(file) => {
            let what = match (&state.binding, &file.content) {
                (Some(binding), Some(_)) if transaction.is_where_bound(binding, &file) => {
                    let name = &binding.key_pair.key_name;
                    let is_changed =
                        |drift: &Drift| matches!(drift, Drift::Changed(path) if *path == file.path);
                    match transaction.drift(state) {
                        Ok(drift) if drift.iter().any(is_changed) => {
                            let text = format!(
                                "{}: somebody changed the block of {name}; attach the key pair again, which repairs it",
                                file.path.display()
                            );
                            return Check::note(NAME, &text).at(Some(&file.path), None);
                        }
                        _ => format!("holds the key pair {name}"),
                    }
                }
                (_, Some(_)) => "stands".to_owned(),
                (_, None) => "does not exist yet".to_owned(),
            };
            Check::holds(NAME, format!("{} {what}", file.path.display())).at(Some(&file.path), None)
        }
    }
}

/// What SELinux keeps sshd from reading.
fn labels(transaction: &Transaction<impl Guest>, sshd: &Sshd, state: &State) -> Vec<Check> {
    const NAME: &str = "labels";
    let unreadable = match transaction.unreadable(state, sshd) {
        Ok(unreadable) => unreadable,
        Err(refusal) => return vec![Check::note(NAME, &refusal.message)],
    };
    let checks = unreadable.iter().map(|one| match one {
        Unreadable::Now(why) => Check::fails(NAME, why),
        Unreadable::UntilAttached(why) => Check::note(NAME, &format!("{why}; an attach does that too")),
        Unreadable::Later(why) => Check::note(NAME, why),
    });
    checks.collect()
}

/// What sshd would answer now, and what decides it.
fn present(sshd: &Sshd, account: &Account) -> Vec<Check> {
    let Some(first) = sshd.answers.first() else {
        return vec![Check::fails("password login", "sshd names no port on which it would listen")];
    };
    let reading = Reading::of(sshd);
    let about = |name: &str, keyword: &str, is_on: bool| {
        let decides = reading.decision(keyword, &first.connection, Some(&account.groups)).by;
        let by = match &decides {
            Decider::Option(option) => format!("by `-o {option}` on sshd's command line"),
            Decider::Line { text, .. } => format!("by `{text}`"),
            Decider::Default => "by sshd's own default".to_owned(),
        };
        let word = if is_on { "on" } else { "off" };
        Check::holds(name, format!("{word} now, {by}")).at(decides.file(), decides.line())
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

/// What the running sshd says.
fn running(door: Door, asked_for_key: bool) -> Check {
    const NAME: &str = "running sshd";
    let (address, methods, key) = match door {
        Door::NotAsked(why) => return Check::note(NAME, &format!("was not asked: {why}")),
        Door::Asked { address, methods, key, .. } => (address, methods, key),
    };
    match methods {
        (Verdict::Contradicted(why), _) => {
            Check::note(NAME, &format!("{why}; reload it, if it has not read its present files"))
        }
        (Verdict::NotTaken(why), _) => Check::note(NAME, &format!("{address} gave no answer: {why}")),
        (Verdict::AsForetold, offered) => {
            let offers = format!("{address} offers {}", offered.join(", "));
            match key {
                Verdict::Contradicted(_) if asked_for_key => {
                    let text = "and refuses the bound key; attach the key pair again, which repairs its file";
                    Check::note(NAME, &format!("{offers}, {text}"))
                }
                Verdict::AsForetold if asked_for_key => {
                    Check::holds(NAME, format!("{offers}, and accepts the bound key"))
                }
                _ => Check::holds(NAME, offers),
            }
        }
    }
}

/// The attach itself, planned and not carried out: the summary, the verdict and what is worth knowing.
fn attach(transaction: &Transaction<impl Guest>, config: &Config, state: &State) -> (String, Vec<Check>) {
    const NAME: &str = "attach with no";
    let fails = |reason: Option<Reason>, message: &str| (refused(reason), vec![Check::fails(NAME, message)]);
    let bound = state.binding.as_ref().map(|binding| Ok(binding.key_pair.clone()));
    let any = || -> Result<KeyPair, Refusal> {
        let key_name =
            "check".parse().map_err(|error| Refusal::new(Reason::InvalidKeyName, format!("{error}")))?;
        Ok(KeyPair { key_name, public_key: PublicKey::parse(ANY_KEY)? })
    };
    let key_pair = match bound.unwrap_or_else(any) {
        Ok(key_pair) => key_pair,
        Err(refusal) => return fails(Some(refusal.reason), &refusal.message),
    };
    let action = Action::Attach { key_pair, password_auth: PasswordAuth::No, replace: true };
    let id = transaction.guest().random_id();
    let received =
        Received::from(Command { id, sequence: None, instance_id: None, action, expires_at: None });
    match transaction.plan_received(&received, Origin::Console) {
        Ok(Planned::Plan(plan)) => {
            if let Some(message) = out_of_the_services_reach(config, &plan) {
                return fails(Some(Reason::IoError), &message);
            }
            let mut checks = vec![Check::holds(NAME, "would be accepted")];
            checks.extend(limited(plan.warnings.clone(), WARNINGS_MAX).iter().map(Check::from));
            (accepted(&plan), checks)
        }
        Ok(Planned::Refused(outcome)) => fails(outcome.reason, &outcome.message),
        Ok(Planned::Repeated(Answered { result, .. })) => fails(None, &result),
        Err(failure) => fails(None, &failure.to_string()),
    }
}

/// Where the service, in its sandbox, cannot write what this plan writes.
fn out_of_the_services_reach(config: &Config, plan: &Plan) -> Option<String> {
    let pid = run_lock::holder(&config.run_dir)??;
    // Where sshd does it already, the command succeeds without ours.
    let needed = plan.sshd_edits.iter().filter(|_| !plan.already);
    let edits = plan.key_edits.iter().chain(needed);
    let directory = edits.filter_map(|edit| service_view::read_only_for(pid, &edit.path)).next()?;
    let directory = directory.display();
    Some(format!(
        "the service (process {pid}) sees {directory} read-only; add the line `ReadWritePaths=-{directory}` below [Service] \
         with `systemctl edit keypair-agent`, then `systemctl restart keypair-agent`"
    ))
}

fn accepted(plan: &Plan) -> String {
    let edits = plan.key_edits.iter().chain(&plan.sshd_edits);
    let files: Vec<String> = edits.map(|edit| edit.path.display().to_string()).collect();
    let does = match (files.as_slice(), &plan.reload) {
        ([], _) if plan.touches_files() => "it would correct SELinux labels".to_owned(),
        ([], _) => "there is nothing to change".to_owned(),
        (files, None | Some(Reload::None(_))) => format!("it would write {}", files.join(" and ")),
        (files, Some(Reload::SocketUnit(unit))) => {
            format!("it would write {} and restart {unit}", files.join(" and "))
        }
        (files, Some(Reload::Unit(unit))) => {
            format!("it would write {} and reload {unit}", files.join(" and "))
        }
        (files, Some(Reload::Pid { pid, .. })) => {
            format!("it would write {} and reload sshd (pid {pid})", files.join(" and "))
        }
    };
    format!("A key pair can be attached here with passwords forbidden: {does}.")
}

fn refused(reason: Option<Reason>) -> String {
    let word = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!(
        "A key pair cannot be attached here with passwords forbidden{word}: see what FAILs below; nothing would be touched."
    )
}
