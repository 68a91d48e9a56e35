//! What one server changed is told to all of them by PostgreSQL, with LISTEN and NOTIFY.

use std::sync::Arc;
use std::time::Duration;

use keypair_agent::policy::types::InstanceId;
use sqlx::AnyPool;
use sqlx::postgres::PgListener;
use tokio::time::{interval, sleep, timeout};
use tracing::{info, warn};

use super::{Connection, failed};
use crate::store::StoreError;
use crate::store::changes::Changes;

/// Its payload is the ids of instances, with a blank between them; empty, it is a heartbeat.
const CHANNEL: &str = "keypair_changes";
/// The longest payload: PostgreSQL takes less than 8000 bytes.
const PAYLOAD: usize = 7999;
/// How often a heartbeat is sent.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Without any news for as long the connection is dead, whatever it says.
const SILENCE: Duration = Duration::from_secs(30);
/// How long to wait before it is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells every server, once the transaction is committed.
pub(super) async fn tell(connection: &mut Connection, instances: &[&InstanceId]) -> Result<(), StoreError> {
    for payload in payloads(instances) {
        let query = sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(payload);
        query.execute(&mut *connection).await.map_err(failed)?;
    }
    Ok(())
}

/// As few as hold all of them.
fn payloads(instances: &[&InstanceId]) -> Vec<String> {
    let mut payloads: Vec<String> = Vec::new();
    for instance in instances {
        match payloads.last_mut() {
            Some(last) if last.len() + 1 + instance.as_str().len() <= PAYLOAD => {
                last.push(' ');
                last.push_str(instance.as_str());
            }
            _ => payloads.push(instance.as_str().to_owned()),
        }
    }
    payloads
}

/// Tells who waits here, as long as anybody may.
pub(super) async fn listen(url: &str, pool: AnyPool, changes: Arc<Changes>) -> Result<(), sqlx::Error> {
    let mut listener = connect(url).await?;
    let url = url.to_owned();
    tokio::spawn(async move {
        let mut beats = interval(HEARTBEAT);
        loop {
            beats.tick().await;
            let beat = sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL);
            // Where it fails, silence says so.
            let _ = timeout(HEARTBEAT, beat.execute(&pool)).await;
        }
    });
    tokio::spawn(async move {
        loop {
            let lost = match timeout(SILENCE, listener.try_recv()).await {
                Ok(Ok(Some(news))) => {
                    for instance in news.payload().split_ascii_whitespace().flat_map(str::parse) {
                        changes.tell(&instance);
                    }
                    continue;
                }
                // It has connected anew already.
                Ok(Ok(None)) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("not a word in {} s", SILENCE.as_secs())),
            };
            if let Some(why) = lost {
                warn!("no news from the store: {why}");
                listener = loop {
                    match connect(&url).await {
                        Ok(listener) => break listener,
                        Err(_) => sleep(PAUSE).await,
                    }
                };
            }
            // What was said meanwhile nobody heard.
            info!("listening to the store anew");
            changes.tell_all();
        }
    });
    Ok(())
}

async fn connect(url: &str) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect(url).await?;
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn payloads_are_full_and_no_longer_than_postgresql_takes() {
        let ids: Vec<InstanceId> = (0..200).map(|number| format!("{number:0>79}").parse().unwrap()).collect();
        let payloads = payloads(&ids.iter().collect::<Vec<_>>());
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
