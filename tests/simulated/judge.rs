//! What has to hold after a call, by what the machine, the state file and the answer say.

use keypair_agent::policy::types::CommandId;
use keypair_agent::transaction::perform::Answered;
use keypair_agent::transaction::state::State;

use super::calls::{Before, ours};
use super::control_plane::{Command, INSTANCES, Order};
use super::disk::{DROP_IN, Disk, KEY_FILES, MAIN};
use super::edit::Edit;
use super::fault::What;
use super::keys::{self, Pair};
use super::oracle::{self, Expected, Known, MOST_INTERRUPTIONS};
use super::place::{VOLUME, Who};
use super::property::Property;
use super::sshd::Config;
use super::world::World;

/// The reasons by which a command may fail whose step fails.
const OF_A_FAILURE: [&str; 2] = ["IO_ERROR", "SSHD_RELOAD_FAILED"];

/// Those by which one may fail under which the user edits a file, besides what it comes to before and after that.
const OF_AN_EDIT: [&str; 7] = [
    "IO_ERROR",
    "LOCKOUT_GUARD",
    "PASSWORD_AUTH_NOT_EFFECTIVE",
    "PROOF_CONTRADICTED",
    "SSHD_CONFIG_ALREADY_INVALID",
    "SSHD_CONFIG_REJECTED",
    "SSHD_RELOAD_UNSAFE",
];

impl Known {
    /// What is left of it where the disk belongs to this instance now.
    pub fn on(&self, instance: usize) -> Self {
        if instance == self.instance {
            return self.clone();
        }
        let bound = self.bound.map(|bound| oracle::Bound { inherited: true, ..bound });
        Self { instance, bound, ..Self::default() }
    }

    /// What is left of it after `undo`: a result under way, and who this is.
    fn forget(&mut self, state: &State) {
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

    /// The result that an `undo` left is forgotten once it is delivered.
    pub fn follow_forgotten(&mut self, state: &State) {
        let is_gone = |id: &mut String| id.parse().is_ok_and(|id| state.result_of(&id).is_none());
        if let Some(id) = self.fleeting.take_if(is_gone) {
            self.seen.remove(&id);
            self.unrecorded.insert(id);
        }
    }
}

impl World {
    /// A clone's state starts anew as soon as it is written.
    pub fn follow_instance(&mut self, state: &State) {
        let is_adopted = |instance: &usize| {
            state.instance_id.as_ref().is_some_and(|id| id.as_str() == INSTANCES[*instance])
        };
        if let Some(instance) = (0..INSTANCES.len()).find(is_adopted) {
            self.known = self.known.on(instance);
        }
    }

    /// The highest sequence is the one that was, or this command's.
    pub fn follow_sequence(&mut self, command: &Command, raises: bool, state: &State) {
        let highest =
            state.highest.as_ref().map(|highest| (highest.sequence.into(), highest.command_id.to_string()));
        let raised = Some((command.sequence(), command.id()));
        let is_recorded =
            state.result_of(&id_of(command)).is_some() && !self.known.seen.contains_key(&command.id());
        let is_due = raises && is_recorded && highest != raised && !self.was_interrupted(command, state);
        if is_due || highest != self.known.highest && !(raises && highest == raised) {
            let what = format!("the highest sequence is {highest:?}, and was {:?}", self.known.highest);
            self.machine.report(Property::Outcome, what);
        }
        self.known.highest = highest;
    }

    fn was_interrupted(&self, command: &Command, state: &State) -> bool {
        let stored = state.result_of(&id_of(command));
        stored.is_some_and(|stored| reason(&stored.result).as_deref() == Some("INTERRUPTED"))
    }

    /// An intent that was open: where it is closed, that is counted, and the third time it is the result.
    pub fn judge_recovery(&mut self, before: &Before, state: &State) {
        let Some(intent) = &before.state.intent else { return };
        if before.state.instance_id != state.instance_id {
            // A clone counts nothing of its origin's.
            return;
        }
        let id = intent.command.id.to_string();
        let counted = self.known.interrupted.as_ref().filter(|(other, _)| *other == id);
        let times = counted.map_or(0, |(_, times)| *times) + 1;
        if let Some(stored) =
            state.result_of(&intent.command.id).filter(|_| !self.known.seen.contains_key(&id))
        {
            if reason(&stored.result).as_deref() == Some("INTERRUPTED") {
                if times < MOST_INTERRUPTIONS {
                    self.machine
                        .report(Property::Recovered, format!("{id} is given up after {times} interruptions"));
                }
                self.known.seen.insert(id, stored.result.clone());
                self.known.interrupted = None;
            }
            return;
        }
        let now = state.interrupted.as_ref().map(|one| (one.command_id.to_string(), one.times));
        if now == Some((id.clone(), times)) {
            if times >= MOST_INTERRUPTIONS {
                let what = format!("{id} was interrupted {times} times, and has no result");
                self.machine.report(Property::Recovered, what);
            }
            self.known.interrupted = now;
        } else if state.intent.is_none() && !self.machine.call.has_forgotten(state) {
            self.machine
                .report(Property::Recovered, format!("an interruption of {id} is not counted: {now:?}"));
        }
    }

