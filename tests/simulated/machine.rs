//! The machine: disk, sshd, component and clock, with the checks at every step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keypair_agent::policy::command::ActionName;
use keypair_agent::transaction::state::{Intent, State};

use super::disk::{Disk, KEY_FILES, MAIN_CONFIG, STATE_FILE};
use super::edit::{KeyFileMove, UserEdit, remove_agent_setting};
use super::fault::{END_OF_CALL, FaultKind, InjectedFault, RELOAD, RESTORE_SSHD, SAVE_STATE, WRITE_SETTING};
use super::keys;
use super::property::{Invariant, Violation};
use super::sshd::SimSshdConfig;

/// The platform's component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ComponentState {
    /// The oldest version that is new enough.
    Current,
    /// Slightly too old by numeric comparison, but not by string comparison.
    Outdated,
    /// Not installed.
    Missing,
}

/// One access of the agent. An edit makes a difference only before an access to the edited file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessPoint {
    /// Whether it reads or changes authorized_keys.
    pub keys: bool,
    /// Whether it reads or changes sshd's files.
    pub sshd: bool,
    /// The name of the call.
    pub name: &'static str,
}

/// The whole machine.
#[derive(Debug, Clone)]
pub struct SimulatedMachine {
    /// Its disk.
    pub disk: Disk,
    /// The configuration that the listener has read; `None` if no listener runs.
    pub running: Option<SimSshdConfig>,
    /// The installed component.
    pub component: ComponentState,
    /// Seconds since 1970.
    pub now: i64,
    /// The disk after the last finished command, with the user's edits since. A failure and a recovery must restore
    /// it.
    pub rest: Disk,
    /// Whether the user has edited any file on this path.
    pub edited: bool,
    /// Whether the user removed the agent's setting during a command. If that command was moving the setting from the
    /// drop-in to the top of the main file, the undo puts it back into the drop-in.
    pub setting_taken_midway: bool,
    /// The first violation.
    pub violation: Option<Violation>,
    /// The present call.
    pub call: CallRecord,
}

/// One call of the transaction: what to check during it, its fault, and its progress.
#[derive(Debug, Clone, Default)]
pub struct CallRecord {
    /// The fault during the call.
    pub fault: Option<InjectedFault>,
    /// The keys that may be in the files during the call, in addition to the previous one.
    pub asked: Vec<&'static str>,
    /// Whether it may leave root without any access. Only a detach may.
    pub is_detach: bool,
    /// Whether it is `undo`, which leaves only the user's own lines.
    pub is_undo: bool,
    /// Whether it is an attach that replaces a bound key. Then exactly one agent key is in the files at any time.
    pub replaces: bool,
    /// The steps so far. A step changes the machine.
    pub steps: Vec<&'static str>,
    /// The accesses so far, steps included. An edit may come between any two of them.
    pub looks: Vec<AccessPoint>,
    /// The configuration with which sshd ran when no command was in flight.
    pub running_at_rest: Option<SimSshdConfig>,
    /// Whether root's password gave access at the start of the call.
    pub had_password: bool,
    /// Whether the fault has struck.
    pub struck: bool,
    /// Whether the agent does not run any more. Then its calls have no effect.
    pub is_over: bool,
    /// The flag that a SIGTERM sets.
    pub stop: Arc<AtomicBool>,
}

impl CallRecord {
    /// Whether `undo` has removed everything from the state except an undelivered result.
    pub fn has_forgotten(&self, state: &State) -> bool {
        let mut rest = state.clone();
        rest.undelivered = None;
        self.is_undo && !rest.has_recorded_data()
    }

    /// Whether the user has edited a file during the call.
    fn has_edit(&self) -> bool {
        self.struck && self.fault.is_some_and(|fault| matches!(fault.what, FaultKind::Edit(_)))
    }
}

/// How a step begins.
pub enum StepStart {
    /// The step takes place.
    Proceed,
    /// The step fails.
    Fail,
    /// The step takes place, and then fails.
    FailLate,
    /// The agent does not run any more: nothing takes place.
    Aborted,
}

/// Whether root has access: through the running sshd, and through an sshd that would start now.
struct LoginPaths {
    running: bool,
    files: Option<bool>,
}

