//! sshd's side of a draft: which of its files change so that password login is as asked (KP-6.11 and
//! KP-6.12).

use std::path::Path;

use super::super::block::{self, BEGIN, END};
use super::super::content::Content;
use super::super::edit::{FileEdit, FileKind};
use super::super::observation::{ConfigTree, Reload, Sshd};
use super::super::outcome::{Reason, Refusal, Warning, WarningReason};
use super::super::sshd_config::{self, Place, Provenance, Reading};
use super::super::types::PasswordAuth;
use super::{Draft, Facts, Purpose, judge_setting};

impl Draft {
    /// sshd's side: what has to be written so that `password_auth` holds, whoever writes later. Also where it holds already:
    /// by whose line, and for how long, nobody can tell. Only where ours cannot be written it is left at that.
    pub(super) fn set(
        &mut self,
        purpose: &Purpose<'_>,
        facts: &Facts,
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
        let desired =
            sshd_config::desired(password_auth, purpose.kbd_interactive, &first.effective, &sshd.config);
        let kbd = purpose.kbd_interactive;
        let satisfied = judge_setting(password_auth, kbd, facts, sshd, &sshd.answers).is_ok()
            && (password_auth == PasswordAuth::Yes
                || sshd_config::forbids_all(kbd, first, &Reading::of(sshd)));
        let standing = sshd_config::taken(&sshd.config);
        let stands = |place: &Place| {
            sshd_config::is_read(&sshd.config, place)
                && sshd_config::directives_of_ours(&ours_at(sshd, place)) == desired
        };
        let is_owned = match standing.as_slice() {
            [place] => {
                stands(place) && sshd_config::is_first(&sshd.config, place) && has_its_form(sshd, place)
            }
            _ => false,
        };
        self.already = satisfied;
        self.untouched = match standing.as_slice() {
            [] => true,
            [place] => stands(place),
            _ => false,
        };
        if satisfied && is_owned {
            return Ok(());
        }
        // A reload would make other edits live as well. With `no` the guard has judged them; with `yes` they may be what shuts out.
        let may_wait = sshd.running && sshd.has_read_its_files != Some(true);
        if satisfied && may_wait && password_auth == PasswordAuth::Yes {
            return self.leave_it_at_that(
                "an edit of sshd's files may wait for a reload; reload sshd, and try again",
            );
        }
        let placement = match (purpose.not_owned, sshd_config::placement(&sshd.config, sshd.main_is_writable))
        {
            (Some(why), _) if satisfied => return self.leave_it_at_that(why),
            (_, Err(refusal)) if satisfied => return self.leave_it_at_that(&refusal.message),
            (_, placement) => placement?,
        };
        let place = placement.place;
        let take_back = take_back(&place, sshd, &desired);
        let provenance =
            Provenance { when: purpose.when, command_id: purpose.command_id, take_back: &take_back };
        self.ahead = Some(desired.iter().map(|(keyword, value)| format!("{keyword} {value}\n")).collect());
        match &place {
            Place::DropIn(path) => {
                let before = sshd.config.files.get(path).map(Vec::as_slice);
                let stands = |before| {
                    sshd_config::directives_of_ours(&ours_at(sshd, &place)) == desired
                        && sshd_config::ours_comes_first(before)
                };
                if !before.is_some_and(stands) {
                    let text = sshd_config::render(&desired, &provenance);
                    self.sshd_edits.extend(FileEdit::drop_in(path, before, Some(text)));
                }
            }
            Place::TopBlock(path) => {
                // A block with the same directives at another place than the top is moved there, one in another form rewritten.
                let main = sshd.config.files.get(path).cloned().map(Content::from);
                let block = sshd_config::render_block(&desired, &provenance).into_bytes();
                self.sshd_edits.extend(FileEdit::block(path, FileKind::SshdConfig, main, block));
            }
        }
        let stale = placement.stale.iter().filter_map(|stale| removal(&sshd.config, stale));
        self.sshd_edits.extend(stale);
        Ok(())
    }
}

impl Draft {
    /// sshd does what is asked, and not by a setting of ours.
    fn leave_it_at_that(&mut self, why: &str) -> Result<(), Refusal> {
        let message = format!(
            "sshd does what was asked, but not by a setting of the agent's own, which whoever writes sshd's configuration later \
             could not undo: {why}"
        );
        self.warnings.push(Warning::new(WarningReason::SettingNotOwned, message));
        Ok(())
    }
}

/// Whether ours has the form that keeps what edits the main file line by line away from it.
fn has_its_form(sshd: &Sshd, place: &Place) -> bool {
    match place {
        Place::DropIn(_) => true,
        Place::TopBlock(_) => sshd_config::is_in_form_of_block(&ours_at(sshd, place)),
    }
}

/// What stands of ours at a place.
fn ours_at(sshd: &Sshd, place: &Place) -> Vec<u8> {
    let content = sshd.config.files.get(place.file()).map(Vec::as_slice).unwrap_or_default();
    match place {
        Place::DropIn(_) => block::joined(&sshd_config::ours_in_drop_in(content)),
        Place::TopBlock(_) => block::joined(&sshd_config::ours_in_main(content)),
    }
}

/// The edit that takes ours out of a place.
pub(super) fn removal(config: &ConfigTree, place: &Place) -> Option<FileEdit> {
    match place {
        Place::DropIn(path) => {
            let before = config.files.get(path)?;
            FileEdit::drop_in(path, Some(before), None)
        }
        Place::TopBlock(path) => {
            let main = config.files.get(path).cloned().map(Content::from);
            FileEdit::block(path, FileKind::SshdConfig, main, Vec::new())
        }
    }
}

/// The line of shell that takes the setting back without this program.
fn take_back(place: &Place, sshd: &Sshd, desired: &[(String, String)]) -> String {
    let is_ours_alone =
        |path: &Path| sshd.config.files.get(path).is_none_or(|before| sshd_config::is_ours_alone(before));
    let away = match place {
        Place::DropIn(path) if is_ours_alone(path) => format!("rm '{}'", path.display()),
        // Others' lines stand behind ours.
        Place::DropIn(path) => {
            let last =
                desired.last().map(|(keyword, value)| format!("{keyword} {value}")).unwrap_or_default();
            let from = sshd_config::COMMENT.trim_end();
            format!("sed -i '/^{from} written/,/^{last}$/d' '{}'", path.display())
        }
        Place::TopBlock(path) => {
            format!("sed -i '/^{}/,/^{}/d' '{}'", BEGIN, END, path.display())
        }
    };
    match &sshd.reload {
        Reload::Unit(unit) => format!("{away} && systemctl reload {unit}"),
        Reload::SocketUnit(unit) => format!("{away} && systemctl try-restart {unit}"),
        Reload::Pid { .. } => format!("{away}, then send SIGHUP to the sshd listener"),
        Reload::None(_) => away,
    }
}
