//! Whether the channel's commands must be signed, by whom, and whether one is (KP-3.38 to KP-3.40).

use std::path::Path;

use crate::guest::Guest;
use crate::policy::allowed_signers::{AllowedSigners, Signer, Standing};
use crate::policy::command::{Origin, Received};
use crate::policy::local_time::Zone;
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::signature::{NAMESPACE, Verdict};

use super::Transaction;
use super::judge::Judgement;

/// The guest's time zone, localtime(5). `$TZ` is not looked at: a service has none.
const LOCALTIME: &str = "/etc/localtime";

impl<G: Guest> Transaction<G> {
    /// The file of those whose signature a command of this origin must bear; `None` where it needs none.
    pub(super) fn signers_for(&self, origin: Origin) -> Option<&Path> {
        match origin {
            Origin::Channel => self.settings.trusted_signers.as_deref(),
            Origin::Console => None,
        }
    }

    /// Who may sign, read afresh.
    ///
    /// # Errors
    /// Why the file says nothing: it is missing, others can change it, a line is faulty. Cause and remedy in one line.
    pub fn signers(&self, path: &Path) -> Result<AllowedSigners, String> {
        let content = self.guest.root_file(path).map_err(|error| error.to_string())?.ok_or_else(|| {
            format!(
                "{}: no such file; create it, or correct trusted_signers in the configuration",
                path.display()
            )
        })?;
        let zone = match self.guest.root_file(Path::new(LOCALTIME)) {
            Ok(content) => Zone::of(content.as_deref()).map_err(|why| format!("{LOCALTIME}: {why}")),
            Err(error) => Err(error.to_string()),
        };
        AllowedSigners::parse(&content, path, &zone).map_err(|fault| fault.to_string())
    }

    /// Who of them may sign commands now, and who may not.
    ///
    /// # Errors
    /// That nobody may; cause and remedy in one line.
    pub fn may_sign_now<'s>(&self, signers: &'s AllowedSigners) -> Result<(usize, Vec<&'s Signer>), String> {
        let now = self.guest.now();
        let (may, may_not): (Vec<&Signer>, Vec<&Signer>) = signers
            .signers
            .iter()
            .partition(|signer| signer.standing(NAMESPACE, Some(now)) == Standing::Valid);
        match may.len() {
            0 => Err(format!(
                "nobody listed in {} may sign now; list a signer who may",
                signers.path.display()
            )),
            count => Ok((count, may_not)),
        }
    }

    /// Whether a command bears the signature of one who may sign now. While the clock is not set that may depend on it.
    pub(super) fn authenticate(&self, received: &Received, signers: &Path) -> Judgement {
        let bad = |why: String| Judgement::Refuse(Refusal::new(Reason::BadSignature, why));
        let Some(envelope) = &received.envelope else {
            return bad(
                "the command is not signed, and signed ones alone are obeyed here (trusted_signers)".into()
            );
        };
        let signers = match self.signers(signers) {
            Ok(signers) => signers,
            Err(why) => {
                return bad(format!("no command is obeyed, since it is not known who may sign: {why}"));
            }
        };
        match envelope.judge(&signers, self.clock()) {
            Verdict::Good => Judgement::Obey,
            Verdict::Bad(why) => bad(format!("the command's signature does not count: {why}")),
            Verdict::TimeNeeded => self.try_later("whether its signer may sign now"),
        }
    }
}
