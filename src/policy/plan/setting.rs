//! sshd's part of a draft: the changes to its files that make password login as requested (KP-6.11 and KP-6.12).

use std::path::Path;

use super::super::block::{self, BEGIN_MARKER, END_MARKER};
use super::super::content::SharedBytes;
use super::super::edit::{FileEdit, FileKind};
use super::super::observation::{ConfigTree, ReloadMethod, Sshd};
use super::super::outcome::{Reason, Refusal, Warning, WarningReason};
use super::super::sshd_config::{self, ParsedConfig, Place, Provenance};
use super::super::types::PasswordAuth;
use super::{DraftPlan, PlanInputs, PlanRequest, check_sshd_password_auth};

impl DraftPlan {
    /// Plans the edits of sshd's files, so that `password_auth` holds even if another program changes the files later.
    /// The agent also writes its lines if the setting already holds. Otherwise another program's line decides, and the
    /// agent does not know for how long. The agent accepts such a setting only if it cannot write its own lines.
    pub(super) fn plan_sshd_edits(
        &mut self,
        purpose: &PlanRequest<'_>,
        facts: &PlanInputs,
        password_auth: PasswordAuth,
    ) -> Result<(), Refusal> {
        let Some(sshd) = &facts.sshd else {
            return Err(Refusal::new(
                Reason::SshdNotFound,
                "there is no sshd whose setting could be changed",
            ));
        };
        let Some(first) = sshd.answers.first() else {
            return Err(Refusal::new(Reason::SshdNotFound, "sshd names no port on which it would listen"));
        };
        let desired = sshd_config::desired_directives(
            password_auth,
            purpose.kbd_interactive,
            &first.effective,
            &sshd.config,
        );
        let kbd = purpose.kbd_interactive;
        let satisfied = check_sshd_password_auth(password_auth, kbd, facts, sshd, &sshd.answers).is_ok()
            && (password_auth == PasswordAuth::Yes
                || sshd_config::forbids_passwords_globally(kbd, first, &ParsedConfig::from_sshd(sshd)));
        let current_places = sshd_config::managed_places(&sshd.config);
        let holds_desired = |place: &Place| {
            sshd_config::is_place_read(&sshd.config, place)
                && sshd_config::parse_managed_directives(&managed_text_at(sshd, place)) == desired
        };
        let is_owned = match current_places.as_slice() {
            [place] => {
                holds_desired(place)
                    && sshd_config::is_place_first(&sshd.config, place)
                    && has_managed_block_form(sshd, place)
            }
            _ => false,
        };
        self.already = satisfied;
        self.untouched = match current_places.as_slice() {
            [] => true,
            [place] => holds_desired(place),
            _ => false,
        };
        if satisfied && is_owned {
            return Ok(());
        }
        // A reload would also activate other edits. With `no`, the guard has checked these edits. With `yes`, they may
        // lock the user out.
        let edit_may_be_pending = sshd.running && sshd.has_read_its_files != Some(true);
        if satisfied && edit_may_be_pending && password_auth == PasswordAuth::Yes {
            return self.warn_setting_not_owned(
                "an edit of sshd's files may wait for a reload; reload sshd, and try again",
            );
        }
        let placement =
            match (purpose.not_owned, sshd_config::choose_placement(&sshd.config, sshd.main_is_writable)) {
                (Some(why), _) if satisfied => return self.warn_setting_not_owned(why),
                (_, Err(refusal)) if satisfied => return self.warn_setting_not_owned(&refusal.message),
                (_, placement) => placement?,
            };
        let place = placement.place;
        let take_back = build_revert_command(&place, sshd, &desired);
        let provenance =
            Provenance { when: purpose.when, command_id: purpose.command_id, revert_command: &take_back };
        self.ahead = Some(desired.iter().map(|(keyword, value)| format!("{keyword} {value}\n")).collect());
        match &place {
            Place::DropIn(path) => {
                let before = sshd.config.files.get(path).map(Vec::as_slice);
                let drop_in_holds_desired = |before| {
                    sshd_config::parse_managed_directives(&managed_text_at(sshd, &place)) == desired
                        && sshd_config::starts_with_managed_directive(before)
                };
                if !before.is_some_and(drop_in_holds_desired) {
                    let text = sshd_config::render_drop_in(&desired, &provenance);
                    self.sshd_edits.extend(FileEdit::edit_drop_in(path, before, Some(text)));
                }
            }
            Place::TopBlock(path) => {
                // The edit moves a block with the same directives to the top of the file, and rewrites a block that
                // has another form.
                let main = sshd.config.files.get(path).cloned().map(SharedBytes::from);
                let block = sshd_config::render_block(&desired, &provenance).into_bytes();
                self.sshd_edits.extend(FileEdit::edit_block(path, FileKind::SshdConfig, main, block));
            }
        }
        let stale = placement.stale.iter().filter_map(|stale| removal_edit(&sshd.config, stale));
        self.sshd_edits.extend(stale);
        Ok(())
    }
}

