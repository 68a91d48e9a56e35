//! Notifies waiting calls of changes to an instance.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use keypair_agent::policy::types::InstanceId;
use tokio::sync::watch;

/// One counter per instance. It increases with each change of the instance.
#[derive(Debug, Default)]
pub(super) struct ChangeNotifier(Mutex<HashMap<InstanceId, watch::Sender<u64>>>);

impl ChangeNotifier {
    /// Returns a receiver that sees every later change of the instance.
    pub(super) fn subscribe(&self, instance: &InstanceId) -> watch::Receiver<u64> {
        let mut senders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        senders.entry(instance.clone()).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    /// Reports a change of one instance.
    pub(super) fn notify(&self, instance: &InstanceId) {
        let senders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = senders.get(instance) {
            sender.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Reports a possible change of any instance.
    pub(super) fn notify_all(&self) {
        for sender in self.0.lock().unwrap_or_else(PoisonError::into_inner).values() {
            sender.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}