    /// After a recovery that says that it is done.
    pub fn judge_recovered(&mut self, before: &Before, state: &State) {
        let touched = before.state.intent.as_ref().is_some_and(|intent| !intent.sshd_files.is_empty());
        let wrong = if state.intent.is_some() {
            Some("an intent is open")
        } else if self.machine.disk.has_temporaries() {
            Some("a temporary is left")
        } else if !self.stands_as_at_rest() {
            Some("a file is not as it was before the command")
        } else if touched && !before.is_edited() && self.runs_by_others() {
            Some("sshd does not run by its files")
        } else if !touched && !self.machine.edited && !self.runs_as_at_rest() {
            // A reload that the proof asked for makes users' edits live too.
            Some("sshd does not run as it did before the command")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            self.machine.report(Property::Recovered, format!("after recovery {wrong}"));
        }
        self.rests();
    }

    /// Nothing is in flight: what comes next is held against this.
    fn rests(&mut self) {
        self.machine.setting_taken_midway = false;
        self.open = None;
        self.machine.rest = self.machine.disk.clone();
        self.running_at_rest = self.machine.running.clone();
    }

    /// Whether sshd runs as it did, or by its files. One that was down may have been started since; one that a user's
    /// misspelt line ended stays down.
    fn runs_as_at_rest(&self) -> bool {
        let running = &self.machine.running;
        *running == self.running_at_rest
            || *running == self.machine.files()
            || self.running_at_rest.is_none()
            || running.is_none() && self.machine.edited
    }

    /// Whether sshd runs, and not by its files.
    fn runs_by_others(&self) -> bool {
        self.machine.running.is_some() && self.machine.running != self.machine.files()
    }

    /// Whether the files are those of the last finished command, with the user's edits since. Where he edited one in the
    /// midst of a command, a file that the command had made may stay, empty, and a block that is put back stands at the
    /// top, ahead of what he wrote there.
    fn stands_as_at_rest(&self) -> bool {
        let (disk, rest) = (&self.machine.disk, &self.machine.rest);
        disk.is_like(rest)
            || self.machine.edited
                && KEY_FILES.iter().all(|file| keys::apart(disk.text(file)) == keys::apart(rest.text(file)))
                && keys::main_file_apart(disk.text(MAIN)) == keys::main_file_apart(rest.text(MAIN))
                && (disk.read(DROP_IN) == rest.read(DROP_IN) || self.machine.setting_taken_midway)
    }

    /// The result that a command left in the state, and what it says; whether there is one.
    pub fn judge_record(
        &mut self,
        command: &Command,
        before: &Before,
        state: &State,
        expected: &[Expected],
    ) -> bool {
        let id = command.id();
        if self.known.seen.contains_key(&id) {
            self.judge_nothing_done(before, state, "a command that was seen before");
            return true;
        }
        let Some(stored) = state.result_of(&id_of(command)) else {
            if self.machine.call.is_over {
                self.judge_nothing_done(before, state, "a command that was not begun");
            }
            return false;
        };
        let result = stored.result.clone();
        if state.undelivered.as_ref().map(|undelivered| &undelivered.result) != Some(&result) {
            self.machine.report(Property::OneResult, "a result is recorded, and is not in the outbox");
        }
        if state.intent.is_some() {
            self.machine.report(Property::OneResult, "a result is recorded, and its intent is open");
        }
        let reason = reason(&result);
        let is_expected = |expected: &Expected| match expected {
            Expected::Succeeds => reason.is_none(),
            Expected::Refused(why) => reason.as_deref() == Some(*why),
            Expected::Repeated(_) => false,
        };
        let is_among = |reasons: &[&str]| reason.as_deref().is_some_and(|reason| reasons.contains(&reason));
        let is_right = expected.iter().any(is_expected)
            || before.has_failure() && is_among(&OF_A_FAILURE)
            || before.is_edited() && is_among(&OF_AN_EDIT);
        if !is_right {
            let what = format!("{command} comes to {reason:?}, and should to {expected:?}");
            self.machine.report(Property::Outcome, what);
        }
        self.known.seen.insert(id.clone(), result.clone());
        self.known.interrupted.take_if(|(other, _)| *other == id);
        match reason {
            None => self.judge_success(command, before, state, &result),
            Some(_) => self.judge_nothing_done(before, state, "a failed command"),
        }
        true
    }

