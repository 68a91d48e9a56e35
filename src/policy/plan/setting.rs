//! sshd's side of a draft: which of its files change so that password login is as asked (contract 6, "What is set"
//! and "Where").

use super::super::block::{BEGIN, END};
use super::super::content::Content;
use super::super::edit::{FileEdit, FileKind};
use super::super::observation::{ConfigTree, Reload, Sshd};
use super::super::outcome::{Reason, Refusal};
use super::super::sshd_config::{self, Place, Provenance, Reading};
use super::super::types::PasswordAuth;
use super::{Draft, Facts, Purpose, judge_setting};

impl Draft {
    /// sshd's side: what has to be written so that `password_auth` holds.
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
        let as_desired = match standing.as_slice() {
            [] => true,
            [place] if !sshd_config::is_read(&sshd.config, place) => false,
            [place] => sshd_config::directives_of_ours(&ours_at(sshd, place)) == desired,
            _ => false,
        };
        if satisfied && as_desired {
            return Ok(());
        }
        let placement = sshd_config::placement(&sshd.config, sshd.main_is_writable)?;
        let place = placement.place;
        let take_back = take_back(&place, &sshd.reload);
        let provenance =
            Provenance { when: purpose.when, command_id: purpose.command_id, take_back: &take_back };
        self.ahead = Some(desired.iter().map(|(keyword, value)| format!("{keyword} {value}\n")).collect());
        match &place {
            Place::DropIn(path) => {
                let before = sshd.config.files.get(path).map(Vec::as_slice);
                if before.is_none_or(|before| sshd_config::directives_of_ours(before) != desired) {
                    let text = sshd_config::render(&desired, &provenance);
                    self.sshd_edits.push(FileEdit::whole(path, before, Some(text)));
                }
            }
            Place::TopBlock(path) => {
                // A block with the same directives at another place than the top is moved there.
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

/// What stands of ours at a place.
fn ours_at(sshd: &Sshd, place: &Place) -> Vec<u8> {
    match place {
        Place::DropIn(path) => sshd.config.files.get(path).cloned().unwrap_or_default(),
        Place::TopBlock(path) => {
            let content = sshd.config.files.get(path).map(Vec::as_slice).unwrap_or_default();
            FileKind::SshdConfig.ours(content).into_iter().flat_map(|segment| segment.bytes).collect()
        }
    }
}

/// The edit that takes ours out of a place.
pub(super) fn removal(config: &ConfigTree, place: &Place) -> Option<FileEdit> {
    match place {
        Place::DropIn(path) => {
            let before = config.files.get(path)?;
            Some(FileEdit::whole(path, Some(before), None))
        }
        Place::TopBlock(path) => {
            let main = config.files.get(path).cloned().map(Content::from);
            FileEdit::block(path, FileKind::SshdConfig, main, Vec::new())
        }
    }
}

/// The line of shell that takes the setting back without this program.
fn take_back(place: &Place, reload: &Reload) -> String {
    let away = match place {
        Place::DropIn(path) => format!("rm '{}'", path.display()),
        Place::TopBlock(path) => {
            format!("sed -i '/^{}/,/^{}/d' '{}'", BEGIN, END, path.display())
        }
    };
    match reload {
        Reload::Unit(unit) => format!("{away} && systemctl reload {unit}"),
        Reload::SocketUnit(unit) => format!("{away} && systemctl try-restart {unit}"),
        Reload::Pid { .. } => format!("{away}, then send SIGHUP to the sshd listener"),
        Reload::None(_) => away,
    }
}
