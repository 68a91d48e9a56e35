//! `status`: the binding and the health of the agent, as text for a person and as JSON.

use std::time::Duration;

use serde::Serialize;

use crate::channel::run_lock;
use crate::channel::state::{ChannelPhase, ChannelStatus, InFlight};
use crate::config::Config;
use crate::guest::Guest;
use crate::policy::component::MIN_COMPONENT_VERSION;
use crate::policy::foreign::sanitize_text;
use crate::policy::outcome::EffectiveReport;
use crate::policy::plan::Binding;
use crate::policy::public_key::Fingerprint;
use crate::policy::sshd_config::canonical_spelling;
use crate::policy::types::{CommandId, InstanceId, KeyName, PasswordAuth, Sequence};
use crate::transaction::look::{Drift, LabelProblem};
use crate::transaction::state::State;

use super::{EXIT_FAILED, EXIT_OK};

/// The longest time that work may be in flight without being reported as hanging (KP-8.15).
const IN_FLIGHT_LIMIT: Duration = Duration::from_secs(60);

/// The whole output of `status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusReport {
    healthy: bool,
    agent_version: &'static str,
    instance_id: Option<InstanceId>,
    binding: Option<BindingStatus>,
    #[serde(rename = "passWordAuth")]
    password_auth: Option<PasswordAuth>,
    effective: Option<EffectiveReport>,
    component_version: Option<String>,
    highest_sequence: Option<Sequence>,
    undelivered: Option<CommandId>,
    run: Option<RunningAgent>,
    channel: Option<ChannelStatus>,
    /// Whether the state can be read. If it cannot, the binding is unknown.
    #[serde(skip)]
    state_is_known: bool,
    /// The problems that make the agent unhealthy, each with its remedy.
    problems: Vec<String>,
    /// Notes that are not problems.
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BindingStatus {
    key_name: KeyName,
    fingerprint: Fingerprint,
    user: String,
    authorized_keys_file: String,
    inherited: bool,
}

#[derive(Debug, Serialize)]
struct RunningAgent {
    pid: Option<u32>,
}

/// `status [--json]`.
pub(super) fn status(config: &Config, json: bool) -> u8 {
    let report = collect_status(config);
    match json {
        true => super::print(&format!("{}\n", serde_json::to_string(&report).unwrap_or_default())),
        false => super::print(&render_status(config, &report)),
    };
    if report.healthy { EXIT_OK } else { EXIT_FAILED }
}

