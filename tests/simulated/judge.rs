//! The checks after a call. They compare the machine, the state file and the answer.

use keypair_agent::policy::types::CommandId;
use keypair_agent::transaction::perform::CompletedCommand;
use keypair_agent::transaction::state::State;

use super::calls::{CallContext, read_agent_lines};
use super::control_plane::{INSTANCES, SimCommand, SimOrder};
use super::disk::{DROP_IN, Disk, KEY_FILES, MAIN_CONFIG};
use super::edit::UserEdit;
use super::fault::FaultKind;
use super::keys::{self, PlatformKeyPair};
use super::oracle::{self, ExpectedOutcome, MAX_INTERRUPTIONS, ReferenceState};
use super::place::{AccountState, HOME_VOLUME};
use super::property::Invariant;
use super::sshd::SimSshdConfig;
use super::world::Simulation;

/// The reasons for which a command may fail if one of its steps fails.
const FAILURE_REASONS: [&str; 2] = ["IO_ERROR", "SSHD_RELOAD_FAILED"];

/// The additional reasons for which a command may fail if the user edits a file during it. The reasons for the files
/// before and after the edit are allowed too.
const EDIT_REASONS: [&str; 7] = [
    "IO_ERROR",
    "LOCKOUT_GUARD",
    "PASSWORD_AUTH_NOT_EFFECTIVE",
    "PROOF_CONTRADICTED",
    "SSHD_CONFIG_ALREADY_INVALID",
    "SSHD_CONFIG_REJECTED",
    "SSHD_RELOAD_UNSAFE",
];

impl ReferenceState {
    /// The expected state after the disk became the disk of this instance.
    pub fn for_instance(&self, instance: usize) -> Self {
        if instance == self.instance {
            return self.clone();
        }
        let bound = self.bound.map(|bound| oracle::ExpectedBinding { inherited: true, ..bound });
        Self { instance, bound, ..Self::default() }
    }

    /// The expected state after `undo`: only an undelivered result and the instance remain.
    fn apply_undo(&mut self, state: &State) {
        let seen = std::mem::take(&mut self.seen);
        self.unrecorded.extend(seen.keys().cloned());
        let undelivered = state.undelivered.iter();
        self.seen =
            undelivered.map(|stored| (stored.command_id.to_string(), stored.result.clone())).collect();
        self.fleeting = self.seen.keys().next().cloned();
        self.bound = None;
        self.highest = None;
        self.interrupted = None;
    }

    /// Forgets the result that an `undo` left, after its delivery.
    pub fn drop_delivered_result(&mut self, state: &State) {
        let is_gone = |id: &mut String| id.parse().is_ok_and(|id| state.find_result(&id).is_none());
        if let Some(id) = self.fleeting.take_if(is_gone) {
            self.seen.remove(&id);
            self.unrecorded.insert(id);
        }
    }
}

impl Simulation {
    /// Starts anew for a clone as soon as the clone's state is written.
    pub fn update_instance(&mut self, state: &State) {
        let is_adopted = |instance: &usize| {
            state.instance_id.as_ref().is_some_and(|id| id.as_str() == INSTANCES[*instance])
        };
        if let Some(instance) = (0..INSTANCES.len()).find(is_adopted) {
            self.known = self.known.for_instance(instance);
        }
    }

    /// The highest sequence must be the previous one or the one of this command.
    pub fn check_sequence(&mut self, command: &SimCommand, raises: bool, state: &State) {
        let highest =
            state.highest.as_ref().map(|highest| (highest.sequence.into(), highest.command_id.to_string()));
        let raised = Some((command.sequence(), command.id()));
        let is_recorded =
            state.find_result(&parse_id(command)).is_some() && !self.known.seen.contains_key(&command.id());
        let is_due = raises && is_recorded && highest != raised && !self.was_interrupted(command, state);
        if is_due || highest != self.known.highest && !(raises && highest == raised) {
            let what = format!("the highest sequence is {highest:?}, and was {:?}", self.known.highest);
            self.machine.report_violation(Invariant::Outcome, what);
        }
        self.known.highest = highest;
    }

