//! `plan FILE`: shows as a diff what `apply` would do. It changes nothing.

use crate::config::Config;
use crate::policy::command::Origin;
use crate::policy::observation::ReloadMethod;
use crate::policy::outcome::{MAX_WARNINGS, limit_warnings};
use crate::policy::plan::Plan;
use crate::transaction::perform::{Execution, PlanPreview};

use super::arguments::CommandSource;
use super::{EXIT_FAILED, EXIT_OK, apply, diff};

/// `plan FILE`.
pub(super) fn plan(config: &Config, source: &CommandSource) -> u8 {
    let bytes = match apply::read_command(source) {
        Ok(bytes) => bytes,
        Err(why) => return apply::print_failure(&why),
    };
    match super::open_engine(config).plan_command(&bytes, Origin::Console) {
        Err(failure) => apply::print_failure(&failure.to_string()),
        Ok(PlanPreview::Refused(outcome)) => {
            super::print(&format!("{}\n", outcome.to_json()));
            EXIT_FAILED
        }
        Ok(PlanPreview::Repeated(answered)) => apply::print_execution(Execution::Completed(answered)),
        Ok(PlanPreview::Plan(plan)) => {
            super::print_bytes(&render_plan(&plan));
            EXIT_OK
        }
    }
}

fn render_plan(plan: &Plan) -> Vec<u8> {
    let mut text = Vec::new();
    for edit in plan.key_edits.iter().chain(&plan.sshd_edits) {
        text.extend_from_slice(&diff::render_diff(edit));
    }
    for label in plan.key_labels.iter().chain(&plan.sshd_labels) {
        text.extend_from_slice(format!("# {}\n", label.describe_plan()).as_bytes());
    }
    let last = match &plan.reload {
        Some(reload) => format!("# then: {}\n", reload_command_text(reload)),
        None if plan.changes_files() => {
            "# sshd is not touched: it reads authorized_keys at each login\n".to_owned()
        }
        None if plan.changes_files_or_labels() => String::new(),
        None => "# nothing has to be changed\n".to_owned(),
    };
    text.extend_from_slice(last.as_bytes());
    for warning in limit_warnings(plan.warnings.clone(), MAX_WARNINGS) {
        text.extend_from_slice(format!("# warning: {}\n", warning.message).as_bytes());
    }
    text
}

/// Names the command that makes a changed configuration live.
fn reload_command_text(reload: &ReloadMethod) -> String {
    match reload {
        ReloadMethod::Unit(unit) => format!("systemctl reload {unit}"),
        ReloadMethod::SocketUnit(unit) => {
            format!("systemctl reset-failed {unit}; systemctl try-restart {unit}")
        }
        ReloadMethod::Pid { pid, .. } => format!("SIGHUP to sshd, pid {pid}"),
        ReloadMethod::None(found) => format!("no reload: {found}"),
    }
}