fn collect_status(config: &Config) -> StatusReport {
    let transaction = super::open_engine(config);
    let mut problems = Vec::new();
    let mut notes = Vec::new();
    let component_version = match transaction.read_component_version() {
        Ok(version) => {
            problems.extend(version.check_minimum_version().err().map(|refusal| refusal.message));
            Some(version.to_string())
        }
        Err(refusal) => {
            problems.push(refusal.message);
            None
        }
    };
    if let Some(path) = &config.trusted_signers {
        let signers = transaction.read_allowed_signers(path);
        let heard = signers.and_then(|signers| transaction.count_valid_signers(&signers).map(drop));
        problems.extend(heard.err().map(|why| format!("no command of the channel is obeyed: {why}")));
    }
    let state = match transaction.load() {
        Ok(state) => Some(state),
        Err(refusal) => {
            problems.push(refusal.message);
            None
        }
    };
    if let Some(intent) = state.as_ref().and_then(|state| state.intent.as_ref()) {
        let files = intent.key_files.iter().chain(&intent.sshd_files);
        let files: Vec<String> = files.map(|file| file.path.display().to_string()).collect();
        problems.push(format!(
            "a command was interrupted and is not taken back yet ({}): the next run, apply or undo does that",
            files.join(", ")
        ));
    }
    problems.extend(state.as_ref().and_then(State::describe_owed_edits));
    problems.extend(state.as_ref().and_then(|state| transaction.describe_bound_user_change(state)));
    problems.extend(
        state.as_ref().and_then(|state| state.contradiction.as_ref()).map(|said| said.message.clone()),
    );
    notes.extend(state.as_ref().and_then(|state| state.owed_proof.as_ref()).map(|owed| {
        format!(
            "no sshd ran at command {}: the first that does is asked whether it does what was asked",
            owed.command_id
        )
    }));
    let sshd = transaction.guest().inspect_sshd(&config.target_user);
    match &sshd {
        Ok(sshd) => notes.extend(transaction.find_overridden_lines(sshd).iter().map(|line| {
            format!(
                "{} line {} says '{} {}', which our setting overrides",
                line.file.display(),
                line.line,
                canonical_spelling(&line.keyword),
                sanitize_text(&line.value())
            )
        })),
        Err(refusal) => notes.push(refusal.message.clone()),
    }
    if let (Some(state), Ok(sshd)) = (&state, &sshd) {
        match transaction.find_label_problems(state, sshd) {
            Err(refusal) => {
                notes.push(format!("whether sshd may read its files by their labels: {}", refusal.message))
            }
            Ok(unreadable) => {
                // If no login depends on a key, an unreadable key file is not a problem.
                let matters = state.binding.is_some() || state.password_auth == Some(PasswordAuth::No);
                for one in unreadable {
                    match one {
                        LabelProblem::Denied(why) if matters => problems.push(why),
                        LabelProblem::DeniedUntilAttach(why) if matters => {
                            problems.push(format!("{why}, or attach the key pair again"))
                        }
                        LabelProblem::Denied(why)
                        | LabelProblem::DeniedUntilAttach(why)
                        | LabelProblem::DeniedIfEnforcing(why) => notes.push(why),
                    }
                }
            }
        }
    }
    match state.as_ref().map(|state| transaction.detect_drift(state)) {
        None => {}
        Some(Err(refusal)) => {
            notes.push(format!("whether ours was changed cannot be told: {}", refusal.message))
        }
        Some(Ok(drift)) => problems.extend(drift.into_iter().map(|drift| match drift {
            Drift::Changed(path) => format!(
                "what we wrote in {} was changed by somebody; attaching the key pair again repairs it",
                path.display()
            ),
            Drift::Overridden(message) => {
                format!(
                    "the password setting does not hold any more: {message}, or attach the key pair again"
                )
            }
        })),
    }
    let run = run_lock::find_lock_holder(&config.run_dir).map(|pid| RunningAgent { pid });
    let channel = ChannelStatus::read(&config.run_dir);
    if let (Some(_), Err(error)) = (&run, &channel) {
        notes.push(format!(
            "{}: how the channel fares cannot be read: {error}",
            ChannelStatus::display_path(&config.run_dir)
        ));
    }
    let channel = channel.ok();
    let in_flight = channel.as_ref().filter(|_| run.is_some()).and_then(|channel| channel.in_flight.as_ref());
    problems.extend(in_flight.and_then(describe_hanging));
    match (&run, &channel) {
        (None, _) => problems.push("the agent is not running: systemctl start keypair-agent".to_owned()),
        (Some(_), Some(channel))
            if channel.last_poll_succeeded == Some(true) && channel.state == ChannelPhase::Polling => {}
        (Some(_), channel) => problems.push(format!(
            "the metadata service at {} does not answer as it should: {}",
            config.metadata_url,
            channel
                .as_ref()
                .and_then(|channel| channel.failure.as_deref())
                .unwrap_or("no poll has ended yet")
        )),
    }
    problems.extend(transaction.guest().unresponsive_resources());
    StatusReport {
        healthy: problems.is_empty(),
        agent_version: crate::VERSION,
        instance_id: state
            .as_ref()
            .and_then(|state| transaction.settings().effective_instance_id(state))
            .cloned(),
        binding: state.as_ref().and_then(|state| state.binding.as_ref()).map(to_binding_status),
        password_auth: state.as_ref().and_then(|state| state.password_auth),
        effective: sshd.ok().and_then(|sshd| sshd.answers.first().map(|answer| answer.effective.to_report())),
        component_version,
        highest_sequence: state
            .as_ref()
            .and_then(|state| state.highest.as_ref())
            .map(|highest| highest.sequence),
        undelivered: state.as_ref().and_then(undelivered_command_id),
        run,
        channel,
        state_is_known: state.is_some(),
        problems,
        notes,
    }
}