    fn was_interrupted(&self, command: &SimCommand, state: &State) -> bool {
        let stored = state.find_result(&parse_id(command));
        stored.is_some_and(|stored| parse_reason(&stored.result).as_deref() == Some("INTERRUPTED"))
    }

    /// Checks an intent that was open. If it is closed now, the interruption must be counted. The third interruption
    /// must be the result of the command.
    pub fn check_interruptions(&mut self, before: &CallContext, state: &State) {
        let Some(intent) = &before.state.intent else { return };
        if before.state.instance_id != state.instance_id {
            // A clone does not count the interruptions of its origin.
            return;
        }
        let id = intent.command.id.to_string();
        let counted = self.known.interrupted.as_ref().filter(|(other, _)| *other == id);
        let times = counted.map_or(0, |(_, times)| *times) + 1;
        if let Some(stored) =
            state.find_result(&intent.command.id).filter(|_| !self.known.seen.contains_key(&id))
        {
            if parse_reason(&stored.result).as_deref() == Some("INTERRUPTED") {
                if times < MAX_INTERRUPTIONS {
                    self.machine.report_violation(
                        Invariant::Recovered,
                        format!("{id} is given up after {times} interruptions"),
                    );
                }
                self.known.seen.insert(id, stored.result.clone());
                self.known.interrupted = None;
            }
            return;
        }
        let now = state.interrupted.as_ref().map(|one| (one.command_id.to_string(), one.times));
        if now == Some((id.clone(), times)) {
            if times >= MAX_INTERRUPTIONS {
                let what = format!("{id} was interrupted {times} times, and has no result");
                self.machine.report_violation(Invariant::Recovered, what);
            }
            self.known.interrupted = now;
        } else if state.intent.is_none() && !self.machine.call.has_forgotten(state) {
            self.machine.report_violation(
                Invariant::Recovered,
                format!("an interruption of {id} is not counted: {now:?}"),
            );
        }
    }

    /// The checks after a recovery that reports success.
    pub fn check_recovered(&mut self, before: &CallContext, state: &State) {
        let touched = before.state.intent.as_ref().is_some_and(|intent| !intent.sshd_files.is_empty());
        let wrong = if state.intent.is_some() {
            Some("an intent is open")
        } else if self.machine.disk.has_temp_files() {
            Some("a temporary is left")
        } else if !self.are_files_at_rest() {
            Some("a file is not as it was before the command")
        } else if touched && !before.is_edited() && self.is_sshd_stale() {
            Some("sshd does not run by its files")
        } else if !touched && !self.machine.edited && !self.is_sshd_at_rest() {
            // The proof may reload sshd. Then the users' edits take effect too.
            Some("sshd does not run as it did before the command")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            self.machine.report_violation(Invariant::Recovered, format!("after recovery {wrong}"));
        }
        self.mark_at_rest();
    }

    /// No command is in flight: the present files and settings become the reference for later checks.
    fn mark_at_rest(&mut self) {
        self.machine.setting_taken_midway = false;
        self.open = None;
        self.machine.rest = self.machine.disk.clone();
        self.running_at_rest = self.machine.running.clone();
    }

    /// Whether sshd runs with the reference settings or with those of its files. An sshd that was down may have been
    /// started since. An sshd that an invalid line of the user ended stays down.
    fn is_sshd_at_rest(&self) -> bool {
        let running = &self.machine.running;
        *running == self.running_at_rest
            || *running == self.machine.read_config()
            || self.running_at_rest.is_none()
            || running.is_none() && self.machine.edited
    }

    /// Whether sshd runs with other settings than those of its files.
    fn is_sshd_stale(&self) -> bool {
        self.machine.running.is_some() && self.machine.running != self.machine.read_config()
    }

