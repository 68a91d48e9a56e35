//! The end of the service, told to everything that waits.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// The signals that tell a process to end: SIGTERM and SIGINT.
#[derive(Debug)]
pub struct TerminationSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl TerminationSignals {
    /// Catches them from now on.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn register() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns with the next one.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

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
    pub async fn triggered(&self) {
        let mut receiver = self.0.clone();
        // An error means that the trigger is gone, and the service with it.
        let _ = receiver.wait_for(|ended| *ended).await;
    }
}