/// Describes work that has been in flight for too long.
fn describe_hanging(in_flight: &InFlight) -> Option<String> {
    let age = in_flight.age();
    let InFlight { command_id, since, step, .. } = in_flight;
    let what = match command_id {
        Some(id) => format!("command {id}"),
        None => "the taking back of an interrupted command".to_owned(),
    };
    let step = if step.is_empty() { String::new() } else { format!(" (step: {step})") };
    (age > IN_FLIGHT_LIMIT).then(|| {
        format!(
            "{what} is in flight since {since}, for {} s{step}: see 'journalctl -u keypair-agent'; 'systemctl restart \
             keypair-agent' takes it back",
            age.as_secs()
        )
    })
}

fn undelivered_command_id(state: &State) -> Option<CommandId> {
    state.undelivered.as_ref().map(|stored| stored.command_id.clone())
}

fn to_binding_status(binding: &Binding) -> BindingStatus {
    BindingStatus {
        key_name: binding.key_pair.key_name.clone(),
        fingerprint: binding.key_pair.public_key.fingerprint(),
        user: binding.user.clone(),
        authorized_keys_file: binding.path.to_string_lossy().into_owned(),
        inherited: binding.inherited,
    }
}

fn render_status(config: &Config, report: &StatusReport) -> String {
    let on = |yes: bool| if yes { "on" } else { "off" };
    const UNKNOWN: &str = "not known: the state cannot be read";
    let bound = match &report.binding {
        None if !report.state_is_known => UNKNOWN.to_owned(),
        None => "no key pair".to_owned(),
        Some(binding) => format!(
            "{}{} for {} in {}\n                 {}",
            binding.key_name,
            if binding.inherited { " (of the image this instance was made from)" } else { "" },
            binding.user,
            binding.authorized_keys_file,
            binding.fingerprint.sha256
        ),
    };
    let set = match report.password_auth {
        None if !report.state_is_known => UNKNOWN.to_owned(),
        None => "as configured, never set from here".to_owned(),
        Some(PasswordAuth::Yes) => "on, as last set".to_owned(),
        Some(PasswordAuth::No) => "off, as last set".to_owned(),
    };
    let effective = match &report.effective {
        None => "sshd could not be asked".to_owned(),
        Some(effective) => format!(
            "password {}, keyboard-interactive {}, public key {}",
            on(effective.password_authentication),
            on(effective.kbd_interactive_authentication),
            on(effective.pubkey_authentication)
        ),
    };
    let channel = match (&report.run, &report.channel) {
        (None, _) => "not running".to_owned(),
        (Some(run), channel) => {
            let pid = run.pid.map_or(String::new(), |pid| format!(" (process {pid})"));
            let last = channel.as_ref().and_then(|channel| channel.last_poll_at.as_deref());
            let when = last.map_or("no poll has ended yet".to_owned(), |at| format!("last poll {at}"));
            format!("{}{pid}, {when}", config.metadata_url)
        }
    };
    let mut text = format!(
        "keypair-agent {}: {}\n\n  instance       {}\n  bound          {bound}\n  password login {set}\n  sshd says      \
         {effective}\n  component      {} (at least {MIN_COMPONENT_VERSION} is needed)\n  channel        {channel}\n  undelivered    {}\n",
        report.agent_version,
        if report.healthy { "healthy" } else { "NOT healthy" },
        report.instance_id.as_ref().map_or("not known yet", InstanceId::as_str),
        report.component_version.as_deref().unwrap_or("unreadable"),
        report
            .undelivered
            .as_ref()
            .map_or(if report.state_is_known { "no result" } else { UNKNOWN }, CommandId::as_str),
    );
    for (title, lines) in [("problem", &report.problems), ("note", &report.notes)] {
        for line in lines {
            text.push_str(&format!("\n  {title}: {line}"));
        }
    }
    if !(report.problems.is_empty() && report.notes.is_empty()) {
        text.push('\n');
    }
    text
}