    /// Whether the files are those after the last finished command, plus the user's edits since. If the user edited
    /// one during a command, two differences are allowed. A file that the command created may remain, empty. A
    /// restored block may be at the top, before the user's new lines.
    fn are_files_at_rest(&self) -> bool {
        let (disk, rest) = (&self.machine.disk, &self.machine.rest);
        disk.equals_except_state(rest)
            || self.machine.edited
                && KEY_FILES.iter().all(|file| {
                    keys::split_key_file(disk.read_or_empty(file))
                        == keys::split_key_file(rest.read_or_empty(file))
                })
                && keys::split_main_file(disk.read_or_empty(MAIN_CONFIG))
                    == keys::split_main_file(rest.read_or_empty(MAIN_CONFIG))
                && (disk.read(DROP_IN) == rest.read(DROP_IN) || self.machine.setting_taken_midway)
    }

    /// Checks the result that a command left in the state. Returns whether there is one.
    pub fn check_recorded_result(
        &mut self,
        command: &SimCommand,
        before: &CallContext,
        state: &State,
        expected: &[ExpectedOutcome],
    ) -> bool {
        let id = command.id();
        if self.known.seen.contains_key(&id) {
            self.check_unchanged(before, state, "a command that was seen before");
            return true;
        }
        let Some(stored) = state.find_result(&parse_id(command)) else {
            if self.machine.call.is_over {
                self.check_unchanged(before, state, "a command that was not begun");
            }
            return false;
        };
        let result = stored.result.clone();
        if state.undelivered.as_ref().map(|undelivered| &undelivered.result) != Some(&result) {
            self.machine
                .report_violation(Invariant::OneResult, "a result is recorded, and is not in the outbox");
        }
        if state.intent.is_some() {
            self.machine
                .report_violation(Invariant::OneResult, "a result is recorded, and its intent is open");
        }
        let reason = parse_reason(&result);
        let is_expected = |expected: &ExpectedOutcome| match expected {
            ExpectedOutcome::Success => reason.is_none(),
            ExpectedOutcome::Refused(why) => reason.as_deref() == Some(*why),
            ExpectedOutcome::Repeated(_) => false,
        };
        let is_among = |reasons: &[&str]| reason.as_deref().is_some_and(|reason| reasons.contains(&reason));
        let is_right = expected.iter().any(is_expected)
            || before.has_failure() && is_among(&FAILURE_REASONS)
            || before.is_edited() && is_among(&EDIT_REASONS);
        if !is_right {
            let what = format!("{command} comes to {reason:?}, and should to {expected:?}");
            self.machine.report_violation(Invariant::Outcome, what);
        }
        self.known.seen.insert(id.clone(), result.clone());
        self.known.interrupted.take_if(|(other, _)| *other == id);
        match reason {
            None => self.check_success(command, before, state, &result),
            Some(_) => self.check_unchanged(before, state, "a failed command"),
        }
        true
    }