    /// `succeeded`: it is so.
    fn judge_success(&mut self, command: &Command, before: &Before, state: &State, result: &str) {
        let machine = &self.machine;
        let (disk, rest) = (&machine.disk, &machine.rest);
        let standing = ours(disk);
        let his_edit = match before.fault.map(|fault| fault.what) {
            Some(What::Edit(edit)) => Some(edit),
            _ => None,
        };
        let took_ours = his_edit.is_some_and(|edit| edit.takes_ours());
        let mut wrong = Vec::new();
        match command.order {
            Order::Attach { pair, .. } => {
                let block = pair.block().into_bytes();
                if !took_ours && (standing != block || !disk.keys().starts_with(&block)) {
                    wrong.push("the block does not stand at the top of authorized_keys");
                }
                if self.known.bound.is_some_and(|bound| is_left_in(bound.file, disk)) {
                    wrong.push("the block still stands where it was put before");
                }
            }
            Order::Detach(_) if !standing.is_empty() => {
                wrong.push("something of ours is left in authorized_keys")
            }
            Order::Detach(_) if self.known.bound.is_some_and(|bound| is_left_in(bound.file, disk)) => {
                wrong.push("the block still stands where it was put");
            }
            Order::SetPasswordAuth(_) if KEY_FILES.iter().any(|file| disk.text(file) != rest.text(file)) => {
                wrong.push("authorized_keys is another");
            }
            Order::Detach(_) | Order::SetPasswordAuth(_) => {}
        }
        let has_none = |config: &Config| !config.lets_in(disk);
        if command.order.passwords() == Some(false)
            && his_edit.is_none()
            && machine.running.as_ref().is_some_and(has_none)
        {
            wrong.push("the running sshd lets nobody in");
        }
        match (command.order.passwords(), &machine.running) {
            (Some(true), Some(config)) if !config.password_authentication() => {
                wrong.push("the running sshd takes no password");
            }
            (Some(false), Some(config)) if config.takes_passwords() => {
                wrong.push("the running sshd takes passwords");
            }
            (Some(_), None) if machine.files().is_some() && !machine.edited => wrong.push("no sshd runs"),
            (None, _) if !is_started_anew(before) && !self.runs_as_at_rest() => {
                wrong.push("a detach has changed what sshd runs by");
            }
            _ => {}
        }
        if command.order.passwords().is_none()
            && (disk.read(MAIN) != rest.read(MAIN) || disk.read(DROP_IN) != rest.read(DROP_IN))
        {
            wrong.push("a detach has changed sshd's files");
        }
        let has_changed = !disk.is_like(rest);
        if result.contains("\"changed\":true") != has_changed && his_edit.is_none() {
            wrong.push("`changed` is not so");
        }
        let bound = oracle::bound_after(command.order, &self.known, rest);
        let is_bound = state.binding.as_ref().map(|binding| {
            let pairs = [Pair::K, Pair::L, Pair::KWithAnotherKey];
            let is_it = |pair: &Pair| {
                pair.name() == binding.key_pair.key_name.as_str()
                    && keys::holds(pair.key().as_bytes(), &binding.key_pair.public_key.line())
            };
            let file = KEY_FILES.into_iter().find(|file| binding.path.to_str() == Some(*file));
            let on_volume = binding.mount.as_deref() == Some(VOLUME.as_ref());
            pairs.into_iter().find(is_it).zip(file).map(|(pair, file)| oracle::Bound {
                pair,
                inherited: binding.inherited,
                file,
                on_volume,
            })
        });
        // Where the user takes a block out that alone says what is bound, it is a matter of when he does.
        if is_bound != bound.map(Some) && !took_ours {
            wrong.push("the binding is another");
        }
        self.known.bound = is_bound.flatten();
        if let Some(wrong) = wrong.first() {
            self.machine.report(Property::SucceededIsTrue, format!("{command} succeeded, and {wrong}"));
        }
        self.rests();
    }

