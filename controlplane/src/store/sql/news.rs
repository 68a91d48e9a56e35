//! Notification of changes between servers, with LISTEN and NOTIFY of PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use keypair_agent::policy::types::InstanceId;
use sqlx::AnyPool;
use sqlx::postgres::PgListener;
use tokio::time::{interval, sleep, timeout};
use tracing::{info, warn};

use super::{Connection, to_store_error};
use crate::store::StoreError;
use crate::store::changes::ChangeNotifier;

/// The name of the NOTIFY channel. A payload is a list of instance ids, separated by blanks. An empty payload is a
/// heartbeat.
const NOTIFY_CHANNEL: &str = "keypair_changes";
/// The longest payload: PostgreSQL accepts less than 8000 bytes.
const MAX_PAYLOAD_BYTES: usize = 7999;
/// The interval of the heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// If no notification arrives for this long, the connection counts as dead.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause before a reconnect.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// Notifies every server of changed instances. PostgreSQL sends the notification when the transaction commits.
pub(super) async fn notify_servers(
    connection: &mut Connection,
    instances: &[&InstanceId],
) -> Result<(), StoreError> {
    for payload in pack_payloads(instances) {
        let query = sqlx::query("SELECT pg_notify($1, $2)").bind(NOTIFY_CHANNEL).bind(payload);
        query.execute(&mut *connection).await.map_err(to_store_error)?;
    }
    Ok(())
}

/// Packs the ids into as few payloads as possible.
fn pack_payloads(instances: &[&InstanceId]) -> Vec<String> {
    let mut payloads: Vec<String> = Vec::new();
    for instance in instances {
        match payloads.last_mut() {
            Some(last) if last.len() + 1 + instance.as_str().len() <= MAX_PAYLOAD_BYTES => {
                last.push(' ');
                last.push_str(instance.as_str());
            }
            _ => payloads.push(instance.as_str().to_owned()),
        }
    }
    payloads
}

/// Starts the tasks that send heartbeats and that forward notifications to the calls waiting on this server.
pub(super) async fn spawn_listener(
    url: &str,
    pool: AnyPool,
    changes: Arc<ChangeNotifier>,
) -> Result<(), sqlx::Error> {
    let mut listener = connect_listener(url).await?;
    let url = url.to_owned();
    tokio::spawn(async move {
        let mut beats = interval(HEARTBEAT_INTERVAL);
        loop {
            beats.tick().await;
            let beat = sqlx::query("SELECT pg_notify($1, '')").bind(NOTIFY_CHANNEL);
            // An error is ignored here, because the listener notices the missing heartbeat.
            let _ = timeout(HEARTBEAT_INTERVAL, beat.execute(&pool)).await;
        }
    });
    tokio::spawn(async move {
        loop {
            let lost = match timeout(SILENCE_TIMEOUT, listener.try_recv()).await {
                Ok(Ok(Some(news))) => {
                    for instance in news.payload().split_ascii_whitespace().flat_map(str::parse) {
                        changes.notify(&instance);
                    }
                    continue;
                }
                // sqlx has already reconnected.
                Ok(Ok(None)) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("not a word in {} s", SILENCE_TIMEOUT.as_secs())),
            };
            if let Some(why) = lost {
                warn!("no news from the store: {why}");
                listener = loop {
                    match connect_listener(&url).await {
                        Ok(listener) => break listener,
                        Err(_) => sleep(RECONNECT_DELAY).await,
                    }
                };
            }
            // Notifications during the interruption were lost, so every waiting call must check again.
            info!("listening to the store anew");
            changes.notify_all();
        }
    });
    Ok(())
}

async fn connect_listener(url: &str) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect(url).await?;
    listener.listen(NOTIFY_CHANNEL).await?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn notify_payloads_fill_postgresql_limit_exactly() {
        let ids: Vec<InstanceId> = (0..200).map(|number| format!("{number:0>79}").parse().unwrap()).collect();
        let payloads = pack_payloads(&ids.iter().collect::<Vec<_>>());
        // A hundred ids of 79 bytes, with 99 blanks between them, are 7999 bytes.
        assert_eq!(payloads.iter().map(String::len).collect::<Vec<_>>(), [7999, 7999]);
        let told: Vec<InstanceId> = payloads
            .iter()
            .flat_map(|payload| payload.split_ascii_whitespace())
            .map(|id| id.parse().unwrap())
            .collect();
        assert_eq!(told, ids);
    }
}