    /// Checks that the machine is really as `succeeded` says.
    fn check_success(&mut self, command: &SimCommand, before: &CallContext, state: &State, result: &str) {
        let machine = &self.machine;
        let (disk, rest) = (&machine.disk, &machine.rest);
        let standing = read_agent_lines(disk);
        let his_edit = match before.fault.map(|fault| fault.what) {
            Some(FaultKind::Edit(edit)) => Some(edit),
            _ => None,
        };
        let took_ours = his_edit.is_some_and(|edit| edit.removes_agent_lines());
        let mut wrong = Vec::new();
        match command.order {
            SimOrder::Attach { pair, .. } => {
                let block = pair.block().into_bytes();
                if !took_ours && (standing != block || !disk.read_key_file().starts_with(&block)) {
                    wrong.push("the block does not stand at the top of authorized_keys");
                }
                if self.known.bound.is_some_and(|bound| has_leftover_block(bound.file, disk)) {
                    wrong.push("the block still stands where it was put before");
                }
            }
            SimOrder::Detach(_) if !standing.is_empty() => {
                wrong.push("something of ours is left in authorized_keys")
            }
            SimOrder::Detach(_)
                if self.known.bound.is_some_and(|bound| has_leftover_block(bound.file, disk)) =>
            {
                wrong.push("the block still stands where it was put");
            }
            SimOrder::SetPasswordAuth(_)
                if KEY_FILES.iter().any(|file| disk.read_or_empty(file) != rest.read_or_empty(file)) =>
            {
                wrong.push("authorized_keys is another");
            }
            SimOrder::Detach(_) | SimOrder::SetPasswordAuth(_) => {}
        }
        let has_none = |config: &SimSshdConfig| !config.lets_in(disk);
        if command.order.password_auth() == Some(false)
            && his_edit.is_none()
            && machine.running.as_ref().is_some_and(has_none)
        {
            wrong.push("the running sshd lets nobody in");
        }
        match (command.order.password_auth(), &machine.running) {
            (Some(true), Some(config)) if !config.password_authentication() => {
                wrong.push("the running sshd takes no password");
            }
            (Some(false), Some(config)) if config.takes_passwords() => {
                wrong.push("the running sshd takes passwords");
            }
            (Some(_), None) if machine.read_config().is_some() && !machine.edited => {
                wrong.push("no sshd runs")
            }
            (None, _) if !is_power_cut(before) && !self.is_sshd_at_rest() => {
                wrong.push("a detach has changed what sshd runs by");
            }
            _ => {}
        }
        if command.order.password_auth().is_none()
            && (disk.read(MAIN_CONFIG) != rest.read(MAIN_CONFIG) || disk.read(DROP_IN) != rest.read(DROP_IN))
        {
            wrong.push("a detach has changed sshd's files");
        }
        let has_changed = !disk.equals_except_state(rest);
        if result.contains("\"changed\":true") != has_changed && his_edit.is_none() {
            wrong.push("`changed` is not so");
        }
        let bound = oracle::binding_after(command.order, &self.known, rest);
        let is_bound = state.binding.as_ref().map(|binding| {
            let pairs = [PlatformKeyPair::K, PlatformKeyPair::L, PlatformKeyPair::KWithAnotherKey];
            let is_it = |pair: &PlatformKeyPair| {
                pair.name() == binding.key_pair.key_name.as_str()
                    && keys::has_key(pair.public_key().as_bytes(), &binding.key_pair.public_key.line())
            };
            let file = KEY_FILES.into_iter().find(|file| binding.path.to_str() == Some(*file));
            let on_volume = binding.mount.as_deref() == Some(HOME_VOLUME.as_ref());
            pairs.into_iter().find(is_it).zip(file).map(|(pair, file)| oracle::ExpectedBinding {
                pair,
                inherited: binding.inherited,
                file,
                on_volume,
            })
        });
        // If only the block says what is bound and the user removes that block, the moment of the edit decides.
        if is_bound != bound.map(Some) && !took_ours {
            wrong.push("the binding is another");
        }
        self.known.bound = is_bound.flatten();
        if let Some(wrong) = wrong.first() {
            self.machine
                .report_violation(Invariant::SucceededIsTrue, format!("{command} succeeded, and {wrong}"));
        }
        self.mark_at_rest();
    }

    /// Everything must be as before, unless an open intent will restore it later.
    pub fn check_unchanged(&mut self, before: &CallContext, state: &State, what: &str) {
        if state.intent.is_some() {
            return;
        }
        if !self.are_files_at_rest() {
            self.machine
                .report_violation(Invariant::FailedChangesNothing, format!("{what} has changed a file"));
        }
        if !self.is_sshd_at_rest() && !before.is_edited() {
            self.machine.report_violation(
                Invariant::FailedChangesNothing,
                format!("{what} has changed what sshd runs by"),
            );
        }
        self.mark_at_rest();
    }

    /// Checks an answer that the state does not hold. It must be a failure, and only after a failed write of the
    /// state or a failed undo.
    pub fn check_unrecorded(
        &mut self,
        command: &SimCommand,
        before: &CallContext,
        state: &State,
        answered: &CompletedCommand,
    ) {
        let is_stuck =
            before.state.intent.is_some() && (self.machine.read_config().is_none() || before.is_edited());
        if answered.succeeded || !(before.has_failure() || is_stuck || before.is_edited()) {
            let what = format!("{command} is answered, and the state does not hold it: {}", answered.result);
            self.machine.report_violation(Invariant::OneResult, what);
        }
        self.known.unrecorded.insert(command.id());
        if state.intent.as_ref().is_some_and(|intent| intent.command.id.as_str() == command.id()) {
            self.open = Some(*command);
        }
        self.check_unchanged(before, state, "a command whose result could not be stored");
    }

