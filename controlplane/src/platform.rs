//! What both faces share.

use std::sync::Arc;
use std::time::Duration;

use crate::inventory::Inventory;
use crate::shutdown::Shutdown;
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
    /// Ends what waits.
    pub shutdown: Shutdown,
}
