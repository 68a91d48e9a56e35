//! What both faces share.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use crate::access_keys::AccessKeys;
use crate::inventory::{Instance, Inventory, Status};
use crate::lifecycle;
use crate::shutdown::Shutdown;
use crate::signing::SigningKey;
use crate::store::{Store, StoreError};

/// What both faces share; cheap to clone.
#[derive(Clone)]
pub struct Platform {
    /// Key pairs, bindings, commands and results.
    pub store: Arc<dyn Store>,
    /// The instances there are.
    pub inventory: Arc<Inventory>,
    /// Who may call the API; `None`: everybody.
    pub access_keys: Option<Arc<AccessKeys>>,
    /// How long an attach or detach waits for its running guests.
    pub attach_wait: Duration,
    /// What commands are signed with as they are handed out; `None`: they go out unsigned.
    pub signing_key: Option<Arc<SigningKey>>,
    /// Ends what waits.
    pub shutdown: Shutdown,
}

impl Platform {
    /// The state that an instance is in now.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn status(&self, instance: &Instance) -> Result<Status, StoreError> {
        let state = self.store.state(&instance.id).await?;
        Ok(lifecycle::status_by(instance, state.as_ref(), OffsetDateTime::now_utc()))
    }
}