impl SimulatedMachine {
    /// A machine that has just started with this disk.
    pub fn new(disk: Disk) -> Self {
        let mut machine = Self {
            rest: disk.clone(),
            disk,
            running: None,
            component: ComponentState::Current,
            now: 0,
            edited: false,
            setting_taken_midway: false,
            violation: None,
            call: CallRecord::default(),
        };
        machine.boot();
        machine
    }

    /// A start of the machine. sshd reads its files, and exits if they are invalid.
    pub fn boot(&mut self) {
        self.running = self.read_config();
    }

    /// The settings in sshd's files; `None` if sshd would not start with them.
    pub fn read_config(&self) -> Option<SimSshdConfig> {
        SimSshdConfig::from_disk(&self.disk, "").ok()
    }

    /// Applies an edit by the user to the disk, and to the reference disk that must be restored. Exception: while an
    /// interrupted detach is open, the agent cannot know who removed its block. It restores the block until the
    /// detach is repeated.
    pub fn apply_edit(&mut self, edit: UserEdit) {
        self.setting_taken_midway |= edit == UserEdit::RemoveSetting && self.open_intent().is_some();
        let is_kept = self.has_open_detach() && !edit.is_environment_edit();
        let kept = KEY_FILES.map(|file| keys::split_key_file(self.rest.read_or_empty(file)).0).into_iter();
        let kept: Vec<(&str, Vec<u8>)> =
            KEY_FILES.into_iter().zip(kept).filter(|(_, kept)| is_kept && !kept.is_empty()).collect();
        edit.apply(&mut self.disk);
        edit.apply(&mut self.rest);
        for (file, kept) in kept {
            let users = keys::split_key_file(self.rest.read_or_empty(file)).1;
            self.rest.write_file(file, &[kept, users].concat());
        }
        self.edited = true;
    }

    /// Whether the intent of a detach is open that was not written by this call.
    pub fn has_open_detach(&self) -> bool {
        let is_detach = |intent: Intent| intent.command.outline.action == Some(ActionName::Detach);
        !self.call.steps.contains(&SAVE_STATE) && self.open_intent().is_some_and(is_detach)
    }

    /// Whether an edit may come between two calls. Two cases are excluded while an intent is open. A copy of the
    /// unfinished command's lines would belong to the user. A recovery leaves lines that are on an unmounted volume.
    pub fn can_edit(&self, edit: UserEdit) -> bool {
        let hides = matches!(
            edit,
            UserEdit::MoveHome(KeyFileMove::Moved | KeyFileMove::Copied) | UserEdit::ToggleVolume
        );
        let mut disk = self.disk.clone();
        edit.apply(&mut disk);
        disk != self.disk && !(hides && self.open_intent().is_some())
    }

    fn open_intent(&self) -> Option<Intent> {
        State::parse(self.disk.read(STATE_FILE)).ok().and_then(|state| state.intent)
    }

    /// Records an access by the agent. Returns false if the agent does not run any more.
    pub fn record_access(&mut self, look: AccessPoint) -> bool {
        if let Some(InjectedFault { at, what: FaultKind::Edit(edit), .. }) = self.call.fault
            && at == self.call.looks.len()
            && !self.call.is_over
        {
            self.call.struck = true;
            self.apply_edit(edit);
        }
        self.call.looks.push(look);
        !self.call.is_over
    }

    /// Begins a step of the agent.
    pub fn begin_step(&mut self, look: AccessPoint, path: Option<&str>) -> StepStart {
        if !self.record_access(look) {
            return StepStart::Aborted;
        }
        let number = self.call.steps.len();
        self.call.steps.push(look.name);
        let Some(InjectedFault { at, what, .. }) = self.call.fault.filter(|fault| fault.at == number) else {
            return StepStart::Proceed;
        };
        debug_assert_eq!(at, number);
        match what {
            FaultKind::PowerCut { temporary } => {
                if let (true, Some(path)) = (temporary, path) {
                    self.disk.leave_temp_file(path.as_ref());
                }
                self.crash(what);
                StepStart::Aborted
            }
            FaultKind::Kill => {
                self.crash(what);
                StepStart::Aborted
            }
            FaultKind::StepFailure => {
                self.call.struck = true;
                StepStart::Fail
            }
            FaultKind::LateFailure => {
                self.call.struck = true;
                StepStart::FailLate
            }
            FaultKind::Sigterm => {
                self.call.struck = true;
                self.call.stop.store(true, Ordering::Relaxed);
                StepStart::Proceed
            }
            FaultKind::Edit(_) => StepStart::Proceed,
        }
    }

