//! What both faces share.

use std::sync::Arc;
use std::time::Duration;

use crate::inventory::Inventory;
use crate::shutdown::Shutdown;
use crate::signing::SigningKey;
use crate::store::Store;

/// What both faces share; cheap to clone.
#[derive(Clone)]
pub struct Platform {
    /// Key pairs, bindings, commands and results.
    pub store: Arc<dyn Store>,
    /// The instances there are.
    pub inventory: Arc<Inventory>,
    /// How long an attach or detach waits for its running guests.
    pub attach_wait: Duration,
    /// What commands are signed with as they are handed out; `None`: they go out unsigned.
    pub signing_key: Option<Arc<SigningKey>>,
    /// Ends what waits.
    pub shutdown: Shutdown,
}