impl DraftPlan {
    /// Warns that sshd does what the command requests, but not because of a setting of the agent.
    fn warn_setting_not_owned(&mut self, why: &str) -> Result<(), Refusal> {
        let message = format!(
            "sshd does what was asked, but not by a setting of the agent's own, which whoever writes sshd's configuration later \
             could not undo: {why}"
        );
        self.warnings.push(Warning::new(WarningReason::SettingNotOwned, message));
        Ok(())
    }
}

/// Returns true if the agent's block has the form that programs which edit the main file line by line do not
/// recognize.
fn has_managed_block_form(sshd: &Sshd, place: &Place) -> bool {
    match place {
        Place::DropIn(_) => true,
        Place::TopBlock(_) => sshd_config::has_block_form(&managed_text_at(sshd, place)),
    }
}

/// Returns the agent's text at a place.
fn managed_text_at(sshd: &Sshd, place: &Place) -> Vec<u8> {
    let content = sshd.config.files.get(place.file()).map(Vec::as_slice).unwrap_or_default();
    match place {
        Place::DropIn(_) => block::join_segments(&sshd_config::find_managed_in_drop_in(content)),
        Place::TopBlock(_) => block::join_segments(&sshd_config::find_managed_in_main(content)),
    }
}

/// Returns the edit that removes the agent's text from a place.
pub(super) fn removal_edit(config: &ConfigTree, place: &Place) -> Option<FileEdit> {
    match place {
        Place::DropIn(path) => {
            let before = config.files.get(path)?;
            FileEdit::edit_drop_in(path, Some(before), None)
        }
        Place::TopBlock(path) => {
            let main = config.files.get(path).cloned().map(SharedBytes::from);
            FileEdit::edit_block(path, FileKind::SshdConfig, main, Vec::new())
        }
    }
}

/// Returns the shell command that reverts the setting without this program.
fn build_revert_command(place: &Place, sshd: &Sshd, desired: &[(String, String)]) -> String {
    let holds_only_managed = |path: &Path| {
        sshd.config.files.get(path).is_none_or(|before| sshd_config::has_only_managed_lines(before))
    };
    let away = match place {
        Place::DropIn(path) if holds_only_managed(path) => format!("rm '{}'", path.display()),
        // A user's lines follow the agent's lines, so the file must stay.
        Place::DropIn(path) => {
            let last =
                desired.last().map(|(keyword, value)| format!("{keyword} {value}")).unwrap_or_default();
            let from = sshd_config::COMMENT_PREFIX.trim_end();
            format!("sed -i '/^{from} written/,/^{last}$/d' '{}'", path.display())
        }
        Place::TopBlock(path) => {
            format!("sed -i '/^{}/,/^{}/d' '{}'", BEGIN_MARKER, END_MARKER, path.display())
        }
    };
    match &sshd.reload {
        ReloadMethod::Unit(unit) => format!("{away} && systemctl reload {unit}"),
        ReloadMethod::SocketUnit(unit) => format!("{away} && systemctl try-restart {unit}"),
        ReloadMethod::Pid { .. } => format!("{away}, then send SIGHUP to the sshd listener"),
        ReloadMethod::None(_) => away,
    }
}