    /// Ends a call. A crash or an edit may strike here too.
    pub fn end_call(&mut self) {
        self.check_late_edit();
        match self.call.fault {
            Some(InjectedFault { at, what, .. }) if what.is_crash() && at == self.call.steps.len() => {
                self.crash(what)
            }
            Some(InjectedFault { at, what: FaultKind::Edit(edit), .. }) if at == self.call.looks.len() => {
                self.apply_edit(edit)
            }
            _ => {}
        }
    }

    /// An edit during the call may remove the key just before passwords go off. The agent must notice an edit that
    /// comes before its last look at the key.
    fn check_late_edit(&mut self) {
        let Some(InjectedFault { at, what: FaultKind::Edit(_), .. }) = self.call.fault else { return };
        let is_change = |look: &AccessPoint| [WRITE_SETTING, RELOAD].contains(&look.name);
        let looks = self.call.looks.iter().take_while(|look| !is_change(look)).enumerate();
        let last = looks.filter(|(_, look)| look.keys).map(|(number, _)| number).last();
        let is_locked = self.call.had_password && !self.login_paths().running && !self.is_lockout_excused();
        if self.running.is_some() && self.call.struck && last.is_some_and(|last| at <= last) && is_locked {
            self.report_violation(
                Invariant::NeverLockedOut,
                "the running sshd takes no password at the end, and no key of root's",
            );
        }
    }

    fn crash(&mut self, what: FaultKind) {
        if self.call.is_over {
            return;
        }
        self.call.struck = true;
        self.call.is_over = true;
        // If the reload ended the listener and the agent is killed, sshd stays down: the agent no longer knows that a
        // listener ran. In the simulation, the person at the console starts sshd.
        if matches!(what, FaultKind::PowerCut { .. }) || self.running.is_none() {
            self.boot();
        }
    }

    /// Performs the effect of a step, and checks it.
    pub fn check_effect<R>(&mut self, effect: impl FnOnce(&mut Self) -> R) -> R {
        let before = self.login_paths();
        let had_key =
            KEY_FILES.iter().any(|file| !keys::agent_keys(self.disk.read_or_empty(file)).is_empty());
        let done = effect(self);
        let after = self.login_paths();
        let is_excused = self.is_lockout_excused() || self.call.has_edit();
        if before.running && !after.running && !is_excused {
            self.report_violation(
                Invariant::NeverLockedOut,
                "the running sshd takes no password now, and no key of root's",
            );
        }
        if before.files == Some(true) && after.files == Some(false) && !is_excused {
            self.report_violation(
                Invariant::NeverLockedOut,
                "an sshd that starts now takes no password, and no key of root's",
            );
        }
        self.check_files(had_key);
        done
    }

    /// Whether root can log in to the running sshd with a password.
    pub fn accepts_root_password(&self) -> bool {
        self.running.as_ref().is_some_and(|config| config.lets_in_by_password(self.disk.place))
    }

    fn login_paths(&self) -> LoginPaths {
        LoginPaths {
            running: self.running.as_ref().is_some_and(|config| config.lets_in(&self.disk)),
            files: self.read_config().map(|config| config.lets_in(&self.disk)),
        }
    }

    /// Whether the loss of access is allowed. The call is a detach; or root had no access before this command, also
    /// by an edit of the user; or `undo` leaves the user's own lines, which give no access.
    fn is_lockout_excused(&self) -> bool {
        let has_way = |disk: &Disk, running: Option<&SimSshdConfig>| {
            let files = SimSshdConfig::from_disk(disk, "").ok();
            running.or(files.as_ref()).is_some_and(|config| config.lets_in(disk))
        };
        let had_way = has_way(&self.rest, self.call.running_at_rest.as_ref()) && has_way(&self.rest, None);
        let mut his = self.disk.clone();
        remove_agent_setting(&mut his);
        let (_, keys) = keys::split_key_file(his.read_key_file());
        his.write_file(his.key_file(), &keys);
        self.call.is_detach || !had_way || self.call.is_undo && !has_way(&his, None)
    }

