//! Whether the channel's commands must be signed, who may sign them, and whether a command is signed (KP-3.38 to
//! KP-3.40).

use std::path::Path;

use crate::guest::Guest;
use crate::policy::allowed_signers::{AllowedSigners, Signer, SignerValidity};
use crate::policy::command::{Origin, ReceivedCommand};
use crate::policy::local_time::LocalTimeZone;
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::signature::{SIGNATURE_NAMESPACE, SignatureCheck};

use super::Engine;
use super::judge::Admission;

/// The guest's time zone, localtime(5). `$TZ` is ignored: a service has none.
const LOCALTIME: &str = "/etc/localtime";

impl<G: Guest> Engine<G> {
    /// The file of the signers for commands of this origin; `None` if these commands need no signature.
    pub(super) fn required_signers_file(&self, origin: Origin) -> Option<&Path> {
        match origin {
            Origin::Channel => self.settings.trusted_signers.as_deref(),
            Origin::Console => None,
        }
    }

    /// The allowed signers, read anew at each call.
    ///
    /// # Errors
    /// If the file is not usable: it is missing, others can change it, or a line has an error. One line with cause
    /// and remedy.
    pub fn read_allowed_signers(&self, path: &Path) -> Result<AllowedSigners, String> {
        let content =
            self.guest.read_root_owned_file(path).map_err(|error| error.to_string())?.ok_or_else(|| {
                format!(
                    "{}: no such file; create it, or correct trusted_signers in the configuration",
                    path.display()
                )
            })?;
        let zone = match self.guest.read_root_owned_file(Path::new(LOCALTIME)) {
            Ok(content) => {
                LocalTimeZone::from_localtime(content.as_deref()).map_err(|why| format!("{LOCALTIME}: {why}"))
            }
            Err(error) => Err(error.to_string()),
        };
        AllowedSigners::parse(&content, path, &zone).map_err(|fault| fault.to_string())
    }

    /// How many of the signers may sign commands now, and which of them may not.
    ///
    /// # Errors
    /// If none of them may sign. One line with cause and remedy.
    pub fn count_valid_signers<'s>(
        &self,
        signers: &'s AllowedSigners,
    ) -> Result<(usize, Vec<&'s Signer>), String> {
        let now = self.guest.now();
        let (may, invalid): (Vec<&Signer>, Vec<&Signer>) = signers
            .signers
            .iter()
            .partition(|signer| signer.validity(SIGNATURE_NAMESPACE, Some(now)) == SignerValidity::Valid);
        match may.len() {
            0 => Err(format!(
                "nobody listed in {} may sign now; list a signer who may",
                signers.path.display()
            )),
            count => Ok((count, invalid)),
        }
    }

    /// Whether a signer who may sign now has signed the command. If the clock is not set, the decision may have to
    /// wait.
    pub(super) fn verify_command_signature(&self, received: &ReceivedCommand, signers: &Path) -> Admission {
        let bad = |why: String| Admission::Reject(Refusal::new(Reason::BadSignature, why));
        let Some(envelope) = &received.envelope else {
            return bad(
                "the command is not signed, and signed ones alone are obeyed here (trusted_signers)".into()
            );
        };
        let signers = match self.read_allowed_signers(signers) {
            Ok(signers) => signers,
            Err(why) => {
                return bad(format!("no command is obeyed, since it is not known who may sign: {why}"));
            }
        };
        match envelope.verify_signature(&signers, self.current_time_if_set()) {
            SignatureCheck::Valid => Admission::Accept,
            SignatureCheck::Invalid(why) => bad(format!("the command's signature does not count: {why}")),
            SignatureCheck::TimeNeeded => self.defer_until_clock_set("whether its signer may sign now"),
        }
    }
}
