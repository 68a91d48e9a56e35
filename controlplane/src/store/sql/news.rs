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

/// Its payload is an instance's id; empty, it is a heartbeat.
const CHANNEL: &str = "keypair_changes";
/// How often a heartbeat is sent.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Without any news for as long the connection is dead, whatever it says.
const SILENCE: Duration = Duration::from_secs(30);
/// How long to wait before it is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells every server, once the transaction is committed.
pub(super) async fn tell(connection: &mut Connection, instance: &InstanceId) -> Result<(), StoreError> {
    let query = sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(instance.as_str());
    query.execute(connection).await.map_err(failed)?;
    Ok(())
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
                    if let Ok(instance) = news.payload().parse() {
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
