//! `plan FILE`: what `apply` would do, as a diff; nothing is changed.

use crate::config::Config;
use crate::policy::command::Origin;
use crate::policy::observation::Reload;
use crate::policy::outcome::{WARNINGS_MAX, limited};
use crate::policy::plan::Plan;
use crate::transaction::perform::{Performed, Planned};

use super::arguments::Source;
use super::{FAILED, OK, apply, diff};

/// `plan FILE`.
pub(super) fn plan(config: &Config, source: &Source) -> u8 {
    let bytes = match apply::read(source) {
        Ok(bytes) => bytes,
        Err(why) => return apply::fail(&why),
    };
    match super::transaction(config).plan(&bytes, Origin::Console) {
        Err(failure) => apply::fail(&failure.to_string()),
        Ok(Planned::Refused(outcome)) => {
            super::print(&format!("{}\n", outcome.to_json()));
            FAILED
        }
        Ok(Planned::Repeated(answered)) => apply::show(Performed::Answered(answered)),
        Ok(Planned::Plan(plan)) => {
            super::print_bytes(&text(&plan));
            OK
        }
    }
}

fn text(plan: &Plan) -> Vec<u8> {
    let mut text = Vec::new();
    for edit in plan.key_edits.iter().chain(&plan.sshd_edits) {
        text.extend_from_slice(&diff::of(edit));
    }
    for label in plan.key_labels.iter().chain(&plan.sshd_labels) {
        text.extend_from_slice(format!("# {}\n", label.planned()).as_bytes());
    }
    let last = match &plan.reload {
        Some(reload) => format!("# then: {}\n", live(reload)),
        None if plan.changes_files() => {
            "# sshd is not touched: it reads authorized_keys at each login\n".to_owned()
        }
        None if plan.touches_files() => String::new(),
        None => "# nothing has to be changed\n".to_owned(),
    };
    text.extend_from_slice(last.as_bytes());
    for warning in limited(plan.warnings.clone(), WARNINGS_MAX) {
        text.extend_from_slice(format!("# warning: {}\n", warning.message).as_bytes());
    }
    text
}

/// How a changed configuration is made live, in words.
fn live(reload: &Reload) -> String {
    match reload {
        Reload::Unit(unit) => format!("systemctl reload {unit}"),
        Reload::SocketUnit(unit) => format!("systemctl reset-failed {unit}; systemctl try-restart {unit}"),
        Reload::Pid { pid, .. } => format!("SIGHUP to sshd, pid {pid}"),
        Reload::None(found) => format!("no reload: {found}"),
    }
}
