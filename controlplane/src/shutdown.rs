//! The end of the service, told to everything that waits.

use tokio::sync::watch;

/// Tells every [`Shutdown`] that the end has come.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

impl ShutdownTrigger {
    /// Ends every wait.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

/// Lets a wait end when the service does.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// A trigger and what listens to it.
    pub fn channel() -> (ShutdownTrigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownTrigger(sender), Self(receiver))
    }

    /// Returns once the end has come; at once where it already has.
    pub async fn begun(&self) {
        let mut receiver = self.0.clone();
        // An error means that the trigger is gone, and the service with it.
        let _ = receiver.wait_for(|ended| *ended).await;
    }
}
