//! Shutdown of the service: the signals, and the notification of all waiting tasks.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// The signals that end the process: SIGTERM and SIGINT.
#[derive(Debug)]
pub struct TerminationSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl TerminationSignals {
    /// Installs the signal handlers.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn register() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of the two signals.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Notifies every [`Shutdown`] of the shutdown.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

impl ShutdownTrigger {
    /// Starts the shutdown, which ends every wait.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

/// Lets a task wait for the shutdown of the service. A clone waits for the same trigger.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Creates a trigger and its receiver.
    pub fn channel() -> (ShutdownTrigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownTrigger(sender), Self(receiver))
    }

    /// Returns when the shutdown starts; at once if it has already started.
    pub async fn triggered(&self) {
        let mut receiver = self.0.clone();
        // An error means that the trigger was dropped, and then the service has ended too.
        let _ = receiver.wait_for(|ended| *ended).await;
    }
}
