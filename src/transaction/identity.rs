//! The identity of this instance (KP-3.5, KP-3.43 and KP-7.10): the id from the configuration or the network, and the
//! machine on which the agent learned it.

use std::path::Path;

use crate::guest::Guest;
use crate::policy::machine::MachineId;
use crate::policy::types::InstanceId;

use super::state::{Adoption, State};
use super::{Engine, EngineError, EngineSettings};

/// The DMI product UUID, which only root can read.
const PRODUCT_UUID_PATH: &str = "/sys/class/dmi/id/product_uuid";

/// Used if there is no DMI product UUID: machine-id(5).
const MACHINE_ID_PATH: &str = "/etc/machine-id";

impl EngineSettings {
    /// The id of this instance: from the configuration, otherwise from the state.
    pub fn effective_instance_id<'a>(&'a self, state: &'a State) -> Option<&'a InstanceId> {
        self.instance_id.as_ref().or(state.instance_id.as_ref())
    }
}

impl<G: Guest> Engine<G> {
    /// Takes `id` as the id of this instance. The state of a clone starts anew. If the id cannot be stored now, the
    /// next command stores it. If an id from the network is refused, that is not an error: the known id stays, and
    /// the log says so.
    ///
    /// # Errors
    /// If the state cannot be read or written.
    pub fn adopt_instance_id(&mut self, id: &InstanceId) -> Result<(), EngineError> {
        self.adopted = Some(id.clone());
        let _lock = self.guest.lock()?;
        let mut state = self.load()?;
        if self.apply_adopted_id(&mut state) == Adoption::Adopted {
            self.save(&state)?;
        }
        Ok(())
    }

    /// Stores the instance id that the daemon learned. The state may have been lost since then, or locked at that
    /// time.
    pub(super) fn apply_adopted_id(&mut self, state: &mut State) -> Adoption {
        let Some(id) = &self.adopted else { return Adoption::Known };
        // If commands are signed, the network must not decide the identity. The configuration always may.
        let is_from_network = self.settings.instance_id.as_ref() != Some(id);
        let requires_new_machine = self.settings.trusted_signers.is_some() && is_from_network;
        let adoption = state.adopt_instance_id(id, self.read_machine_id().as_ref(), requires_new_machine);
        if adoption == Adoption::Refused {
            let known = state.instance_id.clone();
            tracing::error!(
                instance = known.as_ref().map(InstanceId::as_str),
                "the metadata service says that this is {id}, and the machine is the one that is {}, which it stays; where \
                 it has become another, set instance_id in the configuration",
                known.as_ref().map_or("known", InstanceId::as_str)
            );
            self.adopted = known;
        }
        adoption
    }

    /// The id of this machine, if it can be read.
    fn read_machine_id(&self) -> Option<MachineId> {
        let read = |path: &str| match self.guest.read_root_owned_file(Path::new(path)) {
            Ok(content) => content,
            Err(error) => {
                if self.settings.trusted_signers.is_some() {
                    tracing::warn!("what tells this machine from a copy of it is not read: {error}");
                }
                None
            }
        };
        let product_uuid = read(PRODUCT_UUID_PATH);
        MachineId::from_uuids(product_uuid.as_deref(), None)
            .or_else(|| MachineId::from_uuids(None, read(MACHINE_ID_PATH).as_deref()))
    }
}