    /// Everything is as it was, unless an intent is open that will see to that.
    pub fn judge_nothing_done(&mut self, before: &Before, state: &State, what: &str) {
        if state.intent.is_some() {
            return;
        }
        if !self.stands_as_at_rest() {
            self.machine.report(Property::FailedChangesNothing, format!("{what} has changed a file"));
        }
        if !self.runs_as_at_rest() && !before.is_edited() {
            self.machine
                .report(Property::FailedChangesNothing, format!("{what} has changed what sshd runs by"));
        }
        self.rests();
    }

    /// An answer that the state does not hold: a failure, and only where the state, or an undo, fails.
    pub fn judge_unrecorded(
        &mut self,
        command: &Command,
        before: &Before,
        state: &State,
        answered: &Answered,
    ) {
        let is_stuck =
            before.state.intent.is_some() && (self.machine.files().is_none() || before.is_edited());
        if answered.succeeded || !(before.has_failure() || is_stuck || before.is_edited()) {
            let what = format!("{command} is answered, and the state does not hold it: {}", answered.result);
            self.machine.report(Property::OneResult, what);
        }
        self.known.unrecorded.insert(command.id());
        if state.intent.as_ref().is_some_and(|intent| intent.command.id.as_str() == command.id()) {
            self.open = Some(*command);
        }
        self.judge_nothing_done(before, state, "a command whose result could not be stored");
    }

    /// `undo`: nothing of ours is left; one that comes to no end leaves less.
    pub fn judge_undo(&mut self, before: &Before, state: &State, is_whole: bool) {
        let disk = &self.machine.disk;
        if is_whole {
            let main = keys::main_file_apart(disk.text(MAIN)).0;
            let took_ours = before.is_edited();
            let is_known = self.known.bound.is_some() || disk.place.who != Who::Nobody;
            let is_left = self.known.bound.is_some_and(|bound| is_left_in(bound.file, disk));
            if is_left
                || is_known && !ours(disk).is_empty()
                || disk.read(DROP_IN).is_some()
                || !main.is_empty()
            {
                self.machine.report(Property::SucceededIsTrue, "undo is done, and something of ours is left");
            }
            if self.runs_by_others() && !self.machine.edited && !took_ours {
                self.machine
                    .report(Property::SucceededIsTrue, "undo is done, and sshd does not run by its files");
            }
        } else if before.fault.is_none() && !self.machine.edited {
            self.machine.report(Property::Answered, "undo fails, and nothing keeps it");
        }
        let is_forgotten = |id: &String| {
            let is_kept = |id: CommandId| state.result_of(&id).is_some() && !is_undelivered(state, &id);
            !id.parse().is_ok_and(is_kept)
        };
        let is_forgotten = self.known.seen.keys().all(is_forgotten);
        if state.binding.is_none() && state.highest.is_none() && is_forgotten {
            self.known.forget(state);
        } else if is_whole {
            self.machine
                .report(Property::SucceededIsTrue, "undo is done, and the state still knows of a binding");
        }
        if state.intent.is_none() {
            self.rests();
        } else {
            // What it took out beside an intent that it could not close is as an edit of somebody's.
            let machine = &mut self.machine;
            machine.edited = true;
            machine.setting_taken_midway = true;
            for file in KEY_FILES {
                if !keys::apart(machine.disk.text(file)).0.is_empty() || machine.is_detach_open() {
                    continue;
                }
                if machine.rest.read(file).is_some() {
                    let (_, users) = keys::apart(machine.rest.text(file));
                    machine.rest.put(file, &users);
                } else if let Some(left) = machine.disk.read(file) {
                    // It cannot know that the command had made the file: it stays, without our block.
                    machine.rest.put(file, left);
                }
            }
            if machine.disk.read(DROP_IN).is_none()
                && keys::main_file_apart(machine.disk.text(MAIN)).0.is_empty()
            {
                Edit::RemovesSetting.apply(&mut machine.rest);
            }
        }
    }
}

/// Whether something of ours stands in a file, no matter whether sshd reads it.
fn is_left_in(file: &str, disk: &Disk) -> bool {
    file != disk.key_file() && !keys::apart(disk.text(file)).0.is_empty()
}

/// Whether the power went in the call.
fn is_started_anew(before: &Before) -> bool {
    before.fault.is_some_and(|fault| matches!(fault.what, What::PowerCut { .. }))
}

fn is_undelivered(state: &State, id: &CommandId) -> bool {
    state.undelivered.as_ref().is_some_and(|stored| stored.command_id == *id)
}

fn id_of(command: &Command) -> CommandId {
    command.id().parse().unwrap()
}

/// A result's `reason`.
fn reason(result: &str) -> Option<String> {
    let result: serde_json::Value = serde_json::from_str(result).unwrap();
    result["reason"].as_str().map(str::to_owned)
}
