//! What one server changed is told to all of them by PostgreSQL, with LISTEN and NOTIFY.

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

/// Its payload is the ids of instances, with a blank between them; empty, it is a heartbeat.
const NOTIFY_CHANNEL: &str = "keypair_changes";
/// The longest payload: PostgreSQL takes less than 8000 bytes.
const MAX_PAYLOAD_BYTES: usize = 7999;
/// How often a heartbeat is sent.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// Without any news for as long the connection is dead, whatever it says.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait before it is tried again.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// Tells every server, once the transaction is committed.
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

/// As few as hold all of them.
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

/// Tells who waits here, as long as anybody may.
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
            // Where it fails, silence says so.
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
                // It has connected anew already.
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
            // What was said meanwhile nobody heard.
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
        // A hundred ids with 99 blanks between them are 7999 bytes.
        assert_eq!(payloads.iter().map(String::len).collect::<Vec<_>>(), [7999, 7999]);
        let told: Vec<InstanceId> = payloads
            .iter()
            .flat_map(|payload| payload.split_ascii_whitespace())
            .map(|id| id.parse().unwrap())
            .collect();
        assert_eq!(told, ids);
    }
}