    /// The checks that hold for the files at any time.
    fn check_files(&mut self, had_key: bool) {
        let of_all = |disk: &Disk| -> Vec<Vec<u8>> {
            let keys = KEY_FILES.iter().flat_map(|file| keys::agent_keys(disk.read_or_empty(file)));
            keys.map(<[u8]>::to_vec).collect()
        };
        let (ours, before) = (of_all(&self.disk), of_all(&self.rest));
        let asked = |key: &Vec<u8>| {
            before.contains(key) || self.call.asked.iter().any(|asked| asked.as_bytes() == key.as_slice())
        };
        let users = |disk: &Disk| KEY_FILES.map(|file| keys::split_key_file(disk.read_or_empty(file)).1);
        let holds_two = |file: &&str| keys::agent_keys(self.disk.read_or_empty(file)).len() > 1;
        let is_intact = users(&self.disk) == users(&self.rest)
            && keys::split_main_file(self.disk.read_or_empty(MAIN_CONFIG)).1
                == keys::split_main_file(self.rest.read_or_empty(MAIN_CONFIG)).1;
        let found = if KEY_FILES.iter().any(holds_two) {
            Some((Invariant::NeverTwoKeys, "two keys of ours stand in authorized_keys"))
        } else if !ours.iter().all(asked) {
            Some((
                Invariant::NoUnrequestedKey,
                "a key of ours stands in authorized_keys that nobody asked for",
            ))
        } else if self.call.replaces && had_key && !before.is_empty() && ours.is_empty() {
            Some((Invariant::NeverTwoKeys, "neither the old key nor the new one stands in authorized_keys"))
        } else if !is_intact {
            Some((Invariant::UserBytesKept, "a byte of the user's is another"))
        } else {
            None
        };
        if let Some((property, what)) = found {
            self.report_violation(property, what);
        }
    }

    /// Records a violation, if it is the first.
    pub fn report_violation(&mut self, property: Invariant, what: impl Into<String>) {
        if self.violation.is_none() {
            self.violation = Some(Violation { property, what: what.into() });
        }
    }
}

/// The faults that may strike during a call with these steps and accesses, by kind.
pub fn list_faults(call: &CallRecord) -> Vec<InjectedFault> {
    let mut faults = Vec::new();
    let ends = call.steps.iter().copied().chain([END_OF_CALL]);
    for (at, step) in ends.enumerate() {
        let mut add = |what| faults.push(InjectedFault { at, step, what });
        // Between two steps nothing changes, so a crash there is the same as a crash before the second step.
        add(FaultKind::PowerCut { temporary: false });
        add(FaultKind::Kill);
        if step == END_OF_CALL {
            continue;
        }
        if ![RELOAD, RESTORE_SSHD].contains(&step) {
            add(FaultKind::PowerCut { temporary: true });
        }
        add(FaultKind::StepFailure);
        if [RELOAD, SAVE_STATE].contains(&step) {
            add(FaultKind::LateFailure);
        }
        add(FaultKind::Sigterm);
    }
    faults
}

/// The positions in a call where this edit makes a difference: before each access to the edited file. Before any
/// other access, it has the same effect as before the next one. At the end, it has the same effect as after the call.
pub fn list_edit_faults(call: &CallRecord, edit: UserEdit) -> Vec<InjectedFault> {
    if edit.is_environment_edit() {
        return Vec::new();
    }
    let is_seen = |look: &AccessPoint| if edit.is_key_file_edit() { look.keys } else { look.sshd };
    let looks = call.looks.iter().enumerate().filter(|(_, look)| is_seen(look));
    // Before the first access, the effect is the same as before the call.
    looks
        .skip(1)
        .map(|(at, look)| InjectedFault { at, step: look.name, what: FaultKind::Edit(edit) })
        .collect()
}