    /// Checks `undo`: it must leave nothing of the agent's. An unfinished undo may leave a part.
    pub fn check_undo(&mut self, before: &CallContext, state: &State, is_whole: bool) {
        let disk = &self.machine.disk;
        if is_whole {
            let main = keys::split_main_file(disk.read_or_empty(MAIN_CONFIG)).0;
            let took_ours = before.is_edited();
            let is_known = self.known.bound.is_some() || disk.place.who != AccountState::Deleted;
            let is_left = self.known.bound.is_some_and(|bound| has_leftover_block(bound.file, disk));
            if is_left
                || is_known && !read_agent_lines(disk).is_empty()
                || disk.read(DROP_IN).is_some()
                || !main.is_empty()
            {
                self.machine.report_violation(
                    Invariant::SucceededIsTrue,
                    "undo is done, and something of ours is left",
                );
            }
            if self.is_sshd_stale() && !self.machine.edited && !took_ours {
                self.machine.report_violation(
                    Invariant::SucceededIsTrue,
                    "undo is done, and sshd does not run by its files",
                );
            }
        } else if before.fault.is_none() && !self.machine.edited {
            self.machine.report_violation(Invariant::Answered, "undo fails, and nothing keeps it");
        }
        let is_forgotten = |id: &String| {
            let is_kept = |id: CommandId| state.find_result(&id).is_some() && !is_undelivered(state, &id);
            !id.parse().is_ok_and(is_kept)
        };
        let is_forgotten = self.known.seen.keys().all(is_forgotten);
        if state.binding.is_none() && state.highest.is_none() && is_forgotten {
            self.known.apply_undo(state);
        } else if is_whole {
            self.machine.report_violation(
                Invariant::SucceededIsTrue,
                "undo is done, and the state still knows of a binding",
            );
        }
        if state.intent.is_none() {
            self.mark_at_rest();
        } else {
            // The undo could not close the intent. The lines that it has removed count as an edit by the user.
            let machine = &mut self.machine;
            machine.edited = true;
            machine.setting_taken_midway = true;
            for file in KEY_FILES {
                if !keys::split_key_file(machine.disk.read_or_empty(file)).0.is_empty()
                    || machine.has_open_detach()
                {
                    continue;
                }
                if machine.rest.read(file).is_some() {
                    let (_, users) = keys::split_key_file(machine.rest.read_or_empty(file));
                    machine.rest.write_file(file, &users);
                } else if let Some(left) = machine.disk.read(file) {
                    // The undo cannot know that the command created the file, so the file stays, without the agent's
                    // block.
                    machine.rest.write_file(file, left);
                }
            }
            if machine.disk.read(DROP_IN).is_none()
                && keys::split_main_file(machine.disk.read_or_empty(MAIN_CONFIG)).0.is_empty()
            {
                UserEdit::RemoveSetting.apply(&mut machine.rest);
            }
        }
    }
}

/// Whether a file that sshd does not read for the target user still holds lines of the agent.
fn has_leftover_block(file: &str, disk: &Disk) -> bool {
    file != disk.key_file() && !keys::split_key_file(disk.read_or_empty(file)).0.is_empty()
}

/// Whether the power failed during the call.
fn is_power_cut(before: &CallContext) -> bool {
    before.fault.is_some_and(|fault| matches!(fault.what, FaultKind::PowerCut { .. }))
}

fn is_undelivered(state: &State, id: &CommandId) -> bool {
    state.undelivered.as_ref().is_some_and(|stored| stored.command_id == *id)
}

fn parse_id(command: &SimCommand) -> CommandId {
    command.id().parse().unwrap()
}

/// The `reason` of a result.
fn parse_reason(result: &str) -> Option<String> {
    let result: serde_json::Value = serde_json::from_str(result).unwrap();
    result["reason"].as_str().map(str::to_owned)
}
