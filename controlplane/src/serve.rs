//! `serve`: starts both listeners, prints the first line of output, and shuts down.

use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::access_keys::AccessKeys;
use crate::args::ServeArgs;
use crate::inventory::{Inventory, InventoryError};
use crate::metrics::Metrics;
use crate::platform::AppState;
use crate::shutdown::{Shutdown, TerminationSignals};
use crate::signing::{SigningKey, SigningKeyError};
use crate::store::{StoreError, StoreUrl};
use crate::toml_file::TomlFileError;
use crate::{api, descriptors, face, metadata};

/// The time that open connections have to end after the shutdown.
const SHUTDOWN_GRACE_PERIOD: Duration = Duration::from_secs(1);

/// Why the service cannot run.
#[derive(Debug)]
pub enum ServeError {
    /// The given instances are invalid.
    Inventory(InventoryError),
    /// The given access keys are invalid.
    AccessKeys(TomlFileError),
    /// The given signing key is invalid.
    SigningKey(SigningKeyError),
    /// The metrics cannot be created.
    Metrics(prometheus::Error),
    /// The store cannot be opened.
    Store(StoreUrl, StoreError),
    /// The service cannot listen on an address.
    Listen {
        /// The flag that names the address.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// The error of the system.
        cause: std::io::Error,
    },
    /// A system call that every service needs failed; holds the action and the error.
    System(&'static str, std::io::Error),
}

impl ServeError {
    /// The exit status: 2 for errors of usage and configuration, 1 for faults of the environment.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Inventory(_) | Self::AccessKeys(_) | Self::SigningKey(_) => 2,
            Self::Metrics(_) | Self::Store(..) | Self::Listen { .. } | Self::System(..) => 1,
        }
    }
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inventory(error) => error.fmt(f),
            Self::AccessKeys(error) => error.fmt(f),
            Self::SigningKey(error) => error.fmt(f),
            Self::Metrics(error) => write!(f, "the numbers for /metrics: {error}"),
            Self::Store(url, error) => write!(f, "--store {url}: {error}"),
            Self::Listen { flag, address, cause } => {
                write!(
                    f,
                    "cannot listen at {address}: {cause}; {flag} names another address, port 0 a free one"
                )
            }
            Self::System(what, cause) => write!(f, "{what}: {cause}"),
        }
    }
}

impl std::error::Error for ServeError {}

/// Runs the service until SIGTERM or SIGINT.
///
/// # Errors
/// The service cannot start.
pub fn run(args: &ServeArgs) -> Result<(), ServeError> {
    let inventory =
        Inventory::load(&args.instance_ids, args.instances_file.as_deref()).map_err(ServeError::Inventory)?;
    let access_keys =
        args.access_keys.as_deref().map(AccessKeys::load).transpose().map_err(ServeError::AccessKeys)?;
    let signing_key =
        args.signing_key.as_deref().map(SigningKey::load).transpose().map_err(ServeError::SigningKey)?;
    descriptors::raise_nofile_limit()
        .map_err(|cause| ServeError::System("cannot raise the limit of descriptors", cause))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|cause| ServeError::System("cannot start the runtime", cause))?;
    let ended = runtime.block_on(serve_until_signal(
        args,
        inventory,
        access_keys.map(Arc::new),
        signing_key.map(Arc::new),
    ));
    // Tasks that have not ended by now are abandoned.
    runtime.shutdown_background();
    ended
}

async fn serve_until_signal(
    args: &ServeArgs,
    inventory: Inventory,
    access_keys: Option<Arc<AccessKeys>>,
    signing_key: Option<Arc<SigningKey>>,
) -> Result<(), ServeError> {
    let mut signals =
        TerminationSignals::register().map_err(|cause| ServeError::System("cannot catch signals", cause))?;
    let metrics = Metrics::new().map_err(ServeError::Metrics)?;
    let store = args.store.open().await.map_err(|error| ServeError::Store(args.store.clone(), error))?;
    let (api_listener, api_address) = bind_listener("--api", args.api).await?;
    let (metadata_listener, metadata_address) = bind_listener("--metadata", args.metadata).await?;
    if inventory.iter().next().is_none() {
        warn!("there is no instance: nothing can be bound (--instance, --instances)");
    }
    print_startup_line(&format_startup_line(api_address, metadata_address, &inventory))
        .map_err(|cause| ServeError::System("cannot write to the standard output", cause))?;

    let (trigger, shutdown) = Shutdown::channel();
    let platform = AppState {
        store,
        inventory: Arc::new(inventory),
        attach_wait: Duration::from_secs(args.attach_wait),
        access_keys,
        signing_key,
        metrics: Arc::new(metrics),
        shutdown: shutdown.clone(),
    };
    let api =
        tokio::spawn(face::serve_connections(api_listener, api::router(platform.clone()), shutdown.clone()));
    let metadata =
        tokio::spawn(face::serve_connections(metadata_listener, metadata::router(platform), shutdown));
    signals.recv().await;
    info!("ending");
    trigger.fire();
    let ends = async {
        // A listener task that panicked has ended too, so its error is ignored.
        let _ = api.await;
        let _ = metadata.await;
    };
    if tokio::time::timeout(SHUTDOWN_GRACE_PERIOD, ends).await.is_err() {
        info!("some connections are cut");
    }
    Ok(())
}

async fn bind_listener(
    flag: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |cause| ServeError::Listen { flag, address, cause };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// The first line of output: a JSON object with the address of the API and each instance's base URL (KP-9.1).
fn format_startup_line(api: SocketAddr, metadata: SocketAddr, inventory: &Inventory) -> String {
    let bases: Map<String, Value> = inventory
        .iter()
        .map(|instance| {
            let id = instance.id.to_string();
            let base = format!("http://{metadata}/{id}/metadata/latest");
            (id, Value::String(base))
        })
        .collect();
    json!({ "api": format!("http://{api}"), "metadata": bases }).to_string()
}

fn print_startup_line(line: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
